"""BiT: "Big Transfer (BiT): General Visual Representation Learning", Kolesnikov et al., arXiv 1912.11370.

The sizes that the ViT paper (arXiv 2010.11929) adds in its Table 6, made of timm's parts as timm makes those of the
BiT paper: ResNet v2 with group norm, weight standardisation and wider stages. Nobody released their weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import StdConv2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnetv2 import ResNetV2

_CFG = {
    "num_classes": 1000,
    "input_size": (3, 448, 448),
    "pool_size": (14, 14),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": IMAGENET_INCEPTION_MEAN,
    "std": IMAGENET_INCEPTION_STD,
    "first_conv": "stem.conv",
    "classifier": "head.fc",
    "license": "apache-2.0",
}

default_cfgs = generate_default_cfgs({f"{name}.untrained": _CFG for name in ("bit_r50x2", "bit_r152x1", "bit_r200x3")})


def _create(variant: str, pretrained: bool, **options: Any) -> ResNetV2:
    return build_model_with_cfg(
        ResNetV2,
        variant,
        pretrained,
        feature_cfg={"flatten_sequential": True},
        stem_type="fixed",
        conv_layer=partial(StdConv2d, eps=1e-8),
        **options,
    )


@register_model
def bit_r50x2(pretrained: bool = False, **options: Any) -> ResNetV2:
    """BiT-R50x2: stages of 3, 4, 6 and 3 blocks, twice as wide."""
    return _create("bit_r50x2", pretrained, **{"layers": [3, 4, 6, 3], "width_factor": 2} | options)


@register_model
def bit_r152x1(pretrained: bool = False, **options: Any) -> ResNetV2:
    """BiT-R152x1: stages of 3, 8, 36 and 3 blocks."""
    return _create("bit_r152x1", pretrained, **{"layers": [3, 8, 36, 3], "width_factor": 1} | options)


@register_model
def bit_r200x3(pretrained: bool = False, **options: Any) -> ResNetV2:
    """BiT-R200x3: stages of 3, 24, 36 and 3 blocks, three times as wide."""
    return _create("bit_r200x3", pretrained, **{"layers": [3, 24, 36, 3], "width_factor": 3} | options)
