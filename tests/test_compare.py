"""Comparisons of planted results: each verdict, what is matched with what, and files that are damaged in 10,000 ways."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vitbench import compare as verb
from vitbench.changes import VERDICTS, Change, Comparison, counted, exit_code
from vitbench.compare import Threshold, compare, parse_threshold
from vitbench.errors import BadInput
from vitbench.findings import RECORDS
from vitbench.judging import matching, stored
from vitbench.records import Table, Within, column
from vitbench.reports import COMPARISONS
from vitbench.reports import csv as csv_report
from vitbench.reports import json as json_report
from vitbench.results import Line, load, parse

ENVIRONMENT: dict[str, Any] = {
    "environment_vitbench": "0.1.0",
    "environment_commit": None,
    "environment_dirty": False,
    "environment_python": "3.11.7",
    "environment_torch": "2.14.0",
    "environment_timm": "1.0.31",
    "environment_platform": "Linux-x86_64",
    "environment_cpu": "AMD EPYC",
    "environment_cores": 2,
    "environment_memory_bytes": 25276510208,
    "environment_time": "2026-11-21T13:11:52+00:00",
    "environment_device_name": "AMD EPYC",
    "environment_driver": None,
    "environment_instruction_set": "AVX2",
}
RUN: dict[str, Any] = {
    "model": "vit_b16",
    "input_shape": (3, 224, 224),
    "batch_size": 8,
    "batch_size_asked": "8",
    "device": "cpu",
    "dtype": "fp32",
    "amp": False,
    "mode": "infer",
    "compile": None,
    "channels_last": False,
    "grad_checkpointing": False,
    "threads": 2,
}
DONE: dict[str, Any] = {"status": "ok", "note": ""}


@pytest.fixture(autouse=True)
def _session_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is expected here was reckoned with this spread, whatever measurements say."""
    monkeypatch.setattr(stored, "SESSION_SPREAD", 0.03)


def flops(**more: Any) -> dict[str, Any]:
    """Makes a row of `vitbench flops`."""
    setting = {"model": "vit_b16", "input_shape": (3, 224, 224), "batch_size": 8}
    found = {"params": 1000, "macs": 5000, "flops": 10000, "activations": 70}
    return setting | found | DONE | ENVIRONMENT | more


def speed(scale: float = 1.0, **more: Any) -> dict[str, Any]:
    """Makes a row of `vitbench throughput --repeats 5` whose passes take so many times 10 ms."""
    samples = [[10 * scale * (1 + 0.001 * process + 0.0001 * run) for run in range(9)] for process in range(5)]
    found = {"throughput_per_s": 800 / scale, "latency_median_ms": 10 * scale, "samples_ms": samples}
    return RUN | found | {"phases_ms": [[process] for process in samples]} | DONE | ENVIRONMENT | more


def lines(*rows: dict[str, Any]) -> list[Line]:
    """Gives rows as a JSON file gives them back."""
    return [Line(f"x.json, row {place}", row) for place, row in enumerate(json.loads(json.dumps(rows)), 1)]


