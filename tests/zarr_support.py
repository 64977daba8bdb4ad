"""What the tests of the containers of arrays share, and processes that are killed, or that open what may be damaged.

`python zarr_support.py write URL STEPS [CALL]`: commits step after step, prints each one that is committed, and with
CALL kills itself at that call into the operating system that changes a file.
`python zarr_support.py serve`: the same for each line of JSON, [URL, STEPS, CALL], in a fork of its own; a CALL with a
decimal point is a number of seconds.
`python zarr_support.py read`: a URL and a mode on each line in, what is found there on each line out.
"""

import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

from aesg.backends.blocks.container import Changes, Column
from aesg.errors import AESGError

SECONDS = 60
CHANGING = ["open", "pwrite", "pwritev", "ftruncate", "replace", "unlink", "fsync", "fdatasync", "mkdir"]

IDS = Column("nodes/id", np.dtype("<u8"), None, 16, "node")
VECTORS = Column("nodes/vector", np.dtype("<f4"), 3, 8, "node")
FLAGS = Column("nodes/is_active", np.dtype("u1"), None, 64, "node")
SOURCES = Column("edges/source_row", np.dtype("<i8"), None, 4, "edge")
SUMS = Column("checksums/nodes/id", np.dtype("<u4"), None, 1024, "nodes_id_block")
LOG = Column("log", np.dtype("u1"), None, 1 << 16, "log_byte")
COLUMNS = {column.name: column for column in (IDS, VECTORS, FLAGS, SOURCES, SUMS, LOG)}
HEAD = {"big": 2**63 - 1, "bigger": 2**64 - 1, "less": -(2**63), "ä": "ü\ud800\0", "f": 1e-310, "n": [None, {"a": 0.1}]}


def opened(url, mode="a", codec=None, durability="process_crash"):
    """A container, as the backend opens it."""
    from aesg.backends.url import StoreURL
    from aesg.backends.zarr import archive, local, promises, volatile
    from aesg.protocols import Durability

    parsed = StoreURL.parse(str(url))
    if parsed.scheme == "icechunk":
        from aesg.backends.zarr import repository

        return repository.open_local(str(url), Path(parsed.path), codec, writing=mode == "a", snapshot=None)
    if not parsed.path:
        return volatile.VolatileContainer(str(url), codec)
    if parsed.path.endswith(".zip"):
        return archive.ZipContainer(str(url), Path(parsed.path), codec)
    kind = local.LocalReader if mode == "r" else local.LocalWriter
    durability = parsed.options.get("durability", durability)
    codec = parsed.options.get("codec", codec)
    return kind(str(url), Path(parsed.path), codec, promises(Durability[durability.upper()]))


def rows_of(column, rows, seed=0):
    """So many rows that only the column and the seed decide."""
    rng = np.random.default_rng([seed, *column.name.encode()])
    raw = rng.integers(0, 256, rows * column.row_bytes, dtype=np.uint8)
    if column.dtype.kind == "f":
        raw = rng.standard_normal(rows * (column.width or 1)).astype(column.dtype)
    return raw.view(column.dtype).reshape(column.shape(rows))


def blocks_of(column, values):
    """Number → block."""
    size = column.block_rows
    return {number: values[number * size : (number + 1) * size] for number in range(column.blocks(len(values)))}


def put(container, state, before=None, **head):
    """Commit a state: column name → all its rows. Puts what differs from the state before."""
    before = before or {}
    puts, drops = {}, []
    for name, values in state.items():
        old = blocks_of(COLUMNS[name], before[name]) if name in before else {}
        new = blocks_of(COLUMNS[name], values)
        puts |= {(name, n): b for n, b in new.items() if n not in old or not np.array_equal(b, old[n])}
        drops += [(name, n) for n in old if n not in new]
    lengths = {name: len(state.get(name, ())) for name in COLUMNS}
    container.commit(Changes({**HEAD, **head}, COLUMNS, lengths, puts, drops))
    return state


