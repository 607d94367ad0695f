"""The demonstration model: what comes with the package is small, whole, and trained.

Whether it is trained is told by what a trained ViT shows and one of random weights does not; each bound is held to fail on the
latter. Expected values without a source were measured on the shipped file with a margin.
"""

from __future__ import annotations

import math
import socket
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from vitbench import create_model
from vitbench.models.vit_demo import WEIGHTS

GRID, PITCH = 14, 8
PIXELS = GRID * PITCH
HEADS = 8
# Mean distance of two patches of the grid; it is 116.49 px where patches are 16 px wide, and half of that here.
UNIFORM = PITCH * np.mean(
    [math.hypot(a // GRID - b // GRID, a % GRID - b % GRID) for a in range(GRID * GRID) for b in range(GRID * GRID)]
)


@pytest.fixture(scope="module")
def trained() -> Any:
    return create_model("vit_demo", weights="pretrained").eval()


@pytest.fixture(scope="module")
def untrained() -> Any:
    return create_model("vit_demo").eval()


def scenes(count: int = 8) -> Tensor:
    """Gives discs before a sky that darkens, smooth as photographs are: (count, 3, 112, 112), as the model takes them."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:PIXELS, :PIXELS] / PIXELS
    images = np.empty((count, 3, PIXELS, PIXELS))
    for image in images:
        top, bottom = generator.uniform(-1, 1, (2, 3, 1, 1))
        image[:] = top + (bottom - top) * y
        for _ in range(6):
            centre_y, centre_x, radius = generator.uniform(0, 1), generator.uniform(0, 1), generator.uniform(0.05, 0.3)
            inside = np.hypot(y - centre_y, x - centre_x) < radius
            shade = 1 - 0.5 * np.hypot(y - centre_y, x - centre_x) / radius
            image[:] = np.where(inside, generator.uniform(-1, 1, (3, 1, 1)) * shade, image)
    return torch.from_numpy(images).float()


def cosines(model: Any) -> Tensor:
    """Gives the cosine of any two positions: (14, 14, 14, 14)."""
    table = torch.nn.functional.normalize(model.pos_embed[0, 1:].detach(), dim=-1)
    return (table @ table.mT).view(GRID, GRID, GRID, GRID)


def apart(down: int, right: int, table: Tensor) -> float:
    """Gives the mean cosine of positions so many rows and columns apart."""
    return float(
        np.mean(
            [
                table[row, column, row + down, column + right]
                for row in range(GRID - down)
                for column in range(GRID - right)
            ]
        )
    )


def share_of_28(model: Any) -> float:
    """Gives the share of the filters' variance in their first 28 principal components."""
    filters = model.patch_embed.proj.weight.detach().flatten(1).double().numpy()
    variance = np.linalg.eigvalsh(np.cov(filters, rowvar=False))[::-1]
    return float(variance[:28].sum() / variance.sum())


@torch.no_grad()
def distances(model: Any) -> np.ndarray[Any, Any]:
    """Gives the mean attention distance of each block and head in pixels, a patch at a time: (6, 8)."""
    captured: list[Tensor] = []
    hooks = [block.attn.qkv.register_forward_hook(lambda *call: captured.append(call[2])) for block in model.blocks]
    model(scenes())
    for hook in hooks:
        hook.remove()
    places = np.array([(row * PITCH, column * PITCH) for row in range(GRID) for column in range(GRID)], dtype=float)
    found = np.zeros((len(captured), HEADS))
    for block, output in enumerate(captured):
        size = output.shape[-1] // 3 // HEADS
        for head in range(HEADS):
            query, key = (
                output[..., start : start + size].double().numpy() for start in (head * size, (HEADS + head) * size)
            )
            logits = query @ key.transpose(0, 2, 1) / math.sqrt(size)
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))[:, 1:, 1:]
            weights /= weights.sum(axis=-1, keepdims=True)
            for place in range(GRID * GRID):
                away = np.hypot(*(places - places[place]).T)
                found[block, head] += (weights[:, place] @ away).mean() / GRID**2
    return found


def test_the_uniform_distance_is_known() -> None:
    assert pytest.approx(116.49 / 2, abs=0.005) == UNIFORM


def test_the_file_is_small_and_whole(trained: Any) -> None:
    assert WEIGHTS.stat().st_size <= 2_000_000
    stored = load_file(WEIGHTS)
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: tensor.shape for name, tensor in trained.state_dict().items()
    }
    assert all(tensor.dtype == torch.float16 and tensor.isfinite().all() for tensor in stored.values())
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in trained.state_dict().items())


