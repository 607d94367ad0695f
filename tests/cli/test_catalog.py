"""`vitbench list` and `vitbench show`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitbench import catalog, published
from vitbench.cli import app
from vitbench.cli.options import Format
from vitbench.reports import REPORTS

run = CliRunner().invoke


def test_list_shows_every_row_with_its_paper() -> None:
    result = run(app, ["list", "--format", "json"])
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["name"] for row in rows] == list(catalog.VARIANTS)
    swin = next(row for row in rows if row["name"] == "swin_b")
    # Swin paper, Table 1.
    assert (swin["published_params"], swin["published_top1"]) == (88e6, 83.5)
    assert (swin["paper_arxiv"], swin["paper_year"], swin["modality"]) == ("2103.14030", 2021, "image")
    assert swin["input_shape"] == [3, 224, 224]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["swin_?"], ["swin_t", "swin_s", "swin_b", "swin_l"]),
        (["--family", "regnet"], ["regnety_16gf"]),
        (["b5"], ["pvt_v2_b5"]),
        (["*_384", "--family", "swin"], ["swin_b_384", "swin_l_384"]),
        (["vit_demo"], ["vit_demo"]),
    ],
)
def test_list_takes_globs_parts_of_names_and_families(arguments: list[str], names: list[str]) -> None:
    result = run(app, ["list", *arguments, "--format", "csv"])
    assert [row["name"] for row in csv.DictReader(io.StringIO(result.stdout))] == names


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["list", "swim_b"], "Did you mean swin_b"),
        (["list", "--family", "swim"], "Did you mean swin"),
        (["list", "vit_b16", "--family", "swin"], "No model of that family matches 'vit_b16'"),
        (["list", "vit_demo", "--family", "swin"], "No model of that family matches 'vit_demo'"),
        (["show", "swim_b"], "Did you mean swin_b"),
        (["show", "swin_b", "--output", "/proc/x.csv"], "Cannot write /proc/x.csv"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments: list[str], sentence: str) -> None:
    result = run(app, arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_show_gives_every_figure_with_its_source() -> None:
    result = run(app, ["show", "swin_b", "--format", "json"])
    rows = json.loads(result.stdout)
    assert len(rows) == len(published.find(("swin_b",)))
    assert all(row["figure_source"] for row in rows)
    text = run(app, ["show", "swin_b"]).stdout
    # Where sources disagree it says why: mmpretrain's count leaves attention out.
    assert "WITHOUT attention matmuls" in text
    assert "swin_b_384" in text


def test_show_says_what_the_demonstration_model_is() -> None:
    shown = run(app, ["show", "vit_demo"]).stdout
    assert "takes images of 3x112x112, no classifier" in shown
    assert "trained weights come with vitbench" in shown


@pytest.mark.parametrize("name", list(catalog.VARIANTS))
def test_show_knows_every_row(name: str) -> None:
    result = run(app, ["show", name])
    assert result.exit_code == 0
    assert catalog.find(name).paper.arxiv in result.stdout


def test_a_files_ending_says_the_format(tmp_path: Path) -> None:
    for name, start in (("x.csv", "name,"), ("x.json", "["), ("x.md", "| Name |"), ("x.txt", " Name")):
        result = run(app, ["list", "swin", "--output", str(tmp_path / name)])
        assert result.exit_code == 0
        assert result.stdout == ""
        assert (tmp_path / name).read_text().startswith(start)


def test_formats_offered_are_those_on_the_shelf() -> None:
    assert [item.value for item in Format] == list(REPORTS.names)


@pytest.mark.parametrize("pattern", ["cvt_13", "compact_cvt_7_4_32"])
def test_cvt_is_not_taken_for_the_other_cvt(pattern: str) -> None:
    """One is Microsoft's Convolutional vision Transformer, the other the Compact Vision Transformer of another paper."""
    invoke = CliRunner().invoke
    listed = invoke(app, ["list", pattern]).stdout.split("every figure with its source.")[1]
    assert ("is compact_cvt." if pattern.startswith("cvt") else "CvT is cvt.") in listed
    shown = invoke(app, ["show", pattern]).stdout
    assert ("Note: Convolutional" if pattern.startswith("cvt") else "Note: Compact") in shown


@pytest.mark.parametrize(
    ("name", "printed", "meaning"),
    [
        ("resnet50", "8.5 G", "2 x MACs"),
        ("timesformer_l", "7140 G", "3 x MACs"),
        ("vivit_h_14x2_m1", "47770 G", "12 x MACs"),
    ],
)
def test_show_says_what_a_printed_figure_is(name: str, printed: str, meaning: str) -> None:
    """Two for each multiply-accumulate, three crops, and four clips of three crops."""
    lines = run(app, ["show", name]).stdout.splitlines()
    assert any(printed in line and f" {meaning} " in line for line in lines)
