"""Writes result files in one place, whole or not at all or line by line, and reads them back."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

from vitbench.errors import BadInput, CannotWrite, NoRows

# By what they hold: JSON keeps the samples, and a sweep writes its lines first.
_FULLEST = (".jsonl", ".json", ".csv")
# As long as a C long holds everywhere.
_LONGEST_CELL = 2**31 - 1


class Line(dict[str, Any]):
    """One row of a result file: a value by column, None where the cell is empty. The values of a CSV file are text.

    Attributes:
        where: file and line, for errors.
    """

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.where = where


def check_writable(path: Path) -> None:
    """Makes sure, before anything is measured, that a result can be written to a path.

    Raises:
        CannotWrite: it is a folder, or its folder does not exist or cannot be written.
    """
    if path.is_dir():
        raise CannotWrite(f"Cannot write {path}: it is a folder; give the name of a file in it.")
    if not path.parent.is_dir():
        raise CannotWrite(f"Cannot write {path}: there is no folder {path.parent}.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CannotWrite(f"Cannot write to the folder {path.parent}: {error.strerror}.") from error


def write(path: Path, content: str | bytes) -> None:
    """Writes a result, text or a picture; a reader, or a second run at the same time, never sees half a file.

    Raises:
        CannotWrite: the folder cannot be written, or the disk is full; what stood at the path is left as it was.
    """
    # Beside the target, so that the rename stays on one disk; of this process, so that two runs do not share it.
    half_written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with half_written.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name with nothing in it
        half_written.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            half_written.unlink()
        raise CannotWrite(f"Cannot write {path}: {error.strerror}.") from error


def append(path: Path, line: str) -> None:
    """Adds a line to a file, by one write, and returns once it is on the disk: who is killed later loses nothing of it.

    Raises:
        CannotWrite: the file cannot be written, or the disk is full; what stood in it is left as it was.
    """
    data = f"{line}\n".encode()
    try:
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(data) < len(data):
                    # The system wrote what had room, without an error.
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise
    except OSError as error:
        raise CannotWrite(f"Cannot write {path}: {error.strerror}.") from error


def drop_torn_line(path: Path) -> None:
    """Takes out of a file of `append` a last line that was cut off.

    Raises:
        CannotWrite: the file cannot be written.
    """
    try:
        data = path.read_bytes()
        kept = data.rfind(b"\n") + 1
        if kept < len(data):
            with path.open("r+b") as file:
                file.truncate(kept)
    except OSError as error:
        raise CannotWrite(f"Cannot go on with {path}: {error.strerror}.") from error


def found(path: Path) -> list[Path]:
    """Gives the result files of a path: itself, or all of a folder and the folders in it, by name, without hidden ones.

    Of files that differ only in their ending, as a sweep's results.jsonl and results.csv, the one that holds most.

    Raises:
        NoRows: the folder has none.
        BadInput: it cannot be read.
    """
    if not path.is_dir():
        return [path]
    best: dict[Path, Path] = {}
    try:
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in _FULLEST and not hidden(file.relative_to(path)) and file.is_file():
                other = best.setdefault(file.with_suffix(""), file)
                if _FULLEST.index(file.suffix.lower()) < _FULLEST.index(other.suffix.lower()):
                    best[file.with_suffix("")] = file
    except OSError as error:
        raise BadInput(f"Cannot read the folder {path}: {error.strerror}.") from error
    if not best:
        raise NoRows(f"Cannot read {path}: the folder has no file whose name ends in {', '.join(_READERS)}.")
    return list(best.values())


def hidden(path: Path) -> bool:
    """Tells whether a file, or a folder that it is in, is hidden."""
    return any(part.startswith(".") for part in path.parts)


def load(path: Path, notes: list[str] | None = None) -> list[Line]:
    """Gives the rows of a result file, or of every result file of a folder, as `found` finds them.

    Args:
        path: the file, or the folder, whose files that hold something else than rows, such as a package.json, are left out.
        notes: gets a sentence for each file that was left out.

    Raises:
        NoRows: the file holds something else than rows, or a folder has none.
        BadInput: there is no such file, or one is damaged.
    """
    lines: list[Line] = []
    left_out: list[str] = []
    for file in found(path):
        try:
            lines += read(file)
        except NoRows as error:
            if file == path:
                raise
            left_out.append(f"Left out: {error}")
    if not lines:
        raise NoRows(f"Cannot read {path}: no file of the folder has rows. {left_out[0]}")
    if notes is not None:
        notes += left_out
    return lines


def read(path: Path) -> list[Line]:
    """Gives the rows of a file that `write` wrote: CSV, JSON (a list of objects) or JSON lines (an object a line).

    Raises:
        NoRows: the file holds something else than rows, or an empty list.
        BadInput: it is not there, is empty or damaged.
    """
    _reader(path)
    try:
        return parse(path, path.read_bytes())
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror}.") from error


def parse(path: Path, data: bytes) -> list[Line]:
    """Gives the rows of a file, as `read` does, from what is in it.

    Args:
        path: what errors call it; its ending tells the format.
        data: what is in it.

    Raises:
        NoRows: it holds something else than rows, or an empty list.
        BadInput: it is empty or damaged.
    """
    reader = _reader(path)
    try:
        content = TextIOWrapper(BytesIO(data), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        before = error.object[: error.start].split(b"\n")
        place = f"line {len(before)}, column {len(before[-1]) + 1}"
        raise BadInput(f"Cannot read {path}: it is not text in UTF-8, as of {place}.") from error
    if not content.strip():
        raise BadInput(f"Cannot read {path}: it is empty.")
    rows = list(reader(path, content))
    if not rows:
        raise BadInput(f"Cannot read {path}: it has no rows.")
    return rows


def _reader(path: Path) -> Callable[[Path, str], Iterator[Line]]:
    if path.suffix.lower() not in _READERS:
        raise BadInput(f"Cannot read {path}: give a result file whose name ends in {', '.join(_READERS)}.")
    return _READERS[path.suffix.lower()]


def text(row: Mapping[str, Any], column: str) -> str:
    """Gives a row's text; empty where there is none."""
    value = row.get(column)
    return "" if value is None else str(value)


