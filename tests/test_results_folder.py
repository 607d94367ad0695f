"""The files in results/ and what is said of them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from vitbench import catalog

RESULTS = Path(__file__).parent.parent / "results"


@pytest.mark.parametrize("name", ["flops.csv", "verify.csv"])
def test_every_column_is_explained(name: str) -> None:
    readme = (RESULTS / "README.md").read_text(encoding="utf-8")
    section = readme.partition(f"## `{name}`")[2].partition("\n## ")[0]
    explained = set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file))
    if "environment_..." in explained:
        header = [column for column in header if not column.startswith("environment_")]
        explained.remove("environment_...")
    assert explained == set(header)


def test_the_catalog_is_whole_and_nothing_failed() -> None:
    with (RESULTS / "flops.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == list(catalog.VARIANTS)
    assert {row["status"] for row in rows} == {"ok"}
    with (RESULTS / "verify.csv").open(encoding="utf-8", newline="") as file:
        assert {row["verdict"] for row in csv.DictReader(file)} == {"agrees", "explained"}
