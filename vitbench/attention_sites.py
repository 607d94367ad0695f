"""Where attention happens: the attention classes of timm, torch and the native models, and how the tokens of each lie.

A class is known by the full name of itself or of one of its bases, or it is not known: no geometry is guessed. One line of
`SITES` makes a class known, with a function from a `Site` to a `Geometry`; one whose weights relate no places has a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitbench import geometry
from vitbench.errors import NotDefined
from vitbench.geometry import Axis, Chain, Geometry, centres, chained, places, pooled, raster
from vitbench.units import size


@dataclass(frozen=True, slots=True)
class Running:
    """A module whose forward pass is under way, with what it was called with."""

    name: str
    module: nn.Module
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """One attention call of a registered module.

    Attributes:
        running: the modules under way, the model first, the registered module last.
        call: number of the call within one pass of the module, from 0.
        before: queries that earlier calls of that pass had.
        queries, keys: how many there are of each in a map.
        extents: of the model's input: frames (1 for an image), height, width.
    """

    running: tuple[Running, ...]
    call: int
    before: int
    queries: int
    keys: int
    extents: tuple[int, int, int]

    @property
    def module(self) -> Any:
        """The registered module."""
        return self.running[-1].module

    @property
    def model(self) -> Any:
        """The whole model."""
        return self.running[0].module

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the registered module was called with."""
        return self.running[-1].arguments

    def within(self, kind: str) -> Running | None:
        """Gives the innermost module under way of a class, by its full name."""
        return next((one for one in reversed(self.running) if kind in ancestry(type(one.module))), None)

    def wrong(self, what: str) -> NotDefined:
        """Gives the error for tokens that do not lie as the class should have them."""
        return NotDefined(f"the tokens of {self.running[-1].name} do not lie as known of its class: {what}")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A class whose weights relate no two places, and why; its layers are left out."""

    reason: str


Geometer = Callable[[Site], Geometry]

LINEAR = Elsewhere("it never forms weights between tokens (linear attention)")
CHANNEL = Elsewhere("it attends over channels, not positions")
NO_PLACE = Elsewhere("its query is a class or pooled token, which has no position")


def ancestry(kind: type) -> list[str]:
    """Gives the full names of a class and its bases, the class first."""
    return [f"{one.__module__}.{one.__qualname__}" for one in kind.__mro__]


def of(module: nn.Module) -> Geometer | Elsewhere | None:
    """Gives what is known of a module's class: a way to its geometry, a reason why it has none, or None."""
    return next((SITES[name] for name in ancestry(type(module)) if name in SITES), None)


# Tokens that all attend to all.


def _grid(site: Site) -> tuple[int, ...]:
    """Gives rows and columns, or frames, rows and columns, of the tokens that a model makes of its input."""
    _, height, width = site.extents
    model = site.model
    embedding: Any = getattr(model, "patch_embed", None)
    if getattr(model, "dynamic_img_size", False) and hasattr(embedding, "dynamic_feat_size"):
        return tuple(embedding.dynamic_feat_size((height, width)))
    for holder in (model, embedding):
        grid = getattr(holder, "grid_size", None)
        if isinstance(grid, Sequence) and all(isinstance(extent, int) for extent in grid):
            return tuple(grid)
    if "torchvision.models.vision_transformer.VisionTransformer" in ancestry(type(model)):
        return height // model.patch_size, width // model.patch_size
    raise NotDefined(f"{type(model).__name__} does not tell the grid of its tokens (patch_embed.grid_size)")


def _tokens(site: Site) -> Geometry:
    """All tokens of an image or a clip, after those without a place; within the blocks of video models, those of its groups."""
    for kind, geometer in GROUPED.items():
        if site.within(kind) is not None:
            return geometer(site)
    grid = _grid(site)
    prefix = site.queries - torch.Size(grid).numel()
    stated = getattr(site.model, "num_prefix_tokens", None)
    if site.queries != site.keys or prefix < 0 or (stated is not None and prefix != stated):
        raise site.wrong(f"{site.queries} queries and {site.keys} keys, with a grid of {size(grid)}")
    named: tuple[str, ...] = ("class",) if prefix and getattr(site.model, "has_class_token", True) else ()
    if getattr(site.model, "dist_token", None) is not None:
        named = ("class", "distillation")
    return raster(grid, site.extents if len(grid) == 3 else site.extents[1:], prefix=prefix, named=named)


