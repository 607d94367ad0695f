"""Cosine similarity of a model's position embeddings, each with all others.

Source: ViT (arXiv 2010.11929), Fig. 7, centre, and Fig. 10: tile (r, c) shows how similar the embedding of the patch in row r and
column c is to those of all patches.

Shapes: t h w positions in time, rows and columns (1 where a table has none of them), C channels of an embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor, nn
from torch.nn import functional

from vitbench.drawing.pictures import GREY, SMALL, mosaic, plain, wrapped
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import Axis, PositionTile
from vitbench.records import Column, Table
from vitbench.units import size

Grid = tuple[int, int, int]

_MOST_TILES = 40  # a side; of larger tables every second or third row and column has a tile
_TILE_PX = 24
_DPI = 200
_PANELS_A_ROW = 4
_DISTANCES = (1, 2, 4)
_ALWAYS = ("receptive-field", "feature-maps")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimilarityMap:
    """All cosines of one table along one axis.

    Attributes:
        table, version, kernel, axis, origin, prefix_rows: as in a `PositionTile`.
        extents: rows and columns of a tile; in time 1 and frames.
        step: a tile is of each so-manyth row and column.
        cosines: (tiles, positions).
    """

    table: str
    version: str
    kernel: str
    axis: Axis
    origin: str
    prefix_rows: int
    extents: tuple[int, int]
    step: int = 1
    cosines: np.ndarray[Any, Any]

    @property
    def places(self) -> tuple[list[int], list[int]]:
        """The rows and the columns that have tiles, from 1; in time none, and all frames."""
        height, width = self.extents
        rows = [] if self.axis == "time" else list(range(1, height + 1, self.step))
        return rows, list(range(1, width + 1, self.step))

    @property
    def caption(self) -> str:
        """Which table it is, of how many positions."""
        where = f"in {self.axis}" if self.table == "space and time" else ""
        name = ", ".join(part for part in (self.version, self.table, where) if part)
        extents = self.extents if self.axis == "space" else self.extents[1:]
        return f"{name}: {size(extents)} positions, " + (self.kernel or self.origin)

    def tiles(self) -> Iterator[PositionTile]:
        """Gives the rows of the file."""
        rows, columns = self.places
        where: Iterable[dict[str, int]] = (
            [{"patch_row": row, "patch_column": place} for row in rows for place in columns]
            if self.axis == "space"
            else [{"frame": frame} for frame in columns]
        )
        for place, cosines in zip(where, self.cosines, strict=True):
            yield PositionTile(
                table=self.table,
                version=self.version,
                kernel=self.kernel,
                axis=self.axis,
                origin=self.origin,
                prefix_rows=self.prefix_rows,
                tile_height=self.extents[0],
                tile_width=self.extents[1],
                values=tuple(cosines.tolist()),
                **place,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionSimilarity:
    """The cosines of all tables of a model, and how its tables were resampled."""

    maps: tuple[SimilarityMap, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[PositionTile, ...]:
        """The rows of the file: a tile each."""
        return tuple(tile for found in self.maps for tile in found.tiles())


@dataclass(frozen=True, slots=True, kw_only=True)
class _PositionTable:
    """A table: its name, its entries (t, h, w, C), the rows before them, and whether it is learnt."""

    name: str
    entries: Tensor
    prefix_rows: int = 0
    learnt: bool = True

    @property
    def grid(self) -> Grid:
        t, h, w, _ = self.entries.shape
        return t, h, w

    @property
    def grid_text(self) -> str:
        t, h, w = self.grid
        return size((t,) if h * w == 1 else (h, w) if t == 1 else (t, h, w))


def analyze(model: nn.Module, *, resized: nn.Module | None = None) -> PositionSimilarity:
    """Gives the cosine similarity of each entry of a model's position tables to all others.

    Args:
        model: at its own input size, on any device.
        resized: the model with the same weights at another size: its tables are shown beside the first, and the kernel by which
            they were resampled is found out and named.

    Raises:
        NotDefined: the model has no table of positions.
        BadInput: the two models have different tables.
    """
    before = _tables(model)
    after = [] if resized is None else _tables(resized)
    if after and [table.name for table in before] != [table.name for table in after]:
        raise BadInput("The resized model has other tables of positions than the first: give one model at two sizes.")
    notes: list[str] = []
    maps: list[SimilarityMap] = []
    for number, table in enumerate(before):
        maps += _maps(table, notes, version="before" if after else "")
        if after:
            kernel = _kernel(table, after[number])
            maps += _maps(after[number], notes, version="after", kernel=kernel)
            notes.append(
                f"The table {table.name}, {table.grid_text} positions before, {after[number].grid_text} after: {kernel}."
            )
    return PositionSimilarity(maps=tuple(maps), notes=tuple(notes))


def similarity(embeddings: Tensor, to: Tensor | None = None) -> Tensor:
    """Gives the cosine of each pair of embeddings: one product, no mean taken off.

    Args:
        embeddings: (..., m, C).
        to: (..., n, C); by default the same.

    Returns:
        (..., m, n); NaN where an embedding is zero, which has no direction.
    """
    first, second = (_directions(found) for found in (embeddings, embeddings if to is None else to))
    cosines: Tensor = (first @ second.mT).clamp(-1, 1)
    return cosines


def _directions(embeddings: Tensor) -> Tensor:
    wide = embeddings.float()
    directions: Tensor = wide / wide.norm(dim=-1, keepdim=True)
    return directions


def _maps(table: _PositionTable, notes: list[str], *, version: str = "", kernel: str = "") -> Iterator[SimilarityMap]:
    """Gives a table's cosines in space, then those in time."""
    t, h, w = table.grid
    what: dict[str, Any] = {
        "table": table.name,
        "version": version,
        "kernel": kernel,
        "origin": "learnt" if table.learnt else "fixed",
        "prefix_rows": table.prefix_rows,
    }
    zero = int((table.entries == 0).all(dim=-1).sum())
    if zero:
        notes.append(f"{zero} of {t * h * w} entries of the table {table.name} are zero, and similar to nothing.")
    if h * w > 1:
        step = -(-max(h, w) // _MOST_TILES)
        if step > 1:
            notes.append(
                f"The table {table.name} has {h}x{w} positions; tiles are of every {'2nd' if step == 2 else f'{step}th'} "
                "row and column."
            )
        chosen = table.entries[:, ::step, ::step]
        cosines = similarity(chosen.flatten(1, 2), table.entries.flatten(1, 2)).mean(dim=0)
        yield SimilarityMap(axis="space", extents=(h, w), step=step, cosines=cosines.cpu().numpy(), **what)
    if t > 1:
        cosines = similarity(table.entries.flatten(1, 2).transpose(0, 1)).mean(dim=0)
        yield SimilarityMap(axis="time", extents=(1, t), cosines=cosines.cpu().numpy(), **what)


_KERNELS: Mapping[str, Mapping[str, Any]] = {
    "bicubic with antialiasing": {"mode": "bicubic", "antialias": True},
    "bicubic": {"mode": "bicubic"},
    "linear": {"mode": "bilinear"},
    "linear with antialiasing": {"mode": "bilinear", "antialias": True},
    "linear, corners aligned": {"mode": "bilinear", "align_corners": True},
    "bicubic, corners aligned": {"mode": "bicubic", "align_corners": True},
    "nearest entry": {"mode": "nearest"},
}


def resampled(entries: Tensor, grid: Grid, kernel: str) -> Tensor:
    """Gives a table on another grid, (t, h, w, C) -> (t', h', w', C).

    Args:
        entries: the table.
        grid: t', h', w'.
        kernel: a key of `_KERNELS`; all are products of one kernel an axis.
    """
    found = entries
    for axis, extent in enumerate(grid):
        own = entries.shape[axis]
        if extent == own:
            continue
        # What becomes of each entry by itself is the matrix of the kernel. An image of one column would do, but torch 2.15 gets
        # that wrong with antialiasing.
        alone = torch.eye(own, dtype=entries.dtype, device=entries.device)[None, None]
        matrix = functional.interpolate(alone, (extent, own), **_KERNELS[kernel])[0, 0]
        found = torch.tensordot(found, matrix, dims=([axis], [1])).movedim(-1, axis)
    return found


def _kernel(before: _PositionTable, after: _PositionTable) -> str:
    """Says how a table became another: by the kernel that really gives it."""
    old, new = before.entries.cpu().float(), after.entries.cpu().float()
    if old.shape[-1] != new.shape[-1]:
        raise BadInput("The resized model has wider or narrower tables than the first: give one model at two sizes.")
    if before.grid == after.grid:
        return "not resampled" if torch.equal(old, new) else "of the same grid, but with other weights"
    rounding = max(torch.finfo(after.entries.dtype).eps * 4, 1e-4) * float(new.abs().max())
    for kernel in _KERNELS:
        if float((resampled(old, after.grid, kernel) - new).abs().max()) <= rounding:
            return f"resampled, {kernel}"
    if not after.learnt:
        return "computed anew"
    return "not the first one resampled by any kernel known here, so perhaps of other weights"


def _tables(model: nn.Module) -> list[_PositionTable]:
    for kind in type(model).__mro__:
        adapter = _ADAPTERS.get(f"{kind.__module__}.{kind.__qualname__}")
        if adapter is not None:
            found = adapter(model)
            break
    else:
        found = _plain(model)
    tables = [table for table in found if table is not None]
    if not tables:
        raise _refusal(model)
    return tables


def _flat(model: nn.Module, table: Tensor | None, grid: Iterable[int], name: str = "space") -> _PositionTable | None:
    """Reads a table (1, prefix + t h w, C); its prefix is what it has more rows than the grid, whatever tokens the model has."""
    if table is None:
        return None
    extents: Any = (1, 1, *grid)[-3:]
    prefix = table.shape[1] - math.prod(extents)
    if prefix < 0:
        raise NotDefined(
            f"its table of {table.shape[1]} rows is smaller than its grid of {size(extents)} tokens", instead=_ALWAYS
        )
    entries = table.detach()[0, prefix:].unflatten(0, extents)
    return _PositionTable(name=name, entries=entries, prefix_rows=prefix, learnt=_is_learnt(model, table))


def _map(model: nn.Module, table: Tensor | None, *, channels: int, name: str = "space") -> _PositionTable | None:
    """Reads a table that is a map itself, (1, C, h, w) or (1, h, w, C): channels is the place of C."""
    if table is None:
        return None
    entries = table.detach().movedim(channels, -1)
    return _PositionTable(name=name, entries=entries, learnt=_is_learnt(model, table))


def _is_learnt(model: nn.Module, table: Tensor) -> bool:
    """Says whether a table is trained: sines and cosines are not, nor what stands still while the rest of the model trains."""
    even, odd = table.detach().flatten(0, -2)[:, ::2], table.detach().flatten(0, -2)[:, 1::2]
    if even.shape == odd.shape and bool(((even.square() + odd.square() - 1).abs() < 1e-3).all()):
        return False
    return table.requires_grad or not any(parameter.requires_grad for parameter in model.parameters())


def _plain(model: Any) -> list[_PositionTable | None]:
    """Reads what most have: a table in `pos_embed`, and the grid as the patch embedding states it."""
    table, embedding = getattr(model, "pos_embed", None), getattr(model, "patch_embed", None)
    grid = getattr(embedding, "grid_size", None)
    if not isinstance(table, Tensor) or not isinstance(grid, (tuple, list)):
        return []
    if table.ndim == 4:
        return [_map(model, table, channels=-1)] if tuple(table.shape[1:3]) == tuple(grid) else []
    return [_flat(model, table, grid)]


def _pyramid(model: Any) -> list[_PositionTable | None]:
    return [
        _flat(model, stage.pos_embed, stage.grid_size, f"stage {number}")
        for number, stage in enumerate(model.stages, 1)
    ]


def _vivit(model: Any) -> list[_PositionTable | None]:
    encoder, grid = model.encoder, model.patch_embed.grid_size
    if hasattr(encoder, "pos_embed"):
        return [_flat(model, encoder.pos_embed, grid, "space and time")]
    return [
        _flat(model, encoder.spatial.pos_embed, grid[1:]),
        _flat(model, getattr(encoder.temporal, "pos_embed", None), (grid[0], 1, 1), "time"),
    ]


def _timesformer(model: Any) -> list[_PositionTable | None]:
    frames = getattr(model, "time_embed", None)
    space = _flat(model, model.pos_embed, model.patch_embed.grid_size)
    return [space, None if frames is None else _flat(model, frames, (frames.shape[1], 1, 1), "time")]


def _mvit(model: Any) -> list[_PositionTable | None]:
    positions = model.positions
    if isinstance(positions, nn.Identity):
        return []
    return [
        _flat(model, positions.spatial, model.grid_size[1:]),
        _flat(model, positions.temporal, (model.grid_size[0], 1, 1), "time"),
    ]


def _hiera(model: Any) -> list[_PositionTable | None]:
    grid = model.tokens_spatial_shape
    if model.pos_embed is None:
        space = _flat(model, model.pos_embed_spatial, grid[1:])
        return [space, _flat(model, model.pos_embed_temporal, (grid[0], 1, 1), "time")]
    if model.pos_embed_win is None:
        return [_flat(model, model.pos_embed, grid)]
    return [
        _map(model, model.pos_embed, channels=1, name="image"),
        _map(model, model.pos_embed_win, channels=1, name="window"),
    ]


def _naflex(model: Any) -> list[_PositionTable | None]:
    embeds = model.embeds
    if getattr(embeds, "pos_embed", None) is not None:
        return [_map(model, embeds.pos_embed, channels=-1)]
    if getattr(embeds, "pos_embed_y", None) is None:
        return []
    summed = embeds.pos_embed_y[:, :, None] + embeds.pos_embed_x[:, None]
    return [_map(model, summed, channels=-1)]


def _nest(model: Any) -> list[_PositionTable | None]:
    found: list[_PositionTable | None] = []
    for number, level in enumerate(model.levels, 1):
        _, blocks, _, _ = level.pos_embed.shape
        side = math.isqrt(blocks)  # NesT's blocks are square, and as many a row as a column
        image = level.pos_embed.unflatten(1, (side, side)).unflatten(3, (level.block_size, level.block_size))
        image = image.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        found.append(_map(model, image, channels=-1, name=f"level {number}"))
    return found


def _crossvit(model: Any) -> list[_PositionTable | None]:
    tables = []
    for number, embedding in enumerate(model.patch_embed):
        grid = [extent // patch for extent, patch in zip(embedding.img_size, embedding.patch_size, strict=True)]
        name = f"patches of {size(tuple(embedding.patch_size))}"
        tables.append(_flat(model, getattr(model, f"pos_embed_{number}"), grid, name))
    return tables


_ADAPTERS: Mapping[str, Callable[[Any], list[_PositionTable | None]]] = {
    "timm.models.crossvit.CrossVit": _crossvit,
    "timm.models.hiera.Hiera": _hiera,
    "timm.models.hieradet_sam2.HieraDet": lambda model: [
        _map(model, model.pos_embed, channels=1, name="image"),
        _map(model, model.pos_embed_window, channels=1, name="window"),
    ],
    "timm.models.naflexvit.NaFlexVit": _naflex,
    "timm.models.nest.Nest": _nest,
    "timm.models.pit.PoolingVisionTransformer": lambda model: [_map(model, model.pos_embed, channels=1)],
    "timm.models.tnt.TNT": lambda model: [
        _flat(model, model.patch_pos, model.pixel_embed.grid_size, "patches"),
        _map(model, model.pixel_pos, channels=1, name="pixels in a patch"),
    ],
    "timm.models.visformer.Visformer": lambda model: [
        _map(model, getattr(model, f"pos_embed{stage}"), channels=1, name=f"stage {stage}") for stage in (1, 2, 3)
    ],
    "timm.models.volo.VOLO": lambda model: [_map(model, model.pos_embed, channels=-1)],
    "vitbench.models.compact.CompactTransformer": lambda model: [
        _flat(model, model.classifier.positional_emb, model.grid_size)
    ],
    "vitbench.models.mvit.MViT": _mvit,
    "vitbench.models.pvt.PyramidVisionTransformer": _pyramid,
    "vitbench.models.t2t_vit.T2TViT": lambda model: [_flat(model, model.pos_embed, model.grid_size)],
    "vitbench.models.timesformer.TimeSformer": _timesformer,
    "vitbench.models.vivit.ViViT": _vivit,
}
"""Where a model keeps its tables and states their grids, by its class; what is not here is read by `_plain`."""


def _refusal(model: nn.Module) -> NotDefined:
    """Gives the reason why a model has no table to show."""
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    kinds = {type(module).__name__ for module in model.modules()}

    def any_name(pattern: str) -> list[str]:
        return [name for name in names if re.search(pattern, name)]

    if any(re.search(r"Rotary|Rope", kind) for kind in kinds):
        return NotDefined(
            "its positions are rotary: they turn queries and keys, there is no table", instead=("attn-distance",)
        )
    if any_name(r"relative_position_bias_table$|cpb_mlp\.|rel_pos\.mlp\.|meta_mlp\.|attention_biases$"):
        return NotDefined(
            "its positions are relative: biases of its attention, not a table that is added to tokens",
            instead=("position-bias", "attn-distance"),
        )
    if any_name(r"rel_pos_[hwt]$|(height|width)_rel$"):
        return NotDefined(
            "its positions are relative: vectors that are multiplied with queries, not a table that is added to tokens",
            instead=("attn-distance",),
        )
    if "PositionalEncodingFourier" in kinds:
        return NotDefined("its positions are computed from coordinates, there is no table", instead=_ALWAYS)
    if unknown := any_name(r"pos(ition(al)?)?_?(emb|table)[^.]*$"):
        return NotDefined(
            f"{type(model).__name__} keeps its positions in {', '.join(unknown[:3])}, of which it does not state the grid in a "
            "way that is known here",
            instead=_ALWAYS,
        )
    if any(isinstance(module, (nn.Conv2d, nn.Conv3d)) and any(_padding(module)) for module in model.modules()):
        return NotDefined(
            "it has no table of positions: what it knows of them comes from convolutions with padding", instead=_ALWAYS
        )
    return NotDefined("it has no table of positions", instead=_ALWAYS)


def _padding(module: nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    return (1,) if module.padding == "same" else tuple(int(one) for one in module.padding)


def draw(findings: Mapping[str, PositionSimilarity]) -> Figure:
    """Draws a tile for each position, where the position is, and a square of frames for each table in time.

    Args:
        findings: by title. Models with several tables have a row of panels of their own.
    """
    of_models = [[(title, found) for found in finding.maps] for title, finding in findings.items()]
    if all(len(panels) == 1 for panels in of_models):
        of_models = [[panel for panels in of_models for panel in panels]]
    lines = [
        panels[start : start + _PANELS_A_ROW] for panels in of_models for start in range(0, len(panels), _PANELS_A_ROW)
    ]
    columns = max(len(line) for line in lines)
    widths = [max(_side_in(line[place][1]) for line in lines if place < len(line)) for place in range(columns)]
    heights = [max(_side_in(found) for _, found in line) + 0.85 for line in lines]
    figure = Figure(figsize=(sum(widths) + 0.5 * columns + 0.8, sum(heights) + 0.25), layout="constrained")
    figure.suptitle("Position embedding similarity", fontsize=12)
    axes = figure.subplots(
        len(lines), columns, squeeze=False, gridspec_kw={"width_ratios": widths, "height_ratios": heights}
    )
    for line, row in zip(lines, axes, strict=True):
        for ax in row[len(line) :]:
            ax.set_axis_off()
        for ax, (title, found) in zip(row, line, strict=False):
            image = _panel(ax, title, found)
    bar = figure.colorbar(
        image, ax=axes, shrink=min(0.8, 4 / sum(heights)), aspect=24, ticks=[-1, 1], panchor=False, anchor=(0, 0.9)
    )
    bar.set_label("Cosine similarity", labelpad=-4)
    bar.outline.set_visible(False)
    return figure


def _enlarged(found: SimilarityMap) -> tuple[int, int]:
    """Gives by how much a tile is enlarged, so that the gaps are narrow beside it, and the gap in pixels."""
    times = max(1, round(_TILE_PX / max(found.extents)))
    return times, max(1, round(0.06 * times * max(found.extents)))


def _side_in(found: SimilarityMap) -> float:
    """Gives how large a panel is drawn: with a dot of the file for each pixel of the tiles, within bounds."""
    if found.axis == "time":
        return 2.8
    times, gap = _enlarged(found)
    pixels = max(len(tiles) * (times * extent + gap) for tiles, extent in zip(found.places, found.extents, strict=True))
    return min(7.4, max(3.4, 1.1 * pixels / _DPI))


def _picture(found: SimilarityMap) -> np.ndarray[Any, Any]:
    """Gives the tiles as one image; in time, frames x frames."""
    if found.axis == "time":
        return found.cosines
    times, gap = _enlarged(found)
    grown = [np.kron(cosines.reshape(found.extents), np.ones((times, times))) for cosines in found.cosines]
    return mosaic(grown, len(found.places[1]), gap=gap)


def _panel(ax: Axes, title: str, found: SimilarityMap) -> AxesImage:
    picture, gap = _picture(found), _enlarged(found)[1] if found.axis == "space" else 0
    # Where there are more pixels than dots, they are averaged.
    fine = max(picture.shape) > 0.9 * _side_in(found) * _DPI
    image = ax.imshow(picture, cmap=_colors(), vmin=-1, vmax=1, interpolation="antialiased" if fine else "nearest")
    ax.set_anchor("NW")
    if np.isnan(picture).all():
        ax.text(0.5, 0.5, "all entries are zero", transform=ax.transAxes, ha="center", color=GREY, fontsize=SMALL)
    rows, columns = found.places
    names = ("Input patch column", "Input patch row") if rows else ("Position in time", "Position in time")
    for axis, places, extent, name in zip(
        (ax.xaxis, ax.yaxis), (columns, rows or columns), picture.shape[::-1], names, strict=True
    ):
        step = (extent + gap) / len(places)
        # As many labels as can be read: 5, 10 and so on; where not every row has a tile, 1 and what follows.
        every = next(every for every in (1, 2, 5, 10) if len(places) <= 16 * every)
        shown = [number for number in range(len(places)) if (number + (found.step == 1)) % every == 0]
        axis.set_ticks(
            [number * step + (step - gap - 1) / 2 for number in shown], [str(places[number]) for number in shown]
        )
        axis.set_label_text(name)
    ax.tick_params(length=0, labelsize=SMALL)
    ax.spines[:].set_visible(False)
    ax.set_title(wrapped(plain(title), 46), loc="left", fontsize=10, fontweight="bold", pad=16, parse_math=False)
    ax.annotate(
        plain(found.caption),
        (0, 1),
        (0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=SMALL,
        color=GREY,
        parse_math=False,
    )
    return image


def _colors() -> Colormap:
    # The gaps, and positions without a direction, are white.
    return colormaps["viridis"].with_extremes(bad="white")


def table(findings: Mapping[str, PositionSimilarity]) -> Table:
    """Gives a line a table: the mean cosine of positions so many patches or frames apart, and farther than half of the grid."""
    rows = [
        {"model": title, "table": found.caption, **_summary(found)}
        for title, finding in findings.items()
        for found in finding.maps
    ]
    return Table(
        rows=rows,
        columns=(
            Column(heading="Model", text=lambda row: row["model"]),
            Column(heading="Table", text=lambda row: row["table"], folds=True),
            *(_distance_column(f"{distance} apart", f"cosine_{distance}") for distance in _DISTANCES),
            _distance_column("Far apart", "cosine_far"),
        ),
        notes=[
            "Cosine similarity, mean over all positions exactly so many patches or frames apart; far: more than half of the "
            "longer side.",
            *(
                f"{title}: {note}" if len(findings) > 1 else note
                for title, finding in findings.items()
                for note in finding.notes
            ),
        ],
    )


def _summary(found: SimilarityMap) -> dict[str, float | None]:
    height, width = found.extents
    rows, columns = found.places
    places = np.stack(np.meshgrid(rows or [1], columns, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1).reshape(1, -1, 2) + 1
    distances = np.hypot(*np.moveaxis(places - grid, -1, 0))
    cosines = {f"cosine_{distance}": found.cosines[distances == distance] for distance in _DISTANCES}
    cosines["cosine_far"] = found.cosines[distances > max(height, width) / 2]
    return {name: float(values.mean(dtype=np.float64)) if values.size else None for name, values in cosines.items()}


def _distance_column(heading: str, key: str) -> Column:
    return Column(heading=heading, text=lambda row: "" if row[key] is None else f"{row[key]:z.2f}", numeric=True)
