"""Environments: one per directory and process, shared by every handle of the process that has it open.

data.mdb      the store
lock.mdb      LMDB's table of readers, in all processes
writer.lock   locked by the writer, names its pid
open.lock     locked (shared) by every process that has the store open; exclusively by who must be alone

LMDB may be opened once per process, so the handles of a process share an `Environment`. It is opened by one process at
a time, under a lock on the directory (the gate). Who finds nobody else in `open.lock` may rewrite `lock.mdb`, whatever
it holds, and may replace `data.mdb`.

LMDB's own locks are fcntl locks, which a process loses when it closes *any* descriptor of the file, e.g. after copying
it. A second process would then take itself to be the first and set up the table of readers anew, under the feet of the
others. Where the system has them, a lock of the open file description holds LMDB's byte as well; nothing but its own
closing takes that away.

Without permission to write `lock.mdb` a reader cannot announce itself, and a writer would overwrite the pages that it
reads. So it keeps writers out: it holds `writer.lock`, shared, for as long as it reads.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lmdb

from aesg.backends.blocks import store
from aesg.backends.files import os_errors
from aesg.backends.lmdb import DATA, OPEN_LOCK, pages
from aesg.backends.lmdb.errors import lmdb_errors
from aesg.errors import LockedError, StorageError

LOCK: Final = "lock.mdb"
WRITER_LOCK: Final = "writer.lock"
FAR_BEHIND: Final = 1000
"""Commits that a reader is behind when it is worth a warning."""
_LOCK_BYTES: Final = 1 << 16
"""Size of lock.mdb: room for a thousand readers. Never sparse: a full disk would be a signal, not an error."""
_TRIES: Final = 50
_PATIENCE: Final = 60.0
"""Seconds to wait for another process that is opening or compacting."""

_log = logging.getLogger("aesg")


@dataclass(frozen=True, slots=True)
class Settings:
    """How an environment is opened.

    Attributes:
        sync: Commits survive power loss.
        map_size: Limit of the size of data.mdb in bytes.
    """

    sync: bool
    map_size: int


@dataclass(frozen=True, slots=True)
class Reader:
    """A reading transaction in any process.

    Attributes:
        pid: Its process.
        commits_behind: How many commits are newer than what it sees; 0 when it holds none.
    """

    pid: int
    commits_behind: int


class View:
    """A read transaction, shared by who sees the same commit.

    Attributes:
        txn: The transaction; None after the last user released it.
        id: LMDB's number of the commit that it sees; 0 when nothing was ever committed.
    """

    __slots__ = ("_environment", "_users", "id", "txn")

    def __init__(self, environment: Environment, txn: lmdb.Transaction[memoryview]) -> None:
        self._environment = environment
        self._users = 1
        self.txn: lmdb.Transaction[memoryview] | None = txn
        self.id = txn.id()

    def share(self) -> View:
        """The same view for another user, who releases it too."""
        with self._environment.lock:
            self._users += 1
        return self

    def release(self) -> None:
        """Let go; the last user's release ends the transaction."""
        with self._environment.lock:
            self._users -= 1
            if not self._users:
                self._environment.views.discard(self)
                self.end()

    def end(self) -> None:
        """End the transaction, whoever still uses it."""
        txn, self.txn = self.txn, None
        if txn is not None:
            txn.abort()


