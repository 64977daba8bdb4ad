"""Filling a store over blocks with a whole graph: edges that are sorted by source late, and in bounded memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import aesg
from aesg.backends.blocks import merge, sorting, tables
from aesg.backends.lmdb import container
from aesg.errors import CapacityError
from aesg.records import EDGE_FIELDS, NodeBatch
from aesg.testing.graphs import assert_same, batch, check_within, contents

BACKENDS = ["lmdb", "zarr"]
MANY = 3000


@pytest.fixture
def few_are_many(monkeypatch):
    """What takes a hundred thousand edges otherwise."""
    monkeypatch.setattr(tables, "_MANY_EDGES", 100)


@pytest.fixture(params=BACKENDS)
def url(request, tmp_path):
    return f"{request.param}://{tmp_path}/store"


def ends(n, nodes=40, seed=0):
    return np.random.default_rng(seed).integers(0, nodes, (2, n))


# --- sorting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("removed", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("edges", [0, 1, 7, MANY])
def test_edges_are_sorted_by_source_the_newest_first(edges, removed, in_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(sorting, "_CHUNK", 256)
    monkeypatch.setattr(sorting, "_IN_MEMORY", 1 << 20 if in_memory else -1)
    rng = np.random.default_rng(edges)
    nodes = 50
    all_edges = {name: rng.integers(0, nodes, edges).astype(kind) for name, kind in EDGE_FIELDS.items()}
    all_edges["removed"] = (rng.random(edges) < removed).astype(np.uint8)
    asked = []

    def chunk(start, stop, names):
        asked.append(stop - start)
        return {name: all_edges[name][start:stop].copy() for name in names}

    gone = int(all_edges["removed"].sum())
    if not in_memory and edges == gone:
        return  # there is nothing to map
    starts, found = sorting.sorted_edges(chunk, edges, gone, nodes, tmp_path)
    live = np.flatnonzero(all_edges["removed"] == 0)
    order = live[np.lexsort((-live, all_edges["source_row"][live]))]
    assert np.array_equal(found["ref"], order)
    for name in ("target_row", "weight", "confidence", "use_count"):
        assert np.array_equal(found[name], all_edges[name][order])
        assert found[name].dtype == EDGE_FIELDS[name]
    assert np.array_equal(np.diff(starts), np.bincount(all_edges["source_row"][live], minlength=nodes))
    assert starts[0] == 0
    assert max(asked, default=0) <= 256
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_no_room_for_the_file_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sorting, "_IN_MEMORY", -1)

    def full(fd, start, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sorting.os, "posix_fallocate", full)
    columns = {name: np.zeros(5, kind) for name, kind in EDGE_FIELDS.items()}
    with pytest.raises(CapacityError, match="free some space"):
        sorting.sorted_edges(lambda start, stop, names: {n: columns[n] for n in names}, 5, 0, 3, tmp_path)


# --- edges that are in no run yet ------------------------------------------------------------------------------------


def test_edges_that_nobody_has_asked_for_are_found_when_somebody_does(url, few_are_many):
    with aesg.open(url, vector_dim=4) as store, aesg.open("memory:", vector_dim=4) as reference:
        for graph in (store, reference):
            graph.nodes.append(batch(40))
            for seed, n in enumerate((30, 500, 20, 300, 1)):
                graph.edges.append(*ends(n, seed=seed), 0.5)
        assert store._state.in_runs == 30
        with aesg.open(url, "r") as beside:
            assert_same(contents(beside), contents(reference))
        with store.transaction() as transaction:
            transaction.edges.append(*ends(200, seed=9))
            transaction.edges.remove([3, 600, 900])
            check_within(transaction)
            assert store._state.in_runs == 30  # those of the transaction are nobody else's
            transaction.rollback()
        if store.capabilities.snapshots:
            with store.snapshot() as snapshot:
                store.edges.append([0], [0])
                store.edges.remove([len(store.edges) - 1])
                check_within(snapshot)
        expected = contents(reference)
        found = contents(store)
        assert found["lists refs"] == expected["lists refs"]
        assert store._state.in_runs == store._state.edges.count
        for graph in (store, reference):  # and go on from there
            graph.edges.append(*ends(10, seed=20))
            graph.edges.remove([1, 400])
        check_within(store)
    with aesg.open(url, "r") as again:
        check_within(again)


def test_while_a_graph_is_loaded_edges_are_sorted_once(url, monkeypatch):
    calls, sort = [], merge._sort_edges
    monkeypatch.setattr(merge, "_sort_edges", lambda *args: (calls.append(1), sort(*args)))
    with aesg.open(url, vector_dim=4) as store:
        with store.loading():
            store.nodes.append(batch(40))
            for seed in range(6):
                store.edges.append(*ends(100_000, seed=seed))
            assert calls == []
            assert store.edges.out_edges([3]).refs[0] == store.edges.out_edges([3]).refs.max()
            with pytest.raises(ValueError, match="in the store already"):
                store.nodes.append(batch(1))
        check_within(store)
    assert calls == [1]
    with aesg.open(url) as store:
        for seed in range(6, 12):
            store.edges.append(*ends(100_000, seed=seed))
        assert len(calls) > 1
        check_within(store)


# --- LMDB: more than a transaction should hold -----------------------------------------------------------------------


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(container, "_IN_MEMORY", 1 << 20)


def large(n=20_000):
    return NodeBatch(np.random.default_rng(n).standard_normal((n, 64), np.float32), np.arange(1, n + 1))


def test_blocks_of_which_there_was_none_are_put_ahead(little_memory, tmp_path, monkeypatch):
    groups, put_ahead = [], container.LmdbContainer._put_ahead

    def watched(self, environment, puts, head):
        left = put_ahead(self, environment, puts, head)
        groups.append((len(puts), len(left)))
        return left

    monkeypatch.setattr(container.LmdbContainer, "_put_ahead", watched)
    with aesg.open(f"lmdb://{tmp_path}/s", vector_dim=64) as store, aesg.open(tmp_path / "s", "r") as reader:
        generation = store.generation
        store.nodes.append(large())
        assert store.generation == generation + 1
        (puts, left), = groups  # fmt: skip
        assert puts > 80 > left
        assert len(reader.nodes) == 0
        reader.refresh()
        assert np.array_equal(reader.nodes.read([19_999], ["vector"])["vector"], large().vector[-1:])
        store.nodes.transform(lambda c: {"vector": c["vector"] + 1}, ["vector"], ["vector"])
        assert groups[1][1] == groups[1][0]  # they replace what was there: all in one
        assert store.verify() == []


def test_a_full_map_leaves_what_was_there(little_memory, tmp_path):
    with aesg.open(f"lmdb://{tmp_path}/s?map_size=4MiB", vector_dim=64) as store:
        store.nodes.append(NodeBatch(np.ones((10, 64))))
        before = contents(store)
        with pytest.raises(CapacityError):
            store.nodes.append(large())
        assert_same(contents(store), before)
        assert store.verify() == []
        store.nodes.append(NodeBatch(np.ones((6000, 64))))  # there is room again
        assert len(store.nodes) == 6010
    with aesg.open(f"lmdb://{tmp_path}/s", "r") as store:
        assert len(store.nodes) == 6010
        assert store.verify() == []


_KILLED = """
import os, sys
import numpy as np, aesg
from aesg.backends.lmdb import container
from tests.test_loading import large
container._IN_MEMORY = 1 << 20
put_ahead = container.LmdbContainer._put_ahead
def killed(*args):
    put_ahead(*args)
    os._exit(7)
container.LmdbContainer._put_ahead = killed
aesg.open(sys.argv[1]).nodes.append(large())
"""


def test_killed_between_the_blocks_and_the_head_nothing_happened(little_memory, tmp_path):
    url = f"lmdb://{tmp_path}/s"
    with aesg.open(url, vector_dim=64) as store:
        store.attrs["before"] = True
        before = aesg.digest(store)
    assert subprocess.run([sys.executable, "-c", _KILLED, url], timeout=60).returncode == 7
    with aesg.open(url) as store:
        assert aesg.digest(store) == before
        store.nodes.append(large(5000))
        assert np.array_equal(store.nodes.read([4999], ["vector"])["vector"], large(5000).vector[-1:])
        store.nodes.append(NodeBatch(large().vector))
        assert store.verify() == []
        assert len(store.nodes) == 25_000
