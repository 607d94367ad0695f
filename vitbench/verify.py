"""The verb behind `vitbench verify`: every published figure that our models can be held against, held against them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vitbench import bench, catalog, published
from vitbench.findings import Agreed, Check
from vitbench.records import Row


def questions(names: Sequence[str]) -> list[tuple[catalog.Variant, tuple[int, ...]]]:
    """Gives each model and input of the catalog for which somebody published a figure.

    Args:
        names: catalog names to stay with; empty for all.
    """
    asked: dict[tuple[str, tuple[int, ...]], catalog.Variant] = {}
    for row in catalog.VARIANTS.values():
        if names and row.name not in names:
            continue
        for figure in published.find(row.published_ids):
            shape = figure.input_shape
            if shape is None or len(shape) != len(row.input_shape):
                continue
            # Of the rows that share an id, the one whose own size it is answers; else the first.
            if catalog.at_size(row, shape[-2:]) is row:
                asked.setdefault((row.published_ids[0], shape), row)
    return [(row, shape) for (_, shape), row in asked.items()]


def verify(asked: Sequence[tuple[catalog.Variant, tuple[int, ...]]]) -> Iterator[list[Check]]:
    """Counts each model at each input and yields a check for each figure published of it."""
    requests = [
        bench.Request(name=row.name, img_size=(shape[-2], shape[-1]), num_frames=shape[1] if len(shape) == 4 else None)
        for row, shape in asked
    ]
    for (variant, shape), row in zip(asked, bench.count(requests), strict=True):
        yield [_check(variant, shape, figure, row) for figure in published.find(variant.published_ids, shape)]


def _check(variant: catalog.Variant, shape: tuple[int, ...], figure: published.Figure, row: Row) -> Check:
    found = row.findings.get("flops")
    params, macs = (found.params, found.macs) if found else (None, None)
    return Check(
        model=variant.name,
        input_shape=shape,
        source=figure.source,
        params=params,
        published_params=figure.params,
        params_difference=params / figure.params - 1 if params and figure.params else None,
        macs=macs,
        published_macs=figure.macs,
        macs_difference=macs / figure.macs - 1 if macs and figure.macs else None,
        verdict=_verdict(figure, params, macs),
        reason=figure.reason or row.note,
        convention=figure.convention,
    )


def _verdict(figure: published.Figure, params: int | None, macs: int | None) -> Agreed:
    if params is None or macs is None:
        # A printed size that no model of that kind can take is a matter of the figure, and its reason says so.
        return "explained" if figure.reason else "failed"
    if figure.agrees("params", params) is not False and figure.agrees("macs", macs) is not False:
        return "agrees"
    return "explained" if figure.reason else "differs"
