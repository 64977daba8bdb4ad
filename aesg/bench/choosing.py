"""Which backend to take: what it promises first, how fast it is second.

What a backend promises it says itself. How fast it is on a machine like this is measured: the figures that are shipped
were taken by `aesg bench` on the machine that they name, or they are taken here. They are carried over to other sizes
by plain rules, which `docs/choosing.md` states; the sizes of a store on disk are those of its format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from aesg.backends import lists, registry, zarr
from aesg.backends.url import StoreURL
from aesg.bench import words
from aesg.bench.conduct import Watch, run
from aesg.bench.contenders import SETTINGS, contend, levels
from aesg.bench.limits import edge_bytes, node_bytes
from aesg.bench.machine import ram
from aesg.bench.plan import Plan
from aesg.errors import BackendNotInstalledError, InvalidInputError
from aesg.protocols import Capabilities, Durability, Integrity, ReaderView

SHIPPED: Final = Path(__file__).with_name("figures.json")
"""What `make figures` measured."""
BUSY: Final = 0.8
"""A writer that spends more of its time than this on commits and queries is too busy."""
ALIKE: Final = 1.1
"""Those whose work takes no longer than this times the fastest one's are as good, and those whose quicker half overlaps
with its slower half; of them the smallest store is taken."""
INDEXED: Final = 8_000_000
"""Numbers in all vectors from which an index finds the nearest: a query grows no more with the store."""
SCANNED: Final = 0.7
"""Share of a query's time that grows with the vectors."""
SMALL: Final = 20_000
"""Nodes at most of the stores that are measured to choose."""

