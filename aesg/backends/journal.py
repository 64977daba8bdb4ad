"""A redo journal: what makes the commits of a local backend atomic, and durable if asked.

A commit appends one entry that says, in the backend's own encoding, what the files will hold; then the backend applies
it to the files in place. A crash during the append leaves an entry whose checksum is wrong: it never happened. A crash
while applying leaves a whole entry: whoever opens the store for writing next applies all entries again, in order, which
is harmless because entries say what bytes are to be, not how to change them.

The layout, little-endian: a header of 4096 bytes (magic, boot id, and three words that readers watch: the generation
and offset of the newest entry, and the generation that has been applied; seven more are the backend's, and an eighth is
the crc32 of those), then entries of
magic u32, crc32 u32 (of the rest), generation u64, length u64 and the payload, padded to 8 bytes. Entries are valid as
far as magic, checksum and consecutive generations reach; after `restart` new ones overwrite the old, whose generations
are lower: the chain ends.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.backends.files import boot_id, os_errors, read_exactly, replace_file, sync_data, write_all
from aesg.errors import CorruptionError, FormatVersionError

_MAGIC: Final = b"AESGJRN"  # and the version, a digit
_ENTRY_MAGIC: Final = 0x59525445
_ENTRY: Final = struct.Struct("<IIQQ")
_NUMBERS: Final = struct.Struct("<QQ")
_HEADER_SIZE: Final = 4096
_WORDS_AT: Final = 64
_GENERATION, _OFFSET, _APPLIED = range(3)
_MARKS: Final = 7
_ZEROS: Final = bytes(1 << 20)
"""What a synced journal grows by beyond a small entry: an fdatasync into blocks that exist costs half of one that
allocates."""
_SMALL: Final = 1 << 16
"""Bytes of an entry up to which that is worth it, and copying it together is cheaper than writing it in parts."""


class Journal:
    """One journal file, open for writing or for watching.

    Attributes:
        version: That of the entries in the file.

    Args:
        path: The file.
        create: Begin a new one, replacing what is there; otherwise open what is there.
        writable: Open for writing.
        sync: `append` returns when the entry is on the disk, not just in the page cache.
        version: Of the backend's own encoding of entries: what `create` writes, and the newest that is opened.

    Raises:
        FileNotFoundError: `create` is false and there is none.
        CorruptionError: It is not a journal.
        FormatVersionError: Its entries are of a newer version.
    """

    def __init__(
        self, path: Path, *, create: bool = False, writable: bool = True, sync: bool = False, version: int = 1
    ) -> None:
        self.path = path
        self._sync = sync
        if create:
            # Under another name until the header is whole; and a new file, since a reader may have the old one mapped.
            magic = _MAGIC + b"%d" % version
            words = np.zeros(3 + _MARKS + 1, "<u8")
            words[-1] = zlib.crc32(words[3:-1].tobytes())
            head = (magic + bytes(8) + boot_id()).ljust(_WORDS_AT, b"\0") + words.tobytes()
            replace_file(path, head.ljust(_HEADER_SIZE, b"\0"), sync=sync)
        self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            head = read_exactly(self._fd, _HEADER_SIZE, 0)
            if len(head) < _HEADER_SIZE or head[:7] != _MAGIC:
                raise CorruptionError(f"{path}: not a journal: expected {_HEADER_SIZE} bytes beginning with {_MAGIC!r}")
            if head[7:8] not in [b"%d" % known for known in range(1, version + 1)]:
                raise FormatVersionError(f"{path}: a journal of a newer version ({head[:8]!r})")
            self.version = int(head[7:8])
            self._boot = head[16:32]
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self._map = mmap.mmap(self._fd, _HEADER_SIZE, access=access)
        except BaseException:
            os.close(self._fd)
            raise
        # Aligned words, each stored and loaded at once: a kill leaves the old value or the new one.
        self._words: npt.NDArray[np.uint64] = np.ndarray((3 + _MARKS + 1,), "<u8", self._map, _WORDS_AT)
        self._end = _HEADER_SIZE
        self._size = os.fstat(self._fd).st_size
        self.inode = os.fstat(self._fd).st_ino

    @property
    def size(self) -> int:
        """Bytes that entries take."""
        return self._end - _HEADER_SIZE

    @property
    def generation(self) -> int:
        """Generation of the newest entry, as its writer announced it."""
        return int(self._words[_GENERATION])

    @property
    def applied(self) -> int:
        """Generation up to which the files hold what the entries say."""
        return int(self._words[_APPLIED])

    @property
    def restarted(self) -> bool:
        """Whether the machine was restarted since: what was not synced may be lost, in any order."""
        return any(self._boot) and self._boot != boot_id()

    @property
    def pending(self) -> bool:
        """Whether an entry may not have been applied: its writer died, or the page cache with the machine.

        So it is before the first entry too: the writer died, or is about to write it.
        """
        return self.restarted or not self._words[_OFFSET] or bool(self._words[_APPLIED] != self._words[_GENERATION])

    def append(self, generation: int, parts: Sequence[Any]) -> None:
        """Add an entry; when this returns, the commit has happened.

        Raises:
            CapacityError: The disk is full; the entry never happened.
        """
        length = sum(memoryview(p).nbytes for p in parts)
        small = length < _SMALL
        if small:
            parts = [b"".join(parts)]
        crc = zlib.crc32(_NUMBERS.pack(generation, length))
        for part in parts:
            crc = zlib.crc32(part, crc)
        buffers = [_ENTRY.pack(_ENTRY_MAGIC, crc, generation, length), *parts, bytes(-length % 8)]
        at = self._end
        end = at + _ENTRY.size + length + len(buffers[-1])
        with os_errors("writing", self.path):
            if self._sync and small and end > self._size:  # before the entry: that must not be there if this fails
                self._size = end + write_all(self._fd, [_ZEROS], end)
            write_all(self._fd, [b"".join(buffers)] if small else buffers, at)
            if self._sync:
                try:
                    sync_data(self._fd)
                except OSError:
                    with suppress(OSError):  # or a recovery would find it, whole
                        write_all(self._fd, [bytes(_ENTRY.size)], at)
                    raise
        self._end, self._size = end, max(end, self._size)
        # In this order: between the two the entry is pending, and no reader takes its state before it is applied.
        self._words[_GENERATION] = generation
        self._words[_OFFSET] = at

    def marks(self) -> list[int]:
        """Seven numbers that the backend keeps in the header; 0 at first. To be read when nothing is `pending`.

        Raises:
            CorruptionError: They are not what was set.
        """
        marks = self._words[3:-1]
        if zlib.crc32(marks.tobytes()) != int(self._words[-1]):
            raise CorruptionError(f"{self.path}: the header was damaged: a checksum of {int(self._words[-1])} is wrong")
        return marks.tolist()  # type: ignore[no-any-return]

    def set_marks(self, marks: Sequence[int]) -> None:
        """Set the first of those numbers. Not in the entries: a backend that recovers does without them."""
        self._words[3 : 3 + len(marks)] = marks
        self._words[-1] = zlib.crc32(self._words[3:-1].tobytes())

    def mark_applied(self, generation: int) -> None:
        """Say that the files hold everything up to this generation."""
        self._words[_APPLIED] = generation

    def mark_pending(self) -> None:
        """Say that entries are being applied again: killed meanwhile, nobody may take the files as they are."""
        self._words[_APPLIED] = self._words[_GENERATION] + np.uint64(1)

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """Valid entries from the first on: generation, payload. Afterwards new ones are appended behind them."""
        at, last = _HEADER_SIZE, None
        while (found := self._entry(at)) is not None and last in (None, found[0] - 1):
            last = found[0]
            yield found
            at += _ENTRY.size + len(found[1]) + -len(found[1]) % 8
            self._end = at

    def newest(self, size: int) -> tuple[int, bytes] | None:
        """Generation and the first `size` bytes of the entry that the header points to.

        For readers that keep the writer from committing meanwhile: what the header points to is whole, and its checksum
        is not computed again. None when nothing is where the header points.
        """
        at = int(self._words[_OFFSET])
        if not _HEADER_SIZE <= at < os.fstat(self._fd).st_size:
            return None
        head = read_exactly(self._fd, _ENTRY.size, at)
        if len(head) < _ENTRY.size:
            return None
        magic, _, generation, length = _ENTRY.unpack(head)
        if magic != _ENTRY_MAGIC or generation != self.generation:
            return None
        return generation, read_exactly(self._fd, min(size, length), at + _ENTRY.size)

    def _entry(self, at: int) -> tuple[int, bytes] | None:
        head = read_exactly(self._fd, _ENTRY.size, at)
        if len(head) < _ENTRY.size:
            return None
        magic, crc, generation, length = _ENTRY.unpack(head)
        if magic != _ENTRY_MAGIC or at + _ENTRY.size + length > os.fstat(self._fd).st_size:
            return None
        payload = read_exactly(self._fd, length, at + _ENTRY.size)
        if len(payload) < length or zlib.crc32(payload, zlib.crc32(head[8:])) != crc:
            return None
        return generation, payload

    def restart(self, generation: int, parts: Sequence[Any]) -> None:
        """Forget the entries for a new first one; everything they say is in the files, and on the disk if need be."""
        before, self._end = self._end, _HEADER_SIZE
        try:
            self.append(generation, parts)
        except BaseException:
            self._end = before
            raise

    def trim(self) -> None:
        """Cut off what lies behind the entries: those of before a restart."""
        with os_errors("truncating", self.path):
            os.ftruncate(self._fd, self._end)
            self._size = self._end

    def close(self) -> None:
        """Close the file; the words stay readable no longer."""
        del self._words
        self._map.close()
        os.close(self._fd)


def entries_left(path: Path) -> Iterator[tuple[int, bytes]]:
    """Entries that are sound, from the first one on, in a file that may be no whole journal: generation, payload.

    Nothing of its header is believed: of a header that is damaged the entries are none the worse. A file that was never
    there has none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        at, last, size = _HEADER_SIZE, None, os.fstat(fd).st_size
        while len(head := read_exactly(fd, _ENTRY.size, at)) == _ENTRY.size:
            magic, crc, generation, length = _ENTRY.unpack(head)
            if magic != _ENTRY_MAGIC or at + _ENTRY.size + length > size or last not in (None, generation - 1):
                return
            payload = read_exactly(fd, length, at + _ENTRY.size)
            if zlib.crc32(payload, zlib.crc32(head[8:])) != crc:
                return
            yield generation, payload
            last = generation
            at += _ENTRY.size + length + -length % 8
    finally:
        os.close(fd)
