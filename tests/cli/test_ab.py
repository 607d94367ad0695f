"""`vitbench ab`: what a user types, sees and gets wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from vitbench.cli import app
from vitbench.cli.ab import said
from vitbench.judging.duel import Progress
from vitbench.judging.pairs import Estimate

SLEEPING = """
import time
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with Path("built").open("a") as file: file.write("1")
        self.layer = nn.Linear(4, 4)
    def forward(self, x):
        time.sleep(0.004)
        return self.layer(x)
"""
QUICK = ("dozed_for_tests:Net", "--input", "3x2x4", "--threads", "1", "--device", "cpu")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["ab", *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vit_b16"], "Both sides are the same"),
        (["vit_b16", "--b", "dtpye=bf16"], "Did you mean dtype"),
        (["vit_b16", "--b", "dtype=bf16", "--budget", "120"], "such as 120s or 10m"),
        (["vit_b16", "--b", "dtype=bf16", "--threshold", "x"], 'such as "5%" or "0.5%"'),
        (["vit_b16", "--b", "dtype=bf16", "--output", "nowhere/a.md"], "no folder nowhere"),
        (["vit_b16", "--b", "git:no-such-revision"], "git:no-such-revision: no such revision"),
    ],
)
def test_a_mistake_is_one_sentence_and_ends_with_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


def test_the_near_end_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from vitbench.cli import app\n"
        "try: app(['ab', 'vit_b16', '--b', 'git:no-such-revision'])\n"
        "except SystemExit: pass\n"
        "assert 'vitbench.judging.sides' in sys.modules\n"
        "assert not {'torch', 'timm'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_progress_is_told_in_a_line() -> None:
    """Ln 1.1 is 10 % more time: 1 / 1.1 of the throughput."""
    estimate = Estimate(centre=0.09531, low=0.08531, high=0.10531, p_value=0.01, rounds=3)
    progress = Progress(stage="first", rounds=3, spent_s=12.3, budget_s=120, estimate=estimate)
    assert said(progress) == "-9.09 % ± 1.00 % (first pass, round 3, 12 of 120 s)"


def test_ctrl_c_reports_what_is_known_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "dozed_for_tests.py").write_text(SLEEPING)
    who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message", "one")):
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "vitbench",
            "ab",
            *QUICK,
            "--a",
            "git:HEAD",
            "--budget",
            "30s",
            "--output",
            "found.json",
        ],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as measuring:
        end = time.monotonic() + 100
        built = tmp_path / "built"
        # Once for nothing, once for the first round, which is over when the second begins.
        while (not built.exists() or len(built.read_text()) < 3) and time.monotonic() < end:
            time.sleep(0.05)
        children = psutil.Process(measuring.pid).children(recursive=True)
        os.killpg(measuring.pid, signal.SIGINT)
        _, stderr = measuring.communicate(timeout=60)
    assert measuring.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    (change,) = json.loads((tmp_path / "found.json").read_text())["changes"]
    assert (change["verdict"], change["note"]) == ("inconclusive", "interrupted")
    _, alive = psutil.wait_procs(children, timeout=10)
    assert len(children) >= 3
    assert not alive
    assert not list(temporary.glob("vitbench-*"))
    trees = subprocess.run(["git", "worktree", "list"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert len(trees.stdout.splitlines()) == 1
