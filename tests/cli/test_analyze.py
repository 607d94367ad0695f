"""`vitbench attn-distance` and its sisters: what a user types, sees, gets in files, and gets wrong."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants as hub
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests import clips, tiny
from vitbench import analyze, build, results
from vitbench.analyses import ANALYSES
from vitbench.cli import analyze as commands
from vitbench.cli import app
from vitbench.drawing import pictures
from vitbench.errors import CannotWrite
from vitbench.inputs import images
from vitbench.records import AnalysisSetting, columns
from vitbench.running import device
from vitbench.units import size

PICTURES = 5
RANDOM = ("--weights", "random")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The limit is one of the process, and would be that of all tests after these.
    monkeypatch.setattr(device, "limit_memory", lambda: None)


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("album"), *(f"{number}.png" for number in range(PICTURES)))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video of twelve frames, and one of three, which are fewer than the model takes."""
    folder = tmp_path_factory.mktemp("videos")
    clips.encode(folder / "long.mp4", frames=12, size=(40, 32))
    clips.encode(folder / "short.mp4", frames=3, size=(40, 32))
    return folder


@pytest.fixture
def acts() -> Iterator[Callable[[Callable[[torch.Tensor], object]], None]]:
    """Puts what an `acting` model does before each pass."""
    yield lambda act: tiny.DOING.append(act)
    tiny.DOING.clear()


def filled(folder: Path, *names: str) -> Path:
    """Gives a folder with a small picture of each name, each another."""
    for seed, name in enumerate(names):
        coarse = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC).save(folder / name)
    return folder


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: str | Path) -> Any:
    """Runs a command that must end well."""
    done = run(*arguments)
    assert done.exit_code == 0, (done.stderr, done.exception)
    return done


def said(done: Any) -> str:
    """Gives what a command that failed said, in one line."""
    assert done.exit_code
    assert isinstance(done.exception, SystemExit), done.exception
    text = " ".join((done.stderr + done.stdout).replace("│", " ").split())
    assert "Traceback" not in text
    return text


def small(name: str, **options: Any) -> analyze.Subject:
    return analyze.subject(
        analyze.Ask(**{"model": f"tests.tiny:{name}", "weights": "random", "device": "cpu", **options})
    )


def looked(subject: analyze.Subject, found: images.Images, batch: int = 4) -> list[torch.Tensor]:
    return [one.tensor for one in found.batches(batch)]


def on_images(subject: analyze.Subject, album: Path) -> images.Images:
    return images.open_images(str(album), analyze.preprocessing(subject))


def finding(command: str, name: str, album: Path, **options: Any) -> Any:
    """What the function of an analysis finds by itself."""
    subject = small(name)
    module = ANALYSES.load(command)
    if command in analyze.OF_WEIGHTS:
        if command == "position-bias":
            options["input_size"] = (32, 32)
        return module.analyze(subject.model, **options)
    found = on_images(subject, album)
    if command == "attn-rollout":
        options["as_picture"] = found.preprocessing.as_picture
        options["names"] = [name for batch in found.batches(4) for name in batch.names]
    return module.analyze(subject.model, looked(subject, found), **options)


def assert_cell(cell: str | None, value: object) -> None:
    """Holds a cell of a file to the value that it was written from."""
    if value is None or value in ((), ""):
        assert cell is None
    elif isinstance(value, float):
        assert float(cell or "") == pytest.approx(value, rel=1e-4, abs=1e-6)
    elif isinstance(value, tuple) and isinstance(value[0], float):
        assert [float(one) for one in (cell or "").split(" ")] == pytest.approx(list(value), rel=1e-4, abs=1e-5)
    else:
        assert cell == (size(value) if isinstance(value, tuple) else str(value))


def assert_svg(path: Path) -> None:
    tree = ElementTree.fromstring(path.read_bytes())  # noqa: S314  # our own
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"


# Command, model, options of the command, and the same for the function.
EVERY: Mapping[str, tuple[str, list[str], dict[str, Any]]] = {
    "embedding-filters": ("vit", ["--components", "3", "--no-center"], {"components": 3, "center": False}),
    "posemb-similarity": ("vit", [], {}),
    "position-bias": ("swin", [], {}),
    "attn-distance": ("vit", [], {}),
    "attn-entropy": ("vit", [], {}),
    "attn-rollout": ("vit", [], {}),
    "token-similarity": ("deit", [], {}),
    "cka": ("vit", ["--blocks"], {"parts": False}),
    "receptive-field": ("vit", ["--channels", "2", "--layer", "blocks.1"], {"channels": 2, "names": ("blocks.1",)}),
    "feature-maps": ("vit", ["--layer", "blocks.1"], {"names": ("blocks.1",)}),
}


