"""Labels beside points, none over another label, over a point or outside the axes.

Each label, in the order given, takes the nearest free place around its point; one without a free place is left out and
reported. The same figure gives the same places: nothing is drawn at random, and nothing depends on time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from vitbench.pictures import GREY, plain

Array = NDArray[np.float64]

_FONT_SIZE = 7.0
# From the rim of the point to the border of the label, tried from the first to the last.
_DISTANCES_PT = (1.5, 5.0, 9.0, 14.0, 20.0, 28.0, 36.0, 48.0, 60.0, 76.0, 95.0)
# A label as far as this has a line that leads to its point.
_LED_FROM_PT = 4.0
_DIRECTIONS = 24
# A dot as far as this does not crowd another.
_CROWDS_PX = 150.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point of a chart.

    Attributes:
        x, y: in the axes' data.
        radius_pt: of its marker, in points.
        text: its label; empty for none.
    """

    x: float
    y: float
    radius_pt: float
    text: str = ""


def place(ax: Axes, dots: Sequence[Dot], *, rules: Sequence[tuple[float, float]] = ()) -> list[str]:
    """Puts labels beside points.

    Args:
        ax: axes whose place in the figure and limits are final.
        dots: all points that a label must not hide, those with a text in the order of their importance.
        rules: corners of a line, in the axes' data, that labels keep off while there is room elsewhere.

    Returns:
        The texts for which there was no room.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    pixels = figure.dpi / 72
    centres: Array = np.asarray(ax.transData.transform([(dot.x, dot.y) for dot in dots]))
    radii: Array = np.array([dot.radius_pt * pixels for dot in dots])
    corners: Array = np.asarray(ax.transData.transform(rules)) if len(rules) > 1 else np.empty((0, 2))
    ruled: Array = np.hstack([corners[:-1], corners[1:]])
    leaders: Array = np.empty((0, 4))
    boxes: Array = np.empty((0, 4))
    without: list[str] = []
    for dot, centre, radius in zip(dots, centres, radii, strict=True):
        if not dot.text:
            continue
        note = ax.annotate(
            plain(dot.text),
            (dot.x, dot.y),
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_FONT_SIZE,
            color="#222222",
            parse_math=False,
            zorder=6,
        )
        extent = note.get_window_extent()
        half: Array = np.array([extent.width, extent.height]) / 2 + pixels
        free = _Free(
            frame=np.asarray(ax.get_window_extent().extents),
            centres=centres,
            radii=radii,
            boxes=boxes,
            leaders=leaders,
            ruled=ruled,
        )
        found = free.middle(centre, radius, half, pixels)
        if found is None:
            note.remove()
            without.append(note.get_text())
            continue
        x_pt, y_pt = (found - centre) / pixels
        note.set_position((float(x_pt), float(y_pt)))
        boxes = np.vstack([boxes, np.hstack([found - half, found + half])])
        start, end = _leader(centre, radius, found, half)
        if math.dist(start, end) > _LED_FROM_PT * pixels:
            leaders = np.vstack([leaders, np.hstack([start, end])])
            ends: Array = np.asarray(ax.transData.inverted().transform([start, end]))
            ax.add_line(Line2D(ends[:, 0], ends[:, 1], color=GREY, linewidth=0.5, zorder=5))
    return without


@dataclass(frozen=True, slots=True, kw_only=True)
class _Free:
    """What a label must keep off, in pixels: boxes are left, bottom, right, top; lines two corners each."""

    frame: Array
    centres: Array
    radii: Array
    boxes: Array
    leaders: Array
    ruled: Array

    def middle(self, centre: Array, radius: float, half: Array, pixels: float) -> Array | None:
        """Gives the middle of the nearest free place for a label of that half width and height, or None.

        First of places off the ruled lines whose leaders pass no other dot, then also of those on the lines, then of all.
        """
        ways = self._ways(centre)
        off_rules = np.vstack([self.leaders, self.ruled])
        for lines, dots in ((off_rules, True), (self.leaders, True), (self.leaders, False)):
            for distance in _DISTANCES_PT:
                for way in ways:
                    # Along this way the label's box begins where its border meets it.
                    to_border = min(
                        (size / abs(part) for size, part in zip(half, way, strict=True) if abs(part) > 1e-9),
                        default=0.0,
                    )
                    middle: Array = centre + way * (radius + distance * pixels + to_border)
                    if self._is_free(middle, half, centre, radius, lines, dots):
                        return middle
        return None

    def _ways(self, centre: Array) -> Array:
        """Gives unit vectors, first that which leads away from the dots around, where room is likeliest."""
        angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
        ways: Array = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        apart = centre - self.centres
        distances = np.hypot(*apart.T)
        near = (distances > 0) & (distances < _CROWDS_PX)
        away = (apart[near] / distances[near, None] ** 2).sum(axis=0)
        # Rounded, so that of two equal ways the first is taken on every machine: alone, the one to the right.
        return ways[np.argsort(-np.round(ways @ away, 9), kind="stable")]

    def _is_free(self, middle: Array, half: Array, centre: Array, radius: float, lines: Array, dots: bool) -> bool:
        box: Array = np.hstack([middle - half, middle + half])
        if (box[:2] < self.frame[:2]).any() or (box[2:] > self.frame[2:]).any():
            return False
        if ((box[:2] < self.boxes[:, 2:]) & (box[2:] > self.boxes[:, :2])).all(axis=1).any():
            return False
        nearest = np.clip(self.centres, box[:2], box[2:])
        if (np.hypot(*(self.centres - nearest).T) < self.radii).any():
            return False
        if _crosses(lines, box[None]).any():
            return False
        start, end = _leader(centre, radius, middle, half)
        own: Array = np.hstack([start, end])[None]
        if dots:
            along = end - start
            part = np.clip((self.centres - start) @ along / max(float(along @ along), 1e-9), 0, 1)
            passed = np.hypot(*(self.centres - start - part[:, None] * along).T) < self.radii
            # One that lies on this dot is passed anyhow.
            if (passed & (np.hypot(*(self.centres - centre).T) > radius)).any():
                return False
        # A leader through another label, or through another leader, would be taken for its.
        return not _crosses(own, self.boxes).any() and not _cross(own, self.leaders).any()


def _leader(centre: Array, radius: float, middle: Array, half: Array) -> tuple[Array, Array]:
    """Gives the line from a point's rim to the nearest place on a label's box."""
    end: Array = np.clip(centre, middle - half, middle + half)
    length = math.dist(centre, end)
    start: Array = centre + (end - centre) * (min(1.0, radius / length) if length else 0.0)
    return start, end


def _crosses(lines: Array, boxes: Array) -> NDArray[np.bool_]:
    """Tells which pairs of a line and a box meet: clipped to the box, something of the line is left (Liang and Barsky)."""
    start, along = lines[:, None, :2], lines[:, None, 2:] - lines[:, None, :2]
    # Never zero, so that a line along an axis needs no case of its own.
    along = np.where(np.abs(along) < 1e-9, 1e-9, along)
    first, second = (boxes[None, :, :2] - start) / along, (boxes[None, :, 2:] - start) / along
    enters = np.maximum(np.minimum(first, second).max(axis=2), 0)
    leaves = np.minimum(np.maximum(first, second).min(axis=2), 1)
    return np.asarray(enters < leaves)


def _cross(one: Array, others: Array) -> NDArray[np.bool_]:
    """Tells which of the other lines cross one: the ends of either lie on two sides of the other."""

    def side(line: Array, x: Array, y: Array) -> Array:
        found: Array = (line[:, 2] - line[:, 0]) * (y - line[:, 1]) - (line[:, 3] - line[:, 1]) * (x - line[:, 0])
        return found

    apart = side(one, others[:, 0], others[:, 1]) * side(one, others[:, 2], others[:, 3]) < 0
    parted = side(others, one[:, 0], one[:, 1]) * side(others, one[:, 2], one[:, 3]) < 0
    return np.asarray(apart & parted)
