"""Attention and dropout hold on meta what they hold on a device: worked out from the shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor, nn

from vitbench.counters import lifetimes
from vitbench.records import Dtype, Mode, RunSetting
from vitbench.running.passes import DTYPES

B, HEADS, TOKENS, CHANNELS = 2, 4, 128, 64
ELEMENTS = B * HEADS * TOKENS * CHANNELS
ROWS = B * HEADS * TOKENS
WEIGHTS = ROWS * TOKENS
FLOAT, HALF = 4, 2
STATE = 4 * 512  # of a random generator, where there is no dropout


class Attention(nn.Module):
    """Attention of inputs to themselves, with a bias that is added to the logits, a mask, or neither."""

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.kind = kind
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(1, HEADS, TOKENS, TOKENS)) if kind == "bias" else None

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=x.device) if self.kind == "mask" else self.bias
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def activations(
    model: nn.Module, device: str, dtype: Dtype = "fp32", mode: Mode = "infer", channels: int = CHANNELS
) -> int:
    setting = RunSetting(
        model="m", input_shape=(HEADS, TOKENS, channels), batch_size=B, mode=mode, dtype=dtype, device=device
    )
    return lifetimes.peak(model, setting).activations_bytes


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_cpu_keeps_inputs_outputs_and_a_number_a_row(dtype: Dtype) -> None:
    assert activations(Attention(), "cpu", dtype) == DTYPES[dtype].itemsize * 2 * ELEMENTS + FLOAT * ROWS


def test_a_cpu_takes_a_bias_that_is_not_trained_into_its_kernel() -> None:
    assert activations(Attention("bias"), "cpu") == FLOAT * (2 * ELEMENTS + ROWS)


def test_a_cpu_trains_a_bias_with_explicit_weights() -> None:
    class Trained(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.scale)

    plain, biased = (activations(Trained(kind), "cpu", mode="train") for kind in ("", "bias"))
    assert plain < FLOAT * (8 * ELEMENTS + WEIGHTS)
    assert biased > FLOAT * 2 * WEIGHTS  # what the softmax gives, and its gradient


def test_cuda_has_flash_attention_in_half_precision() -> None:
    expected = HALF * 2 * ELEMENTS + FLOAT * ROWS
    assert expected <= activations(Attention(), "cuda", "bf16") <= expected + STATE


def test_cuda_pads_channels_to_a_multiple_of_eight_for_flash_attention() -> None:
    padded = ELEMENTS // CHANNELS * 64
    # Inputs of 60 channels; queries, keys and values of 64, outputs of 64.
    expected = HALF * (ELEMENTS // CHANNELS * 60 + 4 * padded) + FLOAT * ROWS
    assert expected <= activations(Attention(), "cuda", "bf16", channels=60) <= expected + STATE


def test_cuda_has_memory_efficient_attention_in_single_precision() -> None:
    expected = FLOAT * 2 * ELEMENTS  # without gradients not even a number a row
    assert expected <= activations(Attention(), "cuda") <= expected + STATE


def test_cuda_adds_a_mask_of_the_inputs_dtype() -> None:
    # The mask of booleans, its negation, the same in half precision.
    expected = HALF * 2 * ELEMENTS + TOKENS**2 * (1 + HALF)
    assert expected <= activations(Attention("mask"), "cuda", "bf16") <= expected + STATE


def test_what_no_kernel_takes_has_explicit_weights() -> None:
    assert activations(Attention(), "cuda", channels=6) > FLOAT * WEIGHTS
    assert activations(Attention(), "mps") > FLOAT * WEIGHTS


@pytest.mark.parametrize(("device", "mask_bytes"), [("cpu", FLOAT), ("cuda", 1)])
def test_dropout_keeps_a_mask_of_the_inputs_dtype_or_of_booleans(device: str, mask_bytes: int) -> None:
    class Dropped(nn.Module):
        def __init__(self, layers: int) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.layers = nn.Sequential(*(nn.Dropout(0.5) for _ in range(layers)))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x * self.scale).sum()  # type: ignore[no-any-return]  # modules are untyped

    two, three = (activations(Dropped(layers), device, mode="train") for layers in (2, 3))
    assert three - two == mask_bytes * ELEMENTS


def test_values_of_other_channels_than_keys_have_explicit_weights() -> None:
    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x[..., :3])

    assert activations(Narrow(), "cpu") > FLOAT * WEIGHTS


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (64, 256), (256, 64), (3, 64)])
def test_a_cpus_convolution_copies_planes(inputs: int, outputs: int) -> None:
    side, batch = 32, 16
    model = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    read, written = (FLOAT * batch * channels * side**2 for channels in (inputs, outputs))
    blocks = FLOAT * model.weight.numel()
    copied = 0 if inputs == 3 else read

    def found(*, channels_last: bool, device: str) -> int:
        setting = RunSetting(model="m", input_shape=(inputs, side, side), batch_size=batch, device=device)
        return lifetimes.peak(model, replace(setting, channels_last=channels_last)).activations_bytes

    assert found(channels_last=False, device="cpu") == read + written + max(copied, written) + blocks
    assert found(channels_last=True, device="cpu") == read + written + blocks
    assert found(channels_last=False, device="cuda") == read + written
