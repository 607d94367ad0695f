"""The published figures: the file's integrity, and the arithmetic of printed numbers."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import fields, replace
from importlib.resources import files

import pytest

from vitbench import catalog, published
from vitbench.published import Figure

FIGURES = published.figures()
SWIN_B = next(figure for figure in published.find(("swin_b",), (3, 224, 224)) if figure.flops_G == "15.4")


def test_the_file_is_whole() -> None:
    assert len(FIGURES) == 643
    assert len({figure.variant for figure in FIGURES}) > 200


def test_the_header_names_each_column_once_and_every_row_fills_it() -> None:
    text = (files("vitbench") / "published.csv").read_bytes().decode()
    header, *rows = csv.reader(io.StringIO(text))
    assert header == [column.name for column in fields(Figure)]
    assert len(set(header)) == len(header)
    assert {len(row) for row in rows} == {len(header)}
    # Written as Python's csv writes it, so that an edit of one cell changes one line.
    again = io.StringIO()
    csv.writer(again, lineterminator="\n").writerows([header, *rows])
    assert again.getvalue() == text


def test_reasons_are_sentences_and_only_of_figures() -> None:
    for figure in FIGURES:
        assert not figure.reason or re.fullmatch(r"[A-Zf0-9].*\.", figure.reason)
        assert not figure.reason or figure.params or figure.macs


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: f"{figure.variant}-{figure.input}")
def test_a_figure_is_well_formed(figure: Figure) -> None:
    assert figure.family
    assert figure.variant
    assert figure.convention
    assert figure.source
    for printed in (figure.params_M, figure.flops_G, figure.top1):
        assert not printed or float(printed) > 0
    shape = figure.input_shape
    if shape is None:
        # Clips whose size the source leaves open are noted as uncertain; all else is no image.
        assert figure.input.endswith("(uncertain)") or "text" in figure.input or "tokens" in figure.input
    else:
        assert len(shape) in (3, 4)
        assert shape[0] == 3
    # Every figure with a count says what it counts, in words that the comparison understands.
    known = (
        "MACs",
        "multiply-adds",
        "FLOPs = 2",
        "as ViViT",
        "unclear",
        "third-party",
        "unknown",
        "from T2T",
        "not published",
    )
    assert figure.convention.startswith(known)


@pytest.mark.parametrize(
    ("params_M", "flops_G", "params_rounding", "macs_rounding"),
    [
        ("88", "15.4", 0.5e6, 0.05e9),
        ("28.288354", "4", 0.5, 0.5e9),
        ("5.7", "0.033", 0.05e6, 0.0005e9),
        ("29", "4.5", 0.5e6, 0.05e9),
        ("928", "837", 0.5e6, 0.5e9),
    ],
)
def test_rounding_is_half_a_unit_of_the_last_place(
    params_M: str, flops_G: str, params_rounding: float, macs_rounding: float
) -> None:
    figure = replace(SWIN_B, params_M=params_M, flops_G=flops_G)
    assert figure.params_rounding == pytest.approx(params_rounding)
    assert figure.macs_rounding == pytest.approx(macs_rounding)


@pytest.mark.parametrize(
    ("convention", "macs"),
    [
        ("MACs incl. attention matmuls", 15.4e9),
        ("multiply-adds (the paper says so in words)", 15.4e9),
        ("FLOPs = 2 per multiply-add", 7.7e9),
        ("MACs WITHOUT attention matmuls", None),
        ("MACs, counter misses part of the attention matmuls", None),
        ("unclear: near 2 x MACs", None),
        ("third-party counter", None),
    ],
)
def test_a_figure_is_compared_in_its_own_convention(convention: str, macs: float | None) -> None:
    assert replace(SWIN_B, convention=convention).macs == macs


@pytest.mark.parametrize(
    ("views", "macs"),
    [("1x3 INCLUDED (0.59 TFLOPs)", 15.4e9 / 3), ("4x3 INCLUDED", 15.4e9 / 12), ("1x3 (not included)", 15.4e9)],
)
def test_views_that_a_figure_includes_are_taken_apart(views: str, macs: float) -> None:
    assert replace(SWIN_B, views=views, convention="MACs incl. attention matmuls, summed over crops").macs == macs


def test_timesformers_figures_are_of_three_views() -> None:
    """Analytic MACs of one clip, against the paper's TFLOPs of three crops."""
    for name, macs in (("timesformer_divided", 195.8e9), ("timesformer_hr", 1702.7e9), ("timesformer_l", 2379.9e9)):
        figures = [one for one in FIGURES if one.variant == name and "INCLUDED" in one.views]
        assert figures
        assert all(one.macs == pytest.approx(macs, rel=0.005) for one in figures)


