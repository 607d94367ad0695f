"""`vitbench compare`: what a user types, gets and gets wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from vitbench.changes import Comparison
from vitbench.cli import app
from vitbench.cli import compare as door
from vitbench.records import Table, columns
from vitbench.reports import COMPARISONS, csv

HEADER = "model,input_shape,batch_size,params,macs,status\n"


class _Reports:
    """Stands for the shelf: what is rendered does not matter here."""

    names = COMPARISONS.names

    def load(self, name: str) -> Any:
        def render(found: Comparison) -> str:
            return f"{name} {found.base} {found.head} {found.counts} {found.commands} {found.notes}\n"

        return SimpleNamespace(render=render)


@pytest.fixture(autouse=True)
def _reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "COMPARISONS", _Reports())


def compare(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, rows in {
        "base": "a,3x8x8,1,10,100,ok\nb,3x8x8,1,10,100,ok\n",
        "worse": "a,3x8x8,1,10,101,ok\nb,3x8x8,1,10,100,ok\n",
        "better": "a,3x8x8,1,10,99,ok\nb,3x8x8,1,10,100,ok\n",
        "fewer": "a,3x8x8,1,10,100,ok\n",
        "other": "c,3x8x8,1,10,100,ok\n",
    }.items():
        (tmp_path / f"{name}.csv").write_text(HEADER + rows)
    (tmp_path / "damaged.csv").write_text(HEADER + "a,3x8x8,1\n")
    return tmp_path


def test_the_formats_are_those_of_the_shelf() -> None:
    assert tuple(door.ComparisonFormat) == COMPARISONS.names


@pytest.mark.parametrize(
    ("head", "options", "code", "told"),
    [
        ("base", [], 0, "4 unchanged."),
        ("worse", [], 1, "1 regressed, 3 unchanged."),
        ("worse", ["--threshold", "macs=2%"], 0, "4 unchanged."),
        ("worse", ["--threshold", "macs:b=2%"], 1, "1 regressed, 3 unchanged."),
        ("worse", ["--fail-on", "never"], 0, "1 regressed, 3 unchanged."),
        ("better", [], 0, "1 improved, 3 unchanged."),
        ("better", ["--fail-on", "any"], 1, "1 improved, 3 unchanged."),
        ("fewer", [], 3, "1 missing, 2 unchanged."),
        ("fewer", ["--allow-missing"], 0, "1 missing, 2 unchanged."),
        ("other", ["--allow-missing"], 3, "2 missing, 1 new."),
    ],
)
def test_the_exit_code_and_a_line_say_what_was_found(
    files: Path, head: str, options: list[str], code: int, told: str
) -> None:
    done = compare("base.csv", f"{head}.csv", *options)
    assert (done.exit_code, done.stderr) == (code, f"{told}\n")
    assert done.stdout.startswith(f"table base.csv {head}.csv ")


def test_incomparable_times_count_under_strict_alone(files: Path) -> None:
    header = "model,input_shape,throughput_per_s,environment_cpu\n"
    (files / "a.csv").write_text(f"{header}a,3x8x8,10,AMD\n")
    (files / "b.csv").write_text(f"{header}a,3x8x8,10,Intel\n")
    assert compare("a.csv", "b.csv").exit_code == 0
    done = compare("a.csv", "b.csv", "--strict")
    assert (done.exit_code, done.stderr) == (4, "1 incomparable.\n")


@pytest.mark.parametrize(
    ("name", "format"),
    [("x.md", "markdown"), ("x.JSON", "json"), ("x.xml", "junit"), ("x.html", "html"), ("x.txt", "table")],
)
def test_the_report_is_written_whatever_was_found(files: Path, name: str, format: str) -> None:
    done = compare("base.csv", "worse.csv", "--output", name)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", f"Wrote {name}.\n1 regressed, 3 unchanged.\n")
    assert (files / name).read_text().startswith(f"{format} base.csv worse.csv ")
    assert compare("base.csv", "worse.csv", "--output", name, "--format", "junit").exit_code == 1
    assert (files / name).read_text().startswith("junit ")


def test_the_report_says_what_was_left_out_of_a_folder(files: Path) -> None:
    folder = files / "folder"
    folder.mkdir()
    (files / "base.csv").rename(folder / "base.csv")
    (folder / "changes.json").write_text('{"verdicts": {}}')
    done = compare("folder", "folder/base.csv")
    assert done.exit_code == 0
    assert "Left out: Cannot read folder/changes.json" in done.stdout
    assert compare("folder/changes.json", "folder").exit_code != 0


def test_the_report_says_how_it_was_made(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was typed, with what decides the exit code."""
    typed = ["base.csv", "base.csv", "--threshold", "macs:vit_*=1%", "--strict"]
    monkeypatch.setattr("sys.argv", ["vitbench", "compare", *typed])
    assert "vitbench compare base.csv base.csv --threshold 'macs:vit_*=1%' --strict" in compare(*typed).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.csv", "base.csv"], "Cannot read absent.csv: No such file or directory"),
        (["base.csv", "damaged.csv"], "damaged.csv, line 2 has 3 cells, but the header names 6 columns: params is not"),
        (
            ["base.csv", "base.csv", "--threshold", "macs=5"],
            "'macs=5' is not a threshold below 100 %, such as throughput=5%",
        ),
        (["base.csv", "base.csv", "--threshold", "makes=5%"], "No column named 'makes' is judged"),
        (["base.csv", "base.csv", "-o", "absent/x.md"], "there is no folder absent"),
        (["base.csv", "base.txt"], "give a result file whose name ends in .csv, .json, .jsonl"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(files: Path, arguments: list[str], message: str) -> None:
    done = compare(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_files_of_which_nothing_is_judged_are_told(files: Path) -> None:
    (files / "x.csv").write_text("model,wall_s\na,3\n")
    done = compare("x.csv", "x.csv")
    assert done.exit_code == 3
    assert done.stderr == "Nothing could be compared: the two share no value of a column that is judged.\n"


def test_a_broken_resize_of_a_position_table_is_a_regression(files: Path) -> None:
    """What the analysis finds of a table that timm resamples as it should be, and of one that comes out one place off."""
    import torch
    from timm.layers import resample_abs_pos_embed

    from tests import tiny
    from vitbench.analyses.position_similarity import analyze

    small, large = tiny.vit(), tiny.vit(64)
    assert isinstance(small.pos_embed, torch.nn.Parameter)
    torch.nn.init.normal_(small.pos_embed, generator=torch.Generator().manual_seed(0))
    resized = resample_abs_pos_embed(small.pos_embed.detach(), [8, 8])
    setting = {"model": "tests.tiny:vit", "input_shape": (3, 64, 64), "weights": "file vit.pth"}
    for name, table in (("right", resized), ("wrong", resized.roll(1, dims=1))):
        large.pos_embed = torch.nn.Parameter(table)
        rows = [setting | columns(row) for row in analyze(small, resized=large).rows]
        (files / f"{name}.csv").write_text(csv.render(Table(rows=rows, columns=())))
    assert compare("right.csv", "right.csv").exit_code == 0
    done = compare("right.csv", "wrong.csv")
    # The 16 tiles of the table before are as they were.
    assert (done.exit_code, done.stderr) == (1, "64 regressed, 16 unchanged.\n")


def test_comparing_needs_no_torch(files: Path) -> None:
    code = (
        "import sys\nfrom types import SimpleNamespace\nfrom vitbench.cli import app, compare\n"
        "compare.COMPARISONS = SimpleNamespace(load=lambda _: SimpleNamespace(render=lambda found: ''))\n"
        "try:\n    app(['compare', 'base.csv', 'worse.csv'])\nexcept SystemExit as end:\n    assert end.code == 1\n"
        "print([name for name in ('torch', 'timm', 'fvcore', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
