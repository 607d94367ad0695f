"""A table for people, for pages and comments."""

from __future__ import annotations

from collections.abc import Iterable

from vitbench import markup
from vitbench.records import Table


def render(table: Table) -> str:
    """Gives a table as GitHub's Markdown, with its notes below; whatever could be markup is escaped."""
    lines = [
        _line(markup.markdown(column.heading) for column in table.columns),
        _line(("---:" if column.numeric else "---") for column in table.columns),
        *(_line(markup.markdown(column.text(row)) for column in table.columns) for row in table.rows),
    ]
    for note in table.notes:
        lines += ["", markup.markdown(note)]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
