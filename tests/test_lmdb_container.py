"""The LMDB container: blocks and heads, views and snapshots, several handles, processes and threads, full disks."""

import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb
import numpy as np
import pytest
from lmdb_support import BYTES, COLUMNS, NUMBERS, VECTORS, opened, put, sealed

import aesg
from aesg.backends.blocks.container import Changes
from aesg.backends.lmdb import DEFAULT_MAP_SIZE, container, environment, pages, promises, recognises
from aesg.backends.lmdb.errors import translated
from aesg.errors import (
    AESGError,
    CapacityError,
    ClosedError,
    ConflictError,
    CorruptionError,
    InvalidInputError,
    LockedError,
    NotFoundError,
    StorageError,
)
from aesg.protocols import Durability

BIG = 70_000


def numbers(n, start=0):
    return np.arange(start, start + n, dtype="<i8")


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def handles(directory):
    """Opens containers, and closes them after the test."""
    made = []

    def make(**kwargs):
        made.append(opened(directory, **kwargs))
        return made[-1]

    yield make
    for one in reversed(made):
        one.close()


@contextmanager
def child(code, directory):
    """Python in another process, with `directory` in its arguments; answers with one line for each line."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )

    def ask(line="go"):
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    try:
        yield process, ask
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.wait(30)
        process.stdout.close()


READER = """
import sys
from lmdb_support import NUMBERS, opened
reader = opened(sys.argv[1], writing=False)
for line in sys.stdin:
    said = line.split()
    if said[0] == "refresh":
        print(reader.refresh(), flush=True)
    elif said[0] == "close":
        reader.close()
        print("closed", flush=True)
        break
    else:
        block = reader.get(NUMBERS, int(said[1]), int(said[2]))
        print("None" if block is None else int(block.sum()), flush=True)
