"""Retrieval, learning and ingest at a million nodes: beside 0.3.0, beside what is written by hand, beside the machine.

`python benchmarks/retrieval.py` prints a table; `--json FILE` keeps every turn; `--plot FILE` draws it; `--quick` only
shows that it works.

Sides take turns, so that a slow minute of the machine hits both. Each part runs in processes of its own: what is not
installed, fails or hangs costs its own figures and no others.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))  # for `python -m benchmarks.retrieval`

import install
import numpy as np
import retrieval_plot
from footprint import Watch
from report import console, describe, machine, short
from retrieval_cases import BACKENDS, CASES, Case, Goal, Row, compared, plain, summary
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from stores import coloured, names_of
from stores_limits import edge_bytes, node_bytes
from stores_tasks import address
from stores_turns import LEAST, alternate
from worker import Worker

from aesg.errors import AESGError

RIVALS: Final = ("faiss", "usearch")
WITHOUT_STORE: Final = ("create", "append", "connect")
"""Parts that make their own; they come last."""
LIBRARIES: Final = ("lmdb", "zarr", "numba", "usearch", "faiss-cpu")
FAILURES: Final = (RuntimeError, OSError, ValueError, AESGError)
"""What a task that failed, a worker that ended, an answer that was cut off and a backend that is absent raise."""
GROWTH: Final = (100, 10, 1)
"""All nodes are divided by these."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        nodes: Of the memory.
        edges: As many from each node.
        dim: Length of the vectors.
        queries: Asked one by one, at most, unless the budget is spent before.
        batch: Queries that are asked at once.
        batches: Turns of those.
        block: Queries of a turn in training.
        blocks: Turns of those.
        turns: Where one takes seconds.
        slow: Queries that 0.3.0 is asked.
        inserts: Concepts created one by one, D=16.
        openings: Fresh processes.
        budget: Seconds that the turns of a part may take.
        patience: Seconds after which a process is ended.
    """

    nodes: int = 1_000_000
    edges: int = 10_000_000
    dim: int = 128
    queries: int = 2000
    batch: int = 256
    batches: int = 20
    block: int = 300
    blocks: int = 20
    turns: int = 5
    slow: int = 3
    inserts: int = 100_000
    openings: int = 5
    budget: float = 20
    patience: float = 3600

    @property
    def per_node(self) -> int:
        """Edges from each node."""
        return self.edges // self.nodes


FULL: Final = Sizes()
ASKED_IN_A_ROW: Final = 50
"""Queries that ours answers for each of 0.3.0's, which takes seconds: what the processor's caches had is gone by then,
so that the first of them waits for memory. The mean of all of them counts, the first is reported too."""
QUICK: Final = Sizes(
    nodes=2000,
    edges=20_000,
    dim=16,
    queries=60,
    batch=16,
    batches=3,
    block=10,
    blocks=3,
    turns=3,
    slow=2,
    inserts=200,
    openings=1,
    budget=3,
    patience=300,
)


class Bench:
    """The rows, measured one after the other.

    Attributes:
        rows: One per case and backend.
        rivals: How their indexes were built, by name.
    """

    def __init__(
        self, sizes: Sizes, folder: Path, progress: Progress, cache: Path, *, judged: bool, ten_million: bool
    ) -> None:
        self.sizes = sizes
        self.folder = folder
        self.rows: list[Row] = []
        self.rivals: dict[str, dict[str, Any]] = {}
        self.files = {name: str(folder / f"{name}.npy") for name in ("vectors", "queries", "truth")}
        self._progress = progress
        self._bar = progress.add_task("")
        self._cache = cache
        self._judged = judged
        self._ten_million = ten_million

    def run(self, schemes: list[str], wanted: list[str]) -> None:
        """Measure what is wanted of each backend."""
        cases = [case for case in CASES if case.key in wanted]
        parts = list(dict.fromkeys(case.part for case in cases))
        needed = [name for name in RIVALS if name in wanted]
        stored = [part for part in parts if part not in WITHOUT_STORE and part != "build"]
        self._progress.update(self._bar, total=1 + len(needed) + len(schemes) * (len({*parts, "build"})))
        self.attempt("input", self.prepare)
        for name in needed:
            failure = self.attempt(f"{name}: build", partial(self.build_rival, name))
            self.rivals.setdefault(name, {})["problem"] = failure
        for scheme in schemes:
            home = self.folder / scheme
            home.mkdir()
            mine = {
                part: [case for case in cases if case.part == part and self.applies(case, scheme)] for part in parts
            }
            problem = ""
            if mine.get("build") or any(mine[part] for part in stored):
                problem = self.measure("build", scheme, home, mine.get("build", []))
            for part in stored:
                self.measure(part, scheme, home, mine[part], problem)
            shutil.rmtree(home / "store", ignore_errors=True)
            for part in parts:
                if part in WITHOUT_STORE:
                    self.measure(part, scheme, home, mine[part])
            shutil.rmtree(home, ignore_errors=True)

    def applies(self, case: Case, scheme: str) -> bool:
        """Whether a case is measured on a backend."""
        return case.backends is None or scheme in case.backends

    def measure(self, part: str, scheme: str, home: Path, cases: list[Case], problem: str = "") -> str:
        """Run a part and keep its rows; gives back why it failed, "" when it did not."""
        findings: dict[str, Any] = {}
        work: Callable[[str, Path], dict[str, Any]] = getattr(self, part)
        if (cases or part == "build") and not problem:
            problem = self.attempt(f"{scheme}: {part}", lambda: findings.update(work(scheme, home)))
        else:
            self._progress.advance(self._bar)
        for case in cases:
            finding = {"problem": problem, **findings.get(case.key, {} if problem else {"problem": "not measured"})}
            row = Row(case, scheme, goal=self.goal_of(case, scheme), **finding)
            if not row.problem:
                self.say(f"{scheme}: {case.key}: {short(row.value)} {row.case.unit}")
            elif not problem:
                self.say(f"{scheme}: {case.key}: failed\n{row.problem}")
            self.rows.append(row)
        return problem

    def goal_of(self, case: Case, scheme: str) -> Goal | None:
        """What is asked; nothing at other sizes."""
        return case.goals.get(scheme) if self._judged else None

    def say(self, line: str) -> None:
        """Above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def attempt(self, name: str, work: Callable[[], Any]) -> str:
        """Do something; gives back why it failed, "" when it did not."""
        self._progress.update(self._bar, description=name)
        try:
            work()
        except FAILURES as error:
            self.say(f"{name}: failed\n{error}")
            return str(error).strip().splitlines()[-1]
        finally:
            self._progress.advance(self._bar)
        return ""

    # Processes

    def worker(self, side: str = "retrieval_tasks", package: Path | None = None) -> Worker:
        """A process, which is ended when it takes too long."""
        return Worker(side, package, self.sizes.patience)

    def ask_worker(self, task: str, **arguments: Any) -> Any:
        """Have a task done in a process of its own."""
        with self.worker() as worker:
            return worker(task, **arguments)

    def url(self, scheme: str, home: Path, more: dict[str, str] | None = None) -> str:
        """The memory that is asked: with a cache that holds all of it, where the backend has one."""
        sizes = self.sizes
        everything = 2 * (sizes.nodes * node_bytes(sizes.dim) + 2 * sizes.edges * edge_bytes()) + (64 << 20)
        return address(scheme, str(home / "store"), cache=everything, more=more)

    # Making

    def prepare(self) -> None:
        """Input."""
        sizes = self.sizes
        size = {"nodes": sizes.nodes, "dim": sizes.dim, "count": max(sizes.queries, 2 * sizes.batch)}
        self.ask_worker("prepare", **self.files, **size)

    def build_rival(self, name: str) -> None:
        """Its index."""
        path = self.folder / f"{name}.index"
        rate = self.ask_worker("build_rival", name=name, path=str(path), vectors=self.files["vectors"])
        self.rivals[name] = {"nodes_per_second": rate, "mb": path.stat().st_size / 1e6}

    def build(self, scheme: str, home: Path) -> dict[str, Any]:
        """The memory."""
        url = self.url(scheme, home)
        return dict(self.ask_worker("build", url=url, vectors=self.files["vectors"], per_node=self.sizes.per_node))

    def published_store(self) -> tuple[Path, str]:
        """0.3.0, and a memory for it: the same as ours, which writes the published format."""
        try:
            package = install.published(self._cache)
        except SystemExit as error:
            raise RuntimeError(f"{install.REQUIREMENT}, which this is held against, could not be installed") from error
        old, mine = self.folder / "published", self.folder / "memmap" / "store"
        if not old.is_dir():
            if not mine.is_dir():
                mine = self.folder / "for-published"
                where = {"url": address("memmap", str(mine)), "vectors": self.files["vectors"]}
                self.ask_worker("build", **where, per_node=self.sizes.per_node)
            shutil.copytree(mine, old, ignore=shutil.ignore_patterns("seed-index"))
        return package, str(old)

    # Parts that ask

    def ask(self, scheme: str, home: Path) -> dict[str, Any]:
        """One by one, alone and beside the rivals."""
        sizes = self.sizes
        there = {
            name: str(self.folder / f"{name}.index") for name, built in self.rivals.items() if not built["problem"]
        }
        found: dict[str, Any] = self.ask_worker(
            "ask",
            url=self.url(scheme, home),
            files=self.files,
            indexes=there,
            per_node=sizes.per_node,
            turns=sizes.queries,
            budget=sizes.budget,
        )
        failed = {name: {"problem": built["problem"]} for name, built in self.rivals.items() if built["problem"]}
        return {**failed, **found}

    def batches(self, scheme: str, home: Path) -> dict[str, Any]:
        """Many at once."""
        sizes = self.sizes
        where = {"url": self.url(scheme, home), "queries": self.files["queries"]}
        return dict(self.ask_worker("batches", **where, size=sizes.batch, turns=sizes.batches, budget=2 * sizes.budget))

    def train(self, scheme: str, home: Path) -> dict[str, Any]:
        """Learning."""
        sizes = self.sizes
        where = {"url": self.url(scheme, home), "queries": self.files["queries"]}
        return dict(self.ask_worker("train", **where, block=sizes.block, turns=sizes.blocks, budget=sizes.budget))

    def first(self, scheme: str, home: Path) -> dict[str, Any]:
        """In fresh processes."""
        answers = []
        for _ in range(self.sizes.openings):
            with self.worker() as worker:
                worker("about")  # everything is imported
                answers.append(worker("first", url=self.url(scheme, home), queries=self.files["queries"]))
        times = [answer["both"] for answer in answers]
        opening = median(answer["open"] for answer in answers)
        return {"first": plain(times, times, open_s=opening, index=answers[-1]["index"])}

    def memory(self, scheme: str, home: Path) -> dict[str, Any]:
        """What a process holds that no file does, once it has asked, less what it holds for a small memory."""
        with self.worker() as worker:
            worker("stay_small", folder=str(home), dim=self.sizes.dim)
            with Watch(worker.pid) as watch:
                count = min(200, self.sizes.queries)
                where = {"url": address(scheme, str(home / "store")), "queries": self.files["queries"]}
                found = worker("stay", **where, count=count, budget=self.sizes.budget)
            worker("leave")
        shutil.rmtree(home / "small", ignore_errors=True)
        held = watch.memory
        index = float(found["index"].get("resident_bytes", found["index"].get("bytes") or 0)) / 1e6
        beyond = held.end - index if held.end >= index else held.end  # an index that is mapped is no part of it
        notes = {"index_mb": index, "with_index_mb": held.end, "most_mb": held.peak, **found}
        return {"memory": plain([beyond], [], **notes)}

    def published(self, scheme: str, home: Path) -> dict[str, Any]:
        """The preset that mimics 0.3.0, and 0.3.0."""
        sizes = self.sizes
        package, old = self.published_store()
        rows: dict[str, list[Any]] = {"ours": [], "other": []}
        first: list[float] = []

        def of_ours(turn: int) -> float:
            found = ours("answer", queries=self.files["queries"], turn=turn, count=ASKED_IN_A_ROW)
            rows["ours"].append(found["rows"])
            first.append(found["seconds"][0])
            return float(np.mean(found["seconds"]))

        def of_theirs(turn: int) -> float:
            found = theirs("answer", queries=self.files["queries"], turn=turn, directory=old)
            rows["other"].append(found["rows"])
            return float(found["seconds"])

        with self.worker() as ours, self.worker("retrieval_theirs", package) as theirs:
            ours("open_as_published", url=self.url(scheme, home), dim=sizes.dim)
            theirs("open_memory", directory=old, dim=sizes.dim)
            of_ours(sizes.slow)  # its kernels, its caches
            rows["ours"].clear()
            first.clear()
            times = alternate(sizes.slow, 10 * sizes.budget, of_ours, of_theirs)
            ours("leave")
        same = sum(one == other for one, other in zip(*rows.values(), strict=True))
        notes: dict[str, Any] = {
            "same_answers": f"{same} of {len(rows['ours'])}",
            "first_of_a_row_ms": float(np.median(first)) * 1e3,
        }
        return {"published": compared(times["ours"], times["limit"], in_a_row=ASKED_IN_A_ROW, **notes)}

    def growth(self, scheme: str, home: Path) -> dict[str, Any]:
        """The time of a query in memories of different sizes."""
        sizes = self.sizes
        asked = [(sizes.nodes // part, sizes.dim) for part in GROWTH]
        found = []
        for nodes, dim in [*asked, *([(10_000_000, 16)] if self._ten_million else [])]:
            place, files = home, self.files
            if (nodes, dim) != (sizes.nodes, sizes.dim):
                place = home / f"{nodes}x{dim}"
                place.mkdir()
                files = {name: str(place / f"{name}.npy") for name in self.files}
                self.ask_worker("prepare", **files, nodes=nodes, dim=dim, count=sizes.queries)
                url = self.url(scheme, place)
                self.ask_worker("build", url=url, vectors=files["vectors"], per_node=sizes.per_node)
            ask = {"queries": files["queries"], "turns": sizes.queries, "budget": sizes.budget}
            answer = self.ask_worker("pace", url=self.url(scheme, place), **ask)
            times = summary(answer["seconds"])
            p50, p99 = times["median"] * 1e3, times["p99"] * 1e3
            index = answer["index"].get("kind")
            found.append({"nodes": nodes, "dim": dim, "p50_ms": p50, "p99_ms": p99, "index": index})
            if (nodes, dim) == asked[0]:
                small = answer["seconds"]
            elif (nodes, dim) == asked[-1]:
                large = answer["seconds"]
            if place != home:
                shutil.rmtree(place)
        count = min(len(small), len(large))
        return {"growth": compared(large[:count], small[:count], slower=True, sizes=found)}

    def hub(self, scheme: str, home: Path) -> dict[str, Any]:
        """A node with an edge to each."""
        sizes = self.sizes
        where = {"url": self.url(scheme, home), "files": self.files}
        return dict(self.ask_worker("hub", **where, turns=min(300, sizes.queries), budget=sizes.budget))

    # Parts that write

    def consolidate(self, scheme: str, home: Path) -> dict[str, Any]:
        """Both presets against 0.3.0, none and half of the nodes pruned."""
        sizes = self.sizes
        package, old = self.published_store()
        url = self.url(scheme, home, self.ask_worker("without_index"))
        found = {}
        with self.worker("ours") as ours, self.worker("retrieval_theirs", package) as theirs:
            theirs("open_memory", directory=old, dim=sizes.dim)
            for preset, suffix in (("aesg-0.3", ""), ("default", "_default")):
                ours("open_memory", directory=url, dim=sizes.dim, preset=preset)
                for share, forgotten in (("none", 0.0), ("half", 0.5)):

                    def turn(worker: Worker, directory: str, forgotten: float = forgotten) -> float:
                        worker("set_condition", directory=directory, nodes=sizes.nodes, forgotten=forgotten)
                        return float(worker("consolidate", directory=directory))

                    mine, others = (partial(turn, *side) for side in ((ours, url), (theirs, old)))
                    mine()  # what is loaded late is there now; the first epoch removes the weakest edges
                    times = alternate(LEAST, sizes.budget, ignoring(mine), ignoring(others))
                    found[f"consolidate_{share}{suffix}"] = compared(times["ours"], times["limit"])
                ours("close", directory=url)
        return found

    def durable(self, scheme: str, home: Path) -> dict[str, Any]:
        """Consolidation at the highest durability."""
        sizes = self.sizes
        where = {"scheme": scheme, "place": str(home / "store"), "folder": str(home), "nodes": sizes.nodes}
        return dict(self.ask_worker("durable", **where, turns=3 * sizes.turns, budget=sizes.budget))

    def create(self, scheme: str, home: Path) -> dict[str, Any]:
        """One by one, saved; 0.3.0 is not asked to save."""
        sizes = self.sizes
        package = install.published(self._cache)

        def turn(worker: Worker, at: Callable[[str], str]) -> float:
            with tempfile.TemporaryDirectory(dir=home) as fresh:
                where = at(f"{fresh}/store")
                return float(worker("insert_one_by_one", directory=where, count=sizes.inserts, dim=16))

        with self.worker("ours") as ours, self.worker("theirs", package) as theirs:
            mine, others = partial(turn, ours, partial(address, scheme)), partial(turn, theirs, str)
            mine()
            times = alternate(sizes.turns, sizes.budget, ignoring(mine), ignoring(others))
        each = median(times["ours"]) / sizes.inserts * 1e6
        return {"create": compared(times["ours"], times["limit"], microseconds_each=each)}

    def append(self, scheme: str, home: Path) -> dict[str, Any]:
        """In bulk."""
        sizes = self.sizes
        where = {"scheme": scheme, "folder": str(home), "vectors": self.files["vectors"]}
        return dict(self.ask_worker("append", **where, turns=sizes.turns, budget=sizes.budget))

    def connect(self, scheme: str, home: Path) -> dict[str, Any]:
        """In bulk."""
        sizes = self.sizes
        size = {"nodes": sizes.nodes, "per_node": sizes.per_node}
        where = {"scheme": scheme, "folder": str(home)}
        return dict(self.ask_worker("connect", **where, **size, turns=sizes.turns, budget=sizes.budget))


def ignoring(work: Callable[[], float]) -> Callable[[int], float]:
    """For `alternate`, where all turns are alike."""
    return lambda turn: work()


# --- showing ---------------------------------------------------------------------------------------------------------


def show(bench: Bench, where: dict[str, Any]) -> None:
    """The table, what else was seen, and what failed."""
    sizes, out = bench.sizes, console()
    title = f"{sizes.nodes:,} nodes in clusters, D={sizes.dim}, {sizes.edges:,} edges; figures are medians"
    table = Table(title=title, caption=describe(where), caption_justify="left")
    for heading in ("what", "backend"):
        table.add_column(heading, no_wrap=True)
    for heading in ("figure (p10 to p90)", "ours: median, p99", "other’s", "reach / accept"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for case in CASES:
        rows = [row for row in bench.rows if row.case is case]
        for row in rows:
            name = case.name + (f"\n  against {case.against}" if case.against else "") if row is rows[0] else ""
            table.add_row(name, row.scheme, *cells(row), end_section=row is rows[-1])
    out.print(table)
    for name, built in bench.rivals.items():
        rate = built.get("nodes_per_second")
        line = f"{name}: index of {built['mb']:,.0f} MB, {rate:,.0f} nodes/s" if rate else f"{name}: {built['problem']}"
        out.print(line, markup=False, soft_wrap=True)
    for row in bench.rows:
        if row.notes:
            out.print(f"{row.scheme}: {row.case.key}: {told(row.notes)}", markup=False, soft_wrap=True)
    for line in sorted({f"{row.scheme}: {row.case.key}: {row.problem}" for row in bench.rows if row.problem}):
        out.print(f"failed: {line}", markup=False, soft_wrap=True)


def cells(row: Row) -> list[str]:
    """A row's figures."""
    asked = f"{row.goal.reach:,g} / {row.goal.accept:,g}" if row.goal else "–"
    if row.problem:
        return ["–", "–", "–", asked, "[bold red]failed[/]"]
    figure = f"{short(row.value)} {row.case.unit}".strip()
    if row.low < row.high:
        figure += f" ({short(row.low)} to {short(row.high)})"
    return [figure, timed(row.ours), timed(row.other), asked, coloured(row.verdict)]


def timed(seconds: list[float]) -> str:
    """Median and p99, in a unit that suits them."""
    if not seconds:
        return "–"
    figures = median(seconds), float(np.percentile(seconds, 99))
    unit, scale = next((u, s) for u, s in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)) if figures[0] * s >= 1 or u == "µs")
    return ", ".join(short(figure * scale) for figure in figures) + f" {unit}"


def told(notes: dict[str, Any]) -> str:
    """Notes in a line."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "(" + told(value) + ")"
        if isinstance(value, list):
            return "[" + "; ".join(text(part) for part in value) + "]"
        return short(value) if isinstance(value, float) else str(value)

    return ", ".join(f"{name} {text(value)}" for name, value in notes.items())


def libraries() -> dict[str, str]:
    """Versions of what is installed of those that are measured."""
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def main() -> None:
    """Measure, print, keep."""
    keys = [case.key for case in CASES]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backends", type=names_of(None), default=list(BACKENDS), metavar="A,B", help="schemes")
    parser.add_argument("--rows", type=names_of(keys), default=keys, metavar="A,B", help=f"of {', '.join(keys)}")
    parser.add_argument("--nodes", type=int, help=f"nodes of the memory; {FULL.nodes:,} unless given")
    parser.add_argument("--edges", type=int, help=f"edges of the memory; {FULL.edges:,} unless given")
    parser.add_argument("--dim", type=int, help=f"length of the vectors; {FULL.dim} unless given")
    parser.add_argument("--seconds", type=float, help=f"for the turns of each part; {FULL.budget:g} unless given")
    parser.add_argument("--ten-million", action="store_true", help="`growth` also at ten million nodes of D=16")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; where temporary files go unless given")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, says nothing of speed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every turn there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the table there")
    parser.add_argument("--cache", type=Path, default=install.DEFAULT_CACHE, help="where 0.3.0 is kept installed")
    options = parser.parse_args()
    given = {"nodes": options.nodes, "edges": options.edges, "dim": options.dim, "budget": options.seconds}
    base = QUICK if options.quick else FULL
    sizes = replace(base, **{name: value for name, value in given.items() if value is not None})
    if sizes.nodes < 1000 or sizes.dim < 1 or sizes.edges < sizes.nodes:
        parser.error("at least a thousand nodes, a component, and an edge from each node")
    sizes = replace(sizes, edges=sizes.edges - sizes.edges % sizes.nodes)
    judged = (sizes.nodes, sizes.edges, sizes.dim) == (FULL.nodes, FULL.edges, FULL.dim)
    if options.plot:
        retrieval_plot.pyplot()  # fails now rather than after half an hour
    where = {**machine(), **libraries()}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="aesg-bench-", dir=options.folder) as folder,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        extra = {"judged": judged, "ten_million": options.ten_million}
        bench = Bench(sizes, Path(folder), progress, options.cache, **extra)
        bench.run(options.backends, options.rows)
    show(bench, where)
    if options.json:
        figures = {"rows": [row.as_dict() for row in bench.rows], "rivals": bench.rivals}
        whole = {"machine": where, "sizes": asdict(sizes), **figures}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")
    if options.plot:
        title = f"{sizes.nodes:,} nodes, D={sizes.dim}, {sizes.edges:,} edges. {describe(where)}"
        retrieval_plot.draw(bench.rows, title, options.plot)
    if all(row.problem for row in bench.rows):
        sys.exit("nothing could be measured")


if __name__ == "__main__":
    main()
