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
}


def official_name(repository: str, name: str) -> str:
    for pattern, theirs in RULES.get(repository, ()):
        name = re.sub(pattern, theirs, name)
    return name


def official_shapes(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    repository, _, _ = record["official"].partition(":")
    model = build.plan(record["model"], **record["options"]).build("meta")
    return {official_name(repository, name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def wrapped(record: dict[str, Any], state: dict[str, Tensor]) -> Any:
    """Gives a file's content as the authors of each repository write it."""
    if record["official"].startswith("T2T-ViT"):
        plain = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        averaged = {f"module.{name}": tensor for name, tensor in state.items()}
        return {"epoch": 1, "args": argparse.Namespace(lr=1e-3), "state_dict": plain, "state_dict_ema": averaged}
    return {"model": state, "epoch": 1} if record["official"].startswith("PVT") else state


def saved(folder: Path, record: dict[str, Any]) -> Path:
    path = folder / ("official.pth.tar" if record["official"].startswith("T2T-ViT") else "official.pth")
    torch.save(wrapped(record, recipe.weights(official_shapes(record))), path)
    return path


def assert_logits(record: dict[str, Any], model: Any) -> None:
    with torch.inference_mode():
        logits = model.eval()(recipe.images(model.pretrained_cfg["input_size"][-1]))
    error = (logits[:, :8] - torch.tensor(record["logits"])).abs().max().item()
    assert error < TOLERANCE * record["spread"]
    assert (logits.max() - logits.min()).item() == pytest.approx(record["spread"], rel=TOLERANCE)


def test_the_record_is_as_it_was_written() -> None:
    """A figure edited by hand would make the models agree with nobody."""
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert digest == "2116178726c81dead5aacd084a55bb6061f9543609d7fca8f2791c099b06ab61"


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record['model']}{record['options'] or ''}")
def test_the_tensors_are_the_official_ones(record: dict[str, Any]) -> None:
    shapes = official_shapes(record)
    assert len(shapes) == record["tensors"]
    assert hashlib.sha256(recipe.lines(shapes).encode()).hexdigest() == record["sha256"]
    model = build.plan(record["model"], **record["options"]).build("meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == record["params"]
    frozen = sorted(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
    assert frozen == record["frozen"]


def test_every_native_row_with_official_code_is_on_record() -> None:
    families = {"cvt", "t2t_vit", "pvt", "cct", "compact_cvt", "vit_lite"}
    rows = {row.timm_name.partition(".")[0] for row in catalog.VARIANTS.values() if row.family in families}
    assert rows == {record["model"] for record in RECORDS}


@pytest.mark.parametrize("record", WITH_LOGITS, ids=lambda record: record["model"])
def test_an_official_file_gives_the_official_logits(record: dict[str, Any], tmp_path: Path) -> None:
    assert_logits(record, create_model(record["model"], weights=saved(tmp_path, record)))


@pytest.mark.parametrize("name", ["cct_7_3x1_32", "pvt_tiny", "t2t_vit_7"])
def test_timms_own_loading_takes_the_official_file_too(name: str, tmp_path: Path) -> None:
    (record,) = (record for record in WITH_LOGITS if record["model"] == name)
    path = saved(tmp_path, record)
    if name == "pvt_tiny":  # what is released is the state dict alone
        torch.save(torch.load(path)["model"], path)
    overlay = {"file": str(path), "url": "", "hf_hub_id": None}
    assert_logits(record, timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay))
    model: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3)
    assert model(recipe.images(model.pretrained_cfg["input_size"][-1])).shape == (2, 3)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record['model']}{record['options'] or ''}")
def test_official_weights_have_an_address_where_there_are_any(record: dict[str, Any]) -> None:
    cfg = timm.get_pretrained_cfg(record["model"])
    assert cfg is not None
    released = {
        "cct_7_3x1_32", "cct_7_3x1_32_sine", "cct_7_7x2_224_sine", "cct_14_7x2_224", "cct_14_7x2_384", "cvt_13", "cvt_21",
        "cvt_w24", "pvt_tiny", "pvt_small", "pvt_medium", "pvt_large", "t2t_vit_7", "t2t_vit_10", "t2t_vit_12", "t2t_vit_14",
        "t2t_vit_19", "t2t_vit_24", "t2t_vit_t_14", "t2t_vit_t_19", "t2t_vit_t_24",
    }  # fmt: skip
    assert bool(cfg.url or cfg.hf_hub_id) == (record["model"] in released)
    assert not cfg.url or re.fullmatch(r"https://(github|shi-labs)\.com/\S+\.pth(\.tar)?", str(cfg.url))
