"""Compacting a store for good: what is dropped is nowhere afterwards, and the file system has its room again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aesg.backends import registry
from aesg.engine.index.sidecar import Sidecar
from aesg.protocols import GraphStore
from aesg.records import Rows


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did.

    Attributes:
        url: The store's.
        row_map: int64 [old length]: each old row's new row, -1 where it was dropped.
        min_confidence: Edges below were dropped; None where there was no such bound.
        nodes: Nodes that are left.
        edges: Edges that are left.
        dropped_nodes: How many were dropped.
        dropped_edges: How many were dropped that had not been removed before.
        bytes_before: Bytes on disk.
        bytes_after: Bytes on disk.
        index_dropped: Whether there was a seed index; it is built anew when the memory is next opened.
        not_reclaimed: Why room, and what was in it, could not be given back; "" when it was.
    """

    url: str
    row_map: Rows
    min_confidence: float | None
    nodes: int
    edges: int
    dropped_nodes: int
    dropped_edges: int
    bytes_before: int
    bytes_after: int
    index_dropped: bool
    not_reclaimed: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the row map."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "row_map"}


def compact(url: str, *, min_confidence: float | None = None) -> Compacted:
    """Drop pruned nodes, their edges, removed edges, and edges of too little confidence.

    A kill leaves the store as it was, or compacted; after a kill, compact it again, so that nothing is left of what
    was dropped. Where a backend keeps a history, there is none before this afterwards. The seed index is dropped first.

    Args:
        url: Where the store lies.
        min_confidence: Edges of less confidence are dropped; None takes the `prune_confidence_threshold` of the
            configuration that the store holds, if it holds one and that is above 0.

    Raises:
        LockedError: Somebody has it open for writing.
        CapacityError: There is no room for the compacted store beside the other; nothing was changed.
    """
    with registry.open(url) as store:
        least = threshold_of(store) if min_confidence is None else min_confidence
        before, edges = _bytes(store), len(store.edges)
        dropped = _drop_index(store)
        row_map = store.compact(min_confidence=least)
        forget: Callable[[], None] | None = getattr(store, "forget_history", None)  # not every store is a `Store`
        if forget is not None:
            forget()
        store.flush()
        stats = store.stats()
        return Compacted(
            url=store.url,
            row_map=row_map,
            min_confidence=least,
            nodes=len(store.nodes),
            edges=len(store.edges),
            dropped_nodes=len(row_map) - len(store.nodes),
            dropped_edges=edges - len(store.edges),
            bytes_before=before,
            bytes_after=_bytes(store),
            index_dropped=dropped,
            not_reclaimed=str(stats.get("not_reclaimed", "")),
        )


def threshold_of(store: GraphStore) -> float | None:
    """The confidence below which the store's own configuration prunes edges; None where it says nothing of that."""
    config = store.attrs.get("config")
    least = config.get("prune_confidence_threshold") if isinstance(config, dict) else None
    return float(least) if isinstance(least, (int, float)) and least > 0 else None


def _bytes(store: GraphStore) -> int:
    return int(store.stats().get("bytes_on_disk", 0))


def _drop_index(store: GraphStore) -> bool:
    _, folder = registry.index_of(store)
    return folder is not None and Sidecar(folder, store.uuid, store.vector_dim).drop()
