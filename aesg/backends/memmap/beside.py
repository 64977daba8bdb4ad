"""Columns that lie beside the records of the nodes, while a writer has the store open.

A consolidation changes a few bytes of every record: in place that is a page for every seven nodes to be made writable,
and written back later; as a column it is a few megabytes in a row. So a field that a commit changes everywhere goes,
whole, to a file of its own. There the writer and every reader have it from then on, and the records get it at the next
checkpoint.

Nothing depends on these files after a crash: the journal has each column, and recovery puts it into the records. How
many rows each has is in the journal's header, which changes only while readers are kept out.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.backends.files import os_errors, write_all
from aesg.errors import CapacityError, CorruptionError
from aesg.records import NODE_DEFAULTS, NODE_FIELDS, Columns

FIELDS: Final = tuple(NODE_DEFAULTS)
"""Those that may lie beside, in the order of their numbers in the journal's header. (`id` and `head_edge_idx` are read
by loops that know only records.)"""
LEAST: Final = 512
"""Rows from which on it is worth a file."""
_SUFFIX: Final = ".column"


class Beside:
    """The columns beside one file of records.

    Attributes:
        columns: Field → [rows], the file's first rows, mapped; they count in place of the records'.
        stale: Fields that the records are behind in.
    """

    def __init__(self, directory: Path, *, writable: bool) -> None:
        self._directory = directory
        self._writable = writable
        self.columns: Columns = {}
        self.stale: set[str] = set()

    def rows(self) -> list[int]:
        """Rows of each of `FIELDS`, 0 where it does not lie beside."""
        return [len(self.columns.get(field, ())) for field in FIELDS]

    # Writing

    def put(self, field: str, values: npt.NDArray[Any]) -> bool:
        """Overwrite a column, at least as long as it was; False where it is to go into the records.

        On a full disk, too: then it lies beside no longer.
        """
        if field not in FIELDS or len(values) < max(LEAST, len(self.columns.get(field, ()))):
            return False
        if len(values) == len(self.columns.get(field, ())):
            self.columns[field][:] = values
        else:
            try:
                self._write(field, values)
            except CapacityError:
                self.columns.pop(field, None)
                self.stale.discard(field)
                return False
        self.stale.add(field)
        return True

    def _write(self, field: str, values: npt.NDArray[Any]) -> None:
        """Written, not stored into a mapping: that kills the process when the disk is full. Never made shorter."""
        path = self._path(field)
        with os_errors("writing", path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                write_all(fd, [np.ascontiguousarray(values)], 0)
                self.columns[field] = self._mapped(field, fd, len(values))
            finally:
                os.close(fd)

    # Reading beside the writer

    def follow(self, rows: Sequence[int]) -> None:
        """Have the columns that the journal's header speaks of.

        Raises:
            CorruptionError: One is missing, or shorter than that.
        """
        for field, count in zip(FIELDS, rows, strict=True):
            if not count:
                self.columns.pop(field, None)
            elif len(self.columns.get(field, ())) != count:
                path = self._path(field)
                with os_errors("opening", path):
                    try:
                        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    except FileNotFoundError as error:
                        raise CorruptionError(f"{path}: missing; expected a column of {count} rows") from error
                    try:
                        self.columns[field] = self._mapped(field, fd, count)
                    finally:
                        os.close(fd)

    # Both

    def _path(self, field: str) -> Path:
        return self._directory / f"nodes.{field}{_SUFFIX}"

    def _mapped(self, field: str, fd: int, count: int) -> npt.NDArray[Any]:
        kind = NODE_FIELDS[field]
        size, have = count * kind.itemsize, os.fstat(fd).st_size
        if have < size:
            raise CorruptionError(f"{self._path(field)}: {have} bytes, expected {size}: it was truncated")
        access = mmap.ACCESS_WRITE if self._writable else mmap.ACCESS_READ
        return np.ndarray((count,), kind, mmap.mmap(fd, size, access=access))

    def close(self) -> None:
        """Let go of the mappings; the files stay."""
        self.columns = {}


def left_behind(directory: Path) -> Iterator[Path]:
    """The files of columns, if there are any."""
    return (path for field in FIELDS if (path := directory / f"nodes.{field}{_SUFFIX}").exists())


def remove(directory: Path) -> None:
    """Remove the files of columns. Who has one mapped keeps it."""
    for path in left_behind(directory):
        with os_errors("removing", path):
            path.unlink(missing_ok=True)
