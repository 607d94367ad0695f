"""Where the tokens of each architecture lie, against an implementation that is slow and obvious.

It puts functions that keep whole maps, in double precision, in the place of torch's, writes each token's place down by hand (by
what the papers and the code say of that architecture), and adds distances up one by one.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from timm.layers import Attention
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg
from timm.models.mlp_mixer import MlpMixer
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from timm.models.xcit import Xcit
from torch import Tensor, nn
from torch.nn import functional

from tests.tokens import Group, Point, alike, apart, dilated, every, grid, merged, squares, stirred, windows, zeroed
from vitbench.analyses.attention_distance import AttentionDistance, DistanceReader
from vitbench.build import create_model
from vitbench.errors import NotDefined
from vitbench.inside import attention_sites, observing
from vitbench.inside.attention import Tap
from vitbench.models import coatnet, mvit, t2t_vit

Layers = Mapping[str, Sequence[Group]]
NOWHERE: list[Point] = [None]


@dataclass(frozen=True)
class Family:
    """A small model, what goes into it, and the groups of tokens of each layer, in the order in which layers run."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layers: Layers


def one(tokens: list[Point]) -> list[Group]:
    return [(tokens, tokens)]


def column(tokens: list[Point], depth: int = 2, name: str = "blocks.{}.attn") -> Layers:
    return {name.format(number): one(tokens) for number in range(depth)}


# Images.

_COLUMN: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3}
_TIMM: dict[str, Any] = {"num_classes": 5, "patch_size": 16}


