"""Where attention happens: the attention classes of timm, torch and the native models, and how the tokens of each lie.

A class is known by the full name of itself or of one of its bases, or it is not known: no geometry is guessed. One line of
`SITES` makes a class known, with a function from a `Site` to a `Geometry`; one whose weights relate no places has a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitbench.inside import attention_timm, geometry
from vitbench.inside.attention_places import (
    LINEAR,
    POOLED,
    Depends,
    Elsewhere,
    Geometer,
    Known,
    Running,
    Site,
    across_map,
    ancestry,
    but,
    check,
    covered,
    grid_of,
    prefix_of,
    slid,
    spread,
    windowed,
)
from vitbench.inside.geometry import Chain, Geometry, centres, chained, places, raster
from vitbench.units import size

__all__ = ["GROUPED", "SITES", "Elsewhere", "Running", "Site", "ancestry", "of"]


def of(module: nn.Module) -> Geometer | Elsewhere | None:
    """Gives what is known of a module: a way to its geometry, a reason why it has none, or None."""
    known = next((SITES[name] for name in ancestry(type(module)) if name in SITES), None)
    return known.on(module) if isinstance(known, Depends) else known


# Tokens that all attend to all.


def _tokens(site: Site) -> Geometry:
    """All tokens of an image or a clip, after those without a place; within the blocks of video models, those of its groups."""
    for kind, geometer in GROUPED.items():
        if site.within(kind) is not None:
            return geometer(site)
    grid = grid_of(site)
    prefix = site.queries - torch.Size(grid).numel()
    stated = prefix_of(site)
    if site.queries != site.keys or prefix < 0 or (stated is not None and prefix != stated):
        raise site.wrong(f"{site.queries} queries and {site.keys} keys, with a grid of {size(grid)}")
    named: tuple[str, ...] = ("class",) if prefix and _reads_class_token(site.model) else ()
    if getattr(site.model, "dist_token", None) is not None:
        named = ("class", "distillation")
    return raster(grid, site.extents if len(grid) == 3 else covered(site, grid), prefix=prefix, named=named)


def _reads_class_token(model: Any) -> bool:
    """Tells whether a model's output is read from a class token; registers alone are none, and some average all tokens."""
    if "torchvision.models.vision_transformer.VisionTransformer" in ancestry(type(model)):
        return True
    if getattr(model, "global_pool", None) in ("avg", "avgmax", "max"):
        return False
    if hasattr(model, "has_class_token"):
        return bool(model.has_class_token)
    holders = (model, getattr(model, "classifier", None))
    tokens = (getattr(holder, name, None) for holder in holders for name in ("cls_token", "class_token", "class_emb"))
    return any(isinstance(token, Tensor) for token in tokens)


def _soft_split(site: Site) -> Geometry:
    """T2T-ViT's restructuring between two soft splits, each token at the centre of its overlapping patch. Section 3.1."""
    splits = site.within("vitbench.models.t2t_vit.TokensToToken")
    if splits is None:
        raise site.wrong("there is no soft split around it")
    module: Any = splits.module
    grids = dict(zip(("attention1", "attention2"), module.grids(*site.extents[1:]), strict=False))
    grid = grids[site.running[-1].name.rpartition(".")[2]]
    check(site, grid, grid)
    found = raster(grid, site.extents[1:], chain=False, unchained="its tokens are split again between layers")
    return but(found, embeds=True)


# Keys that are fewer than the queries.


def _pvt(site: Site) -> Geometry:
    """PVT v1: keys are squares of R x R tokens; the last stage has a class token and reduces nothing."""
    grid = site.arguments[1]
    own = spread(site, grid)
    reduction = site.module.reduction
    prefix = site.queries - grid[0] * grid[1]
    return across_map(site, own, slid(own, None if reduction is None else reduction.sr), prefix=prefix)


