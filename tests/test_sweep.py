"""A sweep's folder and its order of work, with measurements that are made up; real ones are in tests/cli/test_sweep.py."""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from vitbench import measure, results, suite, sweep
from vitbench.errors import BadInput, CannotWrite
from vitbench.records import Row, Status
from vitbench.running import environment

MODELS = ["vit_ti16", "vit_s16", "vit_b16"]


def asked(folder: Path, *runs: str) -> tuple[suite.Suite, list[sweep.Item]]:
    """Gives a suite of some runs on the CPU, and its items."""
    path = folder / "mine.toml"
    tables = "".join(f'[[run]]\ndevice = "cpu"\nthreads = 1\n{run}\n' for run in runs or (f"models = {MODELS}",))
    path.write_text(f'title = "t"\n{tables}')
    found = suite.read(str(path))
    return found, sweep.plan(found)


def speed(images_per_s: float) -> dict[str, Any]:
    return {"throughput_per_s": images_per_s, "samples_ms": [[1.5, 2.5]], "warnings": ("drift",)}


class Fake:
    """Stands for `measure.measure_one`: answers by a rule, and remembers what was asked and when.

    Attributes:
        calls: the model and the batch size of each measurement.
        most: how many were in progress at once, at most.
    """

    def __init__(self, answer: Callable[[measure.Job], tuple[Status, float]] | None = None, takes_s: float = 0) -> None:
        self.calls: list[tuple[str, int]] = []
        self.most = 0
        self.spans: list[tuple[float, float, measure.Job]] = []
        self._answer = answer or (lambda job: ("ok", 100.0))
        self._takes_s = takes_s
        self._in_progress = 0
        self._lock = threading.Lock()

    def __call__(self, job: measure.Job) -> Row:
        begin = time.monotonic()
        with self._lock:
            self.calls.append((job.setting.model, job.setting.batch_size))
            self._in_progress += 1
            self.most = max(self.most, self._in_progress)
        time.sleep(self._takes_s)
        status, images_per_s = self._answer(job)
        with self._lock:
            self._in_progress -= 1
            self.spans.append((begin, time.monotonic(), job))
        row = Row(setting=job.setting, findings={}, environment=environment.describe(), status=status)
        return (
            replace(row, findings={"throughput": speed(images_per_s)}) if status == "ok" else replace(row, note="why")
        )


@contextmanager
def measured_by(fake: Callable[[measure.Job], Row]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "measure_one", fake)
        yield


def go(folder: Path, fake: Callable[[measure.Job], Row], *runs: str, jobs: int = 2, **options: bool) -> None:
    """Sweeps in `folder / "out"` until all is done."""
    found, items = asked(folder, *runs)
    with measured_by(fake), sweep.opened(folder / "out", found, items, **options) as out:
        missing = [item for item in items if not out.done(item)]
        assert list(sweep.run(missing, out, jobs=jobs)) or not missing
        assert all(out.done(item) for item in items)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_folder_explains_itself(tmp_path: Path) -> None:
    go(tmp_path, Fake())
    assert [row["model"] for row in table(tmp_path)] == MODELS
    assert [row["model"] for row in lines(tmp_path)] == MODELS
    assert (tmp_path / "out" / "suite.toml").read_text() == (tmp_path / "mine.toml").read_text()
    (first, *_) = lines(tmp_path)
    assert first["samples_ms"] == [[1.5, 2.5]]
    assert first["environment_torch"]
    (first_row, *_) = table(tmp_path)
    assert "samples_ms" not in first_row
    assert first_row["input_shape"] == "3x224x224"
    assert first_row["warnings"] == "drift"


def test_each_row_is_on_the_disk_before_the_next_is_begun(tmp_path: Path) -> None:
    fake = Fake()
    seen: list[tuple[int, int]] = []

    def looking(job: measure.Job) -> Row:
        there = (tmp_path / "out" / "results.jsonl").exists()
        seen.append((len(lines(tmp_path)), len(table(tmp_path))) if there else (0, 0))
        return fake(job)

    go(tmp_path, looking)
    assert seen == [(0, 0), (1, 1), (2, 2)]


