"""Edge lists that were read and kept: nobody can tell that they are, but by the time it takes."""

import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aesg
from aesg.backends import lists
from aesg.backends.lists import EDGE_BYTES, ListCache
from aesg.jit import Loops
from aesg.records import Adjacency
from aesg.testing.graphs import batch

DIM = 3
ARRAYS = ("indptr", "refs", "target_rows", "weight", "confidence", "use_count")
SCHEMES = ["memmap", "lmdb", "zarr", "icechunk"]


def loops(patience):
    functions = (lists.find, lists.join, lists.keep)
    return Loops("test", functions, (lists.first_slot,), lists._signatures, patience)


@pytest.fixture(scope="module")
def compiled():
    found = loops(0)
    assert found.are_compiled(1), "these tests are for both forms: run them without NUMBA_DISABLE_JIT"
    return found


@pytest.fixture(autouse=True)
def at_once(monkeypatch, compiled):
    """Kept from the first list on."""
    from aesg.backends.memmap import kernels, tables

    monkeypatch.setattr(lists, "LOOPS", compiled)
    walks = kernels.Loops(0)
    walks._load()
    monkeypatch.setattr(tables, "LOOPS", walks)


def assert_equal(found, wanted):
    for name in ARRAYS:
        got, expected = getattr(found, name), getattr(wanted, name)
        assert got.dtype == expected.dtype, name
        assert np.array_equal(got, expected), name


class Model:
    """A graph of which each row has as many edges as it is told, numbered so that no two are alike."""

    def __init__(self, lengths, dangling=()):
        self.lengths, self.dangling, self.version, self.asked = lengths, dangling, 0, []

    def edges(self, rows, limit=None):
        counts = [self.lengths[row] if limit is None else min(limit, self.lengths[row]) for row in rows]
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        ref = np.concatenate(
            [np.empty(0, np.int64), *(1000 * r + np.arange(n) for r, n in zip(rows, counts, strict=True))]
        )
        target = (ref * 7) % 101
        for row in self.dangling:
            target[ref == 1000 * row] = -1
        weight = (ref + self.version).astype(np.float32)
        return Adjacency(indptr, ref, target, weight, weight * 2, (ref % 13).astype(np.uint32))

    def read(self, limit):
        def read(rows):
            self.asked.extend(rows.tolist())
            return self.edges(rows.tolist(), limit)

        return read


@pytest.mark.parametrize("form", ["plain", "compiled"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_same_as_without_it_whatever_its_size(form, compiled, data):
    chosen = compiled if form == "compiled" else loops(1 << 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "LOOPS", chosen)
        lengths = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=30))
        model = Model(lengths, data.draw(st.sets(st.integers(0, len(lengths) - 1), max_size=3)))
        cache = ListCache(data.draw(st.sampled_from([24, 500, 3000, 1 << 16])))
        for _ in range(data.draw(st.integers(1, 8))):
            if data.draw(st.integers(0, 4)) == 0:
                model.version += 1
                model.lengths = data.draw(st.permutations(model.lengths))
                cache.clear()
            rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=20)), np.int64)
            limit = data.draw(st.sampled_from([None, None, 1, 3, 50]))
            found = cache.out_edges(rows, limit, model.read(limit), in_many_threads=False)
            assert_equal(found, model.edges(rows.tolist(), limit))


def test_what_was_read_is_not_read_again_unless_it_was_cut_or_is_too_long_or_leads_nowhere():
    model = Model([5, 0, 4, 5000, 3], dangling=[4])
    cache = ListCache(1 << 14)

    def ask(rows, limit=None):
        model.asked.clear()
        assert_equal(
            cache.out_edges(np.array(rows), limit, model.read(limit), in_many_threads=False), model.edges(rows, limit)
        )
        return model.asked

    assert ask([0, 1], limit=5) == [0, 1]
    assert ask([0, 1]) == [0]  # of five edges there might have been more
    assert ask([1, 0], limit=2) == []
    assert ask([3, 2, 4]) == [3, 2, 4]
    assert ask([4, 2, 3, 0]) == [4, 3]
    cache.clear()
    assert ask([1, 0]) == [1, 0]
    assert ask([0, 1, 1, 0]) == []