NODE: Final = 53
"""Bytes of a node on disk beside its vector."""
EDGE: Final[Mapping[str, int]] = {"memmap": 36, "lmdb": 87, "zarr": 58, "icechunk": 58}
"""Scheme → bytes of an edge on disk: one record, or an entry in each of two orders and in what waits to be merged."""
PROCESS: Final = 300 << 20
"""Bytes of memory of a process with torch, before it opens anything."""
CHUNKS: Final[Mapping[str, int]] = dict.fromkeys(("zarr", "icechunk"), zarr.CACHE_BYTES)
"""Scheme → bytes of chunks that are kept decoded, at most."""


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What is asked of a store.

    Attributes:
        nodes: That it will hold.
        edges: That it will hold.
        dim: Length of the vectors.
        writes: Commits a second.
        reads: Queries a second, in the process that writes.
        processes: That have it open at a time.
        writers: Of these, how many write.
        durability: What a commit has to survive.
        readers: What a process that only reads has to see.
        integrity: What has to be noticed of damage.
        snapshots: Whether a commit has to stay readable while others follow.
        remote: Whether it lies on another machine.

    Raises:
        InvalidInputError: A number out of range, or an unknown level.
    """

    nodes: int = 50_000
    edges: int = 500_000
    dim: int = 128
    writes: float = 1.0
    reads: float = 10.0
    processes: int = 1
    writers: int = 1
    durability: Durability = Durability.PROCESS_CRASH
    readers: ReaderView = ReaderView.LATEST
    integrity: Integrity = Integrity.STRUCTURE
    snapshots: bool = False
    remote: bool = False

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("edges", 0), ("dim", 1), ("writes", 0), ("reads", 0), ("writers", 0)):
            if not least <= getattr(self, name) < float("inf"):
                raise InvalidInputError(f"{name} must be a number from {least}, not {getattr(self, name)}")
        if self.processes < max(1, self.writers):
            raise InvalidInputError(f"{self.writers} of {self.processes} processes cannot write")

    @classmethod
    def of(cls, **given: Any) -> Demands:
        """From names of levels, e.g. `durability="power_loss"`."""
        kinds = {"durability": Durability, "readers": ReaderView, "integrity": Integrity}
        for name, kind in kinds.items():
            if isinstance(given.get(name), str):
                try:
                    given[name] = kind[given[name].upper()]
                except KeyError as error:
                    known = ", ".join(level.name.lower() for level in kind)
                    raise InvalidInputError(f"unknown {name} {given[name]!r}; known: {known}") from error
        return cls(**given)

    def require(self) -> dict[str, Any]:
        """The capabilities that it takes, as `aesg.open` wants them."""
        wanted: dict[str, Any] = {"durability": self.durability, "integrity": self.integrity}
        if self.processes > 1:
            wanted |= {"readers": "other_processes", "reader_view": self.readers}
        if self.writers > 1:
            wanted["writers"] = "many"
        return wanted | {name: True for name in ("snapshots", "remote") if getattr(self, name)}

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {k: v.name.lower() if hasattr(v, "name") else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Candidate:
    """A backend, with the options that come nearest to the demands, and whether that is near enough.

    Attributes:
        name: Backend and options.
        promises: None where it is not installed.
        why_not: Why it does not fit, a sentence each; empty when it does.
        commit: Seconds of a commit; None where nothing was measured.
        retrieve: Seconds of a query.
        busy: Share of the writer's time that commits and queries take.
        between: The same, of the quicker and of the slower half of what was measured: their middles.
        like: Another contender whose figures stand for its own, which were not taken; "" when they were.
        disk: Bytes; None where the format's are not known.
        memory: Bytes of memory that a process takes, at most, without pages of files.
    """

    name: str
    promises: Capabilities | None
    why_not: tuple[str, ...]
    commit: float | None = None
    retrieve: float | None = None
    busy: float | None = None
    between: tuple[float, float] | None = None
    like: str = ""
    disk: int | None = None
    memory: int | None = None

    @property
    def fits(self) -> bool:
        """Whether it does what is asked."""
        return not self.why_not

    @property
    def url(self) -> str:
        """To open it with, in the folder where one is; in-memory stores have no place."""
        parsed = StoreURL.parse(self.name)
        return str(replace(parsed, path="" if parsed.scheme == "memory" else "my_memory"))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        promises = None if self.promises is None else self.promises.as_dict()
        return asdict(self) | {"promises": promises, "fits": self.fits, "why_not": list(self.why_not)}


@dataclass(frozen=True)
class Choice:
    """What to take, and why.

    Attributes:
        demands: What was asked.
        recommended: None when nothing fits.
        reasons: Why this one, a sentence each.
        changes: What would make it another one, a sentence each.
        candidates: All there are, those that fit first, best first.
        measured: Where the figures come from.
    """

    demands: Demands
    recommended: Candidate | None
    reasons: list[str]
    changes: list[str]
    candidates: list[Candidate]
    measured: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        best = self.recommended
        return {
            "demands": self.demands.as_dict(),
            "recommended": None if best is None else best.name,
            "url": None if best is None else best.url,
            "reasons": self.reasons,
            "changes": self.changes,
            "candidates": [candidate.as_dict() for candidate in self.candidates],
            "measured": self.measured,
        }


@dataclass(frozen=True)
class _Figures:
    """By contender's name, first quartile, median and third quartile of commits and queries, in seconds; and the store.

    Those of a store that was in use for a while, where there are such.
    """

    of: dict[str, dict[str, tuple[float, float, float]]]
    nodes: int
    dim: int
    said: str


@dataclass
class _Variants:
    """Each backend's capabilities by name, as its options make them; and what is not installed."""

    of: dict[str, dict[str, Capabilities]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def choose(demands: Demands, figures: Mapping[str, Any] | None = None) -> Choice:
    """Recommend a backend.

    Args:
        demands: What it is for.
        figures: What `Results.as_dict` gave; those that are shipped when None.
    """
    measured, variants = _figures(shipped() if figures is None else figures), _variants()
    candidates = _ranked(demands, measured, variants)
    best = _best(candidates)
    changes = _changes(demands, measured, variants, best)
    return Choice(demands, best, _reasons(demands, candidates, best), changes, candidates, measured.said)


def shipped() -> dict[str, Any]:
    """The figures that come with the package."""
    found: dict[str, Any] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return found


def read_figures(file: Path) -> dict[str, Any]:
    """Figures that `aesg bench --json` wrote.

    Raises:
        InvalidInputError: They are not, or not to be read.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _figures(found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInputError(f"{file} does not hold figures of aesg bench: {error!r}") from error
    return found


def measure(
    demands: Demands, *, directory: str | Path | None = None, repeats: int = 3, watch: Watch | None = None
) -> dict[str, Any]:
    """Measure commits and queries here, on a store of at most `SMALL` nodes.

    All backends whose promises suffice are measured, at every durability that they have: it is a frequent question what
    less of it would save.

    Args:
        demands: What it is for.
        directory: See `run`.
        repeats: Rounds.
        watch: See `run`.

    Returns:
        Figures for `choose`.
    """
    wanted = {name: level for name, level in demands.require().items() if name != "durability"}
    names = [
        name
        for mine in _variants().of.values()
        if any(not promises.missing(demands.require()) for promises in mine.values())
        for name, promises in mine.items()
        if not promises.missing(wanted)
    ]
    if not names:
        return shipped()  # nothing to compare: what fits does not depend on it
    nodes = max(100, min(demands.nodes, SMALL))
    edges = max(100, min(demands.edges * nodes // max(1, demands.nodes), 50 * nodes))
    plan = Plan(nodes=nodes, edges=edges, dim=demands.dim, workload=("retrieve", "commit"), repeats=repeats)
    return run(plan, contend(names, unequal=True), directory=directory, watch=watch).as_dict()


# --- what there is ---------------------------------------------------------------------------------------------------


def _variants() -> _Variants:
    found = _Variants()
    for scheme in registry.schemes():
        try:
            backend = registry.backend(scheme)
        except BackendNotInstalledError as error:
            found.missing[scheme] = str(error)
            continue
        if backend.promises is None:  # only an opened store can tell
            found.of[scheme] = {contender.name: contender.promises for contender in levels(f"{scheme}:").values()}
            continue
        mine: dict[str, Capabilities] = {}
        for setting in SETTINGS:
            try:
                parsed = {name: backend.options[name].parse(value) for name, value in setting.items()}
            except (KeyError, ValueError):
                continue  # it has no such option, or other words for it
            promises = backend.promises(parsed)
            if promises not in mine.values():
                mine[str(StoreURL(scheme, "", "", setting))] = promises
        found.of[scheme] = mine
    return found


def _figures(found: Mapping[str, Any]) -> _Figures:
    of: dict[str, dict[str, tuple[float, float, float]]] = {}
    for figure in sorted(found["figures"], key=lambda figure: figure["state"] != "churned"):
        mine = of.setdefault(figure["contender"], {})
        mine.setdefault(figure["workload"], (figure["q1"], figure["median"], figure["q3"]))
    complete = {name: mine for name, mine in of.items() if {"commit", "retrieve"} <= mine.keys()}
    plan, where = found["plan"], found["machine"]
    said = f"measured on {found['made']} with {words.job(plan)}: {words.machine(where)}"
    return _Figures(complete, plan["nodes"], plan["dim"], said)


# --- deciding --------------------------------------------------------------------------------------------------------


def _ranked(demands: Demands, figures: _Figures, variants: _Variants) -> list[Candidate]:
    found = [_candidate(scheme, demands, figures, variants) for scheme in variants.of]
    found += [Candidate(f"{scheme}:", None, (why,)) for scheme, why in variants.missing.items()]
    return sorted(found, key=lambda c: (not c.fits, c.busy is None, c.busy or 0.0, c.name))


def _candidate(scheme: str, demands: Demands, figures: _Figures, variants: _Variants) -> Candidate:
    """A backend with the options that suffice and promise least beyond, as durability is not for free."""
    mine = variants.of[scheme]
    found = [
        _variant(name, mine, scheme, demands, figures) for name in sorted(mine, key=lambda name: mine[name].durability)
    ]
    fitting = [candidate for candidate in found if candidate.fits]
    return fitting[0] if fitting else min(found, key=lambda candidate: len(candidate.why_not))


def _variant(
    name: str, mine: Mapping[str, Capabilities], scheme: str, demands: Demands, figures: _Figures
) -> Candidate:
    promises = mine[name]
    why_not = [lacking.replace("_", " ") for lacking in promises.missing(demands.require())]
    disk, memory = _sizes(scheme, demands)
    if scheme == "memory" and memory > ram():
        why_not.append(f"it holds everything in memory: {words.size(memory)}, and the machine has {words.size(ram())}")
    like = _nearest(name, mine, figures)
    if like is None:
        return Candidate(name, promises, tuple(why_not), disk=disk, memory=memory)
    pairs = zip(figures.of[like]["commit"], figures.of[like]["retrieve"], strict=True)
    low, middle, high = (_carried(scheme, commit, retrieve, demands, figures) for commit, retrieve in pairs)
    busy = [demands.writes * commit + demands.reads * retrieve for commit, retrieve in (low, middle, high)]
    if busy[1] > BUSY:
        why_not.append(
            f"{demands.writes:,g} commits of {words.seconds(middle[0])} and {demands.reads:,g} queries of "
            f"{words.seconds(middle[1])} a second are {busy[1]:.0%} of the writer's time"
        )
    return Candidate(
        name,
        promises,
        tuple(why_not),
        *middle,
        busy=busy[1],
        between=(busy[0], busy[2]),
        like="" if like == name else like,
        disk=disk,
        memory=memory,
    )


def _nearest(name: str, mine: Mapping[str, Capabilities], figures: _Figures) -> str | None:
    """Whose figures to take: its own, else those of the same backend at the nearest level of durability."""
    distance = {other: abs(mine[other].durability - mine[name].durability) for other in mine if other in figures.of}
    return min(distance, key=lambda other: (other != name, distance[other], other), default=None)


def _carried(scheme: str, commit: float, retrieve: float, demands: Demands, figures: _Figures) -> tuple[float, float]:
    """Seconds of a commit and a query at another size."""
    there, here = figures.nodes * figures.dim, demands.nodes * demands.dim
    grown = min(here, INDEXED) / min(there, INDEXED)
    if scheme == "memory":  # a commit copies everything
        commit *= max(1.0, here / there)
    return commit, retrieve * (1 - SCANNED + SCANNED * grown)


def _sizes(scheme: str, demands: Demands) -> tuple[int | None, int]:
    """Bytes on disk, and of memory of one process."""
    vectors = demands.nodes * demands.dim
    index = demands.nodes * (2 * demands.dim + 150) if vectors > INDEXED else 0
    if scheme == "memory":
        held = demands.nodes * node_bytes(demands.dim) + 2 * demands.edges * edge_bytes()
        return 0, PROCESS + 2 * held + index  # twice while it commits
    edge = EDGE.get(scheme)
    disk = None if edge is None else demands.nodes * (NODE + 4 * demands.dim) + demands.edges * edge + index
    kept = min(lists.CACHE_BYTES, demands.edges * lists.EDGE_BYTES) + min(CHUNKS.get(scheme, 0), disk or 0)
    return disk, PROCESS + kept + index


def _best(candidates: Sequence[Candidate]) -> Candidate | None:
    fitting = [candidate for candidate in candidates if candidate.fits]
    known = [candidate for candidate in fitting if candidate.busy is not None]
    if not known:
        return fitting[0] if fitting else None
    first = min(known, key=lambda candidate: candidate.busy or 0.0)
    alike = [candidate for candidate in known if _alike(first, candidate)]
    return min(alike, key=lambda candidate: candidate.disk if candidate.disk is not None else 1 << 62)


def _alike(first: Candidate, other: Candidate) -> bool:
    """Whether what was measured does not tell another from the fastest."""
    assert first.busy is not None
    assert first.between is not None
    assert other.busy is not None
    assert other.between is not None
    return other.busy <= ALIKE * first.busy or other.between[0] <= first.between[1]


# --- saying why ------------------------------------------------------------------------------------------------------


def _reasons(demands: Demands, candidates: Sequence[Candidate], best: Candidate | None) -> list[str]:
    if best is None:
        return ["No backend that is installed does all of that."]
    wanted = [f"{name.replace('_', ' ')} {_level(level)}" for name, level in demands.require().items()]
    said = [f"It promises what is asked: {', '.join(wanted)}."]
    others = [candidate for candidate in candidates if candidate.fits and candidate is not best]
    if best.busy is None or best.commit is None or best.retrieve is None:
        return [*said, "Nothing was measured of it; --measure does."]
    said.append(
        f"A commit takes {words.seconds(best.commit)} and a query {words.seconds(best.retrieve)}: "
        f"{best.busy:.1%} of the writer's time."
    )
    if best.like:
        said.append(f"These are the figures of {words.label(best.like)}; its own were not taken.")
    for other in others:
        if other.busy is None or other.commit is None or other.retrieve is None:
            continue
        versus = f"{words.label(other.name)}: {words.seconds(other.commit)} and {words.seconds(other.retrieve)}"
        if other.busy > best.busy and not _alike(best, other):
            said.append(f"It is faster than {versus}.")
        elif best.disk is not None and other.disk is not None and best.disk < other.disk:
            said.append(
                f"The figures vary too much to tell it from {versus}; it is smaller: {words.size(best.disk)} instead "
                f"of {words.size(other.disk)}."
            )
    if not others:
        said.append("It is the only one that fits.")
    return said


def _level(level: Any) -> str:
    return str(getattr(level, "name", level)).lower().replace("_", " ")


def _changes(demands: Demands, figures: _Figures, variants: _Variants, best: Candidate | None) -> list[str]:
    """Each demand, made another: what would be taken then?"""

    def taken(**other: Any) -> Candidate | None:
        return _best(_ranked(replace(demands, **other), figures, variants))

    def same(found: Candidate | None) -> bool:
        return (found and found.name) == (best and best.name)

    said = []
    several = max(2, demands.processes)
    others: list[tuple[str, dict[str, Any]]] = [
        ("if a second process reads along", {"processes": 2} if demands.processes == 1 else {}),
        ("if two processes must write", {"processes": several, "writers": 2} if demands.writers < 2 else {}),
        ("if a commit must survive power loss", {"durability": Durability.POWER_LOSS}),
        ("if surviving a killed process is enough", {"durability": Durability.PROCESS_CRASH}),
        (
            "if readers must see one commit until they ask for the next",
            {"readers": ReaderView.FIXED, "processes": several},
        ),
        ("if one process writes and the others read", {"writers": 1}),
        ("if you need snapshots", {"snapshots": True}),
        ("if you can do without snapshots", {"snapshots": False}),
        ("if every flipped bit must be noticed", {"integrity": Integrity.CHECKSUMS}),
        ("if it must lie on another machine", {"remote": True}),
        ("if it may lie on this machine", {"remote": False}),
        ("with a tenth of the commits a second, each of ten times as much", {"writes": demands.writes / 10}),
        (f"with ten times as many nodes and edges ({10 * demands.nodes:,})", _grown(demands)),
    ]
    for condition, other in others:
        if other and any(getattr(demands, name) != value for name, value in other.items()):
            found = taken(**other)
            if not same(found):
                said.append(
                    f"{condition}: {words.label(found.name) if found else 'nothing that is installed does that'}"
                )
    if best is not None:
        limit = _threshold(demands, lambda writes: same(taken(writes=writes)))
        if limit is not None:
            found = taken(writes=limit)
            instead = words.label(found.name) if found else "nothing keeps up; commit more at a time"
            said.append(f"above {limit:,.0f} commits a second: {instead}")
    return [sentence[0].upper() + sentence[1:] + "." for sentence in said]


def _grown(demands: Demands) -> dict[str, Any]:
    return {"nodes": 10 * demands.nodes, "edges": 10 * demands.edges}


def _threshold(demands: Demands, same: Any) -> float | None:
    """The least number of commits a second at which the answer is another; None up to a million."""
    low, high = max(demands.writes, 1.0), max(demands.writes, 1.0)
    while same(high):
        low, high = high, 2 * high
        if high > 1e6:
            return None
    while high > 1.02 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if same(middle) else (low, middle)
    return high
