"""Backends that are broken on purpose, each a few lines away from a sound one, and the clause that must catch each.

`python tests/saboteurs.py` runs the whole suite on every one of them and prints which clauses caught it;
`python tests/saboteurs.py "not machine and not crash"` chooses.
"""

import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np

from aesg.backends import memory, registry
from aesg.backends.memmap import reader, writer
from aesg.backends.memmap.handle import promises
from aesg.backends.memory import MemoryStore, _MemoryTables
from aesg.backends.parts import Nodes
from aesg.backends.registry import Backend
from aesg.errors import CorruptionError, InvalidVectorError
from aesg.protocols import Durability
from aesg.records import NODE_FIELDS, Adjacency
from aesg.testing import Target, run


@dataclass(frozen=True)
class Saboteur:
    """A broken backend.

    Attributes:
        name: What it does; the scheme is made of it.
        clause: The clause that is there to catch it.
    """

    name: str
    clause: str

    @property
    def target(self):
        return Target(f"{self.scheme}:", imports=("saboteurs",))

    @property
    def scheme(self):
        return "sabotage-" + re.sub("[^a-z]+", "-", self.name)


SABOTEURS: list[Saboteur] = []


def broken(name: str, clause: str, opener: Callable, recognises=lambda path: False) -> None:
    saboteur = Saboteur(name, clause)
    SABOTEURS.append(saboteur)
    registry.register(Backend(saboteur.scheme, f"broken on purpose: {name}", opener, recognises=recognises))


# --- in memory -------------------------------------------------------------------------------------------------------


def in_memory(name: str, clause: str, tables: type = _MemoryTables):
    """Register a class of stores whose tables are of another class."""

    def add(kind: type[MemoryStore]) -> type[MemoryStore]:
        class Kind(kind):
            def _committed(self):
                return self.tables_of(super()._committed())

            def _begin(self):
                return self.tables_of(super()._begin())

            def _take_snapshot(self):
                return self.tables_of(super()._take_snapshot())

            def tables_of(self, given):
                if tables is not _MemoryTables:
                    given = tables(given.state)
                given.store = self
                return given

        def opener(url, mode, dim, options):
            with mock.patch.object(memory, "MemoryStore", Kind):
                return memory._open(url, mode, dim, options)

        broken(name, clause, opener)
        return kind

    return add


class DropsARow(_MemoryTables):
    def append_nodes(self, columns):
        super().append_nodes({name: values[:-1] if len(values) > 64 else values for name, values in columns.items()})


in_memory("drops a row of a large batch", "laws.batch-is-one-by-one", DropsARow)(MemoryStore)


class StaleLists(_MemoryTables):
    """Keeps the lists that it gave out until edges are appended."""

    def out_edges(self, rows, limit):
        kept = self.store.__dict__.setdefault("kept_lists", {})
        key = (self.edge_slots, rows.tobytes())
        if key not in kept:
            kept[key] = super().out_edges(rows, limit)
        return Adjacency(*(getattr(kept[key], name).copy() for name in Adjacency.__slots__))


in_memory("serves stale out-edges", "edges.out.fresh", StaleLists)(MemoryStore)


class OldestFirst(_MemoryTables):
    def out_edges(self, rows, limit):
        found = super().out_edges(rows, limit)
        order = np.lexsort((found.refs, np.repeat(np.arange(len(rows)), np.diff(found.indptr))))
        return Adjacency(found.indptr, *(getattr(found, name)[order] for name in Adjacency.__slots__[1:]))


in_memory("reorders edges", "edges.out.newest-first", OldestFirst)(MemoryStore)


class ForgetsEvents(_MemoryTables):
    def append_events(self, events):
        super().append_events(events[:-1])


in_memory("forgets events", "events.read.slices", ForgetsEvents)(MemoryStore)


class GivesViews(_MemoryTables):
    def node_chunk(self, start, stop, fields):
        return {name: self.state.nodes[name][start:stop] for name in fields}


