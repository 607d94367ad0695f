"""Where the tokens of an attention call lie in the input: pixels down and across, frames along a clip.

A pixel is one of the model's input, after resizing and cropping. A token stands at the centre of what it was made from. G groups
of tokens attend within themselves: windows, frames, places; mostly there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

Axis = tuple[float, ...]
"""The centres of tokens along one axis, in pixels or frames."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chain:
    """Which tokens of a model's sequence a call relates, so that maps of several layers can be multiplied.

    Attributes:
        name: of the sequence; a model may have one after another.
        length: tokens of one input, L.
        queries, keys: (G, queries) and (G, keys), each an index of the sequence.
        grid: frames, rows and columns of the tokens that have a place; they are the last of the sequence.
        named: what a classifier may read of a group: names of its first tokens; empty where it reads their average.
        entry: (L,), which token of the sequence before each of this one's begins as; -1 for one that is new. None: the first.
    """

    name: str
    length: int
    queries: Tensor
    keys: Tensor
    grid: tuple[int, int, int]
    named: tuple[str, ...] = ()
    entry: Tensor | None = None

    def same_as(self, other: Chain) -> bool:
        """Tells whether another chain is this one."""
        return (
            (self.name, self.length, self.grid, self.named) == (other.name, other.length, other.grid, other.named)
            and torch.equal(self.queries, other.queries)
            and torch.equal(self.keys, other.keys)
            and (self.entry is None) == (other.entry is None)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """The places of the queries and keys of one attention call.

    Attributes:
        queries: (G, queries, 3) in float64: frame, pixels down, pixels across; NaN for a token without a place: class,
            distillation and register tokens, and padding.
        keys: (G, keys, 3), likewise.
        query_regions, key_regions: (G, queries), (G, keys): only tokens of one region attend to each other; None where all do.
        grid: frames, rows and columns of the queries' tokens.
        key_grid: of the keys'.
        pitch: frames and pixels from one query token to the next, each way.
        layout: the axes that stand before queries and keys, with b for inputs, g for groups, h for heads.
        chain: for rollout; None where maps of layers cannot be multiplied, for the reason `unchained`.
        unchained: a clause.
        embeds: whether the call belongs to what makes the tokens, not to the layers after.
        part: which of several ways of attending this is, where a module has them side by side.
    """

    queries: Tensor
    keys: Tensor
    grid: tuple[int, int, int]
    key_grid: tuple[int, int, int]
    pitch: tuple[float, float, float]
    query_regions: Tensor | None = None
    key_regions: Tensor | None = None
    layout: str = "bgh"
    chain: Chain | None = None
    unchained: str = ""
    embeds: bool = False
    part: str = ""
    _on_device: dict[torch.device, Distances] = field(default_factory=dict, init=False)
    _uniform: dict[bool, tuple[float, float]] = field(default_factory=dict, init=False)

    @property
    def groups(self) -> int:
        """G."""
        return len(self.queries)

    @cached_property
    def placed_queries(self) -> Tensor:
        """(G, queries): which queries have a place."""
        return ~self.queries[..., 0].isnan()

    @cached_property
    def placed_keys(self) -> Tensor:
        """(G, keys): which keys have a place."""
        return ~self.keys[..., 0].isnan()

    @cached_property
    def allowed(self) -> Tensor | None:
        """(G, queries, keys): which pairs may attend; None where all may."""
        if self.query_regions is None or self.key_regions is None:
            return None
        return self.query_regions[:, :, None] == self.key_regions[:, None]

    @cached_property
    def keys_allowed(self) -> Tensor:
        """(G, queries): how many keys, placed or not, a query may attend to."""
        if self.allowed is not None:
            return self.allowed.sum(-1)
        return torch.full(self.queries.shape[:2], self.keys.shape[1])

    @cached_property
    def has_space(self) -> bool:
        """Whether there are keys at another place in the frame than the query's."""
        return bool((self._distance_px > 0).any())

    @cached_property
    def has_time(self) -> bool:
        """Whether there are keys in another frame than the query's."""
        return bool((self._distance_frames > 0).any())

    @property
    def _distance_px(self) -> Tensor:
        # Not kept: it is as large as a map. cdist's matrix-product route would cost digits.
        down, across = ((self.queries[:, :, None, axis] - self.keys[:, None, :, axis]) for axis in (1, 2))
        return torch.hypot(down, across).nan_to_num_(0.0)

    @property
    def _distance_frames(self) -> Tensor:
        times = torch.cat((self.queries[..., 0].flatten(), self.keys[..., 0].flatten())).nan_to_num(0.0)
        if not bool(times.any()):  # images: not worth a map
            return torch.zeros(1, dtype=torch.float64).expand(*self.queries.shape[:2], self.keys.shape[1])
        return (self.queries[:, :, None, 0] - self.keys[:, None, :, 0]).abs().nan_to_num_(0.0)

    def uniform(self, *, renormalised: bool) -> tuple[float | None, float | None]:
        """Gives the mean distance, in pixels and frames, if every query attends alike to all keys that it may attend to.

        Args:
            renormalised: over the placed keys alone; else keys without a place take their share and add nothing.
        """
        if renormalised not in self._uniform:
            among = self.keys_allowed
            if renormalised:
                placed = self.placed_keys[:, None].expand(-1, self.queries.shape[1], -1)
                among = (placed if self.allowed is None else placed & self.allowed).sum(-1)
            found = []
            for distance in (self._distance_px, self._distance_frames):
                open_ = distance if self.allowed is None else distance.where(self.allowed, 0.0)
                found.append(float((open_.sum(-1) / among.clamp(min=1))[self.placed_queries].mean()))
            self._uniform[renormalised] = (found[0], found[1])
        px, frames = self._uniform[renormalised]
        return px if self.has_space else None, frames if self.has_time else None

    @cached_property
    def least_px(self) -> float:
        """The mean distance of a query to its nearest key: above 0 where keys are pooled."""
        open_ = self.placed_keys[:, None] if self.allowed is None else self.placed_keys[:, None] & self.allowed
        nearest = self._distance_px.masked_fill(~open_, torch.inf).amin(-1)
        return float(nearest[self.placed_queries].mean())

    @cached_property
    def most_px(self) -> float:
        """The mean distance of a query to its farthest key: no attention can be further on average."""
        open_ = self.placed_keys[:, None] if self.allowed is None else self.placed_keys[:, None] & self.allowed
        return float(self._distance_px.masked_fill(~open_, 0.0).amax(-1)[self.placed_queries].mean())

    def same_as(self, other: Geometry) -> bool:
        """Tells whether another geometry is this one."""

        def equal(ours: Tensor | None, theirs: Tensor | None) -> bool:
            if ours is None or theirs is None:
                return ours is theirs
            return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0.0, atol=0.0, equal_nan=True)

        tensors = ("queries", "keys", "query_regions", "key_regions")
        plain = ("grid", "key_grid", "pitch", "layout", "unchained", "embeds", "part")
        return (
            all(getattr(self, name) == getattr(other, name) for name in plain)
            and all(equal(getattr(self, name), getattr(other, name)) for name in tensors)
            and (self.chain is None) == (other.chain is None)
            and (self.chain is None or other.chain is None or self.chain.same_as(other.chain))
        )

    def distances(self, device: torch.device) -> Distances:
        """Gives the distances on a device, computed once; groups that are alike share them."""
        if device not in self._on_device:
            self._on_device[device] = Distances.of(self, device)
        return self._on_device[device]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Distances:
    """What a statistic needs of a geometry, in float32 on the model's device, once for each kind of group.

    Attributes:
        px: (kinds, queries, keys), 0 where a token has no place; None without space.
        frames: likewise.
        placed: (kinds, keys), 1.0 or 0.0; None where all keys have a place.
        first_placed: the first placed key, where just a beginning of the keys has no place; else None.
        kind: (G,), the kind of each group.
    """

    px: Tensor | None
    frames: Tensor | None
    placed: Tensor | None
    first_placed: int | None
    kind: Tensor

    @classmethod
    def of(cls, geometry: Geometry, device: torch.device) -> Distances:
        """Computes the distances of a geometry."""
        px, frames = geometry._distance_px, geometry._distance_frames
        parts = [px, frames, geometry.placed_keys[:, None].expand_as(px).double()]
        if geometry.groups > 1:
            # Windows are alike but for those that a shift tears apart; rounding must not make them differ.
            whole = torch.stack(parts, dim=1).flatten(1).mul(2**20).round_()
            _, kind = torch.unique(whole, dim=0, return_inverse=True)
        else:
            kind = torch.zeros(1, dtype=torch.long)
        first = torch.stack([(kind == one).nonzero()[0, 0] for one in range(int(kind.max()) + 1)])
        placed = geometry.placed_keys[first]
        prefix = int((~placed).sum(-1)[0])
        leads = bool((placed == (torch.arange(placed.shape[1]) >= prefix)).all())

        def there(found: Tensor) -> Tensor:
            return found[first].float().to(device).contiguous()

        return cls(
            px=there(px) if geometry.has_space else None,
            frames=there(frames) if geometry.has_time else None,
            placed=None if bool(placed.all()) else placed.float().to(device),
            first_placed=prefix if leads and prefix else None,
            kind=kind.to(device),
        )


