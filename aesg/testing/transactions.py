"""Transactions: all or nothing, seen by nobody before their time, one at a time; threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from aesg.errors import ClosedError, DuplicateIdError, InvalidInputError, TransactionError
from aesg.protocols import GraphStore
from aesg.records import EVENT_DTYPE
from aesg.testing.base import ClauseGroup, Stores
from aesg.testing.clauses import clause
from aesg.testing.graphs import assert_same, batch, change_everything, check_within, contents, fill
from aesg.testing.target import DIM

GRAPH = {"atomicity": "graph"}


class TransactionClauses(ClauseGroup):
    """What a `Transaction` promises."""

    @clause("transactions.isolated", needs=GRAPH)
    def test_a_transaction_sees_its_writes_and_nobody_else_does(self, store: GraphStore) -> None:
        """A transaction sees its own writes; nobody else does before the commit, and everybody all of them after it."""
        before = contents(store)
        graph = store.transaction()
        change_everything(graph)
        inside = contents(graph)
        assert inside["nodes"] == 312
        assert inside["attrs"] == '{"epoch": 8}'
        check_within(graph)
        assert_same(contents(store), before)
        assert store.verify() == []
        graph.commit()
        assert_same(contents(store), inside)
        assert store.verify() == []

    @clause("transactions.many-writes", needs=GRAPH)
    def test_many_and_few_rows_again_and_again_in_one_transaction(self, empty: GraphStore) -> None:
        """However often and in whatever portions a transaction writes, it is as plain arrays written in that order."""
        with empty.transaction() as graph:
            fill(graph, 1500)
        rng = np.random.default_rng(4)
        wanted = empty.nodes.read(np.arange(1500))
        with empty.transaction() as graph:
            for turn in range(12):
                rows = rng.integers(0, 1500, [3, 1400, 40, 2000][turn % 4])
                age = rng.integers(0, 2**32, len(rows))
                vector = rng.standard_normal((len(rows), DIM)).astype(np.float32)
                if turn % 3:
                    graph.nodes.write(rows, age=age)
                else:
                    graph.nodes.write(rows, age=age, vector=vector)
                    wanted["vector"][rows] = vector
                wanted["age"][rows] = age
                if turn % 5 == 2:
                    graph.nodes.transform(
                        lambda c: {"stability": c["stability"] + c["age"] % 2}, ["stability", "age"], ["stability"]
                    )
                    wanted["stability"] = (wanted["stability"] + wanted["age"] % 2).astype(np.float32)
                asked = rng.integers(0, 1500, 700)
                for name, values in graph.nodes.read(asked).items():
                    assert np.array_equal(values, wanted[name][asked]), name
                at = 0
                for chunk in graph.nodes.scan(chunk_rows=190):
                    for name, values in chunk.items():
                        assert np.array_equal(values, wanted[name][at : at + len(values)]), name
                    at += len(chunk["id"])
        for name, values in empty.nodes.read(np.arange(1500)).items():
            assert np.array_equal(values, wanted[name]), name

    @clause("transactions.rollback", needs=GRAPH)
    def test_rollback_forgets_everything(self, store: GraphStore) -> None:
        """A rollback forgets every write: nodes, ids, edges, events and attributes."""
        before, generation = contents(store), store.generation
        graph = store.transaction()
        change_everything(graph)
        graph.rollback()
        graph.rollback()
        assert_same(contents(store), before)
        assert store.generation == generation
        assert store.verify() == []
        # Rows, refs and ids that were rolled back come again, with other contents.
        assert store.nodes.append(batch(2, 1001, seed=5)).tolist() == [12, 13]
        assert store.nodes.rows_of([1000, 1001, 1002, 1003]).tolist() == [-1, 12, 13, -1]
        with pytest.raises(DuplicateIdError):
            store.nodes.append(batch(1, 1002))
        assert store.edges.append([13], [0]).tolist() == [10]
        assert len(store.events) == 13
        assert store.verify() == []
        check_within(store)

    @clause("transactions.exception")
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InvalidInputError])
    def test_an_exception_in_the_block_rolls_back(self, store: GraphStore, error: type[BaseException]) -> None:
        """An exception in the block rolls back, and comes out as it is."""
        before = contents(store)

        def failing() -> None:
            with store.transaction() as graph:
                change_everything(graph)
                raise error("why")

        with pytest.raises(error, match="why"):
            failing()
        assert_same(contents(store), before)
        store.attrs["goes"] = "on"

    @clause("transactions.ended-in-the-block")
    def test_a_block_may_commit_or_roll_back_itself(self, store: GraphStore) -> None:
        """A block may commit or roll back itself."""
        with store.transaction() as graph:
            graph.attrs["a"] = 1
            graph.commit()
        with store.transaction() as graph:
            graph.attrs["b"] = 1
            graph.rollback()
        assert store.attrs.get("a") == 1
        assert "b" not in store.attrs

    @clause("transactions.ended")
    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_a_transaction_that_ended_refuses(self, store: GraphStore, end: str) -> None:
        """A transaction that has ended refuses everything but another rollback."""
        graph = store.transaction()
        getattr(graph, end)()
        acts: list[Callable[[], object]] = [
            lambda: graph.nodes.append(batch(1)),
            lambda: graph.nodes.read([0]),
            lambda: len(graph.nodes),
            lambda: list(graph.nodes.scan()),
            lambda: graph.nodes.transform(dict, ["age"], ["age"]),
            lambda: graph.edges.append([0], [0]),
            lambda: graph.edges.out_edges([0]),
            lambda: graph.events.append(np.zeros(1, EVENT_DTYPE)),
            lambda: graph.events.read(),
            lambda: graph.attrs["epoch"],
            lambda: graph.attrs.__setitem__("a", 1),
            lambda: graph.vector_dim,
            lambda: graph.commit(),
        ]
        for act in acts:
            with pytest.raises(TransactionError, match="ended") as caught:
                act()
            assert store.url in str(caught.value)
        graph.rollback()

    @clause("transactions.one-per-thread")
    def test_a_thread_does_not_wait_for_itself(self, store: GraphStore) -> None:
        """A thread with an open transaction is refused another, and maintenance, instead of waiting for itself."""
        with store.transaction() as graph:
            graph.attrs["a"] = 1
            acts: list[Callable[[], object]] = [
                store.transaction,
                store.compact,
                store.flush,
                lambda: store.nodes.append(batch(1)),
                lambda: store.nodes.write([0], age=1),
                lambda: store.nodes.transform(dict, ["age"], ["age"]),
                lambda: store.edges.append([0], [0]),
                lambda: store.edges.remove([0]),
                lambda: store.events.append(np.zeros(1, EVENT_DTYPE)),
                lambda: store.attrs.__setitem__("b", 1),
            ]
            for act in acts:
                with pytest.raises(TransactionError) as caught:
                    act()
                assert store.url in str(caught.value)
            graph.attrs["c"] = 1
        assert set(store.attrs) == {"config", "epoch", "a", "c"}

    @clause("transactions.closing")
    def test_closing_rolls_an_open_transaction_back(self, stores: Stores) -> None:
        """Closing the store rolls an open transaction back; a thread that waits for its turn is told."""
        store = stores.new()
        fill(store)
        graph = store.transaction()
        graph.attrs["half"] = True
        waiting, out = in_thread(lambda: store.attrs.__setitem__("late", 1))
        store.close()
        waiting.join(30)
        assert isinstance(out[0], ClosedError)
        with pytest.raises((TransactionError, ClosedError)):
            graph.attrs["half"] = False
        graph.rollback()
        if stores.target.persists:
            again = stores.open(store.url)
            assert "half" not in again.attrs
            assert "late" not in again.attrs


def in_thread(act: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run in a thread of its own; gives the thread and a list for the result or the exception."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(act())
        except BaseException as error:
            out.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, out


class ThreadClauses(ClauseGroup):
    """A handle may be shared between threads."""

    @clause("threads.wait-and-read")
    def test_another_thread_waits_and_reads_meanwhile(self, store: GraphStore) -> None:
        """While one thread has a transaction open, another waits to write, and reads the last commit meanwhile."""
        graph = store.transaction()
        graph.attrs["epoch"] = 8
        begun = threading.Event()

        def write() -> None:
            begun.set()
            with store.transaction() as mine:
                epoch = mine.attrs["epoch"]
                assert isinstance(epoch, int)
                mine.attrs["epoch"] = epoch + 1

        writer, wrote = in_thread(write)
        assert begun.wait(30)
        writer.join(0.2)
        assert writer.is_alive(), "the second transaction did not wait"
        reader, read = in_thread(lambda: (store.attrs["epoch"], len(store.nodes)))
        reader.join(30)
        assert read == [(7, 12)], "a reader waited, or saw what was not committed"
        graph.commit()
        writer.join(30)
        assert wrote == [None]
        assert store.attrs["epoch"] == 9

    @clause("threads.handed-on")
    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_begun_in_one_thread_and_ended_in_another(self, store: GraphStore, end: str) -> None:
        """A transaction may be begun in one thread, and written to and ended in another."""
        graph = store.transaction()
        graph.attrs["a"] = 1

        def finish() -> None:
            graph.attrs["b"] = 2
            getattr(graph, end)()

        thread, out = in_thread(finish)
        thread.join(30)
        assert out == [None]
        assert ("a" in store.attrs, "b" in store.attrs) == ((end == "commit"),) * 2
        store.attrs["c"] = 3
        thread, out = in_thread(lambda: store.attrs.__setitem__("d", 4))
        thread.join(30)
        assert out == [None]
        assert store.attrs["d"] == 4

    @clause("threads.many-writers")
    def test_many_threads_write_and_nothing_is_lost(self, store: GraphStore) -> None:
        """Many threads write through one handle; nothing is lost, and none sees half of another's commit."""

        def write(number: int) -> None:
            for turn in range(10):
                with store.transaction() as graph:
                    (row,) = graph.nodes.append(batch(1, 10_000 + 100 * number + turn))
                    graph.edges.append([row], [number])
                    count = graph.attrs.get("count", 0)
                    assert isinstance(count, int)
                    graph.attrs["count"] = count + 1
                    check_within(graph)
                store.nodes.write([number], use_frequency=turn)

        threads = [in_thread(partial(write, number)) for number in range(4)]
        for thread, _ in threads:
            thread.join(120)
        assert [out for _, out in threads] == [[None]] * 4
        assert store.attrs["count"] == 40
        assert len(store.nodes) == 12 + 40
        assert store.nodes.read([0, 1, 2, 3])["use_frequency"].tolist() == [9] * 4
        assert store.verify() == []

    @clause("threads.readers-see-whole-commits", needs=GRAPH)
    def test_readers_see_whole_commits(self, store: GraphStore) -> None:
        """Threads that read while another commits see in each call one commit, whole."""
        with store.transaction() as graph:
            graph.nodes.append(batch(500, 5000))
        ended = threading.Event()

        def read() -> int:
            seen = set()
            while not ended.is_set():
                found = store.nodes.read(np.arange(12, 512), ["age", "region_id"])
                assert len(set(found["age"].tolist()) | set(found["region_id"].tolist())) <= 2
                assert (found["age"] == found["age"][0]).all(), "a mixture of commits"
                seen.add(int(found["age"][0]))
            return len(seen)

        with store.transaction() as graph:
            graph.nodes.write(np.arange(12, 512), age=0, region_id=0)
        readers = [in_thread(read) for _ in range(2)]
        for turn in range(1, 30):
            with store.transaction() as graph:
                graph.nodes.write(np.arange(12, 262), age=turn, region_id=turn)
                graph.nodes.write(np.arange(262, 512), age=turn, region_id=turn)
        ended.set()
        for thread, _ in readers:
            thread.join(60)
        assert all(isinstance(out[0], int) for _, out in readers), [out for _, out in readers]

    @clause("threads.snapshots-of-whole-commits", needs=GRAPH | {"snapshots": True})
    def test_snapshots_hold_whole_commits(self, store: GraphStore) -> None:
        """A snapshot that is taken while another thread commits holds nodes, edges, events and attributes of one."""
        ended = threading.Event()

        def look() -> int:
            seen = set()
            while not ended.is_set():
                with store.snapshot() as old:
                    epoch = old.attrs["epoch"]
                    shown = (len(old.nodes) - 12, len(old.edges) - 9, len(old.events) - 13)
                    assert shown == (epoch,) * 3, f"nodes, edges and events of {shown}, attributes of {epoch}"
                    seen.add(epoch)
            return len(seen)

        store.attrs["epoch"] = 0
        looking = [in_thread(look) for _ in range(2)]
        for turn in range(1, 60):
            with store.transaction() as graph:
                graph.nodes.append(batch(1, 5000 + turn))
                graph.edges.append([0], [11 + turn])
                graph.events.append(np.zeros(1, EVENT_DTYPE))
                graph.attrs["epoch"] = turn
        ended.set()
        for thread, _ in looking:
            thread.join(60)
        assert all(isinstance(out[0], int) for _, out in looking), [out for _, out in looking]
