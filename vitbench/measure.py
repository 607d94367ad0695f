"""The verb behind `vitbench throughput`, `memory` and `bench`: models and settings in, one row each out, as soon as it is known.

Each measurement runs in a process of its own; what it does wrong is the status of its row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import product
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from vitbench import bench, device, environment, passes, published, timing, worker
from vitbench.errors import BadInput, NotSupported, VitbenchError, one_line
from vitbench.metrics import flops, throughput
from vitbench.records import Dtype, Machine, Mode, Row, RunSetting, Status, flatten
from vitbench.units import size as size_text

AUTO = "auto"

# With `auto`, the batch is doubled as long as that makes the model faster by this much.
_WORTH_DOUBLING = 1.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Models and settings to measure: every model with every size, batch size, dtype and number of threads.

    Attributes:
        models: names, each with whether timm's own model of that name is meant (see `build.plan`).
        metrics: of the shelf: "flops", "throughput", "memory".
        img_sizes, num_frames, input_shape: as `build.plan` takes them.
        batch_sizes: numbers, or "auto": doubled from 1 until the throughput rises no more, or memory runs out.
        where: the device, "auto" for the accelerator if there is one.
        dtypes: of the weights, or with `amp` of autocast.
        compile: backend or backend:mode of torch.compile.
        threads: inside an operator on the CPU, each None for torch's own number.
        rule: when a time is known.
        repeats: processes that measure the time, one after another.
        timeout_s: how long one process may take.
    """

    models: Sequence[tuple[str, bool]]
    metrics: Sequence[str] = ("throughput",)
    img_sizes: Sequence[tuple[int, int] | None] = (None,)
    num_frames: int | None = None
    input_shape: tuple[int, ...] | None = None
    batch_sizes: Sequence[int | Literal["auto"]] = (1,)
    where: str = AUTO
    dtypes: Sequence[Dtype] = ("fp32",)
    amp: bool = False
    mode: Mode = "infer"
    compile: str | None = None
    channels_last: bool = False
    grad_checkpointing: bool = False
    threads: Sequence[int | None] = (None,)
    rule: timing.Rule = timing.RULE
    repeats: int = 1
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row to be: a setting, how to build its model, and what to measure.

    Attributes:
        setting: complete, but for the input of a factory that states none.
        request: how `build.plan` gets the model.
        metrics, rule, repeats, timeout_s: as in `Ask`.
        problem: why it cannot be measured, if that is known already.
    """

    setting: RunSetting
    request: bench.Request
    metrics: tuple[str, ...]
    rule: timing.Rule
    repeats: int
    timeout_s: float
    problem: str = ""

    def at(self, batch_size: int) -> Job:
        """Gives the same job at another batch size."""
        return replace(
            self,
            setting=replace(self.setting, batch_size=batch_size),
            request=replace(self.request, batch_size=batch_size),
        )


Measure = Callable[[Job], Row]


def jobs(ask: Ask) -> list[Job]:
    """Gives a job for every row asked for.

    Raises:
        BadInput: no such device, or settings that exclude each other.
        NotSupported: this machine has no such device.
    """
    where = device.resolve(ask.where)
    if ask.amp and not {"fp32", "tf32"}.isdisjoint(ask.dtypes):
        raise BadInput("--amp runs some operators in another dtype: give it with --dtype bf16 or fp16.")
    if ask.grad_checkpointing and ask.mode != "train":
        raise BadInput("Gradient checkpointing goes with --mode train.")
    if AUTO in ask.batch_sizes and "throughput" not in ask.metrics:
        raise BadInput("A batch size of auto is looked for by the throughput: measure that too, or give numbers.")
    result: list[Job] = []
    settings = product(ask.models, ask.img_sizes, ask.dtypes, ask.batch_sizes, ask.threads)
    for (name, of_timm), img_size, dtype, batch, threads in settings:
        request = bench.Request(
            name=name, of_timm=of_timm, img_size=img_size, num_frames=ask.num_frames, input_shape=ask.input_shape
        )
        problem, shape = "", ask.input_shape or ()
        try:
            shape = bench.planned(request).input_shape or ()
        except VitbenchError as error:
            problem = str(error)
        setting = RunSetting(
            model=name,
            input_shape=tuple(shape),
            batch_size_asked=str(batch),
            device=str(where),
            dtype=dtype,
            amp=ask.amp,
            mode=ask.mode,
            compile=ask.compile,
            channels_last=ask.channels_last,
            grad_checkpointing=ask.grad_checkpointing,
            threads=threads or torch.get_num_threads(),
        )
        job = Job(
            setting=setting,
            request=request,
            metrics=tuple(ask.metrics),
            rule=ask.rule,
            repeats=ask.repeats,
            timeout_s=ask.timeout_s,
            problem=problem,
        )
        result.append(job.at(1 if batch == AUTO else int(batch)))
    return result


def measure(asked: Sequence[Job], *, isolated: bool = True) -> Iterator[Row]:
    """Measures jobs and yields their rows, each as soon as it is known.

    Args:
        asked: as `jobs` gives them.
        isolated: each measurement in a process of its own; False runs all in this one, for debuggers.
    """
    for job in asked:
        yield from rows(job, lambda one: measure_one(one, isolated=isolated))


def rows(job: Job, run: Measure) -> Iterator[Row]:
    """Yields the rows of a job: one, but for `auto` one a batch size, and for a batch that ran out of memory lower ones too.

    Args:
        job: what was asked.
        run: measures a job at its batch size.
    """
    row = run(job)
    yield row
    if job.setting.batch_size_asked == AUTO:
        fastest = 0.0
        while row.status == "ok" and speed(row) > fastest * _WORTH_DOUBLING:
            fastest = speed(row)
            job = job.at(2 * job.setting.batch_size)
            row = run(job)
            yield row
        return
    while row.status == "out_of_memory" and job.setting.batch_size > 1:
        job = job.at(job.setting.batch_size // 2)
        row = run(job)
        if row.status == "ok":
            asked = job.setting.batch_size_asked
            note = f"batch {asked} ran out of memory; this is {job.setting.batch_size}"
            row = replace(row, status="lowered", note="; ".join(filter(None, (note, row.note))))
        yield row


def speed(row: Row) -> float:
    """Gives the inputs a second of a row, be it measured here or read from a file."""
    return float(flatten(row)["throughput_per_s"])


def failed(row: Row) -> bool:
    """Tells whether a row lacks what was asked; that memory ran out where a search for the best batch ended is no failure."""
    setting = row.setting
    ended = isinstance(setting, RunSetting) and setting.batch_size_asked == AUTO and setting.batch_size > 1
    return row.status not in ("ok", "lowered") and not (ended and row.status == "out_of_memory")


def measure_one(job: Job, *, isolated: bool = True) -> Row:
    """Measures one job at its batch size; whatever goes wrong is the row's status and note."""
    about = environment.describe()
    row = Row(setting=job.setting, findings={}, environment=about)
    if job.problem:
        return replace(row, status="failed", note=job.problem)
    found: dict[str, Any] = {}
    notes: list[str] = []
    status: Status = "ok"
    machine: Machine | None = None
    setting = job.setting
    for metric in job.metrics:
        outcomes: list[Outcome] = []
        for number in range(job.repeats if metric == "throughput" else 1):
            task = Task(job=job, metric=metric, first=number == 0)
            outcome = _alone(task) if isolated else run_task(task)
            outcomes.append(outcome)
            if outcome.status != "ok":
                break
        last = outcomes[-1]
        setting, machine = last.setting or setting, last.machine or machine
        notes += [one.note for one in outcomes if one.note]
        if last.status == "ok" and metric == "throughput":
            runs = [one.found["run"] for one in outcomes]
            found["throughput"] = throughput.summarise(runs, setting, macs=outcomes[0].found["macs"])
        else:
            found.update(last.found)
        if status == "ok":
            status = last.status
    return replace(
        row, setting=setting, findings=found, machine=machine, status=status, note="; ".join(dict.fromkeys(notes))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one process does: one metric of a job.

    Attributes:
        first: whether it is the first of the repeats.
    """

    job: Job
    metric: str
    first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one process found: the metric's raw findings, or why there are none."""

    setting: RunSetting | None = None
    found: dict[str, Any] = field(default_factory=dict)
    machine: Machine | None = None
    status: Status = "ok"
    note: str = ""


def _alone(task: Task) -> Outcome:
    return worker.alone(run_isolated, task, timeout_s=task.job.timeout_s, failed=_without_result)


def _without_result(task: Task, status: worker.Failure, reason: str) -> Outcome:
    return Outcome(status=status, note=f"{task.metric}: {reason}" if len(task.job.metrics) > 1 else reason)


def run_isolated(task: Task) -> Outcome:
    """Runs a task in this process, which is its own: it may use all the memory that is left, and no more."""
    worker.end_with_parent()
    if task.job.setting.device == "cpu":
        device.limit_memory()
    return run_task(task)


def run_task(task: Task) -> Outcome:
    """Runs a task in this process; errors become the outcome's status and note."""
    job = task.job
    try:
        return KINDS[task.metric].run(task)
    except NotSupported as error:
        return Outcome(status="unsupported", note=str(error))
    except VitbenchError as error:
        if error.__cause__ is not None and device.out_of_memory(error.__cause__):
            return Outcome(status="out_of_memory", note=one_line(error))
        return Outcome(status="failed", note=str(error))
    except Exception as error:
        # Whatever a model raises is the answer to whether it runs that way.
        if device.out_of_memory(error):
            return Outcome(status="out_of_memory", note=one_line(error))
        how = f" compiled by {job.setting.compile}" if job.setting.compile else ""
        shape = size_text((job.setting.batch_size, *job.setting.input_shape))
        return Outcome(status="failed", note=f"{job.setting.model} cannot run{how} on {shape}: {one_line(error)}.")


def _count(task: Task) -> Outcome:
    row = bench.count_one(task.job.request)
    setting = replace(task.job.setting, input_shape=row.setting.input_shape)
    return Outcome(setting=setting, found=dict(row.findings), status=row.status, note=row.note)


def _time(task: Task) -> Outcome:
    setting, model = _built(task.job)
    macs = None
    if task.first:
        # A model that cannot be counted has no share of the peak; whether it runs, the run itself says.
        with suppress(Exception):
            macs = flops.count_flops(model, setting.input_shape, batch_size=setting.batch_size).macs
    where = torch.device(setting.device)
    with _fresh_compiler_cache() if setting.compile else nullcontext():
        run = throughput.measure(passes.laid_out(model, setting), setting, rule=task.job.rule)
    return Outcome(setting=setting, found={"run": run, "macs": macs}, machine=device.machine(where))


@contextmanager
def _fresh_compiler_cache() -> Iterator[None]:
    """Has torch.compile begin from nothing: what an earlier run left on the disk would make it seem quick."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with TemporaryDirectory(prefix="vitbench-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
            if before is not None:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


def _built(job: Job) -> tuple[RunSetting, torch.nn.Module]:
    """Gives the model on the CPU, and the setting with its input."""
    setting = job.setting
    device.prepare(torch.device(setting.device), setting.dtype, setting.threads)
    model = bench.planned(job.request).build()
    shape = setting.input_shape or bench.stated_input(model, job.request)
    return replace(setting, input_shape=shape), model


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How a metric of the shelf is measured, and what comes of it.

    Attributes:
        run: measures it.
        records: whose columns it fills, in their order.
        exact: counted, not timed: the same on every machine, whatever else that does meanwhile.
    """

    run: Callable[[Task], Outcome]
    records: tuple[type[Any], ...]
    exact: bool = False


KINDS = {
    "flops": Kind(run=_count, records=(flops.Flops, published.Beside), exact=True),
    "throughput": Kind(run=_time, records=(throughput.Throughput,)),
}
"""A kind for every metric of the shelf."""
