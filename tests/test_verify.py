"""Which figures are held against which model, and the verdicts; the counting itself is tested where it lives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vitbench import bench, catalog, published, verify
from vitbench.bench import Request
from vitbench.metrics.flops import Flops
from vitbench.records import Row, Setting


def test_a_figure_is_held_against_the_row_of_its_size() -> None:
    asked = {(row.name, shape) for row, shape in verify.questions([])}
    assert ("swin_b", (3, 224, 224)) in asked
    assert ("swin_b_384", (3, 384, 384)) in asked
    assert ("swin_b", (3, 384, 384)) not in asked
    # Sizes without a row of their own go to the first row of that id.
    assert ("vit_l16", (3, 512, 512)) in asked
    assert len({(row.published_ids[0], shape) for row, shape in verify.questions([])}) == len(asked)


def test_every_published_figure_of_the_catalog_is_asked_about_once() -> None:
    ids = {one for row in catalog.VARIANTS.values() for one in row.published_ids}
    figures = [figure for figure in published.figures() if figure.variant in ids and figure.input_shape]
    asked = [figure for row, shape in verify.questions([]) for figure in published.find(row.published_ids, shape)]
    assert sorted(map(hash, asked)) == sorted(map(hash, figures))


@pytest.mark.parametrize(
    ("params", "macs", "reason", "verdict"),
    [
        (88_000_000, 15_400_000_000, "", "agrees"),
        # 88 M is anything from 87.5 to 88.5; 1 % of 15.4 G is more than its rounding.
        (87_500_000, 15_553_000_000, "", "agrees"),
        (87_400_000, 15_400_000_000, "", "differs"),
        (88_000_000, 15_560_000_000, "", "differs"),
        (88_000_000, 15_560_000_000, "They forgot the stem.", "explained"),
        (None, None, "", "failed"),
        (None, None, "Patches do not tile that size.", "explained"),
    ],
)
def test_verdicts(
    monkeypatch: pytest.MonkeyPatch, params: int | None, macs: int | None, reason: str, verdict: str
) -> None:
    figure = next(one for one in published.find(("swin_b",), (3, 224, 224)) if one.flops_G == "15.4")
    monkeypatch.setattr(published, "find", lambda ids, shape=None: (replace(figure, reason=reason),))

    def count(requests: list[Request]) -> list[Row]:
        setting = Setting(model="swin_b", input_shape=(3, 224, 224))
        if params is None or macs is None:
            return [Row(setting=setting, findings={}, status="failed", note="no luck")]
        found = Flops(
            params=params,
            params_trainable=params,
            macs=macs,
            flops=2 * macs,
            activations=0,
            uncounted_elements=0,
            uncounted={},
            operators={},
            modules=[],
        )
        return [Row(setting=setting, findings={"flops": found})]

    monkeypatch.setattr(bench, "count", count)
    ((check,),) = verify.verify([(catalog.find("swin_b"), (3, 224, 224))])
    assert check.verdict == verdict
    if verdict == "failed":
        assert "no luck" in check.reason
