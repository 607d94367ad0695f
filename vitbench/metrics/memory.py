"""Memory of a pass: predicted from the lifetimes of tensors that never exist, and measured, to be laid side by side.

Both take the same pass: a forward pass without gradients, or two training steps, of which the second finds the optimizer's state
in place. Everything is counted from before the model is built: weights are part of every peak.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vitbench.counters import lifetimes
from vitbench.errors import NotSupported
from vitbench.findings import Agreement, Measured, Predicted
from vitbench.records import RunSetting
from vitbench.running import passes

CPU = torch.device("cpu")
_PRODUCT = 2048  # rows and columns: from 1024 to here MKL's buffers still grew for vit_s16 at batch 8


def predict(model: nn.Module, setting: RunSetting) -> Predicted:
    """Predicts what an eager pass holds; needs neither weights nor the device. Arguments and errors as in `lifetimes.peak`."""
    peak = lifetimes.peak(model, setting)
    return Predicted(
        predicted_weights_bytes=peak.weights_bytes,
        predicted_gradients_bytes=peak.gradients_bytes,
        predicted_optimizer_bytes=peak.optimizer_bytes,
        predicted_activations_bytes=peak.activations_bytes,
        predicted_workspace_bytes=peak.workspace_bytes,
        predicted_peak_bytes=peak.peak_bytes,
    )


def measure(build: Callable[[], nn.Module], setting: RunSetting) -> Measured:
    """Measures what a pass holds. Call it once in a process of its own: it changes the process's allocator, and leaves garbage.

    On a CPU a large product and a batch of one or two go first, so that what libraries load and keep when they are first used is
    there before: MKL keeps buffers for each thread, 6 MB with two threads. Their own memory is handed back. Then resident memory
    is read, the model built, and the kernel's high-water mark of resident memory followed through the pass.

    Args:
        build: gives the model on the CPU; on a CPU it is called twice.
        setting: what is run.

    Raises:
        NotSupported: this system does not keep the peak of resident memory.
        torch.OutOfMemoryError: the accelerator's memory ran out; on a CPU it is a RuntimeError.
        Exception: whatever the model raises when it cannot take that input.
    """
    device = torch.device(setting.device)
    reason = obstacle(device)
    if reason is not None:
        raise NotSupported(reason)
    meter: _Meter
    if device.type == "cpu":
        meter = _Resident()
        torch.mm(*(torch.rand(_PRODUCT, _PRODUCT).to(passes.DTYPES[setting.dtype]) for _ in range(2)))
        # In training, two: batch norms do not train on one value.
        few = min(setting.batch_size, 1 if setting.mode == "infer" else 2)
        _run(passes.laid_out(build(), setting), replace(setting, batch_size=few), _Account(meter, 0))
    else:
        meter = _Allocated(device)
    account = _Account(meter, meter.settled())
    model = passes.laid_out(build(), setting)
    account.weights = meter.settled() - account.base
    meter.forget()
    _run(model, setting, account)
    return Measured(
        measured_weights_bytes=account.weights,
        measured_gradients_bytes=account.all_gradients,
        measured_optimizer_bytes=account.optimizer,
        measured_activations_bytes=account.activations,
        measured_peak_bytes=account.peak,
        measured_reserved_bytes=account.reserved,
        measured_driver_bytes=meter.driver(),
    )


def compare(predicted: Predicted, measured: Measured) -> Agreement:
    """Lays a prediction against a measurement."""
    theirs = measured.measured_peak_bytes
    return Agreement(predicted_over_measured=predicted.predicted_peak_bytes / theirs if theirs else None)


def obstacle(device: torch.device) -> str | None:
    """Gives why the memory of a pass cannot be measured on a device here, or None if it can."""
    if device.type == "cpu" and sys.platform != "linux":
        return f"{sys.platform} keeps no peak of resident memory that can be set back, as Linux does."
    return None


class _Meter(Protocol):
    """Reads the memory that this process holds, in bytes."""

    def settled(self) -> int:
        """Gives what is held now, after all has been handed back that can be."""

    def forget(self) -> None:
        """Starts a new peak."""

    def peak(self) -> int:
        """Gives the most that was held since."""

    def reserved(self) -> int | None:
        """Gives the most that the allocator kept since, where there is one to ask."""

    def driver(self) -> int | None:
        """Gives what the device's driver says is in use, where there is one."""


