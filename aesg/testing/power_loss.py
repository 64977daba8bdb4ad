"""The machine going dark: what the disk has been told at each moment is a committed state.

A power loss cannot be had in a test. What can: note every sync that a writer makes, and build what the disk may hold if
the machine went dark: all that was synced, and any part of what was not. That works where the syncs are made from
Python; of what a library in C tells the disk nothing is seen.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

from aesg.backends import files, journal
from aesg.testing.crash_writer import Countdown, count_calls
from aesg.testing.full_disk import CannotTryError, Place, check, job
from aesg.testing.steps import DIM, compacts_after, model, step

_PAGE: Final = 4096
_EVERY: Final = 7


class Disk:
    """Follows a folder: what of it a machine that goes dark now would find again.

    The page cache is the folder itself. At each sync of a file its content becomes sure, and its name, as ext4 and its
    like have it; at each sync of a directory all names in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.syncs = 0
        self._content: dict[int, bytes] = {}  # inode → what was last synced
        self._names: dict[Path, dict[str, int]] = {}  # directory → name → inode

    def watch(self, patch: Callable[[object, str, object], None] = setattr) -> None:
        """Notice syncs from now on.

        Args:
            patch: Replaces an attribute of a module; pytest's `monkeypatch.setattr` undoes it.
        """
        for name in ("fsync", "fdatasync"):
            if hasattr(os, name):
                patch(os, name, self._noting(getattr(os, name)))

    def _noting(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            real(fd)
            self.note(Path(os.readlink(f"/proc/self/fd/{fd}")), os.fstat(fd).st_ino)

        return sync

    def note(self, path: Path, inode: int) -> None:
        """A file or a directory has been synced."""
        if not path.is_relative_to(self.folder) or not path.exists():
            return
        self.syncs += 1
        if path.is_dir():
            self._names[path] = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
        else:
            self._content[inode] = path.read_bytes()
        while path != self.folder:
            self._names.setdefault(path.parent, {})[path.name] = path.stat().st_ino
            path = path.parent

    def after_power_loss(self, target: Path, rng: random.Random) -> None:
        """Build what may be found: everything synced, some pages written back that were not, and some names."""
        self._rebuild(self.folder, target, rng)

    def _rebuild(self, source: Path, target: Path, rng: random.Random) -> None:
        target.mkdir()
        present = {entry.name: entry.stat().st_ino for entry in source.iterdir()} if source.exists() else {}
        sure = self._names.get(source, {})
        for name in sorted({*sure, *present}):
            inode = sure.get(name)
            if present.get(name) != inode and rng.random() < 0.3:  # this change of the directory came through
                inode = present.get(name)
            path = source / name
            if inode is None:
                continue
            if path.is_dir() or path in self._names:
                self._rebuild(path, target / name, rng)
                continue
            now = path.read_bytes() if present.get(name) == inode else b""
            (target / name).write_bytes(self._partly(self._content.get(inode, b""), now, rng))

    @staticmethod
    def _partly(synced: bytes, now: bytes, rng: random.Random) -> bytes:
        content = bytearray(synced)
        content += bytes(max(0, len(now) - len(content)))  # the length may be ahead of the data
        for at in range(0, len(now), _PAGE):
            if rng.random() < 0.5:
                content[at : at + _PAGE] = now[at : at + _PAGE]
        return bytes(content)


@contextmanager
def _restarted() -> Iterator[None]:
    """The machine has been started anew, for those who ask `files.boot_id`."""
    start = bytes(range(16))
    with (
        mock.patch.object(files, "boot_id", return_value=start),
        mock.patch.object(journal, "boot_id", return_value=start),
    ):
        yield


@job
def go_dark(template: str, folder: str, steps: int, seed: int) -> dict[str, Any]:
    """After each step, a flush and a compaction now and then, the machine goes dark."""
    if not Path("/proc/self/fd").exists():
        raise CannotTryError("this system does not tell which file a descriptor is of")
    root = Path(folder)
    place = Place(template, root / "place")
    writes = Countdown(0, armed=False)
    count_calls(writes, str(root), syncs=False)
    disk = Disk(place.folder)
    disk.watch()
    rng = random.Random(seed)  # noqa: S311
    store = place.open(dim=DIM)
    for k in range(steps):
        syncs, writes.points, writes.armed = disk.syncs, 0, True
        with store.transaction() as transaction:
            step(transaction, k)
        writes.armed = False
        if disk.syncs == syncs and not writes.points:
            store.close()
            raise CannotTryError("its commits write and sync in C, which cannot be watched from Python")
        if compacts_after(k, _EVERY):
            store.compact()
        if k % 9 == 4:
            store.flush()
        lost = Place(template, root / "lost")
        shutil.rmtree(lost.folder)
        disk.after_power_loss(lost.folder, rng)
        with _restarted(), lost.open("r" if k % 2 else "a") as found:
            check(found, model(_EVERY).after(k)[-1])
    store.close()
    return {"power losses": steps, "syncs": disk.syncs}
