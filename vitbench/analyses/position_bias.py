"""Relative position bias: what attention adds to its products for each offset from query to key, and how local that alone is.

Source: Swin (arXiv 2103.14030), equation 4; Swin V2 (2111.09883), equations 3 and 4; CoAtNet (2106.04803), equation 3, y_pre;
BEiT (2106.08254) and LeViT (2104.01136), attention bias.

Shapes: h heads, q queries and k keys of a window, M x L the window's rows and columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from timm.layers import RelPosBias, RelPosBiasTf, RelPosMlp
from timm.models.beit import Attention as BeitAttention
from timm.models.beit import RelativePositionBias
from timm.models.maxxvit import TransformerBlock2d
from timm.models.swin_transformer import WindowAttention
from timm.models.swin_transformer_v2 import WindowAttention as WindowAttentionV2
from timm.models.swin_transformer_v2_cr import WindowMultiHeadAttention
from torch import Tensor, nn

from vitbench.drawing.pictures import COLORS, GREY, SMALL, mosaic, plain, wrapped
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import HeadBias, Scope
from vitbench.inside.observing import judged
from vitbench.records import Column, Table

_TILE_IN = 0.42
_WIDEST_IN = 9.0
_DOTS_IN = 2.6
_BAR_IN = 0.45


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBias:
    """The biases of all layers that have one, layer by layer and head by head."""

    rows: tuple[HeadBias, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bias:
    """What a module adds to its attention: (h, q, k), the queries and keys being the tokens of a window, row by row."""

    values: Tensor
    window: tuple[int, int]


def analyze(model: nn.Module, *, input_size: tuple[int, int] | None = None) -> PositionBias:
    """Gives the bias of each head as a picture over offsets, and the mean distance of attention by the bias alone.

    Args:
        model: on any device.
        input_size: height and width of its images. Only needed for distances in pixels where a window spans the whole image and
            the model does not say how many pixels a token is wide.

    Raises:
        NotDefined: no layer adds a bias for offsets.
        BadInput: a bias is not finite.
    """
    notes: list[str] = []
    rows: list[HeadBias] = []
    layer = 0
    with judged(model):
        for path, module in model.named_modules():
            bias = _bias(path, module, notes)
            if bias is not None:
                rows += _heads(model, layer, path, bias, input_size)
                layer += 1
    if not rows:
        raise _refusal(model, notes)
    return PositionBias(rows=tuple(rows), notes=tuple(notes))


def mean_distance(weights: Tensor, window: tuple[int, int], pitch: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Gives the mean distance to the keys, weighted, over the queries of a window.

    Args:
        weights: (..., q, k), each row summing to 1; queries and keys are the window's tokens, row by row.
        window: M, L.
        pitch: height and width of a token.

    Returns:
        (...,), in the unit of the pitch.
    """
    offsets = _offsets(window).to(weights) * weights.new_tensor(pitch)
    distances: Tensor = (weights * offsets.norm(dim=-1)).sum(dim=-1)
    mean: Tensor = distances.mean(dim=-1)
    return mean


def _offsets(window: tuple[int, int]) -> Tensor:
    """Gives where each key lies from each query, (q, k, 2), in tokens."""
    places = torch.cartesian_prod(*(torch.arange(extent) for extent in window)).view(-1, 2)
    return places[None] - places[:, None]


def by_offset(bias: Tensor, window: tuple[int, int]) -> Tensor:
    """Lays a bias out by offset, (h, q, k) -> (h, 2 M - 1, 2 L - 1), the query in the middle.

    Raises:
        ValueError: pairs of the same offset have different biases.
    """
    height, width = window
    places = _offsets(window).to(bias.device) + torch.tensor((height - 1, width - 1), device=bias.device)
    number = (places[..., 0] * (2 * width - 1) + places[..., 1]).flatten()
    tile = bias.new_zeros(len(bias), (2 * height - 1) * (2 * width - 1))
    tile[:, number] = bias.flatten(1)
    if not torch.equal(tile[:, number], bias.flatten(1)):
        raise ValueError("The bias differs between pairs of tokens of the same offset.")
    picture: Tensor = tile.unflatten(1, (2 * height - 1, 2 * width - 1))
    return picture


