"""Result files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitbench import results
from vitbench.errors import CannotWrite


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "flops.csv"
    results.write(path, "old\n")
    results.write(path, "new\n")
    assert path.read_bytes() == b"new\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "flops.csv"
    results.write(path, "old\n")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CannotWrite, match="No space left on device"):
        results.write(path, "new\n")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_an_impossible_place_is_found_before_measuring(tmp_path: Path) -> None:
    results.check_writable(tmp_path / "flops.csv")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CannotWrite, match="it is a folder"):
        results.check_writable(tmp_path)
    with pytest.raises(CannotWrite, match="there is no folder"):
        results.check_writable(tmp_path / "absent" / "flops.csv")
    with pytest.raises(CannotWrite, match="Cannot write to the folder /proc"):
        results.check_writable(Path("/proc/flops.csv"))
