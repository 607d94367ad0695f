"""The sides of `vitbench ab`: what a SPEC asks for, where its code comes from, and the workers that run it.

Here is only the near end: nothing imports torch. The far end is `side_worker.py`, in the side's own Python.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import distributions, version
from pathlib import Path
from typing import IO, Any, get_args

import psutil
from filelock import FileLock
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from vitbench.errors import BadInput, UnknownName
from vitbench.judging.duel import WorkerFailed
from vitbench.records import Dtype, Mode
from vitbench.running import environment
from vitbench.units import parse_extents, printable

HERE = "here"
"""The side that is left out: this Python and the current folder."""

# Installed into an environment of requirements, at the versions that run here unless a requirement says otherwise.
_NEEDED = ("torch", "timm")

# Found in this Python by workers whose own lacks them; all work in any Python of this machine.
_LENT = ("vitbench", "einops", "pebble", "psutil", "pynvml")

_READY = "vitbench-ready"

# A revision's files lie in a temporary folder, as vitbench-abc123/tree.
_PREFIX, _TREE = "vitbench-", "tree"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a side runs a model; the fields are the options of `vitbench bench`.

    Attributes:
        device: "auto" for the accelerator if there is one.
        threads: inside an operator on the CPU; None for torch's own number.
        img_size, num_frames, input: as `build.plan` takes them.
    """

    device: str = "auto"
    dtype: Dtype = "fp32"
    amp: bool = False
    mode: Mode = "infer"
    compile: str | None = None
    channels_last: bool = False
    grad_checkpointing: bool = False
    threads: int | None = None
    batch_size: int = 1
    img_size: tuple[int, int] | None = None
    num_frames: int | None = None
    input: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.amp and self.dtype not in ("bf16", "fp16"):
            raise BadInput("amp runs some operators in another dtype: give it with dtype=bf16 or fp16.")
        if self.grad_checkpointing and self.mode != "train":
            raise BadInput("Gradient checkpointing goes with mode=train.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a side is, where it is not what the command's other options say.

    Attributes:
        text: as the user gave it.
        options: values of `Options`, by name.
        model: a name to build instead.
        python: the Python that runs it.
        requirements: what its own environment is made for.
        revision: of the repository that the current folder is in.
    """

    text: str = HERE
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    python: Path | None = None
    requirements: tuple[str, ...] = ()
    revision: str | None = None

    @property
    def code_elsewhere(self) -> bool:
        """Whether the code is not that of this Python and the current folder."""
        return bool(self.python or self.requirements or self.revision)


def parse(text: str) -> Spec:
    """Reads a SPEC: parts with commas between, each a setting, a model, `python:PATH`, `git:REVISION` or requirements.

    Raises:
        BadInput: a part is none of them, or two exclude each other.
        UnknownName: there is no such setting.
    """
    found: dict[str, Any] = {}
    options: dict[str, Any] = {}
    # A comma within a requirement has a comparison after it: torch>=2.13,<2.15
    for part in re.split(r",(?!\s*[<>=!~])", text):
        name, value = _part(part.strip(), text)
        known = options if name in _READ else found
        if name in known:
            raise BadInput(f"{text!r} gives {name} twice.")
        known[name] = value
    found.pop(HERE, None)
    if len({"python", "requirements", "revision"} & set(found)) > 1:
        raise BadInput(f"{text!r}: give one of python:, git: and a requirement; each says where the code comes from.")
    return Spec(text=text, options=options, **found)


def _part(part: str, text: str) -> tuple[str, Any]:
    """Gives the field of `Spec`, or the option, that a part is about, and its value."""
    kind, _, rest = part.partition(":")
    if not part or (kind in ("python", "git") and not rest):
        raise BadInput(f"{text!r} has an empty part; give a SPEC such as dtype=bf16, git:main or torch==2.14.")
    if part == HERE:
        return HERE, None
    if kind == "python":
        return "python", _python(rest)
    if kind == "git":
        return "revision", rest
    part = re.sub(r"\s*([<>=!~]+)\s*", r"\1", part)
    if re.search(r"[<>!~=]=|[<>\s]", part):
        return "requirements", tuple(sorted(_requirement(one, text) for one in part.split()))
    name, equals, value = part.partition("=")
    if not equals:
        return "model", part
    name = name.replace("-", "_")
    if name not in _READ:
        raise UnknownName("setting", name, _READ, hint=f"Known are {', '.join(_READ)}; a requirement has ==.")
    try:
        return name, _READ[name](value)
    except ValueError as error:
        raise BadInput(f"{name}={value}: {error}.") from error


def _requirement(text: str, whole: str) -> str:
    # Else a slip of the hand would install whatever package has the name of a setting.
    name, value = re.fullmatch(r"([\w-]*)[<>=!~]*(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]  # fits all
    if name.lower().replace("-", "_") in _READ:
        name = name.lower().replace("-", "_")
        raise BadInput(f"{whole!r}: {name} is a setting, no package: say {name}={value}, with commas between settings.")
    try:
        return str(Requirement(text))
    except InvalidRequirement as error:
        raise BadInput(
            f"{whole!r}: {text!r} is no requirement such as torch==2.14; give several with spaces."
        ) from error


def _python(text: str) -> Path:
    found = shutil.which(Path(text).expanduser())
    if found is None:
        advice = f"give {text}/bin/python" if Path(text).is_dir() else "give the path of a Python, or its name"
        raise BadInput(f"There is no program {text!r} to run; {advice}.")
    return Path(found).absolute()  # not resolved: the Python of an environment is a link to another's


def _one_of(known: Any) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in get_args(known):
            raise ValueError(f"it is one of {', '.join(get_args(known))}")
        return text

    return read


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("it is true or false")
    return text.lower() == "true"


def _number(text: str) -> int:
    return _extents(text, (1,), "a whole number above zero")[0]


def _size(text: str) -> tuple[int, int]:
    extents = _extents(text, (1, 2), "a size such as 384 or 384x512 (height x width)")
    return extents[0], extents[-1]


def _shape(text: str) -> tuple[int, ...]:
    return _extents(text, (3, 4), "an input such as 3x224x224")


def _extents(text: str, lengths: Sequence[int], expected: str) -> tuple[int, ...]:
    with contextlib.suppress(ValueError):
        extents = parse_extents(text)
        if len(extents) in lengths:
            return extents
    raise ValueError(f"it is {expected}")


_READ: dict[str, Callable[[str], Any]] = {
    "device": str,
    "dtype": _one_of(Dtype),
    "amp": _flag,
    "mode": _one_of(Mode),
    "compile": lambda text: None if text in ("", "none", "false") else text,
    "channels_last": _flag,
    "grad_checkpointing": _flag,
    "threads": _number,
    "batch_size": _number,
    "img_size": _size,
    "num_frames": _number,
    "input": _shape,
}
assert set(_READ) == {item.name for item in fields(Options)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the code of a side lies.

    Attributes:
        python: what runs it.
        folder: the current folder of its workers.
        paths: where modules are looked for first.
        root: of a revision's files; None where there is no revision.
        instead_of: root of the repository that they stand for.
        commit: of the revision.
    """

    python: Path
    folder: Path
    paths: tuple[Path, ...] = ()
    root: Path | None = None
    instead_of: Path | None = None
    commit: str = ""


@contextmanager
def placed(spec: Spec, *, say: Say) -> Iterator[Place]:
    """Gives the place of a side's code, which is made if need be; a revision's files are there until the end.

    Raises:
        BadInput: there is no such revision, or the environment cannot be built.
    """
    place = Place(python=Path(sys.executable), folder=Path.cwd())
    if spec.revision is not None:
        with _worktree(spec.revision) as (root, instead_of, commit):
            # The same folder of it, if that revision has it: a factory's module is looked for there first.
            folder = root / place.folder.resolve().relative_to(instead_of)
            yield Place(
                python=place.python,
                folder=folder if folder.is_dir() else root,
                paths=tuple(path for path in (root, root / "src") if path.is_dir()),
                root=root,
                instead_of=instead_of,
                commit=commit,
            )
    elif spec.requirements:
        yield Place(python=environment_of(spec.requirements, say=say), folder=place.folder)
    else:
        yield Place(python=spec.python or place.python, folder=place.folder)


@contextmanager
def _worktree(revision: str) -> Iterator[tuple[Path, Path, str]]:
    """Gives the root of a revision's files, in a temporary folder, that of the repository, and the commit."""
    repository = Path(_git("rev-parse", "--show-toplevel", failing="git:REVISION needs a repository")).resolve()
    _forget_gone_worktrees()
    hint = "no such revision; a shallow clone lacks all but the last (git fetch --unshallow)"
    commit = _git(
        "rev-parse",
        "--verify",
        "--quiet",
        "--end-of-options",
        f"{revision}^{{commit}}",
        failing=f"git:{revision}: {hint}",
    )
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as folder:
        root = Path(folder).resolve() / _TREE
        try:
            # A hook of the user's is for the user's own checkouts.
            _git(
                *("-c", f"core.hooksPath={os.devnull}", "worktree", "add", "--detach", "--quiet", str(root), commit),
                failing=f"git:{revision} cannot be checked out",
            )
            yield root, repository, commit
        finally:
            _git("-C", str(repository), "worktree", "remove", "--force", str(root), failing=None)


def _forget_gone_worktrees() -> None:
    """Has git forget those of earlier commands that were killed, once the folder is gone; others are the user's."""
    for line in _git("worktree", "list", "--porcelain", failing=None).splitlines():
        root = Path(line.removeprefix("worktree "))
        if line.startswith("worktree ") and _is_ours(root) and not root.exists():
            _git("worktree", "remove", "--force", str(root), failing=None)


def _is_ours(root: Path) -> bool:
    return root.name == _TREE and root.parent.name.startswith(_PREFIX)


def _git(*arguments: str, failing: str | None) -> str:
    """Runs git in the current folder and gives what it prints; whether it fails matters only where `failing` says what."""
    try:
        # Of a session of its own, so that Ctrl-C does not reach what clears up.
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment.outside_hooks(),
            start_new_session=True,
        )
    except OSError as error:
        raise BadInput(f"git cannot be run: {error.strerror}.") from error
    if done.returncode and failing is not None:
        said = done.stderr.strip().splitlines()
        raise BadInput(f"{failing}: {said[-1]}." if said else f"{failing}.")
    return done.stdout.strip()


