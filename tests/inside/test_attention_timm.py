"""Attention of timm's own classes: uniform where queries and keys are zeroed, and worked out anew where tokens stand oddly.

The uniform values are those of shared grids, windows and pooled keys at 224 pixels in closed form, or are worked out here, pair
by pair, from centres written by hand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitbench.analyses import attention_distance
from vitbench.errors import NotDefined
from vitbench.inside import attention_sites, observing
from vitbench.inside.attention import Tap

# What makes queries, keys and biases, in the classes looked at.
ASKING = (
    *("qkv", ".q.", ".k.", ".kv.", ".qk.", "query", ".key.", "pwise", "attention_biases", "rel_pos"),
    *("height_rel", "width_rel", "meta_mlp", "talking_head1", "proj_l", "logit_scale", ".dws."),
)


def built(name: str, **settings: Any) -> nn.Module:
    """Gives a model in which nothing that is nought at the start hides what attention does."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=10, **settings).eval()
    for parameter in model.parameters():
        if float(parameter.detach().abs().max()) < 1e-3:
            nn.init.normal_(parameter, std=0.1)
    return model


def image(model: Any, size: int | None = None) -> Tensor:
    torch.manual_seed(1)
    default = model.pretrained_cfg["input_size"]
    return torch.randn(2, 3, size or default[1], size or default[2])


def mean_distance(queries: Iterable[tuple[float, float]], keys: Iterable[tuple[float, float]]) -> float:
    """The mean distance of all queries to all keys, pair by pair."""
    among = list(keys)
    asked = list(queries)
    total = sum(math.dist(one, other) for one in asked for other in among)
    return total / (len(asked) * len(among))


def lattice(count: int, pitch: float, start: float = 0.0) -> list[tuple[float, float]]:
    """Squares of points."""
    axis = [start + pitch * number for number in range(count)]
    return list(itertools.product(axis, axis))


FOUR_AT_64 = mean_distance(lattice(4, 64.0), lattice(4, 64.0))
PIT = mean_distance(lattice(27, 8.0), lattice(27, 8.0))
TNT_PIXELS = mean_distance(lattice(4, 4.0), lattice(4, 4.0))
# A unit of 8 x 8, 4 x 4 and 2 x 2 tokens, asked by its tokens or by means of 2 x 2 of them.
HIERA = (
    16.545931,
    mean_distance(lattice(4, 8.0, 2.0), lattice(8, 4.0)),
    mean_distance(lattice(4, 8.0), lattice(4, 8.0)),
    mean_distance(lattice(2, 16.0, 4.0), lattice(4, 8.0)),
    116.492227,
    mean_distance(lattice(7, 32.0, 8.0), lattice(14, 16.0)),
    115.502894,
)
CROSSVIT = (
    mean_distance(lattice(20, 12.0), lattice(20, 12.0)),
    mean_distance(lattice(14, 240 / 14), lattice(14, 240 / 14)),  # of 16 pixels, after 240 are made 224
)
MOBILENET = mean_distance(lattice(16, 16.0), lattice(8, 32.0))


def runs(side: int, pitch: float, length: int) -> list[tuple[float, float]]:
    """Means of so many points of a square that follow each other in reading order."""
    points = lattice(side, pitch)
    parts = [points[first : first + length] for first in range(0, len(points), length)]
    return [(sum(y for y, _ in part) / length, sum(x for _, x in part) / length) for part in parts]


NEXTVIT = (
    mean_distance(lattice(28, 8.0), runs(28, 8.0, 16)),
    mean_distance(lattice(14, 16.0), runs(14, 16.0, 4)),
    115.502894,
)


def halo(side: int, pitch: float, block: int, reach: int) -> float:
    """Each token of a block attends to those of the block and around it that are in the image."""
    far = []
    for y, x in itertools.product(range(side), repeat=2):
        top, left = y // block * block, x // block * block
        window = [
            (row, column)
            for row in range(max(0, top - reach), min(side, top + block + reach))
            for column in range(max(0, left - reach), min(side, left + block + reach))
        ]
        far.append(sum(math.dist((y, x), one) for one in window) / len(window) * pitch)
    return sum(far) / len(far)


