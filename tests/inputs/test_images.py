"""Pictures and clips as batches for a model."""

from __future__ import annotations

import csv
import io
import os
import struct
import sys
import tarfile
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import timm.data
import torch
from PIL import Image
from torch import Tensor, nn

from tests import clips
from vitbench import build
from vitbench.errors import BadInput, NotSupported
from vitbench.inputs import images

PHOTOS = Path(__file__).parent.parent.parent / "examples" / "photos"
FREE = {"Public Domain", "CC0-1.0"}


class Model(nn.Module):
    """A model that states a data config."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.pretrained_cfg = config


HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SMALL = images.preprocessing(Model(crop_pct=1.0, **HALF), (3, 16, 16))


def photograph(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    """A smooth picture in colours, another for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def album(folder: Path, *names: str) -> Path:
    """A folder of pictures, each of which another."""
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(seed).save(path)
    return folder


def names(found: images.Images, batch_size: int = 4) -> list[str]:
    return [name for batch in found.batches(batch_size) for name in batch.names]


def packed(folder: Path, path: Path, mode: str = "w") -> Path:
    """A tar of a folder's files, in the reverse of their order."""
    with tarfile.open(str(path), mode) as tar:  # type: ignore[call-overload]  # its modes are literals
        for file in sorted((file for file in folder.rglob("*") if file.is_file()), reverse=True):
            tar.add(file, file.relative_to(folder).as_posix())
    return path


# Preprocessing


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(24, 24), (24, 40), (40, 24)])
def test_a_picture_is_prepared_as_timm_does_it_to_the_last_bit(mode: str, size: tuple[int, int]) -> None:
    config: dict[str, Any] = {
        "crop_pct": 0.9,
        "crop_mode": mode,
        "interpolation": "bicubic",
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2,) * 3,
    }
    prepared = images.preprocessing(Model(**config), (3, *size))
    for name in ("dog.jpg", "owl.jpg"):
        with Image.open(PHOTOS / name) as photo:
            whole = timm.data.create_transform((3, *size), is_training=False, **config)(photo)
            assert torch.equal(prepared.transform(photo), whole)
            assert torch.equal(prepared.batch(prepared.crop(photo)[None])[0], whole)


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [
        ("vit_b16", None, "resize 248 bicubic, centre crop 224x224, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"),
        (
            "vit_b16",
            (224, 448),
            "resize to cover 248x497 bicubic, centre crop 224x448, mean 0.5 0.5 0.5, std 0.5 0.5 0.5",
        ),
        (
            "cct_7_3x1_32",
            None,
            "resize 32 bicubic, centre crop 32x32, mean 0.4914 0.4822 0.4465, std 0.247 0.2435 0.2616",
        ),
        (
            "cvt_13_384",
            None,
            "squash to 384x384 bicubic, centre crop 384x384, mean 0.485 0.456 0.406, std 0.229 0.224 0.225",
        ),
    ],
)
def test_the_models_own_config_at_its_real_input_is_said_in_words(
    name: str, size: tuple[int, int] | None, text: str
) -> None:
    plan = build.plan(name, img_size=size)
    assert plan.input_shape is not None
    found = images.preprocessing(plan.build("meta"), plan.input_shape)
    assert found.text == text
    assert found.crop(photograph(width=600, height=500)).shape == plan.input_shape


def test_the_frames_of_a_clip_are_said_in_words() -> None:
    plan = build.plan("timesformer")
    assert plan.variant is not None
    assert plan.input_shape is not None
    model = plan.build("meta")
    assert images.preprocessing(model, plan.input_shape, frame_stride=plan.variant.frame_stride).text == (
        "8 frames at stride 32 from the middle of the video (its last repeated if it is shorter), resize 224 bilinear, "
        "centre crop 224x224, mean 0.45 0.45 0.45, std 0.225 0.225 0.225"
    )
    assert images.preprocessing(model, plan.input_shape).text.startswith(
        "8 frames spread evenly over the video, resize"
    )


def test_a_rectangle_keeps_the_aspect() -> None:
    """The shorter side, relative to the input's, fits; of the other the middle is taken."""
    square = photograph(width=100, height=100)
    prepared = images.preprocessing(Model(crop_pct=1.0, **HALF), (3, 16, 64))
    whole = np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC))
    assert (prepared.crop(square).numpy() == whole[24:40].transpose(2, 0, 1)).all()


