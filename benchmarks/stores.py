"""What a store costs beside the raw library or the machine's limit: each backend, in one run, on the same machine.

`python benchmarks/stores.py` prints two tables; `--json FILE` keeps every turn; `--quick` only shows that it works.

Store and limit take turns, so that a slow minute of the machine hits both. Each path of each backend runs in a process
of its own: what is not installed, fails or hangs costs its own figures and no others.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))  # for `python -m benchmarks.stores`

import install
import numpy as np
from footprint import Watch
from report import console, describe, machine, short, spread
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from stores_limits import edge_bytes, node_bytes
from stores_paths import CASES, Case, Row
from stores_raw import LIBRARIES as RAW
from stores_turns import alternate
from worker import Worker

ROWS: Final = 1000
"""Rows that are gathered, or asked for their out-edges, at a time."""
COMMIT: Final = (1000, 10_000)
"""Nodes and edges of the large commit."""
CACHE: Final = 64 << 20
"""Bytes of cache where resident memory is measured."""
STEADY: Final = 1.5
"""How many times slower a limit may be beside one backend than beside another before the table warns."""
FOOTPRINT: Final = "footprint"
"""Beside the paths: disk, memory, opening."""
LIBRARIES: Final = ("lmdb", "zarr", "icechunk", "numba")
FAILURES: Final = (RuntimeError, OSError, ValueError)
"""What a task that failed, a worker that ended and an answer that was cut off raise."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        nodes: Of the store.
        edges: As many from each node.
        dim: Length of the vectors.
        turns: That each path and its limit take, unless the budget is spent before.
        gathers: Before memory is looked at.
        openings: Fresh processes.
        budget: Seconds that the turns of a path may take.
        patience: Seconds after which a process is ended.
    """

    nodes: int = 1_000_000
    edges: int = 10_000_000
    dim: int = 128
    turns: dict[str, int] = field(
        default_factory=lambda: {
            "append": 5,
            "gather": 300,
            "scan": 12,
            "out_edges": 300,
            "decay": 5,
            "commit_large": 300,
            "commit_small": 3000,
        }
    )
    gathers: int = 1000
    openings: int = 5
    budget: float = 20
    patience: float = 240


FULL: Final = Sizes()
QUICK: Final = Sizes(
    nodes=1000, edges=5000, dim=8, turns=dict.fromkeys(FULL.turns, 3), gathers=3, openings=1, budget=5, patience=120
)


class Bench:
    """The rows and the footprints, measured one after the other.

    Attributes:
        rows: One per path and backend.
        footprints: By backend.
    """

    def __init__(self, sizes: Sizes, folder: Path, progress: Progress, cache: Path, *, judged: bool) -> None:
        self.sizes = sizes
        self.folder = folder
        self.rows: list[Row] = []
        self.footprints: dict[str, dict[str, Any]] = {}
        self._progress = progress
        self._bar = progress.add_task("")
        self._cache = cache
        self._judged = judged

    def run(self, schemes: list[str], wanted: list[str]) -> None:
        """Measure what is wanted of each backend."""
        self._progress.update(self._bar, total=len(schemes) * (len(wanted) + 1))
        for scheme in schemes:
            home = self.folder / scheme
            home.mkdir()
            cases = [case for case in CASES if case.key in wanted]
            problem = self.problem_of(scheme, "looking for it", partial(self.ask, "about", scheme=scheme))
            # Before the others, while there is room on the disk, and no store yet that would be written back.
            for case in [case for case in cases if case.key == "append"]:
                self.measure(case, scheme, home, problem)
            problem = problem or self.problem_of(scheme, "build", partial(self.build, scheme, home))
            self._progress.advance(self._bar)
            if FOOTPRINT in wanted:
                self.footprint(scheme, home, problem)
            for case in [case for case in cases if case.key != "append"]:
                self.measure(case, scheme, home, problem)
            shutil.rmtree(home, ignore_errors=True)

    def say(self, line: str) -> None:
        """Above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def problem_of(self, scheme: str, name: str, work: Callable[[], Any]) -> str:
        """Do something; gives back why it failed, "" when it did not."""
        self._progress.update(self._bar, description=f"{scheme}: {name}")
        try:
            work()
        except FAILURES as error:
            self.say(f"{scheme}: {name}: failed\n{error}")
            return str(error).strip().splitlines()[-1]
        return ""

    # Processes

    def worker(self, side: str = "stores_tasks", package: Path | None = None) -> Worker:
        """A process, which is ended when it takes too long."""
        return Worker(side, package, self.sizes.patience)

    def ask(self, task: str, **arguments: Any) -> Any:
        """Have a task done in a process of its own."""
        with self.worker() as worker:
            return worker(task, **arguments)

    # Parts

    def build(self, scheme: str, home: Path) -> None:
        """The store that the paths go through; `append` has its own."""
        sizes = self.sizes
        size = {"nodes": sizes.nodes, "edges": sizes.edges, "dim": sizes.dim}
        self.footprints[scheme] = {"built": self.ask("build", scheme=scheme, place=str(home / "store"), **size)}

    def measure(self, case: Case, scheme: str, home: Path, problem: str) -> None:
        """One path."""
        row = Row(case, scheme, goal=case.goals.get(scheme) if self._judged else None, problem=problem)

        def work() -> None:
            nonlocal row
            if case.key == "decay":
                row = replace(row, **self.decay(scheme, home))
            else:
                turns = {"turns": self.sizes.turns[case.key], "budget": self.sizes.budget}
                row = replace(row, **self.ask(case.key, scheme=scheme, **self.arguments(case, home), **turns))

        if not problem:
            failure = self.problem_of(scheme, case.key, work)
            row = replace(row, problem=failure)
        if not row.problem:
            low, high = row.spread
            self.say(f"{scheme}: {case.key}: {row.ratio:.3g}x ({low:.3g} to {high:.3g}), {len(row.ours)} turns")
        self.rows.append(row)
        self._progress.advance(self._bar)

    def arguments(self, case: Case, home: Path) -> dict[str, Any]:
        """What a path's task has to know."""
        sizes = self.sizes
        store, nodes, edges, dim = {"place": str(home / "store")}, sizes.nodes, sizes.edges, {"dim": sizes.dim}
        everything = 2 * (nodes * node_bytes(sizes.dim) + 2 * edges * edge_bytes()) + CACHE
        warm = {**store, "nodes": nodes, "rows": ROWS, "cache": everything}
        commit = {**store, "folder": str(home), **dim}
        return {
            "append": {"folder": str(home), "nodes": nodes, **dim},
            "gather": {**warm, **dim},
            "scan": {**store, "nodes": nodes, **dim},
            "out_edges": {**warm, "edges": edges},
            "commit_large": {**commit, "nodes": COMMIT[0], "edges": COMMIT[1]},
            "commit_small": commit,
        }[case.key]

    def decay(self, scheme: str, home: Path) -> dict[str, Any]:
        """`relevance *= 0.95` over all nodes, against 0.3.0's consolidation, which does that to as many."""
        sizes = self.sizes
        package, old = self.published()
        with self.worker() as ours, self.worker("theirs", package) as theirs:
            theirs("open_memory", directory=str(old), dim=sizes.dim)
            durability = ours("open_for_decay", scheme=scheme, place=str(home / "store"))
            first = ours("decay")  # what is loaded or imported late is there now

            def consolidate(turn: int) -> float:
                theirs("set_condition", directory=str(old), nodes=sizes.nodes, forgotten=0.0)
                return float(theirs("consolidate", directory=str(old)))

            times = alternate(sizes.turns["decay"], sizes.budget, lambda turn: float(ours("decay")), consolidate)
            ours("close_stores")
        return {**times, "durability": durability, "notes": {"first": first}}

    def published(self) -> tuple[Path, Path]:
        """0.3.0, and a store of its own with as many nodes; its consolidation does not look at edges."""
        try:
            package = install.published(self._cache)
        except SystemExit as error:
            raise RuntimeError(f"{install.REQUIREMENT}, which this is held against, could not be installed") from error
        old = self.folder / "published"
        if not old.is_dir():
            size = {"nodes": self.sizes.nodes, "edges": 0, "dim": self.sizes.dim}
            self.ask("build", scheme="memmap", place=str(old), **size)  # the published format
        return package, old

    def footprint(self, scheme: str, home: Path, problem: str) -> None:
        """Memory and opening; `build` has looked at the disk."""
        found = self.footprints.setdefault(scheme, {})
        found["problem"] = problem or self.problem_of(scheme, FOOTPRINT, lambda: self.look_at(scheme, home, found))
        if not found["problem"]:
            self.say(f"{scheme}: {FOOTPRINT}: done")
        self._progress.advance(self._bar)

    def look_at(self, scheme: str, home: Path, found: dict[str, Any]) -> None:
        """Each in fresh processes."""
        sizes = self.sizes
        store = {"scheme": scheme, "place": str(home / "store")}
        openings = [self.ask("opening", **store) for _ in range(sizes.openings)]
        found["opening_ms"] = {name: [times[name] * 1e3 for times in openings] for name in openings[0]}
        with self.worker() as worker:
            worker("opening", **store)  # the library is imported before memory is looked at
            before = worker("resident")
            with Watch(worker.pid) as watch:
                reading = {"rows": ROWS, "cache": CACHE, "gathers": sizes.gathers, "budget": sizes.budget}
                after = worker("read_at_random", **store, **reading)
            worker("close_stores")
        found["memory_mb"] = {
            "before": before,
            "after": {kind: after[kind] for kind in before},
            "most_anon": watch.memory.before + watch.memory.peak,
            "gathers": after["gathers"],
        }


