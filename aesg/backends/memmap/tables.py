"""The graph's tables over record files: columns of nodes, adjacency as 0.3.0's linked lists.

The edges of one source form a list, newest first: `head_edge_idx` of the node, then `next_edge_idx` of each edge. An
edge is always appended before the list, so pointers only ever go down. That is checked at every step: a list that a
crash of 0.3.0 tied into a knot is an error here, not an endless loop.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.backends.files import os_errors, read_exactly, sync_data, write_all
from aesg.backends.ids import IdIndex
from aesg.backends.lists import ListCache
from aesg.backends.memmap.format import EDGE_DTYPE, END, REMOVED
from aesg.backends.memmap.kernels import LOOPS, NO_OVERLAY, BrokenListError, Lists, Overlay, Source
from aesg.backends.memmap.table import CACHE_LINE, PendingRecords, RecordFile, Records
from aesg.backends.tables import WritableTables
from aesg.errors import CorruptionError
from aesg.records import EVENT_DTYPE, JSON, Adjacency, Columns, Ids, Refs, Rows
from aesg.threads import in_threads, parts

_EDGES_AT_ONCE: Final = 1 << 20
"""Edges linked in one go: bounds the memory that an append of any size takes."""
_PIECE: Final = 1 << 20
"""Bytes of new records that are built before they are written: they stay in a core's L2 cache meanwhile."""
_MANY: Final = 16
"""Ids from which on it is worth looking whether they are known."""
_SYNCED_AHEAD: Final = 1 << 22
"""Bytes of events that are worth a sync of their own."""
_ID_BYTES: Final = 16
_NEW_EDGE: Final = np.zeros(1, EDGE_DTYPE)
_IDS_A_THREAD: Final = 1 << 14
"""Ids to look up that are."""
_WRITERS: Final = 2
"""Threads that build and write new records. The system lets one at a time into the file, while the other builds."""


@dataclass(frozen=True, slots=True)
class State:
    """What a commit says besides the records.

    Attributes:
        nodes: Number of nodes.
        edges: Number of edge records, those of removed edges included.
        removed: Number of removed edges.
        events: Number of events.
        attrs: The attributes; never mutated.
    """

    nodes: int
    edges: int
    removed: int
    events: int
    attrs: dict[str, JSON]

    def grown(self, nodes: int = 0, edges: int = 0, removed: int = 0, events: int = 0) -> State:
        """With so many more."""
        counts = (self.nodes + nodes, self.edges + edges, self.removed + removed, self.events + events)
        return State(*counts, self.attrs)


class EventFile:
    """`evolution.aesglog`: records appended one after another; those past the committed count are nobody's.

    Attributes:
        syncs_ahead: Whether many new events are brought to the disk while more are made: `sync` has less to wait for.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self.syncs_ahead = False
        self._unsynced = 0
        self._under_way: threading.Thread | None = None
        self._failure: OSError | None = None
        self._flags = (os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY) | os.O_CLOEXEC
        self.fd = -1
        self.reopen()

    def reopen(self) -> None:
        """Open the file if it was not there before: 0.3.0 makes it with its first event."""
        if self.fd < 0 and (self._flags & os.O_CREAT or self.path.exists()):
            with os_errors("opening", self.path):
                self.fd = os.open(self.path, self._flags, 0o666)

    def bytes(self) -> int:
        """Length of the file."""
        return os.fstat(self.fd).st_size if self.fd >= 0 else 0

    def size(self) -> int:
        """Whole records in the file."""
        return self.bytes() // EVENT_DTYPE.itemsize

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Events start:stop."""
        size = (stop - start) * EVENT_DTYPE.itemsize
        with os_errors("reading", self.path):
            raw = read_exactly(self.fd, size, start * EVENT_DTYPE.itemsize) if size else b""
        if len(raw) != size:
            raise CorruptionError(f"{self.path}: expected {stop} events of 32 bytes; the file is shorter")
        return np.frombuffer(bytearray(raw), EVENT_DTYPE)

    def write(self, first: int, events: npt.NDArray[Any]) -> None:
        """Write events from number `first` on."""
        with os_errors("writing", self.path):
            write_all(self.fd, [events.view(np.uint8)], first * EVENT_DTYPE.itemsize)
        self._unsynced += events.nbytes
        busy = self._under_way is not None and self._under_way.is_alive()
        if self.syncs_ahead and self._unsynced > _SYNCED_AHEAD and not busy:
            self._unsynced = 0
            self._under_way = threading.Thread(target=self._sync_beside, name=f"syncs {self.path}", daemon=True)
            self._under_way.start()

    def _sync_beside(self) -> None:
        try:
            sync_data(self.fd)
        except OSError as error:
            self._failure = error

    def _settle(self) -> OSError | None:
        """Wait for the sync that is under way; what went wrong with it, which the system says only once."""
        if self._under_way is not None:
            self._under_way.join()
            self._under_way = None
        failure, self._failure = self._failure, None
        return failure

    def truncate(self, count: int) -> None:
        """Cut off everything past `count` events."""
        self._failure = self._settle()  # it may be about events that stay
        self._unsynced = 0
        with os_errors("truncating", self.path):
            os.ftruncate(self.fd, count * EVENT_DTYPE.itemsize)

    def sync(self) -> None:
        """Bring the file to the disk."""
        with os_errors("syncing", self.path):
            if (failure := self._settle()) is not None:
                raise failure
            sync_data(self.fd)
        self._unsynced = 0

    def close(self) -> None:
        """Close the file."""
        self._settle()
        if self.fd >= 0:
            os.close(self.fd)


