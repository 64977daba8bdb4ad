"""The container in an Icechunk repository, and what its store has beside that of others: a history.

A commit is one of Icechunk's, on the branch "main". A view is a session at one snapshot. Every commit leaves its
snapshot behind, and with it the chunks that later ones replaced: `expire_snapshots` and `collect_garbage` remove them,
nothing else does.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from aesg.backends.blocks.container import Changes
from aesg.backends.blocks.store import BlockStore
from aesg.backends.files import WriterLock, os_errors
from aesg.backends.tables import WritableTables
from aesg.backends.zarr import documents
from aesg.backends.zarr.arrays import ArrayContainer
from aesg.backends.zarr.codecs import Content
from aesg.backends.zarr.documents import Layout
from aesg.backends.zarr.icechunk import CAPABILITIES, LOCK, NEW, REF, recognises
from aesg.backends.zarr.loop import run
from aesg.backends.zarr.salvage import Keys
from aesg.errors import (
    AESGError,
    BackendNotInstalledError,
    CapacityError,
    ConflictError,
    CorruptionError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    StorageError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from icechunk import IcechunkStore as ZarrStore
    from icechunk import Repository, Storage

BRANCH: Final = "main"
_GENERATION: Final = "aesg_generation"
_AT_ONCE: Final = 8
"""Chunks that are written at the same time."""
_FULL: Final = re.compile(r"os error (28|122|27)\b|No space left")
_REFUSED: Final = re.compile(r"os error (?!2\b)\d+")
_started_in: int | None = None
"""The process that first used the library: its threads do not survive a fork, and who waits for them waits forever."""


def _library(url: str) -> Any:
    """The package.

    Raises:
        BackendNotInstalledError: It is not installed.
        UnsupportedError: It was used before this process was forked.
    """
    global _started_in
    try:
        import icechunk
    except ImportError as error:
        raise BackendNotInstalledError(
            f"{url}: the backend 'icechunk' needs a package that is missing: pip install \"aesg[icechunk]\""
        ) from error
    if _started_in is None:
        _started_in = os.getpid()
    check_process(url)
    return icechunk


def check_process(url: str) -> None:
    """Refuse what would wait forever.

    Raises:
        UnsupportedError: Icechunk was used before this process was forked.
    """
    if _started_in not in (None, os.getpid()):
        raise UnsupportedError(
            f"{url}: Icechunk does not work in a process that was forked from one that uses it; start processes with "
            f"multiprocessing's 'spawn' instead, and open the store in them"
        )


class _errors:  # noqa: N801 - used like a function, with _errors("writing", url):
    """Turn what Icechunk raises into our errors. It has one class for nearly everything; the message tells them apart.

    A panic of its Rust code is not even an `Exception`; on files that are not what they should be it happens.
    """

    def __init__(self, doing: str, url: str) -> None:
        self._doing = doing
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, AESGError):
            return
        module = type(error).__module__.split(".")[0]
        if module not in ("icechunk", "pyo3_runtime") and not isinstance(error, (OSError, ValueError, KeyError)):
            return
        lines = [line.strip(" |x`->").strip() for line in str(error).splitlines()]
        said = next((line for line in lines if line), type(error).__name__)
        what = f"{self._doing} {self._url}: {said}"
        if type(error).__name__ == "ConflictError":
            raise ConflictError(f"{what}; nothing was applied: begin a new transaction") from error
        if _FULL.search(str(error)):
            raise CapacityError(f"{what}; free some space and try again, nothing was lost") from error
        if _REFUSED.search(str(error)):
            raise StorageError(what) from error
        raise CorruptionError(f"{what}; expected a repository as Icechunk wrote it") from error


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One commit of a repository.

    Attributes:
        snapshot: Its id: `aesg.open(url, mode="r", snapshot=id)` shows the store as it was then.
        time: When it was written.
        message: What it did.
        generation: The store's generation after it; None where a store was not written by it.
    """

    snapshot: str
    time: datetime
    message: str
    generation: int | None


@dataclass(frozen=True, slots=True)
class Garbage:
    """What `collect_garbage` removed.

    Attributes:
        bytes: Bytes in all.
        chunks: Chunks.
        manifests: Lists of chunks.
        snapshots: Snapshots.
        transactions: Lists of what commits changed.
    """

    bytes: int
    chunks: int
    manifests: int
    snapshots: int
    transactions: int


