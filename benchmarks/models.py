"""Times the native models against other forms of the same model: eager, in inference mode, with the same weights and threads.

Opponents are the implementation in transformers or torchvision, where there is one, set right where it departs from the authors'
code, and attention as the authors' code has it, two products with a softmax between, in a model otherwise the same. The two take
turns at beginning a round, so that a drifting machine slows both; a ratio is taken within a round, and its median over the rounds
is shown with a 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timm.layers import QuickGELU
from torch import Tensor, nn
from torch.nn import functional

from vitbench import catalog, create_model
from vitbench.running import environment

MODELS = (
    "cct_7_3x1_32",
    "cct_14_7x2_224",
    "compact_cvt_7_4_32",
    "vit_lite_7_4_32",
    "cvt_13",
    "t2t_vit_14",
    "t2t_vit_t_14",
    "t2t_vit_ghost",
    "pvt_tiny",
    "pvt_small",
    "coatnet_0",
    "vit_rel",
    "vivit_b_16x2_m1",
    "timesformer_divided",
    "timesformer_joint",
    "mvit_b_16x4",
    "mvitv2_s_16x4",
)
EXPLICIT = "explicit softmax"


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """One model against one opponent. Times are of a batch, in milliseconds; ratios are the opponent's time over ours."""

    model: str
    opponent: str
    batch_size: int
    threads: int
    latency_median_ms: float
    opponent_latency_median_ms: float
    ratio_median: float
    ratio_low: float
    ratio_high: float
    difference_of_logits: float
    processes: int
    rounds: int
    versions: str
    cpu: str


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Gives softmax(q k^T scale + mask) v in four steps, as the authors' code has it."""
    weights = (query @ key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        weights = weights + attn_mask
    return weights.softmax(dim=-1) @ value


@contextmanager
def explicit() -> Iterator[None]:
    """Lets every model compute attention explicitly."""
    fused = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = explicit_attention  # type: ignore[assignment]  # a plain function
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = fused


@dataclass(frozen=True, slots=True)
class Reference:
    """Another implementation: its weights as a file that we load, and what gives its logits."""

    model: Any
    save: Callable[[Path], Path]
    logits: Callable[[Tensor], Any]


def of_transformers(model: Any, *, clips: bool = False) -> Reference:
    """Gives a model of transformers, which has the frames of a clip before its channels."""

    def save(folder: Path) -> Path:
        model.save_pretrained(folder)
        return folder / "model.safetensors"

    return Reference(model, save, lambda x: model(x.transpose(1, 2) if clips else x).logits)


def of_torchvision(model: Any) -> Reference:
    """Gives a model of torchvision."""

    def save(folder: Path) -> Path:
        torch.save(model.state_dict(), folder / "theirs.pth")
        return folder / "theirs.pth"

    return Reference(model, save, model)


def cvt() -> Reference:
    """Gives CvT-13 with the official GELU."""
    from transformers import CvtConfig, CvtForImageClassification

    model = CvtForImageClassification(CvtConfig(num_labels=1000))
    for module in model.modules():
        if hasattr(module, "activation"):
            module.activation = QuickGELU()
    return of_transformers(model)


def pvt(depths: Sequence[int]) -> Reference:
    """Gives a PVT with the official eps."""
    from transformers import PvtConfig, PvtForImageClassification

    model = PvtForImageClassification(PvtConfig(num_labels=1000, depths=list(depths)))
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and ("patch_embeddings" in name or "attention.self" in name):
            module.eps = 1e-5
    return of_transformers(model)


def vivit() -> Reference:
    """Gives ViViT's Model 1."""
    from transformers import VivitConfig, VivitForVideoClassification

    return of_transformers(VivitForVideoClassification(VivitConfig(num_labels=400)), clips=True)


def timesformer(scheme: str) -> Reference:
    """Gives a TimeSformer."""
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    config = TimesformerConfig(num_labels=400, attention_type=scheme)
    return of_transformers(TimesformerForVideoClassification(config), clips=True)


def mvit(name: str) -> Reference:
    """Gives an MViT."""
    from torchvision.models import video

    return of_torchvision(getattr(video, name)())


# Where each comes from, and what makes it.
REFERENCES: dict[str, tuple[str, Callable[[], Reference]]] = {
    "cvt_13": ("transformers", cvt),
    "pvt_tiny": ("transformers", lambda: pvt((2, 2, 2, 2))),
    "pvt_small": ("transformers", lambda: pvt((3, 4, 6, 3))),
    "vivit_b_16x2_m1": ("transformers", vivit),
    "timesformer_divided": ("transformers", lambda: timesformer("divided_space_time")),
    "timesformer_joint": ("transformers", lambda: timesformer("joint_space_time")),
    "mvit_b_16x4": ("torchvision", lambda: mvit("mvit_v1_b")),
    "mvitv2_s_16x4": ("torchvision", lambda: mvit("mvit_v2_s")),
}


def forms(name: str, opponent: str) -> tuple[nn.Module, Callable[[Tensor], Any]]:
    """Gives our model and its opponent, both with the same weights."""
    if opponent != EXPLICIT:
        theirs = REFERENCES[name][1]()
        theirs.model.eval()
        with TemporaryDirectory() as folder:
            return create_model(name, weights=theirs.save(Path(folder))).eval(), theirs.logits
    ours = create_model(name).eval()

    def explicitly(x: Tensor) -> Any:
        with explicit():
            return ours(x)

    return ours, explicitly


Samples = tuple[list[float], list[float], float]


@torch.inference_mode()
def samples(name: str, opponent: str, batch: int, rounds: int, threads: int) -> Samples:
    """Gives our seconds and theirs, round by round, and how far the logits differ, of their spread."""
    torch.set_num_threads(threads)
    ours, theirs = forms(name, opponent)
    x = torch.randn(batch, *catalog.VARIANTS[name].input_shape)
    expected = theirs(x)
    difference = ((ours(x) - expected).abs().max() / (expected.max() - expected.min())).item()
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        order = ((0, ours), (1, theirs)) if number % 2 else ((1, theirs), (0, ours))
        for side, form in order:
            start = time.perf_counter()
            form(x)
            seconds[side].append(time.perf_counter() - start)
    return *seconds, difference


def duel(name: str, opponent: str, batch: int, rounds: int, processes: int, threads: int) -> Duel:
    """Measures in several processes, one after the other: where memory comes to lie differs between them and matters."""
    runs: list[Samples] = []
    for _ in range(processes):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            runs.append(pool.submit(samples, name, opponent, batch, rounds, threads).result())
    ours = [second for run in runs for second in run[0]]
    theirs = [second for run in runs for second in run[1]]
    ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
    low, high = interval(ratios)
    here = environment.describe()
    return Duel(
        model=name,
        opponent=opponent,
        batch_size=batch,
        threads=threads,
        latency_median_ms=1e3 * median(ours),
        opponent_latency_median_ms=1e3 * median(theirs),
        ratio_median=median(ratios),
        ratio_low=low,
        ratio_high=high,
        difference_of_logits=max(difference for _, _, difference in runs),
        processes=processes,
        rounds=rounds,
        versions=f"torch {here.torch}, timm {here.timm}"
        + ("" if opponent == EXPLICIT else f", {opponent} {version(opponent)}"),
        cpu=here.cpu,
    )


def interval(samples: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """Gives the 95 % bootstrap interval of the median."""
    chance = random.Random(0)  # noqa: S311  # not for secrets
    medians = sorted(median(chance.choices(samples, k=len(samples))) for _ in range(draws))
    return medians[math.floor(0.025 * draws)], medians[math.ceil(0.975 * draws) - 1]


def markdown(duels: Sequence[Duel]) -> str:
    """Gives the table."""
    lines = [
        "| model | against | batch | ours, ms | theirs, ms | ratio | 95 % interval |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {one.model} | {one.opponent} | {one.batch_size} | {one.latency_median_ms:.1f} | {one.opponent_latency_median_ms:.1f} "
        f"| {one.ratio_median:.2f} | {one.ratio_low:.2f} to {one.ratio_high:.2f} |"
        for one in duels
    ]
    return "\n".join(lines)


def main() -> None:
    """Parses the options, measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--batch-size", type=int, help="inputs; 64 images of 32 pixels, 4 larger ones, or 1 clip")
    parser.add_argument("--rounds", type=int, help="9, or 2 of clips")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("results/models.csv"))
    options = parser.parse_args()
    duels = []
    with options.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Duel)], lineterminator="\n")
        writer.writeheader()
        for name in options.models:
            clip, pixels = catalog.VARIANTS[name].modality == "video", catalog.VARIANTS[name].input_shape[-1]
            batch = options.batch_size or (1 if clip else 64 if pixels == 32 else 4)
            rounds = options.rounds or (2 if clip else 9)
            for opponent in (REFERENCES[name][0], EXPLICIT) if name in REFERENCES else (EXPLICIT,):
                duels.append(duel(name, opponent, batch, rounds, options.processes, options.threads))
                writer.writerow(asdict(duels[-1]))
                file.flush()
    print(markdown(duels))


if __name__ == "__main__":
    main()
