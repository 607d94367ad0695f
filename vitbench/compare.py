"""The verb behind `vitbench compare`: the rows of two results in, what became of each of their columns out.

Rows are matched by the columns that are declared as keys, and a column is judged as its declaration says; see `records.column`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase

from vitbench import results
from vitbench.changes import Change, Comparison, PartChange, Verdict, ranked
from vitbench.errors import BadInput
from vitbench.findings import MaxBatch, Measured, Part
from vitbench.judging import discoveries, matching, stored
from vitbench.judging.matching import Column, Entry
from vitbench.records import EXACT, AnalysisSetting, Environment, Machine, Within, headings
from vitbench.results import Line
from vitbench.units import parse_share

# The columns of samples that tell a timed column's noise, and which phase of a run it is.
_SAMPLES = {
    "throughput_per_s": ("samples_ms", None),
    "forward_median_ms": ("phases_ms", 0),
    "backward_median_ms": ("phases_ms", 1),
    "optimizer_median_ms": ("phases_ms", 2),
}
# What a time depends on.
_MACHINE_OF_TIMES = (
    "platform",
    "cpu",
    "cores",
    "cpu_limit",
    "memory_bytes",
    "memory_limit_bytes",
    "python",
    "torch",
    "timm",
    "device_name",
    "device_memory_bytes",
    "driver",
    "runtime",
    "instruction_set",
    "matmul_precision",
    "cudnn_benchmark",
    "threads",
)
# Without which nobody can tell whether two times are of one machine.
_NEEDED = ("cpu", "cores", "torch", "timm")
# What is measured of an accelerator's memory depends on which it is; on a CPU it belongs to the pass, as rounding does anywhere.
_OF_ACCELERATOR = {Measured.__name__: ("device_name",), MaxBatch.__name__: ("device_name", "device_memory_bytes")}
# What a pass of the largest batch takes: of another batch it is another question.
_OF_LARGEST_BATCH = ("peak_bytes", "activations_bytes")
_MOMENTARY = ("time", "clock_mhz")
_MOST_LISTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """By how much a column may change, for some models.

    Attributes:
        metric: the column's name, or as much of it as tells it from others, such as "throughput".
        models: a glob.
        relative: 0.05 is 5 %.
    """

    metric: str
    models: str = "*"
    relative: float


def parse_threshold(text: str) -> Threshold:
    """Reads "throughput=5%", or "throughput:vit_*=5%" for some models.

    Raises:
        BadInput: it is no such thing, or no column of that name is judged.
    """
    named, _, share = text.rpartition("=")
    metric, _, models = named.partition(":")
    try:
        relative = parse_share(share)
    except ValueError:
        relative = math.nan
    if not metric or math.isnan(relative):
        raise BadInput(f"{text!r} is not a threshold below 100 %, such as throughput=5% or throughput:vit_*=5%.")
    return Threshold(metric=column_of(metric.strip()), models=models.strip() or "*", relative=relative)


def column_of(metric: str) -> str:
    """Gives the column that a name stands for: its own, or the only one that begins with it.

    Raises:
        BadInput: there is none, or more than one.
    """
    known = sorted({column.name for columns in matching.declared_columns().values() for column in columns})
    if metric in known:
        return metric
    found = [name for name in known if name.startswith(f"{metric}_")]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput(f"{metric!r} may be {', '.join(found)}: give one of them.")
    raise BadInput(f"No column named {metric!r} is judged; those that are: {', '.join(known)}.")


def measure_of(metric: str) -> str:
    """Gives the column that a threshold's name stands for.

    Raises:
        BadInput: there is none, or more than one; or it holds texts or counts by name, which are the same or are not.
    """
    name = column_of(metric)
    if not any(
        column.measures for columns in matching.declared_columns().values() for column in columns if column.name == name
    ):
        raise BadInput(f"{name} takes no threshold: it has no size that could change by a part.")
    return name


def compare(
    base: Sequence[Line],
    head: Sequence[Line],
    *,
    base_name: str,
    head_name: str,
    thresholds: Sequence[Threshold] = (),
) -> Comparison:
    """Judges every column of every row of two results.

    Args:
        base: rows as `results.load` gives them, of any command and of older versions; columns that nobody knows are left alone.
        head: the same, of the other result.
        base_name: what the first is called in notes.
        head_name: what the second is called.
        thresholds: instead of the declared ones; of those that fit a column and a model, the last counts.

    Raises:
        BadInput: a cell of a column that is judged cannot be read, or a threshold's metric is not known, or takes none.
    """
    asked = [replace(one, metric=measure_of(one.metric)) for one in thresholds]
    notes: list[str] = []
    sides = matching.side(base, base_name, notes), matching.side(head, head_name, notes)
    judge = _Judge(list(matching.matched(*sides)), names=(base_name, head_name), thresholds=asked)
    changes, of_chance = discoveries.corrected(judge.changes)
    notes += judge.notes
    notes += [
        f"The threshold {one.metric}:{one.models}={one.relative * 100:g}% fits no value that was compared."
        for one in asked
        if one not in judge.fitted
    ]
    notes += of_chance
    if all(change.verdict in ("missing", "new") for change in changes):
        notes.append(
            f"Nothing could be compared: {base_name} and {head_name} share no value of a column that is judged."
        )
    abouts = _environment(base), _environment(head)
    return Comparison(
        base=base_name,
        head=head_name,
        changes=ranked(changes),
        differences={
            name: (abouts[0].get(name, ""), abouts[1].get(name, ""))
            for name in _environment_fields()
            if name not in _MOMENTARY and abouts[0].get(name, "") != abouts[1].get(name, "")
        },
        environment=abouts[1],
        notes=tuple(notes),
    )


class _Judge:
    """Collects what becomes of matched rows: changes, and what is told in notes instead."""

    def __init__(
        self,
        pairs: Sequence[tuple[Entry | None, Entry | None]],
        *,
        names: tuple[str, str],
        thresholds: Sequence[Threshold],
    ) -> None:
        self._names = names
        self._thresholds = thresholds
        sides = [[pair[side] for pair in pairs if pair[side] is not None] for side in (0, 1)]
        # A search for the best batch, which ends where the next is no faster, ends by chance here or there.
        self._searches = [{entry.search for entry in side if entry and entry.search} for side in sides]
        self._settings = [
            {frozenset(entry.setting.items()) for entry in side if entry and not entry.failure} for side in sides
        ]
        # What failed before its input was known is found again by the model's name alone.
        self._shapeless = [
            {entry.setting["model"]: entry.failure for entry in side if entry and not entry.setting["input_shape"]}
            for side in sides
        ]
        self._told: set[str] = set()
        self.fitted: set[Threshold] = set()
        self._noted: Counter[str] = Counter()
        self.changes = [change for pair in pairs for change in self._pair(*pair)]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is no change, in sentences."""
        return tuple(f"{text}: {number}." for text, number in self._noted.items())

    def _pair(self, before: Entry | None, after: Entry | None) -> Iterator[Change]:
        if before is not None and after is not None:
            if before.failure and after.failure:
                self._noted["Rows that failed on both sides"] += 1
            elif after.failure:
                yield _whole(after, "missing", after.failure)
            elif before.failure:
                yield _whole(after, "new", f"before: {before.failure}")
            compare_columns = self._parts if before.record is Part else self._columns
            yield from compare_columns(before, after)
            return
        entry, side = (before, 0) if before is not None else (after, 1)
        if entry is None:
            return
        other = 1 - side
        if entry.failure:
            self._noted[f"Rows that failed in {self._names[side]} and are not in {self._names[other]}"] += 1
        elif entry.search and entry.search in self._searches[other]:
            self._noted[f"Batches that only {self._names[side]} tried, looking for the best"] += 1
        elif not side and entry.instead_of in self._settings[other]:
            self._noted[f"Batches that {self._names[side]} ran in place of those that {self._names[other]} runs"] += 1
        else:
            note = self._shapeless[other].get(entry.setting["model"], "")
            yield _whole(entry, "new" if side else "missing", note)

    def _columns(self, before: Entry, after: Entry) -> Iterator[Change]:
        columns = matching.declared_columns()[after.name]
        setting = str(after.setting)
        if setting not in self._told:
            self._told.add(setting)
            columns += matching.setting_columns()
        for column in columns:
            found = before.newest(column.name), after.newest(column.name)
            values = tuple(None if line is None else column.read(line, column.name) for line in found)
            if values == (None, None) or _of_another_batch(column, found):
                continue
            change = self._blank(column, before, after, found[0] or found[1])
            change = replace(change, before=values[0], after=values[1])
            if None in values:
                # What failed is missing as a whole.
                if not (after if values[0] is not None else before).failure or (before.failure and after.failure):
                    yield replace(change, verdict="new" if values[0] is None else "missing")
            else:
                judged = self._timed if column.timed else self._settled
                yield judged(change, column, before, after)

    def _blank(self, column: Column, before: Entry, after: Entry, line: Line | None) -> Change:
        """Gives a change of a column about which nothing is said yet."""
        declared = column.declared(line or {})
        asked = self._threshold(column.name, after.setting["model"])
        own = stored.STORED_THRESHOLD if column.timed else declared.relative
        of_setting = column.of == AnalysisSetting.__name__
        return Change(
            setting=after.setting if of_setting else after.shown(beside=before),
            column=column.name,
            heading=column.heading,
            judged="timed" if column.timed else "exact" if declared == EXACT else "near",
            better=column.better,
            verdict="unchanged",
            threshold=own if asked is None else asked,
        )

    def _threshold(self, column: str, model: str) -> float | None:
        fitting = [one for one in self._thresholds if one.metric == column and fnmatchcase(model, one.models)]
        self.fitted.update(fitting)
        return fitting[-1].relative if fitting else None

    def _settled(self, change: Change, column: Column, before: Entry, after: Entry) -> Change:
        lines = _both(before, after, column.name)
        declared = column.declared(lines[0])
        # Who asks for a part means no more than that: a distance that is always allowed would hide it.
        asked = self._threshold(column.name, after.setting["model"])
        within = declared if asked is None else Within(relative=asked)
        rounded = any(isinstance(line[column.name], str) for line in lines)
        judgement = stored.settled(
            change.before,
            change.after,
            better=column.better,
            within=within,
            rounding=matching.CSV_ROUNDING if rounded else 0.0,
        )
        change = _judged_as(change, judgement)
        if column.of == MaxBatch.__name__ and (unlike := _another_limit(lines)):
            return replace(change, verdict="incomparable", note=unlike)
        if change.verdict == "unchanged":
            return change
        if change.judged == "near" and not _on_cpu(lines[0]):
            machines = _differing(lines, _OF_ACCELERATOR.get(column.of, ()))
            if machines:
                return replace(change, verdict="incomparable", note=f"another machine: {machines}")
        if column.name in ("params", "macs"):
            sources = before.newest("modules"), after.newest("modules")
            if sources[0] is not None and sources[1] is not None:
                counts = [
                    {path: module[column.name] for path, module in matching.modules(line).items()}
                    for line in sources
                    if line
                ]
                change = replace(change, parts=_part_changes(column.name, counts[0], counts[1]))
        return change

    def _timed(self, change: Change, column: Column, before: Entry, after: Entry) -> Change:
        lines = _both(before, after, column.name)
        change = replace(change, ratio=stored.ratio(change.before, change.after))
        machines = _differing(
            lines, _MACHINE_OF_TIMES, needed=_NEEDED if _on_cpu(lines[0]) else (*_NEEDED, "device_name")
        )
        if machines:
            return replace(change, verdict="incomparable", note=f"another machine or software: {machines}")
        samples = [matching.processes(line, *_SAMPLES[column.name]) for line in lines]
        if not all(samples):
            lack = " and ".join(name for name, found in zip(self._names, samples, strict=True) if not found)
            note = f"{lack} has no samples: measure with --repeats 5, into .json"
            return replace(change, verdict="inconclusive", note=note)
        return _judged_as(
            change, stored.timed(samples[0], samples[1], better=column.better, threshold=change.threshold)
        )

    def _parts(self, before: Entry, after: Entry) -> Iterator[Change]:
        """Judges the sums over a breakdown, and tells the parts that changed."""
        for column in matching.declared_columns()[after.name]:
            counts = before.counts(column), after.counts(column)
            change = self._blank(column, before, after, after.lines[-1])
            if not any(counts):
                continue
            if not all(counts):
                if not (after if counts[0] else before).failure:
                    yield replace(change, verdict="missing" if counts[0] else "new")
                continue
            sums = sum(counts[0].values()), sum(counts[1].values())
            judgement = stored.settled(*sums, better=column.better, within=Within(relative=change.threshold))
            change = replace(_judged_as(change, judgement), before=sums[0], after=sums[1])
            parts = _part_changes(column.name, *counts)
            if parts and sums[0] == sums[1]:
                change = replace(change, verdict="suspect", note="the sum is the same, the parts are not")
            yield replace(change, parts=parts)


