"""What is left of a damaged hierarchy: every key is read for itself, and no document of an array is believed.

What the arrays are like is known from the head. Where the root's document is gone, and the head with it, one is made of
the documents of the arrays: their shapes say how many rows there are, and the checksums are arrays like the others.
"""

from __future__ import annotations

import errno
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from aesg.backends.blocks import layout
from aesg.backends.blocks.container import Block, Column
from aesg.backends.blocks.store import FORMAT
from aesg.backends.zarr import codecs, documents
from aesg.backends.zarr.archive import BROKEN
from aesg.backends.zarr.directory import decided
from aesg.backends.zarr.documents import Layout
from aesg.errors import AESGError, CorruptionError

Read = Callable[[str], bytes | None]
"""Key → what it holds, None where it holds nothing that can be read."""
_LAYOUTS: Final = [Layout(codec, separator) for codec in documents.CODECS for separator in documents.SEPARATORS]


class Keys:
    """Rubble, and its only view: keys of a hierarchy.

    Args:
        read: Reads them.
        close: Called at the end.
    """

    def __init__(self, read: Read, close: Callable[[], None] = lambda: None) -> None:
        self._read = read
        self._close = close
        self.head: Mapping[str, Any] | None = None
        self._layout: Layout | None = None
        data = read(documents.ROOT)
        if data is not None:
            try:
                self.head, self._layout = documents.read_root(data, documents.ROOT)
            except AESGError:
                self.head = _head_in(data)

    def views(self) -> Iterator[Keys]:
        """Itself."""
        yield self

    def find(self, column: Column, number: int, rows: int) -> Iterator[Block]:
        """The block under its key, if the chunk can be decoded."""
        for found in [self._layout] if self._layout is not None else _LAYOUTS:
            data = self._read(documents.chunk_key(column, number, found))
            if data is None or len(data) > codecs.most_bytes(column):
                continue
            try:
                yield codecs.decode(column, data, rows, found.codec, column.name)
            except CorruptionError:
                continue

    def inferred(self) -> dict[str, Any] | None:
        """A head made from the documents of the arrays."""
        shapes = {}
        try:
            vector = self._document("nodes/vector")
            dim = int(vector["shape"][1])
            block_bytes = 8 * int(self._document("nodes/id")["chunk_grid"]["configuration"]["chunk_shape"][0])
            columns = layout.columns(dim, block_bytes)
            for name in columns:
                if not name.startswith(layout.CHECKSUMS):
                    shapes[name] = int(self._document(name)["shape"][0])
        except (CorruptionError, KeyError, IndexError, TypeError, ValueError):
            return None
        counts = [shapes[name] for name in ("nodes/id", "edges/source_row", "events/timestamp")]
        return {
            "format": FORMAT,
            "vector_dim": dim,
            "block_bytes": block_bytes,
            "nodes": counts[0],
            "edges": counts[1],
            "events": counts[2],
            "merged": counts,
            "sorted_edges": 1
            if shapes[layout.START]
            else 0,  # how many nobody knows: fewer are looked for than there are
            "sorted_nodes": max(0, shapes[layout.START] - 1),
            "sorted_length": shapes["out/ref"],
            "log": [shapes[layout.LOG] // layout.LOG_BLOCK, 0, 0],
            "checksums": {
                name: None for name in columns if name != layout.LOG and not name.startswith(layout.CHECKSUMS)
            },
            "attrs": {},
        }

    def _document(self, name: str) -> dict[str, Any]:
        data = self._read(documents.document_key(name))
        if data is None:
            raise CorruptionError(f"{name}: no document")
        return documents.parse(data, name)

    def close(self) -> None:
        """Let go of it."""
        self._close()


def _head_in(data: bytes) -> Mapping[str, Any] | None:
    """The head in a root document whose layout is damaged."""
    try:
        found = json.loads(data)["attributes"][documents.HEAD]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def in_directory(directory: Path) -> Keys:
    """What is left of a store in a folder, with what its journal had decided."""
    pending = decided(directory)

    def read(key: str) -> bytes | None:
        where = pending.get(key, directory / key)
        if not isinstance(where, Path):
            return where
        try:
            return where.read_bytes() if where.stat().st_size <= documents.DOCUMENT_LIMIT else None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            return None

    return Keys(read)


def in_archive(path: Path) -> Keys:
    """What is left of a store in a ZIP file.

    Raises:
        CorruptionError: Its directory cannot be read.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, *BROKEN) as error:
        raise CorruptionError(f"{path}: expected a ZIP file: {error}") from error

    def read(key: str) -> bytes | None:
        try:
            member = archive.getinfo(key)
            return archive.read(member) if member.file_size <= documents.DOCUMENT_LIMIT else None
        except (KeyError, OSError, *BROKEN):
            return None

    return Keys(read, archive.close)