"""


def forked(act):
    """Run in a forked child; what it returned, as JSON."""
    get, give = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(get)
        try:
            said = {"value": act()}
        except BaseException as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        os.write(give, json.dumps(said).encode())
        os._exit(0)
    os.close(give)
    with os.fdopen(get, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status}"
    said = json.loads(said)
    assert "error" not in said, said["error"]
    return said["value"]


# --- blocks and heads ------------------------------------------------------------------------------------------------


def test_blocks_come_back_as_they_were_put(handles):
    writer = handles()
    assert writer.head() is None
    assert writer.get(NUMBERS, 0, 5) is None
    rng = np.random.default_rng(0)
    vectors = rng.random((40, 8), np.float32)
    blocks = {(NUMBERS, 0): numbers(5), (NUMBERS, 1): numbers(9000), (VECTORS, 0): vectors, (VECTORS, 300): vectors[:1]}
    put(writer, blocks, a=1, nested={"x": [1, 2.5, None, "ä"]})
    reader = handles(writing=False)
    for one in (writer, reader):
        assert one.head() == {"a": 1, "nested": {"x": [1, 2.5, None, "ä"]}}
        for (column, number), block in blocks.items():
            found = one.get(column, number, len(block))
            assert found.dtype == block.dtype
            assert np.array_equal(found, block)
            assert found.flags.c_contiguous
            assert not found.flags.writeable
            assert found.ctypes.data % 16 == 0
        assert one.get(NUMBERS, 2, 5) is None
        assert one.get(VECTORS, 1, 5) is None
    assert writer.resident


def test_a_block_of_another_size_than_expected_is_given_as_it_is(handles):
    writer = handles()
    put(writer, {(NUMBERS, 0): numbers(5)})
    found = writer.get(NUMBERS, 0, 6)
    assert found.nbytes == 40
    assert found.shape != (6,)


def test_large_blocks_are_views_of_the_map_and_small_ones_are_copies(handles):
    """A view stays where it is, and what it was, while others change around it; a copy needs not."""
    writer = handles()
    put(writer, {(NUMBERS, 0): numbers(BIG // 8), (NUMBERS, 1): numbers(20)})
    large, small = writer.get(NUMBERS, 0, BIG // 8), writer.get(NUMBERS, 1, 20)
    assert large.base is not None
    assert small.base is None
    place = large.ctypes.data
    for k in range(30):
        put(writer, {(NUMBERS, 2 + k % 5): numbers(BIG // 8, k), (NUMBERS, 10 + k): numbers(3, k)}, k=k)
        assert writer.get(NUMBERS, 0, BIG // 8).ctypes.data == place
    assert np.array_equal(large, numbers(BIG // 8))
    assert np.array_equal(small, numbers(20))


@pytest.mark.parametrize("size", [1, 8, 2000, 2040, 4079, 4080, 4081, 65520, 65521, 300_000])
def test_every_size_of_block(handles, size):
    writer = handles()
    for start in (0, 5):
        block = sealed(BYTES, size + start, max(size, 8))[:size]
        put(writer, {(BYTES, 7): block})
        assert np.array_equal(writer.get(BYTES, 7, size), block)


def test_dropped_blocks_are_gone_and_others_stay(handles):
    writer = handles()
    put(writer, {(BYTES, k): sealed(BYTES, k, 5000) for k in range(20)})
    put(writer, {(BYTES, 3): sealed(BYTES, 3, 60)}, [(BYTES, k) for k in range(10, 20)], after=True)
    assert [writer.get(BYTES, k, 5000) is not None for k in range(20)] == [True] * 10 + [False] * 10
    assert len(writer.get(BYTES, 3, 60)) == 60
    with pytest.raises(CorruptionError, match="block 15 of nodes/bytes is missing"):
        put(writer, {}, [(BYTES, 15)])
    assert writer.head() == {"after": True}


def test_blocks_of_a_column_lie_side_by_side_in_order(handles, directory):
    writer = handles()
    put(writer, {(column, number): numbers(1) for column in (VECTORS, NUMBERS) for number in (300, 2, 70_000)})
    writer.close()
    with lmdb.open(str(directory)) as raw, raw.begin() as txn:
        keys = [bytes(key) for key, _ in txn.cursor()]
    assert [key.split(b"\0")[0] for key in keys] == [b""] + [b"nodes/numbers"] * 3 + [b"nodes/vector"] * 3
    assert [int.from_bytes(key[-4:], "big") for key in keys[1:]] == [2, 300, 70_000] * 2


def test_many_blocks_in_one_commit(handles):
    """More than LMDB keeps dirty without spilling is not tried here; that a commit may be large is."""
    writer = handles()
    blocks = {(BYTES, k): np.full(65_000, k % 256, np.uint8) for k in range(800)}
    put(writer, blocks)
    assert all((writer.get(BYTES, k, 65_000) == k % 256).all() for k in range(0, 800, 37))


# --- views -----------------------------------------------------------------------------------------------------------


def test_a_writer_sees_its_commits_and_a_reader_its_view(handles):
    writer = handles()
    put(writer, {(NUMBERS, 0): numbers(BIG)}, k=0)
    reader = handles(writing=False)
    view, version = reader.get(NUMBERS, 0, BIG), reader.version
    for k in range(1, 8):
        before = writer.version
        put(writer, {(NUMBERS, 0): numbers(BIG, k)}, k=k)
        assert writer.version != before
        assert writer.get(NUMBERS, 0, BIG)[0] == k
        assert writer.refresh() is False
    assert reader.head() == {"k": 0}
    assert np.array_equal(view, numbers(BIG))
    assert reader.version == version
    assert reader.refresh() is True
    assert reader.version != version
    assert reader.head() == {"k": 7}
    assert reader.get(NUMBERS, 0, BIG)[0] == 7
    assert reader.refresh() is False


def test_snapshots_stay_whatever_is_committed(handles):
    writer = handles()
    snapshots = []
    for k in range(6):
        put(writer, {(NUMBERS, 0): numbers(BIG, k), (NUMBERS, 1): numbers(4, k)}, k=k)
        snapshots.append(writer.snapshot())
    reader = handles(writing=False)
    old = reader.snapshot()
    for k in range(6, 40):
        put(writer, {(NUMBERS, 0): numbers(BIG, k), (NUMBERS, 1): numbers(4, k)}, k=k)
    for k, snapshot in enumerate(snapshots):
        assert snapshot.head() == {"k": k}
        assert np.array_equal(snapshot.get(NUMBERS, 0, BIG), numbers(BIG, k))
        assert np.array_equal(snapshot.get(NUMBERS, 1, 4), numbers(4, k))
    assert reader.refresh()
    assert old.head() == {"k": 5}, "also of a reader that has moved on"
    for snapshot in (*snapshots, old):
        snapshot.close()
        with pytest.raises(ClosedError):
            snapshot.head()


def test_the_snapshot_of_an_old_view_is_of_that_view(handles):
    writer = handles()
    put(writer, {}, k=0)
    reader = handles(writing=False)
    put(writer, {}, k=1)
    snapshot = reader.snapshot()
    reader.close()
    assert snapshot.head() == {"k": 0}
    snapshot.close()


def test_an_idle_writer_keeps_no_pages_from_being_used_again(handles, directory):
    """Else a file that is rewritten over and over would grow for ever."""
    writer = handles()
    for k in range(4):
        put(writer, {(NUMBERS, 0): numbers(BIG)}, k=k)
    size = (directory / "data.mdb").stat().st_size
    for k in range(30):
        put(writer, {(NUMBERS, 0): numbers(BIG)}, k=k)
    assert (directory / "data.mdb").stat().st_size == size
    assert [reader.commits_behind for reader in writer._environment.readers()] == [0]


# --- several handles of one process ----------------------------------------------------------------------------------


def test_handles_of_a_process_share_an_environment_and_the_last_one_closes_it(handles, directory, tmp_path):
    writer = handles()
    put(writer, {(NUMBERS, 0): numbers(9)}, k=0)
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    reader = opened(tmp_path / "elsewhere" / "store", writing=False)
    assert reader._environment is writer._environment
    writer.close()
    assert np.array_equal(reader.get(NUMBERS, 0, 9), numbers(9))
    again = handles()
    put(again, {(NUMBERS, 0): numbers(9, 1)}, k=1)
    again.close()
    assert reader.refresh()
    assert reader.head() == {"k": 1}
    reader.close()
    assert not environment._opened
    last = handles()
    assert last.head() == {"k": 1}


def test_a_second_writer_is_refused_and_told_who(handles, directory):
    writer = handles()
    with pytest.raises(LockedError, match=f"this process .pid {os.getpid()}"):
        handles()
    with child("import sys; sys.stdin.readline()", directory):
        writer.close()
        handles().close()
    code = (
        "import sys\nfrom lmdb_support import opened\nw = opened(sys.argv[1])\nfor l in sys.stdin: print(1, flush=True)"
    )
    with child(code, directory) as (process, ask):
        assert ask() == "1"
        with pytest.raises(LockedError, match=f"another process .pid {process.pid}"):
            handles()


def test_a_writer_with_other_settings_than_the_process_has_is_refused(handles):
    handles(sync=False).close()
    reader = handles(writing=False, sync=False)
    with pytest.raises(LockedError, match="sync=false"):
        handles(sync=True)
    with pytest.raises(LockedError, match="map_size"):
        handles(map_size=1 << 30)
    handles(sync=False).close()
    reader.close()
    handles(writing=False, sync=True)
    handles(sync=False).close()  # more than was asked for is no harm
    assert handles(sync=True).head() is None


def test_commits_from_any_thread(handles):
    writer = handles()
    errors, lock = [], threading.Lock()

    def work(thread):
        try:
            for k in range(20):
                with lock:
                    put(writer, {(NUMBERS, thread): numbers(BIG // 8, k)}, of=thread)
                    assert writer.get(NUMBERS, thread, BIG // 8)[0] == k
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [int(writer.get(NUMBERS, k, BIG // 8)[0]) for k in range(4)] == [19] * 4


def test_readers_read_while_a_thread_commits(handles):
    writer = handles()
    put(writer, {(NUMBERS, k): numbers(BIG, 0) for k in range(3)}, k=0)
    stop, errors = threading.Event(), []

    def read():
        try:
            reader = opened(writer._directory, writing=False)
            while not stop.is_set():
                firsts = {int(reader.get(NUMBERS, k, BIG)[-1]) for k in range(3)}
                assert len(firsts) == 1, "blocks of two commits"
                assert firsts == {reader.head()["k"] + BIG - 1}
                reader.refresh()
            reader.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(1, 60):
        put(writer, {(NUMBERS, k): numbers(BIG, step) for k in range(3)}, k=step)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []


def test_what_was_closed_says_so(handles):
    writer = handles()
    writer.close()
    for act in (writer.head, writer.stats, writer.refresh, lambda: writer.get(NUMBERS, 0, 1), lambda: put(writer, {})):
        with pytest.raises(ClosedError):
            act()


# --- several processes -----------------------------------------------------------------------------------------------


def test_a_reader_in_another_process_keeps_its_view_until_it_refreshes(handles, directory):
    writer = handles()
    put(writer, {(NUMBERS, 0): numbers(BIG)}, k=0)
    expected = int(numbers(BIG).sum())
    with child(READER, directory) as (process, ask):
        assert ask(f"get 0 {BIG}") == str(expected)
        for k in range(1, 50):
            put(writer, {(NUMBERS, 0): numbers(BIG, k), (NUMBERS, k): numbers(BIG // 8, k)}, k=k)
        assert ask(f"get 0 {BIG}") == str(expected)
        assert ask(f"get 49 {BIG // 8}") == "None"
        readers = {reader["pid"]: reader["commits_behind"] for reader in writer.stats()["readers"]}
        assert readers[process.pid] == 49
        assert writer.stats()["oldest_reader_commits_behind"] == 49
        assert ask("refresh") == "True"
        assert ask("refresh") == "False"
        assert ask(f"get 0 {BIG}") == str(expected + 49 * BIG)
        assert ask("close") == "closed"
        assert all(reader["pid"] == os.getpid() for reader in writer.stats()["readers"])


def test_a_killed_reader_is_noticed_and_forgotten(handles, directory):
    writer = handles()
    put(writer, {(NUMBERS, 0): numbers(BIG)}, k=0)
    writer.close()
    keeper = handles(writing=False)  # else the next one would be alone, and begin a new table of readers
    with child(READER, directory) as (process, ask):
        ask("get 0 5")
        process.send_signal(signal.SIGKILL)
        process.wait()
    again = handles()
    assert again.stats()["stale_readers_cleared"] == 1
    assert [reader["pid"] for reader in again.stats()["readers"]] == [os.getpid()] * 2
    keeper.close()


def test_a_living_reader_that_is_far_behind_is_warned_of_when_a_writer_opens(handles, directory, caplog, monkeypatch):
    monkeypatch.setattr(environment, "FAR_BEHIND", 5)
    writer = handles()
    put(writer, {}, k=0)
    with child(READER, directory) as (process, ask):
        ask("get 0 5")
        for k in range(5):
            put(writer, {}, k=k)
        writer.close()
        with caplog.at_level(logging.WARNING, "aesg"):
            handles().close()
        assert len(caplog.records) == 1
        assert f"process {process.pid} is 5 commits behind" in caplog.records[0].getMessage()
        ask("refresh")
        caplog.clear()
        handles().close()
        assert not caplog.records


def test_a_writer_that_was_killed_leaves_its_last_commit(directory, handles):
    code = """
