"""The papers' own numbers, each with its source and its convention (`published.csv`).

A figure is kept as the text that was printed, so that its rounding is known: "4.5" may be anything from 4.45 to 4.55.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from vitbench.findings import Beside

# A right count may differ from a printed one by these, or by the printed one's rounding where that is more.
MACS_TOLERANCE = 0.01
PARAMS_TOLERANCE = 0.006

Quantity = Literal["params", "macs"]

_GIGA = 10**9
_MEGA = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of a published table.

    Attributes:
        variant: id of the model, equal across sources.
        input: "3x224x224"; clips are channels x frames x height x width.
        params_M, flops_G: as printed, in millions and in units of 1e9; empty where the source gives none.
        convention: what flops_G counts, with the evidence.
        views: temporal and spatial crops of a video that a result averages; "INCLUDED" where flops_G is of all of them.
        reason: why a right count differs from this figure by more than the tolerance; empty where it does not.
    """

    family: str
    paper_name: str
    variant: str
    input: str
    params_M: str
    flops_G: str
    convention: str
    views: str
    top1: str
    data: str
    throughput: str
    throughput_device: str
    source: str
    notes: str
    reason: str

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """The input as numbers, or None where it is no image or clip (text, tokens)."""
        extents = self.input.split("x")
        return tuple(int(extent) for extent in extents) if all(extent.isdigit() for extent in extents) else None

    @property
    def params(self) -> float | None:
        """Published parameters."""
        return float(self.params_M) * _MEGA if self.params_M else None

    @property
    def params_rounding(self) -> float:
        """Half a unit of the last printed place of the parameters."""
        return _half_unit(self.params_M) * _MEGA

    @property
    def macs(self) -> float | None:
        """Published multiply-accumulates with attention; None where the source counts something else.

        Figures that count two for each multiply-accumulate are halved; those of several views of a video are of one.
        """
        return float(self.flops_G) * _GIGA / self._counted if self.flops_G and self._counted else None

    @property
    def macs_rounding(self) -> float:
        """Half a unit of the last printed place of the multiply-accumulates."""
        return _half_unit(self.flops_G) * _GIGA / (self._counted or 1)

    def agrees(self, quantity: Quantity, count: float) -> bool | None:
        """Tells whether a count agrees with this figure; None where the source does not give that quantity."""
        printed: float | None = getattr(self, quantity)
        if printed is None:
            return None
        tolerance = MACS_TOLERANCE if quantity == "macs" else PARAMS_TOLERANCE
        rounding: float = getattr(self, f"{quantity}_rounding")
        # A trifle for the arithmetic of the bound itself: 4.55 printed as 4.5 is at the edge, not outside.
        return abs(count - printed) <= max(tolerance * printed, rounding) * (1 + 1e-9)

    @property
    def pretrain_exaflops(self) -> float | None:
        """Published compute of the pre-training, 1e18 floating-point operations; None where the source gives none."""
        found = re.search(r"published figure is training compute: ([\d.]+) exaFLOPs", self.notes)
        return float(found[1]) if found else None

    @property
    def more_data(self) -> bool:
        """Whether top1 is of a model trained on more than the data set it is judged on."""
        return not self.data.startswith("IN-1k")

    def has_imagenet_top1(self) -> bool:
        """Tells whether top1 is of this model as a classifier trained for ImageNet-1k, whole, and judged at `input`."""
        if (
            not self.top1
            or "top-1 is of another model" in self.notes
            or "linear" in self.data
            or not re.match(r"IN-1k|JFT|IN-22K-ext|distilled$|.*-> IN-1k", self.data)
        ):
            return False
        if "->" in self.data and "-> IN-1k" not in self.data:
            return False
        judged_at = re.search(r"-> IN-1k @(\d+)$", self.data)
        return judged_at is None or self.input.endswith(f"x{judged_at[1]}")

    @property
    def cited(self) -> str:
        """The source without the table, and of several the first."""
        return re.split(r";| Tables? | model config| weights metadata", self.source)[0]

    @property
    def _counted(self) -> int:
        """How often each multiply-accumulate of one input was counted; 0 where not every one was."""
        if self.convention.startswith("FLOPs = 2"):
            return 2
        if "WITHOUT" in self.convention or "misses" in self.convention:
            return 0
        included = re.match(r"(\d+)x(\d+) INCLUDED", self.views)
        views = int(included[1]) * int(included[2]) if included else 1
        return views if self.convention.startswith(("MACs", "multiply-adds")) else 0

    @property
    def from_memory(self) -> bool:
        """Whether the figure was noted without the source at hand."""
        return "from memory" in self.source


