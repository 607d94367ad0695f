"""Numbers as text; the expected strings are the SI prefixes and roundings worked out by hand."""

from __future__ import annotations

import pytest

from vitbench import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1.000 k"),
        (15_430_946_816, "15.43 G"),
        (87_768_224, "87.77 M"),
        (999_999, "1.000 M"),
        (99_996, "100.0 k"),
        (483_747_550_208, "483.7 G"),
        (2_586_000_000_000, "2.586 T"),
    ],
)
def test_a_count_has_four_digits_and_a_decimal_prefix(value: float, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(88e6, "88 M"), (15.4e9, "15.4 G"), (17.6e9, "17.6 G"), (24.17332e6, "24.1733 M"), (512, "512")]
)
def test_a_published_count_gets_no_digits_that_it_does_not_have(value: float, text: str) -> None:
    assert units.printed(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.0, "0 %"), (0.0027, "+0.27 %"), (-0.0401, "-4.01 %"), (1.014, "+101 %")]
)
def test_a_difference_has_its_sign(ratio: float, text: str) -> None:
    assert units.percent(ratio) == text


def test_shapes_and_exact_counts() -> None:
    assert units.size((3, 16, 224, 224)) == "3x16x224x224"
    assert units.exact(15_430_946_816) == "15,430,946,816"
