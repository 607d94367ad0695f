"""Bytes, intensities and times of blocks: by hand, by the makers of GPUs, and planted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor, nn

import vitbench
from vitbench.counters import counting
from vitbench.errors import NotSupported
from vitbench.metrics import roofline
from vitbench.records import RunSetting
from vitbench.running import device, timing

QUICK = timing.Rule(warmup_s=0.0, warmup_runs=0, least_runs=6, min_time_s=0.0)


def setting(*shape: int, batch_size: int = 1, **others: Any) -> RunSetting:
    return RunSetting(model="m", input_shape=shape, batch_size=batch_size, **others)


def intensity(model: nn.Module, one: RunSetting) -> float:
    total = counting.total(roofline.traffic(model, one))
    return 2 * total.macs / total.traffic_bytes


@pytest.mark.parametrize(("batch", "published"), [(512, 315), (1, 1)])
def test_a_linear_layer_has_the_intensity_that_nvidia_publishes(batch: int, published: float) -> None:
    """Source: NVIDIA, GPU Performance Background User's Guide, Table 1: 4096 outputs, 1024 inputs, FP16."""
    layer = nn.Linear(1024, 4096, bias=False, dtype=torch.float16)
    assert intensity(layer, setting(1024, batch_size=batch)) == pytest.approx(published, rel=2e-3)


def test_a_convolution_reads_images_and_filters_and_writes_maps() -> None:
    """In fp32, 2 images of 3 x 8 x 8, 5 filters of 3 x 3 x 3 with biases, maps of 5 x 6 x 6."""
    flops = 2 * (2 * 5 * 6 * 6) * (3 * 3 * 3)
    elements = 2 * 3 * 8 * 8 + 5 * 3 * 3 * 3 + 5 + 2 * 5 * 6 * 6
    assert intensity(nn.Conv2d(3, 5, 3), setting(3, 8, 8, batch_size=2)) == pytest.approx(flops / (4 * elements))


class Attends(nn.Module):
    """Tokens that attend to themselves, in one head."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x.clone(), x.clone())


@pytest.mark.parametrize(("where", "kernel"), [("cpu", "for_cpu"), ("cuda:0", "efficient")])
def test_fused_attention_does_not_write_the_weights(where: str, kernel: str) -> None:
    """Of 100 tokens of 16 channels: queries, keys, values and output; also a sum a query, of which a kernel may keep more."""
    tally = roofline.traffic(Attends(), setting(1, 100, 16, device=where))
    ((name, cost),) = ((name, cost) for (_, name), cost in tally.items() if "attention" in name)
    assert kernel in name
    assert cost.macs == 2 * 100 * 100 * 16
    assert 4 * 100 * 16 <= cost.traffic_bytes / 4 <= 4 * 100 * 16 + 128
    assert {name: cost.calls for name, cost in counting.by_operator(tally).items()} == {name: 1, "clone": 2}


def test_the_blocks_of_a_model_have_the_flops_of_the_count() -> None:
    model = vitbench.create_model("vit_ti16", device="meta")
    tally = roofline.traffic(model, setting(3, 224, 224))
    assert counting.total(tally).macs == vitbench.count_flops(model, (3, 224, 224)).macs


class Clock:
    """A clock that modules move on; whatever else is timed takes a tenth of a second."""

    name = "planted"

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def time(self, phases: Sequence[timing.Phase]) -> tuple[float, ...]:
        for phase in phases:
            phase()
        return (0.1,) * len(phases)


class Slow(nn.Module):
    """A product that takes as long as it is told."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock = clock
        self.seconds = seconds
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.clock.seconds += self.seconds
        out: Tensor = self.layer(x)
        return out


class Stages(nn.Module):
    """Two slow blocks in one stage, whose own forward pass is never called, one in a second, and slow itself."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        first = nn.ModuleList([Slow(clock, 0.01), Slow(clock, 0.02)])
        self.stages = nn.ModuleList([first, nn.ModuleList([Slow(clock, 0.04)])])
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = block(x)
        self.clock.seconds += 0.03
        out: Tensor = self.norm(x)
        return out + 1


def test_the_time_of_each_block_is_what_was_planted() -> None:
    """By this clock a sum in place of two arrays of 256 MiB, which moves three, takes 0.1 s."""
    clock = Clock()
    one = setting(3, 4)
    found = roofline.measure(Stages(clock), one, pass_s=0.1, peak_flops_per_s=1e10, rule=QUICK, clock=clock)
    assert {name: (flops, traffic) for name, flops, traffic, _ in found.blocks} == {
        # 3 rows of 4 numbers, weights of 4 x 4 and a bias, once and again.
        "stages.0": (2 * 2 * 48, 2 * 4 * (12 + 16 + 4 + 12)),
        "stages.1": (2 * 48, 4 * (12 + 16 + 4 + 12)),
        # Gains and biases; a mean and a deviation of each row beside the result.
        "norm": (0, 4 * (12 + 4 + 4 + 12 + 3 + 3)),
        "": (0, 4 * 24),
    }
    seconds = {name: spent for name, *_, spent in found.blocks}
    assert seconds == pytest.approx({"stages.0": 0.03, "stages.1": 0.04, "norm": 0.0, "": 0.03})
    assert found.traffic_bytes == sum(traffic for *_, traffic, _ in found.blocks)
    assert found.intensity_flops_per_byte == pytest.approx(3 * 96 / found.traffic_bytes)
    assert found.bandwidth_bytes_per_s == pytest.approx(3 * 256 * 2**20 / 0.1)
    # Some 0.4 FLOP/byte: memory is the limit.
    assert found.roof_flops_per_s == pytest.approx(found.intensity_flops_per_byte * found.bandwidth_bytes_per_s)
    assert found.roof_share == pytest.approx(3 * 96 / 0.1 / found.roof_flops_per_s)


def test_no_hook_is_left_behind() -> None:
    from torch.nn.modules import module

    before = len(module._global_forward_hooks), len(module._global_forward_pre_hooks)
    roofline.block_seconds(nn.Linear(4, 4), setting(3, 4), QUICK, timing.clock_of(torch.device("cpu")))
    assert (len(module._global_forward_hooks), len(module._global_forward_pre_hooks)) == before


def test_a_pass_without_products_has_no_place() -> None:
    with pytest.raises(NotSupported, match="multiplies no matrices"):
        roofline.measure(nn.ReLU(), setting(3, 4), pass_s=1.0, peak_flops_per_s=1.0, rule=QUICK)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_an_accelerator_has_a_roof() -> None:
    where = device.resolve("auto")
    one = setting(3, 224, 224, batch_size=8, device=str(where))
    device.prepare(where, "fp32", 1)
    found = roofline.measure(vitbench.create_model("vit_ti16"), one, pass_s=1.0, peak_flops_per_s=1e15, rule=QUICK)
    assert found.bandwidth_bytes_per_s > 1e10
    assert all(spent > 0 for *_, spent in found.blocks)
