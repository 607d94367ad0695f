"""The scaling chart: what stands on its axes is what stood in the rows."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from vitbench import catalog
from vitbench.charts import scaling
from vitbench.errors import BadInput


def speed(model: str, side: int, batch_size: int, throughput: float, **others: Any) -> dict[str, Any]:
    return {
        "model": model,
        "input_shape": [3, side, side],
        "batch_size": batch_size,
        "device": "cuda:0",
        "dtype": "bf16",
        "mode": "infer",
        "throughput_per_s": throughput,
        "status": "ok",
        "environment_device_name": "NVIDIA H200",
        **others,
    }


def largest(model: str, side: int, batch: int, **others: Any) -> dict[str, Any]:
    return {"model": model, "input_shape": [3, side, side], "max_batch": batch, "status": "ok", **others}


def drawn(ax: Axes) -> dict[str, list[tuple[float, float]]]:
    """The lines of a panel as they are drawn; those of error bars have no label."""
    return {
        str(line.get_label()): [(float(x), float(y)) for x, y in numpy.asarray(line.get_xydata())]
        for line in ax.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def bars(ax: Axes) -> list[tuple[float, float, float]]:
    """The error bars of a panel: x, lower end, upper end."""
    found = []
    for collection in ax.collections:
        assert isinstance(collection, LineCollection)
        for (x, low), (_, high) in collection.get_segments():
            found.append((float(x), float(low), float(high)))
    return found


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def words(figure: Figure) -> str:
    """All that is written on a figure, on one line."""
    texts = [figure.get_suptitle(), figure.get_supxlabel()]
    for ax in figure.axes:
        texts += [ax.get_title(loc="left"), *(text.get_text() for text in ax.texts)]
    return " ".join(" ".join(texts).split())


def ticks(ax: Axes) -> list[str]:
    return [label.get_text() for label in ax.get_xticklabels()]


def render(figure: Figure) -> None:
    figure.savefig(io.BytesIO(), format="png")


def test_a_point_is_the_best_of_its_batch_sizes_and_of_no_other_model() -> None:
    figure = scaling.plot(
        [
            speed("vit_l16", 384, 1, 30.0),
            speed("vit_l16", 384, 8, 90.5),
            speed("vit_l16", 384, 16, 80.0),
            speed("vit_l16", 64, 8, 4000.0),
            speed("vit_b16", 64, 1, 9000.0),
        ]
    )
    (ax,) = figure.axes
    assert drawn(ax) == {"vit_l16": [(64, 4000.0), (384, 90.5)], "vit_b16": [(64, 9000.0)]}
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ticks(ax) == ["64", "384"]
    assert ax.get_ylabel() == "Images/s"
    assert legend(figure) == ["vit_l16", "vit_b16"]
    assert "Throughput NVIDIA H200, bf16, inference" in words(figure).replace("\N{NO-BREAK SPACE}", " ")
    assert "Each point is the fastest of the batch sizes" in words(figure)


def test_the_bar_of_a_point_is_its_batch_over_the_ends_of_its_latency() -> None:
    """8 images in 80 ms to 125 ms, 100 ms in the middle: 100 to 64 images a second, 80 in the middle."""
    figure = scaling.plot(
        [
            speed("vit_l16", 224, 8, 80.0, latency_low_ms=80.0, latency_high_ms=125.0),
            speed("vit_l16", 384, 8, 20.0, latency_low_ms=None, latency_high_ms=None),
            # Student's interval over two processes that disagree.
            speed("vit_l16", 512, 8, 10.0, latency_low_ms=-100.0, latency_high_ms=1700.0),
        ]
    )
    (ax,) = figure.axes
    assert bars(ax) == [pytest.approx((224, 64.0, 100.0))]
    assert ax.get_ylim()[0] < 10
    assert ax.get_ylim()[1] > 100
    assert "2 of 3 points have none" in words(figure)


def test_a_bar_may_reach_no_further_than_the_point() -> None:
    scaling.plot([speed("a", 8, 3, 3 / (7.0 / 1e3), latency_low_ms=7.0, latency_high_ms=7.0)])


def test_an_interval_that_does_not_hold_its_throughput_is_refused() -> None:
    with pytest.raises(BadInput, match="throughput_per_s is 200.0, not within the interval of its latency, 64 to 100"):
        scaling.plot([speed("a", 224, 8, 200.0, latency_low_ms=80.0, latency_high_ms=125.0)])
    with pytest.raises(BadInput, match="has no batch_size"):
        scaling.plot([speed("a", 224, 8, 200.0, latency_low_ms=80.0, latency_high_ms=125.0) | {"batch_size": None}])


def test_cells_of_csv_are_read_as_those_of_json() -> None:
    row = speed("vit_l16", 224, 8, 80.0, latency_low_ms=80.0, latency_high_ms=125.0, threads=2, amp=True)
    text = {name: str(value) for name, value in row.items()} | {"input_shape": "3x224x224"}
    one, other = scaling.plot([row]), scaling.plot([text])
    assert drawn(one.axes[0]) == drawn(other.axes[0]) == {"vit_l16": [(224, 80.0)]}
    assert bars(one.axes[0]) == bars(other.axes[0])
    assert words(one) == words(other)


def test_both_halves_share_models_colours_and_sizes() -> None:
    rows = [
        speed("vit_l16", 64, 8, 4000.0),
        speed("vit_b16", 64, 8, 9000.0),
        largest("vit_b16", 64, 2000, device="cuda", dtype="bf16", limit_bytes=80 * 2**30, max_batch_method="predicted"),
        largest("vit_l16", 64, 700, device="cuda", dtype="bf16", limit_bytes=80 * 2**30, max_batch_method="predicted"),
        largest("vit_l16", 512, 0, device="cuda", dtype="bf16", limit_bytes=80 * 2**30, max_batch_method="predicted"),
    ]
    figure = scaling.plot(rows)
    left, right = figure.axes
    assert drawn(right) == {"vit_b16": [(64, 2000)], "vit_l16": [(64, 700)]}
    colors = [{line.get_label(): line.get_color() for line in ax.get_lines()} for ax in (left, right)]
    assert colors[0] == colors[1]
    assert right.get_ylabel() == "Images in a batch"
    assert "predicted, 80.00 GiB of memory" in words(figure).replace("\N{NO-BREAK SPACE}", " ")
    assert "1 row where not even one input fits" in words(figure)


def test_one_line_needs_no_legend() -> None:
    figure = scaling.plot([largest("vit_l16", 64, 700)])
    assert legend(figure) == []
    assert figure.get_suptitle() == "vit_l16"
    assert len(figure.axes) == 1


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([{"dtype": "fp32"}, {"dtype": "bf16"}], ["a, fp32", "a, bf16"]),
        ([{"amp": "False"}, {"amp": "True"}], ["a", "a, AMP"]),
        ([{"mode": "infer"}, {"mode": "train"}], ["a, inference", "a, training"]),
        ([{"compile": None}, {"compile": "inductor"}], ["a", "a, compiled by inductor"]),
        ([{"device": "cuda:0"}, {"device": "cuda:1"}], ["a, cuda:0", "a, cuda:1"]),
        ([{"device": "cpu", "threads": 1}, {"device": "cpu", "threads": 2}], ["a, 1 thread", "a, 2 threads"]),
        ([{"environment_torch": "2.14.0"}, {"environment_torch": "2.15.0"}], ["a, torch 2.14.0", "a, torch 2.15.0"]),
        ([{"input_shape": [3, 8, 64, 64]}, {"input_shape": [3, 16, 64, 64]}], ["a, 3x8 x H x W", "a, 3x16 x H x W"]),
        # What the machine's name tells is not said again.
        (
            [{"environment_device_name": "CPU", "device": "cpu", "threads": 8}, {"device": "cuda:0", "threads": 2}],
            ["a, CPU", "a, NVIDIA H200"],
        ),
        # Clocks, notes and times are no lines of their own.
        ([{"note": "x"}, {"note": "y", "environment_time": "z"}], ["a"]),
    ],
)
def test_what_differs_between_rows_is_said_in_their_labels(
    changes: Sequence[Mapping[str, Any]], labels: list[str]
) -> None:
    figure = scaling.plot([speed("a", 64, 1, 10.0, **change) for change in changes])
    assert list(drawn(figure.axes[0])) == labels


def test_a_setting_that_differs_in_one_half_is_said_in_the_other() -> None:
    figure = scaling.plot(
        [speed("a", 64, 1, 1.0), speed("a", 64, 1, 2.0, dtype="fp32"), largest("a", 64, 7, dtype="fp32")]
    )
    assert list(drawn(figure.axes[0])) == ["a, bf16", "a, fp32"]
    assert list(drawn(figure.axes[1])) == ["a, fp32"]


def test_over_the_batch_a_size_makes_a_line_of_its_own() -> None:
    rows = [
        speed("a", 64, 1, 10.0),
        speed("a", 64, 8, 40.0),
        speed("a", 128, 8, 12.0),
        speed("a", 128, 8, 11.0),
        speed("b", 64, 8, 7.0),
        largest("b", 64, 100),
    ]
    figure = scaling.plot(rows, x="batch_size")
    (ax,) = figure.axes
    assert drawn(ax) == {"a, 3x64x64": [(1, 10.0), (8, 40.0)], "a, 3x128x128": [(8, 12.0)], "b": [(8, 7.0)]}
    assert (ax.get_xlabel(), ticks(ax)) == ("Batch size", ["1", "8"])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "the fastest of the rows at that batch" in words(figure)
    assert "Left out: 1 row of the largest batch" in words(figure)


@pytest.mark.parametrize("batch", [None, 0, "1.5"])
def test_over_the_batch_a_row_needs_one(batch: Any) -> None:
    with pytest.raises(BadInput, match="batch_size.*whole number above zero"):
        scaling.plot([speed("a", 64, 1, 10.0) | {"batch_size": batch}], x="batch_size")


def test_other_columns_are_no_scale() -> None:
    with pytest.raises(BadInput, match="over input_shape or batch_size, not 'threads'"):
        scaling.plot([speed("a", 64, 1, 10.0)], x="threads")


def test_failed_rows_are_left_out_and_counted() -> None:
    figure = scaling.plot(
        [
            speed("a", 64, 8, 80.0),
            speed("a", 64, 4, 40.0, status="lowered"),
            speed("a", 64, 64, 99.0, status="failed"),
            {"model": "a", "input_shape": [3, 64, 64], "status": "out_of_memory"},
            {"model": "a", "input_shape": [3, 64, 64], "status": "out_of_memory"},
            {"model": "a", "macs": 3, "status": "ok"},
        ]
    )
    assert drawn(figure.axes[0]) == {"a": [(64, 80.0)]}
    assert "Left out: 1 row failed, 2 rows out of memory." in words(figure)


def test_sizes_that_are_not_square_stand_at_the_side_of_their_area() -> None:
    shapes = [[3, 512, 384], [3, 384, 512], [3, 256, 256], [3, 128, 512]]
    figure = scaling.plot([speed("a", 0, 1, 10.0 + place, input_shape=shape) for place, shape in enumerate(shapes)])
    (ax,) = figure.axes
    side = (512 * 384) ** 0.5
    assert drawn(ax)["a"] == [(256, 13.0), (256, 12.0), (side, 11.0), (side, 10.0)]
    assert ticks(ax) == ["128x512\n256", "384x512\n512x384"]
    assert "by area" in ax.get_xlabel()


def test_clips_are_called_clips() -> None:
    clips = speed("a", 0, 1, 10.0, input_shape=[3, 8, 224, 224])
    assert scaling.plot([clips]).axes[0].get_ylabel() == "Clips/s"
    assert scaling.plot([clips, speed("b", 224, 1, 10.0)]).axes[0].get_ylabel() == "Inputs/s"


@pytest.mark.parametrize("others", [[], ["vit_b16"]], ids=["alone", "with another"])
def test_texts_of_files_are_shown_as_they_are(others: list[str]) -> None:
    names = [r"$\frac{ x_1", "_hidden", "a\nb\x1b[2J", "\ud800", *others]
    for name in names:
        figure = scaling.plot(
            [speed(one, 64, 1, 10.0, status="ok", environment_device_name="$GPU_{") for one in (name, *others)]
            + [speed("c", 64, 1, 1.0, status=r"$\bad{")]
        )
        render(figure)
        shown = legend(figure) or [figure.get_suptitle()]
        assert shown[0] == {"a\nb\x1b[2J": "a b[2J", "\ud800": "?"}.get(name, name)
        assert r"1 row $\bad{" in words(figure)


@pytest.mark.parametrize("count", [1, 2, 24])
def test_nothing_is_clipped(count: int) -> None:
    rows = [
        speed(f"my_company.research.vision.backbones:make_a_very_large_hybrid_{place}", side, 1, 1e5 / side + place)
        for place in range(count)
        for side in (224, 226, 256, 384, 512)
    ]
    figure = scaling.plot([*rows, *(largest(row["model"], 224, 3) for row in rows)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render(figure)
    whole = figure.bbox
    inside = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert inside.x0 >= -1
    assert inside.y0 >= -1
    assert inside.x1 <= whole.width + 1
    assert inside.y1 <= whole.height + 1
    for ax in figure.axes:
        assert ax.get_window_extent().width > 250
    labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert [label.get_text() for label in labels] == ["224", "256", "384", "512"]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_more_lines_than_can_be_told_apart_are_refused() -> None:
    rows = [speed(f"m{number}", 64, 1, 1.0) for number in range(25)]
    looks = {
        (line.get_color(), line.get_marker(), line.get_fillstyle())
        for line in scaling.plot(rows[:24]).axes[0].get_lines()
    }
    assert len(looks) == 24
    with pytest.raises(BadInput, match="25 lines cannot be told apart, 24 at most"):
        scaling.plot(rows)


def test_convolutional_networks_are_dashed_among_others() -> None:
    figure = scaling.plot([speed("bit_r50x1", 64, 1, 1.0), speed("vit_b16", 64, 1, 1.0)])
    assert [line.get_linestyle() for line in figure.axes[0].get_lines()] == ["--", "-"]
    assert "Dashed: convolutional networks." in words(figure)
    alone = scaling.plot([speed("bit_r50x1", 64, 1, 1.0)])
    assert [line.get_linestyle() for line in alone.axes[0].get_lines()] == ["-"]
    assert set(catalog.families()) >= scaling.CONVOLUTIONAL


def test_many_decades_have_a_number_each() -> None:
    (ax,) = scaling.plot([speed("a", 64, 1, 0.3), speed("a", 32, 1, 250_000.0)]).axes
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert shown == ["1", "10", "100", "1,000", "10,000", "100,000"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"model": "a", "macs": 3}, "No row has throughput_per_s, which `vitbench throughput` writes, or max_batch"),
        ({"model": "a", "status": "timeout"}, "nothing to draw: 1 row timed out"),
        (speed("", 64, 1, 1.0), "has no model"),
        (speed("a", 64, 1, 1.0, input_shape=None), "has no input_shape"),
        (speed("a", 64, 1, 1.0, input_shape="3x2x0"), "input_shape is '3x2x0', not a shape such as 3x224x224"),
        (speed("a", 64, 1, 1.0, input_shape=[197]), r"input_shape is \[197\], not a shape with a height and a width"),
        (speed("a", 64, 1, 0.0), "throughput_per_s is 0.0, not a number above zero"),
        (speed("a", 64, 1, 1.0, throughput_per_s="fast"), "throughput_per_s is 'fast', not a number"),
        (speed("a", 64, 1, 1.0, throughput_per_s="nan"), "throughput_per_s is 'nan', not a number"),
        (speed("a", 64, 1, 1.0, throughput_per_s=True), "throughput_per_s is True, not a number"),
        (largest("a", 64, -1), "max_batch is -1, not a number above zero"),
    ],
)
def test_rows_that_cannot_be_drawn_say_why(row: Mapping[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        scaling.plot([row])
