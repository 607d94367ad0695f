"""Writes official.json: what the authors' own code says of its models. Run by hand, with clones of their repositories.

    python -m tests.models.official.make FOLDER [REPOSITORY ...]

FOLDER holds clones named CvT (at f851e68), T2T-ViT (0f63dc9), Compact-Transformers (cd11f09), PVT (57e2dfa), TimeSformer
(a5ef29a), SlowFast (287ec00), pytorchvideo (f3142bb) and scenic (4a38d47); CvT's code needs scipy, scenic's flax, ml_collections,
immutabledict and absl-py. For every variant it writes down the parameters, and the names and shapes of the state dict, as a
checksum over sorted lines; for some also the logits of `recipe.weights` and `recipe.inputs`: the first ones and the spread.
"""

from __future__ import annotations

import collections.abc
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import json
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm.layers
import torch
from torch import Tensor

from tests.models.official import recipe

# Our name and options, the official name, what builds it, and the extents of the input that logits are wanted of.
Extents = tuple[int, ...] | None
Source = tuple[str, dict[str, Any], str, Callable[[], Any], Extents]


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


_224 = (224, 224)


class _Anything(type):
    """Stands for whatever is imported and never used."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *_: Any, **__: Any) -> Any:
        return cls


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that official code imports, and that what is needed of it does not need."""

    roots = (
        "detectron2",
        "iopath",
        "simplejson",
        "tensorflow",
        "clu",
        "scenic",
        "slowfast.datasets",
        "timesformer.datasets",
        "av",
    )

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        wanted = any(name == root or name.startswith(f"{root}.") for root in self.roots)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__getattr__ = lambda name: getattr(_Anything(name, (), {}), name)  # type: ignore[method-assign]  # PEP 562 lets a module have one


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
    yield "cvt_13", {}, "cvt-13", partial(build, [64, 192, 384], [1, 2, 10], [1, 3, 6]), _224
    yield "cvt_21", {}, "cvt-21", partial(build, [64, 192, 384], [1, 4, 16], [1, 3, 6]), None
    yield "cvt_w24", {}, "cvt-w24", partial(build, [192, 768, 1024], [2, 2, 20], [3, 12, 16]), None


def _t2t_vit(clone: Path) -> Iterator[Source]:
    package = _package("official_t2t_vit", clone / "models")
    plain, se, ghost, dense = (
        importlib.import_module(f"{package}.t2t_vit{kind}") for kind in ("", "_se", "_ghost", "_dense")
    )
    for name in ("7", "10", "12", "14", "19", "24", "t_14", "t_19", "t_24"):
        yield (
            f"t2t_vit_{name}",
            {},
            f"t2t_vit_{name}",
            getattr(plain, f"t2t_vit_{name}"),
            _224 if name in ("7", "t_14") else None,
        )
    yield "t2t_vit_14", {"img_size": 384}, "t2t_vit_14", partial(plain.t2t_vit_14, img_size=384), None
    yield "t2t_vit_resnext", {}, "t2t_vit_14_resnext", plain.t2t_vit_14_resnext, _224
    yield "t2t_vit_wide", {}, "t2t_vit_14_wide", plain.t2t_vit_14_wide, None
    yield "t2t_vit_se", {}, "t2t_vit_14_se", se.t2t_vit_14_se, _224
    yield "t2t_vit_ghost", {}, "t2t_vit_16_ghost", ghost.t2t_vit_16_ghost, _224
    yield "t2t_vit_dense", {}, "t2t_vit_dense", dense.t2t_vit_dense, _224


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
            yield name, {}, name, partial(cct.CCT, **arguments), (pixels, pixels) if pixels < 384 else None
        for ours, theirs, kind in (("compact_cvt", "cvt", cvt.CVT), ("vit_lite", "vit", vit.ViTLite)):
            for depth, patch in ((2, 4), (4, 4), (6, 4), (7, 4), (7, 8), (7, 16)):
                if (patch, ours) == (16, "compact_cvt"):
                    continue
                arguments = {"kernel_size": patch, **options(depth, 32, 10, positions)}
                tail = f"_{depth}_{patch}_32{suffix}"
                yield ours + tail, {}, theirs + tail, partial(kind, **arguments), (32, 32)


def _pvt(clone: Path) -> Iterator[Source]:
    code = importlib.import_module(_package("official_pvt", clone / "classification") + ".pvt")
    for size in ("tiny", "small", "medium", "large"):
        yield f"pvt_{size}", {}, f"pvt_{size}", getattr(code, f"pvt_{size}"), _224 if size == "tiny" else None


