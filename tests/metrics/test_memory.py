"""Prediction against measurement in processes of their own, and the account that measuring keeps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import nn

from vitbench.build import plan
from vitbench.errors import NotSupported
from vitbench.findings import Measured, Predicted
from vitbench.metrics import memory
from vitbench.records import Mode, RunSetting

FLOAT = 4
VIT = "vit_ti16"
SMALL = RunSetting(model="m", input_shape=(8,), batch_size=3)


def setting(mode: Mode, batch_size: int, device: str) -> RunSetting:
    shape = plan(VIT).input_shape
    assert shape is not None
    return RunSetting(model=VIT, input_shape=shape, batch_size=batch_size, mode=mode, device=device)


def measured(wanted: RunSetting) -> Measured:
    return memory.measure(plan(VIT).build, wanted)


def in_its_own_process(mode: Mode, batch_size: int, device: str) -> Measured:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, setting(mode, batch_size, device)).result()


def predicted(mode: Mode, batch_size: int, device: str) -> Predicted:
    return memory.predict(plan(VIT).build("meta"), setting(mode, batch_size, device))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a peak that can be set back")
@pytest.mark.parametrize(("mode", "bound"), [("infer", 0.10), ("train", 0.15)])
def test_a_prediction_meets_the_resident_memory_of_a_process(mode: Mode, bound: float) -> None:
    before, after = predicted(mode, 8, "cpu"), in_its_own_process(mode, 8, "cpu")
    assert memory.compare(before, after).predicted_over_measured == pytest.approx(1, abs=bound)
    assert after.measured_weights_bytes == pytest.approx(before.predicted_weights_bytes, rel=0.1)
    assert after.measured_activations_bytes == pytest.approx(before.predicted_activations_bytes, rel=0.25)
    assert after.measured_gradients_bytes == before.predicted_gradients_bytes
    assert after.measured_optimizer_bytes == before.predicted_optimizer_bytes
    assert (after.measured_reserved_bytes, after.measured_driver_bytes) == (None, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize(("mode", "bound"), [("infer", 0.05), ("train", 0.10)])
def test_a_prediction_meets_what_an_accelerator_allocated(mode: Mode, bound: float) -> None:
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    before, after = predicted(mode, 32, accelerator.type), in_its_own_process(mode, 32, str(accelerator))
    assert memory.compare(before, after).predicted_over_measured == pytest.approx(1, abs=bound)
    assert after.measured_reserved_bytes is not None
    assert after.measured_reserved_bytes >= after.measured_peak_bytes


def test_the_prediction_of_a_model_in_closed_form() -> None:
    found = memory.predict(nn.Linear(8, 4, bias=False), SMALL)
    assert found == Predicted(
        predicted_weights_bytes=FLOAT * 32,
        predicted_gradients_bytes=0,
        predicted_optimizer_bytes=0,
        predicted_activations_bytes=FLOAT * 3 * (8 + 4),
        predicted_workspace_bytes=0,
        predicted_peak_bytes=FLOAT * (32 + 3 * (8 + 4)),
    )


class Recorded:
    """A meter that reads from a list."""

    def __init__(self, peaks: list[int]) -> None:
        self._peaks: Iterator[int] = iter(peaks)
        self.forgotten = 0

    def settled(self) -> int:
        return 0

    def forget(self) -> None:
        self.forgotten += 1

    def peak(self) -> int:
        return next(self._peaks)

    def reserved(self) -> int | None:
        return None

    def driver(self) -> int | None:
        return None


def test_gradients_are_taken_off_only_once_they_are_there() -> None:
    parameter = nn.Parameter(torch.zeros(25))
    parameter.grad = torch.zeros(25)
    meter = Recorded([1000 + 450, 1000 + 500, 1000 + 560, 1000 + 900])
    account = memory._Account(meter, base=1000)
    account.weights, account.optimizer = 100, 200
    account.window()  # forward: 450 - 300
    account.born(parameter)  # 500 - 300, without the gradient
    account.window()  # 560 - 300 - 100
    account.window(updating=True)  # the optimizer's temporaries are no activations
    assert (account.activations, account.peak, account.all_gradients) == (200, 900, FLOAT * 25)
    assert meter.forgotten == 4


def test_where_no_peak_is_kept_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sys.platform != "linux" or memory.obstacle(torch.device("cpu")) is None
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(NotSupported, match="darwin keeps no peak"):
        memory.measure(nn.Identity, SMALL)


def test_the_ratio_is_of_the_peaks() -> None:
    one = Predicted(**dict.fromkeys(Predicted.__dataclass_fields__, 90))
    other = Measured(**dict.fromkeys(Measured.__dataclass_fields__, 100))
    assert memory.compare(one, other).predicted_over_measured == 0.9
    nothing = Measured(**dict.fromkeys(Measured.__dataclass_fields__, 0))
    assert memory.compare(one, nothing).predicted_over_measured is None
