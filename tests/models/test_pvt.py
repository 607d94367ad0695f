"""PVT against transformers, an implementation by others, and against the paper; test_official.py has the authors' own code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vitbench import create_model
from vitbench.errors import BadInput
from vitbench.models.pvt import SpatialReductionAttention, checkpoint_filter_fn


def reference() -> Any:
    """Gives PVT-Tiny of transformers, with the eps of the official code: 1e-5 in all norms but those of blocks."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.PvtForImageClassification(transformers.PvtConfig(num_labels=1000))
    with torch.no_grad():  # else all biases are 0 and all norms 1, and nobody would see them change places
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and ("patch_embeddings" in name or "attention.self" in name):
            module.eps = 1e-5
    return model.eval()


@pytest.mark.filterwarnings("default")  # of transformers' own
@torch.inference_mode()
def test_weights_of_transformers_give_its_logits(tmp_path: Path) -> None:
    theirs = reference()
    path = tmp_path / "pytorch_model.bin"
    torch.save(theirs.state_dict(), path)
    ours = create_model("pvt_tiny", weights=path).eval()
    x = torch.randn(2, 3, 224, 224)
    expected = theirs(x).logits
    spread = (expected.max() - expected.min()).item()
    torch.testing.assert_close(ours(x), expected, atol=5e-5 * spread, rtol=0)


@torch.inference_mode()
def test_keys_and_values_are_spatially_reduced() -> None:
    """Paper, equations 1 to 4: SRA(Q, K, V) with SR(x) = Norm(Reshape(x, R) W)."""
    torch.manual_seed(0)
    attention: Any = SpatialReductionAttention(8, num_heads=2, ratio=2)
    x = torch.randn(1, 4 * 6, 8)
    # Squares of 2 x 2 tokens in a row, channels first as the convolution's weight has them.
    squares = x.view(1, 2, 2, 3, 2, 8).permute(0, 1, 3, 5, 2, 4).reshape(1, 6, 8 * 4)
    merged = squares @ attention.reduction.sr.weight.flatten(1).T + attention.reduction.sr.bias
    k, v = attention.kv(nn.functional.layer_norm(merged, (8,))).chunk(2, dim=-1)
    q, k, v = (part.view(1, -1, 2, 4).transpose(1, 2) for part in (attention.q(x), k, v))
    expected = (q @ k.mT / 2).softmax(-1) @ v
    torch.testing.assert_close(attention(x, (4, 6)), attention.proj(expected.transpose(1, 2).reshape(1, 24, 8)))


def test_a_position_table_is_resampled_in_each_stage() -> None:
    model: Any = create_model("pvt_tiny", img_size=(224, 448))
    official = {"pos_embed2": torch.arange(28.0).view(1, 1, 28, 1).expand(1, 28, 28, 128).reshape(1, 784, 128)}
    (table,) = checkpoint_filter_fn(official, model).values()
    # New centres lie half an old step apart, the first a quarter of a step before the old; beyond the edge is the edge.
    columns = ((torch.arange(56) + 0.5) / 2 - 0.5).clamp(0, 27)
    torch.testing.assert_close(table.view(28, 56, 128), columns.view(1, 56, 1).expand(28, 56, 128))


def test_official_tables_of_another_size_are_resampled_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "official.pth"
    ours: Any = create_model("pvt_tiny", img_size=64)
    official = {
        re.sub(r"^stages\.(\d)\.pos_embed", lambda found: f"pos_embed{int(found[1]) + 1}", name): tensor
        for name, tensor in ours.state_dict().items()
    }
    torch.save(official, path)
    with pytest.raises(BadInput, match=r"stages\.0\.pos_embed is 1x256x64, not 1x3136x64.*Give img_size"):
        create_model("pvt_tiny", weights=path)
    larger: Any = create_model("pvt_tiny", img_size=96, weights=path)
    assert larger.stages[0].pos_embed.shape == (1, 24 * 24, 64)
