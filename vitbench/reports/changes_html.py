"""A comparison as one page that opens offline: the verdict first, then what was found, worst first."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import vitbench
from vitbench import offline
from vitbench.changes import VERDICTS, Change, Comparison
from vitbench.units import percent, quantities, quantity

_MARKS = {"regressed": "✗", "missing": "✗", "improved": "✓", "new": "+", "unchanged": "="}
_HEADS = (
    ("Model", ""),
    ("Verdict", "v"),
    ("Setting", ""),
    ("What", ""),
    ("Before", "n"),
    ("After", "n"),
    ("Change", "n"),
    ("95 % interval", "n"),
    ("Why", ""),
)
_PART_HEADS = (("Model", ""), ("Setting", ""), ("Part", ""), ("What", ""), ("Before", "n"), ("After", "n"))

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
    said = ", ".join(f"{number} {verdict}" for verdict, number in counts.items()) or "Nothing was compared"
    bad = counts.keys() & {"regressed", "missing"} or not counts
    doubtful = counts.keys() & {"suspect", "incomparable", "inconclusive"}
    expected = sum(bool(change.expected) for change in comparison.findings)
    return {
        "base": comparison.base,
        "verdict": f"{said}{f'; {expected} of these expected' if expected else ''}.",
        "mood": "bad" if bad else "" if doubtful else "good",
        "notes": comparison.notes,
        "caption": f"What changed from {comparison.base} to {comparison.head}, worst first",
        "heads": _heads(_HEADS),
        "findings": [_row(change) for change in comparison.findings],
        "unchanged": [_row(change) for change in comparison.changes if change.verdict == "unchanged"],
        "part_heads": _heads(_PART_HEADS),
        "parts": [row for change in comparison.findings for row in _parts(change)],
        "strips": [
            _strip(change)
            for change in comparison.changes
            if any(ratio > 0 for of_round in change.rounds for ratio in of_round)
        ],
        "differences": [(name, f"{a} → {b}") for name, (a, b) in comparison.differences.items()],
    }


def _heads(heads: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"text": text, "classes": classes} for text, classes in heads]


def cell(text: str, value: float | None = None) -> dict[str, Any]:
    """Gives one cell: its text, and the number that it is sorted by."""
    return {"text": text, "value": value}


def finite(value: Any) -> float | None:
    """Gives a number that a table can be sorted by, None for all else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return value if math.isfinite(value) else None
    return None


def _row(change: Change) -> list[dict[str, Any]]:
    before, after = quantities(change.column, change.before, change.after)
    difference = change.ratio - 1 if change.ratio is not None else None
    interval = ""
    if change.low is not None and change.high is not None:
        interval = f"{percent(change.low - 1)} to {percent(change.high - 1)}"
    more = f"{change.more} more would settle it" if change.more is not None else ""
    expected = f"expected: {change.expected}" if change.expected else ""
    return [
        cell(change.model),
        cell(f"{_MARKS.get(change.verdict, '?')} {change.verdict}", VERDICTS.index(change.verdict)),
        cell(change.conditions),
        cell(change.heading or "the whole row"),
        cell(before, finite(change.before)),
        cell(after, finite(change.after)),
        cell(percent(difference) if difference is not None else "", difference),
        cell(interval, change.low),
        cell("; ".join(filter(None, (change.note, more, expected)))),
    ]


def _parts(change: Change) -> list[list[dict[str, Any]]]:
    return [
        [
            cell(change.model),
            cell(change.conditions),
            cell(part.part or "(the model itself)"),
            cell(part.column),
            cell(quantity(part.column, part.before), part.before),
            cell(quantity(part.column, part.after), part.after),
        ]
        for part in change.parts
    ]


def _strip(change: Change) -> dict[str, Any]:
    """Gives the drawing of a paired measurement: the ratio across, on a logarithmic axis, and a line a round."""
    ratios = [ratio for of_round in change.rounds for ratio in of_round if 0 < ratio < math.inf]
    ends = [change.low or 1, change.high or 1, 1 - change.threshold, 1 + change.threshold, 0.99, 1.01]
    low, high = (math.log(end) for end in (min(*ratios, *ends), max(*ratios, *ends)))

    def across(ratio: float) -> float:
        return round(_LEFT + _WIDTH * (math.log(ratio) - low) / (high - low), 1)

    left, right = across(1 - change.threshold), across(1 + change.threshold)
    number = f"{len(ratios)} pairs in {len(change.rounds)} {'round' if len(change.rounds) == 1 else 'rounds'}"
    span = f"from {percent(min(ratios) - 1)} to {percent(max(ratios) - 1)}"
    interval = (across(change.low), across(change.high)) if change.low and change.high else None
    ends_apart = [ratio for ratio in (math.exp(low), math.exp(high)) if abs(across(ratio) - across(1.0)) > _TICK]
    return {
        "title": f"{change.model}, {change.conditions}: {change.heading}, {number}",
        "text": f"{change.heading} of {change.model}: {number}, {span}; {change.verdict}",
        "height": _LINE * len(change.rounds) + 50,
        "same": (left, round(right - left, 1)),
        "one": across(1.0),
        "dots": [
            (across(ratio), _LINE * (place + 0.7))
            for place, of_round in enumerate(change.rounds)
            for ratio in of_round
            if ratio in ratios
        ],
        "interval": interval,
        "ticks": [(across(ratio), percent(ratio - 1)) for ratio in (1.0, *ends_apart)],
    }
