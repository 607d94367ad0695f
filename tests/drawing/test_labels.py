"""Labels: none over another, over a dot or outside."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from vitbench.drawing import labels
from vitbench.drawing.labels import Dot


def crowd(count: int, seed: int = 0) -> list[Dot]:
    generator = np.random.default_rng(seed)
    return [
        Dot(x=float(x), y=float(y), radius_pt=3, text=f"model_{place}")
        for place, (x, y) in enumerate(generator.normal(size=(count, 2)))
    ]


def placed(dots: list[Dot]) -> tuple[Axes, list[str], dict[str, Bbox]]:
    figure = Figure(figsize=(7, 5))
    ax = figure.subplots()
    ax.set_xlim(-3.5, 3.5)
    ax.set_ylim(-3.5, 3.5)
    without = labels.place(ax, dots)
    found = {text.get_text(): text.get_window_extent() for text in ax.texts if isinstance(text, Annotation)}
    return ax, without, found


@pytest.mark.parametrize("count", [1, 30, 150])
def test_no_label_lies_over_another_over_a_dot_or_outside(count: int) -> None:
    dots = crowd(count)
    ax, without, found = placed(dots)
    assert sorted([*without, *found]) == sorted(dot.text for dot in dots)
    # Where dots crowd, a line may pass another's label, as a last resort, but never another line.
    assert len(found) >= {1: 1, 30: 30, 150: 75}[count]
    for one, other in itertools.combinations(found.values(), 2):
        assert not one.overlaps(other)
    frame = ax.get_window_extent()
    radius = 3 * 100 / 72
    for box in found.values():
        assert frame.x0 <= box.x0
        assert frame.y0 <= box.y0
        assert box.x1 <= frame.x1
        assert box.y1 <= frame.y1
        for dot in dots:
            x, y = ax.transData.transform((dot.x, dot.y))
            nearest = np.clip([x, y], [box.x0, box.y0], [box.x1, box.y1])
            assert np.hypot(*(nearest - [x, y])) >= radius - 1e-6


def test_the_same_dots_get_the_same_places() -> None:
    one, other = placed(crowd(80, seed=1)), placed(crowd(80, seed=1))
    assert one[1] == other[1]
    assert {name: box.bounds for name, box in one[2].items()} == {name: box.bounds for name, box in other[2].items()}


def test_dots_on_one_spot_have_a_label_each_and_a_line_to_it() -> None:
    ax, without, found = placed([Dot(x=0, y=0, radius_pt=3, text=f"model_{place}") for place in range(14)])
    assert (len(found), without) == (14, [])
    assert ax.get_lines()


def test_a_label_keeps_off_the_lines_and_off_what_stands_there() -> None:
    """A rule along the right, the left and above: the label goes below."""
    figure = Figure(figsize=(4, 4))
    ax = figure.subplots()
    ax.set_xlim(-1, 1)
    ax.set_ylim(-1, 1)
    labels.place(
        ax,
        [Dot(x=0, y=0, radius_pt=3, text="name")],
        rules=[(-1.0, 0.05), (1.0, 0.05), (1.0, 0.0), (-1.0, 0.0)],
    )
    (text,) = ax.texts
    below = ax.transData.transform((0, 0))[1]
    assert text.get_window_extent().y1 < below


def test_a_name_too_long_for_the_axes_is_given_back() -> None:
    _, without, found = placed([Dot(x=0, y=0, radius_pt=3, text="n" * 300), Dot(x=1, y=1, radius_pt=3, text="$\\bad{")])
    assert without == ["n" * 300]
    assert list(found) == ["$\\bad{"]
