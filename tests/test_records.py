"""What arrays of rows are asked: which there are, and which of them each is."""

import platform
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aesg
from aesg.records import NodeBatch, distinct, numbered, ranges

SOME = st.lists(st.one_of(st.integers(0, 40), st.integers(0, (1 << 62) - 1)), max_size=60)


@given(SOME)
def test_distinct_is_unique(values):
    found = distinct(np.array(values, np.int64))
    assert found.dtype == np.int64
    assert found.tolist() == sorted(set(values))


def test_distinct_of_other_numbers():
    assert distinct(np.array([3, 1, 3, 2], np.uint32)).tolist() == [1, 2, 3]
    assert distinct(np.array([[2.5, 1.0], [1.0, 2.5]])).tolist() == [1.0, 2.5]
    assert distinct(np.array([-1, 4, -1])).tolist() == [-1, 4]


@given(SOME)
def test_numbered_is_unique_with_its_inverse(values):
    array = np.array(values, np.int64)
    found, where = numbered(array)
    assert found.tolist() == sorted(set(values))
    assert found.dtype == where.dtype == np.int64
    assert found[where].tolist() == values
    assert array.tolist() == values  # nobody's array was sorted in place


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=20))
def test_ranges(spans):
    starts, counts = (np.array([span[i] for span in spans], np.int64) for i in range(2))
    assert ranges(starts, counts).tolist() == [at for start, count in spans for at in range(start, start + count)]


SCANS = """
import resource, sys
import numpy as np
from aesg import AESGMemory
with AESGMemory(sys.argv[1], mode="r") as memory:
    for turn in range(60):
        if turn == 40:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        memory(np.ones(128, np.float32))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back so soon")
def test_a_scan_uses_the_memory_of_its_chunks_again(tmp_path):
    with aesg.open(f"memmap:{tmp_path}/store", vector_dim=128) as store:
        store.nodes.append(NodeBatch(np.random.default_rng(0).random((10_000, 128), np.float32)))
    run = subprocess.run([sys.executable, "-c", SCANS, f"memmap:{tmp_path}/store"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 20 * 10_000 * 128 * 4 // 4096 // 8  # pages of twenty scans, of which hardly any is new
