"""Where a forward pass and its blocks lie on the roofline: FLOP/s over FLOPs a byte, under what the machine can do at most.

Source: Williams, Waterman and Patterson, Roofline: an insightful visual performance model for multicore architectures (2009).

The bytes are those that the operators read and write, counted on meta: every tensor once a call, weights included. Attention is
counted by the kernel that the device would choose; a fused one reads queries, keys and values, writes what they weigh, and
keeps the weights to itself. Left out is what operators cannot tell: a tensor that still lies in a cache from the operator
before costs less, so that a block may lie above the slope of the roof; copies that a convolution's library makes cost more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from vitbench.counters import counting, kernels
from vitbench.errors import NotSupported
from vitbench.findings import Roofline
from vitbench.records import RunSetting
from vitbench.running import passes, peaks, statistics, timing

_BLOCK_DEPTH = 2
_MOST_RUNS = 100


def measure(
    model: nn.Module,
    setting: RunSetting,
    *,
    pass_s: float,
    peak_flops_per_s: float,
    rule: timing.Rule = timing.RULE,
    clock: timing.Clock | None = None,
) -> Roofline:
    """Counts and times a model's blocks in this process, which `device.prepare` has set up, and measures the memory's bandwidth.

    Args:
        model: changed in place, by `passes.laid_out`.
        setting: input shape, batch size and the rest; its mode is "infer", eager and without autocast.
        pass_s: seconds of a forward pass, measured without regard to blocks.
        peak_flops_per_s: of a product of matrices of that dtype.
        rule: when the model is warm, and how long to go on.
        clock: by default the best that the device has.

    Raises:
        NotSupported: the pass has no product, so that it has no place on the roofline.
        torch.OutOfMemoryError: the accelerator's memory ran out; on a CPU it is a RuntimeError.
        Exception: whatever the model raises when it cannot take that input.
    """
    where = torch.device(setting.device)
    clock = clock or timing.clock_of(where)
    bandwidth = peaks.memory_bytes_per_s(where, clock)
    tally = traffic(passes.laid_out(model, setting), setting)
    total = counting.total(tally)
    if not total.macs:
        raise NotSupported(f"{setting.model} multiplies no matrices, so that it has no place on the roofline.")
    flops = 2 * total.macs
    intensity = flops / total.traffic_bytes
    roof = min(peak_flops_per_s, intensity * bandwidth)
    seconds = block_seconds(model, setting, rule, clock)
    return Roofline(
        traffic_bytes=total.traffic_bytes,
        intensity_flops_per_byte=intensity,
        bandwidth_bytes_per_s=bandwidth,
        roof_flops_per_s=roof,
        roof_share=flops / pass_s / roof,
        blocks=[
            [name, 2 * cost.macs, cost.traffic_bytes, seconds[name]]
            for name, cost in counting.by_module(tally, _BLOCK_DEPTH).items()
        ],
    )


def traffic(model: nn.Module, setting: RunSetting) -> counting.Tally:
    """Counts a forward pass with the attention kernels of the setting's device, in the dtype of the model's weights."""
    with kernels.kernels_of(torch.device(setting.device).type):
        return counting.tally(model, setting.input_shape, setting.batch_size)


def block_seconds(model: nn.Module, setting: RunSetting, rule: timing.Rule, clock: timing.Clock) -> dict[str, float]:
    """Gives the median seconds that each block takes of a forward pass; what runs between blocks is "".

    A block is what bears the same first two names of a path. The device is waited for wherever one block hands over to another.

    Args:
        model: as `passes.laid_out` gives it.
        setting: what is run.
        rule: when it is warm; then as many runs as it asks for, for as long as it says, and 100 at most.
        clock: what tells the time.
    """
    (infer,) = passes.phases(model, passes.example(setting), setting)
    timing.warm_up([infer], clock, rule)
    stopwatch = _Stopwatch(model, torch.device(setting.device), clock)
    begin, runs = clock.now(), 0
    with stopwatch.attached():
        while runs < rule.least_runs or (runs < _MOST_RUNS and clock.now() - begin < rule.min_time_s):
            stopwatch.run(infer)
            runs += 1
    return defaultdict(float, {name: statistics.median(times) for name, times in stopwatch.seconds.items()})


class _Stopwatch:
    """Books the time of passes under the block that is running.

    Attributes:
        seconds: of each block, a number a pass.
    """

    def __init__(self, model: nn.Module, where: torch.device, clock: timing.Clock) -> None:
        self._blocks = {module: counting.cut(name, _BLOCK_DEPTH) for name, module in model.named_modules()}
        self._where = where
        self._clock = clock
        self._running: list[nn.Module] = []
        self._spent: dict[str, float] = {}
        self._block = ""
        self._since = 0.0
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        hooks: list[Any] = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def run(self, infer: timing.Phase) -> None:
        """Runs one pass."""
        self._spent, self._block, self._since = {}, "", self._now()
        infer()
        self._hand_over("", always=True)
        for block, spent in self._spent.items():
            self.seconds.setdefault(block, []).append(spent)

    def _enter(self, module: nn.Module, _: Any) -> None:
        if module in self._blocks:
            self._running.append(module)
            self._hand_over(self._blocks[module])

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()
            self._hand_over(self._blocks[self._running[-1]] if self._running else "")

    def _hand_over(self, block: str, *, always: bool = False) -> None:
        if block != self._block or always:
            now = self._now()
            self._spent[self._block] = self._spent.get(self._block, 0.0) + now - self._since
            self._block, self._since = block, now

    def _now(self) -> float:
        if self._where.type != "cpu":
            torch.accelerator.synchronize(self._where)
        return self._clock.now()
