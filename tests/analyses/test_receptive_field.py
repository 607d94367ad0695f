"""Effective receptive fields: where gradients can be, and cannot; the numbers; the pictures."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy
import pytest
import timm
import torch
from torch import Tensor, nn

from vitbench import build
from vitbench.analyses import receptive_field
from vitbench.drawing import pictures
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import Field


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def field(row: Field) -> numpy.ndarray[Any, Any]:
    return numpy.array(row.values).reshape(row.tile_height, row.tile_width)


def fields(model: nn.Module, x: Tensor, **options: Any) -> dict[str, Field]:
    return {row.layer: row for row in receptive_field.analyze(model, [x], **options).rows}


def where(row: Field) -> tuple[int, int, int, int]:
    """Gives the rows and columns that the field begins at and ends before."""
    down, across = (numpy.flatnonzero(field(row).any(axis=axis)) for axis in (1, 0))
    return int(down[0]), int(down[-1]) + 1, int(across[0]), int(across[-1]) + 1


def test_an_embedded_patch_knows_its_own_pixels_alone() -> None:
    """The middle of 14 x 14 patches of 16 is (7, 7): rows and columns 112 to 127, and every pixel of them."""
    found = fields(build.create_model("vit_ti16", depth=1), images(1, 3, 224, 224))
    row = found["embedding"]
    assert row.grid == (14, 14)
    assert row.middle == (7, 7)
    assert where(row) == (112, 128, 112, 128)
    assert (field(row)[112:128, 112:128] > 0).all()
    assert row.side_99_px == 16
    # Attention reaches everywhere.
    assert (field(found["blocks.0"]) > 0).all()


def test_a_window_ends_the_field_of_the_first_block() -> None:
    """Windows of 7 x 7 patches of 4: (28, 28) of 56 x 56 lies in the one of pixels 112 to 139; the second block's is shifted."""
    model = build.create_model("swin_t", embed_dim=24, depths=(2, 1, 1, 1))
    found = fields(model, images(1, 3, 224, 224), channels=4)
    assert where(found["embedding"]) == (112, 116, 112, 116)
    assert where(found["layers.0.blocks.0"]) == (112, 140, 112, 140)
    assert (field(found["layers.0.blocks.0"])[112:140, 112:140] > 0).all()
    # Shifted by 3 patches, its window begins at patch 24, and so in the window of the first block before.
    assert where(found["layers.0.blocks.1"]) == (84, 140, 84, 140)


def test_convolutions_reach_as_far_as_their_kernels() -> None:
    """Place 4 of 8, two kernels of 3 x 3 with strides 2 and 1: pixels 2 x 4 - 3 to 2 x 4 + 3."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1))
    found = fields(model, images(2, 3, 16, 16))
    assert where(found["0"]) == (7, 10, 7, 10)
    assert where(found["1"]) == (5, 12, 5, 12)


def test_a_gradient_worked_out_by_hand() -> None:
    """A linear map of patches: the gradient of the mean channel is the mean filter; of random channels, theirs."""
    patches = nn.Conv2d(3, 4, 2, 2)
    model, weight = nn.Sequential(patches, nn.Identity()), patches.weight.detach()
    row = fields(model, images(3, 3, 4, 6))["0"]
    assert row.middle == (1, 1)
    assert row.images == 3
    expected = numpy.zeros((4, 6))
    expected[2:4, 2:4] = weight.mean(dim=0).abs().sum(dim=0)
    numpy.testing.assert_allclose(field(row), expected, rtol=1e-4, atol=1e-7)
    row = fields(model, images(3, 3, 4, 6), channels=9)["0"]  # there are four
    expected[2:4, 2:4] = weight.abs().sum(dim=1).mean(dim=0)
    numpy.testing.assert_allclose(field(row), expected, rtol=1e-4, atol=1e-7)
    assert row.over_channels == "9 at random"


def test_the_other_variant_by_hand() -> None:
    """ReLU of the output and of the gradient, sums over channels and colours, mean over images, logarithm, maximum 1."""
    patches, mixed = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 5, 1)
    model, x = nn.Sequential(patches, mixed), images(3, 3, 4, 4)
    found = fields(model, x, variant="replknet")
    assert list(found) == ["1"]
    assert list(fields(model, x, variant="replknet", names=["0", "1"])) == ["0", "1"]
    weight = torch.einsum("oi,icyx->ocyx", mixed.weight.detach().flatten(1), patches.weight.detach())
    with torch.no_grad():
        on = (model(x)[:, :, 1, 1] > 0).float()
    gradient = torch.einsum("bo,ocyx->bcyx", on, weight).relu().sum(dim=1).mean(dim=0)
    scaled = (gradient + 1).log10()
    expected = numpy.zeros((4, 4))
    expected[2:, 2:] = scaled / scaled.max()
    numpy.testing.assert_allclose(field(found["1"]), expected, rtol=1e-4, atol=1e-6)
    assert found["1"].over_channels == "sum of all"


def test_the_stream_is_taken_before_the_last_norm() -> None:
    """Behind a LayerNorm, the mean over channels is a constant; before it, it is not."""
    model = build.create_model("vit_ti16", img_size=32, depth=1, embed_dim=24, num_heads=2).eval()
    last = fields(model, images(1, 3, 32, 32))["blocks.0"]
    x = images(1, 3, 32, 32).requires_grad_(True)
    normed = model.forward_features(x)[0, 1:].unflatten(0, (2, 2))[1, 1]  # type: ignore[operator]  # a method
    (gradient,) = torch.autograd.grad(normed.mean(), x)
    assert gradient.abs().sum() < 1e-4 * sum(last.values)


def test_layers_whose_mean_channel_never_changes_are_left_out_and_said_to_be() -> None:
    """PVT's patches are normed: their mean channel has a gradient of rounding alone, random channels have one of their own."""
    model, x = build.create_model("pvt_tiny", img_size=32), images(1, 3, 32, 32)
    found = receptive_field.analyze(model, [x], names=["embedding", "stages.0.blocks.0"])
    assert found.notes == (
        "Left out: the mean over the channels of embedding is the same for every image, as behind a norm: take random channels.",
    )
    assert [row.layer for row in found.rows] == ["stages.0.blocks.0"]
    found = receptive_field.analyze(model, [x], names=["embedding"], channels=3)
    assert where(found.rows[0]) == (16, 20, 16, 20)


