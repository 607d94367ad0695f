"""What a device can do at most: by a clock of ours, worked out by hand, and by others' tools."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch.utils.benchmark import Timer

from vitbench.running import peaks, timing

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


def agree(ours: Callable[[], float], theirs: Callable[[], float]) -> bool:
    """Measures both in turns, until the best of either are within a factor of two: tests have other work beside them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = other = 0.0
        for _ in range(20):
            one, other = max(one, ours()), max(other, theirs())
            if 1 / 2 < one / other < 2:
                return True
        return False
    finally:
        torch.set_num_threads(threads)


def test_the_bandwidth_is_about_that_of_numpys_sum_in_place() -> None:
    size = 64 * 2**20
    clock = timing.clock_of(CPU)
    target, source = np.ones((2, size // 4), np.float32)

    def theirs() -> float:
        return 3 * size / min(sum(clock.time([lambda: np.add(target, source, out=target)])) for _ in range(4))

    assert agree(lambda: peaks.memory_bytes_per_s(CPU, clock, size), theirs)


def test_the_peak_is_about_that_of_torchs_own_benchmark() -> None:
    left, right = torch.randn(2, 1024, 1024)
    timer = Timer("torch.mm(left, right)", globals={"torch": torch, "left": left, "right": right}, num_threads=1)

    def theirs() -> float:
        return 2 * 1024**3 / min(timer.timeit(1).mean for _ in range(4))

    assert agree(lambda: peaks.matrix_flops_per_s(CPU, torch.float32, timing.clock_of(CPU)), theirs)
