"""The small commit: one record of what it changed, put as blocks of the column `log`.

Writing the record costs one block or two; writing the changed columns would cost a block of each. Records are read
again when the store is opened, until a merge has put everything into the columns. A record is a text in JSON, preceded
by its length (u32, little-endian), that lists arrays by name, dtype and shape, and then their bytes, each padded to 8.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.errors import CorruptionError
from aesg.records import Columns

_LENGTH: Final = struct.Struct("<I")


def encode(arrays: Columns) -> npt.NDArray[np.uint8]:
    """A record of arrays by name."""
    described = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    head = json.dumps(described, separators=(",", ":")).encode()
    parts: list[Any] = [_LENGTH.pack(len(head)), head, bytes(-(_LENGTH.size + len(head)) % 8)]
    for array in arrays.values():
        parts += [np.ascontiguousarray(array).data, bytes(-array.nbytes % 8)]
    return np.frombuffer(b"".join(parts), np.uint8)


def decode(record: npt.NDArray[np.uint8], url: str) -> Columns:
    """Inverse of `encode`; the arrays are views of the record.

    Raises:
        CorruptionError: It is not what was encoded.
    """
    try:
        (length,) = _LENGTH.unpack_from(record.data)
        at = _LENGTH.size + length
        described: list[Any] = json.loads(record[_LENGTH.size : at].tobytes())
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