class IcechunkContainer(ArrayContainer):
    """Arrays in a repository, seen as of one snapshot.

    Args:
        url: For messages.
        repository: Opened.
        codec: As for `ArrayContainer`.
        snapshot: Stay at this one; None for the newest.
        lock: The writer's; None for reading.
        directory: Where it lies, if it lies in a folder.
    """

    capabilities = CAPABILITIES
    default = Layout("zstd", "/")  # every version of a chunk is kept: what is not filled should take no room
    block_bytes = 1 << 19
    log_blocks = 64

    def __init__(
        self,
        url: str,
        repository: Repository,
        codec: str | None,
        *,
        snapshot: str | None = None,
        lock: WriterLock | None = None,
        directory: Path | None = None,
    ) -> None:
        from zarr.core.buffer import default_buffer_prototype

        super().__init__(url, codec)
        self.repository = repository
        self._buffers = default_buffer_prototype()
        self._fixed = snapshot is not None
        self._lock = lock
        self._directory = self.scratch = directory
        self._at = self._newest() if snapshot is None else snapshot
        self._store = self._look_at(self._at)

    # Views

    def _newest(self) -> str:
        with _errors("looking at", self.url):
            return self.repository.lookup_branch(BRANCH)

    def _look_at(self, snapshot: str) -> ZarrStore:
        """Move the view."""
        with _errors("opening", self.url):
            store = self.repository.readonly_session(snapshot_id=snapshot).store
            found = self.repository.lookup_snapshot(snapshot).id
        if found != snapshot:  # Icechunk takes what a file holds for what its name says
            raise CorruptionError(f"{self.url}: the file of snapshot {snapshot} holds {found}: it is another one's")
        self._store = store
        self._rows.clear()
        self._load_root()
        self._at = snapshot
        return store

    def _load_root(self) -> None:
        data = self._read(documents.ROOT, documents.DOCUMENT_LIMIT)
        if data is None:
            # Of a snapshot that cannot be read, every key is said to be missing; this question is answered honestly.
            with _errors("opening", self.url):
                run(self._store.exists(documents.ROOT))
        elif not documents.is_ours(data):
            documents.parse(data, self._place(documents.ROOT))
            with _errors("opening", self.url):
                has_nodes = run(self._store.exists(documents.document_key("nodes/id")))
            if has_nodes:  # a snapshot has no checksum: a bit that was flipped in it may be one of an attribute's name
                raise CorruptionError(f"{self._place(documents.ROOT)}: lacks the attributes of a store; restore it")
            raise InvalidInputError(f"{self.url}: the repository holds something else; give another path")
        super()._load_root()

    def refresh(self) -> bool:
        check_process(self.url)
        if self._fixed or (newest := self._newest()) == self._at:
            return False
        self._look_at(newest)
        self.version += 1
        return True

    def snapshot(self) -> Self:
        check_process(self.url)
        return type(self)(self.url, self.repository, None, snapshot=self._at, directory=self._directory)

    def _read(self, key: str, limit: int) -> bytes | None:
        check_process(self.url)
        with _errors(f"reading {key} of", self.url):
            found = run(self._store.get(key, self._buffers))
            if found is None:
                return None
            if len(found) > limit:
                raise CorruptionError(f"{self._place(key)}: {len(found)} bytes, expected at most {limit}")
            return found.to_bytes()

    # Commits

    def commit(self, changes: Changes) -> None:
        check_process(self.url)
        if self._lock is None:
            raise ReadOnlyError(f"{self.url}: opened for reading; open it with mode='a' to write")
        try:
            with _errors("committing to", self.url):
                session = self.repository.writable_session(BRANCH)
                if session.snapshot_id != self._at:
                    raise ConflictError(
                        f"{self.url}: another program has committed since; nothing was applied: begin a new transaction"
                    )
                self._check_all(changes)
                run(self._fill(session.store, changes))
                counts = ", ".join(f"{changes.head.get(name, 0)} {name}" for name in ("nodes", "edges", "events"))
                generation = changes.head.get("generation")
                at = session.commit(f"generation {generation}: {counts}", {_GENERATION: generation})
        except ConflictError:
            self.refresh()
            raise
        self._at, self._store = at, session.store
        self._moved(changes)

    async def _fill(self, store: ZarrStore, changes: Changes) -> None:
        for key in self._drops(changes):
            await store.delete(key)
        room, writing = asyncio.Semaphore(_AT_ONCE), set[asyncio.Task[None]]()
        try:
            for key, content in self._writes(changes):
                if key.endswith(documents.ROOT):  # before its chunks
                    await self._write(store, key, content)
                    continue
                await room.acquire()
                task = asyncio.ensure_future(self._write(store, key, content))
                writing.add(task)
                task.add_done_callback(lambda _: room.release())
                for done in [task for task in writing if task.done()]:
                    writing.discard(done)
                    done.result()
        finally:
            await asyncio.gather(*writing, return_exceptions=True)
        for task in writing:
            task.result()

    async def _write(self, store: ZarrStore, key: str, content: Content) -> None:
        await store.set(key, self._buffers.buffer.from_bytes(content.to_bytes()))

    # History

    def history(self) -> list[HistoryEntry]:
        """Commits up to the one that the view is at, the newest first."""
        check_process(self.url)
        with _errors("reading the history of", self.url):
            return [
                HistoryEntry(entry.id, entry.written_at, entry.message, _generation_of(entry.metadata))
                for entry in self.repository.ancestry(snapshot_id=self._at)
            ]

    def expire_snapshots(self, older_than: datetime) -> list[str]:
        """Take old snapshots out of the history; returns their ids."""
        before = self.history()
        with _errors("expiring snapshots of", self.url):
            self.repository.expire_snapshots(older_than)
        # What the library returns has the newest one too, which stays.
        left = {entry.snapshot for entry in self.history()}
        return [entry.snapshot for entry in before if entry.snapshot not in left]

    def collect_garbage(self, older_than: datetime) -> Garbage:
        """Remove what no snapshot of the history needs."""
        check_process(self.url)
        with _errors("collecting garbage of", self.url):
            found = self.repository.garbage_collect(older_than)
        return Garbage(
            found.bytes_deleted,
            found.chunks_deleted,
            found.manifests_deleted,
            found.snapshots_deleted,
            found.transaction_logs_deleted,
        )

    # The end

    def stats(self) -> dict[str, Any]:
        used = 0
        if self._directory is not None:
            with os_errors("looking at", self._directory):
                for folder, _, names in os.walk(self._directory):
                    for name in names:
                        with suppress(FileNotFoundError):  # a writer is at work
                            used += os.stat(os.path.join(folder, name)).st_blocks * 512
        return {**super().stats(), "bytes_on_disk": used, "snapshot": self._at}

    def forked(self) -> None:
        if self._lock is not None:
            self._lock.forget()

    def reopen(self) -> Self:
        check_process(self.url)
        raise UnsupportedError(f"{self.url}: an Icechunk store cannot be used after a fork; open it in the new process")

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()


