"""What GitHub Actions take from a step.

Expected values: GitHub's documentation of workflow commands (%25, %0D, %0A, and in properties %3A and %2C), and the README of
benchmark-action/github-action-benchmark on custom benchmarks.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from tests.planted import CHANGES, COMPARISON, HOSTILE, hostile
from vitbench.changes import Comparison, counted
from vitbench.errors import CannotWrite
from vitbench.judging import github
from vitbench.reports import changes_markdown


def test_off_github_there_is_no_summary() -> None:
    assert not github.step_summary(lambda room: "text", {})


def test_a_summary_is_added_to_what_stands_there(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    file.write_text("before\n")
    assert github.step_summary(lambda room: "text ä\n", {"GITHUB_STEP_SUMMARY": str(file)})
    assert file.read_text(encoding="utf-8") == "before\ntext ä\n"


def test_a_summary_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="Is a directory"):
        github.step_summary(lambda room: "text", {"GITHUB_STEP_SUMMARY": str(tmp_path)})


@pytest.mark.parametrize("already", [0, 900 * 1024 - 4_000, 900 * 1024 - 200, 900 * 1024 - 20, 1024 * 1024])
def test_a_summary_has_the_room_that_earlier_commands_left(tmp_path: Path, already: int) -> None:
    file = tmp_path / "summary.md"
    file.write_bytes(b"x" * already)
    # Of signs of four bytes each.
    change = replace(CHANGES[0], note="\U0001f600" * 300)
    found = Comparison(base="a", head="b", changes=(change,) * 2_000)
    github.step_summary(lambda room: changes_markdown.render(found, limit=room), {"GITHUB_STEP_SUMMARY": str(file)})
    added = file.read_bytes()[already:].decode()
    room = github.SUMMARY_BYTES - already
    assert len(added.encode()) <= max(room, 0)
    assert ("2000 regressed" in added) == (room >= 200)
    assert ("rows, the least bad, are left out" in added) == (room >= 4_000)
    assert added.count("<details>") == added.count("</details>")
    if not already:
        assert len(added.encode()) > room - 2_000


def test_annotations_are_workflow_commands_worst_first() -> None:
    found = github.annotations(COMPARISON)
    assert found[0] == (
        "::error title=vit_b16%3A Inputs/s regressed::regressed: Inputs/s 512.2/s to 470.5/s; "
        "-8.15 %25 (-9.00 %25 to -7.30 %25); confirmed with fresh workers%0A3x224x224, batch_size 64, device cpu, dtype fp32"
    )
    assert [line.split(" ")[0] for line in found] == ["::error"] * 4 + ["::warning"] * 3
    assert not any("a wider head" in line for line in found)  # it is expected


def test_what_does_not_count_is_no_error() -> None:
    lenient = replace(COMPARISON, counted=counted(fail_on="never", allow_missing=True))
    assert [line.split(" ")[0] for line in github.annotations(lenient)] == ["::warning"] * 7
    strict = replace(COMPARISON, counted=counted(strict=True))
    # Of the warnings none stands before an error: the suspect is the last.
    assert [line.split(" ")[0] for line in github.annotations(strict)] == ["::error"] * 6 + ["::warning"]


@pytest.mark.parametrize("number", [10, 11, 500])
def test_ten_annotations_are_all_that_github_shows(number: int) -> None:
    found = github.annotations(Comparison(base="a", head="b", changes=(CHANGES[0],) * number))
    assert len(found) == 10
    more = f"::error title=vitbench::and {number - 9} more; the step's summary has them"
    assert (found[-1] == more) == (number > 10)


def test_that_nothing_was_compared_is_an_error() -> None:
    new = replace(CHANGES[0], verdict="new")
    for number in (0, 1, 500):
        found = github.annotations(
            Comparison(base="a", head="b", changes=(new,) * number, counted=counted(fail_on="any"))
        )
        assert found[0].startswith("::error title=vitbench::Nothing could be compared from a to b")
        assert len(found) == min(number + 1, 10)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_cannot_give_a_command(text: str) -> None:
    (line,) = github.annotations(hostile(text))
    assert not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in line)
    _, properties, *_ = line.split("::")
    assert properties.startswith("error title=")
    assert "," not in properties
    assert ":" not in properties


def test_a_benchmark_has_the_heads_values() -> None:
    entries = json.loads(github.benchmark_json(COMPARISON))
    assert [entry["name"].split(": ")[1] for entry in entries] == [
        "macs",
        "params",
        "latency_median_ms",
        "compile_s",
        "forward_median_ms",
        "predicted_peak_bytes",
        "params",
    ]
    assert entries[2] == {
        "name": "swin_t, 3x224x224, batch_size 8, device cpu, dtype fp32: latency_median_ms",
        "unit": "ms",
        "value": 12.9,
        "range": "12.4937 to 13.3332",  # 12.3456 times 1.012 and 1.08
        "extra": "suspect: Median 12.35 ms to 12.90 ms; +4.50 % (+1.20 % to +8.00 %); the machine was too noisy",
    }
    assert entries[0]["unit"] == "macs"
    assert len({entry["name"] for entry in entries}) == len(entries)


def test_a_benchmark_has_one_direction() -> None:
    (entry,) = json.loads(github.benchmark_json(COMPARISON, "higher"))
    assert (entry["value"], entry["unit"]) == (470.5, "1/s")


def test_a_benchmark_without_an_entry_is_no_file() -> None:
    """The action fails on an empty list."""
    assert github.benchmark_json(replace(COMPARISON, changes=())) == ""


def test_a_comment_is_a_summary_too(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    text = changes_markdown.render(COMPARISON)
    github.step_summary(lambda room: text, {"GITHUB_STEP_SUMMARY": str(file)})
    assert file.read_text() == text
