"""The site of an attention call, and what the ways from there to the places of its tokens have in common.

`attention_sites` and `attention_timm` say which class goes which way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitbench.errors import NotDefined
from vitbench.inside.geometry import Axis, Geometry, centres, places, pooled

Axes = tuple[Axis, Axis]
"""The centres of the rows and of the columns of a map."""


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

    def around(self, *kinds: str) -> tuple[Any, tuple[Any, ...]]:
        """Gives the innermost module under way of one of these classes, and what it was called with.

        Raises:
            NotDefined: there is none.
        """
        found = next((found for kind in kinds if (found := self.within(kind)) is not None), None)
        if found is None:
            raise self.wrong(f"there is no {kinds[0].rpartition('.')[2]} around it")
        return found.module, found.arguments

    def wrong(self, what: str) -> NotDefined:
        """Gives the error for tokens that do not lie as the class should have them."""
        return NotDefined(f"the tokens of {self.running[-1].name} do not lie as known of its class: {what}")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A class whose weights relate no two places, and why; its layers are left out."""

    reason: str


Geometer = Callable[[Site], Geometry]


@dataclass(frozen=True, slots=True)
class Depends:
    """A class of which some modules relate places and others do not."""

    on: Callable[[Any], Geometer | Elsewhere]


Known = Geometer | Elsewhere | Depends

LINEAR = Elsewhere("it never forms weights between tokens (linear attention)")
CHANNEL = Elsewhere("it attends over channels, not positions")
NO_PLACE = Elsewhere("its query is a class or pooled token, which has no position")
DIFFERENCE = Elsewhere("it takes the difference of two softmaxes, so that neither is its attention")

POOLED = "tokens are pooled between and within its layers"
STAGED = "its tokens are pooled between layers"
WINDOWED = "its windows are not assembled into maps of the whole image"


def ancestry(kind: type) -> list[str]:
    """Gives the full names of a class and its bases, the class first."""
    return [f"{one.__module__}.{one.__qualname__}" for one in kind.__mro__]


# What a model makes of its input.


def grid_of(site: Site) -> tuple[int, ...]:
    """Gives rows and columns, or frames, rows and columns, of the tokens that a model makes of its input.

    Raises:
        NotDefined: no module under way tells.
    """
    _, height, width = site.extents
    for running in reversed(site.running):
        holder: Any = running.module
        if "torchvision.models.vision_transformer.VisionTransformer" in ancestry(type(holder)):
            return height // holder.patch_size, width // holder.patch_size
        if _is_grid(getattr(holder, "grid_size", None)):
            return tuple(holder.grid_size)
        embedding = _embedding(holder)
        stated = getattr(embedding, "grid_size", None)
        # Some embeddings take any size, and state the grid of the size that they were built for.
        any_size = getattr(holder, "dynamic_img_size", False) or not getattr(embedding, "strict_img_size", True)
        if hasattr(embedding, "dynamic_feat_size") and (any_size or not _is_grid(stated)):
            return tuple(embedding.dynamic_feat_size((height, width)))
        if _is_grid(stated):
            return tuple(stated)
    raise NotDefined(f"{type(site.model).__name__} does not tell the grid of its tokens (patch_embed.grid_size)")


def covered(site: Site, grid: Sequence[int]) -> tuple[float, float]:
    """Gives the pixels, down and across, that a grid of tokens stands on.

    Patches that leave a rest of the image out, as 27 of 14 pixels do of 384, are no further apart for it.
    """
    for running in reversed(site.running):
        embedding = _embedding(running.module)
        if any(kind in _PATCHES for kind in ancestry(type(embedding))):
            height, width = embedding.patch_size
            return float(grid[-2] * height), float(grid[-1] * width)
    return float(site.extents[1]), float(site.extents[2])


def prefix_of(site: Site) -> int | None:
    """Gives how many tokens without a place a model says come first; None where it does not say."""
    stated = (getattr(running.module, "num_prefix_tokens", None) for running in reversed(site.running))
    return next((one for one in stated if isinstance(one, int)), None)


def _embedding(holder: Any) -> Any:
    return next((found for name in _EMBEDDINGS if (found := getattr(holder, name, None)) is not None), None)


def _is_grid(found: Any) -> TypeGuard[Sequence[int]]:
    return isinstance(found, Sequence) and all(isinstance(extent, int) for extent in found)


_EMBEDDINGS = ("patch_embed", "embeds", "pixel_embed")
_PATCHES = ("timm.layers.patch_embed.PatchEmbed", "timm.models.naflexvit.NaFlexEmbeds")


# Maps: rows and columns of tokens, and what convolutions and pooling make of them.


