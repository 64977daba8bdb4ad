"""The index files beside a store: used when they are right to the last bit, discarded otherwise."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

import aesg
from aesg.engine.index import owner
from aesg.engine.index.owner import SeedIndex
from aesg.engine.index.sidecar import HEADER, Header, Sidecar
from aesg.engine.seeds import nearest
from aesg.errors import ReadOnlyError
from aesg.memory.seeding import seed_index
from aesg.records import NodeBatch
from tests.index_support import D, asks_the_index, clustered, files, filled, queries, recall

N = 1500
VECTORS = clustered(N)
ASKED = queries(VECTORS)


@pytest.fixture
def place(tmp_path):
    """A closed store with a saved index: (its URL, the index's folder)."""
    url = f"memmap://{tmp_path}/store?index=hnsw"
    store = filled(url, VECTORS)
    index = seed_index(store)
    assert index.bring_up()
    index.close()
    store.close()
    return url, tmp_path / "store.seed-index"


def brought_up(store):
    """A store's index, and what it did to be up to date."""
    index, done = seed_index(store), []
    assert index.bring_up(lambda doing, *_: done.append(doing) if doing not in done else None)
    return index, done


def test_the_next_process_loads_it_and_does_nothing_else(place):
    url, folder = place
    assert len(files(folder)) == 3
    for mode in ("r", "a"):
        with aesg.open(url, mode=mode) as store:
            index, done = brought_up(store)
            assert done == ["loading"]
            assert recall(store, ASKED) >= 0.97
            before = files(folder)
            index.close()
            assert files(folder) == before


def test_after_commits_that_it_did_not_see_it_catches_up(place):
    url, folder = place
    with aesg.open(url) as store:
        store.nodes.write(np.arange(100), is_active=0)
        store.nodes.append(NodeBatch(ASKED))
    with aesg.open(url, mode="r") as store:
        index, done = brought_up(store)
        assert done == ["loading", "comparing", "entering"]
        assert recall(store, ASKED) >= 0.97
        before = files(folder)
        index.close()
        assert files(folder) == before  # a reader writes nothing
    with aesg.open(url) as store:
        brought_up(store)[0].close()
    with aesg.open(url, mode="r") as store:
        index, done = brought_up(store)
        assert done == ["loading"]
        assert recall(store, ASKED) >= 0.97
        index.close()


def test_appended_rows_need_no_new_files_but_a_header(place):
    url, folder = place
    before = files(folder)
    with aesg.open(url) as store:
        index, _ = brought_up(store)
        graph = store.transaction()
        index.begun(graph)
        graph.nodes.append(NodeBatch(ASKED))
        graph.commit()
        index.committed(graph)
        index.save()
        index.bring_up()
        assert files(folder) == before
        index.close()
    with aesg.open(url, mode="r") as store:
        index, done = brought_up(store)
        assert done == ["loading"]
        assert (index.stats()["indexed_rows"], index.stats()["waiting_rows"]) == (N, len(ASKED))
        assert [found.rows[0] for found in nearest(store, ASKED, 1, 0.0)] == list(range(N, N + len(ASKED)))
        assert recall(store, ASKED) >= 0.97
        index.close()


def test_a_reader_beside_the_writer_takes_what_the_writer_saved(place):
    url, _ = place
    with aesg.open(url) as store, aesg.open(url, mode="r") as reader:
        there, here = brought_up(store)[0], brought_up(reader)[0]
        store.nodes.write(np.arange(0, N, 3), is_active=0)
        there.bring_up()
        there.save()
        there.bring_up()
        reader.refresh()
        assert not asks_the_index(here, reader, ASKED[:1])
        done = []
        assert here.bring_up(lambda doing, *_: done.append(doing))
        assert set(done) == {"loading"}
        assert recall(reader, ASKED) >= 0.97
        here.close()
        there.close()


@pytest.mark.parametrize("seed", range(25))
def test_a_flipped_bit_anywhere_is_noticed(place, seed, caplog):
    url, folder = place
    rng = np.random.default_rng(seed)
    victim = folder / files(folder)[seed % 3]
    data = bytearray(victim.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    victim.write_bytes(data)
    with aesg.open(url, mode="r") as store:
        index, done = brought_up(store)
        # A space in the header may turn into another kind of space: it says the same then.
        assert "building" in done or (victim.name == HEADER and done == ["loading"])
        assert ("is of no use" in caplog.text) == ("building" in done)
        assert recall(store, ASKED) >= 0.97
        index.close()


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_cut_file_is_noticed(place, which, keep):
    url, folder = place
    victim = folder / files(folder)[which]
    os.truncate(victim, int(keep * victim.stat().st_size))
    with aesg.open(url, mode="r") as store:
        index, done = brought_up(store)
        assert "building" in done
        assert recall(store, ASKED) >= 0.97
        index.close()


@pytest.mark.parametrize("which", range(3))
def test_a_missing_file_is_built_anew(place, which):
    url, folder = place
    (folder / files(folder)[which]).unlink()
    with aesg.open(url) as store:
        index, done = brought_up(store)
        assert "building" in done
        index.close()
    assert len(files(folder)) == 3
    with aesg.open(url, mode="r") as store:
        index, done = brought_up(store)
        assert done == ["loading"]
        index.close()


def test_another_stores_index_is_not_used(place, tmp_path, caplog):
    folder = place[1]
    other = f"memmap://{tmp_path}/other?index=hnsw"
    store = filled(other, -VECTORS)
    shutil.copytree(folder, tmp_path / "other.seed-index")
    index, done = brought_up(store)
    assert "building" in done
    assert "another store's" in caplog.text
    assert recall(store, ASKED) >= 0.97
    index.close()
    store.close()


@pytest.mark.parametrize(
    "change", [{"dim": D + 1}, {"format": "2"}, {"rows": N + 1}, {"rows": 10}, {"slots": 5}, {"generation": 10**6}]
)
def test_a_header_that_lies_is_found_out(place, change):
    url, folder = place
    header = Header.from_bytes((folder / HEADER).read_bytes())
    fields = {name: getattr(header, name) for name in header.__slots__} | change
    (folder / HEADER).write_bytes(Header(**fields).to_bytes())
    with aesg.open(url, mode="r") as store:
        index, done = brought_up(store)
        assert "building" in done or "comparing" in done
        assert recall(store, ASKED) >= 0.97
        index.close()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"index": {}, "sum": ""}', b'{"index": 3}'])
def test_a_header_that_is_none(place, content):
    url, folder = place
    (folder / HEADER).write_bytes(content)
    with aesg.open(url, mode="r") as store:
        assert Sidecar(folder, store.uuid, D).header() is None


def test_exchanged_files_are_noticed(place, tmp_path):
    """The graph of an older save, whole in itself, beside the roster of a newer one."""
    url, folder = place
    old = {path.suffix: path.read_bytes() for path in folder.iterdir()}
    with aesg.open(url) as store:
        store.nodes.write(np.arange(10), is_active=0)
        index, _ = brought_up(store)
        index.close()
    (graph,) = folder.glob("*.usearch")
    graph.write_bytes(old[".usearch"])
    with aesg.open(url, mode="r") as store:
        index, done = brought_up(store)
        assert "building" in done
        index.close()


def test_a_place_that_cannot_be_written_to_is_told_once_and_harms_nobody(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    store = filled("memory:", VECTORS)
    index = SeedIndex(store, "hnsw", tmp_path / "file" / "index")
    assert index.bring_up()
    assert recall(store, ASKED) >= 0.97
    assert caplog.text.count("could not be saved") == 1
    index.close()


def test_a_failed_save_leaves_the_one_before(place, monkeypatch):
    url, folder = place
    before = {name: (folder / name).read_bytes() for name in files(folder)}

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("replace", "fsync"):
        with aesg.open(url) as store:
            index, _ = brought_up(store)
            store.nodes.write([3], vector=VECTORS[9])
            index.bring_up()
            with monkeypatch.context() as patched:
                patched.setattr(f"aesg.engine.index.sidecar.os.{name}", full)
                index.close()
        assert {name: (folder / name).read_bytes() for name in files(folder)} == before


def test_drop(place):
    url, folder = place
    with aesg.open(url, mode="r") as store:
        index = seed_index(store)
        with pytest.raises(ReadOnlyError):
            index.drop()
        index.close()
    with aesg.open(url) as store:
        index = seed_index(store)
        assert index.drop()
        assert not folder.exists()
        assert not index.drop()
        assert index.bring_up()
        index.close()
    assert folder.exists()


def test_a_copy_of_the_store_without_the_index_builds_its_own(place, tmp_path):
    assert place[1].exists()
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    with aesg.open(f"memmap://{tmp_path}/copy?index=hnsw") as store:
        index, done = brought_up(store)
        assert "building" in done
        index.close()


def test_the_files_say_what_the_format_is(place):
    _, folder = place
    header = json.loads((folder / HEADER).read_text())["index"]
    assert header["format"] == "aesg seed index 1: usearch ip bf16 16 128"
    assert (folder / header["roster"]).stat().st_size == 8 * header["rows"] + 4 * header["slots"]


def test_what_was_left_by_a_crash_is_tidied_up(place):
    url, folder = place
    (folder / "seeds.7.abcd.usearch.new").write_bytes(b"half")
    (folder / "seeds.7.abcd.rows").write_bytes(b"no header names it")
    with aesg.open(url) as store:
        index, _ = brought_up(store)
        store.nodes.write([3], vector=VECTORS[9])
        index.bring_up()
        index.close()
    assert len(files(folder)) == 3


def test_a_reader_whose_files_vanish_goes_on(place, monkeypatch):
    url, folder = place
    with aesg.open(url, mode="r") as store:
        index = seed_index(store)
        monkeypatch.setattr(
            owner.Sidecar, "header", lambda self, real=owner.Sidecar.header: _and_then(real(self), folder)
        )
        assert index.bring_up()
        assert recall(store, ASKED) >= 0.97
        index.close()


def _and_then(header, folder):
    for path in folder.glob("*.usearch"):
        path.unlink()
    return header
