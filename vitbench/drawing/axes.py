"""Axes, legends and captions that charts share: a column's words and unit, its ticks, and room for what stands outside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from vitbench.drawing.pictures import COLORS, GREY, SMALL, plain, wrapped
from vitbench.errors import BadInput
from vitbench.units import count

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SIGNS_AN_INCH = 16
_EXTREME = 1e100
_BINARY = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))

_WORDS = {
    "macs": "Multiply-accumulates",
    "macs_of_one_input": "Multiply-accumulates of one input",
    "flops": "FLOPs = 2 x MACs",
    "flops_of_one_input": "FLOPs of one input = 2 x MACs",
    "params": "Parameters",
    "top1": "ImageNet-1k top-1 (%)",
    "batch_size": "Batch size",
    "throughput_per_s": "Inputs/s",
    "latency_median_ms": "Median latency of a batch (ms)",
    "max_batch": "Largest batch that fits",
    "achieved_flops_per_s": "Achieved FLOP/s",
    "peak_flops_per_s": "Peak FLOP/s",
    "utilization": "Achieved over peak FLOP/s",
}
# By the end of a column's name; the prefix of bytes is added to their unit.
_UNITS = (("_per_s", "/s"), ("_ms", " (ms)"), ("_px", " (pixels)"), ("_s", " (s)"), ("_mhz", " (MHz)"))

# From the lowest to the highest value more than this, and the axis is logarithmic.
_LINEAR_RANGE = 20
# Over more than this, each tick has a prefix of its own: 1 M, 1 G.
_PREFIX_RANGE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How the values of a column lie along an axis.

    Attributes:
        label: what stands at the axis: words, prefix and unit.
        unit: the value that a tick calls 1.
        log: whether it is logarithmic.
        text: gives what stands at a tick.
    """

    label: str
    unit: float
    log: bool
    text: Callable[[float], str]

    def exact(self, value: float) -> str:
        """Gives a value for a table under the label, to four digits."""
        return count(value) if self.text is _prefixed else f"{value / self.unit:.4g}"


def scale_of(column: str, values: Sequence[float], *, zero: bool = False) -> Scale:
    """Chooses the scale of an axis.

    Args:
        column: its name ends in its unit.
        values: all that will be drawn, at least one.
        zero: the axis begins at zero, as bars do.

    Raises:
        BadInput: a value is so large or so small that computing with it would overflow.
    """
    low, high = min(values), max(values)
    for value in values:
        if value and not 1 / _EXTREME < abs(value) < _EXTREME:
            raise BadInput(f"{plain(column)} holds {value:g}, which no axis shows: leave that row out.")
    log = not zero and low > 0 and high / low > _LINEAR_RANGE
    name, unit = column, ""
    if column.endswith("_bytes"):
        name = column.removesuffix("_bytes")
        size, unit = next(((size, unit) for size, unit in _BINARY if high >= size), _BINARY[-1])
        return Scale(label=f"{_words(name)} ({unit})", unit=size, log=log, text=_number)
    for ending, unit_text in _UNITS:
        if column.endswith(ending):
            name, unit = column.removesuffix(ending), unit_text
            break
    words = _WORDS.get(column) or f"{_words(name)}{unit}"
    size, prefix = next(((size, prefix) for size, prefix in _DECIMAL if high >= size), (1.0, ""))
    # Thousands are read as they are.
    if high < 1e5 or unit in (" (ms)", " (s)"):
        return Scale(label=words, unit=1.0, log=log, text=_number)
    if log and high / low > _PREFIX_RANGE:
        return Scale(label=words, unit=1.0, log=log, text=_prefixed)
    return Scale(label=f"{words} ({prefix})", unit=size, log=log, text=_number)


def _words(name: str) -> str:
    text = plain(name.replace("_", " "))
    return text[:1].upper() + text[1:]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


def _prefixed(value: float) -> str:
    return next((f"{value / size:g} {prefix}" for size, prefix in _DECIMAL if value >= size), f"{value:g}")


