"""The fingerprint notices what a model computes, and nothing else. Tolerances are those that findings declare."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor, nn

from tests import tiny
from vitbench import findings
from vitbench.errors import NotSupported
from vitbench.metrics import fingerprint
from vitbench.records import Dtype, RunSetting
from vitbench.running import device

SETTING = RunSetting(model="tests.tiny:vit", input_shape=(3, 32, 32), batch_size=2)


def taken(build: Callable[[], nn.Module], setting: RunSetting = SETTING) -> tuple[float, ...]:
    return fingerprint.measure(build, setting).output


def apart(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return math.dist(one, other) / math.hypot(*one)


def within(dtype: str) -> float:
    (output,) = fields(findings.Fingerprint)
    return float(output.metadata["within"]({"dtype": dtype}).relative)


def test_tolerances_go_by_the_dtype() -> None:
    assert [within(dtype) for dtype in ("fp32", "tf32", "bf16", "fp16")] == [1e-5, 1e-2, 2e-2, 2e-2]


def test_the_same_model_has_the_same_fingerprint_and_torchs_generator_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = taken(tiny.vit)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert taken(tiny.vit) == one
    assert len(one) == 16


def test_what_is_drawn_once_the_weights_are_there_changes_nothing() -> None:
    """Neither numbers that nobody uses nor a parameter that takes no part move the noise of others, or the input."""

    def draws_more(model: Any) -> None:
        torch.rand(3)
        model.unused = nn.Parameter(torch.rand(5))
        # Parameters come in the order in which they were added: this one is the first.
        model._parameters = {"unused": model._parameters.pop("unused"), **model._parameters}

    assert next(changed(draws_more)().named_parameters())[0] == "unused"
    assert taken(changed(draws_more)) == taken(tiny.vit)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("build", [tiny.vit, tiny.swin, tiny.convolutions])
def test_threads_and_memory_format_change_nothing_that_matters(build: Callable[[], nn.Module], dtype: Dtype) -> None:
    threads = torch.get_num_threads()
    setting = replace(SETTING, dtype=dtype)
    try:
        found = []
        for number in (1, 2):
            device.prepare(torch.device("cpu"), dtype, number)
            found.append(taken(build, setting))
    finally:
        torch.set_num_threads(threads)
    assert apart(*found) < within(dtype)
    assert apart(found[0], taken(build, replace(setting, channels_last=True))) < within(dtype)


def changed(change: Callable[[Any], object]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = tiny.vit()
        change(model)
        return model

    return build


def _other_weights(model: Any) -> None:
    for weight in model.parameters():
        if weight.dim() == 2:
            nn.init.trunc_normal_(weight, std=0.021)


def _resized(mode: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        table = model.pos_embed.detach()[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        grown = F.interpolate(F.interpolate(table, (6, 6), mode=mode), (4, 4), mode=mode)
        model.pos_embed.data[:, 1:] = grown.flatten(2).mT

    return change


@pytest.mark.parametrize(
    "change",
    [
        _other_weights,
        lambda model: setattr(model.blocks[0].mlp, "act", nn.GELU(approximate="tanh")),
        lambda model: setattr(model.blocks[0].mlp, "act", nn.ReLU()),
        lambda model: setattr(model.blocks[1].norm1, "eps", 1e-4),
        _resized("bilinear"),
    ],
)
def test_another_initialisation_activation_scale_or_position_table_is_seen(change: Callable[[Any], object]) -> None:
    assert apart(taken(tiny.vit), taken(changed(change))) > 5 * within("fp32")


def test_position_tables_resized_in_two_ways_differ() -> None:
    one, other = taken(changed(_resized("bilinear"))), taken(changed(_resized("bicubic")))
    assert apart(one, other) > 10 * within("fp32")


class ZeroHead(nn.Module):
    """Begins with a head of zeros, as some models do, on a body that a test chooses."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.body, self.act, self.head = nn.Linear(32, 8), act, nn.Linear(8, 5)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Any:
        return {"logits": self.head(self.act(self.body(x))), "shape": x.shape}


def test_a_head_of_zeros_hides_nothing_and_an_output_may_be_nested() -> None:
    one, other = taken(lambda: ZeroHead(nn.ReLU())), taken(lambda: ZeroHead(nn.Tanh()))
    assert math.hypot(*one) > 0
    assert apart(one, other) > 0.1


def test_the_norm_of_a_difference_is_kept_wherever_it_lies() -> None:
    """The ratio is that of a chi distribution of 16 degrees to 4: 0.5 to 1.6 but for one vector in 10,000."""
    generator = torch.Generator().manual_seed(7)
    for length in (1, 10, 1000):
        vector = torch.randn(length, generator=generator, dtype=torch.float64)
        assert math.hypot(*fingerprint.summary(vector)) == pytest.approx(float(vector.norm()), rel=0.6)
    one = torch.zeros(1000, dtype=torch.float64)
    one[617] = 3.0  # 16 times plus or minus 3 / 4
    assert {abs(value) for value in fingerprint.summary(one)} == {0.75}


class Gives(nn.Module):
    """Gives what it was told."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what


@pytest.mark.parametrize(
    ("what", "said"), [(torch.tensor([1.0, math.nan]), "not finite"), ("no tensor", "gives no tensor")]
)
def test_an_output_without_a_fingerprint_is_said(what: Any, said: str) -> None:
    with pytest.raises(NotSupported, match=said):
        taken(lambda: Gives(what))
