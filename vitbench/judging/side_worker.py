"""Instrument: a side of `vitbench ab` at work, run by its path in the side's own Python: it may lack vitbench.

It imports torch, timm and vitbench once, starts no thread and touches no accelerator, so that it can fork a fresh worker in some
hundredths of a second for each that is asked for. Where the system cannot fork, it is itself one worker. Messages are lines of
JSON; standard output, to which models print, is not where they go.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, BinaryIO

# So many numbers of an output are sent, spread over it evenly: enough to see whether two sides compute the same.
_SENT = 4096

Message = dict[str, Any]


def main() -> None:
    """Serves the process that started this one, until it closes the connection; its first argument says how."""
    how: Message = json.loads(sys.argv[1])
    requests, answers = os.dup(0), os.dup(1)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    if how["lifeline"] is not None:
        _end_with(how["lifeline"])
    problem = _imported(how)
    if not how["forks"]:
        with os.fdopen(requests, "rb") as reader, os.fdopen(answers, "wb") as writer:
            work(reader, writer, how, problem)
        return
    os.close(answers)  # the same socket
    with socket.socket(fileno=requests) as control:
        control.sendall(_line(problem or {"ready": True}))
        if problem is None:
            _serve(control, how)


def _end_with(lifeline: int) -> None:
    """Has Linux end this process and all that it starts as soon as another is gone, killed ones too.

    That other one holds a pipe open and never writes to it: that it is closed is announced by SIGIO, which ends a process, to all
    of this one's group. Elsewhere a process ends when it next reads.
    """
    if sys.platform == "linux":
        import fcntl
        import select

        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([lifeline], [], [], 0)[0]:
            signal.raise_signal(signal.SIGIO)


class _Lent:
    """Finds last what this Python lacks and the one that started it has: vitbench, and small packages that it needs."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        file = self._places.get(name)
        if file is None:
            return None
        return importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(Path(file).parent)])


def _imported(how: Message) -> Message | None:
    """Imports all that a worker needs; gives the message that says what is missing."""
    sys.path[:0] = how["paths"]
    sys.meta_path.append(_Lent(how["lent"]))
    try:
        for name in (
            "torch",
            "timm",
            *(f"vitbench.{name}" for name in ("bench", "build", "running.device", "running.passes", "running.timing")),
        ):
            importlib.import_module(name)
        # Asks git, once for all workers.
        importlib.import_module("vitbench.running.environment").describe()
    except ModuleNotFoundError as error:
        needs = "a worker needs torch and timm"
        if (error.name or "").startswith("vitbench."):
            needs = "the vitbench of that side is of another version, which this one cannot run"
        return {"error": f"{sys.executable} has no module {error.name!r}: {needs}", "kind": ""}
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        return {"error": f"{sys.executable} cannot import what a worker needs: {why}", "kind": ""}
    # To look for garbage among all this would take a worker a second, and copy the memory that it shares.
    gc.collect()
    gc.freeze()
    return None


def _serve(control: socket.socket, how: Message) -> None:
    """Forks a worker for each connection that comes with a request, and ends those that it is told to."""
    while True:
        line, sockets, _, _ = socket.recv_fds(control, 4096, 1)
        if not line:
            return
        request: Message = json.loads(line)
        if "end" in request:
            os.kill(request["end"], signal.SIGKILL)  # changes nothing for one that has ended by itself
            _, status = os.waitpid(request["end"], 0)
            control.sendall(_line({"status": os.waitstatus_to_exitcode(status)}))
            continue
        process = os.fork()
        if process == 0:
            control.close()
            with socket.socket(fileno=sockets[0]) as own, own.makefile("rb") as reader, own.makefile("wb") as writer:
                work(reader, writer, how)
            return
        os.close(sockets[0])
        control.sendall(_line({"process": process}))


def work(reader: BinaryIO, writer: BinaryIO, how: Message, problem: Message | None = None) -> None:
    """Builds the model that the first line asks for, says what it is, then runs blocks until the reader's end.

    Args:
        reader: requests, a line each: first the model and the options, then numbers of runs.
        writer: answers, a line each: what was built, the seconds of each run, or an error, which is the last.
        how: what `main` was given.
        problem: what is answered instead.
    """
    clock: Any = None
    phases: Sequence[Any] = ()
    for line in reader:
        request: Message = json.loads(line)
        try:
            if problem is not None:
                answer = problem
            elif "model" in request:
                phases, clock, answer = _built(request, how)
                gc.collect()
                gc.freeze()
                gc.disable()
            else:
                gc.collect()
                answer = {"seconds": [sum(clock.time(phases)) for _ in range(request["runs"])]}
        except (Exception, SystemExit) as error:
            # Whatever a model raises is the answer to whether it runs.
            answer = {"error": _said(error), "kind": type(error).__name__}
        writer.write(_line(answer))
        writer.flush()
        if "error" in answer:
            return


