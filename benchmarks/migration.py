"""What it costs to carry a store around the circle of backends, beside a plain copy of its files.

`python benchmarks/migration.py` prints a table; `--json FILE` keeps every figure; `--quick` only shows that it works.

Before and after each leg, `cp` copies the files that the leg reads, and what it wrote is read once: the ratio is that
time over the leg's. A leg is a fresh process that runs `aesg.migrate`: it reads, writes, syncs, reads back, compares
digests and renames. Its memory is watched from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))  # for `python -m benchmarks.migration`

import data
import numpy as np
from footprint import Watch
from report import console, describe, machine, verdict
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

CIRCLE: Final = ("memmap", "lmdb", "zarr", "icechunk", "memmap")
REACH: Final = {"memmap": (0.5, 0.15), "lmdb": (0.5, 0.15), "zarr": (0.05, 0.05), "icechunk": (0.05, 0.05)}
"""What the ratio of a leg into a backend is to reach, and what is accepted; a leg out of Zarr or Icechunk is theirs."""
MEMORY: Final = 300.0
"""MB that a leg may take beyond what it has imported."""


@dataclass(frozen=True)
class Sizes:
    """How much there is, and how often it is carried."""

    nodes: int = 1_000_000
    edges: int = 10_000_000
    dim: int = 128
    turns: int = 3


QUICK: Final = Sizes(nodes=500, edges=2000, dim=8, turns=1)


@dataclass
class Leg:
    """From one backend to the next.

    Attributes:
        bytes: Of the files that are copied, as the file system counts them.
        seconds: Of each turn.
        copies: Seconds of `cp` and reading, two a turn.
        synced: The same with a sync in between.
        memory: MB of memory at most, beyond what was imported, of each turn.
        digest: What the migration found on both sides.
    """

    source: str
    destination: str
    bytes: int
    seconds: list[float]
    copies: list[float]
    synced: list[float]
    memory: list[float]
    digest: str

    @property
    def ratio(self) -> float:
        """Time of a plain copy over that of the migration."""
        return median(self.copies) / median(self.seconds)

    @property
    def accepted(self) -> tuple[float, float]:
        """Ratio to reach, and the least that is accepted."""
        return min(REACH[self.source], REACH[self.destination])


def build(url: str, sizes: Sizes) -> str:
    """Make the store that goes around; returns its digest."""
    import aesg
    from aesg.records import EventType, NodeBatch, events

    rng = np.random.default_rng(5)
    with aesg.open(url, vector_dim=sizes.dim) as store:
        for start in range(0, sizes.nodes, 100_000):
            count = min(100_000, sizes.nodes - start)
            store.nodes.append(NodeBatch(data.vectors(count, sizes.dim, seed=start)))
        for start in range(0, sizes.edges, 1_000_000):
            count = min(1_000_000, sizes.edges - start)
            ends = rng.integers(0, sizes.nodes, (2, count))
            refs = store.edges.append(ends[0], ends[1], rng.random(count, np.float32), rng.random(count, np.float32))
            store.edges.write(refs[::3], use_count=rng.integers(1, 9, len(refs[::3])))
        store.edges.remove(refs[5::97])
        store.nodes.write(np.arange(3, sizes.nodes, 11), is_active=0)
        store.events.append(events(EventType.CREATE, np.arange(sizes.nodes), val=1.0))
        store.attrs["config"] = {"vector_dim": sizes.dim, "note": "ä"}
        return aesg.digest(store)


def forget(folder: Path) -> None:
    """Have the system drop what it has of the files in a folder from its cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)  # what is not on the disk yet is not dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def copied(source: Path, target: Path, *, sync: bool, cold: bool) -> float:
    """Seconds that `cp` takes, and reading what it made."""
    if cold:
        forget(source)
    began = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    files = [path for path in target.rglob("*") if path.is_file()]
    if sync:
        for path in files:
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
    if cold:
        forget(target)
    buffer = bytearray(1 << 20)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    took = time.perf_counter() - began
    shutil.rmtree(target)
    return took


