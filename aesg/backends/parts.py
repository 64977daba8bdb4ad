"""The parts of a graph as callers have them: nodes, edges, events and attributes, over any view of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.backends import checks
from aesg.backends.tables import Tables, WritableTables
from aesg.errors import ConflictError, InvalidInputError, NotFoundError
from aesg.protocols import ColumnFn
from aesg.records import JSON, Adjacency, Columns, NodeBatch, Refs, Rows

CHUNK_BYTES: Final = 1 << 20
"""A chunk of a scan or a transform: fits a core's L2 cache, so that a second column costs no memory trip."""
_OPAQUE: Final = np.dtype(f"V{records.EVENT_DTYPE.itemsize}")
_SEEDING: Final = frozenset({"vector", "is_active"})
"""Fields on which it depends which nodes are near to a query."""


def _keep_freed_chunks() -> None:
    """Have the memory of one chunk used for the next.

    glibc gives a chunk's memory back to the system when it is freed and gets the next one's anew, page by page, which
    takes longer than to fill it; but once a larger block was freed, only what is larger than that. Nothing is touched
    here. A query of 10,000 nodes, which are scanned, takes half the time.
    """
    block = np.empty(8 * CHUNK_BYTES, np.uint8)
    del block


_keep_freed_chunks()


class View(Protocol):
    """Where the parts of a graph get their tables from: a store, a transaction or a snapshot."""

    @property
    def url(self) -> str: ...

    def reading(self) -> AbstractContextManager[Tables]: ...

    def writing(self, *, in_steps: bool = False) -> AbstractContextManager[WritableTables]:
        """`in_steps`: the block writes more than once, so that any exception leaves a half-done change."""


