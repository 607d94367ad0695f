"""What native models share, on a model of one token."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitbench.parts.classifier import Classifier, resampled_square


class Mean(Classifier):
    """Classifies the mean of each channel."""

    def __init__(self, extents: tuple[int, ...] = (4, 4), num_classes: int = 5, drop_rate: float = 0.0) -> None:
        super().__init__(extents, 3, num_classes, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        self.check(x)
        return x.flatten(2).mean(2)[:, None]


def test_it_classifies_the_first_token() -> None:
    model: Any = Mean().eval()
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(model(x), model.head(x.mean((2, 3))))
    torch.testing.assert_close(model.forward_head(model.forward_features(x), pre_logits=True), x.mean((2, 3)))


@pytest.mark.parametrize(("extents", "frames"), [((4, 4), None), ((8, 4, 4), 8)])
def test_frames_are_those_of_clips(extents: tuple[int, ...], frames: int | None) -> None:
    assert Mean(extents).num_frames == frames


def test_the_classifier_is_replaced_where_the_model_is() -> None:
    model: Any = Mean().double()
    model.reset_classifier(7)
    assert (model.num_classes, model.get_classifier().weight.shape) == (7, (7, 3))
    assert model.get_classifier().weight.dtype == torch.float64
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert isinstance(Mean(num_classes=0).head, nn.Identity)
    with pytest.raises(ValueError, match="What Mean classifies is part of the model, so it cannot be 'max'"):
        model.reset_classifier(7, "max")


def test_dropout_is_the_classifiers_and_of_training() -> None:
    model: Any = Mean(drop_rate=1.0)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(model(x), model.get_classifier().bias.expand(2, -1))
    assert not torch.equal(model.eval()(x), model.get_classifier().bias.expand(2, -1))


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (1, 3, 2, 4, 4)])
def test_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="for inputs of 4x4, not .*; build it with the img_size and num_frames"):
        Mean()(torch.zeros(shape))


def test_a_square_table_is_resampled() -> None:
    table = torch.cat((torch.tensor([9.0]), torch.arange(4.0))).view(1, 5, 1)
    found = resampled_square("places", table, (2, 4), 1, "nearest")
    assert found.flatten().tolist() == [9, 0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="places holds 5 places, which no square grid gives"):
        resampled_square("places", table, (2, 4), 0, "nearest")


def test_what_lacks_features_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        types.new_class("Unfinished", (Classifier,))((4, 4), 3, 5, 0.0)
