"""Statistics of paired log ratios: two sides measured in turn, block beside block, in rounds of fresh processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy
from numpy.typing import NDArray
from scipy import stats

Rounds = Sequence[Sequence[float]]
"""ln(b / a) of each pair, a sequence a round."""

NOMINAL = 0.97
"""The level at which an interval is taken, so that it holds the truth 95 times of 100 although measuring stops when it is narrow,
as it is by luck at times. By simulation, stopped at half a width of 0.8 %: 94.6 to 97.2; taken at 95 %: 91.9 to 95.6."""

_DRAWS = 1000
# Draws of a round's pairs, of which each draw of rounds takes one: as good as a draw for each, and quick between rounds.
_INNER_DRAWS = 200
# More rounds than this nobody measures.
_MOST_ROUNDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What pairs tell of ln(b / a).

    Attributes:
        centre: Hodges-Lehmann estimate; `exp` of it is the ratio.
        low, high: its 95 % interval; infinite where fewer than two rounds tell none.
        p_value: of there being no change; 1 where fewer than two rounds tell none.
        rounds: how many there were.
        floor: half of a width that no number of rounds takes away.
    """

    centre: float
    low: float
    high: float
    p_value: float
    rounds: int
    floor: float = 0.0

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


def hodges_lehmann(values: Sequence[float] | NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """Gives the median of the means of all pairs of values, each with itself too, along the last axis.

    Source: Hodges and Lehmann, Estimates of location based on rank tests (1963).
    """
    values = numpy.asarray(values, dtype=numpy.float64)
    first, second = numpy.triu_indices(values.shape[-1])
    return numpy.asarray(numpy.median((values[..., first] + values[..., second]) / 2, axis=-1))


def estimate(rounds: Rounds, *, seed: int = 0, spread: float = 0.0) -> Estimate:
    """Gives the centre of all rounds with its interval.

    The centre is the Hodges-Lehmann estimate of the rounds' own. The interval is the hull of two. One is a bootstrap of two
    levels, rounds and the pairs in them. With few rounds that is too narrow, so the other is Student's interval of the rounds'
    centres, which is right where rounds differ more than their pairs tell, but by luck may be too narrow where they do not.

    Args:
        rounds: at least one, of at least one pair each.
        seed: of the bootstrap; the estimate of negated values with the same seed is the negated estimate, to the last bit.
        spread: standard deviation of what all rounds have in common and the sides have not, which the rounds cannot tell.
    """
    centres = numpy.array([hodges_lehmann(one) for one in rounds])
    centre = float(hodges_lehmann(centres))
    if len(centres) < 2:
        return Estimate(centre=centre, low=-math.inf, high=math.inf, p_value=1.0, rounds=1)
    mean, error = float(numpy.mean(centres)), float(numpy.std(centres, ddof=1)) / math.sqrt(len(centres))
    reach = float(stats.t.ppf((1 + NOMINAL) / 2, len(centres) - 1)) * error
    drawn = _bootstrap(rounds, seed)
    # Between two of the draws, not interpolated, so that negated values give exactly the negated interval.
    low = float(numpy.quantile(drawn, (1 - NOMINAL) / 2, method="lower"))
    high = float(numpy.quantile(drawn, (1 + NOMINAL) / 2, method="higher"))
    low, high = min(low, mean - reach), max(high, mean + reach)
    floor = float(stats.norm.ppf((1 + NOMINAL) / 2)) * spread
    if floor:
        low, high = centre - math.hypot(centre - low, floor), centre + math.hypot(high - centre, floor)
    return Estimate(
        centre=centre,
        low=low,
        high=high,
        p_value=_no_change(mean, math.hypot(error, spread), len(centres)),
        rounds=len(rounds),
        floor=floor,
    )


def _bootstrap(rounds: Rounds, seed: int) -> NDArray[numpy.float64]:
    random = numpy.random.default_rng(seed)
    inner = numpy.array([_drawn(tuple(one), seed, number) for number, one in enumerate(rounds)])
    size = (_DRAWS, len(rounds))
    return hodges_lehmann(inner[random.integers(len(rounds), size=size), random.integers(_INNER_DRAWS, size=size)])


@lru_cache(maxsize=1024)  # each round is looked at again after every later one
def _drawn(one: tuple[float, ...], seed: int, number: int) -> NDArray[numpy.float64]:
    """Gives the centres of draws from one round."""
    random = numpy.random.default_rng([seed, number])
    return hodges_lehmann(numpy.array(one)[random.integers(len(one), size=(_INNER_DRAWS, len(one)))])


def _no_change(mean: float, error: float, rounds: int) -> float:
    """Gives the p-value of Student's test that the rounds' centres have the mean zero."""
    if not error:
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(abs(mean) / error, rounds - 1))


def more_rounds(found: Estimate, limit: float) -> int | None:
    """Gives how many more rounds would likely settle on which side of +-limit the truth is; None where no number would.

    The interval's half width, but for its floor, goes with one over the root of the rounds.
    """
    distance = abs(abs(found.centre) - limit)
    if not math.isfinite(found.half_width) or distance <= found.floor:
        return None
    needed = math.ceil(found.rounds * (found.half_width**2 - found.floor**2) / (distance**2 - found.floor**2))
    return max(1, needed - found.rounds) if needed <= _MOST_ROUNDS else None
