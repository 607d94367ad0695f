"""What a command ends with, and in which order changes are told. Expected values: the issue's table of exit codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vitbench.changes import VERDICTS, Change, Comparison, FailOn, Verdict, counted, exit_code, ranked


def _change(verdict: Verdict, **more: Any) -> Change:
    values: dict[str, Any] = {"setting": {"model": "m"}, "column": "macs", "heading": "MACs", "judged": "exact"}
    return Change(**(values | {"better": "lower", "verdict": verdict} | more))


def _comparison(*verdicts: Verdict, **more: Any) -> Comparison:
    return Comparison(base="a", head="b", changes=ranked([_change(verdict, **more) for verdict in verdicts]))


@pytest.mark.parametrize(
    ("verdicts", "options", "code"),
    [
        (["unchanged", "improved", "new", "suspect", "inconclusive", "incomparable"], {}, 0),
        (["unchanged", "regressed"], {}, 1),
        (["missing", "regressed"], {}, 1),
        (["unchanged", "missing"], {}, 3),
        (["unchanged", "missing"], {"allow_missing": True}, 0),
        (["missing"], {"allow_missing": True}, 3),
        (["new"], {}, 3),
        ([], {}, 3),
        (["unchanged", "inconclusive"], {"strict": True}, 4),
        (["unchanged", "incomparable"], {"strict": True}, 4),
        (["unchanged", "improved"], {"fail_on": "any"}, 1),
        (["unchanged", "suspect"], {"fail_on": "any"}, 1),
        (["regressed"], {"fail_on": "never"}, 0),
        (["regressed", "missing"], {"fail_on": "never"}, 3),
    ],
)
def test_exit_codes(verdicts: list[Verdict], options: dict[str, Any], code: int) -> None:
    assert exit_code(replace(_comparison(*verdicts), counted=counted(**options))) == code


@pytest.mark.parametrize("fail_on", ["regressed", "any"])
def test_an_expected_change_does_not_count(fail_on: FailOn) -> None:
    found = replace(_comparison("regressed", expected="a wider head"), counted=counted(fail_on=fail_on))
    assert exit_code(found) == 0


def test_what_counts_unless_told_otherwise() -> None:
    assert _comparison().counted == counted()


def test_the_worst_comes_first_and_of_equal_verdicts_the_farthest() -> None:
    found = ranked([_change(verdict) for verdict in reversed(VERDICTS)])
    assert [change.verdict for change in found] == list(VERDICTS)
    far = ranked([_change("regressed", ratio=ratio) for ratio in (1.1, 0.5, 1.3)])
    assert [change.ratio for change in far] == [0.5, 1.3, 1.1]


def test_what_is_known_to_have_changed_stands_behind_what_is_not() -> None:
    known, unknown = _change("regressed", ratio=2.0, expected="known"), _change("regressed", ratio=1.1)
    assert ranked([known, unknown]) == (unknown, known)
