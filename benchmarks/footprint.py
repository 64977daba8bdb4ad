"""What a million nodes cost: memory, disk, and the time to open them again; beside the published 0.3.0.

`python benchmarks/footprint.py` prints three tables; `--json FILE` keeps every figure; `--quick` only shows that it
works.

Memory is RssAnon, what a process holds that no file does. Each task runs in a process of its own that is watched from
outside; what it held before the task, with everything imported, is subtracted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self, TypeAlias

sys.path.insert(0, str(Path(__file__).parent))  # for `python -m benchmarks.footprint`

import install
from report import console, describe, machine, short, spread, verdict
from rich.table import Table
from worker import Worker

MEMORY_LIMIT = 81.0
"""MB that a task may add: 0.3.0's own figure."""
REOPEN_LIMIT = 100.0
"""Milliseconds."""

Call: TypeAlias = tuple[str, dict[str, Any]]
"""A worker's task and its arguments."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        nodes: Nodes, D=16.
        per_node: Edges per node of the store that is asked.
        chunk: Input is made so many vectors at a time.
        queries: Asked of ours.
        slow_queries: Asked of 0.3.0, which takes many seconds for one.
        reopenings: Fresh processes.
    """

    nodes: int = 1_000_000
    per_node: int = 10
    chunk: int = 10_000
    queries: int = 100
    slow_queries: int = 1
    reopenings: int = 9


QUICK = Sizes(nodes=1000, per_node=3, chunk=300, queries=2, reopenings=1)


@dataclass(frozen=True)
class Memory:
    """RssAnon in MB (10**6 bytes): before a task, what it added at most, and what was left of that at its end."""

    before: float
    peak: float
    end: float


class Watch:
    """Follows the memory of a process while the block runs."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._before = self._highest = self._last = self._look()

    def _look(self) -> float:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith("RssAnon:"))
        return int(line.split()[1]) * 1024 / 1e6

    def _follow(self) -> None:
        while not self._done.wait(0.002):
            self._highest = max(self._highest, self._look())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._last = self._look()
        self._highest = max(self._highest, self._last)

    @property
    def memory(self) -> Memory:
        """What was seen."""
        return Memory(self._before, self._highest - self._before, self._last - self._before)


def disk(directory: Path) -> dict[str, dict[str, float]]:
    """MB of each file, and together: its length, and what the file system gave it, which is less where it has holes."""
    stats = {entry.name: entry.stat() for entry in sorted(directory.iterdir()) if entry.is_file()}
    sizes = {n: {"apparent": s.st_size / 1e6, "allocated": s.st_blocks * 512 / 1e6} for n, s in stats.items()}
    total = {kind: sum(size[kind] for size in sizes.values()) for kind in ("apparent", "allocated")}
    return {**sizes, "together": total}


class Footprint:
    """The figures, by what was done and for which side, measured one after the other."""

    def __init__(self, package: Path, sizes: Sizes, folder: Path) -> None:
        self.packages: dict[str, Path | None] = {"ours": None, "theirs": package}
        self.sizes = sizes
        self.folder = folder
        self.memory: dict[str, dict[str, Memory]] = {}
        self.disk: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
        self.reopening: dict[str, dict[str, list[float]]] = {}

    def run(self) -> None:
        """Measure everything."""
        sizes = self.sizes
        grow = {"count": sizes.nodes, "dim": 16, "chunk": sizes.chunk}
        for side in self.packages:
            place = str(self.folder / f"nodes-{side}")
            self.watch("build, one by one", side, ("grow_one_by_one", {"directory": place, **grow}))
        bulk = str(self.folder / "bulk")
        self.watch(f"build, {sizes.chunk:,} at a time", "ours", ("grow_in_chunks", {"directory": bulk, **grow}))
        shutil.rmtree(bulk)
        self.look_at("nodes", f"{sizes.nodes:,} nodes")

        with Worker("ours") as builder:
            mine, other = self.folder / "linked-ours", self.folder / "linked-theirs"
            builder("build", directory=str(mine), nodes=sizes.nodes, per_node=sizes.per_node, dim=16)
            shutil.copytree(mine, other)
        self.look_at("linked", f"… and {sizes.nodes * sizes.per_node:,} edges", copied=True)
        for side, count in (("ours", sizes.queries), ("theirs", sizes.slow_queries)):
            place = str(self.folder / f"linked-{side}")
            ask = {"directory": place, "dim": 16, "first": 0, "count": count}
            self.watch("reopen, read all nodes", side, opened(place), ("read_everything", {"directory": place}))
            self.watch("reopen, retrieve with edges", side, opened(place), ("retrieve", ask))
            self.watch("reopen, consolidate", side, opened(place), ("consolidate", {"directory": place}))

    def watch(self, name: str, side: str, *calls: Call) -> None:
        """Memory that calls take in a fresh process."""
        with Worker(side, self.packages[side]) as worker:
            worker("about")  # the answer comes when everything is imported
            with Watch(worker.pid) as watch:
                for task, arguments in calls:
                    worker(task, **arguments)
        self.memory.setdefault(name, {})[side] = watch.memory

    def look_at(self, prefix: str, name: str, *, copied: bool = False) -> None:
        """Size on disk of closed stores, unless 0.3.0's is a copy of ours, and the time that they take to open."""
        places = {side: self.folder / f"{prefix}-{side}" for side in self.packages}
        self.disk[name] = {side: disk(place) for side, place in places.items() if side == "ours" or not copied}
        times: dict[str, list[float]] = {side: [] for side in self.packages}
        for _ in range(self.sizes.reopenings):
            for side, package in self.packages.items():
                with Worker(side, package) as fresh:
                    task, arguments = opened(str(places[side]))
                    times[side].append(fresh(task, **arguments) * 1e3)
        self.reopening[name] = times


