"""The 0.3.0 format, both ways: what 0.3.0 wrote is read, and what is written here 0.3.0 reads and goes on writing."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN_NAMES

import aesg
from aesg.backends.memmap.format import EDGE_DTYPE, Meta, node_dtype, read_meta
from aesg.errors import NotFoundError, SchemaMismatchError
from aesg.records import NODE_FIELDS, EventType, event_dicts, events
from aesg.testing.graphs import assert_same, batch, check_within, contents, fill

PUBLISHED = ["nodes.aesg", "edges.aesg", "meta.npy", "evolution.aesglog"]
DIM = 5


def published_bytes(directory):
    return {name: (directory / name).read_bytes() for name in PUBLISHED if (directory / name).exists()}


def edge_lists(graph):
    """Each row's edges as 0.3.0 has them: ids of both ends, weight, confidence, use_count."""
    n = len(graph.nodes)
    ids = graph.nodes.read(np.arange(n), ["id"])["id"]
    found = graph.edges.out_edges(np.arange(n))
    target = ids[found.target_rows]
    values = [target, found.weight, found.confidence, found.use_count]
    return [
        [[int(ids[row]), *(column[at].item() for column in values)] for at in range(*found.indptr[row : row + 2])]
        for row in range(n)
    ]


# --- what 0.3.0 wrote ------------------------------------------------------------------------------------------------


def compare_with_dump(store, dump):
    nodes = dump["nodes"]
    assert store.vector_dim == dump["meta"]["vector_dim"]
    assert (len(store.nodes), len(store.edges)) == (dump["meta"]["node_count"], dump["meta"]["edge_count"])
    assert [node["index"] for node in nodes] == list(range(len(store.nodes)))
    found = store.nodes.read(np.arange(len(nodes)))
    for name, dtype in NODE_FIELDS.items():
        if name == "vector":
            wanted = b"".join(base64.b64decode(node["vector_b64"]) for node in nodes)
        else:
            wanted = np.array([node[name] for node in nodes], dtype).tobytes()
        assert found[name].tobytes() == wanted, name
    adjacency = store.edges.out_edges(np.arange(len(nodes)))
    for node, lists in zip(nodes, edge_lists(store), strict=True):
        wanted = [[*edge[:2], *np.array(edge[2:4], np.float32).tolist(), edge[4]] for edge in node["edges"]]
        assert lists == wanted
        refs = adjacency.refs[slice(*adjacency.indptr[node["index"] : node["index"] + 2])].tolist()
        pointers = [node["head_edge_idx"], *(edge[5] for edge in node["edges"])]
        assert pointers == [*refs, -1], "refs are the places in the file"
    assert event_dicts(store.events.read()) == dump["history"]
    assert json.loads(json.dumps(event_dicts(store.events.read()))) == dump["history"]


def copy_of(golden, tmp_path):
    directory = tmp_path / golden.name
    directory.mkdir()
    for name in PUBLISHED:
        shutil.copyfile(golden / name, directory / name)
    return directory


@pytest.mark.parametrize("mode", ["r", "a"])
def test_golden_directories_give_exactly_their_dumps(golden, mode, tmp_path, open_store):
    directory = copy_of(golden, tmp_path)
    dump = json.loads((golden / "dump.json").read_text())
    before = published_bytes(directory)
    with open_store(directory, mode) as store:
        compare_with_dump(store, dump)
        check_within(store)
        assert store.verify() == []
        assert dict(store.attrs) == {}
        assert store.uuid
    assert published_bytes(directory) == before, "opening and closing changed a file of 0.3.0's"
    if mode == "r":
        assert sorted(entry.name for entry in directory.iterdir()) == sorted(before)
    with open_store(directory, "r") as store:
        compare_with_dump(store, dump)


def test_golden_directories_open_where_they_cannot_be_written(golden, open_store):
    before = published_bytes(golden)
    with open_store(golden, "r") as store:
        compare_with_dump(store, json.loads((golden / "dump.json").read_text()))
    assert published_bytes(golden) == before


