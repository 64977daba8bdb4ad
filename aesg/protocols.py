"""The contract between the engine and a store, in words and types.

Everything above the backends (engine, memory, tools) sees a store through these protocols and nothing else; every
backend is held to the same promises.

* **Batch first, columns, synchronous.** Calls take and give NumPy arrays. Arrays given back are the caller's own.
* **A graph seen three ways.** `GraphStore`, `Transaction` and `Snapshot` are each a `Graph`.
  - Through the *store*, reads see the last commit, and each write is a transaction of its own.
  - Through a *transaction*, reads see its own writes on top of the last commit; nobody else does before `commit()`.
  - Through a *snapshot*, reads see the commit that was newest when it was taken, for as long as it is open.
* **A transaction spans nodes, edges, events and attrs.** After a crash the store is the last committed state, never a
  mixture. One transaction at a time: `transaction()` waits for the one that another thread has open.
* **Checked before anything is written.** Wrong shapes, dtypes and ranges, unknown rows, duplicate ids and non-finite
  numbers raise, and the transaction is as it was before the call.
* **Raise; never return a success flag.** Only `AESGError`s come out (see `aesg.errors`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, runtime_checkable

import numpy.typing as npt

from aesg.records import JSON, Adjacency, Columns, Ids, NodeBatch, Refs, Rows

ColumnFn: TypeAlias = Callable[[Columns], Columns]
"""A pure function of columns; picklable, so that a distributed engine can ship it to where the data lies."""
Progress: TypeAlias = Callable[[str, int, int], None]
"""Told by long work what it is doing, and how much of how much of it is done."""


# --- capabilities ----------------------------------------------------------------------------------------------------


class Durability(IntEnum):
    """What a committed transaction survives."""

    NONE = 0
    PROCESS_CRASH = 1  # kill -9 at any point
    POWER_LOSS = 2  # the machine going dark at any point


class Atomicity(IntEnum):
    """What becomes visible at once."""

    BATCH = 0  # one call's worth
    GRAPH = 1  # a transaction over nodes, edges, events and attrs


class Readers(IntEnum):
    """Who may read beside the writer."""

    SAME_PROCESS = 0
    OTHER_PROCESSES = 1


class ReaderView(IntEnum):
    """What a read-only handle beside a writer sees."""

    LATEST = 0  # each call sees the newest commit, whole; two calls may see two commits
    FIXED = 1  # the commit that was newest when the handle was opened or last refreshed


class Writers(IntEnum):
    """Who may write."""

    ONE_PROCESS = 0
    MANY = 1


class Integrity(IntEnum):
    """What is noticed of damage to the files: flipped bits, cut ends, exchanged files."""

    STRUCTURE = 0  # what cannot be a store is refused; a bit flipped inside a number passes for another number
    CHECKSUMS = 1  # every byte that is given back was checked: it is what was committed, or CorruptionError is raised


class SpaceReclaim(IntEnum):
    """When space of removed data is given back."""

    ON_MAINTENANCE = 0  # by the backend's own means, which its documentation names
    ON_COMPACT = 1
    CONTINUOUS = 2


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What *this opened store* promises, as ordered levels: more is better, everything undeclared is refused.

    `open(url, require={"durability": "power_loss"})` refuses a store that promises less.
    """

    durability: Durability
    atomicity: Atomicity
    readers: Readers
    reader_view: ReaderView
    writers: Writers
    snapshots: bool
    space_reclaim: SpaceReclaim
    integrity: Integrity
    remote: bool

    def as_dict(self) -> dict[str, str | bool]:
        """Level names in lower case, for people and for JSON."""
        return {k: v if isinstance(v, bool) else v.name.lower() for k, v in asdict(self).items()}

    def missing(self, require: Mapping[str, Any]) -> list[str]:
        """What of `require` this does not promise, one sentence each; empty when all is.

        Args:
            require: Capability name → least level, as enum member, its name in any case, or a bool.

        Raises:
            ValueError: An unknown capability or level; the message lists the known ones.
        """
        known = [f.name for f in fields(self)]
        lacking = []
        for name, wanted in require.items():
            if name not in known:
                raise ValueError(f"unknown capability {name!r}; known: {', '.join(known)}")
            have = getattr(self, name)
            if isinstance(have, bool):
                if not isinstance(wanted, bool):
                    raise ValueError(f"capability {name!r} is true or false, not {wanted!r}")
                least: Any = wanted
            else:
                levels = type(have)
                try:
                    least = levels[wanted.upper()] if isinstance(wanted, str) else levels(wanted)
                except (KeyError, ValueError) as error:
                    names = " < ".join(level.name.lower() for level in levels)
                    raise ValueError(f"unknown level {wanted!r} of {name}; known: {names}") from error
            if have < least:
                shown = [str(x).lower() if isinstance(x, bool) else x.name.lower() for x in (least, have)]
                lacking.append(f"{name} {shown[0]} was required, this store gives {shown[1]}")
        return lacking


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that `verify()` found wrong.

    Attributes:
        kind: A stable name, e.g. "cyclic-list", "dangling-target", "duplicate-id", "non-finite".
        place: Where: a file and a row, ref or byte.
        detail: What was found and what was expected.
    """

    kind: str
    place: str
    detail: str


# --- the parts of a graph --------------------------------------------------------------------------------------------


class NodeStore(Protocol):
    """Columns of nodes by row."""

    def __len__(self) -> int:
        """Number of rows, pruned ones included."""

    def append(self, batch: NodeBatch) -> Rows:
        """Append nodes.

        Returns:
            Their rows, consecutive.

        Raises:
            InvalidVectorError: Wrong length or not finite.
            InvalidInputError: Wrong shapes or dtypes, unknown fields.
            DuplicateIdError: An id is in the store, or twice in the batch.
        """

    def read(self, rows: npt.ArrayLike, fields: Sequence[str] | None = None) -> Columns:
        """Gather fields of rows, in the order asked for (repeats allowed).

        Args:
            rows: int [n].
            fields: Names of `records.NODE_FIELDS`; all when None.

        Returns:
            Field → array [n] (vector: [n, D]), copies.

        Raises:
            NotFoundError: A row outside [0, len).
        """

    def write(self, rows: npt.ArrayLike, **columns: npt.ArrayLike) -> None:
        """Overwrite fields of rows; a scalar is broadcast; of a row given twice the last value counts.

        Raises:
            NotFoundError: A row outside [0, len).
            InvalidInputError: A field that may not change, a wrong shape or dtype, a non-finite number.
        """

    def scan(self, fields: Sequence[str] | None = None, chunk_rows: int | None = None) -> Iterator[Columns]:
        """Walk all rows in order, a chunk at a time.

        Args:
            fields: As in `read`.
            chunk_rows: Rows a chunk; None leaves it to the backend.

        Yields:
            Field → array of at most `chunk_rows` rows.
        """

    def transform(
        self, fn: ColumnFn, reads: Sequence[str], writes: Sequence[str], returns: Sequence[str] = ()
    ) -> Columns:
        """Update whole columns: `fn` maps the columns `reads` to the columns `writes`, chunk by chunk.

        The backend decides on chunks and order; `fn` must not depend on them.

        Args:
            fn: See `ColumnFn`.
            reads: Names of fields; "row" is each row's number.
            writes: Names of writable fields; none makes it a reduction.
            returns: Names of further arrays that `fn` gives, of any dtype and length: not for the store, but for the
                caller.

        Returns:
            The arrays `returns`, each that of all chunks one after another, in order of row.
        """

    def rows_of(self, ids: npt.ArrayLike) -> Rows:
        """Rows of ids, -1 where absent."""


class EdgeStore(Protocol):
    """Directed weighted edges between rows, by ref and by source."""

    def __len__(self) -> int:
        """Number of edges, removed ones not counted."""

    def append(
        self,
        source_rows: npt.ArrayLike,
        target_rows: npt.ArrayLike,
        weight: npt.ArrayLike = 1.0,
        confidence: npt.ArrayLike = 1.0,
    ) -> Refs:
        """Append edges; several between the same two nodes are allowed.

        Args:
            source_rows: int [n].
            target_rows: int [n].
            weight: float32 [n] or a scalar; finite.
            confidence: float32 [n] or a scalar; finite.

        Returns:
            Their refs, ascending.

        Raises:
            NotFoundError: A row outside the store.
            InvalidInputError: Wrong shapes, or a non-finite number.
        """

    def out_edges(self, rows: npt.ArrayLike, limit: int | None = None) -> Adjacency:
        """The edges that leave each row, newest first. One call a hop, however large the frontier.

        Args:
            rows: int [n], repeats allowed.
            limit: Of each row at most so many, its newest; all when None. A row with a million edges costs no more
                than it gives.

        Raises:
            NotFoundError: A row outside the store.
            InvalidInputError: A limit below 1.
        """

    def read(self, refs: npt.ArrayLike, fields: Sequence[str] | None = None) -> Columns:
        """Gather fields of `records.EDGE_FIELDS` by ref.

        Raises:
            NotFoundError: A ref outside the store, or of a removed edge.
        """

    def write(self, refs: npt.ArrayLike, **columns: npt.ArrayLike) -> None:
        """Overwrite weight, confidence or use_count; of a ref given twice the last value counts.

        Raises:
            NotFoundError: A ref outside the store, or of a removed edge.
            InvalidInputError: Another field, a wrong shape or dtype, a non-finite number.
        """

    def remove(self, refs: npt.ArrayLike) -> None:
        """Remove edges. Other refs stay as they are.

        Raises:
            NotFoundError: A ref outside the store, or of an edge removed before.
        """

    def degrees(self, rows: npt.ArrayLike) -> npt.NDArray[Any]:
        """Out-degrees, int64 [n]."""

    def scan(self, fields: Sequence[str] | None = None, chunk_edges: int | None = None) -> Iterator[Columns]:
        """Walk all edges that were not removed, in order of ref; each chunk also has the column "ref"."""

    def transform(
        self, fn: ColumnFn, reads: Sequence[str], writes: Sequence[str], returns: Sequence[str] = ()
    ) -> Columns:
        """Update whole columns, as `NodeStore.transform`; "ref" is each edge's number. Removed edges are not shown."""


