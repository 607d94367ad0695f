"""What timm calls gradient checkpointing, for the native models: blocks recomputed in the backward pass, not kept.

Source: "Training Deep Nets with Sublinear Memory Cost", Chen et al., arXiv 1604.06174; timm's `set_grad_checkpointing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class Recomputing(nn.Module):
    """A module that can run its blocks so that their activations are recomputed; off until it is asked for."""

    grad_checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes blocks, or keeps their activations, in this module and all within."""
        for module in self.modules():
            if isinstance(module, Recomputing):
                module.grad_checkpointing = enable

    def run(self, block: nn.Module, *inputs: Any) -> Any:
        """Gives what the block gives; where it is recomputed, in training alone, only its inputs are kept."""
        if not (self.grad_checkpointing and self.training):
            return block(*inputs)
        options: dict[str, Any] = {}
        # A compiler sees to it that running statistics change once, and takes no contexts of ours.
        if not torch.compiler.is_compiling() and any(isinstance(module, _BatchNorm) for module in block.modules()):
            options["context_fn"] = partial(_contexts, block)
        return checkpoint(block, *inputs, use_reentrant=False, **options)


class Blocks(Recomputing, nn.Sequential):
    """Blocks of one input and output each, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        """Gives the last block's output."""
        for block in self:
            x = block(x) if torch.jit.is_scripting() else self.run(block, x)
        return x


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Gives what the block runs under the first time, and again."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch norms would count a batch twice in their running statistics."""
    buffers = [buffer for norm in block.modules() if isinstance(norm, _BatchNorm) for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:  # the recomputation stops by an exception, once it has all that is needed
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