def test_golden_directories_can_be_gone_on_with(golden, tmp_path, open_store):
    directory = copy_of(golden, tmp_path)
    with open_store(directory, "r") as store:
        old = contents(store)
    with open_store(directory, vector_dim=old["dim"]) as store:
        fill_more(store)
        new, generation = contents(store), store.generation
        assert new["node vector"].startswith(old["node vector"])
        assert new["log"][: len(old["log"])] == old["log"]
        assert store.verify() == []
    with open_store(directory) as store:
        assert_same(contents(store), new)
        assert store.generation == generation
    with pytest.raises(SchemaMismatchError, match=f"{old['dim']}.*{old['dim'] + 1}"):
        open_store(directory, vector_dim=old["dim"] + 1)
    with pytest.raises(SchemaMismatchError):
        open_store(directory, "r", vector_dim=old["dim"] + 1)


def test_a_directory_of_030_without_a_log(golden, tmp_path, open_store):
    directory = copy_of(golden, tmp_path)
    (directory / "evolution.aesglog").unlink()
    with open_store(directory, "r") as reader:
        assert len(reader.events) == 0
        with open_store(directory) as store:
            store.events.append(events(EventType.PRUNE, [1, 2], timestamp=3))
            assert len(reader.events) == 2
    with open_store(directory, "r") as store:
        assert event_dicts(store.events.read())[0]["type"] == "PRUNE"


def test_golden_names_are_those_that_are_described():
    if not GOLDEN_NAMES:
        pytest.skip("no golden directories")
    assert {"d8_50", "d8_grown", "d8_tiefree"} <= set(GOLDEN_NAMES)


# --- what 0.3.0 reads ------------------------------------------------------------------------------------------------

READ_BY_030 = """
import base64, json, sys
folder, directory, dim = sys.argv[1:4]
sys.path[0] = folder
import aesg
from aesg.storage.engine import AESGStorage
from aesg.storage.logger import EvolutionLogger
assert aesg.__file__.startswith(folder)
storage = AESGStorage(directory, int(dim))
n = storage.node_count
names = [name for name in storage.node_dtype.names if name != "head_edge_idx"]
print(json.dumps({
    "counts": [n, storage.edge_count, storage.vector_dim],
    "nodes": {name: base64.b64encode(storage.nodes[:n][name].tobytes()).decode() for name in names},
    "lists": [[[x.item() for x in list(edge)[:5]] for edge in storage.get_edges(row)] for row in range(n)],
    "history": EvolutionLogger(directory).get_history(),
    "zero tails": not storage.nodes[n:].tobytes().strip(bytes(1))
    and not storage.edges[storage.edge_count:].tobytes().strip(bytes(1)),
}))
"""

WRITE_BY_030 = """
import sys
folder, directory, dim = sys.argv[1:4]
sys.path[0] = folder
import numpy as np
from aesg.storage.engine import AESGStorage
from aesg.storage.logger import EvolutionLogger
storage = AESGStorage(directory, int(dim))
log = EvolutionLogger(directory)
first = storage.node_count
for i in range(40):
    row = storage.add_node(5000 + i, np.full(int(dim), i, np.float32))
    log.log_event("CREATE", 5000 + i, 0, 1.0)
    assert row == first + i
for i in range(25):
    storage.add_edge(first + i, 5000 + i + 1, 0.25, 0.75)
    storage.add_edge(0, 5000 + i, i / 32)
storage.nodes[first]["is_active"] = 0
storage.flush()
log.log_event("SOMETHING", 1, 2, 3.5)
"""


@pytest.fixture(scope="session")
def folder_of_030(request):
    """The folder that holds the published package, installed once and kept in pytest's cache."""
    cache = Path(request.config.cache.mkdir("aesg-0.3.0")).absolute()
    folder = cache / "site"
    if not folder.is_dir():
        fresh = tempfile.mkdtemp(dir=cache)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", fresh, "aesg==0.3.0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            shutil.rmtree(fresh)
            pytest.skip(f"pip cannot install aesg==0.3.0: {done.stderr.strip().splitlines()[-1]}")
        try:
            os.rename(fresh, folder)  # whole or not at all: several processes may run these tests
        except OSError:
            shutil.rmtree(fresh)
    return folder


