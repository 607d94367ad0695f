"""One page of all results: a summary, plots to point at, pictures, tables, the environment and the commands behind them."""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

import vitbench
from vitbench import results
from vitbench.analyses import ANALYSES
from vitbench.changes import Comparison
from vitbench.drawing import offline, pareto, rows
from vitbench.errors import BadInput, NoRows
from vitbench.findings import RECORDS
from vitbench.records import AnalysisSetting, Environment, Machine, RunSetting
from vitbench.reports import changes_html
from vitbench.reports.changes_html import cell, finite
from vitbench.units import memory, percent, printable, printed, quantity

Flat = Mapping[str, Any]

MOST_PICTURE_BYTES = 4 * 2**20
"""A larger picture is named, not shown."""
MOST_BYTES = 40 * 2**20
"""Nor is one with which all pictures together would be larger than this."""

_PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}

_COMMANDS = {
    "Part": "flops",
    "Flops": "flops",
    "Check": "verify",
    "Throughput": "throughput",
    "Predicted": "memory",
    "Measured": "memory",
    "MaxBatch": "max-batch",
    "HeadDistance": "attn-distance",
    "HeadEntropy": "attn-entropy",
    "RolloutMap": "attn-rollout",
    "Similarity": "cka",
    "FilterTile": "embedding-filters",
    "FeatureMap": "feature-maps",
    "HeadBias": "position-bias",
    "PositionTile": "posemb-similarity",
    "Field": "receptive-field",
    "TokenCosine": "token-similarity",
}
"""The command that writes a record."""
# They stand beside another record, and are no kind of row of their own.
_BESIDE = ("CrossCount", "Beside", "Agreement")

# What a plot can show: the words at its axis, and which way it is better.
_AXES: dict[str, tuple[str, pareto.Direction]] = {
    "top1": ("ImageNet-1k top-1, published (%)", "higher"),
    "throughput_per_s": ("Inputs per second", "higher"),
    "latency_median_ms": ("Median latency of a batch (ms)", "lower"),
    "params": ("Parameters", "lower"),
    "macs_per_input": ("MACs of one input", "lower"),
    "predicted_peak_bytes": ("Peak memory, predicted (MiB)", "lower"),
    "measured_peak_bytes": ("Peak memory, measured (MiB)", "lower"),
    "max_batch": ("Largest batch that fits", "higher"),
}
_COSTS = ("macs_per_input", "latency_median_ms", "params", "predicted_peak_bytes", "measured_peak_bytes")
_GAINS = ("top1", "throughput_per_s", "max_batch", "latency_median_ms", "params")
_SCALED = (
    "throughput_per_s",
    "max_batch",
    "latency_median_ms",
    "measured_peak_bytes",
    "predicted_peak_bytes",
    "macs_per_input",
)
_OVER = {"side_px": "Side of the input (pixels)", "batch_size": "Inputs in a batch"}
_MOST_LINES = 64

# What a table shows first besides keys and judged columns; the rest is behind "All columns".
_FIRST = frozenset(
    (
        *("latency_median_ms", "utilization", "warnings", "verdict", "reason", "published_params", "params_difference"),
        *("published_macs", "macs_difference", "max_batch_method", "component", "status", "note"),
    )
)
# Judged, and still of little interest at first sight.
_LATER = frozenset(("params_trainable", "uncounted_elements"))
# Too long for a cell.
_LISTS = frozenset(
    ("values", "frame_shares", "uncounted", "operators", "modules", "output", "samples_ms", "phases_ms", "asked")
)
_REPEATS = {"batch_size_asked": "batch_size", "params_trainable": "params"}
"""A column that is left out where it is the same as another in all rows."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_UNIT = re.compile(r"_(bytes|ms|s|px)$")
_LONGEST_SHARED = 60
# Plotly puts styles into elements of these names, and makes none where the page has them already, as its policy asks.
_PLOTLYS_STYLE = re.compile(r'getElementById\("([0-9a-f]{64})"\)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What lies in the results given.

    Attributes:
        files: the rows of each result file.
        pictures: files of pictures.
        left_out: sentences on files that could not be used.
    """

    files: Mapping[Path, Sequence[results.Line]]
    pictures: Sequence[Path]
    left_out: Sequence[str]


