"""A table for people, in the terminal."""

from __future__ import annotations

from rich import box
from rich.cells import cell_len
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from vitbench.drawing import terminal
from vitbench.records import Table
from vitbench.units import printable

# A folded column narrower than this is no text any more.
_NARROWEST = 24


def render(table: Table, *, width: int | None = None, color: bool = False) -> str:
    """Gives a table as text, with its notes below; in a terminal too narrow for it, a block of lines for each row.

    Args:
        table: what to show.
        width: characters a line; None for as many as the table needs.
        color: whether to write terminal styles.
    """
    console = terminal.console(width, color=color)
    if table.columns:
        grid = _grid(table)
        for block in [grid] if terminal.fits(console, grid) else _blocks(table):
            console.print(block)
    for note in table.notes:
        console.print(Text(printable(note), style="dim"), soft_wrap=width is None)
    return terminal.text(console)


def _grid(table: Table) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    cells: list[list[Text]] = []
    for column in table.columns:
        # Text, not markup: a model's name or error may hold square brackets.
        texts = [Text(printable(column.text(row))) for row in table.rows]
        needed = max(
            (cell_len(line) for text in (column.heading, *map(str, texts)) for line in text.splitlines()), default=0
        )
        grid.add_column(
            column.heading,
            justify="right" if column.numeric else "left",
            min_width=min(needed, _NARROWEST) if column.folds else needed,
            overflow="fold",
        )
        cells.append(texts)
    for row_cells in zip(*cells, strict=True):
        grid.add_row(*row_cells)
    return grid


def _blocks(table: Table) -> list[RenderableType]:
    name, *others = table.columns
    blocks: list[RenderableType] = []
    for row in table.rows:
        lines = RichTable.grid(padding=(0, 2, 0, 0))
        for column in others:
            text = column.text(row)
            if text:
                lines.add_row(Text(" ".join(column.heading.split())), Text(printable(text)))
        blocks += [Text(printable(name.text(row)), style="bold"), Padding(lines, (0, 0, 1, 2))]
    return blocks
