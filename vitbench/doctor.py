"""The verb behind `vitbench doctor`: what this machine is, what slows it now, and how small a change it can tell.

torch is imported in a process of its own: a broken installation is a finding here, not a crash.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import pynvml
from scipy import stats

import vitbench
from vitbench.judging import duel, pairs
from vitbench.records import column
from vitbench.running import environment
from vitbench.units import memory, printable

NOISE_MODEL = "vit_ti16"
"""Compared with itself to tell the noise."""

# Of the vector instructions that Linux lists, those that matrix products have kernels for.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "sve", "bf16")
_NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}

# Each line of output that is JSON tells more than the one before: what follows may fail, or end the process.
_PROBE = """
import json, torch
found = {"version": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}
found["threads"] = torch.get_num_threads()
found["runtime"] = torch.version.cuda or torch.version.hip
print(json.dumps(found), flush=True)
kind = torch.accelerator.current_accelerator(check_available=True)
found["accelerators"] = []
if kind is not None:
    module = torch.get_device_module(kind)
    for index in range(torch.accelerator.device_count()):
        name = module.get_device_name(index) if hasattr(module, "get_device_name") else kind.type
        found["accelerators"].append(f"{kind.type}:{index}, {name}")
print(json.dumps(found), flush=True)
import timm
"""

# More than this of a processor's time is not what a machine at rest does.
_BUSY = 0.2
_LOW_MEMORY = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing found.

    Attributes:
        topic: machine, versions, now or noise.
        name: what it is.
        value: as text.
        advice: what to do about it, as a sentence; empty where nothing need be done.
    """

    topic: str = column("Topic", key=True)
    name: str = column("What", key=True)
    value: str = column("Found")
    advice: str = column("What to do", default="")


def examine(*, root: Path = Path("/"), python: str = sys.executable, watch_s: float = 0.5) -> Iterator[Fact]:
    """Yields what this machine is and what slows it now; takes as long as `import timm` and the watch.

    Args:
        root: where `proc` and `sys` are.
        python: imports torch and timm.
        watch_s: seconds for which other processes are watched, before anything is begun here.
    """
    now = list(_now(root, watch_s))
    probe, problem = _probe(python)
    yield from _machine(root, probe)
    yield from _versions(probe, problem)
    yield from now
    yield _threads(probe)


def noise(
    start: duel.Start,
    *,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
    tell: Callable[[duel.Progress], None] = lambda progress: None,
    rule: duel.Rule = duel.RULE,
) -> tuple[list[Fact], str]:
    """Compares a model with itself for as long as the budget, and gives what that tells, and a sentence for people.

    Args:
        start: starts a process with the model.
        budget_s: seconds.
        clock: gives seconds.
        tell: is told of each round.
        rule: of the comparison whose sharpness is told; its budget is replaced.

    Raises:
        duel.WorkerFailed: the model could not be run.
    """
    start().close()  # imports, and reads from disk, what later ones need not
    found = duel.control(start, budget_s=budget_s, rule=rule, clock=clock, tell=tell).estimate
    if not math.isfinite(found.half_width):
        few = Fact(
            topic="noise", name="smallest change", value="unknown", advice="Give it more time: two rounds did not fit."
        )
        return [few], "The time did not suffice for two rounds, which it takes to tell the noise."
    resolved, called = smallest_changes(found.half_width, found.rounds, rule.limit)
    facts = [
        Fact(
            topic="noise",
            name="a model against itself",
            value=f"{math.expm1(found.centre):+.2%} ({math.expm1(found.low):+.2%} to {math.expm1(found.high):+.2%})",
            advice=""
            if found.low <= 0 <= found.high or abs(found.centre) < rule.limit / 3
            else "The same code differs from itself: wait until the machine is quiet.",
        ),
        Fact(topic="noise", name="smallest change", value=f"{resolved:.1%}"),
        Fact(topic="noise", name="smallest regression", value=f"{called:.1%}"),
    ]
    sentence = (
        f"In {budget_s:g} s this machine can tell a change of {resolved:.1%} from none, and call one of {called:.1%} a "
        f"regression beyond {rule.threshold:.0%}, each in 95 of 100 such measurements ({found.rounds} rounds)."
    )
    return facts, sentence


