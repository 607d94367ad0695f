"""`vitbench throughput`, `memory`, `max-batch` and `bench`: what can only be measured by running a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitbench import results
from vitbench.cli.options import (
    SOME_FAILED,
    AllOption,
    Batches,
    FamilyOption,
    Format,
    FormatOption,
    FramesOption,
    InputOption,
    ModelsArgument,
    OutputOption,
    Sizes,
    TimmOption,
    chosen_format,
    emit,
    parse_batches,
    parse_sizes,
    progress,
    status,
)
from vitbench.errors import BadInput
from vitbench.records import Column, Row, RunSetting, Table, flatten, headings
from vitbench.reports import REPORTS
from vitbench.units import count, milliseconds, size

if TYPE_CHECKING:
    from vitbench.measure import Ask

# What torch.compile knows without an extension; any other is given with `=`.
_BACKENDS = {"inductor", "eager", "aot_eager", "cudagraphs", "onnxrt", "openxla", "tvm"}


class Dtype(StrEnum):
    """The dtypes of `records.Dtype`."""

    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"


class Mode(StrEnum):
    """The modes of `records.Mode`."""

    infer = "infer"
    train = "train"


class CompileCommand(typer.core.TyperCommand):
    """A command whose `--compile` may stand alone: then it is inductor."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Completes a bare `--compile`, which click's options cannot be."""
        words = list(args)
        for place, word in enumerate(words):
            if word == "--compile":
                following = words[place + 1] if place + 1 < len(words) else ""
                if following.partition(":")[0] not in _BACKENDS:
                    words[place] = "--compile=inductor"
        return super().parse_args(ctx, words)