import sys
from lmdb_support import NUMBERS, numbers_of, opened, put
writer = opened(sys.argv[1])
k = 0
while True:
    put(writer, {(NUMBERS, n): numbers_of(20_000, k) for n in range(3)}, k=k)
    print(k, flush=True)
    k += 1
"""
    for seconds in (0.05, 0.1, 0.03, 0.2):
        shutil.rmtree(directory, ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(directory)], stdout=subprocess.PIPE, cwd=Path(__file__).parent
        )
        process.stdout.readline()
        time.sleep(seconds)
        process.kill()
        said = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        writer = opened(directory)
        k = writer.head()["k"]
        assert k >= (int(said[-1]) if said else 0)
        assert [int(writer.get(NUMBERS, n, 20_000)[0]) for n in range(3)] == [k] * 3
        put(writer, {(NUMBERS, 0): numbers(9)}, k=k + 1)
        assert writer.verify() == []
        writer.close()


def test_another_program_that_writes_is_a_conflict(handles, directory):
    writer = handles()
    put(writer, {(NUMBERS, 0): numbers(9)}, k=0)
    code = """
import lmdb, sys
with lmdb.open(sys.argv[1], map_size=1 << 30) as other, other.begin(write=True) as txn:
    txn.put(b"zzz", b"mine")