@pytest.fixture
def by_030(folder_of_030):
    """Run a program of 0.3.0's on a directory."""

    def run(program, directory, dim=DIM):
        command = [sys.executable, "-c", program, str(folder_of_030), str(directory), str(dim)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=directory)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout else None

    return run


def fill_more(store):
    """Growth over every capacity, in transactions and without, with changes and removals along the way."""
    rng = np.random.default_rng(8)
    first = len(store.nodes)
    for turn in range(6):
        with store.transaction() as graph:
            rows = graph.nodes.append(batch(40, 20_000 + 100 * turn, seed=turn, dim=store.vector_dim))
            n = len(graph.nodes)
            graph.edges.append(rng.choice(rows, 120), rng.integers(0, n, 120), rng.random(120), rng.random(120))
            graph.edges.append(rng.integers(0, n, 30), rng.choice(rows, 30))
            graph.events.append(events(EventType.CREATE, np.arange(40), 0, 1.0, timestamp=77))
            graph.nodes.transform(
                lambda c: {"age": c["age"] + c["is_active"], "relevance": c["relevance"] * np.float32(0.95)},
                ["age", "is_active", "relevance"],
                ["age", "relevance"],
            )
            graph.edges.transform(lambda c: {"confidence": c["confidence"] / 2}, ["confidence"], ["confidence"])
            graph.nodes.write(rng.choice(rows, 3), is_active=0, use_frequency=turn)
            live = np.concatenate([chunk["ref"] for chunk in graph.edges.scan(["weight"])])
            graph.edges.write(rng.choice(live, 20), weight=0.5, use_count=turn)
            graph.edges.remove(np.unique(rng.choice(live, 9)))
        with store.transaction() as graph:
            graph.nodes.append(batch(500, 90_000, dim=store.vector_dim))
            graph.edges.append([0] * 900, [first] * 900)
            graph.events.append(events(EventType.MERGE, np.arange(99)))
            graph.rollback()
    store.attrs["epoch"] = 6


def compare_with_030(read, store):
    n = len(store.nodes)
    stored = store.stats()
    assert read["counts"] == [n, stored["edges"] + stored["removed_edges"], store.vector_dim]
    found = store.nodes.read(np.arange(n))
    for name in NODE_FIELDS:
        assert base64.b64decode(read["nodes"][name]) == found[name].tobytes(), name
    assert read["lists"] == edge_lists(store)
    assert read["history"] == event_dicts(store.events.read())
    assert read["zero tails"]


@pytest.mark.parametrize("end", ["grown", "compacted", "empty", "recovered", "rolled back"])
def test_030_reads_what_was_closed_here(disk_url, tmp_path, by_030, open_store, end):
    directory = tmp_path / "store"
    with open_store(disk_url, vector_dim=DIM) as store:
        if end != "empty":
            fill(store)
            fill_more(store)
        if end == "compacted":
            store.nodes.write(np.arange(0, 200, 3), is_active=0)
            store.compact()
        if end == "rolled back":
            graph = store.transaction()
            graph.nodes.append(batch(900, 90_000, dim=DIM))
            graph.edges.append([0] * 2000, [1] * 2000)
            graph.events.append(events(EventType.MERGE, np.arange(99)))
        if end == "recovered":
            store.flush()  # so that meta.npy speaks of more room than there are records
            graph = store.transaction()
            graph.nodes.append(batch(900, 90_000, dim=DIM))
            graph.edges.append([0] * 2000, [1] * 2000)
            graph.events.append(events(EventType.MERGE, np.arange(99)))
            shutil.copytree(directory, tmp_path / "left")  # what a kill would leave
            graph.rollback()
            directory = tmp_path / "left"
    if end == "recovered":
        open_store(directory).close()
    before = published_bytes(directory)
    read = by_030(READ_BY_030, directory)
    assert published_bytes(directory) == before
    with open_store(directory, "r") as store:
        compare_with_030(read, store)
        assert store.verify() == []


