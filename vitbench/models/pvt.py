"""PVT: "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions".

Wang et al., arXiv 2102.12122.

Agrees with the official code, whai362/PVT at 57e2dfa, classification/pvt.py: parameters, logits.

Differences: the parts of a stage are together in one module (`checkpoint_filter_fn` renames the official tensors, and those
of transformers), attention is one fused call, and position tables are resampled when weights are loaded, not in each pass.
A size that patches do not tile is refused, where the official code leaves the last rows and columns out.

Shapes: B batch, H W rows and columns, N tokens, C channels, h heads, d channels of one head.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, PatchEmbed, resample_abs_pos_embed, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

from vitbench.parts.blocks import Recomputing

# The official code sets this for the norms of blocks and for the last one, and leaves torch's 1e-5 to the others.
_BlockNorm = partial(nn.LayerNorm, eps=1e-6)

_PATCHES = (4, 2, 2, 2)
_REDUCTIONS = (8, 4, 2, 1)
# What one token of the last stage sees of the image: 4 x 2 x 2 x 2 pixels a side. Reductions tile the same sizes.
_TOTAL_STRIDE = 32


class SpatialReduction(nn.Module):
    """Merges squares of R x R tokens into one. Source: section 3.3, equation 3: SR(x) = Norm(Reshape(x, R) W^S)."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.sr = nn.Conv2d(dim, dim, ratio, ratio)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N / R^2, C)."""
        B, _, C = x.shape
        x = self.sr(x.transpose(1, 2).reshape(B, C, *grid))
        out: Tensor = self.norm(x.flatten(2).transpose(1, 2))
        return out


