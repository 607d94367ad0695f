"""Feature maps: planted dead and too large channels, chosen layers, clips, the picture."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import timm
import torch
from torch import Tensor, nn

from vitbench import build
from vitbench.analyses import feature_maps
from vitbench.drawing import pictures
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import FeatureMap
from vitbench.inside import observing


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Planted(nn.Module):
    """Maps of 40 channels, all like the image but for some: 4 of nothing, 2 of a constant, 1 a thousand times as large."""

    dead = (0, 1, 2, 39, 7, 8)
    large = 20

    def __init__(self) -> None:
        super().__init__()
        scale = torch.ones(40)
        scale[list(self.dead)] = 0
        scale[self.large] = 1000
        shift = torch.zeros(40)
        shift[[7, 8]] = 5
        self.blocks = nn.Sequential(nn.Sequential(nn.Conv2d(3, 40, 1)), nn.Sequential(nn.Identity(), nn.ReLU()))
        first = self.blocks[0][0]  # type: ignore[index]  # a Sequential of Sequentials
        nn.init.constant_(first.weight, 1)
        first.weight.data *= scale[:, None, None, None]
        first.bias.data = shift

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x)
        return out


def test_planted_channels_are_found() -> None:
    x = images(3, 3, 8, 12)
    found = feature_maps.analyze(Planted(), x.split(2))
    rows = [row for row in found.rows if row.layer == "blocks.0"]
    assert len(rows) == 36
    assert {row.channel for row in rows if row.dead} == {0, 1, 2, 7, 8}
    assert [row.channel for row in rows if row.large] == [20]
    assert rows[0].channels == 40
    assert rows[0].images == 3
    # Among all 40 channels, also those that are not drawn.
    assert rows[0].dead_share == pytest.approx(6 / 40)
    assert rows[0].large_share == pytest.approx(1 / 40)


def test_tiles_are_the_maps_of_the_first_image() -> None:
    x = images(3, 3, 8, 12)
    row = feature_maps.analyze(Planted(), x.split(2)).rows[10]
    expected = x[0].sum(dim=0)
    assert (row.layer, row.channel, row.tile_height, row.tile_width) == ("blocks.0", 10, 8, 12)
    numpy.testing.assert_allclose(row.values, expected.flatten(), rtol=1e-4, atol=1e-5)
    assert row.low == pytest.approx(float(expected.min()))
    assert row.high == pytest.approx(float(expected.max()))
    assert row.frame is None


def test_all_channels_may_be_dead_and_none_is_large_for_it() -> None:
    """Of layers of zeros, as after a ReLU; where more than half are dead, the others are not large for being alive."""
    dead, large = feature_maps.unusable(torch.zeros(1, 4, 3, 3))
    assert dead.all()
    assert not large.any()
    features = torch.zeros(2, 10, 4, 4)
    features[:, :3] = images(2, 3, 4, 4)
    dead, large = feature_maps.unusable(features)
    assert dead.sum(dim=1).tolist() == [7, 7]
    assert not large.any()


def test_shares_are_means_over_images_however_they_are_batched() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU())
    x = images(5, 3, 6, 6)
    x[1:3] = 0
    one, other = (feature_maps.analyze(model, batches).rows for batches in (x.split(2), x.split(5)))
    assert one == other
    alone = [feature_maps.analyze(model, [x[place : place + 1]]).rows for place in range(5)]
    for number, row in enumerate(one):
        assert row.dead_share == pytest.approx(sum(rows[number].dead_share for rows in alone) / 5)


def test_three_blocks_are_drawn_or_those_asked_for() -> None:
    model = build.create_model("vit_ti16", img_size=32, depth=6, embed_dim=24, num_heads=2)
    x = images(1, 3, 32, 32)

    def drawn(**options: Any) -> list[tuple[int, str]]:
        return list(dict.fromkeys((row.index, row.layer) for row in feature_maps.analyze(model, [x], **options).rows))

    assert drawn() == [(1, "blocks.0"), (3, "blocks.2"), (6, "blocks.5")]
    assert drawn(names=["blocks.4", "embedding", "blocks.4"]) == [(0, "embedding"), (5, "blocks.4")]
    with pytest.raises(BadInput, match=r"no map of a layer 'norm'; it has embedding, blocks\.0"):
        drawn(names=["norm"])
    # Fewer than 36 channels are all there are.
    assert len(feature_maps.analyze(model, [x]).rows) == 3 * 24


def test_a_clip_is_drawn_at_its_middle_frame() -> None:
    model = build.create_model(
        "timesformer_space", img_size=(32, 48), num_frames=4, depth=1, embed_dim=24, num_heads=2
    ).eval()
    x = images(1, 3, 4, 32, 48)
    row = feature_maps.analyze(model, [x], names=["embedding"]).rows[0]
    assert (row.frame, row.tile_height, row.tile_width) == (2, 2, 3)
    with torch.no_grad():
        tokens = model.patch_embed(x[:, :, 2]) + model.pos_embed[:, 1:]  # type: ignore[operator, index]  # of the model
    numpy.testing.assert_allclose(row.values, tokens[0, :, 0], rtol=1e-4, atol=1e-5)


def test_layers_without_places_are_left_out_or_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(), nn.Linear(16, 3))
    found = feature_maps.analyze(model, [images(1, 3, 4, 4)])
    assert {row.layer for row in found.rows} == {"0"}
    assert found.notes[0] == "Left out: 1 gives 1x16, which is no map of an input of 1x3x4x4."
    with pytest.raises(BadInput, match="no map of a layer '2': 2 gives 1x3, which is no map"):
        feature_maps.analyze(model, [images(1, 3, 4, 4)], names=["2"])
    with pytest.raises(NotDefined, match="0 gives 1x48, which is no map"):
        feature_maps.analyze(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), [images(1, 3, 4, 4)])
    with pytest.raises(BadInput, match="There are no images"):
        feature_maps.analyze(model, [])


def test_one_pass_feeds_it_beside_others_and_leaves_the_model_as_it_was() -> None:
    model = Planted().train()
    one, other = feature_maps.ChannelMaps(), feature_maps.ChannelMaps(names=["blocks.1"])
    observing.run(model, [images(2, 3, 4, 4)], [one, other])
    assert {row.layer for row in one.finding().rows} == {"blocks.0", "blocks.1"}
    assert {row.layer for row in other.finding().rows} == {"blocks.1"}
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "vit_ti16": ({"img_size": (32, 64), "depth": 1}, (3, 32, 64)),
    "r_vit_ti16": ({"img_size": (32, 64), "depth": 1}, (3, 32, 64)),
    "deit_ti16_dist": ({"img_size": (32, 64), "depth": 1}, (3, 32, 64)),
    "resnet18": ({}, (3, 32, 64)),
    "resnetv2_18": ({}, (3, 32, 64)),
    "regnety_002": ({}, (3, 32, 64)),
    "efficientnet_b0": ({}, (3, 32, 64)),
    "swin_t": ({"img_size": (56, 112), "embed_dim": 24, "depths": (1, 1, 1, 1)}, (3, 56, 112)),
    "swinv2_t_w8": ({"img_size": (64, 128), "embed_dim": 24, "depths": (1, 1, 1, 1)}, (3, 64, 128)),
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
    "timesformer": ({"img_size": 32, "num_frames": 4, "depth": 1, "embed_dim": 24, "num_heads": 2}, (3, 4, 32, 32)),
    "mvit_s_16x4": ({"img_size": (32, 64), "num_frames": 4}, (3, 4, 32, 64)),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_family_has_maps(name: str) -> None:
    options, shape = SMALL[name]
    # timm's own door lets MViTv2's size through, which ours takes to follow by itself.
    create = timm.create_model if name == "mvitv2_tiny" else build.create_model
    found = feature_maps.analyze(create(name, **options), [images(1, *shape)])
    assert found.rows
    for row in found.rows:
        # The aspect of the input, but for what a stride rounds up.
        assert abs(row.tile_width * shape[-2] - row.tile_height * shape[-1]) < shape[-1]
        assert len(row.values) == row.tile_height * row.tile_width
        assert 0 <= row.dead_share <= 1
    assert all("temporal" in note for note in found.notes)


def _maps(layer: str, tiles: int, height: int = 2, width: int = 3) -> list[FeatureMap]:
    return [
        FeatureMap(
            index=1,
            layer=layer,
            channels=50,
            dead_share=0.125,
            large_share=0,
            images=1,
            channel=channel,
            dead=channel == 1,
            large=channel == 2,
            low=0 if channel != 1 else 3,
            high=5 if channel != 1 else 3,
            frame=None,
            tile_height=height,
            tile_width=width,
            values=tuple(float(place) for place in range(height * width)) if channel != 1 else (3.0,) * height * width,
        )
        for channel in range(tiles)
    ]


def test_the_picture_has_a_line_a_model_and_a_block_of_tiles_a_layer() -> None:
    many = feature_maps.FeatureMaps(rows=(*_maps("$one$", 36), *_maps("two", 36)))
    few = feature_maps.FeatureMaps(rows=tuple(_maps("three", 4, 3, 3)))
    figure = feature_maps.draw({"$a$": many, "b": few})
    tiles = [ax for part in figure.subfigs for ax in part.axes]
    assert len(tiles) == 36 + 36 + 4
    assert numpy.asarray(tiles[0].images[0].get_array()).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tiles[0].images[0].get_clim() == (0, 5)
    assert tiles[0].images[0].get_cmap().name == "gray"
    # A constant has no range; it is mid-grey.
    assert tiles[1].images[0].get_clim() == (2, 4)
    assert [ax.get_xlabel() for ax in tiles[:3]] == ["0 to 5", "3 to 3 dead", "0 to 5 large"]
    assert [text.get_text() for text in figure.subfigs[0].texts] == [
        "$a$",
        "$one$, 50 channels of 2 x 3",
        "dead: 12.5 %, too large: 0.0 %",
        "two, 50 channels of 2 x 3",
        "dead: 12.5 %, too large: 0.0 %",
    ]
    figure.draw_without_rendering()
    boxes = [ax.get_window_extent().transformed(figure.transFigure.inverted()) for ax in tiles]
    assert all(box.x0 >= 0 and box.x1 <= 1 and box.y0 >= 0 and box.y1 <= 1 for box in boxes)
    assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[:number])


@pytest.mark.parametrize("ending", pictures.TIMELESS)
def test_the_same_numbers_make_the_same_picture(ending: str) -> None:
    finding = {"a": feature_maps.FeatureMaps(rows=tuple(_maps("one", 3)))}
    assert pictures.rendered(feature_maps.draw(finding), ending) == pictures.rendered(
        feature_maps.draw(finding), ending
    )


def test_the_table_has_the_shares() -> None:
    finding = feature_maps.FeatureMaps(rows=(*_maps("one", 3), *_maps("two", 2)), notes=("A note.",))
    made = feature_maps.table({"m": finding})
    assert [column.heading for column in made.columns] == ["Model", "Layer", "Channels", "Map", "Dead", "Too large"]
    assert [column.text(made.rows[0]) for column in made.columns] == ["m", "one", "50", "2x3", "12.5 %", "0.0 %"]
    assert len(made.rows) == 2
    assert made.notes == ["A note."]
