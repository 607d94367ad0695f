"""Numbers become text here, and nowhere else.

Records hold base values; the last part of a name is its unit. Counts get decimal prefixes (k, M, G, T).
"""

from __future__ import annotations

import re
import unicodedata

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


def milliseconds(value: float) -> str:
    """Gives a time to four significant digits: 12.3456 is "12.35 ms"."""
    return f"{_four_digits(value)} ms" if value < 9999.5 else f"{_four_digits(value / 1e3)} s"


def printable(text: str) -> str:
    """Gives a text without control characters, which could move a terminal's cursor or worse; line ends stay."""
    return "".join(sign for sign in text if sign == "\n" or unicodedata.category(sign) != "Cc")


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
