"""Speed and largest batch over the size of the input, a line a model.

Source: ViT (arXiv 2010.11929), Fig. 12. Left: images a second, each point the best of the batch sizes measured. Right: the
largest batch that fits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from vitbench import catalog, results
from vitbench.errors import BadInput
from vitbench.pictures import COLORS, GREY, SMALL, plain, wrapped
from vitbench.units import memory, size

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_FILLS = ("full", "none", "left")
_MOST_LINES = len(COLORS) * len(_FILLS)

CONVOLUTIONAL = {"bit", "resnet", "regnet", "efficientnet"}

_DRAWN = {"", "ok", "lowered"}
"""The statuses of rows with a result; a row that somebody wrote by hand may have none."""

_HARD_SPACE = "\N{NO-BREAK SPACE}"
_PANEL_WIDTH_IN = 4.4
_HEIGHT_IN = 4.2

_CONDITIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "machine": lambda row: results.text(row, "environment_device_name"),
    "device": lambda row: results.text(row, "device"),
    "dtype": lambda row: results.text(row, "dtype"),
    "amp": lambda row: "AMP" if results.flag(row, "amp") else "",
    "mode": lambda row: {"infer": "inference", "train": "training"}.get(mode := results.text(row, "mode"), mode),
    "compile": lambda row: f"compiled by {found}" if (found := results.text(row, "compile")) else "",
    "channels_last": lambda row: "channels-last" if results.flag(row, "channels_last") else "",
    "grad_checkpointing": lambda row: "gradient checkpointing" if results.flag(row, "grad_checkpointing") else "",
    "threads": lambda row: _threads(row),
    "torch": lambda row: f"torch {found}" if (found := results.text(row, "environment_torch")) else "",
    "method": lambda row: results.text(row, "max_batch_method"),
    "limit": lambda row: (
        f"{memory(found)} of memory" if (found := results.number(row, "limit_bytes")) is not None else ""
    ),
}
"""What may differ between rows besides the model and its input, in words; empty where it is not known, or is not so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One half of the figure: what it shows, and the rows that show it."""

    column: str
    title: str
    y_label: str
    rows: Sequence[Mapping[str, Any]]

    def texts(self, condition: str) -> set[str]:
        """Gives the words in which the rows state a condition."""
        return {_CONDITIONS[condition](row) for row in self.rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of one line.

    Attributes:
        extents: height and width.
        value: inputs a second, or a batch.
        low, high: the ends of its 95 % interval, if it has one.
    """

    extents: tuple[int, int]
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def side_px(self) -> float:
        """The side of the square of that area."""
        return math.sqrt(self.extents[0] * self.extents[1])


def plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws the rows of `vitbench throughput` on the left and those of `vitbench max-batch` on the right, or the one there is.

    Args:
        rows: flat, as `results.read` gives them. Of a line's rows at one size, that with the highest value is drawn.

    Raises:
        BadInput: no row holds a throughput or a largest batch, or a cell cannot be read, or there are too many lines.
    """
    panels, left_out = _panels(rows)
    spoken = [condition for condition in _CONDITIONS if _differs(condition, panels)]
    label_of = _labeller(panels, spoken)
    lines = [_lines(panel, label_of) for panel in panels]
    labels = tuple(dict.fromkeys(label for found in lines for label in found))
    if len(labels) > _MOST_LINES:
        raise BadInput(
            f"{len(labels)} lines cannot be told apart, {_MOST_LINES} at most: give files with fewer models or settings."
        )
    models = {label_of(row): results.text(row, "model") for panel in panels for row in panel.rows}
    styles = _styles(labels, models)

    # Wide and high for now; what stands beside and below the panels is measured, then the figure is cut to fit.
    figure = Figure(
        figsize=(_PANEL_WIDTH_IN * len(panels) + 8, _HEIGHT_IN + 8),
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.04),
    )
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    captions = [_caption(panel, spoken) for panel in panels]
    for ax, panel, found, caption in zip(axes, panels, lines, captions, strict=True):
        _draw(ax, panel, found, styles)
        _head(ax, panel, caption, max(one.count("\n") + 1 for one in captions))
    width, height = _PANEL_WIDTH_IN * len(panels), _HEIGHT_IN
    if len(labels) > 1:
        legend = _legend(figure, styles)
        beside = legend.get_window_extent()
        width += beside.width / figure.dpi + 0.2
        height = max(height, beside.height / figure.dpi + 0.4)
    else:
        title = figure.suptitle(
            wrapped(labels[0], 45 * len(panels)), x=0.01, ha="left", fontweight="bold", parse_math=False
        )
        height += title.get_window_extent().height / figure.dpi
    notes = _notes(panels, lines, left_out, dashed=any(style["linestyle"] == "--" for style in styles.values()))
    if notes:
        note = figure.supxlabel(
            wrapped(notes, int(width * 16)), x=0.01, ha="left", fontsize=SMALL, color=GREY, parse_math=False
        )
        height += note.get_window_extent().height / figure.dpi
    figure.set_size_inches(width, height)
    for ax in axes:
        _part_tick_labels(figure, ax)
    return figure


def _panels(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Panel], Counter[str]]:
    """Gives the panels that have something to show, and how many rows there are of each kind that is left out."""
    left_out: Counter[str] = Counter()
    fast, large = [], []
    for row in rows:
        status = results.text(row, "status")
        if status not in _DRAWN:
            left_out[{"timeout": "timed out"}.get(status, status.replace("_", " "))] += 1
            continue
        if results.number(row, "throughput_per_s") is not None:
            fast.append(row)
        if (batch := results.number(row, "max_batch")) == 0:
            left_out["where not even one input fits"] += 1
        elif batch is not None:
            large.append(row)
    if not fast and not large:
        if left_out:
            raise BadInput(f"There is nothing to draw: {_counted(left_out)}.")
        raise BadInput(
            "No row has throughput_per_s, which `vitbench throughput` writes, or max_batch, which `vitbench max-batch` writes."
        )
    panels = [
        Panel(
            column="throughput_per_s",
            title="Throughput",
            y_label=f"{_inputs(fast)}/s",
            rows=fast,
        ),
        Panel(column="max_batch", title="Largest batch that fits", y_label=f"{_inputs(large)} in a batch", rows=large),
    ]
    return [panel for panel in panels if panel.rows], left_out


def _inputs(rows: Sequence[Mapping[str, Any]]) -> str:
    clips = {len(results.extents(row, "input_shape")) == 4 for row in rows}
    return "Inputs" if len(clips) > 1 else "Clips" if clips == {True} else "Images"


def _differs(condition: str, panels: Sequence[Panel]) -> bool:
    """Says whether a line's label has to state a condition: it is not the same all over a panel."""
    return any(
        len(panel.texts(condition)) > 1
        # cuda:0 and cpu, or 2 and 16 threads, go without saying where the machines' names say it.
        and not (condition in ("device", "threads") and _goes_with_machine(condition, panel))
        for panel in panels
    )


def _goes_with_machine(condition: str, panel: Panel) -> bool:
    machine = _CONDITIONS["machine"]
    pairs = {(machine(row), _CONDITIONS[condition](row)) for row in panel.rows}
    return len(pairs) == len(panel.texts("machine"))


