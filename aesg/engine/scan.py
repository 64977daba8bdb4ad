"""The exact scan: which of many vectors may be among the nearest of a direction.

A loop walks the vectors once and keeps each lane's best rows in a heap; it is as fast as memory gives the vectors. For
more than a few lanes a matrix product is faster, because it uses each vector many times while it is near; and it needs
no numba, whose loading nobody should wait for who scans a few thousand vectors.

Both round differently, and the product even with the number of lanes. So both give some more candidates than were asked
for, to be compared once more, each on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg.jit import compiled_or_none
from aesg.records import Rows, Vectors

Floats: TypeAlias = npt.NDArray[np.float32]

ROUNDING: Final = 2e-6
"""Cosines of a scan that differ by less may be in the wrong order."""
SPARE: Final = 64
"""So many rows beyond the k best are compared again, at most: thousands of equal vectors must not pile up."""
TINY: Final = 1e-30
HUGE: Final = 1e30
"""Squared lengths outside of these are measured again in float64."""
_PIECE: Final = 1 << 18
"""Multiplications in one matrix product. OpenBLAS shares out larger ones among threads, and those wait for each other:
with another busy process beside it that takes a hundred times as long as doing it alone."""
_FEW: Final = 16
"""Lanes up to which the loop is faster than the product."""
_PATIENCE: Final = 1 << 27
"""Vector elements that a process compares by products, some tenth of a second, before it loads the loop."""
_NO_ROWS: Final[Rows] = np.empty(0, np.int64)


def units(vectors: npt.NDArray[np.floating]) -> Vectors:
    """Vectors [n, D] at length 1, float32; one that is zero or not finite has no direction and becomes zero."""
    wide = np.asarray(vectors, dtype=np.float64)
    with np.errstate(all="ignore"):
        squares = np.vecdot(wide, wide)
        lengths = np.sqrt(squares)
        if squares.size and squares.min() > 0 and squares.max() < np.inf:  # as nearly always
            return np.asarray(wide / lengths[:, None], np.float32)
        out = (wide / lengths[:, None]).astype(np.float32)
        directed = np.isfinite(lengths) & (lengths > 0)
    return np.where(directed[:, None], out, np.float32(0))


def reciprocals(vectors: Vectors, is_active: npt.NDArray[np.uint8] | None) -> Floats:
    """Reciprocal lengths of vectors [n, D]: float32 [n].

    NaN: the row cannot seed, because it is pruned, zero or not finite (`is_active` None: pruned rows seed too).
    Infinity: it can, but its length has to be measured in float64.
    """
    with np.errstate(all="ignore"):
        squares = np.vecdot(vectors, vectors)
        out: Floats = 1 / np.sqrt(squares)
        # This runs for every thousand rows of the store: what is not there is not looked for one by one.
        if not (len(squares) and squares.min() > TINY and squares.max() < HUGE):
            odd = np.flatnonzero(~((squares > TINY) & (squares < HUGE)))
            out[odd] = np.where(units(vectors[odd]).any(axis=1), np.inf, np.nan)
        if is_active is not None and len(is_active) and not is_active.min():
            out[is_active == 0] = np.nan
    return out


class Scan:
    """The best rows so far of each lane, while vectors are walked in ascending order of rows.

    Args:
        directions: float32 [B, D], at length 1.
        k: How many are wanted of each lane.
        min_similarity: Rows below this cosine are of no interest; such as have it may be among the candidates.
    """

    def __init__(self, directions: Vectors, k: int, min_similarity: float) -> None:
        few = len(directions) <= _FEW
        loop = LOOP.get() if few else None
        self._few = few
        self._best: _Heaps | _Products
        if loop is not None:
            self._best = _Heaps(loop, directions, k, min_similarity)
        else:
            self._best = _Products(directions, k, min_similarity)

    def offer(self, first: int, vectors: Vectors, reciprocal: Floats) -> None:
        """Take what is good enough of the rows from `first` on.

        Args:
            first: Row of the first vector.
            vectors: float32 [n, D].
            reciprocal: float32 [n], as `reciprocals` gives it.
        """
        self._best.offer(first, vectors, reciprocal)
        if self._few:
            LOOP.worked(vectors.size)

    def candidates(self) -> tuple[Rows, Rows]:
        """(lane, row) of all that may be among a lane's k best, and not many more: int64 [n] each, by lane."""
        return self._best.candidates()


