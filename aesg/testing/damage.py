"""Files that are truncated, changed, exchanged, missing or older: the last commit, or an error that says so.

The short form damages some 60 stores a clause; `--long`, or a number in AESG_DAMAGE_CASES, is the long one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from aesg.protocols import Integrity
from aesg.testing.base import ClauseGroup
from aesg.testing.clauses import clause, is_long
from aesg.testing.damage_campaign import BYTES, LENGTHS, WHOLE, DamageCampaign, make_specimens
from aesg.testing.forks import server
from aesg.testing.target import Target

_KEEPS: Final = {"durability": "process_crash"}
_CHECKS: Final = {"integrity": "checksums"}
_CASES: Final = 60
_LONG_CASES: Final = 1500


class DamageClauses(ClauseGroup):
    """A damaged store is refused, or the damage does not matter."""

    @pytest.fixture
    def damaged(
        self, target: Target, folder: Path, record_property: Callable[[str, object], None]
    ) -> Callable[[str, Sequence[str]], None]:
        """Runs a campaign, and reports what it came to."""
        forks = server(target.imports)
        (folder / "warm-up").mkdir()
        forks.warm_up(target.store_url(folder / "warm-up"))

        def run(name: str, ways: Sequence[str]) -> None:
            made = DamageCampaign(
                name,
                str(target),
                make_specimens(target.store_url, folder / "specimens", forks),
                target.store_url,
                folder,
                forks,
                checked=target.capabilities.integrity >= Integrity.CHECKSUMS,
                record_files=target.record_files,
                seed=int(os.environ.get("AESG_DAMAGE_SEED", "0")),
            )
            try:
                made.run(ways, int(os.environ.get("AESG_DAMAGE_CASES", "0")) or (_LONG_CASES if is_long() else _CASES))
            finally:
                record_property(name, made.summary.as_dict())
                sys.stdout.write(made.summary.line() + "\n")

        return run

    @clause("damage.length-changed", needs=_KEEPS)
    def test_lengths(self, damaged: Callable[[str, Sequence[str]], None]) -> None:
        """A store with a file that was cut off anywhere, emptied or grown is refused, or is at its last commit."""
        damaged("lengths", LENGTHS)

    @clause("damage.file-missing-exchanged-or-older", needs=_KEEPS)
    def test_whole_files(self, damaged: Callable[[str, Sequence[str]], None]) -> None:
        """So is one of which a file is missing, two have changed places, or one is from an earlier commit."""
        damaged("files", WHOLE)

    @clause("damage.bytes-changed.noticed", needs=_KEEPS | _CHECKS)
    def test_bytes(self, damaged: Callable[[str, Sequence[str]], None]) -> None:
        """With checksums, so is one with any bytes changed: flipped bits, blanked pages, made-up stretches."""
        damaged("bytes", BYTES)

    @clause("damage.bytes-changed.endured", needs=_KEEPS, unless=_CHECKS)
    def test_bytes_endured(self, damaged: Callable[[str, Sequence[str]], None]) -> None:
        """Without, changed bytes may pass for other values of records, but end in no signal, hang or foreign error."""
        damaged("bytes", BYTES)
