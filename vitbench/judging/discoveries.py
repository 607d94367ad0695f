"""Many times in one report: of what is called a change, at most 5 % by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitbench.changes import Change

RATE = 0.05


def discoveries(p_values: Sequence[float]) -> list[bool]:
    """Tells which of many p-values are discoveries, of which at most 5 % are false on average.

    Source: Benjamini and Hochberg, Controlling the false discovery rate (1995).
    """
    if not p_values:
        return []
    from scipy import stats  # half a second, which a comparison without times need not wait

    return [bool(p <= RATE) for p in stats.false_discovery_control(p_values)]


def corrected(changes: Sequence[Change]) -> tuple[list[Change], tuple[str, ...]]:
    """Turns what does not survive among all that a report tells into suspect, and gives a note where it is several."""
    p_values = [one.p_value for one in changes if one.p_value is not None]
    survives = iter(discoveries(p_values))
    found = [
        one
        if one.p_value is None or next(survives) or one.verdict not in ("regressed", "improved")
        else replace(
            one,
            verdict="suspect",
            note="; ".join(filter(None, (f"may be chance among {len(p_values)} comparisons", one.note))),
        )
        for one in changes
    ]
    note = (
        f"Of {len(p_values)} comparisons of times, the false discovery rate is held at {RATE:.0%} (Benjamini-Hochberg)."
    )
    return found, (note,) if len(p_values) > 1 else ()
