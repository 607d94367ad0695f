"""Rows of result files, as charts take them: which have a result, what they share, and what the catalog and the papers add."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from vitbench import catalog, published, results
from vitbench.drawing.pictures import plain
from vitbench.errors import UnknownName
from vitbench.units import memory, size

_WITH_RESULT = {"", "ok", "lowered"}
"""The statuses of rows with a result; a row that somebody wrote by hand may have none."""

CONDITIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "machine": lambda row: results.text(row, "environment_device_name"),
    "device": lambda row: results.text(row, "device"),
    "dtype": lambda row: results.text(row, "dtype"),
    "amp": lambda row: "AMP" if results.flag(row, "amp") else "",
    "mode": lambda row: {"infer": "inference", "train": "training"}.get(mode := results.text(row, "mode"), mode),
    "compile": lambda row: f"compiled by {found}" if (found := results.text(row, "compile")) else "",
    "channels_last": lambda row: "channels-last" if results.flag(row, "channels_last") else "",
    "grad_checkpointing": lambda row: "gradient checkpointing" if results.flag(row, "grad_checkpointing") else "",
    "threads": lambda row: _threads(row),
    "torch": lambda row: f"torch {found}" if (found := results.text(row, "environment_torch")) else "",
    "method": lambda row: results.text(row, "max_batch_method"),
    "limit": lambda row: (
        f"{memory(found)} of memory" if (found := results.number(row, "limit_bytes")) is not None else ""
    ),
}
"""What may differ between rows besides model, input and batch, in words; empty where it is not known, or is not so."""

_OF_THE_INPUT: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "input": lambda row: size(_input(row)),
    "batch": lambda row: f"batch {found}" if (found := results.text(row, "batch_size")) else "",
}


def with_result(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], Counter[str]]:
    """Gives the rows that have a result, and how many of each kind have none."""
    found: list[Mapping[str, Any]] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        status = results.text(row, "status")
        if status in _WITH_RESULT:
            found.append(row)
        else:
            left_out[{"timeout": "timed out"}.get(status, status.replace("_", " "))] += 1
    return found, left_out


def counted(kinds: Counter[str]) -> str:
    """Gives the numbers of rows in words, such as "1 row failed, 2 rows out of memory"."""
    return ", ".join(f"{number} {'row' if number == 1 else 'rows'} {plain(kind)}" for kind, number in kinds.items())


def model_of(row: Mapping[str, Any]) -> str:
    """Gives the name of a row's model, as a font can set it.

    Raises:
        BadInput: it has none.
    """
    name = plain(results.text(row, "model"))
    if not name:
        raise results.wrong(row, "model", "a model's name")
    return name


def check_columns(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> None:
    """Makes sure that some row has each column.

    Raises:
        UnknownName: none has, with the columns whose names come near.
    """
    known = dict.fromkeys(column for row in rows for column in row)
    for column in columns:
        if column not in known:
            listed = [name for name in known if not name.startswith("environment_")]
            raise UnknownName("column", column, known, hint=f"The results have {', '.join(map(plain, listed))}.")


def shared(rows: Sequence[Mapping[str, Any]]) -> str:
    """Gives in words what all rows have in common, such as machine, dtype and batch, and between which batches they lie."""
    batches = {found for row in rows if (found := results.number(row, "batch_size")) is not None}
    said = [f"batch {min(batches):g}" + (f" to {max(batches):g}" if len(batches) > 1 else "")] if batches else []
    texts = {name: {say(row) for row in rows} for name, say in CONDITIONS.items()}
    for name, ways in texts.items():
        # The machine's name says more than cuda:0.
        if name == "device" and texts["machine"] != {""}:
            continue
        if len(ways) == 1:
            said += [plain(text) for text in ways if text]
    return ", ".join(said)


def labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Gives a name for each row: the model's, and what tells the row from others of the same model.

    Where no condition does, it is the first column of words that differs, such as what else was measured beside it.
    """
    ways = _OF_THE_INPUT | CONDITIONS
    of_model: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        of_model.setdefault(model_of(row), []).append(row)
    differing = {
        model: [say for name, say in ways.items() if len({say(row) for row in own} - _unknown(name)) > 1]
        for model, own in of_model.items()
    }
    for model, own in of_model.items():
        if len(own) > 1 and not differing[model] and (column := _telling(own)):
            differing[model] = [partial(results.text, column=column)]
    return [
        plain(", ".join(part for part in (model, *(say(row) for say in differing[model])) if part))
        for row in rows
        for model in [model_of(row)]
    ]


def _telling(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Gives the first column of words that is different in each row, if there is one."""
    for column in rows[0]:
        texts = {results.text(row, column) for row in rows}
        if len(texts) == len(rows) and all(any(sign.isalpha() for sign in text) for text in texts):
            return column
    return None


def _unknown(condition: str) -> set[str]:
    """Gives the text of a condition that was not stated, which differs from no other; of an option, that it was off."""
    return set() if condition in ("amp", "compile", "channels_last", "grad_checkpointing") else {""}


def completed(rows: Sequence[Mapping[str, Any]]) -> list[tuple[results.Line, published.Figure | None]]:
    """Gives the rows with what is known of their models besides, and the figure that `top1` is from, where it is published.

    `family` is the catalog's, `top1` the papers', and counts of a forward pass are those of other rows of the same model,
    input and batch, if they agree, or of one input, as often as the batch has inputs. What a row says itself stays.
    """
    counts: dict[tuple[Any, ...], set[Any]] = {}
    for row in rows:
        for column in _COUNTS:
            if row.get(column) not in (None, ""):
                counts.setdefault((column, *_pass(row), inputs(row, column)), set()).add(results.number(row, column))
    found: list[tuple[results.Line, published.Figure | None]] = []
    for row in rows:
        line = results.Line(getattr(row, "where", "A row"), row)
        for column in _COUNTS:
            if row.get(column) in (None, ""):
                for counted_at in (inputs(row, column), 1.0):
                    others = counts.get((column, *_pass(row), counted_at), set())
                    if len(others) == 1:
                        line[column] = next(iter(others)) * inputs(row, column) / counted_at
                        break
        variant = catalog.VARIANTS.get(results.text(row, "model"))
        figure = None
        if variant is not None and row.get("top1") in (None, ""):
            shape = _input(row) or variant.input_shape
            figure = published.imagenet_top1(variant.published_ids, variant.paper.cited_as, shape)
        line["family"] = row.get("family") or (variant.family if variant else None)
        line["top1"] = float(figure.top1) if figure else row.get("top1")
        found.append((line, figure))
    return found


PER_INPUT = ("macs", "flops", "activations")
"""Counts of a forward pass that are as much the more as the batch has inputs."""

# What one forward pass costs does not depend on where it ran.
_COUNTS = ("params", "params_trainable", *PER_INPUT)


def inputs(row: Mapping[str, Any], column: str) -> float:
    """Gives over how many inputs a row's number goes: those of its batch (one where it does not say), or one."""
    return (results.number(row, "batch_size") or 1.0) if column in PER_INPUT else 1.0


def _input(row: Mapping[str, Any]) -> tuple[int, ...]:
    return results.extents(row, "input_shape") if results.text(row, "input_shape") else ()


def _pass(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return results.text(row, "model"), _input(row)


def _threads(row: Mapping[str, Any]) -> str:
    found = results.text(row, "threads")
    if not found or not (results.text(row, "device") or "cpu").startswith("cpu"):
        return ""
    return f"{found} {'thread' if found == '1' else 'threads'}"
