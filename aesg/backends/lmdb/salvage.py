"""What is left of a damaged data.mdb. LMDB itself is not asked: it follows what is damaged wherever that leads.

Every page that looks like a leaf is taken for one, be it in the tree or not. So a damaged branch, root or meta page
loses nothing, and what earlier commits left is found too; the checksums of blocks tell which of them are of the newest.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.backends.blocks.container import Block, Column
from aesg.backends.files import os_errors
from aesg.backends.lmdb import pages
from aesg.backends.lmdb.container import block_key
from aesg.errors import CorruptionError, NotFoundError

_PAGE_BYTES: Final = (4096, 16384, 8192, 32768, 2048, 1024, 512)
_LEAF: Final = 2
_BIG: Final = 1
_MOST: Final = 16
"""Versions of one block that are looked at."""


class View:
    """One head, and the blocks of every commit."""

    def __init__(self, head: Mapping[str, Any], rubble: Rubble) -> None:
        self.head: Mapping[str, Any] | None = head
        self._rubble = rubble

    def find(self, column: Column, number: int, rows: int) -> Iterator[Block]:
        size = rows * column.row_bytes
        for data in self._rubble.found(block_key(column.name, number)):
            if data.nbytes == size:
                yield np.frombuffer(data, column.dtype).reshape(column.shape(rows))
            elif column.name == "log":
                yield np.frombuffer(data, np.uint8)

    def inferred(self) -> dict[str, Any] | None:
        return None


class Rubble:
    """A file of pages, whatever they are.

    Args:
        path: The file.

    Raises:
        NotFoundError: There is none.
        CorruptionError: There is nothing in it that LMDB wrote.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with os_errors("reading", path):
            if not path.exists():
                raise NotFoundError(f"{path}: there is no such file")
            with path.open("rb") as file:
                try:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except ValueError as error:
                    raise CorruptionError(f"{path}: the file is empty") from error
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._places: dict[bytes, list[tuple[int, int]]] = {}
        for size in _PAGE_BYTES:
            if self._take_in(size):
                break
        else:
            raise CorruptionError(f"{path}: no page of it is one that LMDB writes")

    def found(self, key: bytes) -> Iterator[memoryview]:
        """All that lies under a key, the likeliest first."""
        for start, size in self._places.get(key, ())[:_MOST]:
            yield memoryview(self._map)[start : start + size]

    def views(self) -> Iterator[View]:
        """Commits whose heads are left, the newest first."""
        heads: list[tuple[tuple[int, int], Mapping[str, Any]]] = []
        for start, size in self._places.get(pages.HEAD_KEY, ()):
            record = self._map[start : start + size]
            commit = int.from_bytes(record[:8], "little")
            try:
                head = json.loads(pages.checked_head(record, commit, self._path))
            except (CorruptionError, ValueError, RecursionError):
                continue
            if isinstance(head, dict) and all(isinstance(head.get(name), int) for name in ("generation", "merge")):
                heads.append(((head["generation"], head["merge"]), head))
        heads.sort(key=lambda found: found[0], reverse=True)
        yield from (View(head, self) for _, head in heads)

    def _take_in(self, size: int) -> bool:
        """Note every entry of every leaf, with pages of that size; whether there are any."""
        count = len(self._bytes) // size
        if not count:
            return False
        whole = self._bytes[: count * size].reshape(count, size)
        header = np.ascontiguousarray(whole[:, : pages.HEADER])
        numbers, words = header[:, :8].view(np.uint64)[:, 0], header.view(np.uint16)
        flags, lower, upper = words[:, 5], words[:, 6], words[:, 7]
        good = (flags == _LEAF) & (numbers == np.arange(count, dtype=np.uint64))
        good &= (lower > pages.HEADER) & (lower <= upper) & (upper <= size) & (((lower | upper) & 1) == 0)
        in_tree = self._tree(size, count)
        leaves = np.flatnonzero(good)
        for page in sorted(leaves.tolist(), key=lambda page: (page not in in_tree, -page)):
            self._take_leaf(whole[page], page * size, count, size, int(lower[page]))
        return pages.HEAD_KEY in self._places

    def _take_leaf(self, page: npt.NDArray[np.uint8], begin: int, count: int, size: int, lower: int) -> None:
        words = page.view(np.uint16)
        for offset in words[pages.HEADER // 2 : lower // 2].tolist():
            if offset < lower or offset > size - 8 or offset & 1:
                continue
            low, high, flags, key_size = words[offset // 2 : offset // 2 + 4].tolist()
            start, length = offset + 8 + key_size, low | high << 16
            if not 0 < key_size <= 511 or start > size or flags > _BIG:
                continue
            key = page[offset + 8 : start].tobytes()
            if flags != _BIG:
                if start + length <= size:
                    self._places.setdefault(key, []).append((begin + start, length))
            elif start + 8 <= size:
                run = int.from_bytes(page[start : start + 8].tobytes(), "little")
                at = run * size + pages.HEADER
                if 2 <= run < count and at + length <= len(self._bytes):
                    self._places.setdefault(key, []).append((at, length))

    def _tree(self, size: int, count: int) -> set[int]:
        """Leaves of the newest commit, as far as the way to them is sound: what they hold is likelier than the rest."""
        try:
            newer, _ = pages.read_metas(self._path)
        except CorruptionError:
            return set()
        if newer.page_bytes != size or newer.main.root >= count:
            return set()
        return {page for page in pages.reachable(self._path, newer) if page < count}

    def close(self) -> None:
        """Let go of the file."""
        self._places.clear()  # blocks may still be referred to: the map goes with them
