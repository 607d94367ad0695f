"""BiT's further sizes, against timm's own, a count by hand and the ViT paper."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import nn

from vitbench import models
from vitbench.counters.counting import tally, total

models.register()

# Blocks of the four stages and factor of the width. Source: "Deep Residual Learning", Table 1, for ResNet-50 and -152;
# "Identity Mappings in Deep Residual Networks" for ResNet-200; the names of the BiT and ViT papers for the widths.
SIZES = {"bit_r50x2": ((3, 4, 6, 3), 2), "bit_r152x1": ((3, 8, 36, 3), 1), "bit_r200x3": ((3, 24, 36, 3), 3)}


@cache
def build(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, **options)
    return model


def by_hand(depths: tuple[int, ...], factor: int, side: int) -> tuple[int, int]:
    """Gives parameters and multiply-accumulates of a BiT for square images, layer by layer."""
    width, side = 64 * factor, side // 2
    params = 3 * width * 7**2
    macs = params * side**2
    side //= 2  # the pooling of the stem
    for stage, depth in enumerate(depths):
        inner, outer = 64 * factor * 2**stage, 256 * factor * 2**stage
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            # The first convolution comes before the stride, which is in the second.
            reduce, between, expand = width * inner, 9 * inner**2, inner * outer
            skip = width * outer if block == 0 else 0
            macs += reduce * side**2
            side //= stride
            macs += (between + expand + skip) * side**2
            # Norms come first: of the block's input, then of the two inner results.
            params += reduce + between + expand + skip + 2 * (width + inner + inner)
            width = outer
    return params + 2 * width + (width + 1) * 1000, macs + width * 1000


@pytest.mark.parametrize("name", SIZES)
def test_counts_by_hand(name: str) -> None:
    model = build(name)
    counted = sum(parameter.numel() for parameter in model.parameters()), total(tally(model, (3, 224, 224))).macs
    assert counted == by_hand(*SIZES[name], 224)


# Table 6 of the ViT paper gives training compute. The forward pass that follows from it lies 3 to 4 % below the sum
# over the layers for every BiT of that table, also for those that timm has.
@pytest.mark.parametrize(
    ("name", "published"), [("bit_r50x2", 15.64e9), ("bit_r152x1", 11.08e9), ("bit_r200x3", 129.89e9)]
)
def test_macs_are_near_the_published_training_compute(name: str, published: float) -> None:
    assert 1.025 < by_hand(*SIZES[name], 224)[1] / published < 1.045


@pytest.mark.parametrize(
    ("name", "size", "timm_name"),
    [
        ("bit_r50x2", {"width_factor": 1}, "resnetv2_50x1_bit"),
        ("bit_r152x1", {"width_factor": 2}, "resnetv2_152x2_bit"),
        ("bit_r200x3", {"layers": (3, 4, 6, 3)}, "resnetv2_50x3_bit"),
    ],
)
def test_at_a_size_that_timm_has_it_is_timms(name: str, size: dict[str, Any], timm_name: str) -> None:
    # Layers and their settings: strides, padding, eps.
    assert str(build(name, **size)) == str(build(timm_name))


@pytest.mark.parametrize("name", SIZES)
def test_the_metadata_are_true(name: str) -> None:
    model: Any = build(name)
    cfg: Any = timm.get_pretrained_cfg(name)
    assert (cfg.architecture, cfg.input_size, cfg.has_weights) == (name, (3, 448, 448), None)
    assert model.get_submodule(cfg.classifier).out_channels == cfg.num_classes == 1000
    assert isinstance(model.get_submodule(cfg.first_conv), nn.Conv2d)
    # Stride 32 at the default size.
    assert cfg.pool_size == (448 // 32, 448 // 32)