def test_two_for_each_multiply_accumulate_is_halved_in_the_file_too() -> None:
    twice = [figure for figure in FIGURES if figure.convention.startswith("FLOPs = 2") and figure.flops_G]
    assert len(twice) > 40
    for figure in twice:
        assert figure.macs == float(figure.flops_G) * 1e9 / 2
    (resnet,) = (figure for figure in twice if figure.variant == "resnet50")
    assert resnet.flops_G == "8.5"
    assert resnet.macs == 4.25e9
    assert resnet.macs_rounding == pytest.approx(0.025e9)


@pytest.mark.parametrize(
    ("count", "agrees"), [(15.4e9, True), (15.554e9, True), (15.246e9, True), (15.56e9, False), (15.24e9, False)]
)
def test_macs_may_differ_by_one_per_cent(count: float, agrees: bool) -> None:
    assert SWIN_B.agrees("macs", count) is agrees


def test_parameters_may_differ_by_the_rounding_or_by_six_per_thousand() -> None:
    assert SWIN_B.agrees("params", 87.5e6)
    assert not SWIN_B.agrees("params", 87.4e6)
    assert replace(SWIN_B, params_M="88.000").agrees("params", 88.5e6)
    assert not replace(SWIN_B, params_M="88.000").agrees("params", 88.6e6)
    assert replace(SWIN_B, params_M="").agrees("params", 88e6) is None


def test_the_models_own_paper_is_shown_before_others() -> None:
    found = published.find(("swin_b",), (3, 224, 224))
    own = published.chosen(found, "macs", ("2103.14030", "microsoft/Swin-Transformer"))
    assert own is not None
    assert "2103.14030" in own.source
    assert published.chosen((), "macs", ("2103.14030",)) is None
    remembered = replace(SWIN_B, source="paper, from memory: Swin (arXiv 2103.14030)")
    assert published.chosen((remembered, replace(SWIN_B, source="a blog")), "macs", ("2103.14030",)) != remembered


def test_beside_gives_relative_differences_and_the_reason() -> None:
    found = published.beside(("vit_l16",), ("2010.11929",), (3, 224, 224), params=304_326_632, macs=61_554_712_576)
    assert found.published_params == 307e6
    assert found.params_difference == pytest.approx(304_326_632 / 307e6 - 1)
    assert "ViT-L/32" in found.published_reason
    nothing = published.beside(("vit_l16",), ("2010.11929",), (3, 9, 9), params=1, macs=1)
    assert nothing.published_params is nothing.macs_difference is None