SizesOption = Annotated[
    Sizes | None,
    typer.Option(
        "--img-size",
        metavar="N or HxW,...",
        help="Image sizes; position tables and windows follow.",
        parser=parse_sizes,
    ),
]
BatchOption = Annotated[
    Batches | None,
    typer.Option(
        "--batch-size",
        "-b",
        metavar="N,...|auto",
        help="Inputs a pass; auto doubles from 1 until the throughput rises no more. Default: 1.",
        parser=parse_batches,
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto (an accelerator if there is one), cpu, cuda, cuda:1, xpu or mps.")
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Of weights and inputs; tf32 is fp32 with TF32 products.")]
AmpOption = Annotated[bool, typer.Option("--amp", help="fp32 weights under autocast to the dtype.")]
ModeOption = Annotated[
    Mode, typer.Option("--mode", help="A forward pass, or a training step: forward, backward and AdamW.")
]
CompileOption = Annotated[
    str | None,
    typer.Option("--compile", metavar="[BACKEND[:MODE]]", help="Compile with torch.compile; by default by inductor."),
]
ChannelsOption = Annotated[bool, typer.Option("--channels-last", help="Weights and inputs in channels-last format.")]
CheckpointOption = Annotated[
    bool, typer.Option("--grad-checkpointing", help="Recompute activations in the backward pass.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads inside an operator on the CPU. Default: torch's own number."),
]
MinTimeOption = Annotated[
    float,
    typer.Option("--min-time", min=0, help="Seconds to go on while the interval of the median is not narrow enough."),
]
RepeatsOption = Annotated[
    int, typer.Option("--repeats", min=1, help="Processes that measure, one after another; the interval is over them.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=1, help="Seconds that one process may take.")]
IsolationOption = Annotated[
    bool, typer.Option("--no-isolation", help="Measure in this process, for debuggers: a crash ends everything.")
]


def throughput(
    models: ModelsArgument = None,
    family: FamilyOption = None,
    all: AllOption = False,
    timm: TimmOption = None,
    img_size: SizesOption = None,
    num_frames: FramesOption = None,
    input: InputOption = None,
    batch_size: BatchOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.fp32,
    amp: AmpOption = False,
    mode: ModeOption = Mode.infer,
    compile: CompileOption = None,
    channels_last: ChannelsOption = False,
    grad_checkpointing: CheckpointOption = False,
    threads: ThreadsOption = None,
    min_time: MinTimeOption = 3.0,
    repeats: RepeatsOption = 1,
    timeout: TimeoutOption = 600.0,
    no_isolation: IsolationOption = False,
    format: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Measure throughput and latency: median, percentiles and a 95 % interval.

    Each measurement has a process of its own, is warmed up until its times settle, and goes on until the interval reaches no
    further than 0.5 % of the median to either side, or --min-time is spent. What makes a row doubtful is named in it.
    """
    from vitbench import bench
    from vitbench.measure import Ask
    from vitbench.timing import Rule

    ask = Ask(
        models=bench.named(models, family, all, timm),
        metrics=("throughput",),
        img_sizes=[(one[0], one[1]) for one in img_size] if img_size else (None,),
        num_frames=num_frames,
        input_shape=input,
        batch_sizes=batch_size or (1,),
        where=device,
        dtypes=(dtype.value,),
        amp=amp,
        mode=mode.value,
        compile=compile,
        channels_last=channels_last,
        grad_checkpointing=grad_checkpointing,
        threads=(threads,),
        rule=Rule(min_time_s=min_time),
        repeats=repeats,
        timeout_s=timeout,
    )
    _run(ask, not no_isolation, _throughput_table, format, output)


def _run(
    ask: Ask,
    isolated: bool,
    table: Callable[[Sequence[Row]], Table],
    format: Format | None,
    output: Path | None,
) -> None:
    """Measures and shows; what is measured is in the output file as soon as it is known."""
    from vitbench import measure, worker

    if output is not None:
        results.check_writable(output)
    if isolated:
        worker.start()
    jobs = measure.jobs(ask)
    if len(jobs) == 1 and jobs[0].problem:
        raise BadInput(jobs[0].problem)
    rows: list[Row] = []
    try:
        for row in progress(measure.measure(jobs, isolated=isolated), len(jobs), "Measuring", timed=True):
            rows.append(row)
            if output is not None:
                results.write(output, REPORTS.load(chosen_format(format, output)).render(table(rows)))
    except KeyboardInterrupt:
        if rows:
            emit(table(rows), format, output)
        raise
    emit(table(rows), format, output)
    for line in _doubts(rows):
        status(line)
    if any(measure.failed(row) for row in rows):
        raise typer.Exit(SOME_FAILED)


def _doubts(rows: Sequence[Row]) -> Iterator[str]:
    """Gives a line for each kind of doubt, with the models that it is about."""
    from vitbench.metrics.throughput import WARNINGS

    for name, advice in WARNINGS.items():
        found = [row for row in rows if "throughput" in row.findings and name in row.findings["throughput"].warnings]
        if found:
            who = ", ".join(dict.fromkeys(row.setting.model for row in found[:3]))
            more = f" and {len(found) - 3} more rows" if len(found) > 3 else ""
            yield f"Warning: {name} ({who}{more}): {advice}."


def _throughput_table(rows: Sequence[Row]) -> Table:
    flat = [flatten(row) for row in rows]
    shown = [
        Column(heading="Model", text=lambda row: row["model"]),
        Column(heading="Batch x input", text=lambda row: f"{row['batch_size']} x {size(row['input_shape'])}"),
        *_varying(flat),
        Column(heading="Inputs/s", text=lambda row: _rate(row.get("throughput_per_s")), numeric=True),
        Column(heading="Median", text=_time("latency_median_ms"), numeric=True),
        Column(heading="95 % interval", text=_interval, numeric=True),
        Column(heading="p90", text=_time("latency_p90_ms"), numeric=True),
        Column(heading="p95", text=_time("latency_p95_ms"), numeric=True),
        Column(heading="p99", text=_time("latency_p99_ms"), numeric=True),
        Column(heading="Forward", text=_time("forward_median_ms"), numeric=True),
        Column(heading="Backward", text=_time("backward_median_ms"), numeric=True),
        Column(heading="Optimizer", text=_time("optimizer_median_ms"), numeric=True),
        Column(heading="First call", text=_time("first_call_ms"), numeric=True),
        Column(heading="Compiling", text=_seconds, numeric=True),
        Column(heading="Samples", text=lambda row: str(row.get("samples", "")), numeric=True),
        Column(heading="Of peak", text=_utilization, numeric=True),
        Column(heading="Doubts", text=lambda row: " ".join(row.get("warnings", ())), folds=True),
        *(
            [Column(heading="Status", text=lambda row: row["status"])]
            if any(row.status != "ok" for row in rows)
            else []
        ),
    ]
    # A column that no row fills, such as the backward pass of inference, is for the files alone.
    shown = [column for column in shown if any(column.text(row) for row in flat)]
    return Table(rows=flat, columns=shown, notes=_notes(flat))


def _varying(flat: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Gives columns for the settings that are not the same in all rows; what is the same stands below the table."""
    return [
        Column(heading=heading, text=lambda row, name=name: _said(row.get(name)))  # type: ignore[misc]  # a default binds the name
        for name, heading in headings(RunSetting).items()
        if name not in ("model", "input_shape", "batch_size", "batch_size_asked")
        and len({_said(row.get(name)) for row in flat}) > 1
    ]


def _notes(flat: Sequence[Mapping[str, Any]]) -> list[str]:
    first = flat[0]
    same = {
        name: _said(first[name])
        for name in ("device", "dtype", "amp", "mode", "compile", "channels_last", "grad_checkpointing", "threads")
        if len({_said(row.get(name)) for row in flat}) == 1 and _said(first[name])
    }
    where = first.get("environment_device_name") or first.get("environment_cpu")
    words = {"amp": "AMP", "channels_last": "channels-last", "grad_checkpointing": "gradient checkpointing"}
    parts = [
        f"{same[name]} threads"
        if name == "threads"
        else words.get(name, f"compiled by {same[name]}" if name == "compile" else same[name])
        for name in same
    ]
    notes = [f"{', '.join([*parts, str(where)])}; torch {first.get('environment_torch')}."]
    if any(row.get("repeats", 1) > 1 for row in flat):
        notes.append("Interval: Student's, over the medians of the processes.")
    for row in flat:
        if row["note"]:
            begin = "" if row["status"] == "ok" else f"{row['status']}: "
            notes.append(f"{row['model']}, batch {row['batch_size']}: {begin}{row['note']}")
    return notes


def _said(value: Any) -> str:
    if value is None or value is False:
        return ""
    return "yes" if value is True else str(value)


def _rate(value: float | None) -> str:
    return "" if value is None else count(round(value, 2) if value < 1000 else value)


def _time(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: milliseconds(row[name]) if row.get(name) is not None else ""


def _seconds(row: Mapping[str, Any]) -> str:
    return f"{row['compile_s']:.1f} s" if row.get("compile_s") is not None else ""


def _interval(row: Mapping[str, Any]) -> str:
    if row.get("latency_low_ms") is None:
        return ""
    return f"{row['latency_low_ms']:#.4g} to {row['latency_high_ms']:#.4g} ms"


def _utilization(row: Mapping[str, Any]) -> str:
    return f"{row['utilization'] * 100:.1f} %" if row.get("utilization") is not None else ""