def _timesformer(clone: Path) -> Iterator[Source]:
    _package("timesformer", clone / "timesformer")
    _package("timesformer.models", clone / "timesformer/models")
    code = importlib.import_module("timesformer.models.vit")

    def build(scheme: str, pixels: int, frames: int, depth: int = 12) -> Any:
        norm = partial(torch.nn.LayerNorm, eps=1e-6)
        # As the official class TimeSformer does, which downloads weights besides.
        options = {"img_size": pixels, "num_frames": frames, "num_classes": 400, "qkv_bias": True, "norm_layer": norm}
        model: Any = torch.nn.Module()
        model.model = code.VisionTransformer(attention_type=scheme, depth=depth, **options)
        model.forward = lambda x: model.model(x)
        return model

    for ours, theirs in (("space", "space_only"), ("joint", "joint_space_time"), ("divided", "divided_space_time")):
        name = f"timesformer_{ours}"
        yield name, {}, theirs, partial(build, theirs, 224, 8), None
        yield name, {"img_size": 64, "num_frames": 4, "depth": 3}, theirs, partial(build, theirs, 64, 4, 3), (4, 64, 64)
    yield "timesformer_hr", {}, "TimeSformer-HR", partial(build, "divided_space_time", 448, 16), None
    yield "timesformer_l", {}, "TimeSformer-L", partial(build, "divided_space_time", 224, 96), None


def _slowfast(clone: Path) -> Iterator[Source]:
    sys.path += [str(clone), str(clone.parent / "pytorchvideo")]
    _package("slowfast.models", clone / "slowfast/models")
    code = importlib.import_module("slowfast.models.video_model_builder")
    defaults = importlib.import_module("slowfast.config.defaults")

    def build(file: str, **changes: Any) -> torch.nn.Module:
        config = defaults.get_cfg()
        config.merge_from_file(clone / "configs" / file)
        pairs = [("MODEL.ACT_CHECKPOINT", False), ("MODEL.HEAD_ACT", "none"), *changes.items()]
        config.merge_from_list([part for pair in pairs for part in pair])
        inner = code.MViT(config)
        plain = inner.forward
        inner.forward = lambda x: plain([x])
        return inner  # type: ignore[no-any-return]  # official code has no types

    def small(pixels: int, frames: int) -> dict[str, Any]:
        return {"DATA.TRAIN_CROP_SIZE": pixels, "DATA.TEST_CROP_SIZE": pixels, "DATA.NUM_FRAMES": frames}

    for name, file, pixels in (
        ("mvit_b_16x4", "Kinetics/MVIT_B_16x4_CONV.yaml", 64),
        ("mvit_b_24_32x3", "Kinetics/MVIT_B_32x3_CONV.yaml", 64),
        ("mvitv2_s_16x4", "Kinetics/MVITv2_S_16x4.yaml", 88),  # 11 tokens a side become 6
        ("mvitv2_b_32x3", "Kinetics/MVITv2_B_32x3.yaml", 64),
        ("mvitv2_l_40x3", "Kinetics/MVITv2_L_40x3_test.yaml", 0),
    ):
        yield name, {}, file, partial(build, file), None
        if pixels:
            options = {"img_size": pixels, "num_frames": 4}
            yield name, options, file, partial(build, file, **small(pixels, 4)), (4, pixels, pixels)
    file = "ImageNet/MVIT_B_16_CONV.yaml"
    yield "mvit_b_16_image", {}, file, partial(build, file), None
    yield "mvit_b_16_image", {"img_size": 64}, file, partial(build, file, **small(64, 1)), (64, 64)


def _pytorchvideo(clone: Path) -> Iterator[Source]:
    sys.path.append(str(clone))
    hub = importlib.import_module("pytorchvideo.models.hub.vision_transformers")

    def build(name: str, **options: Any) -> Any:
        model = getattr(hub, name)(**options)
        # What is released is of an earlier version, which did not say these twice.
        state = {key: tensor for key, tensor in model.state_dict().items() if "._attention_pool_" not in key}
        load = model.load_state_dict
        model.state_dict = lambda: state
        model.load_state_dict = lambda tensors: load(tensors, strict=False)
        return model

    clips, images = {"spatial_size": 64, "temporal_size": 4}, {"spatial_size": 64, "head_num_classes": 1000}
    yield "mvit_b_32x3", {}, "mvit_base_32x3", partial(build, "mvit_base_32x3"), None
    small = partial(build, "mvit_base_32x3", **clips)
    yield "mvit_b_32x3", {"img_size": 64, "num_frames": 4}, "mvit_base_32x3", small, (4, 64, 64)
    yield "mvit_b_16_image", {"img_size": 64}, "mvit_base_16", partial(build, "mvit_base_16", **images), (64, 64)


class _Flax:
    """Shows a flax model as torch does: tensors by flattened name, clips with the channels first."""

    def __init__(self, model: Any, extents: tuple[int, ...]) -> None:
        self.model = model
        jax, traverse = importlib.import_module("jax"), importlib.import_module("flax.traverse_util")
        self.unflatten = partial(traverse.unflatten_dict, sep="/")
        clip = jax.ShapeDtypeStruct((1, *extents, 3), "float32")
        made = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), clip)
        found = traverse.flatten_dict(made["params"], sep="/")
        self.tensors = {name: torch.empty(array.shape, requires_grad=True) for name, array in found.items()}

    def eval(self) -> _Flax:
        return self

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors

    def parameters(self) -> Iterable[Tensor]:
        return self.tensors.values()

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        return self.tensors.items()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.weights = self.unflatten({name: tensor.numpy() for name, tensor in state.items()})

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.model.apply({"params": self.weights}, x.permute(0, 2, 3, 4, 1).numpy(), train=False)
        return torch.tensor(logits.tolist())


