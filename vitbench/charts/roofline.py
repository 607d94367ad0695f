"""Achieved FLOP/s over FLOPs a byte, under the machine's measured peaks: models, or the blocks of one.

Source: Williams, Waterman and Patterson, Roofline: an insightful visual performance model for multicore architectures (2009).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from vitbench import results
from vitbench.drawing import labels
from vitbench.drawing import rows as flat
from vitbench.drawing.axes import Scale, canvas, caption, fill, height_in, legend, set_scale
from vitbench.drawing.labels import Dot
from vitbench.drawing.pictures import COLORS, GREY, plain
from vitbench.errors import BadInput
from vitbench.units import count, milliseconds

_WIDTH_IN = 7.0
_HEIGHT_IN = 4.6
_AREA_PT2 = 34.0
_MOST_AREA_PT2 = 600.0
_LEAST_AREA_PT2 = 10.0

# What has a roof of its own; the rest of a setting moves points, not roofs.
_OF_THE_ROOF = ("machine", "device", "dtype", "threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """What a machine can do at most in one dtype and with so many threads: the most that any of its rows has seen."""

    name: str
    color: str
    peak_flops_per_s: float
    bandwidth_bytes_per_s: float

    @property
    def ridge(self) -> float:
        """FLOPs a byte from which on products are the limit, and no longer memory."""
        return self.peak_flops_per_s / self.bandwidth_bytes_per_s

    def over(self, intensity: float) -> float:
        """Gives the FLOP/s that can be had at most at so many FLOPs a byte."""
        return min(self.peak_flops_per_s, intensity * self.bandwidth_bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A model or a block.

    Attributes:
        text: beside the point; empty where another of the same says it.
        whole: whether it is the model among its blocks.
    """

    text: str
    intensity: float
    flops_per_s: float
    roof: Roof
    area_pt2: float = _AREA_PT2
    whole: bool = False


def plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws a point a row; of a single row, the blocks too, if it has them: they are in JSON alone.

    Args:
        rows: flat, as `results.read` gives them, of `vitbench roofline`.

    Raises:
        BadInput: no row has a place on a roofline, or a cell cannot be read, or there are too many roofs.
    """
    good, left_out = flat.with_result(rows)
    drawn = [row for row in good if results.number(row, "intensity_flops_per_byte") is not None]
    if not drawn:
        if left_out:
            raise BadInput(f"There is nothing to draw: {flat.counted(left_out)}.")
        raise BadInput("No row has intensity_flops_per_byte, which `vitbench roofline` writes.")
    roofs = _roofs(drawn)
    conditions = flat.shared(drawn)
    sentences = [f"{conditions[:1].upper()}{conditions[1:]}."] if conditions else []
    blocks = _blocks(drawn[0]) if len(drawn) == 1 else []
    if blocks:
        points, more = _of_blocks(drawn[0], blocks, roofs[0])
        sentences.append(more)
    else:
        points = _of_models(drawn, roofs)
    sentences.append(
        "In percent: share of the roof, which is the fastest product of matrices and the fastest copy measured. Bytes are "
        "counted as if nothing stayed in a cache: what did may lie above the slope."
    )
    disturbed = sum(results.text(row, "quiet") != "" and not results.flag(row, "quiet") for row in drawn)
    if disturbed:
        sentences.append(f"Other work on the machine disturbed {disturbed} of {len(drawn)} measurements.")
    if left_out:
        sentences.append(f"Left out: {flat.counted(left_out)}.")
    return _drawn(points, roofs, " ".join(sentences))


def _roofs(drawn: Sequence[Mapping[str, Any]]) -> list[Roof]:
    """Gives the roofs, in the order in which rows first have them."""
    of_key: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in drawn:
        of_key.setdefault(_key(row), []).append(row)
    if len(of_key) > len(COLORS):
        raise BadInput(
            f"{len(of_key)} roofs cannot be told apart, {len(COLORS)} at most: give files of fewer machines."
        )
    # The machine's name says more than cuda:0.
    parts = [[key[0] or key[1], *key[2:]] for key in of_key]
    telling = [place for place in range(len(parts[0])) if len({part[place] for part in parts}) > 1]
    return [
        Roof(
            name=plain(", ".join(filter(None, (part[place] for place in telling)))),
            color=color,
            peak_flops_per_s=max(_positive(row, "peak_flops_per_s") for row in own),
            bandwidth_bytes_per_s=max(_positive(row, "bandwidth_bytes_per_s") for row in own),
        )
        for part, own, color in zip(parts, of_key.values(), COLORS, strict=False)
    ]


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(flat.CONDITIONS[name](row) for name in _OF_THE_ROOF)


def _positive(row: Mapping[str, Any], column: str) -> float:
    value = results.number(row, column)
    if value is None or value <= 0:
        raise results.wrong(row, column, "a number above zero")
    return value


def _of_models(drawn: Sequence[Mapping[str, Any]], roofs: Sequence[Roof]) -> list[Point]:
    of_key = dict(zip(dict.fromkeys(_key(row) for row in drawn), roofs, strict=True))
    return [
        _point(
            name, _positive(row, "intensity_flops_per_byte"), _positive(row, "achieved_flops_per_s"), of_key[_key(row)]
        )
        for row, name in zip(drawn, flat.labels(drawn), strict=True)
    ]


def _point(name: str, intensity: float, flops_per_s: float, roof: Roof, **others: Any) -> Point:
    share = flops_per_s / roof.over(intensity)
    text = f"{name}, {100 * share:.0f} %" if name else ""
    return Point(text=text, intensity=intensity, flops_per_s=flops_per_s, roof=roof, **others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What a row says of one of its blocks."""

    name: str
    flops: float
    traffic_bytes: float
    seconds: float


