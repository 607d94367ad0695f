"""A number an input, from numbers a row of attention: summed over queries, then their mean, spread and error over inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitbench.inside.attention import Call
from vitbench.inside.geometry import Geometry


@dataclass
class Tally:
    """The numbers of one layer, by kind, each a number an input and head.

    A layer may attend in several calls, each with some of the queries. All is summed in float64, an input by itself, so that it
    does not matter how inputs are shared out to batches.

    Attributes:
        heads: h.
        geometries: of its calls.
    """

    heads: int
    geometries: list[Geometry] = field(default_factory=list)
    _sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _values: dict[str, list[Tensor]] = field(default_factory=dict)

    def met(self, call: Call) -> None:
        """Keeps the geometry of a call."""
        if not any(one is call.geometry for one in self.geometries):
            self.geometries.append(call.geometry)

    def add(self, kind: str, found: tuple[Tensor, Tensor]) -> None:
        """Adds sums over some of the queries, and how many they are, each (B, h)."""
        before = self._sums.get(kind)
        self._sums[kind] = found if before is None else (before[0] + found[0], before[1] + found[1])

    def passed(self) -> None:
        """Turns the sums of a pass into a mean an input and head; nothing to average gives NaN."""
        for kind, (sums, counts) in self._sums.items():
            self._values.setdefault(kind, []).append(sums / counts)
        self._sums = {}

    def mean(self, kind: str, head: int) -> float | None:
        """Gives the mean over the inputs; None where the kind was not seen."""
        known = self._known(kind, head)
        return float(known.mean()) if len(known) else None

    def std(self, kind: str, head: int) -> float | None:
        """Gives the standard deviation over the inputs; None for fewer than two."""
        known = self._known(kind, head)
        return float(known.std()) if len(known) > 1 else None

    def sem(self, kind: str, head: int) -> float | None:
        """Gives the standard error of the mean over the inputs; None for fewer than two."""
        known = self._known(kind, head)
        return float(known.std()) / math.sqrt(len(known)) if len(known) > 1 else None

    def _known(self, kind: str, head: int) -> Tensor:
        values = self._values.get(kind)
        if values is None:
            return torch.empty(0)
        found = torch.cat([value[:, head] for value in values])
        return found[~found.isnan()]

    def over_queries(self, number: Callable[[Geometry], float | None]) -> float | None:
        """Gives the mean of a number a geometry, weighted by its queries that have a place; None if one has none."""
        placed = [(one, int(one.placed_queries.sum())) for one in self.geometries]
        found = [(number(one), weight) for one, weight in placed if weight]
        if not found or any(value is None for value, _ in found):
            return None
        return sum(value * weight for value, weight in found if value is not None) / sum(weight for _, weight in found)

    @property
    def first(self) -> Geometry:
        """The first geometry whose queries have places."""
        return next(one for one in self.geometries if bool(one.placed_queries.any()))


def left_out_notes(left_out: Mapping[str, str]) -> tuple[str, ...]:
    """Says which layers were left out, reason by reason."""
    by_reason: dict[str, list[str]] = {}
    for layer, reason in left_out.items():
        by_reason.setdefault(reason, []).append(layer)
    return tuple(f"Left out {', '.join(layers)}: {reason}." for reason, layers in by_reason.items())
