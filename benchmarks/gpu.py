"""Batches of queries with and without `device_cache`: the mirror on a device against the engine, in one run.

`python benchmarks/gpu.py` takes a CUDA device where there is one, else the CPU, and says which; `--json FILE` keeps
every figure, `--plot FILE` draws them; `--quick` only shows that it works.

Both sides are asked the same batches in turn, each going first every other time, with queries that lie on the device
and contexts that are to lie there too. What they find is compared.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import retrieval_data as data
import torch
from report import console, describe, machine, short, spread
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from aesg import AESGConfig, AESGMemory
from aesg.memory.mirror import bytes_needed


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        nodes: Clustered vectors.
        dim: D.
        per_node: Edges that leave each node, half of them within its cluster.
        lanes: Queries of a batch, one size after the other.
        turns: How often each side is asked, at most.
        budget: Seconds for one size; at least two turns are taken.
    """

    nodes: int = 1_000_000
    dim: int = 128
    per_node: int = 10
    lanes: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)
    turns: int = 15
    budget: float = 60.0


QUICK = Sizes(nodes=2000, dim=16, per_node=4, lanes=(1, 8), turns=2)


@dataclass
class Row:
    """What was measured of one size of batches.

    Attributes:
        lanes: The size.
        engine: Seconds of each turn.
        mirror: The same.
        same: Share of the queries for which both found the same rows in the same order.
        peak_mb: What the mirror's side took of the device's memory at most, mirror included; None where nobody counts.
    """

    lanes: int
    engine: list[float] = field(default_factory=list)
    mirror: list[float] = field(default_factory=list)
    same: float = 0.0
    peak_mb: float | None = None

    @property
    def ratio(self) -> float:
        """How many times as many queries a second as the engine."""
        return median(self.engine) / median(self.mirror)


@dataclass
class Result:
    """All figures.

    Attributes:
        device: Where it ran, in words.
        on_gpu: Whether that is a GPU.
        sizes: How much of everything.
        mirror_mb: What the mirror takes of the device's memory.
        mirror_seconds: From the first query to its answer: the mirror is made for it.
        rows: One for each size of batches.
    """

    device: str
    on_gpu: bool
    sizes: Sizes
    mirror_mb: float = 0.0
    mirror_seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


def fill(path: str, sizes: Sizes, progress: Progress) -> None:
    """Make the memory that is asked."""
    task = progress.add_task("nodes and edges", total=sizes.nodes * (1 + sizes.per_node))
    with AESGMemory(path, AESGConfig(vector_dim=sizes.dim)) as memory:
        for vectors in data.vectors(sizes.nodes, sizes.dim):
            memory.add_concepts(vectors)
            progress.advance(task, len(vectors))
        for source, target, weight, confidence in data.edges(sizes.nodes, sizes.per_node):
            memory.connect(source, target, weight, confidence)
            progress.advance(task, len(source))


def measure(path: str, sizes: Sizes, device: torch.device, half: bool, progress: Progress) -> Result:
    """Ask both sides."""
    result = Result(name_of(device), device.type == "cuda", sizes)
    wait = torch.cuda.synchronize if result.on_gpu else _nothing
    with (
        AESGMemory(path, mode="r") as plain,
        AESGMemory(path, mode="r", device_cache="half" if half else True) as mirrored,
    ):
        queries = torch.from_numpy(data.queries(sizes.nodes, sizes.dim, 4 * max(sizes.lanes))).to(device)
        start = time.perf_counter()
        mirrored(queries[0])
        result.mirror_seconds = time.perf_counter() - start
        edges = sizes.nodes * sizes.per_node
        result.mirror_mb = bytes_needed(sizes.nodes, sizes.dim, edges, regions=False, half=half) / 1e6
        for lanes in progress.track(sizes.lanes, description="batches"):
            result.rows.append(_row(plain, mirrored, queries, lanes, sizes, wait))
    return result


