"""Passes under the eyes of observers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from vitbench.inside import observing


class Counting(observing.Observer):
    """Counts passes and inputs, and can be told to fail."""

    def __init__(self, fails: bool = False) -> None:
        self.passes = self.inputs = 0
        self.fails = fails

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[None]:
        handle = model.register_forward_hook(self._passed)
        try:
            yield
        finally:
            handle.remove()

    def _passed(self, model: nn.Module, inputs: object, output: Tensor) -> None:
        assert not model.training
        assert not output.requires_grad
        self.passes += 1
        if self.fails:
            raise RuntimeError("an observer failed")

    def seen(self, inputs: Tensor) -> None:
        self.inputs += len(inputs)

    def finding(self) -> tuple[int, int]:
        return self.passes, self.inputs


def _model() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout())
    model[1].eval()
    return model


def test_one_pass_feeds_all_observers_and_leaves_the_model_as_it_was() -> None:
    model, observers = _model(), [Counting(), Counting()]
    observing.run(model, [torch.zeros(4, 2), torch.zeros(1, 2)], observers)
    assert [one.finding() for one in observers] == [(2, 5), (2, 5)]
    assert [model.training, model[0].training, model[1].training] == [True, True, False]  # type: ignore[index]  # a Sequential
    assert not model._forward_hooks


def test_hooks_and_modes_are_put_back_after_an_error() -> None:
    model = _model()
    with pytest.raises(RuntimeError, match="an observer failed"):
        observing.run(model, [torch.zeros(4, 2)], [Counting(fails=True)])
    assert model.training
    assert not model._forward_hooks
    assert torch.is_grad_enabled()
