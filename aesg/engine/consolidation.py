"""Consolidation: everything ages, what is not used is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from aesg.config import AESGConfig
from aesg.engine.structure import restructure
from aesg.protocols import Graph
from aesg.records import Columns, EventType, Ids, Rows, events

_EVENTS = 1 << 14
"""Events that are written at once: they stay in a core's cache from their making to their writing."""
_YOUNG = 5
"""Nodes are safe until they are older than so many epochs (0.3.0's number)."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a consolidation did.

    Attributes:
        epoch: Its number, from 0.
        active: Active nodes before it.
        pruned: How many of them it pruned.
        removed_edges: How many edges it removed.
        row_map: int64 [old length], where the store was compacted after it: each old row's new row, -1 where it was
            dropped. None where rows are what they were.
    """

    epoch: int
    active: int
    pruned: int
    removed_edges: int
    row_map: Rows | None = field(default=None, compare=False)


def consolidate(graph: Graph, config: AESGConfig) -> Report:
    """Let an epoch pass.

    Active nodes age and lose relevance. If more than `max_concepts` are active the least relevant surplus is pruned,
    and so is what is old, irrelevant and seldom used. Edges lose confidence, and those that have too little are
    removed. Every `consolidation_epoch_interval`-th epoch the graph is restructured. Every prune is logged, once.

    One transform writes the columns and finds out what is pruned; no call is made per node.
    """
    epoch = _epoch(graph)
    active, pruned = _age_and_prune(graph, config)
    ids = _ids(graph, pruned)
    for start in range(0, len(ids), _EVENTS):
        graph.events.append(events(EventType.PRUNE, ids[start : start + _EVENTS]))
    graph.events.append(events(EventType.CONSOLIDATE, epoch, active))
    removed = _decay_edges(graph, config)
    interval = config.consolidation_epoch_interval
    if interval and (epoch + 1) % interval == 0:
        restructure(graph, config, epoch)
    graph.attrs["epoch"] = epoch + 1
    return Report(epoch, active, len(pruned), removed)


def _epoch(graph: Graph) -> int:
    epoch = graph.attrs.get("epoch", 0)
    return epoch if isinstance(epoch, int) else 0


def _age_and_prune(graph: Graph, config: AESGConfig) -> tuple[int, Rows]:
    """Returns: how many nodes were active, and the rows that no longer are, ascending."""
    returns = ["active", "pruned"]
    if len(graph.nodes) > config.max_concepts:
        returns.append("standing")
    ageing = partial(
        _aged,
        decay=config.relevance_decay,
        least_relevance=config.survival_threshold_relevance,
        least_uses=config.survival_threshold_frequency,
        returns=returns,
    )
    reads = ["row", "is_active", "age", "relevance", "use_frequency"]
    found = graph.nodes.transform(ageing, reads, ["is_active", "age", "relevance"], returns)
    active, pruned = int(found["active"].sum()), found["pruned"]
    if active > config.max_concepts:
        least = np.sort(_least(found["standing"], active - config.max_concepts))
        surplus = least[~np.isin(least, pruned)]
        graph.nodes.write(surplus, is_active=0)
        pruned = np.sort(np.concatenate([pruned, surplus]))
    return active, pruned


def _aged(columns: Columns, decay: float, least_relevance: float, least_uses: int, returns: Sequence[str]) -> Columns:
    """Columns an epoch later; and how many rows were active, which no longer are, and how relevant the others are.

    Rows that were not active stand out as infinitely relevant.
    """
    active = columns["is_active"] != 0
    age = columns["age"] + active
    relevance = columns["relevance"] * np.float32(decay)
    count = np.count_nonzero(active)
    if count < len(active):
        relevance = np.where(active, relevance, columns["relevance"])
    forgotten = active & (relevance < least_relevance)
    if forgotten.any():  # the other conditions are looked at where this one holds
        forgotten &= (age > _YOUNG) & (columns["use_frequency"] < least_uses)
    out = {"is_active": (active & ~forgotten).view(np.uint8), "age": age, "relevance": relevance}
    out |= {"active": np.array([count]), "pruned": columns["row"][forgotten]}
    if "standing" in returns:
        out["standing"] = np.where(active, relevance, np.float32(np.inf))
    return out


def _ids(graph: Graph, rows: Rows) -> Ids:
    """Ids of ascending rows; of many by a walk through all, which takes a third of the time."""
    if len(rows) <= len(graph.nodes) // 16:
        return graph.nodes.read(rows, ["id"])["id"]
    found, start, first = np.empty(len(rows), np.uint64), 0, 0
    for chunk in graph.nodes.scan(["id"]):
        start += len(chunk["id"])
        last = int(np.searchsorted(rows, start))
        found[first:last] = chunk["id"][rows[first:last] - (start - len(chunk["id"]))]
        first = last
    return found


def _least(values: npt.NDArray[np.float32], count: int) -> Rows:
    """Positions of the `count` least values; of equal ones the first."""
    last = np.partition(values, count - 1)[count - 1]
    less = np.flatnonzero(values < last)
    return np.concatenate([less, np.flatnonzero(values == last)[: count - len(less)]])


def _decay_edges(graph: Graph, config: AESGConfig) -> int:
    """Returns: how many edges were removed."""
    if not len(graph.edges) or (config.edge_confidence_decay == 1 and config.prune_confidence_threshold <= 0):
        return 0
    # Nothing to be written: then it only looks.
    fades = ["confidence"] if config.edge_confidence_decay != 1 else []
    fading = partial(_faded, decay=config.edge_confidence_decay, least=config.prune_confidence_threshold, writes=fades)
    refs = graph.edges.transform(fading, ["ref", "confidence"], fades, ["weak"])["weak"]
    graph.edges.remove(refs)
    return len(refs)


def _faded(columns: Columns, decay: float, least: float, writes: Sequence[str]) -> Columns:
    """Confidence an epoch later, and the refs of edges that have too little."""
    confidence = columns["confidence"] * np.float32(decay)
    weak = columns["ref"][confidence < least] if least > 0 else columns["ref"][:0]
    return {"weak": weak} | ({"confidence": confidence} if writes else {})