"""
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True)
    with pytest.raises(ConflictError, match="another program"):
        put(writer, {(NUMBERS, 0): numbers(9, 1)}, k=1)
    assert np.array_equal(writer.get(NUMBERS, 0, 9), numbers(9))
    with pytest.raises(CorruptionError, match="older root"):
        writer.close() or handles()


def test_copying_the_lock_file_does_not_make_others_think_they_are_alone(handles, directory, tmp_path):
    """A process that closes any descriptor of a file loses its fcntl locks on it, LMDB's among them."""
    if not hasattr(fcntl, "F_OFD_SETLK"):
        pytest.skip("this system has no locks of open file descriptions")
    writer = handles()
    put(writer, {(NUMBERS, 0): numbers(BIG)}, k=0)
    snapshot = writer.snapshot()
    shutil.copytree(directory, tmp_path / "copy")
    with child(READER, directory) as (process, ask):
        assert ask("get 0 5") != ""
        assert sorted({reader["pid"] for reader in writer.stats()["readers"]}) == sorted({os.getpid(), process.pid})
        for k in range(1, 20):
            put(writer, {(NUMBERS, 0): numbers(BIG, k)}, k=k)
        assert np.array_equal(snapshot.get(NUMBERS, 0, BIG), numbers(BIG))
        assert ask(f"get 0 {BIG}") == str(int(numbers(BIG).sum()))
    snapshot.close()


def test_who_is_opening_or_compacting_is_waited_for_with_patience(handles, directory, monkeypatch):
    handles().close()
    monkeypatch.setattr(environment, "_PATIENCE", 0.1)
    gate = os.open(directory, os.O_RDONLY)
    fcntl.flock(gate, fcntl.LOCK_EX)
    with pytest.raises(LockedError, match="opening or compacting"):
        handles()
    os.close(gate)
    handles()


# --- forks -----------------------------------------------------------------------------------------------------------


def test_a_forked_child_opens_its_own_and_the_parent_goes_on(handles):
    writer = handles()
    put(writer, {(NUMBERS, 0): numbers(BIG)}, k=0)
    snapshot = writer.snapshot()

    def inside():
        writer.forked()
        with pytest.raises(ClosedError):
            writer.get(NUMBERS, 0, BIG)
        with pytest.raises(ClosedError):
            snapshot.get(NUMBERS, 0, BIG)
        own = writer.reopen()
        assert own.head() == {"k": 0}
        sums = [int(own.get(NUMBERS, 0, BIG).sum())]
        snapshot.close()
        writer.close()
        own.close()
        again = opened(writer._directory, writing=False)
        with pytest.raises(LockedError):
            opened(writer._directory)
        sums.append(int(again.get(NUMBERS, 0, BIG).sum()))
        again.close()
        return sums

    assert forked(inside) == [int(numbers(BIG).sum())] * 2
    for k in range(1, 30):
        put(writer, {(NUMBERS, 0): numbers(BIG, k)}, k=k)
    assert np.array_equal(snapshot.get(NUMBERS, 0, BIG), numbers(BIG)), "the child took its place among the readers"
    assert writer.get(NUMBERS, 0, BIG)[0] == 29
    snapshot.close()


