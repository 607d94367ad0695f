"""`vitbench doctor`: what this machine is, what slows it now, and how small a change it can tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vitbench import results
from vitbench.cli.options import FormatOption, OutputOption, emit, status
from vitbench.errors import BadInput
from vitbench.records import Column, Table, columns

if TYPE_CHECKING:
    from vitbench.doctor import Fact


def doctor(
    noise: Annotated[
        bool, typer.Option("--noise", help="Compare a small model with itself: the smallest change that can be told.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="TIME", help="With --noise: how long, by default 60s.")
    ] = None,
    format: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Say what this machine is, what slows it now and what to do about it, and how small a change it can tell."""
    from vitbench import doctor as verb

    if budget is not None and not noise:
        raise BadInput("--budget goes with --noise.")
    if output is not None:
        results.check_writable(output)
    facts = list(verb.examine())
    notes = []
    if noise:
        found, sentence = _noise(budget or "60s")
        facts += found
        notes.append(sentence)
    emit(_table(facts, notes), format, output)


def _noise(budget: str) -> tuple[list[Fact], str]:
    from vitbench import doctor as verb
    from vitbench.ab import parse_budget
    from vitbench.judging import sides
    from vitbench.judging.duel import Progress, WorkerFailed

    def tell(progress: Progress) -> None:
        status(f"{verb.NOISE_MODEL} with itself: round {progress.rounds}, {progress.spent_s:.0f} s.")

    budget_s = parse_budget(budget)
    try:
        with sides.opened([sides.Spec()], say=status) as (side,):
            options = sides.Options(device="cpu", threads=1)
            return verb.noise(lambda: side.start(verb.NOISE_MODEL, options), budget_s=budget_s, tell=tell)
    except WorkerFailed as error:
        raise BadInput(f"The noise cannot be told: {error}.") from error


def _table(facts: Sequence[Fact], notes: Sequence[str]) -> Table:
    shown = [
        Column(heading="Topic", text=lambda row: row["topic"]),
        Column(heading="What", text=lambda row: row["name"]),
        Column(heading="Found", text=lambda row: row["value"], folds=True),
        Column(heading="What to do", text=lambda row: row["advice"], folds=True),
    ]
    return Table(rows=[columns(fact) for fact in facts], columns=shown, notes=notes)
