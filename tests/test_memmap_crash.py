"""kill -9 at any moment: the reopened store is a committed state, no list is broken, nothing committed is lost.

`AESG_CRASH_KILLS=500` gives the long form; `make crash` runs it.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crash_steps import DIM, check_lists, compacts_after, digest, step

import aesg

KILLS = int(os.environ.get("AESG_CRASH_KILLS", "30"))
WRITER = Path(__file__).with_name("crash_writer.py")
DURABILITIES = ["process_crash", "power_loss"]


class Model:
    """What the store holds after each step, by the in-memory store."""

    def __init__(self):
        self.store = aesg.open("memory:", vector_dim=DIM)
        self.k = -1
        self.states = {-1: {digest(self.store)}}

    def after(self, k):
        """Digests that a store may have whose last committed step is k: before and after a due compaction."""
        while self.k < k:
            self.k += 1
            with self.store.transaction() as transaction:
                step(transaction, self.k)
            self.states[self.k] = {digest(self.store)}
            if compacts_after(self.k):
                self.store.compact()
                self.states[self.k].add(digest(self.store))
        return self.states[k]


@pytest.fixture(scope="module")
def model():
    return Model()


def check(url, mode, model, acknowledged):
    """Open after a kill and compare with the model; returns the step that the store is at."""
    with aesg.open(url, mode=mode, vector_dim=DIM) as store:
        k = store.attrs.get("k", -1)
        assert acknowledged <= k <= acknowledged + 1, "a committed step was lost, or one came from nowhere"
        assert digest(store) in model.after(k), f"not the state after step {k}"
        check_lists(store)
        assert store.verify() == []
    return k


def run_writer(url, steps, *more):
    return subprocess.Popen(
        [sys.executable, str(WRITER), url, str(steps), *map(str, more)], stdout=subprocess.PIPE, text=True
    )


def acknowledged_by(output, before):
    """The last step that the writer said was committed; its last line may be cut short."""
    said = [line.split() for line in output.splitlines(keepends=True) if line.endswith("\n")]
    return max([before] + [int(words[1]) for words in said])


@pytest.mark.parametrize("durability", DURABILITIES)
def test_killed_at_random_moments(tmp_path, model, durability):
    url = f"memmap://{tmp_path / 'store'}?durability={durability}"
    rng = random.Random(durability)
    k, kills = -1, 0
    while kills < KILLS // 2:
        writer = run_writer(url, 10_000)
        assert writer.stdout.readline().startswith("open")
        time.sleep(rng.uniform(0, 0.15))
        writer.kill()
        output = writer.stdout.read()  # not communicate, which misses what readline has buffered
        writer.wait()
        writer.stdout.close()
        k = check(url, rng.choice("ar"), model, acknowledged_by(output, k))
        kills += 1
    assert k > KILLS // 4, "the writers got nowhere: the kills hit nothing"


@pytest.mark.parametrize("durability", DURABILITIES)
def test_killed_at_each_call_that_changes_a_file(tmp_path, model, durability):
    """From creation over commits, growth, checkpoints and compactions to the close, and again from there."""
    rng = random.Random(durability)
    url = f"memmap://{tmp_path / 'store'}?durability={durability}"
    # Nine steps make some 180 such calls. The short form takes some of them, the long form goes through all, again and
    # again, each time from the state that the kills before have left.
    calls = range(1, 171)
    numbers = sorted(rng.sample(calls, KILLS // 2)) if KILLS < 200 else [calls[i % 170] for i in range(KILLS // 2)]
    k, died = -1, 0
    for number in numbers:
        writer = run_writer(url, 9, number)
        output = writer.communicate(timeout=60)[0]
        assert writer.returncode in (0, -signal.SIGKILL)
        died += writer.returncode != 0
        if not (tmp_path / "store" / "meta.npy").exists():
            continue  # died while creating it: there is no store to read yet, and the next writer begins anew
        k = check(url, rng.choice("ar"), model, acknowledged_by(output, k))
    assert died > 0.9 * len(numbers)


def test_killed_while_it_is_created(tmp_path, model):
    for number in range(1, 40):
        url = f"memmap://{tmp_path / str(number)}"
        writer = run_writer(url, 1, number)
        output = writer.communicate(timeout=60)[0]
        assert writer.returncode in (0, -signal.SIGKILL)
        check(url, "a", model, acknowledged_by(output, -1))
