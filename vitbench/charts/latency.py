"""The times of each row's runs: samples, quartiles, median with its interval, and percentiles, the fastest on top.

A JSON result has the samples; CSV has the median, its interval and the percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitbench import results
from vitbench.drawing.axes import canvas, cut, legend, names_down, scale_of, set_scale
from vitbench.drawing.pictures import COLORS, GREY
from vitbench.drawing.rows import counted, labels, shared, with_result
from vitbench.errors import BadInput

_MOST_ROWS = 400
_WIDTH_IN = 5.4
_ROW_IN = 0.4
# Down from a row's middle, in rows: the samples above, the box below, the interval and the percentiles below that.
_SAMPLES, _BOX, _BELOW = (-0.42, -0.08), 0.11, 0.38
_PERCENTILES = {"latency_p90_ms": ("^", "p90"), "latency_p95_ms": ("d", "p95"), "latency_p99_ms": ("X", "p99")}
_WHISKERS = (5, 95)


def plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws a line of times for each row that has a median latency.

    Args:
        rows: flat, as `results.read` gives them.

    Raises:
        BadInput: no row has a latency, or there are too many, or a cell cannot be read.
    """
    good, left_out = with_result(rows)
    timed = [row for row in good if results.number(row, "latency_median_ms") is not None]
    if len(good) > len(timed):
        left_out["without latency_median_ms"] += len(good) - len(timed)
    if not timed:
        raise BadInput(f"No row has latency_median_ms, which `vitbench throughput` writes: {counted(left_out)}.")
    if len(timed) > _MOST_ROWS:
        raise BadInput(f"{len(timed)} rows do not fit on a picture, {_MOST_ROWS} at most: give fewer files or models.")
    named = sorted(zip(timed, labels(timed), strict=True), key=lambda one: (_time(one[0], "latency_median_ms"), one[1]))
    figure = canvas(_WIDTH_IN + 12, len(named) * _ROW_IN + 8)
    ax = figure.subplots()
    drawn: dict[str, Line2D] = {}
    values = [value for place, (row, _) in enumerate(named) for value in _draw(ax, place, row, drawn)]
    wide = names_down(figure, ax, [name for _, name in named])
    set_scale(ax, "x", scale_of("latency_median_ms", values), values)
    ax.set_xlabel("Latency of a batch (ms)")
    ax.grid(visible=True, axis="x", color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    sentences = [f"{conditions[:1].upper()}{conditions[1:]}." for conditions in [shared(timed)] if conditions]
    if numbers := sorted(len(found) for row in timed if len(found := _samples(row))):
        between = f"{numbers[0]} to {numbers[-1]}" if numbers[0] < numbers[-1] else f"{numbers[0]}"
        sentences.append(f"{between} samples a row.")
    if left_out:
        sentences.append(f"Left out: {counted(left_out)}.")
    beside = legend(figure, list(drawn.items()))
    cut(figure, _WIDTH_IN + wide, len(named) * _ROW_IN + 0.9, " ".join(sentences), beside)
    return figure


def _time(row: Mapping[str, Any], column: str) -> float:
    value = results.number(row, column)
    if value is None or value <= 0:
        raise results.wrong(row, column, "a time above zero")
    return value


def _draw(ax: Axes, place: int, row: Mapping[str, Any], drawn: dict[str, Line2D]) -> list[float]:
    """Draws one row and gives the times that it reaches."""
    blue, orange = COLORS[0], COLORS[1]
    median = _time(row, "latency_median_ms")
    reached = [median]
    samples = _samples(row)
    if len(samples):
        # Spread over a strip, in the order they were taken, so that a drift shows.
        top, bottom = _SAMPLES
        heights = place + bottom - (bottom - top) * (np.arange(len(samples)) + 0.5) / len(samples)
        ax.plot(samples, heights, ".", color=blue, markersize=4.5, alpha=0.6, markeredgewidth=0, rasterized=True)
        low, first, third, high = np.percentile(samples, [_WHISKERS[0], 25, 75, _WHISKERS[1]])
        ax.bxp(
            [{"med": median, "q1": first, "q3": third, "whislo": low, "whishi": high, "fliers": []}],
            positions=[place + _BOX],
            widths=0.26,
            orientation="horizontal",
            showfliers=False,
            manage_ticks=False,
            boxprops={"linewidth": 0.9},
            medianprops={"color": orange, "linewidth": 1.6},
            whiskerprops={"linewidth": 0.9},
            capprops={"linewidth": 0.9},
            zorder=3,
        )
        drawn["samples, upwards in time"] = Line2D([], [], linestyle="none", marker=".", color=blue, markersize=4.5)
        drawn["quartiles; whiskers 5 % and 95 %"] = Line2D(
            [], [], linestyle="none", marker="s", color="black", markerfacecolor="none"
        )
        reached += [float(samples.min()), float(samples.max())]
    # Without samples there is nothing that they could hide.
    below = _BELOW if len(samples) else 0.0
    low_ms, high_ms = results.number(row, "latency_low_ms"), results.number(row, "latency_high_ms")
    # Student's interval over two processes that disagree may reach below zero: then it bounds nothing.
    if low_ms is not None and high_ms is not None and low_ms > 0:
        ax.plot([low_ms, high_ms], [place + below] * 2, color=orange, linewidth=2.5, solid_capstyle="butt", zorder=4)
        drawn["95 % interval of the median"] = Line2D([], [], color=orange, linewidth=2.5)
        reached += [low_ms, high_ms]
    middle = place + (_BOX if len(samples) else 0)
    wide = 3.5 if len(samples) else 4.5
    ax.plot(
        [median], [middle], "o", color=orange, markersize=wide, markeredgecolor="white", markeredgewidth=0.5, zorder=6
    )
    drawn["median"] = Line2D([], [], linestyle="none", marker="o", color=orange, markersize=4.5)
    for column, (marker, name) in _PERCENTILES.items():
        # Where there are samples, the whisker ends at the 95th.
        if results.number(row, column) is not None and not (len(samples) and name == "p95"):
            value = _time(row, column)
            ax.plot([value], [place + below], marker, color=GREY, markersize=5.5, zorder=5)
            drawn[name] = Line2D([], [], linestyle="none", marker=marker, color=GREY, markersize=5.5)
            reached.append(value)
    return reached


def _samples(row: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Gives the samples of all of a row's processes; none where the file has no samples."""
    found = row.get("samples_ms")
    if found is None or found == "":
        return np.empty(0)
    if isinstance(found, list) and all(isinstance(process, list) for process in found):
        samples = [value for process in found for value in process]
        if all(
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
            for value in samples
        ):
            return np.array(samples, dtype=np.float64)
    raise results.wrong(row, "samples_ms", "a list of times above zero for each process")
