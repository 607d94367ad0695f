"""Principal components of the weights that turn pixels into tokens, or into a first map.

Source: ViT (arXiv 2010.11929), Fig. 7, left: the first 28 components of the filters of ViT-L/32.

Shapes: D filters, C = 3 channels, t frames of a tubelet, p x q its rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitbench.drawing.pictures import GREY, SMALL, bare, mosaic, plain, wrapped
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import FilterTile
from vitbench.inside.observing import judged
from vitbench.records import Column, Table, columns
from vitbench.units import size

_INSTEAD = ("feature-maps", "receptive-field", "cka")
_PRODUCTS = (torch.conv2d, torch.conv3d, torch.nn.functional.linear)

_PANEL_WIDTH_IN = 4.2
_TEXTS_IN = 0.52  # above and below a panel, but for the further lines of its caption
_TILE_PX = 36
_PANELS_A_ROW = 3
_COLUMNS = 7  # of the paper's panel, 4 x 7


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFilters:
    """The components of a model's first layer, or layers where it looks at the image through several."""

    rows: tuple[FilterTile, ...]
    center: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer that sees pixels: its name, what it is, and its weights, (D, C, p, q) or (D, C, t, p, q)."""

    name: str
    kind: str
    weight: Tensor


def analyze(model: nn.Module, *, components: int = 28, center: bool = True) -> EmbeddingFilters:
    """Gives the principal components of the layer that sees the pixels; the samples are its filters.

    Args:
        model: on any device.
        components: how many; a layer that has fewer shows all it has.
        center: subtract the mean filter first, as principal components are defined. Without it the shares are of the sum of
            squares, and no rotation of the output channels changes the components.

    Raises:
        NotDefined: the first layer does not see red, green and blue, or all its filters are equal.
        BadInput: there are to be no components, or the weights are not finite.
    """
    if components < 1:
        raise BadInput(f"Give 1 component or more, not {components}.")
    rows: list[FilterTile] = []
    notes: list[str] = []
    with judged(model):
        found = list(_first_layers(model, notes))
    for layer in found:
        rows += _tiles(layer, components, center, notes)
    return EmbeddingFilters(rows=tuple(rows), center=center, notes=tuple(notes))


def principal_components(filters: Tensor, count: int, *, center: bool = True) -> tuple[Tensor, Tensor]:
    """Gives the leading right singular vectors of a matrix, by the eigenvectors of the smaller of its two Gram matrices.

    Args:
        filters: (D, n), a filter a row.
        count: how many; fewer are given where the rest have no variance.
        center: subtract the mean row.

    Returns:
        (count, n), rows of length 1 whose entry of largest magnitude is positive, and (count,), their shares of the variance;
        both float64 on the CPU.

    Raises:
        NotDefined: there is no variance at all.
    """
    matrix = filters.detach().cpu().double()
    scale = matrix.square().sum()
    if center:
        matrix = matrix - matrix.mean(dim=0)
    samples, n = matrix.shape
    gram = matrix.mT @ matrix if n <= samples else matrix @ matrix.mT
    total = gram.trace()
    # What is left of equal filters when their mean is taken off is rounding.
    if total <= scale * 1e-14:
        raise NotDefined("all filters of its first layer are equal", instead=_INSTEAD)
    variances, vectors = torch.linalg.eigh(gram)
    variances, vectors = variances.flip(0)[:count], vectors.flip(1)[:, :count]
    kept = int((variances > total * max(samples, n) * torch.finfo(torch.float64).eps).sum())
    variances, vectors = variances[:kept], vectors[:, :kept]
    vectors = vectors if n <= samples else matrix.mT @ vectors
    vectors = (vectors / vectors.norm(dim=0)).mT.contiguous()
    # The first of those that are largest up to rounding, else two opposite entries of a symmetric filter would take turns.
    magnitudes = vectors.abs()
    leading = (magnitudes >= magnitudes.amax(dim=1, keepdim=True) * (1 - 1e-6)).int().argmax(dim=1)
    signs = vectors.gather(1, leading[:, None]).sign()
    return vectors * signs, variances / total


def _tiles(layer: _Layer, components: int, center: bool, notes: list[str]) -> Iterator[FilterTile]:
    """Gives the tiles of a layer, component by component, frame by frame."""
    weight = layer.weight if layer.weight.ndim == 5 else layer.weight[:, :, None]
    filters, channels, t, p, q = weight.shape
    if not weight.isfinite().all():
        raise BadInput(f"The weights of {layer.name} are not finite.")
    vectors, shares = principal_components(weight.flatten(1), components, center=center)
    if len(shares) < components:
        few = "1 component" if len(shares) == 1 else f"{len(shares)} components"
        notes.append(f"{layer.name} has {few} with variance, not {components}.")
    images = vectors.view(-1, channels, t, p, q).permute(0, 2, 3, 4, 1)
    for number, (frames, share) in enumerate(zip(images, shares.tolist(), strict=True)):
        for frame, image in enumerate(frames):
            yield FilterTile(
                layer=layer.name,
                kind=layer.kind,
                filters=filters,
                component=number + 1,
                explained_variance_ratio=share,
                cumulative_ratio=float(shares[: number + 1].sum()),
                frame=frame if layer.weight.ndim == 5 else None,
                tile_height=p,
                tile_width=q,
                values=tuple(image.flatten().tolist()),
            )


def _first_layers(model: nn.Module, notes: list[str]) -> Iterator[_Layer]:
    """Gives the layers that see pixels: those that the model's metadata name, else its first convolution."""
    for path, module in model.named_modules():
        adapter = _ADAPTERS.get(f"{type(module).__module__}.{type(module).__qualname__}")
        if adapter is not None and (layer := adapter(path, module)) is not None:
            yield layer
            return
    for name in _named_in_metadata(model) or [_first_convolution(model, notes)]:
        yield _convolution(name, model.get_submodule(name))