def test_030_goes_on_writing_and_we_read_on(disk_url, tmp_path, by_030, open_store):
    with open_store(disk_url, vector_dim=DIM) as store:
        fill(store)
        before, generation, identity = contents(store), store.generation, store.uuid
    by_030(WRITE_BY_030, tmp_path / "store")
    read = by_030(READ_BY_030, tmp_path / "store")
    for mode in ("r", "a", "r"):
        with open_store(disk_url, mode) as store:
            compare_with_030(read, store)
            check_within(store)
            assert store.verify() == []
            assert len(store.nodes) == 12 + 40
            assert len(store.edges) == 9 + 50
            assert store.nodes.rows_of([100, 5000, 5039, 5040]).tolist() == [0, 12, 51, -1]
            assert store.nodes.read([12], ["is_active"])["is_active"].tolist() == [0]
            assert store.events.read(-1)["type"].tolist() == [255]
            assert event_dicts(store.events.read(-1))[0]["type"] == "UNKNOWN"
            assert store.attrs["epoch"] == 7
            assert contents(store)["attrs"] == before["attrs"]
            assert store.generation > generation, "what was indexed of the store before is out of date"
            assert store.uuid == identity
    with open_store(disk_url) as store:
        with pytest.raises(ValueError, match="5003"):
            store.nodes.append(batch(1, 5003, dim=DIM))
        fill_more(store)
        store.compact()
        assert store.verify() == []
    read = by_030(READ_BY_030, tmp_path / "store")
    with open_store(disk_url, "r") as store:
        compare_with_030(read, store)


def test_030_goes_on_with_a_large_store_and_the_index_of_ids_is_right(tmp_path, by_030, open_store):
    directory = tmp_path / "store"
    with open_store(directory, vector_dim=DIM) as store:
        store.nodes.append(batch(4990, 10_000, dim=DIM))
        assert store.nodes.rows_of([10_005]).tolist() == [5]
    assert (directory / "ids.index").exists()
    by_030(WRITE_BY_030, directory)
    with open_store(directory, "r") as store:
        assert store.nodes.rows_of([10_005, 14_989, 5000, 5039]).tolist() == [5, 4989, 4990, 5029]
        assert store.verify() == []


def test_a_new_store_is_small_and_030_reads_it(tmp_path, by_030, open_store):
    open_store(tmp_path / "store", vector_dim=DIM).close()
    assert sum(entry.stat().st_size for entry in (tmp_path / "store").iterdir()) < 30_000
    assert by_030(READ_BY_030, tmp_path / "store")["counts"] == [0, 0, DIM]


# --- what 0.3.0 has no place for -------------------------------------------------------------------------------------


def test_sidecars_are_what_the_design_says(disk_url, tmp_path, open_store):
    store = open_store(disk_url, vector_dim=DIM)
    store.nodes.append(batch(5000, dim=DIM))
    assert {entry.name for entry in (tmp_path / "store").iterdir()} == {
        *PUBLISHED, "store.json", "journal.redo", "writer.lock",
    }  # fmt: skip
    store.close()
    assert {entry.name for entry in (tmp_path / "store").iterdir()} == {
        *PUBLISHED, "store.json", "ids.index", "writer.lock",
    }  # fmt: skip


@pytest.mark.parametrize("gone", ["ids.index", "writer.lock", "both"])
def test_derived_files_may_be_deleted(disk_url, tmp_path, open_store, gone):
    with open_store(disk_url, vector_dim=DIM) as store:
        store.nodes.append(batch(5000, dim=DIM))
        fill_more(store)
        before = contents(store)
    for name in ("ids.index", "writer.lock") if gone == "both" else (gone,):
        (tmp_path / "store" / name).unlink()
    for mode in ("r", "a", "r"):
        with open_store(disk_url, mode) as store:
            assert_same(contents(store), before)
            assert store.verify() == []
    assert (tmp_path / "store" / "ids.index").exists(), "it was made anew"


