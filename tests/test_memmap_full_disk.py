"""A full disk and a folder that may not be written: what only the memmap store has to do with them.

What every store has is in the clauses `capacity`. These run on a file system of a megabyte or a few where one can be
mounted, which root may.
"""

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import aesg
from aesg.backends import ids
from aesg.backends.memmap import writer
from aesg.errors import AESGError, CapacityError, NotFoundError, StorageError, TransactionError
from aesg.protocols import Durability
from aesg.records import EventType, events
from aesg.testing.graphs import DIM, assert_same, batch, check_within, contents, fill

SIZES = {"process_crash": "1200k", "power_loss": "4m"}  # a synced journal takes a megabyte at a time


@pytest.fixture(params=SIZES)
def durability(request):
    return request.param


@pytest.fixture
def disk(tmp_path, durability):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZES[durability]}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip() if done else 'no mount'}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def store(disk, durability):
    """A store on it, with a bit of everything."""
    opened = aesg.open(f"memmap://{disk}/store?durability={durability}", vector_dim=DIM)
    fill(opened)
    yield opened
    opened.close()


def free(folder):
    status = os.statvfs(folder)
    return status.f_bavail * status.f_bsize


@contextmanager
def filled(folder, leave=0):
    """Every byte of the disk but `leave` is taken."""
    ballast = folder / "ballast"
    with open(ballast, "wb") as file:
        file.write(bytes(max(0, free(folder) - leave)))
    assert free(folder) <= leave
    yield
    ballast.unlink()


def reopened(store):
    """The same store, closed and opened again; it is whole."""
    store.close()
    again = aesg.open(store.url)
    assert again.verify() == []
    check_within(again)
    return again


def until_full(act, most=100_000):
    """Repeat until the disk is full; how often it went well."""
    for turn in range(most):
        try:
            act(turn)
        except CapacityError:
            return turn
    raise AssertionError("the disk never was full")


APPENDS = {
    "nodes": lambda g, turn: g.nodes.append(batch(50, 10_000 + 50 * turn)),
    "edges": lambda g, turn: g.edges.append(np.arange(200) % 12, np.arange(200) % 7, 0.5),
    "events": lambda g, turn: g.events.append(events(EventType.PRUNE, np.arange(300), turn, timestamp=turn)),
    "attributes": lambda g, turn: g.attrs.__setitem__("long", f"{turn} " * 3000),
    "changes": lambda g, turn: g.nodes.write([0, 5], age=turn),
    "all": lambda g, turn: (
        g.nodes.append(batch(20, 10_000 + 20 * turn)),
        g.edges.append(np.arange(20) % 12, np.arange(20)),
        g.events.append(events(EventType.PRUNE, np.arange(20), turn, timestamp=turn)),
    ),
}


@pytest.mark.parametrize("kind", ["attributes", "changes", "events"])
def test_commits_until_the_disk_is_full(store, disk, kind, monkeypatch):
    if kind in ("attributes", "changes"):  # only the journal grows
        monkeypatch.setattr(writer, "_CHECKPOINT_BYTES", dict.fromkeys(Durability, 1 << 30))
    last = [contents(store), store.generation]

    def act(turn):
        with store.transaction() as graph:
            APPENDS[kind](graph, turn)
        last[:] = contents(store), store.generation

    with filled(disk, leave=200_000 if kind != "changes" else 20_000):
        done = until_full(act)
        assert done > 3
        assert_same(contents(store), last[0])
        assert store.generation == last[1]
        assert store.verify() == []
        with aesg.open(store.url, "r") as reader:
            assert_same(contents(reader), last[0])
        with pytest.raises(CapacityError, match="free some space") as caught:
            act(done)
        assert str(disk / "store") in str(caught.value)
        assert_same(contents(store), last[0])
        left = shutil.copytree(disk / "store", disk.parent / "left")
    with aesg.open(left) as found:  # as after a kill, on another disk
        assert_same(contents(found), last[0])
        assert found.verify() == []
    act(done)  # there is space again, and the handle goes on
    with reopened(store) as again:
        assert_same(contents(again), last[0])
        act_on_again = APPENDS[kind]
        act_on_again(again, done + 1)
        assert again.verify() == []
    sizes = {path.name: path.stat().st_size for path in (disk / "store").iterdir()}
    assert sizes["evolution.aesglog"] % 32 == 0, "half an event would put 0.3.0's out of step"


@pytest.mark.parametrize("kind", ["nodes", "edges", "events", "all"])  # the others need no space before the commit
def test_a_transaction_that_fills_the_disk_is_rolled_back(store, disk, kind):
    before, generation = contents(store), store.generation

    def writing():
        with store.transaction() as graph:
            done = until_full(lambda turn: APPENDS[kind](graph, turn))
            assert done > 0
            with pytest.raises(TransactionError):
                graph.nodes.read([0])

    with filled(disk, leave=150_000):
        with pytest.raises(TransactionError, match="rolled back"):
            writing()
        assert_same(contents(store), before)
        assert store.generation == generation
        assert free(disk) > 100_000, "what was written before is free again"
    with reopened(store) as again:
        assert_same(contents(again), before)
        directory = disk / "store"
        assert (directory / "evolution.aesglog").stat().st_size == 32 * len(again.events)
    data = (directory / "nodes.aesg").read_bytes()
    assert not data[12 * (53 + 4 * DIM) :].strip(bytes(1)), "half a record was left past the last one"


