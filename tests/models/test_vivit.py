"""ViViT against transformers, an implementation by others, and against the paper; test_official.py has the authors' own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from vitbench import build, create_model
from vitbench.errors import BadInput
from vitbench.models import vivit
from vitbench.models.vivit import FactorisedDotProductAttention, FactorisedSelfAttentionBlock, TimeFirstBlock

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 4}


def perturbed(model: Any) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():  # else all biases are 0 and all norms 1
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.filterwarnings("default")  # of transformers' own
@torch.inference_mode()
def test_weights_of_transformers_give_its_logits(tmp_path: Path) -> None:
    """Model 1, saved as transformers saves it, which is as the published files have it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.VivitConfig(
        image_size=48, num_frames=8, num_labels=400, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=192,
    )  # fmt: skip
    theirs = perturbed(transformers.VivitForVideoClassification(config))
    theirs.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "memory.pth")  # names that version 5 has in memory alone
    x = torch.randn(2, 3, 8, 48, 48)
    expected = theirs(x.transpose(1, 2)).logits
    spread = (expected.max() - expected.min()).item()
    for path in (tmp_path / "model.safetensors", tmp_path / "memory.pth"):
        ours = create_model("vivit_b_16x2_m1", weights=path, img_size=48, num_frames=8, **SMALL).eval()
        torch.testing.assert_close(ours(x), expected, atol=5e-5 * spread, rtol=0)


@pytest.mark.parametrize("model", ["m1", "fe", "fsa", "fdp"])
@pytest.mark.parametrize("letter", ["b", "l", "h"])
@pytest.mark.parametrize(("tubelet", "positions"), [("16x2", 16), ("14x2", 16), ("16x4", 8), ("16x8", 4)])
def test_sizes_and_tubelets(letter: str, tubelet: str, positions: int, model: str) -> None:
    """Paper, section 4.1: depth, heads and width of B, L and H; a tubelet of h x w x t leaves T / t temporal indices."""
    depth, heads, width = {"b": (12, 12, 768), "l": (24, 16, 1024), "h": (32, 16, 1280)}[letter]
    built: Any = build.plan(f"vivit_{letter}_{tubelet}_{model}").build("meta")
    side, frames = map(int, tubelet.split("x"))
    assert built.patch_embed.proj.kernel_size == (frames, side, side)
    assert built.patch_embed.grid_size == (positions, 224 // side, 224 // side)
    encoder = built.encoder.spatial if model == "fe" else built.encoder
    assert (len(encoder.blocks), encoder.blocks[0].attn.num_heads, built.embed_dim) == (depth, heads, width)
    if model == "fe":
        # 4 of all in the paper, section 4.2; 24 in the released configuration and weights of ViViT-L.
        assert len(built.encoder.temporal.blocks) == (24 if letter == "l" else 4)


@torch.inference_mode()
def test_model_2_with_one_temporal_index_is_the_spatial_encoder_and_then_a_temporal_one_of_two_tokens() -> None:
    model = perturbed(timm.create_model("vivit_b_16x2_fe", img_size=32, num_frames=2, **SMALL))
    x = torch.randn(2, 3, 2, 32, 32)
    frame = model.encoder.spatial(model.patch_embed(x)[:, 0])[:, :1]
    assert model.encoder.temporal.pos_embed.shape == (1, 2, 48)
    torch.testing.assert_close(model(x), model.head(model.encoder.temporal(frame)[:, 0]))


@torch.inference_mode()
def test_the_average_pool_baseline_is_the_mean_of_the_frames_classifications() -> None:
    """The classifier is linear, so the logits of the average are the average of the logits."""
    model = perturbed(timm.create_model("vivit_b_16x2_avgpool", img_size=32, num_frames=6, **SMALL))
    x = torch.randn(2, 3, 6, 32, 32)
    tokens = model.patch_embed(x)
    frames = [model.head(model.encoder.spatial(tokens[:, index])[:, 0]) for index in range(3)]
    torch.testing.assert_close(model(x), torch.stack(frames).mean(dim=0))


def changed(layer: Any, planted: tuple[int, int], grid: tuple[int, int] = (5, 7)) -> set[tuple[int, int]]:
    """Gives the tokens, by time and place, whose output a change of one token changes."""
    x = torch.randn(1, *grid, 48)
    other = x.clone()
    other[0, planted[0], planted[1]] = torch.randn(48)  # a norm would take a constant away
    difference = (layer(other) - layer(x)).abs().amax(-1)[0]
    return {(time, place) for time in range(grid[0]) for place in range(grid[1]) if difference[time, place] > 1e-6}


ROW = {(2, place) for place in range(7)}
COLUMN = {(time, 3) for time in range(5)}


@torch.inference_mode()
def test_model_3_attends_along_one_axis_and_then_the_other() -> None:
    """Paper, equations 4 and 5: another frame cannot change what spatial attention gives, nor another place temporal's."""
    block = perturbed(FactorisedSelfAttentionBlock(48, 4, qkv_bias=True))
    assert changed(block.over_space, (2, 3)) == ROW
    assert changed(block.over_time, (2, 3)) == COLUMN
    assert changed(block, (2, 3)) == {(time, place) for time in range(5) for place in range(7)}


@torch.inference_mode()
def test_model_3_has_two_orders() -> None:
    torch.manual_seed(0)
    first, second = FactorisedSelfAttentionBlock(48, 4, qkv_bias=True), TimeFirstBlock(48, 4, qkv_bias=True)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 5, 7, 48)
    torch.testing.assert_close(first.eval().attend(x), first.over_time(first.over_space(x)))
    torch.testing.assert_close(second.eval().attend(x), first.over_space(first.over_time(x)))
    options: dict[str, Any] = {"img_size": 32, "num_frames": 4, **SMALL}
    model: Any = create_model("vivit_b_16x2_fsa", attention_order="time_space", **options)
    assert isinstance(model.encoder.blocks[0], TimeFirstBlock)
    with pytest.raises(BadInput, match="attention_order must be one of space_time, time_space, not 'space'"):
        create_model("vivit_b_16x2_fsa", attention_order="space", **options)
    with pytest.raises(BadInput, match="attention_order"):
        create_model("vivit_b_16x2_m1", attention_order="time_space", **options)


