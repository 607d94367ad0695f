"""Writes official.json: what the authors' own code says of its models. Run by hand, with clones of their repositories.

    python -m tests.models.official.make FOLDER

FOLDER holds clones named CvT (at f851e68), T2T-ViT (0f63dc9), Compact-Transformers (cd11f09) and PVT (57e2dfa); CvT's code needs
einops and scipy. For every variant it writes down the parameters, and the names and shapes of the state dict, as a checksum over
sorted lines; for some also the logits of `recipe.weights` and `recipe.images`, of which the first ones and the spread are kept.
"""

from __future__ import annotations

import collections.abc
import hashlib
import importlib
import importlib.machinery
import json
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import timm.layers
import torch

from tests.models.official import recipe

Source = tuple[str, dict[str, Any], str, Callable[[], torch.nn.Module], bool]


def _package(name: str, folder: Path) -> str:
    """Makes a folder of official code importable under a name that no other has."""
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    return name


def _stand_in(name: str, **attributes: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name] = module


def _cvt(clone: Path) -> Iterator[Source]:
    code = importlib.import_module(_package("official_cvt", clone / "lib/models") + ".cls_cvt")

    def build(dims: list[int], depths: list[int], heads: list[int]) -> torch.nn.Module:
        spec = {
            "NUM_STAGES": 3, "PATCH_SIZE": [7, 3, 3], "PATCH_STRIDE": [4, 2, 2], "PATCH_PADDING": [2, 1, 1],
            "DIM_EMBED": dims, "NUM_HEADS": heads, "DEPTH": depths, "MLP_RATIO": [4.0] * 3, "ATTN_DROP_RATE": [0.0] * 3,
            "DROP_RATE": [0.0] * 3, "DROP_PATH_RATE": [0.0, 0.0, 0.1], "QKV_BIAS": [True] * 3,
            "CLS_TOKEN": [False, False, True], "QKV_PROJ_METHOD": ["dw_bn"] * 3, "KERNEL_QKV": [3] * 3,
            "PADDING_KV": [1] * 3, "STRIDE_KV": [2] * 3, "PADDING_Q": [1] * 3, "STRIDE_Q": [1] * 3,
        }  # fmt: skip
        norm = partial(code.LayerNorm, eps=1e-5)
        model: torch.nn.Module = code.ConvolutionalVisionTransformer(
            act_layer=code.QuickGELU, norm_layer=norm, spec=spec
        )
        return model

    # Source of the sizes: experiments/imagenet/cvt/*.yaml.
    yield "cvt_13", {}, "cvt-13", partial(build, [64, 192, 384], [1, 2, 10], [1, 3, 6]), True
    yield "cvt_21", {}, "cvt-21", partial(build, [64, 192, 384], [1, 4, 16], [1, 3, 6]), False
    yield "cvt_w24", {}, "cvt-w24", partial(build, [192, 768, 1024], [2, 2, 20], [3, 12, 16]), False


def _t2t_vit(clone: Path) -> Iterator[Source]:
    package = _package("official_t2t_vit", clone / "models")
    plain, se, ghost, dense = (
        importlib.import_module(f"{package}.t2t_vit{kind}") for kind in ("", "_se", "_ghost", "_dense")
    )
    for name in ("7", "10", "12", "14", "19", "24", "t_14", "t_19", "t_24"):
        yield f"t2t_vit_{name}", {}, f"t2t_vit_{name}", getattr(plain, f"t2t_vit_{name}"), name in ("7", "t_14")
    yield "t2t_vit_14", {"img_size": 384}, "t2t_vit_14", partial(plain.t2t_vit_14, img_size=384), False
    yield "t2t_vit_resnext", {}, "t2t_vit_14_resnext", plain.t2t_vit_14_resnext, True
    yield "t2t_vit_wide", {}, "t2t_vit_14_wide", plain.t2t_vit_14_wide, False
    yield "t2t_vit_se", {}, "t2t_vit_14_se", se.t2t_vit_14_se, True
    yield "t2t_vit_ghost", {}, "t2t_vit_16_ghost", ghost.t2t_vit_16_ghost, True
    yield "t2t_vit_dense", {}, "t2t_vit_dense", dense.t2t_vit_dense, True


