"""kill -9 at random moments of `aesg migrate`: the source stays, the destination is as before or whole, resuming works.

The short form kills a few; `pytest -m slow tests/test_migration_kills.py` kills a hundred, `AESG_MIGRATION_KILLS=1000`
as many as that, and AESG_MIGRATION_SEED makes it others.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import aesg
from aesg.backends.registry import schemes
from aesg.records import EventType, NodeBatch, events

BACKENDS = [scheme for scheme in ("memmap", "lmdb", "zarr", "icechunk") if scheme in schemes()]
PAIRS = [(one, other) for one in BACKENDS for other in BACKENDS if one != other]
LONG = int(os.environ.get("AESG_MIGRATION_KILLS", "100"))
SEED = int(os.environ.get("AESG_MIGRATION_SEED", "0"))
NODES, EDGES = 6000, 40_000

_CHILD = """
import sys
from aesg.migration import copying
copying.PIECE_BYTES, copying.COMMIT_BYTES = 1 << 15, 1 << 17  # many commits
from aesg.cli.main import main
main()
"""


def build(url):
    rng = np.random.default_rng(3)
    with aesg.open(url, vector_dim=16) as store:
        store.nodes.append(NodeBatch(rng.standard_normal((NODES, 16), np.float32)))
        ends = rng.integers(0, NODES, (2, EDGES))
        refs = store.edges.append(ends[0], ends[1], 0.5)
        store.edges.write(refs[::7], use_count=3)
        store.edges.remove(refs[::11])
        store.nodes.write(np.arange(0, NODES, 9), is_active=0)
        store.events.append(events(EventType.CREATE, np.arange(3000)))
        store.attrs["epoch"] = 3
    return aesg.digest(url)


class Campaign:
    """Stores of every backend to migrate from, and a place to migrate to."""

    def __init__(self, folder):
        self.folder = folder
        self.random = random.Random(SEED)
        self.digest = build(f"{BACKENDS[0]}://{folder}/{BACKENDS[0]}")
        for scheme in BACKENDS[1:]:
            assert aesg.migrate(folder / BACKENDS[0], f"{scheme}://{folder}/{scheme}").digest == self.digest
        self.place = folder / "new" / "store"
        self.making = self.place.with_name(".store.unfinished")
        self.seconds = {}
        self.seen = {"absent": 0, "as before": 0, "whole": 0}
        self.killed = self.resumed = 0

    def start(self, one, other, *options):
        """A child that migrates; gives it back when the temporary folder is there."""
        command = [sys.executable, "-c", _CHILD, "migrate", f"{one}://{self.folder}/{one}", f"{other}://{self.place}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        child = subprocess.Popen([*command, "--json", *options], **pipes)
        while child.poll() is None and not self.making.exists():
            time.sleep(0.001)
        return child

    def finished(self, one, other, *options):
        """One that nobody kills; seconds from when it has begun until its store is there."""
        child = self.start(one, other, *options)
        began = time.monotonic()
        while child.poll() is None and not self.place.exists():
            time.sleep(0.001)
        took = time.monotonic() - began
        said, errors = child.communicate(timeout=120)
        assert self.digest in said, errors
        return took

    def clear(self):
        for path in sorted(self.folder.glob("new/**/*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()

    def kill(self, one, other, *, overwrite):
        """Kill one, look, and bring it to its end."""
        options = ["--overwrite"] if overwrite else []
        if (one, other) not in self.seconds:
            self.seconds[one, other] = self.finished(one, other)
            self.clear()
        old = None
        if overwrite:
            with aesg.open(f"lmdb://{self.place}", vector_dim=2) as store:
                store.attrs["old"] = True
            old = aesg.digest(self.place)
        child = self.start(one, other, *options)
        time.sleep(self.random.uniform(0, 1.1) * self.seconds[one, other])
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=60)
        self.killed += child.returncode == -signal.SIGKILL
        self.look(one, old)
        resume = self.random.random() < 0.6
        done = self.place.exists() and not overwrite
        if not done or (resume and self.making.exists()):  # there is nothing to go on with when all was done
            self.finished(one, other, *options, *(["--resume"] if resume else []))
        elif self.making.exists():
            self.look(one, None)
            self.clear()
            self.finished(one, other)
        assert aesg.digest(self.place) == self.digest
        assert os.listdir(self.place.parent) == ["store"]
        self.resumed += resume
        self.clear()

    def look(self, one, old):
        """After a kill."""
        assert aesg.digest(f"{one}://{self.folder}/{one}") == self.digest
        if not self.place.exists():
            assert old is None, "the store that was to be replaced is gone"
            self.seen["absent"] += 1
            return
        found = aesg.digest(self.place)
        assert found in (old, self.digest)
        with aesg.open(self.place, "r") as store:
            assert store.verify() == []
        self.seen["whole" if found == self.digest else "as before"] += 1


@pytest.mark.parametrize("kills", [6, pytest.param(LONG, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_is_not_there_or_whole(kills, tmp_path):
    campaign = Campaign(tmp_path)
    order = campaign.random.sample(PAIRS, len(PAIRS))
    for number in range(kills):
        one, other = order[number % len(order)] if kills > len(order) else order[number % 3]
        campaign.kill(one, other, overwrite=number % 3 == 2)
    print(f"{campaign.killed} of {kills} killed: {campaign.seen}, {campaign.resumed} gone on with")
    assert campaign.killed > kills // 2
    assert campaign.seen["absent"] + campaign.seen["as before"] > kills // 4
