"""What happens to a store when there is no room for it, or no permission: jobs of `aesg.testing.forks`.

Each in a process of its own, which may mount a small disk, lower its limits and give up its rights.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np

import aesg
from aesg.backends.registry import Mode
from aesg.errors import (
    AESGError,
    CapacityError,
    ClosedError,
    NotFoundError,
    ReadOnlyError,
    StorageError,
    TransactionError,
)
from aesg.protocols import Graph, GraphStore
from aesg.records import EventType, events
from aesg.testing.crash_writer import Countdown, count_calls
from aesg.testing.forks import say_json
from aesg.testing.graphs import DIM, batch, fill
from aesg.testing.steps import digest, inconsistencies

FOLDER: Final = "/FOLDER"
"""Stands for the folder of a store in the template of its URL."""
_DISK: Final = "32m"
_ROOM: Final = 3_000_000
"""What is left of the disk for commits: more than any backend takes at a time."""
_TURNS: Final = 400
_NOBODY: Final = 65534
_NEW_NAMESPACE, _NEW_USER, _PRIVATE = 0x00020000, 0x10000000, 0x4000 | 1 << 18


class CannotTryError(Exception):
    """This machine does not allow what the job needs."""


# --- a small disk ----------------------------------------------------------------------------------------------------


def mount_disk(folder: Path) -> None:
    """Mount a small disk there, which this process alone sees and which goes with it.

    Raises:
        CannotTryError: That is not permitted here.
    """
    try:
        system = ctypes.CDLL(None, use_errno=True)
        unshare, mount = system.unshare, system.mount
    except (OSError, AttributeError) as error:
        raise CannotTryError(f"no small disk can be mounted here: {error}") from error

    def check(done: int, doing: str) -> None:
        if done:
            raise CannotTryError(f"no small disk can be mounted here: {doing}: {os.strerror(ctypes.get_errno())}")

    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and unshare(_NEW_NAMESPACE) == 0:
        pass
    else:
        check(unshare(_NEW_NAMESPACE | _NEW_USER), "unshare")
        try:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        except OSError as error:
            raise CannotTryError(f"no small disk can be mounted here: {error}") from error
    check(mount(b"none", b"/", None, _PRIVATE, None), "making / private")
    check(mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={_DISK}".encode()), "mount")


def free(folder: Path) -> int:
    """Bytes that are free on a disk."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_bsize


@contextmanager
def filled(folder: Path, leave: int = 0) -> Iterator[None]:
    """Every byte of the disk but `leave` is taken."""
    ballast = folder / "ballast"
    with open(ballast, "wb") as file:
        file.truncate(0)
        while free(folder) > leave:
            file.write(bytes(min(1 << 20, free(folder) - leave)))
            file.flush()
    yield
    ballast.unlink()


# --- a store on it ---------------------------------------------------------------------------------------------------


class Place:
    """A store in a folder, by a template of its URL."""

    def __init__(self, template: str, folder: Path) -> None:
        self._template, self.folder = template, folder
        folder.mkdir(exist_ok=True)

    @property
    def url(self) -> str:
        """Of the store."""
        return self._template.replace(FOLDER, quote(str(self.folder)))

    def copied(self, to: Path) -> Place:
        """The same store in another folder, as its files are now."""
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.folder, to)
        return Place(self._template, to)

    def open(self, mode: Mode = "a", dim: int | None = None) -> GraphStore:
        """Open it."""
        return aesg.open(self.url, mode, vector_dim=dim)

    def check(self, *wanted: str) -> None:
        """It opens in both modes, first for reading, and is one of these states, whole."""
        for mode in ("r", "a"):
            with self.open("r" if mode == "r" else "a") as store:
                check(store, *wanted)


def check(store: GraphStore, *wanted: str) -> None:
    """A store is one of these states, whole."""
    found = digest(store)
    expect(found in wanted, f"{store!r} does not hold what was committed")
    said = inconsistencies(store) + [str(violation) for violation in store.verify()]
    expect(not said, f"{store!r}: {said}")


def expect(holds: bool, said: str) -> None:
    """What an assert is, for a module whose asserts nobody rewrites."""
    if not holds:
        raise AssertionError(said)


# All of it made up, so that nobody can compress it.


def _append_nodes(graph: Graph, turn: int) -> None:
    graph.nodes.append(batch(2000, 100_000 + 2000 * turn, seed=turn))


