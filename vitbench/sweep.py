"""The verb behind `vitbench sweep`: a suite in, rows out, each in its file before the next is begun.

The folder of a sweep explains itself, and a sweep that was killed goes on in it: `results.jsonl` is the truth, a line a row.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, get_args, get_origin, get_type_hints

import torch
from filelock import FileLock, Timeout

from vitbench import measure, results
from vitbench.errors import BadInput, CannotWrite, NotSupported, UnknownName, one_line
from vitbench.measure import KINDS, Job
from vitbench.metrics import METRICS
from vitbench.records import Dtype, Environment, Machine, Row, RunSetting, Table, columns, flatten, headings
from vitbench.reports import csv
from vitbench.running import device, environment, worker
from vitbench.suite import Suite

LINES = "results.jsonl"
TABLE = "results.csv"
SUITE = "suite.toml"
LOCK = "sweep.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One job of a sweep.

    Attributes:
        job: what is measured.
        roams: whether any accelerator of the job's kind will do.
    """

    job: Job
    roams: bool

    @property
    def asked(self) -> dict[str, Any]:
        """What tells the item from others; with a batch size, it tells a row from others."""
        setting = columns(self.job.setting)
        # Which batch was run, on which of several accelerators, and the input that a factory's model states, are found out.
        del setting["batch_size"]
        if self.roams:
            setting["device"] = setting["device"].partition(":")[0]
        setting["input_shape"] = setting["input_shape"] or self.job.request.img_size or ()
        job = self.job
        return setting | {
            "metrics": job.metrics,
            "of_timm": job.request.of_timm,
            "num_frames": job.request.num_frames,
            "limit_bytes": job.limit_bytes,
            "repeats": job.repeats,
            "min_time_s": job.rule.min_time_s,
        }

    @property
    def key(self) -> str:
        """The same, as text."""
        return _key(self.asked)

    def on(self, where: str) -> Item:
        """Gives the same item with its job on one of the accelerators."""
        return replace(self, job=replace(self.job, setting=replace(self.job.setting, device=where)))


def _key(asked: Mapping[str, Any]) -> str:
    return json.dumps(asked, sort_keys=True)


def plan(suite: Suite, *, where: str | None = None, dtype: Dtype | None = None) -> list[Item]:
    """Gives what a suite asks to measure, in its order, each setting once.

    Args:
        suite: as `suite.read` gives it.
        where: another device than the suite's.
        dtype: another dtype than the suite's.

    Raises:
        BadInput: a run of the suite names models or settings that there are not, or that exclude each other.
        NotSupported: this machine has no such device.
    """
    if where is not None:
        # What is only predicted is also predicted for a device that is not here; whether that will do, the jobs say.
        with suppress(NotSupported):
            device.resolve(where)
    items: dict[str, Item] = {}
    for number, run in enumerate(suite.runs):
        try:
            ask = run.ask(device=where, dtype=dtype)
            jobs = measure.jobs(ask)
        except (BadInput, NotSupported, UnknownName) as error:
            raise BadInput(f"{suite.name}: run[{number}]: {error}") from error
        for job in jobs:
            item = Item(job=job, roams=":" not in ask.where and job.setting.device != "cpu")
            items.setdefault(item.key, item)
    return list(items.values())


