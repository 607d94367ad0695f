"""Shelf of reports: a table becomes text, one format a file, with `render()`."""

from vitbench.registry import Entry, Shelf

REPORTS = Shelf(
    "format",
    Entry("table", "vitbench.reports.console", "a table for people, in the terminal"),
    Entry("csv", "vitbench.reports.csv", "comma-separated values, base units"),
    Entry("json", "vitbench.reports.json", "a list with an object a row, base units"),
    Entry("markdown", "vitbench.reports.markdown", "a table for people, for pages and comments"),
)

SUFFIXES = {".csv": "csv", ".json": "json", ".md": "markdown", ".txt": "table"}
"""The format that a file's name asks for."""