def _named_in_metadata(model: nn.Module) -> list[str]:
    cfg = getattr(model, "pretrained_cfg", None)
    named = (cfg.get("first_conv") if isinstance(cfg, Mapping) else getattr(cfg, "first_conv", None)) or ()
    paths = [named] if isinstance(named, str) else list(named)
    modules = dict(model.named_modules())
    # A stem of another kind leaves metadata behind that name a layer which is not there, or a block with the layer in it.
    return paths if all(isinstance(modules.get(path), (nn.Conv2d, nn.Conv3d)) for path in paths) else []


def _first_convolution(model: nn.Module, notes: list[str]) -> str:
    name: str
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            notes.append(f"The model does not say which layer sees the pixels; shown is its first convolution, {name}.")
            return name
    raise NotDefined("it has no convolution, and no other first layer whose filters are known", instead=_INSTEAD)


def _convolution(name: str, module: nn.Module) -> _Layer:
    assert isinstance(module, (nn.Conv2d, nn.Conv3d))
    kernel, stride = module.kernel_size, module.stride
    if module.in_channels != 3 or module.groups != 1:
        channels = "each by itself" if module.groups > 1 else "not red, green and blue"
        raise NotDefined(f"its first layer, {name}, takes {module.in_channels} channels, {channels}", instead=_INSTEAD)
    example = module.weight.new_zeros(1, 3, *kernel)
    patches = kernel == stride and not any(module.padding)
    *frames, rows, columns = kernel
    if patches:
        kind = f"patches of {rows}x{columns} pixels"
        kind = f"tubelets of {frames[0]} frames of {rows}x{columns} pixels" if frames else kind
    else:
        step = str(stride[0]) if len(set(stride)) == 1 else size(stride)
        kind = f"first convolution, {size(kernel)}, stride {step}: filters, not {'tubelets' if frames else 'patches'}"
    return _Layer(name=name, kind=kind, weight=_applied(module, example))


