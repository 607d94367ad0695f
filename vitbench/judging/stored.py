"""Whether a value became better, worse or neither: exact and nearly exact values by a tolerance, times by their samples.

The statistics are those of two results that were measured at two times. Samples of one process are not independent: each process
counts once, by its median. Nor can any number of processes tell what the machine did between the two times, so that a spread from
session to session is added, which no sample of either result holds. Source: Kalibera and Jones, Rigorous benchmarking in
reasonable time (ISMM 2013), who repeat at the highest level that has noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy
from numpy.typing import NDArray
from scipy import special

from vitbench.changes import Verdict
from vitbench.records import Better, Within
from vitbench.units import percent

SESSION_SPREAD = 0.15
"""How far the time of a session, all processes of one result, lies from that of another on the same machine: the standard
deviation of its logarithm.

It is that of the base's medians (`a_median_ms`) in results/power.jsonl with 5 % planted: 0.153 of 50 lines of vit and 0.150 of 50
of mixer, in 40 minutes in which a shared machine with two cores was asked for nothing else. Others report a coefficient of
variation of about 8 % of jobs on machines of one kind.
"""

STORED_THRESHOLD = 0.10
"""Relative change up to which a time is the same as one measured at another time."""


# Two-sided, 95 %.
_QUANTILE = 0.975

# Who has to start more processes than that does better to measure both sides in turns.
_MOST_PROCESSES = 100

_FEW = "one process cannot tell how processes differ: measure both with --repeats 5, into .json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is to be said of one value; the attributes are those of `changes.Change`."""

    verdict: Verdict
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    more: int | None = None
    note: str = ""


def settled(before: Any, after: Any, *, better: Better, within: Within, rounding: float = 0.0) -> Judgement:
    """Judges values that have no noise but what a tolerance allows for.

    Args:
        before: a number, a tuple of numbers, a mapping of counts, or a text.
        after: another of the kind.
        better: which direction is for the better; what has no direction, such as a text, is worse if it differs.
        within: the tolerance; of tuples, on the root mean square of the difference, relative to the smaller of theirs.
        rounding: what is added to the relative tolerance of tuples, because a file has fewer digits.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        note = _counts_note(before, after)
        return Judgement(verdict="regressed" if note else "unchanged", note=note)
    if isinstance(before, tuple) and isinstance(after, tuple):
        return _vectors(before, after, Within(relative=within.relative + rounding, absolute=within.absolute))
    if isinstance(before, str) or isinstance(after, str):
        return Judgement(verdict="unchanged" if before == after else "regressed")
    # Of the smaller, so that a change and its reverse are judged alike.
    if abs(after - before) <= max(within.relative * min(abs(before), abs(after)), within.absolute):
        return Judgement(verdict="unchanged", ratio=ratio(before, after))
    up = after > before
    note = f"{'up' if up else 'down'}; any departure counts" if better == "equal" else ""
    worse = better == "equal" or up == (better == "lower")
    return Judgement(verdict="regressed" if worse else "improved", ratio=ratio(before, after), note=note)


def ratio(before: float, after: float) -> float | None:
    """Gives the second over the first; None where one is not above zero, or they lie too far apart for a number."""
    if before <= 0 or after <= 0:
        return None
    found = float(after) / float(before)
    return found if 0 < found < math.inf else None


def timed(
    before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], *, better: Better, threshold: float
) -> Judgement:
    """Judges times that were measured at two times on one machine.

    Args:
        before: times above zero, a sequence a process.
        after: the same, of the other time.
        better: "lower": the value is a time; "higher": it is a rate, the inverse of one. The ratio is that of the values.
        threshold: relative change up to which it is the same.
    """
    logs = [numpy.log([median(process) for process in side]) for side in (before, after)]
    # Of times: above zero is slower.
    shift = float(logs[1].mean() - logs[0].mean())
    sign = -1.0 if better == "higher" else 1.0
    if min(map(len, logs)) < 2:
        return Judgement(verdict="inconclusive", ratio=math.exp(sign * shift), note=_FEW)
    variances = numpy.array([side.var(ddof=1) for side in logs])
    processes = numpy.array([len(side) for side in logs])
    error, freedom = _error(variances, processes)
    reach = float(special.stdtrit(freedom, _QUANTILE) * error)
    found = Judgement(
        verdict="inconclusive",
        ratio=math.exp(sign * shift),
        low=math.exp(sign * shift - reach),
        high=math.exp(sign * shift + reach),
        p_value=float(2 * special.stdtr(freedom, -abs(shift) / error)),
    )
    # In logarithms a change and its reverse are as far from none.
    bound = math.log1p(threshold)
    if abs(shift) + reach <= bound:
        return replace(found, verdict="unchanged")
    if abs(shift) - reach > bound:
        return replace(found, verdict="regressed" if shift > 0 else "improved")
    if abs(shift) > bound and abs(shift) > reach:
        way = "slower" if shift > 0 else "faster"
        return replace(found, verdict="suspect", note=f"{way}, but perhaps by less than the threshold")
    more = _more(variances, processes, abs(abs(shift) - bound))
    if more is None:
        alone = math.expm1(special.ndtri(_QUANTILE) * math.sqrt(2) * SESSION_SPREAD)
        note = f"two sessions may lie {alone * 100:.0f} % apart by themselves, which no more processes settle: use vitbench ab"
    else:
        note = f"measure both with --repeats {int(processes.max()) + more}"
    return replace(found, more=more, note=note)


def _error(variances: NDArray[Any], processes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Gives the standard error of the difference of two means, and its degrees of freedom (Welch and Satterthwaite).

    The spread between sessions is taken as known: it has all the degrees that there are.
    """
    of_means = variances / processes
    total = of_means.sum(axis=-1) + 2 * SESSION_SPREAD**2
    # As many as there could be, where the processes do not differ at all.
    freedom = total**2 / numpy.maximum((of_means**2 / (processes - 1)).sum(axis=-1), 1e-6 * total**2)
    return numpy.sqrt(total), freedom


