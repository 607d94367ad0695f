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
from vitbench import environment


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
        (["/lib/vitbench/side_worker.py", "{}"], None),
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
