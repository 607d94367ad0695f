"""`vitbench compare`: what became of every column from one result to another."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitbench import results
from vitbench.changes import Comparison, counted, exit_code
from vitbench.cli.options import deliver, status
from vitbench.reports import COMPARISON_SUFFIXES, COMPARISONS
from vitbench.running import environment

if TYPE_CHECKING:
    from vitbench.changes import FailOn


class ComparisonFormat(StrEnum):
    """The reports of comparisons on the shelf (a test holds the two equal)."""

    table = "table"
    markdown = "markdown"
    json = "json"
    junit = "junit"
    html = "html"


class Fails(StrEnum):
    """Which differences end a command with 1."""

    regressed = "regressed"
    any = "any"
    never = "never"


ComparisonFormatOption = Annotated[
    ComparisonFormat | None,
    typer.Option("--format", "-f", help="How to write it; by default as the output file's ending says, else a table."),
]
ComparisonOutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write to this file (.md, .json, .xml, .html) instead of the terminal."),
]
FailOnOption = Annotated[
    Fails, typer.Option("--fail-on", help="Exit with 1 on regressions, on any difference found, or never.")
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Exit with 4 where something is inconclusive or incomparable.")
]
AllowMissingOption = Annotated[
    bool, typer.Option("--allow-missing", help="Do not exit with 3 where HEAD lacks rows or values of BASE.")
]
ThresholdOption = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold",
        metavar="METRIC[:MODELS]=N%",
        help="Relative change up to which a column is unchanged, such as throughput=5% or 'macs:vit_*=1%'; may be repeated, "
        "the last that fits counts. A time can be called unchanged only from 52% on: two stored results may lie that far apart "
        "by themselves; below it is regressed, improved, suspect or inconclusive.",
    ),
]


def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="A result file of any command, or a folder of them.")],
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="The same, later.")],
    format: ComparisonFormatOption = None,
    output: ComparisonOutputOption = None,
    fail_on: FailOnOption = Fails.regressed,
    threshold: ThresholdOption = None,
    strict: StrictOption = False,
    allow_missing: AllowMissingOption = False,
) -> None:
    """Compare two results: each column as it is declared, exactly, within a tolerance, or by the statistics of its samples.

    Counts are compared on any machine, times only where machine and software are the same. Exits with 1 where something
    regressed, with 3 where something is missing or nothing could be compared.
    """
    from vitbench import compare as verb

    if output is not None:
        results.check_writable(output)
    thresholds = [verb.parse_threshold(text) for text in threshold or ()]
    notes: list[str] = []
    sides = results.load(base, notes), results.load(head, notes)
    found = verb.compare(*sides, base_name=str(base), head_name=str(head), thresholds=thresholds)
    typed = environment.command()
    found = replace(found, notes=(*notes, *found.notes), commands=(typed,) if typed else ())
    conclude(found, format, output, fail_on=fail_on.value, strict=strict, allow_missing=allow_missing)


def conclude(
    found: Comparison,
    wanted: ComparisonFormat | None,
    output: Path | None,
    *,
    fail_on: FailOn = "regressed",
    strict: bool = False,
    allow_missing: bool = False,
) -> None:
    """Writes a comparison, says it in a line on standard error, and ends the command.

    Args:
        found: what was found.
        wanted: the format that the user gave.
        output: the file that the user gave.
        fail_on: as `changes.counted` takes it.
        strict: the same.
        allow_missing: the same.

    Raises:
        CannotWrite: the file or standard output cannot be written.
        typer.Exit: with `changes.exit_code`.
    """
    found = replace(found, counted=counted(fail_on=fail_on, strict=strict, allow_missing=allow_missing))
    name = wanted.value if wanted else COMPARISON_SUFFIXES.get(output.suffix.lower(), "table") if output else "table"
    deliver(found, COMPARISONS.load(name).render, output, terminal=name == "table")
    if output is not None:
        status(f"Wrote {output}.")
    told = ", ".join(f"{number} {verdict}" for verdict, number in found.counts.items())
    status(f"{told}." if told else "Nothing could be compared: the two share no value of a column that is judged.")
    raise typer.Exit(exit_code(found))
