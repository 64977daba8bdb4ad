"""Real processes around one store: locks, readers beside a writer, forks, pickles."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import aesg
from aesg.errors import AESGError, LockedError, NotFoundError, ReadOnlyError
from aesg.records import EventType, NodeBatch, events

DIM = 4


def python(code, *args, **kwargs):
    """Run code in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        **kwargs,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def filled(path, n=10):
    store = aesg.open(path, vector_dim=DIM)
    store.nodes.append(NodeBatch(np.arange(n * DIM, dtype=np.float32).reshape(n, DIM) + 1))
    store.edges.append(np.arange(n - 1), np.arange(1, n), 0.5)
    return store


class TestOneWriter:
    def test_a_second_handle_of_this_process_is_refused_with_its_pid(self, tmp_path):
        with filled(tmp_path / "s"), pytest.raises(LockedError, match=f"this process.*{os.getpid()}"):
            aesg.open(tmp_path / "s")

    def test_another_process_is_refused_with_the_holders_pid(self, tmp_path):
        with filled(tmp_path / "s"):
            said = python(
                """
                import sys, aesg
                try:
                    aesg.open(sys.argv[1])
                except aesg.errors.LockedError as error:
                    print(error)
                """,
                tmp_path / "s",
            )
        assert f"another process (pid {os.getpid()})" in said
        assert "mode='r'" in said

    def test_a_path_spelled_differently_is_the_same_store(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "s")
        with filled(tmp_path / "s"):
            for other in (tmp_path / "link", f"memmap:{tmp_path}/x/../s", os.path.relpath(tmp_path / "s")):
                with pytest.raises(LockedError):
                    aesg.open(other)

    def test_the_lock_ends_with_close_and_with_death(self, tmp_path):
        filled(tmp_path / "s").close()
        python("import os, sys, aesg; s = aesg.open(sys.argv[1]); print('x', flush=True); os._exit(0)", tmp_path / "s")
        with aesg.open(tmp_path / "s") as store:
            assert len(store.nodes) == 10

    def test_a_refused_writer_changes_nothing(self, tmp_path):
        with filled(tmp_path / "s") as store:
            before = {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()}
            with pytest.raises(LockedError):
                aesg.open(tmp_path / "s")
            assert {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()} == before
            assert store.verify() == []


