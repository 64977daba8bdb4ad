"""The memmap store: 0.3.0's four files, and beside them what 0.3.0 has no place for.

    nodes.aesg edges.aesg meta.npy evolution.aesglog    the published format; complete whenever the store is closed
    store.json     uuid, generation, attributes
    journal.redo   commits since the last checkpoint; only while a writer has the store open, or after it was killed
    ids.index      id → row; derived, may be deleted
    writer.lock    locked by the writer, names its pid

A commit writes one journal entry (see `aesg.backends.journal`) and then stores the changes in place. Appended records
are in the files already, past the committed counts; `durability=power_loss` puts them into the entry too, or syncs the
file when they are many, so that one fdatasync makes a small commit durable. A checkpoint brings `meta.npy` and
`store.json` up to date and begins the journal anew.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
import warnings
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from aesg.backends.base import Store, Tables, WritableTables
from aesg.backends.files import WriterLock, commit_lock, os_errors, replace_file, sync_directory
from aesg.backends.journal import Journal
from aesg.backends.memmap import redo
from aesg.backends.memmap.compact import write_compacted
from aesg.backends.memmap.format import (
    EDGE_DTYPE,
    EDGES,
    EVENTS,
    META,
    MIN_EDGES,
    MIN_NODES,
    NODES,
    REMOVED,
    Meta,
    node_dtype,
    read_meta,
)
from aesg.backends.memmap.ids import IdIndex
from aesg.backends.memmap.table import RecordFile
from aesg.backends.memmap.tables import EventFile, Files, MemmapTables, State
from aesg.backends.memmap.verify import check_sample, find_violations
from aesg.errors import (
    CorruptionError,
    InvalidInputError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    SchemaMismatchError,
    StorageError,
)
from aesg.protocols import (
    Atomicity,
    Capabilities,
    Durability,
    Readers,
    ReaderView,
    SpaceReclaim,
    Violation,
    Writers,
)
from aesg.records import EVENT_DTYPE, Rows

STORE: Final = "store.json"
JOURNAL: Final = "journal.redo"
LOCK: Final = "writer.lock"

_CHECKPOINT_BYTES: Final = {Durability.PROCESS_CRASH: 1 << 22, Durability.POWER_LOSS: 1 << 26}
"""Journal size at which to checkpoint: cheap without syncs, and worth putting off with them."""
_PATIENCE: Final = 10.0
"""Seconds that a reader waits for a writer to finish what it is doing."""
_JOURNALED_TAIL: Final = 1 << 22
"""Appended bytes up to which a synced commit writes them twice rather than syncing a second file."""


# --- what lies in a directory ----------------------------------------------------------------------------------------


def recognises(path: Path) -> bool:
    """Whether a directory holds a store of this format, by 0.3.0 or by us."""
    return any((path / name).is_file() for name in (META, NODES, EDGES, STORE))


def _write_store_json(directory: Path, identity: str, generation: int, state: State, *, sync: bool) -> None:
    body = {
        "format": 1,
        "uuid": identity,
        "generation": generation,
        "nodes": state.nodes,
        "edges": state.edges,
        "removed_edges": state.removed,
        "events": state.events,
        "attrs": state.attrs,
    }
    text = json.dumps(body, indent=1)
    crc = zlib.crc32(text.encode())
    replace_file(directory / STORE, json.dumps({"crc32": crc, "store": text}).encode(), sync=sync)


def _read_store_json(directory: Path) -> dict[str, Any] | None:
    """The body of `store.json`; None when there is none, as in a directory that only 0.3.0 has written.

    Raises:
        CorruptionError: It is not what we wrote.
    """
    path = directory / STORE
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"reading {path}: {error.strerror}") from error
    try:
        outer = json.loads(raw)
        text = outer["store"]
        if zlib.crc32(text.encode()) != outer["crc32"]:
            raise ValueError("the checksum does not match")
        body = json.loads(text)
        if body["format"] != 1:
            raise CorruptionError(f"{path}: format {body['format']}, expected 1; was it written by a newer version?")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptionError(f"{path}: expected a JSON object with a matching checksum; {error}") from error
    return dict(body)


def _create(directory: Path, dim: int, identity: str, *, sync: bool) -> None:
    """Make an empty store. `store.json` without `meta.npy` marks a creation that was cut short."""
    empty = State(0, 0, 0, 0, {})
    _write_store_json(directory, identity, 0, empty, sync=sync)
    sizes = {NODES: MIN_NODES * node_dtype(dim).itemsize, EDGES: MIN_EDGES * EDGE_DTYPE.itemsize, EVENTS: 0}
    for name, size in sizes.items():
        with os_errors("creating", directory / name), open(directory / name, "wb") as file:
            file.truncate(size)
            if sync:
                os.fsync(file.fileno())
    replace_file(directory / META, Meta(0, 0, dim, MIN_NODES, MIN_EDGES).to_bytes(), sync=sync)


def _has_store(directory: Path) -> bool:
    """Whether there is a store to open; False also for a creation that was cut short.

    Raises:
        CorruptionError: There are data files but no `meta.npy`.
    """
    if (directory / META).is_file():
        return True
    left = [name for name in (NODES, EDGES, EVENTS) if (directory / name).exists()]
    body = _read_store_json(directory)
    cut_short = body is not None and body["generation"] == 0 and not body["nodes"] and not body["edges"]
    if left and not cut_short:
        raise CorruptionError(
            f"{directory / META}: missing, but {' and '.join(left)} exist; "
            f"expected the file that says how many records they hold. Nothing was changed: restore it from a copy"
        )
    return False


def _open_files(directory: Path, meta: Meta, *, writable: bool) -> Files:
    """Open the data files, checked against `meta`.

    Raises:
        CorruptionError: Missing, or shorter than `meta` says.
    """
    kinds = {NODES: (node_dtype(meta.vector_dim), meta.cap_nodes), EDGES: (EDGE_DTYPE, meta.cap_edges)}
    for name, (dtype, capacity) in kinds.items():
        path = directory / name
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise CorruptionError(f"{path}: missing; expected {capacity} records of {dtype.itemsize} bytes") from error
        if size < capacity * dtype.itemsize or not size:
            raise CorruptionError(
                f"{path}: {size} bytes, expected at least {capacity * dtype.itemsize} "
                f"({capacity} records of {dtype.itemsize} bytes, as {META} says): truncated, or another file's"
            )
    nodes = RecordFile(directory / NODES, kinds[NODES][0], meta.node_count, writable=writable)
    try:
        edges = RecordFile(directory / EDGES, kinds[EDGES][0], meta.edge_count, writable=writable)
    except BaseException:
        nodes.close()
        raise
    return Files(directory, meta.vector_dim, nodes, edges, EventFile(directory / EVENTS, writable=writable))


def _state_at_rest(directory: Path, meta: Meta, files: Files) -> tuple[State, int, str]:
    """State, generation and uuid of a store that was closed, whoever closed it.

    Raises:
        CorruptionError: The files hold less than `store.json` says.
    """
    body = _read_store_json(directory)
    events = files.events.size()
    if body is None:
        removed = sum(
            int(np.count_nonzero(files.edges.chunk("next_edge_idx", at, min(at + 65536, meta.edge_count)) == REMOVED))
            for at in range(0, meta.edge_count, 65536)
        )
        return State(meta.node_count, meta.edge_count, removed, events, {}), 0, ""
    for name, path, have in (
        ("nodes", directory / META, meta.node_count),
        ("edges", directory / META, meta.edge_count),
        ("events", directory / EVENTS, events),
    ):
        if have < body[name]:
            raise CorruptionError(f"{path}: {have} {name}, expected at least the {body[name]} that {STORE} says")
    # 0.3.0 may have added to it since: contents have changed, so must the generation.
    grown = (meta.node_count, meta.edge_count, events) != (body["nodes"], body["edges"], body["events"])
    state = State(meta.node_count, meta.edge_count, body["removed_edges"], events, body["attrs"])
    return state, body["generation"] + grown, body["uuid"]


def _identity_of_path(directory: Path) -> str:
    """The uuid of a store that has none written down yet."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"aesg:{directory}"))