@torch.inference_mode()
def test_model_4_attends_along_time_with_half_of_the_heads_and_within_a_frame_with_the_others() -> None:
    """Official model_utils.py: the first half is time's."""
    attention = perturbed(FactorisedDotProductAttention(48, 4, qkv_bias=True))
    assert changed(attention, (2, 3)) == ROW | COLUMN
    attention.proj.weight.zero_()
    attention.proj.weight[:, :24] = torch.eye(48)[:, :24]
    assert changed(attention, (2, 3)) == COLUMN
    attention.proj.weight[:, :24] = 0
    attention.proj.weight[:, 24:] = torch.eye(48)[:, 24:]
    assert changed(attention, (2, 3)) == ROW


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (16, [3, 6, 10, 13]),
        (32, [4, 7, 11, 14, 18, 21, 25, 28]),
        (48, [4, 7, 11, 15, 18, 22, 26, 30, 33, 37, 41, 44]),
    ],
)
def test_frames_are_sampled_uniformly(frames: int, expected: list[int]) -> None:
    """Expected: official common_lib/video_utils.py, sample_frames_uniformly, run for a fourth of so many frames."""
    model: Any = build.plan("vivit_b_16x4_m1_uniform", num_frames=frames).build("meta")
    assert model.patch_embed.frames == expected
    every: Any = timm.create_model(
        "vivit_b_16x4_m1_uniform", tubelet=(1, 16, 16), img_size=16, num_frames=frames, **SMALL
    )
    assert every.patch_embed.frames == list(range(frames))


