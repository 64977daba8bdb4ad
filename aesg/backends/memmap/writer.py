"""The writing handle.

A commit writes one journal entry (see `aesg.backends.journal`) and then stores the changes in place. Appended records
are in the files already, past the committed counts; `durability=power_loss` puts them into the entry too, or syncs the
file when they are many, so that one fdatasync makes a small commit durable. A checkpoint brings `meta.npy` and
`store.json` up to date and begins the journal anew.
"""

from __future__ import annotations

import os
import sys
import threading
import uuid
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from aesg.backends.files import WriterLock, commit_lock, os_errors, sync_directory
from aesg.backends.ids import IdIndex
from aesg.backends.journal import Journal
from aesg.backends.lists import CACHE_BYTES
from aesg.backends.memmap import beside, redo
from aesg.backends.memmap.compact import write_compacted
from aesg.backends.memmap.directory import (
    JOURNAL,
    LOCK,
    Opened,
    create,
    has_store,
    load_meta,
    open_at_rest,
    open_files,
    recognises,
    recover,
    write_heads,
)
from aesg.backends.memmap.format import EDGES, NODES
from aesg.backends.memmap.handle import MemmapStore
from aesg.backends.memmap.reader import MemmapReader
from aesg.backends.memmap.tables import MemmapTables
from aesg.backends.memmap.verify import check_sample
from aesg.backends.tables import Tables, WritableTables
from aesg.errors import CapacityError, InvalidInputError, StorageError
from aesg.protocols import Durability
from aesg.records import EVENT_DTYPE, Rows
from aesg.threads import process

_CHECKPOINT_BYTES: Final = {Durability.PROCESS_CRASH: 1 << 22, Durability.POWER_LOSS: 1 << 26}
"""Journal size at which to checkpoint: cheap without syncs, and worth putting off with them."""
_CHECKPOINT_MOST: Final = 1 << 28
_CHECKPOINT_COMMITS: Final = 4096
"""With syncs and large commits, or columns that the records have yet to get, it is put off further, until the journal
is as large as the store or this, or holds so many commits: a checkpoint goes through every page that commits have
changed, and with syncs the next change of each costs ten times what later ones do. A recovery reads all of the journal,
and takes its time over every commit."""
_JOURNALED_TAIL: Final = 1 << 22
"""Appended bytes up to which a synced commit writes them twice rather than syncing a second file."""


