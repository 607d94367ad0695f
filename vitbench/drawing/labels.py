"""Labels beside points, none over another label, over a point or outside the axes.

Each label, in the order given, takes the nearest free place around its point; one without a free place is left out and
reported. The same figure gives the same places: nothing is drawn at random, and nothing depends on time. No library does this:
adjustText, the best known, stops by the clock, so that the same figure may differ from run to run, and does not promise that
labels lie apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from vitbench.drawing.pictures import GREY, plain

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
        lead = _leaders(centre, radius, boxes[-1:])
        if math.dist(lead[0, :2], lead[0, 2:]) > _LED_FROM_PT * pixels:
            leaders = np.vstack([leaders, lead])
            ends: Array = np.asarray(ax.transData.inverted().transform(lead.reshape(2, 2)))
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

        First of places off the ruled lines whose leaders pass no other dot, then of those whose leaders pass one, then also of
        those on the lines, and as a last resort of those whose leaders pass a label.
        """
        ways = self._ways(centre)
        # Along each way the label's box begins where its border meets it.
        to_border = (half / np.maximum(np.abs(ways), 1e-9)).min(axis=1)
        steps = radius + np.array(_DISTANCES_PT)[:, None] * pixels + to_border
        middles: Array = centre + (steps[..., None] * ways).reshape(-1, 2)
        boxes: Array = np.hstack([middles - half, middles + half])
        leads = _leaders(centre, radius, boxes)
        free = (boxes[:, :2] >= self.frame[:2]).all(axis=1) & (boxes[:, 2:] <= self.frame[2:]).all(axis=1)
        starts, ends = (
            np.maximum(boxes[:, None, :2], self.boxes[:, :2]),
            np.minimum(boxes[:, None, 2:], self.boxes[:, 2:]),
        )
        free &= np.all(np.any(starts >= ends, axis=2), axis=1)
        nearest = np.clip(self.centres, boxes[:, None, :2], boxes[:, None, 2:])
        free &= (_lengths(self.centres - nearest) >= self.radii).all(axis=1)
        # A leader through another label, or through another leader, would be taken for its.
        free &= ~_meet(self.leaders, boxes).any(axis=0) & ~_cross(leads, self.leaders).any(axis=1)
        clear = free & ~_meet(leads, self.boxes).any(axis=1)
        off_rules = ~_meet(self.ruled, boxes).any(axis=0)
        for wanted in (clear & off_rules & self._passes_none(centre, radius, leads), clear & off_rules, clear, free):
            if wanted.any():
                return np.asarray(middles[int(wanted.argmax())])
        return None

    def _ways(self, centre: Array) -> Array:
        """Gives unit vectors, first that which leads away from the dots around, where room is likeliest."""
        angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
        ways: Array = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        apart = centre - self.centres
        distances = _lengths(apart)
        near = (distances > 0) & (distances < _CROWDS_PX)
        away = (apart[near] / distances[near, None] ** 2).sum(axis=0)
        # Rounded, so that of two equal ways the first is taken on every machine: alone, the one to the right.
        return ways[np.argsort(-np.round(ways @ away, 9), kind="stable")]

    def _passes_none(self, centre: Array, radius: float, leads: Array) -> NDArray[np.bool_]:
        """Tells which leaders pass no dot but their own, and those that lie on it, which are passed anyhow."""
        others = _lengths(self.centres - centre) > radius
        start, along = leads[:, None, :2], leads[:, None, 2:] - leads[:, None, :2]
        part = ((self.centres - start) * along).sum(axis=2) / np.maximum((along**2).sum(axis=2), 1e-9)
        nearest = start + np.clip(part, 0, 1)[..., None] * along
        return np.asarray(((_lengths(self.centres - nearest) >= self.radii) | ~others).all(axis=1))


def _lengths(vectors: Array) -> Array:
    return np.asarray(np.hypot(vectors[..., 0], vectors[..., 1]))


def _leaders(centre: Array, radius: float, boxes: Array) -> Array:
    """Gives the line from a dot's rim to the nearest place on each box."""
    ends = np.clip(centre, boxes[:, :2], boxes[:, 2:])
    part = np.minimum(1, radius / np.maximum(_lengths(ends - centre), 1e-9))
    return np.hstack([centre + (ends - centre) * part[:, None], ends])


def _meet(lines: Array, boxes: Array) -> NDArray[np.bool_]:
    """Tells which lines (first axis) and boxes meet: clipped to the box, some of the line is left (Liang and Barsky)."""
    start, along = lines[:, None, :2], lines[:, None, 2:] - lines[:, None, :2]
    # Never zero, so that a line along an axis needs no case of its own.
    along = np.where(np.abs(along) < 1e-9, 1e-9, along)
    first, second = (boxes[:, :2] - start) / along, (boxes[:, 2:] - start) / along
    enters = np.maximum(np.minimum(first, second).max(axis=2), 0)
    leaves = np.minimum(np.maximum(first, second).min(axis=2), 1)
    return np.asarray(enters < leaves)


def _cross(some: Array, others: Array) -> NDArray[np.bool_]:
    """Tells which lines (first axis) cross which others: the ends of either lie on two sides of the other."""

    def sides(lines: Array, ends: Array) -> Array:
        start, along = lines[..., :2], lines[..., 2:] - lines[..., :2]
        return np.asarray(
            along[..., 0] * (ends[..., 1] - start[..., 1]) - along[..., 1] * (ends[..., 0] - start[..., 0])
        )

    one, other = some[:, None], others[None]
    apart = sides(one, other[..., :2]) * sides(one, other[..., 2:]) < 0
    parted = sides(other, one[..., :2]) * sides(other, one[..., 2:]) < 0
    return np.asarray(apart & parted)
