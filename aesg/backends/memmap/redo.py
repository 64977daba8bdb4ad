"""What a journal entry of the memmap backend says: the state after the commit, then what bytes are to be where.

State: node, edge, removed-edge and event counts u64, length of the attributes u32, number of operations u32, crc32 of
all these and of the attributes, and the attributes as JSON. (The entry has a checksum of its own, but readers take the
state without reading the rest.) Operations, each with a header of kind u8, file u8, 2 bytes of padding, width u32,
offset u64 and count u64, followed by their data:

* RANGE: `count` bytes at byte `offset`.
* COLUMN: a field of `width` bytes at `offset` in each of the first `count` records.
* RECORDS: `count` rows (i64 each), then as many records of `width` bytes. Read, not written any more.
* SWAP: the file is replaced by the one that compaction left beside it; no data.
* CELLS: `count` rows (i64 each), then for each the `width` bytes at `offset` in its record. Of a row given twice the
  last counts. Since version 2.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from aesg.backends.files import os_errors, write_all
from aesg.backends.memmap.format import EDGES, EVENTS, NODES
from aesg.backends.memmap.table import PendingRecords
from aesg.backends.memmap.tables import State
from aesg.errors import CorruptionError
from aesg.records import EVENT_DTYPE, JSON

_STATE: Final = struct.Struct("<QQQQIII")
_COUNTS: Final = struct.Struct("<6Q")
_compact: Final = json.JSONEncoder(separators=(",", ":")).encode
_last_encoded: tuple[dict[str, JSON], bytes] = ({}, b"{}")
_OPERATION: Final = struct.Struct("<BBxxIQQ")
STATE_HEAD: Final = 1 << 14
"""Bytes of an entry that hold the state, unless the attributes are unusually many."""
RANGE, COLUMN, RECORDS, SWAP, CELLS = range(1, 6)
VERSION: Final = 3
"""Of a journal with such entries. 1 had no CELLS, 2 no columns beside the records, of which its header speaks."""
COLUMNS_BESIDE: Final = 3
"""The first version with those."""
FILES: Final = (NODES, EDGES, EVENTS)
COMPACTED: Final = ".compacted"
"""Suffix of the file that a compaction has ready."""


def encode_state(state: State, operations: int = 0) -> bytes:
    """The head of an entry."""
    attrs = _encoded(state.attrs)
    numbers = (state.nodes, state.edges, state.removed, state.events, len(attrs), operations)
    return _STATE.pack(*numbers, _checksum(numbers, attrs)) + attrs


def _encoded(attrs: dict[str, JSON]) -> bytes:
    """Attributes as JSON; hardly any commit changes them, and none changes the dict."""
    global _last_encoded
    last = _last_encoded  # another thread may be here with another store's
    if last[0] is not attrs:
        _last_encoded = last = attrs, _compact(attrs).encode()
    return last[1]


def decode_state(payload: bytes) -> State:
    """Inverse of `encode_state`.

    Raises:
        ValueError: It is not what was encoded.
    """
    *numbers, crc = _STATE.unpack_from(payload)
    nodes, edges, removed, events, length, _ = numbers
    attrs = payload[_STATE.size : _STATE.size + length]
    if _checksum(numbers, attrs) != crc:
        raise ValueError("the checksum of a state does not match")
    return State(nodes, edges, removed, events, json.loads(attrs))


def _checksum(numbers: Sequence[int], attrs: bytes) -> int:
    return zlib.crc32(attrs, zlib.crc32(_COUNTS.pack(*numbers)))


def state_bytes(payload: bytes) -> int:
    """How many bytes of an entry its state takes; needs the first `STATE_HEAD` of them."""
    return _STATE.size + int(_STATE.unpack_from(payload)[4])


def changes(number: int, table: PendingRecords) -> list[Any]:
    """Operations for the changed records of a file, as buffers; an operation's header begins its first one."""
    parts: list[Any] = []
    fields: Any = table.file.dtype.fields
    for field, column in table.held_columns().items():
        kind, offset, *_ = fields[field]
        parts += [_OPERATION.pack(COLUMN, number, kind.itemsize, offset, len(column)), np.ascontiguousarray(column)]
    for field, rows, values in table.cells():
        kind, offset, *_ = fields[field]
        parts += [_OPERATION.pack(CELLS, number, kind.itemsize, offset, len(rows)), rows, values]
    return parts