def _compact(clone: Path) -> Iterator[Source]:
    package = _package("official_compact", clone / "src")
    cct, cvt, vit = (importlib.import_module(f"{package}.{kind}") for kind in ("cct", "cvt", "vit"))
    sizes = {2: (128, 2, 1), 4: (128, 2, 1), 6: (256, 4, 2), 7: (256, 4, 2), 14: (384, 6, 3)}

    def options(depth: int, pixels: int, classes: int, positions: str) -> dict[str, Any]:
        dim, heads, ratio = sizes[depth]
        # Through the classes, since the constructors of CCT and CVT lose the kind of positions on the way.
        return {
            "img_size": pixels, "num_classes": classes, "embedding_dim": dim, "num_layers": depth, "num_heads": heads,
            "mlp_ratio": ratio, "positional_embedding": positions,
        }  # fmt: skip

    for suffix, positions in (("", "learnable"), ("_sine", "sine")):
        for depth, kernel, layers, pixels, classes in (
            (2, 3, 2, 32, 10), (4, 3, 2, 32, 10), (6, 3, 1, 32, 10), (6, 3, 2, 32, 10), (7, 3, 1, 32, 10), (7, 3, 2, 32, 10),
            (7, 7, 2, 224, 102), (14, 7, 2, 224, 1000), (14, 7, 2, 384, 1000),
        ):  # fmt: skip
            if depth == 14 and suffix:
                continue
            name = f"cct_{depth}_{kernel}x{layers}_{pixels}{suffix}"
            window = {"kernel_size": kernel, "stride": max(1, kernel // 2 - 1), "padding": max(1, kernel // 2)}
            arguments = {"n_conv_layers": layers, **window, **options(depth, pixels, classes, positions)}
            yield name, {}, name, partial(cct.CCT, **arguments), pixels < 384
        for ours, theirs, kind in (("compact_cvt", "cvt", cvt.CVT), ("vit_lite", "vit", vit.ViTLite)):
            for depth, patch in ((2, 4), (4, 4), (6, 4), (7, 4), (7, 8), (7, 16)):
                if (patch, ours) == (16, "compact_cvt"):
                    continue
                arguments = {"kernel_size": patch, **options(depth, 32, 10, positions)}
                tail = f"_{depth}_{patch}_32{suffix}"
                yield ours + tail, {}, theirs + tail, partial(kind, **arguments), True


def _pvt(clone: Path) -> Iterator[Source]:
    code = importlib.import_module(_package("official_pvt", clone / "classification") + ".pvt")
    for size in ("tiny", "small", "medium", "large"):
        yield f"pvt_{size}", {}, f"pvt_{size}", getattr(code, f"pvt_{size}"), size == "tiny"


def main(folder: Path) -> None:
    """Writes official.json beside this file."""
    # Names that the official code imports and that are gone from today's packages.
    _stand_in("torch._six", container_abcs=collections.abc)
    _stand_in("timm.models.registry", register_model=lambda function: function)
    _stand_in("timm.models.helpers", load_pretrained=None)
    sys.modules["timm.models.layers"] = timm.layers
    families = {"CvT": _cvt, "T2T-ViT": _t2t_vit, "Compact-Transformers": _compact, "PVT": _pvt}
    records = []
    for repository, sources in families.items():
        for name, options, official, build, with_logits in sources(folder / repository):
            model = build().eval()
            state = model.state_dict()
            shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
            record: dict[str, Any] = {
                "model": name,
                "options": options,
                "official": f"{repository}: {official}",
                "params": sum(parameter.numel() for parameter in model.parameters()),
                "frozen": sorted(key for key, parameter in model.named_parameters() if not parameter.requires_grad),
                "tensors": len(shapes),
                "sha256": hashlib.sha256(recipe.lines(shapes).encode()).hexdigest(),
            }
            if with_logits:
                model.load_state_dict(recipe.weights(shapes))
                pixels = 224 if "224" in name or "_32" not in name else 32
                with torch.no_grad():
                    logits = model(recipe.images(pixels))
                record["logits"] = [[round(value, 6) for value in row] for row in logits[:, :8].tolist()]
                record["spread"] = round((logits.max() - logits.min()).item(), 6)
            sys.stderr.write(f"{name} {record['params']}\n")
            records.append(record)
    text = "[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n"
    (Path(__file__).parent / "official.json").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
