"""durability=power_loss: what the memmap store syncs, and what not, so that the disk always has a committed state.

That it has is shown by the clause `crash.power-loss`, which builds what a machine that goes dark may find again.
"""

import os
import random

import numpy as np

import aesg
from aesg.errors import AESGError
from aesg.records import NodeBatch
from aesg.testing.power_loss import Disk

DIM = 6


def watched(folder, monkeypatch):
    disk = Disk(folder)
    disk.watch(monkeypatch.setattr)
    return disk


def test_without_the_syncs_a_power_loss_loses_commits(tmp_path, monkeypatch):
    """The clause can fail: under process_crash the disk is told nothing."""
    disk, lost = watched(tmp_path / "store", monkeypatch), 0
    with aesg.open(tmp_path / "store", vector_dim=DIM, durability="process_crash") as store:
        store.nodes.append(NodeBatch(np.ones((100, DIM))))
        for seed in range(5):
            disk.after_power_loss(tmp_path / f"lost-{seed}", random.Random(seed))
            try:
                with aesg.open(f"memmap://{tmp_path}/lost-{seed}", "r") as found:
                    lost += len(found.nodes) < 100
            except AESGError:
                lost += 1
    assert lost == 5
    assert disk.syncs == 0


def test_large_appends_are_synced_in_their_file_not_twice(tmp_path, monkeypatch):
    disk = watched(tmp_path / "store", monkeypatch)
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
    disk = watched(tmp_path / "store", monkeypatch)
    with aesg.open(tmp_path / "store", durability="power_loss") as store:
        store.nodes.append(NodeBatch(2 * np.ones((1, DIM))))
        disk.after_power_loss(tmp_path / "lost", random.Random(1))
    with aesg.open(tmp_path / "lost") as found:
        assert found.nodes.read(np.arange(101), ["vector"])["vector"][:, 0].tolist() == [1] * 100 + [2]
        assert found.verify() == []
