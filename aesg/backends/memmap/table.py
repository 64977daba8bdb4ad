"""Files of fixed-size records, and the changes that a transaction lays over one.

Records are interleaved (all fields of a node together), so a gather of whole records is one memory trip each and a
column is read with a stride. Reading and overwriting go through one shared mapping; *appending* is a write to the file,
because a store into a hole of a sparse file kills the process when the disk is full.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from aesg.backends.files import os_errors, sync_data, write_all
from aesg.backends.memmap.beside import Beside
from aesg.backends.memmap.kernels import LOOPS
from aesg.records import Columns
from aesg.threads import in_threads, parts

Array = npt.NDArray[Any]

_FEW: Final = 256
"""So few changed rows are always kept as cells."""
_WRITE: Final = 1 << 19
"""Bytes of one write. The page cache keeps together what one write brings, up to megabytes; and the first store into a
page since it was written to the disk costs the more, the more is kept together with it."""
CACHE_LINE: Final = 64
"""Bytes that a processor fetches together."""
_WORTH_A_THREAD: Final = 4096
"""Rows to gather that are worth waking a thread for."""
_ROW_BYTES: Final = 8
"""What a cell takes beside its value."""
_ALIGNED: Final = 8
"""Where several fields are gathered, the values of each begin at a multiple of so many bytes."""
_AT_ONCE: Final = 4096
"""Records that get several columns one after the other: those they lie in stay in a core's caches meanwhile."""


class Records(Protocol):
    """What tables read: a record file, or one with a transaction's changes over it."""

    count: int

    def gather(self, field: str, rows: npt.NDArray[np.int64]) -> Array:
        """One field of rows: [n], the vector [n, D]."""

    def gather_fields(self, fields: Sequence[str], rows: npt.NDArray[np.int64]) -> Columns:
        """Several fields of rows: those of a record are fetched together."""

    def chunk(self, field: str, start: int, stop: int) -> Array:
        """One field of start:stop."""

    def columns(self, fields: Sequence[str], start: int, stop: int) -> Columns:
        """Several fields of start:stop: those that lie close together are fetched together."""


