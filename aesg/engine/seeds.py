"""Seeds: the nearest active rows of a query.

Candidates come from an exact scan of all vectors (`aesg.engine.scan`) or, in large stores, from an index
(`aesg.engine.index`). Either way the few that come out are read from the graph and compared once more, each on its own:
equal vectors get equal cosines, a query's result does not depend on its company, and nothing that an index remembers
wrongly is ever given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from aesg.engine import kernels
from aesg.engine.index import Source, source_of
from aesg.engine.kernels import LOOPS
from aesg.engine.lengths import Lengths
from aesg.engine.scan import Floats, Scan, reciprocals, units
from aesg.errors import NotFoundError
from aesg.protocols import Graph
from aesg.records import Columns, Rows, Vectors, numbered
from aesg.threads import in_threads, parts

_WORTH_A_THREAD: Final = 2048
"""Vectors to compare that are worth waking a thread for."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest active rows of one query, best first; ties by row.

    Attributes:
        rows: int64 [k].
        cosines: float32 [k].
    """

    rows: Rows
    cosines: Floats


def cosines(vectors: Vectors, which: Rows, directions: Vectors, towards: Rows) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Cosines of vectors with unit directions.

    Args:
        vectors: float32 [m, D].
        which: int64 [n], which of them.
        directions: float32 [B, D].
        towards: int64 [n], which of those each is compared with.

    Returns:
        float32 [n] in [-1, 1], 0 where either has no direction; and bool [n], whether both have one.
    """
    out, directed = np.empty(len(which), np.float32), np.empty(len(which), np.bool_)
    vectors, loop = np.ascontiguousarray(vectors), LOOPS.get(kernels.cosines, len(which) * vectors.shape[1])

    def compare(some: slice) -> None:
        loop(vectors, which[some], directions, towards[some], out[some], directed[some])

    in_threads(compare, parts(len(which), _WORTH_A_THREAD))
    return out, directed


def read(graph: Graph, rows: Rows, fields: Sequence[str]) -> Columns:
    """`graph.nodes.read`, asking for each row once and in ascending order, as stores like it best."""
    if len(rows) < 2 or bool((rows[1:] > rows[:-1]).all()):
        return graph.nodes.read(rows, fields)
    wanted, where = numbered(rows)
    return {name: column[where] for name, column in graph.nodes.read(wanted, fields).items()}


def nearest(
    graph: Graph,
    queries: Vectors,
    k: int,
    min_similarity: float,
    *,
    include_pruned: bool = False,
    index: Source | None = None,
) -> list[Nearest]:
    """The at most `k` active rows of highest cosine above `min_similarity`, for each query: one search for all.

    Zero vectors and, in stores of 0.3.0, such as are not finite are nobody's neighbours; a zero query has none.

    Args:
        graph: Where to look.
        queries: float32 [B, D].
        k: At least 1.
        min_similarity: Exclusive.
        include_pruned: Pruned rows count too (0.3.0); where there are any, the search is exact.
        index: Where candidates may come from; None takes what was announced for the graph, if anything was.
    """
    return towards(graph, units(queries), k, min_similarity, include_pruned=include_pruned, index=index)


def towards(
    graph: Graph,
    directions: Vectors,
    k: int,
    min_similarity: float,
    *,
    include_pruned: bool = False,
    index: Source | None = None,
) -> list[Nearest]:
    """`nearest` for directions [B, D] of length 1, or 0."""
    asking = np.flatnonzero(directions.any(axis=1))
    found = [Nearest(np.empty(0, np.int64), np.empty(0, np.float32))] * len(directions)
    if not len(asking):
        return found
    wanted = directions[asking]
    best = _indexed(graph, wanted, k, min_similarity, include_pruned, index)
    if best is None:
        best = exact(graph, wanted, k, min_similarity, include_pruned=include_pruned)
    for lane, one in zip(asking.tolist(), best, strict=True):
        found[lane] = one
    return found


def exact(
    graph: Graph, directions: Vectors, k: int, min_similarity: float, *, include_pruned: bool = False
) -> list[Nearest]:
    """`nearest` for unit directions [B, D], by one scan of all vectors."""
    if not len(directions):
        return []
    scan = Scan(directions, k, min_similarity)
    lengths = Lengths(graph, include_pruned)
    first = 0
    for chunk in graph.nodes.scan(lengths.fields):
        vectors = chunk["vector"]
        reciprocal = lengths.known(first, first + len(vectors))
        if reciprocal is None:
            reciprocal = reciprocals(vectors, None if include_pruned else _is_active(graph, chunk, first))
            lengths.measured(reciprocal)
        scan.offer(first, vectors, reciprocal)
        first += len(vectors)
    lengths.keep()
    return _ranked(graph, directions, *scan.candidates(), k, min_similarity)


def _indexed(
    graph: Graph, directions: Vectors, k: int, min_similarity: float, include_pruned: bool, index: Source | None
) -> list[Nearest] | None:
    """`nearest` by an index; None where there is none, or not one that knows the graph as it is."""
    index = source_of(graph) if index is None else index
    if index is None:
        return None
    candidates = index.candidates(graph, directions, k, min_similarity, include_pruned=include_pruned)
    if candidates is None:
        return None
    try:
        return _ranked(graph, directions, *candidates, k, min_similarity, indexed=True)
    except NotFoundError:  # the store was compacted since the index was asked
        return None


def _ranked(
    graph: Graph,
    directions: Vectors,
    lanes: Rows,
    rows: Rows,
    k: int,
    min_similarity: float,
    *,
    indexed: bool = False,
) -> list[Nearest]:
    """The best of the candidates, by what the graph has: (lane, row) each, int64 [n].

    Args:
        graph: Where they are read.
        directions: float32 [B, D].
        lanes: int64 [n].
        rows: int64 [n].
        k: See `nearest`.
        min_similarity: See `nearest`.
        indexed: Candidates may repeat, or have been pruned.
    """
    fields = ["vector", "is_active"] if indexed else ["vector"]
    # Stores like rows best in ascending order and each but once; in one lane hardly any repeats.
    wanted, where = (rows, np.arange(len(rows))) if len(directions) == 1 else numbered(rows)
    columns = graph.nodes.read(wanted, fields)
    similarity, directed = cosines(columns["vector"], where, directions, lanes)
    if not indexed:
        directed.fill(True)
    is_active = columns["is_active"] if indexed else np.ones(len(wanted), np.uint8)
    best_rows, best = np.empty((len(directions), k), np.int64), np.empty((len(directions), k), np.float32)
    counts = np.zeros(len(directions), np.int64)
    loop = LOOPS.get(kernels.rank, len(rows))
    loop(rows, lanes, where, similarity, directed, is_active, np.float32(min_similarity), best_rows, best, counts)
    return [Nearest(best_rows[i, :count], best[i, :count]) for i, count in enumerate(counts.tolist())]


def _is_active(graph: Graph, chunk: Columns, first: int) -> npt.NDArray[np.uint8]:
    if "is_active" in chunk:
        return chunk["is_active"]
    # Rows that another thread committed between the look at the generation and the scan.
    return graph.nodes.read(np.arange(first, first + len(chunk["vector"])), ["is_active"])["is_active"]


__all__ = ["Floats", "Nearest", "cosines", "exact", "nearest", "read", "towards", "units"]
