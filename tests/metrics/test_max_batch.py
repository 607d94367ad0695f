"""The search for the largest batch, against limits that are known, and against a model whose memory is known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from vitbench.errors import NotSupported
from vitbench.metrics import max_batch
from vitbench.records import RunSetting

WIDTH = 32
FLOAT = 4
SETTING = RunSetting(model="m", input_shape=(WIDTH,))
WEIGHTS = FLOAT * WIDTH * WIDTH
ONE = FLOAT * 2 * WIDTH  # of each input: itself and the output


def fits_up_to(limit: int, calls: list[int]) -> Callable[[int], bool]:
    def fits(batch_size: int) -> bool:
        assert batch_size >= 1
        calls.append(batch_size)
        return batch_size <= limit

    return fits


@pytest.mark.parametrize("limit", [*range(20), 63, 64, 65, 1000])
@pytest.mark.parametrize("guess", [1, 2, 7, 64, 999])
def test_the_largest_is_found_from_any_guess_and_nothing_is_tried_twice(limit: int, guess: int) -> None:
    calls: list[int] = []
    assert max_batch.largest(fits_up_to(limit, calls), guess) == limit
    assert len(calls) == len(set(calls))


def test_from_one_it_doubles_then_bisects() -> None:
    calls: list[int] = []
    assert max_batch.largest(fits_up_to(11, calls)) == 11
    assert calls == [1, 2, 4, 8, 16, 12, 10, 11]


def test_a_right_guess_takes_two_tries() -> None:
    calls: list[int] = []
    assert max_batch.largest(fits_up_to(420, calls), 420) == 420
    assert calls == [420, 421]


def test_what_fits_without_end_is_refused() -> None:
    with pytest.raises(NotSupported, match="takes no memory"):
        max_batch.largest(lambda _: True)


@pytest.mark.parametrize("room", [0, 1, 5, 1000])
def test_a_prediction_is_exact(room: int) -> None:
    model = nn.Linear(WIDTH, WIDTH, bias=False)
    limit = WEIGHTS + room * ONE + ONE - 1
    found = max_batch.predict(model, SETTING, limit_bytes=limit)
    assert found.max_batch == room
    assert found.peak_bytes == (WEIGHTS + room * ONE if room else None)
    assert found.next_peak_bytes == WEIGHTS + (room + 1) * ONE
    assert (found.max_batch_method, found.limit_bytes, found.weights_bytes) == ("predicted", limit, WEIGHTS)


def test_a_prediction_holds_where_small_batches_are_hidden_by_the_optimizer() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU(), nn.Linear(WIDTH, 1))
    found = max_batch.predict(model, replace(SETTING, mode="train"), limit_bytes=2**20)
    assert found.peak_bytes is not None
    assert found.next_peak_bytes is not None
    assert found.peak_bytes <= 2**20 < found.next_peak_bytes


def test_only_running_out_of_memory_is_survived() -> None:
    def fail(error: Exception) -> Callable[[], None]:
        def work() -> None:
            raise error

        return work

    assert max_batch.survives(lambda: None)
    assert not max_batch.survives(fail(torch.OutOfMemoryError("CUDA out of memory.")))
    assert not max_batch.survives(fail(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")))
    with pytest.raises(RuntimeError, match="shape"):
        max_batch.survives(fail(RuntimeError("shape mismatch")))


def test_a_cpu_is_not_driven_out_of_memory() -> None:
    with pytest.raises(NotSupported, match="--memory"):
        max_batch.measure(nn.Identity(), SETTING)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_an_accelerator_runs_out_of_memory_and_recovers() -> None:
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    # Of each input and its output 2 x 64 MiB, so that few batches are tried.
    shape = (2**24,)
    wanted = replace(SETTING, input_shape=shape, device=str(accelerator))
    found = max_batch.measure(nn.ReLU(), wanted)
    assert found.max_batch > 1
    assert found.peak_bytes is not None
    assert found.limit_bytes is not None
    assert found.limit_bytes * 0.5 < found.peak_bytes <= found.limit_bytes
    assert max_batch.survives(lambda: max_batch._pass(nn.ReLU(), wanted))
