"""The far end: what it imports, what it lends, what it refuses, and how it answers."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vitbench.judging import side_worker, sides
from vitbench.running import device

HOW: dict[str, Any] = {"name": "here", "processors": [], "root": None, "instead_of": None}


@pytest.fixture(autouse=True)
def _this_process_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(device, "limit_memory", lambda: None)
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    yield
    gc.enable()
    gc.unfreeze()
    if processors is not None:
        os.sched_setaffinity(0, processors)


def answers(*requests: dict[str, Any], problem: dict[str, Any] | None = None, **how: Any) -> list[dict[str, Any]]:
    written = io.BytesIO()
    lines = b"".join(json.dumps(request).encode() + b"\n" for request in requests)
    side_worker.work(io.BytesIO(lines), written, HOW | how, problem)
    return [json.loads(line) for line in written.getvalue().splitlines()]


def request(model: str, **options: Any) -> dict[str, Any]:
    return {"model": model, "options": asdict(sides.Options(device="cpu", threads=1, **options))}


def test_a_model_is_described_and_run() -> None:
    about, block = answers(request("tests.tiny:vit", img_size=(32, 32), batch_size=2, channels_last=True), {"runs": 3})
    assert about["setting"]["input_shape"] == [3, 32, 32]
    assert about["setting"]["channels_last"]
    assert about["output"]["shapes"] == [[2, 24]]
    assert len(about["output"]["values"]) == 48
    assert about["environment"]["python"].startswith(f"{sys.version_info.major}.")
    assert len(block["seconds"]) == 3
    assert not gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no process")
def test_a_worker_stays_on_as_many_processors_as_it_has_threads() -> None:
    kept: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_setaffinity", lambda process, processors: kept.append(processors))
        side_worker._stay([3, 0, 1, 2], 2)
        side_worker._stay([], 2)
    assert kept == [[1, 2]]
    allowed = sorted(os.sched_getaffinity(0))
    answers(request("tests.tiny:vit", img_size=(32, 32)), processors=[*allowed[1:], allowed[0]])
    assert os.sched_getaffinity(0) == {allowed[0]}


def test_an_error_is_the_last_answer() -> None:
    (failed,) = answers(request("vit_b61"), {"runs": 1})
    assert failed["kind"] == "UnknownName"
    assert failed["error"].startswith("There is no model named 'vit_b61'.")
    assert answers({"runs": 1}, problem={"error": "no torch", "kind": ""}) == [{"error": "no torch", "kind": ""}]


def test_an_output_of_many_numbers_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = answers(request("tests.tiny:vit"))
    monkeypatch.setattr(side_worker, "_SENT", 10)
    (thin,) = answers(request("tests.tiny:vit"))
    assert thin["output"]["values"] == whole["output"]["values"][::3]


def test_modules_are_lent_last_and_alone(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    lent = side_worker._Lent({"package": str(tmp_path / "package" / "__init__.py")})
    found = lent.find_spec("package")
    assert found is not None
    assert found.submodule_search_locations == [str(tmp_path / "package")]
    assert lent.find_spec("torch") is None


def test_it_imports_nothing_that_a_python_with_torch_and_timm_may_lack() -> None:
    """Of vitbench's dependencies, only what torch and timm need too, or what is lent."""
    code = (
        "import sys; sys.argv = ['x']\n"
        "from vitbench.judging import side_worker\n"
        "assert side_worker._imported({'paths': [], 'lent': {}}) is None\n"
        "import threading; assert threading.active_count() == 1\n"
        "import torch; assert not torch.cuda.is_initialized()\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = {"einops", "fvcore", "matplotlib", "pebble", "psutil", "pydantic", "pynvml", "rich", "scipy", "typer"}
    assert set(done.stdout.split()) & own <= set(sides._LENT)