@pytest.mark.parametrize(
    ("model", "size", "top1", "source"),
    [
        # The model's own paper, though torchvision and mmpretrain come first in the file.
        ("deit_s16", 224, "79.8", "2012.12877"),
        # Trained on ImageNet-1k alone before the paper's own, which is of JFT-300M at 384 px.
        ("vit_l32", 224, "76.972", "torchvision"),
        # Of sources that are not its own, that which has most of the family: PVT's and T2T-ViT's tables come first in the file.
        ("vit_b16", 224, "83.8", "DeiT III"),
        ("vit_b16", 384, "85.0", "DeiT III"),
        ("vit_l16", 224, "84.9", "DeiT III"),
        # Pooled by convolution; the rows of max-pool come first in the paper's Table 17.
        ("mvit_b_16_image", 224, "83.0", "2104.11227"),
        ("mvit_b_24_image", 224, "83.4", "2112.01526"),
        ("mvit_b_24_wide_image", 320, "84.8", "2104.11227"),
        # Only with more data.
        ("vit_ti16", 224, "73.75", "2106.10270"),
        ("swin_b", 384, "84.5", "2103.14030"),
        # At 224 px there is only a figure of fine-tuning at 384 px.
        ("r50_vit_b16", 224, None, ""),
        # Of CIFAR-10, of Flowers-102, of Kinetics-400.
        ("cct_2_3x2_32", 32, None, ""),
        ("cct_7_7x2_224", 224, None, ""),
        ("vivit_l_16x2_fe", 224, None, ""),
    ],
)
def test_the_top1_of_imagenet_that_stands_for_a_model(model: str, size: int, top1: str | None, source: str) -> None:
    variant = catalog.VARIANTS[model]
    shape = (*variant.input_shape[:-2], size, size)
    found = published.imagenet_top1(variant.published_ids, variant.paper.cited_as, shape)
    assert (found.top1 if found else None) == top1
    assert found is None or source in found.source


def test_of_one_recipe_a_larger_vit_is_better_and_no_figure_is_another_models() -> None:
    for size, models in (
        (224, ("vit_s16", "vit_m16", "vit_b16", "vit_l16", "vit_h14")),
        (384, ("vit_s16", "vit_b16", "vit_l16")),
    ):
        found = [
            published.imagenet_top1((name,), catalog.VARIANTS[name].paper.cited_as, (3, size, size)) for name in models
        ]
        top1 = [float(figure.top1) for figure in found if figure is not None]
        assert len(top1) == len(models)
        assert top1 == sorted(top1)
    others = [figure for figure in FIGURES if "top-1 is of another model" in figure.notes]
    # PVT's ViT-B/16 has DeiT-B's training; the paper's three of MViT are pooled by maximum.
    assert {figure.variant for figure in others} == {
        "vit_b16",
        "mvit_b_16_image",
        "mvit_b_24_image",
        "mvit_b_24_wide_image",
    }
    assert not any(figure.has_imagenet_top1() for figure in others)


def test_no_top1_of_another_data_set_or_size_is_taken_for_imagenets() -> None:
    taken = [figure for figure in FIGURES if figure.has_imagenet_top1()]
    assert {figure.data for figure in taken} == {
        "IN-1k",
        "IN-1k 90 ep",
        "IN-1k SimMIM",
        "IN-1k (V2 weights; V1 76.130)",
        "IN-1k (V2 weights; V1 77.374)",
        "IN-1k (V2 weights; V1 78.312)",
        "IN-21k -> IN-1k",
        "IN-21k/22k -> IN-1k",
        "IN-21k 300 ep -> IN-1k",
        "IN-22k @192 -> IN-1k",
        "IN-22K-ext-70M",
        "JFT-300M",
        "JFT-3B",
        "JFT-300M -> IN-1k",
        "JFT-300M unlabeled + IN-1k",
        "IG-3.6B hashtags -> IN-1k",
        "distilled",
    }
    # Noisy Student is trained on JFT's images too, whatever a converted checkpoint's table says.
    assert all(figure.more_data for figure in taken if figure.variant.startswith("efficientnet_l2"))


def test_pretraining_compute_is_that_of_table_6() -> None:
    found = {
        (figure.paper_name, figure.data[:14]): figure.pretrain_exaflops
        for figure in FIGURES
        if figure.pretrain_exaflops
    }
    assert len(found) == 18
    assert found["ViT-H/14", "JFT-300M 14 ep"] == 4262
    # The figure itself is derived from it: 2 x MACs x 3 x epochs x 303 million images.
    assert all(
        figure.pretrain_exaflops == pytest.approx(float(figure.flops_G) * 3 * epochs * 303e6 / 1e9, rel=0.01)
        for figure in FIGURES
        if figure.pretrain_exaflops
        for epochs in [14 if "14 ep" in figure.data else 7]
    )
