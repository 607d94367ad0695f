"""The rows of two results, matched by the columns that are declared as keys, and their cells, the same from CSV and JSON.

Of the rows of one side with one key, which may come from several commands, each column's newest value counts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, lru_cache
from typing import Any, get_args, get_origin, get_type_hints

from vitbench import results
from vitbench.findings import RECORDS, Check, Part
from vitbench.judging import stored
from vitbench.records import EXACT, AnalysisSetting, Better, RunSetting, Setting, Within, headings
from vitbench.results import Line

# Milliseconds between a femtosecond and thirty years: what else a file may hold is no time of a run.
_TIMES_MS = (1e-12, 1e12)

# Of a cell with numbers, CSV keeps six digits; both sides may.
CSV_ROUNDING = 1e-5

_EMPTY: tuple[Any, ...] = (None, "", [], {})
_DONE = ("", "ok", "lowered")
_COUNTS = ("Flops", "CrossCount")
_OTHER = "other_"
_BREAKDOWNS = ("module", "operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column that is judged, and how its cells are read."""

    name: str
    heading: str
    better: Better
    within: Within | Callable[[Mapping[str, Any]], Within]
    timed: bool
    read: Callable[[Line, str], Any]
    of: str

    @property
    def measures(self) -> bool:
        """Whether its values have a size, of which a part may change: they are no texts, and no counts by name."""
        return self.read in (_number, _numbers)

    def declared(self, row: Mapping[str, Any]) -> Within:
        """Gives the tolerance that is declared for a row."""
        return self.within(row) if callable(self.within) else self.within


# Columns


@cache
def declared_columns() -> dict[str, tuple[Column, ...]]:
    """Gives the columns that are judged, by the record that tells a row from others; of rows that none tells, under ""."""
    found: dict[str, list[Column]] = {"": []}
    for record in RECORDS:
        found.setdefault(record.__name__ if _own_keys(record) else "", []).extend(_judged()[record])
    return {name: tuple(columns) for name, columns in found.items()} | {"AnalysisSetting": setting_columns()}


@cache
def setting_columns() -> tuple[Column, ...]:
    """Gives the columns of the setting that are judged: they are the same in all its rows."""
    own = _judged()[AnalysisSetting]
    return (*own, *(replace(column, name=f"{_OTHER}{column.name}") for column in own))


@cache
def _judged() -> dict[type[Any], tuple[Column, ...]]:
    """Gives the columns of each record that are judged."""
    return {record: tuple(_columns(record)) for record in (*RECORDS, AnalysisSetting)}


def _columns(record: type[Any]) -> Iterator[Column]:
    hints = get_type_hints(record)
    return (
        Column(
            name=item.name,
            heading=item.metadata["heading"],
            better=item.metadata["better"],
            within=item.metadata["within"],
            timed=item.metadata["timed"],
            read=_reader(hints[item.name]),
            of=record.__name__,
        )
        for item in fields(record)
        if item.metadata["better"] is not None
    )


def _reader(kind: Any) -> Callable[[Line, str], Any]:
    kinds = {get_origin(one) or one for one in (kind, *get_args(kind))}
    if tuple in kinds:
        return _numbers
    if Mapping in kinds:
        return _counts
    return _text if str in kinds else _number


def _own_keys(record: type[Any]) -> tuple[str, ...]:
    return tuple(item.name for item in fields(record) if item.metadata["key"] and item.name not in headings(Setting))


@lru_cache(maxsize=1024)
def _record(names: tuple[str, ...]) -> type[Any] | None:
    """Gives the record that a row with values in these columns is of, several of which one setting may have; None if of none."""
    present = set(names)
    found = [
        record
        for record in RECORDS
        if not present.isdisjoint(_own_keys(record)) and any(column.name in present for column in _judged()[record])
    ]
    # Two may have some columns of the same name.
    return max(found, key=lambda record: len(present.intersection(headings(record))), default=None)


