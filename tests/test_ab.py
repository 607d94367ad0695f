"""What becomes of two sides: direction, scale, failures, interruptions; and a real slow-down between two revisions."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitbench import ab
from vitbench.changes import exit_code
from vitbench.errors import BadInput
from vitbench.judging import duel, sides

RULE = duel.Rule(budget_s=60, rounds=5, control_rounds=1, pairs=4, block_s=1e-4, warmup_s=0.01)


class FakeWorker:
    """A worker whose passes take stated seconds, a little more or less each time."""

    def __init__(self, side: FakeSide, about: sides.About, seconds: float) -> None:
        self._side = side
        self.about = about
        self._seconds = seconds

    def block(self, runs: int) -> Sequence[float]:
        self._side.blocks += 1
        if self._side.blocks > self._side.most_blocks:
            raise self._side.error
        return [self._seconds * (1 + 0.001 * math.sin(self._side.blocks + run)) for run in range(runs)]

    def close(self) -> None:
        pass


class FakeSide:
    """A side of fake workers; its model takes `seconds`, or as long as `slow` says."""

    def __init__(self, spec: sides.Spec, seconds: float) -> None:
        self.name = spec.text
        self.commit = "0123abcd" if spec.revision else ""
        self.seconds = seconds
        self.slow: dict[str, float] = {}
        self.lacks: tuple[str, ...] = ()
        self.kind = ""
        self.blocks = 0
        self.most_blocks = 10**9
        self.error: BaseException = KeyboardInterrupt()
        self.started: list[tuple[str, sides.Options]] = []
        self.renewed = 0

    def shares(self, other: FakeSide) -> bool:
        return self.commit == other.commit

    def renew(self) -> None:
        self.renewed += 1

    def start(self, model: str, options: sides.Options) -> FakeWorker:
        self.started.append((model, options))
        if model in self.lacks:
            raise sides.SideFailed(self.name, f"there is no {model}", self.kind)
        return FakeWorker(self, about(model, options), self.slow.get(model, self.seconds))


def about(model: str = "vit_b16", options: sides.Options | None = None, values: Sequence[float] = (3.0, 4.0)) -> Any:
    options = options or sides.Options()
    setting = {
        "model": model,
        "input_shape": [3, 224, 224],
        "batch_size": options.batch_size,
        "batch_size_asked": "1",
        "device": "cpu",
        "dtype": options.dtype,
        "amp": options.amp,
        "mode": options.mode,
        "compile": options.compile,
        "channels_last": options.channels_last,
        "grad_checkpointing": options.grad_checkpointing,
        "threads": options.threads or 2,
    }
    environment = {"torch": "2.14", "time": "now", "commit": None}
    return sides.About(
        setting=setting, environment=environment, machine={"device_name": "a CPU"}, shapes=[[1, 2]], values=values
    )


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeSide]:
    """The two sides that the next contest meets; b is as fast as a."""
    made: dict[str, FakeSide] = {}

    @contextmanager
    def opened(specs: Sequence[sides.Spec], *, say: object, limit_s: float) -> Iterator[list[FakeSide]]:
        for name, spec in zip(("a", "b"), specs, strict=True):
            made.setdefault(name, FakeSide(spec, 0.01)).name = spec.text
            made[name].commit = "0123abcd" if spec.revision else ""
        yield [made["a"], made["b"]]

    monkeypatch.setattr(sides, "opened", opened)
    made["a"], made["b"] = FakeSide(sides.Spec(), 0.01), FakeSide(sides.Spec(), 0.01)
    return made


def contest(*models: str, a: str = "here", b: str = "dtype=bf16", **options: Any) -> ab.Contest:
    asked = sides.Options(device="cpu", **options)
    return ab.Contest(
        ab.Ask(models=models, a=sides.parse(a), b=sides.parse(b), options=asked, rule=RULE, command="vitbench ab")
    )


def run(found: ab.Contest) -> None:
    found.run(say=lambda text: None, tell=lambda model, progress: None)


def test_throughput_is_one_over_time(fakes: dict[str, FakeSide]) -> None:
    """B takes 1.25 times as long: 80 inputs a second instead of 100."""
    fakes["b"].seconds = 0.0125
    found = contest("vit_b16", a="git:main")
    run(found)
    comparison = found.comparison()
    (change,) = comparison.changes
    assert (change.verdict, change.judged, change.better, change.column) == (
        "regressed",
        "timed",
        "higher",
        "throughput_per_s",
    )
    assert change.before == pytest.approx(100, rel=0.01)
    assert change.after == pytest.approx(80, rel=0.01)
    assert change.ratio is not None
    assert change.ratio == pytest.approx(0.8, rel=0.01)
    assert change.low is not None
    assert change.high is not None
    assert change.low <= change.ratio <= change.high < 0.97
    assert len(change.rounds) >= 10
    assert all(ratio == pytest.approx(0.8, rel=0.01) for pairs in change.rounds for ratio in pairs)
    # What differs between the sides is no part of the setting; it is their names.
    assert change.setting == {
        "model": "vit_b16",
        "input_shape": "3x224x224",
        "batch_size": "1",
        "device": "cpu",
        "mode": "infer",
        "threads": "2",
    }
    assert (comparison.base, comparison.head) == ("git:main", "dtype=bf16")
    assert comparison.notes[0] == "git:main is commit 0123abcd."
    assert "side a against itself" in comparison.notes[-1]
    assert comparison.environment["device_name"] == "a CPU"
    assert comparison.differences == {}
    assert comparison.commands == ("vitbench ab",)
    assert exit_code(comparison) == 1


def test_what_is_quicker_is_improved_and_what_is_the_same_unchanged(fakes: dict[str, FakeSide]) -> None:
    fakes["b"].slow = {"vit_s16": 0.008}
    found = contest("vit_b16", "vit_s16")
    run(found)
    assert {change.model: change.verdict for change in found.comparison().changes} == {
        "vit_s16": "improved",
        "vit_b16": "unchanged",
    }
    assert "Of 2 comparisons of times, the false discovery rate" in found.comparison().notes[-1]
    assert "false discovery" not in " ".join(found.comparison(alone=False).notes)
    assert exit_code(found.comparison()) == 0


def test_two_codes_have_new_servers_to_confirm_and_two_settings_share_one(fakes: dict[str, FakeSide]) -> None:
    for seconds, a, renewed in ((0.0125, "here", 0), (0.01, "git:main", 0), (0.0125, "git:main", 1)):
        fakes["b"].seconds = seconds
        run(contest("vit_b16", a=a))
        assert (fakes["a"].renewed, fakes["b"].renewed) == (renewed, renewed)


def test_batches_of_another_size_are_compared_by_the_input(fakes: dict[str, FakeSide]) -> None:
    """Eight inputs in four times the time: twice the throughput."""
    fakes["b"].seconds = 0.04
    found = contest("vit_b16", b="batch_size=8")
    run(found)
    (change,) = found.comparison().changes
    assert change.ratio == pytest.approx(2, rel=0.01)
    assert change.before == pytest.approx(100, rel=0.01)
    assert change.after == pytest.approx(200, rel=0.01)
    assert "batch_size" not in change.setting


def test_options_hold_for_both_sides_but_where_one_says_otherwise(fakes: dict[str, FakeSide]) -> None:
    run(contest("vit_b16", a="threads=4", b="vit_s16,dtype=bf16", threads=1, mode="train"))
    assert fakes["a"].started[0] == ("vit_b16", sides.Options(device="cpu", threads=4, mode="train"))
    assert fakes["b"].started[0] == ("vit_s16", sides.Options(device="cpu", threads=1, mode="train", dtype="bf16"))


def test_a_model_that_b_cannot_run_is_missing_and_the_others_are_measured(fakes: dict[str, FakeSide]) -> None:
    fakes["b"].lacks = ("vit_s16",)
    found = contest("vit_s16", "vit_b16", b="git:main")
    run(found)
    missing, measured = found.comparison().changes
    assert (missing.model, missing.verdict, missing.note) == ("vit_s16", "missing", "git:main: there is no vit_s16")
    assert missing.ratio is None
    assert (measured.model, measured.verdict) == ("vit_b16", "unchanged")
    assert exit_code(found.comparison()) == 3


def test_what_fails_midway_is_missing(fakes: dict[str, FakeSide]) -> None:
    fakes["b"].most_blocks, fakes["b"].error = 30, sides.SideFailed("dtype=bf16", "took more than 600 s")
    found = contest("vit_b16")
    run(found)
    (change,) = found.comparison().changes
    assert (change.verdict, change.note, change.after) == ("missing", "dtype=bf16: took more than 600 s", None)


def test_a_base_that_is_asked_for_what_it_cannot_have_is_an_error_and_one_that_breaks_is_missing(
    fakes: dict[str, FakeSide],
) -> None:
    fakes["a"].lacks = ("vit_b16",)
    found = contest("vit_b16")
    run(found)
    (change,) = found.comparison().changes
    assert (change.verdict, change.note) == ("missing", "here: there is no vit_b16")
    assert exit_code(found.comparison()) == 3
    fakes["a"].kind = "BadInput"
    found = contest("vit_b16")
    with pytest.raises(BadInput, match=r"^here: there is no vit_b16\.$"):
        run(found)
    assert not found.measured


def test_a_name_that_nobody_knows_is_told_before_anything_is_measured(fakes: dict[str, FakeSide]) -> None:
    fakes["a"].lacks, fakes["a"].kind = ("vit_b61",), "UnknownName"
    with pytest.raises(BadInput, match="there is no vit_b61"):
        run(contest("vit_s16", "vit_b61"))
    assert fakes["a"].blocks == fakes["b"].blocks == 0


def test_a_name_that_nobody_knows_is_a_mistake_but_a_revision_may_lack_it(fakes: dict[str, FakeSide]) -> None:
    fakes["b"].lacks, fakes["b"].kind = ("vit_b61",), "UnknownName"
    with pytest.raises(BadInput, match="there is no vit_b61"):
        run(contest("vit_b16", b="vit_b61"))
    found = contest("vit_b61", b="git:main")
    run(found)
    assert [change.verdict for change in found.comparison().changes] == ["missing"]


def test_what_is_interrupted_is_inconclusive(fakes: dict[str, FakeSide]) -> None:
    fakes["b"].seconds = 0.02
    found = contest("vit_b16", "vit_s16")

    def interrupt(model: str, progress: duel.Progress) -> None:
        if progress.rounds == 2:
            raise KeyboardInterrupt

    assert not found.measured
    with pytest.raises(KeyboardInterrupt):
        found.run(say=lambda text: None, tell=interrupt)
    assert found.measured
    change, not_begun = sorted(found.comparison().changes, key=lambda one: one.ratio is None)
    assert (change.verdict, change.note) == ("inconclusive", "interrupted")
    assert change.ratio == pytest.approx(0.5, rel=0.01)
    assert (not_begun.model, not_begun.verdict, not_begun.note) == ("vit_s16", "inconclusive", "interrupted")


@pytest.mark.parametrize(
    ("models", "a", "b", "said"),
    [
        (("vit_b16",), "here", "here", "Both sides are the same"),
        ((), "here", "dtype=bf16", "Name at least one model"),
        (("vit_b16",), "vit_s16", "dtype=bf16", "Name the model of side a once"),
        (("no*such",), "here", "dtype=bf16", "No model of the catalog matches 'no.such'"),
        (("vit_b16",), "here", "amp=true", "dtype=bf16 or fp16"),
    ],
)
def test_what_cannot_be_compared_is_told_before_anything_is_started(
    models: tuple[str, ...], a: str, b: str, said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        contest(*models, a=a, b=b)


def test_how_far_outputs_lie_apart_is_told() -> None:
    one = about()
    assert ab.output_difference(one, about()) == ""
    # 0.05 over the norm of (3, 4).
    assert ab.output_difference(one, about(values=(3.0, 4.05))) == "the outputs differ by 1.0e-02 of their norm"
    assert ab.output_difference(one, about(values=(3.0, math.nan))) == "an output is not finite"
    assert ab.output_difference(about(values=(0.0, 0.0)), one) == "the outputs differ"
    other = replace(one, shapes=[[1, 3]], values=(1.0, 2.0, 3.0))
    assert ab.output_difference(one, other) == "the outputs are of other shapes: 1x2, then 1x3"
    assert ab.output_difference(one, about("vit_s16", values=(1.0, 1.0))) == ""


def test_times_and_parts_are_read() -> None:
    assert [ab.parse_budget(text) for text in ("120s", "2m", "1.5 h")] == [120, 120, 5400]
    assert [ab.parse_threshold(text) for text in ("3%", "0.5 %")] == [0.03, 0.005]
    for text in ("120", "0s", "-1s", "s", "1d"):
        with pytest.raises(BadInput, match="such as 120s or 10m"):
            ab.parse_budget(text)
    for text in ("3", "0%", "100%", "-3%", "%"):
        with pytest.raises(BadInput, match=r"such as (\"5%\" or \"0\.5%\"|3%)\.$"):
            ab.parse_threshold(text)


SLEEPING = """
import time
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
    def forward(self, x):
        time.sleep({seconds})
        return self.layer(x){more}
