"""Accuracy against the compute of the pre-training: ViT (arXiv 2010.11929), Fig. 5.

Without results, the paper's own models, from Table 6 as published.csv has it. With results, the rows that have a `top1` of
their own, in percent, and `pretrain_exaflops` (1e18 floating-point operations), or what it follows from: `pretrain_epochs`,
`pretrain_images` (of an epoch) and the model's `macs`, in the same row or in another row of the model, such as `vitbench flops`
writes. A training step then counts as three forward passes, and a multiply-accumulate as two operations, as the paper counts.

The paper's left half is the mean over ImageNet, CIFAR-10, CIFAR-100, Oxford-IIIT Pets and Flowers-102: `top1_average5`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitbench import catalog, published, results
from vitbench.drawing import labels
from vitbench.drawing.axes import Scale, canvas, cut, legend, scale_of, set_scale, styles
from vitbench.drawing.labels import Dot
from vitbench.drawing.pictures import plain
from vitbench.drawing.rows import counted, model_of, with_result
from vitbench.errors import BadInput

_PANEL_WIDTH_IN = 4.8
_HEIGHT_IN = 4.2
_MARKER_PT = 7.0
_MOST_GROUPS = 24
_OPERATIONS_A_MAC = 2
_PASSES_A_STEP = 3

# The paper's names of its three kinds, by family of the catalog and by family of published.csv.
_KINDS = {
    "vit": "Transformer (ViT)",
    "bit": "ResNet (BiT)",
    "vit_hybrid": "Hybrid",
}
_PANELS = {"top1_average5": "Average-5", "top1": "ImageNet"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One pre-training: its compute in 1e18 operations and the top-1 that came of it, by column of `_PANELS`."""

    label: str
    kind: str
    exaflops: float
    accuracy: Mapping[str, float]