in_memory("returns views instead of copies", "nodes.arrays.own", GivesViews)(MemoryStore)


class ForgetsThePruned(_MemoryTables):
    def rows_of(self, ids):
        rows = super().rows_of(ids)
        return np.where((rows >= 0) & (self.state.nodes["is_active"][rows] == 0), -1, rows) if self.node_count else rows


in_memory("accepts the id of a pruned node again", "refusals.duplicate-ids", ForgetsThePruned)(MemoryStore)


class KeepsAttrs(_MemoryTables):
    def set_attrs(self, attrs):
        kept = self.state.attrs
        kept.clear()
        kept.update(attrs)
        self.state = replace(self.state)


in_memory("rolls back all but the attributes", "transactions.rollback", KeepsAttrs)(MemoryStore)


class ShowsRemovedEdges(_MemoryTables):
    def removed(self, refs):
        return np.zeros(len(refs), np.bool_)


in_memory("shows removed edges to transforms", "edges.transform.live-only", ShowsRemovedEdges)(MemoryStore)


@in_memory("leaks a transaction's writes to readers", "transactions.isolated")
class Leaks(MemoryStore):
    def _committed(self):
        return self._open_transaction._tables if self._open_transaction else super()._committed()


@in_memory("tears a commit between nodes and edges", "threads.snapshots-of-whole-commits")
class Tears(MemoryStore):
    def _commit(self, tables):
        self._state = replace(self._state, nodes=tables.state.nodes)
        self._lock.release()  # others get in while the edges are still to come
        time.sleep(0.001)
        self._lock.acquire()
        super()._commit(tables)


class Lax(Nodes):
    """Takes vectors as they are."""

    def append(self, batch):
        try:
            return super().append(batch)
        except InvalidVectorError:
            with self._view.writing() as tables:
                if np.shape(batch.vector)[1:] != (tables.vector_dim,):
                    raise
                n, first = len(batch.vector), tables.node_count
                zeros = np.zeros(n, np.uint64)
                columns = {"id": np.arange(n) + 10**9 + first, "created_at": zeros, "modified_at": zeros}
                tables.append_nodes({**columns, "vector": np.asarray(batch.vector, np.float32)})
                return np.arange(first, first + n)


@in_memory("lets NaN in", "refusals.non-finite")
class LetsNanIn(MemoryStore):
    def __init__(self, *args):
        super().__init__(*args)
        self.nodes = Lax(self)


class Unchecked(Nodes):
    """Leaves it to NumPy to find out."""

    def read(self, rows, fields=None):
        with self._view.reading() as tables:
            return tables.read_nodes(np.asarray(rows, np.intp).reshape(-1), fields or list(NODE_FIELDS))


@in_memory("lets another library's exceptions out", "refusals.not-found")
class LetsExceptionsOut(MemoryStore):
    def __init__(self, *args):
        super().__init__(*args)
        self.nodes = Unchecked(self)


class Moving(_MemoryTables):
    @property
    def state(self):
        return self.store._state

    @state.setter
    def state(self, state):
        pass


@in_memory("has snapshots that move", "snapshots.stay")
class MovingSnapshots(MemoryStore):
    def _take_snapshot(self):
        moving = Moving.__new__(Moving)
        moving.store = self
        return moving


@in_memory("keeps its generation", "stores.generation")
class KeepsItsGeneration(MemoryStore):
    def _commit(self, tables):
        before = self._generation
        super()._commit(tables)
        self._generation = before


@in_memory("compacts without giving edges their new rows", "compact.rows-anew")
class CompactsNodesOnly(MemoryStore):
    def _compact(self, min_confidence):
        before = self._state
        row_map = super()._compact(min_confidence)
        edges, old = dict(self._state.edges), before.edges
        kept = ~old["removed"] & (row_map[old["source_row"]] >= 0) & (row_map[old["target_row"]] >= 0)
        edges["target_row"] = np.minimum(old["target_row"][kept], max(0, len(self._state.nodes["id"]) - 1))
        self._state = replace(self._state, edges=edges)
        return row_map


