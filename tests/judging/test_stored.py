"""Verdicts on planted values and samples. Expected: Welch's test by scipy, and what the docstrings define."""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from vitbench.judging import stored
from vitbench.judging.stored import settled, timed
from vitbench.records import EXACT, Better, Within

CERTAIN = {"regressed", "improved", "unchanged"}
# As it is when nothing is planted.
SPREAD = stored.SESSION_SPREAD
MIRRORED = {"regressed": "improved", "improved": "regressed"}


@pytest.fixture(autouse=True)
def _session_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is expected here was reckoned with this spread, whatever measurements say."""
    monkeypatch.setattr(stored, "SESSION_SPREAD", 0.03)


def processes(*medians: float, runs: int = 21, spread: float = 0.02, seed: int = 0) -> list[list[float]]:
    """Makes samples of processes with these medians."""
    random = numpy.random.default_rng(seed)
    found = []
    for middle in medians:
        logs = random.normal(0, spread, runs)
        found.append([float(time) for time in middle * numpy.exp(logs - numpy.median(logs))])
    return found


STEADY = (100.0, 100.3, 99.8, 100.1, 99.9)


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (1.00, "unchanged"),
        (1.01, "unchanged"),
        (1.05, "inconclusive"),
        (1.15, "suspect"),
        (1.25, "regressed"),
        (1 / 1.25, "improved"),
        (1 / 1.15, "suspect"),
    ],
)
def test_a_planted_shift(after: float, verdict: str) -> None:
    """The spread of sessions alone makes the interval reach 8 %, and the threshold is 10 %."""
    found = timed(
        processes(*STEADY), processes(*(after * one for one in STEADY), seed=1), better="lower", threshold=0.10
    )
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(after, rel=1e-9)
    assert found.low is not None
    assert found.high is not None
    assert found.low < after < found.high


def test_a_rate_is_the_inverse_of_a_time() -> None:
    found = timed(processes(*STEADY), processes(*(2 * one for one in STEADY)), better="higher", threshold=0.10)
    assert found.verdict == "regressed"
    assert found.ratio == pytest.approx(0.5)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.5 < found.high < 1 / 1.1


def test_without_the_spread_of_sessions_it_is_welchs_test_on_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SESSION_SPREAD", 0.0)
    before, after = (10.0, 10.4, 9.9, 10.1), (10.9, 11.3, 10.6)
    found = timed([[one] for one in before], [[one] for one in after], better="lower", threshold=0.03)
    expected = stats.ttest_ind(numpy.log(after), numpy.log(before), equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))


def test_two_sessions_alone_are_told_as_far_apart_as_they_may_be() -> None:
    """Processes that do not differ leave the spread of two sessions: 1.96 x sqrt(2) x 0.03, to either side."""
    found = timed([[5.0]] * 30, [[5.0]] * 30, better="lower", threshold=0.10)
    assert found.high == pytest.approx(math.exp(1.959964 * math.sqrt(2) * stored.SESSION_SPREAD), rel=1e-4)
    assert found.verdict == "unchanged"


def test_the_readme_says_what_two_sessions_may_differ_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """At best, with processes that do not differ: where the interval ends, and where it lies beyond 10 % as a whole."""
    monkeypatch.setattr(stored, "SESSION_SPREAD", SPREAD)

    def verdict(shift: float, threshold: float) -> str:
        sides = [[1.0]] * 50, [[1.0 + shift]] * 50
        return timed(*sides, better="lower", threshold=threshold).verdict

    assert [verdict(shift, stored.STORED_THRESHOLD) for shift in (0.66, 0.67)] == ["suspect", "regressed"]
    assert [verdict(0.0, threshold) for threshold in (0.51, 0.52)] == ["inconclusive", "unchanged"]
    readme = " ".join((Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8").split())
    assert f"({SPREAD:.0%} each, one standard deviation)".replace("%", " %") in readme
    assert "changes below about 67 % are never certain at the threshold of 10 %" in readme
    assert "nor is a time ever `unchanged` at a threshold below 52 %" in readme


def test_samples_of_one_process_are_never_independent() -> None:
    """However many samples: the interval is that of the medians."""
    few = timed(processes(100, 104, runs=5), processes(103, 108, runs=5), better="lower", threshold=0.10)
    many = timed(processes(100, 104, runs=2001), processes(103, 108, runs=2001), better="lower", threshold=0.10)
    assert (few.low, few.high) == pytest.approx((many.low, many.high))


@pytest.mark.parametrize("runs", [1, 500])
def test_one_process_a_side_tells_nothing(runs: int) -> None:
    found = timed(processes(100, runs=runs), processes(300, 301, runs=runs), better="lower", threshold=0.10)
    assert (found.verdict, found.low, found.high, found.p_value) == ("inconclusive", None, None, None)
    assert found.ratio == pytest.approx(math.sqrt(3 * 3.01))
    assert "--repeats 5" in found.note


def test_drift_in_a_process_counts_as_its_median() -> None:
    drifting = [[100.0 * (1 + 0.002 * run) for run in range(101)] for _ in range(5)]
    found = timed(drifting, processes(*[110.0] * 5), better="lower", threshold=0.10)
    assert found.ratio == pytest.approx(1.0)
    assert found.verdict == "unchanged"


def test_outliers_do_not_move_a_median() -> None:
    spiky = [[*process, 5000.0, 9000.0] for process in processes(*STEADY)]
    assert timed(processes(*STEADY), spiky, better="lower", threshold=0.10).verdict == "unchanged"


def test_processes_that_fall_into_two_kinds_are_inconclusive() -> None:
    """Bimodal: some processes are 30 % slower than others, on both sides, by chance more of them on one."""
    found = timed(processes(100, 130, 100, 100), processes(130, 100, 130, 130), better="lower", threshold=0.10)
    assert found.verdict == "inconclusive"


def test_sides_may_have_unequal_numbers_of_processes_and_samples() -> None:
    before = processes(100, 101, runs=3) + processes(99, runs=50)
    after = processes(200, 202, runs=7) + processes(198, 199, 201, runs=1)
    assert timed(before, after, better="lower", threshold=0.10).verdict == "regressed"


def test_what_more_processes_would_settle_is_told_and_does() -> None:
    before, after = (100.0, 104.0, 97.0), (101.0, 96.0, 105.0)
    found = timed([[one] for one in before], [[one] for one in after], better="lower", threshold=0.10)
    assert found.verdict == "inconclusive"
    assert found.more is not None
    assert f"--repeats {3 + found.more}" in found.note
    # As many more that differ as those did: the same three again and again keep mean and spread.
    times = -(-(3 + found.more) // 3) + 1
    settled_by = timed(
        [[one] for one in before * times], [[one] for one in after * times], better="lower", threshold=0.10
    )
    assert settled_by.verdict == "unchanged"


def test_what_no_number_of_processes_settles_is_for_ab() -> None:
    found = timed(processes(*STEADY), processes(*(1.06 * one for one in STEADY)), better="lower", threshold=0.10)
    assert (found.verdict, found.more) == ("inconclusive", None)
    assert "9 % apart" in found.note
    assert "vitbench ab" in found.note


medians = st.lists(st.floats(1.0, 100.0), min_size=1, max_size=6)
better = st.sampled_from(["lower", "higher"])


@given(medians, medians, better, st.floats(0.0, 0.5))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_swapping_the_sides_flips_the_verdict(
    before: list[float], after: list[float], better: Better, threshold: float
) -> None:
    one = timed([[time] for time in before], [[time] for time in after], better=better, threshold=threshold)
    other = timed([[time] for time in after], [[time] for time in before], better=better, threshold=threshold)
    assert other.verdict == MIRRORED.get(one.verdict, one.verdict)
    assert other.more == one.more
    assert one.ratio is not None
    assert other.ratio == pytest.approx(1 / one.ratio)


def _near_an_edge(found: stored.Judgement, threshold: float) -> bool:
    if found.low is None or found.high is None or found.ratio is None:
        return False
    edges = (1.0, 1 + threshold, 1 / (1 + threshold))
    return any(abs(math.log(value / edge)) < 1e-9 for value in (found.low, found.high, found.ratio) for edge in edges)


@given(medians, medians, better, st.floats(1e-3, 1e3))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scaling_both_sides_changes_nothing(
    before: list[float], after: list[float], better: Better, scale: float
) -> None:
    one = timed([[time] for time in before], [[time] for time in after], better=better, threshold=0.1)
    assume(not _near_an_edge(one, 0.1))
    scaled = [[[scale * time] for time in side] for side in (before, after)]
    other = timed(scaled[0], scaled[1], better=better, threshold=0.1)
    assert other.verdict == one.verdict
    assert other.ratio == pytest.approx(one.ratio)


@given(medians, medians, better, st.floats(1.0, 20.0))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_never_makes_certain_what_was_not(
    before: list[float], after: list[float], better: Better, wider: float
) -> None:
    """The processes' medians move away from their centre, which stays: the same shift under more noise."""

    def widened(side: list[float]) -> list[list[float]]:
        logs = numpy.log(side)
        return [[float(time)] for time in numpy.exp(logs.mean() + wider * (logs - logs.mean()))]

    one = timed([[time] for time in before], [[time] for time in after], better=better, threshold=0.1)
    assume(not _near_an_edge(one, 0.1))
    other = timed(widened(before), widened(after), better=better, threshold=0.1)
    assert one.verdict in CERTAIN or other.verdict not in CERTAIN


