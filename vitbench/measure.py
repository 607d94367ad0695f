"""The verb behind `vitbench throughput`, `memory` and `bench`: models and settings in, one row each out, as soon as it is known.

Each measurement runs in a process of its own; what it does wrong is the status of its row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import product
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from vitbench import bench
from vitbench.errors import BadInput, NotSupported, UnknownName, VitbenchError, one_line
from vitbench.findings import Agreement, Beside, Fingerprint, MaxBatch, Measured, Predicted, Roofline, Throughput
from vitbench.metrics import fingerprint, flops, max_batch, memory, roofline, throughput
from vitbench.records import Dtype, Machine, Mode, Row, RunSetting, Status, flatten
from vitbench.running import device, environment, timing, worker
from vitbench.units import memory as memory_text
from vitbench.units import size as size_text

AUTO = "auto"

# With `auto`, the batch is doubled as long as that makes the model faster by this much.
_WORTH_DOUBLING = 1.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Models and settings to measure: every model with every size, batch size, dtype and number of threads.

    Attributes:
        models: names, each with whether timm's own model of that name is meant (see `build.plan`).
        metrics: of the shelf; `KINDS` says how each is measured.
        img_sizes, num_frames, input_shape: as `build.plan` takes them.
        batch_sizes: numbers, or "auto": doubled from 1 until the throughput rises no more, or memory runs out.
        where: the device, "auto" for the accelerator if there is one.
        dtypes: of the weights, or with `amp` of autocast.
        compile: backend or backend:mode of torch.compile.
        threads: inside an operator on the CPU, each None for torch's own number.
        limit_bytes: the memory for which "max_batch" is predicted; None to measure it.
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
    limit_bytes: int | None = None
    rule: timing.Rule = timing.RULE
    repeats: int = 1
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row to be: a setting, how to build its model, and what to measure.

    Attributes:
        setting: complete, but for the input of a factory that states none.
        request: how `build.plan` gets the model.
        metrics, limit_bytes, rule, repeats, timeout_s: as in `Ask`.
        problem: why it cannot be measured, if that is known already.
    """

    setting: RunSetting
    request: bench.Request
    metrics: tuple[str, ...]
    limit_bytes: int | None
    rule: timing.Rule
    repeats: int
    timeout_s: float
    problem: str = ""

    @property
    def exact(self) -> bool:
        """Whether nothing is run: it may be found beside other work."""
        return all(_exact(metric, self.limit_bytes) for metric in self.metrics)

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
        UnknownName: there is no such model.
        NotSupported: this machine has no such device.
    """
    where = _where(ask)
    if ask.amp and not {"fp32", "tf32"}.isdisjoint(ask.dtypes):
        raise BadInput("--amp runs some operators in another dtype: give it with --dtype bf16 or fp16.")
    if "tf32" in ask.dtypes and where.type != "cuda":
        raise BadInput(f"TF32 is a way of CUDA devices to multiply; {where.type} has fp32, bf16 and fp16.")
    if ask.grad_checkpointing and ask.mode != "train":
        raise BadInput("Gradient checkpointing goes with --mode train.")
    if ask.mode == "train" and not {"roofline", "fingerprint"}.isdisjoint(ask.metrics):
        raise BadInput("A roofline and a fingerprint are of a forward pass: they go with --mode infer.")
    if "roofline" in ask.metrics and (ask.amp or ask.compile):
        raise BadInput("A roofline is of the operators as the model calls them: leave out --amp and --compile.")
    if AUTO in ask.batch_sizes and not _timed(ask.metrics):
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
        except UnknownName:
            raise  # a misspelt name is told before anything is measured
        except VitbenchError as error:
            problem = str(error)
        setting = RunSetting(
            model=name,
            input_shape=tuple(shape),
            batch_size_asked="max" if set(ask.metrics) == {"max_batch"} else str(batch),
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
            limit_bytes=ask.limit_bytes,
            rule=ask.rule,
            repeats=ask.repeats,
            timeout_s=ask.timeout_s,
            problem=problem,
        )
        result.append(job.at(1 if batch == AUTO else int(batch)))
    return result


def _where(ask: Ask) -> torch.device:
    if "max_batch" in ask.metrics and ask.where == AUTO:
        here = device.resolve(AUTO)
        if not ask.limit_bytes and here.type == "cpu":
            raise BadInput("There is no accelerator to measure on; give --memory, such as 24GiB, to have it predicted.")
        # Whoever plans for so much memory has a card in mind; the machine that predicts need not have it.
        return here if here.type != "cpu" else torch.device("cuda")
    try:
        return device.resolve(ask.where)
    except NotSupported:
        # What runs nothing needs no device.
        if all(_exact(metric, ask.limit_bytes) for metric in ask.metrics):
            return torch.device(ask.where)
        raise


def _timed(metrics: Sequence[str]) -> bool:
    return any("time" in KINDS[metric].steps for metric in metrics)


def _exact(metric: str, limit_bytes: int | None) -> bool:
    return KINDS[metric].exact or (metric == "max_batch" and limit_bytes is not None)


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
    while row.status == "out_of_memory" and _timed(job.metrics) and job.setting.batch_size > 1:
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
    # Two metrics may need the same step.
    for step in dict.fromkeys(step for metric in job.metrics for step in KINDS[metric].steps):
        times = job.repeats if step == "time" else 1
        outcomes: list[Outcome] = []
        while len(outcomes) < times and (not outcomes or outcomes[-1].status == "ok"):
            task = Task(job=job, step=step, first=not outcomes, found=found)
            if step == "measure memory" and not isolated:
                # What this process has used before would hide what the pass needs.
                outcomes.append(Outcome(note="memory is measured only in a process of its own"))
            else:
                outcomes.append(_alone(task) if isolated else run_task(task))
        last = outcomes[-1]
        setting, machine = last.setting or setting, machine or last.machine
        notes += [one.note for one in outcomes if one.note]
        if step == "time" and last.status == "ok":
            runs = [one.found["run"] for one in outcomes]
            found["throughput"] = throughput.summarise(runs, setting, macs=outcomes[0].found["macs"])
        else:
            found.update(last.found)
        status = last.status if status == "ok" else status
    return replace(
        row, setting=setting, findings=found, machine=machine, status=status, note="; ".join(dict.fromkeys(notes))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one process does: one step of measuring a job.

    Attributes:
        step: a key of `_STEPS`.
        first: whether it is the first of the repeats.
        found: what the job's earlier steps found.
    """

    job: Job
    step: str
    first: bool
    found: Mapping[str, Any]


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
    return Outcome(status=status, note=f"{task.step}: {reason}" if len(task.job.metrics) > 1 else reason)


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
        return _STEPS[task.step](task)
    except NotSupported as error:
        return Outcome(status="unsupported", note=str(error))
    except VitbenchError as error:
        if error.__cause__ is not None and device.out_of_memory(error.__cause__):
            return Outcome(status="out_of_memory", note=one_line(error))
        return Outcome(status="failed", note=str(error))
    except (Exception, SystemExit) as error:
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
        run = throughput.measure(model, setting, rule=task.job.rule)
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


