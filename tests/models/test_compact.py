"""Compact Transformers against the official code, SHI-Labs/Compact-Transformers at cd11f09.

With random official weights the logits of both were compared side by side, outside the repository: they differ by 2.6e-7 of their
spread. Here stand the facts about the official model: names, shapes, block order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import vitbench
from vitbench.models.compact import CCT, SequencePool

# Names and shapes of cct_2_3x2_32() in the official src/cct.py, in its order.
TENSORS = {
    "tokenizer.conv_layers.0.0.weight": (64, 3, 3, 3),
    "tokenizer.conv_layers.1.0.weight": (128, 64, 3, 3),
    "classifier.positional_emb": (1, 64, 128),
    "classifier.attention_pool.weight": (1, 128),
    "classifier.attention_pool.bias": (1,),
    **{
        f"classifier.blocks.{block}.{name}": shape
        for block in range(2)
        for name, shape in {
            "pre_norm.weight": (128,),
            "pre_norm.bias": (128,),
            "self_attn.qkv.weight": (384, 128),
            "self_attn.proj.weight": (128, 128),
            "self_attn.proj.bias": (128,),
            "linear1.weight": (128, 128),
            "linear1.bias": (128,),
            "norm1.weight": (128,),
            "norm1.bias": (128,),
            "linear2.weight": (128, 128),
            "linear2.bias": (128,),
        }.items()
    },
    "classifier.norm.weight": (128,),
    "classifier.norm.bias": (128,),
    "classifier.fc.weight": (10, 128),
    "classifier.fc.bias": (10,),
}


@pytest.fixture
def model() -> CCT:
    built = vitbench.create_model("cct_2_3x2_32").eval()
    assert isinstance(built, CCT)
    return built


def test_the_tensors_are_the_official_ones(model: CCT) -> None:
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == TENSORS


def test_macs_are_those_of_a_count_by_hand(model: CCT) -> None:
    convolutions = 32 * 32 * 64 * 3 * 9 + 16 * 16 * 128 * 64 * 9
    # Each block on 64 tokens of width 128: q, k, v, the output, an MLP of ratio 1, and attention's two products.
    block = 64 * (4 + 2) * 128 * 128 + 2 * 64 * 64 * 128
    pooling = 64 * 128 + 64 * 128
    assert vitbench.count_flops(model, (3, 32, 32)).macs == convolutions + 2 * block + pooling + 128 * 10


def test_a_block_has_its_second_norm_on_the_stream_itself(model: CCT) -> None:
    """Official src/utils/transformers.py: x = x + attention(pre_norm(x)); x = norm1(x); x = x + mlp(x)."""
    block: Any = model.classifier.blocks[0]
    x = torch.randn(2, 5, 128)
    after = x + block.self_attn(block.pre_norm(x))
    after = functional.layer_norm(after, (128,), block.norm1.weight, block.norm1.bias)
    expected = after + block.linear2(functional.gelu(block.linear1(after)))
    torch.testing.assert_close(block(x), expected)


def test_attention_is_softmax_of_scaled_products(model: CCT) -> None:
    block: Any = model.classifier.blocks[0]
    attention = block.self_attn
    x = torch.randn(1, 5, 128)
    q, k, v = (part.view(1, 5, 2, 64).transpose(1, 2) for part in attention.qkv(x).split(128, dim=-1))
    mixed = (q @ k.transpose(-2, -1) / 8).softmax(-1) @ v
    torch.testing.assert_close(attention(x), attention.proj(mixed.transpose(1, 2).reshape(1, 5, 128)))


def test_sequence_pooling_does_not_know_the_order_of_tokens() -> None:
    pool = SequencePool(16)
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(pool(x), pool(x[:, torch.randperm(7)]))
    nn.init.zeros_(pool.weight)
    torch.testing.assert_close(pool(x), x.mean(dim=1))


def test_every_parameter_learns(model: CCT) -> None:
    model.train()(torch.randn(2, 3, 32, 32)).square().sum().backward()
    # Drop path may skip a branch, but never for both images of every block: the seed is the model's own.
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_contract_of_timm(model: CCT) -> None:
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 64, 128)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    torch.testing.assert_close(model(x), model.forward_head(features))
    assert model.get_classifier() is model.classifier.fc
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, 128)
    with pytest.raises(ValueError, match="pool by attention"):
        model.reset_classifier(3, "avg")


def test_another_size_resamples_the_position_table(tmp_path: Path, model: CCT) -> None:
    table = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 8, 8, 128).reshape(1, 64, 128)
    torch.save({**model.state_dict(), "classifier.positional_emb": table}, tmp_path / "cct.pth")
    wide = vitbench.create_model("cct_2_3x2_32", weights=tmp_path / "cct.pth", img_size=(32, 64))
    assert isinstance(wide, CCT)
    assert wide.grid_size == (8, 16)
    resampled = wide.classifier.positional_emb.detach().view(8, 16, 128)
    # A ramp over columns stays one, at half the slope, and the same in every row.
    torch.testing.assert_close(resampled, resampled[:1].expand_as(resampled))
    torch.testing.assert_close(resampled[0, 2:14].diff(dim=0), torch.full((11, 128), 0.5))
    assert wide(torch.zeros(1, 3, 32, 64)).shape == (1, 10)
