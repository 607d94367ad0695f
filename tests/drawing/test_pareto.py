"""The Pareto front, held against its definition."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitbench.drawing import pareto


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("macs", "lower"),
        ("params", "lower"),
        ("throughput_per_s", "higher"),
        ("max_batch", "higher"),
        ("top1", "higher"),
        ("latency_median_ms", "lower"),
        ("compile_s", "lower"),
        ("measured_peak_bytes", "lower"),
        ("batch_size", None),
        ("macs_disagreement", None),
        ("no_such_column", None),
    ],
)
def test_a_column_says_which_way_it_is_better(column: str, expected: str | None) -> None:
    assert pareto.direction(column) == expected


def test_the_front_of_five_by_hand() -> None:
    points = [(1.0, 70.0), (2.0, 69.0), (2.0, 80.0), (3.0, 80.0), (9.0, 81.0)]
    assert pareto.front(points, "lower", "higher") == [0, 2, 4]
    assert pareto.front(points, "higher", "higher") == [4]
    assert pareto.front(points, "lower", "lower") == [0, 1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    costs = [(float(x), float(y)) for x, y in points]
    unbeaten = {
        place
        for place, (x, y) in enumerate(costs)
        if not any((one <= x and other >= y) and (one, other) != (x, y) for one, other in costs)
    }
    found = pareto.front(costs, "lower", "higher")
    assert set(found) == unbeaten
    assert [costs[place][0] for place in found] == sorted(costs[place][0] for place in found)
