"""Plasticity: what a retrieval changes in the graph, so that what is used survives and what follows is linked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aesg.config import AESGConfig
from aesg.engine.activation import Activation
from aesg.protocols import Graph
from aesg.records import NODE_FIELDS, Refs, Rows, now, ranges

_MOST_USES = np.iinfo(NODE_FIELDS["use_frequency"]).max
_FASTEST = 1 - 2.0**-50
"""A rate of 1 goes all the way, as near as makes no difference."""


def credit(graph: Graph, config: AESGConfig, activations: Sequence[Activation], previous: Sequence[int | None]) -> None:
    """Learn from a batch of retrievals; a row or edge that several lanes used counts once for each.

    * Nodes returned with energy: used once more, relevance `credit_rate` of the way to 1.
    * Edges that carried energy to them: used once more, weight and confidence towards 1. The first use takes them
      `reinforce_rate` of the way, and so does each doubling of uses: see `_practised`.
    * Succession: each lane's previous first concept is linked to its present one. An existing link is reinforced
      instead. A source that has `max_edges_per_node` edges gives up its weakest one for it (weight * confidence, then
      the oldest); one that has more is left alone.

    Rows that are pruned, or gone, learn nothing.

    Args:
        graph: A transaction, so that all of it is learnt or nothing.
        config: Its rates, each of which can be 0.
        activations: What each lane's query activated.
        previous: Each lane's first concept of the query before, None where there is none.
    """
    if config.credit_rate > 0:
        _credit_nodes(
            graph, config.credit_rate, np.concatenate([_NO_ROWS, *(a.rows[a.energies > 0] for a in activations)])
        )
    used = np.concatenate([_NO_ROWS, *(a.transfers for a in activations)])
    if config.temporal_weight <= 0:
        _reinforce(graph, config.reinforce_rate, used)
        return
    steps = [
        (before, int(a.rows[0]))
        for before, a in zip(previous, activations, strict=True)
        if before is not None and len(a.rows) and a.energies[0] > 0 and before != a.rows[0]
    ]
    sources, targets, times = _succession(graph, steps)
    links = _links(graph, sources, targets)
    known = links >= 0
    _reinforce(graph, config.reinforce_rate, np.concatenate([used, np.repeat(links[known], times[known])]))
    made = _link(graph, config, sources[~known], targets[~known])
    again = np.repeat(made, times[~known] - 1)  # lanes that made the same step after the first
    _reinforce(graph, config.reinforce_rate, again[again >= 0])


def link_newborn(graph: Graph, config: AESGConfig, rows: Rows, activations: Sequence[Activation]) -> None:
    """Link concepts just born to what their births activated.

    A newborn concept is the nearest to the input that it came from, so it takes nearly all energy when that input comes
    again. Over these edges the energy goes on to where it went before.

    Args:
        graph: Where they were born.
        config: `birth_confidence` and `num_primary`.
        rows: The newborn, int64 [n].
        activations: What each one's input activated before its birth, [n].
    """
    if config.birth_confidence <= 0:
        return
    for row, activation in zip(rows.tolist(), activations, strict=True):
        primary = slice(config.num_primary)
        near = np.flatnonzero((activation.energies[primary] > 0) & (activation.cosines[primary] > 0))
        sources = np.full(len(near), row)
        graph.edges.append(sources, activation.rows[near], activation.cosines[near], config.birth_confidence)


_NO_ROWS: Rows = np.empty(0, np.int64)


def _credit_nodes(graph: Graph, rate: float, returned: Rows) -> None:
    """Credit returned rows, repeats as often as they come."""
    rows, times = np.unique(returned, return_counts=True)
    here = rows < len(graph.nodes)
    rows, times = rows[here], times[here]
    state = graph.nodes.read(rows, ["use_frequency", "relevance", "is_active"])
    live = state["is_active"] != 0
    if not live.any():
        return
    uses = state["use_frequency"][live].astype(np.int64) + times[live]
    graph.nodes.write(
        rows[live],
        use_frequency=np.minimum(uses, _MOST_USES).astype(np.uint32),
        relevance=_raised(state["relevance"][live], rate, times[live]),
        modified_at=now(),
    )


def _reinforce(graph: Graph, rate: float, used: Refs) -> None:
    """Reinforce used edges, repeats as often as they come."""
    if rate <= 0 or not len(used):
        return
    refs, times = np.unique(used, return_counts=True)
    edges = graph.edges.read(refs, ["weight", "confidence", "use_count"])
    uses = edges["use_count"].astype(np.int64)
    graph.edges.write(
        refs,
        weight=_practised(edges["weight"], rate, uses, times),
        confidence=_practised(edges["confidence"], rate, uses, times),
        use_count=np.minimum(uses + times, _MOST_USES).astype(np.uint32),
    )


def _practised(
    values: npt.NDArray[np.float32], rate: float, uses: npt.NDArray[np.integer], times: npt.NDArray[np.integer]
) -> npt.NDArray[np.float32]:
    """Values after `times` more uses, towards 1; what is above 1 already stays.

    What is left of the way to 1 falls with the number of uses n as (1 + n) ** -k, the power law of practice (Newell and
    Rosenbloom, 1981); 2 ** -k = 1 - rate. Were it a fixed share with every use, some fifty would make all edges alike,
    and what their weights said would be gone. It does not matter whether uses come together or one by one.
    """
    k = -np.log2(1 - min(rate, _FASTEST))
    left = ((1 + uses) / (1 + uses + times)) ** k
    practised: npt.NDArray[np.float32] = np.maximum(values, 1 - (1 - values) * left).astype(np.float32)
    return practised


def _raised(values: npt.NDArray[np.float32], rate: float, times: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """Each value `rate` of the way to 1, `times` over; what is above 1 already stays."""
    raised: npt.NDArray[np.float32] = np.maximum(values, 1 - (1 - values) * (1 - rate) ** times).astype(np.float32)
    return raised


def _succession(graph: Graph, steps: list[tuple[int, int]]) -> tuple[Rows, Rows, npt.NDArray[np.int64]]:
    """Distinct steps between active rows: sources, targets, and how often each was made."""
    pairs = np.array(steps, np.int64).reshape(-1, 2)
    pairs = pairs[((pairs >= 0) & (pairs < len(graph.nodes))).all(axis=1)]
    live = graph.nodes.read(pairs.ravel(), ["is_active"])["is_active"].reshape(-1, 2) != 0
    distinct, times = np.unique(pairs[live.all(axis=1)], axis=0, return_counts=True)
    return distinct[:, 0], distinct[:, 1], times


def _links(graph: Graph, sources: Rows, targets: Rows) -> Refs:
    """The newest edge from each source to its target, -1 where there is none; int64 [n]."""
    found = np.full(len(sources), -1)
    adjacency = graph.edges.out_edges(sources)
    pair = np.repeat(np.arange(len(sources)), adjacency.degrees)
    hits = np.flatnonzero(adjacency.target_rows == targets[pair])[::-1]
    found[pair[hits]] = adjacency.refs[hits]  # of repeated assignments the last one, the newest edge, stays
    return found


def _link(graph: Graph, config: AESGConfig, sources: Rows, targets: Rows) -> Refs:
    """Append edges that do not exist yet, within `max_edges_per_node`; their refs, -1 where none was made.

    Args:
        graph: Where they are made.
        config: The limit, and weight and confidence of new edges.
        sources: int64 [n], ascending.
        targets: int64 [n].
    """
    made = np.full(len(sources), -1)
    if not len(sources):
        return made
    distinct, first, count = np.unique(sources, return_index=True, return_counts=True)
    degrees = graph.edges.degrees(distinct)
    limit = config.max_edges_per_node
    wanted = np.where(degrees > limit, 0, np.minimum(count, limit))
    full = np.flatnonzero((wanted > 0) & (degrees + wanted > limit))
    if len(full):
        graph.edges.remove(_weakest(graph, distinct[full], (degrees + wanted - limit)[full]))
    some = ranges(first, wanted)
    made[some] = graph.edges.append(sources[some], targets[some], config.temporal_weight, config.temporal_confidence)
    return made


def _weakest(graph: Graph, sources: Rows, counts: npt.NDArray[np.int64]) -> Refs:
    """The `counts[i]` weakest edges of each source."""
    adjacency = graph.edges.out_edges(sources)
    owner = np.repeat(np.arange(len(sources)), adjacency.degrees)
    strength = adjacency.weight.astype(np.float64) * adjacency.confidence
    order = np.lexsort((adjacency.refs, strength, owner))
    return adjacency.refs[order[ranges(adjacency.indptr[:-1], counts)]]
