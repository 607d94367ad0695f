"""TimeSformer: "Is Space-Time Attention All You Need for Video Understanding?", Bertasius et al., arXiv 2102.05095.

Agrees with the official code, facebookresearch/TimeSformer at a5ef29a, which has three of the five schemes: space-only, joint
and divided attention, with its names of tensors. Files of transformers load too.

The other two, sparse local-global and axial attention, stand in section 3 and figures 1 and 2 alone. They are taken to be
divided attention with other steps: each step has its own projections, norm and residual connection; each but the last leaves
the class token out and ends with a linear layer, as the official temporal attention does; in the last, every group has a copy
of the class token and the copies' results are averaged, as in the official spatial attention. That gives the parameters of
table 1. The steps are:

- Sparse local-global: first the F x H/2 x W/2 patches of the quarter of the grid that a patch lies in, over all frames; then
  the patches an even number of frames, rows and columns away: a stride of 2 each way, starting at the patch itself.
- Axial: time, then width (the patches of one row of one frame), then height (those of one column of one frame).

Differences: attention is one fused call; patches of one frame follow each other, where the official code has the frames of one
place follow each other. The paper has the class token among the keys of temporal attention, equation 11; the official code, and
this, has it in the last step alone.

Shapes: B batch, T H W frames, rows and columns of a clip, t h w frames, rows and columns of patches, n = h w, C channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from timm.layers import Attention, PatchEmbed, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from vitbench.parts.blocks import Blocks
from vitbench.parts.classifier import Classifier, resampled_square
from vitbench.units import size

Grid = tuple[int, int, int]

_PATCH = 16
_norm = partial(nn.LayerNorm, eps=1e-6)


class Grouping(NamedTuple):
    """Which patches attend to each other.

    Attributes:
        grid: the axes of a clip's patches, as an einops pattern.
        groups: the same as groups of patches.
        halves: axes of length 2, each half of the axis that it begins with the name of.
    """

    grid: str
    groups: str
    halves: tuple[str, ...] = ()

    def split(self, x: Tensor) -> Tensor:
        """(B, t, h, w, C) -> (groups of all clips, patches of a group, C)."""
        return rearrange(x, f"{self.grid} -> {self.groups}", **dict.fromkeys(self.halves, 2))

    def merge(self, x: Tensor, shape: torch.Size) -> Tensor:
        """(groups of all clips, patches of a group, C) -> (B, t, h, w, C), which is `shape`."""
        halved = {name[0] for name in self.halves}
        extents = {name: extent // (1 + (name in halved)) for name, extent in zip("bthw", shape, strict=False)}
        return rearrange(x, f"{self.groups} -> {self.grid}", **extents, **dict.fromkeys(self.halves, 2))


TIME = Grouping("b t h w c", "(b h w) t c")
SPACE = Grouping("b t h w c", "(b t) (h w) c")
WIDTH = Grouping("b t h w c", "(b t h) w c")
HEIGHT = Grouping("b t h w c", "(b t w) h c")
QUARTER = Grouping("b t (h2 h) (w2 w) c", "(b h2 w2) (t h w) c", ("h2", "w2"))
STRIDE_2 = Grouping("b (t t2) (h h2) (w w2) c", "(b t2 h2 w2) (t h w) c", ("t2", "h2", "w2"))


class StepwiseBlock(Block):
    """Attention in steps, each within other groups of patches, then an MLP.

    Source: section 3, "Space-Time Self-Attention Models", equation 11, figures 1 and 2; official models/vit.py, Block.

    Args:
        dim: C.
        num_heads: heads of each step.
        grid: t, h and w.
        steps: groups of every step but the last, by the name that its tensors begin with.
        last: groups of the last, which the class token takes part in.
        options: timm's block's.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        steps: dict[str, Grouping],
        last: Grouping,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_heads, **options)
        halved = {name[0] for grouping in (*steps.values(), last) for name in grouping.halves}
        if any(extent % 2 for name, extent in zip("thw", grid, strict=True) if name in halved):
            raise ValueError(f"These groups halve the grid of patches, so {size(grid)} cannot be: each must be even.")
        self.grid, self.steps, self.last = grid, steps, last
        for name in steps:
            self.add_module(f"{name}_norm1", _norm(dim))
            self.add_module(f"{name}_attn", Attention(dim, num_heads, qkv_bias=True))
            self.add_module(f"{name}_fc", nn.Linear(dim, dim))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, 1 + t h w, C) -> (B, 1 + t h w, C), the class token first."""
        cls_token, patches = x[:, :1], x[:, 1:].unflatten(1, self.grid)
        for name, step in self.steps.items():
            norm, attn, linear = (self.get_submodule(f"{name}_{part}") for part in ("norm1", "attn", "fc"))
            attended = linear(self.drop_path1(attn(norm(step.split(patches)))))
            patches = patches + step.merge(attended, patches.shape)
        groups = self.last.split(patches)
        count = math.prod(self.grid) // groups.shape[1]
        copies = cls_token.repeat_interleave(count, dim=0)
        attended = self.drop_path1(self.attn(self.norm1(torch.cat((copies, groups), dim=1))))
        patches = patches + self.last.merge(attended[:, 1:], patches.shape)
        cls_token = cls_token + attended[:, :1].unflatten(0, (x.shape[0], count)).mean(dim=1)
        x = torch.cat((cls_token, patches.flatten(1, 3)), dim=1)
        out: Tensor = x + self.drop_path2(self.mlp(self.norm2(x)))
        return out


class TimeSformer(Classifier):
    """Patches of each frame, class token, position tables, blocks, and a classifier that reads the class token.

    Source: section 3, equations 1 to 10; official models/vit.py, VisionTransformer.

    Args:
        img_size: H and W, square if one number.
        num_frames: T.
        in_chans: channels of the clip.
        num_classes: classes; 0 leaves the last layer out.
        block: makes a block from C, the number of heads, and the grid of patches, t, h and w.
        embed_dim: width of a token, C.
        depth: blocks.
        num_heads: heads of attention.
        drop_rate: share of the classifier's input left out in training.
        drop_path_rate: share of branches left out in training in the last block; it grows from 0 in the first.

    Raises:
        ValueError: patches do not tile the frames, or the block's groups do not divide the grid of patches.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        num_frames: int = 8,
        in_chans: int = 3,
        num_classes: int = 400,
        *,
        block: Callable[..., Block],
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height % _PATCH or width % _PATCH:
            raise ValueError(f"Patches of {_PATCH}x{_PATCH} do not tile frames of {height}x{width}.")
        super().__init__((num_frames, height, width), embed_dim, num_classes, drop_rate)
        self.num_prefix_tokens = 1
        self.patch_embed = PatchEmbed((height, width), _PATCH, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.patch_embed.num_patches, embed_dim))
        rates = (drop_path_rate * number / max(1, depth - 1) for number in range(depth))
        options: dict[str, Any] = {"qkv_bias": True, "norm_layer": _norm}
        grid = (num_frames, *self.patch_embed.grid_size)
        self.blocks = Blocks(*(block(embed_dim, num_heads, grid, drop_path=rate, **options) for rate in rates))
        self.norm = _norm(embed_dim)
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_init_weights)
        for name, parameter in self.named_parameters():
            # So that a model with an image ViT's weights begins as that ViT, but for its first block.
            if "_fc." in name and not name.startswith("blocks.0."):
                nn.init.zeros_(parameter)

    def encode(self, x: Tensor) -> Tensor:
        """(B, t, 1 + n, C) -> (B, tokens, C), the class token first.

        Every frame by itself, then the average of the frames: space-only attention.
        """
        frames: Tensor = self.blocks(x.flatten(0, 1)).view(x.shape)
        return frames.mean(dim=1)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, 1 + n, C), or (B, 1 + t n, C) with a time table; normed, the class token first."""
        self.check(x)
        frames = x.transpose(1, 2)
        patches = self.patch_embed(frames.flatten(0, 1))
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1) + self.pos_embed
        out: Tensor = self.norm(self.encode(tokens.unflatten(0, frames.shape[:2])))
        return out


class SpaceTimeTimeSformer(TimeSformer):
    """One whose patches know their frame: a table of positions in time is added, and the blocks see the whole clip.

    Args:
        num_frames: T.
        embed_dim: width of a token, C.
        options: `TimeSformer`'s.
    """

    def __init__(self, *, num_frames: int = 8, embed_dim: int = 768, **options: Any) -> None:
        super().__init__(num_frames=num_frames, embed_dim=embed_dim, **options)
        self.time_embed = nn.Parameter(torch.zeros(1, num_frames, embed_dim))

    def encode(self, x: Tensor) -> Tensor:
        """(B, t, 1 + n, C) -> (B, 1 + t n, C), the class token first."""
        patches = x[:, :, 1:] + self.time_embed[:, :, None]
        out: Tensor = self.blocks(torch.cat((x[:, 0, :1], patches.flatten(1, 2)), dim=1))
        return out


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


# The names of transformers in the official words.
_TRANSFORMERS = (
    (r"^classifier\.", "head."),
    (r"^timesformer\.embeddings\.cls_token", "cls_token"),
    (r"^timesformer\.embeddings\.position_embeddings", "pos_embed"),
    (r"^timesformer\.embeddings\.time_embeddings", "time_embed"),
    (r"^timesformer\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^timesformer\.layernorm\.", "norm."),
    (r"^timesformer\.encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"temporal_layernorm\.", "temporal_norm1."),
    (r"temporal_dense\.", "temporal_fc."),
    (r"attention\.attention\.", "attn."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
)


def renamed(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives a state dict in our names, from the official ones, which begin with "model.", or those of transformers."""
    state: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name.startswith(("timesformer.", "classifier.")):
            for pattern, ours in _TRANSFORMERS:
                name = re.sub(pattern, ours, name)
        state[name.removeprefix("model.")] = tensor
    return state


