"""The same job on what people would take instead: Kuzu, LanceDB, SQLite with sqlite-vec, DuckDB, faiss by hand.

`python benchmarks/rivals.py` makes the memory, asks it, teaches it and consolidates it on each system and on memmap,
LMDB and Zarr, and prints a table; `--json FILE` keeps every figure, `--plot FILE` draws them, `--page FILE` puts the
table into a page of the docs. Needs the extra `rivals`; what is not installed costs its own figures only.

Each system is a process of its own and all take turns, so that a slow minute of the machine hits all. Each answer is
held against plain NumPy before anything is believed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

sys.path.insert(0, str(Path(__file__).parent))  # for `python -m benchmarks.rivals`

import numpy as np
import retrieval_plot
import rivals_job as job
import rivals_report as report
from report import console, machine
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from worker import Worker

from aesg import AESGConfig

NAMES: Final = ("memmap", "lmdb", "zarr", "faiss + CSR", "kuzu", "lancedb", "sqlite-vec", "duckdb")
TUNED_ON: Final = 30
"""Queries that approximate searches are tuned on."""
FAILURES: Final = (RuntimeError, OSError, ValueError)
"""What a task that failed, a worker that ended and an answer that was cut off raise."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        nodes: Of the memory.
        per_node: Edges from each.
        dim: Length of the vectors.
        rounds: How often the whole job is done.
        queries: Asked in a round, at most.
        block: Asked by one before it is the next one's turn.
        lessons: Commits of each kind in a round.
        checked: Queries whose answers are compared, each time.
        recall: What approximate searches are tuned to.
        budget: Seconds that one system's queries may take in a round.
        patience: Seconds that one step of one system may take.
    """

    nodes: int = 100_000
    per_node: int = 10
    dim: int = 128
    rounds: int = 3
    queries: int = 300
    block: int = 10
    lessons: int = 10
    checked: int = 20
    recall: float = 0.98
    budget: float = 60
    patience: float = 900


QUICK: Final = Sizes(nodes=10_000, rounds=1, queries=20, lessons=2, checked=5, budget=5, patience=120)


@dataclass
class Result:
    """What one system did, over all rounds.

    Attributes:
        name: The system.
        problem: Why it has no figures, or none from some step on; "" when it has all.
        about: Versions, what a commit survives, how it searches and spreads.
        figures: Name → one figure a round, or one a turn: seconds and MB (10**6 bytes).
        recall: Of the nearest, before anything was learned, and after consolidation; one each round.
        compared: Queries whose activated set was compared.
        undecided: Queries that were not, because something came too near to the threshold.
        faults: What was wrong; empty when all answers were right.
    """

    name: str
    problem: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)
    recall: dict[str, list[float]] = field(default_factory=dict)
    compared: int = 0
    undecided: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, **figures: float) -> None:
        """Note more."""
        for name, figure in figures.items():
            self.figures.setdefault(name, []).append(figure)


class Side:
    """One system in a round: its folder and its process.

    Attributes:
        result: Where its figures go.
        folder: Where its store is.
        spent: Seconds that its queries took.
        before: MB that its process held before it opened the store.
    """

    def __init__(self, result: Result, data: Path, folder: Path, patience: float) -> None:
        self.result = result
        self.folder = folder
        self.spent = 0.0
        self.before = 0.0
        self._data = data
        self._patience = patience
        self._worker: Worker | None = None
        folder.mkdir()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._worker is not None
        return self._worker.pid

    def start(self) -> None:
        """A fresh process, in which everything is imported."""
        self.stop()
        self._worker = Worker("rivals_tasks")
        self.result.about.update(self("about", name=self.result.name, data=str(self._data), folder=str(self.folder)))

    def stop(self) -> None:
        """Let the process end."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __call__(self, task: str, **arguments: Any) -> Any:
        """Have a task done.

        Raises:
            RuntimeError: It failed, or took too long.
        """
        assert self._worker is not None
        late = threading.Event()

        def end(pid: int) -> None:
            late.set()
            os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(self._patience, end, [self._worker.pid])
        timer.start()
        try:
            return self._worker(task, **arguments)
        except FAILURES as error:
            if late.is_set():
                raise RuntimeError(f"{task}: did not finish in {self._patience:g} s") from error
            raise RuntimeError(f"{task}: {str(error).strip().splitlines()[-1]}") from error
        finally:
            timer.cancel()


