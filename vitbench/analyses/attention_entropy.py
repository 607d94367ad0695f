"""Entropy of attention: how many places each head looks at, whatever their distance.

Source: the rows' Shannon entropy, as RoPE-ViT plots it beside the distance (naver-ai/rope-vit, issue 30).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from vitbench.drawing.pictures import GREY, calm, dots_by_head, plain, wrapped
from vitbench.errors import BadInput
from vitbench.findings import HeadEntropy
from vitbench.inside import observing
from vitbench.inside.attention import Block, Call, Reader, Tap
from vitbench.inside.tallies import Tally, left_out_notes
from vitbench.records import Column, Table

# The least that float32 holds with all its digits: log of it is finite, and 0 x log of it is 0.
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionEntropy:
    """The entropies of all heads of a model.

    Attributes:
        rows: one a head, layer by layer.
        left_out: layers whose attention relates no places, with the reason.
    """

    rows: tuple[HeadEntropy, ...]
    left_out: Mapping[str, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for people: what was left out, and why."""
        return left_out_notes(self.left_out)


class EntropyReader(Reader):
    """Sums -a ln a over each row, and over its keys that have a place."""

    def __init__(self) -> None:
        self._layers: dict[str, Tally] = {}
        self._rows: dict[str, Tensor] = {}
        self._seen = False

    def begin(self, call: Call) -> None:
        """Makes room for the rows of a call."""
        kinds = ["all"] if call.distances.placed is None else ["all", "placed", "mass"]
        self._rows = {kind: call.rows() for kind in kinds}

    def read(self, block: Block) -> None:
        """Sums the rows of a block."""
        place = (block.maps, block.queries)
        mass = block.placed_mass()
        terms = torch.clamp(block.attention, min=_TINY, out=block.scratch).log_().mul_(block.attention)
        self._rows["all"][place] = terms.sum(-1).neg_()
        if mass is not None:
            self._rows["mass"][place] = mass
            self._rows["placed"][place] = block.over_placed(terms).neg_()

    def end(self, call: Call) -> None:
        """Sums the rows over the queries of each input."""
        layer = self._layers.setdefault(call.layer, Tally(heads=call.heads))
        layer.met(call)
        entropy = self._rows["all"]
        layer.add("all", call.per_input(entropy))
        # One key to attend to: 0 / ln 1 is not a number, and such a row says nothing.
        layer.add("share", call.per_input(entropy, over=call.geometry.keys_allowed.double().log()))
        if "mass" in self._rows:
            # With weights a / m: the sum of -(a / m) ln(a / m) is the sum of -a ln a, over m, plus ln m.
            mass = self._rows["mass"]
            layer.add("placed", call.per_input(self._rows["placed"] / mass + mass.log()))
        else:
            layer.add("placed", call.per_input(entropy))
        self._rows = {}

    def passed(self, inputs: Tensor) -> None:
        """Turns the sums of a pass into a mean an input."""
        self._seen = True
        for layer in self._layers.values():
            layer.passed()

    def finding(self, left_out: Mapping[str, str]) -> AttentionEntropy:
        """Gives the entropies over all passes so far.

        Args:
            left_out: layers that could not be read, with the reason.

        Raises:
            BadInput: there was no pass.
        """
        if not self._seen:
            raise BadInput("No image has been looked at, so there is no attention to measure.")
        rows = [
            HeadEntropy(
                layer=name,
                depth=depth,
                head=head,
                entropy_nats=layer.mean("all", head),
                sem_nats=layer.sem("all", head),
                entropy_share=layer.mean("share", head),
                entropy_placed_nats=layer.mean("placed", head),
                uniform_nats=uniform,
            )
            for depth, (name, layer) in enumerate(self._layers.items())
            for uniform in (
                layer.over_queries(lambda one: float(one.keys_allowed[one.placed_queries].double().log().mean())),
            )
            for head in range(layer.heads)
        ]
        return AttentionEntropy(rows=tuple(rows), left_out=dict(left_out))


def analyze(model: nn.Module, batches: Iterable[Tensor]) -> AttentionEntropy:
    """Measures the entropy of every head of a model.

    Args:
        model: any whose attention classes are registered in `attention_sites`; on any device, in any dtype.
        batches: inputs, (B, C, H, W) or (B, C, T, H, W), on its device.

    Raises:
        NotDefined: the model has no attention that relates places, or one that is not known.
        BadInput: there is no input.
    """
    reader = EntropyReader()
    tap = Tap([reader])
    observing.run(model, batches, [tap])
    return reader.finding(tap.left_out)


def table(findings: Mapping[str, AttentionEntropy]) -> Table:
    """Gives a line a layer: the sharpest, mean and broadest head."""
    rows = []
    for title, finding in findings.items():
        for layer, of_layer in groupby(finding.rows, key=lambda row: row.layer):
            heads = list(of_layer)
            found = [row.entropy_nats for row in heads if row.entropy_nats is not None]
            shares = [row.entropy_share for row in heads if row.entropy_share is not None]
            rows.append(
                {
                    "model": title,
                    "layer": layer,
                    "heads": len(heads),
                    "least_nats": min(found, default=None),
                    "mean_nats": fmean(found) if found else None,
                    "most_nats": max(found, default=None),
                    "uniform_nats": heads[0].uniform_nats,
                    "mean_share": fmean(shares) if shares else None,
                }
            )

    def number(name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: "" if row[name] is None else f"{row[name]:.3f}"

    shown = [
        *([Column(heading="Model", text=lambda row: row["model"])] if len(findings) > 1 else []),
        Column(heading="Layer", text=lambda row: row["layer"]),
        Column(heading="Heads", text=lambda row: str(row["heads"]), numeric=True),
        Column(heading="Sharpest\nhead, nats", text=number("least_nats"), numeric=True),
        Column(heading="Mean,\nnats", text=number("mean_nats"), numeric=True),
        Column(heading="Broadest\nhead, nats", text=number("most_nats"), numeric=True),
        Column(heading="Uniform,\nnats", text=number("uniform_nats"), numeric=True),
        Column(heading="Of uniform", text=number("mean_share"), numeric=True),
    ]
    notes = []
    for title, finding in findings.items():
        notes += [f"{title}: {note}" for note in finding.notes]
    return Table(rows=rows, columns=shown, notes=notes)


_PANEL_IN = (3.7, 3.5)


def draw(findings: Mapping[str, AttentionEntropy]) -> Figure:
    """Draws a dot a head over the depth of its layer, a panel a model, and in grey the entropy of no preference."""
    width, height = _PANEL_IN
    figure = Figure(figsize=(width * len(findings) + 0.3, height + 0.3), layout="constrained")
    for place, (ax, (title, finding)) in enumerate(
        zip(figure.subplots(1, len(findings), squeeze=False)[0], findings.items(), strict=True)
    ):
        rows = [row for row in finding.rows if row.entropy_nats is not None]
        dots = [(row.depth, row.head, row.entropy_nats) for row in rows if row.entropy_nats is not None]
        uniform = {row.depth: row.uniform_nats for row in rows if row.uniform_nats is not None}
        dots_by_head(ax, dots, uniform)
        ax.set_xlim(-0.5, max((row.depth for row in rows), default=0) + 0.5)
        ax.set_ylim(0, 1.08 * max(uniform.values(), default=1.0))
        ax.set_title(wrapped(plain(title), 40), fontsize=10, parse_math=False)
        if place == 0:
            ax.set_ylabel("Attention entropy (nats)")
        calm(ax)
    figure.supxlabel("Grey line: attention that is the same everywhere.", fontsize=7, color=GREY)
    return figure
