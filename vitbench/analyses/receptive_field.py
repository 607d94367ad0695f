"""Effective receptive field: how strongly each pixel of the input moves the middle of each layer's map.

Source: "Do Vision Transformers See Like Convolutional Neural Networks?", Raghu et al., arXiv 2108.08810, figure 6: the gradient
of the residual stream's middle, averaged over channels, its absolute values averaged over 32 images. The `replknet` variant:
"Scaling Up Your Kernels to 31x31", Ding et al., arXiv 2203.06717, figure 1 and the areas of high contribution; official erf/.

The stream is taken before the model's last norm: behind a LayerNorm, the mean over channels is a constant, whose gradient is 0.
Layers of which that is so all the same, such as the normed patches of Swin and PVT before training, are left out; where the
branches end in a norm (Swin V2), the mean over channels does not see them: random channels show the field.

Shapes: B batch, T H W frames, rows and columns of the input, t gh gw of a layer's map, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import Literal

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from vitbench.drawing.pictures import GREY, SMALL, bare, plain
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import Field
from vitbench.inside import layers, observing
from vitbench.records import Column, Table

Variant = Literal["raghu", "replknet"]

IMAGES: Mapping[Variant, int] = {"raghu": 32, "replknet": 50}
"""Images that the papers average over."""

SHARES = (0.2, 0.3, 0.5, 0.99)
"""Parts of the field whose square is measured: those of RepLKNet's table."""

_DIGITS = 6
_ROUNDING = 1e-4
_TILE_IN = 1.3
_NARROWEST_IN = 3.2
_TITLE_IN = 0.34
_FOOT_IN = 0.24
_LONGEST = 26
_LETTERS_AN_INCH = 11
_MOST_ACROSS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceptiveField:
    """The fields of a model's layers, in the order in which they run, and what was left out."""

    rows: tuple[Field, ...]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Layer:
    """What is gathered of a layer: the field, (T or 1, H, W), summed over images, in float64."""

    grid: tuple[int, ...]
    sum: Tensor