def _append_edges(graph: Graph, turn: int) -> None:
    rng = np.random.default_rng(turn)
    graph.edges.append(rng.integers(0, 12, 5000), rng.integers(0, 12, 5000), rng.random(5000), rng.random(5000))


def _append_events(graph: Graph, turn: int) -> None:
    ids = np.random.default_rng(turn).integers(0, 2**63, (2, 5000))
    graph.events.append(events(EventType.PRUNE, ids[0], ids[1], timestamp=turn))


def _set_attrs(graph: Graph, turn: int) -> None:
    graph.attrs[f"long {turn}"] = np.random.default_rng(turn).bytes(50_000).hex()


def _change_columns(graph: Graph, turn: int) -> None:
    graph.nodes.transform(lambda columns: {"vector": columns["vector"] + 1}, ["vector"], ["vector"])


def _everything(graph: Graph, turn: int) -> None:
    for act in (_append_nodes, _append_edges, _append_events, _set_attrs):
        act(graph, turn)


ACTS: Final[dict[str, Callable[[Graph, int], None]]] = {
    "nodes": _append_nodes,
    "edges": _append_edges,
    "events": _append_events,
    "attributes": _set_attrs,
    "columns": _change_columns,
    "all": _everything,
}
"""What fills a disk."""


def until_full(
    act: Callable[[int], None], turns: int = _TURNS, full: tuple[type[AESGError], ...] = (CapacityError,)
) -> int | None:
    """Repeat until the disk is full; how often it went well, None when it never was full."""
    for turn in range(turns):
        try:
            act(turn)
        except full:
            return turn
    return None


# --- jobs on a full disk ---------------------------------------------------------------------------------------------