def test_without_store_json_it_is_a_directory_of_030(disk_url, tmp_path, open_store):
    with open_store(disk_url, vector_dim=DIM) as store:
        fill(store)
        before = contents(store)
    (tmp_path / "store" / "store.json").unlink()
    for mode in ("r", "a", "r"):
        with open_store(disk_url, mode) as store:
            assert_same(contents(store), before | {"attrs": "{}"})
            assert store.verify() == []  # which counts the removed edges


@pytest.mark.parametrize("how", ["moved", "copied", "copied beside", "linked", "copied with holes"])
def test_a_directory_can_be_moved_and_copied(disk_url, tmp_path, open_store, how):
    with open_store(disk_url, vector_dim=DIM) as store:
        fill(store)
        fill_more(store)
        before, identity = contents(store), store.uuid
    old, new = tmp_path / "store", tmp_path / "ünder new näme?#%20"
    if how == "moved":
        old.rename(new)
    elif how == "linked":
        new.symlink_to(old)
    elif how == "copied with holes":
        subprocess.run(["cp", "-r", "--sparse=always", old, new], check=True)
    else:
        shutil.copytree(old, new)
    beside = open_store(disk_url) if how == "copied beside" else None
    for mode in ("r", "a"):
        with open_store(new, mode) as store:
            assert_same(contents(store), before)
            assert store.uuid == identity
            assert store.verify() == []
            url = store.url
        with open_store(url, "r") as store:
            assert_same(contents(store), before)
    with open_store(new) as store:
        fill_more_ids = batch(3, 77_000, dim=DIM)
        store.nodes.append(fill_more_ids)
        store.nodes.transform(lambda c: {"age": c["age"] + 1}, ["age"], ["age"])
    if how != "linked" and how != "moved":
        with beside or open_store(disk_url) as store:
            assert_same(contents(store), before)
    if how == "moved":
        with pytest.raises(NotFoundError):
            open_store(disk_url, "r")


def test_meta_is_the_bytes_that_numpy_saves(tmp_path):
    meta = Meta(3, 4, 5, 64, 320)
    values = {"node_count": 3, "edge_count": 4, "vector_dim": 5, "cap_nodes": 64, "cap_edges": 320}
    np.save(tmp_path / "meta.npy", values)
    assert (tmp_path / "meta.npy").read_bytes() == meta.to_bytes()
    assert read_meta(tmp_path / "meta.npy") == meta


@pytest.mark.parametrize("dim", [1, 8, 300])
def test_records_have_the_layout_of_030(dim):
    kind = node_dtype(dim)
    assert kind.itemsize == 53 + 4 * dim
    offsets = {"id": 0, "vector": 8, "created_at": 8, "modified_at": 16, "use_frequency": 24, "relevance": 28,
               "age": 32, "stability": 36, "region_id": 40, "is_active": 44, "head_edge_idx": 45}  # fmt: skip
    for name, (_, offset) in kind.fields.items():
        assert offset == offsets[name] + (4 * dim if name not in ("id", "vector") else 0)
    assert EDGE_DTYPE.itemsize == 36
    assert [offset for _, offset in EDGE_DTYPE.fields.values()] == [0, 8, 16, 20, 24, 28]


def test_records_past_the_counts_are_zero_bytes(disk_url, tmp_path, open_store):
    directory = tmp_path / "store"
    with open_store(disk_url, vector_dim=DIM) as store:
        fill(store)
        fill_more(store)
    meta = read_meta(directory / "meta.npy")
    for name, count, item, capacity in (
        ("nodes.aesg", meta.node_count, node_dtype(DIM).itemsize, meta.cap_nodes),
        ("edges.aesg", meta.edge_count, 36, meta.cap_edges),
    ):
        data = (directory / name).read_bytes()
        assert len(data) == item * capacity, "what meta.npy says"
        assert not data[count * item :].strip(bytes(1))
    with aesg.open(directory, "r") as store:
        assert (directory / "evolution.aesglog").stat().st_size == 32 * len(store.events)