def set_scale(ax: Axes, which: Literal["x", "y"], scale: Scale, values: Sequence[float]) -> None:
    """Gives an axis its scale, limits with room about the values, ticks and label."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    set_limits = ax.set_xlim if which == "x" else ax.set_ylim
    low, high = min(values), max(values)
    if scale.log:
        (ax.set_xscale if which == "x" else ax.set_yscale)("log")
        room = (high / low) ** 0.06
        set_limits(low / room, high * room)
        steps = [
            step
            for step in log_steps(low / scale.unit, high / scale.unit)
            if low / room <= step * scale.unit <= high * room
        ]
        axis.set_major_locator(FixedLocator([step * scale.unit for step in steps]))
        axis.set_major_formatter(FixedFormatter([scale.text(step) for step in steps]))
        axis.set_minor_locator(NullLocator())
    else:
        room = 0.09 * (high - low) or abs(high) * 0.1 or 1.0
        set_limits(low - room, high + room)
        unit = scale.unit
        places = MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10])
        chosen = [value * unit for value in places.tick_values((low - room) / unit, (high + room) / unit)]
        axis.set_major_locator(FixedLocator([value for value in chosen if low - room <= value <= high + room]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: scale.text(value / unit)))
    (ax.set_xlabel if which == "x" else ax.set_ylabel)(wrapped(scale.label, 50), parse_math=False)


def ticks(low: float, high: float) -> list[float]:
    """Gives 1, 2, 5, 10 and so on, three at least: from the last with some room below the values to the first with room above."""
    steps = _steps(low, high)
    below = max(step for step in steps if step <= low / 1.15)
    above = min(step for step in steps if step >= high * 1.15)
    found = [step for step in steps if below <= step <= above]
    # Two numbers are not enough to read a logarithmic axis by.
    return found if len(found) > 2 else [max(step for step in steps if step < below), *found]


def log_steps(low: float, high: float) -> list[float]:
    """Gives the numbers that stand at a logarithmic axis: 1, 2, 5, 10 and so on, or, of many decades, every (second) power."""
    decades = math.log10(high / low)
    steps = _steps(low, high)
    if decades <= 3:
        return steps
    every = 1 if decades <= 8 else 2
    return [
        step for step in steps if (power := round(math.log10(step))) % every == 0 and math.isclose(step, 10.0**power)
    ]


def _steps(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    return [lead * 10.0**power for power in range(first, last + 1) for lead in (1, 2, 5)]


def styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Gives each name a colour and a marker; eight names differ by either, 64 by both together."""
    found = {}
    for place, name in enumerate(names):
        turn, within = divmod(place, len(COLORS))
        found[name] = (COLORS[within], MARKERS[(within + turn) % len(MARKERS)])
    return found


def canvas(width_in: float, height_in: float) -> Figure:
    """Gives a figure whose layout fits its texts; what stands outside the axes is added by `legend` and `caption`."""
    return Figure(figsize=(width_in, height_in), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.04))


def legend(figure: Figure, entries: Sequence[tuple[str, Line2D | None]]) -> Legend:
    """Puts a legend right of the axes and draws the figure once, so that the legend's size is known.

    Args:
        figure: made by `canvas`, with room to spare.
        entries: each name, set as it is, with its sign; a name without one is a heading.
    """
    nothing = Line2D([], [], linestyle="none")
    # Put in afterwards and literally: a legend parses its labels as mathematics, and has left out those that begin with _.
    made = figure.legend(
        [sign or nothing for _, sign in entries],
        [str(place) for place in range(len(entries))],
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        handlelength=2.8,
    )
    for text, (name, sign) in zip(made.get_texts(), entries, strict=True):
        text.set_parse_math(False)
        text.set_text(wrapped(plain(name), 60))
        if sign is None:
            text.set_fontweight("bold")
    figure.draw_without_rendering()
    return made


def caption(figure: Figure, text: str, width_in: float) -> Text:
    """Puts sentences below the axes of a figure of that width, in small."""
    note = figure.supxlabel("", x=0.01, ha="left", fontsize=SMALL, color=GREY, parse_math=False)
    fill(note, text, width_in)
    return note


def fill(note: Text, text: str, width_in: float) -> None:
    """Sets a caption anew, in lines that fit a figure of that width."""
    figure = note.get_figure(root=True)
    assert figure is not None
    signs = int(width_in * _SIGNS_AN_INCH)
    note.set_text(wrapped(text, signs))
    excess = note.get_window_extent().width / figure.dpi / (width_in - 0.2)
    if excess > 1:
        # Names may be of wider signs than prose.
        note.set_text(wrapped(text, int(signs / excess)))


def height_in(figure: Figure, drawn: Text | Legend) -> float:
    """Gives the height of something that stands outside the axes."""
    return float(drawn.get_window_extent().height / figure.dpi)


def names_down(figure: Figure, ax: Axes, names: Sequence[str]) -> float:
    """Puts names along a vertical axis at 0, 1 and so on, the first on top, and gives the inches that the widest takes."""
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks(range(len(names)), [""] * len(names), fontsize=8)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)
    # Through a formatter, which sets the texts at each drawing; the labels keep that they are no mathematics.
    ax.yaxis.set_major_formatter(FixedFormatter([wrapped(plain(name), 44) for name in names]))
    ax.tick_params(axis="y", length=0)
    figure.draw_without_rendering()
    return max(label.get_window_extent().width for label in ax.get_yticklabels()) / figure.dpi


def cut(figure: Figure, width: float, height: float, text: str, beside: Legend | None = None) -> None:
    """Gives a figure its size: so many inches for the axes, and what legend and caption need besides."""
    if beside is not None:
        width += beside.get_window_extent().width / figure.dpi + 0.2
        height = max(height, height_in(figure, beside) + 0.4)
    height += height_in(figure, caption(figure, text, width)) if text else 0.0
    figure.set_size_inches(width, height)