def test_whole_columns_and_in_place_changes_on_a_full_disk_are_no_signal(store, disk):
    with store.transaction() as graph:
        graph.nodes.append(batch(2000, 5000))
        graph.edges.append(np.arange(2000), np.arange(2000)[::-1])
    before, generation = contents(store), store.generation
    acts = [
        lambda: store.nodes.transform(lambda c: {"age": c["age"] + 1}, ["age"], ["age"]),
        lambda: store.nodes.transform(lambda c: {"vector": c["vector"] * 2}, ["vector"], ["vector"]),
        lambda: store.nodes.write(np.arange(2000), relevance=0.5),
        lambda: store.edges.transform(lambda c: {"weight": c["weight"] / 2}, ["weight"], ["weight"]),
        lambda: store.edges.remove(np.arange(200, 1900)),
    ]
    wanted = before
    with filled(disk):
        failed = 0
        for act in acts:
            for _ in range(400):  # each a little more of what room the journal has, then none
                try:
                    act()
                    wanted, generation = contents(store), store.generation
                except CapacityError:
                    failed += 1
                    break
                except AESGError:  # removed already
                    break
            assert_same(contents(store), wanted)
            assert store.generation == generation
    assert failed >= 1 or "power_loss" in store.url
    store.nodes.write([0], age=1)
    with reopened(store) as again:
        assert again.nodes.read([0], ["age"])["age"].tolist() == [1]


def test_flushing_and_compacting_on_a_full_disk(store, disk):
    with store.transaction() as graph:
        graph.nodes.append(batch(3000, 5000))
        graph.edges.append(np.arange(3000), np.arange(3000)[::-1])
        graph.nodes.write(np.arange(5, 500), is_active=0)
    before, generation = contents(store), store.generation
    names = {path.name for path in (disk / "store").iterdir()}
    with filled(disk, leave=60_000):
        with pytest.raises(CapacityError):
            store.compact()
        assert_same(contents(store), before)
        assert store.generation == generation
        assert {path.name for path in (disk / "store").iterdir()} == names, "what was half done was left"
    with filled(disk):
        with pytest.raises(CapacityError):
            store.flush()
        assert {path.name for path in (disk / "store").iterdir()} == names
        assert_same(contents(store), before)
        with aesg.open(store.url, "r") as reader:
            assert_same(contents(reader), before)
    store.nodes.write([0], age=3)
    row_map = store.compact()
    assert len(store.nodes) == (row_map >= 0).sum() == 3012 - 495
    with reopened(store) as again:
        assert len(again.nodes) == 3012 - 495


