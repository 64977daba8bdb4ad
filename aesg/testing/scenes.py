"""What children of the suite do: functions for `children.call`. They know no pytest; asserts say what is wrong."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from aesg.backends import registry
from aesg.errors import AESGError, LockedError, ReadOnlyError, UnsupportedError
from aesg.protocols import GraphStore, ReaderView
from aesg.testing.children import say
from aesg.testing.graphs import assert_same, batch, contents, fill
from aesg.testing.target import DIM, plug_in

ROWS = 600
"""Nodes of the stores that are read while they are written to; a ring of edges connects them."""


def newest(reader: GraphStore) -> GraphStore:
    """A reader at the newest commit."""
    if reader.capabilities.reader_view is ReaderView.FIXED:
        reader.refresh()
    return reader


def try_to_write(url: str) -> str:
    """What an attempt to open for writing is told; "" when it succeeds."""
    try:
        registry.open(url).close()
    except LockedError as error:
        return str(error)
    return ""


def write_and_die(url: str, how: str) -> None:
    """Commit, begin something else, and die of it."""
    store = registry.open(url)
    store.nodes.append(batch(1000, 5000))
    store.attrs["last"] = how
    store.transaction().nodes.append(batch(50, 9000))
    say("committed")
    if how == "exit":
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def read_while_written(url: str) -> int:
    """Read until the writer says that it is done; in each commit all numbers are equal. How many commits were seen."""
    store = registry.open(url, mode="r")
    rows, seen, done = np.arange(ROWS), set(), False
    end = time.monotonic() + 30
    say("reading")
    while not done:
        assert time.monotonic() < end, "the reader never saw the last commit"
        done = "done" in newest(store).attrs
        found = store.nodes.read(rows, ["relevance", "age"])
        assert len(set(found["relevance"].tolist())) == 1, "a mixture of commits"
        assert (found["age"] == found["age"][0]).all(), "a mixture of commits"
        weights = store.edges.out_edges(rows).weight
        assert len(set(weights.tolist())) == 1, "a mixture of commits"
        if store.capabilities.reader_view is ReaderView.FIXED:
            assert weights[0] == found["relevance"][0], "a fixed view moved by itself"
        seen.add(int(found["age"][0]))
    store.close()
    return len(seen)


def ring(graph: Any) -> None:
    """What `read_while_written` reads."""
    graph.nodes.append(batch(ROWS, age=np.zeros(ROWS, np.uint32), relevance=np.ones(ROWS)))
    graph.edges.append(np.arange(ROWS), np.roll(np.arange(ROWS), 1))


def in_fork(act: Callable[[], None], seconds: int = 60) -> int:
    """Fork, and do something in the child; the child's pid. It exits with 0, 1 (an exception) or 2 (unsupported)."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(seconds)  # a child that hangs dies of it
        act()
        code = 0
    except UnsupportedError as error:
        code = 2
        say(f"unsupported {error}")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> str:
    """Wait for a forked child: "" when all went well, otherwise why not."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        signalled = os.WTERMSIG(status)
        return "hung" if signalled == signal.SIGALRM else f"died of signal {signalled}"
    return {0: "", 2: "unsupported"}.get(os.WEXITSTATUS(status), "failed, see stderr")


def fork_with_a_transaction(url: str) -> str:
    """Fork while a transaction is open: the child reads, refuses to write, and leaves transaction and lock alone."""
    store = registry.open(url, vector_dim=DIM)
    fill(store)
    committed = contents(store)
    transaction = store.transaction()
    transaction.nodes.append(batch(5, 800))
    ready, go = os.pipe(), os.pipe()

    def child() -> None:
        assert store.read_only
        assert_same(contents(store), committed)
        for write in (lambda: store.nodes.append(batch(1, 900)), store.transaction, store.compact):
            try:
                write()
            except ReadOnlyError:
                continue
            raise AssertionError("a forked child could write")
        try:
            transaction.commit()
        except AESGError:
            os.write(ready[1], b"x")
        else:
            raise AssertionError("a forked child could commit its parent's transaction")
        os.read(go[0], 1)
        assert len(newest(store).nodes) == 17
        assert store.verify() == []
        store.close()

    pid = in_fork(child)
    os.close(ready[1])
    os.read(ready[0], 1)  # nothing to be read when the child has died
    transaction.commit()
    os.write(go[1], b"x")
    if said := ended(pid):
        return said
    store.attrs["still"] = "writable"
    assert len(store.nodes) == 17
    assert store.verify() == []
    store.close()
    return ""


def fork_among_threads(url: str) -> str:
    """Fork again and again while other threads read and write: no child hangs on a lock that nobody will release."""
    store = registry.open(url, vector_dim=DIM)
    fill(store)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            store.nodes.read([0, 1, 2])
            len(store.edges)

    def write() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            store.nodes.write([turn % 12], age=turn)

    threads = [threading.Thread(target=work) for work in (read, write)]
    for thread in threads:
        thread.start()

    def child() -> None:
        assert len(store.nodes) == 12
        assert len(store.edges) == 9

    said = ""
    try:
        for _ in range(12):
            said = said or ended(in_fork(child, 30))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert store.verify() == []
    store.close()
    return said


def fork_and_die(url: str) -> int:
    """Die as a writer and leave a forked child behind that goes on; the child's pid."""
    store = registry.open(url)
    store.attrs["written"] = True
    running, lives = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(lives, b"x")  # only now has it had the time to let go of the lock
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        time.sleep(60)
        os._exit(0)
    os.read(running, 1)
    say(str(pid))
    os._exit(0)


def count_in_other_process(store: GraphStore) -> tuple[int, bool, str]:
    """What a store that was sent to another process shows there."""
    with store:
        return len(store.nodes), store.read_only, store.uuid


def plug_all_in(names: tuple[str, ...]) -> None:
    """What a worker of a pool does first."""
    for name in names:
        plug_in(name)