@in_memory("lets two threads write at once", "threads.wait-and-read")
class TwoAtOnce(MemoryStore):
    def transaction(self):
        self._writer, self._writer_thread = mock.MagicMock(), None
        return super().transaction()


@in_memory("goes on when it is closed", "stores.closed")
class NeverCloses(MemoryStore):
    def close(self):
        pass


# --- on disk ---------------------------------------------------------------------------------------------------------


class NoLock:
    """Locks nothing."""

    def __init__(self, path, url):
        path.touch()

    def release(self):
        pass

    forget = release


def ignoring_the_lock(url, mode, dim, options):
    with mock.patch.object(writer, "WriterLock", NoLock):
        return on_disk(url, mode, dim)


class LosesTheLast(writer.MemmapWriter):
    """Leaves what a store was before its last commit."""

    def _commit(self, tables):
        kept = self.directory.with_name("before")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.directory, kept)
        super()._commit(tables)

    def _close(self):
        super()._close()
        kept = self.directory.with_name("before")
        if kept.exists():
            shutil.rmtree(self.directory)
            kept.rename(self.directory)


class Stays(reader.MemmapReader):
    """Never looks whether there is anything new."""

    def _up_to_date(self):
        return True


class PicklesAWriter(writer.MemmapWriter):
    """Opens its copies for writing."""

    def __reduce__(self):
        return registry.open, (self.url,)


class Settled(writer.MemmapWriter):
    """Wants to be where it was made."""

    def __init__(self, url, directory, *args):
        super().__init__(url, directory, *args)
        if self.attrs.setdefault("place", str(directory)) != str(directory):
            self.close()
            raise CorruptionError(f"{url}: this is not where it was made")


class FollowsNoFork(writer.MemmapWriter):
    """Does not notice that it is in a child."""

    def _forked(self):
        self._pid = os.getpid()


def on_disk(url, mode, dim, writing=writer.MemmapWriter, reading=reader.MemmapReader):
    directory = url.local_path()
    kind = reading if mode == "r" else writing
    name = str(replace(url, path=str(directory)))
    return kind(name, directory, dim, Durability.PROCESS_CRASH)


def with_kinds(**kinds):
    return lambda url, mode, dim, options: on_disk(url, mode, dim, **kinds)


broken("ignores the lock", "processes.lock.same-process", ignoring_the_lock)
broken("loses the last commit", "reopening.keeps-the-last-commit", with_kinds(writing=LosesTheLast))
broken("does not show readers what is new", "processes.readers.follow", with_kinds(reading=Stays))
broken("opens its pickles for writing", "copies.pickle", with_kinds(writing=PicklesAWriter))
broken("does not open where it was moved to", "reopening.moved-folder", with_kinds(writing=Settled))
broken("lets forked children write", "processes.fork.reads-only", with_kinds(writing=FollowsNoFork))


class Overstates(writer.MemmapWriter):
    """Declares what it does not do."""

    @property
    def capabilities(self):
        return replace(promises(self._durability), snapshots=True)


broken("declares snapshots and has none", "snapshots.stay", with_kinds(writing=Overstates))


def main() -> int:
    """The table of which clauses caught which; an argument chooses the clauses."""
    missed = 0
    for saboteur in SABOTEURS:
        caught = run(saboteur.target, choose=" ".join(sys.argv[1:])).failed
        others = ", ".join(name for name in caught if name != saboteur.clause)
        missed += saboteur.clause not in caught
        print(f"{saboteur.name:45} {saboteur.clause if saboteur.clause in caught else 'NOT CAUGHT':38} {others}")
        sys.stdout.flush()
    return missed


if __name__ == "__main__":
    # Children import this module by its name; it registers its backends there, and in this process too.
    sys.path.insert(0, str(Path(__file__).parent))
    import saboteurs

    sys.exit(saboteurs.main())
