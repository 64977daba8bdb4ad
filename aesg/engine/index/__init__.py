"""The seed index: where candidates come from when a store is too large to be scanned for every query.

Only what `aesg.engine.seeds` needs is here; the index itself is `aesg.engine.index.owner`.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary, ref

from aesg.protocols import Graph
from aesg.records import Rows, Vectors


class Source(Protocol):
    """Something that knows candidates."""

    def candidates(
        self, graph: Graph, directions: Vectors, k: int, min_similarity: float, *, include_pruned: bool = False
    ) -> tuple[Rows, Rows] | None:
        """(lane, row) of what may be among each direction's `k` best, int64 [n] each; may repeat.

        Args:
            graph: The graph as it is now, pending writes included.
            directions: float32 [B, D], at length 1.
            k: How many are wanted.
            min_similarity: Rows below this cosine are of no interest.
            include_pruned: Pruned rows count too.

        Returns:
            None: it does not know the graph as it is, or there are pruned rows that count; scan.
        """


_sources: Final[MutableMapping[Any, ref[Source]]] = WeakKeyDictionary()


def announce(graph: Graph, source: Source) -> None:
    """Have queries of a graph take their candidates from a source, for as long as both live."""
    _sources[graph] = ref(source)


def source_of(graph: Graph) -> Source | None:
    """The source that was announced for a graph."""
    try:
        found = _sources.get(graph)
    except TypeError:  # a class of somebody else's with __slots__: nothing can be known of it
        return None
    return None if found is None else found()