class SpatialReductionAttention(nn.Module):
    """Multi-head attention whose keys and values come from a spatially reduced map. Source: section 3.3, equations 1 to 4.

    Args:
        dim: width of a token, C.
        num_heads: heads, h.
        ratio: side R of the squares that are merged; 1 leaves keys and values as many as queries.
    """

    def __init__(self, dim: int, num_heads: int, ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reduction = SpatialReduction(dim, ratio) if ratio > 1 else None

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        B, N, C = x.shape
        # (B, N, h, d) -> (B, h, N, d)
        q = self.q(x).reshape(B, N, self.num_heads, -1).transpose(1, 2)
        reduced = x if self.reduction is None else self.reduction(x, grid)
        # (B, M, 2, h, d) -> two of (B, h, M, d)
        k, v = self.kv(reduced).reshape(B, -1, 2, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        x = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(x.transpose(1, 2).reshape(B, N, C))
        return out


class Block(nn.Module):
    """An encoder block: spatial-reduction attention and MLP, each after a norm. Source: figure 3."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = _BlockNorm(dim)
        self.attn = SpatialReductionAttention(dim, num_heads, ratio)
        self.norm2 = _BlockNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class Stage(Recomputing):
    """Patches, a position table of its own, and blocks: a feature map becomes tokens of a coarser one.

    Source: sections 3.1 and 3.2, figure 3.

    Args:
        grid: rows and columns of its tokens.
        in_chans: channels of the map it is given.
        dim: width of a token, C.
        patch_size: side of a patch.
        blocks: the blocks, in order.
        num_prefix_tokens: rows that the position table has before those of the map.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        in_chans: int,
        dim: int,
        patch_size: int,
        blocks: list[Block],
        num_prefix_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.grid_size = grid
        size = (grid[0] * patch_size, grid[1] * patch_size)
        self.patch_embed = PatchEmbed(size, patch_size, in_chans, dim, norm_layer=nn.LayerNorm, output_fmt="NHWC")
        self.pos_embed = nn.Parameter(torch.empty(1, num_prefix_tokens + grid[0] * grid[1], dim))
        self.blocks = nn.ModuleList(blocks)
        trunc_normal_(self.pos_embed, std=0.02)

    def _before_blocks(self, x: Tensor) -> Tensor:
        return x + self.pos_embed

    def tokens(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, channels, H, W) -> (B, N, C), and the number of rows and columns of the tokens."""
        x = self.patch_embed(x)  # (B, H, W, C), normed
        grid = (x.shape[1], x.shape[2])
        x = self._before_blocks(x.flatten(1, 2))
        for block in self.blocks:
            x = self.run(block, x, grid)
        return x, grid

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, H / patch, W / patch)."""
        tokens, grid = self.tokens(x)
        out: Tensor = tokens.transpose(1, 2).unflatten(2, grid)
        return out


class LastStage(Stage):
    """A stage whose tokens a class token precedes; it reduces nothing, so its attention needs no map. Source: section 4.1."""

    def __init__(self, grid: tuple[int, int], in_chans: int, dim: int, patch_size: int, blocks: list[Block]) -> None:
        super().__init__(grid, in_chans, dim, patch_size, blocks, num_prefix_tokens=1)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        trunc_normal_(self.cls_token, std=0.02)

    def _before_blocks(self, x: Tensor) -> Tensor:
        return torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, 1 + N, C)."""
        tokens, _ = self.tokens(x)
        return tokens


class PyramidVisionTransformer(Recomputing):
    """Four stages, each of which halves the map again, and a classifier that reads the class token.

    Args:
        img_size: H and W, square if one number.
        in_chans: channels of the image.
        num_classes: classes; 0 leaves the last layer out.
        depths: blocks of each stage.
        dims: width of a token, C, in each stage.
        num_heads: heads, h, in each stage.
        mlp_ratios: width of the MLP's hidden layer over C, in each stage.
        drop_path_rate: share of branches left out in training in the last block; it grows from 0 in the first.

    Raises:
        ValueError: patches do not tile an image of this size.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        depths: tuple[int, ...],
        dims: tuple[int, ...] = (64, 128, 320, 512),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height % _TOTAL_STRIDE or width % _TOTAL_STRIDE or min(height, width) < 1:
            raise ValueError(
                f"PVT's patches tile images whose sides are multiples of {_TOTAL_STRIDE} pixels, not {height} x {width}."
            )
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = dims[-1]
        self.num_prefix_tokens = 1
        rates = iter(drop_path_rate * number / max(1, sum(depths) - 1) for number in range(sum(depths)))
        stages: list[Stage] = []
        sizes = zip(depths, dims, num_heads, mlp_ratios, _PATCHES, _REDUCTIONS, strict=True)
        for depth, dim, heads, mlp_ratio, patch, reduction in sizes:
            height, width = height // patch, width // patch
            blocks = [Block(dim, heads, mlp_ratio, reduction, next(rates)) for _ in range(depth)]
            kind = LastStage if len(stages) == len(depths) - 1 else Stage
            stages.append(kind((height, width), in_chans, dim, patch, blocks))
            in_chans = dim
        self.stages = nn.Sequential(*stages)
        self.norm = _BlockNorm(dims[-1])
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
            raise ValueError(f"PVT reads its class token; {global_pool!r} cannot take its place.")
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
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Official names, and those of transformers, in our words. Stages have numbers from 1 in the former, from 0 in ours.
_OFFICIAL = (
    (re.compile(r"^(patch_embed|pos_embed)(\d)"), lambda found: f"stages.{int(found[2]) - 1}.{found[1]}"),
    (re.compile(r"^block(\d)"), lambda found: f"stages.{int(found[1]) - 1}.blocks"),
    (re.compile(r"^cls_token"), "stages.3.cls_token"),
    (re.compile(r"attn\.(sr|norm)\."), r"attn.reduction.\1."),
)
_TRANSFORMERS = (
    (re.compile(r"^classifier\."), "head."),
    (re.compile(r"^pvt\.encoder\.layer_norm\."), "norm."),
    (re.compile(r"^pvt\.encoder\.patch_embeddings\.3\.cls_token"), "stages.3.cls_token"),
    (re.compile(r"^pvt\.encoder\.patch_embeddings\.(\d)\.position_embeddings"), r"stages.\1.pos_embed"),
    (re.compile(r"^pvt\.encoder\.patch_embeddings\.(\d)\.projection\."), r"stages.\1.patch_embed.proj."),
    (re.compile(r"^pvt\.encoder\.patch_embeddings\.(\d)\.layer_norm\."), r"stages.\1.patch_embed.norm."),
    (re.compile(r"^pvt\.encoder\.block\.(\d)\.(\d+)\."), r"stages.\1.blocks.\2."),
    (re.compile(r"layer_norm_(\d)\."), r"norm\1."),
    (re.compile(r"attention\.self\.query\."), "attn.q."),
    (re.compile(r"attention\.self\.sequence_reduction\."), "attn.reduction.sr."),
    (re.compile(r"attention\.self\.layer_norm\."), "attn.reduction.norm."),
    (re.compile(r"attention\.output\.dense\."), "attn.proj."),
    (re.compile(r"mlp\.dense(\d)\."), r"mlp.fc\1."),
)


def renamed(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives a state dict in our names, from official ones or those of transformers; ours stay as they are."""
    rules = _TRANSFORMERS if any(name.startswith("pvt.") for name in state_dict) else _OFFICIAL
    state: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        for pattern, ours in () if name.startswith("stages.") else rules:
            name = pattern.sub(ours, name)
        state[name] = tensor
    for name in [name for name in state if "attention.self.key." in name]:
        # One projection in the official code, two in transformers.
        both = (state.pop(name), state.pop(name.replace(".key.", ".value.")))
        state[name.replace("attention.self.key.", "attn.kv.")] = torch.cat(both)
    return state


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: PyramidVisionTransformer) -> dict[str, Tensor]:
    """Gives a state dict in our names, with position tables of the model's grids.

    A table of as many tokens is taken to be of the same grid, any other to be of a square one.

    Source: section 4.2; official classification/pvt.py, _get_pos_embed: bilinear.
    """
    state = renamed(state_dict)
    stages: Any = model.stages
    for number, stage in enumerate(stages):
        name = f"stages.{number}.pos_embed"
        if name in state and state[name].shape != stage.pos_embed.shape:
            prefix = stage.pos_embed.shape[1] - stage.grid_size[0] * stage.grid_size[1]
            state[name] = resample_abs_pos_embed(
                state[name], list(stage.grid_size), num_prefix_tokens=prefix, interpolation="bilinear", antialias=False
            )
    return state


def _cfg(name: str) -> dict[str, Any]:
    return {
        "url": f"https://github.com/whai362/PVT/releases/download/v2/{name}.pth",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {f"{name}.in1k": _cfg(name) for name in ("pvt_tiny", "pvt_small", "pvt_medium", "pvt_large")}
)


def _create(variant: str, pretrained: bool, **options: Any) -> PyramidVisionTransformer:
    return build_model_with_cfg(
        PyramidVisionTransformer, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **options
    )


@register_model
def pvt_tiny(pretrained: bool = False, **options: Any) -> PyramidVisionTransformer:
    """PVT-Tiny. Source: table 1."""
    return _create("pvt_tiny", pretrained, **{"depths": (2, 2, 2, 2)} | options)


@register_model
def pvt_small(pretrained: bool = False, **options: Any) -> PyramidVisionTransformer:
    """PVT-Small. Source: table 1."""
    return _create("pvt_small", pretrained, **{"depths": (3, 4, 6, 3)} | options)


@register_model
def pvt_medium(pretrained: bool = False, **options: Any) -> PyramidVisionTransformer:
    """PVT-Medium. Source: table 1."""
    return _create("pvt_medium", pretrained, **{"depths": (3, 4, 18, 3)} | options)


@register_model
def pvt_large(pretrained: bool = False, **options: Any) -> PyramidVisionTransformer:
    """PVT-Large. Source: table 1."""
    return _create("pvt_large", pretrained, **{"depths": (3, 8, 27, 3)} | options)
