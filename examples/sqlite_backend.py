"""A backend of one's own, in about a page: blocks in an SQLite database.

`docs/writing-a-backend.md` goes through it. To use it under the name `sqlite`, a package lists `BACKEND` in its
entry-point group `aesg.backends`; a script or a test calls `aesg.backends.registry.register(BACKEND)`.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from aesg.backends.blocks import BlockContainer, BlockStore, Changes, Column
from aesg.backends.files import WriterLock, os_errors
from aesg.backends.registry import Backend, Mode
from aesg.backends.url import StoreURL
from aesg.errors import CapacityError, CorruptionError, InvalidInputError, NotFoundError, StorageError
from aesg.protocols import (
    Atomicity,
    Capabilities,
    Durability,
    Integrity,
    Readers,
    ReaderView,
    SpaceReclaim,
    Writers,
)

PROMISES = Capabilities(
    durability=Durability.POWER_LOSS,
    atomicity=Atomicity.GRAPH,
    readers=Readers.OTHER_PROCESSES,
    reader_view=ReaderView.FIXED,
    writers=Writers.ONE_PROCESS,
    snapshots=False,
    space_reclaim=SpaceReclaim.ON_COMPACT,
    integrity=Integrity.CHECKSUMS,
    remote=False,
)

_INHERITED: list[sqlite3.Connection] = []
"""Connections of a parent process. SQLite bears no forks: they are neither used here nor closed, which would harm the
parent; and no other one is opened, which would take the parent's locks for its own."""


class SqliteContainer(BlockContainer):
    """Blocks in a table. The connection has a read transaction open nearly always: that is its view."""

    capabilities = PROMISES

    def __init__(self, path: Path, url: str, *, writable: bool) -> None:
        self._path, self._url = path, url
        self._lock = WriterLock(path.with_name(f"{path.name}.lock"), url) if writable else None
        try:
            with self._errors():
                self._db = self._connected(writable)
                self._look()
        except BaseException:
            self.close()
            raise

    def _connected(self, writable: bool) -> sqlite3.Connection:
        # Where nobody may write, nobody does: without saying so, SQLite would want to write beside the file.
        fixed = "" if writable or os.access(self._path.parent, os.W_OK, effective_ids=True) else "?mode=ro&immutable=1"
        db = sqlite3.connect(f"{self._path.as_uri()}{fixed}", uri=True, isolation_level=None, check_same_thread=False)
        if writable:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            columns = "name TEXT, number INT, data BLOB, PRIMARY KEY (name, number)"
            db.execute(f"CREATE TABLE IF NOT EXISTS blocks ({columns})")
        return db

    def _look(self) -> None:
        """Begin a view of the newest commit."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._db.execute("BEGIN")
        made = self._db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'blocks'").fetchone()
        self._head = self._data("head", 0) if made[0] else None
        self.version += 1

    def _data(self, name: str, number: int) -> bytes | None:
        with self._errors():
            query = "SELECT data FROM blocks WHERE name = ? AND number = ?"
            row = self._db.execute(query, (name, number)).fetchone()
        return bytes(row[0]) if row is not None and isinstance(row[0], bytes) else None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's exceptions in AESG's words."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorname", "")
            if code.startswith("SQLITE_FULL"):
                raise CapacityError(f"{self._url}: no room left; free some space and try again") from error
            if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR", "SQLITE_MISMATCH")):
                raise CorruptionError(f"{self._url}: {error}") from error
            raise StorageError(f"{self._url}: {error}") from error

    def head(self) -> dict[str, Any] | None:
        try:
            return None if self._head is None else json.loads(self._head)
        except ValueError as error:
            raise CorruptionError(f"{self._url}: the head is not JSON") from error

    def get(self, column: Column, number: int, rows: int) -> np.ndarray | None:
        data = self._data(column.name, number)
        if data is None:
            return None
        if len(data) != rows * column.row_bytes:
            return np.frombuffer(data, np.uint8)
        return np.frombuffer(data, column.dtype).reshape(column.shape(rows))

    def refresh(self) -> bool:
        before = self._head
        with self._errors():
            self._look()
        return self._head != before

    def commit(self, changes: Changes) -> None:
        rows = [(name, number, block.tobytes()) for (name, number), block in changes.puts.items()]
        rows.append(("head", 0, json.dumps(changes.head).encode()))
        with self._errors():
            self._db.execute("ROLLBACK")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("REPLACE INTO blocks VALUES (?, ?, ?)", rows)
                self._db.executemany("DELETE FROM blocks WHERE name = ? AND number = ?", changes.drops)
                self._db.execute("COMMIT")
                # SQLite drops the end of a damaged log without a word; so none is left where readers and room allow.
                self._db.execute("PRAGMA busy_timeout = 0")
                with suppress(sqlite3.OperationalError):
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._db.execute("PRAGMA busy_timeout = 5000")
            finally:
                self._look()

    def reclaim(self) -> None:
        with self._errors():
            self._db.execute("ROLLBACK")
            try:
                self._db.execute("VACUUM")
            finally:
                self._look()

    def stats(self) -> dict[str, Any]:
        files = self._path.parent.glob(f"{self._path.name}*")
        return {"bytes_on_disk": sum(file.stat().st_blocks * 512 for file in files)}

    def forked(self) -> None:
        _INHERITED.append(self._db)
        if self._lock is not None:
            self._lock.forget()

    def close(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()
        if self._lock is not None:
            self._lock.release()


def _open(url: StoreURL, mode: Mode, vector_dim: int | None, options: Mapping[str, Any]) -> BlockStore:
    path = url.local_path()
    if not path.exists():
        if mode == "r":
            raise NotFoundError(f"{url}: there is no database")
        if vector_dim is None:
            raise InvalidInputError(f"{url}: a new store needs vector_dim=…")
        with os_errors("creating", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
    name = str(StoreURL("sqlite", "", str(path)))
    container = SqliteContainer(path, name, writable=mode == "a")
    return BlockStore(name, container, vector_dim=vector_dim, read_only=mode == "r")


BACKEND = Backend(
    scheme="sqlite",
    summary="blocks in an SQLite database; an example of a backend of one's own",
    open=_open,
    promises=lambda options: PROMISES,
)
