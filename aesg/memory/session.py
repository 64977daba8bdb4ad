"""One opened store as the memories of a process share it: the open transaction, when it is committed, who uses it.

Learning goes into a transaction that stays open across many steps and is committed on request, when the last memory
lets go, at interpreter exit, and by a timer at most `interval` seconds after it began. A killed process loses no more.

Opening the same store twice in one process gives the same session, so the second memory sees what the first learned.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.backends import registry
from aesg.backends.registry import Mode
from aesg.backends.url import StoreURL
from aesg.engine.structure import create_sensory
from aesg.errors import (
    AESGError,
    CapacityError,
    ClosedError,
    InvalidInputError,
    LockedError,
    ReadOnlyError,
    TransactionError,
)
from aesg.memory.seeding import seed_index
from aesg.protocols import Graph, GraphStore, Transaction
from aesg.records import Rows, Vectors

_log = logging.getLogger("aesg")

_MOVES: Final = 4
"""Compactions whose row maps are kept, for lanes that were not asked since."""
_PATIENCE: Final = 10.0
"""Seconds that a compaction waits for threads that read."""
QUEUE_BYTES: Final = 1 << 18
"""Concepts that come one by one wait in a queue of this size: one append for a thousand costs what one for one does."""


class Session:
    """An opened store, shared.

    `_lock` is held by whoever works in the open transaction. Memories that only read, while no transaction is open,
    take no lock: they read the store's last commit.

    Attributes:
        store: The opened store.
        index: Its seed index.
        era: Counts the times when rows given out before stopped to mean what they meant: uncommitted learning was lost
            because a write or a commit failed, or a reader moved to a newer commit.
        key: Its place in the registry.
        references: How many memories hold it.
        closing: The last one let go.
        closed: Set when that is done.
        dead: A failure closed the store: whoever opens it again gets a new session.
    """

    def __init__(self, store: GraphStore, key: Hashable) -> None:
        self.store = store
        self.index = seed_index(store)
        self.key = key
        self.era = 0
        self.references = 1
        self.closing = False
        self.dead = False
        self.closed = threading.Event()
        self._lock = threading.RLock()
        self._transaction: Transaction | None = None
        self._timer: threading.Timer | None = None
        self._due = math.inf
        self._failure: BaseException | None = None
        self._forked = False
        self._queue: Vectors = np.empty((0, store.vector_dim), np.float32)
        self._queued = 0
        self._queue_row = 0
        self._moves: dict[int, Rows] = {}  # the era that a compaction began → its row map
        self._gate = Gate()

    @property
    def read_only(self) -> bool:
        """Whether nothing can be learned here: opened for reading, or this is a forked child."""
        return self._forked or self.store.read_only

    @contextmanager
    def reading(self) -> Iterator[Graph]:
        """The graph to read: with what was learned and is not committed yet."""
        if self._transaction is None:
            self._raise_failure()
            with self._gate:
                yield self.store
            return
        with self._lock, self._gate.at_once():
            self._append_queue()
            yield self._transaction or self.store

    @contextmanager
    def learning(self, interval: float) -> Iterator[Graph]:
        """The graph to write to; committed within `interval` seconds.

        When the block raises in the middle of a write, everything since the last commit is gone (a graph is never left
        half-written); when it raises between two writes, the first one stays.

        Raises:
            ReadOnlyError: The store was opened for reading, or by the parent of this process.
        """
        with self._lock:
            transaction = self._begin(interval)
            self._append_queue()
            try:
                yield transaction
            except BaseException:
                self._look_after(transaction)
                raise
            if interval == 0:
                self.commit()

    def enqueue(self, vector: npt.NDArray[Any], interval: float) -> int:
        """Create a sensory concept of a finite vector [D]: what `learning` does, made cheap for one at a time.

        Returns:
            Its row.
        """
        with self._lock:
            transaction = self._begin(interval)
            if not self._queued:
                self._queue_row = len(transaction.nodes)
                if not len(self._queue):
                    dim = transaction.vector_dim
                    self._queue = np.empty((max(1, QUEUE_BYTES // (4 * dim)), dim), np.float32)
            place = self._queued
            self._queue[place] = vector
            self._queued = place + 1
            if self._queued == len(self._queue):
                self._append_queue()
            if interval == 0:
                self.commit()
            return self._queue_row + place

    def commit(self) -> None:
        """Commit what was learned.

        Raises:
            AESGError: The commit failed, or one before it that ran by itself; what it held is lost.
        """
        with self._lock:
            self._raise_failure()
            if self._transaction is None:
                return
            self._append_queue()
            self._stop_timer()
            try:
                self._transaction.commit()
            except BaseException:
                self._lose()
                raise
            else:
                self.index.committed(self._transaction)
            finally:
                self._transaction = None  # not sooner: readers would miss what is being committed

    def save(self) -> None:
        """Commit, and bring every commit to where readers of the format have it."""
        with self._lock:
            self.commit()
            if not self.read_only:
                self.store.flush()
                self.index.save()

    def compact(self, above: float) -> Rows | None:
        """Compact the store when more than this share of its nodes is pruned.

        Returns:
            The row map; None when it was not compacted: too few are, there is no room for the compacted store, or other
            threads read without a pause.
        """
        self.commit()
        if self._dead_share() <= above:
            return None
        # The gate first: who is inside may be about to take the lock.
        with self._gate.closed(_PATIENCE) as alone:
            if not alone or not self._lock.acquire(timeout=_PATIENCE):
                return None
            try:
                self.commit()
                return self._compact()
            finally:
                self._lock.release()

    def _compact(self) -> Rows | None:
        try:
            row_map = self.store.compact()
        except CapacityError as error:
            _log.warning("%s: not compacted after a consolidation: %s", self.store.url, error)
            return None
        self.era += 1  # rows are not what they were
        self._moves[self.era] = row_map
        for era in sorted(self._moves)[:-_MOVES]:
            del self._moves[era]
        try:
            self.index.drop()  # it may have what was dropped; it is built anew in the background
        except AESGError as error:
            _log.warning("%s: the seed index of before a compaction is still there: %s", self.store.url, error)
        return row_map

    def _dead_share(self) -> float:
        """Share of the committed nodes that are pruned."""
        active = sum(int(np.count_nonzero(chunk["is_active"])) for chunk in self.store.nodes.scan(["is_active"]))
        rows = len(self.store.nodes)
        return 1 - active / rows if rows else 0.0

    def moved_since(self, era: int) -> Rows | None:
        """The row that each row of an earlier era has now, -1 for none; None where nobody knows."""
        row_map: Rows | None = None
        for between in range(era + 1, self.era + 1):
            move = self._moves.get(between)
            if move is None:
                return None
            row_map = move if row_map is None else np.where(row_map >= 0, move[row_map], -1)
        return row_map

    def refresh(self) -> bool:
        """Move a read-only store to the newest commit; True when that changed anything."""
        if not self.read_only:
            return False
        moved = self.store.refresh()
        if moved:
            self.era += 1  # the writer may have compacted: rows are not what they were
        return moved

    def close(self) -> None:
        """Commit and close the store, which is closed even when the commit raises."""
        with self._lock:
            try:
                self.commit()
            finally:
                self._stop_timer()
                self._transaction = None
                self.index.close()
                self.store.close()

    def _begin(self, interval: float) -> Transaction:
        self._raise_failure()
        if self._transaction is None:
            if self._forked:
                raise ReadOnlyError(
                    f"{self.store.url}: a forked process only reads the memory that its parent opened; "
                    "to write, open it in the process that writes"
                )
            self._transaction = self.store.transaction()
            self.index.begun(self._transaction)
        due = time.monotonic() + interval
        if interval > 0 and due < self._due:  # memories that share a store may differ in their patience
            self._stop_timer()
            self._due = due
            seconds = min(interval, threading.TIMEOUT_MAX)
            self._timer = threading.Timer(seconds, self._commit_in_time, [self._transaction])
            self._timer.daemon = True
            self._timer.name = f"commits {self.store.url}"
            self._timer.start()
        return self._transaction

    def _append_queue(self) -> None:
        if not self._queued:
            return
        assert self._transaction is not None  # `enqueue` began it, and every commit empties the queue first
        vectors, self._queued = self._queue[: self._queued], 0
        try:
            create_sensory(self._transaction, vectors)
        except BaseException:
            self._look_after(self._transaction)
            raise

    def _look_after(self, transaction: Transaction) -> None:
        """After an exception: a transaction rolls itself back when one of its writes fails half-way."""
        try:
            len(transaction.nodes)
        except (TransactionError, ClosedError):
            if self._transaction is transaction:
                self._transaction = None
                self._stop_timer()
                self._lose()

    def _lose(self) -> None:
        """What was not committed is gone; the next step begins a new transaction, if the store can still be used."""
        self._queued = 0
        self.era += 1
        try:
            len(self.store.nodes)
        except AESGError:
            self.dead = True

    def _commit_in_time(self, transaction: Transaction) -> None:
        with self._lock:
            if self._transaction is transaction:
                try:
                    self.commit()
                except BaseException as error:  # nobody is there to hear it: the next call will
                    self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _stop_timer(self) -> None:
        self._due = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # A fork copies locks as they are, and no threads. Before it, the lock is taken and everything committed, so that
    # the child sees it; the child gets a new lock, no timer, and reads.

    def before_fork(self) -> None:
        """Commit, and hold the lock until the fork is done."""
        self._lock.acquire()
        try:
            self.commit()
        except BaseException as error:  # a fork cannot fail on our account: the next call raises it
            self._failure = error

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Only read from now on."""
        self._lock = threading.RLock()
        self._transaction = None
        self._timer = None
        self._due = math.inf
        self._failure = None
        self._queued = 0
        self._gate = Gate()
        self._forked = True


