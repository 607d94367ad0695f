"""Similarity of what any two layers know, of one model or of two: centred kernel alignment.

Source: "Do Vision Transformers See Like Convolutional Neural Networks?", Raghu et al., arXiv 2108.08810, figures 1 and 2 and
appendix A; "Do Wide and Deep Networks Learn the Same Things?", Nguyen et al., arXiv 2010.15327, for the average over batches.

The estimator is the unbiased one. The biased one, which many programs have, gives 0.98 for unrelated features that are wider than
a batch.

Shapes: B batch, p features of one layer for one image, L layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from vitbench.drawing.pictures import GREY, SMALL, plain, wrapped
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import Similarity
from vitbench.inside import layers, observing
from vitbench.records import Column, Table

FEWEST_IMAGES = 4
"""Images of a batch, below which the unbiased estimator is not defined: it divides by n (n - 3)."""

# As many as the caches of a processor hold for a batch; the products then cost the time, not the memory.
_FEATURES_AT_ONCE = 2**12
_FEATURES_AT_ONCE_ON_DEVICE = 2**16
_PANEL_IN = 3.9


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSimilarity:
    """How alike the layers of one model are to each other, or to those of another.

    Attributes:
        rows: of the first model's first layer all, then of its second.
        notes: what was left out, in sentences.
        titles: of the two models, where there are two.
    """

    rows: tuple[Similarity, ...]
    notes: tuple[str, ...] = ()
    titles: tuple[str, str] | None = None


def u_centred(grams: Tensor) -> Tensor:
    """Centres Gram matrices so that their inner products estimate the independence criterion without bias, (..., B, B).

    Source: Song et al., "Feature Selection via Dependence Maximization", JMLR 13 (2012), in the form of Székely and Rizzo, arXiv
    1310.2926.
    """
    n = grams.shape[-1]
    eye = torch.eye(n, dtype=torch.bool, device=grams.device)
    grams = grams.masked_fill(eye, 0)
    sums = grams.sum(-1, keepdim=True)
    total = sums.sum(-2, keepdim=True)
    return (grams - sums / (n - 2) - sums.mT / (n - 2) + total / ((n - 1) * (n - 2))).masked_fill(eye, 0)


def gram(features: Tensor) -> Tensor:
    """Gives the products of all pairs of examples, (B, p) -> (B, B), in float64 on the CPU.

    Each is taken as its difference from the first. U-centring makes nothing of the shift; but the digits that a large mean would
    take are kept, and what is the same for all examples becomes 0 exactly.
    """
    n, width = features.shape
    step = min(width, _FEATURES_AT_ONCE if features.device.type == "cpu" else _FEATURES_AT_ONCE_ON_DEVICE)
    first = features[:1].float()
    shifted = torch.empty(n, step, device=features.device)
    whole = torch.zeros(n, n, device=features.device)
    half = n // 2
    for place in range(0, width, step):
        part = features[:, place : place + step]
        now = torch.sub(part, first[:, place : place + step], out=shifted[:, : part.shape[1]])
        # The lower triangle will do; of the upper right quarter, nothing is made.
        whole[:half, :half].addmm_(now[:half], now[:half].mT)
        whole[half:].addmm_(now[half:], now.mT)
    lower = whole.cpu().double().tril()
    return lower + lower.tril(-1).mT


class Grams(observing.Observer):
    """Keeps of each layer, batch by batch, the Gram matrix alone, and draws the similarity of a model's layers from them.

    Args:
        parts: also the norms, attentions and MLPs within the blocks, as in the paper.
    """

    def __init__(self, *, parts: bool = True) -> None:
        self._parts = parts
        self._now: dict[str, Tensor] = {}
        self._skipped: dict[str, str] = {}
        self._sum = _Sum()
        self.last: Tensor | None = None

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[None]:
        """Watches the layers of the model."""
        with layers.watched(model, self._see, parts=self._parts):
            yield

    def _see(self, activation: layers.Activation) -> None:
        # Before any layer is looked at: these batches are left out.
        if activation.input_shape[0] < FEWEST_IMAGES:
            return
        try:
            self._now[activation.layer] = gram(activation.examples())
        except NotDefined as error:
            self._skipped[activation.layer] = error.reason

    def seen(self, inputs: Tensor) -> None:
        """Adds the products of the batch's matrices to those of the batches before."""
        self.last = None
        now, self._now = self._now, {}
        if len(inputs) < FEWEST_IMAGES:
            self._sum.left_out.append(len(inputs))
            return
        if not now:
            return
        self.last = u_centred(torch.stack(list(now.values()))).flatten(1)
        self._sum.add(tuple(now), tuple(now), len(inputs), self.last, self.last)

    @property
    def names(self) -> tuple[str, ...]:
        """The layers, in the order in which they ran."""
        return self._sum.names_a

    @property
    def skipped(self) -> tuple[str, ...]:
        """Why layers are not there, a sentence each."""
        return tuple(f"Left out: {reason}." for reason in self._skipped.values())

    def finding(self) -> LayerSimilarity:
        """Gives the similarity of all pairs of layers.

        Raises:
            BadInput: no batch had as many images as the estimator needs.
            NotDefined: no layer gives its output image by image.
        """
        self.refuse()
        alike = self._sum.similarity()
        return LayerSimilarity(rows=alike, notes=(*self._sum.notes(), *self.skipped))

    def refuse(self) -> None:
        """Raises what stands in the way if batches were seen, but no layer's examples.

        Raises:
            NotDefined: no layer gives its output image by image.
        """
        if self._skipped and not self.names:
            raise NotDefined(next(iter(self._skipped.values())))


