"""Which rows the entries of an index stand for: prints, twins, slots that follow their vectors."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aesg.engine.index import roster as module
from aesg.engine.index.roster import Roster, fold, leaders, link, look_up, prints_of, restored
from tests.index_support import D, clustered


def columns(vectors, active=None):
    return {"vector": vectors, "is_active": np.ones(len(vectors), np.uint8) if active is None else active}


def brute(prints):
    """Leader → its twins, ascending."""
    rings = {}
    for row, one in enumerate(prints.tolist()):
        if one:
            rings.setdefault(one, []).append(row)
    return {ring[0]: ring[1:] for ring in rings.values()}


PRINTS = st.lists(st.integers(0, 12), max_size=60).map(lambda some: np.array(some, np.uint64) << np.uint64(30))


@given(st.lists(PRINTS, max_size=4))
def test_leaders_and_their_twins(parts):
    roster, found = Roster(), []
    for part in parts:
        leads = roster.extend(part)
        roster.enter(leads)
        found += leads.tolist()
    prints = np.concatenate([np.empty(0, np.uint64), *parts])
    rings = brute(prints)
    assert found == sorted(found) == sorted(rings)
    assert roster.prints.tolist() == prints.tolist()
    for most in (2, 100):
        slots = np.arange(len(rings) + 3)  # some that nobody gave
        places, rows = roster.expand(slots, most)
        for slot, leader in enumerate(found):
            assert rows[places == slot].tolist() == [leader, *rings[leader][:most]]
        assert len(rows) == sum(1 + len(ring[:most]) for ring in rings.values())


@given(PRINTS, PRINTS, st.randoms())
def test_slots_follow_their_vectors_wherever_they_go(before, after, random):
    old = Roster()
    old.enter(old.extend(before))
    if len(old.rows) and random.random() < 0.5:
        old.leave(np.array([random.randrange(len(old.rows))]))
    new = Roster()
    new.extend(after)
    gone, missing = new.adopt(old)
    stood = {slot: int(before[row]) for slot, row in enumerate(old.rows.tolist()) if row >= 0}
    stands = {slot: int(after[row]) for slot, row in enumerate(new.rows.tolist()) if row >= 0}
    rings = brute(after)
    assert all(stands[slot] == stood[slot] for slot in stands)
    assert set(stood) == set(stands) | set(gone.tolist())
    assert not set(stands) & set(gone.tolist())
    assert sorted([*new.rows[new.rows >= 0].tolist(), *missing.tolist()]) == sorted(rings)


@given(PRINTS)
def test_what_is_restored_is_what_was(prints):
    roster = Roster()
    roster.enter(roster.extend(prints))
    again = restored(prints, roster.rows.copy(), complete=True)
    assert again is not None
    assert again.expand(np.arange(99), 50)[1].tolist() == roster.expand(np.arange(99), 50)[1].tolist()
    if len(roster.rows):
        part = roster.rows.copy()
        part[0] = -1
        assert restored(prints, part, complete=True) is None
        assert restored(prints, part, complete=False) is not None
        assert restored(prints, np.append(roster.rows, roster.rows[:1]), complete=False) is None
        assert restored(prints, np.append(roster.rows, np.int32(len(prints))), complete=False) is None


def test_a_print_is_of_the_direction():
    vectors = clustered(300)
    prints = prints_of(columns(vectors))
    assert len(np.unique(prints)) == len(vectors)
    assert prints_of(columns(vectors * np.float32(4))).tolist() == prints.tolist()
    assert prints_of(columns(vectors[::-1])).tolist() == prints[::-1].tolist()
    assert (prints_of(columns(-vectors)) != prints).all()
    changed = vectors.copy()
    changed[np.arange(300), np.arange(300) % D] += 0.1
    assert (prints_of(columns(changed)) != prints).all()


def test_what_cannot_seed_has_no_print():
    vectors = np.array([[0, 0], [np.nan, 1], [np.inf, 0], [1, 2], [1e-44, 0], [3e38, 3e38], [1, 2]], np.float32)
    active = np.array([1, 1, 1, 0, 1, 1, 1], np.uint8)
    assert (prints_of(columns(vectors, active)) != 0).tolist() == [False] * 4 + [True] * 3
    assert prints_of(columns(np.empty((0, 3), np.float32))).tolist() == []


def test_prints_are_the_same_everywhere():
    """They are in files."""
    vectors = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    assert prints_of(columns(vectors)).tolist() == EXPECTED


EXPECTED = [11111330648860356599, 15975920343704828899, 9886362385427407974]


@pytest.mark.parametrize("function", [fold, link, look_up, leaders])
def test_compiled_and_plain_loops_agree(function, monkeypatch):
    plain, compiled = (
        module.Loops("test", (fold, link, look_up, leaders), (module.place_of,), module._signatures, patience)
        for patience in (1 << 40, 0)
    )
    vectors = np.repeat(clustered(400), 2, axis=0)
    results = []
    for loops in (plain, compiled):
        monkeypatch.setattr(module, "_LOOPS", loops)
        roster = Roster()
        roster.enter(roster.extend(prints_of(columns(vectors))))
        moved = Roster()
        moved.extend(prints_of(columns(vectors[::-1][100:])))
        gone, missing = moved.adopt(roster)
        results.append([part.tolist() for part in (roster.prints, roster.rows, moved.rows, gone, missing)])
    assert results[0] == results[1]
    assert len(results[0][3]) == 50
    assert hasattr(compiled.get(function, 1), "signatures") != bool(numba.config.DISABLE_JIT)
