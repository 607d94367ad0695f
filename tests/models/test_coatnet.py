"""CoAtNet against the paper's tables and equations; there is no official code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitbench import build, create_model
from vitbench.counters.counting import tally, total
from vitbench.models.coatnet import CoAtNet, Place, Stage, checkpoint_filter_fn, convolution, transformer

# Parameters that timm's models of the same widths and depths have, counted with timm 1.0.31: strides and poolings have none.
# Its CoAtNet-5 has heads of 32 channels, the paper's (appendix A.2) of 64, so half as many tables: 27^2 offsets x 20 heads x 28
# blocks and 13^2 x 32 x 2 fewer parameters.
TIMM = (25_036_820, 42_225_776, 74_684_744, 166_966_264, 275_425_288, 687_472_008 - 729 * 20 * 28 - 169 * 32 * 2)


@pytest.mark.parametrize(("number", "params"), list(enumerate(TIMM)))
def test_parameters_are_those_of_timms_other_layout(number: int, params: int) -> None:
    model = build.plan(f"coatnet_{number}").build("meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == params


@pytest.mark.parametrize(("number", "head_size"), [(0, 32), (4, 32), (5, 64), (6, 128), (7, 128)])
def test_heads_have_the_papers_size(number: int, head_size: int) -> None:
    """Table 3 and appendix A.2."""
    model = build.plan(f"coatnet_{number}").build("meta")
    assert {module.dim_head for module in model.modules() if hasattr(module, "dim_head")} == {head_size}


@pytest.mark.parametrize("layout", ["cccc", "ccct", "cctt", "cttt"])
def test_layouts_have_about_the_size_and_cost_of_coatnet_0(layout: str) -> None:
    """Section 2.2: "similar parameter size and computational cost"."""
    sizes = []
    for name in ("coatnet_0", f"coatnet_0_{layout}"):
        model = build.plan(name).build("meta").eval()
        sizes.append((sum(p.numel() for p in model.parameters()), total(tally(model, (3, 224, 224))).macs))
    for ours, zero in zip(sizes[1], sizes[0], strict=True):
        assert ours == pytest.approx(zero, rel=0.04)


@torch.inference_mode()
def test_a_convolution_block_strides_in_its_first_convolution() -> None:
    """Equation 5: x = Proj(Pool(x)) + Conv(DepthConv(Conv(Norm(x), stride = 2))), with squeeze and excitation before the last."""
    torch.manual_seed(0)
    block: Any = convolution(Place(8, 16, 2, (3, 4), 4, 0.0)).eval()
    x = torch.randn(2, 8, 6, 8)
    normed = functional.batch_norm(x, torch.zeros(8), torch.ones(8))
    hidden = functional.gelu(functional.conv2d(normed[:, :, ::2, ::2], block.conv1_1x1.weight) / (1 + 1e-5) ** 0.5)
    hidden = functional.conv2d(hidden, block.conv2_kxk.weight, padding=1, groups=64) / (1 + 1e-5) ** 0.5
    hidden = functional.gelu(hidden)
    hidden = functional.conv2d(block.se(hidden), block.conv3_1x1.weight, block.conv3_1x1.bias)
    shortcut = functional.conv2d(functional.max_pool2d(x, 2), block.shortcut.expand.weight, block.shortcut.expand.bias)
    torch.testing.assert_close(block(x), shortcut + hidden)


@torch.inference_mode()
def test_relative_attention_adds_a_scalar_for_each_head_and_offset_before_the_softmax() -> None:
    """Equation 3, y_pre; appendix A.1: for each head a parameter of (2H - 1) x (2W - 1)."""
    torch.manual_seed(0)
    block: Any = transformer(Place(8, 8, 1, (2, 3), 4, 0.0)).eval()
    attention, x = block.attn, torch.randn(1, 8, 2, 3)
    table = nn.init.normal_(attention.rel_pos.relative_position_bias_table)
    assert table.shape == (3 * 5, 2)
    # One head's query, key and value stand together.
    q, k, v = attention.qkv(x).view(1, 2, 12, 6).mT.chunk(3, dim=-1)
    bias = torch.zeros(2, 6, 6)
    for i in range(6):
        for j in range(6):
            rows, columns = i // 3 - j // 3, i % 3 - j % 3
            bias[:, i, j] = table[(rows + 1) * 5 + columns + 2]
    expected = ((q @ k.mT / 2 + bias).softmax(-1) @ v).mT.reshape(1, 8, 2, 3)
    torch.testing.assert_close(attention(x), attention.proj(expected))


@torch.inference_mode()
@pytest.mark.parametrize(("stride", "dim"), [(2, 16), (1, 16)])
def test_a_transformer_block_pools_both_branches_or_only_widens(stride: int, dim: int) -> None:
    """Equation 4: x = Proj(Pool(x)) + Attention(Pool(Norm(x))); without Pool inside S3 of CoAtNet-6 and 7."""
    torch.manual_seed(0)
    grid = (4 // stride, 6 // stride)
    block: Any = transformer(Place(8, dim, stride, grid, 4, 0.0)).eval()
    x = torch.randn(2, 8, 4, 6)

    def pool(y: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(y, 2) if stride == 2 else y

    normed = functional.layer_norm(x.permute(0, 2, 3, 1), (8,), eps=1e-6).permute(0, 3, 1, 2)
    shortcut = functional.conv2d(pool(x), block.shortcut.expand.weight, block.shortcut.expand.bias)
    expected = shortcut + block.attn(pool(normed))
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x), expected)
    assert block(x).shape == (2, dim, *grid)


@torch.inference_mode()
def test_a_stage_of_convolutions_and_transformers_runs() -> None:
    """The make of CoAtNet-6 and 7, small: 8 MBConv and 42 Transformer blocks share S3."""
    stages = (
        Stage(convolution, 1, 8),
        Stage(convolution, 2, 16),
        Stage(transformer, 2, 32, stride=1),
        Stage(transformer, 1, 40),
    )
    model = CoAtNet(32, num_classes=3, stem_width=8, stages=stages, head_size=8, drop_path_rate=0.5).eval()
    assert model.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, 40, 2, 2)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    blocks: Any = [block for stage in model.stages for block in stage.blocks]  # type: ignore[union-attr]  # modules of modules
    rates = [getattr(block, "drop_path", None) or block.drop_path1 for block in blocks]
    assert [getattr(rate, "drop_prob", 0.0) for rate in rates] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_relative_positions_are_resampled_bilinearly() -> None:
    """Appendix A.1: "we simply use bi-linear interpolation to increase the size"."""
    model: Any = create_model("coatnet_0", img_size=(64, 96))
    name = "stages.3.blocks.1.attn.rel_pos.relative_position_bias_table"
    assert model.get_parameter(name).shape == (3 * 5, 24)
    square = torch.randn(3 * 3, 24)  # of a map of 2 x 2, as at 64 px
    resampled = checkpoint_filter_fn({name: square}, model)[name]
    image = square.T.view(1, 24, 3, 3)
    expected = functional.interpolate(image, (3, 5), mode="bilinear").flatten(2)[0].T
    torch.testing.assert_close(resampled, expected)


def test_vit_rel_has_no_class_token_and_no_position_table() -> None:
    model: Any = build.plan("vit_rel").build("meta")
    assert not any("cls" in name or "pos_embed" in name for name in model.state_dict())
    assert model.get_parameter("blocks.0.attn.rel_pos.relative_position_bias_table").shape == (27 * 27, 12)
    assert model.forward_features(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 196, 384)
