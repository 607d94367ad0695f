"""What a check compares with what, and what it keeps. Measurements and contests are made up; git is real."""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from vitbench import ab, changes, check, findings, measure, suite
from vitbench.changes import Change, Comparison, exit_code
from vitbench.errors import BadInput
from vitbench.judging import matching
from vitbench.records import Machine, Row, RunSetting
from vitbench.results import Line
from vitbench.running import environment

TODAY = datetime.date(2027, 1, 31)
NOWHERE = check.Revision(told="there is no revision origin/main here")
ELSEWHERE = check.Revision(commit="c0ffee" * 6 + "abcd", told="Times are compared with c0ffee.")
RUN = '[[run]]\nmodels = ["vit_ti16", "deit_s16"]\nmetrics = "flops"\ndevice = "cpu"\n'
TIMED = '[[run]]\nmodels = ["vit_ti16", "deit_s16"]\nmetrics = "throughput"\ndevice = "cpu"\nthreads = 1\n'
MEASURED = '[[run]]\nmodels = "vit_ti16"\nmetrics = "memory"\ndevice = "cpu"\nthreads = 1\n'


def read(folder: Path, text: str) -> suite.Suite:
    path = folder / "mine.toml"
    path.write_text(f'title = "t"\n{text}')
    return suite.read(str(path))


def blank(record: type[Any], value: Any = None) -> dict[str, Any]:
    """Gives the same value for every field of a record."""
    return dict.fromkeys(record.__dataclass_fields__, value)


def counted(macs: int) -> findings.Flops:
    known = {"params": 7, "params_trainable": 7, "macs": macs, "flops": 2 * macs, "activations": 5}
    return findings.Flops(**blank(findings.Flops) | known)


KNOWN = {"device_name": "a CPU", "instruction_set": "AVX2", "matmul_precision": "highest"}
MACHINE = Machine(**blank(Machine) | KNOWN)


@pytest.fixture
def macs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Gives what is measured, by model: its MACs, or its measured memory's peak in "peak", or why it fails."""
    answers: dict[str, Any] = {"vit_ti16": 100, "deit_s16": 200, "peak": 2**30}

    def measured(job: measure.Job) -> Row:
        answer = answers[job.setting.model]
        row = Row(setting=job.setting, findings={}, environment=environment.describe(), machine=MACHINE)
        if isinstance(answer, str):
            return replace(row, status="crashed", note=answer)
        if job.metrics == ("memory",):
            found = findings.Measured(**blank(findings.Measured, 0) | {"measured_peak_bytes": answers["peak"]})
            return replace(row, findings={"memory_measured": found})
        return replace(row, findings={"flops": counted(answer)})

    monkeypatch.setattr(measure, "measure_one", measured)
    return answers


def checked(
    asked: suite.Suite,
    baseline: Path | None,
    *,
    update: bool = False,
    revision: check.Revision = NOWHERE,
    today: datetime.date = TODAY,
) -> check.Check:
    """Gives a check that has counted, and writes its baseline if it is to."""
    checking = check.Check(asked, baseline=baseline, revision=revision, today=today, update=update)
    assert list(checking.count(jobs=2)) or not checking.counted
    if update and baseline:
        baseline.write_text(checking.baseline())
    return checking


def verdicts(comparison: Comparison) -> dict[tuple[str, str], str]:
    return {(one.model, one.column): one.verdict for one in comparison.changes if one.verdict != "unchanged"}


# Counts


def test_the_same_code_is_fine_and_a_count_that_grew_has_regressed(tmp_path: Path, macs: dict[str, Any]) -> None:
    asked, baseline = read(tmp_path, RUN), tmp_path / "baseline.json"
    checked(asked, baseline, update=True)
    same = checked(asked, baseline).comparison()
    assert verdicts(same) == {}
    assert exit_code(same) == 0
    macs["deit_s16"] = 201
    found = checked(asked, baseline).comparison()
    assert verdicts(found) == {("deit_s16", "macs"): "regressed"}
    assert exit_code(found) == 1


