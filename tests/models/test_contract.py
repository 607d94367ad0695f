"""What timm's users expect of any model, of every kind of native model, built small."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vitbench import catalog, models
from vitbench.build import create_model, plan
from vitbench.errors import BadInput, VitbenchError

models.register()

# One of each kind of block, tokenizer, pooling and encoder: name, image, shape of forward_features for a batch of one. Clips
# have 8 frames.
KINDS: dict[str, tuple[int, tuple[int, ...]]] = {
    "cct_2_3x2_32": (32, (64, 128)),
    "cct_2_3x2_32_sine": (32, (64, 128)),
    "compact_cvt_2_4_32": (32, (64, 128)),
    "vit_lite_2_4_32_sine": (32, (65, 128)),
    "cvt_13": (64, (17, 384)),
    "t2t_vit_7": (64, (17, 256)),
    "t2t_vit_t_14": (48, (10, 384)),
    "t2t_vit_se": (48, (10, 384)),
    "t2t_vit_ghost": (48, (10, 384)),
    "t2t_vit_dense": (48, (10, 584)),
    "pvt_tiny": (64, (5, 512)),
    "coatnet_0": (64, (768, 2, 2)),
    "coatnet_0_cccc": (64, (768, 2, 2)),
    "coatnet_0_cttt": (64, (768, 2, 2)),
    "vit_rel": (64, (16, 384)),
    "vivit_b_16x2_m1": (32, (17, 96)),
    "vivit_b_16x2_fe": (32, (5, 96)),
    "vivit_b_16x2_avgpool": (32, (1, 96)),
    "vivit_b_16x2_fsa": (32, (16, 96)),
    "vivit_b_16x2_fdp": (32, (16, 96)),
    "vivit_b_16x4_m1_uniform": (32, (9, 96)),
    "timesformer_space": (32, (5, 96)),
    "timesformer_joint": (32, (33, 96)),
    "timesformer_divided": (32, (33, 96)),
    "timesformer_lg": (64, (129, 96)),
    "timesformer_axial": (32, (33, 96)),
    "mvit_s_16x4": (64, (17, 512)),
    "mvit_b_16x4": (64, (65, 384)),
    "mvit_b_16_image": (64, (17, 384)),
    "mvitv2_s_16x4": (64, (65, 384)),
}
FRAMES = 8
# Smaller than the papers', for the sake of time.
_COLUMN = {"embed_dim": 96, "depth": 2, "num_heads": 4}
_PYRAMID = {"depth": 5, "stages": (1, 3)}
SMALLER: dict[str, dict[str, Any]] = {"vivit": _COLUMN, "timesformer": _COLUMN, "mvit": _PYRAMID, "mvitv2": _PYRAMID}
# What has no part in the logits: CvT's classifier reads the class token, whose queries go around the convolutions; softmax does
# not see a number that is added to all weights. Source for CvT: the official code shows the same three.
STILL = {
    "cvt_13": {f"stages.2.blocks.9.attn.conv_proj_q.{name}" for name in ("conv.weight", "bn.weight", "bn.bias")},
    "cct_2_3x2_32": {"classifier.attention_pool.bias"},
    "cct_2_3x2_32_sine": {"classifier.attention_pool.bias"},
    "compact_cvt_2_4_32": {"classifier.attention_pool.bias"},
    "mvitv2_s_16x4": {f"blocks.4.attn.{name}" for name in ("pool_q.weight", "rel_pos_t", "rel_pos_h", "rel_pos_w")},
}


def clips(name: str) -> bool:
    return catalog.VARIANTS[name].modality == "video"


def build(name: str, **options: Any) -> Any:
    pixels, _ = KINDS[name]
    smaller = SMALLER.get(catalog.VARIANTS[name].family, {})
    frames = {"num_frames": FRAMES} if clips(name) else {}
    return create_model(name, **{"img_size": pixels, **frames, **smaller, **options}).eval()


def images(name: str, batch: int = 1) -> Tensor:
    pixels, _ = KINDS[name]
    extents = (FRAMES, pixels, pixels) if clips(name) else (pixels, pixels)
    return torch.randn(batch, 3, *extents, generator=torch.Generator().manual_seed(1))


def perturbed(model: Any) -> Any:
    """Gives the model with norms, biases and tables that are not those of its beginning, where many are 0 or 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_features_head_and_classes(name: str) -> None:
    model, x = build(name), images(name, 2)
    features = model.forward_features(x)
    assert features.shape == (2, *KINDS[name][1])
    torch.testing.assert_close(model(x), model.forward_head(features))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert model(x).shape == (2, model.num_classes) == (2, catalog.VARIANTS[name].num_classes)
    cfg = model.default_cfg
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    if name not in ("cvt_13",):
        assert cfg["fixed_input_size"]
    model.reset_classifier(3)
    assert model(x).shape == (2, model.num_classes) == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    assert build(name, num_classes=0)(x).shape == (2, model.num_features)


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_an_image_does_not_see_its_neighbours(name: str) -> None:
    model, x = perturbed(build(name)), images(name, 5)
    together = model(x)
    tolerance = 1e-5 * (together.max() - together.min()).item()
    torch.testing.assert_close(model(x[:1]), together[:1], atol=tolerance, rtol=0)
    torch.testing.assert_close(model(x[1:4]), together[1:4], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_reach_every_parameter_that_is_trained(name: str) -> None:
    torch.manual_seed(0)
    model = perturbed(build(name)).train()
    for module in model.modules():
        if isinstance(module, timm.layers.DropPath):
            module.drop_prob = 0.0
    model(images(name, 2)).square().sum().backward()
    without = {
        key
        for key, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    }
    # What rounding leaves of a gradient that is zero may be there or not; CvT's three are none at all.
    assert without <= STILL.get(name, set())
    assert name not in ("cvt_13", "mvitv2_s_16x4") or without == STILL[name]


def trained(model: Any, x: Tensor) -> tuple[dict[str, Tensor], int]:
    """Gives loss, gradients and buffers of one step of training, and the bytes that it kept for the backward pass."""
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no other takes an address

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    model.zero_grad()
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(x).square().mean()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept_bytes = sum(storage.nbytes() for address, storage in kept.items() if address not in parameters)
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    return {"loss": loss.detach(), **gradients, **buffers}, kept_bytes


@pytest.mark.parametrize("name", KINDS)
def test_recomputed_blocks_change_memory_and_no_number(name: str) -> None:
    torch.manual_seed(0)
    own_rates = name.startswith(("cct", "compact_cvt", "vit_lite"))
    model = perturbed(build(name, **({} if own_rates else {"drop_path_rate": 0.3}))).train()
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    found, kept_bytes = trained(model, images(name, 2))
    model.load_state_dict(buffers, strict=False)
    model.set_grad_checkpointing(enable=True)
    assert model.grad_checkpointing is True
    recomputed, kept_less = trained(model, images(name, 2))
    torch.testing.assert_close(recomputed, found)
    # Measured: 0.07 to 0.39 of it; half in CCT's two blocks, whose convolutions keep as much.
    assert kept_less < (0.55 if name.startswith("cct") else 0.45) * kept_bytes
    model.to("meta")(images(name, 2).to("meta")).sum().backward()


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_bfloat16_runs_by_autocast_and_as_the_model(name: str) -> None:
    model, x = build(name), images(name, 2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.isfinite().all()
    spread = (model(x).max() - model(x).min()).item()
    torch.testing.assert_close(logits.float(), model(x), atol=0.1 * spread, rtol=0)
    assert model.bfloat16()(x.bfloat16()).isfinite().all()


@pytest.mark.parametrize(
    "name",
    [
        "cct_2_3x2_32", "vit_lite_2_4_32_sine", "cvt_13", "t2t_vit_7", "pvt_tiny", "coatnet_0", "vivit_b_16x2_fe",
        "vivit_b_16x2_fsa", "vivit_b_16x2_fdp", "vivit_b_16x4_m1_uniform", "timesformer_divided", "timesformer_lg", "mvit_b_16x4",
        "mvitv2_s_16x4",
    ],
)  # fmt: skip
def test_it_compiles_whole(name: str) -> None:
    model, x = build(name), images(name, 2)
    torch.compiler.reset()
    with torch.inference_mode():
        compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(64, 96), (96, 32)])  # timesformer_lg halves 4 x 6 and 6 x 2 patches
