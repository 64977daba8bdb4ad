"""Two sides that take turns, so that a slow minute of the machine hits both."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

LEAST: Final = 3
"""Turns that are taken however long they take."""


def clock(work: Callable[[], Any]) -> float:
    """Seconds that something takes; its result is let go afterwards."""
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    del result
    return seconds


def alternate(
    turns: int,
    budget: float,
    ours: Callable[[int], float],
    limit: Callable[[int], float],
    raw: Callable[[int], float] | None = None,
) -> dict[str, list[float]]:
    """Let both take turns, first one, then the other first, until all are taken or the budget of seconds is spent.

    Args:
        turns: How many each takes at most.
        budget: Seconds, spent on anything; `LEAST` are taken anyway.
        ours: Turn → seconds.
        limit: Turn → seconds.
        raw: Turn → seconds of a second limit, if there is one.
    """
    order = [("ours", ours), ("limit", limit), *([("raw", raw)] if raw else [])]
    times: dict[str, list[float]] = {name: [] for name, _ in order}
    end = time.perf_counter() + budget
    for turn in range(turns):
        if turn >= LEAST and time.perf_counter() > end:
            break
        for name, side in order:
            times[name].append(side(turn))
        order.reverse()
    return times
