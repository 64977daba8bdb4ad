"""The walk of edge lists and the search for ids: as plain Python, compiled, and how the one becomes the other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import aesg
from aesg.backends.ids import IdIndex
from aesg.backends.memmap import kernels
from aesg.backends.memmap.format import EDGE_DTYPE, node_dtype
from aesg.backends.memmap.kernels import NO_OVERLAY, Loops, Source
from aesg.errors import CorruptionError, DuplicateIdError
from aesg.records import NodeBatch
from aesg.testing.graphs import batch

DIM = 3
ARRAYS = ("indptr", "refs", "target_rows", "weight", "confidence", "use_count")
FOREVER = 1 << 62


@pytest.fixture(scope="module")
def compiled():
    loops = Loops(0)
    loops._load()
    assert loops.find is not None, "these tests are for both forms: run them without NUMBA_DISABLE_JIT"
    return loops


@pytest.fixture(params=["plain", "compiled"])
def loops(request, compiled, monkeypatch):
    """Stores walk in this form in the test."""
    chosen = compiled if request.param == "compiled" else Loops(FOREVER)
    monkeypatch.setattr("aesg.backends.memmap.tables.LOOPS", chosen)
    return chosen


def assert_equal(found, wanted):
    for name in ARRAYS:
        got, expected = getattr(found, name), getattr(wanted, name)
        assert got.dtype == expected.dtype, name
        assert np.array_equal(got, expected), name


def grow(graphs, rng, nodes, edges):
    """Random edges, of which some are changed and some removed; part of the nodes have none, one has many."""
    first = len(graphs[0].nodes)
    count = first + nodes
    ends = rng.integers(0, count, (2, edges))
    ends[0][rng.random(edges) < 0.3] = first
    ends[0][ends[0] % 5 == 1] = first  # those stay without
    weight = rng.random(edges, np.float32)
    refs = rng.permutation(len(graphs[0].edges) + edges)[: edges // 5]
    for graph in graphs:
        graph.nodes.append(batch(nodes, 100 + first, dim=DIM))
        graph.edges.append(*ends, weight, weight[::-1])
        live = np.concatenate([np.empty(0, np.int64), *(chunk["ref"] for chunk in graph.edges.scan(["weight"]))])
        chosen = live[refs[refs < len(live)]]
        graph.edges.remove(chosen[::3])
        graph.edges.write(chosen[1::3], use_count=np.arange(len(chosen[1::3])), weight=0.25)


@pytest.mark.parametrize("seed", range(4))
def test_the_same_as_the_reference_committed_in_a_transaction_and_by_a_reader(tmp_path, open_store, loops, seed):
    rng = np.random.default_rng(seed)
    model = open_store("memory:", vector_dim=DIM)
    store = open_store(tmp_path / "store", vector_dim=DIM)
    reader = None

    def check(*graphs):
        count = len(model.nodes)
        for rows in (np.arange(count), rng.integers(0, count, 2 * count), [0], [1, 1, 0], []):
            wanted = model.edges.out_edges(rows)
            for graph in graphs:
                assert_equal(graph.edges.out_edges(rows), wanted)

    for nodes, edges in ((3, 0), (200, 700), (150, 1500)):
        before = model.edges.out_edges(np.arange(len(model.nodes)))
        with store.transaction() as transaction:
            grow([model, transaction], rng, nodes, edges)
            check(transaction)
            assert_equal(store.edges.out_edges(np.arange(len(before.indptr) - 1)), before)
        reader = reader or open_store(tmp_path / "store", "r")
        check(store, reader)
    with store.transaction() as transaction:
        for graph in (model, transaction):  # pointers and heads that are held as whole columns
            graph.edges.remove(graph.edges.out_edges(np.arange(300)).refs[::2])
            graph.edges.append(np.arange(300), np.arange(300)[::-1], 0.5)
        check(transaction)
    check(store, reader)


def test_a_node_with_very_many_edges_among_others(tmp_path, open_store, loops):
    store = open_store(tmp_path / "store", vector_dim=DIM)
    store.nodes.append(batch(300, dim=DIM))
    sources = np.append(np.arange(300), np.full(20_000, 7))
    store.edges.append(sources, sources[::-1], np.linspace(0, 1, len(sources)))
    found = store.edges.out_edges([299, 7, 0, 7])
    assert found.degrees.tolist() == [1, 20_001, 1, 20_001]
    assert found.refs[1:20_002].tolist() == [*range(20_299, 299, -1), 7]
    assert found.target_rows[1:20_002].tolist() == sources[::-1][found.refs[1:20_002]].tolist()
    assert np.array_equal(found.weight, store.edges.read(found.refs, ["weight"])["weight"])


def test_what_is_given_back_is_the_callers_and_no_larger_than_it_has_to_be(tmp_path, open_store, loops):
    store = open_store(tmp_path / "store", vector_dim=DIM)
    store.nodes.append(batch(100, dim=DIM))
    store.edges.append(np.full(10_000, 5), np.zeros(10_000, np.int64))
    few = store.edges.out_edges(np.arange(10, 90))  # by the average one would expect thousands
    assert not len(few.refs)
    many = store.edges.out_edges([5])
    for name in ARRAYS:
        array = getattr(many, name)
        assert array.flags.writeable
        whole = array
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        assert whole.nbytes <= 1.5 * array.nbytes
        array[...] = 0
    assert store.edges.out_edges([5]).refs[0] == 9999


def test_edges_to_ids_that_no_node_has(tmp_path, loops):
    with aesg.open(tmp_path / "store", vector_dim=DIM) as store:
        store.nodes.append(batch(200, dim=DIM))
        store.edges.append(np.arange(200), np.arange(200)[::-1])
    edges = np.memmap(tmp_path / "store" / "edges.aesg", EDGE_DTYPE, "r+")
    edges["target_id"][:200:2] = np.arange(100) + 77_000
    edges["target_id"][4] = 0
    edges.flush()
    with aesg.open(tmp_path / "store", "r") as store:
        found = store.edges.out_edges(np.arange(200)).target_rows
    assert found[::2].tolist() == [-1] * 100
    assert found[1::2].tolist() == list(range(198, -1, -2))


# --- broken lists ----------------------------------------------------------------------------------------------------

ROW = 290  # not in the first block

BROKEN = {
    "to itself": (1, 1, "edge {1} where one below {1} or -1 is due"),
    "in a circle": (0, 2, "edge {2} where one below {0} or -1 is due"),
    "far outside": (1, 10**15, "edge 1000000000000000 where one below {1} or -1 is due"),
    "below": (2, -(10**15), "edge -1000000000000000 where one below {2} or -1 is due"),
    "as a removed one": (2, -2, "edge -2 where one below {2} or -1 is due"),
    "to another's": (2, "another", "edge {another}, which belongs to another node"),
    "outside, at once": ("head", 10**15, "edge 1000000000000000 where one below {count} or -1 is due"),
    "at the count": ("head", "count", "edge {count} where one below {count} or -1 is due"),
    "below, at once": ("head", -2, "edge -2 where one below {count} or -1 is due"),
    "to another's, at once": ("head", "another", "edge {another}, which belongs to another node"),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_broken_list_says_where_it_leads(tmp_path, loops, monkeypatch, how, mode):
    where, to, said = BROKEN[how]
    with aesg.open(tmp_path / "store", vector_dim=DIM) as store:
        store.nodes.append(batch(300, dim=DIM))
        store.edges.append(np.tile(np.arange(300), 3), np.zeros(900, np.int64))
        refs = store.edges.out_edges([ROW]).refs[::-1].tolist()
    named = {"count": 900, "another": 3}
    value = refs[to] if isinstance(to, int) and 0 <= to < 3 else named.get(to, to)
    if where == "head":
        nodes = np.memmap(tmp_path / "store" / "nodes.aesg", node_dtype(DIM), "r+")
        nodes["head_edge_idx"][ROW] = value
    else:
        edges = np.memmap(tmp_path / "store" / "edges.aesg", EDGE_DTYPE, "r+")
        edges["next_edge_idx"][refs[where]] = value
    for module in ("reader", "writer"):  # they would see it before we do
        monkeypatch.setattr(f"aesg.backends.memmap.{module}.check_sample", lambda *args: None)
    said = f"the edge list of row {ROW} leads to " + said.format(*refs, **named)
    with aesg.open(tmp_path / "store", mode) as store:
        for rows in ([ROW], np.arange(300), [0, ROW, 0]):
            with pytest.raises(CorruptionError, match=r"edges\.aesg") as caught:
                store.edges.out_edges(rows)
            assert str(caught.value).endswith(said)
        assert store.edges.out_edges([ROW - 1, ROW + 1]).degrees.tolist() == [3, 3]


# --- ids -------------------------------------------------------------------------------------------------------------


class Heap:
    """Nodes in memory, for an index."""

    def __init__(self, ids):
        self.ids = ids
        self.count = len(ids)

    def chunk(self, field, start, stop):
        return self.ids[start:stop].copy()

    def gather(self, field, rows):
        return self.ids[rows]


@pytest.mark.parametrize("count", [1, 2, 300, 40_000])
def test_ids_are_found_as_by_array_operations(compiled, count):
    rng = np.random.default_rng(count)
    spread = rng.choice([1, 2**20, 2**63 // count])
    nodes = Heap((np.arange(count) * spread).astype(np.uint64))  # with a 0
    nodes.ids[count // 2] = nodes.ids[0]  # as 0.3.0 gives one twice now and then
    index = IdIndex()
    index.catch_up(nodes)
    visible = [count, count // 2, count]  # rows past the middle are taken back in between, and others come instead
    seen = np.zeros(count, np.uint64)
    for turn, nodes.count in enumerate(visible):
        index.roll_back(nodes.count)
        if turn == 2:
            nodes.ids[count // 2 :] = rng.integers(1, 2**63, count - count // 2)
        asked = np.concatenate([rng.permutation(nodes.ids), rng.integers(0, 2**63, 50).astype(np.uint64)])
        wanted = index.lookup(asked, nodes)
        for find in (compiled.find, kernels._find):
            if find is compiled.find or count < 1000:
                got = index.lookup(asked, nodes, lambda *args, find=find: find(nodes.ids, seen, count // 2, *args))
                assert got.dtype == np.int64
                assert np.array_equal(got, wanted)
    assert not seen[count // 2 :].any(), "rows that may be taken back are not remembered"


def test_rows_that_were_taken_back_are_not_found_and_those_in_their_place_are(tmp_path, open_store, loops):
    store = open_store(tmp_path / "store", vector_dim=DIM)
    store.nodes.append(batch(10, 100, dim=DIM))
    for first in (1000, 2000, 3000):
        transaction = store.transaction()
        transaction.nodes.append(batch(200, first, dim=DIM))
        rows = transaction.edges.append(np.arange(210), np.arange(210)[::-1])
        assert transaction.edges.out_edges(rows).target_rows.tolist() == list(range(209, -1, -1))
        assert transaction.nodes.rows_of(np.arange(first, first + 200)).tolist() == list(range(10, 210))
        assert store.nodes.rows_of([100, first]).tolist() == [0, -1]
        transaction.rollback()
        assert (store.nodes.rows_of(np.arange(first, first + 200)) == -1).all()
    store.compact()
    assert store.nodes.rows_of([109, 100, 1000]).tolist() == [9, 0, -1]


def test_ids_are_found_before_and_after_large_appends_are_rolled_back(tmp_path, open_store, loops):
    """Those of many nodes are taken in while the nodes are written."""
    store = open_store(tmp_path / "store", vector_dim=DIM)
    for first in (100, 50_000, 150_000):
        transaction = store.transaction()
        transaction.nodes.append(batch(30_000, first + 1, dim=DIM))
        transaction.nodes.append(batch(500, first + 40_000, dim=DIM))
        assert transaction.nodes.rows_of([first + 1, first + 30_000, first + 40_499])[[0, 1, 2]].tolist() == [
            len(store.nodes),
            len(store.nodes) + 29_999,
            len(store.nodes) + 30_499,
        ]
        transaction.rollback()
        store.nodes.append(batch(30_000, first, dim=DIM))
        found = store.nodes.rows_of([first, first + 29_999, first + 30_000, first + 40_000])
        assert found.tolist() == [len(store.nodes) - 30_000, len(store.nodes) - 1, -1, -1]
        with pytest.raises(DuplicateIdError):
            store.nodes.append(batch(300, first + 29_999, dim=DIM))


# --- vectors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 15, 16, 129])
@pytest.mark.parametrize("count", [0, 1, 16, 17, 1000])
def test_vectors_are_gathered_as_by_numpy(tmp_path, open_store, compiled, monkeypatch, dim, count):
    store = open_store(tmp_path / "store", vector_dim=dim)
    vectors = np.random.default_rng(dim).random((700, dim), np.float32)
    store.nodes.append(NodeBatch(vectors))
    rows = np.random.default_rng(count).integers(0, 700, count)
    rows.flags.writeable = False
    for loops in (Loops(FOREVER), compiled):
        monkeypatch.setattr("aesg.backends.memmap.table.LOOPS", loops)
        assert (loops.gatherer(1) is not None) == (loops is compiled)
        found = store.nodes.read(rows, ["vector"])["vector"]
        assert found.dtype == np.float32
        assert np.array_equal(found, vectors[rows])
        found += 1  # the caller's own
        several = store.nodes.read(rows, ["is_active", "region_id", "vector", "id"])
        assert list(several) == ["is_active", "region_id", "vector", "id"]
        assert np.array_equal(several["vector"], vectors[rows])
        for name, values in several.items():
            assert values.flags.aligned
            assert values.flags.c_contiguous
            assert np.array_equal(values, np.concatenate([chunk[name] for chunk in store.nodes.scan([name])])[rows])
        with store.transaction() as transaction:
            transaction.nodes.write([3], vector=np.zeros(dim))
            assert not transaction.nodes.read([3], ["vector"])["vector"].any()
            assert np.array_equal(transaction.nodes.read([4, 3, 5], ["vector"])["vector"][::2], vectors[[4, 5]])
            transaction.rollback()


@pytest.mark.parametrize("row", [-1, 5, 1 << 40])
def test_no_vector_is_gathered_from_outside_the_file(compiled, row):
    gather = compiled.gatherer(1)
    file = np.arange(5 * 24, dtype=np.uint8)
    out = np.empty(32, np.uint8)
    place, start = np.array([[8, 16]]), np.zeros(1, np.int64)
    gather(file, np.array([4, 0]), 24, place, 0, start, out)
    assert out.tolist() == [*range(104, 120), *range(8, 24)]
    with pytest.raises(IndexError):
        gather(file, np.array([0, row]), 24, place, 0, start, out)


def test_the_gather_is_compiled_when_many_vectors_have_been_gathered():
    loops = Loops(2)
    assert [loops.gatherer(16) is not None for _ in range(3)] == [False, False, True]


def test_without_the_compiled_gather_numpy_gathers(monkeypatch):
    monkeypatch.setitem(sys.modules, "aesg.backends.memmap.gathering", None)
    monkeypatch.delattr("aesg.backends.memmap.gathering", raising=False)
    loops = Loops(0)
    with pytest.warns(RuntimeWarning, match="gathered slowly"):
        assert loops.gatherer(1) is None
    assert loops.find is not None


# --- from one form to the other --------------------------------------------------------------------------------------

HUB = """
import sys
import numpy as np
import aesg
from aesg import records
from aesg.backends.memmap import kernels
with aesg.open(sys.argv[1], vector_dim=3) as store:
    store.nodes.append(records.NodeBatch(np.ones((7000, 3), np.float32)))
    store.edges.append(np.ones(70_000, int), np.arange(70_000) % 3)
    for _ in range(100):
        store.edges.out_edges([0, 2])
    assert "numba" not in sys.modules
    found = store.edges.out_edges([1])  # one cannot tell that there are so many
    assert found.refs.tolist() == list(range(69_999, -1, -1))
    assert found.target_rows.tolist() == [ref % 3 for ref in range(69_999, -1, -1)]
    print("numba" in sys.modules, kernels.LOOPS.find is not None)
