"""What lies in a local store's directory, and how a commit changes it all at once.

zarr.json, nodes/…, edges/…     the Zarr hierarchy; complete after every commit
journal/                        an empty array, so that nobody who lists the hierarchy stumbles over
journal/writer.lock             locked by the writer, names its pid
journal/entries.redo            the commit that is being carried out; there only while a writer has the store open, or
                                was killed

A commit first writes every file that it changes under another name, then one journal entry that lists them, then it
renames them. What is listed is renamed again by whoever finds the entry after a crash; what is not listed is removed.
With `durability=power_loss` the contents of a small commit are in the entry too, so that one fdatasync makes it
durable; the files of a large one are synced before the entry is written.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aesg.backends.files import os_errors, replace_file, sync_directory, write_all
from aesg.backends.journal import Journal, entries_left
from aesg.backends.zarr import documents
from aesg.backends.zarr.codecs import Content
from aesg.errors import CorruptionError, InvalidInputError

PRIVATE: Final = "journal"
JOURNAL: Final = "journal/entries.redo"
LOCK: Final = "journal/writer.lock"
NEW: Final = ".new"
"""Ends the names of files that a commit has not put in place yet; a killed writer's wait for the next one."""
_INLINE: Final = 1 << 22
"""Bytes up to which a durable commit writes everything twice rather than syncing many files."""

_KEY: Final = re.compile(r"(?:[A-Za-z0-9_]+/)*(?:zarr\.json|c[./]\d+(?:[./]0)?)")
_ENTRY: Final = struct.Struct("<Q")
_PRIVATE_DOCUMENT: Final[dict[str, Any]] = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [0],
    "data_type": "uint8",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
    "fill_value": 0,
    "codecs": [{"name": "bytes"}],
    "attributes": {"description": "Empty. Its folder holds the writer's lock and journal.", "aesg": "journal"},
    "dimension_names": ["journal_byte"],
    "storage_transformers": [],
}


def recognises(path: Path) -> bool:
    """Whether a directory holds a store of ours, be it one that was only begun."""
    found = (_bytes_of(place / documents.ROOT) for place in (path, path / PRIVATE))
    return any(document is not None and documents.is_ours(document) for document in found)


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def begin(directory: Path, *, sync: bool) -> None:
    """Make the folder of the lock and the journal, unless it is there."""
    private = directory / PRIVATE
    with os_errors("creating", private):
        private.mkdir(parents=True, exist_ok=True)
        if not (private / documents.ROOT).exists():
            replace_file(private / documents.ROOT, json.dumps(_PRIVATE_DOCUMENT, indent=1).encode(), sync=sync)
        if sync:
            sync_directory(directory)
            sync_directory(directory.parent)


def check_whole(directory: Path, url: str) -> None:
    """Tell what is left of a store from no store, and from somebody else's hierarchy.

    Raises:
        CorruptionError: There are arrays of a store but no root document, or one that is garbled.
        InvalidInputError: The root document is of something else.
    """
    root = _bytes_of(directory / documents.ROOT)
    if root is not None:
        documents.parse(root, str(directory / documents.ROOT))
        if not recognises(directory):
            raise InvalidInputError(f"{url}: {directory} is a Zarr hierarchy of something else; give another path")
        return
    if not directory.exists():
        return
    with os_errors("looking at", directory):
        left = [name.name for name in directory.iterdir() if name.name != PRIVATE and (name / documents.ROOT).exists()]
    if left:
        raise CorruptionError(
            f"{directory / documents.ROOT}: missing, but {' and '.join(sorted(left))} exist; expected the document "
            f"that says how many rows they hold. Nothing was changed: restore it from a copy"
        )


