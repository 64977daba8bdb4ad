"""Appends that are large: in pieces by two threads, beside their ids' way into the index; the log's sync ahead."""

import errno
import os

import numpy as np
import pytest

import aesg
from aesg.backends.ids import _MULTIPLIERS, IdIndex
from aesg.backends.memmap import kernels, tables
from aesg.backends.memmap.kernels import Loops
from aesg.errors import CapacityError, DuplicateIdError, StorageError
from aesg.records import EVENT_DTYPE, EventType, events
from aesg.testing.graphs import assert_same, batch, contents

DIM = 100
MANY = 9000
"""Nodes of more than three pieces, and more ids than one thread looks up."""


@pytest.fixture(scope="module")
def compiled():
    loops = Loops(0)
    loops._load()
    assert loops.enter is not None, "these tests are for both forms: run them without NUMBA_DISABLE_JIT"
    return loops


@pytest.fixture(params=["plain", "compiled"])
def store(request, compiled, monkeypatch, tmp_path):
    """An empty store whose ids are looked up in this form."""
    monkeypatch.setattr(tables, "LOOPS", compiled if request.param == "compiled" else Loops(1 << 62))
    monkeypatch.setattr(tables, "_IDS_A_THREAD", 1000)
    with aesg.open(tmp_path / "store", vector_dim=DIM) as opened:
        yield opened


def test_what_is_appended_in_pieces_is_all_there(store, open_store):
    model = open_store("memory:", vector_dim=DIM)
    for graph in (store, model):
        graph.nodes.append(batch(7, 1, dim=DIM))
        graph.nodes.append(batch(MANY, 10**6, dim=DIM))
        with graph.transaction() as transaction:
            transaction.nodes.append(batch(MANY, 10**7, seed=1, dim=DIM))
            transaction.nodes.append(batch(3, 10, dim=DIM))
            if graph is store:
                assert_same(contents(transaction), contents(transaction, 999))
    assert_same(contents(store), contents(model))
    store.close()
    assert_same(contents(open_store(store.url, "r")), contents(model))


def test_ids_that_were_rolled_back_are_gone_and_others_have_their_rows(store):
    store.nodes.append(batch(20, 1, dim=DIM))
    for first in (10**6, 10**7):
        with store.transaction() as transaction:
            rows = transaction.nodes.append(batch(MANY, first, dim=DIM))
            ids = first + np.arange(MANY)
            assert np.array_equal(transaction.nodes.rows_of(ids), rows)
            with pytest.raises(DuplicateIdError, match=str(first + 5)):
                transaction.nodes.append(batch(20, first + 5, dim=DIM))
            twice = batch(MANY, first + MANY, dim=DIM)
            twice.id[4000] = twice.id[8000]
            with pytest.raises(DuplicateIdError, match="twice in the batch"):
                transaction.nodes.append(twice)
            transaction.rollback()
        assert (store.nodes.rows_of(ids) == -1).all()
    store.nodes.append(batch(MANY, 10**6 + 1, dim=DIM))
    assert store.nodes.rows_of([1, 10**6, 10**6 + 1, 10**7, 10**6 + MANY]).tolist() == [0, -1, 20, -1, MANY + 19]


def test_a_disk_that_fills_up_in_a_late_piece_leaves_nothing(store, monkeypatch):
    store.nodes.append(batch(20, 1, dim=DIM))
    wanted, size = contents(store), os.stat(store.directory / "nodes.aesg").st_size
    real = os.pwrite

    def full(fd, data, offset):
        if offset > 2 << 20 and os.readlink(f"/proc/self/fd/{fd}").endswith("nodes.aesg"):
            raise OSError(errno.ENOSPC, "full")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CapacityError):
        store.nodes.append(batch(MANY, 10**6, dim=DIM))
    monkeypatch.setattr(os, "pwrite", real)
    assert_same(contents(store), wanted)
    tail = np.fromfile(store.directory / "nodes.aesg", np.uint8)[20 * (53 + 4 * DIM) :]
    assert not tail.any()
    assert os.stat(store.directory / "nodes.aesg").st_size >= size
    rows = store.nodes.append(batch(MANY, 10**6, dim=DIM))
    assert np.array_equal(store.nodes.rows_of(10**6 + np.arange(MANY)), rows)
    assert store.verify() == []