class Remains:
    """What is left of a repository: its commits, as far as they can be opened, the newest first.

    Args:
        url: For messages.
        directory: Where it lies.
    """

    def __init__(self, url: str, directory: Path) -> None:
        library = _library(url)
        self._url = url
        self._directory = directory
        with _errors("opening", url):
            self._repository: Repository = library.Repository.open(_local_storage(library, directory))

    def views(self) -> Iterator[Keys]:
        """Commits: that of the branch, those before it, and any other whose file lies there."""
        for snapshot in self._snapshots():
            try:
                with _errors("opening", self._url):
                    store = self._repository.readonly_session(snapshot_id=snapshot).store
            except AESGError:
                continue
            yield Keys(partial(self._read, store))

    def _snapshots(self) -> list[str]:
        found: dict[str, None] = {}
        with suppress(AESGError), _errors("looking at", self._url):
            found[self._repository.lookup_branch(BRANCH)] = None
        with suppress(AESGError), _errors("looking at", self._url):
            newest = next(iter(found), None)
            if newest is not None:
                found |= {entry.id: None for entry in self._repository.ancestry(snapshot_id=newest)}
        times = []
        for path in (self._directory / "snapshots").glob("*"):
            with suppress(AESGError), _errors("looking at", self._url):
                entry = self._repository.lookup_snapshot(path.name)
                times.append((entry.written_at, entry.id))
        return [*(found | {id: None for _, id in sorted(times, reverse=True)})]

    def _read(self, store: ZarrStore, key: str) -> bytes | None:
        from zarr.core.buffer import default_buffer_prototype

        try:
            with _errors(f"reading {key} of", self._url):
                data = run(store.get(key, default_buffer_prototype()))
        except AESGError:
            return None
        return None if data is None else data.to_bytes()

    def close(self) -> None:
        """Let go of it."""