def written(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    table = Table(rows=rows, columns=())
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text({".csv": csv_report, ".json": json_report}[path.suffix].render(table))
    return path


def judged(base: Sequence[dict[str, Any]], head: Sequence[dict[str, Any]], *thresholds: str) -> Comparison:
    asked = [parse_threshold(text) for text in thresholds]
    return compare(lines(*base), lines(*head), base_name="BASE", head_name="HEAD", thresholds=asked)


def verdicts(found: Comparison) -> dict[str, str]:
    return {change.column: change.verdict for change in found.changes}


def only(found: Comparison, column: str) -> Change:
    (change,) = [change for change in found.changes if change.column == column]
    return change


def test_equal_results_are_unchanged() -> None:
    found = judged([flops()], [flops()])
    assert verdicts(found) == {"params": "unchanged", "macs": "unchanged", "activations": "unchanged"}
    assert (found.base, found.head, found.notes, found.differences) == ("BASE", "HEAD", (), {})
    assert found.environment["torch"] == "2.14.0"


def test_the_command_is_no_part_of_the_environment() -> None:
    found = judged([flops(environment_command="vitbench a")], [flops(environment_command="vitbench b")])
    assert set(verdicts(found).values()) == {"unchanged"}
    assert found.differences == {}
    assert "command" not in found.environment


@pytest.mark.parametrize(("macs", "verdict"), [(5001, "regressed"), (4999, "improved")])
def test_any_difference_of_a_count_is_found_on_any_machine(macs: int, verdict: str) -> None:
    found = judged([flops()], [flops(macs=macs, environment_cpu="Intel", environment_torch="2.15.0")])
    change = only(found, "macs")
    assert (change.verdict, change.judged, change.before, change.after) == (verdict, "exact", 5000, macs)
    assert change.setting == {"model": "vit_b16", "input_shape": "3x224x224", "batch_size": "8"}
    assert found.differences == {"torch": ("2.14.0", "2.15.0"), "cpu": ("AMD EPYC", "Intel")}


def test_modules_that_changed_are_told_where_both_sides_have_them() -> None:
    before = flops(modules=[["patch_embed", 100, 1000], ["blocks.0", 900, 4000]])
    after = flops(macs=5100, modules=[["patch_embed", 100, 1000], ["blocks.0", 900, 4050], ["blocks.1", 0, 50]])
    parts = only(judged([before], [after]), "macs").parts
    assert [(part.part, part.before, part.after) for part in parts] == [
        ("blocks.0", 4000, 4050),
        ("blocks.1", None, 50),
    ]
    assert only(judged([flops()], [after]), "macs").parts == ()


def test_a_breakdown_is_one_change_a_column_with_its_parts() -> None:
    def part(module: str, macs: int, model: str = "vit_b16") -> dict[str, Any]:
        row = flops(model=model, module=module, macs=macs, params=10, share=0.5)
        return {name: value for name, value in row.items() if name != "activations"}

    base = [part("", 10), part("blocks.0", 50), part("blocks.1", 40), part("head", 5, "other")]
    head = [part("", 10), part("blocks.0", 55), part("blocks.1", 45), part("head", 5, "other")]
    found = judged(base, head)
    assert len(found.changes) == 4  # params and macs of two models
    (change,) = found.findings
    assert (change.verdict, change.before, change.after, change.ratio) == ("regressed", 100, 110, 1.1)
    assert change.setting["by"] == "module"
    assert [(one.part, one.column, one.before, one.after) for one in change.parts] == [
        ("blocks.0", "macs", 50, 55),
        ("blocks.1", "macs", 40, 45),
    ]
    moved = judged(base, [part("", 10), part("blocks.0", 55), part("blocks.1", 35), part("head", 5, "other")])
    assert only(replace(moved, changes=moved.findings), "macs").verdict == "suspect"
    # A part of an older breakdown that the newest has no more is in no sum.
    older = part("fc", 7) | {"environment_time": "2026-11-20"}
    assert judged(base, [older, *base]).findings == ()


@pytest.mark.parametrize(
    ("peak", "more", "verdict"),
    [
        (1029 * 2**20, {}, "unchanged"),
        (1100 * 2**20, {}, "regressed"),
        (900 * 2**20, {}, "improved"),
        (1100 * 2**20, {"environment_cpu": "Intel", "environment_cores": 4}, "regressed"),
        (1029 * 2**20, {"environment_cpu": "Intel"}, "unchanged"),
        (1100 * 2**20, {"environment_torch": "2.15.0"}, "regressed"),
        (1100 * 2**20, {"threads": 1}, "regressed"),
    ],
)
def test_measured_memory_has_a_tolerance_on_any_processor(peak: int, more: dict[str, Any], verdict: str) -> None:
    """3 % on a CPU."""
    change = only(
        judged([speed(measured_peak_bytes=1000 * 2**20)], [speed(measured_peak_bytes=peak, **more)]),
        "measured_peak_bytes",
    )
    assert (change.verdict, change.judged, change.threshold) == (verdict, "near", 0.03)


@pytest.mark.parametrize(
    ("more", "memory"),
    [
        ({}, "regressed"),
        ({"environment_cpu": "Intel", "environment_cores": 4, "environment_driver": "550"}, "regressed"),
        ({"environment_device_name": "NVIDIA A100"}, "incomparable"),
    ],
)
def test_an_accelerators_memory_is_incomparable_on_another_alone(more: dict[str, Any], memory: str) -> None:
    card: dict[str, Any] = {"device": "cuda:0", "environment_device_name": "NVIDIA H200"}
    base = speed(measured_peak_bytes=1000 * 2**20, output=(1.0, 2.0), **card)
    found = judged([base], [base | {"measured_peak_bytes": 1100 * 2**20, "output": (-1.0, -2.0)} | more])
    assert verdicts(found)["output"] == "regressed"
    change = only(found, "measured_peak_bytes")
    assert change.verdict == memory
    assert change.note.startswith("another machine: device_name ") == (memory == "incomparable")


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_wrong_output_is_found_on_any_machine(device: str) -> None:
    base = speed(device=device, output=(1.0, 2.0))
    other = {"environment_cpu": "Intel", "environment_cores": 4, "environment_device_name": "another", "threads": 4}
    assert only(judged([base], [base | {"output": (-1.0, -2.0)} | other]), "output").verdict == "regressed"


@pytest.mark.parametrize(
    ("scale", "verdict"),
    [(1.0, "unchanged"), (1.05, "inconclusive"), (1.15, "suspect"), (1.3, "regressed"), (0.75, "improved")],
)
def test_times_of_one_machine_are_judged_by_their_samples(scale: float, verdict: str) -> None:
    found = judged([speed()], [speed(scale)])
    change = only(found, "throughput_per_s")
    assert (change.verdict, change.judged, change.threshold) == (verdict, "timed", 0.10)
    assert change.ratio == pytest.approx(1 / scale)
    assert change.low is not None
    assert change.high is not None
    assert change.low < 1 / scale < change.high
    assert change.p_value is not None
    assert not any("false discovery" in note for note in found.notes)
    two = judged([speed(), speed(model="x")], [speed(scale), speed(scale, model="x")])
    assert "Of 2 comparisons of times, the false discovery rate is held at 5% (Benjamini-Hochberg)." in two.notes


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"environment_cpu": "Intel"}, "cpu AMD EPYC, then Intel"),
        ({"environment_torch": "2.15.0"}, "torch 2.14.0, then 2.15.0"),
        ({"environment_driver": "550"}, "driver not told, then 550"),
        ({"threads": 1}, "threads 2, then 1"),
        ({"environment_cpu_limit": 1.5}, "cpu_limit not told, then 1.5"),
        ({"environment_memory_limit_bytes": 2**30}, "memory_limit_bytes not told, then 1073741824"),
    ],
)
def test_times_of_two_machines_are_incomparable(more: dict[str, Any], told: str) -> None:
    change = only(judged([speed()], [speed(2.0, **more)]), "throughput_per_s")
    assert (change.verdict, change.ratio, change.low) == ("incomparable", 0.5, None)
    assert told in change.note