def test_there_is_a_command_for_each_analysis() -> None:
    assert set(EVERY) == set(ANALYSES.names)


@pytest.mark.parametrize("command", EVERY)
def test_a_command_writes_its_numbers_and_its_picture(command: str, album: Path, tmp_path: Path) -> None:
    name, typed, options = EVERY[command]
    with_images = command not in analyze.OF_WEIGHTS
    shown = album / "0.png" if command == "attn-rollout" else album  # a tile an image
    given = [*RANDOM, *typed, *(["--images", str(shown)] if with_images else [])]
    done = good(command, f"tests.tiny:{name}", *given, "--figure-format", "svg", "--output", "new/folder")
    stem = f"{command}-tests.tiny_{name}"
    folder = tmp_path / "new" / "folder"
    assert sorted(file.name for file in folder.iterdir()) == [f"{stem}.csv", f"{stem}.svg"]

    found = finding(command, name, shown, **options)
    rows = results.read(folder / f"{stem}.csv")
    setting = [item.name for item in fields(AnalysisSetting)]
    own = [item.name for item in fields(found.rows[0])]
    about = [name for name in rows[0] if name.startswith("environment_")]
    assert list(rows[0]) == [*setting, *own, "status", "note", *about]
    assert len(about) > 8
    assert {row["weights"] for row in rows} == {"random weights (seed 0)"}
    assert {row["status"] for row in rows} == {"ok"}
    for row, expected in zip(rows, found.rows, strict=True):
        for column in own:
            assert_cell(row[column], getattr(expected, column))
    inputs = 0 if not with_images else PICTURES if shown == album else 1
    assert {row["inputs"] for row in rows} == {str(inputs)}
    assert {row["source"] for row in rows} == {str(shown) if with_images else None}

    title = f"tests.tiny:{name} (random weights)"
    drawn = ANALYSES.load(command).draw({title: found})
    assert_svg(folder / f"{stem}.svg")
    assert (folder / f"{stem}.svg").read_bytes() == pictures.rendered(drawn, ".svg")
    first = ANALYSES.load(command).table({title: found}).columns[0]
    assert " ".join(first.heading.split()) in " ".join(done.stdout.split())
    assert f"Wrote new/folder/{stem}.csv and new/folder/{stem}.svg." in done.stderr
    found_there = f"{title}: {inputs} {'image' if inputs == 1 else 'images'} of {shown}"
    prepared = "resize 32 bicubic, centre crop 32x32, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"
    assert (f"{found_there}; {prepared}." in done.stderr) == with_images


