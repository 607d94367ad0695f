"""The words for a comparison, which all its reports share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vitbench import units
from vitbench.changes import Change, Comparison, PartChange
from vitbench.markup import one_line, shortened

MOST_PARTS = 8
"""Modules told of one change."""


def headline(comparison: Comparison) -> str:
    """Gives the verdict in a sentence: "1 regressed from base to head: 2 improved, 30 unchanged."."""
    expected = Counter(change.verdict for change in comparison.changes if change.expected)
    told = {
        verdict: f"{count} {verdict}" + (f" ({expected[verdict]} expected)" if expected[verdict] else "")
        for verdict, count in comparison.counts.items()
    }
    first = told.pop("regressed", "")
    if not comparison.compared:
        first = "Nothing could be compared"
    between = f"{first or 'Nothing regressed'} from {_name(comparison.base)} to {_name(comparison.head)}"
    return f"{between}: {', '.join(told.values())}." if told else f"{between}."


def values(change: Change) -> tuple[str, str]:
    """Gives the two values as texts, which differ where the values do; empty where there is none."""
    return units.quantities(change.column, change.before, change.after)


def relative(change: Change) -> str:
    """Gives the change in per cent; empty where there is no ratio."""
    if change.ratio is None:
        return ""
    # Where there is noise, no more digits than it leaves.
    of = units.signed_percent if change.low is None else units.percent
    return of(change.ratio - 1)


def interval(change: Change) -> str:
    """Gives the 95 % interval of `relative`, such as "-9.00 % to -7.30 %"; empty where there is none."""
    if change.low is None or change.high is None:
        return ""
    return f"{units.percent(change.low - 1)} to {units.percent(change.high - 1)}"


def note(change: Change) -> str:
    """Gives what is to be said of a change beside its verdict, in a line."""
    told = [change.note]
    if change.more is not None:
        what = "round" if change.rounds else "process"
        told.append(f"about {change.more} more {_plural(what, change.more)} would settle it")
    if change.expected:
        told.append(f"expected: {change.expected}")
    return "; ".join(part for part in told if part)


def told(change: Change) -> str:
    """Gives a change in a line: "regressed: MACs 17.58 G to 17.60 G; +0.11 %; why"."""
    before, after = values(change)
    both = f"{before or 'none'} to {after or 'none'}" if before or after else ""
    between = f" ({interval(change)})" if interval(change) else ""
    what = f"{change.verdict}: {change.heading or change.column or 'whole row'} {both}".rstrip()
    return "; ".join(part for part in (what, f"{relative(change)}{between}", note(change)) if part)


def labels(comparison: Comparison) -> dict[str, str]:
    """Gives what stands for each column: its heading, with the column's name where two columns share one."""
    headings = {change.column: change.heading for change in comparison.changes}
    shared = Counter(headings.values())
    return {
        column: f"{heading} ({column})" if shared[heading] > 1 else heading or column or "whole row"
        for column, heading in headings.items()
    }


def shared_conditions(comparison: Comparison) -> dict[str, str]:
    """Gives the part of the settings that is the same in all changes, without the model."""
    settings = [change.setting for change in comparison.changes]
    first: Mapping[str, str] = settings[0] if settings else {}
    return {
        name: value
        for name, value in first.items()
        if name != "model" and all(setting.get(name) == value for setting in settings)
    }


def conditions(setting: Mapping[str, str], *, without: Mapping[str, str] | None = None) -> str:
    """Gives a setting in a line, without the model, what is empty, and the conditions that are told elsewhere."""
    left_out = {"model", *(without or {})}
    return ", ".join(
        value if name == "input_shape" else f"{name} {value}"
        for name, value in setting.items()
        if value and name not in left_out
    )


def parts(change: Change) -> tuple[Sequence[PartChange], str]:
    """Gives the modules that changed most, `MOST_PARTS` at most, and a text that counts the rest, empty if there is none."""
    ordered = sorted(change.parts, key=lambda part: -abs((part.after or 0) - (part.before or 0)))
    left = len(ordered) - MOST_PARTS
    return ordered[:MOST_PARTS], f"and {left} more {_plural('module', left)}" if left > 0 else ""


def part_values(part: PartChange) -> tuple[str, str]:
    """Gives a module's two values as texts; a module that is not there has none."""
    before, after = units.quantities(part.column, part.before, part.after)
    return before or "not there", after or "not there"


def differences(comparison: Comparison) -> str:
    """Gives what differs between the environments, in a line: "torch 2.13.0 to 2.14.0"; empty where nothing does."""
    return "; ".join(
        f"{name} {before or 'none'} to {after or 'none'}" for name, (before, after) in comparison.differences.items()
    )


def _name(text: str) -> str:
    # Of any length, since a user chooses it, and the counts stand behind it.
    return shortened(one_line(text), 100)


def _plural(word: str, number: int) -> str:
    ending = "es" if word.endswith("s") else "s"
    return word if number == 1 else f"{word}{ending}"
