"""`zarr:` — a plain Zarr v3 hierarchy that the array ecosystem reads without us, with atomic commits.

`zarr:///folder`      a local directory; a journal makes its commits atomic, and durable if asked
`zarr:///file.zip`    such a directory packed as ZIP, for reading (mode="r")
`zarr:`               in memory, for as long as it is open: it survives nothing, and cannot be pickled
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aesg.backends.files import os_errors, writers_kept_out
from aesg.backends.registry import Backend, Mode, Option, choice, size
from aesg.backends.salvage import Wreck
from aesg.backends.url import StoreURL
from aesg.errors import InvalidInputError, NotFoundError, UnsupportedError
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

CACHE_BYTES: Final = 1 << 28


def _open(url: StoreURL, mode: Mode, vector_dim: int | None, options: Mapping[str, Any]) -> GraphStore:
    cache_bytes = options.get("cache_bytes", CACHE_BYTES)
    durability = _durability(options)
    query = {} if durability is Durability.PROCESS_CRASH else {"durability": durability.name.lower()}
    query |= {} if cache_bytes == CACHE_BYTES else {"cache_bytes": str(cache_bytes)}
    if not url.path and not url.authority:
        return _open_volatile(str(StoreURL(url.scheme, "", "", query)), mode, vector_dim, options, cache_bytes)
    path = url.local_path()
    canonical = str(StoreURL(url.scheme, "", str(path), query))
    with os_errors("opening", path):
        packed = path.is_file() or (path.suffix.lower() == ".zip" and not path.is_dir())
        begun = recognises(path)
    if packed and mode == "a":
        raise UnsupportedError(
            f"{canonical}: a ZIP file cannot be written to; open it with mode='r', or unpack it and open the folder"
        )
    if mode == "a" and vector_dim is None and not begun:
        raise InvalidInputError(f"{canonical}: there is no store yet; a new one needs vector_dim=…")
    # Here, not above: every backend is asked what lies at a bare path, and most stores are not of this one.
    from aesg.backends.blocks.container import BlockContainer
    from aesg.backends.blocks.store import BlockStore
    from aesg.backends.zarr.archive import ZipContainer
    from aesg.backends.zarr.local import LocalReader, LocalWriter

    container: BlockContainer
    if packed:
        container = ZipContainer(canonical, path, options.get("codec"))
    else:
        kind = LocalReader if mode == "r" else LocalWriter
        container = kind(canonical, path, options.get("codec"), promises(durability))
    return BlockStore(canonical, container, vector_dim=vector_dim, read_only=mode == "r", cache_bytes=cache_bytes)


def _open_volatile(
    url: str, mode: Mode, vector_dim: int | None, options: Mapping[str, Any], cache_bytes: int
) -> GraphStore:
    if mode == "r":
        raise NotFoundError(f"{url}: an in-memory store begins empty, there is nothing to read")
    if vector_dim is None:
        raise InvalidInputError(f"{url}: a new store needs vector_dim=…")
    from aesg.backends.zarr.volatile import VolatileContainer, VolatileStore

    container = VolatileContainer(url, options.get("codec"))
    return VolatileStore(url, container, vector_dim=vector_dim, read_only=False, cache_bytes=cache_bytes)


def _salvage(url: StoreURL, vector_dim: int | None, options: Mapping[str, Any]) -> Wreck:
    from aesg.backends.blocks.salvage import BlockWreck
    from aesg.backends.zarr.directory import LOCK
    from aesg.backends.zarr.salvage import in_archive, in_directory

    path = url.local_path()
    canonical = str(StoreURL(url.scheme, "", str(path)))
    with os_errors("opening", path):
        if not path.exists():
            raise NotFoundError(f"{canonical}: there is nothing")
        if path.is_file():
            return BlockWreck(canonical, in_archive(path))
    hold = writers_kept_out(path / LOCK, canonical)
    try:
        rubble = in_directory(path)
    except BaseException:
        hold.release()
        raise
    return BlockWreck(canonical, rubble, hold)


def promises(durability: Durability) -> Capabilities:
    """What a store in a directory promises when it is opened with that durability."""
    return Capabilities(
        durability=durability,
        atomicity=Atomicity.GRAPH,
        readers=Readers.OTHER_PROCESSES,
        reader_view=ReaderView.LATEST,
        writers=Writers.ONE_PROCESS,
        snapshots=False,
        space_reclaim=SpaceReclaim.ON_COMPACT,
        integrity=Integrity.CHECKSUMS,
        remote=False,
    )


def recognises(path: Path) -> bool:
    """Whether a path holds a store of ours: a directory, be it of a store that was only begun, or a ZIP file."""
    if path.is_file():
        from aesg.backends.zarr.archive import recognises as recognises_zip

        return recognises_zip(path)
    if not path.is_dir() or not any((path / name).is_file() for name in ("zarr.json", "journal/zarr.json")):
        return False
    from aesg.backends.zarr.directory import recognises as recognises_directory

    return recognises_directory(path)


def _durability(options: Mapping[str, Any]) -> Durability:
    return Durability[str(options.get("durability", "process_crash")).upper()]


CACHE_OPTION: Final = Option(
    size(), "memory that blocks may take, e.g. 64MiB; default 256MiB; edge lists that were read take half as much again"
)

BACKEND: Final = Backend(
    scheme="zarr",
    summary="a plain Zarr v3 hierarchy in a folder, a ZIP file (reading) or memory; other programs read it as it is",
    open=_open,
    promises=lambda options: promises(_durability(options)),
    recognises=recognises,
    unfinished={"durability": "process_crash"},
    salvage=_salvage,
    options={
        "codec": Option(choice("none", "zstd", "blosc"), "how a new store compresses: none (default), zstd or blosc"),
        "cache_bytes": CACHE_OPTION,
        "durability": Option(
            choice("process_crash", "power_loss"),
            "what a commit in a folder survives: process_crash (default) or power_loss (adds the syncs)",
        ),
    },
)
