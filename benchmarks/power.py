"""Measures how often `vitbench ab` is wrong and what it can see: by simulation, and with real models that are really slowed.

Both go through the very same `vitbench.judging.duel`. The simulation has fake workers on a fake clock; real comparisons have
the workers of `vitbench ab`, which run a small model, one side of which does a part of its work twice, alone or beside processes
that keep the machine busy.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy
from scipy import stats

from benchmarks.slowed import SIZE
from vitbench.judging import duel, pairs, sides
from vitbench.running import environment

EFFECTS = (0.0, 0.03, 0.05, 0.10, 0.20)
VERDICTS = ("regressed", "improved", "suspect", "inconclusive", "unchanged")

SLOWDOWNS = {0.0: 0, 0.05: 3, 0.1: 6}
"""Blocks of 40 that do their work twice, by what that is meant to cost."""

# Rounds from which a table tells the slow-down: of more, the pairs of them would not fit into memory.
_LONG = 2000
_PARTS = ("slowdown", "planted_macs", "measured", "half_width_median", "called_low", "called_high")

# Products of matrices, for moments of random length with random pauses; it ends when its parent is gone.
_LOAD = """
import os, random, sys, time
import numpy
parent, draw = os.getppid(), random.Random(int(sys.argv[1]))
x = numpy.random.rand(256, 256)
while os.getppid() == parent:
    until = time.monotonic() + draw.uniform(0.05, 1)
    while time.monotonic() < until:
        x @ x
    time.sleep(draw.uniform(0, 0.3))
"""


# The simulation.


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """How a simulated machine disturbs what runs on it; all sizes are relative times.

    Attributes:
        job: how jobs differ from each other, which both sides of a pair share.
        drift: how far it wanders within minutes, up and down.
        process: how processes of the same code differ.
        noise: of a single run; 3 % of the runs are spikes of half as much again.
        bursts_per_s: how often something else begins to take its share.
        burst_s: how long that lasts on average.
        burst: how much longer a run takes meanwhile.
    """

    job: float
    drift: float
    process: float
    noise: float
    bursts_per_s: float
    burst_s: float
    burst: float


MACHINES = {
    "quiet": Machine(job=0.027, drift=0.01, process=0.002, noise=0.01, bursts_per_s=0.02, burst_s=0.2, burst=1.5),
    "typical": Machine(job=0.08, drift=0.03, process=0.005, noise=0.03, bursts_per_s=0.1, burst_s=0.3, burst=1.5),
    "bad": Machine(job=0.15, drift=0.06, process=0.01, noise=0.06, bursts_per_s=0.5, burst_s=0.5, burst=1.7),
    "loaded": Machine(job=0.15, drift=0.06, process=0.02, noise=0.15, bursts_per_s=2.0, burst_s=0.5, burst=2.0),
}


class Job:
    """A simulated job on a machine: its clock, and the times of what runs on it."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine = machine
        self.now = 0.0
        self._random = random.Random(seed)  # noqa: S311  # no secret
        self._level = math.exp(self._random.gauss(0, machine.job))
        self._phase = self._random.uniform(0, 2 * math.pi)
        self._period_s = self._random.uniform(20, 200)
        self._busy = False
        self._until = 0.0

    def clock(self) -> float:
        """Gives the simulated time in seconds."""
        return self.now

    def process(self) -> float:
        """Gives by how much a new process is slower than another."""
        return math.exp(self._random.gauss(0, self.machine.process))

    def run(self, seconds: float) -> float:
        """Lets a run pass that takes so long by itself, and gives what it took."""
        machine, draw = self.machine, self._random
        while self.now >= self._until:
            self._busy = not self._busy
            self._until += draw.expovariate(1 / machine.burst_s if self._busy else machine.bursts_per_s)
        level = self._level * (1 + machine.drift * math.sin(self._phase + 2 * math.pi * self.now / self._period_s))
        taken = seconds * level * math.exp(draw.gauss(0, machine.noise)) * (machine.burst if self._busy else 1)
        taken *= 1.5 if draw.random() < 0.03 else 1
        self.now += taken
        return taken