class _Sum:
    """Inner products of the layers' centred matrices, summed over batches, each divided by what makes it an estimate."""

    def __init__(self) -> None:
        self.names_a: tuple[str, ...] = ()
        self.names_b: tuple[str, ...] = ()
        self.left_out: list[int] = []
        self._images = 0
        self._products: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, names_a: tuple[str, ...], names_b: tuple[str, ...], images: int, a: Tensor, b: Tensor) -> None:
        """Adds a batch: a and b are (L, B B), centred."""
        if self._products and (names_a, names_b) != (self.names_a, self.names_b):
            raise BadInput("The model ran other layers on one batch than on another, so they cannot be put together.")
        self.names_a, self.names_b = names_a, names_b
        # Each batch's estimate weighs as its images, so that a short last batch does not outshout the others.
        weight = images / (images * (images - 3))
        across = a @ b.mT
        own = (across.diagonal(), across.diagonal()) if a is b else (a.square().sum(1), b.square().sum(1))
        new = (weight * across, weight * own[0], weight * own[1])
        old = self._products
        self._products = new if old is None else (old[0] + new[0], old[1] + new[1], old[2] + new[2])
        self._images += images

    def similarity(self) -> tuple[Similarity, ...]:
        """Gives a row for each pair."""
        if self._products is None:
            raise BadInput(
                f"CKA needs batches of {FEWEST_IMAGES} images or more"
                + (f", and the largest had {max(self.left_out)}." if self.left_out else ", and there were no images.")
            )
        across, own_a, own_b = self._products
        cka = across / (own_a[:, None] * own_b[None]).sqrt()
        if not (bool((own_a > 0).any()) and bool((own_b > 0).any())):
            raise BadInput(
                "Every layer gives the same for all images, so there is nothing to compare: give different ones."
            )
        return tuple(
            Similarity(index_a=i, layer_a=name_a, index_b=j, layer_b=name_b, cka=float(cka[i, j]))
            for i, name_a in enumerate(self.names_a)
            for j, name_b in enumerate(self.names_b)
            # A layer that gives the same for every image is like nothing, not even itself.
            if own_a[i] > 0 and own_b[j] > 0
        )

    def notes(self) -> tuple[str, ...]:
        """Says what is missing."""
        found = []
        if self.left_out:
            found.append(
                f"Left out: {sum(self.left_out)} images in batches of fewer than {FEWEST_IMAGES}, "
                "of which the estimate is not defined."
            )
        if self._products is not None:
            _, own_a, own_b = self._products
            same = dict.fromkeys(
                name
                for names, own in ((self.names_a, own_a), (self.names_b, own_b))
                for name, value in zip(names, own.tolist(), strict=True)
                if value <= 0
            )
            if same:
                some = ", ".join([*same][:3]) + (f" and {len(same) - 3} more" if len(same) > 3 else "")
                found.append(f"Left out, the same for every image: {some}.")
        return tuple(found)


def analyze(
    model_a: nn.Module,
    batches_a: Iterable[Tensor],
    model_b: nn.Module | None = None,
    batches_b: Iterable[Tensor] | None = None,
    *,
    parts: bool = True,
    titles: tuple[str, str] | None = None,
) -> LayerSimilarity:
    """Compares the layers of a model with each other, or with those of another model on the same images.

    The terms of the independence criterion are averaged over the batches, and the ratio is taken once. Batches need 4 images or
    more; the papers' have 128 to 1024.

    Args:
        model_a: is run on `batches_a`.
        batches_a: inputs, (B, *input_shape).
        model_b: the other model, if there is one.
        batches_b: the same images in the same order and batches, as this model takes them.
        parts: also the norms, attentions and MLPs within the blocks, as in the paper.
        titles: of the two models, for the picture.

    Raises:
        BadInput: one model is given without its images, or the two got different batches, or none was large enough.
        NotDefined: a model has no layers.
    """
    first = Grams(parts=parts)
    if model_b is None and batches_b is None:
        observing.run(model_a, batches_a, [first])
        return first.finding()
    if model_b is None or batches_b is None:
        raise BadInput("Two models need images each: give model_b and batches_b together.")
    second, both = Grams(parts=parts), _Sum()
    others = iter(batches_b)
    for batch_a in batches_a:
        batch_b = next(others, None)
        if batch_b is None or len(batch_a) != len(batch_b):
            raise BadInput("The two models must get the same images in batches of the same size.")
        observing.run(model_a, [batch_a], [first])
        observing.run(model_b, [batch_b], [second])
        if first.last is None or second.last is None:
            both.left_out.append(len(batch_a))
        else:
            both.add(first.names, second.names, len(batch_a), first.last, second.last)
    if next(others, None) is not None:
        raise BadInput("The two models must get the same images in batches of the same size.")
    first.refuse()
    second.refuse()
    notes = dict.fromkeys((*both.notes(), *first.skipped, *second.skipped))
    return LayerSimilarity(rows=both.similarity(), notes=tuple(notes), titles=titles)


