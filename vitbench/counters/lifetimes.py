"""Follows the births and deaths of tensors in a pass that never runs: what the pass holds at its peak, predicted.

The pass runs on torch's `meta` device, where tensors have a shape and no data, under a dispatch mode that sees each storage
appear and, by a weak reference, disappear, when the same Python and the same autograd graph would let go of it on a real device.
So neither weights nor the device are needed, and a model may be larger than any machine.

Where meta and a device differ, the device is followed:

- Attention: meta takes `scaled_dot_product_attention` apart into explicit weights; see `vitbench.counters.kernels`.
- Sums of gradients: autograd adds in place to a gradient that nobody else holds. Under a dispatch mode Python holds it too, so
  that it never would; see `_Lifetimes._sums_in_place`.
- An accelerator's allocator hands out multiples of 512 bytes, and the matrix products keep a workspace there.
- On a CPU convolutions copy what they are given, out of sight of any dispatch; see `vitbench.counters.kernels.scratch`.

Left out: the workspaces of cuDNN's convolutions, which are not known beforehand; what libraries keep of each shape they meet,
some MB of a process; and what oneDNN takes for products in bf16, at most 8 % of a training step on a CPU (swin_t).
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, partial
from typing import Any

import pynvml
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vitbench.counters.counting import META, no_fast_path, on_meta
from vitbench.counters.kernels import kernels_of, scratch
from vitbench.errors import NotSupported
from vitbench.records import RunSetting
from vitbench.running import passes

ALLOCATION = 512
"""Bytes of which an accelerator's allocator hands out multiples. Source: kMinBlockSize in c10/cuda/CUDACachingAllocator."""


class Part(StrEnum):
    """What a tensor is for."""

    WEIGHTS = "weights"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    ACTIVATIONS = "activations"
    WORKSPACE = "workspace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What a pass holds. The parts are largest at different times: they need not sum to the peak, `at_peak` does.

    Attributes:
        weights_bytes: parameters and buffers.
        gradients_bytes: all gradients of parameters, as they are when the backward pass ends.
        optimizer_bytes: the optimizer's state between steps.
        activations_bytes: the most that everything else held at once until the backward pass ended: inputs, activations and
            their gradients, temporaries.
        workspace_bytes: what cuBLAS keeps on a CUDA device.
        peak_bytes: the most that all of them held at once.
        at_peak: the same by part; sums to `peak_bytes`.
    """

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    workspace_bytes: int
    peak_bytes: int
    at_peak: Mapping[Part, int]


def peak(model: nn.Module, setting: RunSetting) -> Peak:
    """Predicts the memory of an eager forward pass, or of training: the second step, when the optimizer has its state.

    The forward pass does not use torch's inference mode: there, composite operators reach a dispatch mode whole, with their
    temporaries out of sight. Memory is the same.

    Args:
        model: on any device, best on "meta"; it is left as it was.
        setting: its device is the one whose kernels and allocator are followed; it need not be here.

    Raises:
        NotSupported: autocast does not know the meta device; or the model cannot recompute its activations.
        Exception: whatever the model raises when it cannot take that input.
    """
    if setting.amp:
        raise NotSupported("Memory is not predicted under autocast, which does nothing on torch's meta device.")
    device_kind = setting.device.partition(":")[0]
    on_meta_setting = replace(setting, device="meta", compile=None)
    with on_meta(model):
        twin = copy.deepcopy(model)
    for parameter, original in zip(twin.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    passes.laid_out(twin, on_meta_setting)
    lifetimes = _Lifetimes(on_cpu=device_kind == "cpu")
    for tensor in (*twin.parameters(), *twin.buffers()):
        lifetimes.follow(tensor, Part.WEIGHTS)
    with no_fast_path(), lifetimes, kernels_of(device_kind):
        inputs = passes.example(on_meta_setting)
        if setting.mode == "infer":
            with torch.no_grad():
                twin(inputs)
            return lifetimes.found(workspace(device_kind))
        watch_gradients(twin, lambda parameter: lifetimes.mark(parameter.grad, Part.GRADIENTS))
        # On an accelerator, AdamW updates all parameters at once.
        optimizer = torch.optim.AdamW(twin.parameters(), foreach=device_kind != "cpu")
        forward, backward, step = passes.phases(twin, inputs, on_meta_setting, optimizer)
        for _ in range(2):
            forward()
            backward()
            lifetimes.settle()
            step()
            for state in tree_leaves(list(optimizer.state.values())):
                lifetimes.mark(state, Part.OPTIMIZER)
        # Autograd runs in a thread of its own on an accelerator, with a workspace of its own.
        return lifetimes.found(2 * workspace(device_kind))


def _discard(_: Any) -> None:
    """Takes a result that nobody needs."""


def watch_gradients(model: nn.Module, born: Callable[[Tensor], object]) -> None:
    """Has a function called with each parameter whose gradient has just been completed."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda done: _discard(born(done)))