"""


def test_a_slow_down_since_a_revision_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 ms of sleep became 12, and twice the output: a third of the throughput, or somewhat more."""
    source = tmp_path / "src" / "slept_for_tests.py"
    source.parent.mkdir()
    who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    for message, seconds, more in (("quick", 0.004, ""), ("slow", 0.012, " * 2")):
        source.write_text(SLEEPING.format(seconds=seconds, more=more))
        for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message", message)):
            subprocess.run(["git", *who, *command], cwd=tmp_path, check=True)
    monkeypatch.chdir(source.parent)
    found = ab.Contest(
        ab.Ask(
            models=("slept_for_tests:Net",),
            a=sides.parse("git:HEAD~1"),
            b=sides.parse("here"),
            options=sides.Options(device="cpu", threads=1, input=(3, 2, 4)),
            rule=replace(RULE, rounds=3, precision=0.5, threshold=0.1, block_s=0.02, warmup_s=0.1),
        )
    )
    run(found)
    (change,) = found.comparison().changes
    assert change.verdict == "regressed", change
    assert change.ratio is not None
    assert 0.2 < change.ratio < 0.6
    assert change.note == "the outputs differ by 1.0e+00 of their norm"
    assert "git:HEAD~1 is commit" in found.comparison().notes[0]
    trees = subprocess.run(
        ["git", "worktree", "list"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert len(trees) == 1


def test_code_that_is_not_of_the_revision_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message", "one")):
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True)
    # Not in the revision, but found in the repository itself: as it is where a package is installed from there.
    (tmp_path / "slept_for_tests.py").write_text(SLEEPING.format(seconds=0, more=""))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with sides.opened([sides.parse("git:HEAD")], say=print) as (side,):
        with pytest.raises(sides.SideFailed, match="vit_lite_2_4_32 uses nothing of git:HEAD"):
            side.start("vit_lite_2_4_32", sides.Options(device="cpu"))
        with pytest.raises(sides.SideFailed, match="slept_for_tests is not in git:HEAD"):
            side.start("slept_for_tests:Net", sides.Options(device="cpu", input=(3, 2, 4)))


def test_vitbench_itself_is_measured_at_a_revision_from_its_own_repository(tmp_path: Path) -> None:
    """The script of a worker is that of the near end, which here lies in the repository itself, as an editable install does."""
    shutil.copytree(
        Path(ab.__file__).parent, tmp_path / "vitbench", ignore=shutil.ignore_patterns("__pycache__", "*.npz")
    )
    who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message", "one")):
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True)
    code = (
        "from vitbench.judging import sides\n"
        "with sides.opened([sides.parse('git:HEAD')], say=print) as (side,):\n"
        "    worker = side.start('vit_lite_2_4_32', sides.Options(device='cpu', threads=1))\n"
        "    print(len(worker.block(2)))\n"
        "    worker.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "2\n", done.stderr
