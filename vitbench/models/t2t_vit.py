"""T2T-ViT: "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet", Yuan et al., arXiv 2101.11986.

Agrees with the official code, yitu-opensource/T2T-ViT at 0f63dc9: names of tensors, parameters, logits, dropouts.

Differences: attention is one fused call; images need not be square, nor their sides multiples of 16. The official
constructors change the scale of attention for pretrained weights; its README and its evaluation do not, nor does this.

Shapes: B batch, H W rows and columns, N tokens, C channels, h heads, d channels of one head, m random features.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Attention, Mlp, resample_abs_pos_embed, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from vitbench import checkpoints
from vitbench.parts.blocks import Blocks, Recomputing

# Kernel, stride and padding of the three soft splits. Source: section 3.3; a stride is a patch less its overlap.
_SOFT_SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
_TOKEN_DIM = 64  # width of the tokens between the soft splits
_PERFORMER_DROPOUT = 0.1  # of its two branches in training, as official; all others are 0


def sinusoidal(tokens: int, dim: int) -> Tensor:
    """Gives the fixed position table of sines and cosines, (1, tokens, C). Source: arXiv 1706.03762, section 3.5."""
    channel = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * 10000.0 ** -(2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())[None].float()


class TokenTransformer(nn.Module):
    """Restructures long tokens into short ones by a Transformer layer of one head: the T2T-ViT_t models.

    Queries, keys and values are shorter than the tokens, so the values take the place of the skip connection, and the
    products are divided by the root of the long width. Source: equation 1; official models/token_transformer.py.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(in_dim, 3 * dim, bias=False), "proj": nn.Linear(dim, dim)})
        self.scale = in_dim**-0.5
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, long C) -> (B, N, C)."""
        q, k, v = self.attn["qkv"](self.norm1(x)).unsqueeze(1).chunk(3, dim=-1)  # each (B, 1, N, C)
        attended = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        x = (v + self.attn["proj"](attended)).squeeze(1)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class TokenPerformer(nn.Module):
    """Restructures long tokens into short ones by a Performer layer, linear in the number of tokens.

    Positive random features, exp(w x - |x|^2 / 2) / sqrt(m), stand for the softmax: keys and values meet before the queries.
    Source: "Rethinking Attention with Performers", arXiv 2009.14794, lemma 1; official models/token_performer.py.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        features = dim // 2
        self.norm1 = nn.LayerNorm(in_dim)
        self.kqv = nn.Linear(in_dim, 3 * dim)
        self.w = nn.Parameter(
            nn.init.orthogonal_(torch.empty(features, dim)) * math.sqrt(features), requires_grad=False
        )
        self.proj = nn.Linear(dim, dim)
        self.dp = nn.Dropout(_PERFORMER_DROPOUT)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.Dropout(_PERFORMER_DROPOUT))

    def random_features(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, m)."""
        half_square = x.square().sum(-1, keepdim=True) / 2
        return torch.exp(x @ self.w.to(x.dtype).mT - half_square) / math.sqrt(len(self.w))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, long C) -> (B, N, C)."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        k, q = self.random_features(k.float()), self.random_features(q.float())
        summed = k.mT @ v.to(k.dtype)  # (B, m, C)
        weights = q @ k.sum(dim=1)[..., None]  # (B, N, 1)
        attended = (q @ summed) / (weights + 1e-8)
        x = v + self.dp(self.proj(attended.to(v.dtype)))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class TokensToToken(Recomputing):
    """Splits the image softly, restructures, splits again: three times, twice with attention between.

    Source: section 3.1, equation 4 and figure 3; official models/t2t_vit.py, T2T_module.

    Args:
        in_chans: channels of the image.
        dim: width of a token of the backbone, C.
        restructure: makes the layer between two soft splits, from the widths of the tokens before and after.
    """

    def __init__(self, in_chans: int, dim: int, restructure: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.attention1 = restructure(in_chans * 7 * 7, _TOKEN_DIM)
        self.attention2 = restructure(_TOKEN_DIM * 3 * 3, _TOKEN_DIM)
        self.project = nn.Linear(_TOKEN_DIM * 3 * 3, dim)

    @staticmethod
    def grids(height: int, width: int) -> list[tuple[int, int]]:
        """Gives the rows and columns of tokens after each soft split of an image of so many pixels."""
        grids = []
        for kernel, stride, padding in _SOFT_SPLITS:
            height, width = ((extent + 2 * padding - kernel) // stride + 1 for extent in (height, width))
            grids.append((height, width))
        return grids

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, C)."""
        first, second, _ = self.grids(x.shape[2], x.shape[3])
        x = self.run(self.attention1, _soft_split(x, *_SOFT_SPLITS[0]))
        x = self.run(self.attention2, _soft_split(x.mT.unflatten(2, first), *_SOFT_SPLITS[1]))
        out: Tensor = self.project(_soft_split(x.mT.unflatten(2, second), *_SOFT_SPLITS[2]))
        return out


