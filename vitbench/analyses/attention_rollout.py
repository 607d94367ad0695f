"""Attention rollout: where in the input the output looks, through all layers.

Source: Abnar and Zuidema (arXiv 2005.00928), section 3; ViT (arXiv 2010.11929), appendix D.8, Figs. 6 and 14; the authors'
code in issues 18 and 27 of their repository. The mean over the heads of each layer, plus the identity for the residual, halved;
the product of all layers, later ones on the left; the class token's row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from vitbench.drawing.pictures import bare, plain, wrapped
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import RolloutMap
from vitbench.inside import observing
from vitbench.inside.attention import Block, Call, Reader, Tap
from vitbench.inside.geometry import Chain, Geometry
from vitbench.inside.tallies import left_out_notes
from vitbench.records import Column, Table

Picture = np.ndarray[Any, Any]
"""(H, W, 3), uint8; of a clip (T, H, W, 3)."""

Style = Literal["paper", "heat", "mask"]
_MOST_INPUTS = 12  # that are drawn
STYLES: tuple[Style, ...] = ("paper", "heat", "mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRollout:
    """The maps of some inputs.

    Attributes:
        rows: one a frame, token and input.
        pictures: the inputs as the model saw them; of more than can be drawn the first.
        left_out: layers whose attention is not in the product, with the reason.
    """

    rows: tuple[RolloutMap, ...]
    pictures: tuple[Picture, ...]
    left_out: Mapping[str, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for people: what was left out, and why."""
        return left_out_notes(self.left_out)


@dataclass(frozen=True, slots=True, eq=False)
class _Factor:
    """One call's maps, their heads averaged: (B, G, queries, keys)."""

    layer: str
    heads: int
    geometry: Geometry
    chain: Chain
    maps: Tensor


