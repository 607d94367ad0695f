"""Holds our times against others' of the same models, threads and batch: timm's benchmark.py, torch.utils.benchmark, a bare loop.

Each tool runs in a process of its own, all of them once a round, in an order drawn anew, so that a machine that changes does so
for all. The bare loop shares a process with our harness, and they take turns: it says what the harness adds.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from vitbench import catalog, create_model
from vitbench.running import environment, statistics, timing, worker

_RUNS = 300
MODELS = ("vit_ti16", "swin_t", "resnet50")
OURS, TIMM, TORCH, LOOP = "vitbench", "timm benchmark.py", "torch.utils.benchmark", "bare loop"

# The same that vitbench does: no gradients, weights at random, a batch of noise; three seconds, median.
_TORCH = """
import sys, timm, torch
from torch.utils.benchmark import Timer
name, batch, threads, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
model = timm.create_model(name).eval()
x = torch.randn(batch, *model.default_cfg["input_size"])
timer = Timer("with torch.inference_mode(): model(x)", globals={"torch": torch, "model": model, "x": x}, num_threads=threads)
timer.timeit(10)
print(timer.blocked_autorange(min_run_time=seconds).median * 1e3)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """What came out between us and one other, on one model."""

    model: str
    batch_size: int
    threads: int
    other: str
    rounds: int
    latency_median_ms: float
    other_latency_median_ms: float
    ratio_median: float
    ratio_low: float
    ratio_high: float
    spread: float
    other_spread: float
    versions: str
    cpu: str


def with_vitbench(name: str, batch: int, threads: int, seconds: float, _: Path | None) -> float:
    """Gives our median, in milliseconds."""
    command = ["-m", "vitbench", "throughput", name, "--device", "cpu", "--format", "json"]
    options = [f"--batch-size={batch}", f"--threads={threads}", f"--min-time={seconds}"]
    return float(json.loads(_run([*command, *options], threads))[0]["latency_median_ms"])


def with_timm(name: str, batch: int, threads: int, seconds: float, script: Path | None) -> float:
    """Gives the mean of timm's 40 steps, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        options = ["--bench=inference", "--device=cpu", "--no-retry", f"--batch-size={batch}"]
        # By itself, timm takes the size that it tests at, where that is another.
        options.append(f"--img-size={catalog.find(name).input_shape[-1]}")
        where = [f"--results-file={found}", "--results-format=json"]
        _run([str(script), f"--model={catalog.find(name).timm_name}", *options, *where], threads)
        rows = json.loads(found.read_text(encoding="utf-8"))
    return float((rows[0] if isinstance(rows, list) else rows)["infer_step_time"])


def with_torch(name: str, batch: int, threads: int, seconds: float, _: Path | None) -> float:
    """Gives the median of torch.utils.benchmark, in milliseconds."""
    values = [catalog.find(name).timm_name, str(batch), str(threads), str(seconds)]
    return float(_run(["-c", _TORCH, *values], threads).split()[-1])


def _run(arguments: Sequence[str], threads: int) -> str:
    settings = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, *arguments], env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def duels(name: str, options: argparse.Namespace) -> list[Duel]:
    """Runs all tools once a round."""
    tools: dict[str, Callable[[str, int, int, float, Path | None], float]] = {OURS: with_vitbench, TORCH: with_torch}
    if options.timm_script:
        tools[TIMM] = with_timm
    times: dict[str, list[float]] = {tool: [] for tool in tools}
    order = random.Random(0)  # noqa: S311  # no secret
    for _ in range(options.rounds):
        for tool in order.sample(list(tools), len(tools)):
            found = tools[tool](name, options.batch_size, options.threads, options.seconds, options.timm_script)
            times[tool].append(found)
            print(f"{name} {tool}: {found:.3f} ms", file=sys.stderr)
    return [
        duel(name, options.batch_size, options.threads, tool, times[OURS], times[tool])
        for tool in tools
        if tool != OURS
    ]


def loop(options: argparse.Namespace) -> Duel:
    """Holds the harness against a bare loop at batch 1 of the catalog's smallest model, in turns in one process.

    Compared is the time that as many runs take altogether, so that nothing which the harness does between runs is left out.
    """
    with (Path(__file__).parent.parent / "results" / "flops.csv").open(encoding="utf-8", newline="") as file:
        name = min(csv.DictReader(file), key=lambda row: int(row["macs"]))["model"]
    torch.set_num_threads(options.threads)
    model = create_model(name).eval()
    x = torch.randn(1, *catalog.find(name).input_shape)

    def step() -> None:
        with torch.inference_mode():
            model(x)

    clock = timing.clock_of(x.device)
    rule = timing.Rule(warmup_s=0, least_runs=_RUNS, min_time_s=0)

    def harness() -> float:
        begin = time.perf_counter()
        timing.sample([step], clock, rule)
        return 1e3 * (time.perf_counter() - begin) / (_RUNS + 1)  # the first call is no sample

    def bare() -> float:
        begin = time.perf_counter()
        for _ in range(_RUNS):
            step()
        return 1e3 * (time.perf_counter() - begin) / _RUNS

    ours, theirs = [], []
    # The harness begins with a collection of garbage, and has none collected later; here it finds none, and nor has the loop.
    gc.collect()
    gc.freeze()
    with worker.without_garbage_collection():
        bare()
        for number in range(10 * options.rounds):
            if number % 2:
                ours.append(harness())
                theirs.append(bare())
            else:
                theirs.append(bare())
                ours.append(harness())
    return duel(name, 1, options.threads, LOOP, ours, theirs)


def duel(name: str, batch: int, threads: int, tool: str, ours: Sequence[float], theirs: Sequence[float]) -> Duel:
    """Compares times round by round: ours over theirs."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, high = statistics.median_interval(ratios) or (min(ratios), max(ratios))
    here = environment.describe()
    return Duel(
        model=name,
        batch_size=batch,
        threads=threads,
        other=tool,
        rounds=len(ours),
        latency_median_ms=statistics.median(ours),
        other_latency_median_ms=statistics.median(theirs),
        ratio_median=statistics.median(ratios),
        ratio_low=low,
        ratio_high=high,
        spread=statistics.spread(ours),
        other_spread=statistics.spread(theirs),
        versions=f"torch {here.torch}, timm {here.timm}",
        cpu=here.cpu,
    )


def markdown(found: Sequence[Duel]) -> str:
    """Gives the table."""
    lines = [
        "| model | against | ours | theirs | ours over theirs | our spread | theirs |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        ratio = f"{one.ratio_median:.3f} ({one.ratio_low:.3f} to {one.ratio_high:.3f})"
        times = f"{one.latency_median_ms:.4g} ms | {one.other_latency_median_ms:.4g} ms"
        lines.append(f"| {one.model} | {one.other} | {times} | {ratio} | {one.spread:.1%} | {one.other_spread:.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Parses the options, measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else "")
    parser.add_argument(
        "--models", nargs="+", default=MODELS, metavar="NAME", help="names of the catalog that timm has"
    )
    parser.add_argument("--timm-script", type=Path, help="benchmark.py of timm's repository, which its package lacks")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="that each of us and torch.utils.benchmark measures")
    parser.add_argument("--output", type=Path, default=Path("results/timing.csv"))
    options = parser.parse_args()
    found = [loop(options)]
    with options.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Duel)], lineterminator="\n")
        writer.writeheader()
        writer.writerow(asdict(found[0]))
        for name in options.models:
            for one in duels(name, options):
                found.append(one)
                writer.writerow(asdict(one))
                file.flush()
    print(markdown(found))


if __name__ == "__main__":
    main()