def _pvt_v2(site: Site) -> Geometry:
    """PVT v2: as PVT; its linear models pool to 7 x 7, whatever the map."""
    own = spread(site, site.arguments[1])
    if site.module.pool is None:
        return across_map(site, own, slid(own, site.module.sr))
    side = site.module.pool.output_size
    rows, columns = (geometry.binned(axis, side) for axis in own)
    return across_map(site, own, (rows, columns))


def _cvt(site: Site) -> Geometry:
    """CvT: keys are made by a convolution of stride 2. Section 3.2.2."""
    grid = site.arguments[1]
    own = spread(site, grid)
    return across_map(
        site,
        slid(own, site.module.conv_proj_q.conv),
        slid(own, site.module.conv_proj_k.conv),
        prefix=site.arguments[0].shape[1] - grid[0] * grid[1],
    )


def _mvitv2(site: Site) -> Geometry:
    """MViTv2 of images: pooled queries, pooled keys."""
    own = spread(site, site.arguments[1])
    module = site.module
    return across_map(site, slid(own, module.pool_q), slid(own, module.pool_k), prefix=int(module.has_cls_token))


def _mvit(site: Site) -> Geometry:
    """MViT and MViTv2 of clips: pooled in rows and columns, never in time. The class token is the first query and key.

    The second version attends for the class token and then for some frames at a time: a call has some of the queries.
    """
    grid = site.arguments[1]
    own = spread(site, grid[1:])
    times = centres(grid[0], site.extents[0])
    rows, columns = slid(own, site.module.pool_q)
    whole = places(rows, columns, times, prefix=1)
    queries = whole[:, site.before : site.before + site.queries]
    keys = slid(own, site.module.pool_k)
    key_places = places(*keys, times, prefix=1)
    if (queries.shape[1], key_places.shape[1]) != (site.queries, site.keys):
        raise site.wrong(f"{site.queries} of {whole.shape[1]} queries and {site.keys} keys")
    return Geometry(
        queries=queries,
        keys=key_places,
        grid=(grid[0], len(rows), len(columns)),
        key_grid=(grid[0], len(keys[0]), len(keys[1])),
        pitch=(site.extents[0] / grid[0], site.extents[1] / len(rows), site.extents[2] / len(columns)),
        unchained=POOLED,
    )


# Windows.


def _swin(site: Site) -> Geometry:
    """Swin and Swin v2: windows, shifted in every second block, where a window at the border holds several regions."""
    module, arguments = site.around(*_SWIN_BLOCKS)
    return windowed(site, arguments[0].shape[1:3], module.window_size, shift=module.shift_size)


_SWIN_BLOCKS = (
    "timm.models.swin_transformer.SwinTransformerBlock",
    "timm.models.swin_transformer_v2.SwinTransformerV2Block",
)


# Maps of channels first or last, whole or in windows: CoAtNet and MaxViT.


def _map_tokens(site: Site) -> Geometry:
    """CoAtNet: all tokens of a map; within MaxViT's partitions, those of a window or of a dilated grid."""
    for kind, last in _PARTITIONS:
        around = site.within(kind)
        if around is not None:
            module: Any = around.module
            shape = around.arguments[0].shape
            height, width = (shape[1], shape[2]) if last else (shape[2], shape[3])
            strided = (
                site.running[-1].name.endswith("attn_grid")
                if hasattr(module, "attn_grid")
                else not module.partition_block
            )
            return windowed(site, (height, width), module.partition_size, strided=strided)
    height, width = site.arguments[0].shape[2:]
    check(site, (height, width), (height, width))
    return raster((height, width), site.extents[1:], chain=False, unchained="its tokens are pooled between layers")


_PARTITIONS = (
    ("timm.models.maxxvit.PartitionAttentionCl", True),
    ("timm.models.maxxvit.ParallelPartitionAttention", True),
    ("timm.models.maxxvit.PartitionAttention2d", False),
)


# Clips.


def _clip_grid(site: Site) -> tuple[int, int, int]:
    grid = grid_of(site)
    frames = site.extents[0]
    return (grid[0], grid[1], grid[2]) if len(grid) == 3 else (frames, grid[0], grid[1])