def opened(directory: str) -> Call:
    """The call that opens a store."""
    return "reopen", {"directory": directory, "dim": 16}


def show(result: Footprint, where: dict[str, Any], *, judged: bool) -> None:
    """The tables."""
    out = console()
    table = Table(title="Memory (RssAnon) beyond the empty process, MB: at most, and at the end")
    for heading in ("", "ours", "0.3.0", f"at most {MEMORY_LIMIT:g}"):
        table.add_column(heading)
    first = next(iter(result.memory.values()))
    table.add_row("(the empty process)", *(short(first[side].before) for side in result.packages), verdict(None))
    for name, sides in result.memory.items():
        cells = [f"{short(sides[s].peak)}, {short(sides[s].end)}" if s in sides else "–" for s in result.packages]
        table.add_row(name, *cells, verdict(sides["ours"].peak <= MEMORY_LIMIT if judged else None))
    out.print(table)

    table = Table(title="Disk, MB: file lengths, and what the file system gave them")
    for heading in ("", "ours", "0.3.0"):
        table.add_column(heading)
    for name, of in result.disk.items():
        for file in of["ours"]:
            found = [of.get(side, {}).get(file) for side in result.packages]
            cells = [f"{short(f['apparent'])}, {short(f['allocated'])}" if f else "–" for f in found]
            table.add_row(f"{name}: {file}", *cells)
    out.print(table)

    table = Table(title="Reopening in a fresh process, ms: median (min to max)", caption=describe(where))
    for heading in ("", "ours", "0.3.0", f"under {REOPEN_LIMIT:g}"):
        table.add_column(heading)
    for name, times in result.reopening.items():
        ok = median(times["ours"]) < REOPEN_LIMIT if judged else None
        table.add_row(name, *(spread(times[side]) for side in result.packages), verdict(ok))
    out.print(table)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small store: shows that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--cache", type=Path, default=install.DEFAULT_CACHE, help="where 0.3.0 is kept installed")
    options = parser.parse_args()
    package = install.published(options.cache)
    where = machine()
    with tempfile.TemporaryDirectory(prefix="aesg-bench-") as folder:
        result = Footprint(package, QUICK if options.quick else Sizes(), Path(folder))
        result.run()
    show(result, where, judged=not options.quick)
    if options.json:
        memory = {name: {side: asdict(m) for side, m in sides.items()} for name, sides in result.memory.items()}
        figures = {"memory_mb": memory, "disk_mb": result.disk, "reopening_ms": result.reopening}
        options.json.write_text(
            json.dumps({"machine": where, "sizes": asdict(result.sizes), **figures}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
