"""The native models against their authors' own code: the same tensors, the same function.

official/official.json holds what that code says of its models; official/make.py wrote it, and says how to do so again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from tests.models.official import recipe
from vitbench import build, catalog, create_model

FILE = Path(__file__).parent / "official" / "official.json"
RECORDS: list[dict[str, Any]] = json.loads(FILE.read_text())
WITH_LOGITS = [record for record in RECORDS if "logits" in record]
# The files below are made of random numbers: what an error of the record would look like is far from this.
TOLERANCE = 5e-5

# Our names in the words of the official code, where they differ.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]
RULES: dict[str, tuple[Rule, ...]] = {
    "CvT": ((r"^stages\.(\d)\.", r"stage\1."),),
    "PVT": (
        (r"^stages\.(\d)\.(patch_embed|pos_embed)", lambda found: f"{found[2]}{int(found[1]) + 1}"),
        (r"^stages\.(\d)\.blocks", lambda found: f"block{int(found[1]) + 1}"),
        (r"^stages\.3\.cls_token", "cls_token"),
        (r"attn\.reduction\.", "attn."),
    ),
    "T2T-ViT": (
        (r"attn\.qkv\.primary\.([qkv])", r"attn.\1"),
        (r"attn\.qkv\.cheap\.([qkv])", r"attn.cheap_operation_\1"),
    ),
    "TimeSformer": ((r"^", "model."),),
    "SlowFast": (
        (r"^positions\.(spatial|temporal)", r"pos_embed_\1"),
        (r"^positions\.cls", "pos_embed_class"),
        (r"^head\.", "head.projection."),
    ),
    "pytorchvideo": (
        (r"^cls_token", "cls_positional_encoding.cls_token"),
        (r"^positions\.(spatial|temporal)", r"cls_positional_encoding.pos_embed_\1"),
        (r"^positions\.cls", "cls_positional_encoding.pos_embed_class"),
        (r"^patch_embed\.proj", "patch_embed.patch_model"),
        (r"^norm\.", "norm_embed."),
        (r"^head\.", "head.proj."),
    ),
    "scenic": (
        (r"^encoder\.cls_token", "cls"),
        (r"^encoder\.(spatial|temporal)\.cls_token", lambda found: f"cls_{found[1].title()}Transformer"),
        (r"^encoder\.(spatial|temporal)\.", lambda found: f"{found[1].title()}Transformer/"),
        (r"^encoder\.", "Transformer/"),
        (r"pos_embed$", "posembed_input/pos_embedding"),
        (r"blocks\.(\d+)\.", r"encoderblock_\1/"),
        (r"/norm\.", "/encoder_norm/"),
        (r"mlp\.fc([12])\.", lambda found: f"MlpBlock_0/Dense_{int(found[1]) - 1}/"),
        (r"/norm([12])\.", lambda found: f"/LayerNorm_{int(found[1]) - 1}/"),
        (r"/attn\.", "/MultiHeadDotProductAttention_0/"),
        (r"0/proj\.", "0/out/"),
        (r"^patch_embed\.proj\.", "embedding/"),
        (r"^head\.", "output_projection/"),
        (r"(Norm_.|norm)/weight$", r"\1/scale"),
        (r"weight$", "kernel"),
    ),
}
# Model 3 has other names for its parts.
MODEL_3 = (
    (r"LayerNorm_0", "LayerNorm_space"),
    (r"temporal_norm1\.kernel", "LayerNorm_time/scale"),
    (r"temporal_norm1\.", "LayerNorm_time/"),
    (r"LayerNorm_1", "LayerNorm_mlp"),
    (r"Attention_0/", "Attention_space/"),
    (r"temporal_attn\.", "MultiHeadDotProductAttention_time/"),
    (r"time/proj\.", "time/out/"),
    (r"MlpBlock_0", "MlpBlock"),
)


def official_name(repository: str, name: str) -> str:
    for pattern, theirs in RULES.get(repository, ()):
        name = re.sub(pattern, theirs, name)
    return name


def flax_shapes(name: str, shape: tuple[int, ...], heads: int) -> dict[str, tuple[int, ...]]:
    """Gives one of our tensors as flax has it: three projections, heads apart, outputs last."""
    if (stem := name.partition("qkv.")[0]) != name:
        part = (heads, shape[0] // 3 // heads)
        named = "kernel" if len(shape) == 2 else "bias"
        return {f"{stem}{which}/{named}": (*shape[1:], *part) for which in ("query", "key", "value")}
    if name.endswith("out/kernel"):
        return {name: (heads, shape[1] // heads, shape[0])}
    return {name: (*shape[2:], *shape[1::-1]) if name.endswith("kernel") else shape}


def official_shapes(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    repository, _, _ = record["official"].partition(":")
    model = build.plan(record["model"], **record["options"]).build("meta")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        theirs, shape = official_name(repository, name), tuple(tensor.shape)
        if repository == "scenic":
            if "_fsa" in record["model"]:
                for pattern, replacement in MODEL_3:
                    theirs = re.sub(pattern, replacement, theirs)
            shapes |= flax_shapes(theirs, shape, heads=16 if "_l_" in record["model"] else 12)
        elif repository == "pytorchvideo" and ".qkv." in name:
            shapes |= {theirs.replace("qkv", part): (shape[0] // 3, *shape[1:]) for part in "qkv"}
        else:
            shapes[theirs] = shape
    if "_image" in record["model"]:
        if repository == "SlowFast":  # one table for all
            _, places, dim = shapes.pop("pos_embed_spatial")
            shapes.pop("pos_embed_class")
            shapes["pos_embed"] = (1, 1 + places, dim)
        else:  # and a table of one frame
            shapes["cls_positional_encoding.pos_embed_temporal"] = (1, 1, 96)
    return shapes


def wrapped(record: dict[str, Any], state: dict[str, Tensor]) -> Any:
    """Gives a file's content as the authors of each repository write it."""
    if record["official"].startswith("T2T-ViT"):
        plain = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        averaged = {f"module.{name}": tensor for name, tensor in state.items()}
        return {"epoch": 1, "args": argparse.Namespace(lr=1e-3), "state_dict": plain, "state_dict_ema": averaged}
    if record["official"].startswith(("TimeSformer", "SlowFast", "pytorchvideo")):
        return {
            "epoch": 1,
            "model_state": state,
            "optimizer_state": {"state": {}, "param_groups": []},
            "cfg": "TRAIN:\n",
        }
    return {"model": state, "epoch": 1} if record["official"].startswith("PVT") else state


