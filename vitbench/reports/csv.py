"""Comma-separated values: one header, base units, an empty cell where there is no value."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO
from typing import Any

from vitbench.records import Table
from vitbench.units import size


def render(table: Table) -> str:
    """Gives the rows of a table as CSV; the header is the union of their columns, in the order of first appearance.

    Lists, such as raw samples, are left out: they are for JSON. The numbers of a tile, a tuple of floats, are parted by spaces.
    """
    lists = {name for row in table.rows for name, value in row.items() if isinstance(value, list)}
    names = [name for name in dict.fromkeys(name for row in table.rows for name in row) if name not in lists]
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in table.rows)
    return file.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        if value and all(isinstance(item, float) for item in value):
            return " ".join(f"{item:.6g}" for item in value)
        return size(value) if all(isinstance(item, int) for item in value) else " ".join(value)
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return str(value)
