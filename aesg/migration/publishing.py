"""A store that gets its name when it is whole: made under another name beside it, then renamed, once.

`.NAME.unfinished/`    beside where the store is to be, with
    `NAME`             the store in the making
    `note.json`        what its maker wrote down, to go on from
    `lock`             locked by the maker: two of them do not get into each other's way

Killed at any moment, the place where the store is to be holds what it held before, or the whole new store.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from aesg.backends import registry
from aesg.backends.files import WriterLock, os_errors, replace_file, sync_directory
from aesg.backends.url import StoreURL
from aesg.errors import AESGError, LockedError, MigrationError, NotFoundError
from aesg.records import JSON

NOTE: Final = "note.json"
_LOCK: Final = "lock"
_REPLACED: Final = "replaced"
_AT_FDCWD: Final = -100
_EXCHANGE: Final = 2
_TRIES: Final = 10
_AT_ONCE: Final = 4
"""Files that are synced at the same time."""


def is_local(url: StoreURL) -> bool:
    """Whether a URL names a path of this machine."""
    return bool(url.path) and not url.authority


class Unfinished:
    """A store in the making. A context manager: holds the lock; left by an error, it removes the store unless `keep`.

    Args:
        url: What its URL will be.
        overwrite: Whether it may take the place of another store.

    Attributes:
        final: Where it will be.
        url: Its URL until then.
        note: What an interrupted maker left, with its store; None when there is nothing.
        keep: Leave it there for another try.
    """

    def __init__(self, url: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        parsed = registry.resolve(url)
        if not is_local(parsed):
            raise MigrationError(f"{parsed}: no local path, so nothing that could be renamed; give an opened store")
        self.final = parsed.local_path()
        self._canonical = replace(parsed, path=str(self.final))
        self._overwrite = overwrite
        self._folder = self.final.with_name(f".{self.final.name}.unfinished")
        self._store = self._folder / self.final.name
        self.url = str(replace(parsed, path=str(self._store)))
        self.note: dict[str, JSON] | None = None
        self.keep = False
        self._published = False

    @property
    def final_url(self) -> str:
        """Its URL when it is published."""
        return str(self._canonical)

    def __enter__(self) -> Self:
        with os_errors("creating", self._folder):
            self._lock = self._locked()
        try:
            self._put_back()
            with os_errors("reading", self._folder / NOTE):
                self.note = _read_note(self._folder / NOTE)
        except BaseException:
            self._lock.release()
            raise
        return self

    def _locked(self) -> WriterLock:
        for _ in range(_TRIES):
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / _LOCK
            try:
                lock = WriterLock(path, self.final_url)
            except LockedError as error:
                raise LockedError(f"{self.final_url}: a store is being made there already: {error}") from error
            except OSError:
                if self._folder.is_dir():
                    raise
                continue  # another one has just finished, and removed the folder
            if lock.has_its_name():
                return lock
            lock.release()
        raise LockedError(f"{self.final_url}: other stores are being made there again and again")

    def check_free(self) -> None:
        """See to it that the store can be put where it belongs.

        Raises:
            MigrationError: Something is there, and it may not be replaced, or is no store.
            LockedError: Somebody writes to the store that is to be replaced.
        """
        if not is_taken(self.final):
            return
        if not self._overwrite:
            raise taken(self.final)
        recognised = _is_recognised(self.final)
        try:
            registry.open(self.final if recognised else self.final_url).close()
        except LockedError:
            raise
        except AESGError as error:
            if not recognised:
                raise MigrationError(f"{self.final} is not a store: it is not replaced") from error
            # Damaged, or read-only: nothing that somebody writes to.

    def begin(self, note: dict[str, JSON]) -> None:
        """Forget what an interrupted maker left, and write down what this one begins."""
        with os_errors("removing", self._store):
            _remove(self._store)
        self.write(note)

    def write(self, note: dict[str, JSON]) -> None:
        """Replace the note."""
        replace_file(self._folder / NOTE, json.dumps(note).encode(), sync=True)
        self.note = note

    def bytes(self) -> int:
        """Bytes of the store on the disk."""
        return sum(path.stat().st_blocks * 512 for path in _files(self._store))

    @contextmanager
    def syncing(self) -> Iterator[None]:
        """Bring the closed store to the disk while it is read back; what `publish` has to do then is little."""
        failed: list[BaseException] = []

        def sync() -> None:
            try:
                with os_errors("syncing", self._store):
                    sync_tree(self._store)
            except BaseException as error:  # raised again in the caller's thread
                failed.append(error)

        thread = threading.Thread(target=sync, name="aesg-sync")
        thread.start()
        try:
            yield
        finally:
            thread.join()
        if failed:
            raise failed[0]

    def publish(self) -> None:
        """Bring the closed store to the disk and give it its name, all at once.

        Raises:
            MigrationError: Something else has come to be there.
        """
        with os_errors("syncing", self._store):
            if not self._store.exists():
                raise MigrationError(f"{self.url}: this backend made no file there; give an opened store")
            sync_tree(self._store)
        with os_errors("publishing", self.final):
            self.check_free()
            if is_taken(self.final):
                self._replace()
            else:
                if self.final.is_dir():
                    self.final.rmdir()
                os.rename(self._store, self.final)
            sync_directory(self.final.parent)
        self._published = True

    def _replace(self) -> None:
        # An index of the store that goes would be found beside the one that comes.
        _remove(self.final.with_name(f"{self.final.name}.seed-index"))
        if not _exchanged(self._store, self.final):
            aside = self._folder / _REPLACED
            os.rename(self.final, aside)  # killed from here on, see `_put_back`
            os.rename(self._store, self.final)

    def _put_back(self) -> None:
        """After a kill between the two renames that take the place of an exchange."""
        aside = self._folder / _REPLACED
        with os_errors("restoring", self.final):
            if aside.exists() and not self.final.exists():
                os.rename(aside, self.final)

    def discard(self) -> None:
        """Remove the store in the making, or what it replaced."""
        with os_errors("removing", self._folder):
            shutil.rmtree(self._folder, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._published or not self.keep:
                self.discard()
        finally:
            self._lock.forget()  # the file is gone, or for the next to lock


def taken(path: Path) -> MigrationError:
    """What to raise where something is in the way."""
    return MigrationError(
        f"{path} exists; choose another place, or remove it (migrate and import can replace it: --overwrite)"
    )


def is_taken(path: Path) -> bool:
    """Whether anything but an empty folder is there."""
    return os.path.lexists(path) and not (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))


def _is_recognised(path: Path) -> bool:
    """Whether an installed backend knows what is there; some recognise nothing."""
    try:
        registry.resolve(path)
    except NotFoundError:
        return False
    return True


def _read_note(path: Path) -> dict[str, JSON] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:  # it is replaced as a whole, so it was damaged: nothing to go on from
        return None
    return found if isinstance(found, dict) else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]


def sync_tree(path: Path) -> None:
    """Bring a file, or a folder with everything in it, to the disk."""
    folders = [path, *(found for found in path.rglob("*") if found.is_dir())] if path.is_dir() else []
    everything = [*_files(path), *folders, path.parent]

    # Threads of its own: those that all share would be waiting for the disk while others have work for them.
    with ThreadPoolExecutor(_AT_ONCE, "aesg-sync") as pool:
        for done in [pool.submit(sync_directory, found) for found in everything]:  # files are synced in the same way
            done.result()


def _exchanged(one: Path, other: Path) -> bool:
    """Give two files or folders each other's names at once; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if not rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE):
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(other))
