"""Attention rollout: closed forms, and an implementation that multiplies whole maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from vitbench import build
from vitbench.analyses import attention_rollout
from vitbench.analyses.attention_rollout import AttentionRollout, analyze, draw, table
from vitbench.drawing.pictures import rendered
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import RolloutMap


class _Planted(Attention):
    """Attention that gives a map of ours: logits are its logarithm, through keys that are the unit vectors."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__(maps.shape[-1], num_heads=1)
        self.maps = maps

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        heads = self.maps if self.maps.dim() == 3 else self.maps[None]
        q = heads.log().clamp(min=-1e4)[None].expand(len(x), -1, -1, -1)
        k = torch.eye(x.shape[1])[None, None].expand(len(x), len(heads), -1, -1)
        out = functional.scaled_dot_product_attention(q, k, k, scale=1.0)
        return out.mean(1)[:, :, : x.shape[2]]


class _Model(nn.Module):
    """Layers of planted attention, one after another, over a class token and a row of patches."""

    num_prefix_tokens = 1
    grid_size: tuple[int, int]

    def __init__(self, *maps: Tensor, prefix: int = 1) -> None:
        super().__init__()
        tokens = maps[0].shape[-1]
        self.num_prefix_tokens = prefix
        self.grid_size = (1, tokens - prefix)
        self.tokens = tokens
        self.cls_token = nn.Parameter(torch.zeros(1)) if prefix else None
        self.layers = nn.Sequential(*(_Planted(one) for one in maps))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.zeros(len(x), self.tokens, self.tokens))
        return out


def _class_row(*maps: Tensor, prefix: int = 1) -> Tensor:
    model = _Model(*maps, prefix=prefix)
    found = analyze(model, [torch.zeros(1, 3, 8, 8 * (maps[0].shape[-1] - prefix))])
    row = found.rows[0]
    return torch.tensor([1 - row.placed_mass, *row.values], dtype=torch.float64)


def test_uniform_attention() -> None:
    """Closed form: a patch has (1 - 2^-L) / T, the class token the rest."""
    tokens, depth = 197, 12
    row = _class_row(*[torch.full((tokens, tokens), 1 / tokens)] * depth)
    assert row[1].item() == pytest.approx(0.0050749028, abs=1e-7)
    assert row[0].item() == pytest.approx(0.0053190435, abs=3e-6)
    assert row[1:].sum().item() == pytest.approx(0.9946809566, abs=3e-6)


def test_a_cyclic_shift_gives_the_binomial_distribution() -> None:
    shift = torch.eye(9).roll(1, 1)  # each token attends to the next
    row = _class_row(*[shift] * 4)
    assert torch.allclose(row[:5], torch.tensor([1.0, 4, 6, 4, 1], dtype=torch.float64) / 16, atol=1e-6)


def test_identity_leaves_nothing_on_patches_and_is_drawn() -> None:
    row = _class_row(*[torch.eye(5)] * 3)
    assert row[0].item() == pytest.approx(1)
    model = _Model(*[torch.eye(5)] * 3)
    found = analyze(model, [torch.zeros(1, 3, 8, 32)])
    assert found.rows[0].frame_share == 0
    rendered(draw({"identity": found}), ".png")


def test_later_layers_stand_on_the_left() -> None:
    """Three tokens: A sends token 0 to 1, B sends 1 to 2. First A, then B: (.5, .5, 0); the other order: (.5, .25, .25)."""
    a, b = torch.eye(3), torch.eye(3)
    a[0], b[1] = torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 0, 1])
    assert torch.allclose(_class_row(a, b), torch.tensor([0.5, 0.5, 0], dtype=torch.float64), atol=1e-6)
    assert torch.allclose(_class_row(b, a), torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64), atol=1e-6)


