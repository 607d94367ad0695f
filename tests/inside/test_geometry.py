"""Places of tokens and their distances. Where no source is named, a value is worked out in the test, token by token."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.tokens import shifted as tokens_shifted
from tests.tokens import uniform
from vitbench.inside.geometry import Geometry, binned, centres, chained, places, pooled, raster

TOLERANCE = 1e-4  # pixels
CPU = torch.device("cpu")


def windows(tokens: int, window: int, shift: int, pitch: float, *, masked: bool) -> Geometry:
    """Gives Swin's windows of a square map, each token put where it belongs by hand."""
    count = tokens // window
    found = torch.zeros(count * count, window * window, 3, dtype=torch.float64)
    region = torch.zeros(count * count, window * window, dtype=torch.long)
    for row, column in product(range(tokens), repeat=2):
        at = (row - shift) % tokens, (column - shift) % tokens  # after the roll
        group = at[0] // window * count + at[1] // window
        inside = at[0] % window * window + at[1] % window
        found[group, inside] = torch.tensor([0.0, (row + 0.5) * pitch, (column + 0.5) * pitch])
        region[group, inside] = 2 * (row < shift) + (
            column < shift
        )  # those that the roll brought from the other border
    regions = region if masked else None
    return Geometry(
        queries=found,
        keys=found,
        query_regions=regions,
        key_regions=regions,
        grid=(1, tokens, tokens),
        key_grid=(1, tokens, tokens),
        pitch=(1.0, pitch, pitch),
    )


def pooling(side: int, queries: Tensor, keys: Tensor) -> Geometry:
    return Geometry(queries=queries, keys=keys, grid=(1, side, side), key_grid=(1, 1, 1), pitch=(1.0, 1.0, 1.0))


# Axes.


def test_centres_share_the_extent_evenly() -> None:
    assert centres(4, 64) == (8.0, 24.0, 40.0, 56.0)
    assert centres(1, 10) == (5.0,)


def test_a_kernel_that_strides_by_itself_stands_at_the_mean_of_what_it_covers() -> None:
    axis = centres(8, 32)
    assert pooled(axis, 2, 4, 4, 0) == (sum(axis[:4]) / 4, sum(axis[4:]) / 4)


def test_a_kernel_of_three_with_padding_stands_on_every_sth_token() -> None:
    axis = centres(9, 36)
    assert pooled(axis, 5, 3, 2, 1) == axis[::2]


def test_one_token_pools_to_itself() -> None:
    assert pooled((7.0,), 1, 3, 2, 1) == (7.0,)


@pytest.mark.parametrize("count", [1, 3, 7, 10])
def test_bins_are_those_of_adaptive_pooling(count: int) -> None:
    """Expected: what torch's adaptive pooling makes of the coordinates themselves."""
    axis = centres(10, 160)
    expected = functional.adaptive_avg_pool1d(torch.tensor([axis], dtype=torch.float64), count)[0]
    assert binned(axis, count) == pytest.approx(expected.tolist())


# Tokens.


def test_tokens_run_through_columns_then_rows_then_frames_after_the_prefix() -> None:
    found = places((1.0, 2.0), (10.0, 20.0), (0.5, 1.5), prefix=1)[0]
    assert found[0].isnan().all()
    assert found[1:].tolist() == [list(one) for one in product((0.5, 1.5), (1.0, 2.0), (10.0, 20.0))]


def test_a_raster_knows_grid_pitch_and_chain() -> None:
    found = raster((2, 4), (32, 128), prefix=2)
    assert (found.grid, found.key_grid, found.pitch) == ((1, 2, 4), (1, 2, 4), (1.0, 16.0, 32.0))
    assert found.placed_queries.tolist() == [[False] * 2 + [True] * 8]
    assert found.groups == 1
    assert found.chain is not None
    assert found.chain.same_as(chained("tokens", 10, (1, 2, 4)))
    assert found.keys_allowed.tolist() == [[10] * 10]
    clip = raster((4, 2, 2), (8, 32, 32), chain=False, unchained="no")
    assert clip.pitch == (2.0, 16.0, 16.0)
    assert clip.queries[0, :, 0].unique().tolist() == [1.0, 3.0, 5.0, 7.0]
    assert (clip.chain, clip.unchained) == (None, "no")


# Attention that is the same everywhere. Expected: the closed form, a sum over all offsets.