def flag(row: Mapping[str, Any], column: str) -> bool:
    """Gives a row's truth value; an empty cell is False."""
    return text(row, column).lower() == "true"


def number(row: Mapping[str, Any], column: str) -> float | None:
    """Gives a row's finite number, or None for an empty cell.

    Raises:
        BadInput: it is something else.
    """
    value = row.get(column)
    if value is None or value == "":
        return None
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        found = float(value)
        if math.isfinite(found) and not isinstance(value, bool):
            return found
    raise wrong(row, column, "a number")


def extents(row: Mapping[str, Any], column: str) -> tuple[int, ...]:
    """Gives a row's shape, "3x224x224" in CSV and a list in JSON.

    Raises:
        BadInput: it is none.
    """
    value = row.get(column)
    parts = value.split("x") if isinstance(value, str) else value
    if isinstance(parts, list | tuple) and parts:
        texts = [str(part) for part in parts]
        if all(part.isascii() and part.isdigit() and len(part) < 10 and int(part) for part in texts):
            return tuple(int(part) for part in texts)
    raise wrong(row, column, "a shape such as 3x224x224")


def wrong(row: Mapping[str, Any], column: str, expected: str) -> BadInput:
    """Gives the error for a cell that does not hold what was expected."""
    where = getattr(row, "where", "A row")
    value = row.get(column)
    if value is None or value == "":
        return BadInput(f"{where} has no {column}; expected {expected}.")
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
    return BadInput(f"{where}: {column} is {shown}, not {expected}.")


def _read_csv(path: Path, content: str) -> Iterator[Line]:
    lines = csv.reader(StringIO(content, newline=""), strict=True)
    # The numbers of a tile are one cell, and the module's limit of 131072 characters holds some 120 x 120 of them.
    limit = csv.field_size_limit(_LONGEST_CELL)
    begin = 1  # where the row that is read begins: a quote that is not closed takes all lines that follow
    try:
        header = next(lines)
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise BadInput(f"Cannot read {path}: two of its columns are called {twice!r}.")
        begin = lines.line_num + 1
        for cells in lines:
            where, begin = f"{path}, line {begin}", lines.line_num + 1
            if not cells:
                continue
            if len(cells) != len(header):
                first = (
                    f"column {len(header) + 1} has no name"
                    if len(cells) > len(header)
                    else f"{header[len(cells)]} is not there"
                )
                raise BadInput(f"{where} has {len(cells)} cells, but the header names {len(header)} columns: {first}.")
            yield Line(where, {name: cell or None for name, cell in zip(header, cells, strict=True)})
    except csv.Error as error:
        raise BadInput(f"{path}, line {begin} is not CSV: {error}.") from error
    finally:
        csv.field_size_limit(limit)


def _read_json(path: Path, content: str) -> Iterator[Line]:
    found = _parsed(str(path), content)
    if not isinstance(found, list) or (found and not any(isinstance(item, dict) for item in found)):
        raise NoRows(f"Cannot read {path}: expected a list with an object a row, as commands that measure write it.")
    if not found:
        raise NoRows(f"Cannot read {path}: it has no rows.")
    for place, item in enumerate(found, 1):
        yield _object(f"{path}, row {place}", item)


def _read_json_lines(path: Path, content: str) -> Iterator[Line]:
    for place, line in enumerate(content.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {place}"
            yield _object(where, _parsed(where, line, named_line=True))


def _object(where: str, item: object) -> Line:
    if not isinstance(item, dict):
        raise BadInput(f"{where} is not an object with a value a column.")
    return Line(where, item)


def _parsed(where: str, content: str, *, named_line: bool = False) -> object:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if named_line else f"line {error.lineno}, column {error.colno}"
        raise BadInput(f"{where} is not JSON: {error.msg} at {place}.") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where} is not JSON that can be read: {type(error).__name__}.") from error


_READERS: dict[str, Callable[[Path, str], Iterator[Line]]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
}

SUFFIXES = tuple(_READERS)
"""What the names of result files end in."""