def test_a_child_that_ends_like_any_program_takes_nothing_from_its_parent(directory):
    """The inherited objects are deleted when the child's interpreter ends; the parent's snapshot stays protected."""
    code = """
import os, sys
import numpy as np
from lmdb_support import NUMBERS, numbers_of, opened, put
writer = opened(sys.argv[1])
put(writer, {(NUMBERS, 0): numbers_of(70_000, 0)}, k=0)
snapshot = writer.snapshot()
for ending in ("at once", "after reopening", "forgetting"):
    pid = os.fork()
    if pid == 0:
        if ending != "at once":
            writer.forked()
        if ending == "after reopening":
            own = writer.reopen()
            assert own.head() is not None
        if ending == "forgetting":
            del writer, snapshot
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0, ending
    for k in range(1, 20):
        put(writer, {(NUMBERS, 0): numbers_of(70_000, k)}, k=k)
    assert np.array_equal(snapshot.get(NUMBERS, 0, 70_000), numbers_of(70_000, 0)), ending
    assert sorted(reader.commits_behind for reader in writer._environment.readers()) [0] == 0
snapshot.close()
writer.close()
print("well")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(directory)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "well", "")


def test_forks_in_the_midst_of_other_threads_work(handles):
    """A thread that is inside LMDB when another forks does not keep the child from opening."""
    writer = handles()
    put(writer, {(NUMBERS, 0): numbers(BIG)}, k=0)
    stop, errors = threading.Event(), []

    def commit():
        k = 0
        while not stop.is_set():
            k += 1
            put(writer, {(NUMBERS, 1): numbers(BIG, k)}, k=k)

    def read():
        try:
            reader = opened(writer._directory, writing=False)
            while not stop.is_set():
                assert int(reader.get(NUMBERS, 0, BIG)[-1]) == BIG - 1
                reader.refresh()
            reader.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=commit), *(threading.Thread(target=read) for _ in range(2))]
    for thread in threads:
        thread.start()

    def inside():
        writer.forked()
        own = writer.reopen()
        total = int(own.get(NUMBERS, 0, BIG).sum())
        own.close()
        return total

    try:
        for _ in range(15):
            assert forked(inside) == int(numbers(BIG).sum())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert writer.verify() == []


# --- no room ---------------------------------------------------------------------------------------------------------


def test_a_map_that_is_full_is_a_capacity_error_and_nothing_is_lost(handles):
    writer = handles(map_size=1 << 20)
    put(writer, {(NUMBERS, 0): numbers(9000)}, k=0)
    version = writer.version
    with pytest.raises(CapacityError, match="map_size"):
        put(writer, {(NUMBERS, k): numbers(9000) for k in range(1, 20)}, k=1)
    assert writer.version == version
    assert writer.head() == {"k": 0}
    put(writer, {(NUMBERS, k): numbers(9000, k) for k in range(1, 5)}, k=2)
    assert int(writer.get(NUMBERS, 4, 9000)[0]) == 4
    writer.close()
    larger = handles()
    put(larger, {(NUMBERS, k): numbers(9000) for k in range(1, 20)}, k=3)
    assert larger.verify() == []


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip("no small file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(folder, leave):
    status = os.statvfs(folder)
    with open(folder / "ballast", "ab") as file:
        file.write(bytes(max(0, status.f_bavail * status.f_bsize - leave)))


@pytest.mark.parametrize("leave", [0, 4096, 8192, 20_000, 100_000, 400_000])
@pytest.mark.parametrize("sync", [False, True])
def test_a_full_disk_is_a_capacity_error_and_nothing_is_lost(disk, leave, sync):
    writer = opened(disk / "store", sync=sync)
    put(writer, {(NUMBERS, k): numbers(9000, k) for k in range(4)}, k=0)
    fill_up(disk, leave)
    for size in (60_000, 500_000):
        with pytest.raises(CapacityError, match="nothing was lost"):
            put(writer, {(NUMBERS, k): numbers(size // 8) for k in range(10)}, k=1)
        assert writer.head() == {"k": 0}
        assert [int(writer.get(NUMBERS, k, 9000)[0]) for k in range(4)] == [0, 1, 2, 3]
    reader = opened(disk / "store", writing=False)
    assert reader.head() == {"k": 0}
    reader.close()
    (disk / "ballast").unlink()
    put(writer, {(NUMBERS, k): numbers(9000, 5 + k) for k in range(4)}, k=2)
    assert writer.verify() == []
    writer.close()
    writer = opened(disk / "store", sync=sync)
    assert writer.head() == {"k": 2}
    assert [int(writer.get(NUMBERS, k, 9000)[0]) for k in range(4)] == [5, 6, 7, 8]
    writer.close()


def test_creating_on_a_full_disk(disk):
    fill_up(disk, 0)
    with pytest.raises(CapacityError):
        aesg.open(f"lmdb://{disk}/store", vector_dim=4)
    (disk / "ballast").unlink()
    with aesg.open(f"lmdb://{disk}/store", vector_dim=4) as store:
        assert store.verify() == []


def test_a_limit_on_the_size_of_files(directory):
    code = """
