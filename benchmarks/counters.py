"""Compares counters of multiply-accumulates: what they count, how far that is from the papers, and what counting costs.

Every count runs in a fresh process, the way the counter's own documentation shows it: the others get a model on the
CPU, with random weights, and an input; `vitbench` is the command. The counters take turns, so that a drifting machine
slows all of them, and `python -c "import timm"`, which every one of them has to do, is timed beside them in each turn.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import IO

# Nothing here may import torch: the kernel carries the peak memory of this process over to the ones that it starts.
from vitbench import catalog, published
from vitbench.catalog import Variant
from vitbench.errors import UnknownName
from vitbench.running import environment
from vitbench.units import percent, size

MODELS = (
    "vit_b16",
    "vit_b16_384",
    "deit_s16",
    "swin_b",
    "swinv2_t_w8",
    "pvt_v2_b2",
    "mvitv2_t",
    "coatnet_0_dwstride",
    "resnet50",
    "vit_g14",
)
TIMEOUT_S = 300
COSTS_SHOWN = ("swin_b", "vit_g14")

# What `vitbench flops` may cost, as a multiple of `import timm`.
CHECKED = ("swin_b", "vit_g14")
WALL_BUDGET = 1.25
MEMORY_BUDGET = 1.15

BASELINE = "import timm"
OURS = "vitbench"

_BUILD = """
import timm, torch
model = timm.create_model({name!r}, num_classes={classes}, **{options!r}).eval()
batch = {batch}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A way to count.

    Attributes:
        name: what the tables call it.
        distribution: what pip calls it.
        gives: the unit of its number; FLOPs are halved to MACs.
        imports: what its program imports.
        count: its program, which has `model` and `batch`, an input's shape, and sets `macs`; empty for our command.
    """

    name: str
    distribution: str
    gives: str = "MACs"
    imports: str = ""
    count: str = ""

    def command(self, variant: Variant) -> list[str]:
        """Gives the command that prints the count of a model."""
        if not self.count:
            return [sys.executable, "-m", "vitbench", "flops", variant.name, "--format", "json"]
        build = _BUILD.format(
            name=variant.timm_name,
            classes=variant.num_classes,
            options=dict(variant.options),
            batch=(1, *variant.input_shape),
        )
        return [sys.executable, "-c", f"{self.imports}{build}{self.count}\nprint(macs)"]

    def warm_up(self) -> list[str]:
        """Gives a command that reads from disk whatever the counter imports."""
        return [sys.executable, "-c", f"import timm\n{self.imports or 'import vitbench.bench'}"]

    def read(self, output: str) -> int:
        """Reads the count from what the command printed.

        Raises:
            ValueError, TypeError or LookupError: there is none.
        """
        if not self.count:
            return int(json.loads(output)[0]["macs"])
        return int(float(output.split()[-1]))


_PTFLOPS = (
    "macs, params = get_model_complexity_info(model, batch[1:], as_strings=False, print_per_layer_stat=False, {})"
)

COUNTERS = (
    Counter(name=OURS, distribution="vitbench"),
    Counter(
        name="fvcore",
        distribution="fvcore",
        gives="MACs (named flops)",
        imports="from fvcore.nn import FlopCountAnalysis",
        count="macs = FlopCountAnalysis(model, torch.randn(batch)).total()",
    ),
    Counter(
        name="torch FlopCounterMode",
        distribution="torch",
        gives="FLOPs",
        imports="from torch.utils.flop_counter import FlopCounterMode",
        # No gradients: with them it would keep every activation, which is no fault of the counter.
        count="with torch.no_grad(), FlopCounterMode(display=False) as counter:\n"
        "    model(torch.randn(batch))\n"
        "macs = counter.get_total_flops() // 2",
    ),
    Counter(
        name="calflops",
        distribution="calflops",
        gives="both: its MACs",
        imports="from calflops import calculate_flops",
        count="flops, macs, params = calculate_flops("
        "model=model, input_shape=batch, output_as_string=False, print_results=False)",
    ),
    Counter(
        name="ptflops pytorch",
        distribution="ptflops",
        imports="from ptflops import get_model_complexity_info",
        count=_PTFLOPS.format("backend='pytorch'"),
    ),
    Counter(
        name="ptflops aten",
        distribution="ptflops",
        imports="from ptflops import get_model_complexity_info",
        count=_PTFLOPS.format("backend='aten'"),
    ),
)

_BASELINE_ROW = Counter(name=BASELINE, distribution="timm", gives="no count")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One process, from its start to its end."""

    status: str
    note: str
    output: str
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One run of a counter, what it counted, and the run of `import timm` of the same round and model."""

    run: Run
    baseline: Run
    macs: int | None = None


Turns = dict[tuple[str, str], list[Turn]]
"""The turns of each (model, counter), in the order of the rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the runs of a counter took: medians, the ratios those of each run to `import timm` of its own round."""

    wall_s: float
    wall_samples_s: str
    cpu_s: float
    peak_memory_bytes: int
    ratio_to_import_timm: float
    memory_ratio_to_import_timm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the CSV file, where the fields of the cost stand in its place; errors are fractions."""

    model: str
    input: str
    counter: str
    gives: str
    status: str
    note: str
    macs: int | None
    published_macs: int | None
    error_vs_published: float | None
    error_vs_vitbench: float | None
    cost: Cost | None
    versions: str
    cpu: str
    cores: int
    load_before: float


