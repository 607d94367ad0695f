"""Shelf of analyses: one figure of a paper, one file, with a record, `analyze()`, `draw()` and `table()`."""

from vitbench.registry import Entry, Shelf  # noqa: F401

ANALYSES = Shelf(
    "analysis",
)