def plot(rows: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """Draws a dot a pre-training; in halves, as the paper does, where the rows have both kinds of accuracy.

    Args:
        rows: flat, as `results.read` gives them; none for the paper's.

    Raises:
        BadInput: no row has both an accuracy and a compute, or a cell cannot be read.
    """
    if rows:
        runs, left_out = _own(rows)
        sentences = ["Compute: 6 x MACs x images x epochs where pre-training exaFLOPs are not stated."]
    else:
        runs, left_out = _paper(), Counter[str]()
        sentences = [
            "Source: ViT paper (arXiv 2010.11929), Table 6: pre-training on JFT-300M for 7 or 14 epochs (ep.), top-1 after "
            "fine-tuning at 384 px."
        ]
    panels = [column for column in _PANELS if any(column in run.accuracy for run in runs)]
    if "top1_average5" not in panels:
        where = "the results have no top1_average5" if rows else "published.csv has no such figures"
        sentences.append(f"The paper's left half, the mean over five data sets, is not drawn: {where}.")
    if left_out:
        sentences.append(f"Left out: {counted(left_out)}.")
    known = list(_KINDS.values())
    kinds = styles(
        sorted({run.kind for run in runs}, key=lambda kind: (known.index(kind) if kind in known else len(known), kind))
    )
    if len(kinds) > _MOST_GROUPS:
        raise BadInput(f"{len(kinds)} families cannot be told apart, {_MOST_GROUPS} at most: give fewer.")
    figure = canvas(_PANEL_WIDTH_IN * len(panels) + 8, _HEIGHT_IN + 8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, column in zip(axes, panels, strict=True):
        _draw(ax, column, runs, kinds)
    signs = [
        (kind, Line2D([], [], linestyle="none", marker=marker, color=color, markersize=_MARKER_PT))
        for kind, (color, marker) in kinds.items()
    ]
    cut(figure, _PANEL_WIDTH_IN * len(panels), _HEIGHT_IN, " ".join(sentences), legend(figure, signs))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ax, column in zip(axes, panels, strict=True):
        here = [run for run in runs if column in run.accuracy]
        dots = [
            Dot(x=run.exaflops, y=run.accuracy[column], radius_pt=_MARKER_PT / 2, text=run.label)
            for run in sorted(here, key=lambda run: (-run.accuracy[column], run.exaflops, run.label))
        ]
        labels.place(ax, dots)
    return figure


def _draw(ax: Axes, column: str, runs: Sequence[Run], kinds: Mapping[str, tuple[str, str]]) -> None:
    here = [run for run in runs if column in run.accuracy]
    for run in here:
        color, marker = kinds[run.kind]
        ax.plot(
            [run.exaflops], [run.accuracy[column]], marker, color=color, markersize=_MARKER_PT, markeredgecolor="white"
        )
    compute = [run.exaflops for run in here]
    scale = scale_of("pretrain_exaflops", compute)
    label = "Total pre-training compute (exaFLOPs)"
    set_scale(ax, "x", Scale(label=label, unit=1.0, log=scale.log, text=scale.text), compute)
    accuracy = [run.accuracy[column] for run in here]
    set_scale(ax, "y", Scale(label="Transfer accuracy (%)", unit=1.0, log=False, text=scale.text), accuracy)
    ax.set_title(_PANELS[column], loc="left", fontweight="bold", fontsize=11)
    ax.grid(visible=True, color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _paper() -> list[Run]:
    figures = [figure for figure in published.figures() if figure.pretrain_exaflops]
    several = Counter(figure.paper_name for figure in figures)
    runs = []
    for figure in figures:
        epochs = re.search(r"(\d+) ep", figure.data)
        ending = f", {epochs[1]} ep." if epochs and several[figure.paper_name] > 1 else ""
        runs.append(
            Run(
                label=f"{figure.paper_name}{ending}",
                kind=_KINDS[{"ViT": "vit", "BiT": "bit", "ViT-hybrid": "vit_hybrid"}[figure.family]],
                exaflops=figure.pretrain_exaflops or math.nan,
                accuracy={"top1": float(figure.top1)},
            )
        )
    return runs


def _own(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Run], Counter[str]]:
    good, left_out = with_result(rows)
    costs: dict[str, set[tuple[tuple[int, ...], float]]] = {}
    for row in good:
        macs = results.number(row, "macs")
        if macs is not None:
            shape = results.extents(row, "input_shape") if results.text(row, "input_shape") else ()
            costs.setdefault(model_of(row), set()).add((shape, macs / (results.number(row, "batch_size") or 1)))
    runs = []
    for row in good:
        accuracy = {column: value for column in _PANELS if (value := results.number(row, column)) is not None}
        if not accuracy:
            # A row that only brings a model's MACs is no row that was left out.
            if results.number(row, "macs") is None:
                left_out["without top1"] += 1
            continue
        if bad := next((column for column, value in accuracy.items() if not 0 <= value <= 100), None):
            raise results.wrong(row, bad, "a percentage")
        exaflops = _compute(row, costs.get(model_of(row), set()))
        if exaflops is None:
            left_out["without pretrain_exaflops, or pretrain_epochs, pretrain_images and macs"] += 1
            continue
        variant = catalog.VARIANTS.get(results.text(row, "model"))
        family = plain(results.text(row, "family")) or (variant.family if variant else "not in the catalog")
        runs.append(Run(label=model_of(row), kind=_KINDS.get(family, family), exaflops=exaflops, accuracy=accuracy))
    if not runs:
        raise BadInput(
            "No row has both top1, in percent, and pretrain_exaflops, or pretrain_epochs, pretrain_images and macs: "
            f"{counted(left_out) or 'none has top1'}."
        )
    if all(value <= 1 for run in runs for value in run.accuracy.values()):
        raise BadInput("No top-1 is above 1: give it in percent, not as a fraction.")
    return runs, left_out


def _compute(row: Mapping[str, Any], costs: set[tuple[tuple[int, ...], float]]) -> float | None:
    stated = results.number(row, "pretrain_exaflops")
    epochs, images = results.number(row, "pretrain_epochs"), results.number(row, "pretrain_images")
    if stated is None:
        if epochs is None or images is None or not costs:
            return None
        shape = results.extents(row, "input_shape") if results.text(row, "input_shape") else None
        macs = {cost for at, cost in costs if shape is None or not at or at == shape}
        if len(macs) > 1:
            raise results.wrong(
                row, "input_shape", "the size of the pre-training, since the model's MACs differ by size"
            )
        if not macs:
            return None
        stated = _OPERATIONS_A_MAC * _PASSES_A_STEP * macs.pop() * images * epochs / 1e18
        if stated <= 0:
            raise results.wrong(row, "pretrain_epochs", "above zero, as are pretrain_images and macs")
    if stated <= 0:
        raise results.wrong(row, "pretrain_exaflops", "a number above zero")
    return stated
