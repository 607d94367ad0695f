"""ViViT: "ViViT: A Video Vision Transformer", Arnab et al., arXiv 2103.15691.

Agrees with the official code, google-research/scenic at 4a38d47, projects/vivit: parameters and logits of all four models. Its
flax trees load, flattened with "/" or as checkpoints; Model 1 also in the names of transformers.
Differences: attention is one fused call; the sides of a clip need not be equal, but tubelets must tile it, where the official
code leaves out what is left over. Stochastic depth reaches all four models, where the official Model 3 has none. Of some lengths
the official uniform sampling takes a frame more, by the rounding of 32-bit numbers. Model 2's temporal encoder has 4 layers, as
section 4.2 says, but 24 in ViViT-L, as in its released configuration and weights.

Shapes: B batch, T H W frames, rows and columns of a clip, t temporal indices, n tokens of one of them, C channels, d channels
of one head.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import Any

import torch
from timm.layers import Attention, GELUTanh
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from vitbench.parts.blocks import Blocks
from vitbench.parts.classifier import Classifier
from vitbench.units import size

Grid = tuple[int, int, int]

_norm = partial(nn.LayerNorm, eps=1e-6)  # as flax has it
_block_options: dict[str, Any] = {"mlp_ratio": 4.0, "qkv_bias": True, "norm_layer": _norm, "act_layer": GELUTanh}


class TubeletEmbed(nn.Module):
    """Projects tubelets, which do not overlap, to tokens. Source: section 3.2, figure 3."""

    def __init__(self, clip: Grid, tubelet: Grid, in_chans: int, dim: int) -> None:
        super().__init__()
        self.grid_size = _grid(clip, tubelet)
        self.proj = nn.Conv3d(in_chans, dim, tubelet, tubelet)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, t, n, C)."""
        out: Tensor = self.proj(x)
        return out.flatten(3).permute(0, 2, 3, 1)


class UniformFrameEmbed(nn.Module):
    """Projects patches of as many frames as there would be tubelets, at equal distances. Source: section 3.2, figure 2.

    Source of the distances: official common_lib/video_utils.py, sample_frames_uniformly.
    """

    def __init__(self, clip: Grid, tubelet: Grid, in_chans: int, dim: int) -> None:
        super().__init__()
        self.grid_size = _grid(clip, tubelet)
        frames, sampled = clip[0], self.grid_size[0]
        distance = frames / (sampled + 1)
        places = [round(number * distance) for number in range(1, sampled + 1)]
        self.frames = places if sampled < frames else list(range(frames))
        self.proj = nn.Conv2d(in_chans, dim, tubelet[1:], tubelet[1:])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, t, n, C)."""
        sampled = x[:, :, self.frames].transpose(1, 2)
        out: Tensor = self.proj(sampled.flatten(0, 1)).flatten(2).mT.unflatten(0, (x.shape[0], len(self.frames)))
        return out


def _grid(clip: Grid, tubelet: Grid) -> Grid:
    """Gives t, h and w."""
    if any(extent % side for extent, side in zip(clip, tubelet, strict=True)):
        raise ValueError(f"Tubelets of {size(tubelet)} do not tile a clip of {size(clip)}.")
    return clip[0] // tubelet[0], clip[1] // tubelet[1], clip[2] // tubelet[2]


class _Stack(nn.Module):
    """Learnt positions of so many tokens, blocks, norm."""

    def __init__(
        self, tokens: int, dim: int, depth: int, num_heads: int, drop_path_rate: float, block: Callable[..., nn.Module]
    ) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(nn.init.normal_(torch.empty(1, tokens, dim), std=0.02))
        rates = (drop_path_rate * number / max(1, depth - 1) for number in range(depth))
        self.blocks = Blocks(*(block(dim, num_heads, drop_path=rate, **_block_options) for rate in rates))
        self.norm = _norm(dim)


class Encoder(_Stack):
    """A ViT's encoder: class token, learnt positions, blocks, norm. Source: section 3.1, equations 1 to 3."""

    def __init__(self, grid: Grid, dim: int, depth: int, num_heads: int, drop_path_rate: float) -> None:
        super().__init__(1 + math.prod(grid), dim, depth, num_heads, drop_path_rate, Block)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, C) -> (B, 1 + tokens, C), the class token first."""
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        out: Tensor = self.norm(self.blocks(x))
        return out


class SpatioTemporal(Encoder):
    """Model 1: every token attends to every other. Source: section 3.3."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, n, C) -> (B, 1 + t n, C)."""
        return super().forward(x.flatten(1, 2))


