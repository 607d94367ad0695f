"""The page of a comparison."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from vitbench.changes import Change, Comparison, PartChange, ranked
from vitbench.drawing import offline
from vitbench.reports import changes_html


def change(**values: Any) -> Change:
    usual: dict[str, Any] = {
        "setting": {"model": "vit_b16", "input_shape": "3x224x224", "batch_size": "8"},
        "column": "macs",
        "heading": "MACs",
        "judged": "exact",
        "better": "lower",
        "verdict": "unchanged",
    }
    return Change(**usual | values)


WORSE = change(
    verdict="regressed",
    before=17_582_740_224,
    after=17_682_740_224,
    ratio=1.00569,
    note="torch 2.14.0 to 2.15.0",
    parts=(PartChange(part="blocks.0.attn", column="macs", before=None, after=1234),),
)
PAIRED = change(
    setting={"model": "swin_t"},
    column="throughput_per_s",
    heading="Inputs/s",
    judged="timed",
    better="higher",
    verdict="inconclusive",
    before=60.0,
    after=61.0,
    ratio=1.0167,
    low=0.98,
    high=1.05,
    threshold=0.03,
    more=12,
    rounds=((0.97, 1.02, 1.06), (1.0, 1.01)),
)


def comparison(*changes: Change, **values: Any) -> Comparison:
    return Comparison(base="base.json", head="head.json", changes=ranked(changes), **values)


def rows(html: str) -> list[list[str]]:
    found = re.findall(r"<tr>(<th.*?)</tr>", html.partition("<tbody>")[2])
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)] for row in found]


def test_the_verdict_comes_first_then_the_findings_worst_first() -> None:
    html = changes_html.render(comparison(change(), PAIRED, WORSE))
    headline = "1 regressed from base.json to head.json: 1 inconclusive, 1 unchanged."
    assert html.index(headline) < html.index("<table>")
    assert rows(html)[0] == [
        "vit_b16",
        "✗ regressed",
        "3x224x224, batch_size 8",
        "MACs",
        "17.58 G",
        "17.68 G",
        "+0.57 %",
        "",
        "torch 2.14.0 to 2.15.0",
    ]
    # The interval and what would settle it, in words.
    assert rows(html)[1][6:] == ["+1.67 %", "-2.00 % to +5.00 %", "about 12 more rounds would settle it"]


def test_what_did_not_change_is_folded_and_modules_have_a_table_of_their_own() -> None:
    html = changes_html.render(comparison(change(before=1, after=1), WORSE))
    assert re.search(r"<details><summary>Unchanged \(1\)</summary>", html)
    assert "<details open" not in html
    assert ["vit_b16", "", "blocks.0.attn", "macs", "not there", "1.234 k"] in rows(html)
    assert "All: 3x224x224, batch_size 8." in html


def test_a_change_in_the_last_digit_is_not_nothing_and_columns_of_one_heading_are_told_apart() -> None:
    least = replace(WORSE, before=15_430_946_816, after=15_430_946_817, ratio=15_430_946_817 / 15_430_946_816)
    other = replace(WORSE, column="macs_per_input")
    found = rows(changes_html.render(comparison(least, other)))
    # The words of wording.py, which the terminal, Markdown and JUnit say too.
    assert [row[3:7] for row in found[:2]] == [
        ["MACs (macs_per_input)", "17.58 G", "17.68 G", "+0.57 %"],
        ["MACs (macs)", "15,430,946,816", "15,430,946,817", "+6.5e-09 %"],
    ]


def test_tables_of_changes_end_at_a_limit_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "MOST_ROWS", 2)
    worse = [replace(WORSE, setting={"model": f"m{place}"}, parts=()) for place in range(3)]
    same = [change(setting={"model": f"n{place}"}) for place in range(4)]
    html = changes_html.render(comparison(*worse, *same))
    assert [row[0] for row in rows(html)] == ["m0", "m1", "n0", "n1"]
    assert "Findings: The first 2 of 3 rows." in html
    assert "Unchanged: The first 2 of 4 rows." in html
    assert "<summary>Unchanged (4)</summary>" in html


def test_rows_that_are_new_because_the_base_has_none_of_their_kind_are_folded_and_counted() -> None:
    def new(**setting: str) -> Change:
        return change(verdict="new", column="", heading="", setting={"model": "m", "input_shape": "3x8x8"} | setting)

    of_a_kind = [new(layer=f"blocks.{layer}", head="0") for layer in range(3)]
    batch = new(batch_size="64")
    html = changes_html.render(comparison(change(), *of_a_kind, batch))
    assert "<summary>New, of kinds of rows that base.json has none of (3)</summary>" in html
    found = rows(html)
    # A row of the base's own kind, at another setting, is a finding.
    assert [row[3] for row in found if "new" in row[1]] == ["whole row"]
    assert ["layer, head", "1", "3"] in found
    # Without anything in common there is no kind to tell.
    assert len(rows(changes_html.render(comparison(*of_a_kind)))) == 3


def test_a_verdict_has_its_colour_and_says_what_was_expected() -> None:
    def mood(*changes: Change) -> str:
        (found,) = re.findall(r'<p class="verdict ?(\w*)"><strong>', changes_html.render(comparison(*changes)))
        return str(found)

    assert mood(WORSE, change()) == "bad"
    assert mood(change(verdict="missing")) == "bad"
    assert mood(PAIRED) == ""
    assert mood(change(), change(verdict="improved")) == "good"
    assert mood() == "bad"  # nothing was compared
    known = replace(WORSE, expected="the head has grown")
    assert mood(change(verdict="new")) == "bad"
    assert mood(known, change()) == ""
    assert "1 regressed (1 expected) from base.json to head.json." in changes_html.render(comparison(known))


def test_pairs_are_drawn_where_their_ratios_lie() -> None:
    html = changes_html.render(comparison(PAIRED))
    assert "5 pairs in 2 rounds, from -3.00 % to +6.00 %; inconclusive" in html
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', html)]
    assert len(dots) == 5
    # On a logarithmic axis whose ends are the least, 0.97, and the greatest, 1.06; 50 and 590 in the drawing.
    assert dots[0][0] == 50
    assert dots[2][0] == 590
    assert dots[3][0] == round(50 + 540 * math.log(1 / 0.97) / math.log(1.06 / 0.97), 1)
    assert dots[0][1] == dots[1][1] < dots[3][1]


def test_ratios_that_are_none_are_not_drawn() -> None:
    odd = replace(PAIRED, rounds=((0.0, math.inf, math.nan), (1.02, -1.0)))
    html = changes_html.render(comparison(odd))
    assert html.count("<circle") == 1
    assert "<circle" not in changes_html.render(comparison(replace(PAIRED, rounds=((), (0.0, math.nan)))))


@pytest.mark.parametrize(
    "odd",
    [
        {"threshold": 1.0},
        {"threshold": 5.0},
        {"threshold": math.inf},
        {"low": -0.2, "high": 1.1},
        {"low": 0.0, "high": math.inf},
        {"low": math.nan, "high": math.nan},
    ],
    ids=str,
)
def test_what_reaches_beyond_the_axis_ends_where_the_drawing_does(odd: dict[str, float]) -> None:
    html = changes_html.render(comparison(replace(PAIRED, **odd)))  # type: ignore[arg-type]  # any field
    drawing = re.search(r"<svg.*?</svg>", html, re.DOTALL)
    assert drawing
    places = [float(x) for x in re.findall(r'(?:c?x[12]?)="(-?[\d.]+|nan|inf)"', drawing[0])]
    assert all(50 <= place <= 590 for place in places)
    assert html.count("<circle") == 5


def test_rounds_without_a_finite_pair_are_not_drawn() -> None:
    assert "<svg" not in changes_html.render(comparison(replace(PAIRED, rounds=((math.inf,), (math.inf, math.nan)))))


def test_pairs_are_head_over_base() -> None:
    assert "head over base" in changes_html.render(comparison(PAIRED))


def test_names_are_escaped() -> None:
    evil = "</script><img src=x onerror=alert(1)>{{7*7}}"
    html = changes_html.render(
        comparison(
            replace(PAIRED, setting={"model": evil}, note=evil, heading=evil),
            environment={evil: evil},
            differences={evil: (evil, evil)},
            notes=(evil,),
            commands=(evil,),
        )
    )
    assert "<img" not in html
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;{{7*7}}" in html
    assert html.count("<script") == 1
