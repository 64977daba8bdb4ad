"""Compaction: every block anew, without pruned nodes, their edges, removed edges and edges of too little confidence.

Blocks are made one after another, and wait in a file without a name for the one commit that puts all of them: in memory
there are 8 bytes a node, some 40 an edge, and a few blocks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from aesg.backends.blocks import layout
from aesg.backends.blocks.adjacency import Runs, appended, by_source
from aesg.backends.blocks.container import Block, Column
from aesg.backends.blocks.merge import Merge, put_checksums
from aesg.backends.blocks.tables import BlockTables, Table
from aesg.backends.files import os_errors
from aesg.records import Rows

_CHUNK: Final = 1 << 16


class Spool:
    """Blocks in a file that is gone when it is closed; they are read where they lie.

    Args:
        directory: Where there is room for it; the system's place for such files when None.
    """

    def __init__(self, directory: Path | None) -> None:
        self._place = directory or Path(tempfile.gettempdir())
        with os_errors("creating a file in", self._place):
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - closed by `__exit__`
        self._size = 0
        self._mapped: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def keep(self, block: Block) -> tuple[int, int]:
        """Write a block; where it begins, and how many bytes it has."""
        data = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
        at = self._size
        with os_errors("writing to a file in", self._place):
            while data:
                data = data[self._file.write(data) :]
            self._size += block.nbytes
            padding = -self._size % 64
            if padding:
                self._file.write(bytes(padding))
                self._size += padding
        return at, block.nbytes

    def mapped(self) -> npt.NDArray[np.uint8]:
        """All that was written."""
        if self._size:
            with os_errors("mapping a file in", self._place):
                self._mapped = np.memmap(self._file, np.uint8, "r")
        return self._mapped

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is mapped stays for as long as somebody refers to it; the room goes with it.
        self._mapped = np.empty(0, np.uint8)
        self._file.close()


def compacted(tables: BlockTables, least: float, spool: Spool) -> tuple[Merge, Rows, Runs]:
    """Every block of the compacted graph.

    Args:
        tables: A commit.
        least: Edges of less confidence are left out.
        spool: Where the blocks wait; they are views of it.

    Returns:
        What is to be committed; the row map; the runs of edges that are not worth sorting.
    """
    stays = _marks(tables.nodes, lambda column: column["is_active"] == 1, ["is_active"])
    row_map = np.where(stays, np.cumsum(stays) - 1, -1).astype(np.int64)

    def kept_of(columns: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
        ends = (row_map[columns["source_row"]] >= 0) & (row_map[columns["target_row"]] >= 0)
        return np.asarray((columns["removed"] == 0) & ends & ~(columns["confidence"] < np.float32(least)))

    kept = _marks(tables.edges, kept_of, ["removed", "source_row", "target_row", "confidence"])
    make = _Making(tables, spool)
    for name in tables.nodes.kind.fields:
        make.column(tables.nodes, name, stays)
    sources = np.empty(int(np.count_nonzero(kept)), np.int64)
    make.column(tables.edges, "source_row", kept, row_map.__getitem__, into=sources)
    make.column(tables.edges, "target_row", kept, row_map.__getitem__)
    for name in tables.edges.kind.fields:
        if name not in ("source_row", "target_row"):
            make.column(tables.edges, name, kept)
    for name in tables.events.kind.fields:
        make.column(tables.events, name, None)
    nodes = int(np.count_nonzero(stays))
    sorted_ = len(sources) > layout.FEW_UNSORTED
    if sorted_:
        make.sorted(sources, np.flatnonzero(kept), row_map, nodes)
    runs = () if sorted_ or not len(sources) else appended((), sources, 0)
    return make.made(), row_map, runs


def _marks(
    table: Table, which: Callable[[dict[str, npt.NDArray[Any]]], npt.NDArray[np.bool_]], fields: list[str]
) -> npt.NDArray[np.bool_]:
    """What is to be kept, bool [rows]."""
    found = np.empty(table.count, np.bool_)
    for start in range(0, table.count, _CHUNK):
        stop = min(start + _CHUNK, table.count)
        found[start:stop] = which(table.chunk(start, stop, fields))
    return found


class _Making:
    """A merge in the making that puts every block anew."""

    def __init__(self, tables: BlockTables, spool: Spool) -> None:
        columns = self._columns = tables.columns
        self._tables, self._spool = tables, spool
        self._merge = Merge(
            {name: 0 for name in columns.layout if name != layout.LOG},
            {name: [] for name in columns.checksums_of_checksums},
            0,
            0,
        )
        self._places: dict[tuple[str, int], tuple[int, int]] = {}

    def column(
        self,
        table: Table,
        field: str,
        which: npt.NDArray[np.bool_] | None,
        change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
        into: npt.NDArray[Any] | None = None,
    ) -> None:
        """The rows of a column that stay.

        Args:
            table: The table.
            field: Its field.
            which: bool [rows]; all when None.
            change: Makes new values of old ones.
            into: Out: all of them.
        """
        out = _Cut(self._columns.layout[table.kind.column(field)], self._put)
        done = 0
        for start in range(0, table.count, out.column.block_rows):
            stop = min(start + out.column.block_rows, table.count)
            if which is not None and not which[start:stop].any():
                continue
            values = table.chunk(start, stop, [field])[field]
            if which is not None:
                values = values[which[start:stop]]
            if change is not None:
                values = change(values)
            if into is not None:
                into[done : done + len(values)] = values
            done += len(values)
            out.add(values)
        self._merge.lengths[out.column.name] = out.end()

    def sorted(self, sources: Rows, old_refs: npt.NDArray[np.int64], row_map: Rows, nodes: int) -> None:
        """The edges by source, newest first.

        Args:
            sources: int64 [E], new rows in the order of ref.
            old_refs: int64 [E], the ref that each had.
            row_map: Old row → new row.
            nodes: How many there are.
        """
        ordered, order = by_source(sources[::-1])
        starts = np.zeros(nodes + 1, np.int64)
        np.cumsum(np.bincount(ordered, minlength=nodes), out=starts[1:])
        del ordered
        refs = len(sources) - 1 - order
        del order
        self._whole(layout.START, starts)
        self._whole("out/ref", refs)
        from_old = old_refs[refs]
        for name in layout.OUT_COLUMNS:
            if name == "ref":
                continue
            # A whole column by ref at a time: to gather it block by block would read every block for each.
            values = np.concatenate(
                [self._columns.layout[f"out/{name}"].dtype.type(0).reshape(1)[:0]]
                + [
                    self._tables.edges.chunk(start, min(start + _CHUNK, self._tables.edge_slots), [name])[name]
                    for start in range(0, self._tables.edge_slots, _CHUNK)
                ]
            )
            out = _Cut(self._columns.layout[f"out/{name}"], self._put)
            for start in range(0, len(refs), _CHUNK):
                found = values[from_old[start : start + _CHUNK]]
                out.add(row_map[found] if name == "target_row" else found)
            self._merge.lengths[f"out/{name}"] = out.end()
        self._merge.sorted_edges, self._merge.sorted_nodes = len(sources), nodes

    def _whole(self, name: str, values: npt.NDArray[Any]) -> None:
        out = _Cut(self._columns.layout[name], self._put)
        out.add(values)
        self._merge.lengths[name] = out.end()

    def _put(self, name: str, number: int, block: Block) -> None:
        self._places[name, number] = self._spool.keep(block)

    def made(self) -> Merge:
        """What is to be committed."""
        data, merge = self._spool.mapped(), self._merge
        for (name, number), (at, size) in self._places.items():
            column = self._columns.layout[name]
            rows = size // column.row_bytes
            merge.puts[name, number] = data[at : at + size].view(column.dtype).reshape(column.shape(rows))
        merge.checksums = {name: np.empty(0, np.uint32) for name in merge.of_checksums}
        put_checksums(self._columns, merge)
        return merge


class _Cut:
    """Cuts what comes piece by piece into the blocks of a column."""

    def __init__(self, column: Column, put: Callable[[str, int, Block], None]) -> None:
        self.column = column
        self._put = put
        self._room = np.empty(column.shape(column.block_rows), column.dtype)
        self._filled = self._number = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take more rows."""
        size = self.column.block_rows
        while len(values):
            taken = min(size - self._filled, len(values))
            self._room[self._filled : self._filled + taken] = values[:taken]
            self._filled += taken
            values = values[taken:]
            if self._filled == size:
                self._give()

    def end(self) -> int:
        """Put what is left; how many rows there were."""
        rows = self._number * self.column.block_rows + self._filled
        if self._filled:
            self._give()
        return rows

    def _give(self) -> None:
        self._put(self.column.name, self._number, self._room[: self._filled])
        self._number += 1
        self._filled = 0
