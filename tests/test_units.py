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


@pytest.mark.parametrize(
    ("text", "value"),
    [("24GiB", 24 * 2**30), ("24GB", 24 * 10**9), ("1.5 tib", 3 * 2**39), ("512mib", 2**29), ("8kB", 8000)],
)
def test_an_amount_of_memory_is_read_with_its_unit(text: str, value: int) -> None:
    assert units.parse_memory(text) == value


@pytest.mark.parametrize("text", ["24", "GiB", "0GiB", "-1GiB", "24GiB of it", "24G", ""])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 24GiB"):
        units.parse_memory(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.000 KiB"),
        (362_807_296, "346.0 MiB"),
        (2**40 - 1, "1.000 TiB"),
        (1010 * 2**20, "1010 MiB"),
    ],
)
def test_memory_has_a_binary_prefix(value: int, text: str) -> None:
    assert units.memory(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5000 ms"), (12.3456, "12.35 ms"), (1366.2, "1366 ms"), (12_345.6, "12.35 s")]
)
def test_a_time_has_four_digits(value: float, text: str) -> None:
    assert units.milliseconds(value) == text
