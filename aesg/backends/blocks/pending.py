"""What is not in blocks: rows appended since the last merge, and values changed since."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.records import Columns, Rows, distinct

Fields = Mapping[str, tuple[np.dtype[Any], int | None]]
"""Field → dtype and width (None for scalars)."""

_GROUP_BITS: Final = 4
"""Rows are marked in groups of 16: 64 KB of marks a million rows, which stay in a core's cache."""


class Tail:
    """Rows from `first` on, in arrays with room to grow.

    How many of them count is for others to say: each state has its own count, and rows below it never change. So a
    snapshot can share the tail with the writer.

    Args:
        fields: What a row has.
        first: Row number of the first.
    """

    def __init__(self, fields: Fields, first: int) -> None:
        self.first = first
        self._fields = fields
        self._room = 0
        self._columns: Columns = {name: self._array(name, 0) for name in fields}

    def _array(self, name: str, rows: int) -> npt.NDArray[Any]:
        dtype, width = self._fields[name]
        return np.empty(rows if width is None else (rows, width), dtype)

    def put(self, start: int, columns: Columns, defaults: Mapping[str, Any]) -> None:
        """Write whole rows from row `start` on; fields that are not given get their default."""
        n = len(next(iter(columns.values())))
        first = start - self.first
        self._reserve(first, first + n)
        for name, column in self._columns.items():
            column[first : first + n] = columns[name] if name in columns else defaults[name]

    def _reserve(self, keep: int, rows: int) -> None:
        if rows <= self._room:
            return
        self._room = max(rows, 2 * self._room if keep else 0, 64)
        for name, old in self._columns.items():
            new = self._array(name, self._room)
            new[:keep] = old[:keep]
            self._columns[name] = new

    def view(self, field: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows start:stop where they lie."""
        return self._columns[field][start - self.first : stop - self.first]

    def gather(self, field: str, rows: Rows) -> npt.NDArray[Any]:
        """Rows, copied."""
        return np.asarray(self._columns[field][rows - self.first])

    def write(self, field: str, rows: Rows, values: npt.NDArray[Any]) -> None:
        """Overwrite rows that nobody else can see yet."""
        self._columns[field][rows - self.first] = values


_NONE: Final = np.empty(0, np.int64)
_NO_TAIL: Final = Tail({}, 0)


class Patches:
    """New values for some rows; a patched row has a value for every field here.

    Args:
        fields: The fields.
        count: Rows that can be patched: 0 to count - 1.
    """

    def __init__(self, fields: Fields, count: int) -> None:
        self.fields = fields
        self._count = count
        self._slots: dict[int, int] = {}
        # Most rows that are read were not patched, and this tells most of them without asking the dictionary. It and
        # the tail are made with the first patch: most transactions make none.
        self._marks = np.empty(0, np.bool_)
        self._tail = _NO_TAIL
        self._order: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def rows(self) -> Rows:
        """The patched rows, in the order in which they were first patched."""
        return self._tail.view("row", 0, len(self)) if self._slots else _NONE

    def values(self, field: str) -> npt.NDArray[Any]:
        """The values of a field, aligned with `rows`; only where there are patches."""
        return self._tail.view(field, 0, len(self))

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return len(self) * sum(dtype.itemsize * (width or 1) for dtype, width in self.fields.values())

    def find(self, rows: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Which of `rows` are patched: their positions, and their slots."""
        if not self._slots:
            return _NONE, _NONE
        where = np.flatnonzero(self._marks[rows >> _GROUP_BITS])
        slots = np.array([self._slots.get(row, -1) for row in rows[where].tolist()], np.int64)
        return where[slots >= 0], slots[slots >= 0]

    def between(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Which of the rows start:stop are patched: their positions counted from `start`, and their slots."""
        if not self._slots:
            return _NONE, _NONE
        if self._order is None:
            self._order = np.argsort(self.rows, kind="stable")
        ordered = self.rows[self._order]
        first, last = np.searchsorted(ordered, [start, stop])
        return ordered[first:last] - start, self._order[first:last]

    def set(self, rows: Rows, columns: Columns, current: Callable[[Rows, Sequence[str]], Columns]) -> None:
        """Set fields of rows (of a row given twice the last counts); `current` reads what the other fields have."""
        if not len(rows):
            return
        lacking = np.array([row for row in distinct(rows).tolist() if row not in self._slots], np.int64)
        if len(lacking):
            others = [name for name in self.fields if name not in columns]
            given = current(lacking, others) if others else {}
            if not self._slots:
                self._marks = np.zeros((self._count >> _GROUP_BITS) + 1, np.bool_)
                self._tail = Tail({"row": (np.dtype(np.int64), None), **self.fields}, 0)
            start = len(self)
            self._tail.put(start, {"row": lacking, **given}, dict.fromkeys(columns, 0))
            self._slots.update(zip(lacking.tolist(), range(start, start + len(lacking)), strict=True))
            self._marks[lacking >> _GROUP_BITS] = True
            self._order = None
        slots = np.array([self._slots[row] for row in rows.tolist()], np.int64)
        for name, values in columns.items():
            self._tail.write(name, slots, values)

    def set_slots(self, field: str, slots: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> None:
        """Set a field of rows that are patched."""
        self._tail.write(field, slots, values)

    def set_all(self, rows: Rows, columns: Columns) -> None:
        """Set every field of rows."""
        self.set(rows, columns, _nothing)

    def update(self, other: Patches) -> None:
        """Take over what another one has."""
        if len(other):
            self.set_all(other.rows, {name: other.values(name) for name in other.fields})

    def resized(self, count: int) -> Patches:
        """A copy for more rows, which shares nothing."""
        copy = Patches(self.fields, count)
        copy.update(self)
        return copy

    def grow(self, count: int) -> None:
        """Admit more rows."""
        self._count = max(self._count, count)
        groups = (count >> _GROUP_BITS) + 1
        if self._slots and groups > len(self._marks):
            self._marks = np.concatenate([self._marks, np.zeros(max(groups - len(self._marks), groups), np.bool_)])


def _nothing(rows: Rows, fields: Sequence[str]) -> Columns:
    raise AssertionError("every field was given")