def _groups(
    site: Site,
    index: Tensor,
    grid: tuple[int, int, int],
    *,
    prefix: int,
    chain_prefix: int,
    name: str = "tokens",
    chain: bool = True,
) -> Geometry:
    """Groups of a clip's tokens, (G, n) indices of its raster, each after copies of the prefix."""
    whole = raster(grid, site.extents)
    tokens = torch.cat(
        (torch.full((len(index), prefix, 3), torch.nan, dtype=torch.float64), whole.queries[0][index]), 1
    )
    if (site.queries, site.keys) != (tokens.shape[1],) * 2:
        raise site.wrong(f"{site.queries} queries and {site.keys} keys in a group of {tokens.shape[1]}")
    copies = torch.arange(prefix).expand(len(index), -1)
    members = torch.cat((copies, index + chain_prefix), 1)
    length = chain_prefix + torch.Size(grid).numel()
    return Geometry(
        queries=tokens,
        keys=tokens,
        grid=grid,
        key_grid=grid,
        pitch=whole.pitch,
        chain=_chain(name, length, members, grid, ("class",) * min(1, prefix)) if chain else None,
    )


def _timesformer_step(site: Site) -> Geometry:
    """TimeSformer: a step of a block attends within groups, the last step with a copy of the class token in each."""
    block = site.within("vitbench.models.timesformer.StepwiseBlock")
    assert block is not None
    module: Any = block.module
    grid = tuple(module.grid)
    step = site.running[-1].name.rpartition(".")[2].removesuffix("attn").rstrip("_")
    last = not step
    grouping = module.last if last else module.steps[step]
    raster_index = torch.arange(torch.Size(grid).numel(), dtype=torch.float64).view(1, *grid, 1)
    index = grouping.split(raster_index)[..., 0].long()
    return _groups(site, index, grid, prefix=int(last), chain_prefix=1)


def _timesformer(site: Site) -> Geometry:
    """TimeSformer of one step: every frame by itself, or the whole clip."""
    t, h, w = _clip_grid(site)
    if site.queries == 1 + t * h * w:
        return raster((t, h, w), site.extents, prefix=1, named=("class",))
    index = torch.arange(t * h * w).view(t, h * w)
    # A class token a frame: the sequence is that of all frames with theirs, one after another.
    found = _groups(site, index, (t, h, w), prefix=1, chain_prefix=0, chain=False)
    return but(found, chain=_frame_chain(t, h, w))


def _frame_chain(t: int, h: int, w: int) -> Chain:
    """Gives the chain of frames that each have a class token: frame by frame, class token first."""
    members = torch.arange(t * (1 + h * w)).view(t, 1 + h * w)
    return _chain("frames", t * (1 + h * w), members, (t, h, w), ("class",))


def _chain(name: str, length: int, members: Tensor, grid: tuple[int, int, int], named: tuple[str, ...]) -> Chain:
    return Chain(name=name, length=length, queries=members, keys=members, grid=grid, named=named)


def _vivit(site: Site) -> Geometry:
    """ViViT's encoders: Model 1 over the clip, Model 2 within frames and then over their class tokens. Section 3.3."""
    t, h, w = _clip_grid(site)
    if site.within("vitbench.models.vivit.SpatioTemporal") is not None:
        return _sampled(site, raster((t, h, w), site.extents, prefix=1, named=("class",)))
    factorised = site.within("vitbench.models.vivit.FactorisedEncoder")
    if factorised is None:
        raise site.wrong("it stands in no encoder known")
    if site.running[-1].name.startswith(f"{factorised.name}.spatial."):
        index = torch.arange(t * h * w).view(t, h * w)
        found = _groups(site, index, (t, h, w), prefix=1, chain_prefix=0, chain=False)
        return but(found, chain=_frame_chain(t, h, w))
    # A token a temporal index, which stands for its whole frame: in time it has a place, in space all have one.
    times = places((site.extents[1] / 2,), (site.extents[2] / 2,), centres(t, site.extents[0]), prefix=1)
    if (site.queries, site.keys) != (1 + t, 1 + t):
        raise site.wrong(f"{site.queries} queries over {t} temporal indices")
    entry = torch.cat((torch.tensor([-1]), torch.arange(t) * (1 + h * w)))
    whole = chained("times", 1 + t, (t, 1, 1), ("class",))
    return Geometry(
        queries=times,
        keys=times,
        grid=(t, 1, 1),
        key_grid=(t, 1, 1),
        pitch=(site.extents[0] / t, float(site.extents[1]), float(site.extents[2])),
        chain=Chain(
            name=whole.name,
            length=whole.length,
            queries=whole.queries,
            keys=whole.keys,
            grid=whole.grid,
            named=whole.named,
            entry=entry,
        ),
    )