def _generation_of(metadata: dict[str, Any]) -> int | None:
    found = metadata.get(_GENERATION)
    return found if type(found) is int else None


def open_local(
    url: str, directory: Path, codec: str | None, *, writing: bool, snapshot: str | None
) -> IcechunkContainer:
    """Open, or create, a repository in a folder."""
    library = _library(url)
    lock = None
    if writing:
        with os_errors("creating", directory):
            directory.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(directory / LOCK, url)
    try:
        if writing and not recognises(directory):
            with _errors("creating", url), os_errors("creating", directory):
                _create_local(library, directory)
        with _errors("opening", url):
            repository = library.Repository.open(_local_storage(library, directory))
        if snapshot is not None:
            _check_snapshot(url, repository, snapshot)
        return IcechunkContainer(url, repository, codec, snapshot=snapshot, lock=lock, directory=directory)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _create_local(library: Any, directory: Path) -> None:
    """Make an empty repository, in whole or not at all, in a folder that holds our lock.

    Icechunk wants a folder with nothing in it, and one that a kill has left half made would never be one again. So it
    gets one of its own, and what it made is moved from there, the branch last: with it the repository is there.
    """
    new = directory / NEW
    if not (new / REF).is_file():  # made last
        shutil.rmtree(new, ignore_errors=True)
        library.Repository.create(_local_storage(library, new))
    for name in sorted(new.iterdir(), key=lambda found: found.name == "refs"):
        os.replace(name, directory / name.name)
    new.rmdir()


def _local_storage(library: Any, directory: Path) -> Storage:
    # It warns each time that it is not made for several writers; our lock sees to there being one.
    library.set_logs_filter("error")
    try:
        storage: Storage = library.local_filesystem_storage(str(directory))
    finally:
        library.set_logs_filter(None)
    return storage


def _check_snapshot(url: str, repository: Repository, snapshot: str) -> None:
    try:
        repository.lookup_snapshot(snapshot)
    except Exception as error:
        raise NotFoundError(f"{url}: there is no such snapshot; store.history() lists them") from error


class IcechunkStore(BlockStore):
    """A graph in a repository, with its history."""

    _container: IcechunkContainer

    def _begin(self) -> WritableTables:
        # Another program may have committed: what is written now has to stand on that.
        self._container.refresh()
        return super()._begin()

    def history(self) -> list[HistoryEntry]:
        """Every commit that is still there, the newest first, up to the one that this handle sees."""
        with self.reading():
            return self._container.history()

    def expire_snapshots(self, older_than: datetime) -> list[str]:
        """Take the snapshots from before a time out of the history, but for the newest; `collect_garbage` removes them.

        Readers of an expired snapshot go on until garbage is collected.

        Args:
            older_than: A time; without a zone it is local time.

        Returns:
            Their ids.
        """
        when = _utc(older_than, self.url)
        with self._alone():
            return self._container.expire_snapshots(when)

    def collect_garbage(self, older_than: datetime) -> Garbage:
        """Remove what no snapshot of the history needs: of expired snapshots, and of commits that never happened.

        Whoever still reads an expired snapshot then finds chunks missing.

        Args:
            older_than: Only what was written before; without a zone it is local time.
        """
        when = _utc(older_than, self.url)
        with self._alone():
            return self._container.collect_garbage(when)

    def forget_history(self) -> None:
        """Remove every commit but the newest, and what only they needed."""
        now = datetime.now(UTC)
        with self._alone():
            self._container.expire_snapshots(now)
            self._container.collect_garbage(now)


def _utc(when: datetime, url: str) -> datetime:
    if not isinstance(when, datetime):
        raise InvalidInputError(f"{url}: older_than must be a datetime, not {when!r}")
    return when.astimezone(UTC)
