"""`vitbench doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitbench import doctor
from vitbench.cli import app

FACTS = [
    doctor.Fact(topic="machine", name="processor", value="[bold]X\x1b[31m"),
    doctor.Fact(topic="now", name="load, one minute", value="7.5", advice="Wait."),
]


@pytest.fixture(autouse=True)
def examined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: iter(FACTS))


def test_a_table_with_what_to_do() -> None:
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0
    assert "[bold]X[31m" in done.stdout
    assert "Wait." in done.stdout


def test_json_into_a_file(tmp_path: Path) -> None:
    file = tmp_path / "doctor.json"
    done = CliRunner().invoke(app, ["doctor", "--output", str(file)])
    assert done.exit_code == 0, done.output
    assert json.loads(file.read_text())[1] == {
        "topic": "now",
        "name": "load, one minute",
        "value": "7.5",
        "advice": "Wait.",
    }


def test_a_budget_goes_with_noise() -> None:
    done = CliRunner().invoke(app, ["doctor", "--budget", "10s"])
    assert done.exit_code == 2
    assert "--budget goes with --noise" in done.output


def test_the_noise_of_this_machine() -> None:
    done = CliRunner().invoke(app, ["doctor", "--noise", "--budget", "4s", "--format", "json"])
    assert done.exit_code == 0, done.output
    (first, *_) = [row for row in json.loads(done.stdout) if row["topic"] == "noise"]
    assert first["name"] in ("a model against itself", "smallest change")
