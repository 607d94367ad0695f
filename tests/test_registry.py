"""Shelves load what they name, when asked."""

from __future__ import annotations

import pytest

from vitbench.charts import CHARTS
from vitbench.errors import UnknownName
from vitbench.metrics import METRICS
from vitbench.registry import Entry, Shelf
from vitbench.reports import REPORTS, SUFFIXES


@pytest.mark.parametrize("name", REPORTS.names)
def test_every_report_can_be_opened_and_renders(name: str) -> None:
    assert callable(REPORTS.load(name).render)


@pytest.mark.parametrize("name", METRICS.names)
def test_every_metric_can_be_opened_and_measures(name: str) -> None:
    assert callable(METRICS.load(name).measure)


@pytest.mark.parametrize("name", CHARTS.names)
def test_every_chart_can_be_opened_and_plots(name: str) -> None:
    assert callable(CHARTS.load(name).plot)


def test_a_files_ending_names_a_report() -> None:
    assert set(SUFFIXES.values()) == set(REPORTS.names)


def test_an_unknown_name_is_refused_with_what_there_is() -> None:
    shelf = Shelf("format", Entry("csv", "vitbench.reports.csv", "values"))
    with pytest.raises(UnknownName, match="Did you mean csv"):
        shelf.load("cvs")