def _judged_as(change: Change, judgement: stored.Judgement) -> Change:
    return replace(change, **{item.name: getattr(judgement, item.name) for item in fields(judgement)})


def _whole(entry: Entry, verdict: Verdict, note: str) -> Change:
    """Gives the change of a row that only one side has."""
    return Change(setting=entry.shown(), column="", heading="", judged="exact", better=None, verdict=verdict, note=note)


def _on_cpu(line: Line) -> bool:
    return results.text(line, "device") in ("", "cpu")


def _both(before: Entry, after: Entry, column: str) -> tuple[Line, Line]:
    """Gives the newest row of each side that has a value in a column, where both have one."""
    lines = before.newest(column), after.newest(column)
    if lines[0] is None or lines[1] is None:
        raise LookupError(column)
    return lines[0], lines[1]


def _of_another_batch(column: Column, lines: tuple[Line | None, Line | None]) -> bool:
    """Tells whether two values are of different largest batches, which are judged themselves."""
    if column.of != MaxBatch.__name__ or column.name not in _OF_LARGEST_BATCH or None in lines:
        return False
    batches = {matching.plain(line, "max_batch") for line in lines if line is not None}
    return len(batches) > 1


def _another_limit(lines: tuple[Line, Line]) -> str:
    """Says why two largest batches answer different questions; empty where they answer the same."""
    names = ["max_batch_method"]
    if all(results.text(line, "max_batch_method") == "predicted" for line in lines):
        names.append("limit_bytes")
    return "; ".join(
        _against(name, lines, name)
        for name in names
        if matching.plain(lines[0], name) != matching.plain(lines[1], name)
    )


