"""The seed index of an opened store: it finds what an exact scan finds, and is asked only while it is right."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import aesg
from aesg.config import AESGConfig
from aesg.engine.index import owner, source_of
from aesg.engine.index.owner import SeedIndex
from aesg.engine.seeds import exact, nearest, units
from aesg.errors import AESGError, InvalidInputError
from aesg.memory.controller import AESGMemory
from aesg.memory.seeding import seed_index
from aesg.records import NodeBatch
from tests.index_support import D, asks_the_index, clustered, filled, queries, recall

N = 2500
VECTORS = clustered(N)
ASKED = queries(VECTORS)


@pytest.fixture
def indexed():
    """Give a store an index that is up to date; closed after the test."""
    made = []

    def make(store, kind="hnsw", folder=None):
        index = SeedIndex(store, kind, folder)
        made.append(index)
        assert index.bring_up()
        return index

    yield make
    for index in made:
        index.close()


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.005)


# --- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 7, 40])
@pytest.mark.parametrize("k", [1, 10, 60])
def test_it_finds_nearly_all_that_a_scan_finds(indexed, lanes, k):
    store = filled("memory:", VECTORS)
    index = indexed(store)
    assert asks_the_index(index, store, ASKED[:lanes])
    assert recall(store, ASKED[:lanes], k) >= 0.97


def test_as_many_as_there_are(indexed):
    store = filled("memory:", VECTORS[:30])
    indexed(store)
    assert [len(found.rows) for found in nearest(store, ASKED[:3], 50, -2.0)] == [30] * 3
    assert recall(store, ASKED[:3], 50) == 1.0


def test_a_least_similarity_counts(indexed):
    store = filled("memory:", VECTORS)
    indexed(store)
    have, want = nearest(store, ASKED, 10, 0.9), exact(store, units(ASKED), 10, 0.9)
    assert all((found.cosines > 0.9).all() for found in have)
    wanted = sum(len(found.rows) for found in want)
    assert 0.97 * wanted <= sum(len(found.rows) for found in have) <= wanted < 10 * len(ASKED)


def test_a_lane_does_not_depend_on_its_company(indexed):
    store = filled("memory:", VECTORS)
    indexed(store)
    for query, together in zip(ASKED, nearest(store, ASKED, 10, 0.0), strict=True):
        (alone,) = nearest(store, query[None], 10, 0.0)
        assert alone.rows.tolist() == together.rows.tolist()
        assert alone.cosines.tolist() == together.cosines.tolist()


def test_0_3_0s_pruned_seeds_are_scanned_for(indexed):
    store = filled("memory:", VECTORS)
    index = indexed(store)
    assert index.candidates(store, VECTORS[:1], 10, 0.0, include_pruned=True) is not None  # there are none
    store.nodes.write([0], is_active=0)
    assert index.bring_up()
    assert index.candidates(store, VECTORS[:1], 10, 0.0) is not None
    assert index.candidates(store, VECTORS[:1], 10, 0.0, include_pruned=True) is None
    (found,) = nearest(store, VECTORS[:1], 10, 0.0, include_pruned=True)
    assert found.rows[0] == 0


def test_0_3_0s_pruned_seeds_among_the_newest_are_scanned_for(indexed):
    store = filled("memory:", VECTORS)
    index = indexed(store)
    index._batch = N
    with store.transaction() as transaction:
        index.begun(transaction)
        new = NodeBatch(VECTORS[:3], columns={"is_active": np.array([1, 0, 1], np.uint8)})
        transaction.nodes.append(new)
        assert index.candidates(transaction, VECTORS[:1], 10, 0.0) is not None
        assert index.candidates(transaction, VECTORS[:1], 10, 0.0, include_pruned=True) is None
        transaction.rollback()


def test_equal_vectors_by_the_thousand_harm_nobody(indexed):
    vectors = VECTORS.copy()
    twins = np.sort(np.random.default_rng(3).choice(N, 1500, replace=False))
    vectors[twins] = vectors[twins[0]]
    store = filled("memory:", vectors)
    index = indexed(store)
    assert index.stats()["entries"] == N - len(twins) + 1
    (found,) = nearest(store, vectors[twins[:1]], 50, 0.0)
    assert found.rows.tolist() == twins[:50].tolist()
    others = np.setdiff1d(np.arange(N), twins)
    assert recall(store, queries(vectors[others])) >= 0.97


def test_vectors_of_one_direction_by_the_thousand_neither_hang_nor_hide_the_others(indexed):
    vectors = VECTORS.copy()
    same = np.random.default_rng(3).choice(N, 1500, replace=False)
    vectors[same] = vectors[same[0]] * np.linspace(1, 2, len(same), dtype=np.float32)[:, None]
    store = filled("memory:", vectors)
    indexed(store)
    assert recall(store, queries(vectors[np.setdiff1d(np.arange(N), same)])) >= 0.8


def test_zero_and_pruned_rows_never_enter(indexed):
    vectors = VECTORS.copy()
    vectors[::5] = 0
    active = np.ones(N, np.uint8)
    active[1::5] = 0
    store = filled("memory:", vectors, is_active=active)
    index = indexed(store)
    assert index.stats()["entries"] == N - 2 * (N // 5)
    found = nearest(store, np.concatenate([ASKED, np.zeros((1, D), np.float32)]), 10, -2.0)
    assert len(found[-1].rows) == 0
    assert not {0, 1} & {row % 5 for one in found for row in one.rows.tolist()}


def test_rows_that_are_not_finite_never_enter(indexed, monkeypatch):
    store = filled("memory:", VECTORS)
    bad = [3, 700]
    spoiled = store._state.nodes["vector"].copy()
    spoiled[bad] = [[np.nan] * D, [np.inf] * D]  # as a store of 0.3.0 may hold them
    store._state.nodes["vector"] = spoiled
    index = indexed(store)
    assert index.stats()["entries"] == N - 2
    assert recall(store, ASKED) >= 0.97


def test_lengths_do_not_matter(indexed):
    scale = np.resize(np.float32([1e-25, 1, 1e25]), (N, 1))
    indexed(store := filled("memory:", VECTORS * scale))
    assert recall(store, ASKED) >= 0.97


def test_an_empty_store_and_a_store_of_zeros(indexed):
    for vectors in (np.empty((0, D), np.float32), np.zeros((20, D), np.float32)):
        store = filled("memory:", vectors)
        index = indexed(store)
        assert nearest(store, ASKED[:2], 3, 0.0)[1].rows.tolist() == []
        assert index.check().recall == 1.0


# --- which stores have one -------------------------------------------------------------------------------------------


def test_only_large_stores_have_one_unless_told_otherwise(monkeypatch):
    store = filled("memory:", VECTORS)
    for kind, large, expected in (("auto", 1 << 20, "exact"), ("auto", 1 << 10, "hnsw"), ("exact", 1 << 10, "exact")):
        monkeypatch.setattr(owner, "LARGE", large)
        index = SeedIndex(store, kind)
        assert index.bring_up()
        assert index.stats()["kind"] == expected
        assert asks_the_index(index, store, ASKED[:1]) == (expected == "hnsw")
        assert index.check().recall >= 0.98
        index.close()


def test_data_that_no_index_is_good_for_are_scanned_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(owner, "LARGE", 1)
    monkeypatch.setattr(owner.HNSW, "search", lambda self, directions, count: 2 * (np.zeros(0, np.int64),))
    store = filled("memory:", VECTORS)
    for kind, state in (("auto", "poor"), ("hnsw", "ready")):
        index = SeedIndex(store, kind)
        assert index.bring_up()
        assert (index.stats()["state"], index.stats()["recall"]) == (state, 0.0)
        assert asks_the_index(index, store, ASKED[:1]) == (kind == "hnsw")
        assert index.check().recall == 0.0
        index.close()


@pytest.mark.parametrize("url", ["memory:", "memmap://{}", "lmdb://{}", "zarr://{}"])
def test_every_backend_takes_the_option_and_keeps_it_in_its_url(tmp_path, url):
    place = url.format(tmp_path / "store")
    store = aesg.open(f"{place}?index=hnsw", vector_dim=D)
    assert store.url.endswith("?index=hnsw")
    index = seed_index(store)
    store.nodes.append(NodeBatch(VECTORS[:200]))
    assert index.bring_up()
    assert index.stats()["kind"] == "hnsw"
    assert recall(store, ASKED) >= 0.97
    index.close()
    store.close()
    if url != "memory:":
        assert (tmp_path / "store.seed-index" / "seeds.json").exists()
        with aesg.open(place, mode="r", index="exact") as again:
            assert "index=exact" in again.url
        with aesg.open(place, mode="r", index="auto") as again:
            assert "index" not in again.url


def test_an_unknown_kind_is_an_error_that_lists_the_known_ones():
    with pytest.raises(InvalidInputError, match="one of auto, exact, hnsw"):
        aesg.open("memory:?index=flat", vector_dim=3)


# --- what changes ----------------------------------------------------------------------------------------------------


def test_new_rows_are_found_at_once_and_entered_in_batches(indexed, monkeypatch):
    monkeypatch.setattr(owner, "_BATCH", 100)
    store = filled("memory:", VECTORS)
    index = indexed(store)
    with store.transaction() as graph:
        index.begun(graph)
        rows = graph.nodes.append(NodeBatch(ASKED))
        assert asks_the_index(index, graph, ASKED)
        assert [found.rows[0] for found in nearest(graph, ASKED, 3, 0.0)] == rows.tolist()
        assert recall(graph, ASKED) >= 0.97
        graph.commit()
        index.committed(graph)
    assert asks_the_index(index, store, ASKED[:1])
    assert index.stats()["waiting_rows"] == len(ASKED)
    more = queries(VECTORS, 150, seed=5)
    with store.transaction() as graph:
        index.begun(graph)
        graph.nodes.append(NodeBatch(more))
        graph.commit()
        index.committed(graph)
    assert asks_the_index(index, store, ASKED[:1])  # and the thread begins
    wait_for(lambda: index.stats()["waiting_rows"] == 0)
    assert index.stats()["entries"] == N + len(ASKED) + 150
    assert recall(store, more) >= 0.97


def test_rows_of_a_transaction_that_was_rolled_back_are_forgotten(indexed):
    store = filled("memory:", VECTORS)
    index = indexed(store)
    lost, kept = -ASKED[:5], ASKED[:5]
    graph = store.transaction()
    index.begun(graph)
    graph.nodes.append(NodeBatch(lost))
    assert nearest(graph, lost[:1], 1, 0.0)[0].rows.tolist() == [N]
    graph.rollback()
    graph = store.transaction()
    index.begun(graph)
    graph.nodes.append(NodeBatch(kept))
    graph.commit()
    index.committed(graph)
    assert asks_the_index(index, store, kept)
    assert [found.rows[0] for found in nearest(store, kept, 1, 0.0)] == list(range(N, N + 5))
    assert recall(store, lost) >= 0.97


def test_twins_of_indexed_rows_are_found_when_they_come_later(indexed, monkeypatch):
    monkeypatch.setattr(owner, "_BATCH", 10)
    store = filled("memory:", VECTORS)
    index = indexed(store)
    store.nodes.append(NodeBatch(np.repeat(VECTORS[7:8], 30, axis=0)))
    assert index.bring_up()
    assert index.stats()["entries"] == N
    assert nearest(store, VECTORS[7:8], 20, 0.0)[0].rows.tolist() == [7, *range(N, N + 19)]


CHANGES = {
    "vectors": lambda store: store.nodes.write(np.arange(50), vector=-VECTORS[:50]),
    "one becomes another's twin": lambda store: store.nodes.write([40], vector=VECTORS[90]),
    "zero": lambda store: store.nodes.write(np.arange(9), vector=np.zeros((9, D))),
    "pruned": lambda store: store.nodes.write(np.arange(0, N, 7), is_active=0),
    "most of it pruned": lambda store: store.nodes.write(np.arange(N // 3, N), is_active=0),
    "appended": lambda store: store.nodes.append(NodeBatch(ASKED)),
    "other fields": lambda store: store.nodes.write(np.arange(N), relevance=0.5),
    "transformed": lambda store: store.nodes.transform(lambda c: {"vector": -c["vector"]}, ["vector"], ["vector"]),
    "compacted": lambda store: (store.nodes.write(np.arange(0, N, 7), is_active=0), store.compact()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_that_nobody_told_of_it_is_not_asked_and_catches_up(indexed, change):
    store = filled("memory:", VECTORS)
    index = indexed(store)
    CHANGES[change](store)
    asked = np.concatenate([ASKED, -VECTORS[:5], VECTORS[[40, 90]]])
    index._silent = True  # no thread yet
    assert not asks_the_index(index, store, ASKED[:1])
    assert recall(store, asked) == 1.0
    index._silent = False
    assert index.bring_up()
    assert asks_the_index(index, store, ASKED[:1])
    assert recall(store, asked) >= 0.97


def test_pruned_rows_come_back(indexed):
    store = filled("memory:", VECTORS)
    index = indexed(store)
    rows = np.arange(0, N, 10)
    for active in (0, 1):
        store.nodes.write(rows, is_active=active)
        assert index.bring_up()
        assert recall(store, VECTORS[rows[:40]]) >= 0.97
        assert (nearest(store, VECTORS[:1], 1, 0.0)[0].rows.tolist() == [0]) == (active == 1)
    assert index.stats()["dead_share"] == 0  # their places were taken again


def test_compaction_moves_rows_without_building_anew(indexed, monkeypatch):
    store = filled("memory:", VECTORS)
    index = indexed(store)
    store.nodes.write(np.arange(0, 200), is_active=0)
    assert index.bring_up()
    monkeypatch.setattr(owner, "HNSW", None)  # no other one is made
    store.compact()
    assert index.bring_up()
    assert index.stats()["entries"] == N - 200
    assert recall(store, ASKED) >= 0.97


def test_it_is_built_anew_when_much_of_it_is_dead(indexed):
    store = filled("memory:", VECTORS)
    index = indexed(store)
    first = index._hnsw
    store.nodes.write(np.arange(0, N // 2), is_active=0)
    assert index.bring_up()
    assert index._hnsw is not first
    assert index.stats()["dead_share"] == 0
    assert index.stats()["entries"] == N - N // 2


def test_a_transaction_that_wrote_vectors_is_scanned(indexed):
    store = filled("memory:", VECTORS)
    index = indexed(store)
    for change in (
        lambda graph: graph.nodes.write([5], vector=100 * ASKED[0]),
        lambda graph: graph.nodes.transform(lambda c: {"is_active": c["is_active"]}, ["is_active"], ["is_active"]),
    ):
        graph = store.transaction()
        index.begun(graph)
        graph.nodes.write([5], relevance=0.1)
        assert asks_the_index(index, graph, ASKED[:1])
        change(graph)
        assert not asks_the_index(index, graph, ASKED[:1])
        assert recall(graph, ASKED) == 1.0
        graph.commit()
        index.committed(graph)
        assert index._known != store.generation
        assert index.bring_up()
        assert recall(store, ASKED) >= 0.97


def test_commits_of_other_fields_take_it_along(indexed):
    store = filled("memory:", VECTORS)
    index = indexed(store)
    for _ in range(3):
        graph = store.transaction()
        index.begun(graph)
        graph.nodes.write([5], use_frequency=7)
        graph.commit()
        index.committed(graph)
        assert asks_the_index(index, store, ASKED[:1])


def test_a_graph_that_nobody_announced_is_scanned(indexed):
    store = filled("memory:", VECTORS)
    index = indexed(store)
    with store.snapshot() as snapshot:
        assert not asks_the_index(index, snapshot, ASKED[:1])
        assert recall(snapshot, ASKED, index=index) == 1.0


# --- threads, processes, ends ----------------------------------------------------------------------------------------


def test_searches_go_on_while_it_is_built_and_added_to(indexed, monkeypatch):
    monkeypatch.setattr(owner, "_BATCH", 50)
    store = filled("memory:", VECTORS)
    index = SeedIndex(store, "hnsw")
    wrong, stop = [], threading.Event()

    def ask(lane):
        while not stop.is_set():
            (found,) = nearest(store, ASKED[lane : lane + 1], 10, -2.0)
            if len(found.rows) != 10 or (np.diff(found.cosines) > 0).any():
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=(lane,)) for lane in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: index.stats()["state"] == "ready")
        for seed in range(5):
            graph = store.transaction()
            index.begun(graph)
            graph.nodes.append(NodeBatch(queries(VECTORS, 60, seed=seed)))
            graph.commit()
            index.committed(graph)
            store.nodes.write([seed], is_active=0)
        wait_for(lambda: index.stats()["state"] == "ready" and index.stats()["waiting_rows"] <= 50)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        index.close()
    assert not wrong


def test_closing_stops_what_is_under_way(tmp_path):
    store = filled("memory:", clustered(20_000))
    before = threading.enumerate()
    index = SeedIndex(store, "hnsw", tmp_path / "index")
    nearest(store, ASKED[:1], 5, 0.0)
    wait_for(lambda: index.stats().get("doing") == "building")
    index.close()
    assert not [one for one in threading.enumerate() if one not in before and one.name.startswith("indexes")]
    assert recall(store, ASKED) == 1.0


def test_a_build_that_was_stopped_goes_on_the_next_time(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "_BUILD", 500)
    store = filled("memory:", VECTORS)
    index = SeedIndex(store, "hnsw", tmp_path / "index")

    def leave_off(doing, done, of):
        if doing == "building" and done >= 1000:
            index._stop.set()

    assert not index.bring_up(leave_off)
    index.close()
    again = SeedIndex(store, "hnsw", tmp_path / "index")
    seen = {}
    assert again.bring_up(lambda doing, done, of: seen.setdefault(doing, of))
    assert seen["entering"] == N - 1000
    assert "building" not in seen
    assert recall(store, ASKED) >= 0.97
    again.close()


def test_a_store_that_fails_is_scanned_and_tried_again(indexed, monkeypatch, caplog):
    store = filled("memory:", VECTORS)
    index = SeedIndex(store, "hnsw")
    monkeypatch.setattr(owner, "prints_of", lambda columns: 1 / 0)
    assert not index.bring_up()
    assert "division" in index.stats()["failure"]
    assert "could not be brought up to date" in caplog.text
    assert recall(store, ASKED) == 1.0
    monkeypatch.undo()
    assert index.bring_up()
    assert "failure" not in index.stats()
    index.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_searches_and_has_no_thread(tmp_path):
    script = f"""
