"""Small models for tests of what runs models, by their addresses, such as `tests.tiny:vit`; images are of 32 x 32 pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitbench.models.vivit import SpatioTemporal, ViViT

Size = int | tuple[int, int]

_SMALL: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}

DOING: list[Callable[[Tensor], object]] = []
"""What an `acting` model does with its inputs before each pass; a test puts it there and takes it away."""


def _stated(model: Any, size: Size) -> nn.Module:
    """Gives a model that states its input, as timm's do."""
    height, width = (size, size) if isinstance(size, int) else size
    half = (0.5, 0.5, 0.5)
    model.pretrained_cfg = {"input_size": (3, height, width), "mean": half, "std": half, "crop_pct": 1.0}
    assert isinstance(model, nn.Module)
    return model


class _Acting(VisionTransformer):
    """A ViT that does what a test wants of it."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if not x.is_meta:
            for act in DOING:
                act(x)
        out: Tensor = super().forward(x, attn_mask, is_causal)
        return out


def vit(img_size: Size = 32) -> nn.Module:
    """A ViT with 16 patches, a class token, two layers and three heads."""
    return _stated(VisionTransformer(img_size=img_size, **_SMALL), img_size)


def vit2(img_size: Size = 32) -> nn.Module:
    """Another."""
    return vit(img_size)


def acting(img_size: Size = 32) -> nn.Module:
    """The same, under `DOING`."""
    return _stated(_Acting(img_size=img_size, **_SMALL), img_size)


def nameless() -> nn.Module:
    """The same, which does not say what it takes."""
    return VisionTransformer(img_size=32, **_SMALL)


def deit(img_size: Size = 32) -> nn.Module:
    """A distilled one."""
    return _stated(VisionTransformerDistilled(img_size=img_size, **_SMALL), img_size)


def swin() -> nn.Module:
    """A Swin of two stages, windows of 4 x 4 tokens."""
    model = SwinTransformer(
        img_size=32, patch_size=4, embed_dim=12, depths=(2, 1), num_heads=(2, 2), window_size=4, num_classes=0
    )
    return _stated(model, 32)


def convolutions() -> nn.Module:
    """What has no attention."""
    layers = [nn.Sequential(nn.Conv2d(channels, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU()) for channels in (3, 6)]
    return _stated(nn.Sequential(*layers, nn.Flatten()), 32)


def clips(num_frames: int = 4) -> nn.Module:
    """A ViViT, Model 1, of 2 x 2 x 2 tubelets."""
    model = ViViT(32, num_frames, 3, 0, encoder=SpatioTemporal, tubelet=(2, 16, 16), embed_dim=24, depth=2, num_heads=3)
    model.num_frames = num_frames
    return _stated(model, 32)
