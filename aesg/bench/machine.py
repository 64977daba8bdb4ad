"""What is said about the machine: no names of hosts, users or folders."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np

PACKAGES: Final = ("numpy", "torch", "numba", "lmdb", "zarr", "icechunk")


def machine(folder: Path | None = None) -> dict[str, Any]:
    """Where something is measured, and how busy it is; JSON-able.

    Args:
        folder: Its file system is named; none when None.
    """
    from aesg import __version__

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": cores(),
        "ram_bytes": ram(),
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}, {platform.machine()}",
        "filesystem": None if folder is None else filesystem(folder),
        "python": platform.python_version(),
        "aesg": __version__,
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ram() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory() -> int:
    """Bytes of memory that could be had now; all of it where the system does not say."""
    info = Path("/proc/meminfo")
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines()) if info.exists() else {}
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else ram()


def filesystem(folder: Path) -> str | None:
    """The kind of file system that a folder lies on, e.g. ext4; None where the system does not say."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return None
    place = folder.resolve()
    found = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    under = [(point, kind) for point, kind in found if place.is_relative_to(_unescaped(point))]
    return max(under, key=lambda mount: len(mount[0]), default=("", None))[1]


def _unescaped(point: str) -> str:
    return point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


def resident() -> dict[str, int]:
    """Bytes that this process holds in memory: of its own ("anon") and of files ("file"); empty where unknown."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return {name: int(fields[kind].split()[0]) * 1024 for kind, name in {"RssAnon": "anon", "RssFile": "file"}.items()}


def settled() -> dict[str, int]:
    """`resident`, after what was freed went back to the system, where it can be told to."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library than glibc: it keeps what it keeps
        return resident()
    return resident()


def calibration() -> float:
    """Seconds of a fixed piece of work, half Python, half memory: how they vary is the machine's noise."""
    block = np.ones(1 << 20, np.float32)
    start = time.perf_counter()
    total = 0
    for i in range(60_000):
        total += i & 3
    for _ in range(8):
        block = block * np.float32(1.0)
    return time.perf_counter() - start
