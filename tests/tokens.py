"""Where tokens lie, written out one by one, and models whose attention is known, for tests to hold analyses against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import nn

Point = tuple[float, float, float] | None
"""Frame, pixels down, pixels across; None is a token without a place."""

Group = tuple[list[Point], list[Point]]
"""Queries and keys that attend to each other."""


def grid(rows: int, columns: int, height: float, width: float, frames: Sequence[float] = (0.0,)) -> list[Point]:
    """Gives the tokens of a clip, which share its frames' height and width evenly."""
    return [
        (frame, (row + 0.5) * height / rows, (column + 0.5) * width / columns)
        for frame, row, column in product(frames, range(rows), range(columns))
    ]


def every(
    stride: int, rows: int, columns: int, height: float, width: float, frames: Sequence[float] = (0.0,)
) -> list[Point]:
    """Gives every so manyth token each way: where a kernel of an odd side with half of it as padding stands."""
    return [
        (frame, (row + 0.5) * height / rows, (column + 0.5) * width / columns)
        for frame, row, column in product(frames, range(0, rows, stride), range(0, columns, stride))
    ]


def merged(bins: Sequence[Sequence[int]], other_bins: Sequence[Sequence[int]], pitch: float) -> list[Point]:
    """Gives the middles of blocks of tokens: which rows, and which columns, each covers."""
    return [
        (
            0.0,
            sum((row + 0.5) * pitch for row in down) / len(down),
            sum((column + 0.5) * pitch for column in across) / len(across),
        )
        for down, across in product(bins, other_bins)
    ]


def squares(rows: int, columns: int, side: int, pitch: float) -> list[Point]:
    """Gives the middles of squares of tokens."""
    bins, other = ([range(first, first + side) for first in range(0, extent, side)] for extent in (rows, columns))
    return merged(bins, other, pitch)


def windows(
    rows: int,
    columns: int,
    height: float,
    width: float,
    window: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
) -> list[Group]:
    """Gives Swin's windows: the map is rolled up and left by the shift, padded below and right, and cut."""
    groups: list[Group] = []
    for top, left in product(range(0, rows, window[0]), range(0, columns, window[1])):
        members: list[Point] = []
        for i, j in product(range(top, top + window[0]), range(left, left + window[1])):
            if i < rows and j < columns:
                row, column = (i + shift[0]) % rows, (j + shift[1]) % columns
                members.append((0.0, (row + 0.5) * height / rows, (column + 0.5) * width / columns))
            else:
                members.append(None)
        groups.append((members, members))
    return groups


def dilated(rows: int, columns: int, height: float, width: float, side: int) -> list[Group]:
    """Gives MaxViT's grids: tokens as far apart as `side` of them reach over the map."""
    down, across = rows // side, columns // side
    groups: list[Group] = []
    for first, left in product(range(down), range(across)):
        members: list[Point] = [
            (0.0, (first + a * down + 0.5) * height / rows, (left + b * across + 0.5) * width / columns)
            for a, b in product(range(side), range(side))
        ]
        groups.append((members, members))
    return groups


def apart(one: Point, other: Point) -> tuple[float, float]:
    """Gives pixels and frames between two tokens that have a place."""
    assert one is not None
    assert other is not None
    return math.hypot(one[1] - other[1], one[2] - other[2]), abs(one[0] - other[0])


def uniform(rows: int, columns: int, pitch: float) -> float:
    """Gives the mean distance of all pairs of tokens of a grid: offsets, each as often as it occurs."""
    offsets = product(range(1 - rows, rows), range(1 - columns, columns))
    total = sum((rows - abs(a)) * (columns - abs(b)) * math.hypot(a, b) for a, b in offsets)
    return pitch * total / (rows * columns) ** 2


def alike(groups: Sequence[Group]) -> tuple[float, float, float, float]:
    """Gives the mean distance, in pixels and frames, of attention that is the same for all keys, renormalised and not."""
    found = []
    for queries, keys in groups:
        placed = [key for key in keys if key is not None]
        for query in queries:
            if query is not None:
                sums = [sum(distances) for distances in zip(*(apart(query, key) for key in placed), strict=True)]
                found.append([total / count for count in (len(placed), len(keys)) for total in sums])
    px, frames, paper_px, paper_frames = (sum(column) / len(found) for column in zip(*found, strict=True))
    return px, frames, paper_px, paper_frames


def shifted(tokens: int, window: int, shift: int, pitch: float) -> float:
    """Gives what `alike` does of Swin's windows on a square map, masked: the shift cuts those at the border, each way."""
    pieces = [window] * (tokens // window - (shift > 0)) + [window - shift, shift] * (shift > 0)
    total = sum(down * across * uniform(down, across, pitch) for down, across in product(pieces, repeat=2))
    return total / tokens**2


# Models whose attention is known.

_ATTENDING = (
    "qkv",
    ".q.",
    ".kv.",
    "query",
    "proj_q",
    "proj_k",
    "q_proj",
    "k_proj",
    "q_bias",
    "rel_pos",
    "relative_position_bias",
    "cpb_mlp",
    "in_proj",
)


def zeroed(model: nn.Module) -> nn.Module:
    """Makes all queries, keys and biases zero or alike, so that attention is the same everywhere that it may reach."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in _ATTENDING):
                parameter.zero_()
    return model.eval()


def stirred(model: nn.Module) -> nn.Module:
    """Draws weights so large that attention is far from uniform: else the order of tokens would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                spread = 1.5 / math.sqrt(parameter[0].numel())
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()
