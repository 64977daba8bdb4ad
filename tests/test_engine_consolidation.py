"""Consolidation and structure."""

from __future__ import annotations

import pickle
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aesg
from aesg.config import AESGConfig
from aesg.engine import consolidation
from aesg.engine.consolidation import Report, consolidate
from aesg.engine.structure import (
    FIXED,
    create_abstract,
    create_sensory,
    find_regions,
    merge,
    restructure,
    split,
)
from aesg.errors import InvalidInputError, NotFoundError
from aesg.records import EventType, NodeBatch
from aesg.testing.proxy import Bare

CONFIG = AESGConfig(vector_dim=2, consolidation_epoch_interval=0)


def build(n: int, edges: list[tuple[int, int]] | None = None, **columns: Any) -> Any:
    store = aesg.open("memory:", vector_dim=2)
    angles = np.linspace(0, 3, n)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    columns = {name: np.asarray(values) for name, values in columns.items()}
    store.nodes.append(NodeBatch(columns.pop("vector", vectors), np.arange(n, dtype=np.uint64) + 1000, columns))
    if edges:
        store.edges.append(*np.array(edges).T)
    return store


def logged(store: Any, kind: EventType) -> list[tuple[int, int, float]]:
    log = store.events.read()
    log = log[log["type"] == kind]
    return list(zip(log["id1"].tolist(), log["id2"].tolist(), log["val"].tolist(), strict=True))


def active(store: Any) -> list[int]:
    return np.flatnonzero(store.nodes.read(np.arange(len(store.nodes)), ["is_active"])["is_active"]).tolist()


def links(store: Any) -> list[tuple[int, int]]:
    return [
        pair
        for chunk in store.edges.scan()
        for pair in zip(chunk["source_row"].tolist(), chunk["target_row"].tolist(), strict=True)
    ]


# --- consolidation ---------------------------------------------------------------------------------------------------


def test_active_nodes_age_and_fade_and_pruned_ones_do_not() -> None:
    store = build(3, is_active=[1, 0, 1], relevance=np.array([1, 1, 0.5], np.float32))
    assert consolidate(store, CONFIG) == Report(epoch=0, active=2, pruned=0, removed_edges=0)
    state = store.nodes.read([0, 1, 2])
    assert state["age"].tolist() == [1, 0, 1]
    np.testing.assert_allclose(state["relevance"], [0.95, 1, 0.475], rtol=1e-6)
    assert logged(store, EventType.CONSOLIDATE) == [(0, 2, 0)]


def test_the_epoch_is_kept_in_the_store() -> None:
    store = build(1)
    assert [consolidate(store, CONFIG).epoch for _ in range(3)] == [0, 1, 2]
    assert store.attrs["epoch"] == 3
    assert [e[0] for e in logged(store, EventType.CONSOLIDATE)] == [0, 1, 2]


def test_only_what_is_old_irrelevant_and_unused_is_forgotten() -> None:
    old, faint, unused = [5, 4, 5, 5], [0.01, 0.01, 0.9, 0.01], [4, 0, 0, 5]
    store = build(4, age=old, relevance=np.array(faint, np.float32), use_frequency=unused)
    assert consolidate(store, CONFIG).pruned == 1
    assert active(store) == [1, 2, 3]
    assert logged(store, EventType.PRUNE) == [(1000, 0, 0)]


def test_an_unused_node_dies_at_epoch_59_and_a_used_one_lives() -> None:
    store = build(2, use_frequency=[4, 5])
    epochs = 0
    while len(active(store)) == 2:
        consolidate(store, CONFIG)
        epochs += 1
    assert epochs == 59
    assert active(store) == [1]


def test_the_least_relevant_surplus_goes_and_every_prune_is_logged_once() -> None:
    relevance = np.array([0.5, 0.4, 0.4, 0.4, 0.9, 0.01, 0.3], np.float32)
    store = build(7, relevance=relevance, age=[9] * 7, is_active=[1, 1, 1, 1, 1, 1, 0])
    report = consolidate(store, CONFIG.replace(max_concepts=3))
    assert (report.active, report.pruned) == (6, 3)
    assert active(store) == [0, 3, 4]  # 5 is both surplus and forgotten; of equals the first rows go
    assert [e[0] for e in logged(store, EventType.PRUNE)] == [1001, 1002, 1005]
    consolidate(store, CONFIG.replace(max_concepts=3))
    assert len(logged(store, EventType.PRUNE)) == 3
    assert store.events.read()["type"].tolist() == [3, 3, 3, 4, 4]


