"""CvT against transformers, an implementation by others, and against the paper; test_official.py has the authors' own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import QuickGELU
from torch import nn

from vitbench import create_model
from vitbench.models.cvt import ConvAttention


def reference() -> Any:
    """Gives CvT-13 of transformers, with the GELU of the official code: it has the exact one instead."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.CvtForImageClassification(transformers.CvtConfig(num_labels=1000))
    with torch.no_grad():  # else all biases are 0 and all norms 1, and nobody would see them change places
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for module in model.modules():
        if hasattr(module, "activation"):
            module.activation = QuickGELU()
        if isinstance(module, nn.BatchNorm2d):
            statistics: Any = module
            statistics.running_mean.normal_()
            statistics.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.filterwarnings("default")  # of transformers' own
@pytest.mark.parametrize("size", [(3, 224, 224), (2, 150, 203)])
@torch.inference_mode()
def test_weights_of_transformers_give_its_logits(size: tuple[int, int, int], tmp_path: Path) -> None:
    theirs = reference()
    path = tmp_path / "pytorch_model.bin"
    torch.save(theirs.state_dict(), path)
    ours = create_model("cvt_13", weights=path).eval()
    batch, height, width = size
    x = torch.randn(batch, 3, height, width)
    expected = theirs(x).logits
    spread = (expected.max() - expected.min()).item()
    torch.testing.assert_close(ours(x), expected, atol=5e-5 * spread, rtol=0)


@torch.inference_mode()
def test_attention_is_convolved_and_scaled_by_the_whole_width() -> None:
    """Paper, equation 2 and figure 3 (c); official lib/models/cls_cvt.py: the class token goes around the convolutions."""
    torch.manual_seed(0)
    attention, x = ConvAttention(12, num_heads=3).eval(), torch.randn(1, 1 + 6 * 4, 12)
    image = x[:, 1:].reshape(1, 6, 4, 12).permute(0, 3, 1, 2)
    mixed = []
    for name, stride in (("q", 1), ("k", 2), ("v", 2)):
        kernel = attention.get_parameter(f"conv_proj_{name}.conv.weight")
        convolved = nn.functional.conv2d(image, kernel, stride=stride, padding=1, groups=12) / (1 + 1e-5) ** 0.5
        tokens = torch.cat((x[:, :1], convolved.flatten(2).mT), dim=1)
        mixed.append(attention.get_submodule(f"proj_{name}")(tokens).view(1, -1, 3, 4).transpose(1, 2))
    q, k, v = mixed
    assert (q.shape[2], k.shape[2], v.shape[2]) == (25, 7, 7)
    expected = (q @ k.mT / 12**0.5).softmax(-1) @ v
    torch.testing.assert_close(attention(x, (6, 4)), attention.proj(expected.transpose(1, 2).reshape(1, 25, 12)))


def test_drop_path_grows_over_the_last_stage() -> None:
    """Official experiments/imagenet/cvt/cvt-13-224x224.yaml: DROP_PATH_RATE 0, 0, 0.1."""
    model: Any = create_model("cvt_13", drop_path_rate=0.1)
    rates = [[block.drop_path.drop_prob for block in stage.blocks] for stage in model.stages]
    assert rates[:2] == [[0.0], [0.0, 0.0]]
    assert rates[2] == pytest.approx([0.1 * number / 9 for number in range(10)])


def test_an_image_too_small_for_a_patch_says_so() -> None:
    with pytest.raises(RuntimeError, match="[Kk]ernel size"):
        create_model("cvt_13").eval()(torch.zeros(1, 3, 2, 2))