class FakeWorker:
    """A worker of a simulated job."""

    def __init__(self, job: Job, seconds: float) -> None:
        self._job = job
        self._seconds = seconds * job.process()
        job.now += 0.3

    def block(self, runs: int) -> list[float]:
        """Gives the seconds of each run."""
        return [self._job.run(self._seconds) for _ in range(runs)]

    def close(self) -> None:
        """Ends it."""


def simulated(machine: Machine, effect: float, rule: duel.Rule, pass_s: float, seed: int) -> tuple[duel.Duel, Job]:
    """Gives a duel on a simulated machine, of a pass and one that takes longer by the effect."""
    job = Job(machine, seed)
    a, b = (partial(FakeWorker, job, seconds) for seconds in (pass_s, pass_s * (1 + effect)))
    return duel.duel(a, b, rule=rule, clock=job.clock, seed=seed), job


def old_rules(machine: Machine, effect: float, seed: int) -> dict[str, bool]:
    """Tells which of the usual rules call a change a regression: 10 processes of 20 runs a side."""
    jobs = [Job(machine, seed * 3 + side) for side in range(3)]

    def runs(job: Job, slower: float) -> list[float]:
        worker = FakeWorker(job, 0.01 * slower)
        return worker.block(20)

    before = [runs(jobs[0], 1) for _ in range(10)]
    elsewhere = [runs(jobs[1], 1 + effect) for _ in range(10)]
    same = [[runs(jobs[2], slower) for _ in range(10)] for slower in (1, 1 + effect)]
    base, other, first, second = (numpy.ravel(one) for one in (before, elsewhere, *same))
    return {
        "other job, mean > 10 %": bool(other.mean() > 1.1 * base.mean()),
        "other job, Welch and > 5 %": bool(
            stats.ttest_ind(other, base, equal_var=False).pvalue < 0.05 and other.mean() > 1.05 * base.mean()
        ),
        "same job, one side after the other, Mann-Whitney and > 5 %": bool(
            stats.mannwhitneyu(second, first).pvalue < 0.002 and numpy.median(second) > 1.05 * numpy.median(first)
        ),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is simulated in one go."""

    machine: str
    effect: float
    pass_s: float
    rule: duel.Rule
    seed: int


def outcome(case: Case) -> dict[str, Any]:
    """Simulates a comparison, and the old rules on a machine like it."""
    found, job = simulated(MACHINES[case.machine], case.effect, case.rule, case.pass_s, case.seed)
    first, checked = found.first.estimate, found.control
    return {
        "verdict": duel.judged(found).verdict,
        "covered": first.low <= math.log1p(case.effect) <= first.high,
        "rounds": first.rounds,
        "half_width": first.half_width,
        "seconds": job.now,
        "doubted": checked is not None and "itself" in duel.judged(found).note,
        "old": old_rules(MACHINES[case.machine], case.effect, case.seed),
    }


def simulate(options: argparse.Namespace) -> None:
    """Simulates all cells, prints them as Markdown and writes them as CSV."""
    rule = replace(duel.RULE, budget_s=options.budget)
    rows = []
    with ProcessPoolExecutor(environment.cores()) as pool:
        for machine in MACHINES:
            for effect in EFFECTS:
                cases = [
                    Case(machine=machine, effect=effect, pass_s=options.pass_ms / 1e3, rule=rule, seed=seed)
                    for seed in range(options.simulate)
                ]
                found = list(pool.map(outcome, cases, chunksize=10))
                rows.append(_cell(machine, effect, found))
                print(f"{machine}, {effect:.0%}: {Counter(one['verdict'] for one in found)}", file=sys.stderr)
    _write(options.output or Path("results/power_simulated.csv"), rows)
    print(_markdown(rows))


def _cell(machine: str, effect: float, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    verdicts = Counter(one["verdict"] for one in found)
    return {
        "machine": machine,
        "slowdown": effect,
        "comparisons": len(found),
        **{f"{name}_part": round(verdicts[name] / len(found), 4) for name in VERDICTS},
        "covered_part": round(float(numpy.mean([one["covered"] for one in found])), 4),
        "doubted_by_control_part": round(float(numpy.mean([one["doubted"] for one in found])), 4),
        "half_width_median": round(float(numpy.median([one["half_width"] for one in found])), 5),
        "rounds_median": float(numpy.median([one["rounds"] for one in found])),
        "seconds_median": round(float(numpy.median([one["seconds"] for one in found])), 1),
        **{name: round(float(numpy.mean([one["old"][name] for one in found])), 4) for name in found[0]["old"]},
    }


# Real comparisons. The models are built by the workers, which are told their addresses.


def planted(model: str, twice: int) -> float:
    """Gives by how much the work of a slowed model is more, counted in MACs."""
    from vitbench import bench

    def macs(blocks: int) -> int:
        request = bench.Request(name=f"benchmarks.slowed:{model}_{blocks}", input_shape=(3, SIZE, SIZE))
        (row,) = bench.count([request])
        return int(row.findings["flops"].macs)

    return macs(twice) / macs(0) - 1


@contextmanager
def beside(processes: int) -> Iterator[None]:
    """Keeps the machine busy meanwhile."""
    with ExitStack() as ends:
        for number in range(processes):
            process = subprocess.Popen([sys.executable, "-c", _LOAD, str(number)])
            ends.callback(process.wait)
            ends.callback(process.kill)
        yield


def real(options: argparse.Namespace) -> None:
    """Adds comparisons of real models to a file, a line each, until there are as many as asked for."""
    output = options.output or Path("results/power.jsonl")
    twice = SLOWDOWNS[options.slowdown]
    lines = _read(output)
    cell = {
        "model": options.model,
        "slowdown": options.slowdown,
        "load": options.load,
        "servers": options.servers,
        "budget_s": options.budget,
    }
    done = sum(all(line[name] == value for name, value in cell.items()) for line in lines)
    more = planted(options.model, twice)
    about = asdict(environment.describe())
    rule = replace(duel.RULE, budget_s=options.budget)
    asked = sides.Options(device="cpu", threads=1, input=(3, SIZE, SIZE))
    apart = options.servers == 2
    with sides.opened([sides.Spec(), sides.Spec()], say=_say, apart=apart) as both, beside(options.load):

        def renew() -> None:
            for side in both:
                side.renew()
            for start in (a, b):
                start().close()  # imports

        a = partial(both[0].start, f"benchmarks.slowed:{options.model}_0", asked)
        b = partial(both[1].start, f"benchmarks.slowed:{options.model}_{twice}", asked)
        for number in range(done, options.real):
            if number == done or apart:
                renew()
            load = os.getloadavg()[0]
            found = duel.duel(a, b, rule=rule, seed=number, renew=renew if apart else None)
            judgement = duel.judged(found)
            line = {
                **cell,
                "seed": number,
                "planted_macs": round(more, 5),
                "verdict": judgement.verdict,
                "note": judgement.note,
                "p_value": judgement.p_value,
                "spent_s": round(found.spent_s, 2),
                "a_median_ms": round(1e3 * found.a_median_s, 4),
                "b_median_ms": round(1e3 * found.b_median_s, 4),
                "runs": found.runs,
                "pairs": sum(map(len, found.rounds)),
                **{stage: _told(getattr(found, stage)) for stage in ("first", "confirmation", "control")},
                "rule": asdict(rule),
                "load_before": round(load, 2),
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                **{f"environment_{name}": about[name] for name in ("cpu", "cores", "torch", "timm", "commit")},
            }
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            _say(f"{number + 1} of {options.real}: {judgement.verdict} in {found.spent_s:.0f} s {judgement.note}")


def _told(one: duel.Pass | None) -> dict[str, Any] | None:
    if one is None:
        return None
    told = {name: round(value, 6) for name, value in asdict(one.estimate).items()}
    return told | {"centres": [round(float(pairs.hodges_lehmann(values)), 6) for values in one.rounds]}


def table(options: argparse.Namespace) -> None:
    """Prints what the file of real comparisons says as Markdown, and writes it as CSV."""
    source = options.output or Path("results/power.jsonl")
    names = ("slowdown", "load", "servers", "budget_s", "model")

    def cell(line: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(line[name] for name in names)

    rows = []
    for key, group in groupby(sorted(_read(source), key=cell), cell):
        lines = list(group)
        verdicts = Counter(line["verdict"] for line in lines)
        changed = verdicts["regressed"] + verdicts["improved"]
        counted = changed if not lines[0]["slowdown"] else verdicts["regressed"]
        interval = stats.binomtest(counted, len(lines)).proportion_ci()
        centres = [centre for line in lines for centre in line["first"]["centres"]]
        rows.append(
            {
                **dict(zip(names, key, strict=True)),
                "planted_macs": lines[0]["planted_macs"],
                "measured": round(math.expm1(float(pairs.hodges_lehmann(centres[:_LONG]))), 5),
                "comparisons": len(lines),
                **{f"{name}_part": round(verdicts[name] / len(lines), 4) for name in VERDICTS},
                "called_low": round(float(interval.low), 4),
                "called_high": round(float(interval.high), 4),
                "half_width_median": round(float(numpy.median([_half_width(line) for line in lines])), 5),
                "rounds_median": float(numpy.median([line["first"]["rounds"] for line in lines])),
                "seconds_median": round(float(numpy.median([line["spent_s"] for line in lines])), 1),
                "seconds_most": round(max(line["spent_s"] for line in lines), 1),
                "a_median_ms": round(float(numpy.median([line["a_median_ms"] for line in lines])), 3),
                "versions": f"torch {lines[0]['environment_torch']}, timm {lines[0]['environment_timm']}",
                "cpu": f"{lines[0]['environment_cpu']}, {lines[0]['environment_cores']} cores",
            }
        )
    _write(source.with_suffix(".csv"), rows)
    print(_markdown(rows))


def _half_width(line: dict[str, Any]) -> float:
    return float(line["first"]["high"] - line["first"]["low"]) / 2


def _read(path: Path) -> list[dict[str, Any]]:
    """Gives the lines of a file; one that was cut off by a kill is taken away. The first lines do not tell the servers: one."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [{"servers": 1} | json.loads(line) for line in whole.splitlines()]


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    _say(f"Wrote {path}.")


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    def cell(name: str, value: Any) -> str:
        if name.endswith("_part") or name.startswith(("other job", "same job")) or name in _PARTS:
            return f"{100 * value:.3g} %"
        return str(value)

    names = [name for name in rows[0] if name not in ("cpu", "versions")]
    lines = [names, ["---"] * len(names), *([cell(name, row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--simulate", type=int, metavar="N", help="comparisons a cell")
    what.add_argument("--real", type=int, metavar="N", help="comparisons that the file is to hold of this kind")
    what.add_argument("--table", action="store_true", help="what the file of real comparisons says")
    parser.add_argument("--model", choices=("vit", "mixer"), default="vit")
    parser.add_argument("--slowdown", type=float, choices=sorted(SLOWDOWNS), default=0.0)
    parser.add_argument("--load", type=int, default=0, metavar="K", help="busy processes beside it")
    parser.add_argument(
        "--servers",
        type=int,
        choices=(1, 2),
        default=1,
        help="2: one a side, anew each time, as code of two places has",
    )
    parser.add_argument("--budget", type=float, default=duel.RULE.budget_s, metavar="S", help="seconds a comparison")
    parser.add_argument("--pass-ms", type=float, default=5.0, metavar="MS", help="of a simulated pass")
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args()
    try:
        if options.table:
            table(options)
        elif options.simulate:
            simulate(options)
        else:
            real(options)
    except KeyboardInterrupt:
        _say("Interrupted; the same command goes on.")
        sys.exit(130)


if __name__ == "__main__":
    main()
