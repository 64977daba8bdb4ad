"""No room and no permission: an error that says so, nothing committed is lost, and the store goes on.

A full disk is a small one that a child process mounts for itself. Where that is not permitted these clauses are
skipped; what one call after another does that finds the disk full, and a limit on the size of files, is tried anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from aesg.testing.base import ClauseGroup
from aesg.testing.clauses import clause, is_long
from aesg.testing.forks import LONG_SECONDS, server
from aesg.testing.full_disk import ACTS, FOLDER
from aesg.testing.target import Target

_KEEPS: Final = {"durability": "process_crash"}


class CapacityClauses(ClauseGroup):
    """What a store does when the system refuses."""

    @pytest.fixture
    def without(
        self, target: Target, folder: Path, record_property: Callable[[str, object], None]
    ) -> Callable[..., None]:
        """Runs a job, and reports what it found."""
        forks = server(target.imports)
        (folder / "warm-up").mkdir()
        forks.warm_up(target.store_url(folder / "warm-up"))

        def run(name: str, **arguments: Any) -> None:
            place = folder / "job"
            place.mkdir()
            template = target.store_url(Path(FOLDER))
            job = f"aesg.testing.full_disk:{name}"
            found = forks.call(job, seconds=LONG_SECONDS, template=template, folder=str(place), **arguments)
            if "skipped" in found:
                pytest.skip(found["skipped"])
            record_property(" ".join([name, *map(str, arguments.values())]), found)

        return run

    @clause("capacity.full-disk.commits", needs=_KEEPS)
    @pytest.mark.parametrize("kind", sorted(ACTS))
    def test_commits(self, without: Callable[..., None], kind: str) -> None:
        """A commit for which there is no room raises CapacityError and changes nothing; later ones succeed."""
        without("commits_until_full", kind=kind)

    @clause("capacity.full-disk.transactions", needs=_KEEPS)
    @pytest.mark.parametrize("kind", ["nodes", "edges", "events", "all"])
    def test_transactions(self, without: Callable[..., None], kind: str) -> None:
        """A transaction that fills the disk is rolled back, in the write that fails or in the commit."""
        without("transaction_that_fills_it", kind=kind)

    @clause("capacity.full-disk.maintenance", needs=_KEEPS)
    def test_maintenance(self, without: Callable[..., None]) -> None:
        """Compaction, flush, close and opening on a full disk lose nothing, and a closed store can be read."""
        without("maintenance_when_full")

    @clause("capacity.full-disk.creation", needs=_KEEPS)
    def test_creation(self, without: Callable[..., None]) -> None:
        """A store for which there is no room is not created, and can be as soon as there is."""
        without("creation_when_full")

    @clause("capacity.full-at-any-call", needs=_KEEPS)
    def test_full_at_any_call(self, without: Callable[..., None]) -> None:
        """Whichever call finds the disk full: all of a commit or a compaction happens, or nothing of it."""
        without("full_at_any_call", tries=60 if is_long() else 8)

    @clause("capacity.files-that-may-not-grow", needs=_KEEPS)
    def test_file_size(self, without: Callable[..., None]) -> None:
        """A limit on the size of files is like a full disk."""
        without("files_that_may_not_grow")

    @clause("capacity.too-many-open-files", needs=_KEEPS)
    def test_open_files(self, without: Callable[..., None]) -> None:
        """More open files than the system allows is StorageError, and leaks nothing."""
        without("more_files_than_may_be_open")

    @clause("capacity.read-only-folder", needs=_KEEPS)
    @pytest.mark.parametrize("leave_open", [False, True], ids=["closed", "killed"])
    def test_read_only_folder(self, without: Callable[..., None], leave_open: bool) -> None:
        """Where it may not be written, a store can be read; opening it for writing is StorageError or ReadOnlyError."""
        without("folder_that_may_not_be_written", leave_open=leave_open)
