"""Blocks recomputed in the backward pass, on blocks that count how often they run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitbench.parts.blocks import Blocks, Recomputing


class Counting(nn.Module):
    """A linear layer and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        out: Tensor = self.norm(self.linear(x)).square()
        return out


class Two(Recomputing):
    """Two blocks of a module within a module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Blocks(Counting(), Counting()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


def runs(model: nn.Module) -> list[int]:
    return [module.runs for module in model.modules() if isinstance(module, Counting)]


@pytest.mark.parametrize(("enable", "expected"), [(True, [2, 2]), (False, [1, 1])])
def test_it_runs_again_where_that_was_asked_for(enable: bool, expected: list[int]) -> None:
    model = Two()
    model.set_grad_checkpointing()
    model.set_grad_checkpointing(enable)
    model(torch.randn(4, 3)).sum().backward()
    assert runs(model) == expected


def test_it_runs_once_in_evaluation_and_without_gradients() -> None:
    model = Two()
    model.set_grad_checkpointing()
    with torch.no_grad():
        model(torch.randn(4, 3))
    assert runs(model) == [1, 1]
    model.eval()(torch.randn(4, 3)).sum().backward()
    assert runs(model) == [2, 2]


def test_running_statistics_count_a_batch_once() -> None:
    model = Two()
    model.set_grad_checkpointing()
    model(torch.randn(4, 3)).sum().backward()
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    assert buffers["inner.0.0.norm.num_batches_tracked"] == 1
    model.zero_grad()
    fresh = Two()
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(4, 3)
    for one in (model, fresh):
        one(x).sum().backward()
    torch.testing.assert_close(dict(model.named_buffers()), dict(fresh.named_buffers()), rtol=0, atol=0)
    assert not torch.equal(model.get_buffer("inner.0.1.norm.running_mean"), buffers["inner.0.1.norm.running_mean"])


def test_a_block_may_take_and_give_more_than_a_tensor() -> None:
    class Growing(nn.Linear):
        def forward(self, x: Tensor, number: int = 0) -> Any:
            return super().forward(x), number + 1

    model = Recomputing()
    model.set_grad_checkpointing()
    out, number = model.run(Growing(3, 2), torch.ones(4, 3), 7)
    assert (out.shape, number) == ((4, 2), 8)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_blocks_are_scripted_as_timm_scripts_its_own() -> None:
    blocks = Blocks(nn.Linear(3, 3), nn.ReLU()).eval()
    blocks.set_grad_checkpointing()
    x = torch.randn(4, 3)
    torch.testing.assert_close(torch.jit.script(blocks)(x), blocks(x))


def test_names_of_tensors_are_those_of_a_sequence() -> None:
    assert list(Blocks(nn.Linear(3, 3)).state_dict()) == ["0.weight", "0.bias"]


def test_it_compiles_whole_in_training() -> None:
    torch.compiler.reset()
    layers = [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.GELU()) for _ in range(2)]
    model = Blocks(*layers)
    model.set_grad_checkpointing()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(torch.randn(4, 3)).sum().backward()
    assert model.get_buffer("0.1.num_batches_tracked") == 1
    assert all(parameter.grad is not None for parameter in model.parameters())