def test_a_baseline_has_the_same_bytes_each_time_and_tells_no_machine(tmp_path: Path, macs: dict[str, Any]) -> None:
    asked, baseline = read(tmp_path, RUN), tmp_path / "baseline.json"
    checked(asked, baseline, update=True)
    first = baseline.read_bytes()
    checked(asked, baseline, update=True)
    assert baseline.read_bytes() == first
    # In whatever order the suite names them, and however many threads the machine has.
    turned = read(tmp_path, RUN.replace('"vit_ti16", "deit_s16"', '"deit_s16", "vit_ti16"') + "threads = 3\n")
    checked(turned, baseline, update=True)
    assert baseline.read_bytes() == first
    rows = json.loads(first)
    assert [row["model"] for row in rows] == ["deit_s16", "vit_ti16"]
    about = {name for row in rows for name in row if name.startswith("environment")}
    assert about == {"environment_vitbench", "environment_torch", "environment_timm"}
    assert {"params", "macs"} <= rows[0].keys()
    assert {"threads", "device", "flops", "status", "asked"}.isdisjoint(rows[0])


def test_a_baseline_keeps_the_machine_of_what_is_nearly_exact_and_no_command() -> None:
    about = {"environment_cpu": "a", "environment_command": "vitbench check", "environment_time": "now"}
    versions = dict.fromkeys(check._VERSIONS, "1")
    setting = {item.name: item.default for item in fields(RunSetting)} | {"model": "m", "input_shape": [3, 8, 8]}
    row = Line("row", setting | {"measured_peak_bytes": 2**20} | about | versions)
    kept = check._kept(row, None, threads=False)
    assert {name for name in kept if name.startswith("environment_")} == {"environment_cpu", *versions}


def test_each_column_stays_as_it_was_where_a_setting_has_several_rows() -> None:
    """As of two runs of one model, one with memory and one with its fingerprint."""
    about = dict.fromkeys(check._VERSIONS, "1") | {"environment_cpu": "a"}
    setting = {item.name: item.default for item in fields(RunSetting)} | {"model": "m", "input_shape": [3, 8, 8]}

    def row(cpu: str, **found: Any) -> Line:
        return Line("row", setting | found | about | {"environment_cpu": cpu})

    before = [row("a", measured_peak_bytes=2**30), row("b", output=[1.0, 2.0])]
    (old,) = matching.side(before, "", []).values()
    kept = check._kept(row("c", measured_peak_bytes=2**30 + 5), old, threads=False)
    assert (kept["measured_peak_bytes"], kept["environment_cpu"]) == (2**30, "a")
    kept = check._kept(row("c", output=[1.0, 2.0000001]), old, threads=False)
    assert (kept["output"], kept["environment_cpu"]) == ([1.0, 2.0], "b")


def test_a_difference_of_two_baselines_shows_the_columns_that_changed(tmp_path: Path, macs: dict[str, Any]) -> None:
    asked, baseline = read(tmp_path, RUN), tmp_path / "baseline.json"
    checked(asked, baseline, update=True)
    before = baseline.read_text().splitlines()
    macs["deit_s16"] = 201
    checked(asked, baseline, update=True)
    after = baseline.read_text().splitlines()
    assert [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]] == [
        ('  "macs": 200,', '  "macs": 201,')
    ]


def test_what_varies_a_little_stays_in_the_baseline_as_it_was(tmp_path: Path, macs: dict[str, Any]) -> None:
    """3 % and 16 MiB are what findings.py allows resident memory."""
    asked, baseline = read(tmp_path, MEASURED), tmp_path / "baseline.json"
    checked(asked, baseline, update=True)
    first = baseline.read_bytes()
    macs["peak"] += 10 * 2**20
    checked(asked, baseline, update=True)
    assert baseline.read_bytes() == first
    assert exit_code(checked(asked, baseline).comparison()) == 0
    macs["peak"] = 2 * 2**30
    assert exit_code(checked(asked, baseline).comparison()) == 1
    checked(asked, baseline, update=True)
    (row,) = json.loads(baseline.read_text())
    assert row["measured_peak_bytes"] == 2 * 2**30
    # What it is incomparable without.
    assert row["environment_instruction_set"] == "AVX2"


def test_threads_stay_where_several_were_asked_for(tmp_path: Path, macs: dict[str, Any]) -> None:
    asked, baseline = read(tmp_path, f"{RUN}threads = [1, 2]\n"), tmp_path / "baseline.json"
    checked(asked, baseline, update=True)
    assert [row.get("threads", 1) for row in json.loads(baseline.read_text())] == [1, 2, 1, 2]
    assert verdicts(checked(asked, baseline).comparison()) == {}