class _Weights(TorchFunctionMode):
    """Keeps the weights that products and convolutions are given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS:
            self.seen.append(args[1] if len(args) > 1 else (kwargs or {})["weight"])
        return func(*args, **(kwargs or {}))


def _applied(module: nn.Module, example: Tensor) -> Tensor:
    """Gives the weights that a layer multiplies with: a standardised convolution's are not those that it stores."""
    with _Weights() as weights:
        module(example)
    weight: Tensor = weights.seen[-1].detach()
    return weight


def _flattened_patches(name: str, module: Any) -> _Layer | None:
    """NaFlex: a linear layer of patches that were flattened before, channels last or first as it says."""
    projection, (p, q) = getattr(module, "proj", None), module.patch_size
    if not isinstance(projection, nn.Linear):
        return None
    if projection.in_features != 3 * p * q:
        channels = projection.in_features // (p * q)
        raise NotDefined(f"its first layer, {name}.proj, takes {channels} channels, not red, green and blue")
    weight = projection.weight.detach()
    weight = (
        weight.unflatten(1, (p, q, 3)).permute(0, 3, 1, 2) if module.channels_last else weight.unflatten(1, (3, p, q))
    )
    return _Layer(name=f"{name}.proj", kind=f"patches of {p}x{q} pixels", weight=weight)


def _soft_split(name: str, module: nn.Module) -> _Layer | None:
    """T2T-ViT: windows, normed, become queries, keys and values of an attention whose skip connection carries the values."""
    first = module.get_submodule("attention1")
    layer = "kqv" if hasattr(first, "kqv") else "attn.qkv"
    weight = first.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    side = round((weight.shape[1] / 3) ** 0.5)
    if weight.shape[1] != 3 * side**2:
        raise NotDefined(
            f"its first layer, {name}.attention1.{layer}, does not see red, green and blue", instead=_INSTEAD
        )
    return _Layer(
        name=f"{name}.attention1.{layer}",
        kind=f"values of the first soft split, windows of {side}x{side} pixels: filters, not patches",
        weight=weight.detach().chunk(3)[2].unflatten(1, (3, side, side)),
    )


_ADAPTERS: Mapping[str, Callable[[str, Any], _Layer | None]] = {
    "timm.models.naflexvit.NaFlexEmbeds": _flattened_patches,
    "vitbench.models.t2t_vit.TokensToToken": _soft_split,
}
"""First layers that are no convolution, by the class of the module which holds them."""


def draw(findings: Mapping[str, EmbeddingFilters]) -> Figure:
    """Draws the components as tiles of RGB, in 4 rows of 7 as in the paper; grey is no weight, a tubelet's frames stand together.

    Args:
        findings: by title.
    """
    panels = [
        (title, finding.center, list(tiles))
        for title, finding in findings.items()
        for _, tiles in groupby(finding.rows, key=lambda row: row.layer)
    ]
    pictures = [_picture(tiles) for _, _, tiles in panels]
    columns = min(_PANELS_A_ROW, len(panels))
    heights = []
    for start in range(0, len(panels), columns):
        tallest = max(picture.shape[0] / picture.shape[1] for picture in pictures[start : start + columns])
        lines = max(_caption(center, tiles[-1]).count("\n") for _, center, tiles in panels[start : start + columns])
        heights.append(_PANEL_WIDTH_IN * tallest + _TEXTS_IN + 0.14 * lines)
    figure = Figure(figsize=(_PANEL_WIDTH_IN * columns, sum(heights) + 0.45), layout="constrained")
    counts = {tiles[-1].component for _, _, tiles in panels}
    first = f"first {counts.pop()} principal components" if len(counts) == 1 else "first principal components"
    figure.suptitle(f"RGB embedding filters\n({first})", fontsize=11)
    axes = figure.subplots(len(heights), columns, squeeze=False, gridspec_kw={"height_ratios": heights}).flatten()
    for ax, (title, center, tiles), picture in zip(axes, panels, pictures, strict=False):
        _panel(ax, title, center, tiles[-1], picture)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return figure