class MemmapWriter(MemmapStore):
    """The one handle that writes. In a forked child it reads, through files of its own."""

    def __init__(
        self, url: str, directory: Path, dim: int | None, durability: Durability, cache_bytes: int = CACHE_BYTES
    ) -> None:
        super().__init__(url, directory, durability, cache_bytes, read_only=False)
        self._sync = durability is Durability.POWER_LOSS
        self._child: MemmapReader | None = None
        if dim is None and not recognises(directory):
            raise InvalidInputError(f"{url}: there is no store yet; a new one needs vector_dim=…")
        with os_errors("creating", directory):
            directory.mkdir(parents=True, exist_ok=True)
        self._writer_lock = WriterLock(directory / LOCK, url)
        try:
            self._open(dim)
        except BaseException:
            self._writer_lock.release()
            raise
        self._pid = os.getpid()
        _writers.add(self)

    def __del__(self) -> None:
        # Not at the end of the process: half of Python is gone then, and the journal holds every commit anyway.
        if hasattr(self, "_pid") and not self._closed and not sys.is_finalizing():
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=1)
            self.close()

    def _open(self, dim: int | None) -> None:
        if not has_store(self.directory):
            if dim is None:
                raise InvalidInputError(f"{self.url}: there is no store yet; a new one needs vector_dim=…")
            create(self.directory, dim, sync=self._sync)
        meta = load_meta(self.directory, dim, self.url)
        path = self.directory / JOURNAL
        if recovering := path.exists():
            with os_errors("opening", path):
                left = Journal(path, version=redo.VERSION)
            try:
                self._opened = recover(self.directory, left, meta, sync=self._sync)
            finally:
                left.close()
        else:
            self._opened = open_at_rest(self.directory, meta, writable=True)
        files = self._opened.files
        files.events.syncs_ahead = self._sync
        try:
            check_sample(files, self._opened.state)
            self._opened.uuid = self._opened.uuid or str(uuid.uuid4())
            self._capacities = (files.nodes.capacity, files.edges.capacity)
            with commit_lock(files.nodes.fd, exclusive=True):
                self._remove_compacted()
                if self._sync:
                    files.sync()  # who wrote before may not have: a durable commit must not stand on what is not
                if recovering or self._sync:
                    write_heads(self.directory, self._opened, self._capacities, sync=self._sync)
                self._journal = self._created_journal()
                try:
                    beside.remove(self.directory)  # what a killed writer left; it is in the records now
                    self._begin_journal()
                except BaseException:
                    self._journal.close()
                    raise
        except BaseException:
            files.close()
            raise

    # Transactions

    def _begin(self) -> WritableTables:
        return MemmapTables.working(self._opened.files, self._opened.state)

    def _commit(self, tables: WritableTables) -> None:
        assert isinstance(tables, MemmapTables)
        nodes, edges = tables.pending_nodes, tables.pending_edges
        if tables.state == self._opened.state and not nodes.changed and not edges.changed:
            return
        parts = [*redo.changes(0, nodes), *redo.changes(1, edges)]
        if self._sync:
            parts += self._durable_tails(tables)
        generation = self._opened.generation + 1
        head = redo.encode_state(tables.state, redo.count_operations(parts))
        happened = False
        try:
            with commit_lock(self._opened.files.nodes.fd, exclusive=True):
                self._journal.append(generation, [head, *parts])
                happened = True
                if edges.changed or nodes.has_changed("head_edge_idx"):
                    self._lists.clear()
                nodes.apply()
                edges.apply()
                self._journal.set_marks(self._opened.files.nodes.beside.rows())
                self._journal.mark_applied(generation)
                self._opened.state = tables.state
                self._opened.generation = generation
                if self._is_checkpoint_due():
                    with suppress(CapacityError):  # the commit stands; the next one tries again
                        self._checkpoint()
        except BaseException as error:
            if happened:
                raise self._given_up() from error
            raise

    def _given_up(self) -> StorageError:
        """Close after a failure to carry out what the journal has: whoever opens the store next will."""
        self._closed = True
        self._release()
        return StorageError(
            f"{self.url}: the commit is in the journal but could not be carried out; open the store again"
        )

    def _durable_tails(self, tables: MemmapTables) -> list[Any]:
        """What makes appended records durable: operations of the entry when they are few, a sync of the file if not."""
        parts: list[Any] = []
        for number, table in enumerate((tables.pending_nodes, tables.pending_edges)):
            if table.count > table.base_count:
                tail = redo.pending_tail(table)
                if tail.nbytes > _JOURNALED_TAIL:
                    table.file.sync()
                else:
                    parts += redo.appended(number, table.file.dtype.itemsize, table.base_count, tail)
        first, last = self._opened.state.events, tables.state.events
        if last > first:
            log = self._opened.files.events
            if (last - first) * EVENT_DTYPE.itemsize > _JOURNALED_TAIL:
                log.sync()
            else:
                parts += redo.appended(2, EVENT_DTYPE.itemsize, first, log.read(first, last).view(np.uint8))
        return parts

    def _rollback(self, tables: WritableTables) -> None:
        assert isinstance(tables, MemmapTables)
        if self._closed:  # by a commit that could not be carried out: recovery will cut off what is left
            return
        files = self._opened.files
        with commit_lock(files.nodes.fd, exclusive=True):
            # Also what a full disk left of an append that failed half-way.
            for table in (tables.pending_nodes, tables.pending_edges):
                if table.appended:
                    table.file.clear_tail()
            if files.events.bytes() > self._opened.state.events * EVENT_DTYPE.itemsize:
                files.events.truncate(self._opened.state.events)
            files.forget_tail()

    # Checkpoints

    def _created_journal(self) -> Journal:
        path = self.directory / JOURNAL
        with os_errors("creating", path):
            return Journal(path, create=True, sync=self._sync, version=redo.VERSION)

    def _begin_journal(self) -> None:
        """Start the journal with an entry that only says where we are."""
        self._journal.restart(self._opened.generation, [redo.encode_state(self._opened.state)])
        self._journal.mark_applied(self._opened.generation)
        self._journal_begins = self._opened.generation

    def _is_checkpoint_due(self) -> bool:
        size = self._journal.size
        if size <= _CHECKPOINT_BYTES[self._durability]:
            return False
        if self._opened.generation - self._journal_begins > _CHECKPOINT_COMMITS:
            return True
        files = (self._opened.files.nodes, self._opened.files.edges)
        if not self._sync and not files[0].beside.stale:
            return True
        return size > min(sum(file.count * file.dtype.itemsize for file in files), _CHECKPOINT_MOST)

    def _checkpoint(self) -> None:
        files = self._opened.files
        files.nodes.bring_up()
        if self._sync:
            files.sync()
        room = (files.nodes.capacity, files.edges.capacity)
        write_heads(self.directory, self._opened, room, sync=self._sync)
        self._begin_journal()

    def _flush(self) -> None:
        with commit_lock(self._opened.files.nodes.fd, exclusive=True):
            self._checkpoint()

    def _close(self) -> None:
        if os.getpid() != self._pid:
            if self._child is not None:
                self._child.close()
            return
        files = self._opened.files
        try:
            if files.ids is not None:
                with suppress(CapacityError):  # it can be made anew
                    files.ids.save(files.id_sidecar, files.nodes)
            with commit_lock(files.nodes.fd, exclusive=True):
                files.nodes.bring_up()
                if self._sync:
                    files.sync()
                room = self._room_at_rest()
                write_heads(self.directory, self._opened, room, sync=self._sync)
                for file, capacity in zip((files.nodes, files.edges), room, strict=True):
                    if capacity != file.capacity:
                        with os_errors("truncating", file.path):
                            os.ftruncate(file.fd, capacity * file.dtype.itemsize)
                with os_errors("removing", self.directory / JOURNAL):
                    (self.directory / JOURNAL).unlink(missing_ok=True)
                    if self._sync:
                        sync_directory(self.directory)
                beside.remove(self.directory)
        finally:
            self._release()

    def _room_at_rest(self) -> tuple[int, int]:
        """Capacities without what growth took ahead of need. Edges keep some: 0.3.0 cannot grow their file."""
        (nodes, edges), state = self._capacities, self._opened.state
        return max(nodes, state.nodes), max(edges, state.edges + state.edges // 8 if state.edges > edges else 0)

    def _release(self) -> None:
        self._journal.close()
        self._opened.files.close()
        self._writer_lock.release()
        _writers.discard(self)

    def _compact(self, min_confidence: float) -> Rows:
        old = self._opened.files
        tables = MemmapTables.committed(old, self._opened.state)
        happened = False
        try:
            row_map, state = write_compacted(tables, min_confidence, suffix=redo.COMPACTED, sync=self._sync)
            with commit_lock(old.nodes.fd, exclusive=True):
                # Only this entry may be in the journal while the files change places: earlier ones speak of the old
                # files.
                self._checkpoint()
                generation = self._opened.generation + 1
                entry = redo.encode_state(state, len(redo.swaps())) + b"".join(redo.swaps())
                self._journal.append(generation, [entry])
                happened = True
                redo.replay(entry, self.directory, old.nodes.dtype.itemsize)
                with os_errors("removing", old.id_sidecar):
                    old.id_sidecar.unlink(missing_ok=True)
                files = open_files(self.directory, old.dim, (state.nodes, state.edges), writable=True)
                files.ids = IdIndex()
                files.events.syncs_ahead = self._sync
                beside.remove(self.directory)
                self._opened = Opened(files, state, generation, self._opened.uuid)
                self._lists.clear()
                self._capacities = (files.nodes.capacity, files.edges.capacity)
                if self._sync:
                    sync_directory(self.directory)
                write_heads(self.directory, self._opened, self._capacities, sync=self._sync)
                # A new journal file tells readers that the data files are new ones too.
                done, self._journal = self._journal, self._created_journal()
                done.close()
                self._begin_journal()
        except BaseException as error:
            if happened:
                raise self._given_up() from error
            self._remove_compacted()
            raise
        old.close()
        return row_map

    def _remove_compacted(self) -> None:
        for name in (NODES, EDGES):
            path = self.directory / (name + redo.COMPACTED)
            with os_errors("removing", path):
                path.unlink(missing_ok=True)

    # Forks

    def _forked(self) -> None:
        """In a child of the process that opened it: a handle that reads."""
        self._lock, self._writer = threading.RLock(), threading.Lock()
        if self._open_transaction is not None:
            self._open_transaction.abandon()
        self._writer_thread = self._open_transaction = None
        self._read_only = True
        self._writer_lock.forget()

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        with self._lock:
            self._check_usable()
            if process() == self._pid:
                yield self._committed()
                return
            if self._child is None:
                dim = self._opened.files.dim
                self._child = MemmapReader(self.url, self.directory, dim, self._durability, self._lists.nbytes)
            with self._child.reading() as tables:
                self._opened = self._child._opened
                yield tables


_writers: Final[weakref.WeakSet[MemmapWriter]] = weakref.WeakSet()


def _after_fork() -> None:
    for writer in list(_writers):
        writer._forked()
    _writers.clear()


os.register_at_fork(after_in_child=_after_fork)
