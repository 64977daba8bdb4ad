"""What a backend under `BlockStore` implements: a place for blocks that commits sets of changes, all or nothing.

A graph is kept in columns (see `layout`); a column is cut into blocks of equal numbers of rows, of which the last may
be short. A block's key is its column's name and its number. Beside the blocks there is one *head*: a small JSON object
that says what the blocks mean. `BlockStore` does everything else: checksums of heads and blocks, the cache, pending
writes, the adjacency, the log. So a container need not understand what it holds, nor check it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg.errors import UnsupportedError
from aesg.protocols import Capabilities, Violation
from aesg.records import JSON

Key: TypeAlias = tuple[str, int]
"""A column's name and a block's number."""
Block: TypeAlias = npt.NDArray[Any]
"""Rows of one column: its dtype (little-endian), [n] or [n, width], C-contiguous, n <= its block_rows."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: A path, e.g. "nodes/vector"; letters, digits, "_" and "/".
        dtype: Little-endian dtype of an item.
        width: Items of a row; None for a column of scalars.
        block_rows: Rows of a block; a power of two.
        dimension: What its rows are, for readers of the format: "node", "edge", …
    """

    name: str
    dtype: np.dtype[Any]
    width: int | None
    block_rows: int
    dimension: str

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * (self.width or 1)

    def shape(self, rows: int) -> tuple[int, ...]:
        """Shape of so many rows."""
        return (rows,) if self.width is None else (rows, self.width)

    def blocks(self, rows: int) -> int:
        """Number of blocks that hold so many rows."""
        return -(-rows // self.block_rows)

    def rows_in(self, number: int, rows: int) -> int:
        """Rows of block `number` when the column has `rows` in all."""
        return min(rows - number * self.block_rows, self.block_rows)


@dataclass(frozen=True, slots=True)
class Changes:
    """What one commit changes.

    Attributes:
        head: The new head. Plain JSON with string keys; a container gives back what compares equal.
        columns: Every column of the store by name, whether it changes or not.
        lengths: Rows of every column after the commit.
        puts: Blocks to put, new ones and others in place of what was there. Each has as many rows as
            `column.rows_in(number, lengths[column])`; of the column "log" any block may have fewer. They are views of
            arrays that change later: whoever keeps them copies them.
        drops: Blocks to drop: exactly those that a column which gets shorter no longer has.
        text: The head as JSON, where somebody had to write it already.
    """

    head: dict[str, JSON]
    columns: Mapping[str, Column]
    lengths: Mapping[str, int]
    puts: Mapping[Key, Block]
    drops: Sequence[Key]
    text: bytes = b""

    def head_as_json(self) -> bytes:
        """The new head, for containers that keep it as JSON."""
        return self.text or json.dumps(self.head, separators=(",", ":")).encode()


class BlockContainer(ABC):
    """A place for blocks, opened for writing or for reading, seen as of one commit.

    One thread at a time calls any method (the store holds a lock). Exceptions are `AESGError`s: `CapacityError` when
    there is no room, `ConflictError` when another writer was first, `CorruptionError` for what cannot have been put,
    `StorageError` for the rest of what a system refuses.

    Attributes:
        capabilities: What the store promises; also before anything was committed.
        block_bytes: About how large the blocks of a *new* store are to be (an existing one keeps its own).
        log_blocks: After how many blocks of log to merge: few where opening a block is slow.
        resident: Blocks given by `get` take no memory of this process (views of a mapped file): the cache need not
            count them.
        scratch: Where to keep for a while what is going to be put, when it is much; None: the system has a place.
        version: Changes whenever the view has moved to another commit, by `commit`, `refresh` or entering `reading`.
    """

    capabilities: Capabilities
    block_bytes: int = 1 << 16
    log_blocks: int = 1024
    resident: bool = False
    scratch: Path | None = None
    version: int = 0

    # --- reading: as of the commit that the view is at ---------------------------------------------------------------

    @abstractmethod
    def head(self) -> dict[str, JSON] | None:
        """The head; None when nothing was ever committed."""

    @abstractmethod
    def get(self, column: Column, number: int, rows: int) -> Block | None:
        """A block, as it was put.

        Args:
            column: The column.
            number: The block.
            rows: How many rows it is known to have, and has to be given with.

        Returns:
            An array that stays valid, and unchanged, for as long as it is referenced or until `close`, or, in a
            `resident` container, until a commit replaces or drops this block, or `refresh` says True. None when there
            is no such block. What has another number of bytes is given as it is, as bytes (uint8) if need be: the store
            checks. Of the column "log" whole blocks are asked for, and what was put is given, be it followed by zeros.
        """

    def refresh(self) -> bool:
        """Move to the newest commit; whether the view has moved. A container that writes is there already."""
        return False

    def reading(self) -> AbstractContextManager[None]:
        """Surrounds every read of the store, several calls of `get` among them.

        A container whose blocks are overwritten in place by a writer in another process keeps that writer out
        meanwhile, after moving the view to the newest commit (`version` says whether it moved).
        """
        return nullcontext()

    def snapshot(self) -> BlockContainer:
        """A second container, for reading, that stays at the commit that this one is at; closed by its user.

        Only for `capabilities.snapshots`.
        """
        raise UnsupportedError("this container has no snapshots")

    # --- writing: only on a container that was opened for it -----------------------------------------------------

    @abstractmethod
    def commit(self, changes: Changes) -> None:
        """Make all changes the newest commit, at once and as durably as `capabilities` say; the view moves there.

        When it raises, nothing has changed. After `CapacityError` the next commit may succeed.
        """

    def flush(self) -> None:
        """Bring what was committed to where it belongs; for containers that put that off."""
        return

    def reclaim(self) -> None:
        """Give space that dropped blocks took back to the file system, as far as that can be done now."""
        return

    # --- both --------------------------------------------------------------------------------------------------------

    def verify(self) -> list[Violation]:
        """What is wrong with the container itself; the store checks heads and blocks."""
        return []

    def stats(self) -> dict[str, Any]:
        """`bytes_on_disk`, and what else there is to tell."""
        return {"bytes_on_disk": 0}

    def forked(self) -> None:
        """Called in a forked child, at once: let go of the writer's lock without releasing it."""
        return

    def reopen(self) -> Self:
        """A container over the same data, for reading, in a process that was forked with this one open."""
        raise UnsupportedError("this container cannot be used after a fork")

    @abstractmethod
    def close(self) -> None:
        """Release everything; called once."""
