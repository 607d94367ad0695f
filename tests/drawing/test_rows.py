"""Rows, as charts take them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from vitbench.drawing import rows
from vitbench.errors import BadInput, UnknownName


def test_rows_without_a_result_are_counted_by_kind() -> None:
    good, left_out = rows.with_result(
        [{"model": "a"}, {"status": "ok"}, {"status": "lowered"}, {"status": "timeout"}, {"status": "out_of_memory"}]
    )
    assert len(good) == 3
    assert rows.counted(left_out) == "1 row timed out, 1 row out of memory"
    assert rows.counted(Counter({"failed": 2})) == "2 rows failed"


def test_a_column_that_no_row_has_is_named_with_those_that_come_near() -> None:
    rows.check_columns([{"macs": 1}, {"params": 2}], ["macs", "params"])
    with pytest.raises(UnknownName, match="no column named 'latency_median'. Did you mean latency_median_ms"):
        rows.check_columns([{"latency_median_ms": 1}], ["latency_median"])
    with pytest.raises(UnknownName, match="The results have macs, model"):
        rows.check_columns([{"macs": 1, "model": 2, "environment_cpu": ""}], ["zzz"])


def test_what_all_rows_share_is_said_once() -> None:
    one = {"batch_size": 1, "dtype": "fp32", "mode": "infer", "device": "cpu", "threads": 2}
    assert rows.shared([one, one | {"batch_size": "8"}]) == "batch 1 to 8, cpu, fp32, inference, 2 threads"
    assert (
        rows.shared([one, one | {"dtype": "bf16", "environment_device_name": "x"}]) == "batch 1, inference, 2 threads"
    )
    assert rows.shared([{}]) == ""


def test_a_label_says_what_tells_a_row_from_others_of_its_model() -> None:
    found = rows.labels(
        [
            {"model": "a", "batch_size": 1, "input_shape": "3x8x8", "environment_torch": "2.15"},
            {"model": "a", "batch_size": 2, "input_shape": [3, 8, 8]},
            {"model": "b", "batch_size": 4, "input_shape": [3, 8, 8], "amp": True},
            {"model": "b", "batch_size": 4, "input_shape": [3, 9, 9]},
            {"model": "c\x1b$"},
        ]
    )
    # That one row does not state its torch is no difference; that one is not under autocast is.
    assert found == ["a, batch 1", "a, batch 2", "b, 3x8x8, AMP", "b, 3x9x9", "c$"]
    with pytest.raises(BadInput, match="A row has no model"):
        rows.labels([{"batch_size": 1}])


def test_where_no_condition_tells_rows_apart_a_column_of_words_does() -> None:
    beside = [{"model": "a", "threads": 1, "latency_median_ms": place, "other": f"tool {place}"} for place in (1, 2)]
    assert rows.labels(beside) == ["a, tool 1", "a, tool 2"]
    # Threads are of a CPU where no device is named.
    assert rows.labels([beside[0], beside[1] | {"threads": 2}]) == ["a, 1 thread", "a, 2 threads"]
    assert rows.labels([beside[0], beside[0]]) == ["a", "a"]


def completed(*found: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(row) for row, _ in rows.completed(found)]


def test_the_catalog_and_the_papers_add_what_a_row_does_not_say() -> None:
    (row, figure), (own, none), (mine, nothing) = rows.completed(
        [
            {"model": "swin_b", "input_shape": "3x384x384"},
            {"model": "swin_b", "family": "mine", "top1": "50"},
            {"model": "mine"},
        ]
    )
    # Swin paper (arXiv 2103.14030), Table 1(a).
    assert (row["family"], row["top1"]) == ("swin", 84.5)
    assert figure is not None
    assert "2103.14030" in figure.source
    assert (own["family"], own["top1"], none) == ("mine", "50", None)
    assert (mine["family"], mine["top1"], nothing) == (None, None, None)


def test_counts_come_from_other_rows_of_the_same_pass() -> None:
    count = {"model": "a", "input_shape": [3, 8, 8], "batch_size": 1, "params": 5, "macs": 7}
    same = {"model": "a", "input_shape": "3x8x8", "batch_size": "1", "latency_median_ms": 3}
    assert completed(count, same)[1]["macs"] == 7
    larger = completed(count, same | {"batch_size": 2})[1]
    # One input's, as often as the batch has inputs; never from a batch to one input, which may share work.
    assert (larger["params"], larger["macs"]) == (5, 14)
    assert completed(count | {"batch_size": 2}, same)[1].get("macs") is None
    assert completed(count, count | {"batch_size": 2, "macs": 13}, same | {"batch_size": 2})[2]["macs"] == 13
    # Where the others disagree, nobody knows.
    assert completed(count, count | {"params": 6}, same)[2].get("params") is None
    assert completed(count, same | {"params": 9})[1]["params"] == 9
