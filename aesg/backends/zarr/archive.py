"""A Zarr hierarchy packed as a ZIP file: for reading."""

from __future__ import annotations

import errno
import lzma
import zipfile
import zlib
from pathlib import Path
from typing import Any, Self

from aesg.backends.blocks.container import Changes
from aesg.backends.files import os_errors
from aesg.backends.zarr import documents
from aesg.backends.zarr.arrays import ArrayContainer
from aesg.errors import CorruptionError, NotFoundError, ReadOnlyError
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

BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What `zipfile` raises where an archive is not what it should be."""


class ZipContainer(ArrayContainer):
    """Arrays in a ZIP file, as they were when it was opened. A file that nobody writes to promises what it holds."""

    log_blocks = 128
    capabilities = Capabilities(
        durability=Durability.PROCESS_CRASH,
        atomicity=Atomicity.GRAPH,
        readers=Readers.OTHER_PROCESSES,
        reader_view=ReaderView.FIXED,
        writers=Writers.ONE_PROCESS,
        snapshots=False,
        space_reclaim=SpaceReclaim.ON_COMPACT,
        integrity=Integrity.CHECKSUMS,
        remote=False,
    )

    def __init__(self, url: str, path: Path, codec: str | None) -> None:
        super().__init__(url, codec)
        self._path = path
        self._zip = _opened(url, path)
        try:
            self._load_root()
            if self._head is None:
                raise NotFoundError(f"{url}: this ZIP file holds no store: it has no {documents.ROOT} at its top")
        except BaseException:
            self._zip.close()
            raise

    def _read(self, key: str, limit: int) -> bytes | None:
        with os_errors("reading", self._path):
            try:
                member = self._zip.getinfo(key)
                if member.file_size > limit:
                    raise CorruptionError(f"{self._place(key)}: {member.file_size} bytes, expected at most {limit}")
                with self._zip.open(member) as file:
                    return file.read(limit)
            except KeyError:
                return None
            except (OSError, *BROKEN) as error:
                if _is_systems(error):
                    raise
                raise CorruptionError(f"{self._place(key)}: cannot be unpacked: {error}") from error

    def commit(self, changes: Changes) -> None:
        raise ReadOnlyError(f"{self.url}: a ZIP file is only read")

    def stats(self) -> dict[str, Any]:
        with os_errors("looking at", self._path):
            return {**super().stats(), "bytes_on_disk": self._path.stat().st_blocks * 512}

    def reopen(self) -> Self:
        return type(self)(self.url, self._path, None)

    def close(self) -> None:
        self._zip.close()


def recognises(path: Path) -> bool:
    """Whether a file is a ZIP with a store of ours in it."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(documents.ROOT)
            return member.file_size <= documents.DOCUMENT_LIMIT and documents.is_ours(archive.read(member))
    except (KeyError, OSError, *BROKEN):
        return False


def _opened(url: str, path: Path) -> zipfile.ZipFile:
    with os_errors("opening", path):
        try:
            return zipfile.ZipFile(path)
        except FileNotFoundError as error:
            raise NotFoundError(f"{url}: there is no such file") from error
        except (OSError, *BROKEN) as error:
            if _is_systems(error):
                raise
            raise CorruptionError(f"{url}: expected a ZIP file: {error}") from error


def _is_systems(error: BaseException) -> bool:
    """Whether the system refuses; not where a garbled directory leads outside the file, or a decompressor gives up."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
