"""What the doctor finds, on machines made up and on this one."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest
from scipy import stats

import vitbench
from vitbench import doctor
from vitbench.judging import duel

_HEALTHY = """#!{python}
print('{{"version": "2.14.0", "capability": "AVX512", "threads": {threads}, "runtime": null, "accelerators": []}}')
"""


def machine(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def interpreter(folder: Path, text: str) -> str:
    """Stands for a Python: whatever it is asked, it says the same."""
    path = folder / "python"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def examined(root: Path, python: str) -> dict[str, doctor.Fact]:
    return {fact.name: fact for fact in doctor.examine(root=root, python=python, watch_s=0.01)}


@pytest.fixture
def healthy(tmp_path: Path) -> str:
    return interpreter(tmp_path, _HEALTHY.format(python=sys.executable, threads=1))


def test_it_reads_control_groups_of_the_first_version(tmp_path: Path, healthy: str) -> None:
    """Files as in Linux's Documentation/admin-guide/cgroup-v1/memory.rst and scheduler/sched-bwc.rst."""
    root = machine(
        tmp_path / "root",
        {
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1063741824\n",
        },
    )
    facts = examined(root, healthy)
    assert facts["limits of the control group"].value == "CPU 1.5 cores, memory 1.000 GiB"
    assert facts["free memory"].value == "9.537 MiB"


def test_it_reads_what_linux_tells(tmp_path: Path, healthy: str) -> None:
    root = machine(
        tmp_path / "root",
        {
            "proc/cpuinfo": "model name : X\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16\n",
            "proc/pressure/cpu": "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0 avg300=0 total=0\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_throttled 7\n",
            "sys/fs/cgroup/memory.max": "1073741824\n",
            "sys/fs/cgroup/memory.current": "1063741824\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
            "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
        },
    )
    facts = examined(root, healthy)
    assert facts["limits of the control group"].value == "CPU 1.5 cores, memory 1.000 GiB"
    assert facts["instructions"].value == (
        "torch uses AVX512; the processor has avx2, avx512f, avx512_bf16, amx_bf16; bf16 is native"
    )
    assert "performance" in facts["governor"].advice
    assert facts["turbo"].value == "on"
    assert facts["pressure on the CPU"].value == "12.5 % of the last 10 s"
    assert "wait" in facts["pressure on the CPU"].advice
    assert facts["throttled"].value == "10 times since the start"
    assert facts["free memory"].value == "9.537 MiB"
    assert facts["free memory"].advice
    assert facts["import timm"].value == "works"


def test_what_is_not_told_is_left_out(tmp_path: Path, healthy: str) -> None:
    facts = examined(tmp_path / "nothing", healthy)
    assert not {"governor", "turbo", "pressure on the CPU", "throttled"} & set(facts)
    assert facts["limits of the control group"].value == "none that can be read"
    assert facts["instructions"].value == "torch uses AVX512"


def test_bf16_without_hardware_is_called_emulated(tmp_path: Path, healthy: str) -> None:
    fact = examined(machine(tmp_path / "root", {"proc/cpuinfo": "flags : fpu avx2 avx512f\n"}), healthy)["instructions"]
    assert "bf16 is emulated" in fact.value
    assert "saves memory" in fact.advice


def test_more_threads_than_cores_are_named(tmp_path: Path) -> None:
    facts = examined(tmp_path, interpreter(tmp_path, _HEALTHY.format(python=sys.executable, threads=1000)))
    assert "--threads" in facts["threads of torch"].advice


