"""The action, this repository's workflows and those shown to users: as GitHub reads them, and closed to injection."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
ACTION = ROOT / "action.yml"
WORKFLOWS = sorted([*(ROOT / ".github" / "workflows").glob("*.yml"), *(ROOT / "examples" / "github").glob("*.yml")])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def steps(path: Path) -> Iterator[dict[str, Any]]:
    found = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    jobs = [found["runs"]] if path == ACTION else found["jobs"].values()
    for job in jobs:
        yield from job["steps"]


@pytest.mark.parametrize(("schema", "paths"), [("actions", [ACTION]), ("workflows", WORKFLOWS)])
def test_they_fit_githubs_schema(schema: str, paths: list[Path]) -> None:
    """The schemas of schemastore.org, as check-jsonschema comes with them."""
    tool = Path(sys.executable).parent / "check-jsonschema"
    done = subprocess.run(
        [tool, "--builtin-schema", f"vendor.github-{schema}", *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", [ACTION, *WORKFLOWS], ids=name_of)
def test_no_script_has_text_from_outside_put_into_it(path: Path) -> None:
    """GitHub writes `${{ }}` into a script before the shell reads it; our own matrix is no text from outside."""
    outside = re.compile(r"\$\{\{(?! matrix\.\w+ \}\})")
    assert [step["run"] for step in steps(path) if outside.search(step.get("run", ""))] == []


@pytest.mark.parametrize("path", [ACTION, *WORKFLOWS], ids=name_of)
def test_what_others_wrote_is_pinned(path: Path) -> None:
    used = [step["uses"] for step in steps(path) if "uses" in step]
    ours = ("./", "vitbench/vitbench@")
    assert [one for one in used if not one.startswith(ours) and not re.search(r"@[0-9a-f]{40}$", one)] == []


def script() -> str:
    return next(str(step["run"]) for step in steps(ACTION) if step.get("name") == "Check")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"SUITE": "ci.toml"}, "check|--output|out|--|ci.toml"),
        (
            {"SUITE": "a b.toml", "BASELINE": "b.json", "AGAINST": "origin/x", "ARGUMENTS": "--strict --jobs 2"},
            "check|--output|out|--strict|--jobs|2|--baseline|b.json|--against|origin/x|--|a b.toml",
        ),
        (
            {"SUITE": "$(touch here); --help", "AGAINST": "`touch here`", "ARGUMENTS": "; touch here"},
            "check|--output|out|;|touch|here|--against|`touch here`|--|$(touch here); --help",
        ),
    ],
)
def test_the_action_gives_the_command_what_it_was_given(given: dict[str, str], expected: str, tmp_path: Path) -> None:
    told = tmp_path / "vitbench"
    told.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    told.chmod(0o755)
    blank = dict.fromkeys(("SUITE", "BASELINE", "AGAINST", "ARGUMENTS"), "")
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script()],
        cwd=tmp_path,
        env=blank | given | {"FOLDER": "out", "PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == expected.split("|")
    assert [file.name for file in tmp_path.iterdir()] == ["vitbench"]
