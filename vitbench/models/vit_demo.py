"""A small ViT that comes trained with the package, so that analyses can be tried without a network.

No paper's model: a plain ViT (arXiv 2010.11929) of 14 x 14 patches, as in that paper's figures. `scripts/train_demo.py` trained
it to predict masked patches of 197 photographs, public domain or CC0 1.0, from Debian's gcompris-qt-data 3.1-2, and to tell
from the class token which photograph it sees. It classifies nothing else. Its weights lie beside this file, in half precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

WEIGHTS = Path(__file__).with_name("vit_demo.safetensors")

default_cfgs = generate_default_cfgs(
    {
        "vit_demo.photos": {
            "file": str(WEIGHTS),
            "num_classes": 0,
            "input_size": (3, 112, 112),
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


@register_model
def vit_demo(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """ViT of 6 blocks and 8 heads on patches of 8 pixels, 0.85 M parameters, without a classifier."""
    sizes = {"img_size": 112, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 8, "mlp_ratio": 2.0}
    return build_model_with_cfg(
        VisionTransformer,
        "vit_demo",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        **{"num_classes": 0} | sizes | options,
    )
