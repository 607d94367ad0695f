"""Medians, percentiles, intervals. Expected values: worked out by hand, scipy's own tests, tables of the distributions."""

from __future__ import annotations

import numpy
import pytest
from scipy import stats

from vitbench.running import statistics


def test_the_interval_of_a_median_runs_between_two_samples() -> None:
    """For ten samples the second and the ninth: P(Bin(10, 1/2) < 2) = 11/1024 = 1.1 %, with 2 it would be 5.5 %."""
    assert statistics.median_interval([30, 10, 20, 50, 40, 70, 60, 100, 90, 80]) == (20, 90)


@pytest.mark.parametrize("number", [6, 7, 9, 17, 30, 101, 1000])
def test_the_interval_of_a_median_is_the_one_that_scipys_test_of_a_quantile_gives(number: int) -> None:
    samples = [float(sample) for sample in numpy.random.default_rng(number).permutation(number)]
    expected = stats.quantile_test(samples, q=0, p=0.5).confidence_interval(0.95)
    assert statistics.median_interval(samples) == (expected.low, expected.high)


@pytest.mark.parametrize("number", range(6))
def test_fewer_than_six_samples_have_no_interval(number: int) -> None:
    """With five, even the whole range misses the median in 2 / 32 = 6 % of all cases."""
    assert statistics.median_interval(list(range(number))) is None


def test_the_interval_of_a_mean_is_students() -> None:
    """Three values with a standard deviation of 1: 4.303 (the table's t for 2 degrees of freedom) over the root of 3."""
    low, high = statistics.mean_interval([9.0, 10.0, 11.0]) or (0, 0)
    assert low == pytest.approx(10 - 2.484, abs=1e-3)
    assert high == pytest.approx(10 + 2.484, abs=1e-3)
    assert statistics.mean_interval([1.0]) is None


def test_a_high_percentile_needs_samples_beyond_it() -> None:
    assert statistics.percentile(range(99), 0.95) is None
    assert statistics.percentile(range(101), 0.95) == pytest.approx(95)
    assert statistics.percentile(range(499), 0.99) is None
    assert statistics.percentile(range(501), 0.99) == pytest.approx(495)
    assert statistics.percentile([1, 2, 3], 0.9) == pytest.approx(2.8)


def test_spread_is_the_quartiles_distance_over_the_median() -> None:
    assert statistics.spread([1, 2, 3, 4, 5]) == pytest.approx(2 / 3)
    assert statistics.median([4, 1, 3, 2]) == 2.5
