"""This package against the published 0.3.0: the same work, in one run, on the same machine.

`python benchmarks/published.py` prints a table; `--json FILE` keeps every run; `--quick` only shows that it works.

The two sides take turns, so that a slow minute of the machine hits both. What ours writes is committed when the clock
stops; 0.3.0's `save` is not counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # for `python -m benchmarks.published`

import install
from report import console, describe, machine, spread, verdict
from rich.table import Table
from worker import Worker


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        repeats: Turns that each side takes; the table shows their medians.
        inserts: Nodes inserted by each side.
        large_insert: Nodes that ours also inserts in one call.
        connected: Nodes that get `per_node` edges each.
        graph: Nodes of the graph that is asked.
        per_node: Edges per node there.
        queries: Per turn.
        nodes: Nodes of the store that is reopened and consolidated.
        nodes_per_node: Edges per node there.
        slow_repeats: Turns where 0.3.0 takes many seconds.
        events: Events in the log that is read.
    """

    repeats: int = 5
    inserts: int = 100_000
    large_insert: int = 1_000_000
    connected: int = 20_000
    graph: int = 100_000
    per_node: int = 10
    queries: int = 5
    nodes: int = 1_000_000
    nodes_per_node: int = 2
    slow_repeats: int = 3
    events: int = 100_000