def test_the_golden_rule_of_0_3_0_for_crowded_memories() -> None:
    relevance = (0.95 + 0.04 * np.random.default_rng(0).random(40)).astype(np.float32)
    store = build(40, relevance=relevance, use_frequency=[1] * 40)
    consolidate(store, AESGConfig.preset("aesg-0.3", vector_dim=2, max_concepts=16))
    assert active(store) == sorted(np.argsort(relevance)[-16:].tolist())


def test_edges_fade_and_those_below_the_threshold_are_removed() -> None:
    store = build(3)
    store.edges.append([0, 1, 2], [1, 2, 0], 1.0, [1.0, 0.1005, 0.5])
    store.edges.remove([2])
    assert consolidate(store, CONFIG).removed_edges == 1
    assert links(store) == [(0, 1)]
    np.testing.assert_allclose(store.edges.read([0])["confidence"], [0.995], rtol=1e-6)
    keep = CONFIG.replace(edge_confidence_decay=1.0, prune_confidence_threshold=0.0)
    assert consolidate(store, keep).removed_edges == 0
    np.testing.assert_allclose(store.edges.read([0])["confidence"], [0.995], rtol=1e-6)


def test_an_empty_store() -> None:
    store = build(0)
    config = CONFIG.replace(consolidation_epoch_interval=1)
    assert consolidate(store, config) == Report(0, 0, 0, 0)
    assert logged(store, EventType.RESTRUCTURE) == [(0, 0, 0)]


def test_every_so_many_epochs_the_graph_is_restructured() -> None:
    store = build(2, [(0, 1)])
    for _ in range(6):
        consolidate(store, CONFIG.replace(consolidation_epoch_interval=3))
    assert [e[:2] for e in logged(store, EventType.RESTRUCTURE)] == [(2, 1), (5, 1)]


def test_it_works_in_a_transaction_on_the_protocol_alone_without_a_call_per_node() -> None:
    store = build(50, [(i, (i + 1) % 50) for i in range(50)], age=[9] * 50, relevance=np.full(50, 0.01, np.float32))
    with store.transaction() as graph:
        bare = Bare(graph)
        assert consolidate(bare, CONFIG.replace(max_concepts=10)).pruned == 50
    assert len(bare.node_calls) + len(bare.edge_calls) < 10


