"""CvT: "CvT: Introducing Convolutions to Vision Transformers", Wu et al., arXiv 2103.15808.

Not the CVT of Compact Transformers, which is `compact_cvt_*` here.

Agrees with the official code, microsoft/CvT at f851e68, lib/models/cls_cvt.py: parameters, running statistics, logits.

Differences: attention is one fused call; all tokens of the last stage are normed, of which the classifier reads the class token
alone; a batch of one keeps its axis. Stochastic depth is 0 unless `drop_path_rate` is given; the official configurations
train with 0.1 (CvT-13, CvT-21) and 0.3 (CvT-W24) in the last stage.

Shapes: B batch, H W rows and columns, N tokens, P prefix tokens (a class token or none), C channels, h heads, d channels of
one head.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, QuickGELU, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

from vitbench.parts.blocks import Recomputing


class ConvEmbed(nn.Module):
    """Convolutional token embedding: overlapping patches, each projected and normed. Source: section 3.1, equation 1.

    Args:
        in_chans: channels of the map it is given.
        dim: width of a token, C.
        kernel_size: side of a patch.
        stride: distance of neighbouring patches.
        padding: zeros around the map.
    """

    def __init__(self, in_chans: int, dim: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, channels, H, W) -> (B, N, C), and the number of rows and columns of the tokens."""
        x = self.proj(x)
        grid = (x.shape[2], x.shape[3])
        return self.norm(x.flatten(2).transpose(1, 2)), grid


class ConvProjection(nn.Module):
    """The depth-wise convolution and batch norm before a projection. Source: section 3.2.1, equation 2."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N / stride^2, C)."""
        out: Tensor = self.bn(self.conv(x))
        return out.flatten(2).transpose(1, 2)


class ConvAttention(nn.Module):
    """Multi-head attention over convolved tokens, fewer of them for keys and values. Source: section 3.2.2, figure 3 (c).

    The products are divided by the root of the width C, not of one head's d, as in the official code.

    Args:
        dim: width of a token, C.
        num_heads: heads, h.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = dim**-0.5
        self.conv_proj_q = ConvProjection(dim, stride=1)
        self.conv_proj_k = ConvProjection(dim, stride=2)
        self.conv_proj_v = ConvProjection(dim, stride=2)
        self.proj_q = nn.Linear(dim, dim)
        self.proj_k = nn.Linear(dim, dim)
        self.proj_v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, P + N, C) -> (B, P + N, C); prefix tokens go around the convolutions."""
        B, _, C = x.shape
        tokens = grid[0] * grid[1]
        prefix, x = x[:, :-tokens], x[:, -tokens:]
        x = x.unflatten(1, grid).permute(0, 3, 1, 2)  # (B, C, H, W), channels last in memory
        q, k, v = (
            # (B, M, C) -> (B, h, M, d)
            projection(torch.cat((prefix, convolution(x)), dim=1)).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for convolution, projection in (
                (self.conv_proj_q, self.proj_q),
                (self.conv_proj_k, self.proj_k),
                (self.conv_proj_v, self.proj_v),
            )
        )
        x = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        out: Tensor = self.proj(x.transpose(1, 2).reshape(B, -1, C))
        return out


class Block(nn.Module):
    """Convolutional Transformer block: attention and MLP, each after a norm. Source: section 3, figure 2 (b)."""

    def __init__(self, dim: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ConvAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim, act_layer=QuickGELU)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, P + N, C) -> (B, P + N, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class Stage(Recomputing):
    """Token embedding and blocks: a feature map becomes a coarser one. Source: figure 2 (a).

    Args:
        patch_embed: makes the tokens.
        blocks: the blocks, in order.
    """

    def __init__(self, patch_embed: ConvEmbed, blocks: list[Block]) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, H / stride, W / stride)."""
        tokens, grid = self.patch_embed(x)
        for block in self.blocks:
            tokens = self.run(block, tokens, grid)
        out: Tensor = tokens.transpose(1, 2).unflatten(2, grid)
        return out


class LastStage(Stage):
    """A stage whose tokens a class token precedes. Source: section 3."""

    def __init__(self, patch_embed: ConvEmbed, blocks: list[Block]) -> None:
        super().__init__(patch_embed, blocks)
        self.cls_token = nn.Parameter(torch.empty(1, 1, patch_embed.proj.out_channels))
        trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, 1 + N, C)."""
        tokens, grid = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), tokens), dim=1)
        for block in self.blocks:
            x = self.run(block, x, grid)
        return x


