"""The tap: what readers see is the model's attention, and the model does not notice. Expected maps are softmaxes written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitbench.errors import NotDefined
from vitbench.inside import attention, attention_sites, observing
from vitbench.inside.attention import Block, Call, Reader, Tap
from vitbench.inside.attention_sites import Elsewhere, Site
from vitbench.inside.geometry import Geometry, places

B, HEADS, QUERIES, KEYS, CHANNELS = 2, 3, 5, 7, 8
IMAGES = torch.zeros(B, 3, 16, 16)
TOLERANCE = 1e-5  # of outputs, as promised; maps agree to fewer digits than that


class Keeping(Reader):
    """Keeps whole maps, which no analysis does, and counts how often each row is shown."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.maps: list[Tensor] = []
        self.shown: list[Tensor] = []
        self.blocks: list[int] = []
        self.inputs: list[int] = []
        self.ends = 0

    def begin(self, call: Call) -> None:
        assert call.maps == call.batch * call.geometry.groups * call.heads
        self.calls.append(call)
        self.maps.append(torch.full((call.maps, call.geometry.queries.shape[1], call.geometry.keys.shape[1]), math.nan))
        self.shown.append(call.rows().zero_())

    def read(self, block: Block) -> None:
        assert block.attention.dtype == torch.float32
        assert block.scratch.shape == block.attention.shape
        self.maps[-1][block.maps, block.queries] = block.attention
        self.shown[-1][block.maps, block.queries] += 1
        self.blocks.append(block.attention.numel() * 4)
        block.scratch.fill_(math.nan)  # it is the reader's

    def end(self, call: Call) -> None:
        assert call is self.calls[-1]
        self.ends += 1

    def passed(self, inputs: Tensor) -> None:
        self.inputs.append(len(inputs))


class Told(nn.Module):
    """Does as it is told."""

    def __init__(self, does: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: Tensor) -> Any:
        return self.does(x)


class Known(Told):
    """A registered attention class."""


class OddAttention(Told):
    """An attention class that nobody has registered."""


class Model(nn.Module):
    """Runs its parts on the input, and gives the results of all."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> list[Any]:
        return [part(x) for part in self.parts]


def line(queries: int, keys: int, **others: Any) -> Geometry:
    """Gives tokens of a line, a pixel apart."""
    ours, theirs = (places((0.5,), tuple(one + 0.5 for one in range(count))) for count in (queries, keys))
    return Geometry(
        queries=ours, keys=theirs, grid=(1, 1, queries), key_grid=(1, 1, keys), pitch=(1.0, 1.0, 1.0), **others
    )


def full_name(kind: type) -> str:
    return attention_sites.ancestry(kind)[0]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Registers `Known` and torch's attention with lines of tokens, and gives the way to register another."""

    def register(kind: type, known: Any) -> None:
        monkeypatch.setattr(attention_sites, "SITES", {**attention_sites.SITES, full_name(kind): known})

    for kind in (Known, nn.MultiheadAttention):
        register(kind, lambda site: line(site.queries, site.keys))
    return register


def tapped(model: nn.Module, *batches: Tensor) -> tuple[list[Any], Keeping, Tap]:
    """Gives the outputs under the tap, what a reader saw, and the tap."""
    keeping = Keeping()
    tap = Tap([keeping])
    outputs: list[Any] = []
    with model.register_forward_hook(lambda module, inputs, output: outputs.append(output)):
        observing.run(model, batches or (IMAGES,), [tap])
    return outputs, keeping, tap


def untouched(model: nn.Module, x: Tensor = IMAGES) -> Any:
    with observing.judged(model):
        return model(x)


def same(found: Any, expected: Any) -> None:
    """Checks outputs to what is promised, with not-a-numbers at the same places."""
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif expected is None:
        assert found is None
    else:
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def drawn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trio(*lead: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        drawn(*lead, QUERIES, CHANNELS, seed=1),
        drawn(*lead, KEYS, CHANNELS, seed=2),
        drawn(*lead, KEYS, CHANNELS + 1, seed=3),
    )


def attention_of(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(CHANNELS), -1)


# Fused attention.

_MASK = drawn(B, HEADS, QUERIES, KEYS, seed=4)
_KEEP = _MASK > -1
_SHUT = _KEEP.clone()
_SHUT[0, 1, 2] = False  # a query that may attend to nothing
_LOWER = torch.ones(QUERIES, KEYS, dtype=torch.bool).tril()

