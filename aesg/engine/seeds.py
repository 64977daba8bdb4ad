"""Seeds: the nearest active rows of a query, by an exact scan.

The scan compares chunk by chunk with one matrix product for all queries. BLAS rounds differently with the number of
queries and the place of a row in its chunk, so the few rows that come out best are compared once more, each on its own:
equal vectors get equal cosines, and a query's result does not depend on its company.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg.engine.lengths import Lengths
from aesg.protocols import Graph
from aesg.records import Columns, Rows, Vectors

Floats: TypeAlias = npt.NDArray[np.float32]

_ROUNDING: Final = 2e-6
"""Cosines of the scan that differ by less may be in the wrong order."""
_SPARE: Final = 64
"""So many rows beyond the k best are compared again, at most: thousands of equal vectors must not pile up."""
_PIECE: Final = 1 << 18
"""Multiplications in one matrix product. OpenBLAS shares out larger ones among threads, and those wait for each other:
with another busy process beside it that takes a hundred times as long as doing it alone."""
_TINY: Final = 1e-30
_HUGE: Final = 1e30
"""Squared lengths outside of these are measured again in float64."""
_NO_ROWS: Final[Rows] = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest active rows of one query, best first; ties by row.

    Attributes:
        rows: int64 [k].
        cosines: float32 [k].
    """

    rows: Rows
    cosines: Floats


