"""Compaction: new files without pruned nodes, their edges, and removed edges."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from aesg.backends.files import os_errors, write_all
from aesg.backends.memmap.format import EDGE_DTYPE, EDGES, END, MIN_EDGES, MIN_NODES, NODES, REMOVED
from aesg.backends.memmap.tables import MemmapTables, State, linked
from aesg.records import Rows

_CHUNK: Final = 1 << 18


def write_compacted(tables: MemmapTables, least: float, *, suffix: str, sync: bool) -> tuple[Rows, State]:
    """Write both files anew, beside the old ones, under their names with a suffix. The old ones stay as they are.

    Rows and refs keep their order, so every list does. Edges of less confidence than `least` are left out.

    Returns:
        The row map (old row → new row, -1: dropped) and the state that the new files hold.
    """
    directory = tables.files.directory
    active = np.concatenate(
        [np.empty(0, np.uint8)]
        + [tables.nodes.chunk("is_active", start, stop) for start, stop in _spans(tables.node_count)]
    )
    stays = active == 1
    row_map = np.where(stays, np.cumsum(stays) - 1, -1).astype(np.int64)
    nodes = int(stays.sum())
    heads = np.full(nodes, END, np.int64)
    with _Output(directory / (EDGES + suffix)) as out:
        edges = _write_edges(tables, out, row_map, heads, least)
        out.finish(MIN_EDGES * EDGE_DTYPE.itemsize, sync=sync)
    with _Output(directory / (NODES + suffix)) as out:
        _write_nodes(tables, out, stays, heads)
        out.finish(MIN_NODES * tables.files.nodes.dtype.itemsize, sync=sync)
    return row_map, State(nodes, edges, 0, tables.event_count, tables.attrs)


def _spans(count: int) -> list[tuple[int, int]]:
    return [(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]


class _Output:
    """A file of records in the making."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0
        with os_errors("creating", path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def write(self, records: npt.NDArray[Any]) -> None:
        with os_errors("writing", self.path):
            self._end += write_all(self._fd, [records.view(np.uint8)], self._end)

    def finish(self, least: int, *, sync: bool) -> None:
        with os_errors("writing", self.path):
            os.ftruncate(self._fd, max(self._end, least))
            if sync:
                os.fsync(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)


def _write_edges(tables: MemmapTables, out: _Output, row_map: Rows, heads: npt.NDArray[np.int64], least: float) -> int:
    """Write the surviving edges, linked anew; fills `heads`; returns their number."""
    written = 0
    for start, stop in _spans(tables.edge_slots):
        refs = np.arange(start, stop)
        old = np.empty(len(refs), EDGE_DTYPE)
        for field in EDGE_DTYPE.names or ():
            old[field] = tables.edges.chunk(field, start, stop)
        live = np.flatnonzero((old["next_edge_idx"] != REMOVED) & ~(old["confidence"] < np.float32(least)))
        ends = [tables.rows_of(np.ascontiguousarray(old[field][live])) for field in ("source_id", "target_id")]
        source, target = (np.where(rows >= 0, row_map[rows], -1) if len(row_map) else rows for rows in ends)
        kept = (source >= 0) & (target >= 0)
        new, source = old[live[kept]], source[kept]
        new["next_edge_idx"], rows, newest = linked(source, written, heads.__getitem__)
        heads[rows] = newest
        out.write(new)
        written += len(new)
    return written


def _write_nodes(
    tables: MemmapTables, out: _Output, stays: npt.NDArray[np.bool_], heads: npt.NDArray[np.int64]
) -> None:
    file = tables.files.nodes
    done = 0
    for start, stop in _spans(tables.node_count):
        rows = start + np.flatnonzero(stays[start:stop])
        new = file.records(rows)
        new["head_edge_idx"] = heads[done : done + len(rows)]
        out.write(new)
        done += len(rows)