@dataclass(slots=True)
class Files:
    """The open files of one store.

    Attributes:
        ids: The id index; None until somebody asks for it.
        seen: See `seen_ids`.
        seen_end: Rows from here on are 0 there.
        newborn: One node record with every starting value, [1].
    """

    directory: Path
    dim: int
    nodes: RecordFile
    edges: RecordFile
    events: EventFile
    ids: IdIndex | None = None
    seen: Ids = field(default_factory=lambda: np.zeros(1, np.uint64))
    seen_end: int = 0
    newborn: npt.NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.newborn = np.zeros(1, self.nodes.dtype)
        for name, value in records.NODE_DEFAULTS.items():
            self.newborn[name] = value
        self.newborn["head_edge_idx"] = END

    @property
    def id_sidecar(self) -> Path:
        """Where the id index is kept."""
        return self.directory / "ids.index"

    def index(self) -> IdIndex:
        """The id index, loaded when first asked for."""
        if self.ids is None:
            self.ids = IdIndex.load(self.id_sidecar, self.nodes)
        return self.ids

    def seen_ids(self, count: int = 0) -> Ids:
        """The ids of nodes, close together, as far as they were looked up or appended: 0 where they were not.

        At least as many as there are committed nodes, or `count`. What it has past those of a state does not count.
        """
        if len(self.seen) < max(self.nodes.count, count):
            seen = np.zeros(max(self.nodes.capacity, count), np.uint64)  # takes memory where it is touched only
            seen[: len(self.seen)] = self.seen
            self.seen = seen
        return self.seen

    def forget_tail(self) -> None:
        """Nodes past the committed ones are rolled back: others will have their rows."""
        self.seen[self.nodes.count : self.seen_end] = 0
        self.seen_end = min(self.seen_end, self.nodes.count)
        if self.ids is not None:
            self.ids.roll_back(self.nodes.count)

    def sync(self) -> None:
        """Bring all of them to the disk."""
        self.nodes.sync()
        self.edges.sync()
        self.events.sync()

    def close(self) -> None:
        """Close all of them."""
        self.nodes.close()
        self.edges.close()
        self.events.close()


def linked(
    sources: Rows, first: int, heads_of: Callable[[Rows], npt.NDArray[np.int64]]
) -> tuple[npt.NDArray[np.int64], Rows, npt.NDArray[np.int64]]:
    """Put new edges at the heads of their sources' lists.

    Args:
        sources: int64 [n], the source of each edge, oldest edge first.
        first: Ref of the first of them; the others follow.
        heads_of: Gives the present list heads of rows.

    Returns:
        next_edge_idx of each edge, int64 [n]; the distinct sources, and the new head of each.
    """
    if len(sources) == 1:
        return heads_of(sources), sources, np.array([first])
    # By source, oldest first: each edge points to the one before it, the first to what was the head. Rows have 32 bits
    # at most, so source and number fit one integer together, and those are sorted ten times faster than by argsort.
    bits = len(sources).bit_length()
    keys = (sources << bits) | np.arange(len(sources))
    keys.sort()
    ordered, order = keys >> bits, keys & ((1 << bits) - 1)
    begins = np.ones(len(sources), np.bool_)
    begins[1:] = ordered[1:] != ordered[:-1]
    points_to = np.empty(len(sources), np.int64)
    points_to[1:] = first + order[:-1]
    points_to[begins] = heads_of(ordered[begins])
    pointers = np.empty(len(sources), np.int64)
    pointers[order] = points_to
    ends = np.flatnonzero(np.append(begins[1:], True)[: len(sources)])
    return pointers, ordered[ends], first + order[ends]