def test_a_row_that_failed_was_not_measured(tmp_path: Path, macs: dict[str, Any]) -> None:
    asked, baseline = read(tmp_path, RUN), tmp_path / "baseline.json"
    checked(asked, baseline, update=True)
    macs["deit_s16"] = "its process ended with exit code -11"
    found = checked(asked, baseline).comparison()
    assert found.counts["missing"] == 1
    assert found.changes[0].note == "crashed: its process ended with exit code -11"
    assert (exit_code(found), exit_code(replace(found, counted=changes.counted(allow_missing=True)))) == (3, 0)
    # Nor is it in a baseline, of which it is then missing all the same.
    updated = checked(asked, baseline, update=True)
    assert updated.failures == 1
    assert [row["model"] for row in json.loads(baseline.read_text())] == ["vit_ti16"]
    found = checked(asked, baseline).comparison()
    assert (found.counts["missing"], exit_code(found)) == (1, 3)


def test_a_row_that_the_suite_no_longer_asks_for_is_missing_and_a_new_one_is_new(
    tmp_path: Path, macs: dict[str, Any]
) -> None:
    baseline = tmp_path / "baseline.json"
    checked(read(tmp_path, RUN), baseline, update=True)
    one = read(tmp_path, RUN.replace(', "deit_s16"', ""))
    assert exit_code(checked(one, baseline).comparison()) == 3
    checked(one, baseline, update=True)
    found = checked(read(tmp_path, RUN), baseline).comparison()
    assert verdicts(found) == {("deit_s16", ""): "new"}
    assert exit_code(found) == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "There is no baseline .*: make it by the same command with --update"),
        ('[\n {\n  "model": \n }\n]', "line 4, column 2"),
        ('[{"model": "vit_ti16", "input_shape": [3, 224, 224], "macs": "many"}]', "macs is 'many', not a number"),
    ],
)
def test_a_baseline_that_is_not_there_or_damaged_is_said(
    content: str | None, sentence: str, tmp_path: Path, macs: dict[str, Any]
) -> None:
    baseline = tmp_path / "baseline.json"
    if content is not None:
        baseline.write_text(content)
    # Before anything is measured.
    with pytest.raises(BadInput, match=sentence):
        check.Check(read(tmp_path, RUN), baseline=baseline, revision=NOWHERE, today=TODAY)


@pytest.mark.parametrize(
    ("torn", "problem"),
    [
        (lambda whole: f"<<<<<<< HEAD\n{whole}", "line 1, column 1"),
        (lambda whole: whole.replace('"macs": 100', '"macs": "many"'), "macs is 'many', not a number"),
    ],
)
def test_a_baseline_that_a_merge_has_torn_is_made_anew(
    torn: Callable[[str], str], problem: str, tmp_path: Path, macs: dict[str, Any]
) -> None:
    asked, baseline = read(tmp_path, RUN), tmp_path / "baseline.json"
    checked(asked, baseline, update=True)
    whole = baseline.read_text()
    baseline.write_text(torn(whole))
    found = checked(asked, baseline, update=True)
    assert problem in found.problem
    assert baseline.read_text() == whole


def test_what_cannot_be_checked_is_said(tmp_path: Path) -> None:
    auto = '[[run]]\nmodels = "vit_ti16"\nbatch_size = "auto"\ndevice = "cpu"\n'
    timm = '[[run]]\ntimm = "vit_tiny_patch16_224"\nmetrics = "throughput"\ndevice = "cpu"\n'
    roofline = '[[run]]\nmodels = "vit_ti16"\nmetrics = ["flops", "roofline"]\ndevice = "cpu"\n'
    for run, sentence in (
        (auto, "best batch size"),
        (timm, "give them in models"),
        (roofline, "compares no rooflines"),
        (RUN, "Give --baseline"),
    ):
        with pytest.raises(BadInput, match=sentence):
            checked(read(tmp_path, run), None)
    with pytest.raises(BadInput, match="times alone"):
        checked(read(tmp_path, TIMED), tmp_path / "baseline.json", update=True)
    with pytest.raises(BadInput, match="a baseline is a JSON file"):
        checked(read(tmp_path, RUN), tmp_path / "baseline.csv", update=True)


