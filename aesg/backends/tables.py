"""What a backend implements: one state of a graph, in tables. Arguments have been checked by the time they get here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.records import JSON, Adjacency, Columns, Refs, Rows


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
    def out_edges(self, rows: Rows, limit: int | None) -> Adjacency:
        """Newest first. More than `limit` of a row may be given, but need not be looked for."""

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

    def node_bytes(self, fields: Sequence[str]) -> int:
        """Bytes that reading these fields of a node moves, to size chunks; the whole record unless overridden."""
        return 53 + 4 * self.vector_dim

    def edge_bytes(self, fields: Sequence[str]) -> int:
        """The same of an edge."""
        return 36


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
