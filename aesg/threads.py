"""Work shared out among the cores, for what runs without the GIL: compiled loops, checksums, copies."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import TypeVar

_Given = TypeVar("_Given")
_Got = TypeVar("_Got")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_here = threading.local()
_process = os.getpid()


def process() -> int:
    """This process's number, without the call to the system that `os.getpid` is."""
    return _process


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parts(count: int, least: int) -> list[slice]:
    """`range(count)` in slices of about the same length, one for each core, but none shorter than `least`."""
    number = count // least
    if number < 2:  # before the system is asked for its cores, which takes as long as some loops
        return [slice(0, count)]
    number = min(cores(), number)
    bounds = [count * i // number for i in range(number + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def in_threads(work: Callable[[_Given], _Got], items: Sequence[_Given]) -> list[_Got]:
    """What `work` gives for each item; the caller's thread does the first one, and all of them where no other can.

    `work` may itself call this: what is under way in a thread of the pool goes on in that thread.

    Raises:
        BaseException: What `work` raised, for the first item for which it did; nothing is under way then.
    """
    if len(items) < 2 or getattr(_here, "helps", False) or cores() == 1:
        return [work(item) for item in items]
    waiting: list[Future[_Got]] = []
    try:
        pool = _executor()
        waiting.extend(pool.submit(work, item) for item in items[1:])
    except RuntimeError:  # the process ends: no thread can be started any more
        pass
    try:
        first = work(items[0])
    finally:
        wait(waiting)  # they use what the caller lent them
    rest = [future.result() for future in waiting]
    return [first, *rest, *(work(item) for item in items[1 + len(rest) :])]


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(cores(), "aesg", initializer=_begin)
        return _pool


def _begin() -> None:
    _here.helps = True


def _after_fork() -> None:
    """The threads are the parent's; the child gets its own when it needs them."""
    global _pool, _lock, _process
    _pool, _lock, _process = None, threading.Lock(), os.getpid()
    _here.helps = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
