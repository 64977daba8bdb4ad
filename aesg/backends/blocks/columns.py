"""Columns as they lie in blocks: every block is checked once, when it is loaded, and then read in place.

A gather takes rows from many blocks in one NumPy call: where a block is loaded is known, and the process's memory is
looked at as one array (`_memory`). A loop over blocks costs 1 µs a block, 5 to 10 times as much as the gather itself
when a frontier's edges lie all over the store.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.backends.blocks.container import Block, BlockContainer, Column, Key
from aesg.backends.blocks.layout import CHECKSUMS
from aesg.errors import CorruptionError
from aesg.records import Rows, distinct
from aesg.threads import in_threads, parts

_ADDRESSES: Final = 1 << 47
"""User addresses of 64-bit systems lie below, unless a process asks for more."""
_ORIGIN: Final = 16
"""NumPy takes address 0 for no array at all."""
_WIDE: Final = 1 << 14
"""Bytes of a row from which a loop over rows costs nothing beside the copying."""
_WORTH_THREADS: Final = 1 << 22
"""Bytes from which on threads save more than it takes to start them."""
_ABSENT: Final = -(1 << 62)
"""In place of an offset: the block is not loaded."""


class _Memory:
    """The process's memory as an array of items; only ever indexed where a loaded block lies."""

    def __init__(self, typestr: str, itemsize: int, stride: int) -> None:
        self.__array_interface__ = {
            "data": (_ORIGIN, True),
            "shape": ((_ADDRESSES - itemsize) // stride - 1,),
            "strides": (stride,),
            "typestr": typestr,
            "version": 3,
        }


@cache
def _memory(dtype: str, width: int | None) -> tuple[npt.NDArray[Any], int]:
    """The array for rows of that kind, and how many bytes its items are apart (an address may lie at any of them)."""
    item = np.dtype(dtype)
    if width is None:
        return np.asarray(_Memory(item.str, item.itemsize, item.itemsize)), item.itemsize
    row_bytes = item.itemsize * width
    stride = 16 if row_bytes % 16 == 0 else item.itemsize
    return np.asarray(_Memory(f"|V{row_bytes}", row_bytes, stride)), stride


def checksum(block: Block) -> int:
    """CRC-32 of a block's bytes."""
    return zlib.crc32(block.data if block.flags.c_contiguous else block.tobytes())


def checksums_of(blocks: Sequence[Block]) -> list[int]:
    """CRC-32 of each block; of many by all cores, for zlib does not hold the GIL meanwhile."""
    size = sum(block.nbytes for block in blocks)
    shares = parts(len(blocks), 1) if size >= _WORTH_THREADS else [slice(None)]
    found = in_threads(lambda some: [checksum(block) for block in blocks[some]], shares)
    return [crc for share in found for crc in share]


class LoadedColumn:
    """What is known of one column.

    Attributes:
        column: The column.
        rows: Its length.
        offsets: int64, by block number: what to add to a row's number (times `step`) to have its index in `memory`.
        used: int64, by block number: when it was last asked for.
        blocks: The loaded blocks; as long as they are here, the offsets are valid.
        checksums: uint32, by block number; None when not read yet.
        shift: A row's block number is the row shifted by so many bits.
        memory: See `_memory`.
        stride: Bytes between its items.
        step: Items of `memory` that a row takes.
    """

    __slots__ = ("blocks", "checksums", "column", "memory", "offsets", "rows", "shift", "step", "stride", "used")

    def __init__(self, column: Column, rows: int) -> None:
        self.column = column
        self.rows = rows
        self.shift = column.block_rows.bit_length() - 1
        self.memory, self.stride = _memory(column.dtype.str, column.width)
        self.step = column.row_bytes // self.stride
        count = column.blocks(rows)
        self.offsets = np.full(count, _ABSENT, np.int64)
        self.used = np.zeros(count, np.int64)
        self.blocks: dict[int, Block] = {}
        self.checksums: npt.NDArray[np.uint32] | None = None

    def resize(self, rows: int) -> None:
        """Take another length; blocks that are loaded stay."""
        self.rows = rows
        count = self.column.blocks(rows)
        kept = min(count, len(self.offsets))
        offsets, used = np.full(count, _ABSENT, np.int64), np.zeros(count, np.int64)
        offsets[:kept], used[:kept] = self.offsets[:kept], self.used[:kept]
        self.offsets, self.used = offsets, used

    def hold(self, number: int, block: Block) -> None:
        """Take in a loaded block."""
        self.blocks[number] = block
        first_row = number * self.column.block_rows
        self.offsets[number] = (block.ctypes.data - _ORIGIN) // self.stride - first_row * self.step


class BlockColumns:
    """The columns of a container as of its view.

    Args:
        container: Where the blocks are.
        columns: All columns by name.
        lengths: Rows of each.
        checksums: Column → CRC-32 of each block of its checksums, from the head.
        cache_bytes: How much the loaded blocks may take; not counted when the container is `resident`.
        url: For messages.
    """

    def __init__(
        self,
        container: BlockContainer,
        columns: Mapping[str, Column],
        lengths: Mapping[str, int],
        checksums: Mapping[str, list[int]],
        cache_bytes: int,
        url: str,
    ) -> None:
        self.container = container
        self.layout = columns
        self.checksums_of_checksums = {name: list(values) for name, values in checksums.items()}
        self._limit = None if container.resident else cache_bytes
        self._held = 0
        self._tick = 0
        self._url = url
        self._loaded = {name: LoadedColumn(columns[name], rows) for name, rows in lengths.items()}

    def rows(self, name: str) -> int:
        """Length of a column."""
        return self._loaded[name].rows

    # Reading

    def gather(self, name: str, rows: Rows) -> npt.NDArray[Any]:
        """Rows of a column, copied; all within its length."""
        return self.gather_columns((name,), rows)[0]

    def gather_columns(self, names: Sequence[str], rows: Rows) -> list[npt.NDArray[Any]]:
        """The same rows of several columns."""
        numbers_by_shift: dict[int, Rows] = {}
        found = []
        for name in names:
            loaded = self._loaded[name]
            numbers = numbers_by_shift.get(loaded.shift)
            if numbers is None:
                numbers = numbers_by_shift[loaded.shift] = rows >> loaded.shift
            found.append(self._gather(loaded, rows, numbers))
        return found

    def _gather(self, loaded: LoadedColumn, rows: Rows, numbers: Rows) -> npt.NDArray[Any]:
        column = loaded.column
        if not len(rows):
            return np.empty(column.shape(0), column.dtype)
        if self._limit is not None:
            self._tick += 1
            loaded.used[numbers] = self._tick
        at = loaded.offsets.take(numbers)
        if int(at.min()) == _ABSENT:
            missing = distinct(numbers[at == _ABSENT])
            if self._limit is not None and len(distinct(numbers)) * column.block_rows * column.row_bytes > self._limit:
                return self._gather_in_turns(loaded, rows, numbers)
            for number in missing.tolist():
                self._load(loaded, number)
            at = loaded.offsets.take(numbers)
        if column.row_bytes > _WIDE:
            out = np.empty(column.shape(len(rows)), column.dtype)
            mask = column.block_rows - 1
            for place, (number, row) in enumerate(zip(numbers.tolist(), (rows & mask).tolist(), strict=True)):
                out[place] = loaded.blocks[number][row]
            return out
        at += rows if loaded.step == 1 else rows * loaded.step
        if column.width is None:
            return loaded.memory.take(at)
        # Not `take`: it wants its items side by side, and would copy all of them to have them so.
        found: npt.NDArray[Any] = loaded.memory[at]
        return found.view(column.dtype).reshape(column.shape(len(rows)))

    def _gather_in_turns(self, loaded: LoadedColumn, rows: Rows, numbers: Rows) -> npt.NDArray[Any]:
        """For rows from more blocks than the cache may hold."""
        column = loaded.column
        out = np.empty(column.shape(len(rows)), column.dtype)
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        bounds = [0, *(np.flatnonzero(np.diff(ordered)) + 1).tolist(), len(rows)]
        for first, last in pairwise(bounds):
            where = order[first:last]
            out[where] = self.block(column.name, int(ordered[first]))[rows[where] & (column.block_rows - 1)]
        return out

    def slice(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows start:stop of a column, copied."""
        loaded = self._loaded[name]
        out = np.empty(loaded.column.shape(stop - start), loaded.column.dtype)
        at, size = start, loaded.column.block_rows
        while at < stop:
            number = at >> loaded.shift
            first = number * size
            last = min(first + size, stop)
            out[at - start : last - start] = self.block(name, number)[at - first : last - first]
            at = last
        return out

    def block(self, name: str, number: int) -> Block:
        """One block, checked; not to be written to, and valid until the next call."""
        loaded = self._loaded[name]
        if self._limit is not None:
            self._tick += 1
            loaded.used[number] = self._tick
        found = loaded.blocks.get(number)
        return self._load(loaded, number) if found is None else found

    def recheck(self, name: str, numbers: Iterable[int]) -> dict[int, str]:
        """Read blocks anew and check them; what is wrong with those that are not what was put, by number.

        Raises:
            CorruptionError: What they are to be compared with is damaged.
        """
        loaded, expected = self._loaded[name], self.checksums(name)
        wrong, blocks = {}, {}
        for number in numbers:
            try:
                blocks[number] = self._gotten(loaded.column, number, loaded.column.rows_in(number, loaded.rows))
            except CorruptionError as error:
                wrong[number] = str(error)
        for number, found in zip(blocks, checksums_of([*blocks.values()]), strict=True):
            if found != expected[number]:
                wrong[number] = self._garbled(name, number)
        return wrong

    # Loading

    def _load(self, loaded: LoadedColumn, number: int) -> Block:
        column = loaded.column
        block = self._checked(column, number, column.rows_in(number, loaded.rows), self.checksums(column.name)[number])
        if self._limit is not None:
            self._make_room(block.nbytes)
            self._held += block.nbytes
            loaded.used[number] = self._tick
        loaded.hold(number, block)
        return block

    def _checked(self, column: Column, number: int, rows: int, expected: int) -> Block:
        block = self._gotten(column, number, rows)
        if checksum(block) != expected:
            raise CorruptionError(self._garbled(column.name, number))
        return block

    def _garbled(self, name: str, number: int) -> str:
        where = f"{self._url}: block {number} of {name}"
        return f"{where} is garbled: its checksum is not the one that was noted when it was written"

    def _gotten(self, column: Column, number: int, rows: int) -> Block:
        block = self.container.get(column, number, rows)
        where = f"{self._url}: block {number} of {column.name}"
        if block is None:
            raise CorruptionError(f"{where} is missing; expected {rows} rows of {column.row_bytes} bytes")
        if block.dtype != column.dtype or block.shape != column.shape(rows):
            raise CorruptionError(
                f"{where} is {block.dtype} of shape {block.shape}, expected {column.dtype} of {column.shape(rows)}"
            )
        if not block.flags.c_contiguous or block.ctypes.data % 16:
            block = block.copy()
        return block

    def checksums(self, name: str) -> npt.NDArray[np.uint32]:
        """CRC-32 of each block of a column."""
        loaded = self._loaded[name]
        if loaded.checksums is None:
            column = self.layout[CHECKSUMS + name]
            count = loaded.column.blocks(loaded.rows)
            known = self.checksums_of_checksums[name]
            if len(known) != column.blocks(count):
                raise CorruptionError(f"{self._url}: the head has {len(known)} checksums for {column.name}")
            parts = [
                self._checked(column, number, column.rows_in(number, count), known[number])
                for number in range(len(known))
            ]
            loaded.checksums = np.concatenate([np.empty(0, column.dtype), *parts])
        return loaded.checksums

    def _make_room(self, needed: int) -> None:
        """Let go of blocks that nobody asked for lately: a quarter of the cache at once, so that it is rarely done."""
        assert self._limit is not None
        if self._held + needed <= self._limit:
            return
        entries = [
            (int(loaded.used[number]), loaded, number) for loaded in self._loaded.values() for number in loaded.blocks
        ]
        entries.sort(key=lambda entry: entry[0])
        for used, loaded, number in entries:
            if self._held + needed <= 3 * self._limit // 4 or used >= self._tick:  # the running gather needs those
                break
            self._drop(loaded, number)

    def _drop(self, loaded: LoadedColumn, number: int) -> None:
        block = loaded.blocks.pop(number)
        if self._limit is not None:
            self._held -= block.nbytes
        if number < len(loaded.offsets):
            loaded.offsets[number] = _ABSENT

    # Changing

    def forget_blocks(self) -> None:
        """Load every block anew when it is next asked for."""
        for loaded in self._loaded.values():
            for number in list(loaded.blocks):
                self._drop(loaded, number)

    def changed(
        self,
        puts: Iterable[Key],
        lengths: Mapping[str, int],
        checksums: Mapping[str, npt.NDArray[np.uint32]],
        of_checksums: Mapping[str, list[int]],
    ) -> None:
        """After a commit: forget the blocks that it put or dropped, take the new lengths and checksums."""
        for name, number in puts:
            loaded = self._loaded.get(name)
            if loaded is not None and number in loaded.blocks:
                self._drop(loaded, number)
        for name, loaded in self._loaded.items():
            if loaded.rows != lengths[name]:
                for number in [n for n in loaded.blocks if n >= loaded.column.blocks(lengths[name])]:
                    self._drop(loaded, number)
                loaded.resize(lengths[name])
        for name, values in checksums.items():
            self._loaded[name].checksums = values
        self.checksums_of_checksums = {name: list(values) for name, values in of_checksums.items()}
