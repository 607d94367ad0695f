"""Speed and largest batch over the size of the input, or speed over the batch, a line a model.

Source: ViT (arXiv 2010.11929), Fig. 12. Left: images a second, each point the best of the batch sizes measured. Right: the
largest batch that fits. Over the batch, which the paper does not draw, a size of the input makes a line of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from vitbench import catalog, results
from vitbench.drawing.axes import MARKERS, canvas, caption, height_in, legend, ticks
from vitbench.drawing.pictures import COLORS, GREY, SMALL, plain, wrapped
from vitbench.drawing.rows import CONDITIONS, counted, with_result
from vitbench.errors import BadInput
from vitbench.units import size

_FILLS = ("full", "none", "left")
_MOST_LINES = len(COLORS) * len(_FILLS)

CONVOLUTIONAL = {"bit", "resnet", "regnet", "efficientnet"}

_HARD_SPACE = "\N{NO-BREAK SPACE}"
_PANEL_WIDTH_IN = 4.4
_HEIGHT_IN = 4.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One half of the figure: what it shows, and the rows that show it."""

    column: str
    title: str
    over: str
    y_label: str
    rows: Sequence[Mapping[str, Any]]

    def texts(self, condition: str) -> set[str]:
        """Gives the words in which the rows state a condition."""
        return {CONDITIONS[condition](row) for row in self.rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of one line.

    Attributes:
        extents: what x stands for: height and width of the input, or the batch alone.
        value: inputs a second, or a batch.
        low, high: the ends of its 95 % interval, if it has one.
    """

    extents: tuple[int, ...]
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def x(self) -> float:
        """The side of the square of that area, or the batch."""
        return float(math.prod(self.extents) ** (1 / len(self.extents)))


def plot(rows: Sequence[Mapping[str, Any]], *, x: str = "input_shape") -> Figure:
    """Draws the rows of `vitbench throughput` on the left and those of `vitbench max-batch` on the right, or the one there is.

    Args:
        rows: flat, as `results.read` gives them. Of a line's rows at one place, that with the highest value is drawn.
        x: input_shape, or batch_size, over which there is no largest batch to draw.

    Raises:
        BadInput: no row holds a throughput or a largest batch, or a cell cannot be read, or there are too many lines.
    """
    if x not in ("input_shape", "batch_size"):
        raise BadInput(
            f"The chart scaling is drawn over input_shape or batch_size, not {x!r}: give one of them as --x."
        )
    panels, left_out = _panels(rows, x)
    spoken = [condition for condition in CONDITIONS if _differs(condition, panels)]
    label_of = _labeller(panels, spoken, x)
    lines = [_lines(panel, label_of, x) for panel in panels]
    labels = tuple(dict.fromkeys(label for found in lines for label in found))
    if len(labels) > _MOST_LINES:
        raise BadInput(
            f"{len(labels)} lines cannot be told apart, {_MOST_LINES} at most: give files with fewer models or settings."
        )
    models = {label_of(row): results.text(row, "model") for panel in panels for row in panel.rows}
    styles = _styles(labels, models)

    # Wide and high for now; what stands beside and below the panels is measured, then the figure is cut to fit.
    figure = canvas(_PANEL_WIDTH_IN * len(panels) + 8, _HEIGHT_IN + 8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    heads = [_caption(panel, spoken) for panel in panels]
    for ax, panel, found, head in zip(axes, panels, lines, heads, strict=True):
        _draw(ax, panel, found, styles)
        _head(ax, panel, head, max(one.count("\n") + 1 for one in heads))
    width, height = _PANEL_WIDTH_IN * len(panels), _HEIGHT_IN
    if len(labels) > 1:
        beside = legend(
            figure, [(label, Line2D([], [], **style)) for label, style in styles.items()]
        ).get_window_extent()
        width += beside.width / figure.dpi + 0.2
        height = max(height, beside.height / figure.dpi + 0.4)
    else:
        title = figure.suptitle(
            wrapped(labels[0], 45 * len(panels)), x=0.01, ha="left", fontweight="bold", parse_math=False
        )
        height += title.get_window_extent().height / figure.dpi
    notes = _notes(panels, lines, left_out, dashed=any(style["linestyle"] == "--" for style in styles.values()))
    if notes:
        height += height_in(figure, caption(figure, notes, width))
    figure.set_size_inches(width, height)
    for ax in axes:
        _part_tick_labels(figure, ax)
    return figure


def _panels(rows: Sequence[Mapping[str, Any]], x: str) -> tuple[list[Panel], Counter[str]]:
    """Gives the panels that have something to show, and how many rows there are of each kind that is left out."""
    fast, large = [], []
    good, left_out = with_result(rows)
    for row in good:
        if results.number(row, "throughput_per_s") is not None:
            fast.append(row)
        if (batch := results.number(row, "max_batch")) is None:
            continue
        if x == "batch_size":
            left_out["of the largest batch, which is none over the batch"] += 1
        elif batch == 0:
            left_out["where not even one input fits"] += 1
        else:
            large.append(row)
    if not fast and not large:
        if left_out:
            raise BadInput(f"There is nothing to draw: {counted(left_out)}.")
        raise BadInput(
            "No row has throughput_per_s, which `vitbench throughput` writes, or max_batch, which `vitbench max-batch` writes."
        )
    panels = [
        Panel(
            column="throughput_per_s",
            title="Throughput",
            over=x,
            y_label=f"{_inputs(fast)}/s",
            rows=fast,
        ),
        Panel(
            column="max_batch",
            title="Largest batch that fits",
            over=x,
            y_label=f"{_inputs(large)} in a batch",
            rows=large,
        ),
    ]
    return [panel for panel in panels if panel.rows], left_out


def _inputs(rows: Sequence[Mapping[str, Any]]) -> str:
    # Without a shape, nobody can tell; the axis then speaks of inputs.
    clips = {
        len(results.extents(row, "input_shape")) == 4 if results.text(row, "input_shape") else None for row in rows
    }
    return "Inputs" if len(clips) > 1 else "Clips" if clips == {True} else "Images" if clips == {False} else "Inputs"


def _differs(condition: str, panels: Sequence[Panel]) -> bool:
    """Says whether a line's label has to state a condition: it is not the same all over a panel."""
    return any(
        len(panel.texts(condition)) > 1
        # cuda:0 and cpu, or 2 and 16 threads, go without saying where the machines' names say it.
        and not (condition in ("device", "threads") and _goes_with_machine(condition, panel))
        for panel in panels
    )


def _goes_with_machine(condition: str, panel: Panel) -> bool:
    machine = CONDITIONS["machine"]
    pairs = {(machine(row), CONDITIONS[condition](row)) for row in panel.rows}
    return len(pairs) == len(panel.texts("machine"))


def _labeller(panels: Sequence[Panel], spoken: Sequence[str], x: str) -> Callable[[Mapping[str, Any]], str]:
    """Gives the function from a row to its line's label: it states all that tells the row from those of other lines."""

    def leading(row: Mapping[str, Any]) -> str:
        # Where a model has several channels, or frames of a clip, they make lines of their own; over the batch, sizes too.
        if x == "batch_size":
            return size(results.extents(row, "input_shape")) if results.text(row, "input_shape") else ""
        return f"{size(results.extents(row, 'input_shape')[:-2])} x H x W"

    of_model: dict[str, set[str]] = {}
    for panel in panels:
        for row in panel.rows:
            of_model.setdefault(results.text(row, "model"), set()).add(leading(row))

    def label(row: Mapping[str, Any]) -> str:
        model = results.text(row, "model")
        parts = [model, *(CONDITIONS[condition](row) for condition in spoken)]
        if len(of_model[model]) > 1:
            parts.append(leading(row))
        text = plain(", ".join(part for part in parts if part))
        if not model or not text:
            raise results.wrong(row, "model", "a model's name")
        return text

    return label


def _lines(panel: Panel, label_of: Callable[[Mapping[str, Any]], str], x: str) -> dict[str, list[Point]]:
    """Gives the points of each line, by its label: the best of each size, in the order of their area."""
    best: dict[str, dict[tuple[int, ...], Point]] = {}
    for row in panel.rows:
        point = _point(row, panel.column, x)
        points = best.setdefault(label_of(row), {})
        if point.extents not in points or point.value > points[point.extents].value:
            points[point.extents] = point
    return {
        label: sorted(points.values(), key=lambda point: (point.x, point.extents)) for label, points in best.items()
    }


def _point(row: Mapping[str, Any], column: str, x: str) -> Point:
    shape = results.extents(row, "input_shape") if x == "input_shape" else (_batch(row),)
    if len(shape) < 2 and x == "input_shape":
        raise results.wrong(row, "input_shape", "a shape with a height and a width, such as 3x224x224")
    value = results.number(row, column)
    if value is None or value <= 0:
        raise results.wrong(row, column, "a number above zero")
    low, high = _interval(row, value) if column == "throughput_per_s" else (None, None)
    return Point(extents=shape[-2:], value=value, low=low, high=high)


def _batch(row: Mapping[str, Any]) -> int:
    batch = results.number(row, "batch_size")
    if batch is None or batch < 1 or batch != int(batch):
        raise results.wrong(row, "batch_size", "a whole number above zero")
    return int(batch)


def _interval(row: Mapping[str, Any], throughput: float) -> tuple[float, float] | tuple[None, None]:
    """Gives the interval of a throughput from that of its latency: the batch over either end."""
    low_ms, high_ms = results.number(row, "latency_low_ms"), results.number(row, "latency_high_ms")
    # Student's interval over two processes that disagree may reach below zero: then it bounds nothing.
    if low_ms is None or high_ms is None or low_ms <= 0:
        return None, None
    batch = _batch(row)
    low, high = batch / (high_ms / 1e3), batch / (low_ms / 1e3)
    if not low * (1 - 1e-6) <= throughput <= high * (1 + 1e-6):
        raise results.wrong(row, "throughput_per_s", f"within the interval of its latency, {low:.6g} to {high:.6g}")
    return min(low, throughput), max(high, throughput)


def _styles(labels: Sequence[str], models: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Gives how each line is drawn; convolutional networks are dashed where there are others too."""
    convolutional = {
        label for label in labels if (row := catalog.VARIANTS.get(models[label])) and row.family in CONVOLUTIONAL
    }
    mixed = 0 < len(convolutional) < len(labels)
    styles: dict[str, dict[str, Any]] = {}
    for place, label in enumerate(labels):
        turn, place_in_turn = divmod(place, len(COLORS))
        styles[label] = {
            "color": COLORS[place_in_turn],
            "marker": MARKERS[(place_in_turn + turn) % len(MARKERS)],
            "fillstyle": _FILLS[turn],
            "linestyle": "--" if mixed and label in convolutional else "-",
            "linewidth": 1.5,
            "markersize": 5.5,
        }
    return styles


def _draw(
    ax: Axes, panel: Panel, lines: Mapping[str, Sequence[Point]], styles: Mapping[str, Mapping[str, Any]]
) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ends: list[float] = []
    for label, points in lines.items():
        ax.plot([one.x for one in points], [one.value for one in points], label=label, zorder=3, **styles[label])
        barred = [(one, one.low, one.high) for one in points if one.low is not None and one.high is not None]
        ends += [one.value for one in points] + [end for _, low, high in barred for end in (low, high)]
        if barred:
            ax.errorbar(
                [one.x for one, _, _ in barred],
                [one.value for one, _, _ in barred],
                yerr=[[one.value - low for one, low, _ in barred], [high - one.value for one, _, high in barred]],
                fmt="none",
                ecolor=styles[label]["color"],
                capsize=3,
                zorder=2,
            )
    _scale_x(ax, lines, panel.over)
    steps = ticks(min(ends), max(ends))
    ax.set_ylim(steps[0], steps[-1])
    if len(steps) > 10:
        # The powers of ten alone; the axis ends where it did.
        steps = [step for step in steps if math.isclose(math.log10(step), round(math.log10(step)), abs_tol=1e-9)]
    ax.yaxis.set_major_locator(FixedLocator(steps))
    ax.yaxis.set_major_formatter(FixedFormatter([_tick_text(step) for step in steps]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylabel(panel.y_label)
    ax.grid(visible=True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _scale_x(ax: Axes, lines: Mapping[str, Sequence[Point]], over: str) -> None:
    """Puts a tick at each size measured; two sizes of one area share one."""
    at: dict[float, set[tuple[int, ...]]] = {}
    for points in lines.values():
        for point in points:
            at.setdefault(point.x, set()).add(point.extents)
    sides = sorted(at)
    texts = [
        "\n".join(size(extents) if len(set(extents)) > 1 else str(extents[0]) for extents in sorted(at[side]))
        for side in sides
    ]
    ax.xaxis.set_major_locator(FixedLocator(sides))
    ax.xaxis.set_major_formatter(FixedFormatter(texts))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(sides[0] / 1.15, sides[-1] * 1.15)
    if over == "batch_size":
        ax.set_xlabel("Batch size")
        return
    square = all(len(set(extents)) == 1 for sizes in at.values() for extents in sizes)
    ax.set_xlabel("Input size (pixels)" if square else "Input size (pixels, height x width, by area)")


def _tick_text(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _caption(panel: Panel, spoken: Sequence[str]) -> str:
    """Gives what all rows of a panel have in common: where and how they were measured."""
    # The machine's name says more than cuda:0.
    unsaid = {*spoken, "device"} if panel.texts("machine") != {""} else {*spoken}
    texts = [panel.texts(condition) for condition in CONDITIONS if condition not in unsaid]
    same = [plain(text) for found in texts if len(found) == 1 for text in found if text]
    # Lines end between the parts, not within them.
    return wrapped(", ".join(text.replace(" ", _HARD_SPACE) for text in same), 56)


def _head(ax: Axes, panel: Panel, text: str, lines: int) -> None:
    """Puts the title over a panel, and between them, in small, the caption, with room for so many lines."""
    ax.set_title(panel.title, loc="left", fontweight="bold", fontsize=11, pad=8 + 11 * lines)
    ax.annotate(
        text + "\n" * (lines - 1 - text.count("\n")),
        (0, 1),
        (0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=SMALL,
        color=GREY,
        va="bottom",
        parse_math=False,
    )


def _notes(
    panels: Sequence[Panel], lines: Sequence[Mapping[str, Sequence[Point]]], left_out: Counter[str], *, dashed: bool
) -> str:
    found = []
    for panel, drawn in zip(panels, lines, strict=True):
        if panel.column != "throughput_per_s":
            continue
        points = [point for of_line in drawn.values() for point in of_line]
        if len(points) < len(panel.rows):
            of = "batch sizes measured" if panel.over == "input_shape" else "rows at that batch"
            found.append(f"Each point is the fastest of the {of}.")
        without = sum(point.low is None for point in points)
        if without < len(points):
            found.append(
                "Bars: 95 % interval" + (f"; {without} of {len(points)} points have none." if without else ".")
            )
    if dashed:
        found.append("Dashed: convolutional networks.")
    if left_out:
        found.append(f"Left out: {counted(left_out)}.")
    return " ".join(found)


def _part_tick_labels(figure: Figure, ax: Axes) -> None:
    """Turns the labels of the x axis upright where two of them touch, then leaves out those that still do."""
    figure.draw_without_rendering()
    labels = ax.get_xticklabels()
    if len(_apart(labels)) == len(labels):
        return
    ax.tick_params(axis="x", labelrotation=90)
    figure.draw_without_rendering()
    shown = _apart(ax.get_xticklabels())
    ax.xaxis.set_major_formatter(
        FixedFormatter([label.get_text() if label in shown else "" for label in ax.get_xticklabels()])
    )


def _apart(labels: Sequence[Text]) -> list[Text]:
    """Gives, from the left, those labels that do not touch the one given before."""
    shown: list[Text] = []
    end = -math.inf
    for label in labels:
        box = label.get_window_extent()
        if box.x0 > end:
            shown.append(label)
            end = box.x1 + 2
    return shown
