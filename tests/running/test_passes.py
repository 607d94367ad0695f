"""A pass as a user would run it: what it computes, in which mode, dtype and layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from vitbench.errors import NotSupported
from vitbench.records import RunSetting
from vitbench.running import passes

SETTING = RunSetting(model="small", input_shape=(3, 8, 8), batch_size=2)


class Small(nn.Module):
    """Watches what it is given; in training it has two outputs, as distilled models have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        self.seen: list[tuple[torch.dtype, bool, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.norm(self.conv(x))
        last = x.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((features.dtype, torch.is_inference_mode_enabled(), self.training, last))
        out = self.head(features.mean((2, 3)))
        return (out, out) if self.training else out


def run(setting: RunSetting, times: int = 1) -> Small:
    torch.manual_seed(0)
    model = Small()
    assert passes.laid_out(model, setting) is model
    phases = passes.phases(model, passes.example(setting), setting)
    assert len(phases) == (3 if setting.mode == "train" else 1)
    for _ in range(times):
        for phase in phases:
            phase()
    return model


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({}, (torch.float32, True, False, False)),
        ({"mode": "train"}, (torch.float32, False, True, False)),
        ({"dtype": "bf16"}, (torch.bfloat16, True, False, False)),
        ({"dtype": "bf16", "amp": True}, (torch.bfloat16, True, False, False)),
        ({"channels_last": True}, (torch.float32, True, False, True)),
    ],
    ids=str,
)
def test_the_model_is_run_as_asked(changes: dict[str, object], seen: tuple[object, ...]) -> None:
    model = run(replace(SETTING, **changes))  # type: ignore[arg-type]  # fields of many types
    assert model.seen == [seen]
    weights = torch.float32 if changes.get("amp") or "dtype" not in changes else torch.bfloat16
    assert model.head.weight.dtype == weights
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last) == bool(changes.get("channels_last"))


def test_clips_have_a_channels_last_of_their_own() -> None:
    setting = replace(SETTING, input_shape=(3, 4, 8, 8), channels_last=True)
    model = passes.laid_out(nn.Conv3d(3, 4, 3), setting)
    assert passes.example(setting).is_contiguous(memory_format=torch.channels_last_3d)
    (weight, _) = model.parameters()
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_training_step_is_adamws() -> None:
    """Its first step moves each weight that has a gradient by the learning rate, after a decay by a hundredth of it."""
    torch.manual_seed(0)
    before = Small().head.bias
    after = run(replace(SETTING, mode="train")).head.bias
    assert after.grad is None
    torch.testing.assert_close((after - before * (1 - 1e-3 * 1e-2)).abs(), torch.full((5,), 1e-3), rtol=1e-3, atol=0)


def test_half_precision_by_autocast_learns() -> None:
    """Its loss is scaled, or gradients would be zeros."""
    torch.manual_seed(0)
    before = Small().conv.weight
    after = run(replace(SETTING, mode="train", dtype="fp16", amp=True), times=20).conv.weight
    assert not torch.equal(before, after)
    assert after.isfinite().all()


def test_checkpointing_is_timms_and_missing_where_the_model_has_none() -> None:
    asked: list[bool] = []

    class Willing(Small):
        def set_grad_checkpointing(self, enable: bool) -> None:
            asked.append(enable)

    setting = replace(SETTING, mode="train", grad_checkpointing=True)
    passes.laid_out(Willing(), setting)
    assert asked == [True]
    with pytest.raises(NotSupported, match="has no set_grad_checkpointing"):
        passes.laid_out(Small(), setting)
