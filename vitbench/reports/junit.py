"""A test suite a model, a test case a column, as JUnit's XML: for the pages of Jenkins, GitLab and others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from vitbench import wording
from vitbench.changes import Change, Comparison
from vitbench.markup import xml

_OUTCOMES = {
    "regressed": "failure",
    "missing": "error",
    "suspect": "skipped",
    "incomparable": "skipped",
    "inconclusive": "skipped",
}


def render(comparison: Comparison) -> str:
    """Gives a comparison as XML; a regression is a failure, a missing row an error, what is not certain is skipped.

    Improved, new, unchanged and expected are passed. GitLab reads the texts of the elements, Jenkins their messages, so both
    hold what is to be said; the name of a case holds all of its setting, since GitLab drops the second case of a name.
    """
    models: dict[str, list[Change]] = {}
    for change in comparison.changes:
        models.setdefault(change.model, []).append(change)
    root = ET.Element("testsuites", name=xml(f"vitbench: {comparison.base} to {comparison.head}"))
    root.attrib |= _counted(comparison.changes)
    for model, changes in models.items():
        suite = ET.SubElement(root, "testsuite", {"name": xml(model) or "(no model)"} | _counted(changes))
        suite.set("skipped", str(sum(_outcome(change) == "skipped" for change in changes)))
        for change in changes:
            _case(suite, change)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _outcome(change: Change) -> str:
    return "passed" if change.expected else _OUTCOMES.get(change.verdict, "passed")


def _counted(changes: Sequence[Change]) -> dict[str, str]:
    outcomes = Counter(map(_outcome, changes))
    return {
        "tests": str(len(changes)),
        "failures": str(outcomes["failure"]),
        "errors": str(outcomes["error"]),
        # No test ran; readers want the attribute.
        "time": "0",
    }


def _case(suite: ET.Element, change: Change) -> None:
    name = f"{change.column or 'row'} [{wording.conditions(change.setting)}]"
    case = ET.SubElement(suite, "testcase", classname=suite.get("name", ""), name=xml(name), time="0")
    if (outcome := _outcome(change)) != "passed":
        told = xml(wording.told(change))
        ET.SubElement(case, outcome, message=told, type=change.verdict).text = told