class TestReadersBesideAWriter:
    def test_a_reader_follows_the_commits(self, tmp_path):
        with filled(tmp_path / "s") as writer, aesg.open(tmp_path / "s", "r") as reader:
            assert len(reader.nodes) == 10
            with writer.transaction() as transaction:
                transaction.nodes.append(NodeBatch(np.ones((500, DIM))))
                transaction.nodes.write([0], relevance=0.25)
                transaction.edges.append(np.zeros(1000, int), np.arange(1000) % 510)
                transaction.events.append(events(EventType.CREATE, [1, 2, 3]))
                transaction.attrs["a"] = "b"
                assert len(reader.nodes) == 10
                assert reader.nodes.read([0], ["relevance"])["relevance"] == 1
                assert len(reader.edges) == 9
            assert reader.generation == writer.generation
            assert len(reader.nodes) == 510
            assert reader.nodes.read([0], ["relevance"])["relevance"] == 0.25
            assert reader.edges.out_edges([0]).degrees.tolist() == [1001]
            assert len(reader.events) == 3
            assert reader.events.read()["id1"].tolist() == [1, 2, 3]
            assert reader.attrs["a"] == "b"
            assert reader.verify() == []

    def test_refresh_says_whether_anything_is_new(self, tmp_path):
        with filled(tmp_path / "s") as writer, aesg.open(tmp_path / "s", "r") as reader:
            assert reader.refresh() is False
            writer.attrs["a"] = 1
            assert reader.refresh() is True
            assert reader.refresh() is False

    def test_a_reader_outlives_writers_that_come_and_go(self, tmp_path):
        filled(tmp_path / "s").close()
        with aesg.open(tmp_path / "s", "r") as reader:
            for k in range(3):
                with aesg.open(tmp_path / "s") as writer:
                    writer.attrs["k"] = k
                    assert reader.attrs["k"] == k
                    writer.nodes.append(NodeBatch(np.ones((100, DIM))))
                assert len(reader.nodes) == 10 + 100 * (k + 1)
                assert reader.attrs["k"] == k

    def test_a_reader_follows_a_compaction(self, tmp_path):
        with filled(tmp_path / "s") as writer, aesg.open(tmp_path / "s", "r") as reader:
            assert len(reader.nodes) == 10
            writer.nodes.write([0, 3, 4], is_active=0)
            row_map = writer.compact()
            assert row_map.tolist() == [-1, 0, 1, -1, -1, 2, 3, 4, 5, 6]
            assert len(reader.nodes) == 7
            assert reader.verify() == []
            assert len(reader.edges) == len(writer.edges) == 5

    def test_many_large_attributes_reach_the_reader(self, tmp_path):
        with filled(tmp_path / "s") as writer, aesg.open(tmp_path / "s", "r") as reader:
            writer.attrs["long"] = "x" * 100_000
            assert len(reader.attrs["long"]) == 100_000

    def test_readers_never_see_half_of_a_commit(self, tmp_path):
        """Processes read while another commits as fast as it can; in each commit all relevances are the same."""
        filled(tmp_path / "s", 2000).close()
        reading = """
            import sys, time, numpy as np, aesg
            store = aesg.open(sys.argv[1], "r")
            seen, end = set(), time.monotonic() + 2
            while time.monotonic() < end:
                got = store.nodes.read(np.arange(2000), ["relevance", "age"])
                assert len(set(got["relevance"].tolist())) == 1, "a mixture of commits"
                assert (got["age"] == got["age"][0]).all()
                weights = store.edges.out_edges(np.arange(1999)).weight
                assert len(set(weights.tolist())) == 1, "a mixture of commits"
                seen.add(float(got["relevance"][0]))
            print(len(seen))
            """
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(reading), str(tmp_path / "s")], stdout=subprocess.PIPE
            )
            for _ in range(2)
        ]
        with aesg.open(tmp_path / "s") as writer:
            k = 0
            while any(reader.poll() is None for reader in readers):
                k += 1
                with writer.transaction() as transaction:
                    transaction.nodes.write(np.arange(2000), relevance=1 / k, age=k)
                    transaction.edges.write(np.arange(1999), weight=1 / k)
                if k % 50 == 0:
                    writer.flush()
        for reader in readers:
            assert reader.returncode == 0
            assert int(reader.stdout.read()) > 10, "the reader saw hardly any commit"
            reader.stdout.close()

    def test_reading_a_store_whose_writer_was_killed(self, tmp_path):
        python(
            """
            import os, sys, signal, aesg, numpy as np
            from aesg.records import NodeBatch
            s = aesg.open(sys.argv[1], vector_dim=4)
            s.nodes.append(NodeBatch(np.ones((1000, 4))))
            s.transaction().nodes.append(NodeBatch(np.ones((50, 4))))
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            os._exit(0)
            """,
            tmp_path / "s",
        )
        with aesg.open(tmp_path / "s", "r") as reader:
            assert len(reader.nodes) == 1000
            assert reader.verify() == []

    def test_a_reader_creates_nothing(self, tmp_path):
        with pytest.raises(NotFoundError, match="mode='a'"):
            aesg.open(tmp_path / "none", "r")
        assert not (tmp_path / "none").exists()


