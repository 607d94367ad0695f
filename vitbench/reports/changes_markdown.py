"""A comment on a pull request: the verdict, at most 20 rows, and the rest folded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vitbench.changes import Change, Comparison
from vitbench.judging import wording
from vitbench.markup import fenced, markdown, one_line, shortened

MARKER = "<!-- vitbench -->"
"""The first line, by which a workflow finds its own comment to write over it."""

COMMENT_LIMIT = 65_000
"""Bytes of a comment; GitHub takes 65,536 characters, none of which has less than a byte."""

_ROWS = 20

# What stands behind the rows may take so much of the room each, so that most of it is left for the rows.
_SHARE = 0.15

# Beyond these a cell is no longer read; what is escaped gets longer, but not without bound.
_NAME_LENGTH = 120
_NOTE_LENGTH = 400
_COMMAND_LENGTH = 2_000

# Else a page breaks the line before the sign of per cent.
_HARD_SPACE = "\N{NO-BREAK SPACE}"


def render(comparison: Comparison, *, limit: int = COMMENT_LIMIT) -> str:
    """Gives a comparison as GitHub's Markdown; whatever could be markup, a mention or a link is escaped.

    Args:
        comparison: what to show; what is unchanged is only counted.
        limit: bytes of UTF-8 at most; the worst come first, and a sentence says how many rows were left out. Where there is
            room for the verdict alone, it is that, and where there is none for that either, nothing.
    """
    head = [MARKER, f"### {markdown(wording.headline(comparison))}", ""]
    if different := wording.differences(comparison):
        head += [f"Different: {_text(different, _NOTE_LENGTH)}.", ""]
    if shared := wording.conditions(wording.shared_conditions(comparison)):
        head += [f"All: {_text(shared, _NOTE_LENGTH)}.", ""]
    share = int(limit * _SHARE)
    tail = [
        *_modules(comparison, share),
        *_notes(comparison, share),
        *_environment(comparison, share),
        *_commands(comparison, share),
    ]
    room = limit - _bytes(head) - _bytes(tail)
    whole = [*head, *_table(comparison, room), *tail]
    fitting = next((lines for lines in (whole, head[:2]) if _bytes(lines) <= limit), [])
    return "\n".join(fitting).rstrip("\n") + "\n" if fitting else ""


def _bytes(lines: Iterable[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)


def _text(text: str, length: int = _NAME_LENGTH) -> str:
    return markdown(shortened(text, length))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(change: Change, label: str, shared: dict[str, str]) -> str:
    setting = wording.conditions(change.setting, without=shared)
    percents = [text.replace(" ", _HARD_SPACE) for text in (wording.relative(change), wording.interval(change)) if text]
    return _line(
        [
            f"**{change.verdict}**" if change.verdict == "regressed" and not change.expected else change.verdict,
            _text(change.model) + (f"<br>{_text(setting)}" if setting else ""),
            _text(label),
            *(_text(value) for value in wording.values(change)),
            "<br>".join(percents),
            _text(wording.note(change), _NOTE_LENGTH),
        ]
    )


def _table(comparison: Comparison, room: int) -> list[str]:
    """Gives as many rows as there is room for, those beyond the first 20 folded."""
    changes = comparison.findings
    if not changes:
        return []
    header = [
        _line(["Verdict", "Model", "Column", "Base", "Head", "Change, 95 % interval", "Note"]),
        _line(["---", "---", "---", "---:", "---:", "---:", "---"]),
    ]
    labels, shared = wording.labels(comparison), wording.shared_conditions(comparison)
    # Room for the header twice, the fold and the sentence.
    room -= 2 * _bytes(header) + 200
    rows = _fitting((_row(change, labels[change.column], shared) for change in changes), room)
    lines = [*header, *rows[:_ROWS], ""] if rows else []
    if rows[_ROWS:]:
        lines += _folded(f"{len(rows) - _ROWS} more", [*header, *rows[_ROWS:]])
    if left_out := len(changes) - len(rows):
        lines += [f"{left_out} of {len(changes)} rows, the least bad, are left out: there is no room for them.", ""]
    return lines


def _modules(comparison: Comparison, room: int) -> list[str]:
    labels = wording.labels(comparison)
    changes = [change for change in comparison.findings if change.parts]
    if not changes:
        return []
    lines = []
    for change in changes[:_ROWS]:
        names = [_text(change.model), _text(labels[change.column])]
        told, rest = wording.parts(change)
        cells = [[_text(part.part or "the model itself"), part.column, *wording.part_values(part)] for part in told]
        lines += [_line([*names, *found]) for found in (*cells, *([[rest, "", "", ""]] if rest else []))]
    header = [
        _line(["Model", "Column", "Module", "", "Base", "Head"]),
        _line(["---", "---", "---", "---", "---:", "---:"]),
    ]
    summary = "Modules that changed" + (f", of the {_ROWS} worst" if len(changes) > _ROWS else "")
    return _folded(summary, [*header, *_cut(lines, room, "| and {} more lines | | | | | |")])


def _environment(comparison: Comparison, room: int) -> list[str]:
    lines = []
    for name in dict.fromkeys((*comparison.environment, *comparison.differences)):
        before, after = comparison.differences.get(name, ("", ""))
        was = f" (base: {_text(before or 'none')})" if name in comparison.differences else ""
        lines.append(f"- {_text(name)}: {_text(comparison.environment.get(name) or after or 'none')}{was}")
    return _folded("Environment", _cut(lines, room, "- and {} more fields")) if lines else []


def _notes(comparison: Comparison, room: int) -> list[str]:
    lines = [f"- {_text(note, _NOTE_LENGTH)}" for note in comparison.notes]
    return [*_cut(lines, room, "- and {} more notes"), ""] if lines else []


def _commands(comparison: Comparison, room: int) -> list[str]:
    commands = [shortened(one_line(command), _COMMAND_LENGTH) for command in comparison.commands]
    return _folded("Commands", fenced(_cut(commands, room, "# and {} more commands"))) if commands else []


def _cut(lines: Sequence[str], room: int, rest: str) -> list[str]:
    """Gives the first lines, as many as there is room for, and a line that counts those left out."""
    kept = _fitting(lines, room)
    return kept if len(kept) == len(lines) else [*kept, rest.format(len(lines) - len(kept))]


def _fitting(lines: Iterable[str], room: int) -> list[str]:
    kept = []
    for line in lines:
        room -= _bytes([line])
        if room < 0:
            break
        kept.append(line)
    return kept


def _folded(summary: str, lines: Sequence[str]) -> list[str]:
    # Markdown within HTML begins after an empty line.
    return ["<details>", f"<summary>{summary}</summary>", "", *lines, "", "</details>", ""]
