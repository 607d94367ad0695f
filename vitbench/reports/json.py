"""A list with an object a row, base units, null where there is no value."""

from __future__ import annotations

import json

from vitbench.records import Table


def render(table: Table) -> str:
    """Gives the rows of a table as a JSON list; every object has every column."""
    names = list(dict.fromkeys(name for row in table.rows for name in row))
    rows = [{name: row.get(name) for name in names} for row in table.rows]
    return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
