"""The damage campaign of `aesg verify` and `aesg repair`: stores are damaged, looked at and salvaged, by the hundred.

    python -m aesg.testing.salvage_campaign --cases 200             every backend; prints a table
    python -m aesg.testing.salvage_campaign --backends lmdb --json

A case copies a store, damages one file of it (bits flipped, a page blanked or overwritten, its end cut off, replaced by
another file, removed), and has another process verify it in depth and repair it. What was salvaged is compared with
what the store held. Where a backend has checksums, a value is the one that was there or said to be lost; without them a
number that was changed into another one cannot be told. No case may end with a signal, a hang or anybody else's
exception.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

import aesg
from aesg.protocols import Graph, Integrity
from aesg.records import EDGE_FIELDS, NODE_FIELDS, EventType, NodeBatch, events
from aesg.testing.forks import server

BACKENDS: Final = {
    "memmap": "memmap://{}",
    "lmdb": "lmdb://{}",
    "zarr": "zarr://{}",
    "zarr-zstd": "zarr://{}?codec=zstd",
    "icechunk": "icechunk://{}",
}
"""Name → URL of a store in a folder."""
WAYS: Final = ("flip", "flips", "blank", "garbage", "cut", "exchange", "missing")
"""What is done to a file."""
_DIM: Final = 16
_PAGE: Final = 4096


@dataclass
class Tally:
    """What came of a campaign on one backend.

    Attributes:
        cases: Damaged stores.
        harmless: Of them, those that hold what they held, all of it.
        found: Of the others, those in which `verify --deep` found something, or which it could not open.
        salvaged: Those that could be repaired.
        nothing: Those of which nothing could be.
        nodes: Shares of nodes that were salvaged, a case each.
        edges: And of edges.
        wrong: Values that were salvaged and are not what was there, nor said to be lost.
        ways: Cases by way and what came of them.
        bad: What must not be, one sentence each.
    """

    cases: int = 0
    harmless: int = 0
    found: int = 0
    salvaged: int = 0
    nothing: int = 0
    nodes: list[float] = field(default_factory=list)
    edges: list[float] = field(default_factory=list)
    wrong: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        out = vars(self) | {"ways": dict(self.ways)}
        for name in ("nodes", "edges"):
            shares = out[name] or [0.0]
            out[name] = {"mean": float(np.mean(shares)), "median": float(np.median(shares)), "least": min(shares)}
        return out


def fill(url: str, nodes: int = 4000, edges: int = 30_000) -> None:
    """A store with a bit of everything; the last commits wait in a log or a journal."""
    rng = np.random.default_rng(7)
    with aesg.open(url, vector_dim=_DIM) as store:
        with store.transaction() as graph:
            _add(graph, nodes - 20, rng)
            sources, targets = rng.integers(0, nodes - 20, (2, edges))
            graph.edges.append(sources, targets, rng.random(edges, np.float32), rng.random(edges, np.float32))
            graph.edges.write(np.arange(0, edges, 3), use_count=np.arange(0, edges, 3))
            graph.edges.remove(np.arange(1, edges, 13))
            graph.events.append(events(EventType.CREATE, np.arange(1, 1000), 3, 1.0, timestamp=1_700_000_000))
            graph.attrs["config"] = {"relevance_decay": 0.5}
        store.flush()
        for k in range(10):
            with store.transaction() as graph:
                rows = _add(graph, 2, rng)
                graph.edges.append(rows, [k, k + 1], 0.5, 0.25)
                graph.attrs["k"] = k


def _add(graph: Graph, n: int, rng: np.random.Generator) -> Any:
    first = len(graph.nodes)
    columns = {
        "created_at": np.full(n, 1_700_000_000, np.uint64),
        "modified_at": np.arange(1_700_000_000, 1_700_000_000 + n, dtype=np.uint64),
        "use_frequency": rng.integers(1, 90, n, np.uint32),
        "relevance": rng.random(n, np.float32),
        "age": rng.integers(1, 9, n, np.uint32),
        "region_id": rng.integers(1, 9, n, np.uint32),
    }
    ids = np.arange(first + 1, first + n + 1, dtype=np.uint64)
    return graph.nodes.append(NodeBatch(rng.standard_normal((n, _DIM), np.float32), ids, columns))


def contents(url: str) -> dict[str, np.ndarray]:
    """Columns of nodes, by row, and of edges, by ref with ids for rows."""
    with aesg.open(url, mode="r") as store:
        nodes = store.nodes.read(np.arange(len(store.nodes)))
        chunks = list(store.edges.scan()) or [{name: np.empty(0, kind) for name, kind in EDGE_FIELDS.items()}]
    edges = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in EDGE_FIELDS}
    out = {f"nodes/{name}": values for name, values in nodes.items()}
    out |= {f"edges/{name}": values for name, values in edges.items() if not name.endswith("_row")}
    return out | {f"edges/{end}": nodes["id"][edges[f"{end}_row"]] for end in ("source", "target")}


def examine(url: str, destination: str, original: str) -> None:
    """For another process: verify and repair a damaged store, compare, and say what came of it."""
    from aesg.errors import AESGError
    from aesg.migration.checking import check
    from aesg.migration.repair import repair
    from aesg.testing.forks import say_json

    said: dict[str, Any] = {}
    try:
        checked = check(url, deep=True)
        said["violations"] = sorted({violation.kind for violation in checked.violations})
    except AESGError as error:
        said["violations"] = [type(error).__name__]
    try:
        done = repair(url, destination, vector_dim=_DIM if url.startswith("memmap") else None)
        said |= {"whole": done.whole, "lost": done.lost, "reset": done.reset}
        said["parts"] = sorted({loss.part for loss in done.places})
        with np.load(original) as then:
            said |= compare({name: then[name] for name in then.files}, contents(destination), done.reset)
    except AESGError as error:
        said["refused"] = f"{type(error).__name__}: {error}"
    say_json(said)


def compare(then: dict[str, np.ndarray], now: dict[str, np.ndarray], reset: dict[str, int]) -> dict[str, Any]:
    """Shares of what was salvaged, and how many values are neither what they were nor said to be lost."""
    row_of = {int(id): row for row, id in enumerate(then["nodes/id"])}
    rows = np.array([row_of.get(int(id), -1) for id in now["nodes/id"]], np.int64)
    wrong = int(np.count_nonzero(rows < 0))
    known = rows >= 0
    for name in NODE_FIELDS:
        differs = now[f"nodes/{name}"][known] != then[f"nodes/{name}"][rows[known]]
        differs = differs.any(axis=1) if differs.ndim > 1 else differs
        wrong += max(0, int(np.count_nonzero(differs)) - reset.get(f"nodes/{name}", 0))
    kinds = ("source", "target", "weight", "confidence")
    counts = Counter(zip(*(then[f"edges/{kind}"].tolist() for kind in (*kinds, "use_count")), strict=True))
    have = Counter(zip(*(now[f"edges/{kind}"].tolist() for kind in (*kinds, "use_count")), strict=True))
    strange = sum((have - counts).values())
    wrong += max(0, strange - reset.get("edges/use_count", 0))
    shares = {"nodes": np.count_nonzero(known) / len(row_of), "edges": (have & counts).total() / counts.total()}
    return {"shares": {name: float(share) for name, share in shares.items()}, "wrong": wrong}


def damage(folder: Path, way: str, rng: random.Random) -> str:
    """Damage one file of a store; says which. Larger files have their turn more often."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    files = [path for path in files if not path.name.endswith((".lock", "lock.mdb"))]
    path = rng.choices(files, [path.stat().st_size ** 0.5 for path in files])[0]
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    if way in ("flip", "flips"):
        for _ in range(1 if way == "flip" else 32):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way in ("blank", "garbage"):
        start = at // _PAGE * _PAGE
        size = min(_PAGE, len(data) - start)
        data[start : start + size] = bytes(size) if way == "blank" else rng.randbytes(size)
    elif way == "cut":
        del data[at:]
    elif way == "exchange":
        data = bytearray(rng.choice(files).read_bytes())
    path.write_bytes(data)
    if way == "missing":
        path.unlink()
    return str(path.relative_to(folder))


