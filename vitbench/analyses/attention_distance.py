"""Mean attention distance: how far, in the image, each head looks on average.

Source: ViT (arXiv 2010.11929), section 4.5, appendix D.7, Figs. 7 right and 11; the authors' code in their repository's issue
162. Heads sorted: Raghu et al. (arXiv 2108.08810), Figs. 3 to 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from vitbench.drawing.pictures import COLORS, GREY, calm, dots_by_head, plain, wrapped
from vitbench.errors import BadInput
from vitbench.findings import HeadDistance
from vitbench.inside import observing
from vitbench.inside.attention import Block, Call, Reader, Tap
from vitbench.inside.tallies import Tally, left_out_notes
from vitbench.records import Column, Table

Mode = Literal["paper", "renorm"]
MODES: tuple[Mode, ...] = ("paper", "renorm")


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

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for people: what was left out, and why."""
        notes = list(left_out_notes(self.left_out))
        if any(row.query_grid != row.key_grid for row in self.rows):
            notes.append("Where keys are pooled, no distance can be 0: see the least, layer by layer.")
        empty = sum(row.rows_left_out for row in self.rows)
        if empty:
            notes.append(f"{empty} rows have all their weight on tokens without a place, and are left out of renorm.")
        return tuple(notes)


class DistanceReader(Reader):
    """Weighs each row of attention by the distances of its keys: a row's sums in float32, all further ones in float64."""

    def __init__(self) -> None:
        self._layers: dict[str, Tally] = {}
        self._left_out: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}
        self._width = 0

    def begin(self, call: Call) -> None:
        """Makes room for the rows of a call."""
        kinds = {"px": call.distances.px, "frames": call.distances.frames, "mass": call.distances.placed}
        self._rows = {kind: call.rows() for kind, known in kinds.items() if known is not None}

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
        layer = self._layers.setdefault(call.layer, Tally(heads=call.heads))
        layer.met(call)
        mass = self._rows.get("mass")
        for kind in ("px", "frames"):
            if kind in self._rows:
                rows = self._rows[kind]
                layer.add(f"paper_{kind}", call.per_input(rows))
                # 0 / 0 is not a number: such a row is left out of the mean, and counted below.
                layer.add(kind, call.per_input(rows if mass is None else rows / mass))
        if mass is not None:
            layer.add("mass", call.per_input(mass))
            empty = call.per_input((mass == 0).float())[0].sum(0)
            self._left_out[call.layer] = self._left_out.get(call.layer, torch.zeros_like(empty)) + empty
        self._rows = {}

    def passed(self, inputs: Tensor) -> None:
        """Turns the sums of a pass into a mean an input."""
        self._width = inputs.shape[-1]
        for layer in self._layers.values():
            layer.passed()

    def finding(self, left_out: Mapping[str, str]) -> AttentionDistance:
        """Gives the distances over all passes so far.

        Args:
            left_out: layers that could not be read, with the reason.

        Raises:
            BadInput: there was no pass.
        """
        if not self._width:
            raise BadInput("No image has been looked at, so there is no attention to measure.")
        rows = [
            row
            for depth, (name, layer) in enumerate(self._layers.items())
            for row in _head_rows(name, depth, layer, self._left_out.get(name))
        ]
        return AttentionDistance(rows=tuple(rows), width_px=self._width, left_out=dict(left_out))


