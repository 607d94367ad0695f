"""Compact Transformers: "Escaping the Big Data Paradigm with Compact Transformers", Hassani et al., arXiv 2104.05704.

Agrees with the official code, SHI-Labs/Compact-Transformers at cd11f09: tensor names, parameters and logits.

Differences: none in what is computed in evaluation mode.

Shapes: B batch, H W rows and columns, N tokens, C channels, h heads, d channels of one head.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from timm.layers import DropPath, resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CCT"]

# Training regularisation of the official constructor.
_ATTENTION_DROPOUT = 0.1
_STOCHASTIC_DEPTH = 0.1


class ConvTokenizer(nn.Module):
    """Turns an image into tokens by convolutions, each with ReLU and max pooling by 2 (section 3.3, equation 4).

    Neither patches nor class token: neighbouring tokens overlap.
    """

    def __init__(self, in_chans: int, dim: int, layers: int, kernel_size: int, hidden_dim: int = 64) -> None:
        super().__init__()
        widths = [in_chans, *[hidden_dim] * (layers - 1), dim]
        stride = max(1, kernel_size // 2 - 1)
        self.conv_layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(width_in, width_out, kernel_size, stride, kernel_size // 2, bias=False),
                    nn.ReLU(),
                    nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
                )
                for width_in, width_out in pairwise(widths)
            )
        )

    def grid_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Gives the rows and columns of tokens that an image of a size becomes."""
        for layer in self.conv_layers:
            for window in (layer[0], layer[2]):  # type: ignore[index]  # a sequence of convolution, ReLU and pooling
                kernel, stride, padding = (
                    _first(value) for value in (window.kernel_size, window.stride, window.padding)
                )
                size = tuple((extent + 2 * padding - kernel) // stride + 1 for extent in size)  # type: ignore[assignment]
        return size

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, C)."""
        return self.conv_layers(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]  # modules give Any


def _first(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


class Attention(nn.Module):
    """Multi-head self-attention without bias in its first projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(_ATTENTION_DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        B, N, C = x.shape
        # (B, N, 3, h, d) -> three of (B, h, N, d)
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        dropout = _ATTENTION_DROPOUT if self.training else 0.0
        x = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(B, N, C)))  # type: ignore[no-any-return]  # as above


class Block(nn.Module):
    """An encoder block whose second norm stands on the residual stream itself, as in the official code."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.pre_norm = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, num_heads)
        self.linear1 = nn.Linear(dim, hidden)
        self.norm1 = nn.LayerNorm(dim)
        self.linear2 = nn.Linear(hidden, dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.drop_path(self.self_attn(self.pre_norm(x)))
        x = self.norm1(x)
        return x + self.drop_path(self.linear2(functional.gelu(self.linear1(x))))  # type: ignore[no-any-return]


class SequencePool(nn.Linear):
    """Averages tokens with weights that it learns, instead of reading a class token (section 3.2, equations 2 and 3)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, C)."""
        weights = super().forward(x).softmax(dim=1)
        return (weights.transpose(1, 2) @ x).squeeze(1)


class Transformer(nn.Module):
    """Position table, blocks, norm, sequence pooling, classifier: everything after the tokenizer."""

    def __init__(self, tokens: int, dim: int, depth: int, num_heads: int, mlp_ratio: float, num_classes: int) -> None:
        super().__init__()
        self.positional_emb = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, dim), std=0.2))
        self.attention_pool = SequencePool(dim)
        rates = [_STOCHASTIC_DEPTH * number / max(1, depth - 1) for number in range(depth)]
        self.blocks = nn.Sequential(*(Block(dim, num_heads, mlp_ratio, rate) for rate in rates))
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C): features, before pooling."""
        return self.norm(self.blocks(x + self.positional_emb))  # type: ignore[no-any-return]  # modules give Any


class CCT(nn.Module):
    """Compact Convolutional Transformer."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        in_chans: int = 3,
        num_classes: int = 10,
        embed_dim: int = 128,
        depth: int = 2,
        num_heads: int = 2,
        mlp_ratio: float = 1.0,
        tokenizer_layers: int = 2,
        tokenizer_kernel: int = 3,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.tokenizer = ConvTokenizer(in_chans, embed_dim, tokenizer_layers, tokenizer_kernel)
        self.grid_size = self.tokenizer.grid_size((img_size, img_size) if isinstance(img_size, int) else img_size)
        tokens = self.grid_size[0] * self.grid_size[1]
        self.classifier = Transformer(tokens, embed_dim, depth, num_heads, mlp_ratio, num_classes)
        self.apply(_init_weights)

    def get_classifier(self) -> nn.Module:
        """Gives the last layer."""
        return self.classifier.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the last layer; the pooling is the model's own and stays."""
        if global_pool:
            raise ValueError(f"Compact Transformers pool by attention; {global_pool!r} cannot take its place.")
        self.num_classes = num_classes
        self.classifier.fc = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, C)."""
        return self.classifier(self.tokenizer(x))  # type: ignore[no-any-return]  # modules give Any

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, N, C) -> (B, classes), or (B, C) before the last layer."""
        x = self.classifier.attention_pool(x)
        return x if pre_logits else self.classifier.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return self.forward_head(self.forward_features(x))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: CCT) -> dict[str, Tensor]:
    """Resamples the position table to the model's grid; the official names are ours."""
    name = "classifier.positional_emb"
    table = state_dict.get(name)
    if table is not None and table.shape != model.classifier.positional_emb.shape:
        table = resample_abs_pos_embed(
            table, list(model.grid_size), num_prefix_tokens=0, interpolation="bilinear", antialias=False
        )
        return {**state_dict, name: table}
    return state_dict


default_cfgs = generate_default_cfgs(
    {
        "cct_2_3x2_32.untrained": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": "tokenizer.conv_layers.0.0",
            "classifier": "classifier.fc",
            "license": "apache-2.0",
        }
    }
)


def _create(variant: str, pretrained: bool, **options: Any) -> CCT:
    return build_model_with_cfg(CCT, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **options)


@register_model
def cct_2_3x2_32(pretrained: bool = False, **options: Any) -> CCT:
    """CCT-2/3x2 for 32 x 32 images: 2 blocks, tokens from two 3 x 3 convolutions."""
    return _create("cct_2_3x2_32", pretrained, **options)
