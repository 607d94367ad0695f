"""Writes result files in one place: whole or not at all, or line by line."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from vitbench.errors import BadInput, CannotWrite


def check_writable(path: Path) -> None:
    """Makes sure, before anything is measured, that a result can be written to a path.

    Raises:
        CannotWrite: it is a folder, or its folder does not exist or cannot be written.
    """
    if path.is_dir():
        raise CannotWrite(f"Cannot write {path}: it is a folder; give the name of a file in it.")
    if not path.parent.is_dir():
        raise CannotWrite(f"Cannot write {path}: there is no folder {path.parent}.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CannotWrite(f"Cannot write to the folder {path.parent}: {error.strerror}.") from error


def write(path: Path, text: str) -> None:
    """Writes a result; a reader, or a second run at the same time, never sees half a file.

    Raises:
        CannotWrite: the folder cannot be written, or the disk is full; what stood at the path is left as it was.
    """
    # Beside the target, so that the rename stays on one disk; of this process, so that two runs do not share it.
    half_written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half_written.write_text(text, encoding="utf-8", newline="")
        half_written.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            half_written.unlink()
        raise CannotWrite(f"Cannot write {path}: {error.strerror}.") from error


def append(path: Path, line: str) -> None:
    """Adds a line to a file, by one write, and returns once it is on the disk: who is killed later loses nothing of it.

    Raises:
        CannotWrite: the file cannot be written, or the disk is full; what stood in it is left as it was.
    """
    data = f"{line}\n".encode()
    try:
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(data) < len(data):
                    # The system wrote what had room, without an error.
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise
    except OSError as error:
        raise CannotWrite(f"Cannot write {path}: {error.strerror}.") from error


def whole_lines(path: Path) -> list[str]:
    """Gives the lines that `append` wrote, and takes a last one that was cut off out of the file.

    Raises:
        BadInput: the file is no text.
        CannotWrite: the cut-off line cannot be taken out.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
        whole = data.rpartition(b"\n")
        kept = whole[0] + whole[1]
        if len(kept) < len(data):
            with path.open("r+b") as file:
                file.truncate(len(kept))
        return kept.decode().split("\n")[:-1]
    except OSError as error:
        raise CannotWrite(f"Cannot go on with {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no text in UTF-8: it was not written by vitbench, or is damaged.") from error
