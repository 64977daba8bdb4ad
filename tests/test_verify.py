"""`aesg verify`: every violation with its place, in any state of a store, and the seed index beside it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import salvage_support as support

import aesg
from aesg.backends import registry
from aesg.backends.memmap.format import EDGE_DTYPE, node_dtype
from aesg.engine.index.sidecar import HEADER
from aesg.errors import NotFoundError
from aesg.memory.seeding import seed_index
from aesg.migration import checking
from aesg.migration.checking import check


@pytest.fixture(params=support.MAIN)
def url(request, tmp_path):
    """The URL of a filled store of each backend."""
    if request.param == "icechunk":
        pytest.importorskip("icechunk")
    return support.fill(support.BACKENDS[request.param].format(tmp_path / "store"))


def kinds(found):
    return {violation.kind for violation in found.violations}


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_store_has_no_violations(url, deep):
    told = []
    found = check(url, deep=deep, progress=lambda *what: told.append(what))
    assert found.violations == []
    assert found.counts["nodes"] == 3000
    assert found.as_dict()["deep"] is deep
    assert {"nodes", "edges"} <= {doing for doing, _, _ in told}
    assert all(0 <= done <= of for _, done, of in told)
    assert all(any(d == doing and done == of for d, done, of in told) for doing in ("nodes", "edges"))


def test_every_store_takes_deep_and_progress(url):
    with aesg.open(url, mode="r") as store:
        assert store.verify() == store.verify(deep=False) == store.verify(deep=True, progress=None) == []


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nodes/id", "nodes/age", "edges/weight", "edges/use_count", "out/ref", "out/weight"])
def test_every_damaged_block_is_named_in_depth(tmp_path, name):
    url = support.fill(f"zarr://{tmp_path}/store")
    path = next((tmp_path / "store" / name).glob("c.*"))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    found = check(url, deep=True)
    assert "garbled-block" in kinds(found)
    assert any(violation.place == f"{name} block 0" for violation in found.violations)
    if name != "edges/use_count":  # read or not, as edges wait for being sorted or not
        # A plain look reads what it needs: ids, ends, lists, numbers.
        assert ("garbled-block" in kinds(check(url))) is (name != "nodes/age")


def test_one_damaged_block_hides_no_other(tmp_path):
    url = support.fill(f"zarr://{tmp_path}/store")
    for name in ("nodes/vector", "edges/confidence", "nodes/relevance", "checksums/nodes/stability"):
        path = next((tmp_path / "store" / name).glob("c.*"))
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(data)
    places = " ".join(violation.place for violation in check(url, deep=True).violations)
    for name in ("nodes/vector", "edges/confidence", "nodes/relevance", "checksums/nodes/stability"):
        assert name in places
    assert len(check(url, deep=True).violations) < 20


def test_garbage_in_records_is_listed_with_its_place(tmp_path):
    url = support.fill(f"memmap://{tmp_path}/store", nodes=500, edges=2000)
    nodes = np.memmap(tmp_path / "store/nodes.aesg", node_dtype(support.DIM), "r+")
    edges = np.memmap(tmp_path / "store/edges.aesg", EDGE_DTYPE, "r+")
    nodes["vector"][7, 0] = np.inf
    nodes["id"][9] = nodes["id"][8]
    live = np.flatnonzero(edges["next_edge_idx"][:2000] != -2)
    edges["target_id"][live[3]] = 10**12
    edges["confidence"][live[4]] = np.nan
    edges["next_edge_idx"][live[5]] = live[5]
    found = {(v.kind, v.place) for v in check(url).violations}
    assert {
        ("non-finite", "nodes.aesg row 7"),
        ("dangling-target", f"edges.aesg edge {live[3]}"),
        ("non-finite", f"edges.aesg edge {live[4]}"),
        ("cyclic-list", f"edges.aesg edge {live[5]}"),
    } <= found
    assert any(kind == "duplicate-id" for kind, _ in found)


def test_events_that_are_not_finite_are_found_in_depth(tmp_path):
    url = support.fill(f"memmap://{tmp_path}/store", nodes=50, edges=10)
    with open(tmp_path / "store/evolution.aesglog", "r+b") as file:
        file.seek(3 * 32 + 28)
        file.write(np.float32(np.nan).tobytes())
    assert kinds(check(url)) == set()
    found = check(url, deep=True)
    assert [(v.kind, v.place) for v in found.violations] == [("non-finite", "evolution.aesglog event 3")]


def test_orphaned_files_of_a_hierarchy_are_found_in_depth(tmp_path):
    url = support.fill(f"zarr://{tmp_path}/store")
    (tmp_path / "store/nodes/age/c.9").write_bytes(b"?")
    assert kinds(check(url)) == set()
    assert "stray-file" in kinds(check(url, deep=True))


def test_counts_that_do_not_agree(tmp_path):
    url = support.fill(f"lmdb://{tmp_path}/store")
    with aesg.open(url, mode="r") as store:
        store._state.removed_edges += 1
        assert {violation.kind for violation in store.verify(deep=False)} == {"removed-count"}


# --- stores that cannot be opened, and what raises ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["memmap", "lmdb", "zarr"])
def test_a_store_that_cannot_be_opened_is_a_violation_that_says_what_to_do(tmp_path, name):
    url = support.fill(support.BACKENDS[name].format(tmp_path / "store"), nodes=50, edges=10)
    place = {"memmap": "nodes.aesg", "lmdb": "data.mdb", "zarr": "zarr.json"}[name]
    path = tmp_path / "store" / place
    path.write_bytes(path.read_bytes()[:500])
    for deep in (False, True):
        found = check(url, deep=deep)
        assert kinds(found) == {"cannot-open"}
        assert "aesg repair" in found.violations[0].detail
        assert place in found.violations[0].detail


def test_no_store_is_an_error_and_no_violation(tmp_path):
    with pytest.raises(NotFoundError):
        check(f"lmdb://{tmp_path}/none")


def test_whatever_a_backend_raises_is_a_violation(tmp_path, monkeypatch):
    url = support.fill(f"memmap://{tmp_path}/store", nodes=50, edges=10)

    class Careless:
        def __init__(self, *args, **kwargs):
            self._store = aesg.open(url, mode="r")
            self.url, self.edges, self.events = self._store.url, self._store.edges, self._store.events
            self.nodes = self._store.nodes

        def verify(self, **kwargs):
            raise ZeroDivisionError("of a backend that believed a damaged length")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._store.close()

    monkeypatch.setattr(checking.registry, "open", Careless)
    found = check(url)
    assert kinds(found) == {"cannot-read"}
    assert "ZeroDivisionError" in found.violations[0].detail
    assert found.counts["nodes"] == 50


# --- the seed index --------------------------------------------------------------------------------------------------


@pytest.fixture
def indexed(tmp_path):
    """A store with an index beside it, and the folder of that."""
    url = support.fill(f"memmap://{tmp_path}/store", nodes=400, edges=10)
    with aesg.open(f"{url}?index=hnsw") as store:
        index = seed_index(store)
        assert index.bring_up()
        index.close()
        folder = registry.index_of(store)[1]
    assert check(url, deep=True).violations == []
    return url, folder


@pytest.mark.parametrize("way", ["header", "graph", "roster", "missing", "stray", "foreign"])
def test_a_damaged_index_is_found_in_depth(indexed, tmp_path, way):
    url, folder = indexed
    if way in ("graph", "roster"):
        path = next(folder.glob("seeds.*.usearch" if way == "graph" else "seeds.*.rows"))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        expected = "index-garbled"
    elif way == "header":
        (folder / HEADER).write_bytes(b"{}")
        expected = "index-garbled"
    elif way == "missing":
        next(folder.glob("seeds.*.rows")).unlink()
        expected = "index-unreadable"
    elif way == "stray":
        (folder / HEADER).unlink()
        expected = "index-stray"
    else:
        other = support.fill(f"memmap://{tmp_path}/other", nodes=40, edges=10)
        shutil.copytree(folder, folder.with_name("other.seed-index"))
        url, expected = other, "index-foreign"
    found = check(url, deep=True)
    assert kinds(found) == {expected}
    assert "delete" in found.violations[0].detail
    assert kinds(check(url)) == set()  # a plain look is at the store


def test_an_index_that_lies_about_this_generation_is_found(indexed, tmp_path):
    url, _ = indexed
    path = tmp_path / "store/nodes.aesg"
    nodes = np.memmap(path, node_dtype(support.DIM), "r+")
    row = int(np.flatnonzero(nodes["is_active"][:400])[0])
    nodes["vector"][row] = 1.0  # by a program that knows nothing of generations
    nodes.flush()
    found = check(url, deep=True)
    assert [violation.kind for violation in found.violations] == ["index-stale"]
    assert found.violations[0].place.endswith(f"row {row}")


def test_an_index_of_an_earlier_generation_is_no_violation(indexed):
    url, _ = indexed
    with aesg.open(url) as store:
        store.nodes.write([0], vector=np.ones(support.DIM, np.float32))
    assert check(url, deep=True).violations == []


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_line(tmp_path):
    url = support.fill(f"zarr://{tmp_path}/store", nodes=100, edges=50)

    def aesg_verify(*arguments):
        return subprocess.run([sys.executable, "-m", "aesg", "verify", *arguments], capture_output=True, text=True)

    assert aesg_verify(url, "--deep").returncode == 0
    path = tmp_path / "store/nodes/age/c.0"
    path.write_bytes(bytes(len(path.read_bytes())))
    assert aesg_verify(url).returncode == 0
    deep = aesg_verify(url, "--deep", "--json")
    assert deep.returncode == 1
    assert json.loads(deep.stdout)["violations"][0]["place"] == "nodes/age block 0"
    assert aesg_verify(str(tmp_path / "none")).returncode == 2