def test_all_layers_of_one_graph_are_those_of_graphs_of_their_own() -> None:
    model = build.create_model("vit_ti16", img_size=32, depth=3, embed_dim=24, num_heads=2)
    together = fields(model, images(2, 3, 32, 32))
    for name, row in together.items():
        alone = fields(model, images(2, 3, 32, 32), names=[name])[name]
        numpy.testing.assert_allclose(alone.values, row.values, rtol=1e-4, atol=1e-9)


def test_what_a_later_layer_does_in_place_is_not_in_the_field() -> None:
    linear = nn.Conv2d(3, 4, 1)
    row = fields(nn.Sequential(linear, nn.ReLU(inplace=True)), images(1, 3, 4, 4))["0"]
    expected = linear.weight.detach().mean(dim=0).abs().sum()
    assert field(row)[2, 2] == pytest.approx(float(expected), rel=1e-4)


def test_the_number_of_images_is_the_papers_and_can_be_another() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU())
    x = images(60, 3, 4, 4)
    assert receptive_field.analyze(model, x.split(7)).rows[0].images == 32
    assert receptive_field.analyze(model, [x], variant="replknet").rows[0].images == 50
    assert receptive_field.analyze(model, [x], limit=3).rows[0].images == 3
    first = receptive_field.analyze(model, x[:3].split(2)).rows
    assert first == receptive_field.analyze(model, [x], limit=3).rows


def test_random_channels_follow_from_the_seed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 2, 2), nn.ReLU())
    one, same, other = (fields(model, images(1, 3, 4, 4), channels=2, seed=seed)["0"] for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.BatchNorm2d(4)).train()
    model[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = images(2, 3, 4, 4)
    receptive_field.analyze(model, [x])
    assert not x.requires_grad
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_clip_has_a_field_in_time_too() -> None:
    """Frame by frame, a clip's field is in the middle frame alone; over all tokens, everywhere."""
    options: dict[str, Any] = {"img_size": 32, "num_frames": 4, "depth": 1, "embed_dim": 24, "num_heads": 2}
    x = images(1, 3, 4, 32, 32)
    found = fields(build.create_model("timesformer_space", **options), x)
    assert found["blocks.0"].grid == (4, 2, 2)
    assert found["blocks.0"].middle == (2, 1, 1)
    assert found["blocks.0"].frame_shares == (0, 0, 1, 0)
    joint = fields(build.create_model("timesformer_joint", **options), x)["blocks.0"]
    assert sum(joint.frame_shares) == pytest.approx(1)
    assert min(joint.frame_shares) > 0
    assert fields(nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU()), images(1, 3, 4, 4))["0"].frame_shares == ()


def test_layers_without_places_are_left_out_and_said_to_be() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(), nn.Linear(16, 3))
    found = receptive_field.analyze(model, [images(1, 3, 4, 4)])
    assert [row.layer for row in found.rows] == ["0"]
    assert found.notes == (
        "Left out: 1 gives 1x16, which is no map of an input of 1x3x4x4.",
        "Left out: 2 gives 1x3, which is no map of an input of 1x3x4x4.",
    )
    with pytest.raises(NotDefined, match="0 gives 1x48, which is no map"):
        receptive_field.analyze(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), [images(1, 3, 4, 4)])


