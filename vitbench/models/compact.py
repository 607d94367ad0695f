"""Compact Transformers: "Escaping the Big Data Paradigm with Compact Transformers", Hassani et al., arXiv 2104.05704.

Agrees with the official code, SHI-Labs/Compact-Transformers at cd11f09: names of tensors, parameters, logits, rates of
dropping.

Differences: none in what is computed. Attention is one fused call, and the position table is added to a new tensor.

Shapes: B batch, H W rows and columns, N tokens, C channels, h heads, d channels of one head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from timm.layers import DropPath, resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

# Training regularisation that the official constructors set; their other dropouts are 0.
_ATTENTION_DROPOUT = 0.1
_STOCHASTIC_DEPTH = 0.1


class ConvTokenizer(nn.Module):
    """Turns an image into tokens by layers of convolution, ReLU and max pooling; neighbouring tokens overlap.

    Source: the paper's convolutional block, x_0 = MaxPool(ReLU(Conv2d(x))); official src/utils/tokenizer.py.

    Args:
        in_chans: channels of the image.
        dim: width of a token, C.
        layers: number of layers; all but the last have 64 channels.
        kernel_size: of each convolution.
    """

    def __init__(self, in_chans: int, dim: int, layers: int, kernel_size: int) -> None:
        super().__init__()
        convolution = (kernel_size, max(1, kernel_size // 2 - 1), kernel_size // 2)
        pooling = (3, 2, 1)
        self.windows = (convolution, pooling) * layers  # kernel, stride and padding, in the order of the pass
        widths = [in_chans, *[64] * (layers - 1), dim]
        self.conv_layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(*ends, *convolution, bias=False), nn.ReLU(), nn.MaxPool2d(*pooling))
                for ends in pairwise(widths)
            )
        )

    def tokens_along(self, extent: int) -> int:
        """Gives the number of tokens along a side of so many pixels."""
        for kernel, stride, padding in self.windows:
            extent = (extent + 2 * padding - kernel) // stride + 1
        return extent

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, C)."""
        features: Tensor = self.conv_layers(x)
        return features.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention without bias in its first projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        B, N, C = x.shape
        # (B, N, 3, h, d) -> three of (B, h, N, d)
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        dropout = _ATTENTION_DROPOUT if self.training else 0.0
        x = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        out: Tensor = self.proj(x.transpose(1, 2).reshape(B, N, C))
        return out


class Block(nn.Module):
    """An encoder block whose second norm stands on the residual stream itself, not on the branch of the MLP.

    Source: official src/utils/transformers.py, TransformerEncoderLayer.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.pre_norm = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, num_heads)
        self.linear1 = nn.Linear(dim, hidden)
        self.norm1 = nn.LayerNorm(dim)
        self.linear2 = nn.Linear(hidden, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.drop_path(self.self_attn(self.pre_norm(x)))
        x = self.norm1(x)
        out: Tensor = x + self.drop_path(self.linear2(functional.gelu(self.linear1(x))))
        return out


class SequencePool(nn.Linear):
    """Averages the tokens with weights that it reads from them, in place of a class token.

    Source: the paper's SeqPool, z = softmax(g(x_L)^T) x_L, where g is a linear layer of one output.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, C)."""
        weights = super().forward(x).softmax(dim=1)
        return (weights.transpose(1, 2) @ x).squeeze(1)