class FactorisedEncoder(nn.Module):
    """Model 2: one encoder over the tokens of each temporal index, then another over their class tokens.

    Source: section 3.3, figure 4.

    Args:
        grid, dim, depth, num_heads, drop_path_rate: of the spatial encoder.
        temporal: makes the temporal encoder, from the same but for the depth; its first token is classified.
    """

    def __init__(
        self,
        grid: Grid,
        dim: int,
        depth: int,
        num_heads: int,
        drop_path_rate: float,
        *,
        temporal: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.spatial = Encoder((1, *grid[1:]), dim, depth, num_heads, drop_path_rate)
        self.temporal = temporal((grid[0], 1, 1), dim, num_heads=num_heads, drop_path_rate=drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, n, C) -> (B, 1 + t, C), or (B, 1, C) of an average."""
        encoded: Tensor = self.spatial(x.flatten(0, 1))
        out: Tensor = self.temporal(encoded[:, 0].unflatten(0, x.shape[:2]))
        return out


class Average(nn.Module):
    """What Model 2 is compared with: no temporal encoder but an average. Source: table 2, "Ave. pool baseline"."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, C) -> (B, 1, C)."""
        return x.mean(dim=1, keepdim=True)


class GridEncoder(_Stack):
    """An encoder without class token, whose blocks know time from space; the average token is classified."""

    def __init__(
        self,
        grid: Grid,
        dim: int,
        depth: int,
        num_heads: int,
        drop_path_rate: float,
        *,
        block: Callable[..., nn.Module],
    ) -> None:
        super().__init__(math.prod(grid), dim, depth, num_heads, drop_path_rate, block)

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, n, C) -> (B, t n, C)."""
        out: Tensor = self.norm(self.blocks(x + self.pos_embed.view_as(x[:1])))
        return out.flatten(1, 2)


class FactorisedSelfAttentionBlock(Block):
    """Model 3: attention within a temporal index, then along time, then an MLP.

    Source: section 3.3, equations 4 to 6, figure 5.
    """

    def __init__(self, dim: int, num_heads: int, **options: Any) -> None:
        super().__init__(dim, num_heads, **options)
        self.temporal_norm1 = _norm(dim)
        self.temporal_attn = Attention(dim, num_heads, qkv_bias=True)

    def over_space(self, x: Tensor) -> Tensor:
        """(B, t, n, C) -> (B, t, n, C)."""
        out: Tensor = x + self.drop_path1(self.attn(self.norm1(x).flatten(0, 1)).view_as(x))
        return out

    def over_time(self, x: Tensor) -> Tensor:
        """(B, t, n, C) -> (B, t, n, C)."""
        tokens = self.temporal_norm1(x).transpose(1, 2)
        attended = self.temporal_attn(tokens.flatten(0, 1)).view(tokens.shape)
        out: Tensor = x + self.drop_path1(attended.transpose(1, 2))
        return out

    def attend(self, x: Tensor) -> Tensor:
        """(B, t, n, C) -> (B, t, n, C)."""
        return self.over_time(self.over_space(x))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, t, n, C) -> (B, t, n, C)."""
        x = self.attend(x)
        out: Tensor = x + self.drop_path2(self.mlp(self.norm2(x)))
        return out


class TimeFirstBlock(FactorisedSelfAttentionBlock):
    """Model 3 in the other order. Source: section 3.3, below equation 6; official attention_order time_space."""

    def attend(self, x: Tensor) -> Tensor:
        """(B, t, n, C) -> (B, t, n, C)."""
        return self.over_space(self.over_time(x))


