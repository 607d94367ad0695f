"""The page of results: what it finds, says, shows and leaves out. How it behaves in a browser: test_page_in_browser.py."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vitbench import findings, page
from vitbench.analyses import ANALYSES
from vitbench.changes import Change, Comparison
from vitbench.cli import app
from vitbench.drawing import offline
from vitbench.errors import BadInput

COUNTED = {"batch_size": 1, "params_trainable": 1, "flops": 2, "status": "ok", "note": ""}
TIMED = {
    "batch_size_asked": "1",
    "device": "cpu",
    "dtype": "fp32",
    "first_call_ms": 1.0,
    "samples": 9,
    "warmup": 1,
    "repeats": 1,
    "clock": "host",
    "peak_flops_per_s": 1e9,
    "other_cores": 0.0,
    "quiet": True,
    "warnings": [],
    "samples_ms": [[1.0]],
    "status": "ok",
    "note": "",
}
# The smallest PNG: one pixel.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def counted(model: str, side: int = 224, **values: Any) -> dict[str, Any]:
    return {"model": model, "input_shape": [3, side, side], "params": 10**6, "macs": 10**9} | COUNTED | values


def timed(model: str, side: int = 224, *, per_s: float, batch: int = 1, **values: Any) -> dict[str, Any]:
    of = {"model": model, "input_shape": [3, side, side], "batch_size": batch}
    return of | TIMED | {"throughput_per_s": per_s, "latency_median_ms": 1000 * batch / per_s} | values


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def rendered(*paths: Path, **options: Any) -> str:
    return page.render(page.find(paths), **options)


def section(html: str, id: str) -> str:
    found = re.search(rf'<section id="{id}".*?</section>', html, re.DOTALL)
    return re.sub(r"\s+", " ", found[0]) if found else ""


def data(html: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(found)


def cells(html: str, number: int = 1) -> list[list[str]]:
    body = html.split("<tbody>")[number].partition("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)] for row in rows]


def heads(html: str, number: int = 1) -> list[str]:
    return re.findall(r'<button type="button">(.*?)</button>', html.split("<thead>")[number].partition("</thead>")[0])


# --- finding ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_searched_and_json_lines_are_read_instead_of_the_csv_beside_them(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "results.csv").write_text("model\na\n")
    (tmp_path / "sweep" / "results.jsonl").write_text('{"model": "b"}\n')
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.csv").write_text("model\nc\n")
    (tmp_path / "picture.PNG").write_bytes(PIXEL)
    (tmp_path / "notes.md").write_text("no result")
    found = page.find([tmp_path])
    assert {path.name: rows[0]["model"] for path, rows in found.files.items()} == {"results.jsonl": "b"}
    assert [path.name for path in found.pictures] == ["picture.PNG"]


def test_of_files_with_one_stem_the_fullest_is_read(tmp_path: Path) -> None:
    """As compare and plot do; at first the rows of both were counted."""
    written(tmp_path / "a.json", counted("a"))
    (tmp_path / "a.CSV").write_text("model\nb\n")
    assert [path.name for path in page.find([tmp_path]).files] == ["a.json"]


def test_a_row_keeps_its_own_counts_beside_those_of_another_version(tmp_path: Path) -> None:
    """At first every row of a model had the counts of the last file."""
    written(tmp_path / "a.json", counted("a", macs=10))
    written(tmp_path / "b.json", counted("a", macs=20))
    written(tmp_path / "c.json", timed("a", per_s=5.0), counted("b", macs=7))
    points = [point["values"] for point in data(rendered(tmp_path))["points"]]
    assert sorted(values.get("macs_per_input", 0) for values in points) == [0, 7, 10, 20]


def test_the_picture_beside_a_file_named_comes_with_it(tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", counted("a"))
    (tmp_path / "a.png").write_bytes(PIXEL)
    (tmp_path / "other.png").write_bytes(PIXEL)
    assert page.find([file]).pictures == [tmp_path / "a.png"]


def test_a_damaged_file_of_a_folder_is_left_out_and_said_so_one_that_is_named_is_an_error(tmp_path: Path) -> None:
    written(tmp_path / "good.json", counted("a"))
    (tmp_path / "bad.json").write_text("[1, }")
    assert "bad.json" in section(rendered(tmp_path), "summary")
    with pytest.raises(BadInput, match=r"bad\.json is not JSON"):
        page.find([tmp_path / "bad.json"])
    with pytest.raises(BadInput, match="no such|No such"):
        page.find([tmp_path / "nowhere.csv"])


def test_an_empty_folder_has_no_results(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="There are no results in"):
        page.find([tmp_path])


# --- summary ---------------------------------------------------------------------------------------------------------


def test_the_summary_counts_rows_and_names_the_best_and_the_front(tmp_path: Path) -> None:
    file = written(
        tmp_path / "a.json",
        counted("small", macs=10**9),
        counted("large", macs=4 * 10**9, params=2 * 10**6),
        counted("wasteful", macs=5 * 10**9, params=3 * 10**6),
        timed("small", per_s=100),
        timed("large", per_s=200),
        timed("wasteful", per_s=50),
        timed("broken", per_s=1, status="failed", throughput_per_s=None, latency_median_ms=None),
    )
    summary = section(rendered(file), "summary")
    assert "7 in 1 file" in summary
    assert "1 row failed" in summary
    assert "<dt>Inputs per second, highest</dt><dd>large: 200.0/s</dd>" in summary
    assert "<dt>MACs of one input, lowest</dt><dd>small: 1.000 G</dd>" in summary
    # Nobody is faster than large; small costs less; wasteful is beaten by both.
    assert '<ol class="front"><li>small</li><li>large</li></ol>' in summary


def test_rows_of_a_model_that_lie_at_one_point_are_once_on_the_front(tmp_path: Path) -> None:
    file = written(
        tmp_path / "a.json",
        counted("swin_t", macs=4 * 10**9),
        counted("swin_b", macs=15 * 10**9),
        *(timed(model, per_s=1, mode=mode) for model in ("swin_t", "swin_b") for mode in ("infer", "train")),
    )
    # Top-1 over MACs: 81.3 and 83.5, Swin's Table 1 (a); the list says where they are from.
    summary = section(rendered(file), "summary")
    said = re.findall(r"<li>(.*?)</li>", summary)
    assert [re.sub(r"(; Swin).*", r"\1", line) for line in said] == [
        "swin_t: 81.30, trained on IN-1k; Swin",
        "swin_b: 83.50, trained on IN-1k; Swin",
    ]


def test_rows_that_have_no_result_stand_first(tmp_path: Path) -> None:
    row = {"model": "a", "input_shape": [3, 8, 8], "status": "out_of_memory", "note": "with batch 1"}
    html = rendered(written(tmp_path / "a.json", counted("b"), row))
    assert "1 row out of memory." in html
    assert cells(html) == [["a", "out_of_memory", "with batch 1"]]


# --- plots -----------------------------------------------------------------------------------------------------------


def test_counts_are_joined_to_times_of_the_same_model_at_the_same_input_by_the_input(tmp_path: Path) -> None:
    file = written(
        tmp_path / "a.json",
        counted("m", macs=8 * 10**9, batch_size=2),
        counted("m", side=384, macs=9 * 10**9),
        timed("m", per_s=100, batch=8),
        timed("n", per_s=100),
    )
    found = {point["label"]: point["values"] for point in data(rendered(file))["points"]}
    assert found["m, 3x224x224, batch 2"]["macs_per_input"] == 4e9
    timed_ones = [values for values in found.values() if "throughput_per_s" in values]
    assert [values.get("macs_per_input") for values in timed_ones] == [4e9, None]


def test_published_accuracy_is_that_of_the_input(tmp_path: Path) -> None:
    html = rendered(written(tmp_path / "a.json", counted("swin_b"), counted("vit_demo", side=112)))
    points = {point["label"]: point["values"] for point in data(html)["points"]}
    assert points["swin_b"]["top1"] == 83.5  # Swin's Table 1 (a), at 224 px
    assert "top1" not in points["vit_demo"]


def test_a_top1_of_more_data_than_imagenet_1k_is_marked_and_says_its_data_and_source(tmp_path: Path) -> None:
    file = written(
        tmp_path / "a.json",
        counted("swin_b"),
        counted("efficientnet_l2", side=800, macs=10**12),
        counted("mine", top1=50.0),
    )
    html = rendered(file)
    points = {point["label"]: point for point in data(html)["points"]}
    assert {label: point["more_data"] for label, point in points.items()} == {
        "swin_b": False,
        "efficientnet_l2": True,
        "mine": False,
    }
    # mmpretrain's configs/efficientnet/metafile.yml, a line of published.csv.
    assert points["efficientnet_l2"]["texts"]["top1"] == (
        "88.33, trained on JFT-300M unlabeled + IN-1k; open-mmlab/mmpretrain configs/efficientnet/metafile.yml"
    )
    assert points["mine"]["texts"]["top1"] == "50.00"
    assert "hollow marks: of training on more data" in section(html, "tradeoff")
    assert "trained on JFT" in section(html, "summary").partition("<h3>Pareto")[0]


def test_columns_that_an_axis_needs_are_enough_for_a_point(tmp_path: Path) -> None:
    path = tmp_path / "small.csv"
    path.write_text(
        "model,input_shape,batch_size,throughput_per_s,latency_median_ms\nswin_t,3x224x224,1,10,100\nswin_b,3x224x224,1,5,200\n"
    )
    points = {point["label"]: point["values"] for point in data(rendered(path))["points"]}
    assert (points["swin_b"]["throughput_per_s"], points["swin_b"]["top1"]) == (5, 83.5)
    # No input, and the batch as it is by default: the sums of a model's own table.
    path.write_text("model,macs,top1\na,1000000000,70\nb,2000000000,80\n")
    points = {point["label"]: point["values"] for point in data(rendered(path))["points"]}
    assert points == {
        "a": {"macs_per_input": 10**9, "top1": 70, "batch_size": 1},
        "b": {"macs_per_input": 2 * 10**9, "top1": 80, "batch_size": 1},
    }


def test_rows_that_cannot_be_drawn_are_told(tmp_path: Path) -> None:
    path = tmp_path / "small.csv"
    path.write_text("model,macs,top1\na,1000000000,70\nb,2G,80\n")
    summary = section(rendered(path), "summary")
    assert re.search(r"1 row cannot be drawn. .*small.csv, line 3.*macs", summary)


def test_parts_of_a_model_and_rows_of_analyses_are_no_points(tmp_path: Path) -> None:
    part = {"model": "swin_b", "input_shape": [3, 224, 224], "module": "head", "params": 1, "macs": 1, "share": 0.1}
    head = {"model": "swin_b", "input_shape": [3, 224, 224], "layer": "0", "head": 1, "entropy_nats": 1.0}
    html = rendered(written(tmp_path / "a.json", part, head, counted("swin_b"), counted("swin_t", macs=1)))
    assert [point["label"] for point in data(html)["points"]] == ["swin_b", "swin_t"]


def test_lines_join_points_that_differ_in_the_axis_alone(tmp_path: Path) -> None:
    file = written(
        tmp_path / "a.json",
        *(timed("m", side, per_s=10, batch=batch) for side in (64, 128) for batch in (1, 8)),
        timed("m", 256, per_s=10, dtype="bf16"),
    )
    found = data(rendered(file))
    for x, other in (("side_px", "batch_size"), ("batch_size", "side_px")):
        lines = found["lines"][x]
        assert [len(line["points"]) for line in lines] == [2, 2]
        for line in lines:
            assert len({found["points"][place]["values"][other] for place in line["points"]}) == 1
    assert {line["name"] for line in found["lines"]["side_px"]} == {"m, batch_size 1", "m, batch_size 8"}


def test_without_anything_to_plot_there_is_no_plot_and_no_library(tmp_path: Path) -> None:
    html = rendered(written(tmp_path / "a.json", counted("alone")))
    assert "Plotly" not in html
    assert len(html) < 50_000


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_says_what_it_shows_by_the_rows_beside_it(tmp_path: Path) -> None:
    rows = [
        {
            "model": "vit_demo",
            "input_shape": [3, 112, 112],
            "weights": "pretrained",
            "source": "photos",
            "layer": "blocks.0",
            "head": head,
            "entropy_nats": 1.5,
            "entropy_share": 0.5,
            "entropy_placed_nats": 1.5,
            "uniform_nats": 3.0,
            "sem_nats": 0.1,
            "status": "ok",
        }
        for head in range(2)
    ]
    written(tmp_path / "e.json", *rows)
    (tmp_path / "e.png").write_bytes(PIXEL)
    (tmp_path / "alone.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    pictures = section(rendered(tmp_path), "pictures")
    assert 'alt="attn-entropy of vit_demo"' in pictures
    summary = next(entry.summary for entry in ANALYSES if entry.name == "attn-entropy")
    assert f"attn-entropy, {summary}: vit_demo, 3x112x112, pretrained, photos." in pictures
    assert "drawn from the 2 rows beside it" in pictures
    assert f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}" in pictures
    assert 'alt="alone"' in pictures
    assert "no result file lies beside it" in pictures


def test_a_picture_that_is_too_large_is_named_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_PICTURE_BYTES", len(PIXEL))
    monkeypatch.setattr(page, "MOST_BYTES", 2 * len(PIXEL))
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(PIXEL)
    (tmp_path / "d.png").write_bytes(PIXEL + b"\0")
    html = rendered(tmp_path)
    assert html.count("<img") == 2
    summary = section(html, "summary")
    assert "c.png (70 B) is not shown" in summary
    assert "d.png (71 B) is not shown" in summary


# --- tables ----------------------------------------------------------------------------------------------------------


def test_each_kind_of_row_has_a_table_with_what_its_rows_have(tmp_path: Path) -> None:
    file = written(
        tmp_path / "a.json",
        counted("b", published_params=1.05e6, params_difference=-0.05),
        counted("a"),
        timed("a", per_s=9.5),
    )
    html = rendered(file)
    assert re.findall(r"<h3 id=.*?>(.*?)</h3>", html) == ["flops (2)", "throughput (1)"]
    assert heads(html)[0] == "Model"
    first = dict(zip(heads(html), cells(html)[0], strict=True))
    assert first["Params"] == "1.000 M"
    assert first["Published"] == "1.05 M"  # as printed, without digits that it has not
    assert first["Difference"] == "-5.00 %"
    # What is the same in all rows is said once; what nobody has, and lists, not at all.
    assert "Activations" not in heads(html)
    assert "In all rows: Input 3x224x224; Batch 1;" in html
    assert "Samples" not in html or "samples_ms" not in html


def test_text_of_csv_is_shown_and_sorted_as_the_numbers_it_means(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "model,input_shape,params,params_trainable,flops\na,3x8x8,9000000,9000000,1\nb,3x8x8,10000000,1,1\n"
    )
    html = rendered(path)
    assert [row[1] for row in cells(html)] == ["9.000 M", "10.00 M"]
    assert 'data-v="9000000"' in html


def test_a_file_of_another_kind_has_a_table_of_all_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("what,time_ratio,why\na,0.5,x\nb,0.25,y\n")
    html = rendered(path)
    assert heads(html) == ["What", "Time ratio", "Why"]
    assert cells(html) == [["a", "50.00 %", "x"], ["b", "25.00 %", "y"]]
    assert "other.csv (2)" in html


def test_rows_beyond_a_limit_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "MOST_ROWS", 2)
    html = rendered(written(tmp_path / "a.json", *(counted(name) for name in "abc")))
    assert len(cells(html)) == 2
    assert "The first 2 of 3 rows." in html


def test_every_record_tells_its_rows_and_those_named_are_there() -> None:
    """Else its rows would stand in a table without headings."""
    assert [name for name, columns in page._own().items() if not columns] == []
    assert {*page._COMMANDS, *page._BESIDE} <= {record.__name__ for record in findings.RECORDS}


# --- environment, commands, changes ----------------------------------------------------------------------------------


def test_environments_that_differ_are_all_named(tmp_path: Path) -> None:
    rows = [
        counted(name, environment_torch=torch) for name, torch in (("a", "2.14.0"), ("b", "2.15.0"), ("c", "2.15.0"))
    ]
    environment = section(rendered(written(tmp_path / "a.json", *rows)), "environment")
    assert "<dt>torch</dt><dd>2.15.0 (2 rows); 2.14.0 (1 row)</dd>" in environment


def test_commands_are_those_that_the_rows_tell_and_nothing_is_made_up(tmp_path: Path) -> None:
    typed = "vitbench bench 'a b' --threads 2 --output t.json"
    written(tmp_path / "t.json", *(timed(name, per_s=1, environment_command=typed) for name in "ab"))
    written(tmp_path / "f.json", counted("a"))
    html = rendered(tmp_path)
    assert re.findall(r"<code>(.*?)\n</code>", html, re.DOTALL) == [
        "vitbench bench &#39;a b&#39; --threads 2 --output t.json"
    ]
    assert "<dt>Command</dt>" not in html
    assert 'id="commands"' not in rendered(tmp_path / "f.json")


def test_a_page_of_pictures_has_no_section_of_tables(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PIXEL)
    assert "Tables" not in rendered(tmp_path)


def test_changes_since_a_baseline_are_shown(tmp_path: Path) -> None:
    change = Change(
        setting={"model": "a"}, column="macs", heading="MACs", judged="exact", better="lower", verdict="regressed",
        before=1, after=2, ratio=2.0,
    )  # fmt: skip
    found = Comparison(base="old.json", head="new.json", changes=(change,))
    changes = section(rendered(written(tmp_path / "a.json", counted("a")), changes=found), "changes")
    assert "Changes since old.json" in changes
    assert "1 regressed from old.json to new.json." in changes
    assert "+100 %" in changes


# --- names from outside ----------------------------------------------------------------------------------------------

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "{{7*7}}{% raw %}",
    "\u202egnp.exe",
    "x" * 300,
    "\x1b[31mred\x00",
)


def test_no_name_becomes_markup_or_ends_the_data(tmp_path: Path) -> None:
    rows = [timed(name, side, per_s=1 + side, device=name, note=name) for name in EVIL for side in (64, 128)]
    plain = rendered(written(tmp_path / "plain.json", *(timed(f"m{at}", per_s=1) for at in range(9))))
    html = rendered(written(tmp_path / "<img src=x onerror=alert(1)>.json", *rows))
    assert html.count("<script") == plain.count("<script")
    assert "<img" not in html
    assert "{{7*7}}" in html
    assert not set("\u202e\x1b\x00") & set(html)
    labels = {line["name"].partition(", device")[0] for line in data(html)["lines"]["side_px"]}
    assert labels == {*EVIL[:5], "gnp.exe", "x" * 300, "[31mred"}


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_says_so(tmp_path: Path) -> None:
    written(tmp_path / "a.json", counted("a"))
    output = tmp_path / "r.html"
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--output", str(output)])
    assert done.exit_code == 0, done.stderr
    assert re.fullmatch(rf"Wrote {re.escape(str(output))}: 1 row, 0 pictures, [\d.]+ KiB\.\n", done.stderr)
    assert output.read_text().startswith("<!doctype html>")


def test_a_page_needs_a_pages_name(tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", counted("a"))
    done = CliRunner().invoke(app, ["report", str(file), "--output", str(tmp_path / "r.pdf")])
    assert done.exit_code == 2
    assert "ends in .html" in done.stderr
