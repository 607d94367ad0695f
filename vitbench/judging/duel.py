"""Instrument: which of two sides is quicker, told by pairs of blocks in turn, in rounds of fresh processes.

Only one worker runs at a time. A pair is a block of runs of each side, in random order; a round is up to 60 pairs, and every
round has workers of its own, since no two processes of one code are equally quick. Between rounds it is asked whether the
interval is narrow enough or the budget spent, never whether a difference is significant. Workers that are forked from one process
have its memory layout in common, and two such processes differ too: sides of one code share one, others have new ones to confirm
a change, and their interval allows for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy

from vitbench.changes import Verdict
from vitbench.judging import pairs
from vitbench.judging.pairs import Estimate
from vitbench.running import statistics


class WorkerFailed(Exception):
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
        """Ends the process, whatever state it is in."""
        ...


Start = Callable[[], Worker]
"""Starts a fresh process with the side's model in it, not warmed up; may raise `WorkerFailed`.

What it does only the first time, such as importing, is best done before: the first round tells how long a round takes.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How long is measured, and what the answer is called.

    Attributes:
        threshold: relative change up to which two sides are the same: 0.03 is 3 %.
        precision: half width of the interval of ln(b / a) at which a pass stops.
        budget_s: time for everything: first pass, confirmation and control.
        rounds: fewest rounds of a pass.
        control_rounds: rounds of a against itself.
        pairs: most pairs of a round.
        block_s: time that a block is to take; one run may take longer.
        warmup_runs, window, settled, warmup_s: as of `timing.Rule`, for each worker.
        warmup_least_s: time that a warm-up takes at least: calls of a ms settle before the processor's clock does.
    """

    threshold: float = 0.03
    precision: float = 0.008
    budget_s: float = 120.0
    rounds: int = 5
    control_rounds: int = 3
    pairs: int = 60
    block_s: float = 0.005
    warmup_runs: int = 3
    window: int = 5
    settled: float = 0.02
    warmup_s: float = 10.0
    warmup_least_s: float = 0.02

    @property
    def limit(self) -> float:
        """The threshold as a logarithm, so that b against a is judged as a against b."""
        return math.log1p(self.threshold)


RULE = Rule()

SERVER_SPREAD = 0.004
"""Standard deviation of ln(b / a) between two processes of one code from which workers are forked.

