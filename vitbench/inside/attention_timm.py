"""Where the tokens of timm's attention classes lie that no model of the catalog is made of.

Most take a map of the image, or hold it in a block around them. Each function's first line says whose attention it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from vitbench.inside.attention_places import (
    CHANNEL,
    DIFFERENCE,
    LINEAR,
    NO_PLACE,
    POOLED,
    WINDOWED,
    Axes,
    Depends,
    Elsewhere,
    Geometer,
    Known,
    Site,
    across_map,
    ancestry,
    covered,
    cut,
    every,
    grid_of,
    pitch_of,
    prefix_of,
    slid,
    spread,
    windowed,
)
from vitbench.inside.geometry import Axis, Geometry, centres, places

# Tokens that all attend to all.


def _map_first(site: Site) -> Geometry:
    """Visformer, FastViT, SHViT, BoTNet, MobileNetV4 and others: the module takes a map, (B, C, H, W)."""
    return across_map(site, spread(site, site.arguments[0].shape[2:]))


def _map_last(site: Site) -> Geometry:
    """VOLO: the module takes a map, (B, H, W, C)."""
    return across_map(site, spread(site, site.arguments[0].shape[1:3]))


def _stage(site: Site) -> Geometry:
    """CAFormer and its like, EfficientFormer: the stage takes a map, samples it down and lays it out in a row."""
    stage, arguments = site.around(
        "timm.models.metaformer.MetaFormerStage", "timm.models.efficientformer.EfficientFormerStage"
    )
    before = spread(site, arguments[0].shape[2:])
    return across_map(site, slid(before, getattr(stage.downsample, "conv", None)))


def _talking_heads(site: Site) -> Geometry:
    """CaiT: patch tokens alone; the class token comes in later layers."""
    grid = grid_of(site)
    height, width = covered(site, grid)
    axes = centres(grid[0], height), centres(grid[1], width)
    return across_map(site, axes, unchained=_HEADS_MIXED, part=_BEFORE_MIXING)


def _convit(site: Site) -> Geometry:
    """ConViT's last layers, from which on there is a class token."""
    grid = grid_of(site)
    height, width = covered(site, grid)
    axes = centres(grid[0], height), centres(grid[1], width)
    return across_map(site, axes, prefix=prefix_of(site) or 0, unchained="its first layers mix two softmaxes")


def _pit(site: Site) -> Geometry:
    """PiT: a convolution makes the tokens, further ones pool them between stages. Tokens without a place come first."""
    model, _ = site.around("timm.models.pit.PoolingVisionTransformer")
    current, _ = site.around("timm.models.pit.Transformer")
    axes = slid(spread(site, site.extents[1:]), model.patch_embed.conv)
    for stage in model.transformers:
        axes = axes if stage.pool is None else slid(axes, stage.pool.conv)
        if stage is current:
            break
    return across_map(site, axes, prefix=model.cls_token.shape[1])


def _tnt(site: Site) -> Geometry:
    """TNT: patches, after a class token; within each patch, what a convolution makes of its pixels."""
    model, _ = site.around("timm.models.tnt.TNT")
    embedding = model.pixel_embed
    grid = grid_of(site)
    if not site.running[-1].name.endswith("attn_in"):
        return across_map(site, spread(site, grid), prefix=prefix_of(site) or 0, unchained=_PIXELS)
    rows, columns = slid(spread(site, site.extents[1:]), embedding.proj)
    inner = embedding.new_patch_size
    tokens = cut(places(rows, columns)[0].view(len(rows), len(columns), 3), inner)
    if (site.queries, site.keys, len(tokens)) != (inner[0] * inner[1], inner[0] * inner[1], grid[0] * grid[1]):
        raise site.wrong(f"{site.queries} pixels in each of {len(tokens)} patches")
    whole = (1, len(rows), len(columns))
    return Geometry(
        queries=tokens,
        keys=tokens,
        grid=whole,
        key_grid=whole,
        pitch=pitch_of((rows, columns)),
        unchained=_PIXELS,
    )


