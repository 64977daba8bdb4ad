"""Edges by source, newest first: a counting sort that reads edges chunk by chunk, however many there are.

In memory there are 8 bytes a node and a chunk. What comes out takes 32 bytes an edge: where that is much, it is in a
mapped file without a name, which the system writes out when it needs the memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.backends.blocks import layout
from aesg.backends.blocks.adjacency import by_source
from aesg.backends.files import os_errors
from aesg.records import Columns, Refs
from aesg.threads import in_threads

Chunk: TypeAlias = Callable[[int, int, Sequence[str]], Columns]
"""Refs start:stop and names of fields → columns, "removed" among them."""

_CHUNK: Final = 1 << 16
_IN_MEMORY: Final = 1 << 26
"""Bytes of the result up to which it is made in memory."""


def sorted_edges(
    chunk: Chunk, slots: int, removed: int, nodes: int, scratch: Path | None
) -> tuple[npt.NDArray[np.int64], Columns]:
    """All edges by source; removed ones are left out.

    Args:
        chunk: Reads edges by ref.
        slots: How many there are, removed ones included.
        removed: How many of them were removed.
        nodes: How many rows there are.
        scratch: Where there is room for a file; the system's place for such files when None.

    Returns:
        Where the edges of each row begin, int64 [nodes + 1]; field of `layout.OUT_COLUMNS` → array.

    Raises:
        CapacityError: There is no room for that file.
    """
    spans = [(start, min(start + _CHUNK, slots)) for start in range(0, slots, _CHUNK)]
    starts = np.zeros(nodes + 1, np.int64)
    for start, stop in spans:
        column = chunk(start, stop, ["source_row", "removed"] if removed else ["source_row"])
        sources = column["source_row"][column["removed"] == 0] if removed else column["source_row"]
        np.add.at(starts, sources + 1, 1)
    np.cumsum(starts, out=starts)
    found = _room(slots - removed, scratch)
    at = starts[:-1]  # where the next edge of each row goes: in the end where those of the next row begin
    fields = ["source_row", *(name for name in layout.OUT_COLUMNS if name != "ref"), *(["removed"] if removed else [])]
    shares: list[Sequence[str]] = [list(layout.OUT_COLUMNS)]
    if slots >= _CHUNK:  # each core has some columns; arrays that are indexed by arrays do not hold the GIL
        shares = [[name] for name in layout.OUT_COLUMNS]
    for start, stop in reversed(spans):
        column = chunk(start, stop, fields)
        newest_first = np.arange(stop - start)[::-1]
        if removed:
            newest_first = np.flatnonzero(column["removed"] == 0)[::-1]
        if not len(newest_first):
            continue
        ordered, order = by_source(column["source_row"][newest_first])
        firsts = np.append(0, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)
        rows, counts = ordered[firsts], np.diff(firsts, append=len(ordered))
        begin = at[rows]
        at[rows] += counts
        where, which = records.ranges(begin, counts), newest_first[order]
        column["ref"] = np.arange(start, stop)
        in_threads(partial(_put, found, column, where, which), shares)
    starts[1:] = starts[:-1].copy()
    starts[0] = 0
    return starts, found


def _put(found: Columns, column: Columns, where: Refs, which: Refs, names: Sequence[str]) -> None:
    for name in names:
        found[name][where] = column[name][which]


def _room(edges: int, scratch: Path | None) -> Columns:
    """Arrays for so many edges."""
    sizes = [edges * dtype.itemsize for dtype in layout.OUT_COLUMNS.values()]
    if sum(sizes) <= _IN_MEMORY:
        return {name: np.empty(edges, dtype) for name, dtype in layout.OUT_COLUMNS.items()}
    place = scratch or Path(tempfile.gettempdir())
    with os_errors("making room in", place), tempfile.TemporaryFile(dir=place) as file:
        os.posix_fallocate(file.fileno(), 0, sum(sizes))  # a store into a hole kills the process when the disk is full
        mapped: npt.NDArray[Any] = np.memmap(file, np.uint8, "r+")  # keeps the file as long as anybody refers to it
    bounds = np.cumsum([0, *sizes]).tolist()
    return {
        name: np.asarray(mapped[first:last]).view(dtype)
        for (name, dtype), first, last in zip(layout.OUT_COLUMNS.items(), bounds, bounds[1:], strict=False)
    }