class _KnownIds:
    """The ids of a state's nodes; out of memory where they are known, rather than from as many pages of the file."""

    def __init__(self, files: Files, nodes: Records) -> None:
        self._files = files
        self._nodes = nodes

    @property
    def count(self) -> int:
        return self._nodes.count

    def chunk(self, field: str, start: int, stop: int) -> npt.NDArray[Any]:
        committed = self._files.nodes.count
        if stop > committed or stop - start < _MANY:
            return self._nodes.chunk(field, start, stop)
        known = self._files.seen_ids()[start:stop]
        if not known.all():
            known[:] = self._nodes.chunk(field, start, stop)
        return known

    def gather(self, field: str, rows: Rows) -> Ids:
        if len(rows) < _MANY:
            return self._nodes.gather(field, rows)
        seen, committed = self._files.seen_ids(self._nodes.count), self._files.nodes.count
        out = seen[rows]
        unread = np.flatnonzero(out == 0)
        if len(unread):
            where = rows[unread]
            out[unread] = found = self._nodes.gather(field, where)
            stays = where < committed  # others may be rolled back, and their rows given to other nodes
            seen[where[stays]] = found[stays]
        return out


def _overlay(table: Records, field: str) -> Overlay:
    if isinstance(table, PendingRecords) and table.has_changed(field):
        return Overlay(*table.changes(field))
    return NO_OVERLAY


