"""MViT and MViTv2 against torchvision, an implementation by others, and against the papers; test_official.py has the authors'."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional

from vitbench import build, create_model
from vitbench.models import mvit
from vitbench.models.mvit import PoolingAttention, RelativePoolingAttention


def perturbed(model: Any) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():  # else all norms are 1
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(("ours", "theirs"), [("mvit_b_16x4", "mvit_v1_b"), ("mvitv2_s_16x4", "mvit_v2_s")])
@torch.inference_mode()
def test_weights_of_torchvision_give_its_logits(
    ours: str, theirs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = pytest.importorskip("torchvision.models.video.mvit")
    make, size = code._mvit, {"spatial_size": (96, 96), "temporal_size": 8}
    monkeypatch.setattr(code, "_mvit", lambda **options: make(**options | size))
    reference = perturbed(getattr(code, theirs)())
    path = tmp_path / "torchvision.pth"
    torch.save(reference.state_dict(), path)
    model = create_model(ours, weights=path, img_size=96, num_frames=8).eval()
    x = torch.randn(2, 3, 8, 96, 96)
    expected = reference(x)
    spread = (expected.max() - expected.min()).item()
    torch.testing.assert_close(model(x), expected, atol=5e-5 * spread, rtol=0)


# Source: MViT, table 3; MViTv2, table 1; official configs. Blocks in each stage, channels, heads, rows of tokens.
STAGES: dict[str, tuple[list[int], list[int], list[int], list[int]]] = {
    "mvit_s_16x4": ([3, 7, 6], [128, 256, 512], [1, 2, 4], [28, 14, 7]),
    "mvit_b_16x4": ([1, 2, 11, 2], [96, 192, 384, 768], [1, 2, 4, 8], [56, 28, 14, 7]),
    "mvit_b_24_32x3": ([2, 3, 16, 3], [96, 192, 384, 768], [1, 2, 4, 8], [56, 28, 14, 7]),
    "mvit_b_16_image": ([1, 2, 11, 2], [96, 192, 384, 768], [1, 2, 4, 8], [56, 28, 14, 7]),
    "mvitv2_s_16x4": ([1, 2, 11, 2], [96, 192, 384, 768], [1, 2, 4, 8], [56, 28, 14, 7]),
    "mvitv2_b_32x3": ([2, 3, 16, 3], [96, 192, 384, 768], [1, 2, 4, 8], [56, 28, 14, 7]),
    "mvitv2_l_40x3": ([2, 6, 36, 4], [144, 288, 576, 1152], [2, 4, 8, 16], [78, 39, 20, 10]),
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_the_papers(name: str) -> None:
    model: Any = build.plan(name).build("meta")
    widths, heads, rows = [], [], []
    clip = torch.zeros(1, *(build.input_shape(model) or ()), device="meta")
    for block in model.blocks:
        block.register_forward_hook(lambda block, args, result: rows.append(result[1][1]))
        widths.append(block.attn.proj.in_features)
        heads.append(block.attn.num_heads)
    model(clip)
    depths, channels, numbers, sides = STAGES[name]
    for found, expected in ((widths, channels), (heads, numbers), (rows, sides)):
        assert found == [each for each, depth in zip(expected, depths, strict=True) for _ in range(depth)]
    assert model.num_features == channels[-1]


# Rows of keys, block by block. MViT, section 3.3: K and V have "consistent scale across all blocks". Where a stage begins, the
# official code has the new stage's stride already and the old one's tokens still; a stride of 1 cannot become less.
KEYS = {
    "mvit_b_16x4": [7, 14, 7, 14, *[7] * 10, 14, 7],
    "mvit_s_16x4": [7, 7, 7, 14, *[7] * 6, 14, *[7] * 5],
    "mvit_b_16_image": [14, 28, 14, 28, *[14] * 10, 14, 7],
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_as_many_in_every_stage(name: str) -> None:
    model: Any = build.plan(name).build("meta")
    sides: list[int] = []

    def watched(attend: Any, *tensors_and_grids: Any) -> Any:
        sides.append(tensors_and_grids[4][1])
        return attend(*tensors_and_grids)

    for block in model.blocks:
        block.attn.attend = partial(watched, block.attn.attend)
    model(torch.zeros(1, *(build.input_shape(model) or ()), device="meta"))
    assert sides == KEYS[name]


@torch.inference_mode()
def test_pooling_convolves_each_head_alike_and_leaves_the_class_token_out() -> None:
    """MViT, section 3.1; the class token is normed all the same, as in the official code."""
    attention = perturbed(PoolingAttention(12, 12, 3, (2, 6, 4), ((3, 3, 3), 2), ((3, 3, 3), 1)))
    x = torch.randn(2, 3, 1 + 2 * 6 * 4, 4)
    pooled, grid = attention.pool("q", x, (2, 6, 4))
    assert grid == (2, 3, 2)
    for head in range(3):
        video = x[:, head, 1:].mT.reshape(2, 4, 2, 6, 4)
        convolved = functional.conv3d(video, attention.pool_q.weight, stride=(1, 2, 2), padding=1, groups=4)
        tokens = torch.cat((x[:, head, :1], convolved.flatten(2).mT), dim=1)
        torch.testing.assert_close(pooled[:, head], attention.norm_q(tokens))


@torch.inference_mode()
def test_relative_positions_are_those_of_the_paper_one_by_one() -> None:
    """MViTv2, equations 3 to 5: Q_i . (R^h + R^w + R^t) by distance, and the pooled query added to the result."""
    grid_q, grid_k = (2, 3, 2), (2, 6, 4)
    attention = perturbed(RelativePoolingAttention(8, 8, 2, (2, 6, 4), ((3, 3, 3), 2), ((3, 3, 3), 1)))
    q, k, v = torch.randn(3, 1, 2, 1 + 48, 4).unbind()
    q = q[:, :, : 1 + 12]
    logits = q @ k.mT / 2
    places_q = [(t, y, x) for t in range(2) for y in range(3) for x in range(2)]
    places_k = [(t, y, x) for t in range(2) for y in range(6) for x in range(4)]
    for i, (t, y, x) in enumerate(places_q, 1):
        for j, (t2, y2, x2) in enumerate(places_k, 1):
            # Queries lie on every second row and column of the keys.
            table = (
                attention.rel_pos_t[t - t2 + 1]
                + attention.rel_pos_h[2 * y - y2 + 5]
                + attention.rel_pos_w[2 * x - x2 + 3]
            )
            logits[:, :, i, j] += q[:, :, i] @ table
    expected = logits.softmax(-1) @ v
    expected[:, :, 1:] += q[:, :, 1:]
    torch.testing.assert_close(attention.attend(q, k, v, grid_q, grid_k), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at_a_time", [1, 4 * 49, 10**9])
@torch.inference_mode()
def test_frames_at_a_time_change_nothing(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = perturbed(timm.create_model("mvitv2_s_16x4", img_size=64, num_frames=8, depth=4, stages=(1, 3)))
    x = torch.randn(2, 3, 8, 64, 64)
    expected = model(x)
    monkeypatch.setitem(mvit._BIASES, "cpu", at_a_time)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_tables_are_resampled_in_time_and_space(tmp_path: Path) -> None:
    """Official models/video_model_builder.py, _get_pos_embed, and models/attention.py, get_rel_pos: linear, sides aligned."""
    first: Any = timm.create_model("mvit_b_16x4", img_size=64, num_frames=8, depth=2, stages=(1,))
    path = tmp_path / "small.pth"
    torch.save(first.state_dict(), path)
    options: dict[str, Any] = {"depth": 2, "stages": (1,)}
    second: Any = create_model("mvit_b_16x4", weights=path, img_size=(64, 128), num_frames=16, **options)
    table = first.positions.temporal.mT.detach()  # as the official sum of both would be resampled, axis by axis
    expected = functional.interpolate(table, 8, mode="linear").mT
    torch.testing.assert_close(second.positions.temporal.detach(), expected)
    table = first.positions.spatial.detach().mT.unflatten(2, (16, 16))
    expected = functional.interpolate(table, (16, 32), mode="bilinear").flatten(2).mT
    torch.testing.assert_close(second.positions.spatial.detach(), expected)
    first = timm.create_model("mvitv2_s_16x4", img_size=64, num_frames=8, **options)
    torch.save(first.state_dict(), path)
    second = create_model("mvitv2_s_16x4", weights=path, img_size=(64, 128), num_frames=16, **options)
    for block, other in zip(first.blocks, second.blocks, strict=True):
        torch.testing.assert_close(other.attn.rel_pos_h, block.attn.rel_pos_h)
        for name in ("rel_pos_w", "rel_pos_t"):
            table, wanted = getattr(block.attn, name).detach(), getattr(other.attn, name).detach()
            assert len(wanted) == 2 * (len(table) + 1) - 1
            torch.testing.assert_close(wanted, functional.interpolate(table.mT[None], len(wanted), mode="linear")[0].mT)


def test_a_clip_that_cannot_be_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="An input of 16x4x4 gives no tokens"):
        timm.create_model("mvit_s_16x4", img_size=4)
    with pytest.raises(ValueError, match="Patches of 8x8 do not tile frames of 60x64"):
        timm.create_model("mvit_s_16x4", img_size=(60, 64))


@pytest.mark.parametrize("name", ["mvit_b_16x4", "mvitv2_s_16x4"])
@torch.inference_mode()
def test_two_frames_of_few_pixels_go_in_and_load_again(name: str, tmp_path: Path) -> None:
    """One temporal index, and stages that would shrink to less than one row."""
    model = perturbed(create_model(name, img_size=(16, 48), num_frames=2))
    torch.save(model.state_dict(), tmp_path / "own.pth")
    again = create_model(name, weights=tmp_path / "own.pth", img_size=(16, 48), num_frames=2).eval()
    x = torch.randn(2, 3, 2, 16, 48)
    torch.testing.assert_close(again(x), model(x))
    assert model(x[:0]).shape == (0, 400)


def test_biases_and_norms_begin_at_two_hundredths() -> None:
    """Official models/video_model_builder.py, _init_weights."""
    model: Any = timm.create_model("mvit_b_16x4", img_size=64, num_frames=4, depth=2, stages=(1,))
    for module in (model.blocks[0].norm1, model.head, model.blocks[1].attn.qkv):
        torch.testing.assert_close(module.bias.detach(), torch.full_like(module.bias, 0.02))
