"""Counts the operators of a forward pass without memory: the primary counter.

The pass runs on torch's `meta` device, where tensors have a shape and no data, under a dispatch mode that sees every operator
after composite ones have been taken apart: fused attention arrives as the matrix products that it computes. So no weights are
needed, no activations are stored, and the size of the model does not matter.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

META = torch.device("meta")


@dataclass(slots=True)
class Cost:
    """What one operator did in one module.

    Attributes:
        macs: multiply-accumulates.
        activations: elements that counted operators wrote.
        uncounted: elements that operators without a count wrote.
        calls: how often it was called.
        traffic_bytes: what it read and wrote, each tensor once a call.
    """

    macs: int = 0
    activations: int = 0
    uncounted: int = 0
    calls: int = 0
    traffic_bytes: int = 0

    def add(self, other: Cost) -> None:
        """Adds another cost to this one."""
        self.macs += other.macs
        self.activations += other.activations
        self.uncounted += other.uncounted
        self.calls += other.calls
        self.traffic_bytes += other.traffic_bytes


Tally = dict[tuple[str, str], Cost]
"""Costs by (module path, operator); the path of the model itself is ""."""


def tally(model: nn.Module, input_shape: Sequence[int], batch_size: int = 1) -> Tally:
    """Counts one forward pass of a model, in evaluation mode and without gradients.

    Neither the model nor its state is changed: its tensors are replaced by meta tensors for the pass only.

    Args:
        model: on any device.
        input_shape: without the batch: (channels, height, width) or (channels, frames, height, width).
        batch_size: inputs per pass.

    Returns:
        Costs by (module path, operator).

    Raises:
        Exception: whatever the model raises when it cannot take that input.
    """
    counter = _Counter({module: name for name, module in model.named_modules()})
    inputs = torch.empty((batch_size, *input_shape), device=META, dtype=dtype(model))
    with evaluating(model), on_meta(model), no_fast_path(), torch.no_grad(), counter:
        model(inputs)
    return counter.tally


def total(costs: Tally) -> Cost:
    """Sums a tally."""
    result = Cost()
    for cost in costs.values():
        result.add(cost)
    return result


def by_operator(costs: Tally) -> dict[str, Cost]:
    """Sums a tally by operator, largest multiply-accumulates first, then most elements."""
    result: dict[str, Cost] = {}
    for (_, operator), cost in costs.items():
        result.setdefault(operator, Cost()).add(cost)
    return dict(sorted(result.items(), key=lambda item: (-item[1].macs, -item[1].uncounted)))


def by_module(costs: Tally, depth: int | None = None) -> dict[str, Cost]:
    """Sums a tally by module, down to a depth, in the order of the forward pass.

    A module's entry holds what it did itself and what its children below the depth did; what a module above the depth did
    itself, outside its children, stands under its own name. So the entries sum to the total.
    """
    result: dict[str, Cost] = {}
    for (module, _), cost in costs.items():
        result.setdefault(cut(module, depth), Cost()).add(cost)
    return result


def cut(path: str, depth: int | None) -> str:
    """Shortens a module's path to its first `depth` names."""
    return path if depth is None else ".".join(path.split(".")[:depth])


class _Counter(TorchDispatchMode):
    """Books every operator under the module that is running."""

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.tally: Tally = {}
        self._names = names
        self._running: list[nn.Module] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> _Counter:
        self._hooks = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for hook in self._hooks:
            hook.remove()

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        if module in self._names:
            self._running.append(module)

    def _leave_module(self, module: nn.Module, *_: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in tensors) and not all(tensor.is_meta for tensor in tensors):
            # A tensor that the model keeps as a plain attribute is no parameter and no buffer, so it was not replaced.
            args, kwargs = tree_map_only(Tensor, _to_meta, (args, kwargs))
        result = func(*args, **kwargs)
        kind = _kind(func)
        if kind is not None:
            name, formula = kind
            path = self._names[self._running[-1]] if self._running else ""
            cost = self.tally.setdefault((path, name), Cost())
            cost.calls += 1
            cost.traffic_bytes += _traffic_bytes(name, args, kwargs, result)
            if formula is None:
                cost.uncounted += _elements(result)
            else:
                cost.macs += formula(args, kwargs, result)
                cost.activations += _products_written(name, args, result)
        return result


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.to(META)


def _elements(result: Any) -> int:
    return sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))


# Their first argument is where the result goes: they do not read it.
_OVERWRITE = {"copy_", "fill_", "zero_"}


def _traffic_bytes(name: str, args: Any, kwargs: Any, result: Any) -> int:
    """Gives the bytes of an operator's inputs and outputs, each once; of a tensor that is expanded, what lies in memory.

    So an operator in place reads and writes its tensor, and one that picks from a table reads all of it.
    """
    read = args[1:] if name in _OVERWRITE else args
    inputs = {id(leaf): leaf for leaf in tree_leaves((read, kwargs)) if isinstance(leaf, Tensor)}
    outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    return sum(_held_bytes(tensor) for tensor in (*inputs.values(), *outputs))


def _held_bytes(tensor: Tensor) -> int:
    extents = (extent for extent, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not extent)
    return math.prod(extents) * tensor.element_size()