def test_results_are_not_overwritten_without_being_asked(tmp_path: Path) -> None:
    go(tmp_path, Fake())
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    fake = Fake()
    with pytest.raises(BadInput, match="--resume"):
        go(tmp_path, fake)
    assert fake.calls == []
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
    (tmp_path / "out" / "results.jsonl").unlink()
    for resume in (False, True):
        with pytest.raises(BadInput, match="give another folder"):
            go(tmp_path, Fake(), resume=resume)


def test_resume_measures_only_what_is_missing(tmp_path: Path) -> None:
    go(tmp_path, Fake(), 'models = ["vit_ti16"]')
    fake = Fake()
    go(tmp_path, fake, resume=True)
    assert fake.calls == [("vit_s16", 1), ("vit_b16", 1)]
    again = Fake()
    go(tmp_path, again, resume=True)
    assert again.calls == []
    assert [row["model"] for row in table(tmp_path)] == MODELS


def test_resume_of_an_empty_folder_begins(tmp_path: Path) -> None:
    go(tmp_path, Fake(), resume=True)
    assert len(lines(tmp_path)) == 3


@pytest.mark.parametrize("torn", ['{"model": "vit_s16", "inp', '{"a": "\u00e4', "\0\0\0"])
def test_a_torn_last_line_is_dropped_and_measured_again(tmp_path: Path, torn: str) -> None:
    go(tmp_path, Fake(), 'models = ["vit_ti16"]')
    with (tmp_path / "out" / "results.jsonl").open("ab") as file:
        file.write(torn.encode()[:-1])
    fake = Fake()
    go(tmp_path, fake, resume=True)
    assert fake.calls == [("vit_s16", 1), ("vit_b16", 1)]
    assert [row["model"] for row in lines(tmp_path)] == MODELS


@pytest.mark.parametrize("damaged", ["{not json", "3", "[]", '{"model": "vit_s16"}', '{"asked": 1}', "\0\0"])
def test_any_other_damage_names_file_and_line(tmp_path: Path, damaged: str) -> None:
    go(tmp_path, Fake(), 'models = ["vit_ti16"]')
    path = tmp_path / "out" / "results.jsonl"
    path.write_text(f"{path.read_text()}{damaged}\n")
    before = path.read_bytes()
    with pytest.raises(BadInput, match=r"results\.jsonl, line 2 is no"):
        go(tmp_path, Fake(), resume=True)
    assert path.read_bytes() == before


def test_a_second_sweep_into_the_folder_is_refused(tmp_path: Path) -> None:
    found, items = asked(tmp_path)
    with sweep.opened(tmp_path / "out", found, items):
        with pytest.raises(BadInput, match="Another sweep is writing to"):
            go(tmp_path, Fake())
        with pytest.raises(BadInput, match="Another sweep is writing to"):
            go(tmp_path, Fake(), resume=True)
    go(tmp_path, Fake())


def test_what_failed_is_measured_again_only_when_asked(tmp_path: Path) -> None:
    def broken(job: measure.Job) -> tuple[Status, float]:
        return ("crashed" if job.setting.model == "vit_s16" else "ok"), 100.0

    go(tmp_path, Fake(broken))
    assert [row["status"] for row in table(tmp_path)] == ["ok", "crashed", "ok"]
    fake = Fake()
    go(tmp_path, fake, resume=True)
    assert fake.calls == []
    still = Fake(broken)
    go(tmp_path, still, resume=True, retry=True)
    mended = Fake()
    go(tmp_path, mended, resume=True, retry=True)
    assert still.calls == mended.calls == [("vit_s16", 1)]
    # In the place of the old row: nothing is there twice.
    assert [(row["model"], row["status"]) for row in lines(tmp_path)] == [(name, "ok") for name in MODELS]
    assert [row["status"] for row in table(tmp_path)] == ["ok", "ok", "ok"]


