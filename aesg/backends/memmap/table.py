"""Files of fixed-size records, and the changes that a transaction lays over one.

Records are interleaved (all fields of a node together), so a gather of whole records is one memory trip each and a
column is read with a stride. Reading and overwriting go through one shared mapping; *appending* is a write to the file,
because a store into a hole of a sparse file kills the process when the disk is full.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from aesg.backends.files import os_errors, sync_data, write_all
from aesg.records import Columns

Array = npt.NDArray[Any]

_SPARSE_ROWS: Final = 256
"""So few changed rows are always kept as single records."""


class Records(Protocol):
    """What tables read: a record file, or one with a transaction's changes over it."""

    count: int

    def gather(self, field: str, rows: npt.NDArray[np.int64]) -> Array:
        """One field of rows: [n], the vector [n, D]."""

    def chunk(self, field: str, start: int, stop: int) -> Array:
        """One field of start:stop."""


class RecordFile:
    """A mapped file of `dtype` records, of which the first `count` are committed.

    Attributes:
        count: Committed records.
        capacity: Records that the file has room for.
        views: Field → strided view of the whole file; a sub-array (the vector) as one opaque item, which NumPy gathers
            three times faster than floats that are not aligned.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], count: int, *, writable: bool) -> None:
        self.path = path
        self.dtype = dtype
        self.count = count
        self._writable = writable
        with os_errors("opening", path):
            self.fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            self._map()
        except BaseException:
            os.close(self.fd)
            raise

    def _map(self) -> None:
        with os_errors("mapping", self.path):
            self.capacity = os.fstat(self.fd).st_size // self.dtype.itemsize
            access = mmap.ACCESS_WRITE if self._writable else mmap.ACCESS_READ
            mapping = mmap.mmap(self.fd, self.capacity * self.dtype.itemsize, access=access)
        self.whole: Array = np.ndarray((self.capacity,), f"V{self.dtype.itemsize}", mapping)
        self.views: dict[str, Array] = {}
        for name, (kind, offset, *_) in (self.dtype.fields or {}).items():
            item = np.dtype(f"V{kind.itemsize}") if kind.subdtype else kind
            self.views[name] = np.ndarray((self.capacity,), item, mapping, offset, (self.dtype.itemsize,))

    def _typed(self, field: str, values: Array) -> Array:
        kind = self.dtype[field]
        if kind.subdtype is None:
            return values
        base, shape = kind.subdtype
        return values.view(base).reshape(-1, *shape)

    def _item(self, field: str, values: Array) -> Array:
        """`values` as the view of `field` stores them."""
        if self.dtype[field].subdtype is None:
            return values
        flat = np.ascontiguousarray(values, self.dtype[field].base)
        return flat.view(self.views[field].dtype).reshape(len(values))

    def gather(self, field: str, rows: npt.NDArray[np.int64]) -> Array:
        return self._typed(field, self.views[field][rows])

    def chunk(self, field: str, start: int, stop: int) -> Array:
        return self._typed(field, self.views[field][start:stop].copy())

    def records(self, rows: npt.NDArray[np.int64]) -> Array:
        """Whole records, a structured array [n]."""
        return self.whole[rows].view(self.dtype)

    def store(self, field: str, where: Any, values: Array) -> None:
        """Overwrite a field of rows (an index array or a slice) that were written before."""
        self.views[field][where] = self._item(field, values)

    def append(self, first: int, records: Array) -> None:
        """Write records from row `first` on, growing the file as needed; they are not committed by that."""
        end = first + len(records)
        if end > self.capacity:
            self.resize(max(end, self.capacity + self.capacity // 2))
        with os_errors("writing", self.path):
            write_all(self.fd, [records.view(np.uint8)], first * self.dtype.itemsize)

    def resize(self, capacity: int) -> None:
        """Make room for so many records; new room is a hole in the file."""
        with os_errors("growing", self.path):
            os.ftruncate(self.fd, capacity * self.dtype.itemsize)
        self._map()

    def reach(self, count: int) -> bool:
        """Map what another handle has added, if that is needed; False when there are not `count` records."""
        if count > self.capacity:
            self._map()
        return count <= self.capacity

    def clear_tail(self) -> None:
        """Make everything past the committed records zero bytes again."""
        with os_errors("truncating", self.path):
            os.ftruncate(self.fd, self.count * self.dtype.itemsize)
            os.ftruncate(self.fd, self.capacity * self.dtype.itemsize)

    def sync(self) -> None:
        """Bring the file to the disk."""
        with os_errors("syncing", self.path):
            sync_data(self.fd)

    def close(self) -> None:
        """Close the file. Mappings go with the arrays that refer to them."""
        self.views = {}
        del self.whole
        os.close(self.fd)


class PendingRecords:
    """A record file with the uncommitted changes of one transaction over it.

    Three kinds of change, each where it is cheapest:

    * appended rows are in the file already, past the committed ones, where nobody looks;
    * a few changed rows are copied whole (`_copies`, found through `_slot_of`);
    * a column changed at many rows is held whole (`_columns`), or as far as a transform has come (`_filled`).

    Attributes:
        base_count: Committed records.
        count: Records, those appended in this transaction included.
        appended: Whether there was an append, be it one that failed half-way.
    """

    def __init__(self, file: RecordFile) -> None:
        self.file = file
        self.base_count = self.count = file.count
        self.appended = False
        self._slot_of: npt.NDArray[np.uint32] | None = None  # row → slot + 1; its pages exist only where touched
        self._copied_rows = np.empty(0, np.int64)
        self._copies = np.empty(0, file.dtype)
        self._copied = 0
        self._columns: Columns = {}
        self._filled: dict[str, int] = {}  # rows of a held column that count; past them the file does

    @property
    def changed(self) -> bool:
        """Whether there is anything to commit."""
        return self.count > self.base_count or self._copied > 0 or bool(self._columns)

    # Reading

    def gather(self, field: str, rows: npt.NDArray[np.int64]) -> Array:
        out = self.file.gather(field, rows)
        if field in self._columns:
            held = rows < self._filled[field]
            out[held] = self._columns[field][rows[held]]
        if self._slot_of is not None:
            slots = self._slot_of[np.minimum(rows, self.base_count)]
            hit = np.flatnonzero(slots)
            if len(hit):
                out[hit] = self._copies[field][slots[hit] - 1]
        return out

    def chunk(self, field: str, start: int, stop: int) -> Array:
        out = self.file.chunk(field, start, stop)
        if field in self._columns and start < self._filled[field]:
            part = self._columns[field][start : min(stop, self._filled[field])]
            out[: len(part)] = part
        if self._copied:
            rows = self._copied_rows[: self._copied]
            inside = np.flatnonzero((rows >= start) & (rows < stop))
            if len(inside):
                out[rows[inside] - start] = self._copies[field][inside]
        return out

    # Writing

    def append(self, records: Array) -> None:
        """Append records, [n] of the file's dtype."""
        self.appended = True
        self.file.append(self.count, records)
        self.count += len(records)

    def write(self, rows: npt.NDArray[np.int64], columns: Columns) -> None:
        """Overwrite fields of rows; of a row given twice the last value counts."""
        old = rows < self.base_count
        if not old.all():
            new = ~old
            for field, values in columns.items():
                self.file.store(field, rows[new], values[new])
            rows, columns = rows[old], {field: values[old] for field, values in columns.items()}
            if not len(rows):
                return
        # Whichever puts fewer bytes into the journal: copies of the records, or the columns.
        column_bytes = sum(self.file.dtype[field].itemsize for field in columns if field not in self._columns)
        if len(rows) > _SPARSE_ROWS and len(rows) * self.file.dtype.itemsize > self.base_count * column_bytes:
            for field in columns:
                self._hold(field, self.base_count)
        held = {field for field in columns if field in self._columns}
        for field in held:
            self._hold(field, self.base_count)
            self._columns[field][rows] = columns[field]
        if len(held) < len(columns):
            places = self._copy(rows)
            for field, values in columns.items():
                self._copies[field][places] = values
        elif self._slot_of is not None:
            slots = self._slot_of[rows]
            hit = np.flatnonzero(slots)
            for field, values in columns.items():
                self._copies[field][slots[hit] - 1] = values[hit]

    def put_chunk(self, start: int, columns: Columns) -> None:
        """Overwrite fields of the rows from `start` on; what did not change costs nothing."""
        for field, values in columns.items():
            stop = start + len(values)
            if stop <= self.base_count and 0 < start == self._filled.get(field):
                self._fill(field, start, values)  # a transform goes on that changes the column everywhere
                continue
            # Bit by bit: 0.0 and -0.0 are equal, and a NaN that another program left is not even equal to itself.
            bits = f"u{self.file.dtype[field].base.itemsize}"
            now = self.chunk(field, start, stop)
            differs = now.view(bits) != np.ascontiguousarray(values).view(bits)
            changed = np.flatnonzero(differs.any(axis=1) if differs.ndim > 1 else differs)
            if not len(changed):
                continue
            dense = len(changed) > len(values) // 16 and stop <= self.base_count
            if dense and field not in self._columns:
                self._hold(field, start)
                self._fill(field, start, values)
                continue
            self.write(start + changed, {field: values[changed]})

    def _hold(self, field: str, stop: int) -> None:
        """Hold a column, with at least its first `stop` rows."""
        if field not in self._columns:
            kind = self.file.dtype[field]
            self._columns[field] = np.empty((self.base_count, *kind.shape), kind.base)
            self._filled[field] = 0
        filled = self._filled[field]
        if filled < stop:
            self._columns[field][filled:stop] = self.chunk(field, filled, stop)
            self._filled[field] = stop

    def _fill(self, field: str, start: int, values: Array) -> None:
        """Append to what is held of a column, which ends at `start`."""
        stop = start + len(values)
        self._columns[field][start:stop] = values
        self._filled[field] = stop
        if self._copied:
            rows = self._copied_rows[: self._copied]
            inside = np.flatnonzero((rows >= start) & (rows < stop))
            self._copies[field][inside] = values[rows[inside] - start]

    def _copy(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Slots of the copies of rows, which are made where there are none."""
        if self._slot_of is None:
            # One more than rows, for `gather` to look up appended rows in: it stays 0.
            self._slot_of = np.zeros(self.base_count + 1, np.uint32)
        slots: npt.NDArray[np.uint32] = self._slot_of[rows]
        missing = np.unique(rows[slots == 0])
        if len(missing):
            copies = self.file.records(missing)
            for field, column in self._columns.items():
                held = missing < self._filled[field]
                copies[field][held] = column[missing[held]]
            end = self._copied + len(missing)
            if end > len(self._copies):
                room = max(end, 2 * len(self._copies), 64)
                self._copies = np.concatenate([self._copies, np.empty(room - len(self._copies), self.file.dtype)])
                self._copied_rows = np.concatenate(
                    [self._copied_rows, np.empty(room - len(self._copied_rows), np.int64)]
                )
            self._copies[self._copied : end] = copies
            self._copied_rows[self._copied : end] = missing
            self._slot_of[missing] = np.arange(self._copied + 1, end + 1, dtype=np.uint32)
            self._copied = end
            slots = self._slot_of[rows]
        return slots.astype(np.int64) - 1

    # Committing

    def held_columns(self) -> Columns:
        """Columns to overwrite, as many of the first rows as are given; before the records."""
        return {field: column[: self._filled[field]] for field, column in self._columns.items()}

    def copied_records(self) -> tuple[npt.NDArray[np.int64], Array]:
        """Rows and whole records to overwrite."""
        return self._copied_rows[: self._copied], self._copies[: self._copied]

    def apply(self) -> None:
        """Store the changes into the file, and count the appended records as committed."""
        for field, column in self.held_columns().items():
            self.file.store(field, slice(0, len(column)), column)
        if self._copied:
            rows, records = self.copied_records()
            self.file.whole[rows] = records.view(self.file.whole.dtype)
        self.file.count = self.count
