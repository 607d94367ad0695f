"""`vitbench sweep`: what a user types and sees; and real sweeps, which are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from vitbench import measure
from vitbench.cli import app
from vitbench.records import Row
from vitbench.running import environment, worker

NET = """
from torch import nn

def net():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    model.pretrained_cfg = {"input_size": (3, 2, 2)}
    return model
"""

SUITE = """
title = "a model of mine"
[[run]]
models = "net_for_sweeps:net"
batch_size = [1, 2, 3, 4]
device = "cpu"
min_time = 0.05
"""


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Gives a suite of which deit_s16 fails, where nothing is really measured."""

    def measured(job: measure.Job) -> Row:
        row = Row(setting=job.setting, findings={}, environment=environment.describe())
        if job.setting.model == "deit_s16":
            return replace(row, status="crashed", note="its process ended with exit code -11")
        return replace(row, findings={"throughput": {"throughput_per_s": 10.0}})

    monkeypatch.setattr(measure, "measure_one", measured)
    monkeypatch.setattr(worker, "start", lambda: None)
    path = tmp_path / "mine.toml"
    path.write_text('title = "t"\n[[run]]\nmodels = ["deit_ti16", "deit_s16", "deit_b16"]\ndevice = "cpu"\n')
    return path


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["sweep", *map(str, arguments)])


def test_a_sweep_says_what_became_of_it(made_up: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    result = run(made_up, "--output", folder)
    assert result.exit_code == 3
    assert f"3 rows in {folder}, 1 failed." in result.stderr
    assert sorted(file.name for file in folder.iterdir() if file.suffix != ".lock") == [
        "results.csv",
        "results.jsonl",
        "suite.toml",
    ]


def test_going_on_must_be_asked_for(made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(made_up, "-o", tmp_path / "out")
    result = run(made_up, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    assert run(made_up, "-o", tmp_path / "out", "--resume").exit_code == 3

    def measured(job: measure.Job) -> Row:
        assert job.setting.model == "deit_s16"
        return Row(setting=job.setting, findings={"throughput": {"throughput_per_s": 10.0}})

    monkeypatch.setattr(measure, "measure_one", measured)
    result = run(made_up, "-o", tmp_path / "out", "--retry", "failed", "--jobs", "1")
    assert result.exit_code == 0
    assert f"3 rows in {tmp_path / 'out'}, none failed." in result.stderr


def test_an_interrupt_says_how_to_go_on(made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure.measure_one

    def interrupted(job: measure.Job) -> Row:
        if job.setting.model == "deit_b16":
            raise KeyboardInterrupt
        return whole(job)

    monkeypatch.setattr(measure, "measure_one", interrupted)
    result = run(made_up, "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert f"2 rows in {tmp_path / 'out'}; the same command with --resume goes on with the others." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["smok", "-o", "out"], "There is no suite named 'smok'. Did you mean smoke?"),
        (["smoke"], "Missing option '--output'"),
        (["smoke", "-o", "/proc/nowhere"], "Cannot write to the folder /proc/nowhere"),
        (["smoke", "-o", "out", "--device", "cdua"], "There is no device 'cdua'"),
        (["smoke", "-o", "out", "--dtype", "fp64"], "Invalid value for '--dtype'"),
        (["smoke", "-o", "out", "--retry", "all"], "Invalid value for '--retry'"),
        (["smoke", "-o", "out", "--jobs", "0"], "Invalid value for '--jobs'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "start", lambda: None)
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def begin(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vitbench", "sweep", "mine.toml", "--output", "out", *options],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    """Gives the rows that are whole."""
    path = folder / "out" / "results.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def wait_for(folder: Path, count: int, sweeping: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while len(rows(folder)) < count:
        assert time.monotonic() < until
        assert sweeping.poll() is None
        time.sleep(0.01)


def ended(processes: list[psutil.Process]) -> bool:
    """Tells whether processes end within some seconds; what nobody has collected has ended too."""
    until = time.monotonic() + 20
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_and_an_interrupted_sweep_go_on_and_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "net_for_sweeps.py").write_text(NET)
    (tmp_path / "mine.toml").write_text(SUITE)

    with begin(tmp_path) as killed:
        wait_for(tmp_path, 1, killed)
        processes = psutil.Process(killed.pid).children(recursive=True)
        killed.kill()
    before = rows(tmp_path)
    # What it was measuring ends too, and is not in the way of what is measured next.
    assert ended(processes)

    with begin(tmp_path, "--resume") as interrupted:
        wait_for(tmp_path, len(before) + 1, interrupted)
        processes = psutil.Process(interrupted.pid).children(recursive=True)
        os.killpg(interrupted.pid, signal.SIGINT)
        _, said = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    assert "--resume" in said
    assert "Traceback" not in said
    assert ended(processes)

    with begin(tmp_path, "--resume") as last:
        _, said = last.communicate(timeout=120)
    assert last.returncode == 0, said
    assert "4 rows in out, none failed." in said
    after = rows(tmp_path)
    assert after[: len(before)] == before
    assert [row["batch_size"] for row in after] == [1, 2, 3, 4]
    for row in after:
        assert row["status"] == "ok"
        assert row["input_shape"] == [3, 2, 2]
        assert row["samples"] == sum(len(times) for times in row["samples_ms"])
    table = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert len(table) == 5
