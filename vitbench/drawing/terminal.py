"""Draws for a terminal of some width, or for a file that has none."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType
from rich.measure import Measurement

# Where there is no terminal there is no width to fit into, and folded cells would help nobody.
_UNBOUNDED = 10_000


def console(width: int | None, *, color: bool) -> Console:
    """Gives a console that keeps what is printed, for `text`.

    Args:
        width: characters a line; None for as many as it takes.
        color: whether to write terminal styles.
    """
    return Console(
        file=StringIO(),
        width=width or _UNBOUNDED,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        legacy_windows=False,
    )


def fits(console: Console, block: RenderableType) -> bool:
    """Says whether a block can be drawn in a console's width without cutting what must not be cut."""
    needed = Measurement.get(console, console.options.update(max_width=_UNBOUNDED), block).minimum
    return console.width == _UNBOUNDED or needed <= console.width


def text(console: Console) -> str:
    """Gives what was printed, without blanks at the ends of lines and empty lines around it."""
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n") + "\n"