# Values in the order in which layers first have them.
WINDOWS = (14.437862, 28.875723, 57.751447, 115.502894)
CASES: list[tuple[str, dict[str, Any], tuple[float, ...]]] = [
    ("levit_128s", {}, (116.492227, 115.502894, 122.698320, FOUR_AT_64)),
    ("levit_conv_128s", {}, (116.492227, 115.502894, 122.698320, FOUR_AT_64)),
    (
        "twins_svt_small",
        {"depths": (2, 2, 2, 2)},
        (14.437862, 116.216577, 28.875723, 116.190408, 57.751447, 116.088007, 115.502894),
    ),
    ("twins_pcpvt_small", {"depths": (1, 1, 1, 1)}, (116.216577, 116.190408, 116.088007, 115.502894)),
    ("nest_tiny_jx", {}, (116.492227 / 4, 116.492227 / 2, 116.492227)),
    ("hiera_tiny_224", {"stages": (1, 2, 2, 2)}, HIERA),
    ("tiny_vit_5m_224", {"depths": (1, 1, 1, 1)}, (28.875723, 116.492227, 115.502894)),
    ("mobilevit_xxs", {}, (133.217204, 8 * 16.545931, FOUR_AT_64)),
    ("cait_xxs24_224", {"depth": 2}, (116.492227,)),
    ("pit_ti_distilled_224", {"depth": (1, 1, 1)}, (PIT, 116.492227, 115.502894)),
    ("visformer_tiny", {"depth": (1, 1, 1)}, (116.492227, 115.502894)),
    ("tnt_s_patch16_224", {"depth": 2}, (TNT_PIXELS, 116.492227)),
    ("tnt_s_legacy_patch16_224", {"depth": 1}, (TNT_PIXELS, 116.492227)),
    ("samvit_base_patch16_224", {"depth": 3, "embed_dim": 96, "num_heads": 2}, (116.492227,)),
    ("gcvit_xxtiny", {}, (14.437862, 28.875723, 116.492227, 115.502894)),
    ("davit_tiny", {"depths": (1, 1, 1, 1)}, WINDOWS),
    (
        "swinv2_cr_tiny_224",
        {"depths": (2, 2, 2, 2)},
        (14.437862, 13.593857, 28.875723, 25.458148, 57.751447, 43.748700, 115.502894),
    ),
    ("caformer_s18", {}, (116.492227, 115.502894)),
    ("efficientformer_l1", {}, (115.502894,)),
    ("efficientformerv2_s0", {}, (115.502894, 116.492227)),
    ("fastvit_sa12", {"layers": (1, 1, 1, 1)}, (8 * 16.545931,)),
    ("nextvit_small", {}, NEXTVIT),
    ("botnet26t_256", {}, (133.217204, 8 * 16.545931)),
    (
        "halonet26t",
        {},
        # The layer between asks from every second row and column alone: in a grid of blocks that is no other mean by symmetry.
        (halo(16, 16.0, 8, 2), 8 * 16.545931),
    ),
    ("volo_d1_224", {}, (116.492227,)),
    ("crossvit_tiny_240", {"depth": ((1, 1, 0),)}, CROSSVIT),
    ("convit_tiny", {"depth": 2, "local_up_to_layer": 1}, (116.492227,)),
    ("naflexvit_base_patch16_gap", {"depth": 1}, (200.047983,)),
    ("mobilenetv4_hybrid_medium", {}, (MOBILENET, 8 * 16.545931)),
    ("shvit_s1", {}, (115.502894, FOUR_AT_64)),
    ("efficientvit_m0", {}, (57.751447, 115.502894, FOUR_AT_64)),
    ("iformer_t", {}, (116.492227, 115.502894)),
    ("lowformer_b0", {}, (115.502894,)),
    ("cpubone_nano", {}, (115.502894,)),
    ("csatv2", {}, (2 * 133.217204, 16 * 16.545931)),
]