@contextmanager
def opened(
    path: Path, suite: Suite, items: Sequence[Item], *, resume: bool = False, retry: bool = False
) -> Iterator[Folder]:
    """Gives the folder of a sweep, which is this process's alone meanwhile; the system ends that when the process is killed.

    Args:
        path: made if it is not there.
        suite: a copy of it is put into the folder.
        items: all that is asked.
        resume: whether the folder may hold rows, which are then not measured again.
        retry: of these, measure again those that `measure.failed`.

    Raises:
        BadInput: another sweep has the folder, or it holds results and `resume` is not asked, or these are damaged.
        CannotWrite: the folder cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BadInput(f"Another sweep is writing to {path}: wait for its end, or give another folder.") from error
    except OSError as error:
        raise CannotWrite(f"Cannot write to the folder {path}: {error.strerror}.") from error
    try:
        held = [name for name in (LINES, TABLE) if (path / name).exists() and (path / name).stat().st_size]
        if held and not resume:
            raise BadInput(f"{path} holds results: go on with them by --resume, or give another folder.")
        if held == [TABLE]:
            raise BadInput(
                f"{path} holds {TABLE} without {LINES}, so that nothing can be resumed: give another folder."
            )
        folder = Folder(path, items, retry=retry)
        results.write(path / SUITE, suite.text)
        yield folder
    finally:
        lock.release()


class Folder:
    """What a sweep has measured. Several threads may add to it; each row is on the disk when `add` returns."""

    def __init__(self, path: Path, items: Sequence[Item], *, retry: bool) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._places = {item.key: place for place, item in enumerate(items)}
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}
        # Of the suite and of what stands in the file, so that the columns stay when the sweep is gone on with.
        metrics = {metric for item in items for metric in item.job.metrics}
        for flat in _read(path / LINES):
            try:
                _row(flat)
                self._rows[_key(flat["asked"]), flat["batch_size"]] = flat
                metrics.update(flat["asked"]["metrics"])
            except (KeyError, TypeError, AttributeError) as error:
                raise BadInput(f"{flat.where} is no row of a sweep ({one_line(error)}).") from error
        self._again = {key for key, flat in self._rows.items() if retry and measure.failed(_row(flat))}
        self._columns = _columns([name for name in METRICS.names if name in metrics])
        if self._rows:
            self._render()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def failures(self) -> int:
        """How many rows lack what was asked."""
        return sum(measure.failed(_row(flat)) for (key, _), flat in self._rows.items() if key in self._places)

    def find(self, item: Item, batch_size: int) -> Row | None:
        """Gives the row of an item at a batch size, if it is there and shall not be measured again."""
        key = item.key, batch_size
        return _row(self._rows[key]) if key in self._rows and key not in self._again else None

    def done(self, item: Item) -> bool:
        """Tells whether all rows of an item are there."""

        def known(job: Job) -> Row:
            row = self.find(item, job.setting.batch_size)
            if row is None:
                raise LookupError
            return row

        try:
            deque(measure.rows(item.job, known), maxlen=0)
        except LookupError:
            return False
        return True

    def add(self, item: Item, row: Row) -> None:
        """Writes a row; one that was measured again takes the place of the old one.

        Raises:
            CannotWrite: the folder cannot be written, or the disk is full.
        """
        flat = dict.fromkeys(self._columns) | flatten(row) | {"asked": item.asked}
        line = _json(flat)
        key = item.key, row.setting.batch_size
        with self._lock:
            again = key in self._rows
            self._rows[key] = json.loads(line)
            if again:
                self._rewrite()
            else:
                results.append(self._path / LINES, line)
            self._again.discard(key)
            self._render()

    def keep(self, item: Item, batch_sizes: Set[int]) -> None:
        """Takes out the rows of an item at other batch sizes: those of an earlier try, lowered from a batch that now fits."""
        with self._lock:
            others = [key for key in self._rows if key[0] == item.key and key[1] not in batch_sizes]
            for key in others:
                del self._rows[key]
            if others:
                self._rewrite()
                self._render()

    def _rewrite(self) -> None:
        results.write(self._path / LINES, "".join(f"{_json(one)}\n" for one in self._rows.values()))

    def _render(self) -> None:
        """Writes the table: its rows are in the order of the suite, in which order ever they were measured."""
        last = len(self._places)
        ordered = sorted(self._rows.items(), key=lambda entry: self._places.get(entry[0][0], last))
        names = [name for name, kind in self._columns.items() if not _is_list(kind)]
        rows = [{name: _cell(flat.get(name)) for name in names} for _, flat in ordered]
        results.write(self._path / TABLE, csv.render(Table(rows=rows, columns=())))


def _columns(metrics: Sequence[str]) -> dict[str, Any]:
    """Gives the columns of every row, whatever became of it, each with its type."""
    kinds: dict[str, Any] = {}
    records: list[type[Any]] = [RunSetting, *(record for metric in metrics for record in KINDS[metric].records)]
    for record in records:
        kinds |= _typed(record)
    kinds |= {"status": str, "note": str}
    for record in (Environment, Machine):
        kinds |= {f"environment_{name}": kind for name, kind in _typed(record).items()}
    return kinds


def _is_list(kind: Any) -> bool:
    """Tells whether a column holds lists, or lists or nothing: they are for JSON alone."""
    return list in (get_origin(one) for one in (kind, *get_args(kind)))


def _typed(record: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(record)
    return {name: hints[name] for name in headings(record)}


def _read(path: Path) -> list[results.Line]:
    if not path.exists():
        return []
    results.drop_torn_line(path)
    return results.read(path) if path.stat().st_size else []


def _json(flat: Mapping[str, Any]) -> str:
    return json.dumps(flat, ensure_ascii=False, allow_nan=False)


def _cell(value: Any) -> Any:
    """Gives a value as the records have it: JSON knows no tuples."""
    return tuple(value) if isinstance(value, list) else value


def _row(flat: Mapping[str, Any]) -> Row:
    """Gives a row as it was before it was a line."""
    names = headings(RunSetting)
    return Row(
        setting=RunSetting(**{name: _cell(flat[name]) for name in names}),
        findings={"read": {name: value for name, value in flat.items() if name not in names}},
        status=flat["status"],
        note=flat["note"],
    )


def run(items: Sequence[Item], folder: Folder, *, jobs: int) -> Generator[Item, None, None]:
    """Measures items and yields each once its rows are in the folder.

    First what is counted and predicted, side by side; then what is measured on the CPU, one after another with
    nothing beside it; then what runs on accelerators, one at a time on each.

    Args:
        items: those that are not done.
        folder: takes the rows.
        jobs: how many items are counted side by side.

    Raises:
        CannotWrite: the folder cannot be written.
    """
    environment.describe()  # once, before several threads ask
    counted = [item for item in items if item.job.exact]
    on_cpu = [item for item in items if not item.job.exact and item.job.setting.device == "cpu"]
    elsewhere = [item for item in items if not item.job.exact and item.job.setting.device != "cpu"]
    yield from _side_by_side(counted, [None] * min(jobs, len(counted)), folder)
    yield from _side_by_side(on_cpu, [None], folder)
    yield from _side_by_side(elsewhere, _accelerators(elsewhere), folder)


def _accelerators(items: Sequence[Item]) -> list[str]:
    found = {item.job.setting.device for item in items}
    for kind in {item.job.setting.device.partition(":")[0] for item in items if item.roams}:
        found |= {f"{kind}:{number}" for number in range(torch.accelerator.device_count())}
    return sorted(found)


def _side_by_side(items: Sequence[Item], lanes: Sequence[str | None], folder: Folder) -> Generator[Item, None, None]:
    """Measures items in lanes and yields them as they are done.

    Args:
        items: in the order in which they are begun.
        lanes: threads that measure one item at a time, each in a process; a lane that is an accelerator takes only what may run
            there.
        folder: takes the rows.
    """
    waiting = list(items)
    taking = threading.Lock()
    stopped = threading.Event()
    ended: SimpleQueue[Item | BaseException] = SimpleQueue()

    def take(where: str | None) -> Item | None:
        with taking:
            fits = (one for one in waiting if where is None or one.roams or one.job.setting.device == where)
            item = next(fits, None)
            if item is not None:
                waiting.remove(item)
            return item

    def lane(where: str | None) -> None:
        try:
            while not stopped.is_set() and (item := take(where)) is not None:
                _measure(item if where is None else item.on(where), folder)
                ended.put(item)
        except BaseException as error:  # whatever it is, it is raised where the sweep is waited for
            ended.put(error)

    threads = [threading.Thread(target=lane, args=[where], daemon=True) for where in lanes]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            one = ended.get()
            if isinstance(one, BaseException):
                raise one
            yield one
    finally:
        # Reached early when the reader stops, the user interrupts or a lane breaks: no process shall go on.
        stopped.set()
        for thread in threads:
            while thread.is_alive():
                worker.cancel()
                thread.join(0.05)


def _measure(item: Item, folder: Folder) -> None:
    def one(job: Job) -> Row:
        return folder.find(item, job.setting.batch_size) or measure.measure_one(job)

    found = set()
    for row in measure.rows(item.job, one):
        found.add(row.setting.batch_size)
        if folder.find(item, row.setting.batch_size) is None:
            folder.add(item, row)
    folder.keep(item, found)
