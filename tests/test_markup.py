"""What others wrote stays text in GitHub's Markdown and in XML.

Expected values: the rules of CommonMark 0.31 on backslash escapes, and of XML 1.0, section 2.2, on characters.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.planted import HOSTILE
from vitbench import markup

_PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def _shown(text: str) -> str:
    """Gives what a reader of the Markdown sees, after making sure that it is one paragraph of text alone."""
    start, inline, end = _PARSER.parse(markup.markdown(text))
    assert (start.type, end.type) == ("paragraph_open", "paragraph_close")
    assert {child.type for child in inline.children or []} <= {"text", "text_special"}
    return "".join(child.content for child in inline.children or [])


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is(text: str) -> None:
    assert _shown(text).replace("\u200b", "") == markup.one_line(text)


@given(st.text(min_size=1).filter(lambda text: markup.one_line(text).strip("\u200b") != ""))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    assert " ".join(_shown(text).replace("\u200b", "").split()) == " ".join(
        markup.one_line(text).replace("\u200b", "").split()
    )


# What GitHub's documentation says that it makes a mention, a reference, a link or an emoji of.
_LIVE = re.compile(
    r"@\w|://|www\.\w|#\d|\b(GH|GHSA|CVE)-\w|:[\w+-]+:|(?<![0-9a-z])[0-9a-f]{7,40}(?![0-9a-z])", re.IGNORECASE
)


@pytest.mark.parametrize(
    "text",
    [
        *("@octocat", "see #12", "org/repo#12", "GH-12", "https://a.example", "www.a.example", "a@b.example"),
        *(":heart:", ":+1:", "a:heart_eyes:b", "::1:a:", "CVE-2021-44228", "GHSA-jfh8-c2jp-5v3q"),
        *(
            "1a2b3c4",
            "at 0123456789abcdef0123456789ABCDEF01234567.",
            "org/repo@1a2b3c4",
            "_1a2b3c4_",
            "1a2b3c4...4c3b2a1",
        ),
    ],
)
def test_what_github_makes_a_link_or_an_emoji_of_is_broken_by_a_sign_without_width(text: str) -> None:
    assert _LIVE.search(text)
    assert not _LIVE.search(_shown(text))
    assert _shown(text).replace("\u200b", "") == text


@pytest.mark.parametrize(
    "text", ["vit_base_patch16_224", "torch: 2.14.0", "3x224x224", "15,430,946,816", "0.123456", "10:20"]
)
def test_what_github_leaves_alone_is_left_alone(text: str) -> None:
    assert _shown(text) == text
    assert "\u200b" not in markup.markdown(text)


@pytest.mark.parametrize("text", ["- a", "1. a", "2) a", "+ a", "---", "# a", "> a", "-"])
def test_a_line_that_would_begin_a_list_a_rule_or_a_heading_is_a_paragraph(text: str) -> None:
    assert _shown(text) == text


def test_a_number_keeps_its_sign() -> None:
    assert markup.markdown("-0.27 %") == "-0.27 %"


def test_code_is_fenced_by_more_backticks_than_it_has() -> None:
    lines = ["a ```` b", "</details>", "c\nd"]
    block, *rest = _PARSER.parse("\n".join(markup.fenced(lines)))
    assert (block.type, block.content, rest) == ("fence", "a ```` b\n</details>\nc d\n", [])


@given(st.text())
def test_any_text_can_be_in_xml(text: str) -> None:
    element = ET.Element("a", b=markup.xml(text))
    element.text = markup.xml(text)
    read = ET.fromstring(ET.tostring(element).decode())  # noqa: S314 - written a line above
    assert read.get("b") == (read.text or "") == markup.xml(text)


def test_xml_has_no_control_characters() -> None:
    assert markup.xml("a\x00\x08\ufffe\uffff\ud800b\U0001f600") == "a?b\U0001f600"


def test_what_is_left_out_is_dots() -> None:
    assert (markup.shortened("abcdef", 6), markup.shortened("abcdefg", 6)) == ("abcdef", "abc...")