# --- a commit --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Staged:
    """The files of one commit, written under another name.

    Attributes:
        directory: Where the store lies.
        writes: Key → size of what it is to hold.
        inline: Contents that the journal entry has too, in the order of `writes`; None when it has none.
        drops: Keys to remove.
        sync: It is to be durable.
        folders: Every folder in which something changes.
        waiting: Keys that are to be renamed yet, the first one last.
    """

    directory: Path
    writes: dict[str, int]
    inline: list[Content] | None
    drops: Sequence[str]
    sync: bool
    folders: set[Path]
    waiting: list[str] = field(default_factory=list)

    def entry(self) -> list[Any]:
        """The journal entry."""
        lengths = None if self.inline is None else [content.length for content in self.inline]
        body = {"writes": self.writes, "lengths": lengths, "drops": list(self.drops), "sync": self.sync}
        head = json.dumps(body).encode()
        return [_ENTRY.pack(len(head)), head, *(content.data for content in self.inline or ())]

    def carry_out(self) -> None:
        """Rename and remove; needs no room. What was done by the time it raises is not done again."""
        while self.waiting:
            path = self.directory / self.waiting[-1]
            with os_errors("replacing", path):
                os.replace(_staged(path), path)
            self.waiting.pop()
        _remove(self.directory / key for key in self.drops)

    def discard(self) -> None:
        """Remove what was written, for a commit that does not happen."""
        _remove(_staged(self.directory / key) for key in self.writes)

    def sync_folders(self) -> None:
        """Make names durable."""
        for folder in sorted(self.folders):
            with os_errors("syncing", folder):
                sync_directory(folder)


def stage(directory: Path, writes: Iterable[tuple[str, Content]], drops: Sequence[str], *, sync: bool) -> Staged:
    """Write everything under another name.

    Args:
        directory: Where the store lies.
        writes: Key and content of each file.
        drops: Keys to remove.
        sync: It is to be durable: the entry holds it all, or, where that is much, the files are synced.

    Raises:
        CapacityError: The disk is full; nothing is left of it.
    """
    staged = Staged(directory, {}, [] if sync else None, drops, sync, set())
    total = 0
    try:
        for key, content in writes:
            path = directory / key
            staged.writes[key] = content.size
            _write_staged(path, content, staged.folders, directory)
            if staged.inline is not None:
                staged.inline.append(content)
                total += content.length
                if total > _INLINE:
                    staged.inline = None
        staged.folders.update((directory / key).parent for key in drops)
        if sync and staged.inline is None:
            for key in staged.writes:
                _sync_file(_staged(directory / key))
            staged.sync_folders()
    except BaseException:
        staged.discard()
        raise
    staged.waiting = list(reversed(staged.writes))
    return staged


def _staged(path: Path) -> str:
    return f"{path}{NEW}"


def _write_staged(path: Path, content: Content, folders: set[Path], directory: Path) -> None:
    with os_errors("writing", path):
        if path.parent not in folders:
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                folders.update(parent for parent in path.parents if parent.is_relative_to(directory))
            folders.add(path.parent)
        name = _staged(path)
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            try:
                if content.length:
                    write_all(fd, [content.data], 0)
                if content.size > content.length:
                    os.ftruncate(fd, content.size)  # a hole: what was never written takes no room
            finally:
                os.close(fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)  # on a full disk half a file is room that somebody needs
            raise


def _sync_file(name: str | Path) -> None:
    with os_errors("syncing", Path(name)):
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _remove(paths: Iterable[str | Path]) -> None:
    for path in paths:
        with os_errors("removing", Path(path)), suppress(FileNotFoundError):
            os.unlink(path)


def sync_files(directory: Path, keys: Iterable[str], folders: Iterable[Path]) -> None:
    """Bring files, as far as they still exist, and the names in folders to the disk."""
    for key in keys:
        if (directory / key).exists():
            _sync_file(directory / key)
    for folder in folders:
        with os_errors("syncing", folder):
            sync_directory(folder)


def sync_all(directory: Path) -> None:
    """Bring the whole store to the disk."""
    with os_errors("syncing", directory):
        for folder, _, names in os.walk(directory):
            for name in names:
                _sync_file(os.path.join(folder, name))
            sync_directory(Path(folder))
        sync_directory(directory.parent)


