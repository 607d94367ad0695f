"""Weights from files: every container, every refusal. The files are made here; their names are the official ones."""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import vitbench
from vitbench import checkpoints
from vitbench.errors import BadInput

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def tiny(**options: object) -> nn.Module:
    return vitbench.create_model("deit_ti16", **TINY, **options)  # type: ignore[arg-type]  # mixed keyword arguments


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return tiny(seed=3).state_dict()


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    mine = model.state_dict()
    return set(mine) == set(state) and all(torch.equal(mine[key], state[key]) for key in mine)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pyth"])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state"])
def test_torch_files_plain_and_wrapped(
    tmp_path: Path, state: dict[str, Tensor], suffix: str, wrapper: str | None
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    assert same(tiny(weights=path), state)


def test_prefixes_of_data_parallel_training_are_stripped(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    assert same(tiny(weights=path), state)


def test_safetensors(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    assert same(tiny(weights=str(path)), state)


def test_the_arguments_that_official_deit_files_carry_are_harmless(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1)}, path)
    assert same(tiny(weights=path), state)


class _Bomb:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.target}",)  # the point of the test is that it never runs


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path, proof = tmp_path / "weights.pth", tmp_path / "ran"
    torch.save({"model": state, "extra": _Bomb(proof)}, path)
    with pytest.raises(BadInput, match="could run code"):
        tiny(weights=path)
    path.write_bytes(pickle.dumps(_Bomb(proof)))
    with pytest.raises(BadInput, match="could run code|no file of torch's"):
        tiny(weights=path)
    assert not proof.exists()


