"""The second counter: each handle against a count worked out by hand, and the two counters against each other."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor, nn

from vitbench import catalog, results
from vitbench.build import plan
from vitbench.counters.tracing import trace


class Calls(nn.Module):
    """Gives what a function makes of the input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Any:
        return self.function(inputs)


def new(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def attend(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(new(*query), new(*key), new(*value), **options)


PRODUCTS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "linear": (lambda _: F.linear(new(2, 3, 4), new(5, 4), new(5)), 2 * 3 * 4 * 5),
    "linear of a vector": (lambda _: F.linear(new(4), new(5, 4)), 4 * 5),
    "linear to one number": (lambda _: F.linear(new(2, 3, 4), new(4)), 2 * 3 * 4),
    "mm": (lambda _: torch.mm(new(3, 4), new(4, 5)), 3 * 4 * 5),
    "bmm": (lambda _: torch.bmm(new(2, 3, 4), new(2, 4, 5)), 2 * 3 * 4 * 5),
    "addmm": (lambda _: torch.addmm(new(5), new(3, 4), new(4, 5)), 3 * 4 * 5),
    "baddbmm": (lambda _: torch.baddbmm(new(1, 1, 5), new(2, 3, 4), new(2, 4, 5)), 2 * 3 * 4 * 5),
    "addbmm": (lambda _: torch.addbmm(new(3, 5), new(2, 3, 4), new(2, 4, 5)), 2 * 3 * 4 * 5),
    "mv": (lambda _: torch.mv(new(3, 4), new(4)), 3 * 4),
    "addmv": (lambda _: torch.addmv(new(3), new(3, 4), new(4)), 3 * 4),
    "dot": (lambda _: torch.dot(new(4), new(4)), 4),
    "vdot": (lambda _: torch.vdot(new(4), new(4)), 4),
    "inner": (lambda _: torch.inner(new(2, 3, 4), new(5, 4)), 2 * 3 * 4 * 5),
    "inner with a number": (lambda _: torch.inner(new(), new(4)), 0),
    "tensordot": (lambda _: torch.tensordot(new(2, 3, 4), new(4, 3, 5), dims=([1, 2], [1, 0])), 2 * 5 * 3 * 4),
    "tensordot by a number": (lambda _: torch.tensordot(new(2, 3, 4), new(4, 5), dims=1), 2 * 3 * 5 * 4),
    "matmul of matrices": (lambda _: new(3, 4) @ new(4, 5), 3 * 4 * 5),
    "matmul of vectors": (lambda _: new(4) @ new(4), 4),
    "matmul with a vector": (lambda _: new(7, 3, 4) @ new(4), 7 * 3 * 4),
    "matmul of a vector": (lambda _: new(4) @ new(7, 4, 5), 7 * 4 * 5),
    "matmul, the second broadcast": (lambda _: new(7, 3, 4) @ new(4, 5), 7 * 3 * 4 * 5),
    "matmul, the first broadcast": (lambda _: new(3, 4) @ new(7, 4, 5), 7 * 3 * 4 * 5),
    "matmul, both broadcast": (lambda _: new(7, 1, 3, 4) @ new(1, 6, 4, 5), 7 * 6 * 3 * 4 * 5),
    "an element-wise product": (lambda _: new(3, 4) * new(3, 4), 0),
}

CONTRACTIONS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "queries by keys": (lambda _: torch.einsum("bhqd,bhkd->bhqk", new(2, 3, 5, 8), new(2, 3, 7, 8)), 2 * 3 * 5 * 7 * 8),
    "dots": (lambda _: torch.einsum("...qd,...kd->...qk", new(2, 3, 5, 8), new(3, 7, 8)), 2 * 3 * 5 * 7 * 8),
    "dots that are summed": (lambda _: torch.einsum("...a,...a->a", new(6, 3), new(6, 3)), 6 * 3),
    "no output given": (lambda _: torch.einsum("ab,bc", new(3, 4), new(4, 5)), 3 * 4 * 5),
    "an extent of one": (lambda _: torch.einsum("ab,bc->ac", new(3, 1), new(4, 5)), 0),
    "element by element": (lambda _: torch.einsum("ab,ab->ab", new(3, 4), new(3, 4)), 0),
    "an outer product": (lambda _: torch.einsum("a,b->ab", new(3), new(4)), 0),
    # a belongs to the first operand alone: it is summed before the product of (4) and (4, 5).
    "summed before": (lambda _: torch.einsum("ab,bc->c", new(3, 4), new(4, 5)), 4 * 5),
    "one operand": (lambda _: torch.einsum("ab->a", new(3, 4)), 0),
    # From left to right: (2, 3) by (3, 5), then (2, 5) by (5, 7).
    "three operands": (lambda _: torch.einsum("ab,bc,cd->ad", new(2, 3), new(3, 5), new(5, 7)), 2 * 3 * 5 + 2 * 5 * 7),
    # The last two first: (3, 5) by (5, 7), then (2, 3) by (3, 7).
    "three operands on a path": (
        lambda _: torch.ops.aten.einsum("ab,bc,cd->ad", [new(2, 3), new(3, 5), new(5, 7)], path=[1, 2, 0, 1]),
        3 * 5 * 7 + 2 * 3 * 7,
    ),
}