Formula = Callable[[Any, Any, Any], int]


def _mm(args: Any, kwargs: Any, result: Tensor) -> int:
    # Every element of the product of (..., n, k) and (..., k, m) takes k multiply-accumulates.
    return int(result.numel() * args[0].shape[-1])


def _added_mm(args: Any, kwargs: Any, result: Tensor) -> int:
    # The first argument is what the product is added to: it costs no multiply-accumulate.
    return int(result.numel() * args[1].shape[-1])


def _summed_bmm(args: Any, kwargs: Any, result: Tensor) -> int:
    return int(result.numel() * args[1].shape[-1] * args[1].shape[0])


def _dot(args: Any, kwargs: Any, result: Tensor) -> int:
    return int(args[0].numel())


def _convolution(args: Any, kwargs: Any, result: Tensor) -> int:
    inputs, weight = args[0], args[1]
    transposed = args[6]
    # weight is (out, in / groups, ...), or (in, out / groups, ...) when transposed: each element of the output, or of the
    # input when transposed, meets every weight of one slice.
    return int((inputs if transposed else result).numel() * math.prod(weight.shape[1:]))


def _attention(args: Any, kwargs: Any, result: Any) -> int:
    query, key, value = args[0], args[1], args[2]
    rows, keys = math.prod(query.shape[:-1]), key.shape[-2]
    return int(rows * keys * (query.shape[-1] + value.shape[-1]))


_FORMULAS: dict[str, Formula] = {
    "mm": _mm,
    "bmm": _mm,
    "mv": _mm,
    "_int_mm": _mm,
    "_scaled_mm": _mm,
    "addmm": _added_mm,
    "baddbmm": _added_mm,
    "addmv": _added_mm,
    "_addmm_activation": _added_mm,
    "addbmm": _summed_bmm,
    "dot": _dot,
    "vdot": _dot,
    "convolution": _convolution,
    "_convolution": _convolution,  # in scripted models
    "convolution_overrideable": _convolution,
    # These arrive only where a backend's kernel is called by name: on meta, fused attention is taken apart before.
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_scaled_dot_product_attention_math": _attention,
}


def _products_written(name: str, args: Any, result: Any) -> int:
    """Gives the elements that the matrix products or the convolution of an operator write (fvcore's activations).

    Fused attention writes two products, the logits and the output, whether a kernel keeps the first or not: the count is the
    same with fused attention on and off.
    """
    if _FORMULAS[name] is _attention:
        query, key, value = args[0], args[1], args[2]
        return int(math.prod(query.shape[:-1]) * (key.shape[-2] + value.shape[-1]))
    return int(result.numel())


# These write nothing that was computed: they name, allocate, hand on or choose.
_NOT_WORK = {
    "_unsafe_view", "empty", "empty_strided", "new_empty", "empty_like", "lift_fresh", "set_", "resize_", "_fused_sdp_choice",
}  # fmt: skip

_kinds: dict[Any, tuple[str, Formula | None] | None] = {}


def _kind(func: Any) -> tuple[str, Formula | None] | None:
    """Gives an operator's name and formula (None: not counted), or None for one that does no work."""
    if func not in _kinds:
        namespace, _, name = str(func.overloadpacket).partition(".")
        if namespace != "aten":
            name = f"{namespace}.{name}"
        idle = func.is_view or name in _NOT_WORK
        _kinds[func] = None if idle else (name, _FORMULAS.get(name))
    return _kinds[func]


def dtype(model: nn.Module) -> torch.dtype:
    """Gives the dtype of a model's first floating-point parameter: its inputs must have the same."""
    floats = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(floats, torch.get_default_dtype())


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Marks every module of a model as evaluating, and afterwards each as it was.

    Nothing but the mark is set: some models do more when they are told to evaluate, such as merging weights.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def on_meta(model: nn.Module) -> Iterator[None]:
    """Replaces a model's parameters and buffers by meta tensors, and afterwards puts them back.

    What the pass keeps on a module, such as a mask for the next one, is on meta too: it is taken away again. Nothing is copied.
    Tensors already on meta are replaced as well, so that no parameter requires a gradient: some models take views of
    parameters, which torch refuses to modify in place where gradients are tracked.
    """
    before: list[tuple[Any, dict[str, Any]]] = [
        (held, dict(held.items()))
        for module in model.modules()
        for held in (module.__dict__, module._parameters, module._buffers)
    ]
    stand_ins: dict[int, Tensor] = {}
    try:
        for module in model.modules():
            owners: tuple[Any, Any] = (module._parameters, module._buffers)
            for tensors in owners:
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = stand_ins.setdefault(id(tensor), _stand_in(tensor))
        yield
    finally:
        for held, contents in before:
            for name in held.keys() - contents.keys():
                del held[name]
            for name, value in contents.items():
                if name not in held or held[name] is not value:
                    held[name] = value


def _stand_in(tensor: Tensor) -> nn.Parameter | Tensor:
    meta = tensor.detach().to(META)
    return nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """Turns off the kernel that `nn.MultiheadAttention` and encoder layers call as a whole in evaluation mode."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