def _built(request: Message, how: Message) -> tuple[Sequence[Any], Any, Message]:
    """Gives the parts of a pass, the clock, and what is answered: setting, environment, machine, output."""
    import torch

    from vitbench import bench
    from vitbench.records import RunSetting, columns
    from vitbench.running import device, environment, passes, timing

    options: Message = {
        name: tuple(value) if isinstance(value, list) else value for name, value in request["options"].items()
    }
    where = device.resolve(options.pop("device"))
    if where.type == "cpu":
        device.limit_memory()
    threads = options.pop("threads") or torch.get_num_threads()
    device.prepare(where, options["dtype"], threads)
    if where.type == "cpu":
        _stay(how["processors"], threads)
    asked = bench.Request(
        name=request["model"],
        img_size=options.pop("img_size"),
        num_frames=options.pop("num_frames"),
        input_shape=options.pop("input"),
    )
    plan = bench.planned(asked)
    torch.manual_seed(0)
    model = plan.build()
    _check_origin(request["model"], how)
    shape = plan.input_shape or bench.stated_input(model, asked)
    setting = RunSetting(
        model=request["model"], input_shape=tuple(shape), device=str(where), threads=threads, **options
    )
    model = passes.laid_out(model, setting)
    # Drawn on the CPU in fp32, so that both sides have the same whatever their device and dtype are.
    inputs = passes.example(setting)
    inputs.copy_(torch.empty(inputs.shape).normal_(generator=torch.Generator().manual_seed(1)))
    output = _output(model, inputs, setting)
    phases = passes.phases(model, inputs, setting)
    about = {
        "setting": columns(setting),
        "environment": columns(environment.describe()),
        "machine": columns(device.machine(where)),
        "output": output,
    }
    return phases, timing.clock_of(where), about


def _stay(processors: Sequence[int], threads: int) -> None:
    """Keeps this process on as many processors as it has threads, the last of those given, which are the same for both sides.

    Left to the system, each side may have one of its own for a round, and on a shared machine one differs from another by several
    per cent. None are given where the system keeps no process on some.
    """
    if processors:
        os.sched_setaffinity(0, processors[-threads:])


def _check_origin(model: str, how: Message) -> None:
    """Refuses to measure code that is not of the revision asked for."""
    from vitbench.errors import BadInput

    if how["root"] is None:
        return
    own, elsewhere = False, []
    # This file is the near end's, wherever that lies; multiprocessing gives it a second name.
    script = sys.modules["__main__"]
    for name, module in sys.modules.items():
        file = Path(getattr(module, "__file__", None) or "")
        # What torch makes up has a name without a folder; packages may be installed in the repository's folder.
        if module is script or not file.is_absolute() or "site-packages" in file.parts:
            continue
        file = file.resolve()
        if file.is_relative_to(how["root"]):
            own = True
        elif file.is_relative_to(how["instead_of"]):
            elsewhere.append(name)
    if elsewhere:
        raise BadInput(f"{min(elsewhere)} is not in {how['name']}: it was found in {how['instead_of']} instead.")
    if not own:
        raise BadInput(f"{model} uses nothing of {how['name']}: no module of it comes from that repository.")


def _output(model: Any, inputs: Any, setting: Any) -> Message:
    """Gives the shapes of what a model makes of the inputs, and some of the numbers; it is the model's first pass."""
    import torch
    from torch.utils._pytree import tree_leaves

    from vitbench.running.passes import DTYPES

    torch.manual_seed(2)  # of dropout, in training
    with (
        torch.inference_mode(setting.mode == "infer"),
        torch.autocast(inputs.device.type, DTYPES[setting.dtype], enabled=setting.amp),
    ):
        tensors = [leaf.detach() for leaf in tree_leaves(model(inputs)) if isinstance(leaf, torch.Tensor)]
    numbers = torch.cat([tensor.float().flatten() for tensor in tensors]) if tensors else torch.empty(0)
    step = max(1, -(-len(numbers) // _SENT))
    return {"shapes": [list(tensor.shape) for tensor in tensors], "values": numbers[::step].tolist()}


def _said(error: BaseException) -> str:
    """Gives an error's text in a line; whether memory ran out is said in words."""
    from vitbench.errors import VitbenchError, one_line
    from vitbench.running.device import out_of_memory

    text = str(error) if isinstance(error, VitbenchError) else one_line(error)
    cause = error.__cause__ if isinstance(error, VitbenchError) and error.__cause__ else error
    return f"memory ran out: {text}" if out_of_memory(cause) else text


def _line(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


if __name__ == "__main__":
    main()