# --- the two kinds of handle -----------------------------------------------------------------------------------------


class _MemmapStore(Store):
    """What writing and reading handles share."""

    def __init__(self, url: str, directory: Path, durability: Durability, *, read_only: bool) -> None:
        super().__init__(url, read_only=read_only)
        self.directory = directory
        self._durability = durability
        self._files: Files
        self._state: State
        self._generation = 0
        self._uuid = ""

    @property
    def uuid(self) -> str:
        return self._uuid

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            durability=self._durability,
            atomicity=Atomicity.GRAPH,
            readers=Readers.OTHER_PROCESSES,
            reader_view=ReaderView.LATEST,
            writers=Writers.ONE_PROCESS,
            snapshots=False,
            space_reclaim=SpaceReclaim.ON_COMPACT,
            remote=False,
        )

    def _committed(self) -> Tables:
        return MemmapTables.committed(self._files, self._state)

    def verify(self) -> list[Violation]:
        with self.reading() as tables:
            assert isinstance(tables, MemmapTables)
            return find_violations(tables)

    def stats(self) -> dict[str, Any]:
        with self.reading() as tables:
            active = sum(
                int(
                    np.count_nonzero(
                        tables.node_chunk(at, min(at + 65536, tables.node_count), ["is_active"])["is_active"]
                    )
                )
                for at in range(0, tables.node_count, 65536)
            )
            used = [entry.stat().st_blocks * 512 for entry in self.directory.iterdir() if entry.is_file()]
            return {
                "nodes": tables.node_count,
                "active_nodes": active,
                "edges": tables.edge_slots - tables.removed_edges,
                "removed_edges": tables.removed_edges,
                "events": tables.event_count,
                "bytes_on_disk": sum(used),
            }


