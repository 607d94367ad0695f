"""The primary counter, against counts worked out by hand and against the papers' models in closed form."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from vitbench.counters import counting
from vitbench.counters.counting import Cost, by_module, by_operator, cut, tally, total

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fvcore scripts a function when it is imported, which torch deprecates.
    from fvcore.nn import ActivationCountAnalysis

IMAGE = (3, 224, 224)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name)
    return model


def with_fused_attention(model: nn.Module, fused: bool) -> nn.Module:
    switches = [module for module in model.modules() if hasattr(module, "fused_attn")]
    assert switches
    for module in switches:
        module.fused_attn = fused  # type: ignore[assignment]  # a flag, not a module
    return model


def test_vit_b16_in_closed_form() -> None:
    width, depth, patch, classes = 768, 12, 16, 1000
    tokens = (224 // patch) ** 2 + 1
    embedding = (tokens - 1) * width * 3 * patch**2
    projections = 4 * tokens * width**2  # queries, keys, values, and the one after
    attention = 2 * tokens**2 * width  # queries by keys, weights by values; the heads share the width
    mlp = 2 * tokens * width * 4 * width
    macs = embedding + depth * (projections + attention + mlp) + width * classes

    costs = tally(on_meta("vit_base_patch16_224"), IMAGE)
    assert total(costs).macs == macs == 17_563_828_224
    operators = by_operator(costs)
    assert operators["convolution"].macs == embedding
    assert operators["bmm"].macs == depth * attention
    assert operators["addmm"].macs == depth * (projections + mlp) + width * classes


def test_swin_b_in_closed_form() -> None:
    width, window, patch, classes = 128, 7, 4, 1000
    side = 224 // patch
    macs = side**2 * width * 3 * patch**2
    for stage, depth in enumerate((2, 2, 18, 2)):
        if stage:  # Four neighbours side by side become one token of twice the width.
            side //= 2
            macs += side**2 * (4 * width) * (2 * width)
            width *= 2
        tokens = side**2
        # Projections and MLP as in ViT; each token attends to those of its window. Windows tile every stage.
        assert side % window == 0
        macs += depth * (12 * tokens * width**2 + 2 * tokens * window**2 * width)
    macs += width * classes

    assert total(tally(on_meta("swin_base_patch4_window7_224"), IMAGE)).macs == macs


class Calls(nn.Module):
    """Gives what a function makes of the input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Any:
        return self.function(inputs)


