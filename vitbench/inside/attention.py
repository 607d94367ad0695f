"""Taps every attention call of a model as it runs, and hands its rows on in blocks; no map is kept, no module is changed.

A torch function mode sees `F.scaled_dot_product_attention`, `F.multi_head_attention_forward` and, within registered classes,
`softmax`. Fused attention is replaced, not repeated: logits and softmax are formed in float32, a few maps or rows at a time,
read, and multiplied with the values. Where the tokens lie, `attention_sites` knows.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from vitbench.errors import NotDefined
from vitbench.inside import attention_sites
from vitbench.inside.attention_sites import Elsewhere, Running, Site
from vitbench.inside.geometry import Distances, Geometry
from vitbench.inside.observing import Observer

# Bytes of a block of attention: on a CPU it should stay in its caches, elsewhere each launch should be worth its while.
BLOCK_BYTES = {"cpu": 2**22, "elsewhere": 2**28}

INSTEAD = ("cka", "receptive-field", "feature-maps")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One attention call: a map for each input, group and head.

    Attributes:
        layer: name of the module, with the part of it in brackets where it attends in several ways at once.
        geometry: where the queries and keys lie.
        batch: inputs, B.
        heads: h.
        device: of the maps.
        kinds: (maps,), which kind of `Distances` each map has; None where all have the first.
    """

    layer: str
    geometry: Geometry
    batch: int
    heads: int
    device: torch.device
    kinds: Tensor | None

    @property
    def maps(self) -> int:
        """How many maps there are: B x G x h."""
        return self.batch * self.geometry.groups * self.heads

    @property
    def distances(self) -> Distances:
        """The distances of its geometry, on its device."""
        return self.geometry.distances(self.device)

    def rows(self) -> Tensor:
        """Gives room for a number a row of each map, (maps, queries), in float32."""
        return torch.empty(self.maps, self.geometry.queries.shape[1], device=self.device)

    def sorted(self, rows: Tensor) -> Tensor:
        """(maps, ...) -> (B, G, h, ...)."""
        extents = {"b": self.batch, "g": self.geometry.groups, "h": self.heads}
        layout = self.geometry.layout
        found = rows.view(*(extents[axis] for axis in layout), *rows.shape[1:])
        return found.permute(*(layout.index(axis) for axis in "bgh"), *range(3, found.dim()))

    def per_input(self, rows: Tensor, *, over: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sums a number a row over the queries that have a place, leaving out what is not a number.

        Args:
            rows: (maps, queries).
            over: (G, queries), by which the numbers are divided first.

        Returns:
            The sums, (B, h) in float64 on the CPU, and how many numbers each is of, (B, h).
        """
        found = self.sorted(rows).cpu().double()
        if over is not None:
            found = found / over[None, :, None]
        counts = self.geometry.placed_queries[None, :, None] & ~found.isnan()
        return found.where(counts, 0.0).sum((1, 3)), counts.sum((1, 3))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Some rows of some maps of a call.

    Attributes:
        call: the call.
        attention: (m, rows, keys) in float32; each row sums to 1. It is overwritten by the next block.
        scratch: room of the same shape.
        maps, queries: which they are.
    """

    call: Call
    attention: Tensor
    scratch: Tensor
    maps: slice
    queries: slice

    def of(self, distances: Tensor) -> Tensor:
        """Gives what belongs to the block of (kinds, queries, keys): (1 or m, rows, keys)."""
        rows = distances[:, self.queries]
        return rows[:1] if self.call.kinds is None else rows[self.call.kinds[self.maps]]

    def weighted(self, distances: Tensor) -> Tensor:
        """Gives the sums over the keys of attention times (kinds, queries, keys): (m, rows)."""
        return torch.mul(self.attention, self.of(distances), out=self.scratch).sum(-1)

    def placed_mass(self) -> Tensor | None:
        """Gives the share of attention on keys that have a place, (m, rows); None where all keys have one."""
        return None if self.call.distances.placed is None else self.over_placed(self.attention)

    def over_placed(self, numbers: Tensor) -> Tensor:
        """Sums (m, rows, keys) over the keys that have a place: (m, rows). Overwrites the scratch, if not all keys have one."""
        distances = self.call.distances
        if distances.placed is None:
            return numbers.sum(-1)
        if distances.first_placed is not None:
            return numbers[..., distances.first_placed :].sum(-1)
        placed = distances.placed[:1] if self.call.kinds is None else distances.placed[self.call.kinds[self.maps]]
        return torch.mul(numbers, placed[:, None], out=self.scratch).sum(-1)


class Reader(ABC):
    """Draws numbers from attention as it is formed."""

    @abstractmethod
    def begin(self, call: Call) -> None:
        """Is told of a call before its first block."""

    @abstractmethod
    def read(self, block: Block) -> None:
        """Is shown each block once; the tensors are valid only now."""

    @abstractmethod
    def end(self, call: Call) -> None:
        """Is told after the last block of a call."""

    @abstractmethod
    def passed(self, inputs: Tensor) -> None:
        """Is told after each forward pass of the model, with the batch that went in."""


@dataclass
class _Visit:
    """A module under way, and what its attention has done so far."""

    running: Running
    known: Any
    calls: int = 0
    queries: int = 0


@dataclass
class Tap(Observer):
    """Lets readers see every attention call of a model. The model's output is what it was, to rounding.

    Attributes:
        readers: who sees the blocks.
        left_out: the layers whose attention relates no places, with the reason.
    """

    readers: Sequence[Reader]
    left_out: dict[str, str] = field(default_factory=dict)
    _stack: list[_Visit] = field(default_factory=list)
    _geometries: dict[tuple[Any, ...], Geometry] = field(default_factory=dict)
    _layers: set[str] = field(default_factory=set)
    _batch: int = 0
    _extents: tuple[int, int, int] = (1, 0, 0)

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[None]:
        """Gives the context in which the model is tapped.

        Raises:
            NotDefined: in the context: the model has no softmax attention, or one that is not known or cannot be seen.
            RuntimeError: another tap is on, whose own arithmetic this one would take for the model's.
        """
        if any(isinstance(mode, _Mode) for mode in _get_current_function_mode_stack()):
            raise RuntimeError("A tap is on already; give one tap all the readers.")
        for name, module in model.named_modules():
            if (
                getattr(module, "_compiled_call_impl", None) is not None
                or isinstance(module, torch.jit.ScriptModule)
                or _OPTIMIZED in attention_sites.ancestry(type(module))
            ):
                raise NotDefined(
                    f"{name or 'the model'} is compiled, and compiled attention cannot be seen; give it uncompiled"
                )
        with ExitStack() as stack:
            for name, module in model.named_modules():
                stack.callback(module.register_forward_pre_hook(self._enters(name, model), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(self._leaves).remove)
            stack.enter_context(_Mode(self))
            try:
                yield
            finally:
                self._stack.clear()

    def seen(self, inputs: Tensor) -> None:
        """Tells the readers that a pass is over.

        Raises:
            NotDefined: there was no attention in it that relates places.
        """
        if not self._layers:
            if self.left_out:
                raise NotDefined(" and ".join(dict.fromkeys(self.left_out.values())), instead=INSTEAD)
            raise NotDefined("it has no softmax attention", instead=INSTEAD)
        for reader in self.readers:
            reader.passed(inputs)

    def finding(self) -> dict[str, str]:
        """Gives the layers left out, each with the reason."""
        return dict(self.left_out)

    def _enters(self, name: str, model: nn.Module) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            arguments = (*args, *kwargs.values())
            if module is model:
                self._stack.clear()
                inputs = arguments[0] if arguments else None
                if not isinstance(inputs, Tensor) or inputs.dim() not in (4, 5):
                    raise NotDefined("its input is no batch of images or clips, so there are no pixels to measure in")
                shape = inputs.shape
                self._batch = shape[0]
                self._extents = (shape[2] if len(shape) == 5 else 1, shape[-2], shape[-1])
            self._stack.append(_Visit(Running(name, module, arguments), attention_sites.of(module)))

        return hook

    def _leaves(self, module: nn.Module, args: object, output: object) -> None:
        visit = self._stack.pop()
        if visit.known is not None and visit.calls == 0 and not isinstance(visit.known, Elsewhere):
            raise NotDefined(
                f"{visit.running.name}, a {type(module).__name__}, ran and no attention was seen in it: "
                "it uses a kernel of its own, or a way of attending that is not known"
            )
        if isinstance(visit.known, Elsewhere):
            self.left_out[visit.running.name] = visit.known.reason

    def opened(self, queries: int, keys: int, maps: Sequence[int], device: torch.device) -> Call | None:
        """Gives the call that a module has just made, or None where its weights relate no places.

        Raises:
            NotDefined: the class of the module is not known, or its tokens do not lie as known.
        """
        depth = next(
            (place for place in reversed(range(len(self._stack))) if self._stack[place].known is not None), None
        )
        if depth is None:
            raise NotDefined(
                f"its attention class {self._caller()} is not registered, so where its tokens lie is not known"
            )
        visit = self._stack[depth]
        if isinstance(visit.known, Elsewhere):
            return None
        running = tuple(one.running for one in self._stack[: depth + 1])
        total = math.prod(maps)
        key = (visit.running.name, visit.calls, visit.queries, queries, keys, self._extents, total // self._batch)
        if key not in self._geometries:
            site = Site(
                running=running,
                call=visit.calls,
                before=visit.queries,
                queries=queries,
                keys=keys,
                extents=self._extents,
            )
            self._geometries[key] = self._shared(visit.known(site))
        found = self._geometries[key]
        visit.calls += 1
        visit.queries += queries
        heads, rest = divmod(total, self._batch * found.groups)
        if rest:
            raise NotDefined(
                f"the tokens of {visit.running.name} do not lie as known of its class: "
                f"{total} maps of {self._batch} inputs in {found.groups} groups"
            )
        layer = f"{visit.running.name}[{found.part}]" if found.part else visit.running.name
        self._layers.add(layer)
        call = Call(layer=layer, geometry=found, batch=self._batch, heads=heads, device=device, kinds=None)
        kind = found.distances(device).kind
        if int(kind.max()):
            extents = {"b": self._batch, "g": found.groups, "h": heads}
            shape = [found.groups if axis == "g" else 1 for axis in found.layout]
            kinds = kind.view(shape).expand([extents[axis] for axis in found.layout]).reshape(-1)
            call = replace(call, kinds=kinds)
        return call

    def _shared(self, found: Geometry) -> Geometry:
        """Gives a geometry met before in the place of one that is the same, so that layers share their distances."""
        for one in self._geometries.values():
            if one.same_as(found):
                return one
        return found

    def _caller(self) -> str:
        named = [type(one.running.module) for one in self._stack]
        own = [kind for kind in named if not kind.__module__.startswith("torch.nn.")]
        kind = (own or named)[-1]
        return f"{kind.__module__}.{kind.__qualname__}"

    def softmax_of_attention(self, logits: Tensor, dim: int) -> bool:
        """Tells whether a softmax is a registered class's attention.

        Raises:
            NotDefined: it is that of a class that calls itself attention, or looks like it, and is not registered.
        """
        if not self._stack or logits.dim() < 3 or dim % logits.dim() != logits.dim() - 1:
            return False
        if any(one.known is not None for one in self._stack):
            return True
        caller = self._caller()
        square = logits.shape[-1] == logits.shape[-2] >= _LEAST_TOKENS
        if square or any(word in caller.rpartition(".")[2].lower() for word in _CALLED):
            raise NotDefined(f"its attention class {caller} is not registered, so where its tokens lie is not known")
        return False

    def begun(self, call: Call) -> None:
        """Tells the readers of a call."""
        for reader in self.readers:
            reader.begin(call)

    def show(self, call: Call, attention: Tensor, scratch: Tensor, maps: slice, queries: slice) -> None:
        """Shows the readers a block."""
        block = Block(call=call, attention=attention, scratch=scratch, maps=maps, queries=queries)
        for reader in self.readers:
            reader.read(block)

    def ended(self, call: Call) -> None:
        """Tells the readers that a call is over."""
        for reader in self.readers:
            reader.end(call)


_SOFTMAX = {torch.softmax, torch.special.softmax, torch.Tensor.softmax, functional.softmax}
_CALLED = ("attention", "attn", "mhsa", "shsa")  # what classes call themselves that attend
_LEAST_TOKENS = 4  # a softmax over a square of so many or more is attention, whatever its class is called
_OPTIMIZED = "torch._dynamo.eval_frame.OptimizedModule"  # by name: to import it takes a second


class _Mode(TorchFunctionMode):
    """Sees the functions of torch that a model calls. What it calls itself it does not see."""

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self._tap = tap

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            return self._multi_head(args, kwargs)
        if func in _SOFTMAX:
            logits = args[0] if args else kwargs["input"]
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if isinstance(dim, int) and self._tap.softmax_of_attention(logits, dim):
                dtype = kwargs.get("dtype", next((one for one in args[2:] if isinstance(one, torch.dtype)), None))
                return self._explicit(logits, dtype, lambda: func(*args, **kwargs))
        return func(*args, **kwargs)

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            key, value = (one.repeat_interleave(query.shape[-3] // one.shape[-3], -3) for one in (key, value))
        queries, keys = query.shape[-2], key.shape[-2]
        lead = torch.broadcast_tensors(*(one[..., 0, 0] for one in (query, key, value)))[0].shape
        call = self._tap.opened(queries, keys, lead, query.device)
        if call is None:
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale
            )
        query, key, value = (one.expand(*lead, *one.shape[-2:]) for one in (query, key, value))
        if is_causal:
            attn_mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()
        bias, nothing = None, None
        if attn_mask is not None:
            attn_mask = _additive(attn_mask)
            bias = _Stack(attn_mask.expand(*lead, queries, keys))
            closed = (attn_mask == -math.inf).all(-1, keepdim=True)
            nothing = _Stack(closed.expand(*lead, queries, 1)) if bool(closed.any()) else None
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        # As fused attention lays it out: heads side by side, which is how the next layer wants them.
        out = query.new_empty(*lead[:-1], queries, lead[-1], value.shape[-1]).movedim(-3, -2)
        asked, offered, worth, given = _Stack(query), _Stack(key), _Stack(value), _Stack(out)
        self._tap.begun(call)
        for outer, inner, rows, scores, scratch in _blocks(asked.outer, asked.inner, queries, keys, query.device):
            some, every = asked.part(outer, inner, rows).float() * factor, offered.part(outer, inner).float()
            torch.bmm(some, every.mT, out=scores)
            if bias is not None:
                scores += bias.part(outer, inner, rows)
            torch.softmax(scores, dim=-1, out=scores)
            if nothing is not None:  # a query that may attend to nothing gets nothing, as fused attention has it
                scores.masked_fill_(nothing.part(outer, inner, rows), 0.0)
            self._tap.show(call, scores, scratch, asked.numbers(outer, inner), rows)
            weights = functional.dropout(scores, dropout_p) if dropout_p else scores
            given.put(torch.bmm(weights, worth.part(outer, inner).float()), outer, inner, rows)
        self._tap.ended(call)
        return out

    def _explicit(self, logits: Tensor, dtype: torch.dtype | None, otherwise: Any) -> Any:
        *lead, queries, keys = logits.shape
        call = self._tap.opened(queries, keys, lead, logits.device)
        if call is None:
            return otherwise()
        out = torch.empty(logits.shape, dtype=dtype or logits.dtype, device=logits.device)
        asked, given = _Stack(logits), _Stack(out)
        self._tap.begun(call)
        for outer, inner, rows, scores, scratch in _blocks(asked.outer, asked.inner, queries, keys, logits.device):
            torch.softmax(asked.part(outer, inner, rows).float(), dim=-1, out=scores)
            given.put(scores, outer, inner, rows)
            self._tap.show(call, scores, scratch, asked.numbers(outer, inner), rows)
        self._tap.ended(call)
        return out

    def _multi_head(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = _MULTI_HEAD.bind(*args, **kwargs)
        bound.apply_defaults()
        wanted, averaged = bound.arguments["need_weights"], bound.arguments["average_attn_weights"]
        # Only where weights are asked for does torch form the map where it can be seen: that of one layer at a time, whole, and
        # in the model's own precision.
        bound.arguments |= {"need_weights": True, "average_attn_weights": False}
        out, weights = functional.multi_head_attention_forward(*bound.args, **bound.kwargs)
        assert weights is not None  # they were asked for
        *lead, queries, keys = weights.shape
        call = self._tap.opened(queries, keys, lead, weights.device)
        if call is not None:
            asked = _Stack(weights)
            self._tap.begun(call)
            for outer, inner, rows, scores, scratch in _blocks(asked.outer, asked.inner, queries, keys, weights.device):
                scores.copy_(asked.part(outer, inner, rows))
                self._tap.show(call, scores, scratch, asked.numbers(outer, inner), rows)
            self._tap.ended(call)
        if not wanted:
            return out, None
        return out, weights.mean(dim=-3) if averaged else weights


_MULTI_HEAD = inspect.signature(functional.multi_head_attention_forward)


class _Stack:
    """The maps of a call, or what belongs to them, (..., rows, columns), cut without copying more than is cut.

    Attributes:
        outer, inner: the extents before rows and columns: the last of them, and the product of the others.
    """

    def __init__(self, whole: Tensor) -> None:
        if whole.dim() == 3:
            whole = whole[:, None]
        self._whole = whole.flatten(0, -4) if whole.dim() > 4 else whole
        self.outer, self.inner = self._whole.shape[:2]

    def part(self, outer: slice, inner: slice, rows: slice = slice(None)) -> Tensor:
        """Gives (maps, rows, columns)."""
        return self._whole[outer, inner, rows].flatten(0, 1)

    def put(self, found: Tensor, outer: slice, inner: slice, rows: slice) -> None:
        """Writes (maps, rows, columns), rounded to what it is written into."""
        place = self._whole[outer, inner, rows]
        place.copy_(found.view_as(place))

    def numbers(self, outer: slice, inner: slice) -> slice:
        """Gives which of all maps these are; either whole rows of the inner extent or within one."""
        return slice(outer.start * self.inner + inner.start, (outer.stop - 1) * self.inner + inner.stop)


def _blocks(
    outer: int, inner: int, queries: int, keys: int, device: torch.device
) -> Iterator[tuple[slice, slice, slice, Tensor, Tensor]]:
    """Cuts the maps of a call into blocks, each with room for its attention and for a reader's scratch."""
    room = max(1, BLOCK_BYTES.get(device.type, BLOCK_BYTES["elsewhere"]) // (4 * keys))
    rows = min(queries, room)
    maps = min(outer * inner, max(1, room // rows))
    together = max(1, maps // inner)  # of the outer extent
    within = inner if maps >= inner else maps
    buffers = torch.empty(2, min(together, outer) * within * rows * keys, device=device)
    for first in range(0, outer, together):
        for head in range(0, inner, within):
            for row in range(0, queries, rows):
                last, last_head, last_row = (
                    min(first + together, outer),
                    min(head + within, inner),
                    min(row + rows, queries),
                )
                shape = ((last - first) * (last_head - head), last_row - row, keys)
                attention, scratch = (buffer[: math.prod(shape)].view(shape) for buffer in buffers)
                yield slice(first, last), slice(head, last_head), slice(row, last_row), attention, scratch


def _additive(mask: Tensor) -> Tensor:
    """Gives what is added to logits for a mask: where it is of truth values, True means that a pair may attend."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -math.inf)
