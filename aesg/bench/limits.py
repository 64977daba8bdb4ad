"""What a store is held against: the file system and the memory, each doing the same by itself."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.bench.data import Floats, Ints

PIECE: Final = 1 << 20
"""Bytes of one `write`."""

Walk: TypeAlias = Callable[[Ints], tuple[npt.NDArray[Any], ...]]
"""Rows → indptr, refs, target_rows, weight, confidence and use_count, as `records.Adjacency` has them."""


def node_bytes(dim: int) -> int:
    """Bytes of all fields of a node."""
    return sum(dtype.itemsize * (dim if name == "vector" else 1) for name, dtype in records.NODE_FIELDS.items())


def edge_bytes() -> int:
    """Bytes of all fields of an edge."""
    return sum(dtype.itemsize for dtype in records.EDGE_FIELDS.values())


def noise(count: int) -> memoryview:
    """Random bytes to write: nothing on the way can make them fewer."""
    return memoryview(np.random.default_rng(4).bytes(count))


def write_file(path: Path, buffer: memoryview, count: int, *, sync: bool = False) -> None:
    """Write `count` bytes to a new file, the buffer again and again, a piece at a time; synced if asked."""
    with open(path, "xb", buffering=0) as file:
        left = count
        while left:
            for first in range(0, min(len(buffer), left), PIECE):
                left -= file.write(buffer[first : first + min(PIECE, left)])
        if sync:
            os.fdatasync(file.fileno())


class DurableFile:
    """A file that grows by appends, each of them synced.

    Args:
        path: A new one.
        sync: False leaves the bytes to the page cache: they survive a killed process, no more.
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._sync = sync

    def append(self, buffer: memoryview) -> None:
        """Append, and wait until the disk has it."""
        while buffer:
            buffer = buffer[os.write(self._fd, buffer) :]
        if self._sync:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Let go."""
        os.close(self._fd)


class HeapGraph:
    """Edges in heap as compressed sparse rows, newest first, and a compiled walk over them.

    Raises:
        RuntimeError: numba is not installed.
    """

    def __init__(self, nodes: int, sources: Ints, targets: Ints, weight: Floats) -> None:
        try:
            numba: Any = importlib.import_module("numba")
        except ImportError as error:
            raise RuntimeError("numba, which this is held against, is not installed: pip install numba") from error
        newest_first = len(sources) - 1 - np.argsort(sources[::-1], kind="stable")
        starts = np.zeros(nodes + 1, np.int64)
        np.cumsum(np.bincount(sources, minlength=nodes), out=starts[1:])
        columns = (
            newest_first,
            targets[newest_first],
            weight[newest_first],
            np.ones(len(sources), np.float32),
            np.zeros(len(sources), np.uint32),
        )
        compiled = numba.njit(_walk)
        self.walk: Walk = lambda rows: compiled(rows, starts, *columns)


def _walk(
    rows: Ints,
    starts: Ints,
    refs: Ints,
    targets: Ints,
    weight: Floats,
    confidence: Floats,
    use_count: npt.NDArray[np.uint32],
) -> tuple[npt.NDArray[Any], ...]:
    """Compiled by numba: everything that `out_edges` gives, into arrays made here."""
    indptr = np.empty(len(rows) + 1, np.int64)
    indptr[0] = 0
    for i in range(len(rows)):
        indptr[i + 1] = indptr[i] + starts[rows[i] + 1] - starts[rows[i]]
    found = indptr[-1]
    out_refs = np.empty(found, np.int64)
    out_targets = np.empty(found, np.int64)
    out_weight = np.empty(found, np.float32)
    out_confidence = np.empty(found, np.float32)
    out_use_count = np.empty(found, np.uint32)
    for i in range(len(rows)):
        first = starts[rows[i]]
        for at in range(indptr[i], indptr[i + 1]):
            k = first + at - indptr[i]
            out_refs[at] = refs[k]
            out_targets[at] = targets[k]
            out_weight[at] = weight[k]
            out_confidence[at] = confidence[k]
            out_use_count[at] = use_count[k]
    return indptr, out_refs, out_targets, out_weight, out_confidence, out_use_count