class Environment:
    """An opened directory.

    Attributes:
        directory: Where it lies.
        data: The store's file.
        settings: How it was opened.
        lock: Held around everything that is done with a view.
        commit_lock: Held for the length of a commit; taken before `lock`.
        views: Those that are open.
        users: Containers that are attached.
        page_bytes: Size of a page.
        read_only: It cannot write: no permission.
        is_inherited: It is the parent's, in a forked child.
        stale_cleared: Readers of killed processes that were found and removed.
    """

    def __init__(self, directory: Path, url: str, settings: Settings) -> None:
        self.directory = directory
        self.data = directory / DATA
        self.settings = settings
        self.lock = threading.RLock()
        self.commit_lock = threading.RLock()
        self.views: set[View] = set()
        self.users = 0
        self.stale_cleared = 0
        self.read_only = False
        self.page_bytes = 0
        self._url = url
        self._lmdb: lmdb.Environment | None = None
        self._gate = self._open_fd = self._lock_fd = -1
        self._lockless = self.is_inherited = False
        try:
            self._open()
            self._check()
        except BaseException:
            self.close()
            raise

    @property
    def handle(self) -> lmdb.Environment:
        """LMDB's environment; opened again if that could not be done after its file was exchanged."""
        if self._lmdb is None:
            with self.lock, self._gated():
                self._enter()
        assert self._lmdb is not None
        return self._lmdb

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the directory."""
        status = os.fstat(self._gate)
        return status.st_dev, status.st_ino

    # --- opening -----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        with os_errors("opening", self.directory):
            self._gate = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
            self._lockless = not all(self._permitted(name) for name in (LOCK, OPEN_LOCK))
            self.read_only = self._lockless or not self._permitted(DATA)
        if self._lockless:
            self._keep_writers_out()
            self._start()
            return
        with self._gated():
            with os_errors("opening", self.directory / OPEN_LOCK):
                self._open_fd = os.open(self.directory / OPEN_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._enter()

    def _enter(self) -> None:
        """Join those who have it open; inside the gate."""
        try:
            self._start(alone=_locks(self._open_fd, fcntl.LOCK_EX))
        finally:
            # Nobody else can come between: who wants it exclusively has to pass the gate.
            self._share()

    def _share(self) -> None:
        if not _locks(self._open_fd, fcntl.LOCK_SH):
            raise LockedError(f"{self._url}: another program has locked {self.directory / OPEN_LOCK}")

    def _permitted(self, name: str) -> bool:
        """Whether a file can be written, or created."""
        path = self.directory / name
        effective = os.access in os.supports_effective_ids
        return os.access(path if path.exists() else self.directory, os.W_OK, effective_ids=effective)

    def _keep_writers_out(self) -> None:
        path = self.directory / WRITER_LOCK
        try:
            self._open_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # a copy that no writer ever opened where it lies, and nobody who may not write can begin to
        except OSError as error:
            raise StorageError(f"opening {path}: {error.strerror}") from error
        if not _locks(self._open_fd, fcntl.LOCK_SH):
            raise LockedError(
                f"{self._url}: it is open for writing, and reading beside a writer needs permission to write {LOCK}"
            )

    @contextmanager
    def _gated(self) -> Iterator[None]:
        """Nobody else opens or compacts meanwhile."""
        deadline = time.monotonic() + _PATIENCE
        pause = 0.0005
        while not _locks(self._gate, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise LockedError(f"{self._url}: another process has been opening or compacting it for {_PATIENCE} s")
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        try:
            yield
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def _start(self, *, alone: bool = False) -> None:
        """Open LMDB's environment; inside the gate unless lockless."""
        try:
            with os_errors("opening", self.directory):
                if self.data.exists() and self.data.stat().st_size:
                    pages.read_metas(self.data)
                if not self._lockless:
                    self._lock_fd = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                    if alone:
                        _prepare(self._lock_fd)
                    else:
                        _hold(self._lock_fd)
            with lmdb_errors("opening", self.directory):
                self._lmdb = lmdb.open(
                    os.fsencode(self.directory),
                    map_size=self.settings.map_size,
                    readonly=self.read_only,
                    sync=self.settings.sync,
                    mode=0o666,
                    create=False,
                    max_dbs=0,
                    max_spare_txns=0,
                    lock=not self._lockless,
                    **_engine(self.data),
                )
                self.page_bytes = self._lmdb.stat()["psize"]
            if alone:
                _hold(self._lock_fd)
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        """Close LMDB's environment. Its views die, and the arrays that look into the map."""
        with self.lock:
            for view in list(self.views):
                view.end()
            self.views.clear()
            environment, self._lmdb = self._lmdb, None
            if environment is not None:
                environment.close()
        # Only now: closing it takes away every fcntl lock that this process has on the file, LMDB's own too.
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _check(self) -> None:
        """Walk the pages that a view of ours keeps from being reused."""
        for _ in range(_TRIES):
            view = self.view()
            try:
                if pages.check(self.data, view.id) is not None:
                    return
            finally:
                view.release()
        # Two commits came between each view and the look at its root: whoever makes them has checked the file.

    def close(self) -> None:
        """Release everything."""
        self._stop()
        for fd in (self._open_fd, self._gate):
            if fd >= 0:
                # A child that was forked may have the descriptor too: closing ours would not unlock.
                fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)
        self._open_fd = self._gate = -1

    # --- using -------------------------------------------------------------------------------------------------------

    def view(self) -> View:
        """A view of the newest commit."""
        with self.lock, lmdb_errors("reading", self.data):
            view = View(self, self.handle.begin(buffers=True))
            self.views.add(view)
            return view

    def newest(self) -> int:
        """LMDB's number of the newest commit."""
        with self.lock, lmdb_errors("reading", self.data):
            return self.handle.info()["last_txnid"]

    def readers(self) -> list[Reader]:
        """Readers in all processes, as LMDB's table has them."""
        with self.lock, lmdb_errors("reading", self.directory / LOCK):
            newest = self.handle.info()["last_txnid"]
            lines = self.handle.readers().splitlines()
        found = []
        for line in lines:
            words = line.split()
            if len(words) == 3 and words[0].isdigit():
                seen = int(words[2]) if words[2].isdigit() else newest
                found.append(Reader(int(words[0]), max(0, newest - seen)))
        return found

    def clear_stale_readers(self) -> None:
        """Forget readers of killed processes, who would keep pages from being reused; warn of live ones far behind."""
        readers = self.readers()
        # LMDB tells the dead by their locks, which a living process may have lost (see above): so only when one is.
        if any(not _alive(reader.pid) for reader in readers):
            with self.lock, lmdb_errors("checking the readers of", self.directory):
                self.stale_cleared += self.handle.reader_check()
        for reader in readers:
            if reader.commits_behind >= FAR_BEHIND and _alive(reader.pid):
                _log.warning(
                    "%s: a reader in process %d is %d commits behind; the file grows until it refreshes or closes",
                    self._url,
                    reader.pid,
                    reader.commits_behind,
                )

    def sync(self) -> None:
        """Bring all that was written to the disk."""
        with self.commit_lock, lmdb_errors("syncing", self.data):
            self.handle.sync(True)

    # --- alone -------------------------------------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody else has the store open; then nobody can open it meanwhile."""
        with _registry, self._gated():
            # When it cannot be had exclusively, the shared lock may be gone: taken anew in any case, inside the gate.
            alone = self.users == 1 and not self._lockless and _locks(self._open_fd, fcntl.LOCK_EX)
            try:
                yield alone
            finally:
                if not self._lockless:
                    self._share()

    def exchange(self, new: Path) -> None:
        """Put another file in the place of data.mdb; only while `alone`. All views die.

        Raises:
            CapacityError, StorageError: It could not be done, or not be opened again, which the next call tries.
        """
        self._stop()
        try:
            with os_errors("replacing", self.data):
                os.replace(new, self.data)
                os.fsync(self._gate)
        finally:
            self._start(alone=True)

    # --- forks -------------------------------------------------------------------------------------------------------

    def inherited(self) -> None:
        """In a forked child: let go of what is the parent's without touching it.

        The parent's readers are in the table of readers, which is shared: ending their transactions here would take
        them out. py-lmdb leaves a transaction alone that is deleted in another process than it was begun in.
        """
        self.lock, self.commit_lock = threading.RLock(), threading.RLock()
        for view in self.views:
            view.txn = None
        self.views.clear()
        for fd in (self._open_fd, self._gate):
            if fd >= 0:
                os.close(fd)
        self._open_fd = self._gate = -1
        self.is_inherited = True


