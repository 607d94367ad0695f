"""`vitbench flops` and `vitbench verify`: what can be counted without running a model."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vitbench import catalog, results
from vitbench.cli.options import (
    SOME_FAILED,
    AllOption,
    Extents,
    FamilyOption,
    Format,
    FormatOption,
    FramesOption,
    InputOption,
    ModelsArgument,
    OutputOption,
    TimmOption,
    complete_model,
    emit,
    parse_size,
    progress,
)
from vitbench.errors import BadInput
from vitbench.records import Column, Row, Table, columns, environment_columns, flatten
from vitbench.units import count, exact, percent, printed, size

DIFFERS = 1

# Up to so many models, the exact counts are spelled out below the table.
_SPELLED_OUT = 3


class Counter(StrEnum):
    """Which counter to use."""

    dispatch = "dispatch"
    fvcore = "fvcore"
    both = "both"


class By(StrEnum):
    """What a breakdown goes by."""

    module = "module"
    operator = "operator"


def flops(
    models: ModelsArgument = None,
    family: FamilyOption = None,
    all: AllOption = False,
    timm: TimmOption = None,
    img_size: Annotated[
        Extents | None,
        typer.Option(
            "--img-size", metavar="N or HxW", help="Image size; position tables and windows follow.", parser=parse_size
        ),
    ] = None,
    num_frames: FramesOption = None,
    input: InputOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Inputs per forward pass.")] = 1,
    by: Annotated[By | None, typer.Option("--by", help="Take the counts apart; the parts sum to the total.")] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", min=0, help="With --by module: how many names of a module's path to keep.")
    ] = None,
    counter: Annotated[
        Counter, typer.Option("--counter", help="Ours, fvcore, or both side by side.")
    ] = Counter.dispatch,
    format: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Count parameters, MACs, FLOPs and activations of a forward pass, beside the published figures.

    Nothing is run: no weights, no activations, any size of model. MACs are the multiply-accumulates of every matrix product,
    convolution and attention; FLOPs are always 2 x MACs.
    """
    from vitbench import bench

    if depth is not None and by is not By.module:
        raise BadInput("--depth goes with --by module.")
    if by is not None and counter is Counter.fvcore:
        raise BadInput("--by needs our own counter: use --counter dispatch or both.")
    if output is not None:
        results.check_writable(output)
    requests = [
        bench.Request(
            name=name,
            of_timm=of_timm,
            img_size=(img_size[0], img_size[1]) if img_size else None,
            num_frames=num_frames,
            input_shape=input,
            batch_size=batch_size,
            counter=counter.value,
        )
        for name, of_timm in bench.named(models, family, all, timm)
    ]
    rows: list[Row] = []
    try:
        for row in progress(bench.count(requests), len(requests), "Counting"):
            rows.append(row)  # noqa: PERF402  # what an interrupt leaves must already be in the list
    except KeyboardInterrupt:
        if rows:
            _emit_flops(rows, by, depth, format, output)
        raise
    if len(rows) == 1 and rows[0].status != "ok":
        raise BadInput(rows[0].note)
    _emit_flops(rows, by, depth, format, output)
    if any(row.status != "ok" for row in rows):
        raise typer.Exit(SOME_FAILED)


def _emit_flops(rows: list[Row], by: By | None, depth: int | None, format: Format | None, output: Path | None) -> None:
    table = _totals(rows) if by is None else _breakdown(rows, by, depth)
    emit(table, format, output)


def _totals(rows: list[Row]) -> Table:
    flat = [flatten(row) for row in rows]
    crossed = any("macs_fvcore" in row for row in flat)
    shown = [
        Column(heading="Model", text=lambda row: row["model"]),
        Column(heading="Input", text=_input),
        Column(heading="Params", text=_counted("params"), numeric=True),
        Column(heading="Published", text=_published("params"), numeric=True),
        Column(heading="MACs", text=_counted("macs"), numeric=True),
        Column(heading="Published", text=_published("macs"), numeric=True),
        Column(heading="FLOPs\n= 2 x MACs", text=_counted("flops"), numeric=True),
        Column(heading="Activations", text=_counted("activations"), numeric=True),
    ]
    if crossed:
        shown.insert(5, Column(heading="fvcore", text=_counted("macs_fvcore"), numeric=True))
        shown.insert(6, Column(heading="Disagree", text=lambda row: _exact(row.get("macs_disagreement")), numeric=True))
    if any(row.status != "ok" for row in rows):
        shown.append(Column(heading="Status", text=lambda row: row["status"]))
    return Table(rows=flat, columns=shown, notes=_flops_notes(flat))


def _flops_notes(flat: list[dict[str, Any]]) -> list[str]:
    notes = [
        "MACs: multiply-accumulates of every matrix product, convolution and attention, fused attention included. "
        "Published: in brackets, ours over theirs."
    ]
    spelled_out = len(flat) <= _SPELLED_OUT
    for row in flat:
        name = row["model"]
        if row["note"]:
            notes.append(f"{name}: {row['note'] if row['status'] == 'ok' else row['status'] + ': ' + row['note']}")
        if row["status"] != "ok":
            continue
        if row.get("published_reason"):
            notes.append(f"{name}: {row['published_reason']}")
        if spelled_out:
            exactly = f"{name} exactly: {exact(row['params'])} parameters, {exact(row['macs'])} MACs."
            left_out = row["uncounted"] or {}
            if left_out:
                largest = sorted(left_out.items(), key=lambda item: -item[1])[:5]
                exactly += " Not counted, elements written: " + ", ".join(f"{op} {count(n)}" for op, n in largest)
                exactly += f" and {len(left_out) - 5} more kinds." if len(left_out) > 5 else "."
            notes.append(exactly)
            if row.get("published_source"):
                notes.append(f"{name} published in: {row['published_source']}.")
    return notes