@pytest.mark.parametrize(
    ("name", "settings", "expected"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_zeroed_queries_and_keys_attend_uniformly(
    name: str, settings: dict[str, Any], expected: tuple[float, ...]
) -> None:
    model = built(name, **settings)
    inputs = image(model)[:1]
    with torch.no_grad():
        untouched = model(inputs)
    outputs: list[Tensor] = []
    model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    observing.run(model, [inputs], [Tap([attention_distance.DistanceReader()])])
    assert float(untouched.std()) > 0
    torch.testing.assert_close(outputs[0], untouched, rtol=1e-4, atol=1e-5 * float(untouched.abs().max()))

    for label, parameter in model.named_parameters():
        if any(part in f".{label}" for part in ASKING):
            nn.init.zeros_(parameter)
    found = attention_distance.analyze(model, [inputs])
    values: list[float] = []
    for row in found.rows:
        assert row.distance_px == pytest.approx(row.uniform_px, abs=1e-3), row.layer
        if row.distance_px is not None and not any(abs(row.distance_px - value) < 1e-3 for value in values):
            values.append(row.distance_px)
    assert values == pytest.approx(expected, abs=1e-3)


def test_the_global_layers_of_sam_and_windows_that_padding_cuts() -> None:
    """At 96 pixels 14 x 14 windows of a 6 x 6 map hold 36 tokens that have a place and 160 that have none."""
    model = built("samvit_base_patch16_224", depth=3, embed_dim=96, num_heads=2, img_size=96)
    for label, parameter in model.named_parameters():
        if "qkv" in label or "rel_pos" in label:
            nn.init.zeros_(parameter)
    rows = attention_distance.analyze(model, [image(model, 96)]).rows
    whole = mean_distance(lattice(6, 16.0), lattice(6, 16.0))
    by_layer = {row.layer: (row.distance_px, row.distance_paper_px, row.prefix_mass) for row in rows}
    assert by_layer["blocks.0.attn"] == pytest.approx((whole, whole * 36 / 196, 160 / 196), abs=1e-3)
    assert by_layer["blocks.2.attn"] == pytest.approx((whole, whole, 0.0), abs=1e-3)


def test_patches_that_leave_a_rest_are_no_further_apart() -> None:
    """Six patches of 14 pixels fit on 90 pixels."""
    model = built("vit_tiny_patch16_224", patch_size=14, img_size=90, depth=1)
    row = attention_distance.analyze(model, [image(model, 90)]).rows[0]
    assert row.uniform_px == pytest.approx(mean_distance(lattice(6, 14.0), lattice(6, 14.0)), abs=1e-6)
    assert row.pitch_px == (14.0, 14.0)


def test_an_embedding_that_takes_any_size_is_asked_for_that_of_the_image() -> None:
    model = built("naflexvit_base_patch16_gap", depth=1)
    row = attention_distance.analyze(model, [torch.randn(1, 3, 64, 96)]).rows[0]
    assert row.query_grid == (4, 6)


def test_what_is_no_image_is_refused() -> None:
    model = built("naflexvit_base_patch16_gap", depth=1)
    observer = Tap([attention_distance.DistanceReader()])
    patches = {
        "patches": torch.randn(1, 4, 768),
        "patch_coord": torch.tensor([[[0, 0], [0, 1], [1, 0], [1, 1]]]),
        "patch_valid": torch.ones(1, 4, dtype=torch.bool),
    }
    with torch.no_grad(), observer.attach(model), pytest.raises(NotDefined, match="no batch of images or clips"):
        model(patches)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("xcit_nano_12_p16_224", {"depth": 1}, "channels"),
        ("edgenext_xx_small", {}, "channels"),
        ("coat_tiny", {}, "linear attention"),
        ("mobilevitv2_050", {}, "linear attention"),
        ("swiftformer_xs", {}, "linear attention"),
        ("efficientvit_b0", {}, "linear attention"),
        ("lambda_resnet26t", {}, "linear attention"),
        ("resnet50_clip", {"layers": None}, "class or pooled token"),
        ("resnet10t", {}, "no softmax attention"),
        ("vit_dpwee_patch16_reg1_gap_256", {"depth": 1}, "difference of two softmaxes"),
    ],
)
def test_attention_without_places_is_refused_with_its_reason(name: str, settings: dict[str, Any], reason: str) -> None:
    model = built(name, **{key: value for key, value in settings.items() if value is not None})
    with pytest.raises(NotDefined, match=reason):
        attention_distance.analyze(model, [image(model)[:1]])


