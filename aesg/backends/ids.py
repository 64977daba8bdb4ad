"""id → row: an open-addressing hash table of rows.

The table holds rows only; the ids that they stand for are read from the nodes. So a hit is always checked against the
store, and a row that was rolled back, or that a crash left behind, is simply not found. It is derived: built when it is
first asked; memmap keeps it in a sidecar file when it closes, and builds it anew where that is missing, foreign or
damaged.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg.backends.files import replace_file
from aesg.errors import CapacityError
from aesg.records import Ids, Rows

_MAGIC: Final = b"AESGIDS1"
_HEADER: Final = struct.Struct("<8sQQII")  # magic, rows, table bits, crc of sampled ids, crc of the table
_MULTIPLIER: Final = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: Fibonacci hashing, spreads runs of ids
_MULTIPLIERS: Final = np.array([_MULTIPLIER], np.uint64)  # an array: scalars would warn of the overflow that is meant
_MIN_BITS: Final = 8
_WORTH_KEEPING: Final = 4096
_MAX_ROWS: Final = (1 << 32) - 2
_BLOCK: Final = 1 << 16


Find: TypeAlias = Callable[[Ids, npt.NDArray[np.int64], npt.NDArray[np.uint32], int], Rows]
"""Ids, where to begin with each, the table, and the number of nodes → rows."""


Enter: TypeAlias = Callable[[Ids, int, npt.NDArray[np.uint32], np.uint64, np.uint64], None]
"""Ids of the rows from the second on, the table, and how an id's place in it is found: multiplier and shift."""


class Nodes(Protocol):
    """Where the index reads ids."""

    @property
    def count(self) -> int:
        """Number of rows."""

    def chunk(self, field: str, start: int, stop: int) -> npt.NDArray[Any]:
        """The field of rows start:stop."""

    def gather(self, field: str, rows: Rows) -> npt.NDArray[Any]:
        """The field of rows."""


