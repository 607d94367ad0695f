"""`vitbench check`: what a user types and sees, and what a pipeline gets. Measurements are made up, but for a real interrupt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from vitbench import ab, check, findings, measure
from vitbench.changes import Change, Comparison
from vitbench.cli import app
from vitbench.records import Row
from vitbench.running import environment, worker

SUITE = """
title = "t"
[[run]]
models = ["vit_ti16", "deit_s16"]
metrics = "flops"
device = "cpu"
"""
TIMED = """
[[run]]
models = "vit_ti16"
metrics = "throughput"
device = "cpu"
"""
REPORTS = [
    "benchmark.json",
    "changes.json",
    "comment.md",
    "head.json",
    "junit.xml",
    "report.html",
]


@pytest.fixture
def macs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, int]:
    """Gives what is counted, by model, where nothing is really measured; the current folder has a suite and its baseline."""
    counts = {"vit_ti16": 100, "deit_s16": 200}

    def measured(job: measure.Job) -> Row:
        row = Row(setting=job.setting, findings={}, environment=environment.describe())
        if not counts[job.setting.model]:
            return replace(row, status="crashed", note="its process ended with exit code -11")
        blank: dict[str, Any] = dict.fromkeys(findings.Flops.__dataclass_fields__)
        number = counts[job.setting.model]
        found = findings.Flops(**blank | {"params": 7, "params_trainable": 7, "macs": number, "flops": 2 * number})
        return replace(row, findings={"flops": found})

    monkeypatch.setattr(measure, "measure_one", measured)
    monkeypatch.setattr(worker, "start", lambda: None)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(SUITE)
    run("--update")
    return counts


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["check", "mine.toml", "--baseline", "baseline.json", *arguments])


def test_fine_is_0_and_the_folder_has_every_report(macs: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "new" / "out").mkdir(parents=True)
    (tmp_path / "new" / "out" / "benchmark_higher.json").write_text("of an earlier check")
    result = run("--output", "new/out")
    assert result.exit_code == 0, result.output
    assert "Nothing regressed from baseline.json to here" in result.stdout
    assert sorted(file.name for file in (tmp_path / "new" / "out").iterdir()) == REPORTS
    rows = json.loads((tmp_path / "new" / "out" / "head.json").read_text())
    assert [(row["model"], row["macs"]) for row in rows] == [("vit_ti16", 100), ("deit_s16", 200)]
    # What was measured is a result like any other.
    compared = CliRunner().invoke(app, ["compare", "baseline.json", "new/out"])
    assert compared.exit_code == 0


def test_a_regression_is_1_and_every_report_says_it(macs: dict[str, int], tmp_path: Path) -> None:
    macs["deit_s16"] = 250
    result = run("-o", "out")
    assert result.exit_code == 1
    assert "1 regressed from baseline.json to here" in result.stdout
    out = tmp_path / "out"
    assert (out / "comment.md").read_text().startswith("<!-- vitbench -->\n")
    assert "deit\\_s16" in (out / "comment.md").read_text() or "deit_s16" in (out / "comment.md").read_text()
    assert len(ET.parse(out / "junit.xml").findall(".//failure")) == 1  # noqa: S314  # our own file
    assert json.loads((out / "changes.json").read_text())["verdicts"]["regressed"] == 1
    assert 250 in [entry["value"] for entry in json.loads((out / "benchmark.json").read_text())]
    assert "deit_s16" in (out / "report.html").read_text()


def test_what_failed_is_3_unless_it_may(macs: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    macs["deit_s16"] = 0
    result = run()
    assert result.exit_code == 3
    assert "its process ended with exit code -11" in " ".join(result.stdout.split())
    for arguments, code, errors in (((), 3, 1), (("--allow-missing",), 0, 0)):
        result = run(*arguments, "--output", "out")
        assert result.exit_code == code
        assert len(ET.parse(tmp_path / "out" / "junit.xml").findall(".//error")) == errors  # noqa: S314  # our own file
        annotations = [line.partition(" ")[0] for line in result.stdout.splitlines() if line.startswith("::")]
        assert annotations == ["::error" if errors else "::warning"]
    result = run("--update")
    assert result.exit_code == 3
    assert "1 row failed and is not in it." in result.stderr


def test_times_without_a_repository_are_3_with_advice(macs: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SUITE + TIMED)
    result = run()
    assert result.exit_code == 3
    assert "there is no git repository here" in " ".join(result.stdout.split())
    assert run("--allow-missing").exit_code == 0
    subprocess.run(["git", "init", "-q", "."], check=True)
    said = " ".join(run("--against", "release/1.0").stdout.split())
    assert "there is no revision release/1.0 here" in said
    assert "fetch-depth: 0" in said


def test_what_cannot_be_told_is_4_under_strict(
    macs: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Contest:
        measured = True

        def __init__(self, ask: ab.Ask) -> None:
            self.model = ask.models[0]

        def run(self, *, say: Callable[[str], None], tell: ab.Tell) -> None:
            pass

        def comparison(self, *, alone: bool) -> Comparison:
            unsure = Change(
                setting={"model": self.model},
                column=ab.COLUMN,
                heading="Inputs/s",
                judged="timed",
                better="higher",
                verdict="inconclusive",
            )
            return Comparison(base="a", head="b", changes=(unsure,))

    monkeypatch.setattr(ab, "Contest", Contest)
    monkeypatch.setattr(check, "merge_base", lambda revision, folder: check.Revision(commit="c0ffee", told="told."))
    (tmp_path / "mine.toml").write_text(SUITE + TIMED)
    assert (run().exit_code, run("--strict").exit_code) == (0, 4)


def test_ctrl_c_reports_the_times_that_are_known(
    macs: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Contest:
        measured = False

        def __init__(self, ask: ab.Ask) -> None:
            self.ask = ask

        def run(self, *, say: Callable[[str], None], tell: ab.Tell) -> None:
            if self.ask.options.batch_size == 8:
                raise KeyboardInterrupt
            self.measured = True

        def comparison(self, *, alone: bool) -> Comparison:
            slower = Change(
                setting={"model": self.ask.models[0]},
                column=ab.COLUMN,
                heading="Inputs/s",
                judged="timed",
                better="higher",
                verdict="regressed",
                p_value=0.001,
            )
            return Comparison(base="a", head="b", changes=(slower,))

    monkeypatch.setattr(ab, "Contest", Contest)
    monkeypatch.setattr(check, "merge_base", lambda revision, folder: check.Revision(commit="c0ffee", told="told."))
    (tmp_path / "mine.toml").write_text(f"{SUITE}{TIMED}batch_size = [1, 8]\n")
    result = run("-o", "out")
    assert result.exit_code == 130
    assert "1 regressed" in result.stdout
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == REPORTS
    told = json.loads((tmp_path / "out" / "changes.json").read_text())["changes"]
    assert [one["verdict"] for one in told if one["column"] == ab.COLUMN] == ["regressed", "missing"]


def test_update_says_what_changed(macs: dict[str, int], tmp_path: Path) -> None:
    assert "baseline.json is as it was." in run("--update").stderr
    macs["deit_s16"] = 250
    result = run("--update")
    assert result.exit_code == 0
    assert "1 regressed from baseline.json to here" in result.stdout
    assert "Wrote baseline.json." in result.stderr
    assert run().exit_code == 0
    (tmp_path / "baseline.json").write_text("<<<<<<< HEAD\n")
    result = run("--update")
    assert result.exit_code == 0
    assert "baseline.json is not JSON" in result.stderr
    assert "It is made anew." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent.toml"], "There is no suite named 'absent.toml'"),
        (["mine.toml"], "Give --baseline"),
        (["mine.toml", "--baseline", "absent.json"], "There is no baseline absent.json"),
        (["mine.toml", "--baseline", "absent/b.json", "--update"], "there is no folder absent"),
        (["mine.toml", "--baseline", "torn.json"], "torn.json is not JSON: Expecting value at line 2, column 1."),
        (["mine.toml", "--baseline", "baseline.json", "--output", "mine.toml"], "Cannot write to the folder mine.toml"),
    ],
)
def test_bad_input_is_2_and_one_sentence(
    arguments: list[str], sentence: str, macs: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "torn.json").write_text("[\n")
    result = CliRunner().invoke(app, ["check", *arguments])
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_github_gets_a_summary_and_annotations(
    macs: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("An earlier command's.\n")
    macs["deit_s16"] = 250
    result = run()
    assert result.exit_code == 1
    (annotation,) = [line for line in result.stdout.splitlines() if line.startswith("::")]
    assert annotation.startswith("::error title=deit_s16")
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("An earlier command's.\n")
    assert "1 regressed" in summary


HOSTILE = "<script>alert(1)</script>|`\x1b[31m::error::x%0A"


def test_names_and_reasons_are_text(macs: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline and a suite come from a branch that anybody may have written."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    rows = json.loads((tmp_path / "baseline.json").read_text())
    (tmp_path / "baseline.json").write_text(json.dumps([*rows, rows[0] | {"model": HOSTILE}]))
    reason = json.dumps(HOSTILE).replace("\\u001b", "\\u001B")
    expected = f'[[expected]]\nmodel = "nothing"\nmetric = "macs"\nuntil = 2999-01-01\nreason = {reason}\n'
    (tmp_path / "mine.toml").write_text(SUITE + expected)
    result = run("-o", "out")
    assert result.exit_code == 3
    assert "\x1b" not in result.output
    # The name is told inside an annotation, and begins none.
    assert [line for line in result.stdout.splitlines() if line.startswith("::error::")] == []
    for name in REPORTS:
        assert "\x1b" not in (tmp_path / "out" / name).read_text(), name
    assert "<script>alert" not in (tmp_path / "out" / "report.html").read_text()
    ET.parse(tmp_path / "out" / "junit.xml")  # noqa: S314  # our own file


NETS = """
from torch import nn

