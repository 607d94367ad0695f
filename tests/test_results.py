"""Result files are written whole or not at all, and read back with the place of every error."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from vitbench import results
from vitbench.errors import BadInput, CannotWrite


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
    results.append(path, '{"a": "first"}')
    results.append(path, '{"a": "a line separator \u2028 of Unicode"}')
    assert results.read(path) == [{"a": "first"}, {"a": "a line separator \u2028 of Unicode"}]


def test_a_line_that_was_cut_off_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}')
    results.drop_torn_line(path)
    assert path.read_bytes() == b'{"a": 1}\n'
    path.write_bytes("{\u00e4".encode()[:-1])
    results.drop_torn_line(path)
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b'\xef\xbb\xbfmodel,note,macs\r\na,"two\r\nlines",\r\n\r\nb,\xe2\x80\xa8,3\r\n'),
        (
            "a.json",
            b'[{"model": "a", "note": "two\\nlines", "macs": null}, {"model": "b", "note": "\\u2028", "macs": "3"}]',
        ),
        (
            "a.JSONL",
            b'{"model": "a", "note": "two\\nlines", "macs": null}\n\n{"model": "b", "note": "\\u2028", "macs": "3"}',
        ),
    ],
)
def test_files_are_read_back(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert results.read(path) == [
        {"model": "a", "note": "two\nlines", "macs": None},
        {"model": "b", "note": "\u2028", "macs": "3"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            b"model,macs\na,1\nb\n",
            "a.csv, line 3 has 1 cells, but the header names 2 columns: macs is not there",
        ),
        ("a.csv", b"model,macs,macs\na,1,2\n", "two of its columns are called 'macs'"),
        ("a.csv", b'model\n"a', "a.csv, line 2 is not CSV: unexpected end of data"),
        ("a.csv", b'model\n\n"a\nb"\n"c\nd\n', "a.csv, line 5 is not CSV: unexpected end of data"),
        ("a.csv", b'model,macs\n"a\nb"\n', "a.csv, line 2 has 1 cells"),
        ("a.csv", b"\xff\xfem\x00", "it is not text in UTF-8, as of line 1, column 1"),
        ("a.csv", b"model,note\nvit,\xe4\n", "it is not text in UTF-8, as of line 2, column 5"),
        (
            "a.csv",
            b"model,macs\na,1,2\n",
            "a.csv, line 2 has 3 cells, but the header names 2 columns: column 3 has no name",
        ),
        ("a.json", b'[{"model" 3}]', "a.json is not JSON: Expecting ':' delimiter at line 1, column 11"),
        ("a.json", b'{"model": "a"}', "expected a list with an object a row"),
        ("a.json", b"[1, 2]", "expected a list with an object a row"),
        ("a.json", b'[{"model": "a"},\n 3]', "a.json, row 2 is not an object"),
        (
            "a.json",
            b'[{"model": "a"},\n {"model" 3}]',
            "a.json is not JSON: Expecting ':' delimiter at line 2, column 11",
        ),
        ("a.json", b"[" * 100_000, "a.json is not JSON that can be read: RecursionError"),
        ("a.jsonl", b'{"model": "a"}\n{"model": \n', "a.jsonl, line 2 is not JSON: Expecting value at column 11"),
        ("a.jsonl", b'{"macs": ' + b"1" * 5000 + b"}", "a.jsonl, line 1 is not JSON that can be read"),
    ],
)
def test_damaged_files_say_where(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        results.read(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(BadInput, match="Is a directory"):
        results.read(tmp_path / "a.csv")


def test_pictures_are_written_byte_by_byte(tmp_path: Path) -> None:
    results.write(tmp_path / "a.png", b"\x89\r\n")
    assert (tmp_path / "a.png").read_bytes() == b"\x89\r\n"


def test_a_cell_may_hold_the_numbers_of_a_large_tile(tmp_path: Path) -> None:
    """The module csv by itself refuses cells of more than 131072 characters; others' limit is left as it was."""
    path = tmp_path / "tiles.csv"
    limit = csv.field_size_limit()
    tile = " ".join(["0.123456"] * 30_000)
    results.write(path, f"layer,values\nblocks.0,{tile}\n")
    assert results.read(path) == [{"layer": "blocks.0", "values": tile}]
    assert csv.field_size_limit() == limit <= len(tile)


def test_of_a_folder_each_result_is_found_once_in_its_fullest_form(tmp_path: Path) -> None:
    for name in ("a/results.csv", "a/results.jsonl", "b.csv", "b.json", "c.csv", "notes.md", ".half.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = [str(path.relative_to(tmp_path)) for path in results.found(tmp_path)]
    assert found == ["a/results.jsonl", "b.json", "c.csv"]
    assert results.found(tmp_path / "c.csv") == [tmp_path / "c.csv"]
    assert results.found(tmp_path / "absent.csv") == [tmp_path / "absent.csv"]


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the folder has no file whose name ends in .csv, .json, .jsonl"):
        results.found(tmp_path)
