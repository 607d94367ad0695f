"""Reads weights from files, whatever their container, without running code that a file may hold.

It knows files and names, not models: what a model does with a state dict is `build.py`'s.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitbench.errors import BadInput, one_line

_TORCH = (".pth", ".pt", ".bin", ".pyth", ".pth.tar")
# timm's training keeps an averaged state beside the plain one, and what is published of such files is the averaged.
_WRAPPERS = ("state_dict_ema", "state_dict", "model", "model_state")


def read(path: Path) -> dict[str, Tensor]:
    """Gives the tensors of a weights file by name, unwrapped, without `module.` prefixes.

    Args:
        path: `.safetensors`; `.pth`, `.pt`, `.bin`, `.pyth` or `.pth.tar` as torch writes them, plain or wrapped in
            `state_dict_ema`, `state_dict`, `model` or `model_state`; Google's `.npz` of a ViT, a hybrid, a BiT or a ViViT; or
            scenic's flax checkpoint, `.msgpack` or called `checkpoint`. Names of flax are turned into timm's.

    Raises:
        BadInput: there is no such file, it is damaged or of another kind, or it holds more than tensors.
    """
    name = path.name.lower()
    suffix = ".pth.tar" if name.endswith(".pth.tar") else path.suffix.lower()
    if re.fullmatch(r"checkpoint(_\d+)?", name):
        suffix = ".msgpack"  # flax gives its files no ending
    if suffix not in (".safetensors", ".npz", ".msgpack", *_TORCH):
        raise BadInput(
            f"Cannot tell how to read weights from {path}: its name must end in .safetensors, .npz, .msgpack or {_TORCH}."
        )
    if not path.is_file():
        raise BadInput(f"There is no weights file {path}.")
    if suffix == ".safetensors":
        return _without_prefix(_read_safetensors(path), path)
    if suffix in (".npz", ".msgpack"):
        return _timm_names(_read_npz(path) if suffix == ".npz" else _read_msgpack(path), path)
    return _without_prefix(_unwrap(_read_torch(path)), path)


def _read_safetensors(path: Path) -> dict[str, Any]:
    import safetensors
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(f"{path} is not a whole safetensors file ({one_line(error)}).") from error


def _read_torch(path: Path) -> Any:
    try:
        # Official DeiT files keep the arguments of their training run, a class without behaviour.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # torch warns of formats that it reads all the same; what it cannot read is an error below.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise BadInput(
                f"{path} holds Python objects besides tensors, and loading those could run code, so it was refused; "
                "save its state dict alone and load that."
            ) from error
        raise BadInput(f"{path} is no file of torch's, or it is damaged ({one_line(error)}).") from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        raise BadInput(f"{path} is truncated or no file of torch's ({one_line(error)}).") from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
    except (
        ValueError,
        TypeError,
        LookupError,
        EOFError,
        OSError,
        AttributeError,
        NotImplementedError,  # what zipfile says of a compression that a damaged header names
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise BadInput(f"{path} is truncated or no .npz file of numbers ({one_line(error)}).") from error


def _read_msgpack(path: Path) -> dict[str, Tensor]:
    try:
        import msgpack
    except ModuleNotFoundError:
        raise BadInput(
            f"{path} is a flax checkpoint; reading it needs msgpack: pip install 'vitbench[flax]'."
        ) from None

    def array(code: int, data: bytes) -> Any:
        # Source: flax, serialization.py: 1 is an array, 3 a number, both (shape, type, bytes); others are no weights.
        if code not in (1, 3):
            return None
        shape, dtype, numbers = msgpack.unpackb(data)
        return torch.frombuffer(bytearray(numbers), dtype=getattr(torch, dtype)).reshape(shape) if numbers else None

    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=array, strict_map_key=False)
        # Source: scenic, train_lib/train_utils.py, TrainState, now and before flax had optax.
        for outer, inner in (("optimizer", "target"), ("params", "")):
            if isinstance(tree, dict) and outer in tree:
                tree = tree[outer][inner] if inner else tree[outer]
        state = dict(_flat(tree, ""))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        OSError,
        msgpack.exceptions.UnpackException,
    ) as error:
        raise BadInput(f"{path} is truncated or no flax checkpoint ({one_line(error)}).") from error
    if not state:
        raise BadInput(f"{path} is no flax checkpoint of weights: it holds no arrays.")
    return state


def _flat(tree: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Gives the tensors of nested mappings, each with its path."""
    for name, branch in tree.items():
        if isinstance(branch, Tensor):
            yield f"{path}{name}", branch
        elif isinstance(branch, dict):
            yield from _flat(branch, f"{path}{name}/")


def _unwrap(loaded: Any) -> Any:
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            return loaded
        loaded = inner
    return loaded


