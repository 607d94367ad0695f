"""Makes videos for tests: each frame is one grey, which tells its number.

They are made, and none is kept in the repository: the videos that come with Python packages do not state their licence.
"""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np

STEP = 4  # of the grey from frame to frame; codecs of eight bits keep it apart


def encode(
    path: Path, frames: int = 60, codec: str = "mpeg4", size: tuple[int, int] = (96, 64), rate: int = 25
) -> Path:
    """Writes a video whose frame n is grey of value n x STEP, `size` is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 20_000_000
        for number in range(frames):
            grey = np.full((size[1], size[0], 3), number * STEP, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def turned(path: Path, clockwise: bool = True) -> Path:
    """Writes into an MP4 file that it is to be shown turned by 90 degrees: the matrix of its track's header, ISO/IEC 14496-12."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one, zero, unit = 1 << 16, 0, 1 << 30
    values = (zero, one, 0, -one, zero, 0) if clockwise else (zero, -one, 0, one, zero, 0)
    data[matrix : matrix + 36] = struct.pack(">9i", *values, 0, 0, unit)
    path.write_bytes(bytes(data))
    return path


def number(grey: float) -> int:
    """Gives which frame has that grey."""
    return round(grey / STEP)
