"""What tells rows apart, the same for CSV and JSON, and which rows of two results belong together."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from vitbench.errors import BadInput
from vitbench.findings import RECORDS
from vitbench.judging import matching
from vitbench.judging.matching import Entry, Side
from vitbench.records import AnalysisSetting, RunSetting, Setting, Table, headings
from vitbench.reports import csv as csv_report
from vitbench.results import Line, parse

MODEL = {"model": "vit_b16", "input_shape": (3, 224, 224)}


def line(**values: Any) -> Line:
    return Line("a.json, row 1", json.loads(json.dumps(MODEL | values)))


def side(*lines: Line) -> Side:
    return matching.side(lines, "BASE", [])


def entry(**values: Any) -> Entry:
    (found,) = side(line(**values)).values()
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((3, 224, 224), "3x224x224"),
        (True, "True"),
        (False, "false"),
        (None, ""),
        (8, "8"),
        (8.0, "8"),
        ("a", "a"),
    ],
)
def test_cells_of_csv_and_json_are_the_same_text(one: object, other: str) -> None:
    assert matching.plain({"x": one}, "x") == matching.plain({"x": other}, "x")


def test_a_key_that_is_no_text_is_told_with_its_place() -> None:
    with pytest.raises(BadInput, match="a.json, row 1: model is {'a': 1}, not a text or a number"):
        side(line(model={"a": 1}))


def test_defaults_tell_nothing_apart() -> None:
    """So a row of `flops` is that of `bench` with the same model, input and batch."""
    defaults = {item.name: item.default for item in fields(RunSetting) if item.name not in headings(Setting)}
    bare, full = entry(macs=1), entry(macs=1, batch_size=1, **defaults)
    assert bare.key == full.key
    assert bare.setting == {"model": "vit_b16", "input_shape": "3x224x224"}
    analysis = {item.name: item.default for item in fields(AnalysisSetting) if item.name not in headings(Setting)}
    assert entry(cka=1.0, index_a=1).key == entry(cka=1.0, index_a=1, **analysis).key


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        ({"batch_size": 8, "batch_size_asked": "8"}, {"batch_size": "8"}),
        ({"batch_size": 1, "batch_size_asked": "1"}, {}),
        ({"batch_size": 4, "batch_size_asked": "8"}, {"batch_size": "4", "batch_size_asked": "8"}),
        ({"batch_size": 1, "batch_size_asked": "8"}, {"batch_size_asked": "8"}),
        ({"batch_size": 4, "batch_size_asked": "auto"}, {"batch_size": "4", "batch_size_asked": "auto"}),
        ({"device": "cuda:0"}, {"device": "cuda"}),
        ({"device": "cuda:1"}, {"device": "cuda:1"}),
        ({"amp": True, "compile": "inductor"}, {"amp": "True", "compile": "inductor"}),
    ],
)
def test_what_tells_a_measured_row_apart(values: dict[str, Any], setting: dict[str, str]) -> None:
    found = entry(throughput_per_s=1.0, **values).setting
    assert {name: text for name, text in found.items() if name not in MODEL} == setting


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_record_is_known_by_its_columns(record: type[Any]) -> None:
    """As a row has them: after those of a setting; a breakdown's rows call their part a module or an operator."""
    values = dict.fromkeys(headings(record), 1)
    own = [item.name for item in fields(record) if item.metadata["key"] and item.name not in headings(Setting)]
    if "part" in values:
        values["module"] = values.pop("part")
    found = entry(**{name: value for name, value in values.items() if name not in MODEL})
    assert found.name == (record.__name__ if own else "")


def test_rows_of_several_analyses_in_one_file_are_told_apart() -> None:
    """In CSV every row has the columns of all."""
    rows: list[dict[str, Any]] = [
        {"layer": "a", "head": 1, "distance_px": 2.0},
        {"layer": "a", "head": 1, "entropy_nats": 2.0},
    ]
    content = csv_report.render(Table(rows=[MODEL | row for row in rows], columns=()))
    found = side(*parse(Path("a.csv"), content.encode()))
    assert [one.name for one in found.values()] == ["HeadDistance", "HeadEntropy"]


