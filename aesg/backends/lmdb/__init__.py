"""`lmdb:` — full ACID through LMDB, with many reading processes beside one writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aesg.backends.files import os_errors, writers_kept_out
from aesg.backends.lists import CACHE_BYTES, CACHE_OPTION
from aesg.backends.registry import Backend, Mode, Option, size
from aesg.backends.salvage import Wreck
from aesg.backends.url import StoreURL
from aesg.errors import InvalidInputError, NotFoundError
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

DATA: Final = "data.mdb"
OPEN_LOCK: Final = "open.lock"
DEFAULT_MAP_SIZE: Final = 1 << 40
"""Costs nothing: the file is as long as what is in it, so that the disk is full before the map is."""


def _open(url: StoreURL, mode: Mode, vector_dim: int | None, options: Mapping[str, Any]) -> GraphStore:
    directory = url.local_path()
    sync, map_size = options.get("sync", True), options.get("map_size", DEFAULT_MAP_SIZE)
    query = ({} if sync else {"sync": "false"}) | ({} if map_size == DEFAULT_MAP_SIZE else {"map_size": str(map_size)})
    cache_bytes = options.get("cache_bytes", CACHE_BYTES)
    query |= {} if cache_bytes == CACHE_BYTES else {"cache_bytes": str(cache_bytes)}
    canonical = str(StoreURL(url.scheme, "", str(directory), query))
    with os_errors("opening", directory):
        data = directory / DATA
        exists = data.exists() and data.stat().st_size > 0
    if not exists and mode == "r":
        raise NotFoundError(f"{canonical}: there is no store; open it with mode='a' to create one")
    if not exists and vector_dim is None:
        raise InvalidInputError(f"{canonical}: there is no store yet; a new one needs vector_dim=…")
    # Here, not above: every backend is asked what lies at a bare path, and most stores are none of LMDB's.
    from aesg.backends.blocks.store import BlockStore
    from aesg.backends.lmdb.container import LmdbContainer

    container = LmdbContainer(canonical, directory, promises(options), writing=mode == "a", map_size=map_size)
    return BlockStore(canonical, container, vector_dim=vector_dim, read_only=mode == "r", lists_bytes=cache_bytes)


def _salvage(url: StoreURL, vector_dim: int | None, options: Mapping[str, Any]) -> Wreck:
    from aesg.backends.blocks.salvage import BlockWreck
    from aesg.backends.lmdb.environment import WRITER_LOCK
    from aesg.backends.lmdb.salvage import Rubble

    directory = url.local_path()
    canonical = str(StoreURL(url.scheme, "", str(directory)))
    hold = writers_kept_out(directory / WRITER_LOCK, canonical)
    try:
        rubble = Rubble(directory / DATA)
    except BaseException:
        hold.release()
        raise
    return BlockWreck(canonical, rubble, hold)


def promises(options: Mapping[str, Any]) -> Capabilities:
    """What a store that is opened with these options promises."""
    return Capabilities(
        durability=Durability.POWER_LOSS if options.get("sync", True) else Durability.PROCESS_CRASH,
        atomicity=Atomicity.GRAPH,
        readers=Readers.OTHER_PROCESSES,
        reader_view=ReaderView.FIXED,
        writers=Writers.ONE_PROCESS,
        snapshots=True,
        space_reclaim=SpaceReclaim.ON_COMPACT,
        integrity=Integrity.CHECKSUMS,
        remote=False,
    )


def recognises(directory: Path) -> bool:
    """Whether a directory holds a store of this backend, rather than anything else that is kept in LMDB."""
    data = directory / DATA
    if not data.is_file():
        return False
    if (directory / OPEN_LOCK).is_file():
        return True
    from aesg.backends.lmdb.pages import holds_head

    return holds_head(data)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return bool(value == "true")


BACKEND: Final = Backend(
    scheme="lmdb",
    summary="LMDB: full ACID, durable by default, many reading processes on snapshots of their own",
    open=_open,
    promises=promises,
    recognises=recognises,
    unfinished={"sync": False},
    salvage=_salvage,
    options={
        "sync": Option(_boolean, "true (default): a commit survives power loss; false: it survives a killed process"),
        "map_size": Option(
            size(1 << 20, (1 << 47) - 1), "limit of the file's size, e.g. 8GiB; default: as much as the disk holds"
        ),
        "cache_bytes": CACHE_OPTION,
    },
)
