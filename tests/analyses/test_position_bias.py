"""Relative position bias: planted tables, the models' own biases, and the closed form of uniform attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from vitbench import catalog
from vitbench.analyses import position_bias
from vitbench.analyses.position_bias import PositionBias, analyze, by_offset, mean_distance
from vitbench.build import create_model
from vitbench.drawing import pictures
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import HeadBias
from vitbench.reports import console

# Small members of families, and what each adds to its attention, (1, h, q, k), as its own code has it; class tokens cut off.
SWIN: dict[str, Any] = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "img_size": 56}
BEIT: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64}
MODELS: dict[str, tuple[str, dict[str, Any], str, Any]] = {
    "Swin": ("swin_tiny_patch4_window7_224", SWIN, "WindowAttention", lambda one: one._get_rel_pos_bias()),
    "Swin V2-CR": (
        "swinv2_cr_tiny_224",
        {**SWIN, "window_size": 7},
        "WindowMultiHeadAttention",
        lambda one: one._relative_positional_encodings(),
    ),
    "BEiT": ("beit_base_patch16_224", BEIT, "Attention", lambda one: one._get_rel_pos_bias()[:, :, 1:, 1:]),
    "BEiT, shared": (
        "beit_base_patch16_224",
        {**BEIT, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
        "RelativePositionBias",
        lambda one: one().view(1, 3, 17, 17)[:, :, 1:, 1:],
    ),
    "ViT with RelPosBias": (
        "vit_relpos_small_patch16_224",
        {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": (64, 96), "rel_pos_type": "bias"},
        "RelPosBias",
        lambda one: one.get_bias(),
    ),
    "ViT with RelPosMlp": (
        "vit_relpos_small_patch16_224",
        {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64},
        "RelPosMlp",
        lambda one: one.get_bias(),
    ),
    "CoAtNet": ("test_coatnet", {}, "RelPosBias", lambda one: one.get_bias()),
    "MaxViT": ("test_maxvit", {}, "RelPosBias", lambda one: one.get_bias()),
    "MaxViT of TensorFlow": ("maxvit_tiny_tf_224", {}, "RelPosBiasTf", lambda one: one.get_bias()[None]),
    "LeViT": (
        "levit_128s",
        {},
        "Attention",
        lambda one: one.attention_biases[:, one.attention_bias_idxs][None],
    ),
    "TinyViT": ("tiny_vit_5m_224", {}, "Attention", lambda one: one.attention_biases[:, one.attention_bias_idxs][None]),
}


def random_bias(model: nn.Module) -> nn.Module:
    """Gives all tables of biases other numbers than zeros, the same at each call."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(("relative_position_bias_table", "attention_biases")):
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def swin(**options: Any) -> nn.Module:
    model: nn.Module = timm.create_model("swin_tiny_patch4_window7_224", **{**SWIN, **options})
    return model


def heads(found: PositionBias, layer: int) -> list[HeadBias]:
    return [row for row in found.rows if row.layer == layer]


def tile(row: HeadBias) -> np.ndarray[Any, Any]:
    return np.reshape(row.values, (row.tile_height, row.tile_width))


def slow_distance(bias: Tensor, window: tuple[int, int], pitch: float = 1.0) -> float:
    """The mean distance by softmax(bias), (q, k), pair by pair."""
    places = [(row, column) for row in range(window[0]) for column in range(window[1])]
    total = 0.0
    for q, query in enumerate(places):
        weights = [math.exp(value) for value in bias[q].tolist()]
        for k, key in enumerate(places):
            total += weights[k] / sum(weights) * math.dist(query, key) * pitch
    return total / len(places)


@pytest.mark.parametrize("family", MODELS)
def test_a_tile_is_the_models_own_bias_seen_from_the_query(family: str) -> None:
    name, options, kind, own_bias = MODELS[family]
    model = random_bias(timm.create_model(name, **options)).eval()
    found = analyze(model)
    modules = dict(model.named_modules())
    layers = list(dict.fromkeys(row.module for row in found.rows))
    assert layers
    for number, path in enumerate(layers):
        assert type(modules[path]).__name__ == kind
        own = own_bias(modules[path]).detach()[0]
        rows = heads(found, number)
        assert len(rows) == len(own)
        for row, bias in zip(rows, own, strict=True):
            picture, (height, width) = tile(row), (row.window_height, row.window_width)
            assert picture.shape == (2 * height - 1, 2 * width - 1)
            for q in range(0, height * width, 5):
                qy, qx = divmod(q, width)
                seen = picture[height - 1 - qy : 2 * height - 1 - qy, width - 1 - qx : 2 * width - 1 - qx]
                np.testing.assert_allclose(seen.flatten(), bias[q], atol=1e-6)
        assert rows[-1].distance_tokens == pytest.approx(slow_distance(own[-1], (height, width)), rel=1e-5)