class EventLog(Protocol):
    """The evolution log; commits with the graph."""

    def __len__(self) -> int:
        """Number of events."""

    def append(self, events: npt.NDArray[Any]) -> None:
        """Append events of `records.EVENT_DTYPE`."""

    def read(self, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Events `start:stop`, slice rules; a structured array of `records.EVENT_DTYPE`."""


class Graph(Protocol):
    """What store, transaction and snapshot have in common, and all that the engine asks for."""

    @property
    def vector_dim(self) -> int:
        """Length D of every vector."""

    @property
    def nodes(self) -> NodeStore:
        """The nodes."""

    @property
    def edges(self) -> EdgeStore:
        """The edges."""

    @property
    def events(self) -> EventLog:
        """The evolution log."""

    @property
    def attrs(self) -> MutableMapping[str, JSON]:
        """Small JSON values: the configuration, the epoch, the embedder's fingerprint."""


class Transaction(Graph, Protocol):
    """A graph whose writes become visible, and durable, all at once or not at all.

    As a context manager it commits at the end of the block and rolls back when the block raises.
    """

    def commit(self) -> None:
        """Make the writes the newest state of the store.

        Raises:
            CapacityError: The disk is full; nothing was applied.
            ConflictError: Another writer was first; nothing was applied.
            TransactionError: It ended before.
        """

    def rollback(self) -> None:
        """Forget the writes; does nothing after the end."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Snapshot(Graph, Protocol):
    """A read-only graph that stays as it was when it was taken."""

    def close(self) -> None:
        """Let the state go."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class GraphStore(Graph, Protocol):
    """An opened store. Reads see the last commit; each write is a transaction of its own.

    Handles may be shared between threads. After a fork, a child's handle reads only. Pickling keeps the URL; the copy
    is opened for reading.
    """

    @property
    def url(self) -> str:
        """Where it lies; `aesg.open(url)` finds it again."""

    @property
    def read_only(self) -> bool:
        """Whether this handle refuses writes."""

    @property
    def generation(self) -> int:
        """Grows with every commit; equal generations mean equal contents."""

    @property
    def uuid(self) -> str:
        """Given at creation; tells one store's derived files (an index, a cache) from another's."""

    @property
    def capabilities(self) -> Capabilities:
        """What this opened store promises."""

    def transaction(self) -> Transaction:
        """Begin one.

        Raises:
            ReadOnlyError: The handle reads only.
            TransactionError: This thread has one open already.
        """

    def snapshot(self) -> Snapshot:
        """Take one.

        Raises:
            UnsupportedError: `capabilities.snapshots` is false.
        """

    def refresh(self) -> bool:
        """Move a read-only handle to the newest commit; True when that changed anything."""

    def flush(self) -> None:
        """Bring every commit to where foreign readers of the format, and the disk, have it."""

    def verify(self, *, deep: bool = True, progress: Progress | None = None) -> list[Violation]:
        """Check a store; empty when all is well.

        Args:
            deep: Check everything that can be checked; else structure, counts, ids, lists and that numbers are finite,
                which takes seconds.
            progress: Told how far it is.
        """

    def compact(self, *, min_confidence: float | None = None) -> Rows:
        """Drop pruned nodes, their edges and removed edges; rows and refs are given anew. All of it or nothing.

        Args:
            min_confidence: Drop edges of less confidence too; None drops none for that.

        Returns:
            int64 [old length]: each old row's new row, -1 where it was dropped.

        Raises:
            InvalidInputError: `min_confidence` is no finite number.
        """

    def stats(self) -> dict[str, Any]:
        """Figures for people: counts, bytes on disk, pending work."""

    def close(self) -> None:
        """Flush, release, and refuse everything afterwards; does nothing the second time."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


__all__ = [
    "Adjacency",
    "Atomicity",
    "Capabilities",
    "ColumnFn",
    "Durability",
    "EdgeStore",
    "EventLog",
    "Graph",
    "GraphStore",
    "Ids",
    "Integrity",
    "NodeStore",
    "Progress",
    "ReaderView",
    "Readers",
    "Snapshot",
    "SpaceReclaim",
    "Transaction",
    "Violation",
    "Writers",
]