def test_another_size_goes_in(name: str, size: tuple[int, int]) -> None:
    frames = (4,) if clips(name) else ()
    model = plan(name, img_size=size, num_frames=4 if frames else None).build("meta")
    x = torch.zeros(2, 3, *frames, *size, device="meta")
    assert model(x).shape == (2, catalog.VARIANTS[name].num_classes)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("pvt_tiny", 200, "multiples of 32 pixels, not 200 x 200"),
        ("coatnet_0", 200, "multiples of 32 pixels, not 200 x 200"),
        ("coatnet_6", (224, 230), "multiples of 32 pixels, not 224 x 230"),
        ("vit_lite_7_16_32", 40, "Patches of 16 pixels do not tile a side of 40"),
        ("compact_cvt_2_4_32", 30, "Patches of 4 pixels do not tile a side of 30"),
        ("vit_rel", 230, "patches of 16x16 do not tile them"),
        ("t2t_vit_7", 2, "gives no tokens"),
    ],
)
def test_a_size_that_cannot_be_taken_is_refused(name: str, size: Any, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        plan(name, img_size=size).build("meta")


@pytest.mark.parametrize("name", [name for name in KINDS if name != "cvt_13"])
def test_images_of_another_shape_are_refused_also_with_as_many_tokens(name: str) -> None:
    model = plan(name, img_size=(64, 96), num_frames=4 if clips(name) else None).build("meta")
    with pytest.raises(
        (ValueError, AssertionError), match="img_size of the images|img_size and num_frames|doesn't match model"
    ):
        model(torch.zeros(1, 3, *((4,) if clips(name) else ()), 96, 64, device="meta"))


@pytest.mark.parametrize("name", [name for name in KINDS if clips(name)])
def test_clips_of_another_length_are_refused(name: str) -> None:
    model = plan(name, img_size=(64, 96), num_frames=8).build("meta")
    with pytest.raises(ValueError, match="inputs of 8x64x96, not 4x64x96; build it with the img_size and num_frames"):
        model(torch.zeros(1, 3, 4, 64, 96, device="meta"))
    with pytest.raises(ValueError, match="not 64x96"):
        model(torch.zeros(1, 3, 64, 96, device="meta"))


# Every norm's eps, where it is not that of a batch or layer norm of torch's. Source: the official constructors; it is too small a
# thing for logits to show.
@pytest.mark.parametrize(
    "name",
    [
        "cct_2_3x2_32", "vit_lite_2_4_32_sine", "cvt_13", "t2t_vit_7", "t2t_vit_dense", "pvt_tiny", "vivit_b_16x2_fe",
        "vivit_b_16x2_fsa", "timesformer_axial", "mvit_b_16x4", "mvitv2_s_16x4",
    ],
)  # fmt: skip
def test_norms_have_the_official_eps(name: str) -> None:
    norms = {
        key: module.eps
        for key, module in build(name).named_modules()
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d))
    }
    of_blocks = r"(stages\.\d\.blocks\.\d+\.norm\d|norm)"
    of_pvt = {key: 1e-6 if name == "pvt_tiny" and re.fullmatch(of_blocks, key) else 1e-5 for key in norms}
    expected = dict.fromkeys(norms, 1e-6) if name.startswith(("vivit", "timesformer", "mvit")) else of_pvt
    assert norms == expected
    assert len(norms) > 4


