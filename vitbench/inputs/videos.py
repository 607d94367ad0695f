"""Frames of a video file, chosen as a model's paper chooses them and decoded with PyAV.

Frames are counted as they are shown, at the video's own rate: the papers' strides are of frames, not of seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from vitbench.errors import NotSupported, one_line

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

Prepared = TypeVar("Prepared")

# What a folder is searched for; a file that is named is tried whatever its ending.
EXTENSIONS = frozenset(
    (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
)

_UPRIGHT = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
}


class Unreadable(Exception):
    """A file that holds no picture or video that can be decoded; its text is the reason, as a clause."""


def pyav() -> Any:
    """Gives PyAV.

    Raises:
        NotSupported: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise NotSupported("Reading videos needs PyAV: pip install 'vitbench[video]'.") from error
    return av


def frame_numbers(total: int, frames: int, stride: int | None) -> list[int]:
    """Gives the numbers, from 0, of the frames of a video that make a clip.

    Args:
        total: frames of the video.
        frames: frames of the clip.
        stride: from one frame of the clip to the next; the clip lies in the middle of the video, and where the video is shorter
            than it, begins with the video and repeats its last frame. None takes the middles of equal parts of the whole video.
    """
    if stride is None:
        return [(2 * number + 1) * total // (2 * frames) for number in range(frames)]
    first = max(0, (total - (frames - 1) * stride - 1) // 2)
    return [min(first + number * stride, total - 1) for number in range(frames)]


def read(
    path: Path, frames: int, stride: int | None, prepare: Callable[[Image.Image], Prepared]
) -> tuple[list[Prepared], bool]:
    """Gives the frames of a clip, each prepared as soon as it is decoded, and whether the video is shorter than the clip.

    Args:
        path: of the file.
        frames: frames of the clip.
        stride: as `frame_numbers` takes it.
        prepare: called with each frame as an RGB picture, turned as the file says it is to be shown.

    Raises:
        Unreadable: it is no video, or truncated or damaged.
        NotSupported: PyAV is not installed.
    """
    try:
        numbers, found = _by_time(path, frames, stride, prepare) or _by_count(path, frames, stride, prepare)
    except (pyav().FFmpegError, OSError, ValueError, MemoryError) as error:
        raise Unreadable(f"truncated or damaged ({getattr(error, 'strerror', None) or one_line(error)})") from error
    padded = len(set(numbers)) < frames or (stride is not None and numbers[-1] - numbers[0] < (frames - 1) * stride)
    return [found[number] for number in numbers], padded


def _by_time(
    path: Path, frames: int, stride: int | None, prepare: Callable[[Image.Image], Prepared]
) -> tuple[list[int], dict[int, Prepared]] | None:
    """Looks for the frames by the times of the packets, from the key frame before the first: the rest is not decoded.

    Gives None where the packets do not say when they are shown, or not truly.
    """
    with _opened(path) as (container, stream):
        times = _times(container, stream)
        if any(time is None for time in times) or len(set(times)) < len(times):
            return None
        shown = sorted(time for time in times if time is not None)
        numbers = frame_numbers(_several(len(shown)), frames, stride)
        number_at = {shown[number]: number for number in numbers}
        container.seek(min(number_at), stream=stream)
        found: dict[int, Prepared] = {}
        last = None
        for frame in container.decode(stream):
            if frame.pts is None or (last is not None and frame.pts <= last):
                return None  # AVI has the order of decoding for times
            last = frame.pts
            if last in number_at:
                found[number_at[last]] = prepare(_picture(frame))
            if last >= max(number_at):
                break
    return (numbers, found) if len(found) == len(number_at) else None


def _times(container: InputContainer, stream: VideoStream) -> list[int | None]:
    """Gives when the frames are shown, in the order of the file and in the stream's unit, and looks whether the file is whole."""
    times, end = [], 0.0
    for packet in container.demux():
        if packet.is_corrupt:
            raise Unreadable("truncated or damaged")
        if packet.pts is not None and packet.time_base is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream is stream and packet.size and not packet.is_discard:
            times.append(packet.pts)
    # Some containers just end. What they hold may differ a little from what they state.
    stated = (container.duration or 0) / 1e6
    if end - (container.start_time or 0) / 1e6 < 0.95 * stated - 0.5:
        raise Unreadable(f"truncated: it ends after {end:.1f} of {stated:.1f} s")
    return times


def _by_count(
    path: Path, frames: int, stride: int | None, prepare: Callable[[Image.Image], Prepared]
) -> tuple[list[int], dict[int, Prepared]]:
    """Decodes the video from its beginning, once to count its frames and once to take them."""
    with _opened(path) as (container, stream):
        total = sum(1 for _ in container.decode(stream))
    numbers = frame_numbers(_several(total), frames, stride)
    with _opened(path) as (container, stream):
        wanted = set(numbers)
        taken = ((number, frame) for number, frame in enumerate(container.decode(stream)) if number in wanted)
        return numbers, {number: prepare(_picture(frame)) for number, frame in taken}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    # A file may be a play list, which must not make anything but files be read. With `options`, PyAV before 17.1 crashes on
    # containers whose streams appear late (PyAV-Org/PyAV issue 2010).
    av = pyav()
    try:
        container = av.open(
            str(path.absolute()), container_options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
    except av.FFmpegError as error:
        damaged = isinstance(error, av.error.InvalidDataError | av.error.EOFError)
        raise Unreadable("not a whole video that PyAV can read" if damaged else error.strerror) from error
    with container:
        if not container.streams.video:
            raise Unreadable("there is no video in it")
        yield container, container.streams.video[0]


def _several(total: int) -> int:
    if total < 2:
        raise Unreadable("a single frame, not a video" if total else "there is no frame in it")
    return total


def _picture(frame: VideoFrame) -> Image.Image:
    if frame.is_corrupt:
        raise Unreadable("truncated or damaged")
    image: Image.Image = frame.to_image()
    turn = _UPRIGHT.get(frame.rotation)
    return image if turn is None else image.transpose(turn)
