"""The records that flow from a verb to a report: frozen, slotted, keyword-only.

A column is declared once, by `column()`: the name of the field is the CSV header, and its metadata give the table heading
and the rule by which two results are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

Better = Literal["equal", "lower", "higher"]
Status = Literal["ok", "failed", "crashed", "timeout"]


def column(heading: str, *, better: Better | None = None, default: Any = ..., meaning: str = "") -> Any:
    """Declares a field of a record as a column of every table and file.

    Args:
        heading: what stands over the column in a table.
        better: how two results are judged; `equal` for exact columns, None for columns that are no measurement.
        default: the field's default, if it has one.
        meaning: one sentence for results/README.md.
    """
    metadata = {"heading": heading, "better": better, "meaning": meaning}
    if default is ...:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What was asked: the key of a row."""

    model: str = column("Model", meaning="the name asked for: a catalog name, a timm name or package.module:factory")
    input_shape: tuple[int, ...] = column(
        "Input", meaning="channels x height x width, for clips channels x frames x height x width; no batch"
    )
    batch_size: int = column("Batch", default=1, meaning="inputs per forward pass; counts are of the whole batch")


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
    time: str = column("Time", meaning="when the command started, UTC, ISO 8601")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a result: a setting, what was found, and how it went. A failure is a row, never a gap."""

    setting: Setting
    findings: Mapping[str, Any]
    environment: Environment | None = None
    status: Status = "ok"
    note: str = ""


def headings(record: type[Any]) -> dict[str, str]:
    """Gives the table heading of each declared column of a record."""
    return {item.name: item.metadata["heading"] for item in fields(record) if "heading" in item.metadata}


def columns(record: Any) -> dict[str, Any]:
    """Gives the declared columns of a record, by name; fields declared without `column()` are left out."""
    return {item.name: getattr(record, item.name) for item in fields(record) if "heading" in item.metadata}


def flatten(row: Row) -> dict[str, Any]:
    """Gives a row as one flat mapping: setting, findings, status, note, then the environment, prefixed."""
    flat: dict[str, Any] = {**columns(row.setting)}
    for finding in row.findings.values():
        flat.update(columns(finding) if is_dataclass(finding) else finding)
    flat["status"] = row.status
    flat["note"] = row.note
    if row.environment is not None:
        flat.update(environment_columns(row.environment))
    return flat


def environment_columns(environment: Environment) -> dict[str, Any]:
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
