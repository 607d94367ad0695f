"""Small models that are really slowed, for power.py: apart from it, so that a worker imports no more than it runs."""

from __future__ import annotations

from typing import Any

from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

SIZE = 64
"""Height and width of the input."""


class Twice(nn.Module):
    """A block that does its work twice and gives the second result."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Any, **options: Any) -> Any:
        """Runs the block twice."""
        self.block(x, **options)
        return self.block(x, **options)


def _twice(model: Any, blocks: int) -> Any:
    """Has the first blocks of a model do their work twice."""
    for number in range(blocks):
        model.blocks[number] = Twice(model.blocks[number])
    return model


def _vit(twice: int) -> Any:
    model = VisionTransformer(img_size=SIZE, patch_size=16, embed_dim=48, depth=40, num_heads=3, num_classes=0)
    return _twice(model, twice)


def _mixer(twice: int) -> Any:
    return _twice(MlpMixer(img_size=SIZE, patch_size=16, embed_dim=64, num_blocks=40, num_classes=0), twice)


def vit_0() -> Any:
    """A ViT of 40 blocks."""
    return _vit(0)


def vit_3() -> Any:
    """The same, three blocks of which do their work twice."""
    return _vit(3)


def vit_6() -> Any:
    """The same, six blocks of which do their work twice."""
    return _vit(6)


def mixer_0() -> Any:
    """An MLP-Mixer of 40 blocks."""
    return _mixer(0)


def mixer_3() -> Any:
    """The same, three blocks of which do their work twice."""
    return _mixer(3)


def mixer_6() -> Any:
    """The same, six blocks of which do their work twice."""
    return _mixer(6)