# A 3 x 3 filter over 9 x 9 without padding gives 7 x 7; with a stride of 2, 4 x 4.
CONVOLUTIONS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "one dimension": (lambda _: F.conv1d(new(2, 4, 9), new(8, 4, 3)), 2 * 8 * 7 * 4 * 3),
    "two dimensions": (lambda _: F.conv2d(new(2, 4, 9, 9), new(8, 4, 3, 3), new(8)), 2 * 8 * 7 * 7 * 4 * 9),
    "three dimensions": (lambda _: F.conv3d(new(2, 4, 5, 9, 9), new(8, 4, 2, 3, 3)), 2 * 8 * 4 * 7 * 7 * 4 * 18),
    "no batch": (lambda _: F.conv2d(new(4, 9, 9), new(8, 4, 3, 3)), 8 * 7 * 7 * 4 * 9),
    "stride": (lambda _: F.conv2d(new(2, 4, 9, 9), new(8, 4, 3, 3), stride=2), 2 * 8 * 4 * 4 * 4 * 9),
    "groups": (lambda _: F.conv2d(new(2, 4, 9, 9), new(8, 2, 3, 3), groups=2), 2 * 8 * 7 * 7 * 2 * 9),
    "depth-wise": (lambda _: F.conv2d(new(2, 4, 9, 9), new(4, 1, 3, 3), groups=4), 2 * 4 * 7 * 7 * 9),
    "padding by a word": (lambda _: F.conv2d(new(2, 4, 9, 9), new(8, 4, 3, 3), padding="same"), 2 * 8 * 9 * 9 * 4 * 9),
    # Every element of the input meets every weight of its group.
    "transposed": (lambda _: F.conv_transpose2d(new(2, 4, 9, 9), new(4, 8, 3, 3), stride=2), 2 * 4 * 9 * 9 * 8 * 9),
    "transposed, groups": (
        lambda _: F.conv_transpose2d(new(2, 4, 9, 9), new(4, 3, 3, 3), groups=2),
        2 * 4 * 9 * 9 * 3 * 9,
    ),
    "called by its inner name": (
        lambda _: torch._convolution(
            new(2, 4, 9, 9), new(8, 4, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, False, False, False, False
        ),
        2 * 8 * 7 * 7 * 4 * 9,
    ),
}

ATTENTION: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "self": (lambda _: attend((2, 3, 5, 8), (2, 3, 5, 8), (2, 3, 5, 8)), 2 * 3 * 5 * 5 * (8 + 8)),
    "other keys, other values": (lambda _: attend((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)), 2 * 3 * 5 * 7 * (8 + 6)),
    "masked": (
        lambda _: attend((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8), attn_mask=new(5, 7)),
        2 * 3 * 5 * 7 * (8 + 8),
    ),
    # The causal half is computed and thrown away.
    "causal": (lambda _: attend((2, 3, 5, 8), (2, 3, 5, 8), (2, 3, 5, 8), is_causal=True), 2 * 3 * 5 * 5 * (8 + 8)),
    "grouped queries": (
        lambda _: attend((2, 6, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8), enable_gqa=True),
        2 * 6 * 5 * 7 * (8 + 8),
    ),
    "one head of keys": (lambda _: attend((2, 6, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8)), 2 * 6 * 5 * 7 * (8 + 8)),
    "one batch of queries": (lambda _: attend((1, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)), 2 * 3 * 5 * 7 * (8 + 8)),
    "no heads": (lambda _: attend((2, 5, 8), (2, 7, 8), (2, 7, 8)), 2 * 5 * 7 * (8 + 8)),
    "no batch": (lambda _: attend((5, 8), (7, 8), (7, 6)), 5 * 7 * (8 + 6)),
}


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        pytest.param(*case, id=f"{kind}: {name}")
        for kind, cases in {
            "product": PRODUCTS,
            "einsum": CONTRACTIONS,
            "convolution": CONVOLUTIONS,
            "attention": ATTENTION,
        }.items()
        for name, case in cases.items()
    ],
)
def test_an_operator_takes_the_multiply_accumulates_worked_out_by_hand(
    function: Callable[[Tensor], Any], macs: int
) -> None:
    assert trace(Calls(function), (1,)).macs == macs