@pytest.fixture(scope="module")
def whole(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """The files of one `vitbench analyze`, and what it said."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "limit_memory", lambda: None)
        yield folder, good("analyze", "tests.tiny:deit", *RANDOM, "--images", album, "--output", folder)


def test_analyze_runs_all_that_apply_and_says_why_the_others_do_not(whole: tuple[Path, Any]) -> None:
    folder, done = whole
    applying = [name for name in ANALYSES.names if name != "position-bias"]
    assert {file.name for file in folder.iterdir()} == {
        f"{name}-tests.tiny_deit.{ending}" for name in applying for ending in ("csv", "png")
    }
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip()]
    shown = {line[0]: line[1] for line in lines if line[0] in ANALYSES.names}
    assert list(shown) == list(ANALYSES.names)
    assert shown.pop("position-bias").startswith(
        "position-bias is not defined for tests.tiny:deit: no layer adds a bias"
    )
    for name, text in shown.items():
        assert text.strip() == f"{len(results.read(folder / f'{name}-tests.tiny_deit.csv'))} rows"


def test_pictures_are_pictures(whole: tuple[Path, Any]) -> None:
    folder, _ = whole
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 200
            assert len(np.unique(np.asarray(picture.convert("L")))) > 5, path


def test_a_command_again_makes_the_same_bytes(whole: tuple[Path, Any], album: Path, tmp_path: Path) -> None:
    """Attention, also beside other analyses; where others read it, what CKA reads is the same to rounding."""
    folder, _ = whole
    good("attn-distance", "tests.tiny:deit", *RANDOM, "--images", album, "--also", "entropy", "-o", "first")
    for output in ("first", "second"):
        good("cka", "tests.tiny:vit", *RANDOM, "--images", album, "-o", output)
    made = [*(tmp_path / "first").iterdir()]
    assert len(made) == 6
    for file in made:
        other = tmp_path / "second" if file.name.startswith("cka") else folder
        assert file.read_bytes() == (other / file.name).read_bytes()


def test_several_models_stand_side_by_side_in_one_file(album: Path) -> None:
    done = good("attn-distance", "tests.tiny:vit", "tests.tiny:deit", "tests.tiny:vit", *RANDOM, "--images", album)
    rows = results.read(Path("attn-distance-tests.tiny_vit+tests.tiny_deit.csv"))
    assert [row["model"] for row in rows] == ["tests.tiny:vit"] * 6 + ["tests.tiny:deit"] * 6
    assert done.stdout.count("tests.tiny:vit (random weights)") == 2  # a line a layer: named twice, it is one model
    assert done.stderr.count("5 images") == 2


def test_each_model_may_have_weights_of_its_own(album: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        torch.save(small("vit", seed=seed).model.state_dict(), f"{name}.pth")
    both = "attn-distance", "tests.tiny:vit", "tests.tiny:vit", "--images", album, "--device", "cpu"
    good(*both, "--weights", "a.pth", "--weights", "b.pth")
    rows = results.read(Path("attn-distance-tests.tiny_vit+tests.tiny_vit.csv"))
    assert [row["weights"] for row in rows] == ["file a.pth"] * 6 + ["file b.pth"] * 6
    first, second = rows[:6], rows[6:]
    assert all(one["distance_px"] != other["distance_px"] for one, other in zip(first, second, strict=True))
    text = said(run(*both, "--weights", "a.pth", "--weights", "b.pth", "--weights", "random"))
    assert "There are 3 --weights for 2 models: give one for all, or one for each in their order." in text


def test_what_is_replaced_is_said(album: Path) -> None:
    command = "attn-entropy", "tests.tiny:vit", *RANDOM, "--images", album
    assert "in the place of older ones" not in good(*command).stderr
    assert "attn-entropy-tests.tiny_vit.png, in the place of older ones." in good(*command).stderr


def test_clips_come_from_videos(videos: Path) -> None:
    options = ["--video", str(videos), "--num-frames", "8"]
    done = good("attn-distance", "tests.tiny:clips", *RANDOM, *options)
    (row, *_) = results.read(Path("attn-distance-tests.tiny_clips.csv"))
    assert (row["input_shape"], row["inputs"], row["query_grid"]) == ("3x8x32x32", "2", "4x2x2")
    assert float(row["distance_frames"]) > 0
    assert f"2 clips of {videos}; 8 frames spread evenly over the video, resize 32" in done.stderr
    assert f"Shorter than a clip, with the last frame repeated: {videos}/short.mp4." in done.stderr


@pytest.mark.parametrize("command", ["attn-rollout", "attn-distance", "attn-entropy", "posemb-similarity"])
@pytest.mark.parametrize("models", [["clips", "vit"], ["vit", "clips"]], ids=str)
def test_clips_and_images_may_share_a_figure(command: str, models: list[str], videos: Path, album: Path) -> None:
    names = [f"tests.tiny:{name}" for name in models]
    options = ["--video", str(videos), "--images", str(album / "0.png")]
    done = good(command, *names, *RANDOM, *(options if command.startswith("attn") else []))
    rows = results.read(Path(f"{command}-tests.tiny_{models[0]}+tests.tiny_{models[1]}.csv"))
    assert {row["model"] for row in rows} == {*names}
    assert "2 clips" in done.stderr or command == "posemb-similarity"
    assert "1 image of" in done.stderr or command == "posemb-similarity"


def test_a_terminal_has_a_bar_with_images_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    monkeypatch.setattr(commands, "Console", lambda **_: Console(file=drawn, force_terminal=True, width=100))
    batches = [images.Batch(torch.zeros(2, 3, 4, 4), ("a", "b"))] * 3
    taken = []
    for batch in commands._along(batches, 6):
        taken.append(batch)
        time.sleep(0.02)
    assert taken == batches
    assert "6/6" in drawn.getvalue()
    assert re.search(r"\d\.\d/s", drawn.getvalue())


# Options


def test_also_entropy_is_from_the_same_pass(
    album: Path, acts: Callable[[Callable[[torch.Tensor], object]], None]
) -> None:
    passes: list[int] = []
    acts(lambda x: passes.append(len(x)))
    good("attn-distance", "tests.tiny:acting", *RANDOM, "--images", album, "--also", "entropy", "-b", "5")
    assert passes == [PICTURES]
    assert results.read(Path("attn-entropy-tests.tiny_acting.csv"))[0]["entropy_nats"]


@pytest.mark.parametrize(
    ("command", "options", "drawn"),
    [
        ("attn-distance", ["--mode", "renorm"], {"mode": "renorm"}),
        ("attn-distance", ["--sorted"], {"by_head": True}),
        ("attn-rollout", ["--style", "heat"], {"style": "heat"}),
        ("attn-rollout", ["--style", "mask"], {"style": "mask"}),
    ],
    ids=str,
)
def test_options_of_pictures(command: str, options: list[str], drawn: Mapping[str, Any], tmp_path: Path) -> None:
    filled(tmp_path, "a.png")
    good(command, "tests.tiny:vit", *RANDOM, *options, "--images", "a.png", "--figure-format", "svg")
    module = ANALYSES.load(command)
    found = finding(command, "vit", Path("a.png"))
    title = "tests.tiny:vit (random weights)"
    made = Path(f"{command}-tests.tiny_vit.svg").read_bytes()
    assert made == pictures.rendered(module.draw({title: found}, **drawn), ".svg")
    assert made != pictures.rendered(module.draw({title: found}), ".svg")


def test_the_other_definition_of_the_receptive_field(album: Path) -> None:
    good("receptive-field", "tests.tiny:vit", *RANDOM, "--images", album, "--variant", "replknet")
    (row,) = results.read(Path("receptive-field-tests.tiny_vit.csv"))
    (expected,) = finding("receptive-field", "vit", album, variant="replknet").rows
    assert (row["variant"], row["layer"], row["images"]) == ("replknet", "blocks.1", str(PICTURES))
    assert_cell(row["values"], expected.values)
    good("receptive-field", "tests.tiny:vit", *RANDOM, "--images", album, "--limit", "2")
    assert {row["images"] for row in results.read(Path("receptive-field-tests.tiny_vit.csv"))} == {"2"}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_table_before_and_after_is_that_of_the_file(ending: str, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in small("vit", seed=7).model.state_dict().items()}
    path = tmp_path / f"trained{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    done = good("posemb-similarity", "tests.tiny:vit", "--weights", path, "--img-size", "64x48")
    rows = results.read(Path("posemb-similarity-tests.tiny_vit.csv"))
    assert {row["weights"] for row in rows} == {f"file trained{ending}"}
    assert {row["input_shape"] for row in rows} == {"3x64x48"}
    before, after = ([row for row in rows if row["version"] == version] for version in ("before", "after"))
    assert (len(before), len(after)) == (4 * 4, 8 * 6)
    assert {row["kernel"] for row in after} == {"resampled, bicubic with antialiasing"}
    resized = build.create_model("tests.tiny:vit", weights=path, img_size=(64, 48))
    tables = (small("vit", seed=7).model, resized)
    for shown, model in zip((before, after), tables, strict=True):
        for row, expected in zip(shown, ANALYSES.load("posemb-similarity").analyze(model).rows, strict=True):
            assert_cell(row["values"], expected.values)
    assert "4x4 positions before, 8x6 after: resampled, bicubic with antialiasing." in done.stdout


def test_limit_and_seed_choose_the_sample(album: Path) -> None:
    def chosen(*options: str) -> list[str | None]:
        good("attn-rollout", "tests.tiny:vit", *RANDOM, "--images", album, *options)
        return [row["name"] for row in results.read(Path("attn-rollout-tests.tiny_vit.csv"))]

    first = chosen("--limit", "1")
    assert first == chosen("--limit", "1", "--seed", "0")
    assert len(first) == 1
    assert any(chosen("--limit", "1", "--seed", seed) != first for seed in ("1", "2", "3"))


@pytest.mark.parametrize(
    "typed",
    [
        ["tests.tiny:vit", "--images", "a.png", "b.png", "c"],
        ["--images=a.png", "b.png", "c", "tests.tiny:vit"],
        ["--images", "a.png", "b.png", "tests.tiny:vit", "--images", "c"],
        ["--images", "a.png", "b.png", "-b", "2", "tests.tiny:vit", "--images", "c"],
    ],
    ids=str,
)
def test_images_may_be_what_a_shell_makes_of_a_pattern(typed: list[str], tmp_path: Path) -> None:
    filled(tmp_path, "a.png", "b.png")
    (tmp_path / "c").mkdir()
    filled(tmp_path / "c", "d.png")
    done = good("attn-entropy", *typed, *RANDOM)
    assert "3 images of a.png b.png c;" in done.stderr


def test_a_folder_with_the_name_of_a_model_is_the_model_behind_images(tmp_path: Path) -> None:
    filled(tmp_path, "a.png")
    (tmp_path / "vit_lite_2_4_32").mkdir()
    done = good("attn-entropy", "--images", "a.png", "vit_lite_2_4_32", *RANDOM)
    assert "vit_lite_2_4_32 (random weights): 1 image of a.png;" in done.stderr


def test_the_seed_is_that_of_random_weights_too() -> None:
    good("embedding-filters", "tests.tiny:vit", *RANDOM, "--seed", "3")
    (row, *_) = results.read(Path("embedding-filters-tests.tiny_vit.csv"))
    assert row["weights"] == "random weights (seed 3)"
    expected = ANALYSES.load("embedding-filters").analyze(small("vit", seed=3).model).rows[0]
    assert_cell(row["values"], expected.values)


def test_the_batch_size_changes_no_number(album: Path) -> None:
    found = []
    for batch in ("1", "5"):
        good("attn-distance", "tests.tiny:vit", *RANDOM, "--images", album, "--batch-size", batch)
        found.append(results.read(Path("attn-distance-tests.tiny_vit.csv")))
    assert [rows[0]["batch_size"] for rows in found] == ["1", "5"]
    for one, other in zip(*found, strict=True):
        for column in ("distance_px", "distance_paper_px", "sem_px", "prefix_mass"):
            assert float(one[column]) == pytest.approx(float(other[column]), abs=1e-5)


def test_auto_takes_what_memory_is_predicted_to_hold(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free", lambda _: 0)
    good("attn-entropy", "tests.tiny:vit", *RANDOM, "--images", album)
    assert results.read(Path("attn-entropy-tests.tiny_vit.csv"))[0]["batch_size"] == "1"


def test_dtype_input_and_device_reach_the_model(album: Path) -> None:
    options = ["--dtype", "bf16", "--input", "3x32x32", "--device", "cpu"]
    good("token-similarity", "tests.tiny:deit", *RANDOM, "--images", album, *options)
    assert results.read(Path("token-similarity-tests.tiny_deit.csv"))[0]["dtype"] == "bf16"
    good("attn-entropy", "tests.tiny:nameless", *RANDOM, "--images", album, *options)
    assert results.read(Path("attn-entropy-tests.tiny_nameless.csv"))[0]["input_shape"] == "3x32x32"


def test_another_input_of_a_model_of_the_catalog(album: Path) -> None:
    good("attn-entropy", "vit_lite_2_4_32", *RANDOM, "--images", album, "--input", "3x24x40", "--limit", "1")
    (row, *_) = results.read(Path("attn-entropy-vit_lite_2_4_32.csv"))
    assert (row["input_shape"], row["preprocessing"][:46]) == (
        "3x24x40",
        "resize to cover 24x40 bicubic, centre crop 24x",
    )


# Two models


def test_two_models_are_compared(album: Path) -> None:
    done = good("cka", "tests.tiny:vit", "tests.tiny:deit", *RANDOM, "--images", album, "--blocks")
    rows = results.read(Path("cka-tests.tiny_vit+tests.tiny_deit.csv"))
    assert {(row["model"], row["other_model"]) for row in rows} == {("tests.tiny:vit", "tests.tiny:deit")}
    assert {row["other_weights"] for row in rows} == {"random weights (seed 0)"}
    assert done.stderr.count("5 images") == 2
    first, second = small("vit"), small("deit")
    expected = ANALYSES.load("cka").analyze(
        first.model,
        looked(first, on_images(first, album)),
        second.model,
        looked(second, on_images(second, album)),
        parts=False,
    )
    for row, one in zip(rows, expected.rows, strict=True):
        for column, value in columns(one).items():
            assert_cell(row[column], value)


def test_a_model_may_be_compared_with_itself(tmp_path: Path) -> None:
    """Both titles are the same, and each has its own pass over the images, one of which is broken."""
    filled(tmp_path, *(f"{number}.png" for number in range(4)))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    done = good("cka", "tests.tiny:vit", "tests.tiny:vit", *RANDOM, "--images", ".", "--blocks", "-b", "4")
    rows = results.read(Path("cka-tests.tiny_vit+tests.tiny_vit.csv"))
    assert [float(row["cka"]) for row in rows if row["index_a"] == row["index_b"]] == pytest.approx([1, 1, 1])
    assert "Skipped 1 of 5 that could not be read: ./broken.png (not an image that Pillow can read)." in done.stderr


# Exit codes


def test_some_refused_is_3_and_all_refused_is_2(album: Path) -> None:
    done = run("token-similarity", "tests.tiny:vit", "tests.tiny:deit", *RANDOM, "--images", album)
    assert done.exit_code == 3
    assert "token-similarity is not defined for tests.tiny:vit: it has no distillation token. Try: cka." in said(done)
    assert {row["model"] for row in results.read(Path("token-similarity-tests.tiny_deit.csv"))} == {"tests.tiny:deit"}
    done = run("token-similarity", "tests.tiny:vit", *RANDOM, "--images", album, "-o", "none")
    assert done.exit_code == 2
    assert "it has no distillation token. Try: cka." in said(done)
    assert list(Path("none").iterdir()) == []


def test_what_other_models_gave_before_an_error_is_written(
    album: Path, acts: Callable[[Callable[[torch.Tensor], object]], None]
) -> None:
    def fail(_: torch.Tensor) -> None:
        raise ZeroDivisionError("deep inside")

    acts(fail)
    done = run("attn-entropy", "tests.tiny:vit", "tests.tiny:acting", *RANDOM, "--images", album, "-b", "5")
    assert done.exit_code == 2
    assert "tests.tiny:acting cannot take input 3x32x32: ZeroDivisionError: deep inside." in said(done)
    assert results.read(Path("attn-entropy-tests.tiny_vit.csv"))


def test_ctrl_c_writes_what_was_seen(album: Path, acts: Callable[[Callable[[torch.Tensor], object]], None]) -> None:
    passes = []

    def press(x: torch.Tensor) -> None:
        passes.append(x)
        if len(passes) == 1:
            signal.raise_signal(signal.SIGINT)

    acts(press)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = run("analyze", "tests.tiny:acting", *RANDOM, "--images", album, "-b", "2", "-o", "out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.exit_code == 130
    assert "interrupted" in said(done)
    rows = results.read(Path("out/attn-distance-tests.tiny_acting.csv"))
    assert {row["inputs"] for row in rows} == {"2"}
    assert Path("out/feature-maps-tests.tiny_acting.png").exists()
    assert not list(Path("out").glob("receptive-field*"))
    assert len(passes) == 1


SLEEPING = """
import pathlib, time
from tests import tiny

def act(x):
    act.passes += 1
    if act.passes == 2:
        pathlib.Path("second").touch()
        time.sleep(120)

act.passes = 0

def model():
    tiny.DOING.append(act)
    return tiny.acting()
"""


def test_ctrl_c_twice_ends_a_command_at_once(tmp_path: Path) -> None:
    """The first lets the batch end, which takes two minutes here."""
    filled(tmp_path, "a.png", "b.png")
    (tmp_path / "sleeping_for_tests.py").write_text(SLEEPING)
    root = Path(__file__).parent.parent.parent
    command = ["attn-distance", "sleeping_for_tests:model", *RANDOM, "--images", ".", "-b", "1", "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, "-m", "vitbench", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        # Whoever runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as looking:
        end = time.monotonic() + 60
        while not Path("second").exists() and looking.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        for _ in range(2):
            os.killpg(looking.pid, signal.SIGINT)
            time.sleep(0.5)
        _, error = looking.communicate(timeout=60)
    assert looking.returncode == 130, error
    assert "interrupted" in error
    assert "Traceback" not in error
    rows = results.read(Path("attn-distance-sleeping_for_tests_model.csv"))
    assert {row["inputs"] for row in rows} == {"1"}


# Mistakes


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("attn-distance vit_b61", "There is no model named 'vit_b61'. Did you mean"),
        ("attn-distance tests.tiny:vitt", "The module 'tests.tiny' has no 'vitt'"),
        ("attn-distance tests.tiny:vit tests.tiny:vitt", "The module 'tests.tiny' has no 'vitt'"),
        ("cka tests.tiny:vit vit_b61", "There is no model named 'vit_b61'"),
        ("attn-distance", "Missing argument 'MODEL...'"),
        ("attn-distnace tests.tiny:vit", "No such command 'attn-distnace'"),
        ("attn-distance tests.tiny:vit --also entropi", "Invalid value for '--also'"),
        ("attn-distance tests.tiny:vit --mode renom", "Invalid value for '--mode'"),
        ("attn-distance tests.tiny:vit --dtype fp64", "Invalid value for '--dtype'"),
        ("attn-distance tests.tiny:vit --figure-format gif", "Invalid value for '--figure-format'"),
        ("attn-rollout tests.tiny:vit --style oil", "Invalid value for '--style'"),
        ("receptive-field tests.tiny:vit --variant raguh", "Invalid value for '--variant'"),
        ("receptive-field tests.tiny:vit --channels 0", "Invalid value for '--channels'"),
        ("embedding-filters tests.tiny:vit --components 0", "Invalid value for '--components'"),
        ("attn-distance tests.tiny:vit --batch-size 0", "'0' is neither auto nor a whole number above zero"),
        ("attn-distance tests.tiny:vit -b many", "'many' is neither auto nor a whole number above zero"),
        ("attn-distance tests.tiny:vit --limit 0", "Invalid value for '--limit'"),
        ("attn-distance tests.tiny:vit --img-size 0", "is not whole numbers above zero"),
        ("attn-distance tests.tiny:vit --input 32", "channels x height x width"),
        ("attn-distance tests.tiny:vit --device gpu", "There is no device 'gpu'"),
        ("attn-distance vit_lite_2_4_32 --img-size 33", "Patches of 4 pixels do not tile a side of 33"),
        ("attn-distance vit_lite_2_4_32 --num-frames 8", "takes images, not clips"),
        ("attn-distance tests.tiny:vit", "tests.tiny:vit takes images: give them with --images DIR or --images FILE"),
        ("attn-distance tests.tiny:vit --video .", "tests.tiny:vit takes images: give them with --images"),
        ("attn-distance tests.tiny:clips --images .", "takes clips: give videos with --video FILE or --video DIR"),
        ("attn-distance tests.tiny:vit --images nowhere", "There is no nowhere; give a folder, image files, a tar"),
        ("attn-distance tests.tiny:vit --images empty", "There is no image in empty that Pillow reads"),
        ("attn-distance tests.tiny:clips --video empty", "There is no video in empty that PyAV reads"),
        ("attn-distance tests.tiny:vit --images broken", "Nothing of broken can be read: broken/a.png (not an image"),
        ("receptive-field tests.tiny:vit --images broken", "Nothing of broken can be read: broken/a.png (not an image"),
        ("analyze tests.tiny:vit --images broken", "Nothing of broken can be read: broken/a.png (not an image"),
        ("cka tests.tiny:vit tests.tiny:vit2 --images broken", "Nothing of broken can be read"),
        ("cka tests.tiny:vit --images good", "CKA needs batches of 4 images or more, and the largest had 2"),
        ("cka tests.tiny:vit tests.tiny:vit2 --images good", "CKA needs batches of 4 images or more"),
        ("cka tests.tiny:vit tests.tiny:clips --images good --video v.mp4", "tests.tiny:clips takes clips and"),
        ("attn-distance tests.tiny:nameless --images good", "does not say which input it takes; give it with --input"),
        ("attn-distance tests.tiny:vit --images good --input 3x40x40 -b 1", "cannot take input 3x40x40: "),
        ("feature-maps tests.tiny:vit --images good --layer x", "no map of a layer 'x'; it has embedding, blocks.0"),
        ("receptive-field tests.tiny:vit --images good --layer x", "no layer 'x'; its blocks are blocks.0"),
        ("receptive-field tests.tiny:vit --images good --variant replknet --channels 2", "replknet sums over all"),
        ("posemb-similarity tests.tiny:vit --img-size 64", "drawn anew at each size"),
        ("embedding-filters tests.tiny:vit --output broken/a.png", "Cannot make the folder broken/a.png: File exists"),
        (
            "embedding-filters tests.tiny:vit --output broken/a.png/b",
            "Cannot make the folder broken/a.png/b: Not a dir",
        ),
        ("embedding-filters tests.tiny:vit --output /proc/nowhere", "Cannot make the folder /proc/nowhere: No such"),
        ("embedding-filters tests.tiny:vit --output /proc", "Cannot write to the folder /proc"),
        ("analyze vit_b61 --images good --output never", "There is no model named 'vit_b61'"),
    ],
    ids=str,
)
def test_a_users_mistake_is_one_sentence(typed: str, expected: str, tmp_path: Path) -> None:
    for folder in ("empty", "broken", "good"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    filled(tmp_path / "good", "a.png", "b.png")
    if "v.mp4" in typed:
        clips.encode(tmp_path / "v.mp4", frames=4, size=(40, 32))
    done = run(*typed.split(), *RANDOM)
    assert done.exit_code == 2
    assert expected in said(done)
    assert not list(tmp_path.glob("*.csv"))
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("nowhere.pth", "There is no weights file nowhere.pth."),
        ("no weights", "Cannot tell how to read weights from no weights"),
        ("torn.pth", "torn.pth is truncated or no file of torch's"),
        ("torn.safetensors", "torn.safetensors is not a whole safetensors file"),
        ("another.pth", "another.pth does not fit VisionTransformer; missing: cls_token"),
    ],
)
def test_weights_that_cannot_be_had(weights: str, expected: str, tmp_path: Path) -> None:
    state = small("vit").model.state_dict()
    torch.save(state, tmp_path / "torn.pth")
    save_file(state, tmp_path / "torn.safetensors")
    for path in (tmp_path / "torn.pth", tmp_path / "torn.safetensors"):
        path.write_bytes(path.read_bytes()[:-1000])
    torch.save(small("swin").model.state_dict(), tmp_path / "another.pth")
    done = run("embedding-filters", "tests.tiny:vit", "--weights", weights)
    assert done.exit_code == 2
    assert expected in said(done)


def test_pretrained_weights_without_a_network_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "empty"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    begun = time.monotonic()
    done = run("embedding-filters", "deit_ti16")
    assert done.exit_code == 2
    text = said(done)
    assert "The pretrained weights of deit_ti16 are not in the cache" in text
    assert "give the file (--weights FILE), or take random ones (--weights random)" in text
    assert time.monotonic() - begun < 30


def test_what_cannot_be_read_is_skipped_counted_and_named(tmp_path: Path) -> None:
    """Receptive fields, which come last, look at 32 images; what is broken lies behind them."""
    filled(tmp_path, *(f"{number:02}.png" for number in range(33)))
    for number in range(7):
        (tmp_path / f"torn{number}.png").write_bytes((tmp_path / "00.png").read_bytes()[:60])
    done = good("analyze", "tests.tiny:convolutions", *RANDOM, "--images", ".", "-o", "out")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Skipped")]
    assert line.startswith("Skipped 7 of 40 that could not be read: ./torn0.png (")
    assert line.endswith("; and 2 more.")
    assert results.read(Path("out/feature-maps-tests.tiny_convolutions.csv"))[0]["inputs"] == "33"
    assert results.read(Path("out/receptive-field-tests.tiny_convolutions.csv"))[0]["inputs"] == "32"


# Disks


def full(path: Path, content: str | bytes) -> None:
    raise CannotWrite(f"Cannot write {path}: No space left on device.")


@pytest.mark.parametrize("command", ["attn-distance", "analyze", "cka"])
def test_where_nothing_can_be_written_the_tables_are_printed(
    command: str, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "write", full)
    models = ["tests.tiny:vit", *(["tests.tiny:vit2"] if command == "cka" else [])]
    done = run(command, *models, *RANDOM, "--images", album)
    assert done.exit_code == 2
    assert "No space left on device" in said(done)
    assert "Wrote" not in done.stderr
    for heading in {"attn-distance": ["Uniform"], "cka": ["Mean CKA"], "analyze": ["Uniform", "Mean CKA", "Dead"]}[
        command
    ]:
        assert heading in done.stdout


def test_a_picture_that_cannot_be_written_does_not_cost_the_numbers(
    album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = results.write
    monkeypatch.setattr(
        results, "write", lambda path, content: (full if path.suffix == ".png" else write)(path, content)
    )
    done = run("attn-distance", "tests.tiny:vit", *RANDOM, "--images", album, "--also", "entropy")
    assert done.exit_code == 2
    assert results.read(Path("attn-distance-tests.tiny_vit.csv"))
    assert results.read(Path("attn-entropy-tests.tiny_vit.csv"))
    assert "Uniform" in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_may_not_be_written_is_told_before_anything_is_computed(album: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    done = run("attn-distance", "tests.tiny:vit", *RANDOM, "--images", album, "--output", "locked")
    assert done.exit_code == 2
    assert "Cannot write to the folder locked" in said(done)


def test_memory_that_runs_out_says_what_helps(
    album: Path, acts: Callable[[Callable[[torch.Tensor], object]], None]
) -> None:
    def fail(_: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    acts(fail)
    done = run("attn-distance", "tests.tiny:acting", *RANDOM, "--images", album)
    assert done.exit_code == 2
    assert "Memory ran out with batches of 4: give a smaller --batch-size, or a smaller --img-size." in said(done)


# Names


HOSTILE = "$\\frac{<b>&\x1b[31m[red]"


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_hostile_names_of_models_and_files_harm_nothing(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, HOSTILE, tiny.vit, raising=False)
    filled(tmp_path, f"{HOSTILE}.png", "图像.png")
    (tmp_path / f"{HOSTILE}2.png").write_bytes(b"no picture")
    done = good(
        "attn-rollout", f"tests.tiny:{HOSTILE}", *RANDOM, "--images", ".", "--figure-format", ending, "-o", "out"
    )
    stem = "attn-rollout-tests.tiny_frac_b_31m_red_"
    assert sorted(file.name for file in Path("out").iterdir()) == [f"{stem}.csv", f"{stem}.{ending}"]
    assert {row["model"] for row in results.read(Path(f"out/{stem}.csv"))} == {f"tests.tiny:{HOSTILE}"}
    assert "\x1b" not in done.stdout + done.stderr
    assert "[red]" in done.stdout
    assert "[red]2.png (not an image" in done.stderr
    if ending == "svg":
        assert_svg(Path(f"out/{stem}.svg"))


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["vit_b16"], "vit_b16"),
        (["my/nets.py:small"], "my_nets.py_small"),
        (["../../etc"], "_.._etc"),
        (["a:b", "c\\d"], "a_b+c_d"),
        (["..."], "_"),
        (["图像"], "_"),
    ],
    ids=str,
)
def test_files_are_named_after_models(models: Sequence[str], expected: str) -> None:
    assert commands._stem(models) == expected


def test_names_of_many_models_do_not_grow_beyond_what_disks_take() -> None:
    stem = commands._stem([f"package.module:factory_number_{number}" for number in range(40)])
    assert len(stem) < 150
    assert stem.endswith("-and-more")


# Help


@pytest.mark.parametrize("command", [*EVERY, "analyze"])
def test_the_help_of_a_command_names_its_options(command: str) -> None:
    done = good(command, "--help")
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stdout).split())
    assert "--weights" in text
    assert "--output" in text
    assert ("--images" in text) == (command not in analyze.OF_WEIGHTS)
    assert "--figure-format" in text
