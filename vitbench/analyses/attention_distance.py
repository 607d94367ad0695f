"""Mean attention distance: how far, in the image, each head looks on average.

Source: ViT (arXiv 2010.11929), section 4.5, appendix D.7, Figs. 7 right and 11; the authors' code in issue 162 of their repository.
Heads sorted: Raghu et al. (arXiv 2108.08810), Figs. 3 to 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitbench import observing
from vitbench.attention import Block, Call, Reader, Tap
from vitbench.errors import BadInput
from vitbench.geometry import Geometry
from vitbench.records import column


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadDistance:
    """How far one head of one layer attends."""

    layer: str = column("Layer", meaning="name of the attention's module; in brackets, which of its ways of attending")
    depth: int = column("Depth", meaning="number of the layer, from 0, in the order in which they run")
    head: int = column("Head", meaning="number of the head, from 0")
    distance_px: float | None = column(
        "Distance",
        better="equal",
        meaning="mode renorm: the weights of the tokens that have a place are made to sum to 1; pixels of the input",
    )
    distance_paper_px: float | None = column(
        "Distance (paper)",
        better="equal",
        meaning="mode paper: as the ViT paper drew it, keys without a place dropped and nothing made up for them",
    )
    sem_px: float | None = column("s.e.m.", meaning="standard error of distance_px over the inputs; empty with one")
    sem_paper_px: float | None = column("s.e.m. (paper)", meaning="standard error of distance_paper_px over the inputs")
    std_px: float | None = column("Std", meaning="standard deviation of distance_px over the inputs")
    distance_frames: float | None = column(
        "In time",
        better="equal",
        meaning="mode renorm: mean distance along a clip, in frames of the input; empty for images",
    )
    distance_paper_frames: float | None = column("In time (paper)", better="equal", meaning="the same in mode paper")
    sem_frames: float | None = column("s.e.m. in time", meaning="standard error of distance_frames over the inputs")
    prefix_mass: float = column(
        "Prefix mass", better="equal", meaning="share of attention on class, distillation, register and padding tokens"
    )
    uniform_px: float | None = column("Uniform", meaning="distance_px of attention that is the same everywhere allowed")
    uniform_paper_px: float | None = column("Uniform (paper)", meaning="distance_paper_px of such attention")
    uniform_frames: float | None = column("Uniform in time", meaning="distance_frames of such attention")
    least_px: float | None = column("Least", meaning="mean distance to the nearest key: above 0 where keys are pooled")
    most_px: float | None = column("Most", meaning="mean distance to the farthest key")
    rows_left_out: int = column(
        "Rows left out",
        meaning="queries that attend to tokens without a place alone, to the last digit, so that distance_px has none",
    )
    query_grid: tuple[int, ...] = column("Grid", meaning="rows and columns of queries, for clips frames before them")
    key_grid: tuple[int, ...] = column("Key grid", meaning="rows and columns of keys, for clips frames before them")
    pitch_px: tuple[float, ...] = column("Pitch", meaning="pixels from one query to the next, down and across")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionDistance:
    """The distances of all heads of a model.

    Attributes:
        rows: one a head, layer by layer.
        width_px: width of the input, by which the axis is scaled.
        left_out: layers whose attention relates no places, with the reason.
    """

    rows: tuple[HeadDistance, ...]
    width_px: int
    left_out: Mapping[str, str]


@dataclass
class _Layer:
    """What is known of a layer: a number an input and head of each kind, and the geometry."""

    heads: int
    calls: dict[int, Call] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    left_out: Tensor | None = None

    def add(self, kind: str, found: tuple[Tensor, Tensor]) -> None:
        """Adds sums and counts of some queries of the inputs of this pass, each (B, h)."""
        sums, counts = found
        self.sums[kind] = self.sums[kind] + sums if kind in self.sums else sums
        self.counts[kind] = self.counts[kind] + counts if kind in self.counts else counts


class DistanceReader(Reader):
    """Weighs each row of attention by the distances of its keys.

    A row's sums are made in float32, all further ones in float64, one value an input: how inputs are shared out to batches changes nothing.
    """

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self._rows: dict[str, Tensor] = {}
        self._width = 0

    def begin(self, call: Call) -> None:
        """Makes room for the rows of a call."""
        kinds = ["px"] if call.distances.px is not None else []
        kinds += ["frames"] if call.distances.frames is not None else []
        kinds += ["mass"] if call.distances.placed is not None else []
        self._rows = {kind: call.rows() for kind in kinds}

    def read(self, block: Block) -> None:
        """Weighs the rows of a block."""
        place = (block.maps, block.queries)
        mass = block.placed_mass()
        if mass is not None:
            self._rows["mass"][place] = mass
        for kind, distances in (("px", block.call.distances.px), ("frames", block.call.distances.frames)):
            if distances is not None:
                self._rows[kind][place] = block.weighted(distances)

    def end(self, call: Call) -> None:
        """Sums the rows over the queries of each input."""
        layer = self._layers.setdefault(call.layer, _Layer(heads=call.heads))
        layer.calls[id(call.geometry)] = call
        mass = self._rows.get("mass")
        for kind in ("px", "frames"):
            if kind in self._rows:
                rows = self._rows[kind]
                layer.add(f"paper_{kind}", call.per_input(rows))
                if mass is not None:
                    # 0 / 0 is not a number: such a row is left out and counted.
                    layer.add(kind, call.per_input(rows / mass))
        if mass is not None:
            layer.add("mass", call.per_input(mass))
            empty, _ = call.per_input((mass == 0).float())
            total = empty.sum(0)
            layer.left_out = total if layer.left_out is None else layer.left_out + total
        self._rows = {}

    def passed(self, inputs: Tensor) -> None:
        """Turns the sums of a pass into a mean an input."""
        self._width = inputs.shape[-1]
        for layer in self._layers.values():
            for kind, sums in layer.sums.items():
                layer.values.setdefault(kind, []).append(sums / layer.counts[kind])
            layer.sums, layer.counts = {}, {}

    def finding(self, left_out: Mapping[str, str] | None = None) -> AttentionDistance:
        """Gives the distances over all passes so far.

        Args:
            left_out: layers that could not be read, with the reason.

        Raises:
            BadInput: there was no pass.
        """
        if not self._width:
            raise BadInput("No image has been looked at, so there is no attention to measure.")
        rows = [
            row for depth, (name, layer) in enumerate(self._layers.items()) for row in _head_rows(name, depth, layer)
        ]
        return AttentionDistance(rows=tuple(rows), width_px=self._width, left_out=dict(left_out or {}))


def _head_rows(name: str, depth: int, layer: _Layer) -> list[HeadDistance]:
    values = {kind: torch.cat(found) for kind, found in layer.values.items()}  # (inputs, h)
    for kind in ("px", "frames"):
        values.setdefault(kind, values.get(f"paper_{kind}", torch.empty(0, layer.heads, dtype=torch.float64)))
    about = _about(layer)

    def mean(kind: str, head: int) -> float | None:
        found = values.get(kind)
        return None if found is None else _mean(found[:, head])

    def spread(kind: str, head: int, *, of_mean: bool) -> float | None:
        found = values.get(kind)
        return None if found is None else _spread(found[:, head], of_mean=of_mean)

    return [
        HeadDistance(
            layer=name,
            depth=depth,
            head=head,
            distance_px=mean("px", head),
            distance_paper_px=mean("paper_px", head),
            sem_px=spread("px", head, of_mean=True),
            sem_paper_px=spread("paper_px", head, of_mean=True),
            std_px=spread("px", head, of_mean=False),
            distance_frames=mean("frames", head),
            distance_paper_frames=mean("paper_frames", head),
            sem_frames=spread("frames", head, of_mean=True),
            prefix_mass=1.0 - mass if (mass := mean("mass", head)) is not None else 0.0,
            rows_left_out=0 if layer.left_out is None else int(layer.left_out[head]),
            **about,
        )
        for head in range(layer.heads)
    ]


def _about(layer: _Layer) -> dict[str, Any]:
    """Gives what a layer's heads have in common; of queries that came in several calls, the mean over all."""
    found = [call.geometry for call in layer.calls.values() if bool(call.geometry.placed_queries.any())]
    weights = [int(one.placed_queries.sum()) for one in found]

    def over(number: Callable[[Geometry], float | None]) -> float | None:
        numbers = [number(one) for one in found]
        if any(one is None for one in numbers):
            return None
        return sum(one * weight for one, weight in zip(numbers, weights, strict=True) if one is not None) / sum(weights)

    first = found[0]
    flat = first.grid[0] == 1 and first.key_grid[0] == 1
    space = first.has_space
    return {
        "uniform_px": over(lambda one: one.uniform(renormalised=True)[0]),
        "uniform_paper_px": over(lambda one: one.uniform(renormalised=False)[0]),
        "uniform_frames": over(lambda one: one.uniform(renormalised=True)[1]),
        "least_px": over(lambda one: one.least_px) if space else None,
        "most_px": over(lambda one: one.most_px) if space else None,
        "query_grid": first.grid[1:] if flat else first.grid,
        "key_grid": first.key_grid[1:] if flat else first.key_grid,
        "pitch_px": first.pitch[1:],
    }


def _mean(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else None


def _spread(values: Tensor, *, of_mean: bool) -> float | None:
    known = values[~values.isnan()]
    if len(known) < 2:
        return None
    deviation = float(known.std())
    return deviation / math.sqrt(len(known)) if of_mean else deviation


def analyze(model: nn.Module, batches: Iterable[Tensor]) -> AttentionDistance:
    """Measures the attention distance of every head of a model.

    Args:
        model: any whose attention classes are registered in `attention_sites`; on any device, in any dtype.
        batches: inputs, (B, C, H, W) or (B, C, T, H, W), on its device.

    Raises:
        NotDefined: the model has no attention that relates places, or one that is not known.
        BadInput: there is no input.
    """
    reader = DistanceReader()
    tap = Tap([reader])
    observing.run(model, batches, [tap])
    return reader.finding(tap.left_out)
