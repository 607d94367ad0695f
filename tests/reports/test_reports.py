"""The same table in four formats, and what must be escaped in each."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from vitbench.records import Column, Table
from vitbench.reports import console, markdown
from vitbench.reports import csv as csv_report
from vitbench.reports import json as json_report

ROWS: list[dict[str, Any]] = [
    {"model": "a", "input_shape": (3, 4, 4), "macs": 12, "uncounted": {"gelu": 3, "add": 2}, "note": ""},
    {"model": "b, [red]x[/red] | <b>", "input_shape": (), "status": "failed", "macs": None},
]
TABLE = Table(
    rows=ROWS,
    columns=(
        Column(heading="Model", text=lambda row: row["model"]),
        Column(heading="MACs", text=lambda row: str(row.get("macs") or ""), numeric=True),
    ),
    notes=("A note with *stars*.",),
)


def test_csv_has_the_union_of_the_columns_and_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_report.render(TABLE))))
    assert list(rows[0]) == ["model", "input_shape", "macs", "uncounted", "note", "status"]
    assert rows[0]["input_shape"] == "3x4x4"
    assert rows[0]["uncounted"] == "gelu=3 add=2"
    assert rows[1]["model"] == ROWS[1]["model"]
    assert rows[1]["macs"] == rows[0]["status"] == ""


def test_json_is_a_list_of_objects_with_the_same_keys() -> None:
    first, second = json.loads(json_report.render(TABLE))
    assert first["input_shape"] == [3, 4, 4]
    assert first["status"] is None
    assert second["macs"] is None
    assert set(first) == set(second)


def test_json_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_report.render(Table(rows=[{"share": float("nan")}], columns=()))


def test_markdown_escapes_markup_and_keeps_one_line_a_row() -> None:
    lines = markdown.render(TABLE).splitlines()
    assert lines[1] == "| --- | ---: |"
    assert lines[3] == r"| b, \[red\]x\[/red\] \| &lt;b&gt; |  |"
    assert lines[-1] == r"A note with \*stars\*."


def test_the_terminals_table_shows_names_as_they_are() -> None:
    text = console.render(TABLE)
    assert "b, [red]x[/red] | <b>" in text
    assert "\x1b" not in text
    assert text.endswith("A note with *stars*.\n")


def test_the_terminals_table_fits_the_terminal() -> None:
    wide = Table(
        rows=[{"x": "word " * 40}], columns=(Column(heading="X", text=lambda row: row["x"]),), notes=("y " * 90,)
    )
    assert all(len(line) <= 60 for line in console.render(wide, width=60).splitlines())
    assert "\x1b" in console.render(wide, width=60, color=True)


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    nasty = Table(rows=[{"x": "a\x1b[2Jb\x07"}], columns=(Column(heading="X", text=lambda row: row["x"]),))
    assert "\x1b" not in console.render(nasty)
    assert "\x07" not in console.render(nasty)