@torch.inference_mode()
def test_sampled_frames_alone_are_seen() -> None:
    model = perturbed(timm.create_model("vivit_b_16x4_m1_uniform", img_size=32, num_frames=16, **SMALL))
    x = torch.randn(1, 3, 16, 32, 32)
    unseen, seen = x.clone(), x.clone()
    unseen[:, :, [index for index in range(16) if index not in (3, 6, 10, 13)]] = 9
    seen[:, :, 10] = 9
    torch.testing.assert_close(model(unseen), model(x))
    assert (model(seen) - model(x)).abs().max() > 1e-3


def ramp(times: int, rows: int, columns: int) -> Tensor:
    """Gives a table, (1, tokens, 3), of each token's place along each axis, from 0 to 1."""
    axes = [torch.linspace(0, 1, extent) for extent in (times, rows, columns)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(1, -1, 3)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [((16, 14, 14), (32, 14, 14)), ((16, 14, 14), (16, 20, 20)), ((16, 14, 14), (64, 7, 21)), ((4, 6, 6), (8, 6, 6))],
)
def test_tables_are_resampled_in_time_and_space(found: Any, wanted: Any, tmp_path: Path) -> None:
    """Official model_utils.py zooms linearly, corner on corner: a ramp stays a ramp."""
    sizes: dict[str, Any] = {"embed_dim": 3, "depth": 1, "num_heads": 1}
    original: Any = timm.create_model("vivit_b_16x2_m1", img_size=16 * found[1], num_frames=2 * found[0], **sizes)
    with torch.no_grad():
        original.encoder.pos_embed.copy_(torch.cat((torch.full((1, 1, 3), 7.0), ramp(*found)), dim=1))
    path = tmp_path / "table.pth"
    torch.save(original.state_dict(), path)
    size = (16 * wanted[1], 16 * wanted[2])
    model: Any = create_model("vivit_b_16x2_m1", weights=path, img_size=size, num_frames=2 * wanted[0], **sizes)
    expected = torch.cat((torch.full((1, 1, 3), 7.0), ramp(*wanted)), dim=1)
    torch.testing.assert_close(model.encoder.pos_embed.detach(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("built", "tokens", "expected"),
    [
        ({"num_frames": 64}, 5, "of no grid of this model's kind"),
        # 16 frames of 224 pixels, or 4 of 448.
        ({"num_frames": 16, "img_size": 448}, 8 * 14 * 14, "2x28x28 or 8x14x14"),
    ],
)
def test_a_table_of_two_grids_or_of_none_is_refused(built: Any, tokens: int, expected: str) -> None:
    model: Any = build.plan("vivit_b_16x2_m1", **built).build("meta")
    with pytest.raises(ValueError, match=f"holds {tokens} positions, which may be {expected}"):
        vivit.checkpoint_filter_fn({"encoder.pos_embed": torch.zeros(1, 1 + tokens, 768)}, model)


def test_model_2s_tables_change_along_their_own_axes() -> None:
    """12 x 12 places could else be taken for 4 times of 6 x 6."""
    model: Any = build.plan("vivit_b_16x2_fe", img_size=96, num_frames=8).build("meta")
    state = {
        "encoder.spatial.pos_embed": torch.zeros(1, 145, 768),
        "encoder.temporal.pos_embed": torch.zeros(1, 17, 768),
    }
    state["encoder.spatial.pos_embed"][0, 1:] = ramp(1, 12, 12)[0, :, 1:2]
    found = vivit.checkpoint_filter_fn(state, model)
    assert found["encoder.temporal.pos_embed"].shape == (1, 5, 768)
    torch.testing.assert_close(found["encoder.spatial.pos_embed"][:, 1:, :1], ramp(1, 6, 6)[..., 1:2])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_frames": 31}, "Tubelets of 2x16x16 do not tile a clip of 31x224x224"),
        ({"img_size": 230}, "Tubelets of 2x16x16 do not tile a clip of 32x230x230"),
    ],
)
def test_a_clip_that_tubelets_do_not_tile_is_refused(options: Any, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        create_model("vivit_b_16x2_fe", device="meta", **options)
