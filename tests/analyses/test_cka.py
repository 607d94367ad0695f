"""Similarity of layers: closed forms, invariances, and an implementation of its own, slow and plain."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import numpy
import pytest
import torch
from torch import Tensor, nn

from vitbench import build
from vitbench.analyses import cka
from vitbench.drawing import pictures
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import Similarity


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def similarity(x: Tensor, y: Tensor) -> float:
    """Gives the unbiased similarity of two sets of features, as the analysis puts it together."""
    u, v = (cka.u_centred(cka.gram(one)) for one in (x, y))
    return float((u * v).sum() / (u.square().sum() * v.square().sum()).sqrt())


def biased(x: Tensor, y: Tensor) -> float:
    """Gives what many programs compute. Source: Kornblith et al., arXiv 1905.00414, equations 3 and 4."""
    a, b = (cka.gram(one) for one in (x, y))
    centre = torch.eye(len(a), dtype=a.dtype) - 1 / len(a)
    a, b = centre @ a @ centre, centre @ b @ centre
    return float((a * b).sum() / (a.norm() * b.norm()))


def criterion(a: Tensor, b: Tensor) -> float:
    """Gives the unbiased criterion, sum by sum over images. Source: Song et al., JMLR 13 (2012), equation 5: four-tuples."""
    n, total = len(a), 0.0
    for i, j in itertools.permutations(range(n), 2):
        total += float(a[i, j] * b[i, j]) / (n * (n - 1))
    for i, j, q in itertools.permutations(range(n), 3):
        total -= 2 * float(a[i, j] * b[i, q]) / (n * (n - 1) * (n - 2))
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += float(a[i, j] * b[q, r]) / (n * (n - 1) * (n - 2) * (n - 3))
    return total


class Net(nn.Module):
    """Three layers in a chain, one of them wider, kept to be looked at."""

    def __init__(self, seed: int, width: int = 7) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.blocks = nn.Sequential(
                nn.Sequential(nn.Linear(5, width), nn.Tanh()),
                nn.Sequential(nn.Linear(width, 9), nn.Tanh()),
                nn.Sequential(nn.Linear(9, 4), nn.ReLU()),
            )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x)
        return out

    def features(self, x: Tensor) -> list[Tensor]:
        found = []
        with torch.no_grad():
            for block in self.blocks:
                x = block(x)
                found.append(x)
        return found


def matrix(finding: cka.LayerSimilarity) -> Tensor:
    side = 1 + max(row.index_a for row in finding.rows), 1 + max(row.index_b for row in finding.rows)
    found = torch.full(side, torch.nan, dtype=torch.float64)
    for row in finding.rows:
        found[row.index_a, row.index_b] = row.cka
    return found


def test_a_layer_is_like_itself_and_like_what_rotates_scales_or_shifts_it() -> None:
    """1, from the definition; another linear map is another representation."""
    x = random(32, 20)
    rotation, _ = torch.linalg.qr(random(20, 20, seed=1))
    assert similarity(x, x) == pytest.approx(1, abs=1e-12)
    assert similarity(x, x @ rotation) == pytest.approx(1, abs=1e-6)
    assert similarity(x, -3 * x) == pytest.approx(1, abs=1e-6)
    assert similarity(x, x + 1000) == pytest.approx(1, abs=1e-4)
    assert similarity(x, x @ random(20, 20, seed=2)) < 0.9


def test_unrelated_wide_features_are_unlike() -> None:
    """Of 64 images and 4000 features, the biased estimator says about 0.98, the unbiased one about 0."""
    x, y = random(64, 4000), random(64, 4000, seed=1)
    assert biased(x, y) == pytest.approx(0.984, abs=0.005)
    assert abs(similarity(x, y)) < 0.05


def test_the_criterion_is_the_mean_over_four_tuples_of_images() -> None:
    x, y = random(7, 5), random(7, 6, seed=1)
    a, b = x @ x.T, y @ y.T
    u, v = cka.u_centred(a.double()), cka.u_centred(b.double())
    assert float((u * v).sum()) / (7 * 4) == pytest.approx(criterion(a, b), abs=1e-5)


def test_centring_leaves_rows_without_sum() -> None:
    centred = cka.u_centred(cka.gram(random(6, 4)))
    torch.testing.assert_close(centred.sum(dim=0), torch.zeros(6, dtype=torch.float64), atol=1e-6, rtol=0)
    assert not centred.diagonal().any()


@pytest.mark.parametrize(("images", "features"), [(4, 1), (5, 3), (64, 4096), (9, 4097), (6, 9000)])
def test_products_of_pairs_in_parts_are_those_of_the_whole(images: int, features: int) -> None:
    x = random(images, features)
    difference = (x - x[:1]).double()
    torch.testing.assert_close(cka.gram(x), difference @ difference.T, rtol=1e-4, atol=1e-4)
    assert torch.equal(cka.gram(x), cka.gram(x).T)


def test_a_large_mean_costs_no_digits() -> None:
    x = random(16, 300)
    assert similarity(x + 1e4, x) == pytest.approx(1, abs=1e-5)


def test_layers_of_a_model_agree_with_a_plain_implementation() -> None:
    """Terms are averaged over batches, then the ratio; batches of one size, and of two, which weigh as their images."""
    model, x = Net(0), random(14, 5)
    for batches in ([x[:7], x[7:]], [x[:6], x[6:]]):
        found = matrix(cka.analyze(model, batches, parts=False))
        terms = torch.zeros(3, 3, dtype=torch.float64)
        for batch in batches:
            products = [one @ one.T for one in model.features(batch)]
            for i, j in itertools.product(range(3), repeat=2):
                terms[i, j] += len(batch) * criterion(products[i], products[j])
        own = terms.diagonal()
        torch.testing.assert_close(found, terms / (own[:, None] * own[None]).sqrt(), rtol=1e-3, atol=1e-4)


def test_the_order_of_images_and_batches_makes_no_difference() -> None:
    model, x = Net(0), random(16, 5)
    found = matrix(cka.analyze(model, x.split(8)))
    torch.testing.assert_close(matrix(cka.analyze(model, [x[8:], x[:8]])), found, rtol=0, atol=1e-9)
    shuffled = [x[:8].flip(0), x[8:].roll(3, 0)]
    torch.testing.assert_close(matrix(cka.analyze(model, shuffled)), found, rtol=0, atol=1e-5)


def test_two_models_are_as_alike_the_other_way_round() -> None:
    one, other, x = Net(0), Net(1, width=11), random(16, 5)
    there = cka.analyze(one, x.split(8), other, x.split(8), titles=("one", "other"))
    back = cka.analyze(other, x.split(8), one, x.split(8))
    torch.testing.assert_close(matrix(there), matrix(back).T, rtol=0, atol=1e-12)
    assert there.titles == ("one", "other")
    same = cka.analyze(one, x.split(8), one, x.split(8))
    torch.testing.assert_close(matrix(same), matrix(cka.analyze(one, x.split(8))), rtol=0, atol=1e-12)


def test_two_models_may_want_different_inputs() -> None:
    """The same 8 images for both, each as its model takes them."""
    wide, narrow = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU()), nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    x = random(8, 3, 8, 8)
    found = cka.analyze(wide, [x], narrow, [x[..., ::2, ::2]])
    assert {(row.layer_a, row.layer_b) for row in found.rows} == set(itertools.product("01", repeat=2))


def test_images_must_match_between_models() -> None:
    x = random(8, 5)
    for other in ([x[:4]], [x, x], [], None):
        with pytest.raises(
            BadInput, match="same images in batches of the same size|give model_b and batches_b together"
        ):
            cka.analyze(Net(0), [x], Net(1), other)


def test_batches_too_small_are_left_out_and_said_to_be() -> None:
    model, x = Net(0), random(19, 5)
    found = cka.analyze(model, x.split(8), parts=False)
    assert found.notes == ("Left out: 3 images in batches of fewer than 4, of which the estimate is not defined.",)
    torch.testing.assert_close(matrix(found), matrix(cka.analyze(model, x[:16].split(8), parts=False)))
    both = cka.analyze(model, x.split(8), Net(1), x.split(8))
    assert both.notes == found.notes
    with pytest.raises(BadInput, match="needs batches of 4 images or more, and the largest had 3"):
        cka.analyze(model, x.split(3))
    with pytest.raises(BadInput, match="and there were no images"):
        cka.analyze(model, [])


def test_a_layer_that_never_changes_is_left_out() -> None:
    still = nn.Linear(4, 3)
    nn.init.zeros_(still.weight)
    model = nn.Sequential(nn.Linear(5, 4), still, nn.Linear(3, 2))
    found = cka.analyze(model, [random(8, 5)])
    assert found.notes == ("Left out, the same for every image: 1, 2.",)
    assert [row.cka for row in found.rows] == [pytest.approx(1)]


def test_layers_without_examples_are_refused() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(x[:-1])
            return out

    with pytest.raises(NotDefined, match="embedding gives 7x5, whose first axis is not the batch of 8"):
        cka.analyze(First(), [random(8, 5)])


def test_layers_are_blocks_and_their_parts_in_order() -> None:
    model = build.create_model("vit_ti16", img_size=32, depth=2, embed_dim=24, num_heads=2)
    images = random(4, 3, 32, 32)
    names = [row.layer_b for row in cka.analyze(model, [images]).rows if row.index_a == 0]
    parts = [f"blocks.{number}{part}" for number in (0, 1) for part in (".norm1", ".attn", ".norm2", ".mlp", "")]
    assert names == ["embedding", *parts]
    names = [row.layer_b for row in cka.analyze(model, [images], parts=False).rows if row.index_a == 0]
    assert names == ["embedding", "blocks.0", "blocks.1"]


def test_a_clip_is_one_example() -> None:
    model = build.create_model("timesformer_space", img_size=32, num_frames=2, depth=2, embed_dim=24, num_heads=2)
    found = cka.analyze(model, [random(4, 3, 2, 32, 32)])
    assert len(found.rows) == 11**2
    assert not found.notes


def test_the_model_stays_as_it_was() -> None:
    model = Net(0).train()
    cka.analyze(model, [random(8, 5)])
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_all_pairs_at_once_are_faster_than_one_by_one() -> None:
    """Ten times and more on a quiet machine, see benchmarks/analyses.py; less is asked here, where others may run."""
    features = [random(64, 20_000, seed=seed) for seed in range(13)]

    def at_once() -> Tensor:
        centred = cka.u_centred(torch.stack([cka.gram(one) for one in features])).flatten(1)
        across = centred @ centred.mT
        own = across.diagonal()
        return across / (own[:, None] * own[None]).sqrt()

    def by_pairs() -> Tensor:
        found = torch.empty(13, 13)
        for i, x in enumerate(features):
            for j, y in enumerate(features):
                a, b = ((one @ one.T).fill_diagonal_(0) for one in (x, y))
                found[i, j] = _fast(a, b) / (_fast(a, a) * _fast(b, b)) ** 0.5
        return found

    torch.testing.assert_close(at_once().float(), by_pairs(), rtol=1e-3, atol=1e-4)
    assert _shortest(by_pairs, 2) > 5 * _shortest(at_once, 4)


def _fast(a: Tensor, b: Tensor) -> float:
    """Gives the same as `criterion` by sums of rows."""
    n = len(a)
    sums = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a.sum(0) * b.sum(0)).sum() / (n - 2)
    return float((a * b).sum() + sums) / (n * (n - 3))


def _shortest(run: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _finding(values: Sequence[Sequence[float]], titles: tuple[str, str] | None = None) -> cka.LayerSimilarity:
    rows = [
        Similarity(index_a=i, layer_a=f"a{i}", index_b=j, layer_b=f"b{j}", cka=value)
        for i, line in enumerate(values)
        for j, value in enumerate(line)
    ]
    return cka.LayerSimilarity(rows=tuple(rows), titles=titles)


def test_the_picture_shows_the_numbers_from_the_bottom_left() -> None:
    figure = cka.draw({"$x$ (random weights)": _finding([[1, 0.5, -0.1], [0.2, 0.3, 0.9]])})
    panel, bar = figure.axes
    image = panel.images[0]
    assert numpy.asarray(image.get_array()).tolist() == [[1, 0.5, -0.1], [0.2, 0.3, 0.9]]
    assert image.origin == "lower"
    assert image.get_clim() == (0, 1)
    assert image.get_cmap().name == "magma"
    assert panel.get_xlabel() == panel.get_ylabel() == "Layers $x$ (random weights)"
    assert bar.get_ylabel() == "CKA"
    pair = cka.draw({"": _finding([[1, 0.5]], ("vit", "resnet")), "other": _finding([[1]])})
    assert [pair.axes[0].get_ylabel(), pair.axes[0].get_xlabel()] == ["Layers vit", "Layers resnet"]
    assert pair.axes[1].get_xlabel() == "Layers other"


@pytest.mark.parametrize("ending", pictures.TIMELESS)
def test_the_same_numbers_make_the_same_picture(ending: str) -> None:
    finding = {"a": _finding([[1, 0.5], [0.5, 1]])}
    assert pictures.rendered(cka.draw(finding), ending) == pictures.rendered(cka.draw(finding), ending)


def test_the_table_says_in_short_how_alike_layers_are() -> None:
    finding = _finding([[1, 0.8, 0.1], [0.8, 1, 0.4], [0.1, 0.4, 1]])
    made = cka.table({"m": finding})
    assert [column.heading for column in made.columns] == [
        "Model",
        "Compared with",
        "Layers",
        "Mean CKA",
        "Nearest other layer",
        "First third with last third",
    ]
    # Mean of nine; 0.8, 0.8 and 0.4; layer 0 with layer 2.
    assert [column.text(made.rows[0]) for column in made.columns] == ["m", "itself", "3", "0.622", "0.667", "0.100"]
    pair = cka.table({"m": _finding([[0.5, 0.7]], ("a", "b"))})
    assert [column.text(pair.rows[0]) for column in pair.columns] == ["a", "b", "1 x 2", "0.600", "0.700", "0.700"]
    alone = cka.table({"m": _finding([[1]])})
    assert [column.text(alone.rows[0]) for column in alone.columns][3:] == ["1.000", "-", "1.000"]


def test_the_same_image_again_and_again_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(BadInput, match="Every layer gives the same for all images"):
        cka.analyze(model, [torch.ones(8, 3)])
