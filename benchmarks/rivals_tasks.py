"""The job of `rivals.py`, done by one system in a process of its own. Run by `worker.Worker`. Times are in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import rivals_job as job
from rivals_databases import DATABASES
from rivals_systems import LMDB, ByHand, Memmap, System, Zarr, version_of
from stores_turns import clock
from worker import serve

from aesg import AESGConfig

SYSTEMS: Final[dict[str, Callable[[Path, job.Rule, int], Any]]] = {
    "memmap": Memmap,
    "lmdb": LMDB,
    "zarr": Zarr,
    "faiss + CSR": ByHand,
    **DATABASES,
}

here: dict[str, Any] = {}
"""The system, its input and how it began; kept from one task to the next."""


def about(name: str, data: str, folder: str) -> dict[str, Any]:
    """Choose the system; when it answers, what it needs is imported. Fails where it is not installed."""
    kind: Any = SYSTEMS[name]
    versions = {package: version_of(package) for package in kind.packages}
    given = job.read(Path(data))
    rule = job.Rule.of(given["vectors"].shape[1])
    here.update(given=given, queries=np.array(given["queries"]), rule=rule)
    here["system"] = kind(Path(folder), rule, given["vectors"].shape[1])
    return {"versions": versions, "durability": kind.durability}


def _system() -> System:
    system: System = here["system"]
    return system


def create() -> float:
    """From arrays to the first answer."""

    def whole() -> None:
        _system().create(here["given"])
        _ready()
        _system().ask(here["queries"][0])

    return clock(whole)


def _ready() -> None:
    """Wait for what a system does in the background."""
    wait = getattr(_system(), "ready", None)
    if wait is not None:
        wait()


def close() -> float:
    """Close it."""
    return clock(_system().close)


def reopen() -> dict[str, float]:
    """Open it in this process, and ask once."""
    opening = clock(_system().open)
    first = clock(lambda: _system().ask(here["queries"][0]))
    _ready()
    return {"open": opening, "first": first}


def tune(wanted: float, truth: list[list[int]]) -> dict[str, Any]:
    """Turn an approximate search to the least that finds enough, then take the faster way to spread."""
    system = _system()
    turned = None
    if system.search != "exact scan":
        for turned in system.ladder:
            system.turn_to(turned)
            hits = [np.isin(right, system.seeds(here["queries"][i])).mean() for i, right in enumerate(truth)]
            if np.mean(hits) >= wanted:
                break
    spent = {}
    for way in system.ways:
        system.way = way
        system.ask(here["queries"][0])
        spent[way] = float(np.median([clock(partial(system.ask, here["queries"][i])) for i in range(1, 4)]))
    system.way = min(spent, key=spent.__getitem__)
    return {"turned_to": turned, "ways": spent, "way": system.way, "search": system.search, "notes": system.notes}


def use(way: str, turned_to: int | None) -> None:
    """Go on as another process was tuned."""
    _system().way = way
    if turned_to is not None:
        _system().turn_to(turned_to)


def ask(first: int, count: int, budget: float) -> list[float]:
    """Ask one by one, until the budget is spent; at least one."""
    times: list[float] = []
    queries = here["queries"]
    end = time.perf_counter() + budget
    for i in range(first, first + count):
        query = queries[i % len(queries)]
        times.append(clock(partial(_system().ask, query)))
        if time.perf_counter() > end:
            break
    return times


def check(count: int) -> list[dict[str, Any]]:
    """All that the first queries activate."""
    out = []
    for query in here["queries"][:count]:
        found = _system().activate(query)
        energies = None if found.energies is None else np.asarray(found.energies, np.float64).tolist()
        out.append({"seeds": found.seeds.tolist(), "rows": found.rows.tolist(), "energies": energies})
    return out


def learn(turn: int) -> float:
    """Add nodes and edges."""
    given = here["given"]
    new = job.lesson(turn, len(given["vectors"]), len(given["source"]), given["vectors"].shape[1])
    return clock(lambda: _system().learn(new))


def reinforce(turn: int) -> float:
    """Strengthen edges."""
    given = here["given"]
    some = job.touched(turn, len(given["source"]))
    sources, rate = np.asarray(given["source"][some]), AESGConfig().reinforce_rate
    return clock(lambda: _system().reinforce(some, sources, rate))


def consolidate() -> dict[str, float]:
    """Decay, prune, remove; and the first question after it, while whatever must be brought up to date is not."""
    spent = clock(_system().consolidate)
    first = clock(lambda: _system().ask(here["queries"][0]))
    _ready()
    return {"seconds": spent, "first": first}


def counts() -> list[int]:
    """Nodes and edges that are left."""
    return list(_system().counts())


if __name__ == "__main__":
    serve(
        {
            task.__name__: task
            for task in (about, create, close, reopen, tune, use, ask, check, learn, reinforce, consolidate, counts)
        }
    )
