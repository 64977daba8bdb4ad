"""`memmap:` — raw memory-mapped files in the published 0.3.0 format, with atomic commits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aesg.backends.files import os_errors
from aesg.backends.lists import CACHE_BYTES, CACHE_OPTION
from aesg.backends.memmap.directory import recognises
from aesg.backends.memmap.handle import promises
from aesg.backends.memmap.reader import MemmapReader
from aesg.backends.memmap.writer import MemmapWriter
from aesg.backends.registry import Backend, Mode, Option, choice
from aesg.backends.salvage import Wreck
from aesg.backends.url import StoreURL
from aesg.protocols import Durability, GraphStore


def _open(url: StoreURL, mode: Mode, vector_dim: int | None, options: Mapping[str, Any]) -> GraphStore:
    directory = url.local_path()
    durability = _durability(options)
    cache_bytes = options.get("cache_bytes", CACHE_BYTES)
    query = {} if durability is Durability.PROCESS_CRASH else {"durability": durability.name.lower()}
    query |= {} if cache_bytes == CACHE_BYTES else {"cache_bytes": str(cache_bytes)}
    canonical = str(StoreURL(url.scheme, "", str(directory), query))
    kind = MemmapReader if mode == "r" else MemmapWriter
    with os_errors("opening", directory):
        return kind(canonical, directory, vector_dim, durability, cache_bytes)


def _salvage(url: StoreURL, vector_dim: int | None, options: Mapping[str, Any]) -> Wreck:
    from aesg.backends.memmap.salvage import MemmapWreck

    directory = url.local_path()
    return MemmapWreck(str(StoreURL(url.scheme, "", str(directory))), directory, vector_dim)


def _durability(options: Mapping[str, Any]) -> Durability:
    return Durability[str(options.get("durability", "process_crash")).upper()]


BACKEND: Final = Backend(
    scheme="memmap",
    summary="memory-mapped files in the 0.3.0 format; fastest for one writing process",
    open=_open,
    promises=lambda options: promises(_durability(options)),
    recognises=recognises,
    salvage=_salvage,
    unfinished={"durability": "process_crash"},
    options={
        "durability": Option(
            choice("process_crash", "power_loss"),
            "what a commit survives: process_crash (default) or power_loss (adds the syncs)",
        ),
        "cache_bytes": CACHE_OPTION,
    },
)