def _predict_memory(task: Task) -> Outcome:
    setting, model = _planned(task.job)
    if setting.amp:
        return Outcome(setting=setting, note="memory is not predicted under autocast")
    note = "memory is that of the eager pass" if setting.compile else ""
    return Outcome(setting=setting, found={"memory_predicted": memory.predict(model, setting)}, note=note)


def _measure_memory(task: Task) -> Outcome:
    where = torch.device(task.job.setting.device)
    predicted = task.found.get("memory_predicted")
    reason = memory.obstacle(where)
    if reason is not None:
        return Outcome(note=f"only predicted: {reason}")
    if predicted is not None and where.type == "cpu" and predicted.predicted_peak_bytes > device.free_memory():
        needed, free = memory_text(predicted.predicted_peak_bytes), memory_text(device.free_memory())
        return Outcome(status="out_of_memory", note=f"only predicted: it would need {needed}, and {free} are free")
    device.prepare(where, task.job.setting.dtype, task.job.setting.threads)
    setting, _ = _planned(task.job)
    measured = memory.measure(bench.planned(task.job.request).build, replace(setting, compile=None))
    found: dict[str, Any] = {"memory_measured": measured}
    if predicted is not None:
        found["memory_agreement"] = memory.compare(predicted, measured)
    return Outcome(setting=setting, found=found, machine=device.machine(where))


def _find_max_batch(task: Task) -> Outcome:
    limit = task.job.limit_bytes
    if limit is not None:
        setting, model = _planned(task.job)
        found, machine = max_batch.predict(model, setting, limit_bytes=limit), None
    else:
        setting, model = _built(task.job)
        found, machine = max_batch.measure(model, setting), device.machine(torch.device(setting.device))
    return Outcome(setting=setting, found={"max_batch": found}, machine=machine)


def _draw_roofline(task: Task) -> Outcome:
    speed = task.found.get("throughput")
    if speed is None:
        return Outcome()  # why there is none, the row says already
    setting, model = _built(task.job)
    found = roofline.measure(
        model,
        setting,
        pass_s=speed.latency_median_ms / 1e3,
        peak_flops_per_s=speed.peak_flops_per_s,
        rule=task.job.rule,
    )
    return Outcome(setting=setting, found={"roofline": found})


def _take_fingerprint(task: Task) -> Outcome:
    setting, _ = _planned(task.job)
    where = torch.device(setting.device)
    device.prepare(where, setting.dtype, setting.threads)
    with _fresh_compiler_cache() if setting.compile else nullcontext():
        found = fingerprint.measure(bench.planned(task.job.request).build, setting)
    return Outcome(setting=setting, found={"fingerprint": found}, machine=device.machine(where))


_STEPS: dict[str, Callable[[Task], Outcome]] = {
    "count": _count,
    "time": _time,
    "roofline": _draw_roofline,
    "fingerprint": _take_fingerprint,
    "predict memory": _predict_memory,
    "measure memory": _measure_memory,
    "max batch": _find_max_batch,
}


def _planned(job: Job) -> tuple[RunSetting, torch.nn.Module]:
    """Gives the model on meta, and the setting with its input."""
    model = bench.planned(job.request).build("meta")
    return replace(job.setting, input_shape=job.setting.input_shape or bench.stated_input(model, job.request)), model


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
        steps: what is done for it, each in a process of its own.
        records: whose columns it fills, in their order.
        exact: nothing is run: it is the same on every machine, needs no device, and may be found beside other work.
    """

    steps: tuple[str, ...]
    records: tuple[type[Any], ...]
    exact: bool = False


KINDS = {
    "flops": Kind(steps=("count",), records=(flops.Flops, Beside), exact=True),
    "throughput": Kind(steps=("time",), records=(Throughput,)),
    "roofline": Kind(steps=("time", "roofline"), records=(Throughput, Roofline)),
    "fingerprint": Kind(steps=("fingerprint",), records=(Fingerprint,)),
    "memory": Kind(steps=("predict memory", "measure memory"), records=(Predicted, Measured, Agreement)),
    "memory_predicted": Kind(steps=("predict memory",), records=(Predicted,), exact=True),
    "max_batch": Kind(steps=("max batch",), records=(MaxBatch,)),
}
"""A kind for every metric of the shelf."""