def test_thresholds_hold_for_the_models_they_name_and_the_last_counts(tmp_path: Path, macs: dict[str, Any]) -> None:
    baseline = tmp_path / "baseline.json"
    checked(read(tmp_path, RUN), baseline, update=True)
    macs |= {"vit_ti16": 102, "deit_s16": 204}
    wide = '[[threshold]]\nmetric = "macs"\nwithin = "5%"\n'
    narrow = '[[threshold]]\nmetric = "macs"\nmodels = "deit_*"\nwithin = "1%"\n'
    assert verdicts(checked(read(tmp_path, RUN + wide), baseline).comparison()) == {}
    found = checked(read(tmp_path, RUN + wide + narrow), baseline).comparison()
    assert verdicts(found) == {("deit_s16", "macs"): "regressed"}


# What is expected


def expecting(**changes: str) -> str:
    entry = {"model": '"deit_*"', "metric": '"macs"', "reason": '"a wider head"', "until": "2027-01-31"} | changes
    return "[[expected]]\n" + "".join(f"{name} = {value}\n" for name, value in entry.items())


@pytest.mark.parametrize(
    ("entry", "today", "code", "note"),
    [
        (expecting(), TODAY, 0, ""),
        (expecting(metric='"mac*"'), TODAY, 0, ""),
        (expecting(), TODAY + datetime.timedelta(days=1), 1, "expired on 2027-01-31 and excuses nothing any more"),
        (expecting(model='"swin_*"'), TODAY, 1, "expected[0] (macs of swin_*: a wider head) fits no change"),
        (expecting(metric='"params"'), TODAY, 1, "expected[0] (params of deit_*: a wider head) fits no change"),
    ],
)
def test_an_expected_change_is_excused_until_its_day(
    entry: str, today: datetime.date, code: int, note: str, tmp_path: Path, macs: dict[str, Any]
) -> None:
    baseline = tmp_path / "baseline.json"
    checked(read(tmp_path, RUN), baseline, update=True)
    macs["deit_s16"] = 300
    found = checked(read(tmp_path, RUN + entry), baseline, today=today).comparison()
    assert exit_code(found) == code
    assert verdicts(found) == {("deit_s16", "macs"): "regressed"}
    assert found.changes[0].expected == ("" if code else "a wider head")
    assert note in " ".join(found.notes)
    assert ("expected[0]" in " ".join(found.notes)) == bool(note)


def test_a_row_that_is_gone_can_be_expected(tmp_path: Path, macs: dict[str, Any]) -> None:
    baseline = tmp_path / "baseline.json"
    checked(read(tmp_path, RUN), baseline, update=True)
    without = RUN.replace(', "deit_s16"', "") + expecting(metric='"*"')
    assert exit_code(checked(read(tmp_path, without), baseline).comparison()) == 0


# Times


class Contest:
    """Stands for `ab.Contest`: answers by a rule and remembers what it was asked."""

    asked: ClassVar[list[ab.Ask]] = []
    fails: ClassVar[str] = ""
    p_values: ClassVar[dict[tuple[str, int], float]] = {}

    def __init__(self, ask: ab.Ask) -> None:
        self.asked.append(ask)
        self._ask = ask
        self.measured = False

    def run(self, *, say: Callable[[str], None], tell: ab.Tell) -> None:
        if self.fails:
            raise BadInput(self.fails)
        self.measured = True

    def comparison(self, *, alone: bool) -> Comparison:
        assert not alone
        slower = [
            Change(
                setting={"model": model, "batch_size": str(self._ask.options.batch_size)},
                column=ab.COLUMN,
                heading="Inputs/s",
                judged="timed",
                better="higher",
                verdict="regressed",
                ratio=0.8,
                p_value=self.p_values.get((model, self._ask.options.batch_size), 0.001),
            )
            for model in self._ask.models
        ]
        return Comparison(
            base=self._ask.a.text,
            head=self._ask.b.text,
            changes=tuple(slower),
            differences={"torch": ("2.14", "2.15")},
            notes=("Measured in turn.",),
        )


@pytest.fixture
def contests(monkeypatch: pytest.MonkeyPatch) -> type[Contest]:
    Contest.asked, Contest.fails, Contest.p_values = [], "", {}
    monkeypatch.setattr(ab, "Contest", Contest)
    return Contest


def timed(asked: suite.Suite, revision: check.Revision) -> Comparison:
    checking = checked(asked, None, revision=revision)
    checking.time(say=lambda text: None, tell=lambda model, progress: None)
    return checking.comparison()


