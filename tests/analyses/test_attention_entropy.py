"""Entropy of attention: closed forms, and the definition written out."""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional

from vitbench import build
from vitbench.analyses.attention_entropy import AttentionEntropy, analyze, draw, table
from vitbench.drawing.pictures import rendered
from vitbench.errors import BadInput, NotDefined


class _Planted(Attention):
    """Attention that gives maps of ours, (h, T, T)."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__(maps.shape[-1], num_heads=1)
        self.maps = maps

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        q = self.maps.log().clamp(min=-1e4)[None].expand(len(x), -1, -1, -1)
        k = torch.eye(x.shape[1])[None, None].expand(len(x), len(self.maps), -1, -1)
        return functional.scaled_dot_product_attention(q, k, k, scale=1.0).mean(1)


class _Model(nn.Module):
    """One layer of planted attention, over prefix tokens and a row of patches."""

    def __init__(self, maps: Tensor, prefix: int) -> None:
        super().__init__()
        self.num_prefix_tokens = prefix
        self.grid_size = (1, maps.shape[-1] - prefix)
        self.attn = _Planted(maps)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.attn.maps.shape[-1]
        out: Tensor = self.attn(torch.zeros(len(x), tokens, tokens))
        return out


def _entropy(maps: Tensor, prefix: int = 0) -> AttentionEntropy:
    return analyze(_Model(maps, prefix), [torch.zeros(2, 3, 8, 8 * (maps.shape[-1] - prefix))])


@pytest.mark.parametrize(("tokens", "prefix", "expected"), [(196, 0, 5.278115), (197, 1, 5.283204)])
def test_uniform_attention(tokens: int, prefix: int, expected: float) -> None:
    """Closed form: ln 196 and ln 197."""
    row = _entropy(torch.full((1, tokens, tokens), 1 / tokens), prefix).rows[0]
    assert row.entropy_nats == pytest.approx(expected, abs=1e-5)
    assert row.entropy_share == pytest.approx(1, abs=1e-5)
    assert row.uniform_nats == pytest.approx(expected, abs=1e-6)
    assert row.entropy_placed_nats == pytest.approx(math.log(tokens - prefix), abs=1e-5)
    assert row.sem_nats == pytest.approx(0, abs=1e-9)


def test_one_key_alone_has_none() -> None:
    """0 ln 0 is 0: with 1e-8 inside the logarithm, as some have it, this would be 3.6e-5."""
    row = _entropy(torch.eye(50)[None]).rows[0]
    assert row.entropy_nats == 0
    assert row.entropy_share == 0


@pytest.mark.parametrize("keys", [2, 5])
def test_equal_shares_of_some_keys(keys: int) -> None:
    one = torch.zeros(10, 10)
    one[:, :keys] = 1 / keys
    assert _entropy(one[None]).rows[0].entropy_nats == pytest.approx(math.log(keys), abs=1e-6)


def test_heads_and_prefix_tokens_by_the_definition() -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, 12, 12).mul(2).softmax(-1)
    rows = _entropy(maps, prefix=2).rows
    for head, row in enumerate(rows):
        a = maps[head, 2:].double()
        placed = a[:, 2:] / a[:, 2:].sum(-1, keepdim=True)
        assert row.entropy_nats == pytest.approx(-(a * a.log()).sum(-1).mean().item(), abs=1e-5)
        assert row.entropy_placed_nats == pytest.approx(-(placed * placed.log()).sum(-1).mean().item(), abs=1e-5)
        assert row.entropy_share == pytest.approx(-(a * a.log()).sum(-1).mean().item() / math.log(12), abs=1e-5)


def test_masked_keys_are_not_counted_in_shifted_windows() -> None:
    """With q = k = 0 a query spreads evenly over its region: the share is 1 whatever the region's size."""
    model = build.create_model("swin_t", num_classes=0)
    for name, parameter in model.named_parameters():
        if "qkv" in name or "bias_table" in name:
            nn.init.zeros_(parameter)
    rows = analyze(model, [torch.zeros(1, 3, 224, 224)]).rows
    assert [row.entropy_share for row in rows] == pytest.approx([1.0] * len(rows), abs=1e-4)
    shifted = next(row for row in rows if row.layer == "layers.0.blocks.1.attn")
    assert shifted.uniform_nats is not None
    assert shifted.uniform_nats < math.log(49)
    assert shifted.entropy_nats == pytest.approx(shifted.uniform_nats, abs=1e-4)


def test_a_model_without_attention_and_no_image() -> None:
    with pytest.raises(NotDefined, match="no softmax attention"):
        analyze(build.create_model("resnet50", num_classes=0), [torch.zeros(1, 3, 32, 32)])
    with pytest.raises(BadInput, match="No image"):
        analyze(_Model(torch.eye(4)[None], 0), [])


def test_picture_and_table() -> None:
    torch.manual_seed(0)
    finding = _entropy(torch.randn(5, 12, 12).softmax(-1), prefix=1)
    assert rendered(draw({"a $b$": finding}), ".svg") == rendered(draw({"a $b$": finding}), ".svg")
    (row,) = table({"a": finding}).rows
    assert row["least_nats"] <= row["mean_nats"] <= row["most_nats"] <= row["uniform_nats"]