def units(vectors: npt.NDArray[np.floating]) -> Vectors:
    """Vectors [n, D] at length 1, float32; one that is zero or not finite has no direction and becomes zero."""
    wide = np.asarray(vectors, dtype=np.float64)
    with np.errstate(all="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        out = (wide / lengths[:, None]).astype(np.float32)
        directed = np.isfinite(lengths) & (lengths > 0)
    return np.where(directed[:, None], out, np.float32(0))


def cosines(vectors: Vectors, directions: Vectors) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Cosine of each vector [n, D] with its unit direction [n, D] (or [1, D] for all).

    Returns:
        float32 [n] in [-1, 1], 0 for a vector without a direction; and bool [n], whether it has one.
    """
    with np.errstate(all="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
        out = np.einsum("ij,ij->i", vectors, directions) / np.sqrt(squares)
    directed = (squares > _TINY) & (squares < _HUGE)
    odd = np.flatnonzero(~directed)
    if len(odd):
        again = units(vectors[odd])
        directed[odd] = again.any(axis=1)
        out[odd] = np.einsum("ij,ij->i", again, directions[odd] if len(directions) > 1 else directions)
    return np.clip(out, -1, 1, out=out), directed


def read(graph: Graph, rows: Rows, fields: Sequence[str]) -> Columns:
    """`graph.nodes.read`, asking for each row once and in ascending order, as stores like it best."""
    if len(rows) < 2 or bool((rows[1:] > rows[:-1]).all()):
        return graph.nodes.read(rows, fields)
    distinct, where = np.unique(rows, return_inverse=True)
    return {name: column[where] for name, column in graph.nodes.read(distinct, fields).items()}


def nearest(
    graph: Graph, queries: Vectors, k: int, min_similarity: float, *, include_pruned: bool = False
) -> list[Nearest]:
    """The at most `k` active rows of highest cosine above `min_similarity`, for each query: one scan for all.

    Zero vectors and, in stores of 0.3.0, such as are not finite are nobody's neighbours; a zero query has none.

    Args:
        graph: Where to look.
        queries: float32 [B, D].
        k: At least 1.
        min_similarity: Exclusive.
        include_pruned: Pruned rows count too (0.3.0).
    """
    directions = units(queries)
    asking = np.flatnonzero(directions.any(axis=1))
    nobody = Nearest(np.empty(0, np.int64), np.empty(0, np.float32))
    found = [nobody] * len(queries)
    if not len(asking):
        return found
    best = _Best(len(asking), k, min_similarity)
    wanted = np.ascontiguousarray(directions[asking].T)
    lengths = Lengths(graph, include_pruned)
    first = 0
    with np.errstate(all="ignore"):  # around the loop: what makes a vector odd is looked for in each chunk
        for chunk in graph.nodes.scan(lengths.fields):
            vectors = chunk["vector"]
            reciprocal, odd = lengths.known(first, first + len(vectors)), _NO_ROWS
            if reciprocal is None:
                is_active = None if include_pruned else _is_active(graph, chunk, first)
                reciprocal, odd = _reciprocals(vectors, is_active)
                lengths.measured(reciprocal, complete=not len(odd))
            similarity = _product(vectors, wanted)
            similarity *= reciprocal[:, None]
            if len(odd):
                similarity[odd] = units(vectors[odd]) @ wanted
            best.offer(first, similarity)
            first += len(vectors)
    lengths.keep()
    lanes, rows = best.candidates()
    exact, _ = cosines(read(graph, rows, ["vector"])["vector"], directions[asking][lanes])
    order = np.lexsort((rows, -exact, lanes))
    order = order[exact[order] > min_similarity]
    ends = np.searchsorted(lanes[order], np.arange(len(asking) + 1))
    for lane, start, stop in zip(asking.tolist(), ends[:-1], ends[1:], strict=True):
        top = order[start:stop][:k]
        found[lane] = Nearest(rows[top], exact[top])
    return found


def _is_active(graph: Graph, chunk: Columns, first: int) -> npt.NDArray[np.uint8]:
    if "is_active" in chunk:
        return chunk["is_active"]
    # Rows that another thread committed between the look at the generation and the scan.
    return graph.nodes.read(np.arange(first, first + len(chunk["vector"])), ["is_active"])["is_active"]


def _reciprocals(vectors: Vectors, is_active: npt.NDArray[np.uint8] | None) -> tuple[Floats, Rows]:
    """Reciprocal lengths of a chunk [n, D]: float32 [n], NaN for rows that cannot seed.

    Also returns the rows that can, but whose length has to be measured in float64; theirs are NaN too.
    """
    squares = np.vecdot(vectors, vectors)
    out: Floats = 1 / np.sqrt(squares)
    odd = _NO_ROWS
    # This runs for every thousand rows of the store: what is not there is not looked for one by one.
    if not (squares.min() > _TINY and squares.max() < _HUGE):
        odd = np.flatnonzero(~((squares > _TINY) & (squares < _HUGE)))
        out[odd] = np.nan
        odd = odd[np.asarray(units(vectors[odd]).any(axis=1))]
    if is_active is not None and not is_active.min():
        out[is_active == 0] = np.nan
        odd = odd[is_active[odd] != 0]
    return out, odd


def _product(vectors: Vectors, wanted: Vectors) -> Floats:
    """Multiply vectors [n, D] by wanted [D, b], piece by piece; float32 [n, b]."""
    dim, lanes = wanted.shape
    out = np.empty((len(vectors), lanes), np.float32)
    wide = min(lanes, max(1, _PIECE // (32 * dim)))
    high = max(32, _PIECE // (dim * wide))
    for j in range(0, lanes, wide):
        for i in range(0, len(vectors), high):
            np.matmul(vectors[i : i + high], wanted[:, j : j + wide], out=out[i : i + high, j : j + wide])
    return out


class _Best:
    """The best rows of each lane so far, and the cosine below which no further row is of interest."""

    def __init__(self, lanes: int, k: int, min_similarity: float) -> None:
        self._k = k
        self._bounds = np.full(lanes, min_similarity - _ROUNDING, np.float32)
        self._parts: list[tuple[Rows, Rows, Floats]] = []
        self._waiting = 0
        self._room = 4 * lanes * (k + _SPARE)

    def offer(self, first: int, similarity: Floats) -> None:
        """Take what is good enough of the rows from `first` on; similarity: float32 [n, lanes], NaN is never."""
        if len(self._bounds) == 1 and similarity.max() < self._bounds[0]:
            return  # most chunks of a large graph, when one query asks
        hits = similarity >= self._bounds
        count = int(np.count_nonzero(hits))
        if not count:
            return
        if count > self._room and len(similarity) > self._k:
            last = len(similarity) - self._k
            kth = np.partition(np.where(similarity == similarity, similarity, -np.inf), last, axis=0)[last]
            self._bounds = np.maximum(self._bounds, kth - np.float32(_ROUNDING))
            hits = similarity >= self._bounds
        rows, lanes = np.nonzero(hits)
        self._parts.append((lanes, rows + first, similarity[hits]))
        self._waiting += len(rows)
        if self._waiting > self._room:
            self._condense()

    def candidates(self) -> tuple[Rows, Rows]:
        """(lane, row) of all that may be among a lane's k best: int64 [n] each."""
        self._condense()
        lanes, rows, _ = self._parts[0]
        return lanes, rows

    def _condense(self) -> None:
        none = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        lanes, rows, similarity = map(np.concatenate, zip(none, *self._parts, strict=True))
        order = np.lexsort((rows, -similarity, lanes))
        starts = np.searchsorted(lanes[order], np.arange(len(self._bounds)))
        place = np.arange(len(order)) - starts[lanes[order]]
        kth = order[place == self._k - 1]
        self._bounds[lanes[kth]] = np.maximum(self._bounds[lanes[kth]], similarity[kth] - np.float32(_ROUNDING))
        order = order[place < self._k + _SPARE]
        order = order[similarity[order] >= self._bounds[lanes[order]]]
        self._parts = [(lanes[order], rows[order], similarity[order])]
        self._waiting = len(order)