def find(paths: Sequence[Path]) -> Found:
    """Finds result files and pictures in files and folders, the first as `results.found` does.

    Raises:
        BadInput: a path is not there, a file named cannot be read, or there is neither a row nor a picture.
    """
    files: dict[Path, Sequence[results.Line]] = {}
    pictures: dict[Path, None] = {}
    left_out = []
    for path in paths:
        if not path.is_dir():
            files[path] = results.read(path)
            beside = (path.with_suffix(ending) for ending in _PICTURES)
            pictures.update((picture, None) for picture in beside if picture.is_file())
            continue
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in _PICTURES and one.is_file())
        pictures.update((one, None) for one in inside if not results.hidden(one.relative_to(path)))
        with suppress(NoRows):  # there may be pictures alone
            for one in results.found(path):
                try:
                    files[one] = results.read(one)
                except BadInput as error:
                    left_out.append(str(error))
    if not files and not pictures:
        raise BadInput(" ".join(left_out) or f"There are no results in {', '.join(map(str, paths))}.")
    return Found(files=files, pictures=list(pictures), left_out=left_out)


def render(found: Found, *, title: str = "vitbench report", changes: Comparison | None = None) -> str:
    """Gives what was found as one HTML file that opens offline.

    Args:
        found: rows and pictures.
        title: stands at its head.
        changes: since a baseline.
    """
    everything = [row for of_file in found.files.values() for row in of_file]
    measured, failed = rows.with_result(everything)
    points, not_drawn = _points(measured)
    plots, data, front = _plots(points)
    pictures, too_large = _pictures(found)
    environment = _environment(everything)
    commands = list(dict.fromkeys(text for row in everything if (text := results.text(row, "environment_command"))))
    sections = [
        ("summary", "Summary"),
        *([("changes", "Changes")] if changes else []),
        *((plot["id"], plot["title"]) for plot in plots),
        *([("pictures", "Pictures")] if pictures else []),
        *([("tables", "Tables")] if everything else []),
        *([("environment", "Environment")] if environment else []),
        *([("commands", "Commands")] if commands else []),
    ]
    plotly = get_plotlyjs() if plots else ""
    return offline.page(
        "report.html",
        scripts=[offline.source("page.js"), *([plotly, offline.source("plots.js")] if plots else [])],
        styles=["plotly.js-style-global", *_PLOTLYS_STYLE.findall(plotly)],
        title=title,
        version=vitbench.__version__,
        sections=sections,
        lead=_lead(found, everything, failed),
        facts=_facts(found, everything, failed),
        best=_best(points),
        front=front,
        notes=[*found.left_out, *not_drawn, *too_large],
        changes=changes_html.context(changes) if changes else None,
        plots=plots,
        data=data,
        pictures=pictures,
        tables=_tables(found.files),
        environment=environment,
        commands=commands,
    )


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


# --- what a row is ---------------------------------------------------------------------------------------------------


@cache
def _own() -> dict[str, tuple[str, ...]]:
    """Gives by record the columns that tell its rows: no other record's and always filled, or, if it has none, all its own."""
    often = Counter(item.name for record in (RunSetting, AnalysisSetting, *RECORDS) for item in fields(record))
    own = {record.__name__: [item for item in fields(record) if often[item.name] == 1] for record in RECORDS}
    return {
        name: tuple(item.name for item in items if "None" not in str(item.type)) or tuple(item.name for item in items)
        for name, items in own.items()
    }


def _kinds(row: Flat) -> tuple[str, ...]:
    """Gives the names of the records that a row holds."""

    def holds(columns: Sequence[str]) -> bool:
        filled = sum(row.get(name) not in (None, "") for name in columns)
        return bool(filled) and 2 * filled >= len(columns)

    return tuple(name for name, columns in _own().items() if name not in _BESIDE and holds(columns))


_MEASUREMENTS = {"Flops", "Throughput", "Predicted", "Measured", "MaxBatch"}


def _title(kinds: Sequence[str]) -> str:
    return " + ".join(dict.fromkeys(_COMMANDS.get(kind, kind.lower()) for kind in kinds))


@cache
def _declared() -> dict[str, Mapping[str, Any]]:
    """Gives what is declared of each column; of a name in two records, the first."""
    found: dict[str, Mapping[str, Any]] = {}
    for record in (RunSetting, AnalysisSetting, *RECORDS):
        for item in fields(record):
            if "heading" in item.metadata:
                found.setdefault(item.name, item.metadata)
    return found


# --- summary ---------------------------------------------------------------------------------------------------------


