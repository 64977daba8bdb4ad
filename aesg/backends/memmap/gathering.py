"""The gather of fields, compiled: each record is asked of the memory long before its turn to be copied.

NumPy copies one record after the other and waits for each, as hardly any two are in one page. Here the processor is
told of the records that come next, which takes a third to a half of the time away. What it takes for that, a prefetch
and a copy of as many bytes as is known only when it runs, has no name in the part of Python that numba compiles: they
are written in the language that it compiles to.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from aesg.records import Rows

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_AHEAD: Final = 16
"""Records that are under way at once."""
_LINE: Final = 64
"""Bytes that a processor fetches together."""

_BYTE: Final = ir.IntType(8).as_pointer()
_INT: Final = ir.IntType(32)


def _address(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    proxy: Any = cgutils.create_struct_proxy(kind)  # type: ignore[no-untyped-call]
    data = proxy(context, builder, array).data
    return builder.gep(builder.bitcast(data, _BYTE), [at])


def _prefetching(typing: Any, array: Any, at: Any) -> Any:
    """Fetch the line of byte `at`, to be read soon."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_BYTE, _INT, _INT, _INT])
        function = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE], kind)
        read, keep, data = _INT(0), _INT(3), _INT(1)
        builder.call(function, [_address(context, builder, signature.args[0], *given), read, keep, data])
        return context.get_dummy_value()

    return types.void(array, at), generate


def _copying(typing: Any, to: Any, to_at: Any, source: Any, source_at: Any, count: Any) -> Any:
    """Copy `count` bytes."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        into = _address(context, builder, signature.args[0], *given[:2])
        out_of = _address(context, builder, signature.args[2], *given[2:4])
        cgutils.raw_memcpy(builder, into, out_of, given[4], 1)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return types.void(to, to_at, source, source_at, count), generate


# What a compiled loop calls them by: without the argument that only numba gives them.
_prefetch: Any = intrinsic(_prefetching)
_copy: Any = intrinsic(_copying)


def gather(file: Bytes, rows: Rows, item: int, places: Ints, first: int, starts: Ints, out: Bytes) -> None:
    """Some fields of records of `item` bytes, one field after the other.

    Args:
        file: uint8, whole records.
        rows: int64 [n].
        item: Bytes of a record.
        places: int64 [fields, 2], where in a record a field is, and how wide.
        first: So many rows of the same output are somebody else's, before these.
        starts: int64 [fields], where in the output the values of each field begin.
        out: Out: uint8.

    Raises:
        IndexError: A row that the file does not have.
    """
    records = len(file) // item
    for i in range(len(rows)):
        if rows[i] < 0 or rows[i] >= records:
            raise IndexError("a row outside the file")
    for i in range(len(rows) + _AHEAD):
        if i < len(rows):
            at = rows[i] * item
            for field in range(len(places)):
                begin, width = at + places[field, 0], places[field, 1]
                for byte in range(begin, begin + width, _LINE):
                    _prefetch(file, byte)
                _prefetch(file, begin + width - 1)
        if i >= _AHEAD:
            at = rows[i - _AHEAD] * item
            for field in range(len(places)):
                width = places[field, 1]
                _copy(out, starts[field] + (first + i - _AHEAD) * width, file, at + places[field, 0], width)


SIGNATURE: Final = (
    types.Array(types.uint8, 1, "C", readonly=True),
    types.Array(types.int64, 1, "C", readonly=True, aligned=False),
    types.int64,
    types.int64[:, ::1],
    types.int64,
    types.int64[::1],
    types.uint8[::1],
)
