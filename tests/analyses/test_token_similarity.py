"""Class and distillation token: planted tokens, whose cosines are known, and models that have none."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from vitbench import build
from vitbench.analyses import token_similarity
from vitbench.drawing import pictures
from vitbench.errors import BadInput, NotDefined
from vitbench.findings import TokenCosine


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Turn(nn.Module):
    """Turns the second token by an angle that the image says, in the plane of the first two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.still = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        angle = x[:, 2, 2]
        turned = x.clone()
        turned[:, 1, 0] = angle.cos() * x[:, 1, 0] - angle.sin() * x[:, 1, 1]
        turned[:, 1, 1] = angle.sin() * x[:, 1, 0] + angle.cos() * x[:, 1, 1]
        return turned


class Planted(nn.Module):
    """Two tokens at a right angle, brought to 60 degrees by their positions, then turned at each block by the image's angle."""

    num_prefix_tokens = 2

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.tensor([[[1.0, 0.0, 0.0]]]))
        self.dist_token = nn.Parameter(torch.tensor([[[0.0, 2.0, 0.0]]]))
        self.position = torch.tensor([[math.sqrt(4 / 3), 0.0, 0.0]])
        self.blocks = nn.Sequential(Turn(), Turn())

    def forward(self, x: Tensor) -> Tensor:
        batch = len(x)
        third = torch.zeros(batch, 1, 3)
        third[:, 0, 2] = x[:, 0]
        tokens = torch.cat(
            (self.cls_token.expand(batch, -1, -1), self.dist_token + self.position.expand(batch, 1, 3), third), 1
        )
        out: Tensor = self.blocks(tokens)
        return out


def test_planted_tokens() -> None:
    """From 90 degrees by positions to 60, then 60 degrees and the image's angle once, and twice; in any batches."""
    angles = torch.tensor([[0.0], [-0.4], [0.3], [0.1], [-0.7]])
    for batches in (angles.split(5), angles.split(2)):
        found = token_similarity.analyze(Planted(), batches)
        assert [(row.index, row.layer) for row in found.rows] == [
            (0, "learned tokens"),
            (1, "embedding"),
            (2, "blocks.0"),
            (3, "blocks.1"),
        ]
        assert {row.images for row in found.rows} == {5}
        learned, embedded, once, twice = found.rows
        assert learned.cosine == pytest.approx(0, abs=1e-6)
        assert embedded.cosine == pytest.approx(0.5, abs=1e-6)
        assert learned.cosine_sem is embedded.cosine_sem is None
        for row, times in ((once, 1), (twice, 2)):
            cosines = [math.cos(math.pi / 3 + times * angle) for angle in angles[:, 0].tolist()]
            assert row.cosine == pytest.approx(statistics.fmean(cosines), abs=1e-6)
            assert row.cosine_sem == pytest.approx(statistics.stdev(cosines) / math.sqrt(5), abs=1e-6)


def test_one_image_has_no_standard_error() -> None:
    assert all(row.cosine_sem is None for row in token_similarity.analyze(Planted(), [torch.ones(1, 1)]).rows)


def test_a_distilled_deit_agrees_with_its_own_features() -> None:
    model = build.create_model("deit_ti16_dist", img_size=32, depth=3, embed_dim=24, num_heads=2).train()
    x = images(3, 3, 32, 32)
    found = token_similarity.analyze(model, [x])
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    model.eval()
    with torch.no_grad():
        through: Any = model.forward_intermediates
        streams = through(x, return_prefix_tokens=True, intermediates_only=True)
    assert len(found.rows) == 2 + 3
    for row, (_, prefix) in zip(found.rows[2:], streams, strict=True):
        a, b = prefix[:, 0], prefix[:, 1]
        expected = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean()
        assert row.cosine == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_ti16", {"img_size": 32, "depth": 1}),
        ("deit_ti16", {"img_size": 32, "depth": 1}),
        ("resnet18", {}),
        ("swin_t", {"embed_dim": 24, "depths": (1, 1, 1, 1)}),
        ("t2t_vit_7", {"img_size": 32}),
        ("timesformer", {"img_size": 32, "num_frames": 2, "depth": 1}),
    ],
)
def test_models_without_a_distillation_token_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(NotDefined, match="it has no distillation token. Try: cka"):
        token_similarity.analyze(build.create_model(name, **options), [])


def test_tokens_that_stand_elsewhere_are_refused() -> None:
    model = Planted()
    model.num_prefix_tokens = 3
    with pytest.raises(NotDefined, match="its first two tokens are not a class and a distillation token"):
        token_similarity.analyze(model, [torch.ones(1, 1)])


def test_without_images_there_is_nothing() -> None:
    with pytest.raises(BadInput, match="There are no images"):
        token_similarity.analyze(Planted(), [])


def _finding(*cosines: float) -> token_similarity.TokenSimilarity:
    rows = [
        TokenCosine(index=number, layer=f"l{number}", cosine=cosine, cosine_sem=0.01 if number > 1 else None, images=4)
        for number, cosine in enumerate(cosines)
    ]
    return token_similarity.TokenSimilarity(rows=tuple(rows), notes=("A note.",))


def test_the_picture_has_a_line_a_model() -> None:
    figure = token_similarity.draw({"$a$": _finding(0.06, 0.1, 0.5, 0.93), "b": _finding(-0.8, 0.1, 0.5)})
    (ax,) = figure.axes
    lines = [line for line in ax.lines if str(line.get_marker()) in "os"]
    drawn = [[numpy.asarray(data).tolist() for data in (line.get_xdata(), line.get_ydata())] for line in lines]
    assert drawn == [[[0, 1, 2, 3], [0.06, 0.1, 0.5, 0.93]], [[0, 1, 2], [-0.8, 0.1, 0.5]]]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["$a$", "b"]
    assert ax.get_ylim() == (-1.02, 1.02)
    alone = token_similarity.draw({"$a$": _finding(0.06, 0.9)})
    assert alone.axes[0].get_title(loc="left") == "$a$"
    assert alone.axes[0].get_ylim() == (-0.02, 1.02)


@pytest.mark.parametrize("ending", pictures.TIMELESS)
def test_the_same_numbers_make_the_same_picture(ending: str) -> None:
    finding = {"a": _finding(0.06, 0.9, 0.8)}
    one, other = (pictures.rendered(token_similarity.draw(finding), ending) for _ in range(2))
    assert one == other


def test_the_table_has_a_line_a_layer() -> None:
    made = token_similarity.table({"m": _finding(0.06, 0.1, 0.93)})
    assert [column.heading for column in made.columns] == ["Model", "Layer", "Cosine", "s.e.m."]
    cells = [[column.text(row) for column in made.columns] for row in made.rows]
    assert cells == [["m", "l0", "0.060", "-"], ["m", "l1", "0.100", "-"], ["m", "l2", "0.930", "0.010"]]
    assert made.notes == ["A note."]
