"""`LmdbContainer`: blocks in an LMDB environment, one key each.

A block's key is its column's name, a zero byte and its number (big-endian), so that the blocks of a column lie side by
side in their order; the head has a key of its own, before all of them. Blocks of half a page and more lie in pages of
their own, which LMDB never moves: `get` gives them as views of the map. What is smaller lies inside the pages of the
tree, which are rewritten when a neighbour changes: `get` gives copies.

With the head goes LMDB's number of the commit that wrote it, and a checksum of both. A tree that is not the one of the
transaction that reads it, because an older root or meta page came back, is noticed by that.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import lmdb
import numpy as np

from aesg.backends.blocks.container import Block, BlockContainer, Changes, Column
from aesg.backends.files import WriterLock, os_errors, sync_directory
from aesg.backends.lmdb import DATA, pages
from aesg.backends.lmdb.environment import WRITER_LOCK, Environment, Settings, View, attach, detach
from aesg.backends.lmdb.errors import code, lmdb_errors, translated
from aesg.errors import AESGError, CapacityError, ClosedError, ConflictError, CorruptionError, LockedError, StorageError
from aesg.protocols import Capabilities, Durability, Violation
from aesg.records import JSON

COMPACTING: Final = "data.mdb.new"
"""The copy that compaction makes; left there by a process that was killed meanwhile."""
_SLACK: Final = 1 << 20
_IN_MEMORY: Final = 1 << 25
"""Bytes that one transaction puts, if more can be put before it."""

_Put: TypeAlias = tuple[bytes, Block]

_log = logging.getLogger("aesg")


class LmdbContainer(BlockContainer):
    """An LMDB environment as a place for blocks.

    Args:
        url: Canonical URL, for messages.
        directory: Where it lies; created when it is opened for writing.
        capabilities: What the store promises; its durability says whether commits are synced.
        writing: Open for writing.
        map_size: Limit of the size of data.mdb in bytes.

    Raises:
        CorruptionError: It is damaged.
        LockedError: Another writer holds it.
        CapacityError, StorageError: What the system says.
    """

    resident = True
    block_bytes = 1 << 16
    log_blocks = 1024

    def __init__(self, url: str, directory: Path, capabilities: Capabilities, *, writing: bool, map_size: int) -> None:
        self.capabilities = capabilities
        self._url = url
        self._directory = self.scratch = directory
        self._settings = Settings(capabilities.durability is Durability.POWER_LOSS, map_size)
        self._writer_lock: WriterLock | None = None
        self._environment: Environment | None = None
        self._view: View | None = None
        self._reclaimed = ""
        try:
            if writing:
                self._begin_writing()
            self._environment = attach(directory, url, self._settings, writing=writing)
            self._view = self._looked_at(self._environment.view())
            if writing:
                self._environment.clear_stale_readers()
                if self._settings.sync:
                    self._environment.sync()  # who wrote before may not have: a durable commit stands on all of it
        except BaseException:
            self.close()
            raise

    def _begin_writing(self) -> None:
        created = [path for path in (self._directory, *self._directory.parents) if not path.exists()]
        with os_errors("creating", self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
        self._writer_lock = WriterLock(self._directory / WRITER_LOCK, self._url)
        with os_errors("creating", self._directory):
            if not (self._directory / DATA).exists():
                (self._directory / DATA).touch()
                if self._settings.sync:
                    for path in (self._directory, *(made.parent for made in created)):
                        sync_directory(path)
            (self._directory / COMPACTING).unlink(missing_ok=True)

    # --- reading -----------------------------------------------------------------------------------------------------

    def head(self) -> dict[str, JSON] | None:
        view = self._open_view()
        if not view.id:
            return None
        try:
            head = json.loads(self._record(view))
        except (ValueError, RecursionError) as error:
            raise CorruptionError(f"{self._data}: the head is not JSON: {error}") from error
        if not isinstance(head, dict):
            raise CorruptionError(f"{self._data}: the head is not a JSON object")
        return head

    def get(self, column: Column, number: int, rows: int) -> Block | None:
        environment = self._attached()
        view = self._view or self._open_view()
        with environment.lock:
            if view.txn is None:
                raise ClosedError(f"{self._url}: this view of the store has ended")
            try:
                found = view.txn.get(block_key(column.name, number))
            except lmdb.Error as error:
                raise translated(error, f"reading {environment.data}") from error
            if found is None:
                return None
            dtype = column.dtype
            shape = column.shape(rows)
            if found.nbytes != rows * column.row_bytes:
                dtype, shape = np.dtype("u1"), (found.nbytes,)
            if not found.nbytes:
                return np.empty(shape, dtype)
            block = np.frombuffer(found, dtype).reshape(shape)
            if block.ctypes.data % environment.page_bytes != pages.HEADER:
                block = block.copy()  # it lies inside a page of the tree
                block.flags.writeable = False
            return block

    def refresh(self) -> bool:
        environment = self._attached()
        before = self._open_view()
        if environment.newest() == before.id:
            return False
        view = self._looked_at(environment.view())
        if view.id == before.id:  # the newest commit is in the file, but not announced yet
            view.release()
            return False
        self._view = view
        self.version += 1
        before.release()
        return True

    def snapshot(self) -> LmdbContainer:
        other = LmdbContainer.__new__(LmdbContainer)
        other.capabilities = self.capabilities
        other._url, other._directory, other._settings = self._url, self._directory, self._settings
        other._writer_lock, other._reclaimed = None, ""
        other._environment = other._view = None
        environment = attach(self._directory, self._url, self._settings, writing=False)
        if environment is not self._environment:
            detach(environment)
            raise StorageError(f"{self._url}: the folder was moved or exchanged; close the store and open it again")
        other._environment, other._view = environment, self._open_view().share()
        return other

    def _attached(self) -> Environment:
        if self._environment is None:
            raise ClosedError(f"{self._url}: was closed, or inherited by a fork; open it anew")
        return self._environment

    def _open_view(self) -> View:
        """The view; a new one after a commit that could not get one."""
        if self._view is None:
            self._view = self._looked_at(self._attached().view())
            self.version += 1
        return self._view

    def _looked_at(self, view: View) -> View:
        """A new view, after a look at whether it is of the tree that its transaction says."""
        try:
            if view.id:
                self._record(view)
        except BaseException:
            view.release()
            raise
        return view

    def _record(self, view: View) -> bytes:
        """The head's JSON.

        Raises:
            CorruptionError: There is none, or not the one that was written in this commit.
        """
        with self._attached().lock, lmdb_errors("reading", self._data):
            if view.txn is None:
                raise ClosedError(f"{self._url}: this view of the store has ended")
            found = view.txn.get(pages.HEAD_KEY)
            record = b"" if found is None else bytes(found)
        return pages.checked_head(record, view.id, self._data)

    @property
    def _data(self) -> Path:
        return self._directory / DATA

    # --- writing -----------------------------------------------------------------------------------------------------

    def commit(self, changes: Changes) -> None:
        environment = self._attached()
        assert self._writer_lock is not None
        before = self._open_view()
        head = changes.head_as_json()
        puts = sorted(((block_key(*key), block) for key, block in changes.puts.items()), key=lambda put: put[0])
        if before.id and sum(block.nbytes for _, block in puts) > _IN_MEMORY:
            puts = self._put_ahead(environment, puts, self._record(before))
            before = self._open_view()
        with environment.commit_lock:
            try:
                with environment.handle.begin(write=True) as txn:
                    if txn.id() != before.id + 1:
                        raise ConflictError(f"{self._url}: another program has written to {self._data}; open it anew")
                    for dropped in changes.drops:
                        if not txn.delete(block_key(*dropped)):
                            raise CorruptionError(f"{self._data}: block {dropped[1]} of {dropped[0]} is missing")
                    for key, block in puts:
                        txn.put(key, np.ascontiguousarray(block).data)
                    txn.put(pages.HEAD_KEY, pages.head_record(txn.id(), head))
            except lmdb.Error as error:
                raise self._refused(error, sum(block.nbytes for _, block in puts) + len(head)) from error
        self._view = None
        self.version += 1
        before.release()
        # The commit stands, whatever happens to the view of it: the next read tries again.
        with suppress(AESGError):
            self._view = environment.view()

    def _put_ahead(self, environment: Environment, puts: list[_Put], head: bytes) -> list[_Put]:
        """Put blocks of which there was none, in transactions of bounded size; gives back the others.

        What a transaction puts is in memory until it is committed. The present head does not know of these blocks, so
        that nobody asks for them; should the commit that does never happen, a later one puts them again.
        """
        left, group, size = [], list[_Put](), 0
        done: list[bytes] = []

        def write(group: Sequence[_Put]) -> None:
            with environment.handle.begin(write=True) as txn:
                if txn.id() != self._open_view().id + 1:
                    raise ConflictError(f"{self._url}: another program has written to {self._data}; open it anew")
                for key, block in group:
                    txn.put(key, np.ascontiguousarray(block).data)
                txn.put(pages.HEAD_KEY, pages.head_record(txn.id(), head))
            self._move_on()
            done.extend(key for key, _ in group)

        with environment.commit_lock:
            try:
                with environment.handle.begin() as txn:
                    present = {key for key, _ in puts if txn.get(key) is not None}
                for key, block in puts:
                    if key in present:
                        left.append((key, block))
                        continue
                    group.append((key, block))
                    size += block.nbytes
                    if size >= _IN_MEMORY // 2:
                        write(group)
                        group, size = [], 0
            except lmdb.Error as error:
                refused = self._refused(error, size)
                with suppress(lmdb.Error, AESGError):
                    for gone in (done, []):  # pages that one transaction frees are used again by the next but one
                        with environment.handle.begin(write=True) as txn:
                            for key in gone:
                                txn.delete(key)
                            txn.put(pages.HEAD_KEY, pages.head_record(txn.id(), head))
                        self._move_on()
                raise refused from error
        return left + group

    def _move_on(self) -> None:
        """After a transaction of our own."""
        before, self._view = self._view, None
        self.version += 1
        if before is not None:
            before.release()

    def _refused(self, error: lmdb.Error, size: int) -> AESGError:
        """What an error of a transaction means that puts so many bytes."""
        what = f"committing to {self._data}"
        if code(error) == errno.EIO and self._is_full(size):
            # A write that the system cut short, because there was no room for all of it, is LMDB's EIO.
            return CapacityError(f"{what}: the disk is full; free some space, nothing was lost")
        return translated(error, what)

    def _is_full(self, size: int) -> bool:
        """Whether there is no room for so many bytes more."""
        with os_errors("looking at", self._data):
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            length = self._data.stat().st_size
            if limit != resource.RLIM_INFINITY and length + size + _SLACK > limit:
                return True
            probe = self._directory / "room.probe"
            try:
                fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(fd, 0, size + _SLACK)
                finally:
                    os.close(fd)
            except OSError as error:
                return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            finally:
                with suppress(OSError):
                    probe.unlink()
        return False

    def reclaim(self) -> None:
        environment = self._attached()
        free = pages.free_pages(environment.data, self._open_view().id)
        self._reclaimed = ""
        if not free:  # one that is hardly smaller is made too: what was dropped is to be nowhere
            return
        try:
            with environment.alone() as alone, environment.commit_lock:
                if alone:
                    with self._compacted() as new:
                        self._exchange(environment, new)
                else:
                    self._reclaimed = "others have the store open: its free pages are used again, but stay in the file"
        except (CapacityError, LockedError, StorageError) as error:
            # What was to be committed is; and the old file, with its free pages, is as good as before.
            self._reclaimed = str(error)
            _log.warning("%s: the file could not be made smaller: %s", self._url, error)

    @contextmanager
    def _compacted(self) -> Iterator[Path]:
        """A copy of the file without its free pages, on the disk."""
        new = self._directory / COMPACTING
        try:
            with lmdb_errors("compacting into", new):
                fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
                try:
                    self._attached().handle.copyfd(fd, compact=True)
                    pages.blank_slack(new, 1)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                if pages.check(new, 1) is None:
                    raise CorruptionError(f"{new}: expected a copy with one commit")
            yield new
        finally:
            with suppress(OSError):
                new.unlink()

    def _exchange(self, environment: Environment, new: Path) -> None:
        if self._view is not None:
            self._view.release()
            self._view = None
        self.version += 1
        environment.exchange(new)
        self._view = self._looked_at(environment.view())

    # --- both --------------------------------------------------------------------------------------------------------

    def verify(self) -> list[Violation]:
        environment = self._attached()
        view = environment.view()
        try:
            leaked = pages.check(environment.data, view.id)
        except CorruptionError as error:
            return [Violation("damaged-page", str(environment.data), str(error))]
        finally:
            view.release()
        if leaked:
            return [Violation("lost-pages", str(environment.data), f"{leaked} pages are neither used nor free")]
        return []

    def stats(self) -> dict[str, Any]:
        environment = self._attached()
        view = environment.view()
        try:
            free = pages.free_pages(environment.data, view.id)
        finally:
            view.release()
        with os_errors("looking at", self._directory):
            used = [entry.stat().st_blocks * 512 for entry in self._directory.iterdir() if entry.is_file()]
        readers = environment.readers()
        found: dict[str, Any] = {
            "bytes_on_disk": sum(used),
            "map_size": environment.settings.map_size,
            "free_pages": free,
            "free_bytes": free * environment.page_bytes,
            "readers": [{"pid": reader.pid, "commits_behind": reader.commits_behind} for reader in readers],
            "oldest_reader_commits_behind": max((reader.commits_behind for reader in readers), default=0),
            "stale_readers_cleared": environment.stale_cleared,
        }
        return found | ({"not_reclaimed": self._reclaimed} if self._reclaimed else {})

    def forked(self) -> None:
        # The environment's module has let go of the environment; the view's transaction is the parent's.
        self._environment = self._view = None
        if self._writer_lock is not None:
            self._writer_lock.forget()
            self._writer_lock = None

    def reopen(self) -> Self:
        return type(self)(
            self._url, self._directory, self.capabilities, writing=False, map_size=self._settings.map_size
        )

    def close(self) -> None:
        view, self._view = self._view, None
        environment, self._environment = self._environment, None
        lock, self._writer_lock = self._writer_lock, None
        try:
            if view is not None:
                view.release()
            if environment is not None:
                detach(environment)
        finally:
            if lock is not None:
                lock.release()


def block_key(name: str, number: int) -> bytes:
    """The key of a block."""
    return b"%b\0%b" % (name.encode(), number.to_bytes(6, "big"))