"""


def run(program, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(folder / "store")],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "NUMBA_DISABLE_JIT": "0", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_numba_is_imported_when_many_edges_have_been_walked(tmp_path):
    assert run(HUB, tmp_path) == ["True", "True"]


def test_without_compiling_it_is_slow_and_right(tmp_path):
    assert run(HUB, tmp_path, NUMBA_DISABLE_JIT="1") == ["True", "False"]


def test_where_nothing_can_be_kept_it_is_compiled_anyway(tmp_path):
    package = shutil.copytree(
        Path(aesg.__file__).parent, tmp_path / "aesg", ignore=shutil.ignore_patterns("__pycache__")
    )
    (package / "backends" / "memmap" / "__pycache__").touch()  # a file: nobody makes a folder there, root included
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "NUMBA_CACHE_DIR": "", "PYTHONPATH": str(tmp_path)}
    program = f"import aesg; assert aesg.__file__.startswith({str(tmp_path)!r}), aesg.__file__" + HUB
    assert run(program, tmp_path, **nowhere) == ["True", "True"]


def test_a_numba_that_cannot_be_imported_is_said_and_done_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    loops = Loops(0)
    nodes = {"id": np.array([5], np.uint64), "head_edge_idx": np.array([1])}
    edges = np.zeros(2, EDGE_DTYPE)
    edges["source_id"], edges["next_edge_idx"] = 5, [-1, 0]
    columns = {name: edges[name] for name in EDGE_DTYPE.names}
    sources = Source(nodes, NO_OVERLAY), Source(columns, NO_OVERLAY)
    with pytest.warns(RuntimeWarning, match="numba"):
        found = loops.walk(np.zeros(1, np.int64), *sources, 2, 2)
    assert found.refs.tolist() == [1, 0]
    assert loops.find is None
    assert loops.walk(np.zeros(1, np.int64), *sources, 2, 2).refs.tolist() == [1, 0]  # and not said again