# Each gate has a matrix for the input and one for the hidden state; the input has 6 tokens of width 5.
RECURRENT: dict[str, tuple[nn.Module, int]] = {
    "LSTM": (nn.LSTM(5, 7), 6 * 4 * 7 * (5 + 7)),
    "GRU": (nn.GRU(5, 7), 6 * 3 * 7 * (5 + 7)),
    "RNN": (nn.RNN(5, 7), 6 * 7 * (5 + 7)),
    "RNN, ReLU": (nn.RNN(5, 7, nonlinearity="relu"), 6 * 7 * (5 + 7)),
    "LSTM, no bias": (nn.LSTM(5, 7, bias=False, batch_first=True), 6 * 4 * 7 * (5 + 7)),
    # The second layer takes both directions of the first.
    "LSTM, two layers, both ways": (
        nn.LSTM(5, 7, num_layers=2, bidirectional=True),
        6 * 2 * 4 * 7 * ((5 + 7) + (7 + 7 + 7)),
    ),
    # The hidden state that goes back in has width 3, and one more matrix makes it.
    "LSTM, projected": (nn.LSTM(5, 7, proj_size=3), 6 * (4 * 7 * (5 + 3) + 7 * 3)),
}


@pytest.mark.parametrize(("layer", "macs"), RECURRENT.values(), ids=RECURRENT)
def test_in_a_recurrent_layer_every_token_meets_every_matrix(layer: nn.Module, macs: int) -> None:
    assert trace(layer, (6, 5)).macs == macs


def test_a_recurrent_cell_is_its_two_products() -> None:
    assert trace(nn.LSTMCell(5, 7), (5,)).macs == 4 * 7 * (5 + 7)
    assert trace(nn.GRUCell(5, 7), (5,), batch_size=3).macs == 3 * 3 * 7 * (5 + 7)


class SelfAttention(nn.Module):
    """torch's own attention of tokens to themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Any:
        return self.attention(tokens, tokens, tokens, need_weights=False)


def test_torchs_attention_is_counted_although_it_has_a_kernel_of_its_own_in_evaluation() -> None:
    # 5 tokens of width 8: three projections and one after, the logits and what they weigh.
    macs = 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8
    assert trace(SelfAttention().eval(), (5, 8)).macs == macs
    encoder = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True).eval()
    assert trace(encoder, (5, 8)).macs == macs + 2 * 5 * 8 * 16


def test_the_operators_sum_to_the_total_and_keep_fvcores_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(2), nn.Linear(16, 5), nn.Linear(5, 6))
    traced = trace(model, (3, 8, 8))
    assert traced.by_operator == {"conv": 4 * 16 * 3 * 4, "linear": 4 * (16 * 5 + 5 * 6)}
    assert traced.macs == sum(traced.by_operator.values())
    assert list(traced.by_operator.values()) == sorted(traced.by_operator.values(), reverse=True)


def test_norms_resizing_and_pooling_are_named_and_not_counted() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.LayerNorm(8),
        nn.Upsample(scale_factor=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Softmax(dim=-1),
        nn.Softmax(dim=-1),
    )
    traced = trace(model, (4, 8, 8))
    assert traced.macs == 0
    assert traced.by_operator == {}
    assert traced.unsupported["aten::softmax"] == 2
    assert {"aten::batch_norm", "aten::layer_norm", "aten::group_norm"} < set(traced.unsupported)


class Strange(nn.Module):
    """Returns what a tracer refuses, computes what nobody uses, and writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 5)
        self.unused = nn.Linear(4, 6)
        self.table = torch.ones(5, 5)

    def forward(self, inputs: Tensor) -> dict[str, Any]:
        self.unused(inputs)
        out = inputs.new_zeros(len(inputs), 7)
        out[:, :5] = self.used(inputs)
        out[:, :5] @= self.table
        return {"nested": [None, 3, "text", {"out": out}], "weight": self.used.weight, "constant": torch.ones(2)}