# --- showing ---------------------------------------------------------------------------------------------------------


def show(bench: Bench, where: dict[str, Any]) -> None:
    """The tables, and what failed."""
    out = console()
    table = Table(title="Speed beside the limit (1 is as fast)", caption=describe(where), caption_justify="left")
    for heading in ("path", "backend"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "median, mean, p99",
        "limit’s",
        "ratio (p10 to p90)",
        "by means",
        "reach / accept",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for case in CASES:
        rows = [row for row in bench.rows if row.case is case]
        for row in rows:
            name = f"{case.name}\n  against {case.limit}" if row is rows[0] else ""
            table.add_row(name, row.scheme, *cells(row), end_section=row is rows[-1])
    out.print(table)
    if any("built" in found for found in bench.footprints.values()):
        out.print(footprints(bench))
    for line in (*beside_libraries(bench.rows), *unsteady(bench.rows)):
        out.print(line, soft_wrap=True)
    failed = {f"{row.scheme}: {row.problem}" for row in bench.rows if row.problem}
    failed |= {f"{scheme}: {found['problem']}" for scheme, found in bench.footprints.items() if found.get("problem")}
    for line in sorted(failed):
        out.print(f"failed: {line}", markup=False, soft_wrap=True)


def beside_libraries(rows: list[Row]) -> list[str]:
    """Sentences about backends beside their own libraries, which do the same transactions by themselves."""
    found = []
    for row in rows:
        if row.ratio_to_raw is not None:
            library, limit = RAW[row.scheme], median(row.limit) / median(row.raw)
            times = f"{three(row.raw, row.case.per_second)} {row.case.unit} (median, mean, p99)"
            found.append(
                f"{row.case.name}: {row.scheme} is {short(row.ratio_to_raw)} times as fast as {library} by itself, "
                f"which takes {times}: {short(limit)} of {row.case.limit}"
            )
    return found


def unsteady(rows: list[Row]) -> list[str]:
    """Sentences about limits that were not the same beside all backends: the machine, or its disk, was busy."""
    found = []
    for case in CASES:
        medians = {row.scheme: median(row.limit) * case.per_second for row in rows if row.case is case and row.limit}
        if medians and max(medians.values()) > STEADY * min(medians.values()):
            times = ", ".join(f"{short(time)} {case.unit} beside {scheme}" for scheme, time in medians.items())
            found.append(f"{case.name}: measure again on a quieter machine, {case.limit} took {times}")
    return found


def cells(row: Row) -> list[str]:
    """A row's figures."""
    asked = f"{row.goal.reach:g} / {row.goal.accept:g}" if row.goal else "–"
    if row.problem:
        return ["–", "–", "–", "–", asked, "[bold red]failed[/]"]
    low, high = row.spread
    times = [f"{three(side, row.case.per_second)} {row.case.unit}" for side in (row.ours, row.limit)]
    ratio = f"{short(row.ratio)} ({short(low)} to {short(high)})"
    return [*times, ratio, short(row.ratio_of_means), asked, coloured(row.verdict)]


def three(seconds: list[float], per_second: float) -> str:
    """Median, mean, p99."""
    p99 = float(np.percentile(seconds, 99))
    return ", ".join(short(figure * per_second) for figure in (median(seconds), fmean(seconds), p99))


def coloured(verdict: str | None) -> str:
    """A coloured word; a dash where nothing is asked."""
    return {"reached": "[green]reached[/]", "accepted": "[yellow]accepted[/]", "missed": "[bold red]missed[/]"}.get(
        verdict or "", "–"
    )


def footprints(bench: Bench) -> Table:
    """What it takes to have the store."""
    nodes, edges, mb = bench.sizes.nodes, bench.sizes.edges, CACHE >> 20
    title = f"{nodes:,} nodes, D={bench.sizes.dim}, {edges:,} edges; memory with a cache of {mb} MiB, MB = 10^6 bytes"
    table = Table(title=title)
    table.add_column("backend")
    for heading in (
        "disk MB (× content), files",
        "RSS MB: before, after",
        "of it anonymous: before, most, after",
        "first opening, ms",
        "later opening, ms",
        "built: nodes, edges, flush + close, s",
    ):
        table.add_column(heading, justify="right")
    for scheme, found in bench.footprints.items():
        if "built" not in found:
            continue
        built, memory, opening = found["built"], found.get("memory_mb"), found.get("opening_ms")
        times = built["allocated_mb"] / built["content_mb"]
        held = ["–", "–"]
        if memory:
            before, after = memory["before"], memory["after"]
            held = [
                f"{short(before['rss'])}, {short(after['rss'])}",
                f"{short(before['anon'])}, {short(memory['most_anon'])}, {short(after['anon'])}",
            ]
        table.add_row(
            scheme,
            f"{short(built['allocated_mb'])} ({times:.2f}), {built['files']:,}",
            *held,
            *([spread(opening[name]) for name in ("first", "again")] if opening else ["–", "–"]),
            ", ".join(short(seconds) for seconds in built["seconds"].values()),
        )
    return table


def libraries() -> dict[str, str]:
    """Versions of what is installed of those that are measured."""
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def names_of(known: list[str] | None) -> Callable[[str], list[str]]:
    """Parser of a list with commas."""

    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        unknown = [name for name in names if known is not None and name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(known or ())}")
        return names

    return parse


def main() -> None:
    """Measure, print, keep."""
    paths = [*(case.key for case in CASES), FOOTPRINT]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--backends", type=names_of(None), default=["memmap", "lmdb", "zarr"], metavar="A,B", help="schemes"
    )
    parser.add_argument("--paths", type=names_of(paths), default=paths, metavar="A,B", help=f"of {', '.join(paths)}")
    parser.add_argument("--nodes", type=int, help=f"nodes of the store; {FULL.nodes:,} unless given")
    parser.add_argument("--edges", type=int, help=f"edges of the store; {FULL.edges:,} unless given")
    parser.add_argument("--dim", type=int, help=f"length of the vectors; {FULL.dim} unless given")
    parser.add_argument("--seconds", type=float, help=f"for the turns of each path; {FULL.budget:g} unless given")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; where temporary files go unless given")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, says nothing of speed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every turn there")
    parser.add_argument("--cache", type=Path, default=install.DEFAULT_CACHE, help="where 0.3.0 is kept installed")
    options = parser.parse_args()
    base = QUICK if options.quick else FULL
    given = {"nodes": options.nodes, "edges": options.edges, "dim": options.dim, "budget": options.seconds}
    sizes = replace(base, **{name: value for name, value in given.items() if value is not None})
    if sizes.nodes < 1 or sizes.dim < 1 or sizes.edges < sizes.nodes:
        parser.error("at least a node, a component, and an edge from each node")
    sizes = replace(sizes, edges=sizes.edges - sizes.edges % sizes.nodes)
    judged = (sizes.nodes, sizes.edges, sizes.dim) == (FULL.nodes, FULL.edges, FULL.dim)
    where = {**machine(), **libraries()}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="aesg-bench-", dir=options.folder) as folder,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        bench = Bench(sizes, Path(folder), progress, options.cache, judged=judged)
        bench.run(options.backends, options.paths)
    show(bench, where)
    if options.json:
        figures = {"rows": [row.as_dict() for row in bench.rows], "footprints": bench.footprints}
        whole = {"machine": where, "sizes": asdict(sizes), **figures}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")
    if not any(row.ours for row in bench.rows) and not any("built" in found for found in bench.footprints.values()):
        sys.exit("nothing could be measured")


if __name__ == "__main__":
    main()
