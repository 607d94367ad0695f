"""Writes result files in one place: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from vitbench.errors import CannotWrite


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