QUICK = Sizes(
    repeats=2,
    inserts=200,
    large_insert=500,
    connected=100,
    graph=300,
    per_node=5,
    queries=2,
    nodes=1000,
    slow_repeats=1,
    events=300,
)


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        key: Stable, for programs.
        name: What is done, for people.
        unit: Of the times: "µs each" or "ms".
        ours: One time per turn.
        theirs: One time per turn.
        at_least: How many times faster ours must be; None: it need not be faster …
        at_most: … but take no longer than this; None: nothing is asked.
    """

    key: str
    name: str
    unit: str
    ours: list[float]
    theirs: list[float]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return median(self.theirs) / median(self.ours)

    @property
    def required(self) -> str:
        """What is asked, in words."""
        if self.at_least is not None:
            return "not slower" if self.at_least == 1 else f"≥ {self.at_least:g}x"
        return "–" if self.at_most is None else f"< {self.at_most:g} {self.unit}"

    @property
    def ok(self) -> bool | None:
        """Whether it is so; None when nothing is asked."""
        if self.at_least is not None:
            return self.ratio >= self.at_least
        return None if self.at_most is None else median(self.ours) < self.at_most

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "ratio": self.ratio, "required": self.required, "ok": self.ok}


class Comparison:
    """The rows, measured one after the other."""

    def __init__(
        self, ours: Worker, theirs: Worker, package: Path, sizes: Sizes, folder: Path, *, judged: bool
    ) -> None:
        self.ours, self.theirs, self.package = ours, theirs, package
        self.sizes = sizes
        self.judged = judged
        self.folder = folder
        self.rows: list[Row] = []
        self.answers: dict[str, dict[str, int]] = {}

    def run(self) -> None:
        """Measure everything."""
        self.insert()
        self.connect()
        self.retrieve(16)
        self.retrieve(128)
        self.read_log()
        self.reopen_and_consolidate()

    def insert(self) -> None:
        """One by one, and in bulk."""
        sizes = self.sizes
        for task, name, at_least in (
            ("insert_one_by_one", "insert one by one", 1),
            ("insert_in_bulk", f"insert {sizes.inserts:,} in bulk", 20),
        ):
            each = [self.in_new_store(side, task, count=sizes.inserts, dim=16) for side in (self.ours, self.theirs)]
            self.row(task, f"{name}, D=16", sizes.repeats, *each, per=sizes.inserts, at_least=at_least)
        count = sizes.large_insert
        large = self.in_new_store(self.ours, "insert_in_bulk", count=count, dim=16)
        ours = [large() / count * 1e6 for _ in range(sizes.repeats)]
        name = f"insert {count:,} in bulk, D=16 (0.3.0: rate as above)"
        self.add(replace(self.rows[-1], key="insert_large", name=name, ours=ours))

    def connect(self) -> None:
        """In bulk."""
        sizes = self.sizes
        size = {"nodes": sizes.connected, "per_node": sizes.per_node, "dim": 16}
        each = [self.in_new_store(side, "connect_in_bulk", **size) for side in (self.ours, self.theirs)]
        count = sizes.connected * sizes.per_node
        self.row("connect_in_bulk", f"connect {count:,} in bulk", sizes.repeats, *each, per=count, at_least=1)

    def retrieve(self, dim: int) -> None:
        """Both presets against 0.3.0, on one graph; the preset that mimics it must give the same answers."""
        sizes = self.sizes
        mine, other = self.twins(f"graph{dim}", nodes=sizes.graph, per_node=sizes.per_node, dim=dim)
        self.theirs("open_memory", directory=other, dim=dim)
        for preset in ("aesg-0.3", "default"):
            self.ours("open_memory", directory=mine, dim=dim, preset=preset)
            answers: dict[str, list[Any]] = {"ours": [], "theirs": []}

            def ask(side: Worker, directory: str, answers: dict[str, list[Any]] = answers) -> float:
                turn = len(answers[side.side])
                answer = side("retrieve", directory=directory, first=turn * sizes.queries, count=sizes.queries, dim=dim)
                answers[side.side].append(answer["rows"])
                return float(median(answer["seconds"]))

            ask(self.ours, mine), ask(self.theirs, other)  # turn 0 warms up
            name = f"retrieve, {sizes.graph:,} nodes × {sizes.per_node} edges, D={dim}, preset {preset}"
            turns = [lambda: ask(self.ours, mine), lambda: ask(self.theirs, other)]
            self.row(f"retrieve_{dim}_{preset}", name, sizes.repeats, *turns, at_least=50)
            if preset == "aesg-0.3":
                pairs = [pair for both in zip(*answers.values(), strict=True) for pair in zip(*both, strict=True)]
                self.answers[f"D={dim}"] = {"asked": len(pairs), "same": sum(one == two for one, two in pairs)}
            self.ours("close", directory=mine)
        self.theirs("close", directory=other)

    def read_log(self) -> None:
        """`get_history` on both sides."""
        mine, other = self.twins("log", nodes=self.sizes.events, per_node=0, dim=16)
        self.ours("open_memory", directory=mine, dim=16)
        self.theirs("open_memory", directory=other, dim=16)

        def read(side: Worker, directory: str) -> float:
            answer = side("read_log", directory=directory)
            assert answer["events"] == self.sizes.events
            return float(answer["seconds"])

        turns = [lambda: read(self.ours, mine), lambda: read(self.theirs, other)]
        self.row("read_log", f"read the log, {self.sizes.events:,} events", self.sizes.repeats, *turns, at_least=1)
        self.ours("close", directory=mine)
        self.theirs("close", directory=other)

    def reopen_and_consolidate(self) -> None:
        """The large store."""
        sizes = self.sizes
        mine, other = self.twins("large", nodes=sizes.nodes, per_node=sizes.nodes_per_node, dim=16)
        size = f"{sizes.nodes:,} nodes"

        def reopen(side: str, directory: str, package: Path | None) -> float:
            with Worker(side, package) as fresh:
                return float(fresh("reopen", directory=directory, dim=16))

        turns = [lambda: reopen("ours", mine, None), lambda: reopen("theirs", other, self.package)]
        self.row("reopen", f"reopen {size}, D=16, fresh process", sizes.repeats, *turns, at_most=100)

        self.theirs("open_memory", directory=other, dim=16)
        for preset in ("aesg-0.3", "default"):
            self.ours("open_memory", directory=mine, dim=16, preset=preset)
            for forgotten, share in ((0.0, "none"), (0.5, "half")):

                def consolidate(side: Worker, directory: str, forgotten: float = forgotten) -> float:
                    side("set_condition", directory=directory, nodes=sizes.nodes, forgotten=forgotten)
                    return float(side("consolidate", directory=directory))

                turns = [lambda: consolidate(self.ours, mine), lambda: consolidate(self.theirs, other)]
                edges = f", fading {sizes.nodes * sizes.nodes_per_node:,} edges" if preset == "default" else ""
                name = f"consolidate {size}, {share} pruned, preset {preset}{edges}"
                self.row(f"consolidate_{share}_{preset}", name, sizes.slow_repeats, *turns, at_least=10)
            self.ours("close", directory=mine)
        self.theirs("close", directory=other)

    # Parts

    def in_new_store(self, side: Worker, task: str, **arguments: Any) -> Callable[[], float]:
        """A task that is given a new directory each time."""

        def turn() -> float:
            with tempfile.TemporaryDirectory(dir=self.folder) as directory:
                return float(side(task, directory=directory, **arguments))

        return turn

    def twins(self, name: str, **size: int) -> tuple[str, str]:
        """The same store twice: built by ours, which writes the published format, and copied for 0.3.0."""
        mine, other = str(self.folder / f"{name}-ours"), str(self.folder / f"{name}-theirs")
        self.ours("build", directory=mine, **size)
        shutil.copytree(mine, other)
        return mine, other

    def row(
        self,
        key: str,
        name: str,
        repeats: int,
        ours: Callable[[], float],
        theirs: Callable[[], float],
        *,
        per: int = 0,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Let the two take turns; `per` divides the time among so many."""
        scale = 1e6 / per if per else 1e3
        times = [(ours() * scale, theirs() * scale) for _ in range(repeats)]
        mine, other = ([pair[i] for pair in times] for i in (0, 1))
        self.add(Row(key, name, "µs each" if per else "ms", mine, other, at_least, at_most))

    def add(self, row: Row) -> None:
        """Keep a row, and show that it is done."""
        self.rows.append(row if self.judged else replace(row, at_least=None, at_most=None))
        print(f"{row.name}: {row.ratio:.3g}x", file=sys.stderr)