class Transformer(nn.Module):
    """What follows the tokenizer: position table, blocks, norm, sequence pooling and the last layer.

    Source: official src/utils/transformers.py, TransformerClassifier.
    """

    def __init__(self, tokens: int, dim: int, depth: int, num_heads: int, mlp_ratio: float, num_classes: int) -> None:
        super().__init__()
        self.positional_emb = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, dim), std=0.2))
        self.attention_pool = SequencePool(dim)
        rates = [_STOCHASTIC_DEPTH * number / max(1, depth - 1) for number in range(depth)]
        self.blocks = nn.Sequential(*(Block(dim, num_heads, mlp_ratio, rate) for rate in rates))
        self.norm = nn.LayerNorm(dim)
        self.fc = _last_layer(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C), before pooling."""
        out: Tensor = self.norm(self.blocks(x + self.positional_emb))
        return out


class CompactTransformer(nn.Module):
    """A tokenizer and a Transformer, with timm's contract.

    Args:
        img_size: H and W, square if one number.
        in_chans: channels of the image.
        num_classes: classes; 0 leaves the last layer out.
        tokenizer: makes the tokenizer, from the channels of the image and the width of a token.
        embed_dim: width of a token, C.
        depth: number of blocks.
        num_heads: heads of attention, h.
        mlp_ratio: width of the MLP's hidden layer over C.

    Raises:
        ValueError: the image is so small that it gives no token.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        in_chans: int,
        num_classes: int,
        *,
        tokenizer: Callable[[int, int], ConvTokenizer],
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.tokenizer = tokenizer(in_chans, embed_dim)
        self.grid_size = rows, columns = self.tokenizer.tokens_along(height), self.tokenizer.tokens_along(width)
        if min(self.grid_size) < 1:
            raise ValueError(f"An image of {height} x {width} pixels gives no tokens; take a larger img_size.")
        self.classifier = Transformer(rows * columns, embed_dim, depth, num_heads, mlp_ratio, num_classes)
        self.apply(_init_weights)

    def get_classifier(self) -> nn.Module:
        """Gives the last layer."""
        return self.classifier.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the last layer; 0 classes leave it out.

        Raises:
            ValueError: another pooling was asked for.
        """
        if global_pool:
            raise ValueError(f"Compact Transformers pool by attention; {global_pool!r} cannot take its place.")
        self.num_classes = num_classes
        self.classifier.fc = _last_layer(self.num_features, num_classes).to(self.classifier.positional_emb)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, C)."""
        out: Tensor = self.classifier(self.tokenizer(x))
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, N, C) -> (B, classes), or (B, C) before the last layer."""
        x = self.classifier.attention_pool(x)
        return x if pre_logits else self.classifier.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return self.forward_head(self.forward_features(x))


def _last_layer(dim: int, num_classes: int) -> nn.Module:
    return nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: CompactTransformer) -> dict[str, Tensor]:
    """Gives a state dict whose position table fits the model's grid; the official names are ours.

    A table of as many tokens is taken to be of the same grid, any other to be of a square one.

    Source: official src/utils/helpers.py, resize_pos_embed, which resamples between square grids the same way.
    """
    name = "classifier.positional_emb"
    table = state_dict.get(name)
    if table is None or table.shape == model.classifier.positional_emb.shape:
        return state_dict
    grid = list(model.grid_size)
    table = resample_abs_pos_embed(table, grid, num_prefix_tokens=0, interpolation="bilinear", antialias=False)
    return {**state_dict, name: table}


default_cfgs = generate_default_cfgs(
    {
        "cct_2_3x2_32.untrained": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            # Source: official configs/datasets/cifar10.yml.
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": "tokenizer.conv_layers.0.0",
            "classifier": "classifier.fc",
            "license": "apache-2.0",
        }
    }
)


def _create(variant: str, pretrained: bool, **options: Any) -> CompactTransformer:
    return build_model_with_cfg(
        CompactTransformer, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **options
    )


@register_model
def cct_2_3x2_32(pretrained: bool = False, **options: Any) -> CompactTransformer:
    """CCT-2/3x2 for 32 x 32 images: 2 blocks, tokens from two 3 x 3 convolutions."""
    tokenizer = partial(ConvTokenizer, layers=2, kernel_size=3)
    sizes = {"embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 1.0}
    return _create("cct_2_3x2_32", pretrained, tokenizer=tokenizer, **sizes | options)
