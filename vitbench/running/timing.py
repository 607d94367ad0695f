"""Times a step honestly: warm until the times settle, then measured until its median is known or the time is spent.

The clock is passed in: tests use one of their own.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch

from vitbench.running import statistics
from vitbench.running.worker import without_garbage_collection

Phase = Callable[[], object]


class Clock(Protocol):
    """What tells the time.

    Attributes:
        name: for the row: "host" or "events".
    """

    name: str

    def now(self) -> float:
        """Gives seconds that have passed, for budgets."""

    def time(self, phases: Sequence[Phase]) -> tuple[float, ...]:
        """Runs phases one after another and gives the seconds that each took, the device being idle before and after."""


class HostClock:
    """The processor's clock; an accelerator is waited for on both sides of each phase."""

    name = "host"

    def __init__(self, device: torch.device) -> None:
        self._wait: Callable[[], object] = (
            _nothing if device.type == "cpu" else lambda: torch.accelerator.synchronize(device)
        )

    def now(self) -> float:
        """Gives seconds that have passed, for budgets."""
        return time.perf_counter()

    def time(self, phases: Sequence[Phase]) -> tuple[float, ...]:
        """Runs phases one after another and gives the seconds that each took."""
        self._wait()
        marks = [time.perf_counter()]
        for phase in phases:
            phase()
            self._wait()
            marks.append(time.perf_counter())
        return tuple(end - begin for begin, end in pairwise(marks))


class EventClock:
    """The accelerator's own clock: marks in its stream of work, so that phases follow each other without a wait between."""

    name = "events"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        first, second = self._mark(), self._mark()
        torch.accelerator.synchronize(device)
        first.elapsed_time(second)  # raises where the backend keeps no time

    def now(self) -> float:
        """Gives seconds that have passed, for budgets."""
        return time.perf_counter()

    def time(self, phases: Sequence[Phase]) -> tuple[float, ...]:
        """Runs phases one after another and gives the seconds that each took."""
        torch.accelerator.synchronize(self._device)
        marks = [self._mark()]
        for phase in phases:
            phase()
            marks.append(self._mark())
        torch.accelerator.synchronize(self._device)
        return tuple(begin.elapsed_time(end) / 1e3 for begin, end in pairwise(marks))

    def _mark(self) -> Any:
        event = torch.Event(self._device, enable_timing=True)
        event.record(torch.accelerator.current_stream(self._device))
        return event


def clock_of(device: torch.device) -> Clock:
    """Gives the best clock that a device has."""
    if device.type == "cpu":
        return HostClock(device)
    try:
        return EventClock(device)
    except (RuntimeError, NotImplementedError):
        # The row says which clock it was.
        return HostClock(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When a step is warm, and when its time is known.

    Warm: at least `warmup_runs` runs, and until the medians of two successive windows of `window` runs differ by less than
    `settled`; at the latest after `warmup_s` seconds. Known: at least `least_runs` runs, and until the 95 % interval of the
    median reaches no further than `precision` of it to either side, looked at from `looks_from` runs on, from where on the 99th
    percentile can be told too; at the latest after `min_time_s` seconds.
    """

    warmup_runs: int = 3
    window: int = 5
    settled: float = 0.02
    warmup_s: float = 10.0
    least_runs: int = 6
    looks_from: int = 500
    precision: float = 0.005
    min_time_s: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The times of a step in one process.

    Attributes:
        first_s: the first call, of all phases, which loads kernels and compiles.
        warmup: runs thrown away after the first.
        settled: whether the times settled before the warm-up had to end.
        phases_s: seconds by phase, then by run.
        clock: the clock's name.
    """

    first_s: float
    warmup: int
    settled: bool
    phases_s: Sequence[Sequence[float]] = field(repr=False)
    clock: str

    @property
    def runs_s(self) -> list[float]:
        """Seconds of each run, all phases together."""
        return [sum(run) for run in zip(*self.phases_s, strict=True)]


RULE = Rule()


def sample(
    phases: Sequence[Phase], clock: Clock, rule: Rule = RULE, warm: Callable[[], object] = lambda: None
) -> Samples:
    """Times a step of one phase or more until the rule is satisfied; no garbage is collected meanwhile.

    Args:
        phases: the parts of the step.
        clock: what tells the time.
        rule: when the step is warm, and when its time is known.
        warm: called once the step is warm.
    """
    gc.collect()
    with without_garbage_collection():
        first_s = sum(clock.time(phases))
        warmup, settled = warm_up(phases, clock, rule)
        warm()
        runs: list[tuple[float, ...]] = []
        totals: list[float] = []
        begin, look_at = clock.now(), rule.looks_from
        while True:
            runs.append(clock.time(phases))
            totals.append(sum(runs[-1]))
            if len(runs) < rule.least_runs:
                continue
            if clock.now() - begin >= rule.min_time_s:
                break
            if len(runs) == look_at:
                if _narrow(totals, rule.precision):
                    break
                look_at += max(1, look_at // 4)  # seldom enough that looking costs next to nothing
    return Samples(
        first_s=first_s, warmup=warmup, settled=settled, phases_s=tuple(zip(*runs, strict=True)), clock=clock.name
    )


def warm_up(phases: Sequence[Phase], clock: Clock, rule: Rule) -> tuple[int, bool]:
    """Runs a step until its times settle; gives how many runs that took, and whether they settled before the time was spent."""
    times: list[float] = []
    begin = clock.now()
    while clock.now() - begin < rule.warmup_s:
        times.append(sum(clock.time(phases)))
        if len(times) >= rule.warmup_runs and len(times) % rule.window == 0 and len(times) >= 2 * rule.window:
            before = statistics.median(times[-2 * rule.window : -rule.window])
            now = statistics.median(times[-rule.window :])
            if abs(now - before) < rule.settled * now:
                return len(times), True
    return len(times), False


def _narrow(times: Sequence[float], precision: float) -> bool:
    interval = statistics.median_interval(times)
    if interval is None:
        return False
    middle = statistics.median(times)
    return max(middle - interval[0], interval[1] - middle) <= precision * middle


def _nothing() -> None:
    pass