class _Heaps:
    """A heap of the best rows for each lane, filled by the loop."""

    def __init__(self, loop: Callable[..., None], directions: Vectors, k: int, min_similarity: float) -> None:
        lanes = len(directions)
        self._loop = loop
        self._k = k
        self._least = np.float32(min_similarity - ROUNDING)
        self._directions = np.ascontiguousarray(directions)
        self._rows = np.empty((lanes, k + SPARE), np.int64)
        self._similarity = np.empty((lanes, k + SPARE), np.float32)
        self._counts = np.zeros(lanes, np.int64)

    def offer(self, first: int, vectors: Vectors, reciprocal: Floats) -> None:
        self._loop(
            first,
            np.ascontiguousarray(vectors),
            np.ascontiguousarray(reciprocal),
            self._directions,
            self._least,
            self._rows,
            self._similarity,
            self._counts,
        )

    def candidates(self) -> tuple[Rows, Rows]:
        lanes, rows = [_NO_ROWS], [_NO_ROWS]
        for lane, count in enumerate(self._counts.tolist()):
            similarity, found = self._similarity[lane, :count], self._rows[lane, :count]
            if count > self._k:
                kth = np.partition(similarity, count - self._k)[count - self._k]
                found = found[similarity >= kth - np.float32(ROUNDING)]
            rows.append(found)
            lanes.append(np.full(len(found), lane))
        return np.concatenate(lanes), np.concatenate(rows)


