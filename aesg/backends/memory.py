"""`memory:` — the reference: the simplest correct code that can be written.

A state is immutable arrays. Every write makes new ones, O(N) each; a transaction is a reference to a state, a commit an
assignment, a snapshot a reference kept. Other backends are compared with this one, so nothing here is clever.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.backends.base import Store
from aesg.backends.registry import Backend, Mode
from aesg.backends.tables import Tables, WritableTables
from aesg.backends.url import StoreURL
from aesg.errors import InvalidInputError, NotFoundError, UnsupportedError
from aesg.protocols import (
    Atomicity,
    Capabilities,
    Durability,
    Integrity,
    Progress,
    Readers,
    ReaderView,
    SpaceReclaim,
    Violation,
    Writers,
)
from aesg.records import JSON, Adjacency, Columns, Refs, Rows


@dataclass(frozen=True)
class _State:
    """Everything a graph is. Never changed, only replaced.

    Attributes:
        nodes: Field → column.
        edges: Field → column, plus "removed" (bool).
        events: The evolution log.
        attrs: The attributes.
    """

    nodes: Columns
    edges: Columns
    events: npt.NDArray[Any]
    attrs: dict[str, JSON]

    @classmethod
    def empty(cls, dim: int) -> _State:
        nodes = {name: np.empty(0, dtype) for name, dtype in records.NODE_FIELDS.items()}
        nodes["vector"] = np.empty((0, dim), np.float32)
        edges = {name: np.empty(0, dtype) for name, dtype in records.EDGE_FIELDS.items()}
        edges["removed"] = np.empty(0, np.bool_)
        return cls(nodes, edges, np.empty(0, records.EVENT_DTYPE), {})


class _MemoryTables(WritableTables):
    """A state, and the next one when it is written to."""

    def __init__(self, state: _State) -> None:
        self.state = state

    @property
    def vector_dim(self) -> int:  # type: ignore[override]
        return int(self.state.nodes["vector"].shape[1])

    @property
    def node_count(self) -> int:  # type: ignore[override]
        return len(self.state.nodes["id"])

    @property
    def edge_slots(self) -> int:  # type: ignore[override]
        return len(self.state.edges["removed"])

    @property
    def removed_edges(self) -> int:  # type: ignore[override]
        return int(self.state.edges["removed"].sum())

    @property
    def event_count(self) -> int:  # type: ignore[override]
        return len(self.state.events)

    @property
    def attrs(self) -> dict[str, JSON]:  # type: ignore[override]
        return self.state.attrs

    def read_nodes(self, rows: Rows, fields: Sequence[str]) -> Columns:
        return {name: self.state.nodes[name][rows] for name in fields}

    def node_chunk(self, start: int, stop: int, fields: Sequence[str]) -> Columns:
        return {name: self.state.nodes[name][start:stop].copy() for name in fields}

    def rows_of(self, ids: records.Ids) -> Rows:
        row_of = {int(id): row for row, id in enumerate(self.state.nodes["id"])}
        return np.array([row_of.get(int(id), -1) for id in ids], dtype=np.int64)

    def out_edges(self, rows: Rows, limit: int | None) -> Adjacency:
        edges = self.state.edges
        lists = [np.flatnonzero((edges["source_row"] == row) & ~edges["removed"])[::-1] for row in rows]
        refs = np.concatenate([np.empty(0, np.int64), *lists])
        indptr = np.cumsum([0, *map(len, lists)])
        found = {name: edges[name][refs] for name in ("target_row", "weight", "confidence", "use_count")}
        return Adjacency(indptr, refs, *found.values())

    def read_edges(self, refs: Refs, fields: Sequence[str]) -> Columns:
        return {name: self.state.edges[name][refs] for name in fields}

    def edge_chunk(self, start: int, stop: int, fields: Sequence[str]) -> Columns:
        return {name: self.state.edges[name][start:stop].copy() for name in fields}

    def removed(self, refs: Refs) -> npt.NDArray[np.bool_]:
        return self.state.edges["removed"][refs]

    def read_events(self, start: int, stop: int) -> npt.NDArray[Any]:
        return self.state.events[start:stop].copy()

    def append_nodes(self, columns: Columns) -> None:
        n = len(columns["id"])
        new = {name: np.full(n, value, records.NODE_FIELDS[name]) for name, value in records.NODE_DEFAULTS.items()}
        new |= columns
        nodes = {name: np.concatenate([old, new[name]]) for name, old in self.state.nodes.items()}
        self.state = replace(self.state, nodes=nodes)

    def write_nodes(self, rows: Rows, columns: Columns) -> None:
        self.state = replace(self.state, nodes=_overwritten(self.state.nodes, rows, columns))

    def put_node_chunk(self, start: int, columns: Columns) -> None:
        rows = np.arange(start, start + len(next(iter(columns.values()))))
        self.write_nodes(rows, columns)

    def append_edges(self, columns: Columns) -> None:
        n = len(columns["source_row"])
        new = {"use_count": np.zeros(n, np.uint32), "removed": np.zeros(n, np.bool_), **columns}
        edges = {name: np.concatenate([old, new[name]]) for name, old in self.state.edges.items()}
        self.state = replace(self.state, edges=edges)

    def write_edges(self, refs: Refs, columns: Columns) -> None:
        self.state = replace(self.state, edges=_overwritten(self.state.edges, refs, columns))

    def put_edge_chunk(self, start: int, columns: Columns) -> None:
        refs = np.arange(start, start + len(next(iter(columns.values()))))
        self.write_edges(refs, columns)

    def remove_edges(self, refs: Refs) -> None:
        self.write_edges(refs, {"removed": np.ones(len(refs), np.bool_)})

    def append_events(self, events: npt.NDArray[Any]) -> None:
        # Not np.concatenate: it drops the padding of records, or leaves garbage in it.
        old = self.state.events
        log = np.zeros(len(old) + len(events), records.EVENT_DTYPE)
        log[: len(old)], log[len(old) :] = old, events
        self.state = replace(self.state, events=log)

    def set_attrs(self, attrs: dict[str, JSON]) -> None:
        self.state = replace(self.state, attrs=attrs)


def _overwritten(old: Columns, where: npt.NDArray[np.int64], columns: Columns) -> Columns:
    new = dict(old)
    for name, values in columns.items():
        new[name] = old[name].copy()
        new[name][where] = values
    return new


class MemoryStore(Store):
    """A graph in the heap of this process."""

    def __init__(self, url: str, dim: int) -> None:
        super().__init__(url, read_only=False)
        self._state = _State.empty(dim)
        self._generation = 0
        self._uuid = str(uuid.uuid4())

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def uuid(self) -> str:
        return self._uuid

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            durability=Durability.NONE,
            atomicity=Atomicity.GRAPH,
            readers=Readers.SAME_PROCESS,
            reader_view=ReaderView.LATEST,
            writers=Writers.ONE_PROCESS,
            snapshots=True,
            space_reclaim=SpaceReclaim.ON_COMPACT,
            integrity=Integrity.STRUCTURE,
            remote=False,
        )

    def _committed(self) -> Tables:
        return _MemoryTables(self._state)

    def _begin(self) -> WritableTables:
        return _MemoryTables(self._state)

    def _commit(self, tables: WritableTables) -> None:
        assert isinstance(tables, _MemoryTables)
        if tables.state is not self._state:
            self._state = tables.state
            self._generation += 1

    def _rollback(self, tables: WritableTables) -> None:
        return None

    def _take_snapshot(self) -> Tables:
        return _MemoryTables(self._state)

    def _flush(self) -> None:
        return None

    def _compact(self, min_confidence: float) -> Rows:
        nodes, edges = self._state.nodes, self._state.edges
        stays = nodes["is_active"] == 1
        row_map = np.where(stays, np.cumsum(stays) - 1, -1)
        kept = ~edges["removed"] & ~(edges["confidence"] < min_confidence)
        kept &= row_map[edges["source_row"]] >= 0
        kept &= row_map[edges["target_row"]] >= 0
        new_edges = {name: column[kept] for name, column in edges.items()}
        new_edges["source_row"] = row_map[new_edges["source_row"]]
        new_edges["target_row"] = row_map[new_edges["target_row"]]
        new_nodes = {name: column[stays] for name, column in nodes.items()}
        self._state = replace(self._state, nodes=new_nodes, edges=new_edges)
        self._generation += 1
        return row_map.astype(np.int64)

    def verify(self, *, deep: bool = True, progress: Progress | None = None) -> list[Violation]:
        with self.reading():
            return []  # arrays that only checked arguments went into

    def stats(self) -> dict[str, Any]:
        with self.reading() as tables:
            return {
                "nodes": tables.node_count,
                "active_nodes": int(self._state.nodes["is_active"].sum()),
                "edges": tables.edge_slots - tables.removed_edges,
                "removed_edges": tables.removed_edges,
                "events": tables.event_count,
                "bytes_on_disk": 0,
            }

    def _close(self) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        raise UnsupportedError(f"{self.url}: an in-memory store cannot be pickled; copy it into a store on disk")


def _open(url: StoreURL, mode: Mode, vector_dim: int | None, options: Mapping[str, Any]) -> MemoryStore:
    if url.path or url.authority:
        raise InvalidInputError(f"{url}: an in-memory store has no path; write memory:")
    if mode == "r":
        raise NotFoundError(f"{url}: an in-memory store begins empty, there is nothing to read")
    if vector_dim is None:
        raise InvalidInputError(f"{url}: a new store needs vector_dim=…")
    return MemoryStore(str(url), vector_dim)


BACKEND: Final = Backend(
    scheme="memory",
    summary="in the heap of this process; the reference, gone when closed",
    open=_open,
)
