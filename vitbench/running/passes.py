"""One pass of a model as a user would run it: inference, or a training step of forward, backward and optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vitbench.errors import NotSupported
from vitbench.records import Dtype, RunSetting

DTYPES: dict[Dtype, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

Phase = Callable[[], object]


def laid_out(model: nn.Module, setting: RunSetting) -> nn.Module:
    """Gives the model on the setting's device, in its dtype, memory format and mode, compiled if asked; it is changed in place.

    Raises:
        NotSupported: the model cannot recompute its activations.
        torch.OutOfMemoryError: the accelerator's memory ran out; on a CPU it is a RuntimeError.
    """
    if setting.grad_checkpointing:
        checkpointing = getattr(model, "set_grad_checkpointing", None)
        if checkpointing is None:
            raise NotSupported(f"{setting.model} has no set_grad_checkpointing(): it cannot recompute its activations.")
        checkpointing(True)
    model.train(setting.mode == "train")
    model.to(device=setting.device, dtype=None if setting.amp else DTYPES[setting.dtype])
    if setting.channels_last:
        # A convolution of clips has weights of five extents, and a memory format of its own.
        for weight in model.parameters():
            if weight.dim() in (4, 5):
                weight.data = weight.data.contiguous(memory_format=_channels_last(weight.dim()))
    if setting.compile is not None:
        backend, _, mode = setting.compile.partition(":")
        model.compile(backend=backend, mode=mode or None)
    return model


def example(setting: RunSetting) -> Tensor:
    """Gives a batch of random inputs, (batch, *input_shape), on the setting's device."""
    shape = (setting.batch_size, *setting.input_shape)
    dtype = torch.float32 if setting.amp else DTYPES[setting.dtype]
    order = _channels_last(len(shape)) if setting.channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=setting.device, memory_format=order).normal_()


def phases(
    model: nn.Module, inputs: Tensor, setting: RunSetting, optimizer: torch.optim.Optimizer | None = None
) -> tuple[Phase, ...]:
    """Gives the parts of a pass, to be called in turn, again and again: a forward pass, or forward, backward and optimizer.

    A forward pass alone gives the model's output. The loss is the mean of the squared outputs, of all of them where a model in
    training has several; the optimizer is AdamW, unless another is given, with a loss scale for autocast to fp16, without which
    its gradients vanish.
    """
    autocast = _autocast(setting)
    if setting.mode == "infer":

        def infer() -> Any:
            with torch.inference_mode(), autocast():
                return model(inputs)

        return (infer,)

    optimizer = optimizer or torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler(inputs.device.type, enabled=setting.amp and setting.dtype == "fp16")
    losses: list[Tensor] = []

    def forward() -> None:
        with autocast():
            outputs = [leaf for leaf in tree_leaves(model(inputs)) if isinstance(leaf, Tensor)]
            losses.append(sum((output.float().square().mean() for output in outputs), start=outputs[0].new_zeros(())))

    def backward() -> None:
        scaler.scale(losses.pop()).backward()

    def step() -> None:
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return forward, backward, step


def _autocast(setting: RunSetting) -> Callable[[], AbstractContextManager[Any]]:
    if not setting.amp:
        return contextlib.nullcontext
    kind, dtype = torch.device(setting.device).type, DTYPES[setting.dtype]
    return lambda: torch.autocast(kind, dtype)


def _channels_last(extents: int) -> torch.memory_format:
    return torch.channels_last_3d if extents == 5 else torch.channels_last