def test_a_model_that_states_nothing_gets_imagenets_and_that_is_said() -> None:
    found = images.preprocessing(nn.Linear(1, 1), (3, 224, 224))
    assert found.mean == (0.485, 0.456, 0.406)
    assert found.std == (0.229, 0.224, 0.225)
    assert found.text.endswith("std 0.229 0.224 0.225 (ImageNet's: the model states none)")


def test_a_config_may_be_a_record_of_timms() -> None:
    model = nn.Module()
    model.default_cfg = timm.models.PretrainedCfg(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))  # type: ignore[assignment]  # any module
    assert images.preprocessing(model, (3, 32, 32)).mean == (0.1, 0.2, 0.3)


def test_a_model_of_other_channels_is_refused() -> None:
    with pytest.raises(NotSupported, match=r"takes 1 channel\(s\)"):
        images.preprocessing(Model(), (1, 28, 28))


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 2, 16, 16)])
def test_the_pixels_come_back_from_what_went_into_the_model(shape: tuple[int, ...]) -> None:
    prepared = images.preprocessing(Model(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), shape)
    pixels = torch.randint(0, 256, (4, *shape), dtype=torch.uint8)
    tensor = prepared.batch(pixels)
    last = (0, *range(2, len(shape) + 1), 1)
    assert (prepared.as_picture(tensor) == pixels.permute(last).numpy()).all()
    assert (prepared.as_picture(tensor[1]) == pixels.permute(last)[1].numpy()).all()
    rough = prepared.as_picture(prepared.batch(pixels, dtype=torch.bfloat16))
    assert np.abs(rough.astype(int) - pixels.permute(last).numpy()).max() <= 3


# Modes


def _grey16(mode: str) -> Image.Image:
    # 128 of 255 is 32896 of 65535.
    return Image.fromarray(np.full((4, 4), 32896, "<u2" if mode == "I;16" else ">u2" if mode == "I;16B" else np.int32))


def _transparent_palette() -> Image.Image:
    image = Image.new("P", (4, 4))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.info["transparency"] = b"\x00\xff"
    return image


MODES: dict[str, tuple[Callable[[], Image.Image], tuple[int, int, int]]] = {
    "1": (lambda: Image.new("1", (4, 4), 1), (255, 255, 255)),
    "L": (lambda: Image.new("L", (4, 4), 128), (128, 128, 128)),
    "LA": (lambda: Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
    "P": (lambda: Image.new("RGB", (4, 4), (255, 0, 0)).quantize(2), (255, 0, 0)),
    "P with alpha": (_transparent_palette, (255, 255, 255)),
    "RGB with a transparent colour": (
        lambda: _with(Image.new("RGB", (4, 4), (9, 9, 9)), transparency=(9, 9, 9)),
        (255,) * 3,
    ),
    "RGBA": (lambda: Image.new("RGBA", (4, 4), (200, 0, 0, 255)), (200, 0, 0)),
    "RGBA, half": (lambda: Image.new("RGBA", (4, 4), (0, 0, 0, 128)), (127, 127, 127)),
    "CMYK": (lambda: Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
    "YCbCr": (lambda: Image.new("YCbCr", (4, 4), (128, 128, 128)), (128, 128, 128)),
    "HSV": (lambda: Image.new("HSV", (4, 4), (0, 255, 255)), (255, 0, 0)),
    "LAB": (lambda: Image.new("LAB", (4, 4), (255, 128, 128)), (255, 255, 255)),
    "I;16": (lambda: _grey16("I;16"), (128, 128, 128)),
    "I;16B": (lambda: _grey16("I;16B"), (128, 128, 128)),
    "I of 16 bits": (lambda: _grey16("I"), (128, 128, 128)),
    "I": (lambda: Image.fromarray(np.array([[0, 10**9], [10**9, 10**9]], np.int32)), (255, 255, 255)),
    "F": (lambda: Image.fromarray(np.array([[-1.0, 3.0], [3.0, 3.0]], np.float32)), (255, 255, 255)),
    "F of one value": (lambda: Image.fromarray(np.full((2, 2), 0.5, np.float32)), (0, 0, 0)),
}


def _with(image: Image.Image, **info: Any) -> Image.Image:
    image.info.update(info)
    return image


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode: str) -> None:
    """The colour is that of the last pixel; of colours converted by way of another space, to one of 255."""
    make, colour = MODES[mode]
    found = images.as_rgb(make())
    assert found.mode == "RGB"
    pixel = np.asarray(found)[-1, -1].astype(int)
    assert np.abs(pixel - colour).max() <= 1


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.png", lambda: _grey16("I;16")),
        ("a.tif", lambda: _grey16("I;16")),
        ("a.gif", lambda: _with(_transparent_palette(), transparency=0)),
    ],
)
def test_modes_survive_a_file(tmp_path: Path, name: str, make: Callable[[], Image.Image]) -> None:
    make().save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert np.asarray(images.as_rgb(image))[0, 0].tolist() == ([255] * 3 if name == "a.gif" else [128] * 3)