def carried(source: str, destination: str, cold: Path | None = None) -> tuple[dict[str, Any], float]:
    """A migration in a fresh process: what it reports, and its memory; `cold` is to be read from the disk."""
    command = [sys.executable, str(Path(__file__).parent / "migration_leg.py"), source, destination]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()  # everything is imported
        if cold is not None:
            forget(cold)
        with Watch(child.pid) as watch:
            child.stdin.write("go\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        child.stdin.close()
    found = json.loads(answer)
    if "error" in found:
        raise RuntimeError(f"{source} → {destination}: {found['error']}")
    return found, watch.memory.peak


def size_of(folder: Path) -> int:
    """Bytes that a folder takes on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def around(
    folder: Path, sizes: Sizes, circle: tuple[str, ...], progress: Progress, *, cold: bool = False
) -> Iterator[Leg]:
    """Carry a store around; each leg as often as there are turns."""
    bar = progress.add_task("building", total=1 + (len(circle) - 1) * sizes.turns)
    places = [folder / f"{number}-{scheme}" for number, scheme in enumerate(circle)]
    urls = [f"{scheme}://{place}" for scheme, place in zip(circle, places, strict=True)]
    digest = build(urls[0], sizes)
    progress.advance(bar)
    for number in range(len(circle) - 1):
        made = Leg(circle[number], circle[number + 1], size_of(places[number]), [], [], [], [], digest)
        progress.update(bar, description=f"{made.source} → {made.destination}")
        for _ in range(sizes.turns):
            made.copies.append(copied(places[number], folder / "copy", sync=False, cold=cold))
            made.synced.append(copied(places[number], folder / "copy", sync=True, cold=cold))
            found, memory = carried(urls[number], urls[number + 1], places[number] if cold else None)
            if found["digest"] != digest:
                raise RuntimeError(f"{urls[number + 1]} holds {found['digest']}, expected {digest}")
            made.seconds.append(found["seconds"])
            made.memory.append(memory)
            made.copies.append(copied(places[number], folder / "copy", sync=False, cold=cold))
            progress.advance(bar)
        shutil.rmtree(places[number])
        yield made


def table(legs: list[Leg], sizes: Sizes, where: dict[str, Any], *, judged: bool) -> Table:
    """The figures."""
    title = f"{sizes.nodes:,} nodes × {sizes.dim}, {sizes.edges:,} edges; digest {legs[0].digest} at every stop"
    out = Table(title=title, caption=describe(where), caption_justify="left")
    for name in ("leg", "MB", "seconds", "MB/s", "cp + read, s", "… with a sync, s", "ratio", "to reach", "memory, MB"):
        out.add_column(name, justify="left" if name == "leg" else "right")
    for one in legs:
        seconds = median(one.seconds)
        reach, accepted = one.accepted
        fast = verdict(one.ratio >= accepted) if judged else ""
        small = verdict(max(one.memory) <= MEMORY) if judged else ""
        out.add_row(
            f"{one.source} → {one.destination}",
            f"{one.bytes / 1e6:,.0f}",
            f"{seconds:.2f}",
            f"{one.bytes / seconds / 1e6:,.0f}",
            f"{median(one.copies):.2f}",
            f"{median(one.synced):.2f}",
            f"{one.ratio:.2f} {fast}",
            f"{reach:g}, at least {accepted:g}",
            f"{max(one.memory):,.0f} {small}",
        )
    return out


def main(args: list[str] | None = None) -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--edges", type=int)
    parser.add_argument("--dim", type=int)
    parser.add_argument("--turns", type=int)
    parser.add_argument("--circle", default=",".join(CIRCLE), help="backends, in the order in which it goes around")
    parser.add_argument("--folder", help="where the stores are made: which disk is measured")
    parser.add_argument("--json", metavar="FILE", help="keep every figure")
    parser.add_argument("--cold", action="store_true", help="everything is read from the disk, not from the page cache")
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    given = parser.parse_args(args)
    base = asdict(QUICK if given.quick else Sizes())
    sizes = Sizes(**{name: getattr(given, name) or value for name, value in base.items()})
    screen, where = console(), machine()
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with (
        tempfile.TemporaryDirectory(dir=given.folder, prefix="aesg-migration-") as folder,
        Progress(*columns, console=screen, transient=True) as progress,
    ):
        legs = list(around(Path(folder), sizes, tuple(given.circle.split(",")), progress, cold=given.cold))
    screen.print(table(legs, sizes, where, judged=sizes == Sizes(turns=sizes.turns)))
    if given.cold:
        screen.print("Cold: what was read, by cp too, was not in the page cache.")
    if given.json:
        found = {
            "machine": where,
            "sizes": asdict(sizes),
            "cold": given.cold,
            "legs": [{**asdict(one), "ratio": one.ratio} for one in legs],
        }
        Path(given.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