def _soft_split(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C kernel^2): overlapping patches, each flattened into a token. Source: equation 3."""
    return functional.unfold(x, kernel, stride=stride, padding=padding).mT


class SqueezeExcitedAttention(Attention):
    """Attention whose channels are weighted after it. Source: section 4.2, "SE block"; official models/t2t_vit_se.py."""

    def __init__(self, dim: int, num_heads: int, **options: Any) -> None:
        super().__init__(dim, num_heads, **options)
        squeezed = dim // 16
        layers = (nn.Linear(dim, squeezed, bias=False), nn.ReLU(), nn.Linear(squeezed, dim, bias=False), nn.Sigmoid())
        self.se_layer = nn.ModuleDict({"fc": nn.Sequential(*layers)})

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = super().forward(x, attn_mask, is_causal)
        weights: Tensor = self.se_layer["fc"](x.mean(dim=1, keepdim=True))
        return x * weights


class ChannelScale(nn.Module):
    """Multiplies each channel by a number: GhostNet's cheap operation, with the weight of a depth-wise 1-D convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1, 1).uniform_(-1, 1))  # as torch draws that convolution's

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return x * self.weight.flatten()


class GhostProjection(nn.Module):
    """Queries, keys and values half of whose channels are multiples of the other half.

    Source: section 4.2, "Ghost"; official models/t2t_vit_ghost.py, after "GhostNet", arXiv 1911.11907.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.primary = nn.ModuleDict({name: nn.Linear(dim, dim // 2, bias=False) for name in "qkv"})
        self.cheap = nn.ModuleDict({name: ChannelScale(dim // 2) for name in "qkv"})

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, 3 C)."""
        halves = ((primary(x), self.cheap[name]) for name, primary in self.primary.items())
        return torch.cat([part for half, cheap in halves for part in (half, cheap(half))], dim=-1)


class GhostAttention(Attention):
    """Attention with a `GhostProjection`."""

    def __init__(self, dim: int, num_heads: int, **options: Any) -> None:
        super().__init__(dim, num_heads, **options)
        self.add_module("qkv", GhostProjection(dim))


class GhostMlp(nn.Module):
    """An MLP two thirds of whose hidden layer are multiples of the other third. Source: as `GhostProjection`."""

    def __init__(self, in_features: int, hidden_features: int, **_: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, in_features)
        self.fc2 = nn.Linear(hidden_features, in_features)
        self.cheap_operation2 = ChannelScale(in_features)
        self.cheap_operation3 = ChannelScale(in_features)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        primary = functional.gelu(self.fc1(x))
        ghosts = (functional.gelu(cheap(primary)) for cheap in (self.cheap_operation2, self.cheap_operation3))
        out: Tensor = self.fc2(torch.cat((primary, *ghosts), dim=-1))
        return out


class DenseBlock(Block):
    """A block that adds channels to its input instead of changing them. Source: section 4.2."""

    def __init__(self, dim: int, growth: int, **options: Any) -> None:
        super().__init__(dim, **options)
        self.dense_linear = nn.Linear(dim, growth)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C + growth)."""
        return torch.cat((x, self.dense_linear(super().forward(x, attn_mask, is_causal))), dim=-1)


class Transition(nn.Module):
    """Halves the channels between two groups of dense blocks. Source: official models/t2t_vit_dense.py."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C / 2)."""
        return functional.gelu(self.linear(x))


