"""ViT's Fig. 5: the paper's own dots, and those of a user."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitbench.charts import fig5
from vitbench.drawing import pictures
from vitbench.errors import BadInput


def dots(ax: Axes) -> set[tuple[float, float]]:
    return {
        (float(x), float(y))
        for line in ax.get_lines()
        if line.get_marker() != "None"
        for x, y in np.asarray(line.get_xydata())
    }


def kinds(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def said(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def test_without_results_it_is_the_papers_table_6() -> None:
    figure = fig5.plot()
    (ax,) = figure.axes
    found = dots(ax)
    # ViT paper (arXiv 2010.11929), Table 6: exaFLOPs and ImageNet of ViT-B/32, ViT-H/14, ResNet50x1, R50x1+ViT-L/16 (14 ep.).
    assert {(55, 80.73), (4262, 88.08), (50, 77.54), (1668, 87.12)} < found
    assert len(found) == 18
    assert kinds(figure) == ["Transformer (ViT)", "ResNet (BiT)", "Hybrid"]
    assert {text.get_text() for text in ax.texts} >= {"ViT-H/14", "ViT-L/16, 14 ep.", "ResNet50x1"}
    assert (ax.get_xscale(), ax.get_title(loc="left")) == ("log", "ImageNet")
    assert "Table 6" in said(figure)
    assert "not drawn: published.csv has no such figures" in said(figure)
    assert pictures.rendered(figure, ".png") == pictures.rendered(fig5.plot(), ".png")


def test_compute_is_stated_or_six_times_macs_images_and_epochs() -> None:
    """ViT-B/16 as the paper counts: 6 x 17.6e9 x 303e6 x 7 = 223.97 exaFLOPs; Table 6 prints 224."""
    figure = fig5.plot(
        [
            {"model": "vit_b16", "top1": "84.15", "pretrain_epochs": "7", "pretrain_images": "303e6"},
            {"model": "mine", "top1": 70, "pretrain_exaflops": 30, "top1_average5": 90},
            {"model": "vit_b16", "input_shape": "3x224x224", "batch_size": 2, "macs": 35.2e9, "status": "ok"},
            {"model": "short", "top1": 60},
            {"model": "nothing"},
        ]
    )
    left, right = figure.axes
    assert left.get_title(loc="left") == "Average-5"
    assert dots(left) == {(30, 90)}
    assert sorted(dots(right)) == [(30, 70), (pytest.approx(223.97, abs=0.01), 84.15)]
    assert kinds(figure) == ["Transformer (ViT)", "not in the catalog"]
    assert "1 row without pretrain_exaflops, or pretrain_epochs" in said(figure)
    assert "1 row without top1" in said(figure)


def test_one_size_of_several_has_to_be_named() -> None:
    rows: list[dict[str, Any]] = [
        {"model": "a", "top1": 50, "pretrain_epochs": 1, "pretrain_images": 1e9},
        {"model": "a", "input_shape": [3, 8, 8], "macs": 1e9},
        {"model": "a", "input_shape": [3, 16, 16], "macs": 4e9},
    ]
    with pytest.raises(BadInput, match="has no input_shape; expected the size of the pre-training"):
        fig5.plot(rows)
    rows[0]["input_shape"] = "3x16x16"
    assert dots(fig5.plot(rows).axes[0]) == {(24, 50)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"model": "a"}, "No row has both top1, in percent, and pretrain_exaflops, .*1 row without top1"),
        ({"model": "a", "top1": 101, "pretrain_exaflops": 1}, "top1 is 101, not a percentage"),
        ({"model": "a", "top1": 0.85, "pretrain_exaflops": 1}, "in percent, not as a fraction"),
        ({"model": "a", "top1": 50, "pretrain_exaflops": 0}, "pretrain_exaflops is 0, not a number above zero"),
        (
            {"model": "a", "top1": 50, "macs": 1, "pretrain_epochs": 0, "pretrain_images": 1},
            "pretrain_epochs is 0, not above zero",
        ),
        ({"model": "a", "macs": 3}, "none has top1"),
        ({"top1": 50, "pretrain_exaflops": 1}, "has no model"),
    ],
)
def test_rows_that_cannot_be_drawn_say_why(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        fig5.plot([row])
