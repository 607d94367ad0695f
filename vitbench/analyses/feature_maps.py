"""Feature maps of a model's layers, channel by channel, and the share of channels that are dead or too large.

Source: "Tokens-to-Token ViT", Yuan et al., arXiv 2101.11986, figure 2: maps of ResNet-50, ViT and T2T-ViT, where boxes mark the
channels that are zero or too large. Here both are numbers.

A channel is dead on an image if its standard deviation over the places is at most `DEAD` times the mean of those of all channels
of the layer; too large if the largest of its absolute values is more than `LARGE` times the median over the channels that are
not dead.

Shapes: B batch, t gh gw of a layer's map, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor, nn

from vitbench.drawing.pictures import GREY, SMALL, bare, plain
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import FeatureMap
from vitbench.inside import layers, observing
from vitbench.records import Column, Table

DEAD = 0.01
"""Part of the mean spread of a layer's channels, up to which a channel is dead."""

LARGE = 10.0
"""Times the median of the channels' maxima, above which a channel is too large."""

SIDE = 6
LAYERS = 3

_DIGITS = 6
_TILE_IN = 0.62
_TEXT = 4.5
_LETTERS_AN_INCH = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMaps:
    """Maps of the chosen layers, in the order in which they run, and what was left out."""

    rows: tuple[FeatureMap, ...]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Layer:
    """What is kept of a layer: the first channels on the first image, and each image's shares."""

    tiles: Tensor
    frame: int | None
    channels: int
    dead: list[bool]
    large: list[bool]
    dead_shares: list[float]
    large_shares: list[float]


class ChannelMaps(observing.Observer):
    """Keeps 36 channels of the first image, and of all images how many channels are dead or too large.

    Args:
        names: of the layers; by default three blocks, spread evenly.
    """

    def __init__(self, *, names: Sequence[str] | None = None) -> None:
        self._names = names
        self._layers: dict[str, _Layer] = {}
        self._blocks: dict[str, None] = {}
        self._skipped: dict[str, str] = {}

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[None]:
        """Watches the layers of the model."""
        with layers.watched(model, self._see):
            yield

    def _see(self, activation: layers.Activation) -> None:
        try:
            features = activation.map().float()
        except NotDefined as error:
            self._skipped[activation.layer] = error.reason
            return
        if activation.kind == "block":
            self._blocks[activation.layer] = None
        dead, large = unusable(features)
        kept = self._layers.get(activation.layer)
        if kept is None:
            frame = features.shape[2] // 2 if features.ndim == 5 else None
            first = features[0, : SIDE**2] if frame is None else features[0, : SIDE**2, frame]
            kept = self._layers[activation.layer] = _Layer(
                tiles=first.cpu().clone(),
                frame=frame,
                channels=features.shape[1],
                dead=dead[0].tolist(),
                large=large[0].tolist(),
                dead_shares=[],
                large_shares=[],
            )
        kept.dead_shares += dead.double().mean(dim=1).tolist()
        kept.large_shares += large.double().mean(dim=1).tolist()

    def seen(self, inputs: Tensor) -> None:
        """Has all it needs from the layers."""

    def finding(self) -> FeatureMaps:
        """Gives the maps of the chosen layers.

        Raises:
            NotDefined: no layer has a map of the image.
            BadInput: there were no images, or a chosen layer is not there.
        """
        if not self._layers:
            if self._skipped:
                raise NotDefined(next(iter(self._skipped.values())), instead=("cka",))
            raise BadInput("There are no images to draw feature maps of.")
        number = {name: place for place, name in enumerate(self._layers)}
        for name in self._names or ():
            if name not in number:
                reason = f": {self._skipped[name]}" if name in self._skipped else f"; it has {', '.join(number)}"
                raise BadInput(f"The model has no map of a layer {name!r}{reason}.")
        chosen = self._names or _spread([*self._blocks] or [*number])
        rows = [
            self._row(number[name], name, channel)
            for name in sorted(dict.fromkeys(chosen), key=number.__getitem__)
            for channel in range(len(self._layers[name].tiles))
        ]
        return FeatureMaps(rows=tuple(rows), notes=tuple(f"Left out: {reason}." for reason in self._skipped.values()))

    def _row(self, index: int, name: str, channel: int) -> FeatureMap:
        kept = self._layers[name]
        tile = kept.tiles[channel].double()
        return FeatureMap(
            index=index,
            layer=name,
            channels=kept.channels,
            dead_share=sum(kept.dead_shares) / len(kept.dead_shares),
            large_share=sum(kept.large_shares) / len(kept.large_shares),
            images=len(kept.dead_shares),
            channel=channel,
            dead=kept.dead[channel],
            large=kept.large[channel],
            low=float(tile.min()),
            high=float(tile.max()),
            frame=kept.frame,
            tile_height=tile.shape[0],
            tile_width=tile.shape[1],
            values=tuple(float(f"{value:.{_DIGITS}g}") for value in tile.flatten().tolist()),
        )


def unusable(features: Tensor) -> tuple[Tensor, Tensor]:
    """Says which channels are dead, and which too large: (B, C, ...) -> two of (B, C), by the rules above."""
    places = features.flatten(2)
    spread = places.std(dim=2, correction=0)
    dead = spread <= DEAD * spread.mean(dim=1, keepdim=True)
    largest = places.abs().amax(dim=2)
    usual = largest.masked_fill(dead, torch.nan).nanmedian(dim=1, keepdim=True).values
    return dead, largest > LARGE * usual


