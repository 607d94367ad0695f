"""What GitHub Actions take from a step: its summary, annotations, and the file that github-action-benchmark reads."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from vitbench import units
from vitbench.changes import Change, Comparison
from vitbench.errors import CannotWrite
from vitbench.judging import wording
from vitbench.markup import one_line

SUMMARY_BYTES = 900 * 1024
"""Bytes of a step's summary; GitHub takes 1024 KiB and drops the whole of what is larger."""

MOST_ANNOTATIONS = 10
"""Annotations of a kind that GitHub shows of a step."""

_DOUBTFUL = ("regressed", "missing", "suspect", "incomparable", "inconclusive")


def step_summary(render: Callable[[int], str], environment: Mapping[str, str] = os.environ) -> bool:
    """Adds Markdown to the summary of the step that runs.

    Args:
        render: gives it in so many bytes at most, as `reports.changes_markdown` does.
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
            file.write(render(SUMMARY_BYTES - file.tell()).encode())
    except OSError as error:
        raise CannotWrite(f"Cannot write the step's summary {path}: {error.strerror}.") from error
    return True


def annotations(comparison: Comparison) -> list[str]:
    """Gives workflow commands, a line each and ten at most, that annotate the step with what went wrong, worst first.

    What counts against the exit code is an error, what else is doubtful a warning. What is expected is left out. That nothing
    could be compared is an error too.
    """
    doubtful = comparison.counted.union(_DOUBTFUL)
    found = [change for change in comparison.changes if change.verdict in doubtful and not change.expected]
    # Stable: of each level the worst come first.
    levelled = [("error" if change.verdict in comparison.counted else "warning", change) for change in found]
    levelled.sort(key=lambda one: one[0])
    first = [] if comparison.compared else [_command("error", "vitbench", wording.headline(comparison))]
    room = MOST_ANNOTATIONS - len(first)
    if len(found) <= room:
        return [*first, *(_annotation(*one) for one in levelled)]
    told, rest = levelled[: room - 1], levelled[room - 1 :]
    more = _command(rest[0][0], "vitbench", f"and {len(rest)} more; the step's summary has them")
    return [*first, *(_annotation(*one) for one in told), more]


def _annotation(level: str, change: Change) -> str:
    title = f"{change.model}: {change.heading or change.column or 'whole row'} {change.verdict}"
    setting = wording.conditions(change.setting)
    return _command(level, title, f"{one_line(wording.told(change))}\n{one_line(setting)}")


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

    Returns:
        The file's text; empty where it would have no entry.
    """
    entries = [_entry(change) for change in comparison.changes if _drawn(change, better)]
    return json.dumps(entries, indent=2) + "\n" if entries else ""


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