def test_the_oldest_give_way():
    model = Model([10] * 1000)
    cache = ListCache(100 * 10 * EDGE_BYTES)
    for row in range(1000):
        cache.out_edges(np.array([row]), None, model.read(None), in_many_threads=False)
    model.asked.clear()
    cache.out_edges(np.arange(930, 1000), None, model.read(None), in_many_threads=False)
    assert len(model.asked) <= 3  # that share their slots with too many others
    cache.out_edges(np.arange(800), None, model.read(None), in_many_threads=False)
    assert set(range(800)) <= set(model.asked)


def test_threads_find_and_read_side_by_side():
    model = Model([r % 7 for r in range(9000)])
    cache = ListCache()
    rng = np.random.default_rng(0)
    for _ in range(4):
        rows = rng.integers(0, 9000, 6000)
        found = cache.out_edges(rows, None, model.read(None), in_many_threads=True)
        assert_equal(found, model.edges(rows.tolist()))
    assert len(set(model.asked)) < len(model.asked) < 16_000


def test_a_child_has_its_own():
    memory = lists._in_large_pages(1 << 16)
    child = os.fork()
    if not child:
        memory[:] = 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not memory.any()


@pytest.mark.parametrize("size", ["0", "4096", "default"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(2))
def test_stores_give_what_is_committed_to_who_writes_and_to_who_reads(tmp_path, open_store, scheme, size, seed):
    rng = np.random.default_rng(seed)
    options = {} if size == "default" else {"cache_bytes": size}
    model = open_store("memory:", vector_dim=DIM)
    store = open_store(f"{scheme}://{tmp_path}/store", vector_dim=DIM, **options)
    for graph in (model, store):
        graph.nodes.append(batch(60, dim=DIM))
    reader = open_store(f"{scheme}://{tmp_path}/store", "r", **options)

    def same(*graphs):
        for _ in range(2):  # read, and from what was kept
            rows = rng.integers(0, len(model.nodes), 50)
            limit = [None, 1, 4][rng.integers(3)]
            for graph in graphs:
                assert_equal(graph.edges.out_edges(rows, limit), model.edges.out_edges(rows, limit))

    def live():
        return np.concatenate([np.empty(0, np.int64), *(chunk["ref"] for chunk in model.edges.scan(["weight"]))])

    for _ in range(25):
        what = rng.integers(7)
        ends, numbers = rng.integers(0, len(model.nodes), (2, 40)), rng.random(40, np.float32)
        refs = rng.permutation(live())[:15]
        undone = rng.integers(5) == 0
        with store.transaction() as transaction:
            for graph in [transaction] if undone else [model, transaction]:
                if what < 2:
                    graph.edges.append(*ends, numbers, numbers[::-1])
                elif what == 2:
                    graph.edges.write(refs, weight=numbers[: len(refs)], use_count=7)
                elif what == 3:
                    graph.edges.remove(refs)
                elif what == 4:
                    graph.edges.transform(lambda c: {"confidence": c["confidence"] / 2}, ["confidence"], ["confidence"])
                elif what == 5:
                    graph.nodes.append(batch(2, 1000 + len(graph.nodes), dim=DIM))
                else:
                    graph.nodes.write(ends[0], relevance=0.5)
            if undone:
                transaction.edges.out_edges(ends[0])
                transaction.rollback()
            else:
                same(transaction)
        same(store)
        if not store.capabilities.snapshots or rng.integers(2):
            reader.refresh()
            same(reader)
        if rng.integers(12) == 0:
            reader.close()
            for graph in (model, store):
                graph.compact(min_confidence=0.1)
            reader = open_store(f"{scheme}://{tmp_path}/store", "r", **options)


def test_memmap_notices_that_somebody_else_wrote(tmp_path, open_store):
    from aesg.backends.memmap.format import EDGE_DTYPE

    with aesg.open(f"memmap://{tmp_path}/store", vector_dim=DIM) as store:
        store.nodes.append(batch(5, dim=DIM))
        store.edges.append([0, 0], [1, 2])
    reader = open_store(f"memmap://{tmp_path}/store", "r")
    assert reader.edges.out_edges([0]).weight.tolist() == [1, 1]
    path = tmp_path / "store" / "edges.aesg"
    time.sleep(0.02)  # some systems' clocks of files tick that slowly
    with open(path, "r+b") as file:  # as 0.3.0 does it
        file.seek(EDGE_DTYPE.fields["weight"][1])
        file.write(np.float32(0.25).tobytes())
    reader._looked = 0.0
    assert reader.edges.out_edges([0]).weight.tolist() == [1, 0.25]
