"""Frames of videos: which are taken, and what is read of a file."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests import clips
from vitbench.errors import NotSupported
from vitbench.inputs import videos
from vitbench.inputs.videos import Unreadable


def _number(image: Image.Image) -> int:
    return clips.number(float(np.asarray(image).mean()))


def test_a_clip_lies_in_the_middle_of_the_video() -> None:
    """Kinetics has 250 frames; TimeSformer's 8 at stride 32 reach over 225 of them, so 12 are left before and 13 after."""
    assert videos.frame_numbers(250, 8, 32) == [12, 44, 76, 108, 140, 172, 204, 236]
    assert videos.frame_numbers(7, 3, 2) == [1, 3, 5]
    assert videos.frame_numbers(5, 3, 2) == [0, 2, 4]


def test_a_shorter_video_is_taken_from_its_beginning_and_repeats_its_last_frame() -> None:
    assert videos.frame_numbers(4, 3, 2) == [0, 2, 3]
    assert videos.frame_numbers(100, 8, 32) == [0, 32, 64, 96, 99, 99, 99, 99]


def test_without_a_stride_the_frames_are_the_middles_of_equal_parts() -> None:
    assert videos.frame_numbers(250, 5, None) == [25, 75, 125, 175, 225]
    assert videos.frame_numbers(3, 6, None) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".avi", ".mpg", ".ts"])
def test_the_frames_that_were_asked_for_are_read(tmp_path: Path, ending: str) -> None:
    """Of containers that say when each frame is shown, and of those that do not."""
    codec = "mpeg4" if ending in (".mp4", ".mkv", ".avi") else "mpeg2video"
    path = clips.encode(tmp_path / f"video{ending}", 60, codec)
    # (60 - 7 x 8 - 1) // 2 = 1
    assert videos.read(path, 8, 8, _number) == ([1, 9, 17, 25, 33, 41, 49, 57], False)
    assert videos.read(path, 4, None, _number) == ([7, 22, 37, 52], False)
    assert videos.read(path, 4, 30, _number) == ([0, 30, 59, 59], True)


@pytest.mark.parametrize("ending", [".mp4", ".avi"])
def test_frames_that_are_stored_out_of_order_are_counted_as_they_are_shown(tmp_path: Path, ending: str) -> None:
    """H.264 has frames that are decoded after a later one; AVI says nothing of it."""
    path = clips.encode(tmp_path / f"video{ending}", 60, "libx264")
    assert videos.read(path, 20, 1, _number) == (list(range(20, 40)), False)


def test_what_lies_before_the_clip_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clips.encode(tmp_path / "video.mp4", 60)  # mpeg4 has a key frame every 12
    seen = []

    def picture(frame: av.VideoFrame) -> Image.Image:
        seen.append(frame.pts)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(videos, "_picture", picture)
    monkeypatch.setattr(videos, "_by_count", None)
    videos.read(path, 2, 1, lambda image: image)
    assert len(seen) == 2


@pytest.mark.parametrize("clockwise", [True, False])
def test_a_video_is_turned_as_the_telephone_that_took_it_says(tmp_path: Path, clockwise: bool) -> None:
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(3):
            frame = np.zeros((64, 96, 3), np.uint8)
            frame[:, :48] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    (picture, _), _ = videos.read(clips.turned(path, clockwise), 2, 1, np.asarray)
    assert picture.shape == (96, 64, 3)
    # The white half was on the left; turned clockwise it is above.
    above, below = picture[:40].mean(), picture[56:].mean()
    assert (above > 200 and below < 50) if clockwise else (above < 50 and below > 200)


@pytest.mark.parametrize(("ending", "reason"), [(".mp4", "whole"), (".mkv", "truncated"), (".avi", "truncated")])
def test_a_truncated_video_is_not_read(tmp_path: Path, ending: str, reason: str) -> None:
    path = clips.encode(tmp_path / f"video{ending}", 60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(Unreadable, match=reason):
        videos.read(path, 4, 8, _number)


def test_what_is_no_video_is_not_read(tmp_path: Path) -> None:
    text, picture, sound = tmp_path / "text.mp4", tmp_path / "picture.png", tmp_path / "sound.wav"
    text.write_text("no video")
    Image.new("RGB", (32, 32)).save(picture)
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    for path, reason in ((text, "not a whole video"), (picture, "a single frame"), (sound, "no video in it")):
        with pytest.raises(Unreadable, match=reason):
            videos.read(path, 2, 1, _number)
    with pytest.raises(Unreadable, match="No such file"):
        videos.read(tmp_path / "none.mp4", 2, 1, _number)


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(NotSupported, match=r"pip install 'vitbench\[video\]'"):
        videos.read(tmp_path / "video.mp4", 2, 1, _number)