def test_a_field_of_zeros_has_no_squares() -> None:
    blind = nn.Conv2d(3, 4, 2, 2)
    nn.init.zeros_(blind.weight)
    found = receptive_field.analyze(nn.Sequential(blind), [images(1, 3, 4, 4)])
    assert found.rows[0].side_50_px is None
    assert found.notes == ("The field of 0 is 0 everywhere.",)
    assert receptive_field.table({"m": found}).columns[3].text(receptive_field.table({"m": found}).rows[0]) == "-"


def test_what_cannot_be_asked_for() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU()), images(1, 3, 4, 4)
    for options in ({"channels": 0}, {"channels": 4, "variant": "replknet"}):
        with pytest.raises(BadInput, match="channels is a number of 1 or more, and of the raghu variant"):
            receptive_field.analyze(model, [x], **options)
    with pytest.raises(BadInput, match="no layer 'blocks'; its blocks are 0, 1"):
        receptive_field.analyze(model, [x], names=["blocks"])
    with pytest.raises(BadInput, match="There are no images"):
        receptive_field.analyze(model, [])
    with pytest.raises(BadInput, match="The images must be of one size"):
        receptive_field.analyze(model, [x, images(1, 3, 8, 8)])


SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "vit_ti16": ({"img_size": (32, 64), "depth": 1}, (3, 32, 64)),
    "r_vit_ti16": ({"img_size": (32, 64), "depth": 1}, (3, 32, 64)),
    "deit_ti16_dist": ({"img_size": (32, 64), "depth": 1}, (3, 32, 64)),
    "resnet18": ({}, (3, 32, 64)),
    "resnetv2_18": ({}, (3, 32, 64)),
    "regnety_002": ({}, (3, 32, 64)),
    "efficientnet_b0": ({}, (3, 32, 64)),
    # At random, the branches of Swin V2 are 0, and its patches normed.
    "swinv2_t_w8, 4 channels": ({"img_size": (64, 128), "embed_dim": 24, "depths": (1, 1, 1, 1)}, (3, 64, 128)),
    "pvt_v2_b0": ({}, (3, 32, 64)),
    "mvitv2_tiny": ({"img_size": 64}, (3, 64, 64)),
    "cvt_13": ({}, (3, 32, 64)),
    "t2t_vit_7": ({"img_size": (32, 64)}, (3, 32, 64)),
    "pvt_tiny": ({"img_size": (32, 64)}, (3, 32, 64)),
    "coatnet_0": ({"img_size": (32, 64)}, (3, 32, 64)),
    "cct_2_3x2_32": ({"img_size": (16, 32)}, (3, 16, 32)),
    "compact_cvt_2_4_32": ({"img_size": (16, 32)}, (3, 16, 32)),
    "vit_lite_2_4_32": ({"img_size": (16, 32)}, (3, 16, 32)),
    "vivit_b_16x4_fe": ({"img_size": 32, "num_frames": 8, "depth": 1, "embed_dim": 24}, (3, 8, 32, 32)),
    "mvit_s_16x4": ({"img_size": (32, 64), "num_frames": 4}, (3, 4, 32, 64)),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_family_has_fields_around_its_middle(name: str) -> None:
    options, shape = SMALL[name]
    architecture, _, channels = name.partition(", ")
    # timm's own door lets MViTv2's size through, which ours takes to follow by itself.
    create = timm.create_model if architecture == "mvitv2_tiny" else build.create_model
    model = create(architecture, **options)
    found = receptive_field.analyze(model, [images(1, *shape)], channels=4 if channels else None)
    assert len(found.rows) > 1
    for row in found.rows:
        assert (row.tile_height, row.tile_width) == shape[-2:]
        assert row.side_50_px is not None
        assert row.side_20_px <= row.side_50_px <= row.side_99_px  # type: ignore[operator]  # all or none are there
        middle = field(row)[_around(row, 0)]
        assert middle.sum() > 0
    first = found.rows[0]
    # The strongest pixel of the first map's middle is at its place, or what a padded convolution sees before it.
    assert (
        field(first).argmax()
        in numpy.arange(first.tile_height * first.tile_width).reshape(shape[-2:])[_around(first, 1)]
    )
    # Of what was normed and not trained since, the mean channel is a constant; encoders of frames have no places.
    assert all("as behind a norm" in note or "temporal" in note for note in found.notes)
    assert sum("as behind a norm" in note for note in found.notes) < len(found.rows)


