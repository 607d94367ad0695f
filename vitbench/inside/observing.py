"""Watches a model's forward passes on images: one pass feeds as many observers as there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Observer(ABC):
    """Sees the forward passes of one model, a batch at a time, and draws a finding from them; it keeps no activation for long."""

    @abstractmethod
    def attach(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gives the context in which the observer's hooks are on the model."""

    @abstractmethod
    def seen(self, inputs: Tensor) -> None:
        """Is called after each pass, with the batch that went in, (B, *input_shape)."""

    @abstractmethod
    def finding(self) -> Any:
        """Gives what the passes so far have shown."""


@contextmanager
def judged(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation, without gradients, and back as it was, module by module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def run(model: nn.Module, batches: Iterable[Tensor], observers: Sequence[Observer]) -> None:
    """Runs a model once over batches of inputs, each (B, *input_shape), under the eyes of the observers."""
    with ExitStack() as stack:
        stack.enter_context(judged(model))
        for observer in observers:
            stack.enter_context(observer.attach(model))
        for batch in batches:
            model(batch)
            for observer in observers:
                observer.seen(batch)
