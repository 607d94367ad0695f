"""Describes the machine and the software that a row comes from, without importing torch."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import vitbench
from vitbench.records import Environment


@cache
def describe() -> Environment:
    """Gives the environment of this process; the time is that of the first call."""
    commit, dirty = _checkout()
    return Environment(
        vitbench=vitbench.__version__,
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        torch=version("torch"),
        timm=version("timm"),
        platform=f"{platform.system()}-{platform.machine()}",
        cpu=cpu_name(),
        cores=cores(),
        memory_bytes=_memory(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_command(),
    )


def cores() -> int:
    """Gives the number of processors that this process may use, a container's share rounded up."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no control group, or no limit: "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return min(here, -(-int(quota) // int(period)))
    return here


def cpu_name() -> str:
    """Gives the name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # Not Linux: the platform module knows as much as can be known without running a program.
    return platform.processor() or platform.machine()


def _command() -> str | None:
    program, *words = sys.argv
    started = Path(program)
    # The program that pip installs, or `python -m vitbench`; processes of a command are told its words too.
    if started.stem == "vitbench" or started.parts[-2:] == ("vitbench", "__main__.py"):
        return shlex.join(["vitbench", *words])
    return None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _checkout() -> tuple[str | None, bool | None]:
    """Gives the commit of vitbench and whether the checkout differs from it; (None, None) when it is installed as a package."""
    package = Path(vitbench.__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None, None
    commit = git(package, "rev-parse", "HEAD")
    changes = git(package, "status", "--porcelain")
    return commit or None, None if changes is None else bool(changes)


def git(folder: Path, *arguments: str) -> str | None:
    """Gives what git prints in a folder; None where it fails, or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
