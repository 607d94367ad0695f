"""Describes the machine and the software that a row comes from, without importing torch."""

from __future__ import annotations

import math
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

# Control groups: version 2 has its files in this folder, version 1 a folder for each kind.
_GROUPS = "sys/fs/cgroup"
_ROOT = Path("/")
# Version 1 tells none by the largest number of whole pages.
_NO_LIMIT = 2**60


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
        cpu_limit=cpu_limit(),
        memory_bytes=_memory(),
        memory_limit_bytes=memory_limit(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command(),
    )


def cores() -> int:
    """Gives the number of processors that this process may use, a container's share rounded up."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit()
    return here if limit is None else min(here, math.ceil(limit))


def cpu_limit(root: Path = _ROOT) -> float | None:
    """Gives the number of processors whose time a container may use, 1.5 for one and a half; None without a limit."""
    groups = root / _GROUPS
    with suppress(OSError, ValueError):  # no control group of version 2, or no limit: "max"
        quota, period = (groups / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = ((groups / "cpu" / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None  # -1: no limit
    return None


def memory_limit(root: Path = _ROOT) -> int | None:
    """Gives the bytes that a container may use; None without a limit."""
    limit = _group_bytes(root, "memory.max", "memory/memory.limit_in_bytes")
    return limit if limit is not None and limit < _NO_LIMIT else None


def memory_used(root: Path = _ROOT) -> int | None:
    """Gives the bytes that a container uses; None where no control group tells."""
    return _group_bytes(root, "memory.current", "memory/memory.usage_in_bytes")


def _group_bytes(root: Path, *names: str) -> int | None:
    for name in names:
        with suppress(OSError, ValueError):  # no such control group, or no limit: "max"
            return int((root / _GROUPS / name).read_text(encoding="ascii"))
    return None


def cpu_name() -> str:
    """Gives the name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # Not Linux: the platform module knows as much as can be known without running a program.
    return platform.processor() or platform.machine()


def command() -> str | None:
    """Gives the command line as it was typed, where it is one of vitbench."""
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
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env=outside_hooks(),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def outside_hooks() -> dict[str, str]:
    """Gives the environment variables without those by which a hook of git names another repository's files."""
    of_hooks = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY")
    return {name: value for name, value in os.environ.items() if name not in of_hooks}