def _heads(
    model: nn.Module, layer: int, path: str, bias: _Bias, input_size: tuple[int, int] | None
) -> Iterator[HeadBias]:
    if not bias.values.isfinite().all():
        raise BadInput(f"The bias of {path} is not finite.")
    values = bias.values.detach().cpu().double()
    scope, pitch = _where(model, path, bias.window, input_size)
    weights = values.softmax(dim=-1)
    uniform = torch.full_like(weights[0], 1 / weights.shape[-1])

    def distances(weights: Tensor, pitch: tuple[float, float] = (1.0, 1.0)) -> list[float]:
        found: list[float] = mean_distance(weights, bias.window, pitch).tolist()
        return found

    in_px = None if pitch is None else distances(weights, pitch)
    uniform_tokens, uniform_px = (
        distances(uniform[None])[0],
        None if pitch is None else distances(uniform[None], pitch)[0],
    )
    for head, (tile, tokens) in enumerate(zip(by_offset(values, bias.window), distances(weights), strict=True)):
        yield HeadBias(
            layer=layer,
            module=path,
            head=head,
            scope=scope,
            window_height=bias.window[0],
            window_width=bias.window[1],
            distance_tokens=tokens,
            uniform_tokens=uniform_tokens,
            distance_px=None if in_px is None else in_px[head],
            uniform_px=uniform_px,
            tile_height=tile.shape[0],
            tile_width=tile.shape[1],
            values=tuple(tile.flatten().tolist()),
        )


def _where(
    model: nn.Module, path: str, window: tuple[int, int], input_size: tuple[int, int] | None
) -> tuple[Scope, tuple[float, float] | None]:
    """Gives what a window is a part of, and the pixels from one of its tokens to the next, down and across, if they are known."""
    spanning = None if input_size is None else (input_size[0] / window[0], input_size[1] / window[1])
    if "attn_grid" in path.split("."):
        return "grid", spanning
    parts = path.split(".")
    ancestors = [model.get_submodule(".".join(parts[:length])) for length in range(len(parts))]
    reduction = _reduction(model, path)
    if any(isinstance(one, TransformerBlock2d) for one in ancestors):
        return "map", spanning if reduction is None else (reduction, reduction)
    if reduction is None:
        return "window", None
    covered = input_size is not None and all(
        extent * reduction >= side for extent, side in zip(window, input_size, strict=True)
    )
    return "map" if covered else "window", (reduction, reduction)


def _reduction(model: nn.Module, path: str) -> float | None:
    """Gives the pixels that a token is wide at a module, as timm's models state it of their stages or blocks."""
    stated = getattr(model, "feature_info", None)
    for stage in stated if isinstance(stated, list) else []:
        if f"{path}.".startswith(f"{stage['module']}."):
            return float(stage["reduction"])
    # A bias that all layers share stands outside of them; where all have tokens of one width, that is its own.
    widths = {stage["reduction"] for stage in stated} if isinstance(stated, list) else set()
    return float(widths.pop()) if len(widths) == 1 else None


def _bias(path: str, module: nn.Module, notes: list[str]) -> _Bias | None:
    """Gives the bias that a module adds to its attention, if it is one that does."""
    for kinds, adapter in _ADAPTERS:
        if isinstance(module, kinds):
            return adapter(module)
    biases, numbers = getattr(module, "attention_biases", None), getattr(module, "attention_bias_idxs", None)
    if not isinstance(biases, Tensor) or not isinstance(numbers, Tensor):
        return None
    # LeViT and those after it: a bias for each distance down and across, the same on either side.
    resolution = getattr(module, "resolution", None)
    if isinstance(resolution, int):
        resolution = (resolution, resolution)
    if numbers.shape[0] != numbers.shape[1]:
        notes.append(f"{path} is left out: its queries are fewer than its keys.")
        return None
    if resolution is None or resolution[0] * resolution[1] != numbers.shape[0]:
        notes.append(f"{path} is left out: it does not say how many rows and columns its tokens have.")
        return None
    return _Bias(values=biases[:, numbers], window=tuple(resolution))


def _swin(module: Any) -> _Bias:
    return _Bias(values=module._get_rel_pos_bias()[0], window=tuple(module.window_size))


def _swin_v2(module: Any) -> _Bias:
    """Source: Swin V2, equations 3 and 4; the official code bounds the MLP's output by 16 x sigmoid."""
    tokens = module.window_size[0] * module.window_size[1]
    table = module.cpb_mlp(module.relative_coords_table).view(-1, module.num_heads)
    values = 16 * table[module.relative_position_index.view(-1)].sigmoid()
    return _Bias(values=values.view(tokens, tokens, -1).permute(2, 0, 1), window=tuple(module.window_size))


def _swin_v2_cr(module: Any) -> _Bias:
    return _Bias(values=module._relative_positional_encodings()[0], window=tuple(module.window_size))


def _rel_pos(module: Any) -> _Bias:
    bias = module.get_bias()
    # (1, h, q, k), or (h, q, k) of MaxViT's in TensorFlow's layout; class tokens come first, and have no offset.
    bias = bias[0] if bias.ndim == 4 else bias
    prefix = getattr(module, "prefix_tokens", 0)
    return _Bias(values=bias[:, prefix:, prefix:], window=tuple(module.window_size))


