"""Throughput and latency of a forward pass, or of a training step: forward, backward, optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitbench.findings import Throughput
from vitbench.records import RunSetting
from vitbench.running import device, passes, peaks, statistics, timing
from vitbench.running.environment import cores

# A training step is three forward passes' worth of FLOPs: the backward pass makes two products for each, and what
# checkpointing computes again is not counted. Source: PaLM (arXiv 2204.02311), appendix B.
_PASSES = {"infer": 1, "train": 3}

_WIDE_SPREAD = 0.10
_DRIFT = 0.02
_OTHER_CORES = 0.1

WARNINGS = {
    "wide-spread": "the quartiles lie more than 10 % of the median apart: use --repeats, or a quieter machine",
    "drift": "the second half of the runs took more than 2 % longer or shorter than the first: the machine was changing",
    "unsettled": "the times had not settled, or were too few to tell, when the warm-up had to end",
    "other-load": "other work kept 0.1 processors or more busy meanwhile; beside an accelerator, all but one",
    "contended-threads": "threads and other work together were more than the processors: fewer --threads may be faster",
    "oversubscribed": "more threads than processors: fewer --threads will be faster",
    "throttled": "the clock, or this container's share of the processors, was held back",
    "shared-device": "other processes were on the accelerator",
}

_DISTURBED = {"other-load", "contended-threads", "throttled", "shared-device", "drift"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one process measured.

    Attributes:
        samples: the times.
        peak_flops_per_s: of a matrix product of the same dtype, in the same process.
        other_cores, throttled, shared: as `device.Watch` gives them.
    """

    samples: timing.Samples
    peak_flops_per_s: float
    other_cores: float
    throttled: bool | None
    shared: bool | None


def measure(
    model: nn.Module, setting: RunSetting, *, rule: timing.Rule = timing.RULE, clock: timing.Clock | None = None
) -> Run:
    """Times a model in this process, which `device.prepare` has set up.

    Args:
        model: changed in place, by `passes.laid_out`.
        setting: input shape, batch size, mode and the rest.
        rule: when it is warm, and when its time is known.
        clock: by default the best that the device has.

    Raises:
        torch.OutOfMemoryError: the accelerator's memory ran out; on a CPU it is a RuntimeError.
        Exception: whatever the model raises.
    """
    where = torch.device(setting.device)
    clock = clock or timing.clock_of(where)
    # Before the model takes its memory.
    peak = peaks.matrix_flops_per_s(where, passes.DTYPES[setting.dtype], clock)
    phases = passes.phases(passes.laid_out(model, setting), passes.example(setting), setting)
    watch = device.Watch(where)
    samples = timing.sample(phases, clock, rule, warm=watch.start)
    watch.stop()
    return Run(
        samples=samples,
        peak_flops_per_s=peak,
        other_cores=watch.other_cores,
        throttled=watch.throttled,
        shared=watch.shared,
    )


def summarise(runs: Sequence[Run], setting: RunSetting, *, macs: int | None) -> Throughput:
    """Gives the figures of one or more processes that measured the same.

    Args:
        runs: at least one.
        setting: what they measured.
        macs: multiply-accumulates of one forward pass of the batch; None where they could not be counted.
    """
    by_process = [[1e3 * second for second in run.samples.runs_s] for run in runs]
    pooled = [time for times in by_process for time in times]
    medians = [statistics.median(times) for times in by_process]
    middle = sum(medians) / len(medians)
    interval = statistics.mean_interval(medians) if len(runs) > 1 else statistics.median_interval(pooled)
    first_ms = 1e3 * runs[0].samples.first_s
    achieved = None if macs is None else 2 * macs * _PASSES[setting.mode] / (middle / 1e3)
    peak = max(run.peak_flops_per_s for run in runs)
    phases = [
        sum(1e3 * statistics.median(run.samples.phases_s[number]) for run in runs) / len(runs)
        for number in range(len(runs[0].samples.phases_s))
    ]
    forward, backward, optimizer = phases if setting.mode == "train" else (None, None, None)
    warnings = _warnings(runs, by_process, setting)
    return Throughput(
        throughput_per_s=setting.batch_size / (middle / 1e3),
        latency_median_ms=middle,
        latency_low_ms=interval[0] if interval else None,
        latency_high_ms=interval[1] if interval else None,
        latency_p90_ms=statistics.percentile(pooled, 0.9),
        latency_p95_ms=statistics.percentile(pooled, 0.95),
        latency_p99_ms=statistics.percentile(pooled, 0.99),
        forward_median_ms=forward,
        backward_median_ms=backward,
        optimizer_median_ms=optimizer,
        first_call_ms=first_ms,
        compile_s=(first_ms - middle) / 1e3 if setting.compile else None,
        samples=len(pooled),
        warmup=sum(run.samples.warmup for run in runs),
        repeats=len(runs),
        clock=runs[0].samples.clock,
        achieved_flops_per_s=achieved,
        peak_flops_per_s=peak,
        utilization=None if achieved is None else achieved / peak,
        other_cores=max(run.other_cores for run in runs),
        quiet=_DISTURBED.isdisjoint(warnings),
        warnings=warnings,
        samples_ms=by_process,
        phases_ms=[[[1e3 * second for second in phase] for phase in run.samples.phases_s] for run in runs],
    )


def _warnings(runs: Sequence[Run], by_process: Sequence[Sequence[float]], setting: RunSetting) -> tuple[str, ...]:
    on_cpu = setting.device == "cpu"
    others = max(run.other_cores for run in runs)
    found = {
        "wide-spread": any(statistics.spread(times) > _WIDE_SPREAD for times in by_process),
        "drift": any(_drifts(times) for times in by_process),
        "unsettled": not all(run.samples.settled for run in runs),
        # An accelerator is fed by one processor; the others may work.
        "other-load": others >= (_OTHER_CORES if on_cpu else max(_OTHER_CORES, cores() - 1)),
        "contended-threads": on_cpu
        and setting.threads > 1
        and others >= _OTHER_CORES
        and setting.threads + others > cores(),
        "oversubscribed": on_cpu and setting.threads > cores(),
        "throttled": any(run.throttled for run in runs),
        "shared-device": any(run.shared for run in runs),
    }
    return tuple(name for name in WARNINGS if found[name])


def _drifts(times: Sequence[float]) -> bool:
    if len(times) < 2 * statistics.LEAST_FOR_INTERVAL:
        return False
    half = len(times) // 2
    before, after = statistics.median(times[:half]), statistics.median(times[half:])
    return abs(after - before) > _DRIFT * before