class FactorisedDotProductAttention(Attention):
    """Model 4: the first half of the heads attends along time, the other half within a temporal index.

    Source: section 3.3, equation 7; official model_utils.py, factorized_dot_product_attention, for which half is which.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, t, n, C) -> (B, t, n, C)."""
        batch, times, tokens, _ = x.shape
        heads = self.qkv(x).view(batch, times, tokens, 3, 2, self.num_heads // 2, self.head_dim)
        over_time, over_space = heads.permute(4, 3, 0, 1, 2, 5, 6)  # each (3, B, t, n, heads / 2, d)
        q, k, v = over_time.permute(0, 1, 3, 4, 2, 5).flatten(1, 2)  # each (B n, heads / 2, t, d)
        temporal = functional.scaled_dot_product_attention(q, k, v)
        q, k, v = over_space.transpose(3, 4).flatten(1, 2)  # each (B t, heads / 2, n, d)
        spatial = functional.scaled_dot_product_attention(q, k, v)
        temporal = temporal.unflatten(0, (batch, tokens)).permute(0, 3, 1, 2, 4)
        spatial = spatial.unflatten(0, (batch, times)).transpose(2, 3)
        out: Tensor = self.proj(torch.cat((temporal, spatial), dim=3).flatten(3))
        return out


class FactorisedDotProductBlock(Block):
    """A block with `FactorisedDotProductAttention`."""

    def __init__(self, dim: int, num_heads: int, **options: Any) -> None:
        super().__init__(dim, num_heads, attn_layer=FactorisedDotProductAttention, **options)


class ViViT(Classifier):
    """Tokens of a clip, one of the four encoders, and a classifier.

    Source: section 3, figure 1; official projects/vivit/model.py.

    Args:
        img_size: H and W, square if one number.
        num_frames: T.
        in_chans: channels of the clip.
        num_classes: classes; 0 leaves the last layer out.
        encoder: makes the encoder from the grid of tokens, C, depth, heads and drop_path_rate.
        embed: makes tokens, `TubeletEmbed` or `UniformFrameEmbed`.
        tubelet: frames, rows and columns of a tubelet.
        embed_dim: width of a token, C.
        depth: layers; of Model 2, those of its spatial encoder.
        num_heads: heads of attention.
        drop_rate: share of the classifier's input left out in training.
        drop_path_rate: share of branches left out in training in the last block; it grows from 0 in the first.

    Raises:
        ValueError: tubelets do not tile the clip.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        num_frames: int = 32,
        in_chans: int = 3,
        num_classes: int = 400,
        *,
        encoder: Callable[..., nn.Module],
        embed: Callable[..., TubeletEmbed | UniformFrameEmbed] = TubeletEmbed,
        tubelet: Grid,
        embed_dim: int,
        depth: int,
        num_heads: int,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        clip = (num_frames, height, width)
        super().__init__(clip, embed_dim, num_classes, drop_rate)
        self.patch_embed = embed(clip, tubelet, in_chans, embed_dim)
        self.encoder: Any = encoder(self.patch_embed.grid_size, embed_dim, depth, num_heads, drop_path_rate)
        self.num_prefix_tokens = 0 if isinstance(self.encoder, GridEncoder) else 1
        self.apply(_init_weights)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, tokens, C), normed, the class token first where there is one."""
        self.check(x)
        out: Tensor = self.encoder(self.patch_embed(x))
        return out

    def pool(self, x: Tensor) -> Tensor:
        """(B, tokens, C) -> (B, C), what is classified: the first token, or the average where there is no class token."""
        return x[:, 0] if self.num_prefix_tokens else x.mean(dim=1)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def _resampled(table: Tensor, found: Grid, wanted: Grid) -> Tensor:
    """(1, prefix + tokens, C) -> the same for another grid: linear each way, corner on corner, as scenic's scipy zoom."""
    prefix = table.shape[1] - math.prod(found)
    tokens = table[:, prefix:].mT.unflatten(2, found)
    tokens = functional.interpolate(tokens, wanted, mode="trilinear", align_corners=True).flatten(2).mT
    return torch.cat((table[:, :prefix], tokens), dim=1)


# Transformers' names in ours; those of flax have become ours on reading, see checkpoints.py.
_TRANSFORMERS = (
    (r"^classifier\.", "head."),
    (r"^vivit\.embeddings\.cls_token", "cls_token"),
    (r"^vivit\.embeddings\.position_embeddings", "pos_embed"),
    (r"^vivit\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^vivit\.layernorm\.", "norm."),
    (r"^vivit\.(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    (r"attention\.(output\.dense|o_proj)\.", "attn.proj."),
    (r"attention\.(attention\.query|q_proj)\.", "attn.query."),
    (r"attention\.(attention\.key|k_proj)\.", "attn.key."),
    (r"attention\.(attention\.value|v_proj)\.", "attn.value."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
)


def renamed(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives a state dict in our names, from those of flax or of transformers; ours stay as they are."""
    state: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name.startswith(("vivit.", "classifier.")):
            for pattern, ours in _TRANSFORMERS:
                name = re.sub(pattern, ours, name)
        ours_already = name.startswith(("encoder.", "patch_embed.", "head."))
        state[name if ours_already else f"encoder.{name}"] = tensor
    for name in [name for name in state if ".attn.query." in name]:
        parts = [state.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        state[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return state


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: ViViT) -> dict[str, Tensor]:
    """Gives a state dict in our names, with position tables of the model's grid.

    A table of as many tokens is taken to be of the same grid; else of the grid of the published clip, 32 frames of 224 x 224;
    else of another length in time, or of another, square size in space. Source: official model_utils.py, init_posemb.

    Raises:
        ValueError: a table may be of two grids, or of none.
    """
    state, own = renamed(state_dict), model.state_dict()
    clip: Any = zip((_FRAMES, _PIXELS, _PIXELS), model.extents, model.patch_embed.grid_size, strict=True)
    published = [default * tokens // extent for default, extent, tokens in clip]
    t, h, w = model.patch_embed.grid_size
    for part, wanted in (("", (t, h, w)), ("spatial.", (1, h, w)), ("temporal.", (t, 1, 1))):
        name = f"encoder.{part}pos_embed"
        if name not in state or name not in own or state[name].shape == own[name].shape:
            continue
        tokens = state[name].shape[1] - own[name].shape[1] + math.prod(wanted)
        side = math.isqrt(tokens // wanted[0])
        grids: list[Any] = [[1 if axis == 1 else default for axis, default in zip(wanted, published, strict=True)]]
        grids += [[tokens // (h * w), h, w], [t, side, side]] if wanted == (t, h, w) else []
        grids += [[1, side, side]] if wanted[0] == 1 else [[tokens, 1, 1]] if wanted[1] == 1 else []
        fits = [grid for grid in grids if math.prod(grid) == tokens]
        if not fits or (fits[0] != grids[0] and len(fits) > 1):
            kinds = " or ".join(size(tuple(grid)) for grid in fits) or "of no grid of this model's kind"
            raise ValueError(
                f"{name} holds {tokens} positions, which may be {kinds}; resample time and space one by one"
            )
        state[name] = _resampled(state[name], fits[0], wanted)
    return state


_FRAMES, _PIXELS = 32, 224
_SIZES: dict[str, dict[str, int]] = {
    "b": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "l": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "h": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
_TUBELETS = {f"{side}x{frames}": (frames, side, side) for side, frames in ((16, 2), (14, 2), (16, 4), (16, 8))}
_ORDERS = {"space_time": FactorisedSelfAttentionBlock, "time_space": TimeFirstBlock}


def _entry_points() -> Iterable[tuple[str, dict[str, Any]]]:
    """Gives each variant's name and arguments. Source: section 4.1, "Network architecture and training"; table 2."""
    for (letter, sizes), (name, tubelet) in product(_SIZES.items(), _TUBELETS.items()):
        arguments = {"tubelet": tubelet, **sizes}
        variant = f"vivit_{letter}_{name}"
        temporal = partial(Encoder, depth=24 if letter == "l" else 4)
        yield f"{variant}_m1", {"encoder": SpatioTemporal, **arguments}
        yield f"{variant}_fe", {"encoder": partial(FactorisedEncoder, temporal=temporal), **arguments}
        yield f"{variant}_fsa", {"attention_order": "space_time", **arguments}
        yield f"{variant}_fdp", {"encoder": partial(GridEncoder, block=FactorisedDotProductBlock), **arguments}
    base = {"tubelet": _TUBELETS["16x2"], **_SIZES["b"]}
    yield "vivit_b_16x2_avgpool", {"encoder": partial(FactorisedEncoder, temporal=Average), **base}
    uniform = {"encoder": SpatioTemporal, "embed": UniformFrameEmbed, **base, "tubelet": _TUBELETS["16x4"]}
    yield "vivit_b_16x4_m1_uniform", uniform  # table 1


def _register(name: str, arguments: dict[str, Any]) -> None:
    def entry_point(pretrained: bool = False, **options: Any) -> ViViT:
        options = arguments | options
        if name.endswith("_fsa"):
            order = options.pop("attention_order")
            if order not in _ORDERS:
                raise ValueError(f"attention_order must be one of {', '.join(_ORDERS)}, not {order!r}.")
            options["encoder"] = partial(GridEncoder, block=_ORDERS[order])
        return build_model_with_cfg(ViViT, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **options)

    entry_point.__name__ = name
    register_model(entry_point)


def _cfg(name: str) -> dict[str, Any]:
    return {
        # The weights of the others are flax checkpoints, which timm cannot load; vitbench does, from a path.
        "hf_hub_id": "google/vivit-b-16x2-kinetics400" if name == "vivit_b_16x2_m1" else None,
        "num_classes": 400,
        "input_size": (3, _PIXELS, _PIXELS),
        "fixed_input_size": True,
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs({f"{name}.k400": _cfg(name) for name, _ in _entry_points()})

for _name, _arguments in _entry_points():
    _register(_name, _arguments)
