"""What a SPEC is read as, where a side's code comes from, and workers that do well, fail, hang and are left alone."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import psutil
import pytest

from vitbench.errors import BadInput, VitbenchError
from vitbench.judging import sides

FACTORIES = """
import os, sys, time
import psutil, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.passes = 0
    def forward(self, x):
        self.passes += 1
        return self.act(self.layer(x))
    def act(self, x):
        return x

class Printing(Net):
    def act(self, x):
        print('{"seconds": [1]}', flush=True)
        os.write(1, b'{"seconds": [2]}')
        return x

class Raising(Net):
    def act(self, x):
        if self.passes > 2: raise ValueError("no third pass")
        return x

class Leaving(Net):
    def act(self, x):
        print("last words", file=sys.stderr, flush=True)
        os._exit(7)

class Hanging(Net):
    def act(self, x):
        if self.passes > 1: time.sleep(600)
        return x

class Greedy(Net):
    def act(self, x):
        return torch.empty(psutil.virtual_memory().total // 4) if self.passes > 1 else x
"""
OPTIONS = sides.Options(device="cpu", threads=1, input=(3, 2, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("here")
    (path / "fought_for_tests.py").write_text(FACTORIES)
    return path


@pytest.fixture(scope="module")
def here(folder: Path) -> Iterator[sides.Side]:
    side = sides.Side(sides.Spec(), sides.Place(python=Path(sys.executable), folder=folder), limit_s=120)
    yield side
    side.close()


def git(*arguments: str, folder: Path) -> str:
    who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    (path / "src" / "deep").mkdir(parents=True)
    (path / "src" / "deep" / "file.py").write_text("old")
    git("init", "--quiet", "--initial-branch", "main", folder=path)
    git("add", ".", folder=path)
    git("commit", "--quiet", "--message", "old", folder=path)
    (path / "src" / "deep" / "file.py").write_text("new")
    return path


def test_a_spec_is_read() -> None:
    assert sides.parse("here") == sides.Spec()
    read = sides.parse("dtype=bf16, compile=inductor:max-autotune,threads=2,amp=true,img-size=32x64,input=3x8x8")
    assert read.options == {
        "dtype": "bf16",
        "compile": "inductor:max-autotune",
        "threads": 2,
        "amp": True,
        "img_size": (32, 64),
        "input": (3, 8, 8),
    }
    assert sides.parse("compile=none,batch_size=8,channels_last=false").options == {
        "compile": None,
        "batch_size": 8,
        "channels_last": False,
    }
    assert sides.parse("vit_s16,mode=train").model == "vit_s16"
    assert sides.parse("package.module:factory").model == "package.module:factory"
    assert sides.parse("git:main").revision == "main"
    assert sides.parse(f"python:{sys.executable}").python == Path(sys.executable)
    assert sides.parse("torch==2.14").requirements == ("torch==2.14",)
    read = sides.parse("torch>=2.13,<2.15 timm~=1.0,dtype=bf16")
    assert read.requirements == ("timm~=1.0", "torch<2.15,>=2.13")
    assert read.options == {"dtype": "bf16"}
    # Spaces around what compares or sets mean nothing.
    assert sides.parse("dtype = bf16, threads =2").options == {"dtype": "bf16", "threads": 2}
    assert sides.parse("torch >= 2.13, < 2.15 timm ~= 1.0").requirements == ("timm~=1.0", "torch<2.15,>=2.13")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty part"),
        ("git:", "empty part"),
        ("dtype=bf16,", "empty part"),
        ("dtpye=bf16", "Did you mean dtype"),
        ("dtype=fp8", "one of fp32, tf32, bf16, fp16"),
        ("amp=yes", "true or false"),
        ("threads=0", "whole number above zero"),
        ("img_size=1x2x3", "a size such as"),
        ("input=224", "an input such as 3x224x224"),
        ("dtype=bf16,dtype=fp16", "dtype twice"),
        ("vit_s16,vit_b16", "model twice"),
        ("torch==", "no requirement"),
        ("threads==1", "threads is a setting, no package: say threads=1"),
        ("git:main,batch-size>=8", "batch_size is a setting, no package: say batch_size=8"),
        ("torch==2.14 dtype=bf16", "dtype is a setting, no package: say dtype=bf16, with commas"),
        ("torch==2.14 timm =1", "no requirement"),
        ("python:nowhere/python", "no program 'nowhere/python'"),
        ("python:.", "give ./bin/python"),
        ("git:main,torch==2.14", "one of python:, git: and a requirement"),
    ],
)
def test_what_is_no_spec_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(VitbenchError, match=said.replace("(", r"\(")):
        sides.parse(text)


def test_options_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(BadInput, match="dtype=bf16 or fp16"):
        sides.Options(amp=True)
    with pytest.raises(BadInput, match="mode=train"):
        sides.Options(grad_checkpointing=True)


def test_an_environment_is_made_once_and_anew_where_its_making_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[Sequence[str]] = []
    lie_over: list[Sequence[str]] = []
    said: list[str] = []

    def failing(folder: Path, requirements: Sequence[str], over: Sequence[str]) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise KeyboardInterrupt

    def make(folder: Path, requirements: Sequence[str], over: Sequence[str]) -> None:
        assert not folder.exists()
        folder.mkdir()
        time.sleep(0.2)
        made.append(requirements)
        lie_over.append(over)

    with pytest.raises(KeyboardInterrupt):
        sides.environment_of(["timm==1.0.20"], say=said.append, make=failing)

    def ask() -> None:
        sides.environment_of(["timm==1.0.20"], say=said.append, make=make)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (wanted,) = made
    # What the requirement names is not pinned, the rest of what a worker needs is.
    assert [one.partition("==")[0] for one in wanted] == ["timm", "torch"]
    assert wanted[0] == "timm==1.0.20"
    assert len(said) == 2
    other = sides.environment_of(["torch==2.13"], say=said.append, make=make)
    assert other.is_relative_to(tmp_path / "vitbench" / "envs")
    assert len(made) == 2
    # Over the packages that are here; over none of them where they may need the torch that is here.
    (first, second) = lie_over
    assert Path(pytest.__file__).parent.parent in map(Path, first)
    assert not second


def test_an_environment_finds_what_is_here_and_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing need be installed: what is required is here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    python = sides.environment_of(["filelock"], say=lambda text: None)
    code = "import filelock, sys; print(filelock.__file__); print(*sys.path, sep='\\n')"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    found, *path = done.stdout.splitlines()
    assert found == filelock.__file__
    first = next(place for place in path if place.endswith("site-packages"))
    assert Path(first).is_relative_to(tmp_path)
    assert (python.parent.parent / sides._READY).exists()


def test_what_pip_cannot_install_is_told_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(BadInput, match="pip install .*filelock==0.0.1 .*: No matching distribution"):
        sides.environment_of(["filelock==0.0.1"], say=lambda text: None)
    assert not list(tmp_path.rglob(sides._READY))


def test_a_revision_lies_in_a_folder_that_goes(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository / "src" / "deep")
    # As in a hook of another repository.
    monkeypatch.setenv("GIT_DIR", str(repository / "nowhere"))
    with sides.placed(sides.parse("git:main"), say=print) as place:
        assert place.root is not None
        assert place.folder == place.root / "src" / "deep"
        assert place.paths == (place.root, place.root / "src")
        assert place.instead_of == repository.resolve()
        assert (place.folder / "file.py").read_text() == "old"
        assert len(place.commit) == 40
    monkeypatch.delenv("GIT_DIR")
    assert not place.root.exists()

    def interrupted() -> None:
        with sides.placed(sides.parse("git:HEAD"), say=print):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(git("worktree", "list", folder=repository).splitlines()) == 1
    assert (repository / "src" / "deep" / "file.py").read_text() == "new"


def test_a_worktree_that_a_killed_command_left_is_forgotten_once_it_is_gone(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    # The last is there still: another command may be at work in it. The user's own may be on a disk that is not.
    left, users, other = tmp_path / "vitbench-1" / "tree", tmp_path / "mine" / "tree", tmp_path / "vitbench-2" / "tree"
    for path in (left, users, other):
        git("worktree", "add", "--detach", str(path), "main", folder=repository)
    shutil.rmtree(left)
    shutil.rmtree(users)
    with sides.placed(sides.parse("git:main"), say=print):
        pass
    trees = git("worktree", "list", "--porcelain", folder=repository)
    assert [str(path) in trees for path in (left, users, other)] == [False, True, True]


def test_a_revision_that_is_none_is_told(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    for revision in ("nowhere", "--all"):
        with (
            pytest.raises(BadInput, match=f"git:{revision}: no such revision"),
            sides.placed(sides.parse(f"git:{revision}"), say=print),
        ):
            pass
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with (
        pytest.raises(BadInput, match="needs a repository: .*not a git repository"),
        sides.placed(sides.parse("git:main"), say=print),
    ):
        pass


def test_two_workers_of_a_side_compute_the_same_in_processes_of_their_own(here: sides.Side) -> None:
    first, second = (here.start("vit_lite_2_4_32", sides.Options(device="cpu", threads=1)) for _ in range(2))
    assert first.about.setting["input_shape"] == [3, 32, 32]
    assert first.about.shapes == [[1, 10]]
    assert len(first.about.values) == 10
    assert first.about.values == second.about.values
    assert first.about.environment["torch"]
    assert first.about.machine["device_name"]
    times = first.block(3) + second.block(2)
    assert len(times) == 5
    assert min(times) > 0
    first.close()
    first.close()
    assert len(second.block(1)) == 1
    second.close()
    half = here.start("vit_lite_2_4_32", sides.Options(device="cpu", threads=1, dtype="bf16", mode="train"))
    assert half.about.values != second.about.values
    assert half.about.values == pytest.approx(second.about.values, abs=0.05)
    assert len(half.block(2)) == 2
    half.close()


def test_what_a_model_prints_is_no_answer(here: sides.Side) -> None:
    worker = here.start("fought_for_tests:Printing", OPTIONS)
    assert all(0 < seconds < 0.9 for seconds in worker.block(3))
    worker.close()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Raising", "here: ValueError: no third pass"),
        ("Hanging", "here: took more than 2 s"),
        ("Greedy", "here: memory ran out: "),
    ],
)
def test_a_block_that_fails_is_that_sides_failure(
    model: str, said: str, here: sides.Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = here.start(f"fought_for_tests:{model}", OPTIONS)
    monkeypatch.setattr(worker, "_limit_s", 2)
    with pytest.raises(sides.SideFailed, match=said):
        worker.block(5)
    worker.close()
    after = here.start("fought_for_tests:Net", OPTIONS)
    assert len(after.block(1)) == 1
    after.close()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("fought_for_tests:Leaving", "ended with exit code 7; it last said: last words"),
        ("fought_for_tests:Nothing", "has no 'Nothing'"),
        ("vit_b61", "There is no model named 'vit_b61'"),
        ("fought_for_tests:Net", "does not say which input it takes"),
    ],
)
def test_a_model_that_cannot_be_had_is_that_sides_failure(model: str, said: str, here: sides.Side) -> None:
    options = sides.Options(device="cpu", input=None if model.endswith("Net") else (3, 2, 4))
    with pytest.raises(sides.SideFailed, match=said) as failed:
        here.start(model, options)
    assert (failed.value.kind == "UnknownName") == (model == "vit_b61")


def test_how_a_process_ended_is_told_where_the_system_has_no_sigkill(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(code: int) -> str:
        with pytest.raises(sides.SideFailed) as failed:
            sides.SideWorker(
                "b", (io.BytesIO(), io.BytesIO()), {}, end=lambda: code, said=lambda: "last words", limit_s=60
            )
        return str(failed.value)

    assert ended(-9) == "b: its process was killed, as the system does where memory runs out; it last said: last words"
    assert ended(-11) == "b: its process ended with SIGSEGV; it last said: last words"
    monkeypatch.delattr(signal, "SIGKILL")
    assert ended(3) == "b: its process ended with exit code 3; it last said: last words"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no process")
def test_the_idlest_processors_are_taken_by_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
        # Less than a tick's difference is none; then the last are taken.
        assert sides.idlest_last(lambda: (4.0, 98.0, 0.0, 55.0)) == [1, 3, 0, 2]
        assert sides.idlest_last(lambda: (0.0, 4.9, 0.0, 0.0)) == [0, 1, 2, 3]
        patch.delattr(os, "sched_getaffinity")
        assert sides.idlest_last(lambda: (0.0, 0.0)) == []
    handed: list[Any] = []

    class Side(sides.Side):
        def __init__(self, *place: Any, processors: Sequence[int], **how: Any) -> None:
            handed.append(processors)
            super().__init__(*place, processors=processors, **how)

        def _launched(self, stdin: Any, stdout: Any) -> Any:
            pass

    monkeypatch.setattr(sides, "Side", Side)
    measured = [[7, 8], [9]]
    monkeypatch.setattr(sides, "idlest_last", lambda: measured.pop(0))
    specs = [sides.Spec(), sides.parse(f"python:{Path(sys.executable).parent / 'python'}")]
    specs[1] = replace(specs[1], python=Path("/another/python"))
    with sides.opened(specs, say=print):
        assert handed == [[7, 8], [7, 8]]


def test_sigterm_is_an_interrupt_while_sides_are_open_and_no_longer() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    assert handler == signal.SIG_DFL

    def terminated() -> None:
        with sides.opened([], say=print):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        terminated()
    assert signal.getsignal(signal.SIGTERM) == handler
    # Elsewhere than in the main thread Python sets no handler.
    errors: list[BaseException] = []

    def open_in_a_thread() -> None:
        try:
            with sides.opened([], say=print):
                assert signal.getsignal(signal.SIGTERM) == handler
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=open_in_a_thread)
    thread.start()
    thread.join()
    assert not errors


def test_a_server_is_started_anew(folder: Path) -> None:
    side = sides.Side(sides.Spec(), sides.Place(python=Path(sys.executable), folder=folder), limit_s=120)
    other = side.named("other")
    assert side.shares(other)
    (before,) = side._started
    side.renew()
    assert before.returncode is not None
    (after,) = side._started
    assert after.pid != before.pid
    # Of both names.
    for one in (side, other):
        worker = one.start("fought_for_tests:Printing", OPTIONS)
        assert len(worker.block(2)) == 2
        worker.close()
    side.close()


def test_sides_of_one_code_may_have_a_server_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for apart in (False, True):
        with sides.opened([sides.Spec(), sides.Spec()], say=print, apart=apart) as (a, b):
            assert a.shares(b) != apart


def test_without_a_fork_each_worker_imports_for_itself(folder: Path) -> None:
    side = sides.Side(sides.Spec(), sides.Place(python=Path(sys.executable), folder=folder), limit_s=120, forks=False)
    worker = side.start("fought_for_tests:Printing", OPTIONS)
    assert len(worker.block(2)) == 2
    worker.close()
    side.close()


def test_a_vitbench_of_another_version_is_told(tmp_path: Path) -> None:
    """Where it is vitbench itself that two revisions are compared of."""
    (tmp_path / "vitbench").mkdir()
    (tmp_path / "vitbench" / "__init__.py").write_text("")
    place = sides.Place(python=Path(sys.executable), folder=tmp_path, paths=(tmp_path,))
    side = sides.Side(sides.Spec(), place, limit_s=120)
    with pytest.raises(sides.SideFailed, match=r"no module 'vitbench\.bench': the vitbench of that side is of another"):
        side.start("vit_lite_2_4_32", sides.Options())
    side.close()


def test_another_python_needs_no_more_than_torch_and_timm(folder: Path, tmp_path: Path) -> None:
    """An environment without what vitbench needs besides: links to the packages that are here, all but those."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = sides.parse(f"python:{tmp_path / 'venv' / 'bin' / 'python'}")
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    assert python.python is not None
    place = sides.Place(python=python.python, folder=tmp_path)
    bare = sides.Side(python, place, limit_s=120)
    with pytest.raises(sides.SideFailed, match="has no module 'torch': a worker needs torch and timm"):
        bare.start("vit_lite_2_4_32", sides.Options())
    bare.close()
    import torch

    lacking = ("einops", "fvcore", "matplotlib", "pebble", "psutil", "pydantic", "pynvml", "scipy", "typer", "vitbench")
    for path in Path(torch.__file__).parent.parent.iterdir():
        if not path.name.lower().startswith(lacking) and path.suffix != ".pth":
            (site / path.name).symlink_to(path)
    side = sides.Side(python, place, limit_s=120)
    worker = side.start("vit_lite_2_4_32", sides.Options(device="cpu", threads=1))
    assert len(worker.block(1)) == 1
    worker.close()
    side.close()


def test_no_python_is_told(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho Unknown option: -P >&2\nexit 2\n")
    script.chmod(0o755)
    side = sides.Side(sides.Spec(), sides.Place(python=script, folder=tmp_path), limit_s=20)
    with pytest.raises(sides.SideFailed, match=r"needs Python 3\.11 or later: it said Unknown option: -P"):
        side.start("vit_b16", sides.Options())
    side.close()


def test_a_server_that_is_killed_is_told(folder: Path) -> None:
    """As the system does where memory runs out."""
    side = sides.Side(sides.Spec(), sides.Place(python=Path(sys.executable), folder=folder), limit_s=120)
    worker = side.start("fought_for_tests:Net", OPTIONS)
    server = side._started[-1]
    server.kill()
    worker.close()
    with pytest.raises(sides.SideFailed, match="runs no worker"):
        side.start("fought_for_tests:Net", OPTIONS)
    children = psutil.Process().children()
    side.close()
    _, alive = psutil.wait_procs([one for one in children if one.pid == server.pid], timeout=10)
    assert not alive


KILLED = """
import sys
from pathlib import Path
from vitbench.judging import sides
side = sides.Side(sides.Spec(), sides.Place(python=Path(sys.executable), folder=Path.cwd()), limit_s=600)
worker = side.start("fought_for_tests:Hanging", sides.Options(device="cpu", threads=1, input=(3, 2, 4)))
print("started", flush=True)
worker.block(2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker ends when its block does")
def test_who_is_killed_leaves_no_process(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], cwd=folder, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert len(children) == 2
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