def test_a_pickle_in_an_npz_is_refused(tmp_path: Path) -> None:
    path, proof = tmp_path / "weights.npz", tmp_path / "ran"
    np.savez(path, bomb=np.array([_Bomb(proof)], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match=r"no \.npz file of numbers"):
        tiny(weights=path)
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_refused(tmp_path: Path, state: dict[str, Tensor], suffix: str, share: float) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    elif suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in state.items()})  # type: ignore[arg-type]  # names, not flags
    else:
        save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadInput, match="truncated|not a whole|no file of torch's|no .npz file"):
        tiny(weights=path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="There is no weights file"):
        checkpoints.read(tmp_path / "absent.pth")
    with pytest.raises(BadInput, match="its name must end in"):
        checkpoints.read(tmp_path / "weights.onnx")
    with pytest.raises(BadInput, match="There is no weights file"):
        checkpoints.read(tmp_path.with_suffix(".pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(BadInput, match="holds no state dict"):
        checkpoints.read(tmp_path / "list.pth")


def test_missing_and_unexpected_keys_are_listed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.pth"
    broken = dict(state)
    broken["stranger.weight"] = broken.pop("norm.weight")
    torch.save(broken, path)
    with pytest.raises(BadInput, match=r"missing: norm\.weight; unexpected: stranger\.weight"):
        tiny(weights=path)


def test_a_shape_that_does_not_fit_is_listed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.pth"
    torch.save({**state, "norm.weight": torch.ones(47)}, path)
    with pytest.raises(BadInput, match=r"norm\.weight is 47, not 48"):
        tiny(weights=path)


def test_another_classifier_is_dropped_only_when_asked(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.pth"
    torch.save({**state, "head.weight": torch.ones(21, 48), "head.bias": torch.ones(21)}, path)
    with pytest.raises(BadInput, match=r"head\.weight is 21x48, not 1000x48.*Give num_classes"):
        tiny(weights=path)
    model = tiny(weights=path, num_classes=1000)
    assert torch.equal(model.get_parameter("blocks.1.mlp.fc2.weight"), state["blocks.1.mlp.fc2.weight"])
    # A classifier of the size asked for is kept.
    assert torch.equal(tiny(weights=path, num_classes=21).get_parameter("head.bias"), torch.ones(21))


def test_a_position_table_is_resampled_only_when_another_size_is_asked_for(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    model = tiny(weights=path, img_size=112)
    assert model.get_parameter("pos_embed").shape == (1, 1 + 7 * 7, 48)
    assert torch.equal(model.get_parameter("pos_embed")[:, 0], state["pos_embed"][:, 0])
    torch.save(tiny(img_size=112).state_dict(), path)
    with pytest.raises(BadInput, match="pos_embed is 1x50x48, not 1x197x48.*Give img_size"):
        tiny(weights=path)


def flax_vit(state: dict[str, Tensor], heads: int) -> dict[str, npt.NDArray[np.float32]]:
    """Writes a timm ViT's tensors as google-research/vision_transformer does (models_vit.py and its released files)."""
    out: dict[str, Tensor] = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    for number in range(depth):
        ours, theirs = f"blocks.{number}.", f"Transformer/encoderblock_{number}/"
        for norm, flax in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            out[f"{theirs}{flax}/scale"] = state[f"{ours}{norm}.weight"]
            out[f"{theirs}{flax}/bias"] = state[f"{ours}{norm}.bias"]
        for layer, flax in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            out[f"{theirs}MlpBlock_3/{flax}/kernel"] = state[f"{ours}mlp.{layer}.weight"].T
            out[f"{theirs}MlpBlock_3/{flax}/bias"] = state[f"{ours}mlp.{layer}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        width = state[f"{ours}attn.proj.weight"].shape[0]
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * width, (part + 1) * width)
            out[f"{attention}{name}/kernel"] = state[f"{ours}attn.qkv.weight"][rows].T.reshape(width, heads, -1)
            out[f"{attention}{name}/bias"] = state[f"{ours}attn.qkv.bias"][rows].reshape(heads, -1)
        out[f"{attention}out/kernel"] = state[f"{ours}attn.proj.weight"].T.reshape(heads, -1, width)
        out[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
    return {key: value.contiguous().numpy() for key, value in out.items()}


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
def test_googles_npz_of_a_vit(tmp_path: Path, state: dict[str, Tensor], prefix: str) -> None:
    path = tmp_path / "weights.npz"
    arrays = flax_vit(state, heads=3)
    np.savez(path, **{prefix + key: value for key, value in arrays.items()})  # type: ignore[arg-type]  # names, not flags
    assert same(tiny(weights=path), state)
    # Files of ImageNet-21k have a layer before the classifier, which goes with it.
    arrays |= {"pre_logits/kernel": np.zeros((48, 48), np.float32), "pre_logits/bias": np.zeros(48, np.float32)}
    arrays |= {"head/kernel": np.zeros((48, 21843), np.float32), "head/bias": np.zeros(21843, np.float32)}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # names, not flags
    with pytest.raises(BadInput, match="head"):
        tiny(weights=path)
    kept = tiny(weights=path, num_classes=1000).state_dict()
    assert all(torch.equal(kept[key], state[key]) for key in state if not key.startswith("head."))


def test_an_npz_that_lacks_a_projection_says_which(tmp_path: Path, state: dict[str, Tensor]) -> None:
    arrays = flax_vit(state, heads=3)
    del arrays["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel"]
    np.savez(tmp_path / "weights.npz", **arrays)  # type: ignore[arg-type]  # names, not flags
    with pytest.raises(BadInput, match=r"blocks\.1\.attn\.qkv\.weight it has query, value only"):
        tiny(weights=tmp_path / "weights.npz")


def test_official_swin_names_and_buffers_load(tmp_path: Path) -> None:
    """Microsoft's files name the merging after the stage before it and hold buffers that are computed."""
    small = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
    source = vitbench.create_model("swin_t", seed=4, **small).state_dict()  # type: ignore[arg-type]  # mixed arguments
    official: dict[str, Tensor] = {}
    for key, value in source.items():
        name = key.replace("head.fc.", "head.")
        if ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        official[name] = value
    official["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    torch.save({"model": official}, tmp_path / "swin.pth")
    model = vitbench.create_model("swin_t", weights=tmp_path / "swin.pth", **small)  # type: ignore[arg-type]  # mixed
    assert same(model, source)


def test_official_mvitv2_names_and_five_dimensional_kernels_load(tmp_path: Path) -> None:
    """SlowFast's files number blocks through and keep an axis of length 1 for time in the pooling kernels."""
    source = vitbench.create_model("mvitv2_t", seed=4).state_dict()
    depths, official = (1, 2, 5, 2), {}
    for key, value in source.items():
        name = key.replace("head.fc.", "head.projection.").replace("shortcut_proj_attn", "proj")
        if name.startswith("stages."):
            _, stage, _, block, rest = name.split(".", 4)
            name = f"blocks.{sum(depths[: int(stage)]) + int(block)}.{rest}"
        official[name] = value.unsqueeze(2) if value.ndim == 4 and ".pool_" in name else value
    torch.save({"model_state": official}, tmp_path / "mvit.pyth")
    assert same(vitbench.create_model("mvitv2_t", weights=tmp_path / "mvit.pyth"), source)


def hwio(tensor: Tensor) -> Tensor:
    """A convolution's weight as flax keeps it."""
    return tensor.permute(2, 3, 1, 0)


def blocks_of(state: dict[str, Tensor], prefix: str = "") -> Iterator[tuple[int, int, str, str, Tensor]]:
    """Gives stage and block, counted from 1, part, kind and tensor of what stands in a ResNet v2's blocks."""
    for key, value in state.items():
        found = re.fullmatch(rf"{re.escape(prefix)}stages\.(\d+)\.blocks\.(\d+)\.([\w.]+)\.(weight|bias)", key)
        if found is not None:
            yield int(found[1]) + 1, int(found[2]) + 1, found[3], found[4], value


def test_googles_npz_of_a_bit_loads_as_timm_loads_it(tmp_path: Path) -> None:
    """Names of google-research/big_transfer's files; timm's own reader of them is the judge."""
    sizes: dict[str, Any] = {"layers": (1, 1, 2, 1), "width_factor": 1}
    state = vitbench.create_model("bit_r50x2", seed=4, **sizes).state_dict()
    arrays = {
        "resnet/root_block/standardized_conv2d/kernel": hwio(state["stem.conv.weight"]),
        "resnet/group_norm/gamma": state["norm.weight"],
        "resnet/group_norm/beta": state["norm.bias"],
        "resnet/head/conv2d/kernel": hwio(state["head.fc.weight"]),
        "resnet/head/conv2d/bias": state["head.fc.bias"],
    }
    for stage, block, part, kind, value in blocks_of(state):
        unit = f"resnet/block{stage}/unit{block:02d}/"
        if part == "downsample.conv":
            arrays[f"{unit}a/proj/standardized_conv2d/kernel"] = hwio(value)
        elif part.startswith("conv"):
            arrays[f"{unit}{'abc'[int(part[-1]) - 1]}/standardized_conv2d/kernel"] = hwio(value)
        else:
            arrays[f"{unit}{'abc'[int(part[-1]) - 1]}/group_norm/{'gamma' if kind == 'weight' else 'beta'}"] = value
    np.savez(tmp_path / "bit.npz", **{key: value.numpy() for key, value in arrays.items()})
    judge: Any = vitbench.create_model("bit_r50x2", seed=5, **sizes)
    judge.load_pretrained(str(tmp_path / "bit.npz"))
    assert same(judge, state)
    assert same(vitbench.create_model("bit_r50x2", weights=tmp_path / "bit.npz", **sizes), state)


def test_googles_npz_of_a_hybrid_loads_as_timm_loads_it(tmp_path: Path) -> None:
    """Names of google-research/vision_transformer's R50+ViT-B/16; timm's own reader of them is the judge."""
    sizes: dict[str, Any] = {"embed_dim": 48, "depth": 1, "num_heads": 3}
    state = vitbench.create_model("r50_vit_b16", seed=4, **sizes).state_dict()
    backbone = "patch_embed.backbone."
    arrays = {key: torch.from_numpy(value) for key, value in flax_vit(state, heads=3).items()}
    arrays |= {
        "conv_root/kernel": hwio(state[f"{backbone}stem.conv.weight"]),
        "gn_root/scale": state[f"{backbone}stem.norm.weight"].view(1, 1, 1, -1),
        "gn_root/bias": state[f"{backbone}stem.norm.bias"].view(1, 1, 1, -1),
    }
    for stage, block, part, kind, value in blocks_of(state, backbone):
        name = part.replace("downsample.conv", "conv_proj").replace("downsample.norm", "gn_proj").replace("norm", "gn")
        unit = f"block{stage}/unit{block}/{name}/"
        if value.ndim == 4:
            arrays[f"{unit}kernel"] = hwio(value)
        else:
            arrays[f"{unit}{'scale' if kind == 'weight' else 'bias'}"] = value.view(1, 1, 1, -1)
    np.savez(tmp_path / "vit.npz", **{key: value.numpy() for key, value in arrays.items()})  # type: ignore[arg-type]  # names
    judge: Any = vitbench.create_model("r50_vit_b16", seed=5, **sizes)
    judge.load_pretrained(str(tmp_path / "vit.npz"))
    assert same(judge, state)
    assert same(vitbench.create_model("r50_vit_b16", weights=tmp_path / "vit.npz", **sizes), state)


def test_a_clips_tables_are_resampled_only_when_another_length_is_asked_for(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"embed_dim": 48, "depth": 1, "num_heads": 3}
    path = tmp_path / "clips.pth"
    made = vitbench.create_model("timesformer", img_size=32, num_frames=4, **sizes)
    torch.save(made.state_dict(), path)
    longer: Any = vitbench.create_model("timesformer", weights=path, img_size=32, num_frames=8, **sizes)
    table: Any = made.get_parameter("time_embed")
    assert torch.equal(longer.time_embed, table.repeat_interleave(2, dim=1))
    with pytest.raises(BadInput, match=r"time_embed is 1x4x48, not 1x8x48.*Give img_size or num_frames to have"):
        vitbench.create_model("timesformer", weights=path, **sizes)


# Two states of scenic's training as flax 0.12.8 wrote them (serialization.to_bytes): from before flax had optax, and since.
FLAX = {
    "optimizer": (
        "hKlvcHRpbWl6ZXKCpnRhcmdldIOjY2xzxxcBk5MBAQKnZmxvYXQzMsQIAAAAPwAAgL+rVHJhbnNmb3JtZXKBrGVuY29kZXJfbm9ybYKlc2NhbG"
        "XHFQGTkQKnZmxvYXQzMsQIAAAAAAAAgD+kYmlhc8cSAZORAqhiZmxvYXQxNsQEQECAQLFvdXRwdXRfcHJvamVjdGlvboKma2VybmVsxyYBk5IC"
        "A6dmbG9hdDMyxBgAAAAAAACAPwAAAEAAAEBAAACAQAAAoECkYmlhc8cZAZORA6dmbG9hdDMyxAwAAAAAAAAAAAAAAAClc3RhdGWCpHN0ZXDHDg"
        "OTkKVpbnQzMsQEBwAAAKxwYXJhbV9zdGF0ZXOBo2Nsc4GobW9tZW50dW3HFwGTkwEBAqdmbG9hdDMyxAgAAIA/AACAP6tnbG9iYWxfc3RlcAer"
        "bW9kZWxfc3RhdGWAo3JuZ8cUAZORAqZ1aW50MzLECAAAAAABAAAA"
    ),
    "params": (
        "g6ZwYXJhbXODo2Nsc8cXAZOTAQECp2Zsb2F0MzLECAAAAD8AAIC/q1RyYW5zZm9ybWVygaxlbmNvZGVyX25vcm2CpXNjYWxlxxUBk5ECp2Zsb2"
        "F0MzLECAAAAAAAAIA/pGJpYXPHEgGTkQKoYmZsb2F0MTbEBEBAgECxb3V0cHV0X3Byb2plY3Rpb26Cpmtlcm5lbMcmAZOSAgOnZmxvYXQzMsQY"
        "AAAAAAAAgD8AAABAAABAQAAAgEAAAKBApGJpYXPHGQGTkQOnZmxvYXQzMsQMAAAAAAAAAAAAAAAAqW9wdF9zdGF0ZYGhMIGlY291bnTHDgOTkK"
        "VpbnQzMsQEAQAAAKtnbG9iYWxfc3RlcAE="
    ),
}


@pytest.mark.parametrize("kind", FLAX)
@pytest.mark.parametrize("name", ["checkpoint", "checkpoint_30", "vivit.msgpack"])
def test_flax_checkpoints_of_scenic(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(base64.b64decode(FLAX[kind]))
    found = checkpoints.read(path)
    assert set(found) == {"cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert found["cls_token"].tolist() == [[[0.5, -1.0]]]
    assert found["head.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["norm.bias"].dtype == torch.bfloat16
    assert found["norm.bias"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (base64.b64decode(FLAX["params"])[:150], "truncated or no flax checkpoint"),
        (b"\x07", "truncated or no flax checkpoint"),
        (b"\x81\xa1a\x07", "it holds no arrays"),
        (b"", "truncated or no flax checkpoint"),
        # An array of a type that torch does not have, and one whose numbers do not fill its shape.
        (b"\x81\xa1a\xc7\x0b\x01\x93\x91\x01\xa3evi\xc4\x01\x00", "truncated or no flax checkpoint"),
        (b"\x81\xa1a\xc7\x0f\x01\x93\x91\x02\xa7float32\xc4\x01\x00", "truncated or no flax checkpoint"),
    ],
)
def test_a_damaged_flax_checkpoint_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=expected):
        checkpoints.read(path)


def test_without_msgpack_a_flax_checkpoint_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(base64.b64decode(FLAX["params"]))
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(BadInput, match=r"pip install 'vitbench\[flax\]'"):
        checkpoints.read(path)


@pytest.mark.parametrize("suffix", ["npz", "pyth", "msgpack"])
def test_a_file_with_changed_bytes_is_read_or_refused(tmp_path: Path, suffix: str) -> None:
    """Never a traceback: what a damaged file makes numpy, torch and msgpack raise is of many kinds."""
    path = tmp_path / f"damaged.{suffix}"
    if suffix == "npz":
        arrays: dict[str, Any] = {"cls": np.zeros((1, 1, 4), np.float32), "head/kernel": np.ones((4, 3), np.float32)}
        np.savez_compressed(path, **arrays)
    elif suffix == "pyth":
        torch.save({"model_state": {"head.weight": torch.ones(3, 4)}}, path)
    else:
        path.write_bytes(base64.b64decode(FLAX["params"]))
    whole = path.read_bytes()
    chance = np.random.RandomState(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randint(len(damaged))] = chance.randint(256)
        path.write_bytes(damaged)
        with contextlib.suppress(BadInput):
            checkpoints.read(path)