# What is called with, and what is added to the scaled products before the softmax.
FUSED: dict[str, tuple[dict[str, Any], Tensor | None]] = {
    "plain": ({}, None),
    "scale": ({"scale": 0.7}, None),
    "additive": ({"attn_mask": _MASK}, _MASK),
    "additive of all": ({"attn_mask": _MASK[0, 0]}, _MASK[0, 0]),
    "additive of heads": ({"attn_mask": _MASK[:1]}, _MASK[:1]),
    "additive of keys": ({"attn_mask": _MASK[:, :1, :1]}, _MASK[:, :1, :1]),
    "truth": ({"attn_mask": _KEEP}, torch.where(_KEEP, 0.0, -math.inf)),
    "causal": ({"is_causal": True}, torch.where(_LOWER, 0.0, -math.inf)),
    "shut": ({"attn_mask": _SHUT}, torch.where(_SHUT, 0.0, -math.inf)),
    "shut by infinity": ({"attn_mask": torch.where(_SHUT, 0.0, -math.inf)}, torch.where(_SHUT, 0.0, -math.inf)),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_attention_is_seen_and_gives_what_it_gave(name: str) -> None:
    options, added = FUSED[name]
    q, k, v = trio(B, HEADS)
    model = Known(lambda x: functional.scaled_dot_product_attention(q, k, v, **options))
    outputs, keeping, _ = tapped(model)
    logits = q @ k.mT * options.get("scale", CHANNELS**-0.5) + (0 if added is None else added)
    expected = logits.softmax(-1).nan_to_num(0.0)
    same(keeping.maps[0].view_as(expected), expected)
    same(outputs[0], untouched(model))
    assert (keeping.shown[0] == 1).all()
    assert (keeping.ends, keeping.inputs) == (1, [B])


@pytest.mark.parametrize("lead", [(B * HEADS,), (B, HEADS), (2, B, HEADS), (1, 2, B, HEADS)], ids=str)
def test_any_axes_stand_before_queries_and_channels(lead: tuple[int, ...]) -> None:
    q, k, v = trio(*lead)
    model = Known(lambda x: functional.scaled_dot_product_attention(q, k, v))
    outputs, keeping, _ = tapped(model)
    same(keeping.maps[0], attention_of(q, k).flatten(0, -3))
    same(outputs[0], untouched(model))


def test_keys_that_several_heads_share() -> None:
    q, k, v = drawn(B, 6, QUERIES, CHANNELS), drawn(B, 2, KEYS, CHANNELS, seed=1), drawn(B, 2, KEYS, CHANNELS, seed=2)
    model = Known(lambda x: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    outputs, keeping, _ = tapped(model)
    expected = torch.stack([q[:, head] @ k[:, head // 3].mT for head in range(6)], 1) * CHANNELS**-0.5
    same(keeping.maps[0].view_as(expected), expected.softmax(-1))
    same(outputs[0], untouched(model))


def test_keys_that_all_inputs_share() -> None:
    q, k, v = trio(B, HEADS)
    model = Known(lambda x: functional.scaled_dot_product_attention(q, k[:1], v[:1, :1]))
    outputs, keeping, _ = tapped(model)
    same(keeping.maps[0].view(B, HEADS, QUERIES, KEYS), attention_of(q, k[:1]))
    same(outputs[0], untouched(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_weighed_in_single_precision(dtype: torch.dtype) -> None:
    q, k, v = (one.to(dtype) for one in trio(B, HEADS))
    model = Known(lambda x: functional.scaled_dot_product_attention(q, k, v))
    outputs, keeping, _ = tapped(model)
    same(keeping.maps[0].view(B, HEADS, QUERIES, KEYS), attention_of(q.float(), k.float()))
    assert outputs[0].dtype == dtype
    torch.testing.assert_close(outputs[0], untouched(model), rtol=0.02, atol=0.02)  # that dtype's own rounding


def test_readers_see_attention_before_dropout() -> None:
    logits, eye = drawn(B, HEADS, KEYS, KEYS), torch.eye(KEYS).expand(B, HEADS, -1, -1)
    model = Known(lambda x: functional.scaled_dot_product_attention(logits, eye, eye, dropout_p=0.5, scale=1.0))
    outputs, keeping, _ = tapped(model)
    expected = logits.softmax(-1)
    same(keeping.maps[0].view_as(expected), expected)
    kept = outputs[0] > 0
    assert 0.3 < kept.float().mean() < 0.7
    same(outputs[0][kept], 2 * expected[kept])


def test_what_is_not_a_number_stays_so() -> None:
    q, k, v = trio(B, HEADS)
    q = q.clone()
    q[1, 0, 3, 0] = math.nan
    model = Known(lambda x: functional.scaled_dot_product_attention(q, k, v, attn_mask=_MASK))
    outputs, keeping, _ = tapped(model)
    same(outputs[0], untouched(model))
    assert keeping.maps[0].isnan().any(-1).nonzero().tolist() == [[HEADS, 3]]


# Softmax written out.

_LOGITS = drawn(B, HEADS, QUERIES, KEYS)
EXPLICIT: dict[str, Callable[[], Tensor]] = {
    "torch": lambda: torch.softmax(_LOGITS, -1),
    "torch by name": lambda: torch.softmax(input=_LOGITS, dim=3),
    "torch in another dtype": lambda: torch.softmax(_LOGITS.bfloat16(), -1, torch.float32),
    "special": lambda: torch.special.softmax(_LOGITS, -1),
    "functional": lambda: functional.softmax(_LOGITS, -1),
    "functional in another dtype": lambda: functional.softmax(_LOGITS.half(), dim=-1, dtype=torch.float32),
    "method": lambda: _LOGITS.softmax(dim=-1),
    "method in bfloat16": lambda: _LOGITS.bfloat16().softmax(-1),
    "module": lambda: nn.Softmax(dim=-1)(_LOGITS),
    "heads folded": lambda: _LOGITS.flatten(0, 1).softmax(-1),
    "columns first in memory": lambda: _LOGITS.mT.contiguous().mT.softmax(-1),
    "axes exchanged": lambda: drawn(4, HEADS, B, QUERIES, KEYS).permute(2, 0, 1, 3, 4).softmax(-1),
    "axes turned round": lambda: drawn(QUERIES, KEYS, 4, HEADS, B).permute(4, 3, 2, 0, 1).softmax(-1),
}


@pytest.mark.parametrize("name", EXPLICIT)
def test_a_softmax_is_seen_and_gives_what_it_gave(name: str) -> None:
    model = Known(lambda x: EXPLICIT[name]())
    outputs, keeping, _ = tapped(model)
    expected = untouched(model)
    same(outputs[0], expected)
    assert outputs[0].is_contiguous() == expected.is_contiguous()
    bound = 2**-8 if expected.dtype == torch.bfloat16 else TOLERANCE  # readers see it before it is rounded
    torch.testing.assert_close(keeping.maps[0], expected.flatten(0, -3).float(), rtol=bound, atol=bound)
    assert (keeping.shown[0] == 1).all()


# Torch's own attention.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"key_padding_mask": torch.arange(6).expand(B, -1) > 3, "need_weights": False},
        {"attn_mask": torch.ones(6, 6, dtype=torch.bool).triu(1), "is_causal": True, "need_weights": False},
        {"attn_mask": drawn(B * 2, 6, 6), "need_weights": False},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
@pytest.mark.parametrize("batch_first", [True, False])
def test_multi_head_attention_is_seen_and_gives_what_it_gave(options: dict[str, Any], batch_first: bool) -> None:
    torch.manual_seed(0)
    inner = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    tokens = drawn(B, 6, 8) if batch_first else drawn(B, 6, 8).transpose(0, 1)
    model = Told(lambda x: inner(tokens, tokens, tokens, **options))
    model.inner = inner
    outputs, keeping, _ = tapped(model)
    same(outputs[0], untouched(model))
    with observing.judged(inner):
        weights = inner(tokens, tokens, tokens, **options | {"need_weights": True, "average_attn_weights": False})[1]
    same(keeping.maps[0], weights.flatten(0, 1))
    assert keeping.calls[0].layer == "inner"


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_torchs_transformer_takes_no_short_cut() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    model = Told(lambda x: encoder(drawn(B, 6, 8)))
    model.encoder = encoder
    outputs, keeping, _ = tapped(model)
    same(outputs[0], untouched(model))
    assert [call.layer for call in keeping.calls] == ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]


# Blocks.


def attention_written_out(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(CHANNELS) + attn_mask).softmax(-1).nan_to_num(0.0) @ v


@pytest.mark.parametrize("room", [1, 4 * KEYS, 4 * KEYS * QUERIES, 4 * KEYS * QUERIES * 2, 2**22])
@pytest.mark.parametrize("attend", [functional.scaled_dot_product_attention, attention_written_out])
@pytest.mark.parametrize("mask", [_MASK, torch.where(_SHUT, _MASK, -math.inf)], ids=["biased", "masked"])
def test_every_row_is_shown_once_whatever_the_block(
    room: int, attend: Callable[..., Tensor], mask: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.BLOCK_BYTES, "cpu", room)
    q, k, v = trio(B, HEADS)
    model = Known(lambda x: attend(q, k, v, attn_mask=mask))
    outputs, keeping, _ = tapped(model)
    found = keeping.maps[0].nan_to_num(0.0).view(B, HEADS, QUERIES, KEYS)
    same(found, (q @ k.mT / math.sqrt(CHANNELS) + mask).softmax(-1).nan_to_num(0.0))
    same(outputs[0], untouched(model))
    assert (keeping.shown[0] == 1).all()
    assert max(keeping.blocks) <= max(room, 4 * KEYS)


@pytest.mark.parametrize("layout", ["bgh", "gbh", "bhg", "hgb", "ghb", "hbg"])
def test_the_axes_of_groups_are_sorted_out(layout: str, registered: Callable[..., None]) -> None:
    """Windows before inputs, after heads, or between: `sorted` and `per_input` find each number's input, group and head."""
    groups = 4
    tokens = line(QUERIES, QUERIES).queries.repeat(groups, 1, 1)
    tokens[1, 2] = math.nan  # padding, which is not counted
    geometry = Geometry(
        queries=tokens, keys=tokens, grid=(1, 1, 1), key_grid=(1, 1, 1), pitch=(1.0, 1.0, 1.0), layout=layout
    )
    registered(Known, lambda site: geometry)
    extents = {"b": B, "g": groups, "h": HEADS}
    shape = [extents[axis] for axis in layout]
    logits = drawn(*shape, QUERIES, QUERIES)
    _, keeping, _ = tapped(Known(lambda x: logits.softmax(-1)))
    call = keeping.calls[0]
    assert call.heads == HEADS
    rows = drawn(math.prod(shape), QUERIES, seed=5)
    rows[0, 0] = math.nan
    numbers = rows.view(*shape, QUERIES).permute(*(layout.index(axis) for axis in "bgh"), 3)
    same(call.sorted(rows), numbers)
    sums, counts = call.per_input(rows)
    for b, h in product(range(B), range(HEADS)):
        every = {(g, query): float(numbers[b, g, h, query]) for g, query in product(range(groups), range(QUERIES))}
        placed = [number for place, number in every.items() if place != (1, 2) and not math.isnan(number)]
        assert sums[b, h] == pytest.approx(sum(placed))
        assert counts[b, h] == len(placed)


def test_groups_of_two_kinds_find_their_own_distances(registered: Callable[..., None]) -> None:
    tokens = torch.cat((line(3, 3).queries, 10 * line(3, 3).queries))
    geometry = Geometry(queries=tokens, keys=tokens, grid=(1, 2, 3), key_grid=(1, 2, 3), pitch=(1.0, 1.0, 1.0))
    registered(Known, lambda site: geometry)
    seen: list[Tensor] = []

    class Weighing(Keeping):
        def read(self, block: Block) -> None:
            assert block.call.distances.px is not None
            seen.append(block.weighted(block.call.distances.px).clone())
            assert block.placed_mass() is None

    model = Known(lambda x: torch.zeros(B * 2, HEADS, 3, 3).softmax(-1))
    observing.run(model, [IMAGES], [Tap([Weighing()])])
    one = torch.tensor([1.0, 2 / 3, 1.0])
    expected = torch.stack((one, 10 * one)).repeat(B, 1).repeat_interleave(HEADS, 0)
    same(torch.cat(seen), expected)


# What a call is told of its place.


def test_a_site_knows_the_modules_under_way_and_the_calls_before(registered: Callable[..., None]) -> None:
    sites: list[Site] = []

    def geometer(site: Site) -> Geometry:
        sites.append(site)
        return line(site.queries, site.keys, part=f"{site.call}")

    registered(Known, geometer)
    part = Known(lambda x: [torch.zeros(B, 1, queries, 4).softmax(-1) for queries in (1, 3)])
    model = Model(nn.Identity(), part)
    _, keeping, _ = tapped(model, torch.zeros(B, 3, 4, 16, 32))
    assert [(site.call, site.before, site.queries, site.keys) for site in sites] == [(0, 0, 1, 4), (1, 1, 3, 4)]
    assert sites[0].extents == (4, 16, 32)
    assert (sites[0].model, sites[0].module) == (model, part)
    assert [one.name for one in sites[0].running] == ["", "parts.1"]
    assert sites[0].arguments[0].shape == (B, 3, 4, 16, 32)
    found = sites[0].within(full_name(Model))
    assert found is not None
    assert found.module is model
    assert sites[0].within("none.such") is None
    assert [call.layer for call in keeping.calls] == ["parts.1[0]", "parts.1[1]"]


def test_a_pass_that_broke_off_leaves_nothing_to_the_next(registered: Callable[..., None]) -> None:
    """A caller may go on with another batch after one that does not fit."""
    sites: list[Site] = []

    def geometer(site: Site) -> Geometry:
        sites.append(site)
        return line(site.queries, site.keys)

    registered(Known, geometer)
    model = Model(Known(lambda x: (x + torch.zeros(B, 3, 16, 16)).flatten(2).softmax(-1)))
    with observing.judged(model), Tap([Keeping()]).attach(model):
        with pytest.raises(RuntimeError, match="must match"):
            model(torch.zeros(B, 3, 8, 8))
        model(IMAGES)
    assert [one.name for one in sites[0].running] == ["", "parts.0"]


def test_layers_whose_tokens_lie_alike_share_a_geometry() -> None:
    def attend(x: Tensor) -> Tensor:
        return torch.zeros(len(x), HEADS, 4, 4).softmax(-1)

    _, keeping, _ = tapped(Model(Known(attend), Known(attend)), IMAGES, IMAGES[:1])
    assert len({id(call.geometry) for call in keeping.calls}) == 1
    assert [(call.layer, call.batch, call.heads) for call in keeping.calls] == [
        (layer, batch, HEADS) for batch in (B, 1) for layer in ("parts.0", "parts.1")
    ]
    assert keeping.inputs == [B, 1]


def test_a_module_that_runs_twice_in_a_pass_is_seen_twice() -> None:
    part = Known(lambda x: torch.zeros(len(x), HEADS, 4, 4).softmax(-1))
    _, keeping, _ = tapped(Model(part, part))
    assert [call.layer for call in keeping.calls] == ["parts.0", "parts.0"]


# The model does not notice.


class Small(nn.Module):
    """Convolution, dropout, attention: what a model has that a tap could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.dropout = nn.Dropout(0.5)
        self.attn = Known(self.attend)
        self.norm = nn.BatchNorm1d(8)

    def attend(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.dropout(self.embed(x)).flatten(2).mT[:, None]
        attended: Tensor = self.attn(tokens)
        out: Tensor = self.norm(attended[:, 0].mean(1))
        return out


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small()


def clean(model: nn.Module) -> bool:
    """Tells whether neither hook nor mode is left."""
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return not hooks and torch._C._len_torch_function_stack() == 0 and torch.is_grad_enabled()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_pass_leaves_everything_as_it_was(small: Small, memory: torch.memory_format) -> None:
    small.dropout.eval()
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    x = drawn(B, 3, 16, 16).contiguous(memory_format=memory)
    random = torch.random.get_rng_state()
    outputs, keeping, tap = tapped(small, x, x[:1])
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [module.training for module in (small, small.attn, small.dropout)] == [True, True, False]
    assert clean(small)
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    same(outputs[0], untouched(small, x))
    same(outputs[1], untouched(small, x[:1]))
    same(keeping.maps[1], keeping.maps[0][: len(keeping.maps[1])])
    assert not outputs[0].requires_grad
    assert (keeping.inputs, tap.finding()) == ([B, 1], {})


def test_parameters_may_require_gradients_outside(small: Small) -> None:
    """A context that records gradients is the caller's: the tap's arithmetic takes part in none of it."""
    small.attn.does = lambda x: functional.scaled_dot_product_attention(x, x, x)
    tapped(small, drawn(B, 3, 16, 16))
    small(drawn(B, 3, 16, 16)).sum().backward()
    assert small.embed.weight.grad is not None


def test_an_error_in_the_model_cleans_up(small: Small) -> None:
    with pytest.raises(RuntimeError, match="expected input"):
        tapped(small, torch.zeros(B, 4, 16, 16))
    assert clean(small)
    assert small.training
    small.eval()
    outputs, _, _ = tapped(small, drawn(B, 3, 16, 16))  # and it can be tapped again
    same(outputs[0], untouched(small, drawn(B, 3, 16, 16)))


@pytest.mark.parametrize("when", ["begin", "read", "end", "passed"])
def test_an_error_in_a_reader_cleans_up(small: Small, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Keeping, what: object) -> None:
        raise ValueError("a reader failed")

    monkeypatch.setattr(Keeping, when, fail)
    with pytest.raises(ValueError, match="a reader failed"):
        tapped(small, drawn(B, 3, 16, 16))
    assert clean(small)


def test_one_pass_feeds_several_readers(small: Small) -> None:
    first, second = Keeping(), Keeping()
    observing.run(small, [drawn(B, 3, 16, 16)], [Tap([first, second])])
    assert torch.equal(first.maps[0], second.maps[0])


def test_taps_are_not_laid_over_each_other(small: Small) -> None:
    with pytest.raises(RuntimeError, match="give one tap all the readers"):
        observing.run(small, [IMAGES], [Tap([Keeping()]), Tap([Keeping()])])
    assert clean(small)


# What cannot be looked at is refused, by name and with the reason.


def refused(model: nn.Module, *batches: Tensor) -> str:
    with pytest.raises(NotDefined) as caught:
        tapped(model, *batches)
    assert clean(model)
    return caught.value.reason


def test_a_known_class_that_attends_in_another_way_is_an_error() -> None:
    model = Model(Known(lambda x: x), Known(lambda x: torch.zeros(B, 1, 4, 4).softmax(-1)))
    assert refused(model).startswith("parts.0, a Known, ran and no attention was seen in it")
    others: Sequence[Callable[[Tensor], Any]] = (
        lambda x: torch.zeros(B, 1, 4, 4).softmax(-2),  # over queries
        lambda x: torch.zeros(4, 4).softmax(-1),
        lambda x: torch.ones(B, 1, 4, 4) / 4,
    )
    for does in others:
        assert "no attention was seen" in refused(Known(does))


def test_a_known_class_that_does_not_run_is_none() -> None:
    class Skipping(Model):
        def forward(self, x: Tensor) -> list[Any]:
            return [self.parts[1](x)]

    _, keeping, _ = tapped(Skipping(Known(lambda x: x), Known(lambda x: torch.zeros(B, 1, 4, 4).softmax(-1))))
    assert [call.layer for call in keeping.calls] == ["parts.1"]


@pytest.mark.parametrize(
    "does",
    [
        lambda x: functional.scaled_dot_product_attention(*trio(B, HEADS)),
        lambda x: torch.zeros(B, HEADS, 4, 4).softmax(-1),
        lambda x: nn.Softmax(-1)(torch.zeros(B, HEADS, 4, 4)),
    ],
    ids=["fused", "explicit", "module"],
)
def test_an_unknown_class_is_refused_by_name(does: Callable[[Tensor], Any]) -> None:
    for parts in ((OddAttention(does),), (Known(lambda x: torch.zeros(B, 1, 4, 4).softmax(-1)), OddAttention(does))):
        assert refused(Model(*parts)) == (
            f"its attention class {full_name(OddAttention)} is not registered, so where its tokens lie is not known"
        )


def test_a_class_that_calls_itself_attn_is_refused_too() -> None:
    class TalkingAttn(Told):
        pass

    assert "TalkingAttn is not registered" in refused(TalkingAttn(lambda x: torch.zeros(B, HEADS, 4, 4).softmax(-1)))


def test_a_square_of_tokens_is_attention_whatever_its_class_is_called() -> None:
    """Else a layer would be left out in silence. A gate over three branches is none."""
    assert "Told is not registered" in refused(Told(lambda x: torch.zeros(B, HEADS, 9, 9).softmax(-1)))
    gate = Told(lambda x: torch.zeros(B, 3, 3).softmax(-1))
    _, keeping, _ = tapped(Model(gate, Known(lambda x: torch.zeros(B, 1, 4, 4).softmax(-1))))
    assert [call.layer for call in keeping.calls] == ["parts.1"]


def test_fused_attention_is_refused_in_whatever_class() -> None:
    """No gate and no head calls it."""
    model = Told(lambda x: functional.scaled_dot_product_attention(*trio(B, HEADS)))
    assert f"{full_name(Told)} is not registered" in refused(model)
    traced = torch.fx.symbolic_trace(Told(lambda x: functional.scaled_dot_product_attention(x, x, x)))
    assert "GraphModule" in refused(traced)


def test_a_subclass_is_known_by_its_base(registered: Callable[..., None]) -> None:
    class Special(Known):
        pass

    _, keeping, _ = tapped(Special(lambda x: torch.zeros(B, HEADS, 4, 4).softmax(-1)))
    assert len(keeping.calls) == 1


def test_other_softmaxes_are_none_of_our_business() -> None:
    gates = Told(lambda x: (torch.zeros(B, 2, 4).softmax(1), torch.zeros(B, 4).softmax(-1), drawn(B, 3, 4).softmax(-1)))
    model = Model(gates, Known(lambda x: torch.zeros(B, 1, 4, 4).softmax(-1)))
    outputs, keeping, _ = tapped(model)
    assert [call.layer for call in keeping.calls] == ["parts.1"]
    same(outputs[0], untouched(model))


def test_a_model_without_attention_is_refused_with_what_to_try_instead() -> None:
    with pytest.raises(NotDefined, match=r"it has no softmax attention\. Try: cka"):
        tapped(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(dim=1)))


def test_attention_that_relates_no_places_is_left_out_or_refused(registered: Callable[..., None]) -> None:
    class Channels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = trio(B, HEADS)
            return functional.scaled_dot_product_attention(q, k, v, scale=0.3).softmax(-1)

    class Summary(Told):
        pass

    registered(Channels, Elsewhere("it attends over channels, not positions"))
    registered(Summary, Elsewhere("its query has no position"))
    model = Model(Channels(), Known(lambda x: torch.zeros(B, 1, 4, 4).softmax(-1)))
    outputs, keeping, tap = tapped(model)
    assert [call.layer for call in keeping.calls] == ["parts.1"]
    assert tap.finding() == {"parts.0": "it attends over channels, not positions"}
    same(outputs[0], untouched(model))
    reason = refused(Model(Channels(), Summary(lambda x: x), Channels()))
    assert reason == "it attends over channels, not positions and its query has no position"


def test_heads_that_do_not_fit_the_groups_are_an_error(registered: Callable[..., None]) -> None:
    tokens = line(4, 4).queries.repeat(3, 1, 1)
    geometry = Geometry(queries=tokens, keys=tokens, grid=(1, 1, 1), key_grid=(1, 1, 1), pitch=(1.0, 1.0, 1.0))
    registered(Known, lambda site: geometry)
    reason = refused(Model(Known(lambda x: torch.zeros(B, 4, 4, 4).softmax(-1))))
    assert reason == "the tokens of parts.0 do not lie as known of its class: 8 maps of 2 inputs in 3 groups"


@pytest.mark.parametrize("how", ["compile", "method", "script"])
def test_what_is_compiled_is_refused(how: str, small: Small) -> None:
    model: Any = Model(nn.Linear(2, 2)) if how == "script" else small
    if how == "compile":
        model = torch.compile(small, backend="eager")
    elif how == "method":
        small.attn.compile(backend="eager")
    else:
        with pytest.warns(FutureWarning):
            model.parts[0] = torch.jit.script(model.parts[0])
    expected = {"compile": "the model", "method": "attn", "script": "parts.0"}[how]
    assert refused(model) == f"{expected} is compiled, and compiled attention cannot be seen; give it uncompiled"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
@pytest.mark.parametrize("fused", [True, False])
def test_an_accelerator_shows_the_same(fused: bool) -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    q, k, v = (one.to(device) for one in trio(B, HEADS))
    model = Known(lambda x: functional.scaled_dot_product_attention(q, k, v) if fused else attention_of(q, k))
    outputs, keeping, _ = tapped(model, IMAGES.to(device))
    torch.testing.assert_close(outputs[0], untouched(model, IMAGES.to(device)), rtol=1e-5, atol=1e-5)
    expected = attention_of(q.cpu(), k.cpu())
    torch.testing.assert_close(keeping.maps[0].view_as(expected), expected, rtol=1e-4, atol=1e-5)
