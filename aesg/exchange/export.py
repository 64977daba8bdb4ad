"""A store into files that other programs read."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aesg.backends.files import os_errors, sync_directory
from aesg.backends.registry import resolve
from aesg.errors import InvalidInputError, StorageError
from aesg.exchange import arrow, markup, npz
from aesg.exchange.layout import Meta, meta_of
from aesg.migration.copying import GraphSource
from aesg.migration.digest import digest_of
from aesg.migration.steady import open_for_copy, steady
from aesg.protocols import Graph, Progress

FORMATS: Final = ("parquet", "arrow", "npz", "graphml", "gml")
READ_BACK: Final = ("parquet", "arrow", "npz")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        source: URL of the store.
        file: The file, or the folder of the tables.
        format: Its format.
        nodes: How many were written; so are edges and events.
        bytes: Size of the files.
        seconds: How long it took.
        digest: The content digest of the store; None for formats that do not come back.
        not_carried: What the format has no place for; "" when nothing is missing.
    """

    source: str
    file: str
    format: str
    nodes: int
    edges: int
    events: int
    bytes: int
    seconds: float
    digest: str | None
    not_carried: str


def export(
    url: str | os.PathLike[str],
    file: str | os.PathLike[str],
    *,
    format: str | None = None,
    vectors: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a store into a file, or for Parquet and Arrow into a folder of files.

    It is written under another name, brought to the disk, and renamed: what is found under `file` is whole.

    Args:
        url: The store; it is opened for reading.
        file: Where to; its suffix says the format.
        format: One of `FORMATS`, when the suffix does not say it.
        vectors: Write the vectors into GraphML and GML too, as text. The other formats always have them.
        overwrite: Replace what an earlier export wrote to `file`.
        progress: Told how far it is.

    Raises:
        InvalidInputError: An unknown format, or `file` is there already.
        ConflictError: The store was written to meanwhile, and its backend has no snapshots.
        MigrationError: An edge leads to an id that no node has.
        UnsupportedError: pyarrow is not installed.
    """
    path = Path(file).expanduser().absolute()
    kind = format_of(path, format)
    if vectors and kind in READ_BACK:
        raise InvalidInputError(f"{kind} files always hold the vectors; only GraphML and GML can do without")
    if kind in ("parquet", "arrow"):
        arrow.pyarrow()
    _check_target(path, overwrite)
    began = time.perf_counter()
    with _new_file(path) as part:
        with open_for_copy(url) as store, steady(store) as still:
            digest = digest_of(GraphSource(still.graph), progress) if kind in READ_BACK else None
            meta = meta_of(still.graph, digest)
            _write(still.graph, meta, part, kind, progress, vectors)
            still.check()
        size = _synced(part)
    return Exported(
        source=str(resolve(url)),
        file=str(path),
        format=kind,
        nodes=meta.counts["nodes"],
        edges=meta.counts["edges"],
        events=0 if kind not in READ_BACK else meta.counts["events"],
        bytes=size,
        seconds=time.perf_counter() - began,
        digest=digest,
        not_carried="" if kind in READ_BACK else markup.NOT_CARRIED[vectors],
    )


def format_of(path: Path, format: str | None) -> str:
    """The format asked for, or that of the suffix.

    Raises:
        InvalidInputError: Neither names one.
    """
    found = path.suffix.removeprefix(".").lower() if format is None else format.lower()
    if found not in FORMATS:
        what = f"format {format!r}" if format is not None else f"suffix of {path.name!r}"
        raise InvalidInputError(f"unknown {what}; known formats: {', '.join(FORMATS)}")
    return found


def _write(graph: Graph, meta: Meta, part: Path, kind: str, progress: Progress | None, vectors: bool) -> None:
    if kind == "parquet" or kind == "arrow":
        arrow.write(graph, meta, part, kind, progress)  # type: ignore[arg-type]
    elif kind == "npz":
        npz.write(graph, meta, part, progress)
    else:
        markup.write(graph, meta, part, kind, progress, vectors=vectors)  # type: ignore[arg-type]


def _check_target(path: Path, overwrite: bool) -> None:
    """That what lies at the target, if anything, may be replaced: a folder only when an export made it."""
    with os_errors("looking at", path):
        if not path.parent.is_dir():
            raise InvalidInputError(f"{path.parent} is not a folder; make it first")
        if not os.path.lexists(path):
            return
        if not overwrite:
            raise InvalidInputError(f"{path} is there already; --overwrite replaces it")
        if path.is_dir():
            strange = {found.name for found in path.iterdir()} - _folder_names()
            if strange or not (path / arrow.META).is_file():
                raise InvalidInputError(f"{path} is a folder that no export made; it is not overwritten")
            Meta.parse((path / arrow.META).read_text("utf-8"), str(path / arrow.META))


def _folder_names() -> set[str]:
    return {arrow.META, *(f"{table}.{kind}" for table in ("nodes", "edges", "events") for kind in ("parquet", "arrow"))}


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path` at the end, or goes when the block raises."""
    with os_errors("writing", path):
        for stale in path.parent.glob(f".{_literal(path.name)}.*.part"):
            if not _lives(stale.name.split(".")[-2]):
                _delete(stale)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        _delete(part)
        try:
            yield part
            if path.is_dir():
                aside = path.with_name(f".{path.name}.{os.getpid()}.old.part")
                path.rename(aside)
                part.rename(path)
                _delete(aside)
            else:
                part.replace(path)
            sync_directory(path.parent)
        except BaseException:
            with suppress(OSError):
                _delete(part)
            raise


def _literal(name: str) -> str:
    """A name, for a glob pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _lives(pid: str) -> bool:
    """Whether the process that a left-over names still runs."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _synced(part: Path) -> int:
    """Bring a file, or a folder's files, to the disk; their size."""
    size = 0
    for path in sorted(part.iterdir()) if part.is_dir() else [part]:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            size += os.fstat(fd).st_size
        finally:
            os.close(fd)
    if part.is_dir():
        sync_directory(part)
    if not size:
        raise StorageError(f"writing {part}: nothing was written")
    return size
