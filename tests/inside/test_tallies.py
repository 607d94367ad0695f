"""Numbers a row become a mean, a spread and an error over inputs."""

from __future__ import annotations

import math

import pytest
import torch

from vitbench.inside.geometry import raster
from vitbench.inside.tallies import Tally


def _pair(sums: list[list[float]], counts: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(sums, dtype=torch.float64), torch.tensor(counts, dtype=torch.float64)


def test_calls_of_a_pass_add_up_to_a_mean_an_input_and_inputs_weigh_alike() -> None:
    """Two calls with 1 and 3 of the queries; then a pass with one input: (1 + 9) / 4, (0 + 6) / 4 and 12 / 4."""
    tally = Tally(heads=1)
    tally.add("px", _pair([[1.0], [0.0]], [[1.0], [1.0]]))
    tally.add("px", _pair([[9.0], [6.0]], [[3.0], [3.0]]))
    tally.passed()
    tally.add("px", _pair([[12.0]], [[4.0]]))
    tally.passed()
    inputs = [2.5, 1.5, 3.0]
    mean = sum(inputs) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in inputs) / 2)
    assert tally.mean("px", 0) == pytest.approx(mean)
    assert tally.std("px", 0) == pytest.approx(deviation)
    assert tally.sem("px", 0) == pytest.approx(deviation / math.sqrt(3))


def test_an_input_without_a_number_is_left_out() -> None:
    tally = Tally(heads=2)
    tally.add("px", _pair([[4.0, 0.0], [6.0, 0.0]], [[2.0, 0.0], [2.0, 0.0]]))
    tally.passed()
    assert tally.mean("px", 0) == 2.5
    assert tally.sem("px", 0) == pytest.approx(0.5)
    assert tally.mean("px", 1) is tally.std("px", 1) is tally.sem("px", 1) is None


def test_what_was_not_seen_is_nothing_and_one_input_has_no_spread() -> None:
    tally = Tally(heads=1)
    assert tally.mean("px", 0) is None
    tally.add("px", _pair([[4.0]], [[2.0]]))
    assert tally.mean("px", 0) is None  # the pass is not over
    tally.passed()
    assert tally.mean("px", 0) == 2.0
    assert tally.std("px", 0) is tally.sem("px", 0) is None


def test_a_number_of_the_geometry_is_weighted_by_its_queries() -> None:
    tally = Tally(heads=1, geometries=[raster((2, 2), (8, 8)), raster((1, 2), (8, 8))])
    assert tally.over_queries(lambda one: float(one.grid[1])) == pytest.approx((2 * 4 + 1 * 2) / 6)
    assert tally.over_queries(lambda one: None if one.grid[1] == 1 else 1.0) is None