@pytest.mark.parametrize(
    ("name", "settings", "layer", "reason"),
    [
        (
            "gcvit_xxtiny",
            {},
            "stages.0.blocks.1.attn",
            "its queries are pooled over the whole map",
        ),
        ("davit_tiny", {"depths": (1, 1, 1, 1)}, "stages.0.blocks.0.1.attn", "it attends over channels, not positions"),
        ("convit_tiny", {"depth": 2, "local_up_to_layer": 1}, "blocks.0.attn", "it mixes two softmaxes by a gate"),
        ("volo_d1_224", {}, "network.0.0.attn", "it weighs neighbourhoods that overlap"),
        (
            "crossvit_tiny_240",
            {"depth": ((1, 1, 0),)},
            "blocks.0.fusion.0.attn",
            "its query is a class or pooled token",
        ),
        ("cait_xxs24_224", {"depth": 1}, "blocks_token_only.0.attn", "its query is a class or pooled token"),
    ],
)
def test_of_a_model_that_attends_in_several_ways_some_layers_are_left_out(
    name: str, settings: dict[str, Any], layer: str, reason: str
) -> None:
    model = built(name, **settings)
    found = attention_distance.analyze(model, [image(model)[:1]])
    assert found.left_out[layer].startswith(reason)
    assert layer not in {row.layer for row in found.rows}


def test_what_a_tap_of_talking_heads_sees_is_said() -> None:
    rows = attention_distance.analyze(model := built("cait_xxs24_224", depth=1), [image(model)[:1]]).rows
    assert {row.layer for row in rows} == {"blocks.0.attn[before mixing]"}


def test_a_call_for_each_head_is_a_part_for_each_head() -> None:
    rows = attention_distance.analyze(model := built("efficientvit_m0", depth=(1, 1, 1)), [image(model)[:1]]).rows
    first = [row.layer for row in rows if row.layer.startswith("stages.0.")]
    assert first == [f"stages.0.blocks.0.mixer.m.attn[head {head}]" for head in range(4)]


def test_every_class_named_is_one_of_timm() -> None:
    from vitbench.inside import attention_timm

    for name in (*attention_timm.SITES, *attention_timm.GROUPED):
        module, _, kind = name.rpartition(".")
        assert hasattr(__import__(module, fromlist=[kind]), kind), name


# Worked out anew, pair by pair, from what each module is called with. Where its tokens lie is found in another way than there.