GRIDS = {
    (7, 7, 32): (115.502894, 113.192836, 104.808182, 215.9333),
    (14, 14, 16): (116.492227, 115.900896, 113.594410, 228.5276),
    (16, 16, 14): (116.565053, 116.111493, 114.332006, 229.9391),
    (16, 16, 16): (133.217204, 132.698849, 130.665150, 262.7875),
    (24, 24, 16): (200.047983, 199.701279, 198.326399, 399.8174),
    (28, 28, 8): (116.721636, 116.572946, 115.981955, 234.1648),
    (10, 20, 16): (128.472069, 127.832904, 125.338604, 259.2290),
}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_uniform_attention_over_a_grid(grid: tuple[int, int, int]) -> None:
    rows, columns, pitch = grid
    extents = (rows * pitch, columns * pitch)
    renormalised, one, five, farthest = GRIDS[grid]
    assert renormalised == pytest.approx(uniform(*grid), abs=1e-5)
    for prefix, paper in ((0, renormalised), (1, one), (5, five)):
        found = raster((rows, columns), extents, prefix=prefix)
        for made_up, expected in ((True, renormalised), (False, paper)):
            px, frames = found.uniform(renormalised=made_up)
            assert px == pytest.approx(expected, abs=TOLERANCE)
            assert frames is None
        assert found.most_px == pytest.approx(farthest, abs=TOLERANCE)
        assert found.least_px == 0


def test_uniform_attention_of_dinov2() -> None:
    """37 x 37 patches of 14 pixels, by the closed form: a map of all pairs would take long."""
    assert uniform(37, 37, 14) == pytest.approx(269.991880, abs=1e-5)


@pytest.mark.parametrize(
    ("grid", "expected"),
    [((2, 2), (2 + math.sqrt(2)) / 4), ((3, 3), 1.453311), ((14, 14), 7.280764), ((1, 14), 195 / 42)],
)
def test_uniform_attention_over_small_grids(grid: tuple[int, int], expected: float) -> None:
    """Expected: the sum over all offsets; of a line of n tokens (n^2 - 1) / (3 n)."""
    assert raster(grid, grid).uniform(renormalised=True)[0] == pytest.approx(expected, abs=1e-6)


def test_a_fine_grid_comes_near_the_unit_square() -> None:
    """Expected: the mean distance of two points of a square, (2 + sqrt 2 + 5 asinh 1) / 15."""
    continuum = (2 + math.sqrt(2) + 5 * math.asinh(1)) / 15
    assert uniform(60, 60, 1 / 60) == pytest.approx(continuum, rel=1e-3)


@pytest.mark.parametrize("frames", [2, 8, 16])
def test_uniform_attention_over_time(frames: int) -> None:
    """Expected: (F^2 - 1) / (3 F) steps; a token of two frames steps by two."""
    found = raster((frames, 1, 1), (2 * frames, 16, 16))
    px, steps = found.uniform(renormalised=True)
    assert px is None
    assert steps == pytest.approx(2 * (frames**2 - 1) / (3 * frames))
    assert (found.has_space, found.has_time) == (False, True)


def test_space_and_time_are_measured_apart() -> None:
    found = raster((4, 3, 3), (4, 3, 3), prefix=1)
    for renormalised, share in ((True, 1), (False, 36 / 37)):
        px, frames = found.uniform(renormalised=renormalised)
        assert px == pytest.approx(share * uniform(3, 3, 1))
        assert frames == pytest.approx(share * 15 / 12)


# Windows and pooled keys. Expected: closed forms, and means written out.


@pytest.mark.parametrize(
    ("tokens", "pitch", "plain", "shifted", "unmasked"),
    [
        (56, 4, 14.437862, 13.593857, 37.615933),
        (28, 8, 28.875723, 25.458148, 67.281307),
        (14, 16, 57.751447, 43.748700, 105.817343),
    ],
)
def test_uniform_attention_within_windows(
    tokens: int, pitch: float, plain: float, shifted: float, unmasked: float
) -> None:
    for shift, masked, expected in ((0, True, plain), (3, True, shifted), (3, False, unmasked)):
        found = windows(tokens, 7, shift, pitch, masked=masked)
        assert found.uniform(renormalised=True)[0] == pytest.approx(expected, abs=TOLERANCE)
    assert tokens_shifted(tokens, 7, 3, pitch) == pytest.approx(shifted, abs=TOLERANCE)


def test_a_window_of_eight() -> None:
    assert uniform(8, 8, 4) == pytest.approx(16.545931, abs=1e-5)


