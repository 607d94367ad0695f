"""A test suite a model, a test case a column, as JUnit's XML: for the pages of Jenkins, GitLab and others."""

from __future__ import annotations

from collections import Counter
from xml.etree import ElementTree as ET

from vitbench.changes import DIFFERENCES, Change, Comparison, Verdict
from vitbench.judging import wording
from vitbench.markup import xml


def render(comparison: Comparison) -> str:
    """Gives a comparison as XML; what counts as a regression is a failure, what else counts, such as a missing row, an error.

    Of what does not count improved, new, unchanged and expected are passed, the rest is skipped. GitLab reads the texts of the
    elements, Jenkins their messages, so both hold what is to be said; the name of a case holds all of its setting, since GitLab
    drops the second case of a name. That nothing could be compared is an error of its own: a run without a case would pass.
    """
    models: dict[str, list[Change]] = {}
    for change in comparison.changes:
        models.setdefault(change.model, []).append(change)
    root = ET.Element("testsuites", name=xml(f"vitbench: {comparison.base} to {comparison.head}"))
    all_outcomes: Counter[str] = Counter()
    for model, changes in models.items():
        suite = ET.SubElement(root, "testsuite", name=xml(model) or "(no model)")
        outcomes = Counter(_case(suite, change, comparison.counted) for change in changes)
        suite.attrib |= _told(outcomes) | {"skipped": str(outcomes["skipped"])}
        all_outcomes += outcomes
    if not comparison.compared:
        told = xml(wording.headline(comparison))
        suite = ET.SubElement(root, "testsuite", name="vitbench")
        case = ET.SubElement(suite, "testcase", classname="vitbench", name="comparison", time="0")
        ET.SubElement(case, "error", message=told, type="missing").text = told
        suite.attrib |= _told(Counter(error=1)) | {"skipped": "0"}
        all_outcomes["error"] += 1
    root.attrib |= _told(all_outcomes)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _outcome(change: Change, counted: frozenset[Verdict]) -> str:
    if change.expected or (change.verdict not in counted and change.verdict in ("improved", "new", "unchanged")):
        return "passed"
    if change.verdict not in counted:
        return "skipped"
    return "failure" if change.verdict in DIFFERENCES else "error"


def _told(outcomes: Counter[str]) -> dict[str, str]:
    return {
        "tests": str(outcomes.total()),
        "failures": str(outcomes["failure"]),
        "errors": str(outcomes["error"]),
        # No test ran; readers want the attribute.
        "time": "0",
    }


def _case(suite: ET.Element, change: Change, counted: frozenset[Verdict]) -> str:
    """Adds a test case, and gives its outcome."""
    name = f"{change.column or 'row'} [{wording.conditions(change.setting)}]"
    case = ET.SubElement(suite, "testcase", classname=suite.get("name", ""), name=xml(name), time="0")
    if (outcome := _outcome(change, counted)) != "passed":
        told = xml(wording.told(change))
        ET.SubElement(case, outcome, message=told, type=change.verdict).text = told
    return outcome