import resource, sys
from lmdb_support import NUMBERS, numbers_of, opened, put
from aesg.errors import CapacityError
writer = opened(sys.argv[1])
put(writer, {(NUMBERS, 0): numbers_of(9000, 0)}, k=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
for size in (200, 30_000):
    try:
        put(writer, {(NUMBERS, k): numbers_of(10 * size, 0) for k in range(40)}, k=1)
    except CapacityError:
        print("full")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
put(writer, {(NUMBERS, 0): numbers_of(9000, 7)}, k=2)
print(writer.head(), int(writer.get(NUMBERS, 0, 9000)[0]), writer.verify())
writer.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert (done.stdout.splitlines(), done.stderr) == (["full", "full", "{'k': 2} 7 []"], "")


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (lmdb.MapFullError("a"), CapacityError),
        (lmdb.DiskError("a"), CapacityError),
        (lmdb.TxnFullError("a"), CapacityError),
        (lmdb.MapResizedError("a"), StorageError),
        (lmdb.PanicError("a"), StorageError),
        (lmdb.ReadersFullError("a"), StorageError),
        (lmdb.CorruptedError("a"), CorruptionError),
        (lmdb.PageNotFoundError("a"), CorruptionError),
        (lmdb.InvalidError("a"), CorruptionError),
        (lmdb.Error("a"), StorageError),
    ],
)
def test_errors_of_lmdb_become_ours(error, becomes):
    assert type(translated(error, "doing this to that")) is becomes
    assert "doing this to that" in str(translated(error, "doing this to that"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_what_the_system_says_of_full_disks_is_a_capacity_error(code):
    error = lmdb.Error("a")
    error.code = code
    assert type(translated(error, "committing")) is CapacityError


def test_an_error_of_the_disk_is_not_taken_for_a_full_one(handles, monkeypatch):
    writer = handles()
    put(writer, {}, k=0)

    class Failing:
        def begin(self, **_):
            error = lmdb.Error("mdb_txn_commit: Input/output error")
            error.code = errno.EIO
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(environment.Environment, "handle", Failing())
        with pytest.raises(StorageError, match="Input/output error"):
            put(writer, {}, k=1)
    put(writer, {}, k=2)
    assert writer.head() == {"k": 2}


# --- reclaiming ------------------------------------------------------------------------------------------------------


def grown(handles):
    """A writer of a store that is mostly free pages."""
    writer = handles()
    put(writer, {(BYTES, k): np.full(50_000, k, np.uint8) for k in range(40)}, k=0)
    put(writer, {}, [(BYTES, k) for k in range(2, 40)], k=1)
    return writer


def test_reclaiming_makes_the_file_smaller(handles, directory):
    writer = grown(handles)
    before, version = (directory / "data.mdb").stat().st_size, writer.version
    assert writer.stats()["free_bytes"] > before // 2
    writer.reclaim()
    assert (directory / "data.mdb").stat().st_size < before // 4
    assert writer.version != version
    assert writer.stats()["free_pages"] == 0
    assert "not_reclaimed" not in writer.stats()
    assert writer.verify() == []
    assert writer.head() == {"k": 1}
    assert [int(writer.get(BYTES, k, 50_000)[0]) for k in range(2)] == [0, 1]
    for k in range(2, 5):
        put(writer, {(BYTES, k): np.full(50_000, k, np.uint8)}, k=k)
    assert writer.verify() == []
    writer.close()
    again = handles()
    assert again.head() == {"k": 4}
    assert int(again.get(BYTES, 4, 50_000)[0]) == 4
    assert not (directory / container.COMPACTING).exists()


def test_reclaiming_right_after_reclaiming_does_nothing(handles):
    writer = grown(handles)
    writer.reclaim()
    version = writer.version
    writer.reclaim()
    assert writer.version == version


def test_a_compacted_store_opens_again_before_anything_is_committed_to_it(handles):
    writer = grown(handles)
    writer.reclaim()
    writer.close()
    assert handles(writing=False).head() == {"k": 1}
    assert handles().head() == {"k": 1}


@pytest.mark.parametrize("other", ["reader", "snapshot"])
def test_nothing_is_reclaimed_under_another_handle(handles, directory, other):
    writer = grown(handles)
    size = (directory / "data.mdb").stat().st_size
    second = handles(writing=False) if other == "reader" else writer.snapshot()
    block = second.get(BYTES, 1, 50_000)
    version = writer.version
    writer.reclaim()
    assert (directory / "data.mdb").stat().st_size == size
    assert writer.version == version
    assert "others have the store open" in writer.stats()["not_reclaimed"]
    assert (block == 1).all()
    second.close()
    writer.reclaim()
    assert (directory / "data.mdb").stat().st_size < size
    assert "not_reclaimed" not in writer.stats()


def test_nothing_is_reclaimed_under_another_process(handles, directory):
    writer = grown(handles)
    size = (directory / "data.mdb").stat().st_size
    with child(READER, directory) as (_, ask):
        assert ask("get 0 5") == "None"
        writer.reclaim()
        assert (directory / "data.mdb").stat().st_size == size
        assert "others have the store open" in writer.stats()["not_reclaimed"]
        assert ask("close") == "closed"
    writer.reclaim()
    assert (directory / "data.mdb").stat().st_size < size


def test_others_can_open_after_reclaiming(handles, directory):
    writer = grown(handles)
    writer.reclaim()
    put(writer, {(NUMBERS, 0): numbers(20)}, k=5)
    with child(READER, directory) as (_, ask):
        assert ask("get 0 20") == "190"


@pytest.mark.parametrize("step", ["check", "sync", "replace", "reopen"])
def test_reclaiming_that_fails_half_way_loses_nothing(handles, directory, monkeypatch, caplog, step):
    writer = grown(handles)

    def failing(*args, **kwargs):
        raise OSError(errno.EIO, "the disk is broken")

    with monkeypatch.context() as patch:
        if step == "check":
            patch.setattr(pages, "check", failing)
        elif step == "sync":
            patch.setattr(os, "fsync", failing)
        elif step == "replace":
            patch.setattr(os, "replace", failing)
        else:
            patch.setattr(lmdb, "open", failing)
        writer.reclaim()
        assert "the disk is broken" in writer._reclaimed
        assert "could not be made smaller" in caplog.text
        if step == "reopen":
            with pytest.raises(StorageError, match="the disk is broken"):
                writer.head()
    assert writer.head() == {"k": 1}
    put(writer, {(BYTES, 2): np.full(50_000, 2, np.uint8)}, k=2)
    assert [int(writer.get(BYTES, k, 50_000)[0]) for k in range(3)] == [0, 1, 2]
    assert writer.verify() == []
    assert not (directory / container.COMPACTING).exists()


@pytest.mark.parametrize("step", ["after the copy", "after the exchange"])
def test_reclaiming_that_is_killed_half_way_loses_nothing(handles, directory, step):
    grown(handles).close()
    code = f"""
import os, sys
from lmdb_support import opened
real = os.replace
def replace(one, other):
    if {step!r} == "after the exchange":
        real(one, other)
    os.kill(os.getpid(), 9)
os.replace = replace
opened(sys.argv[1]).reclaim()
"""
    done = subprocess.run([sys.executable, "-c", code, str(directory)], cwd=Path(__file__).parent)
    assert done.returncode == -signal.SIGKILL
    assert (directory / container.COMPACTING).exists() is (step == "after the copy")
    writer = handles()
    assert not (directory / container.COMPACTING).exists()
    assert writer.head() == {"k": 1}
    assert [int(writer.get(BYTES, k, 50_000)[0]) for k in range(2)] == [0, 1]
    assert writer.verify() == []


def test_no_room_for_the_copy_is_told_and_no_error(disk):
    writer = opened(disk / "store")
    put(writer, {(BYTES, k): np.full(50_000, k, np.uint8) for k in range(40)}, k=0)
    put(writer, {}, [(BYTES, k) for k in range(20, 40)], k=1)
    fill_up(disk, 100_000)
    writer.reclaim()
    assert "nothing was lost" in writer.stats()["not_reclaimed"]
    assert [int(writer.get(BYTES, k, 50_000)[0]) for k in range(20)] == list(range(20))
    assert sorted(entry.name for entry in (disk / "store").iterdir()) == [
        "data.mdb",
        "lock.mdb",
        "open.lock",
        "writer.lock",
    ]
    writer.close()


# --- permissions -----------------------------------------------------------------------------------------------------

NOBODY = 65534


@pytest.fixture
def locked_away():
    """A folder that others may look into, but not write to, for a process that is not root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder / "store"
    for entry in folder.rglob("*"):
        entry.chmod(0o777)
    shutil.rmtree(folder)


def without_permission(act):
    def as_nobody():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return act()

    return forked(as_nobody)


def sealed_off(directory):
    for entry in directory.iterdir():
        entry.chmod(0o444)
    directory.chmod(0o555)


def test_without_permission_to_write_a_store_can_be_read_while_nobody_writes(locked_away):
    writer = opened(locked_away)
    put(writer, {(NUMBERS, 0): numbers(BIG)}, k=0)
    writer.close()
    sealed_off(locked_away)

    def read():
        reader = opened(locked_away, writing=False)
        found = [reader.head(), int(reader.get(NUMBERS, 0, BIG).sum()), reader.refresh(), reader.verify() == []]
        reader.stats()
        with pytest.raises(AESGError):
            opened(locked_away)
        reader.close()
        return found

    assert without_permission(read) == [{"k": 0}, int(numbers(BIG).sum()), False, True]


def test_without_permission_a_reader_and_a_writer_exclude_each_other(locked_away):
    """LMDB would not know of the reader, and overwrite what it reads."""
    writer = opened(locked_away)
    put(writer, {(NUMBERS, 0): numbers(9)}, k=0)
    for entry in locked_away.iterdir():
        entry.chmod(0o444)
    locked_away.chmod(0o555)

    def refused():
        with pytest.raises(LockedError, match="permission to write"):
            opened(locked_away, writing=False)
        return True

    assert without_permission(refused)
    writer.close()
    get, give = os.pipe()
    done, finish = os.pipe()
    pid = os.fork()
    if pid == 0:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        reader = opened(locked_away, writing=False)
        os.write(give, b"x")
        os.read(done, 1)
        os._exit(0 if reader.head() == {"k": 0} else 1)
    assert os.read(get, 1) == b"x"
    if os.geteuid() == 0:
        with pytest.raises(LockedError):
            opened(locked_away)
    os.write(finish, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    for fd in (get, give, done, finish):
        os.close(fd)
    if os.geteuid() == 0:
        opened(locked_away).close()


# --- as a backend ----------------------------------------------------------------------------------------------------


def test_options_and_what_they_promise(tmp_path):
    with aesg.open(f"lmdb://{tmp_path}/one", vector_dim=4) as store:
        assert store.url == f"lmdb://{tmp_path}/one"
        assert store.capabilities.durability is Durability.POWER_LOSS
        assert store.stats()["map_size"] == DEFAULT_MAP_SIZE
    with aesg.open(f"lmdb://{tmp_path}/two?map_size=1GiB&sync=false", vector_dim=4) as store:
        assert store.url == f"lmdb://{tmp_path}/two?sync=false&map_size=1073741824"
        assert store.capabilities.durability is Durability.PROCESS_CRASH
        assert store.stats()["map_size"] == 1 << 30
        store.attrs["a"] = 1
    with aesg.open(f"lmdb://{tmp_path}/two", map_size=1 << 30, sync=False) as store:
        assert store.attrs["a"] == 1
    assert promises({"sync": "x"}).snapshots
    for wrong in ("sync=yes", "sync=1", "map_size=lots", "map_size=12", "map_size=-1", "map_size=8GB", "cache_bytes=x"):
        with pytest.raises(InvalidInputError):
            aesg.open(f"lmdb://{tmp_path}/one?{wrong}")


def test_what_is_not_there_is_not_made(tmp_path):
    with pytest.raises(NotFoundError):
        aesg.open(f"lmdb://{tmp_path}/a/b", "r")
    with pytest.raises(NotFoundError):
        aesg.open(f"lmdb://{tmp_path}/a/b", "r", vector_dim=4)
    with pytest.raises(InvalidInputError, match="vector_dim"):
        aesg.open(f"lmdb://{tmp_path}/a/b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError):
        aesg.open(f"lmdb://{tmp_path}/empty", "r")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["empty"]


def test_a_bare_path_is_recognised(tmp_path):
    aesg.open(f"lmdb://{tmp_path}/store", vector_dim=4).close()
    assert recognises(tmp_path / "store")
    with aesg.open(tmp_path / "store") as store:
        assert store.url.startswith("lmdb:")
    for name in ("lock.mdb", "open.lock", "writer.lock"):
        (tmp_path / "store" / name).unlink()
    assert recognises(tmp_path / "store"), "a copy of data.mdb alone is a store"
    with lmdb.open(str(tmp_path / "other")) as other, other.begin(write=True) as txn:
        txn.put(b"a", b"b")
    assert not recognises(tmp_path / "other")
    assert not recognises(tmp_path / "nothing")


def test_opening_is_not_slowed_by_what_is_not_used():
    code = "import sys, aesg; aesg.backends.registry.backend('lmdb'); assert 'lmdb' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"import aesg.backends.registry\n{code}"], check=True)


def test_a_commit_needs_the_view_that_it_follows(handles):
    """What was committed, but could not be looked at, is looked at when something is read."""
    writer = handles()
    put(writer, {}, k=0)
    plain, failed = environment.Environment.view, []

    def view(self):
        if not failed:
            failed.append(True)
            raise StorageError("no more readers")
        return plain(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment.Environment, "view", view)
        put(writer, {(NUMBERS, 0): numbers(5)}, k=1)
    assert failed
    assert writer.head() == {"k": 1}
    assert np.array_equal(writer.get(NUMBERS, 0, 5), numbers(5))
    put(writer, {}, k=2)


def test_changes_say_nothing_that_the_container_needs_to_know(handles):
    """Columns and lengths are the store's affair."""
    writer = handles()
    writer.commit(Changes({"a": 1}, COLUMNS, dict.fromkeys(COLUMNS, 0), {("anything/else", 3): numbers(4)}, []))
    assert writer.head() == {"a": 1}


def test_the_format_of_locks_is_the_systems():
    """`struct flock` as Linux has it; a wrong one would lock another byte."""
    if not hasattr(fcntl, "F_OFD_SETLK"):
        pytest.skip("this system has no locks of open file descriptions")
    assert struct.calcsize("hhqqi4x") == 32
    with tempfile.NamedTemporaryFile() as file, open(file.name, "r+b") as other:
        environment._hold(file.fileno())
        with pytest.raises(BlockingIOError):
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1)
