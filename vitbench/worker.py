"""Runs work in processes of its own, so that both cores are used and a crash costs one row.

Each worker imports torch once. What comes back is in the order asked.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, TypeVar

from pebble import ProcessExpired, ProcessPool

Task = TypeVar("Task")
Result = TypeVar("Result")


def each(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int,
    timeout_s: float,
    failed: Callable[[Task, Literal["timeout", "crashed"], str], Result],
) -> Generator[Result, None, None]:
    """Yields the result of each task, in order.

    Args:
        work: a function of a module, so that a new process can import it.
        tasks: what it is called with.
        workers: how many processes.
        timeout_s: how long one task may take.
        failed: gives the result of a task that has none: (task, "timeout" or "crashed", reason).
    """
    # A new interpreter rather than a fork: torch has threads by now, and those do not survive one.
    context: Any = multiprocessing.get_context("spawn")
    pool = ProcessPool(max_workers=min(workers, len(tasks)), context=context)
    try:
        futures = [pool.schedule(work, args=[task], timeout=timeout_s) for task in tasks]
        for task, future in zip(tasks, futures, strict=True):
            try:
                yield future.result()
            except TimeoutError:
                yield failed(task, "timeout", f"took more than {timeout_s:g} s")
            except ProcessExpired as error:
                yield failed(task, "crashed", f"its process ended with exit code {error.exitcode}")
    finally:
        # Reached early when the reader stops or the user interrupts: what is not yet measured is not waited for.
        pool.stop()
        pool.join()
