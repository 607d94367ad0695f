"""Options and rendering that two commands or more share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console

from vitbench import catalog, results, units
from vitbench.errors import CannotWrite
from vitbench.records import Table
from vitbench.reports import REPORTS, SUFFIXES

T = TypeVar("T")

SOME_FAILED = 3
"""The exit code when some rows failed and the others are there."""


class Format(StrEnum):
    """The reports on the shelf (a test holds the two equal)."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"


def complete_model(incomplete: str) -> Iterator[tuple[str, str]]:
    """Gives the names of the catalog that begin with what was typed, each with its paper."""
    for row in (*catalog.VARIANTS.values(), catalog.DEMO):
        if row.name.startswith(incomplete):
            yield row.name, row.paper.title


def complete_family(incomplete: str) -> Iterator[str]:
    """Gives the families that begin with what was typed."""
    return (family for family in catalog.families() if family.startswith(incomplete))


class Extents(tuple[int, ...]):
    """A size or a shape as the user types it: whole numbers above zero with x between them."""

    __slots__ = ()


def parse_size(text: str) -> Extents:
    """Reads "384" or "384x512" (height x width)."""
    extents = parse_shape(text)
    if len(extents) > 2:
        raise typer.BadParameter(f"{text!r} is not a size such as 384 or 384x512 (height x width).")
    return Extents((extents[0], extents[-1]))


def parse_shape(text: str) -> Extents:
    """Reads "3x224x224"."""
    try:
        return Extents(units.parse_extents(text))
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from error


class Sizes(tuple[Extents, ...]):
    """Several image sizes, as the user types them with commas between."""

    __slots__ = ()


def parse_sizes(text: str) -> Sizes:
    """Reads "224,384x512"."""
    return Sizes(parse_size(part) for part in text.split(","))


class Batches(tuple[int | Literal["auto"], ...]):
    """Batch sizes as the user types them."""

    __slots__ = ()


def parse_numbers(text: str) -> Batches:
    """Reads "1,8,32"."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is not whole numbers above zero with commas between, such as 1,8,32.")
    return Batches(int(part) for part in parts)


def parse_batches(text: str) -> Batches:
    """Reads "1,8,32" or "auto"."""
    return Batches(("auto",)) if text == "auto" else parse_numbers(text)


class MemorySize(int):
    """An amount of memory in bytes, as the user types it with a unit."""

    __slots__ = ()


def parse_memory(text: str) -> MemorySize:
    """Reads "24GiB"."""
    try:
        return MemorySize(units.parse_memory(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Names or globs of the catalog, names of timm, or package.module:factory.", autocompletion=complete_model
    ),
]
AllOption = Annotated[bool, typer.Option("--all", help="The whole catalog.")]
TimmOption = Annotated[str | None, typer.Option("--timm", metavar="GLOB", help="Any models of timm, such as 'vit_*'.")]
FramesOption = Annotated[int | None, typer.Option("--num-frames", min=1, help="Frames of a clip, for video models.")]
InputOption = Annotated[
    Extents | None,
    typer.Option("--input", metavar="CxHxW", help="Input of a factory's model, without the batch.", parser=parse_shape),
]
FormatOption = Annotated[
    Format | None,
    typer.Option("--format", "-f", help="How to write it; by default as the output file's ending says, else a table."),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write to this file instead of the terminal.", dir_okay=True)
]
FamilyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--family", help="All models of a family, such as swin; may be repeated.", autocompletion=complete_family
    ),
]


def chosen_format(wanted: Format | None, output: Path | None) -> str:
    """Gives the format asked for, or the one that the output's name asks for."""
    if wanted is not None:
        return wanted.value
    return SUFFIXES.get(output.suffix.lower(), "table") if output else "table"


def emit(table: Table, wanted: Format | None, output: Path | None) -> None:
    """Writes a table to its file, or to standard output; if the file cannot be written, the rows are not lost.

    Raises:
        CannotWrite: the file or standard output cannot be written.
    """
    name = chosen_format(wanted, output)
    deliver(table, REPORTS.load(name).render, output, terminal=name == "table")
    if output is not None:
        status(f"Wrote {len(table.rows)} {'row' if len(table.rows) == 1 else 'rows'} to {output}.")


def deliver(found: Any, render: Callable[..., str], output: Path | None, *, terminal: bool) -> None:
    """Writes what a report makes of something to its file, or to standard output, also where the file cannot be written.

    Args:
        found: what the report takes.
        render: of the report.
        output: the file.
        terminal: whether the report can be fitted to a terminal's width and colours.

    Raises:
        CannotWrite: the file or standard output cannot be written.
    """
    if output is not None:
        text = render(found)
        try:
            results.write(output, text)
        except CannotWrite:
            _print(text)
            raise
    elif terminal and sys.stdout.isatty():
        _print(render(found, width=shutil.get_terminal_size().columns, color=not _no_color()))
    else:
        _print(render(found))


def status(text: str) -> None:
    """Says something to a person, on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(units.printable(text))


def progress(rows: Iterable[T], total: int, doing: str, *, timed: bool = False) -> Iterator[T]:
    """Passes rows on, with a progress bar on standard error where that is a terminal and there is something to wait for.

    Args:
        rows: what takes its time.
        total: how many there will be.
        doing: what is being done, in a word.
        timed: time is being measured: the bar is shown for a single row too, and drawn once a second, so as not to disturb.
    """
    console = Console(stderr=True)
    if (total < 2 and not timed) or not console.is_terminal:
        yield from rows
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    shown = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*shown, console=console, transient=True, refresh_per_second=1 if timed else 10) as bar:
        yield from bar.track(rows, total=total)


def _no_color() -> bool:
    return Console().no_color


def _print(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # the reader has had enough: Typer ends quietly
    except OSError as error:
        raise CannotWrite(f"Cannot write to standard output: {error.strerror}.") from error