@pytest.mark.parametrize("given", ["/a/b/val", "val", "../val/", "C:\\data\\val"])
def test_images_are_told_by_the_last_part_of_their_path(given: str) -> None:
    """Two checkouts have the same images in two places."""
    assert entry(entropy_nats=1.0, head=1, source=given).setting["source"] == "val"
    assert entry(entropy_nats=1.0, head=1, source=given).key != entry(entropy_nats=1.0, head=1, source="test").key
    check = entry(params=1, verdict="agrees", source="ViT/Table 5")
    assert check.own["source"] == "ViT/Table 5"


def test_counts_are_put_to_the_only_row_that_was_run() -> None:
    counted, run = line(macs=1), line(threads=2, throughput_per_s=1.0)
    (found,) = side(counted, run).values()
    assert (found.threads, len(found.lines)) == ("2", 2)
    several = side(counted, run, line(threads=4, throughput_per_s=1.0))
    assert sorted(threads for _, threads in several) == ["", "2", "4"]
    assert all(one.among_threads for one in several.values())


def test_threads_count_where_they_can() -> None:
    one, two, four = (line(threads=number, throughput_per_s=1.0) for number in (1, 2, 4))

    def pairs(base: list[Line], head: list[Line]) -> list[tuple[str | None, str | None]]:
        return [
            (before.threads if before else None, after.threads if after else None)
            for before, after in matching.matched(side(*base), side(*head))
        ]

    assert pairs([one, two], [two, one]) == [("1", "1"), ("2", "2")]
    assert pairs([one, two], [two, four]) == [("2", "2"), ("1", "4")]
    assert pairs([one], [two]) == [("1", "2")]
    assert pairs([one, two], [four]) == [(None, "4"), ("1", None), ("2", None)]


def test_what_was_only_counted_belongs_to_no_device() -> None:
    """A sweep of counts with device = "auto" says cuda:0 where there is one."""

    def pairs(base: list[Line], head: list[Line]) -> int:
        return sum(None not in pair for pair in matching.matched(side(*base), side(*head)))

    here, there = line(macs=1, device="cpu", threads=2), line(macs=1, device="cuda:0", threads=8)
    assert pairs([here], [there]) == 1
    assert pairs([here], [line(macs=1, device="cuda:0", throughput_per_s=1.0)]) == 1
    assert pairs([line(measured_peak_bytes=1)], [line(measured_peak_bytes=1, device="cuda:0")]) == 0
    assert pairs([here], [there, line(macs=1, device="mps")]) == 0


def test_the_newest_value_counts_and_samples_go_before_their_table() -> None:
    late = line(macs=2, environment_time="2026-11-22", threads=1)
    early = line(macs=1, params=5, environment_time="2026-11-21", threads=1, samples_ms=[[1.0]])
    table = line(macs=1, params=5, environment_time="2026-11-21", threads=1)
    (found,) = side(late, early, table).values()
    assert found.newest("macs") is late
    assert found.newest("params") is early
    assert found.newest("absent") is None


def test_a_failure_counts_until_something_later_was_measured() -> None:
    failed = line(status="crashed", note="died", environment_time="2026-11-21")
    assert entry(status="crashed", note="died").failure == "crashed: died"
    assert entry(status="lowered").failure == ""
    for time, expected in (("2026-11-20", "crashed: died"), ("2026-11-22", "")):
        (found,) = side(failed, line(macs=1, status="ok", environment_time=time)).values()
        assert found.failure == expected


@pytest.mark.parametrize("value", [[["a", 1]], [["a", 1, "b"]], [[1, 2, 3]], "text", 5, [None], [["a", None, 1]]])
def test_modules_that_are_none(value: object) -> None:
    with pytest.raises(BadInput, match="a.json, row 1: modules is .*, not a list of path, params and macs"):
        matching.modules(line(modules=value))


def test_times_of_one_phase() -> None:
    row = line(phases_ms=[[[1, 2.5], [3]], [[4], [5]], [[], []]], samples_ms=[])
    assert matching.processes(row, "phases_ms", 0) == [[1, 2.5], [4]]
    assert matching.processes(row, "samples_ms", None) == matching.processes(row, "absent", None) == []
    with pytest.raises(BadInput, match="phases_ms is"):
        matching.processes(row, "phases_ms", 2)
