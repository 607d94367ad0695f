"""`vitbench flops` and `vitbench verify`: what a user types, sees and gets wrong."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vitbench import bench, published, results
from vitbench.cli import app
from vitbench.errors import CannotWrite


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def rows(result: Any) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, list)
    return found


def test_swin_b_is_right_to_the_digit() -> None:
    """Parameters: the official state dict. MACs: the sum over stages, worked out here from the paper's section 3.3.

    A block of width C on h x w tokens, windows of M x M: 4hwC^2 (projections) + 2 M^2 hw C (attention) + 8hwC^2 (MLP).
    """
    macs = 56 * 56 * 48 * 128
    for depth, side, width in ((2, 56, 128), (2, 28, 256), (18, 14, 512), (2, 7, 1024)):
        tokens = side * side
        macs += depth * (12 * tokens * width**2 + 2 * 49 * tokens * width)
        if side > 7:
            macs += (tokens // 4) * (4 * width) * (2 * width)
    macs += 1024 * 1000
    (row,) = rows(run("flops", "swin_b", "--format", "json"))
    assert row["params"] == 87_768_224
    assert row["macs"] == macs == 15_430_946_816
    assert row["flops"] == 2 * macs
    assert row["input_shape"] == [3, 224, 224]
    assert row["batch_size"] == 1
    assert row["status"] == "ok"
    assert row["published_macs"] == 15.4e9
    assert row["environment_torch"]
    text = run("flops", "swin_b").stdout
    assert "15,430,946,816" in text
    assert "87,768,224" in text
    assert "2 x MACs" in text


@pytest.mark.parametrize(
    ("arguments", "macs_G"),
    [
        # Measured elsewhere, with attention written out as matrix products; to one in the last digit given.
        (["vit_b16"], 17.56),
        (["swin_b", "--img-size", "384"], 47.08),
        (["vit_h14"], 167.29),
        (["deit_b16_dist"], 17.66),
        (["coatnet_0_dwstride"], 4.55),
        (["pvt_v2_b2_li"], 3.89),
        (["vit_l16", "--img-size", "384"], 191.07),
    ],
)
def test_counts_of_others(arguments: list[str], macs_G: float) -> None:
    (row,) = rows(run("flops", *arguments, "--format", "json"))
    macs = row["macs"]
    assert isinstance(macs, int)
    assert abs(macs / 1e9 - macs_G) < 0.01


def test_a_batch_multiplies_what_depends_on_it() -> None:
    one, many = (rows(run("flops", "swin_t", "--batch-size", size, "--format", "json"))[0] for size in ("1", "7"))
    assert many["macs"] == 7 * one["macs"]  # type: ignore[operator]  # numbers of a JSON file
    assert many["params"] == one["params"]
    assert many["macs_difference"] == one["macs_difference"]


def test_globs_families_and_names_come_once_each_in_order() -> None:
    names = [row["model"] for row in rows(run("flops", "deit_ti*", "regnety_16gf", "--family", "regnet", "-f", "json"))]
    assert names == ["deit_ti16", "deit_ti16_dist", "regnety_16gf"]
    names = [row["model"] for row in rows(run("flops", "--timm", "resnet1[48]*", "-f", "json"))]
    assert names == ["resnet14t", "resnet18", "resnet18d"]


@pytest.mark.parametrize(("by", "column"), [("module", "module"), ("operator", "operator")])
def test_a_breakdown_sums_to_the_total(by: str, column: str) -> None:
    (whole,) = rows(run("flops", "swin_t", "--format", "json"))
    parts = rows(run("flops", "swin_t", "--by", by, "--format", "json"))
    assert len({part[column] for part in parts}) == len(parts) > 3
    for name in ("macs", "flops", "activations", "uncounted_elements"):
        assert sum(part[name] for part in parts) == whole[name]  # type: ignore[misc]  # numbers of a JSON file
    top = rows(run("flops", "swin_t", "--by", "module", "--depth", "1", "--format", "json"))
    assert [part["module"] for part in top] == ["patch_embed", "layers", "norm", "head"]
    assert sum(part["params"] for part in top) == whole["params"]  # type: ignore[misc]  # numbers of a JSON file


def test_both_counters_side_by_side() -> None:
    (row,) = rows(run("flops", "deit_ti16", "--counter", "both", "--format", "json"))
    assert row["macs"] == row["macs_fvcore"]
    assert row["macs_disagreement"] == 0
    (alone,) = rows(run("flops", "deit_ti16", "--counter", "fvcore", "--format", "json"))
    assert alone["macs"] == row["macs"]
    assert alone["activations"] is None
    assert "Disagree" in run("flops", "deit_ti16", "--counter", "both").stdout


def test_a_users_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_net_for_tests.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))\n"
    )
    monkeypatch.chdir(tmp_path)
    (row,) = rows(run("flops", "my_net_for_tests:net", "--input", "3x2x2", "--format", "json"))
    assert (row["params"], row["macs"], row["input_shape"]) == (65, 60, [3, 2, 2])
    result = run("flops", "my_net_for_tests:net")
    assert result.exit_code == 2
    assert "give it with --input" in result.stderr
    result = run("flops", "my_net_for_tests:net", "--input", "3x9x9")
    assert result.exit_code == 2
    assert "cannot take input 3x9x9" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["swim_b"], "Did you mean swin_b"),
        (["zzz*"], "No model of the catalog matches 'zzz*'"),
        (["--timm", "zzz*"], "No model of timm matches 'zzz*'"),
        (["--family", "swim"], "Did you mean swin"),
        ([], "Name at least one model"),
        (["swin_b", "--img-size", "225"], "patches of 4x4 do not tile them"),
        (["swin_b", "--img-size", "0"], "above zero"),
        (["swin_b", "--img-size=-5"], "above zero"),
        (["swin_b", "--img-size", "1x2x3"], "is not a size"),
        (["swin_b", "--img-size", "big"], "above zero"),
        (["swin_b", "--batch-size", "0"], "Invalid value for '--batch-size'"),
        (["swin_b", "--num-frames", "8"], "takes images, not clips"),
        (["swin_b", "--depth", "2"], "--depth goes with --by module"),
        (["swin_b", "--by", "module", "--counter", "fvcore"], "--by needs our own counter"),
        (["swin_b", "--output", "/proc/x.csv"], "Cannot write to the folder /proc"),
        (["swin_b", "--output", "/no/such/folder/x.csv"], "there is no folder"),
        (["no.such.module:net"], "Cannot import 'no.such.module'"),
        (["json:dumps", "--input", "3x2x2"], "cannot be built"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments: list[str], sentence: str) -> None:
    result = run("flops", *arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr


def test_one_bad_model_among_many_costs_one_row() -> None:
    result = run("flops", "deit_ti16", "swin_b", "swim_b", "--img-size", "112", "--format", "json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert [row["status"] for row in found] == ["ok", "ok", "failed"]
    assert "Did you mean swin_b" in found[2]["note"]
    assert found[2]["macs"] is None
    assert "swim_b: failed: " in run("flops", "deit_ti16", "swim_b").stdout


def test_many_models_are_shared_out_to_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "_WORTH_PROCESSES", 2)
    alone = rows(run("flops", "deit_ti16", "--format", "json"))
    path = tmp_path / "flops.csv"
    result = run("flops", "deit_ti16", "swin_t", "swim_b", "--output", str(path))
    assert result.exit_code == 3
    assert "Wrote 3 rows" in result.stderr
    found = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["model"] for row in found] == ["deit_ti16", "swin_t", "swim_b"]
    assert found[0]["macs"] == str(alone[0]["macs"])


def test_rows_that_cannot_be_written_go_to_the_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(path: Path, text: str) -> None:
        raise CannotWrite(f"Cannot write {path}: No space left on device.")

    monkeypatch.setattr(results, "write", full)
    result = run("flops", "deit_ti16", "--output", str(tmp_path / "flops.csv"))
    assert result.exit_code == 2
    assert "No space left" in result.stderr
    assert "deit_ti16" in result.stdout


def test_an_interrupt_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bench.count_one

    def interrupted(request: bench.Request) -> object:
        if request.name == "swin_t":
            raise KeyboardInterrupt
        return whole(request)

    monkeypatch.setattr(bench, "count_one", interrupted)
    result = run("flops", "deit_ti16", "swin_t", "swin_s", "--format", "json")
    assert result.exit_code == 130
    assert [row["model"] for row in json.loads(result.stdout)] == ["deit_ti16"]


def test_verify_agrees_or_says_why() -> None:
    result = run("verify", "deit_*", "swin_t", "pvt_v2_b0", "--format", "json")
    assert result.exit_code == 0, result.stdout
    found = json.loads(result.stdout)
    assert {row["verdict"] for row in found} <= {"agrees", "explained"}
    assert all(row["reason"] for row in found if row["verdict"] == "explained")
    assert any(row["published_macs"] == 4.5e9 for row in found if row["model"] == "swin_t")


def test_verify_fails_where_no_reason_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    def off(ids: tuple[str, ...], shape: tuple[int, ...] | None = None) -> tuple[published.Figure, ...]:
        figures = [figure for figure in published.figures() if figure.variant in ids and figure.macs]
        return tuple(replace(figure, flops_G="9.99", reason="") for figure in figures[:1])

    monkeypatch.setattr(published, "find", off)
    result = run("verify", "deit_ti16")
    assert result.exit_code == 1
    assert "differs" in result.stdout


def test_a_model_that_could_not_be_counted_shows_the_published_figure_alone() -> None:
    from vitbench.cli.count import _published

    assert _published("macs")({"published_macs": 4.5e9, "macs_difference": None}) == "4.5 G"
    assert _published("macs")({"published_macs": 4.5e9, "macs_difference": 0.01}) == "4.5 G (+1.00 %)"
    assert _published("macs")({"published_macs": None, "macs_difference": None}) == ""


def test_verify_of_what_nobody_published() -> None:
    result = run("verify", "regnety_16gf")
    assert result.exit_code == 2
    assert "Nobody published figures of regnety_16gf" in result.stderr
