"""A graph as a stream of columns, and the copy of one into a store: chunk by chunk, in memory of bounded size.

The next pieces are read, and shown to whoever taps the stream, in a thread while the last ones are written. A copy
into a store that holds the beginning of the source already, because it was interrupted, goes on where that ends.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.errors import DuplicateIdError, InvalidInputError, MigrationError, NotFoundError
from aesg.protocols import Graph, GraphStore, Progress, Transaction
from aesg.records import JSON, Columns, NodeBatch

PIECE_BYTES: Final = 1 << 21
"""About how much is read at once."""
COMMIT_BYTES: Final = 1 << 24
"""About how much is written before it is committed."""
_TIDY: Final = 8
"""Commits after which freed memory is given back to the system: each time it costs as much as to write some of them."""
_AHEAD: Final = 3
"""Pieces that wait to be written."""
EDGE_BYTES: Final = sum(dtype.itemsize for dtype in records.EDGE_FIELDS.values())
EVENT_BYTES: Final = sum(records.EVENT_DTYPE[name].itemsize for name in records.EVENT_DTYPE.names or ())

_C: Final = ctypes.CDLL(None)

Events: TypeAlias = npt.NDArray[Any]
Kind: TypeAlias = Literal["nodes", "edges", "events"]
KINDS: Final[tuple[Kind, ...]] = ("nodes", "edges", "events")


class Source(Protocol):
    """A graph to read once from end to end, or several times. What a store, a file or a salvage gives a copy."""

    @property
    def url(self) -> str:
        """Where it is, for messages."""

    @property
    def vector_dim(self) -> int:
        """Length D of every vector."""

    @property
    def attrs(self) -> Mapping[str, JSON]:
        """The attributes, in their order."""

    @property
    def node_count(self) -> int:
        """As many as `nodes` gives."""

    @property
    def edge_count(self) -> int:
        """As many as `edges` gives."""

    @property
    def event_count(self) -> int:
        """As many as `events` gives."""

    def nodes(self) -> Iterator[Columns]:
        """All of `records.NODE_FIELDS`, in order of row, in chunks of bounded size."""

    def edges(self) -> Iterator[Columns]:
        """All of `records.EDGE_FIELDS`, in order of ref; source_row and target_row count the rows of `nodes`."""

    def events(self) -> Iterator[Events]:
        """Of `records.EVENT_DTYPE`, from the oldest on."""


class Tap(Protocol):
    """Sees what is copied, piece by piece and in order, in the thread that reads."""

    def nodes(self, columns: Columns) -> None:
        """Rows of all of `records.NODE_FIELDS`."""

    def edges(self, columns: Columns) -> None:
        """Edges with all of `records.EDGE_FIELDS`; "ref" may be there too and says nothing."""

    def events(self, events: Events) -> None:
        """Events of `records.EVENT_DTYPE`."""


def node_bytes(vector_dim: int) -> int:
    """Bytes of a node's fields."""
    return sum(dtype.itemsize for dtype in records.NODE_FIELDS.values()) + 4 * (vector_dim - 1)