# timm's block is the official one, once its norms have torch's eps.
_Block = partial(Block, norm_layer=nn.LayerNorm)


def plain_encoder(dim: int, drop_path_rate: float, depth: int, **options: Any) -> tuple[nn.Sequential, int]:
    """Gives blocks of one width, and that width; `options` are the block's."""
    rates = (drop_path_rate * number / max(1, depth - 1) for number in range(depth))
    return Blocks(*(_Block(dim, drop_path=rate, **options) for rate in rates)), dim


def dense_encoder(
    dim: int, drop_path_rate: float, groups: tuple[int, ...], growth: int, **options: Any
) -> tuple[nn.Sequential, int]:
    """Gives groups of dense blocks with transitions between, and the width after the last. Source: table 6."""
    layers: list[nn.Module] = []
    for group, depth in enumerate(groups):
        if layers:
            layers.append(Transition(dim))
            dim //= 2
        # The official rates grow over 12 layers whatever the depth, and a group takes the one of its number.
        options |= {"drop_path": drop_path_rate * group / 11, "norm_layer": nn.LayerNorm}
        layers += [DenseBlock(dim + growth * number, growth, **options) for number in range(depth)]
        dim += growth * depth
    return Blocks(*layers), dim


class T2TViT(Recomputing):
    """Tokens-to-token module, class token, fixed position table, an encoder, and a classifier that reads the class token.

    Source: section 3.2, equation 5 and figure 4; official models/t2t_vit.py.

    Args:
        img_size: H and W, square if one number.
        in_chans: channels of the image.
        num_classes: classes; 0 leaves the last layer out.
        restructure: layer between two soft splits, `TokenPerformer` or `TokenTransformer`.
        embed_dim: width of a token after the tokens-to-token module, C.
        encoder: makes the blocks, from C and drop_path_rate; gives them and the width that they end with.
        drop_path_rate: share of branches left out in training in the last block; it grows from 0 in the first.

    Raises:
        ValueError: the image is so small that it gives no token.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        restructure: Callable[[int, int], nn.Module] = TokenPerformer,
        embed_dim: int,
        encoder: Callable[[int, float], tuple[nn.Sequential, int]],
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.tokens_to_token = TokensToToken(in_chans, embed_dim, restructure)
        self.grid_size = self.tokens_to_token.grids(height, width)[-1]
        if min(self.grid_size) < 1:
            raise ValueError(f"An image of {height} x {width} pixels gives no tokens; take a larger img_size.")
        self.num_prefix_tokens = 1
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sinusoidal(1 + math.prod(self.grid_size), embed_dim), requires_grad=False)
        self.blocks, dim = encoder(embed_dim, drop_path_rate)
        self.norm = nn.LayerNorm(dim)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = dim
        self.head = nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()
        trunc_normal_(self.cls_token, std=0.02)
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
            raise ValueError(f"T2T-ViT reads its class token; {global_pool!r} cannot take its place.")
        self.num_classes = num_classes
        head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.head = head.to(self.norm.weight)

    def load_pretrained(self, path: str) -> None:
        """Loads an official file, which holds more than timm's own loading accepts; a classifier of another size stays out."""
        state = checkpoint_filter_fn(checkpoints.read(Path(path)), self)
        if "head.weight" in state and len(state["head.weight"]) != self.num_classes:
            own = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("head.")}
            state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")} | own
        self.load_state_dict(state)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1 + N, C), normed, the class token first."""
        if self.tokens_to_token.grids(x.shape[2], x.shape[3])[-1] != self.grid_size:
            raise ValueError(
                f"The model has positions of {self.grid_size} tokens; build it with the img_size of the images."
            )
        tokens = self.tokens_to_token(x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), tokens), dim=1) + self.pos_embed
        out: Tensor = self.norm(self.blocks(x))
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
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_GHOST = re.compile(r"attn\.(cheap_operation_)?([qkv])\.")
_PARTS = {None: "primary", "cheap_operation_": "cheap"}


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: T2TViT) -> dict[str, Tensor]:
    """Gives a state dict in our names, which are the official ones but for Ghost's, with a position table of the model's grid.

    A table of as many tokens is taken to be of the same grid, any other to be of a square one.
    Source: official utils.py, resize_pos_embed, which resamples between square grids the same way.
    """
    state = {
        _GHOST.sub(lambda found: f"attn.qkv.{_PARTS[found[1]]}.{found[2]}.", name): tensor
        for name, tensor in state_dict.items()
    }
    table = state.get("pos_embed")
    if table is not None and table.shape != model.pos_embed.shape:
        grid = list(model.grid_size)
        state["pos_embed"] = resample_abs_pos_embed(table, grid, interpolation="bicubic", antialias=False)
    return state


def _cfg(file: str = "", pixels: int = 224) -> dict[str, Any]:
    return {
        "url": file and f"https://github.com/yitu-opensource/T2T-ViT/releases/download/main/{file}.pth.tar",
        "custom_load": True,
        "num_classes": 1000,
        "input_size": (3, pixels, pixels),
        "fixed_input_size": True,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs(
    {
        "t2t_vit_7.in1k": _cfg("71.7_T2T_ViT_7"),
        "t2t_vit_10.in1k": _cfg("75.2_T2T_ViT_10"),
        "t2t_vit_12.in1k": _cfg("76.5_T2T_ViT_12"),
        "t2t_vit_14.in1k": _cfg("81.5_T2T_ViT_14"),
        "t2t_vit_14.in1k_384": _cfg("83.3_T2T_ViT_14", 384),
        "t2t_vit_19.in1k": _cfg("81.9_T2T_ViT_19"),
        "t2t_vit_24.in1k": _cfg("82.3_T2T_ViT_24"),
        "t2t_vit_t_14.in1k": _cfg("81.7_T2T_ViTt_14"),
        "t2t_vit_t_19.in1k": _cfg("82.4_T2T_ViTt_19"),
        "t2t_vit_t_24.in1k": _cfg("82.6_T2T_ViTt_24"),
        **{f"t2t_vit_{name}.untrained": _cfg() for name in ("resnext", "wide", "se", "ghost", "dense")},
    }
)


def _backbone(embed_dim: int, depth: int, num_heads: int, mlp_ratio: int = 3, **parts: Any) -> dict[str, Any]:
    encoder = partial(plain_encoder, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, **parts)
    return {"embed_dim": embed_dim, "encoder": encoder}


# Source: tables 1 and 6, and the official constructors where they differ: T2T-ViT-7 has 7 blocks, Wide 4, Ghost 16.
_LARGE = {"14": _backbone(384, 14, 6), "19": _backbone(448, 19, 7), "24": _backbone(512, 24, 8)}
_ENTRY_POINTS: dict[str, dict[str, Any]] = {
    **{f"t2t_vit_{depth}": _backbone(256, depth, 4, mlp_ratio=2) for depth in (7, 10, 12)},
    **{f"t2t_vit_{depth}": sizes for depth, sizes in _LARGE.items()},
    **{f"t2t_vit_t_{depth}": {"restructure": TokenTransformer, **sizes} for depth, sizes in _LARGE.items()},
    "t2t_vit_resnext": _backbone(384, 14, 32),
    "t2t_vit_wide": _backbone(768, 4, 12),
    "t2t_vit_se": _backbone(384, 14, 6, attn_layer=SqueezeExcitedAttention),
    "t2t_vit_ghost": _backbone(384, 16, 6, attn_layer=GhostAttention, mlp_layer=GhostMlp),
    "t2t_vit_dense": {
        "embed_dim": 128,
        "encoder": partial(dense_encoder, groups=(3, 6, 6, 4), growth=64, num_heads=8, mlp_ratio=2),
    },
}


def _register(name: str, arguments: dict[str, Any]) -> None:
    def entry_point(pretrained: bool = False, **options: Any) -> T2TViT:
        return build_model_with_cfg(
            T2TViT, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **arguments | options
        )

    entry_point.__name__ = name
    register_model(entry_point)


for _name, _arguments in _ENTRY_POINTS.items():
    _register(_name, _arguments)
