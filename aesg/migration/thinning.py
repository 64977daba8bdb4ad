"""A source without some of its nodes and edges: what `compact()` would drop, and edges that lead nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from aesg.migration.copying import Events, GraphSource
from aesg.protocols import Progress
from aesg.records import JSON, Columns


class Thinned:
    """A graph as a source without its pruned nodes and the edges at them, or only without edges that name no node.

    The ends of edges are read once when this is made, to count; 4 bytes a node are kept.

    Args:
        source: The whole graph.
        compact: Leave out nodes that were pruned, and edges from and to them.
        progress: Told about the reading.

    Attributes:
        dropped_nodes: How many are left out.
        dropped_edges: How many are left out because a node at their end is.
        dangling_edges: How many are left out because there is no node at one of their ends.
    """

    def __init__(self, source: GraphSource, *, compact: bool, progress: Progress | None = None) -> None:
        self._source = source
        self.url = source.url
        self.vector_dim = source.vector_dim
        self.attrs: Mapping[str, JSON] = source.attrs
        self.event_count = source.event_count
        self.node_count = source.node_count
        self._new_row: npt.NDArray[np.int32] | None = None
        if compact:
            flags = source.nodes(["is_active"])
            stays = np.concatenate([np.zeros(0, np.bool_), *(chunk["is_active"] == 1 for chunk in flags)])
            self._new_row = np.where(stays, np.cumsum(stays, dtype=np.int32) - 1, -1).astype(np.int32)
            self.node_count = int(np.count_nonzero(stays))
        self.dropped_nodes = source.node_count - self.node_count
        self.dangling_edges = self.edge_count = done = 0
        for chunk in source.edges(["source_row", "target_row"]):
            self.dangling_edges += int(np.count_nonzero(_is_dangling(chunk)))
            self.edge_count += int(np.count_nonzero(self._kept(chunk)[0]))
            done += len(chunk["ref"])
            if progress is not None:
                progress("counting edges", done, source.edge_count)
        self.dropped_edges = source.edge_count - self.edge_count - self.dangling_edges

    def nodes(self) -> Iterator[Columns]:
        first = 0
        for chunk in self._source.nodes():
            last = first + len(chunk["id"])
            if self._new_row is None:
                yield chunk
            else:
                kept = self._new_row[first:last] >= 0
                if kept.any():
                    yield {name: values[kept] for name, values in chunk.items()}
            first = last

    def edges(self) -> Iterator[Columns]:
        for chunk in self._source.edges():
            kept, sources, targets = self._kept(chunk)
            if kept.any():
                thinned = {name: values[kept] for name, values in chunk.items()}
                yield {**thinned, "source_row": sources[kept], "target_row": targets[kept]}

    def events(self) -> Iterator[Events]:
        return self._source.events()

    def _kept(self, chunk: Columns) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Which edges stay, and the new rows of their ends."""
        kept = ~_is_dangling(chunk)
        sources, targets = chunk["source_row"], chunk["target_row"]
        if self._new_row is not None:
            sources = _looked_up(self._new_row, sources)
            targets = _looked_up(self._new_row, targets)
            kept &= (sources >= 0) & (targets >= 0)
        return kept, sources, targets


def _is_dangling(chunk: Columns) -> npt.NDArray[np.bool_]:
    return np.asarray((chunk["source_row"] < 0) | (chunk["target_row"] < 0))


def _looked_up(new_row: npt.NDArray[np.int32], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """New rows, -1 where there is none."""
    found = np.full(len(rows), -1, np.int64)
    inside = rows >= 0
    found[inside] = new_row[rows[inside]]
    return found