def test_what_is_shipped_to_the_data_can_be_pickled() -> None:
    aged = partial(consolidation._aged, decay=0.95, least_relevance=0.05, least_uses=5, returns=["active", "pruned"])
    columns = {**build(2).nodes.read([0, 1]), "row": np.arange(2)}
    assert pickle.loads(pickle.dumps(aged))(columns)["age"].tolist() == [1, 1]


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 30), most=st.integers(1, 30))
def test_agrees_with_a_loop(seed: int, n: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    columns = {
        "is_active": (rng.random(n) < 0.8).astype(np.uint8),
        "age": rng.integers(0, 9, n),
        "relevance": rng.choice([0.01, 0.04, 0.052, 0.3, 1.0], n).astype(np.float32),
        "use_frequency": rng.integers(0, 9, n),
    }
    store = build(n, **columns)
    report = consolidate(store, CONFIG.replace(max_concepts=most))
    was = np.flatnonzero(columns["is_active"]).tolist()
    relevance = {i: np.float32(columns["relevance"][i]) * np.float32(0.95) for i in was}
    surplus = sorted(was, key=lambda i: (relevance[i], i))[: max(0, len(was) - most)]
    gone = {
        i
        for i in was
        if i in surplus or (columns["age"][i] + 1 > 5 and relevance[i] < 0.05 and columns["use_frequency"][i] < 5)
    }
    assert active(store) == [i for i in was if i not in gone]
    assert [e[0] for e in logged(store, EventType.PRUNE)] == [1000 + i for i in sorted(gone)]
    assert (report.active, report.pruned) == (len(was), len(gone))


# --- births ----------------------------------------------------------------------------------------------------------


def test_sensory_concepts() -> None:
    store = build(1)
    rows = create_sensory(store, np.eye(2, dtype=np.float32), np.array([7, 8], np.uint64))
    assert rows.tolist() == [1, 2]
    assert logged(store, EventType.CREATE) == [(7, 0, 1), (8, 0, 1)]
    state = store.nodes.read(rows)
    assert state["stability"].tolist() == [0.5, 0.5]
    assert state["relevance"].tolist() == [1, 1]
    assert create_sensory(store, np.eye(2, dtype=np.float32)).tolist() == [3, 4]
    assert create_sensory(store, np.zeros((0, 2), np.float32)).tolist() == []


def test_abstract_concepts() -> None:
    store = build(3)
    row = create_abstract(store, [2, 0])
    assert row == 3
    vectors = store.nodes.read([0, 2, 3], ["vector"])["vector"]
    np.testing.assert_allclose(vectors[2], (vectors[0] + vectors[1]) / 2, rtol=1e-6)
    assert links(store) == [(3, 2), (2, 3), (3, 0), (0, 3)]
    edges = store.edges.read([0, 1, 2, 3])
    assert (edges["weight"] == 1).all()
    assert (edges["confidence"] == 0.5).all()
    made = store.nodes.read([3], ["id"])["id"][0]
    assert logged(store, EventType.CREATE) == [(made, 1002, 2)]
    given_vector = create_abstract(store, np.array([1]), np.array([5, 5], np.float32))
    assert store.nodes.read([given_vector], ["vector"])["vector"].tolist() == [[5, 5]]
    with pytest.raises(InvalidInputError):
        create_abstract(store, [])
    with pytest.raises(NotFoundError):
        create_abstract(store, [99])


# --- merge and split -------------------------------------------------------------------------------------------------


def test_a_merge_moves_every_edge_and_averages_by_use() -> None:
    store = build(
        6,
        [(1, 2), (3, 1), (1, 0), (0, 1), (0, 4), (1, 4), (1, 1), (5, 1), (5, 1)],
        vector=np.array([[1, 0], [0, 1]] + [[1, 1]] * 4, np.float32),
        use_frequency=[2, 0, 0, 0, 0, 0],
        relevance=np.array([0.5, 0.75, 1, 1, 1, 1], np.float32),
    )
    store.edges.write([0, 7, 8], use_count=[9, 1, 2], weight=[0.3, 0.2, 0.4])
    merge(store, 0, 1)
    assert active(store) == [0, 2, 3, 4, 5]
    state = store.nodes.read([0])
    np.testing.assert_allclose(state["vector"], [[0.75, 0.25]])
    assert state["use_frequency"].tolist() == [2]
    assert state["relevance"].tolist() == [0.75]
    assert sorted(links(store)) == [(0, 2), (0, 4), (3, 0), (5, 0)]
    moved = {
        (s, t): (w, u)
        for c in store.edges.scan()
        for s, t, w, u in zip(
            *(c[n].tolist() for n in ("source_row", "target_row", "weight", "use_count")), strict=True
        )
    }
    assert moved[0, 2] == (pytest.approx(0.3), 9)
    assert moved[5, 0] == (pytest.approx(0.4), 2)  # the stronger of two that fell together
    assert logged(store, EventType.MERGE) == [(1000, 1001, 0)]
    with pytest.raises(InvalidInputError):
        merge(store, 3, 3)


def test_a_split_gives_half_of_the_edges_to_a_new_concept() -> None:
    near, far = [[1, 0.01 * i] for i in range(4)], [[0.01 * i, 1] for i in range(4)]
    vectors = np.array([[1, 1], *[v for pair in zip(near, far, strict=True) for v in pair]], np.float32)
    store = build(9, [(0, i) for i in range(1, 9)], vector=vectors, region_id=[4] + [0] * 8)
    store.edges.write(np.arange(8), use_count=np.arange(8))
    new = split(store, 0)
    assert new == 9
    adjacency = store.edges.out_edges([0, 9])
    one, two = (
        adjacency.target_rows[: adjacency.indptr[1]].tolist(),
        adjacency.target_rows[adjacency.indptr[1] :].tolist(),
    )
    assert (one[0], two[0]) == (9, 0)
    sides = sorted([sorted(one[1:]), sorted(two[1:])])
    assert sides == [[1, 3, 5, 7], [2, 4, 6, 8]]
    assert two[1:] == sorted(two[1:], reverse=True), "they keep their order"
    uses = dict(zip(adjacency.target_rows.tolist(), adjacency.use_count.tolist(), strict=True))
    assert all(uses[i] == i - 1 for i in range(1, 9))
    state = store.nodes.read([9])
    assert state["vector"].tolist() == [[1, 1]]
    assert state["region_id"].tolist() == [4]
    assert logged(store, EventType.SPLIT) == [(1000, int(state["id"][0]), 0)]


def test_a_split_of_very_little() -> None:
    store = build(2, [(0, 1)])
    assert split(store, 0) == 2
    assert split(store, 1) == 3
    assert sorted(links(store)) == [(0, 1), (0, 2), (1, 3), (2, 0), (3, 1)]


# --- regions ---------------------------------------------------------------------------------------------------------


def cliques(sizes: list[int], bridges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    edges, first = list(bridges), 0
    for size in sizes:
        edges += [(first + i, first + j) for i in range(size) for j in range(size) if i < j]
        first += size
    return edges


def regions(store: Any) -> list[int]:
    return store.nodes.read(np.arange(len(store.nodes)), ["region_id"])["region_id"].tolist()


def test_communities_become_regions() -> None:
    store = build(12, [*cliques([4, 5], [(3, 4)]), (9, 9)], region_id=[7] * 12)
    assert find_regions(store) == 2
    assert regions(store) == [1] * 4 + [2] * 5 + [0, 0, 0]
    generation = store.generation
    assert find_regions(store) == 2
    assert store.generation <= generation + 1
    assert regions(store) == [1] * 4 + [2] * 5 + [0, 0, 0]


def test_pruned_nodes_and_worthless_edges_hold_nothing_together() -> None:
    store = build(7, [(1, 0), (2, 3), (4, 5), (0, 6)], is_active=[0, 1, 1, 1, 1, 1, 1])
    store.edges.write([2], confidence=0)
    assert find_regions(store) == 1
    assert regions(store) == [0, 0, 1, 1, 0, 0, 0]


def test_pairs_do_not_swap_for_ever() -> None:
    store = build(6, [(0, 1), (1, 0), (4, 5), (5, 4)])
    assert find_regions(store) == 2
    assert regions(store) == [1, 1, 0, 0, 2, 2]


def test_equal_votes_go_to_the_lowest_label() -> None:
    store = build(5, [(3, 0), (2, 4), (1, 3), (1, 4), (0, 2), (0, 3), (0, 4)])
    assert find_regions(store) == 1


def propagated(n: int, edges: list[tuple[int, int]], weights: list[int]) -> list[int]:
    """Label propagation, node by node."""
    links: dict[int, Counter[int]] = {}
    for (a, b), weight in zip(edges, weights, strict=True):
        if a != b:
            links.setdefault(a, Counter())[b] += weight
            links.setdefault(b, Counter())[a] += weight
    labels = list(range(n))
    for _ in range(10):
        after = list(labels)
        for node, others in links.items():
            votes = Counter({labels[node]: max(others.values())})
            for other, weight in others.items():
                votes[labels[other]] += weight
            after[node] = min(votes, key=lambda label: (-votes[label], label))
        labels = after
    found: dict[int, int] = {}
    for label in labels:
        if labels.count(label) > 1:
            found.setdefault(label, len(found) + 1)
    return [found.get(label, 0) for label in labels]


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40))
def test_regions_agree_with_a_loop(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    edges = [tuple(pair) for pair in rng.integers(0, n, (int(rng.integers(0, 2 * n)), 2)).tolist()]
    weights = rng.integers(1, 4, len(edges)).tolist()
    store = build(n, edges)
    if edges:
        store.edges.write(np.arange(len(edges)), weight=weights)
    find_regions(store)
    assert regions(store) == propagated(n, edges, weights)


def test_weights_decide() -> None:
    store = build(5, [(0, 1), (1, 2), (2, 3), (3, 4), (2, 4), (0, 2)])
    store.edges.write([0, 5, 1], weight=[5.0, 5.0, 5.0])
    store.edges.write([2, 4], weight=[0.1, 0.1])
    find_regions(store)
    assert regions(store) == [1, 1, 1, 2, 2]


# --- restructuring ---------------------------------------------------------------------------------------------------


def test_only_concepts_born_of_experience_are_merged() -> None:
    same = np.ones((4, 2), np.float32)
    store = build(4, [(0, 1), (2, 3), (1, 2)], vector=same, stability=np.array([0.5, 0.5, FIXED, FIXED], np.float32))
    restructure(store, CONFIG, 7)
    assert active(store) == [0, 2, 3]
    assert logged(store, EventType.MERGE) == [(1000, 1001, 0)]
    assert logged(store, EventType.RESTRUCTURE) == [(7, 1, 0)]
    assert sorted(links(store)) == [(0, 2), (2, 3)]


def test_merges_are_disjoint_linked_active_and_alike() -> None:
    vectors = np.array([[1, 0], [1, 0.05], [1, 0.051], [0, 1], [0, 1], [0, 0], [0, 0], [0, 1]], np.float32)
    edges = [(0, 1), (2, 1), (3, 0), (5, 6), (3, 7)]
    store = build(8, edges, vector=vectors, is_active=[1, 1, 1, 1, 1, 1, 1, 0])
    restructure(store, CONFIG, 0)
    assert logged(store, EventType.MERGE) == [(1001, 1002, 0)]  # the most alike of two that share a node
    restructure(store, CONFIG, 1)
    assert logged(store, EventType.MERGE) == [(1001, 1002, 0), (1000, 1001, 0)]
    assert active(store) == [0, 3, 4, 5, 6]


def test_what_has_no_direction_is_like_nothing() -> None:
    store = build(4, [(0, 1), (1, 2), (2, 3)], vector=np.array([[0, 0], [0, 0], [1, 0], [0, 1]], np.float32))
    restructure(store, CONFIG.replace(merge_similarity_threshold=0.0), 0)
    assert active(store) == [0, 1, 2, 3]


def test_crowded_concepts_are_split_until_they_are_not() -> None:
    config = CONFIG.replace(split_density_threshold=10)
    store = build(40, [(s, i) for s, n in ((0, 20), (1, 22), (2, 13)) for i in range(s + 1, n)])
    store.nodes.write([1], stability=FIXED)
    restructure(store, config.replace(merge_similarity_threshold=1.0), 0)
    (event,) = logged(store, EventType.SPLIT)
    assert event[0] == 1000
    assert store.edges.degrees([0, 1, 2]).tolist() == [11, 20, 10]


def test_what_comes_together_often_is_abstracted_once() -> None:
    config = CONFIG.replace(coactivation_threshold_create=3, merge_similarity_threshold=1.0)
    store = build(5, [(0, 2), (2, 0), (1, 3), (3, 4)])
    store.edges.write([0, 1, 2, 3], use_count=[3, 9, 2, 4])
    store.nodes.write([4], is_active=0)
    for epoch in range(3):
        restructure(store, config, epoch)
        store.edges.write(np.arange(len(store.edges)), use_count=50)  # also those to the abstract concepts
        store.edges.write([2, 3], use_count=0)
    (made,) = logged(store, EventType.CREATE)
    assert made[1:] == (1000, 2)
    assert len(store.nodes) == 6
    store.edges.write([2], use_count=3)
    restructure(store, config, 3)
    assert len(logged(store, EventType.CREATE)) == 2
    assert sorted(links(store)[-4:]) == [(1, 6), (3, 6), (6, 1), (6, 3)]


def test_abstraction_respects_the_edge_limit() -> None:
    config = CONFIG.replace(coactivation_threshold_create=1, max_edges_per_node=1)
    store = build(2, [(0, 1)])
    store.edges.write([0], use_count=1)
    restructure(store, config, 0)
    assert len(store.nodes) == 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_restructuring_any_graph_leaves_a_sound_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, e = int(rng.integers(1, 15)), int(rng.integers(0, 60))
    vectors = rng.standard_normal((n, 2)).astype(np.float32).round(0)
    store = build(n, vector=vectors, is_active=rng.random(n) < 0.8, stability=rng.choice([0.5, FIXED], n))
    before = store.nodes.read(np.arange(n), ["stability", "is_active", "vector"])
    if e:
        store.edges.append(rng.integers(0, n, e), rng.integers(0, n, e), rng.random(e), rng.random(e))
        store.edges.write(np.arange(e), use_count=rng.integers(0, 60, e))
    config = CONFIG.replace(split_density_threshold=5)
    with store.transaction() as graph:
        for epoch in range(3):
            restructure(Bare(graph), config, epoch)
    merged = [e[1] - 1000 for e in logged(store, EventType.MERGE)]
    touching = {row for pair in links(store) for row in pair}
    assert not touching & set(merged), "nothing leads to what was merged away"
    after = store.nodes.read(np.arange(n), ["is_active", "vector"])
    fixed = before["stability"] == FIXED
    np.testing.assert_array_equal(after["vector"][fixed], before["vector"][fixed])
    np.testing.assert_array_equal(after["is_active"][fixed], before["is_active"][fixed])
    assert np.isfinite(after["vector"]).all()
    assert not [
        r for r, was in zip(active(store), before["is_active"], strict=False) if r < n and not before["is_active"][r]
    ]
