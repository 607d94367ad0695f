"""The roofline chart: what stands under its roof is what stood in the rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from vitbench.charts import roofline
from vitbench.drawing.pictures import rendered
from vitbench.errors import BadInput


def row(model: str, intensity: float, gflops_per_s: float, **others: Any) -> dict[str, Any]:
    """A row of a machine whose peak is 100 GFLOP/s and whose memory gives 20 GB/s: the ridge is at 5 FLOP/byte."""
    return {
        "model": model,
        "input_shape": [3, 224, 224],
        "batch_size": 8,
        "device": "cpu",
        "dtype": "fp32",
        "mode": "infer",
        "threads": 1,
        "status": "ok",
        "environment_device_name": "AMD EPYC",
        "intensity_flops_per_byte": intensity,
        "achieved_flops_per_s": 1e9 * gflops_per_s,
        "peak_flops_per_s": 1e11,
        "bandwidth_bytes_per_s": 2e10,
        "latency_median_ms": 10.0,
        **others,
    }


# Two blocks that do the same, one that memory limits, a norm. Seconds: 4, 4, 1 and 1 ms.
BLOCKS = [
    ["blocks.0", 200_000_000, 4_000_000, 0.004],
    ["blocks.1", 200_000_000, 4_000_000, 0.004],
    ["head", 10_000_000, 5_000_000, 0.001],
    ["norm", 0, 1_000_000, 0.001],
]


def labels(figure: Figure) -> set[str]:
    (ax,) = figure.axes
    return {text.get_text() for text in ax.texts}


def words(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def points(figure: Figure) -> list[tuple[float, float]]:
    (ax,) = figure.axes
    offsets = [np.asarray(collection.get_offsets()) for collection in ax.collections]
    return [(float(x), float(y)) for found in offsets for x, y in found]


def test_models_lie_at_their_intensity_and_flops_with_their_share_of_the_roof() -> None:
    """At 2 FLOP/byte the roof is 2 x 20 = 40 GFLOP/s, from 5 on 100."""
    figure = roofline.plot([row("a", 2.0, 10.0), row("b", 50.0, 80.0)])
    assert points(figure) == [(2.0, 1e10), (50.0, 8e10)]
    assert labels(figure) == {"a, 25 %", "b, 80 %", "100.0 GFLOP/s, ridge at 5 FLOP/byte", "20.00 GB/s"}
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    roof = np.asarray(ax.get_lines()[0].get_xydata())
    assert roof[1] == pytest.approx([5.0, 1e11])
    assert roof[0][1] == pytest.approx(2e10 * roof[0][0])
    assert words(figure).startswith("Batch 8, AMD EPYC, fp32, inference, 1 thread. In percent: share of the roof")


def test_the_roof_is_the_most_that_any_row_saw() -> None:
    figure = roofline.plot(
        [row("a", 2.0, 10.0), row("b", 50.0, 80.0, peak_flops_per_s=2e11, bandwidth_bytes_per_s=1e9)]
    )
    assert "b, 40 %" in labels(figure)
    assert "200.0 GFLOP/s, ridge at 10 FLOP/byte" in labels(figure)


def test_one_model_has_its_blocks_beside_it() -> None:
    """2 x 0.2 and 0.01 GFLOP in 10 ms are 41 GFLOP/s; 0.2 in 4 ms are 50, at 50 FLOP/byte; the head has 10 of 40, at 2."""
    figure = roofline.plot([row("m", 29.3, 41.0, blocks=BLOCKS)])
    assert points(figure) == [(29.3, 4.1e10), (50.0, 5e10), (50.0, 5e10), (2.0, 1e10)]
    assert {"m, 41 %", "blocks.0 to blocks.1, 50 %", "head, 25 %"} < labels(figure)
    assert "10.00 ms in all" in words(figure)
    assert "Without products, and not drawn: norm (10.0 % of the time)" in words(figure)


def test_several_models_have_no_blocks() -> None:
    assert len(points(roofline.plot([row("m", 29.3, 41.0, blocks=BLOCKS), row("n", 29.0, 40.0, blocks=BLOCKS)]))) == 2


def test_cells_of_csv_are_read_as_those_of_json() -> None:
    text = {name: str(value) for name, value in row("m", 29.3, 41.0, quiet=False).items()} | {
        "input_shape": "3x224x224"
    }
    figure = roofline.plot([text])
    assert points(figure) == [(29.3, 4.1e10)]
    assert "Other work on the machine disturbed 1 of 1" in words(figure)


def test_each_dtype_machine_and_number_of_threads_has_its_roof() -> None:
    figure = roofline.plot([row("m", 2.0, 10.0), row("m", 4.0, 10.0, dtype="bf16", peak_flops_per_s=4e11)])
    legend = [text.get_text() for one in figure.legends for text in one.get_texts()]
    assert legend == [
        "fp32: 100.0 GFLOP/s, 20.00 GB/s, ridge at 5 FLOP/byte",
        "bf16: 400.0 GFLOP/s, 20.00 GB/s, ridge at 20 FLOP/byte",
    ]
    assert labels(figure) == {"m, fp32, 25 %", "m, bf16, 12 %"}


def test_no_label_lies_over_another() -> None:
    found = [row(f"a_model_{number}", 20.0 * 1.3**number, 40.0 + number) for number in range(8)]
    figure = roofline.plot(found)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    texts = [text for text in ax.texts if isinstance(text, Annotation)]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == 8 + 2
    assert not [one for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]


def test_names_are_set_literally_and_the_same_rows_make_the_same_file() -> None:
    blocks = [["$x^2_\x1b$", *BLOCKS[0][1:]]]
    files = [rendered(roofline.plot([row("$_m$", 20.0, 10.0, blocks=blocks)]), ".svg") for _ in range(2)]
    assert files[0] == files[1]
    assert "$x^2_$, 50 %" in labels(roofline.plot([row("$_m$", 20.0, 10.0, blocks=blocks)]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"model": "a", "macs": 3}], "No row has intensity_flops_per_byte, which `vitbench roofline` writes"),
        ([{"model": "a", "status": "timeout"}], "nothing to draw: 1 row timed out"),
        ([row("a", 2.0, 0.0)], "achieved_flops_per_s is 0.0, not a number above zero"),
        ([row("a", -2.0, 1.0)], "intensity_flops_per_byte is -2.0, not a number above zero"),
        ([row("a", 2.0, 1.0, bandwidth_bytes_per_s=None)], "has no bandwidth_bytes_per_s"),
        ([row("", 2.0, 1.0)], "has no model"),
        ([row("a", 2.0, 1.0, blocks="many")], "blocks is 'many', not a list with path, FLOPs, bytes and seconds"),
        ([row("a", 2.0, 1.0, blocks=[["b", 1, 2]])], "not a list with path"),
        ([row("a", 2.0, 1.0, blocks=[["b", 1, -2, 1.0]])], "not a list with path"),
        ([row("a", 2.0, 1.0, threads=threads) for threads in range(1, 10)], "9 roofs cannot be told apart, 8 at most"),
    ],
)
def test_rows_that_cannot_be_drawn_say_why(rows: list[Mapping[str, Any]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        roofline.plot(rows)
