"""Warm-up, stop rule and samples, with a clock that tells planted times, so that every figure is exact."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Iterable, Sequence

import pytest
import torch

from vitbench.running import timing
from vitbench.running.timing import HostClock, Rule, sample


class PlantedClock:
    """Tells durations that were planted, whatever the phases take, and moves on by them."""

    name = "planted"

    def __init__(self, durations: Iterable[float]) -> None:
        self._durations = iter(durations)
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def time(self, phases: Sequence[timing.Phase]) -> tuple[float, ...]:
        for phase in phases:
            phase()
        told = tuple(next(self._durations) for _ in phases)
        self._now += sum(told)
        return told


def nothing() -> None:
    pass


def test_the_first_call_and_the_warm_up_are_apart_from_the_samples() -> None:
    """Ten runs are warm, the medians of two windows of five being equal; the ten samples after them are as narrow."""
    durations = [9.0, *[1.0] * 10, *[2.0] * 10]
    found = sample([nothing], PlantedClock(durations), Rule(looks_from=10, min_time_s=1e9))
    assert found.first_s == 9.0
    assert (found.warmup, found.settled) == (10, True)
    assert found.runs_s == [2.0] * 10


def test_the_watch_begins_once_the_step_is_warm() -> None:
    done: list[str] = []
    rule = Rule(looks_from=10, min_time_s=1e9)
    sample([lambda: done.append("run")], PlantedClock(itertools.repeat(1.0)), rule, warm=lambda: done.append("warm"))
    assert done == ["run"] * 11 + ["warm"] + ["run"] * 10


def test_the_warm_up_goes_on_while_the_times_fall() -> None:
    falling = [2.0**-number for number in range(15)]
    found = sample([nothing], PlantedClock(itertools.chain([1.0], falling, itertools.repeat(1e-5))), Rule())
    # The windows of runs 16 to 20 and 21 to 25 are the first two that are alike.
    assert (found.warmup, found.settled) == (25, True)


def test_the_warm_up_has_an_upper_bound() -> None:
    """Times that double for ever: after 10 s it ends, and says that it did not settle."""
    doubling = (0.01 * 2**number for number in itertools.count())
    found = sample([nothing], PlantedClock(doubling), Rule(warmup_s=10.0, min_time_s=0.0, least_runs=1))
    # The first call takes 0.01; 0.02 + 0.04 + ... reaches 10 s with the ninth.
    assert (found.warmup, found.settled) == (9, False)


def test_measuring_ends_once_the_interval_is_narrow() -> None:
    found = sample([nothing], PlantedClock(itertools.repeat(0.001)), Rule(min_time_s=1e9))
    assert len(found.runs_s) == Rule().looks_from == 500  # which the 99th percentile needs


def test_measuring_goes_on_while_the_interval_is_wide_and_ends_with_the_time() -> None:
    """Half of the runs take 1 s, half 2 s: the interval never is narrow, so 100 s hold 67 runs (1 + 2 + ... + 1)."""
    durations = itertools.chain([1.0] * 11, itertools.cycle([1.0, 2.0]))
    found = sample([nothing], PlantedClock(durations), Rule(min_time_s=100.0))
    assert len(found.runs_s) == 67


def test_a_slow_step_is_run_often_enough_for_an_interval() -> None:
    found = sample([nothing], PlantedClock(itertools.repeat(60.0)), Rule(min_time_s=3.0))
    assert len(found.runs_s) == Rule().least_runs == 6
    assert not found.settled


def test_phases_are_kept_apart() -> None:
    found = sample(
        [nothing] * 3, PlantedClock(itertools.cycle([1.0, 2.0, 0.5])), Rule(min_time_s=0.0, warmup_s=0.0, least_runs=2)
    )
    assert found.phases_s == ((1.0, 1.0), (2.0, 2.0), (0.5, 0.5))
    assert found.runs_s == [3.5, 3.5]


@pytest.mark.parametrize("collecting", [True, False])
def test_no_garbage_is_collected_meanwhile(collecting: bool) -> None:
    seen: list[bool] = []
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        sample([lambda: seen.append(gc.isenabled())], PlantedClock(itertools.repeat(1.0)), Rule(min_time_s=0.0))
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()
    assert seen
    assert not any(seen)


def test_the_processors_clock_tells_what_was_slept() -> None:
    clock = HostClock(torch.device("cpu"))
    short, long = clock.time([lambda: time.sleep(0.01), lambda: time.sleep(0.05)])
    assert short >= 0.01
    assert long >= 0.05
    begin = clock.now()
    time.sleep(0.01)
    assert clock.now() - begin >= 0.01
    assert timing.clock_of(torch.device("cpu")).name == "host"


def test_an_accelerators_marks_are_read_in_milliseconds_after_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose clock is ours: marks lie in its stream of work, and no wait lies between two phases."""
    done: list[str] = []

    class Mark:
        def __init__(self, device: torch.device, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            done.append("mark")
            self.place = len(done)

        def elapsed_time(self, other: Mark) -> float:
            return 1e3 * (other.place - self.place)

    monkeypatch.setattr(torch, "Event", Mark)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: done.append("wait"))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: None)
    clock = timing.clock_of(torch.device("cuda:0"))
    assert clock.name == "events"
    done.clear()
    assert clock.time([lambda: done.append("forward"), lambda: done.append("backward")]) == (2.0, 2.0)
    assert done == ["wait", "mark", "forward", "mark", "backward", "mark", "wait"]


def test_an_accelerator_without_a_clock_is_timed_by_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[torch.device] = []

    def no_events(*_: object, **__: object) -> None:
        raise NotImplementedError  # as torch does where a device has none

    monkeypatch.setattr(torch, "Event", no_events)
    monkeypatch.setattr(torch.accelerator, "synchronize", waits.append)
    clock = timing.clock_of(torch.device("mps"))
    assert clock.name == "host"
    clock.time([nothing, nothing])
    assert len(waits) == 3  # before the first, and after each


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_events_agree_with_the_processors_clock() -> None:
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    matrix = torch.randn(4096, 4096, device=device)

    def work() -> None:
        for _ in range(20):
            torch.mm(matrix, matrix)

    host, events = HostClock(device), timing.clock_of(device)
    work()
    ours = min(events.time([work])[0] for _ in range(5))
    theirs = min(host.time([work])[0] for _ in range(5))
    assert ours == pytest.approx(theirs, rel=0.05)
