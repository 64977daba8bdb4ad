"""What every backend shares: checking of arguments, transactions, closed and read-only handles.

A backend implements `Tables` (one state of a graph, arguments already checked) and the hooks of `Store`. Everything a
caller can get wrong is caught here, once, so that all backends refuse the same things with the same words.
"""

from __future__ import annotations

import copy
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.errors import (
    ClosedError,
    ConflictError,
    DuplicateIdError,
    InvalidInputError,
    InvalidVectorError,
    NotFoundError,
    ReadOnlyError,
    TransactionError,
    UnsupportedError,
)
from aesg.protocols import Capabilities, ColumnFn, Violation
from aesg.records import JSON, Adjacency, Columns, NodeBatch, Refs, Rows

CHUNK_BYTES: Final = 1 << 20
"""A chunk of a scan or a transform: fits a core's L2 cache, so that a second column costs no memory trip."""


class Tables(ABC):
    """One state of a graph in a backend's own terms.

    Arguments have been checked: rows and refs are int64 [n] within range, columns have their field's dtype and shape
    [n], no field is unknown, every number is finite. What is given back is the caller's own.
    """

    vector_dim: int
    node_count: int
    edge_slots: int
    """Refs ever given, those of removed edges included."""
    removed_edges: int
    event_count: int
    attrs: dict[str, JSON]
    """Never mutated: replaced by `set_attrs`."""

    @abstractmethod
    def read_nodes(self, rows: Rows, fields: Sequence[str]) -> Columns:
        """Gather."""

    @abstractmethod
    def node_chunk(self, start: int, stop: int, fields: Sequence[str]) -> Columns:
        """Rows start:stop."""

    @abstractmethod
    def rows_of(self, ids: records.Ids) -> Rows:
        """-1 where absent."""

    @abstractmethod
    def out_edges(self, rows: Rows) -> Adjacency:
        """Newest first."""

    @abstractmethod
    def read_edges(self, refs: Refs, fields: Sequence[str]) -> Columns:
        """Gather; removed edges included."""

    @abstractmethod
    def edge_chunk(self, start: int, stop: int, fields: Sequence[str]) -> Columns:
        """Refs start:stop, removed edges included."""

    @abstractmethod
    def removed(self, refs: Refs) -> npt.NDArray[np.bool_]:
        """Which of the refs are of removed edges."""

    @abstractmethod
    def read_events(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Events start:stop."""

    def node_bytes(self) -> int:
        """Bytes of a node where it lies, to size chunks."""
        return 53 + 4 * self.vector_dim


class WritableTables(Tables):
    """The working state of a transaction."""

    @abstractmethod
    def append_nodes(self, columns: Columns) -> None:
        """Append; id, vector, created_at and modified_at are given, fields of NODE_DEFAULTS may be; ids are new."""

    @abstractmethod
    def write_nodes(self, rows: Rows, columns: Columns) -> None:
        """Overwrite; rows may repeat, the last counts."""

    @abstractmethod
    def put_node_chunk(self, start: int, columns: Columns) -> None:
        """Overwrite the rows from `start` on."""

    @abstractmethod
    def append_edges(self, columns: Columns) -> None:
        """Append; source_row, target_row, weight and confidence are given."""

    @abstractmethod
    def write_edges(self, refs: Refs, columns: Columns) -> None:
        """Overwrite; refs may repeat, the last counts."""

    @abstractmethod
    def put_edge_chunk(self, start: int, columns: Columns) -> None:
        """Overwrite the refs from `start` on, removed edges included (their values do not matter)."""

    @abstractmethod
    def remove_edges(self, refs: Refs) -> None:
        """Remove; refs are distinct and present."""

    @abstractmethod
    def append_events(self, events: npt.NDArray[Any]) -> None:
        """Append."""

    @abstractmethod
    def set_attrs(self, attrs: dict[str, JSON]) -> None:
        """Replace all attributes."""


class View(Protocol):
    """Where the parts of a graph get their tables from: a store, a transaction or a snapshot."""

    @property
    def url(self) -> str: ...

    def reading(self) -> AbstractContextManager[Tables]: ...

    def writing(self, *, in_steps: bool = False) -> AbstractContextManager[WritableTables]:
        """`in_steps`: the block writes more than once, so that any exception leaves a half-done change."""


# --- checks ----------------------------------------------------------------------------------------------------------


def _array(given: npt.ArrayLike, what: str, url: str) -> npt.NDArray[Any]:
    """`given` as an array of whatever dtype and shape it has."""
    try:
        return np.asarray(given)
    except Exception as error:  # lists of unequal lengths, and whatever an object's __array__ raises
        raise InvalidInputError(f"{url}: {what} cannot be made an array: {error}") from error


def _positions(given: npt.ArrayLike, what: str, count: int, url: str) -> npt.NDArray[np.int64]:
    """`given` as int64 [n] within [0, count)."""
    array = _array(given, f"{what}s", url)
    if array.dtype.kind not in "iu":
        if array.size:
            raise InvalidInputError(f"{url}: {what}s must be integers, not {array.dtype}")
        array = array.astype(np.int64)
    if array.ndim == 0:
        array = array.reshape(1)
    if array.ndim != 1:
        raise InvalidInputError(f"{url}: {what}s must be one-dimensional, not of shape {array.shape}")
    if array.size:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= count:
            bad = low if low < 0 else high
            raise NotFoundError(f"{url}: no {what} {bad}; the store has {count} ({what}s 0 to {count - 1})")
    return np.ascontiguousarray(array, dtype=np.int64)


def _finite(array: npt.NDArray[Any]) -> bool:
    if array.size < 4096:
        return bool(np.isfinite(array).all())
    # One pass without a temporary: NaN and infinity survive a sum. A finite array may overflow it, hence the recount.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())


def _column(name: str, given: npt.ArrayLike, n: int, dtype: np.dtype[Any], url: str) -> npt.NDArray[Any]:
    """`given` as a finite [n] array of the field's dtype; a scalar is broadcast."""
    array = _array(given, name, url)
    if array.dtype.kind == "b" or not array.size:  # of an empty list NumPy makes floats
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iuf" or (dtype.kind == "u" and array.dtype.kind == "f"):
        raise InvalidInputError(f"{url}: {name} must be {dtype}, not {array.dtype}")
    if array.ndim not in (0, 1) or (array.ndim == 1 and len(array) != n):
        raise InvalidInputError(f"{url}: {name} must be a scalar or of shape ({n},), not {array.shape}")
    if dtype.kind in "iu" and array.size and array.dtype != dtype:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InvalidInputError(f"{url}: {name} must be between {limits.min} and {limits.max}")
    if array.dtype != dtype:
        with np.errstate(over="ignore"):
            array = array.astype(dtype)
    if dtype.kind == "f" and not _finite(array):
        raise InvalidInputError(f"{url}: {name} must be finite (float32)")
    return array if array.ndim else np.full(n, array)


def _vectors(given: npt.ArrayLike, n: int | None, dim: int, url: str) -> records.Vectors:
    """`given` as finite float32 [n, dim]."""
    array = _array(given, "vectors", url)
    if array.dtype.kind not in "fiu":
        raise InvalidVectorError(f"{url}: vectors must be floating point, not {array.dtype}")
    if array.ndim != 2 or array.shape[1] != dim or (n is not None and len(array) != n):
        rows = "n" if n is None else n
        raise InvalidVectorError(f"{url}: vectors must have shape ({rows}, {dim}), not {array.shape}")
    if array.dtype != np.float32:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    array = np.ascontiguousarray(array)
    if not _finite(array):
        bad = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise InvalidVectorError(f"{url}: vector {bad} of the batch holds NaN or infinity (as float32)")
    return array


def _node_columns(given: Mapping[str, npt.ArrayLike], n: int, dim: int, url: str) -> Columns:
    unknown = sorted(set(given) - records.NODE_WRITABLE)
    if unknown:
        known = ", ".join(sorted(records.NODE_WRITABLE))
        raise InvalidInputError(f"{url}: no node field {', '.join(unknown)} to write; there are: {known}")
    columns: Columns = {}
    for name, values in given.items():
        if name == "vector":
            wanted = _array(values, name, url)
            columns[name] = _vectors(
                np.broadcast_to(wanted, (n, dim)) if wanted.shape == (dim,) else wanted, n, dim, url
            )
        else:
            columns[name] = _column(name, values, n, records.NODE_FIELDS[name], url)
    if "is_active" in columns and len(columns["is_active"]) and columns["is_active"].max() > 1:
        raise InvalidInputError(f"{url}: is_active must be 0 or 1")
    return columns


def _edge_columns(given: Mapping[str, npt.ArrayLike], n: int, url: str) -> Columns:
    unknown = sorted(set(given) - records.EDGE_WRITABLE)
    if unknown:
        known = ", ".join(sorted(records.EDGE_WRITABLE))
        raise InvalidInputError(f"{url}: no edge field {', '.join(unknown)} to write; there are: {known}")
    return {name: _column(name, values, n, records.EDGE_FIELDS[name], url) for name, values in given.items()}


def _fields(fields: Sequence[str] | None, known: Mapping[str, Any], what: str, url: str) -> tuple[str, ...]:
    if isinstance(fields, str):
        raise InvalidInputError(f"{url}: fields must be a list of names, not the string {fields!r}")
    names = tuple(known) if fields is None else tuple(fields)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidInputError(f"{url}: no {what} field {', '.join(unknown)}; there are: {', '.join(known)}")
    return names


def _complete(batch: NodeBatch, tables: Tables, url: str) -> Columns:
    """The columns of a batch, checked against each other and the store."""
    if not isinstance(batch, NodeBatch):
        raise InvalidInputError(f"{url}: nodes are appended as a records.NodeBatch, not {type(batch).__name__}")
    vectors = _vectors(batch.vector, None, tables.vector_dim, url)
    n = len(vectors)
    columns: Columns = {}
    if batch.columns:
        unknown = sorted(set(batch.columns) - set(records.NODE_FIELDS) | {"id", "vector"} & set(batch.columns))
        if unknown:
            raise InvalidInputError(f"{url}: NodeBatch.columns has no place for {', '.join(unknown)}")
        rest = {name: values for name, values in batch.columns.items() if name != "created_at"}
        columns = _node_columns(rest, n, tables.vector_dim, url)
    columns["vector"] = vectors
    if "created_at" in batch.columns:
        born = _column("created_at", batch.columns["created_at"], n, records.NODE_FIELDS["created_at"], url)
    else:
        born = np.full(n, records.now(), np.uint64)
    columns["created_at"] = born
    columns.setdefault("modified_at", born)
    if batch.id is None:
        columns["id"] = records.new_ids(n)
    else:
        given = _array(batch.id, "ids", url)
        if given.ndim != 1 or len(given) != n:
            raise InvalidInputError(f"{url}: ids must be of shape ({n},), not {given.shape}")
        columns["id"] = np.ascontiguousarray(_column("id", given, n, records.NODE_FIELDS["id"], url))
    ids = columns["id"]
    if n > 1:
        ordered = np.sort(ids)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise DuplicateIdError(f"{url}: id {int(twice[0])} is twice in the batch")
    present = tables.rows_of(ids)
    if n and int(present.max()) >= 0:
        first = int(np.flatnonzero(present >= 0)[0])
        raise DuplicateIdError(f"{url}: id {int(ids[first])} (number {first} of the batch) is in the store already")
    return columns


def _chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _check_scanned(stop: int, count: int, url: str) -> None:
    if stop > count:
        raise ConflictError(f"{url}: the store was compacted during the scan; begin it anew")


def _apply(fn: ColumnFn, columns: Columns, writes: Sequence[str], url: str) -> Columns:
    out = fn(columns)
    if not isinstance(out, Mapping) or set(out) != set(writes):
        returned = sorted(map(str, out)) if isinstance(out, Mapping) else type(out).__name__
        raise InvalidInputError(f"{url}: transform: fn returned {returned}, not {sorted(writes)} as announced")
    return out


def _chunk_size(given: int | None, item_bytes: int, url: str) -> int:
    if given is None:
        return max(256, CHUNK_BYTES // item_bytes)
    if not hasattr(given, "__index__") or given < 1:
        raise InvalidInputError(f"{url}: a chunk has a whole number of rows and at least 1, not {given!r}")
    return given


# --- the parts of a graph --------------------------------------------------------------------------------------------


class Nodes:
    """`NodeStore` over a view."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __len__(self) -> int:
        with self._view.reading() as tables:
            return tables.node_count

    def append(self, batch: NodeBatch) -> Rows:
        with self._view.writing() as tables:
            columns = _complete(batch, tables, self._view.url)
            first = tables.node_count
            if len(columns["id"]):
                tables.append_nodes(columns)
            return np.arange(first, tables.node_count, dtype=np.int64)

    def read(self, rows: npt.ArrayLike, fields: Sequence[str] | None = None) -> Columns:
        names = _fields(fields, records.NODE_FIELDS, "node", self._view.url)
        with self._view.reading() as tables:
            return tables.read_nodes(_positions(rows, "row", tables.node_count, self._view.url), names)

    def write(self, rows: npt.ArrayLike, **columns: npt.ArrayLike) -> None:
        with self._view.writing() as tables:
            where = _positions(rows, "row", tables.node_count, self._view.url)
            checked = _node_columns(columns, len(where), tables.vector_dim, self._view.url)
            if len(where) and checked:
                tables.write_nodes(where, checked)

    def scan(self, fields: Sequence[str] | None = None, chunk_rows: int | None = None) -> Iterator[Columns]:
        names = _fields(fields, records.NODE_FIELDS, "node", self._view.url)
        with self._view.reading() as tables:
            count = tables.node_count
            size = _chunk_size(chunk_rows, tables.node_bytes(), self._view.url)
        for start, stop in _chunks(count, size):
            with self._view.reading() as tables:
                _check_scanned(stop, tables.node_count, self._view.url)
                columns = tables.node_chunk(start, stop, names)
            yield columns

    def transform(self, fn: ColumnFn, reads: Sequence[str], writes: Sequence[str]) -> None:
        names = _fields(reads, records.NODE_FIELDS, "node", self._view.url)
        writes = _fields(writes, dict.fromkeys(sorted(records.NODE_WRITABLE)), "writable node", self._view.url)
        with self._view.writing(in_steps=True) as tables:
            size = _chunk_size(None, tables.node_bytes(), self._view.url)
            for start, stop in _chunks(tables.node_count, size):
                out = _apply(fn, tables.node_chunk(start, stop, names), writes, self._view.url)
                columns = _node_columns(out, stop - start, tables.vector_dim, self._view.url)
                if columns:
                    tables.put_node_chunk(start, columns)

    def rows_of(self, ids: npt.ArrayLike) -> Rows:
        array = _array(ids, "ids", self._view.url)
        if array.ndim == 0:
            array = array.reshape(1)
        if array.ndim != 1:
            raise InvalidInputError(f"{self._view.url}: ids must be one-dimensional, not of shape {array.shape}")
        if not array.size:
            return np.empty(0, np.int64)
        wanted = _column("id", array, len(array), records.NODE_FIELDS["id"], self._view.url)
        with self._view.reading() as tables:
            return tables.rows_of(np.ascontiguousarray(wanted))


class Edges:
    """`EdgeStore` over a view."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __len__(self) -> int:
        with self._view.reading() as tables:
            return tables.edge_slots - tables.removed_edges

    def append(
        self,
        source_rows: npt.ArrayLike,
        target_rows: npt.ArrayLike,
        weight: npt.ArrayLike = 1.0,
        confidence: npt.ArrayLike = 1.0,
    ) -> Refs:
        url = self._view.url
        with self._view.writing() as tables:
            sources = _positions(source_rows, "row", tables.node_count, url)
            targets = _positions(target_rows, "row", tables.node_count, url)
            if len(sources) != len(targets):
                raise InvalidInputError(f"{url}: {len(sources)} source rows but {len(targets)} target rows")
            columns = {"source_row": sources, "target_row": targets}
            columns |= _edge_columns({"weight": weight, "confidence": confidence}, len(sources), url)
            first = tables.edge_slots
            if len(sources):
                tables.append_edges(columns)
            return np.arange(first, tables.edge_slots, dtype=np.int64)

    def out_edges(self, rows: npt.ArrayLike) -> Adjacency:
        with self._view.reading() as tables:
            return tables.out_edges(_positions(rows, "row", tables.node_count, self._view.url))

    def read(self, refs: npt.ArrayLike, fields: Sequence[str] | None = None) -> Columns:
        names = _fields(fields, records.EDGE_FIELDS, "edge", self._view.url)
        with self._view.reading() as tables:
            return tables.read_edges(self._present(refs, tables), names)

    def write(self, refs: npt.ArrayLike, **columns: npt.ArrayLike) -> None:
        with self._view.writing() as tables:
            where = self._present(refs, tables)
            checked = _edge_columns(columns, len(where), self._view.url)
            if len(where) and checked:
                tables.write_edges(where, checked)

    def remove(self, refs: npt.ArrayLike) -> None:
        with self._view.writing() as tables:
            where = self._present(refs, tables)
            if len(np.unique(where)) != len(where):
                raise NotFoundError(f"{self._view.url}: an edge is to be removed twice")
            if len(where):
                tables.remove_edges(where)

    def degrees(self, rows: npt.ArrayLike) -> npt.NDArray[Any]:
        return self.out_edges(rows).degrees

    def scan(self, fields: Sequence[str] | None = None, chunk_edges: int | None = None) -> Iterator[Columns]:
        names = _fields(fields, records.EDGE_FIELDS, "edge", self._view.url)
        size = _chunk_size(chunk_edges, 36, self._view.url)
        with self._view.reading() as tables:
            count = tables.edge_slots
        for start, stop in _chunks(count, size):
            refs = np.arange(start, stop, dtype=np.int64)
            with self._view.reading() as tables:
                _check_scanned(stop, tables.edge_slots, self._view.url)
                columns = tables.edge_chunk(start, stop, names)
                gone = tables.removed(refs) if tables.removed_edges else None
            columns["ref"] = refs
            if gone is not None and gone.any():
                columns = {name: values[~gone] for name, values in columns.items()}
            if len(columns["ref"]):
                yield columns

    def transform(self, fn: ColumnFn, reads: Sequence[str], writes: Sequence[str]) -> None:
        names = _fields(reads, records.EDGE_FIELDS, "edge", self._view.url)
        writes = _fields(writes, dict.fromkeys(sorted(records.EDGE_WRITABLE)), "writable edge", self._view.url)
        with self._view.writing(in_steps=True) as tables:
            for start, stop in _chunks(tables.edge_slots, _chunk_size(None, 36, self._view.url)):
                given = tables.edge_chunk(start, stop, names)
                live = None
                if tables.removed_edges:  # `fn` never sees those: whatever they hold, it need not make sense of it
                    live = np.flatnonzero(~tables.removed(np.arange(start, stop, dtype=np.int64)))
                    given = {name: values[live] for name, values in given.items()}
                count = stop - start if live is None else len(live)
                out = _edge_columns(_apply(fn, given, writes, self._view.url), count, self._view.url)
                if live is not None:
                    spread = tables.edge_chunk(start, stop, tuple(out))
                    for name, values in out.items():
                        spread[name][live] = values
                    out = spread
                if out:
                    tables.put_edge_chunk(start, out)

    def _present(self, refs: npt.ArrayLike, tables: Tables) -> Refs:
        where = _positions(refs, "edge", tables.edge_slots, self._view.url)
        if tables.removed_edges and len(where):
            gone = tables.removed(where)
            if gone.any():
                raise NotFoundError(f"{self._view.url}: edge {int(where[gone][0])} was removed")
        return where


class Events:
    """`EventLog` over a view."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __len__(self) -> int:
        with self._view.reading() as tables:
            return tables.event_count

    def append(self, events: npt.NDArray[Any]) -> None:
        array = np.atleast_1d(_array(events, "events", self._view.url))
        kind, names = records.EVENT_DTYPE, records.EVENT_DTYPE.names or ()
        if array.ndim != 1 or array.dtype.names != names or any(array.dtype[name] != kind[name] for name in names):
            raise InvalidInputError(f"{self._view.url}: events must be a one-dimensional array of records.EVENT_DTYPE")
        if not _finite(array["val"]):
            raise InvalidInputError(f"{self._view.url}: an event's val must be finite")
        with self._view.writing() as tables:
            if len(array):
                # Field by field: the padding of the record is zero, whatever the caller's array has there.
                clean = np.zeros(len(array), records.EVENT_DTYPE)
                for name in array.dtype.names or ():
                    clean[name] = array[name]
                tables.append_events(clean)

    def read(self, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        with self._view.reading() as tables:
            first, last, _ = slice(start, stop).indices(tables.event_count)
            return tables.read_events(first, max(first, last))


class Attrs(MutableMapping[str, JSON]):
    """JSON attributes over a view. Values given back are copies: assign to change."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __getitem__(self, name: str) -> JSON:
        with self._view.reading() as tables:
            if name not in tables.attrs:
                raise NotFoundError(f"{self._view.url}: no attribute {name!r}; there are: {', '.join(tables.attrs)}")
            return copy.deepcopy(tables.attrs[name])

    def __setitem__(self, name: str, value: JSON) -> None:
        if not isinstance(name, str):
            raise InvalidInputError(f"{self._view.url}: an attribute's name is a string, not {name!r}")
        try:
            clean = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInputError(f"{self._view.url}: attribute {name!r} is not JSON: {error}") from error
        with self._view.writing() as tables:
            tables.set_attrs({**tables.attrs, name: clean})

    def __delitem__(self, name: str) -> None:
        self[name]  # KeyError before anything is written
        with self._view.writing() as tables:
            tables.set_attrs({k: v for k, v in tables.attrs.items() if k != name})

    def __iter__(self) -> Iterator[str]:
        with self._view.reading() as tables:
            return iter(tuple(tables.attrs))

    def __len__(self) -> int:
        with self._view.reading() as tables:
            return len(tables.attrs)

    def __repr__(self) -> str:
        return f"Attrs({dict(self)!r})"


class _GraphView(ABC):
    """A view together with the parts of a graph over it."""

    def __init__(self) -> None:
        self.nodes = Nodes(self)
        self.edges = Edges(self)
        self.events = Events(self)
        self.attrs = Attrs(self)

    @property
    @abstractmethod
    def url(self) -> str: ...

    @property
    def vector_dim(self) -> int:
        with self.reading() as tables:
            return tables.vector_dim

    @abstractmethod
    def reading(self) -> AbstractContextManager[Tables]: ...

    @abstractmethod
    def writing(self, *, in_steps: bool = False) -> AbstractContextManager[WritableTables]: ...


# --- store, transaction, snapshot ------------------------------------------------------------------------------------


class StoreTransaction(_GraphView):
    """`Transaction` of a `Store`."""

    def __init__(self, store: Store, tables: WritableTables) -> None:
        self._store = store
        self._tables: WritableTables | None = tables
        self._spoiled = False
        super().__init__()

    @property
    def url(self) -> str:
        return self._store.url

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        with self._store._lock:
            yield self._open_tables()

    @contextmanager
    def writing(self, *, in_steps: bool = False) -> Iterator[WritableTables]:
        with self._store._lock:
            tables = self._open_tables()
            try:
                yield tables
            except BaseException as error:
                found_first = isinstance(error, (InvalidInputError, DuplicateIdError, NotFoundError))
                if in_steps or not found_first:
                    # Half of a call may be in the working state: the only honest state left is the last commit.
                    self._spoiled = True
                    self.rollback()
                raise

    def commit(self) -> None:
        with self._store._lock:
            tables = self._open_tables()
            try:
                self._store._commit(tables)
            except BaseException:
                self._end(rolled_back=True)
                raise
            self._end(rolled_back=False)

    def rollback(self) -> None:
        with self._store._lock:
            if self._tables is not None:
                self._end(rolled_back=True)

    def abandon(self) -> None:
        """In a forked child: the transaction is the parent's; here it has ended."""
        self._tables = None

    def _end(self, *, rolled_back: bool) -> None:
        tables, self._tables = self._tables, None
        assert tables is not None
        try:
            if rolled_back:
                self._store._rollback(tables)
        finally:
            self._store._transaction_ended(self)

    def _open_tables(self) -> WritableTables:
        if self._tables is None:
            raise TransactionError(f"{self.url}: this transaction has ended; begin a new one")
        self._store._check_usable()
        return self._tables

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.rollback()
        elif self._tables is not None:
            self.commit()
        elif self._spoiled:
            raise TransactionError(f"{self.url}: the transaction was rolled back when one of its writes failed")


class StoreSnapshot(_GraphView):
    """`Snapshot` of a `Store`: tables that nobody changes."""

    def __init__(self, store: Store, tables: Tables) -> None:
        self._store = store
        self._tables: Tables | None = tables
        super().__init__()

    @property
    def url(self) -> str:
        return self._store.url

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        with self._store._lock:
            self._store._check_usable()
            if self._tables is None:
                raise ClosedError(f"{self.url}: this snapshot was closed")
            yield self._tables

    def writing(self, *, in_steps: bool = False) -> AbstractContextManager[WritableTables]:
        raise ReadOnlyError(f"{self.url}: a snapshot cannot be written to")

    def close(self) -> None:
        with self._store._lock:
            tables, self._tables = self._tables, None
            if tables is not None:
                self._store._release_snapshot(tables)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Store(_GraphView):
    """`GraphStore` for a backend to fill in.

    `_lock` guards every access to the tables; `_writer` is held for as long as a transaction is open, by whichever
    thread works on it.
    """

    def __init__(self, url: str, *, read_only: bool) -> None:
        self._url = url
        self._read_only = read_only
        self._closed = False
        self._lock = threading.RLock()
        self._writer = threading.Lock()
        self._writer_thread: int | None = None
        self._open_transaction: StoreTransaction | None = None
        super().__init__()

    # What a backend fills in.

    @abstractmethod
    def _committed(self) -> Tables:
        """The tables of the last commit."""

    @abstractmethod
    def _begin(self) -> WritableTables:
        """A working state on top of the last commit."""

    @abstractmethod
    def _commit(self, tables: WritableTables) -> None:
        """Make a working state the last commit, durably and at once; when it raises, nothing was applied."""

    @abstractmethod
    def _rollback(self, tables: WritableTables) -> None:
        """Forget a working state."""

    @abstractmethod
    def _flush(self) -> None:
        """See `GraphStore.flush`; no transaction is open."""

    @abstractmethod
    def _compact(self) -> Rows:
        """See `GraphStore.compact`; no transaction is open."""

    @abstractmethod
    def _close(self) -> None:
        """Release everything; no transaction is open."""

    @property
    @abstractmethod
    def generation(self) -> int: ...

    @property
    @abstractmethod
    def uuid(self) -> str: ...

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    def verify(self) -> list[Violation]: ...

    @abstractmethod
    def stats(self) -> dict[str, Any]: ...

    def _take_snapshot(self) -> Tables:
        raise UnsupportedError(f"{self.url}: this backend has no snapshots (capabilities.snapshots is false)")

    def _release_snapshot(self, tables: Tables) -> None:
        return None

    def _refresh(self) -> bool:
        return False

    # What is the same for all.

    @property
    def url(self) -> str:
        return self._url

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        with self._lock:
            self._check_usable()
            yield self._committed()

    @contextmanager
    def writing(self, *, in_steps: bool = False) -> Iterator[WritableTables]:
        with self.transaction() as transaction, transaction.writing(in_steps=in_steps) as tables:
            yield tables

    def transaction(self) -> StoreTransaction:
        self._check_writable()
        if self._writer_thread == threading.get_ident():
            raise TransactionError(f"{self.url}: this thread has a transaction open: write through it, or end it first")
        self._writer.acquire()
        try:
            with self._lock:
                self._check_writable()
                self._open_transaction = StoreTransaction(self, self._begin())
                self._writer_thread = threading.get_ident()
                return self._open_transaction
        except BaseException:
            self._writer.release()
            raise

    def _transaction_ended(self, transaction: StoreTransaction) -> None:
        if self._open_transaction is transaction:
            self._open_transaction = None
            self._writer_thread = None
            self._writer.release()

    def snapshot(self) -> StoreSnapshot:
        with self._lock:
            self._check_usable()
            return StoreSnapshot(self, self._take_snapshot())

    def refresh(self) -> bool:
        with self._lock:
            self._check_usable()
            return self._refresh()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """For maintenance: waits for an open transaction, admits no other."""
        self._check_writable()
        if self._writer_thread == threading.get_ident():
            raise TransactionError(f"{self.url}: end the open transaction first")
        with self._writer, self._lock:
            self._check_writable()
            yield

    def flush(self) -> None:
        if self._read_only:
            self._check_usable()
            return
        with self._alone():
            self._flush()

    def compact(self) -> Rows:
        with self._alone():
            return self._compact()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            if self._open_transaction is not None:
                self._open_transaction.rollback()
            try:
                self._close()
            finally:
                self._closed = True

    def _check_usable(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.url}: the store was closed; open it again")

    def _check_writable(self) -> None:
        self._check_usable()
        if self._read_only:
            raise ReadOnlyError(f"{self.url}: opened for reading; open it with mode='a' to write")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.url,)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A store is a thing outside the program, like a file: copies of what refers to it refer to the same one.
        return self

    def __repr__(self) -> str:
        state = "closed" if self._closed else ("read-only" if self._read_only else "open")
        return f"<{type(self).__name__} {self.url} {state}>"


def _reopen(url: str) -> Any:
    from aesg.backends import registry  # it imports nothing from here, but a store need not import it

    return registry.open(url, mode="r")
