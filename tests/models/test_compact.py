"""Compact Transformers against the paper; test_official.py has the authors' own code."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitbench import models
from vitbench.counters.counting import tally, total
from vitbench.models.compact import CompactTransformer, ConvTokenizer, SequencePool, checkpoint_filter_fn

models.register()

TABLE = "classifier.positional_emb"


def build(**options: Any) -> CompactTransformer:
    torch.manual_seed(0)
    model = timm.create_model("cct_2_3x2_32", **options)
    assert isinstance(model, CompactTransformer)
    return model.eval()


def test_macs_in_closed_form() -> None:
    tokens, width, hidden, kernel, classes = 8 * 8, 128, 64, 3 * 3, 10
    # The second convolution works on what the first pooling leaves: 16 x 16.
    convolutions = 32 * 32 * hidden * 3 * kernel + 16 * 16 * width * hidden * kernel
    projections = 4 * tokens * width**2  # queries, keys, values, and the one after
    attention = 2 * tokens**2 * width  # queries by keys, weights by values; the heads share the width
    mlp = 2 * tokens * width * width  # ratio 1
    pooling = 2 * tokens * width  # the weight of each token, and the weighted sum
    macs = convolutions + 2 * (projections + attention + mlp) + pooling + width * classes
    assert total(tally(build(), (3, 32, 32))).macs == macs == 35_341_568
    # The paper's repository publishes 0.033 G, which leaves the two products of attention out.
    assert round((macs - 2 * attention) / 1e9, 3) == 0.033


def test_timms_contract() -> None:
    model, x = build(), torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 64, 128)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    torch.testing.assert_close(model(x), model.forward_head(features))
    assert model(x).shape == (2, model.num_classes) == (2, 10)
    cfg: Any = model.default_cfg
    assert cfg["input_size"] == (3, 32, 32)
    assert cfg["fixed_input_size"]
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)


def test_the_classifier_can_be_replaced() -> None:
    model, x = build().double(), torch.randn(2, 3, 32, 32).double()
    model.reset_classifier(3)
    assert model(x).shape == (2, model.num_classes) == (2, 3)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert build(num_classes=0)(x.float()).shape == (2, 128)
    with pytest.raises(ValueError, match="pooling of their own"):
        model.reset_classifier(3, "avg")


def test_gradients_reach_every_parameter() -> None:
    model = build()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    still = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    # The pooling's bias shifts the weights of all tokens alike, and softmax takes that away: rounding is all it gets.
    assert still <= {"classifier.attention_pool.bias"}
    assert model.get_parameter("classifier.attention_pool.bias").grad is not None


def test_the_rates_of_dropping_are_the_official_ones() -> None:
    """Official src/cct.py: stochastic depth from 0 to 0.1 over the blocks, 0.1 on attention's weights, no other."""
    blocks: Any = build().classifier.blocks
    assert [block.drop_path.drop_prob for block in blocks] == [0.0, 0.1]
    attention, x = blocks[0].self_attn.train(), torch.randn(1, 5, 128)
    assert not torch.equal(attention(x), attention(x))
    nn.init.zeros_(attention.qkv.weight)
    nn.init.ones_(attention.proj.bias)
    torch.testing.assert_close(attention(x), torch.ones(1, 5, 128))


def test_a_block_has_its_second_norm_on_the_stream_itself() -> None:
    """Official src/utils/transformers.py: x = x + attention(pre_norm(x)); x = norm1(x); x = x + mlp(x)."""
    block: Any = build().classifier.blocks[0]
    x = torch.randn(2, 5, 128)
    after = x + block.self_attn(functional.layer_norm(x, (128,)))
    after = functional.layer_norm(after, (128,))
    expected = after + block.linear2(functional.gelu(block.linear1(after)))
    torch.testing.assert_close(block(x), expected)


