"""What a store is held against: SQLite here; the file system and the memory in `aesg.bench.limits`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import data

from aesg import records
from aesg.bench.limits import DurableFile, HeapGraph, Walk, edge_bytes, node_bytes, noise, write_file

__all__ = ["DurableFile", "HeapGraph", "SQLite", "Walk", "copied", "edge_bytes", "node_bytes", "noise", "write_file"]


def copied(array: data.Floats, chunk: int) -> Iterator[data.Floats]:
    """Copies of an array, so many rows at a time."""
    for first in range(0, len(array), chunk):
        yield array[first : first + chunk].copy()


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
