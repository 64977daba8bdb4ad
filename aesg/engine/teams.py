"""Work on many lanes, shared out among the cores.

What a team of lanes does in compiled loops, in vector products and in the seed index runs without the GIL. Each lane's
result does not depend on its company, so nor does it depend on the number of cores.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import chain, pairwise
from typing import Final, TypeVar

_T = TypeVar("_T")

_SIZE: Final = 16
"""Lanes of a team: what they have met fits into a core's L2 cache (256 lanes at once take a third longer each), and the
Python between the loops, which only one core runs at a time, is spread over enough of them."""

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_teams(work: Callable[[slice], list[_T]], lanes: int) -> list[_T]:
    """What `work` gives for all lanes, called with slices of them."""
    if lanes <= _SIZE:
        return work(slice(0, lanes))
    teams = -(-lanes // _SIZE)
    bounds = [lanes * i // teams for i in range(teams + 1)]
    slices = [slice(start, stop) for start, stop in pairwise(bounds)]
    if cores() == 1:
        return list(chain.from_iterable(map(work, slices)))
    done = [_executor().submit(work, some) for some in slices]
    wait(done)  # also when one raises: the others use what the caller lent them
    return list(chain.from_iterable(one.result() for one in done))


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(cores(), "aesg-team")
        return _pool


def _after_fork() -> None:
    """The threads are the parent's; the child gets its own when it needs them."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
