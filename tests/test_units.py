"""Numbers as text; the expected strings are the SI prefixes and roundings worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), (" 0.5 % ", 0.005), ("0%", 0), ("99.9%", 0.999)])
def test_a_part_is_read(text: str, value: float) -> None:
    assert units.parse_share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "%", "-1%", "nan%", "inf%", "1e1%", "100%", "150%", ""])
def test_what_is_no_part_below_a_whole_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a part below 100 %"):
        units.parse_share(text)


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


def test_what_a_file_cannot_hold_is_shown_and_what_reads_backwards_is_not_printed() -> None:
    assert units.printable("a\ud800b\u202egnp.exe\u2066\x1b[2J\n") == "a?bgnp.exe[2J\n"


@pytest.mark.parametrize(
    ("difference", "text"), [(0.0, "0 %"), (6.5e-11, "+6.5e-09 %"), (-1e-6, "-1.0e-04 %"), (0.0811, "+8.11 %")]
)
def test_a_small_difference_is_not_told_as_none(difference: float, text: str) -> None:
    assert units.signed_percent(difference) == text


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("macs", 15_430_946_816, "15.43 G"),
        ("params", 999, "999"),
        ("macs", 10**20, "1.000e+20"),
        ("predicted_peak_bytes", 362_807_296, "346.0 MiB"),
        ("latency_median_ms", 12.3456, "12.35 ms"),
        ("compile_s", 30.0, "30.00 s"),
        ("throughput_per_s", 512.256, "512.3/s"),
        ("throughput_per_s", 12_345.6, "12.35 k/s"),
        ("achieved_flops_per_s", 1.2346e12, "1.235 TFLOP/s"),
        ("achieved_flops_per_s", 12.0, "12.00 FLOP/s"),
        ("bandwidth_bytes_per_s", 30_970_000_000.0, "30.97 GB/s"),
        ("distance_px", 101.26, "101.3 px"),
        ("entropy_nats", 0.0001234, "0.0001234 nats"),
        ("sem_nats", 0.00001234, "1.234e-05 nats"),
        ("clock_mhz", 1980, "1,980 MHz"),
        ("entropy_share", 0.98765, "98.77 %"),
        ("explained_variance_ratio", 0.25, "25.00 %"),
        ("cka", 0.0, "0"),
        ("cka", -0.123456, "-0.1235"),
        ("cka", 123_456.7, "123.5 k"),
        ("cka", float("nan"), "NaN"),
        ("cka", float("inf"), "Infinity"),
        ("quiet", True, "yes"),
        ("compile", None, ""),
        ("preprocessing", "resize\n\x1b[31m 224 ", "resize [31m 224"),
        ("grid", (14, 14), "14x14"),
        ("pitch_px", (16.0, 8.0), "16.00, 8.000"),
        ("values", (0.1, 0.2, 0.3, -0.4), "4 values, -0.4000 to 0.3000"),
        ("values", (0.1, "x", None, []), "4 values"),
        ("values", (), ""),
        ("uncounted", {"add": 2, "gelu": 12_345}, "gelu 12,345, add 2"),
        ("uncounted", {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, "e 5, d 4, c 3 and 2 more"),
    ],
)
def test_a_quantity_is_told_in_the_unit_that_ends_its_columns_name(column: str, value: object, text: str) -> None:
    assert units.quantity(column, value) == text


@pytest.mark.parametrize(
    ("column", "before", "after", "texts"),
    [
        ("macs", 1_234_567, 1_234_568, ("1,234,567", "1,234,568")),
        ("macs", 1_234_567, 2_234_567, ("1.235 M", "2.235 M")),
        ("peak_bytes", 362_807_296, 362_807_297, ("362,807,296 B", "362,807,297 B")),
        ("latency_median_ms", 100.0, 100.001, ("100.000 ms", "100.001 ms")),
        ("cka", 0.5, 0.5, ("0.5000", "0.5000")),
        ("cka", None, 0.5, ("", "0.5000")),
        ("latency_median_ms", 0, -0.0, ("0.000 ms", "0.000 ms")),
        ("values", (1.0, 2.0, 3.0, 4.0), [1, 2, 3, 4], ("4 values, 1.000 to 4.000",) * 2),
        ("values", (1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 3.5, 4.1), ("3.000 at 3 of 4", "3.500 at 3 of 4")),
        ("values", (1.0,) * 4, (1.0,) * 5, ("4 values, 1.000 to 1.000", "5 values, 1.000 to 1.000")),
        (
            "operators",
            {"addmm": 48, "gelu": 12},
            {"addmm": 48, "gelu": 13, "copy": 3},
            ("copy 0, gelu 12", "copy 3, gelu 13"),
        ),
        ("preprocessing", "a\x00", "a", ("'a\\x00'", "'a'")),
    ],
)
def test_two_quantities_get_the_digits_in_which_they_differ(
    column: str, before: object, after: object, texts: tuple[str, str]
) -> None:
    assert units.quantities(column, before, after) == texts


@pytest.mark.parametrize("column", ["macs", "x_bytes", "x_per_s", "x_flops_per_s", "x_ms", "x_s", "x_ratio", "cka"])
@given(
    before=st.one_of(st.integers(), st.floats(allow_nan=False)),
    after=st.one_of(st.integers(), st.floats(allow_nan=False)),
)
def test_two_numbers_that_differ_never_read_alike(column: str, before: float, after: float) -> None:
    texts = units.quantities(column, before, after)
    assert (texts[0] == texts[1]) == (before == after)
    near = math.nextafter(float(before), math.inf) if abs(before) < 1e308 else before
    texts = units.quantities(column, float(before), near)
    assert (texts[0] == texts[1]) == (float(before) == near)


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        ("latency_median_ms", "ms"),
        ("peak_bytes", "bytes"),
        ("throughput_per_s", "1/s"),
        ("compile_s", "s"),
        ("macs", ""),
    ],
)
def test_the_unit_ends_the_name(column: str, unit: str) -> None:
    assert units.unit(column) == unit