@cache
def _defaults() -> dict[str, str]:
    """Gives the columns that tell settings apart, each with the text of its default; empty where it has none."""
    found: dict[str, str] = {}
    for record in (RunSetting, AnalysisSetting):
        for item in fields(record):
            if item.metadata["key"]:
                found.setdefault(
                    item.name, plain({"": item.default}, "") if isinstance(item.default, str | int) else ""
                )
    # Of which of two rows it is the same batch, and which threads are the same, is looked into row by row.
    del found["batch_size_asked"], found["threads"]
    return found


# Cells


def plain(row: Mapping[str, Any], column: str) -> str:
    """Gives the text of a cell that tells rows apart, the same for CSV and JSON."""
    value = row.get(column)
    if isinstance(value, list | tuple) and all(isinstance(item, int) for item in value):
        return "x".join(map(str, value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if value is not None and not isinstance(value, str | int | float):
        raise results.wrong(row, column, "a text or a number")
    text = _clean("" if value is None else str(value))
    if column == "environment_cpu_limit":
        return text.removesuffix(".0")  # as CSV writes a float
    if column.removeprefix(_OTHER) == "device":
        return text.removesuffix(":0")
    return text.capitalize() if text in ("true", "false") else text


def _last(path: str) -> str:
    """Gives the last part of a path: the same images lie elsewhere on another machine."""
    return next((part for part in reversed(path.replace("\\", "/").split("/")) if part), path)


def _clean(text: str) -> str:
    """Gives a text that any file can hold: JSON may spell half a surrogate pair."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _text(row: Line, column: str) -> str | None:
    return plain(row, column) or None


def _number(row: Line, column: str) -> float | None:
    found = results.number(row, column)
    try:
        whole = int(row[column])
    except (TypeError, ValueError, KeyError):
        return found
    # A count may be larger than a float can tell from its neighbours.
    return whole if whole == found or abs(whole) > 2**53 else found


def _numbers(row: Line, column: str) -> tuple[float, ...] | None:
    value = row.get(column)
    if value is None or value == "" or value == []:
        return None
    try:
        if isinstance(value, str):
            return tuple(float(part) for part in value.split())
        if isinstance(value, list) and {*map(type, value)} <= {int, float}:
            return tuple(float(part) for part in value)
    except (ValueError, OverflowError):
        pass
    raise results.wrong(row, column, "numbers")


def _counts(row: Line, column: str) -> dict[str, int] | None:
    value = row.get(column)
    if value is None or value == "" or value == {}:
        return None
    try:
        if isinstance(value, str):
            parts = (part.rpartition("=") for part in value.split())
            return {_clean(name): int(count) for name, _, count in parts}
        if isinstance(value, dict) and {*map(type, value.values())} <= {int}:
            return {_clean(name): count for name, count in value.items()}
    except ValueError:
        pass
    raise results.wrong(row, column, "counts by name")


def processes(row: Line, column: str, phase: int | None) -> list[list[float]]:
    """Gives the times of each process of a row; none where the file has none.

    Raises:
        BadInput: they are no times.
    """
    value = row.get(column)
    if value is None or value == "":
        return []
    try:
        if not isinstance(value, list):
            raise TypeError
        processes = value if phase is None else [process[phase] for process in value]
        for process in processes:
            if not isinstance(process, list) or not {*map(type, process)} <= {int, float}:
                raise TypeError
            low, high = min(process, default=_TIMES_MS[0]), max(process, default=_TIMES_MS[1])
            # Where one is no number, nor is the sum, whatever the least and the largest are said to be.
            if not (_TIMES_MS[0] <= low and high <= _TIMES_MS[1] and math.isfinite(sum(process))):
                raise TypeError
    except (TypeError, LookupError):
        raise results.wrong(row, column, "lists of milliseconds above zero, one a process") from None
    return [process for process in processes if process]


def modules(row: Line) -> dict[str, dict[str, int]]:
    """Gives params and macs of each module, by its path."""
    value = row.get("modules")
    if value is None or value == "":
        return {}
    try:
        found = {_clean(path): {"params": params, "macs": macs} for path, params, macs in value}
        if all(isinstance(count, int) for module in found.values() for count in module.values()):
            return found
    except (TypeError, ValueError, AttributeError):
        pass
    raise results.wrong(row, "modules", "a list of path, params and macs")


# Rows


Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(slots=True, kw_only=True)
class Entry:
    """All rows of one side that have one key.

    Attributes:
        record: of which the setting may have several, or None.
        setting: the key without the record's own part.
        own: that part.
        threads: empty where the rows do not tell.
        lines: oldest first; of rows of one time those with samples come last.
        among_threads: whether others differ from it in the threads alone.
    """

    record: type[Any] | None
    setting: dict[str, str]
    own: dict[str, str]
    threads: str
    lines: list[Line] = field(default_factory=list)
    among_threads: bool = False

    @property
    def name(self) -> str:
        """The record's name; empty where there is none."""
        return self.record.__name__ if self.record else ""

    @property
    def key(self) -> Key:
        """What tells it from others, but for the threads."""
        return self.name, (*self.setting.items(), *self.own.items())

    @property
    def search(self) -> str:
        """The search for the best batch that it is of; empty where it is of none."""
        if self.setting.get("batch_size_asked") != "auto":
            return ""
        return str({name: text for name, text in self.setting.items() if name != "batch_size"})

    @property
    def instead_of(self) -> frozenset[tuple[str, str]]:
        """The setting with the batch that was asked for, where a smaller one was run."""
        asked = self.setting.get("batch_size_asked", "")
        setting = {name: text for name, text in self.setting.items() if name != "batch_size_asked"}
        return frozenset((setting | {"batch_size": asked}).items()) if asked.isdecimal() else frozenset()

    @property
    def counted(self) -> bool:
        """Whether it has nothing but counts, which are the same on any device."""
        columns = declared_columns()[self.name]
        return all(column.of in _COUNTS for column in columns if self.newest(column.name) is not None)

    @property
    def failure(self) -> str:
        """How a row failed, with its note, if none was measured later; empty where none failed."""
        done = [results.text(line, "environment_time") for line in self.lines if not _failure(line)]
        return next(
            (
                text
                for line in reversed(self.lines)
                if (text := _failure(line)) and results.text(line, "environment_time") >= max(done, default="")
            ),
            "",
        )

    def newest(self, column: str) -> Line | None:
        """Gives the newest row that has a value in a column."""
        return next((line for line in reversed(self.lines) if line.get(column) not in _EMPTY), None)

    def shown(self, beside: Entry | None = None) -> dict[str, str]:
        """Gives what tells it apart, for people: the threads only where settings differ in nothing else."""
        several = self.among_threads or (beside is not None and beside.among_threads)
        return self.setting | self.own | ({"threads": self.threads} if several else {})

    def counts(self, column: Column) -> dict[str, float]:
        """Gives the value of each part of the newest breakdown: one of before may have parts that there are no more."""
        by = self.setting["by"]
        newest = results.text(self.lines[-1], "environment_time")
        of_newest = [line for line in self.lines if results.text(line, "environment_time") == newest]
        found = {plain(line, by): column.read(line, column.name) for line in of_newest}
        return {part: value for part, value in found.items() if value is not None}


def _failure(line: Line) -> str:
    status = results.text(line, "status")
    if status in _DONE:
        return ""
    return _clean(": ".join(filter(None, (status, results.text(line, "note")))))


Side = dict[tuple[Key, str], Entry]


def side(lines: Sequence[Line], name: str, notes: list[str]) -> Side:
    """Gives the entries of one side; what cannot be placed, or was merged, is told in the notes."""
    side: Side = {}
    foreign = 0
    for line in lines:
        if not results.text(line, "model") or "input_shape" not in line:
            foreign += 1
            continue
        entry = _entry(line)
        side.setdefault((entry.key, entry.threads), entry).lines.append(line)
    if foreign:
        notes.append(f"Left out, for want of a model and an input: {foreign} of the rows of {name}.")
    _absorb(side)
    conflicts = 0
    for entry in side.values():
        if len(entry.lines) > 1:
            entry.lines.sort(
                key=lambda line: (results.text(line, "environment_time"), isinstance(line.get("samples_ms"), list))
            )
            conflicts += _conflicts(entry)
    if conflicts:
        notes.append(f"Measured again with other values, of which the newest count: {conflicts} of the rows of {name}.")
    return side


def _entry(line: Line) -> Entry:
    if "share" in line and any(by in line for by in _BREAKDOWNS):
        record: type[Any] | None = Part  # also where the part has no name: it is the model itself
    else:
        record = _record(tuple(name for name, value in line.items() if value not in _EMPTY))
    setting = {"model": plain(line, "model"), "input_shape": plain(line, "input_shape")}
    for name, default in _defaults().items():
        for column in (name, f"{_OTHER}{name}"):
            if column in line and (text := plain(line, column)) not in ("", default):
                setting[column] = _last(text) if name == "source" and record is not Check else text
    asked = plain(line, "batch_size_asked")
    if asked not in ("", setting.get("batch_size", "1")):
        setting["batch_size_asked"] = asked
    if asked == "max" and results.text(line, "max_batch_method") == "predicted":
        setting["limit_bytes"] = plain(line, "limit_bytes")
    own: dict[str, str] = {}
    if record is Part:
        setting["by"] = next(by for by in _BREAKDOWNS if by in line)
    elif record is not None:
        own = {name: text for name in _own_keys(record) if (text := plain(line, name))}
        setting = {name: text for name, text in setting.items() if name not in own}
    return Entry(record=record, setting=setting, own=own, threads=plain(line, "threads"))


def _absorb(side: Side) -> None:
    """Puts rows that do not tell their threads, such as counts, to those of that setting that do, if these have one number."""
    by_key: dict[Key, list[str]] = defaultdict(list)
    for key, threads in side:
        by_key[key].append(threads)
    for key, found in by_key.items():
        if len(found) == 2 and "" in found:
            side[key, max(found)].lines += side.pop((key, "")).lines
        elif len(found) > 1:
            for threads in found:
                side[key, threads].among_threads = True


def _conflicts(entry: Entry) -> int:
    """Gives how many rows have a value that a newer row contradicts."""
    columns = declared_columns()[entry.name]
    newest: dict[tuple[str, str], Any] = {}
    found = 0
    for line in reversed(entry.lines):
        differs = False
        part = plain(line, entry.setting["by"]) if entry.record is Part else ""
        for column in columns:
            if (value := column.read(line, column.name)) is not None:
                known = newest.setdefault((part, column.name), value)
                same = stored.settled(known, value, better="equal", within=EXACT, rounding=CSV_ROUNDING)
                differs |= same.verdict != "unchanged"
        found += differs
    return found


def matched(base: Side, head: Side) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Yields the entries of both sides that belong together, and those that only one has.

    Threads tell settings apart where a machine was asked for several. Where each side has one number of them, they are what the
    machine has. Nor does it matter where something would have run that was only counted.
    """
    left = list(base.values()), list(head.values())
    for key in (_strictly, _with_any_threads, _anywhere):
        groups: dict[Any, tuple[list[Entry], list[Entry]]] = defaultdict(lambda: ([], []))
        for side, entries in enumerate(left):
            for entry in entries:
                groups[key(entry)][side].append(entry)
        left = [], []
        for before, after in groups.values():
            alone = len(before) == len(after) == 1
            if alone and (key is not _anywhere or before[0].counted or after[0].counted):
                yield before[0], after[0]
            else:
                left[0].extend(before)
                left[1].extend(after)
    yield from ((None, entry) for entry in left[1])
    yield from ((entry, None) for entry in left[0])


def _strictly(entry: Entry) -> tuple[Key, str]:
    return entry.key, entry.threads


def _with_any_threads(entry: Entry) -> Key:
    return entry.key


def _anywhere(entry: Entry) -> Key:
    name, setting = entry.key
    return name, tuple(item for item in setting if item[0] != "device")
