"""Reads a suite: a TOML file that says what to measure, checked before anything is.

The keys of a `[[run]]` are the options of `vitbench bench` and `max-batch`, with underscores; what may be
several is one value or a list. What `vitbench check` needs beside them, `[[threshold]]`, `[[expected]]` and `[against]`, a sweep
leaves alone.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from vitbench import ab, bench, compare
from vitbench.changes import Change
from vitbench.errors import BadInput, NotSupported, UnknownName
from vitbench.judging import duel
from vitbench.measure import AUTO, Ask
from vitbench.metrics import METRICS
from vitbench.records import Dtype, Mode
from vitbench.running import timing
from vitbench.suites import SHIPPED
from vitbench.units import parse_extents, parse_memory, parse_share


def _metric(name: str) -> str:
    if name not in METRICS.names:
        raise ValueError(str(UnknownName("metric", name, METRICS.names, hint=f"Known are {', '.join(METRICS.names)}.")))
    return name


def _batch(value: Any) -> Any:
    if value != AUTO and (type(value) is not int or value < 1):
        raise ValueError(f'{value!r} is neither "auto" nor a whole number above zero')
    return value


def _extents(value: Any) -> tuple[int, ...]:
    try:
        return parse_extents(str(value))
    except ValueError:
        return ()


def _size(value: Any) -> tuple[int, int]:
    extents = _extents(value)
    if len(extents) not in (1, 2):
        raise ValueError(f'{value!r} is not a size such as 384 or "384x512" (height x width)')
    return extents[0], extents[-1]


def _shape(value: Any) -> tuple[int, ...]:
    extents = _extents(value)
    if len(extents) not in (3, 4):
        raise ValueError(f'{value!r} is not an input such as "3x224x224"')
    return extents


def _amount(value: Any) -> int:
    return parse_memory(str(value))


def _column(name: str) -> str:
    try:
        return compare.column_of(name)
    except BadInput as error:
        raise ValueError(str(error)) from error


def _columns(name: str) -> str:
    return name if any(sign in name for sign in "*?[") else _column(name)


def _measure(name: str) -> str:
    try:
        return compare.measure_of(name)
    except BadInput as error:
        raise ValueError(str(error)) from error


def _share(value: Any) -> float:
    return parse_share(str(value))


def _budget(value: Any) -> float:
    try:
        return ab.parse_budget(str(value))
    except BadInput as error:
        raise ValueError(str(error)) from error


_Several = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
_AtLeastOne = Field(min_length=1)
_Count = Annotated[int, Field(ge=1)]


class Run(BaseModel):
    """One table `[[run]]`: every model of it with every size, batch size, dtype and number of threads."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    models: Annotated[list[str], _Several] = []
    families: Annotated[list[str], _Several] = []
    all: bool = False
    timm: str | None = None
    metrics: Annotated[list[Annotated[str, AfterValidator(_metric)]], _Several, _AtLeastOne] = ["throughput"]
    img_size: Annotated[list[Annotated[tuple[int, int], PlainValidator(_size)]], _Several, _AtLeastOne] | None = None
    num_frames: _Count | None = None
    input: Annotated[tuple[int, ...], PlainValidator(_shape)] | None = None
    batch_size: Annotated[list[Annotated[Any, PlainValidator(_batch)]], _Several, _AtLeastOne] = [1]
    device: str = AUTO
    dtype: Annotated[list[Dtype], _Several, _AtLeastOne] = ["fp32"]
    amp: bool = False
    mode: Mode = "infer"
    compile: str | None = None
    channels_last: bool = False
    grad_checkpointing: bool = False
    threads: Annotated[list[_Count], _Several, _AtLeastOne] | None = None
    min_time: Annotated[float, Field(ge=0)] = timing.RULE.min_time_s
    repeats: _Count = 1
    timeout: Annotated[float, Field(ge=1)] = 600.0
    memory: Annotated[int, PlainValidator(_amount)] | None = None

    @model_validator(mode="after")
    def _names_models(self) -> Run:
        if not (self.models or self.families or self.all or self.timm):
            raise ValueError("names no models: give models, families, timm or all = true")
        return self

    @model_validator(mode="after")
    def _looks_for_the_largest_batch_alone(self) -> Run:
        if "max_batch" in self.metrics and len(self.metrics) > 1:
            raise ValueError("max_batch needs a run of its own: its rows are of the batches that it finds")
        if self.memory is not None and "max_batch" not in self.metrics:
            raise ValueError('memory is what the largest batch must fit into: give it with metrics = "max_batch"')
        return self

    def ask(self, *, device: str | None = None, dtype: Dtype | None = None) -> Ask:
        """Gives what the run asks to measure, on another device or in another dtype if one is given.

        Raises:
            BadInput: a glob matches nothing.
            UnknownName: there is no such model or family.
        """
        models = bench.named(self.models, self.families, self.all, self.timm)
        for name in self.models:
            if (name, False) in models:
                # A misspelt name is a mistake in the file; a model that is there and cannot be measured is a row.
                try:
                    with suppress(BadInput, NotSupported):
                        bench.planned(bench.Request(name=name))
                except UnknownName as error:
                    raise BadInput(f"models: {error}") from error
        return Ask(
            models=models,
            metrics=[name for name in METRICS.names if name in self.metrics],
            img_sizes=self.img_size or (None,),
            num_frames=self.num_frames,
            input_shape=self.input,
            batch_sizes=self.batch_size,
            where=device or self.device,
            dtypes=[dtype] if dtype else self.dtype,
            amp=self.amp,
            mode=self.mode,
            compile=self.compile,
            channels_last=self.channels_last,
            grad_checkpointing=self.grad_checkpointing,
            threads=self.threads or (None,),
            limit_bytes=self.memory,
            rule=timing.Rule(min_time_s=self.min_time),
            repeats=self.repeats,
            timeout_s=self.timeout,
        )


