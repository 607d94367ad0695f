"""Video models begun with an image model's weights."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch.nn import functional

from vitbench import create_model
from vitbench.errors import BadInput
from vitbench.from_image import central_frame, inflated, vivit_state

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 4}


def image_model(**options: Any) -> Any:
    """Gives a ViT with the GELU and the eps of ViViT, whose norms and biases are not those of its beginning."""
    torch.manual_seed(0)
    norm = timm.layers.LayerNorm
    sizes = {"img_size": 48, "patch_size": 16, "mlp_ratio": 4, **SMALL} | options
    model = timm.create_model("vit_base_patch16_224", num_classes=5, act_layer="gelu_tanh", norm_layer=norm, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def video_model(name: str, **options: Any) -> Any:
    return create_model(name, **{"img_size": 48, "num_frames": 8, "num_classes": 5, **SMALL} | options).eval()


def test_filters_are_those_of_equations_8_and_9() -> None:
    weight = torch.randn(4, 3, 2, 2)
    for frames in (2, 4, 5):
        centre = central_frame(weight, frames)
        assert centre.shape == (4, 3, frames, 2, 2)
        assert torch.equal(centre[:, :, frames // 2], weight)
        assert centre.count_nonzero() == weight.numel()
        torch.testing.assert_close(inflated(weight, frames).sum(2), weight)
        assert torch.equal(inflated(weight, frames)[:, :, 0], weight / frames)


@pytest.mark.parametrize("tubelets", [central_frame, inflated])
@torch.inference_mode()
def test_a_still_clip_is_the_image_to_the_spatial_encoder(tubelets: Any) -> None:
    """Of a clip of one image again and again, each temporal index is what the ViT sees."""
    image, video = image_model(), video_model("vivit_b_16x2_fe")
    temporal = video.encoder.temporal.state_dict()
    head = video.head.weight.clone()
    video.load_state_dict(vivit_state(image, video, tubelets))
    x = torch.randn(2, 3, 48, 48)
    clip = x[:, :, None].expand(-1, -1, 8, -1, -1)
    encoded = video.encoder.spatial(video.patch_embed(clip).flatten(0, 1)).unflatten(0, (2, 4))
    for index in range(4):
        torch.testing.assert_close(encoded[:, index], image.forward_features(x), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, temporal[name]) for name, tensor in video.encoder.temporal.state_dict().items())
    assert torch.equal(video.head.weight, head)


@torch.inference_mode()
def test_central_frames_are_uniform_sampling_of_the_middle_ones() -> None:
    """Section 3.4: the filter "effectively behaves like uniform frame sampling at initialisation"."""
    image, video = image_model(), video_model("vivit_b_16x4_m1")
    video.load_state_dict(vivit_state(image, video))
    x = torch.randn(1, 3, 8, 48, 48)
    tokens = video.patch_embed(x)
    for index in range(2):
        torch.testing.assert_close(tokens[:, index], image.patch_embed(x[:, :, 4 * index + 2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vivit_b_16x2_m1", "vivit_b_16x2_fsa", "vivit_b_16x2_fdp", "vivit_b_16x4_m1_uniform"])
@torch.inference_mode()
def test_every_time_has_the_images_table(name: str) -> None:
    image, video = image_model(), video_model(name)
    state = vivit_state(image, video)
    table = state["encoder.pos_embed"]
    if name.endswith(("m1", "uniform")):
        assert torch.equal(table[:, 0], image.pos_embed[:, 0])
        assert torch.equal(state["encoder.cls_token"], image.cls_token)
        table = table[:, 1:]
    for time in table.view(-1, 9, 48):
        torch.testing.assert_close(time, image.pos_embed[0, 1:])
    assert torch.equal(state["encoder.blocks.1.attn.qkv.weight"], image.blocks[1].attn.qkv.weight)
    video.load_state_dict(state)


@torch.inference_mode()
def test_model_3_begins_as_space_attention_alone() -> None:
    """Section 3.4: "such that Eq. 5 behaves as a residual connection at initialisation"."""
    image, video = image_model(), video_model("vivit_b_16x2_fsa")
    video.load_state_dict(vivit_state(image, video))
    block = video.encoder.blocks[1]
    x = torch.randn(1, 4, 9, 48)
    torch.testing.assert_close(block.over_time(x), x)
    torch.testing.assert_close(block(x)[0, 2], image.blocks[1](x[:, 2])[0], atol=1e-5, rtol=1e-5)


def test_model_3_learns_to_attend_along_time() -> None:
    image, video = image_model(), video_model("vivit_b_16x2_fsa")
    video.load_state_dict(vivit_state(image, video))
    optimizer = torch.optim.SGD(video.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        video(torch.randn(2, 3, 8, 48, 48)).square().sum().backward()
        optimizer.step()
    temporal = [parameter for name, parameter in video.named_parameters() if ".temporal_attn." in name]
    assert all(parameter.grad.any() for parameter in temporal)


@torch.inference_mode()
def test_another_grid_is_zoomed_corner_on_corner() -> None:
    image, video = image_model(), video_model("vivit_b_16x2_m1", img_size=(80, 48))
    table = vivit_state(image, video)["encoder.pos_embed"][0, 1:].view(4, 5, 3, 48)
    places = image.pos_embed[:, 1:].mT.unflatten(2, (3, 3))
    torch.testing.assert_close(table[:, ::2], places[0].permute(1, 2, 0).expand(4, -1, -1, -1))
    torch.testing.assert_close(table[0, 1], (places[0, :, 0] + places[0, :, 1]).T / 2)
    expected = functional.interpolate(places, (5, 3), mode="bilinear", align_corners=True)
    torch.testing.assert_close(table[3], expected[0].permute(1, 2, 0))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"embed_dim": 96}, "patch_embed.proj.weight is 96x3x2x16x16, the video model's 48x3x2x16x16"),
        ({"depth": 1}, "has no blocks.1.norm1.weight; take a ViT as deep"),
        ({"depth": 3}, "also has blocks.2.norm1.weight, blocks.2.norm1.bias"),
        ({"init_values": 1e-5}, "also has blocks.0.ls1.gamma, .*which the video model has no place for"),
        ({"qk_norm": True}, "also has blocks.0.attn.q_norm.weight"),
        ({"reg_tokens": 4}, "must have one class token and a table"),
        ({"no_embed_class": True}, "must have one class token and a table"),
        ({"class_token": False, "global_pool": "avg"}, "must have one class token and a table"),
        ({"patch_size": 8}, "patch_embed.proj.weight is 48x3x2x8x8, the video model's 48x3x2x16x16"),
    ],
)
def test_another_architecture_is_refused(options: Any, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        vivit_state(image_model(**options), video_model("vivit_b_16x2_m1"))