def test_attention_is_softmax_of_scaled_products() -> None:
    block: Any = build().classifier.blocks[0]
    attention, x = block.self_attn, torch.randn(1, 5, 128)
    # Two heads of 64 channels, side by side in queries, keys and values; the root of 64 is 8.
    q, k, v = (part.view(1, 5, 2, 64).transpose(1, 2) for part in attention.qkv(x).split(128, dim=-1))
    mixed = (q @ k.transpose(-2, -1) / 8).softmax(-1) @ v
    torch.testing.assert_close(attention(x), attention.proj(mixed.transpose(1, 2).reshape(1, 5, 128)))


def pool_by_hand(pool: SequencePool, x: Tensor) -> Tensor:
    weights = ((x * pool.weight[0]).sum(-1) + pool.bias).exp()
    return (weights[..., None] * x).sum(1) / weights.sum(1)[:, None]


def test_sequence_pooling_is_a_weighted_mean_that_does_not_know_the_order() -> None:
    torch.manual_seed(0)
    pool, x = SequencePool(16), torch.randn(3, 7, 16)
    torch.testing.assert_close(pool(x), pool_by_hand(pool, x))
    torch.testing.assert_close(pool(x[:, torch.randperm(7)]), pool(x))
    torch.testing.assert_close(pool(x[:, :1].expand(3, 7, 16)), x[:, 0])  # of equal tokens, the token
    nn.init.zeros_(pool.weight)
    torch.testing.assert_close(pool(x), x.mean(dim=1))  # of equal weights, the mean


def test_sinusoidal_positions_are_sines_and_cosines() -> None:
    """Official src/utils/transformers.py, sinusoidal_embedding: sines in even channels, cosines in odd ones."""
    model = timm.create_model("vit_lite_2_4_32_sine")
    assert isinstance(model, CompactTransformer)
    table = model.classifier.positional_emb
    assert table.shape == (1, 65, 128)  # the class token has position 0
    assert not table.requires_grad
    for position, channel in ((0, 0), (0, 1), (3, 0), (3, 1), (64, 62), (64, 127)):
        angle = position / 10000 ** (2 * (channel // 2) / 128)
        expected = math.cos(angle) if channel % 2 else math.sin(angle)
        assert table[0, position, channel].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("layers", "kernel_size"), [(1, 3), (2, 3), (2, 7)])
@pytest.mark.parametrize("extent", [1, 2, 31, 32, 33, 224])
def test_the_tokenizer_foretells_its_tokens(layers: int, kernel_size: int, extent: int) -> None:
    with torch.device("meta"):
        tokenizer = ConvTokenizer(3, 8, layers, kernel_size)
        rows, columns = tokenizer.tokens_along(extent), tokenizer.tokens_along(32)
        assert tokenizer(torch.zeros(2, 3, extent, 32)).shape == (2, rows * columns, 8)


@pytest.mark.parametrize(("img_size", "grid"), [(64, (16, 16)), ((32, 64), (8, 16)), (30, (8, 8))])
def test_the_model_can_be_built_for_another_size(img_size: int | tuple[int, int], grid: tuple[int, int]) -> None:
    model = build(img_size=img_size)
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    # Two poolings by 2, rounded up.
    assert model.grid_size == grid
    assert model(torch.zeros(1, 3, height, width)).shape == (1, 10)


def test_an_image_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="0 x 32 pixels gives no tokens"):
        build(img_size=(0, 32))


def test_a_checkpoint_of_another_size_is_resampled() -> None:
    # A table that grows by one a column, on the official 8 x 8 grid.
    ramp = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 8, 8, 128).reshape(1, 64, 128)
    official = {**build().state_dict(), TABLE: ramp}
    wide = build(img_size=(32, 64))
    wide.load_state_dict(checkpoint_filter_fn(official, wide))
    resampled = wide.get_parameter(TABLE).detach().view(8, 16, 128)
    # New centres lie half an old step apart, the first a quarter of a step before the old; beyond the edge is the edge.
    columns = ((torch.arange(16) + 0.5) / 2 - 0.5).clamp(0, 7)
    torch.testing.assert_close(resampled, columns.view(1, 16, 1).expand(8, 16, 128))
    assert official[TABLE] is ramp
