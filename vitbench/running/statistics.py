"""Medians, percentiles and intervals of repeated measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy

CONFIDENCE = 0.95

# A percentile needs some samples beyond it: with fewer than five it is little more than the maximum.
SAMPLES_FOR = {0.95: 100, 0.99: 500}

# The interval of a median has 95 % only from here on.
LEAST_FOR_INTERVAL = 6


def median(samples: Sequence[float]) -> float:
    """Gives the median, the mean of the middle two where the number is even."""
    return float(numpy.median(samples))


def percentile(samples: Sequence[float], fraction: float) -> float | None:
    """Gives a percentile, interpolated between neighbours, or None where the samples do not suffice (`SAMPLES_FOR`)."""
    if len(samples) < SAMPLES_FOR.get(fraction, 1):
        return None
    return float(numpy.quantile(samples, fraction))


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """Gives the 95 % interval of the median of independent samples, or None for fewer than six, which have none.

    It runs between two of the samples, and holds whatever their distribution is: the number of samples below the median is
    binomial. Source: Conover, Practical Nonparametric Statistics (1999), section 3.2.
    """
    from scipy import stats  # only here: what times a model in a Python without scipy does without

    # How many samples may lie below the interval, or above it: P(Bin(n, 1/2) < rank) is at most half of what is left.
    rank = int(stats.binom.ppf((1 - CONFIDENCE) / 2, len(samples), 0.5)) if samples else 0
    if rank < 1:
        return None
    ordered = numpy.partition(samples, (rank - 1, len(samples) - rank))
    return float(ordered[rank - 1]), float(ordered[len(samples) - rank])


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Gives Student's 95 % interval of the mean of independent values, or None for fewer than two."""
    if len(values) < 2:
        return None
    from scipy import stats

    centre, error = float(numpy.mean(values)), float(numpy.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return centre - reach, centre + reach


def spread(samples: Sequence[float]) -> float:
    """Gives the distance between the quartiles as a part of the median."""
    low, middle, high = numpy.quantile(samples, (0.25, 0.5, 0.75))
    return float((high - low) / middle) if middle else 0.0