def test_heads_are_averaged() -> None:
    one = torch.rand(5, 5).softmax(-1)
    assert torch.allclose(_class_row(one, one), _class_row(one.expand(3, 5, 5), one.expand(2, 5, 5)), atol=1e-6)
    other = torch.rand(5, 5).softmax(-1)
    assert torch.allclose(_class_row(torch.stack((one, other))), _class_row((one + other) / 2), atol=1e-6)


def test_without_a_class_token_it_is_the_mean_over_patches() -> None:
    one = torch.rand(4, 4).softmax(-1)
    model = _Model(one, one, prefix=0)
    found = analyze(model, [torch.zeros(1, 3, 8, 32)])
    product = torch.linalg.matrix_power((one + torch.eye(4)) / 2, 2)
    assert found.rows[0].token == "average"
    assert np.allclose(found.rows[0].values, product.mean(0).numpy(), atol=1e-6)


def _whole_maps(model: nn.Module, x: Tensor, of: Callable[[str], bool] = lambda _: True) -> list[Tensor]:
    """The head-averaged maps of timm's Attention modules, from their own unfused code: the input of its dropout."""
    maps: list[Tensor] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, Attention) and of(name):
            module.fused_attn = False  # type: ignore[misc]  # Final for TorchScript alone
            handles.append(module.attn_drop.register_forward_pre_hook(lambda _, args: maps.append(args[0].mean(1))))
    with torch.no_grad():
        model.eval()(x)
    for handle in handles:
        handle.remove()
    return maps


def _product(maps: list[Tensor]) -> Tensor:
    rolled = torch.eye(maps[0].shape[-1]).expand_as(maps[0])
    for one in maps:
        rolled = (one + torch.eye(one.shape[-1])) / 2 @ rolled
    return rolled


def _vit(**options: object) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": (32, 48), "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    return VisionTransformer(**sizes | options)  # type: ignore[arg-type]  # the sizes are of several types


def test_a_vision_transformer_agrees_with_whole_maps_multiplied() -> None:
    model, x = _vit(), torch.randn(3, 3, 32, 48)
    found = analyze(model, x.split(2))
    rolled = _product(_whole_maps(model, x))
    assert [row.input for row in found.rows] == [0, 1, 2]
    for row, whole in zip(found.rows, rolled, strict=True):
        assert (row.token, row.tile_height, row.tile_width) == ("class", 2, 3)
        assert np.allclose(row.values, whole[0, 1:], atol=1e-6)
        assert row.placed_mass == pytest.approx(whole[0, 1:].sum().item(), abs=1e-6)


@pytest.mark.parametrize(
    "options", [{"global_pool": "avg"}, {"class_token": False, "reg_tokens": 1, "global_pool": "avg"}]
)
def test_where_the_output_is_an_average_so_is_the_map(options: dict[str, Any]) -> None:
    """A model that averages its patches reads no class token, and registers are none."""
    model, x = _vit(**options), torch.randn(1, 3, 32, 48)
    row = analyze(model, [x]).rows[0]
    rolled = _product(_whole_maps(model, x))
    assert row.token == "average"
    assert np.allclose(row.values, rolled[0, 1:, 1:].mean(0), atol=1e-6)


def test_registers_take_part_and_are_not_drawn() -> None:
    model, x = _vit(reg_tokens=2), torch.randn(1, 3, 32, 48)
    row = analyze(model, [x]).rows[0]
    rolled = _product(_whole_maps(model, x))
    assert row.token == "class"
    assert np.allclose(row.values, rolled[0, 0, 3:], atol=1e-6)


def test_a_distilled_model_has_a_row_for_each_of_its_tokens() -> None:
    from timm.models.deit import VisionTransformerDistilled

    torch.manual_seed(0)
    model = VisionTransformerDistilled(img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2, num_classes=3)
    x = torch.randn(1, 3, 32, 32)
    rows = analyze(model, [x]).rows
    rolled = _product(_whole_maps(model, x))[0]
    assert [row.token for row in rows] == ["class", "distillation", "both"]
    for row, whole in zip(rows, (rolled[0], rolled[1], (rolled[0] + rolled[1]) / 2), strict=True):
        assert np.allclose(row.values, whole[2:], atol=1e-6)


