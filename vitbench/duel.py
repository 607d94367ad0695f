"""Instrument: which of two sides is quicker, told by pairs of blocks in turn, in rounds of fresh processes.

Only one worker runs at a time. A pair is a block of runs of each side, in random order; a round is up to 20 pairs, and every round
has workers of its own, because memory layout and thread placement are drawn anew with each process. The stream of pairs stops when
the interval is narrow enough or the budget is spent, never because a difference became significant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from vitbench.changes import Verdict
from vitbench.pairs import Estimate


class WorkerFailed(Exception):  # noqa: N818  (as in errors.py: it is called after what is wrong)
    """A side that could not be started or run; the text says why, in a clause."""


class Worker(Protocol):
    """A process that holds one side's model, ready to run it."""

    def block(self, runs: int) -> Sequence[float]:
        """Runs the pass so often and gives the seconds of each.

        Raises:
            WorkerFailed: it cannot.
        """
        ...

    def close(self) -> None:
        """Ends the process; once is enough, twice does no harm."""
        ...


Start = Callable[[], Worker]
"""Starts a fresh process with the side's model in it, not warmed up; may raise `WorkerFailed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How long is measured, and what the answer is called.

    Attributes:
        threshold: relative change up to which two sides are the same: 0.03 is 3 %.
        precision: half width of the interval of ln(b / a) at which it stops.
        budget_s: time for everything: first pass, confirmation, control.
        rounds: fewest rounds of a pass.
        control_rounds: rounds of a against itself.
        pairs: most pairs of a round.
        block_s: time that a block is to take; one run may take longer.
    """

    threshold: float = 0.03
    precision: float = 0.008
    budget_s: float = 120.0
    rounds: int = 5
    control_rounds: int = 3
    pairs: int = 20
    block_s: float = 0.05


RULE = Rule()

Stage = Literal["first", "confirmation", "control"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Told after each round, for whoever draws it.

    Attributes:
        stage: which pass it is in.
        rounds: of this pass, so far.
        spent_s: since the duel began.
        budget_s: that it may take.
        estimate: so far.
    """

    stage: Stage
    rounds: int
    spent_s: float
    budget_s: float
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Rounds of one stage.

    Attributes:
        rounds: ln(b / a) of each pair, a tuple a round.
        estimate: from them.
    """

    rounds: tuple[tuple[float, ...], ...]
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """What was measured.

    Attributes:
        rule: by which.
        first: the first pass.
        confirmation: the second, with fresh workers, where the first found a change.
        control: side a against itself, where a change was confirmed, or where it was asked for.
        a_median_s, b_median_s: median of the blocks' medians, seconds a run.
        runs: of a block.
        spent_s: that all of it took.
        notes: sentences on what limited it.
    """

    rule: Rule
    first: Pass
    confirmation: Pass | None
    control: Pass | None
    a_median_s: float
    b_median_s: float
    runs: int
    spent_s: float
    notes: tuple[str, ...] = ()

    @property
    def rounds(self) -> tuple[tuple[float, ...], ...]:
        """Of the first pass and of the confirmation."""
        return self.first.rounds + (self.confirmation.rounds if self.confirmation else ())

    @property
    def estimate(self) -> Estimate:
        """From the rounds of the first pass and of the confirmation: what a report shows."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a duel says of b: seconds a run, so a larger ratio is for the worse.

    Attributes:
        verdict: regressed, suspect, inconclusive, improved or unchanged.
        note: why, in a clause; empty where nothing need be said.
        more: how many more rounds would settle what is inconclusive; None where none need.
        p_value: of there being no change.
    """

    verdict: Verdict
    note: str = ""
    more: int | None = None
    p_value: float = 1.0


def duel(
    a: Start,
    b: Start,
    *,
    rule: Rule = RULE,
    clock: Callable[[], float] = time.monotonic,
    seed: int = 0,
    tell: Callable[[Progress], None] = lambda progress: None,
    always_control: bool = False,
) -> Duel:
    """Measures b against a: a first pass; where it finds a change, a second with fresh workers; then a against itself.

    Args:
        a: the base.
        b: what is compared with it.
        rule: how long.
        clock: gives seconds.
        seed: of the order within pairs, and of the bootstrap.
        tell: is told of each round.
        always_control: runs the control even where there is no change to be doubted, to tell the machine's noise.

    Raises:
        WorkerFailed: a side could not be run.
    """
    raise NotImplementedError


def control(
    a: Start,
    *,
    rule: Rule = RULE,
    clock: Callable[[], float] = time.monotonic,
    seed: int = 0,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Pass:
    """Measures a against itself until the precision or the budget is reached: the machine's noise. `duel` runs its own."""
    raise NotImplementedError


def judged(duel: Duel) -> Judgement:
    """Says what a duel found."""
    raise NotImplementedError


def corrected(judgements: Sequence[Judgement]) -> list[Judgement]:
    """Turns what does not survive among many into suspect: the false discovery rate is held at 5 % (Benjamini-Hochberg)."""
    raise NotImplementedError
