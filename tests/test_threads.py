"""Work shared out among the cores."""

from __future__ import annotations

import os
import threading

import pytest

from aesg import threads
from aesg.threads import in_threads, parts


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setattr(threads, "_pool", None)


def test_each_item_is_worked_on_once_in_several_threads() -> None:
    all_at_once = threading.Barrier(4, timeout=20)

    def work(item: int) -> tuple[int, str]:
        all_at_once.wait()
        return item * item, threading.current_thread().name

    found = in_threads(work, range(4))
    assert [square for square, _ in found] == [0, 1, 4, 9]
    assert len({name for _, name in found}) == 4
    assert found[0][1] == threading.current_thread().name


def test_work_within_work_goes_on_in_its_thread() -> None:
    def within(item: int) -> set[int]:
        return {threading.get_ident() for _ in in_threads(lambda _: threading.get_ident(), range(3))}

    for idents in in_threads(within, range(4)):
        assert len(idents) == 1


def test_what_is_raised_comes_out_when_nothing_is_under_way() -> None:
    ended = []

    def work(item: int) -> int:
        if item == 0:
            raise ValueError("the first")
        threading.Event().wait(0.05)
        ended.append(item)
        return item

    with pytest.raises(ValueError, match="the first"):
        in_threads(work, range(4))
    assert sorted(ended) == [1, 2, 3]


def test_the_caller_does_it_alone_when_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        def submit(self, *args: object) -> None:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(threads, "_executor", Ended)
    assert in_threads(lambda item: (item, threading.get_ident()), range(3)) == [
        (item, threading.get_ident()) for item in range(3)
    ]


def test_a_forked_child_gets_threads_of_its_own() -> None:
    in_threads(lambda item: item, range(4))
    child = os.fork()
    if not child:
        os._exit(0 if in_threads(lambda item: item + 1, range(4)) == [1, 2, 3, 4] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_parts_are_even_and_not_too_small() -> None:
    assert [len(range(100)[part]) for part in parts(100, 10)] == [25, 25, 25, 25]
    assert [len(range(35)[part]) for part in parts(35, 10)] == [11, 12, 12]
    assert parts(5, 10) == [slice(0, 5)]
    assert parts(0, 10) == [slice(0, 0)]
