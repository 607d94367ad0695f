"""What all pictures share: colours, tiles, texts from outside, and the bytes of a file, the same for the same numbers."""

from __future__ import annotations

import contextlib
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitbench.units import printable

# Okabe and Ito's colours that people with any colour vision tell apart, their yellow, too pale for a line, for a dark red.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#882255")
GREY = "#555555"
SMALL = 8

# By format, what keeps the time of the drawing out of the file, so that the same rows make the same file.
TIMELESS: dict[str, dict[str, Any]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}


def rendered(figure: Figure, ending: str) -> bytes:
    """Gives the file of a figure: the same bytes for the same figure, with the same matplotlib.

    Args:
        figure: what to write.
        ending: a key of `TIMELESS`.
    """
    file = BytesIO()
    # Else the names inside an SVG are drawn at random.
    with matplotlib.rc_context({"svg.hashsalt": "vitbench"}), any_sign():
        figure.savefig(file, format=ending.removeprefix("."), dpi=200, metadata=TIMELESS[ending])
    return file.getvalue()


@contextlib.contextmanager
def any_sign() -> Iterator[None]:
    """Keeps matplotlib from warning of signs that its font lacks, while texts are measured or drawn."""
    with warnings.catch_warnings():
        # A box in the picture shows it; a name in Chinese would be a warning a sign.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
        yield


def plain(text: str) -> str:
    """Gives a text from a file or a user as one line that a font can set; draw it with `parse_math=False`."""
    return " ".join(printable(text).split())


def wrapped(text: str, width: int) -> str:
    """Gives a text in lines of so many characters at most."""
    return "\n".join(textwrap.wrap(text, width))


def mosaic(tiles: Sequence[np.ndarray[Any, Any]], columns: int, *, gap: int = 1) -> np.ndarray[Any, Any]:
    """Lays tiles of one size out in rows, with gaps of NaN between them.

    Args:
        tiles: each (height, width) or (height, width, 3), in reading order.
        columns: tiles a row.
        gap: pixels between two tiles.

    Returns:
        (rows * (height + gap) - gap, columns * (width + gap) - gap[, 3]), float.
    """
    height, width, *channels = tiles[0].shape
    rows = -(-len(tiles) // columns)
    whole = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, *channels), np.nan)
    for place, tile in enumerate(tiles):
        top, left = (place // columns) * (height + gap), (place % columns) * (width + gap)
        whole[top : top + height, left : left + width] = tile
    return whole


def bare(ax: Axes) -> None:
    """Takes ticks and frame off axes that show an image."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


_NAMED_HEADS = 3


def dots_by_head(ax: Axes, dots: Iterable[tuple[int, int, float]], uniform: Mapping[int, float]) -> None:
    """Draws a dot a head over the depth of its layer, as ViT's Fig. 11, and in grey what no preference would give.

    Args:
        ax: where.
        dots: depth, head and value of each.
        uniform: the grey value at each depth that has one.
    """
    by_head: dict[int, list[tuple[int, float]]] = {}
    for depth, head, value in dots:
        by_head.setdefault(head, []).append((depth, value))
    for head, own in sorted(by_head.items()):
        label = f"Head {head + 1}" if head < _NAMED_HEADS else "..." if head == _NAMED_HEADS else None
        ax.plot(*zip(*own, strict=True), ".", color=COLORS[head % len(COLORS)], label=label, markersize=6, zorder=3)
    for depth, value in uniform.items():
        ax.plot([depth - 0.5, depth + 0.5], [value, value], color="#999999", linewidth=1.2, zorder=2)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    ax.set_xlabel("Network depth (layer)")
    if by_head:
        ax.legend(loc="lower right", fontsize=7, framealpha=0.85, handletextpad=0.1, borderpad=0.3)


def calm(ax: Axes) -> None:
    """Gives axes of dots or lines faint rules across, and no frame above and to the right."""
    ax.grid(visible=True, axis="y", color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