def _head_rows(name: str, depth: int, layer: Tally, left_out: Tensor | None) -> list[HeadDistance]:
    first = layer.first
    flat = first.grid[0] == 1 and first.key_grid[0] == 1
    about: dict[str, Any] = {
        "uniform_px": layer.over_queries(lambda one: one.uniform(renormalised=True)[0]),
        "uniform_paper_px": layer.over_queries(lambda one: one.uniform(renormalised=False)[0]),
        "uniform_frames": layer.over_queries(lambda one: one.uniform(renormalised=True)[1]),
        "least_px": layer.over_queries(lambda one: one.least_px if one.has_space else None),
        "most_px": layer.over_queries(lambda one: one.most_px if one.has_space else None),
        "query_grid": first.grid[1:] if flat else first.grid,
        "key_grid": first.key_grid[1:] if flat else first.key_grid,
        "pitch_px": first.pitch[1:],
    }
    return [
        HeadDistance(
            layer=name,
            depth=depth,
            head=head,
            distance_px=layer.mean("px", head),
            distance_paper_px=layer.mean("paper_px", head),
            sem_px=layer.sem("px", head),
            sem_paper_px=layer.sem("paper_px", head),
            std_px=layer.std("px", head),
            distance_frames=layer.mean("frames", head),
            distance_paper_frames=layer.mean("paper_frames", head),
            sem_frames=layer.sem("frames", head),
            prefix_mass=0.0 if (mass := layer.mean("mass", head)) is None else 1.0 - mass,
            rows_left_out=0 if left_out is None else int(left_out[head]),
            **about,
        )
        for head in range(layer.heads)
    ]


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


def table(findings: Mapping[str, AttentionDistance]) -> Table:
    """Gives a line a layer: the nearest, mean and farthest head, and what attention without preference would give."""
    rows = []
    for title, finding in findings.items():
        for layer, of_layer in groupby(finding.rows, key=lambda row: row.layer):
            heads = list(of_layer)
            px = [row.distance_px for row in heads if row.distance_px is not None]
            frames = [row.distance_frames for row in heads if row.distance_frames is not None]
            paper = [row.distance_paper_px for row in heads if row.distance_paper_px is not None]
            rows.append(
                {
                    "model": title,
                    "layer": layer,
                    "heads": len(heads),
                    "least_px": min(px, default=None),
                    "mean_px": fmean(px) if px else None,
                    "most_px": max(px, default=None),
                    "mean_paper_px": fmean(paper) if paper else None,
                    "uniform_px": heads[0].uniform_px,
                    "mean_frames": fmean(frames) if frames else None,
                    "uniform_frames": heads[0].uniform_frames,
                    "prefix_mass": fmean(row.prefix_mass for row in heads),
                }
            )

    def number(name: str, digits: int) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: "" if row[name] is None else f"{row[name]:.{digits}f}"

    shown = [
        *([Column(heading="Model", text=lambda row: row["model"])] if len(findings) > 1 else []),
        Column(heading="Layer", text=lambda row: row["layer"]),
        Column(heading="Heads", text=lambda row: str(row["heads"]), numeric=True),
        Column(heading="Nearest\nhead, px", text=number("least_px", 1), numeric=True),
        Column(heading="Mean, px\n(renorm)", text=number("mean_px", 1), numeric=True),
        Column(heading="Farthest\nhead, px", text=number("most_px", 1), numeric=True),
        Column(heading="Mean, px\n(paper)", text=number("mean_paper_px", 1), numeric=True),
        Column(heading="Uniform,\npx", text=number("uniform_px", 1), numeric=True),
        Column(heading="Prefix\nmass", text=number("prefix_mass", 3), numeric=True),
    ]
    if any(row["mean_frames"] is not None for row in rows):
        shown[-1:-1] = [
            Column(heading="Mean,\nframes", text=number("mean_frames", 2), numeric=True),
            Column(heading="Uniform,\nframes", text=number("uniform_frames", 2), numeric=True),
        ]
    if all(row["mean_px"] is None for row in rows):
        shown = [column for column in shown if ", px" not in column.heading]
    return Table(rows=rows, columns=shown, notes=_notes(findings))


def _notes(findings: Mapping[str, AttentionDistance]) -> list[str]:
    notes = [
        "Renorm: weights over the tokens that have a place sum to 1. Paper: class, distillation and register tokens are dropped "
        "and nothing is made up for them, as in the ViT paper's figure; paper = renorm x (1 - prefix mass), query by query."
    ]
    for title, finding in findings.items():
        notes += [f"{title}: {note}" for note in finding.notes]
    return notes


# The paper's axis ends at 130 pixels for an input of 224.
_AXIS_SHARE = 130 / 224
_PANEL_IN = (3.7, 3.5)


