"""Columns beside the records: who reads when sees the last commit, and what is left of them never counts by itself."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import aesg
from aesg.backends.memmap import beside, table, writer
from aesg.backends.memmap.format import node_dtype
from aesg.errors import CorruptionError
from aesg.protocols import Durability
from aesg.records import EventType, events
from aesg.testing.graphs import DIM, assert_same, batch, contents
from aesg.testing.power_loss import Disk

N = 300


@pytest.fixture
def always(monkeypatch):
    """However few they are, columns that change everywhere lie beside."""
    monkeypatch.setattr(beside, "LEAST", 1)
    monkeypatch.setattr(table, "_FEW", 0)


@pytest.fixture
def store(always, disk_url):
    """A store of so many nodes."""
    with aesg.open(disk_url, vector_dim=DIM) as opened:
        opened.nodes.append(batch(N))
        yield opened


def aged(columns):
    return {"age": columns["age"] + 1, "relevance": columns["relevance"] * np.float32(0.5)}


def consolidate(graph):
    graph.nodes.transform(aged, ["age", "relevance"], ["age", "relevance"])


def column_files(store):
    return sorted(path.name for path in store.directory.glob("*.column"))


def in_records(store, field, n=N):
    return np.fromfile(store.directory / "nodes.aesg", node_dtype(DIM), n)[field]


def read(graph, field):
    return graph.nodes.read(np.arange(len(graph.nodes)), [field])[field]


STEPS = {
    "consolidate": lambda g, rng: consolidate(g),
    "write all": lambda g, rng: g.nodes.write(np.arange(len(g.nodes)), use_frequency=rng.integers(0, 99, len(g.nodes))),
    "write some": lambda g, rng: g.nodes.write(
        rng.integers(0, len(g.nodes), 9), age=rng.integers(0, 99, 9), relevance=rng.random(9), is_active=1
    ),
    "append": lambda g, rng: g.nodes.append(batch(int(rng.integers(1, 60)), int(rng.integers(1, 2**60)), seed=7)),
    "prune": lambda g, rng: g.nodes.transform(
        lambda c: {"is_active": (c["row"] % 9 > 0).astype(np.uint8)}, ["row"], ["is_active"]
    ),
    "first rows": lambda g, rng: g.nodes.write(np.arange(len(g.nodes) // 2), stability=rng.random(len(g.nodes) // 2)),
    "edges": lambda g, rng: g.edges.append(*rng.integers(0, len(g.nodes), (2, 20)), 0.5),
}


@pytest.mark.parametrize("seed", range(12))
def test_any_changes_are_seen_by_all_and_survive_a_kill(always, disk_url, tmp_path, seed, open_store):
    """Beside the in-memory store: the writer, in its transaction too, readers old and new, and a recovery."""
    rng = np.random.default_rng(seed)
    store, model = open_store(disk_url, vector_dim=DIM), open_store("memory:", vector_dim=DIM)
    for graph in (store, model):
        graph.nodes.append(batch(N))
    reader = open_store(disk_url, "r")
    for turn in range(25):
        seeds = rng.integers(0, 2**31, int(rng.integers(1, 5)))
        names = rng.choice(list(STEPS), len(seeds))
        with store.transaction() as mine, model.transaction() as other:
            for name, number in zip(names, seeds, strict=True):
                for graph in (mine, other):
                    STEPS[name](graph, np.random.default_rng(number))
            assert_same(contents(mine, 100), contents(other, 100))
            assert_same(contents(reader), contents(store))  # the last commit
            if rng.random() < 0.2:
                mine.rollback(), other.rollback()
        wanted = contents(model)
        for graph in (store, reader):
            assert_same(contents(graph, 77), wanted)
        match int(rng.integers(0, 8)):
            case 0:
                store.flush()
            case 1:
                assert np.array_equal(store.compact(), model.compact())
            case 2:
                store.close()
                assert not column_files(store)
                store = open_store(disk_url)
            case 3:
                left = tmp_path / f"left-{turn}"
                shutil.copytree(store.directory, left)
                for mode in rng.permutation(["r", "a"]):
                    with aesg.open(f"memmap://{left}", mode) as found:
                        assert_same(contents(found), wanted)
                        assert found.verify() == []
        assert_same(contents(reader, 50), contents(model, 50))


def test_a_commit_leaves_the_records_alone_until_the_next_checkpoint(store):
    before = in_records(store, "age").copy()
    consolidate(store)
    assert column_files(store) == ["nodes.age.column", "nodes.relevance.column"]
    assert np.array_equal(in_records(store, "age"), before)
    store.nodes.write([3], age=77)
    store.flush()
    wanted = before + 1
    wanted[3] = 77
    assert np.array_equal(in_records(store, "age"), wanted)
    # Not behind any more, a record is changed at once, and as before the column counts.
    store.nodes.write([5], age=78)
    wanted[5] = 78
    assert np.array_equal(in_records(store, "age"), wanted)
    assert np.array_equal(read(store, "age"), wanted)


def test_few_nodes_have_no_columns_beside(tmp_path):
    with aesg.open(tmp_path / "store", vector_dim=DIM) as store:
        store.nodes.append(batch(beside.LEAST - 1))
        consolidate(store)
        assert not column_files(store)
        store.nodes.append(batch(1, 1))
        consolidate(store)
        assert len(column_files(store)) == 2


def test_the_journal_is_kept_while_records_are_behind_and_not_for_ever(always, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_CHECKPOINT_BYTES", dict.fromkeys(Durability, 1))
    monkeypatch.setattr(writer, "_CHECKPOINT_MOST", 20_000)
    with aesg.open(tmp_path / "store", vector_dim=DIM) as store:
        store.nodes.append(batch(1000))
        behind = []
        for turn in range(10):
            consolidate(store)
            behind.append(bool((in_records(store, "age", 1000) != read(store, "age")).any()))
            with aesg.open(tmp_path / "store", "r") as reader:
                assert np.array_equal(read(reader, "age"), read(store, "age")), turn
        assert behind == [True, True, False] * 3 + [True]


def test_a_column_that_is_missing_or_cut_is_an_error_to_readers_and_nothing_to_who_recovers(store, tmp_path):
    consolidate(store)
    wanted = contents(store)
    for name, damage in (
        ("missing", lambda path: path.unlink()),
        ("cut", lambda path: os.truncate(path, 100)),
    ):
        left = tmp_path / name
        shutil.copytree(store.directory, left)
        damage(left / "nodes.age.column")
        with pytest.raises(CorruptionError, match=r"nodes\.age\.column"):
            aesg.open(f"memmap://{left}", "r")
        with aesg.open(f"memmap://{left}") as found:
            assert_same(contents(found), wanted)
        with aesg.open(f"memmap://{left}", "r") as found:
            assert_same(contents(found), wanted)


@pytest.mark.parametrize("at", range(88, 152, 8))
def test_damage_to_what_speaks_of_columns_is_noticed_by_readers_and_nothing_to_who_recovers(store, tmp_path, at):
    consolidate(store)
    wanted = contents(store)
    left = tmp_path / "left"
    shutil.copytree(store.directory, left)
    journal = bytearray((left / "journal.redo").read_bytes())
    journal[at] ^= 1
    (left / "journal.redo").write_bytes(journal)
    with pytest.raises(CorruptionError, match=r"journal\.redo: the header was damaged"):
        aesg.open(f"memmap://{left}", "r")
    with aesg.open(f"memmap://{left}") as found:
        assert_same(contents(found), wanted)


def test_columns_that_nobody_speaks_of_do_not_count(store):
    """As a kill right after a journal was begun or removed leaves them."""
    consolidate(store)
    column = (store.directory / "nodes.age.column").read_bytes()
    store.close()
    wanted = contents(aesg.open(store.url, "r"))
    (store.directory / "nodes.age.column").write_bytes(bytes(len(column)))
    with aesg.open(store.url, "r") as reader:
        assert_same(contents(reader), wanted)
        with aesg.open(store.url) as again:
            assert not column_files(again)
            assert_same(contents(again), wanted)
            consolidate(again)
            assert_same(contents(reader), contents(again))


@pytest.mark.parametrize("grown", [False, True])
def test_a_full_disk_sends_a_column_into_the_records(store, monkeypatch, grown):
    with aesg.open(store.url, "r") as reader:
        if grown:  # one lay beside already, and has become longer
            consolidate(store)
            store.nodes.append(batch(50, 10_000))
        wanted = read(store, "age") + 1
        assert len(reader.nodes) == len(wanted)

        def full(fd, buffers, offset):
            os.pwrite(fd, bytes(100), offset)
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(beside, "write_all", full)
        consolidate(store)
        monkeypatch.undo()
        for graph in (store, reader):
            assert np.array_equal(read(graph, "age"), wanted)
        monkeypatch.setattr(beside, "LEAST", 1)
        consolidate(store)
        for graph in (store, reader):
            assert np.array_equal(read(graph, "age"), wanted + 1)


@pytest.mark.parametrize(
    "point",
    [
        "beside.Beside.put 2",  # one column is there, one is not
        "table.RecordFile.store 3",  # some records have been brought up
        "writer.write_heads 1",
        "journal.Journal.restart 1",
        "journal.Journal.close 1",
    ],
)
@pytest.mark.parametrize("modes", ["ra", "ar"])
def test_killed_at_any_point_between_a_commit_and_a_checkpoint(store, point, modes):
    code = """
        import os, signal, sys, numpy as np, aesg
        from aesg.backends import journal
        from aesg.backends.memmap import beside, table, writer
        beside.LEAST, table._FEW = 1, 0
        table._WORTH_A_THREAD, table._AT_ONCE = 10**9, 50
        name, number = sys.argv[2].split()
        module, *attributes = name.split(".")
        owner = {"beside": beside, "table": table, "writer": writer, "journal": journal}[module]
        for attribute in attributes[:-1]:
            owner = getattr(owner, attribute)
        real, left = getattr(owner, attributes[-1]), [int(number)]

        def counted(*args, **kwargs):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        store = aesg.open(sys.argv[1])
        store.nodes.write([1], age=50)
        setattr(owner, attributes[-1], counted)
        store.nodes.transform(
            lambda c: {"age": c["age"] + 1, "relevance": c["relevance"] / 2}, ["age", "relevance"], ["age", "relevance"]
        )
        store.flush()
        store.close()
    """
    wanted = read(store, "age").copy()
    wanted[1] = 50
    store.close()
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code), store.url, point], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    for mode in modes:
        with aesg.open(store.url, mode) as found:
            assert np.array_equal(read(found, "age"), wanted + 1)
            assert found.verify() == []
    assert np.array_equal(in_records(store, "age"), wanted + 1)


def test_after_a_power_loss_columns_come_from_the_journal(always, tmp_path, monkeypatch):
    disk = Disk(tmp_path / "store")
    disk.watch(monkeypatch.setattr)
    with aesg.open(tmp_path / "store", vector_dim=DIM, durability="power_loss") as store:
        store.nodes.append(batch(N))
        for turn in range(6):
            with store.transaction() as transaction:
                consolidate(transaction)
                transaction.events.append(events(EventType.CONSOLIDATE, turn, timestamp=turn))
            store.nodes.write([turn], use_frequency=turn)
            if turn == 3:
                store.flush()
            wanted = contents(store)
            disk.after_power_loss(tmp_path / f"lost-{turn}", random.Random(turn))
            with aesg.open(tmp_path / f"lost-{turn}") as found:
                assert_same(contents(found), wanted)


def test_a_commit_of_columns_syncs_the_journal_alone(always, tmp_path, monkeypatch):
    with aesg.open(tmp_path / "store", vector_dim=DIM, durability="power_loss") as store:
        store.nodes.append(batch(N))
        synced = []
        real = os.fdatasync
        monkeypatch.setattr(
            os, "fdatasync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}").split("/")[-1]), real(fd))
        )
        consolidate(store)
        consolidate(store)
        assert synced == ["journal.redo"] * 2
