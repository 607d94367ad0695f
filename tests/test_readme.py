"""The README tells the truth."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from vitbench import catalog
from vitbench.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_ci_runs_the_readmes_test_command() -> None:
    command = next(line for line in README.splitlines() if line.endswith("-m pytest") and "venv" in line)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_output_shown_first_is_what_comes_out() -> None:
    """The table; the notes below it name operators, which change with torch."""
    shown = re.search(r"```console\n\$ vitbench flops swin_b\n(.*?)\n\n", README, re.DOTALL)
    assert shown is not None
    printed = CliRunner().invoke(app, ["flops", "swin_b"]).stdout
    assert printed.startswith(shown[1])


def test_every_command_is_shown() -> None:
    commands = [command.name for command in app.registered_commands]
    assert all(f"vitbench {name}" in README for name in commands)


def test_every_option_of_flops_is_shown() -> None:
    from typer.main import get_command

    flops = get_command(app).commands["flops"]  # type: ignore[attr-defined]  # the root is a group
    options = {name for parameter in flops.params for name in parameter.opts if name.startswith("--")} - {"--help"}
    assert {name for name in options if name not in README} == set()


def test_every_family_is_named() -> None:
    assert all(f"`{family}`" in README for family in catalog.families())


def test_links_inside_the_repository_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"\b[A-Z]+_[A-Z]+_?[A-Z]*\b|TODO|FIXME", README)
