"""A comparison as one page that opens offline: the verdict first, then what was found, worst first."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import vitbench
from vitbench.changes import NOT_MEASURED, REGRESSED, VERDICTS, Change, Comparison, exit_code
from vitbench.drawing import offline
from vitbench.judging import wording
from vitbench.records import AnalysisSetting, RunSetting, headings
from vitbench.units import percent

_MARKS = {"regressed": "✗", "missing": "✗", "improved": "✓", "new": "+", "unchanged": "="}
_HEADS = (
    ("Model", ""),
    ("Verdict", "v"),
    ("Setting", ""),
    ("Column", ""),
    ("Base", "n"),
    ("Head", "n"),
    ("Change", "n"),
    ("95 % interval", "n"),
    ("Note", ""),
)
_PART_HEADS = (("Model", ""), ("Setting", ""), ("Module", ""), ("Column", ""), ("Base", "n"), ("Head", "n"))
_KIND_HEADS = (("Told apart by", ""), ("Models", "n"), ("Rows", "n"))

# Columns of settings, which tell no kind of row; `source` is one of what is held against published figures too.
_OF_ANY = {*headings(RunSetting), *headings(AnalysisSetting)} - {"source"}

# The strip's drawing, in its own units.
_LEFT, _WIDTH, _LINE, _TICK = 50.0, 540.0, 14.0, 80.0


def render(comparison: Comparison) -> str:
    """Gives a comparison as HTML."""
    sections = [("changes", "Changes")]
    sections += [("environment", "Environment")] if comparison.environment else []
    sections += [("commands", "Commands")] if comparison.commands else []
    return offline.page(
        "changes.html",
        scripts=[offline.source("page.js")],
        title=f"{comparison.base} to {comparison.head}: changes",
        version=vitbench.__version__,
        sections=sections,
        found=context(comparison),
        environment=list(comparison.environment.items()),
        commands=comparison.commands,
    )


def context(comparison: Comparison) -> Mapping[str, Any]:
    """Gives what the template's `changes` shows of a comparison."""
    counts = comparison.counts
    code = exit_code(comparison)
    doubtful = counts.keys() - {"improved", "new", "unchanged"}
    labels = wording.labels(comparison)
    shared = wording.shared_conditions(comparison)
    kinds = _new_kinds(comparison)
    findings = [change for change in comparison.findings if _kind(change) not in kinds]
    unchanged = [change for change in comparison.changes if change.verdict == "unchanged"]
    parts = [row for change in comparison.findings for row in _parts(change, shared)]
    alike = wording.conditions(shared)
    return {
        "base": comparison.base,
        "verdict": wording.headline(comparison),
        "mood": "bad" if code in (REGRESSED, NOT_MEASURED) else "" if code or doubtful else "good",
        "notes": [*([f"All: {alike}."] if alike else []), *comparison.notes],
        "caption": f"What changed from {comparison.base} to {comparison.head}, worst first",
        "tables": [
            _table("findings", "Findings", _HEADS, [_row(change, labels, shared) for change in findings]),
            _table("modules", "Modules that changed", _PART_HEADS, parts),
            _table(
                "kinds",
                f"New, of kinds of rows that {comparison.base} has none of",
                _KIND_HEADS,
                _kind_rows(kinds),
                sum(map(len, kinds.values())),
            ),
            _table("unchanged", "Unchanged", _HEADS, [_row(change, labels, shared) for change in unchanged]),
        ],
        "strips": [strip for change in comparison.changes if (strip := _strip(change, labels[change.column]))],
        "differences": [(name, f"{a or 'none'} → {b or 'none'}") for name, (a, b) in comparison.differences.items()],
    }


def _table(
    id: str, title: str, heads: Sequence[tuple[str, str]], rows: Sequence[Any], number: int | None = None
) -> dict[str, Any]:
    """Gives a table with its number of rows, or of what its rows count."""
    return {
        "id": id,
        "title": title,
        "heads": [{"text": text, "classes": classes} for text, classes in heads],
        "rows": rows[: offline.MOST_ROWS],
        "number": len(rows) if number is None else number,
        "note": " ".join(offline.capped(rows)),
    }


def _kind(change: Change) -> tuple[str, ...]:
    """Gives the columns that tell the row of a change from others of its setting; each kind of row has its own."""
    return tuple(name for name in change.setting if name not in _OF_ANY)