def _swin(kind: type[nn.Module]) -> Family:
    """8 x 12 tokens in windows of 4 x 4; then 4 x 6: one window of rows, so no shift that way, and padding of the columns."""
    arguments: dict[str, Any] = {"embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2)}
    return Family(
        lambda: kind(img_size=(32, 48), patch_size=4, window_size=4, num_classes=5, **arguments),
        (3, 32, 48),
        {
            "layers.0.blocks.0.attn": windows(8, 12, 32, 48, (4, 4)),
            "layers.0.blocks.1.attn": windows(8, 12, 32, 48, (4, 4), (2, 2)),
            "layers.1.blocks.0.attn": windows(4, 6, 32, 48, (4, 4)),
            "layers.1.blocks.1.attn": windows(4, 6, 32, 48, (4, 4), (0, 2)),
        },
    )


def _maxvit(**options: Any) -> Family:
    """8 x 12 tokens, then 4 x 6... in windows and grids of 2 x 2."""
    transformer = MaxxVitTransformerCfg(dim_head=8, window_size=(2, 2), grid_size=(2, 2), **options)
    cfg = MaxxVitCfg(
        embed_dim=(16, 16), depths=(1, 1), block_type=("M", "M"), stem_width=8, transformer_cfg=transformer
    )
    return Family(
        lambda: MaxxVit(cfg, img_size=(32, 48), num_classes=5),
        (3, 32, 48),
        {
            f"stages.{stage}.blocks.0.{kind}.attn": groups
            for stage, (rows, columns) in enumerate(((8, 12), (4, 6)))
            for kind, groups in (
                ("attn_block", windows(rows, columns, 32, 48, (2, 2))),
                ("attn_grid", dilated(rows, columns, 32, 48, 2)),
            )
        },
    )


def _mvitv2(*, class_token: bool) -> Family:
    """16 x 16 tokens; keys by convolutions of 3 x 3 with strides of 4, 2 and 2, queries with one of 2 where a stage begins."""
    cfg = MultiScaleVitCfg(depths=(1, 2), embed_dim=(16, 32), num_heads=(1, 2), use_cls_token=class_token)
    prefix = NOWHERE * class_token

    def tokens(side: int, stride: int) -> list[Point]:
        return prefix + every(stride, side, side, 64, 64)

    return Family(
        lambda: MultiScaleVit(cfg, img_size=(64, 64), num_classes=5),
        (3, 64, 64),
        {
            "stages.0.blocks.0.attn": [(tokens(16, 1), tokens(16, 4))],
            "stages.1.blocks.0.attn": [(tokens(16, 2), tokens(16, 2))],
            "stages.1.blocks.1.attn": [(tokens(8, 1), tokens(8, 2))],
        },
    )


def _bins(tokens: int, count: int) -> list[range]:
    """Gives the bins of adaptive pooling: from floor(i n / count) to ceil((i + 1) n / count)."""
    return [range(math.floor(i * tokens / count), math.ceil((i + 1) * tokens / count)) for i in range(count)]


def _pvt_v2(*, linear: bool) -> Family:
    def keys(side: int, reduction: int) -> list[Point]:
        if linear:
            return merged(_bins(side, 7), _bins(side, 7), 96 / side)
        return squares(side, side, reduction, 96 / side)

    sizes: dict[str, Any] = {"depths": (1,) * 4, "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4)}
    return Family(
        lambda: PyramidVisionTransformerV2(mlp_ratios=(2,) * 4, linear=linear, num_classes=5, **sizes),
        (3, 96, 96),
        {
            f"stages.{stage}.blocks.0.attn": [(grid(side, side, 96, 96), keys(side, reduction))]
            for stage, (side, reduction) in enumerate(((24, 8), (12, 4), (6, 2), (3, 1)))
        },
    )


IMAGES: dict[str, Family] = {
    "vit": Family(
        lambda: create_model("vit_ti16", img_size=(48, 64), **_COLUMN),
        (3, 48, 64),
        column(NOWHERE + grid(3, 4, 48, 64)),
    ),
    "distilled": Family(
        lambda: create_model("deit_ti16_dist", img_size=48, **_COLUMN),
        (3, 48, 48),
        column(NOWHERE * 2 + grid(3, 3, 48, 48)),
    ),
    "registers": Family(
        lambda: VisionTransformer(img_size=48, reg_tokens=4, no_embed_class=True, **_TIMM, **_COLUMN),
        (3, 48, 48),
        column(NOWHERE * 5 + grid(3, 3, 48, 48)),
    ),
    "pooled": Family(
        lambda: VisionTransformer(img_size=48, class_token=False, global_pool="avg", **_TIMM, **_COLUMN),
        (3, 48, 48),
        column(grid(3, 3, 48, 48)),
    ),
    "hybrid": Family(
        lambda: create_model("r_vit_ti16", img_size=96, **_COLUMN),
        (3, 96, 96),
        column(NOWHERE + grid(3, 3, 96, 96)),
    ),
    "dynamic": Family(
        lambda: VisionTransformer(img_size=32, dynamic_img_size=True, **_TIMM, **_COLUMN),
        (3, 48, 64),
        column(NOWHERE + grid(3, 4, 48, 64)),
    ),
    "relative": Family(
        lambda: create_model("vit_rel", img_size=(48, 64), **_COLUMN), (3, 48, 64), column(grid(3, 4, 48, 64))
    ),
    "beit": Family(
        lambda: Beit(img_size=48, use_rel_pos_bias=True, **_TIMM, **_COLUMN),
        (3, 48, 48),
        column(NOWHERE + grid(3, 3, 48, 48)),
    ),
    "eva": Family(
        lambda: Eva(img_size=48, use_rot_pos_emb=True, **_TIMM, **_COLUMN),
        (3, 48, 48),
        column(NOWHERE + grid(3, 3, 48, 48)),
    ),
    "swin": _swin(SwinTransformer),
    "swin v2": _swin(SwinTransformerV2),
    "maxvit": _maxvit(),
    "maxvit of maps": _maxvit(use_nchw_attn=True),
    "pvt": Family(
        lambda: create_model("pvt_tiny", img_size=(64, 96), depths=(1,) * 4, dims=(8, 16, 20, 32), num_classes=5),
        (3, 64, 96),
        {
            "stages.0.blocks.0.attn": [(grid(16, 24, 64, 96), squares(16, 24, 8, 4))],
            "stages.1.blocks.0.attn": [(grid(8, 12, 64, 96), squares(8, 12, 4, 8))],
            "stages.2.blocks.0.attn": [(grid(4, 6, 64, 96), squares(4, 6, 2, 16))],
            "stages.3.blocks.0.attn": one(NOWHERE + grid(2, 3, 64, 96)),
        },
    ),
    "pvt v2": _pvt_v2(linear=False),
    "pvt v2 linear": _pvt_v2(linear=True),
    "mvit v2": _mvitv2(class_token=False),
    "mvit v2 with a class token": _mvitv2(class_token=True),
    "mvit": Family(
        lambda: create_model("mvit_b_16_image", img_size=(32, 64), depth=4, stages=(1, 3), embed_dim=16),
        (3, 32, 64),
        {
            f"blocks.{number}.attn": [
                (NOWHERE + every(q, rows, columns, 32, 64), NOWHERE + every(kv, rows, columns, 32, 64))
            ]
            for number, (rows, columns, q, kv) in enumerate(((8, 16, 1, 4), (8, 16, 2, 2), (4, 8, 1, 2), (4, 8, 2, 1)))
        },
    ),
    "cvt": Family(
        lambda: create_model("cvt_13", img_size=(48, 64), dims=(8, 16, 32), depths=(1, 1, 2), num_heads=(1, 2, 4)),
        (3, 48, 64),
        {
            "stages.0.blocks.0.attn": [(grid(12, 16, 48, 64), every(2, 12, 16, 48, 64))],
            "stages.1.blocks.0.attn": [(grid(6, 8, 48, 64), every(2, 6, 8, 48, 64))],
            **{
                f"stages.2.blocks.{number}.attn": [(NOWHERE + grid(3, 4, 48, 64), NOWHERE + every(2, 3, 4, 48, 64))]
                for number in range(2)
            },
        },
    ),
    "coatnet": Family(
        lambda: create_model(
            "coatnet_0",
            img_size=(32, 64),
            stem_width=8,
            stages=(
                coatnet.Stage(coatnet.convolution, 1, 8),
                coatnet.Stage(coatnet.transformer, 1, 16),
                coatnet.Stage(coatnet.transformer, 1, 32),
            ),
            head_size=8,
        ),
        (3, 32, 64),
        {
            "stages.1.blocks.0.attn": one(grid(4, 8, 32, 64)),
            "stages.2.blocks.0.attn": one(grid(2, 4, 32, 64)),
        },
    ),
    "t2t": Family(
        lambda: create_model("t2t_vit_t_14", img_size=(32, 48), encoder=_t2t_encoder, embed_dim=24),
        (3, 32, 48),
        {
            "tokens_to_token.attention1": one(grid(8, 12, 32, 48)),
            "tokens_to_token.attention2": one(grid(4, 6, 32, 48)),
            **column(NOWHERE + grid(2, 3, 32, 48)),
        },
    ),
    "cct": Family(
        lambda: create_model("cct_2_3x2_32", img_size=(24, 32)),
        (3, 24, 32),
        column(grid(6, 8, 24, 32), name="classifier.blocks.{}.self_attn"),
    ),
    "compact cvt": Family(
        lambda: create_model("compact_cvt_2_4_32", img_size=(12, 16)),
        (3, 12, 16),
        column(grid(3, 4, 12, 16), name="classifier.blocks.{}.self_attn"),
    ),
    "vit lite": Family(
        lambda: create_model("vit_lite_2_4_32_sine", img_size=(12, 16)),
        (3, 12, 16),
        column(NOWHERE + grid(3, 4, 12, 16), name="classifier.blocks.{}.self_attn"),
    ),
    "torchvision": Family(
        lambda: create_model(
            "torchvision.models.vision_transformer:VisionTransformer",
            image_size=48,
            patch_size=16,
            num_layers=2,
            num_heads=3,
            hidden_dim=24,
            mlp_dim=32,
        ),
        (3, 48, 48),
        column(NOWHERE + grid(3, 3, 48, 48), name="encoder.layers.encoder_layer_{}.self_attention"),
    ),
}


def _t2t_encoder(dim: int, drop_path_rate: float) -> tuple[nn.Sequential, int]:
    return t2t_vit.plain_encoder(dim, drop_path_rate, depth=2, num_heads=3)


# Clips of 8 frames of 32 x 48 pixels: 2 x 3 patches, in time as many tokens as frames, or a token of two.

_SIDES = (2, 3, 32, 48)
_FRAMES = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]
_TUBELETS = [1.0, 3.0, 5.0, 7.0]
_ROWS, _COLUMNS = (8.0, 24.0), (8.0, 24.0, 40.0)


def _frames(times: list[float], prefix: list[Point]) -> list[Group]:
    """Gives a group a frame, each after copies of the prefix."""
    groups = []
    for time in times:
        groups += one(prefix + grid(*_SIDES, [time]))
    return groups


def _places(times: list[float]) -> list[Group]:
    """Gives a group a place of the frame."""
    groups = []
    for down, across in product(_ROWS, _COLUMNS):
        groups += one([(time, down, across) for time in times])
    return groups


def _clip(name: str, layers: Layers, **options: Any) -> Family:
    return Family(
        lambda: create_model(name, img_size=(32, 48), num_frames=8, **_COLUMN | options), (3, 8, 32, 48), layers
    )


def _two(*layers: tuple[str, Sequence[Group]]) -> Layers:
    """Gives the layers of both blocks."""
    return {name.format(number): groups for number in range(2) for name, groups in layers}


def _local_global() -> Family:
    """Of 2 x 4 patches, first those of a quarter in all frames, then those an even number away each way, with a class token."""
    down, across = (8.0, 24.0), (8.0, 24.0, 40.0, 56.0)
    quarters: list[Group] = []
    for top, left in product(range(2), range(2)):
        quarters += one([(t, down[top], across[2 * left + j]) for t, j in product(_FRAMES, range(2))])
    strided: list[Group] = []
    for time, top, left in product(range(2), range(2), range(2)):
        tokens: list[Point] = [(t, down[top], across[left + 2 * j]) for t, j in product(_FRAMES[time::2], range(2))]
        strided += one(NOWHERE + tokens)
    return Family(
        lambda: create_model("timesformer_lg", img_size=(32, 64), num_frames=8, **_COLUMN),
        (3, 8, 32, 64),
        _two(("blocks.{}.local_attn", quarters), ("blocks.{}.attn", strided)),
    )


def _axial() -> Family:
    rows: list[Group] = []
    for time, down in product(_FRAMES, _ROWS):
        rows += one([(time, down, across) for across in _COLUMNS])
    columns: list[Group] = []
    for time, across in product(_FRAMES, _COLUMNS):
        columns += one([None, *((time, down, across) for down in _ROWS)])
    layers = _two(
        ("blocks.{}.temporal_attn", _places(_FRAMES)), ("blocks.{}.width_attn", rows), ("blocks.{}.attn", columns)
    )
    return _clip("timesformer_axial", layers)


def _mvit_clip(name: str) -> Family:
    """8 x 16 tokens of two frames: keys with strides of 8, 4, 4 and 2, queries with one of 2 where a stage begins."""
    steps = ((8, 16, 1, 8), (8, 16, 2, 4), (4, 8, 1, 4), (4, 8, 2, 2))
    return Family(
        lambda: create_model(name, img_size=(32, 64), num_frames=8, depth=4, stages=(1, 3), embed_dim=16),
        (3, 8, 32, 64),
        {
            f"blocks.{number}.attn": [
                (
                    NOWHERE + every(q, rows, columns, 32, 64, _TUBELETS),
                    NOWHERE + every(kv, rows, columns, 32, 64, _TUBELETS),
                )
            ]
            for number, (rows, columns, q, kv) in enumerate(steps)
        },
    )


_CENTRES: list[Point] = [(time, 16.0, 24.0) for time in _TUBELETS]
CLIPS: dict[str, Family] = {
    "vivit 1": _clip("vivit_b_16x2_m1", column(NOWHERE + grid(*_SIDES, _TUBELETS), name="encoder.blocks.{}.attn")),
    # Source of the frames: scenic's sample_frames_uniformly, of 8 frames the ones nearest to 8/3 and 16/3.
    "vivit 1 of frames": _clip(
        "vivit_b_16x4_m1_uniform", column(NOWHERE + grid(*_SIDES, [3.5, 5.5]), name="encoder.blocks.{}.attn")
    ),
    "vivit 2": _clip(
        "vivit_b_16x2_fe",
        {
            **{f"encoder.spatial.blocks.{number}.attn": _frames(_TUBELETS, NOWHERE) for number in range(2)},
            **{f"encoder.temporal.blocks.{number}.attn": one(NOWHERE + _CENTRES) for number in range(4)},
        },
    ),
    "vivit 3": _clip(
        "vivit_b_16x2_fsa",
        _two(
            ("encoder.blocks.{}.attn", _frames(_TUBELETS, [])), ("encoder.blocks.{}.temporal_attn", _places(_TUBELETS))
        ),
    ),
    "vivit 3 time first": _clip(
        "vivit_b_16x2_fsa",
        _two(
            ("encoder.blocks.{}.temporal_attn", _places(_TUBELETS)), ("encoder.blocks.{}.attn", _frames(_TUBELETS, []))
        ),
        attention_order="time_space",
    ),
    "vivit 4": _clip(
        "vivit_b_16x2_fdp",
        _two(
            ("encoder.blocks.{}.attn[time]", _places(_TUBELETS)),
            ("encoder.blocks.{}.attn[space]", _frames(_TUBELETS, [])),
        ),
        num_heads=4,
    ),
    "timesformer space": _clip("timesformer_space", _two(("blocks.{}.attn", _frames(_FRAMES, NOWHERE)))),
    "timesformer joint": _clip("timesformer_joint", column(NOWHERE + grid(*_SIDES, _FRAMES))),
    "timesformer divided": _clip(
        "timesformer_divided",
        _two(("blocks.{}.temporal_attn", _places(_FRAMES)), ("blocks.{}.attn", _frames(_FRAMES, NOWHERE))),
    ),
    "timesformer local global": _local_global(),
    "timesformer axial": _axial(),
    "mvit of clips": _mvit_clip("mvit_b_16x4"),
    "mvit v2 of clips": _mvit_clip("mvitv2_s_16x4"),
}

FAMILIES = IMAGES | CLIPS


# The slow and obvious implementation.


@contextmanager
def kept(model: nn.Module, layers: set[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Gives the maps of each layer, call by call, (..., queries, keys), of the passes within the context."""
    found: dict[str, list[Tensor]] = {}
    under_way: list[str] = []
    hooks = []

    def leaves(module: nn.Module, inputs: object, output: object) -> None:
        under_way.pop()

    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda module, inputs, name=name: under_way.append(name)))
        hooks.append(module.register_forward_hook(leaves))
    fused, softmax = functional.scaled_dot_product_attention, Tensor.softmax

    def written_out(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **options: Any
    ) -> Tensor:
        logits = query.double() @ key.double().mT * (options.get("scale") or 1 / math.sqrt(query.shape[-1]))
        return (keep(logits if attn_mask is None else logits + attn_mask) @ value.double()).to(value.dtype)

    def keep(logits: Tensor) -> Tensor:
        weights = (logits.double() - logits.amax(-1, keepdim=True)).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        inner = next(name for name in reversed(under_way) if name in layers)
        found.setdefault(inner, []).append(weights)
        return weights

    def softmax_written_out(logits: Tensor, dim: int, **options: Any) -> Tensor:
        if dim in (-1, logits.dim() - 1) and any(name in layers for name in under_way):
            return keep(logits).to(logits.dtype)
        return softmax(logits, dim, **options)

    functional.scaled_dot_product_attention = written_out
    Tensor.softmax = softmax_written_out  # type: ignore[method-assign, assignment]  # put back below
    try:
        yield found
    finally:
        functional.scaled_dot_product_attention, Tensor.softmax = fused, softmax  # type: ignore[method-assign]  # as it was
        for hook in hooks:
            hook.remove()


def maps_of(model: nn.Module, x: Tensor, layers: Layers) -> dict[str, Tensor]:
    """Gives each layer's maps, (inputs, groups, heads, queries, keys)."""
    modules = {name.partition("[")[0] for name in layers}
    with kept(model, modules) as found, torch.no_grad():
        model(x)
    maps = {}
    for name, groups in layers.items():
        module, _, part = name.partition("[")
        of_module = found[module]
        parts = [other for other in layers if other.partition("[")[0] == module]
        # A call a part, in this order, or a call some of the queries.
        calls = [of_module[parts.index(name)]] if part else of_module
        whole = torch.cat([call.reshape(len(x), len(groups), -1, *call.shape[-2:]) for call in calls], dim=-2)
        maps[name] = whole
    return maps


Numbers = dict[str, float]


def by_hand(maps: Tensor, groups: Sequence[Group]) -> list[Numbers]:
    """Gives the numbers of each head: sums over keys, means over queries, means over inputs."""
    inputs, _, heads = maps.shape[:3]
    for queries, keys in groups:
        assert maps.shape[3:] == (len(queries), len(keys))
    distances = [
        [[None if query is None or key is None else apart(query, key) for key in keys] for query in queries]
        for queries, keys in groups
    ]
    found = []
    for head in range(heads):
        images = []
        for image in range(inputs):
            of_queries = []
            for group, (queries, _) in enumerate(groups):
                rows = maps[image, group, head].tolist()
                for query, place in enumerate(queries):
                    if place is None:
                        continue
                    px = frames = mass = 0.0
                    for weight, distance in zip(rows[query], distances[group][query], strict=True):
                        if distance is not None:
                            px += weight * distance[0]
                            frames += weight * distance[1]
                            mass += weight
                    of_queries.append((px, frames, px / mass, frames / mass, 1 - mass))
            images.append([sum(numbers) / len(of_queries) for numbers in zip(*of_queries, strict=True)])
        means = [sum(numbers) / inputs for numbers in zip(*images, strict=True)]
        found.append(dict(zip(("paper_px", "paper_frames", "px", "frames", "mass"), means, strict=True)))
    return found


def looked_at(model: nn.Module, x: Tensor) -> tuple[AttentionDistance, Tensor]:
    """Gives the distances and the output under the tap."""
    reader = DistanceReader()
    tap = Tap([reader])
    outputs: list[Tensor] = []
    with model.register_forward_hook(lambda module, inputs, output: outputs.append(output)):
        observing.run(model, [x], [tap])
    return reader.finding(tap.left_out), outputs[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_agrees_with_the_slow_and_obvious(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mvit._BIASES, "cpu", 2**10)  # so that MViTv2 attends in several calls
    family = FAMILIES[name]
    model = stirred(family.make())
    x = torch.randn(2, *family.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        untouched = model(x)
    finding, output = looked_at(model, x)
    scale = float(untouched.abs().max())
    torch.testing.assert_close(output, untouched, rtol=0, atol=1e-5 * scale)
    maps = maps_of(model, x, family.layers)
    assert list(dict.fromkeys(row.layer for row in finding.rows)) == list(family.layers)
    assert not finding.left_out
    far = 0.0
    for layer, groups in family.layers.items():
        rows = [row for row in finding.rows if row.layer == layer]
        expected = by_hand(maps[layer], groups)
        assert len(rows) == len(expected)
        for row, numbers in zip(rows, expected, strict=True):
            for found, kind in (
                (row.distance_px, "px"),
                (row.distance_paper_px, "paper_px"),
                (row.distance_frames, "frames"),
                (row.distance_paper_frames, "paper_frames"),
            ):
                assert (found or 0) == pytest.approx(numbers[kind], abs=1e-4 if "px" in kind else 1e-5)
            assert row.prefix_mass == pytest.approx(numbers["mass"], abs=1e-5)
            assert row.rows_left_out == 0
            if row.distance_px is not None and row.uniform_px is not None:
                far = max(far, abs(row.distance_px / row.uniform_px - 1))
    assert far > 0.02  # uniform attention could not tell one order of tokens from another


@pytest.mark.parametrize("name", [name for name in FAMILIES if "swin" not in name])
def test_a_family_that_attends_alike_everywhere(name: str) -> None:
    """Expected: means of distances. Swin's masks bound them; see test_attention_distance.py for its values."""
    family = FAMILIES[name]
    finding, _ = looked_at(zeroed(family.make()), torch.randn(1, *family.shape))
    for row in finding.rows:
        px, frames, paper_px, paper_frames = alike(family.layers[row.layer])
        for found, expected in (
            (row.distance_px, px),
            (row.distance_paper_px, paper_px),
            (row.distance_frames, frames),
            (row.distance_paper_frames, paper_frames),
            (row.uniform_px, px),
            (row.uniform_paper_px, paper_px),
            (row.uniform_frames, frames),
        ):
            assert (found or 0) == pytest.approx(expected, abs=1e-4)


# Masks and biases.


def test_a_planted_bias_is_found_where_it_was_planted() -> None:
    """Queries of zero leave Swin's table alone: weights that fall off twice as fast down as across.

    In a shifted window tokens attend to those that were less than a window away before the roll, each way.
    """
    family = FAMILIES["swin"]
    model: Any = stirred(family.make())
    for stage in model.layers:
        for block in stage.blocks:
            nn.init.zeros_(block.attn.qkv.weight)
            nn.init.zeros_(block.attn.qkv.bias)
            offsets = torch.cartesian_prod(torch.arange(-3.0, 4.0), torch.arange(-3.0, 4.0))
            block.attn.relative_position_bias_table.data[:] = _fall_off(*offsets.T[:, :, None])
    finding, _ = looked_at(model, torch.zeros(1, *family.shape))
    for layer in ("layers.0.blocks.0.attn", "layers.0.blocks.1.attn"):
        found = []
        for queries, keys in family.layers[layer]:
            for query in queries:
                assert query is not None
                weights, distances = [], []
                for key in keys:
                    assert key is not None
                    down, across = (abs(query[axis] - key[axis]) / 4 for axis in (1, 2))
                    if down < 4 and across < 4:
                        weights.append(math.exp(_fall_off(torch.tensor(down), torch.tensor(across))))
                        distances.append(4 * math.hypot(down, across))
                total = sum(weight * distance for weight, distance in zip(weights, distances, strict=True))
                found.append(total / sum(weights))
        row = next(row for row in finding.rows if row.layer == layer)
        assert row.distance_px == pytest.approx(sum(found) / len(found), abs=1e-4)
        assert row.most_px is not None
        assert row.most_px < 4 * math.hypot(3, 3)


def _fall_off(down: Tensor, across: Tensor) -> Tensor:
    return -torch.hypot(1.2 * down, 0.6 * across)


def test_a_shifted_window_does_not_reach_over_the_border() -> None:
    family = FAMILIES["swin"]
    x = torch.randn(1, *family.shape, generator=torch.Generator().manual_seed(1))
    maps = maps_of(stirred(family.make()), x, family.layers)["layers.0.blocks.1.attn"]
    far = 0
    for group, (queries, keys) in enumerate(family.layers["layers.0.blocks.1.attn"]):
        for (i, query), (j, key) in product(enumerate(queries), enumerate(keys)):
            assert query is not None
            assert key is not None
            if abs(query[1] - key[1]) >= 16 or abs(query[2] - key[2]) >= 16:
                far += 1
                assert maps[0, group, :, i, j].max() < 1e-20
    assert far


# What is known, and what is not.


def test_every_name_is_that_of_a_class() -> None:
    """A name that a library gave up would leave its class unknown."""
    for name in attention_sites.SITES:
        module, _, kind = name.rpartition(".")
        assert inspect.isclass(getattr(importlib.import_module(module), kind)), name
    for name in attention_sites.GROUPED:
        module, _, kind = name.rpartition(".")
        assert inspect.isclass(getattr(importlib.import_module(module), kind)), name


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_se", "t2t_vit_ghost", "t2t_vit_dense"])
def test_linear_attention_is_left_out_and_the_rest_looked_at(name: str) -> None:
    """T2T-ViT's Performer stands in the tokens-to-token module alone; blocks of other kinds are known by timm's attention."""
    finding, _ = looked_at(create_model(name, img_size=48).eval(), torch.zeros(1, 3, 48, 48))
    reason = "it never forms weights between tokens (linear attention)"
    assert finding.left_out == {f"tokens_to_token.attention{number}": reason for number in (1, 2)}
    assert {(row.query_grid, row.pitch_px) for row in finding.rows} == {((3, 3), (16.0, 16.0))}
    assert all(row.layer.startswith("blocks.") for row in finding.rows)


def test_a_head_that_attends_is_left_out() -> None:
    """SigLIP's pooling: its query is learnt and has no position."""
    model = VisionTransformer(img_size=48, class_token=False, global_pool="map", **_TIMM, **_COLUMN)
    finding, _ = looked_at(model, torch.zeros(1, 3, 48, 48))
    assert finding.left_out == {"attn_pool": "its query is a class or pooled token, which has no position"}
    assert len(finding.rows) == 6


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "xcit": (
        lambda: Xcit(img_size=32, embed_dim=24, depth=1, num_heads=2, cls_attn_layers=1, patch_size=16),
        "it attends over channels, not positions and its query is a class or pooled token, which has no position",
    ),
    "edgenext": (lambda: create_model("edgenext_xx_small"), "it attends over channels, not positions"),
    "mobilevit v2": (
        lambda: create_model("mobilevitv2_050"),
        "it never forms weights between tokens (linear attention)",
    ),
    "resnet": (lambda: create_model("resnet10t"), "it has no softmax attention"),
    "mixer": (lambda: MlpMixer(img_size=32, num_blocks=1, embed_dim=16), "it has no softmax attention"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_is_refused_with_the_reason(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(NotDefined) as caught:
        looked_at(make().eval(), torch.zeros(1, 3, 32, 32))
    assert caught.value.reason == reason
    assert caught.value.instead


class OneMore(VisionTransformer):
    """Lets a token in that it does not tell of."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        out: Tensor = super()._pos_embed(x)
        return torch.cat((out[:, :1], out), dim=1)


class Bare(nn.Module):
    """Attention without a model around it."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attn = attention

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attn(x.flatten(2).mT)
        return out


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: OneMore(img_size=48, **_TIMM, **_COLUMN),
            "the tokens of blocks.0.attn do not lie as known of its class: 11 queries and 11 keys, with a grid of 3x3",
        ),
        (lambda: Bare(Attention(4, num_heads=1)), "Bare does not tell the grid of its tokens (patch_embed.grid_size)"),
        (
            lambda: Bare(WindowAttention(4, 1, window_size=6)),
            "the tokens of attn do not lie as known of its class: there is no SwinTransformerBlock around it",
        ),
    ],
    ids=["a token more", "no grid", "no windows"],
)
def test_tokens_that_lie_otherwise_are_an_error(make: Callable[[], nn.Module], reason: str) -> None:
    model = make()
    x = torch.zeros(1, 4, 6, 6) if isinstance(model, Bare) else torch.zeros(1, 3, 48, 48)
    with pytest.raises(NotDefined) as caught:
        looked_at(model, x)
    assert caught.value.reason == reason
