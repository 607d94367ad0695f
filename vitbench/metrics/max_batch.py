"""The largest batch that fits into a memory: predicted, on any machine, or measured on an accelerator until it runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from vitbench.counters import lifetimes
from vitbench.counters.lifetimes import Peak
from vitbench.errors import NotSupported
from vitbench.findings import MaxBatch
from vitbench.records import RunSetting
from vitbench.running import passes
from vitbench.running.device import out_of_memory

_ENDLESS = 2**24
"""Inputs; a batch as large as this fits only if the batch takes no memory."""


def largest(fits: Callable[[int], bool], guess: int = 1) -> int:
    """Gives the largest batch that fits: steps from a guess, each twice the last, until one fits and one does not, then bisects.

    From a guess of 1 the steps go to 2, 4, 8 and so on. From a right guess it takes two calls.

    Args:
        fits: whether a batch of 1 or more fits; with a batch each smaller one does too.
        guess: 1 or more.

    Returns:
        The largest batch, 0 if none fits.

    Raises:
        NotSupported: batches fit without end.
    """
    step = 1
    if fits(guess):
        low, high = guess, guess + step
        while fits(high):
            if high > _ENDLESS:
                raise NotSupported(f"A batch of {high} still fits: this pass takes no memory for its batch.")
            low, step = high, 2 * step
            high = low + step
    else:
        low, high = max(0, guess - step), guess
        while low and not fits(low):
            high, step = low, 2 * step
            low = max(0, high - step)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def predict(model: nn.Module, setting: RunSetting, *, limit_bytes: int) -> MaxBatch:
    """Predicts the largest batch: its predicted peak is within the limit, and that of one input more is not.

    Args:
        model: on "meta", or anywhere; it is left as it was.
        setting: what is run, at any batch size.
        limit_bytes: for tensors alone: a driver's context and an allocator's holes are not predicted.

    Raises:
        NotSupported: batches fit without end; or as in `lifetimes.peak`.
        Exception: whatever the model raises when it cannot take that input.
    """
    peaks: dict[int, Peak] = {}

    def at(batch_size: int) -> Peak:
        if batch_size not in peaks:
            peaks[batch_size] = lifetimes.peak(model, replace(setting, batch_size=batch_size))
        return peaks[batch_size]

    # At small batches the optimizer's step may hold more than the pass, so that the line through 1 and 2 is flat; later points
    # are on another line.
    guess = least = _least(setting)
    for first, second in ((least, least + 1), (32, 33)):
        slope = at(second).peak_bytes - at(first).peak_bytes
        if slope > 0:
            guess = first + (limit_bytes - at(first).peak_bytes) // slope
            break
    found = largest(lambda batch_size: at(max(least, batch_size)).peak_bytes <= limit_bytes, max(least, guess))
    parts = at(max(least, found))
    return MaxBatch(
        max_batch=found,
        max_batch_method="predicted",
        limit_bytes=limit_bytes,
        peak_bytes=parts.peak_bytes if found else None,
        next_peak_bytes=at(found + 1).peak_bytes,
        weights_bytes=parts.weights_bytes,
        gradients_bytes=parts.gradients_bytes,
        optimizer_bytes=parts.optimizer_bytes,
        activations_bytes=parts.activations_bytes,
    )


def measure(model: nn.Module, setting: RunSetting) -> MaxBatch:
    """Measures the largest batch on an accelerator: passes of doubling batches until memory runs out, then bisection.

    Args:
        model: changed in place, by `passes.laid_out`.
        setting: what is run, at any batch size.

    Raises:
        NotSupported: the device is a CPU: there the system ends the process, or begins to swap, where memory runs out.
        torch.OutOfMemoryError: the model itself does not fit.
        Exception: whatever the model raises when it cannot take that input.
    """
    device = torch.device(setting.device)
    if device.type == "cpu":
        raise NotSupported("A CPU has no limit to run into safely; give --memory and have the largest batch predicted.")
    passes.laid_out(model, setting)
    peaks: dict[int, int] = {}

    def fits(batch_size: int) -> bool:
        torch.accelerator.reset_peak_memory_stats(device)
        done = survives(lambda: _pass(model, replace(setting, batch_size=batch_size)))
        peaks[batch_size] = torch.accelerator.max_memory_allocated(device)
        # Outside the except block, so that no traceback holds the tensors of a pass that failed.
        for parameter in model.parameters():
            parameter.grad = None
        gc.collect()
        torch.accelerator.empty_cache()
        return done

    found = largest(fits, _least(setting))
    try:
        _, total = torch.accelerator.get_memory_info(device)
    except (NotImplementedError, RuntimeError):
        total = None  # not every backend asks its driver
    return MaxBatch(
        max_batch=found,
        max_batch_method="measured",
        limit_bytes=total,
        peak_bytes=peaks[found] if found else None,
        next_peak_bytes=None,
        weights_bytes=None,
        gradients_bytes=None,
        optimizer_bytes=None,
        activations_bytes=None,
    )


def _least(setting: RunSetting) -> int:
    """Gives the batch to begin with: batch norms do not train on one value."""
    return 1 if setting.mode == "infer" else 2


def survives(work: Callable[[], None]) -> bool:
    """Does some work, and says whether the accelerator's memory sufficed; any other error is passed on."""
    try:
        work()
    except RuntimeError as error:
        # cuBLAS and cuDNN ask the driver for memory themselves.
        if out_of_memory(error) or "ALLOC_FAILED" in str(error):
            return False
        raise
    return True


def _pass(model: nn.Module, setting: RunSetting) -> None:
    phases = passes.phases(model, passes.example(setting), setting)
    # The optimizer's state is born in the first step.
    for phase in phases * 2:
        phase()
    torch.accelerator.synchronize(torch.device(setting.device))