def test_a_tile_of_swin_is_its_table_turned_around() -> None:
    # Swin's table is by query less key, from the least; a tile is by key less query.
    model: Any = random_bias(swin())
    table = model.layers[0].blocks[0].attn.relative_position_bias_table.detach()
    np.testing.assert_allclose(tile(analyze(model).rows[1]), table[:, 1].view(13, 13).flip(0, 1), atol=1e-6)


def test_swin_v2_evaluates_its_network_on_logarithmic_offsets() -> None:
    # Swin V2, equations 3 and 4; the factor 8 and the sigmoid are the official code's.
    options: dict[str, Any] = {"embed_dim": 24, "depths": (2,), "num_heads": (2,), "img_size": 32, "window_size": 8}
    model: Any = timm.create_model("swinv2_tiny_window8_256", **options)
    found = analyze(model)
    network = model.layers[0].blocks[0].attn.cpb_mlp
    for row in heads(found, 0):
        for dy, dx in ((0, 0), (-7, 3), (2, -5), (7, 7)):
            offsets = [-dy, -dx]  # query less key
            logs = [math.copysign(math.log2(1 + abs(8 * offset / 7)) / 3, offset) for offset in offsets]
            output = network(torch.tensor(logs))[row.head].item()
            assert tile(row)[7 + dy, 7 + dx] == pytest.approx(16 / (1 + math.exp(-output)), abs=1e-5)


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_a_table_that_falls_with_the_distance_gives_the_distance_of_its_softmax(beta: float) -> None:
    # Planted: head k of Swin has the bias -k beta x distance.
    model: Any = swin()
    ys, xs = torch.meshgrid(torch.arange(-6, 7), torch.arange(-6, 7), indexing="ij")
    distance = torch.hypot(ys.float(), xs.float()).flatten()
    for module in model.modules():
        table = getattr(module, "relative_position_bias_table", None)
        if table is not None:
            table.data = -beta * distance[:, None] * torch.arange(table.shape[1])
    found = analyze(model)
    places = torch.cartesian_prod(torch.arange(7), torch.arange(7)).double()
    bias = -beta * torch.cdist(places, places)
    for row in found.rows:
        expected = slow_distance(bias * row.head, (7, 7))
        assert row.distance_tokens == pytest.approx(expected, rel=1e-5)
        # feature_info: a token of the first stage is 4 pixels wide, of the second 8.
        assert row.distance_px == pytest.approx(expected * (4 if row.layer < 2 else 8), rel=1e-5)
    local = [row.distance_tokens for row in heads(found, 2)]
    assert local == sorted(local, reverse=True)


def stages(kinds: str, windows: tuple[int, ...], pitches: tuple[int, ...], depths: tuple[int, ...]) -> list[Any]:
    """Gives scope, window and pitch of each layer; the initials of `kinds` are those of the scopes."""
    scopes = [{"w": "window", "m": "map"}[kind] for kind in kinds]
    parts = zip(scopes, windows, pitches, depths, strict=True)
    return [(scope, window, pitch) for scope, window, pitch, depth in parts for _ in range(depth)]


@pytest.mark.parametrize(
    ("name", "size", "scopes"),
    [
        ("swin_t", 224, stages("wwwm", (7, 7, 7, 7), (4, 8, 16, 32), (2, 2, 6, 2))),
        ("swinv2_t_w8", 256, stages("wwwm", (8, 8, 8, 8), (4, 8, 16, 32), (2, 2, 6, 2))),
        ("coatnet_0", 224, stages("mm", (14, 7), (16, 32), (5, 2))),
        ("vit_rel", 224, stages("m", (14,), (16,), (12,))),
        ("coatnet_rmlp_nano_rw_224", 224, stages("mm", (14, 7), (16, 32), (6, 3))),
        ("gcvit_xxtiny", 224, stages("wwmm", (7, 7, 14, 7), (4, 8, 16, 32), (2, 2, 6, 2))),
        # Each block attends in windows, then in grids, whose tokens are spread over the map, 224 / 7 pixels apart at every stage.
        (
            "maxvit_tiny_tf_224",
            224,
            [
                layer
                for window in stages("wwwm", (7, 7, 7, 7), (4, 8, 16, 32), (2, 2, 5, 2))
                for layer in (window, ("grid", 7, 32))
            ],
        ),
    ],
)
def test_without_bias_the_distance_is_that_of_uniform_attention(
    name: str, size: int, scopes: list[tuple[str, int, int]]
) -> None:
    # Closed form: p / n^4 times the sum over offsets of (n - |a|)(n - |b|) sqrt(a^2 + b^2), a window of n x n at p pixels.
    found = analyze(create_model(name), input_size=(size, size))
    layers = {row.layer: row for row in found.rows}
    assert [(row.scope, row.window_height) for row in layers.values()] == [scope[:2] for scope in scopes]
    for row, (_, n, pitch) in zip(layers.values(), scopes, strict=True):
        offsets = range(1 - n, n)
        uniform = sum((n - abs(a)) * (n - abs(b)) * math.hypot(a, b) for a in offsets for b in offsets) / n**4
        assert row.uniform_tokens == pytest.approx(uniform, rel=1e-9)
        assert row.uniform_px == pytest.approx(pitch * uniform, rel=1e-9)
        assert row.distance_px == pytest.approx(row.uniform_px, rel=0.02)  # random tables are small


