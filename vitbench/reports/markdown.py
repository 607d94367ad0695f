"""A table for people, for pages and comments."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from vitbench.records import Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~])")


def render(table: Table) -> str:
    """Gives a table as GitHub's Markdown, with its notes below; whatever could be markup is escaped."""
    lines = [
        _line(_escape(column.heading) for column in table.columns),
        _line(("---:" if column.numeric else "---") for column in table.columns),
        *(_line(_escape(column.text(row)) for column in table.columns) for row in table.rows),
    ]
    for note in table.notes:
        lines += ["", _escape(note)]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    one_line = " ".join(text.split())
    return _SPECIAL.sub(r"\\\1", html.escape(one_line, quote=False))
