"""The records that flow from a verb to a report: frozen, slotted, keyword-only.

A column is declared once, by `column()`: the name of the field is the CSV header, and its metadata give the table heading
and the rule by which two results are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

Better = Literal["equal", "lower", "higher"]
Status = Literal["ok", "lowered", "out_of_memory", "timeout", "crashed", "failed", "unsupported"]
"""How a measurement went. `lowered` is a result at a smaller batch than asked, because the one asked ran out of memory."""

Mode = Literal["infer", "train"]
Dtype = Literal["fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Within:
    """How far two values may lie apart and still be the same: the larger of a part of the smaller and of an absolute distance."""

    relative: float = 0.0
    absolute: float = 0.0


EXACT = Within()


def column(
    heading: str,
    *,
    key: bool = False,
    better: Better | None = None,
    within: Within | Callable[[Mapping[str, Any]], Within] = EXACT,
    timed: bool = False,
    default: Any = ...,
    meaning: str = "",
) -> Any:
    """Declares a field of a record as a column of every table and file.

    Args:
        heading: what stands over the column in a table.
        key: it tells rows apart: rows of two results with the same keys are compared.
        better: how two results are judged; `equal` where any departure is for the worse, None where there is nothing to judge.
        within: how far two values may lie apart and still be the same, for all rows, or by row; by default not at all.
        timed: it has noise, which its samples tell, and the machine it was measured on: it is judged by statistics.
        default: the field's default, if it has one.
        meaning: one sentence for results/README.md.
    """
    metadata = {"heading": heading, "key": key, "better": better, "within": within, "timed": timed, "meaning": meaning}
    if default is ...:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What was asked: the key of a row."""

    model: str = column(
        "Model", key=True, meaning="the name asked for: a catalog name, a timm name or package.module:factory"
    )
    input_shape: tuple[int, ...] = column(
        "Input", key=True, meaning="channels x height x width, for clips channels x frames x height x width; no batch"
    )
    batch_size: int = column(
        "Batch", key=True, default=1, meaning="inputs per forward pass; counts are of the whole batch"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSetting(Setting):
    """What was asked of a model that is really run: the key of a measured row."""

    batch_size_asked: str = column(
        "Batch asked",
        key=True,
        default="1",
        meaning="the batch size asked for, or auto; batch_size is the one that was run; max where the largest was looked for",
    )
    device: str = column("Device", key=True, default="cpu", meaning="where it ran: cpu, cuda:0, xpu:0, mps")
    dtype: Dtype = column(
        "Dtype", key=True, default="fp32", meaning="fp32, tf32 (fp32 with TF32 products), bf16 or fp16"
    )
    amp: bool = column(
        "AMP", key=True, default=False, meaning="True: fp32 weights under autocast to dtype; False: weights of dtype"
    )
    mode: str = column(
        "Mode", key=True, default="infer", meaning="infer: a forward pass; train: forward, backward, optimizer step"
    )
    compile: str | None = column(
        "Compile", key=True, default=None, meaning="backend, or backend:mode, of torch.compile; empty for eager"
    )
    channels_last: bool = column(
        "Channels last", key=True, default=False, meaning="whether weights and inputs are channels-last"
    )
    grad_checkpointing: bool = column(
        "Checkpointing", key=True, default=False, meaning="whether activations are recomputed in the backward pass"
    )
    threads: int = column("Threads", key=True, default=1, meaning="threads of torch inside an operator, on the CPU")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisSetting(Setting):
    """What was looked into, and with what: the key of an analysis's rows."""

    weights: str = column(
        "Weights",
        key=True,
        default="random weights",
        meaning="pretrained, random weights with their seed, the file they come from, or as a factory gives them",
    )
    device: str = column("Device", key=True, default="cpu", meaning="where it ran: cpu, cuda:0, xpu:0, mps")
    dtype: str = column(
        "Dtype", key=True, default="fp32", meaning="of weights and activations; attention is always judged in fp32"
    )
    inputs: int = column(
        "Inputs", key=True, default=0, meaning="images or clips that were looked at; 0 where only weights were"
    )
    source: str = column(
        "Images", key=True, default="", meaning="where the images came from, as given on the command line"
    )
    preprocessing: str = column(
        "Preprocessing", better="equal", default="", meaning="from file to input: the model's own data config"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What only the measuring process knows of the machine that it ran on; in a row beside the environment."""

    device_name: str = column("Device", meaning="name of the accelerator, or of the processor")
    device_memory_bytes: int | None = column("Device memory", meaning="memory of the accelerator; empty on a CPU")
    driver: str | None = column("Driver", meaning="version of the accelerator's driver; empty where it is not told")
    clock_mhz: int | None = column("Clock", meaning="clock of the accelerator's cores after the measurement, MHz")
    clock_max_mhz: int | None = column("Max clock", meaning="the highest that it can have, MHz")
    runtime: str | None = column("Runtime", meaning="version of CUDA or ROCm that torch was built with")
    instruction_set: str = column("Instructions", meaning="vector instructions that torch uses on the processor")
    matmul_precision: str = column("Matmul", meaning="torch's precision of float32 products: highest; high is TF32")
    cudnn_benchmark: bool | None = column(
        "cuDNN benchmark", meaning="whether cuDNN tries its kernels out; empty off CUDA"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The machine and the software that a row came from; it travels in the row, never in a file name."""

    vitbench: str = column("vitbench", meaning="version of vitbench")
    commit: str | None = column("Commit", meaning="git commit of vitbench when it runs from a checkout, else empty")
    dirty: bool | None = column("Dirty", meaning="whether that checkout had uncommitted changes")
    python: str = column("Python", meaning="version of Python")
    torch: str = column("torch", meaning="version of torch")
    timm: str = column("timm", meaning="version of timm")
    platform: str = column("Platform", meaning="operating system and processor architecture")
    cpu: str = column("CPU", meaning="name of the processor")
    cores: int = column("Cores", meaning="processors this process may use")
    memory_bytes: int | None = column("Memory", meaning="physical memory in bytes; empty where the system hides it")
    cpu_limit: float | None = column(
        "CPU limit", meaning="processors whose time a container may use; empty without a limit"
    )
    memory_limit_bytes: int | None = column(
        "Memory limit", meaning="memory that a container may use, in bytes; empty without a limit"
    )
    time: str = column("Time", meaning="when the command started, UTC, ISO 8601")
    command: str | None = column(
        "Command", default=None, meaning="the command line, as typed; empty where vitbench was called from Python"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a result: a setting, what was found, and how it went. A failure is a row, never a gap."""

    setting: Setting
    findings: Mapping[str, Any]
    environment: Environment | None = None
    machine: Machine | None = None
    status: Status = "ok"
    note: str = ""


def headings(record: type[Any]) -> dict[str, str]:
    """Gives the table heading of each declared column of a record."""
    return {item.name: item.metadata["heading"] for item in fields(record) if "heading" in item.metadata}


def columns(record: Any) -> dict[str, Any]:
    """Gives the declared columns of a record, by name; fields declared without `column()` are left out."""
    return {item.name: getattr(record, item.name) for item in fields(record) if "heading" in item.metadata}


def flatten(row: Row) -> dict[str, Any]:
    """Gives a row as one flat mapping: setting, findings, status, note, then environment and machine, prefixed."""
    flat: dict[str, Any] = {**columns(row.setting)}
    for finding in row.findings.values():
        flat.update(columns(finding) if is_dataclass(finding) else finding)
    flat["status"] = row.status
    flat["note"] = row.note
    for record in (row.environment, row.machine):
        if record is not None:
            flat.update(environment_columns(record))
    return flat


def environment_columns(environment: Environment | Machine) -> dict[str, Any]:
    """Gives the columns of an environment under the names that they have in a row."""
    return {f"environment_{name}": value for name, value in columns(environment).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table for people.

    Attributes:
        heading: what stands over it.
        text: gives the cell of a flat row.
        numeric: set flush right.
        folds: prose, which may take several lines.
    """

    heading: str
    text: Callable[[Mapping[str, Any]], str]
    numeric: bool = False
    folds: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a command found, for machines (`rows`, base units) and for people (`columns` of text).

    Attributes:
        rows: flat mappings of plain values; every row may lack columns that another has.
        columns: for people.
        notes: sentences below the table.
    """

    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[Column]
    notes: Sequence[str] = ()