def _around(row: Field, margin: int) -> tuple[slice, slice]:
    """Gives the pixels of the middle's place, and so many places more on each side."""
    slices = []
    for extent, places, place in zip((row.tile_height, row.tile_width), row.grid[-2:], row.middle[-2:], strict=True):
        side = extent // places
        slices.append(slice(max(0, (place - 1 - margin) * side), (place + 1 + margin) * side))
    return slices[0], slices[1]


def test_squares_hold_their_share() -> None:
    """An even field of 8 x 8 around its middle: a quarter is 4 x 4, half takes 6 x 6, all but nothing 8 x 8."""
    even = numpy.ones((8, 8))
    assert receptive_field.squares(even, (4, 4), [0.25, 0.26, 0.5, 0.99, 1]) == [4, 6, 6, 8, 8]
    # Around a pixel's middle, sides are odd; beyond the border there is nothing.
    assert receptive_field.squares(numpy.ones((3, 3)), (1.5, 1.5), [0.1, 0.2, 1]) == [1, 3, 3]
    assert receptive_field.squares(numpy.ones((2, 2)), (2, 2), [0.25, 1]) == [2, 4]
    assert receptive_field.squares(numpy.zeros((2, 2)), (1, 1), [0.5]) == [None]
    wide = numpy.zeros((4, 8))
    wide[2, 0] = wide[2, 4] = 1
    assert receptive_field.squares(wide, (2.5, 4.5), [0.5, 0.51]) == [1, 9]


def _finding(values: tuple[float, ...], layers: int = 2, variant: str = "raghu") -> receptive_field.ReceptiveField:
    return receptive_field.ReceptiveField(
        rows=tuple(
            Field(
                index=number,
                layer=f"$layer$.{number}",
                side_20_px=2,
                side_30_px=4,
                side_50_px=4,
                side_99_px=8,
                grid=(2, 2),
                middle=(1, 1),
                images=1,
                variant=variant,
                over_channels="mean of all",
                frame_shares=(),
                tile_height=2,
                tile_width=3,
                values=values,
            )
            for number in range(layers)
        ),
        notes=("A note.",),
    )


def test_long_names_are_cut_where_steps_begin() -> None:
    finding = _finding((0, 1, 2, 3, 4, 5))
    named = dataclasses.replace(finding.rows[0], layer="patch_embed.backbone.stages.0.blocks.0")
    figure = receptive_field.draw({"word " * 40: receptive_field.ReceptiveField(rows=(named,))})
    assert figure.axes[0].get_title() == "...stages.0.blocks.0"
    assert figure.texts[0].get_text().endswith("word ...")
    named = dataclasses.replace(named, layer="a" * 40)
    figure = receptive_field.draw({"a": receptive_field.ReceptiveField(rows=(named,))})
    assert figure.axes[0].get_title() == "..." + "a" * 23


def test_the_picture_has_a_tile_a_layer_and_a_block_a_model() -> None:
    one, many = _finding((0, 1, 4, 9, 16, 25)), _finding((0, 1, 2, 3, 4, 0.5), 9, "replknet")
    figure = receptive_field.draw({"$a$": one, "b": many})
    assert [ax.get_title() for ax in figure.axes] == [f"$layer$.{n}" for n in (*range(2), *range(9))]
    assert numpy.asarray(figure.axes[0].images[0].get_array()).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert numpy.asarray(figure.axes[2].images[0].get_array()).tolist() == [[0, 1, 2], [3, 4, 0.5]]
    assert figure.axes[2].images[0].get_clim() == (0, 4)
    texts = [text.get_text() for text in figure.texts]
    assert texts == [
        "$a$",
        "b",
        "Brightness: root of the gradient or log10(gradient + 1), 0 to the tile's own maximum.",
    ]
    boxes = [ax.get_position() for ax in figure.axes]
    assert all(box.x0 >= 0 and box.x1 <= 1 and box.y0 >= 0 and box.y1 <= 1 for box in boxes)
    assert not any(a.overlaps(b) for number, a in enumerate(boxes) for b in boxes[:number])


@pytest.mark.parametrize("ending", pictures.TIMELESS)
def test_the_same_numbers_make_the_same_picture(ending: str) -> None:
    finding = {"a": _finding((0, 1, 2, 3, 4, 5))}
    one, other = (pictures.rendered(receptive_field.draw(finding), ending) for _ in range(2))
    assert one == other


def test_the_table_has_the_sides() -> None:
    made = receptive_field.table({"m": _finding((0, 1, 2, 3, 4, 5))})
    headings = ["Model", "Layer", "Grid", "20 % in px", "30 % in px", "50 % in px", "99 % in px"]
    assert [column.heading for column in made.columns] == headings
    assert [column.text(made.rows[1]) for column in made.columns] == ["m", "$layer$.1", "2x2", "2", "4", "4", "8"]
    assert made.notes == ["A note."]
