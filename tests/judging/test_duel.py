"""The protocol, with workers and a clock that are made up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from vitbench.judging import duel
from vitbench.judging.pairs import Estimate

RULE = replace(duel.RULE, budget_s=200)


class Bench:
    """A machine made up: it hands out workers, keeps the clock, and writes down what happens.

    Attributes:
        log: (what, side, process), what being start, close, or the runs of a block.
    """

    def __init__(self, a: Callable[[float], float], b: Callable[[float], float], process: float = 0.0) -> None:
        self._sides = {"a": a, "b": b}
        self._process = process
        self._random = {side: random.Random(number) for number, side in enumerate("ab")}  # noqa: S311  # no secret
        self.now = 0.0
        self.log: list[tuple[str | int, str, int]] = []
        self.open: set[int] = set()
        self._processes = 0

    def clock(self) -> float:
        return self.now

    def start(self, side: str) -> duel.Start:
        return lambda: _Worker(self, side)

    def judged(self, rule: duel.Rule = RULE, seed: int = 0) -> duel.Judgement:
        return duel.judged(self.duel(rule, seed))

    def duel(self, rule: duel.Rule = RULE, seed: int = 0) -> duel.Duel:
        return duel.duel(self.start("a"), self.start("b"), rule=rule, clock=self.clock, seed=seed)


class _Worker:
    def __init__(self, bench: Bench, side: str) -> None:
        self._bench, self._side = bench, side
        bench._processes += 1
        self._process = bench._processes
        bench.now += 0.2
        bench.log.append(("start", side, self._process))
        bench.open.add(self._process)
        self._offset = math.exp(bench._random[side].gauss(0, bench._process))

    def block(self, runs: int) -> Sequence[float]:
        bench = self._bench
        bench.log.append((runs, self._side, self._process))
        times = []
        for _ in range(runs):
            times.append(self._offset * bench._sides[self._side](bench.now))
            bench.now += times[-1]
        return times

    def close(self) -> None:
        self._bench.open.discard(self._process)
        self._bench.log.append(("close", self._side, self._process))


def steady(seconds: float = 0.01) -> Callable[[float], float]:
    return lambda now: seconds


def noisy(seconds: float, noise: float, seed: int, *, spikes: float = 0.0) -> Callable[[float], float]:
    draw = random.Random(seed)  # noqa: S311  # no secret

    def run(now: float) -> float:
        return seconds * math.exp(draw.gauss(0, noise)) * (3 if draw.random() < spikes else 1)

    return run


def two_speeds(seconds: float, seed: int) -> Callable[[float], float]:
    """Quick or slow by 20 % for a second or so at a time, for whichever side runs then."""
    return lambda now: seconds * (1.2 if random.Random(int(now) + seed).random() < 0.5 else 1)  # noqa: S311  # no secret


def drifting(seconds: float) -> Callable[[float], float]:
    """Slower by half over a minute, as a processor that gets hot."""
    return lambda now: seconds * (1 + 0.5 * min(1, now / 60))


CALM: dict[str, Callable[[float, int], Callable[[float], float]]] = {
    "steady": lambda seconds, seed: steady(seconds),
    "noise": lambda seconds, seed: noisy(seconds, 0.02, seed),
    "outliers": lambda seconds, seed: noisy(seconds, 0.02, seed, spikes=0.05),
    "drift": lambda seconds, seed: drifting(seconds),
    "two speeds": lambda seconds, seed: two_speeds(seconds, 0),
}


@pytest.mark.parametrize("stream", CALM)
@pytest.mark.parametrize(
    ("effect", "verdict"), [(0.0, "unchanged"), (0.1, "regressed"), (0.05, "regressed"), (-0.1, "improved")]
)
def test_a_planted_shift_is_told_through_noise(stream: str, effect: float, verdict: str) -> None:
    bench = Bench(CALM[stream](0.004, 1), CALM[stream](0.004 * (1 + effect), 2))
    found = bench.duel()
    assert duel.judged(found).verdict == verdict
    assert found.estimate.centre == pytest.approx(math.log1p(effect), abs=0.006)
    assert found.b_median_s / found.a_median_s == pytest.approx(1 + effect, rel=0.2)


def test_every_round_has_fresh_workers_of_which_one_runs_at_a_time() -> None:
    bench = Bench(steady(), steady())
    found = bench.duel()
    assert not bench.open
    assert len(found.rounds) == RULE.rounds
    starts = [entry for entry in bench.log if entry[0] == "start"]
    assert len(starts) == 2 * RULE.rounds
    # A block is over when the next one is asked for: calls wait. Both of a round are ended before the next begins.
    alive: set[int] = set()
    for what, _, process in bench.log:
        if what == "start":
            assert len(alive) < 2
            alive.add(process)
        elif what == "close":
            alive.remove(process)
        else:
            assert process in alive
    used = [{process for what, side, process in bench.log if side == one} for one in "ab"]
    assert not used[0] & used[1]


def _orders(bench: Bench) -> list[str]:
    blocks = [side for what, side, _ in bench.log if what == 2]  # warm-ups have blocks of 1 run, or of 5
    return ["".join(two) for two in zip(blocks[::2], blocks[1::2], strict=True)]


def test_the_order_in_a_pair_is_random_and_seeded() -> None:
    orders = []
    for seed in (0, 0, 1):
        bench = Bench(steady(), steady())
        bench.duel(replace(RULE, block_s=0.02, pairs=20), seed=seed)  # 2 runs of 10 ms
        orders.append(_orders(bench))
    first, again, other = orders
    assert first == again != other
    assert len(first) == RULE.rounds * 20
    assert set(first) == {"ab", "ba"}
    assert 30 < first.count("ab") < 70  # of 100, at one half: four standard deviations


def test_a_block_has_as_many_runs_on_both_sides_and_takes_its_time() -> None:
    bench = Bench(steady(0.001), steady(0.003))
    found = bench.duel()
    assert found.runs == 3  # of 1 and 3 ms: 12 ms together
    blocks = {(what, side) for what, side, _ in bench.log if isinstance(what, int)}
    assert {(3, "a"), (3, "b")} <= blocks


@pytest.mark.parametrize("effect", [0.0, 0.1])
@pytest.mark.parametrize("budget_s", [20.0, 60.0, 200.0])
@pytest.mark.parametrize("pass_s", [0.001, 0.1, 0.5])
def test_the_budget_is_kept(budget_s: float, pass_s: float, effect: float) -> None:
    """However noisy; a round more, of the shortest kind, is what it may be exceeded by."""
    bench = Bench(noisy(pass_s, 0.5, 1), noisy(pass_s * (1 + effect), 0.5, 2))
    found = bench.duel(replace(RULE, budget_s=budget_s))
    assert found.spent_s == pytest.approx(bench.now)
    assert found.spent_s < 1.1 * budget_s + 20 * pass_s


def test_a_long_pass_has_fewer_pairs_so_that_all_rounds_fit() -> None:
    bench = Bench(steady(0.5), steady(0.5))
    found = bench.duel(replace(RULE, budget_s=120))
    assert len(found.rounds) == RULE.rounds
    assert {len(one) for one in found.rounds} == {len(found.rounds[0])}
    assert 3 <= len(found.rounds[0]) < RULE.pairs
    assert duel.judged(found).verdict == "unchanged"


def test_what_does_not_fit_is_told() -> None:
    found = Bench(steady(3), steady(4)).judged(replace(RULE, budget_s=60))
    assert found.verdict == "inconclusive"
    assert "of 5" in found.note
    assert "budget" in found.note
    assert found.more is not None


def test_it_stops_on_precision_and_never_looks_at_the_size() -> None:
    """The same noise with a small and with a large effect takes as many rounds in the first pass."""
    rounds = set()
    for effect in (0.0, 0.028, 0.05, 0.5):
        bench = Bench(noisy(0.01, 0.01, 1), noisy(0.01, 0.01, 2), process=0.012)
        found = duel.duel(
            bench.start("a"),
            # Time passes as if there were no effect, so that the budget sees none.
            lambda bench=bench, effect=effect: _Stretched(_Worker(bench, "b"), 1 + effect),  # type: ignore[misc]  # bound early
            rule=replace(RULE, budget_s=1000),
            clock=bench.clock,
        )
        rounds.add(found.first.estimate.rounds)
        assert found.first.estimate.half_width <= RULE.precision
    assert len(rounds) == 1
    assert rounds.pop() > RULE.rounds


class _Stretched:
    def __init__(self, worker: _Worker, factor: float) -> None:
        self._worker, self._factor = worker, factor

    def block(self, runs: int) -> Sequence[float]:
        return [self._factor * seconds for seconds in self._worker.block(runs)]

    def close(self) -> None:
        self._worker.close()


def test_warm_up_waits_until_times_settle() -> None:
    """Each process is slow at first, the side b more so; none of it is seen."""
    bench = Bench(steady(), steady())
    started: dict[int, float] = {}

    class Cold(_Worker):
        def block(self, runs: int) -> Sequence[float]:
            begin = started.setdefault(self._process, self._bench.now)
            cold = (5 if self._side == "b" else 2) if self._bench.now - begin < 0.2 else 1
            times = [cold * seconds for seconds in super().block(runs)]
            self._bench.now += (cold - 1) * 0.01 * runs
            return times

    found = duel.duel(lambda: Cold(bench, "a"), lambda: Cold(bench, "b"), rule=RULE, clock=bench.clock)
    assert max(abs(ratio) for one in found.rounds for ratio in one) < 1e-9


def test_a_worker_that_fails_ends_it_and_leaves_none() -> None:
    def failing(now: float) -> float:
        if now > 3:
            raise duel.WorkerFailed("its process ended")
        return 0.01

    bench = Bench(steady(), failing)
    with pytest.raises(duel.WorkerFailed, match="its process ended"):
        bench.duel()
    assert not bench.open


def test_it_tells_of_each_round() -> None:
    bench, told = Bench(steady(), steady(0.02)), list[duel.Progress]()
    duel.duel(bench.start("a"), bench.start("b"), rule=RULE, clock=bench.clock, tell=told.append)
    stages = [(one.stage, one.rounds) for one in told]
    assert stages == [
        *(("first", number) for number in range(1, 6)),
        *(("confirmation", number) for number in range(1, 6)),
        *(("control", number) for number in range(1, 4)),
    ]


def test_the_control_runs_where_there_is_something_to_doubt_or_where_asked() -> None:
    bench = Bench(steady(), steady())
    assert bench.duel().control is None
    asked = duel.duel(bench.start("a"), bench.start("b"), rule=RULE, clock=bench.clock, always_control=True)
    assert asked.control is not None
    assert len(asked.control.rounds) == RULE.control_rounds
    assert len(duel.control(bench.start("a"), budget_s=20, clock=bench.clock).rounds) > 5


def test_two_servers_are_started_anew_to_confirm_and_allowed_for() -> None:
    bench, stages = Bench(steady(), steady(0.02)), list[str]()

    def run(b: str, rule: duel.Rule = RULE) -> duel.Duel:
        stages.clear()
        return duel.duel(
            bench.start("a"),
            bench.start(b),
            rule=rule,
            clock=bench.clock,
            tell=lambda told: stages.append(told.stage),
            renew=lambda: stages.append("renewed"),
        )

    found = run("b")
    assert stages.index("renewed") == RULE.rounds
    assert stages.count("renewed") == 1
    floor = 2.17 * duel.SERVER_SPREAD
    assert found.first.estimate.half_width == pytest.approx(floor, rel=1e-3)
    # Of two draws of the servers.
    assert found.estimate.half_width == pytest.approx(floor / math.sqrt(2), rel=1e-3)
    assert found.control is not None
    assert found.control.estimate.half_width == pytest.approx(0, abs=1e-9)
    same = run("a")
    assert "renewed" not in stages
    assert same.first.estimate.rounds == RULE.rounds  # the floor does not ask for more
    # What two servers of one code may differ by is no change, however surely it is there.
    assert duel.judged(run("a", replace(RULE, threshold=0.005))).verdict == "inconclusive"


@pytest.mark.parametrize("seed", range(5))
def test_swapping_the_sides_flips_the_verdict(seed: int) -> None:
    """Times here are the sides' own, not the moment's, so that the two runs are the same ones in another order."""
    flipped = {"regressed": "improved", "improved": "regressed"}
    effect = (0.0, 0.02, 0.04, 0.1, -0.1)[seed]

    def run(first: str, second: str) -> tuple[duel.Duel, duel.Judgement]:
        bench = Bench(noisy(0.01, 0.03, seed), noisy(0.01 * (1 + effect), 0.03, seed + 100), process=0.01)
        found = duel.duel(bench.start(first), bench.start(second), rule=RULE, clock=bench.clock, seed=seed)
        return found, duel.judged(found)

    (ahead, verdict), (back, other) = run("a", "b"), run("b", "a")
    assert other.verdict == flipped.get(verdict.verdict, verdict.verdict)
    assert back.first.estimate.centre == -ahead.first.estimate.centre
    assert (back.first.estimate.low, back.first.estimate.high) == (
        -ahead.first.estimate.high,
        -ahead.first.estimate.low,
    )


def test_scaling_both_sides_changes_nothing() -> None:
    """Neither does the length of a block, which is scaled with them."""
    found = []
    for scale in (1, 4):
        bench = Bench(noisy(0.01 * scale, 0.03, 1), noisy(0.0104 * scale, 0.03, 2))
        rule = replace(RULE, block_s=RULE.block_s * scale, budget_s=1e6, warmup_s=1e9)
        found.append(bench.duel(rule))
    assert found[1].rounds == tuple(pytest.approx(one, abs=1e-12) for one in found[0].rounds)
    first, second = map(duel.judged, found)
    assert (first.verdict, first.more) == (second.verdict, second.more)


# What passes are called, without measuring.


def passed(centre: float, half_width: float, *, rounds: int = 5) -> duel.Pass:
    found = Estimate(centre=centre, low=centre - half_width, high=centre + half_width, p_value=1e-6, rounds=rounds)
    return duel.Pass(rounds=((centre,),) * rounds, estimate=found)


def dueled(first: duel.Pass, confirmation: duel.Pass | None = None, control: duel.Pass | None = None) -> duel.Duel:
    return duel.Duel(
        rule=duel.RULE,
        first=first,
        confirmation=confirmation,
        control=control,
        a_median_s=0.01,
        b_median_s=0.01,
        runs=2,
        spent_s=10,
    )


QUIET = passed(0.001, 0.002, rounds=3)


@pytest.mark.parametrize(
    ("centre", "half_width", "verdict"),
    [
        (0.05, 0.01, "regressed"),
        (0.05, 0.03, "suspect"),  # from 2 %: beyond a third of 3 %
        (0.05, 0.045, "inconclusive"),  # from 0.5 %
        (0.025, 0.01, "inconclusive"),
        (0.01, 0.01, "unchanged"),
        (0.0, 0.04, "inconclusive"),
        (0.029, 0.0001, "unchanged"),
        (0.0296, 0.00001, "regressed"),  # ln 1.03 is 0.02956
    ],
)
def test_verdicts(centre: float, half_width: float, verdict: str) -> None:
    flipped = {"regressed": "improved"}.get(verdict, verdict)
    for sign, expected in ((1, verdict), (-1, flipped)):
        one = passed(sign * centre, half_width)
        confirmed = replace(one, rounds=((sign * 0.05,) * 2,) * 5)
        assert duel.judged(dueled(one, confirmed, QUIET)).verdict == expected


@pytest.mark.parametrize(
    ("confirmation", "control", "why"),
    [
        (None, QUIET, "no time was left to confirm"),
        (passed(0.1, 0.01, rounds=4), QUIET, "no time was left to confirm"),
        (passed(0.0, 0.01), QUIET, "fresh workers did not confirm it: unchanged"),
        (passed(-0.1, 0.01), QUIET, "fresh workers did not confirm it: improved"),
        (passed(0.02, 0.01), QUIET, "fresh workers did not confirm it: inconclusive"),
        (passed(-0.1, 0.08), QUIET, "fresh workers did not confirm it: suspect"),
        (passed(0.1, 0.01), None, "no time was left to compare the base with itself"),
        (passed(0.1, 0.01), passed(-0.06, 0.01, rounds=3), "too noisy"),
    ],
)
def test_a_change_that_is_doubted_is_suspect(
    confirmation: duel.Pass | None, control: duel.Pass | None, why: str
) -> None:
    found = duel.judged(dueled(passed(0.1, 0.01), confirmation, control))
    assert found.verdict == "suspect"
    assert why in found.note


def test_a_confirmation_that_is_wide_by_chance_counts_where_both_passes_together_are_beyond_the_threshold() -> None:
    """Of rounds at 4 % and 8 % alone Student's interval begins at 3 %; together with five at 10 % it begins beyond."""
    first = passed(0.1, 0.01)
    wide = replace(passed(0.06, 0.04), rounds=((0.04,), (0.08,), (0.05,), (0.07,), (0.06,)))
    assert duel.judged(dueled(first, wide, QUIET)).verdict == "regressed"
    wider = replace(wide, rounds=((-0.2,), (0.32,), (0.06,), (-0.3,), (0.4,)))
    assert duel.judged(dueled(first, wider, QUIET)).verdict == "suspect"