def _lead(found: Found, everything: Sequence[Flat], failed: Counter[str]) -> str:
    models = {results.text(row, "model") for row in everything} - {""}
    kinds = Counter(kind for row in everything for kind in [_title(_kinds(row))] if kind)
    what = ", ".join(kind for kind, _ in kinds.most_common())
    return (
        f"{_counted(len(everything), 'row')} on {_counted(len(models), 'model')}"
        f"{f', of {what}' if what else ''}; {rows.counted(failed) if failed else 'none failed'}."
    )


def _facts(found: Found, everything: Sequence[Flat], failed: Counter[str]) -> list[tuple[str, str]]:
    times = sorted({_said_time(results.text(row, "environment_time")) for row in everything} - {""})
    facts = [("Rows", f"{len(everything)} in {_counted(len(found.files), 'file')}")]
    facts += [("Without a result", rows.counted(failed))] if failed else []
    facts += [("Pictures", str(len(found.pictures)))] if found.pictures else []
    facts += [("Measured", times[0] if len(times) == 1 else f"{times[0]} to {times[-1]}")] if times else []
    return facts


def _said_time(time: str) -> str:
    return time.replace("T", " ").replace("+00:00", " UTC")


def _best(points: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    best = []
    for name, (title, way) in _AXES.items():
        having = [point for point in points if name in point["values"]]
        if len(having) < 2:
            continue
        # By the axis; all that reach the best value, or the first few of them.
        values = [point["values"][name] for point in having]
        reached = (max if way == "higher" else min)(values)
        won = list(dict.fromkeys(point["label"] for point in having if point["values"][name] == reached))
        others = f" and {len(won) - 2} others" if len(won) > 2 else ""
        text = next(point["texts"][name] for point in having if point["values"][name] == reached)
        said = title.partition(" (")[0]
        best.append((f"{said}, {'highest' if way == 'higher' else 'lowest'}", f"{', '.join(won[:2])}{others}: {text}"))
    return best


# --- plots -----------------------------------------------------------------------------------------------------------


def _points(measured: Sequence[Flat]) -> tuple[list[dict[str, Any]], list[str]]:
    """Gives the points, and a sentence on the rows that could have been some.

    A row of a whole model with a value that an axis shows is one: what it says, and what was counted or published of the same.
    """
    usable, wrong = [], []
    for row in measured:
        shown = any(row.get(name) not in (None, "") for name in ("macs", *_AXES)) and "Part" not in _kinds(row)
        if shown and printable(results.text(row, "model")).strip():
            try:
                rows.labels([row])
                rows.completed([row])
                usable.append(row)
            except BadInput as error:
                wrong.append(str(error))
    said = [f"{_counted(len(wrong), 'row')} cannot be drawn. {wrong[0]}"] if wrong else []
    per_input: dict[tuple[str, str], set[float]] = {}
    for row in usable:
        if (macs := _value(row, "macs")) is not None:
            per_input.setdefault((results.text(row, "model"), str(_shape(row))), set()).add(macs / _batch(row))
    # What tells a row from others of its kind: a count has no machine, a measurement has.
    of_kind: dict[tuple[str, ...], list[Flat]] = {}
    for row in usable:
        of_kind.setdefault(_kinds(row), []).append(row)
    usable = [row for same in of_kind.values() for row in same]
    labels = [label for same in of_kind.values() for label in rows.labels(same)]
    points: dict[tuple[Any, ...], dict[str, Any]] = {}
    for (row, figure), label in zip(rows.completed(usable), labels, strict=True):
        shape = _shape(row)
        # Counts are the row's own, or those of others of its model and input where these agree.
        values = {name: value for name in _AXES if (value := _value(row, name)) is not None}
        values["batch_size"] = _batch(row)
        others = per_input.get((results.text(row, "model"), str(shape)), set())
        if (macs := _value(row, "macs")) is not None:
            values["macs_per_input"] = macs / _batch(row)
        elif len(others) == 1:
            (values["macs_per_input"],) = others
        texts = {name: quantity(name, value) for name, value in values.items()}
        texts["batch_size"] = f"{values['batch_size']:g}"
        if figure:
            texts["top1"] += f", trained on {figure.data}; {figure.source}"
        if shape:
            values["side_px"] = math.sqrt(math.prod(shape[-2:]))
            texts["side_px"] = f"{shape[-2]}x{shape[-1]} px"
        point = {
            "label": label,
            "family": results.text(row, "family") or "not in the catalog",
            "values": values,
            "texts": texts,
            "row": row,
            "more_data": figure is not None and figure.more_data,
        }
        # A model checked against several sources is one point.
        points.setdefault((label, *sorted(values.items())), point)
    return list(points.values()), said


def _batch(row: Flat) -> float:
    return _value(row, "batch_size") or 1  # as it is by default, where a file leaves it out


def _shape(row: Flat) -> tuple[int, ...] | None:
    try:
        found = results.extents(row, "input_shape")
    except BadInput:
        return None
    return found if len(found) >= 2 else None


def _value(row: Flat, column: str) -> float | None:
    try:
        return results.number(row, column)
    except BadInput:
        return None


def _plots(points: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any] | None]:
    """Gives the plots that have something to show, their data, and the Pareto front of the first."""

    def both(x: str, y: str) -> list[int]:
        return [place for place, point in enumerate(points) if x in point["values"] and y in point["values"]]

    plots, summary = [], None
    names = [name for name in _AXES if any(name in point["values"] for point in points)]
    fronts = {(x, y): _front(points, both(x, y), x, y) for x, y in permutations(names, 2) if both(x, y)}
    pairs = [(x, y) for y in _GAINS for x in _COSTS if x != y and len({points[at]["label"] for at in both(x, y)}) > 1]
    if pairs:
        x, y = pairs[0]
        of_front = [points[place] for place in fronts[x, y]]
        front = list(dict.fromkeys(": ".join(_front_words(point, x, y)) for point in of_front))
        summary = {"title": f"{_AXES[y][0]} against {_AXES[x][0]}", "labels": front}
        sources = (
            "Top-1 is as published at that input, of training on ImageNet-1k alone where there is such a figure, by the "
            "model's own paper where it says; hollow marks: of training on more data. "
            if "top1" in names
            else ""
        )
        plots.append(
            {
                "id": "tradeoff",
                "title": "Trade-off",
                "note": f"A point a row; colour and shape by family. {sources}MACs and parameters are those counted of the "
                "same model at the same input.",
                "selects": [
                    (axis, of, [(name, _AXES[name][0]) for name in names]) for axis, of in (("x", x), ("y", y))
                ],
            }
        )
    lines = {x: _lines(points, x) for x in _OVER}
    drawn = [(x, y) for y in _SCALED for x in _OVER if any(_rises(points, one["points"], x, y) for one in lines[x])]
    if drawn:
        x, y = drawn[0]
        plots.append(
            {
                "id": "scaling",
                "title": "Scaling",
                "note": "A line a model and setting, over the size of the input (the side of a square of its area) or the batch."
                + (f" The first {_MOST_LINES} lines." if any(len(of) >= _MOST_LINES for of in lines.values()) else ""),
                "selects": [
                    ("x", x, [(name, _OVER[name]) for name in _OVER if any(name == one for one, _ in drawn)]),
                    ("y", y, [(name, _AXES[name][0]) for name in _SCALED if any(name == one for _, one in drawn)]),
                ],
            }
        )
    families: dict[str, list[int]] = {}
    for place, point in enumerate(points):
        families.setdefault(point["family"], []).append(place)
    data = {
        "points": [{key: _clean(point[key]) for key in ("label", "values", "texts", "more_data")} for point in points],
        "axes": {
            name: {"title": title, "scale": 2.0**-20 if name.endswith("_bytes") else 1}
            for name, title in {**{name: title for name, (title, _) in _AXES.items()}, **_OVER}.items()
        },
        "families": [{"name": _clean(name), "points": of} for name, of in families.items()],
        "fronts": {f"{x} {y}": front for (x, y), front in fronts.items()},
        "lines": lines,
    }
    return plots, data, summary