def _without_prefix(loaded: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping) or not any(isinstance(value, Tensor) for value in loaded.values()):
        raise BadInput(f"{path} holds no state dict: a mapping of names to tensors, plain or in one of {_WRAPPERS}.")
    strangers = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if strangers:
        raise BadInput(f"{path} mixes tensors with other values ({', '.join(strangers[:5])}), so it is no state dict.")
    state = {str(key): value for key, value in loaded.items()}
    while all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


# Google's flax names, part by part, and timm's.
_FLAX = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^cls$", "cls_token"),
        (r"^cls_(Spatial|Temporal)Transformer$", lambda found: f"{found[1].lower()}.cls_token"),
        (r"^embedding/", "patch_embed.proj."),
        (r"^(Spatial|Temporal)?Transformer/", lambda found: f"{found[1].lower()}." if found[1] else ""),
        (r"posembed_input/pos_embedding$", "pos_embed"),
        (r"encoder_norm/", "norm."),
        (r"encoderblock_(\d+)/", r"blocks.\1."),
        (r"LayerNorm_(0|space)/", "norm1."),
        (r"LayerNorm_time/", "temporal_norm1."),
        (r"LayerNorm_(1|2|mlp)/", "norm2."),
        (r"MultiHeadDotProductAttention_(\d|space)/", "attn."),
        (r"MultiHeadDotProductAttention_time/", "temporal_attn."),
        (r"attn\.out/", "attn.proj."),
        (r"MlpBlock(_\d)?/Dense_0/", "mlp.fc1."),
        (r"MlpBlock(_\d)?/Dense_1/", "mlp.fc2."),
        # The hybrids' ResNet.
        (r"^conv_root/", "patch_embed.backbone.stem.conv."),
        (r"^gn_root/", "patch_embed.backbone.stem.norm."),
        (r"^block(\d+)/unit(\d+)/", lambda found: f"patch_embed.backbone.{_stage(found)}"),
        (r"(conv|gn)_proj/", lambda found: "downsample." + {"conv": "conv.", "gn": "norm."}[found[1]]),
        (r"gn(\d)/", r"norm\1."),
        (r"conv(\d)/", r"conv\1."),
        # BiT.
        (r"^resnet/root_block/standardized_conv2d/", "stem.conv."),
        (r"^resnet/head/conv2d/", "head.fc."),
        (r"^resnet/group_norm/", "norm."),
        (r"^resnet/block(\d+)/unit(\d+)/", lambda found: _stage(found)),
        (r"([abc])/proj/standardized_conv2d/", "downsample.conv."),
        (r"([abc])/standardized_conv2d/", lambda found: f"conv{'abc'.index(found[1]) + 1}."),
        (r"([abc])/group_norm/", lambda found: f"norm{'abc'.index(found[1]) + 1}."),
        # What is left of head/kernel and pre_logits/kernel.
        (r"^output_projection/", "head."),
        (r"^(head|pre_logits)/", r"\1."),
        (r"(kernel|scale|gamma)$", "weight"),
        (r"beta$", "bias"),
    )
)


def _stage(found: re.Match[str]) -> str:
    return f"stages.{int(found[1]) - 1}.blocks.{int(found[2]) - 1}."


def _timm_names(arrays: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Turns the flax names and layouts of Google's ViT, hybrid, BiT and ViViT files into timm's."""
    state: dict[str, Tensor] = {}
    heads: dict[str, dict[str, Tensor]] = {}
    for flax_name, tensor in arrays.items():
        name = flax_name.removeprefix("opt/target/").removeprefix("optimizer/target/").removeprefix("params/")
        for pattern, replacement in _FLAX:
            name = pattern.sub(replacement, name)
        if projection := re.fullmatch(r"(.+attn\.)(query|key|value)/(weight|bias)", name):
            # blocks.0.attn.query/weight: three tensors become one.
            heads.setdefault(f"{projection[1]}qkv.{projection[3]}", {})[projection[2]] = _projection_in(tensor)
        elif name.endswith("attn.proj.weight") and tensor.ndim == 3:
            state[name] = tensor.flatten(0, 1).T.contiguous()
        else:
            state[name] = _torch_layout(name, tensor)
    for name, parts in heads.items():
        if set(parts) != {"query", "key", "value"}:
            raise BadInput(f"{path} is not whole: of {name} it has {', '.join(sorted(parts))} only.")
        state[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return state


def _projection_in(tensor: Tensor) -> Tensor:
    # kernel (width, heads, head width) -> (heads * head width, width); bias (heads, head width) -> flat.
    return tensor.flatten(1).T.contiguous() if tensor.ndim == 3 else tensor.flatten()


def _torch_layout(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim == 4 and tensor.shape[:3] == (1, 1, 1):
        return tensor.flatten()
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    if tensor.ndim == 5:
        return tensor.permute(4, 3, 0, 1, 2).contiguous()
    if tensor.ndim == 2 and name.endswith("weight"):
        return tensor.T.contiguous()
    return tensor
