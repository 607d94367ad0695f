"""Holds the similarity of 13 layers on 64 images against a loop over pairs of layers that makes each matrix for each pair.

The loop is what a program does that has a function of two layers, and no more; the estimator is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitbench.analyses import cka

LAYERS, IMAGES, FEATURES = 13, 64, 197 * 192


def by_pairs(features: Sequence[Tensor]) -> Tensor:
    """Gives the similarity of all pairs, each from its features, (B, p) each -> (L, L)."""
    found = torch.empty(len(features), len(features))
    for i, x in enumerate(features):
        a = _products(x)
        own = _criterion(a, a)
        for j, y in enumerate(features):
            b = _products(y)
            found[i, j] = _criterion(a, b) / (own * _criterion(b, b)).sqrt()
    return found


def at_once(features: Sequence[Tensor]) -> Tensor:
    """Gives the same as vitbench does: each layer's matrix once, centred, and one product for all pairs."""
    centred = cka.u_centred(torch.stack([cka.gram(one) for one in features])).flatten(1)
    across = centred @ centred.mT
    own = across.diagonal()
    return across / (own[:, None] * own[None]).sqrt()


def _products(x: Tensor) -> Tensor:
    products = x @ x.mT
    return products.fill_diagonal_(0)


def _criterion(a: Tensor, b: Tensor) -> Tensor:
    """Gives the unbiased criterion of two matrices without diagonal. Source: Song et al., JMLR 13 (2012), equation 5."""
    n = len(a)
    ones = torch.ones(n, 1)
    sums = (ones.mT @ a @ ones) * (ones.mT @ b @ ones) / ((n - 1) * (n - 2))
    both = ones.mT @ a @ b @ ones
    return ((a @ b).trace() + sums.squeeze() - 2 * both.squeeze() / (n - 2)) / (n * (n - 3))


def best(run: Callable[[], object], rounds: int) -> float:
    """Gives the shortest time of some rounds, in seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Prints both times and their ratio."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(IMAGES, FEATURES, generator=generator) for _ in range(LAYERS)]
    loop, ours = best(lambda: by_pairs(features), 3), best(lambda: at_once(features), 5)
    print(f"{LAYERS} layers, {IMAGES} images, {FEATURES} features, {torch.get_num_threads()} threads")
    print(f"loop over pairs {1e3 * loop:.0f} ms, at once {1e3 * ours:.0f} ms: {loop / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