class Nodes:
    """`NodeStore` over a view.

    Attributes:
        reseeded: Whether `vector` or `is_active` of rows was overwritten through here. An index that follows the
            appends and commits of a transaction does not see that.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self.reseeded = False

    def __len__(self) -> int:
        with self._view.reading() as tables:
            return tables.node_count

    def append(self, batch: NodeBatch) -> Rows:
        with self._view.writing() as tables:
            columns = checks.complete_batch(batch, tables, self._view.url)
            first = tables.node_count
            if len(columns["id"]):
                tables.append_nodes(columns)
            return np.arange(first, tables.node_count, dtype=np.int64)

    def read(self, rows: npt.ArrayLike, fields: Sequence[str] | None = None) -> Columns:
        names = checks.field_names(fields, records.NODE_FIELDS, "node", self._view.url)
        with self._view.reading() as tables:
            return tables.read_nodes(checks.positions(rows, "row", tables.node_count, self._view.url), names)

    def write(self, rows: npt.ArrayLike, **columns: npt.ArrayLike) -> None:
        with self._view.writing() as tables:
            where = checks.positions(rows, "row", tables.node_count, self._view.url)
            checked = checks.node_columns(columns, len(where), tables.vector_dim, self._view.url)
            if len(where) and checked:
                self.reseeded |= not _SEEDING.isdisjoint(checked)
                tables.write_nodes(where, checked)

    def scan(self, fields: Sequence[str] | None = None, chunk_rows: int | None = None) -> Iterator[Columns]:
        names = checks.field_names(fields, records.NODE_FIELDS, "node", self._view.url)
        with self._view.reading() as tables:
            count = tables.node_count
            size = _chunk_size(chunk_rows, tables.node_bytes(names), self._view.url)
        for start, stop in _chunks(count, size):
            with self._view.reading() as tables:
                _check_scanned(stop, tables.node_count, self._view.url)
                columns = tables.node_chunk(start, stop, names)
            yield columns

    def transform(
        self, fn: ColumnFn, reads: Sequence[str], writes: Sequence[str], returns: Sequence[str] = ()
    ) -> Columns:
        wants_row, reads = "row" in reads, [name for name in reads if name != "row"]
        names = checks.field_names(reads, records.NODE_FIELDS, "node", self._view.url)
        writes = checks.field_names(
            writes, dict.fromkeys(sorted(records.NODE_WRITABLE)), "writable node", self._view.url
        )
        returned = _Returned(returns, writes, self._view.url)
        with self._view.writing(in_steps=True) as tables:
            self.reseeded |= not _SEEDING.isdisjoint(writes)
            size = _chunk_size(None, tables.node_bytes(list({*names, *writes})), self._view.url)
            for start, stop in returned.chunks(tables.node_count, size):
                given = tables.node_chunk(start, stop, names)
                if wants_row:
                    given["row"] = np.arange(start, stop, dtype=np.int64)
                out = returned.apply(fn, given, writes)
                columns = checks.node_columns(out, stop - start, tables.vector_dim, self._view.url)
                if columns and stop:
                    tables.put_node_chunk(start, columns)
        return returned.arrays()

    def rows_of(self, ids: npt.ArrayLike) -> Rows:
        array = checks.as_array(ids, "ids", self._view.url)
        if array.ndim == 0:
            array = array.reshape(1)
        if array.ndim != 1:
            raise InvalidInputError(f"{self._view.url}: ids must be one-dimensional, not of shape {array.shape}")
        if not array.size:
            return np.empty(0, np.int64)
        wanted = checks.column("id", array, len(array), records.NODE_FIELDS["id"], self._view.url)
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
            sources = checks.positions(source_rows, "row", tables.node_count, url)
            targets = checks.positions(target_rows, "row", tables.node_count, url)
            if len(sources) != len(targets):
                raise InvalidInputError(f"{url}: {len(sources)} source rows but {len(targets)} target rows")
            columns = {"source_row": sources, "target_row": targets}
            columns |= checks.edge_columns({"weight": weight, "confidence": confidence}, len(sources), url)
            first = tables.edge_slots
            if len(sources):
                tables.append_edges(columns)
            return np.arange(first, tables.edge_slots, dtype=np.int64)

    def out_edges(self, rows: npt.ArrayLike, limit: int | None = None) -> Adjacency:
        if limit is not None and (not hasattr(limit, "__index__") or limit < 1):
            raise InvalidInputError(
                f"{self._view.url}: a limit of edges is a whole number of at least 1, not {limit!r}"
            )
        with self._view.reading() as tables:
            found = tables.out_edges(checks.positions(rows, "row", tables.node_count, self._view.url), limit)
        return found if limit is None else found.newest(limit)

    def read(self, refs: npt.ArrayLike, fields: Sequence[str] | None = None) -> Columns:
        names = checks.field_names(fields, records.EDGE_FIELDS, "edge", self._view.url)
        with self._view.reading() as tables:
            return tables.read_edges(self._present(refs, tables), names)

    def write(self, refs: npt.ArrayLike, **columns: npt.ArrayLike) -> None:
        with self._view.writing() as tables:
            where = self._present(refs, tables)
            checked = checks.edge_columns(columns, len(where), self._view.url)
            if len(where) and checked:
                tables.write_edges(where, checked)

    def remove(self, refs: npt.ArrayLike) -> None:
        with self._view.writing() as tables:
            where = self._present(refs, tables)
            if len(records.distinct(where)) != len(where):
                raise NotFoundError(f"{self._view.url}: an edge is to be removed twice")
            if len(where):
                tables.remove_edges(where)

    def degrees(self, rows: npt.ArrayLike) -> npt.NDArray[Any]:
        return self.out_edges(rows).degrees

    def scan(self, fields: Sequence[str] | None = None, chunk_edges: int | None = None) -> Iterator[Columns]:
        names = checks.field_names(fields, records.EDGE_FIELDS, "edge", self._view.url)
        with self._view.reading() as tables:
            count = tables.edge_slots
            size = _chunk_size(chunk_edges, tables.edge_bytes(names), self._view.url)
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

    def transform(
        self, fn: ColumnFn, reads: Sequence[str], writes: Sequence[str], returns: Sequence[str] = ()
    ) -> Columns:
        wants_ref, reads = "ref" in reads, [name for name in reads if name != "ref"]
        names = checks.field_names(reads, records.EDGE_FIELDS, "edge", self._view.url)
        writes = checks.field_names(
            writes, dict.fromkeys(sorted(records.EDGE_WRITABLE)), "writable edge", self._view.url
        )
        returned = _Returned(returns, writes, self._view.url)
        with self._view.writing(in_steps=True) as tables:
            size = _chunk_size(None, tables.edge_bytes(list({*names, *writes})), self._view.url)
            for start, stop in returned.chunks(tables.edge_slots, size):
                given = tables.edge_chunk(start, stop, names)
                live = None
                if wants_ref:
                    given["ref"] = np.arange(start, stop, dtype=np.int64)
                if tables.removed_edges:  # `fn` never sees those: whatever they hold, it need not make sense of it
                    live = np.flatnonzero(~tables.removed(np.arange(start, stop, dtype=np.int64)))
                    given = {name: values[live] for name, values in given.items()}
                count = stop - start if live is None else len(live)
                out = checks.edge_columns(returned.apply(fn, given, writes), count, self._view.url)
                if live is not None:
                    spread = tables.edge_chunk(start, stop, tuple(out))
                    for name, values in out.items():
                        spread[name][live] = values
                    out = spread
                if out and stop:
                    tables.put_edge_chunk(start, out)
        return returned.arrays()

    def _present(self, refs: npt.ArrayLike, tables: Tables) -> Refs:
        where = checks.positions(refs, "edge", tables.edge_slots, self._view.url)
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
        array = np.atleast_1d(checks.as_array(events, "events", self._view.url))
        kind, names = records.EVENT_DTYPE, records.EVENT_DTYPE.names or ()
        if array.ndim != 1 or array.dtype.names != names or any(array.dtype[name] != kind[name] for name in names):
            raise InvalidInputError(f"{self._view.url}: events must be a one-dimensional array of records.EVENT_DTYPE")
        if not checks.is_finite(array["val"]):
            raise InvalidInputError(f"{self._view.url}: an event's val must be finite")
        with self._view.writing() as tables:
            if len(array):
                tables.append_events(_clean(array))

    def read(self, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        with self._view.reading() as tables:
            first, last, _ = slice(start, stop).indices(tables.event_count)
            return tables.read_events(first, max(first, last))


def _clean(events: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy, packed, whose padding is zero, whatever the caller's array has there."""
    if events.dtype == records.EVENT_DTYPE:
        # As opaque items, which NumPy copies twenty times faster than field by field.
        words = events.view(_OPAQUE).copy().view("<u4").reshape(-1, 8)
        words[:, 2] &= 0xFF  # the type, a byte, and the padding after it
        return words.reshape(-1).view(records.EVENT_DTYPE)
    clean = np.zeros(len(events), records.EVENT_DTYPE)
    for name in events.dtype.names or ():
        clean[name] = events[name]
    return clean


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


