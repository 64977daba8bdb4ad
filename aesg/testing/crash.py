"""kill -9: at random moments, at calls that change a file, at lines of the backend, in creations and compactions.

The short form kills about 20 writers; `--long`, or a number in AESG_CRASH_KILLS, is the long one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from aesg.testing.base import ClauseGroup
from aesg.testing.clauses import clause, is_long
from aesg.testing.crash_campaign import CrashCampaign, Summary
from aesg.testing.forks import LONG_SECONDS, server
from aesg.testing.full_disk import FOLDER
from aesg.testing.target import Target

_SURVIVES: Final = {"durability": "process_crash"}
_LONG_KILLS: Final = 300
_POINTS: Final = ("calls", "lines")


def kills(share: float) -> int:
    """How many writers a clause is to kill, of which it is to have this share."""
    total = int(os.environ.get("AESG_CRASH_KILLS", "0")) or (_LONG_KILLS if is_long() else 20)
    return max(4, round(share * total))


def some_died(killed: int) -> None:
    """Skip where there was nothing to kill at."""
    if not killed:
        pytest.skip("the backend runs no Python code that such points divide")


class CrashClauses(ClauseGroup):
    """A killed writer leaves the last committed state."""

    @pytest.fixture
    def campaign(
        self, target: Target, folder: Path, record_property: Callable[[str, object], None]
    ) -> Callable[..., int]:
        """Runs a campaign, and reports what it came to; how many writers were killed."""
        forks = server(target.imports)
        (folder / "warm-up").mkdir()
        forks.warm_up(target.store_url(folder / "warm-up"))

        def make_url(place: Path) -> str:
            place.mkdir()
            return target.store_url(place)

        def run(name: str, act: Callable[[CrashCampaign], Summary], **options: Any) -> int:
            seed = int(os.environ.get("AESG_CRASH_SEED", "0"))
            place = folder / name
            place.mkdir()
            made = CrashCampaign(name, make_url, place, forks, fail_points=target.fail_points, seed=seed, **options)
            try:
                act(made)
            finally:
                record_property(name, asdict(made.summary))
                sys.stdout.write(made.summary.line() + "\n")
            return made.summary.kills

        return run

    @clause("crash.killed-at-random-moments", needs=_SURVIVES)
    def test_killed_at_random_moments(self, campaign: Callable[..., int]) -> None:
        """After kill -9 at any moment the store is at its last commit, or at the one that was being made, whole."""
        campaign("random", lambda made: made.at_random_moments(kills(0.15)))
        campaign("random-small-blocks", lambda made: made.at_random_moments(kills(0.15)), small=True)

    @clause("crash.killed-at-calls-that-change-files", needs=_SURVIVES)
    def test_killed_at_calls(self, campaign: Callable[..., int]) -> None:
        """Killed at any call that changes a file, or half-way through it, a store is at a commit, and none is lost."""
        some_died(campaign("calls", lambda made: made.at_points(kills(0.25), "calls"), small=True))

    @clause("crash.killed-at-lines-of-the-backend", needs=_SURVIVES)
    def test_killed_at_lines(self, campaign: Callable[..., int]) -> None:
        """Killed between any two lines of the backend, a store is at a commit, and none is lost."""
        some_died(campaign("lines", lambda made: made.at_points(kills(0.15), "lines"), small=True))

    @clause("crash.killed-in-compactions", needs=_SURVIVES)
    def test_killed_in_compactions(self, campaign: Callable[..., int]) -> None:
        """A store whose compaction was killed is the compacted one or the one before, whole."""
        campaign("compactions", lambda made: made.in_compactions_at_random(kills(0.1)), small=True, every=1)

    @clause("crash.killed-in-compactions-at-points", needs=_SURVIVES)
    def test_killed_in_compactions_at_points(self, campaign: Callable[..., int]) -> None:
        """So it is wherever the kill was: at a call that changes a file, or between two lines of the backend."""
        killed = 0
        for points in _POINTS:
            act = partial(CrashCampaign.at_points, kills=kills(0.1), points=points, phase="compact", steps=3)
            killed += campaign(f"compactions-{points}", act, small=True, every=1)
        some_died(killed)

    @clause("crash.killed-in-creations", needs=_SURVIVES)
    def test_killed_in_creations(self, campaign: Callable[..., int]) -> None:
        """Of a store whose creation was killed there is nothing, or an empty store; the next writer begins it."""
        campaign("creations", lambda made: made.in_creations_at_random(kills(0.05)))
        for points in _POINTS:
            campaign(f"creations-{points}", partial(CrashCampaign.in_creations, kills=kills(0.05), points=points))

    @clause("crash.power-loss", needs={"durability": "power_loss"})
    def test_power_loss(self, target: Target, folder: Path, record_property: Callable[[str, object], None]) -> None:
        """What the disk was told to keep at any moment is the last commit, whatever else it has kept."""
        forks = server(target.imports)
        found = forks.call(
            "aesg.testing.power_loss:go_dark",
            seconds=LONG_SECONDS,
            template=target.store_url(Path(FOLDER)),
            folder=str(folder),
            steps=200 if is_long() else 40,
            seed=int(os.environ.get("AESG_CRASH_SEED", "0")),
        )
        if "skipped" in found:
            pytest.skip(found["skipped"])
        record_property("power loss", found)
