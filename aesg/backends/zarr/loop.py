"""Coroutines of a library, run from ordinary code: in an event loop of their own, in a thread of their own.

Not in the caller's thread: a notebook's, or a server's, has a loop running already.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_NAME: Final = "aesg-loop"
_GRACE: Final = 0.05
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine and wait for what it gives, or raises; not from within another one."""
    loop = _running()
    assert threading.current_thread() is not _thread, "it would wait for itself"
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()


def _running() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name=_NAME, daemon=True)
            _thread.start()
            atexit.register(_at_exit)
        return _loop


def _at_exit() -> None:
    """End the loop, and let those that have just given it a result return from doing so.

    They are threads of a library in Rust. One that wants to go on in Python when the interpreter is gone is ended, in a
    way that Rust does not allow: the process would abort after all its work is done.
    """
    global _loop
    with _lock:
        loop, _loop = _loop, None
    if loop is not None and _thread is not None:
        loop.call_soon_threadsafe(loop.stop)
        _thread.join(1)
        time.sleep(_GRACE)
        if not loop.is_running():
            loop.close()


def _after_fork() -> None:
    """The thread is the parent's; the child gets its own when it needs one."""
    global _loop, _thread, _lock
    _loop, _thread, _lock = None, None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
