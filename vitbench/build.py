"""Builds models: the only door to timm's factory, to the native models behind it, and to a user's own.

A name becomes a `Plan`, which knows the input before anything is built; a plan builds as often as asked, on any device.
"""

from __future__ import annotations

import importlib
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants as hub_constants
from torch import Tensor, nn

from vitbench import catalog, checkpoints, models
from vitbench.errors import BadInput, NotSupported, UnknownName, VitbenchError, one_line
from vitbench.units import size as size_text

ImageSize = int | tuple[int, int]

models.register()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A model about to be built.

    Attributes:
        name: as asked for.
        variant: its row of the catalog, if it has one: of the size asked for, which may be another row than the name's.
        input_shape: without the batch; None for a factory whose input nobody stated.
        options: keyword arguments for the entry point or factory.
        resized: whether another size was asked for than the model's own.
    """

    name: str
    variant: catalog.Variant | None
    input_shape: tuple[int, ...] | None
    options: Mapping[str, Any]
    resized: bool = False
    _make: Callable[..., Any]

    def build(self, device: str | torch.device = "cpu", *, pretrained: bool = False) -> nn.Module:
        """Builds the model, with random weights or with timm's own.

        Args:
            device: on "meta" the model has shapes and no data.
            pretrained: load timm's weights, from its hub or its cache.

        Raises:
            BadInput: the model cannot be built this way, with the reason that it gives.
        """
        options = {**self.options, "pretrained": True} if pretrained else dict(self.options)
        target = torch.device(device)
        try:
            # Else built on the CPU whatever the device, so that a seed gives the same weights everywhere.
            model = self._build_on_meta(options) if target.type == "meta" else self._make(**options)
        except VitbenchError:
            raise
        except (Exception, SystemExit) as error:
            raise BadInput(f"{self.name} cannot be built{self._said()}: {one_line(error)}.") from error
        if not isinstance(model, nn.Module):
            raise BadInput(f"{self.name} gave a {type(model).__name__}, not a torch.nn.Module.")
        if self.resized and self.input_shape is not None:
            _check_tiling(self.name, model, self.input_shape)
        return model if target.type == "meta" else model.to(target)

    def _build_on_meta(self, options: Mapping[str, Any]) -> Any:
        try:
            with torch.device("meta"):
                return self._make(**options)
        except (Exception, SystemExit):
            if self.variant is not None or ":" not in self.name:
                raise
        # A user's factory may need numbers while it builds, which meta tensors do not have. If it fails here too,
        # that is the error to report.
        return self._make(**options)

    def _said(self) -> str:
        shape = f" for input {size_text(self.input_shape)}" if self.input_shape else ""
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items() if key not in ("img_size",))
        return f"{shape} with {options}" if options else shape


def plan(
    name: str,
    *,
    img_size: ImageSize | None = None,
    num_frames: int | None = None,
    num_classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    of_timm: bool = False,
    **model_kwargs: Any,
) -> Plan:
    """Turns a name into a plan: what to call, with which arguments, for which input.

    Args:
        name: a catalog name, a timm name (with or without a tag), or `package.module:factory`.
        img_size: height and width, square if one number. Position tables, windows and grids follow, as timm does it; a
            model published at that size with another window or stem is that other row of the catalog.
        num_frames: frames of a clip, for video models.
        num_classes: classes; by default those of the official variant.
        input_shape: the input of a factory's model, without the batch.
        of_timm: take timm's entry point of that name, also where the catalog's row of that name is another model.
        model_kwargs: passed on to the entry point or factory.

    Raises:
        UnknownName: no model has that name.
        BadInput: a size, a class count or a factory's address is not usable.
        NotSupported: frames were asked of an image model.
    """
    size = _pair(img_size)
    if num_classes is not None and num_classes < 0:
        raise BadInput(f"num_classes must be 0 (no classifier) or more, not {num_classes}.")
    if num_frames is not None and num_frames < 1:
        raise BadInput(f"num_frames must be 1 or more, not {num_frames}.")
    if input_shape is not None and (len(input_shape) not in (3, 4) or min(input_shape) < 1):
        raise BadInput(
            f"The input must be channels x height x width, or channels x frames x height x width, each 1 or more: "
            f"not {size_text(input_shape)}."
        )
    if ":" in name:
        return _plan_factory(name, size, num_frames, num_classes, input_shape, model_kwargs)
    row = catalog.VARIANTS.get(name)
    if of_timm and row is not None and row.timm_name.partition(".")[0] != name:
        row = None
    return _plan_timm(name, row, size, num_frames, num_classes, input_shape, model_kwargs)


def _plan_factory(
    name: str,
    size: tuple[int, int] | None,
    num_frames: int | None,
    num_classes: int | None,
    input_shape: tuple[int, ...] | None,
    model_kwargs: Mapping[str, Any],
) -> Plan:
    asked = {"img_size": size, "num_frames": num_frames, "num_classes": num_classes}
    options = {key: value for key, value in asked.items() if value is not None} | dict(model_kwargs)
    if input_shape is not None and size is not None:
        input_shape = (*input_shape[:-2], *size)
    return Plan(name=name, variant=None, input_shape=input_shape, options=options, _make=_factory(name))


def _plan_timm(
    name: str,
    row: catalog.Variant | None,
    size: tuple[int, int] | None,
    num_frames: int | None,
    num_classes: int | None,
    input_shape: tuple[int, ...] | None,
    model_kwargs: Mapping[str, Any],
) -> Plan:
    if row is None and not timm.is_model(name):
        raise UnknownName("model", name, [*catalog.VARIANTS, *timm.list_models()], hint="`vitbench list` shows all.")
    timm_name = row.timm_name if row else name
    # timm's metadata do not say how many frames a clip has; of its tagged names, the row of the plain one does.
    untagged = catalog.VARIANTS.get(timm_name.partition(".")[0])
    own = row.input_shape if row else _cfg(timm_name)["input_size"]
    if row is None and untagged is not None and untagged.modality == "video":
        own = untagged.input_shape
    if input_shape is not None:
        if len(input_shape) != len(own) or input_shape[0] != own[0]:
            raise BadInput(f"{name} takes an input like {size_text(own)}, not {size_text(input_shape)}.")
        size = size or (input_shape[-2], input_shape[-1])
        num_frames = num_frames or (input_shape[1] if len(input_shape) == 4 else None)
    if num_frames is not None and len(own) == 3:
        raise NotSupported(f"{name} takes images, not clips, so it has no number of frames; leave --num-frames out.")
    if row is not None and size is not None:
        row = catalog.at_size(row, size)
        timm_name, own = row.timm_name, row.input_shape
    options: dict[str, Any] = dict(row.options) if row else {}
    shape = own
    if size is not None and size != own[-2:]:
        shape = (*own[:-2], *size)
        if _cfg(timm_name).get("fixed_input_size"):
            # Models that convolve all the way take any size as they are; these must be told.
            options["img_size"] = size
    if num_frames is not None and num_frames != own[1]:
        shape = (own[0], num_frames, *shape[-2:])
        options["num_frames"] = num_frames
    classes = num_classes if num_classes is not None else row.num_classes if row else None
    if classes is not None:
        options["num_classes"] = classes

    def make(**arguments: Any) -> Any:
        return timm.create_model(timm_name, **arguments)

    return Plan(
        name=name,
        variant=row,
        input_shape=tuple(shape),
        options=options | dict(model_kwargs),
        resized=shape[-2:] != own[-2:],
        _make=make,
    )


def _cfg(timm_name: str) -> Mapping[str, Any]:
    cfg = timm.get_pretrained_cfg(timm_name)
    if cfg is None:
        return {"input_size": (3, 224, 224)}
    return dict(cfg.to_dict())


def _pair(size: ImageSize | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise BadInput(f"The image size must be 1 or more each way, not {height}x{width}.")
    return height, width


def _check_tiling(name: str, model: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuses an image that patches do not tile: the convolution would leave its last rows out in silence."""
    embedding = getattr(model, "patch_embed", None)
    projection = getattr(embedding, "proj", None)
    if not isinstance(projection, nn.Conv2d) or getattr(embedding, "dynamic_img_pad", False):
        return
    patch = projection.kernel_size
    if patch != projection.stride or projection.padding not in ((0, 0), "valid") or hasattr(embedding, "backbone"):
        return
    if any(extent % side for extent, side in zip(shape[-2:], patch, strict=True)):
        below, above = (
            tuple((extent // side + more) * side for extent, side in zip(shape[-2:], patch, strict=True))
            for more in (0, 1)
        )
        raise BadInput(
            f"{name} cannot take {size_text(shape[-2:])} pixels: patches of {size_text(patch)} do not tile them; "
            f"{size_text(below)} or {size_text(above)} would do."
        )


def _factory(address: str) -> Callable[..., Any]:
    module_name, _, attribute = address.partition(":")
    # As `python -m` does: what lies in the current folder can be imported.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise BadInput(
            f"Cannot import {module_name!r} of {address!r}: {error}; is it installed, or in {here}?"
        ) from error
    except AttributeError as error:
        raise BadInput(f"The module {module_name!r} has no {attribute!r}, which {address!r} asks for.") from error
    except (Exception, SystemExit) as error:
        raise BadInput(f"Importing {module_name!r} of {address!r} failed: {one_line(error)}.") from error
    if not callable(found):
        raise BadInput(
            f"{address!r} is a {type(found).__name__}, not something to call that returns a torch.nn.Module."
        )
    return found  # type: ignore[no-any-return]  # what a user's module holds is not known


def input_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Gives the input that a model states in timm's metadata, without the batch, or None if it states none.

    timm's metadata hold three numbers for clips too; a video model carries `num_frames` besides.
    """
    cfg = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    shape = cfg.get("input_size") if isinstance(cfg, Mapping) else getattr(cfg, "input_size", None)
    if shape is None:
        return None
    frames = getattr(model, "num_frames", None)
    channels, height, width = shape
    return (channels, frames, height, width) if frames else (channels, height, width)


def create_model(
    name: str,
    *,
    weights: str | Path = "random",
    img_size: ImageSize | None = None,
    num_frames: int | None = None,
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    **model_kwargs: Any,
) -> nn.Module:
    """Builds a model by name.

    Args:
        name: a catalog name, a timm name, or `package.module:factory`.
        weights: "random" (drawn from `seed`), "pretrained" (timm's own loading, which may download), or the path of a
            `.safetensors`, `.pth`, `.pt`, `.bin`, `.pyth`, `.pth.tar`, Google `.npz` or flax `checkpoint` file, in timm's or the
            official naming.
        img_size: height and width of the image, square if one number; position tables, windows and grids follow.
        num_frames: frames of the clip, for video models; position tables follow.
        num_classes: classes; by default the official variant's. Given, a file's classifier of another size is dropped.
        device: where the model goes; "meta" for shapes without data.
        seed: of the random weights; torch's own generator is left as it was.
        model_kwargs: passed on to the entry point or factory.

    Returns:
        The model, in training mode, as timm's factory and `nn.Module` give it.

    Raises:
        UnknownName: no model has that name.
        BadInput: the model cannot be built that way, or the file does not fit it; the text lists the keys.
        NotSupported: there are no pretrained weights, or weights were asked for on "meta".
    """
    planned = plan(name, img_size=img_size, num_frames=num_frames, num_classes=num_classes, **model_kwargs)
    if weights != "random" and torch.device(device).type == "meta":
        raise NotSupported(
            "A model on the meta device has no data to hold weights; use weights='random' or another device."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if weights == "pretrained":
            return _pretrained(planned, device)
        if weights == "random":
            return planned.build(device)
        state = checkpoints.read(Path(weights))
        model = planned.build()
        _load(
            model,
            state,
            Path(weights),
            classes_given=num_classes is not None,
            size_given=img_size is not None or num_frames is not None,
        )
        return model.to(device)


def _pretrained(planned: Plan, device: str | torch.device) -> nn.Module:
    if ":" in planned.name:
        raise NotSupported(f"{planned.name} is your own factory: only it knows its weights; use a path instead.")
    timm_name = planned.variant.timm_name if planned.variant else planned.name
    cfg = timm.get_pretrained_cfg(timm_name)
    another = planned.variant is not None and planned.variant.options
    if another or cfg is None or not cfg.has_weights:
        raise NotSupported(f"No pretrained weights of {planned.name} are published with timm; give the path of a file.")
    with _hub():
        try:
            return planned.build(device, pretrained=True)
        except BadInput as error:
            if not isinstance(error.__cause__, OSError):
                raise
            # What cannot be reached, or is not in a cache, is an OSError with every library that timm downloads by.
            raise BadInput(
                f"The pretrained weights of {planned.name} are not in the cache, and where they are published cannot be reached. "
                "Get them elsewhere and give the file (--weights FILE), or take random ones (--weights random)."
            ) from error


@contextmanager
def _hub() -> Iterator[None]:
    """Spares the user a minute of attempts, each with a warning, where the hub's name is not even known: its cache is enough."""
    host = urlsplit(hub_constants.ENDPOINT).hostname
    reachable = True
    if not getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            reachable = False
    offline = hub_constants.HF_HUB_OFFLINE
    try:
        hub_constants.HF_HUB_OFFLINE = offline or not reachable
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = offline


def _load(model: nn.Module, state: dict[str, Tensor], path: Path, *, classes_given: bool, size_given: bool) -> None:
    """Puts a state dict into a model, in timm's or the official naming, whole or not at all."""
    # Where official files have other names for tables, renaming comes first, so that resampled tables are known below.
    if type(model).__module__ in models.NATIVE:
        state = _converted(model, state, path, "renamed")
    fitted = _converted(model, state, path, "checkpoint_filter_fn", model)
    wanted = model.state_dict()
    misfits: list[str] = []
    as_read = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    for key, tensor in list(fitted.items()):
        if key not in wanted:
            continue
        # timm's filters resample tables that do not fit. That is right when the user asks for another size, and otherwise
        # hides that the file is of another model. A resampled tensor has memory of its own; a renamed one has the file's.
        resampled = key in state and tensor.untyped_storage().data_ptr() not in as_read
        resized = resampled and state[key].numel() != tensor.numel() and not size_given
        if not resized and _squeezed(tensor) == _squeezed(wanted[key]):
            # SlowFast's image models keep an axis of length 1 for time.
            fitted[key] = tensor.reshape(wanted[key].shape)
        elif classes_given and _is_classifier(model, key):
            fitted[key] = wanted[key]
        else:
            found = state[key] if resized else tensor
            misfits.append(f"{key} is {size_text(tuple(found.shape))}, not {size_text(tuple(wanted[key].shape))}")
    missing = [key for key in wanted if key not in fitted]
    unexpected = [key for key in fitted if key not in wanted]
    if classes_given:
        missing = [key for key in missing if not _is_classifier(model, key)]
        unexpected = [key for key in unexpected if not key.startswith("pre_logits.") and not _is_classifier(model, key)]
    problems = [
        f"{title}: {', '.join(keys)}"
        for title, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misfits))
        if keys
    ]
    if problems:
        advice = ""
        if misfits and not classes_given and any(_is_classifier(model, line.split(" ")[0]) for line in misfits):
            advice = " Give num_classes to drop a classifier of another size."
        elif misfits and not size_given:
            sizes = "img_size or num_frames" if getattr(model, "num_frames", None) else "img_size"
            advice = f" Give {sizes} to have position tables resampled."
        raise BadInput(f"{path} does not fit {type(model).__name__}; {'; '.join(problems)}.{advice}")
    model.load_state_dict({key: tensor for key, tensor in fitted.items() if key in wanted}, strict=not classes_given)


def _converted(model: nn.Module, state: dict[str, Tensor], path: Path, by: str, *others: Any) -> dict[str, Tensor]:
    """Applies a function by which the model's file turns official names into its own, where it has one."""
    convert = getattr(sys.modules[type(model).__module__], by, None)
    if convert is None:
        return dict(state)
    try:
        return dict(convert(dict(state), *others))
    except Exception as error:
        raise BadInput(f"{path} does not fit {type(model).__name__}: {one_line(error)}.") from error


def _squeezed(tensor: Tensor) -> list[int]:
    return [extent for extent in tensor.shape if extent != 1]


def _is_classifier(model: nn.Module, key: str) -> bool:
    names: str | Iterable[str] = (getattr(model, "default_cfg", None) or {}).get("classifier") or ()
    names = (names,) if isinstance(names, str) else names
    return any(key == name or key.startswith(f"{name}.") for name in names)