def _differing(lines: tuple[Line, Line], names: Iterable[str], needed: Sequence[str] = ()) -> str:
    """Gives the fields of two rows' environments that differ, with both values.

    What only one of them tells is no difference, but for the fields that are needed.
    """
    found = []
    for name in names:
        column = name if name == "threads" else f"environment_{name}"
        before, after = (matching.plain(line, column) for line in lines)
        if (before != after and ((before and after) or needed)) or (name in needed and not before):
            found.append(_against(name, lines, column))
    return "; ".join(found)


def _against(name: str, lines: tuple[Line, Line], column: str) -> str:
    before, after = (matching.plain(line, column) or "not told" for line in lines)
    return f"{name} {before}" if before == after else f"{name} {before}, then {after}"


def _part_changes(column: str, before: Mapping[str, float], after: Mapping[str, float]) -> tuple[PartChange, ...]:
    """Gives the parts whose counts differ."""
    return tuple(
        PartChange(part=part, column=column, before=before.get(part), after=after.get(part))  # type: ignore[arg-type]  # counts are whole
        for part in {**before, **after}
        if before.get(part) != after.get(part)
    )


def _environment(lines: Iterable[Line]) -> dict[str, str]:
    """Gives the environment of rows, by field; where they have several, all, parted by commas."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for line in lines:
        for name in _environment_fields():
            if text := matching.plain(line, f"environment_{name}"):
                found[name][text] = None
    return {name: _listed(list(texts)) for name, texts in found.items()}


def _environment_fields() -> tuple[str, ...]:
    # The command says what was asked, which the settings tell.
    return tuple(name for name in (*headings(Environment), *headings(Machine)) if name != "command")


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_MOST_LISTED]) + (
        f" and {len(texts) - _MOST_LISTED} more" if len(texts) > _MOST_LISTED else ""
    )