def test_published_uniform_distances() -> None:
    # Swin's four stages at 224 pixels, and a map of 14 x 14 tokens, computed independently to six digits.
    uniform = torch.full((1, 49, 49), 1 / 49, dtype=torch.float64)
    expected = {4: 14.437862, 8: 28.875723, 16: 57.751447, 32: 115.502894}
    for pitch, px in expected.items():
        assert mean_distance(uniform, (7, 7), (pitch, pitch)).item() == pytest.approx(px, abs=1e-6)
    uniform = torch.full((196, 196), 1 / 196, dtype=torch.float64)
    assert mean_distance(uniform, (14, 14), (16.0, 16.0)).item() == pytest.approx(116.492227, abs=1e-6)
    line = torch.full((14, 14), 1 / 14, dtype=torch.float64)
    assert mean_distance(line, (1, 14), (99.0, 16.0)).item() == pytest.approx(16 * (14**2 - 1) / (3 * 14))
    assert mean_distance(torch.eye(49), (7, 7)).item() == 0


def test_a_rectangular_window_of_the_whole_map_has_a_pitch_each_way() -> None:
    model = create_model("coatnet_0", img_size=(64, 96), device="cpu")
    found = analyze(model, input_size=(64, 96))
    first = found.rows[0]
    assert (first.window_height, first.window_width, first.tile_width) == (4, 6, 11)
    assert first.uniform_px == pytest.approx(16 * first.uniform_tokens)
    # Without the input the native CoAtNet does not say how wide a token is.
    assert analyze(model).rows[0].distance_px is None


def test_class_tokens_and_constants_change_nothing() -> None:
    model: Any = random_bias(timm.create_model("beit_base_patch16_224", **BEIT))
    before = analyze(model)
    for block in model.blocks:
        block.attn.relative_position_bias_table.data[-3:] += 100
    assert analyze(model).rows == before.rows
    for block in model.blocks:
        block.attn.relative_position_bias_table.data += 3
    for one, other in zip(analyze(model).rows, before.rows, strict=True):
        assert one.distance_tokens == pytest.approx(other.distance_tokens, rel=1e-5)
        assert np.array(one.values) - 3 == pytest.approx(np.array(other.values), abs=1e-5)


def test_a_bias_by_distances_is_the_same_on_either_side() -> None:
    found = analyze(random_bias(timm.create_model("levit_128s")))
    for row in found.rows:
        np.testing.assert_array_equal(tile(row), tile(row)[::-1, ::-1])
        np.testing.assert_array_equal(tile(row), tile(row)[:, ::-1])
    assert any("its queries are fewer than its keys" in note for note in found.notes)


def test_the_model_is_left_as_it_was_and_judged_without_dropout() -> None:
    # The network of RelPosMlp has dropout, which would give other numbers each time.
    model = timm.create_model("vit_relpos_small_patch16_224", embed_dim=48, depth=2, num_heads=3, img_size=64)
    assert analyze(model).rows == analyze(model).rows
    assert all(module.training for module in model.modules())


def test_a_bias_that_is_none_of_the_offset_is_refused() -> None:
    with pytest.raises(ValueError, match="differs between pairs of tokens of the same offset"):
        by_offset(torch.arange(16.0).view(1, 4, 4), (2, 2))
    model: Any = random_bias(swin())
    model.layers[0].blocks[0].attn.relative_position_bias_table.data[3] = torch.inf
    with pytest.raises(BadInput, match=r"layers.0.blocks.0.attn is not finite"):
        analyze(model)


