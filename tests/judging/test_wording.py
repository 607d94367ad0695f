"""The words for a comparison; expected texts are written by hand from the planted changes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planted import CHANGES, COMPARISON
from vitbench.changes import Change, Comparison, PartChange, Verdict, ranked
from vitbench.judging import wording


def _change(verdict: Verdict = "regressed", **more: Any) -> Change:
    values: dict[str, Any] = {"setting": {"model": "m"}, "column": "macs", "heading": "MACs", "judged": "exact"}
    return Change(**(values | {"better": "lower", "verdict": verdict} | more))


def _comparison(*changes: Change) -> Comparison:
    return Comparison(base="a", head="b", changes=ranked(changes))


def test_the_verdict_is_a_sentence() -> None:
    assert wording.headline(COMPARISON) == (
        "4 regressed (1 expected) from main to wider-head: 1 missing, 1 suspect, 1 incomparable, 1 inconclusive, "
        "1 improved, 1 new, 1 unchanged."
    )


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        ([], "Nothing could be compared from a to b."),
        (["missing", "new"], "Nothing could be compared from a to b: 1 missing, 1 new."),
        (["unchanged", "unchanged"], "Nothing regressed from a to b: 2 unchanged."),
        (["regressed"], "1 regressed from a to b."),
    ],
)
def test_the_verdict_says_where_nothing_regressed_or_was_compared(verdicts: list[Verdict], sentence: str) -> None:
    assert wording.headline(_comparison(*map(_change, verdicts))) == sentence


def test_long_names_do_not_hide_the_counts() -> None:
    comparison = Comparison(base="x" * 10_000, head="y\n" * 10_000, changes=(_change("improved"),))
    assert wording.headline(comparison).endswith("...: 1 improved.")
    assert len(wording.headline(comparison)) < 300


@pytest.mark.parametrize(
    ("values", "relative", "interval"),
    [
        ({}, "", ""),
        ({"ratio": 1.5}, "+50 %", ""),
        ({"ratio": 1 + 6.5e-11}, "+6.5e-09 %", ""),
        # Noise is told no more digits than it leaves.
        ({"ratio": 1.00001, "low": 0.95, "high": 1.06}, "0 %", "-5.00 % to +6.00 %"),
    ],
)
def test_a_change_in_per_cent(values: dict[str, Any], relative: str, interval: str) -> None:
    change = _change(**values)
    assert (wording.relative(change), wording.interval(change)) == (relative, interval)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({}, ""),
        ({"more": 1}, "about 1 more process would settle it"),
        ({"more": 5}, "about 5 more processes would settle it"),
        ({"more": 5, "rounds": ((1.0,),)}, "about 5 more rounds would settle it"),
        ({"note": "why", "expected": "because"}, "why; expected: because"),
    ],
)
def test_a_note_has_what_would_settle_it_and_why_it_is_expected(values: dict[str, Any], note: str) -> None:
    assert wording.note(_change(**values)) == note


def test_columns_that_share_a_heading_are_told_apart() -> None:
    comparison = _comparison(
        _change(column="peak_bytes", heading="Peak"),
        _change(column="predicted_peak_bytes", heading="Peak"),
        _change(),
        _change(column="", heading=""),
    )
    assert wording.labels(comparison) == {
        "peak_bytes": "Peak (peak_bytes)",
        "predicted_peak_bytes": "Peak (predicted_peak_bytes)",
        "macs": "MACs",
        "": "whole row",
    }


def test_what_all_changes_have_in_common_is_told_once() -> None:
    shared = wording.shared_conditions(COMPARISON)
    assert shared == {"input_shape": "3x224x224", "device": "cpu", "dtype": "fp32"}
    assert wording.conditions(CHANGES[0].setting, without=shared) == "batch_size 8"
    assert wording.conditions({"model": "m", "compile": "", "threads": "2"}) == "threads 2"


def test_the_modules_that_changed_most_come_first() -> None:
    told, rest = wording.parts(CHANGES[0])
    assert [part.part for part in told] == ["extra", *(f"blocks.{index}" for index in range(8, 1, -1))]
    assert rest == "and 2 more modules"
    assert wording.parts(_change()) == ([], "")
    assert wording.part_values(told[0]) == ("not there", "100")
    assert wording.part_values(PartChange(part="a", column="macs", before=1_000_000, after=1_000_001)) == (
        "1,000,000",
        "1,000,001",
    )


def test_a_change_is_a_line() -> None:
    assert wording.told(CHANGES[1]) == (
        "regressed: Inputs/s 512.2/s to 470.5/s; -8.15 % (-9.00 % to -7.30 %); confirmed with fresh workers"
    )
    assert wording.told(CHANGES[3]) == "missing: whole row; no such row"


def test_versions_that_differ_are_a_line() -> None:
    assert wording.differences(COMPARISON) == "torch 2.13.0 to 2.14.0; cpu Xeon 8375C to EPYC 7763"
    assert wording.differences(_comparison()) == ""