def workspace(device_kind: str) -> int:
    """Gives the bytes that cuBLAS keeps for one thread: 32 MiB on Hopper and Blackwell, 8.125 MiB on others or if none is here.

    Source: parseChosenWorkspaceSize in aten/src/ATen/cuda/CublasHandlePool.cpp.
    """
    if device_kind != "cuda":
        return 0
    with suppress(pynvml.NVMLError):  # asked of the driver: torch would make a context on the card
        pynvml.nvmlInit()
        major, _ = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(0))
        if major in (9, 10, 12):
            return 32 * 2**20
    return 2 * 4096 * 2**10 + 8 * 16 * 2**10


@dataclass(slots=True)
class _Storage:
    """A storage that lives: `reference` reports its death."""

    reference: weakref.ref[Any]
    part: Part
    size_bytes: int


class _Lifetimes(TorchDispatchMode):
    """Keeps account of the storages on meta that live."""

    def __init__(self, *, on_cpu: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._on_cpu = on_cpu
        self._allocation = 1 if on_cpu else ALLOCATION
        self._sole = _holders_of_sole_gradient()
        self._alive: dict[int, _Storage] = {}
        self._held: Counter[Part] = Counter()
        self._total = 0
        self._peak = 0
        self._at_peak: Counter[Part] = Counter()
        self._most_activations = 0
        self._all_gradients = 0
        self._settled = False

    def follow(self, tensor: Tensor, part: Part = Part.ACTIVATIONS) -> None:
        """Books a tensor's storage, unless it is booked, or on a device that is not followed."""
        if not tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = -(-storage.nbytes() // self._allocation) * self._allocation
        self._alive[key] = _Storage(weakref.ref(storage, partial(self._died, key)), part, size)
        self._held[part] += size
        self._total += size

    def _died(self, key: int, _: Any) -> None:
        storage = self._alive.pop(key)
        self._held[storage.part] -= storage.size_bytes
        self._total -= storage.size_bytes

    def mark(self, tensor: Any, part: Part) -> None:
        """Books what has already been followed under another part."""
        if isinstance(tensor, Tensor) and tensor.is_meta:
            storage = self._alive[tensor.untyped_storage()._cdata]
            self._held[storage.part] -= storage.size_bytes
            self._held[part] += storage.size_bytes
            storage.part = part

    def settle(self) -> None:
        """Ends the account of activations: what comes now are the optimizer's temporaries, and the same pass again."""
        self._settled = True
        self._all_gradients = self._held[Part.GRADIENTS]

    def found(self, workspace_bytes: int) -> Peak:
        """Gives the account."""
        return Peak(
            weights_bytes=self._held[Part.WEIGHTS],
            gradients_bytes=self._all_gradients,
            optimizer_bytes=self._held[Part.OPTIMIZER],
            activations_bytes=self._most_activations,
            workspace_bytes=workspace_bytes,
            peak_bytes=self._peak + workspace_bytes,
            at_peak={part: workspace_bytes if part is Part.WORKSPACE else self._at_peak[part] for part in Part},
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.add.Tensor and self._sums_in_place(args):
            return args[0]
        places = {leaf.is_meta for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()}
        if len(places) == 2:
            # A tensor that the model keeps as a plain attribute is no parameter and no buffer, so it is not on meta.
            args, kwargs = tree_map_only(Tensor, _to_meta, (args, kwargs))
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.follow(leaf)
        own = scratch(func, args, result) if self._on_cpu else 0
        if (
            self._total + own >= self._peak
        ):  # as high again in the second step, when the optimizer's state is known as such
            self._peak = self._total + own
            self._at_peak = self._held.copy()
            self._at_peak[Part.ACTIVATIONS] += own
        if not self._settled:
            self._most_activations = max(self._most_activations, self._held[Part.ACTIVATIONS] + own)
        return result

    def _sums_in_place(self, args: Any) -> bool:
        """Says whether an addition is autograd's own, of two gradients, of which it alone holds the first.

        It then adds in place, if no dispatch mode watches. Source: `accumulate` in torch/csrc/autograd/input_buffer.cpp.
        """
        running = torch._C._current_graph_task_id() != -1
        return (
            running and isinstance(args[1], Tensor) and args[0].shape == args[1].shape and _holders(args) == self._sole
        )


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta or not tensor.dim() else tensor.to(META)


def _holders(args: Any) -> tuple[int, int]:
    """Gives how many hold the first of the arguments, and how many its storage, in C++."""
    return args[0]._use_count(), torch._C._storage_Use_Count(args[0].untyped_storage()._cdata)


@cache
def _holders_of_sole_gradient() -> tuple[int, int]:
    """Gives what `_holders` finds of a gradient that autograd alone holds: it differs between versions of torch."""
    found: list[tuple[int, int]] = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.add.Tensor and torch._C._current_graph_task_id() != -1:
                # Python's hold on the storage counts, and every dispatch before has left one.
                args[0].untyped_storage()
                found.append(_holders(args))
            return func(*args, **(kwargs or {}))

    leaf = torch.ones(2, device=META, requires_grad=True)
    with torch.enable_grad(), Look():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        middle = leaf.exp()
        (middle.sin() * middle.cos()).sum().backward()
    return found[0]