def checkpoint_filter_fn(state_dict: dict[str, Any], model: TimeSformer) -> dict[str, Tensor]:
    """Gives a state dict in our names, with position tables of the model's grid, the nearest entries of the found ones.

    A table of as many patches is taken to be of the same grid, any other to be of a square one.

    Source: official models/vit.py, forward_features.
    """
    state = renamed(state_dict.get("model_state", state_dict))  # timm does not unwrap it
    table = state.get("pos_embed")
    if table is not None and table.shape != model.pos_embed.shape:
        state["pos_embed"] = resampled_square("pos_embed", table, model.patch_embed.grid_size, 1, "nearest")
    table = state.get("time_embed")
    if table is not None and table.shape[1] != model.extents[0]:
        state["time_embed"] = functional.interpolate(table.mT, model.extents[0], mode="nearest").mT
    return state


def _cfg(hub_id: str = "", pixels: int = 224) -> dict[str, Any]:
    return {
        "hf_hub_id": hub_id or None,
        "num_classes": 400,
        "input_size": (3, pixels, pixels),
        "fixed_input_size": True,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.45, 0.45, 0.45),
        "std": (0.225, 0.225, 0.225),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs(
    {
        "timesformer_space.k400": _cfg(),
        "timesformer_joint.k400": _cfg(),
        "timesformer.k400": _cfg("facebook/timesformer-base-finetuned-k400"),
        "timesformer_divided.k400": _cfg("facebook/timesformer-base-finetuned-k400"),
        "timesformer_lg.k400": _cfg(),
        "timesformer_axial.k400": _cfg(),
        "timesformer_hr.k400": _cfg("facebook/timesformer-hr-finetuned-k400", 448),
        "timesformer_l.k400": _cfg(),
    }
)


