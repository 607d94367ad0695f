"""Weights and images that anybody can make again, whatever the model: filled tensor by tensor from the tensor's name."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def lines(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Gives a state dict's names and shapes as sorted lines."""
    return "\n".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in sorted(shapes.items()))


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Gives a state dict for names and shapes, drawn from numpy's frozen generator with the name's checksum as its seed."""
    return {name: _filled(name, shape) for name, shape in shapes.items()}


def inputs(extents: tuple[int, ...]) -> Tensor:
    """Gives two images or clips, (2, 3, *extents)."""
    return _normal("images", (2, 3, *extents))


def _filled(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    drawn = _normal(name, shape)
    if name.endswith("running_var"):
        return 0.5 + drawn.abs()
    if name.endswith(("bias", "running_mean")):
        return 0.1 * drawn
    if len(shape) == 1:  # of a norm
        return 1 + 0.1 * drawn
    if any(part in name for part in ("pos", "cls_token", "class_emb")):
        return 0.2 * drawn
    return drawn / math.sqrt(math.prod(shape[1:]))


def _normal(name: str, shape: tuple[int, ...]) -> Tensor:
    state = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(state.standard_normal(shape).astype(np.float32))