def _soft_split(site: Site) -> Geometry:
    """T2T-ViT's restructuring between two soft splits, each token at the centre of its overlapping patch. Section 3.1."""
    splits = site.within("vitbench.models.t2t_vit.TokensToToken")
    if splits is None:
        raise site.wrong("there is no soft split around it")
    grids = dict(zip(("attention1", "attention2"), splits.module.grids(*site.extents[1:]), strict=False))  # type: ignore[operator]
    grid = grids[site.running[-1].name.rpartition(".")[2]]
    _same(site, grid, grid)
    found = raster(grid, site.extents[1:], chain=False, unchained="its tokens are split again between layers")
    return _but(found, embeds=True)


# Keys that are fewer than the queries.


def _map(site: Site, grid: Sequence[int]) -> tuple[Axis, Axis]:
    return centres(grid[0], site.extents[1]), centres(grid[1], site.extents[2])


def _reduced(
    site: Site,
    queries: tuple[Axis, Axis],
    keys: tuple[Axis, Axis],
    *,
    prefix: int = 0,
    frames: tuple[Axis, Axis] = ((0.0,), (0.0,)),
) -> Geometry:
    """Queries and keys on grids of their own, either after the same tokens without a place."""
    grid, key_grid = (
        (len(times), len(rows), len(columns)) for times, (rows, columns) in zip(frames, (queries, keys), strict=True)
    )
    _same(site, grid, key_grid, prefix)
    return Geometry(
        queries=places(*queries, frames[0], prefix=prefix),
        keys=places(*keys, frames[1], prefix=prefix),
        grid=grid,
        key_grid=key_grid,
        pitch=tuple(extent / tokens for extent, tokens in zip(site.extents, grid, strict=True)),  # type: ignore[arg-type]
        unchained=_POOLED,
    )


def _same(site: Site, grid: Sequence[int], key_grid: Sequence[int], prefix: int = 0) -> None:
    expected = tuple(prefix + torch.Size(one).numel() for one in (grid, key_grid))
    if (site.queries, site.keys) != expected:
        raise site.wrong(f"{site.queries} queries and {site.keys} keys, not {expected[0]} and {expected[1]}")


