"""Shelf of reports: a table becomes text, one format a file, with `render()`."""

from vitbench.registry import Entry, Shelf

REPORTS = Shelf(
    "format",
    Entry("table", "vitbench.reports.console", "a table for people, in the terminal"),
    Entry("csv", "vitbench.reports.csv", "comma-separated values, base units"),
    Entry("json", "vitbench.reports.json", "a list with an object a row, base units"),
    Entry("markdown", "vitbench.reports.markdown", "a table for people, for pages and comments"),
)

COMPARISONS = Shelf(
    "format",
    Entry("table", "vitbench.reports.changes_console", "a table for people, in the terminal"),
    Entry("markdown", "vitbench.reports.changes_markdown", "for a comment on a pull request"),
    Entry("json", "vitbench.reports.changes_json", "an object with every change, base values"),
    Entry("junit", "vitbench.reports.junit", "a test case a column, as CI servers read them"),
    Entry("html", "vitbench.reports.changes_html", "a page for people"),
)

SUFFIXES = {".csv": "csv", ".json": "json", ".md": "markdown", ".txt": "table"}
"""The format that a file's name asks for."""
