"""Consolidation: everything ages, what is not used is forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from aesg.config import AESGConfig
from aesg.engine.structure import restructure
from aesg.protocols import Graph
from aesg.records import Columns, EventType, Rows, events

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
    """

    epoch: int
    active: int
    pruned: int
    removed_edges: int


def consolidate(graph: Graph, config: AESGConfig) -> Report:
    """Let an epoch pass.

    Active nodes age and lose relevance. If more than `max_concepts` are active the least relevant surplus is pruned,
    and so is what is old, irrelevant and seldom used. Edges lose confidence, and those that have too little are
    removed. Every `consolidation_epoch_interval`-th epoch the graph is restructured. Every prune is logged, once.

    One scan finds out what is to be pruned, one transform writes the columns; no call is made per node.
    """
    epoch = _epoch(graph)
    active, pruned = _age_and_prune(graph, config)
    ids = graph.nodes.read(pruned, ["id"])["id"]
    graph.events.append(events(EventType.PRUNE, ids))
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
    ageing = partial(
        _aged,
        decay=config.relevance_decay,
        least_relevance=config.survival_threshold_relevance,
        least_uses=config.survival_threshold_frequency,
    )
    reads, writes = ["is_active", "age", "relevance", "use_frequency"], ["is_active", "age", "relevance"]
    may_be_crowded = len(graph.nodes) > config.max_concepts
    active, first = 0, 0
    forgotten = [np.empty(0, np.int64)]
    relevance = []  # of active rows as it will be, infinite for others
    for chunk in graph.nodes.scan(reads):
        after = ageing(chunk)
        was = chunk["is_active"] != 0
        active += int(np.count_nonzero(was))
        gone = np.flatnonzero(was & (after["is_active"] == 0))
        forgotten.append(gone + first)
        if may_be_crowded:
            relevance.append(np.where(was, after["relevance"], np.float32(np.inf)))
        first += len(was)
    pruned = np.concatenate(forgotten)
    graph.nodes.transform(ageing, reads, writes)
    if active > config.max_concepts:
        surplus = np.setdiff1d(_least(np.concatenate(relevance), active - config.max_concepts), pruned)
        graph.nodes.write(surplus, is_active=0)
        pruned = np.sort(np.concatenate([pruned, surplus]))
    return active, pruned


def _aged(columns: Columns, decay: float, least_relevance: float, least_uses: int) -> Columns:
    """Columns an epoch later."""
    active = columns["is_active"] != 0
    age = columns["age"] + active.astype(np.uint32)
    relevance = np.where(active, columns["relevance"] * np.float32(decay), columns["relevance"])
    forgotten = (age > _YOUNG) & (relevance < least_relevance) & (columns["use_frequency"] < least_uses)
    return {"is_active": (active & ~forgotten).astype(np.uint8), "age": age, "relevance": relevance}


def _least(values: npt.NDArray[np.float32], count: int) -> Rows:
    """Positions of the `count` least values; of equal ones the first."""
    last = np.partition(values, count - 1)[count - 1]
    less = np.flatnonzero(values < last)
    return np.concatenate([less, np.flatnonzero(values == last)[: count - len(less)]])


def _decay_edges(graph: Graph, config: AESGConfig) -> int:
    """Returns: how many edges were removed."""
    if not len(graph.edges):
        return 0
    if config.edge_confidence_decay != 1:
        graph.edges.transform(partial(_faded, decay=config.edge_confidence_decay), ["confidence"], ["confidence"])
    if config.prune_confidence_threshold <= 0:
        return 0
    least = config.prune_confidence_threshold
    weak = [chunk["ref"][chunk["confidence"] < least] for chunk in graph.edges.scan(["confidence"])]
    refs = np.concatenate(weak)
    graph.edges.remove(refs)
    return len(refs)


def _faded(columns: Columns, decay: float) -> Columns:
    return {"confidence": columns["confidence"] * np.float32(decay)}
