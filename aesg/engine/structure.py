"""Structure: concepts are born, abstracted, merged, split, and gathered into regions.

Only concepts born of experience are merged or split. A concept that somebody added by hand must stay what it is; it is
told apart by its stability, a field of the 0.3.0 record that had no other use: 0.5 for what experience left, `FIXED`
for what was put there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from aesg.config import AESGConfig
from aesg.engine.seeds import cosines, read, units
from aesg.errors import InvalidInputError
from aesg.protocols import Graph
from aesg.records import (
    NODE_DEFAULTS,
    NODE_FIELDS,
    EventType,
    NodeBatch,
    Rows,
    Vectors,
    distinct,
    events,
    new_ids,
    now,
    ranges,
)

FIXED: Final = 1.0
"""Stability from which on a concept keeps its identity: it is never merged or split."""
LINK_WEIGHT: Final = 1.0
LINK_CONFIDENCE: Final = 0.5
"""Of the edges between an abstract concept and its sources, and between the halves of a split one (0.3.0's)."""
_ROUNDS: Final = 10
"""Of label propagation, and of 2-means, at most."""
_BLOCK: Final = 1 << 15
"""Nodes whose votes are counted at once."""
_PAIRS: Final = 1 << 18
"""Edges whose ends' vectors are compared at once, divided by D."""


def create_sensory(
    graph: Graph,
    vectors: Vectors,
    ids: npt.NDArray[np.uint64] | None = None,
    *,
    stability: float = NODE_DEFAULTS["stability"],
) -> Rows:
    """Store stimuli as they are: a node and a CREATE event each.

    Args:
        graph: Where.
        vectors: float32 [n, D].
        ids: uint64 [n], unique; random when None.
        stability: `FIXED` for concepts that are given rather than experienced.

    Returns:
        Their rows.
    """
    count = len(vectors)
    if ids is None:
        ids = new_ids(count)
    rows = graph.nodes.append(NodeBatch(vectors, ids, {"stability": np.full(count, stability, np.float32)}))
    graph.events.append(events(EventType.CREATE, ids, val=1.0))
    return rows


def create_abstract(graph: Graph, source_rows: npt.ArrayLike, vector: npt.NDArray[np.float32] | None = None) -> int:
    """Create a concept over others, linked with each of them both ways.

    Args:
        graph: Where.
        source_rows: int [n], at least one.
        vector: float32 [D]; the mean of the sources when None.

    Returns:
        Its row.

    Raises:
        InvalidInputError: No source.
    """
    sources = np.atleast_1d(np.asarray(source_rows))
    if not len(sources):
        raise InvalidInputError("an abstract concept needs at least one source")
    known = graph.nodes.read(sources, ["id", "vector"])
    if vector is None:
        vector = known["vector"].mean(axis=0, dtype=np.float64).astype(np.float32)
    rows = graph.nodes.append(NodeBatch(vector[None]))
    _link_both_ways(graph, np.repeat(rows, len(sources)), sources)
    new_id = graph.nodes.read(rows, ["id"])["id"]
    graph.events.append(events(EventType.CREATE, new_id, known["id"][0], len(sources)))
    return int(rows[0])


def merge(graph: Graph, keep_row: int, gone_row: int) -> None:
    """Make one concept of two: the vector becomes their mean by use, all edges go to the one that stays.

    Raises:
        InvalidInputError: Both are the same row.
    """
    if keep_row == gone_row:
        raise InvalidInputError(f"row {keep_row} cannot be merged with itself")
    _merge(graph, np.array([keep_row], np.int64), np.array([gone_row], np.int64))


def split(graph: Graph, row: int) -> int:
    """Make two concepts of one: a new one with the same vector takes half of its edges, and they are linked.

    The targets fall into two clusters (2-means of their directions); the half that is nearer to the second one's centre
    moves.

    Returns:
        The new concept's row.
    """
    adjacency = graph.edges.out_edges([row])
    old = graph.nodes.read([row], ["id", "vector", "region_id", "stability"])
    rows = graph.nodes.append(
        NodeBatch(old["vector"], columns={"region_id": old["region_id"], "stability": old["stability"]})
    )
    found = np.flatnonzero(adjacency.target_rows >= 0)
    vectors = read(graph, adjacency.target_rows[found], ["vector"])["vector"]
    leaning = np.argsort(_leaning(units(vectors)), kind="stable")
    moved = found[np.sort(leaning[len(found) - len(found) // 2 :])[::-1]]  # oldest first, as they are to be appended
    graph.edges.remove(adjacency.refs[moved])
    new = np.repeat(rows, len(moved))
    refs = graph.edges.append(new, adjacency.target_rows[moved], adjacency.weight[moved], adjacency.confidence[moved])
    graph.edges.write(refs, use_count=adjacency.use_count[moved])
    _link_both_ways(graph, rows, np.array([row]))
    new_id = graph.nodes.read(rows, ["id"])["id"]
    graph.events.append(events(EventType.SPLIT, old["id"], new_id))
    return int(rows[0])


def find_regions(graph: Graph) -> int:
    """Assign regions: communities of active nodes that are linked among themselves more than with others.

    Label propagation: every node begins as its own community; in each round all nodes at once join the community that
    most of their edges (by weight * confidence, either direction) lead to. A node's own community has the vote of its
    strongest link, so that two nodes do not swap for ever; equal votes go to the lowest label. No chance is involved.

    Communities of two or more get the ids 1, 2, … in the order of their first rows; all other nodes get 0. The edges
    between active nodes are held in memory meanwhile, 16 bytes each.

    Returns:
        How many regions there are.
    """
    size = len(graph.nodes)
    columns = [(c["is_active"] != 0, c["region_id"]) for c in graph.nodes.scan(["is_active", "region_id"])]
    active = np.concatenate([np.empty(0, np.bool_), *(c[0] for c in columns)])
    before = np.concatenate([np.empty(0, np.uint32), *(c[1] for c in columns)])
    labels = _propagated(_Links.of(graph, active))
    members = np.bincount(labels[active], minlength=size)
    known, first = np.unique(labels, return_index=True)
    real = members[known] >= 2
    known = known[real][np.argsort(first[real])]
    region = np.zeros(size, np.uint32)
    region[known] = np.arange(1, len(known) + 1)
    after = np.where(active, region[labels], np.uint32(0))
    changed = np.flatnonzero(after != before)
    graph.nodes.write(changed, region_id=after[changed])
    return len(known)


def restructure(graph: Graph, config: AESGConfig, epoch: int) -> None:
    """Merge what has become alike, split what has become crowded, abstract what comes together, find regions."""
    _merge_alike(graph, config.merge_similarity_threshold)
    _split_crowded(graph, config.split_density_threshold)
    _abstract_pairs(graph, config)
    graph.events.append(events(EventType.RESTRUCTURE, epoch, find_regions(graph)))


# --- parts -----------------------------------------------------------------------------------------------------------


def _link_both_ways(graph: Graph, ones: Rows, others: Rows) -> None:
    ends = np.stack([ones, others], axis=1)
    graph.edges.append(ends.ravel(), ends[:, ::-1].ravel(), LINK_WEIGHT, LINK_CONFIDENCE)


def _merge(graph: Graph, keep: Rows, gone: Rows) -> None:
    """Merge pairs; no row is in two of them."""
    fields = ["id", "vector", "use_frequency", "relevance"]
    one, two = graph.nodes.read(keep, fields), graph.nodes.read(gone, fields)
    uses = np.stack([one["use_frequency"], two["use_frequency"]]).astype(np.float64)
    share = (uses + 1) / (uses + 1).sum(axis=0)  # what was never used counts as used once
    graph.nodes.write(
        keep,
        vector=(share[0][:, None] * one["vector"] + share[1][:, None] * two["vector"]).astype(np.float32),
        use_frequency=np.minimum(uses.sum(axis=0), np.iinfo(NODE_FIELDS["use_frequency"]).max).astype(np.uint32),
        relevance=np.maximum(one["relevance"], two["relevance"]),
        modified_at=now(),
    )
    graph.nodes.write(gone, is_active=0, modified_at=now())
    _redirect(graph, keep, gone)
    graph.events.append(events(EventType.MERGE, one["id"], two["id"]))


def _redirect(graph: Graph, keep: Rows, gone: Rows) -> None:
    """Every edge from or to a gone row goes from or to the row that stays, unless an edge is there already."""
    becomes = np.arange(len(graph.nodes))
    becomes[gone] = keep
    touched = np.zeros(len(graph.nodes), np.bool_)
    touched[gone] = True
    parts = []
    for chunk in graph.edges.scan(["source_row", "target_row"]):
        ends = np.stack([chunk["source_row"], chunk["target_row"]], axis=1)
        hit = np.flatnonzero((touched[ends] & (ends >= 0)).any(axis=1))
        parts.append(chunk["ref"][hit])
    refs = np.concatenate([np.empty(0, np.int64), *parts])
    if not len(refs):
        return
    edges = graph.edges.read(refs)
    graph.edges.remove(refs)
    sources = becomes[edges["source_row"]]
    targets = np.where(edges["target_row"] >= 0, becomes[edges["target_row"]], -1)
    fit = np.flatnonzero((targets >= 0) & (sources != targets))
    # Of edges that fall together the strongest stays.
    pair = sources * len(becomes) + targets
    strength = edges["weight"].astype(np.float64) * edges["confidence"]
    fit = fit[np.lexsort((-strength[fit], pair[fit]))]
    fit = np.sort(fit[np.unique(pair[fit], return_index=True)[1]])
    starts = distinct(sources[fit])
    adjacency = graph.edges.out_edges(starts)
    there = np.repeat(starts, adjacency.degrees) * len(becomes) + adjacency.target_rows
    fit = fit[~np.isin(pair[fit], there[adjacency.target_rows >= 0])]
    made = graph.edges.append(sources[fit], targets[fit], edges["weight"][fit], edges["confidence"][fit])
    graph.edges.write(made, use_count=edges["use_count"][fit])


def _leaning(directions: Vectors) -> npt.NDArray[np.float32]:
    """How much nearer each direction [n, D] is to the second of two cluster centres than to the first; float32 [n]."""
    lean = np.zeros(len(directions), np.float32)
    if not len(directions):
        return lean
    second = directions[(directions @ directions.sum(axis=0)).argmin()]  # the one farthest out
    first = directions[(directions @ second).argmin()]  # and the one farthest from it
    for _ in range(_ROUNDS):
        lean = directions @ (second - first)
        side = lean > 0
        if side.all() or not side.any():
            break
        first, second = units(np.stack([directions[~side].mean(axis=0), directions[side].mean(axis=0)]))
    return lean


@dataclass(frozen=True, slots=True)
class _Links:
    """Links between different active nodes, each edge from both its ends, by node.

    Attributes:
        indptr: int64 [N + 1]; node i has the positions indptr[i]:indptr[i + 1] of the other arrays.
        others: int32 [n], or int64 where rows need it; the node at the other end.
        strengths: float32 [n], weight * confidence, above 0.
    """

    indptr: npt.NDArray[np.int64]
    others: npt.NDArray[np.signedinteger]
    strengths: npt.NDArray[np.float32]

    @classmethod
    def of(cls, graph: Graph, active: npt.NDArray[np.bool_]) -> Self:
        """Two scans: one to count, one to put every link in its place."""
        size = len(active)
        degrees = np.zeros(size, np.int64)
        for nodes, _, _ in _ends(graph, active):
            np.add.at(degrees, nodes, 1)
        indptr = np.concatenate([[0], np.cumsum(degrees)])
        others = np.empty(indptr[-1], np.int32 if size < 2**31 else np.int64)
        strengths = np.empty(indptr[-1], np.float32)
        free = indptr[:-1].copy()
        for nodes, other, strength in _ends(graph, active):
            order = np.argsort(nodes, kind="stable")
            node, count = np.unique(nodes, return_counts=True)
            place = ranges(free[node], count)
            others[place], strengths[place] = other[order], strength[order]
            free[node] += count
        return cls(indptr, others, strengths)

    def blocks(self, nodes: Rows) -> Iterator[tuple[Rows, Rows, Rows, npt.NDArray[np.float32]]]:
        """Walk the links of some nodes, ascending: some of the nodes at a time, and node, other, strength per link."""
        for start in range(0, len(nodes), _BLOCK):
            some = nodes[start : start + _BLOCK]
            counts = self.indptr[some + 1] - self.indptr[some]
            at = ranges(self.indptr[some], counts)
            yield some, np.repeat(some, counts), self.others[at].astype(np.int64), self.strengths[at]


def _ends(graph: Graph, active: npt.NDArray[np.bool_]) -> Iterator[tuple[Rows, Rows, npt.NDArray[np.float32]]]:
    """Nodes, neighbours and strengths of edges between different active nodes, each edge from both its ends."""
    for chunk in graph.edges.scan(["source_row", "target_row", "weight", "confidence"]):
        source, target = chunk["source_row"], chunk["target_row"]
        strength = np.minimum(chunk["weight"].astype(np.float64) * chunk["confidence"], 1e30).astype(np.float32)
        good = (target >= 0) & (source != target) & (strength > 0) & active[source] & active[target]
        source, target, strength = source[good], target[good], strength[good]
        yield np.concatenate([source, target]), np.concatenate([target, source]), np.concatenate([strength, strength])


def _propagated(links: _Links) -> Rows:
    """Labels of all nodes after label propagation, int64 [N]."""
    size = len(links.indptr) - 1
    labels, own = np.arange(size), np.zeros(size)
    restless = np.flatnonzero(np.diff(links.indptr))
    for some, node, other, strength in links.blocks(restless):
        own[some] = _elect(node, other, strength, size)[1]  # parallel edges are one link
    for _ in range(_ROUNDS):
        after = labels.copy()
        for some, node, other, strength in links.blocks(restless):
            voters, choices = np.concatenate([node, some]), np.concatenate([labels[other], labels[some]])
            after[some], _ = _elect(voters, choices, np.concatenate([strength, own[some]]), size)
        changed = np.flatnonzero(after != labels)
        labels = after
        # Only who changed, or has a neighbour who did, may change in the next round.
        near = np.zeros(size, np.bool_)
        near[changed] = True
        for _, _, other, _ in links.blocks(changed):
            near[other] = True
        restless = np.flatnonzero(near)
        if not len(restless):
            break
    return labels


def _elect(
    nodes: Rows, labels: Rows, votes: npt.NDArray[np.floating], size: int
) -> tuple[Rows, npt.NDArray[np.float64]]:
    """For each distinct node, ascending, the label with the most votes, of equals the lowest; and the votes for it."""
    keys = nodes * size + labels
    order = np.argsort(keys)
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    sums = np.add.reduceat(votes[order].astype(np.float64), starts)
    node, label = np.divmod(keys[starts], size)
    first = np.flatnonzero(np.diff(node, prepend=-1))
    most = np.maximum.reduceat(sums, first)
    winners = np.flatnonzero(sums == np.repeat(most, np.diff(first, append=len(node))))
    winners = winners[np.flatnonzero(np.diff(node[winners], prepend=-1))]
    return label[winners], most


def _plastic(graph: Graph) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which rows are active, and which of them may be merged or split; bool [n] each."""
    parts = [(c["is_active"] != 0, c["stability"] < FIXED) for c in graph.nodes.scan(["is_active", "stability"])] or [
        (np.empty(0, np.bool_), np.empty(0, np.bool_))
    ]
    active, loose = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    return active, active & loose


def _merge_alike(graph: Graph, threshold: float) -> None:
    """Merge linked pairs of at least that cosine, the most alike first; a node takes part in one merge at a time."""
    _, plastic = _plastic(graph)
    if not plastic.any():
        return
    size = len(plastic)
    alike, likeness = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for chunk in graph.edges.scan(["source_row", "target_row"], max(256, _PAIRS // graph.vector_dim)):
        source, target = chunk["source_row"], chunk["target_row"]
        good = (target >= 0) & (source != target) & plastic[source] & plastic[target]
        pairs = distinct(np.minimum(source, target)[good] * size + np.maximum(source, target)[good])
        older, younger = np.divmod(pairs, size)
        one, two = (read(graph, rows, ["vector"])["vector"] for rows in (older, younger))
        each = np.arange(len(one))
        cosine, _ = cosines(one, each, units(two), each)
        hit = (cosine >= threshold) & (cosine > 0)
        alike.append(pairs[hit])
        likeness.append(cosine[hit])
    pairs, first = np.unique(np.concatenate(alike), return_index=True)
    pairs = pairs[np.argsort(-np.concatenate(likeness)[first], kind="stable")]
    ends = np.stack(np.divmod(pairs, size), axis=1)
    rows, met = np.unique(ends.ravel(), return_index=True)
    free = np.ones(len(pairs), np.bool_)
    for side in (0, 1):  # both ends must meet in this pair first
        free &= met[np.searchsorted(rows, ends[:, side])] // 2 == np.arange(len(pairs))
    if free.any():
        _merge(graph, ends[free, 0], ends[free, 1])


def _split_crowded(graph: Graph, threshold: int) -> None:
    _, plastic = _plastic(graph)
    degrees = np.zeros(len(plastic), np.int64)
    for chunk in graph.edges.scan(["source_row"]):
        rows, counts = np.unique(chunk["source_row"], return_counts=True)
        degrees[rows] += counts
    for row in np.flatnonzero(plastic & (degrees > threshold)).tolist():
        split(graph, row)


def _abstract_pairs(graph: Graph, config: AESGConfig) -> None:
    """An abstract concept over each pair whose link was used often enough, unless one is over both already.

    Abstract concepts themselves are not abstracted further: their links to their sources are used all the time.
    """
    active, _ = _plastic(graph)
    size = len(active)
    parts = [np.empty(0, np.int64)]
    for chunk in graph.edges.scan(["source_row", "target_row", "use_count"]):
        source, target = chunk["source_row"], chunk["target_row"]
        often = chunk["use_count"] >= config.coactivation_threshold_create
        good = often & (target >= 0) & (source != target) & active[source] & active[target]
        parts.append(np.minimum(source, target)[good] * size + np.maximum(source, target)[good])
    pairs = distinct(np.concatenate(parts))
    if not len(pairs):
        return
    one, two = np.divmod(pairs, size)
    log = graph.events.read()
    abstract = graph.nodes.rows_of(log["id1"][(log["type"] == EventType.CREATE) & (log["val"] > 1)])
    abstract = distinct(abstract[abstract >= 0])
    room = graph.edges.degrees(one) < config.max_edges_per_node
    room &= graph.edges.degrees(two) < config.max_edges_per_node
    room &= ~np.isin(one, abstract) & ~np.isin(two, abstract)
    for a, b in np.stack([one, two], axis=1)[room & ~_covered(graph, abstract, one, two)].tolist():
        create_abstract(graph, [a, b])


def _covered(graph: Graph, abstract: Rows, one: Rows, two: Rows) -> npt.NDArray[np.bool_]:
    """For each pair, whether an abstract concept has edges to both; bool [n]."""
    size = len(graph.nodes)
    adjacency = graph.edges.out_edges(abstract)
    over = np.repeat(abstract, adjacency.degrees)
    order = np.argsort(adjacency.target_rows, kind="stable")
    over, under = over[order], adjacency.target_rows[order]
    start, stop = np.searchsorted(under, one), np.searchsorted(under, one, side="right")
    pair = np.repeat(np.arange(len(one)), stop - start)
    both = np.isin(over[ranges(start, stop - start)] * size + two[pair], over * size + under)
    covered = np.zeros(len(one), np.bool_)
    covered[pair[both]] = True
    return covered