def run(command: Sequence[str], timeout_s: float = TIMEOUT_S) -> Run:
    """Runs a command to its end and gives what the kernel says it took."""
    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
        tempfile.TemporaryDirectory() as here,
    ):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=here)
        timer = threading.Timer(timeout_s, os.kill, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            _, ended, usage = os.wait4(process.pid, 0)
        finally:
            timer.cancel()
        wall = time.perf_counter() - start
        code = process.returncode = os.waitstatus_to_exitcode(ended)
        status, note = "ok", ""
        if code == -signal.SIGKILL and wall >= timeout_s:
            status, note = "timeout", f"took more than {timeout_s:g} s"
        elif code < 0:
            status, note = "killed", signal.Signals(-code).name
            note += ": perhaps memory ran out" if code == -signal.SIGKILL else ""
        elif code:
            status, note = "failed", _last_line(err)
        out.seek(0)
        return Run(
            status=status,
            note=note,
            output=out.read(),
            wall_s=wall,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_memory_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        )


def _last_line(file: IO[str]) -> str:
    file.seek(0)
    lines = file.read().strip().splitlines()
    return lines[-1].strip() if lines else "said nothing"


def run_baseline() -> Run:
    """Runs `import timm`.

    Raises:
        SystemExit: it fails, so nothing else can work.
    """
    found = run([sys.executable, "-c", BASELINE])
    if found.status != "ok":
        raise SystemExit(f"`{BASELINE}` {found.status}: {found.note}")
    return found


def run_counter(counter: Counter, variant: Variant, baseline: Run) -> Turn:
    """Runs a counter once."""
    found = run(counter.command(variant))
    if found.status != "ok":
        return Turn(run=found, baseline=baseline)
    try:
        return Turn(run=found, baseline=baseline, macs=counter.read(found.output))
    except (ValueError, TypeError, LookupError):
        printed = " ".join(found.output.split()[:20]) or "nothing"
        return Turn(run=replace(found, status="failed", note=f"printed no count: {printed}"), baseline=baseline)


def installed(counter: Counter) -> str:
    """Gives the version of a counter; empty where it is not installed."""
    try:
        return version(counter.distribution)
    except PackageNotFoundError:
        return ""


def measure(variants: Sequence[Variant], repeats: int, after_round: Callable[[Turns], None]) -> None:
    """Runs every installed counter on every model, `repeats` times, in turns."""
    counters = [counter for counter in COUNTERS if installed(counter)]
    turns: Turns = {}
    for counter in counters:
        run(counter.warm_up())
    for number in range(repeats):
        for variant in variants:
            baseline = run_baseline()
            turns.setdefault((variant.name, BASELINE), []).append(Turn(run=baseline, baseline=baseline))
            first = number % len(counters)
            for counter in counters[first:] + counters[:first]:
                taken = turns.setdefault((variant.name, counter.name), [])
                if taken and taken[-1].run.status in ("timeout", "killed"):
                    continue
                turn = run_counter(counter, variant, baseline)
                taken.append(turn)
                say(
                    f"round {number + 1}/{repeats}  {variant.name:20} {counter.name:20} {turn.run.status:8}"
                    f"{turn.run.wall_s:7.1f} s {turn.run.peak_memory_bytes / 1e6:7.0f} MB  {turn.run.note}"
                )
        after_round(turns)


def rows(variants: Sequence[Variant], turns: Turns, load: float) -> list[Row]:
    """Sums up what was measured, one row for each model and counter, the baseline first."""
    here = environment.describe()
    result = []
    for variant in variants:
        figure = published.chosen(
            published.find(variant.published_ids, variant.input_shape), "macs", variant.paper.cited_as
        )
        paper = round(figure.macs) if figure and figure.macs else None
        exact = _macs(turns.get((variant.name, OURS), []))
        for counter in (_BASELINE_ROW, *COUNTERS):
            taken = turns.get((variant.name, counter.name), [])
            bad = next((turn.run for turn in taken if turn.run.status != "ok"), None)
            macs = None if bad else _macs(taken)
            status, note = ("ok", "") if bad is None else (bad.status, bad.note)
            if not taken:
                status, note = "not installed", f"pip install {counter.distribution}"
            software = {"python": here.python, "torch": here.torch, "timm": here.timm}
            software[counter.distribution] = installed(counter)
            row = Row(
                model=variant.name,
                input=size(variant.input_shape),
                counter=counter.name,
                gives=counter.gives,
                status=status,
                note=note,
                macs=macs,
                published_macs=paper,
                error_vs_published=macs / paper - 1 if macs is not None and paper else None,
                error_vs_vitbench=macs / exact - 1 if macs is not None and exact else None,
                cost=summed(taken) if taken and not bad else None,
                versions="; ".join(f"{name} {number}" for name, number in software.items() if number),
                cpu=here.cpu,
                cores=here.cores,
                load_before=load,
            )
            result.append(row)
    return result


def _macs(taken: Sequence[Turn]) -> int | None:
    return taken[-1].macs if taken else None


def summed(taken: Sequence[Turn]) -> Cost:
    """Sums up the cost of the turns of one counter on one model."""
    runs = [turn.run for turn in taken]
    walls = [turn.run.wall_s / turn.baseline.wall_s for turn in taken]
    memories = [turn.run.peak_memory_bytes / turn.baseline.peak_memory_bytes for turn in taken]
    return Cost(
        wall_s=round(median(run.wall_s for run in runs), 3),
        wall_samples_s=" ".join(f"{run.wall_s:.3f}" for run in runs),
        cpu_s=round(median(run.cpu_s for run in runs), 3),
        peak_memory_bytes=int(median(run.peak_memory_bytes for run in runs)),
        ratio_to_import_timm=round(median(walls), 3),
        memory_ratio_to_import_timm=round(median(memories), 3),
    )


def write_csv(table: Sequence[Row], path: Path) -> None:
    """Writes the rows, replacing the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(Row)]
    place = names.index("cost")
    names[place : place + 1] = [field.name for field in fields(Cost)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in table:
            flat = asdict(row)
            cost = flat.pop("cost") or {}
            writer.writerow(flat | cost)


def markdown(table: Sequence[Row]) -> str:
    """Gives the rows as two tables: the counters, and their errors by model."""
    models = list(dict.fromkeys(row.model for row in table))
    shown = [model for model in COSTS_SHOWN if model in models]
    cells = {(row.model, row.counter): row for row in table}
    names = [counter.name for counter in COUNTERS]

    summary = [["Counter", "Gives", "Largest error", "Median error"]]
    summary[0] += [f"Time, {model}" for model in shown] + [f"Peak memory, {model}" for model in shown]
    for counter in (*COUNTERS, _BASELINE_ROW):
        own = [cells[model, counter.name] for model in models]
        errors = [abs(row.error_vs_published) for row in own if row.error_vs_published is not None]
        line = [counter.name, counter.gives]
        line += [f"{100 * spread(errors):.1f} %" if errors else "" for spread in (max, median)]
        missing = sum(row.status != "ok" for row in own)
        line[2] += f" ({missing} without count)" if missing else ""
        spent = [row for row in own if row.model in shown]
        line += [
            f"{row.cost.ratio_to_import_timm:.2f}x ({row.cost.wall_s:.1f} s)" if row.cost else row.status
            for row in spent
        ]
        line += [f"{row.cost.peak_memory_bytes / 1e9:.2f} GB" if row.cost else row.status for row in spent]
        summary.append(line)

    by_model = [["Model", "Published MACs", *names]]
    for model in models:
        paper = cells[model, OURS].published_macs
        errors_of = [_error(cells[model, name]) for name in names]
        by_model.append([model, f"{paper / 1e9:.6g} G" if paper else "none", *errors_of])
    return f"{_pipes(summary, left=2)}\n\n{_pipes(by_model, left=1)}"


def _error(row: Row) -> str:
    if row.error_vs_published is not None:
        return percent(row.error_vs_published)
    return row.status if row.status != "ok" else "nothing published"


def _pipes(lines: Sequence[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(lines[0]) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def check(variants: Sequence[Variant], repeats: int) -> bool:
    """Tells whether our command keeps to its budget, by the median of paired ratios to `import timm`."""
    ours = COUNTERS[0]
    kept = True
    run(ours.warm_up())
    for variant in variants:
        taken = []
        for number in range(repeats):
            # The order alternates: whoever comes second finds warmer caches.
            baseline = run_baseline() if number % 2 else None
            found = run(ours.command(variant))
            taken.append(Turn(run=found, baseline=baseline or run_baseline()))
            if found.status != "ok":
                raise SystemExit(f"vitbench flops {variant.name} {found.status}: {found.note}")
            say(f"pair {number + 1}/{repeats}  {variant.name}  {found.wall_s / taken[-1].baseline.wall_s:.2f}x")
        cost = summed(taken)
        wall, memory = cost.ratio_to_import_timm, cost.memory_ratio_to_import_timm
        within = wall <= WALL_BUDGET and memory <= MEMORY_BUDGET
        kept = kept and within
        print(
            f"{'ok' if within else 'OVER BUDGET'}: vitbench flops {variant.name} takes {wall:.3f}x the time (at most "
            f"{WALL_BUDGET}x) and {memory:.3f}x the peak memory (at most {MEMORY_BUDGET}x) of `{BASELINE}`; medians of "
            f"{repeats} pairs; {cost.wall_s:.2f} s, {cost.peak_memory_bytes / 1e6:.0f} MB"
        )
    return kept


def say(text: str) -> None:
    """Reports progress."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Runs the comparison, or the check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="+", metavar="NAME", help="names of the catalog")
    parser.add_argument("--repeats", type=int, metavar="N", help="runs of each (3; with --check 9 pairs)")
    parser.add_argument("--output", type=Path, default=Path("results/counters.csv"), help="rewritten after each round")
    parser.add_argument("--format", choices=("markdown", "none"), default="markdown", help="what to print at the end")
    parser.add_argument("--check", action="store_true", help="only hold our command to its budget; 1 if it is over")
    asked = parser.parse_args()
    repeats = asked.repeats if asked.repeats is not None else 9 if asked.check else 3
    if repeats < 1:
        parser.error("--repeats must be 1 or more")
    try:
        variants = [catalog.find(name) for name in asked.models or (CHECKED if asked.check else MODELS)]
    except UnknownName as error:
        parser.error(str(error))
    if asked.check:
        sys.exit(0 if check(variants, repeats) else 1)

    load = round(os.getloadavg()[0], 2)
    say(f"{os.cpu_count()} cores, load {load} before the first run")
    table: list[Row] = []

    def keep(turns: Turns) -> None:
        table[:] = rows(variants, turns, load)
        write_csv(table, asked.output)

    measure(variants, repeats, keep)
    say(f"load {os.getloadavg()[0]:.2f} after the last run; wrote {asked.output}")
    if asked.format == "markdown":
        print(markdown(table))


if __name__ == "__main__":
    main()
