"""One column against another, a dot a row, and the Pareto front: by default published top-1 against multiply-accumulates.

`top1` is the row's own where it has such a column, else the figure that `published.imagenet_top1` chooses; `family` is the
row's own or the catalog's. All else is a column of the results; multiply-accumulates, FLOPs and activations are those of one
input, whatever the batch was. Rows of a model that lie at one place are one dot.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vitbench import results
from vitbench.drawing import labels, pareto
from vitbench.drawing.axes import (
    Scale,
    canvas,
    caption,
    fill,
    height_in,
    legend,
    log_steps,
    scale_of,
    set_scale,
    styles,
)
from vitbench.drawing.labels import Dot
from vitbench.drawing.pictures import GREY, plain
from vitbench.drawing.rows import PER_INPUT, check_columns, completed, counted, inputs, model_of, shared, with_result
from vitbench.drawing.rows import labels as labels_of
from vitbench.errors import BadInput
from vitbench.published import Figure as Published
from vitbench.records import Column, Table
from vitbench.units import quantity

_WIDTH_IN = 7.0
_HEIGHT_IN = 5.2
_DASHES = (0, (4, 2))
_MOST_GROUPS = 24
_MOST_LABELLED = 30
_AREA_PT2 = 34.0
_LARGEST_AREA_PT2 = 240.0
_SMALLEST_AREA_PT2 = 10.0
# A star fills less of its square than other signs.
_INK = {"*": 1.8}
# Areas in proportion can show this range; beyond it the smallest would vanish, and area follows the logarithm.
_AREA_RANGE = _LARGEST_AREA_PT2 / _SMALLEST_AREA_PT2


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One row.

    Attributes:
        size: what its area stands for; None where all are of one size.
        group: what its colour stands for.
        published: the figure that its `top1` is from, if it is from one and `top1` is drawn.
        on_front: whether no other beats it.
    """

    label: str
    x: float
    y: float
    size: float | None
    group: str
    published: Published | None
    on_front: bool

    @property
    def more_data(self) -> bool:
        """Whether its published top-1 is of a model trained on more than ImageNet-1k."""
        return self.published is not None and self.published.more_data


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """All that is drawn, and what is not."""

    points: Sequence[Point]
    left_out: Counter[str]
    rows: Sequence[Mapping[str, Any]]
    has_front: bool

    @property
    def front(self) -> list[Point]:
        """The points that no other beats, from the lowest x."""
        return sorted((point for point in self.points if point.on_front), key=lambda point: (point.x, point.y))