# --- which are open --------------------------------------------------------------------------------------------------

_registry = threading.RLock()
_opened: Final[dict[tuple[int, int], Environment]] = {}
_inherited: Final[dict[tuple[int, int], Environment]] = {}
"""In a forked child: the parent's, by directory. They stay as they are until their directory is opened here: LMDB
refuses a second environment of the same files."""


def attach(directory: Path, url: str, settings: Settings, *, writing: bool) -> Environment:
    """The environment of a directory, opened if it is not; to be given back with `detach`.

    Raises:
        CorruptionError: It is damaged.
        LockedError: Another process keeps it from being opened, or this one has it open with other settings.
        StorageError: No permission, or another error of the system.
    """
    with _registry:
        with os_errors("opening", directory):
            status = os.stat(directory)
        key = (status.st_dev, status.st_ino)
        environment = _opened.get(key)
        if environment is None:
            if key in _inherited:
                _inherited.pop(key)._stop()
            environment = _opened[key] = Environment(directory, url, settings)
        elif writing:
            have = environment.settings
            if (settings.sync and not have.sync) or settings.map_size != have.map_size:
                raise LockedError(
                    f"{url}: this process has it open with sync={str(have.sync).lower()} and map_size="
                    f"{have.map_size}; close those handles first, or open it with the same options"
                )
        if writing and environment.read_only:
            if not environment.users:
                del _opened[key]
                environment.close()
            raise StorageError(f"{url}: no permission to write {environment.data}; open it with mode='r'")
        environment.users += 1
        return environment