def _blocks(row: Mapping[str, Any]) -> list[Block]:
    """Gives the blocks of a row; none where it has no such column, as in CSV."""
    found = row.get("blocks")
    if found in (None, ""):
        return []
    expected = "a list with path, FLOPs, bytes and seconds of each block"
    if not isinstance(found, list) or not all(isinstance(one, list) and len(one) == 4 for one in found):
        raise results.wrong(row, "blocks", expected)
    for name, *numbers in found:
        good = (isinstance(one, int | float) and math.isfinite(one) and one >= 0 for one in numbers)
        if not isinstance(name, str) or not all(good):
            raise results.wrong(row, "blocks", expected)
    return [
        Block(name=plain(name) or "(itself)", flops=flops, traffic_bytes=traffic, seconds=seconds)
        for name, flops, traffic, seconds in found
    ]


def _of_blocks(row: Mapping[str, Any], blocks: Sequence[Block], roof: Roof) -> tuple[list[Point], str]:
    """Gives the model, its blocks, and a sentence on those that no logarithm shows."""
    whole = sum(block.seconds for block in blocks) or 1.0
    model = _point(
        flat.model_of(row),
        _positive(row, "intensity_flops_per_byte"),
        _positive(row, "achieved_flops_per_s"),
        roof,
        whole=True,
        area_pt2=2 * _AREA_PT2,
    )
    points = [model]
    shown = [block for block in blocks if block.flops and block.traffic_bytes and block.seconds]
    # Blocks that do the same, one after another, share a label.
    for _, found in groupby(shown, key=lambda block: (block.flops, block.traffic_bytes)):
        alike = list(found)
        name = alike[0].name if len(alike) == 1 else f"{alike[0].name} to {alike[-1].name}"
        middle = sorted(alike, key=lambda block: block.seconds)[len(alike) // 2]
        points += [
            _point(
                name if block is middle else "",
                block.flops / block.traffic_bytes,
                block.flops / block.seconds,
                roof,
                area_pt2=max(_LEAST_AREA_PT2, _MOST_AREA_PT2 * block.seconds / whole),
            )
            for block in alike
        ]
    others = [block for block in blocks if block not in shown]
    said = f"Star: the model; dots: its blocks, {milliseconds(1e3 * whole)} in all; their areas: share of the time."
    if others:
        share = sum(block.seconds for block in others) / whole
        names = ", ".join(block.name for block in others)
        said += f" Without products, and not drawn: {names} ({100 * share:.1f} % of the time)."
    return points, said


def _drawn(points: Sequence[Point], roofs: Sequence[Roof], sentences: str) -> Figure:
    figure = canvas(16, 14)
    ax = figure.subplots()
    for point in points:
        ax.scatter(
            [point.intensity],
            [point.flops_per_s],
            s=point.area_pt2,
            marker="*" if point.whole else "o",
            color="black" if point.whole else point.roof.color,
            edgecolors="white",
            linewidths=0.5,
            zorder=5 if point.whole else 4,
        )
    _scale(ax, points, roofs)
    low, high = ax.get_xlim()
    for roof in roofs:
        xs = [low, roof.ridge, high]
        color = roof.color if len(roofs) > 1 else "black"
        ax.plot(xs, [roof.over(x) for x in xs], color=color, linewidth=1.4, zorder=3)
        ax.plot([roof.ridge] * 2, [ax.get_ylim()[0], roof.peak_flops_per_s], color=color, linewidth=0.8, linestyle=":")
    ax.grid(visible=True, color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    width, height = _WIDTH_IN, _HEIGHT_IN
    if len(roofs) > 1:
        signs = [Line2D([], [], color=roof.color, marker="o", linewidth=1.4) for roof in roofs]
        named = [f"{roof.name}: {_numbers(roof)}" for roof in roofs]
        beside = legend(figure, list(zip(named, signs, strict=True)))
        width += beside.get_window_extent().width / figure.dpi + 0.2
    below = caption(figure, sentences, width)
    figure.set_size_inches(width, height + height_in(figure, below))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    taken = _covered(ax, _said_at(ax, roofs[0])) if len(roofs) == 1 else []
    dots = [
        Dot(x=point.intensity, y=point.flops_per_s, radius_pt=math.sqrt(point.area_pt2) / 2, text=point.text)
        for point in points
    ]
    first, floor = roofs[0], ax.get_ylim()[0]
    corner = (first.ridge, first.peak_flops_per_s)
    lines = [(low, first.over(low)), corner, (first.ridge, floor), corner, (high, first.over(high))]
    without = labels.place(ax, [*taken, *dots], rules=lines)
    if without:
        fill(below, f"{sentences} Without a label, for want of room: {len(without)}.", width)
    return figure


def _numbers(roof: Roof) -> str:
    return (
        f"{count(roof.peak_flops_per_s)}FLOP/s, {count(roof.bandwidth_bytes_per_s)}B/s, ridge at "
        f"{roof.ridge:.3g} FLOP/byte"
    )


def _scale(ax: Axes, points: Sequence[Point], roofs: Sequence[Roof]) -> None:
    across = [point.intensity for point in points] + [roof.ridge for roof in roofs]
    up = [point.flops_per_s for point in points] + [roof.peak_flops_per_s for roof in roofs]
    size, prefix = next(((size, name) for size, name in _PREFIXES if max(up) >= size), (1.0, ""))
    x = Scale(label="Arithmetic intensity (FLOP/byte)", unit=1.0, log=True, text=_tick)
    y = Scale(label=f"Achieved FLOP/s ({prefix})" if prefix else "Achieved FLOP/s", unit=size, log=True, text=_tick)
    set_scale(ax, "x", x, [min(across) / 2, max(across) * 2])
    set_scale(ax, "y", y, [min(up) / 2, max(up) * 1.6])


_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _said_at(ax: Axes, roof: Roof) -> list[Text]:
    """Writes what the only roof's numbers are beside its lines."""
    return [
        ax.annotate(
            text,
            (roof.ridge, roof.peak_flops_per_s),
            offset,
            textcoords="offset points",
            ha=side,
            va="bottom",
            fontsize=7.5,
            color=GREY,
        )
        for text, offset, side in (
            (f"{count(roof.bandwidth_bytes_per_s)}B/s", (-16, -4), "right"),
            (f"{count(roof.peak_flops_per_s)}FLOP/s, ridge at {roof.ridge:.3g} FLOP/byte", (0, 4), "left"),
        )
    ]


def _covered(ax: Axes, texts: Sequence[Text]) -> list[Dot]:
    """Gives dots that cover texts, so that no label is put over them."""
    found = []
    back = ax.transData.inverted()
    for text in texts:
        box = text.get_window_extent()
        radius = box.height / 2
        figure = ax.get_figure(root=True)
        assert figure is not None
        for place in range(int(box.width / radius) + 1):
            x, y = back.transform((min(box.x0 + place * radius, box.x1), box.y0 + radius))
            found.append(Dot(x=float(x), y=float(y), radius_pt=radius * 72 / figure.dpi))
    return found
