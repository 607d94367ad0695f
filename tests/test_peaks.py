"""What a device can do at most: by a clock of ours, worked out by hand, and by others' tools."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.utils.benchmark import Timer

from vitbench import peaks, timing

CPU = torch.device("cpu")


class Ticking:
    """A clock by which everything takes a tenth of a second."""

    name = "ticking"

    def __init__(self) -> None:
        self._now = itertools.count()
        self.timed = 0

    def now(self) -> float:
        return next(self._now) / 10

    def time(self, phases: Sequence[timing.Phase]) -> tuple[float, ...]:
        for phase in phases:
            phase()
        self.timed += 1
        return (0.1,) * len(phases)


def test_the_peak_is_of_the_fastest_product() -> None:
    """By this clock each product takes 0.1 s, and so does each look at it: products of 256, 512, 1024 and 2048 rows fit.

    After the third 0.3 s have passed, which is not yet more. The largest is the fastest: 2 x 2048^3 operations in 0.1 s.
    """
    assert peaks.matrix_flops_per_s(CPU, torch.float32, Ticking()) == pytest.approx(2 * 2048**3 / 0.1)


def test_a_sum_in_place_moves_three_arrays_where_a_copy_moves_two() -> None:
    """By this clock both take 0.1 s, so that the sum is the faster: 3 x 4000 bytes."""
    clock = Ticking()
    assert peaks.memory_bytes_per_s(CPU, clock, 4000) == pytest.approx(3 * 4000 / 0.1)
    assert clock.timed == 2 * 4


def _best(work: functools.partial[object], tries: int = 5) -> float:
    clock = timing.clock_of(CPU)
    return min(sum(clock.time([work])) for _ in range(tries))


def test_the_bandwidth_is_about_that_of_numpys_sum_in_place() -> None:
    """Beside the other tests the machine's speed changes: by less than a factor of three, at best."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = peaks.memory_bytes_per_s(CPU, timing.clock_of(CPU), 64 * 2**20)
    finally:
        torch.set_num_threads(threads)
    target, source = np.ones((2, 16 * 2**20), np.float32)
    theirs = 3 * 64 * 2**20 / _best(functools.partial(np.add, target, source, out=target))
    assert 1 / 3 < ours / theirs < 3


def test_the_peak_is_about_that_of_torchs_own_benchmark() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = peaks.matrix_flops_per_s(CPU, torch.float32, timing.clock_of(CPU))
    finally:
        torch.set_num_threads(threads)
    left, right = torch.randn(2, 1024, 1024)
    timer = Timer("torch.mm(left, right)", globals={"torch": torch, "left": left, "right": right}, num_threads=1)
    theirs = 2 * 1024**3 / min(timer.timeit(2).mean for _ in range(5))
    assert 1 / 3 < ours / theirs < 3