@pytest.mark.parametrize("name", ["cct_2_3x2_32", "cvt_13", "t2t_vit_7", "pvt_tiny", "vivit_b_16x2_fe"])
def test_another_pooling_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot take its place|so it cannot be 'avg'"):
        build(name).reset_classifier(3, "avg")


@pytest.mark.parametrize("name", KINDS)
def test_its_own_state_dict_loads_again_also_at_another_size(name: str, tmp_path: Any) -> None:
    path = tmp_path / "own.pth"
    pixels, _ = KINDS[name]
    torch.save(build(name, seed=1).state_dict(), path)
    loaded = build(name, weights=path)
    state = torch.load(path)
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())
    # Three kinds of ViViT have one table for time and space; what it was of cannot be told if both change.
    joint = name.startswith("vivit") and name.endswith(("m1", "fsa", "fdp"))
    longer = {"num_frames": 2 * FRAMES} if clips(name) and "uniform" not in name else {}
    larger = build(name, img_size=pixels if joint else 2 * pixels, weights=path, **longer)
    resampled = {key for key, tensor in larger.state_dict().items() if tensor.shape != state[key].shape}
    tables = ("pos_embed", "positional_emb", "relative_position_bias_table", "time_embed", "spatial", "temporal")
    assert all(key.endswith(tables) or ".rel_pos_" in key for key in resampled)
    assert bool(resampled) == (name not in ("cvt_13", "coatnet_0_cccc"))
    assert all(tensor.isfinite().all() for tensor in larger.state_dict().values())


@pytest.mark.parametrize(
    "name", ["coatnet_0", "coatnet_7", "coatnet_0_cttt", "vit_rel", "t2t_vit_ghost", "vit_lite_7_4_32"]
)
def test_what_has_no_weights_says_so(name: str) -> None:
    with pytest.raises(VitbenchError, match="No pretrained weights"):
        create_model(name, weights="pretrained")


def test_entry_points_take_other_sizes_of_their_parts() -> None:
    model = timm.create_model("cvt_13", depths=(1, 1, 1), num_classes=5, in_chans=1)
    assert isinstance(model, nn.Module)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
