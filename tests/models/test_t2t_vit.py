"""T2T-ViT against the paper's equations; test_official.py has the authors' own code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from vitbench import create_model
from vitbench.models.t2t_vit import (
    GhostMlp,
    SqueezeExcitedAttention,
    TokenPerformer,
    TokensToToken,
    TokenTransformer,
    checkpoint_filter_fn,
    sinusoidal,
)


@torch.inference_mode()
def test_the_performer_is_attention_with_random_features() -> None:
    """Performers, lemma 1: weights phi(q) phi(k) over their sum, phi(x) = exp(w x - |x|^2 / 2) / sqrt(m)."""
    torch.manual_seed(0)
    layer, x = TokenPerformer(20, 8).eval(), torch.randn(2, 7, 20)
    k, q, v = layer.kqv(layer.norm1(x)).chunk(3, dim=-1)
    features = []
    for part in (q, k):
        exponent = torch.einsum("bnc,mc->bnm", part, layer.w) - (part**2).sum(-1, keepdim=True) / 2
        features.append(exponent.exp() / 2)  # m is 4
    weights = features[0] @ features[1].mT
    attended = weights / weights.sum(-1, keepdim=True) @ v
    expected = v + layer.proj(attended)
    expected = expected + layer.mlp(layer.norm2(expected))
    torch.testing.assert_close(layer(x), expected)


def test_random_features_approximate_the_softmax_kernel() -> None:
    """Performers, lemma 1: E[phi(q) phi(k)] = exp(q k), here over many draws of w."""
    torch.manual_seed(0)
    layer = TokenPerformer(8, 8)
    q, k = 0.3 * torch.randn(1, 1, 8), 0.3 * torch.randn(1, 1, 8)
    estimates = []
    for _ in range(400):
        layer.w.data.normal_()
        estimates.append((layer.random_features(q) * layer.random_features(k)).sum().item())
    assert sum(estimates) / 400 == pytest.approx(math.exp((q * k).sum().item()), rel=0.05)


@torch.inference_mode()
def test_the_token_transformer_scales_by_the_long_width_and_skips_by_its_values() -> None:
    torch.manual_seed(0)
    layer, x = TokenTransformer(20, 8), torch.randn(2, 7, 20)
    q, k, v = layer.attn["qkv"](layer.norm1(x)).chunk(3, dim=-1)
    expected = v + layer.attn["proj"]((q @ k.mT / 20**0.5).softmax(-1) @ v)
    expected = expected + layer.mlp(layer.norm2(expected))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("size", [(224, 224), (64, 96), (37, 50), (3, 3)])
def test_the_grids_are_those_of_the_soft_splits(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        module = TokensToToken(3, 16, TokenPerformer)
        rows, columns = module.grids(*size)[-1]
        assert module(torch.zeros(1, 3, *size)).shape == (1, rows * columns, 16)


def test_positions_are_sines_and_cosines() -> None:
    table = sinusoidal(5, 6)
    assert table.shape == (1, 5, 6)
    for position in range(5):
        for channel in range(6):
            angle = position / 10000 ** (2 * (channel // 2) / 6)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[0, position, channel].item() == pytest.approx(expected, abs=1e-6)


def test_a_position_table_is_resampled_bicubically_and_its_first_row_is_kept() -> None:
    model: Any = create_model("t2t_vit_7", img_size=384)
    table = torch.randn(1, 197, 256)
    resampled = checkpoint_filter_fn({"pos_embed": table}, model)["pos_embed"]
    image = table[:, 1:].view(1, 14, 14, 256).permute(0, 3, 1, 2)
    expected = functional.interpolate(image, (24, 24), mode="bicubic").flatten(2).mT
    torch.testing.assert_close(resampled, torch.cat((table[:, :1], expected), dim=1))


@torch.inference_mode()
def test_squeeze_and_excitation_weights_the_channels() -> None:
    torch.manual_seed(0)
    attention, x = SqueezeExcitedAttention(32, 4), torch.randn(2, 7, 32)
    plain = super(SqueezeExcitedAttention, attention).forward(x)
    layers: Any = attention.se_layer["fc"]
    squeeze, excite = layers[0], layers[2]
    weights = torch.sigmoid(functional.linear(functional.linear(plain.mean(1), squeeze.weight).relu(), excite.weight))
    torch.testing.assert_close(attention(x), plain * weights[:, None])


@torch.inference_mode()
def test_ghost_channels_are_multiples() -> None:
    torch.manual_seed(0)
    mlp, x = GhostMlp(4, 12), torch.randn(2, 7, 4)
    primary = functional.gelu(mlp.fc1(x))
    ghosts = [
        functional.gelu(primary * scale.weight[:, 0, 0]) for scale in (mlp.cheap_operation2, mlp.cheap_operation3)
    ]
    torch.testing.assert_close(mlp(x), mlp.fc2(torch.cat((primary, *ghosts), dim=-1)))


def test_dense_blocks_and_transitions_have_the_papers_widths() -> None:
    """Table 6: hidden dimensions 128 to 584; the official constructor has groups of 3, 6, 6 and 4 that grow by 64."""
    model: Any = create_model("t2t_vit_dense")
    x, widths = torch.randn(1, 3, 128), []
    for layer in model.blocks:
        x = layer(x)
        widths.append(x.shape[-1])
    grown = [(128, 3), (160, 6), (272, 6), (328, 4)]  # each start is half of what the group before ended with
    expected = [width for start, depth in grown for width in [*(start + 64 * n for n in range(1, depth + 1)), None]]
    assert [width for width, e in zip(widths, expected, strict=False) if e is not None] == [e for e in expected if e]
    assert widths[-1] == model.num_features == 584


def test_dense_blocks_drop_by_the_official_rates() -> None:
    """Official models/t2t_vit_dense.py: linspace(0, rate, 12), of which a group takes the one of its number."""
    model: Any = create_model("t2t_vit_dense", drop_path_rate=0.11)
    rates = [getattr(getattr(layer, "drop_path1", None), "drop_prob", 0.0) for layer in model.blocks]
    assert sorted(set(rates)) == pytest.approx([0.0, 0.01, 0.02, 0.03])


def test_a_classifier_of_another_size_stays_out_of_official_weights(tmp_path: Path) -> None:
    path = tmp_path / "official.pth.tar"
    official: Any = create_model("t2t_vit_7", seed=1)
    torch.save({"state_dict_ema": official.state_dict()}, path)
    model: Any = create_model("t2t_vit_7", num_classes=3)
    head = model.head.weight.clone()
    model.load_pretrained(str(path))
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.blocks[0].attn.qkv.weight, official.blocks[0].attn.qkv.weight)
    features: Any = create_model("t2t_vit_7", num_classes=0)
    features.load_pretrained(str(path))
    assert torch.equal(features.norm.weight, official.norm.weight)
    damaged = {name: tensor for name, tensor in official.state_dict().items() if "blocks.3" not in name}
    torch.save({"state_dict_ema": damaged}, tmp_path / "damaged.pth")
    with pytest.raises(RuntimeError, match="blocks.3.norm1.weight"):
        model.load_pretrained(str(tmp_path / "damaged.pth"))
    model.reset_classifier(1000)
    model.load_pretrained(str(path))
    assert torch.equal(model.head.weight, official.head.weight)