NO_BIAS = "no layer adds a bias for the offset between query and key"
FAMILIES: dict[str, tuple[str, str]] = {
    "swin": ("swin_t", ""),
    "swinv2": ("swinv2_t_w8", ""),
    "coatnet": ("coatnet_0", ""),
    "mvitv2": ("mvitv2_t", "multiplied with queries, so that there is no bias without an image"),
    "vit": ("vit_ti16", NO_BIAS),
    "vit_hybrid": ("r_vit_ti16", NO_BIAS),
    "bit": ("bit_r50x1", NO_BIAS),
    "resnet": ("resnet50", NO_BIAS),
    "regnet": ("regnety_16gf", NO_BIAS),
    "efficientnet": ("efficientnet_l2", NO_BIAS),
    "deit": ("deit_ti16_dist", NO_BIAS),
    "pvt_v2": ("pvt_v2_b0", NO_BIAS),
    "cvt": ("cvt_13", NO_BIAS),
    "t2t_vit": ("t2t_vit_7", NO_BIAS),
    "pvt": ("pvt_tiny", NO_BIAS),
    "cct": ("cct_2_3x2_32", NO_BIAS),
    "compact_cvt": ("compact_cvt_2_4_32", NO_BIAS),
    "vit_lite": ("vit_lite_2_4_32", NO_BIAS),
    "vivit": ("vivit_b_16x2_m1", NO_BIAS),
    "timesformer": ("timesformer", NO_BIAS),
    "mvit": ("mvit_b_16x4", NO_BIAS),
}
OTHERS = [
    ("mvitv2_s_16x4", "multiplied with queries, so that there is no bias without an image"),
    ("samvit_base_patch16_224", "multiplied with queries, so that there is no bias without an image"),
    ("vit_small_patch16_dinov3", "its positions are rotary"),
    ("coatnet_0_cccc", NO_BIAS),
]


def test_every_family_of_the_catalog_is_tried() -> None:
    assert set(FAMILIES) == {variant.family for variant in catalog.VARIANTS.values()}


@pytest.mark.parametrize(
    ("name", "reason"), [*((name, reason) for name, reason in FAMILIES.values() if reason), *OTHERS]
)
def test_what_has_no_bias_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(NotDefined, match=reason) as caught:
        analyze(create_model(name, device="meta"))
    assert caught.value.instead


def test_tiles_are_drawn_less_their_mean_with_the_limit_of_their_layer() -> None:
    model: Any = random_bias(swin())
    model.layers[0].blocks[0].attn.relative_position_bias_table.data += 50
    found = analyze(model)
    figure = position_bias.draw({"mine": found})
    tiles, dots = figure.axes[:2]
    strips = tiles.get_images()
    assert len(strips) == 4
    for layer, strip in enumerate(strips):
        assert strip.get_clim() == (-1, 1)
        picture: np.ndarray[Any, Any] = np.ma.filled(np.ma.asarray(strip.get_array()), np.nan)
        pictured = [tile(row) - tile(row).mean() for row in heads(found, layer)]
        limit = max(np.abs(one).max() for one in pictured)
        np.testing.assert_allclose(picture[:, :13] * limit, pictured[0], atol=1e-9)
        assert np.isnan(picture[:, 13]).all()
        assert np.nanmax(np.abs(picture)) == pytest.approx(1)
    lines = [line for line in dots.get_lines() if line.get_marker() == "."]
    shown = [float(x) for line in lines for x in np.asarray(line.get_xdata())]
    assert shown == pytest.approx([row.distance_px for row in found.rows])
    assert "pixels" in dots.get_xlabel()


def test_tables_of_zeros_and_unknown_pixels_are_drawn() -> None:
    model = timm.create_model("beit_base_patch16_224", **BEIT)  # whose tables begin as zeros
    found = analyze(model)
    assert found.rows[0].distance_tokens == pytest.approx(found.rows[0].uniform_tokens)
    coatnet = analyze(create_model("coatnet_0", img_size=64, device="cpu"))
    figure = position_bias.draw({"zeros": found, "no pixels": coatnet})
    pictures.rendered(figure, ".png")
    assert "tokens" in figure.axes[3].get_xlabel()


@pytest.mark.parametrize("ending", pictures.TIMELESS)
def test_the_same_weights_make_the_same_file(ending: str) -> None:
    found = [analyze(random_bias(swin())) for _ in range(2)]
    files = [pictures.rendered(position_bias.draw({"a $x$ _b": one, "other": one}), ending) for one in found]
    assert files[0] == files[1]


def test_the_table_has_a_line_a_layer() -> None:
    found = analyze(random_bias(swin()))
    shown = position_bias.table({"mine": found})
    assert [row["heads"] for row in shown.rows] == [2, 2, 4, 4]
    first = [row.distance_tokens for row in heads(found, 0)]
    assert (shown.rows[0]["least_tokens"], shown.rows[0]["most_tokens"]) == (min(first), max(first))
    assert "7x7 window" in console.render(shown)
    assert "Model" not in console.render(shown)
    assert "Model" in console.render(position_bias.table({"mine": found, "other": found}))
