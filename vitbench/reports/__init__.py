"""Shelves of reports: a table, or a comparison, becomes text, one format a file, with `render()`."""

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

COMPARISONS = Shelf(
    "format",
    Entry("table", "vitbench.reports.changes_console", "verdicts for people, in the terminal"),
    Entry("markdown", "vitbench.reports.changes_markdown", "a comment on a pull request"),
    Entry("json", "vitbench.reports.changes_json", "an object with every change, base units"),
    Entry("junit", "vitbench.reports.junit", "a test suite a model, for the pages of Jenkins, GitLab and others"),
    Entry("html", "vitbench.reports.changes_html", "a page that opens offline"),
)

COMPARISON_SUFFIXES = {".md": "markdown", ".json": "json", ".xml": "junit", ".html": "html", ".txt": "table"}
"""The format of a comparison that a file's name asks for."""