class ConvolutionalVisionTransformer(Recomputing):
    """Three stages and a classifier that reads the class token; no position table, so any size of image goes in.

    Args:
        in_chans: channels of the image.
        num_classes: classes; 0 leaves the last layer out.
        dims: width of a token, C, in each stage.
        depths: blocks of each stage.
        num_heads: heads, h, in each stage.
        drop_path_rate: share of branches left out in training in the last block; it grows from 0 in the last stage's first.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        dims: tuple[int, int, int],
        depths: tuple[int, int, int],
        num_heads: tuple[int, int, int],
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = dims[-1]
        self.num_prefix_tokens = 1
        windows = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding
        rates = (
            [0.0] * depths[0],
            [0.0] * depths[1],
            torch.linspace(0, drop_path_rate, depths[2], device="cpu").tolist(),
        )
        embeddings = [
            ConvEmbed(*ends, *window)
            for ends, window in zip(((in_chans, dims[0]), dims[:2], dims[1:]), windows, strict=True)
        ]
        blocks = [
            [Block(dim, heads, rate) for rate in stage]
            for dim, heads, stage in zip(dims, num_heads, rates, strict=True)
        ]
        self.stages = nn.Sequential(*map(Stage, embeddings[:-1], blocks), LastStage(embeddings[-1], blocks[-1]))
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes) if num_classes > 0 else nn.Identity()
        self.apply(_init_weights)

    def get_classifier(self) -> nn.Module:
        """Gives the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the last layer; 0 classes leave it out.

        Raises:
            ValueError: another pooling was asked for.
        """
        if global_pool not in (None, "token"):
            raise ValueError(f"CvT reads its class token; {global_pool!r} cannot take its place.")
        self.num_classes = num_classes
        head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.head = head.to(self.norm.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1 + N, C), normed, the class token first."""
        out: Tensor = self.norm(self.stages(x))
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, 1 + N, C) -> (B, classes), or (B, C) before the last layer."""
        x = x[:, 0]
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return self.forward_head(self.forward_features(x))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


_TRANSFORMERS = (
    (re.compile(r"^classifier\."), "head."),
    (re.compile(r"^layernorm\."), "norm."),
    (re.compile(r"^cvt\.encoder\.stages\."), "stages."),
    (re.compile(r"embedding\.convolution_embeddings\.projection\."), "patch_embed.proj."),
    (re.compile(r"embedding\.convolution_embeddings\.normalization\."), "patch_embed.norm."),
    (re.compile(r"\.layers\.(\d+)\."), r".blocks.\1."),
    (re.compile(r"layernorm_before\."), "norm1."),
    (re.compile(r"layernorm_after\."), "norm2."),
    (
        re.compile(r"attention\.attention\.convolution_projection_([qkv])\w+\.convolution_projection\."),
        r"attn.conv_proj_\1.",
    ),
    (re.compile(r"(conv_proj_[qkv])\.convolution\."), r"\1.conv."),
    (re.compile(r"(conv_proj_[qkv])\.normalization\."), r"\1.bn."),
    (re.compile(r"attention\.attention\.projection_([qkv])\w+\."), r"attn.proj_\1."),
    (re.compile(r"attention\.output\.dense\."), "attn.proj."),
    (re.compile(r"intermediate\.dense\."), "mlp.fc1."),
    (re.compile(r"(blocks\.\d+\.)output\.dense\."), r"\1mlp.fc2."),
)
_OFFICIAL = ((re.compile(r"^stage(\d)\."), r"stages.\1."),)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: ConvolutionalVisionTransformer) -> dict[str, Tensor]:
    """Gives a state dict in our names, from official ones or those of transformers."""
    rules = _TRANSFORMERS if any(name.startswith("cvt.") for name in state_dict) else _OFFICIAL
    state: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        for pattern, ours in rules:
            name = pattern.sub(ours, name)
        state[name] = tensor
    return state


def _cfg(hub: str, pixels: int) -> dict[str, Any]:
    return {
        # The authors' own files lie where only a browser gets them; the hub has the same weights in the names of transformers.
        "hf_hub_id": f"microsoft/{hub}",
        "num_classes": 1000,
        "input_size": (3, pixels, pixels),
        "crop_pct": 0.875 if pixels == 224 else 1.0,
        "crop_mode": "center" if pixels == 224 else "squash",
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.patch_embed.proj",
        "classifier": "head",
        "license": "mit",
    }


default_cfgs = generate_default_cfgs(
    {
        "cvt_13.in1k": _cfg("cvt-13", 224),
        "cvt_13.in1k_384": _cfg("cvt-13-384", 384),
        "cvt_13.in22k_ft_in1k_384": _cfg("cvt-13-384-22k", 384),
        "cvt_21.in1k": _cfg("cvt-21", 224),
        "cvt_21.in1k_384": _cfg("cvt-21-384", 384),
        "cvt_21.in22k_ft_in1k_384": _cfg("cvt-21-384-22k", 384),
        "cvt_w24.in22k_ft_in1k_384": _cfg("cvt-w24-384-22k", 384),
    }
)


def _create(variant: str, pretrained: bool, **options: Any) -> ConvolutionalVisionTransformer:
    return build_model_with_cfg(
        ConvolutionalVisionTransformer, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **options
    )


@register_model
def cvt_13(pretrained: bool = False, **options: Any) -> ConvolutionalVisionTransformer:
    """CvT-13. Source: table 2."""
    sizes = {"dims": (64, 192, 384), "depths": (1, 2, 10), "num_heads": (1, 3, 6)}
    return _create("cvt_13", pretrained, **sizes | options)


@register_model
def cvt_21(pretrained: bool = False, **options: Any) -> ConvolutionalVisionTransformer:
    """CvT-21. Source: table 2."""
    sizes = {"dims": (64, 192, 384), "depths": (1, 4, 16), "num_heads": (1, 3, 6)}
    return _create("cvt_21", pretrained, **sizes | options)


@register_model
def cvt_w24(pretrained: bool = False, **options: Any) -> ConvolutionalVisionTransformer:
    """CvT-W24, wide. Source: table 2."""
    sizes = {"dims": (192, 768, 1024), "depths": (2, 2, 20), "num_heads": (3, 12, 16)}
    return _create("cvt_w24", pretrained, **sizes | options)