def test_a_control_is_held_against_what_is_claimed() -> None:
    """2 % from nothing makes a change of 3.5 % doubtful, and not one of 10 %."""
    for centre, verdict in ((0.035, "suspect"), (0.1, "regressed")):
        one = passed(centre, 0.001)
        assert duel.judged(dueled(one, one, passed(0.02, 0.01, rounds=3))).verdict == verdict


def test_too_few_rounds_settle_nothing() -> None:
    found = duel.judged(dueled(passed(0.5, 0.001, rounds=4)))
    assert (found.verdict, found.more) == ("inconclusive", 1)


@pytest.mark.parametrize("centre", [0.0, 0.015, 0.028, 0.035, 0.06, -0.05])
def test_more_noise_never_makes_certain(centre: float) -> None:
    certainty = {"inconclusive": 0, "suspect": 1, "unchanged": 2, "regressed": 2, "improved": 2}
    seen = []
    for half_width in (0.0005, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08):
        one = passed(centre, half_width)
        confirmed = replace(one, rounds=tuple((centre - half_width / 9, centre + half_width / 9) for _ in range(5)))
        seen.append(certainty[duel.judged(dueled(one, confirmed, QUIET)).verdict])
    assert seen == sorted(seen, reverse=True)


def test_what_is_inconclusive_says_how_many_more_rounds() -> None:
    """Half a width of 2 % where 0.956 % is wanted: 2.09 squared times 5 rounds are 22, so 17 more."""
    found = duel.judged(dueled(passed(0.02, 0.02)))
    assert (found.verdict, found.more) == ("inconclusive", 17)
    assert "2.0%" in found.note