def job(function: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """A job that says what it found, or why it cannot be tried here."""

    def run(**arguments: Any) -> None:
        try:
            say_json(function(**arguments))
        except CannotTryError as error:
            say_json({"skipped": str(error)})

    return run


def _on_a_disk(template: str, folder: str) -> tuple[Path, Place]:
    disk = Path(folder) / "disk"
    disk.mkdir()
    mount_disk(disk)
    return disk, Place(template, disk / "place")


@job
def commits_until_full(template: str, folder: str, kind: str) -> dict[str, Any]:
    """Commits of one kind until the disk is full; then there is space again."""
    disk, place = _on_a_disk(template, folder)
    store, model = place.open(dim=DIM), aesg.open("memory:", vector_dim=DIM)
    for each in (store, model):
        fill(each)
        if kind == "columns":
            each.nodes.append(batch(20_000, 1000))
    generation = store.generation

    def act(turn: int) -> None:
        nonlocal generation
        with store.transaction() as graph:
            ACTS[kind](graph, turn)
        generation = store.generation
        ACTS[kind](model, turn)  # committed, so it is part of what has to be there

    with filled(disk, leave=_ROOM):
        done = until_full(act)
        if done is not None:
            committed = digest(model)
            check(store, committed)
            expect(store.generation == generation, "the generation has moved, but nothing was committed")
            with place.open("r") as reader:
                check(reader, committed)
            with suppress(CapacityError):
                act(done)
            committed = digest(model)
            check(store, committed)
            place.copied(Path(folder) / "left").check(committed)  # as after a kill, on another disk
    act(_TURNS)
    store.close()
    place.check(digest(model))
    return {"commits": done}


@job
def transaction_that_fills_it(template: str, folder: str, kind: str) -> dict[str, Any]:
    """One transaction larger than the disk."""
    disk, place = _on_a_disk(template, folder)
    store = place.open(dim=DIM)
    fill(store)
    before, generation = digest(store), store.generation
    ended = ""
    with filled(disk, leave=_ROOM // 6):
        transaction = store.transaction()
        if until_full(lambda turn: ACTS[kind](transaction, turn), 40) is None:
            ended = "commit"
            try:
                transaction.commit()
            except CapacityError:
                ended = "refused commit"
        try:
            len(transaction.nodes)
            raise AssertionError("a transaction that failed can still be used")
        except TransactionError:
            pass
        expect(ended != "commit", "more was committed than the disk has room for")
        check(store, before)
        expect(store.generation == generation, "the generation has moved, but nothing was committed")
        place.copied(Path(folder) / "left").check(before)
    with store.transaction() as graph:
        ACTS[kind](graph, 0)
    after = digest(store)
    store.close()
    place.check(after)
    return {"refused": ended or "a write"}


@job
def maintenance_when_full(template: str, folder: str) -> dict[str, Any]:
    """Compacting, flushing, closing and opening, with no byte left."""
    disk, place = _on_a_disk(template, folder)
    store = place.open(dim=DIM)
    fill(store)
    with store.transaction() as graph:
        graph.nodes.append(batch(5000, 5000))
        graph.edges.append(np.arange(5000), np.arange(5000)[::-1])
        graph.nodes.write(np.arange(5, 500), is_active=0)
    wanted = digest(store)
    refused = {}

    def attempt(name: str, act: Callable[[], object]) -> bool:
        try:
            act()
            refused[name] = False
        except CapacityError:
            refused[name] = True
        return not refused[name]

    with filled(disk):
        if attempt("compact", store.compact):
            expect(len(store.nodes) == 5012 - 495, "compacted, and yet the pruned nodes are there")
            wanted = digest(store)
        check(store, wanted)
        attempt("flush", store.flush)
        check(store, wanted)
        attempt("close", store.close)
        store.close()
        with place.open("r") as reader:
            check(reader, wanted)
        if attempt("open", lambda: place.open().close()) or not refused["close"]:
            with place.open("r") as reader:
                check(reader, wanted)
    place.check(wanted)
    with place.open() as store:
        store.compact()
        expect(len(store.nodes) == 5012 - 495, "there is space again, and yet the pruned nodes are there")
        wanted = digest(store)
    place.check(wanted)
    return {"refused": refused}


@job
def creation_when_full(template: str, folder: str) -> dict[str, Any]:
    """A new store, with no byte left; then there is space."""
    disk, place = _on_a_disk(template, folder)
    with filled(disk):
        for _ in range(2):
            try:
                place.open(dim=DIM).close()
                raise AssertionError("a store was created where there is no room for one")
            except CapacityError:
                pass
        try:
            place.open("r").close()
            raise AssertionError("a store that could not be created can be opened")
        except NotFoundError:
            pass
    with place.open(dim=DIM) as store:
        fill(store)
        wanted = digest(store)
    place.check(wanted)
    return {}


# --- a disk that fills up at any call --------------------------------------------------------------------------------


class _FullDisk(Countdown):
    """Says that the disk is full, at one call."""

    def end(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@job
def full_at_any_call(template: str, folder: str, tries: int) -> dict[str, Any]:
    """One call that changes a file says that the disk is full: in commits, flushes, compactions and closes."""
    root = Path(folder)
    original = Place(template, root / "original")
    with original.open(dim=DIM) as store:
        fill(store, 40)
        store.nodes.write([3, 7], is_active=0)
    disk = _FullDisk(0, armed=False)
    count_calls(disk, str(root), removals=False)
    found: dict[str, Any] = {}
    for name, act in _USES.items():
        trial = _Trial(original, root, disk, act)
        calls = trial.run(0)
        for number in sorted({1 + i * calls // tries for i in range(tries)}) if calls else ():
            trial.run(number)
        found[name] = {"calls": calls} | trial.outcomes
    return found


def _commit(store: GraphStore) -> None:
    with store.transaction() as graph:
        graph.nodes.append(batch(300, 5000))
        graph.edges.append(np.arange(300), np.arange(300)[::-1], 0.5)
        graph.events.append(events(EventType.PRUNE, np.arange(100), 1, timestamp=1))
        graph.nodes.write([0], relevance=0.25)


_USES: Final[dict[str, Callable[[GraphStore], object]]] = {
    "commit": _commit,
    "flush": lambda store: store.flush(),
    "compact": lambda store: store.compact(),
    "close": lambda store: store.close(),
}


class _Trial:
    """One use of a store, of which one call after another fails.

    Attributes:
        outcomes: How often the use went on all the same, was refused, or left it to the next opening to say.
    """

    def __init__(self, original: Place, root: Path, disk: _FullDisk, act: Callable[[GraphStore], object]) -> None:
        self._original, self._root, self._disk, self._act = original, root, disk, act
        self._after = ""
        self.outcomes = {"went on": 0, "refused": 0, "in doubt": 0}

    def run(self, number: int) -> int:
        """Fail at this call, at none if 0; how many there were."""
        place = self._original.copied(self._root / "copy")
        store, disk = place.open(), self._disk
        store.attrs["began"] = True
        before = digest(store)
        disk.at, disk.points, disk.armed = number, 0, True
        try:
            self._act(store)
            outcome = "went on"
        except CapacityError:
            outcome = "refused"
        except StorageError:  # it cannot say whether it happened
            outcome = "in doubt"
        finally:
            disk.armed = False
        usable = _is_open(store)
        if not number:
            self._after = digest(store) if usable else before
        else:
            self.outcomes[outcome] += 1
        wanted = {"went on": (self._after,), "refused": (before,), "in doubt": (before, self._after)}[outcome]
        if usable:
            check(store, *wanted)
            if outcome == "refused":  # there is space again
                self._act(store)
                wanted = (self._after,)
            elif outcome == "in doubt":  # a handle that goes on has to know what it stands on
                with suppress(StorageError, ClosedError, ReadOnlyError):
                    store.attrs["goes"] = "on"
                    wanted = (digest(store),)
        store.close()
        place.check(*wanted)
        return disk.points


def _is_open(store: GraphStore) -> bool:
    try:
        len(store.nodes)
    except (ClosedError, StorageError):  # it has closed itself, or says that it is to be opened again
        return False
    return True


# --- limits ----------------------------------------------------------------------------------------------------------


@job
def files_that_may_not_grow(template: str, folder: str) -> dict[str, Any]:
    """A limit on the size of files, which a system sets as it sets a quota."""
    place = Place(template, Path(folder) / "place")
    store = place.open(dim=DIM)
    fill(store)
    sizes = [path.stat().st_size for path in place.folder.rglob("*") if path.is_file()]
    last = [digest(store)]

    def act(turn: int) -> None:
        with store.transaction() as graph:
            _append_nodes(graph, turn)
            _append_edges(graph, turn)
        last[:] = [digest(store)]

    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) + 300_000, resource.RLIM_INFINITY))
    refusals = (CapacityError, StorageError)  # what a library makes of EFBIG
    done = until_full(act, 30, refusals)
    if done is not None:
        check(store, *last)
        with suppress(*refusals):
            _change_columns(store, 0)
            last[:] = [digest(store)]
        check(store, *last)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    act(_TURNS)
    store.close()
    place.check(*last)
    return {"commits": done}


@job
def more_files_than_may_be_open(template: str, folder: str) -> dict[str, Any]:
    """A limit on the number of open files: StorageError, and nothing leaks by trying."""
    place = Place(template, Path(folder) / "place")
    with place.open(dim=DIM) as store:
        fill(store)
        before = digest(store)
    opened: list[GraphStore] = []
    most = max(int(name) for name in os.listdir("/dev/fd")) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    refused = 0
    for _ in range(60):
        try:
            opened.append(place.open("r"))
        except StorageError:
            refused += 1
    expect(len(opened) > 1, "not even two readers at a time")
    with suppress(StorageError):  # it may have to open a file to read
        check(opened[0], before)
    for reader in opened[1:]:
        reader.close()
    check(opened[0], before)
    opened[0].close()
    place.check(before)
    return {"opened": len(opened), "refused": refused}


# --- permissions -----------------------------------------------------------------------------------------------------


@job
def folder_that_may_not_be_written(template: str, folder: str, leave_open: bool) -> dict[str, Any]:
    """A store, closed or as after a kill, in a folder that is for reading."""
    # Its own, since others keep root from looking into theirs; removed at the end by who made it.
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)  # noqa: S103 - anyone is to look into it
        place = Place(template, Path(root) / "place")
        store = place.open(dim=DIM)
        fill(store)
        before = digest(store)
        if leave_open:
            left = place.copied(Path(root) / "left")
            store.close()
            place = left
        else:
            store.close()
        for path in (place.folder, *place.folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        with _not_root():
            said = _use_forbidden(place, before, whole=not leave_open)
        for path in (place.folder, *place.folder.rglob("*")):
            path.chmod(0o755)
        place.check(before)
    return {"writing": said}


def _use_forbidden(place: Place, before: str, *, whole: bool) -> str:
    said = ""
    for _ in range(2):
        try:
            place.open().close()
            raise AssertionError("a store that may not be written was opened for writing")
        except (StorageError, ReadOnlyError) as error:
            said = str(error)
            expect(str(place.folder) in said, f"the error does not name the store: {said}")
        try:
            with place.open("r") as store:
                check(store, before)
        except (StorageError, ReadOnlyError):
            expect(not whole, "a closed store cannot be read where it may not be written")
    return said


@contextmanager
def _not_root() -> Iterator[None]:
    """Permissions do not stop root."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        os.setegid(_NOBODY)
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        os.setegid(group)