def test_times_are_compared_with_the_revision_and_not_with_the_baseline(
    tmp_path: Path, contests: type[Contest]
) -> None:
    batches = f'{TIMED}batch_size = [1, 8]\nmode = "train"\ndtype = "bf16"\nimg_size = 224\n'
    extra = '[[threshold]]\nmetric = "throughput"\nmodels = "deit_*"\nwithin = "9%"\n[against]\nbudget = "2m"\n'
    found = timed(read(tmp_path, batches + extra), ELSEWHERE)
    assert (found.base, found.head) == (ELSEWHERE.commit[:12], "here")
    assert found.counts == {"regressed": 4}
    assert exit_code(found) == 1
    assert found.differences == {"torch": ("2.14", "2.15")}
    discoveries = "Of 4 comparisons of times, the false discovery rate is held at 5% (Benjamini-Hochberg)."
    assert found.notes == (ELSEWHERE.told, "Measured in turn.", discoveries)
    # One contest for all models of a setting and a threshold.
    assert sorted((*ask.models, ask.options.batch_size, ask.rule.threshold) for ask in contests.asked) == [
        ("deit_s16", 1, 0.09),
        ("deit_s16", 8, 0.09),
        ("vit_ti16", 1, 0.03),
        ("vit_ti16", 8, 0.03),
    ]
    (ask, *_) = contests.asked
    assert (ask.a.text, ask.b.text) == (f"git:{ELSEWHERE.commit}", "here")
    assert (ask.a.revision, ask.rule.budget_s, ask.timeout_s) == (ELSEWHERE.commit, 120, 600)
    options = ask.options
    assert (options.device, options.dtype, options.mode, options.threads) == ("cpu", "bf16", "train", 1)
    assert options.img_size == (224, 224)


def test_false_discoveries_are_counted_in_the_whole_report(tmp_path: Path, contests: type[Contest]) -> None:
    """In a contest of its own 0.04 would do: of four, the second lowest has to be below 0.05 * 2 / 4."""
    contests.p_values = {("vit_ti16", 1): 0.04, ("vit_ti16", 8): 0.9, ("deit_s16", 8): 0.9}
    narrow = '[[threshold]]\nmetric = "throughput"\nmodels = "deit_*"\nwithin = "9%"\n'
    found = timed(read(tmp_path, f"{TIMED}batch_size = [1, 8]\n{narrow}"), ELSEWHERE)
    assert len(contests.asked) == 4
    assert found.counts == {"regressed": 1, "suspect": 3}
    assert found.changes[0].model == "deit_s16"


def test_times_that_an_interrupt_left_out_are_missing(
    tmp_path: Path, contests: type[Contest], monkeypatch: pytest.MonkeyPatch
) -> None:
    checking = checked(read(tmp_path, f"{TIMED}batch_size = [1, 8]\n"), None, revision=ELSEWHERE)

    def interrupted(self: Contest, **how: Any) -> None:
        if len(self.asked) == 2:
            raise KeyboardInterrupt
        self.measured = True

    monkeypatch.setattr(contests, "run", interrupted)
    assert not checking.measured
    with pytest.raises(KeyboardInterrupt):
        checking.time(say=lambda text: None, tell=lambda model, progress: None)
    assert checking.measured
    found = checking.comparison()
    assert found.counts == {"regressed": 2, "missing": 2}
    assert {one.note for one in found.changes if one.verdict == "missing"} == {"not measured: interrupted"}


def test_counts_and_times_are_one_comparison(tmp_path: Path, macs: dict[str, Any], contests: type[Contest]) -> None:
    baseline = tmp_path / "baseline.json"
    asked = read(tmp_path, RUN.replace('"flops"', '["flops", "throughput"]'))
    checked(asked, baseline, update=True)
    assert contests.asked == []
    assert "throughput" not in baseline.read_text()
    checking = checked(asked, baseline, revision=ELSEWHERE)
    checking.time(say=lambda text: None, tell=lambda model, progress: None)
    found = checking.comparison()
    assert (found.base, found.counts["regressed"], found.changes[0].column) == (str(baseline), 2, ab.COLUMN)
    assert found.counts["unchanged"] >= 4