Of results/power.jsonl: comparisons of one code with itself lay 0.43 % apart (root mean square) where each side had its own, of
the first 40 with two servers those 24 whose interval reached less than 1.2 %; and 0.26 % where both shared one (57). Now and then
two differ by far more, once by 14 %, in every round alike: that is why new ones confirm a change.
"""

Stage = Literal["first", "confirmation", "control"]
_STAGES: tuple[Stage, ...] = ("first", "confirmation", "control")

# Of each round, where a pass takes so long that 60 pairs do not fit.
_LEAST_PAIRS = 3
# Part of the budget that is planned with: later rounds may take longer than the first.
_PLANNED = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Told after each round, for whoever draws it.

    Attributes:
        stage: which pass it is in.
        rounds: of this pass, so far.
        spent_s: since the duel began.
        budget_s: that it may take.
        estimate: of this pass, so far.
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
        confirmation: the second, with fresh workers, where the first found a change and there was time.
        control: side a against itself, where the first found a change or it was asked for, and there was time.
        a_median_s, b_median_s: median of the blocks' medians, seconds a run.
        runs: of a block.
        spent_s: that all of it took.
        spread: what the sides' servers may differ by, as a standard deviation of ln(b / a); 0 where they share one.
    """

    rule: Rule
    first: Pass
    confirmation: Pass | None
    control: Pass | None
    a_median_s: float
    b_median_s: float
    runs: int
    spent_s: float
    spread: float = 0.0

    @property
    def rounds(self) -> tuple[tuple[float, ...], ...]:
        """Of the first pass and of the confirmation."""
        return self.first.rounds + (self.confirmation.rounds if self.confirmation else ())

    @property
    def estimate(self) -> Estimate:
        """From the rounds of the first pass and of the confirmation: what a report shows."""
        # Of two draws of the servers.
        return (
            pairs.estimate(self.rounds, spread=self.spread / math.sqrt(2)) if self.confirmation else self.first.estimate
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a duel says of b, in seconds a run: a larger ratio is for the worse.

    Attributes:
        verdict: regressed, suspect, inconclusive, improved or unchanged.
        note: why, in a clause; empty where nothing need be said.
        more: how many more rounds would settle what is inconclusive; None where no number would, or none need.
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
    renew: Callable[[], None] | None = None,
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
        renew: starts what workers are forked from anew, where the sides do not share it.

    Raises:
        WorkerFailed: a side could not be run.
    """
    spread = SERVER_SPREAD if renew else 0.0
    meter = _Meter(rule, clock, seed, tell, spread)
    # Half of what the control leaves is kept for a confirmation as long as the first pass.
    first = meter.measure("first", a, b, part=0.5)
    assert first is not None  # one round is measured whatever the budget
    changed = _called(first.estimate, rule) in ("regressed", "improved")
    if changed and renew:
        renew()
    return Duel(
        rule=rule,
        first=first,
        confirmation=meter.measure("confirmation", a, b) if changed else None,
        control=meter.measure("control", a, a, most=rule.control_rounds) if changed or always_control else None,
        a_median_s=statistics.median(meter.a_s),
        b_median_s=statistics.median(meter.b_s),
        runs=meter.runs,
        spent_s=meter.spent_s(),
        spread=spread,
    )


def control(
    a: Start,
    *,
    budget_s: float,
    rule: Rule = RULE,
    clock: Callable[[], float] = time.monotonic,
    seed: int = 0,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Pass:
    """Measures a against itself until the budget is spent: the machine's noise. A duel runs its own, a short one.

    Args:
        a: the side.
        budget_s: seconds.
        rule: how; its own budget and precision are not looked at.
        clock: gives seconds.
        seed: of the order within pairs, and of the bootstrap.
        tell: is told of each round.

    Raises:
        WorkerFailed: it could not be run.
    """
    found = _Meter(replace(rule, budget_s=budget_s), clock, seed, tell).measure("control", a, a)
    assert found is not None  # one round is measured whatever the budget
    return found


class _Meter:
    """Measures rounds and keeps account of the time.

    Attributes:
        a_s, b_s: medians of blocks, seconds a run.
        runs: of a block; 0 until the first round has told.
    """

    def __init__(
        self,
        rule: Rule,
        clock: Callable[[], float],
        seed: int,
        tell: Callable[[Progress], None],
        spread: float = 0.0,
    ) -> None:
        self._rule = rule
        self._spread = spread
        self._clock = clock
        self._seed = seed
        self._tell = tell
        self._begin = clock()
        self._pairs = rule.pairs
        self._rounds_s: list[float] = []
        self.a_s: list[float] = []
        self.b_s: list[float] = []
        self.runs = 0

    def spent_s(self) -> float:
        """Gives the seconds since it was made."""
        return self._clock() - self._begin

    def measure(self, stage: Stage, a: Start, b: Start, *, part: float = 1.0, most: float = math.inf) -> Pass | None:
        """Measures rounds of a stage until they suffice or the time is over; None where there was no time for one.

        Args:
            stage: what they are for.
            a: the base.
            b: what is compared with it.
            part: of the budget, less what the control will take, beyond which no round is begun that is not needed.
            most: rounds.
        """
        random = numpy.random.default_rng([self._seed, _STAGES.index(stage)])
        rounds: list[tuple[float, ...]] = []
        found = None
        while len(rounds) < most and self._goes_on(stage, found, part):
            begin = self._clock()
            rounds.append(self._round(a, b, random, keeps=stage != "control"))
            self._rounds_s.append(self._clock() - begin)
            # The control's workers are all of one server.
            found = pairs.estimate(rounds, seed=self._seed, spread=0.0 if stage == "control" else self._spread)
            self._tell(
                Progress(
                    stage=stage,
                    rounds=len(rounds),
                    spent_s=self.spent_s(),
                    budget_s=self._rule.budget_s,
                    estimate=found,
                )
            )
        return Pass(rounds=tuple(rounds), estimate=found) if found else None

    def _goes_on(self, stage: Stage, found: Estimate | None, part: float) -> bool:
        """Tells whether another round is measured; never looks at where the interval lies, only at how wide it is."""
        if not self._rounds_s:
            return True
        rule, round_s = self._rule, statistics.median(self._rounds_s)
        rounds, ends_s = found.rounds if found else 0, self.spent_s() + round_s
        if stage == "control":
            return ends_s <= rule.budget_s
        left_s = rule.budget_s - rule.control_rounds * round_s
        if rounds < rule.rounds:
            return ends_s <= left_s
        assert found is not None
        return found.half_width > math.hypot(rule.precision, found.floor) and ends_s <= part * left_s

    def _round(self, a: Start, b: Start, random: numpy.random.Generator, *, keeps: bool) -> tuple[float, ...]:
        begin = self._clock()
        starts, first = (a, b), int(random.integers(2))
        sides: dict[int, Worker] = {}
        with ExitStack() as ends:
            runs_s = [0.0, 0.0]
            for side in (first, 1 - first):
                sides[side] = ends.enter_context(closing(starts[side]()))
                runs_s[side] = self._warm(sides[side])
            if not self.runs:
                self._plan(runs_s, self._clock() - begin)
            ratios: list[float] = []
            while len(ratios) < self._pairs and not (ratios and self.spent_s() > self._rule.budget_s):
                first = int(random.integers(2))
                for side in (first, 1 - first):
                    runs_s[side] = statistics.median(sides[side].block(self.runs))
                # Not the logarithm of the ratio: so it is, to the last bit, the negative of what a against b would give.
                ratios.append(math.log(runs_s[1]) - math.log(runs_s[0]))
                if keeps:
                    self.a_s.append(runs_s[0])
                    self.b_s.append(runs_s[1])
        return tuple(ratios)

    def _warm(self, worker: Worker) -> float:
        """Runs a worker until its times settle, and gives its seconds a run."""
        rule, begin = self._rule, self._clock()
        # A tenth of the budget for all workers of the shortest duel.
        most_s = min(rule.warmup_s, rule.budget_s / 10 / (2 * rule.rounds))
        times = [*worker.block(1)]
        before = math.inf
        while len(times) < rule.warmup_runs or self._clock() - begin < most_s:
            if self.spent_s() > rule.budget_s:
                break
            runs = worker.block(rule.window if max(times[-1:]) * rule.window < most_s else 1)
            times += runs
            now = statistics.median(times[-rule.window :])
            if len(times) >= rule.warmup_runs and len(runs) == rule.window:
                if abs(now - before) < rule.settled * now and self._clock() - begin >= rule.warmup_least_s:
                    break
                before = now
        return statistics.median(times[-rule.window :])

    def _plan(self, runs_s: Sequence[float], setup_s: float) -> None:
        """Says how many runs make a block and how many pairs a round, from what the first two workers took.

        Both sides have as many runs, so that the median of a block means the same for both; together they take the time of two
        blocks, so that a pair lasts as long whichever side is the slower one.
        """
        rule = self._rule
        self.runs = max(1, math.ceil(2 * rule.block_s / sum(runs_s)))
        needed = 2 * rule.rounds + rule.control_rounds
        room_s = _PLANNED * rule.budget_s / needed - setup_s
        fits = int(room_s / (self.runs * sum(runs_s)))
        self._pairs = max(min(_LEAST_PAIRS, rule.pairs), min(rule.pairs, fits))


def judged(duel: Duel) -> Judgement:
    """Says what a duel found, by its rule's threshold.

    A change is regressed or improved where the interval of the first pass lies beyond the threshold, that of the confirmation
    does too or is at least suspect, that of both together lies beyond it, and the base differs from itself by less than half as
    much. It is suspect otherwise, and where the estimate is beyond the threshold and the interval beyond a third of it.
    Unchanged is an interval inside the threshold on both sides.
    """
    rule, found = duel.rule, duel.estimate
    verdict = _called(duel.first.estimate, rule)
    p_value = duel.first.estimate.p_value
    if duel.first.estimate.rounds < rule.rounds:
        few = f"only {_rounds(duel.first.estimate.rounds)} of {rule.rounds} fitted into the budget"
        return Judgement(verdict="inconclusive", note=few, more=rule.rounds - found.rounds, p_value=p_value)
    if verdict in ("regressed", "improved") and (doubt := _doubt(duel, found, verdict)):
        return Judgement(verdict="suspect", note=doubt, p_value=p_value)
    if verdict == "inconclusive":
        return Judgement(
            verdict=verdict,
            note=f"the interval reaches {math.expm1(found.half_width):.1%} to either side",
            more=pairs.more_rounds(found, rule.limit),
            p_value=p_value,
        )
    return Judgement(verdict=verdict, p_value=p_value)


def _called(found: Estimate, rule: Rule) -> Verdict:
    """Gives the verdict of one pass by itself."""
    for verdict, centre, bound in (
        ("regressed", found.centre, found.low),
        ("improved", -found.centre, -found.high),
    ):
        if bound > rule.limit:
            return "regressed" if verdict == "regressed" else "improved"
        if centre > rule.limit and bound > rule.limit / 3:
            return "suspect"
    return "unchanged" if -rule.limit <= found.low and found.high <= rule.limit else "inconclusive"


def _doubt(duel: Duel, found: Estimate, verdict: Verdict) -> str:
    """Gives why a change is not believed; empty where it is."""
    rule = duel.rule
    again = duel.confirmation
    if again is None or again.estimate.rounds < rule.rounds:
        return "no time was left to confirm it"
    second = _called(again.estimate, rule)
    # A second interval as wide as the first may reach over the threshold by chance; both passes together may not.
    agrees = second == verdict or (second == "suspect" and again.estimate.centre * duel.first.estimate.centre > 0)
    if not agrees or _called(duel.estimate, rule) != verdict:
        return f"fresh workers did not confirm it: {second}"
    if duel.control is None:
        return "no time was left to compare the base with itself"
    # Half of what is claimed at least; which is more than half of the threshold.
    if abs(duel.control.estimate.centre) > min(abs(found.low), abs(found.high)) / 2:
        itself = math.expm1(abs(duel.control.estimate.centre))
        return f"the base differs from itself by {itself:.1%}: the machine is too noisy"
    return ""


def _rounds(number: int) -> str:
    return f"{number} {'round' if number == 1 else 'rounds'}"
