"""The reading handle: beside a writer or without one. Each call sees the newest commit, whole.

A writer changes the files only while it holds the commit lock exclusively, and says so in the header of its journal; a
read holds the lock shared, looks at the header, and goes on when nothing has moved. Where it has, the state is taken
from the journal's newest entry, or everything is opened anew.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from aesg.backends.files import WriterLock, commit_lock, os_errors
from aesg.backends.journal import Journal
from aesg.backends.lists import CACHE_BYTES
from aesg.backends.memmap import beside, redo
from aesg.backends.memmap.beside import FIELDS
from aesg.backends.memmap.directory import (
    JOURNAL,
    LOCK,
    has_store,
    load_meta,
    open_at_rest,
    open_beside_writer,
    recover,
    write_heads,
)
from aesg.backends.memmap.format import META, NODES
from aesg.backends.memmap.handle import MemmapStore
from aesg.backends.memmap.tables import State
from aesg.backends.memmap.verify import check_sample
from aesg.backends.tables import Tables, WritableTables
from aesg.errors import CorruptionError, LockedError, NotFoundError, ReadOnlyError, StorageError
from aesg.protocols import Durability
from aesg.records import Rows

_PATIENCE: Final = 10.0
"""Seconds that a reader waits for a writer to finish what it is doing."""


class MemmapReader(MemmapStore):
    """A handle that reads."""

    def __init__(
        self, url: str, directory: Path, dim: int | None, durability: Durability, cache_bytes: int = CACHE_BYTES
    ) -> None:
        super().__init__(url, directory, durability, cache_bytes, read_only=True)
        self._journal: Journal | None = None
        self._meta_seen = (0, 0)
        # As strings: they are looked at in every call, and a Path costs more to join than the look.
        self._journal_path, self._meta_path = str(directory / JOURNAL), str(directory / META)
        self._is_open = False
        self._open(dim)

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        with self._lock:
            while True:
                self._check_usable()
                with commit_lock(self._opened.files.nodes.fd, exclusive=False):
                    if self._up_to_date():
                        yield self._committed()
                        return
                self._open()

    def _up_to_date(self) -> bool:
        """Whether the open files are the store's and the state the newest; moves on where that is all it takes."""
        journal = self._journal
        inode, _ = _stamp(self._journal_path)
        if journal is None:
            return inode == 0 and _stamp(self._meta_path) == self._meta_seen
        if inode != journal.inode or journal.pending:
            return False
        if journal.generation == self._opened.generation:
            return True
        files = self._opened.files
        self._lists.clear()
        files.nodes.beside.follow(_beside(journal))
        self._opened.generation, self._opened.state = _newest(journal)
        state = self._opened.state
        files.nodes.count, files.edges.count = state.nodes, state.edges
        files.events.reopen()
        return files.nodes.reach(state.nodes) and files.edges.reach(state.edges)

    def _open(self, dim: int | None = None) -> None:
        """Open the files as they are now."""
        deadline = time.monotonic() + _PATIENCE
        while not self._try_open(dim):
            if time.monotonic() > deadline:
                raise LockedError(f"{self.url}: a writer kept it from being read for {_PATIENCE} seconds; try again")
            time.sleep(0.01)

    def _try_open(self, dim: int | None) -> bool:
        """False when something moved meanwhile."""
        self._release()
        self._lists.clear()
        if not has_store(self.directory):
            raise NotFoundError(f"{self.url}: there is no store; open it with mode='a' to create one")
        self._journal = _watch(self.directory / JOURNAL)
        if self._journal is not None and self._journal.pending and self._recover_if_abandoned():
            return False
        try:
            guard = os.open(self.directory / NODES, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise CorruptionError(f"{self.directory / NODES}: missing, but {META} exists; expected both") from error
        except OSError as error:
            raise StorageError(f"opening {self.directory / NODES}: {error.strerror}") from error
        try:
            with commit_lock(guard, exclusive=False):
                if _stamp(self.directory / NODES)[0] != os.fstat(guard).st_ino:
                    return False
                journal = self._journal
                if _stamp(self._journal_path)[0] != (journal.inode if journal is not None else 0):
                    return False
                self._meta_seen = _stamp(self._meta_path)
                meta = load_meta(self.directory, dim, self.url)
                if journal is None:
                    self._opened = open_at_rest(self.directory, meta, writable=False)
                else:
                    if journal.pending:
                        return False
                    generation, state = _newest(journal)
                    self._opened = open_beside_writer(
                        self.directory, meta.vector_dim, state, generation, _beside(journal)
                    )
                self._is_open = True
                self._opened.uuid = self._opened.uuid or f"0.3.0:{self.directory}"
                check_sample(self._opened.files, self._opened.state)
        finally:
            os.close(guard)
        return True

    def _recover_if_abandoned(self) -> bool:
        """Do what the next writer would do first, when nobody holds the store; False when somebody does."""
        try:
            lock = WriterLock(self.directory / LOCK, self.url)
        except LockedError:
            return False
        except StorageError as error:
            raise ReadOnlyError(
                f"{self.url}: its last writer was killed and the journal has to be applied, which needs write access; "
                f"open it once with mode='a'"
            ) from error
        try:
            path = self.directory / JOURNAL
            if path.exists():
                with os_errors("opening", path):
                    journal = Journal(path, version=redo.VERSION)
                try:
                    sync = self._durability is Durability.POWER_LOSS
                    opened = recover(self.directory, journal, load_meta(self.directory, None, self.url), sync=sync)
                finally:
                    journal.close()
                try:
                    room = (opened.files.nodes.capacity, opened.files.edges.capacity)
                    write_heads(self.directory, opened, room, sync=sync)
                    with os_errors("removing", self.directory / JOURNAL):
                        (self.directory / JOURNAL).unlink()
                    beside.remove(self.directory)
                finally:
                    opened.files.close()
        finally:
            lock.release()
        return True

    def _refresh(self) -> bool:
        before = self._opened.generation
        with self.reading():
            return self._opened.generation != before

    def _release(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._is_open:
            self._is_open = False
            self._opened.files.close()

    def _close(self) -> None:
        self._release()

    # Store begins none of these on a read-only handle.

    def _begin(self) -> WritableTables:
        raise ReadOnlyError(self.url)

    def _commit(self, tables: WritableTables) -> None:
        raise ReadOnlyError(self.url)

    def _rollback(self, tables: WritableTables) -> None:
        raise ReadOnlyError(self.url)

    def _compact(self, min_confidence: float) -> Rows:
        raise ReadOnlyError(self.url)

    def _flush(self) -> None:
        raise ReadOnlyError(self.url)


def _watch(path: Path) -> Journal | None:
    try:
        return Journal(path, writable=False, version=redo.VERSION)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"opening {path}: {error.strerror}") from error


def _beside(journal: Journal) -> list[int]:
    """Rows of each column that lies beside the records."""
    return journal.marks()[: len(FIELDS)] if journal.version >= redo.COLUMNS_BESIDE else [0] * len(FIELDS)


def _newest(journal: Journal) -> tuple[int, State]:
    """Generation and state of the newest commit; for when commits are kept out.

    Raises:
        CorruptionError: The journal's header leads to something else.
    """
    try:
        newest: Any = journal.newest(redo.STATE_HEAD)
        if newest is not None and len(newest[1]) < redo.state_bytes(newest[1]):
            newest = journal.newest(redo.state_bytes(newest[1]))
        if newest is None:
            raise ValueError("there is none where its header points")
        return newest[0], redo.decode_state(newest[1])
    except (ValueError, struct.error) as error:
        raise CorruptionError(f"{journal.path}: expected the entry of {journal.generation}: {error}") from error


def _stamp(path: str | Path) -> tuple[int, int]:
    """Inode and time of change; zeros when there is no such file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns
