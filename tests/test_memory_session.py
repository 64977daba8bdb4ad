"""AESGMemory as a user of its store: when it commits, what it shares, what it survives."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch

import aesg
from aesg import AESGConfig, AESGMemory
from aesg.errors import (
    AESGError,
    CapacityError,
    ClosedError,
    InvalidInputError,
    LockedError,
    ReadOnlyError,
    StorageError,
)
from aesg.memory import session as session_module

D = 8
NEVER = AESGConfig(vector_dim=D, commit_interval=3600)
SOON = NEVER.replace(commit_interval=0.05)
EYE = np.eye(D, dtype=np.float32)
PRELUDE = f"""
import os, signal, sys, threading, time
import numpy as np, torch
from aesg import AESGConfig, AESGMemory
from aesg.errors import AESGError, LockedError, ReadOnlyError
D = {D}
EYE = np.eye(D, dtype=np.float32)
NEVER = AESGConfig(vector_dim=D, commit_interval=3600)
"""


@pytest.fixture(params=["memory", "memmap"])
def place(request, tmp_path):
    return "memory:" if request.param == "memory" else str(tmp_path / "store")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "store")


def process(code, **options):
    """A process of its own that runs `code` after the prelude."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(code, returncode=0):
    child = process(code)
    out, err = child.communicate(timeout=120)
    assert child.returncode == returncode, err
    return out, err


def committed(path):
    """How many nodes another handle finds."""
    with aesg.open(path, mode="r") as store:
        assert store.verify() == []
        return len(store.nodes)


def eventually(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- when it commits -------------------------------------------------------------------------------------------------


def test_learning_is_not_committed_step_by_step(place):
    with AESGMemory(place, NEVER) as memory:
        memory.add_concepts(EYE)
        memory(EYE[0])
        assert len(memory.store.nodes) == 0
        assert memory.storage.node_count == D
        memory.save()
        assert len(memory.store.nodes) == D


@pytest.mark.parametrize(
    "learn",
    [
        lambda memory: memory(EYE[0]),
        lambda memory: memory.add_concepts(EYE[:1]),
        lambda memory: memory.cognitive_engine.create_sensory_concept(EYE[0]),
    ],
    ids=["retrieve", "add", "one"],
)
def test_the_timer_commits_when_nothing_else_happens(place, learn):
    with AESGMemory(place, SOON) as memory:
        learn(memory)
        eventually(lambda: len(memory.store.nodes) == 1)
        learn(memory)  # and there is a next time
        generation = memory.store.generation
        eventually(lambda: memory.store.generation > generation)


def test_the_shortest_interval_of_those_that_share_a_store_counts(path):
    with AESGMemory(path, NEVER) as patient, AESGMemory(path, SOON) as hasty:
        patient.add_concepts(EYE)
        hasty.cognitive_engine.create_sensory_concept(EYE[0])
        eventually(lambda: len(patient.store.nodes) == D + 1)
        timer = None
        for _ in range(3):
            patient.add_concepts(EYE)
            timer = timer or patient._handle.session._timer
            assert patient._handle.session._timer is timer


def test_commit_interval_zero_commits_every_step(place):
    others = set(threading.enumerate())  # libraries that other tests use have some, which may end meanwhile
    with AESGMemory(place, NEVER.replace(commit_interval=0)) as memory:
        memory(EYE[0])
        assert len(memory.store.nodes) == 1
        memory.cognitive_engine.create_sensory_concept(EYE[1])
        assert len(memory.store.nodes) == 2
        assert set(threading.enumerate()) <= others


@pytest.mark.parametrize("how", ["save", "update_topology", "close", "garbage"])
def test_what_commits(path, how):
    memory = AESGMemory(path, NEVER)
    memory.cognitive_engine.create_sensory_concept(EYE[0])
    assert committed(path) == 0
    if how == "garbage":
        del memory
        gc.collect()
    else:
        getattr(memory, how)()
    assert committed(path) == 1
    if how in ("close", "garbage"):
        aesg.open(path).close()  # nobody holds it
    else:
        memory.close()


def test_the_interpreters_exit_commits(path):
    run(f"memory = AESGMemory({path!r}, NEVER); memory.add_concepts(EYE)")
    assert committed(path) == D


def test_an_exit_by_an_exception_commits(path):
    run(f"memory = AESGMemory({path!r}, NEVER); memory.add_concepts(EYE); raise SystemExit(3)", returncode=3)
    assert committed(path) == D


def test_the_with_statement_commits_when_its_block_raises(path):
    def work():
        with AESGMemory(path, NEVER) as memory:
            memory.add_concepts(EYE)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert committed(path) == D


@pytest.mark.parametrize("round", range(3))
def test_a_killed_process_loses_no_more_than_the_interval(path, round):
    child = process(f"""
        memory = AESGMemory({path!r}, AESGConfig(vector_dim=D, commit_interval=0.2))
        start = time.monotonic()
        while True:
            rows = memory.add_concepts(np.random.randn(10, D))
            memory.connect(rows[:-1], rows[1:])
            memory(EYE[0])
            memory.cognitive_engine.create_sensory_concept(EYE[1])
            print(time.monotonic() - start, memory.storage.node_count, flush=True)
        """)
    lines = []
    for line in child.stdout:
        lines.append(tuple(map(float, line.split())))
        if lines[-1][0] > 1 + 0.07 * round:
            break
    child.send_signal(signal.SIGKILL)
    rest, _ = child.communicate()
    lines += [tuple(map(float, line.split())) for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    died = lines[-1][0]
    least = max(count for at, count in lines if at < died - 0.6)  # 0.2 s, and patience with a busy machine
    assert committed(path) >= least > 0
    with AESGMemory(path) as memory:
        history = memory.logger.get_history()
        assert len([event for event in history if event["type"] == "CREATE"]) == memory.storage.node_count


# --- failures --------------------------------------------------------------------------------------------------------


def fail_next_commit(memory, monkeypatch):
    store = memory.store
    real = store._commit

    def full(tables):
        monkeypatch.setattr(store, "_commit", real)
        store._rollback(tables)
        raise CapacityError("no space left on the imaginary disk")

    monkeypatch.setattr(store, "_commit", full)


def test_a_commit_that_fails_raises_from_save(place, monkeypatch):
    with AESGMemory(place, NEVER) as memory:
        memory.add_concepts(EYE[:2])
        memory.save()
        memory.add_concepts(EYE[2:])
        memory(EYE[5])
        fail_next_commit(memory, monkeypatch)
        with pytest.raises(CapacityError):
            memory.save()
        memory.save()
        assert memory.storage.node_count == 2
        assert memory(EYE[0]).activated_nodes == [0]  # the lane does not go on from rows that are gone
        assert memory.storage.edge_count == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda memory: memory(EYE[0]),
        lambda memory: memory.eval()(EYE[0]),
        lambda memory: memory.save(),
        lambda memory: memory.cognitive_engine.create_sensory_concept(EYE[0]),
        lambda memory: memory.storage.node_count,
    ],
    ids=["train", "eval", "save", "one", "count"],
)
def test_a_commit_that_fails_in_the_background_raises_from_the_next_call(place, monkeypatch, call):
    with AESGMemory(place, SOON) as memory:
        fail_next_commit(memory, monkeypatch)
        memory.add_concepts(EYE)
        eventually(lambda: memory._handle.session._failure is not None)
        with pytest.raises(CapacityError):
            call(memory)
        call(memory)  # once
        memory.train()
        memory.add_concepts(EYE)
        memory.save()
        assert len(memory.store.nodes) >= D


def test_a_commit_that_fails_in_close_raises_and_closes(path, monkeypatch):
    memory = AESGMemory(path, NEVER)
    memory.add_concepts(EYE)
    fail_next_commit(memory, monkeypatch)
    with pytest.raises(CapacityError):
        memory.close()
    assert committed(path) == 0
    with AESGMemory(path) as memory:
        memory.add_concepts(EYE)


def test_a_commit_that_fails_at_exit_is_heard_of(path):
    _, err = run(f"""
        from aesg.errors import CapacityError
        memory = AESGMemory({path!r}, NEVER)
        memory.add_concepts(EYE)
        def full(tables):
            raise CapacityError("no space left")
        memory.store._commit = full
        """)
    assert "CapacityError: no space left" in err


def test_a_write_that_fails_half_way(place, monkeypatch):
    with AESGMemory(place, NEVER) as memory:
        memory.add_concepts(EYE[:2])
        memory.save()
        memory.add_concepts(EYE[2:4])
        tables = memory._handle.session._transaction._tables
        monkeypatch.setattr(tables, "append_events", lambda events: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            memory.add_concepts(EYE[4:])
        assert memory.storage.node_count == 2  # half a step is never kept
        assert memory.add_concepts(EYE[2:]).tolist() == list(range(2, D))
        memory.save()
        assert len(memory.logger.get_history()) == D


def test_a_queue_that_cannot_be_appended(place, monkeypatch):
    with AESGMemory(place, NEVER) as memory:
        memory.cognitive_engine.create_sensory_concept(EYE[0])
        monkeypatch.setattr(session_module, "create_sensory", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            memory.save()
        monkeypatch.undo()
        assert memory.cognitive_engine.create_sensory_concept(EYE[1]) == 0
        assert memory.storage.node_count == 1


def test_a_refused_argument_costs_nothing(place):
    with AESGMemory(place, NEVER) as memory:
        memory.add_concepts(EYE, ids=range(D))
        with pytest.raises(AESGError):
            memory.add_concepts(EYE, ids=range(D))
        assert memory.storage.node_count == D


def test_a_full_disk(path):
    """For real: the system refuses to let a file grow."""
    run(f"""
        import resource
        memory = AESGMemory({path!r}, NEVER)
        memory.add_concepts(EYE)
        memory.save()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        try:
            memory.add_concepts(np.random.randn(100_000, D))
            memory.save()
        except AESGError as error:
            print(type(error).__name__)
        else:
            raise AssertionError
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert memory.storage.node_count == D
        memory.add_concepts(np.random.randn(100_000, D))
        """)
    assert committed(path) == D + 100_000


def test_a_store_that_failed_for_good_can_be_opened_again(path, monkeypatch):
    memory = AESGMemory(path, NEVER)
    memory.add_concepts(EYE)

    def fail():
        raise OSError("the disk is on fire")

    monkeypatch.setattr(memory._handle.session._transaction._tables.pending_nodes, "apply", fail)
    with pytest.raises(StorageError, match="open the store again"):
        memory.save()
    with pytest.raises(ClosedError):
        memory(EYE[0])
    with AESGMemory(path) as again:
        assert again.storage.node_count == D  # it was in the journal
        again.add_concepts(EYE)
    memory.close()
    assert committed(path) == 2 * D


# --- sharing ---------------------------------------------------------------------------------------------------------


def test_the_same_place_twice_in_one_process(path):
    first = AESGMemory(path, NEVER)
    first.add_concepts(EYE)
    second = AESGMemory(f"memmap://{path}")
    third = AESGMemory(os.path.relpath(path))
    assert second.storage.node_count == third.storage.node_count == D  # not committed, and seen
    assert second.config == NEVER
    second.add_concepts(EYE)
    assert first.storage.node_count == 2 * D
    first.close()
    second.close()
    with pytest.raises(ClosedError):
        first(EYE[0])
    third.add_concepts(EYE)
    third.close()
    assert committed(path) == 3 * D


def test_through_a_link(path, tmp_path):
    with AESGMemory(path, NEVER) as memory:
        (tmp_path / "link").symlink_to(path)
        with AESGMemory(tmp_path / "link") as linked:
            linked.add_concepts(EYE)
            assert memory.storage.node_count == D


def test_options_must_agree(path):
    with AESGMemory(path, NEVER), pytest.raises(InvalidInputError, match="durability=power_loss"):
        AESGMemory(f"memmap://{path}?durability=power_loss")
    with AESGMemory(f"memmap://{path}?durability=power_loss"), AESGMemory(path):
        pass


def test_stores_without_a_place_are_not_shared():
    with AESGMemory("memory:", NEVER) as one, AESGMemory("memory:", NEVER) as other:
        one.add_concepts(EYE)
        assert other.storage.node_count == 0


def test_a_reader_in_the_same_process_sees_commits(path):
    with AESGMemory(path, NEVER) as memory, AESGMemory(path, mode="r") as reader:
        memory.add_concepts(EYE)
        assert reader.storage.node_count == 0
        memory.save()
        reader.refresh()
        assert reader(EYE[2]).activated_nodes == [2]
        assert memory.refresh() is False


def test_a_second_process_is_told_what_to_do(path):
    with AESGMemory(path, NEVER) as memory:
        memory.add_concepts(EYE)
        memory.save()
        out, _ = run(f"""
            try:
                AESGMemory({path!r})
            except LockedError as error:
                print(error)
            with AESGMemory({path!r}, mode="r") as reader:
                print(reader.storage.node_count, reader(EYE[3]).activated_nodes)
            """)
    assert str(os.getpid()) in out
    assert "mode='r'" in out
    assert "rank 0" in out
    assert f"{D} [3]" in out


def test_the_user_has_it_open(path):
    with aesg.open(path, vector_dim=D), pytest.raises(LockedError):
        AESGMemory(path)
    AESGMemory(path).close()


# --- threads ---------------------------------------------------------------------------------------------------------


def test_threads_may_share_a_memory(place):
    errors = []
    with AESGMemory(place, SOON.replace(commit_interval=0.01)) as memory:
        memory.add_concepts(EYE)

        def work(number):
            try:
                for step in range(40):
                    row = (number + step) % D
                    match number % 4:
                        case 0:
                            assert memory(torch.tensor(EYE[row])).activated_nodes[0] == row
                        case 1:
                            assert [lane.activated_nodes[0] for lane in memory(EYE)] == list(range(D))
                        case 2:
                            memory.cognitive_engine.create_sensory_concept(np.zeros(D))
                            memory.connect([row], [memory.storage.node_count - 1], weight=0.01)
                        case 3:
                            memory.save() if step % 2 else memory.reset_state()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert memory.storage.node_count == D + 80
        assert memory.store.verify() == []


def test_readers_in_threads_while_one_learns(path):
    errors, stop = [], threading.Event()
    writer = AESGMemory(path, SOON.replace(commit_interval=0.01))
    writer.add_concepts(EYE)
    reader = AESGMemory(path).eval()

    def read():
        try:
            while not stop.is_set():
                assert reader(EYE[3]).activated_nodes[0] == 3
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        writer(EYE[np.random.default_rng(0).integers(D)])
        writer.add_concepts(-EYE[:1])
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    reader.close()
    writer.close()


def test_every_thread_has_lanes_of_its_own(place):
    with AESGMemory(place, NEVER) as memory:
        memory.add_concepts(EYE)
        memory.eval()
        memory(EYE[0])
        seen = []
        thread = threading.Thread(target=lambda: seen.append(memory(EYE[0] + EYE[1]).weights))
        thread.start()
        thread.join()
        memory.reset_state()
        assert torch.equal(seen[0], memory(EYE[0] + EYE[1]).weights)


# --- forks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["memmap", "memory"])
def test_a_forked_child_reads(place, path):
    where = path if place == "memmap" else "memory:"
    out, _ = run(f"""
        memory = AESGMemory({where!r}, NEVER)
        memory.add_concepts(EYE)
        memory.cognitive_engine.create_sensory_concept(-EYE[0])
        pid = os.fork()
        if pid == 0:
            assert memory.training
            assert memory(EYE[3]).activated_nodes == [3]
            assert memory.storage.node_count == D + 1
            assert not memory.storage.nodes["use_frequency"].any()
            for write in (
                lambda: memory.add_concepts(EYE),
                memory.update_topology,
                lambda: memory.cognitive_engine.create_sensory_concept(EYE[0]),
            ):
                try:
                    write()
                except ReadOnlyError:
                    pass
                else:
                    raise AssertionError
            memory.save()
            if {place == "memmap"}:
                try:
                    AESGMemory({where!r})
                except LockedError:
                    pass
                else:
                    raise AssertionError
                assert AESGMemory({where!r}, mode="r").storage.node_count == D + 1
            print("child", flush=True)
            sys.exit()
        assert os.waitpid(pid, 0)[1] == 0
        memory.add_concepts(EYE)
        memory.save()
        print("parent", memory.storage.node_count)
        """)
    assert out.split() == ["child", "parent", str(2 * D + 1)]
    if place == "memmap":
        assert committed(path) == 2 * D + 1


def test_forks_while_threads_learn(path):
    """No lock is copied in a locked state, and the children change nothing."""
    run(f"""
        memory = AESGMemory({path!r}, AESGConfig(vector_dim=D, commit_interval=0.01))
        memory.add_concepts(EYE)
        reader = AESGMemory({path!r}).eval()
        stop = threading.Event()
        def learn():
            while not stop.is_set():
                memory(EYE[np.random.randint(D)])
                memory.add_concepts(-EYE[:2])
        def read():
            while not stop.is_set():
                reader(EYE[0])
        threads = [threading.Thread(target=f) for f in (learn, learn, read)]
        for thread in threads:
            thread.start()
        for _ in range(30):
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                assert memory(EYE[3]).activated_nodes[0] == 3
                assert reader(EYE[4]).activated_nodes[0] == 4
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        count = memory.storage.node_count
        memory.close(), reader.close()
        with AESGMemory({path!r}) as memory:
            assert memory.storage.node_count == count
            assert memory.store.verify() == []
        """)


def test_a_commit_that_fails_before_a_fork_raises_from_the_next_call(path, monkeypatch):
    memory = AESGMemory(path, NEVER)
    memory.add_concepts(EYE)
    fail_next_commit(memory, monkeypatch)
    session_module._before_fork()
    session_module._after_fork_in_parent()
    with pytest.raises(CapacityError):
        memory.save()
    memory.close()


def test_readers_errors_name_the_reason(path):
    with AESGMemory(path, NEVER) as memory:
        session = memory._handle.session
        session.after_fork_in_child()
        with pytest.raises(ReadOnlyError, match="forked"):
            memory.add_concepts(EYE)
        session._forked = False
