"""A writer to be killed: `python crash_writer.py URL STEPS [CALL]`.

Goes on from where the store is, prints the number of each step once it is committed, and with CALL kills itself at that
call into the operating system that changes a file: before it, or in the middle of it when it is a write.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from crash_steps import DIM, compacts_after, step

import aesg

CHANGING = ["open", "pwrite", "pwritev", "ftruncate", "replace", "unlink", "fsync", "fdatasync"]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(number):
    """Count calls that change files, and die at the given one."""
    calls = 0

    def wrapped(name, real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number:
                if name == "pwrite":
                    data = bytes(args[1])
                    real(args[0], data[: len(data) // 2], args[2])
                elif name == "pwritev":
                    data = b"".join(bytes(part) for part in args[1])
                    os_pwrite(args[0], data[: len(data) // 2], args[2])
                die()
            return real(*args, **kwargs)

        return call

    os_pwrite = os.pwrite
    for name in CHANGING:
        setattr(os, name, wrapped(name, getattr(os, name)))
    from aesg.backends.journal import Journal
    from aesg.backends.memmap.table import PendingRecords, RecordFile

    # Stores into the mapping are no calls into the system: die between them.
    for owner, name in ((PendingRecords, "apply"), (RecordFile, "store"), (Journal, "mark_applied")):
        setattr(owner, name, wrapped(name, getattr(owner, name)))


def main():
    url, steps = sys.argv[1], int(sys.argv[2])
    if len(sys.argv) > 3:
        kill_at(int(sys.argv[3]))
    store = aesg.open(url, vector_dim=DIM)
    k = store.attrs.get("k", -1)
    print("open", k, flush=True)
    if k >= 0 and compacts_after(k):
        store.compact()  # perhaps again: a compacted store stays as it is
    last = k + steps
    while k < last:
        k += 1
        with store.transaction() as transaction:
            step(transaction, k)
        print("committed", k, flush=True)
        if k % 11 == 5:
            with store.transaction() as transaction:
                step(transaction, k + 1)
                transaction.rollback()
        if compacts_after(k):
            store.compact()
        if k % 13 == 8:
            store.flush()
    store.close()
    print("closed", k, flush=True)


main()