def test_times_of_an_untold_machine_are_incomparable() -> None:
    rows = [{name: value for name, value in speed().items() if not name.startswith("environment_")}]
    change = only(judged(rows, rows), "throughput_per_s")
    assert change.verdict == "incomparable"
    assert "cpu not told" in change.note


@pytest.mark.parametrize("name", ["cpu", "cores", "torch", "timm"])
def test_what_both_sides_do_not_tell_is_not_the_same(name: str) -> None:
    rows = [speed() | {f"environment_{name}": None}]
    change = only(judged(rows, rows), "throughput_per_s")
    assert (change.verdict, f"{name} not told" in change.note) == ("incomparable", True)


def test_off_the_processor_the_device_must_be_told() -> None:
    for device, verdict in (("cpu", "unchanged"), ("cuda:0", "incomparable")):
        rows = [speed(device=device, environment_device_name=None)]
        assert only(judged(rows, rows), "throughput_per_s").verdict == verdict


def test_a_limit_is_the_same_from_csv_and_json(tmp_path: Path) -> None:
    row = speed(environment_cpu_limit=2.0, environment_memory_limit_bytes=2**30)
    base, head = (load(written(tmp_path, name, row)) for name in ("a.csv", "b.json"))
    found = compare(base, head, base_name="BASE", head_name="HEAD")
    assert found.differences == {}
    assert only(found, "throughput_per_s").verdict == "inconclusive"  # CSV has no samples


def test_times_without_samples_are_inconclusive(tmp_path: Path) -> None:
    base, head = written(tmp_path, "a.csv", speed()), written(tmp_path, "b.json", speed(2.0))
    found = compare(load(base), load(head), base_name="BASE", head_name="HEAD")
    change = only(found, "throughput_per_s")
    assert (change.verdict, change.ratio) == ("inconclusive", 0.5)
    assert "BASE has no samples: measure with --repeats 5, into .json" in change.note


def test_compiling_is_not_judged() -> None:
    """It was timed once, which tells no noise: --strict would fail every compiled row."""
    found = judged([speed(compile_s=5.0)], [speed(compile_s=9.0)])
    assert set(verdicts(found)) == {"throughput_per_s"}
    assert exit_code(replace(found, counted=counted(strict=True))) == 0


def test_phases_of_a_training_step_are_told_apart() -> None:
    def step(backward: float) -> dict[str, Any]:
        phases = [[[1.0], [backward + 0.001 * process], [0.5]] for process in range(4)]
        medians = {"forward_median_ms": 1.0, "backward_median_ms": backward, "optimizer_median_ms": 0.5}
        return speed(phases_ms=phases, mode="train", **medians)

    found = verdicts(judged([step(2.0)], [step(3.0)]))
    assert found["backward_median_ms"] == "regressed"
    assert found["forward_median_ms"] == found["optimizer_median_ms"] == "unchanged"


@pytest.mark.parametrize("samples", [[], [[]], [[], []], None, ""])
def test_no_samples_are_no_times(samples: Any) -> None:
    assert only(judged([speed()], [speed(samples_ms=samples)]), "throughput_per_s").verdict == "inconclusive"


@pytest.mark.parametrize(
    "samples",
    [
        [[0.0]], [[-1.0, 2.0]], [["fast"]], [[float("nan")]], [[1.0, float("nan")]], [[float("inf")]], [[True]], [3.0],
        "10 11", {"a": 1}, [[10**400]], [[1e-300]], [[None]],
    ],
)  # fmt: skip
def test_what_is_no_time_is_told_with_its_place(samples: Any) -> None:
    with pytest.raises(BadInput, match="x.json, row 1: samples_ms is .* not lists of milliseconds"):
        judged([speed()], [speed(samples_ms=samples)])