def new(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


# Name: the call, its multiply-accumulates, the elements that its products write.
OPERATORS: dict[str, tuple[Callable[[Tensor], Any], int, int]] = {
    "linear": (lambda _: F.linear(new(2, 3, 4), new(5, 4), new(5)), 2 * 3 * 4 * 5, 2 * 3 * 5),
    "linear, no bias": (lambda _: F.linear(new(2, 3, 4), new(5, 4)), 2 * 3 * 4 * 5, 2 * 3 * 5),
    "mv": (lambda _: torch.mv(new(3, 4), new(4)), 3 * 4, 3),
    "addmv": (lambda _: torch.addmv(new(3), new(3, 4), new(4)), 3 * 4, 3),
    "dot": (lambda _: torch.dot(new(4), new(4)), 4, 1),
    "bmm": (lambda _: torch.bmm(new(2, 3, 4), new(2, 4, 5)), 2 * 3 * 4 * 5, 2 * 3 * 5),
    "baddbmm": (lambda _: torch.baddbmm(new(1, 1, 5), new(2, 3, 4), new(2, 4, 5)), 2 * 3 * 4 * 5, 2 * 3 * 5),
    "addbmm": (lambda _: torch.addbmm(new(3, 5), new(2, 3, 4), new(2, 4, 5)), 2 * 3 * 4 * 5, 3 * 5),
    "matmul, the first broadcast": (lambda _: new(3, 4) @ new(7, 4, 5), 7 * 3 * 4 * 5, 7 * 3 * 5),
    "matmul, both broadcast": (lambda _: new(7, 1, 3, 4) @ new(6, 4, 5), 7 * 6 * 3 * 4 * 5, 7 * 6 * 3 * 5),
    "einsum": (
        lambda _: torch.einsum("bhqd,bhkd->bhqk", new(2, 3, 5, 8), new(2, 3, 7, 8)),
        2 * 3 * 5 * 7 * 8,
        2 * 3 * 5 * 7,
    ),
    "einsum, element by element": (lambda _: torch.einsum("ab,ab->ab", new(3, 4), new(3, 4)), 0, 0),
    "convolution": (
        lambda _: F.conv2d(new(2, 4, 9, 9), new(8, 4, 3, 3), new(8), stride=2),
        2 * 8 * 4 * 4 * 4 * 9,
        2 * 8 * 4 * 4,
    ),
    "convolution in groups": (
        lambda _: F.conv2d(new(2, 4, 9, 9), new(8, 2, 3, 3), groups=2),
        2 * 8 * 7 * 7 * 2 * 9,
        2 * 8 * 7 * 7,
    ),
    "depth-wise convolution": (
        lambda _: F.conv3d(new(2, 4, 5, 9, 9), new(4, 1, 2, 3, 3), groups=4),
        2 * 4 * 4 * 7 * 7 * 18,
        2 * 4 * 4 * 7 * 7,
    ),
    # Every element of the input meets every weight of its group. 9 elements, 2 apart, under a filter of 3 give 19.
    "transposed convolution": (
        lambda _: F.conv_transpose2d(new(2, 4, 9, 9), new(4, 3, 3, 3), groups=2, stride=2),
        2 * 4 * 9 * 9 * 3 * 9,
        2 * 6 * 19 * 19,
    ),
    # Keys of another length, values of another width: both products write.
    "fused attention": (
        lambda _: F.scaled_dot_product_attention(new(2, 3, 5, 8), new(2, 3, 7, 8), new(2, 3, 7, 6)),
        2 * 3 * 5 * 7 * (8 + 6),
        2 * 3 * 5 * (7 + 6),
    ),
    "fused attention, causal": (
        lambda _: F.scaled_dot_product_attention(new(3, 5, 8), new(3, 5, 8), new(3, 5, 8), is_causal=True),
        3 * 5 * 5 * (8 + 8),
        3 * 5 * (5 + 8),
    ),
    "fused attention, grouped queries": (
        lambda _: F.scaled_dot_product_attention(new(2, 6, 5, 8), new(2, 3, 7, 8), new(2, 3, 7, 8), enable_gqa=True),
        2 * 6 * 5 * 7 * (8 + 8),
        2 * 6 * 5 * (7 + 8),
    ),
    "softmax": (lambda _: new(3, 4).softmax(dim=-1), 0, 0),
}


@pytest.mark.parametrize(("function", "macs", "activations"), OPERATORS.values(), ids=OPERATORS)
def test_an_operator_takes_what_was_worked_out_by_hand(
    function: Callable[[Tensor], Any], macs: int, activations: int
) -> None:
    cost = total(tally(Calls(function), (1,)))
    assert (cost.macs, cost.activations) == (macs, activations)


def moved(function: Callable[[Tensor], Any]) -> float:
    """The elements of float32 that a function of tensors on meta reads and writes."""
    return total(tally(Calls(function), (1,))).traffic_bytes / 4


@pytest.mark.parametrize(
    ("function", "elements"),
    [
        # What goes in, once, and what comes out.
        (lambda _: F.linear(new(3, 4), new(5, 4), new(5)), 3 * 4 + 5 * 4 + 5 + 3 * 5),
        (lambda _: F.conv2d(new(2, 4, 9, 9), new(8, 4, 3, 3), stride=2), 2 * 4 * 81 + 8 * 4 * 9 + 2 * 8 * 16),
        (lambda _: new(3, 4).relu(), 2 * 12),
        # Twice the same tensor is read once.
        (lambda _: (one := new(3, 4)) * one, 2 * 12),
        (lambda _: torch.cat([new(2), new(3)]), 2 * 5),
        # What is expanded lies in memory once.
        (lambda _: new(3, 4) + new(4).expand(3, 4), 12 + 4 + 12),
        (lambda _: new(3, 4).add_(new(4)), 12 + 4 + 12),
        # What is overwritten is not read.
        (lambda _: new(3, 4).copy_(new(3, 4)), 12 + 12),
        (lambda _: new(3, 4).zero_(), 12),
        # Names, not work.
        (lambda _: new(3, 4).t().reshape(2, 6)[:1], 0 + 2 * 12),
        (lambda _: new(3, 4).view(2, 6)[:1].transpose(0, 1), 0),
    ],
)
def test_an_operator_moves_its_inputs_and_outputs_once(function: Callable[[Tensor], Any], elements: int) -> None:
    assert moved(function) == elements


def test_each_block_of_a_vit_calls_softmax_once() -> None:
    """A ViT of 12 blocks, by its paper's equations: a softmax each, two norms and a last one; four linear layers, a head."""
    calls = {name: cost.calls for name, cost in by_operator(tally(on_meta("vit_tiny_patch16_224"), IMAGE)).items()}
    assert calls["_safe_softmax"] == calls["gelu"] == 12
    assert calls["native_layer_norm"] == 2 * 12 + 1
    assert calls["addmm"] == 4 * 12 + 1
    assert calls["bmm"] == 2 * 12
    assert calls["convolution"] == 1


class SelfAttention(nn.Module):
    """torch's own attention of tokens to themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Any:
        return self.attention(tokens, tokens, tokens, need_weights=False)


def test_torchs_attention_is_counted_although_it_has_a_kernel_of_its_own_in_evaluation() -> None:
    cost = total(tally(SelfAttention().eval(), (5, 8)))
    # 5 tokens of width 8 in 2 heads: three projections and one after, the logits and what they weigh.
    assert cost.macs == 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8
    assert cost.activations == 4 * 5 * 8 + 2 * 5 * 5 + 5 * 8
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "pvt_v2_b0"])
def test_fused_attention_changes_neither_count(name: str) -> None:
    model = on_meta(name)
    fused = total(tally(with_fused_attention(model, True), IMAGE))
    apart = total(tally(with_fused_attention(model, False), IMAGE))
    assert (fused.macs, fused.activations) == (apart.macs, apart.activations)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_activations_are_those_of_fvcore(name: str) -> None:
    # fvcore knows no fused attention: without it, it sees both products.
    model = with_fused_attention(timm.create_model(name), False).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis: Any = ActivationCountAnalysis(model, torch.zeros(1, *IMAGE))
        expected = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    assert total(tally(model, IMAGE)).activations == expected


def test_the_count_grows_with_the_batch() -> None:
    model = on_meta("vit_tiny_patch16_224")
    one, four = total(tally(model, IMAGE)), total(tally(model, IMAGE, batch_size=4))
    assert four.macs == 4 * one.macs
    assert four.activations == 4 * one.activations


@pytest.mark.parametrize("depth", [None, 0, 1, 2, 3, 4, 9])
def test_modules_at_any_depth_and_operators_sum_to_the_total(depth: int | None) -> None:
    costs = tally(on_meta("swin_tiny_patch4_window7_224"), IMAGE)
    for table in (by_module(costs, depth), by_operator(costs)):
        summed = Cost()
        for cost in table.values():
            summed.add(cost)
        assert summed == total(costs)
    assert total(costs).uncounted > 0


def test_modules_stand_in_the_order_of_the_pass_under_their_own_names() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), nn.Linear(5, 6))
    costs = tally(model, (4,))
    assert {name: cost.macs for name, cost in by_module(costs).items()} == {"0.0": 20, "0.1": 0, "1": 30}
    assert list(by_module(costs)) == ["0.0", "0.1", "1"]
    assert {name: cost.macs for name, cost in by_module(costs, 1).items()} == {"0": 20, "1": 30}
    assert {name: cost.macs for name, cost in by_module(costs, 0).items()} == {"": 50}


def test_operators_stand_largest_first() -> None:
    costs = by_operator(tally(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Linear(8, 80)), (3, 8, 8)))
    assert list(costs) == ["addmm", "convolution", "relu"]
    assert costs["relu"] == Cost(uncounted=4 * 8 * 8, calls=1, traffic_bytes=2 * 4 * 8 * 8 * 4)


@pytest.mark.parametrize(
    ("depth", "short"), [(None, "a.b.c"), (0, ""), (1, "a"), (2, "a.b"), (3, "a.b.c"), (4, "a.b.c")]
)
def test_a_path_is_cut_to_its_first_names(depth: int | None, short: str) -> None:
    assert cut("a.b.c", depth) == short


class Parts(nn.Module):
    """Computes under its own name, in a shared module, with a shared weight, and with a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.same = self.one
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.one.weight
        self.table = torch.ones(4, 7)
        self.register_buffer("shift", torch.ones(4))
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.tied(self.same(self.one(inputs))) + self.get_buffer("shift") * self.frozen
        return out @ self.table


def test_shared_modules_count_as_often_as_they_run_under_their_first_name() -> None:
    macs = {name: cost.macs for name, cost in by_module(tally(Parts(), (4,))).items()}
    assert macs == {"one": 2 * 4 * 4, "tied": 4 * 4, "": 4 * 7}


def state(model: nn.Module) -> list[Any]:
    """Gives what a count must not change: which tensors are where, and how they and the modules are set."""
    tensors = [
        (id(module), name, id(tensor), tensor.device, tensor.requires_grad, tensor._version)
        for module in model.modules()
        for kept in (module._parameters, module._buffers)
        for name, tensor in kept.items()
        if tensor is not None
    ]
    return tensors + [(id(module), module.training) for module in model.modules()]


def hooks() -> list[int]:
    return [
        len(torch_module._global_forward_hooks),
        len(torch_module._global_forward_pre_hooks),
        len(torch_module._global_forward_hooks_always_called),
    ]


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(Parts(), nn.BatchNorm1d(7), nn.Dropout())
    model[1].eval()
    before, table = state(model), model[0].table
    inputs = torch.rand(3, 4)
    torch.manual_seed(0)
    expected = model(inputs)
    tally(model, (4,), batch_size=3)
    assert state(model) == before
    assert model[0].table is table
    torch.manual_seed(0)
    assert torch.equal(model(inputs), expected)
    model(inputs).sum().backward()
    assert model.get_parameter("0.one.weight").grad is not None


def test_a_tied_weight_is_still_tied() -> None:
    model = Parts()
    tally(model, (4,))
    assert model.tied.weight is model.one.weight


def test_a_model_on_meta_and_one_on_the_cpu_cost_the_same() -> None:
    with torch.device("meta"):
        shapes = Parts()
    assert tally(shapes, (4,)) == tally(Parts(), (4,))


def test_the_inputs_have_the_dtype_of_the_weights() -> None:
    half, single = (total(tally(model, (3, 8, 8))) for model in (nn.Conv2d(3, 4, 3).half(), nn.Conv2d(3, 4, 3)))
    assert (half.macs, half.activations) == (single.macs, single.activations)
    assert 2 * half.traffic_bytes == single.traffic_bytes
    assert counting.dtype(nn.ReLU()) is torch.get_default_dtype()


def test_an_error_of_the_model_comes_through_and_leaves_nothing_behind() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(6, 7))
    before, installed, fast_path = state(model), hooks(), torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError, match="reduction dim"):
        tally(model, (4,))
    assert state(model) == before
    assert hooks() == installed
    assert torch.backends.mha.get_fastpath_enabled() is fast_path
    assert total(tally(nn.Linear(4, 5), (4,))).macs == 4 * 5


