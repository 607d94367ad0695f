"""The trade-off chart: what stands on its axes is what stood in the rows and in the papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from vitbench.charts import tradeoff
from vitbench.drawing import pictures
from vitbench.errors import BadInput, UnknownName
from vitbench.reports import console


def row(model: str, macs: Any = 1e9, **others: Any) -> dict[str, Any]:
    return {"model": model, "macs": macs, "status": "ok", **others}


def dots(figure: Figure) -> set[tuple[float, float]]:
    (ax,) = figure.axes
    return {
        (float(x), float(y))
        for one in ax.collections
        if isinstance(one, PathCollection)
        for x, y in np.asarray(one.get_offsets())
    }


def front(figure: Figure) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for line in figure.axes[0].get_lines()
        if line.get_linestyle() == "--"
        for x, y in np.asarray(line.get_xydata())
    ]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def caption(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.axes[0].texts}


def test_published_top1_against_counted_cost_with_the_front_drawn_and_listed() -> None:
    rows = [
        row("deit_ti16", 1.26e9),
        row("deit_s16", 4.6e9),
        row("swin_t", 4.5e9),
        row("vivit_b_16x2_fe", 1e9),
        row("mine", 1e9),
        row("swin_b", None, status="out_of_memory"),
    ]
    figure = tradeoff.plot(rows)
    # DeiT paper (arXiv 2012.12877), Table 5; Swin paper (arXiv 2103.14030), Table 1.
    assert dots(figure) == {(1.26e9, 72.2), (4.6e9, 79.8), (4.5e9, 81.3)}
    assert front(figure) == [(1.26e9, 72.2), (4.5e9, 81.3)]
    assert texts(figure) == {"deit_ti16", "deit_s16", "swin_t"}
    said = caption(figure)
    assert "Pareto front: deit_ti16, swin_t." in said
    assert "DeiT paper (arXiv 2012.12877) (2); Swin paper (arXiv 2103.14030) (1)" in said
    assert "1 row out of memory, 2 rows without a published ImageNet-1k top-1" in said
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == (
        "Multiply-accumulates of one input (G)",
        "ImageNet-1k top-1 (%)",
    )
    table = tradeoff.listing(rows)
    assert [(one["label"], one["x"], one["y"]) for one in table.rows] == [
        ("deit_ti16", "1.26", "72.2"),
        ("swin_t", "4.5", "81.3"),
    ]
    assert "IN-1k; Swin paper (arXiv 2103.14030) Table 1" in console.render(table)


def test_models_trained_on_more_data_are_hollow() -> None:
    figure = tradeoff.plot([row("vit_ti16"), row("deit_ti16")])
    hollow = [len(one.get_facecolor()) == 0 for one in figure.axes[0].collections if isinstance(one, PathCollection)]
    assert sorted(hollow) == [False, True]
    assert "hollow: more data than ImageNet-1k" in legend(figure)


def test_a_top1_of_ones_own_goes_before_the_published_one() -> None:
    figure = tradeoff.plot([row("swin_t", top1=77.5)])
    assert dots(figure) == {(1e9, 77.5)}
    assert "Top-1 as published" not in caption(figure)


def test_any_columns_sizes_and_colours() -> None:
    rows = [
        row("a", 1, latency_median_ms=2.0, throughput_per_s=5.0, params=10, device="cpu"),
        row("b", 1, latency_median_ms=3.0, throughput_per_s=4.0, params=40, device="cuda:0"),
    ]
    figure = tradeoff.plot(rows, x="latency_median_ms", y="throughput_per_s", size="params", color="device")
    assert dots(figure) == {(2.0, 5.0), (3.0, 4.0)}
    sizes = {float(one.get_sizes()[0]) for one in figure.axes[0].collections if isinstance(one, PathCollection)}
    # In proportion: 40 to 10.
    assert max(sizes) / min(sizes) == pytest.approx(4)
    assert {"device", "cpu", "cuda:0", "Parameters"} < set(legend(figure))


def test_sizes_over_a_wide_range_follow_the_logarithm() -> None:
    rows = [row(name, 1, top1=1, params=params) for name, params in (("a", 1e5), ("b", 1e7), ("c", 1e9))]
    figure = tradeoff.plot(rows, size="params")
    small, middle, large = sorted(
        float(one.get_sizes()[0]) for one in figure.axes[0].collections if isinstance(one, PathCollection)
    )
    assert middle - small == pytest.approx(large - middle)


def test_without_a_known_direction_there_is_no_front() -> None:
    rows = [row("a", 1, batch_size=1), row("b", 2, batch_size=2)]
    figure = tradeoff.plot(rows, x="batch_size", y="macs")
    assert front(figure) == []
    assert "No Pareto front: it is not known which way batch_size and macs are both better" in caption(figure)
    assert tradeoff.listing(rows, x="batch_size", y="macs").notes


def test_values_at_and_below_zero_are_drawn_on_a_linear_axis() -> None:
    figure = tradeoff.plot([row("a", -1e3, top1=0), row("b", 0, top1=1), row("c", 1e6, top1=2)])
    assert dots(figure) == {(-1e3, 0), (0, 1), (1e6, 2)}
    assert figure.axes[0].get_xscale() == "linear"


def test_many_rows_have_labels_on_the_front_alone_and_the_same_bytes() -> None:
    rows = [row(f"my.company:backbone_{place}", 1e9 + place * 1e7, top1=50 + place % 7) for place in range(200)]
    figure = tradeoff.plot(rows)
    front_labels = {f"my.company:backbone_{place}" for place in range(7)}
    assert texts(figure) <= front_labels
    assert "Only the front is labelled." in caption(figure)
    assert pictures.rendered(figure, ".svg") == pictures.rendered(tradeoff.plot(rows), ".svg")


def test_rows_that_give_one_dot_are_one() -> None:
    figure = tradeoff.plot([row("swin_t", source="a"), row("swin_t", source="b")])
    assert len([one for one in figure.axes[0].collections if isinstance(one, PathCollection)]) == 1


def test_counts_are_of_one_input_whatever_the_batch_was() -> None:
    """As `bench -b 1,8` gives them: two rows a model, the second of eight times the work."""
    rows = [row("swin_t", 4.5e9, batch_size=1, flops=9e9), row("swin_t", 36e9, batch_size=8, flops=72e9)]
    assert dots(tradeoff.plot(rows)) == {(4.5e9, 81.3)}
    assert texts(tradeoff.plot(rows)) == {"swin_t"}
    assert dots(tradeoff.plot(rows, x="flops")) == {(9e9, 81.3)}
    assert tradeoff.plot(rows, x="flops").axes[0].get_xlabel() == "FLOPs of one input = 2 x MACs (G)"
    timed = [row("swin_t", 4.5e9, batch_size=1), row("swin_t", None, batch_size=8, latency_median_ms=3.0)]
    assert dots(tradeoff.plot(timed, y="latency_median_ms")) == {(4.5e9, 3.0)}


def test_rows_of_a_model_at_one_place_are_one_on_the_front_and_named_by_what_they_share() -> None:
    rows = [
        row("pvt_v2_b0", None, params=3.7e6, batch_size=batch, dtype=dtype)
        for batch, dtype in ((1, "fp32"), (8, "fp32"), (1, "bf16"))
    ]
    table = tradeoff.listing([*rows, row("a", params=1e7, top1=80)], x="params")
    assert [one["label"] for one in table.rows] == ["pvt_v2_b0", "a"]
    small = [one | {"input_shape": "3x224x224"} for one in rows]
    larger = row("pvt_v2_b0", None, params=4e6, top1=71, batch_size=1, dtype="fp32", input_shape=[3, 384, 384])
    labels = [one["label"] for one in tradeoff.listing([*small, larger], x="params").rows]
    assert labels == ["pvt_v2_b0, 3x224x224", "pvt_v2_b0, 3x384x384"]


def test_the_ends_of_the_front_have_labels_before_what_lies_between() -> None:
    names = [f"a_model_of_a_long_name_{place}" for place in range(60)]
    found = texts(tradeoff.plot([row(name, 1e9 + place, top1=70 + place / 1e3) for place, name in enumerate(names)]))
    assert len(found) < 60
    assert {names[0], names[1], names[-2], names[-1]} <= found


@pytest.mark.parametrize("name", [r"$\frac{ x_1", "_hidden", "a\nb\x1b[2J", "\ud800", "n" * 200])
def test_texts_of_files_are_shown_as_they_are_and_nothing_is_clipped(name: str) -> None:
    figure = tradeoff.plot(
        [row(name, 1, top1=1, kind=name, **{name: 3}), row("b", 2, top1=2, kind="k", **{name: 4})],
        color="kind",
        x=name,
    )
    pictures.rendered(figure, ".png")
    inside = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert inside.x1 <= figure.bbox.width + 1
    assert inside.y0 >= -1
    shown = "".join(legend(figure)).replace("\n", "")
    assert {"a\nb\x1b[2J": "a b[2J", "\ud800": "?"}.get(name, name) in shown


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        ([row("a", status="failed")], {}, BadInput, "nothing to draw: 1 row failed"),
        ([row("mine")], {}, BadInput, "nothing to draw: 1 row without a published ImageNet-1k top-1"),
        ([row("a", top1=1)], {"x": ""}, UnknownName, "no column named ''"),
        ([row("a", top1=1)], {"y": ""}, UnknownName, "no column named ''"),
        ([row("a", top1=1)], {"size": ""}, UnknownName, "no column named ''"),
        ([row("a")], {"x": "mac"}, UnknownName, "no column named 'mac'"),
        ([row("a", top1=1)], {"color": "famly"}, UnknownName, "Did you mean family"),
        ([row("a", "many", top1=1)], {}, BadInput, "macs is 'many', not a number"),
        ([row("a", top1=1, n=-1)], {"size": "n"}, BadInput, "below zero"),
        ([row(f"m{n}", top1=1) for n in range(25)], {"color": "model"}, BadInput, "25 values of model"),
        ([row("", top1=1)], {}, BadInput, "has no model"),
    ],
)
def test_what_cannot_be_drawn_says_why(
    rows: list[dict[str, Any]], options: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tradeoff.plot(rows, **options)