class _Products:
    """The best rows of each lane, taken from matrix products, and the cosine below which no row is of interest."""

    def __init__(self, directions: Vectors, k: int, min_similarity: float) -> None:
        lanes = len(directions)
        self._directions = np.ascontiguousarray(directions.T)
        self._k = k
        self._bounds = np.full(lanes, min_similarity - ROUNDING, np.float32)
        self._parts: list[tuple[Rows, Rows, Floats]] = []
        self._waiting = 0
        self._room = 4 * lanes * (k + SPARE)

    def offer(self, first: int, vectors: Vectors, reciprocal: Floats) -> None:
        with np.errstate(all="ignore"):  # what no row should hold becomes NaN, and that is never good enough
            similarity = self._product(vectors)
            similarity *= reciprocal[:, None]
            odd = np.flatnonzero(np.isinf(reciprocal))
            if len(odd):
                similarity[odd] = units(vectors[odd]) @ self._directions
            self._take(first, similarity)

    def candidates(self) -> tuple[Rows, Rows]:
        self._condense()
        lanes, rows, _ = self._parts[0]
        return lanes, rows

    def _product(self, vectors: Vectors) -> Floats:
        """Vectors [n, D] times directions [D, B], piece by piece; float32 [n, B]."""
        dim, lanes = self._directions.shape
        out = np.empty((len(vectors), lanes), np.float32)
        wide = min(lanes, max(1, _PIECE // (32 * dim)))
        high = max(32, _PIECE // (dim * wide))
        for j in range(0, lanes, wide):
            for i in range(0, len(vectors), high):
                pieces = vectors[i : i + high], self._directions[:, j : j + wide]
                np.matmul(*pieces, out=out[i : i + high, j : j + wide])
        return out

    def _take(self, first: int, similarity: Floats) -> None:
        if len(self._bounds) == 1 and len(similarity) and similarity.max() < self._bounds[0]:
            return  # most chunks of a large graph, when one query asks
        hits = similarity >= self._bounds
        count = int(np.count_nonzero(hits))
        if not count:
            return
        if count > self._room and len(similarity) > self._k:
            last = len(similarity) - self._k
            kth = np.partition(np.where(similarity == similarity, similarity, -np.inf), last, axis=0)[last]
            self._bounds = np.maximum(self._bounds, kth - np.float32(ROUNDING))
            hits = similarity >= self._bounds
        rows, lanes = np.nonzero(hits)
        self._parts.append((lanes, rows + first, similarity[hits]))
        self._waiting += len(rows)
        if self._waiting > self._room:
            self._condense()

    def _condense(self) -> None:
        none = (_NO_ROWS, _NO_ROWS, np.empty(0, np.float32))
        lanes, rows, similarity = map(np.concatenate, zip(none, *self._parts, strict=True))
        order = np.lexsort((rows, -similarity, lanes))
        starts = np.searchsorted(lanes[order], np.arange(len(self._bounds)))
        place = np.arange(len(order)) - starts[lanes[order]]
        kth = order[place == self._k - 1]
        self._bounds[lanes[kth]] = np.maximum(self._bounds[lanes[kth]], similarity[kth] - np.float32(ROUNDING))
        order = order[place < self._k + SPARE]
        order = order[similarity[order] >= self._bounds[lanes[order]]]
        self._parts = [(lanes[order], rows[order], similarity[order])]
        self._waiting = len(order)


# --- the loop --------------------------------------------------------------------------------------------------------


def heaps(
    first: int,
    vectors: Vectors,
    reciprocal: Floats,
    directions: Vectors,
    least: Any,
    rows: npt.NDArray[np.int64],
    similarity: Floats,
    counts: npt.NDArray[np.int64],
) -> None:
    """Keep the best rows of each lane in a heap, the worst of them on top.

    Of equal cosines the lower row is the better one. A vector's cosine does not depend on its place.

    Args:
        first: Row of the first vector.
        vectors: float32 [n, D].
        reciprocal: float32 [n]; NaN: no row to be kept; infinity: to be measured in float64.
        directions: float32 [B, D].
        least: float32, rows below this are not kept.
        rows: int64 [B, room], each lane's heap.
        similarity: float32 [B, room], the cosines of `rows`.
        counts: int64 [B], how many there are; in and out, as the two before.
    """
    room = rows.shape[1]
    dim = vectors.shape[1]
    for i in range(len(vectors)):
        length = reciprocal[i]
        if length != length:
            continue
        for lane in range(len(directions)):
            if length > np.float32(3e38):
                square, wide = 0.0, 0.0
                for j in range(dim):
                    value = np.float64(vectors[i, j])
                    square += value * value
                    wide += value * np.float64(directions[lane, j])
                found = np.float32(wide / np.sqrt(square))
            else:
                dot = np.float32(0)
                for j in range(dim):
                    dot += vectors[i, j] * directions[lane, j]
                found = dot * length
            count = counts[lane]
            if count < room:
                if not found >= least:
                    continue
                at = count
                counts[lane] = count + 1
                while at > 0:
                    above = (at - 1) >> 1
                    if similarity[lane, above] < found or (
                        similarity[lane, above] == found and rows[lane, above] > first + i
                    ):
                        break
                    similarity[lane, at] = similarity[lane, above]
                    rows[lane, at] = rows[lane, above]
                    at = above
            else:
                if not found > similarity[lane, 0]:  # rows ascend: among equals the ones before are better
                    continue
                at = 0
                while True:
                    below = 2 * at + 1
                    if below >= room:
                        break
                    if below + 1 < room and (
                        similarity[lane, below + 1] < similarity[lane, below]
                        or (
                            similarity[lane, below + 1] == similarity[lane, below]
                            and rows[lane, below + 1] > rows[lane, below]
                        )
                    ):
                        below += 1
                    if similarity[lane, below] > found or (
                        similarity[lane, below] == found and rows[lane, below] < first + i
                    ):
                        break
                    similarity[lane, at] = similarity[lane, below]
                    rows[lane, at] = rows[lane, below]
                    at = below
            similarity[lane, at] = found
            rows[lane, at] = first + i


class _Loop:
    """The loop, once this process has worked enough to make loading it worth while."""

    def __init__(self) -> None:
        self._left = _PATIENCE
        self._tried = False
        self._loop: Callable[..., None] | None = None

    def worked(self, elements: int) -> None:
        """So many vector elements were compared."""
        self._left -= elements

    def get(self) -> Callable[..., None] | None:
        """The compiled loop; None: not yet, or numba compiles nothing here."""
        if self._left < 0:
            self.load()
        return self._loop

    def load(self) -> None:
        """Go on with the loop, or without it for good."""
        if not self._tried:
            self._loop = _load()
            self._tried = True


LOOP: Final = _Loop()


def _signature(t: Any) -> list[Any]:
    vectors = t.Array(t.float32, 2, "C", readonly=True)
    column = t.Array(t.float32, 1, "C", readonly=True)
    return [t.int64, vectors, column, vectors, t.float32, t.int64[:, ::1], t.float32[:, ::1], t.int64[::1]]


def _load() -> Callable[..., None] | None:
    # Sums in any order, so that they run in vector registers; NaN and infinity stay what they are.
    return compiled_or_none("scans", heaps, _signature, fastmath={"reassoc", "contract", "nsz"})