def _sampled(site: Site, found: Geometry) -> Geometry:
    """Puts tokens at the frames that were sampled, where a clip is not cut into tubelets that tile it. ViViT's figure 2."""
    frames = getattr(site.model.patch_embed, "frames", None)
    if frames is None:
        return found
    tokens = found.queries.clone()
    placed = found.placed_queries[0]
    tokens[0, placed, 0] = (torch.tensor(frames, dtype=torch.float64) + 0.5).repeat_interleave(
        int(placed.sum()) // len(frames)
    )
    return but(found, queries=tokens, keys=tokens)


def _vivit_self_attention(site: Site) -> Geometry:
    """ViViT's Model 3: within a temporal index, or along time."""
    return _space_or_time(site, time=site.running[-1].name.endswith("temporal_attn"))


def _vivit_dot_product(site: Site) -> Geometry:
    """ViViT's Model 4: the first call is along time, the second within a temporal index."""
    found = _space_or_time(site, time=site.call == 0)
    return but(found, part="time" if site.call == 0 else "space")


def _space_or_time(site: Site, *, time: bool) -> Geometry:
    t, h, w = grid = _clip_grid(site)
    index = torch.arange(t * h * w).view(t, h * w)
    return _groups(site, index.T if time else index, grid, prefix=0, chain_prefix=0)


GROUPED: Mapping[str, Geometer] = {
    "vitbench.models.timesformer.StepwiseBlock": _timesformer_step,
    "vitbench.models.timesformer.TimeSformer": _timesformer,
    "vitbench.models.vivit.FactorisedSelfAttentionBlock": _vivit_self_attention,
    "vitbench.models.vivit.ViViT": _vivit,
    **attention_timm.GROUPED,
}
"""What holds timm's plain attention and does not have all tokens of its input attend to all, the innermost first."""

SITES: Mapping[str, Known] = {
    "timm.layers.attention.Attention": _tokens,
    "timm.layers.attention.AttentionRope": _tokens,
    "timm.models.beit.Attention": _tokens,
    "timm.models.eva.EvaAttention": _tokens,
    "timm.models.vision_transformer.ParallelScalingBlock": _tokens,
    "timm.models.vision_transformer_relpos.RelPosAttention": _tokens,
    "torch.nn.modules.activation.MultiheadAttention": _tokens,
    "timm.models.swin_transformer.WindowAttention": _swin,
    "timm.models.swin_transformer_v2.WindowAttention": _swin,
    "timm.models.pvt_v2.Attention": _pvt_v2,
    "timm.models.mvitv2.MultiScaleAttention": _mvitv2,
    "timm.models.maxxvit.Attention2d": _map_tokens,
    "timm.models.maxxvit.AttentionCl": _map_tokens,
    "vitbench.models.compact.Attention": _tokens,
    "vitbench.models.cvt.ConvAttention": _cvt,
    "vitbench.models.mvit.PoolingAttention": _mvit,
    "vitbench.models.pvt.SpatialReductionAttention": _pvt,
    "vitbench.models.t2t_vit.TokenTransformer": _soft_split,
    "vitbench.models.t2t_vit.TokenPerformer": LINEAR,
    "vitbench.models.vivit.FactorisedDotProductAttention": _vivit_dot_product,
    **attention_timm.SITES,
}
"""The classes known, by full name, each with the way to its tokens' places, or why they have none."""
