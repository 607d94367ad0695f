"""Comparisons in each of their formats.

The golden files are the reports of `tests.planted.COMPARISON`, read by eye. After a change that is meant, write them anew and
read what `git diff` shows:

    python -c "from tests.reports import test_changes; test_changes.write_golden()"
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len

from tests.planted import CHANGES, COMPARISON, HOSTILE, hostile
from vitbench.changes import VERDICTS, Change, Comparison, counted
from vitbench.registry import Entry
from vitbench.reports import (
    COMPARISON_SUFFIXES,
    COMPARISONS,
    changes_console,
    changes_json,
    changes_markdown,
    junit,
)

GOLDEN = Path(__file__).parent / "golden"

# What GitHub makes a mention, a link or a reference of.
_LIVE = re.compile(r"@\w|://|www\.\w|#\d|:[\w+-]+:|\b[0-9a-f]{7,40}\b")


def write_golden() -> None:
    """Writes the golden files anew."""
    (GOLDEN / "changes.md").write_text(changes_markdown.render(COMPARISON))
    (GOLDEN / "changes.xml").write_text(junit.render(COMPARISON))


def _many(number: int, **more: object) -> Comparison:
    changes = tuple(replace(CHANGES[0], setting={"model": f"model_{index}"}, **more) for index in range(number))  # type: ignore[arg-type]  # any field
    return replace(COMPARISON, changes=changes)


def test_all_verdicts_are_planted() -> None:
    assert tuple(COMPARISON.counts) == VERDICTS


@pytest.mark.parametrize("entry", list(COMPARISONS), ids=lambda entry: entry.name)
def test_every_format_renders(entry: Entry) -> None:
    assert COMPARISONS.load(entry.name).render(COMPARISON).endswith("\n")


def test_every_format_has_a_suffix() -> None:
    assert set(COMPARISON_SUFFIXES.values()) == set(COMPARISONS.names)


# --- the terminal


def test_the_terminal_has_the_verdict_first_and_counts_what_is_unchanged() -> None:
    text = changes_console.render(COMPARISON)
    first, second, *_ = text.splitlines()
    assert first.startswith("4 regressed (1 expected) from main to wider-head")
    assert first.endswith("1 unchanged.")
    assert second == "Different: torch 2.13.0 to 2.14.0; cpu Xeon 8375C to EPYC 7763."
    assert "86.57 M" not in text  # the value that is unchanged


def test_the_terminal_has_the_worst_first_and_modules_below_their_row() -> None:
    lines = changes_console.render(COMPARISON).splitlines()
    found = [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in VERDICTS]
    assert found == ["regressed"] * 4 + list(VERDICTS[1:-1])
    row = next(number for number, line in enumerate(lines) if "15,430,946,817" in line)
    assert "batch_size 8" in lines[row + 1]
    below = [line.strip().split(",")[0] for line in lines[row + 2 : row + 10]]
    assert below == ["extra", *(f"blocks.{index}" for index in range(8, 1, -1))]
    assert lines[row + 10].strip().startswith("and 2 more modules")


def test_the_terminal_plots_where_the_pairs_lie() -> None:
    # The farthest is 1.1, so a cell has ln(1.1) / 10: 1.055 is 5.6 of them, in the sixth from the middle.
    change = replace(CHANGES[1], rounds=((1 / 1.1, 1 / 1.1, 1 / 1.055), (1.005, 1.0)))
    text = changes_console.render(replace(COMPARISON, changes=(change,)))
    assert "#   :     |#          ±10 %" in text


def test_a_pair_beyond_the_scale_is_marked_and_does_not_set_it() -> None:
    change = replace(CHANGES[1], rounds=((0.9, *(1.0, 1.01, 1.005, 0.995) * 10, 3.0),))
    text = changes_console.render(replace(COMPARISON, changes=(change,)))
    assert re.search(r"<.{9}\|.{9}> ±1\.00 %", text)


@pytest.mark.parametrize("rounds", [((1.0, 1.0),), ((0.0, float("nan"), float("inf"), -1.0),), ((),)])
def test_pairs_without_a_spread_or_a_value_can_be_told(rounds: tuple[tuple[float, ...], ...]) -> None:
    text = changes_console.render(replace(COMPARISON, changes=(replace(CHANGES[1], rounds=rounds),)))
    assert ("|#          ±0 %" in text) == (1.0 in rounds[0])


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize("color", [False, True])
def test_the_terminal_has_its_width(width: int, color: bool) -> None:
    lines = changes_console.render(COMPARISON, width=width, color=color).splitlines()
    plain = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in lines]
    assert max(map(cell_len, plain)) <= width
    assert (plain != lines) == color
    assert "15,430,946,817" in "".join(plain)


@pytest.mark.parametrize("width", [None, 60, 200])
@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_do_not_reach_the_terminal(text: str, width: int | None) -> None:
    shown = changes_console.render(hostile(text), width=width)
    assert not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in shown.replace("\n", ""))


def test_nothing_compared_is_said_alone() -> None:
    assert (
        changes_console.render(Comparison(base="a", head="b", changes=())) == "Nothing could be compared from a to b.\n"
    )


# --- Markdown

_PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def _read(text: str) -> str:
    """Gives the text that a reader sees outside of code, after making sure that no markup but ours is in it."""
    seen = []
    for token in _PARSER.parse(text):
        if token.type == "html_block":
            assert re.fullmatch(
                r"<!-- vitbench -->|</details>|<details>\n<summary>[\w ,]+</summary>", token.content.strip()
            ), token.content
        for child in token.children or []:
            assert child.type in ("text", "text_special", "html_inline", "strong_open", "strong_close", "softbreak")
            assert child.type != "html_inline" or child.content == "<br>"
            seen.append(child.content)
    return "".join(seen)


def test_markdown_is_golden() -> None:
    assert changes_markdown.render(COMPARISON) == (GOLDEN / "changes.md").read_text()


def test_markdown_begins_with_its_marker_and_the_verdict() -> None:
    marker, heading, *_ = changes_markdown.render(COMPARISON).splitlines()
    assert marker == "<!-- vitbench -->"
    assert heading.startswith("### 4 regressed")
    _read(changes_markdown.render(COMPARISON))


def test_markdown_shows_20_rows_and_folds_the_rest() -> None:
    text = changes_markdown.render(_many(45))
    open_rows, folded = text.split("<summary>25 more</summary>")
    assert len(re.findall(r"model\\_\d+ ", open_rows)) == 20
    assert len(re.findall(r"model\\_\d+ ", folded.split("</details>")[0])) == 25


@pytest.mark.parametrize("limit", [4_000, changes_markdown.COMMENT_LIMIT])
@pytest.mark.parametrize("number", [15, 1_000])
@pytest.mark.parametrize("sign", ["x", "\U0001f600"])
def test_a_comment_has_githubs_size_and_says_what_it_leaves_out(limit: int, number: int, sign: str) -> None:
    comparison = replace(
        _many(number, note=f"why {sign}" * 50),
        notes=("note",) * number,
        commands=("command",) * number,
        environment={str(index): "x" for index in range(number)},
    )
    text = changes_markdown.render(comparison, limit=limit)
    assert len(text.encode()) <= limit
    assert text.count("<details>") == text.count("</details>")
    rows = [int(place) for place in re.findall(r"^\| \*\*regressed\*\* \| model\\_(\d+) ", text, re.MULTILINE)]
    assert rows == list(range(len(rows)))  # the first, which are the worst
    left_out = re.search(r"^(\d+) of (\d+) rows, the least bad, are left out", text, re.MULTILINE)
    assert (number - len(rows), number) == ((int(left_out[1]), int(left_out[2])) if left_out else (0, number))
    assert len(rows) > (20 if limit > 4_000 and number > 20 else 0)


@given(st.integers(-10, 8_000))
def test_markdown_has_any_size(limit: int) -> None:
    text = changes_markdown.render(COMPARISON, limit=limit)
    assert len(text.encode()) <= max(limit, 0)
    assert text.count("<details>") == text.count("</details>")
    assert ("4 regressed" in text) == (limit > 162)


@pytest.mark.parametrize("text", [*HOSTILE, "x" * 100_000, "<" * 100_000, "\U0001f600" * 70_000, "`" * 70_000])
def test_markdown_shows_hostile_names_as_text(text: str) -> None:
    shown = changes_markdown.render(hostile(text))
    assert len(shown.encode()) <= changes_markdown.COMMENT_LIMIT
    assert not _LIVE.search(_read(shown))
    shown.encode()


@given(st.text())
def test_markdown_shows_any_name_as_text(text: str) -> None:
    assert not _LIVE.search(_read(changes_markdown.render(hostile(text))))


# --- JSON


def test_json_has_every_field_of_every_change() -> None:
    found = json.loads(changes_json.render(COMPARISON))
    assert list(found) == ["base", "head", "verdicts", "changes", "differences", "environment", "notes", "commands"]
    assert found["verdicts"]["regressed"] == 4
    assert len(found["changes"]) == len(CHANGES)
    assert set(found["changes"][0]) == {field.name for field in fields(Change)}
    assert found["changes"][0]["rounds"] == [list(of_round) for of_round in CHANGES[1].rounds]
    assert found["changes"][1]["parts"][0] == {
        "part": "",
        "column": "macs",
        "before": 15_430_946_816,
        "after": 15_430_946_817,
    }
    assert found["differences"]["torch"] == ["2.13.0", "2.14.0"]


def test_json_has_no_number_that_json_lacks() -> None:
    change = replace(CHANGES[0], ratio=float("inf"), before=float("nan"), after=(1.0, float("-inf")))
    (found,) = json.loads(changes_json.render(replace(COMPARISON, changes=(change,))), parse_constant=pytest.fail)[
        "changes"
    ]
    assert (found["ratio"], found["before"], found["after"]) == (None, None, [1.0, None])


@pytest.mark.parametrize("text", HOSTILE)
def test_json_keeps_names_as_they_are(text: str) -> None:
    assert json.loads(changes_json.render(hostile(text)).encode())["head"] == text


# --- JUnit

# The elements and attributes of junit-10.xsd, the schema of Jenkins' xUnit plugin, which are all that GitLab reads too.
_SCHEMA = {
    "testsuites": ({"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": ({"name", "tests", "failures", "errors", "time", "skipped"}, {"testcase"}),
    "testcase": ({"name", "classname", "time"}, {"skipped", "error", "failure"}),
    "skipped": ({"type", "message"}, set()),
    "error": ({"type", "message"}, set()),
    "failure": ({"type", "message"}, set()),
}


def _parsed(text: str) -> ET.Element:
    """Gives the root of a report, after making sure that it has what its readers know, and counts rightly."""
    root = ET.fromstring(text.encode())  # noqa: S314 - our own
    for element in root.iter():
        attributes, children = _SCHEMA[element.tag]
        assert set(element.keys()) == attributes
        assert {child.tag for child in element} <= children
    for suite in root:
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert suite.get(name) == str(len(suite.findall(f"testcase/{tag}")))
        assert suite.get("tests") == str(len(suite))
    for name in ("tests", "failures", "errors"):
        assert root.get(name) == str(sum(int(suite.get(name, "")) for suite in root))
    return root


def test_junit_is_golden() -> None:
    assert junit.render(COMPARISON) == (GOLDEN / "changes.xml").read_text()


def test_junit_has_a_suite_a_model_and_a_case_a_column() -> None:
    root = _parsed(junit.render(COMPARISON))
    assert [suite.get("name") for suite in root] == ["vit_b16", "swin_t"]
    cases = root.findall("testsuite/testcase")
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases) == len(CHANGES)
    outcomes = {(case[0].get("type"), case[0].tag) for case in cases if len(case)}
    assert outcomes == {
        ("regressed", "failure"),
        ("missing", "error"),
        ("suspect", "skipped"),
        ("incomparable", "skipped"),
        ("inconclusive", "skipped"),
    }
    assert [case.get("name", "").split(" ")[0] for case in cases if case.find("failure") is not None] == [
        "throughput_per_s",
        "macs",
        "values",
    ]


def test_what_counts_is_a_failure_or_an_error_and_what_does_not_is_neither() -> None:
    lenient = _parsed(junit.render(replace(COMPARISON, counted=counted(fail_on="never", allow_missing=True))))
    assert (lenient.get("failures"), lenient.get("errors")) == ("0", "0")
    skipped = {element.get("type") for element in lenient.iter("skipped")}
    assert skipped == {"regressed", "missing", "suspect", "incomparable", "inconclusive"}
    harsh = _parsed(junit.render(replace(COMPARISON, counted=counted(fail_on="any", strict=True))))
    assert {element.get("type") for element in harsh.iter("failure")} == {"regressed", "suspect", "improved", "new"}
    assert {element.get("type") for element in harsh.iter("error")} == {"missing", "incomparable", "inconclusive"}


@pytest.mark.parametrize("changes", [(), (replace(COMPARISON.changes[0], verdict="new"),)])
def test_nothing_compared_is_an_error(changes: tuple[Change, ...]) -> None:
    """A pipeline shows a report without a failed case as passed."""
    root = _parsed(junit.render(Comparison(base="a", head="b", changes=changes)))
    (error,) = root.findall(".//error")
    assert "Nothing could be compared from a to b" in error.get("message", "")
    assert (root.get("errors"), root.get("tests")) == ("1", str(1 + len(changes)))


@pytest.mark.parametrize("text", HOSTILE)
def test_junit_parses_with_hostile_names(text: str) -> None:
    assert len(_parsed(junit.render(hostile(text)))) == 1


@given(st.text())
def test_junit_parses_with_any_name(text: str) -> None:
    assert len(_parsed(junit.render(hostile(text)))) == 1


def test_changes_come_in_the_order_of_the_comparison() -> None:
    places = [VERDICTS.index(change.verdict) for change in COMPARISON.changes]
    assert all(first <= second for first, second in pairwise(places))