_M_MMAP_THRESHOLD = -3  # malloc.h of glibc
_MAPPED_BYTES = 64 * 2**10


class _Resident:
    """The resident memory of this process, as Linux keeps it (man 5 proc: VmRSS, VmHWM and clear_refs).

    glibc raises the size from which blocks have pages of their own, up to 32 MiB, whenever such a block is freed; smaller ones
    come from its heap, which has holes and is not handed back, so that the peak depends on all that happened before: 15 to 25 %
    above what tensors hold, for vit_s16 at batch 8. Here the size is fixed, and what is freed is gone.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        # Other C libraries than glibc have no such setting, and need none.
        if hasattr(self._libc, "mallopt"):
            self._libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)

    def settled(self) -> int:
        gc.collect()
        if hasattr(self._libc, "malloc_trim"):
            self._libc.malloc_trim(0)
        return self._status("VmRSS")

    def forget(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int:
        return self._status("VmHWM")

    def reserved(self) -> int | None:
        return None

    def driver(self) -> int | None:
        return None

    @staticmethod
    def _status(name: str) -> int:
        with Path("/proc/self/status").open(encoding="ascii", errors="replace") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class _Allocated:
    """The memory of an accelerator, as its allocator and its driver keep it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def settled(self) -> int:
        gc.collect()
        torch.accelerator.empty_cache()
        return torch.accelerator.memory_allocated(self._device)

    def forget(self) -> None:
        torch.accelerator.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        return torch.accelerator.max_memory_allocated(self._device)

    def reserved(self) -> int | None:
        return torch.accelerator.max_memory_reserved(self._device)

    def driver(self) -> int | None:
        try:
            free, total = torch.accelerator.get_memory_info(self._device)
        except (NotImplementedError, RuntimeError):
            return None  # not every backend asks its driver
        return total - free


class _Account:
    """Follows a meter through the windows of a pass, and knows in each how many gradients there were."""

    def __init__(self, meter: _Meter, base: int) -> None:
        self._meter = meter
        self.base = base
        self.weights = self.optimizer = self.activations = self.peak = 0
        self.gradients = self.all_gradients = 0
        self.reserved: int | None = None

    def window(self, *, updating: bool = False) -> None:
        """Reads the peak since the last window, and starts another."""
        grown = self._meter.peak() - self.base
        self.peak = max(self.peak, grown)
        reserved = self._meter.reserved()
        self.reserved = None if reserved is None else max(self.reserved or 0, reserved)
        if not updating:
            self.activations = max(self.activations, grown - self.weights - self.optimizer - self.gradients)
        self._meter.forget()

    def born(self, parameter: Tensor) -> None:
        """Books a gradient that has just been completed."""
        self.window()
        self.gradients += _bytes(parameter.grad)
        self.all_gradients = max(self.all_gradients, self.gradients)


def _run(model: nn.Module, setting: RunSetting, account: _Account) -> None:
    inputs = passes.example(setting)
    if setting.mode == "infer":
        (infer,) = passes.phases(model, inputs, setting)
        infer()
        account.window()
        return
    lifetimes.watch_gradients(model, account.born)
    optimizer = torch.optim.AdamW(model.parameters())
    forward, backward, step = passes.phases(model, inputs, setting, optimizer)
    for _ in range(2):
        account.gradients = 0
        forward()
        account.window()
        backward()
        account.window()
        step()
        account.window(updating=True)
        # AdamW counts its steps on the CPU.
        state = [leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)]
        account.optimizer = sum(_bytes(tensor) for tensor in state if tensor.device == inputs.device and tensor.dim())


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.untyped_storage().nbytes()
