"""Records declare their columns once; everything else is derived."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest

from vitbench import findings, records
from vitbench.findings import CrossCount
from vitbench.metrics.flops import Flops
from vitbench.records import EXACT, Environment, Row, Setting

RECORDS = (Setting, Environment, Flops, *findings.RECORDS)


@pytest.mark.parametrize("record", RECORDS)
def test_every_column_has_a_heading_and_says_what_it_means(record: type) -> None:
    declared = [item for item in fields(record) if item.metadata]
    assert declared
    assert all(item.metadata["heading"] and item.metadata["meaning"] for item in declared)


@pytest.mark.parametrize("name", ["macs", "params", "activations"])
def test_exact_counts_are_judged_as_exact(name: str) -> None:
    declared = next(item for item in fields(Flops) if item.name == name).metadata
    assert declared["better"] == "lower"
    assert declared["within"] == EXACT
    assert not declared["timed"]


def test_a_record_cannot_be_changed() -> None:
    setting = Setting(model="swin_b", input_shape=(3, 224, 224))
    with pytest.raises(FrozenInstanceError):
        setting.model = "swin_t"  # type: ignore[misc]  # the point of the test


def test_a_row_flattens_in_the_order_of_its_parts() -> None:
    setting = Setting(model="swin_b", input_shape=(3, 224, 224), batch_size=2)
    flat = records.flatten(Row(setting=setting, findings={"cross": CrossCount(macs_fvcore=5, macs_disagreement=0)}))
    assert list(flat) == ["model", "input_shape", "batch_size", "macs_fvcore", "macs_disagreement", "status", "note"]
    assert flat["status"] == "ok"