def test_the_header_does_not_depend_on_what_became_of_a_row(tmp_path: Path) -> None:
    runs = f'models = {MODELS}\nmetrics = ["throughput", "flops"]'

    def header(folder: Path, *fakes: Fake) -> list[str]:
        folder.mkdir()
        for fake in fakes:
            go(folder, fake, runs, resume=True, retry=True)
        return (folder / "out" / "results.csv").read_text().splitlines()[0].split(",")

    fine = header(tmp_path / "fine", Fake())
    assert header(tmp_path / "failed", Fake(lambda job: ("failed", 0.0))) == fine
    assert header(tmp_path / "mended", Fake(lambda job: ("failed", 0.0)), Fake()) == fine
    # Setting, metrics in the order of the shelf, status, note, environment.
    order = ["model", "threads", "params", "published_macs", "throughput_per_s", "status", "note", "environment_torch"]
    assert [name for name in fine if name in order] == order
    # A line has them all, and the lists.
    (first, *_) = lines(tmp_path / "failed")
    assert set(fine) | {"modules", "samples_ms", "phases_ms", "asked"} == set(first)


def test_columns_stay_when_a_suite_of_fewer_metrics_goes_on(tmp_path: Path) -> None:
    go(tmp_path, Fake(), 'models = "vit_ti16"\nmetrics = ["flops", "throughput"]')
    before = table(tmp_path)[0].keys()
    go(tmp_path, Fake(), 'models = "vit_s16"\nmetrics = "throughput"', resume=True)
    assert table(tmp_path)[0].keys() == before
    assert len(table(tmp_path)) == 2


class Killed(Exception):
    """Stands for the end of the process."""


def killed_after(count: int, fake: Fake) -> Callable[[measure.Job], Row]:
    def one(job: measure.Job) -> Row:
        if len(fake.calls) == count:
            raise Killed
        return fake(job)

    return one


def doubling(job: measure.Job) -> tuple[Status, float]:
    """A model that is faster up to batch 4, and has no memory for 16."""
    return ("out_of_memory", 0.0) if job.setting.batch_size > 8 else ("ok", 100.0 * job.setting.batch_size)


def too_large(job: measure.Job) -> tuple[Status, float]:
    return ("out_of_memory", 0.0) if job.setting.batch_size > 2 else ("ok", 100.0)


@pytest.mark.parametrize(
    ("run", "answer", "expected"),
    [
        ('batch_size = "auto"', doubling, [(1, "ok"), (2, "ok"), (4, "ok"), (8, "ok"), (16, "out_of_memory")]),
        ("batch_size = [8, 2]", too_large, [(8, "out_of_memory"), (4, "out_of_memory"), (2, "lowered"), (2, "ok")]),
    ],
)
def test_a_search_goes_on_where_it_was_killed(tmp_path: Path, run: str, answer: Any, expected: list[Any]) -> None:
    for count in range(len(expected)):
        folder = tmp_path / str(count)
        folder.mkdir()
        fake = Fake(answer)
        with pytest.raises(Killed):
            go(folder, killed_after(count, fake), f'models = "vit_ti16"\n{run}')
        rest = Fake(answer)
        go(folder, rest, f'models = "vit_ti16"\n{run}', resume=True)
        assert [(row["batch_size"], row["status"]) for row in lines(folder)] == expected
        assert len(fake.calls) + len(rest.calls) == len(expected)


def test_memory_that_ends_a_search_is_no_failure_to_retry(tmp_path: Path) -> None:
    run = 'models = "vit_ti16"\nbatch_size = "auto"'
    go(tmp_path, Fake(doubling), run)
    fake = Fake(doubling)
    go(tmp_path, fake, run, resume=True, retry=True)
    assert fake.calls == []


def test_a_batch_that_fits_at_the_second_try_leaves_no_lowered_one(tmp_path: Path) -> None:
    run = 'models = "vit_ti16"\nbatch_size = 8'
    go(tmp_path, Fake(too_large), run)
    assert [(row["batch_size"], row["status"]) for row in lines(tmp_path)] == [
        (8, "out_of_memory"),
        (4, "out_of_memory"),
        (2, "lowered"),
    ]
    go(tmp_path, Fake(), run, resume=True, retry=True)
    assert [(row["batch_size"], row["status"]) for row in lines(tmp_path)] == [(8, "ok")]


def test_a_suite_that_measures_more_thoroughly_is_measured_again(tmp_path: Path) -> None:
    for thorough in ("", "repeats = 5", "min_time = 9.0"):
        fake = Fake()
        go(tmp_path, fake, f'models = "vit_ti16"\n{thorough}', resume=True)
        assert len(fake.calls) == 1


