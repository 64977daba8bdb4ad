"""Several processes and handles around one store: the lock, readers beside a writer, forks, spawned children."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from aesg.backends import registry
from aesg.errors import LockedError
from aesg.protocols import GraphStore
from aesg.records import EventType, events
from aesg.testing import children, scenes
from aesg.testing.base import NOT_DECLARED, ClauseGroup, Stores
from aesg.testing.clauses import clause
from aesg.testing.graphs import assert_same, batch, change_everything, contents, fill
from aesg.testing.scenes import newest
from aesg.testing.target import Target

PERSISTS: Final = {"durability": "process_crash"}
READERS: Final = {"readers": "other_processes"}
LATEST: Final = {"reader_view": "fixed"}
"""For `unless`: those whose readers follow by themselves."""


class LockClauses(ClauseGroup):
    """One writer at a time, where no more are declared."""

    @clause("processes.lock.same-process", needs=PERSISTS, unless={"writers": "many"})
    def test_a_second_handle_of_this_process_is_refused(self, store: GraphStore) -> None:
        """A second writing handle of the same process is a LockedError that says who holds the store."""
        with pytest.raises(LockedError, match=f"this process.*{os.getpid()}") as caught:
            registry.open(store.url)
        assert store.url in str(caught.value)
        store.attrs["goes"] = "on"

    @clause("processes.lock.another-process", needs=PERSISTS, unless={"writers": "many"})
    def test_another_process_is_refused(self, store: GraphStore, target: Target) -> None:
        """A writing handle of another process is a LockedError that names the holder's pid, and what to do."""
        said = children.call(target, scenes.try_to_write, store.url)
        assert f"another process (pid {os.getpid()})" in said
        assert "mode='r'" in said

    @clause("processes.lock.two-writing-processes", needs=PERSISTS, unless={"writers": "many"})
    def test_a_refused_writer_changes_nothing(self, stores: Stores, target: Target) -> None:
        """A writer that is refused changes none of the store's files, and the holder goes on."""
        folder = stores.folder()
        store = stores.new(folder)
        fill(store)
        before = {path: path.read_bytes() for path in target.files(folder)}
        with pytest.raises(LockedError):
            registry.open(store.url)
        assert children.call(target, scenes.try_to_write, store.url)
        after = {path: path.read_bytes() for path in target.files(folder)}
        # A list of who has it open is no part of the store.
        assert [path.name for path in after if after[path] != before.get(path) and "lock" not in path.name] == []
        store.attrs["goes"] = "on"
        assert store.verify() == []

    @clause("processes.lock.other-spellings", needs=PERSISTS, unless={"writers": "many"})
    def test_a_path_spelled_differently_is_the_same_store(self, stores: Stores, target: Target) -> None:
        """A path through a link, or a relative one, is the same store and just as locked."""
        folder = stores.folder()
        store = stores.new(folder)
        link = folder.with_name("link")
        link.symlink_to(folder)
        relative = Path(os.path.relpath(folder))
        for other in (link, folder.parent / "x" / ".." / folder.name, relative):
            with pytest.raises(LockedError):
                registry.open(target.store_url(other))
        assert store.verify() == []

    @clause("processes.lock.ends", needs=PERSISTS)
    @pytest.mark.parametrize("how", ["exit", "kill"])
    def test_the_lock_ends_with_death(self, stores: Stores, target: Target, how: str) -> None:
        """The lock ends with its holder; what was committed is there, what was not is not."""
        with stores.new() as store:
            fill(store)
        with children.start(target, scenes.write_and_die, store.url, how) as child:
            assert children.hear(child) == "committed"
        assert child.returncode == (0 if how == "exit" else -signal.SIGKILL)
        with stores.open(store.url) as again:
            assert len(again.nodes) == 1012
            assert again.attrs["last"] == how
            assert again.verify() == []

    @clause("processes.lock.not-inherited", needs=PERSISTS)
    def test_the_lock_goes_with_the_parent_not_with_its_children(self, stores: Stores, target: Target) -> None:
        """The lock ends with the process that opened the store, though forked children of it live on."""
        with stores.new() as store:
            fill(store)
        with children.start(target, scenes.fork_and_die, store.url) as child:
            left_behind = int(children.hear(child))
        try:
            with stores.open(store.url) as again:
                assert again.attrs["written"] is True
        finally:
            os.kill(left_behind, signal.SIGKILL)


