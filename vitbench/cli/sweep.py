"""`vitbench sweep`: a suite of models and settings, into a folder, gone on with when it was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vitbench.cli.measure import Dtype
from vitbench.cli.options import SOME_FAILED, progress, status
from vitbench.suites import SHIPPED


class Retry(StrEnum):
    """What to measure again."""

    failed = "failed"


def complete_suite(incomplete: str) -> Iterator[str]:
    """Gives the shipped suites that begin with what was typed."""
    return (name for name in SHIPPED if name.startswith(incomplete))


def sweep(
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE",
            help=f"A TOML file, or one that comes with vitbench: {', '.join(sorted(SHIPPED))}.",
            autocompletion=complete_suite,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder of the results.")],
    device: Annotated[
        str | None, typer.Option("--device", help="Instead of the suite's: auto, cpu, cuda, cuda:1, xpu or mps.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help="Instead of the suite's.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in a folder: what is done is not done again.")
    ] = False,
    retry: Annotated[
        Retry | None,
        typer.Option(
            "--retry",
            help="Resume, and measure rows again that are failed, crashed, timeout, out_of_memory or unsupported.",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Models counted side by side; timing never is. Default: the processors."),
    ] = None,
) -> None:
    """Measure what a suite asks for: models and settings from a TOML file, each row on disk before the next is begun.

    The folder gets results.csv, results.jsonl (with all samples) and a copy of the suite. A sweep that was interrupted or killed
    goes on with --resume, and has lost no row but the one in progress.
    """
    from vitbench import suite as suites
    from vitbench import sweep as verb
    from vitbench.running import environment, worker

    asked = suites.read(suite)
    worker.start()
    items = verb.plan(asked, where=device, dtype=dtype.value if dtype else None)
    with verb.opened(output, asked, items, resume=resume or retry is not None, retry=retry is not None) as folder:
        missing = [item for item in items if not folder.done(item)]
        try:
            with closing(verb.run(missing, folder, jobs=jobs or environment.cores())) as done:
                for _ in progress(done, len(missing), "Measuring", timed=True):
                    pass
        except KeyboardInterrupt:
            status(f"{_rows(len(folder))} in {output}; the same command with --resume goes on with the others.")
            raise
        status(f"{_rows(len(folder))} in {output}, {folder.failures or 'none'} failed.")
        if folder.failures:
            raise typer.Exit(SOME_FAILED)


def _rows(number: int) -> str:
    return f"{number} {'row' if number == 1 else 'rows'}"
