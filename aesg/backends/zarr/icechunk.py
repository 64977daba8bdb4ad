"""`icechunk:` — the same arrays in an Icechunk repository: atomic commits, snapshots, a history.

`icechunk:///folder`    a repository in the local file system, branch "main"

The package `icechunk` is an extra and imported when a store is opened. Only folders for now: what is said of the
storage is said in `_open`, and the container takes any.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aesg.backends.files import os_errors, writers_kept_out
from aesg.backends.registry import Backend, Mode, Option, choice
from aesg.backends.salvage import Wreck
from aesg.backends.url import StoreURL
from aesg.backends.zarr import CACHE_BYTES, CACHE_OPTION
from aesg.errors import CorruptionError, InvalidInputError, NotFoundError, UnsupportedError
from aesg.protocols import (
    Atomicity,
    Capabilities,
    Durability,
    GraphStore,
    Integrity,
    Readers,
    ReaderView,
    SpaceReclaim,
    Writers,
)

LOCK: Final = "aesg.lock"
REF: Final = "refs/branch.main/ref.json"
NEW: Final = "aesg.new"
"""Where a repository is made before it is moved to where it belongs."""

CAPABILITIES: Final = Capabilities(
    durability=Durability.PROCESS_CRASH,  # Icechunk's files are renamed into place, but never synced
    atomicity=Atomicity.GRAPH,
    readers=Readers.OTHER_PROCESSES,
    reader_view=ReaderView.FIXED,
    writers=Writers.ONE_PROCESS,  # its local storage is not safe for more
    snapshots=True,
    space_reclaim=SpaceReclaim.ON_MAINTENANCE,
    integrity=Integrity.CHECKSUMS,
    remote=False,
)
"""What a repository in a folder promises."""


def _open(url: StoreURL, mode: Mode, vector_dim: int | None, options: Mapping[str, Any]) -> GraphStore:
    if url.authority:
        raise UnsupportedError(
            f"{url}: only local folders are supported so far, icechunk:///path; object storage will be named by the "
            f"place where {url.authority!r} stands"
        )
    snapshot, cache_bytes = options.get("snapshot"), options.get("cache_bytes", CACHE_BYTES)
    directory = url.local_path()
    query = {} if cache_bytes == CACHE_BYTES else {"cache_bytes": str(cache_bytes)}
    query |= {} if snapshot is None else {"snapshot": snapshot}
    canonical = str(StoreURL(url.scheme, "", str(directory), query))
    if snapshot is not None and mode != "r":
        raise InvalidInputError(f"{canonical}: an old snapshot is only read; open it with mode='r'")
    with os_errors("opening", directory):
        exists = recognises(directory)
        if not exists and (directory / LOCK).is_file() and (directory / "snapshots").is_dir() and not begun(directory):
            raise CorruptionError(f"{directory / REF}: missing, but there are snapshots; restore it from a copy")
    if not exists and mode == "r":
        raise NotFoundError(f"{canonical}: there is no store; open it with mode='a' to create one")
    if not exists and vector_dim is None:
        raise InvalidInputError(f"{canonical}: there is no store yet; a new one needs vector_dim=…")
    # Here, not above: every backend is asked what lies at a bare path, and most stores are not of this one.
    from aesg.backends.zarr.repository import IcechunkStore, open_local

    container = open_local(canonical, directory, options.get("codec"), writing=mode == "a", snapshot=snapshot)
    return IcechunkStore(canonical, container, vector_dim=vector_dim, read_only=mode == "r", cache_bytes=cache_bytes)


def _salvage(url: StoreURL, vector_dim: int | None, options: Mapping[str, Any]) -> Wreck:
    from aesg.backends.blocks.salvage import BlockWreck
    from aesg.backends.zarr.repository import Remains

    directory = url.local_path()
    canonical = str(StoreURL(url.scheme, "", str(directory)))
    hold = writers_kept_out(directory / LOCK, canonical)
    try:
        rubble = Remains(canonical, directory)
    except BaseException:
        hold.release()
        raise
    return BlockWreck(canonical, rubble, hold)


def recognises(path: Path) -> bool:
    """Whether a directory holds an Icechunk repository, ours or another."""
    return (path / REF).is_file() and (path / "snapshots").is_dir()


def begun(path: Path) -> bool:
    """Whether the creation of a repository was cut short."""
    return (path / NEW).is_dir()


def _snapshot_id(value: Any) -> str:
    if not isinstance(value, str) or not value.isalnum():
        raise ValueError("the id of a snapshot, as store.history() gives it")
    return value


BACKEND: Final = Backend(
    scheme="icechunk",
    summary="an Icechunk repository: atomic commits, snapshots and a history of them; an extra",
    open=_open,
    promises=lambda options: CAPABILITIES,
    recognises=recognises,
    salvage=_salvage,
    options={
        "codec": Option(choice("none", "zstd", "blosc"), "how a new store compresses: none, zstd (default) or blosc"),
        "cache_bytes": CACHE_OPTION,
        "snapshot": Option(_snapshot_id, "the id of the snapshot to read (mode='r'), as store.history() gives it"),
    },
)
