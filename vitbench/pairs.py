"""Statistics of paired log ratios: two sides measured in turn, block beside block, in rounds of fresh processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Rounds = Sequence[Sequence[float]]
"""ln(b / a) of each pair, a sequence a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What pairs tell of ln(b / a).

    Attributes:
        centre: Hodges-Lehmann estimate; `exp` of it is the ratio.
        low, high: its 95 % interval; infinite where fewer than two rounds tell none.
        p_value: of there being no change; 1 where fewer than two rounds tell none.
        rounds: how many there were.
    """

    centre: float
    low: float
    high: float
    p_value: float
    rounds: int

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2
