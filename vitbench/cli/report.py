"""`vitbench plot`: the figures that result files make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from vitbench import results
from vitbench.charts import CHARTS
from vitbench.cli.options import status
from vitbench.errors import BadInput


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
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Results of vitbench: .csv, .json or .jsonl.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture to write: .png, .pdf or .svg.", show_default=False)
    ],
) -> None:
    """Draw a chart of one or more result files."""
    from vitbench.pictures import TIMELESS, rendered

    ending = output.suffix.lower()
    if ending not in TIMELESS:
        raise BadInput(f"Cannot draw {output}: give a name that ends in {', '.join(TIMELESS)}.")
    draw = CHARTS.load(chart).plot
    results.check_writable(output)
    rows = [row for file in files for row in results.read(file)]
    results.write(output, rendered(draw(rows), ending))
    status(f"Wrote {output}.")