class GraphSource:
    """A store, a transaction or a snapshot as a source.

    Args:
        graph: Has to stay as it is until everything was read.
        url: For messages; the graph's own when it has one.
    """

    def __init__(self, graph: Graph, url: str = "") -> None:
        self._graph = graph
        self.url = url or str(getattr(graph, "url", "a graph"))
        self.vector_dim = graph.vector_dim
        self.attrs: Mapping[str, JSON] = {name: graph.attrs[name] for name in graph.attrs}
        self.node_count, self.edge_count, self.event_count = len(graph.nodes), len(graph.edges), len(graph.events)

    def nodes(self, fields: Sequence[str] | None = None) -> Iterator[Columns]:
        return self._graph.nodes.scan(fields, chunk_rows=max(1, PIECE_BYTES // node_bytes(self.vector_dim)))

    def edges(self, fields: Sequence[str] | None = None) -> Iterator[Columns]:
        return self._graph.edges.scan(fields, chunk_edges=PIECE_BYTES // EDGE_BYTES)

    def events(self) -> Iterator[Events]:
        size = PIECE_BYTES // EVENT_BYTES
        for start in range(0, self.event_count, size):
            yield self._graph.events.read(start, min(start + size, self.event_count))


def payload_bytes(source: Source) -> int:
    """Bytes of all fields of all nodes, edges and events."""
    nodes, edges = source.node_count * node_bytes(source.vector_dim), source.edge_count * EDGE_BYTES
    return nodes + edges + source.event_count * EVENT_BYTES


def copy(
    source: Source,
    destination: GraphStore,
    progress: Progress | None = None,
    taps: Sequence[Tap] = (),
    before_commit: Callable[[], None] | None = None,
    keep_attrs: Collection[str] = (),
) -> None:
    """Copy everything that a source gives into a store, in commits of about `COMMIT_BYTES`; the attributes come last.

    Args:
        source: What to copy.
        destination: Empty, or with the first nodes, edges and events of the source from a copy that was interrupted.
        progress: Told about nodes, edges and events.
        taps: See everything, what is in the destination already too.
        before_commit: Called before each commit; what it raises ends the copy.
        keep_attrs: Attributes of the destination that stay, though the source has none of that name.

    Raises:
        MigrationError: The source gives what no store takes, or the destination holds more than it.
        CapacityError: The disk is full; what was committed before stays.
    """
    writer = _Writer(source, destination, before_commit)
    counts: dict[Kind, int] = {"nodes": source.node_count, "edges": source.edge_count, "events": source.event_count}
    for kind, have in writer.have.items():
        if have > counts[kind]:
            raise MigrationError(
                f"{destination.url} holds {have} {kind}, {source.url} only {counts[kind]}: not its copy"
            )
    done = dict.fromkeys(KINDS, 0)
    with _read_ahead(_tapped(source, taps)) as pieces, _loading(destination), writer:
        for kind, piece in pieces:
            n = len(piece) if isinstance(piece, np.ndarray) else len(piece["weight" if kind == "edges" else "id"])
            first = max(writer.have[kind] - done[kind], 0)  # of what is there already nothing is written
            if first < n:
                writer.put(kind, _from(piece, first) if first else piece)
            done[kind] += n
            if progress is not None:
                progress(f"copying {kind}", done[kind], counts[kind])
        if done != counts:
            raise MigrationError(
                f"{source.url} gave {_told(done)} instead of {_told(counts)}: it changed while it was read"
            )
        writer.finish(keep_attrs)


def _loading(destination: GraphStore) -> AbstractContextManager[None]:
    """Tell a store that a whole graph comes, if it wants to know."""
    loading: Callable[[], AbstractContextManager[None]] | None = getattr(destination, "loading", None)
    return nullcontext() if loading is None else loading()


def _told(counts: Mapping[Kind, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in counts.items())


def _from(piece: Columns | Events, first: int) -> Columns | Events:
    if isinstance(piece, np.ndarray):
        return piece[first:]
    return {name: values[first:] for name, values in piece.items()}


class _Writer:
    """Appends pieces to a store in transactions of bounded size. Left by an exception it rolls the open one back."""

    def __init__(self, source: Source, destination: GraphStore, before_commit: Callable[[], None] | None) -> None:
        self._source = source
        self._destination = destination
        self._before_commit = before_commit
        self._transaction: Transaction | None = None
        self._bytes = self._commits = 0
        self.have: dict[Kind, int] = {
            "nodes": len(destination.nodes),
            "edges": len(destination.edges),
            "events": len(destination.events),
        }

    def put(self, kind: Kind, piece: Columns | Events) -> None:
        """Append; commits when enough has come together."""
        if self._transaction is None:
            self._transaction = self._destination.transaction()
        try:
            if isinstance(piece, np.ndarray):
                self._transaction.events.append(piece)
                self._bytes += len(piece) * EVENT_BYTES
            else:
                put = _append_edges if kind == "edges" else _append_nodes
                put(self._transaction, piece)
                self._bytes += sum(values.nbytes for values in piece.values())
        except (InvalidInputError, DuplicateIdError, NotFoundError) as error:
            raise MigrationError(
                f"{self._source.url}: its {kind} cannot be carried over as they are: {error}. "
                f"`aesg verify` lists what is wrong, `aesg repair` copies what is sound"
            ) from error
        if self._bytes >= COMMIT_BYTES:
            self._commit()

    def finish(self, keep_attrs: Collection[str]) -> None:
        """Set the attributes and commit what is left."""
        if self._transaction is None:
            self._transaction = self._destination.transaction()
        attrs = self._transaction.attrs
        for name in [name for name in attrs if name not in self._source.attrs and name not in keep_attrs]:
            del attrs[name]
        for name, value in self._source.attrs.items():
            attrs[name] = value
        self._commit()

    def _commit(self) -> None:
        transaction = self._transaction
        assert transaction is not None
        if self._before_commit is not None:
            self._before_commit()
        self._transaction, self._bytes = None, 0
        transaction.commit()
        self._commits += 1
        if self._commits % _TIDY == 0:
            give_back_memory()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        if self._transaction is not None:
            self._transaction.rollback()


def give_back_memory() -> None:
    """Have glibc return what was freed to the system; pieces of many sizes from several threads leave it in tatters."""
    trim = getattr(_C, "malloc_trim", None)
    if trim is not None:
        trim(0)


def _append_nodes(transaction: Transaction, columns: Columns) -> None:
    rest = {name: values for name, values in columns.items() if name not in ("id", "vector")}
    transaction.nodes.append(NodeBatch(columns["vector"], columns["id"], rest))


def _append_edges(transaction: Transaction, columns: Columns) -> None:
    given = (columns[name] for name in ("source_row", "target_row", "weight", "confidence"))
    refs = transaction.edges.append(*given)
    used = np.flatnonzero(columns["use_count"])  # append has no place for it
    if len(used):
        transaction.edges.write(refs[used], use_count=columns["use_count"][used])


# --- reading ahead ---------------------------------------------------------------------------------------------------

_Piece: TypeAlias = tuple[Kind, Columns | Events]


def _tapped(source: Source, taps: Sequence[Tap]) -> Iterator[_Piece]:
    streams: tuple[tuple[Kind, Iterable[Any]], ...] = (
        ("nodes", source.nodes()),
        ("edges", source.edges()),
        ("events", source.events()),
    )
    for kind, stream in streams:
        for piece in stream:
            for tap in taps:
                getattr(tap, kind)(piece)
            yield kind, piece


@contextmanager
def _read_ahead(pieces: Iterator[_Piece]) -> Iterator[Iterator[_Piece]]:
    """What an iterator gives, made in a thread while the caller works on what came before."""
    waiting: queue.Queue[_Piece | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def offer(item: _Piece | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return

    def read() -> None:
        last: BaseException | None = None
        try:
            for piece in pieces:
                offer(piece)
                if stopped.is_set():
                    return
        except BaseException as error:  # raised again in the caller's thread
            last = error
        offer(last)

    def taken() -> Iterator[_Piece]:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    reader = threading.Thread(target=read, name="aesg-read-ahead")
    reader.start()
    try:
        yield taken()
    finally:
        stopped.set()
        reader.join()