def _more(variances: NDArray[Any], processes: NDArray[Any], room: float) -> int | None:
    """Gives how many more processes a side make the interval narrow enough, if they differ as those did."""
    tried = numpy.arange(1, _MOST_PROCESSES + 1)
    error, freedom = _error(variances, processes + tried[:, None])
    enough = special.stdtrit(freedom, _QUANTILE) * error < room
    return int(tried[enough.argmax()]) if enough.any() else None


def _vectors(before: Sequence[float], after: Sequence[float], within: Within) -> Judgement:
    if len(before) != len(after):
        return Judgement(verdict="regressed", note=f"{len(before)} values became {len(after)}")
    first, second = numpy.asarray(before, dtype=float), numpy.asarray(after, dtype=float)
    with numpy.errstate(all="ignore"):
        same = (first == second) | (numpy.isnan(first) & numpy.isnan(second))
        apart = _norm(numpy.where(same, 0, second - first))
        whole = min(_norm(numpy.where(numpy.isfinite(side), side, 0)) for side in (first, second))
    # What is not a number is not within any tolerance of one.
    if apart <= max(within.relative * whole, within.absolute):
        return Judgement(verdict="unchanged")
    far = f"by {percent(apart / whole).removeprefix('+')} of their size" if whole > 0 and apart < math.inf else ""
    return Judgement(verdict="regressed", note=f"{int((~same).sum())} of {len(before)} values differ {far}".strip())


def _norm(values: NDArray[Any]) -> float:
    """Gives the root mean square; the values are scaled first, since squares of very large ones are infinite."""
    largest = float(numpy.abs(values).max(initial=0))
    if not 0 < largest < math.inf:
        return largest
    return largest * float(numpy.sqrt(numpy.mean((values / largest) ** 2)))


def _counts_note(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    names = [name for name in {**before, **after} if before.get(name, 0) != after.get(name, 0)]
    told = [f"{name} {before.get(name, 0)} to {after.get(name, 0)}" for name in names[:4]]
    return ", ".join(told) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
