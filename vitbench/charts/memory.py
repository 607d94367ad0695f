"""What a pass holds, a bar a row: the predicted parts on top of each other, and the peaks, predicted and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitbench import results
from vitbench.drawing.axes import canvas, cut, legend, names_down, scale_of, set_scale
from vitbench.drawing.pictures import COLORS
from vitbench.drawing.rows import counted, labels, shared, with_result
from vitbench.errors import BadInput

_MOST_ROWS = 400
_WIDTH_IN = 5.4
_ROW_IN = 0.34
# From the middle of a bar to the middles of the marks, in rows.
_BESIDE = 0.33
_PARTS = ("weights", "gradients", "optimizer", "activations", "workspace")
_PEAKS = {"predicted_peak_bytes": ("v", "peak, predicted"), "measured_peak_bytes": ("^", "peak, measured")}


def plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws a bar for each row with a predicted or a measured peak, the smallest on top.

    Args:
        rows: flat, as `results.read` gives them.

    Raises:
        BadInput: no row has a peak, or there are too many, or a cell cannot be read.
    """
    good, left_out = with_result(rows)
    weighed = [row for row in good if any(results.number(row, column) is not None for column in _PEAKS)]
    if len(good) > len(weighed):
        left_out["without a peak of memory"] += len(good) - len(weighed)
    if not weighed:
        raise BadInput(
            "No row has predicted_peak_bytes or measured_peak_bytes, which `vitbench memory` writes: "
            f"{counted(left_out)}."
        )
    if len(weighed) > _MOST_ROWS:
        raise BadInput(
            f"{len(weighed)} rows do not fit on a picture, {_MOST_ROWS} at most: give fewer files or models."
        )
    named = sorted(zip(weighed, labels(weighed), strict=True), key=lambda one: (_peak(one[0]), one[1]))
    figure = canvas(_WIDTH_IN + 12, len(named) * _ROW_IN + 8)
    ax = figure.subplots()
    drawn: dict[str, Line2D] = {}
    values = [0.0]
    for part, color in zip(_PARTS, COLORS, strict=False):
        column = f"predicted_{part}_bytes"
        widths = [_bytes(row, column) or 0.0 for row, _ in named]
        before = [
            sum(_bytes(row, f"predicted_{one}_bytes") or 0.0 for one in _PARTS[: _PARTS.index(part)])
            for row, _ in named
        ]
        if any(widths):
            ax.barh(range(len(named)), widths, left=before, height=0.44, color=color, edgecolor="white", linewidth=0.4)
            drawn[f"{part}, predicted"] = Line2D([], [], linestyle="none", marker="s", color=color, markersize=8)
        values += [start + width for start, width in zip(before, widths, strict=True)]
    for column, (marker, name) in _PEAKS.items():
        at = [(_bytes(row, column), place) for place, (row, _) in enumerate(named)]
        there = [(value, place) for value, place in at if value is not None]
        if there:
            # Above and below the bar, so that it is seen however short it is.
            down, fill = (-_BESIDE, "white") if marker == "v" else (_BESIDE, "black")
            look: dict[str, Any] = {
                "color": "black",
                "markersize": 4.5,
                "markerfacecolor": fill,
                "markeredgewidth": 0.8,
            }
            ax.plot([value for value, _ in there], [place + down for _, place in there], marker, zorder=4, **look)
            drawn[name] = Line2D([], [], linestyle="none", marker=marker, **look)
        values += [value for value, _ in there]
    wide = names_down(figure, ax, [name for _, name in named])
    scale = scale_of("memory_bytes", values, zero=True)
    set_scale(ax, "x", scale, values)
    ax.set_xlim(left=0)
    ax.grid(visible=True, axis="x", color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    sentences = [f"{conditions[:1].upper()}{conditions[1:]}." for conditions in [shared(weighed)] if conditions]
    if any("predicted" in name and "peak" not in name for name in drawn):
        sentences.append("Each part is at its own highest, at its own time, so that a bar may be longer than the peak.")
    if left_out:
        sentences.append(f"Left out: {counted(left_out)}.")
    beside = legend(figure, list(drawn.items()))
    cut(figure, _WIDTH_IN + wide, len(named) * _ROW_IN + 0.9, " ".join(sentences), beside)
    return figure


def _bytes(row: Mapping[str, Any], column: str) -> float | None:
    value = results.number(row, column)
    if value is not None and value < 0:
        raise results.wrong(row, column, "a number of bytes")
    return value


def _peak(row: Mapping[str, Any]) -> float:
    return max(_bytes(row, column) or 0.0 for column in _PEAKS)