def _beit(module: Any) -> _Bias | None:
    """BEiT's own three entries for its class token are left out: to it, from it, and with itself."""
    if module.relative_position_bias_table is None:
        return None
    return _Bias(values=module._get_rel_pos_bias()[0, :, 1:, 1:], window=tuple(module.window_size))


def _beit_shared(module: Any) -> _Bias:
    bias = module()
    return _Bias(values=(bias[0] if bias.ndim == 4 else bias)[:, 1:, 1:], window=tuple(module.window_size))


_ADAPTERS: Sequence[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Callable[[Any], _Bias | None]]] = (
    (WindowAttention, _swin),
    (WindowAttentionV2, _swin_v2),
    (WindowMultiHeadAttention, _swin_v2_cr),
    ((RelPosBias, RelPosBiasTf, RelPosMlp), _rel_pos),
    (BeitAttention, _beit),
    (RelativePositionBias, _beit_shared),
)


def _refusal(model: nn.Module, notes: Sequence[str]) -> NotDefined:
    """Gives the reason why a model has no bias to show."""
    if notes:
        return NotDefined(f"no layer has a bias that could be shown; {' '.join(notes).removesuffix('.')}")
    names = [name for name, _ in model.named_parameters()]
    if any(re.search(r"rel_pos_[hwt]$|(height|width)_rel$", name) for name in names):
        return NotDefined(
            "its relative positions are vectors that are multiplied with queries, so that there is no bias without an image",
            instead=("attn-distance",),
        )
    if any(re.search(r"Rotary|Rope", type(module).__name__) for module in model.modules()):
        return NotDefined(
            "its positions are rotary: they turn queries and keys, and nothing is added", instead=("attn-distance",)
        )
    return NotDefined(
        "no layer adds a bias for the offset between query and key to its attention",
        instead=("posemb-similarity", "attn-distance"),
    )


def draw(findings: Mapping[str, PositionBias]) -> Figure:
    """Draws a line of tiles a layer, one a head, and beside it the distance of each head by its bias alone.

    Args:
        findings: by title, one below the other.
    """
    models = [(title, _layers(finding)) for title, finding in findings.items()]
    most = max(len(heads) for _, layers in models for heads in layers)
    tile = min(_TILE_IN, _WIDEST_IN / most)
    width = max(2.6, tile * most)
    heights = [tile * len(layers) + 0.85 for _, layers in models]
    figure = Figure(figsize=(width + _DOTS_IN + 2.2, sum(heights) + 0.3 + _BAR_IN), layout="constrained")
    figure.suptitle("Relative position bias", fontsize=12)
    axes = figure.subplots(
        len(models) + 1,
        2,
        squeeze=False,
        gridspec_kw={"height_ratios": (*heights, _BAR_IN), "width_ratios": (width, _DOTS_IN)},
    )
    for (title, layers), (tiles, dots) in zip(models, axes, strict=False):
        _draw_tiles(tiles, title, layers, width / tile)
        _draw_distances(dots, layers)
        dots.set_ylim(tiles.get_ylim())
    for ax in axes[-1]:
        ax.set_axis_off()
    bar = figure.colorbar(
        ScalarMappable(Normalize(-1, 1), _colors()),
        cax=axes[-1, 0].inset_axes((0.005, 0.45, 2.4 / width, 0.35)),
        orientation="horizontal",
        ticks=[-1, 0, 1],
    )
    bar.ax.set_xticklabels(["\N{MINUS SIGN}limit", "0", "limit"], fontsize=SMALL)
    bar.set_label("bias less the head's mean; limit: largest magnitude in the layer", fontsize=SMALL, loc="left")
    bar.outline.set_visible(False)
    return figure


def _layers(finding: PositionBias) -> list[list[HeadBias]]:
    return [list(heads) for _, heads in groupby(finding.rows, key=lambda row: row.layer)]


