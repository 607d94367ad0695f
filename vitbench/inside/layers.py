"""The layers of any model in the order in which they run, and what they give, as examples or as maps of the image.

What is a layer. Models keep their blocks in chains: an `nn.Sequential`, an `nn.ModuleList`, or a module all of whose children
are numbered (RegNet's b1, b2, ...), whose members have children of their own. A member is a stage, whose own chains count
instead, if it is such a chain, or has one called `blocks` or `layers`, or holds anywhere one of two or more members of one class;
else it is a block, and a block's insides are its own. So timm's `blocks.0`, `stages.0.blocks.0`, `layers.1.blocks.0`,
`layer1.0`, `s1.b1` and `blocks.0.0` are found without their names being known, as are those of torchvision and transformers. A
model without chains has its children for layers, those of an `nn.Sequential` one by one.

Besides the blocks' outputs, what goes into the first block of a chain is a layer, unless the block before gave it: the embedded
image, with its positions; and what was embedded again between stages. A part of a block is a child of it with parameters: norms,
attention, MLP, convolutions.

What is a map. Of a tensor of four axes, channels are the second if the other two have the aspect of the image, else the last if
those before have; a model that says `output_fmt` NHWC, as timm's Swin, is believed first. Of tokens, the grid is
what the block takes or gives beside them (rows and columns), else `grid_size` of the module itself, of its `patch_embed`, or of
the modules around it, else what has the aspect of the image at a whole stride; what exceeds it must be the model's prefix tokens,
`num_prefix_tokens` or the parameters called class, distillation or register token. A clip's tokens are taken frame by frame.
Where nothing fits, the layer has no map, and says why.

Shapes: B batch, T H W frames, rows and columns of the input, t gh gw of the map, N tokens, C channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitbench.errors import NotDefined
from vitbench.units import size

Kind = Literal["embedding", "block", "part"]
Grid = tuple[int, ...]

EMBEDDING = "embedding"
"""The name of what goes into the first block."""

_CHAINS = (nn.Sequential, nn.ModuleList)
_PREFIX_TOKENS = re.compile(
    r"(^|\.)(cls|class|dist|distillation|reg|register|registers|storage)_(token|tokens|emb|embedding)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What one layer gave in one pass.

    Attributes:
        layer: path of the module in the model, or a name of what goes into one.
        kind: of the layer.
        output: the first tensor of what it gave, its batch or a multiple of it on the first axis.
        input_shape: of what went into the model, (B, C, H, W) or (B, C, T, H, W).
        grids: where its tokens may lie, the likeliest first.
        prefix: tokens that the model puts before those of the image.
        channels_last: whether the model says that its maps are.
        batch_second: whether a block of this pass has the batch on its second axis, as torch's own Transformer layers may.
        in_order: whether its tokens are in reading order; those of a model that unrolls them, as Hiera, are not.
    """

    layer: str
    kind: Kind
    output: Tensor
    input_shape: tuple[int, ...]
    grids: tuple[Grid, ...]
    prefix: int
    channels_last: bool
    batch_second: bool = False
    in_order: bool = True

    def examples(self) -> Tensor:
        """Gives what belongs to each input, (B, features).

        Frames or windows that share the first axis with the batch are taken to have the batch outside.

        Raises:
            NotDefined: the first axis is not the batch's.
        """
        batch, shape = self.input_shape[0], self.output.shape
        if not shape or shape[0] % batch or self.batch_second:
            raise NotDefined(f"{self.layer} gives {size(tuple(shape))}, whose first axis is not the batch of {batch}")
        return self.output.reshape(batch, -1)

    def map(self) -> Tensor:
        """Gives what lies where in the image, (B, C, gh, gw), or in the clip, (B, C, t, gh, gw), without prefix tokens.

        Raises:
            NotDefined: the tensor does not say where its numbers lie.
        """
        found = self._clip_map() if len(self.input_shape) == 5 else self._image_map()
        if found is None:
            raise NotDefined(
                f"{self.layer} gives {size(tuple(self.output.shape))}, which is no map of an input of {size(self.input_shape)}"
            )
        return found

    def _image_map(self) -> Tensor | None:
        x, extents = self.output, self.input_shape[2:]
        if len(x) != self.input_shape[0]:
            return None
        if x.ndim == 4:
            first, last = (_alike(places, extents) for places in (x.shape[2:], x.shape[1:3]))
            if last and (self.channels_last or not first):
                return x.permute(0, 3, 1, 2)
            return x if first else None
        if x.ndim != 3 or not self.in_order:
            return None
        grids = [grid[-2:] for grid in self.grids if math.prod(grid) == math.prod(grid[-2:])]
        for grid in [*grids, *self._grids_of_the_aspect(x.shape[1])]:
            if x.shape[1] - math.prod(grid) in (0, self.prefix):
                return _unflattened(x, x.shape[1] - math.prod(grid), grid)
        return None

    def _grids_of_the_aspect(self, tokens: int) -> Iterator[Grid]:
        """Gives the grids of so many tokens, with or without the prefix, that a whole stride makes of the image."""
        height, width = self.input_shape[2:]
        for places in dict.fromkeys((tokens - self.prefix, tokens)):
            for rows in range(1, height + 1):
                grid = (rows, places // rows)
                # One token alone is more likely a class token than an image.
                if grid[0] * grid[1] == places > 1 and _at_a_stride(grid, (height, width)):
                    yield grid

    def _clip_map(self) -> Tensor | None:
        x, batch = self.output, self.input_shape[0]
        if x.ndim == 5 and len(x) == batch:
            first, last = (_alike(places, self.input_shape[3:]) for places in (x.shape[3:], x.shape[2:4]))
            if last and (self.channels_last or not first):
                return x.permute(0, 4, 1, 2, 3)
            return x if first else None
        if x.ndim not in (3, 4) or len(x) % batch or not self.in_order:
            return None
        # Tokens of frame after frame: on the first axis with the batch, on an axis of their own, or all on one.
        frames = len(x) // batch if x.ndim == 3 else x.shape[1] if len(x) == batch else 0
        per_frame = x.unflatten(0, (batch, frames)) if x.ndim == 3 and frames > 1 else x
        for grid in self.grids:
            t, plane = grid[0] if len(grid) == 3 else None, grid[-2:]
            if per_frame.ndim == 4:
                spare = per_frame.shape[2] - math.prod(plane)
                if t in (None, frames) and spare in (0, self.prefix):
                    return _unflattened(per_frame[:, :, spare:].flatten(1, 2), 0, (frames, *plane))
                continue
            for spare in (self.prefix, 0):
                steps = t or (x.shape[1] - spare) // math.prod(plane)
                if steps * math.prod(plane) == x.shape[1] - spare > 0:
                    return _unflattened(x, spare, (steps, *plane))
        return None


def _unflattened(x: Tensor, prefix: int, grid: Grid) -> Tensor:
    """(B, prefix + N, C) -> (B, C, *grid)."""
    found: Tensor = x[:, prefix:].mT.unflatten(2, grid)
    return found


def _alike(grid: Iterable[int], extents: Iterable[int]) -> bool:
    """Says whether a map may be of an image: at a stride of it, or less up to 3 rows and columns that convolutions cut off."""
    (rows, columns), (height, width) = grid, extents
    cut = rows <= height and columns <= width and abs(rows * width - columns * height) <= 3 * abs(height - width)
    return cut or _at_a_stride((rows, columns), (height, width))


def _at_a_stride(grid: Iterable[int], extents: Iterable[int]) -> bool:
    """Says whether one whole stride, rounded up or down, makes the grid of an image of these extents."""
    (rows, columns), (height, width) = grid, extents
    if min(rows, columns) < 1 or (height == width and rows != columns):
        return False
    least, most = max(1, height // (rows + 1)), -(-height // max(1, rows - 1))
    return any(
        rows in (height // stride, -(-height // stride)) and columns in (width // stride, -(-width // stride))
        for stride in range(least, most + 1)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of a model.

    Attributes:
        name: its path in the model.
        module: itself.
        begins: whether it is the first of its chain.
    """

    name: str
    module: nn.Module
    begins: bool

    def parts(self) -> dict[str, nn.Module]:
        """Gives its children with parameters, by their paths; those that only weigh the channels of another are left out."""
        return {
            f"{self.name}.{name}": child
            for name, child in self.module.named_children()
            if any(True for _ in child.parameters()) and type(child).__name__ != "LayerScale"
        }


def blocks(model: nn.Module) -> tuple[Block, ...]:
    """Gives the blocks of a model in the order of its modules, by the rule above.

    Raises:
        NotDefined: the model has no modules within.
    """
    found = tuple(_walk(model, ""))
    if not found:
        members = [
            (f"{name}.{inner}", child) if inner else (name, child)
            for name, outer in model.named_children()
            for inner, child in (outer.named_children() if isinstance(outer, _CHAINS) else [("", outer)])
        ]
        found = tuple(
            Block(name=name, module=module, begins=number == 0) for number, (name, module) in enumerate(members)
        )
    if not found:
        raise NotDefined("it is one module without others within, so it has no layers to look at")
    return found


def _walk(module: nn.Module, path: str) -> Iterator[Block]:
    members = _members(module)
    begins = True
    for name, child in members.items() if members else module.named_children():
        child_path = f"{path}.{name}" if path else name
        if members and not _is_stage(child):
            yield Block(name=child_path, module=child, begins=begins)
            begins = False
        else:
            yield from _walk(child, child_path)


def _members(module: nn.Module) -> dict[str, nn.Module]:
    """Gives the members of a chain; none if it is no chain."""
    members = {name: child for name, child in module.named_children() if not isinstance(child, nn.Identity)}
    if not all(any(True for _ in child.children()) for child in members.values()):
        return {}
    numbered = all(re.fullmatch(r"[a-z_]+\d+", name) for name in members) and len({*map(type, members.values())}) == 1
    return members if isinstance(module, _CHAINS) or numbered else {}


def _is_stage(module: nn.Module) -> bool:
    if _members(module) or any(
        _members(child) for name, child in module.named_children() if name in ("blocks", "layers")
    ):
        return True
    chains = (list(_members(inner).values()) for inner in module.modules() if isinstance(inner, _CHAINS))
    return any(
        len(chain) > 1 and len({*map(type, chain)}) == 1 and not isinstance(chain[0], nn.Sequential) for chain in chains
    )


@dataclass(slots=True)
class _Pass:
    """What is known of the pass that is under way."""

    input: Tensor | None = None
    last: Tensor | None = None
    batch_second: bool = False
    calls: dict[str, int] = field(default_factory=dict)


@contextmanager
def watched(model: nn.Module, see: Callable[[Activation], None], *, parts: bool = False) -> Iterator[None]:
    """Calls `see` with what each layer gives, as the passes of the model within the context come to it.

    A module that runs again in one pass is a layer again, with the number of the run behind its name.

    Args:
        model: what is run.
        see: gets each activation, still part of the graph where there is one; it must not keep it for long.
        parts: also the parts of the blocks, each before its block.

    Raises:
        NotDefined: the model has no layers.
    """
    now = _Pass()
    prefix = _prefix(model)
    channels_last = str(getattr(model, "output_fmt", "")).rpartition(".")[2].upper() == "NHWC"

    def begin(_: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        now.input, now.last, now.batch_second = _first((*arguments, *options.values())), None, False
        now.calls.clear()

    def given(name: str, kind: Kind, module_path: str, x: Tensor | None, stated: Iterable[Any]) -> None:
        if x is None or now.input is None:
            return
        batch = len(now.input)
        # Parts may have as many tokens in a window as there are images; blocks hardly so.
        if kind != "part" and x.ndim > 2 and x.shape[0] != batch and x.shape[1] == batch:
            now.batch_second = True
        run = now.calls[name] = now.calls.get(name, 0) + 1
        grids = [*map(_as_grid, stated), *_grids_around(model, module_path, now.input.shape)]
        see(
            Activation(
                layer=name if run == 1 else f"{name} ({run})",
                kind=kind,
                output=x,
                input_shape=tuple(now.input.shape),
                grids=tuple(dict.fromkeys(grid for grid in grids if grid)),
                prefix=prefix,
                channels_last=channels_last,
                batch_second=now.batch_second,
                in_order=not hasattr(model, "unroll"),
            )
        )

    def before(block: Block) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
            x = _first((*arguments, *options.values()))
            if x is not None and not any(_same(x, other) for other in (now.last, now.input)):
                name = f"into {block.name}" if now.calls else EMBEDDING
                given(name, "embedding", block.name, x, (*arguments, *options.values()))

        return hook

    def after(name: str, kind: Kind, path: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any], output: Any) -> None:
            x = _first(output)
            if kind == "block":
                # Kept until the next block, so that its memory cannot be another tensor's by then.
                now.last = x
            outputs = output if isinstance(output, (tuple, list)) else ()
            given(name, kind, path, x, (*outputs, *arguments, *options.values()))

        return hook

    handles = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    try:
        for block in blocks(model):
            if block.begins:
                handles.append(block.module.register_forward_pre_hook(before(block), with_kwargs=True))
            for name, part in block.parts().items() if parts else ():
                handles.append(part.register_forward_hook(after(name, "part", block.name), with_kwargs=True))
            handles.append(block.module.register_forward_hook(after(block.name, "block", block.name), with_kwargs=True))
        yield
    finally:
        now.input = now.last = None
        for handle in handles:
            handle.remove()


def _first(found: Any) -> Tensor | None:
    """Gives the first tensor of what a module takes or gives."""
    if isinstance(found, Tensor):
        return found
    if isinstance(found, Mapping):
        found = found.values()
    elif not isinstance(found, (tuple, list)):
        return None
    return next((x for one in found if (x := _first(one)) is not None), None)


def _same(x: Tensor, other: Tensor | None) -> bool:
    """Says whether two tensors show the same numbers in the same memory, be it in another shape."""
    if x is other:
        return True
    if other is None or x.device.type == "meta":
        return False
    return x.numel() == other.numel() and x.data_ptr() == other.data_ptr()


def _as_grid(found: Any) -> Grid | None:
    """Gives two or three numbers as a grid; anything else is none."""
    if isinstance(found, (tuple, list)) and len(found) in (2, 3):
        return tuple(found) if all(isinstance(one, int) and one > 0 for one in found) else None
    return None


def _grids_around(model: nn.Module, path: str, input_shape: torch.Size) -> Iterator[Grid | None]:
    """Gives the grids that the modules around a place state, the innermost first."""
    steps = path.split(".")
    for depth in range(len(steps), -1, -1):
        module = model.get_submodule(".".join(steps[:depth]))
        yield _as_grid(getattr(module, "grid_size", None))
        embedding = getattr(module, "patch_embed", None)
        if embedding is not None and hasattr(embedding, "dynamic_feat_size"):
            # Before the grid that it was built for: another of as many tokens may go in.
            yield _as_grid(embedding.dynamic_feat_size(tuple(input_shape[-2:])))
        yield _as_grid(getattr(embedding, "grid_size", None))


def _prefix(model: nn.Module) -> int:
    """Gives the number of tokens that the model puts before those of the image."""
    stated = getattr(model, "num_prefix_tokens", None)
    if isinstance(stated, int):
        return stated
    return sum(table.shape[-2] for name, table in model.named_parameters() if _PREFIX_TOKENS.search(name))