def campaign(name: str, cases: int, seed: int = 0) -> Tally:
    """Damage so many stores of a backend."""
    tally, rng, jobs = Tally(), random.Random(f"{name} {seed}"), server()  # noqa: S311
    with tempfile.TemporaryDirectory(prefix="aesg-") as made:
        root = Path(made)
        specimen, folder = root / "specimen", root / "case"
        fill(BACKENDS[name].format(specimen / "store"))
        original = root / "original.npz"
        columns: dict[str, Any] = contents(BACKENDS[name].format(specimen / "store"))
        np.savez(original, **columns)
        with aesg.open(BACKENDS[name].format(specimen / "store"), mode="r") as store:
            checked = store.capabilities.integrity >= Integrity.CHECKSUMS
        for k in range(cases):
            way = WAYS[k % len(WAYS)]
            shutil.copytree(specimen, folder)
            what = f"{name} case {k}: {way} {damage(folder / 'store', way, rng)}"
            url, destination = BACKENDS[name].format(folder / "store"), f"memmap://{folder}/repaired"
            with jobs.start(
                "aesg.testing.salvage_campaign:examine", url=url, destination=destination, original=str(original)
            ) as job:
                line = job.line()
                status = job.wait()
                errors = job.errors()
            _judge(tally, what, way, json.loads(line) if line else None, status, errors, checked=checked)
            shutil.rmtree(folder)
    return tally