def _breakdown(rows: list[Row], by: By, depth: int | None) -> Table:
    flat: list[dict[str, Any]] = []
    for row in rows:
        if row.status != "ok":
            flat.append({**columns(row.setting), by.value: "", "status": row.status, "note": row.note})
            continue
        about = environment_columns(row.environment) if row.environment else {}
        for part in row.findings["flops"].breakdown(by.value, depth):
            values = columns(part)
            named = {by.value: values.pop("part")}
            flat.append({**columns(row.setting), **named, **values, "status": row.status, "note": row.note, **about})
    shown = [
        Column(heading="Model", text=lambda row: row["model"]),
        Column(heading=by.value.title(), text=lambda row: row[by.value] or "(itself)"),
        *([Column(heading="Params", text=_counted("params"), numeric=True)] if by is By.module else []),
        Column(heading="MACs", text=_counted("macs"), numeric=True),
        Column(heading="Share", text=lambda row: f"{row['share'] * 100:.1f} %" if "share" in row else "", numeric=True),
        Column(heading="FLOPs\n= 2 x MACs", text=_counted("flops"), numeric=True),
        Column(heading="Activations", text=_counted("activations"), numeric=True),
        Column(heading="Not counted\n(elements)", text=_counted("uncounted_elements"), numeric=True),
    ]
    notes = []
    for row in rows:
        if row.status != "ok":
            notes.append(f"{row.setting.model}: {row.status}: {row.note}")
            continue
        found = row.findings["flops"]
        params = f"{exact(found.params)} parameters, " if by is By.module else ""
        notes.append(f"{row.setting.model}, the sum of the above: {params}{exact(found.macs)} MACs.")
    return Table(rows=flat, columns=shown, notes=notes)


def _input(row: Mapping[str, Any]) -> str:
    text = size(row["input_shape"])
    return f"{row['batch_size']} x {text}" if row["batch_size"] != 1 else text


def _counted(name: str) -> Any:
    return lambda row: count(row[name]) if row.get(name) is not None else ""


def _published(name: str) -> Any:
    def text(row: Mapping[str, Any]) -> str:
        theirs, difference = row.get(f"published_{name}"), row.get(f"{name}_difference")
        if theirs and difference is not None:
            return f"{printed(theirs)} ({percent(difference)})"
        return printed(theirs) if theirs else ""

    return text


def _exact(value: int | None) -> str:
    return "" if value is None else exact(value)


def verify(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Names or globs of the catalog; all by default.", autocompletion=complete_model),
    ] = None,
    family: FamilyOption = None,
    format: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Hold our counts against every published figure; exit with 1 if one differs and no reason is on record.

    MACs may differ by 1 %, parameters by 0.6 %, or by the rounding of the printed figure where that is more. A figure that
    leaves attention out is not compared in MACs; one that counts two for each MAC is halved first.
    """
    from vitbench import bench
    from vitbench import verify as verb
    from vitbench.running import environment

    if output is not None:
        results.check_writable(output)
    names = bench.select(models or (), families=family or (), everything=not models and not family)
    for name in names:
        catalog.find(name)
    asked = verb.questions(names)
    if not asked:
        raise BadInput(f"Nobody published figures of {', '.join(names)}.")
    checks = [check for found in progress(verb.verify(asked), len(asked), "Counting") for check in found]
    about = environment_columns(environment.describe())
    flat = [columns(check) | about for check in checks]
    shown = (
        Column(heading="Model", text=lambda row: row["model"]),
        Column(heading="Input", text=lambda row: size(row["input_shape"])),
        Column(heading="Params", text=_counted("params"), numeric=True),
        Column(heading="Published", text=_published("params"), numeric=True),
        Column(heading="MACs", text=_counted("macs"), numeric=True),
        Column(heading="Published", text=_published("macs"), numeric=True),
        Column(heading="Verdict", text=lambda row: row["verdict"]),
        Column(heading="Source", text=lambda row: row["source"], folds=True),
        Column(heading="Reason", text=lambda row: row["reason"] if row["verdict"] != "agrees" else "", folds=True),
    )
    tally = {
        verdict: sum(check.verdict == verdict for check in checks)
        for verdict in ("agrees", "explained", "differs", "failed")
    }
    summary = (
        f"{len(checks)} published figures: "
        + ", ".join(f"{number} {verdict}" for verdict, number in tally.items())
        + "."
    )
    emit(Table(rows=flat, columns=shown, notes=(summary,)), format, output)
    if tally["differs"]:
        raise typer.Exit(DIFFERS)
    if tally["failed"]:
        raise typer.Exit(SOME_FAILED)
