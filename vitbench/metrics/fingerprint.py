"""What a model computes, in 16 numbers: those of its output for weights and an input that are always the same."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vitbench.errors import NotSupported
from vitbench.findings import Fingerprint
from vitbench.records import RunSetting
from vitbench.running import passes

_SEED = 0
_NUMBERS = 16

# Of the noise on what is no matrix, such as gains, biases, scales of layers, tokens and tables of positions.
_SPREAD = 0.1
# Of that on a matrix, times the root of its inputs: what goes into an activation is then neither tiny nor huge.
_MATRIX_SPREAD = 0.5


def measure(build: Callable[[], nn.Module], setting: RunSetting) -> Fingerprint:
    """Runs one forward pass in this process, which `device.prepare` has set up; torch's own generator is left as it was.

    The weights are those with which the model begins, drawn from a seed on the CPU, with noise upon them: many models begin with
    a head, a table of positions or a scale of layers at, or next to, zero, or with weights so small that every activation is a
    line, so that their first output would tell nothing of what they compute before. The noise on a parameter goes by its name,
    and the input is always the same: neither depends on what is drawn, or added, elsewhere.

    Args:
        build: gives the model on the CPU.
        setting: the device, dtype, memory format and compiler; its mode is "infer".

    Raises:
        NotSupported: the output holds no tensor, or numbers that are not finite.
        torch.OutOfMemoryError: the accelerator's memory ran out; on a CPU it is a RuntimeError.
        Exception: whatever the model raises when it cannot take that input.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(_SEED)
        model = build()
        for name, parameter in model.named_parameters():
            parameter.add_(_drawn(name, parameter.shape, parameter.dtype), alpha=_spread(parameter))
        # No parameter has this name.
        inputs = passes.example(setting).copy_(_drawn("the input", (setting.batch_size, *setting.input_shape)))
    (infer,) = passes.phases(passes.laid_out(model, setting), inputs, setting)
    outputs = [leaf for leaf in tree_leaves(infer()) if isinstance(leaf, Tensor)]
    if not outputs:
        raise NotSupported(f"{setting.model} gives no tensor, so that its output has no fingerprint.")
    return Fingerprint(output=summary(torch.cat([output.cpu().double().flatten() for output in outputs])))


def _drawn(name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Gives numbers of a normal distribution on the CPU that are always the same for a name and a shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())), dtype=dtype)


def _spread(parameter: nn.Parameter) -> float:
    """Gives the standard deviation of the noise on a parameter; one with several outputs and inputs is a matrix."""
    outputs = len(parameter) if parameter.dim() else 1
    inputs = parameter.numel() // max(1, outputs)
    return _MATRIX_SPREAD / inputs**0.5 if outputs > 1 and inputs > 1 else _SPREAD


def summary(output: Tensor) -> tuple[float, ...]:
    """Gives projections of a vector on directions of random signs, scaled so that their norm is about the vector's.

    They are linear and see each number with the same weight: the norm of the difference of two summaries is about that of the
    two vectors, whichever numbers it lies in, and none moves them unseen but by a chance of measure zero. Source: Achlioptas,
    Database-friendly random projections (2003).

    Args:
        output: (n,), float64.

    Raises:
        NotSupported: it holds numbers that are not finite.
    """
    if not bool(output.isfinite().all()):
        raise NotSupported("The output holds numbers that are not finite, so that it has no fingerprint.")
    generator = torch.Generator().manual_seed(_SEED)
    signs = torch.randint(2, (_NUMBERS, len(output)), generator=generator, dtype=torch.int8)
    # Row by row: the outputs of some models are long.
    return tuple(float(torch.dot(2 * row.double() - 1, output)) / _NUMBERS**0.5 for row in signs)