def analyze(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    variant: Variant = "raghu",
    channels: int | None = None,
    names: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> ReceptiveField:
    """Measures the effective receptive field of a model's layers.

    Images go through one by one, and one graph serves all layers. Of an even number of rows or columns, the middle is the first
    of the second half, as in the official code of RepLKNet: (7, 7) of 14 x 14, counted from 0. The square of a share is centred
    on the place itself, taking the grid to tile the input, that of `replknet` on the middle pixel, as there. (What a convolution
    with a stride and padding sees begins up to half a stride before its place.)

    Args:
        model: it stays as it was; gradients of its parameters are neither needed nor made.
        batches: inputs, (B, *input_shape).
        variant: "raghu", or "replknet": ReLU on the output and on the gradient, sums over channels and colours,
            log10(x + 1) over its maximum.
        channels: gradients of so many random channels each, their absolute values averaged, instead of the gradient of the
            mean over all; "raghu" alone.
        names: of the layers; by default all, of "replknet" the last, as there.
        limit: inputs to average over at most; by default as many as in the variant's paper.
        seed: of the random channels.

    Raises:
        NotDefined: no layer has a map of the image.
        BadInput: there are no images, or no layer of that name, or they are of several sizes, or the options do not fit.
    """
    if channels is not None and (variant == "replknet" or channels < 1):
        raise BadInput("channels is a number of 1 or more, and of the raghu variant alone: replknet sums over all.")
    found: dict[str, _Layer] = {}
    skipped: dict[str, str] = {}
    most = IMAGES[variant] if limit is None else limit
    images = 0
    wanted = None if names is None else set(names)
    drawn = torch.Generator().manual_seed(seed)
    with observing.judged(model), _frozen(model), torch.enable_grad():
        for image in (batch[place : place + 1] for batch in batches for place in range(len(batch))):
            if images == most:
                break
            image = image.detach().clone().requires_grad_(True)
            middles = _middles(model, image, wanted, skipped)
            if not images and variant == "raghu" and channels is None:
                for name in [name for name, (_, middle) in middles.items() if _is_constant_on_average(middle, image)]:
                    skipped[name] = (
                        f"the mean over the channels of {name} is the same for every image, as behind a norm: "
                        "take random channels"
                    )
            middles = {name: middle for name, middle in middles.items() if name not in skipped}
            if variant == "replknet" and wanted is None:
                middles = dict([*middles.items()][-1:])
            for place, (name, (grid, middle)) in enumerate(middles.items()):
                field = _field(middle, image, variant, channels, drawn, last=place == len(middles) - 1)
                if name not in found:
                    found[name] = _Layer(grid, torch.zeros_like(field))
                elif found[name].sum.shape != field.shape:
                    raise BadInput("The images must be of one size, for their fields to be averaged.")
                found[name].sum += field
            images += 1
    if not images:
        raise BadInput("There are no images to measure receptive fields on.")
    unknown = [name for name in names or () if name not in found and name not in skipped]
    if unknown:
        raise BadInput(
            f"The model has no layer {unknown[0]!r}; its blocks are {', '.join(one.name for one in layers.blocks(model))}."
        )
    if not found:
        raise NotDefined(next(iter(skipped.values()), "it ran no layer that could be found in it"), instead=("cka",))
    rows = tuple(
        _row(number, name, layer, images, variant, channels) for number, (name, layer) in enumerate(found.items())
    )
    notes = [f"Left out: {reason}." for reason in skipped.values()]
    notes += [f"The field of {row.layer} is 0 everywhere." for row in rows if row.side_99_px is None]
    return ReceptiveField(rows=rows, notes=tuple(notes))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Takes the gradients off the parameters, and puts them back."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in required:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in required:
            parameter.requires_grad_(requires_grad)


def _middles(
    model: nn.Module, image: Tensor, wanted: set[str] | None, skipped: dict[str, str]
) -> dict[str, tuple[tuple[int, ...], Tensor]]:
    """Runs the model on an image, and gives of each layer the grid of its map and the middle of it, (C,)."""
    found: dict[str, tuple[tuple[int, ...], Tensor]] = {}

    def see(activation: layers.Activation) -> None:
        if wanted is not None and activation.layer not in wanted:
            return
        try:
            features = activation.map()
        except NotDefined as error:
            skipped[activation.layer] = error.reason
            return
        grid = tuple(features.shape[2:])
        # Copied: what a later layer does to it in place would be in the gradient.
        at_middle = features[0].flatten(1)[:, int(np.ravel_multi_index(_middle(grid), grid))]
        found[activation.layer] = grid, at_middle.clone()

    with layers.watched(model, see):
        model(image)
    return found


def _middle(grid: Iterable[int]) -> tuple[int, ...]:
    return tuple(extent // 2 for extent in grid)


def _field(
    middle: Tensor, image: Tensor, variant: Variant, channels: int | None, drawn: torch.Generator, *, last: bool
) -> Tensor:
    """Gives the field of one layer on one image, (T or 1, H, W), in float64 on the CPU: summed over colours."""
    if variant == "replknet":
        targets = [middle.relu().sum()]
    elif channels is None:
        targets = [middle.mean()]
    else:
        chosen = torch.randperm(len(middle), generator=drawn)[:channels].tolist()
        targets = [middle[channel] for channel in chosen]
    whole = torch.zeros(image.shape[2:], dtype=torch.float64)
    for number, target in enumerate(targets):
        gradient = _gradient(target, image, keep=not (last and number == len(targets) - 1))
        gradient = gradient.relu() if variant == "replknet" else gradient.abs()
        whole += gradient.sum(dim=0).cpu().double() / len(targets)
    return whole if whole.ndim == 3 else whole[None]


def _is_constant_on_average(middle: Tensor, image: Tensor) -> bool:
    """Says whether the mean over channels does not depend on the image, but for rounding, while the channels do."""
    signs = torch.randint(2, middle.shape, generator=torch.Generator().manual_seed(0)).to(middle) * 2 - 1
    mean, mixed = (
        float(_gradient(target, image, keep=True).abs().sum()) for target in (middle.mean(), (signs * middle).mean())
    )
    return mean < _ROUNDING * mixed


def _gradient(target: Tensor, image: Tensor, *, keep: bool) -> Tensor:
    """Gives the gradient by the image, 0 where the target does not depend on it, (C, [T,] H, W)."""
    if not target.requires_grad:
        return torch.zeros_like(image[0])
    gradient = torch.autograd.grad(target, image, retain_graph=keep, allow_unused=True, materialize_grads=True)[0]
    return gradient[0].float()


def _row(number: int, name: str, layer: _Layer, images: int, variant: Variant, channels: int | None) -> Field:
    mean = layer.sum / images
    per_frame, field = mean.sum(dim=(1, 2)), mean.sum(dim=0)
    height, width = field.shape
    middle = _middle(layer.grid)
    if variant == "replknet":
        field = (field + 1).log10()
        field = field / field.max() if field.max() > 0 else field
        centre = (height // 2 + 0.5, width // 2 + 0.5)
    else:
        rows, columns = layer.grid[-2:]
        centre = ((middle[-2] + 0.5) * height / rows, (middle[-1] + 0.5) * width / columns)
    sides = squares(field.numpy(), centre, SHARES)
    all_channels = "sum of all" if variant == "replknet" else "mean of all"
    return Field(
        index=number,
        layer=name,
        side_20_px=sides[0],
        side_30_px=sides[1],
        side_50_px=sides[2],
        side_99_px=sides[3],
        grid=layer.grid,
        middle=middle,
        images=images,
        variant=variant,
        over_channels=all_channels if channels is None else f"{channels} at random",
        frame_shares=tuple((per_frame / per_frame.sum()).tolist())
        if len(layer.grid) == 3 and per_frame.sum() > 0
        else (),
        tile_height=height,
        tile_width=width,
        values=tuple(float(f"{value:.{_DIGITS}g}") for value in field.flatten().tolist()),
    )


def squares(
    field: np.ndarray[tuple[int, int], np.dtype[np.float64]], centre: tuple[float, float], shares: Iterable[float]
) -> list[float | None]:
    """Gives the sides of the smallest squares around a point that hold these shares of a field, in pixels.

    Args:
        field: (H, W), not negative.
        centre: row and column of the point, 0 at the outer edge of the first pixel.
        shares: between 0 and 1.

    Returns:
        For each share, the side of the square that holds whole pixels and at least so much; None if the field is 0.
    """
    down, across = (np.abs(np.arange(extent) + 0.5 - at) for extent, at in zip(field.shape, centre, strict=True))
    # A square that holds a pixel whole reaches half a pixel over the middle of it.
    sides = 2 * np.maximum.outer(down, across).ravel() + 1
    order = np.argsort(sides, kind="stable")
    held = np.cumsum(field.ravel()[order])
    if held[-1] <= 0:
        return [None for _ in shares]
    # Sums of many numbers are exact to some digits: a share that all of them make must be found.
    places = (int(np.searchsorted(held, share * held[-1] * (1 - 1e-12))) for share in shares)
    return [float(sides[order[place]]) for place in places]


def draw(findings: Mapping[str, ReceptiveField]) -> Figure:
    """Draws the field of each layer as a tile, in the order of the layers, a block of tiles for each model.

    Args:
        findings: by the title of the model.
    """
    most = max(len(finding.rows) for finding in findings.values())
    across = min(_MOST_ACROSS, most)
    side = max(_TILE_IN, _NARROWEST_IN / across)
    width = across * side + 0.2
    tiles = {title: _tile_heights(finding.rows, across, side) for title, finding in findings.items()}
    height = sum(_TITLE_IN + sum(heights) for heights in tiles.values()) + _FOOT_IN
    figure = Figure(figsize=(width, height))
    at = height
    for title, finding in findings.items():
        at -= _TITLE_IN
        figure.text(
            0.13 / width,
            (at + 0.08) / height,
            shorten(plain(title), int(width * _LETTERS_AN_INCH), placeholder=" ..."),
            fontsize=SMALL + 1,
            fontweight="bold",
            parse_math=False,
        )
        for number, row in enumerate(finding.rows):
            line, place = divmod(number, across)
            bottom = at - sum(tiles[title][: line + 1])
            box = (0.13 + place * side, bottom + 0.03, side - 0.06, tiles[title][line] - 0.2)
            ax = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
            _tile(ax, row)
        at -= sum(tiles[title])
    figure.text(0.13 / width, 0.06 / height, _scale(findings), fontsize=SMALL - 2, color=GREY)
    return figure


def _tile_heights(rows: Sequence[Field], across: int, side: float) -> list[float]:
    """Gives the height of each line of tiles, with their titles, in inches."""
    lines = [rows[place : place + across] for place in range(0, len(rows), across)]
    return [max((side - 0.06) * row.tile_height / row.tile_width for row in line) + 0.2 for line in lines]


def _scale(findings: Mapping[str, ReceptiveField]) -> str:
    """Says what brightness means."""
    variants = {row.variant for finding in findings.values() for row in finding.rows}
    what = {"raghu": "root of the gradient", "replknet": "log10(gradient + 1)"}
    return f"Brightness: {' or '.join(what[one] for one in sorted(variants))}, 0 to the tile's own maximum."


def _tile(ax: Axes, row: Field) -> None:
    values = np.array(row.values).reshape(row.tile_height, row.tile_width)
    # The field spans many powers of ten; its root shows the far parts, and 0 stays what it is.
    shown = values if row.variant == "replknet" else np.sqrt(values)
    ax.imshow(shown, cmap=matplotlib.colormaps["viridis"], vmin=0, vmax=shown.max() or 1, interpolation="nearest")
    bare(ax)
    ax.set_title(_end_of(plain(row.layer)), fontsize=SMALL - 2, pad=2, parse_math=False)


def _end_of(path: str) -> str:
    """Gives a path's last steps, as many as a tile's title holds."""
    if len(path) <= _LONGEST:
        return path
    steps = path.split(".")
    while len(steps) > 1 and len(".".join(steps)) > _LONGEST - 3:
        del steps[0]
    return f"...{'.'.join(steps)[3 - _LONGEST :]}"


def table(findings: Mapping[str, ReceptiveField]) -> Table:
    """Gives the sides of the squares, a line a layer."""
    rows = [
        {
            "model": plain(title),
            "layer": plain(row.layer),
            "grid": "x".join(map(str, row.grid)),
            "side_20_px": row.side_20_px,
            "side_30_px": row.side_30_px,
            "side_50_px": row.side_50_px,
            "side_99_px": row.side_99_px,
        }
        for title, finding in findings.items()
        for row in finding.rows
    ]

    def side(share: int) -> Column:
        def text(row: Mapping[str, object]) -> str:
            found = row[f"side_{share}_px"]
            return "-" if found is None else f"{found:g}"

        return Column(heading=f"{share} % in px", text=text, numeric=True)

    def word(heading: str, name: str) -> Column:
        return Column(heading=heading, text=lambda row: str(row[name]))

    return Table(
        rows=rows,
        columns=(
            word("Model", "model"),
            word("Layer", "layer"),
            word("Grid", "grid"),
            *(side(round(100 * share)) for share in SHARES),
        ),
        notes=[note for finding in findings.values() for note in finding.notes],
    )