def _scenic(clone: Path) -> Iterator[Source]:
    sys.path.append(str(clone))
    importlib.invalidate_caches()
    code = importlib.import_module("scenic.projects.vivit.model")
    config = importlib.import_module("ml_collections").ConfigDict
    sizes = {"b": (768, 12, 12), "b, 3 layers": (768, 3, 12), "l": (1024, 24, 16)}

    def build(
        extents: tuple[int, ...], size: str, tubelet: int, embedding: dict[str, Any], attention: dict[str, Any]
    ) -> _Flax:
        dim, depth, heads = sizes[size]
        patches = (16, 16) if embedding["method"] == "temporal_sampling" else (16, 16, tubelet)
        options: dict[str, Any] = {
            "num_classes": 400, "patches": config({"size": patches}), "hidden_size": dim, "classifier": "token",
            "temporal_encoding_config": config(embedding), "attention_config": config(attention),
        }  # fmt: skip
        if attention["type"] != "factorized_encoder":
            if attention["type"] != "spacetime":
                options["classifier"] = "gap"
            return _Flax(code.ViViT(mlp_dim=4 * dim, num_layers=depth, num_heads=heads, **options), extents)
        for encoder, layers in (("spatial", depth), ("temporal", 24 if size == "l" else 4)):
            options |= {f"{encoder}_mlp_dim": 4 * dim, f"{encoder}_num_layers": layers, f"{encoder}_num_heads": heads}
        return _Flax(code.SpaceTimeViViT(**options), extents)

    clip, small = (32, 224, 224), (8, 48, 48)
    tubelets, frames = {"method": "3d_conv"}, {"method": "temporal_sampling", "n_sampled_frames": 4}
    options = {"img_size": 48, "num_frames": 8, "depth": 3}
    for name, attention in (
        ("m1", {"type": "spacetime"}),
        ("fe", {"type": "factorized_encoder"}),
        ("fsa", {"type": "factorized_self_attention_block", "attention_order": "space_time"}),
        ("fdp", {"type": "factorized_dot_product_attention"}),
        ("avgpool", {"type": "factorized_encoder", "spatial_only_baseline": True}),
    ):
        ours = f"vivit_b_16x2_{name}"
        yield ours, {}, str(attention["type"]), partial(build, clip, "b", 2, tubelets, attention), None
        yield ours, options, str(attention["type"]), partial(build, small, "b, 3 layers", 2, tubelets, attention), small
    last: dict[str, Any] = {"type": "factorized_self_attention_block", "attention_order": "time_space"}
    order = {"attention_order": "time_space"}
    yield (
        "vivit_b_16x2_fsa",
        options | order,
        "time_space",
        partial(build, small, "b, 3 layers", 2, tubelets, last),
        small,
    )
    large = partial(build, clip, "l", 2, tubelets, {"type": "factorized_encoder"})
    yield "vivit_l_16x2_fe", {}, "factorized_encoder", large, None
    # Of 8 frames the official code takes 3 instead of 2, by the rounding of its 32-bit numbers.
    clip = (16, 48, 48)
    uniform = partial(build, clip, "b, 3 layers", 4, frames, {"type": "spacetime"})
    yield "vivit_b_16x4_m1_uniform", options | {"num_frames": 16}, "temporal_sampling", uniform, clip


def main(folder: Path, only: Sequence[str]) -> None:
    """Writes official.json beside this file, of some repositories again or of all."""
    # Names that the official code imports and that are gone from today's packages.
    _stand_in("torch._six", container_abcs=collections.abc)
    _stand_in("timm.models.registry", register_model=lambda function: function)
    _stand_in("timm.models.helpers", load_pretrained=None)
    sys.modules["timm.models.layers"] = timm.layers
    sys.meta_path.append(_Absent())
    families = {
        "CvT": _cvt, "T2T-ViT": _t2t_vit, "Compact-Transformers": _compact, "PVT": _pvt, "TimeSformer": _timesformer,
        "SlowFast": _slowfast, "pytorchvideo": _pytorchvideo, "scenic": _scenic,
    }  # fmt: skip
    file = Path(__file__).parent / "official.json"
    old = json.loads(file.read_text())
    records = []
    for repository, sources in families.items():
        if only and repository not in only:
            records += [record for record in old if record["official"].startswith(f"{repository}: ")]
            continue
        for name, options, official, build, extents in sources(folder / repository):
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
            if extents:
                model.load_state_dict(recipe.weights(shapes))
                with torch.no_grad():
                    logits = model(recipe.inputs(extents))
                record["logits"] = [[round(value, 6) for value in row] for row in logits[:, :8].tolist()]
                record["spread"] = round((logits.max() - logits.min()).item(), 6)
            sys.stderr.write(f"{name} {record['params']}\n")
            records.append(record)
    text = "[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n"
    file.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
