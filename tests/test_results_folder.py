"""The files in results/ and what is said of them."""

from __future__ import annotations

import csv
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vitbench import catalog, findings
from vitbench.analyses import ANALYSES
from vitbench.findings import Agreement, Fingerprint, MaxBatch, Measured, Predicted, Roofline, Throughput
from vitbench.records import AnalysisSetting, Machine, RunSetting

RESULTS = Path(__file__).parent.parent / "results"


def _rows_of(module: ModuleType) -> list[type[Any]]:
    """Gives the records of an analysis's module that have declared columns."""
    own = (
        found for found in vars(module).values() if isinstance(found, type) and found.__module__ == findings.__name__
    )
    return [found for found in own if is_dataclass(found) and any("heading" in item.metadata for item in fields(found))]


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


_ANALYSES = [record for entry in ANALYSES for record in _rows_of(ANALYSES.load(entry.name))]


def test_every_analysis_has_a_record_of_its_rows() -> None:
    assert len(_ANALYSES) == len(ANALYSES.names)


@pytest.mark.parametrize(
    "record",
    [
        AnalysisSetting,
        *_ANALYSES,
        RunSetting,
        Throughput,
        Roofline,
        Fingerprint,
        Predicted,
        Measured,
        Agreement,
        MaxBatch,
        Machine,
    ],
)
def test_every_column_of_a_measured_row_is_explained_in_the_words_of_its_record(record: type[Any]) -> None:
    readme = (RESULTS / "README.md").read_text(encoding="utf-8")
    prefix = "environment_" if record is Machine else ""
    missing = [
        item.name
        for item in fields(record)
        if f"| `{prefix}{item.name}` | {item.metadata['meaning']} |" not in readme.splitlines()
    ]
    assert not missing


def test_every_analysis_is_in_the_gallery_with_the_command_that_made_its_picture() -> None:
    gallery = (RESULTS / "gallery.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\]\((gallery/[^)]+)\)", gallery)
    assert [picture for picture in pictures if not (RESULTS / picture).is_file()] == []
    assert [picture for picture in pictures if not (RESULTS / picture).with_suffix(".csv").is_file()] == []
    commands = re.findall(r"^vitbench (\S+) .*--output results/gallery", gallery, re.MULTILINE)
    also = {"attn-entropy"} if "--also entropy" in gallery else set()
    assert set(commands) | also == set(ANALYSES.names)
    made = {path.relative_to(RESULTS).as_posix() for path in (RESULTS / "gallery").rglob("*.png")}
    assert made == set(pictures)
