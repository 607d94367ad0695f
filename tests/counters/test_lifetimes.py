"""Peaks of small models worked out by hand, and what a prediction must leave alone."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from vitbench.counters import lifetimes
from vitbench.counters.lifetimes import Part, Peak
from vitbench.records import Dtype, Mode, RunSetting

FLOAT = 4
N, WIDTH, HIDDEN = 64, 32, 256


class Mlp(nn.Module):
    """Two products without biases; hidden states are wider than inputs, outputs are one number."""

    def __init__(self) -> None:
        super().__init__()
        self.rise = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.act = nn.GELU()
        self.fall = nn.Linear(HIDDEN, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fall(self.act(self.rise(x)))  # type: ignore[no-any-return]  # modules are untyped


WEIGHTS = FLOAT * (WIDTH * HIDDEN + HIDDEN)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name)
    return model


def predicted(model: nn.Module, mode: Mode, batch_size: int = N, device: str = "cpu", dtype: Dtype = "fp32") -> Peak:
    setting = RunSetting(model="m", input_shape=(WIDTH,), batch_size=batch_size, mode=mode, device=device, dtype=dtype)
    return lifetimes.peak(model, setting)


def of_images(model: nn.Module, batch_size: int, **options: bool) -> Peak:
    setting = RunSetting(model="m", input_shape=(3, 224, 224), batch_size=batch_size, mode="train", **options)  # type: ignore[arg-type]  # the options are flags
    return lifetimes.peak(model, setting)


def test_a_forward_pass_holds_inputs_and_two_hidden_states() -> None:
    # At the activation function: its inputs and its outputs. Nothing before or after holds both.
    activations = FLOAT * (N * WIDTH + 2 * N * HIDDEN)
    found = predicted(Mlp(), "infer")
    assert found.weights_bytes == WEIGHTS
    assert found.activations_bytes == activations
    assert found.peak_bytes == WEIGHTS + activations
    assert (found.gradients_bytes, found.optimizer_bytes, found.workspace_bytes) == (0, 0, 0)


def test_what_is_done_with_is_let_go() -> None:
    deep = nn.Sequential(*(nn.ReLU() for _ in range(9)))
    assert (
        predicted(deep, "infer").peak_bytes == FLOAT * 3 * N * WIDTH
    )  # the caller's inputs, and one function's own two


def test_training_holds_what_the_backward_pass_will_need() -> None:
    found = predicted(Mlp(), "train")
    assert found.gradients_bytes == WEIGHTS
    assert found.optimizer_bytes == 2 * WEIGHTS  # two moments; the count of steps lies on the CPU
    # Inputs, both hidden states and the gradient of one; the rest is outputs of one number, and a gradient of the last product
    # that has not yet been handed to its parameter.
    large = FLOAT * (N * WIDTH + 3 * N * HIDDEN)
    small = FLOAT * (8 * N + 2 * HIDDEN)
    assert large <= found.activations_bytes <= large + small
    assert found.peak_bytes == sum(found.at_peak.values())
    assert found.peak_bytes >= 3 * WEIGHTS + large


def test_a_step_of_the_optimizer_can_be_the_peak() -> None:
    largest = FLOAT * WIDTH * HIDDEN
    inputs = FLOAT * WIDTH
    # A loop over the parameters: the root of the second moment, and that divided.
    found = predicted(Mlp(), "train", batch_size=1)
    assert found.peak_bytes == 4 * WEIGHTS + inputs + 2 * largest
    assert found.at_peak[Part.OPTIMIZER] == 2 * WEIGHTS
    assert found.activations_bytes < 2 * largest  # temporaries of the optimizer are none
    # On an accelerator all parameters at once: the roots of all of them; autograd has a second workspace.
    found = predicted(Mlp(), "train", batch_size=4, device="cuda")
    assert found.peak_bytes - found.workspace_bytes == 5 * WEIGHTS + 4 * inputs
    assert found.workspace_bytes == 2 * lifetimes.workspace("cuda")


def test_frozen_parameters_have_neither_gradients_nor_state() -> None:
    model = Mlp()
    model.rise.requires_grad_(False)
    found = predicted(model, "train")
    assert found.gradients_bytes == FLOAT * HIDDEN
    assert found.optimizer_bytes == 2 * FLOAT * HIDDEN


def test_accelerators_hand_out_multiples_of_512_bytes() -> None:
    model = nn.Linear(WIDTH, 3, bias=False)
    assert predicted(model, "infer", 1).weights_bytes == FLOAT * 3 * WIDTH
    assert predicted(model, "infer", 1, "cuda").weights_bytes == 512
    assert predicted(model, "infer", 1, "cuda").activations_bytes == 2 * 512


def test_half_precision_takes_half() -> None:
    half = predicted(Mlp(), "infer", dtype="bf16")
    assert 2 * half.peak_bytes == predicted(Mlp(), "infer").peak_bytes


def test_buffers_are_weights_and_shared_parameters_count_once() -> None:
    twice = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False))
    twice[1].weight = twice[0].weight
    twice.register_buffer("table", torch.zeros(7))
    assert predicted(twice, "infer").weights_bytes == FLOAT * (WIDTH**2 + 7)


def test_gradients_are_summed_where_torch_sums_them() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = x + self.one(self.norm(x))
                x = x + self.two(x).relu()
            return x

    loss = Residual()(torch.ones(4, 8)).square().mean()
    with profile(activities=[ProfilerActivity.CPU]) as run:
        loss.backward()
    really = [event.name for event in run.events() or () if event.name in ("aten::add", "aten::add_")]

    decided: list[str] = []

    class Watch(lifetimes._Lifetimes):
        def _sums_in_place(self, args: tuple[Tensor, ...]) -> bool:
            answer = super()._sums_in_place(args)
            if torch._C._current_graph_task_id() != -1:
                decided.append("aten::add_" if answer else "aten::add")
            return answer

    with torch.device("meta"):
        model, inputs = Residual(), torch.empty(4, 8)
    with Watch(on_cpu=True):
        model(inputs).square().mean().backward()
    assert decided == really
    assert set(really) == {"aten::add", "aten::add_"}


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)).eval()
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    predicted(model, "train", batch_size=4)
    after = model.state_dict(keep_vars=True)
    assert all(id(after[name]) == key and torch.equal(after[name], tensor) for name, (key, tensor) in before.items())
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_recomputed_activations_need_less_and_know_the_same_kernels() -> None:
    model = on_meta("vit_tiny_patch16_224")
    plain = of_images(model, 4)
    recomputed = of_images(model, 4, grad_checkpointing=True)
    # Of twelve blocks only inputs are kept, and one is whole at a time.
    assert recomputed.activations_bytes < plain.activations_bytes / 4
    assert recomputed.weights_bytes == plain.weights_bytes


def test_every_output_has_a_loss_and_formats_do_not_matter() -> None:
    distilled = on_meta("deit_tiny_distilled_patch16_224")
    found = of_images(distilled, 2, channels_last=True)
    assert found.gradients_bytes == FLOAT * sum(parameter.numel() for parameter in distilled.parameters())


def test_memory_grows_with_the_batch_alone() -> None:
    one, two, three = (predicted(Mlp(), "infer", batch_size=size).peak_bytes for size in (1, 2, 3))
    assert three - two == two - one == FLOAT * (WIDTH + 2 * HIDDEN)
