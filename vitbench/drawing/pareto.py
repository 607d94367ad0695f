"""The Pareto front: the points that no other beats in both of two columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Literal

from vitbench.findings import RECORDS
from vitbench.records import RunSetting

Direction = Literal["lower", "higher"]

# Times are judged through their throughput, so that their own columns declare nothing.
_BY_NAME: tuple[tuple[str, Direction], ...] = (
    ("_per_s", "higher"),
    ("_ms", "lower"),
    ("_s", "lower"),
    ("_bytes", "lower"),
)


@cache
def _declared() -> dict[str, Direction | None]:
    found = {item.name: item.metadata.get("better") for record in RECORDS for item in fields(record)}
    settings = dict.fromkeys((item.name for item in fields(RunSetting)), None)
    return {**{name: better if better != "equal" else None for name, better in found.items()}, **settings}


def direction(column: str) -> Direction | None:
    """Gives which way a column is better: as its record declares it, or as the unit says; None where neither does."""
    if column in ("top1", "utilization"):
        return "higher"
    if column == "flops":
        return "lower"
    declared = _declared()
    if declared.get(column):
        return declared[column]
    return next((better for ending, better in _BY_NAME if column.endswith(ending)), None)


def front(points: Sequence[tuple[float, float]], x: Direction, y: Direction) -> list[int]:
    """Gives the places of the points that no other beats, from the lowest x to the highest.

    A point is beaten by one that is better in one column and not worse in the other. Of equal points all stay.

    Args:
        points: x and y of each.
        x: which way x is better.
        y: which way y is.
    """
    x_sign, y_sign = (1 if better == "lower" else -1 for better in (x, y))
    costs = [(x_sign * at, y_sign * value) for at, value in points]
    kept: list[int] = []
    lowest = float("inf")
    for place in sorted(range(len(costs)), key=lambda one: costs[one]):
        if costs[place][1] < lowest or (kept and costs[place] == costs[kept[-1]]):
            kept.append(place)
            lowest = costs[place][1]
    return sorted(kept, key=lambda one: points[one])
