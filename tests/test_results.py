"""Result files are written whole or not at all."""

from __future__ import annotations

import subprocess
import sys
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


def test_lines_are_added_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert results.whole_lines(path) == []
    results.append(path, "first")
    results.append(path, "second, with a line separator \u2028 of Unicode")
    assert results.whole_lines(path) == ["first", "second, with a line separator \u2028 of Unicode"]


def test_a_line_that_was_cut_off_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}')
    assert results.whole_lines(path) == ['{"a": 1}']
    assert path.read_bytes() == b'{"a": 1}\n'
    path.write_bytes("{\u00e4".encode()[:-1])
    assert results.whole_lines(path) == []
    assert path.read_bytes() == b""


def test_a_line_that_the_disk_has_no_room_for_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files is a disk that is full: it takes a part of what is written."""
    path = tmp_path / "rows.jsonl"
    results.append(path, "0123456789")
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom vitbench import errors, results\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (15, 15))\n"
        "try:\n    results.append(Path(sys.argv[1]), 'x' * 100)\n"
        "except errors.CannotWrite as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "No space left on device" in done.stdout
    assert path.read_text() == "0123456789\n"
