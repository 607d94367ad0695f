"""Layers found in models, and their outputs as maps of the image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vitbench import build, catalog
from vitbench.errors import NotDefined
from vitbench.inside import layers
from vitbench.inside.layers import Activation


def seen(model: nn.Module, x: Tensor, *, parts: bool = False) -> list[Activation]:
    found: list[Activation] = []
    with torch.no_grad(), layers.watched(model.eval(), found.append, parts=parts):
        model(x)
    return found


def activation(shape: tuple[int, ...], inputs: tuple[int, ...], **others: Any) -> Activation:
    options: dict[str, Any] = {"grids": (), "prefix": 0, "channels_last": False} | others
    return Activation(layer="x", kind="block", output=torch.zeros(shape), input_shape=inputs, **options)


# Names, and rows and columns of the maps, first and last: from the papers' strides and depths, at the catalog's input.
FAMILIES: dict[str, tuple[str, int, str, tuple[int, ...], str, tuple[int, ...]]] = {
    "vit": ("vit_ti16", 12, "embedding", (192, 14, 14), "blocks.11", (192, 14, 14)),
    "vit_hybrid": ("r26_vit_s32", 20, "embedding", (64, 56, 56), "blocks.11", (384, 7, 7)),
    "bit": ("bit_r50x1", 16, "embedding", (64, 112, 112), "stages.3.blocks.2", (2048, 14, 14)),
    "resnet": ("resnet50", 16, "embedding", (64, 56, 56), "layer4.2", (2048, 7, 7)),
    "regnet": ("regnety_16gf", 18, "embedding", (32, 112, 112), "s4.b1", (3024, 7, 7)),
    "efficientnet": ("efficientnet_l2", 88, "embedding", (136, 400, 400), "blocks.6.5", (1376, 25, 25)),
    "deit": ("deit_ti16_dist", 12, "embedding", (192, 14, 14), "blocks.11", (192, 14, 14)),
    "swin": ("swin_t", 12, "embedding", (96, 56, 56), "layers.3.blocks.1", (768, 7, 7)),
    "swinv2": ("swinv2_t_w8", 12, "embedding", (96, 64, 64), "layers.3.blocks.1", (768, 8, 8)),
    "pvt_v2": ("pvt_v2_b0", 8, "embedding", (32, 56, 56), "stages.3.blocks.1", (256, 7, 7)),
    "mvitv2": ("mvitv2_t", 10, "embedding", (96, 56, 56), "stages.3.blocks.1", (768, 7, 7)),
    "mvitv2, clips": ("mvitv2_s_16x4", 16, "embedding", (96, 8, 56, 56), "blocks.15", (768, 8, 7, 7)),
    "cvt": ("cvt_13", 13, "embedding", (64, 56, 56), "stages.2.blocks.9", (384, 14, 14)),
    "t2t_vit": ("t2t_vit_7", 7, "embedding", (256, 14, 14), "blocks.6", (256, 14, 14)),
    "pvt": ("pvt_tiny", 8, "embedding", (64, 56, 56), "stages.3.blocks.1", (512, 7, 7)),
    "coatnet": ("coatnet_0", 12, "embedding", (64, 112, 112), "stages.3.blocks.1", (768, 7, 7)),
    "cct": ("cct_2_3x2_32", 4, "tokenizer.conv_layers.0", (64, 16, 16), "classifier.blocks.1", (128, 8, 8)),
    "compact_cvt": (
        "compact_cvt_2_4_32",
        3,
        "tokenizer.conv_layers.0",
        (128, 8, 8),
        "classifier.blocks.1",
        (128, 8, 8),
    ),
    "vit_lite": ("vit_lite_2_4_32", 3, "tokenizer.conv_layers.0", (128, 8, 8), "classifier.blocks.1", (128, 8, 8)),
    "vivit": ("vivit_b_16x4_m1", 12, "embedding", (768, 8, 14, 14), "encoder.blocks.11", (768, 8, 14, 14)),
    "vivit, frames": (
        "vivit_b_16x2_avgpool",
        12,
        "embedding",
        (768, 16, 14, 14),
        "encoder.spatial.blocks.11",
        (768, 16, 14, 14),
    ),
    "vivit, axes": ("vivit_b_16x4_fsa", 12, "embedding", (768, 8, 14, 14), "encoder.blocks.11", (768, 8, 14, 14)),
    "timesformer": ("timesformer", 12, "embedding", (768, 8, 14, 14), "blocks.11", (768, 8, 14, 14)),
    "timesformer, frames": ("timesformer_space", 12, "embedding", (768, 8, 14, 14), "blocks.11", (768, 8, 14, 14)),
    "mvit": ("mvit_b_16_image", 16, "embedding", (96, 56, 56), "blocks.15", (768, 7, 7)),
    "mvit, clips": ("mvit_s_16x4", 16, "embedding", (128, 8, 28, 28), "blocks.15", (512, 8, 7, 7)),
}


def test_every_family_is_here() -> None:
    assert {name.partition(",")[0] for name in FAMILIES} == set(catalog.families())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_of_a_family_are_maps_of_its_input(family: str) -> None:
    name, blocks, first, first_map, last, last_map = FAMILIES[family]
    plan = build.plan(name)
    assert plan.input_shape is not None
    found = seen(plan.build("meta"), torch.empty(2, *plan.input_shape, device="meta"))
    assert sum(one.kind == "block" for one in found) == blocks
    maps = [(one.layer, tuple(one.map().shape)) for one in found]
    assert maps[0] == (first, (2, *first_map))
    assert maps[-1] == (last, (2, *last_map))
    sides = [shape[-1] for _, shape in maps]
    assert sides == sorted(sides, reverse=True)
    assert all(one.examples().shape[0] == 2 for one in found)


def test_tokens_of_frames_alone_have_no_places_in_them() -> None:
    plan = build.plan("vivit_b_16x4_fe")
    found = seen(plan.build("meta"), torch.empty(1, 3, 32, 224, 224, device="meta"))
    for one in found:
        if "temporal" in one.layer:
            with pytest.raises(NotDefined, match=r"encoder\.temporal\.blocks\.\d gives 1x9x768, which is no map of an"):
                one.map()
        else:
            assert one.map().shape == (1, 768, 8, 14, 14)


# Small enough to run; wider than high, so that rows and columns cannot be mistaken for each other.
SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "vit_ti16": ({"img_size": (64, 96), "depth": 2}, (3, 64, 96)),
    "r_vit_ti16": ({"img_size": (64, 96), "depth": 2}, (3, 64, 96)),
    "deit_ti16_dist": ({"img_size": (64, 96), "depth": 2}, (3, 64, 96)),
    "resnet18": ({}, (3, 64, 96)),
    "bit_r50x1": ({}, (3, 64, 96)),
    "regnety_002": ({}, (3, 64, 96)),
    "efficientnet_b0": ({}, (3, 64, 96)),
    "swin_t": ({"img_size": (56, 112), "embed_dim": 24, "depths": (2, 1, 1, 1)}, (3, 56, 112)),
    "swinv2_t_w8": ({"img_size": (64, 128), "embed_dim": 24, "depths": (2, 1, 1, 1)}, (3, 64, 128)),
    "pvt_v2_b0": ({}, (3, 64, 96)),
    "mvitv2_tiny": ({"img_size": 64}, (3, 64, 64)),
    "cvt_13": ({}, (3, 64, 96)),
    "t2t_vit_7": ({"img_size": (64, 96)}, (3, 64, 96)),
    "pvt_tiny": ({"img_size": (64, 96)}, (3, 64, 96)),
    "coatnet_0": ({"img_size": (64, 96)}, (3, 64, 96)),
    "cct_2_3x2_32": ({"img_size": (32, 48)}, (3, 32, 48)),
    "vit_lite_2_4_32": ({"img_size": (32, 48)}, (3, 32, 48)),
    "vivit_b_16x4_m1": ({"img_size": (32, 48), "num_frames": 8, "depth": 2, "embed_dim": 96}, (3, 8, 32, 48)),
    "vivit_b_16x4_fe": ({"img_size": (32, 48), "num_frames": 8, "depth": 2, "embed_dim": 96}, (3, 8, 32, 48)),
    "vivit_b_16x4_fsa": ({"img_size": (32, 48), "num_frames": 8, "depth": 2, "embed_dim": 96}, (3, 8, 32, 48)),
    "timesformer": ({"img_size": (32, 48), "num_frames": 4, "depth": 2, "embed_dim": 96}, (3, 4, 32, 48)),
    "timesformer_space": ({"img_size": (32, 48), "num_frames": 4, "depth": 2, "embed_dim": 96}, (3, 4, 32, 48)),
    "mvit_s_16x4": ({"img_size": (64, 96), "num_frames": 4}, (3, 4, 64, 96)),
}


def small(name: str) -> tuple[nn.Module, Tensor]:
    options, shape = SMALL[name]
    # timm's own door lets MViTv2's size through, which ours takes to follow by itself.
    create = timm.create_model if name == "mvitv2_tiny" else build.create_model
    model = create(name, **options).eval()
    return model, torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SMALL)
def test_examples_and_maps_belong_to_their_input(name: str) -> None:
    """The second input alone gives what stands at its place in the batch, in blocks and their parts."""
    model, x = small(name)
    whole, alone = seen(model, x, parts=True), seen(model, x[1:], parts=True)
    assert [one.layer for one in whole] == [one.layer for one in alone]
    assert any(one.kind == "part" for one in whole)
    for both, one in zip(whole, alone, strict=True):
        torch.testing.assert_close(both.examples()[1:], one.examples(), rtol=1e-2, atol=1e-3)
        if both.kind != "part" and "temporal.blocks" not in both.layer:
            torch.testing.assert_close(both.map()[1:], one.map(), rtol=1e-2, atol=1e-3)


# In these, norms or attention within the stem tell the whole image of every change.
GLOBAL_STEMS = {"r_vit_ti16", "t2t_vit_7"}


@pytest.mark.parametrize("name", SMALL)
def test_what_changes_in_a_corner_changes_that_corner_of_the_first_map(name: str) -> None:
    """Rows are rows, columns columns, frames frames, and no prefix token is taken for a patch."""
    model, x = small(name)
    changed = x.clone()
    if x.ndim == 5:
        changed[:, :, -1:, :4, -4:] += 1  # last frame, top right
    else:
        changed[:, :, :4, -4:] += 1  # top right
    before, after = (next(one for one in seen(model, inputs) if _has_map(one)).map() for inputs in (x, changed))
    change = (after - before).abs().mean(dim=(0, 1))
    moved = change > (0.5 * change.max() if name in GLOBAL_STEMS else 1e-6)
    rows, columns = moved.shape[-2:]
    assert moved[(*[-1] * (moved.ndim - 2), 0, -1)]
    far = moved[..., rows // 2 + 1 :, :].any() or moved[..., : columns // 2].any()
    assert not far
    if moved.ndim == 3:
        assert not moved[0].any()


def _has_map(one: Activation) -> bool:
    try:
        one.map()
    except NotDefined:
        return False
    return True


def test_channels_stand_second_or_last() -> None:
    image = (2, 3, 64, 96)
    assert activation((2, 7, 16, 24), image).map().shape == (2, 7, 16, 24)
    assert activation((2, 16, 24, 7), image).map().shape == (2, 7, 16, 24)
    # Both have the aspect; the model decides, and else torch's own order.
    assert activation((2, 6, 6, 6), (2, 3, 48, 48)).map().shape == (2, 6, 6, 6)
    x = torch.arange(6.0 * 6 * 6).view(1, 6, 6, 6)
    last = Activation(
        layer="x", kind="block", output=x, input_shape=(1, 3, 48, 48), grids=(), prefix=0, channels_last=True
    )
    assert torch.equal(last.map(), x.permute(0, 3, 1, 2))
    # Convolutions without padding cut rows off: SqueezeNet's 109 of 224.
    assert activation((2, 96, 109, 109), (2, 3, 224, 224)).map().shape == (2, 96, 109, 109)
    # 475 pixels at a stride of 32, rounded up each time, as in EfficientNet-L2.
    assert activation((2, 9, 15, 15), (2, 3, 475, 475)).map().shape == (2, 9, 15, 15)


def test_tokens_lie_on_a_grid_that_is_known() -> None:
    # Stated, with a prefix; 15 tokens are also 1 x 15, and 16 would have a whole root.
    assert activation((2, 16, 8), (2, 3, 48, 80), grids=((3, 5),), prefix=1).map().shape == (2, 8, 3, 5)
    # Of the image's aspect at a stride of 16.
    assert activation((2, 15, 8), (2, 3, 48, 80)).map().shape == (2, 8, 3, 5)
    # A stage without the class token that the model has elsewhere.
    assert activation((2, 15, 8), (2, 3, 48, 80), grids=((3, 5),), prefix=1).map().shape == (2, 8, 3, 5)
    tokens = torch.arange(2 * 16 * 1.0).view(2, 16, 1)
    found = Activation(
        layer="x",
        kind="block",
        output=tokens,
        input_shape=(2, 3, 48, 80),
        grids=((3, 5),),
        prefix=1,
        channels_last=False,
    ).map()
    assert found[0, 0].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15]]


@pytest.mark.parametrize(
    ("shape", "inputs", "others"),
    [
        ((2, 16, 8), (2, 3, 48, 80), {}),  # 16 = 4 x 4, but the image is no square
        ((2, 197, 8), (2, 3, 224, 224), {}),  # a token too many, of which the model says nothing
        ((2, 17, 8), (2, 3, 48, 80), {"grids": ((3, 4),), "prefix": 1}),
        ((2, 196, 8), (2, 3, 224, 224), {"in_order": False}),
        ((8, 49, 8), (2, 3, 224, 224), {}),  # windows
        ((2, 1, 8), (2, 3, 224, 224), {}),  # a class token alone
        ((2, 8), (2, 3, 224, 224), {}),
        ((2, 16, 196, 96), (2, 3, 224, 224), {}),  # NesT's blocks
        ((2, 9, 8), (2, 3, 32, 224, 224), {"grids": ((8, 14, 14),), "prefix": 1}),
        ((2, 1569, 8), (2, 3, 32, 224, 224), {"prefix": 1}),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], inputs: tuple[int, ...], others: dict[str, Any]) -> None:
    with pytest.raises(NotDefined, match="which is no map of an input"):
        activation(shape, inputs, **others).map()


def test_examples_have_the_batch_first() -> None:
    assert activation((8, 49, 2), (2, 3, 8, 8)).examples().shape == (2, 4 * 49 * 2)
    with pytest.raises(NotDefined, match="whose first axis is not the batch of 4"):
        activation((196, 4, 8), (4, 3, 8, 8), batch_second=True).examples()
    with pytest.raises(NotDefined, match="whose first axis is not the batch of 4"):
        activation((197, 8), (4, 3, 8, 8)).examples()


def test_another_grid_of_as_many_tokens_is_that_of_the_image() -> None:
    """16 tokens are 2 x 8 in the model's table, and 4 x 4 in the image that goes in."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 128), dynamic_img_size=True, depth=1)
    assert [one.map().shape[2:] for one in seen(model, torch.zeros(1, 3, 64, 64))] == [(4, 4), (4, 4)]
    assert [one.map().shape[2:] for one in seen(model, torch.zeros(1, 3, 32, 128))] == [(2, 8), (2, 8)]


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("vit_small_patch14_reg4_dinov2", 5), ("vit_base_patch16_siglip_224", 0), ("deit3_small_patch16_224", 1)],
)
def test_prefix_tokens_are_dropped(name: str, prefix: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    shape = model.pretrained_cfg["input_size"]  # type: ignore[index]  # timm's own dict
    last = seen(model, torch.empty(1, *shape, device="meta"))[-1]
    side = int(shape[-1]) // model.patch_embed.patch_size[0]  # type: ignore[union-attr, index]  # timm's PatchEmbed
    assert last.output.shape[1] == prefix + side**2
    assert last.map().shape[2:] == (side, side)


def test_a_model_that_unrolls_its_tokens_has_no_maps() -> None:
    with torch.device("meta"):
        model = timm.create_model("hiera_tiny_224")
    assert not any(map(_has_map, seen(model, torch.empty(1, 3, 224, 224, device="meta"))))


class Named(nn.Module):
    """A ViT as others write it: a class token by that name, blocks that give tuples."""

    class Layer(nn.Module):
        """Gives its output and another."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.dense = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return x + self.dense(self.norm(x)), None

    def __init__(self) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([self.Layer(), self.Layer()])})

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = torch.cat((self.class_token.expand(len(x), -1, -1), x), dim=1)
        for layer in self.encoder["layer"]:  # type: ignore[attr-defined]  # a module list
            x = layer(x)[0]
        return x[:, 0]


def test_layers_of_a_users_model() -> None:
    found = seen(Named(), torch.zeros(2, 3, 16, 24), parts=True)
    assert [one.layer for one in found] == [
        "embedding",
        *(f"encoder.layer.{number}{part}" for number in (0, 1) for part in (".norm", ".dense", "")),
    ]
    assert [tuple(one.map().shape) for one in found if one.kind != "part"] == [(2, 8, 2, 3)] * 3


class SequenceFirst(nn.Module):
    """Torch's Transformer layers, tokens before batch."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder(self.patches(x).flatten(2).permute(2, 0, 1))
        return out


def test_tokens_before_the_batch_are_no_examples() -> None:
    """8 tokens of 4 images could be taken for 4 examples of 2 tokens; no layer, and no part, is."""
    found = seen(SequenceFirst(), torch.zeros(4, 3, 16, 32), parts=True)
    assert {one.kind for one in found} == {"embedding", "block", "part"}
    for one in found:
        with pytest.raises(NotDefined, match="whose first axis is not the batch of 4"):
            one.examples()
        assert not _has_map(one)


def test_layers_of_a_chain_of_plain_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))
    found = seen(model, torch.zeros(2, 3, 16, 16))
    assert [one.layer for one in found] == ["0", "1", "2", "3"]
    assert [_has_map(one) for one in found] == [True, True, False, False]
    with pytest.raises(NotDefined, match="it is one module without others within"):
        seen(nn.Linear(2, 2), torch.zeros(1, 2))


