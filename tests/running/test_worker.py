"""Work in processes of its own: order, crashes, time limits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Future
from pathlib import Path

import pytest

from vitbench.running import worker


def work(task: int) -> str:
    if task == 1:
        os._exit(7)
    if task == 2:
        time.sleep(60)
    if task == 3:
        time.sleep(0.5)
    return f"{task} in {os.getpid()}"


def failed(task: int, status: str, reason: str) -> str:
    return f"{task} {status}: {reason}"


def test_results_come_in_order_and_a_crash_costs_one() -> None:
    found = list(worker.each(work, [0, 1, 2, 3, 4], workers=2, timeout_s=5, failed=failed))
    assert found[0].startswith("0 in ")
    assert found[1] == "1 crashed: its process ended with exit code 7"
    assert found[2] == "2 timeout: took more than 5 s"
    assert [result[0] for result in found] == ["0", "1", "2", "3", "4"]
    assert not any(str(os.getpid()) in result for result in found)


def test_a_reader_that_stops_early_leaves_no_process_behind() -> None:
    reader = worker.each(work, [0, 2, 2, 2], workers=2, timeout_s=60, failed=failed)
    start = time.monotonic()
    next(reader)
    reader.close()
    assert time.monotonic() - start < 30


def test_what_runs_in_another_thread_can_be_ended() -> None:
    ended: list[BaseException] = []

    def waiting() -> None:
        try:
            worker.alone(work, 2, timeout_s=60, failed=failed)
        except CancelledError as error:
            ended.append(error)

    thread = threading.Thread(target=waiting)
    begin = time.monotonic()
    thread.start()
    while thread.is_alive():
        worker.cancel()
        thread.join(0.05)
    assert len(ended) == 1
    assert time.monotonic() - begin < 30


def test_a_result_that_comes_too_late_for_a_cancelled_future_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda problem: told.append(problem.exc_type))

    def late() -> None:
        future: Future[int] = Future()
        future.cancel()
        future.set_result(1)

    def wrong() -> None:
        raise ValueError

    for _ in range(2):
        worker.start()
    for work in (late, wrong):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert told == [ValueError]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no server, and no socket of its own")
def test_a_folder_for_temporary_files_with_too_long_a_path_is_told(tmp_path: Path) -> None:
    """The path of a socket has 107 signs at most: unix(7)."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = (
        "from vitbench.errors import BadInput\nfrom vitbench.running import worker\n"
        "try:\n    worker.start()\nexcept BadInput as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"set TMPDIR to another folder, with a shorter path, than {folder}" in done.stdout
