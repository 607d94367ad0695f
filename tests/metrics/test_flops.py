"""The record of `count_flops`: parameters, breakdowns, and what is said of what was left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vitbench


class Net(nn.Module):
    """Two layers that share a weight, one frozen, one never run."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6, bias=False), nn.GELU(), nn.Linear(6, 6, bias=False))
        self.body[2].weight = self.body[0].weight
        self.head = nn.Linear(6, 4).requires_grad_(False)
        self.unused = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.flatten(1)))  # type: ignore[no-any-return]  # modules give Any


def test_counts_of_a_model_small_enough_to_count_by_hand() -> None:
    found = vitbench.count_flops(Net(), (1, 2, 3), batch_size=5)
    # One shared 6 x 6 weight, 6 x 4 + 4 in the head, 3 x 5 + 5 unused; the head is frozen.
    assert found.params == 36 + 28 + 20
    assert found.params_trainable == 36 + 20
    assert found.macs == 5 * (36 + 36 + 24)
    assert found.flops == 2 * found.macs
    assert found.activations == 5 * (6 + 6 + 4)
    assert found.uncounted == {"gelu": 5 * 6}
    assert found.uncounted_elements == 30


@pytest.mark.parametrize("depth", [None, 0, 1, 2])
def test_a_breakdown_by_module_sums_to_the_whole(depth: int | None) -> None:
    found = vitbench.count_flops(Net(), (1, 2, 3))
    parts = found.breakdown("module", depth)
    for name in ("params", "macs", "flops", "activations", "uncounted_elements"):
        assert sum(getattr(part, name) for part in parts) == getattr(found, name)
    assert sum(part.share for part in parts) == pytest.approx(1)
    if depth == 1:
        assert {part.part: (part.params, part.macs) for part in parts} == {
            "body": (36, 72),
            "head": (28, 24),
            "unused": (20, 0),
        }


def test_a_breakdown_by_operator_sums_to_the_whole() -> None:
    found = vitbench.count_flops(Net(), (1, 2, 3))
    parts = {part.part: part.macs for part in found.breakdown("operator")}
    assert parts == {"mm": 72, "addmm": 24, "gelu": 0}


def test_calls_and_modules_are_for_files() -> None:
    """Two products with one shared weight, a GELU, a product with a bias; two names of a path are kept."""
    found = vitbench.count_flops(Net(), (1, 2, 3))
    assert found.operators == {"mm": 2, "addmm": 1, "gelu": 1}
    assert found.modules == [
        ["body.0", 36, 36],
        ["body.1", 0, 0],
        ["body.2", 0, 36],
        ["head", 28, 24],
        ["unused", 20, 0],
    ]


def test_modules_sum_to_the_whole() -> None:
    found = vitbench.count_flops(vitbench.create_model("swin_t", device="meta"), (3, 224, 224))
    assert found.modules is not None
    assert sum(params for _, params, _ in found.modules) == found.params
    assert sum(macs for *_, macs in found.modules) == found.macs
    assert {path.count(".") for path, *_ in found.modules} == {0, 1}


def test_the_second_counter_has_neither_calls_nor_modules() -> None:
    from vitbench.metrics.flops import count_flops_with_fvcore

    found = count_flops_with_fvcore(nn.Linear(3, 4), (1, 2, 3))
    assert found.operators is None
    assert found.modules is None


def test_the_public_names_are_imported_only_when_used() -> None:
    assert set(vitbench.__all__) <= set(dir(vitbench))
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = vitbench.absent
