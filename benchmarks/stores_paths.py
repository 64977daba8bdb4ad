"""The paths that `stores.py` measures, what each backend is to reach there, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any, Final

import numpy as np


@dataclass(frozen=True)
class Goal:
    """A share of the limit's speed, or a multiple of it: what to reach, and the least that is accepted."""

    reach: float
    accept: float

    def verdict(self, ratio: float) -> str:
        """A word: reached, accepted or missed."""
        return "reached" if ratio >= self.reach else "accepted" if ratio >= self.accept else "missed"


@dataclass(frozen=True)
class Case:
    """One path through a store.

    Attributes:
        key: Stable, for programs and for `--paths`; the task of `stores_tasks.py`.
        name: What the store does, for people.
        limit: What it is held against.
        unit: Of the times shown.
        per_second: That many of them make a second.
        goals: Scheme → goal; nothing is asked of the others.
    """

    key: str
    name: str
    limit: str
    unit: str
    per_second: float
    goals: Mapping[str, Goal]


def _goals(memmap: tuple[float, float], lmdb: tuple[float, float], zarr: tuple[float, float] | None) -> dict[str, Goal]:
    given = {"memmap": memmap, "lmdb": lmdb, "zarr": zarr}
    return {scheme: Goal(*pair) for scheme, pair in given.items() if pair is not None}


CASES: Final = (
    Case(
        "append",
        "bulk append, unsynced",
        "raw sequential write",
        "ms",
        1e3,
        _goals((0.75, 0.5), (0.65, 0.4), (0.2, 0.08)),
    ),
    Case(
        "gather",
        "gather of 1000 vectors, warm",
        "np.take in RAM",
        "µs",
        1e6,
        _goals((0.85, 0.6), (0.45, 0.3), (0.45, 0.3)),
    ),
    Case("scan", "vector scan", "RAM copy", "ms", 1e3, _goals((0.8, 0.6), (0.5, 0.35), (0.1, 0.04))),
    Case(
        "out_edges",
        "out-edges of 1000 rows, warm",
        "numba over CSR in heap",
        "µs",
        1e6,
        _goals((0.6, 0.35), (0.9, 0.5), (0.9, 0.5)),
    ),
    Case(
        "decay",
        "decay of one column, committed",
        "0.3.0's consolidation",
        "ms",
        1e3,
        _goals((100, 30), (100, 30), (50, 15)),
    ),
    Case(
        "commit_large",
        "1000 nodes + 10,000 edges, durable",
        "append + fdatasync",
        "ms",
        1e3,
        _goals((0.7, 0.3), (0.5, 0.25), None),
    ),
    Case(
        "commit_small",
        "one node + one edge, durable",
        "SQLite (WAL, FULL)",
        "ms",
        1e3,
        _goals((1.5, 0.7), (1.5, 0.7), None),
    ),
)


@dataclass(frozen=True)
class Row:
    """One path of one backend.

    Attributes:
        case: What was done.
        scheme: By which backend.
        ours: Seconds, one figure a turn; empty when it failed.
        limit: Seconds of the limit in the same turns.
        raw: Seconds that the backend's library took by itself; empty where there is none.
        durability: What the store promised meanwhile.
        notes: Seconds of what came after the turns, by name.
        goal: What is asked; None when nothing is.
        problem: Why there are no figures.
    """

    case: Case
    scheme: str
    ours: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    durability: str = ""
    notes: dict[str, float] = field(default_factory=dict)
    goal: Goal | None = None
    problem: str = ""

    @property
    def ratio(self) -> float:
        """How fast it is, the limit being 1; by medians."""
        return median(self.limit) / median(self.ours)

    @property
    def ratio_of_means(self) -> float:
        """The same by means: what a merge costs now and then is in it."""
        return fmean(self.limit) / fmean(self.ours)

    @property
    def ratio_to_raw(self) -> float | None:
        """How fast it is, the backend's library by itself being 1; by medians."""
        return median(self.raw) / median(self.ours) if self.raw else None

    @property
    def verdict(self) -> str | None:
        """What the ratio is worth; None when nothing is asked."""
        return self.goal.verdict(self.ratio) if self.goal else None

    @property
    def spread(self) -> tuple[float, float]:
        """The tenth and the ninetieth percentile of the turns' ratios."""
        low, high = np.percentile(np.asarray(self.limit) / np.asarray(self.ours), (10, 90))
        return float(low), float(high)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures: dict[str, Any] = {
            "path": self.case.key,
            "backend": self.scheme,
            "against": self.case.limit,
            "durability": self.durability,
            "goal": asdict(self.goal) if self.goal else None,
            "problem": self.problem,
        }
        if not self.problem:
            figures |= {
                "ratio": self.ratio,
                "ratio_of_means": self.ratio_of_means,
                "ratio_p10_p90": self.spread,
                "ratio_to_raw_library": self.ratio_to_raw,
                "verdict": self.verdict,
                "verdict_of_means": self.goal.verdict(self.ratio_of_means) if self.goal else None,
                "seconds": {"ours": _summary(self.ours), "limit": _summary(self.limit), **self.notes},
                "turns": {"ours": self.ours, "limit": self.limit},
            }
            if self.raw:
                figures["seconds"]["raw_library"] = _summary(self.raw)
                figures["turns"]["raw_library"] = self.raw
        return figures


def _summary(seconds: list[float]) -> dict[str, float]:
    p99 = float(np.percentile(seconds, 99))
    return {"median": median(seconds), "mean": fmean(seconds), "p99": p99, "least": min(seconds), "most": max(seconds)}
