"""`vitbench throughput`, `roofline`, `memory`, `max-batch` and `bench`: what can only be measured by running a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitbench import results
from vitbench.cli import tables
from vitbench.cli.options import (
    SOME_FAILED,
    AllOption,
    Batches,
    Extents,
    FamilyOption,
    Format,
    FormatOption,
    FramesOption,
    InputOption,
    MemorySize,
    ModelsArgument,
    OutputOption,
    Sizes,
    TimmOption,
    chosen_format,
    emit,
    parse_batches,
    parse_memory,
    parse_numbers,
    parse_sizes,
    progress,
    status,
)
from vitbench.errors import BadInput, CannotWrite
from vitbench.records import Row, Table
from vitbench.reports import REPORTS

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
BatchesOption = Annotated[
    Batches | None,
    typer.Option("--batch-size", "-b", metavar="N,...", help="Inputs a pass. Default: 1.", parser=parse_numbers),
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
    typer.Option(
        "--compile",
        metavar="[BACKEND[:MODE]]",
        help="Compile with torch.compile; alone, by inductor. A backend that torch does not bring: --compile=NAME.",
    ),
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
    _run(
        _Wanted(
            models=(models, family, all, timm),
            metrics=("throughput",),
            img_size=img_size,
            num_frames=num_frames,
            input=input,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            amp=amp,
            mode=mode,
            compile=compile,
            channels_last=channels_last,
            grad_checkpointing=grad_checkpointing,
            threads=threads,
            min_time=min_time,
            repeats=repeats,
            timeout=timeout,
        ),
        tables.throughput,
        isolated=not no_isolation,
        format=format,
        output=output,
    )


def roofline(
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
    channels_last: ChannelsOption = False,
    threads: ThreadsOption = None,
    min_time: MinTimeOption = 3.0,
    repeats: RepeatsOption = 1,
    timeout: TimeoutOption = 600.0,
    format: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Measure how near a forward pass, and each of its blocks, comes to what this machine can do at most.

    Counted are FLOPs and the bytes that the operators read and write; measured are the pass, as by throughput, its blocks, the
    fastest product of matrices and the bandwidth of the memory. JSON has the blocks; `vitbench plot roofline` draws them.
    """
    _run(
        _Wanted(
            models=(models, family, all, timm),
            metrics=("roofline",),
            img_size=img_size,
            num_frames=num_frames,
            input=input,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            mode=Mode.infer,
            channels_last=channels_last,
            grad_checkpointing=False,
            threads=threads,
            min_time=min_time,
            repeats=repeats,
            timeout=timeout,
        ),
        tables.roofline,
        isolated=True,
        format=format,
        output=output,
    )


