"""Statistics of paired log ratios."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vitbench.judging import pairs

ratios = st.lists(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=1, max_size=8), min_size=1, max_size=6)


def normal(rounds: int, number: int, *, between: float, within: float, seed: int) -> list[list[float]]:
    random = numpy.random.default_rng(seed)
    centres = random.normal(0, between, (rounds, 1))
    values: list[list[float]] = (centres + random.normal(0, within, (rounds, number))).tolist()
    return values


def test_hodges_lehmann_is_the_median_of_all_means_of_two() -> None:
    """From its definition, and by hand: of 1, 2, 6 the means are 1, 1.5, 2, 3.5, 4, 6."""
    assert pairs.hodges_lehmann([1.0, 2.0, 6.0]) == 2.75
    values = [0.3, -1.2, 5.0, 0.1, 0.7]
    means = [(x + y) / 2 for x, y in itertools.combinations_with_replacement(values, 2)]
    assert pairs.hodges_lehmann(values) == statistics.median(means)


def test_hodges_lehmann_is_where_the_signed_ranks_balance() -> None:
    """It is the shift at which Wilcoxon's signed-rank statistic, here scipy's, is nearest to its mean."""
    values = numpy.random.default_rng(3).normal(0.4, 1, 15)
    centre = float(pairs.hodges_lehmann(values))
    low, high = (stats.wilcoxon(values - centre - step, alternative="greater").statistic for step in (0.01, -0.01))
    assert low < 15 * 16 / 4 < high


def test_a_wild_pair_moves_it_little() -> None:
    calm = [[0.01, 0.012, 0.009, 0.011, 0.01] for _ in range(5)]
    wild = [[*one[:-1], 3.0] for one in calm]
    assert pairs.estimate(wild).centre == pytest.approx(pairs.estimate(calm).centre, abs=0.001)


def test_the_interval_is_no_narrower_than_students() -> None:
    rounds = normal(5, 20, between=0.01, within=0.001, seed=1)
    centres = [float(pairs.hodges_lehmann(one)) for one in rounds]
    low, high = stats.t.interval(pairs.NOMINAL, 4, statistics.mean(centres), stats.sem(centres))
    found = pairs.estimate(rounds)
    assert found.low <= low
    assert found.high >= high
    assert found.p_value == pytest.approx(stats.ttest_1samp(centres, 0).pvalue)


def test_rounds_that_agree_by_luck_are_not_trusted_further_than_their_pairs() -> None:
    """All five rounds have the same pairs, so Student's interval is a point; the pairs still vary."""
    found = pairs.estimate([[-0.1, -0.05, 0.0, 0.05, 0.1]] * 5)
    assert found.half_width > 0.01


def test_one_round_tells_no_interval() -> None:
    found = pairs.estimate([[0.1, 0.11]])
    assert found.half_width == math.inf
    assert found.p_value == 1


@pytest.mark.parametrize(("rounds", "between", "within"), [(5, 0.0, 0.02), (5, 0.02, 0.02), (12, 0.005, 0.02)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(rounds: int, between: float, within: float) -> None:
    """Of 200 at 97 % the share lies within three standard errors, 93 to 100 %."""
    held = [
        found.low <= 0 <= found.high
        for seed in range(200)
        for found in [pairs.estimate(normal(rounds, 10, between=between, within=within, seed=seed), seed=seed)]
    ]
    assert statistics.mean(held) >= 0.93


def test_it_holds_the_truth_as_often_when_measuring_stops_at_a_narrow_one() -> None:
    """Of 200 at 95 % the share lies within three standard errors, 90 to 99.6 %."""
    held = []
    for seed in range(200):
        rounds = normal(20, 4, between=0.008, within=0.004, seed=seed)
        found = (pairs.estimate(rounds[:number], seed=seed) for number in range(5, 21))
        last = next((one for one in found if one.half_width <= 0.008), None)
        if last is not None:
            held.append(last.low <= 0 <= last.high)
    assert len(held) > 190
    assert 0.9 <= statistics.mean(held) <= 0.996


@given(ratios, st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_swapping_the_sides_turns_all_round_to_the_last_bit(rounds: list[list[float]], seed: int) -> None:
    found = pairs.estimate(rounds, seed=seed)
    turned = pairs.estimate([[-value for value in one] for one in rounds], seed=seed)
    assert (turned.centre, turned.low, turned.high) == (-found.centre, -found.high, -found.low)
    assert turned.p_value == found.p_value


@given(ratios, st.floats(1, 20))
@settings(max_examples=50, deadline=None)
def test_more_noise_widens_the_interval_and_leaves_the_centre(rounds: list[list[float]], factor: float) -> None:
    found = pairs.estimate(rounds)
    noisy = [[found.centre + factor * (value - found.centre) for value in one] for one in rounds]
    wider = pairs.estimate(noisy)
    assert wider.centre == pytest.approx(found.centre, abs=1e-9)
    assert wider.low <= found.low + 1e-9
    assert wider.high >= found.high - 1e-9


def test_what_the_rounds_cannot_tell_widens_the_interval() -> None:
    """Independent errors add by their squares; 2.17 is the normal quantile of 98.5 %."""
    rounds = normal(8, 20, between=0.01, within=0.001, seed=2)
    known, more = pairs.estimate(rounds), pairs.estimate(rounds, spread=0.004)
    assert more.centre == known.centre
    assert more.floor == pytest.approx(2.17 * 0.004, rel=1e-3)
    for near, far in ((known.low, more.low), (known.high, more.high)):
        assert abs(far - known.centre) == pytest.approx(math.hypot(near - known.centre, more.floor))
    assert more.p_value > known.p_value
    assert pairs.estimate([[-value for value in one] for one in rounds], spread=0.004).high == -more.low


def test_no_number_of_rounds_takes_the_floor_away() -> None:
    """Of half a width of 5 % rounds tell 4 %, beside 3 %; at 4 % from the limit they may tell 2.65 %: 2.29 times the rounds."""
    found = pairs.Estimate(centre=0.0, low=-0.05, high=0.05, p_value=0.9, rounds=10, floor=0.03)
    assert pairs.more_rounds(found, 0.04) == 13
    assert pairs.more_rounds(found, 0.03) is None


def test_more_rounds_follow_the_root() -> None:
    """Half a width of 4 % at 2 % from the limit: four times the rounds, so 15 more than 5."""
    found = pairs.Estimate(centre=0.0, low=-0.04, high=0.04, p_value=0.9, rounds=5)
    assert pairs.more_rounds(found, 0.02) == 15
    assert pairs.more_rounds(found, 0.0) is None
    assert pairs.more_rounds(pairs.estimate([[0.1]]), 0.03) is None