def _spread(names: Sequence[str]) -> list[str]:
    """Gives three names, or those there are: the first, the middle and the last."""
    count = min(LAYERS, len(names))
    return [names[round(place * (len(names) - 1) / max(1, count - 1))] for place in range(count)]


def analyze(model: nn.Module, batches: Iterable[Tensor], *, names: Sequence[str] | None = None) -> FeatureMaps:
    """Takes the feature maps of the first image, and the shares of dead and too large channels over all.

    Args:
        model: any whose layers have places in the image.
        batches: inputs, (B, *input_shape).
        names: of the layers to draw; by default three blocks: the first, the middle one and the last.

    Raises:
        NotDefined: no layer has a map of the image.
        BadInput: there are no images, or a chosen layer is not there.
    """
    observer = ChannelMaps(names=names)
    observing.run(model, batches, [observer])
    return observer.finding()


def draw(findings: Mapping[str, FeatureMaps]) -> Figure:
    """Draws 6 x 6 channels of each layer in grey, each from its lowest value to its highest; a line of layers a model.

    Args:
        findings: by the title of the model.
    """
    panels = {title: _by_layer(finding.rows) for title, finding in findings.items()}
    across = max(len(found) for found in panels.values())
    side = SIDE * _TILE_IN
    heights = [max(_tile_height(rows[0]) for rows in found.values()) * SIDE + 0.72 for found in panels.values()]
    figure = Figure(figsize=((side + 0.3) * across, sum(heights)))
    lines = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for line, height, (title, found) in zip(lines, heights, panels.items(), strict=True):
        top = 0.14 / height
        line.text(
            0.5 * 0.3 / ((side + 0.3) * across),
            1 - top,
            shorten(plain(title), int((side + 0.3) * across * _LETTERS_AN_INCH), placeholder=" ..."),
            ha="left",
            va="center",
            fontsize=SMALL + 1,
            fontweight="bold",
            parse_math=False,
        )
        for place, rows in enumerate(found.values()):
            _layer(line, rows, place, across, height)
    return figure


def _by_layer(rows: Sequence[FeatureMap]) -> dict[str, list[FeatureMap]]:
    found: dict[str, list[FeatureMap]] = {}
    for row in rows:
        found.setdefault(row.layer, []).append(row)
    return found


def _tile_height(row: FeatureMap) -> float:
    """Gives the height of a tile with its caption, in inches."""
    return _TILE_IN * row.tile_height / row.tile_width + 0.11


def _layer(line: SubFigure, rows: Sequence[FeatureMap], place: int, across: int, height: float) -> None:
    side = SIDE * _TILE_IN
    width = (side + 0.3) * across
    left, tile_height = place * (side + 0.3) + 0.15, _tile_height(rows[0])
    first = rows[0]
    line.text(
        left / width,
        1 - 0.32 / height,
        f"{plain(first.layer)}, {first.channels} channels of {first.tile_height} x {first.tile_width}"
        + ("" if first.frame is None else f", frame {first.frame}"),
        fontsize=SMALL - 1,
        va="center",
        parse_math=False,
    )
    line.text(
        left / width,
        1 - 0.47 / height,
        f"dead: {_percent(first.dead_share)}, too large: {_percent(first.large_share)}",
        fontsize=SMALL - 1,
        va="center",
        color=GREY,
        parse_math=False,
    )
    for number, row in enumerate(rows):
        x = left + number % SIDE * _TILE_IN
        y = height - 0.58 - (number // SIDE + 1) * tile_height
        ax = line.add_axes(
            ((x + 0.015) / width, (y + 0.11) / height, (_TILE_IN - 0.03) / width, (tile_height - 0.125) / height)
        )
        _tile(ax, row)


def _tile(ax: Axes, row: FeatureMap) -> None:
    values = np.array(row.values).reshape(row.tile_height, row.tile_width)
    # A channel of one value has no range to be drawn in: mid-grey.
    low, high = (row.low, row.high) if row.high > row.low else (row.low - 1, row.low + 1)
    ax.imshow(values, cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect="auto")
    bare(ax)
    marks = "dead" if row.dead else "large" if row.large else ""
    text = f"{row.low:.2g} to {row.high:.2g}"
    ax.set_xlabel(
        f"{text} {marks}".strip(), fontsize=_TEXT, labelpad=1, color="#b00000" if marks else GREY, parse_math=False
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(findings: Mapping[str, FeatureMaps]) -> Table:
    """Gives of each layer the shares of dead and of too large channels."""
    rows = [
        {
            "model": plain(title),
            "layer": plain(name),
            "channels": found[0].channels,
            "grid": f"{found[0].tile_height}x{found[0].tile_width}",
            "dead_share": found[0].dead_share,
            "large_share": found[0].large_share,
        }
        for title, finding in findings.items()
        for name, found in _by_layer(finding.rows).items()
    ]

    def word(heading: str, name: str, *, numeric: bool = False) -> Column:
        return Column(heading=heading, text=lambda row: str(row[name]), numeric=numeric)

    def share(heading: str, name: str) -> Column:
        return Column(heading=heading, text=lambda row: _percent(float(row[name])), numeric=True)

    return Table(
        rows=rows,
        columns=(
            word("Model", "model"),
            word("Layer", "layer"),
            word("Channels", "channels", numeric=True),
            word("Map", "grid"),
            share("Dead", "dead_share"),
            share("Too large", "large_share"),
        ),
        notes=[note for finding in findings.values() for note in finding.notes],
    )