class Gate:
    """Many pass at a time, until somebody has it closed: who does so waits until all are through. A context manager."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._here = threading.local()  # how often this thread is inside: it may pass again while the gate closes
        self._is_closed = False

    def __enter__(self) -> None:
        self._enter(waits=True)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Pass without waiting: for who holds a lock that whoever closes the gate will want, and so cannot be done."""
        self._enter(waits=False)
        try:
            yield
        finally:
            self.__exit__(None, None, None)

    def _enter(self, *, waits: bool) -> None:
        mine = getattr(self._here, "inside", 0)
        with self._changed:
            while waits and self._is_closed and mine <= 0:
                self._changed.wait()
            self._inside += 1
        self._here.inside = mine + 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._here.inside = getattr(self._here, "inside", 0) - 1
        with self._changed:
            self._inside -= 1
            if not self._inside or self._is_closed:
                self._changed.notify_all()

    @contextmanager
    def closed(self, patience: float) -> Iterator[bool]:
        """Nobody is inside but, perhaps, this thread: whether that came about within so many seconds."""
        mine = getattr(self._here, "inside", 0)
        with self._changed:
            closing = self._changed.wait_for(lambda: not self._is_closed, patience)
            self._is_closed = True  # by this thread, or by another one, who opens it again
            alone = closing and self._changed.wait_for(lambda: self._inside <= mine, patience)
        try:
            yield alone
        finally:
            with self._changed:
                self._is_closed = not closing and self._is_closed
                self._changed.notify_all()