def _new_kinds(comparison: Comparison) -> dict[tuple[str, ...], list[Change]]:
    """Gives the whole rows that are new only because the base has no row of their kind, by kind."""
    known = {_kind(change) for change in comparison.changes if change.verdict != "new"}
    found: dict[tuple[str, ...], list[Change]] = {}
    for change in comparison.changes:
        if not change.column and _kind(change) not in known:
            found.setdefault(_kind(change), []).append(change)
    # Where nothing is known, all is new for one reason, and there is nothing else to show.
    return found if known else {}


def _kind_rows(kinds: Mapping[tuple[str, ...], Sequence[Change]]) -> list[list[dict[str, Any]]]:
    found = []
    for kind, changes in kinds.items():
        models = len({change.model for change in changes})
        told = ", ".join(kind) or "nothing but the setting"
        found.append([cell(told), cell(str(models), models), cell(str(len(changes)), len(changes))])
    return found


def cell(text: str, value: float | None = None) -> dict[str, Any]:
    """Gives one cell: its text, and the number that it is sorted by."""
    return {"text": text, "value": value}


def finite(value: Any) -> float | None:
    """Gives a number that a table can be sorted by, None for all else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return value if math.isfinite(value) else None
    return None


def _row(change: Change, labels: Mapping[str, str], shared: Mapping[str, str]) -> list[dict[str, Any]]:
    before, after = wording.values(change)
    return [
        cell(change.model),
        cell(f"{_MARKS.get(change.verdict, '?')} {change.verdict}", VERDICTS.index(change.verdict)),
        cell(wording.conditions(change.setting, without=shared)),
        cell(labels[change.column]),
        cell(before, finite(change.before)),
        cell(after, finite(change.after)),
        cell(wording.relative(change), finite(change.ratio)),
        cell(wording.interval(change), finite(change.low)),
        cell(wording.note(change)),
    ]


def _parts(change: Change, shared: Mapping[str, str]) -> list[list[dict[str, Any]]]:
    found = []
    for part in change.parts:
        before, after = wording.part_values(part)
        found.append(
            [
                cell(change.model),
                cell(wording.conditions(change.setting, without=shared)),
                cell(part.part or "the model itself"),
                cell(part.column),
                cell(before, finite(part.before)),
                cell(after, finite(part.after)),
            ]
        )
    return found


def _strip(change: Change, label: str) -> dict[str, Any] | None:
    """Gives the drawing of a paired measurement: the ratio across, logarithmically, and a line a round; None without pairs."""
    dots = [
        (ratio, place) for place, of_round in enumerate(change.rounds) for ratio in of_round if 0 < ratio < math.inf
    ]
    if not dots:
        return None
    ratios = [ratio for ratio, _ in dots]
    # On such an axis nothing lies at zero or below: a band or an interval that reaches there ends where the drawing does.
    drawn = [end for end in (change.low, change.high) if end is not None and 0 < end < math.inf]
    # In logarithms, in which it is judged, it is as wide to either side.
    band = (1 / (1 + change.threshold), 1 + change.threshold)
    ends = [*ratios, *drawn, *(end for end in band if 0 < end < math.inf), 0.99, 1.01]
    low, high = math.log(min(ends)), math.log(max(ends))

    def across(ratio: float) -> float:
        inside = math.log(ratio) if 0 < ratio < math.inf else low if ratio <= 0 else high
        return round(_LEFT + _WIDTH * (inside - low) / (high - low), 1)

    left, right = map(across, band)
    number = f"{len(ratios)} pairs in {len(change.rounds)} {'round' if len(change.rounds) == 1 else 'rounds'}"
    span = f"from {percent(min(ratios) - 1)} to {percent(max(ratios) - 1)}"
    interval = None
    if change.low is not None and change.high is not None and not math.isnan(change.low + change.high):
        interval = across(change.low), across(change.high)
    ends_apart = [ratio for ratio in (min(ends), max(ends)) if abs(across(ratio) - across(1.0)) > _TICK]
    return {
        "title": f"{change.model}, {wording.conditions(change.setting)}: {label}, {number}",
        "text": f"{label} of {change.model}: {number}, {span}; {change.verdict}",
        "height": _LINE * len(change.rounds) + 50,
        "same": (left, round(right - left, 1)),
        "one": across(1.0),
        "dots": [(across(ratio), _LINE * (place + 0.7)) for ratio, place in dots],
        "interval": interval,
        "ticks": [(across(ratio), percent(ratio - 1)) for ratio in (1.0, *ends_apart)],
    }