ENDINGS = {
    "T2T-ViT": ".pth.tar",
    "TimeSformer": ".pyth",
    "SlowFast": ".pyth",
    "pytorchvideo": ".pyth",
    "scenic": ".npz",
}


def saved(folder: Path, record: dict[str, Any]) -> Path:
    repository, _, _ = record["official"].partition(":")
    path = folder / f"official{ENDINGS.get(repository, '.pth')}"
    state = recipe.weights(official_shapes(record))
    if repository == "scenic":
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in state.items()}
        np.savez(path, **arrays)
    else:
        torch.save(wrapped(record, state), path)
    return path


def extents(record: dict[str, Any], model: Any) -> tuple[int, ...]:
    pixels = record["options"].get("img_size", model.pretrained_cfg["input_size"][-1])
    frames = record["options"].get("num_frames")
    return (frames, pixels, pixels) if frames else (pixels, pixels)


def assert_logits(record: dict[str, Any], model: Any) -> None:
    with torch.inference_mode():
        logits = model.eval()(recipe.inputs(extents(record, model)))
    error = (logits[:, :8] - torch.tensor(record["logits"])).abs().max().item()
    assert error < TOLERANCE * record["spread"]
    assert (logits.max() - logits.min()).item() == pytest.approx(record["spread"], rel=TOLERANCE)