@pytest.mark.parametrize("why", ["no revision", "no code"])
def test_times_that_cannot_be_compared_are_missing_with_advice(
    why: str, tmp_path: Path, contests: type[Contest]
) -> None:
    contests.fails = "git:c0ffee cannot be checked out: no space."
    found = timed(read(tmp_path, TIMED), NOWHERE if why == "no revision" else ELSEWHERE)
    assert found.counts == {"missing": 2}
    assert exit_code(found) == 3
    said = NOWHERE.told if why == "no revision" else contests.fails
    assert {one.note for one in found.changes} == {f"not measured: {said}"}
    assert found.changes[0].setting == {
        "model": "vit_ti16",
        "input_shape": "3x224x224",
        "batch_size": "1",
        "device": "cpu",
        "dtype": "fp32",
        "mode": "infer",
        "threads": "1",
    }


def test_the_same_commit_is_not_timed(tmp_path: Path, contests: type[Contest]) -> None:
    found = timed(read(tmp_path, TIMED), replace(ELSEWHERE, here=True))
    assert contests.asked == []
    assert found.counts == {"unchanged": 2}
    assert exit_code(found) == 0
    assert found.notes == (f"Nothing was timed: here is {ELSEWHERE.commit[:12]} itself, with no change.",)


def test_a_threshold_of_times_that_fits_no_model_is_said(tmp_path: Path, contests: type[Contest]) -> None:
    asked = read(tmp_path, TIMED + '[[threshold]]\nmetric = "throughput"\nmodels = "swin_*"\nwithin = "5%"\n')
    assert "The threshold throughput_per_s:swin_*=5% fits no model that is timed." in timed(asked, ELSEWHERE).notes


def test_what_is_updated_says_nothing_of_times(tmp_path: Path, macs: dict[str, Any]) -> None:
    asked = read(tmp_path, RUN + TIMED + expecting(metric='"throughput_per_s"'))
    found = checked(asked, tmp_path / "baseline.json", update=True, revision=ELSEWHERE).comparison()
    assert not [note for note in found.notes if "Times" in note or "expected[0]" in note]


# git


def test_where_git_cannot_tell_there_may_be_changes(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up on after some seconds."""
    asked = environment.git
    monkeypatch.setattr(environment, "git", lambda *words: None if "status" in words else asked(*words))
    assert not check.merge_base("HEAD", repository).here


def git(folder: Path, *arguments: str) -> str:
    named = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(named, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Gives a repository whose branch left `main` two commits ago, after which main had one of its own."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for name in ("first", "second"):
        (folder / "nets.py").write_text(name)
        git(folder, "add", ".")
        git(folder, "commit", "-qm", name)
    git(folder, "checkout", "-qb", "mine")
    git(folder, "commit", "-qm", "third", "--allow-empty")
    git(folder, "checkout", "-q", "main")
    git(folder, "commit", "-qm", "elsewhere", "--allow-empty")
    git(folder, "checkout", "-q", "mine")
    return folder


def test_times_are_compared_with_where_the_branch_began(repository: Path) -> None:
    found = check.merge_base("main", repository)
    assert found.commit == git(repository, "rev-parse", "HEAD~1")
    assert not found.here
    assert found.told == f"Times are compared with {found.commit[:12]}, where HEAD left main."


def test_uncommitted_changes_are_something_to_time(repository: Path) -> None:
    git(repository, "checkout", "-q", "main")
    found = check.merge_base("main", repository)
    assert (found.commit, found.here) == (git(repository, "rev-parse", "HEAD"), True)
    (repository / "report.json").write_text("{}")
    assert check.merge_base("main", repository).here
    (repository / "nets.py").write_text("third")
    found = check.merge_base("main", repository)
    assert not found.here
    assert "uncommitted changes" in found.told


@pytest.mark.parametrize("revision", ["origin/main", "--help", "-h", "main --", "$(touch here)", "main..mine", ""])
def test_a_revision_that_is_none_is_said_with_advice(revision: str, repository: Path) -> None:
    found = check.merge_base(revision, repository)
    assert not found.commit
    assert f"there is no revision {revision} here" in found.told
    assert "fetch-depth: 0" in found.told
    assert "--against" in found.told
    assert sorted(file.name for file in repository.iterdir()) == [".git", "nets.py"]


def test_a_shallow_clone_has_no_beginning(repository: Path, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", "--no-single-branch", repository.as_uri(), str(shallow))
    found = check.merge_base("origin/main", shallow)
    assert not found.commit
    assert "HEAD and origin/main have no commit in common here: in GitHub Actions" in found.told


def test_where_there_is_no_repository_nothing_is_timed(tmp_path: Path) -> None:
    found = check.merge_base("origin/main", tmp_path)
    assert (found.commit, found.here) == ("", False)
    assert "no git repository" in found.told
