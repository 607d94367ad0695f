"""What a device can do at most, measured: products of matrices, and memory read and written."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from vitbench.running.timing import Clock

_TRIES = 4
_BUDGET_S = 0.3

_ARRAY_BYTES = 256 * 2**20
"""Of which two are read and written: together more than the last-level cache of a processor or accelerator holds."""


def matrix_flops_per_s(where: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    """Gives the FLOP/s of the fastest of some products of two square matrices.

    They double in size, from 256 rows to 8192 at most, until a third of a second is spent: some processors take a minute for a
    product of a dtype that they do not have.
    """
    rows, fastest, begin = 256, 0.0, clock.now()
    while True:
        left, right = torch.randn((2, rows, rows), device=where).to(dtype)
        fastest = max(fastest, 2 * rows**3 / _least(functools.partial(torch.mm, left, right), clock))
        spent = clock.now() - begin
        # Other work can hold up all of the small products; they say little about the peak.
        if rows == 8192 or spent > (_BUDGET_S if rows >= 1024 else 1.0):
            break
        rows *= 2
    if where.type != "cpu":
        del left, right
        torch.accelerator.empty_cache()
    return fastest


def memory_bytes_per_s(where: torch.device, clock: Clock, array_bytes: int = _ARRAY_BYTES) -> float:
    """Gives the bytes a second, read and written together, of a copy or of a sum in place, whichever is faster.

    A copy counts two arrays, a sum in place three; what a processor reads because it is about to write counts for nothing, as
    in STREAM (McCalpin, 1995). The threads are those that torch has.

    Args:
        where: the device.
        clock: what tells the time.
        array_bytes: of each of the two arrays.

    Raises:
        torch.OutOfMemoryError: the accelerator's memory ran out; on a CPU it is a RuntimeError.
    """
    source, target = torch.ones((2, array_bytes // 4), device=where)
    copied = 2 * array_bytes / _least(functools.partial(target.copy_, source), clock)
    summed = 3 * array_bytes / _least(functools.partial(target.add_, source), clock)
    if where.type != "cpu":
        del source, target
        torch.accelerator.empty_cache()
    return max(copied, summed)


def _least(work: Callable[[], object], clock: Clock) -> float:
    """Gives the least of some times that a piece of work takes, in seconds."""
    return min(sum(clock.time([work])) for _ in range(_TRIES))
