"""`aesg compact`: what is dropped is nowhere afterwards; a kill leaves the store before or after, never between."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import salvage_support as support

import aesg
from aesg.backends import registry
from aesg.backends.blocks import rewrite
from aesg.errors import CapacityError, InvalidInputError, ReadOnlyError
from aesg.memory.seeding import seed_index
from aesg.migration.compacting import compact
from aesg.testing.forks import KILLED, server


@pytest.fixture(params=support.BACKENDS)
def url(request, tmp_path):
    """The URL of a filled store of each backend."""
    if request.param == "icechunk":
        pytest.importorskip("icechunk")
    return support.fill(support.BACKENDS[request.param].format(tmp_path / "store"))


def all_bytes(folder):
    return [path.read_bytes().rstrip(b"\0") for path in sorted(folder.rglob("*")) if path.is_file()]


def holds_any(files, vectors):
    """Whether the first two numbers of any of the vectors are anywhere in the files, at whatever byte."""
    wanted = np.ascontiguousarray(vectors[:, :2]).view("<u8")[:, 0]
    for data in files:
        for offset in range(min(4, len(data))):
            words = np.frombuffer(data, "<u4", (len(data) - offset) // 4, offset).astype(np.uint64)
            if len(words) > 1 and np.isin(words[:-1] | words[1:] << np.uint64(32), wanted).any():
                return True
    return False


def check_compacted(before, after, least):
    nodes, edges = support.expected_compaction(before, least)
    assert all(after["nodes"][name].tobytes() == values.tobytes() for name, values in nodes.items())
    assert all(after["edges"][name].tobytes() == values.tobytes() for name, values in edges.items())
    assert after["events"].tobytes() == before["events"].tobytes()
    assert after["attrs"] == before["attrs"]


def test_what_is_pruned_goes_and_the_rest_stays(url):
    before = support.snapshot_of(url)
    done = compact(url)
    assert done.min_confidence == 0.1  # the store's own
    after = support.snapshot_of(url)
    check_compacted(before, after, 0.1)
    assert len(done.row_map) == len(before["nodes"]["id"])
    kept = done.row_map >= 0
    assert (after["nodes"]["id"][done.row_map[kept]] == before["nodes"]["id"][kept]).all()
    assert (kept == (before["nodes"]["is_active"] == 1)).all()
    assert done.dropped_nodes == np.count_nonzero(~kept)
    assert done.nodes == len(after["nodes"]["id"])
    assert done.edges == len(after["edges"]["weight"])
    assert not done.not_reclaimed
    with aesg.open(url, mode="r") as store:
        assert store.verify() == []


def test_the_bytes_of_what_was_dropped_are_in_no_file(url, tmp_path):
    before = support.snapshot_of(url)
    done = compact(url)
    files = all_bytes(tmp_path)
    if "codec=zstd" not in url and not url.startswith("icechunk"):  # there, no vector can be searched for
        gone = before["nodes"]["vector"][done.row_map < 0]
        stays = before["nodes"]["vector"][done.row_map >= 0]
        assert holds_any(files, stays[:1])  # that is how they lie there
        assert not holds_any(files, gone)
    # Whatever the compression: a store that never held them has as many files, none of which is larger.
    with aesg.open(url, mode="r") as store:
        if hasattr(store, "history"):
            assert len(store.history()) == 2  # the compacted store, and the empty one that everything began with
            live = set((tmp_path / "store/chunks").iterdir())
            store_again = support.snapshot_of(url)
            assert len(live) > 0
            assert len(store_again["nodes"]["id"]) == done.nodes


def test_icechunk_keeps_no_chunk_of_an_earlier_commit(tmp_path):
    pytest.importorskip("icechunk")
    url = support.fill(f"icechunk://{tmp_path}/store?codec=none")
    before = support.snapshot_of(url)
    with aesg.open(url) as store:
        row_map = store.compact()
        assert len(store.history()) > 2  # the history is the library user's to end
        gone = before["nodes"]["vector"][row_map < 0]
        assert holds_any(all_bytes(tmp_path), gone[:1])
        store.forget_history()
        assert len(store.history()) == 2  # the compacted store, and the empty one that everything began with
        assert not holds_any(all_bytes(tmp_path), gone)
        assert store.verify() == []


def test_small_lmdb_stores_leave_nothing_inside_their_pages(tmp_path):
    # Few nodes lie inside the pages of the tree, which are rewritten in place.
    url = f"lmdb://{tmp_path}/store"
    for seed in range(3):
        support.fill(url, nodes=60, edges=40, seed=seed, pruned=0.5)
        before = support.snapshot_of(url)
        done = compact(url)
        files = all_bytes(tmp_path)
        gone = before["nodes"]["vector"][done.row_map < 0]
        assert len(gone) > 10
        assert holds_any(files, before["nodes"]["vector"][done.row_map >= 0][:1])
        assert not holds_any(files, gone)
        shutil.rmtree(tmp_path / "store")


def test_room_is_given_back(url, tmp_path):
    with aesg.open(url) as store:
        store.nodes.write(np.arange(10, len(store.nodes)), is_active=0)
    done = compact(url)
    assert done.nodes <= 10
    if "zarr" not in url:  # uncompressed chunks have their full size, be they holes
        assert done.bytes_after < done.bytes_before


@pytest.mark.parametrize("least", [0.0, 0.5, 2.0])
def test_edges_under_a_confidence_go(url, least):
    before = support.snapshot_of(url)
    done = compact(url, min_confidence=least)
    after = support.snapshot_of(url)
    check_compacted(before, after, least)
    assert done.min_confidence == least
    assert done.dropped_edges == len(before["edges"]["weight"]) - len(after["edges"]["weight"])


def test_without_a_threshold_no_edge_goes_for_its_confidence(tmp_path):
    url = support.fill(f"memmap://{tmp_path}/store", pruned=0)
    with aesg.open(url) as store:
        store.edges.write(0, confidence=-1.0)
        del store.attrs["config"]
        edges = len(store.edges)
    done = compact(url)
    assert (done.min_confidence, done.edges, done.dropped_edges) == (None, edges, 0)


def test_what_compact_refuses(url):
    with aesg.open(url) as store:
        for bad in ("high", np.nan, np.inf, 1e300):
            with pytest.raises(InvalidInputError, match="min_confidence"):
                store.compact(min_confidence=bad)
        assert store.verify() == []
    with aesg.open(url, mode="r") as store, pytest.raises(ReadOnlyError):
        store.compact(min_confidence=0.5)


def test_the_index_of_old_rows_is_gone(tmp_path):
    url = support.fill(f"lmdb://{tmp_path}/store", pruned=0.3)
    with aesg.open(f"{url}?index=hnsw") as store:
        index = seed_index(store)
        assert index.bring_up()
        index.close()
        folder = registry.index_of(store)[1]
    assert any(folder.iterdir())
    done = compact(url)
    assert done.index_dropped
    assert not folder.exists()


def test_a_second_compaction_finds_nothing(url):
    compact(url)
    once = support.snapshot_of(url)
    done = compact(url)
    assert (done.dropped_nodes, done.dropped_edges) == (0, 0)
    assert (done.row_map == np.arange(len(done.row_map))).all()
    assert support.same(once, support.snapshot_of(url))


def test_what_readers_keep_from_being_reclaimed_is_said(tmp_path):
    url = support.fill(f"lmdb://{tmp_path}/store")
    with aesg.open(url, mode="r") as reader:
        assert "others have the store open" in compact(url).not_reclaimed
        assert len(reader.nodes) == 3000
    assert not compact(url).not_reclaimed


def test_a_full_disk_leaves_it_as_it_was(url, monkeypatch):
    if url.startswith("memmap"):
        pytest.skip("its own tests of full disks cover compaction")
    before = support.snapshot_of(url)

    def full(self, block):
        raise CapacityError("no room")

    with aesg.open(url) as store:
        with monkeypatch.context() as patch:
            patch.setattr(rewrite.Spool, "keep", full)
            with pytest.raises(CapacityError):
                store.compact()
        assert support.same(before, support.contents(store))
    assert support.same(before, support.snapshot_of(url))


# --- kills -----------------------------------------------------------------------------------------------------------


def kills_of(url, tmp_path, kills, seed=0):
    """Kill compactions at random moments; how many found the store as it was, and how many compacted."""
    rng = random.Random(seed)
    store, kept = tmp_path / "store", tmp_path / "kept"
    store.rename(kept)
    jobs = server((str(Path(__file__).with_name("salvage_support").name),))
    before = None
    counts = {"before": 0, "after": 0}
    seconds = 0.2
    for k in range(kills + 1):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(kept, store)
        before = before or support.snapshot_of(url)
        with jobs.start("salvage_support:compact_job", url=url) as job:
            assert job.line() == "begin", job.errors()
            if k == 0:  # how long does one take?
                from time import monotonic

                begun = monotonic()
                assert job.line() == "done", job.errors()
                seconds = monotonic() - begun
                assert job.wait() == 0
                after = support.snapshot_of(url)
                continue
            from time import sleep

            sleep(rng.random() * seconds * 1.1)
            job.kill()
            assert job.wait() in (0, KILLED)
        found = support.snapshot_of(url)
        whole = "before" if support.same(found, before) else "after" if support.same(found, after) else "between"
        assert whole != "between"
        counts[whole] += 1
        if whole == "before" or k % 4 == 0:  # and it can be compacted still
            compact(url)
            assert support.same(support.snapshot_of(url), after)
        with aesg.open(url, mode="r") as opened:
            assert opened.verify() == []
    return counts


KILLS = int(os.environ.get("AESG_COMPACT_KILLS", "0"))
"""Of each backend; the long form is 100."""


@pytest.mark.parametrize("name", ["memmap", "lmdb", "zarr", "icechunk", *(["zarr-power_loss"] if KILLS else [])])
def test_a_killed_compaction_is_whole_or_has_not_happened(name, tmp_path):
    if name == "icechunk":
        pytest.importorskip("icechunk")
    url = support.fill(support.BACKENDS[name].format(tmp_path / "store"))
    counts = kills_of(url, tmp_path, KILLS or 3)
    sys.stdout.write(json.dumps({"backend": name, **counts}) + "\n")
    assert sum(counts.values()) == (KILLS or 3)


# --- the command -----------------------------------------------------------------------------------------------------


def aesg_command(*arguments):
    return subprocess.run([sys.executable, "-m", "aesg", *arguments], capture_output=True, text=True)


def test_the_command_line(tmp_path):
    url = support.fill(f"memmap://{tmp_path}/store")
    ids = support.snapshot_of(url)["nodes"]["id"]
    done = aesg_command("compact", url, "--json", "--row-map", str(tmp_path / "map.npy"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["dropped_nodes"] == 600
    assert found["nodes"] == 2400
    assert found["min_confidence"] == 0.1
    row_map = np.load(tmp_path / "map.npy")
    after = support.snapshot_of(url)["nodes"]["id"]
    assert (after[row_map[row_map >= 0]] == ids[row_map >= 0]).all()
    again = aesg_command("compact", url, "--min-confidence", "0.9")
    assert again.returncode == 0
    assert "edges of confidence below 0.9" in again.stdout
    missing = aesg_command("compact", str(tmp_path / "none"))
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1
