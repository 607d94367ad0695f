"""TimeSformer against transformers and against the paper; test_official.py has the authors' own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vitbench import build, catalog, create_model
from vitbench.errors import BadInput
from vitbench.models import timesformer
from vitbench.models.timesformer import HEIGHT, QUARTER, SPACE, STRIDE_2, TIME, WIDTH, Grouping, StepwiseBlock

SMALL: dict[str, Any] = {"img_size": 64, "num_frames": 4, "embed_dim": 48, "depth": 2, "num_heads": 4}


def perturbed(model: Any) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():  # else all biases and most of the linear layers after temporal attention are 0
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.filterwarnings("default")  # of transformers' own
@pytest.mark.parametrize(
    ("ours", "theirs"), [("divided", "divided_space_time"), ("joint", "joint_space_time"), ("space", "space_only")]
)
@torch.inference_mode()
def test_weights_of_transformers_give_its_logits(ours: str, theirs: str, tmp_path: Path) -> None:
    """Its space-only model gives a row a frame and no average, so that one is compared on clips of one frame."""
    transformers = pytest.importorskip("transformers")
    options = SMALL | ({"num_frames": 1} if ours == "space" else {})
    config = transformers.TimesformerConfig(
        attention_type=theirs, image_size=64, num_frames=options["num_frames"], num_labels=400, hidden_size=48,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
    )  # fmt: skip
    reference = perturbed(transformers.TimesformerForVideoClassification(config))
    reference.save_pretrained(tmp_path)
    model = create_model(f"timesformer_{ours}", weights=tmp_path / "model.safetensors", **options).eval()
    x = torch.randn(2, 3, options["num_frames"], 64, 64)
    expected = reference(x.transpose(1, 2)).logits
    spread = (expected.max() - expected.min()).item()
    torch.testing.assert_close(model(x), expected, atol=5e-5 * spread, rtol=0)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("space", 85.9), ("joint", 85.9), ("divided", 121.4), ("lg", 121.4), ("axial", 156.8)],
)
def test_the_five_schemes_have_the_papers_parameters(name: str, millions: float) -> None:
    """Paper, table 1. The official models have 0.2 M more than the printed three, of 0.14 to 0.25 %."""
    model = build.plan(f"timesformer_{name}").build("meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(millions * 1e6, rel=0.003)


def test_timesformer_is_the_divided_one() -> None:
    one, other = (build.plan(name).build("meta") for name in ("timesformer", "timesformer_divided"))
    assert list(one.state_dict()) == list(other.state_dict())
    assert catalog.VARIANTS["timesformer"].published_ids == ("timesformer_divided",)
    block: Any = one.get_submodule("blocks.0")
    assert (block.steps, block.last) == ({"temporal": TIME}, SPACE)


@torch.inference_mode()
def test_joint_attention_over_one_frame_is_space_attention() -> None:
    """The names of the weights are the same, but for the table of times, which is zero here."""
    options = SMALL | {"num_frames": 1}
    space = perturbed(timm.create_model("timesformer_space", **options))
    joint: Any = timm.create_model("timesformer_joint", **options).eval()
    missing, unexpected = joint.load_state_dict(space.state_dict(), strict=False)
    assert (missing, unexpected) == (["time_embed"], [])
    x = torch.randn(2, 3, 1, 64, 64)
    torch.testing.assert_close(joint(x), space(x))


@torch.inference_mode()
def test_space_attention_averages_frames_that_do_not_see_each_other() -> None:
    """Official models/vit.py: the average is taken before the last norm."""
    model = perturbed(timm.create_model("timesformer_space", **SMALL))
    x = torch.randn(2, 3, 4, 64, 64)
    one: Any = timm.create_model("timesformer_space", **SMALL | {"num_frames": 1}).eval()
    one.load_state_dict(model.state_dict())
    one.norm, norm = torch.nn.Identity(), one.norm
    frames = torch.stack([one.forward_features(x[:, :, [index]]) for index in range(4)])
    torch.testing.assert_close(model(x), one.forward_head(norm(frames.mean(dim=0))))


def seen(grouping: Grouping, t: int, h: int, w: int) -> set[tuple[int, int, int]]:
    """Gives the patches in the group of one, of a grid of 4 x 6 x 8."""
    grid = torch.zeros(1, 4, 6, 8, 1)
    grid[0, t, h, w] = 1
    groups = grouping.split(grid)
    groups[groups.amax(dim=(1, 2)) > 0] = 1
    return {(int(a), int(b), int(c)) for _, a, b, c, _ in grouping.merge(groups, grid.shape).nonzero()}


@pytest.mark.parametrize(
    ("grouping", "expected"),
    [
        (TIME, {(t, 3, 5) for t in range(4)}),
        (SPACE, {(2, h, w) for h in range(6) for w in range(8)}),
        (WIDTH, {(2, 3, w) for w in range(8)}),
        (HEIGHT, {(2, h, 5) for h in range(6)}),
        # Rows 3 to 5 and columns 4 to 7 are the quarter of row 3, column 5.
        (QUARTER, {(t, h, w) for t in range(4) for h in range(3, 6) for w in range(4, 8)}),
        (STRIDE_2, {(t, h, w) for t in (0, 2) for h in (1, 3, 5) for w in (1, 3, 5, 7)}),
    ],
    ids=["time", "space", "width", "height", "quarter", "stride 2"],
)
def test_groups_are_the_papers(grouping: Grouping, expected: set[tuple[int, int, int]]) -> None:
    """Paper, section 3 and figure 2."""
    assert seen(grouping, 2, 3, 5) == expected


@pytest.mark.parametrize("grouping", [TIME, SPACE, WIDTH, HEIGHT, QUARTER, STRIDE_2])
def test_what_is_split_merges_again(grouping: Grouping) -> None:
    grid = torch.randn(2, 4, 6, 8, 3)
    torch.testing.assert_close(grouping.merge(grouping.split(grid), grid.shape), grid)


@torch.inference_mode()
def test_a_step_with_its_own_projections_sees_its_groups_alone() -> None:
    """Without the last step and the MLP, a change of one patch reaches those of its first group, and the class token never."""
    grid = (4, 6, 8)
    block = perturbed(StepwiseBlock(48, 4, grid, steps={"local": QUARTER}, last=STRIDE_2, qkv_bias=True))
    for parameter in (block.attn.proj.weight, block.attn.proj.bias, block.mlp.fc2.weight, block.mlp.fc2.bias):
        parameter.zero_()
    x = torch.randn(1, 1 + 4 * 6 * 8, 48)
    other = x.clone()
    other[0, 1 + (2 * 6 + 3) * 8 + 5] = torch.randn(48)
    difference = (block(other) - block(x)).abs().amax(-1)[0]
    assert difference[0] == 0
    found = {(int(t), int(h), int(w)) for t, h, w in (difference[1:].view(grid) > 1e-6).nonzero()}
    assert found == seen(QUARTER, 2, 3, 5)


@torch.inference_mode()
def test_the_class_token_averages_its_copies_in_the_last_step() -> None:
    """Official models/vit.py, "averaging for every frame": a patch of one frame moves the token by a share."""
    grid = (4, 2, 2)
    block = perturbed(StepwiseBlock(48, 4, grid, steps={}, last=SPACE, qkv_bias=True))
    x = torch.randn(1, 17, 48)
    attended = block.attn(block.norm1(torch.cat((x[:, :1].expand(4, -1, -1), x[0, 1:].view(4, 4, 48)), dim=1)))
    token = x[:, :1] + attended[:, :1].mean(dim=0, keepdim=True)
    token = token + block.mlp(block.norm2(token))
    torch.testing.assert_close(block(x)[:, :1], token)


def test_blocks_begin_as_an_image_models_but_for_the_first() -> None:
    """Official models/vit.py: temporal_fc is zero in all blocks but the first."""
    model: Any = timm.create_model("timesformer_axial", **SMALL)
    for name in ("temporal_fc", "width_fc"):
        first, second = (model.blocks[index].get_submodule(name) for index in (0, 1))
        assert first.weight.abs().min() > 0
        assert not second.weight.any()
        assert not second.bias.any()


def test_odd_grids_cannot_be_halved() -> None:
    with pytest.raises(BadInput, match="so 4x5x4 cannot be: each must be even"):
        create_model("timesformer_lg", img_size=(80, 64), num_frames=4, device="meta")
    create_model("timesformer_axial", img_size=(80, 64), num_frames=3, device="meta")


def test_patches_must_tile() -> None:
    with pytest.raises(ValueError, match="Patches of 16x16 do not tile frames of 64x70"):
        timm.create_model("timesformer", img_size=(64, 70))


def test_tables_take_the_nearest_entries_in_time_and_space() -> None:
    """Official models/vit.py, forward_features: nearest, floor(index * old / new)."""
    model: Any = timm.create_model("timesformer", img_size=(96, 64), num_frames=6, embed_dim=4, depth=1, num_heads=1)
    times = torch.arange(4.0).view(1, 4, 1).expand(-1, -1, 4)
    places = torch.cat((torch.tensor([99.0]), torch.arange(9.0))).view(1, 10, 1).expand(-1, -1, 4)
    state = timesformer.checkpoint_filter_fn({"model.time_embed": times, "model.pos_embed": places}, model)
    assert state["time_embed"][0, :, 0].tolist() == [0, 0, 1, 2, 2, 3]
    rows, columns = [0, 0, 1, 1, 2, 2], [0, 0, 1, 2]
    expected: list[float] = [99, *(3 * row + column for row in rows for column in columns)]
    assert state["pos_embed"][0, :, 0].tolist() == expected


@pytest.mark.parametrize("name", ["timesformer_joint", "timesformer_divided"])
@torch.inference_mode()
def test_memory_grows_with_the_frames_and_not_with_their_square(name: str) -> None:
    """The largest tensor that any operator writes on a CPU; explicit attention would write all pairs of tokens."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return result

    largest = []
    for frames in (8, 32):
        model = timm.create_model(name, img_size=112, num_frames=frames, embed_dim=48, depth=1, num_heads=4).eval()
        with Largest() as mode:  # type: ignore[no-untyped-call]  # torch leaves it untyped
            model(torch.zeros(1, 3, frames, 112, 112))
        largest.append(mode.elements)
    assert largest[1] <= 4.1 * largest[0]
    tokens = 1 + 32 * 7 * 7
    assert largest[1] < tokens**2
