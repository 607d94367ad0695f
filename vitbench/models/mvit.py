"""MViT: "Multiscale Vision Transformers", Fan et al., arXiv 2104.11227, and the models of clips of its second version.

MViTv2: "Improved Multiscale Vision Transformers for Classification and Detection", Li et al., arXiv 2112.01526; its image models
are timm's. Agrees with the official code, facebookresearch/SlowFast at 287ec00: names of tensors but for tables and classifier,
parameters, logits. Differences: attention is one fused call; frames need not be square.

MViT-S and the image models of 24 layers have no official configuration. MViT-S follows MViT's table 3(c), with one head in 128
channels, keys pooled to 7x7 as in MViT-B and no padding in space; the others follow section 5 and the printed parameters.

Shapes: B batch, T H W frames, rows and columns of a clip, t h w those of tokens, N = t h w, C channels, g heads, d channels of
one; a dash for pooled tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

from vitbench.parts.classifier import Classifier, resampled_square
from vitbench.units import size

Grid = tuple[int, int, int]
Pooling = tuple[Grid, int]  # a kernel, and a stride of rows and columns: time is never shortened

# Biases of attention at a time: on a CPU they should stay in its caches, elsewhere each launch should be worth its while.
_BIASES = {"cpu": 2**21, "elsewhere": 2**27}
_norm = partial(nn.LayerNorm, eps=1e-6)


def _pooled(pool: nn.Module, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """Pools what follows the class token: (B, g, 1 + N, d) -> (B, g, 1 + N', d) and the grid of N'."""
    tokens = x[:, :, 1:].flatten(0, 1).unflatten(1, grid).permute(0, 4, 1, 2, 3)  # channels last in memory
    pooled: Tensor = pool(tokens)
    t, h, w = pooled.shape[2:]
    return torch.cat((x[:, :, :1], pooled.flatten(2).mT.unflatten(0, x.shape[:2])), dim=2), (t, h, w)


class PoolingAttention(nn.Module):
    """Attention of g heads between pooled queries, keys and values, from C = dim to dim_out channels.

    Source: MViT, section 3.1 and figure 3.
    """

    def __init__(self, dim: int, dim_out: int, num_heads: int, grid: Grid, pool_q: Pooling, pool_kv: Pooling) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim_out // num_heads
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)
        for name, kernel, stride in (("q", *pool_q), ("k", *pool_kv), ("v", *pool_kv)):
            d, pools = self.head_dim, math.prod(kernel) > 1
            padding = tuple(extent // 2 for extent in kernel)
            convolution = nn.Conv3d(d, d, kernel, (1, stride, stride), padding, groups=d, bias=False) if pools else None  # type: ignore[arg-type]  # a padding each way
            self.register_module(f"pool_{name}", convolution)
            self.register_module(f"norm_{name}", _norm(d) if pools else None)

    def pool(self, name: str, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """(B, g, 1 + N, d) -> (B, g, 1 + N', d), normed, and the grid of N'."""
        pool, norm = getattr(self, f"pool_{name}"), getattr(self, f"norm_{name}")
        if pool is None:
            return x, grid
        x, grid = _pooled(pool, x, grid)
        return norm(x), grid

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid_q: Grid, grid_k: Grid) -> Tensor:
        """(B, g, 1 + N, d), twice (B, g, 1 + N', d) -> (B, g, 1 + N, d)."""
        return functional.scaled_dot_product_attention(q, k, v)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """(B, 1 + N, C) -> (B, 1 + N', C out) and the grid of N'."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        q, grid_q = self.pool("q", q, grid)
        k, grid_k = self.pool("k", k, grid)
        v, _ = self.pool("v", v, grid)
        out: Tensor = self.proj(self.attend(q, k, v, grid_q, grid_k).transpose(1, 2).flatten(2))
        return out, grid_q


class RelativePoolingAttention(PoolingAttention):
    """Pooling attention that knows distances along each axis, and has the pooled queries added to its result.

    Source: MViTv2, section 4.1, equations 3 to 5, but that distances are not divided by the root of d: official attention.py.
    """

    def __init__(self, dim: int, dim_out: int, num_heads: int, grid: Grid, pool_q: Pooling, pool_kv: Pooling) -> None:
        super().__init__(dim, dim_out, num_heads, grid, pool_q, pool_kv)
        least = min(pool_q[1], pool_kv[1])
        for name, extent in zip("thw", (grid[0], max(1, grid[1] // least), max(1, grid[2] // least)), strict=True):
            table = trunc_normal_(torch.empty(2 * extent - 1, self.head_dim), std=0.02)
            self.register_parameter(f"rel_pos_{name}", nn.Parameter(table))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid_q: Grid, grid_k: Grid) -> Tensor:
        """(B, g, 1 + N, d), twice (B, g, 1 + N', d) -> (B, g, 1 + N, d)."""
        tables = [
            _at_distances(getattr(self, f"rel_pos_{name}"), *extents)
            for name, *extents in zip("thw", grid_q, grid_k, strict=True)
        ]
        # Some frames of queries at a time: the biases of all pairs of tokens would need their square in memory.
        budget = _BIASES.get(q.device.type, _BIASES["elsewhere"])
        frames = max(1, budget * grid_q[0] // max(1, q[:, :, 1:, 0].numel() * k.shape[2]))
        parts = [functional.scaled_dot_product_attention(q[:, :, :1], k, v)]  # the class token has no position
        for first in range(0, grid_q[0], frames):
            rows = q[:, :, 1:].unflatten(2, grid_q)[:, :, first : first + frames]
            t = torch.einsum("bgthwd,tkd->bgthwk", rows, tables[0][first : first + frames])
            h = torch.einsum("bgthwd,hkd->bgthwk", rows, tables[1])
            w = torch.einsum("bgthwd,wkd->bgthwk", rows, tables[2])
            bias = t[..., :, None, None] + (h[..., :, None] + w[..., None, :])[..., None, :, :]
            bias = functional.pad(bias.flatten(5).flatten(2, 4), (1, 0))
            attended = functional.scaled_dot_product_attention(rows.flatten(2, 4), k, v, attn_mask=bias)
            parts.append(attended + rows.flatten(2, 4))
        return torch.cat(parts, dim=2)


def _at_distances(table: Tensor, queries: int, keys: int) -> Tensor:
    """(entries, d) -> (queries, keys, d): entries by distance along an axis, the fewer stretched over the others' places."""
    table = _resampled(table, 2 * max(queries, keys) - 1)
    stretch_q, stretch_k = max(keys / queries, 1.0), max(queries / keys, 1.0)
    places_q = torch.arange(queries, device=table.device)[:, None] * stretch_q
    places_k = torch.arange(keys, device=table.device) * stretch_k
    return table[(places_q - places_k + (keys - 1) * stretch_k).long()]


def _resampled(table: Tensor, entries: int) -> Tensor:
    """(entries, C) -> another number of entries, linearly."""
    if len(table) == entries:
        return table
    return functional.interpolate(table.mT[None], entries, mode="linear")[0].mT


class MultiscaleBlock(nn.Module):
    """MViT's block, which widens in its MLP, for the stage to come. Source: MViT, section 3.2 and figure 3.

    Args:
        dims: C of the tokens, of what attention gives, and of the result.
        num_heads: g.
        grid: t, h and w of the tokens.
        pool_q: pooling of the queries, which strides as the skip connection's.
        pool_kv: pooling of the keys and values.
        drop_path: share of branches left out in training.
    """

    attention = PoolingAttention
    second_version = False

    def __init__(
        self, dims: Grid, num_heads: int, grid: Grid, pool_q: Pooling, pool_kv: Pooling, drop_path: float
    ) -> None:
        super().__init__()
        dim, attended, dim_out = dims
        self.norm1 = _norm(dim)
        self.attn = self.attention(dim, attended, num_heads, grid, pool_q, pool_kv)
        self.norm2 = _norm(attended)
        self.mlp = Mlp(attended, 4 * attended, dim_out)
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else nn.Identity()
        stride = pool_q[1]
        self.pool_skip = (
            nn.MaxPool3d(_past(stride), (1, stride, stride), (0, stride // 2, stride // 2)) if stride > 1 else None
        )
        self.drop_path = DropPath(drop_path)

    def skip(self, x: Tensor, grid: Grid) -> Tensor:
        """(B, 1 + N, C) -> (B, 1 + N', C)."""
        return x if self.pool_skip is None else _pooled(self.pool_skip, x[:, None], grid)[0][:, 0]

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """(B, 1 + N, C) -> (B, 1 + N', C out) and the grid of N'."""
        attended, pooled = self.attn(self.norm1(x), grid)
        x = self.skip(x, grid) + self.drop_path(attended)
        normed = self.norm2(x)
        x = (x if isinstance(self.proj, nn.Identity) else self.proj(normed)) + self.drop_path(self.mlp(normed))
        return x, pooled


class MultiscaleBlockV2(MultiscaleBlock):
    """MViTv2's block, which widens in its attention, where a stage begins. Source: official attention.py, dim_mul_in_att."""

    attention = RelativePoolingAttention
    second_version = True

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """(B, 1 + N, C) -> (B, 1 + N', C out) and the grid of N'."""
        normed = self.norm1(x)
        attended, pooled = self.attn(normed, grid)
        x = x if isinstance(self.proj, nn.Identity) else self.proj(normed)
        x = self.skip(x, grid) + self.drop_path(attended)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x, pooled


class Positions(nn.Module):
    """Adds a table of the places in a frame and, to clips, one of frames. Source: MViT, table 11 (iv)."""

    def __init__(self, grid: Grid, dim: int, clips: bool) -> None:
        super().__init__()
        self.cls = _table(1, dim)
        self.spatial = _table(grid[1] * grid[2], dim)
        self.temporal = _table(grid[0], dim) if clips else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + N, C) -> (B, 1 + N, C)."""
        places: Tensor = self.spatial
        if self.temporal is not None:
            places = (self.temporal[:, :, None] + places[:, None]).flatten(1, 2)
        return x + torch.cat((self.cls, places), dim=1)


def _table(entries: int, dim: int) -> nn.Parameter:
    return nn.Parameter(trunc_normal_(torch.empty(1, entries, dim), std=0.02))


class MViT(Classifier):
    """Patches, class token, positions, blocks in stages of fewer and wider tokens, and a classifier of the class token.

    Source: MViT, section 3.2 and table 2; official models/video_model_builder.py, MViT.

    Args:
        img_size: H and W, square if one number.
        num_frames: T; None for images.
        in_chans: channels of the clip or image.
        num_classes: classes; 0 leaves the last layer out.
        patch: kernel, stride and padding of the convolution that makes tokens, each in time, height and width.
        embed_dim: C of the first block.
        num_heads: g of the first block.
        depth: blocks.
        stages: number of the block that begins each stage but the first; it halves h and w and doubles g, C has doubled.
        kernel: of all pooling; None for a stride more than its step, which leaves out what pools nothing.
        stride_kv: of keys and values in the first stage; later ones see as many keys.
        block: `MultiscaleBlock`, or `MultiscaleBlockV2`, which pools all queries and needs no tables of positions.
        drop_rate: share of the classifier's input left out in training.
        drop_path_rate: share of branches left out in training in the last block; it grows from 0 in the first.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        num_frames: int | None = 16,
        in_chans: int = 3,
        num_classes: int = 400,
        *,
        patch: tuple[Grid, Grid, Grid] = ((3, 7, 7), (2, 4, 4), (1, 3, 3)),
        embed_dim: int = 96,
        num_heads: int = 1,
        depth: int = 16,
        stages: Sequence[int] = (1, 3, 14),
        kernel: Grid | None = (3, 3, 3),
        stride_kv: int = 8,
        block: type[MultiscaleBlock] = MultiscaleBlock,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        extents = (height, width) if num_frames is None else (num_frames, height, width)
        wide = [embed_dim * 2 ** sum(first <= number for first in stages) for number in range(depth)]
        super().__init__(extents, wide[-1], num_classes, drop_rate)
        self.num_prefix_tokens = 1
        convolution: Any = nn.Conv2d if num_frames is None else nn.Conv3d
        self.patch_embed = nn.ModuleDict(
            {"proj": convolution(in_chans, embed_dim, *(axes[-len(extents) :] for axes in patch))}
        )
        sides = zip((num_frames or 1, height, width), *patch, strict=True)
        grid: Any = tuple((extent + 2 * padding - kernel) // stride + 1 for extent, kernel, stride, padding in sides)
        if min(grid) < 1:
            raise ValueError(f"An input of {size(extents)} gives no tokens; take a larger one.")
        if patch[0][1:] == patch[1][1:] and (height % patch[0][1] or width % patch[0][2]):
            raise ValueError(f"Patches of {size(patch[0][1:])} do not tile frames of {height}x{width}.")
        self.grid_size: Grid = grid
        self.cls_token = _table(1, embed_dim)
        self.positions = nn.Identity() if block.second_version else Positions(grid, embed_dim, num_frames is not None)
        self.blocks = nn.ModuleList()
        for number, own in enumerate(wide):
            stride_q = 2 if number in stages else 1
            stride_kv = max(1, stride_kv // stride_q)
            pools = block.second_version or number in stages
            pool_q = (kernel or _past(stride_q), stride_q) if pools else ((1, 1, 1), 1)
            pool_kv = (kernel or _past(stride_kv), stride_kv)
            before, after = wide[max(0, number - 1)], wide[min(depth - 1, number + 1)]
            dims = (before, own, own) if block.second_version else (own, own, after)
            drop_path = drop_path_rate * number / max(1, depth - 1)
            self.blocks.append(block(dims, num_heads * own // embed_dim, grid, pool_q, pool_kv, drop_path))
            grid = (grid[0], max(1, grid[1] // stride_q), max(1, grid[2] // stride_q))
        self.norm = _norm(wide[-1])
        self.apply(_init_weights)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W), or (B, 3, H, W) of images -> (B, 1 + N, C), normed, the class token first."""
        self.check(x)
        tokens: Tensor = self.patch_embed["proj"](x)
        x = self.positions(torch.cat((self.cls_token.expand(x.shape[0], -1, -1), tokens.flatten(2).mT), dim=1))
        grid = self.grid_size
        for block in self.blocks:
            x, grid = self.run(block, x, grid)
        out: Tensor = self.norm(x)
        return out


def _past(stride: int) -> Grid:
    return (1, stride + 1, stride + 1) if stride > 1 else (1, 1, 1)


def _init_weights(module: nn.Module) -> None:
    # Biases, those of norms too, begin at 0.02 in the official code.
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
        trunc_normal_(module.weight, std=0.02)
    if isinstance(module, (nn.Linear, nn.LayerNorm)):
        nn.init.constant_(module.bias, 0.02)


# The names of the official code, of pytorchvideo and of torchvision in ours.
_OTHERS = (
    (r"^(cls_positional_encoding|pos_encoding)\.", ""),
    (r"^class_token$", "cls_token"),
    (r"^(pos_embed_)?(spatial|temporal|class)(_pos)?$", r"positions.\2"),
    (r"^positions\.class$", "positions.cls"),
    (r"^(conv_proj|patch_embed\.patch_model)\.", "patch_embed.proj."),
    (r"^norm_embed\.", "norm."),
    (r"^head\.(projection|proj|1)\.", "head."),
    (r"attn\.project\.0\.", "attn.proj."),
    (r"attn\.pool_([qkv])\.pool\.", r"attn.pool_\1."),
    (r"attn\.pool_([qkv])\.norm_act\.0\.", r"attn.norm_\1."),
    (r"mlp\.0\.", "mlp.fc1."),
    (r"mlp\.3\.", "mlp.fc2."),
    (r"^(blocks\.\d+)\.project\.", r"\1.proj."),
)


def renamed(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives a state dict in our names, from those of the official code, pytorchvideo or torchvision; ours stay as they are."""
    state: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        for pattern, ours in _OTHERS:
            name = re.sub(pattern, ours, name)
        if name == "cls_token" or name.startswith("positions."):
            tensor = tensor.reshape(1, -1, tensor.shape[-1])  # torchvision has no axis for the batch
        if "._attention_pool_" not in name:  # pytorchvideo says those twice
            state[name] = tensor
    if (table := state.pop("pos_embed", None)) is not None:  # of the official image models
        state |= {"positions.cls": table[:, :1], "positions.spatial": table[:, 1:]}
    elif "positions.temporal" in state and state["patch_embed.proj.weight"].ndim == 4:  # of pytorchvideo's
        state["positions.spatial"] = state["positions.spatial"] + state.pop("positions.temporal")
    for name in [name for name in state if ".attn.q." in name]:
        parts = [state.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        state[name.replace(".q.", ".qkv.")] = torch.cat(parts)
    return state


def checkpoint_filter_fn(state_dict: dict[str, Any], model: MViT) -> dict[str, Tensor]:
    """Gives a state dict in our names, with tables of the model's grid.

    A table of as many places is taken to be of the same grid, any other to be of a square one. Source: MViT, section 4.1;
    official models/video_model_builder.py, _get_pos_embed, and models/attention.py, get_rel_pos: linear each way.
    """
    state = renamed(state_dict.get("model_state", state_dict))  # timm does not unwrap it
    for name, tensor in model.state_dict().items():
        found = state.get(name)
        if found is None or found.shape == tensor.shape:
            continue
        if name == "positions.spatial":
            state[name] = resampled_square(name, found, model.grid_size[1:], 0, "bilinear")
        elif name == "positions.temporal":
            state[name] = _resampled(found[0], tensor.shape[1])[None]
        elif ".rel_pos_" in name:
            state[name] = _resampled(found, len(tensor))
    return state


def _cfg(url: str = "", **others: Any) -> dict[str, Any]:
    return {
        "url": url,
        "first_conv": "patch_embed.proj",
        "num_classes": 400,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": (0.45, 0.45, 0.45),
        "std": (0.225, 0.225, 0.225),
        "classifier": "head",
    } | others


_SLOWFAST = "https://dl.fbaipublicfiles.com/pyslowfast/model_zoo"
_V2_FILES = f"{_SLOWFAST}/mvitv2/pysf_video_models"
_HUB = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo"
_IMAGENET: dict[str, Any] = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
default_cfgs = generate_default_cfgs(
    {
        "mvit_s_16x4.k400": _cfg(),
        "mvit_b_16x4.k400": _cfg(f"{_HUB}/kinetics/MVIT_B_16x4.pyth"),
        "mvit_b_32x3.k400": _cfg(f"{_HUB}/kinetics/MVIT_B_32x3_f294077834.pyth"),
        "mvit_b_64x3.k400": _cfg(),
        "mvit_b_24_32x3.k400": _cfg(f"{_SLOWFAST}/mvit/k400.pyth"),
        "mvit_b_16_image.in1k": _cfg(f"{_HUB}/imagenet/MVIT_B_16_f292487636.pyth", num_classes=1000, **_IMAGENET),
        "mvit_b_24_image.in1k": _cfg(num_classes=1000, **_IMAGENET),
        "mvit_b_24_wide_image.in1k": _cfg(num_classes=1000, input_size=(3, 320, 320), **_IMAGENET),
        "mvitv2_s_16x4.k400": _cfg(f"{_V2_FILES}/MViTv2_S_16x4_k400_f302660347.pyth"),
        "mvitv2_b_32x3.k400": _cfg(f"{_V2_FILES}/MViTv2_B_32x3_k400_f304025456.pyth"),
        "mvitv2_l_40x3.k400": _cfg(
            f"{_V2_FILES}/MViTv2_L_40x3_k400_f306903192.pyth", input_size=(3, 312, 312), **_IMAGENET
        ),
    }
)

_IMAGE: dict[str, Any] = {"num_frames": None, "num_classes": 1000, "kernel": (1, 3, 3), "stride_kv": 4}
_V2: dict[str, Any] = {"block": MultiscaleBlockV2}
_24_LAYERS: dict[str, Any] = {"depth": 24, "stages": (2, 5, 21)}
_SMALL: dict[str, Any] = {
    "patch": ((3, 8, 8), (2, 8, 8), (1, 0, 0)),
    "embed_dim": 128,
    "stages": (3, 10),
    "stride_kv": 4,
}
_LARGE: dict[str, Any] = {"embed_dim": 144, "num_heads": 2, "depth": 48, "stages": (2, 8, 44)}
# Source: MViT, table 3 and sections 4.1 and 5; MViTv2, table 1; official configs/Kinetics and configs/ImageNet; for 32x3,
# pytorchvideo's models/hub/vision_transformers.py.
_ENTRY_POINTS: dict[str, dict[str, Any]] = {
    "mvit_s_16x4": _SMALL,
    "mvit_b_16x4": {},
    "mvit_b_32x3": {"num_frames": 32},
    "mvit_b_64x3": {"num_frames": 64},
    "mvit_b_24_32x3": {"num_frames": 32, "kernel": None, **_24_LAYERS},
    "mvit_b_16_image": _IMAGE,
    "mvit_b_24_image": {**_IMAGE, **_24_LAYERS},
    "mvit_b_24_wide_image": {**_IMAGE, **_24_LAYERS, "embed_dim": 112, "img_size": 320},
    "mvitv2_s_16x4": _V2,
    "mvitv2_b_32x3": {**_V2, **_24_LAYERS, "num_frames": 32},
    "mvitv2_l_40x3": {**_V2, **_LARGE, "num_frames": 40, "img_size": 312},
}


def _register(name: str, arguments: dict[str, Any]) -> None:
    def entry_point(pretrained: bool = False, **options: Any) -> MViT:
        return build_model_with_cfg(
            MViT, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **arguments | options
        )

    entry_point.__name__ = name
    register_model(entry_point)


for _name, _arguments in _ENTRY_POINTS.items():
    _register(_name, _arguments)