def _draw_tiles(ax: Axes, title: str, layers: Sequence[Sequence[HeadBias]], columns: float) -> None:
    limits = []
    for number, heads in enumerate(layers):
        tiles = [np.reshape(head.values, (head.tile_height, head.tile_width)) for head in heads]
        tiles = [tile - tile.mean() for tile in tiles]
        limits.append(max(float(np.abs(tile).max()) for tile in tiles))
        strip = mosaic(tiles, len(tiles), gap=max(1, round(0.08 * max(tiles[0].shape))))
        ax.imshow(
            strip / (limits[-1] or 1.0),
            cmap=_colors(),
            vmin=-1,
            vmax=1,
            extent=(0, len(tiles) - 0.08, number + 0.46, number - 0.46),
            interpolation="nearest",
            aspect="auto",
        )
    ax.set_xlim(-0.1, columns)
    ax.set_ylim(len(layers) - 0.4, -0.6)
    ax.set_yticks(range(len(layers)), [plain(_short(heads[0].module)) for heads in layers], fontsize=7)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)
    most = max(len(heads) for heads in layers)
    every = next(every for every in (1, 2, 5, 10) if most <= 16 * every)
    ax.set_xticks([head + 0.46 for head in range(0, most, every)], [str(head) for head in range(0, most, every)])
    ax.tick_params(length=0, labelsize=7)
    ax.set_xlabel("Head", fontsize=9)
    ax.spines[:].set_visible(False)
    ax.set_title(wrapped(plain(title), 60), loc="left", fontsize=10, fontweight="bold", parse_math=False)
    for number, (heads, limit) in enumerate(zip(layers, limits, strict=True)):
        ax.annotate(
            f"\N{PLUS-MINUS SIGN}{limit:.2g}",
            (len(heads), number),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=6,
            color=GREY,
        )


def _draw_distances(ax: Axes, layers: Sequence[Sequence[HeadBias]]) -> None:
    farthest = 0.0
    in_px = all(head.distance_px is not None for heads in layers for head in heads)
    for number, heads in enumerate(layers):
        found = [(head.distance_px if in_px else None) or head.distance_tokens for head in heads]
        uniform = (heads[0].uniform_px if in_px else None) or heads[0].uniform_tokens
        dots = ax.plot(found, [number] * len(found), ".", color=COLORS[0], markersize=6, alpha=0.6, zorder=3)
        farthest = max(farthest, uniform, *found)
        lines = ax.plot([uniform], [number], "|", color=COLORS[1], markersize=10, markeredgewidth=1.8, zorder=2)
    ax.set_xlim(0, 1.08 * farthest)
    ax.set_xlabel(f"Mean distance by the bias alone ({'pixels' if in_px else 'tokens'})", fontsize=8)
    ax.set_yticks([])
    ax.tick_params(axis="x", labelsize=7)
    ax.grid(visible=True, axis="x", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.legend(
        [dots[0], lines[0]],
        ["a head", "no bias"],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        fontsize=7,
        handletextpad=0.2,
        borderpad=0,
    )


def _short(path: str) -> str:
    """Gives a path without what all such paths end in."""
    return re.sub(r"(\.attn|\.rel_pos)+$", "", path).replace(".blocks.", ".").replace(".attn.", ".")


def _colors() -> Any:
    return colormaps["RdBu_r"].with_extremes(bad="white")


def table(findings: Mapping[str, PositionBias]) -> Table:
    """Gives a line a layer: the most local and the least local head by the bias alone, and the distance without bias."""
    rows = [
        {
            "model": title,
            "layer": heads[0].layer,
            "module": heads[0].module,
            "scope": heads[0].scope,
            "window": f"{heads[0].window_height}x{heads[0].window_width}",
            "heads": len(heads),
            "least_tokens": min(head.distance_tokens for head in heads),
            "mean_tokens": sum(head.distance_tokens for head in heads) / len(heads),
            "most_tokens": max(head.distance_tokens for head in heads),
            "uniform_tokens": heads[0].uniform_tokens,
            "mean_px": None
            if heads[0].distance_px is None
            else sum(head.distance_px or 0.0 for head in heads) / len(heads),
            "uniform_px": heads[0].uniform_px,
        }
        for title, finding in findings.items()
        for heads in _layers(finding)
    ]
    several = [Column(heading="Model", text=lambda row: row["model"])] if len(findings) > 1 else []
    return Table(
        rows=rows,
        columns=(
            *several,
            Column(heading="Layer", text=lambda row: _short(row["module"])),
            Column(heading="Scope", text=lambda row: f"{row['window']} {row['scope']}"),
            Column(heading="Heads", text=lambda row: str(row["heads"]), numeric=True),
            *(
                Column(heading=heading, text=_two_places(key), numeric=True)
                for heading, key in (
                    ("Most local", "least_tokens"),
                    ("Mean", "mean_tokens"),
                    ("Least local", "most_tokens"),
                    ("No bias", "uniform_tokens"),
                    ("Mean, px", "mean_px"),
                    ("No bias, px", "uniform_px"),
                )
            ),
        ),
        notes=[
            "Mean distance from query to key if the bias alone decided, in tokens, then in pixels.",
            *(
                f"{title}: {note}" if len(findings) > 1 else note
                for title, finding in findings.items()
                for note in finding.notes
            ),
        ],
    )


def _two_places(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: "" if row[key] is None else f"{row[key]:.2f}"
