"""Scales, ticks and what stands outside the axes."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitbench.drawing import axes
from vitbench.errors import BadInput


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (3.0, 3.0, [1, 2, 5]),
        (1.0, 1.0, [0.5, 1, 2]),
        (64.0, 99.0, [50, 100, 200]),
        (0.03, 8.0, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]),
    ],
)
def test_ticks_are_round_and_leave_room(low: float, high: float, expected: list[float]) -> None:
    assert axes.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("column", "values", "label", "log"),
    [
        ("macs", [1e9, 17.6e9], "Multiply-accumulates (G)", False),
        ("macs", [1e9, 99e9], "Multiply-accumulates (G)", True),
        ("params", [5e6, 1e9], "Parameters", True),
        ("latency_p90_ms", [0.5, 80.0], "Latency p90 (ms)", True),
        ("predicted_peak_bytes", [2.0**20, 3 * 2.0**30], "Predicted peak (GiB)", True),
        ("top1", [70.0, 88.0], "ImageNet-1k top-1 (%)", False),
        ("macs_disagreement", [-5.0, 500.0], "Macs disagreement", False),
        ("other_cores", [0.0, 500.0], "Other cores", False),
        ("achieved_flops_per_s", [1e9, 2e9], "Achieved FLOP/s (G)", False),
        ("compile_s", [3.0], "Compile (s)", False),
    ],
)
def test_an_axis_has_the_unit_of_its_column_and_is_logarithmic_where_the_range_asks_for_it(
    column: str, values: list[float], label: str, log: bool
) -> None:
    scale = axes.scale_of(column, values)
    assert (scale.label, scale.log) == (label, log)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("macs", [1e9, 100e9], ["1", "2", "5", "10", "20", "50", "100"]),
        ("macs", [1e6, 2e9], ["1 M", "10 M", "100 M", "1 G"]),
        ("params", [5e6, 6e8], ["5 M", "10 M", "20 M", "50 M", "100 M", "200 M", "500 M"]),
        ("predicted_peak_bytes", [2.0**30, 2.0**31], ["1", "1.2", "1.4", "1.6", "1.8", "2"]),
        ("latency_median_ms", [100.0, 5000.0], ["100", "200", "500", "1,000", "2,000", "5,000"]),
        ("top1", [80.0], ["72.5", "75", "77.5", "80", "82.5", "85", "87.5"]),
        ("other_cores", [0.0], ["-1", "-0.5", "0", "0.5", "1"]),
    ],
)
def test_ticks_are_numbers_of_the_unit_within_the_limits(column: str, values: list[float], expected: list[str]) -> None:
    figure = Figure()
    ax = figure.subplots()
    axes.set_scale(ax, "x", axes.scale_of(column, values), values)
    figure.draw_without_rendering()
    assert [label.get_text() for label in ax.get_xticklabels()] == expected
    low, high = ax.get_xlim()
    assert low < min(values) <= max(values) < high


@pytest.mark.parametrize("value", [1e300, -1e300, 1e-300])
def test_a_number_that_no_axis_shows_is_refused(value: float) -> None:
    with pytest.raises(BadInput, match="latency_p90_ms holds .*, which no axis shows"):
        axes.scale_of("latency_p90_ms", [1.0, value])


def test_a_table_says_what_the_axis_says() -> None:
    assert axes.scale_of("macs", [1e9, 2e9]).exact(1.23456e9) == "1.235"
    assert axes.scale_of("macs", [1e6, 2e9]).exact(1.23456e9) == "1.235 G"


def test_sixty_four_names_look_different() -> None:
    found = axes.styles([str(number) for number in range(64)])
    assert len(set(found.values())) == 64


def test_legend_and_names_are_set_as_they_are_and_headings_stand_out() -> None:
    figure = axes.canvas(12, 8)
    ax = figure.subplots()
    wide = axes.names_down(figure, ax, [r"$\frac{", "b" * 60])
    made = axes.legend(figure, [("_kind", None), (r"$\bad{", Line2D([], []))])
    axes.cut(figure, 4 + wide, 3, "A sentence. " * 30, made)
    figure.draw_without_rendering()
    assert [label.get_text() for label in ax.get_yticklabels()] == [r"$\frac{", "b" * 44 + "\n" + "b" * 16]
    assert [text.get_text() for text in made.get_texts()] == ["_kind", r"$\bad{"]
    assert [text.get_fontweight() for text in made.get_texts()] == ["bold", "normal"]
    inside = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert inside.x0 >= -1
    assert inside.y0 >= -1
    assert inside.x1 <= figure.bbox.width + 1
    assert inside.y1 <= figure.bbox.height + 1
