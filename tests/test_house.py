"""The rules of the house, checked by the tools that know them, and the few that no tool knows."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "vitbench").rglob("*.py"))


@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check"], ["lint-imports", "--no-cache"], ["mypy"]],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_tool_finds_nothing(command: list[str]) -> None:
    tool, *arguments = command
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [Path(sys.executable).parent / tool, *arguments],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT)))
def test_only_the_door_ends_the_process(source: Path) -> None:
    if source.parent.name == "cli":
        return
    calls = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if ast.unparse(call.func) in ("sys.exit", "exit", "os._exit")]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT)))
def test_checkpoints_are_loaded_in_one_place_and_safely(source: Path) -> None:
    text = source.read_text()
    if source.name == "checkpoints.py":
        assert text.count("torch.load(") == text.count("weights_only=True)") == 1
    else:
        assert "torch.load(" not in text


def test_the_tests_lie_as_the_source_does() -> None:
    """A feature found in the tree has its tests at the same place."""
    for source in SOURCES:
        if source.name.startswith("__") or source.parent.name in ("reports", "cli"):
            continue
        relative = source.relative_to(ROOT / "vitbench")
        assert (ROOT / "tests" / relative.with_name(f"test_{relative.name}")).exists(), relative
