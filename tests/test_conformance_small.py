"""Laws and random sequences on backends whose sizes are made small.

What a large store does now and then (growth, whole columns, checkpoints, log merges, several chunks and blocks) happens
all the time in a tiny one.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis.stateful import rule

from aesg.backends import ids, parts
from aesg.backends.blocks import layout, log, sorting
from aesg.backends.blocks import store as block_store
from aesg.backends.blocks import tables as block_tables
from aesg.backends.lmdb import container as lmdb_container
from aesg.backends.memmap import compact, directory, redo, tables, verify, writer
from aesg.protocols import Durability
from aesg.testing import Target, clause
from aesg.testing.graphs import batch
from aesg.testing.laws import LawClauses
from aesg.testing.machine import GraphMachine, MachineClauses, run_machine

sys.path.append(str(Path(__file__).parents[1] / "examples"))


class Small(LawClauses, MachineClauses):
    @pytest.fixture(autouse=True)
    def _small_everywhere(self, monkeypatch):
        monkeypatch.setattr(ids, "_WORTH_KEEPING", 1)
        monkeypatch.setattr(ids, "_MIN_BITS", 2)
        monkeypatch.setattr(ids, "_BLOCK", 13)
        monkeypatch.setattr(parts, "_chunk_size", lambda given, *rest: 23 if given is None else int(given))


# --- memmap ----------------------------------------------------------------------------------------------------------


class MemmapMachine(GraphMachine):
    """Knows which files there are, and that the one with the ids can be made anew."""

    @rule()
    def reopen_without_the_index(self):
        if self.in_transaction:
            self.model.rollback()
        self.drop_handles()
        self.store.close()
        place = self.target.place(self.place)
        assert sorted(entry.name for entry in place.iterdir() if entry.name != "ids.index") == sorted(
            ["nodes.aesg", "edges.aesg", "meta.npy", "evolution.aesglog", "store.json", "writer.lock"]
        )
        (place / "ids.index").unlink(missing_ok=True)
        self.store = self.target.open(self.place)
        self.end_transaction()


class SmallMemmap(Small):
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(tables, "_EDGES_AT_ONCE", 7)
        monkeypatch.setattr(compact, "_CHUNK", 11)
        monkeypatch.setattr(verify, "_CHUNK", 19)
        monkeypatch.setattr(redo, "STATE_HEAD", 64)
        monkeypatch.setattr(writer, "_CHECKPOINT_BYTES", dict.fromkeys(Durability, 5000))
        monkeypatch.setattr(writer, "_JOURNALED_TAIL", 1000)
        monkeypatch.setattr(directory, "MIN_NODES", 1)
        monkeypatch.setattr(directory, "MIN_EDGES", 1)

    @clause("machine.memmap-files")
    def test_files(self, target, folder):
        """The same with an eye on the files."""
        run_machine(MemmapMachine, target, folder, 50)


class TestMemmap(SmallMemmap):
    @pytest.fixture
    def target(self):
        return Target("memmap:")


class TestMemmapSynced(SmallMemmap):
    @pytest.fixture
    def target(self):
        return Target("memmap:?durability=power_loss")


# --- blocks ----------------------------------------------------------------------------------------------------------


class SmallBlocks(Small):
    container: str
    """The class, as "module:name"."""
    block_bytes = 512
    test_large_graphs = None  # thousands of tiny blocks show no more than the small ones

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(layout, "FEW_UNSORTED", 50)
        for module in (layout, log, block_store):
            monkeypatch.setattr(module, "LOG_BLOCK", 512)
        monkeypatch.setattr(block_store, "_PATCHED", 100)
        monkeypatch.setattr(block_store, "_LARGE", 4000)
        monkeypatch.setattr(block_store, "_LONG", 12_000)
        monkeypatch.setattr(block_tables, "_MANY_EDGES", 4)
        monkeypatch.setattr(sorting, "_CHUNK", 17)
        monkeypatch.setattr(sorting, "_IN_MEMORY", 1000)
        kind = pytest.importorskip(self.container.partition(":")[0])
        for name in self.container.partition(":")[2].split("."):
            kind = getattr(kind, name)
        monkeypatch.setattr(kind, "block_bytes", self.block_bytes)
        monkeypatch.setattr(kind, "log_blocks", 12)

    @clause("machine.merges")
    def test_sizes_are_small_indeed(self, stores, monkeypatch):
        """A few dozen small commits merge the log more than once."""
        merges = []
        real = block_store.BlockStore._merge
        monkeypatch.setattr(
            block_store.BlockStore,
            "_merge",
            lambda self, *args, **given: merges.append(1) or real(self, *args, **given),
        )
        store = stores.new()
        for turn in range(40):
            store.attrs["turn"] = turn
            store.nodes.append(batch(10, 1000 * (turn + 1)))
        assert len(merges) > 1
        assert len(store.nodes) == 400


class TestLmdb(SmallBlocks):
    container = "aesg.backends.lmdb.container:LmdbContainer"

    @pytest.fixture(autouse=True)
    def _small_transactions(self, monkeypatch):
        monkeypatch.setattr(lmdb_container, "_IN_MEMORY", 5000)

    @pytest.fixture
    def target(self):
        return Target("lmdb:")


class TestZarr(SmallBlocks):
    container = "aesg.backends.zarr.arrays:ArrayContainer"
    block_bytes = 2048  # each is a file, and the machine reads all of them again and again

    @pytest.fixture
    def target(self):
        return Target("zarr:")


@pytest.mark.skipif(find_spec("icechunk") is None, reason="icechunk is not installed")
class TestIcechunk(SmallBlocks):
    container = "aesg.backends.zarr.repository:IcechunkContainer"
    block_bytes = 2048  # each is a file, and the machine reads all of them again and again

    @pytest.fixture
    def target(self):
        return Target("icechunk:")


class TestSqliteExample(SmallBlocks):
    container = "sqlite_backend:SqliteContainer"

    @pytest.fixture
    def target(self):
        return Target("sqlite:", imports=("sqlite_backend:BACKEND",))