class Twice(nn.Module):
    """One block, run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.blocks(x))
        if self.fails:
            raise RuntimeError("the model failed")
        return out


def test_a_module_that_runs_twice_is_two_layers() -> None:
    model = Twice()
    for _ in range(2):  # each pass begins to count anew
        assert [one.layer for one in seen(model, torch.randn(1, 3, 4, 4))] == ["blocks.0", "blocks.0 (2)"]


def test_hooks_are_off_again_after_an_error() -> None:
    model = Twice()
    model.fails = True
    with pytest.raises(RuntimeError, match="the model failed"):
        seen(model, torch.randn(1, 3, 4, 4))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_goes_into_a_stage_is_a_layer_where_it_is_new() -> None:
    """Swin merges patches between stages; a ResNet's stage gets what the last block gave."""

    def embedded(name: str, shape: tuple[int, ...]) -> Iterator[str]:
        found = seen(build.plan(name).build("meta"), torch.empty(1, *shape, device="meta"))
        return (one.layer for one in found if one.kind == "embedding")

    assert list(embedded("swin_t", (3, 224, 224))) == ["embedding", *(f"into layers.{n}.blocks.0" for n in (1, 2, 3))]
    assert list(embedded("resnet50", (3, 64, 64))) == ["embedding"]
    assert list(embedded("r26_vit_s32", (3, 224, 224))) == ["embedding", "into blocks.0"]
    # The same on real memory, which a freed tensor's successor could share.
    model, x = small("bit_r50x1")
    assert [one.layer for one in seen(model, x) if one.kind == "embedding"] == ["embedding"]