def _row(
    plain: AESGMemory,
    mirrored: AESGMemory,
    queries: Tensor,
    lanes: int,
    sizes: Sizes,
    wait: Callable[[], None],
) -> Row:
    row = Row(lanes)

    def batch(turn: int) -> Tensor:
        first = turn * lanes % (len(queries) - lanes + 1)
        return queries[first : first + lanes]

    def ask(memory: AESGMemory, turn: int) -> tuple[float, list[list[int]]]:
        memory.reset_state()
        wait()
        start = time.perf_counter()
        context = memory(batch(turn))
        wait()
        seconds = time.perf_counter() - start
        return seconds, [lane.activated_nodes for lane in context]

    if queries.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(queries.device)
    # This warms up, and is not timed: kernels are loaded, and torch asks the device for memory.
    pairs = list(zip(ask(plain, 0)[1], ask(mirrored, 0)[1], strict=True))
    row.same = sum(a == b for a, b in pairs) / len(pairs)
    if queries.device.type == "cuda":
        row.peak_mb = torch.cuda.max_memory_allocated(queries.device) / 1e6
    begun = time.perf_counter()
    gc.disable()  # a collection would hit whichever side is being timed
    try:
        for turn in range(1, sizes.turns + 1):
            sides = [(plain, row.engine), (mirrored, row.mirror)]
            for memory, times in sides if turn % 2 else sides[::-1]:
                times.append(ask(memory, turn)[0])
            if turn >= 2 and time.perf_counter() - begun > sizes.budget:
                break
    finally:
        gc.enable()
    gc.collect()
    return row


def _nothing() -> None:
    """What runs on the CPU is done when the call returns."""


def name_of(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"the CPU (torch.get_num_threads() = {torch.get_num_threads()}); no GPU was used"


def show(result: Result, where: dict[str, Any]) -> None:
    """Print the table."""
    sizes = result.sizes
    edges = sizes.nodes * sizes.per_node
    table = Table(
        title=f"Retrieval on {result.device}\n{sizes.nodes:,} nodes, D={sizes.dim}, {edges:,} edges",
        caption=f"{describe(where)}. Seconds a batch: median (least to greatest) of the turns. The mirror takes "
        f"{short(result.mirror_mb)} MB and was made in {result.mirror_seconds:.1f} s.",
    )
    for name in ("lanes", "engine, s", "mirror, s", "engine, queries/s", "mirror, queries/s", "mirror / engine"):
        table.add_column(name, justify="right")
    table.add_column("same answers", justify="right")
    table.add_column("peak, MB", justify="right")
    for row in result.rows:
        table.add_row(
            f"{row.lanes:,}",
            spread(row.engine),
            spread(row.mirror),
            short(row.lanes / median(row.engine)),
            short(row.lanes / median(row.mirror)),
            short(row.ratio),
            f"{row.same:.1%}",
            "–" if row.peak_mb is None else short(row.peak_mb),
        )
    console().print(table)


def draw(result: Result, path: Path) -> None:
    """Queries a second by size of the batch."""
    from retrieval_plot import pyplot

    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, colour in (("engine", "#1b6ca8"), ("mirror", "#e07b39")):
        figures = [(row.lanes, row.lanes / median(getattr(row, name))) for row in result.rows]
        axes.plot(*zip(*figures, strict=True), "o-", color=colour, label=name)
    axes.set(xscale="log", yscale="log", xlabel="queries in a batch", ylabel="queries per second")
    axes.set_title(f"{result.sizes.nodes:,} nodes, on {result.device}", fontsize=9)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run from a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--plot", type=Path, help="draw a picture")
    parser.add_argument("--quick", action="store_true", help="seconds; the figures say nothing")
    parser.add_argument("--device", help="cuda, cuda:1, cpu; a CUDA device where there is one")
    parser.add_argument("--half", action="store_true", help='device_cache="half": the mirror is searched in float16')
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--dim", type=int)
    parser.add_argument("--per-node", type=int)
    parser.add_argument("--lanes", type=int, nargs="+", help="sizes of batches")
    parser.add_argument("--turns", type=int)
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in ("nodes", "dim", "per_node", "lanes", "turns")}
    sizes = replace(QUICK if options.quick else Sizes(), **{k: v for k, v in given.items() if v is not None})
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device == torch.device("cuda"):
        device = torch.device("cuda", torch.cuda.current_device())
    where = machine()
    out = console()
    with tempfile.TemporaryDirectory(prefix="aesg-bench-") as folder, Progress(console=out, transient=True) as progress:
        path = str(Path(folder) / "store")
        fill(path, sizes, progress)
        result = measure(path, sizes, device, options.half, progress)
    show(result, where)
    if options.plot:
        draw(result, options.plot)
    if options.json:
        figures = asdict(result)
        for figure, row in zip(figures["rows"], result.rows, strict=True):
            figure["ratio"] = row.ratio
        options.json.write_text(json.dumps({"machine": where, "half": options.half, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