class MemmapWriter(_MemmapStore):
    """The one handle that writes. In a forked child it reads, through files of its own."""

    def __init__(self, url: str, directory: Path, dim: int | None, durability: Durability) -> None:
        super().__init__(url, directory, durability, read_only=False)
        self._sync = durability is Durability.POWER_LOSS
        new = not recognises(directory)
        if new and dim is None:
            raise InvalidInputError(f"{url}: there is no store yet; a new one needs vector_dim=…")
        with os_errors("creating", directory):
            directory.mkdir(parents=True, exist_ok=True)
        self._writer_lock = WriterLock(directory / LOCK, url)
        try:
            self._open(dim)
        except BaseException:
            self._writer_lock.release()
            raise
        self._child: MemmapReader | None = None
        self._pid = os.getpid()
        _writers.add(self)

    @property
    def generation(self) -> int:
        with self.reading():
            return self._generation if self._child is None else self._child.generation

    def __del__(self) -> None:
        if hasattr(self, "_pid") and not self._closed:  # only a store that was opened
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=1)
            self.close()

    # Opening

    def _open(self, dim: int | None) -> None:
        if not _has_store(self.directory):
            if dim is None:
                raise InvalidInputError(f"{self.url}: there is no store yet; a new one needs vector_dim=…")
            _create(self.directory, dim, str(uuid.uuid4()), sync=self._sync)
        meta = read_meta(self.directory / META)
        _check_dim(self.url, meta, dim)
        path = self.directory / JOURNAL
        with os_errors("opening", path):
            journal = Journal(path) if path.exists() else None
        if journal is not None:
            try:
                self._recover(journal, meta)
            finally:
                journal.close()
        else:
            self._files = _open_files(self.directory, meta, writable=True)
            self._state, self._generation, self._uuid = _state_at_rest(self.directory, meta, self._files)
        try:
            check_sample(self._files, self._state)
            self._uuid = self._uuid or str(uuid.uuid4())
            self._capacities = (self._files.nodes.capacity, self._files.edges.capacity)
            with commit_lock(self._files.nodes.fd, exclusive=True):
                for name in (NODES, EDGES):
                    (self.directory / (name + redo.COMPACTED)).unlink(missing_ok=True)
                if journal is not None:
                    self._write_heads()
                with os_errors("creating", self.directory / JOURNAL):
                    (self.directory / JOURNAL).unlink(missing_ok=True)
                    self._journal = Journal(self.directory / JOURNAL, create=True, sync=self._sync)
                self._begin_journal()
        except BaseException:
            self._files.close()
            raise

    def _recover(self, journal: Journal, meta: Meta) -> None:
        """Apply what a killed writer had committed, and cut off what it had not."""
        nodes_path = self.directory / NODES
        with os_errors("opening", nodes_path):
            guard = os.open(nodes_path, os.O_RDWR | os.O_CLOEXEC)
        try:
            with commit_lock(guard, exclusive=True):
                first: State | None = None
                last: tuple[int, State] | None = None
                body = _read_store_json(self.directory)
                payloads = list(journal.entries())
                if payloads and body is not None and payloads[-1][0] < body["generation"]:
                    payloads = []  # everything it says was checkpointed
                for generation, payload in payloads:
                    state = redo.decode_state(payload)
                    first = first or state
                    last = generation, state
                if first is not None and last is not None:
                    counts = {(s.nodes, s.edges) for s in (first, last[1])}
                    if (meta.node_count, meta.edge_count) not in counts:
                        raise CorruptionError(
                            f"{self.directory / META}: {meta.node_count} nodes and {meta.edge_count} edges, expected "
                            f"{' or '.join(f'{n} and {e}' for n, e in sorted(counts))} as {JOURNAL} says: another "
                            f"program has written here after a crash; remove {JOURNAL} to keep what it wrote"
                        )
                for _, payload in payloads:
                    redo.replay(payload, self.directory, node_dtype(meta.vector_dim).itemsize)
                files = _open_files(self.directory, meta, writable=True)
                try:
                    if last is None:
                        at_rest, generation, identity = _state_at_rest(self.directory, meta, files)
                    else:
                        (generation, at_rest), identity = last, body["uuid"] if body else ""
                    for file, count in ((files.nodes, at_rest.nodes), (files.edges, at_rest.edges)):
                        if count > file.capacity:
                            raise CorruptionError(
                                f"{file.path}: room for {file.capacity} records, {JOURNAL} says there are {count}"
                            )
                        file.count = count
                        file.clear_tail()
                    if files.events.size() < at_rest.events:
                        raise CorruptionError(
                            f"{files.events.path}: {files.events.size()} events, expected the {at_rest.events} "
                            f"that {JOURNAL} says"
                        )
                    files.events.truncate(at_rest.events)
                    if self._sync:
                        files.sync()
                except BaseException:
                    files.close()
                    raise
                self._files, self._state = files, at_rest
                self._generation, self._uuid = generation, identity
        finally:
            os.close(guard)

    # Transactions

    def _begin(self) -> WritableTables:
        return MemmapTables.working(self._files, self._state)

    def _commit(self, tables: WritableTables) -> None:
        assert isinstance(tables, MemmapTables)
        nodes, edges = tables.pending_nodes, tables.pending_edges
        if tables.state == self._state and not nodes.changed and not edges.changed:
            return
        parts = [*redo.changes(0, nodes), *redo.changes(1, edges)]
        if self._sync:
            parts += self._durable_tails(tables)
        generation = self._generation + 1
        head = redo.encode_state(tables.state, redo.count_operations(parts))
        with commit_lock(self._files.nodes.fd, exclusive=True):
            self._journal.append(generation, [head, *parts])
            # From here on the commit has happened: what fails below is done again when the store is next opened.
            try:
                nodes.apply()
                edges.apply()
                self._journal.mark_applied(generation)
            except BaseException as error:
                self._closed = True
                self._writer_lock.release()
                raise StorageError(
                    f"{self.url}: the commit is in the journal but could not be applied; open the store again"
                ) from error
            self._state = tables.state
            self._generation = generation
            if self._journal.size > _CHECKPOINT_BYTES[self._durability]:
                self._checkpoint()

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
        first, last = self._state.events, tables.state.events
        if last > first:
            if (last - first) * EVENT_DTYPE.itemsize > _JOURNALED_TAIL:
                self._files.events.sync()
            else:
                events = self._files.events.read(first, last)
                parts += redo.appended(2, EVENT_DTYPE.itemsize, first, events.view(np.uint8))
        return parts

    def _rollback(self, tables: WritableTables) -> None:
        assert isinstance(tables, MemmapTables)
        tables.pending_nodes.discard()
        tables.pending_edges.discard()
        if tables.state.events > self._state.events:
            self._files.events.truncate(self._state.events)

    # Checkpoints

    def _write_heads(self) -> None:
        """Bring `meta.npy` and `store.json` to the present state."""
        files = self._files
        meta = Meta(self._state.nodes, self._state.edges, files.dim, files.nodes.capacity, files.edges.capacity)
        replace_file(self.directory / META, meta.to_bytes(), sync=self._sync)
        _write_store_json(self.directory, self._uuid, self._generation, self._state, sync=self._sync)

    def _begin_journal(self) -> None:
        """Start the journal with an entry that only says where we are."""
        self._journal.reset()
        self._journal.append(self._generation, [redo.encode_state(self._state)])
        self._journal.mark_applied(self._generation)

    def _checkpoint(self) -> None:
        if self._sync:
            self._files.sync()
        self._write_heads()
        self._begin_journal()

    def _flush(self) -> None:
        with commit_lock(self._files.nodes.fd, exclusive=True):
            self._checkpoint()

    def _close(self) -> None:
        if self._child is not None or os.getpid() != self._pid:
            if self._child is not None:
                self._child.close()
            return
        files = self._files
        try:
            if files.ids is not None:
                files.ids.save(files.id_sidecar, files.nodes)
            with commit_lock(files.nodes.fd, exclusive=True):
                if self._sync:
                    files.sync()
                shrunk = self._shrunk_capacities()
                meta = Meta(self._state.nodes, self._state.edges, files.dim, *shrunk)
                replace_file(self.directory / META, meta.to_bytes(), sync=self._sync)
                _write_store_json(self.directory, self._uuid, self._generation, self._state, sync=self._sync)
                for file, capacity in zip((files.nodes, files.edges), shrunk, strict=True):
                    if capacity != file.capacity:
                        with os_errors("truncating", file.path):
                            os.ftruncate(file.fd, capacity * file.dtype.itemsize)
                with os_errors("removing", self.directory / JOURNAL):
                    (self.directory / JOURNAL).unlink(missing_ok=True)
                    if self._sync:
                        sync_directory(self.directory)
        finally:
            self._journal.close()
            files.close()
            self._writer_lock.release()
            _writers.discard(self)

    def _shrunk_capacities(self) -> tuple[int, int]:
        """What growth ahead of need took is given back. Edges keep room: 0.3.0 cannot grow their file."""
        nodes, edges = self._capacities
        return max(nodes, self._state.nodes), max(edges, self._state.edges + self._state.edges // 8)

    def _compact(self) -> Rows:
        files = self._files
        tables = MemmapTables.committed(files, self._state)
        row_map, state = write_compacted(tables, suffix=redo.COMPACTED, sync=self._sync)
        with commit_lock(files.nodes.fd, exclusive=True):
            # Only this entry may be in the journal while the files change places: earlier ones speak of the old files.
            self._checkpoint()
            self._generation += 1
            parts = redo.swaps()
            self._journal.append(self._generation, [redo.encode_state(state, len(parts)), *parts])
            redo.replay(
                redo.encode_state(state, len(parts)) + b"".join(parts), self.directory, files.nodes.dtype.itemsize
            )
            files.id_sidecar.unlink(missing_ok=True)
            nodes_room = (self.directory / NODES).stat().st_size // files.nodes.dtype.itemsize
            edges_room = (self.directory / EDGES).stat().st_size // EDGE_DTYPE.itemsize
            self._state = state
            replaced = _open_files(
                self.directory, Meta(state.nodes, state.edges, files.dim, nodes_room, edges_room), writable=True
            )
            self._capacities = (nodes_room, edges_room)
            self._files = replaced
            self._files.ids = IdIndex()
            self._journal.mark_applied(self._generation)
            self._checkpoint()
        files.close()
        return row_map

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
        if os.getpid() == self._pid:
            with self._lock:
                self._check_usable()
                yield self._committed()
            return
        with self._lock:
            self._check_usable()
            if self._child is None:
                self._child = MemmapReader(self.url, self.directory, self._files.dim, self._durability)
        with self._child.reading() as tables:
            yield tables


_writers: Final[weakref.WeakSet[MemmapWriter]] = weakref.WeakSet()


def _after_fork() -> None:
    for writer in list(_writers):
        writer._forked()
    _writers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class MemmapReader(_MemmapStore):
    """A handle that reads, beside a writer or without one. Each call sees the newest commit, whole."""

    def __init__(self, url: str, directory: Path, dim: int | None, durability: Durability) -> None:
        super().__init__(url, directory, durability, read_only=True)
        self._journal: Journal | None = None
        self._loaded = False
        self._open(dim)

    @property
    def generation(self) -> int:
        with self.reading():
            return self._generation

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        with self._lock:
            while True:
                self._check_usable()
                with commit_lock(self._files.nodes.fd, exclusive=False):
                    if self._up_to_date():
                        yield self._committed()
                        return
                self._open()

    def _up_to_date(self) -> bool:
        """Whether the open files are the store's, and the state the newest; moves on where that is all it takes.

        Called with commits kept out.
        """
        inode, _ = stamp = _stamp(self.directory / JOURNAL)
        if self._journal is None:
            return inode == 0 and _stamp(self.directory / META) == self._meta_seen
        if stamp[0] != self._journal.inode or self._journal.pending:
            return False
        return self._journal.generation == self._generation or self._follow(self._journal)

    def _follow(self, journal: Journal) -> bool:
        """Take the state from the journal's newest entry; the files hold it already."""
        newest = journal.newest(redo.STATE_HEAD)
        if newest is not None and len(newest[1]) < redo.state_bytes(newest[1]):
            newest = journal.newest(redo.state_bytes(newest[1]))
        if newest is None:
            return False
        self._generation, self._state = newest[0], redo.decode_state(newest[1])
        files = self._files
        for file, count in ((files.nodes, self._state.nodes), (files.edges, self._state.edges)):
            file.count = count
            if count > file.capacity and not file.remap(count):
                return False
        return True

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
        if not _has_store(self.directory):
            raise NotFoundError(f"{self.url}: there is no store; open it with mode='a' to create one")
        try:
            with os_errors("opening", self.directory / JOURNAL):
                self._journal = Journal(self.directory / JOURNAL, writable=False)
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        if self._journal is not None and self._journal.pending and self._recover_if_abandoned():
            return False
        self._meta_seen = _stamp(self.directory / META)
        meta = read_meta(self.directory / META)
        _check_dim(self.url, meta, dim)
        self._files = _open_files(self.directory, meta, writable=False)
        self._loaded = True
        with commit_lock(self._files.nodes.fd, exclusive=False):
            if not self._same_files():
                return False
            if self._journal is None:
                self._state, self._generation, self._uuid = _state_at_rest(self.directory, meta, self._files)
            else:
                if self._journal.pending or not self._follow(self._journal):
                    return False
                body = _read_store_json(self.directory)
                self._uuid = body["uuid"] if body else ""
            check_sample(self._files, self._state)
        self._uuid = self._uuid or _identity_of_path(self.directory)
        return True

    def _recover_if_abandoned(self) -> bool:
        """Do what the next writer would do first, when nobody holds the store; False when somebody does."""
        try:
            MemmapWriter(self.url, self.directory, None, Durability.PROCESS_CRASH).close()
        except LockedError:
            return False
        except StorageError as error:
            raise ReadOnlyError(
                f"{self.url}: its last writer was killed and the journal has to be applied, which needs write access; "
                f"open it once with mode='a'"
            ) from error
        return True

    def _same_files(self) -> bool:
        """Whether the open files are still those that the directory names."""
        for file in (self._files.nodes, self._files.edges):
            if _stamp(file.path)[0] != os.fstat(file.fd).st_ino:
                return False
        journal = _stamp(self.directory / JOURNAL)[0]
        return journal == (self._journal.inode if self._journal is not None else 0)

    def _refresh(self) -> bool:
        before = self._generation
        with self.reading():
            return self._generation != before

    def _release(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._loaded:
            self._files.close()
            self._loaded = False

    def _begin(self) -> WritableTables:
        raise AssertionError("a read-only handle begins no transaction")

    def _commit(self, tables: WritableTables) -> None:
        raise AssertionError("a read-only handle commits nothing")

    def _rollback(self, tables: WritableTables) -> None:
        raise AssertionError("a read-only handle rolls nothing back")

    def _compact(self) -> Rows:
        raise AssertionError("a read-only handle compacts nothing")

    def _flush(self) -> None:
        return None

    def _close(self) -> None:
        self._release()


def _check_dim(url: str, meta: Meta, dim: int | None) -> None:
    if dim not in (None, meta.vector_dim):
        raise SchemaMismatchError(f"{url}: the store holds vectors of {meta.vector_dim} numbers, not {dim}")


def _stamp(path: Path) -> tuple[int, int]:
    """Inode and time of change; zeros when there is no such file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns
