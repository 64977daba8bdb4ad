"""Blocks as chunks and back: filled up with zeros, and compressed if the array is.

The compressors are numcodecs', which the Zarr library itself calls; here they are called directly, since its own way
leads through an event loop in another thread. They are imported when something compressed is met.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.backends.blocks.container import Block, Column
from aesg.backends.zarr import documents
from aesg.errors import CorruptionError

_BLOSC_HEADER: Final = struct.Struct("<4xI4xI")
"""Version and flags; bytes uncompressed; block size; bytes in all."""
_SLACK: Final = 1 << 12
"""Bytes by which a chunk that cannot be compressed may grow, beside an eighth of it."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a key is to hold.

    Attributes:
        data: Its bytes; a view, perhaps of an array that changes later.
        size: How many they are with the zeros that follow.
    """

    data: Any
    size: int

    @property
    def length(self) -> int:
        """Bytes without the zeros that follow."""
        return memoryview(self.data).nbytes

    def to_bytes(self) -> bytes:
        """All of it, copied."""
        return bytes(self.data) + bytes(self.size - self.length)


def whole(data: bytes) -> Content:
    """Bytes and nothing after them."""
    return Content(data, len(data))


def encode(column: Column, block: Block, codec: str) -> Content:
    """The chunk of a block."""
    compressor = _compressor(documents.codec_of(column, codec))
    block = np.ascontiguousarray(block)
    if compressor is None:
        return Content(block.data.cast("B") if block.size else b"", chunk_bytes(column))
    if len(block) < column.block_rows:
        padded = np.zeros(column.shape(column.block_rows), column.dtype)
        padded[: len(block)] = block
        block = padded
    return whole(bytes(compressor.encode(block)))


def decode(column: Column, data: Any, rows: int, codec: str, place: str) -> Block:
    """The first rows of a chunk.

    Raises:
        CorruptionError: It cannot be decoded, or is not of a chunk's size.
    """
    size = chunk_bytes(column)
    compressor = _compressor(documents.codec_of(column, codec))
    raw: npt.NDArray[np.uint8]
    if compressor is None:
        raw = np.frombuffer(data, np.uint8)
        if len(raw) != size:
            raise CorruptionError(f"{place}: {len(raw)} bytes, expected {size}")
    else:
        raw = np.zeros(size, np.uint8)
        if documents.codec_of(column, codec) == "blosc" and not _is_whole_frame(data, size):
            raise CorruptionError(f"{place}: not a frame of Blosc of {size} bytes")
        try:
            compressor.decode(data, raw)  # never more than `raw` holds, whatever the data say of their size
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            raise CorruptionError(f"{place}: cannot be decompressed to {size} bytes: {error}") from error
    return block_of(column, raw, rows)


def block_of(column: Column, raw: npt.NDArray[np.uint8], rows: int) -> Block:
    """Rows from their bytes."""
    return raw[: rows * column.row_bytes].view(column.dtype).reshape(column.shape(rows))


def chunk_bytes(column: Column) -> int:
    """Bytes of a whole chunk before it is compressed."""
    return column.block_rows * column.row_bytes


def most_bytes(column: Column) -> int:
    """Bytes that a chunk's key may hold at most."""
    size = chunk_bytes(column)
    return size + size // 8 + _SLACK


def _is_whole_frame(data: bytes, size: int) -> bool:
    """Whether Blosc's header tells the right sizes: the library believes what it says, and reads on behind the end."""
    return len(data) >= _BLOSC_HEADER.size and _BLOSC_HEADER.unpack_from(data) == (size, len(data))


@cache
def _compressor(codec: str) -> Any:
    """An object with `encode` and `decode`; None where nothing is compressed."""
    if codec == "zstd":
        from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

        return Zstd(level=1)
    if codec == "blosc":
        from numcodecs.blosc import SHUFFLE, Blosc  # type: ignore[import-untyped]

        return Blosc(cname="lz4", clevel=5, shuffle=SHUFFLE)
    return None
