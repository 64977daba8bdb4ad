"""The exact nearest-neighbour scan."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aesg
from aesg.engine import kernels, scan
from aesg.engine.seeds import nearest, units
from aesg.records import NodeBatch
from aesg.testing.proxy import Bare


def store_of(vectors: np.ndarray, active: np.ndarray | None = None) -> Any:
    store = aesg.open("memory:", vector_dim=vectors.shape[1])
    columns = {} if active is None else {"is_active": active.astype(np.uint8)}
    store.nodes.append(NodeBatch(vectors, columns=columns))
    return store


def by_hand(vectors: np.ndarray, active: np.ndarray, query: np.ndarray, k: int, least: float) -> list[int]:
    lengths = np.linalg.norm(vectors.astype(float), axis=1)
    fit = np.flatnonzero((lengths > 0) & active)
    cosine = vectors[fit].astype(float) @ query / lengths[fit] / np.linalg.norm(query)
    return fit[np.argsort(-cosine, kind="stable")][: min(k, int((cosine > least).sum()))].tolist()


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([1, 7, 300, 2000]),
    dim=st.sampled_from([1, 4, 33]),
    k=st.sampled_from([1, 5, 40, 3000]),
    least=st.sampled_from([-1.0, 0.0, 0.4]),
    lanes=st.integers(1, 5),
)
def test_agrees_with_sorting_everything(seed: int, n: int, dim: int, k: int, least: float, lanes: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    vectors[rng.random(n) < 0.1] = 0
    active = rng.random(n) < 0.8
    queries = rng.standard_normal((lanes, dim)).astype(np.float32)
    found = nearest(store_of(vectors, active), queries, k, least)
    assert len(found) == lanes
    for query, got in zip(queries, found, strict=True):
        want = by_hand(vectors, active, query.astype(float), k, least)
        lengths = np.linalg.norm(vectors.astype(float), axis=1)
        exact = (vectors @ query.astype(float))[want] / lengths[want] / np.linalg.norm(query.astype(float))
        if dim > 1:  # in one dimension all are ties
            np.testing.assert_allclose(got.cosines, exact, atol=1e-6)
        assert len(got.rows) == len(want)
        assert (np.diff(got.cosines) <= 0).all()
        tied = np.flatnonzero(np.diff(got.cosines) == 0)
        assert (got.rows[tied] < got.rows[tied + 1]).all()
        assert active[got.rows].all()
        assert len(set(got.rows.tolist())) == len(got.rows)


def test_the_first_of_equal_vectors_come_first_whatever_their_place_in_a_chunk() -> None:
    rng = np.random.default_rng(3)
    n, dim = 5000, 37
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    twins = np.sort(rng.choice(n, 60, replace=False))
    vectors[twins] = 100 * vectors[twins[0]]
    for lanes in (1, 3, 16):
        queries = np.stack([vectors[twins[0]] + 0.01 * i for i in range(lanes)]).astype(np.float32)
        for got in nearest(store_of(vectors), queries, 50, 0.0):
            assert got.rows.tolist() == twins[:50].tolist()
            assert len(set(got.cosines.tolist())) == 1


def test_equal_vectors_by_the_thousand_do_not_pile_up() -> None:
    vectors = np.ones((20_000, 4), np.float32)
    (got,) = nearest(store_of(vectors), np.ones((1, 4), np.float32), 5, 0.0)
    assert got.rows.tolist() == [0, 1, 2, 3, 4]


def test_a_lane_does_not_depend_on_its_company() -> None:
    rng = np.random.default_rng(0)
    store = store_of(rng.standard_normal((3000, 24)).astype(np.float32))
    queries = rng.standard_normal((9, 24)).astype(np.float32)
    for query, together in zip(queries, nearest(store, queries, 20, 0.0), strict=True):
        (alone,) = nearest(store, query[None], 20, 0.0)
        assert alone.rows.tolist() == together.rows.tolist()
        assert alone.cosines.tolist() == together.cosines.tolist()


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-18, 1.0, 1e18, 1e38])
def test_length_does_not_matter_however_small_or_large(scale: float) -> None:
    vectors = (np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]]) * scale).astype(np.float32)
    query = (np.array([[1, 0.1, 0]]) * scale).astype(np.float32)
    (got,) = nearest(store_of(vectors), query, 3, 0.0)
    assert got.rows.tolist() == [0, 1]
    np.testing.assert_allclose(got.cosines, [0.995, 0.774], atol=1e-3)


def test_pruned_rows_zero_vectors_and_zero_queries() -> None:
    vectors = np.array([[1, 0], [1, 0.1], [0, 0], [-1, 0]], np.float32)
    store = store_of(vectors, np.array([0, 1, 1, 1]))
    found = nearest(store, np.array([[1, 0], [0, 0], [-1, 0]], np.float32), 4, -1.5)
    assert [f.rows.tolist() for f in found] == [[1, 3], [], [3, 1]]
    (with_pruned,) = nearest(store, vectors[:1], 4, 0.0, include_pruned=True)
    assert with_pruned.rows.tolist() == [0, 1]


def test_rows_that_0_3_0_stored_with_nan_or_infinity_never_seed() -> None:
    store = store_of(np.ones((4, 2), np.float32))

    class Spoiled(Bare):
        def __init__(self) -> None:
            super().__init__(store)
            real = self.nodes

            class Nodes:
                read = staticmethod(real.read)

                def scan(self, fields: list[str]) -> object:
                    for chunk in real.scan(fields):
                        chunk["vector"] = np.array([[np.nan, 1], [1, 1], [np.inf, 1], [1, 1]], np.float32)
                        yield chunk

            self.nodes = Nodes()

    (got,) = nearest(Spoiled(), np.ones((1, 2), np.float32), 4, 0.0)
    assert got.rows.tolist() == [1, 3]


def test_an_empty_store() -> None:
    store = aesg.open("memory:", vector_dim=2)
    assert nearest(store, np.ones((2, 2), np.float32), 4, 0.0)[1].rows.tolist() == []
    assert nearest(store, np.ones((0, 2), np.float32), 4, 0.0) == []


def test_one_scan_for_all_lanes_of_the_fields_that_matter() -> None:
    bare = Bare(store_of(np.eye(4, dtype=np.float32)))
    nearest(bare, np.eye(4, dtype=np.float32), 2, 0.0)
    scans = [args for name, args in bare.node_calls if name == "scan"]
    assert scans == [(["vector", "is_active"],)]


def test_units() -> None:
    out = units(np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 0], [1e-45, 0]], np.float32))
    np.testing.assert_allclose(out, [[0.6, 0.8], [0, 0], [0, 0], [0, 0], [1, 0]], rtol=1e-6)


@pytest.fixture(params=["product", "plain", "compiled"])
def way(request, monkeypatch):
    """Each way in which a scan may run."""
    loop = scan._Loop()
    if request.param == "product":
        loop._tried = True
    elif request.param == "plain":
        loop._tried, loop._loop = True, scan.heaps
    else:
        if numba.config.DISABLE_JIT:
            pytest.skip("numba is told not to compile")
        loop.load()
        assert loop.get() not in (None, scan.heaps)
    monkeypatch.setattr(scan, "LOOP", loop)
    return request.param


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("k", [1, 9, 700])
def test_every_way_to_scan_gives_the_same(way, lanes, k):
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((600, 24)).astype(np.float32)
    vectors[100:120] = vectors[5]
    vectors[120:140] = vectors[5] * np.float32(1e-25)
    vectors[140:160] = vectors[5] * np.float32(1e25)
    vectors[160:170] = 0
    vectors[170:180] = np.linspace(1, 1.00001, 10, dtype=np.float32)[:, None] * vectors[6]
    active = np.arange(600) % 7 != 0
    queries = vectors[[5, 6, 0]][:lanes] + np.float32(0.01)
    with np.errstate(all="ignore"):  # plain Python warns where compiled code is silent
        found = nearest(store_of(vectors, active), queries, k, -2.0)
    for query, have in zip(queries, found, strict=True):
        want = by_hand(vectors, active, query.astype(float), 600, -2.0)
        lengths = np.linalg.norm(vectors.astype(float), axis=1)
        exact = (vectors.astype(float) @ query)[want] / lengths[want] / np.linalg.norm(query.astype(float))
        np.testing.assert_allclose(have.cosines, exact[:k], atol=1e-6)
        assert active[have.rows].all()
        assert np.lexsort((have.rows, -have.cosines)).tolist() == list(range(len(have.rows)))
        if k == 9 and lanes == 1:
            assert have.rows.tolist() == [5, *[row for row in range(100, 120) if row % 7][:8]]


def test_the_loop_is_loaded_when_it_is_worth_the_wait(monkeypatch):
    monkeypatch.setattr(scan, "LOOP", scan._Loop())
    monkeypatch.setattr(scan.LOOP, "_left", 3000)
    store = store_of(np.random.default_rng(0).standard_normal((100, 20)).astype(np.float32))
    ways = []
    for _ in range(3):
        nearest(store, np.ones((1, 20), np.float32), 3, 0.0)
        ways.append(scan.LOOP.get() is not None)
    assert ways == [False, *2 * [not numba.config.DISABLE_JIT]]


class TestRememberedLengths:
    """A store's second query does not measure its vectors again, and never uses lengths that are out of date."""

    QUERY = np.array([[1, 0.2, 0.1]], np.float32)

    def store(self):
        store = aesg.open("memory:", vector_dim=3)
        store.nodes.append(NodeBatch(np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32)))
        return store

    def fresh(self, store, **kwargs):
        """The answer of a store that nobody has asked before."""
        other = aesg.open("memory:", vector_dim=3)
        nodes = store.nodes.read(np.arange(len(store.nodes)), ["vector", "is_active"])
        other.nodes.append(NodeBatch(nodes["vector"], columns={"is_active": nodes["is_active"]}))
        return nearest(other, self.QUERY, 10, 0.0, **kwargs)[0]

    def test_the_second_scan_reads_vectors_only(self, monkeypatch):
        store, asked = self.store(), []
        scan = type(store.nodes).scan
        monkeypatch.setattr(
            type(store.nodes), "scan", lambda s, fields, *rest: (asked.append(fields), scan(s, fields))[1]
        )
        first, second = (nearest(store, self.QUERY, 10, 0.0)[0] for _ in range(2))
        assert asked == [["vector", "is_active"], ["vector"]]
        assert first.rows.tolist() == second.rows.tolist()
        assert first.cosines.tolist() == second.cosines.tolist()

    def test_every_commit_makes_them_new(self):
        store = self.store()
        best = int(nearest(store, self.QUERY, 10, 0.0)[0].rows[0])
        changes = [
            lambda: store.nodes.write([best], is_active=0),
            lambda: store.nodes.write([7], vector=10 * self.QUERY),
            lambda: store.nodes.append(NodeBatch(100 * self.QUERY)),
            lambda: store.nodes.write([8], vector=np.zeros((1, 3))),
            lambda: store.nodes.write([9], vector=1e-25 * self.QUERY),
            lambda: store.compact(),
        ]
        for change in changes:
            change()
            for pruned in (False, True, False):
                found = nearest(store, self.QUERY, 10, 0.0, include_pruned=pruned)[0]
                wanted = self.fresh(store, include_pruned=pruned)
                assert found.rows.tolist() == wanted.rows.tolist()
                assert found.cosines.tolist() == wanted.cosines.tolist()

    def test_a_transaction_sees_its_own_vectors(self):
        store = self.store()
        nearest(store, self.QUERY, 1, 0.0)
        with store.transaction() as graph:
            graph.nodes.write([3], vector=50 * self.QUERY)
            assert nearest(graph, self.QUERY, 1, 0.0)[0].rows.tolist() == [3]
            assert nearest(store, self.QUERY, 1, 0.0)[0].rows.tolist() != [3]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.booleans()), max_size=40),
    st.integers(1, 5),
    st.lists(st.sampled_from([-0.25, 0.0, 0.25]), min_size=10, max_size=10),
    st.lists(st.integers(0, 1), min_size=10, max_size=10),
)
def test_candidates_are_ranked_by_cosine_then_row_each_once(candidates, k, cosine_of_row, active):
    lanes, rows, directed = (np.array([one[i] for one in candidates]) for i in range(3))
    rows, lanes = rows.astype(np.int64), lanes.astype(np.int64)
    similarity = np.array(cosine_of_row, np.float32)[rows]
    best_rows, best, counts = np.empty((3, k), np.int64), np.empty((3, k), np.float32), np.zeros(3, np.int64)
    is_active = np.array(active, np.uint8)
    kernels.rank(
        rows, lanes, rows, similarity, directed.astype(bool), is_active, np.float32(-0.25), best_rows, best, counts
    )
    for lane in range(3):
        fit = {r for at, r, has in candidates if at == lane and has and active[r] and cosine_of_row[r] > -0.25}
        wanted = sorted((-cosine_of_row[r], r) for r in fit)[:k]
        assert best_rows[lane, : counts[lane]].tolist() == [r for _, r in wanted]
        assert best[lane, : counts[lane]].tolist() == [-c for c, _ in wanted]
