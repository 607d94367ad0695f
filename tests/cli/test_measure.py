"""`vitbench throughput`, `memory`, `max-batch` and `bench`: what a user types, sees and gets wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from vitbench.cli import app, measure

FACTORIES = """
import time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
    def forward(self, x):
        return self.layer(x)

def good(img_size=None): return Net()

class Sleeping(Net):
    def forward(self, x):
        if not x.is_meta: time.sleep(60)
        return x

class Greedy(Net):
    def forward(self, x):
        if not x.is_meta and len(x) > 2: torch.empty(2 ** 50)
        return x
"""
QUICK = ("--input", "3x2x4", "--threads", "1", "--min-time", "0.02", "--device", "cpu")


@pytest.fixture(autouse=True)
def _factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timed_for_tests.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_json_has_the_samples_and_csv_does_not() -> None:
    done = run("throughput", "timed_for_tests:good", *QUICK, "--batch-size", "1,2", "-f", "json")
    assert done.exit_code == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert (first["batch_size"], second["batch_size"]) == (1, 2)
    assert first["input_shape"] == [3, 2, 4]
    assert len(first["samples_ms"][0]) == first["samples"] >= 6
    assert first["latency_low_ms"] <= first["latency_median_ms"] <= first["latency_high_ms"]
    assert first["throughput_per_s"] == pytest.approx(1e3 / first["latency_median_ms"])
    assert first["environment_instruction_set"]
    done = run("throughput", "timed_for_tests:good", *QUICK, "-f", "csv")
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert float(row["latency_median_ms"]) > 0
    assert "samples_ms" not in row
    assert "phases_ms" not in row


def test_a_rooflines_blocks_are_in_json_and_drawn_from_it(tmp_path: Path) -> None:
    arguments = ("roofline", "timed_for_tests:good", *QUICK)
    done = run(*arguments, "-o", "roof.json")
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads((tmp_path / "roof.json").read_text())
    # 6 rows of 4 numbers, 4 x 4 weights and a bias; 96 multiply-accumulates.
    assert [block[:3] for block in row["blocks"]] == [["layer", 192, 4 * (24 + 16 + 4 + 24)]]
    done = run("plot", "roofline", "roof.json", "-o", "roof.png")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")
    shown = run(*arguments)
    assert all(word in shown.stdout for word in ("FLOP/byte", "Of roof", "of the time goes to blocks below"))
    done = run(*arguments, "-f", "csv")
    assert "blocks" not in done.stdout.splitlines()[0].split(",")


def test_the_table_names_what_is_the_same_once_below() -> None:
    done = run("throughput", "timed_for_tests:good", *QUICK)
    assert done.exit_code == 0, done.stderr
    assert "cpu, fp32, infer, 1 thread" in done.stdout
    assert "Backward" not in done.stdout
    done = run(
        "throughput", "timed_for_tests:good", *QUICK, "--mode", "train", "--channels-last", "--img-size", "2x4,4x4"
    )
    assert "train, channels-last" in done.stdout
    assert all(word in done.stdout for word in ("Forward", "Backward", "Optimizer", "1 x 3x2x4", "1 x 3x4x4"))


def test_doubts_are_said_on_standard_error_with_advice() -> None:
    done = run("throughput", "timed_for_tests:good", *QUICK, "--threads", "999")
    assert "oversubscribed" in done.stdout
    assert "Warning: oversubscribed (timed_for_tests:good): more threads than processors" in done.stderr


def test_a_lowered_batch_ends_with_3_and_says_so() -> None:
    done = run("throughput", "timed_for_tests:Greedy", *QUICK, "--batch-size", "4", "-f", "json")
    assert done.exit_code == 3
    failed, lowered = json.loads(done.stdout)
    assert (failed["status"], failed["batch_size"], failed["batch_size_asked"]) == ("out_of_memory", 4, "4")
    assert (lowered["status"], lowered["batch_size"], lowered["batch_size_asked"]) == ("lowered", 2, "4")
    done = run("throughput", "timed_for_tests:Greedy", *QUICK, "--batch-size", "4")
    assert "lowered: batch 4 ran out of memory; this is 2" in done.stdout


def test_the_search_for_a_batch_size_may_end_where_memory_does() -> None:
    done = run("throughput", "timed_for_tests:Greedy", *QUICK, "--batch-size", "auto", "-f", "json")
    assert done.exit_code == 0, done.stderr
    assert [row["batch_size"] for row in json.loads(done.stdout)][:2] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vit_b61"], "Did you mean"),
        ([], "Name at least one model"),
        (["vit_b16", "--batch-size", "0"], "is not whole numbers above zero"),
        (["vit_b16", "--batch-size", "1,x"], "is not whole numbers above zero"),
        (["vit_b16", "--device", "gpu"], "no device 'gpu'"),
        (["vit_b16", "--amp"], "--dtype bf16 or fp16"),
        (["vit_b16", "--grad-checkpointing"], "--mode train"),
        (["vit_ti16", "--img-size", "32,33", "--min-time", "0"], "patches of 16x16 do not tile"),
        (["vit_b16", "--output", "nowhere/found.csv"], "there is no folder nowhere"),
    ],
    ids=str,
)
def test_a_users_mistake_is_one_sentence(arguments: list[str], said: str) -> None:
    done = run("throughput", *arguments)
    assert done.exit_code == (3 if "32,33" in arguments else 2)
    assert said in " ".join((done.stderr + done.stdout).replace("│", " ").split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "compiler", "models"),
    [
        (["--compile", "a"], "inductor", ["a"]),
        (["a", "--compile"], "inductor", ["a"]),
        (["--compile", "--amp", "a"], "inductor", ["a"]),
        (["a", "--compile", "aot_eager"], "aot_eager", ["a"]),
        (["--compile", "inductor:max-autotune", "a"], "inductor:max-autotune", ["a"]),
        (["--compile=my_own", "a"], "my_own", ["a"]),
        (["a"], None, ["a"]),
    ],
    ids=str,
)
def test_compile_may_stand_alone(
    arguments: list[str], compiler: str | None, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(measure, "_run", lambda wanted, *_, **__: asked.append(wanted))
    assert run("throughput", *arguments).exit_code == 0
    assert asked[0].compile == compiler
    assert asked[0].models[0] == models


def test_ctrl_c_ends_the_children_and_keeps_what_is_done(tmp_path: Path) -> None:
    models = ["timed_for_tests:good", "timed_for_tests:Sleeping"]
    with subprocess.Popen(
        [sys.executable, "-m", "vitbench", "throughput", *models, *QUICK, "--output", "found.csv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as measuring:
        found = tmp_path / "found.csv"
        end = time.monotonic() + 60
        while not found.exists() and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(1)
        children = psutil.Process(measuring.pid).children(recursive=True)
        os.killpg(measuring.pid, signal.SIGINT)
        _, said = measuring.communicate(timeout=60)
    assert measuring.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    (row,) = csv.DictReader(io.StringIO(found.read_text(encoding="utf-8")))
    assert row["model"] == "timed_for_tests:good"
    _, alive = psutil.wait_procs(children, timeout=10)
    assert children
    assert not alive


def test_memory_shows_what_was_measured_in_brackets() -> None:
    options = ("--input", "3x2x4", "--device", "cpu")
    done = run("memory", "timed_for_tests:good", *options, "--mode", "train", "--batch-size", "1,8", "-f", "json")
    assert done.exit_code == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert (first["batch_size"], second["batch_size"]) == (1, 8)
    assert first["predicted_gradients_bytes"] == first["measured_gradients_bytes"] == 80
    assert first["predicted_optimizer_bytes"] == 160
    done = run("memory", "timed_for_tests:good", *options)
    assert re.search(r"80 B \(\d", done.stdout)
    assert "Gradients" not in done.stdout
    done = run("memory", "timed_for_tests:good", *options, "--predict", "-f", "json")
    (row,) = json.loads(done.stdout)
    assert "measured_peak_bytes" not in row


def test_the_largest_batch_is_the_last_that_fits() -> None:
    """80 bytes of weights and 2 x 6 x 4 floats of each input: 1 KiB holds (1024 - 80) // 192 = 4."""
    options = ("--input", "3x2x4", "--device", "cpu", "-f", "json")
    done = run("max-batch", "timed_for_tests:good", *options, "--memory", "1KiB")
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["max_batch"], row["peak_bytes"], row["next_peak_bytes"]) == (4, 80 + 4 * 192, 80 + 5 * 192)
    done = run("max-batch", "timed_for_tests:good", *options)
    assert done.exit_code == 3
    assert "give --memory" in json.loads(done.stdout)[0]["note"]
    done = run("max-batch", "timed_for_tests:good", "--memory", "24")
    assert done.exit_code == 2
    assert "such as 24GiB" in " ".join(done.stderr.replace("│", " ").split())


def test_bench_is_all_of_them_in_one_row() -> None:
    done = run("bench", "timed_for_tests:good", *QUICK, "-f", "json")
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["macs"] == 96
    assert row["throughput_per_s"] > 0
    assert row["predicted_peak_bytes"] > 80
    assert row["measured_peak_bytes"] % 4096 == 0  # so small a model may take no page of its own
    done = run("bench", "timed_for_tests:good", *QUICK)
    assert all(word in done.stdout for word in ("MACs", "Median", "Peak, predicted", "Peak, measured"))