def net():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    model.pretrained_cfg = {"input_size": (3, 2, 2)}
    return model

def slow():
    import time
    time.sleep(60)
"""


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_ctrl_c_keeps_the_rows(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Really measured, and really interrupted, in the second model."""
    (tmp_path / "nets_for_check.py").write_text(NETS)
    (tmp_path / "mine.toml").write_text(
        'title = "t"\n[[run]]\nmodels = ["nets_for_check:net", "nets_for_check:slow"]\nmetrics = "flops"\ndevice = "cpu"\n'
    )
    (tmp_path / "baseline.json").write_text('[{"model": "nets_for_check:net", "input_shape": [3, 2, 2], "macs": 60}]\n')
    arguments = ["check", "mine.toml", "--baseline", "baseline.json", "--output", "out", "--jobs", "1"]
    temporary = tmp_path_factory.mktemp("t")  # short: a socket's path has 107 signs at most
    with subprocess.Popen(
        [sys.executable, "-m", "vitbench", *arguments],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as checking:
        until = time.monotonic() + 120
        while not list(temporary.rglob("results.jsonl")):
            assert checking.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        os.killpg(checking.pid, signal.SIGINT)
        _, said = checking.communicate(timeout=60)
    assert checking.returncode == 130, said
    assert "Traceback" not in said
    (row,) = json.loads((tmp_path / "out" / "head.json").read_text())
    assert (row["model"], row["macs"]) == ("nets_for_check:net", 60)
    assert list(temporary.rglob("results.jsonl")) == []