class RecordFile:
    """A mapped file of `dtype` records, of which the first `count` are committed.

    Attributes:
        count: Committed records.
        capacity: Records that the file has room for.
        views: Field → strided view of the whole file; a sub-array (the vector) as one opaque item, which NumPy gathers
            three times faster than floats that are not aligned. Of a field that lies beside, the records' own values.
        beside: Columns that count in place of what the records have.
    """

    def __init__(
        self, path: Path, dtype: np.dtype[Any], count: int, *, writable: bool, beside: Beside | None = None
    ) -> None:
        self.path = path
        self.dtype = dtype
        self.count = count
        self.beside = beside or Beside(path.parent, writable=False)  # of edges nothing ever lies beside
        self._may_lie_beside = beside is not None
        self._places: dict[tuple[str, ...], npt.NDArray[np.int64]] = {}
        self._writable = writable
        self._items = {
            name: (np.dtype(f"V{kind.itemsize}") if kind.subdtype else kind, offset)
            for name, (kind, offset, *_) in (dtype.fields or {}).items()
        }
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
        self._bytes: Array = np.ndarray((self.capacity * self.dtype.itemsize,), np.uint8, mapping)
        self.whole: Array = np.ndarray((self.capacity,), f"V{self.dtype.itemsize}", mapping)
        self._spans: dict[tuple[int, int], Array] = {}
        self.views: dict[str, Array] = {
            name: np.ndarray((self.capacity,), item, mapping, offset, (self.dtype.itemsize,))
            for name, (item, offset) in self._items.items()
        }

    def _typed(self, field: str, values: Array) -> Array:
        kind = self.dtype[field]
        if kind.subdtype is None:
            return values
        base, shape = kind.subdtype
        return values.view(base).reshape(-1, *shape)

    def _item(self, field: str, values: Array) -> Array:
        """`values` as the view of `field` stores them."""
        item, _ = self._items[field]
        if item.kind != "V":
            return values
        flat = np.ascontiguousarray(values, self.dtype[field].base)
        return flat.view(item).reshape(len(values))

    def gather(self, field: str, rows: npt.NDArray[np.int64]) -> Array:
        if self._items[field][0].kind == "V" and (compiled := LOOPS.gatherer(len(rows))) is not None:
            return self._together(compiled, (field,), rows)[field]
        column = self.beside.columns.get(field)
        if column is None:
            return self._typed(field, self.views[field][rows])
        if not len(rows) or int(rows.max()) < len(column):
            return np.asarray(column[rows])
        found, known = self.views[field][rows], rows < len(column)
        found[known] = column[rows[known]]
        return found

    def gather_fields(self, fields: Sequence[str], rows: npt.NDArray[np.int64]) -> Columns:
        within = tuple(field for field in fields if field not in self.beside.columns)
        compiled = LOOPS.gatherer(len(rows)) if len(within) > 1 else None
        out = {} if compiled is None else self._together(compiled, within, rows)
        return {field: out[field] if field in out else self.gather(field, rows) for field in fields}

    def _together(self, compiled: Callable[..., None], fields: tuple[str, ...], rows: npt.NDArray[np.int64]) -> Columns:
        """`gather_fields` of fields that lie in the records."""
        places = self._places.get(fields)
        if places is None:
            found = [(offset, item.itemsize) for item, offset in map(self._items.__getitem__, fields)]
            places = self._places[fields] = np.array(found, np.int64)
        widths = places[:, 1].tolist()
        count, item = len(rows), self.dtype.itemsize
        begins, total = [], 0
        for width in widths:
            begins.append(total)
            total += -(-count * width // _ALIGNED) * _ALIGNED
        raw, starts = np.empty(total, np.uint8), np.array(begins, np.int64)
        shares = parts(count, _WORTH_A_THREAD)
        if len(shares) == 1:
            compiled(self._bytes, rows, item, places, 0, starts, raw)
        else:
            in_threads(lambda some: compiled(self._bytes, rows[some], item, places, some.start, starts, raw), shares)
        out: Columns = {}
        for field, begin, width in zip(fields, begins, widths, strict=True):
            values, kind = raw[begin : begin + count * width], self.dtype[field]
            out[field] = values.view(kind) if kind.subdtype is None else self._typed(field, values)
        return out

    def chunk(self, field: str, start: int, stop: int) -> Array:
        column = self.beside.columns.get(field)
        if column is None:
            return self._typed(field, self.views[field][start:stop].copy())
        if stop <= len(column):
            return column[start:stop].copy()
        found = self.views[field][start:stop].copy()
        found[: max(0, len(column) - start)] = column[start:]
        return found

    def columns(self, fields: Sequence[str], start: int, stop: int) -> Columns:
        within = [field for field in fields if field not in self.beside.columns]
        span = self.span(within)
        out: Columns = {}
        if span is not None:
            first, width = span
            if (first, width) not in self._spans:
                shape, stride = (self.capacity,), (self.dtype.itemsize,)
                self._spans[span] = np.ndarray(shape, f"V{width}", self._bytes, first, stride)
            near = self._spans[span][start:stop].copy().view(np.uint8)
            for field in within:
                item, offset = self._items[field]
                if item.kind != "V":
                    out[field] = np.ndarray((stop - start,), item, near, offset - first, (width,)).copy()
        for field in fields:
            if field not in out:
                out[field] = self.chunk(field, start, stop)
        return {field: out[field] for field in fields}

    def span(self, fields: Sequence[str]) -> tuple[int, int] | None:
        """Where in a record the numbers among some fields lie, and how many bytes that is; None if not close."""
        places = [(offset, item.itemsize) for item, offset in map(self._items.__getitem__, fields) if item.kind != "V"]
        if len(places) < 2:
            return None
        first = min(offset for offset, _ in places)
        width = max(offset + size for offset, size in places) - first
        return (first, width) if width <= CACHE_LINE else None

    def records(self, rows: npt.NDArray[np.int64]) -> Array:
        """Whole records, a structured array [n]."""
        found = self.whole[rows].view(self.dtype)
        for field in self.beside.columns:
            found[field] = self.gather(field, rows)
        return found

    def store(self, field: str, where: Any, values: Array) -> None:
        """Overwrite a field of rows (an index array or a slice) of records that were written before."""
        self.views[field][where] = self._item(field, values)

    def store_cells(self, field: str, rows: npt.NDArray[np.int64], values: Array) -> None:
        """Overwrite a field of committed rows; of a row given twice the last value counts."""
        column = self.beside.columns.get(field)
        if column is not None:
            below = rows < len(column)
            if below.all():
                column[rows] = values
                if field in self.beside.stale:
                    return
            else:
                column[rows[below]] = values[below]
        self.store(field, rows, values)

    def store_columns(self, columns: Columns) -> None:
        """Overwrite fields of the first rows, as many as are given."""
        into_records: Columns = {}
        for field, values in columns.items():
            if self._may_lie_beside and self.beside.put(field, values):
                continue
            if field in self.beside.columns:
                column = self.beside.columns[field]
                column[: len(values)] = values[: len(column)]
            into_records[field] = values
        self._store_side_by_side(into_records)

    def bring_up(self) -> None:
        """Put what lies beside into the records, where those are behind. It lies beside still, for who reads it."""
        self._store_side_by_side({field: self.beside.columns[field] for field in sorted(self.beside.stale)})
        self.beside.stale.clear()

    def _store_side_by_side(self, columns: Columns) -> None:
        """Store columns into the first records, going through those once."""

        def some(rows: slice) -> None:
            for start in range(rows.start, rows.stop, _AT_ONCE):
                stop = min(start + _AT_ONCE, rows.stop)
                for field, values in columns.items():
                    if start < len(values):
                        part = values[start:stop]
                        self.store(field, slice(start, start + len(part)), part)

        # In threads: what takes the time is making pages writable.
        in_threads(some, parts(max(map(len, columns.values()), default=0), _WORTH_A_THREAD))

    def fill(self, records: Array, columns: Columns) -> None:
        """Put columns into records in memory, [n] of the file's dtype."""
        for field, values in columns.items():
            item, offset = self._items[field]
            if item.kind == "V" and len(records) > 8:  # opaque items are copied faster than floats out of alignment
                opaque = np.ndarray((len(records),), item, records, offset, records.strides)
                opaque[:] = self._item(field, values)
            else:
                records[field] = values

    def reserve(self, count: int) -> None:
        """See to it that there is room for so many records."""
        if count > self.capacity:
            self.resize(max(count, self.capacity + self.capacity // 2))

    def append(self, first: int, records: Array) -> None:
        """Write records from row `first` on, growing the file as needed; they are not committed by that."""
        self.reserve(first + len(records))
        data = records.view(np.uint8)
        begin = first * self.dtype.itemsize
        with os_errors("writing", self.path):
            for at in range(0, len(data), _WRITE):
                write_all(self.fd, [data[at : at + _WRITE]], begin + at)

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
        self.beside.close()
        self.views = {}
        del self.whole, self._bytes
        os.close(self.fd)


class _Cells:
    """Values of one field of some rows.

    Of a row given twice the last counts, within a call too. So they are kept in the order in which they came: storing
    them in that order ends with the right ones. A transaction that changes a field once and never looks at it again,
    as most do, needs no more than that; the way from a row to its value is made when it is first needed.
    """

    def __init__(self, kind: np.dtype[Any], base_count: int) -> None:
        self._base_count = base_count
        self._rows = np.empty(0, np.int64)
        self._values: Array = np.empty((0, *kind.shape), kind.base)
        self._count = 0
        self._slot_of: npt.NDArray[np.uint32] | None = None  # row → slot + 1; its pages exist only where touched

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """int64 [n]."""
        return self._rows[: self._count]

    @property
    def values(self) -> Array:
        """In the order of the rows, [n] or [n, D]."""
        return self._values[: self._count]

    def put(self, rows: npt.NDArray[np.int64], values: Array) -> None:
        """Add values of rows below the base count, or change those that are there."""
        if not self._count:  # copies: what is given may be the caller's own
            self._rows, self._values = rows.copy(), np.array(values, self._values.dtype, order="C")
            self._count, self._slot_of = len(rows), None
            return
        slot_of = self.index()
        slots = slot_of[rows]
        new = slots == 0
        if not new.all():
            known = ~new
            self._values[slots[known] - 1] = values[known]
            rows, values = rows[new], values[new]
        if len(rows):
            end = self._count + len(rows)
            if end > len(self._rows):
                room = max(end, 2 * self._count)
                self._rows, self._values = _with_room(self.rows, room), _with_room(self.values, room)
            self._rows[self._count : end] = rows
            self._values[self._count : end] = values
            slot_of[rows] = np.arange(self._count + 1, end + 1, dtype=np.uint32)
            self._count = end

    def index(self) -> npt.NDArray[np.uint32]:
        """uint32 [base count + 1], each row's position in `values`, plus 1; 0: it has none."""
        if self._slot_of is None:
            # One more than rows, to look up appended rows in: it stays 0.
            self._slot_of = np.zeros(self._base_count + 1, np.uint32)
            self._slot_of[self.rows] = np.arange(1, self._count + 1, dtype=np.uint32)
        return self._slot_of

    def lay_over(self, out: Array, rows: npt.NDArray[np.int64]) -> None:
        """Put into `out`, which has the field of these rows, the values that are here."""
        self._lay(out, self.index()[np.minimum(rows, self._base_count)])

    def lay_over_chunk(self, out: Array, start: int) -> None:
        """The same for `out` that has the rows from `start` on."""
        slots = self.index()[start : start + len(out)]
        self._lay(out[: len(slots)], slots)

    def _lay(self, out: Array, slots: npt.NDArray[np.uint32]) -> None:
        hit = np.flatnonzero(slots)
        if len(hit):
            out[hit] = self._values[slots[hit] - 1]


def _with_room(array: Array, room: int) -> Array:
    out = np.empty((room, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out


class PendingRecords:
    """A record file with the uncommitted changes of one transaction over it.

    Three kinds of change, each where it takes the fewest bytes, in memory and in the journal:

    * appended rows are in the file already, past the committed ones, where nobody looks;
    * a field changed at some rows is kept as cells: those rows, and their values;
    * a field changed at many rows is held as a column: all of it, or its first rows, as far as a transform has come.

    Where a field has both, the column counts for the rows that it holds and the cells for those past them.

    Attributes:
        base_count: Committed records.
        count: Records, those appended in this transaction included.
        appended: Whether there was an append, be it one that failed half-way.
    """

    def __init__(self, file: RecordFile) -> None:
        self.file = file
        self.base_count = self.count = file.count
        self.appended = False
        self._cells: dict[str, _Cells] = {}
        self._columns: Columns = {}
        self._filled: dict[str, int] = {}  # rows of a held column that count

    @property
    def changed(self) -> bool:
        """Whether there is anything to commit."""
        return self.count > self.base_count or bool(self._cells) or bool(self._columns)

    # Reading

    def gather(self, field: str, rows: npt.NDArray[np.int64]) -> Array:
        return self._changed(field, rows, self.file.gather(field, rows))

    def _changed(self, field: str, rows: npt.NDArray[np.int64], out: Array) -> Array:
        """`out`, which has the field of rows, with what was changed of it."""
        if field in self._cells:
            self._cells[field].lay_over(out, rows)
        if field in self._columns:
            held = rows < self._filled[field]
            out[held] = self._columns[field][rows[held]]
        return out

    def gather_fields(self, fields: Sequence[str], rows: npt.NDArray[np.int64]) -> Columns:
        out = self.file.gather_fields(fields, rows)
        return {field: self._changed(field, rows, values) for field, values in out.items()}

    def chunk(self, field: str, start: int, stop: int) -> Array:
        out = self.file.chunk(field, start, stop)
        self._lay_over(field, out, start, stop)
        return out

    def columns(self, fields: Sequence[str], start: int, stop: int) -> Columns:
        out = self.file.columns(fields, start, stop)
        for field, column in out.items():
            self._lay_over(field, column, start, stop)
        return out

    def _lay_over(self, field: str, out: Array, start: int, stop: int) -> None:
        """Put into `out`, which has the field of start:stop, what was changed of it."""
        if field in self._cells:
            self._cells[field].lay_over_chunk(out, start)
        if field in self._columns and start < self._filled[field]:
            part = self._columns[field][start : min(stop, self._filled[field])]
            out[: len(part)] = part

    def has_changed(self, field: str) -> bool:
        """Whether a committed row's field may differ from the file's."""
        return field in self._cells or field in self._columns

    def changes(self, field: str) -> tuple[Array, npt.NDArray[np.uint32], Array]:
        """The changes to a field, for loops that cannot call `gather`.

        Returns:
            Its first rows, which count before anything else; uint32 [m], each row's position in what follows, plus 1
            (0, and a row past the end, has none); values of single rows.
        """
        none = np.empty(0, self.file.dtype[field].base)
        held = self._columns.get(field, none)[: self._filled.get(field, 0)]
        if field not in self._cells:
            return held, np.empty(0, np.uint32), none
        return held, self._cells[field].index(), self._cells[field].values

    # Writing

    def reserve(self, n: int) -> None:
        """See to it that there is room for `n` more records."""
        self.appended = True  # or half-way there: a rollback will look
        self.file.reserve(self.count + n)

    def append(self, records: Array) -> None:
        """Append records, [n] of the file's dtype."""
        self.appended = True
        self.file.append(self.count, records)
        self.count += len(records)

    def write(self, rows: npt.NDArray[np.int64], columns: Columns) -> None:
        """Overwrite fields of rows; of a row given twice the last value counts."""
        if self.count > self.base_count:
            old = rows < self.base_count
            if not old.all():
                new = ~old
                for field, values in columns.items():
                    self.file.store(field, rows[new], values[new])
                rows, columns = rows[old], {field: values[old] for field, values in columns.items()}
        if len(rows):
            for field, values in columns.items():
                self._write_old(field, rows, values)

    def _write_old(self, field: str, rows: npt.NDArray[np.int64], values: Array) -> None:
        """Overwrite a field of committed rows."""
        filled = self._filled.get(field, 0)
        if filled:
            held = rows < filled
            self._columns[field][rows[held]] = values[held]
            if held.all():
                return
            rows, values = rows[~held], values[~held]
        if field not in self._cells:
            self._cells[field] = _Cells(self.file.dtype[field], self.base_count)
        cells = self._cells[field]
        cells.put(rows, values)
        if self._worth_a_column(field, len(cells), self.base_count - filled):
            self._hold(field, self.base_count)

    def _worth_a_column(self, field: str, changed: int, rows: int) -> bool:
        """Whether so many cells take more bytes than the field of so many rows."""
        width = self.file.dtype[field].itemsize
        return changed > _FEW and changed * (_ROW_BYTES + width) > rows * width

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
            filled = self._filled.get(field, 0)
            cells = len(changed) + len(self._cells.get(field, ()))
            if filled <= start and stop <= self.base_count and self._worth_a_column(field, cells, stop - filled):
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
            self._fill(field, filled, self.chunk(field, filled, stop))

    def _fill(self, field: str, start: int, values: Array) -> None:
        """Append to what is held of a column, which ends at `start`."""
        stop = start + len(values)
        self._columns[field][start:stop] = values
        self._filled[field] = stop
        if stop == self.base_count:
            self._cells.pop(field, None)

    # Committing

    def held_columns(self) -> Columns:
        """Columns to overwrite, as many of the first rows as are given."""
        return {field: column[: self._filled[field]] for field, column in self._columns.items()}

    def cells(self) -> Iterator[tuple[str, npt.NDArray[np.int64], Array]]:
        """Fields, rows and values to overwrite, in that order; no row that a held column has."""
        for field, cells in self._cells.items():
            rows, values, filled = cells.rows, cells.values, self._filled.get(field, 0)
            if filled:
                past = rows >= filled
                rows, values = rows[past], values[past]
            if len(rows):
                yield field, rows, values

    def apply(self) -> None:
        """Store the changes into the file, and count the appended records as committed."""
        self.file.store_columns(self.held_columns())
        for field, rows, values in self.cells():
            self.file.store_cells(field, rows, values)
        self.file.count = self.count
