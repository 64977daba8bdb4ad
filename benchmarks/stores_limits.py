"""What a store is held against: the file system, the memory, SQLite, each doing the same by itself."""

from __future__ import annotations

import importlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import data
import numpy as np
import numpy.typing as npt

from aesg import records

PIECE: Final = 1 << 20
"""Bytes of one `write`."""

Walk: TypeAlias = Callable[[data.Ints], tuple[npt.NDArray[Any], ...]]
"""Rows → indptr, refs, target_rows, weight, confidence and use_count, as `records.Adjacency` has them."""


def node_bytes(dim: int) -> int:
    """Bytes of all fields of a node."""
    return sum(dtype.itemsize * (dim if name == "vector" else 1) for name, dtype in records.NODE_FIELDS.items())


def edge_bytes() -> int:
    """Bytes of all fields of an edge."""
    return sum(dtype.itemsize for dtype in records.EDGE_FIELDS.values())


def noise(count: int) -> memoryview:
    """Random bytes to write: nothing on the way can make them fewer."""
    return memoryview(np.random.default_rng(4).bytes(count))


def write_file(path: Path, buffer: memoryview, count: int) -> None:
    """Write `count` bytes to a new file, the buffer again and again, a piece at a time, without a sync."""
    with open(path, "xb", buffering=0) as file:
        left = count
        while left:
            for first in range(0, min(len(buffer), left), PIECE):
                left -= file.write(buffer[first : first + min(PIECE, left)])


def copied(array: data.Floats, chunk: int) -> Iterator[data.Floats]:
    """Copies of an array, so many rows at a time."""
    for first in range(0, len(array), chunk):
        yield array[first : first + chunk].copy()


class DurableFile:
    """A file that grows by appends, each of them synced."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def append(self, buffer: memoryview) -> None:
        """Append, and wait until the disk has it."""
        while buffer:
            buffer = buffer[os.write(self._fd, buffer) :]
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Let go."""
        os.close(self._fd)


class SQLite:
    """The same graph in SQLite: WAL, synchronous=FULL, edges found by their source."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        (mode,) = self._db.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise RuntimeError(f"SQLite keeps journal_mode {mode!r} at {path}")
        self._db.execute("PRAGMA synchronous=FULL")
        fields = [name for name in records.NODE_FIELDS if name != "id"]
        self._db.execute(f"CREATE TABLE nodes (id INTEGER PRIMARY KEY, {', '.join(fields)})")
        self._db.execute(f"CREATE TABLE edges (ref INTEGER PRIMARY KEY, {', '.join(records.EDGE_FIELDS)})")
        self._db.execute("CREATE INDEX out_edges ON edges (source_row)")
        self._node = f"INSERT INTO nodes (id, {', '.join(fields)}) VALUES (?{', ?' * len(fields)})"
        self._edge = f"INSERT INTO edges ({', '.join(records.EDGE_FIELDS)}) VALUES (?, ?, 1.0, 1.0, 0)"
        self._fields = fields

    def commit(self, vector: data.Floats, target: int) -> None:
        """A node, and an edge from it, in one transaction."""
        node_id, now = int(records.new_ids(1)[0]), records.now()
        values = {**records.NODE_DEFAULTS, "vector": vector.tobytes(), "created_at": now, "modified_at": now}
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(self._node, (node_id, *(values[name] for name in self._fields)))
        self._db.execute(self._edge, (node_id, target))
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Let go."""
        self._db.close()


class HeapGraph:
    """Edges in heap as compressed sparse rows, newest first, and a compiled walk over them.

    Raises:
        RuntimeError: numba is not installed.
    """

    def __init__(self, nodes: int, sources: data.Ints, targets: data.Ints, weight: data.Floats) -> None:
        try:
            numba: Any = importlib.import_module("numba")
        except ImportError as error:
            raise RuntimeError("numba, which this is held against, is not installed: pip install numba") from error
        newest_first = len(sources) - 1 - np.argsort(sources[::-1], kind="stable")
        starts = np.zeros(nodes + 1, np.int64)
        np.cumsum(np.bincount(sources, minlength=nodes), out=starts[1:])
        columns = (
            newest_first,
            targets[newest_first],
            weight[newest_first],
            np.ones(len(sources), np.float32),
            np.zeros(len(sources), np.uint32),
        )
        compiled = numba.njit(_walk)
        self.walk: Walk = lambda rows: compiled(rows, starts, *columns)


def _walk(
    rows: data.Ints,
    starts: data.Ints,
    refs: data.Ints,
    targets: data.Ints,
    weight: data.Floats,
    confidence: data.Floats,
    use_count: npt.NDArray[np.uint32],
) -> tuple[npt.NDArray[Any], ...]:
    """Compiled by numba: everything that `out_edges` gives, into arrays made here."""
    indptr = np.empty(len(rows) + 1, np.int64)
    indptr[0] = 0
    for i in range(len(rows)):
        indptr[i + 1] = indptr[i] + starts[rows[i] + 1] - starts[rows[i]]
    found = indptr[-1]
    out_refs = np.empty(found, np.int64)
    out_targets = np.empty(found, np.int64)
    out_weight = np.empty(found, np.float32)
    out_confidence = np.empty(found, np.float32)
    out_use_count = np.empty(found, np.uint32)
    for i in range(len(rows)):
        first = starts[rows[i]]
        for at in range(indptr[i], indptr[i + 1]):
            k = first + at - indptr[i]
            out_refs[at] = refs[k]
            out_targets[at] = targets[k]
            out_weight[at] = weight[k]
            out_confidence[at] = confidence[k]
            out_use_count[at] = use_count[k]
    return indptr, out_refs, out_targets, out_weight, out_confidence, out_use_count
