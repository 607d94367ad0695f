"""Every column of a finding says how two results are judged by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

from vitbench import findings
from vitbench.records import EXACT, Within


def _columns() -> Iterator[tuple[str, str, Any]]:
    for record in findings.RECORDS:
        for item in fields(record):
            yield record.__name__, item.name, item.metadata


def test_all_records_of_the_module_are_listed() -> None:
    found = [one for one in vars(findings).values() if isinstance(one, type) and one.__module__ == findings.__name__]
    assert set(found) == set(findings.RECORDS)


def test_a_key_is_not_judged() -> None:
    assert [(record, name) for record, name, declared in _columns() if declared["key"] and declared["better"]] == []


def test_what_has_samples_has_no_fixed_tolerance() -> None:
    timed = {name: declared for _, name, declared in _columns() if declared["timed"]}
    assert set(timed) == {
        "throughput_per_s", "forward_median_ms", "backward_median_ms", "optimizer_median_ms",
    }  # fmt: skip
    assert all(declared["better"] and declared["within"] == EXACT for declared in timed.values())


def _within(name: str, **row: Any) -> Within:
    within = next(declared["within"] for _, column, declared in _columns() if column == name)
    return within if isinstance(within, Within) else within(row)


@pytest.mark.parametrize(
    "name", ["params", "macs", "activations", "operators", "traffic_bytes", "predicted_peak_bytes"]
)
def test_what_is_counted_or_predicted_is_the_same_or_it_is_not(name: str) -> None:
    assert _within(name) == EXACT


def test_a_measured_peak_may_differ_by_what_its_meter_can_tell() -> None:
    # 3 % or 16 MiB of resident memory; 1 % or the 2 MiB in which an accelerator's allocator takes memory.
    assert _within("measured_peak_bytes", device="cpu") == Within(relative=0.03, absolute=16 * 2**20)
    assert _within("measured_peak_bytes", device="cuda:0") == Within(relative=0.01, absolute=2 * 2**20)


def test_what_a_model_computes_may_differ_by_what_its_dtype_rounds() -> None:
    assert _within("output", dtype="fp32") == Within(relative=1e-5)
    assert _within("output", dtype="tf32") == Within(relative=1e-2)
    assert _within("output", dtype="bf16") == _within("output", dtype="fp16") == Within(relative=2e-2)


def test_the_largest_batch_is_exact_only_where_it_is_predicted() -> None:
    assert _within("max_batch", max_batch_method="predicted") == EXACT
    assert _within("max_batch", max_batch_method="measured") == Within(relative=0.02)