def _clip_model(name: str, **options: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = build.create_model(
        name, img_size=32, num_frames=4, num_classes=3, embed_dim=24, depth=2, num_heads=2, **options
    )
    for parameter in model.parameters():  # TimeSformer begins with steps in time that do nothing
        nn.init.normal_(parameter, std=0.2)
    return model, torch.randn(1, 3, 4, 32, 32)


def test_divided_attention_of_a_clip_agrees_with_whole_maps_multiplied() -> None:
    """Time, then space, each with its residual: the factors as whole maps over class token and all patches, written out here."""
    model, x = _clip_model("timesformer_divided")
    t, n = 4, 4
    found = analyze(model, [x])
    time = _whole_maps(model, x, lambda name: "temporal" in name)  # (n, t, t)
    space = _whole_maps(model, x, lambda name: name.endswith(".attn"))  # (t, 1 + n, 1 + n)
    rolled = torch.eye(1 + t * n)
    for over_time, over_space in zip(time, space, strict=True):
        first, second = torch.eye(1 + t * n), torch.zeros(1 + t * n, 1 + t * n)
        for place in range(n):
            for a in range(t):
                for b in range(t):
                    first[1 + a * n + place, 1 + b * n + place] = over_time[place, a, b]
        for frame in range(t):
            index = [0, *(1 + frame * n + place for place in range(n))]
            for row, query in enumerate(index):
                for column, key in enumerate(index):
                    second[query, key] += over_space[frame, row, column] / (t if query == 0 else 1)
        for factor in (first, second):
            rolled = (factor + torch.eye(1 + t * n)) / 2 @ rolled
    assert [row.frame for row in found.rows] == [0, 1, 2, 3]
    values = np.concatenate([row.values for row in found.rows])
    assert np.allclose(values, rolled[0, 1:], atol=1e-6)
    assert sum(row.frame_share for row in found.rows) == pytest.approx(1)


def test_a_factorised_encoder_goes_through_the_class_tokens_of_the_frames() -> None:
    model, x = _clip_model("vivit_b_16x2_fe")
    found = analyze(model, [x])
    space = _product(_whole_maps(model, x, lambda name: ".spatial." in name))  # (t, 1 + n, 1 + n)
    time = _product(_whole_maps(model, x, lambda name: ".temporal." in name))  # (1, 1 + t, 1 + t)
    for frame, row in enumerate(found.rows):
        assert np.allclose(row.values, time[0, 0, 1 + frame] * space[frame, 0, 1:], atol=1e-6)


@pytest.mark.parametrize(
    "name", ["vivit_b_16x2_m1", "vivit_b_16x2_fsa", "vivit_b_16x2_fdp", "timesformer_space", "timesformer_joint"]
)
def test_every_other_way_through_a_clip_keeps_its_mass(name: str) -> None:
    model, x = _clip_model(name)
    found = analyze(model, [x])
    frames = {row.frame for row in found.rows}
    assert len(frames) == (2 if "16x2" in name else 4)
    total = sum(sum(row.values) for row in found.rows)
    assert total == pytest.approx(found.rows[0].placed_mass, abs=1e-6)
    if "fsa" in name or "fdp" in name:  # no class token keeps anything
        assert total == pytest.approx(1, abs=1e-5)
    assert 0.5 < total <= 1 + 1e-6


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_t", "its windows are not assembled into maps of the whole image"),
        ("pvt_v2_b0", "tokens are pooled between and within its layers"),
        ("coatnet_0", "its tokens are pooled between layers"),
    ],
)
def test_it_is_not_defined_where_maps_cannot_be_multiplied(name: str, reason: str) -> None:
    model = build.create_model(name, img_size=64 if name != "swin_t" else 56)
    with pytest.raises(NotDefined, match=reason):
        analyze(model, [torch.zeros(1, 3, *((56, 56) if name == "swin_t" else (64, 64)))])


