"""Numbers become text here, and nowhere else.

Records hold base values; the last part of a name is its unit. Counts get decimal prefixes (k, M, G, T).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

# The most digits that a float has.
_ALL_DIGITS = 17

# A text with these reads otherwise than it is stored.
_TURNING = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))

_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(value: float, digits: int = 4) -> str:
    """Gives a count with a decimal prefix, to `digits` significant digits: 15 466 143 744 is "15.47 G"."""
    for size, prefix in _DECIMAL:
        # The bound is lowered by half a unit in the last place, so that 999 999 reads "1.000 M" and not "1000 k".
        if abs(value) >= size * (1 - 0.5 * 10.0**-digits):
            return f"{value / size:#.{digits}g} {prefix}"
    return f"{value:g}" if value != int(value) else f"{int(value)}"


def memory(value: float) -> str:
    """Gives bytes with a binary prefix, to four significant digits: 362807296 is "346.0 MiB"."""
    for size, prefix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= size * (1 - 0.5e-4):
            return f"{_four_digits(value / size)} {prefix}"
    return f"{int(value)} B"


def _four_digits(value: float) -> str:
    return f"{value:#.4g}".removesuffix(".")


def parse_memory(text: str) -> int:
    """Reads an amount of memory with its unit: "24GiB" is 24 x 2^30 bytes, "24GB" is 24 x 10^9.

    Raises:
        ValueError: it is no such thing; the text says what is expected.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT])(i?)B", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise ValueError(
            f"{text!r} is not an amount of memory above zero with its unit, such as 24GiB, 80GB or 512MiB."
        )
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** ("KMGT".index(found[2].upper()) + 1))


def parse_extents(text: str) -> tuple[int, ...]:
    """Reads "384", "384x512" or "3x224x224".

    Raises:
        ValueError: it is no such thing.
    """
    parts = text.lower().split("x")
    if not all(re.fullmatch("0*[1-9][0-9]{0,8}", part) for part in parts):
        raise ValueError(f"{text!r} is not whole numbers above zero with x between them, such as 224 or 3x224x224")
    return tuple(map(int, parts))


def parse_share(text: str) -> float:
    """Reads a part of a whole: "5%" is 0.05.

    Raises:
        ValueError: it is no such thing, or 100 % or more; the text says what is expected.
    """
    found = re.fullmatch(r"([0-9]{1,2}(?:\.[0-9]+)?) ?%", text.strip())
    if not found:
        raise ValueError(f'{text!r} is not a part below 100 %, such as "5%" or "0.5%".')
    return float(found[1]) / 100


def milliseconds(value: float) -> str:
    """Gives a time to four significant digits: 12.3456 is "12.35 ms"."""
    return f"{_four_digits(value)} ms" if value < 9999.5 else f"{_four_digits(value / 1e3)} s"


def printable(text: str) -> str:
    """Gives a text without control characters, which could move a terminal's cursor or worse; line ends stay.

    Signs that turn the direction of reading are left out too; half of a surrogate pair, which no file can hold, is shown as "?".
    """
    whole = text.encode("utf-8", "replace").decode()
    return "".join(
        sign
        for sign in whole
        if sign == "\n" or (unicodedata.category(sign) != "Cc" and unicodedata.bidirectional(sign) not in _TURNING)
    )


def percent(ratio: float) -> str:
    """Gives a signed relative difference: 0.0027 is "+0.27 %"."""
    if abs(ratio) < 0.00005:
        return "0 %"
    return f"{ratio * 100:+.2f} %" if abs(ratio) < 0.1 else f"{ratio * 100:+.0f} %"


def size(shape: tuple[int, ...]) -> str:
    """Gives a shape as the papers write it: (3, 224, 224) is "3x224x224"."""
    return "x".join(str(extent) for extent in shape)


def printed(value: float) -> str:
    """Gives a published count with no more digits than it has: 88e6 is "88 M"."""
    for bound, prefix in _DECIMAL:
        if value >= bound:
            return f"{value / bound:.6g} {prefix}"
    return f"{value:.6g}"


def exact(value: int) -> str:
    """Gives a count to the last digit: "15,430,946,816"."""
    return f"{value:,}"


def signed_percent(difference: float) -> str:
    """Gives a relative difference as `percent` does, but never as "0 %" where there is one: 6.5e-11 is "+6.5e-09 %"."""
    text = percent(difference)
    return f"{difference * 100:+.1e} %" if difference and text == "0 %" else text