@pytest.mark.parametrize(
    ("before", "after", "better", "within", "verdict"),
    [
        (100, 100, "lower", EXACT, "unchanged"),
        (100, 101, "lower", EXACT, "regressed"),
        (100, 99, "lower", EXACT, "improved"),
        (100, 101, "higher", EXACT, "improved"),
        (100, 99, "higher", EXACT, "regressed"),
        (100, 99, "equal", EXACT, "regressed"),
        (0, 5, "equal", EXACT, "regressed"),
        (2**60, 2**60 + 1, "lower", EXACT, "regressed"),
        (100, 103, "lower", Within(relative=0.03), "unchanged"),
        (100, 104, "lower", Within(relative=0.03), "regressed"),
        (100, 103.05, "lower", Within(relative=0.03), "regressed"),
        (103.05, 100, "lower", Within(relative=0.03), "improved"),
        ((3.0, 4.05), (3.0, 4.0), "equal", Within(relative=0.0099), "regressed"),
        (100, 104, "lower", Within(relative=0.03, absolute=5), "unchanged"),
        (-1.0, 1.0, "equal", Within(relative=0.5), "regressed"),
        ("crop 0.9", "crop 0.9", "equal", EXACT, "unchanged"),
        ("crop 0.9", "crop 1.0", "equal", EXACT, "regressed"),
        ((3.0, 4.0), (3.0, 4.0), "equal", EXACT, "unchanged"),
        ((3.0, 4.0), (3.0, 4.05), "equal", Within(relative=0.0101), "unchanged"),
        ((3.0, 4.0), (3.0, 4.05), "equal", Within(relative=0.0099), "regressed"),
        ((0.0, 0.0), (0.0, 1e-7), "equal", Within(absolute=1e-6), "unchanged"),
        ((1.0,), (1.0, 1.0), "equal", Within(relative=1), "regressed"),
        ((math.nan, 1.0), (math.nan, 1.0), "equal", EXACT, "unchanged"),
        ((math.nan, 1.0), (2.0, 1.0), "equal", Within(relative=10), "regressed"),
        ((math.inf, 1.0), (2.0, 1.0), "equal", Within(relative=10), "regressed"),
        ((1e300, 1e300), (1e300, 2e300), "equal", EXACT, "regressed"),
        ({"mm": 2}, {"mm": 2, "gelu": 0}, "equal", EXACT, "unchanged"),
    ],
)
def test_values_without_noise(before: object, after: object, better: Better, within: Within, verdict: str) -> None:
    assert settled(before, after, better=better, within=within).verdict == verdict


