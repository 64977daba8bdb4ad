"""A Zarr hierarchy in a local directory, with atomic commits: the container that reads, and the one that writes.

A reader holds the commit lock shared for as long as it reads, and looks whether the root's document is still the file
that it has open: every commit gives it a new one. Chunks that are not compressed are mapped; a commit never writes to a
file that has its name, so a mapping stays what it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

from aesg.backends.blocks.container import Block, Changes, Column
from aesg.backends.files import WriterLock, commit_lock, os_errors, sync_directory
from aesg.backends.journal import Journal
from aesg.backends.zarr import codecs, documents
from aesg.backends.zarr.arrays import ArrayContainer
from aesg.backends.zarr.directory import (
    JOURNAL,
    LOCK,
    PRIVATE,
    Staged,
    begin,
    check_whole,
    recognises,
    recover,
    stage,
    sync_all,
    sync_files,
    write_again,
)
from aesg.backends.zarr.mapping import map_file, read_file
from aesg.backends.zarr.verify import find_violations
from aesg.errors import (
    CapacityError,
    ConflictError,
    CorruptionError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    StorageError,
)
from aesg.protocols import Capabilities, Durability, Violation

_PATIENCE: Final = 10.0
"""Seconds that a reader waits for a writer to finish what it is doing."""
_MAPPED: Final = 1 << 16
"""Bytes from which a chunk is mapped."""
_CHUNKS: Final = 1 << 15
"""Chunks up to which a store is mapped: half of what Linux allows a process."""
_CHECKPOINT: Final = 1 << 25
"""Bytes of journal after which a synced store syncs the files themselves."""


class LocalContainer(ArrayContainer):
    """Arrays in a directory.

    Attributes:
        directory: Where they lie.
    """

    def __init__(self, url: str, directory: Path, codec: str | None, capabilities: Capabilities) -> None:
        super().__init__(url, codec)
        self.directory = directory
        self.scratch = directory / PRIVATE
        self.capabilities = capabilities
        self._root = str(directory) + os.sep

    def _place(self, key: str) -> str:
        return self._root + key

    def _read(self, key: str, limit: int) -> bytes | None:
        fd = self._open(key)
        if fd is None:
            return None
        path = Path(self._place(key))
        with os_errors("reading", path):
            try:
                size = os.fstat(fd).st_size
                if size > limit:
                    raise CorruptionError(f"{path}: {size} bytes, expected at most {limit}")
                return read_file(fd, size).tobytes()
            finally:
                os.close(fd)

    def _open(self, key: str) -> int | None:
        path = self._root + key
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(f"opening {path}: {error.strerror}") from error

    def _stamp(self, key: str) -> tuple[int, int]:
        """Device and inode of a file; zeros when there is none."""
        path = self._root + key
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return 0, 0
        except OSError as error:
            raise StorageError(f"looking at {path}: {error.strerror}") from error
        return status.st_dev, status.st_ino

    def get(self, column: Column, number: int, rows: int) -> Block | None:
        if not rows or documents.codec_of(column, self._layout.codec) != "none":
            return super().get(column, number, rows)
        if not self._check(column, number * column.block_rows + rows):
            return None
        key = documents.chunk_key(column, number, self._layout)
        fd = self._open(key)
        if fd is None:
            return None
        path = Path(self._place(key))
        with os_errors("reading", path):
            try:
                size, wanted = os.fstat(fd).st_size, codecs.chunk_bytes(column)
                if size != wanted:
                    raise CorruptionError(f"{path}: {size} bytes, expected {wanted}")
                wanted = rows * column.row_bytes
                raw = map_file(fd, wanted) if self.resident and wanted >= _MAPPED else None
                if raw is None:
                    raw = read_file(fd, wanted)
            finally:
                os.close(fd)
        return codecs.block_of(column, raw, rows)

    def _set_resident(self) -> None:
        self.resident = self._layout.codec == "none" and self._layout.chunks <= _CHUNKS

    def verify(self) -> list[Violation]:
        return find_violations(self.directory)

    def stats(self) -> dict[str, Any]:
        used = 0
        with os_errors("looking at", self.directory):
            for folder, _, names in os.walk(self.directory):
                for name in names:
                    with suppress(FileNotFoundError):  # a writer is at work
                        used += os.stat(os.path.join(folder, name)).st_blocks * 512
        return {**super().stats(), "bytes_on_disk": used}


class LocalReader(LocalContainer):
    """Reads, beside a writer or without one; sees the newest commit."""

    def __init__(self, url: str, directory: Path, codec: str | None, capabilities: Capabilities) -> None:
        super().__init__(url, directory, codec, capabilities)
        self._journal: Journal | None = None
        self._guard = self._root_fd = -1
        self._seen = (0, 0)
        self._move()

    @contextmanager
    def reading(self) -> Iterator[None]:
        if self._guard < 0:
            self._move()  # it failed the last time
        while True:
            with commit_lock(self._guard, exclusive=False):
                if self._at_rest() and (self._stamp(documents.ROOT) == self._seen or self._take_root()):
                    yield
                    return
            self._move()

    def refresh(self) -> bool:
        before = self.version
        with self.reading():
            return self.version != before

    def _at_rest(self) -> bool:
        """Whether no commit is half carried out; the commit lock is held."""
        journal = self._journal
        if self._stamp(JOURNAL)[1] != (0 if journal is None else journal.inode):
            return False
        return journal is None or not journal.pending

    def _take_root(self) -> bool:
        """Move to the newest commit; False when the directory is no longer the one that is open."""
        status = os.fstat(self._guard)
        fd = self._open(documents.ROOT)
        if fd is None or self._stamp("") != (status.st_dev, status.st_ino):
            if fd is not None:
                os.close(fd)
            return False
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self.version += 1
        # It stays open, so that no other file gets its inode number.
        self._root_fd, self._seen = fd, (0, 0)
        self._load_root()
        self._set_resident()
        status = os.fstat(fd)
        self._seen = (status.st_dev, status.st_ino)
        return True

    def _move(self) -> None:
        """Open what there is now."""
        deadline = time.monotonic() + _PATIENCE
        with os_errors("opening", self.directory):
            while not self._try_move():
                if time.monotonic() > deadline:
                    raise LockedError(
                        f"{self.url}: a writer kept it from being read for {_PATIENCE} seconds; try again"
                    )
                time.sleep(0.01)

    def _try_move(self) -> bool:
        """False when something moved meanwhile."""
        self._let_go()
        if not recognises(self.directory):
            check_whole(self.directory, self.url)
            raise NotFoundError(f"{self.url}: there is no store; open it with mode='a' to create one")
        self._journal = _watch(self.directory / JOURNAL)
        if self._journal is not None and self._journal.pending and self._recover_if_abandoned():
            return False
        self._guard = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
        with commit_lock(self._guard, exclusive=False):
            if not self._at_rest():
                return False
            if self._stamp(documents.ROOT) == (0, 0):
                check_whole(self.directory, self.url)
                raise NotFoundError(f"{self.url}: a store was begun here, but nothing was committed to it")
            self._rows.clear()
            return self._take_root()

    def _recover_if_abandoned(self) -> bool:
        """Do what the next writer would do first, when nobody holds the store; False when somebody does."""
        try:
            lock = WriterLock(self.directory / LOCK, self.url)
        except LockedError:
            return False
        except StorageError as error:
            raise ReadOnlyError(
                f"{self.url}: its last writer was killed and the journal has to be applied, which needs write access; "
                f"open it once with mode='a'"
            ) from error
        try:
            guard = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                with commit_lock(guard, exclusive=True):
                    recover(self.directory, sync=self.capabilities.durability is Durability.POWER_LOSS)
            finally:
                os.close(guard)
        finally:
            lock.release()
        return True

    def commit(self, changes: Changes) -> None:
        raise ReadOnlyError(f"{self.url}: opened for reading; open it with mode='a' to write")

    def _let_go(self) -> None:
        """Close everything, for opening what lies there now; `_root_fd` stays until there is another."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1

    def reopen(self) -> Self:
        return type(self)(self.url, self.directory, None, self.capabilities)

    def close(self) -> None:
        self._let_go()
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1