def quantity(column: str, value: Any, digits: int = 4) -> str:
    """Gives a base value as text, by the unit that ends its column's name: peak_bytes, 362807296 is "346.0 MiB".

    Args:
        column: its name.
        value: a number, a text, a truth value, a tuple or list of them, or a mapping of counts; None is the empty text.
        digits: significant digits; above 4, whole numbers are told to the last.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(column, value, digits)
    if isinstance(value, Mapping):
        return _counts(value, sorted(value, key=lambda name: -_magnitude(value[name])))
    if isinstance(value, list | tuple):
        return _list(value, digits)
    return printable(" ".join(str(value).split()))


def quantities(column: str, before: Any, after: Any) -> tuple[str, str]:
    """Gives two base values as texts that differ where the values do, with as many digits as that takes.

    Of two tuples of one length, the entries that lie farthest apart are told, and of two mappings the items that differ.
    """
    before, after = (tuple(value) if isinstance(value, list) else value for value in (before, after))
    if before == after:
        return (text := quantity(column, before)), text
    if _vector(before) and _vector(after) and len(before) == len(after) > 3:
        place = max(range(len(before)), key=lambda index: _magnitude(before[index] - after[index]))
        texts = quantities(column, before[place], after[place])
        return texts[0] + (of := f" at {place + 1} of {len(before)}"), texts[1] + of
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        differ = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        differ.sort(key=lambda name: -abs(_magnitude(after.get(name)) - _magnitude(before.get(name))))
        return _counts(before, differ), _counts(after, differ)
    for digits in range(4, _ALL_DIGITS + 1):
        texts = quantity(column, before, digits), quantity(column, after, digits)
        if texts[0] != texts[1]:
            return texts
    return quantity("", repr(before)), quantity("", repr(after))


def unit(column: str) -> str:
    """Gives the unit that ends a column's name, "" for a count: latency_median_ms is in "ms"."""
    return next((name for ending, name, _ in _UNITS if column.endswith(ending)), "")


def _number(column: str, value: float, digits: int) -> str:
    if not -(10**18) < value < 10**18:
        return f"{Decimal(value):.4g}"  # which, unlike a float, holds any whole number, and tells what is not finite
    text = next((text for ending, _, text in _UNITS if column.endswith(ending)), _count)
    return text(value, digits)


def _significant(value: float, digits: int) -> str:
    if isinstance(value, int):
        return exact(value)
    if value and not 1e-4 <= abs(value) < 1e15:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0}f}"


def _count(value: float, digits: int) -> str:
    if abs(value) < 1000 or (digits > 4 and isinstance(value, int)):
        return _significant(value, digits)
    return count(value, digits)


def _bytes(value: float, digits: int) -> str:
    return memory(value) if digits == 4 else f"{_significant(value, digits)} B"


def _time(value: float, digits: int) -> str:
    return milliseconds(value) if digits == 4 else f"{_significant(value, digits)} ms"


def _rate(name: str) -> Callable[[float, int], str]:
    def text(value: float, digits: int) -> str:
        number = _count(value, digits)
        # The prefix belongs to the unit: 1.235 TFLOP/s.
        return f"{number}{name}" if number[-1].isalpha() or name.startswith("/") else f"{number} {name}"

    return text


def _part(value: float, digits: int) -> str:
    return f"{_significant(value * 100, digits)} %"


def _in(name: str) -> tuple[str, str, Callable[[float, int], str]]:
    return f"_{name}", name, lambda value, digits: f"{_significant(value, digits)} {name}"


# The ending of a column's name, the unit, and how a value is told; the first that fits counts.
_UNITS: tuple[tuple[str, str, Callable[[float, int], str]], ...] = (
    ("_bytes", "bytes", _bytes),
    ("_flops_per_s", "FLOP/s", _rate("FLOP/s")),
    # Traffic is told in powers of ten, as makers of memory do.
    ("_bytes_per_s", "B/s", _rate("B/s")),
    ("_per_s", "1/s", _rate("/s")),
    ("_ms", "ms", _time),
    ("_ratio", "1", _part),
    ("_share", "1", _part),
    ("utilization", "1", _part),
    *(_in(name) for name in ("s", "px", "nats", "frames", "tokens")),
    ("_mhz", "MHz", lambda value, digits: f"{_significant(value, digits)} MHz"),
)


def _vector(value: Any) -> bool:
    """Says whether a value is a list of numbers with which floats can be reckoned."""
    return isinstance(value, list | tuple) and all(
        isinstance(item, float) or (type(item) is int and abs(item) < 10**18) for item in value
    )


def _list(value: Sequence[Any], digits: int) -> str:
    if len(value) <= 6 and value and all(type(item) is int for item in value):
        return size(tuple(value))
    if len(value) <= 3:
        return ", ".join(quantity("", item, digits) for item in value)
    if _vector(value):
        return f"{len(value)} values, {quantity('', min(value), digits)} to {quantity('', max(value), digits)}"
    return f"{len(value)} values"


def _counts(value: Mapping[str, Any], names: Sequence[str]) -> str:
    told = [f"{quantity('', name)} {quantity('', value.get(name, 0), _ALL_DIGITS)}" for name in names[:3]]
    return ", ".join(told) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _magnitude(value: Any) -> float:
    """Gives by how much something counts in an order: numbers by their size, what is no number first."""
    if isinstance(value, int | float):
        return math.inf if math.isnan(value) else abs(value)
    return 0.0 if value is None else math.inf