def _judge(
    tally: Tally, what: str, way: str, said: dict[str, Any] | None, status: int, errors: str, *, checked: bool
) -> None:
    tally.cases += 1
    if said is None or status:
        tally.bad.append(f"{what}: ended with {status}: {errors[-300:]}")
        return
    whole = said.get("whole", False) and said["shares"] == {"nodes": 1.0, "edges": 1.0} and not said["wrong"]
    noticed = bool(said["violations"])
    tally.harmless += whole and not noticed
    tally.found += noticed
    if "refused" in said:
        tally.nothing += 1
        tally.ways[f"{way}: nothing left"] += 1
        if not noticed:
            tally.bad.append(f"{what}: verify found nothing, repair: {said['refused']}")
        return
    tally.salvaged += 1
    tally.wrong += said["wrong"]
    tally.nodes.append(said["shares"]["nodes"])
    tally.edges.append(said["shares"]["edges"])
    tally.ways[f"{way}: {'all' if whole else 'some'}"] += 1
    if checked and said["wrong"]:
        tally.bad.append(f"{what}: {said['wrong']} values are not what they were: {said}")
    if checked and not whole and not noticed:
        tally.bad.append(f"{what}: something was lost, and verify found nothing: {said}")
    if said["whole"] and said["shares"] != {"nodes": 1.0, "edges": 1.0} and checked:
        tally.bad.append(f"{what}: said to be whole, and is not: {said}")


def table(tallies: dict[str, Tally]) -> str:
    """A table in Markdown."""
    lines = [
        "| backend | cases | harmless | noticed | salvaged | nodes, mean (least) | edges, mean (least) | wrong |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, tally in tallies.items():
        found = tally.as_dict()
        shares = " | ".join(f"{found[k]['mean']:.1%} ({found[k]['least']:.1%})" for k in ("nodes", "edges"))
        counts = " | ".join(str(n) for n in (tally.cases, tally.harmless, tally.found, tally.salvaged))
        lines.append(f"| {name} | {counts} | {shares} | {tally.wrong} |")
    return "\n".join(lines)


def main() -> None:
    """Run the campaigns; exit status 1 when something came of one that must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    tallies = {name: campaign(name, given.cases, given.seed) for name in given.backends.split(",")}
    if given.json:
        sys.stdout.write(json.dumps({name: tally.as_dict() for name, tally in tallies.items()}, indent=1) + "\n")
    else:
        sys.stdout.write(table(tallies) + "\n")
    bad = [sentence for tally in tallies.values() for sentence in tally.bad]
    for sentence in bad:
        sys.stderr.write(f"{sentence}\n")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