def test_it_loads_without_a_network(monkeypatch: pytest.MonkeyPatch, trained: Any) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for model in (create_model("vit_demo", weights="pretrained"), timm.create_model("vit_demo", pretrained=True)):
        assert torch.equal(model.pos_embed, trained.pos_embed)  # type: ignore[arg-type]  # a ViT has one
    from_file: Any = create_model("vit_demo", weights=WEIGHTS)
    assert torch.equal(from_file.pos_embed, trained.pos_embed)


class TestIsTrained:
    """What chance does not bring about."""

    def test_near_positions_are_alike_and_far_ones_are_not(self, trained: Any, untrained: Any) -> None:
        table = cosines(trained)
        near, far = (apart(0, 1, table) + apart(1, 0, table)) / 2, (apart(0, 8, table) + apart(8, 0, table)) / 2
        assert near > 0.7
        assert far < 0.2
        assert abs(apart(0, 1, cosines(untrained))) < 0.1

    def test_rows_and_columns_are_visible(self, trained: Any, untrained: Any) -> None:
        """ViT paper, section 4.5: patches of the same row or column have similar embeddings."""

        def crossed(model: Any) -> float:
            table = cosines(model)
            return (apart(0, 5, table) + apart(5, 0, table)) / 2 - apart(3, 4, table)

        assert crossed(trained) > 0.05
        assert abs(crossed(untrained)) < 0.02

    def test_a_positions_next_of_kin_is_its_neighbour(self, trained: Any, untrained: Any) -> None:
        def beside(model: Any) -> float:
            table = cosines(model).reshape(GRID**2, GRID**2).clone().fill_diagonal_(-1)
            kin = table.argmax(dim=1)
            place = torch.arange(GRID**2)
            away = (place // GRID - kin // GRID).abs() + (place % GRID - kin % GRID).abs()
            return float((away == 1).float().mean())

        assert beside(trained) > 0.95
        assert beside(untrained) < 0.1

    def test_few_components_make_the_filters(self, trained: Any, untrained: Any) -> None:
        assert share_of_28(trained) > 0.8
        assert share_of_28(untrained) < 0.6

    def test_local_and_global_heads_stand_side_by_side(self, trained: Any, untrained: Any) -> None:
        """ViT paper, figure 7, right."""
        learnt, random = distances(trained), distances(untrained)
        assert learnt[0].min() < 0.4 * UNIFORM
        assert learnt.max() > 0.9 * UNIFORM
        assert learnt[1].max() - learnt[1].min() > 0.4 * UNIFORM
        assert learnt[-1].mean() > 1.3 * learnt[0].mean()
        assert random.min() > 0.95 * UNIFORM
        assert random.max() < 1.05 * UNIFORM


class TestContract:
    """What tests/models/test_contract.py holds of the catalog's native models."""

    @torch.inference_mode()
    def test_features_head_and_classes(self, untrained: Any) -> None:
        x = scenes(2)
        features = untrained.forward_features(x)
        assert features.shape == (2, 1 + GRID**2, 128)
        torch.testing.assert_close(untrained(x), untrained.forward_head(features))
        assert untrained(x).shape == (2, 128)
        classifying: Any = create_model("vit_demo", num_classes=3)
        assert classifying.get_submodule(classifying.default_cfg["classifier"]) is classifying.get_classifier()
        assert classifying(x).shape == (2, 3)

    def test_a_classifier_can_be_asked_for_on_trained_weights(self, trained: Any) -> None:
        model: Any = create_model("vit_demo", weights="pretrained", num_classes=3)
        assert torch.equal(model.pos_embed, trained.pos_embed)
        assert model.head.weight.shape == (3, 128)

    @torch.inference_mode()
    @pytest.mark.parametrize("size", [(224, 224), (64, 96)])
    def test_another_size_goes_in(self, size: tuple[int, int]) -> None:
        model: Any = create_model("vit_demo", weights="pretrained", img_size=size).eval()
        assert model.patch_embed.grid_size == (size[0] // PITCH, size[1] // PITCH)
        assert model(torch.zeros(1, 3, *size)).isfinite().all()

    def test_images_are_prepared_as_in_training(self, trained: Any) -> None:
        config = timm.data.resolve_model_data_config(trained)
        assert config["input_size"] == (3, PIXELS, PIXELS)
        assert (config["mean"], config["std"]) == ((0.5,) * 3, (0.5,) * 3)
        assert (config["crop_pct"], config["interpolation"]) == (1.0, "bilinear")