class Heap:
    """Ids in memory."""

    def __init__(self):
        self.ids = np.empty(0, np.uint64)

    @property
    def count(self):
        return len(self.ids)

    def chunk(self, field, start, stop):
        return self.ids[start:stop]

    def gather(self, field, rows):
        return self.ids[rows]


@pytest.mark.parametrize("spread", [1, 2**20, 2**52])
def test_ids_find_their_way_whoever_entered_them(compiled, spread):
    rng = np.random.default_rng(spread)
    forms = {"plain": kernels._enter, "compiled": compiled.enter, "arrays": None}
    indexes = {name: (IdIndex(), Heap()) for name in forms}
    all_ids = rng.permutation(3000).astype(np.uint64) * np.uint64(spread)
    all_ids[700] = all_ids[300]  # as 0.3.0 gives one twice now and then: the older is found
    for start, stop in [(0, 1), (1, 400), (400, 401), (401, 2600), (2600, 3000)]:
        for name, (index, heap) in indexes.items():
            with np.errstate(over="ignore"):  # plain Python warns of what compiled code does in silence
                index.add(all_ids[start:stop], heap, forms[name])
            heap.ids = all_ids[:stop]
            wanted = np.arange(stop)
            wanted[all_ids[:stop] == all_ids[300]] = 300
            assert np.array_equal(index.lookup(all_ids[:stop], heap), wanted), name
            assert (index.lookup(all_ids[stop:], heap) == -1).sum() >= len(all_ids) - stop - 1
    homes = (all_ids * _MULTIPLIERS) >> np.uint64(50)
    assert len(np.unique(homes)) > 100, "ids that all want one place show nothing"


# --- the log ---------------------------------------------------------------------------------------------------------


def prunes(count):
    return events(EventType.PRUNE, np.arange(count), timestamp=1)


@pytest.fixture
def durable(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_SYNCED_AHEAD", 1000 * EVENT_DTYPE.itemsize)
    monkeypatch.setattr("aesg.backends.memmap.writer._JOURNALED_TAIL", 1000)
    with aesg.open(tmp_path / "store", vector_dim=2, durability="power_loss") as opened:
        yield opened


def test_many_events_are_synced_while_more_are_made(durable, monkeypatch):
    synced, real = [], os.fdatasync

    def noted(fd):
        name = os.readlink(f"/proc/self/fd/{fd}")
        if name.endswith("aesglog"):
            synced.append(os.fstat(fd).st_size // EVENT_DTYPE.itemsize)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", noted)
    with durable.transaction() as transaction:
        for _ in range(5):
            transaction.events.append(prunes(1001))
    assert len(synced) >= 2
    assert synced[-1] == 5005  # all of them, before the commit
    durable.events.append(prunes(10))
    assert len(durable.events) == 5015


def test_a_sync_ahead_that_failed_fails_the_commit(durable, monkeypatch):
    durable.events.append(prunes(3))
    real = os.fdatasync

    def fails_once(fd):
        monkeypatch.setattr(os, "fdatasync", real)
        raise OSError(errno.EIO, "broken")

    transaction = durable.transaction()
    monkeypatch.setattr(os, "fdatasync", fails_once)
    transaction.events.append(prunes(2000))
    durable._opened.files.events._under_way.join()
    assert os.fdatasync is real
    with pytest.raises(StorageError, match="broken"):
        transaction.commit()
    assert len(durable.events) == 3
    durable.events.append(prunes(2000))
    assert len(durable.events) == 2003
