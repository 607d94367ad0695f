"""Times the native models against other forms of the same model: eager, in inference mode, with the same weights and threads.

Opponents are the implementation in transformers, where there is one, set right where it departs from the authors' code, and
attention as the authors' code has it, two products with a softmax between, in a model otherwise the same. The two take turns
at beginning a round, so that a drifting machine slows both; a ratio is taken within a round, and its median over the rounds is
shown with a 95 % bootstrap interval.
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
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timm.layers import QuickGELU
from torch import Tensor, nn
from torch.nn import functional

from vitbench import catalog, create_model, environment

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
)
EXPLICIT = "explicit softmax"
TRANSFORMERS = "transformers"


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


def transformers_cvt() -> Any:
    """Gives CvT-13 of transformers with the official GELU."""
    from transformers import CvtConfig, CvtForImageClassification

    model = CvtForImageClassification(CvtConfig(num_labels=1000))
    for module in model.modules():
        if hasattr(module, "activation"):
            module.activation = QuickGELU()
    return model.eval()


def transformers_pvt(depths: Sequence[int]) -> Any:
    """Gives a PVT of transformers with the official eps."""
    from transformers import PvtConfig, PvtForImageClassification

    model = PvtForImageClassification(PvtConfig(num_labels=1000, depths=list(depths)))
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and ("patch_embeddings" in name or "attention.self" in name):
            module.eps = 1e-5
    return model.eval()


REFERENCES: dict[str, Callable[[], Any]] = {
    "cvt_13": transformers_cvt,
    "pvt_tiny": lambda: transformers_pvt((2, 2, 2, 2)),
    "pvt_small": lambda: transformers_pvt((3, 4, 6, 3)),
}


def forms(name: str) -> tuple[nn.Module, dict[str, Callable[[Tensor], Any]]]:
    """Gives our model, and its opponents by name, all with the same weights."""
    found: dict[str, Callable[[Tensor], Any]] = {}
    if name in REFERENCES:
        theirs = REFERENCES[name]()
        with TemporaryDirectory() as folder:
            path = Path(folder) / "theirs.pth"
            torch.save(theirs.state_dict(), path)
            ours = create_model(name, weights=path).eval()
        found[TRANSFORMERS] = lambda x: theirs(x).logits
    else:
        ours = create_model(name).eval()

    def explicitly(x: Tensor) -> Any:
        with explicit():
            return ours(x)

    return ours, {**found, EXPLICIT: explicitly}


Samples = tuple[list[float], list[float], float]


@torch.inference_mode()
def samples(name: str, opponent: str, batch: int, rounds: int, threads: int) -> Samples:
    """Gives our seconds and theirs, round by round, and how far the logits differ, of their spread."""
    torch.set_num_threads(threads)
    ours, opponents = forms(name)
    theirs = opponents[opponent]
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
        versions=f"torch {here.torch}, timm {here.timm}",
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
    parser.add_argument("--batch-size", type=int, help="images; 64 where they have 32 pixels, else 4")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("results/models.csv"))
    options = parser.parse_args()
    duels = []
    with options.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Duel)], lineterminator="\n")
        writer.writeheader()
        for name in options.models:
            batch = options.batch_size or (64 if catalog.VARIANTS[name].input_shape[-1] == 32 else 4)
            for opponent in ([TRANSFORMERS] if name in REFERENCES else []) + [EXPLICIT]:
                duels.append(duel(name, opponent, batch, options.rounds, options.processes, options.threads))
                writer.writerow(asdict(duels[-1]))
                file.flush()
    print(markdown(duels))


if __name__ == "__main__":
    main()
