"""What every page holds to: escaped texts, a policy by hashes, nothing that could end a script."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import pytest

from vitbench.changes import Comparison
from vitbench.drawing import offline
from vitbench.reports import changes_html


def page(**values: Any) -> str:
    defaults: dict[str, Any] = {
        "title": "t",
        "version": "1",
        "sections": [],
        "found": None,
        "environment": [],
        "commands": [],
    }
    found = changes_html.context(Comparison(base="a", head="b", changes=()))
    return offline.page("changes.html", **defaults | {"found": found} | values)


def test_a_text_is_escaped_wherever_it_stands() -> None:
    html = page(title="<b>&\"'", commands=["</code><script>"], environment=[("<i>", "{{7*7}}")])
    assert "<title>&lt;b&gt;&amp;&#34;&#39;</title>" in html
    assert "&lt;/code&gt;&lt;script&gt;" in html
    assert "<dt>&lt;i&gt;</dt><dd>{{7*7}}</dd>" in html


def test_signs_that_hide_or_turn_a_text_are_left_out() -> None:
    assert "<title>model.pth</title>" in page(title="mod\u202eel\x1b.\x00pth")


def test_the_policy_names_each_script_and_style_by_its_hash_and_allows_no_other_source() -> None:
    html = page(scripts=["var a = 1;", "var b = '<';"])
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    assert rules["img-src"] == ["data:"]
    scripts, styles = (re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL) for tag in ("script", "style"))
    assert scripts == ["var a = 1;", "var b = '<';"]  # as they are: their hashes are of these texts

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules["script-src"] == [hashed(script) for script in scripts]
    assert rules["style-src"] == [*(hashed(style) for style in styles), hashed("")]


def test_without_scripts_none_may_run() -> None:
    assert "script-src 'none'" in page()


@pytest.mark.parametrize("text", ["a = '</script>'", "a = '</SCRIPT'", "<!-- a"])
def test_a_script_that_would_end_itself_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="end it"):
        page(scripts=[text])


def test_the_same_values_make_the_same_page() -> None:
    assert page() == page()
