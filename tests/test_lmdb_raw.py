"""What `benchmarks/stores.py` holds an LMDB store against: LMDB by itself, given the same transactions."""

import importlib
from pathlib import Path

import lmdb
import numpy as np
import pytest

import aesg
from aesg.protocols import Durability
from aesg.records import NodeBatch


@pytest.fixture
def raw(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("stores_raw")


def write(store, first):
    with store.transaction() as transaction:
        rows = transaction.nodes.append(NodeBatch(np.full((3, 4), first, np.float32)))
        transaction.edges.append(rows, rows[::-1])


def sizes(directory):
    """Key → bytes of its value."""
    with lmdb.open(str(directory), readonly=True, lock=False) as environment, environment.begin() as txn:
        return {bytes(key): len(value) for key, value in txn.cursor()}


def test_the_bare_library_is_given_the_same_transactions(raw, tmp_path):
    url, beside = f"lmdb://{tmp_path}/store?sync=false", tmp_path / "beside"
    with aesg.open(url, vector_dim=4) as store:
        write(store, 0)
        store.flush()
    before = raw.keys("lmdb", str(tmp_path / "store"))
    assert before == sorted(sizes(tmp_path / "store"))
    beside.mkdir()
    library = raw.RawLMDB(beside, Durability.PROCESS_CRASH, before)
    held = dict.fromkeys(before, 8)
    with aesg.open(url) as store:
        with raw.recorded("lmdb", store) as transactions:
            for first in range(5):
                write(store, first)
            store.flush()
            store.compact()
        write(store, 9)  # not any more
    assert len(transactions) == 7
    for transaction in transactions:
        for key in transaction.deletes:
            del held[key]
        held.update(transaction.puts)
        library.put(transaction)
    library.close()
    assert sizes(beside) == held
    assert held.keys() == set(raw.keys("lmdb", str(tmp_path / "store")))


def test_the_library_takes_its_turn_before_the_store_has(raw, tmp_path):
    with aesg.open(f"lmdb://{tmp_path}/store", vector_dim=4) as store, raw.recorded("lmdb", store) as transactions:
        write(store, 0)
        with raw.beside("lmdb", store, str(tmp_path), [], transactions) as turn:
            assert turn(0) > 0
            with pytest.raises(IndexError):
                turn(1)
            write(store, 1)
            assert turn(1) > 0


def test_nothing_is_recorded_of_a_store_without_such_a_library(raw, tmp_path):
    with aesg.open(f"zarr://{tmp_path}/store", vector_dim=4) as store, raw.recorded("zarr", store) as transactions:
        write(store, 0)
        assert not transactions
        with raw.beside("zarr", store, str(tmp_path), [], transactions) as turn:
            assert turn is None
    assert raw.keys("zarr", str(tmp_path / "store")) == []