def smallest_changes(half_width: float, rounds: int, limit: float) -> tuple[float, float]:
    """Gives the smallest change that is told from none, and that is called a regression, each with a probability of 95 %.

    A change is told where the interval's lower end is above zero, or above the threshold; it must exceed that by the interval's
    half width, and by as much as the estimate strays to the wrong side once in twenty times.

    Args:
        half_width: of the interval of ln(b / a).
        rounds: that it comes from.
        limit: the threshold, as a logarithm.
    """
    strays = half_width / stats.t.ppf((1 + pairs.NOMINAL) / 2, rounds - 1) * stats.norm.ppf(0.95)
    return math.expm1(half_width + strays), math.expm1(limit + half_width + strays)


def _machine(root: Path, probe: Mapping[str, Any]) -> Iterator[Fact]:
    yield Fact(topic="machine", name="processor", value=environment.cpu_name())
    usable, there = environment.cores(), psutil.cpu_count() or 1
    yield Fact(
        topic="machine", name="cores", value=str(usable) if usable == there else f"{usable} of the machine's {there}"
    )
    limits = [f"CPU {quota:.3g} cores"] if (quota := environment.cpu_limit(root)) else []
    limits += [f"memory {memory(limit)}"] if (limit := environment.memory_limit(root)) else []
    yield Fact(topic="machine", name="limits of the control group", value=", ".join(limits) or "none that can be read")
    yield Fact(topic="machine", name="memory", value=memory(psutil.virtual_memory().total))
    yield _instructions(root, probe)
    yield _accelerators(probe)
    if governor := _text(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"):
        slow = governor in ("powersave", "ondemand", "conservative")
        advice = "For even times: sudo cpupower frequency-set --governor performance." if slow else ""
        yield Fact(topic="machine", name="governor", value=governor, advice=advice)
    turbo = {"0": "on", "1": "off"}.get(_text(root, "sys/devices/system/cpu/intel_pstate/no_turbo"))
    turbo = turbo or {"1": "on", "0": "off"}.get(_text(root, "sys/devices/system/cpu/cpufreq/boost"))
    if turbo:
        advice = (
            "The clock goes with the heat: trust `vitbench ab`, not times of different runs." if turbo == "on" else ""
        )
        yield Fact(topic="machine", name="turbo", value=turbo, advice=advice)


def _instructions(root: Path, probe: Mapping[str, Any]) -> Fact:
    listed: set[str] = set()
    for line in _text(root, "proc/cpuinfo").splitlines():
        if line.startswith(("flags", "Features")):
            listed |= set(line.partition(":")[2].split())
    has = [name for name in _INSTRUCTIONS if name in listed]
    parts = [f"torch uses {probe['capability']}"] if "capability" in probe else []
    parts += [f"the processor has {', '.join(has)}"] if has else []
    emulated = bool(listed) and not listed & _NATIVE_BF16
    parts += ["bf16 is emulated" if emulated else "bf16 is native"] if listed else []
    advice = "On this processor bf16 saves memory, not time." if emulated else ""
    if "avx2" in has and probe.get("capability") == "DEFAULT":
        advice = "torch leaves the vector instructions out: unset ATEN_CPU_CAPABILITY."
    return Fact(topic="machine", name="instructions", value="; ".join(parts) or "unknown", advice=advice)


def _accelerators(probe: Mapping[str, Any]) -> Fact:
    seen = ["; ".join(probe.get("accelerators", []))] if probe.get("accelerators") else []
    advice = ""
    try:
        pynvml.nvmlInit()
        names = [
            pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
        if not seen:
            seen = ["; ".join(names)]
            advice = "torch does not see it: install a build of torch for CUDA, or a newer driver, or unset CUDA_VISIBLE_DEVICES."
        seen.append(f"driver {pynvml.nvmlSystemGetDriverVersion()}")
    except pynvml.NVMLError:
        pass  # no driver of NVIDIA's
    if seen and probe.get("runtime"):
        seen.append(f"torch is built with {probe['runtime']}")
    return Fact(topic="machine", name="accelerator", value=", ".join(seen) or "none", advice=advice)


def _versions(probe: Mapping[str, Any], problem: str) -> Iterator[Fact]:
    yield Fact(topic="versions", name="vitbench", value=vitbench.__version__)
    yield Fact(topic="versions", name="python", value=platform.python_version())
    for name in ("torch", "timm", "torchvision"):
        try:
            yield Fact(topic="versions", name=name, value=version(name))
        except PackageNotFoundError:
            advice = "" if name == "torchvision" else f"Install it: pip install {name}."
            yield Fact(topic="versions", name=name, value="not installed", advice=advice)
    if not problem:
        yield Fact(topic="versions", name="import timm", value="works")
        return
    advice = "Install torch and timm anew; until then nothing can be measured."
    if "torchvision" in problem:
        advice = (
            f"torchvision is built for another torch than {probe.get('version', 'this one')}: install the two together, "
            "from one index, or uninstall torchvision."
        )
    yield Fact(topic="versions", name="import timm" if probe else "import torch", value=problem, advice=advice)


def _now(root: Path, watch_s: float) -> Iterator[Fact]:
    busy, steal = _others(watch_s)
    cores = environment.cores()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    wait = "Wait for what else runs, or end it."
    yield Fact(topic="now", name="load, one minute", value=f"{load:.2f}", advice=wait if load > cores / 2 else "")
    if (pressure := _pressure(root)) is not None:
        advice = "Processes wait for a processor. " + wait if pressure > 5 else ""
        yield Fact(topic="now", name="pressure on the CPU", value=f"{pressure:g} % of the last 10 s", advice=advice)
    if steal is not None:
        advice = "The host gives its processors to others: take another machine, or pairs only." if steal > 1 else ""
        yield Fact(topic="now", name="stolen by the host", value=f"{steal:g} %", advice=advice)
    said = ", ".join(f"{printable(name)} ({pid}) {part:.0%}" for part, pid, name in busy[:5])
    yield Fact(topic="now", name="other busy processes", value=said or "none", advice=wait if busy else "")
    if (held_back := _held_back(root)) is not None:
        advice = (
            "The limit of the control group or the heat holds it back; fewer --threads may be quicker."
            if held_back
            else ""
        )
        yield Fact(topic="now", name="throttled", value=f"{held_back} times since the start", advice=advice)
    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    if limit := environment.memory_limit(root):
        free, total = min(free, max(0, limit - (environment.memory_used(root) or 0))), min(total, limit)
    advice = (
        "Large models will not fit or will be swapped out: end what holds memory." if free < _LOW_MEMORY * total else ""
    )
    yield Fact(topic="now", name="free memory", value=memory(free), advice=advice)


def _threads(probe: Mapping[str, Any]) -> Fact:
    threads, cores = probe.get("threads"), environment.cores()
    advice = ""
    if threads and threads > cores:
        advice = f"They wait for each other: give --threads {cores}, or set OMP_NUM_THREADS={cores}."
    return Fact(topic="now", name="threads of torch", value=str(threads or "unknown"), advice=advice)


def _others(watch_s: float) -> tuple[list[tuple[float, int, str]], float | None]:
    """Gives the processes that were busy for a moment, the busiest first, and percent of the time that the host took."""
    seen = [one for one in psutil.process_iter(["name"]) if one.pid != os.getpid()]
    before = psutil.cpu_times()
    for one in seen:
        with suppress(psutil.Error):
            one.cpu_percent()
    time.sleep(watch_s)
    busy = []
    for one in seen:
        with suppress(psutil.Error):
            busy.append((one.cpu_percent() / 100, one.pid, str(one.info["name"])))
    after = psutil.cpu_times()
    steal = None
    if hasattr(after, "steal") and (passed := sum(after) - sum(before)) > 0:
        steal = round(100 * (after.steal - before.steal) / passed, 1)
    return sorted((one for one in busy if one[0] > _BUSY), reverse=True), steal


def _probe(python: str) -> tuple[dict[str, Any], str]:
    """Gives what torch says of itself, in a process of its own, and why importing it or timm failed, if it did."""
    try:
        done = subprocess.run(  # noqa: S603  # our own Python
            [python, "-W", "ignore", "-c", _PROBE], capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return {}, f"{type(error).__name__}: {error}"
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        with suppress(ValueError):
            found = json.loads(line)
    if not done.returncode:
        return found, ""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return found, printable(said[-1]) if said else f"it ended with exit code {done.returncode}"


def _text(root: Path, path: str) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return (root / path).read_text(encoding="utf-8").strip()
    return ""


def _pressure(root: Path) -> float | None:
    """Gives percent of the last 10 s in which a process waited for a processor; Linux tells it where it is built to."""
    for line in _text(root, "proc/pressure/cpu").splitlines():
        if line.startswith("some avg10="):
            return float(line.split()[1].partition("=")[2])
    return None


def _held_back(root: Path) -> int | None:
    """Gives how often the control group ran out of its share, or a core became too hot, since the start."""
    counts = [
        int(line.split()[1])
        for line in _text(root, "sys/fs/cgroup/cpu.stat").splitlines()
        if line.startswith("nr_throttled ")
    ]
    cores = (root / "sys/devices/system/cpu").glob("cpu[0-9]*")
    counts += [int(text) for core in cores if (text := _text(core, "thermal_throttle/core_throttle_count"))]
    return sum(counts) if counts else None