@pytest.mark.parametrize("again", [True, False], ids=["again", "once"])
@pytest.mark.parametrize("at", range(1, 20))
def test_the_disk_fills_up_at_any_point_of_a_checkpoint(tmp_path, durability, monkeypatch, at, again):
    """The commit stands all the same, and whoever comes next finds it."""
    path = tmp_path / "store"
    store = aesg.open(f"memmap://{path}?durability={durability}", vector_dim=DIM)
    fill(store)
    monkeypatch.setattr(writer, "_CHECKPOINT_BYTES", dict.fromkeys(Durability, 1))
    calls = 0

    def failing(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        return call

    def commit(k):
        with store.transaction() as graph:
            graph.nodes.append(batch(3, 1000 * k))
            graph.attrs["k"] = k

    with monkeypatch.context() as patch:
        for name in ("open", "pwrite", "pwritev", "replace", "fsync", "fdatasync"):
            patch.setattr(os, name, failing(getattr(os, name)))
        for k in (1, 2):
            try:
                commit(k)
            except CapacityError:
                assert store.attrs.get("k", 0) == k - 1, "it said that nothing was applied"
                commit(k)
            if not again:
                monkeypatch.setattr(writer, "_CHECKPOINT_BYTES", dict.fromkeys(Durability, 1 << 30))
    commit(3)
    wanted = contents(store)
    assert store.attrs["k"] == 3
    for mode in ("r", "a"):
        left = shutil.copytree(path, tmp_path / mode)
        with aesg.open(left, mode) as found:
            assert_same(contents(found), wanted)
            assert found.generation == store.generation
            assert found.verify() == []
    store.close()
    with aesg.open(path, "r") as found:
        assert_same(contents(found), wanted)


@pytest.mark.parametrize("at", range(1, 25))
def test_the_disk_fills_up_at_any_point_of_a_compaction(tmp_path, durability, monkeypatch, at):
    """Compacted or not, never between; a handle that does not know which is closed and says so."""
    path = tmp_path / "store"
    store = aesg.open(f"memmap://{path}?durability={durability}", vector_dim=DIM)
    fill(store, 40)
    store.nodes.write([3, 7], is_active=0)
    with aesg.open("memory:", vector_dim=DIM) as model:
        fill(model, 40)
        model.nodes.write([3, 7], is_active=0)
        before = contents(model)
        model.compact()
        after = contents(model)
    reader = aesg.open(store.url, "r")
    assert_same(contents(reader), before)
    calls = 0

    def failing(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "pwrite", "pwritev", "replace", "fsync", "fdatasync", "ftruncate"):
            patch.setattr(os, name, failing(getattr(os, name)))
        try:
            store.compact()
            wanted = after
        except CapacityError:
            wanted = before
            assert_same(contents(store), before)
            assert not list(path.glob("*.compacted*"))
            patch.undo()
            assert_same(contents(reader), before)
            store.attrs["goes"] = "on"
            del store.attrs["goes"]
        except StorageError:
            wanted = after
            assert store.closed
    assert_same(contents(reader), wanted)
    reader.close()
    store.close()
    with aesg.open(path) as found:
        assert_same(contents(found), wanted)
        assert found.verify() == []


def test_closing_on_a_full_disk_loses_nothing(store, disk, monkeypatch):
    monkeypatch.setattr(ids, "_WORTH_KEEPING", 1)
    store.nodes.append(batch(100, 5000))
    assert store.nodes.rows_of([5000]).tolist() == [12]
    before, generation = contents(store), store.generation
    with filled(disk):
        with pytest.raises(CapacityError):
            store.close()
        store.close()
        with pytest.raises(CapacityError):
            aesg.open(store.url)  # to recover takes some space
        with aesg.open(store.url, "r") as reader:
            assert_same(contents(reader), before)
            assert reader.generation == generation
    for mode in ("r", "a"):
        with aesg.open(store.url, mode) as again:
            assert_same(contents(again), before)
            assert again.generation == generation
            assert again.verify() == []


def test_recovering_on_a_full_disk(store, disk):
    store.nodes.append(batch(200, 5000))
    before = contents(store)
    left = Path(shutil.copytree(disk / "store", disk / "left"))
    with filled(disk):
        try:
            with aesg.open(left) as found:
                assert_same(contents(found), before)
        except CapacityError:
            pass
    with aesg.open(left) as found:
        assert_same(contents(found), before)
        assert found.verify() == []


# --- permissions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def not_root():
    """Run the body of a test as nobody; permissions do not stop root."""
    if os.geteuid():
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    yield
    os.seteuid(0)
    os.setegid(0)


@pytest.fixture
def forbidden():
    """A closed store and what it holds, where anyone may look (pytest's own folders are private) and nobody write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    path = folder / "store"
    with aesg.open(path, vector_dim=DIM) as store:
        fill(store)
        before = contents(store)
    for entry in path.iterdir():
        entry.chmod(0o444)
    path.chmod(0o555)
    yield path, before
    for kept in folder.iterdir():
        kept.chmod(0o755)
    shutil.rmtree(folder)


def test_a_killed_store_in_a_folder_that_may_not_be_written(forbidden, request):
    path, _ = forbidden
    path.chmod(0o755)
    (path / "writer.lock").chmod(0o644)
    for name in ("nodes.aesg", "edges.aesg", "evolution.aesglog"):
        (path / name).chmod(0o644)
    store = aesg.open(path)
    left = path.parent / "left"
    shutil.copytree(path, left)
    store.close()
    journal = bytearray((left / "journal.redo").read_bytes())
    journal[80:88] = (2**40).to_bytes(8, "little")  # applied: not the newest
    (left / "journal.redo").write_bytes(journal)
    for entry in left.iterdir():
        entry.chmod(0o444)
    left.chmod(0o555)
    request.getfixturevalue("not_root")
    with pytest.raises(AESGError, match="write access"):
        aesg.open(f"memmap://{left}", "r")


@pytest.mark.parametrize("name", ["nodes.aesg", "edges.aesg", "evolution.aesglog", "meta.npy", "store.json"])
def test_a_file_that_may_not_be_read(forbidden, request, name):
    path, _ = forbidden
    (path / name).chmod(0)
    request.getfixturevalue("not_root")
    for _ in range(2):
        with pytest.raises(StorageError, match="Permission denied") as caught:
            aesg.open(f"memmap://{path}", "r")
        assert name in str(caught.value)
    with pytest.raises(StorageError):
        aesg.open(f"memmap://{path}")


def test_a_folder_that_may_not_be_entered(forbidden, request):
    path, _ = forbidden
    path.chmod(0)
    request.getfixturevalue("not_root")
    for way in (path, f"memmap://{path}", path / "below"):
        for mode in ("r", "a"):
            with pytest.raises(StorageError, match="Permission denied"):
                aesg.open(way, mode, vector_dim=DIM)


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("a file")
    for url in (f"memmap://{tmp_path}/file", f"memmap://{tmp_path}/file/store"):
        with pytest.raises(AESGError, match="file"):
            aesg.open(url, vector_dim=3)
        with pytest.raises(AESGError, match="file"):
            aesg.open(url, "r")
    with pytest.raises(NotFoundError, match="holds no store"):
        aesg.open(tmp_path / "file", vector_dim=3)
    assert (tmp_path / "file").read_text() == "a file"