def _labeller(panels: Sequence[Panel], spoken: Sequence[str]) -> Callable[[Mapping[str, Any]], str]:
    """Gives the function from a row to its line's label: it states all that tells the row from those of other lines."""

    def leading(row: Mapping[str, Any]) -> str:
        # Channels, and the frames of a clip; where a model has several, they make lines of their own.
        return size(results.extents(row, "input_shape")[:-2])

    of_model: dict[str, set[str]] = {}
    for panel in panels:
        for row in panel.rows:
            of_model.setdefault(results.text(row, "model"), set()).add(leading(row))

    def label(row: Mapping[str, Any]) -> str:
        model = results.text(row, "model")
        parts = [model, *(_CONDITIONS[condition](row) for condition in spoken)]
        if len(of_model[model]) > 1:
            parts.append(f"{leading(row)} x H x W")
        text = plain(", ".join(part for part in parts if part))
        if not model or not text:
            raise results.wrong(row, "model", "a model's name")
        return text

    return label


def _lines(panel: Panel, label_of: Callable[[Mapping[str, Any]], str]) -> dict[str, list[Point]]:
    """Gives the points of each line, by its label: the best of each size, in the order of their area."""
    best: dict[str, dict[tuple[int, int], Point]] = {}
    for row in panel.rows:
        point = _point(row, panel.column)
        points = best.setdefault(label_of(row), {})
        if point.extents not in points or point.value > points[point.extents].value:
            points[point.extents] = point
    return {
        label: sorted(points.values(), key=lambda point: (point.side_px, point.extents))
        for label, points in best.items()
    }


def _point(row: Mapping[str, Any], column: str) -> Point:
    shape = results.extents(row, "input_shape")
    if len(shape) < 2:
        raise results.wrong(row, "input_shape", "a shape with a height and a width, such as 3x224x224")
    value = results.number(row, column)
    if value is None or value <= 0:
        raise results.wrong(row, column, "a number above zero")
    low, high = _interval(row, value) if column == "throughput_per_s" else (None, None)
    return Point(extents=(shape[-2], shape[-1]), value=value, low=low, high=high)


def _interval(row: Mapping[str, Any], throughput: float) -> tuple[float, float] | tuple[None, None]:
    """Gives the interval of a throughput from that of its latency: the batch over either end."""
    low_ms, high_ms = results.number(row, "latency_low_ms"), results.number(row, "latency_high_ms")
    # Student's interval over two processes that disagree may reach below zero: then it bounds nothing.
    if low_ms is None or high_ms is None or low_ms <= 0:
        return None, None
    batch = results.number(row, "batch_size")
    if batch is None or batch <= 0:
        raise results.wrong(row, "batch_size", "a number above zero")
    low, high = batch / (high_ms / 1e3), batch / (low_ms / 1e3)
    if not low * (1 - 1e-6) <= throughput <= high * (1 + 1e-6):
        raise results.wrong(row, "throughput_per_s", f"within the interval of its latency, {low:.6g} to {high:.6g}")
    return min(low, throughput), max(high, throughput)


def _threads(row: Mapping[str, Any]) -> str:
    found = results.text(row, "threads")
    if not found or not results.text(row, "device").startswith("cpu"):
        return ""
    return f"{found} {'thread' if found == '1' else 'threads'}"


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
            "marker": _MARKERS[(place_in_turn + turn) % len(_MARKERS)],
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
        ax.plot([one.side_px for one in points], [one.value for one in points], label=label, zorder=3, **styles[label])
        barred = [(one, one.low, one.high) for one in points if one.low is not None and one.high is not None]
        ends += [one.value for one in points] + [end for _, low, high in barred for end in (low, high)]
        if barred:
            ax.errorbar(
                [one.side_px for one, _, _ in barred],
                [one.value for one, _, _ in barred],
                yerr=[[one.value - low for one, low, _ in barred], [high - one.value for one, _, high in barred]],
                fmt="none",
                ecolor=styles[label]["color"],
                capsize=3,
                zorder=2,
            )
    _scale_x(ax, lines)
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


