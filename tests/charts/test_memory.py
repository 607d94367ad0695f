"""The memory chart: bars and marks are what stood in the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vitbench.charts import memory
from vitbench.drawing import pictures
from vitbench.errors import BadInput

GIB = 2**30


def row(model: str, **bytes_of: Any) -> dict[str, Any]:
    return {"model": model, "mode": "train", "status": "ok"} | {
        f"{name}_bytes": value for name, value in bytes_of.items()
    }


def bars(figure: Figure) -> list[tuple[float, float]]:
    """Left end and length of each bar."""
    return [(one.get_x(), one.get_width()) for one in figure.axes[0].patches if isinstance(one, Rectangle)]


def marks(figure: Figure, marker: str) -> list[float]:
    return [
        float(x)
        for line in figure.axes[0].get_lines()
        if line.get_marker() == marker
        for x in np.asarray(line.get_xdata())
    ]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def test_parts_lie_end_to_end_and_peaks_are_marked() -> None:
    figure = memory.plot(
        [
            row("large", predicted_weights=4 * GIB, predicted_activations=2 * GIB, predicted_peak=5 * GIB),
            row("small", predicted_weights=GIB, predicted_activations=0, predicted_peak=GIB, measured_peak=1.5 * GIB),
            row("only", measured_peak=2 * GIB),
            row("none"),
        ]
    )
    assert bars(figure) == [
        (0, GIB), (0, 0), (0, 4 * GIB),
        (GIB, 0), (0, 0), (4 * GIB, 2 * GIB),
    ]  # fmt: skip
    assert marks(figure, "v") == [GIB, 5 * GIB]
    assert marks(figure, "^") == [1.5 * GIB, 2 * GIB]
    # Beside the bars, so that no mark hides one, however short.
    reach = [
        (one.get_y(), one.get_y() + one.get_height()) for one in figure.axes[0].patches if isinstance(one, Rectangle)
    ]
    at = [float(y) for line in figure.axes[0].get_lines() for y in np.asarray(line.get_ydata())]
    assert not any(low <= y <= high for low, high in reach for y in at)
    assert legend(figure) == ["weights, predicted", "activations, predicted", "peak, predicted", "peak, measured"]
    figure.draw_without_rendering()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["small", "only", "large"]
    assert figure.axes[0].get_xlabel() == "Memory (GiB)"
    said = " ".join(figure.get_supxlabel().split())
    assert "Each part is at its own highest, at its own time" in said
    assert "Left out: 1 row without a peak of memory." in said


def test_measurements_alone_have_no_parts_to_explain() -> None:
    figure = memory.plot([row("a", measured_peak=0)])
    assert legend(figure) == ["peak, measured"]
    assert figure.get_supxlabel() == "Training."


def test_two_hundred_rows_make_the_same_bytes() -> None:
    rows = [row(f"$m_{n}", predicted_weights=n * GIB, predicted_peak=n * GIB) for n in range(200)]
    figure = memory.plot(rows)
    content = pictures.rendered(figure, ".svg")
    inside = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert inside.x0 >= -1
    assert inside.y0 >= -1
    assert pictures.rendered(memory.plot(rows), ".svg") == content


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("a")], "No row has predicted_peak_bytes or measured_peak_bytes.*: 1 row without a peak"),
        ([row("a", predicted_peak=-1)], "predicted_peak_bytes is -1, not a number of bytes"),
        ([row("a", predicted_peak=1, predicted_weights="x")], "predicted_weights_bytes is 'x', not a number"),
        ([row("a", predicted_peak=1)] * 401, "401 rows do not fit on a picture, 400 at most"),
    ],
)
def test_rows_that_cannot_be_drawn_say_why(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        memory.plot(rows)
