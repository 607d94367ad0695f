"""The script that trains the demonstration model, on images drawn here and for a few steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import set_fused_attn

from scripts import train_demo
from vitbench import create_model


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """The script is for a process of its own: it sets threads, attention and torch's generator."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)
    set_fused_attn(True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name, size in (("a.png", (300, 200)), ("b.jpg", (100, 150)), ("more/c.webp", (224, 224))):
        pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "ATTRIBUTION.csv").write_text("file,license\n", encoding="utf-8")
    return tmp_path / "photos"


def run(folder: Path, output: Path, *arguments: str) -> Path:
    train_demo.main(["--images", str(folder), "--output", str(output), "--batch", "2", *arguments])
    return output


def test_it_writes_a_file_that_the_model_takes_and_says_what_was_learnt(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(folder, tmp_path / "demo.safetensors", "--steps", "2", "--every", "1")
    create_model("vit_demo", weights=output)
    assert output.stat().st_size < 2_000_000
    said = capsys.readouterr().out
    assert said.startswith("3 photographs, 2 steps of 2 on ")
    assert said.count("cosine of positions") == 2
    # Half of 116.49 px, the mean distance where patches are twice as wide.
    assert "distance if uniform: 58.2 px" in said


def test_the_same_seed_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    files = [
        run(folder, tmp_path / f"{number}.safetensors", "--steps", "2", "--seed", seed).read_bytes()
        for number, seed in enumerate(("0", "0", "1"))
    ]
    assert files[0] == files[1] != files[2]


def test_photographs_become_squares(folder: Path) -> None:
    photos = train_demo.read_photos(folder)
    assert photos.shape == (3, 3, 224, 224)
    assert photos.dtype == torch.uint8


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no photographs in"):
        train_demo.main(["--images", str(tmp_path)])


def test_a_crop_is_part_of_its_photograph() -> None:
    """Of a picture whose colour tells the place, a crop's colours rise, or fall where it is mirrored, by its share."""
    ramp = torch.arange(224, dtype=torch.uint8).expand(3, 224, 224)
    generator = np.random.default_rng(0)
    for _ in range(20):
        part = train_demo.crop(ramp, 112, generator).float()
        assert part.shape == (3, 112, 112)
        # 15 % of the area at a ratio of 3 to 4 is a width of 75 pixels; some 2 are lost to the centres of pixels.
        assert 72 <= (part[0, 0, -1] - part[0, 0, 0]).abs() <= 224


@torch.no_grad()
def test_the_loss_is_of_corrupted_patches_alone() -> None:
    """Without corruption nothing is asked for, with it the mean absolute error by hand."""
    model: Any = create_model("vit_demo")
    training = train_demo.Training(model, 5).eval()
    for parameter in (training.pixels.weight, training.pixels.bias, training.which.weight, training.which.bias):
        parameter.zero_()
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) + 1
    draws = torch.ones(3, 2, 196)
    draws[0, 0, 15] = 0.0  # the first image's patch of row 1 and column 1
    error, entropy = training(images, torch.tensor([0, 1]), draws, torch.arange(392), 196)
    # Nothing is predicted, so the error is the mean of the pixels.
    torch.testing.assert_close(error, images[0, :, 8:16, 8:16].mean())
    torch.testing.assert_close(entropy, torch.tensor(5.0).log())


@torch.no_grad()
def test_masked_patches_are_not_seen() -> None:
    model: Any = create_model("vit_demo")
    training = train_demo.Training(model, 5).eval()
    first, second = torch.rand(2, 2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    draws = torch.zeros(3, 2, 196)  # all corrupted, all masked
    seen: list[torch.Tensor] = []
    hook = model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    for images in (first, second):
        training(images, torch.tensor([0, 1]), draws, torch.arange(392), 196)
    hook.remove()
    torch.testing.assert_close(seen[0], seen[1])


def test_position_table_and_filters_have_groups_of_their_own() -> None:
    model: Any = create_model("vit_demo")
    training = train_demo.Training(model, 5)
    groups = train_demo.optimizer(training).param_groups
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped}) == len(list(training.parameters()))
    assert groups[0]["params"] == [model.pos_embed, training.mask]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.15, 0.05, 0.0]
