"""A graph in blocks as of a commit, and as a transaction changes it.

A value is found by asking, in this order: what the transaction appended; what it patched; the whole blocks that it
replaced; what was patched since the last merge; the rows appended since; the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.backends.blocks import adjacency, layout
from aesg.backends.blocks.adjacency import Runs
from aesg.backends.blocks.columns import BlockColumns
from aesg.backends.blocks.container import Block
from aesg.backends.blocks.pending import Fields, Patches, Tail
from aesg.backends.ids import IdIndex
from aesg.backends.lists import ListCache
from aesg.backends.tables import WritableTables
from aesg.records import JSON, Adjacency, Columns, Refs, Rows

_MANY: Final = 1 << 12
"""Rows from which on a write replaces blocks, if it is at least one row in `_DENSE`."""
_DENSE: Final = 64
_MANY_EDGES: Final = 1 << 16
"""Edges appended at once from which on they are sorted into a run only when somebody asks which edges leave a row."""


@dataclass(frozen=True)
class Kind:
    """What is the same for all tables of one kind.

    Attributes:
        name: Prefix of its columns' names.
        fields: Its fields.
        patched: Groups of fields whose changes are kept together.
        defaults: Field → value of an appended row that gives none.
    """

    name: str
    fields: Fields
    patched: tuple[Fields, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> str:
        """Name of a field's column."""
        return f"{self.name}/{name}"

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of all fields of a row."""
        return sum(dtype.itemsize * (width or 1) for dtype, width in self.fields.values())


@cache
def node_kind(vector_dim: int) -> Kind:
    """Nodes with vectors of that length."""
    fields: Fields = {
        name: (dtype, vector_dim if name == "vector" else None) for name, dtype in records.NODE_FIELDS.items()
    }
    rest = {name: fields[name] for name in fields if name in records.NODE_WRITABLE and name != "vector"}
    return Kind("nodes", fields, ({"vector": fields["vector"]}, rest), records.NODE_DEFAULTS)


_EDGE_FIELDS: Final[Fields] = {name: (dtype, None) for name, dtype in layout.EDGE_COLUMNS.items()}
EDGES: Final = Kind(
    "edges",
    _EDGE_FIELDS,
    ({name: _EDGE_FIELDS[name] for name in (*sorted(records.EDGE_WRITABLE), "removed")},),
    {"use_count": 0, "removed": 0},
)
EVENTS: Final = Kind("events", {name: (dtype, None) for name, dtype in layout.EVENT_COLUMNS.items()})


@dataclass
class TableState:
    """A table as of a commit.

    Attributes:
        count: Rows.
        merged: Rows in blocks.
        tail: The others.
        patches: Changes since the merge, by group.
    """

    count: int
    merged: int
    tail: Tail
    patches: tuple[Patches, ...]

    @classmethod
    def at_rest(cls, kind: Kind, count: int) -> TableState:
        """Everything is in blocks."""
        return cls(count, count, Tail(kind.fields, count), tuple(Patches(group, count) for group in kind.patched))

    def copy(self) -> TableState:
        """One that later commits do not change."""
        return TableState(self.count, self.merged, self.tail, tuple(p.resized(self.count) for p in self.patches))


class Table:
    """Rows of one kind, as of a state and with a transaction's changes.

    Attributes:
        count: Rows, the transaction's included.
        own: The transaction's patches of committed rows, by group.
        replaced: Field → block number → the whole block, as far as it was committed.
    """

    def __init__(self, kind: Kind, state: TableState, columns: BlockColumns, *, writable: bool) -> None:
        self.kind = kind
        self.state = state
        self.columns = columns
        self.count = state.count
        self.own = tuple(Patches(group, state.count) for group in kind.patched) if writable else ()
        self.replaced: dict[str, dict[int, Block]] = {}

    @property
    def changed(self) -> bool:
        """Whether the transaction did anything."""
        return self.count > self.state.count or bool(self.replaced) or any(len(p) for p in self.own)

    # Reading

    def read(self, rows: Rows, fields: Sequence[str]) -> Columns:
        """Gather."""
        out: Columns = {}
        in_blocks: Any = slice(None)
        if self.count > self.state.merged:
            in_blocks = rows < self.state.merged
            if in_blocks.all():
                in_blocks = slice(None)
        names = [self.kind.column(name) for name in fields]
        found = self.columns.gather_columns(names, rows[in_blocks])
        for name, values in zip(fields, found, strict=True):
            if isinstance(in_blocks, slice):
                out[name] = values
                continue
            dtype, width = self.kind.fields[name]
            out[name] = np.empty(len(rows) if width is None else (len(rows), width), dtype)
            out[name][in_blocks] = values
            out[name][~in_blocks] = self.state.tail.gather(name, rows[~in_blocks])
        self._patch(out, self.state.patches, rows)
        for name in fields:
            if name in self.replaced:
                self._replace(out[name], name, rows)
        self._patch(out, self.own, rows)
        return out

    def chunk(self, start: int, stop: int, fields: Sequence[str]) -> Columns:
        """Rows start:stop."""
        out: Columns = {}
        cut = min(max(start, self.state.merged), stop)
        for name in fields:
            if cut == stop:
                out[name] = self.columns.slice(self.kind.column(name), start, stop)
            elif cut == start:
                out[name] = self.state.tail.view(name, start, stop).copy()
            else:
                parts = [self.columns.slice(self.kind.column(name), start, cut), self.state.tail.view(name, cut, stop)]
                out[name] = np.concatenate(parts)
        self._patch_chunk(out, self.state.patches, start, stop)
        for name in fields:
            for number, block in self._replaced_between(name, start, stop):
                first = number * self.block_rows(name)
                low, high = max(start, first), min(stop, first + len(block))
                out[name][low - start : high - start] = block[low - first : high - first]
        self._patch_chunk(out, self.own, start, stop)
        return out

    def block_rows(self, name: str) -> int:
        """Rows of a block of a field."""
        return self.columns.layout[self.kind.column(name)].block_rows

    def _patch(self, out: Columns, patches: tuple[Patches, ...], rows: Rows) -> None:
        for group in patches:
            names = [name for name in group.fields if name in out]
            if names and len(group):
                where, slots = group.find(rows)
                for name in names:
                    out[name][where] = group.values(name)[slots]

    def _patch_chunk(self, out: Columns, patches: tuple[Patches, ...], start: int, stop: int) -> None:
        for group in patches:
            names = [name for name in group.fields if name in out]
            if names and len(group):
                where, slots = group.between(start, stop)
                for name in names:
                    out[name][where] = group.values(name)[slots]

    def _replace(self, values: npt.NDArray[Any], name: str, rows: Rows) -> None:
        size = self.block_rows(name)
        numbers = rows // size
        for number in records.distinct(numbers).tolist():
            block = self.replaced[name].get(number)
            if block is not None:
                where = np.flatnonzero(numbers == number)
                inside = rows[where] - number * size
                where, inside = where[inside < len(block)], inside[inside < len(block)]
                values[where] = block[inside]

    def _replaced_between(self, name: str, start: int, stop: int) -> list[tuple[int, Block]]:
        blocks = self.replaced.get(name)
        if not blocks:
            return []
        size = self.block_rows(name)
        found = [(number, blocks.get(number)) for number in range(start // size, -(-stop // size))]
        return [(n, b) for n, b in found if b is not None and n * size + len(b) > start]

    # Writing

    def append(self, columns: Columns) -> None:
        """Append rows."""
        self.state.tail.put(self.count, columns, self.kind.defaults)
        self.count += len(next(iter(columns.values())))
        for patches in (*self.own, *self.state.patches):
            patches.grow(self.count)

    def write(self, rows: Rows, columns: Columns) -> None:
        """Overwrite rows; of a row given twice the last counts."""
        new = rows >= self.state.count
        if new.any():
            for name, values in columns.items():
                self.state.tail.write(name, rows[new], values[new])
            rows, columns = rows[~new], {name: values[~new] for name, values in columns.items()}
        if not len(rows):
            return
        if len(rows) >= _MANY and len(rows) * _DENSE >= self.state.count:
            self._write_blocks(rows, columns)
            return
        for group in self.own:
            given = {name: columns[name] for name in columns if name in group.fields}
            if given:
                group.set(rows, given, self.read)

    def _write_blocks(self, rows: Rows, columns: Columns) -> None:
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        last = np.append(ordered[1:] != ordered[:-1], True)  # of equal rows
        order, ordered = order[last], ordered[last]
        for name, values in columns.items():
            size = self.block_rows(name)
            numbers = ordered // size
            bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(ordered)]
            for low, high in pairwise(bounds):
                number = int(numbers[low])
                self._own_block(name, number)[ordered[low:high] - number * size] = values[order[low:high]]
        self._override(ordered, {name: values[order] for name, values in columns.items()})

    def _own_block(self, name: str, number: int, *, filled: bool = True) -> Block:
        """A block of committed rows for the transaction to write to; `filled` with what it held."""
        blocks = self.replaced.setdefault(name, {})
        if number not in blocks:
            size = self.block_rows(name)
            start, stop = number * size, min((number + 1) * size, self.state.count)
            if filled:
                block = self.chunk(start, stop, [name])[name]
            else:
                dtype, width = self.kind.fields[name]
                block = np.empty(stop - start if width is None else (stop - start, width), dtype)
            blocks[number] = block
        return blocks[number]

    def _override(self, rows: Rows, columns: Columns) -> None:
        """Patches count more than blocks: give those of the transaction what its blocks were given."""
        for group in self.own:
            if len(group):
                where, slots = group.find(rows)
                for name in group.fields:
                    if name in columns:
                        group.set_slots(name, slots, columns[name][where])

    def put_chunk(self, start: int, columns: Columns) -> None:
        """Overwrite the rows from `start` on."""
        stop = start + len(next(iter(columns.values())))
        cut = min(max(start, self.state.count), stop)
        for name, values in columns.items():
            if cut < stop:
                self.state.tail.view(name, cut, stop)[:] = values[cut - start :]
            size = self.block_rows(name)
            at = start
            while at < cut:
                number = at // size
                last = min((number + 1) * size, cut)
                whole = at == number * size and last == min((number + 1) * size, self.state.count)
                block = self._own_block(name, number, filled=not whole)
                block[at - number * size : last - number * size] = values[at - start : last - start]
                at = last
        for group in self.own:
            if len(group):
                where, slots = group.between(start, cut)
                for name in group.fields:
                    if name in columns:
                        group.set_slots(name, slots, columns[name][where])


@dataclass
class GraphState:
    """A graph as of a commit.

    Attributes:
        nodes: The nodes.
        edges: The edges by ref.
        events: The events.
        removed_edges: How many edges were removed.
        sorted_edges: Edges below this ref are in the columns `out/…`, but for those removed before.
        sorted_nodes: Rows below this one have a place in `out/start`.
        runs: The other edges by source, as far as anybody has asked for them:
        in_runs: edges from this ref on are in no run yet.
        attrs: The attributes.
    """

    nodes: TableState
    edges: TableState
    events: TableState
    removed_edges: int
    sorted_edges: int
    sorted_nodes: int
    runs: Runs
    in_runs: int
    attrs: dict[str, JSON]

    @classmethod
    def at_rest(cls, counts: Sequence[int], vector_dim: int, sorted_edges: int, sorted_nodes: int) -> GraphState:
        """Everything is in blocks, and no run made; `counts` are those of nodes, edges and events."""
        kinds = (node_kind(vector_dim), EDGES, EVENTS)
        nodes, edges, events = (TableState.at_rest(kind, n) for kind, n in zip(kinds, counts, strict=True))
        return cls(nodes, edges, events, 0, sorted_edges, sorted_nodes, (), sorted_edges, {})

    def copy(self) -> GraphState:
        """One that later commits do not change."""
        return GraphState(
            self.nodes.copy(),
            self.edges.copy(),
            self.events.copy(),
            self.removed_edges,
            self.sorted_edges,
            self.sorted_nodes,
            self.runs,
            self.in_runs,
            self.attrs,
        )

    def add_edges(self, sources: Rows, first: int) -> None:
        """Take in the sources of edges that were appended."""
        if worth_a_run(first, len(sources), self.in_runs):
            self.runs = adjacency.appended(self.runs, sources, first)
            self.in_runs = first + len(sources)


def worth_a_run(first: int, count: int, in_runs: int) -> bool:
    """Whether so many appended edges are sorted into a run at once; in the order of ref, so not if others wait."""
    return first == in_runs and count < _MANY_EDGES


class BlockTables(WritableTables):
    """`Tables` over blocks; writable ones are a transaction's.

    Args:
        state: The commit.
        columns: The blocks as of its last merge.
        ids: The id index, shared by all tables of a store.
        vector_dim: Length of the vectors.
        writable: Whether they are written to.
        lists: Edge lists of that commit that were read; None where none are kept.
    """

    def __init__(
        self,
        state: GraphState,
        columns: BlockColumns,
        ids: IdIndex,
        vector_dim: int,
        *,
        writable: bool,
        lists: ListCache | None = None,
    ) -> None:
        self.lists = lists
        self.vector_dim = vector_dim
        self.state = state
        self.columns = columns
        self.ids = ids
        self.nodes = Table(node_kind(vector_dim), state.nodes, columns, writable=writable)
        self.edges = Table(EDGES, state.edges, columns, writable=writable)
        self.events = Table(EVENTS, state.events, columns, writable=writable)
        self.runs = state.runs
        self.in_runs = state.in_runs
        self.removed_edges = state.removed_edges
        self.attrs = state.attrs

    @property
    def node_count(self) -> int:  # type: ignore[override]
        return self.nodes.count

    @property
    def edge_slots(self) -> int:  # type: ignore[override]
        return self.edges.count

    @property
    def event_count(self) -> int:  # type: ignore[override]
        return self.events.count

    @property
    def changed(self) -> bool:
        """Whether a transaction did anything."""
        tables = (self.nodes, self.edges, self.events)
        return self.attrs is not self.state.attrs or any(table.changed for table in tables)

    # The id index reads ids here.

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.nodes.count

    def chunk(self, field: str, start: int, stop: int) -> npt.NDArray[Any]:
        """A field of rows start:stop."""
        return self.nodes.chunk(start, stop, [field])[field]

    def gather(self, field: str, rows: Rows) -> npt.NDArray[Any]:
        """A field of rows."""
        return self.nodes.read(rows, [field])[field]

    # Reading

    def read_nodes(self, rows: Rows, fields: Sequence[str]) -> Columns:
        return self.nodes.read(rows, fields)

    def node_chunk(self, start: int, stop: int, fields: Sequence[str]) -> Columns:
        return self.nodes.chunk(start, stop, fields)

    def node_bytes(self, fields: Sequence[str]) -> int:
        kinds = [self.nodes.kind.fields[name] for name in fields]
        return sum(dtype.itemsize * (width or 1) for dtype, width in kinds) or 1

    def edge_bytes(self, fields: Sequence[str]) -> int:
        return sum(self.edges.kind.fields[name][0].itemsize for name in fields) or 1

    def rows_of(self, ids: records.Ids) -> Rows:
        return self.ids.lookup(ids, self)

    def read_edges(self, refs: Refs, fields: Sequence[str]) -> Columns:
        return self.edges.read(refs, fields)

    def edge_chunk(self, start: int, stop: int, fields: Sequence[str]) -> Columns:
        return self.edges.chunk(start, stop, fields)

    def removed(self, refs: Refs) -> npt.NDArray[np.bool_]:
        return self.edges.read(refs, ["removed"])["removed"].astype(np.bool_)

    def read_events(self, start: int, stop: int) -> npt.NDArray[Any]:
        out = np.zeros(stop - start, records.EVENT_DTYPE)
        if stop > start:
            for name, values in self.events.chunk(start, stop, list(layout.EVENT_COLUMNS)).items():
                out[name] = values
        return out

    def out_edges(self, rows: Rows, limit: int | None) -> Adjacency:
        if self.lists is None or not self.lists.is_of_use(len(rows)):
            return self._read_lists(rows, limit)
        return self.lists.out_edges(rows, limit, lambda some: self._read_lists(some, limit), in_many_threads=False)

    def _read_lists(self, rows: Rows, limit: int | None) -> Adjacency:
        starts, counts = self._sorted_ranges(rows)
        self._bring_up_runs()
        looked_for = counts if limit is None else np.minimum(counts, limit)
        found = self._sorted_edges(records.ranges(starts, looked_for))
        if limit is not None and found["removed"].any() and (looked_for < counts).any():
            return self._read_lists(rows, None)  # further back there may be edges to take the place of removed ones
        counts = looked_for
        if self.runs:
            found, counts = self._with_runs(rows, counts, found)
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(counts, out=indptr[1:])
        gone = found.pop("removed") != 0
        if gone.any():
            kept = np.zeros(len(gone) + 1, np.int64)
            np.cumsum(~gone, out=kept[1:])
            indptr = kept[indptr]
            found = {name: values[~gone] for name, values in found.items()}
        return Adjacency(
            indptr, found["ref"], found["target_row"], found["weight"], found["confidence"], found["use_count"]
        )

    def _sorted_ranges(self, rows: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where in `out/…` the edges of rows begin, and how many there are."""
        if not self.state.sorted_edges:
            return np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        inside = rows < self.state.sorted_nodes
        known = rows if inside.all() else np.where(inside, rows, 0)
        starts = self.columns.gather(layout.START, known)
        counts = self.columns.gather(layout.START, known + 1) - starts
        return (starts, counts) if known is rows else (starts, np.where(inside, counts, 0))

    def _sorted_edges(self, positions: npt.NDArray[np.int64]) -> Columns:
        """Edges by position in `out/…`, with the changes since."""
        found = dict(zip(layout.OUT_COLUMNS, self.columns.gather_columns(layout.OUT_NAMES, positions), strict=True))
        refs = found["ref"]
        found["removed"] = refs < 0
        changed = {name: found[name] for name in (*sorted(records.EDGE_WRITABLE), "removed")}
        edges = self.edges
        edges._patch(changed, edges.state.patches, refs)
        for name in changed:
            if name in edges.replaced:
                edges._replace(changed[name], name, np.where(refs < 0, ~refs, refs))
        edges._patch(changed, edges.own, refs)
        return found

    def _bring_up_runs(self) -> None:
        """Before runs are read: take in the edges that are in none, and make few of many."""
        runs, count = self.runs, self.edges.count
        if self.in_runs < count:
            runs = adjacency.appended(
                runs, self.edges.chunk(self.in_runs, count, ["source_row"])["source_row"], self.in_runs
            )
        if len(runs) > adjacency.FEW:
            runs = adjacency.fewer(runs)
        if runs is not self.runs:
            if count == self.state.edges.count:
                self.state.runs, self.state.in_runs = runs, count  # for the next who reads
            self.runs, self.in_runs = runs, count

    def _with_runs(
        self, rows: Rows, counts: npt.NDArray[np.int64], oldest: Columns
    ) -> tuple[Columns, npt.NDArray[np.int64]]:
        """Put the edges of the runs, which are newer, before those that were found."""
        parts = [(run, *run.find(rows)) for run in reversed(self.runs)]
        total = counts + sum(n for _, _, n in parts)
        ends = np.cumsum(total)
        at = ends - total
        refs = np.empty(int(ends[-1]) if len(ends) else 0, np.int64)
        where = []
        for run, starts, number in parts:
            where.append(records.ranges(at, number))
            refs[where[-1]] = run.refs[records.ranges(starts, number)]
            at = at + number
        newer = np.concatenate(where)
        older = records.ranges(at, counts)
        names = ("target_row", "weight", "confidence", "use_count", "removed")
        read = self.edges.read(refs[newer], names)
        refs[older] = oldest["ref"]
        out: Columns = {"ref": refs}
        for name in names:
            column = np.empty(len(refs), read[name].dtype)
            column[newer], column[older] = read[name], oldest[name]
            out[name] = column
        return out, total

    # Writing

    def append_nodes(self, columns: Columns) -> None:
        self.nodes.append(columns)

    def write_nodes(self, rows: Rows, columns: Columns) -> None:
        self.nodes.write(rows, columns)

    def put_node_chunk(self, start: int, columns: Columns) -> None:
        self.nodes.put_chunk(start, columns)

    def append_edges(self, columns: Columns) -> None:
        first = self.edges.count
        self.edges.append(columns)
        if worth_a_run(first, len(columns["source_row"]), self.in_runs):
            self.runs = adjacency.appended(self.runs, columns["source_row"], first)
            self.in_runs = self.edges.count

    def write_edges(self, refs: Refs, columns: Columns) -> None:
        self.edges.write(refs, columns)

    def put_edge_chunk(self, start: int, columns: Columns) -> None:
        self.edges.put_chunk(start, columns)

    def remove_edges(self, refs: Refs) -> None:
        self.edges.write(refs, {"removed": np.ones(len(refs), np.uint8)})
        self.removed_edges += len(refs)

    def append_events(self, events: npt.NDArray[Any]) -> None:
        self.events.append({name: np.ascontiguousarray(events[name]) for name in layout.EVENT_COLUMNS})

    def set_attrs(self, attrs: dict[str, JSON]) -> None:
        self.attrs = attrs