class LocalWriter(LocalContainer):
    """The one container that writes to a directory."""

    def __init__(self, url: str, directory: Path, codec: str | None, capabilities: Capabilities) -> None:
        super().__init__(url, directory, codec, capabilities)
        self._sync = capabilities.durability is Durability.POWER_LOSS
        self._durability = capabilities.durability.name.lower()
        self._forked = self._distrusted = False
        self._in_doubt: tuple[Staged, Changes] | None = None
        self._unsynced: tuple[set[str], set[Path]] = set(), set()
        with os_errors("opening", directory):
            if not recognises(directory):
                check_whole(directory, url)
        begin(directory, sync=self._sync)
        self._lock = WriterLock(directory / LOCK, url)
        try:
            with os_errors("opening", directory):
                self._guard = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._begin()
            except BaseException:
                os.close(self._guard)
                raise
        except BaseException:
            self._lock.release()
            raise

    def _begin(self) -> None:
        with commit_lock(self._guard, exclusive=True):
            recover(self.directory, sync=self._sync)
            check_whole(self.directory, self.url)
            self._load_root()
            self._set_resident()
            if self._sync and self._head is not None and self._layout.durability != self._durability:
                sync_all(self.directory)  # who wrote before did not: a durable commit must not stand on what is not
            path = self.directory / JOURNAL
            with os_errors("creating", path):
                self._journal = Journal(path, create=True, sync=self._sync)
            try:
                self._generation = 1
                self._journal.restart(self._generation, [])
                self._journal.mark_applied(self._generation)
            except BaseException:
                self._journal.close()
                raise

    # Commits

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._settle()
        yield

    def commit(self, changes: Changes) -> None:
        if self._settle():
            raise ConflictError(
                f"{self.url}: the commit before this one was in doubt, and has happened; begin a new transaction"
            )
        self._check_all(changes)
        writes = self._writes(changes, self._durability)
        staged = stage(self.directory, writes, self._drops(changes), sync=self._sync)
        try:
            if self._sync and staged.inline is None:
                self._checkpoint()  # only this entry may be there while the files that it names change their names
            with commit_lock(self._guard, exclusive=True):
                append = self._journal.append if self._sync else self._journal.restart
                append(self._generation + 1, staged.entry())
                self._generation += 1
                self._in_doubt = staged, changes
                self._carry_out()
        except BaseException as error:
            if self._in_doubt is None:
                staged.discard()
                raise
            raise StorageError(
                f"{self.url}: the commit is in the journal but could not be carried out yet; this handle will do it, "
                f"or the next one"
            ) from error
        if self._sync:
            self._put_off_syncing(staged)

    def _carry_out(self) -> None:
        """Do what the newest entry says; readers are kept out."""
        assert self._in_doubt is not None
        staged, changes = self._in_doubt
        staged.carry_out()
        self._journal.mark_applied(self._generation)
        self._in_doubt = None
        self._moved(changes, self._durability)
        self._set_resident()

    def _settle(self) -> bool:
        """Carry out a commit that could not be carried out when it was made; whether there was one."""
        if self._in_doubt is None:
            return False
        staged = self._in_doubt[0]
        with commit_lock(self._guard, exclusive=True):
            self._carry_out()
        if self._sync:
            self._put_off_syncing(staged)
        return True

    def _put_off_syncing(self, staged: Staged) -> None:
        """Remember what is on the disk only as a part of the journal; later bring it to where it belongs."""
        keys, folders = self._unsynced
        folders |= staged.folders
        if staged.inline is not None:
            keys.update(staged.writes)
        if staged.inline is None or self._journal.size > _CHECKPOINT:
            with suppress(CapacityError, StorageError):  # the commit stands; the next one tries again
                self._checkpoint()

    def _checkpoint(self) -> None:
        """Sync the files themselves, and begin the journal anew."""
        try:
            if self._distrusted:
                with commit_lock(self._guard, exclusive=True):
                    write_again(self.directory, self._journal)
            sync_files(self.directory, *self._unsynced)
        except BaseException:
            # What a sync that failed has not written, the next one does not either: it has to be written again.
            self._distrusted = True
            raise
        self._distrusted = False
        self._unsynced = set(), set()
        self._journal.restart(self._generation + 1, [])
        self._generation += 1
        self._journal.mark_applied(self._generation)

    def flush(self) -> None:
        self._settle()
        if self._sync:
            self._checkpoint()

    def reclaim(self) -> None:
        with suppress(CapacityError, StorageError):  # the commit stands, and the journal goes when this is closed
            self.flush()
            self._journal.trim()  # it may have what was dropped

    # The end

    def forked(self) -> None:
        self._forked = True
        self._lock.forget()

    def reopen(self) -> Any:
        return LocalReader(self.url, self.directory, None, self.capabilities)

    def close(self) -> None:
        try:
            if not self._forked:
                self.flush()
                path = self.directory / JOURNAL
                with os_errors("removing", path):
                    path.unlink(missing_ok=True)
                    if self._sync:
                        sync_directory(path.parent)
        finally:
            self._journal.close()
            os.close(self._guard)
            if not self._forked:
                self._lock.release()


def _watch(path: Path) -> Journal | None:
    with os_errors("opening", path):
        try:
            return Journal(path, writable=False)
        except FileNotFoundError:
            return None
