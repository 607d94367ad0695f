"""Mean attention distance: closed forms on planted maps and on whole models, and what must not change it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from matplotlib.figure import Figure
from timm.layers import Attention
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionTransformer

from tests.tokens import (
    Group,
    Point,
    alike,
    dilated,
    every,
    grid,
    merged,
    shifted,
    squares,
    stirred,
    uniform,
    windows,
    zeroed,
)
from vitbench.analyses import attention_distance
from vitbench.analyses.attention_distance import Mode, analyze
from vitbench.build import create_model
from vitbench.drawing.pictures import rendered
from vitbench.errors import BadInput
from vitbench.findings import HeadDistance
from vitbench.inside import attention, attention_sites
from vitbench.inside.geometry import Geometry, raster
from vitbench.models import coatnet, t2t_vit

ON_THE_TAP = 1e-4  # pixels
THROUGH_A_MODEL = 1e-3

# The numbers.


class Planted(nn.Module):
    """Attends as planted: (G, h, queries, keys) of logarithms of weights, times the first number of each input.

    Keys are the unit vectors, so a query is its own row of logits.
    """

    def __init__(self, logits: Tensor, geometry: Geometry, *, fused: bool = True, mask: Tensor | None = None) -> None:
        super().__init__()
        self.logits, self.geometry, self.fused, self.mask = logits, geometry, fused, mask

    def forward(self, x: Tensor) -> Tensor:
        logits = x[:, 0, 0, 0].view(-1, 1, 1, 1, 1) * self.logits.to(x)
        keys = torch.eye(logits.shape[-1]).to(x).expand(*logits.shape[:3], -1, -1)
        q, k = logits.flatten(0, 1), keys.flatten(0, 1)
        mask = None if self.mask is None else self.mask.repeat(len(x), 1, 1)[:, None]
        if self.fused:
            return functional.scaled_dot_product_attention(q, k, k, attn_mask=mask, scale=1.0)
        scores = q @ k.mT
        return (scores if mask is None else scores + mask).softmax(-1) @ k


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        name = attention_sites.ancestry(Planted)[0]
        patch.setattr(attention_sites, "SITES", {**attention_sites.SITES, name: lambda site: site.module.geometry})
        yield


def inputs(*strengths: float) -> Tensor:
    return torch.tensor(strengths)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()


def planted(
    logits: Tensor, geometry: Geometry, *, batches: Sequence[Tensor] = (), **options: Any
) -> list[HeadDistance]:
    """Gives the row of each head."""
    return list(analyze(Planted(logits, geometry, **options), batches or [inputs(1.0)]).rows)


def lying(groups: Sequence[Group]) -> Geometry:
    """Gives the geometry of tokens written out."""

    def tensor(which: int) -> Tensor:
        nowhere = (math.nan,) * 3
        tokens = [[nowhere if token is None else token for token in group[which]] for group in groups]
        return torch.tensor(tokens, dtype=torch.float64)

    return Geometry(queries=tensor(0), keys=tensor(1), grid=(1, 1, 1), key_grid=(1, 1, 1), pitch=(1.0, 1.0, 1.0))


def nothing(groups: Sequence[Group], heads: int = 1) -> Tensor:
    """Gives logits of attention that is the same everywhere."""
    return torch.zeros(len(groups), heads, len(groups[0][0]), len(groups[0][1]))


# Planted patterns on 14 x 14 tokens of 16 pixels: a weight for rows and columns of queries, rows and columns of keys. Expected:
# closed forms of sums over a grid.

Weights = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _gaussian(sigma: float) -> Weights:
    return lambda r, c, R, C: torch.exp(-((r - R) ** 2 + (c - C) ** 2) / (2 * sigma**2))


def _corner(at: Tensor) -> Tensor:
    return torch.where(at < 7, 13, 0)


PATTERNS: dict[str, tuple[Weights, float]] = {
    "uniform": (lambda r, c, R, C: torch.ones(196, 196), 116.492227),
    "all but itself": (lambda r, c, R, C: (r != R) | (c != C), 117.089623),
    "itself": (lambda r, c, R, C: (r == R) & (c == C), 0),
    "four neighbours": (lambda r, c, R, C: (r - R).abs() + (c - C).abs() == 1, 16),
    "eight neighbours": (lambda r, c, R, C: torch.maximum((r - R).abs(), (c - C).abs()) == 1, 19.128862),
    "3 x 3": (lambda r, c, R, C: torch.maximum((r - R).abs(), (c - C).abs()) <= 1, 16.698065),
    "its row": (lambda r, c, R, C: r == R, 74.285714),
    "its column": (lambda r, c, R, C: c == C, 74.285714),
    "transposed": (lambda r, c, R, C: (r == C) & (c == R), 105.055865),
    "flipped across": (lambda r, c, R, C: (r == R) & (c == 13 - C), 112),
    "flipped down": (lambda r, c, R, C: (r == 13 - R) & (c == C), 112),
    "turned round": (lambda r, c, R, C: (r == 13 - R) & (c == 13 - C), 171.078884),
    "next column": (lambda r, c, R, C: (r == R) & ((c + 1) % 14 == C), 29.714286),
    "next of the raster": (lambda r, c, R, C: (14 * r + c + 1) % 196 == 14 * R + C, 30.194615),
    "the first": (lambda r, c, R, C: (R == 0) & (C == 0), 161.030167),
    "the middle": (lambda r, c, R, C: (R == 7) & (C == 7), 86.018933),
    "the farthest corner": (lambda r, c, R, C: (_corner(r) == R) & (_corner(c) == C), 228.5276),
    "Gaussian, 0.5": (_gaussian(0.5), 6.038515),
    "Gaussian, 1": (_gaussian(1), 18.431363),
    "Gaussian, 2": (_gaussian(2), 36.679733),
    "Gaussian, 4": (_gaussian(4), 67.156148),
}


def logits_of(weights: Weights, rows: int = 14, columns: int = 14) -> Tensor:
    row, column = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).T
    found = weights(row[:, None], column[:, None], row[None], column[None])
    return found.double().expand(len(row), len(row)).log().clamp(min=-1e4).float()[None, None]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("fused", [True, False])
def test_a_planted_pattern(name: str, fused: bool) -> None:
    weights, expected = PATTERNS[name]
    (row,) = planted(logits_of(weights), raster((14, 14), (224, 224)), fused=fused)
    assert row.distance_px == pytest.approx(expected, abs=ON_THE_TAP)
    assert row.distance_paper_px == row.distance_px
    assert (row.prefix_mass, row.rows_left_out, row.distance_frames) == (0, 0, None)
    assert row.uniform_px == pytest.approx(116.492227, abs=ON_THE_TAP)
    assert row.most_px == pytest.approx(228.5276, abs=ON_THE_TAP)
    assert (row.least_px, row.query_grid, row.key_grid, row.pitch_px) == (0, (14, 14), (14, 14), (16.0, 16.0))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("uniform", 128.472069), ("its row", 16 * 399 / 60), ("its column", 16 * 99 / 30), ("itself", 0)],
)
def test_a_planted_pattern_on_a_rectangle(name: str, expected: float) -> None:
    """Expected: the sum over all offsets; of a line of n tokens p (n^2 - 1) / (3 n)."""
    weights = PATTERNS[name][0] if name != "uniform" else lambda r, c, R, C: torch.ones(200, 200)
    (row,) = planted(logits_of(weights, 10, 20), raster((10, 20), (160, 320)))
    assert row.distance_px == pytest.approx(expected, abs=ON_THE_TAP)


def test_pixels_need_not_be_as_many_down_as_across() -> None:
    pitched = raster((10, 20), (160, 640))
    for name, expected in (("its row", 32 * 399 / 60), ("its column", 16 * 99 / 30)):
        (row,) = planted(logits_of(PATTERNS[name][0], 10, 20), pitched)
        assert row.distance_px == pytest.approx(expected, abs=ON_THE_TAP)
        assert row.pitch_px == (16.0, 32.0)


@pytest.mark.parametrize("mass", [0.0, 0.3, 0.5, 0.99, 1 - 2**-20])
@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_a_prefix_that_draws_attention(mass: float, prefix: int) -> None:
    """Expected: (1 - m) times uniform in mode paper; uniform in mode renorm, whatever m is."""
    share = torch.full((196 + prefix, 196 + prefix), (1 - mass) / 196, dtype=torch.float64)
    share[:, :prefix] = mass / prefix
    share[:prefix] = math.nan  # what the prefix attends to does not matter
    logits = share.log().clamp(min=-1e4).nan_to_num(0.0).float()[None, None]
    (row,) = planted(logits, raster((14, 14), (224, 224), prefix=prefix))
    assert row.distance_px == pytest.approx(116.492227, abs=ON_THE_TAP)
    assert row.distance_paper_px == pytest.approx((1 - mass) * 116.492227, abs=ON_THE_TAP)
    assert row.prefix_mass == pytest.approx(mass, abs=1e-6)
    assert row.uniform_paper_px == pytest.approx(116.492227 * 196 / (196 + prefix), abs=ON_THE_TAP)
    assert row.rows_left_out == 0


def test_queries_that_see_the_prefix_alone_are_left_out_and_counted() -> None:
    logits = torch.zeros(1, 2, 5, 5)
    logits[0, 1, 2, 1:] = -1e4  # in the second head the second of four tokens
    first, second = planted(logits, raster((1, 4), (16, 64), prefix=1), batches=[inputs(1.0, 1.0), inputs(1.0)])
    assert (first.rows_left_out, second.rows_left_out) == (0, 3)
    assert first.distance_px == pytest.approx(20)
    assert second.distance_px == pytest.approx((24 + 16 + 24) / 3)
    assert second.distance_paper_px == pytest.approx(0.8 * (24 + 16 + 24) / 4)
    assert second.prefix_mass == pytest.approx((0.2 * 3 + 1) / 4)
    (row,) = planted(torch.tensor([[[[0.0, -1e4], [0.0, -1e4]]]]), raster((1, 1), (16, 16), prefix=1))
    assert (row.distance_px, row.rows_left_out, row.prefix_mass) == (
        None,
        1,
        1,
    )  # of one token there is no distance either way


# Windows, pooled keys, time. Expected: means of distances written out.


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("tokens", "plain", "masked", "unmasked"),
    [
        (56, 14.437862, 13.593857, 37.615933),
        (28, 28.875723, 25.458148, 67.281307),
        (14, 57.751447, 43.748700, 105.817343),
    ],
)
def test_windows(tokens: int, plain: float, masked: float, unmasked: float, fused: bool) -> None:
    """A mask bounds tokens to those that were less than a window away before the roll."""
    for shift, expected in ((0, plain), (3, masked), (3, unmasked)):
        groups = windows(tokens, tokens, 224, 224, (7, 7), (shift, shift))
        geometry, mask = lying(groups), None
        if expected == masked:
            offsets = (geometry.queries[:, :, None, 1:] - geometry.keys[:, None, :, 1:]).abs()
            mask = torch.where((offsets < 6.5 * 224 / tokens).all(-1), 0.0, -100.0)
        (row,) = planted(nothing(groups), geometry, fused=fused, mask=mask)
        assert row.distance_px == pytest.approx(expected, abs=ON_THE_TAP)


def test_windows_of_eight_and_dilated_grids() -> None:
    """Swin v2's window, MaxViT's grid on each of its maps, MobileViT's four grids of 16 x 16 on 256 pixels."""
    for groups, expected in (
        (windows(16, 16, 64, 64, (8, 8)), 16.545931),
        *((dilated(tokens, tokens, 224, 224, 7), 115.502894) for tokens in (56, 28, 14, 7)),
        (dilated(32, 32, 256, 256, 16), 133.217204),
    ):
        (row,) = planted(nothing(groups), lying(groups))
        assert row.distance_px == pytest.approx(expected, abs=ON_THE_TAP)