class Threshold(BaseModel):
    """One table `[[threshold]]`: by how much a column may change; of those that fit, the last counts."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    metric: Annotated[str, AfterValidator(_measure)]
    models: str = "*"
    within: Annotated[float, PlainValidator(_share)]

    @model_validator(mode="after")
    def _leaves_times_room(self) -> Threshold:
        if self.metric == ab.COLUMN and not self.within:
            raise ValueError("no two times agree within 0%: give what may differ, such as 3%")
        return self


class Expected(BaseModel):
    """One table `[[expected]]`: a change that is known, and until when it is excused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str
    metric: Annotated[str, AfterValidator(_columns)]
    reason: Annotated[str, _AtLeastOne]
    until: datetime.date

    def fits(self, change: Change) -> bool:
        """Tells whether a change is meant; one of a whole row has no column, which "*" alone fits."""
        return fnmatchcase(change.model, self.model) and fnmatchcase(change.column, self.metric)


class Against(BaseModel):
    """The table `[against]`: what times are compared with."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    revision: Annotated[str, _AtLeastOne] = "origin/main"
    budget: Annotated[float, PlainValidator(_budget)] = duel.RULE.budget_s


class _Document(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    title: str
    run: Annotated[list[Run], _AtLeastOne]
    threshold: list[Threshold] = []
    expected: list[Expected] = []
    against: Against = Against()


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What a file asks for.

    Attributes:
        name: the file, for messages.
        text: as it stands in the file.
        title: what it is for, in a line.
        runs: its tables `[[run]]`.
        thresholds: its tables `[[threshold]]`.
        expected: its tables `[[expected]]`.
        against: its table `[against]`.
    """

    name: str
    text: str
    title: str
    runs: tuple[Run, ...]
    thresholds: tuple[Threshold, ...]
    expected: tuple[Expected, ...]
    against: Against


def read(name: str) -> Suite:
    """Reads a suite that comes with vitbench, by its name, or any other, by its path.

    Raises:
        UnknownName: it is neither.
        BadInput: it cannot be read, is no TOML, or has keys or values that a suite has not; all of them are told.
    """
    path = Path(name)
    shipped = SHIPPED.get(name)
    if shipped is None and not path.exists():
        raise UnknownName("suite", name, SHIPPED, hint=f"Give a TOML file, or one of {', '.join(sorted(SHIPPED))}.")
    name = f"{name}.toml" if shipped else name
    try:
        text = (shipped or path).read_text(encoding="utf-8")
        document = _Document.model_validate(tomllib.loads(text))
    except OSError as error:
        raise BadInput(f"Cannot read {name}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{name} is no text in UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        # Its text names the line and the column.
        raise BadInput(f"{name} is no TOML: {error}.") from error
    except ValidationError as error:
        found = [f"{name}: {_said(one)}" for one in error.errors(include_url=False)]
        raise BadInput("\n".join(found)) from error
    return Suite(
        name=name,
        text=text,
        title=document.title,
        runs=tuple(document.run),
        thresholds=tuple(document.threshold),
        expected=tuple(document.expected),
        against=document.against,
    )


# By pydantic's kinds of error; its own words for the others begin with "Input should be".
_WORDS = {
    "missing": "is missing",
    "too_short": "is empty",
    "string_too_short": "is empty",
    "model_type": "should be a table, written {table}",
    "list_type": "should be several tables, each written {table}, with two brackets",
    "date_type": "should be a date such as 2027-01-31, without quotes",
    "string_type": "should be a text in quotes",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
}


_TOLD_ENOUGH = ("missing", "too_short", "string_too_short")

_TABLES: dict[Any, type[BaseModel]] = {"run": Run, "threshold": Threshold, "expected": Expected, "against": Against}


def _said(error: Mapping[str, Any]) -> str:
    """Gives an error of pydantic in the words of somebody who wrote a suite."""
    place = error["loc"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    kind = error["type"]
    if kind == "extra_forbidden":
        known = (_TABLES[place[0]] if len(place) > 1 else _Document).model_fields
        unknown = UnknownName("key", str(place[-1]), known, hint=f"Known are {', '.join(known)}.")
        return f"{key}: {unknown}"
    if kind == "value_error":
        return f"{key}: {error['ctx']['error']}"
    table = f"[{place[0]}]" if place[0] == "against" else f"[[{place[0]}]]"
    words = _WORDS.get(kind, error["msg"].removeprefix("Input ")).replace("{table}", table)
    told = isinstance(error["input"], bool | int | float | str) and kind not in _TOLD_ENOUGH
    return f"{key}: {words}, not {error['input']!r}" if told else f"{key}: {words}"
