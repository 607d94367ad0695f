"""What GitHub Actions take from a step: its summary, annotations, and the file that github-action-benchmark reads."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vitbench import units, wording
from vitbench.changes import Change, Comparison
from vitbench.errors import CannotWrite
from vitbench.markup import one_line

SUMMARY_BYTES = 900 * 1024
"""Bytes of a step's summary; GitHub takes 1024 KiB and drops the whole of what is larger."""

MOST_ANNOTATIONS = 10
"""Annotations of a kind that GitHub shows of a step."""

_LEVELS = {
    "regressed": "error",
    "missing": "error",
    "suspect": "warning",
    "incomparable": "warning",
    "inconclusive": "warning",
}

_CUT = "\nThe rest is left out: a step's summary has no room for it.\n"


def step_summary(markdown: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Adds Markdown to the summary of the step that runs, cut at the end of a line where there is no room for all of it.

    Args:
        markdown: of `reports.changes_markdown`, whose worst rows come first.
        environment: the process's; GITHUB_STEP_SUMMARY names the file.

    Returns:
        Whether there was a summary to add to: off GitHub there is none.

    Raises:
        CannotWrite: the file cannot be written.
    """
    name = environment.get("GITHUB_STEP_SUMMARY")
    if not name:
        return False
    path = Path(name)
    try:
        with path.open("ab") as file:
            # Earlier commands of the step may have written to it.
            file.write(_fitted(markdown, SUMMARY_BYTES - file.tell()).encode())
    except OSError as error:
        raise CannotWrite(f"Cannot write the step's summary {path}: {error.strerror}.") from error
    return True


def _fitted(markdown: str, room: int) -> str:
    """Gives Markdown in so many bytes, with the blocks closed that the cut leaves open."""
    if len(markdown.encode()) <= room:
        return markdown
    lines: list[str] = []
    ends: list[str] = []
    used = len(_CUT.encode())
    for line in markdown.splitlines():
        opened = _ends(line, ends)
        used += len(line.encode()) + 1
        if used + sum(len(end) + 3 for end in opened) > room:
            break
        lines.append(line)
        ends = opened
    return "\n".join([*lines, *(f"\n{end}" for end in reversed(ends)), _CUT]) if lines else ""


def _ends(line: str, ends: list[str]) -> list[str]:
    """Gives what would close the blocks that are open after a line, the outermost first."""
    if ends and line == ends[-1]:
        return ends[:-1]
    if ends and ends[-1].startswith("`"):
        return ends
    if line == "<details>":
        return [*ends, "</details>"]
    return [*ends, line[: len(line) - len(line.lstrip("`"))]] if line.startswith("```") else ends


def annotations(comparison: Comparison) -> list[str]:
    """Gives workflow commands, a line each and ten at most, that annotate the step with what went wrong, worst first.

    Errors: regressed and missing; warnings: suspect, incomparable and inconclusive. What is expected is left out.
    """
    found = [change for change in comparison.changes if change.verdict in _LEVELS and not change.expected]
    if len(found) <= MOST_ANNOTATIONS:
        return [_annotation(change) for change in found]
    told, rest = found[: MOST_ANNOTATIONS - 1], found[MOST_ANNOTATIONS - 1 :]
    more = _command(_LEVELS[rest[0].verdict], "vitbench", f"and {len(rest)} more; the step's summary has them")
    return [*(_annotation(change) for change in told), more]


def _annotation(change: Change) -> str:
    title = f"{change.model}: {change.heading or change.column or 'whole row'} {change.verdict}"
    setting = wording.conditions(change.setting)
    return _command(_LEVELS[change.verdict], title, f"{one_line(wording.told(change))}\n{one_line(setting)}")


def _command(level: str, title: str, message: str) -> str:
    return f"::{level} title={_escaped(one_line(title), ':,')}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    for sign in f"%\r\n{more}":
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text


def benchmark_json(comparison: Comparison, better: Literal["lower", "higher"] = "lower") -> str:
    """Gives the head's values as the file that benchmark-action/github-action-benchmark reads, to draw them over commits.

    Source: its README, on custom benchmarks; a file has one direction, and the action refuses one without an entry.

    Args:
        comparison: its columns that have a direction and a value.
        better: "lower" for the tool customSmallerIsBetter, "higher" for customBiggerIsBetter.
    """
    return json.dumps([_entry(change) for change in comparison.changes if _drawn(change, better)], indent=2) + "\n"


def _drawn(change: Change, better: str) -> bool:
    number = isinstance(change.after, int | float) and not isinstance(change.after, bool)
    return change.better == better and number and math.isfinite(change.after)


def _entry(change: Change) -> dict[str, str | float]:
    # The column's name, since some share a heading, and the whole setting, since the action joins commits by the name.
    name = f"{change.model}, {wording.conditions(change.setting)}: {change.column}"
    entry = {
        "name": one_line(name),
        "unit": units.unit(change.column) or change.column,
        "value": change.after,
        "extra": one_line(wording.told(change)),
    }
    if change.low is not None and change.high is not None and isinstance(change.before, int | float):
        entry["range"] = f"{change.before * change.low:.6g} to {change.before * change.high:.6g}"
    return entry
