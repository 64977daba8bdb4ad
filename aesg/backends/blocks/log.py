"""The small commit: one record of what it changed, put as blocks of the column `log`.

Writing the record costs one block or two; writing the changed columns would cost a block of each. Records are read
again when the store is opened, until a merge has put everything into the columns. A record begins a block, and is: its
length in bytes (u64, little-endian), the length of a text (u32), the text, JSON that lists arrays by name, dtype and
shape, and then their bytes, each padded to 8.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.backends.blocks.layout import LOG_BLOCK
from aesg.errors import CorruptionError
from aesg.records import Columns

BEFORE: Final = "log/before"
"""In every record an array of one number: the checksum (see `Log.crc`) of all records before it. Whoever reads a log
whose end is as the head says needs it not."""
_LENGTHS: Final = struct.Struct("<QI")
_FEW: Final = 1 << 12


@dataclass(frozen=True, slots=True)
class Log:
    """How far a log goes.

    Attributes:
        blocks: Blocks of all its records.
        bytes: Their bytes.
        crc: CRC-32 of all records, one after another.
    """

    blocks: int = 0
    bytes: int = 0
    crc: int = 0

    def as_json(self) -> list[int]:
        """For the head."""
        return [self.blocks, self.bytes, self.crc]

    def with_record(self, record: npt.NDArray[np.uint8]) -> Log:
        """The log with one more record."""
        blocks = self.blocks - (-len(record) // LOG_BLOCK)
        return Log(blocks, self.bytes + len(record), zlib.crc32(record.data, self.crc))


def encode(arrays: Columns) -> npt.NDArray[np.uint8]:
    """A record of arrays by name."""
    parts: list[Any] = [_head(tuple([(name, array.dtype, array.shape) for name, array in arrays.items()]))]
    for array in arrays.values():
        # To copy a few bytes once more is quicker than to look at them in place.
        parts.append(array.tobytes() if array.nbytes < _FEW else np.ascontiguousarray(array).data)
        if array.nbytes % 8:
            parts.append(bytes(-array.nbytes % 8))
    return np.frombuffer(b"".join(parts), np.uint8)


@lru_cache(maxsize=64)
def _head(arrays: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]) -> bytes:
    """What comes before the bytes of the arrays; kept, for the small commits of a program are mostly of a kind."""
    described = [[name, dtype.str, list(shape)] for name, dtype, shape in arrays]
    text = json.dumps(described, separators=(",", ":")).encode()
    text_and_padding = text + bytes(-(_LENGTHS.size + len(text)) % 8)
    sizes = [dtype.itemsize * math.prod(shape) for _, dtype, shape in arrays]
    length = _LENGTHS.size + len(text_and_padding) + sum(size + -size % 8 for size in sizes)
    return _LENGTHS.pack(length, len(text)) + text_and_padding


def decode(record: npt.NDArray[np.uint8], url: str) -> Columns:
    """Inverse of `encode`; the arrays are views of the record.

    Raises:
        CorruptionError: It is not what was encoded.
    """
    try:
        _, length = _LENGTHS.unpack_from(record.data)
        at = _LENGTHS.size + length
        described: list[Any] = json.loads(record[_LENGTHS.size : at].tobytes())
        at += -at % 8
        arrays: Columns = {}
        for name, kind, shape in described:
            dtype = np.dtype(kind)
            if dtype.kind not in "iuf":
                raise ValueError(f"{name} is {dtype}")
            size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(record[at : at + size], dtype).reshape(shape)
            at += size + -size % 8
        return arrays
    except (ValueError, TypeError, KeyError, struct.error) as error:
        raise CorruptionError(f"{url}: a record of the log cannot be read: {error}") from error


def read(log: Log, get: Callable[[int], npt.NDArray[Any] | None], url: str) -> tuple[Columns, Log]:
    """The record that follows a log, and the log with it.

    Args:
        log: What was read before.
        get: Gives a block of the log by number.
        url: For messages.

    Raises:
        CorruptionError: It is cut short, or not what was encoded. (Whether it is what was *written*, the checksum of
            the log tells, which the head has.)
    """
    parts: list[npt.NDArray[np.uint8]] = []
    have, length = 0, _LENGTHS.size
    while have < length:
        block = get(log.blocks + len(parts))
        if block is None or block.ndim != 1 or block.dtype != np.uint8 or len(block) < min(LOG_BLOCK, length - have):
            raise CorruptionError(f"{url}: block {log.blocks + len(parts)} of the log is missing or cut short")
        if not parts:
            length = max(_LENGTHS.size, _LENGTHS.unpack_from(block.data)[0])
        parts.append(block)
        have += len(block)
    record = np.concatenate(parts)[:length]
    return decode(record, url), log.with_record(record)