def _half_unit(printed: str) -> float:
    decimals = len(printed.partition(".")[2])
    return 0.5 * 10.0**-decimals


@cache
def figures() -> tuple[Figure, ...]:
    """Gives every published figure, in the order of the file."""
    with (files("vitbench") / "published.csv").open(encoding="utf-8") as file:
        return tuple(Figure(**row) for row in csv.DictReader(file))


def find(ids: tuple[str, ...], input_shape: tuple[int, ...] | None = None) -> tuple[Figure, ...]:
    """Gives the figures of a model, by its published ids, of one input or of all."""
    return tuple(
        figure
        for figure in figures()
        if figure.variant in ids and (input_shape is None or figure.input_shape == input_shape)
    )


def beside(
    ids: tuple[str, ...], paper: Sequence[str], input_shape: tuple[int, ...], *, params: int, macs: int | None
) -> Beside:
    """Puts the published figures of one model at one input beside our counts.

    Args:
        ids: the model's published ids.
        paper: how sources name the model's own paper and repository, best first.
        input_shape: without the batch.
        params: our count.
        macs: our count for one input.
    """
    found = find(ids, input_shape)
    for_params = chosen(found, "params", paper)
    for_macs = chosen(found, "macs", paper)
    used = [figure for figure in (for_params, for_macs) if figure is not None]
    printed_params = for_params.params if for_params else None
    printed_macs = for_macs.macs if for_macs else None
    return Beside(
        published_params=printed_params,
        params_difference=params / printed_params - 1 if printed_params else None,
        published_macs=printed_macs,
        macs_difference=macs / printed_macs - 1 if printed_macs and macs is not None else None,
        published_source="; ".join(dict.fromkeys(figure.source for figure in used)),
        published_reason=" ".join(dict.fromkeys(figure.reason for figure in used if figure.reason)),
    )


def imagenet_top1(ids: tuple[str, ...], paper: Sequence[str], input_shape: tuple[int, ...]) -> Figure | None:
    """Gives the figure whose `top1` on ImageNet-1k stands for a model at one input, if there is one.

    Training on ImageNet-1k alone before more data, since data change the figure more than the source does; then the model's
    own paper, its repository, others, and those noted from memory last. Of others, the source with such figures of most of
    the family, so that its models are of one recipe as far as can be, and of equal ones the first of the file.

    Args:
        ids: the model's published ids.
        paper: how sources name the model's own paper and repository, best first.
        input_shape: without the batch; a figure of a model that was fine-tuned at another size is no candidate.
    """
    found = [figure for figure in find(ids, input_shape) if figure.has_imagenet_top1()]
    return min(
        found, key=lambda figure: (figure.more_data, *_rank(figure, paper), -_breadths()[_recipe(figure)]), default=None
    )


def _recipe(figure: Figure) -> tuple[str, str, bool]:
    return figure.family, figure.cited, figure.more_data


@cache
def _breadths() -> Counter[tuple[str, str, bool]]:
    """Gives of how many models and inputs of a family a source has a top-1 on ImageNet-1k."""
    told = {(_recipe(figure), figure.variant, figure.input) for figure in figures() if figure.has_imagenet_top1()}
    return Counter(recipe for recipe, _, _ in told)


def chosen(found: tuple[Figure, ...], quantity: Quantity | Literal["top1"], paper: Sequence[str]) -> Figure | None:
    """Chooses the one figure to show: the model's own paper before its repository before others, memory last.

    Args:
        found: figures of one model at one input.
        quantity: figures that lack it are passed over.
        paper: how sources name the model's own paper and repository, best first.
    """
    having = [figure for figure in found if getattr(figure, quantity) not in (None, "")]
    return next(iter(ranked(having, paper)), None)


def ranked(found: Sequence[Figure], paper: Sequence[str]) -> list[Figure]:
    """Sorts figures: the model's own paper before its repository before others, those noted from memory last."""
    return sorted(found, key=lambda figure: _rank(figure, paper))


def _rank(figure: Figure, paper: Sequence[str]) -> tuple[bool, int]:
    own = [place for place, name in enumerate(paper) if name in figure.source]
    return figure.from_memory, min(own, default=len(paper))
