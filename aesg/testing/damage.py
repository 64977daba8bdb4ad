"""Files that are truncated, changed, exchanged, missing or older: the last commit, or an error that says so.

The short form damages some 40 stores a clause; `--long`, or a number in AESG_DAMAGE_CASES, is the long one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a file system in memory, where there is one
_CASES: Final = 40
_LONG_CASES: Final = 1500


class DamageClauses(ClauseGroup):
    """A damaged store is refused, or the damage does not matter."""

    @pytest.fixture
    def copies(self, target: Target, folder: Path) -> Iterator[Path]:
        """Where stores are copied to; in memory, if one may choose: some stores have hundreds of files."""
        if target.base is not None or not os.access(_MEMORY, os.W_OK):
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="aesg-", dir=_MEMORY) as made:
            yield Path(made)

    @pytest.fixture
    def damaged(
        self, target: Target, copies: Path, record_property: Callable[[str, object], None]
    ) -> Callable[[str, Sequence[str]], None]:
        """Runs a campaign, and reports what it came to."""
        forks = server(target.imports)
        (copies / "warm-up").mkdir()
        forks.warm_up(target.store_url(copies / "warm-up"))

        def run(name: str, ways: Sequence[str]) -> None:
            made = DamageCampaign(
                name,
                str(target),
                make_specimens(target.store_url, copies / "specimens", forks),
                target.store_url,
                copies,
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
        """A store with a file missing, exchanged or of an earlier commit is refused, or is at a commit, whole."""
        damaged("files", WHOLE)

    @clause("damage.bytes-changed.noticed", needs=_KEEPS | _CHECKS)
    def test_bytes(self, damaged: Callable[[str, Sequence[str]], None]) -> None:
        """With checksums, a store with any bytes changed is refused, or is at its last commit."""
        damaged("bytes", BYTES)

    @clause("damage.bytes-changed.endured", needs=_KEEPS, unless=_CHECKS)
    def test_bytes_endured(self, damaged: Callable[[str, Sequence[str]], None]) -> None:
        """Without checksums, changed bytes may pass for other values, but end in no signal, hang or foreign error."""
        damaged("bytes", BYTES)
