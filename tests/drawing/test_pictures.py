"""Colours, tiles and files of pictures."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from vitbench.drawing import pictures


@pytest.mark.parametrize("ending", pictures.TIMELESS)
def test_the_same_numbers_make_the_same_file(ending: str) -> None:
    def figure() -> Figure:
        made = Figure(figsize=(2, 2))
        made.subplots().plot([1, 2, 3])
        return made

    assert pictures.rendered(figure(), ending) == pictures.rendered(figure(), ending)


def test_tiles_lie_in_reading_order_with_gaps_between() -> None:
    whole = pictures.mosaic([np.full((2, 3), float(place)) for place in range(3)], 2)
    assert whole.shape == (5, 7)
    assert (whole[:2, :3] == 0).all()
    assert (whole[:2, 4:] == 1).all()
    assert (whole[3:, :3] == 2).all()
    assert np.isnan(whole[2]).all()
    assert np.isnan(whole[3:, 4:]).all()
    assert pictures.mosaic([np.zeros((2, 2, 3))], 4, gap=2).shape == (2, 14, 3)


def test_a_text_from_outside_becomes_one_line() -> None:
    assert pictures.plain("a\nb\x1b[31m c") == "a b[31m c"
    assert pictures.wrapped("one two three", 7) == "one two\nthree"


def test_dots_stand_over_the_depth_of_their_layer_and_the_first_heads_are_named() -> None:
    ax = Figure().subplots()
    pictures.dots_by_head(ax, [(0, head, float(head)) for head in range(6)] + [(2, 0, 5.0)], {0: 3.0, 2: 4.0})
    dots = [line for line in ax.get_lines() if line.get_marker() == "."]
    assert [list(np.asarray(line.get_xdata())) for line in dots] == [[0, 2], [0], [0], [0], [0], [0]]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["Head 1", "Head 2", "Head 3", "..."]
    grey = [line for line in ax.get_lines() if line.get_marker() != "."]
    assert [list(np.asarray(line.get_ydata())) for line in grey] == [[3.0, 3.0], [4.0, 4.0]]
    pictures.dots_by_head(Figure().subplots(), [], {})
