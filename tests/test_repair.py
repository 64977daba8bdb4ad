"""`aesg repair`: what is sound comes over as it is, what is not is counted, and the damaged store stays as it is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import salvage_support as support

import aesg
from aesg.backends import registry
from aesg.backends.blocks import layout
from aesg.backends.memmap.format import EDGE_DTYPE, node_dtype
from aesg.errors import CorruptionError, LockedError, MigrationError, NotFoundError
from aesg.migration.repair import repair, salvage
from aesg.migration.wrecks import ReadWreck
from aesg.records import NODE_FIELDS, EventType, NodeBatch, events
from aesg.testing import salvage_campaign as damage


@pytest.fixture(params=support.MAIN)
def url(request, tmp_path):
    """The URL of a filled store of each backend."""
    if request.param == "icechunk":
        pytest.importorskip("icechunk")
    return support.fill(support.BACKENDS[request.param].format(tmp_path / "store"))


def files_of(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def repaired(url, tmp_path, **kwargs):
    """What a repair says, and what the new store holds."""
    done = repair(url, f"memmap://{tmp_path}/repaired", **kwargs)
    with aesg.open(done.destination, mode="r") as store:
        assert store.verify() == []
        return done, support.contents(store)


def flip(path, at, bits=0x10):
    data = bytearray(path.read_bytes())
    data[at] ^= bits
    path.write_bytes(data)


# --- sound stores ----------------------------------------------------------------------------------------------------


def test_of_a_sound_store_nothing_is_lost(url, tmp_path):
    before = support.snapshot_of(url)
    files = files_of(tmp_path / "store")
    done, after = repaired(url, tmp_path)
    assert support.same(before, after)
    assert done.whole
    assert done.places == []
    assert done.reset == {}
    assert (done.nodes, done.edges) == (len(before["nodes"]["id"]), len(before["edges"]["weight"]))
    assert files_of(tmp_path / "store") == files  # not a byte of it, and nothing was written anew


def test_what_was_committed_and_not_put_in_place_is_salvaged(url, tmp_path):
    before = support.snapshot_of(url)
    with aesg.open(url) as store:
        store.nodes.write([7], relevance=0.5)
        rows = store.nodes.append(NodeBatch(np.ones((3, support.DIM), np.float32), np.arange(90_001, 90_004)))
        store.edges.append(rows, [1, 2, 3])
        store.attrs["late"] = True
        now = support.contents(store)
        shutil.copytree(tmp_path / "store", tmp_path / "killed")  # as a kill leaves it
    _, after = repaired(url.replace("/store", "/killed"), tmp_path)
    assert support.same(now, after)
    assert not support.same(before, after)


def test_repair_into_every_backend(tmp_path):
    url = support.fill(f"zarr://{tmp_path}/store", nodes=300, edges=900)
    before = support.snapshot_of(url)
    for scheme in ("lmdb", "zarr", "memmap"):
        done = repair(url, f"{scheme}://{tmp_path}/{scheme}")
        assert done.whole
        assert support.same(before, support.snapshot_of(done.destination))


def test_golden_directories_come_over_whole(golden, tmp_path):
    before = support.snapshot_of(f"memmap:{golden}")
    done, after = repaired(f"memmap:{golden}", tmp_path)
    assert done.whole, done.as_dict()
    assert support.same(before, after)


# --- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", [*(f"nodes/{n}" for n in ("id", "vector", "age", "created_at")), "events/id1"])
def test_a_lost_block_loses_its_rows_and_no_others(tmp_path, column):
    url = support.fill(f"zarr://{tmp_path}/store", pruned=0)
    before = support.snapshot_of(url)
    flip(next((tmp_path / "store" / column).glob("c.*")), 1001)
    done, after = repaired(url, tmp_path)
    assert not done.whole
    assert any(column in loss.place for loss in done.places)
    count = len(before["nodes"]["id"])
    if column in ("nodes/id", "nodes/vector"):  # one block holds all that was merged
        assert done.lost["nodes"] == count - done.nodes > 2900
    elif column.startswith("nodes/"):
        field = column.split("/")[1]
        assert done.nodes == count
        assert done.reset[column] > 2900
        kept = [name for name in before["nodes"] if name != field]
        assert all(after["nodes"][name].tobytes() == before["nodes"][name].tobytes() for name in kept)
        assert (after["nodes"][field] == 0).sum() >= done.reset[column]
    else:
        assert done.lost["events"] > 0
        assert done.nodes == count
    if column != "nodes/id" and column != "nodes/vector":
        assert done.edges == len(before["edges"]["weight"])


@pytest.mark.parametrize("field", list(layout.EDGE_COLUMNS))
def test_a_lost_block_of_edges_is_made_from_the_other_order(tmp_path, field):
    url = support.fill(f"zarr://{tmp_path}/store")
    before = support.snapshot_of(url)
    flip(tmp_path / "store/edges" / field / "c.0", 1001)
    with aesg.open(url, mode="r") as store:
        assert any(field in violation.place for violation in store.verify())
    done, after = repaired(url, tmp_path)
    assert done.edges >= len(before["edges"]["weight"]) - 10  # the last few had not been sorted by source
    assert done.nodes == len(before["nodes"]["id"])
    rows = {
        tuple(row)
        for row in zip(*(before["edges"][k].tolist() for k in ("source_id", "target_id", "weight")), strict=True)
    }
    found = zip(*(after["edges"][k].tolist() for k in ("source_id", "target_id", "weight")), strict=True)
    assert all(row in rows for row in found)


def test_a_garbled_checksum_costs_one_block_at_most(tmp_path):
    url = support.fill(f"lmdb://{tmp_path}/store", nodes=6000, edges=100, pruned=0)
    wreck = salvage(url)
    table = wreck._layout["checksums/nodes/vector"]
    assert len(wreck._sums["nodes/vector"]) > 4
    place = bytes(np.array(wreck._sums["nodes/vector"], np.uint32))
    wreck.close()
    data = (tmp_path / "store/data.mdb").read_bytes()
    assert place in data
    assert table.block_rows > 4
    (tmp_path / "store/data.mdb").write_bytes(data.replace(place, bytes([place[0] ^ 1]) + place[1:]))
    done, after = repaired(url, tmp_path)
    assert 0 < done.lost["nodes"] <= 1024
    assert done.nodes == 6000 - done.lost["nodes"] == len(after["nodes"]["id"])


def test_a_hierarchy_without_its_root_keeps_all_but_attributes(tmp_path):
    url = support.fill(f"zarr://{tmp_path}/store")
    before = support.snapshot_of(url)
    (tmp_path / "store/zarr.json").unlink()
    done, after = repaired(url, tmp_path)
    assert any(loss.part == "attrs" for loss in done.places)
    assert not done.whole
    assert done.nodes == len(before["nodes"]["id"])
    assert done.edges == len(before["edges"]["weight"])
    assert support.same(before | {"attrs": {}}, after)


def test_documents_of_arrays_are_not_needed(tmp_path):
    url = support.fill(f"zarr://{tmp_path}/store")
    before = support.snapshot_of(url)
    for path in (tmp_path / "store").rglob("zarr.json"):
        if path.parent.name not in ("store", "journal"):
            path.write_bytes(b"{")
    done, after = repaired(url, tmp_path)
    assert done.whole
    assert support.same(before, after)


def test_lmdb_without_meta_pages_and_branches(tmp_path):
    url = support.fill(f"lmdb://{tmp_path}/store")
    before = support.snapshot_of(url)
    path = tmp_path / "store/data.mdb"
    data = bytearray(path.read_bytes())
    data[:8192] = bytes(8192)
    for page in range(2, len(data) // 4096):
        if int.from_bytes(data[page * 4096 + 10 : page * 4096 + 12], "little") == 1:  # a branch
            data[page * 4096 : (page + 1) * 4096] = bytes(4096)
    path.write_bytes(data)
    with pytest.raises(CorruptionError):
        aesg.open(url, mode="r")
    done, after = repaired(url, tmp_path)
    assert done.whole
    assert support.same(before, after)


def log_of(tmp_path, commits=6):
    """A store with so many commits in its log, as a kill leaves it, and what it held after each."""
    url, states = f"zarr://{tmp_path}/store", []
    with aesg.open(url, vector_dim=4) as store:
        for k in range(commits):
            with store.transaction() as graph:
                graph.nodes.append(NodeBatch(np.full((2, 4), k + 1, np.float32), np.array([2 * k, 2 * k + 1])))
                graph.attrs["k"] = k
            states.append(support.contents(store))
        shutil.copytree(tmp_path / "store", tmp_path / "killed")
    return f"zarr://{tmp_path}/killed", states


@pytest.mark.parametrize("bad", range(6))
def test_records_of_a_log_are_taken_up_to_the_first_bad_one(tmp_path, bad):
    url, states = log_of(tmp_path)
    chunk = tmp_path / "killed/log" / f"c.{bad}"
    assert chunk.exists()
    from numcodecs.zstd import Zstd

    raw = bytearray(Zstd().decode(chunk.read_bytes()))
    at = raw.index(np.full(4, bad + 1, np.float32).tobytes())
    raw[at] ^= 0xFF
    chunk.write_bytes(Zstd(level=1).encode(bytes(raw)))
    done, after = repaired(url, tmp_path)
    assert not done.whole
    assert any(loss.part == "commits" for loss in done.places)
    assert done.nodes == 2 * bad
    assert done.lost["nodes"] == 12 - 2 * bad
    if bad:
        assert after["nodes"]["vector"].tobytes() == states[bad - 1]["nodes"]["vector"].tobytes()


def test_icechunk_falls_back_to_the_commit_before(tmp_path):
    pytest.importorskip("icechunk")
    url = support.fill(f"icechunk://{tmp_path}/store")
    with aesg.open(url, mode="r") as store:
        newest = store.history()[0].snapshot
    (tmp_path / "store/snapshots" / newest).unlink()
    done, after = repaired(url, tmp_path)
    assert done.nodes == 3000
    assert len(after["edges"]["weight"]) == done.edges > 0


# --- memmap, and what 0.3.0 leaves -----------------------------------------------------------------------------------


@pytest.fixture
def records(tmp_path):
    """A memmap store, and its files as arrays to be written to."""
    url = support.fill(f"memmap://{tmp_path}/store", nodes=500, edges=2000, pruned=0)
    nodes = np.memmap(tmp_path / "store/nodes.aesg", node_dtype(support.DIM), "r+")
    edges = np.memmap(tmp_path / "store/edges.aesg", EDGE_DTYPE, "r+")
    return url, nodes, edges


def test_lists_are_made_anew(records, tmp_path):
    url, nodes, edges = records
    before = support.snapshot_of(url)
    nodes["head_edge_idx"][:50] = 10**9
    live = 100 + np.flatnonzero(edges["next_edge_idx"][100:140] != -2)
    edges["next_edge_idx"][live] = live  # each its own next: a knot
    edges.flush()
    done, after = repaired(url, tmp_path)
    assert support.same(before, after)
    assert done.whole
    assert [loss.part for loss in done.places] == ["derived"]


def test_what_is_not_sound_is_counted(records, tmp_path):
    url, nodes, edges = records
    live = np.flatnonzero(edges["next_edge_idx"][:2000] != -2)
    nodes["vector"][3, 5] = np.nan
    nodes["id"][10] = nodes["id"][11]
    nodes[20] = np.zeros((), nodes.dtype)
    nodes["relevance"][30] = np.inf
    nodes["is_active"][31] = 7
    edges["target_id"][live[0]] = 10**15
    edges["weight"][live[1]] = np.nan
    before = len(live)
    nodes.flush()
    edges.flush()
    done, after = repaired(url, tmp_path)
    assert done.lost["nodes"] == 3
    assert done.reasons["nodes: vector not finite"] == done.reasons["nodes: blank"] == 1
    assert done.reasons["nodes: another row has the same id"] == 1
    assert done.reasons["edges: it names no node"] >= 1
    assert done.reasons["edges: weight or confidence not finite"] == 1
    assert done.edges == before + 10 - done.lost["edges"]
    assert done.reset == {"nodes/is_active": 1, "nodes/relevance": 1}
    assert after["nodes"]["relevance"][after["nodes"]["id"] == 31] == 1.0
    assert 3 + 1 not in after["nodes"]["id"]


@pytest.mark.parametrize("name", ["nodes.aesg", "edges.aesg", "evolution.aesglog"])
def test_a_file_that_was_cut_keeps_what_is_left(records, tmp_path, name):
    url, _, _ = records
    before = support.snapshot_of(url)
    path = tmp_path / "store" / name
    item = {"nodes.aesg": 53 + 4 * support.DIM, "edges.aesg": 36, "evolution.aesglog": 32}[name]
    os.truncate(path, 101 * item + 7)
    done, after = repaired(url, tmp_path)
    kind = {"nodes.aesg": "nodes", "edges.aesg": "edges", "evolution.aesglog": "events"}[name]
    assert done.lost[kind] > 0
    assert not done.whole
    if kind == "nodes":
        assert after["nodes"]["vector"].tobytes() == before["nodes"]["vector"][:101].tobytes()
        assert done.lost["nodes"] == 399
        assert done.edges > 0
    elif kind == "events":
        assert after["events"].tobytes() == before["events"][:101].tobytes()
    else:
        assert done.nodes == 500
        assert 80 < done.edges <= 101


@pytest.mark.parametrize("gone", [["meta.npy"], ["store.json"], ["ids.index"], ["meta.npy", "store.json"]])
def test_files_beside_the_records_are_not_needed(records, tmp_path, gone):
    url, _, _ = records
    before = support.snapshot_of(url)
    for name in gone:
        (tmp_path / "store" / name).unlink(missing_ok=True)
    if len(gone) > 1:
        with pytest.raises(CorruptionError, match="vector_dim"):
            repair(url, f"memmap://{tmp_path}/repaired")
    done, after = repaired(url, tmp_path, vector_dim=support.DIM if len(gone) > 1 else None)
    if "store.json" in gone:
        before["attrs"] = {}
    assert support.same(before, after)
    assert done.lost == {"nodes": 0, "edges": 0, "events": 0}


def test_a_journal_is_taken_up_to_its_first_bad_entry(tmp_path):
    url, states = f"memmap://{tmp_path}/store?durability=power_loss", []
    with aesg.open(url, vector_dim=4) as store:
        for k in range(5):
            with store.transaction() as graph:
                graph.nodes.append(NodeBatch(np.full((2, 4), k + 1, np.float32), np.array([2 * k, 2 * k + 1])))
                graph.attrs["k"] = k
            states.append(support.contents(store))
        shutil.copytree(tmp_path / "store", tmp_path / "killed")
    path = tmp_path / "killed/journal.redo"
    data = bytearray(path.read_bytes())
    at = data.rindex(np.full(4, 4, np.float32).tobytes())  # in the fourth entry
    data[at] ^= 1
    path.write_bytes(data)
    done, after = repaired(f"memmap://{tmp_path}/killed", tmp_path)
    assert support.same(states[2], after)
    assert done.nodes == 6


# --- other people's backends -----------------------------------------------------------------------------------------


class Torn:
    """A store some of whose rows cannot be read."""

    def __init__(self, store, bad):
        self._store, self._bad = store, bad
        self.url, self.vector_dim, self.attrs, self.close = store.url, store.vector_dim, store.attrs, store.close
        self.nodes, self.edges, self.events = self, self, store.events

    def __len__(self):
        return len(self._store.nodes)

    def _check(self, rows):
        if np.isin(rows, self._bad).any():
            raise CorruptionError("a bad place")

    def read(self, rows, fields):
        self._check(rows)
        return self._store.nodes.read(rows, fields)

    def out_edges(self, rows):
        self._check(rows)
        return self._store.edges.out_edges(rows)


def test_a_store_that_only_opens_is_read_row_by_row(tmp_path, monkeypatch):
    url = support.fill(f"memmap://{tmp_path}/store", nodes=200, edges=500, pruned=0)
    before = support.snapshot_of(url)
    bad = [5, 6, 77, 199]
    monkeypatch.setattr(
        "aesg.migration.repair.salvage", lambda *_, **__: ReadWreck(Torn(aesg.open(url, mode="r"), bad))
    )
    done, after = repaired(url, tmp_path)
    keep = np.setdiff1d(np.arange(200), bad)
    assert after["nodes"]["vector"].tobytes() == before["nodes"]["vector"][keep].tobytes()
    assert done.lost["nodes"] == 4
    ends = np.isin(before["edges"]["source_id"], keep + 1) & np.isin(before["edges"]["target_id"], keep + 1)
    assert (after["edges"]["weight"] == before["edges"]["weight"][ends]).all()
    assert sorted(loss.place for loss in done.places if loss.part == "nodes")[0] == "row 199"


def test_a_plugged_in_block_backend_is_salvaged_block_by_block(tmp_path, monkeypatch):
    import sqlite3

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    import sqlite_backend

    registry.register(sqlite_backend.BACKEND)
    url = support.fill(f"sqlite://{tmp_path}/store.db", nodes=6000, edges=100, pruned=0)
    db = sqlite3.connect(tmp_path / "store.db")
    db.execute("UPDATE blocks SET data = zeroblob(length(data)) WHERE name = 'nodes/vector' AND number = 2")
    db.commit()
    db.close()
    done, after = repaired(url, tmp_path)
    assert 0 < done.lost["nodes"] <= 1024
    assert len(after["nodes"]["id"]) == done.nodes == 6000 - done.lost["nodes"]


# --- what is refused, the command, the campaign ----------------------------------------------------------------------


def test_a_store_that_somebody_writes_to_is_left_alone(url, tmp_path):
    with aesg.open(url), pytest.raises(LockedError):
        repair(url, f"memmap://{tmp_path}/repaired")
    wreck = salvage(url)
    with pytest.raises(LockedError):
        aesg.open(url)
    wreck.close()
    aesg.open(url).close()
    assert not (tmp_path / "repaired").exists()


def test_what_repair_refuses(tmp_path):
    url = support.fill(f"memmap://{tmp_path}/store", nodes=20, edges=5)
    with pytest.raises(MigrationError, match="exists"):
        repair(url, url)
    with pytest.raises(NotFoundError):
        repair(f"lmdb://{tmp_path}/none", f"memmap://{tmp_path}/new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "store/nodes.aesg").write_bytes(b"")
    done, _ = repaired(url, tmp_path)
    assert (done.nodes, done.lost["nodes"]) == (0, 20)


def test_the_command_line(tmp_path):
    url = support.fill(f"zarr://{tmp_path}/store")
    flip(tmp_path / "store/nodes/age/c.0", 1001)
    done = subprocess.run(
        [sys.executable, "-m", "aesg", "repair", url, f"lmdb://{tmp_path}/new"], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "nodes/age" in done.stdout
    assert "starting value" in done.stdout
    again = subprocess.run(
        [sys.executable, "-m", "aesg", "repair", f"lmdb://{tmp_path}/new", f"{tmp_path}/third", "--json"],
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0
    assert json.loads(again.stdout)["whole"] is True


CASES = int(os.environ.get("AESG_SALVAGE_CASES", "0")) or 7
"""Of each backend."""


@pytest.mark.parametrize("name", damage.BACKENDS)
def test_the_damage_campaign(name):
    if name == "icechunk":
        pytest.importorskip("icechunk")
    tally = damage.campaign(name, CASES)
    sys.stdout.write(json.dumps({name: tally.as_dict()}) + "\n")
    assert tally.bad == []
    assert tally.cases == CASES
    assert tally.salvaged + tally.nothing == CASES


def test_the_campaign_notices_wrong_values():
    then = {f"nodes/{name}": np.arange(4) for name in NODE_FIELDS}
    then |= {f"edges/{name}": np.arange(3) for name in ("source", "target", "weight", "confidence", "use_count")}
    assert damage.compare(then, then, {})["wrong"] == 0
    now = {name: values.copy() for name, values in then.items()}
    now["nodes/age"][2] = 9
    now["edges/weight"][0] = 9
    assert damage.compare(then, now, {})["wrong"] == 2
    assert damage.compare(then, now, {"nodes/age": 1})["wrong"] == 1
    assert damage.compare(then, now, {})["shares"]["edges"] == pytest.approx(2 / 3)


def test_events_are_there_too(tmp_path):
    url = support.fill(f"lmdb://{tmp_path}/store", nodes=50, edges=10)
    with aesg.open(url) as store:
        store.events.append(events(EventType.MERGE, [1, 2], 3, 0.5, timestamp=1))
    _, after = repaired(url, tmp_path)
    assert after["events"]["type"][-2:].tolist() == [1, 1]
