"""Coroutines of a library, run from ordinary code: in an event loop of their own, in a thread of their own.

Not in the caller's thread: a notebook's, or a server's, has a loop running already.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_NAME: Final = "aesg-loop"
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine and wait for what it gives, or raises; not from within another one."""
    loop = _running()
    assert threading.current_thread().name != _NAME, "it would wait for itself"
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()


def _running() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name=_NAME, daemon=True).start()
        return _loop


def _after_fork() -> None:
    """The thread is the parent's; the child gets its own when it needs one."""
    global _loop, _lock
    _loop, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