class Handle:
    """One memory's hold on a session: let go by `close`, when nobody refers to it any more, or at interpreter exit.

    A deep copy holds the same session; a pickle holds the store, which opens again for reading.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._release: weakref.finalize[[Session], Handle] = weakref.finalize(self, _release, session)

    @property
    def session(self) -> Session:
        """The session.

        Raises:
            ClosedError: This memory was closed.
        """
        if not self._release.alive:
            raise ClosedError(f"{self._session.store.url}: this memory was closed; open it again")
        return self._session

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._release.alive

    def close(self) -> None:
        """Let go; the last one to do so commits and closes the store."""
        self._release()

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        with _registry_lock:
            self.session.references += 1
        return Handle(self.session)

    def __reduce__(self) -> tuple[Any, ...]:
        self.session.save()
        return _reopened, (self.session.store,)


def attach(
    url: str | os.PathLike[str], mode: Mode, backend: str | None, vector_dim: int | None, default_dim: int
) -> Handle:
    """Open a store, or join the session that this process has on it.

    Args:
        url: A path or a store URL.
        mode: "a" or "r"; each has a session of its own.
        backend: The backend that it must be, or None.
        vector_dim: What the store must have, or None.
        default_dim: What a new store gets when `vector_dim` is None.

    Raises:
        LockedError: Another process writes to it.
        InvalidInputError: It is open already, with other options; or see `aesg.open`.
    """
    parsed = registry.resolve(url, backend_name=backend)
    while True:
        with _registry_lock:
            key = _key(parsed, mode)
            session = _sessions.get(key)
            if session is None or session.dead:
                session = Session(_open(str(parsed), mode, vector_dim, default_dim), key)
                _sessions[key] = session
                return Handle(session)
            _check_agreement(session.store, parsed)
            session.references += 1  # before the look: a garbage collection between the two may release the last other
            if not session.closing:
                return Handle(session)
        session.closed.wait()


def _open(url: str, mode: Mode, vector_dim: int | None, default_dim: int) -> GraphStore:
    try:
        try:
            return registry.open(url, mode, vector_dim=vector_dim)
        except InvalidInputError:
            # A new store must be told its dimension. Any other complaint comes again.
            if vector_dim is not None or mode == "r":
                raise
        return registry.open(url, mode, vector_dim=default_dim)
    except LockedError as error:
        raise LockedError(
            f"{error}. Only one process writes to a memory; others open it with mode='r' "
            "(with DistributedDataParallel: rank 0 with mode='a', the other ranks with mode='r')"
        ) from error


def _key(url: StoreURL, mode: Mode) -> Hashable:
    if not url.path:
        return object()  # a store without a place is nobody else's
    path = url.path if url.authority else os.path.realpath(url.local_path())
    return url.scheme, url.authority, path, mode


def _check_agreement(store: GraphStore, wanted: StoreURL) -> None:
    have = StoreURL.parse(store.url).options
    differing = {name: value for name, value in wanted.options.items() if have.get(name) != value}
    if differing:
        raise InvalidInputError(
            f"{wanted}: this process has it open as {store.url}; close that one first, or open it with the same options"
        )


def _reopened(store: GraphStore) -> Handle:
    session = Session(store, object())
    with _registry_lock:
        _sessions[session.key] = session
    return Handle(session)


def _release(session: Session) -> None:
    with _registry_lock:
        session.references -= 1
        if session.references:
            return
        session.closing = True
    # Not under the registry's lock: closing waits for the timer's thread, where a garbage collection may come here.
    try:
        session.close()
    finally:
        with _registry_lock:
            if _sessions.get(session.key) is session:
                del _sessions[session.key]
        session.closed.set()


_registry_lock = threading.RLock()
_sessions: dict[Hashable, Session] = {}
_forking = threading.local()


def _before_fork() -> None:
    _forking.sessions = list(_sessions.values())
    for session in _forking.sessions:
        session.before_fork()


def _after_fork_in_parent() -> None:
    for session in _forking.sessions:
        session.after_fork_in_parent()
    _forking.sessions = []


def _after_fork_in_child() -> None:
    global _registry_lock
    _registry_lock = threading.RLock()
    for session in _sessions.values():
        session.after_fork_in_child()
    _sessions.clear()  # the child's own openings are its own


_at_fork: Callable[..., None] | None = getattr(os, "register_at_fork", None)  # absent on Windows, which does not fork
if _at_fork is not None:
    _at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