def _front_words(point: Mapping[str, Any], x: str, y: str) -> list[str]:
    """Gives a point's name, and where its top-1 is from if that is what is drawn."""
    return [point["label"], *([point["texts"]["top1"]] if "top1" in (x, y) else [])]


def _clean(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def _front(points: Sequence[Mapping[str, Any]], places: Sequence[int], x: str, y: str) -> list[int]:
    at = [(points[place]["values"][x], points[place]["values"][y]) for place in places]
    found = pareto.front(at, _AXES[x][1], _AXES[y][1])
    # Rows of one model that differ in neither of the two, such as inference and training over MACs, are one point.
    once = {
        (results.text(points[places[place]]["row"], "model"), at[place]): places[place] for place in reversed(found)
    }
    return list(reversed(once.values()))


def _lines(points: Sequence[Mapping[str, Any]], x: str) -> list[dict[str, Any]]:
    """Gives the lines over an axis: points of one model whose settings differ in nothing else."""
    varied = {"side_px": ("input_shape",), "batch_size": ("batch_size", "batch_size_asked")}[x]
    keys = [item.name for item in fields(RunSetting) if item.name not in (*varied, "model")]
    found: dict[tuple[str, ...], list[int]] = {}
    for place, point in enumerate(points):
        if x in point["values"]:
            row = point["row"]
            leading = "x".join(map(str, (_shape(row) or ())[:-2]))
            setting = (results.text(row, "model"), leading, *(quantity(key, row.get(key)) for key in keys))
            found.setdefault(setting, []).append(place)
    risen = {setting: places for setting, places in found.items() if _rises(points, places, x, x)}
    several = {key: len({setting[at] for setting in risen}) > 1 for at, key in enumerate(keys, 2)}
    lines = []
    for setting, places in risen.items():
        said = [f"{key} {text}" for key, text in zip(keys, setting[2:], strict=True) if several[key] and text]
        places.sort(key=lambda place: points[place]["values"][x])
        lines.append({"name": _clean(", ".join([setting[0], *said])), "points": places})
    return lines[:_MOST_LINES]


def _rises(points: Sequence[Mapping[str, Any]], places: Sequence[int], x: str, y: str) -> bool:
    return len({points[place]["values"][x] for place in places if y in points[place]["values"]}) > 1


# --- pictures --------------------------------------------------------------------------------------------------------


def _pictures(found: Found) -> tuple[list[dict[str, str]], list[str]]:
    shown, left_out, total = [], [], 0
    summaries = {entry.name: entry.summary for entry in ANALYSES}
    for path in found.pictures:
        try:
            content = path.read_bytes()
        except OSError as error:
            left_out.append(f"{path} cannot be read: {error.strerror}.")
            continue
        if len(content) > MOST_PICTURE_BYTES or total + len(content) > MOST_BYTES:
            left_out.append(
                f"{path} ({memory(len(content))}) is not shown: a picture may have {memory(MOST_PICTURE_BYTES)}, "
                f"all together {memory(MOST_BYTES)}."
            )
            continue
        total += len(content)
        beside = next((of for file, of in found.files.items() if file.with_suffix("") == path.with_suffix("")), ())
        command = _title(_kinds(beside[0])) if beside else ""
        models = ", ".join(dict.fromkeys(results.text(row, "model") for row in beside))
        said = [f"{summaries[command]}: {models}" if command in summaries else models]
        for column in ("input_shape", "weights", "source"):
            values = {quantity(column, row.get(column)) for row in beside} - {""}
            said += values if len(values) == 1 else []
        about = f"{command}, {', '.join(filter(None, said))}. " if beside else ""
        rest = (
            f", drawn from the {_counted(len(beside), 'row')} beside it"
            if beside
            else "; no result file lies beside it"
        )
        encoded = base64.b64encode(content).decode()
        shown.append(
            {
                "data": f"data:{_PICTURES[path.suffix.lower()]};base64,{encoded}",
                "alt": f"{command} of {models}" if beside else path.stem,
                "caption": f"{about}{path}{rest}.",
            }
        )
    return shown, left_out


# --- tables ----------------------------------------------------------------------------------------------------------


def _tables(files: Mapping[Path, Sequence[results.Line]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, ...], dict[Path, list[results.Line]]] = {}
    for path, of_file in files.items():
        for row in of_file:
            kinds = _kinds(row)
            with_result, _ = rows.with_result([row])
            group = ("", "Not measured") if not kinds and not with_result else kinds or ("file", path.name)
            groups.setdefault(group, {}).setdefault(path, []).append(row)
    # What failed first; analyses, whose pictures say more, last and closed.
    place = {kinds: (kinds[0] != "", not set(kinds) & _MEASUREMENTS, kinds[0] in _ANALYSED) for kinds in groups}
    ordered = sorted(groups, key=lambda kinds: place[kinds])
    return [
        _table(f"table-{number}", kinds, groups[kinds], open=kinds[0] not in _ANALYSED)
        for number, kinds in enumerate(ordered, 1)
    ]


_ANALYSED = {record for record, command in _COMMANDS.items() if command in ANALYSES.names}


def _table(id: str, kinds: Sequence[str], files: Mapping[Path, Sequence[Flat]], *, open: bool) -> dict[str, Any]:
    own = [row for of_file in files.values() for row in of_file]
    named = dict.fromkeys(name for row in own for name in row if not name.startswith("environment_"))
    columns: dict[str, list[Any]] = {}
    for name in sorted(named, key=lambda one: (one != "model", one not in _SETTINGS, one in ("status", "note"))):
        values = [_parsed(name, row.get(name)) for row in own]
        empty = all(value in (None, "", [], ()) for value in values)
        if name not in _LISTS and not empty and values != columns.get(_REPEATS.get(name, "")):
            columns[name] = values
    same = {
        name: text
        for name, values in columns.items()
        if (len(own) > 1 or name in _SETTINGS)
        and name != "model"
        and not _judged(name)
        and len(set(map(repr, values))) == 1
        if len(text := quantity(name, values[0])) <= _LONGEST_SHARED or name in _SETTINGS
    }
    shown = {name: values for name, values in columns.items() if name not in same}
    texts = [[_text(name, value) for value in values] for name, values in shown.items()]
    cells = [
        [cell(text, finite(value)) for text, value in zip(of, values, strict=True)]
        for of, values in zip(texts, shown.values(), strict=True)
    ]
    declared = set(kinds) & set(_own())
    heads = [
        {
            "text": _heading(name, shown),
            "classes": " ".join(
                filter(
                    None,
                    [
                        "n" if all(finite(value) is not None for value in values if value is not None) else "",
                        "more" if declared and place and not _first(name) else "",
                    ],
                )
            ),
        }
        for place, (name, values) in enumerate(shown.items())
    ]
    title = kinds[1] if kinds[0] in ("", "file") else _title(kinds)
    about = {record.__name__: (record.__doc__ or "").partition("\n")[0] for record in RECORDS}
    caption = [about[kind] for kind in kinds if kind in about]
    if said := [f"{_heading(name, {})} {text}" for name, text in same.items() if text not in ("", "no", "ok")]:
        caption.append(f"In all rows: {'; '.join(said)}.")
    caption += offline.capped(own)
    return {
        "id": id,
        "title": title,
        "caption": f"{title}, from {', '.join(map(str, files))}",
        "note": " ".join(caption),
        "heads": heads,
        "rows": [list(row) for row in zip(*cells, strict=True)][: offline.MOST_ROWS],
        "more": any("more" in head["classes"] for head in heads),
        "open": open,
        "meanings": [
            (_heading(name, shown), meaning)
            for name in shown
            if (meaning := _declared().get(name, {}).get("meaning")) and declared
        ],
    }


_SETTINGS = tuple(dict.fromkeys(item.name for record in (RunSetting, AnalysisSetting) for item in fields(record)))


def _judged(name: str) -> bool:
    return _declared().get(name, {}).get("better") is not None and name not in _SETTINGS


def _first(name: str) -> bool:
    declared = _declared().get(name)
    return name not in _LATER and (declared is None or declared["key"] or _judged(name) or name in _FIRST)


def _heading(name: str, beside: Iterable[str]) -> str:
    """Gives what stands over a column; of two that a record calls the same, each gets its name."""
    heading = _declared().get(name, {}).get("heading") or name.replace("_", " ")
    twice = [one for one in beside if one != name and _declared().get(one, {}).get("heading") == heading]
    words = _UNIT.sub("", name).replace("_", " ").replace("macs", "MACs") if twice else str(heading)
    return words[:1].upper() + words[1:]


def _parsed(name: str, value: Any) -> Any:
    """Gives a value as its type, which CSV has forgotten."""
    if not isinstance(value, str) or name in ("model", "note", "source", "layer", "name"):
        return value
    if value in ("True", "False"):
        return value == "True"
    if not _NUMBER.fullmatch(value):
        return value
    return int(value) if value.lstrip("+-").isdigit() and len(value) < 20 else float(value)


def _text(name: str, value: Any) -> str:
    number = finite(value)
    if number is not None and name.startswith("published_"):
        return printed(number)
    if number is not None and name.endswith("_difference"):
        return percent(number)
    return quantity(name, value)


# --- environment -----------------------------------------------------------------------------------------------------


def _environment(everything: Sequence[Flat]) -> list[tuple[str, str]]:
    found = []
    for item in (*fields(Environment), *fields(Machine)):
        name = f"environment_{item.name}"
        values = Counter(quantity(item.name, _parsed("", row.get(name))) for row in everything)
        values.pop("", None)
        if item.name in ("time", "command") or not values:
            continue
        said = values.most_common(4)
        many = len(values) > 1
        text = "; ".join(f"{text} ({_counted(number, 'row')})" if many else text for text, number in said)
        found.append((item.metadata["heading"], text + (f"; {len(values) - 4} others" if len(values) > 4 else "")))
    return found
