"""Throughput: the figures of planted times, worked out by hand, and of a module planted to be slow."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from torch import Tensor, nn

from vitbench.findings import Throughput
from vitbench.metrics import throughput
from vitbench.metrics.throughput import WARNINGS, Run, summarise
from vitbench.records import Mode, RunSetting, headings
from vitbench.running import timing

SETTING = RunSetting(model="m", input_shape=(3, 2, 2), batch_size=8)


def run(
    *phases: Sequence[float], settled: bool = True, other_cores: float = 0.0, throttled: bool | None = False
) -> Run:
    samples = timing.Samples(first_s=2.5, warmup=10, settled=settled, phases_s=phases, clock="host")
    return Run(samples=samples, peak_flops_per_s=1e12, other_cores=other_cores, throttled=throttled, shared=None)


def test_every_figure_of_known_times() -> None:
    """Times of 1 to 101 ms: median 51; ranks 41 and 61 of 101 (scipy's binom.ppf(0.025, 101, 0.5) = 41); p90 91, p95 96."""
    found = summarise([run([number / 1e3 for number in range(1, 102)])], SETTING, macs=51_000_000)
    assert found.latency_median_ms == pytest.approx(51)
    assert found.latency_low_ms == pytest.approx(41)
    assert found.latency_high_ms == pytest.approx(61)
    assert found.latency_p90_ms == pytest.approx(91)
    assert found.latency_p95_ms == pytest.approx(96)
    assert found.latency_p99_ms is None
    assert found.throughput_per_s == pytest.approx(8 / 0.051)
    # 2 x 51 million operations in 51 ms are 2e9 a second, a five hundredth of the peak.
    assert found.achieved_flops_per_s == pytest.approx(2e9)
    assert found.utilization == pytest.approx(0.002)
    assert (found.samples, found.warmup, found.repeats, found.clock) == (101, 10, 1, "host")
    assert found.first_call_ms == 2500
    assert found.compile_s is found.forward_median_ms is None
    assert found.samples_ms == [[pytest.approx(number) for number in range(1, 102)]]


def test_a_training_step_has_three_parts_and_three_passes_of_operations() -> None:
    """Forward 1 s, backward 2 s, optimizer 1 s: 3 x 2 x 2e9 operations in 4 s."""
    train = replace(SETTING, mode="train")
    found = summarise([run([1.0] * 6, [2.0] * 6, [1.0] * 6)], train, macs=2_000_000_000)
    assert (found.forward_median_ms, found.backward_median_ms, found.optimizer_median_ms) == (1000, 2000, 1000)
    assert found.latency_median_ms == 4000
    assert found.achieved_flops_per_s == pytest.approx(3e9)
    assert found.phases_ms == [[[1000] * 6, [2000] * 6, [1000] * 6]]


def test_several_processes_have_students_interval_of_their_medians() -> None:
    """Medians of 9, 10, 11 ms: 10 and 4.303 / root of 3 to either side."""
    found = summarise([run([median / 1e3] * 7) for median in (9, 10, 11)], SETTING, macs=None)
    assert found.latency_median_ms == pytest.approx(10)
    assert found.latency_high_ms == pytest.approx(12.484, abs=1e-3)
    assert found.latency_low_ms == pytest.approx(7.516, abs=1e-3)
    assert (found.samples, found.repeats, found.warmup) == (21, 3, 30)
    assert found.achieved_flops_per_s is found.utilization is None


def test_compiling_is_the_first_call_less_a_later_one() -> None:
    found = summarise([run([0.5] * 6)], replace(SETTING, compile="inductor"), macs=None)
    assert found.compile_s == pytest.approx(2.0)


STEADY = [0.1] * 40


@pytest.mark.parametrize(
    ("runs", "setting", "expected"),
    [
        ([run(STEADY)], SETTING, ()),
        ([run([0.1, 0.2] * 20)], SETTING, ("wide-spread",)),
        ([run([0.1] * 20 + [0.103] * 20)], SETTING, ("drift",)),
        ([run(STEADY, settled=False)], SETTING, ("unsettled",)),
        ([run(STEADY, other_cores=0.2)], SETTING, ("other-load",)),
        ([run(STEADY, other_cores=0.2)], replace(SETTING, threads=4), ("other-load", "contended-threads")),
        ([run(STEADY)], replace(SETTING, threads=5), ("oversubscribed",)),
        ([run(STEADY)], replace(SETTING, threads=5, device="cuda:0"), ()),
        ([run(STEADY), run(STEADY, throttled=True)], SETTING, ("throttled",)),
        ([run(STEADY, other_cores=2.9)], replace(SETTING, device="cuda:0"), ()),
        ([run(STEADY, other_cores=3.0)], replace(SETTING, device="cuda:0"), ("other-load",)),
        ([replace(run(STEADY), shared=True)], replace(SETTING, device="cuda:0"), ("shared-device",)),
    ],
    ids=str,
)
def test_doubts_are_named(
    runs: list[Run], setting: RunSetting, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "cores", lambda: 4)
    found = summarise(runs, setting, macs=None)
    assert found.warnings == expected
    disturbed = {"drift", "other-load", "contended-threads", "throttled", "shared-device"}
    assert found.quiet == disturbed.isdisjoint(expected)
    assert set(expected) <= set(WARNINGS)


class Sleeper(nn.Module):
    """Takes as long as it is told."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self._seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self._seconds)
        out: Tensor = self.layer(x)
        return out


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_a_planted_slow_module_changes_the_result_by_what_was_planted(mode: Mode) -> None:
    """Of a training step, the forward pass is the part that was planted to be slow."""
    setting = replace(SETTING, mode=mode)
    rule = timing.Rule(min_time_s=0.3, warmup_s=0.1, looks_from=10)
    quick, slow = (
        summarise([throughput.measure(Sleeper(seconds), setting, rule=rule)], setting, macs=None)
        for seconds in (0.005, 0.045)
    )
    before, after = quick.latency_median_ms, slow.latency_median_ms
    if mode == "train":
        assert quick.forward_median_ms
        assert slow.forward_median_ms
        before, after = quick.forward_median_ms, slow.forward_median_ms
    assert after - before == pytest.approx(40, rel=0.1)


class Ticking:
    """A clock by which everything takes a tenth of a second."""

    name = "ticking"

    def __init__(self) -> None:
        self._now = itertools.count()

    def now(self) -> float:
        return next(self._now) / 10

    def time(self, phases: Sequence[timing.Phase]) -> tuple[float, ...]:
        for phase in phases:
            phase()
        return (0.1,) * len(phases)


def test_the_clock_is_passed_in() -> None:
    found = throughput.measure(Sleeper(0), SETTING, clock=Ticking())
    assert set(found.samples.runs_s) == {0.1}
    assert found.samples.clock == "ticking"


def test_every_column_says_what_it_means() -> None:
    fields = Throughput.__dataclass_fields__
    assert all(fields[name].metadata["meaning"] for name in headings(Throughput))
