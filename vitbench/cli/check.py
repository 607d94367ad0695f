"""`vitbench check`: one command for a pipeline; a suite is measured, compared and reported, with one exit code."""

from __future__ import annotations

import datetime
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vitbench import results
from vitbench.changes import counted, exit_code
from vitbench.cli.ab import drawn
from vitbench.cli.compare import AllowMissingOption, StrictOption
from vitbench.cli.options import SOME_FAILED, deliver, progress, status
from vitbench.cli.sweep import complete_suite
from vitbench.errors import CannotWrite
from vitbench.judging import github
from vitbench.records import Table
from vitbench.reports import COMPARISONS, json
from vitbench.running import environment

if TYPE_CHECKING:
    from vitbench.changes import Comparison
    from vitbench.check import Check

_HEAD = "head.json"
_BENCHMARKS: dict[str, Literal["lower", "higher"]] = {"benchmark.json": "lower", "benchmark_higher.json": "higher"}
_REPORTS = {"comment.md": "markdown", "junit.xml": "junit", "changes.json": "json", "report.html": "html"}


def check(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="A TOML file, as of sweep.", autocompletion=complete_suite)
    ],
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="FILE", help="What counts are compared with; --update writes it."),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Write the baseline anew, and say what changed; times nothing.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="A folder for comment.md, junit.xml, report.html and more."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="REV", help="Time against where HEAD left this revision, instead of the suite's."
        ),
    ] = None,
    strict: StrictOption = False,
    allow_missing: AllowMissingOption = False,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Models counted side by side. Default: the processors.")
    ] = None,
) -> None:
    """Check a suite for regressions: counts and memory against a baseline in a file, times against a git revision.

    Times are never compared with stored ones: both sides are measured in turn, as by ab, where HEAD left origin/main and here.
    Exits with 1 where something regressed, 3 where something was not measured. In GitHub Actions it writes the step's summary
    and annotations.
    """
    from vitbench import check as verb
    from vitbench import suite as suites
    from vitbench.running import worker

    asked = suites.read(suite)
    worker.start()
    checking = verb.Check(
        asked,
        baseline=baseline,
        revision=verb.merge_base(against or asked.against.revision, Path.cwd()),
        today=datetime.datetime.now(datetime.UTC).date(),
        update=update,
        command=environment.command() or "",
    )
    if update and baseline is not None:
        results.check_writable(baseline)
    if output is not None:
        _make(output)
    try:
        with closing(checking.count(jobs=jobs or environment.cores())) as done:
            for _ in progress(done, len(checking.counted), "Measuring", timed=True):
                pass
        if not update:
            with drawn() as tell:
                checking.time(say=status, tell=tell)
    except KeyboardInterrupt:
        if checking.measured and not update:
            _report(checking.comparison(), output)
        raise
    finally:
        # Also of what was interrupted.
        if output is not None and checking.rows:
            results.write(output / _HEAD, json.render(Table(rows=checking.rows, columns=())))
            status(f"Wrote {output / _HEAD}.")
    if update and baseline is not None:
        if not checking.anew:
            _report(checking.comparison(), output)
        _update(checking, baseline)
        return
    found = replace(checking.comparison(), counted=counted(strict=strict, allow_missing=allow_missing))
    _report(found, output)
    raise typer.Exit(exit_code(found))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"Cannot write to the folder {folder}: {error.strerror}.") from error
    results.check_writable(folder / _HEAD)


def _report(found: Comparison, output: Path | None) -> None:
    deliver(found, COMPARISONS.load("table").render, None, terminal=True)
    if output is not None:
        texts = {name: COMPARISONS.load(report).render(found) for name, report in _REPORTS.items()}
        texts |= {name: github.benchmark_json(found, better) for name, better in _BENCHMARKS.items()}
        for name, text in texts.items():
            if text:
                results.write(output / name, text)
            else:
                # Of an earlier check.
                (output / name).unlink(missing_ok=True)
        status(f"Wrote {', '.join(name for name, text in texts.items() if text)} to {output}.")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        github.step_summary(lambda room: str(COMPARISONS.load("markdown").render(found, limit=room)))
        deliver(found, lambda one: "".join(f"{line}\n" for line in github.annotations(one)), None, terminal=False)


def _update(checking: Check, baseline: Path) -> None:
    if checking.problem:
        status(f"{checking.problem} It is made anew.")
    text = checking.baseline()
    before = baseline.read_text(encoding="utf-8", errors="replace") if baseline.exists() else ""
    if text == before:
        status(f"{baseline} is as it was.")
    else:
        results.write(baseline, text)
        status(f"Wrote {baseline}.")
    if failed := checking.failures:
        status(f"{failed} {'row' if failed == 1 else 'rows'} failed and {'is' if failed == 1 else 'are'} not in it.")
        raise typer.Exit(SOME_FAILED)
