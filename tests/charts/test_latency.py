"""The latency chart: what stands on its axis is what stood in the rows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from vitbench.charts import latency
from vitbench.drawing import pictures
from vitbench.errors import BadInput


def row(model: str, median: Any, **others: Any) -> dict[str, Any]:
    return {"model": model, "batch_size": 8, "latency_median_ms": median, "status": "ok", **others}


def names(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def points(figure: Figure, marker: str) -> list[tuple[float, ...]]:
    """The x values of each line with that marker."""
    return [
        tuple(float(x) for x in np.asarray(line.get_xdata()))
        for line in figure.axes[0].get_lines()
        if line.get_marker() == marker
    ]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def test_rows_stand_from_the_fastest_down_with_their_samples() -> None:
    figure = latency.plot(
        [
            row("slow", 30.0, samples_ms=[[29.0, 30.0], [31.0]], latency_p90_ms=30.9, latency_p95_ms=30.95),
            row("fast", 2.0, samples_ms=[[1.0, 2.0, 3.0]]),
            row("bare", 5.0, latency_low_ms=4.0, latency_high_ms=7.0, latency_p99_ms=9.0),
        ]
    )
    assert names(figure) == ["fast", "bare", "slow"]
    assert points(figure, ".") == [(1.0, 2.0, 3.0), (29.0, 30.0, 31.0)]
    assert points(figure, "o") == [(2.0,), (5.0,), (30.0,)]
    assert points(figure, "X") == [(9.0,)]
    assert points(figure, "^") == [(30.9,)]
    # The whisker ends there already.
    assert points(figure, "d") == []
    assert figure.axes[0].get_xscale() == "log"
    assert "95 % interval of the median" in legend(figure)
    assert "Batch 8. 3 samples a row." in figure.get_supxlabel()


def test_the_box_is_of_the_quartiles_of_all_processes() -> None:
    """1 to 9: quartiles 3 and 7, 5th and 95th percentile 1.4 and 8.6."""
    figure = latency.plot([row("a", 5.0, samples_ms=[[1, 2, 3, 4, 5], [6, 7, 8, 9]])])
    reached = {round(float(x), 6) for line in figure.axes[0].get_lines() for x in np.asarray(line.get_xdata())}
    assert {3.0, 7.0, 1.4, 8.6} <= reached


def test_samples_box_and_interval_lie_apart() -> None:
    figure = latency.plot(
        [row("a", 5.0, samples_ms=[[float(n) for n in range(1, 10)]], latency_low_ms=4.0, latency_high_ms=6.0)]
    )
    lines = [
        (
            line.get_marker(),
            [float(x) for x in np.asarray(line.get_xdata())],
            [float(y) for y in np.asarray(line.get_ydata())],
        )
        for line in figure.axes[0].get_lines()
    ]
    (samples,) = (heights for marker, _, heights in lines if marker == ".")
    (interval,) = (heights for marker, times, heights in lines if marker != "." and times == [4.0, 6.0])
    (box,) = (heights for marker, times, heights in lines if marker != "." and {3.0, 7.0} == set(times))
    # Upwards is to smaller numbers.
    assert max(samples) < min(box) < max(box) < min(interval)


def test_an_interval_below_zero_bounds_nothing() -> None:
    figure = latency.plot([row("a", 5.0, latency_low_ms=-3.0, latency_high_ms=13.0)])
    assert legend(figure) == ["median"]


def test_what_differs_between_rows_of_a_model_stands_in_their_names_and_what_is_left_out_below() -> None:
    figure = latency.plot(
        [row("a", 1.0), row("a", 2.0, batch_size=16), row("a", None, status="timeout"), {"model": "a", "macs": 3}]
    )
    assert names(figure) == ["a, batch 8", "a, batch 16"]
    said = " ".join(figure.get_supxlabel().split())
    assert said == "Batch 8 to 16. Left out: 1 row timed out, 1 row without latency_median_ms."


@pytest.mark.parametrize("count", [1, 200])
def test_nothing_is_clipped_and_the_same_rows_make_the_same_bytes(count: int) -> None:
    rows = [row(f"my_company.research:$make_{{a_very_large_hybrid_{n}", 1.0 + n) for n in range(count)]
    figure = latency.plot(rows)
    content = pictures.rendered(figure, ".svg")
    inside = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert inside.x0 >= -1
    assert inside.x1 <= figure.bbox.width + 1
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))
    assert pictures.rendered(latency.plot(rows), ".svg") == content


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("a", None)], "No row has latency_median_ms, .*: 1 row without latency_median_ms"),
        ([row("a", 0)], "latency_median_ms is 0, not a time above zero"),
        ([row("a", 1.0, latency_p90_ms=-1)], "latency_p90_ms is -1, not a time"),
        ([row("a", 1.0, samples_ms=[1.0])], "samples_ms is .*, not a list of times above zero for each process"),
        ([row("a", 1.0, samples_ms=[[0.0]])], "samples_ms is"),
        ([row("a", 1.0, samples_ms="[[1]]")], "samples_ms is"),
        ([row("a", 1.0)] * 401, "401 rows do not fit on a picture, 400 at most"),
    ],
)
def test_rows_that_cannot_be_drawn_say_why(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        latency.plot(rows)
