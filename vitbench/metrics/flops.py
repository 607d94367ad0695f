"""Parameters, multiply-accumulates, FLOPs and activations of a forward pass.

FLOPs here are always 2 x MACs: a multiply-accumulate is one multiplication and one addition. Many papers print MACs under the
name FLOPs; nothing here does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from vitbench import findings
from vitbench.counters import counting
from vitbench.findings import Part

FLOPS_PER_MAC = 2

_MODULE_DEPTH = 2

By = Literal["module", "operator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops(findings.Flops):
    """What one forward pass of a model costs, and where: by operator and module."""

    tally: counting.Tally = field(default_factory=dict, repr=False)
    module_params: Mapping[str, int] = field(default_factory=dict, repr=False)

    def breakdown(self, by: By, depth: int | None = None) -> list[Part]:
        """Takes the counts apart; the parts sum exactly to the whole.

        Args:
            by: "module" or "operator".
            depth: of modules: how many names of a path are kept; None keeps all.
        """
        if by == "operator":
            costs = counting.by_operator(self.tally)
            return [self._part(name, cost, None) for name, cost in costs.items()]
        modules = _by_module(self.tally, self.module_params, depth)
        return [self._part(name, cost, params) for name, params, cost in modules]

    def _part(self, name: str, cost: counting.Cost, params: int | None) -> Part:
        return Part(
            part=name,
            params=params,
            macs=cost.macs,
            flops=FLOPS_PER_MAC * cost.macs,
            activations=cost.activations,
            uncounted_elements=cost.uncounted,
            share=cost.macs / self.macs if self.macs else 0.0,
        )


def count_flops(model: nn.Module, input_shape: Sequence[int], *, batch_size: int = 1) -> Flops:
    """Counts a model's parameters and the operators of one forward pass, without running it.

    The pass goes through torch's meta device: no memory is used, and the model is left as it was.

    Args:
        model: any module that takes one tensor, on any device.
        input_shape: without the batch: (channels, height, width) or (channels, frames, height, width).
        batch_size: inputs per pass; `macs` and `activations` are of the whole batch.

    Returns:
        The same record that `vitbench flops` prints.

    Raises:
        Exception: whatever the model raises when it cannot take that input.
    """
    params = list(model.parameters())
    tally = counting.tally(model, input_shape, batch_size)
    total = counting.total(tally)
    operators = counting.by_operator(tally)
    module_params = _module_params(model)
    return Flops(
        params=sum(parameter.numel() for parameter in params),
        params_trainable=sum(parameter.numel() for parameter in params if parameter.requires_grad),
        macs=total.macs,
        flops=FLOPS_PER_MAC * total.macs,
        activations=total.activations,
        uncounted_elements=total.uncounted,
        uncounted={name: cost.uncounted for name, cost in operators.items() if cost.uncounted},
        operators={name: cost.calls for name, cost in operators.items()},
        modules=[[name, params, cost.macs] for name, params, cost in _by_module(tally, module_params, _MODULE_DEPTH)],
        tally=tally,
        module_params=module_params,
    )


measure = count_flops


def count_flops_with_fvcore(model: nn.Module, input_shape: Sequence[int], *, batch_size: int = 1) -> Flops:
    """Counts the same multiply-accumulates with the second, independent counter: fvcore, which traces the model.

    fvcore has no account of what it leaves out by elements, and of activations only one that a fused attention hides, so
    these are None, and so are calls and modules. Arguments and errors are as in `count_flops`.
    """
    from vitbench.counters import tracing

    traced = tracing.trace(model, input_shape, batch_size)
    params = list(model.parameters())
    return Flops(
        params=sum(parameter.numel() for parameter in params),
        params_trainable=sum(parameter.numel() for parameter in params if parameter.requires_grad),
        macs=traced.macs,
        flops=FLOPS_PER_MAC * traced.macs,
        activations=None,
        uncounted_elements=None,
        uncounted=None,
        operators=None,
        modules=None,
    )


def _by_module(
    tally: counting.Tally, module_params: Mapping[str, int], depth: int | None
) -> list[tuple[str, int, counting.Cost]]:
    """Gives path, parameters and cost of each module, in the order in which data meets them; those that never ran come last."""
    costs = counting.by_module(tally, depth)
    params: dict[str, int] = {}
    for path, count in module_params.items():
        short = counting.cut(path, depth)
        params[short] = params.get(short, 0) + count
    names = dict.fromkeys([*costs, *params])
    return [(name, params.get(name, 0), costs.get(name, counting.Cost())) for name in names]


def _module_params(model: nn.Module) -> dict[str, int]:
    """Gives the parameters that each module holds itself; shared ones stand under the first module that has them."""
    result: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        path = name.rpartition(".")[0]
        result[path] = result.get(path, 0) + parameter.numel()
    return result