def centres(count: int, extent: float) -> Axis:
    """Gives the centres of so many tokens that share an axis of that extent out evenly."""
    return tuple((number + 0.5) * extent / count for number in range(count))


def pooled(axis: Axis, count: int, kernel: int, stride: int, padding: int) -> Axis:
    """Gives the centres of what a kernel that slides along an axis of tokens makes of them.

    The first stands, in tokens, at (kernel - 1) / 2 - padding, each next a stride further. With kernel = stride that is the mean
    of the tokens covered, with a kernel of 3 and a padding of 1 it is token 0, s, 2 s.

    Args:
        axis: the tokens' own centres, evenly apart.
        count: how many there are after pooling.
        kernel: in tokens.
        stride: in tokens.
        padding: in tokens.
    """
    step = axis[1] - axis[0] if len(axis) > 1 else 0.0
    return tuple(axis[0] + step * (stride * number + (kernel - 1) / 2 - padding) for number in range(count))


def binned(axis: Axis, count: int) -> Axis:
    """Gives the centres of the bins of adaptive pooling: each from floor(i n / count) to ceil((i + 1) n / count)."""
    n = len(axis)
    bins = [axis[number * n // count : -(-(number + 1) * n // count)] for number in range(count)]
    return tuple(sum(one) / len(one) for one in bins)


def places(rows: Axis, columns: Axis, frames: Axis = (0.0,), *, prefix: int = 0) -> Tensor:
    """Gives (1, prefix + frames * rows * columns, 3): tokens in raster order, frame by frame, after those without a place."""
    axes = torch.meshgrid(*(torch.tensor(axis, dtype=torch.float64) for axis in (frames, rows, columns)), indexing="ij")
    raster = torch.stack(axes, dim=-1).flatten(0, 2)
    return torch.cat((torch.full((prefix, 3), torch.nan, dtype=torch.float64), raster))[None]


def chained(name: str, tokens: int, grid: tuple[int, int, int], named: tuple[str, ...] = ()) -> Chain:
    """Gives the chain of a call in which all tokens of a sequence attend to all."""
    every = torch.arange(tokens)[None]
    return Chain(name=name, length=tokens, queries=every, keys=every, grid=grid, named=named)


def raster(
    grid: Sequence[int],
    extents: Sequence[float],
    *,
    prefix: int = 0,
    name: str = "tokens",
    named: tuple[str, ...] = (),
    chain: bool = True,
    unchained: str = "",
) -> Geometry:
    """Gives the geometry of tokens that all attend to all.

    Args:
        grid: rows and columns, or frames, rows and columns.
        extents: of the input, in pixels, or frames and pixels.
        prefix: tokens without a place, which come first.
        name: of their sequence.
        named: what a classifier may read: names of the first tokens.
        chain: whether maps of layers can be multiplied.
        unchained: why not.
    """
    t, h, w = (1, *grid) if len(grid) == 2 else grid
    length, height, width = (1.0, *extents) if len(extents) == 2 else extents
    tokens = places(centres(h, height), centres(w, width), centres(t, length), prefix=prefix)
    return Geometry(
        queries=tokens,
        keys=tokens,
        grid=(t, h, w),
        key_grid=(t, h, w),
        pitch=(length / t, height / h, width / w),
        chain=chained(name, tokens.shape[1], (t, h, w), named) if chain else None,
        unchained=unchained,
    )