def test_attention_within_the_tokenizer_is_left_out_and_said_so() -> None:
    model = build.create_model("t2t_vit_t_14", img_size=32, num_classes=0)
    found = analyze(model, [torch.zeros(1, 3, 32, 32)])
    assert set(found.left_out) == {"tokens_to_token.attention1", "tokens_to_token.attention2"}
    assert any("Left out" in note for note in table({"t2t": found}).notes)


def test_no_image_is_an_error() -> None:
    with pytest.raises(BadInput, match="No image"):
        analyze(_vit(), [])


def _finding(frames: int = 1) -> AttentionRollout:
    rows = [
        RolloutMap(
            input=number,
            name=f"a $x$ <b> {number}.jpg",
            token="class",
            frame=frame,
            placed_mass=0.5,
            frame_share=1 / frames,
            tile_height=2,
            tile_width=3,
            values=(0.0, 0.1, 0.2, 0.0, 0.1, 0.1 + 0.2 * number),
        )
        for number in range(2)
        for frame in range(frames)
    ]
    pictures = tuple(np.full((*((frames,) if frames > 1 else ()), 20, 30, 3), 200, np.uint8) for _ in range(2))
    return AttentionRollout(rows=tuple(rows), pictures=pictures, left_out={})


@pytest.mark.parametrize("style", attention_rollout.STYLES)
@pytest.mark.parametrize("frames", [1, 3])
def test_the_same_numbers_make_the_same_picture(style: attention_rollout.Style, frames: int) -> None:
    first, second = (rendered(draw({"a $model$": _finding(frames)}, style=style), ".png") for _ in range(2))
    assert first == second


def test_of_several_models_each_input_is_drawn_by_all_with_their_names() -> None:
    figure = draw({"first $x$": _finding(), "second": _finding()})
    named = [ax.get_xlabel() for ax in figure.axes if ax.images]
    pictures, attention = ([f"a $x$ <b> {number}.jpg" for number in (0, 0, 1, 1)], ["first $x$", "second"] * 2)
    assert named == [name for pair in zip(pictures, attention, strict=True) for name in pair]
    rendered(figure, ".png")


def test_an_image_stands_beside_clips_and_each_has_its_own_frames() -> None:
    """Of clips of 6 pictures, whose number is their grey, three frames of tokens show 1, 3 and 5, and two 1 and 4."""

    def greys(frames: int) -> AttentionRollout:
        found = _finding(frames)
        clip = np.broadcast_to(np.arange(6, dtype=np.uint8)[:, None, None, None], (6, 20, 30, 3))
        return replace(found, pictures=(clip, clip))

    figure = draw({"three": greys(3), "two": greys(2), "image": _finding()})
    lines = np.reshape(np.array(figure.axes, dtype=object), (-1, 3))[:6]
    shown = [[ax.images[0].get_array()[0, 0, 0] for ax in line if ax.images] for line in lines[::2]]
    assert shown == [[1, 3, 5], [1, 4], [200]]
    assert lines[1, 0].get_ylabel() == "Attention, class\nthree"
    rendered(figure, ".png")


def test_the_papers_rendering_shows_the_picture_where_the_weight_is() -> None:
    """The brightest place of the drawn attention lies in the patch of the largest weight, the black in that of the least."""
    row = _finding().rows[1]
    shown = attention_rollout._shown(np.full((20, 30, 3), 255, np.uint8), row, max(row.values), "paper")
    assert shown.max() == pytest.approx(1)
    assert shown.min() == pytest.approx(0)
    brightest = np.unravel_index(shown[..., 0].argmax(), shown.shape[:2])
    assert [int(place) // 10 for place in brightest] == [1, 2]


def test_the_table_names_the_peak() -> None:
    found = table({"m": _finding()}).rows[1]
    assert (found["peak_row"], found["peak_column"]) == (1, 2)
    assert found["peak_over_mean"] == pytest.approx(0.3 * 6 / 0.5)
    assert math.isclose(found["placed_mass"], 0.5)