def appended(number: int, item: int, first: int, data: Any) -> list[Any]:
    """The operation for records appended to a file."""
    return [_OPERATION.pack(RANGE, number, 0, first * item, memoryview(data).nbytes), data]


def swaps() -> list[Any]:
    """Operations that put the compacted files in place."""
    return [_OPERATION.pack(SWAP, number, 0, 0, 0) for number in (0, 1)]


def count_operations(parts: list[Any]) -> int:
    """How many operations there are among the buffers of `changes` and `appended`."""
    return sum(isinstance(part, bytes) and len(part) == _OPERATION.size for part in parts)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of an entry; see above.

    Attributes:
        kind: RANGE to CELLS.
        file: Number of its file in `FILES`.
        width: Bytes of a value.
        offset: Where in the file, or in a record.
        count: Bytes, or records.
        data: What follows its header.
    """

    kind: int
    file: int
    width: int
    offset: int
    count: int
    data: memoryview


def operations(payload: bytes) -> Iterator[Operation]:
    """The operations of an entry whose checksum was right."""
    *_, length, count, _ = _STATE.unpack_from(payload)
    at = _STATE.size + length
    for _ in range(count):
        kind, file, width, offset, number = _OPERATION.unpack_from(payload, at)
        at += _OPERATION.size
        size = {RANGE: 1, COLUMN: width, RECORDS: 8 + width, SWAP: 0, CELLS: 8 + width}[kind] * number
        yield Operation(kind, file, width, offset, number, memoryview(payload)[at : at + size])
        at += size


def replay(payload: bytes, directory: Path, node_bytes: int) -> None:
    """Bring the files of a directory to what an entry says. Doing it twice does no harm.

    Raises:
        CorruptionError: The entry does not fit the files.
    """
    *_, length, operations, _ = _STATE.unpack_from(payload)
    at = _STATE.size + length
    items = (node_bytes, 36, EVENT_DTYPE.itemsize)
    for _ in range(operations):
        kind, number, width, offset, count = _OPERATION.unpack_from(payload, at)
        at += _OPERATION.size
        path = directory / FILES[number]
        if kind == SWAP:
            ready = path.with_name(path.name + COMPACTED)
            if ready.exists():
                with os_errors("replacing", path):
                    os.replace(ready, path)
            continue
        sizes = {RANGE: 1, COLUMN: width, RECORDS: 8 + width, CELLS: 8 + width}
        if kind not in sizes:
            raise CorruptionError(f"{path}: the journal has an operation of kind {kind} for it, expected 1 to {CELLS}")
        size = sizes[kind] * count
        data = memoryview(payload)[at : at + size]
        at += size
        with os_errors("recovering", path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if kind == RANGE:
                    if (have := os.fstat(fd).st_size) < offset:  # writing there would hide that it was cut off
                        raise CorruptionError(f"{path}: {have} bytes, expected the {offset} that came before")
                    write_all(fd, [data], offset)
                else:
                    _store(path, items[number], kind, width, offset, count, data)
            finally:
                os.close(fd)


def _store(path: Path, item: int, kind: int, width: int, offset: int, count: int, data: memoryview) -> None:
    file = np.memmap(path, np.uint8, "r+")
    have = len(file) // item
    if kind == COLUMN:
        if count > have:
            raise CorruptionError(f"{path}: expected at least {count} records of {item} bytes, found {have}")
        np.ndarray((count,), f"V{width}", file, offset, (item,))[:] = np.frombuffer(data, f"V{width}")
        return
    rows = np.frombuffer(data[: 8 * count], np.int64)
    if count and int(rows.max()) >= have:
        raise CorruptionError(f"{path}: expected at least {int(rows.max()) + 1} records of {item} bytes, found {have}")
    np.ndarray((have,), f"V{width}", file, offset, (item,))[rows] = np.frombuffer(data[8 * count :], f"V{width}")


def pending_tail(table: PendingRecords) -> Any:
    """The bytes of the records that a transaction appended."""
    return table.file.whole[table.base_count : table.count].view(np.uint8)