def memory(
    models: ModelsArgument = None,
    family: FamilyOption = None,
    all: AllOption = False,
    timm: TimmOption = None,
    img_size: SizesOption = None,
    num_frames: FramesOption = None,
    input: InputOption = None,
    batch_size: BatchesOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.fp32,
    mode: ModeOption = Mode.infer,
    channels_last: ChannelsOption = False,
    grad_checkpointing: CheckpointOption = False,
    predict: Annotated[bool, typer.Option("--predict", help="Only predict: run nothing.")] = False,
    timeout: TimeoutOption = 600.0,
    format: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Predict and measure memory: weights, gradients, optimizer state, the peak of activations, and of all of them.

    The prediction follows the tensors of a pass that is never run: it needs neither weights nor the device, so --device cuda
    predicts for a card that is not here. What is measured is the allocator's peak on an accelerator, and on a CPU the peak of
    the resident memory of a process of its own above what it held before.
    """
    _run(
        _Wanted(
            models=(models, family, all, timm),
            metrics=("memory_predicted",) if predict else ("memory",),
            img_size=img_size,
            num_frames=num_frames,
            input=input,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            mode=mode,
            channels_last=channels_last,
            grad_checkpointing=grad_checkpointing,
            timeout=timeout,
        ),
        tables.memory,
        isolated=True,
        format=format,
        output=output,
    )


def max_batch(
    models: ModelsArgument = None,
    family: FamilyOption = None,
    all: AllOption = False,
    timm: TimmOption = None,
    memory: Annotated[
        MemorySize | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Predict for so much memory, such as 24GiB; without it, measure on the device.",
            parser=parse_memory,
        ),
    ] = None,
    img_size: SizesOption = None,
    num_frames: FramesOption = None,
    input: InputOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.fp32,
    mode: ModeOption = Mode.infer,
    channels_last: ChannelsOption = False,
    grad_checkpointing: CheckpointOption = False,
    timeout: TimeoutOption = 600.0,
    format: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Find the largest batch that fits into memory: predicted for --memory, or measured on an accelerator.

    Predicted, nothing is run and no device is needed: auto then means a CUDA card, here or not. Measured, batches are doubled
    until memory runs out, then bisected.
    """
    _run(
        _Wanted(
            models=(models, family, all, timm),
            metrics=("max_batch",),
            memory=memory,
            img_size=img_size,
            num_frames=num_frames,
            input=input,
            device=device,
            dtype=dtype,
            mode=mode,
            channels_last=channels_last,
            grad_checkpointing=grad_checkpointing,
            timeout=timeout,
        ),
        tables.max_batch,
        isolated=True,
        format=format,
        output=output,
    )


def bench(
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
    """Count, time and weigh at once: all that flops, throughput and memory give, in one row a model and setting."""
    _run(
        _Wanted(
            models=(models, family, all, timm),
            metrics=("flops", "throughput", "memory"),
            img_size=img_size,
            num_frames=num_frames,
            input=input,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            amp=amp,
            mode=mode,
            compile=compile,
            channels_last=channels_last,
            grad_checkpointing=grad_checkpointing,
            threads=threads,
            min_time=min_time,
            repeats=repeats,
            timeout=timeout,
        ),
        tables.bench,
        isolated=not no_isolation,
        format=format,
        output=output,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The options of a command, as the user gave them."""

    models: tuple[list[str] | None, list[str] | None, bool, str | None]
    metrics: tuple[str, ...]
    img_size: Sizes | None
    num_frames: int | None
    input: Extents | None
    device: str
    dtype: Dtype
    mode: Mode
    channels_last: bool
    grad_checkpointing: bool
    timeout: float
    batch_size: Batches | None = None
    memory: MemorySize | None = None
    amp: bool = False
    compile: str | None = None
    threads: int | None = None
    min_time: float = 0.0
    repeats: int = 1

    def ask(self) -> Ask:
        """Gives what the verb is to do."""
        from vitbench import bench
        from vitbench.measure import Ask
        from vitbench.running.timing import Rule

        return Ask(
            models=bench.named(*self.models),
            metrics=self.metrics,
            img_sizes=[(one[0], one[1]) for one in self.img_size] if self.img_size else (None,),
            num_frames=self.num_frames,
            input_shape=self.input,
            batch_sizes=self.batch_size or (1,),
            where=self.device,
            dtypes=(self.dtype.value,),
            amp=self.amp,
            mode=self.mode.value,
            compile=self.compile,
            channels_last=self.channels_last,
            grad_checkpointing=self.grad_checkpointing,
            threads=(self.threads,),
            limit_bytes=self.memory,
            rule=Rule(min_time_s=self.min_time),
            repeats=self.repeats,
            timeout_s=self.timeout,
        )


def _run(
    wanted: _Wanted,
    table: Callable[[Sequence[Row]], Table],
    *,
    isolated: bool,
    format: Format | None,
    output: Path | None,
) -> None:
    """Measures and shows; what is measured is in the output file as soon as it is known."""
    from vitbench import measure
    from vitbench.running import worker

    if output is not None:
        results.check_writable(output)
    if isolated:
        worker.start()
    jobs = measure.jobs(wanted.ask())
    if all(job.problem for job in jobs):
        raise BadInput(jobs[0].problem)
    rows: list[Row] = []
    try:
        for row in progress(measure.measure(jobs, isolated=isolated), len(jobs), "Measuring", timed=True):
            rows.append(row)
            if output is not None:
                results.write(output, REPORTS.load(chosen_format(format, output)).render(table(rows)))
    except (KeyboardInterrupt, CannotWrite):
        # Where the file cannot be written, this prints what is measured.
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