def test_rows_of_one_model_differ_by_every_setting(tmp_path: Path) -> None:
    run = 'models = "vit_ti16"\ndtype = ["fp32", "bf16"]\nimg_size = [224, 384]\nbatch_size = [1, 2]'
    fake = Fake()
    go(tmp_path, fake, run, 'models = "vit_ti16"\nmode = "train"', 'models = "vit_ti16"\nchannels_last = true')
    assert len(fake.calls) == len(lines(tmp_path)) == 2 * 2 * 2 + 2


def test_timing_on_the_cpu_is_alone_and_counting_is_not(tmp_path: Path) -> None:
    fake = Fake(takes_s=0.1)
    counted = 'families = "deit"\nmetrics = "flops"'
    go(tmp_path, fake, f"models = {MODELS}", counted, 'models = "vit_ti16"\nmetrics = ["flops", "throughput"]', jobs=3)
    assert len(fake.calls) == 3 + 8 + 1
    assert fake.most == 3
    counting = [span for span in fake.spans if span[2].metrics == ("flops",)]
    timing = sorted((span for span in fake.spans if "throughput" in span[2].metrics), key=lambda span: span[0])
    assert max(end for _, end, _ in counting) <= timing[0][0]
    assert all(before[1] <= after[0] for before, after in pairwise(timing))
    # Rows come as they are ready; the table has the suite's order.
    assert [row["model"] for row in table(tmp_path)][:3] == MODELS


def test_one_job_at_a_time_on_each_of_several_accelerators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    found, items = asked(tmp_path, 'families = "deit"')
    roaming = [replace(item.on("cuda:0"), roams=True) for item in items[:6]]
    bound = [item.on("cuda:1") for item in items[6:]]
    fake = Fake(takes_s=0.1)
    with measured_by(fake), sweep.opened(tmp_path / "out", found, [*roaming, *bound]) as out:
        assert len(list(sweep.run([*roaming, *bound], out, jobs=1))) == 8
    assert fake.most == 2
    for where in ("cuda:0", "cuda:1"):
        spans = sorted(span[:2] for span in fake.spans if span[2].setting.device == where)
        assert len(spans) >= 2
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
    names = {item.job.setting.model for item in bound}
    assert {row["device"] for row in lines(tmp_path) if row["model"] in names} == {"cuda:1"}
    # Where it ran is not what was asked: another accelerator may be free the next time.
    with sweep.opened(tmp_path / "out", found, [*roaming, *bound], resume=True) as out:
        assert all(out.done(item) for item in [*roaming, *bound])


def test_a_full_disk_ends_the_sweep_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = results.append

    def full(path: Path, line: str) -> None:
        if '"vit_s16"' in line:
            raise CannotWrite(f"Cannot write {path}: No space left on device.")
        whole(path, line)

    monkeypatch.setattr(results, "append", full)
    with pytest.raises(CannotWrite, match="No space left on device"):
        go(tmp_path, Fake())
    monkeypatch.undo()
    assert [row["model"] for row in lines(tmp_path)] == MODELS[:1]
    go(tmp_path, Fake(), resume=True)
    assert [row["model"] for row in lines(tmp_path)] == MODELS


def test_a_place_that_cannot_be_written_is_told_before_measuring(tmp_path: Path) -> None:
    found, items = asked(tmp_path)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("/proc/nowhere")):
        with pytest.raises(CannotWrite, match="Cannot write to the folder"), sweep.opened(place, found, items):
            pass


def test_lists_are_in_the_json_lines_alone_and_resumed(tmp_path: Path) -> None:
    real = measure.measure_one
    run = 'models = "cct_2_3x2_32"\nmetrics = "flops"'
    go(tmp_path, lambda job: real(job, isolated=False), run)
    (line,) = lines(tmp_path)
    assert sum(macs for *_, macs in line["modules"]) == line["macs"]
    (row,) = table(tmp_path)
    assert "modules" not in row
    assert "convolution=2" in row["operators"].split()
    found, items = asked(tmp_path, run)
    with sweep.opened(tmp_path / "out", found, items, resume=True) as out:
        assert out.done(items[0])
    assert table(tmp_path) == [row]