def test_a_torchvision_for_another_torch_is_explained(tmp_path: Path) -> None:
    """The text is that of torchvision 0.28 beside torch 2.14; torch itself has spoken before."""
    python = interpreter(
        tmp_path,
        _HEALTHY.format(python=sys.executable, threads=1)
        + "raise RuntimeError('operator torchvision::nms does not exist')\n",
    )
    facts = examined(tmp_path, python)
    assert facts["import timm"].value == "RuntimeError: operator torchvision::nms does not exist"
    assert "torchvision is built for another torch than 2.14.0" in facts["import timm"].advice
    assert "AVX512" in facts["instructions"].value


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("raise ImportError('libtorch.so: cannot open shared object file')", "ImportError: libtorch.so: cannot open"),
        ("import os; os.kill(os.getpid(), 11)", "it ended with exit code -11"),
    ],
)
def test_a_broken_torch_is_a_finding(tmp_path: Path, script: str, said: str) -> None:
    facts = examined(tmp_path, interpreter(tmp_path, f"#!{sys.executable}\n{script}\n"))
    assert facts["import torch"].value.startswith(said)
    assert "anew" in facts["import torch"].advice
    assert facts["threads of torch"].value == "unknown"


def test_a_python_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    assert "FileNotFoundError" in examined(tmp_path, str(tmp_path / "none"))["import torch"].value


def test_a_busy_process_is_named(tmp_path: Path, healthy: str) -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for _ in range(20):  # it starts, and others may have the processors at first
            facts = {fact.name: fact for fact in doctor.examine(root=tmp_path, python=healthy, watch_s=0.2)}
            if f"({busy.pid})" in facts["other busy processes"].value:
                break
        else:
            share = psutil.Process(busy.pid).cpu_percent(0.2)
            assert share < 20, facts["other busy processes"]
        assert facts["other busy processes"].advice or os.cpu_count() == 1
    finally:
        busy.kill()
        busy.wait()


def test_this_machine(tmp_path: Path) -> None:
    facts = {fact.name: fact for fact in doctor.examine(watch_s=0.01)}
    assert facts["vitbench"].value == vitbench.__version__
    assert facts["import timm"].value == "works"
    assert int(facts["threads of torch"].value) >= 1


class _Worker:
    now = 0.0
    draw = random.Random(0)  # noqa: S311  # no secret

    def block(self, runs: int) -> Sequence[float]:
        times = [0.01 * math.exp(self.draw.gauss(0, 0.02)) for _ in range(runs)]
        _Worker.now += sum(times)
        return times

    def close(self) -> None:
        pass


@pytest.fixture
def told() -> tuple[list[doctor.Fact], str]:
    return doctor.noise(_Worker, budget_s=30, clock=lambda: _Worker.now)


def test_the_noise_is_a_sentence_and_two_sizes(told: tuple[list[doctor.Fact], str]) -> None:
    facts, sentence = told
    values = {fact.name: fact.value for fact in facts}
    assert f"a change of {values['smallest change']} from none" in sentence
    assert values["smallest regression"] in sentence
    assert 0 < float(values["smallest change"].rstrip("%")) < 3 < float(values["smallest regression"].rstrip("%")) < 6


def test_a_budget_too_short_for_two_rounds_is_said() -> None:
    facts, sentence = doctor.noise(_Worker, budget_s=0.01, clock=lambda: _Worker.now)
    assert facts[0].advice
    assert "did not suffice" in sentence


def test_the_smallest_changes_are_seen_in_95_of_100() -> None:
    """By drawing: round centres with a shift of that size, and Student's interval of each."""
    rounds, sigma, limit = 10, 0.01, math.log1p(0.03)
    draw = random.Random(1)  # noqa: S311  # no secret
    half_width = float(stats.t.ppf(0.985, rounds - 1)) * sigma / math.sqrt(rounds)
    for size, beyond in zip(doctor.smallest_changes(half_width, rounds, limit), (0.0, limit), strict=True):
        seen = 0
        for _ in range(1000):
            centres = [draw.gauss(math.log1p(size), sigma) for _ in range(rounds)]
            mean = sum(centres) / rounds
            seen += mean - half_width > beyond
        assert 0.93 < seen / 1000 < 0.97
    assert isinstance(duel.RULE.limit, float)