@contextmanager
def calls(model: nn.Module, kind: str) -> Iterator[list[tuple[str, Any, Tensor]]]:
    """Gives the modules of a class that run, each with its name and what it was called with."""
    seen: list[tuple[str, Any, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, arguments, name=name: seen.append((name, module, arguments[0])))
        for name, module in model.named_modules()
        if attention_sites.ancestry(type(module))[0] == kind
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def compared(model: nn.Module, inputs: Tensor, kind: str, anew: Callable[[str, Any, Tensor], list[float]]) -> None:
    """Holds the distances of each head of each layer against those that `anew` works out; heads look at few tokens each."""
    for label, parameter in model.named_parameters():
        if any(part in label for part in ("attn.q", ".kv.")) and parameter.dim() > 1:
            nn.init.normal_(parameter, std=2.0 * parameter[0].numel() ** -0.5)
    found = attention_distance.analyze(model, [inputs])
    with calls(model, kind) as seen, torch.no_grad():
        model(inputs)
        assert seen
        for name, module, given in seen:
            ours = [row.distance_px for row in found.rows if row.layer == name]
            assert ours == pytest.approx(anew(name, module, given), abs=1e-3), name


def attended(queries: Tensor, keys: Tensor, at: Tensor, key_at: Tensor) -> Tensor:
    """Gives the distance of each row: queries (..., n, d) at (n, 2), keys (..., m, d) at (m, 2); those at NaN do not count."""
    weights = (queries.double() @ keys.double().mT * queries.shape[-1] ** -0.5).softmax(-1)
    weights = weights * ~key_at[:, 0].isnan()
    weights = weights / weights.sum(-1, keepdim=True)
    apart = torch.tensor([[math.dist(one, other) for other in key_at.tolist()] for one in at.tolist()])
    far: Tensor = (weights * apart.double().nan_to_num(0.0)).sum(-1)
    return far


def coordinates(side: int, pitch: float) -> Tensor:
    """(side, side, 2)."""
    return torch.tensor([[(y * pitch, x * pitch) for x in range(side)] for y in range(side)])


def test_nest_anew() -> None:
    """The blocks are cut by timm's own function."""
    from timm.models.nest import blockify

    model = built("nest_tiny_jx", img_size=112)

    def anew(name: str, module: Any, given: Tensor) -> list[float]:
        side = math.isqrt(given.shape[1] * given.shape[2])
        blocks = blockify(coordinates(side, 112 / side)[None], math.isqrt(given.shape[2]))[0]
        shape = (*given.shape[:3], 3, module.num_heads, -1)
        queries, keys, _ = module.qkv(given).view(shape).permute(3, 4, 0, 1, 2, 5)  # (h, B, blocks, n, d)
        rows = [attended(queries[:, :, number], keys[:, :, number], at, at) for number, at in enumerate(blocks)]
        return torch.stack(rows, 2).flatten(1).mean(1).tolist()

    compared(model, image(model, 112), "timm.models.nest.Attention", anew)


def test_twins_anew() -> None:
    """Window by window, of a map of 16 x 16 that windows of 7 do not divide; the padding has no place."""
    model = built("twins_svt_small", depths=(1, 1, 1, 1), img_size=64)

    def anew(name: str, module: Any, given: Tensor) -> list[float]:
        side = math.isqrt(given.shape[1])
        padded = -(-side // 7) * 7
        at = torch.full((padded, padded, 2), torch.nan)
        at[:side, :side] = coordinates(side, 64 / side)
        tokens = functional.pad(given.view(len(given), side, side, -1), (0, 0, 0, padded - side, 0, padded - side))
        total, count = torch.zeros(module.num_heads, dtype=torch.float64), 0
        for top, left in itertools.product(range(0, padded, 7), repeat=2):
            here = at[top : top + 7, left : left + 7].reshape(49, 2)
            window = tokens[:, top : top + 7, left : left + 7].reshape(len(given), 49, -1)
            queries, keys, _ = module.qkv(window).view(len(given), 49, 3, module.num_heads, -1).permute(2, 3, 0, 1, 4)
            placed = ~here[:, 0].isnan()
            rows = attended(queries, keys, here, here)[..., placed]
            total += rows.sum((1, 2))
            count += rows[0].numel()
        return (total / count).tolist()

    compared(model, image(model, 64), "timm.models.twins.LocallyGroupedAttn", anew)


def test_hiera_anew() -> None:
    """Which token is where is read off the model's way back to a map, `reroll`, which its forward pass does not take."""
    model: Any = built("hiera_tiny_224", stages=(2, 2, 2, 1), img_size=(128, 128))

    def where(layer: int, tokens: int) -> Tensor:
        """(tokens, 2), of the tokens that come out of so many layers."""
        order = model.reroll(torch.arange(tokens).view(1, tokens, 1), layer)[0, ..., 0]
        side = len(order)
        at = torch.empty(tokens, 2)
        pitch = 128 / side
        for y, x in itertools.product(range(side), repeat=2):
            at[order[y, x]] = torch.tensor([(y + 0.5) * pitch, (x + 0.5) * pitch])
        return at

    def anew(name: str, module: Any, given: Tensor) -> list[float]:
        layer = int(name.split(".")[1])
        batch, count, _ = given.shape
        units = count // (module.q_stride * module.window_size) if module.use_mask_unit_attn else 1
        asked = count // module.q_stride
        # What comes out of the layer before has the order of what goes in here; the first layer's that of its own output.
        at = where(layer - 1, count) if layer else where(0, count)
        asked_at = where(layer, asked)
        queries, keys, _ = module.qkv(given).view(batch, count, 3, module.heads, -1).permute(2, 3, 0, 1, 4)
        queries = queries.reshape(module.heads, batch, module.q_stride, asked, -1).amax(2)
        rows = [
            attended(queries[:, :, unit::units], keys[:, :, unit::units], asked_at[unit::units], at[unit::units])
            for unit in range(units)
        ]
        return torch.stack(rows, 2).flatten(1).mean(1).tolist()

    compared(model, image(model, 128), "timm.models.hiera.MaskUnitAttention", anew)


def test_mobilevit_anew() -> None:
    """Four grids that lie in one another, each by itself."""
    model = built("mobilevit_xxs")

    def anew(name: str, module: Any, given: Tensor) -> list[float]:
        batch, count = len(given) // 4, given.shape[1]
        side = 2 * math.isqrt(count)
        at = coordinates(side, 128 / side)
        tokens = given.view(batch, 4, count, -1)
        rows = []
        for number, (down, across) in enumerate(itertools.product(range(2), repeat=2)):
            here = at[down::2, across::2].reshape(count, 2)
            shape = (batch, count, 3, module.num_heads, -1)
            queries, keys, _ = module.qkv(tokens[:, number]).view(shape).permute(2, 3, 0, 1, 4)
            rows.append(attended(queries, keys, here, here))
        return torch.stack(rows, 2).flatten(1).mean(1).tolist()

    compared(model, image(model, 128), "timm.layers.attention.Attention", anew)


def test_halonet_anew() -> None:
    """Query by query, with the keys of the image around its block, and as many without a place as its window has beyond."""
    model = built("halonet26t")
    for label, parameter in model.named_parameters():
        if "_rel" in label:
            nn.init.zeros_(parameter)

    def anew(name: str, module: Any, given: Tensor) -> list[float]:
        batch, _, side, _ = given.shape
        heads, width, stride = module.num_heads, module.dim_head_qk, module.block_stride
        at = coordinates(side, 256 / side)
        queries = module.q(given).view(batch, heads, width, side // stride, side // stride)
        keys = module.kv(given).view(batch, heads, -1, side, side)[:, :, :width]
        rows = []
        for top, left in itertools.product(range(0, side, module.block_size), repeat=2):
            down, across = (
                slice(max(0, start - module.halo_size), start + module.block_size + module.halo_size)
                for start in (top, left)
            )
            reach = keys[..., down, across].flatten(3).mT
            for y, x in itertools.product(range(0, module.block_size, stride), repeat=2):
                query = queries[..., (top + y) // stride, (left + x) // stride][:, :, None]
                rows.append(attended(query, reach, at[top + y, left + x][None], at[down, across].reshape(-1, 2)))
        return _by_head(rows)

    compared(model, image(model, 256), "timm.layers.halo_attn.HaloAttn", anew)


def _by_head(rows: list[Tensor]) -> list[float]:
    """Means over inputs and queries of (B, h, 1) each."""
    found: list[float] = torch.stack(rows).mean((0, 1, 3)).tolist()
    return found