def plot(
    rows: Sequence[Mapping[str, Any]],
    *,
    x: str = "macs",
    y: str = "top1",
    size: str | None = None,
    color: str = "family",
) -> Figure:
    """Draws a dot a row, with the Pareto front where it is known which way both columns are better.

    Args:
        rows: flat, as `results.read` gives them.
        x: a column of numbers.
        y: the same; either may be `top1`, from the papers.
        size: a column of numbers that the dots' areas stand for.
        color: a column that their colours stand for; `family` may come from the catalog.

    Raises:
        BadInput: nothing can be drawn, or a cell is no number.
        UnknownName: no row has such a column.
    """
    cloud = _cloud(rows, x, y, size, color)
    points = cloud.points
    groups = styles(sorted({point.group for point in points}))
    if len(groups) > _MOST_GROUPS:
        raise BadInput(
            f"{len(groups)} values of {plain(color)} cannot be told apart by colour, {_MOST_GROUPS} at most: "
            "name another column with --color."
        )
    area = _Area([point.size for point in points if point.size is not None] or [1.0])
    figure = canvas(16, 14)
    ax = figure.subplots()
    # Large ones below, so that none is hidden.
    for point in sorted(points, key=lambda point: (-(point.size or 0), point.label)):
        shade, marker = groups[point.group]
        ax.scatter(
            [point.x],
            [point.y],
            s=area(point.size) * _INK.get(marker, 1),
            marker=marker,
            facecolors="none" if point.more_data else shade,
            edgecolors=shade if point.more_data else "white",
            linewidths=1.2 if point.more_data else 0.5,
            zorder=3 + point.on_front,
        )
    for which, column in (("x", x), ("y", y)):
        values = [getattr(point, which) for point in points]
        set_scale(ax, which, _scale(column, values), values)  # type: ignore[arg-type]  # x and y
    if len(cloud.front) > 1:
        ax.plot(
            [point.x for point in cloud.front],
            [point.y for point in cloud.front],
            color=GREY,
            linestyle=_DASHES,
            linewidth=1.1,
            zorder=2,
        )
    ax.grid(visible=True, color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _finish(figure, ax, cloud, _entries(cloud, groups, size, color, area), _sentences(cloud, x, y), area)
    return figure


def listing(
    rows: Sequence[Mapping[str, Any]],
    *,
    x: str = "macs",
    y: str = "top1",
    size: str | None = None,
    color: str = "family",
) -> Table:
    """Gives the Pareto front as a table, with the same arguments as `plot`."""
    cloud = _cloud(rows, x, y, size, color)
    x_scale, y_scale = (
        _scale(column, [getattr(point, which) for point in cloud.points]) for which, column in (("x", x), ("y", y))
    )
    front = [
        {
            "label": point.label,
            "x": x_scale.exact(point.x),
            "y": y_scale.exact(point.y),
            "group": point.group,
            "source": f"{point.published.data}; {point.published.source}" if point.published else "",
        }
        for point in cloud.front
    ]
    shown = [
        Column(heading="Pareto front", text=lambda row: str(row["label"])),
        Column(heading=x_scale.label, text=lambda row: str(row["x"]), numeric=True),
        Column(heading=y_scale.label, text=lambda row: str(row["y"]), numeric=True),
        Column(heading=plain(color), text=lambda row: str(row["group"])),
    ]
    if any(row["source"] for row in front):
        shown.append(Column(heading="Trained on; source of top-1", text=lambda row: str(row["source"]), folds=True))
    if cloud.has_front:
        return Table(rows=front, columns=shown)
    return Table(rows=[], columns=[], notes=[_NO_FRONT.format(x=plain(x), y=plain(y))])


_NO_FRONT = "No Pareto front: it is not known which way {x} and {y} are both better."


def _cloud(rows: Sequence[Mapping[str, Any]], x: str, y: str, size: str | None, color: str) -> Cloud:
    good, left_out = with_result(rows)
    if not good:
        raise BadInput(f"There is nothing to draw: {counted(left_out)}.")
    known = completed(good)
    check_columns([row for row, _ in known], [column for column in (x, y, size, color) if column is not None])
    kept: list[tuple[Mapping[str, Any], Published | None]] = []
    for row, figure in known:
        lacking = [column for column in (x, y, size) if column and results.number(row, column) is None]
        if lacking:
            left_out[_LACKING.get(lacking[0], f"without {lacking[0]}")] += 1
        else:
            kept.append((row, figure if "top1" in (x, y) else None))
    if not kept:
        raise BadInput(f"There is nothing to draw: {counted(left_out)}.")
    # Rows of one model that lie at one place, such as those of other batches or other files, are one dot.
    dots: dict[tuple[Any, ...], list[int]] = {}
    for place, (one, _) in enumerate(kept):
        at = (model_of(one), results.text(one, color), *(_value(one, column) for column in (x, y, size) if column))
        dots.setdefault(at, []).append(place)
    merged = [(_common([kept[place][0] for place in places]), kept[places[0]][1]) for places in dots.values()]
    names = labels_of([row for row, _ in merged])
    ways = pareto.direction(x), pareto.direction(y)
    values = [(at[2], at[3]) for at in dots]
    on_front = set(pareto.front(values, ways[0], ways[1])) if ways[0] and ways[1] else set()
    points = [
        Point(
            label=name,
            x=at[2],
            y=at[3],
            size=at[4] if size else None,
            group=plain(at[1]) or "not stated",
            published=figure,
            on_front=place in on_front,
        )
        for place, (at, (_, figure), name) in enumerate(zip(dots, merged, names, strict=True))
    ]
    if size and any(point.size is not None and point.size < 0 for point in points):
        raise BadInput(f"--size {plain(size)} has values below zero, which no area shows: name another column.")
    return Cloud(
        points=points,
        left_out=left_out,
        rows=[row for row, _ in kept],
        has_front=all(ways),
    )


def _value(row: Mapping[str, Any], column: str) -> float:
    return (results.number(row, column) or 0.0) / inputs(row, column)


def _common(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Gives what all rows agree on."""
    first, *rest = rows
    return {
        column: value
        for column, value in first.items()
        if all(quantity(column, value) == quantity(column, row.get(column)) for row in rest)
    }


def _scale(column: str, values: Sequence[float]) -> Scale:
    return scale_of(f"{column}_of_one_input" if column in PER_INPUT else column, values)


_LACKING = {"top1": "without a published ImageNet-1k top-1 of that model at that size"}


class _Area:
    """From a value to the area of its dot, in square points."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low, self.high = min(values), max(values)
        self.log = self.low > 0 and self.high / self.low > _AREA_RANGE

    def examples(self) -> list[float]:
        """Gives values for a legend: round ones, or the two ends."""
        steps = log_steps(self.low, self.high) if self.log else MaxNLocator(4).tick_values(0, self.high)
        inside = [float(step) for step in steps if max(self.low, 1e-300) <= step <= self.high]
        inside = inside[:: max(1, math.ceil(len(inside) / 4))]
        return inside if len(inside) > 1 else sorted({self.low, self.high})

    def __call__(self, value: float | None) -> float:
        if value is None:
            return _AREA_PT2
        if self.high == 0 or self.high == self.low:
            return _LARGEST_AREA_PT2 / 2
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
            return _SMALLEST_AREA_PT2 + part * (_LARGEST_AREA_PT2 - _SMALLEST_AREA_PT2)
        return max(_SMALLEST_AREA_PT2 / 2, _LARGEST_AREA_PT2 * value / self.high)


def _entries(
    cloud: Cloud, groups: Mapping[str, tuple[str, str]], size: str | None, color: str, area: _Area
) -> list[tuple[str, Line2D | None]]:
    """Gives the legend: the colours, what the line and the fills mean, and the sizes."""

    def dot(shade: str, marker: str, points2: float, *, hollow: bool = False) -> Line2D:
        fill = "white" if hollow else shade
        return Line2D(
            [],
            [],
            linestyle="none",
            marker=marker,
            color=shade,
            markerfacecolor=fill,
            markersize=math.sqrt(points2 * _INK.get(marker, 1)),
        )

    found: list[tuple[str, Line2D | None]] = []
    if len(groups) > 1:
        found.append((color, None))
        found += [(group, dot(shade, marker, _AREA_PT2)) for group, (shade, marker) in groups.items()]
    if size:
        scale = _scale(size, [point.size for point in cloud.points if point.size is not None])
        found.append((scale.label, None))
        found += [(scale.text(float(f"{one / scale.unit:.3g}")), dot(GREY, "o", area(one))) for one in area.examples()]
    if len(cloud.front) > 1:
        found.append(("Pareto front", Line2D([], [], color=GREY, linestyle=_DASHES, linewidth=1.1)))
    if any(point.more_data for point in cloud.points):
        found.append(("hollow: more data than ImageNet-1k", dot(GREY, "o", _AREA_PT2, hollow=True)))
    return found


def _finish(
    figure: Figure, ax: Axes, cloud: Cloud, entries: Sequence[tuple[str, Line2D | None]], sentences: str, area: _Area
) -> None:
    """Puts the legend beside and the caption below, cuts the figure to fit, and then, all places being final, sets labels."""
    width, height = _WIDTH_IN, _HEIGHT_IN
    # The ends of the front, the cheapest and the best, before what lies between.
    front = [point.label for point in cloud.front]
    turn = {label: min(place, len(front) - 1 - place) for place, label in enumerate(front)}
    if entries:
        beside = legend(figure, entries)
        width += beside.get_window_extent().width / figure.dpi + 0.2
        height = max(height, height_in(figure, beside) + 0.4)
    all_labelled = len(cloud.points) <= _MOST_LABELLED
    if not all_labelled and cloud.front:
        sentences += " Only the front is labelled."
    below = caption(figure, f"{sentences} {_no_room(len(cloud.points))}", width)
    figure.set_size_inches(width, height + height_in(figure, below))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    without = labels.place(
        ax,
        [
            Dot(
                x=point.x,
                y=point.y,
                radius_pt=math.sqrt(area(point.size)) / 2,
                text=point.label if all_labelled or point.on_front else "",
            )
            for point in sorted(
                cloud.points,
                key=lambda point: (not point.on_front, turn.get(point.label, 0), point.x, point.y, point.label),
            )
        ],
        rules=[(point.x, point.y) for point in cloud.front],
    )
    fill(below, f"{sentences} {_no_room(len(without))}", width)


def _no_room(count: int) -> str:
    return f"{count} {'dot has' if count == 1 else 'dots have'} no label, for want of room." if count else ""


def _sentences(cloud: Cloud, x: str, y: str) -> str:
    """Gives the caption: what all rows share, where the top-1 is from, the front by name, and what is left out."""
    found = []
    if conditions := shared(cloud.rows):
        found.append(f"{conditions[:1].upper()}{conditions[1:]}.")
    if not cloud.has_front:
        found.append(_NO_FRONT.format(x=plain(x), y=plain(y)))
    elif len(cloud.points) > 1:
        found.append(f"Pareto front: {', '.join(point.label for point in cloud.front)}.")
    used = [point.published for point in cloud.points if point.published is not None]
    if used:
        sources = Counter(plain(figure.cited) for figure in used)
        found.append(
            "Top-1 as published for the input size, trained on ImageNet-1k alone where there is such a figure, the model's "
            "own paper before others, of others that with most of the family, from: "
            + "; ".join(f"{source} ({number})" for source, number in sorted(sources.items()))
            + "."
        )
    if cloud.left_out:
        found.append(f"Left out: {counted(cloud.left_out)}.")
    return " ".join(found)