def _scale_x(ax: Axes, lines: Mapping[str, Sequence[Point]]) -> None:
    """Puts a tick at each size measured; two sizes of one area share one."""
    at: dict[float, set[tuple[int, int]]] = {}
    for points in lines.values():
        for point in points:
            at.setdefault(point.side_px, set()).add(point.extents)
    sides = sorted(at)
    texts = [
        "\n".join(str(height) if height == width else f"{height}x{width}" for height, width in sorted(at[side]))
        for side in sides
    ]
    ax.xaxis.set_major_locator(FixedLocator(sides))
    ax.xaxis.set_major_formatter(FixedFormatter(texts))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(sides[0] / 1.15, sides[-1] * 1.15)
    square = all(height == width for sizes in at.values() for height, width in sizes)
    ax.set_xlabel("Input size (pixels)" if square else "Input size (pixels, height x width, by area)")


def ticks(low: float, high: float) -> list[float]:
    """Gives 1, 2, 5, 10 and so on, three at least: from the last with some room below the values to the first with room above."""
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    steps = [lead * 10.0**power for power in range(first, last + 1) for lead in (1, 2, 5)]
    below = max(step for step in steps if step <= low / 1.15)
    above = min(step for step in steps if step >= high * 1.15)
    found = [step for step in steps if below <= step <= above]
    # Two numbers are not enough to read a logarithmic axis by.
    return found if len(found) > 2 else [max(step for step in steps if step < below), *found]


def _tick_text(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _caption(panel: Panel, spoken: Sequence[str]) -> str:
    """Gives what all rows of a panel have in common: where and how they were measured."""
    # The machine's name says more than cuda:0.
    unsaid = {*spoken, "device"} if panel.texts("machine") != {""} else {*spoken}
    texts = [panel.texts(condition) for condition in _CONDITIONS if condition not in unsaid]
    same = [plain(text) for found in texts if len(found) == 1 for text in found if text]
    # Lines end between the parts, not within them.
    return wrapped(", ".join(text.replace(" ", _HARD_SPACE) for text in same), 56)


def _head(ax: Axes, panel: Panel, caption: str, lines: int) -> None:
    """Puts the title over a panel, and between them, in small, the caption, with room for so many lines."""
    ax.set_title(panel.title, loc="left", fontweight="bold", fontsize=11, pad=8 + 11 * lines)
    ax.annotate(
        caption + "\n" * (lines - 1 - caption.count("\n")),
        (0, 1),
        (0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=SMALL,
        color=GREY,
        va="bottom",
        parse_math=False,
    )


def _legend(figure: Figure, styles: Mapping[str, Mapping[str, Any]]) -> Legend:
    handles = [Line2D([], [], **style) for style in styles.values()]
    # Put in afterwards and literally: a legend parses its labels as mathematics, and has left out those that begin with _.
    legend = figure.legend(
        handles,
        [str(place) for place in range(len(handles))],
        loc="outside right center",
        frameon=False,
        fontsize=9,
        handlelength=2.8,
    )
    for text, label in zip(legend.get_texts(), styles, strict=True):
        text.set_parse_math(False)
        text.set_text(wrapped(label, 60))
    figure.draw_without_rendering()
    return legend


def _notes(
    panels: Sequence[Panel], lines: Sequence[Mapping[str, Sequence[Point]]], left_out: Counter[str], *, dashed: bool
) -> str:
    found = []
    for panel, drawn in zip(panels, lines, strict=True):
        if panel.column != "throughput_per_s":
            continue
        points = [point for of_line in drawn.values() for point in of_line]
        if len(points) < len(panel.rows):
            found.append("Each point is the fastest of the batch sizes measured.")
        without = sum(point.low is None for point in points)
        if without < len(points):
            found.append(
                "Bars: 95 % interval" + (f"; {without} of {len(points)} points have none." if without else ".")
            )
    if dashed:
        found.append("Dashed: convolutional networks.")
    if left_out:
        found.append(f"Left out: {_counted(left_out)}.")
    return " ".join(found)


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{number} {'row' if number == 1 else 'rows'} {plain(kind)}" for kind, number in kinds.items())


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