def _plain(dim: int, num_heads: int, grid: Grid, **options: Any) -> Block:
    return Block(dim, num_heads, **options)


# Source: section 3 and table 1; of the two larger, section 4.2, "(2) TimeSformer-HR" and "(3) TimeSformer-L".
_DIVIDED = partial(StepwiseBlock, steps={"temporal": TIME}, last=SPACE)
_LOCAL_GLOBAL = partial(StepwiseBlock, steps={"local": QUARTER}, last=STRIDE_2)
_AXIAL = partial(StepwiseBlock, steps={"temporal": TIME, "width": WIDTH}, last=HEIGHT)


def _create(kind: type[TimeSformer], name: str, pretrained: bool, **options: Any) -> TimeSformer:
    return build_model_with_cfg(kind, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **options)


@register_model
def timesformer_space(pretrained: bool = False, **options: Any) -> TimeSformer:
    """Space-only attention: every frame by itself."""
    return _create(TimeSformer, "timesformer_space", pretrained, **{"block": _plain} | options)


@register_model
def timesformer_joint(pretrained: bool = False, **options: Any) -> TimeSformer:
    """Joint space-time attention: every patch of the clip."""
    return _create(SpaceTimeTimeSformer, "timesformer_joint", pretrained, **{"block": _plain} | options)


@register_model
def timesformer_divided(pretrained: bool = False, **options: Any) -> TimeSformer:
    """Divided space-time attention: time, then space. What the paper calls TimeSformer."""
    return _create(SpaceTimeTimeSformer, "timesformer_divided", pretrained, **{"block": _DIVIDED} | options)


@register_model
def timesformer(pretrained: bool = False, **options: Any) -> TimeSformer:
    """The same as `timesformer_divided`."""
    return _create(SpaceTimeTimeSformer, "timesformer", pretrained, **{"block": _DIVIDED} | options)


@register_model
def timesformer_lg(pretrained: bool = False, **options: Any) -> TimeSformer:
    """Sparse local-global attention: a quarter of the grid, then every second patch each way."""
    return _create(SpaceTimeTimeSformer, "timesformer_lg", pretrained, **{"block": _LOCAL_GLOBAL} | options)


@register_model
def timesformer_axial(pretrained: bool = False, **options: Any) -> TimeSformer:
    """Axial attention: time, then width, then height."""
    return _create(SpaceTimeTimeSformer, "timesformer_axial", pretrained, **{"block": _AXIAL} | options)


@register_model
def timesformer_hr(pretrained: bool = False, **options: Any) -> TimeSformer:
    """TimeSformer-HR: 16 frames of 448 x 448."""
    arguments = {"block": _DIVIDED, "num_frames": 16, "img_size": 448}
    return _create(SpaceTimeTimeSformer, "timesformer_hr", pretrained, **arguments | options)


@register_model
def timesformer_l(pretrained: bool = False, **options: Any) -> TimeSformer:
    """TimeSformer-L: 96 frames."""
    return _create(SpaceTimeTimeSformer, "timesformer_l", pretrained, **{"block": _DIVIDED, "num_frames": 96} | options)
