"""Building models: names, sizes, classes, seeds, devices, factories, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import vitbench
from vitbench import build
from vitbench.errors import BadInput, NotSupported, UnknownName

TINY = {"embed_dim": 48, "depth": 1, "num_heads": 3}


def tiny(**options: object) -> nn.Module:
    return vitbench.create_model("deit_ti16", **TINY, **options)  # type: ignore[arg-type]  # mixed keyword arguments


def test_a_seed_gives_the_same_weights_and_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, third = tiny(seed=1), tiny(seed=1), tiny(seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [model.get_parameter("head.weight") for model in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_classes_are_the_official_ones_unless_given() -> None:
    assert tiny()(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert tiny(num_classes=7)(torch.zeros(1, 3, 224, 224)).shape == (1, 7)
    assert build.plan("cct_2_3x2_32").build("meta").num_classes == 10
    assert build.plan("swinv2_b_w12").build("meta").num_classes == 21841


@pytest.mark.parametrize("size", [96, (64, 128)])
def test_the_position_table_follows_the_image_size(size: int | tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    model = tiny(img_size=size)
    # One class token and a token for each patch of 16 x 16.
    assert model.get_parameter("pos_embed").shape == (1, 1 + (height // 16) * (width // 16), 48)
    assert model(torch.zeros(1, 3, height, width)).shape == (1, 1000)


def test_a_size_published_with_another_window_is_that_other_row() -> None:
    plan = build.plan("swin_b", img_size=384)
    assert plan.variant is not None
    assert plan.variant.name == "swin_b_384"
    # Window 12: 23 x 23 relative offsets, 4 heads in the first stage.
    assert plan.build("meta").get_parameter("layers.0.blocks.0.attn.relative_position_bias_table").shape == (529, 4)


def test_a_fully_convolutional_model_takes_another_size_as_it_is() -> None:
    plan = build.plan("resnet50", img_size=(160, 192))
    assert plan.input_shape == (3, 160, 192)
    assert plan.build("meta")(torch.zeros(1, 3, 160, 192, device="meta")).shape == (1, 1000)


def test_timm_names_are_models_too() -> None:
    assert build.plan("vit_base_patch16_224.augreg_in21k").input_shape == (3, 224, 224)
    assert isinstance(build.plan("resnet18").build("meta"), timm.models.ResNet)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("swin_b", {"img_size": 225}, "patches of 4x4 do not tile them; 224x224 or 228x228 would do"),
        ("vit_b16", {"img_size": (224, 230)}, "patches of 16x16 do not tile"),
        ("vit_b16", {"img_size": 0}, "image size must be 1 or more"),
        ("vit_b16", {"img_size": -224}, "image size must be 1 or more"),
        ("vit_b16", {"num_classes": -1}, "num_classes must be 0"),
        ("vit_b16", {"no_such_option": 1}, "vit_b16 cannot be built .* no_such_option"),
        ("vit_b16", {"input_shape": (1, 224, 224)}, "takes an input like 3x224x224"),
        ("vit_b16", {"input_shape": (3, 0, 224)}, "each 1 or more"),
    ],
)
def test_what_a_model_cannot_take_is_one_sentence(name: str, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        build.plan(name, **options).build("meta")  # type: ignore[arg-type]  # mixed keyword arguments


def test_frames_of_an_image_model_are_refused() -> None:
    with pytest.raises(NotSupported, match="takes images, not clips"):
        build.plan("vit_b16", num_frames=8)


def test_an_unknown_name_has_near_misses_from_timm_as_well() -> None:
    with pytest.raises(UnknownName, match="resnet50"):
        build.plan("resnet5O")


class TestFactory:
    """`package.module:factory`."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_models_for_tests.py").write_text(
            "import torch\n"
            "from torch import nn\n"
            "def net(width=8):\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, width))\n"
            "def numbers():\n"
            "    return nn.Linear(int(torch.ones(3).sum().item()), 2)\n"
            "def broken():\n"
            "    raise RuntimeError('no luck')\n"
            "def leaves():\n"
            "    raise SystemExit(3)\n"
            "def nothing():\n"
            "    return 42\n"
            "constant = 3\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))

    def test_it_is_found_in_the_current_folder(self) -> None:
        model = vitbench.create_model("my_models_for_tests:net", width=5)
        assert model(torch.zeros(2, 3, 4, 4)).shape == (2, 5)

    def test_one_that_needs_numbers_while_it_builds_is_built_with_them(self) -> None:
        assert build.plan("my_models_for_tests:numbers").build("meta").get_parameter("weight").shape == (2, 3)

    @pytest.mark.parametrize(
        ("address", "sentence"),
        [
            ("my_models_for_tests:broken", "cannot be built: RuntimeError: no luck"),
            ("my_models_for_tests:leaves", "cannot be built: SystemExit: 3"),
            ("my_models_for_tests:nothing", "gave a int, not a torch.nn.Module"),
            ("my_models_for_tests:constant", "is a int, not something to call"),
            ("my_models_for_tests:absent", "has no 'absent'"),
            ("no_such_module_anywhere:net", "Cannot import 'no_such_module_anywhere'"),
        ],
    )
    def test_a_bad_one_is_one_sentence(self, address: str, sentence: str) -> None:
        with pytest.raises(BadInput, match=sentence):
            build.plan(address).build("meta")

    def test_its_pretrained_weights_are_not_ours_to_load(self) -> None:
        with pytest.raises(NotSupported, match="your own factory"):
            vitbench.create_model("my_models_for_tests:net", weights="pretrained")


@pytest.mark.parametrize("name", ["cct_2_3x2_32", "r50_vit_b32"])
def test_pretrained_of_a_model_that_nobody_released_is_refused(name: str) -> None:
    with pytest.raises(NotSupported, match="No pretrained weights"):
        vitbench.create_model(name, weights="pretrained")


def test_pretrained_asks_timm_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def create_model(name: str, **options: object) -> nn.Module:
        asked.update(options, name=name)
        return nn.Identity()

    monkeypatch.setattr(timm, "create_model", create_model)
    vitbench.create_model("swin_b", weights="pretrained")
    assert asked == {"name": "swin_base_patch4_window7_224", "pretrained": True, "num_classes": 1000}


def test_weights_need_a_device_with_memory() -> None:
    with pytest.raises(NotSupported, match="meta device"):
        vitbench.create_model("vit_b16", weights="pretrained", device="meta")


@pytest.mark.gpu
def test_a_model_goes_to_the_accelerator_with_the_weights_of_the_seed() -> None:
    if not torch.accelerator.is_available():
        pytest.skip("no accelerator")
    device = torch.accelerator.current_accelerator()
    assert device is not None
    there = tiny(device=device).get_parameter("head.weight")
    assert there.device.type == device.type
    assert torch.equal(there.cpu(), tiny().get_parameter("head.weight"))


def test_a_tagged_name_of_a_clip_knows_its_frames() -> None:
    """Timm's metadata have three numbers for clips too."""
    assert build.plan("timesformer_hr.k400").input_shape == (3, 16, 448, 448)
    assert build.plan("timesformer.k400", num_frames=16).input_shape == (3, 16, 224, 224)
    assert build.plan("mvit_b_16_image.in1k").input_shape == (3, 224, 224)
