"""How alike DeiT's class and distillation tokens are, layer by layer.

Source: "Training data-efficient image transformers & distillation through attention", Touvron et al., arXiv 2012.12877, section
4: the cosine of the learned embeddings is 0.06, and grows to 0.93 at the last layer.

Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.nn import functional

from vitbench.drawing.pictures import COLORS, SMALL, plain, wrapped
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import TokenCosine
from vitbench.inside import layers, observing
from vitbench.records import Column, Table

LEARNED = "learned tokens"
"""The name of the tokens themselves, before positions are added; their layer's number is 0."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSimilarity:
    """The cosine of class and distillation token, from the learned tokens to the last block."""

    rows: tuple[TokenCosine, ...]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Sums:
    images: int = 0
    cosine: float = 0.0
    square: float = 0.0


class TokenPair(observing.Observer):
    """Sums the cosine of the first two tokens after each block."""

    def __init__(self) -> None:
        self._learned: float | None = None
        self._sums: dict[str, _Sums] = {}

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[None]:
        """Watches the layers of the model.

        Raises:
            NotDefined: it has no distillation token.
        """
        tokens = [getattr(model, name, None) for name in ("cls_token", "dist_token")]
        if not isinstance(tokens[1], Tensor):
            raise NotDefined("it has no distillation token", instead=("cka",))
        if not isinstance(tokens[0], Tensor) or getattr(model, "num_prefix_tokens", 2) != 2:
            raise NotDefined("its first two tokens are not a class and a distillation token", instead=("cka",))
        learned_class, learned_distillation = (token.detach().float().flatten() for token in (tokens[0], tokens[1]))
        self._learned = float(functional.cosine_similarity(learned_class, learned_distillation, dim=0))
        with layers.watched(model, self._see):
            yield

    def _see(self, activation: layers.Activation) -> None:
        x = activation.output
        # What runs before the tokens are there, such as a stem, is no layer of theirs.
        if x.ndim != 3 or len(x) != activation.input_shape[0] or x.shape[1] < 2:
            return
        pair = x[:, :2].float()
        cosines = functional.cosine_similarity(pair[:, 0], pair[:, 1], dim=1).cpu().double()
        sums = self._sums.setdefault(activation.layer, _Sums())
        sums.images += len(cosines)
        sums.cosine += float(cosines.sum())
        sums.square += float(cosines.square().sum())

    def seen(self, inputs: Tensor) -> None:
        """Has all it needs from the layers."""

    def finding(self) -> TokenSimilarity:
        """Gives the cosine at each depth.

        Raises:
            BadInput: there were no images.
        """
        if self._learned is None or not self._sums:
            raise BadInput("There are no images to compare tokens on.")
        images = max(sums.images for sums in self._sums.values())
        rows = [TokenCosine(index=0, layer=LEARNED, cosine=self._learned, cosine_sem=None, images=images)]
        for number, (name, sums) in enumerate(self._sums.items(), start=1):
            rows.append(_row(number, name, sums))
        return TokenSimilarity(rows=tuple(rows))


def _row(number: int, name: str, sums: _Sums) -> TokenCosine:
    mean = sums.cosine / sums.images
    error = None
    if sums.images > 1 and name != layers.EMBEDDING:
        variance = max(0.0, sums.square - sums.images * mean**2) / (sums.images - 1)
        error = math.sqrt(variance / sums.images)
    return TokenCosine(index=number, layer=name, cosine=mean, cosine_sem=error, images=sums.images)


def analyze(model: nn.Module, batches: Iterable[Tensor]) -> TokenSimilarity:
    """Compares the class and the distillation token of a model, layer by layer.

    Args:
        model: with parameters `cls_token` and `dist_token`, in this order before the others, as timm's distilled DeiT has them.
        batches: inputs, (B, *input_shape).

    Raises:
        NotDefined: the model has no distillation token.
        BadInput: there are no images.
    """
    observer = TokenPair()
    observing.run(model, batches, [observer])
    return observer.finding()


def draw(findings: Mapping[str, TokenSimilarity]) -> Figure:
    """Draws the cosine over the depth, a line a model, with the standard error over images.

    Args:
        findings: by the title of the model.
    """
    figure = Figure(figsize=(5.2, 3.6), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    ax = figure.subplots()
    for place, (title, finding) in enumerate(findings.items()):
        ax.errorbar(
            [row.index for row in finding.rows],
            [row.cosine for row in finding.rows],
            yerr=[row.cosine_sem or 0.0 for row in finding.rows],
            label=wrapped(plain(title), 36),
            color=COLORS[place % len(COLORS)],
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=4,
            linewidth=1.3,
            capsize=2,
        )
    lowest = min(row.cosine - (row.cosine_sem or 0) for finding in findings.values() for row in finding.rows)
    ax.set_ylim(-1.02 if lowest < -0.3 else min(-0.02, lowest - 0.03), 1.02)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("Network depth (0: learned tokens, 1: with positions, then blocks)")
    ax.set_ylabel("Cosine of class and distillation token")
    ax.grid(visible=True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if len(findings) > 1:
        legend = ax.legend(fontsize=SMALL, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    else:
        ax.set_title(wrapped(plain(next(iter(findings))), 60), loc="left", fontweight="bold", parse_math=False)
    return figure


def table(findings: Mapping[str, TokenSimilarity]) -> Table:
    """Gives the cosine at each depth, a line a layer."""
    rows = [
        {"model": plain(title), "layer": row.layer, "cosine": row.cosine, "cosine_sem": row.cosine_sem}
        for title, finding in findings.items()
        for row in finding.rows
    ]
    return Table(
        rows=rows,
        columns=(
            Column(heading="Model", text=lambda row: str(row["model"])),
            Column(heading="Layer", text=lambda row: str(row["layer"])),
            Column(heading="Cosine", text=lambda row: f"{row['cosine']:.3f}", numeric=True),
            Column(
                heading="s.e.m.",
                text=lambda row: "-" if row["cosine_sem"] is None else f"{row['cosine_sem']:.3f}",
                numeric=True,
            ),
        ),
        notes=[note for finding in findings.values() for note in finding.notes],
    )
