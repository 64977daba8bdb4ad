"""durability=power_loss: what the disk has been told at each moment is a committed state.

A power loss cannot be had in a test. What can: record every write and every sync that a writer makes, and build what
the disk may hold if the machine went dark at any point: all that was synced, plus any part of what was not.
"""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from crash_steps import DIM, check_lists, compacts_after, digest, step

import aesg
from aesg.records import NodeBatch


class Disk:
    """Follows a directory: what of it a machine that goes dark now would surely find again.

    The page cache is the directory itself. At each sync of a file its content becomes sure; at each sync of the
    directory its names do.
    """

    def __init__(self, directory: Path, monkeypatch):
        self.directory = directory
        self.content: dict[int, bytes] = {}  # inode → what was last synced
        self.names: dict[str, int] = {}
        real_fsync, real_fdatasync = os.fsync, os.fdatasync

        def synced(real):
            def sync(fd):
                real(fd)
                self.note(fd)

            return sync

        monkeypatch.setattr(os, "fsync", synced(real_fsync))
        monkeypatch.setattr(os, "fdatasync", synced(real_fdatasync))

    def note(self, fd):
        status = os.fstat(fd)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.is_dir():
            self.names = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
        elif path.exists():
            self.content[status.st_ino] = path.read_bytes()
            # ext4 and its like make a file's own name durable with it.
            self.names[path.name] = status.st_ino

    def after_power_loss(self, target: Path, rng: random.Random) -> None:
        """What may be found: of each file, the synced content with some unsynced pages already written back."""
        target.mkdir()
        now = {entry.name: entry for entry in self.directory.iterdir()}
        for name, inode in self.names.items():
            content = bytearray(self.content.get(inode, b""))
            if name in now and now[name].stat().st_ino == inode:
                present = now[name].read_bytes()
                content += bytes(max(0, len(present) - len(content)))  # the length may be ahead of the data
                for at in range(0, len(present), 4096):
                    if rng.random() < 0.5:
                        content[at : at + 4096] = present[at : at + 4096]
            (target / name).write_bytes(bytes(content))


@pytest.fixture
def model():
    return aesg.open("memory:", vector_dim=DIM)


def test_the_machine_going_dark_after_any_commit(tmp_path, monkeypatch, model):
    """No committed step is lost, whatever part of the unsynced pages had been written back."""
    disk = Disk(tmp_path / "store", monkeypatch)
    store = aesg.open(tmp_path / "store", vector_dim=DIM, durability="power_loss")
    rng = random.Random(7)
    for k in range(60):
        for graph in (store, model):
            with graph.transaction() as transaction:
                step(transaction, k)
            if compacts_after(k):
                graph.compact()
        if k % 9 == 4:
            store.flush()
        lost = tmp_path / f"lost{k}"
        disk.after_power_loss(lost, rng)
        with aesg.open(lost) as found:
            assert found.attrs["k"] == k
            assert digest(found) == digest(model)
            check_lists(found)
            assert found.verify() == []
        shutil.rmtree(lost)
    store.close()


def test_without_the_syncs_the_same_test_finds_losses(tmp_path, monkeypatch):
    """The test above can fail: under process_crash the disk is told nothing, and commits are indeed lost."""
    disk = Disk(tmp_path / "store", monkeypatch)
    with aesg.open(tmp_path / "store", vector_dim=DIM, durability="process_crash") as store:
        store.nodes.append(NodeBatch(np.ones((100, DIM))))
        disk.after_power_loss(tmp_path / "lost", random.Random(1))
        assert not (tmp_path / "lost" / "meta.npy").exists()


def test_large_appends_are_synced_in_their_file_not_twice(tmp_path, monkeypatch):
    disk = Disk(tmp_path / "store", monkeypatch)
    with aesg.open(tmp_path / "store", vector_dim=DIM, durability="power_loss") as store:
        vectors = np.random.default_rng(0).standard_normal((100_000, DIM), dtype=np.float32)
        store.nodes.append(NodeBatch(vectors))
        assert (tmp_path / "store" / "journal.redo").stat().st_size < 3 << 20
        disk.after_power_loss(tmp_path / "lost", random.Random(1))
        with aesg.open(tmp_path / "lost") as found:
            assert np.array_equal(found.nodes.read(np.arange(100_000), ["vector"])["vector"], vectors)


def test_a_small_commit_costs_one_sync(tmp_path, monkeypatch):
    with aesg.open(tmp_path / "store", vector_dim=DIM, durability="power_loss") as store:
        store.nodes.append(NodeBatch(np.ones((2, DIM))))
        calls = []
        monkeypatch.setattr(os, "fsync", lambda fd, real=os.fsync: (calls.append("fsync"), real(fd)))
        monkeypatch.setattr(os, "fdatasync", lambda fd, real=os.fdatasync: (calls.append("fdatasync"), real(fd)))
        with store.transaction() as transaction:
            rows = transaction.nodes.append(NodeBatch(np.ones((1, DIM))))
            transaction.edges.append(rows, [0])
            transaction.nodes.write([0], relevance=0.5)
        assert calls == ["fdatasync"]


def test_the_default_syncs_nothing(tmp_path, monkeypatch):
    def refuse(fd):
        raise AssertionError("a sync that was not asked for")

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(os, "fdatasync", refuse)
    with aesg.open(tmp_path / "store", vector_dim=DIM) as store:
        assert store.capabilities.durability.name == "PROCESS_CRASH"
        store.nodes.append(NodeBatch(np.ones((2, DIM))))
        store.flush()


def test_a_durable_commit_does_not_stand_on_what_a_writer_before_left_unsynced(tmp_path, monkeypatch):
    with aesg.open(tmp_path / "store", vector_dim=DIM) as store:  # process_crash: nothing is synced
        store.nodes.append(NodeBatch(np.ones((100, DIM))))
    disk = Disk(tmp_path / "store", monkeypatch)
    with aesg.open(tmp_path / "store", durability="power_loss") as store:
        store.nodes.append(NodeBatch(2 * np.ones((1, DIM))))
        disk.after_power_loss(tmp_path / "lost", random.Random(1))
    with aesg.open(tmp_path / "lost") as found:
        assert found.nodes.read(np.arange(101), ["vector"])["vector"][:, 0].tolist() == [1] * 100 + [2]
        assert found.verify() == []