def state_after(k):
    """What step k leaves: columns that grow, shrink, change here and there, and vanish."""
    rng = np.random.default_rng(k)
    state = {}
    for column in COLUMNS.values():
        rows = int(rng.integers(0, 5 * column.block_rows if column.block_rows < 100 else 1500))
        values = rows_of(column, rows, seed=k // 3)
        if rows:
            values[rng.integers(0, rows)] = 0
        state[column.name] = values
    return state


def same(container, state):
    """Whether a container holds exactly a state."""
    for name, values in state.items():
        column = COLUMNS[name]
        for number, block in blocks_of(column, values).items():
            found = container.get(column, number, len(block))
            if found is None or found.dtype != block.dtype or not np.array_equal(found, block):
                return False
    return True


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(number):
    """Count calls that change files, and die at the given one; a write is half done by then."""
    calls = 0

    def wrapped(name, real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number:
                if name in ("pwrite", "pwritev"):
                    data = bytes(args[1]) if name == "pwrite" else b"".join(bytes(part) for part in args[1])
                    os_pwrite(args[0], data[: len(data) // 2], args[2])
                die()
            return real(*args, **kwargs)

        return call

    os_pwrite = os.pwrite
    for name in CHANGING:
        setattr(os, name, wrapped(name, getattr(os, name)))
    from aesg.backends.journal import Journal

    Journal.mark_applied = wrapped("mark_applied", Journal.mark_applied)


def write(url, steps, call=None):
    """Go on from where the store is."""
    if os.environ.get("AESG_TEST_SMALL_ENTRIES"):
        from aesg.backends.zarr import directory, local

        directory._INLINE, local._CHECKPOINT = 20_000, 60_000
    if isinstance(call, float):
        signal.setitimer(signal.ITIMER_REAL, call)  # nobody handles the signal: it ends the process like any other
    elif call is not None:
        kill_at(int(call))
    container = opened(url)
    head = container.head()
    k = -1 if head is None else head["k"]
    before = None if head is None else state_after(k)
    print("open", k, flush=True)
    for step in range(k + 1, k + 1 + int(steps)):
        before = put(container, state_after(step), before, k=step)
        print("committed", step, flush=True)
    container.close()
    print("closed", flush=True)


def serve():
    for name in sys.argv[2:]:
        importlib.import_module(name)  # so that no fork has to

    for line in sys.stdin:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if not pid:
            os.dup2(write_end, 1)
            write(*json.loads(line))
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            said = pipe.read()
        print(json.dumps({"said": said, "status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)


class Writers:
    """Processes that write, one after another."""

    def __init__(self, *imports, **environment):
        self._server = subprocess.Popen(
            [sys.executable, __file__, "serve", *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def write(self, url, steps, call=None):
        """Whether it was killed, and the last step that it said was committed, -1 if none."""
        self._server.stdin.write(json.dumps([url, steps, call]) + "\n")
        self._server.stdin.flush()
        done = json.loads(self._server.stdout.readline())
        assert done["status"] in (0, -signal.SIGKILL, -signal.SIGALRM)
        said = [line.split() for line in done["said"].splitlines(keepends=True) if line.endswith("\n")]
        return done["status"] != 0, max([-1, *(int(words[1]) for words in said if len(words) == 2)])

    def close(self):
        """End them."""
        self._server.communicate()


def attempt(url, mode):
    """Everything that is found, for stores that `write` made."""
    try:
        container = opened(url, mode)
        try:
            with container.reading():
                if container.head() is None:
                    return {"error": "NotFoundError"}  # a writer would create one
                k = container.head()["k"]
                found = {"k": k, "same": container.head() == {**HEAD, "k": k} and same(container, state_after(k))}
            found["violations"] = [violation.kind for violation in container.verify()]
            container.stats()
            return found
        finally:
            container.close()
    except AESGError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:
        return {"escaped": repr(error)}


def read():
    warnings.simplefilter("error")
    for line in sys.stdin:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        url, mode = json.loads(line)
        print(json.dumps(attempt(url, mode)), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*sys.argv[2:])
    else:
        {"read": read, "serve": serve}[sys.argv[1]]()