class ReaderClauses(ClauseGroup):
    """Readers beside a writer."""

    @clause("processes.readers.follow", needs=READERS, unless=LATEST)
    def test_a_reader_follows_the_commits(self, store: GraphStore, stores: Stores) -> None:
        """A reader sees each commit as soon as it is made, whole, and nothing before."""
        reader = stores.open(store.url, mode="r")
        before = contents(store)
        with store.transaction() as graph:
            change_everything(graph)
            assert_same(contents(reader), before)
        assert reader.generation == store.generation
        assert_same(contents(reader), contents(store))
        store.events.append(events(EventType.PRUNE, [1, 2], timestamp=3))
        store.attrs["long"] = "x" * 100_000
        assert_same(contents(reader), contents(store))
        assert reader.verify() == []

    @clause("processes.readers.fixed", needs=READERS | {"reader_view": "fixed"})
    def test_a_reader_stays_at_its_commit(self, store: GraphStore, stores: Stores) -> None:
        """A reader stays at the commit at which it was opened until it is refreshed, over compactions too."""
        reader = stores.open(store.url, mode="r")
        before, generation = contents(store), store.generation
        with store.transaction() as graph:
            change_everything(graph)
        store.nodes.append(batch(2000, 50_000))
        store.nodes.write([3], is_active=0)
        store.compact()
        assert_same(contents(reader), before)
        assert reader.generation == generation
        assert reader.verify() == []
        assert reader.refresh() is True
        assert_same(contents(reader), contents(store))
        assert reader.generation == store.generation

    @clause("processes.readers.refresh", needs=READERS)
    def test_refresh_says_whether_anything_is_new(self, store: GraphStore, stores: Stores) -> None:
        """Refresh moves a reader to the newest commit, and says whether that changed anything."""
        reader = stores.open(store.url, mode="r")
        assert reader.refresh() is False
        store.attrs["a"] = 1
        assert reader.refresh() is True
        assert reader.refresh() is False
        assert reader.attrs["a"] == 1
        with store.transaction() as graph:
            graph.attrs["b"] = 1
            assert reader.refresh() is False
        assert reader.refresh() is True

    @clause("processes.readers.many", needs=READERS)
    def test_many_readers_each_on_its_own(self, store: GraphStore, stores: Stores) -> None:
        """Any number of readers may be open beside a writer; closing one disturbs neither the others nor the writer."""
        readers = [stores.open(store.url, mode="r") for _ in range(5)]
        for number, reader in enumerate(readers):
            store.attrs["number"] = number
            assert newest(reader).attrs["number"] == number
            reader.close()
        store.attrs["number"] = 5
        assert stores.open(store.url, mode="r").attrs["number"] == 5

    @clause("processes.readers.outlive-writers", needs=READERS)
    def test_a_reader_outlives_writers_that_come_and_go(self, stores: Stores) -> None:
        """A reader outlives writers that come and go."""
        with stores.new() as store:
            fill(store)
        reader = stores.open(store.url, mode="r")
        for turn in range(3):
            with stores.open(store.url) as writer:
                writer.attrs["turn"] = turn
                assert newest(reader).attrs["turn"] == turn
                writer.nodes.append(batch(100, 1000 * (turn + 1)))
            assert len(newest(reader).nodes) == 12 + 100 * (turn + 1)
            assert reader.attrs["turn"] == turn
            assert reader.verify() == []

    @clause("processes.readers.compaction", needs=READERS)
    def test_a_reader_follows_a_compaction(self, store: GraphStore, stores: Stores) -> None:
        """A reader sees a compaction whole."""
        reader = stores.open(store.url, mode="r")
        assert len(reader.nodes) == 12
        store.nodes.write([0, 3, 4], is_active=0)
        store.compact()
        assert_same(contents(newest(reader)), contents(store))
        assert len(reader.nodes) == 8
        assert reader.verify() == []

    @clause("processes.readers.of-a-killed-writer", needs=READERS | PERSISTS)
    def test_reading_a_store_whose_writer_was_killed(self, stores: Stores, target: Target) -> None:
        """A store whose writer was killed is read as of its last commit, by readers new and old."""
        with stores.new() as store:
            fill(store)
        reader = stores.open(store.url, mode="r")
        with children.start(target, scenes.write_and_die, store.url, "kill") as child:
            assert children.hear(child) == "committed"
        for each in (stores.open(store.url, mode="r"), newest(reader)):
            assert len(each.nodes) == 1012
            assert each.attrs["last"] == "kill"
            assert each.verify() == []

    @clause("processes.readers.whole-commits", needs=READERS | {"atomicity": "graph"})
    def test_readers_never_see_half_of_a_commit(self, stores: Stores, target: Target) -> None:
        """Processes that read while another commits as fast as it can see in each call one commit, whole."""
        store = stores.new()
        with store.transaction() as graph:
            scenes.ring(graph)
        readers = [children.start(target, scenes.read_while_written, store.url) for _ in range(2)]
        try:
            assert [children.hear(reader) for reader in readers] == ["reading"] * 2
            for turn in range(1, 120):
                with store.transaction() as graph:
                    graph.nodes.write(np.arange(scenes.ROWS), relevance=1 / turn, age=turn)
                    graph.edges.write(np.arange(scenes.ROWS), weight=1 / turn)
                    if turn == 119:
                        graph.attrs["done"] = True
                if turn % 40 == 0:
                    store.compact()
            seen = [children.hear(reader) for reader in readers]
        finally:
            for reader in readers:
                reader.kill()
                reader.communicate()
        assert all(number.isdecimal() and int(number) > 1 for number in seen), f"readers ended with {seen}, see stderr"


