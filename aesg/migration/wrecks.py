"""A store as a wreck, of which nothing is known but what its calls give: what cannot be read is found by halving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.backends.salvage import Known, Losses
from aesg.errors import AESGError
from aesg.protocols import GraphStore
from aesg.records import JSON, Adjacency, Columns

_CHUNK: Final = 1 << 12


class ReadWreck:
    """`Wreck` of a store that could be opened. Edges are held in memory.

    Args:
        store: Opened; closed with this.
    """

    def __init__(self, store: GraphStore) -> None:
        self._store = store
        self.url, self.vector_dim = store.url, store.vector_dim
        self.losses = Losses()
        self.attrs: Mapping[str, JSON] = self._attrs()
        self.node_rows, self.event_rows = len(store.nodes), len(store.events)
        self.missing: Mapping[str, int] = {}
        self._said: set[str] = set()
        self._edges = self._all_edges()
        self.edge_slots = len(self._edges["weight"])

    def _attrs(self) -> dict[str, JSON]:
        try:
            return {name: self._store.attrs[name] for name in self._store.attrs}
        except AESGError as error:
            self.losses.add("attrs", "attrs", str(error))
            return {}

    def _all_edges(self) -> Columns:
        """The edges by ref: as far as the lists of rows can be read."""
        lists: list[tuple[int, Adjacency]] = []
        for start in range(0, self.node_rows, _CHUNK):
            self._halved(
                "edges",
                start,
                min(start + _CHUNK, self.node_rows),
                lambda low, high: lists.append((low, self._store.edges.out_edges(np.arange(low, high)))),
            )
        if not lists:
            return {name: np.empty(0, kind) for name, kind in records.EDGE_FIELDS.items()}
        found = Adjacency.joined([part for _, part in lists])
        rows = np.concatenate([np.arange(low, low + len(part.degrees)) for low, part in lists])
        order = np.argsort(found.refs)
        return {
            "source_row": np.repeat(rows, found.degrees)[order],
            "target_row": found.target_rows[order],
            "weight": found.weight[order],
            "confidence": found.confidence[order],
            "use_count": found.use_count[order],
        }

    def _halved(self, part: str, start: int, stop: int, read: Callable[[int, int], Any]) -> None:
        """Read start:stop, or what of it can be read."""
        try:
            read(start, stop)
        except AESGError as error:
            if stop - start > 1:
                middle = (start + stop) // 2
                self._halved(part, start, middle, read)
                self._halved(part, middle, stop, read)
            elif f"{part} {start}" not in self._said:
                self._said.add(f"{part} {start}")
                self.losses.add(part, f"row {start}", str(error))

    def nodes(self, start: int, stop: int) -> tuple[Columns, Known]:
        n, dim = stop - start, self.vector_dim
        columns = {
            name: np.zeros((n, dim) if name == "vector" else n, kind) for name, kind in records.NODE_FIELDS.items()
        }
        known = {name: np.zeros(n, np.bool_) for name in columns}
        for name in columns:

            def read(low: int, high: int, name: str = name) -> None:
                values = self._store.nodes.read(np.arange(low, high), [name])[name]
                columns[name][low - start : high - start] = values
                known[name][low - start : high - start] = True

            self._halved("nodes", start, stop, read)
        return columns, known

    def edges(self, start: int, stop: int) -> tuple[Columns, Known]:
        columns = {name: values[start:stop] for name, values in self._edges.items()}
        return columns | {"removed": np.zeros(stop - start, np.uint8)}, {}

    def events(self, start: int, stop: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        out, known = np.zeros(stop - start, records.EVENT_DTYPE), np.zeros(stop - start, np.bool_)

        def read(low: int, high: int) -> None:
            out[low - start : high - start] = self._store.events.read(low, high)
            known[low - start : high - start] = True

        self._halved("events", start, stop, read)
        return out, known

    def close(self) -> None:
        self._store.close()