@pytest.mark.parametrize(
    ("side", "expected", "least"),
    [(56, 116.216577, 12.1738), (28, 116.190408, 11.9814), (14, 116.088007, 11.3137), (7, 115.502894, 0)],
)
def test_keys_that_are_squares_of_tokens(side: int, expected: float, least: float) -> None:
    """PVT at 224 pixels: 7 x 7 keys."""
    axis = centres(side, 224)
    keys = pooled(axis, 7, side // 7, side // 7, 0)
    found = pooling(side, places(axis, axis), places(keys, keys))
    assert found.uniform(renormalised=True)[0] == pytest.approx(expected, abs=TOLERANCE)
    assert found.least_px == pytest.approx(least, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("side", "of_queries", "of_keys", "expected"),
    [(56, 1, 4, 116.883167), (28, 1, 2, 116.721636), (56, 1, 2, 116.776824), (14, 2, 1, 116.492227)],
)
def test_tokens_that_stand_on_every_sth(side: int, of_queries: int, of_keys: int, expected: float) -> None:
    """MViT's and CvT's stages at 224 pixels; in the last case the queries stride."""
    axis = centres(side, 224)
    queries, keys = (pooled(axis, side // stride, 3, stride, 1) for stride in (of_queries, of_keys))
    found = pooling(side, places(queries, queries), places(keys, keys))
    assert found.uniform(renormalised=True)[0] == pytest.approx(expected, abs=TOLERANCE)


def test_queries_that_are_every_second_token() -> None:
    """LeViT: 4 x 4 queries of 7 x 7 tokens."""
    axis = centres(7, 224)
    found = pooling(4, places(axis[::2], axis[::2]), places(axis, axis))
    assert found.uniform(renormalised=True)[0] == pytest.approx(122.698320, abs=TOLERANCE)


# Distances as statistics use them.


def test_a_prefix_has_no_distance_and_leads() -> None:
    found = raster((2, 2), (2, 2), prefix=2).distances(CPU)
    assert found.px is not None
    assert found.px[0, 2, 2:].tolist() == pytest.approx([0, 1, 1, math.sqrt(2)])
    assert not found.px[0, :2].any()
    assert not found.px[0, :, :2].any()
    assert (found.first_placed, found.frames) == (2, None)
    assert found.placed is not None
    assert found.placed.tolist() == [[0, 0, 1, 1, 1, 1]]


def test_keys_without_a_place_that_do_not_lead_are_told_apart() -> None:
    tokens = places((0.5,), (0.5, 1.5, 2.5))
    tokens[0, 1] = math.nan  # padding
    found = pooling(3, tokens, tokens)
    distances = found.distances(CPU)
    assert distances.first_placed is None
    assert distances.placed is not None
    assert distances.placed.tolist() == [[1, 0, 1]]
    assert found.uniform(renormalised=True)[0] == pytest.approx(1)
    assert found.uniform(renormalised=False)[0] == pytest.approx(2 / 3)


def test_groups_that_are_alike_share_their_distances() -> None:
    found = windows(14, 7, 3, 16, masked=True)
    distances = found.distances(CPU)
    assert distances.px is not None
    assert found.allowed is not None
    assert len(distances.px) == 4  # whole, cut down, cut across, cut both ways
    assert len(windows(56, 7, 0, 4, masked=True).distances(CPU).kind.unique()) == 1
    assert found.distances(CPU) is distances


def test_regions_bound_what_is_near_far_and_allowed() -> None:
    tokens = places((0.5,), (0.5, 1.5, 2.5))
    regions = torch.tensor([[0, 0, 1]])
    found = replace(pooling(3, tokens, tokens), query_regions=regions, key_regions=regions)
    assert found.keys_allowed.tolist() == [[2, 2, 1]]
    assert found.least_px == 0
    assert found.most_px == pytest.approx(2 / 3)
    assert found.uniform(renormalised=True)[0] == pytest.approx(1 / 3)


def test_what_is_the_same_is_known() -> None:
    one = raster((2, 3), (32, 48), prefix=1)
    assert one.same_as(raster((2, 3), (32, 48), prefix=1))
    for other in (
        raster((2, 3), (32, 48)),
        raster((3, 2), (32, 48), prefix=1),
        raster((2, 3), (32, 96), prefix=1),
        raster((2, 3), (32, 48), prefix=1, chain=False),
        raster((2, 3), (32, 48), prefix=1, name="others"),
    ):
        assert not one.same_as(other)
    masked, bare = (windows(14, 7, 3, 16, masked=masked) for masked in (True, False))
    assert not masked.same_as(bare)


def test_a_chain_differs_by_where_its_tokens_come_from() -> None:
    one = chained("times", 3, (3, 1, 1))
    assert not one.same_as(replace(one, entry=torch.tensor([-1, 0, 4])))
    assert not one.same_as(replace(one, keys=torch.tensor([[0, 2, 1]])))
