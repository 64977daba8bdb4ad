"""Processes around a memmap store, where the conformance suite cannot look: inside its locks and its recovery."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import aesg
from aesg.records import NodeBatch

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


class TestForks:
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