class Recovers(nn.Module):
    """Goes on after a module of its own has raised."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 5))
        self.works = nn.Linear(4, 6)

    def forward(self, inputs: Tensor) -> Any:
        try:
            return self.fails(inputs)
        except RuntimeError:
            return self.works(inputs) @ inputs.new_ones(6, 3)


def test_a_module_that_raised_is_no_longer_the_running_one() -> None:
    macs = {name: cost.macs for name, cost in by_module(tally(Recovers(), (4,))).items() if cost.macs}
    assert macs == {"fails.0": 4 * 4, "works": 4 * 6, "": 6 * 3}


class MadeInPassing(nn.Module):
    """Calls a module that it does not own."""

    def forward(self, inputs: Tensor) -> Any:
        return nn.Linear(4, 5, device=inputs.device)(inputs)


def test_a_module_of_nobody_counts_for_the_one_that_calls_it() -> None:
    assert {name: cost.macs for name, cost in by_module(tally(MadeInPassing(), (4,))).items()} == {"": 4 * 5}


class Keeps(nn.Module):
    """Makes a mask and a buffer in the first pass and keeps them for the next."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.mask: Tensor | None = None
        self.register_buffer("shift", None, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.ones(4, device=inputs.device)
            self.shift = torch.ones(4, device=inputs.device)
        out: Tensor = self.linear(inputs) * self.mask + self.shift
        return out


def test_what_a_pass_keeps_on_the_model_is_taken_away() -> None:
    model = Keeps()
    tally(model, (4,))
    assert model.mask is None
    assert model.shift is None
    assert model(torch.ones(1, 4)).device.type == "cpu"
    mask = model.mask
    tally(model, (4,))
    assert model.mask is mask


def test_a_model_whose_tensors_cannot_all_be_replaced_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3))
    with pytest.raises(ValueError, match="uninitialized"):
        tally(model, (4,))
    assert model.get_parameter("0.weight").device.type == "cpu"


class Merges(nn.Linear):
    """Changes its weight when it is told to evaluate."""

    def train(self, mode: bool = True) -> Merges:
        if not mode:
            self.weight.data.mul_(2)
        return super().train(mode)


def test_a_model_is_not_told_to_evaluate() -> None:
    model = Merges(4, 4)
    weight = model.weight.clone()
    tally(model, (4,))
    assert torch.equal(model.weight, weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_model_costs_what_it_did_before() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(2), nn.Linear(64, 5)).eval()
    scripted = torch.jit.trace(model, torch.ones(1, 3, 8, 8))
    before = total(tally(model, (3, 8, 8)))
    assert total(tally(scripted, (3, 8, 8))).macs == before.macs
    assert {tensor.device.type for tensor in scripted.parameters()} == {"cpu"}
    assert scripted(torch.ones(1, 3, 8, 8)).shape == (1, 4, 5)
