"""The whole catalog, counted and held against results/baseline.json, as `nox -s regress` does it."""

from __future__ import annotations

import json
from pathlib import Path

import pynvml
import pytest

from vitbench import catalog, check, compare, measure, results, suite
from vitbench.records import flatten
from vitbench.reports import COMPARISONS
from vitbench.results import Line
from vitbench.running import environment

ROOT = Path(__file__).parent.parent
BASELINE = {row["model"]: row for row in results.load(ROOT / "results" / "baseline.json")}
COUNTED, TIMED = check.plan(suite.read(str(ROOT / "results" / "regress.toml")))
ITEMS = {item.job.setting.model: item for item in COUNTED}

ADVICE = "If this is meant: nox -s regress -- --update, and commit results/baseline.json."

# What does not depend on how a version of torch or timm composes a layer of its operators; "" is the row itself.
ALWAYS = {"", "params", "params_trainable", "macs"}


def test_the_baseline_is_of_the_catalog() -> None:
    assert list(ITEMS) == list(catalog.VARIANTS)
    assert sorted(BASELINE) == sorted(catalog.VARIANTS), ADVICE


def test_a_few_models_are_timed() -> None:
    assert 1 <= len(TIMED) <= 6  # two minutes each


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides a card, on which the size of cuBLAS's workspace depends."""

    def none() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", none)


@pytest.mark.parametrize("name", list(catalog.VARIANTS))
@pytest.mark.usefixtures("no_card")
def test_nothing_has_changed(name: str) -> None:
    row = measure.measure_one(ITEMS[name].job, isolated=False)
    line = Line("here", json.loads(json.dumps(flatten(row))))
    if name not in BASELINE:
        pytest.fail(f"results/baseline.json has no {name}. {ADVICE}")
    before = BASELINE[name]
    found = compare.compare([before], [line], base_name="results/baseline.json", head_name="here")
    here = environment.describe()
    same = (here.torch, here.timm) == (
        results.text(before, "environment_torch"),
        results.text(before, "environment_timm"),
    )
    changed = [one for one in found.findings if same or one.column in ALWAYS]
    assert not changed, f"{COMPARISONS.load('table').render(found)}\n{ADVICE}"
