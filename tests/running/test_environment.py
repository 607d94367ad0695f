"""The environment of a row."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest

import vitbench
from vitbench.running import environment


def test_it_says_what_the_system_says() -> None:
    about = environment.describe()
    assert (about.torch, about.timm) == (version("torch"), version("timm"))
    assert about.python == platform.python_version()
    assert 1 <= about.cores <= (os.cpu_count() or 1)
    assert about.cpu
    assert datetime.fromisoformat(about.time).tzinfo is not None


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/bin/vitbench", "flops", "a b", "--all"], "vitbench flops 'a b' --all"),
        (["/lib/vitbench/__main__.py", "list"], "vitbench list"),
        ([r"vitbench.exe", "list"], "vitbench list"),
        (["/lib/vitbench/judging/side_worker.py", "{}"], None),
        (["/lib/pytest/__main__.py"], None),
        (["-c"], None),
        ([""], None),
    ],
)
def test_the_command_is_told_as_it_was_typed_and_only_vitbenchs(
    argv: list[str], command: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert environment.describe.__wrapped__().command == command


@pytest.mark.parametrize(
    ("files", "cpu", "memory"),
    [
        ({}, None, None),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, None),
        ({"cpu.max": "150000 100000\n", "memory.max": "4294967296\n"}, 1.5, 2**32),
        # Version 1.
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5, None),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None, None),
        ({"memory/memory.limit_in_bytes": "1073741824\n"}, None, 2**30),
    ],
)
def test_what_a_container_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cpu: float | None, memory: int | None
) -> None:
    """Files as Linux writes them: Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/memory.rst."""
    monkeypatch.setattr(environment, "_GROUPS", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert (environment.cpu_limit(), environment.memory_limit()) == (cpu, memory)
    assert environment.cores() <= (cpu or 99) + 1


def test_a_checkout_gives_its_commit() -> None:
    root = Path(vitbench.__file__).parent.parent
    if not (root / ".git").exists():
        assert environment.describe().commit is None
        return
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert environment.describe().commit == (done.stdout.strip() if done.returncode == 0 else None)


def test_a_package_inside_somebody_elses_repository_gives_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    package = tmp_path / "site-packages" / "vitbench"
    package.mkdir(parents=True)
    monkeypatch.setattr(vitbench, "__file__", str(package / "__init__.py"))
    assert environment._checkout() == (None, None)