def draw(findings: Mapping[str, AttentionDistance], *, mode: Mode = "paper", by_head: bool = False) -> Figure:
    """Draws a dot a head over the depth of its layer, a panel a model; below, distances in time, where there are any.

    Args:
        findings: by title.
        mode: `paper` or `renorm`, as in the rows.
        by_head: instead the heads of the two lowest and the two highest layers, sorted, a line a layer: Raghu et al.
    """
    space = any(row.distance_px is not None for finding in findings.values() for row in finding.rows)
    time = any(row.distance_frames is not None for finding in findings.values() for row in finding.rows)
    units = [unit for unit, there in (("px", space), ("frames", time)) if there]
    width, height = _PANEL_IN
    figure = Figure(figsize=(width * len(findings) + 0.3, height * len(units) + 0.3), layout="constrained")
    axes = figure.subplots(len(units), len(findings), squeeze=False)
    for line, unit in zip(axes, units, strict=True):
        labelled = False
        for ax, (title, finding) in zip(line, findings.items(), strict=True):
            if unit == units[0]:
                ax.set_title(wrapped(plain(title), 40), fontsize=10, parse_math=False)
            if all(_value(row, unit, mode) is None for row in finding.rows):
                ax.set_axis_off()  # a model of images beside one of clips
                continue
            (_draw_sorted if by_head else _draw_depth)(ax, finding, unit, mode)
            _scale(ax, finding, unit, mode)
            if not labelled:
                what = "pixels" if unit == "px" else "frames"
                ax.set_ylabel(f"Mean distance ({what})" if by_head else f"Mean attention distance ({what})")
                labelled = True
    said = _CAPTIONS[mode] if by_head else f"{_CAPTIONS[mode]} Grey line: attention that is the same everywhere."
    caption = wrapped(said, int(figure.get_size_inches()[0] * 18))
    figure.supxlabel(caption, fontsize=7, color=GREY)
    return figure


_CAPTIONS: Mapping[Mode, str] = {
    "paper": "Mode paper: weights on class and register tokens are dropped.",
    "renorm": "Mode renorm: weights on image tokens sum to 1.",
}


def _value(row: HeadDistance, unit: str, mode: Mode) -> float | None:
    value: float | None = getattr(row, f"distance_paper_{unit}" if mode == "paper" else f"distance_{unit}")
    return value


def _draw_depth(ax: Axes, finding: AttentionDistance, unit: str, mode: Mode) -> None:
    dots = [(row.depth, row.head, value) for row in finding.rows if (value := _value(row, unit, mode)) is not None]
    column_ = "uniform_frames" if unit == "frames" else "uniform_px" if mode == "renorm" else "uniform_paper_px"
    uniform = {row.depth: value for row in finding.rows if (value := getattr(row, column_)) is not None}
    dots_by_head(ax, dots, uniform)
    ax.set_xlim(-0.5, max((row.depth for row in finding.rows), default=0) + 0.5)


def _draw_sorted(ax: Axes, finding: AttentionDistance, unit: str, mode: Mode) -> None:
    layers = [
        (layer, sorted(value for row in same if (value := _value(row, unit, mode)) is not None))
        for layer, same in groupby(finding.rows, key=lambda row: row.layer)
    ]
    layers = [(layer, values) for layer, values in layers if values]
    shown = layers if len(layers) <= 4 else [*layers[:2], *layers[-2:]]
    for number, (layer, values) in enumerate(shown):
        ax.plot(
            range(len(values)), values, marker="o", markersize=3, color=COLORS[number], label=plain(layer), zorder=3
        )
    ax.set_xlabel("Sorted attention head")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    for text in ax.legend(loc="lower right", fontsize=7, framealpha=0.85).get_texts():
        text.set_parse_math(False)


def _scale(ax: Axes, finding: AttentionDistance, unit: str, mode: Mode) -> None:
    values = [value for row in finding.rows if (value := _value(row, unit, mode)) is not None]
    most = max(values, default=0.0)
    usual = (
        finding.width_px * _AXIS_SHARE
        if unit == "px"
        else 1.12 * max((row.uniform_frames or 0) for row in finding.rows)
    )
    # Heads that look further than all at random do not leave the picture.
    ax.set_ylim(0, max(usual, most * 1.05))
    calm(ax)