def test_what_a_model_returns_keeps_or_drops_does_not_matter() -> None:
    assert trace(Strange(), (4,)).macs == 4 * 5 + 4 * 6 + 5 * 5


def test_a_module_counts_as_often_as_it_is_called() -> None:
    layer = nn.Linear(4, 4)
    assert trace(nn.Sequential(layer, nn.ReLU(), layer), (4,)).macs == 2 * 4 * 4


def test_the_count_grows_with_the_batch() -> None:
    model = plan("vit_ti16").build(device="meta")
    assert trace(model, (3, 224, 224), batch_size=3).macs == 3 * trace(model, (3, 224, 224)).macs


def state(model: nn.Module) -> list[Any]:
    return [
        (name, id(tensor), tensor.device, tensor.requires_grad, tensor._version)
        for name, tensor in model.state_dict(keep_vars=True).items()
    ] + [(module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    model[1].eval()
    before = state(model)
    trace(model, (3, 8, 8))
    assert state(model) == before
    assert model(torch.ones(1, 3, 8, 8)).device.type == "cpu"


def test_an_error_of_the_model_comes_through_and_leaves_nothing_behind() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(6, 7))
    before, fast_path = state(model), torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError, match="reduction dim"):
        trace(model, (4,))
    assert state(model) == before
    assert torch.backends.mha.get_fastpath_enabled() is fast_path
    assert not torch._C._is_tracing()
    assert trace(nn.Linear(4, 5), (4,)).macs == 4 * 5


class Asks(nn.Module):
    """Turns a size into a number, which the tracer warns of, and warns of something itself."""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.shape[1] > 2:
            warnings.warn("the model's own warning", UserWarning, stacklevel=2)
        return inputs + int(inputs.shape[0])


def test_the_tracers_warnings_are_silenced_for_the_call_and_the_models_own_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    filters = list(warnings.filters)
    with caplog.at_level(logging.DEBUG), pytest.warns(UserWarning, match="own warning") as caught:
        trace(Asks(), (4,))
    assert len(caught) == 1
    assert caplog.records == []
    assert list(warnings.filters) == filters


def test_the_primary_counter_does_not_import_the_second() -> None:
    code = (
        "import sys, vitbench.counters.counting; assert not {'fvcore', 'vitbench.counters.tracing'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# These take a second or several, for the number of their operators alone: deeper or wider siblings of rows that are traced.
SLOW = {
    "bit_r152x4",
    "coatnet_5_dwstride",
    "efficientnet_l2_475",
    "mvitv2_b",
    "mvitv2_b_cls",
    "mvitv2_h",
    "mvitv2_h_cls",
    "mvitv2_l",
    "mvitv2_l_cls",
    "pvt_v2_b4",
    "pvt_v2_b5",
    "r50_vit_l32_384",
    "swinv2_b_w16",
    "swinv2_l_w16",
    "swinv2_l_w24",
    "vit_g14_lowercase",
}


COUNTED = {
    row["model"]: row["macs"] for row in results.read(Path(__file__).parent.parent.parent / "results" / "baseline.json")
}


def test_the_slow_rows_are_rows() -> None:
    assert set(catalog.VARIANTS) >= SLOW


@pytest.mark.parametrize("name", [name for name in catalog.VARIANTS if name not in SLOW])
def test_both_counters_agree_to_the_last_multiply_accumulate(name: str) -> None:
    """The first counter's number is that of results/baseline.json, to which tests/test_baseline.py holds it."""
    planned = plan(name)
    assert planned.input_shape is not None
    assert trace(planned.build(device="meta"), planned.input_shape).macs == COUNTED[name]