class TestForks:
    def test_in_a_child_the_handle_reads_and_refuses_to_write(self, tmp_path):
        """The child sees what the parent commits later, and leaves the parent's transaction and lock alone."""
        with filled(tmp_path / "s") as store:
            transaction = store.transaction()
            transaction.nodes.append(NodeBatch(np.ones((5, DIM))))
            ready, go = os.pipe(), os.pipe()
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    assert store.read_only
                    assert len(store.nodes) == 10, "the parent's uncommitted nodes"
                    with pytest.raises(ReadOnlyError):
                        store.nodes.append(NodeBatch(np.ones((1, DIM))))
                    with pytest.raises(AESGError):
                        transaction.commit()
                    os.write(ready[1], b"x")
                    os.read(go[0], 1)
                    assert len(store.nodes) == 15
                    assert store.verify() == []
                    store.close()
                    code = 0
                finally:
                    os._exit(code)
            os.read(ready[0], 1)
            transaction.commit()
            os.write(go[1], b"x")
            assert os.waitpid(pid, 0)[1] == 0
            store.attrs["still"] = "writable"
            for end in (*ready, *go):
                os.close(end)

    def test_a_fork_while_another_thread_holds_the_lock_does_not_hang(self, tmp_path):
        with filled(tmp_path / "s") as store:
            with store._lock:  # as if some thread were in the middle of a call
                holder = threading.Thread(target=lambda: len(store.nodes))
                holder.start()
                pid = os.fork()
                if pid == 0:
                    signal.alarm(10)
                    os._exit(0 if len(store.nodes) == 10 else 1)
            holder.join()
            assert os.waitpid(pid, 0)[1] == 0

    def test_the_lock_goes_with_the_parent_not_with_its_children(self, tmp_path):
        filled(tmp_path / "s").close()
        out = python(
            """
            import os, sys, time, aesg
            s = aesg.open(sys.argv[1])
            pid = os.fork()
            if pid == 0:
                os.close(1); os.close(2)
                time.sleep(30)
                os._exit(0)
            print(pid, flush=True)
            os._exit(0)
            """,
            tmp_path / "s",
        )
        try:
            aesg.open(tmp_path / "s").close()
        finally:
            os.kill(int(out), signal.SIGKILL)


class TestPickles:
    def test_a_pickled_handle_reads_in_the_other_process(self, tmp_path):
        with filled(tmp_path / "s") as store:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                assert pool.apply(count_nodes, (store,)) == (10, True)
            copy = pickle.loads(pickle.dumps(store))
            assert copy.read_only
            assert copy.url == store.url
            store.nodes.append(NodeBatch(np.ones((1, DIM))))
            assert len(copy.nodes) == 11
            copy.close()


def count_nodes(store):
    with store:
        return len(store.nodes), store.read_only


class TestThreads:
    def test_threads_write_one_after_another(self, tmp_path):
        with aesg.open(tmp_path / "s", vector_dim=DIM) as store:

            def work():
                for _ in range(30):
                    with store.transaction() as transaction:
                        rows = transaction.nodes.append(NodeBatch(np.ones((3, DIM))))
                        time.sleep(0.0005)
                        transaction.edges.append(rows, rows[::-1])
                    assert len(store.nodes) % 3 == 0

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(store.nodes) == 360
            assert store.edges.degrees(np.arange(360)).tolist() == [1] * 360
            assert store.verify() == []


class TestRecovery:
    @pytest.mark.parametrize("modes", ["a", "ar"])  # a reader recovers what a killed recovery left
    def test_a_recovery_that_is_killed_half_way_leaves_nothing_that_readers_take_for_the_store(self, tmp_path, modes):
        filled(tmp_path / "s").close()
        python(
            """
            import os, sys, numpy as np, aesg
            s = aesg.open(sys.argv[1])
            for k in range(5):
                s.nodes.write(np.arange(10), use_frequency=k)
            os._exit(0)
            """,
            tmp_path / "s",
        )
        for mode in modes:
            killed = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    textwrap.dedent(
                        """
                        import os, signal, sys, aesg
                        from aesg.backends.memmap import redo
                        real, calls = redo.replay, []
                        def replay(*args):
                            calls.append(1)
                            if len(calls) == 3:
                                os.kill(os.getpid(), signal.SIGKILL)
                            real(*args)
                        redo.replay = replay
                        aesg.open(sys.argv[1], mode=sys.argv[2])
                        """
                    ),
                    tmp_path / "s",
                    mode,
                ],
                timeout=60,
                check=False,
            )
            assert killed.returncode == -signal.SIGKILL
        with aesg.open(tmp_path / "s", mode="r") as store:
            assert set(store.nodes.read(np.arange(10), ["use_frequency"])["use_frequency"].tolist()) == {4}
