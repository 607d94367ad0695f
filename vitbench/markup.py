"""Text of others made safe for GitHub's Markdown and for XML."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from textwrap import wrap

from vitbench.units import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$])")

# Of a list, an ordered list or a rule, where a line begins.
_LEADING = re.compile(r"^(\d{0,9})([-+.)])(?=[\s-]|$)")

# GitHub finds mentions, references, addresses and emoji in the text that the Markdown became, where no backslash keeps it from
# it; a sign without width between their parts does.
_LIVE = re.compile(r"(@|:(?=//|[\w+-]+:)|\bwww(?=\.)|#(?=\d)|(?<![^\W_])(?:GH|GHSA|CVE)-(?=\w))", re.IGNORECASE)
# Of a commit it takes 7 to 40 digits.
_COMMIT = re.compile(r"(?<![^\W_])[0-9a-f]{7,40}(?![^\W_])", re.IGNORECASE)
_NO_WIDTH = "\u200b"

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def one_line(text: str) -> str:
    """Gives a text in one line, without control characters."""
    return printable(" ".join(text.split()))


def markdown(text: str) -> str:
    """Gives a text as one line of GitHub's Markdown that shows it as it is: no markup, mention, reference, link or emoji."""
    quiet = _LIVE.sub(rf"\1{_NO_WIDTH}", one_line(text))
    quiet = _COMMIT.sub(lambda found: _NO_WIDTH.join(wrap(found[0], 6)), quiet)
    return _LEADING.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", html.escape(quiet, quote=False)))


def fenced(lines: Sequence[str]) -> list[str]:
    """Gives the lines of a block of code that shows lines as they are; nothing in them can end it."""
    plain = [one_line(line) for line in lines]
    longest = max((len(run) for line in plain for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *plain, fence]


def xml(text: str) -> str:
    """Gives a text as one line, without the signs that XML does not have, escaped or not."""
    return _NOT_XML.sub("", one_line(text))


def shortened(text: str, length: int) -> str:
    """Gives a text, cut to a length, with dots for what is left out."""
    return text if len(text) <= length else text[: length - 3] + "..."
