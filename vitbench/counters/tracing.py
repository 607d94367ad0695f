"""The second, independent counter: fvcore's, on the graph that `torch.jit` records of a forward pass.

It shares no formula with `counting` beside it and reads the model at another level: here an operator stands as it was called,
there it has been taken apart. Fused attention is one operator here and two matrix products there. Where the two counts agree,
neither has missed an operator, nor the shape of one.

fvcore's handles serve where they are right. Those below give what it has not (fused attention, products with a vector, added
products, recurrent layers) or gets wrong (a broadcast first operand, a contraction of arbitrary letters). Norms, resizing and
pooling have no handle, unlike in fvcore: what is counted are matrix products, convolutions and attention.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import TracerWarning
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vitbench.counters.counting import META, dtype, evaluating, no_fast_path, on_meta

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fvcore scripts a function when it is imported, which torch deprecates.
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import addmm_flop_jit, bmm_flop_jit, conv_flop_jit, get_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """What fvcore finds in the graph of one forward pass.

    Attributes:
        macs: multiply-accumulates of matrix products, convolutions and attention.
        by_operator: the same by operator, in fvcore's words, largest first.
        unsupported: calls of the operators that have no handle, most first; those that only move or choose elements are not
            listed.
    """

    macs: int
    by_operator: dict[str, int]
    unsupported: dict[str, int]


def trace(model: nn.Module, input_shape: Sequence[int], batch_size: int = 1) -> Traced:
    """Counts one forward pass of a model, in evaluation mode and without gradients.

    The pass runs on torch's `meta` device, so that no memory is needed. Neither the model nor its state is changed.

    Args:
        model: on any device.
        input_shape: without the batch: (channels, height, width) or (channels, frames, height, width).
        batch_size: inputs per pass.

    Returns:
        The count, and what is not in it.

    Raises:
        Exception: whatever the model raises when it cannot take that input, and the tracer: it takes no scripted module, and
            no trainable tensor that the model does not know as its parameter.
    """
    inputs = torch.empty((batch_size, *input_shape), device=META, dtype=dtype(model))
    analysis: Any = FlopCountAnalysis(_Recorded(model), inputs)
    # To ignore an operator does not take its handle away, so that all are taken away first.
    analysis.clear_op_handles().set_op_handle(**_HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("all")
    with warnings.catch_warnings(), evaluating(model), on_meta(model), no_fast_path(), torch.no_grad(), _Convolutions():
        for category in (TracerWarning, DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        macs = analysis.by_operator()
    return Traced(
        macs=sum(macs.values()),
        by_operator=dict(macs.most_common()),
        unsupported=dict(analysis.unsupported_ops().most_common()),
    )


class _Recorded(nn.Module):
    """Calls a model and gives every tensor that came up on the way.

    The graph loses what does not lead to its outputs, and the model computes it all the same. What the model itself returns is
    not looked at: the tracer refuses much of what models return. The model is no submodule of this one, so that fvcore, which
    leaves its hooks behind when a model raises, sets none on it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._call: Callable[[Tensor], Any] = lambda inputs: model(inputs)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        with _Results() as results:
            self._call(inputs)
        # Detached, since the tracer refuses to return a tensor that it has not seen being made.
        return [tensor.detach() for tensor in (inputs, *results.tensors)]


class _Results(TorchFunctionMode):
    """Keeps the meta tensors that torch's functions give."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.tensors += (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_meta)
        return result


_TRACER: Any = torch._C._parse_dispatch_key("Tracer")


class _Convolutions(TorchDispatchMode):
    """Makes the tracer record the convolutions of meta tensors.

    It does not record `aten::convolution`, but an operator that kernels call below it, `aten::_convolution`. The kernel for meta
    tensors calls none. Nor can it run as long as the tracer is on: sizes are tensors then. Below a recorded operator it is off.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and torch._C._is_tracing():
            with self, torch._C._SetExcludeDispatchKeyGuard(_TRACER, False):
                return torch.ops.aten._convolution.default(*args, False, False, False, False)
        if func is torch.ops.aten._convolution.default:
            func, args = torch.ops.aten.convolution.default, args[:9]
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in tensors) and not all(tensor.is_meta for tensor in tensors):
            # A tensor that the model keeps as a plain attribute is no parameter and no buffer, so it was not replaced.
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(META), (args, kwargs))
        return func(*args, **kwargs)


Handle = Callable[[list[Any], list[Any]], Any]
"""Gives the multiply-accumulates of a node of the graph, from the values that enter and leave it."""


def _shape(value: Any) -> list[int]:
    shape: list[int] | None = get_shape(value)
    if shape is None:
        raise TypeError(f"the graph does not know the shape of {value}")
    return shape


def _members(value: Any) -> list[Any]:
    """Gives what a list in the graph is made of."""
    return list(value.node().inputs())


def _numbers(value: Any) -> list[int]:
    """Gives the numbers in a list; none for None."""
    return [member.toIValue() for member in _members(value)]