def test_the_record_is_as_it_was_written() -> None:
    """A figure edited by hand would make the models agree with nobody."""
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert digest == "9d5821dd8875e85508b0b96d5a8fea1426a017e198cff7ae26a1d63c7c0fdc48"


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record['model']}{record['options'] or ''}")
def test_the_tensors_are_the_official_ones(record: dict[str, Any]) -> None:
    shapes = official_shapes(record)
    assert len(shapes) == record["tensors"]
    assert hashlib.sha256(recipe.lines(shapes).encode()).hexdigest() == record["sha256"]
    model = build.plan(record["model"], **record["options"]).build("meta")
    # pytorchvideo's image model has a table of one frame besides, which is added to the other on loading.
    more = 96 if record["official"] == "pytorchvideo: mvit_base_16" else 0
    assert sum(parameter.numel() for parameter in model.parameters()) + more == record["params"]
    frozen = sorted(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
    assert frozen == record["frozen"]


def test_every_native_row_with_official_code_is_on_record() -> None:
    families = {"cvt", "t2t_vit", "pvt", "cct", "compact_cvt", "vit_lite"}
    rows = {row.timm_name.partition(".")[0] for row in catalog.VARIANTS.values() if row.family in families}
    clips = {
        "vivit_b_16x4_m1_uniform",
        "vivit_l_16x2_fe",
        *(f"vivit_b_16x2_{kind}" for kind in ("m1", "fe", "fsa", "fdp", "avgpool")),
    }
    clips |= {f"timesformer_{kind}" for kind in ("space", "joint", "divided", "hr", "l")}
    clips |= {"mvit_b_16x4", "mvit_b_32x3", "mvit_b_24_32x3", "mvit_b_16_image"}
    clips |= {"mvitv2_s_16x4", "mvitv2_b_32x3", "mvitv2_l_40x3"}
    assert rows | clips == {record["model"] for record in RECORDS}


@pytest.mark.parametrize("record", WITH_LOGITS, ids=lambda record: f"{record['official']} {record['model']}")
def test_an_official_file_gives_the_official_logits(record: dict[str, Any], tmp_path: Path) -> None:
    assert_logits(record, create_model(record["model"], weights=saved(tmp_path, record), **record["options"]))


@pytest.mark.parametrize(
    "name", ["cct_7_3x1_32", "pvt_tiny", "t2t_vit_7", "timesformer_divided", "mvit_b_16x4", "mvit_b_16_image"]
)
def test_timms_own_loading_takes_the_official_file_too(name: str, tmp_path: Path) -> None:
    record = next(record for record in WITH_LOGITS if record["model"] == name)
    path = saved(tmp_path, record)
    if name == "pvt_tiny":  # what is released is the state dict alone
        torch.save(torch.load(path)["model"], path)
    overlay = {"file": str(path), "url": "", "hf_hub_id": None}
    options = record["options"]
    assert_logits(record, timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options))
    model: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, **options)
    assert model(recipe.inputs(extents(record, model))).shape == (2, 3)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record['model']}{record['options'] or ''}")
def test_official_weights_have_an_address_where_there_are_any(record: dict[str, Any]) -> None:
    cfg = timm.get_pretrained_cfg(record["model"])
    assert cfg is not None
    released = {
        "cct_7_3x1_32", "cct_7_3x1_32_sine", "cct_7_7x2_224_sine", "cct_14_7x2_224", "cct_14_7x2_384", "cvt_13", "cvt_21",
        "cvt_w24", "pvt_tiny", "pvt_small", "pvt_medium", "pvt_large", "t2t_vit_7", "t2t_vit_10", "t2t_vit_12", "t2t_vit_14",
        "t2t_vit_19", "t2t_vit_24", "t2t_vit_t_14", "t2t_vit_t_19", "t2t_vit_t_24", "vivit_b_16x2_m1", "timesformer_divided",
        "timesformer_hr", "mvit_b_16x4", "mvit_b_32x3", "mvit_b_24_32x3", "mvit_b_16_image", "mvitv2_s_16x4", "mvitv2_b_32x3",
        "mvitv2_l_40x3",
    }  # fmt: skip
    assert bool(cfg.url or cfg.hf_hub_id) == (record["model"] in released)
    assert not cfg.url or re.fullmatch(
        r"https://(github|shi-labs|dl\.fbaipublicfiles)\.com/\S+\.(pth(\.tar)?|pyth)", str(cfg.url)
    )