class Job:
    """The job, done by all in turns.

    Attributes:
        results: By name of the system.
        done: Rounds.
    """

    def __init__(self, sizes: Sizes, names: Iterable[str], folder: Path, progress: Progress) -> None:
        self.sizes = sizes
        self.results = {name: Result(name) for name in names}
        self.done = 0
        self._folder = folder
        self._data = folder / "data"
        self._progress = progress
        self._rate = AESGConfig().reinforce_rate

    def run(self, after_round: Callable[[], None]) -> None:
        """All rounds; after each, what is known so far can be kept."""
        sizes = self.sizes
        self._data.mkdir()
        steps = 5 + 2 * sizes.lessons + sizes.queries // sizes.block
        self._bar = self._progress.add_task("input", total=1 + sizes.rounds * steps * len(self.results))
        job.write(self._data, sizes.nodes, sizes.per_node, sizes.dim, max(sizes.queries, TUNED_ON))
        self._progress.advance(self._bar)
        for turn in range(sizes.rounds):
            self._round(turn)
            self.done = turn + 1
            after_round()
            if any(result.faults for result in self.results.values()):
                break  # what is wrong need not be measured again

    def _round(self, turn: int) -> None:
        sizes, place = self.sizes, self._folder / f"round-{turn}"
        place.mkdir()
        given = job.read(self._data)
        reference = job.Reference(given, job.Rule.of(sizes.dim))
        queries = np.array(given["queries"])
        truth = [reference.nearest(query, reference.rule.seeds)[0].tolist() for query in queries[:TUNED_ON]]
        sides = [
            Side(result, self._data, place / str(i), sizes.patience) for i, result in enumerate(self.results.values())
        ]
        sides = sides[turn % len(sides) :] + sides[: turn % len(sides)]

        def check(when: str) -> Callable[[Side], None]:
            def checked(side: Side) -> None:
                answers = [
                    job.Activated(
                        np.array(answer["seeds"], np.int64),
                        np.array(answer["rows"], np.int64),
                        None if answer["energies"] is None else np.array(answer["energies"]),
                    )
                    for answer in side("check", count=sizes.checked)
                ]
                found = job.compare(reference, queries[: sizes.checked], answers)
                side.result.recall.setdefault(when, []).append(found.recall)
                side.result.compared += found.compared
                side.result.undecided += found.undecided
                side.result.faults += [f"{when}: {fault}" for fault in found.faults]

            return checked

        self._each("makes it", sides, self._make)
        self._each("opens it", sides, lambda side: self._open(side, truth))
        self._each("is compared", sides, check("made"))
        for first in range(0, sizes.queries, sizes.block):
            self._each("is asked", sides, partial(self._ask, first=first))
        self._each("is weighed", sides, lambda side: side.result.add(asked_mb=held(side.pid) - side.before))
        for lesson in range(sizes.lessons):
            for task in ("learn", "reinforce"):
                self._each(f"{task}s", sides, partial(_write, task=task, turn=lesson))
            reference.learn(lesson)
            reference.reinforce(lesson, self._rate)
        reference.consolidate()

        def consolidate(side: Side) -> None:
            found = side("consolidate")
            side.result.add(consolidate=found["seconds"], after=found["first"])
            left = tuple(side("counts"))
            if left != reference.counts:
                side.result.faults.append(f"{left} nodes and edges are left instead of {reference.counts}")
            check("consolidated")(side)
            side("close")
            side.result.add(disk_after_mb=_size(side.folder))

        self._each("consolidates", sides, consolidate)
        for side in sides:
            side.stop()
        shutil.rmtree(place)

    def _make(self, side: Side) -> None:
        side.start()
        with Peak(side.pid) as peak:
            seconds = side("create")
        side.result.add(create=seconds, create_mb=peak.added)
        side("close")
        side.result.add(disk_mb=_size(side.folder))

    def _open(self, side: Side, truth: list[list[int]]) -> None:
        side.start()
        side.before = held(side.pid)
        found = side("reopen")
        side.result.add(reopen=found["open"] + found["first"])
        if "way" in side.result.about:
            side("use", way=side.result.about["way"], turned_to=side.result.about["turned_to"])
        else:
            side.result.about.update(side("tune", wanted=self.sizes.recall, truth=truth))

    def _ask(self, side: Side, first: int) -> None:
        if side.spent > self.sizes.budget:
            return
        start = time.perf_counter()
        times = side("ask", first=first, count=self.sizes.block, budget=self.sizes.budget)
        side.spent += time.perf_counter() - start
        side.result.figures.setdefault("ask", []).extend(times)

    def _each(self, doing: str, sides: list[Side], work: Callable[[Side], None]) -> None:
        """Let all do something; the first is the last one next time."""
        for side in sides:
            self._progress.update(self._bar, description=f"{side.result.name} {doing}")
            if not side.result.problem:
                try:
                    work(side)
                except FAILURES as error:
                    side.result.problem = str(error)
                    self._progress.console.print(f"{side.result.name}: {error}", markup=False, soft_wrap=True)
            self._progress.advance(self._bar)
        sides.append(sides.pop(0))


