"""The verb behind `vitbench check`: a suite against a baseline in a file, and its times against a revision, in one comparison.

What does not depend on the machine, or hardly, is measured and compared with the baseline's rows. Times never are: those of
another run tell nothing of the code. Both sides are timed in turn, by `ab`.
"""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vitbench import ab, compare, results, sweep
from vitbench.changes import Change, Comparison, ranked
from vitbench.errors import BadInput
from vitbench.findings import Throughput
from vitbench.judging import discoveries, duel, matching, sides, stored
from vitbench.measure import AUTO, KINDS, Job
from vitbench.records import EXACT, RunSetting, columns, headings
from vitbench.results import Line
from vitbench.running import environment
from vitbench.suite import Suite, Threshold
from vitbench.sweep import Item
from vitbench.units import size as size_text

HERE = "here"
"""What the head is called: the code of this Python and the current folder."""

# Columns that are not judged, without which others cannot be.
_BESIDE = ("max_batch_method", "limit_bytes", "modules")
_VERSIONS = ("environment_vitbench", "environment_torch", "environment_timm")
# Of the environment, what is another each time.
_MOMENTARY = tuple(f"environment_{name}" for name in ("time", "command", "commit", "dirty", "clock_mhz"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """What the times of a suite are compared with.

    Attributes:
        commit: the merge base of HEAD and a revision; empty where there is none.
        told: a sentence on it, or on why there is none and what to do.
        here: whether it is the code that is here.
    """

    commit: str = ""
    told: str
    here: bool = False


def merge_base(revision: str, folder: Path) -> Revision:
    """Gives the commit at which HEAD left a revision of the repository that a folder is in."""
    advice = "in GitHub Actions check out with fetch-depth: 0, elsewhere fetch it, or give another by --against"
    if environment.git(folder, "rev-parse", "--show-toplevel") is None:
        return Revision(told="there is no git repository here to time another revision of")
    # What a user gave is no option of git's.
    named = environment.git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not named:
        return Revision(told=f"there is no revision {revision} here: {advice}")
    commit = environment.git(folder, "merge-base", "HEAD", named)
    if not commit:
        return Revision(told=f"HEAD and {revision} have no commit in common here: {advice}")
    told = f"Times are compared with {commit[:12]}, where HEAD left {revision}"
    # Files that git does not know cannot be what a suite of that commit measures.
    # Where git cannot tell, there may be changes.
    changed = environment.git(folder, "status", "--porcelain", "--untracked-files=no") != ""
    here = commit == environment.git(folder, "rev-parse", "HEAD") and not changed
    return Revision(commit=commit, told=f"{told}{'; here are uncommitted changes' if changed else ''}.", here=here)


def plan(suite: Suite) -> tuple[list[Item], list[Job]]:
    """Gives what a suite asks to count or to measure without a clock, and what it asks to time.

    Raises:
        BadInput: a run names models or settings that there are not, or that no check can compare.
    """
    counted: dict[str, Item] = {}
    timed: list[Job] = []
    for item in sweep.plan(suite):
        job = item.job
        if job.setting.batch_size_asked == AUTO:
            raise BadInput(f"{suite.name}: a check cannot look for the best batch size, which is another each time.")
        if untimed := tuple(metric for metric in job.metrics if not _timed(metric)):
            item = replace(item, job=replace(job, metrics=untimed))
            counted.setdefault(item.key, item)
        if len(untimed) < len(job.metrics):
            if "roofline" in job.metrics:
                raise BadInput(f"{suite.name}: a check compares no rooflines: ask for throughput.")
            if job.request.of_timm:
                raise BadInput(f"{suite.name}: a check times models by their names: give them in models, not in timm.")
            timed.append(job)
    return list(counted.values()), timed


def _timed(metric: str) -> bool:
    return "time" in KINDS[metric].steps


class Check:
    """A suite against a baseline and a revision; what is measured when it is interrupted is not lost.

    Attributes:
        counted: what is measured for the baseline.
        timed: what is timed on both sides.
        rows: of `counted`, as far as they are known.
        problem: why the baseline that is written anew could not be read; empty where it could.
    """

    def __init__(
        self,
        suite: Suite,
        *,
        baseline: Path | None,
        revision: Revision,
        today: datetime.date,
        update: bool = False,
        command: str = "",
    ) -> None:
        """Reads the baseline and checks what is asked.

        Args:
            suite: what to measure.
            baseline: the file that `counted` is compared with.
            revision: what times are compared with.
            today: after which day an expected change is not excused any more.
            update: whether the baseline is about to be written: it need not be there, nor whole.
            command: what was typed, for the report.

        Raises:
            BadInput: there is no baseline, or it is damaged, or the suite asks for what no check can compare.
        """
        self._suite = suite
        self._revision = revision
        self._today = today
        self._command = command
        self._update = update
        self._contests: list[ab.Contest] = []
        self._untimed: list[Change] = []
        self.counted, self.timed = plan(suite)
        # Of `timed`, those of which there is nothing to tell yet.
        self._waiting = [] if update else list(self.timed)
        self.rows: list[Line] = []
        self.problem = ""
        self._name, self._base = revision.commit[:12] or "a revision", []
        if self.counted:
            if baseline is None:
                raise BadInput(
                    "Give --baseline, a JSON file to compare the counts with, such as results/baseline.json."
                )
            self._name = str(baseline)
            self._base = self._read(baseline, update=update)
        elif update:
            raise BadInput(f"{suite.name} asks for times alone, which no baseline keeps.")

    def _read(self, baseline: Path, *, update: bool) -> list[Line]:
        if update and baseline.suffix.lower() != ".json":
            raise BadInput(f"Cannot write {baseline}: a baseline is a JSON file, such as baseline.json.")
        if not baseline.exists():
            if update:
                return []
            raise BadInput(f"There is no baseline {baseline}: make it by the same command with --update.")
        try:
            rows = results.load(baseline)
            # A cell that cannot be read is told before anything is measured, too.
            compare.compare(rows, rows, base_name=self._name, head_name=self._name)
            return rows
        except BadInput as error:
            # As a merge leaves it that two sides have changed: made anew, whatever stands there.
            if not update:
                raise
            self.problem = str(error)
            return []

    def count(self, *, jobs: int) -> Generator[Item, None, None]:
        """Measures `counted`, as a sweep does, and yields each item when it is done.

        Args:
            jobs: how many are counted side by side.
        """
        with tempfile.TemporaryDirectory(prefix="vitbench-") as name:
            folder = Path(name) / "check"
            with sweep.opened(folder, self._suite, self.counted) as taking:
                try:
                    yield from sweep.run(self.counted, taking, jobs=jobs)
                finally:
                    lines = folder / sweep.LINES
                    self.rows = results.read(lines) if lines.exists() else []

    def time(self, *, say: sides.Say, tell: ab.Tell) -> None:
        """Times `timed` here and at the revision; arguments as of `ab.Contest.run`."""
        if not self._revision.commit or self._revision.here:
            missing = not self._revision.commit
            note = f"not measured: {self._revision.told}" if missing else "the same commit: nothing to time"
            self._untimed = [_untimed(job.setting, note, missing=missing) for job in self.timed]
            self._waiting = []
            return
        specs = sides.parse(f"git:{self._revision.commit}"), sides.parse(sides.HERE)
        # A contest has one setting for all its models.
        asks: dict[tuple[sides.Options, float, float], list[Job]] = {}
        for job in self.timed:
            asks.setdefault((_options(job), self._threshold(job), job.timeout_s), []).append(job)
        for (options, threshold, timeout_s), of_contest in asks.items():
            contest = ab.Contest(
                ab.Ask(
                    models=[job.setting.model for job in of_contest],
                    a=specs[0],
                    b=specs[1],
                    options=options,
                    rule=duel.Rule(budget_s=self._suite.against.budget, threshold=threshold),
                    timeout_s=timeout_s,
                )
            )
            try:
                contest.run(say=say, tell=tell)
            except BadInput as error:
                self._untimed += [_untimed(job.setting, f"not measured: {error}") for job in of_contest]
                self._waiting = [job for job in self._waiting if job not in of_contest]
            finally:
                # Also what is interrupted tells of all its models.
                if contest.measured:
                    self._contests.append(contest)
                    self._waiting = [job for job in self._waiting if job not in of_contest]

    def _threshold(self, job: Job) -> float:
        fitting = [one.within for one in self._of_times if fnmatchcase(job.setting.model, one.models)]
        return fitting[-1] if fitting else duel.RULE.threshold

    @property
    def _of_times(self) -> list[Threshold]:
        return [one for one in self._suite.thresholds if one.metric == ab.COLUMN]

    def comparison(self) -> Comparison:
        """Gives what is known so far, with what is expected marked.

        Raises:
            BadInput: a cell of the baseline cannot be read.
        """
        thresholds = [
            compare.Threshold(metric=one.metric, models=one.models, relative=one.within)
            for one in self._suite.thresholds
            if one.metric != ab.COLUMN
        ]
        counts = Comparison(base=self._name, head=HERE, changes=())
        if self.counted:
            counts = compare.compare(self._base, self.rows, base_name=self._name, head_name=HERE, thresholds=thresholds)
        times = [contest.comparison(alone=False) for contest in self._contests]
        changes = [*counts.changes, *_failed(self._base, self.rows), *self._untimed]
        changes += [_untimed(job.setting, "not measured: interrupted") for job in self._waiting]
        in_turn, corrected = discoveries.corrected([change for one in times for change in one.changes])
        changes += in_turn
        marked, notes = self._marked(changes)
        told = [] if self._update else self._told_of_times()
        # Said already, in the words of a check.
        known = f"git:{self._revision.commit} is commit"
        told += [note for one in times for note in one.notes if not note.startswith(known)]
        told += corrected
        return Comparison(
            base=self._name,
            head=HERE,
            changes=ranked(marked),
            # A baseline tells the versions, and of the machine no more than its rows depend on.
            differences={
                name: both for name, both in _joined(one.differences for one in (*times, counts)).items() if both[0]
            },
            environment=_joined(one.environment for one in (*times, counts)),
            notes=tuple(dict.fromkeys([*notes, *counts.notes, *told])),
            commands=(self._command,) if self._command else (),
        )

    def _told_of_times(self) -> list[str]:
        """Gives sentences on what was timed against what, and on thresholds for what is not timed."""
        idle = [
            f"The threshold {one.metric}:{one.models}={one.within * 100:g}% fits no model that is timed."
            for one in self._of_times
            if not any(fnmatchcase(job.setting.model, one.models) for job in self.timed)
        ]
        if not self.timed or not self._revision.commit:
            return idle
        if self._revision.here:
            return [*idle, f"Nothing was timed: here is {self._revision.commit[:12]} itself, with no change."]
        return [*idle, self._revision.told]

    def _marked(self, changes: Sequence[Change]) -> tuple[list[Change], list[str]]:
        """Gives the changes with the reasons for which they are expected, and what is to be said of the suite's entries."""
        notes: list[str] = []
        marked = list(changes)
        for number, entry in enumerate(self._suite.expected):
            place = f"{self._suite.name}: expected[{number}] ({entry.metric} of {entry.model}: {entry.reason})"
            if self._today > entry.until:
                notes.append(f"{place} expired on {entry.until} and excuses nothing any more.")
                continue
            fitting = [index for index, one in enumerate(marked) if one.verdict != "unchanged" and entry.fits(one)]
            for index in fitting:
                marked[index] = replace(marked[index], expected=marked[index].expected or entry.reason)
            # What is updated has timed nothing.
            if not fitting and not (self._update and fnmatchcase(ab.COLUMN, entry.metric)):
                notes.append(f"{place} fits no change: take it out.")
        return marked, notes

    @property
    def measured(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.rows or self._contests)

    @property
    def failures(self) -> int:
        """How many rows of `counted` lack what was asked."""
        return sum(map(_fails, self.rows))

    @property
    def anew(self) -> bool:
        """Whether there are no rows to compare with."""
        return not self._base

    def baseline(self) -> str:
        """Gives the baseline that the rows make: the same text for the same code, whenever and wherever it is made.

        A value that may vary a little stays as it was where it has not changed by more than its tolerance. Rows that failed are
        left out.
        """
        done = [row for row in self.rows if not _fails(row)]
        several = len({row["threads"] for row in done}) > 1
        notes: list[str] = []
        pairs = matching.matched(matching.side(self._base, "", notes), matching.side(done, "", notes))
        old = {id(line): before for before, after in pairs if before and after for line in after.lines}
        return _written([_kept(row, old.get(id(row)), threads=several) for row in sorted(done, key=_order)])


def _fails(row: Line) -> bool:
    return results.text(row, "status") not in ("ok", "lowered")


def _failed(base: Sequence[Line], head: Sequence[Line]) -> Iterator[Change]:
    """Yields the rows that failed and of which the baseline knows nothing: they were asked for, and are not there."""
    for before, after in matching.matched(matching.side(base, "", []), matching.side(head, "", [])):
        if after is not None and after.failure and (before is None or before.failure):
            yield Change(
                setting=after.shown(),
                column="",
                heading="",
                judged="exact",
                better=None,
                verdict="missing",
                note=after.failure,
            )


def _joined(found: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for one in found for name, value in one.items()}


def _options(job: Job) -> sides.Options:
    setting = job.setting
    return sides.Options(
        device=setting.device,
        dtype=setting.dtype,
        amp=setting.amp,
        mode="train" if setting.mode == "train" else "infer",
        compile=setting.compile,
        channels_last=setting.channels_last,
        grad_checkpointing=setting.grad_checkpointing,
        threads=setting.threads,
        batch_size=setting.batch_size,
        img_size=job.request.img_size,
        num_frames=job.request.num_frames,
        input=job.request.input_shape,
    )


def _untimed(setting: RunSetting, note: str, *, missing: bool = True) -> Change:
    found = columns(setting)
    shown = ("model", "input_shape", "batch_size", "device", "dtype", "mode")
    rest = [name for name, value in found.items() if name not in (*shown, "batch_size_asked") and value]
    texts = {name: size_text(found[name]) if name == "input_shape" else str(found[name]) for name in (*shown, *rest)}
    return Change(
        setting=texts,
        column=ab.COLUMN,
        heading=headings(Throughput)[ab.COLUMN],
        judged="timed",
        better="higher",
        verdict="missing" if missing else "unchanged",
        note=note,
    )


def _kept(row: Line, old: matching.Entry | None, *, threads: bool) -> dict[str, Any]:
    """Gives the columns of a row that a baseline has, in the order of their records."""
    judged = {column.name: column for found in matching.declared_columns().values() for column in found}
    names = [name for name in row if (name in judged and not judged[name].timed) or name in _BESIDE]
    kept = _key(row, threads=threads)
    kept |= {name: row[name] for name in names if row[name] is not None}
    near = [name for name in names if name in judged and row[name] is not None and _near(judged[name], row)]
    machine = [name for name in row if name.startswith("environment_") and name not in (*_MOMENTARY, *_VERSIONS)]
    sources = {name: (old.newest(name) if old else None) or row for name in near}
    if not all(_same(judged[name], source, row) for name, source in sources.items()):
        sources = dict.fromkeys(near, row)
    kept |= {name: source[name] for name, source in sources.items()}
    about: Mapping[str, Any] = next(iter(sources.values()), {})
    kept |= {name: about[name] for name in machine if about.get(name) is not None}
    return kept | {name: row[name] for name in _VERSIONS}


def _key(row: Mapping[str, Any], *, threads: bool) -> dict[str, Any]:
    """Gives what tells a row from others, without what is as it is by default, and threads that nobody asked several of."""
    usual = {item.name: item.default for item in fields(RunSetting) if item.metadata["key"]}
    found = {name: row[name] for name, default in usual.items() if row[name] != default}
    if found.get("batch_size_asked") == str(row["batch_size"]):
        del found["batch_size_asked"]
    found.pop("threads", None)
    return found | ({"threads": row["threads"]} if threads else {})


def _near(column: matching.Column, row: Line) -> bool:
    return column.declared(row) != EXACT


def _same(column: matching.Column, old: Line, row: Line) -> bool:
    values = column.read(old, column.name), column.read(row, column.name)
    if None in values:
        return False
    judgement = stored.settled(*values, better=column.better, within=column.declared(old))
    return judgement.verdict == "unchanged"


def _written(rows: Sequence[Mapping[str, Any]]) -> str:
    """Gives rows as JSON, a column a line, so that a difference of two versions reads as what changed."""
    texts = [",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in row.items()) for row in rows]
    return "[\n" + ",\n".join(f" {{\n{text}\n }}" for text in texts) + "\n]\n"


def _order(row: Mapping[str, Any]) -> list[str]:
    # Numbers by size: text sorts 16 before 8.
    values = [row[name] for name in headings(RunSetting)]
    return [f"{value:12}" if isinstance(value, int) else json.dumps(value) for value in values]
