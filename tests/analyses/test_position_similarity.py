"""Similarity of position embeddings: closed forms, planted tables, and timm's own resampling."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitbench import catalog
from vitbench.analyses import position_similarity
from vitbench.analyses.position_similarity import PositionSimilarity, analyze, resampled, similarity
from vitbench.build import create_model
from vitbench.drawing import pictures
from vitbench.errors import BadInput, NotDefined
from vitbench.reports import console


class Grid(nn.Module):
    """What `_plain` reads: a table and the embedding that states the grid."""

    def __init__(self, entries: Tensor, prefix: int = 0) -> None:
        """Entries are (h, w, C)."""
        super().__init__()
        h, w, width = entries.shape
        self.patch_embed = nn.Identity()
        self.patch_embed.grid_size = (h, w)  # type: ignore[assignment]  # a plain attribute, as timm has it
        table = torch.cat((torch.full((prefix, width), 7.0), entries.flatten(0, 1)))
        self.pos_embed = nn.Parameter(table[None])


def random_table(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def light(name: str, **options: Any) -> nn.Module:
    """A model whose tables have numbers; the rest of it is on the meta device, and costs nothing."""
    model = create_model(name, device="meta", **options)
    for path, parameter in list(model.named_parameters()):
        if re.search(r"pos|time_embed", path.rpartition(".")[2]) or ".positions." in f".{path}":
            owner, _, leaf = path.rpartition(".")
            model.get_submodule(owner).register_parameter(
                leaf, nn.Parameter(random_table(*parameter.shape), requires_grad=parameter.requires_grad)
            )
    return model


def tile(found: PositionSimilarity, row: int, column: int) -> np.ndarray[Any, Any]:
    """The tile of a patch, by its row and column from 0."""
    one = next(tile for tile in found.rows if (tile.patch_row, tile.patch_column) == (row + 1, column + 1))
    return np.reshape(one.values, (one.tile_height, one.tile_width))


def test_similarity_is_the_cosine_of_each_pair() -> None:
    table = random_table(3, 4, 10) * torch.arange(1, 13).view(3, 4, 1) + 0.2
    found = analyze(Grid(table, prefix=2))
    assert len(found.rows) == 12
    for r in range(3):
        for c in range(4):
            for y in range(3):
                for x in range(4):
                    a, b = table[r, c].tolist(), table[y, x].tolist()
                    cosine = sum(p * q for p, q in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
                    assert tile(found, r, c)[y, x] == pytest.approx(cosine, abs=1e-6)
    assert {row.prefix_rows for row in found.rows} == {2}


def test_closed_forms() -> None:
    # One-hot entries are orthogonal, equal ones parallel; the sum of a row's and a column's unit vector shares half of its square
    # with all entries of the row or column.
    np.testing.assert_allclose(similarity(torch.eye(12)), np.eye(12), atol=1e-7)
    np.testing.assert_allclose(similarity(torch.full((12, 5), -3.0)), np.ones((12, 12)), atol=1e-6)
    separable = torch.cat((torch.eye(3)[:, None].expand(3, 4, 3), torch.eye(4)[None].expand(3, 4, 4)), dim=-1)
    found = tile(analyze(Grid(separable)), 1, 2)
    expected = np.array([[0, 0, 0.5, 0], [0.5, 0.5, 1, 0.5], [0, 0, 0.5, 0]])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_cosine_stays_within_its_bounds_and_has_none_where_there_is_no_direction() -> None:
    found = similarity(torch.full((50, 7), 0.1))
    assert float(found.max()) <= 1
    table = random_table(2, 2, 4)
    table[0, 1] = 0
    zero = analyze(Grid(table))
    assert np.isnan(tile(zero, 0, 1)).all()
    assert np.isnan(tile(zero, 0, 0)).tolist() == [[False, True], [False, False]]
    assert zero.notes == ("1 of 4 entries of the table space are zero, and similar to nothing.",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tables_of_half_precision_are_judged_in_full(dtype: torch.dtype) -> None:
    table = random_table(3, 3, 16).to(dtype)
    np.testing.assert_array_equal(analyze(Grid(table)).maps[0].cosines, analyze(Grid(table.float())).maps[0].cosines)


def test_large_tables_have_tiles_of_every_second_row_and_column() -> None:
    table = random_table(56, 56, 8)
    found = analyze(Grid(table))
    assert len(found.rows) == 28 * 28
    assert {row.patch_row for row in found.rows} == set(range(1, 57, 2))
    direct = similarity(table[6, 8][None], table.flatten(0, 1)).view(56, 56)
    np.testing.assert_allclose(tile(found, 6, 8), direct, atol=1e-6)
    assert found.notes == ("The table space has 56x56 positions; tiles are of every 2nd row and column.",)
    ticks = [label.get_text() for label in position_similarity.draw({"large": found}).axes[0].get_xticklabels()]
    assert ticks[:3] == ["1", "5", "9"]


def test_a_joint_table_is_shown_in_space_and_in_time() -> None:
    # e(t, p) = a(t) + b(p), all orthonormal: half of the square is shared within a frame, and half at one place.
    model: Any = light("vivit_b_16x2_m1", img_size=32, num_frames=6)
    entries = torch.zeros(3, 4, 768)
    entries[..., :3] = torch.eye(3)[:, None]
    entries[..., 3:7] = torch.eye(4)[None]
    model.encoder.pos_embed.data[0, 1:] = entries.flatten(0, 1)
    found = analyze(model)
    assert [(one.axis, one.extents) for one in found.maps] == [("space", (2, 2)), ("time", (1, 3))]
    np.testing.assert_allclose(found.maps[0].cosines, (np.eye(4) + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(found.maps[1].cosines, (np.eye(3) + 1) / 2, atol=1e-6)
    frames = [row for row in found.rows if row.axis == "time"]
    assert [row.frame for row in frames] == [1, 2, 3]
    assert frames[0].values == pytest.approx((1, 0.5, 0.5), abs=1e-6)


# By family: a model, then its tables: name, axis, rows and columns of a tile, rows before the grid's; or the reason why not.
FAMILIES: dict[str, tuple[str, list[tuple[str, str, tuple[int, int], int]] | str]] = {
    "vit": ("vit_ti16", [("space", "space", (14, 14), 1)]),
    "vit_hybrid": ("r_vit_ti16", [("space", "space", (7, 7), 1)]),
    "deit": ("deit_ti16_dist", [("space", "space", (14, 14), 2)]),
    "pvt": ("pvt_tiny", [(f"stage {n}", "space", (g, g), n // 4) for n, g in ((1, 56), (2, 28), (3, 14), (4, 7))]),
    "t2t_vit": ("t2t_vit_7", [("space", "space", (14, 14), 1)]),
    "cct": ("cct_7_3x1_32", [("space", "space", (16, 16), 0)]),
    "compact_cvt": ("compact_cvt_2_4_32", [("space", "space", (8, 8), 0)]),
    "vit_lite": ("vit_lite_2_4_32", [("space", "space", (8, 8), 1)]),
    "vivit": ("vivit_b_16x2_fe", [("space", "space", (14, 14), 1), ("time", "time", (1, 16), 1)]),
    "timesformer": ("timesformer", [("space", "space", (14, 14), 1), ("time", "time", (1, 8), 0)]),
    "mvit": ("mvit_b_16x4", [("space", "space", (56, 56), 0), ("time", "time", (1, 8), 0)]),
    "bit": ("bit_r50x1", "what it knows of them comes from convolutions with padding"),
    "resnet": ("resnet50", "what it knows of them comes from convolutions with padding"),
    "regnet": ("regnety_16gf", "what it knows of them comes from convolutions with padding"),
    "efficientnet": ("efficientnet_l2", "what it knows of them comes from convolutions with padding"),
    "swin": ("swin_t", "its positions are relative: biases of its attention"),
    "swinv2": ("swinv2_t_w8", "its positions are relative: biases of its attention"),
    "pvt_v2": ("pvt_v2_b0", "what it knows of them comes from convolutions with padding"),
    "mvitv2": ("mvitv2_t", "its positions are relative: vectors that are multiplied with queries"),
    "cvt": ("cvt_13", "what it knows of them comes from convolutions with padding"),
    "coatnet": ("coatnet_0", "its positions are relative: biases of its attention"),
}
OTHERS: list[tuple[str, list[tuple[str, str, tuple[int, int], int]] | str]] = [
    ("deit3_small_patch16_224", [("space", "space", (14, 14), 0)]),
    ("vit_small_patch14_dinov2", [("space", "space", (37, 37), 1)]),
    ("vit_small_patch14_reg4_dinov2", [("space", "space", (37, 37), 0)]),
    ("eva02_tiny_patch14_224", [("space", "space", (16, 16), 1)]),
    ("cait_xxs24_224", [("space", "space", (14, 14), 0)]),
    ("convit_tiny", [("space", "space", (14, 14), 0)]),
    ("pit_ti_224", [("space", "space", (27, 27), 0)]),
    ("visformer_tiny", [(f"stage {n}", "space", (g, g), 0) for n, g in ((1, 28), (2, 14), (3, 7))]),
    ("crossvit_9_240", [("patches of 12x12", "space", (20, 20), 1), ("patches of 16x16", "space", (14, 14), 1)]),
    ("tnt_s_legacy_patch16_224", [("patches", "space", (14, 14), 1), ("pixels in a patch", "space", (4, 4), 0)]),
    ("hiera_tiny_224", [("space", "space", (56, 56), 0)]),
    ("hiera_base_abswin_256", [("image", "space", (14, 14), 0), ("window", "space", (8, 8), 0)]),
    ("hieradet_small", [("image", "space", (7, 7), 0), ("window", "space", (8, 8), 0)]),
    ("volo_d1_224", [("space", "space", (14, 14), 0)]),
    ("samvit_base_patch16", [("space", "space", (64, 64), 0)]),
    ("naflexvit_base_patch16_gap", [("space", "space", (16, 16), 0)]),
    ("naflexvit_base_patch16_parfac_gap", [("space", "space", (16, 16), 0)]),
    ("nest_tiny_jx", [(f"level {n}", "space", (g, g), 0) for n, g in ((1, 56), (2, 28), (3, 14))]),
    ("mvit_b_16_image", [("space", "space", (56, 56), 0)]),
    ("vivit_b_16x2_fsa", [("space and time", "space", (14, 14), 0), ("space and time", "time", (1, 16), 0)]),
    ("vivit_b_16x2_avgpool", [("space", "space", (14, 14), 1)]),
    ("timesformer_space", [("space", "space", (14, 14), 1)]),
    ("vit_small_patch16_dinov3", "its positions are rotary"),
    ("beit_base_patch16_224", "its positions are relative: biases of its attention"),
    ("vit_relpos_small_patch16_224", "its positions are relative: biases of its attention"),
    ("swinv2_cr_tiny_ns_224", "its positions are relative: biases of its attention"),
    ("maxvit_tiny_tf_224", "its positions are relative: biases of its attention"),
    ("levit_128s", "its positions are relative: biases of its attention"),
    ("mvitv2_tiny", "its positions are relative: vectors that are multiplied with queries"),
    ("samvit_base_patch16_224", "its positions are relative: vectors that are multiplied with queries"),
    ("mvitv2_s_16x4", "its positions are relative: vectors that are multiplied with queries"),
    ("xcit_nano_12_p16_224", "its positions are computed from coordinates"),
    ("coatnet_0_cccc", "what it knows of them comes from convolutions with padding"),
    ("mixer_s32_224", "it has no table of positions"),
    ("resnet50_clip", "keeps its positions in head.pos_embed, of which it does not state the grid"),
]


def test_every_family_of_the_catalog_is_tried() -> None:
    assert set(FAMILIES) == {variant.family for variant in catalog.VARIANTS.values()}


@pytest.mark.parametrize(
    ("name", "expected"), [*FAMILIES.values(), *OTHERS], ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_kind_of_model_is_analysed_or_refused_with_its_reason(
    name: str, expected: list[tuple[str, str, tuple[int, int], int]] | str
) -> None:
    if isinstance(expected, str):
        with pytest.raises(NotDefined, match=re.escape(expected)) as caught:
            analyze(create_model(name, device="meta"))
        assert caught.value.instead
        return
    found = analyze(light(name))
    assert [(one.table, one.axis, one.extents, one.prefix_rows) for one in found.maps] == expected
    assert {one.origin for one in found.maps} == {"fixed" if name == "t2t_vit_7" else "learnt"}
    for one in found.maps:
        # Each position is like itself, and as random vectors are, unlike the others.
        itself = one.cosines.reshape(len(one.places[0]) or one.extents[1], -1, *one.extents)
        rows, columns = one.places
        if one.axis == "space":
            own = [itself[i, j, r - 1, c - 1] for i, r in enumerate(rows) for j, c in enumerate(columns)]
        else:
            own = list(one.cosines.diagonal())
        assert min(own) > 0.99 or one.table == "space and time"
        assert float(np.abs(one.cosines).mean()) < 0.35


@pytest.mark.parametrize("name", ["t2t_vit_7", "cct_2_3x2_32_sine", "compact_cvt_2_4_32_sine", "vit_lite_2_4_32_sine"])
def test_tables_of_sines_and_cosines_are_fixed_also_where_all_is_frozen(name: str) -> None:
    model = create_model(name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = analyze(model)
    assert {row.origin for row in found.rows} == {"fixed"}
    # Closed form: the cosine of two entries of sines and cosines depends on their distance in the sequence alone.
    (one,) = found.maps
    flat = one.cosines[: one.extents[1] ** 2, : one.extents[1] ** 2]
    np.testing.assert_allclose(flat[0, 3], flat[5, 8], atol=1e-5)


def test_blocks_of_nest_are_put_where_they_are() -> None:
    from timm.models.nest import blockify

    model: Any = light("nest_tiny_jx")
    image = random_table(1, 28, 28, 192)
    model.levels[1].pos_embed.data = blockify(image, 14)
    np.testing.assert_allclose(analyze(model).maps[1].cosines, similarity(image.flatten(1, 2))[0].numpy(), atol=1e-5)


def test_rectangular_inputs_have_rectangular_tiles() -> None:
    found = analyze(light("vit_ti16", img_size=(64, 96)))
    assert found.maps[0].extents == (4, 6)
    assert len(found.rows) == 24
    assert tile(found, 3, 5)[3, 5] == pytest.approx(1)
    position_similarity.draw({"rectangle": found})


@pytest.mark.parametrize("kernel", ["bicubic with antialiasing", "bicubic", "linear"])
def test_resampling_keeps_what_it_must(kernel: str) -> None:
    table = random_table(1, 5, 7, 3)
    assert torch.equal(resampled(table, (1, 5, 7), kernel), table)
    constant = torch.full((1, 5, 7, 3), 0.4)
    torch.testing.assert_close(resampled(constant, (1, 8, 4), kernel), torch.full((1, 8, 4, 3), 0.4))
    # As many tokens on another grid are not the same table.
    other = resampled(random_table(1, 2, 8, 3), (1, 4, 4), kernel)
    assert not torch.allclose(other.flatten(1, 2), random_table(1, 2, 8, 3).flatten(1, 2))


@pytest.mark.parametrize("kernel", ["bicubic with antialiasing", "linear"])
def test_a_ramp_stays_a_ramp_away_from_its_ends(kernel: str) -> None:
    # In units of the old patches; half a pixel lies before the first centre. Of torch's kernels, bicubic without antialiasing is
    # the one that does not keep it: its parameter is -0.75, where only -0.5 does.
    ramp = torch.arange(14.0).view(1, 1, 14, 1)
    centres = (torch.arange(24) + 0.5) * 14 / 24 - 0.5
    torch.testing.assert_close(resampled(ramp, (1, 1, 24), kernel)[0, 0, 4:-4, 0], centres[4:-4])


@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (24, 24)), ((24, 24), (14, 14)), ((2, 8), (4, 4)), ((7, 9), (12, 5))]
)
def test_timms_resampling_is_bicubic_with_antialiasing(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = random_table(1, old[0] * old[1], 6)
    expected = resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=0)
    found = resampled(table.view(1, *old, 6), (1, *new), "bicubic with antialiasing")
    torch.testing.assert_close(found.flatten(0, 2)[None], expected, atol=1e-5, rtol=0)


SMALL: dict[str, Any] = {"embed_dim": 96, "depth": 2, "num_heads": 4}


@pytest.mark.parametrize(
    ("name", "options", "resize", "kernels"),
    [
        ("vit_ti16", {"depth": 1}, {"img_size": 160}, ["resampled, bicubic with antialiasing"]),
        ("pvt_tiny", {}, {"img_size": 128}, ["resampled, linear"] * 4),
        ("cct_2_3x2_32", {}, {"img_size": 48}, ["resampled, linear"]),
        ("cct_2_3x2_32_sine", {}, {"img_size": 48}, ["computed anew"]),
        ("t2t_vit_7", {}, {"img_size": 160}, ["resampled, bicubic"]),
        ("timesformer", SMALL, {"num_frames": 16}, ["not resampled", "resampled, nearest entry"]),
        ("vivit_b_16x2_m1", SMALL, {"img_size": 160, "num_frames": 16}, ["resampled, linear, corners aligned"]),
        ("mvit_b_16x4", {"depth": 5, "stages": (1, 3)}, {"num_frames": 8}, ["not resampled", "resampled, linear"]),
    ],
)
def test_the_kernel_that_resampled_is_found_out(
    tmp_path: Path, name: str, options: dict[str, Any], resize: dict[str, Any], kernels: list[str]
) -> None:
    # Source: the docstrings of each model's checkpoint_filter_fn, and timm's resample_abs_pos_embed.
    model = create_model(name, **options)
    for path, parameter in model.named_parameters():
        if path == "time_embed":
            parameter.data = random_table(*parameter.shape)
    save_model(model, str(tmp_path / "weights.safetensors"))
    other = create_model(name, weights=tmp_path / "weights.safetensors", **resize, **options)
    found = analyze(model, resized=other)
    by_table = {
        table: [one for one in found.maps if one.table == table]
        for table in dict.fromkeys(one.table for one in found.maps)
    }
    assert [maps[-1].kernel for maps in by_table.values()] == kernels
    for maps in by_table.values():
        half = len(maps) // 2  # a table over space and time is shown in both
        assert [one.version for one in maps] == ["before"] * half + ["after"] * half
        assert maps[-1].kernel in maps[-1].caption
        assert any(maps[-1].table in note and maps[-1].kernel in note for note in found.notes)


def test_models_of_different_weights_are_not_called_resampled() -> None:
    first, second = Grid(random_table(4, 4, 8)), Grid(random_table(6, 6, 8))
    found = analyze(first, resized=second)
    assert found.maps[1].kernel.startswith("not the first one resampled by any kernel known here")
    same = analyze(first, resized=Grid(random_table(4, 4, 8) + 1))
    assert same.maps[1].kernel == "of the same grid, but with other weights"
    with pytest.raises(BadInput, match="wider or narrower"):
        analyze(first, resized=Grid(random_table(4, 4, 9)))
    with pytest.raises(BadInput, match="other tables of positions"):
        analyze(first, resized=light("timesformer"))


def test_a_table_smaller_than_its_grid_is_refused() -> None:
    model = Grid(random_table(4, 4, 8))
    model.patch_embed.grid_size = (4, 5)  # type: ignore[assignment]  # as above
    with pytest.raises(NotDefined, match="16 rows is smaller than its grid of 1x4x5"):
        analyze(model)


def test_a_map_has_the_layout_of_the_paper() -> None:
    figure = position_similarity.draw({"mine": analyze(Grid(random_table(14, 14, 8)))})
    ax, bar = figure.axes
    assert figure.get_suptitle() == "Position embedding similarity"
    assert (ax.get_xlabel(), ax.get_ylabel(), bar.get_ylabel()) == (
        "Input patch column",
        "Input patch row",
        "Cosine similarity",
    )
    assert [label.get_text() for label in ax.get_yticklabels()] == [str(number) for number in range(1, 15)]
    image = ax.get_images()[0]
    assert image.get_clim() == (-1, 1)
    assert bar.get_yticks().tolist() == [-1, 1]
    # A tick stands at the middle of its tile, and the tile of the first row and last column is in that corner.
    picture: np.ndarray[Any, Any] = np.ma.filled(np.ma.asarray(image.get_array()), np.nan)
    step = ax.get_xticks()[1] - ax.get_xticks()[0]
    assert ax.get_xticks()[0] == pytest.approx((step - 2 - 1) / 2)
    assert picture.shape == (14 * 28 + 13 * 2, 14 * 28 + 13 * 2)
    assert picture[0, -1] == pytest.approx(1)
    assert np.isnan(picture[28:30]).all()


@pytest.mark.parametrize("ending", pictures.TIMELESS)
def test_the_same_weights_make_the_same_file(ending: str) -> None:
    def file() -> bytes:
        small, video = (
            analyze(Grid(random_table(3, 3, 8))),
            analyze(light("vivit_b_16x2_fe", img_size=32, num_frames=8)),
        )
        return pictures.rendered(position_similarity.draw({"a $x$ _b": small, "clips": video}), ending)

    assert file() == file()


def test_many_models_and_tables_are_drawn() -> None:
    zero = light("timesformer", img_size=32)
    dict(zero.named_parameters())["time_embed"].data.zero_()
    findings = {"zero": analyze(zero), **{f"m{n}": analyze(Grid(random_table(2, 2, 4))) for n in range(5)}}
    figure = position_similarity.draw(findings)
    drawn = [ax for ax in figure.axes if ax.get_images()]
    assert len(drawn) == 7
    assert [text.get_text() for ax in drawn for text in ax.texts if "zero" in text.get_text()] == [
        "all entries are zero"
    ]
    flat = position_similarity.draw({f"m{n}": analyze(Grid(random_table(2, 2, 4))) for n in range(5)})
    assert len([ax for ax in flat.axes if ax.get_images()]) == 5


def test_the_table_has_means_by_distance() -> None:
    # Of the separable table: 0.5 along rows and columns however far, and no pair of a 3 x 3 grid is exactly 4 apart.
    separable = torch.cat((torch.eye(3)[:, None].expand(3, 3, 3), torch.eye(3)[None].expand(3, 3, 3)), dim=-1)
    shown = position_similarity.table({"mine": analyze(Grid(separable))})
    (row,) = shown.rows
    assert row["cosine_1"] == pytest.approx(0.5, abs=1e-6)
    assert row["cosine_4"] is None
    # Farther than 1.5: two apart in a row or column (12 pairs, 0.5), and 16 of a knight's move and 4 of corners (0).
    assert row["cosine_far"] == pytest.approx(12 * 0.5 / (12 + 16 + 4), abs=1e-6)
    assert "3x3 positions, learnt" in console.render(shown)


def test_all_cosines_of_a_table_are_one_product() -> None:
    class Products(TorchFunctionMode):
        count = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func in (Tensor.__matmul__, Tensor.matmul, torch.matmul)
            return func(*args, **(kwargs or {}))

    with Products() as products:
        analyze(Grid(random_table(12, 13, 8)))
    assert products.count == 1