def _python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _make(folder: Path, requirements: Sequence[str], over: Sequence[str]) -> None:
    """Makes an environment over folders of packages and has pip fill it; its progress goes to standard error."""
    python = _python_of(folder)
    _run("venv", "--without-pip", str(folder), python=Path(sys.executable))
    # As if they were its own, with the links to folders that they hold; what is installed here comes before.
    lines = [f"import site; site.addsitedir({path!r})\n" for path in over]
    for site in folder.rglob("site-packages"):
        (site / "vitbench-over.pth").write_text("".join(lines), encoding="utf-8")
    _run("ensurepip", python=python)
    _run("pip", "install", "--disable-pip-version-check", *requirements, python=python)


def _run(*module: str, python: Path) -> None:
    done = subprocess.run(
        [python, "-m", *module], stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        said = [line.removeprefix("ERROR: ") for line in done.stderr.strip().splitlines() if line.strip()]
        told = [line for line in said if f"ERROR: {line}" in done.stderr] or said[-1:] or ["no reason given"]
        raise BadInput(
            f"Cannot make an environment, {' '.join(module)}: {told[-1]}; "
            "pip's own settings, such as PIP_EXTRA_INDEX_URL, say where it looks."
        )


def environment_of(
    requirements: Sequence[str], *, say: Say, make: Callable[[Path, Sequence[str], Sequence[str]], None] = _make
) -> Path:
    """Gives the Python of an environment that has what is required, and all else as it is here.

    Where another torch is required, all else is only torch and timm: packages that were compiled for this torch may not work with
    another. It is kept in the user's cache and made once; one whose making was interrupted is made anew.

    Args:
        requirements: as pip takes them.
        say: is told of what takes long.
        make: makes an environment in a folder, installs requirements into it, and has it find what lies in others besides.

    Raises:
        BadInput: the requirements cannot be installed, or the folder cannot be written.
    """
    named = {canonicalize_name(Requirement(one).name) for one in requirements}
    wanted = [*requirements, *(f"{name}=={version(name)}" for name in _NEEDED if name not in named)]
    over: list[str] = []
    parts = [platform.python_version(), sys.base_prefix, *wanted]
    if named.isdisjoint(("torch", "torchvision")):
        over = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        parts += [*over, *sorted(f"{one.name}=={one.version}" for one in distributions(path=over))]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitbench" / "envs" / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / _READY).exists():
                say(f"Installing {', '.join(wanted)} into {folder}; this is done once.")
                shutil.rmtree(folder, ignore_errors=True)
                make(folder, wanted, over)
                (folder / _READY).write_text("\n".join(wanted) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"Cannot make an environment in {folder}: {error.strerror}.") from error
    return _python_of(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a worker says of itself.

    Attributes:
        setting: columns of `records.RunSetting`.
        environment: columns of `records.Environment`.
        machine: columns of `records.Machine`.
        shapes: of the outputs, batch included.
        values: some of the output's numbers, for inputs that all sides share.
    """

    setting: Mapping[str, Any]
    environment: Mapping[str, Any]
    machine: Mapping[str, Any]
    shapes: Sequence[Sequence[int]]
    values: Sequence[float] = field(repr=False)


class SideFailed(WorkerFailed):
    """A worker that could not be started or run; the text begins with its side's name.

    Attributes:
        kind: name of the error that it met, if it told one.
    """

    def __init__(self, side: str, text: str, kind: str = "") -> None:
        super().__init__(f"{side}: {text}")
        self.kind = kind


class SideWorker:
    """A process that holds a side's model.

    Attributes:
        about: what it says of itself.
    """

    def __init__(
        self,
        side: str,
        line: tuple[IO[bytes], IO[bytes]],
        request: Mapping[str, Any],
        *,
        end: Callable[[], int],
        said: Callable[[], str],
        limit_s: float,
    ) -> None:
        self._side = side
        self._line = line
        self._end = end
        self._said = said
        self._limit_s = limit_s
        self._late = False
        try:
            answer = self._ask(request)
        except BaseException:
            self.close()
            raise
        output = answer.pop("output")
        self.about = About(**answer, shapes=output["shapes"], values=output["values"])

    def block(self, runs: int) -> list[float]:
        """Runs the pass so often and gives the seconds of each.

        Raises:
            SideFailed: it raised, ended or took too long.
        """
        return [float(seconds) for seconds in self._ask({"runs": runs})["seconds"]]

    def close(self) -> None:
        """Ends the process."""
        self._end()
        for file in self._line:
            with contextlib.suppress(OSError):  # what was not yet sent has nobody to read it
                file.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        requests, answers = self._line
        # Ends what it waits for: then there is nothing more to read.
        watch = threading.Timer(self._limit_s, self._expire)
        watch.daemon = True
        watch.start()
        try:
            requests.write(json.dumps(request).encode() + b"\n")
            requests.flush()
            text = answers.readline()
        except OSError:
            text = b""
        finally:
            watch.cancel()
        if not text.endswith(b"\n"):
            raise SideFailed(self._side, self._obituary())
        answer: dict[str, Any] = json.loads(text)
        if "error" in answer:
            raise SideFailed(self._side, answer["error"], answer["kind"])
        return answer

    def _expire(self) -> None:
        self._late = True
        self._end()

    def _obituary(self) -> str:
        if self._late:
            return f"took more than {self._limit_s:g} s"
        code = self._end()
        how = f"ended with {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if how.endswith("SIGKILL"):  # which Windows has not
            how = "was killed, as the system does where memory runs out"
        said = self._said()
        return f"its process {how}" + (f"; it last said: {said}" if said else "")


@dataclass(slots=True, kw_only=True)
class _Server:
    """A process that workers are forked from: the line to it, and what it said when it had imported all."""

    control: socket.socket
    ready: dict[str, Any] = field(default_factory=dict)


class Side:
    """One of two sides: the process that starts its workers.

    Attributes:
        name: the SPEC.
        commit: of a revision; empty where there is none.
    """

    def __init__(
        self,
        spec: Spec,
        place: Place,
        *,
        limit_s: float,
        processors: Sequence[int] = (),
        forks: bool = hasattr(os, "fork"),
    ) -> None:
        self.name = spec.text
        self.commit = place.commit
        self._place = place
        self._limit_s = limit_s
        self._processors = processors
        self._forks = forks
        self._lock = threading.Lock()
        self._started: list[subprocess.Popen[bytes]] = []
        # Closed by the system when this process ends, however that may be.
        self._lifeline = os.pipe()
        self._log = tempfile.TemporaryFile("a+b", prefix="vitbench-")  # noqa: SIM115  (closed by close())
        self._servers: list[_Server] = []
        self.renew()

    def renew(self) -> None:
        """Starts the process that workers are forked from anew, and with it what it drew by chance: where its memory lies."""
        self._end()
        if self._forks:
            control, other = socket.socketpair()
            with other:
                self._launched(other, other)
            self._servers.append(_Server(control=control))

    def close(self) -> None:
        """Ends all of its processes."""
        self._end()
        for end in self._lifeline:
            os.close(end)
        self._log.close()

    def _end(self) -> None:
        for process in self._started:
            self._end_all_of(process)
        self._started.clear()
        for server in self._servers:
            server.control.close()
        self._servers.clear()

    def named(self, name: str) -> Side:
        """Gives another side whose workers come from the same process: two servers of one code differ by up to a per cent."""
        other = copy.copy(self)
        other.name = name
        return other

    def shares(self, other: Side) -> bool:
        """Tells whether another side's workers come from the same process."""
        return self._servers is other._servers

    def start(self, model: str, options: Options) -> SideWorker:
        """Starts a fresh process and builds a model in it.

        Raises:
            SideFailed: its Python lacks what is needed, or the model cannot be built or run.
        """
        request = {"model": model, "options": asdict(options)}
        said = functools.partial(self._said, since=self._log.seek(0, os.SEEK_END))
        return self._forked(request, said) if self._forks else self._launched_alone(request, said)

    def _forked(self, request: Mapping[str, Any], said: Callable[[], str]) -> SideWorker:
        server = self._servers[-1]
        control = server.control
        if not server.ready:
            server.ready = self._answer(control)
        if "error" in server.ready:
            raise SideFailed(self.name, server.ready["error"])
        own, other = socket.socketpair()
        with own, other:
            with contextlib.suppress(OSError):  # a server that has ended gives no answer
                socket.send_fds(control, [b"{}\n"], [other.fileno()])
            process = self._answer(control)["process"]
            other.close()
            line = own.makefile("wb"), own.makefile("rb")
        ended: list[int] = []

        def end() -> int:
            with self._lock:
                if not ended:
                    try:
                        control.sendall(json.dumps({"end": process}).encode() + b"\n")
                        ended.append(self._answer(control)["status"])
                    except (OSError, SideFailed):
                        # The server has ended, which only the system does; close() ends what it left.
                        ended.append(-signal.SIGKILL)
            return ended[0]

        return SideWorker(self.name, line, request, end=end, said=said, limit_s=self._limit_s)

    def _answer(self, control: socket.socket) -> dict[str, Any]:
        """Gives the server's answer, which is short and comes at once, but for the first."""
        control.settimeout(self._limit_s)
        text = b""
        with contextlib.suppress(OSError):
            while not text.endswith(b"\n") and (more := control.recv(4096)):
                text += more
        if not text.endswith(b"\n"):
            why = "" if self._servers[-1].ready else ", for which it needs Python 3.11 or later"
            said = self._said(since=0)
            raise SideFailed(
                self.name, f"{self._place.python} runs no worker{why}" + (f": it said {said}" if said else "")
            )
        found: dict[str, Any] = json.loads(text)
        return found

    def _launched_alone(self, request: Mapping[str, Any], said: Callable[[], str]) -> SideWorker:
        process = self._launched(subprocess.PIPE, subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None

        def end() -> int:
            with self._lock:
                self._end_all_of(process)
                return process.wait()

        return SideWorker(
            self.name, (process.stdin, process.stdout), request, end=end, said=said, limit_s=self._limit_s
        )

    def _launched(self, stdin: Any, stdout: Any) -> subprocess.Popen[bytes]:
        place = self._place
        lifeline = self._lifeline[0] if sys.platform == "linux" else None
        how = {
            "name": self.name,
            "forks": self._forks,
            "processors": list(self._processors),
            "lifeline": lifeline,
            "paths": [str(path) for path in place.paths],
            "root": str(place.root) if place.root else None,
            "instead_of": str(place.instead_of) if place.instead_of else None,
            "lent": {name: spec.origin for name in _LENT if (spec := importlib.util.find_spec(name)) is not None},
        }
        try:
            process = subprocess.Popen(
                # -P: the script's own folder, where vitbench's modules lie, is none to import from.
                [place.python, "-P", str(Path(__file__).with_name("side_worker.py")), json.dumps(how)],
                stdin=stdin,
                stdout=stdout,
                stderr=self._log,
                cwd=place.folder,
                # The order of sets and the room in dictionaries are the same on both sides.
                env={**os.environ, "PYTHONHASHSEED": "0"},
                pass_fds=() if lifeline is None else (lifeline,),
                start_new_session=True,  # Ctrl-C is for the process that started it
            )
        except OSError as error:
            raise BadInput(f"Cannot run {place.python}: {error.strerror}.") from error
        self._started.append(process)
        return process

    @staticmethod
    def _end_all_of(process: subprocess.Popen[bytes]) -> None:
        """Ends a process and what it has started."""
        if process.returncode is not None:
            return
        if sys.platform == "win32":
            process.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _said(self, since: int) -> str:
        """Gives the last line that was printed since the log had a length."""
        self._log.seek(since)
        lines = self._log.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return printable(said[-1])[:300] if said else ""


def idlest_last(load: Callable[[], Sequence[float]] = lambda: psutil.cpu_percent(0.2, percpu=True)) -> list[int]:
    """Gives the processors that this process may use, the busiest first; none where the system keeps no process on some.

    So a second command that measures has others than the first. Of those alike the first come first: that is where devices
    interrupt.

    Args:
        load: gives how busy each processor is, in per cent.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    # In tens: 5 % is a single tick of the clock.
    busy = dict(enumerate(round(percent / 10) for percent in load()))
    return sorted(os.sched_getaffinity(0), key=lambda number: (-busy.get(number, 0), number))


@contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """Has SIGTERM do what Ctrl-C does, unless somebody has a use for it: by default it ends a process that clears up nothing."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would end the clearing up
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def opened(specs: Sequence[Spec], *, say: Say, limit_s: float = 600.0, apart: bool = False) -> Iterator[list[Side]]:
    """Gives sides that import while this process goes on; at the end their processes and files are gone, however it comes.

    Args:
        specs: what they are.
        say: is told of what takes long.
        limit_s: how long building a model may take, and a block.
        apart: whether sides of one code have a server each, as those of two have, to learn what that does.

    Raises:
        BadInput: a side's code cannot be had.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ended_as_interrupted())
        processors = idlest_last()
        sides: dict[Place, Side] = {}
        found: list[Side] = []
        for spec in specs:
            place = stack.enter_context(placed(spec, say=say))
            if place not in sides or apart:
                sides[place] = Side(spec, place, limit_s=limit_s, processors=processors)
                stack.callback(sides[place].close)
            found.append(sides[place].named(spec.text))
        yield found