import os, sys, threading
import numpy as np
sys.path.insert(0, {str(os.getcwd())!r})
from aesg.engine.index.owner import SeedIndex
from aesg.engine.seeds import nearest
from tests.index_support import asks_the_index, clustered, filled, queries, recall
vectors = clustered(2500); asked = queries(vectors)
store = filled("memmap://{tmp_path}/store", vectors)
index = SeedIndex(store, "hnsw")
index.bring_up()
right = [found.rows.tolist() for found in nearest(store, asked, 10, 0.0)]
stop = threading.Event()
def ask():
    while not stop.is_set():
        nearest(store, asked[:1], 10, 0.0)
threads = [threading.Thread(target=ask) for _ in range(2)]
for thread in threads: thread.start()
for _ in range(5):
    child = os.fork()
    if not child:
        try:
            assert asks_the_index(index, store, asked[:1])
            assert [found.rows.tolist() for found in nearest(store, asked, 10, 0.0)] == right
            index._known = None
            assert recall(store, asked) == 1.0
            assert threading.active_count() == 1
            index.close()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for thread in threads: thread.join()
# And while the thread is at work.
other = SeedIndex(store, "hnsw")
nearest(store, asked[:1], 10, 0.0)
child = os.fork()
if not child:
    os._exit(0 if recall(store, asked) == 1.0 and threading.active_count() == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
print("done", flush=True)
"""
    out = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert out.stdout.split() == ["done"], out
    assert out.returncode == 0, out  # the interpreter went while the thread was at work


# --- the memory ------------------------------------------------------------------------------------------------------


def test_a_memory_uses_it_and_says_so(tmp_path):
    config = AESGConfig(vector_dim=D, commit_interval=1000)
    with AESGMemory(f"memmap://{tmp_path}/store?index=hnsw", config) as memory:
        memory.add_concepts(VECTORS)
        memory.save()
        index = source_of(memory.store)
        assert index is not None
        assert index.bring_up()
        asked = []
        real, index.candidates = index.candidates, lambda *args, **how: asked.append(real(*args, **how)) or asked[-1]
        for query in ASKED[:10]:  # it learns, in a transaction that stays open
            memory(query)
        memory.save()
        memory.eval()
        memory(ASKED[:10])
        assert len(asked) >= 11
        assert all(found is not None for found in asked)
        stats = memory.index_stats()
        assert (stats["kind"], stats["state"], stats["recall"] >= 0.98) == ("hnsw", "ready", True)
        memory.update_topology()
        memory(ASKED[0])
        assert index.bring_up()
        assert memory.index_stats()["state"] == "ready"
    with AESGMemory(f"memmap://{tmp_path}/store?index=hnsw", mode="r") as reader:
        reader.eval()
        reader(ASKED[0])
        wait_for(lambda: reader.index_stats()["state"] == "ready")


def test_check_says_when_there_is_nothing_to_compare(indexed):
    store = filled("memory:", VECTORS)
    index = indexed(store)
    store.nodes.write([0], vector=VECTORS[9])
    index._silent = True
    with pytest.raises(AESGError, match="bring it up first"):
        index.check()


def test_its_figures_can_be_asked_for_while_it_is_added_to(monkeypatch):
    """usearch crashes when it is asked for its size while it grows."""
    monkeypatch.setattr(owner, "_BATCH", 20)
    store = filled("memory:", VECTORS)
    index = SeedIndex(store, "hnsw")
    nearest(store, ASKED[:1], 5, 0.0)
    entries = []
    wait_for(lambda: entries.append(index.stats().get("entries", 0)) or entries[-1] == N)
    more = clustered(N, seed=9)
    store.nodes.append(NodeBatch(more))
    nearest(store, ASKED[:1], 5, 0.0)
    wait_for(lambda: entries.append(index.stats()["entries"]) or entries[-1] == 2 * N)
    assert entries == sorted(entries)
    index.close()