@pytest.mark.parametrize(
    ("queries", "keys", "expected", "least"),
    [
        *(
            (grid(side, side, 224, 224), squares(side, side, side // 7, 224 / side), expected, least)
            for side, expected, least in (
                (56, 116.216577, 12.1738),
                (28, 116.190408, 11.9814),
                (14, 116.088007, 11.3137),
                (7, 115.502894, 0),
            )
        ),
        (grid(56, 56, 224, 224), every(4, 56, 56, 224, 224), 116.883167, None),
        (grid(28, 28, 224, 224), every(2, 28, 28, 224, 224), 116.721636, None),
        (every(2, 14, 14, 224, 224), grid(14, 14, 224, 224), 116.492227, None),
        (every(2, 7, 7, 224, 224), grid(7, 7, 224, 224), 122.698320, None),
        (grid(56, 56, 224, 224), every(2, 56, 56, 224, 224), 116.776824, None),
    ],
    ids=["pvt 1", "pvt 2", "pvt 3", "pvt 4", "mvit 1", "mvit 2", "levit 1", "levit 2", "cvt 1"],
)
def test_pooled_tokens(queries: list[Point], keys: list[Point], expected: float, least: float | None) -> None:
    groups: list[Group] = [(queries, keys)]
    (row,) = planted(nothing(groups), lying(groups))
    assert row.distance_px == pytest.approx(expected, abs=ON_THE_TAP)
    assert row.uniform_px == pytest.approx(expected, abs=ON_THE_TAP)
    if least is not None:
        assert row.least_px == pytest.approx(least, abs=ON_THE_TAP)


@pytest.mark.parametrize(("frames", "expected"), [(8, 2.625), (16, 5.3125)])
def test_time_and_space_are_kept_apart(frames: int, expected: float) -> None:
    """Expected: (F^2 - 1) / (3 F) frames, and the uniform distance in space; 0 of what is not attended to."""
    geometry = raster((frames, 3, 3), (frames, 48, 48), prefix=1)
    frame, place = torch.cartesian_prod(torch.arange(frames), torch.arange(9)).T
    same_place, same_frame = (torch.where(which[:, None] == which, 0.0, -1e4) for which in (place, frame))
    for reach, px, time in (
        (torch.zeros_like(same_place), uniform(3, 3, 16), expected),
        (same_place, 0, expected),
        (same_frame, uniform(3, 3, 16), 0),
    ):
        logits = functional.pad(reach, (1, 0, 1, 0), value=-1e4)[None, None]
        (row,) = planted(logits, geometry)
        assert row.distance_px == pytest.approx(px, abs=ON_THE_TAP)
        assert row.distance_frames == pytest.approx(time, abs=ON_THE_TAP)
        assert row.uniform_frames == pytest.approx(expected, abs=ON_THE_TAP)
        assert (row.query_grid, row.key_grid) == ((frames, 3, 3), (frames, 3, 3))


def test_attention_along_time_alone_has_no_distance_in_space() -> None:
    groups: list[Group] = [([(float(time), 8.0, 8.0) for time in range(8)],) * 2]  # type: ignore[list-item]  # places are floats
    (row,) = planted(nothing(groups), lying(groups))
    assert row.distance_frames == pytest.approx(2.625)
    assert (row.distance_px, row.uniform_px, row.least_px, row.most_px) == (None, None, None, None)


# Over inputs.


def test_the_mean_over_inputs_and_its_error() -> None:
    """Expected: a mean, a standard deviation and an error over one number an input."""
    strengths = (0.0, 0.5, 1.0, 2.0, 3.0)
    logits = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    geometry = raster((2, 4), (32, 64), prefix=1)
    singles = [planted(logits, geometry, batches=[inputs(strength)]) for strength in strengths]
    together = planted(logits, geometry, batches=[inputs(*strengths)])
    for head, row in enumerate(together):
        for field in ("px", "paper_px"):
            values = [getattr(single[head], f"distance_{field}") for single in singles]
            assert getattr(row, f"distance_{field}") == pytest.approx(statistics.fmean(values))
            assert getattr(row, f"sem_{field}") == pytest.approx(statistics.stdev(values) / math.sqrt(5))
        assert row.std_px == pytest.approx(statistics.stdev(single[head].distance_px or 0 for single in singles))
        assert (singles[0][head].sem_px, singles[0][head].std_px) == (None, None)


def test_without_inputs_there_is_nothing_to_say() -> None:
    with pytest.raises(BadInput, match="No image"):
        analyze(Planted(torch.zeros(1, 1, 4, 4), raster((2, 2), (2, 2))), [])


# What must not change the numbers, or only as told. Tokens of some grid attend by chance, inputs the more so the larger they are.

sized = given(
    rows=some.integers(1, 4),
    columns=some.integers(2, 4),
    prefix=some.integers(0, 2),
    heads=some.integers(1, 3),
    strengths=some.lists(some.floats(0, 4, width=16), min_size=2, max_size=5),
    seed=some.integers(0, 2**16),
)


def chance(rows: int, columns: int, prefix: int, heads: int, seed: int) -> tuple[Tensor, Geometry]:
    tokens = prefix + rows * columns
    logits = 2 * torch.randn(1, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed))
    return logits, raster((rows, columns), (16 * rows, 24 * columns), prefix=prefix)


def numbers(rows: Sequence[HeadDistance], *, scale: float = 1.0) -> Any:
    """Gives what to compare: pixels, and the mass, which scales with nothing."""
    found = [[scale * (row.distance_px or 0), scale * (row.distance_paper_px or 0), row.prefix_mass] for row in rows]
    return pytest.approx(torch.tensor(found, dtype=torch.float64).numpy(), abs=ON_THE_TAP)


def values(rows: Sequence[HeadDistance]) -> Any:
    found = [[row.distance_px or 0, row.distance_paper_px or 0, row.prefix_mass] for row in rows]
    return torch.tensor(found, dtype=torch.float64).numpy()


@sized
def test_batches_and_their_order_do_not_matter(
    rows: int, columns: int, prefix: int, heads: int, strengths: list[float], seed: int
) -> None:
    logits, geometry = chance(rows, columns, prefix, heads, seed)
    expected = planted(logits, geometry, batches=[inputs(*strengths)])
    for batches in (
        [inputs(strength) for strength in strengths],
        [inputs(*strengths[:1]), inputs(*strengths[1:])],
        [inputs(*strengths[::-1])],
    ):
        found = planted(logits, geometry, batches=batches)
        assert values(found) == numbers(expected)
        assert found[0].sem_px == pytest.approx(expected[0].sem_px, abs=ON_THE_TAP)


@sized
def test_blocks_and_threads_do_not_matter(
    rows: int, columns: int, prefix: int, heads: int, strengths: list[float], seed: int
) -> None:
    logits, geometry = chance(rows, columns, prefix, heads, seed)
    expected = planted(logits, geometry, batches=[inputs(*strengths)])
    for room, fused in product((1, 100, 1000, 2**30), (True, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(attention.BLOCK_BYTES, "cpu", room)
            assert values(planted(logits, geometry, batches=[inputs(*strengths)], fused=fused)) == numbers(expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 2)
        assert values(planted(logits, geometry, batches=[inputs(*strengths)])) == numbers(expected)
    finally:
        torch.set_num_threads(threads)


@sized
def test_heads_that_change_places_take_their_rows_along(
    rows: int, columns: int, prefix: int, heads: int, strengths: list[float], seed: int
) -> None:
    logits, geometry = chance(rows, columns, prefix, heads, seed)
    order = torch.randperm(heads, generator=torch.Generator().manual_seed(seed)).tolist()
    expected = planted(logits, geometry, batches=[inputs(*strengths)])
    found = planted(logits[:, order], geometry, batches=[inputs(*strengths)])
    assert values(found) == numbers([expected[head] for head in order])


@sized
def test_flips_and_transposition_leave_distances(
    rows: int, columns: int, prefix: int, heads: int, strengths: list[float], seed: int
) -> None:
    logits, geometry = chance(rows, columns, prefix, heads, seed)
    expected = planted(logits, geometry, batches=[inputs(*strengths)])
    places = torch.arange(rows * columns).view(rows, columns)
    on_its_side = raster((columns, rows), (24 * columns, 16 * rows), prefix=prefix)
    for order, lie in ((places.flip(0), geometry), (places.flip(1), geometry), (places.T, on_its_side)):
        index = torch.cat((torch.arange(prefix), prefix + order.flatten()))
        found = planted(logits[:, :, index][..., index], lie, batches=[inputs(*strengths)])
        assert values(found) == numbers(expected)


@sized
def test_the_pitch_scales_distances(
    rows: int, columns: int, prefix: int, heads: int, strengths: list[float], seed: int
) -> None:
    logits, geometry = chance(rows, columns, prefix, heads, seed)
    expected = planted(logits, geometry, batches=[inputs(*strengths)])
    larger = raster((rows, columns), (40 * rows, 60 * columns), prefix=prefix)
    assert values(planted(logits, larger, batches=[inputs(*strengths)])) == numbers(expected, scale=2.5)


@sized
def test_a_number_added_to_a_rows_logits_changes_nothing(
    rows: int, columns: int, prefix: int, heads: int, strengths: list[float], seed: int
) -> None:
    logits, geometry = chance(rows, columns, prefix, heads, seed)
    expected = planted(logits, geometry, batches=[inputs(*strengths)])
    added = 10 * torch.randn(*logits.shape[:3], 1, generator=torch.Generator().manual_seed(seed + 1))
    assert values(planted(logits + added, geometry, batches=[inputs(*strengths)])) == numbers(expected)


@sized
def test_distances_keep_their_bounds(
    rows: int, columns: int, prefix: int, heads: int, strengths: list[float], seed: int
) -> None:
    """No farther than the farthest key, no nearer than the nearest; paper is renorm less what the prefix has."""
    logits, geometry = chance(rows, columns, prefix, heads, seed)
    for row in planted(logits, geometry, batches=[inputs(*strengths)]):
        assert row.distance_px is not None
        assert row.distance_paper_px is not None
        assert row.least_px is not None
        assert row.most_px is not None
        assert row.least_px == 0 <= row.distance_paper_px <= row.distance_px + 1e-9
        assert row.distance_px <= row.most_px + ON_THE_TAP
        assert 0 <= row.prefix_mass <= 1
        if prefix == 0:
            assert row.distance_px == row.distance_paper_px


@sized
def test_halves_come_near(rows: int, columns: int, prefix: int, heads: int, strengths: list[float], seed: int) -> None:
    """Logits that both types hold exactly: only what comes after may differ, and that is in single precision for both."""
    logits, geometry = chance(rows, columns, prefix, heads, seed)
    logits = logits.bfloat16().float()
    whole = [1.0, 0.5, 2.0]
    expected = planted(logits, geometry, batches=[inputs(*whole)])
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        halves = [inputs(*whole).to(dtype)]
        assert values(planted(logits, geometry, batches=halves)) == numbers(expected)


@sized
def test_in_mode_paper_the_mean_map_has_the_mean_distance(
    rows: int, columns: int, prefix: int, heads: int, strengths: list[float], seed: int
) -> None:
    logits, geometry = chance(rows, columns, prefix, heads, seed)
    maps = torch.stack([(strength * logits.double()).softmax(-1) for strength in strengths]).mean(0)
    expected = planted(logits, geometry, batches=[inputs(*strengths)])
    for row, of_mean in zip(expected, planted(maps.log().float(), geometry), strict=True):
        assert row.distance_paper_px == pytest.approx(of_mean.distance_paper_px, abs=ON_THE_TAP)


# Whole models, whose queries and keys are zero: attention is the same wherever it may reach. Expected: the closed forms above,
# of mode renorm and of mode paper.

_SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3}


def _maxvit() -> nn.Module:
    transformer = MaxxVitTransformerCfg(dim_head=8, window_size=(7, 7), grid_size=(7, 7))
    sizes: dict[str, Any] = {"embed_dim": (8,) * 4, "depths": (1,) * 4, "block_type": ("M",) * 4, "stem_width": 8}
    return MaxxVit(MaxxVitCfg(transformer_cfg=transformer, **sizes), img_size=(224, 224), num_classes=5)


def _coatnet() -> nn.Module:
    kinds = (coatnet.convolution, coatnet.convolution, coatnet.transformer, coatnet.transformer)
    stages = tuple(coatnet.Stage(kind, 1, 8) for kind in kinds)
    return create_model("coatnet_0", stem_width=8, stages=stages, head_size=8)


def _t2t_encoder(dim: int, drop_path_rate: float) -> tuple[nn.Sequential, int]:
    return t2t_vit.plain_encoder(dim, drop_path_rate, depth=1, num_heads=3)


def _mvitv2() -> nn.Module:
    cfg = MultiScaleVitCfg(depths=(1, 2, 2, 1), embed_dim=(8, 16, 32, 64), num_heads=(1, 2, 4, 8))
    return MultiScaleVit(cfg, img_size=(224, 224), num_classes=5)


def _swin(name: str, **options: Any) -> nn.Module:
    return create_model(name, embed_dim=8, depths=(2,) * 4, num_heads=(1, 2, 2, 2), **options)


_PYRAMID: dict[str, Any] = {"depths": (1,) * 4, "num_heads": (1, 2, 2, 2), "mlp_ratios": (1,) * 4}
_WINDOWED = [14.437862, 13.593857, 28.875723, 25.458148, 57.751447, 43.748700, 115.502894, 115.502894]
_BINS = [[range(i * side // 7, -(-(i + 1) * side // 7)) for i in range(7)] for side in (56, 28, 14, 7)]

WHOLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[float], list[float] | None]] = {
    "vit": (lambda: create_model("vit_ti16", **_SMALL), (3, 224, 224), [116.492227] * 2, [115.900893] * 2),
    "vit at 384": (
        lambda: create_model("vit_ti16", img_size=384, **_SMALL),
        (3, 384, 384),
        [200.047983] * 2,
        [199.701279] * 2,
    ),
    "vit on a rectangle": (
        lambda: create_model("vit_ti16", img_size=(160, 320), **_SMALL),
        (3, 160, 320),
        [128.472069] * 2,
        [127.832904] * 2,
    ),
    "vit of 14": (
        lambda: VisionTransformer(patch_size=14, num_classes=5, **_SMALL),
        (3, 224, 224),
        [116.565053] * 2,
        [116.111493] * 2,
    ),
    "distilled": (lambda: create_model("deit_ti16_dist", **_SMALL), (3, 224, 224), [116.492227] * 2, [115.315538] * 2),
    "registers": (
        lambda: VisionTransformer(reg_tokens=4, no_embed_class=True, num_classes=5, **_SMALL),
        (3, 224, 224),
        [116.492227] * 2,
        [113.594410] * 2,
    ),
    "hybrid": (lambda: create_model("r_vit_ti16", **_SMALL), (3, 224, 224), [115.502894] * 2, [113.192833] * 2),
    "torchvision": (
        lambda: TorchvisionTransformer(224, 16, 2, 3, 24, 32),
        (3, 224, 224),
        [116.492227] * 2,
        [115.900893] * 2,
    ),
    "swin": (lambda: _swin("swin_t"), (3, 224, 224), _WINDOWED, None),
    "swin v2": (
        lambda: _swin("swinv2_t_w8"),
        (3, 256, 256),
        [
            distance
            for tokens, shift in ((64, 4), (32, 4), (16, 4), (8, 0))
            for distance in (uniform(8, 8, 256 / tokens), shifted(tokens, 8, shift, 256 / tokens))
        ],
        None,
    ),
    "pvt": (
        lambda: create_model("pvt_tiny", dims=(8, 16, 16, 16), **_PYRAMID),
        (3, 224, 224),
        [116.216577, 116.190408, 116.088007, 115.502894],
        [116.216577, 116.190408, 116.088007, 113.192836],
    ),
    "pvt v2": (
        lambda: create_model("pvt_v2_b0", embed_dims=(8, 16, 16, 16), **_PYRAMID),
        (3, 224, 224),
        [116.216577, 116.190408, 116.088007, 115.502894],
        None,
    ),
    "pvt v2 linear": (
        lambda: create_model("pvt_v2_b2_li", embed_dims=(8, 16, 16, 16), **_PYRAMID),
        (3, 224, 224),
        [
            alike([(grid(len(bins) and side, side, 224, 224), merged(bins, bins, 224 / side))])[0]
            for side, bins in zip((56, 28, 14, 7), _BINS, strict=True)
        ],
        None,
    ),
    "mvit v2": (
        _mvitv2,
        (3, 224, 224),
        # Queries and keys a side: 56 and 14; 28 and 28, 28 and 14; 14 and 28, 14 and 14; 7 and 14.
        [116.883167, 116.721636, 116.721636, 116.721636, 116.492227, 116.492227],
        None,
    ),
    "cvt": (
        lambda: create_model("cvt_13", dims=(8, 16, 32), depths=(1, 1, 1), num_heads=(1, 2, 2)),
        (3, 224, 224),
        [116.776824, 116.721636, 116.492227],
        [116.776824, 116.721636, 116.492227 * 49 / 50],
    ),
    "coatnet": (_coatnet, (3, 224, 224), [116.492227, 115.502894], None),
    "t2t": (
        lambda: create_model("t2t_vit_t_14", img_size=112, embed_dim=24, encoder=_t2t_encoder),
        (3, 112, 112),
        [uniform(28, 28, 4), uniform(14, 14, 8), uniform(7, 7, 16)],
        [uniform(28, 28, 4), uniform(14, 14, 8), uniform(7, 7, 16) * 49 / 50],
    ),
    "cct": (lambda: create_model("cct_2_3x2_32"), (3, 32, 32), [uniform(8, 8, 4)] * 2, None),
    "compact cvt": (lambda: create_model("compact_cvt_2_4_32"), (3, 32, 32), [uniform(8, 8, 4)] * 2, None),
    "vit lite": (
        lambda: create_model("vit_lite_2_4_32"),
        (3, 32, 32),
        [uniform(8, 8, 4)] * 2,
        [uniform(8, 8, 4) * 64 / 65] * 2,
    ),
    "maxvit": (
        _maxvit,
        (3, 224, 224),
        [14.437862, 115.502894, 28.875723, 115.502894, 57.751447, 115.502894, 115.502894, 115.502894],
        None,
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_model_that_attends_alike_everywhere(name: str) -> None:
    make, shape, renormalised, paper = WHOLE[name]
    finding = analyze(zeroed(make()), [torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))])
    assert not finding.left_out
    assert [row.depth for row in finding.rows if row.head == 0] == list(range(len(renormalised)))
    for row in finding.rows:
        expected, of_paper = renormalised[row.depth], (paper or renormalised)[row.depth]
        assert row.distance_px == pytest.approx(expected, abs=THROUGH_A_MODEL)
        assert row.distance_paper_px == pytest.approx(of_paper, abs=THROUGH_A_MODEL)
        assert row.uniform_px == pytest.approx(expected, abs=THROUGH_A_MODEL)
        assert row.uniform_paper_px == pytest.approx(of_paper, abs=THROUGH_A_MODEL)
        assert row.prefix_mass == pytest.approx(1 - of_paper / expected, abs=1e-5)
    assert finding.width_px == shape[-1]


_CLIP: dict[str, Any] = {"img_size": 48, "num_frames": 8, **_SMALL}
_PX, _FRAMES, _STEPS = uniform(3, 3, 16), 2.625, 2 * 15 / 12  # of frames, and of tubelets of two

# What each layer of a block gives: pixels, frames, and the share of tokens that have a place.
CLIPS: dict[str, tuple[dict[str, Any], list[tuple[float | None, float | None, float]]]] = {
    "timesformer_space": ({}, [(_PX, None, 9 / 10)]),
    "timesformer_joint": ({}, [(_PX, _FRAMES, 72 / 73)]),
    "timesformer_divided": ({}, [(None, _FRAMES, 1), (_PX, None, 9 / 10)]),
    "timesformer_axial": ({}, [(None, _FRAMES, 1), (16 * 8 / 9, None, 1), (16 * 8 / 9, None, 3 / 4)]),
    # Two by two patches of a quarter of 4 x 4; of every second, twice as far apart, in every second frame.
    "timesformer_lg": ({"img_size": 64}, [(uniform(2, 2, 16), _FRAMES, 1), (uniform(2, 2, 32), 2 * 15 / 12, 16 / 17)]),
    "vivit_b_16x2_m1": ({}, [(_PX, _STEPS, 36 / 37)]),
    "vivit_b_16x2_fsa": ({}, [(_PX, None, 1), (None, _STEPS, 1)]),
    "vivit_b_16x2_fdp": ({"num_heads": 4}, [(None, _STEPS, 1), (_PX, None, 1)]),
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_whole_model_of_clips_that_attends_alike_everywhere(name: str) -> None:
    options, expected = CLIPS[name]
    arguments = _CLIP | options
    finding = analyze(zeroed(create_model(name, **arguments)), [torch.randn(1, 3, 8, *(arguments["img_size"],) * 2)])
    for row in finding.rows:
        px, frames, share = expected[row.depth % len(expected)]
        for found, value in ((row.distance_px, px), (row.distance_frames, frames)):
            assert found == (None if value is None else pytest.approx(value, abs=THROUGH_A_MODEL))
        for found, value in ((row.distance_paper_px, px), (row.distance_paper_frames, frames)):
            assert found == (None if value is None else pytest.approx(share * value, abs=THROUGH_A_MODEL))
        assert row.prefix_mass == pytest.approx(1 - share, abs=1e-5)
    assert finding.rows[-1].depth == 2 * len(expected) - 1


def test_vivits_factorised_encoder_that_attends_alike_everywhere() -> None:
    finding = analyze(zeroed(create_model("vivit_b_16x2_fe", **_CLIP)), [torch.randn(1, 3, 8, 48, 48)])
    for row in finding.rows:
        if ".spatial." in row.layer:
            assert row.distance_px == pytest.approx(_PX, abs=THROUGH_A_MODEL)
            assert row.distance_frames is None
        else:
            assert row.distance_px is None
            assert row.distance_frames == pytest.approx(_STEPS, abs=THROUGH_A_MODEL)
            assert row.distance_paper_frames == pytest.approx(_STEPS * 4 / 5, abs=THROUGH_A_MODEL)


@pytest.mark.parametrize("name", ["mvit_b_16x4", "mvitv2_s_16x4"])
def test_mvit_of_clips_that_attends_alike_everywhere(name: str) -> None:
    """At 64 pixels 16 x 16 tokens of two frames; expected: means of distances written out."""
    model = create_model(name, img_size=64, num_frames=4, depth=4, stages=(1, 3), embed_dim=16)
    finding = analyze(zeroed(model), [torch.randn(1, 3, 4, 64, 64)])
    for row in finding.rows:
        side, q, kv = ((16, 1, 8), (16, 2, 4), (8, 1, 4), (8, 2, 2))[row.depth]
        queries, keys = (every(stride, side, side, 64, 64, [1.0, 3.0]) for stride in (q, kv))
        px, frames, _, _ = alike([(queries, keys)])
        share = len(keys) / (1 + len(keys))
        assert row.distance_px == pytest.approx(px, abs=THROUGH_A_MODEL)
        assert row.distance_paper_px == pytest.approx(share * px, abs=THROUGH_A_MODEL)
        assert row.distance_frames == pytest.approx(frames, abs=THROUGH_A_MODEL)
        assert row.prefix_mass == pytest.approx(1 - share, abs=1e-5)
    assert finding.rows[-1].depth == 3


# Whole models by chance.


def test_untrained_weights_come_near_uniform() -> None:
    """Expected, measured once elsewhere, of ViT-Ti/16 as it is drawn, between 115.85 and 115.97 in mode paper."""
    finding = analyze(
        create_model("vit_ti16"), [torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))]
    )
    found = [row.distance_paper_px for row in finding.rows]
    assert len(found) == 12 * 3
    assert all(value is not None and 115.85 < value < 115.97 for value in found)


def _chosen() -> tuple[VisionTransformer, Tensor]:
    model = stirred(VisionTransformer(img_size=(48, 80), patch_size=16, num_classes=5, **_SMALL))
    assert isinstance(model, VisionTransformer)
    return model, torch.randn(3, 3, 48, 80, generator=torch.Generator().manual_seed(0))


def _written_out(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused_attn = False  # type: ignore[misc]  # a constant for compilers
    return model


def test_fused_or_written_out_attention_is_the_same() -> None:
    model, x = _chosen()
    found = [analyze(model, [x]).rows, analyze(_written_out(model), [x]).rows]
    assert values(found[0]) == numbers(found[1])
    assert max(abs((row.distance_px or 0) - (row.uniform_px or 0)) for row in found[0]) > 1


def test_a_model_in_bfloat16_comes_within_a_twentieth_of_a_pixel() -> None:
    """The documented bound, of a model as it is drawn, with fused attention, with attention written out, and torch's own."""
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for model in (
        VisionTransformer(num_classes=5, **_SMALL),
        _written_out(VisionTransformer(num_classes=5, **_SMALL)),
        TorchvisionTransformer(224, 16, 2, 3, 24, 32),
    ):
        expected = analyze(model, [x]).rows
        found = analyze(model.bfloat16(), [x.bfloat16()]).rows
        for one, other in zip(found, expected, strict=True):
            assert one.distance_px == pytest.approx(other.distance_px, abs=0.05)
            assert one.distance_paper_px == pytest.approx(other.distance_paper_px, abs=0.05)


def test_the_memory_format_of_images_does_not_matter() -> None:
    model, x = _chosen()
    expected = analyze(model, [x]).rows
    assert values(analyze(model, [x.contiguous(memory_format=torch.channels_last)]).rows) == numbers(expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("fused", [True, False])
def test_an_accelerator_measures_the_same(dtype: torch.dtype, bound: float, fused: bool) -> None:
    """In single precision with weights that make attention anything but uniform, in half of it with weights as drawn."""
    device = torch.accelerator.current_accelerator()
    torch.manual_seed(0)
    model: nn.Module = VisionTransformer(num_classes=5, **_SMALL)
    model = stirred(model) if dtype == torch.float32 else model
    model = model if fused else _written_out(model)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = analyze(model, [x]).rows
    found = analyze(model.to(device, dtype), [x.to(device, dtype)]).rows
    for one, other in zip(found, expected, strict=True):
        assert one.distance_px == pytest.approx(other.distance_px, abs=bound)
        assert one.distance_paper_px == pytest.approx(other.distance_paper_px, abs=bound)


# Pictures and tables.


def _drawn(mode: Mode = "paper", *, by_head: bool = False, **options: Any) -> Figure:
    torch.manual_seed(0)
    model = VisionTransformer(
        **{"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 6, "num_heads": 4} | options
    )
    finding = attention_distance.analyze(model, [torch.randn(2, 3, 32, 32)])
    return attention_distance.draw({"a $model$ <b>": finding, "again": finding}, mode=mode, by_head=by_head)


def test_the_picture_has_the_papers_axes() -> None:
    """As ViT's Figs. 7 and 11: labels, heads in the legend, an axis that ends at 130 pixels for an input of 224."""
    first, second = _drawn().axes
    assert first.get_xlabel() == "Network depth (layer)"
    assert first.get_ylabel() == "Mean attention distance (pixels)"
    assert second.get_ylabel() == ""
    assert list(first.get_ylim()) == pytest.approx([0, 130 * 32 / 224])
    legend = first.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["Head 1", "Head 2", "Head 3", "..."]
    assert first.get_title() == "a $model$ <b>"


def test_heads_sorted_are_of_the_two_lowest_and_the_two_highest_layers() -> None:
    ax = _drawn(by_head=True).axes[0]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [f"blocks.{number}.attn" for number in (0, 1, 4, 5)]
    for line in ax.get_lines():
        heights = np.asarray(line.get_ydata(), dtype=float)
        assert (np.diff(heights) >= 0).all()


@pytest.mark.parametrize("mode", attention_distance.MODES)
def test_a_dot_stands_at_each_number_of_the_rows_and_the_same_numbers_make_the_same_file(
    mode: Mode,
) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
    finding = attention_distance.analyze(model, [torch.randn(2, 3, 32, 32)])
    figure = attention_distance.draw({"m": finding}, mode=mode)
    dots = {
        (float(x), float(y))
        for line in figure.axes[0].get_lines()
        if line.get_marker() == "."
        for x, y in zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
    }
    column = "distance_paper_px" if mode == "paper" else "distance_px"
    assert dots == {(row.depth, getattr(row, column)) for row in finding.rows}
    again = attention_distance.draw({"m": finding}, mode=mode)
    assert rendered(figure, ".png") == rendered(again, ".png")


def test_the_table_has_a_line_a_layer() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
    finding = attention_distance.analyze(model, [torch.randn(2, 3, 32, 32)])
    found = attention_distance.table({"m": finding})
    assert [row["layer"] for row in found.rows] == ["blocks.0.attn", "blocks.1.attn"]
    for row in found.rows:
        assert row["least_px"] <= row["mean_px"] <= row["most_px"]
    assert found.columns[0].heading == "Layer"  # one model needs no name
    assert attention_distance.table({"a": finding, "b": finding}).columns[0].heading == "Model"
