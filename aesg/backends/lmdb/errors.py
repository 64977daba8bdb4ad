"""LMDB's errors in our own words."""

from __future__ import annotations

import errno
from pathlib import Path
from types import TracebackType
from typing import Final

import lmdb

from aesg.backends.files import os_errors
from aesg.errors import AESGError, CapacityError, CorruptionError, StorageError

_FULL: Final = (lmdb.DiskError, lmdb.TxnFullError)
_FULL_CODES: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DAMAGED: Final = (
    lmdb.BadDbiError,
    lmdb.BadValsizeError,
    lmdb.CorruptedError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.PageFullError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)


class lmdb_errors:  # noqa: N801 - used like a function, with lmdb_errors("reading", path):
    """Turn an lmdb.Error or an OSError into one of ours. A class, not a generator: it stands around every read."""

    __slots__ = ("_doing", "_path")

    def __init__(self, doing: str, path: Path) -> None:
        self._doing = doing
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, lmdb.Error):
            raise translated(error, f"{self._doing} {self._path}") from error
        os_errors(self._doing, self._path).__exit__(kind, error, trace)


def translated(error: lmdb.Error, what: str) -> AESGError:
    """The exception to raise for one of LMDB's."""
    if isinstance(error, lmdb.MapFullError):
        return CapacityError(f"{what}: the map is full; open it with a larger map_size, nothing was lost")
    if isinstance(error, _FULL) or code(error) in _FULL_CODES:
        return CapacityError(f"{what}: {error}; free some space and try again, nothing was lost")
    if isinstance(error, lmdb.MapResizedError):
        return StorageError(f"{what}: the store grew beyond the map_size of this handle; open it with a larger one")
    if isinstance(error, lmdb.PanicError):
        return StorageError(f"{what}: {error}; close the store and open it again, it holds the last commit")
    if isinstance(error, _DAMAGED):
        return CorruptionError(f"{what}: {error}; expected an LMDB environment that this store wrote")
    return StorageError(f"{what}: {error}")


def code(error: lmdb.Error) -> int:
    """The number of what went wrong: negative for LMDB's own errors, else an errno; 0 when there is none."""
    return int(getattr(error, "code", 0))