def detach(environment: Environment) -> None:
    """Give back what `attach` gave; the last one closes it."""
    with _registry:
        environment.users -= 1
        if not environment.users and not environment.is_inherited:
            _opened.pop(environment.identity, None)
            environment.close()


def _before_fork() -> None:
    """Wait until no thread is inside LMDB: in the child it would be there for ever."""
    # Stores first, as in every call: else one that holds its store's lock would wait for ours, and we for it.
    store.hold_for_fork()
    _registry.acquire()
    for environment in _opened.values():
        environment.commit_lock.acquire()
        environment.lock.acquire()


def _after_fork_in_parent() -> None:
    for environment in _opened.values():
        environment.lock.release()
        environment.commit_lock.release()
    _registry.release()


def _after_fork_in_child() -> None:
    global _registry
    _registry = threading.RLock()
    for key, environment in _opened.items():
        environment.inherited()
        _inherited[key] = environment
    _opened.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


# --- locks and files -------------------------------------------------------------------------------------------------


def _locks(fd: int, kind: int) -> bool:
    """Lock a whole file without waiting; False when another holds it."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise StorageError(f"locking: {error.strerror}") from error
    return True


def _prepare(fd: int) -> None:
    """Give lock.mdb its size, with all of its blocks; only while nobody uses it."""
    status = os.fstat(fd)
    if status.st_size == _LOCK_BYTES and status.st_blocks * 512 >= _LOCK_BYTES:
        return
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except OSError:
        return  # another program has it open through LMDB itself
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, bytes(_LOCK_BYTES), 0)
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN, 1, 0)


def _hold(fd: int) -> None:
    """Hold the byte of lock.mdb by which LMDB sees that it is in use, in a way that no other descriptor undoes.

    Not every system and file system can, and it is but a second line of defence.
    """
    command = getattr(fcntl, "F_OFD_SETLK", None)
    if command is not None:
        with suppress(OSError):
            # l_type, l_whence, l_start, l_len, l_pid
            fcntl.fcntl(fd, command, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _engine(data: Path) -> dict[str, Any]:
    """New files in the older of LMDB's two formats, where there is a choice: it is the one that `pages` reads."""
    with suppress(OSError):
        if data.stat().st_size:
            return {}
    return {"lib_version": 0} if hasattr(lmdb.Environment, "lib_version") else {}
