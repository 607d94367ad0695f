"""Verdicts for people, in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vitbench import units
from vitbench.changes import Change, Comparison, Verdict
from vitbench.drawing import terminal
from vitbench.judging import wording
from vitbench.markup import one_line

_STYLES = {
    "regressed": "bold red",
    "missing": "red",
    "suspect": "yellow",
    "incomparable": "yellow",
    "inconclusive": "yellow",
    "improved": "green",
    "new": "cyan",
}

_HEADINGS = ("Verdict", "Model", "Column", "Base", "Head", "Change", "Note")
_NUMERIC = ("Base", "Head", "Change")

# Half of the cells of a plot, to either side of its middle.
_HALF = 10
_DENSITY = ".:*#"
# The pairs that a plot's scale leaves out, so that one outlier does not push all others into the middle.
_OUTLIERS = 0.05

# A column of notes narrower than this is no text any more, and has no room for a plot with its scale.
_NARROWEST = 2 * _HALF + 10


def render(comparison: Comparison, *, width: int | None = None, color: bool = False) -> str:
    """Gives a comparison as text: the verdict, what changed, worst first, and notes; in a narrow terminal a block a change.

    Args:
        comparison: what to show; what is unchanged is only counted.
        width: characters a line; None for as many as the table needs.
        color: whether to write terminal styles.
    """
    console = terminal.console(width, color=color)

    def say(text: str, style: str) -> None:
        console.print(Text(one_line(text), style=style), soft_wrap=width is None)

    say(wording.headline(comparison), "bold " + _STYLES.get(_worst(comparison), ""))
    if different := wording.differences(comparison):
        say(f"Different: {different}.", "yellow")
    rows = _rows(comparison)
    if rows:
        grid = _grid(rows)
        for block in [grid] if terminal.fits(console, grid) else _blocks(rows):
            console.print(block)
    if any(change.rounds for change in comparison.findings):
        say(
            "Pairs: head over base of each, left of | below 1, right of it above; . : * # for ever more of them, "
            "< and > for those beyond the scale.",
            "dim",
        )
    if shared := wording.conditions(wording.shared_conditions(comparison)):
        say(f"All: {shared}.", "dim")
    for note in comparison.notes:
        say(note, "dim")
    return terminal.text(console)


def _worst(comparison: Comparison) -> Verdict:
    """Gives the verdict whose colour the headline has: the worst that counts, else the worst that nobody expected."""
    if not comparison.compared:
        return "missing"
    unexpected = [change.verdict for change in comparison.changes if not change.expected]
    counting = [verdict for verdict in unexpected if verdict in comparison.counted]
    lesser = [verdict for verdict in unexpected if verdict not in ("regressed", "missing")]
    return next(iter(counting or lesser), "unchanged")


def _rows(comparison: Comparison) -> list[dict[str, list[str]]]:
    """Gives the cells of each row by heading, a text a line; the row of a module has no verdict."""
    labels, shared = wording.labels(comparison), wording.shared_conditions(comparison)
    rows = []
    for change in comparison.findings:
        before, after = wording.values(change)
        rows.append(
            {
                "Verdict": [change.verdict, "(expected)" if change.expected else ""],
                "Model": [change.model, wording.conditions(change.setting, without=shared)],
                "Column": [labels[change.column]],
                "Base": [before],
                "Head": [after],
                "Change": [wording.relative(change), wording.interval(change)],
                "Note": [_plot(change), wording.note(change)],
            }
        )
        told, rest = wording.parts(change)
        for part in told:
            before, after = wording.part_values(part)
            name = f"  {part.part or 'the model itself'}, {part.column}"
            rows.append({"Column": [name], "Base": [before], "Head": [after]})
        if rest:
            rows.append({"Column": [f"  {rest}"], "Base": ["..."], "Head": ["..."]})
    return rows


def _plot(change: Change) -> str:
    """Gives where the pairs of a measurement lie, from as far below 1 as above it, and how far that is: "..:*|:.  ±3.10 %"."""
    pairs = [math.log(ratio) for of_round in change.rounds for ratio in of_round if 0 < ratio < math.inf]
    if not pairs:
        return ""
    reach = sorted(map(abs, pairs))[math.ceil(len(pairs) * (1 - _OUTLIERS)) - 1]
    found = [0] * (2 * _HALF)
    for pair in pairs:
        # Of no reach all pairs are 1, and stand in the middle.
        place = math.floor(pair / reach * _HALF) if reach else 0
        found[min(max(place + _HALF, 0), 2 * _HALF - 1)] += 1
    cells = [_DENSITY[math.ceil(count / max(found) * len(_DENSITY)) - 1] if count else " " for count in found]
    cells[0] = "<" if any(pair < -reach for pair in pairs) else cells[0]
    cells[-1] = ">" if any(pair > reach for pair in pairs) else cells[-1]
    line = "".join([*cells[:_HALF], "|", *cells[_HALF:]])
    return f"{line} ±{units.percent(math.expm1(reach)).removeprefix('+')}"


def _grid(rows: Sequence[Mapping[str, Sequence[str]]]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in _HEADINGS:
        cells = [_cell(row, heading) for row in rows]
        needed = max(cell_len(line) for cell in [Text(heading), *cells] for line in cell.plain.split("\n"))
        grid.add_column(
            heading,
            justify="right" if heading in _NUMERIC else "left",
            min_width=min(needed, _NARROWEST) if heading == "Note" else needed,
            overflow="fold",
        )
    for row in rows:
        grid.add_row(*(_cell(row, heading) for heading in _HEADINGS))
    return grid


def _blocks(rows: Sequence[Mapping[str, Sequence[str]]]) -> list[RenderableType]:
    found: list[tuple[Text, Table]] = []
    for row in rows:
        if "Verdict" in row:
            what = Text(", ").join([_cell(row, "Model", ", "), _cell(row, "Column")])
            found.append((Text(" ").join([_cell(row, "Verdict", " "), what]), Table.grid(padding=(0, 2, 0, 0))))
            told = [(heading, _cell(row, heading, "\n")) for heading in ("Base", "Head", "Change", "Note")]
        else:
            told = [(_cell(row, "Column").plain, Text(" to ").join(_cell(row, side) for side in ("Base", "Head")))]
        for name, cell in told:
            if cell:
                found[-1][1].add_row(Text(name), cell)
    blocks: list[RenderableType] = [Text()]
    for title, lines in found:
        blocks += [title, *([Padding(lines, (0, 0, 0, 2))] if lines.row_count else []), Text()]
    return blocks


def _cell(row: Mapping[str, Sequence[str]], heading: str, between: str = "\n") -> Text:
    # Text, not markup: a model's name or a note may hold square brackets.
    lines = [units.printable(line).replace("\n", " ") for line in row.get(heading, ()) if line]
    return Text(between.join(lines), style=_STYLES.get(lines[0], "") if heading == "Verdict" and lines else "")
