"""Novelty and credit."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_support import sketch
from hypothesis import given, settings
from hypothesis import strategies as st

import aesg
from aesg.config import AESGConfig
from aesg.engine.activation import Activation, Travelled, activate
from aesg.engine.novelty import MAX_CANDIDATES, NoveltyCounter, centroid_score, explanation_score
from aesg.engine.plasticity import credit
from aesg.engine.structure import create_sensory
from aesg.records import NodeBatch
from aesg.testing.proxy import Bare


def graph_of(vectors: np.ndarray, edges: list[tuple[int, int]] = [], **edge: Any) -> Any:  # noqa: B006
    store = aesg.open("memory:", vector_dim=vectors.shape[1])
    store.nodes.append(NodeBatch(vectors.astype(np.float32)))
    if edges:
        store.edges.append(*np.array(edges).T, **edge)
    return store


def returned(*rows: int, energies: list[float] | None = None, transfers: tuple[int, ...] = ()) -> Activation:
    n = len(rows)
    return Activation(
        np.array(rows, np.int64),
        np.ones(n, np.float32) if energies is None else np.array(energies, np.float32),
        np.zeros(n, np.float32),
        np.zeros((n, 2), np.float32),
        Travelled(np.zeros((0, 2), np.int64), np.array(transfers, np.int64)),
    )


# --- explanation -----------------------------------------------------------------------------------------------------


def score(vectors: np.ndarray, query: np.ndarray, **options: Any) -> float:
    config = AESGConfig(vector_dim=vectors.shape[1], **options)
    query = query.astype(np.float32)
    (activation,) = activate(graph_of(vectors), config, query[None], [None], [None])
    return explanation_score(query, activation)


@pytest.mark.parametrize("dim", [2, 16, 256])
@pytest.mark.parametrize("n", [5, 500])
def test_a_known_input_is_explained_and_a_strange_one_is_not(dim: int, n: int) -> None:
    rng = np.random.default_rng(dim)
    vectors = rng.standard_normal((n, dim))
    assert score(vectors, 3 * vectors[n // 2]) == pytest.approx(1, abs=1e-6)
    assert score(vectors, -1e-3 * vectors[0]) <= 1
    if dim == 256:
        assert score(vectors, rng.standard_normal(dim)) < 0.6


def test_an_input_between_two_known_ones_is_explained_by_both() -> None:
    vectors = np.eye(16)[:4]
    assert score(vectors, vectors[0] + vectors[1]) == pytest.approx(1, abs=1e-6)


def test_what_only_fills_up_explains_nothing() -> None:
    config = AESGConfig(vector_dim=2, num_seeds=1, min_seed_similarity=-1)
    query = np.array([1, 0], np.float32)
    store = graph_of(np.array([[1, 1], [1, -1.01]]))
    (activation,) = activate(store, config, query[None], [None], [None])
    assert activation.energies.tolist() == [1, 0]
    assert explanation_score(query, activation) == pytest.approx(np.sqrt(0.5), abs=1e-3)


def test_the_nearest_node_explains_even_when_others_outrank_it() -> None:
    query = np.array([1, 0], np.float32)
    outranked = Activation(
        rows=np.array([3, 4]),
        energies=np.array([2, 0], np.float32),
        cosines=np.array([0.1, 0.9], np.float32),
        vectors=np.array([[0.1, 1], [1, 0.5]], np.float32),
        ways=Travelled(np.zeros((0, 2), np.int64), np.zeros(0, np.int64)),
        nearest=0.95,
    )
    assert explanation_score(query, outranked) == pytest.approx(0.95)
    assert explanation_score(query, replace(outranked, nearest=0.0)) == pytest.approx(0.1, abs=1e-3)


def test_nothing_activated_or_asked_explains_nothing() -> None:
    assert score(np.zeros((0, 2)), np.ones(2)) == 0
    assert score(np.eye(2), np.zeros(2)) == 0
    assert score(np.zeros((3, 2)), np.ones(2)) == 0


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_score_is_between_0_and_1(seed: int) -> None:
    graph = sketch(seed)
    query = np.random.default_rng(seed).standard_normal(3).astype(np.float32)
    (activation,) = activate(graph.store(), AESGConfig(vector_dim=3), query[None], [None], [None])
    assert 0 <= explanation_score(query, activation) <= 1


def test_the_centroid_score_is_about_the_previous_active_set() -> None:
    store = graph_of(np.array([[1, 0], [0, 1], [-1, 0], [-1, 0]]))
    query = np.array([2, 0], np.float32)
    assert centroid_score(store, query, np.array([0, 1])) == pytest.approx(np.sqrt(0.5))
    assert centroid_score(store, query, np.array([2])) == 0
    assert centroid_score(store, query, np.array([0, 2])) == 0
    assert centroid_score(store, query, np.array([], np.int64)) == 0


# --- the counter -----------------------------------------------------------------------------------------------------


def counter(**options: Any) -> NoveltyCounter:
    return NoveltyCounter(AESGConfig(vector_dim=8, **options))


def noise(seed: int, n: int = 1) -> np.ndarray:
    out = np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)
    return out[0] if n == 1 else out


def test_an_input_that_keeps_coming_back_is_due_at_the_threshold_in_any_lane_and_after_any_reset() -> None:
    count, query = counter(), np.eye(8, dtype=np.float32)[0]
    assert not count.observe(0, query, 0.0)
    count.reset()
    assert not count.observe(5, 3 * query, 0.0)
    count.reset_lane(0)
    assert count.observe(1, query, 0.0)
    assert [count.observe(0, query, 0.0) for _ in range(3)] == [False, False, True]  # it starts anew


def test_what_is_explained_is_not_counted() -> None:
    count, query = counter(), np.eye(8, dtype=np.float32)[0]
    assert not any(count.observe(0, query, 0.6) for _ in range(10))
    assert [count.observe(0, query, 0.59) for _ in range(3)] == [False, False, True]


def test_different_inputs_are_counted_apart() -> None:
    count, axes = counter(), np.eye(8, dtype=np.float32)
    due = [count.observe(0, axes[i % 4], 0.0) for i in range(12)]
    assert due == [False] * 8 + [True] * 4
    similar = axes[0] + 0.3 * axes[1]  # cosine 0.958: the same one coming back
    assert [count.observe(0, q, 0.0) for q in (axes[0], similar, axes[0])] == [False, False, True]


def test_isolated_noise_dies_out() -> None:
    count, query = counter(novelty_patience=10), np.eye(8, dtype=np.float32)[0]
    other = np.eye(8, dtype=np.float32)[1]

    def quiet(n: int) -> None:
        for _ in range(n):
            assert not count.observe(0, other, 1.0)

    count.observe(0, query, 0.0)
    count.observe(0, query, 0.0)
    quiet(9)
    assert count.observe(0, query, 0.0)  # nobody's patience is at an end yet

    count.observe(0, query, 0.0)
    count.observe(0, query, 0.0)
    quiet(10)  # one of two counts is lost
    assert [count.observe(0, query, 0.0) for _ in range(2)] == [False, True]

    count.observe(0, query, 0.0)
    quiet(10)  # forgotten
    assert [count.observe(0, query, 0.0) for _ in range(3)] == [False, False, True]


def test_a_stream_of_noise_gives_birth_to_nothing_and_does_not_grow_without_bound() -> None:
    rng = np.random.default_rng(0)
    count = NoveltyCounter(AESGConfig(vector_dim=32, novelty_patience=100_000))
    stream = rng.standard_normal((3 * MAX_CANDIDATES, 32)).astype(np.float32)
    for query in stream:
        assert not count.observe(0, query, 0.0)
    assert len(count._counts) == MAX_CANDIDATES
    for query in stream[-3:]:  # the newest are remembered
        assert [count.observe(0, query, 0.0) for _ in range(2)] == [False, True]
    assert [count.observe(0, stream[0], 0.0) for _ in range(3)] == [False, False, True]  # the oldest are not
    with_patience = NoveltyCounter(AESGConfig(vector_dim=32, novelty_patience=50))
    for query in rng.standard_normal((1000, 32)).astype(np.float32):
        assert not with_patience.observe(0, query, 0.0)
    assert len(with_patience._counts) <= 64, "places of the forgotten are used again"


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    patience=st.sampled_from([1, 3, 100]),
    threshold=st.sampled_from([1, 2, 3]),
)
def test_agrees_with_a_list_of_candidates(seed: int, patience: int, threshold: int) -> None:
    rng = np.random.default_rng(seed)
    count = counter(novelty_patience=patience, novelty_birth_threshold=threshold)
    known: list[list[Any]] = []  # [which, count, seen]
    for tick in range(60):
        which, novel = int(rng.integers(0, 6)), bool(rng.random() < 0.7)
        want = False
        if novel:
            for candidate in [c for c in known if c[1] - (tick - c[2] - 1) // patience <= 0]:
                known.remove(candidate)
            found = [c for c in known if c[0] == which]
            candidate = found[0] if found else [which, 0, tick]
            if not found:
                known.append(candidate)
            lost = (tick - candidate[2] - 1) // patience if found else 0
            candidate[1:] = [candidate[1] - lost + 1, tick]
            if candidate[1] >= threshold:
                known.remove(candidate)
                want = True
        assert count.observe(0, np.eye(8, dtype=np.float32)[which], 0.0 if novel else 1.0) == want


def test_by_lane_as_in_0_3_0() -> None:
    count = counter(novelty_by_lane=True)
    query = noise(0)
    scores = [0.0, 0.0, 0.9, 0.0, 0.0, 0.0, 0.9, 0.9]
    assert [count.observe(0, query, s) for s in scores] == [False, False, False, False, True, False, False, False]
    assert count.count(0) == 0
    count.observe(1, query, 0.0)
    count.observe(2, query, 0.0)
    count.reset_lane(1)
    assert [count.count(i) for i in (1, 2)] == [0, 1]
    count.reset()
    assert count.count(2) == 0


def test_a_zero_query_is_never_born() -> None:
    for by_lane in (True, False):
        count = counter(novelty_by_lane=by_lane, novelty_birth_threshold=1)
        assert not count.observe(0, np.zeros(8, np.float32), 0.0)


def test_a_counter_can_be_pickled() -> None:
    count = counter(novelty_birth_threshold=2)
    count.observe(0, noise(1), 0.0)
    assert pickle.loads(pickle.dumps(count)).observe(0, noise(1), 0.0)


# --- credit ----------------------------------------------------------------------------------------------------------

K = -np.log2(1 - AESGConfig().reinforce_rate)
CONFIG = AESGConfig(vector_dim=2)


def test_returned_nodes_are_credited_once_per_lane_and_what_fills_up_is_not() -> None:
    store = graph_of(np.ones((4, 2)))
    store.nodes.write([0, 1, 2, 3], relevance=[0.5, 0.5, 0.5, 1.06], modified_at=7)
    credit(store, CONFIG, [returned(0, 1, 2, energies=[1, 0.5, 0]), returned(1, 3)], [None, None])
    state = store.nodes.read([0, 1, 2, 3])
    assert state["use_frequency"].tolist() == [1, 2, 0, 1]
    np.testing.assert_allclose(state["relevance"], [0.55, 0.595, 0.5, 1.06], rtol=1e-6)
    assert (state["modified_at"] > 7).tolist() == [True, True, False, True]


def test_use_counts_do_not_wrap() -> None:
    store = graph_of(np.ones((2, 2)), [(0, 1)])
    store.nodes.write([0], use_frequency=2**32 - 1)
    store.edges.write([0], use_count=2**32 - 1)
    credit(store, CONFIG, [returned(0, transfers=(0,))] * 3, [None] * 3)
    assert store.nodes.read([0])["use_frequency"].tolist() == [2**32 - 1]
    assert store.edges.read([0])["use_count"].tolist() == [2**32 - 1]


def test_reinforcement_follows_the_power_law_of_practice() -> None:
    """The first use goes `reinforce_rate` of the way to 1, and so does each doubling; together or one by one."""
    ways = [(0, 1)]
    one, many = (graph_of(np.ones((2, 2)), ways, weight=[0.4], confidence=[0.2]) for _ in range(2))
    config = CONFIG.replace(reinforce_rate=0.3)
    left = 0.6
    for uses in (1, 2, 4, 8):
        credit(one, config, [returned(1, transfers=(0,))] * uses, [None] * uses)
        left *= 0.7
        assert one.edges.read([0])["weight"][0] == pytest.approx(1 - left, rel=1e-5)
    for _ in range(15):
        credit(many, config, [returned(1, transfers=(0,))], [None])
    for name in ("weight", "confidence", "use_count"):
        np.testing.assert_allclose(one.edges.read([0])[name], many.edges.read([0])[name], rtol=1e-5)
    fast = graph_of(np.ones((2, 2)), ways, weight=[0.4])
    credit(fast, CONFIG.replace(reinforce_rate=1), [returned(1, transfers=(0,))], [None])
    assert fast.edges.read([0])["weight"].tolist() == [1]


def test_edges_that_carried_energy_are_reinforced_but_never_weakened() -> None:
    store = graph_of(np.ones((3, 2)), [(0, 1), (1, 2), (0, 2)], weight=[0.5, 3.0, 0.5], confidence=[0.5, 1.0, 0.5])
    credit(store, CONFIG, [returned(1, transfers=(0, 1)), returned(1, transfers=(0,))], [None, None])
    edges = store.edges.read([0, 1, 2])
    np.testing.assert_allclose(edges["weight"], [1 - 0.5 * 3**-K, 3, 0.5], rtol=1e-6)
    np.testing.assert_allclose(edges["confidence"], [1 - 0.5 * 3**-K, 1, 0.5], rtol=1e-6)
    assert edges["use_count"].tolist() == [2, 1, 0]


def test_consecutive_concepts_are_linked_once_and_then_reinforced() -> None:
    store = graph_of(np.ones((3, 2)))
    credit(store, CONFIG, [returned(1)], [0])
    credit(store, CONFIG, [returned(1)], [1])  # no step
    credit(store, CONFIG, [returned(2)], [None])
    edges = store.edges.read([0])
    assert (edges["source_row"].tolist(), edges["target_row"].tolist()) == ([0], [1])
    np.testing.assert_allclose([edges["weight"], edges["confidence"]], [[0.02], [0.2]], rtol=1e-6)
    credit(store, CONFIG, [returned(1)], [0])
    assert len(store.edges) == 1
    edges = store.edges.read([0])
    np.testing.assert_allclose(
        [edges["weight"], edges["confidence"]], [[1 - 0.98 * 2**-K], [1 - 0.8 * 2**-K]], rtol=1e-6
    )
    assert edges["use_count"].tolist() == [1]


def test_no_learning_on_rows_that_are_pruned_or_gone() -> None:
    store = graph_of(np.ones((3, 2)))
    store.nodes.write([2], is_active=0)
    credit(store, CONFIG, [returned(1), returned(2), returned(1), returned(2), returned(99)], [2, 0, 99, None, 0])
    assert len(store.edges) == 0
    assert store.nodes.read([0, 1, 2])["use_frequency"].tolist() == [0, 2, 0]


def test_what_only_fills_up_is_nobodys_successor() -> None:
    store = graph_of(np.ones((2, 2)))
    credit(store, CONFIG, [returned(1, energies=[0]), returned()], [0, 0])
    assert len(store.edges) == 0


def test_the_newest_of_several_links_is_reinforced() -> None:
    store = graph_of(np.ones((2, 2)), [(0, 1), (0, 1), (0, 1)])
    credit(store, CONFIG, [returned(1)], [0])
    assert store.edges.read([0, 1, 2])["use_count"].tolist() == [0, 0, 1]


def test_a_new_step_that_two_lanes_make_is_linked_by_one_and_reinforced_by_the_other() -> None:
    store = graph_of(np.ones((2, 2)))
    credit(store, CONFIG, [returned(1), returned(1), returned(1)], [0, 0, 0])
    assert store.edges.read([0])["use_count"].tolist() == [2]
    assert len(store.edges) == 1


def linked(store: Any, row: int) -> list[int]:
    return store.edges.out_edges([row]).target_rows.tolist()


def test_at_the_limit_the_weakest_edge_gives_way_and_above_it_none() -> None:
    config = CONFIG.replace(max_edges_per_node=3)
    store = graph_of(np.ones((8, 2)), [(0, 1), (0, 2), (0, 3)], weight=[1, 0.2, 0.2], confidence=[1, 0.5, 0.5])
    credit(store, config, [returned(4)], [0])
    assert linked(store, 0) == [4, 3, 1]  # of the two weakest the older one went
    credit(store, config, [returned(5), returned(6)], [0, 0])
    assert sorted(linked(store, 0)) == [1, 5, 6]
    store.edges.append([0], [7])
    credit(store, config, [returned(2)], [0])
    assert sorted(linked(store, 0)) == [1, 5, 6, 7]


def test_one_step_to_many_never_exceeds_the_limit() -> None:
    config = CONFIG.replace(max_edges_per_node=3)
    store = graph_of(np.ones((9, 2)), [(0, 1), (0, 2)])
    credit(store, config, [returned(i) for i in (3, 4, 5, 6, 7, 8)], [0] * 6)
    assert len(linked(store, 0)) == 3


def test_each_kind_of_learning_can_be_switched_off() -> None:
    off = {"credit_rate": 0.0, "reinforce_rate": 0.0, "temporal_weight": 0.0}
    for kept in (None, *off):
        config = CONFIG.replace(**{k: v for k, v in off.items() if k != kept})
        store = graph_of(np.ones((3, 2)), [(0, 1), (0, 2)], weight=0.5)
        credit(store, config, [returned(1, transfers=(0,)), returned(0)], [0, 1])
        assert bool(store.nodes.read([1])["use_frequency"][0]) == (kept == "credit_rate")
        assert bool(store.edges.read([0])["use_count"][0]) == (kept == "reinforce_rate")
        assert (len(store.edges) == 3) == (kept == "temporal_weight")
        if kept is None:
            assert store.generation == 2, "nothing was written since it was built"


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), lanes=st.integers(1, 6))
def test_credit_of_a_batch_is_credit_of_its_lanes_one_by_one(seed: int, lanes: int) -> None:
    graph, config = sketch(seed), AESGConfig(vector_dim=3)
    rng = np.random.default_rng(seed)
    together, alone = graph.store(), graph.store()
    queries = rng.standard_normal((lanes, 3)).astype(np.float32)
    activations = activate(together, config, queries, [None] * lanes, [None] * lanes)
    previous = [None if rng.random() < 0.3 else int(rng.integers(0, 12)) for _ in range(lanes)]
    bare = Bare(together)
    credit(bare, config, activations, previous)
    for activation, before in zip(activations, previous, strict=True):
        credit(alone, config, [activation], [before])
    one, two = together.nodes.read(np.arange(12)), alone.nodes.read(np.arange(12))
    np.testing.assert_array_equal(one["use_frequency"], two["use_frequency"])
    np.testing.assert_allclose(one["relevance"], two["relevance"], rtol=1e-6)

    def by_ends(store: Any) -> list[tuple[int, ...]]:
        edges = next(iter(store.edges.scan()))
        names = ("source_row", "target_row", "use_count", "weight", "confidence")
        return sorted(zip(*(edges[n].round(5).tolist() for n in names), strict=True))

    assert len(together.edges) == len(alone.edges)
    np.testing.assert_allclose(by_ends(together), by_ends(alone), rtol=1e-4, atol=2e-5)  # they are rounded
    assert bare.called("out_edges") + bare.called("degrees") <= 3


def test_a_store_that_is_used_remembers_what_it_uses() -> None:
    """End to end: seeds, spreading, novelty, birth, credit."""
    config = AESGConfig(vector_dim=4)
    store, count = aesg.open("memory:", vector_dim=4), NoveltyCounter(config)
    query = np.array([1, 2, 0, 0], np.float32)
    for round_ in range(5):
        with store.transaction() as graph:
            (activation,) = activate(graph, config, query[None], [None], [None])
            if count.observe(0, query, explanation_score(query, activation)):
                create_sensory(graph, query[None])
                (activation,) = activate(graph, config, query[None], [None], [None])
            credit(graph, config, [activation], [None])
        assert len(store.nodes) == (round_ >= 2)
    assert store.nodes.read([0])["use_frequency"].tolist() == [3]