def _crossvit(site: Site) -> Geometry:
    """CrossViT: two branches with patches of their own, of the image scaled or cropped to a size of their own."""
    model, _ = site.around("timm.models.crossvit.CrossVit")
    blocks = site.within("timm.models.crossvit.MultiScaleBlock")
    assert blocks is not None  # that is how one comes here
    branch = int(site.running[-1].name.removeprefix(f"{blocks.name}.blocks.").partition(".")[0])
    seen, patch = model.img_size_scaled[branch], model.patch_embed[branch].patch_size
    cropped = model.crop_scale and all(side <= extent for side, extent in zip(seen, site.extents[1:], strict=True))

    def axis(extent: int, side: int, step: int) -> Axis:
        start = round((extent - side) / 2) if cropped else 0
        scale = 1.0 if cropped else extent / side
        return tuple(start + scale * one for one in centres(side // step, side // step * step))

    rows, columns = (axis(*one) for one in zip(site.extents[1:], seen, patch, strict=True))
    return across_map(site, (rows, columns), prefix=1, unchained="its two branches exchange class tokens")


_HEADS_MIXED = "its heads are mixed after the softmax"
_BEFORE_MIXING = "before mixing"
_PIXELS = "its patches are fed from their pixels in each layer"


# Queries or keys that are fewer than the map's tokens.


def _levit(site: Site) -> Geometry:
    """LeViT: all tokens of a stage; between stages every second row and column asks, and stays where it is."""
    axes: Axes | None = None
    for module in site.model.modules():
        known = ancestry(type(module))
        if _LEVIT not in known and _LEVIT_DOWN not in known:
            continue
        axes = axes or spread(site, module.resolution)
        fewer = every(axes, module.stride) if _LEVIT_DOWN in known else axes
        if module is site.module:
            return across_map(site, fewer, axes if _LEVIT_DOWN in known else None)
        axes = fewer
    raise site.wrong("the model does not hold it")


_LEVIT, _LEVIT_DOWN = "timm.models.levit.Attention", "timm.models.levit.AttentionDownsample"


def _twins_global(site: Site) -> Geometry:
    """Twins: keys are squares of tokens."""
    own = spread(site, site.arguments[1])
    return across_map(site, own, slid(own, site.module.sr))


def _efficientformer_v2(site: Site) -> Geometry:
    """EfficientFormer V2: a map, which a convolution may have made smaller; its heads are mixed."""
    convolution = site.module.stride_conv
    axes = slid(spread(site, site.arguments[0].shape[2:]), None if convolution is None else convolution.conv)
    return across_map(site, axes, part=_BEFORE_MIXING)


def _efficientformer_v2_downsample(site: Site) -> Geometry:
    """EfficientFormer V2 between stages: queries are made by a convolution of stride 2."""
    own = spread(site, site.arguments[0].shape[2:])
    return across_map(site, slid(own, site.module.q.local), own)


def _convolved(site: Site) -> Geometry:
    """LowFormer and CPUBone: a convolution makes queries and keys alike, fewer than the map has tokens."""
    module = site.module
    own = spread(site, site.arguments[0].shape[2:])
    convolution = module.conv_proj.conv
    if isinstance(convolution, torch.nn.Sequential):  # pads before it, by as much as it takes off
        return across_map(site, own, unchained=POOLED)
    if getattr(module, "small_kernels", False):
        own = _continued(own[0], module.att_stride), _continued(own[1], module.att_stride)
    return across_map(site, slid(own, convolution), unchained=POOLED)


def _continued(axis: Axis, stride: int) -> Axis:
    """Gives an axis that is padded at its end until a stride divides it."""
    step = axis[1] - axis[0] if len(axis) > 1 else 0.0
    return axis + tuple(axis[-1] + step * (number + 1) for number in range(-len(axis) % stride))


def _multi_query(site: Site) -> Geometry:
    """MobileNetV4: queries may be pooled, keys made by a convolution."""
    own = spread(site, site.arguments[0].shape[2:])
    queries = slid(own, getattr(site.module.query, "down_pool", None))
    return across_map(site, queries, slid(own, getattr(site.module.key, "down_conv", None)))


def _csat(site: Site) -> Geometry:
    """CSATv2: the block takes a map and may pool it."""
    block, arguments = site.around("timm.models.csatv2.TransformerBlock")
    return across_map(site, slid(spread(site, arguments[0].shape[2:]), block.pool2))


def _nextvit(site: Site) -> Geometry:
    """Next-ViT: keys are means of tokens that follow each other in reading order, not of squares."""
    block, arguments = site.around("timm.models.nextvit.NextTransformerBlock")
    own = spread(site, arguments[0].shape[2:])
    if not isinstance(block.patch_embed.pool, torch.nn.Identity):
        own = _paired(own[0]), _paired(own[1])
    if site.module.sr is None:
        return across_map(site, own)
    tokens = places(*own)
    keys = functional.avg_pool1d(tokens.mT, site.module.N_ratio).mT
    if (site.queries, site.keys) != (tokens.shape[1], keys.shape[1]):
        raise site.wrong(f"{site.queries} queries and {site.keys} keys, of a map of {tokens.shape[1]} tokens")
    grid = (1, len(own[0]), len(own[1]))
    return Geometry(
        queries=tokens,
        keys=keys,
        grid=grid,
        key_grid=(1, 1, site.keys),
        pitch=pitch_of(own),
        unchained=POOLED,
    )


def _paired(axis: Axis) -> Axis:
    """Gives the means of each two tokens; one that is left over stays where it is."""
    pairs = [axis[first : first + 2] for first in range(0, len(axis), 2)]
    return tuple(sum(pair) / len(pair) for pair in pairs)


# Windows.


def _twins_local(site: Site) -> Geometry:
    """Twins: windows; the map may be padded."""
    side = site.module.ws
    return windowed(site, site.arguments[1], (side, side))


def _nest(site: Site) -> Geometry:
    """NesT: blocks, which stand after the heads."""
    level, arguments = site.around("timm.models.nest.NestLevel")
    height, width = arguments[0].shape[2:]
    if not isinstance(level.pool, torch.nn.Identity):
        height, width = height // 2, width // 2
    return windowed(site, (height, width), (level.block_size, level.block_size), layout="bhg")


def _tiny_vit(site: Site) -> Geometry:
    """TinyViT: windows; the map may be padded."""
    block, arguments = site.around("timm.models.tiny_vit.TinyVitBlock")
    return windowed(site, arguments[0].shape[1:3], (block.window_size, block.window_size))


def _mobilevit(site: Site) -> Geometry:
    """MobileViT: tokens attend to those that lie at the same place of their patch, all over the image."""
    block, arguments = site.around("timm.models.mobilevit.MobileVitBlock")
    patches = [-(-extent // side) for extent, side in zip(arguments[0].shape[2:], block.patch_size, strict=True)]
    # A map that patches do not divide is scaled until they do.
    grid = [number * side for number, side in zip(patches, block.patch_size, strict=True)]
    return windowed(site, grid, patches, strided=True)


def _sam(site: Site) -> Geometry:
    """SAM: windows of a map that may be padded, or in some layers the whole map; heads stand with inputs and windows."""
    block, arguments = site.around("timm.models.vision_transformer_sam.Block")
    grid = arguments[0].shape[1:3]
    window = (block.window_size, block.window_size) if block.window_size else grid
    return windowed(site, grid, window)


def _gcvit(module: Any) -> Geometer | Elsewhere:
    return _POOLED_GLOBAL if module.use_global else _gcvit_local


def _gcvit_local(site: Site) -> Geometry:
    """GCViT: windows in every other block."""
    block, arguments = site.around("timm.models.gcvit.GlobalContextVitBlock")
    return windowed(site, arguments[0].shape[1:3], block.window_size)


def _davit(site: Site) -> Geometry:
    """DaViT's spatial blocks: windows; the map may be padded."""
    block, arguments = site.around("timm.models.davit.SpatialBlock")
    return windowed(site, arguments[0].shape[2:], block.window_size)


def _swin_v2_cr(site: Site) -> Geometry:
    """Swin v2 by C. Reich: shifted windows."""
    block, arguments = site.around("timm.models.swin_transformer_v2_cr.SwinTransformerV2CrBlock")
    return windowed(site, arguments[0].shape[1:3], block.window_size, shift=block.shift_size)


def _cascaded(site: Site) -> Geometry:
    """EfficientViT of Microsoft: windows or the whole map, a call for each head."""
    _, arguments = site.around("timm.models.efficientvit_msra.LocalWindowAttention")
    side = site.module.resolution
    return windowed(site, arguments[0].shape[2:], (side, side), part=f"head {site.call}")


def _iformer(site: Site) -> Geometry:
    """iFormer: windows of a map that may be padded, or the whole map."""
    grid = site.arguments[0].shape[2:]
    side = site.module.window_size
    return windowed(site, grid, (side, side)) if side else across_map(site, spread(site, grid))


def _hiera(site: Site) -> Geometry:
    """Hiera: mask units or all tokens, in an order of its own; queries may be pooled.

    The places go through the model's own reordering, and what its layers so far have pooled.
    """
    model, _ = site.around("timm.models.hiera.Hiera")
    module = site.module
    grid = model.unroll.size
    tokens = model.unroll.forward(places(*spread(site, grid)))[0]
    for block in model.blocks:
        if block.attn is module:
            break
        tokens = tokens.view(block.attn.q_stride, -1, 3).mean(0)
    units = len(tokens) // (module.q_stride * module.window_size) if module.use_mask_unit_attn else 1
    keys = tokens.view(-1, units, 3).transpose(0, 1)
    queries = keys.reshape(units, module.q_stride, -1, 3).mean(1)
    if (site.queries, site.keys) != (queries.shape[1], keys.shape[1]):
        raise site.wrong(f"{site.queries} queries and {site.keys} keys, in {units} mask units of {len(tokens)} tokens")
    rows, columns = (len(tokens[:, axis].unique()) for axis in (1, 2))
    asked = tuple(len(queries[..., axis].unique()) for axis in (1, 2))
    return Geometry(
        queries=queries,
        keys=keys,
        grid=(1, asked[0], asked[1]),
        key_grid=(1, rows, columns),
        pitch=(1.0, site.extents[1] / asked[0], site.extents[2] / asked[1]),
        layout="bhg" if module.use_mask_unit_attn else "bgh",
        unchained=POOLED,
    )


def _sam2(site: Site) -> Geometry:
    """SAM 2's Hiera: windows of a map that may be padded, or the whole map; queries may be pooled within their window."""
    block, arguments = site.around("timm.models.hieradet_sam2.MultiScaleBlock")
    grid = arguments[0].shape[1:3]
    window = tuple(block.window_size) if block.is_windowed else tuple(grid)
    if block.q_stride is None:
        return windowed(site, grid, window)
    strides = block.q_stride
    pooled_window = tuple(side // stride for side, stride in zip(window, strides, strict=True))
    padded = [-(-extent // side) * side for extent, side in zip(grid, window, strict=True)]
    axes = spread(site, grid)
    whole = places(*axes)[0].view(*grid, 3)
    whole = functional.pad(whole, (0, 0, 0, padded[1] - grid[1], 0, padded[0] - grid[0]), value=torch.nan)
    keys = cut(whole, window)
    # Of what was padded no query is kept, so that its having no place is right.
    squares = keys.view(len(keys), pooled_window[0], strides[0], pooled_window[1], strides[1], 3)
    queries = squares.mean((2, 4)).flatten(1, 2)
    if (site.queries, site.keys) != (queries.shape[1], keys.shape[1]):
        raise site.wrong(f"{site.queries} queries and {site.keys} keys in a window of {window}")
    asked = tuple(extent // stride for extent, stride in zip(grid, strides, strict=True))
    return Geometry(
        queries=queries,
        keys=keys,
        grid=(1, asked[0], asked[1]),
        key_grid=(1, grid[0], grid[1]),
        pitch=pitch_of((axes[0][:: strides[0]], axes[1][:: strides[1]])),
        unchained=WINDOWED,
    )


def _halo(site: Site) -> Geometry:
    """HaloNet: blocks of queries, with keys that reach over each block's border; heads stand with inputs.

    Keys outside of the image are given weights, and have no place.
    """
    module = site.module
    height, width = grid = tuple(site.arguments[0].shape[2:])
    axes = spread(site, grid)
    whole = places(*axes)[0].view(height, width, 3)
    side, halo, stride = module.block_size_ds, module.halo_size, module.block_stride
    queries = cut(whole[::stride, ::stride], (side, side))
    reach = functional.pad(whole, (0, 0, halo, halo, halo, halo), value=torch.nan)
    # (rows of blocks, columns of blocks, 3, rows of a window, columns of a window)
    windows = reach.unfold(0, module.win_size, module.block_size).unfold(1, module.win_size, module.block_size)
    keys = windows.movedim(2, -1).flatten(2, 3).flatten(0, 1)
    if (site.queries, site.keys) != (queries.shape[1], keys.shape[1]):
        raise site.wrong(f"{site.queries} queries and {site.keys} keys, not {queries.shape[1]} and {keys.shape[1]}")
    return Geometry(
        queries=queries,
        keys=keys,
        grid=(1, -(-height // stride), -(-width // stride)),
        key_grid=(1, height, width),
        pitch=pitch_of(every(axes, stride)),
        layout="bhg",
        unchained=WINDOWED,
    )


_POOLED_GLOBAL = Elsewhere("its queries are pooled over the whole map")

GROUPED: Mapping[str, Geometer] = {
    "timm.models.mobilevit.MobileVitBlock": _mobilevit,
    "timm.models.pit.PoolingVisionTransformer": _pit,
    "timm.models.crossvit.MultiScaleBlock": _crossvit,
    "timm.models.csatv2.TransformerBlock": _csat,
}
"""What holds timm's plain attention and does not have all tokens of its input attend to all."""

SITES: Mapping[str, Known] = {
    "timm.layers.attention2d.Attention2d": _map_first,
    "timm.layers.attention2d.MultiQueryAttention2d": _multi_query,
    "timm.layers.bottleneck_attn.BottleneckAttn": _map_first,
    "timm.layers.halo_attn.HaloAttn": _halo,
    "timm.models.cait.TalkingHeadAttn": _talking_heads,
    "timm.models.convit.MHSA": _convit,
    "timm.models.cpubone.ConvAttention": _convolved,
    "timm.models.davit.WindowAttention": _davit,
    "timm.models.efficientformer.Attention": _stage,
    "timm.models.efficientformer_v2.Attention2d": _efficientformer_v2,
    "timm.models.efficientformer_v2.Attention2dDownsample": _efficientformer_v2_downsample,
    "timm.models.efficientvit_msra.CascadedGroupAttention": _cascaded,
    "timm.models.fastvit.Attention": _map_first,
    "timm.models.gcvit.WindowAttentionGlobal": Depends(_gcvit),
    "timm.models.hiera.MaskUnitAttention": _hiera,
    "timm.models.hieradet_sam2.MultiScaleAttention": _sam2,
    "timm.models.iformer.SHMA": _iformer,
    _LEVIT: _levit,
    _LEVIT_DOWN: _levit,
    "timm.models.lowformer.ConvAttention": _convolved,
    "timm.models.metaformer.Attention": _stage,
    "timm.models.nest.Attention": _nest,
    "timm.models.nextvit.EfficientAttention": _nextvit,
    "timm.models.shvit.SHSA": _map_first,
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention": _swin_v2_cr,
    "timm.models.tiny_vit.Attention": _tiny_vit,
    "timm.models.tnt.Attention": _tnt,
    "timm.models.twins.GlobalSubSampleAttn": _twins_global,
    "timm.models.twins.LocallyGroupedAttn": _twins_local,
    "timm.models.vision_transformer_sam.Attention": _sam,
    "timm.models.visformer.Attention": _map_first,
    "timm.models.volo.Attention": _map_last,
    "timm.layers.attention_pool.AttentionPoolLatent": NO_PLACE,
    "timm.layers.attention_pool2d.AttentionPool2d": NO_PLACE,
    "timm.layers.attention_pool2d.RotAttentionPool2d": NO_PLACE,
    "timm.layers.other_pool.SimPool1d": NO_PLACE,
    "timm.layers.other_pool.SimPool2d": NO_PLACE,
    "timm.models.cait.ClassAttn": NO_PLACE,
    "timm.models.crossvit.CrossAttention": NO_PLACE,
    "timm.models.volo.ClassAttention": NO_PLACE,
    "timm.models.xcit.ClassAttentionBlock": NO_PLACE,
    "timm.models.davit.ChannelAttention": CHANNEL,
    "timm.models.davit.ChannelAttentionV2": CHANNEL,
    "timm.models.edgenext.CrossCovarianceAttn": CHANNEL,
    "timm.models.xcit.XCA": CHANNEL,
    "timm.layers.lambda_layer.LambdaLayer": LINEAR,
    "timm.models.coat.FactorAttnConvRelPosEnc": LINEAR,
    "timm.models.efficientvit_mit.LiteMLA": LINEAR,
    "timm.models.mobilevit.LinearSelfAttention": LINEAR,
    "timm.models.swiftformer.EfficientAdditiveAttention": LINEAR,
    "timm.layers.diff_attention.DiffAttention": DIFFERENCE,
    "timm.models.vision_transformer.DiffParallelScalingBlock": DIFFERENCE,
    "timm.models.convit.GPSA": Elsewhere("it mixes two softmaxes by a gate, so that neither is its attention"),
    "timm.models.volo.OutlookAttention": Elsewhere("it weighs neighbourhoods that overlap, not the whole image"),
}
"""The classes known, by full name, each with the way to its tokens' places, or why they have none."""