def _write(side: Side, task: str, turn: int) -> None:
    """A commit."""
    side.result.add(**{task: side(task, turn=turn)})


def _size(folder: Path) -> float:
    """MB that the file system gave to what is in a folder."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) / 1e6


def held(pid: int) -> float:
    """MB that a process holds and no file does (RssAnon); 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssAnon:"))


class Peak:
    """Follows what a process holds while the block runs, to whose end it need not live.

    Attributes:
        added: MB that it held at most, beyond what it held before.
    """

    def __init__(self, pid: int) -> None:
        self.added = 0.0
        self._pid = pid
        self._before = held(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self) -> None:
        while not self._done.wait(0.005):
            self.added = max(self.added, held(self._pid) - self._before)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--systems", default=",".join(NAMES), help="which, separated by commas (default: all)")
    parser.add_argument("--nodes", type=int, help=f"default {Sizes.nodes:,}")
    parser.add_argument("--rounds", type=int, help=f"how often the whole job is done (default {Sizes.rounds})")
    parser.add_argument(
        "--patience", type=float, metavar="S", help=f"seconds a step may take (default {Sizes.patience:g})"
    )
    parser.add_argument("--quick", action="store_true", help="a small memory, once: shows that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the table between the marks of this page")
    parser.add_argument("--folder", type=Path, help="where the stores are made; on a disk, not in memory")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in ("nodes", "rounds", "patience")}
    base = QUICK if options.quick else Sizes()
    sizes = Sizes(**{**asdict(base), **{name: value for name, value in given.items() if value is not None}})
    names = options.systems.split(",")
    unknown = set(names) - set(NAMES)
    if unknown or len(names) != len(set(names)):
        parser.error(f"--systems: choose from {', '.join(NAMES)}")
    if options.plot:
        retrieval_plot.pyplot()  # whether it is there
    if options.page and not all(mark in options.page.read_text() for mark in report.MARKS):
        parser.error(f"--page: {options.page} has no place between {' and '.join(report.MARKS)}")
    where, out = machine(), console()
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="aesg-rivals-", dir=options.folder) as folder,
        Progress(*bars, console=out, transient=True) as progress,
    ):
        measured = Job(sizes, names, Path(folder), progress)

        def known() -> dict[str, Any]:
            systems = [asdict(result) for result in measured.results.values()]
            return {"machine": where, "sizes": {**asdict(sizes), "rounds": measured.done}, "systems": systems}

        def keep() -> None:
            if options.json:
                options.json.write_text(json.dumps(known(), indent=1) + "\n")

        measured.run(keep)
    figures = known()
    out.print(report.table(figures))
    for line in report.remarks(figures):
        out.print(line, markup=False, soft_wrap=True)
    if options.plot:
        report.draw(figures, options.plot)
    if options.page:
        report.put_into(options.page, report.markdown(figures))
    if any(result.faults for result in measured.results.values()):
        raise SystemExit("an answer was wrong")


if __name__ == "__main__":
    main()
