"""The action, this repository's workflows and those shown to users: as GitHub reads them, and closed to injection."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
ACTION = ROOT / "action.yml"
COMMENT = ROOT / "examples" / "github" / "comment.yml"
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


def script(path: Path, name: str) -> str:
    return next(str(step["run"]) for step in steps(path) if step.get("name") == name)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"SUITE": "ci.toml"}, "check|--output|out|--|ci.toml"),
        (
            {"SUITE": "a b.toml", "BASELINE": "b.json", "AGAINST": "origin/x", "ARGUMENTS": "--strict --jobs 2"},
            "check|--output|out|--strict|--jobs|2|--baseline|b.json|--against|origin/x|--|a b.toml",
        ),
        ({"SUITE": "ci.toml", "ARGUMENTS": "--strict\n--jobs 2\n"}, "check|--output|out|--strict|--jobs|2|--|ci.toml"),
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
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script(ACTION, "Check")],
        cwd=tmp_path,
        env=blank | given | {"FOLDER": "out", "PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == expected.split("|")
    assert [file.name for file in tmp_path.iterdir()] == ["vitbench"]


# Notes what it was asked, and answers with what lies in pulls.json and in comments.json, a page a line.
_GH = r"""#!/bin/bash
printf '%s ' "$@" >> asked; echo >> asked
case "$*" in
  *"/pulls "*) jq -r "${@: -1}" pulls.json ;;
  *"/comments --jq"*) while read -r page; do jq -r "${@: -1}" <<< "$page"; done < comments.json ;;
esac
"""
_BODY = "<!-- vitbench -->\n### 1 regressed\n"
_OURS = {"id": 7, "user": {"login": "github-actions[bot]"}, "body": _BODY}
_THEIRS = {"id": 6, "user": {"login": "mallory"}, "body": _BODY}
_HERE = {"number": 3, "head": {"sha": "c0ffee"}}
_ELSEWHERE = {"number": 2, "head": {"sha": "decaf"}}
_EDITED = "api --method PATCH repos/o/r/issues/comments/7 --field body=@body.md --silent "


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq, which stands in for gh's own")
@pytest.mark.parametrize(
    ("body", "pulls", "pages", "last"),
    [
        (_BODY, [_ELSEWHERE, _HERE], [[]], "pr comment 3 --body-file body.md "),
        (_BODY, [_HERE], [[_THEIRS], [_OURS, _OURS | {"id": 8}], [_OURS | {"id": 9}]], _EDITED),
        # Pages long enough that a reader which leaves after the first line would end the command that writes them.
        (_BODY, [_HERE], [[_OURS] * 500] * 3, _EDITED),
        (_BODY, [_ELSEWHERE], [[]], None),
        (_BODY, [], [[]], None),
        ("Buy now.\n<!-- vitbench -->\n", [_HERE], [[]], ""),
        (_BODY.removesuffix("\n") + "\U0001f600" * 70_000, [_HERE], [[]], "pr comment 3 --body-file body.md "),
        ("", [_HERE], [[]], ""),
    ],
)
def test_a_comment_is_a_report_on_the_pull_request_that_was_checked(
    body: str, pulls: list[Any], pages: list[Any], last: str | None, tmp_path: Path
) -> None:
    (tmp_path / "gh").write_text(_GH)
    (tmp_path / "gh").chmod(0o755)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "comment.md").write_text(body)
    (tmp_path / "pulls.json").write_text(json.dumps(pulls))
    (tmp_path / "comments.json").write_text("".join(f"{json.dumps(page)}\n" for page in pages))
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script(COMMENT, "Comment")],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "GH_REPO": "o/r", "OWNER": "m", "BRANCH": "b", "COMMIT": "c0ffee"},
        capture_output=True,
        text=True,
        check=False,
    )
    if last == "":
        assert (done.returncode, done.stdout) == (1, "comment.md is no report of vitbench.\n")
        assert not (tmp_path / "asked").exists()
        return
    assert (done.returncode, done.stderr) == (0, "")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0].startswith("api --method GET repos/o/r/pulls --raw-field state=open --raw-field head=m:b ")
    assert (asked[-1] == last) if last else len(asked) == 1
    assert (tmp_path / "body.md").read_bytes() == body.encode()[:65_000]
