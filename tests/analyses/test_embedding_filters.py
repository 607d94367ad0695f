"""Principal components of first layers: against numpy's singular values, closed forms and planted filters."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import StdConv2d
from torch import Tensor, nn

from vitbench import catalog
from vitbench.analyses import embedding_filters
from vitbench.analyses.embedding_filters import EmbeddingFilters, analyze, principal_components
from vitbench.build import create_model
from vitbench.drawing import pictures
from vitbench.errors import BadInput, NotDefined
from vitbench.reports import console, csv


def convolution(weight: Tensor, stride: int | tuple[int, ...] | None = None, padding: int = 0) -> nn.Sequential:
    """A model whose first layer has these weights, (D, C, ...)."""
    kind = nn.Conv2d if weight.ndim == 4 else nn.Conv3d
    kernel = tuple(weight.shape[2:])
    layer = kind(weight.shape[1], weight.shape[0], kernel, stride or kernel, padding)  # type: ignore[arg-type]  # as many extents as the weights have
    layer.weight.data = weight
    return nn.Sequential(layer)


def random_filters(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def images(found: EmbeddingFilters) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """The components, each (t, p, q, 3)."""
    return [
        np.stack([np.reshape(tile.values, (tile.tile_height, tile.tile_width, 3)) for tile in tiles])
        for _, tiles in groupby(found.rows, key=lambda row: row.component)
    ]


@pytest.mark.parametrize("samples", [20, 300])  # fewer filters than dimensions, and more
@pytest.mark.parametrize("center", [True, False])
def test_components_are_those_of_the_singular_value_decomposition(samples: int, center: bool) -> None:
    filters = random_filters(samples, 48) + 1
    matrix = filters.double().numpy()
    _, singular, right = np.linalg.svd(matrix - matrix.mean(axis=0) if center else matrix)
    vectors, shares = principal_components(filters, 10, center=center)
    np.testing.assert_allclose(shares, (singular**2 / (singular**2).sum())[:10], rtol=1e-9)
    np.testing.assert_allclose(np.abs((vectors.numpy() * right[:10]).sum(axis=1)), 1, rtol=1e-9)  # up to the sign
    largest = vectors.abs().argmax(dim=1, keepdim=True)
    assert (vectors.gather(1, largest) > 0).all()


def test_filters_of_one_kind_have_one_component() -> None:
    # Closed form: filters that are multiples of one pattern differ along it alone.
    pattern = random_filters(3, 4, 4)
    found = analyze(convolution(random_filters(30)[:, None, None, None] * pattern))
    assert len(found.rows) == 1
    assert found.rows[0].explained_variance_ratio == pytest.approx(1)
    image = pattern.permute(1, 2, 0).double().numpy() / pattern.double().norm().item()
    np.testing.assert_allclose(images(found)[0][0], image * np.sign(image.flat[np.abs(image).argmax()]), atol=1e-6)
    assert found.notes[-1] == "0 has 1 component with variance, not 28."


def test_shares_sum_to_one_and_fall() -> None:
    found = analyze(convolution(random_filters(100, 3, 2, 2)), components=12)
    shares = [row.explained_variance_ratio for row in found.rows]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert found.rows[-1].cumulative_ratio == pytest.approx(1)
    assert found.rows[2].cumulative_ratio == pytest.approx(sum(shares[:3]))


def test_order_of_output_channels_does_not_matter_and_without_centring_nor_does_their_rotation() -> None:
    weight = random_filters(40, 3, 4, 4) + 0.3
    shuffled = weight[torch.randperm(40, generator=torch.Generator().manual_seed(2))]
    rotation = torch.linalg.qr(random_filters(40, 40))[0]
    rotated = (rotation @ weight.flatten(1)).view_as(weight)

    def values(model: nn.Module, center: bool) -> list[float]:
        return [value for row in analyze(model, components=5, center=center).rows for value in row.values]

    assert values(convolution(weight), True) == pytest.approx(values(convolution(shuffled), True), abs=1e-6)
    assert values(convolution(weight), False) == pytest.approx(values(convolution(rotated), False), abs=1e-5)
    assert values(convolution(weight), True) != pytest.approx(values(convolution(rotated), True), abs=1e-2)


def test_a_tile_holds_red_green_and_blue_of_each_pixel_in_reading_order() -> None:
    weight = torch.zeros(2, 3, 4, 5)
    weight[0, 2, 1, 3] = 1.0  # blue, second row, fourth column
    row = analyze(convolution(weight)).rows[0]
    assert (row.tile_height, row.tile_width) == (4, 5)
    assert row.values.index(1.0) == (1 * 5 + 3) * 3 + 2


def test_tubelets_are_shown_in_time() -> None:
    # ViViT, section 3.4: "central frame" initialisation leaves all frames but one zero, "filter inflation" repeats one.
    flat = random_filters(40, 3, 4, 4)
    central = torch.zeros(40, 3, 4, 4, 4)
    central[:, :, 2] = flat
    found = analyze(convolution(central), components=2)
    assert [row.frame for row in found.rows] == [0, 1, 2, 3, 0, 1, 2, 3]
    for component in images(found):
        assert [bool(frame.any()) for frame in component] == [False, False, True, False]
    for component in images(analyze(convolution(flat[:, :, None].repeat(1, 1, 4, 1, 1)), components=2)):
        np.testing.assert_allclose(component, component[:1].repeat(4, axis=0), atol=1e-12)
    assert found.rows[0].kind == "tubelets of 4 frames of 4x4 pixels"


def test_what_a_layer_is_is_said() -> None:
    weight = random_filters(8, 3, 7, 7)
    assert analyze(convolution(weight)).rows[0].kind == "patches of 7x7 pixels"
    assert analyze(convolution(weight, 2, 3)).rows[0].kind == "first convolution, 7x7, stride 2: filters, not patches"
    overlapping = convolution(random_filters(8, 3, 3, 7, 7), (2, 4, 4))
    assert analyze(overlapping).rows[0].kind == "first convolution, 3x7x7, stride 2x4x4: filters, not tubelets"


def test_a_standardised_convolution_shows_what_it_multiplies_with() -> None:
    # Weight standardisation, arXiv 1903.10520: each filter less its mean, over its standard deviation.
    layer = StdConv2d(3, 16, 5, eps=1e-6)
    layer.weight.data = random_filters(16, 3, 5, 5) * torch.arange(1, 17)[:, None, None, None] + 2
    flat = layer.weight.detach().flatten(1).double()
    standard = (flat - flat.mean(dim=1, keepdim=True)) / (flat.var(dim=1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    expected, shares = principal_components(standard, 3)
    found = analyze(nn.Sequential(layer), components=3)
    assert [row.explained_variance_ratio for row in found.rows] == pytest.approx(shares.tolist(), rel=1e-5)
    first = expected[0].view(3, 5, 5).permute(1, 2, 0).flatten()
    assert list(found.rows[0].values) == pytest.approx(first.tolist(), abs=1e-5)


def test_a_linear_layer_of_flattened_patches_shows_the_filters_of_the_convolution_that_it_is() -> None:
    conv: Any = timm.create_model("test_vit", num_classes=0)
    patch = conv.patch_embed.proj.weight.shape[-1]
    naflex: Any = timm.create_model(
        "naflexvit_base_patch16_gap", num_classes=0, embed_dim=64, depth=1, num_heads=2, patch_size=patch
    )
    weight = random_filters(64, 3, patch, patch)
    conv.patch_embed.proj.weight.data = weight
    naflex.embeds.proj.weight.data = weight.permute(0, 2, 3, 1).flatten(1)
    expected, found = analyze(conv), analyze(naflex)
    assert found.rows[0].layer == "embeds.proj"
    assert found.rows[0].kind == f"patches of {patch}x{patch} pixels"
    assert [row.values for row in found.rows] == [pytest.approx(row.values, abs=1e-6) for row in expected.rows]


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14"])  # with Performer layers, and Transformer layers
def test_a_soft_split_shows_the_filters_of_its_values(name: str) -> None:
    model = create_model(name)
    layer = embedding_filters.analyze(model).rows[0].layer
    linear = model.get_submodule(layer)
    assert isinstance(linear, nn.Linear)
    pattern = random_filters(3, 7, 7)
    # The last third, as both layers chunk it: only its filters have one pattern.
    linear.weight.data[128:] = random_filters(64)[:, None] * pattern.flatten()
    found = analyze(model)
    image = pattern.permute(1, 2, 0).numpy() / pattern.norm().item()
    assert abs((images(found)[0][0] * image).sum()) == pytest.approx(1, abs=1e-5)
    assert found.rows[0].explained_variance_ratio == pytest.approx(1)
    assert "values of the first soft split, windows of 7x7 pixels" in found.rows[0].kind


FAMILIES = {
    "vit": ("vit_ti16", "patches of 16x16"),
    "vit_hybrid": ("r_vit_ti16", "first convolution, 7x7, stride 2"),
    "bit": ("bit_r50x1", "first convolution, 7x7, stride 2"),
    "resnet": ("resnet50", "first convolution, 7x7, stride 2"),
    "regnet": ("regnety_16gf", "first convolution, 3x3, stride 2"),
    "efficientnet": ("efficientnet_l2", "first convolution, 3x3, stride 2"),
    "deit": ("deit_ti16_dist", "patches of 16x16"),
    "swin": ("swin_t", "patches of 4x4"),
    "swinv2": ("swinv2_t_w8", "patches of 4x4"),
    "pvt_v2": ("pvt_v2_b0", "first convolution, 7x7, stride 4"),
    "mvitv2": ("mvitv2_t", "first convolution, 7x7, stride 4"),
    "cvt": ("cvt_13", "first convolution, 7x7, stride 4"),
    "t2t_vit": ("t2t_vit_7", "values of the first soft split"),
    "pvt": ("pvt_tiny", "patches of 4x4"),
    "coatnet": ("coatnet_0", "first convolution, 3x3, stride 2"),
    "cct": ("cct_2_3x2_32", "first convolution, 3x3, stride 1"),
    "compact_cvt": ("compact_cvt_2_4_32", "patches of 4x4"),
    "vit_lite": ("vit_lite_2_4_32", "patches of 4x4"),
    "vivit": ("vivit_b_16x2_fe", "tubelets of 2 frames of 16x16"),
    "timesformer": ("timesformer", "patches of 16x16"),
    "mvit": ("mvit_b_16x4", "first convolution, 3x7x7, stride 2x4x4"),
}


def test_every_family_of_the_catalog_is_tried() -> None:
    assert set(FAMILIES) == {variant.family for variant in catalog.VARIANTS.values()}


@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family_the_layer_that_sees_pixels_is_found(family: str) -> None:
    name, kind = FAMILIES[family]
    model = create_model(name, device="meta")
    convolutions = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]
    # Its first layer alone gets numbers; T2T-ViT's is a linear one.
    layer = convolutions[0] if convolutions else next(one for one in model.modules() if isinstance(one, nn.Linear))
    layer.to_empty(device="cpu")
    for parameter in layer.parameters():
        parameter.data = random_filters(*parameter.shape)
    found = analyze(model)
    assert found.rows[0].kind.startswith(kind)
    assert not any("does not say" in note for note in found.notes)
    assert all(row.tile_height * row.tile_width * 3 == len(row.values) for row in found.rows)


def test_a_model_that_looks_through_two_layers_shows_both() -> None:
    found = analyze(timm.create_model("crossvit_tiny_240"))
    assert list(dict.fromkeys(row.kind for row in found.rows)) == ["patches of 12x12 pixels", "patches of 16x16 pixels"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            lambda: timm.create_model("test_vit", in_chans=1),
            "patch_embed.proj, takes 1 channels, not red, green and blue",
        ),
        (lambda: timm.create_model("test_vit", in_chans=4), "takes 4 channels"),
        (lambda: nn.Sequential(nn.Linear(3, 4)), "no convolution, and no other first layer"),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 3, groups=3)), "takes 3 channels, each by itself"),
        (lambda: convolution(torch.ones(8, 3, 4, 4)), "all filters of its first layer are equal"),
    ],
)
def test_what_has_no_filters_of_colours_is_refused_with_the_reason(model: object, reason: str) -> None:
    with pytest.raises(NotDefined, match=reason) as caught:
        analyze(model())  # type: ignore[operator]  # parametrised factories
    assert caught.value.instead


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(BadInput, match="not finite"):
        analyze(convolution(torch.full((4, 3, 2, 2), torch.nan)))
    with pytest.raises(BadInput, match="1 component or more, not 0"):
        analyze(convolution(random_filters(4, 3, 2, 2)), components=0)


def test_a_guess_is_said_to_be_one() -> None:
    assert analyze(convolution(random_filters(40, 3, 4, 4))).notes == (
        "The model does not say which layer sees the pixels; shown is its first convolution, 0.",
    )


def test_the_model_is_left_as_it_was() -> None:
    model = create_model("r_vit_ti16")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    analyze(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_no_weight_is_grey_and_the_largest_is_full() -> None:
    weight = torch.zeros(2, 3, 40, 40)
    weight[0, 0, 0, 0], weight[0, 1, 0, 1] = 2.0, -1.0
    ax = embedding_filters.draw({"one": analyze(convolution(weight))}).axes[0]
    picture = np.asarray(ax.get_images()[0].get_array())
    assert picture.shape == (40, 40, 3)
    assert picture[0, 0].tolist() == pytest.approx([1.0, 0.5, 0.5])
    assert picture[0, 1].tolist() == pytest.approx([0.5, 0.25, 0.5])
    assert (picture[1:] == 0.5).all()


@pytest.mark.parametrize("ending", pictures.TIMELESS)
def test_the_same_weights_make_the_same_file(ending: str) -> None:
    def file() -> bytes:
        found = analyze(convolution(random_filters(40, 3, 4, 4)))
        return pictures.rendered(embedding_filters.draw({"a $x$ _b": found, "other": found}), ending)

    assert file() == file()


def test_tiles_stand_in_4_rows_of_7_as_in_the_paper() -> None:
    figure = embedding_filters.draw({"one": analyze(convolution(random_filters(400, 3, 16, 16)))})
    height, width = np.asarray(figure.axes[0].get_images()[0].get_array()).shape[:2]
    assert width / height == pytest.approx(7 / 4, abs=0.02)
    assert figure.get_suptitle() == "RGB embedding filters\n(first 28 principal components)"
    caption = figure.axes[0].texts[0].get_text()
    assert caption.startswith("patches of 16x16 pixels\n")
    assert caption.endswith("% of the variance")


def test_the_table_is_short_and_the_file_long() -> None:
    found = analyze(convolution(random_filters(40, 3, 4, 4)))
    shown = embedding_filters.table({"mine": found})
    assert len(shown.rows) == 1
    text = console.render(shown)
    assert "patches of 4x4 pixels" in text
    assert f"{100 * found.rows[27].cumulative_ratio:.1f} %" in text
    assert len(csv.render(shown).splitlines()) == 2
    assert len(found.rows) == 28
