"""Files, as every local backend needs them: whole writes, atomic replacement, locks, errors in our own words."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from aesg.errors import CapacityError, LockedError, StorageError, UnsupportedError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_IOV_MAX: Final = 1024


class os_errors:  # noqa: N801 - used like a function, with os_errors("writing", path):
    """Turn an OSError into CapacityError (the disk is full) or StorageError (anything else).

    A class, not a generator: it stands around every single write. The message is made only when there is one.
    """

    __slots__ = ("_doing", "_path")

    def __init__(self, doing: str, path: Path) -> None:
        self._doing = doing
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, OSError) or isinstance(error, StorageError):
            return
        what = f"{self._doing} {self._path}"
        if error.errno in _FULL:
            raise CapacityError(f"{what}: {error.strerror}; free some space and try again, nothing was lost") from error
        raise StorageError(f"{what}: {error.strerror or error}") from error


def write_all(fd: int, buffers: Sequence[Any], offset: int) -> int:
    """Write all buffers from `offset` on, however often the system stops half-way; returns the number of bytes."""
    start = offset
    if len(buffers) == 1:  # the common case, and nearly always done in one go
        offset += os.pwrite(fd, buffers[0], offset)
        if offset - start == memoryview(buffers[0]).nbytes:
            return offset - start
        buffers, offset = [memoryview(buffers[0]).cast("B")[offset - start :]], offset
    pending = [memoryview(b).cast("B") for b in buffers if memoryview(b).nbytes]
    while pending:
        done = os.pwritev(fd, pending[:_IOV_MAX], offset)
        offset += done
        while pending and done >= len(pending[0]):
            done -= len(pending.pop(0))
        if done:
            pending[0] = pending[0][done:]
    return offset - start


def read_exactly(fd: int, size: int, offset: int) -> bytes:
    """`size` bytes from `offset`; fewer only at the end of the file."""
    parts = []
    while size:
        part = os.pread(fd, size, offset)
        if not part:
            break
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return b"".join(parts)


def replace_file(path: Path, data: bytes, *, sync: bool) -> None:
    """Give `path` a new content, all at once: a reader, or a crash, sees the old one or the new one."""
    new = path.with_name(f"{path.name}.new")
    with os_errors("writing", path):
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            try:
                write_all(fd, [data], 0)
                if sync:
                    os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(new, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(new)  # on a full disk half a file is room that somebody needs
            raise
        if sync:
            sync_directory(path.parent)


def sync_data(fd: int) -> None:
    """Bring a file's content to the disk, and of its metadata what is needed to find it."""
    getattr(os, "fdatasync", os.fsync)(fd)  # macOS has no fdatasync


def sync_directory(path: Path) -> None:
    """Make renames and creations in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@cache
def boot_id() -> bytes:
    """16 bytes that change when the machine restarts, and with it the page cache is gone; zeros where unknown."""
    try:
        return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


class WriterLock:
    """An exclusive lock on a file while this process lives or until `release`; the file names the holder's pid.

    `flock` excludes other processes and other handles of this one alike, and the system releases it when we die.
    """

    def __init__(self, path: Path, url: str) -> None:
        if fcntl is None:  # pragma: no cover - Windows
            raise UnsupportedError(f"{url}: local stores need POSIX file locks, which this system does not have")
        self._path = path
        with os_errors("locking", path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 32, 0).split(b"\n")[0].decode("ascii", "replace") or "unknown"
            os.close(self._fd)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise StorageError(f"locking {path}: {error.strerror}") from error
            whose = "this process" if holder == str(os.getpid()) else "another process"
            raise LockedError(
                f"{url}: {whose} (pid {holder}) has it open for writing; close it there, or open with mode='r'"
            ) from error
        try:
            with os_errors("locking", path):
                os.ftruncate(self._fd, 0)
                write_all(self._fd, [f"{os.getpid()}\n".encode()], 0)
        except BaseException:
            os.close(self._fd)  # or the lock would be held for as long as this process lives
            raise

    def has_its_name(self) -> bool:
        """Whether the locked file is still the one at its path: whoever removes such files may have been faster."""
        try:
            return os.stat(self._path).st_ino == os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let others write. The file stays: removing it would let two processes lock two files of one name."""
        with os_errors("releasing", self._path):
            try:
                os.ftruncate(self._fd, 0)
            finally:
                os.close(self._fd)

    def forget(self) -> None:
        """In a forked child: let go of the inherited descriptor without releasing the parent's lock."""
        os.close(self._fd)


class writers_kept_out:  # noqa: N801 - used like a function, `writers_kept_out(path, url)`
    """Keeps writers out of a store that is not to be changed, not even by this: until `release`.

    Args:
        path: The file that a writer locks (see `WriterLock`). Where there is none that may be read nobody is kept
            out.
        url: For messages.

    Raises:
        LockedError: A writer is there.
    """

    def __init__(self, path: Path, url: str) -> None:
        self._fd = -1
        with suppress(OSError):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if self._fd < 0 or fcntl is None:
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise LockedError(f"{url}: somebody has it open for writing; close it there first") from error

    def release(self) -> None:
        """Let them in again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class commit_lock:  # noqa: N801 - used like a function, with commit_lock(fd, exclusive=True):
    """Keep commits out of a read, and reads out of a commit, between processes; `fd` is of the file that both open."""

    __slots__ = ("_fd", "_how")

    def __init__(self, fd: int, *, exclusive: bool) -> None:
        self._fd = fd
        self._how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH

    def __enter__(self) -> None:
        fcntl.flock(self._fd, self._how)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)
