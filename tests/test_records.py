"""What arrays of rows are asked: which there are, and which of them each is."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aesg.records import distinct, numbered, ranges

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
