"""`vitbench plot`: what a user types, gets and gets wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vitbench.cli import app
from vitbench.records import Table
from vitbench.reports import csv as csv_report
from vitbench.reports import json as json_report

ROWS: list[dict[str, Any]] = [
    {"model": "vit_l16", "input_shape": (3, 64, 64), "batch_size": 1, "throughput_per_s": 10.5, "status": "ok"},
    {"model": "vit_l16", "input_shape": (3, 224, 224), "batch_size": 1, "throughput_per_s": 2.5, "status": "ok"},
]


def plot(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["plot", *map(str, arguments)])


@pytest.fixture
def speed(tmp_path: Path) -> Path:
    path = tmp_path / "speed.csv"
    path.write_text(csv_report.render(Table(rows=ROWS, columns=())))
    return path


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    path = tmp_path / "batch.json"
    rows = [{"model": "vit_l16", "input_shape": (3, 64, 64), "max_batch": 700, "status": "ok"}]
    path.write_text(json_report.render(Table(rows=rows, columns=())))
    return path


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("PDF", b"%PDF"), ("svg", b"<?xml")])
def test_files_become_a_picture_in_the_format_of_its_ending(
    speed: Path, batch: Path, tmp_path: Path, ending: str, magic: bytes
) -> None:
    output = tmp_path / f"scaling.{ending}"
    done = plot("scaling", speed, batch, "--output", output)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == f"Wrote {output}.\n"
    first = output.read_bytes()
    assert first.startswith(magic)
    assert plot("scaling", speed, batch, "-o", output).exit_code == 0
    assert output.read_bytes() == first


def test_what_has_no_rows_is_left_out_of_a_folder(speed: Path, tmp_path: Path) -> None:
    """Such as what a check writes beside its rows."""
    (tmp_path / "changes.json").write_text('{"verdicts": {}}')
    done = plot("scaling", tmp_path, "-o", tmp_path / "x.png")
    assert done.exit_code == 0, done.stderr
    assert f"Left out: Cannot read {tmp_path / 'changes.json'}" in done.stderr


def test_json_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "speed.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n")
    assert plot("scaling", path, "-o", tmp_path / "x.png").exit_code == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "No such file or directory"),
        ("empty.csv", "", "it is empty"),
        ("rows.csv", "model,input_shape\n", "it has no rows"),
        ("rows.json", "[]", "it has no rows"),
        ("rows.txt", "x", "name ends in .csv, .json, .jsonl"),
        ("other.csv", "model,macs\na,3\n", "No row has throughput_per_s"),
        (
            "cell.csv",
            "model,input_shape,throughput_per_s\na,3x8x8,1\na,3x8x8,x\n",
            "cell.csv, line 3: throughput_per_s is 'x'",
        ),
        ("shape.json", '[{"model": "a", "input_shape": [3, "x"], "max_batch": 1}]', "row 1: input_shape is [3, 'x']"),
        ("broken.json", '[{"model": \n', "is not JSON"),
    ],
)
def test_files_that_cannot_be_drawn_are_one_sentence(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    path, output = tmp_path / name, tmp_path / "scaling.png"
    if content is not None:
        path.write_text(content)
    done = plot("scaling", path, "--output", output)
    assert done.exit_code == 2
    assert message in done.stderr
    assert name in done.stderr or name == "other.csv"
    assert len(done.stderr.splitlines()) == 1
    assert not output.exists()


def test_unknown_charts_and_endings_are_refused_with_what_there_is(speed: Path, tmp_path: Path) -> None:
    done = plot("scalling", speed, "--output", tmp_path / "x.png")
    assert done.exit_code == 2
    assert "There is no chart named 'scalling'. Did you mean scaling?" in done.stderr
    done = plot("scaling", speed, "--output", tmp_path / "x.gif")
    assert done.exit_code == 2
    assert "give a name that ends in .png, .pdf, .svg" in done.stderr


def test_a_picture_that_cannot_be_written_is_one_sentence(speed: Path, tmp_path: Path) -> None:
    done = plot("scaling", speed, "--output", tmp_path / "absent" / "x.png")
    assert done.exit_code == 2
    assert "there is no folder" in done.stderr


def test_the_output_and_a_file_are_asked_for(speed: Path, tmp_path: Path) -> None:
    assert "--output" in plot("scaling", speed).stderr
    for chart in ("scaling", "tradeoff", "roofline", "latency", "memory"):
        assert f"The chart {chart} needs RESULTS" in plot(chart, "-o", tmp_path / "x.png").stderr


def test_a_folder_is_drawn_and_the_front_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    rows = [{"model": "deit_ti16", "macs": 1e9, "status": "ok"}, {"model": "swin_t", "macs": 4e9, "status": "ok"}]
    (folder / "results.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    # The same rows without samples; were it read too, it would fail.
    (folder / "results.csv").write_text("model,macs\nx,many\n")
    done = plot("tradeoff", folder, "-o", tmp_path / "x.png", "--color", "model", "--size", "macs")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    assert "Pareto front" in done.stderr
    assert "Swin paper (arXiv 2103.14030) Table 1" in done.stderr


def test_a_sign_that_the_font_lacks_is_a_box_and_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("model,macs,top1,latency_median_ms\n模型,1,50,3\n", encoding="utf-8")
    for chart in ("tradeoff", "latency"):
        done = plot(chart, path, "-o", tmp_path / "x.png")
        assert done.exit_code == 0, done.stderr
        assert "Glyph" not in done.stderr


def test_the_papers_figure_5_needs_no_results(tmp_path: Path) -> None:
    done = plot("fig5", "--output", tmp_path / "fig5.png")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "fig5.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("chart", "option"),
    [("scaling", "--y"), ("latency", "--x"), ("memory", "--size"), ("fig5", "--color")],
)
def test_an_option_that_a_chart_does_not_take_is_refused(chart: str, option: str, speed: Path, tmp_path: Path) -> None:
    done = plot(chart, speed, option, "macs", "-o", tmp_path / "x.png")
    assert done.exit_code == 2
    assert f"The chart {chart} takes no {option}: leave it out." in done.stderr
    assert not (tmp_path / "x.png").exists()


def test_a_baseline_in_the_folder_is_not_compared_with_itself(tmp_path: Path) -> None:
    """At first its own rows stood on both sides, so that what the other file lacks was unchanged."""
    row: dict[str, Any] = {"model": "vit_l16", "input_shape": (3, 224, 224), "status": "ok"}
    written = {
        "base": [row | {"macs": 100}, row | {"model": "vit_s16", "macs": 10}],
        "head": [row | {"macs": 110}],
    }
    for name, rows in written.items():
        (tmp_path / f"{name}.json").write_text(json_report.render(Table(rows=rows, columns=())))
    page = tmp_path / "page.html"
    done = CliRunner().invoke(
        app, ["report", str(tmp_path), "--baseline", str(tmp_path / "base.json"), "-o", str(page)]
    )
    assert done.exit_code == 0, done.stderr
    assert "1 regressed from" in page.read_text()
    assert "1 missing" in page.read_text()