def _chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _check_scanned(stop: int, count: int, url: str) -> None:
    if stop > count:
        raise ConflictError(f"{url}: the store was compacted during the scan; begin it anew")


class _Returned:
    """What a transform's function gives for the caller, chunk by chunk."""

    def __init__(self, names: Sequence[str], writes: Sequence[str], url: str) -> None:
        if isinstance(names, str) or set(names) & set(writes):
            raise InvalidInputError(f"{url}: transform: returns must be a list of names that are not written: {names}")
        self._parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
        self._url = url

    def chunks(self, count: int, size: int) -> Iterator[tuple[int, int]]:
        """Where to apply it. What an empty store returns has its dtype from one empty chunk."""
        return _chunks(count, size) if count or not self._parts else iter([(0, 0)])

    def apply(self, fn: ColumnFn, given: Columns, writes: Sequence[str]) -> Columns:
        """What `fn` gives for the store; what it gives for the caller is kept."""
        out = fn(given)
        if not isinstance(out, Mapping) or set(out) != {*writes, *self._parts}:
            returned = sorted(map(str, out)) if isinstance(out, Mapping) else type(out).__name__
            announced = sorted({*writes, *self._parts})
            raise InvalidInputError(f"{self._url}: transform: fn returned {returned}, not {announced} as announced")
        for name, parts in self._parts.items():
            parts.append(np.atleast_1d(checks.as_array(out[name], name, self._url)))
        return out if not self._parts else {name: out[name] for name in writes}

    def arrays(self) -> Columns:
        """All of it."""
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}


def _chunk_size(given: int | None, item_bytes: int, url: str) -> int:
    if given is None:
        return max(256, CHUNK_BYTES // item_bytes)
    if not hasattr(given, "__index__") or given < 1:
        raise InvalidInputError(f"{url}: a chunk has a whole number of rows and at least 1, not {given!r}")
    return given
