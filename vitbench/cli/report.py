"""`vitbench plot`: the figures that result files make."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vitbench import results
from vitbench.charts import CHARTS
from vitbench.cli.options import status
from vitbench.errors import BadInput
from vitbench.reports import REPORTS
from vitbench.units import memory


def complete_chart(incomplete: str) -> Iterator[tuple[str, str]]:
    """Gives the charts that begin with what was typed, each with what it shows."""
    return ((entry.name, entry.summary) for entry in CHARTS if entry.name.startswith(incomplete))


def plot(
    chart: Annotated[
        str,
        typer.Argument(
            help=f"What to draw: {'; '.join(f'{entry.name}, {entry.summary}' for entry in CHARTS)}.",
            autocompletion=complete_chart,
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture to write: .png, .pdf or .svg.", show_default=False)
    ],
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RESULTS...",
            help="Results of vitbench: files (.csv, .json, .jsonl), or folders of them. fig5 can do without.",
            show_default=False,
        ),
    ] = None,
    x: Annotated[
        str | None,
        typer.Option("--x", metavar="COLUMN", help="tradeoff: any number, by default macs; scaling: batch_size."),
    ] = None,
    y: Annotated[
        str | None, typer.Option("--y", metavar="COLUMN", help="tradeoff: any number, by default top1, as published.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="COLUMN", help="tradeoff: what the area of a dot stands for.")
    ] = None,
    color: Annotated[
        str | None,
        typer.Option("--color", metavar="COLUMN", help="tradeoff: what its colour stands for, by default family."),
    ] = None,
) -> None:
    """Draw a chart of one or more result files."""
    from vitbench.drawing.pictures import TIMELESS, any_sign, rendered

    ending = output.suffix.lower()
    if ending not in TIMELESS:
        raise BadInput(f"Cannot draw {output}: give a name that ends in {', '.join(TIMELESS)}.")
    module = CHARTS.load(chart)
    known = inspect.signature(module.plot).parameters
    given = {"x": x, "y": y, "size": size, "color": color}
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        if name not in known:
            raise BadInput(f"The chart {chart} takes no --{name}: leave it out.")
    if not paths and known["rows"].default is inspect.Parameter.empty:
        raise BadInput(f"The chart {chart} needs RESULTS: give a result file or a folder of them.")
    results.check_writable(output)
    notes: list[str] = []
    rows = [row for path in paths or [] for row in results.load(path, notes)]
    for left_out in notes:
        status(left_out)
    with any_sign():
        figure = module.plot(rows, **options)
    results.write(output, rendered(figure, ending))
    if hasattr(module, "listing"):
        status(REPORTS.load("table").render(module.listing(rows, **options)).rstrip("\n"))
    status(f"Wrote {output}.")


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...", help="Result files of any command, and folders of them.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write: .html.", show_default=False)],
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline", metavar="BASE", help="A result file or folder: what has changed since it is told too."
        ),
    ] = None,
) -> None:
    """Write one page of all results, which opens offline: summary, plots, pictures, tables, environment and commands.

    A folder is searched with all folders in it. The page has some 5 MB for its plots, and the pictures besides.
    """
    from vitbench import page

    if output.suffix.lower() not in (".html", ".htm"):
        raise BadInput(f"Cannot write {output}: give a name that ends in .html.")
    results.check_writable(output)
    found = page.find(paths)
    changes = None
    if baseline is not None:
        from vitbench import compare

        # A folder may hold the baseline too, which is not to be compared with itself.
        aside = {file.resolve() for file in results.found(baseline)}
        files = {file: rows for file, rows in found.files.items() if file in paths or file.resolve() not in aside}
        head = [row for of_file in files.values() for row in of_file]
        head_name = ", ".join(map(str, paths))
        notes: list[str] = []
        base = results.load(baseline, notes)
        changes = compare.compare(base, head, base_name=str(baseline), head_name=head_name)
        changes = replace(changes, notes=(*notes, *changes.notes))
    html = page.render(found, changes=changes)
    results.write(output, html)
    for left_out in found.left_out:
        status(left_out)
    shown = ((sum(map(len, found.files.values())), "row"), (len(found.pictures), "picture"))
    said = ", ".join(f"{number} {thing}{'' if number == 1 else 's'}" for number, thing in shown)
    status(f"Wrote {output}: {said}, {memory(len(html.encode()))}.")
