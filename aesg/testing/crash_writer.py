"""A writer to be killed, and how it kills itself: a job of `aesg.testing.forks`.

It goes on from where the store is and says so after each commit. A kill at a *point* comes from within:

* `calls`: before a call that changes a file of the store, in the middle of one that writes, or before or after one of
  the functions that the backend names or, for a store of blocks, of its container;
* `lines`: before a line of the backend's own Python code.

What a backend does in C is not divided by these; the kill from outside, at any moment, is for that.
"""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import aesg
from aesg.backends import files, journal, registry
from aesg.backends.url import StoreURL
from aesg.errors import AESGError
from aesg.testing.forks import say, say_json
from aesg.testing.steps import DIM, compacts_after, digest, inconsistencies, last_step, step

_MAKES: Final = {"os.rename", "os.truncate", "os.mkdir", "os.link", "os.symlink"}
_REMOVES: Final = {"os.remove", "os.rmdir"}
_WRITES: Final = ("write", "pwrite", "writev", "pwritev")
_SYNCS: Final = ("fsync", "fdatasync", "posix_fallocate")
_CONTAINER: Final = ("commit", "flush", "reclaim", "close")


class Countdown:
    """Counts points while it is armed, and kills this process at one of them.

    Attributes:
        at: The point to die at, from 1; 0 only counts.
        armed: Whether points count now.
        points: How many there were.
    """

    def __init__(self, at: int, *, armed: bool) -> None:
        self.at = at
        self.armed = armed
        self.points = 0

    def reached(self) -> bool:
        """Count a point; whether this is the one."""
        if not self.armed:
            return False
        self.points += 1
        return self.points == self.at

    def point(self) -> None:
        """Count a point, and end if this is the one."""
        if self.reached():
            self.end()

    def end(self) -> None:
        """What happens at the chosen point."""
        os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def during(self, phase: str, chosen: str) -> Iterator[None]:
        """Armed for this phase, when it is the chosen one."""
        before, self.armed = self.armed, self.armed or chosen == phase
        try:
            yield
        finally:
            self.armed = before


# --- points ----------------------------------------------------------------------------------------------------------