class RolloutReader(Reader):
    """Averages the heads of every map, keeps a pass's averages, and multiplies them from the output to the input.

    Only the rows that are asked for are multiplied: N^2 a layer in place of N^3.

    Args:
        as_picture: makes a picture of an input, (C, H, W) or (C, T, H, W).
        names: of the inputs, as they come.
        most: inputs to keep; later ones are not looked at.
    """

    def __init__(
        self, as_picture: Callable[[Tensor], Picture], names: Iterable[str] | None = None, *, most: int | None = None
    ) -> None:
        self._as_picture = as_picture
        self._names = None if names is None else iter(names)
        self._most = most
        self._factors: list[_Factor] = []
        self._sum: Tensor | None = None
        self._index = torch.empty(0)
        self._refusal: NotDefined | None = None
        self._left_out: dict[str, str] = {}
        self._rows: list[RolloutMap] = []
        self._pictures: list[Picture] = []
        self._inputs = 0

    @property
    def _done(self) -> bool:
        return self._refusal is not None or (self._most is not None and self._inputs >= self._most)

    def begin(self, call: Call) -> None:
        """Makes room for a call's average."""
        geometry = call.geometry
        self._sum = None
        if self._done:
            return
        if geometry.chain is None:
            if geometry.embeds:
                self._left_out[call.layer] = geometry.unchained
            else:
                self._refusal = NotDefined(geometry.unchained, instead=("attn-distance", "attn-entropy"))
            return
        groups = call.batch * geometry.groups
        self._sum = torch.zeros(groups, geometry.queries.shape[1], geometry.keys.shape[1], device=call.device)
        self._index = torch.arange(call.maps, device=call.device) // call.heads

    def read(self, block: Block) -> None:
        """Adds the heads of a block."""
        if self._sum is None:
            return
        heads, first, last = block.call.heads, block.maps.start, block.maps.stop
        if first // heads == (last - 1) // heads:  # of one input and group: no index needed
            self._sum[first // heads, block.queries] += block.attention.sum(0)
        else:
            self._sum[:, block.queries].index_add_(0, self._index[block.maps], block.attention)

    def end(self, call: Call) -> None:
        """Keeps a call's average."""
        if self._sum is not None and call.geometry.chain is not None:
            maps = self._sum.unflatten(0, (call.batch, call.geometry.groups)).div_(call.heads)
            self._factors.append(
                _Factor(call.layer.partition("[")[0], call.heads, call.geometry, call.geometry.chain, maps)
            )
        self._sum = None

    def passed(self, inputs: Tensor) -> None:
        """Multiplies a pass's averages and lets go of them."""
        if self._done or not self._factors:
            return
        rows, tokens = _readout(self._factors)
        rows, places = _rolled(rows.expand(len(inputs), -1, -1), self._factors)
        t, h, w = self._factors[0].chain.grid
        for number, one in enumerate(inputs):
            if self._done:
                break
            name = f"input {self._inputs}" if self._names is None else next(self._names)
            if len(self._pictures) < _MOST_INPUTS:
                self._pictures.append(self._as_picture(one))
            self._inputs += 1
            for token, row in zip(tokens, rows[number].cpu().double(), strict=True):
                placed = row[places].view(t, h * w)
                mass = float(placed.sum())
                self._rows += [
                    RolloutMap(
                        input=self._inputs - 1,
                        name=name,
                        token=token,
                        frame=frame,
                        placed_mass=mass,
                        frame_share=float(weights.sum()) / mass if mass else 0.0,
                        tile_height=h,
                        tile_width=w,
                        values=tuple(weights.tolist()),
                    )
                    for frame, weights in enumerate(placed)
                ]
        self._factors = []

    def finding(self, left_out: Mapping[str, str]) -> AttentionRollout:
        """Gives the maps of all inputs so far.

        Raises:
            NotDefined: the maps of the model's layers cannot be multiplied.
            BadInput: there was no pass.
        """
        if self._refusal is not None:
            raise self._refusal
        if not self._rows:
            raise BadInput("No image has been looked at, so there is no attention to roll out.")
        return AttentionRollout(
            rows=tuple(self._rows), pictures=tuple(self._pictures), left_out={**left_out, **self._left_out}
        )


def _readout(factors: Sequence[_Factor]) -> tuple[Tensor, tuple[str, ...]]:
    """Gives the rows of the output to begin with, (1, rows, length of the last sequence), and what they are of.

    The class token's; of a sequence with one a frame their mean; of a distilled model also the distillation token's, and the mean
    of both; without such tokens the mean over those that have a place.
    """
    last = factors[-1].chain
    reading = next((one.chain for one in reversed(factors) if one.chain.name == last.name and one.chain.named), None)
    device = factors[-1].maps.device
    if reading is None:
        placed = _placed(factors, last).to(device)
        row = torch.zeros(last.length, device=device).index_fill(0, placed, 1 / len(placed))
        return row[None, None], ("average",)
    rows = []
    for token in range(len(reading.named)):
        copies = reading.queries[:, token].unique().to(device)
        rows.append(torch.zeros(last.length, device=device).index_fill(0, copies, 1 / len(copies)))
    if len(rows) == 1:
        return rows[0][None, None], reading.named
    return torch.stack([*rows, torch.stack(rows).mean(0)])[None], (*reading.named, "both")


def _placed(factors: Sequence[_Factor], chain: Chain) -> Tensor:
    """Gives the indices of a sequence's tokens that have a place, in order."""
    of_chain = [one for one in factors if one.chain.name == chain.name]
    found = torch.cat([one.chain.queries[one.geometry.placed_queries] for one in of_chain])
    unique: Tensor = found.unique()
    return unique


def _rolled(rows: Tensor, factors: Sequence[_Factor]) -> tuple[Tensor, Tensor]:
    """Multiplies rows, (B, rows, L), with all layers' maps, last first.

    Returns:
        The rows over the first sequence, and the indices of its tokens that have a place.
    """
    sequences = [list(same) for _, same in groupby(factors, key=lambda one: one.chain.name)]
    for place, sequence in reversed(list(enumerate(sequences))):
        for _, parts in reversed([(layer, list(same)) for layer, same in groupby(sequence, key=lambda one: one.layer)]):
            heads = sum(one.heads for one in parts)
            attended = sum((_through(rows, one) * (one.heads / heads) for one in parts), torch.zeros_like(rows))
            rows = (rows + attended) / 2
        entry = sequence[0].chain.entry
        if entry is not None and place:
            # A token that is new brings nothing of the input; the others are tokens of the sequence before.
            known = (entry >= 0).nonzero()[:, 0]
            before = rows.new_zeros(*rows.shape[:2], sequences[place - 1][0].chain.length)
            rows = before.index_add_(2, entry[known].to(rows.device), rows[:, :, known.to(rows.device)])
    return rows, _placed(factors, sequences[0][0].chain).to(rows.device)


def _through(rows: Tensor, factor: _Factor) -> Tensor:
    """(B, rows, L) -> (B, rows, L): through one map; tokens that it does not touch stay, copies of one token are averaged."""
    chain = factor.chain
    queries, keys = chain.queries.to(rows.device), chain.keys.to(rows.device)
    copies = torch.bincount(queries.flatten(), minlength=chain.length).to(rows.dtype)
    asked: Tensor = (rows / copies.clamp(min=1))[:, :, queries]  # (B, rows, G, q)
    found = torch.einsum("brgq,bgqk->brgk", asked, factor.maps).flatten(2)
    untouched = rows * (copies == 0)
    return torch.index_add(untouched, 2, keys.flatten(), found)


def analyze(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    as_picture: Callable[[Tensor], Picture] | None = None,
    names: Iterable[str] | None = None,
) -> AttentionRollout:
    """Rolls the attention of each input out.

    Args:
        model: any whose tokens keep their number from layer to layer, and whose attention classes are registered.
        batches: inputs, (B, C, H, W) or (B, C, T, H, W), on its device.
        as_picture: makes a picture of an input; by default its values are stretched to what can be seen.
        names: of the inputs.

    Raises:
        NotDefined: the maps of the layers cannot be multiplied: windows, pooled tokens.
        BadInput: there is no input.
    """
    reader = RolloutReader(as_picture or _stretched, names)
    tap = Tap([reader])
    observing.run(model, batches, [tap])
    return reader.finding(tap.left_out)


def _stretched(one: Tensor) -> Picture:
    found = one.float().cpu()
    found = (found - found.min()) / (found.max() - found.min()).clamp(min=1e-12) * 255
    return found.movedim(0, -1).round().to(torch.uint8).numpy()


def table(findings: Mapping[str, AttentionRollout]) -> Table:
    """Gives a line an input and token: how much of the row lies on places, and where it is highest."""
    rows = []
    for title, finding in findings.items():
        for (number, token), maps in groupby(finding.rows, key=lambda row: (row.input, row.token)):
            frames = list(maps)
            peak = max(frames, key=lambda row: max(row.values))
            place = peak.values.index(max(peak.values))
            rows.append(
                {
                    "model": title,
                    "input": number,
                    "name": peak.name,
                    "token": token,
                    "placed_mass": peak.placed_mass,
                    "frames": len(frames),
                    "peak_frame": peak.frame,
                    "peak_row": place // peak.tile_width,
                    "peak_column": place % peak.tile_width,
                    "peak_over_mean": max(peak.values) * len(peak.values) * len(frames) / (peak.placed_mass or 1.0),
                }
            )
    shown = [
        *([Column(heading="Model", text=lambda row: row["model"])] if len(findings) > 1 else []),
        Column(heading="File", text=lambda row: row["name"]),
        Column(heading="Token", text=lambda row: row["token"]),
        Column(heading="Mass on places", text=lambda row: f"{row['placed_mass']:.4f}", numeric=True),
        Column(heading="Peak over mean", text=lambda row: f"{row['peak_over_mean']:.2f}", numeric=True),
        Column(
            heading="Peak at",
            text=lambda row: (
                (f"frame {row['peak_frame']}, " if row["frames"] > 1 else "")
                + f"row {row['peak_row']}, column {row['peak_column']}"
            ),
        ),
    ]
    return Table(rows=rows, columns=shown, notes=_notes(findings))


def _notes(findings: Mapping[str, AttentionRollout]) -> list[str]:
    notes = []
    for title, finding in findings.items():
        notes += [f"{title}: {note}" for note in finding.notes]
    return notes


_TILE_IN = 1.5
_TILES_A_LINE = 6


def draw(findings: Mapping[str, AttentionRollout], *, style: Style = "paper") -> Figure:
    """Draws inputs beside what the output looks at; of clips, frames above it; of several models, each input by all of them.

    Args:
        findings: by title.
        style: `paper`: the picture where the weights are, black where they are not, as ViT's Fig. 6; `heat`: the weights
            in colour over the grey picture; `mask`: the weights alone.
    """
    of_models = [
        [
            (title, finding.pictures[number], _by_token(maps))
            for number, maps in groupby(finding.rows, key=_input)
            if number < len(finding.pictures)
        ]
        for title, finding in findings.items()
    ]
    strips = [strip for same in zip_longest(*of_models) for strip in same if strip is not None]
    shown = strips[:_MOST_INPUTS]
    clips = any(len(rows) > 1 for _, _, tokens in shown for rows in tokens.values())
    figure = (_draw_clips if clips else _draw_images)(shown, style, named=len(findings) > 1)
    width = figure.get_size_inches()[0]
    heading = ", ".join(plain(title) for title in findings)
    figure.suptitle(wrapped(heading, int(width * 11)), fontsize=10, parse_math=False)
    inputs = sum(len({row.input for row in finding.rows}) for finding in findings.values())
    if inputs > len(shown):
        figure.supxlabel(f"The first {len(shown)} of {inputs} inputs; the CSV has all.", fontsize=7)
    return figure


def _input(row: RolloutMap) -> int:
    return row.input


_Strip = tuple[str, Picture, dict[str, list[RolloutMap]]]


def _by_token(maps: Iterable[RolloutMap]) -> dict[str, list[RolloutMap]]:
    return {token: list(same) for token, same in groupby(maps, key=lambda row: row.token)}


def _draw_images(strips: Sequence[_Strip], style: Style, *, named: bool) -> Figure:
    """Pairs of input and attention, as many beside each other as there is room for."""
    tokens = list(dict.fromkeys(token for _, _, found in strips for token in found))
    unit = 1 + len(tokens)
    beside = min(len(strips), max(1, _TILES_A_LINE // unit))
    lines = -(-len(strips) // beside)
    figure = Figure(
        figsize=(max(3.2, beside * unit * _TILE_IN + 0.2), lines * (_TILE_IN + 0.2) + 0.7), layout="constrained"
    )
    axes = figure.subplots(lines, beside * unit, squeeze=False)
    for ax in axes.flat:
        bare(ax)
    for place, (title, picture, found) in enumerate(strips):
        line, first = place // beside, place % beside * unit
        axes[line, first].imshow(picture)
        name = next(iter(found.values()))[0].name
        axes[line, first].set_xlabel(_shortened(plain(name)), fontsize=6, parse_math=False)
        axes[line, first].set_title("Input" if line == 0 else "", fontsize=9)
        if named:
            axes[line, first + 1].set_xlabel(_shortened(plain(title)), fontsize=6, parse_math=False)
        for column_, token in enumerate(tokens, first + 1):
            if token in found:
                row = found[token][0]
                axes[line, column_].imshow(_shown(picture, row, max(row.values), style))
            heading = "Attention" if len(tokens) == 1 else token.capitalize()
            axes[line, column_].set_title(heading if line == 0 else "", fontsize=9)
    return figure


def _draw_clips(strips: Sequence[_Strip], style: Style, *, named: bool) -> Figure:
    """A line of frames for each input, and below it one for each token; all frames of a line have one scale."""
    frames = max(len(rows) for _, _, found in strips for rows in found.values())
    lines = sum(1 + len(found) for _, _, found in strips)
    figure = Figure(figsize=(frames * _TILE_IN * 0.8 + 0.4, lines * _TILE_IN * 0.85 + 0.6), layout="constrained")
    axes = figure.subplots(lines, frames, squeeze=False)
    for ax in axes.flat:
        bare(ax)
    line = 0
    for title, picture, found in strips:
        own = len(next(iter(found.values())))
        inputs = picture if picture.ndim == 4 else picture[None]  # an image beside clips of another model
        seen = [inputs[int((frame + 0.5) * len(inputs) / own)] for frame in range(own)]
        for frame, one in enumerate(seen):
            axes[line, frame].imshow(one)
        name = next(iter(found.values()))[0].name
        axes[line, 0].set_ylabel(_shortened(plain(name)), fontsize=6, parse_math=False)
        for below, (token, rows) in enumerate(found.items(), line + 1):
            top = max(max(row.values) for row in rows)
            for row in rows:
                axes[below, row.frame].imshow(_shown(seen[row.frame], row, top, style))
            of = f"\n{_shortened(plain(title))}" if named else ""
            axes[below, 0].set_ylabel(f"Attention, {token}{of}", fontsize=6 if named else 7, parse_math=False)
        line += 1 + len(found)
    return figure


def _shortened(name: str) -> str:
    name = name.rpartition("/")[2]
    return name if len(name) <= 30 else f"{name[:14]}...{name[-13:]}"


def _shown(picture: Picture, row: RolloutMap, top: float, style: Style) -> Picture:
    """Gives (H, W, 3) in 0 to 1: a picture with its weights, which are divided by `top` first."""
    height, width = picture.shape[:2]
    weights = np.asarray(row.values, dtype=np.float32).reshape(row.tile_height, row.tile_width)
    if not top:  # nothing but class tokens: 0 / 0
        return np.zeros((height, width, 3))
    mask = Image.fromarray(weights / top).resize((width, height), Image.Resampling.LANCZOS)
    # The authors' blur has the radius of a patch. Pillow blurs no floating-point images, and 8 bits would show as steps.
    blurred = _blurred(np.asarray(mask), max(height / row.tile_height, width / row.tile_width))
    low, high = float(blurred.min()), float(blurred.max())
    alpha = (blurred - low) / (high - low) if high > low else np.ones_like(blurred)
    if style == "mask":
        return _colored(alpha)
    seen = picture.astype(np.float32) / 255
    if style == "paper":
        return np.asarray(seen * alpha[..., None])
    grey = seen.mean(axis=-1, keepdims=True) * np.ones(3)
    return np.asarray(0.45 * grey + 0.55 * _colored(alpha))


def _blurred(mask: Picture, radius: float) -> Picture:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(mask, radius, mode="nearest"))


def _colored(alpha: Picture) -> Picture:
    import matplotlib

    return np.asarray(matplotlib.colormaps["viridis"](alpha))[..., :3]