class MemmapTables(WritableTables):
    """The tables of a state of the store.

    With `RecordFile`s these are the committed tables, which nobody writes to through this class; with
    `PendingRecords` they are a transaction's working state.

    Args:
        files: The store's.
        nodes: See above.
        edges: See above.
        state: What the commit says, or is going to.
        lists: Committed lists that are known; None in a working state, and where none are kept.
    """

    def __init__(
        self, files: Files, nodes: Records, edges: Records, state: State, lists: ListCache | None = None
    ) -> None:
        self.files = files
        self.nodes = nodes
        self.edges = edges
        self.state = state
        self.lists = lists
        self.vector_dim = files.dim
        self._ids = _KnownIds(files, nodes)

    @classmethod
    def committed(cls, files: Files, state: State, lists: ListCache | None = None) -> MemmapTables:
        """The tables of the last commit."""
        return cls(files, files.nodes, files.edges, state, lists)

    @classmethod
    def working(cls, files: Files, state: State) -> MemmapTables:
        """A working state on top of the last commit."""
        return cls(files, PendingRecords(files.nodes), PendingRecords(files.edges), state)

    @property
    def node_count(self) -> int:  # type: ignore[override]
        return self.state.nodes

    @property
    def edge_slots(self) -> int:  # type: ignore[override]
        return self.state.edges

    @property
    def removed_edges(self) -> int:  # type: ignore[override]
        return self.state.removed

    @property
    def event_count(self) -> int:  # type: ignore[override]
        return self.state.events

    @property
    def attrs(self) -> dict[str, JSON]:  # type: ignore[override]
        return self.state.attrs

    # Reading

    def read_nodes(self, rows: Rows, fields: Sequence[str]) -> Columns:
        if len(fields) == 1:
            return {fields[0]: self.nodes.gather(fields[0], rows)}
        return self.nodes.gather_fields(fields, rows)

    def node_chunk(self, start: int, stop: int, fields: Sequence[str]) -> Columns:
        if tuple(fields) == ("id",):
            return {"id": self._ids.chunk("id", start, stop).copy()}
        return self.nodes.columns(fields, start, stop)

    def node_bytes(self, fields: Sequence[str]) -> int:
        if tuple(fields) == ("id",):
            return _ID_BYTES  # they are kept in memory, see `_KnownIds`
        # What lies in a line or two moves no other parts of the record; what lies beside moves nothing else.
        columns = self.files.nodes.beside.columns
        within = [name for name in fields if name not in columns]
        aside = sum(columns[name].itemsize for name in fields if name in columns)
        if not within:
            return max(aside, 1)
        near = "vector" not in within and (len(within) == 1 or self.files.nodes.span(within) is not None)
        return aside + (2 * CACHE_LINE if near else super().node_bytes(within))

    def rows_of(self, ids: Ids) -> Rows:
        index, find = self.files.index(), LOOPS.finder(len(ids))
        seen = self.files.seen_ids(self.nodes.count)
        if find is not None:
            # The file has every id: that of a row that was appended too, and none is ever changed.
            find = partial(find, self.files.nodes.views["id"], seen, self.files.nodes.count)
        shares = parts(len(ids), _IDS_A_THREAD)
        if len(shares) == 1:
            return index.lookup(ids, self._ids, find)
        index.catch_up(self._ids, LOOPS.enter)  # which only one may do
        return np.concatenate(in_threads(lambda some: index.lookup(ids[some], self._ids, find), shares))

    def out_edges(self, rows: Rows, limit: int | None) -> Adjacency:
        if self.lists is None or LOOPS.find is None or not self.lists.is_of_use(len(rows)):
            return self._walked(rows, limit)
        # Takes in what is new, which only one may do.
        self.files.seen_ids(self.nodes.count)
        self.files.index().catch_up(self._ids, LOOPS.enter)
        return self.lists.out_edges(rows, limit, lambda some: self._walked(some, limit), in_many_threads=True)

    def _walked(self, rows: Rows, limit: int | None) -> Adjacency:
        lists = self._lists(rows, limit)
        values: Columns = {"weight": lists.weight, "confidence": lists.confidence, "use_count": lists.use_count}
        if isinstance(self.edges, PendingRecords):
            values |= {name: self.edges.gather(name, lists.refs) for name in values if self.edges.has_changed(name)}
        return Adjacency(lists.indptr, lists.refs, self.rows_of(lists.target_ids), **values)

    def _lists(self, rows: Rows, most: int | None = None) -> Lists:
        """The list of each row, or its first so many edges."""
        nodes = Source(self.files.nodes.views, _overlay(self.nodes, "head_edge_idx"))
        edges = Source(self.files.edges.views, _overlay(self.edges, "next_edge_idx"))
        state = self.state
        expected = len(rows) * (state.edges - state.removed) // max(state.nodes, 1)
        try:
            return LOOPS.walk(rows, nodes, edges, state.edges, expected, most)
        except BrokenListError as error:
            path = self.files.edges.path
            raise CorruptionError(f"{path}: the edge list of row {error.row} leads to {error.found}") from error

    def read_edges(self, refs: Refs, fields: Sequence[str]) -> Columns:
        return self._edge_columns(fields, lambda name: self.edges.gather(name, refs))

    def edge_chunk(self, start: int, stop: int, fields: Sequence[str]) -> Columns:
        return self._edge_columns(fields, lambda name: self.edges.chunk(name, start, stop))

    def _edge_columns(self, fields: Sequence[str], get: Any) -> Columns:
        by_id = {"source_row": "source_id", "target_row": "target_id"}
        return {name: self.rows_of(get(by_id[name])) if name in by_id else get(name) for name in fields}

    def removed(self, refs: Refs) -> npt.NDArray[np.bool_]:
        return np.asarray(self.edges.gather("next_edge_idx", refs) == REMOVED)

    def read_events(self, start: int, stop: int) -> npt.NDArray[Any]:
        return self.files.events.read(start, stop)

    # Writing

    @property
    def pending_nodes(self) -> PendingRecords:
        """The nodes of a working state."""
        assert isinstance(self.nodes, PendingRecords)
        return self.nodes

    @property
    def pending_edges(self) -> PendingRecords:
        """The edges of a working state."""
        assert isinstance(self.edges, PendingRecords)
        return self.edges

    def append_nodes(self, columns: Columns) -> None:
        ids, first = columns["id"], self.state.nodes
        n = len(ids)
        know: list[Callable[[], None]] = []
        if n >= _MANY:  # few are read from the file when they are looked for
            index = self.files.index()
            index.catch_up(self._ids, LOOPS.enter)
            self.files.seen_ids(first + n)[first : first + n] = ids
            self.files.seen_end = first + n
            know = [lambda: index.add(ids, self._ids, LOOPS.enter)]
        self._append(self.pending_nodes, self.files.newborn, n, columns, know)
        self.state = self.state.grown(nodes=n)

    def _append(
        self,
        table: PendingRecords,
        blank: npt.NDArray[Any],
        n: int,
        columns: Columns,
        meanwhile: Sequence[Callable[[], None]] = (),
    ) -> None:
        """Append `n` records: `blank`, but for the columns. Other work is done beside it when they are many."""
        table.reserve(n)
        piece = min(n, max(1, _PIECE // blank.itemsize))
        if n == piece:  # as most are
            for work in meanwhile:
                work()
            new = blank.copy() if n == 1 else np.repeat(blank, piece)
            table.file.fill(new, columns)
            table.append(new)
            return

        def write(starts: range) -> None:
            new = np.repeat(blank, piece)
            for start in starts:
                part = new[: n - start]
                table.file.fill(part, {name: values[start : start + piece] for name, values in columns.items()})
                table.file.append(table.count + start, part)

        turns = [range(first * piece, n, _WRITERS * piece) for first in range(_WRITERS)]
        works: list[Callable[[], None]] = [*(partial(write, starts) for starts in turns), *meanwhile]
        in_threads(lambda work: work(), works)
        table.count += n

    def write_nodes(self, rows: Rows, columns: Columns) -> None:
        self.pending_nodes.write(rows, columns)

    def put_node_chunk(self, start: int, columns: Columns) -> None:
        self.pending_nodes.put_chunk(start, columns)

    def append_edges(self, columns: Columns) -> None:
        for start in range(0, len(columns["source_row"]), _EDGES_AT_ONCE):
            self._link({name: values[start : start + _EDGES_AT_ONCE] for name, values in columns.items()})

    def _link(self, columns: Columns) -> None:
        sources = columns["source_row"]
        n, first = len(sources), self.state.edges
        pointers, rows, heads = linked(sources, first, lambda rows: self.nodes.gather("head_edge_idx", rows))
        new = {
            "source_id": self._ids.gather("id", sources),
            "target_id": self._ids.gather("id", columns["target_row"]),
            "weight": columns["weight"],
            "confidence": columns["confidence"],
            "next_edge_idx": pointers,
        }
        self._append(self.pending_edges, _NEW_EDGE, n, new)
        self.pending_nodes.write(rows, {"head_edge_idx": heads})
        self.state = self.state.grown(edges=n)

    def write_edges(self, refs: Refs, columns: Columns) -> None:
        self.pending_edges.write(refs, columns)

    def put_edge_chunk(self, start: int, columns: Columns) -> None:
        self.pending_edges.put_chunk(start, columns)

    def remove_edges(self, refs: Refs) -> None:
        rows = self.rows_of(self.edges.gather("source_id", refs))
        sources = records.distinct(rows[rows >= 0])
        found = self._lists(sources)
        indptr, lists = found.indptr, found.refs
        owner = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        stays = ~np.isin(lists, refs)
        if len(lists) - np.count_nonzero(stays) < len(refs):
            # A node of a duplicate id, which 0.3.0 gives now and then, or a list that a crash of 0.3.0 cut.
            astray = int(np.flatnonzero(~np.isin(refs, lists))[0])
            raise CorruptionError(
                f"{self.files.edges.path}: edge {int(refs[astray])} is not in the edge list of row "
                f"{int(rows[astray])}, which has the id of its source"
            )
        kept, owner = lists[stays], owner[stays]
        # Each kept edge points to the next kept one of its list, the head to the first.
        points_to = np.full(len(kept), END, np.int64)
        same = owner[1:] == owner[:-1]
        points_to[:-1][same] = kept[1:][same]
        heads = np.full(len(indptr) - 1, END, np.int64)
        begins = np.flatnonzero(np.append(True, ~same)[: len(kept)])
        heads[owner[begins]] = kept[begins]
        moved = self.edges.gather("next_edge_idx", kept) != points_to
        self.pending_edges.write(kept[moved], {"next_edge_idx": points_to[moved]})
        self.pending_nodes.write(sources, {"head_edge_idx": heads})
        gone = np.zeros(len(refs), EDGE_DTYPE)
        gone["next_edge_idx"] = REMOVED
        self.pending_edges.write(refs, {f: gone[f] for f in ("weight", "confidence", "use_count", "next_edge_idx")})
        self.state = self.state.grown(removed=len(refs))

    def append_events(self, events: npt.NDArray[Any]) -> None:
        self.files.events.write(self.state.events, events)
        self.state = self.state.grown(events=len(events))

    def set_attrs(self, attrs: dict[str, JSON]) -> None:
        self.state = replace(self.state, attrs=attrs)