def count_calls(countdown: Countdown, folder: str, *, removals: bool = True, syncs: bool = True) -> None:
    """Points are calls that change a file in this folder, in the middle of those that write.

    Args:
        countdown: Counts.
        folder: Where the files are.
        removals: Whether calls that only free space count too.
        syncs: Whether syncs do.
    """
    audited = _MAKES | _REMOVES if removals else _MAKES
    real_pwrite, real_write = os.pwrite, os.write

    def on_audit(event: str, arguments: tuple[Any, ...]) -> None:
        if not countdown.armed:
            return
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                return
        elif event not in audited or (event == "os.truncate" and not removals and not _grows(*arguments)):
            return
        if isinstance(arguments[0], (str, bytes)) and not os.path.abspath(os.fsdecode(arguments[0])).startswith(folder):
            return
        countdown.point()

    def torn(name: str, real: Callable[..., int]) -> Callable[..., int]:
        def call(fd: int, data: Any, *rest: Any) -> int:
            if not countdown.reached():
                return real(fd, data, *rest)
            whole = b"".join(bytes(part) for part in data) if name.endswith("v") else bytes(data)
            half = whole[: len(whole) // 2]
            done = real_pwrite(fd, half, rest[0]) if rest else real_write(fd, half)
            countdown.end()
            return done

        return call

    sys.addaudithook(on_audit)
    for name in _WRITES:
        setattr(os, name, torn(name, getattr(os, name)))
    for name in _SYNCS if syncs else ():
        if hasattr(os, name):
            setattr(os, name, _around(countdown, getattr(os, name), after=False))


def _grows(path: Any, length: int) -> bool:
    return length > (os.fstat(path) if isinstance(path, int) else os.stat(path)).st_size


def count_functions(countdown: Countdown, fail_points: Iterable[str]) -> None:
    """Points are before and after the named functions of the backend, and what changes a container of blocks."""
    for owner, name in [*_named(fail_points), *_of_containers()]:
        setattr(owner, name, _around(countdown, getattr(owner, name), after=True))


def _around(countdown: Countdown, real: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        countdown.point()
        result = real(*args, **kwargs)
        if after:
            countdown.point()
        return result

    return call


def _named(fail_points: Iterable[str]) -> list[tuple[Any, str]]:
    found = []
    for text in fail_points:
        module, _, path = text.partition(":")
        owner: Any = importlib.import_module(module)
        *way, name = path.split(".")
        for part in way:
            owner = getattr(owner, part)
        found.append((owner, name))
    return found


def container_classes() -> list[type]:
    """Every class of block container that is loaded."""
    blocks = sys.modules.get("aesg.backends.blocks.container")
    found: list[type] = []
    waiting: list[type] = [blocks.BlockContainer] if blocks else []
    while waiting:
        kind: type
        for kind in waiting.pop().__subclasses__():
            if kind not in found:
                found.append(kind)
                waiting.append(kind)
    return found


def _of_containers() -> list[tuple[Any, str]]:
    return [(kind, name) for kind in container_classes() for name in _CONTAINER if name in vars(kind)]


def count_lines(countdown: Countdown, url: str) -> None:
    """Points are lines of the backend's modules, and of those that local backends share."""
    home = sys.modules[registry.backend(StoreURL.parse(url).scheme).open.__module__]
    modules = {home.__name__, *(kind.__module__ for kind in container_classes())}
    own = [str(Path(name).parent) if (name := _file(sys.modules[m])).endswith("__init__.py") else name for m in modules]
    prefixes = (*own, _file(files), _file(journal))

    def on_line(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            countdown.point()
        return on_line

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        return on_line if frame.f_code.co_filename.startswith(prefixes) else None

    sys.settrace(on_call)
    threading.settrace(on_call)


def _file(module: Any) -> str:
    return inspect.getsourcefile(module) or ""


def make_small(block_bytes: int = 4096, log_blocks: int = 3, few_unsorted: int = 100) -> None:
    """From now on, new stores of blocks have small ones, and merge and sort often: every few steps cross boundaries."""
    from aesg.backends.blocks import BlockStore, layout

    layout.FEW_UNSORTED = few_unsorted  # type: ignore[misc]
    real = BlockStore.__init__

    def init(self: Any, url: str, container: Any, **options: Any) -> None:
        container.block_bytes, container.log_blocks = block_bytes, log_blocks
        real(self, url, container, **options)

    BlockStore.__init__ = init  # type: ignore[method-assign]


# --- jobs ------------------------------------------------------------------------------------------------------------


def write(
    url: str,
    folder: str,
    steps: int,
    every: int,
    at: int = 0,
    points: str = "calls",
    phase: str = "all",
    fail_points: Iterable[str] = (),
    small: bool = False,
) -> None:
    """Go on for so many steps and close; says each thing it has done, with the generation it led to.

    Args:
        url: The store; created when it is not there.
        folder: Where its files are.
        steps: How many.
        every: Compact once in so many steps.
        at: The point to die at; 0: none.
        points: What is a point: "calls", "lines" or "none".
        phase: Points count in this phase: "open", "commit", "compact", "flush", "close", or "all".
        fail_points: Functions of the backend, "module:Class.name", before and after which are points.
        small: Stores of blocks get tiny ones.
    """
    if small:
        make_small()
    countdown = Countdown(at, armed=phase == "all")
    if points == "calls":
        count_calls(countdown, folder)
        count_functions(countdown, fail_points)
    if points == "lines":
        count_lines(countdown, url)
    with countdown.during("open", phase):
        store = aesg.open(url, vector_dim=DIM)
    k = last_step(store)
    say(f"opened {k} {store.generation} {store.uuid}")

    def compact() -> None:
        say(f"compacting {k} {store.generation}")
        with countdown.during("compact", phase):
            store.compact()
        say(f"compacted {k} {store.generation}")

    if k >= 0 and compacts_after(k, every):
        compact()  # perhaps again: a compacted store stays as it is
    last = k + steps
    while k < last:
        with store.transaction() as transaction:
            step(transaction, k + 1)
            with countdown.during("commit", phase):
                transaction.commit()
        k += 1
        say(f"committed {k} {store.generation}")
        if k % 11 == 5:
            with store.transaction() as transaction:
                step(transaction, k + 1)
                transaction.rollback()
        if compacts_after(k, every):
            compact()
        if k % 13 == 8:
            with countdown.during("flush", phase):
                store.flush()
    with countdown.during("close", phase):
        store.close()
    say(f"closed {k} {countdown.points}")


def inspect_store(url: str, mode: registry.Mode) -> None:
    """Open what a kill has left; says what it is."""
    try:
        with aesg.open(url, mode) as store:
            found = {
                "k": last_step(store),
                "generation": store.generation,
                "uuid": store.uuid,
                "digest": digest(store),
                "wrong": inconsistencies(store) + [str(violation) for violation in store.verify()],
            }
        say_json(found)
    except AESGError as error:
        say_json({"error": type(error).__name__, "message": str(error)})
