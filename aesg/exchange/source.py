"""Tables of a file as a graph to copy from: checked, in our dtypes, ids turned into rows.

Takes what AESG exported and what somebody else made; every refusal names the file, the column and the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.errors import CorruptionError, DuplicateIdError, InvalidInputError, InvalidVectorError
from aesg.exchange.layout import NEEDED, TABLES, Meta, Table
from aesg.records import JSON, Columns, Ids, Rows

MOST_DIMENSIONS: Final = 1 << 20


class Tables(Protocol):
    """What a format's reader gives."""

    meta: Meta | None

    def place(self, table: Table) -> str:
        """The file, for messages."""

    def columns(self, table: Table) -> Sequence[str]:
        """Names of its columns; none when there is no such table."""

    def count(self, table: Table) -> int:
        """Number of its rows; 0 when there is no such table."""

    def vector_dim(self) -> int | None:
        """Length of the vectors; None when nothing says it."""

    def chunks(self, table: Table, names: Sequence[str]) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Columns in chunks of rows; any numeric dtypes, vectors [n, D]."""


class FileSource:
    """A graph in files; `aesg.migration.copying.Source`.

    Args:
        tables: What the files hold.
        url: What to call it.

    Attributes:
        digest: The content digest that the files say they have.

    Raises:
        InvalidInputError: A column is missing, or has another type than it must.
        DuplicateIdError: Two nodes have one id.
        CorruptionError: The tables are not those that `meta` says.
    """

    def __init__(self, tables: Tables, url: str) -> None:
        self._tables = tables
        self.url = url
        self._columns = {table: self._known(table) for table in TABLES}
        self.node_count, self.edge_count, self.event_count = (tables.count(table) for table in TABLES)
        meta = tables.meta
        self.attrs: Mapping[str, JSON] = meta.attrs if meta is not None else {}
        self.digest = meta.digest if meta is not None else None
        dim = tables.vector_dim()
        if dim is None:
            dim = meta.vector_dim if meta is not None else None
        if dim is None or not 0 < dim <= MOST_DIMENSIONS:
            raise InvalidInputError(f"{tables.place('nodes')}: the length of the vectors cannot be told, or is {dim}")
        self.vector_dim = dim
        if meta is not None:
            self._check_meta(meta)
        self._ids = _IdMap(self._all_ids(), tables.place("nodes"))
        self._born = records.now()

    def nodes(self) -> Iterator[Columns]:
        """All fields of `records.NODE_FIELDS`, in order of row."""
        for first, given in self._chunks("nodes", self._columns["nodes"]):
            n = len(given["id"])
            born = given.get("created_at", np.full(n, self._born, np.uint64))
            starting = {"created_at": born, "modified_at": given.get("modified_at", born)}
            for name, value in records.NODE_DEFAULTS.items():
                starting[name] = np.full(n, value, records.NODE_FIELDS[name])
            chunk = {name: given.get(name, starting.get(name)) for name in records.NODE_FIELDS}
            active = chunk["is_active"]
            assert active is not None
            if n and int(active.max()) > 1:
                raise self._refusal("nodes", "is_active", first + int(np.argmax(active > 1)), "it is neither 0 nor 1")
            yield {name: values for name, values in chunk.items() if values is not None}

    def edges(self) -> Iterator[Columns]:
        """All fields of `records.EDGE_FIELDS`, in the order of the file."""
        for first, given in self._chunks("edges", self._columns["edges"]):
            n = len(given["source"])
            ends = {}
            for name in ("source", "target"):
                ends[name] = self._ids.rows_of(given[name])
                if n and int(ends[name].min()) < 0:
                    at = int(np.argmin(ends[name]))
                    raise self._refusal("edges", name, first + at, f"no node has the id {int(given[name][at])}")
            yield {
                "source_row": ends["source"],
                "target_row": ends["target"],
                "weight": given.get("weight", np.ones(n, np.float32)),
                "confidence": given.get("confidence", np.ones(n, np.float32)),
                "use_count": given.get("use_count", np.zeros(n, np.uint32)),
            }

    def events(self) -> Iterator[npt.NDArray[Any]]:
        """Arrays of `records.EVENT_DTYPE`."""
        for _, given in self._chunks("events", self._columns["events"]):
            array = np.zeros(len(given["timestamp"]), records.EVENT_DTYPE)
            for name, values in given.items():
                array[name] = values
            yield array

    def _known(self, table: Table) -> list[str]:
        """The columns that are ours, in our order; others are left alone."""
        found = self._tables.columns(table)
        missing = [name for name in NEEDED[table] if name not in found]
        if missing and (table == "nodes" or not set(found).isdisjoint(TABLES[table])):
            has = ", ".join(found) or "none"
            raise InvalidInputError(f"{self._tables.place(table)}: no column {missing[0]} of {table}; there are: {has}")
        return [] if missing else [name for name in TABLES[table] if name in found]

    def _check_meta(self, meta: Meta) -> None:
        found: dict[Table, int] = {
            "nodes": self.node_count,
            "edges": self.edge_count,
            "events": self.event_count,
        }
        for table, count in found.items():
            if count != meta.counts[table]:
                raise CorruptionError(
                    f"{self._tables.place(table)} has {count:,} {table}, its meta says {meta.counts[table]:,}; "
                    f"tables that were changed are imported without their meta"
                )
        if self.vector_dim != meta.vector_dim:
            raise CorruptionError(
                f"{self._tables.place('nodes')}: vectors of {self.vector_dim} numbers, its meta says {meta.vector_dim}"
            )

    def _all_ids(self) -> Ids:
        ids = np.empty(self.node_count, np.uint64)
        for first, chunk in self._chunks("nodes", ["id"]):
            ids[first : first + len(chunk["id"])] = chunk["id"]
        return ids

    def _chunks(self, table: Table, names: Sequence[str]) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
        """The number of a chunk's first row, and its columns, in our dtypes."""
        if not names:
            return
        first, count = 0, self._tables.count(table)
        for chunk in self._tables.chunks(table, names):
            columns = {name: self._conformed(table, name, values, first) for name, values in chunk.items()}
            n = len(next(iter(columns.values())))
            if first + n > count:
                break
            yield first, columns
            first += n
        if first != count:
            raise CorruptionError(f"{self._tables.place(table)}: its number of rows is not the {count:,} that it says")

    def _conformed(self, table: Table, name: str, values: npt.NDArray[Any], first: int) -> npt.NDArray[Any]:
        """A column in its dtype: no whole number that does not fit, no fraction cut off, no number that is not finite.

        Float64 is rounded to float32, which is what a store holds.
        """
        dtype = TABLES[table][name]
        if name == "vector":
            if values.ndim != 2 or values.shape[1] != self.vector_dim:
                width = values.shape[1] if values.ndim == 2 else "no"
                raise self._refusal(table, name, first, f"a vector of {width} numbers; the first has {self.vector_dim}")
        elif values.ndim != 1:
            raise self._refusal(table, name, first, "lists, where a number is expected")
        if dtype.kind == "u":
            if values.dtype.kind not in "iub":
                raise self._refusal(table, name, first, f"its type is {values.dtype}; expected whole numbers")
            if values.dtype.kind == "i" and len(values) and int(values.min()) < 0:
                raise self._refusal(table, name, first + int(np.argmin(values)), "it is negative")
            limit = int(np.iinfo(dtype).max)
            if len(values) and int(values.max()) > limit:
                raise self._refusal(table, name, first + int(np.argmax(values)), f"it is above {limit}")
            return values.astype(dtype, copy=False)
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
            floats = values.astype(dtype, copy=False)
        if not np.isfinite(floats).all():
            row = first + int(np.argwhere(~np.isfinite(floats))[0, 0])
            raise self._refusal(table, name, row, "it is not finite, or too large for float32")
        return floats

    def _refusal(self, table: Table, name: str, row: int, why: str) -> InvalidInputError:
        kind = InvalidVectorError if name == "vector" else InvalidInputError
        return kind(f"{self._tables.place(table)}: column {name}, row {row}: {why}")


class _IdMap:
    """id → row, 16 bytes a node.

    Raises:
        DuplicateIdError: An id is there twice.
    """

    def __init__(self, ids: Ids, place: str) -> None:
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]
        twice = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if len(twice):
            at = int(twice[0])
            rows = f"{int(self._order[at])} and {int(self._order[at + 1])}"
            raise DuplicateIdError(f"{place}: rows {rows} have the same id, {int(self._sorted[at])}")

    def rows_of(self, ids: Ids) -> Rows:
        """Rows of ids, -1 where there is none."""
        if not len(self._sorted):
            return np.full(len(ids), -1, np.int64)
        at = np.minimum(np.searchsorted(self._sorted, ids), len(self._sorted) - 1)
        return np.where(self._sorted[at] == ids, self._order[at], -1)