def spread(site: Site, grid: Sequence[int]) -> Axes:
    """Gives the centres of a map of the image: as far apart as the model states, else sharing the image out.

    Four tokens that a stride of 64 pixels makes of 224 are 64 pixels apart, the last of them half over the border.
    """
    stride = _stated_stride(site)

    def axis(tokens: int, extent: int) -> Axis:
        stated = stride is not None and tokens in (extent // stride, -(-extent // stride))
        return centres(tokens, tokens * stride if stated and stride else extent)

    rows, columns = (axis(*one) for one in zip(grid, site.extents[1:], strict=True))
    return rows, columns


def _stated_stride(site: Site) -> int | None:
    """Gives the stride of the stage that an attention stands in, by timm's `feature_info`."""
    name = site.running[-1].name
    for running in reversed(site.running[:-1]):
        inner = name.removeprefix(f"{running.name}." if running.name else "")
        stages = getattr(running.module, "feature_info", None)
        if isinstance(stages, Sequence):
            found = [stage for stage in stages if inner.startswith(f"{stage.get('module')}.")]
            return found[-1].get("reduction") if found else None
    return None


def slid(axes: Axes, convolution: Any) -> Axes:
    """Gives where a convolution or pooling puts the tokens that it makes of a map; what is none leaves them."""
    if convolution is None or isinstance(convolution, nn.Identity):
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


def every(axes: Axes, stride: int) -> Axes:
    """Gives each so manieth of the rows and columns, from the first."""
    rows, columns = axes
    return rows[::stride], columns[::stride]


def check(site: Site, grid: Sequence[int], key_grid: Sequence[int], prefix: int = 0) -> None:
    """Makes sure that the queries and keys of a call are as many as two grids have.

    Raises:
        NotDefined: they are not.
    """
    expected = tuple(prefix + torch.Size(one).numel() for one in (grid, key_grid))
    if (site.queries, site.keys) != expected:
        raise site.wrong(f"{site.queries} queries and {site.keys} keys, not {expected[0]} and {expected[1]}")


def across_map(
    site: Site,
    queries: Axes,
    keys: Axes | None = None,
    *,
    prefix: int = 0,
    unchained: str | None = None,
    part: str = "",
) -> Geometry:
    """Gives the geometry of a map whose tokens all attend to all, or to those of another map of the image.

    Args:
        site: the call.
        queries: where the rows and columns of queries are.
        keys: of keys; None: the same.
        prefix: tokens without a place that come first, in both.
        unchained: why maps of layers cannot be multiplied; None: there are several stages.
        part: which of several ways of attending this is.
    """
    unchained = unchained or (STAGED if keys is None else POOLED)
    keys = queries if keys is None else keys
    grid, key_grid = ((1, len(rows), len(columns)) for rows, columns in (queries, keys))
    check(site, grid, key_grid, prefix)
    return Geometry(
        queries=places(*queries, prefix=prefix),
        keys=places(*keys, prefix=prefix),
        grid=grid,
        key_grid=key_grid,
        pitch=pitch_of(queries),
        unchained=unchained,
        part=part,
    )


def pitch_of(axes: Axes) -> tuple[float, float, float]:
    """Gives a frame, and the pixels from one row and column to the next; of one alone, all that there are around it."""
    down, across = (round(axis[1] - axis[0], 9) if len(axis) > 1 else 2 * axis[0] for axis in axes)
    return 1.0, down, across


# Windows.


def windowed(
    site: Site,
    grid: Sequence[int],
    window: Sequence[int],
    *,
    shift: Sequence[int] = (0, 0),
    strided: bool = False,
    layout: str = "bgh",
    part: str = "",
) -> Geometry:
    """Gives the geometry of windows, by what the blocks themselves do to their map: roll, pad, partition.

    Args:
        site: the call.
        grid: rows and columns of the map.
        window: rows and columns of a window.
        shift: how far the map is rolled up and left; only tokens that are neighbours in the image attend to each other.
        strided: tokens of a window lie rows / window apart, not side by side.
        layout: of the maps.
        part: which of several ways of attending this is.
    """
    height, width = grid
    padded = [-(-extent // side) * side for extent, side in zip(grid, window, strict=True)]
    axes = spread(site, grid)
    whole = places(*axes)[0].view(height, width, 3).roll((-shift[0], -shift[1]), (0, 1))
    whole = functional.pad(whole, (0, 0, 0, padded[1] - width, 0, padded[0] - height), value=torch.nan)
    regions = None
    if any(shift):
        down, across = (
            (torch.arange(extent) >= extent - side).long() + (torch.arange(extent) >= extent - roll).long()
            for extent, side, roll in zip(padded, window, shift, strict=True)
        )
        regions = cut((down[:, None] * 3 + across)[..., None], window)[..., 0]
    check(site, window, window)
    tokens = cut(whole, window, strided=strided)
    return Geometry(
        queries=tokens,
        keys=tokens,
        query_regions=regions,
        key_regions=regions,
        grid=(1, height, width),
        key_grid=(1, height, width),
        pitch=pitch_of(axes),
        unchained=WINDOWED,
        layout=layout,
        part=part,
    )


def cut(found: Tensor, window: Sequence[int], *, strided: bool = False) -> Tensor:
    """(H, W, k) -> (G, tokens of a window, k): squares of neighbours, or tokens that lie H / rows, W / columns apart."""
    rows, columns = window
    down, across = found.shape[0] // rows, found.shape[1] // columns
    parts = found.view(rows, down, columns, across, -1) if strided else found.view(down, rows, across, columns, -1)
    order = (1, 3, 0, 2, 4) if strided else (0, 2, 1, 3, 4)
    return parts.permute(order).reshape(down * across, rows * columns, -1)


def but(found: Geometry, **changes: Any) -> Geometry:
    """Gives a geometry with some of its attributes changed."""
    kept = {
        name: getattr(found, name)
        for name in Geometry.__dataclass_fields__
        if not name.startswith("_") and name not in changes
    }
    return Geometry(**kept, **changes)