def _product(left: list[int], right: list[int]) -> int:
    """Counts a matrix product: in every batch that either side has, each row meets each column."""
    rows = left[-2] if len(left) > 1 else 1
    columns = right[-1] if len(right) > 1 else 1
    batches: int = math.prod(torch.broadcast_shapes(left[:-2], right[:-2]))
    return batches * rows * left[-1] * columns


def _linear(inputs: list[Any], outputs: list[Any]) -> int:
    # The weight is (out, in), or (in) for a single output.
    return math.prod(_shape(inputs[0])) * math.prod(_shape(inputs[1])[:-1])


def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    return _product(_shape(inputs[0]), _shape(inputs[1]))


def _added_matmul(inputs: list[Any], outputs: list[Any]) -> int:
    return _product(_shape(inputs[1]), _shape(inputs[2]))


def _inner(inputs: list[Any], outputs: list[Any]) -> int:
    left, right = _shape(inputs[0]), _shape(inputs[1])
    return math.prod(left) * math.prod(right[:-1]) if left and right else 0  # A number only scales.


def _tensordot(inputs: list[Any], outputs: list[Any]) -> int:
    left, right = _shape(inputs[0]), _shape(inputs[1])
    contracted = zip(_numbers(inputs[2]), _numbers(inputs[3]), strict=True)
    return math.prod(_shape(outputs[0])) * math.prod(min(left[one], right[other]) for one, other in contracted)


def _convolution_by_word(inputs: list[Any], outputs: list[Any]) -> dict[str, int]:
    """Counts a convolution whose padding is "same" or "valid", under the name that fvcore gives to the others."""
    return {"conv": math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])}


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Counts both products of fused attention, masked or not: queries by keys, and weights by values."""
    query, key, value = (_shape(operand) for operand in inputs[:3])
    # One batch of keys, or one head, may serve several of queries: by broadcasting, or as grouped queries.
    leading = zip_longest(query[-3::-1], key[-3::-1], value[-3::-1], fillvalue=1)
    queries, keys = query[-2], key[-2]
    batches = math.prod(max(extents) for extents in leading)
    return batches * queries * keys * (query[-1] + value[-1])


def _recurrent(inputs: list[Any], outputs: list[Any]) -> int:
    """Counts a recurrent layer: every token meets every weight matrix, of each depth and direction."""
    *_, weights = (value for value in inputs if value.node().kind() == "prim::ListConstruct")
    matrices = (shape for shape in map(_shape, _members(weights)) if len(shape) == 2)
    return math.prod(_shape(inputs[0])[:-1]) * sum(map(math.prod, matrices))


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Counts a contraction of any number of operands, two at a time, in the order in which torch takes them."""
    left, arrow, right = inputs[0].toIValue().replace(" ", "").partition("->")
    terms = [_extents(*term) for term in zip(left.split(","), map(_shape, _members(inputs[1])), strict=True)]
    if arrow:
        kept = {letter for term in terms for letter in term if letter in right or (letter[0] == "." and "." in right)}
    else:
        kept = {letter for term in terms for letter in term if letter[0] == "." or left.count(letter) == 1}
    path = _numbers(inputs[2]) if len(inputs) > 2 else []
    macs = 0
    for step in range(len(terms) - 1):
        first, second = sorted(path[2 * step : 2 * step + 2]) if path else (0, 1)
        other, one = terms.pop(second), terms.pop(first)
        wanted = kept.union(*terms)
        # What one operand has alone, and nobody wants later, is summed before the product.
        extents = {k: n for k, n in {**one, **other}.items() if k in wanted or (k in one and k in other)}
        if extents.keys() - wanted:  # Else nothing is accumulated: it is a product element by element.
            macs += math.prod(extents.values())
        terms.insert(len(terms) if path else 0, {k: n for k, n in extents.items() if k in wanted})
    return macs


def _extents(term: str, shape: list[int]) -> dict[str, int]:
    """Gives the extent of every letter of an operand, and of the dimensions under "...", named ".1", ".2" from the right.

    Extents of 1 are left out: they broadcast to what another operand has there.
    """
    before, dots, after = term.partition("...")
    covered = len(shape) - len(before) - len(after) if dots else 0
    letters = [*before, *(f".{place}" for place in range(covered, 0, -1)), *after]
    return {letter: extent for letter, extent in zip(letters, shape, strict=True) if extent != 1}


_HANDLES: dict[str, Handle] = {
    "aten::_convolution": conv_flop_jit,
    "aten::_convolution_mode": _convolution_by_word,
    "aten::addbmm": _added_matmul,
    "aten::addmm": addmm_flop_jit,
    "aten::addmv": _added_matmul,
    "aten::baddbmm": _added_matmul,
    "aten::bmm": bmm_flop_jit,
    "aten::dot": _matmul,
    "aten::einsum": _einsum,
    "aten::gru": _recurrent,
    "aten::inner": _inner,
    "aten::linear": _linear,
    "aten::lstm": _recurrent,
    "aten::matmul": _matmul,
    "aten::mm": _matmul,
    "aten::mv": _matmul,
    "aten::rnn_relu": _recurrent,
    "aten::rnn_tanh": _recurrent,
    "aten::scaled_dot_product_attention": _attention,
    "aten::tensordot": _tensordot,
    "aten::vdot": _matmul,
}
