"""Runs work in processes of its own, so that a crash, a time-out or a leak costs one row.

They are forked from a server process that has imported torch and timm and done nothing else: no thread and no accelerator is
started there, so a fork is safe, and a task begins in some hundredths of a second where an import takes four. Where the system
has no such server, on Windows, each process imports for itself.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import InvalidStateError
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Literal, TypeVar

from pebble import ProcessExpired, ProcessPool, concurrent

from vitbench.errors import BadInput

Task = TypeVar("Task")
Result = TypeVar("Result")

Failure = Literal["timeout", "crashed", "out_of_memory"]

# What the server imports: all that a task could need.
_PRELOADED = ("timm", "scipy.stats", "vitbench.measure", "vitbench.build", "vitbench.metrics.flops", "vitbench.cli")


def start() -> Any:
    """Starts the server in the background, where it imports while this process goes on; gives its context.

    Never called a second time with effect: there is one server a process.

    Raises:
        BadInput: the folder for temporary files has no room for the server's socket, or too long a path.
    """
    if not isinstance(threading.excepthook, functools.partial):
        threading.excepthook = functools.partial(_unless_cancelled, threading.excepthook)
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    # The terminal interrupts the server too: it inherits that it shall not listen, and ends when this process does.
    resource_tracker.ensure_running()  # the server starts it, and that would make this process listen again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        multiprocessing.forkserver.ensure_running()
    except OSError as error:
        # The path of a socket has 107 signs at most.
        advice = f"set TMPDIR to another folder, with a shorter path, than {tempfile.gettempdir()}"
        raise BadInput(f"Cannot start a process to measure in: {error.strerror or error}; {advice}.") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _unless_cancelled(tell: Callable[[Any], object], problem: Any) -> None:
    """Says nothing where pebble's thread has a result for a future that an interrupt has cancelled in that moment."""
    if not issubclass(problem.exc_type, InvalidStateError):
        tell(problem)


def alone(
    work: Callable[[Task], Result],
    task: Task,
    *,
    timeout_s: float,
    failed: Callable[[Task, Failure, str], Result],
) -> Result:
    """Gives the result of one task, run in a process that begins and ends with it; arguments as in `each`."""
    killed = _killed_for_memory()
    # Pebble's annotations call it mp_context; it reads context.
    in_process = concurrent.process(context=start(), timeout=timeout_s)  # type: ignore[call-overload]  # see above
    future = in_process(work)(task)
    _running.add(future)
    try:
        return future.result()  # type: ignore[no-any-return]  # pebble has no types
    except (TimeoutError, ProcessExpired) as error:
        return failed(task, *_reason(error, timeout_s, killed))
    finally:
        future.cancel()  # after an interrupt: the process ends with it
        _running.discard(future)


_running: set[Any] = set()


def cancel() -> None:
    """Ends the processes of all that `alone` runs now, in any thread, where it raises `CancelledError`."""
    for future in tuple(_running):
        future.cancel()


def end_with_parent() -> None:
    """Has the system end this process, which another has started, as soon as that one is gone, killed ones too.

    Nobody reads its result any more, and it would be in the way of what is measured next. Only Linux does so without a thread
    that watches, which would blur the memory that the process is seen to take; elsewhere it ends when its work does.
    """
    parent = multiprocessing.parent_process()
    if parent is None or sys.platform != "linux":
        return
    import fcntl

    # A pipe that the parent holds open and never writes to: that it is closed is announced by SIGIO, which ends a process.
    pipe = int(parent.sentinel)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if not parent.is_alive():
        signal.raise_signal(signal.SIGIO)


def each(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int,
    timeout_s: float,
    failed: Callable[[Task, Failure, str], Result],
) -> Generator[Result, None, None]:
    """Yields the result of each task, in order.

    Args:
        work: a function of a module, so that a new process can import it.
        tasks: what it is called with.
        workers: how many processes.
        timeout_s: how long one task may take.
        failed: gives the result of a task that has none: (task, what happened, reason).
    """
    killed = _killed_for_memory()
    context = start()
    # A pool that is interrupted while the server still imports would leave it processes to start that find no pool.
    first = context.Process(target=_nothing)
    first.start()
    first.join()
    pool = ProcessPool(max_workers=min(workers, len(tasks)), context=context)
    try:
        futures = [pool.schedule(work, args=[task], timeout=timeout_s) for task in tasks]
        for task, future in zip(tasks, futures, strict=True):
            try:
                yield future.result()
            except (TimeoutError, ProcessExpired) as error:
                yield failed(task, *_reason(error, timeout_s, killed))
                killed = _killed_for_memory()
    finally:
        # Reached early when the reader stops or the user interrupts: what is not yet measured is not waited for.
        pool.stop()
        pool.join()


def _nothing() -> None:
    pass


def _reason(error: Exception, timeout_s: float, killed: int) -> tuple[Failure, str]:
    if isinstance(error, TimeoutError):
        return "timeout", f"took more than {timeout_s:g} s"
    if _killed_for_memory() > killed:
        return "out_of_memory", "the system killed its process because memory ran out"
    return "crashed", f"its process ended with exit code {error.exitcode}"  # type: ignore[attr-defined]  # ProcessExpired


def _killed_for_memory() -> int:
    """Gives how many processes Linux has killed because memory ran out; 0 elsewhere."""
    with contextlib.suppress(OSError, ValueError):
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines())
        return int(counters.get("oom_kill", 0))
    return 0


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Looks for no garbage meanwhile: looking takes time, at moments of its own choice."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