def test_the_note_says_what_differs() -> None:
    found = settled({"mm": 2, "cat": 1, "add": 1}, {"mm": 3, "copy_": 4, "add": 1}, better="equal", within=EXACT)
    assert (found.verdict, found.note) == ("regressed", "mm 2 to 3, cat 1 to 0, copy_ 0 to 4")
    # |(0, 0.5)| is 10 % of |(3, 4)| = 5
    assert (
        settled((3.0, 4.0), (3.0, 4.5), better="equal", within=EXACT).note
        == "1 of 2 values differ by 10 % of their size"
    )
    assert settled(5, 4, better="equal", within=EXACT).note == "down; any departure counts"


def test_a_file_with_fewer_digits_is_allowed_its_rounding() -> None:
    full, short = (0.123456789, 0.987654321), (0.123457, 0.987654)
    assert settled(full, short, better="equal", within=EXACT, rounding=1e-5).verdict == "unchanged"
    assert settled(full, short, better="equal", within=EXACT).verdict == "regressed"


def test_a_ratio_is_a_number_or_none() -> None:
    assert stored.ratio(2, 3) == 1.5
    assert [stored.ratio(*pair) for pair in ((0, 1), (1, 0), (-1, 1), (1e-308, 1e308))] == [None] * 4


@pytest.mark.parametrize(("count", "noise"), [(2, 0.005), (2, 0.03), (5, 0.03), (5, 0.1)])
def test_the_interval_covers_no_change_as_often_as_it_says(count: int, noise: float) -> None:
    """Simulated sessions of equal code: 95 % of 1000 intervals hold 1, give or take 3 %, and few verdicts are wrong."""
    random = numpy.random.default_rng(0)

    def session() -> list[list[float]]:
        logs = random.normal(0, stored.SESSION_SPREAD) + random.normal(0, noise, count)
        return [[float(time)] for time in numpy.exp(logs)]

    found = [timed(session(), session(), better="lower", threshold=0.10) for _ in range(1000)]
    covered = sum(one.low is not None and one.high is not None and one.low <= 1 <= one.high for one in found)
    assert 920 <= covered <= 980
    assert sum(one.verdict in ("regressed", "improved") for one in found) <= 5