# --- recovery --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """A journal entry, as `Staged.entry` made it.

    Attributes:
        writes: Key → size.
        lengths: Bytes of each content that follows; None when none does.
        drops: Keys to remove.
        sync: It was to be durable.
        contents: What follows.
    """

    writes: dict[str, int]
    lengths: list[int] | None
    drops: list[str]
    sync: bool
    contents: memoryview


def recover(directory: Path, *, sync: bool) -> None:
    """Carry out what a killed writer had committed, and remove what it had not; nothing where there is no journal.

    For the holder of the writer's lock, with readers kept out.

    Raises:
        CorruptionError: The journal is not what was written.
    """
    path = directory / JOURNAL
    with os_errors("opening", path):
        try:
            journal = Journal(path)
        except FileNotFoundError:
            return
    try:
        applied, entries = journal.applied, []
        reached = applied
        for reached, payload in journal.entries():
            if payload:  # the first entry says nothing
                entries.append((reached, _decode_entry(payload, path)))
        if journal.pending and reached < journal.generation and not journal.restarted:
            raise CorruptionError(
                f"{path}: its whole entries reach generation {reached}, expected {journal.generation} as its header "
                f"says: it was truncated or garbled, and the files may hold half of what is missing"
            )
        # A kill loses only what was not carried out yet. Of a machine that was restarted, or a recovery that was
        # killed, nobody knows.
        if journal.restarted or applied > journal.generation:
            applied = 0
        journal.mark_pending()
        for generation, entry in entries:
            if generation > applied:
                _replay(directory, entry, path)
        with os_errors("recovering", directory):
            for folder, _, names in os.walk(directory):
                _remove(os.path.join(folder, name) for name in names if name.endswith(NEW))
        if sync or any(entry.sync for _, entry in entries):
            if reached < journal.generation:
                sync_all(directory)
            else:
                keys = {key for _, entry in entries for key in (*entry.writes, *entry.drops)}
                sync_files(directory, keys, {directory, *((directory / key).parent for key in keys)})
    finally:
        journal.close()
    _remove([path])
    if sync:
        with os_errors("syncing", path.parent):
            sync_directory(path.parent)


def write_again(directory: Path, journal: Journal) -> None:
    """Write what all entries of a journal say, for the files are not to be trusted."""
    for _, payload in journal.entries():
        if payload:
            _replay(directory, _decode_entry(payload, journal.path), journal.path)


def _replay(directory: Path, entry: _Entry, place: Path) -> None:
    """Bring the directory to what an entry says; doing it twice does no harm."""
    at = 0
    for number, (key, size) in enumerate(entry.writes.items()):
        path = directory / key
        if entry.lengths is not None:
            content = entry.contents[at : at + entry.lengths[number]]
            _write_staged(path, Content(content, size), set(), directory)
            at += len(content)
        with os_errors("replacing", path):
            staged = Path(_staged(path))
            if staged.exists() and staged.stat().st_size != size:
                raise CorruptionError(f"{staged}: {staged.stat().st_size} bytes, expected {size} as {place} says")
            if staged.exists():
                os.replace(staged, path)
            elif not path.exists():
                raise CorruptionError(f"{path}: missing, expected {size} bytes as {place} says")
    _remove(directory / key for key in entry.drops)


def decided(directory: Path) -> dict[str, bytes | Path | None]:
    """What a journal says that is not carried out yet: key → what it holds, where that lies, None where it is to go.

    For who may change nothing. Of a journal that is damaged, as much as is sound.
    """
    path = directory / JOURNAL
    found: dict[str, bytes | Path | None] = {}
    for _, payload in entries_left(path):
        if not payload:
            continue
        try:
            entry = _decode_entry(payload, path)
        except CorruptionError:
            break
        at = 0
        for number, (key, size) in enumerate(entry.writes.items()):
            staged = Path(_staged(directory / key))
            if entry.lengths is not None:
                content = bytes(entry.contents[at : at + entry.lengths[number]])
                found[key] = content + bytes(size - len(content))
                at += entry.lengths[number]
            elif staged.exists() and staged.stat().st_size == size:
                found[key] = staged
            else:
                found.pop(key, None)
        found.update(dict.fromkeys(entry.drops))
    return found


def _decode_entry(payload: bytes, place: Path) -> _Entry:
    try:
        (length,) = _ENTRY.unpack_from(payload)
        contents = memoryview(payload)[_ENTRY.size + length :]
        head = json.loads(payload[_ENTRY.size : _ENTRY.size + length])
        found = _Entry(head["writes"], head["lengths"], head["drops"], bool(head["sync"]), contents)
        # A journal is no way out of the directory.
        if not all(_KEY.fullmatch(key) for key in (*found.writes, *found.drops)):
            raise ValueError("a key that is no chunk's and no document's")
        if not all(type(n) is int and n >= 0 for n in (*found.writes.values(), *(found.lengths or ()))):
            raise ValueError("a size that is none")
        lengths = found.lengths
        if lengths is not None and (len(lengths) != len(found.writes) or sum(lengths) != len(contents)):
            raise ValueError("contents of another length")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise CorruptionError(f"{place}: expected the entry of a store of arrays: {error}") from error
    return found