def show(rows: list[Row], answers: dict[str, dict[str, int]], where: dict[str, Any]) -> None:
    """The table."""
    table = Table(caption=describe(where), caption_justify="left")
    table.add_column("median (min to max)")
    for heading in ("ours", "0.3.0", "ratio", "required"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in rows:
        times = [f"{spread(side)} {row.unit}" for side in (row.ours, row.theirs)]
        table.add_row(row.name, *times, f"{row.ratio:.3g}x", row.required, verdict(row.ok))
    out = console()
    out.print(table)
    for graph, count in answers.items():
        out.print(f"{graph}: {count['same']} of {count['asked']} answers are 0.3.0's, row by row (preset aesg-0.3)")


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, says nothing of speed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    parser.add_argument("--cache", type=Path, default=install.DEFAULT_CACHE, help="where 0.3.0 is kept installed")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    package = install.published(options.cache)
    where = machine()
    with (
        tempfile.TemporaryDirectory(prefix="aesg-bench-") as folder,
        Worker("ours") as ours,
        Worker("theirs", package) as theirs,
    ):
        about = {worker.side: worker("about") for worker in (ours, theirs)}
        if (
            not Path(about["theirs"]["file"]).is_relative_to(package)
            or about["ours"]["file"] == about["theirs"]["file"]
        ):
            raise SystemExit(f"the two sides are not what they should be: {about}")
        comparison = Comparison(ours, theirs, package, sizes, Path(folder), judged=not options.quick)
        comparison.run()
    show(comparison.rows, comparison.answers, where)
    if options.json:
        rows = [row.as_dict() for row in comparison.rows]
        figures = {"rows": rows, "answers": comparison.answers}
        whole = {"machine": where, "packages": about, "sizes": asdict(sizes), **figures}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