class IdIndex:
    """Rows by id.

    Attributes:
        rows: Rows 0 to `rows` - 1 are in the table.
    """

    def __init__(self, table: npt.NDArray[np.uint32] | None = None, rows: int = 0) -> None:
        self._table = np.zeros(1 << _MIN_BITS, np.uint32) if table is None else table  # row + 1; 0: free
        self._used = int(np.count_nonzero(self._table))  # rows, and entries that a rollback left
        self.rows = rows
        self._set_shift()

    def _set_shift(self) -> None:
        self._mask = len(self._table) - 1
        self._shift = np.uint64(64 - self._mask.bit_length())

    def _home(self, ids: Ids) -> npt.NDArray[np.int64]:
        return ((ids * _MULTIPLIERS) >> self._shift).astype(np.int64)

    def _home_of_one(self, id: int) -> int:
        return (id * _MULTIPLIER & 0xFFFFFFFFFFFFFFFF) >> int(self._shift)

    def catch_up(self, nodes: Nodes, enter: Enter | None = None) -> None:
        """Take in the rows that were appended since; see `add`."""
        count = nodes.count
        if self.rows >= count:
            return
        if count > _MAX_ROWS:
            raise CapacityError(f"the id index holds at most {_MAX_ROWS} rows")
        new = count - self.rows
        if 2 * (self._used + new) > len(self._table):
            self._grow(count)
        while self.rows < count:
            stop = min(count, self.rows + _BLOCK)
            self._take_in(nodes.chunk("id", self.rows, stop), enter)

    def add(self, ids: Ids, nodes: Nodes, enter: Enter | None = None) -> None:
        """Take in the rows that come next, before anybody can read them from `nodes`, which ends where they begin.

        Args:
            ids: uint64 [n].
            nodes: Where the ids before them are.
            enter: A compiled form of what is here done in array operations: several times as fast.
        """
        self.catch_up(nodes, enter)
        count = self.rows + len(ids)
        if count > _MAX_ROWS:
            raise CapacityError(f"the id index holds at most {_MAX_ROWS} rows")
        if 2 * (self._used + len(ids)) > len(self._table):
            self._grow(count)
            self.catch_up(nodes, enter)
        for start in range(0, len(ids), _BLOCK):
            self._take_in(ids[start : start + _BLOCK], enter)

    def roll_back(self, count: int) -> None:
        """Rows from `count` on were not committed: others will come in their place, and have to be taken in."""
        self.rows = min(self.rows, count)

    def _grow(self, count: int) -> None:
        """Make the table anew, empty, with room for so many rows."""
        bits = max(_MIN_BITS, (3 * count).bit_length())
        self._table = np.zeros(1 << bits, np.uint32)
        self._used = self.rows = 0
        self._set_shift()

    def _take_in(self, ids: Ids, enter: Enter | None) -> None:
        if enter is not None and len(ids) > 1:
            enter(ids, self.rows, self._table, _MULTIPLIERS[0], self._shift)
            self._used += len(ids)
        else:
            self._insert(ids, self.rows)
        self.rows += len(ids)

    def _insert(self, ids: Ids, first: int) -> None:
        n = len(ids)
        self._used += n
        if n == 1:
            at = self._home_of_one(int(ids[0]))
            while self._table[at]:
                at = (at + 1) & self._mask
            self._table[at] = first + 1
            return
        # In the order of the table, so that it is walked once; of equal slots, and so of equal ids, the older first.
        keys = self._home(ids) << n.bit_length() | np.arange(n)
        keys.sort()
        slots = keys >> n.bit_length()
        entries = ((keys & ((1 << n.bit_length()) - 1)) + (first + 1)).astype(np.uint32)
        while len(slots):
            free = np.flatnonzero(self._table[slots] == 0)[::-1]
            # Backwards: of several rows that want one slot the first gets it, as the older of two equal ids should.
            self._table[slots[free]] = entries[free]
            waiting = np.flatnonzero(self._table[slots] != entries)
            slots, entries = (slots[waiting] + 1) & self._mask, entries[waiting]

    def lookup(self, ids: Ids, nodes: Nodes, find: Find | None = None) -> Rows:
        """Rows of ids, -1 where absent; of equal ids the first row.

        Args:
            ids: uint64 [n].
            nodes: Where the ids are.
            find: A compiled form of the search, which here is in array operations: several times as fast.
        """
        if self.rows < nodes.count:
            self.catch_up(nodes)
        if len(ids) == 1:
            return np.array([self._lookup_one(int(ids[0]), nodes)])
        if find is not None:
            return find(ids, self._home(ids), self._table, nodes.count)
        out = np.full(len(ids), -1, np.int64)
        if not nodes.count:  # the table may still know rows that were rolled back, and there is no row to compare with
            return out
        slots = self._home(ids)
        looking = np.arange(len(ids))
        while True:
            entries = self._table[slots]
            taken = np.flatnonzero(entries)
            if len(taken) < len(entries):
                looking, slots, entries = looking[taken], slots[taken], entries[taken]
            if not len(entries):
                return out
            rows = entries.astype(np.int64) - 1
            known = rows < nodes.count
            same = nodes.gather("id", np.where(known, rows, 0)) == ids[looking]
            same &= known
            found = np.flatnonzero(same)
            out[looking[found]] = rows[found]
            if len(found) == len(rows):
                return out
            others = np.flatnonzero(~same)
            looking, slots = looking[others], (slots[others] + 1) & self._mask

    def _lookup_one(self, id: int, nodes: Nodes) -> int:
        # One at a time is how concepts are born: plain integers cost a tenth of array calls then.
        at = self._home_of_one(id)
        while entry := int(self._table[at]):
            row = entry - 1
            if row < nodes.count and int(nodes.chunk("id", row, entry)[0]) == id:
                return row
            at = (at + 1) & self._mask
        return -1

    def save(self, path: Path, nodes: Nodes) -> None:
        """Keep the table beside the store, if it is worth it."""
        if nodes.count < _WORTH_KEEPING:
            path.unlink(missing_ok=True)
            return
        self.catch_up(nodes)
        head = _HEADER.pack(_MAGIC, self.rows, self._mask.bit_length(), _sample(nodes, self.rows), _crc(self._table))
        replace_file(path, head + self._table.tobytes(), sync=False)

    @classmethod
    def load(cls, path: Path, nodes: Nodes) -> IdIndex:
        """The table kept beside the store, or an empty one that will catch up when it is first asked."""
        try:
            raw = path.read_bytes()
            magic, rows, bits, sample, crc = _HEADER.unpack_from(raw)
        except (OSError, struct.error):
            return cls()
        if magic != _MAGIC or rows > nodes.count or not _MIN_BITS <= bits <= 40:
            return cls()
        if len(raw) != _HEADER.size + 4 * (1 << bits) or sample != _sample(nodes, rows):
            return cls()
        table: npt.NDArray[Any] = np.frombuffer(raw, np.uint32, offset=_HEADER.size)
        return cls(table.copy(), rows) if _crc(table) == crc else cls()


def _sample(nodes: Nodes, rows: int) -> int:
    """A checksum of some of the ids: another store's table, or one of before a compaction, does not match."""
    where = np.linspace(0, rows - 1, min(rows, 256)).astype(np.int64)
    return _crc(nodes.gather("id", where))


def _crc(array: npt.NDArray[Any]) -> int:
    return zlib.crc32(array.view(np.uint8).data)
