"""`BlockStore`: a graph store over a container of blocks.

A commit that changes little puts one record into the log; one that changes much, or finds the log long, merges: all
that is pending goes into the columns. Either way it is one commit of the container, with a new head.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import uuid
import warnings
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np

from aesg.backends.base import Store
from aesg.backends.blocks import layout, log
from aesg.backends.blocks.columns import BlockColumns
from aesg.backends.blocks.container import Block, BlockContainer, Changes, Column, Key
from aesg.backends.blocks.layout import LOG, LOG_BLOCK
from aesg.backends.blocks.merge import Merge, after, merge
from aesg.backends.blocks.rewrite import Spool, compacted
from aesg.backends.blocks.tables import EDGES, EVENTS, BlockTables, GraphState, Table, node_kind
from aesg.backends.blocks.verify import find_violations
from aesg.backends.ids import IdIndex
from aesg.backends.lists import ListCache
from aesg.backends.tables import Tables, WritableTables
from aesg.errors import (
    CapacityError,
    CorruptionError,
    FormatVersionError,
    InvalidInputError,
    NotFoundError,
    SchemaMismatchError,
)
from aesg.protocols import Capabilities, Progress, Violation
from aesg.records import JSON, Columns, Rows
from aesg.threads import process

FORMAT: Final = 1
_LARGE: Final = 1 << 22
"""Bytes of changes from which on a commit merges: the log would only write them twice."""
_LONG: Final = 1 << 24
"""Bytes of log at which to merge."""
_PATCHED: Final = 1 << 16
"""Patched rows at which to merge."""
_SORT_ABOVE: Final = 1 / 2
_SORT_ABOVE_AT_REST: Final = 1 / 64
CACHE_BYTES: Final = 1 << 28


class BlockStore(Store):
    """A graph store over a container of blocks.

    Args:
        url: Canonical URL.
        container: Opened; closed with the store, and when this raises.
        vector_dim: Length of the vectors; None takes what the store has.
        read_only: Refuse writes.
        cache_bytes: How much memory blocks may take, if the container's blocks take any.
        lists_bytes: How much edge lists that were read may take; half of that when None.

    Raises:
        NotFoundError: It reads only, and there is no store.
        InvalidInputError: There is no store, and vector_dim is None.
        SchemaMismatchError: The store has another vector_dim.
        CorruptionError: The head, or the log, is not what was committed.
    """

    def __init__(
        self,
        url: str,
        container: BlockContainer,
        *,
        vector_dim: int | None,
        read_only: bool,
        cache_bytes: int = CACHE_BYTES,
        lists_bytes: int | None = None,
    ) -> None:
        super().__init__(url, read_only=read_only)
        self._container = container
        self._cache_bytes = cache_bytes
        self._lists = ListCache(cache_bytes // 2 if lists_bytes is None else lists_bytes)
        self._pid = os.getpid()
        self._merged: tuple[str, int] | None = None
        self._loading = False
        self._columns: BlockColumns
        self._snapshots: weakref.WeakSet[BlockColumns] = weakref.WeakSet()
        try:
            with container.reading():
                if container.head() is None:
                    self._create(vector_dim)
                self._load()
                if vector_dim not in (None, self._dim):
                    raise SchemaMismatchError(
                        f"{url}: the store holds vectors of {self._dim} numbers, not {vector_dim}"
                    )
        except BaseException:
            self._closed = True
            container.close()
            raise
        _stores.add(self)

    def __del__(self) -> None:
        # Not at the end of the process: half of Python is gone then, and every commit is where it belongs anyway.
        if hasattr(self, "_head") and not self._closed and not self._read_only and not sys.is_finalizing():
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=1)
            self.close()

    @property
    def container(self) -> BlockContainer:
        """Where the blocks are."""
        return self._container

    def _create(self, dim: int | None) -> None:
        if self._read_only:
            raise NotFoundError(f"{self.url}: there is no store to read")
        if dim is None:
            raise InvalidInputError(f"{self.url}: there is no store yet; a new one needs vector_dim=…")
        columns = layout.columns(dim, self._container.block_bytes)
        head: dict[str, JSON] = {
            "format": FORMAT,
            "uuid": str(uuid.uuid4()),
            "generation": 0,
            "merge": 0,
            "vector_dim": dim,
            "block_bytes": self._container.block_bytes,
            "nodes": 0,
            "edges": 0,
            "removed_edges": 0,
            "events": 0,
            "merged": [0, 0, 0],
            "sorted_edges": 0,
            "sorted_nodes": 0,
            "sorted_length": 0,
            "log": [0, 0, 0],
            "checksums": {name: [] for name in columns if name != LOG and not name.startswith(layout.CHECKSUMS)},
            "attrs": {},
        }
        self._container.commit(_changes(head, columns, dict.fromkeys(columns, 0), {}, []))

    # --- loading -----------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Take the state that the container's view is at."""
        head = opened_head(self._container.head(), self.url)
        self._dim = head["vector_dim"]
        self._layout = layout.columns(self._dim, head["block_bytes"])
        merged = (head["uuid"], head["merge"])
        self._lists.clear()
        if merged == self._merged:
            if self._container.resident:
                self._columns.forget_blocks()  # they are views of what the container's last view saw
        else:
            self._columns = BlockColumns(
                self._container,
                self._layout,
                lengths_of(head, self._layout),
                head["checksums"],
                self._cache_bytes,
                self.url,
            )
            self._ids = IdIndex()
            self._state = GraphState.at_rest(head["merged"], self._dim, head["sorted_edges"], head["sorted_nodes"])
            self._log = log.Log()
        self._replay(head)
        self._merged = merged
        self._head = head
        self._lengths = lengths_of(head, self._layout)
        self._version = self._container.version

    def _replay(self, head: Mapping[str, Any]) -> None:
        """Take in the records of the log that are not known yet."""
        column = self._layout[LOG]
        while self._log.blocks < head["log"][0]:
            changes, self._log = log.read(
                self._log, lambda number: self._container.get(column, number, LOG_BLOCK), self.url
            )
            self._apply(changes)
        state = self._state
        counts = (state.nodes.count, state.edges.count, state.events.count)
        if self._log.as_json() != head["log"] or counts != (head["nodes"], head["edges"], head["events"]):
            self._merged = None  # nothing of this may be built upon
            raise CorruptionError(f"{self.url}: the log is not what the head says: it was garbled or exchanged")
        state.removed_edges, state.attrs = head["removed_edges"], head["attrs"]

    def _apply(self, arrays: Columns) -> None:
        """Apply a record to the state."""
        for state, kind in (
            (self._state.nodes, node_kind(self._dim)),
            (self._state.edges, EDGES),
            (self._state.events, EVENTS),
        ):
            new = {name: arrays[kind.column(name)] for name in kind.fields if kind.column(name) in arrays}
            for number, group in enumerate(kind.patched):
                rows = arrays.get(f"{kind.name}.{number}/row")
                if rows is not None:
                    values = {name: arrays[f"{kind.name}.{number}/{name}"] for name in group}
                    state.patches[number].set_all(rows, values)
            if new:
                first = state.count
                state.tail.put(first, new, {})
                state.count += len(next(iter(new.values())))
                for patches in state.patches:
                    patches.grow(state.count)
                if kind.name == "edges":
                    self._state.add_edges(new["source_row"], first)

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        with self._lock:
            self._check_usable()
            if process() != self._pid:
                self._check_process()
            with self._container.reading():  # first carries out a commit that was in doubt
                if self._container.version != self._version:
                    self._load()  # that one, or another writer's
                yield self._committed()

    def _refresh(self) -> bool:
        self._check_process()
        before = self._head["generation"]
        if not self._read_only:
            return False
        self._container.refresh()
        with self.reading():
            return bool(self._head["generation"] != before)

    # --- what `Store` asks for ---------------------------------------------------------------------------------------

    @property
    def uuid(self) -> str:
        return str(self._head["uuid"])

    @property
    def generation(self) -> int:
        with self.reading():
            return int(self._head["generation"])

    @property
    def capabilities(self) -> Capabilities:
        return self._container.capabilities

    def _tables(
        self, state: GraphState, columns: BlockColumns, *, writable: bool = False, lists: ListCache | None = None
    ) -> BlockTables:
        return BlockTables(state, columns, self._ids, self._dim, writable=writable, lists=lists)

    def _committed(self) -> Tables:
        return self._tables(self._state, self._columns, lists=self._lists)

    def _begin(self) -> WritableTables:
        self._check_process()
        return self._tables(self._state, self._columns, writable=True)

    def _rollback(self, tables: WritableTables) -> None:
        self._ids.roll_back(self._state.nodes.count)

    def _commit(self, tables: WritableTables) -> None:
        assert isinstance(tables, BlockTables)
        if not tables.changed:
            return
        if tables.edges.changed:
            self._lists.clear()
        patched = sum(len(p) for t in (tables.nodes, tables.edges) for p in (*t.own, *t.state.patches))
        size = _changed_bytes(tables)
        blocks = self._log.blocks + size // LOG_BLOCK + 1
        replaced = any(table.replaced for table in (tables.nodes, tables.edges))
        if (
            replaced
            or size > _LARGE
            or patched > _PATCHED
            or blocks > self._container.log_blocks
            or size + self._log.bytes > _LONG
        ):
            self._merge(tables, sort_above=math.inf if self._loading else _SORT_ABOVE)
        else:
            self._append_to_log(tables)
        if self._loading and tables.edges.count > tables.edges.state.count:
            self._ids = IdIndex()  # of use while nodes are appended, and as large as some stores may be

    @contextmanager
    def loading(self) -> Iterator[None]:
        """For as long as a whole graph is appended, nodes first: sort its edges by source once, when it is closed."""
        self._loading = True
        try:
            yield
        finally:
            self._loading = False

    def _append_to_log(self, tables: BlockTables) -> None:
        # What comes before is noted too, so that a salvage can tell the sound records of a damaged log.
        record = log.encode({**_changes_of(tables), log.BEFORE: np.array([self._log.crc], np.uint32)})
        longer = self._log.with_record(record)
        head = {
            **self._head,
            **_counts(tables),
            "generation": self._head["generation"] + 1,
            "log": longer.as_json(),
        }
        puts: dict[Key, Block] = {
            (LOG, self._log.blocks + start // LOG_BLOCK): record[start : start + LOG_BLOCK]
            for start in range(0, len(record), LOG_BLOCK)
        }
        lengths = {**self._lengths, LOG: longer.blocks * LOG_BLOCK}
        self._put(_changes(head, self._layout, lengths, puts, []), head)
        self._log, self._lengths = longer, lengths
        state = self._state
        for table in (tables.nodes, tables.edges, tables.events):
            table.state.count = table.count
            for committed, own in zip(table.state.patches, table.own, strict=False):
                committed.grow(table.count)
                committed.update(own)
        state.runs, state.in_runs = tables.runs, tables.in_runs
        state.removed_edges, state.attrs = tables.removed_edges, tables.attrs

    def _merge(self, tables: BlockTables, *, sort_above: float = _SORT_ABOVE, advance: bool = True) -> None:
        """Commit by merging; `advance` unless the contents stay what they are."""
        made = merge(tables, sort_above=sort_above)
        self._put_merge(tables, made, after(tables, made), self._head["generation"] + advance)

    def _put_merge(self, tables: BlockTables, made: Merge, state: GraphState, generation: int) -> None:
        counts = [state.nodes.count, state.edges.count, state.events.count]
        head = {
            **self._head,
            **dict(zip(("nodes", "edges", "events"), counts, strict=True)),
            "removed_edges": state.removed_edges,
            "attrs": state.attrs,
            "generation": generation,
            "merge": self._head["merge"] + 1,
            "merged": counts,
            "sorted_edges": made.sorted_edges,
            "sorted_nodes": made.sorted_nodes,
            "sorted_length": made.lengths["out/ref"],
            "log": [0, 0, 0],
            "checksums": made.of_checksums,
        }
        lengths = lengths_of(head, self._layout)
        drops = [
            (name, number)
            for name, column in self._layout.items()
            for number in range(column.blocks(lengths[name]), column.blocks(self._lengths[name]))
        ]
        self._put(_changes(head, self._layout, lengths, made.puts, drops), head)
        self._merged = (head["uuid"], head["merge"])
        self._columns.changed(made.puts, lengths, made.checksums, made.of_checksums)
        self._state = state
        self._lengths = lengths
        self._log = log.Log()

    def _put(self, changes: Changes, head: dict[str, Any]) -> None:
        self._container.commit(changes)
        self._head = head
        self._version = self._container.version

    def _flush(self) -> None:
        self._check_process()
        tables = self._tables(self._state, self._columns)
        unsorted = self._state.edges.count - self._state.sorted_edges
        many = max(layout.FEW_UNSORTED, _SORT_ABOVE_AT_REST * self._state.sorted_edges)
        if self._log.blocks or unsorted > many:
            self._merge(tables, sort_above=_SORT_ABOVE_AT_REST, advance=False)
        self._container.flush()

    def _compact(self, min_confidence: float) -> Rows:
        self._check_process()
        self._lists.clear()
        tables = self._tables(self._state, self._columns)
        with Spool(self._container.scratch) as spool:
            made, row_map, runs = compacted(tables, min_confidence, spool)
            counts = [made.lengths[name] for name in ("nodes/id", "edges/source_row")]
            state = GraphState.at_rest((*counts, tables.event_count), self._dim, made.sorted_edges, made.sorted_nodes)
            state.runs, state.in_runs, state.attrs = runs, counts[1], self._state.attrs
            self._put_merge(tables, made, state, self._head["generation"] + 1)
        self._ids = IdIndex()
        self._container.reclaim()
        if self._container.version != self._version:
            self._load()
        return row_map

    def _take_snapshot(self) -> Tables:
        self._check_process()
        if not self.capabilities.snapshots:
            return super()._take_snapshot()
        with self.reading():
            columns = BlockColumns(
                self._container.snapshot(),
                self._layout,
                lengths_of(self._head, self._layout),
                self._head["checksums"],
                self._cache_bytes,
                self.url,
            )
            self._snapshots.add(columns)
            return self._tables(self._state.copy(), columns)

    def _release_snapshot(self, tables: Tables) -> None:
        assert isinstance(tables, BlockTables)
        tables.columns.container.close()

    def verify(self, *, deep: bool = True, progress: Progress | None = None) -> list[Violation]:
        with self.reading() as tables:
            assert isinstance(tables, BlockTables)
            found = find_violations(tables, deep=deep, progress=progress)
            return [*(self._container.verify() if deep else ()), *found]

    def stats(self) -> dict[str, Any]:
        active = sum(int(np.count_nonzero(chunk["is_active"])) for chunk in self.nodes.scan(["is_active"]))
        with self.reading() as tables:
            return {
                "nodes": tables.node_count,
                "active_nodes": active,
                "edges": tables.edge_slots - tables.removed_edges,
                "removed_edges": tables.removed_edges,
                "events": tables.event_count,
                "log_bytes": self._log.bytes,
                "unsorted_edges": tables.edge_slots - self._state.sorted_edges,
                **self._container.stats(),
            }

    def _close(self) -> None:
        _stores.discard(self)
        if os.getpid() != self._pid:
            return  # the container is the parent's
        try:
            if not self._read_only:
                with suppress(CapacityError):  # the log holds everything; whoever writes next tries again
                    self._flush()
        finally:
            self._container.close()

    # --- forks -------------------------------------------------------------------------------------------------------

    def _forked(self) -> None:
        """In a child of the process that opened it: a handle that reads."""
        self._lock, self._writer = threading.RLock(), threading.Lock()
        if self._open_transaction is not None:
            self._open_transaction.abandon()
        self._writer_thread = self._open_transaction = None
        self._read_only = True
        # What is loaded may be views of a map that goes when the container is opened anew, snapshots' blocks too.
        for columns in (self._columns, *self._snapshots):
            columns.container.forked()
            columns.forget_blocks()

    def _check_process(self) -> None:
        """Open a container anew that was inherited by a fork, and look at one that has moved by itself."""
        if process() != self._pid:
            self._container = self._container.reopen()
            self._pid = process()
            self._merged = None
            with self._container.reading():  # the parent goes on writing
                self._load()
        elif not self._read_only:
            with self._container.reading():  # first carries out a commit that was in doubt
                if self._container.version != self._version:
                    self._load()  # that one, or another writer's


_stores: Final[weakref.WeakSet[BlockStore]] = weakref.WeakSet()
_held_for_fork: Final[list[threading.RLock]] = []
_PATIENCE: Final = 5.0
"""Seconds to wait for a thread that is in the middle of a call."""


def hold_for_fork() -> None:
    """Wait until no thread is inside a call of a store; containers with locks of their own take them after this."""
    # No thread may be inside the container's library meanwhile: the child would inherit its locks, and nobody there
    # would ever release them.
    for store in list(_stores):
        if store._lock.acquire(timeout=_PATIENCE):
            _held_for_fork.append(store._lock)


def _after_fork_in_parent() -> None:
    while _held_for_fork:
        _held_for_fork.pop().release()


def _after_fork() -> None:
    _held_for_fork.clear()
    for store in list(_stores):
        store._forked()


os.register_at_fork(before=hold_for_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork)


# --- heads -----------------------------------------------------------------------------------------------------------


_as_given: Final = json.JSONEncoder(separators=(",", ":"))
_encoder: Final = json.JSONEncoder(separators=(",", ":"), sort_keys=True)
"""For checksums: a container may give a head back with its keys in another order."""


def _changes(
    head: dict[str, Any],
    columns: Mapping[str, Column],
    lengths: Mapping[str, int],
    puts: Mapping[Key, Block],
    drops: Sequence[Key],
) -> Changes:
    """What a commit changes, the head with its checksum."""
    # Most of the text serves twice, for the checksum and to be kept. "attrs" is the first of the sorted keys, and
    # is kept in the order in which its own were set.
    attrs = head["attrs"]
    rest = _encoder.encode({name: value for name, value in head.items() if name != "attrs"})[1:]
    crc = zlib.crc32(f'{{"attrs":{_encoder.encode(attrs)},{rest}'.encode())
    text = f'{{"attrs":{_as_given.encode(attrs)},"crc32":{crc},{rest}'.encode()
    return Changes({**head, "crc32": crc}, columns, lengths, puts, drops, text)


def opened_head(head: Mapping[str, Any] | None, url: str) -> dict[str, Any]:
    """The head without its checksum.

    Raises:
        CorruptionError: The checksum does not match.
        FormatVersionError: A newer version wrote it.
    """
    if not isinstance(head, Mapping):
        raise CorruptionError(f"{url}: the head is missing; expected a JSON object")
    body = {name: value for name, value in head.items() if name != "crc32"}
    try:
        good = head.get("crc32") == zlib.crc32(_encoder.encode(body).encode())
    except (TypeError, ValueError, RecursionError):
        good = False
    if not good:
        raise CorruptionError(f"{url}: the head is garbled: its checksum does not match")
    if body.get("format") != FORMAT:
        raise FormatVersionError(f"{url}: format {body.get('format')}, expected {FORMAT}: a newer version wrote it")
    return body


def _counts(tables: BlockTables) -> dict[str, Any]:
    return {
        "nodes": tables.node_count,
        "edges": tables.edge_slots,
        "removed_edges": tables.removed_edges,
        "events": tables.event_count,
        "attrs": tables.attrs,
    }


def lengths_of(head: Mapping[str, Any], columns: Mapping[str, Column]) -> dict[str, int]:
    """Rows of every column."""
    merged = dict(zip(("nodes", "edges", "events"), head["merged"], strict=True))
    lengths = {}
    for name in columns:
        kind = name.split("/")[0]
        if kind in merged:
            lengths[name] = merged[kind]
        elif kind == "out":
            lengths[name] = head["sorted_length"]
    lengths[layout.START] = head["sorted_nodes"] + 1 if head["sorted_edges"] else 0
    for name in head["checksums"]:
        lengths[layout.CHECKSUMS + name] = columns[name].blocks(lengths[name])
    lengths[LOG] = head["log"][0] * LOG_BLOCK
    return lengths


# --- records of the log ----------------------------------------------------------------------------------------------


def _changed_bytes(tables: BlockTables) -> int:
    """How large a transaction's record would be."""
    total = 0
    for table in (tables.nodes, tables.edges, tables.events):
        total += (table.count - table.state.count) * table.kind.row_bytes
        total += sum(p.nbytes + 8 * len(p) for p in table.own if len(p))
    return total


def _changes_of(tables: BlockTables) -> Columns:
    """What a transaction changed, as `_apply` takes it."""
    arrays: Columns = {}
    table: Table
    for table in (tables.nodes, tables.edges, tables.events):
        kind = table.kind
        if table.count > table.state.count:
            for name in kind.fields:
                arrays[kind.column(name)] = table.state.tail.view(name, table.state.count, table.count)
        for number, group in enumerate(table.own):
            if len(group):
                arrays[f"{kind.name}.{number}/row"] = group.rows
                for name in group.fields:
                    arrays[f"{kind.name}.{number}/{name}"] = group.values(name)
    return arrays
