"""Measures what the analyses cost beside the model's own forward pass, and beside the loops that others publish.

Time: in each round the plain forward pass and every analysis run in turn on the same images, one place later each round; the
ratio is taken within a round, and the median of the ratios shown. Memory: each in a process of its own, of whose peak resident
memory what it held once the model and the images were there is taken off. Linux; one CPU thread unless told otherwise; random
weights, which change neither.

The loops of others are written again here, in our own words: the double loop over pairs of patches with a map of distances for
each layer and batch, as the keras.io example on probing ViTs has it, and CKA that forms both Gram matrices for each pair.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitbench import create_model
from vitbench.analyses import cka, position_similarity
from vitbench.analyses.attention_distance import DistanceReader
from vitbench.analyses.attention_entropy import EntropyReader
from vitbench.analyses.attention_rollout import RolloutReader
from vitbench.inside import observing
from vitbench.inside.attention import Tap
from vitbench.running import environment

PLAIN, DISTANCE, ALL = "forward pass", "attention distance", "distance, entropy and rollout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one thing takes, beside another."""

    what: str
    beside: str
    model: str
    img_size: int
    images: int
    rounds: int
    median_ms: float
    beside_median_ms: float
    time_ratio: float
    time_ratio_low: float
    time_ratio_high: float
    peak_bytes: int | None
    beside_peak_bytes: int | None
    peak_with_weights_ratio: float | None
    threads: int
    versions: str
    cpu: str
    cores: int


def looked(model: nn.Module, images: Tensor, what: str) -> None:
    """Runs the model on the images, watched or not."""
    if what == PLAIN:
        with torch.no_grad():
            model.eval()(images)
        return
    readers: list[Any] = [DistanceReader()]
    if what == ALL:
        readers += [EntropyReader(), RolloutReader(lambda one: one.numpy())]
    tap = Tap(readers)
    observing.run(model, [images], [tap])
    for reader in readers:
        reader.finding(tap.left_out)


def timed(work: Callable[[], object]) -> float:
    """Gives the milliseconds that something takes."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def held(what: str) -> int:
    """Gives bytes of this process: VmRSS, what it holds, or VmHWM, the most it has held since that was last forgotten."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def peak(name: str, size: int, images: int, what: str) -> tuple[int, int]:
    """Gives how much a process grew in a second pass, and the bytes of the weights."""
    torch.set_num_threads(1)
    model = create_model(name, img_size=size)
    batch = torch.randn(images, 3, size, size)
    looked(model, batch[:1], what)  # code and buffers that stay
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak; man 5 proc
    before = held("VmRSS")
    looked(model, batch, what)
    return held("VmHWM") - before, sum(one.numel() * one.element_size() for one in model.parameters())


def alone(*arguments: Any) -> tuple[int, int]:
    """Gives `peak` of a process of its own, in which whatever is freed is given back: glibc's heap would hide it by chance."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak, *arguments).result()


def passes(name: str, size: int, images: int, rounds: int, about: dict[str, Any]) -> list[Cost]:
    """Gives the cost of the attention analyses beside the forward pass."""
    model, batch = create_model(name, img_size=size), torch.randn(images, 3, size, size)
    kinds = [PLAIN, DISTANCE, ALL]
    samples: dict[str, list[float]] = {kind: [] for kind in kinds}
    for kind in kinds:
        looked(model, batch, kind)
    for turn in range(rounds):
        for place in range(len(kinds)):
            kind = kinds[(turn + place) % len(kinds)]
            samples[kind].append(timed(partial(looked, model, batch, kind)))
    peaks = {kind: alone(name, size, images, kind) for kind in kinds}
    costs = []
    for kind in kinds[1:]:
        (own, weights), (plain, _) = peaks[kind], peaks[PLAIN]
        costs.append(
            _cost(
                kind,
                PLAIN,
                samples[kind],
                samples[PLAIN],
                model=name,
                img_size=size,
                images=images,
                peak_bytes=own,
                beside_peak_bytes=plain,
                peak_with_weights_ratio=(own + weights) / (plain + weights),
                **about,
            )
        )
    return costs


def _cost(what: str, beside: str, own: Sequence[float], others: Sequence[float], **more: Any) -> Cost:
    ratios = sorted(one / other for one, other in zip(own, others, strict=True))
    return Cost(
        what=what,
        beside=beside,
        rounds=len(own),
        median_ms=statistics.median(own),
        beside_median_ms=statistics.median(others),
        time_ratio=statistics.median(ratios),
        time_ratio_low=ratios[len(ratios) // 4],
        time_ratio_high=ratios[-1 - len(ratios) // 4],
        **({"peak_bytes": None, "beside_peak_bytes": None, "peak_with_weights_ratio": None} | more),
    )


def statistic(rounds: int, about: dict[str, Any]) -> Cost:
    """Gives the cost of the statistic alone, on one layer's maps of 8 images of ViT-B/16 at 224, beside the published loop."""
    images, heads, side, patch = 8, 12, 14, 16
    tokens = 1 + side * side
    maps = torch.randn(images, heads, tokens, tokens).softmax(-1)
    logits = maps.log()

    from timm.layers.attention import Attention

    class Layer(Attention):
        """timm's attention with logits of ours in place of queries and keys."""

        def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
            return logits.softmax(-1)

    class Model(nn.Module):
        """One layer on a grid of patches."""

        num_prefix_tokens, grid_size = 1, (side, side)

        def __init__(self) -> None:
            super().__init__()
            self.attn = Layer(16)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attn(x)
            return out

    model, batch = Model(), torch.zeros(images, 3, side * patch, side * patch)

    def ours() -> None:
        observing.run(model, [batch], [Tap([DistanceReader()])])

    def nothing() -> None:
        observing.run(model, [batch], [Tap([])])

    def loop() -> None:
        distances = np.zeros((side * side, side * side))
        for first in range(side * side):
            for second in range(side * side):
                one = np.array([first // side, first % side]) * patch
                other = np.array([second // side, second % side]) * patch
                distances[first, second] = np.linalg.norm(one - other)
        weights = maps[:, :, 1:, 1:].numpy()
        np.mean(np.sum(weights * distances, axis=-1), axis=-1)

    for work in (ours, nothing, loop):
        work()
    own, theirs = [], []
    for _ in range(rounds):
        base = timed(nothing)
        own.append(max(timed(ours) - base, 1e-3))
        theirs.append(timed(loop))
    return _cost(
        "statistic of attention distance, one layer",
        "the keras.io example's loop",
        own,
        theirs,
        model="maps of vit_b16",
        img_size=224,
        images=images,
        **about,
    )


def similarity_of_layers(rounds: int, about: dict[str, Any]) -> Cost:
    """Gives the cost of CKA of 13 layers on 64 images, beside a loop over pairs that forms both Gram matrices each time."""
    layers, images, features = 13, 64, 197 * 192
    activations = [torch.randn(images, features) for _ in range(layers)]

    def ours() -> None:
        centred = cka.u_centred(torch.stack([cka.gram(one) for one in activations])).flatten(1)
        centred @ centred.mT

    def unbiased(first: Tensor, second: Tensor) -> Tensor:
        n = len(first)
        k, m = (one.clone().fill_diagonal_(0) for one in (first, second))
        return ((k @ m).trace() + k.sum() * m.sum() / (n - 1) / (n - 2) - 2 * (k @ m).sum() / (n - 2)) / (n * (n - 3))

    def loop() -> None:
        for one in activations:
            for other in activations:
                k, m = one @ one.mT, other @ other.mT
                unbiased(k, m) / (unbiased(k, k) * unbiased(m, m)).sqrt()

    ours()
    own, theirs = [], []
    for _ in range(rounds):
        own.append(timed(ours))
        theirs.append(timed(loop))
    return _cost(
        "CKA of 13 layers",
        "a loop over pairs",
        own,
        theirs,
        model="activations of vit_ti16",
        img_size=224,
        images=images,
        **about,
    )


def similarity_of_positions(rounds: int, about: dict[str, Any]) -> Cost:
    """Gives the cost of all cosines of a table of 37 x 37 positions of 384 channels, beside a loop over its tiles."""
    table = torch.randn(37 * 37, 384)

    def loop() -> None:
        for one in table:
            functional.cosine_similarity(one[None], table)

    own, theirs = [], []
    position_similarity.similarity(table)
    for _ in range(rounds):
        own.append(timed(lambda: position_similarity.similarity(table)))
        theirs.append(timed(loop))
    return _cost(
        "position similarity, 37 x 37",
        "a loop over tiles",
        own,
        theirs,
        model="a table of 384",
        img_size=518,
        images=0,
        **about,
    )


def main() -> None:
    """Measures, prints a table and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="vit_b16", help="whose forward pass the analyses are held against")
    parser.add_argument("--rounds", type=int, default=9, help="of each, in turns")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--output", type=Path, default=Path("results/analyses.csv"), help="the CSV file")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    here = environment.describe()
    about = {
        "threads": asked.threads,
        "versions": f"torch {here.torch}, timm {here.timm}, vitbench {here.vitbench}",
        "cpu": here.cpu,
        "cores": here.cores,
    }
    costs = [
        statistic(asked.rounds, about),
        similarity_of_layers(max(3, asked.rounds // 3), about),
        similarity_of_positions(asked.rounds, about),
    ]
    for size, images in ((224, 8), (512, 2)):
        costs += passes(asked.model, size, images, asked.rounds, about)
    with asked.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(Cost)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(cost) for cost in costs)
    print(
        "| what | beside | pixels, images | ms | beside, ms | time ratio (quartiles) | memory above weights | with weights |"
    )
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for cost in costs:
        memory = with_weights = ""
        if cost.peak_bytes is not None and cost.beside_peak_bytes and cost.peak_with_weights_ratio is not None:
            memory, with_weights = (
                f"{cost.peak_bytes / cost.beside_peak_bytes:.2f}x",
                f"{cost.peak_with_weights_ratio:.3f}x",
            )
        digits = 4 if cost.time_ratio < math.sqrt(0.1) else 3
        spread = f"{cost.time_ratio_low:.{digits}f} to {cost.time_ratio_high:.{digits}f}"
        print(
            f"| {cost.what} | {cost.beside} | {cost.img_size}, {cost.images} "
            f"| {cost.median_ms:.4g} | {cost.beside_median_ms:.4g} "
            f"| {cost.time_ratio:.{digits}f} ({spread}) | {memory} | {with_weights} |"
        )


if __name__ == "__main__":
    main()