def draw(findings: Mapping[str, LayerSimilarity]) -> Figure:
    """Draws a heat map for each finding, from the input at the bottom left to the output at the top right, as in figures 1 and 2.

    Args:
        findings: by the title of the model, or of the pair of models.
    """
    figure = Figure(
        figsize=(_PANEL_IN * len(findings) + 0.7, _PANEL_IN),
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03),
    )
    axes = figure.subplots(1, len(findings), squeeze=False)[0]
    for ax, (title, finding) in zip(axes, findings.items(), strict=True):
        _heat_map(ax, *(finding.titles or (title, title)), finding)
    bar = figure.colorbar(axes[-1].images[0], ax=list(axes), shrink=0.85, pad=0.02, label="CKA")
    bar.outline.set_visible(False)
    return figure


def _heat_map(ax: Axes, title_a: str, title_b: str, finding: LayerSimilarity) -> None:
    rows, columns = (
        1 + max(numbers) for numbers in zip(*((row.index_a, row.index_b) for row in finding.rows), strict=True)
    )
    values = torch.full((rows, columns), torch.nan, dtype=torch.float64)
    for row in finding.rows:
        values[row.index_a, row.index_b] = row.cka
    # Across, the second model; up, the first.
    ax.set_facecolor("#dddddd")
    ax.imshow(values.numpy(), origin="lower", vmin=0, vmax=1, cmap="magma", interpolation="nearest", aspect="auto")
    ax.set_box_aspect(1)
    ax.set_xlabel(wrapped(plain(f"Layers {title_b}"), 42), parse_math=False)
    ax.set_ylabel(wrapped(plain(f"Layers {title_a}"), 42), parse_math=False)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    ax.tick_params(labelsize=SMALL, color=GREY)
    for spine in ax.spines.values():
        spine.set_visible(False)


def table(findings: Mapping[str, LayerSimilarity]) -> Table:
    """Gives of each finding how alike the layers are on average, each with its nearest other, and early ones with late ones."""
    rows: list[dict[str, object]] = []
    for title, finding in findings.items():
        titles = finding.titles or (title, title)
        counts = [1 + max(row.index_a for row in finding.rows), 1 + max(row.index_b for row in finding.rows)]
        thirds = [-(-count // 3) for count in counts]
        ends = [row.cka for row in finding.rows if row.index_a < thirds[0] and row.index_b >= counts[1] - thirds[1]]
        best: dict[int, Similarity] = {}
        for row in finding.rows:
            same = finding.titles is None and row.index_a == row.index_b
            if not same and (row.index_a not in best or row.cka > best[row.index_a].cka):
                best[row.index_a] = row
        rows.append(
            {
                "model": plain(titles[0]),
                "other": plain(titles[1]) if finding.titles else "itself",
                "layers": " x ".join(str(count) for count in dict.fromkeys(counts)),
                "mean": sum(row.cka for row in finding.rows) / len(finding.rows),
                "nearest": sum(row.cka for row in best.values()) / len(best) if best else None,
                "ends": sum(ends) / len(ends) if ends else None,
            }
        )

    def number(name: str) -> Column:
        headings = {"mean": "Mean CKA", "nearest": "Nearest other layer", "ends": "First third with last third"}
        return Column(
            heading=headings[name],
            text=lambda row: "-" if row[name] is None else f"{row[name]:.3f}",
            numeric=True,
        )

    return Table(
        rows=rows,
        columns=(
            Column(heading="Model", text=lambda row: str(row["model"])),
            Column(heading="Compared with", text=lambda row: str(row["other"])),
            Column(heading="Layers", text=lambda row: str(row["layers"]), numeric=True),
            *map(number, ("mean", "nearest", "ends")),
        ),
        notes=[note for finding in findings.values() for note in finding.notes],
    )
