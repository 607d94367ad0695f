"""What became of a column from one result to another: the records that `compare`, `ab` and `check` yield, and their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vitbench.records import Better

Verdict = Literal["regressed", "missing", "suspect", "incomparable", "inconclusive", "improved", "new", "unchanged"]
VERDICTS: tuple[Verdict, ...] = (
    "regressed",
    "missing",
    "suspect",
    "incomparable",
    "inconclusive",
    "improved",
    "new",
    "unchanged",
)
"""Worst first."""

Judged = Literal["exact", "near", "timed"]
FailOn = Literal["regressed", "any", "never"]

DIFFERENCES: frozenset[Verdict] = frozenset(("regressed", "improved", "suspect", "new"))
"""Verdicts that can count as a regression; of the others those that count say that something is not known."""

FINE = 0
REGRESSED = 1
NOT_MEASURED = 3
CANNOT_TELL = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PartChange:
    """A module that changed.

    Attributes:
        part: its path.
        column: "params" or "macs".
        before, after: None where the module is not there.
    """

    part: str
    column: str
    before: int | None
    after: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One column of one row, before and after.

    Attributes:
        setting: what tells the row apart, as text by column, the model first.
        column: its name; empty where the whole row is missing or new.
        heading: what stands over it in a table.
        judged: exact: any difference counts; near: more than a stated tolerance; timed: by statistics.
        better: which direction is for the better; "equal": none is.
        before, after: base values, None where there is none.
        ratio: after over before, by a paired estimate where there is one; None where it is not defined.
        low, high: the 95 % interval of the ratio, where samples tell one.
        threshold: relative change up to which it is the same: 0.03 is 3 %.
        verdict: what is to be said of it.
        note: why, in a clause, such as which fields of the environment differ; empty where nothing need be said.
        more: how many more rounds, or processes, would settle what is inconclusive; None where no number would, or none need.
        p_value: of there being no change; timed columns alone.
        parts: the modules that changed, where both sides tell.
        rounds: of a paired measurement: the ratios of its pairs, a tuple a round.
        expected: the reason for which this change is expected; it is not counted against the exit code.
    """

    setting: Mapping[str, str]
    column: str
    heading: str
    judged: Judged
    better: Better | None
    verdict: Verdict
    before: Any = None
    after: Any = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float = 0.0
    note: str = ""
    more: int | None = None
    p_value: float | None = None
    parts: tuple[PartChange, ...] = ()
    rounds: tuple[tuple[float, ...], ...] = field(default=(), repr=False)
    expected: str = ""

    @property
    def model(self) -> str:
        """The model's name."""
        return self.setting.get("model", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two results, column by column.

    Attributes:
        base, head: their names.
        changes: all, the unchanged ones too, worst first (`ranked`).
        differences: what differs between the environments, by field: before and after.
        environment: the head's, by field.
        notes: sentences on how it was judged.
        commands: what was run, for whoever wants to run it again.
        counted: the verdicts that count against the exit code (`counted`), unless they are expected.
    """

    base: str
    head: str
    changes: tuple[Change, ...]
    differences: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    counted: frozenset[Verdict] = frozenset(("regressed", "missing"))

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many changes have each verdict, worst first; verdicts that none has are left out."""
        found = Counter(change.verdict for change in self.changes)
        return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}

    @property
    def compared(self) -> bool:
        """Whether there is anything that both have."""
        return any(change.verdict not in ("missing", "new") for change in self.changes)

    @property
    def findings(self) -> tuple[Change, ...]:
        """All changes but the unchanged, worst first."""
        return tuple(change for change in self.changes if change.verdict != "unchanged")


def ranked(changes: Sequence[Change]) -> tuple[Change, ...]:
    """Sorts changes worst first: by verdict, unexpected ones before expected ones, then by how far their values lie apart."""

    def place(change: Change) -> tuple[int, bool, float]:
        far = abs(change.ratio - 1) if change.ratio is not None else 0.0
        return VERDICTS.index(change.verdict), bool(change.expected), -far

    return tuple(sorted(changes, key=place))


def counted(*, fail_on: FailOn = "regressed", strict: bool = False, allow_missing: bool = False) -> frozenset[Verdict]:
    """Gives the verdicts that count against the exit code.

    Args:
        fail_on: "any" counts improvements, suspects and new rows too; "never" counts no difference at all.
        strict: whether what is inconclusive or incomparable counts.
        allow_missing: whether rows that the head lacks do not count.
    """
    differences: dict[FailOn, frozenset[Verdict]] = {
        "regressed": frozenset(("regressed",)),
        "any": DIFFERENCES,
        "never": frozenset(),
    }
    unknown: dict[Verdict, bool] = {"missing": not allow_missing, "inconclusive": strict, "incomparable": strict}
    return differences[fail_on].union(verdict for verdict, counts in unknown.items() if counts)


def exit_code(comparison: Comparison) -> int:
    """Gives what a command ends with; a regression outranks what is missing, and that what cannot be told.

    Expected changes do not count; that nothing could be compared always does.
    """
    found = {change.verdict for change in comparison.changes if not change.expected} & comparison.counted
    if found & DIFFERENCES:
        return REGRESSED
    if not comparison.compared or "missing" in found:
        return NOT_MEASURED
    return CANNOT_TELL if found else FINE