def test_many_tests_put_a_lone_discovery_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the spread of sessions one in forty such p values is no discovery among two hundred that are nothing."""
    monkeypatch.setattr(stored, "SESSION_SPREAD", 0.0)

    def row(number: int, shift: float) -> dict[str, Any]:
        samples = [[10.0 * shift], [11.0 * shift], [9.0 * shift], [10.5 * shift]]
        return speed(model=f"m{number}", samples_ms=samples)

    base = [row(number, 1.0) for number in range(100)]
    head = [row(number, 1.25 if number == 0 else 1.0) for number in range(100)]
    alone = judged(base[:1], head[:1], "throughput=0%")
    assert only(alone, "throughput_per_s").verdict == "regressed"
    (change, *_) = judged(base, head, "throughput=0%").findings
    assert (change.verdict, change.model) == ("suspect", "m0")
    assert "among 100 comparisons" in change.note


def test_thresholds_are_of_a_metric_and_of_models() -> None:
    base, head = [flops(), flops(model="swin_b")], [flops(macs=5040), flops(model="swin_b", macs=5040)]
    found = judged(base, head, "macs=0%", "macs:vit_*=1%")
    assert {change.model: change.verdict for change in found.changes if change.column == "macs"} == {
        "vit_b16": "unchanged",
        "swin_b": "regressed",
    }
    assert only(judged(base[:1], head[:1], "macs=1%", "macs=0.5%"), "macs").verdict == "regressed"
    assert only(judged([speed()], [speed(1.05)], "throughput=20%"), "throughput_per_s").verdict == "unchanged"


def test_a_threshold_replaces_the_whole_tolerance() -> None:
    """Of 10 MiB, 140 % are within the 16 MiB that are allowed where nothing is asked."""
    base, head = [speed(measured_peak_bytes=10 * 2**20)], [speed(measured_peak_bytes=24 * 2**20)]
    assert only(judged(base, head), "measured_peak_bytes").verdict == "unchanged"
    for asked in ("1%", "50%"):
        assert only(judged(base, head, f"measured_peak={asked}"), "measured_peak_bytes").verdict == "regressed"
    assert only(judged(base, head, "measured_peak=99%"), "measured_peak_bytes").verdict == "regressed"


@pytest.mark.parametrize("name", ["operators", "preprocessing"])
def test_a_threshold_on_what_has_no_size_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=f"{name} takes no threshold"):
        judged([flops()], [flops()], f"{name}=5%")


def test_a_threshold_that_fits_nothing_is_told() -> None:
    found = judged([flops()], [flops()], "macs=0%", "macs:vit_*=1%", "macs:swin_*=1%", "throughput=5%")
    assert found.notes == (
        "The threshold macs:swin_*=1% fits no value that was compared.",
        "The threshold throughput_per_s:*=5% fits no value that was compared.",
    )


def test_a_threshold_is_read() -> None:
    assert parse_threshold("throughput=5%") == Threshold(metric="throughput_per_s", relative=0.05)
    assert parse_threshold("macs:a.b:c_*= 0.5 %") == Threshold(metric="macs", models="a.b:c_*", relative=0.005)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("throughput", "is not a threshold below 100 %, such as throughput=5%"),
        ("throughput=5", "is not a threshold"),
        ("throughput=-5%", "is not a threshold"),
        ("throughput=nan%", "is not a threshold"),
        ("throughput=100%", "is not a threshold below 100 %"),
        ("throughput=150%", "is not a threshold below 100 %"),
        ("=5%", "is not a threshold"),
        (
            "distance=5%",
            "may be distance_frames, distance_paper_frames, distance_paper_px, distance_px, distance_tokens",
        ),
        ("speed=5%", "No column named 'speed' is judged; those that are: activations, "),
        ("latency=5%", "No column named 'latency' is judged"),
    ],
)
def test_a_threshold_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(BadInput, match="threshold|judged|may be") as caught:
        parse_threshold(text)
    assert message in str(caught.value)


def test_a_lowered_batch_is_no_regression() -> None:
    """Half the batch at half the rate, because the whole ran out of memory."""
    out = RUN | {"status": "out_of_memory", "note": "CUDA out of memory"} | ENVIRONMENT
    lowered = speed(2.0, batch_size=4, status="lowered", note="batch 8 ran out of memory; this is 4")
    found = judged([speed()], [out, lowered])
    assert {change.verdict for change in found.changes} == {"missing", "new"}
    (missing, new) = found.changes
    assert (missing.setting["batch_size"], missing.note) == ("8", "out_of_memory: CUDA out of memory")
    assert (new.setting["batch_size"], new.setting["batch_size_asked"]) == ("4", "8")
    assert exit_code(found) == 3
    # Nor is it one, or an improvement, beside the same batch that was asked for.
    asked = speed(batch_size=4, batch_size_asked="4")
    assert {change.verdict for change in judged([asked], [lowered]).changes} == {"missing", "new"}


def test_a_batch_that_no_longer_has_to_be_lowered_is_not_missing() -> None:
    """The batch that was asked for runs now, of one input too: its column is left out where it is 1."""
    for size in (4, 1):
        out = RUN | {"status": "out_of_memory", "note": "CUDA out of memory"} | ENVIRONMENT
        lowered = speed(2.0, batch_size=size, status="lowered", note=f"batch 8 ran out of memory; this is {size}")
        found = judged([out, lowered], [speed()])
        assert {change.verdict for change in found.changes} == {"new"}
        assert "Batches that BASE ran in place of those that HEAD runs: 1." in found.notes


def test_failures_are_missing_new_or_told() -> None:
    failed = RUN | {"status": "failed", "note": "no such layer"} | ENVIRONMENT
    assert [(one.verdict, one.note) for one in judged([speed()], [failed]).changes] == [
        ("missing", "failed: no such layer")
    ]
    assert [(one.verdict, one.note) for one in judged([failed], [speed()]).changes] == [
        ("new", "before: failed: no such layer")
    ]
    both = judged([failed, flops()], [failed, flops()])
    assert not both.findings
    assert both.notes == ("Rows that failed on both sides: 1.",)
    assert (
        "Rows that failed in HEAD and are not in BASE: 1."
        in judged([flops()], [flops(), failed | {"model": "m"}]).notes
    )
    nameless = {**RUN, "input_shape": (), "status": "failed", "note": "there is no such model"}
    assert [one.note for one in judged([speed()], [nameless]).changes] == ["failed: there is no such model"]


def test_what_a_failed_row_did_find_is_compared() -> None:
    """`bench` counts before it measures; memory may run out after that."""
    head = speed(macs=11, status="out_of_memory", throughput_per_s=None, samples_ms=None)
    found = verdicts(judged([speed(macs=10)], [head]))
    assert found == {"": "missing", "macs": "regressed"}


def test_values_that_one_side_lacks() -> None:
    found = verdicts(judged([flops(activations=None)], [flops(macs=None)]))
    assert found == {"params": "unchanged", "macs": "missing", "activations": "new"}


def test_a_search_for_the_best_batch_that_ended_earlier_misses_nothing() -> None:
    rows = [speed(batch_size=size, batch_size_asked="auto") for size in (1, 2, 4)]
    found = judged(rows, rows[:2])
    assert not found.findings
    assert "Batches that only BASE tried, looking for the best: 1." in found.notes


def test_the_largest_batch_is_of_one_memory() -> None:
    def largest(batch: int, limit: int) -> dict[str, Any]:
        row = RUN | {"batch_size": 1, "batch_size_asked": "max", "max_batch": batch} | DONE
        return row | {"max_batch_method": "predicted", "limit_bytes": limit}

    both = [largest(100, 24 * 2**30), largest(400, 80 * 2**30)]
    assert verdicts(judged(both, both)) == {"max_batch": "unchanged"}
    assert len(judged(both, both).changes) == 2
    assert {one.verdict for one in judged(both[:1], both[1:]).changes} == {"missing", "new"}
    sweeps = [row | {"batch_size_asked": "1"} for row in both]
    change = only(judged(sweeps[:1], sweeps[1:]), "max_batch")
    assert change.verdict == "incomparable"
    assert "limit_bytes" in change.note


def test_what_the_largest_batch_takes_is_judged_of_one_batch() -> None:
    """A larger one that fits moves the peak nearer to the limit, which is no regression."""

    def largest(batch: int, peak: int) -> dict[str, Any]:
        row = (
            RUN
            | {"batch_size": 1, "batch_size_asked": "max", "max_batch": batch, "max_batch_method": "predicted"}
            | DONE
        )
        return row | {"limit_bytes": 10**9, "peak_bytes": peak, "activations_bytes": peak, "weights_bytes": 5}

    assert verdicts(judged([largest(100, 1000)], [largest(110, 1005)])) == {
        "max_batch": "improved",
        "weights_bytes": "unchanged",
    }
    assert verdicts(judged([largest(100, 1000)], [largest(100, 1005)])) == {
        "max_batch": "unchanged",
        "weights_bytes": "unchanged",
        "peak_bytes": "regressed",
        "activations_bytes": "regressed",
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """A record with a mapping and a tuple that are judged."""

    calls: Mapping[str, int] | None = column("Calls", better="equal")
    projections: tuple[float, ...] = column("Projections", better="equal", within=Within(relative=1e-3))


@pytest.fixture
def _a_new_record(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    caches = (matching.declared_columns, matching._judged, matching._record)
    monkeypatch.setattr("vitbench.judging.matching.RECORDS", (*RECORDS, Histogram))
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("_a_new_record")
@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_record_that_is_declared_is_judged_by_its_declaration(tmp_path: Path, ending: str) -> None:
    def saved(name: str, calls: dict[str, int], last: float) -> list[Line]:
        return load(written(tmp_path, f"{name}.{ending}", flops(calls=calls, projections=(1 / 3, last))))

    base = saved("a", {"aten.mm": 2, "gelu": 1}, 1.0)
    same = compare(base, saved("b", {"aten.mm": 2, "gelu": 1}, 1.0001), base_name="a", head_name="b")
    assert not same.findings
    found = compare(base, saved("c", {"aten.mm": 3, "cat": 1}, 1.1), base_name="a", head_name="c")
    assert only(found, "calls").note == "aten.mm 2 to 3, gelu 1 to 0, cat 0 to 1"
    assert only(found, "calls").after == {"aten.mm": 3, "cat": 1}
    assert (only(found, "projections").verdict, only(found, "projections").judged) == ("regressed", "near")


ANALYSIS = {"model": "deit_b", "input_shape": (3, 32, 32), "batch_size": 1, "weights": "random weights, seed 0"}


def position(column: int, values: tuple[float, ...], **more: Any) -> dict[str, Any]:
    tile = {"table": "pos_embed", "version": "after", "axis": "space", "patch_row": 1, "patch_column": column}
    return ANALYSIS | tile | {"tile_height": 2, "tile_width": 2, "values": values, "note": ""} | more


def test_a_broken_resize_of_a_position_table_is_found(tmp_path: Path) -> None:
    """What no speed test sees: every tile peaks at the wrong place. Through CSV, as the analysis writes it."""
    right = [position(1, (1.0, 0.5, 0.25, 0.125)), position(2, (0.5, 1.0, 0.125, 0.25))]
    wrong = [position(1, (0.5, 1.0, 0.25, 0.125)), position(2, (0.5, 1.0, 0.125, 0.25))]
    base, head = written(tmp_path, "a.csv", *right), written(tmp_path, "b.csv", *wrong)
    found = compare(load(base), load(head), base_name="a", head_name="b")
    assert exit_code(found) == 1
    (change,) = found.findings
    assert (change.column, change.verdict, change.setting["patch_column"]) == ("values", "regressed", "1")
    assert "2 of 4 values differ" in change.note
    assert exit_code(compare(load(base), load(base), base_name="a", head_name="a")) == 0


def test_analyses_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    """Distance and entropy of a head have the same keys; a tile's values are another column than a map's."""
    head = {"layer": "blocks.0.attn", "head": 3}
    distance, entropy = ANALYSIS | head | {"distance_px": 30.0}, ANALYSIS | head | {"entropy_nats": 2.0}
    written(tmp_path, "one/distance.csv", distance)
    written(tmp_path, "one/entropy.csv", entropy, entropy | {"head": 4, "entropy_nats": 3.0})
    written(tmp_path, "one/position.csv", position(1, (1.0, 0.5)))
    found = compare(load(tmp_path), load(tmp_path), base_name="a", head_name="b")
    assert sorted((one.column, one.setting.get("head", "")) for one in found.changes) == [
        ("distance_px", "3"), ("entropy_nats", "3"), ("entropy_nats", "4"), ("values", ""),
    ]  # fmt: skip
    assert not found.notes


def test_analyses_of_two_models_are_told_by_both() -> None:
    cell = {"index_a": 0, "layer_a": "x", "index_b": 1, "layer_b": "y", "cka": 0.5}
    one, two = ({**ANALYSIS, "other_model": other, **cell} for other in ("vit_b16", "swin_b"))
    found = judged([one, two], [one, two | {"cka": 0.6}])
    assert [change.setting["other_model"] for change in found.findings] == ["swin_b"]


def test_preprocessing_is_told_once_for_all_rows_of_a_setting() -> None:
    def rows(crop: str) -> list[dict[str, Any]]:
        setting = ANALYSIS | {"preprocessing": crop, "layer": "a"}
        return [setting | {"head": head, "distance_px": 1.0} for head in range(5)]

    found = judged(rows("crop 0.9"), rows("crop 1"))
    (change,) = found.findings
    assert (change.column, change.before, change.after) == ("preprocessing", "crop 0.9", "crop 1")
    assert "head" not in change.setting


def test_published_figures_are_told_by_their_source() -> None:
    check = {"model": "vit_b16", "input_shape": (3, 224, 224), "macs": 5, "params": 3, "verdict": "agrees"}
    found = judged([check | {"source": "a"}, check | {"source": "b"}], [check | {"source": "a", "macs": 6}])
    assert [(one.column, one.setting["source"], one.verdict) for one in found.findings] == [
        ("macs", "a", "regressed"),
        ("", "b", "missing"),
    ]


def test_csv_and_json_are_the_same(tmp_path: Path) -> None:
    rows = [speed(macs=1), position(1, (1 / 3, 2 / 3)), flops(model="x", macs=10**17 + 1)]
    base, head = written(tmp_path, "a.csv", *rows), written(tmp_path, "b.jsonl", *rows)
    found = compare(load(base), load(head), base_name="a", head_name="b")
    assert {one.verdict for one in found.changes} == {"unchanged", "inconclusive"}  # CSV has no samples
    more = [*rows[:2], flops(model="x", macs=10**17 + 2)]
    found = compare(load(base), load(written(tmp_path, "c.json", *more)), base_name="a", head_name="c")
    assert [one.column for one in found.findings if one.verdict == "regressed"] == ["macs"]


def test_an_old_file_without_newer_columns() -> None:
    """Key columns that it lacks are what their fields default to; what it did not have is new."""
    old = {"model": "vit_b16", "input_shape": (3, 224, 224), "batch_size": 8, "macs": 5000, "from_long_ago": "x"}
    found = judged([old], [flops()])
    assert verdicts(found) == {"macs": "unchanged", "params": "new", "activations": "new"}
    assert exit_code(found) == 0
    known = speed(macs=5000)
    assert verdicts(judged([old], [known]))["macs"] == "unchanged"
    elsewhere = judged([old], [known | {"dtype": "fp16"}])
    assert {one.verdict for one in elsewhere.changes} == {"missing", "new"}


def test_a_folder_is_all_its_files_and_a_sweep_is_read_once(tmp_path: Path) -> None:
    written(tmp_path, "base/deep/flops.csv", flops(macs=5000))
    written(tmp_path, "base/results.jsonl", speed())
    written(tmp_path, "base/results.csv", speed(9.0))
    (tmp_path / "base/suite.toml").write_text("")
    one = written(tmp_path, "bench.json", speed(macs=5000))
    found = compare(load(tmp_path / "base"), load(one), base_name="a", head_name="b")
    assert verdicts(found) == {
        "throughput_per_s": "unchanged", "macs": "unchanged", "params": "missing", "activations": "missing",
    }  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="the folder has no file whose name ends in"):
        load(tmp_path / "empty")


def test_of_one_stem_the_fullest_file_is_read_and_hidden_ones_are_not(tmp_path: Path) -> None:
    written(tmp_path, "a.csv", flops(macs=1))
    written(tmp_path, "a.json", flops(macs=2))
    written(tmp_path, ".b.json", flops(macs=3))
    assert [line["macs"] for line in load(tmp_path)] == [2]


@pytest.mark.parametrize(
    ("text", "said"), [('{"name": "x"}', "expected a list with an object a row"), ("[]", "no rows")]
)
def test_json_without_rows_is_left_out_of_a_folder_alone(tmp_path: Path, text: str, said: str) -> None:
    written(tmp_path, "a.json", flops())
    other = tmp_path / "package.json"
    other.write_text(text)
    notes: list[str] = []
    assert [line["macs"] for line in load(tmp_path, notes)] == [5000]
    (note,) = notes
    assert note.startswith(f"Left out: Cannot read {other}: ")
    assert said in note
    with pytest.raises(BadInput, match=said):
        load(other)
    (tmp_path / "a.json").unlink()
    with pytest.raises(BadInput, match="no file of the folder has rows"):
        load(tmp_path)
    (tmp_path / "b.json").write_text("[{")
    with pytest.raises(BadInput, match="is not JSON"):
        load(tmp_path)


def test_of_rows_with_one_setting_the_newest_counts_and_a_note_says_so() -> None:
    late, early = {"environment_time": "2026-11-22"}, {"environment_time": "2026-11-20"}
    again = judged([flops(macs=1, **late), flops(macs=2, **early)], [flops(macs=1)])
    assert only(again, "macs").verdict == "unchanged"
    assert again.notes == ("Measured again with other values, of which the newest count: 1 of the rows of BASE.",)
    beside = judged([speed(), flops()], [speed(macs=5000, params=1000, activations=70)])
    assert not beside.findings
    assert not beside.notes
    broke = judged([flops()], [flops(**early), flops(macs=None, status="crashed", note="died", **late)])
    assert verdicts(broke)[""] == "missing"


def test_threads_tell_settings_apart_only_where_there_are_several() -> None:
    several = [speed(threads=1, macs=1), speed(threads=2, macs=1)]
    found = judged(several, [several[0], several[1] | {"macs": 2}])
    assert [one.setting["threads"] for one in found.changes if one.column == "macs"] == ["2", "1"]
    assert "threads" not in only(judged(several[:1], several[1:]), "macs").setting
    left = judged(several, [speed(threads=4, macs=1)])
    assert sorted(one.verdict for one in left.changes) == ["missing", "missing", "new"]


def test_the_first_accelerator_is_the_accelerator() -> None:
    one, two = speed(device="cuda", macs=1), speed(device="cuda:0", macs=1)
    assert only(judged([one], [two]), "macs").verdict == "unchanged"
    assert {change.verdict for change in judged([one], [speed(device="cuda:1")]).changes} == {"missing", "new"}


def test_files_of_which_nothing_is_judged_say_so() -> None:
    rows = [{"model": "vit_b16", "opponent": "ptflops", "wall_s": 3.0}]
    found = judged(rows, rows)
    assert exit_code(found) == 3
    assert "Nothing could be compared: BASE and HEAD share no value of a column that is judged." in found.notes
    assert "Left out, for want of a model and an input: 1 of the rows of BASE." in found.notes


def test_a_value_that_cannot_be_read_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("model,input_shape,macs\nvit,3x8x8,many\n")
    with pytest.raises(BadInput, match="a.csv, line 2: macs is 'many', not a number"):
        compare(load(path), load(path), base_name="a", head_name="b")


def test_half_a_surrogate_pair_can_be_written() -> None:
    found = judged([flops(model="\ud800x")], [flops(model="\ud800x", macs=1)])
    assert [one.model.encode() for one in found.findings] == [b"?x"]


MIRRORED = {"regressed": "improved", "improved": "regressed", "missing": "new", "new": "missing"}


def _mirrored(change: Change) -> str:
    """Of what has no direction any departure is for the worse."""
    equal = change.better == "equal" and change.verdict == "regressed"
    return change.verdict if equal else MIRRORED.get(change.verdict, change.verdict)


counts = st.none() | st.integers(0, 3)
scales = st.floats(0.5, 2.0)


@given(counts, counts, scales, scales, st.floats(0.9, 1.1))
@example(None, None, 1.0, 1.0, 1.0305)  # of the first, more than 3 %; of the second, less
@example(None, None, 1.0, 1.0, 1.00100005)  # the same at 0.1 %
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_swapping_base_and_head_flips_every_directed_verdict(
    macs: int | None, other_macs: int | None, scale: float, other_scale: float, near: float
) -> None:
    def side(model: str, scale: float, macs: int | None, near: float) -> list[dict[str, Any]]:
        measured = {"measured_peak_bytes": near * 2**30, "output": (near * 3, 4.0)}
        head = ANALYSIS | {"layer": "blocks.0.attn", "head": 3, "distance_px": near * 30}
        return [speed(scale, macs=macs, **measured), head, flops(model=model)]

    base, head = side("a", scale, macs, 1.0), side("b", other_scale, other_macs, near)
    forth, back = judged(base, head), judged(head, base)
    assert {(one.model, one.column): _mirrored(one) for one in forth.changes} == {
        (one.model, one.column): one.verdict for one in back.changes
    }
    assert {name: values[::-1] for name, values in forth.differences.items()} == back.differences


SEEDS: list[list[dict[str, Any]]] = [
    [flops(), flops(model="m", status="failed", macs=None, params=None, activations=None, note="no")],
    [speed(), speed(2.0, threads=1), RUN | {"status": "out_of_memory"}],
    [position(1, (1.0, 0.5)), position(2, (0.5, 1.0))],
    [flops(module="a", share=0.5), flops(module="b", share=0.5)],
    [speed(max_batch=4, max_batch_method="measured", limit_bytes=5, modules=[["a", 1, 2]], operators={"mm": 1})],
]
BYSTANDER = flops(model="bystander")
ODD: list[Any] = [
    None, "", " ", "nan", "x", "\ud800", "1e999", "-0", [], [[]], {}, {"a": 1}, [1, "a"], [None], [[None]], True, 0, -1, 1e308,
    float("nan"), float("inf"), 10**400, 5e-324, [[0]], [[1e-12, 1e12], [1e12]], "3x", "lowered", [3, 224], "a=b", "1 2 3",
]  # fmt: skip


def test_ten_thousand_damaged_files_are_an_error_or_a_comparison(tmp_path: Path) -> None:
    """Bytes, values and structures of small files are changed at random, with a fixed seed.

    Where values are changed, the last row is not, and nothing that happens to others may change what is said of it.
    """
    chance = random.Random(7)  # noqa: S311  # no secret
    originals = [
        (rows, path.suffix, path.read_bytes(), load(path))
        # As a file has them, whose rows have the columns of all.
        for rows in ([*seed, {name: None for row in seed for name in row} | BYSTANDER] for seed in SEEDS)
        for path in (written(tmp_path, f"seed{ending}", *rows) for ending in (".csv", ".json", ".jsonl"))
    ]
    outcomes = {"error": 0, "comparison": 0}
    for number in range(10_000):
        rows, ending, content, intact = chance.choice(originals)
        damaged = _other_bytes(content, chance) if number % 2 else _other_values(rows, ending, chance)
        found = _outcome(Path(f"damaged{ending}"), damaged, intact, swapped=number % 5 == 0)
        outcomes["comparison" if found else "error"] += 1
        if found and not number % 2:
            kept = {one.column: one.verdict for one in found.changes if one.model == BYSTANDER["model"]}
            assert kept == {"params": "unchanged", "macs": "unchanged", "activations": "unchanged"}
        if found and number % 50 < 2:
            for name in ("table", "markdown", "json", "junit"):
                COMPARISONS.load(name).render(found).encode()
            assert exit_code(replace(found, counted=counted(strict=True))) in (0, 1, 3, 4)
    assert min(outcomes.values()) > 1000, outcomes


def _other_bytes(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place, length = chance.randrange(len(data)), chance.randint(1, 30)
        match chance.randrange(4):
            case 0:
                data[place] = chance.randrange(256)
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = data[:length]
            case _:
                data[place : place + 1] = chance.choice([b'"', b",", b"NaN", b"\x00", b"\n", b"[", b"9" * 40, b"-"])
    return bytes(data)


def _other_values(rows: list[dict[str, Any]], ending: str, chance: random.Random) -> bytes:
    changed = [dict(row) for row in rows]
    for _ in range(chance.randint(1, 3)):
        row, odd = chance.choice(changed[:-1]), chance.choice(ODD)
        column = chance.choice([*row, "module", "source", "modules", "operators", "unknown"])
        row[column] = str(odd) if ending == ".csv" else odd
    if ending == ".csv":
        return csv_report.render(Table(rows=changed, columns=())).encode("utf-8", "replace")
    return (json.dumps(changed) if ending == ".json" else "\n".join(map(json.dumps, changed))).encode()


def _outcome(path: Path, data: bytes, intact: list[Line], *, swapped: bool) -> Comparison | None:
    """Gives the comparison that came of it, or None where an error said what is wrong."""
    try:
        damaged = parse(path, data)
        found = compare(intact, damaged, base_name="a", head_name="b")
    except BadInput:
        return None
    if swapped:
        compare(damaged, intact, base_name="b", head_name="a")
    json.dumps([*found.environment.items(), *found.notes]).encode()
    for change in found.changes:
        assert change.verdict in VERDICTS
        "".join(change.setting.values()).encode()
        numbers = (change.ratio, change.low, change.high, change.p_value)
        assert all(value is None or 0 <= value < float("inf") for value in numbers)
        if change.column and change.verdict not in ("missing", "new"):
            assert change.before is not None
            assert change.after is not None
        change.note.encode()
    return found


def test_the_public_names_are_those_of_the_verb() -> None:
    assert verb.column_of("params") == "params"
    assert verb.column_of("forward") == "forward_median_ms"