def _panel(ax: Axes, title: str, center: bool, last: FilterTile, picture: np.ndarray[Any, Any]) -> None:
    ax.imshow(picture, interpolation="nearest", aspect="equal")
    bare(ax)
    ax.set_anchor("N")
    ax.set_title(wrapped(plain(title), 44), loc="left", fontsize=10, fontweight="bold", parse_math=False)
    ax.annotate(
        _caption(center, last),
        (0, 0),
        (0, -4),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=SMALL,
        color=GREY,
        va="top",
        parse_math=False,
    )


def _caption(center: bool, last: FilterTile) -> str:
    kind = plain(last.kind) + (", frames left to right" if last.frame else "")
    of = "variance" if center else "sum of squares, not centred"
    return f"{wrapped(kind, 66)}\n{100 * last.cumulative_ratio:.1f} % of the {of}"


def _picture(tiles: Sequence[FilterTile]) -> np.ndarray[Any, Any]:
    """Gives a layer's components as one RGB image, with white gaps, narrower between the frames of one component."""
    shown = []
    for _, frames in groupby(tiles, key=lambda tile: tile.component):
        images = [np.reshape(tile.values, (tile.tile_height, tile.tile_width, 3)) for tile in frames]
        peak = max(np.abs(image).max() for image in images)
        # Small filters are enlarged, so that the gaps stay narrow beside them.
        times = max(1, round(_TILE_PX / max(images[0].shape[:2])))
        grown = [np.kron(0.5 + 0.5 * image / peak, np.ones((times, times, 1))) for image in images]
        shown.append(mosaic(grown, len(grown)))
    height, width = shown[0].shape[:2]
    # As many a row as gives the shape of the paper's panel, or a number near it that leaves no hole in the last row.
    wished = (len(shown) * height / width * _COLUMNS / 4) ** 0.5
    whole = [columns for columns in range(1, len(shown) + 1) if len(shown) % columns == 0]
    nearest = min(whole, key=lambda columns: abs(math.log(columns / wished)))
    columns = nearest if abs(math.log(nearest / wished)) < math.log(1.5) else max(1, round(wished))
    found: np.ndarray[Any, Any] = np.nan_to_num(
        mosaic(shown, columns, gap=max(3, height // (12 if width == height else 6))), nan=1.0
    )
    return found


def table(findings: Mapping[str, EmbeddingFilters]) -> Table:
    """Gives a line a first layer: what it is, and how much of the variance its components hold."""
    rows = [
        {
            "model": title,
            **{key: value for key, value in columns(tiles[-1]).items() if key in ("layer", "kind", "filters")},
            "components": tiles[-1].component,
            "first_ratio": tiles[0].explained_variance_ratio,
            "cumulative_ratio": tiles[-1].cumulative_ratio,
        }
        for title, finding in findings.items()
        for tiles in [list(group) for _, group in groupby(finding.rows, key=lambda row: row.layer)]
    ]
    return Table(
        rows=rows,
        columns=(
            Column(heading="Model", text=lambda row: row["model"]),
            Column(heading="First layer", text=lambda row: row["kind"], folds=True),
            Column(heading="Filters", text=lambda row: str(row["filters"]), numeric=True),
            Column(heading="Components", text=lambda row: str(row["components"]), numeric=True),
            Column(heading="First's share", text=lambda row: f"{100 * row['first_ratio']:.1f} %", numeric=True),
            Column(heading="Share of all", text=lambda row: f"{100 * row['cumulative_ratio']:.1f} %", numeric=True),
        ),
        notes=[
            f"{title}: {note}" if len(findings) > 1 else note
            for title, finding in findings.items()
            for note in finding.notes
        ],
    )
