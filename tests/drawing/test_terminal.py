"""A drawing has the width of its terminal, and none where there is none."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from vitbench.drawing import terminal


def _table(width: int) -> Table:
    table = Table()
    table.add_column("x", min_width=width)
    table.add_row("y")
    return table


def test_a_table_fits_where_its_narrowest_columns_do() -> None:
    console = terminal.console(40, color=False)
    assert terminal.fits(console, _table(30))
    assert not terminal.fits(console, _table(40))
    assert terminal.fits(terminal.console(None, color=False), _table(40))


def test_a_text_has_no_blanks_at_its_ends() -> None:
    console = terminal.console(40, color=False)
    console.print(Text("\n\na   \n\nb  \n\n"))
    assert terminal.text(console) == "a\n\nb\n"


def test_colors_are_written_where_they_are_asked_for() -> None:
    texts = []
    for color in (False, True):
        console = terminal.console(40, color=color)
        console.print(Text("a", style="red"))
        texts.append(terminal.text(console))
    assert texts == ["a\n", "\x1b[31ma\x1b[0m\n"]