def _slid(axes: tuple[Axis, Axis], convolution: Any) -> tuple[Axis, Axis]:
    """Gives where a convolution or pooling puts the tokens that it makes of a map; None leaves them."""
    if convolution is None:
        return axes
    kernel, stride, padding = (
        (value, value) if isinstance(value, int) else tuple(value)[-2:]
        for value in (convolution.kernel_size, convolution.stride, convolution.padding)
    )
    rows, columns = (
        pooled(axis, (len(axis) + 2 * pad - side) // step + 1, side, step, pad)
        for axis, side, step, pad in zip(axes, kernel, stride, padding, strict=True)
    )
    return rows, columns


def _pvt(site: Site) -> Geometry:
    """PVT v1: keys are squares of R x R tokens; the last stage has a class token and reduces nothing."""
    grid = site.arguments[1]
    own = _map(site, grid)
    reduction = site.module.reduction
    prefix = site.queries - grid[0] * grid[1]
    return _reduced(site, own, _slid(own, None if reduction is None else reduction.sr), prefix=prefix)


def _pvt_v2(site: Site) -> Geometry:
    """PVT v2: as PVT; its linear models pool to 7 x 7, whatever the map."""
    own = _map(site, site.arguments[1])
    if site.module.pool is None:
        return _reduced(site, own, _slid(own, site.module.sr))
    side = site.module.pool.output_size
    rows, columns = (geometry.binned(axis, side) for axis in own)
    return _reduced(site, own, (rows, columns))


def _cvt(site: Site) -> Geometry:
    """CvT: keys are made by a convolution of stride 2. Section 3.2.2."""
    grid = site.arguments[1]
    own = _map(site, grid)
    return _reduced(
        site,
        _slid(own, site.module.conv_proj_q.conv),
        _slid(own, site.module.conv_proj_k.conv),
        prefix=site.arguments[0].shape[1] - grid[0] * grid[1],
    )


def _mvitv2(site: Site) -> Geometry:
    """MViTv2 of images: pooled queries, pooled keys."""
    own = _map(site, site.arguments[1])
    module = site.module
    return _reduced(site, _slid(own, module.pool_q), _slid(own, module.pool_k), prefix=int(module.has_cls_token))


def _mvit(site: Site) -> Geometry:
    """MViT and MViTv2 of clips: pooled in rows and columns, never in time. The class token is the first query and key.

    The second version attends for the class token and then for some frames at a time: a call has some of the queries.
    """
    grid = site.arguments[1]
    own = _map(site, grid[1:])
    times = centres(grid[0], site.extents[0])
    rows, columns = _slid(own, site.module.pool_q)
    whole = places(rows, columns, times, prefix=1)
    queries = whole[:, site.before : site.before + site.queries]
    keys = _slid(own, site.module.pool_k)
    key_places = places(*keys, times, prefix=1)
    if (queries.shape[1], key_places.shape[1]) != (site.queries, site.keys):
        raise site.wrong(f"{site.queries} of {whole.shape[1]} queries and {site.keys} keys")
    return Geometry(
        queries=queries,
        keys=key_places,
        grid=(grid[0], len(rows), len(columns)),
        key_grid=(grid[0], len(keys[0]), len(keys[1])),
        pitch=(site.extents[0] / grid[0], site.extents[1] / len(rows), site.extents[2] / len(columns)),
        unchained=_POOLED,
    )


_POOLED = "tokens are pooled between and within its layers"


# Windows.


def _swin(site: Site) -> Geometry:
    """Swin and Swin v2: windows, shifted in every second block, where a window at the border holds several regions.

    The places go through the block's own steps: roll, pad, partition.
    """
    block = next(
        (found for kind in _SWIN_BLOCKS if (found := site.within(kind)) is not None),
        None,
    )
    if block is None:
        raise site.wrong("there is no block of windows around it")
    module: Any = block.module
    _, height, width, _ = block.arguments[0].shape
    (down, across), (shift_down, shift_across) = module.window_size, module.shift_size
    grid = places(*_map(site, (height, width)))[0].view(height, width, 3)
    grid = grid.roll((-shift_down, -shift_across), (0, 1))
    padded = -(-height // down) * down, -(-width // across) * across
    whole = torch.full((*padded, 3), torch.nan, dtype=torch.float64)
    whole[:height, :width] = grid
    regions = [
        (torch.arange(extent) >= extent - window).long() + (torch.arange(extent) >= extent - shift).long()
        for extent, window, shift in zip(padded, (down, across), (shift_down, shift_across), strict=True)
    ]
    region = regions[0][:, None] * 3 + regions[1]
    shifted = bool(shift_down or shift_across)
    return _partitioned(
        site, whole, (down, across), region=region if shifted else None, grid=(height, width), strided=False
    )


def _partitioned(
    site: Site,
    whole: Tensor,
    window: Sequence[int],
    *,
    grid: tuple[int, int],
    region: Tensor | None = None,
    strided: bool = False,
) -> Geometry:
    """Windows of a map of places, (H, W, 3): squares of neighbours, or tokens that lie H / rows, W / columns apart."""
    rows, columns = window

    def split(found: Tensor) -> Tensor:
        down, across = found.shape[0] // rows, found.shape[1] // columns
        cut = found.view(rows, down, columns, across, -1) if strided else found.view(down, rows, across, columns, -1)
        order = (1, 3, 0, 2, 4) if strided else (0, 2, 1, 3, 4)
        return cut.permute(order).reshape(down * across, rows * columns, -1)

    tokens = split(whole)
    regions = None if region is None else split(region[..., None])[..., 0]
    _same(site, window, window)
    return Geometry(
        queries=tokens,
        keys=tokens,
        query_regions=regions,
        key_regions=regions,
        grid=(1, *grid),
        key_grid=(1, *grid),
        pitch=(1.0, site.extents[1] / grid[0], site.extents[2] / grid[1]),
        unchained="its windows are not assembled into maps of the whole image",
    )


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
            whole = places(*_map(site, (height, width)))[0].view(height, width, 3)
            return _partitioned(site, whole, module.partition_size, grid=(height, width), strided=strided)
    height, width = site.arguments[0].shape[2:]
    _same(site, (height, width), (height, width))
    return raster((height, width), site.extents[1:], chain=False, unchained="its tokens are pooled between layers")


_PARTITIONS = (
    ("timm.models.maxxvit.PartitionAttentionCl", True),
    ("timm.models.maxxvit.ParallelPartitionAttention", True),
    ("timm.models.maxxvit.PartitionAttention2d", False),
)


# Clips.


def _clip_grid(site: Site) -> tuple[int, int, int]:
    grid = _grid(site)
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
    return _but(found, chain=_frame_chain(t, h, w))


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
        return _but(found, chain=_frame_chain(t, h, w))
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
    return _but(found, queries=tokens, keys=tokens)


def _vivit_self_attention(site: Site) -> Geometry:
    """ViViT's Model 3: within a temporal index, or along time."""
    return _space_or_time(site, time=site.running[-1].name.endswith("temporal_attn"))


def _vivit_dot_product(site: Site) -> Geometry:
    """ViViT's Model 4: the first call is along time, the second within a temporal index."""
    found = _space_or_time(site, time=site.call == 0)
    return _but(found, part="time" if site.call == 0 else "space")


def _space_or_time(site: Site, *, time: bool) -> Geometry:
    t, h, w = grid = _clip_grid(site)
    index = torch.arange(t * h * w).view(t, h * w)
    return _groups(site, index.T if time else index, grid, prefix=0, chain_prefix=0)


def _but(found: Geometry, **changes: Any) -> Geometry:
    kept = {
        name: getattr(found, name)
        for name in Geometry.__dataclass_fields__
        if not name.startswith("_") and name not in changes
    }
    return Geometry(**kept, **changes)


GROUPED: Mapping[str, Geometer] = {
    "vitbench.models.timesformer.StepwiseBlock": _timesformer_step,
    "vitbench.models.timesformer.TimeSformer": _timesformer,
    "vitbench.models.vivit.FactorisedSelfAttentionBlock": _vivit_self_attention,
    "vitbench.models.vivit.ViViT": _vivit,
}
"""What holds timm's plain attention and has its tokens in groups, the innermost first."""

SITES: Mapping[str, Geometer | Elsewhere] = {
    "timm.layers.attention.Attention": _tokens,
    "timm.layers.attention.AttentionRope": _tokens,
    "timm.models.beit.Attention": _tokens,
    "timm.models.eva.EvaAttention": _tokens,
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
    "timm.layers.attention_pool.AttentionPoolLatent": NO_PLACE,
    "timm.models.cait.ClassAttn": NO_PLACE,
    "timm.models.xcit.ClassAttentionBlock": NO_PLACE,
    "timm.models.volo.ClassAttention": NO_PLACE,
    "timm.models.xcit.XCA": CHANNEL,
    "timm.models.davit.ChannelAttention": CHANNEL,
    "timm.models.davit.ChannelAttentionV2": CHANNEL,
    "timm.models.edgenext.CrossCovarianceAttn": CHANNEL,
    "timm.models.coat.FactorAttnConvRelPosEnc": LINEAR,
    "timm.models.mobilevit.LinearSelfAttention": LINEAR,
    "timm.models.swiftformer.EfficientAdditiveAttention": LINEAR,
    "timm.models.efficientvit_mit.LiteMLA": LINEAR,
    "timm.models.convit.GPSA": Elsewhere("it mixes two softmaxes by a gate, so that neither is its attention"),
    "timm.models.volo.OutlookAttention": Elsewhere("it weighs neighbourhoods that overlap, not the whole image"),
}
"""The classes known, by full name, each with the way to its tokens' places, or why they have none."""