class ForkClauses(ClauseGroup):
    """Children that were forked with a store open, and such that were spawned."""

    def forked(self, target: Target, scene: Any, url: str) -> None:
        """Let a scene with a fork play in a process of its own."""
        if not hasattr(os, "fork"):
            pytest.skip("this system has no fork")
        said = children.call(target, scene, url)
        if said == "unsupported":
            pytest.skip(NOT_DECLARED + "a handle that was open at a fork refuses to be used in the child")
        assert not said, f"a forked child {said}"

    @clause("processes.fork.reads-only", needs=READERS)
    def test_in_a_forked_child_the_handle_reads_only(self, stores: Stores, target: Target) -> None:
        """In a forked child the handle reads, refuses to write, and leaves the parent's transaction and lock alone."""
        self.forked(target, scenes.fork_with_a_transaction, target.store_url(stores.folder()))

    @clause("processes.fork.among-threads", needs=READERS)
    def test_a_fork_among_busy_threads_does_not_hang(self, stores: Stores, target: Target) -> None:
        """A child that was forked while other threads used the handle does not hang."""
        self.forked(target, scenes.fork_among_threads, target.store_url(stores.folder()))

    @clause("processes.spawn.pickled", needs=READERS)
    def test_a_pickled_handle_reads_in_a_spawned_process(self, store: GraphStore, target: Target) -> None:
        """A handle that is sent to a spawned process reads there."""
        context = multiprocessing.get_context("spawn")
        with context.Pool(1, scenes.plug_all_in, (target.imports,)) as pool:
            assert pool.apply(scenes.count_in_other_process, (store,)) == (12, True, store.uuid)
        with pickle.loads(pickle.dumps(store)) as copy:  # noqa: S301 - our own
            store.nodes.append(batch(1, 900))
            assert len(newest(copy).nodes) == 13