def test_a_cmyk_jpeg_is_a_picture(tmp_path: Path) -> None:
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    (batch,) = images.open_images(tmp_path, SMALL).batches(2)
    assert np.abs(SMALL.as_picture(batch.tensor)[0].astype(int) - (255, 0, 0)).max() <= 2


def test_a_picture_is_turned_as_its_exif_data_say(tmp_path: Path) -> None:
    """Orientation 6: the first column of the file is the top row of the picture (TIFF 6.0, tag 274)."""
    stored = Image.new("RGB", (40, 20), "blue")
    stored.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[274] = 6
    stored.save(tmp_path / "a.jpg", exif=exif)
    stored.save(tmp_path / "b.png", exif=exif)
    for name in ("a.jpg", "b.png"):
        with Image.open(tmp_path / name) as image:
            upright = np.asarray(images.as_rgb(image))
        assert upright.shape == (40, 20, 3)
        assert upright[:16, :, 0].min() > 200
        assert upright[24:, :, 0].max() < 50


def test_damaged_exif_data_do_not_cost_the_picture(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns, which is an error in tests
        assert names(images.open_images(tmp_path, SMALL)) == [f"{tmp_path}/a.jpg"]


# Files


def test_a_folder_is_searched_and_its_pictures_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    album(tmp_path, "b.jpg", "a/z.png", "a/deep/er/m.webp", "c.TIFF", "a.bmp", ".hidden.jpg", ".cache/x.jpg")
    (tmp_path / "README.md").write_text("# Pictures")
    (tmp_path / "labels.csv").write_text("a,b")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    found = images.open_images(tmp_path, SMALL)
    assert names(found) == [
        f"{tmp_path}/{name}" for name in ("a.bmp", "a/deep/er/m.webp", "a/z.png", "b.jpg", "c.TIFF")
    ]
    assert len(found) == 5
    assert found.skipped == []
    assert found.source == str(tmp_path)


def test_batches_hold_the_pictures(tmp_path: Path) -> None:
    album(tmp_path, "a.png", "b.png", "c.png")
    found = images.open_images([tmp_path], SMALL)
    one, two = found.batches(2, dtype=torch.float64)
    assert (one.tensor.shape, two.tensor.shape) == ((2, 3, 16, 16), (1, 3, 16, 16))
    assert one.tensor.dtype == torch.float64
    for tensor, seed in zip((*one.tensor, *two.tensor), range(3), strict=True):
        assert torch.equal(tensor.float(), SMALL.transform(photograph(seed)))


def test_what_cannot_be_read_is_skipped_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    album(tmp_path, "good.jpg", "other.png")
    whole = io.BytesIO()
    photograph(width=400, height=300).save(whole, "JPEG")
    (tmp_path / "half.jpg").write_bytes(whole.getvalue()[:4000])
    (tmp_path / "header.png").write_bytes((tmp_path / "other.png").read_bytes()[:20])
    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    Image.new("RGB", (2, 900)).save(tmp_path / "thin.png")
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    Image.new("1", (500, 500)).save(tmp_path / "bomb.png")
    Image.new("1", (400, 400)).save(tmp_path / "doubt.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120_000)  # 160 000 are a warning, 250 000 an error of Pillow's
    found = images.open_images(tmp_path, SMALL)
    assert names(found) == [f"{tmp_path}/good.jpg", f"{tmp_path}/other.png"]
    reasons = {Path(name).name: reason for name, reason in found.skipped}
    assert len(found) == 12
    for name, reason in {
        "half.jpg": "truncated",
        "header.png": "",
        "zero.jpg": "an empty file",
        "text.png": "not an image that Pillow can read",
        "gone.jpg": "No such file",
        "pipe.jpg": "not a regular file",
        "thin.png": "too long and thin: 2x900",
        "nan.tif": "not numbers",
        "bomb.png": "decompression bomb",
        "doubt.png": "decompression bomb",
    }.items():
        assert reason in reasons.pop(name)
    assert not reasons
    # A second pass begins again, also where Pillow's warnings are only warnings.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(names(found)) == 2
    assert len(found.skipped) == 10
    assert "decompression bomb" in dict(found.skipped)[f"{tmp_path}/doubt.png"]


def test_where_nothing_can_be_read_the_error_names_the_first_few(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.jpg").write_bytes(b"")
    found = images.open_images(tmp_path, SMALL)
    with pytest.raises(BadInput, match=r"a\.jpg \(an empty file\); .*b\.jpg .*; .*c\.jpg .*; and 2 more"):
        list(found.batches(2))


def test_files_that_are_named_come_in_the_order_given_and_are_tried_whatever_they_are(tmp_path: Path) -> None:
    album(tmp_path, "b.jpg", "a.jpg", "picture.dat.png")
    (tmp_path / "picture.dat.png").rename(tmp_path / "picture.dat")
    (tmp_path / "README.md").write_text("# Pictures")
    given = [str(tmp_path / name) for name in ("b.jpg", "README.md", "a.jpg", "picture.dat", "b.jpg")]
    found = images.open_images(given, SMALL)
    assert names(found) == [given[0], given[2], given[3]]
    assert found.skipped == [(given[1], "not an image that Pillow can read")]
    assert found.source == " ".join(given)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    for given, text in (
        ("none", "There is no .*none; give a folder, image files, a tar, or a data set of timm"),
        ("x" * 300, "There is no .*xxx; give a folder"),
        ("nul\0", "There is no "),
        ("empty", "There is no image in .*empty that Pillow reads; give another folder"),
        ("texts", "There is no image in .*texts that Pillow reads"),
    ):
        with pytest.raises(BadInput, match=text):
            images.open_images(tmp_path / given, SMALL)
    with pytest.raises(BadInput, match="nothing to look at"):
        images.open_images([], SMALL)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    album(tmp_path / "elsewhere", "b.png")
    album(tmp_path / "here", "a.png", "sub/c.png")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here" / "sub" / "circle").symlink_to(tmp_path / "here")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "here" / "sub")
    (tmp_path / "here" / "self").symlink_to("self")
    found = images.open_images(tmp_path / "here", SMALL)
    assert len(found) == 3
    assert sorted(Path(name).name for name in names(found)) == ["a.png", "b.png", "c.png"]


def test_a_folder_that_may_not_be_looked_into_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests as root may look into all, so the refusal is made up."""
    album(tmp_path, "a.png", "closed/b.png")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = images.open_images(tmp_path, SMALL)
    assert len(names(found)) == 1
    assert found.skipped == [(str(tmp_path / "closed"), "Permission denied")]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    (name,) = names(images.open_images(tmp_path, SMALL))
    assert name == f"{tmp_path}/caf\N{REPLACEMENT CHARACTER}.png"


# Samples


def test_a_sample_is_the_same_for_the_same_names(tmp_path: Path) -> None:
    files = [f"{number:02}.png" for number in range(40)]
    album(tmp_path / "one", *files)
    album(tmp_path / "two", *reversed(files))

    def taken(folder: str, **options: Any) -> list[str]:
        return [Path(name).name for name in names(images.open_images(tmp_path / folder, SMALL, **options), 64)]

    ten = taken("one", limit=10)
    assert len(ten) == 10
    assert ten == sorted(ten)
    assert ten == taken("two", limit=10)
    assert ten != taken("one", limit=10, seed=1)
    assert set(ten) < set(taken("one", limit=11))
    assert taken("one", limit=None) == taken("one") == files
    # Ten of 40 by chance: not the first, and as many of each half as chance allows.
    assert 1 <= sum(name < "20.png" for name in ten) <= 9
    given = [str(tmp_path / "one" / name) for name in reversed(files)]
    assert [Path(name).name for name in names(images.open_images(given, SMALL, limit=10))] == ten[::-1]


def test_places_share_the_limit(tmp_path: Path) -> None:
    album(tmp_path / "one", *(f"{number}.png" for number in range(6)))
    album(tmp_path / "two", *(f"{number}.png" for number in range(6)))
    found = images.open_images([tmp_path / "one", tmp_path / "two"], SMALL, limit=7)
    assert len(found) == len(names(found)) == len(set(names(found))) == 7
    with pytest.raises(BadInput, match="The limit must be 1 or more"):
        images.open_images(tmp_path, SMALL, limit=0)


# Archives


@pytest.mark.parametrize(
    ("ending", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar.xz", "w:xz")]
)
@pytest.mark.parametrize("limit", [None, 4])
def test_an_archive_gives_what_its_folder_gives(tmp_path: Path, ending: str, mode: str, limit: int | None) -> None:
    folder = album(tmp_path / "album", *(f"{place}/{number}.png" for place in "ab" for number in range(4)))
    (folder / "notes.txt").write_text("no picture")
    (folder / "a" / "bad.png").write_bytes(b"")
    path = packed(folder, tmp_path / f"album{ending}", mode)
    before = sorted(tmp_path.rglob("*"))
    there, here = (images.open_images(place, SMALL, limit=limit) for place in (folder, path))
    for one, two in zip(there.batches(3), here.batches(3), strict=True):
        assert torch.equal(one.tensor, two.tensor)
        assert [name.removeprefix(str(folder)) for name in one.names] == [
            name.removeprefix(str(path)) for name in two.names
        ]
    assert len(here) == (limit or 9)
    assert [reason for _, reason in here.skipped] == [reason for _, reason in there.skipped]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_member_that_is_no_file_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    album(tmp_path / "album", "a.png", "large.png")
    (tmp_path / "album" / "large.png").write_bytes(b"x" * 20_000)
    path = packed(tmp_path / "album", tmp_path / "album.tar")
    with tarfile.open(path, "a") as tar:
        for name, target in (("link.png", "/etc/passwd"), ("self.png", "self.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    monkeypatch.setattr(images, "_LARGEST_MEMBER", 19_999)
    found = images.open_images(path, SMALL)
    assert names(found) == [f"{path}/a.png"]
    assert [reason for _, reason in found.skipped] == [
        "too large: 20,000 bytes",
        "a link, not a file",
        "a link, not a file",
    ]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_damaged_archive_is_refused(tmp_path: Path, mode: str) -> None:
    path = packed(album(tmp_path / "album", *(f"{number}.png" for number in range(5))), tmp_path / "album.tar", mode)
    data = path.read_bytes()
    # Within a member, within a header, and nothing at all; a bit of a header that is not the first.
    damaged = [data[: len(data) // 3], data[:300], b"", b"no archive" * 100]
    if mode == "w":
        with tarfile.open(path) as tar:
            header = tar.getmembers()[2].offset
        damaged.append(data[:header] + bytes([data[header] ^ 1]) + data[header + 1 :])
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(BadInput, match=r"album\.tar is not a whole tar archive"):
            images.open_images(path, SMALL)


def test_an_archive_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(BadInput, match="There is no image in"):
        images.open_images(packed(tmp_path / "texts", tmp_path / "texts.tar"), SMALL)


# Data sets


def _mnist(root: Path, count: int) -> npt.NDArray[np.uint8]:
    """Writes MNIST's files of its test split, in the format of its page: a magic number, the extents, the values."""
    digits = np.random.default_rng(0).integers(0, 255, (count, 28, 28), dtype=np.uint8)
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("t10k", "train"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, count, 28, 28) + digits.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + bytes(count))
    return digits


def test_a_data_set_of_torchvision(tmp_path: Path) -> None:
    digits = _mnist(tmp_path, 30)
    whole = images.preprocessing(Model(crop_pct=1.0, **HALF), (3, 28, 28))
    found = images.open_images("torch/mnist", whole, root=tmp_path, limit=20)
    seen = {name: tensor for batch in found.batches(8) for name, tensor in zip(batch.names, batch.tensor, strict=True)}
    assert len(seen) == 20
    numbers = [int(name.removeprefix("torch/mnist/")) for name in seen]
    assert numbers == sorted(numbers) != list(range(20))
    for number, tensor in zip(numbers, seen.values(), strict=True):
        assert (whole.as_picture(tensor) == digits[number][..., None]).all()


def test_a_data_set_that_is_not_there_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", None)
    with pytest.raises(BadInput, match=r"torch/cifar10 is not in .* Nothing is downloaded unless that is asked for"):
        images.open_images("torch/cifar10", SMALL, root=tmp_path)
    with pytest.raises(BadInput, match=r"torch/none is not in .*Unknown torchvision dataset none"):
        images.open_images("torch/none", SMALL, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_timms_by_its_root(tmp_path: Path) -> None:
    album(tmp_path / "validation" / "cats", "a.png", "b.png", "c.jpg")
    album(tmp_path / "train" / "cats", "d.png")
    (tmp_path / "validation" / "cats" / "b.png").write_bytes(b"broken")
    found = images.open_images("imagefolder", SMALL, root=tmp_path)
    (batch,) = found.batches(4)
    # timm itself would give the next picture in place of the broken one, twice then.
    assert batch.names == ("imagefolder/0", "imagefolder/2")
    assert torch.equal(batch.tensor[0], SMALL.transform(photograph(0)))
    assert found.skipped == [("imagefolder/1", "not an image that Pillow can read")]
    assert len(images.open_images("imagefolder", SMALL, root=tmp_path, split="train")) == 1


class Reader:
    """What timm reads a data set with that comes in one order."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return ((photograph(number), 0) for number in range(self.total))

    def __len__(self) -> int:
        return self.total


def _made(monkeypatch: pytest.MonkeyPatch, dataset: Callable[..., Any], package: str) -> None:
    monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setattr(timm.data, "create_dataset", dataset)


def test_of_a_data_set_that_is_read_in_its_order_the_first_are_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    def create(name: str, **options: Any) -> Any:
        asked.update(options, name=name)
        return timm.data.IterableImageDataset(None, reader=Reader(9))

    _made(monkeypatch, create, "tensorflow_datasets")
    found = images.open_images("tfds/cats", SMALL, root=tmp_path, split="test", limit=5)
    assert names(found) == [f"tfds/cats/{number}" for number in range(5)]
    assert torch.equal(next(found.batches(5)).tensor[4], SMALL.transform(photograph(4)))
    assert asked == {
        "name": "tfds/cats",
        "root": str(tmp_path),
        "split": "test",
        "download": False,
        "num_samples": None,
    }
    assert len(images.open_images("tfds/cats", SMALL, limit=None)) == 9


def test_the_hubs_data_sets_are_looked_for_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    was = constants.HF_HUB_OFFLINE
    config = types.ModuleType("datasets.config")
    config.HF_HUB_OFFLINE = False  # type: ignore[attr-defined]  # a stand-in
    monkeypatch.setitem(sys.modules, "datasets.config", config)
    seen = []

    def create(name: str, **options: Any) -> Any:
        seen.append((constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE))
        raise ConnectionError("cannot be found offline")

    _made(monkeypatch, create, "datasets")
    with pytest.raises(BadInput, match=r"hfds/a/b is not in .*cannot be found offline.* Nothing is downloaded"):
        images.open_images("hfds/a/b", SMALL)
    with pytest.raises(BadInput, match=r"cannot be found offline\)\.$"):
        images.open_images("hfds/a/b", SMALL, download=True)
    assert seen == [(True, True), (was, False)]
    assert constants.HF_HUB_OFFLINE is was
    with pytest.raises(BadInput, match="read over the network"):
        images.open_images("hfids/a/b", SMALL)


def test_the_hubs_data_sets_need_no_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reader of timm fails without the column that it expects; the picture is in the table all the same, or in a file."""

    class HubReader:
        image_key = "image"

        def __init__(self) -> None:
            file = io.BytesIO()
            photograph(1).save(file, "PNG")
            photograph(2).save(tmp_path / "c.png")
            self.dataset = [
                {"image": {"bytes": file.getvalue(), "path": None}},
                {"image": {"bytes": b"broken", "path": None}},
                {"image": {"bytes": None, "path": str(tmp_path / "c.png")}},
            ]

        def __getitem__(self, number: int) -> tuple[Any, Any]:
            raise KeyError("label")

        def __len__(self) -> int:
            return 3

    _made(monkeypatch, lambda name, **options: timm.data.ImageDataset(None, reader=HubReader()), "datasets")
    monkeypatch.setitem(sys.modules, "datasets.config", types.SimpleNamespace(HF_HUB_OFFLINE=False))
    found = images.open_images("hfds/a/b", SMALL)
    (batch,) = found.batches(3)
    assert [torch.equal(batch.tensor[at], SMALL.transform(photograph(at + 1))) for at in (0, 1)] == [True, True]
    assert found.skipped == [("hfds/a/b/1", "not an image that Pillow can read")]


def test_a_data_set_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(NotSupported, match="pip install tensorflow-datasets"):
        images.open_images("tfds/cats", SMALL)


def test_an_empty_data_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _made(monkeypatch, lambda name, **options: timm.data.IterableImageDataset(None, reader=Reader(0)), "webdataset")
    with pytest.raises(BadInput, match="is empty; take another split"):
        images.open_images("wds/cats", SMALL)


# Threads


def _decoding() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vitbench-images")]


def test_the_next_batch_is_decoded_while_one_is_used(tmp_path: Path) -> None:
    album(tmp_path, *(f"{number}.png" for number in range(8)))
    done = threading.Semaphore(0)

    def crop(image: Image.Image) -> Tensor:
        done.release()
        return SMALL.crop(image)

    before = _decoding()
    batches = images.open_images(tmp_path, replace(SMALL, crop=crop)).batches(2)
    next(batches)
    for _ in range(4):  # two of this batch, and two of the next that nobody has asked for
        assert done.acquire(timeout=30)
    batches.close()
    assert _decoding() == before


def test_an_error_that_is_not_the_files_comes_through_and_ends_the_threads(tmp_path: Path) -> None:
    def crop(image: Image.Image) -> Tensor:
        raise RuntimeError("a mistake of ours")

    before = _decoding()
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        list(images.open_images(album(tmp_path, "a.png", "b.png"), replace(SMALL, crop=crop)).batches(1))
    assert _decoding() == before


def test_a_batch_size_must_be_one_or_more(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="batch size"):
        next(images.open_images(album(tmp_path, "a.png"), SMALL).batches(0))


# Clips

CLIP = images.preprocessing(Model(crop_pct=1.0, **HALF), (3, 4, 32, 32), frame_stride=8)


def test_a_clip_holds_the_frames_of_its_video(tmp_path: Path) -> None:
    clips.encode(tmp_path / "a.mp4", 60)
    clips.encode(tmp_path / "sub" / "b.mkv", 20)
    (tmp_path / "c.mp4").write_text("no video")
    (tmp_path / "notes.txt").write_text("no video")
    found = images.open_videos(tmp_path, CLIP)
    (batch,) = found.batches(4)
    assert batch.tensor.shape == (2, 3, 4, 32, 32)
    assert batch.names == (f"{tmp_path}/a.mp4", f"{tmp_path}/sub/b.mkv")
    numbers = [[clips.number(float(frame.mean())) for frame in clip] for clip in CLIP.as_picture(batch.tensor)]
    # (60 - 3 x 8 - 1) // 2 = 17; of 20 frames, a clip over 25 repeats the last.
    assert numbers == [[17, 25, 33, 41], [0, 8, 16, 19]]
    assert found.padded == [f"{tmp_path}/sub/b.mkv"]
    assert found.skipped == [(f"{tmp_path}/c.mp4", "not a whole video that PyAV can read")]
    assert len(found) == 3


def test_videos_are_sampled_and_missed_as_pictures_are(tmp_path: Path) -> None:
    for number in range(4):
        clips.encode(tmp_path / f"{number}.mp4", 3)
    (tmp_path / "zero.mp4").write_bytes(b"")
    assert len(images.open_videos(tmp_path, CLIP, limit=2)) == 2
    with pytest.raises(BadInput, match="an empty file"):
        list(images.open_videos(tmp_path / "zero.mp4", CLIP).batches(1))
    with pytest.raises(BadInput, match="There is no .*none.mp4; give a video file or a folder"):
        images.open_videos(tmp_path / "none.mp4", CLIP)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="There is no video in"):
        images.open_videos(tmp_path / "empty", CLIP)


def test_pictures_and_clips_go_to_models_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="takes clips, not images: give --video"):
        images.open_images(album(tmp_path, "a.png"), CLIP)
    with pytest.raises(BadInput, match="takes images, not clips: give --images"):
        images.open_videos(tmp_path, SMALL)


# Examples


def test_the_example_photographs_are_free_and_say_whose_they_are() -> None:
    with (PHOTOS / "ATTRIBUTION.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == sorted(path.name for path in PHOTOS.glob("*.jpg"))
    assert len(rows) == 12
    assert {row["licence"] for row in rows} <= FREE
    assert all(row["author"] and row["source"].startswith("https://") and row["cut_from"] for row in rows)
    found = images.open_images(PHOTOS, SMALL)
    assert len(names(found)) == 12
    assert not found.skipped
