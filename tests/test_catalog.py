"""The catalog: every row can be built, is what it says, and joins the published figures."""

from __future__ import annotations

import re

import pytest
import timm

from vitbench import build, catalog, published
from vitbench.errors import UnknownName

ROWS = list(catalog.VARIANTS.values())

# Parameters of the official implementations' own models, counted from their state dicts: microsoft/Swin-Transformer at f82860b,
# facebookresearch/deit at 7e160fe, facebookresearch/mvit at dfbdfdf, whai362/PVT, google-research/vision_transformer at c6de1e5,
# SHI-Labs/Compact-Transformers at cd11f09. Swin V2 "w12to16" and the like have the parameters of their window.
OFFICIAL_PARAMS = {
    "cct_2_3x2_32": 283_723,
    "deit_b16": 86_567_656,
    "deit_b16_dist": 87_338_192,
    "deit_b16_dist_384": 87_630_032,
    "deit_s16_dist": 22_436_432,
    "deit_ti16_dist": 5_910_800,
    "mvitv2_b": 51_472_744,
    "mvitv2_l": 217_992_952,
    "mvitv2_s": 34_870_216,
    "mvitv2_t": 24_173_320,
    "pvt_v2_b0": 3_666_760,
    "pvt_v2_b1": 14_009_000,
    "pvt_v2_b2": 25_362_856,
    "pvt_v2_b2_li": 22_553_512,
    "pvt_v2_b3": 45_238_696,
    "pvt_v2_b4": 62_556_072,
    "pvt_v2_b5": 81_956_008,
    "r50_vit_b16": 98_659_112,
    "swin_b": 87_768_224,
    "swin_l": 196_532_476,
    "swin_s": 49_606_258,
    "swin_t": 28_288_354,
    "swinv2_b_w16": 87_918_816,
    "swinv2_l_w16": 196_739_932,
    "swinv2_s_w16": 49_728_418,
    "swinv2_t_w16": 28_347_154,
    "swinv2_t_w8": 28_347_154,
    "vit_b16": 86_567_656,
    "vit_l16": 304_326_632,
}

# Families of which the papers print figures for the larger models only.
UNPRINTED = ("cct", "compact_cvt", "vit_lite", "vivit")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_builds_what_it_says(row: catalog.Variant) -> None:
    model = build.plan(row.name).build("meta")
    assert build.input_shape(model) == row.input_shape
    assert model.num_classes == row.num_classes
    if row.name in OFFICIAL_PARAMS:
        assert sum(parameter.numel() for parameter in model.parameters()) == OFFICIAL_PARAMS[row.name]


def test_official_counts_name_rows_of_the_catalog() -> None:
    assert set(OFFICIAL_PARAMS) <= set(catalog.VARIANTS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_well_formed(row: catalog.Variant) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", row.name)
    assert re.fullmatch(r"\d{4}\.\d{5}", row.paper.arxiv)
    assert row.paper.year == 2000 + int(row.paper.arxiv[:2])
    assert timm.is_model(row.timm_name)
    assert published.find(row.published_ids) or row.name == "regnety_16gf" or row.family in UNPRINTED


def test_only_some_compact_transformers_vivits_and_deits_teacher_have_no_printed_figures() -> None:
    """The former's paper prints its larger models, all with learnt positions; ViViT's, one tubelet of each size."""
    without = {row.name for row in ROWS if not published.find(row.published_ids)}
    printed = {f"vivit_b_16x2_{model}" for model in ("m1", "fe", "fsa", "fdp", "avgpool")}
    printed |= {"vivit_l_16x2_m1", "vivit_l_16x2_fe", "vivit_h_16x2_m1", "vivit_h_14x2_m1"}
    assert {name for name in without if name.startswith("vivit")} == {
        row.name for row in ROWS if row.family == "vivit" and row.name not in printed
    }
    without = {name for name in without if not name.startswith("vivit")}
    assert without == {
        "regnety_16gf",
        *(row.name for row in ROWS if row.name.endswith("_sine")),
        *(f"{name}_{depth}_4_32" for name in ("compact_cvt", "vit_lite") for depth in (2, 4)),
    }


def test_no_native_name_is_timms_own() -> None:
    """A short name that timm also had would build one model here and another there."""
    for row in ROWS:
        # timm's efficientnet_l2 is the same network with PyTorch's padding, for which nobody released weights.
        if timm.is_model(row.name) and row.name not in ("efficientnet_l2", row.timm_name.partition(".")[0]):
            pytest.fail(f"{row.name} is another model of timm's")


def test_names_that_the_issue_of_the_field_uses() -> None:
    assert catalog.find("swin_b").family == "swin"
    assert [row.name for row in catalog.match("swin_?")] == ["swin_t", "swin_s", "swin_b", "swin_l"]
    assert all(row.family == "pvt_v2" for row in catalog.of_family("pvt_v2"))


def test_another_size_of_the_same_model_is_found() -> None:
    swin = catalog.find("swin_b")
    assert catalog.at_size(swin, (384, 384)).name == "swin_b_384"
    assert catalog.at_size(swin, (256, 256)).name == "swin_b"
    assert catalog.at_size(catalog.find("swin_b_384"), (224, 224)).name == "swin_b"


def test_misspelt_names_and_families_get_suggestions() -> None:
    with pytest.raises(UnknownName, match="swin_b"):
        catalog.find("swim_b")
    with pytest.raises(UnknownName, match="swin"):
        catalog.of_family("swim")


def test_clips_are_sampled_as_their_papers_say() -> None:
    """TimeSformer: the official configs/Kinetics (8x32, 16x16, 96x4); ViViT: scenic's configs; MViT: the name's last number."""
    for row in ROWS:
        if row.modality == "image":
            assert row.frame_stride is None, row.name
        elif row.family == "timesformer":
            assert (row.input_shape[1], row.frame_stride) in ((8, 32), (16, 16), (96, 4)), row.name
        elif row.family == "vivit":
            assert (row.input_shape[1], row.frame_stride) == (32, 2), row.name
        else:
            assert row.name.endswith(f"_{row.input_shape[1]}x{row.frame_stride}"), row.name


def test_the_demonstration_model_is_found_and_is_in_no_table() -> None:
    demo = catalog.find("vit_demo")
    assert demo is catalog.DEMO
    assert demo.name not in catalog.VARIANTS
    assert demo.family not in catalog.families()
    assert not published.find(demo.published_ids)
    model = build.plan(demo.name).build("meta")
    assert build.input_shape(model) == demo.input_shape
    assert model.num_classes == demo.num_classes
