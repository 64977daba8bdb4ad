"""The rows of `retrieval.py`, what is to be reached there, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any, Final

import numpy as np

BACKENDS: Final = ("memmap", "lmdb", "zarr")
WRITTEN: Final = ("memmap", "lmdb")
"""Where speed of writing is asked for: Zarr's is its library's."""


@dataclass(frozen=True)
class Goal:
    """What to reach, and what is accepted."""

    reach: float
    accept: float


@dataclass(frozen=True)
class Case:
    """One row of the table, for one backend.

    Attributes:
        key: Stable, for programs and for `--rows`.
        part: What is run for it; one run may give several rows.
        name: What is done, for people.
        against: What it is held against; "" for a plain figure.
        unit: Of the figure.
        goals: Scheme → goal; nothing is asked of the others.
        less: Whether less is better.
        backends: Where it is measured.
    """

    key: str
    part: str
    name: str
    against: str
    unit: str
    goals: Mapping[str, Goal]
    less: bool = False
    backends: tuple[str, ...] | None = None

    def verdict(self, goal: Goal, value: float) -> str:
        """A word: reached, accepted or missed."""
        sign = -1 if self.less else 1
        return (
            "reached"
            if sign * value >= sign * goal.reach
            else "accepted"
            if sign * value >= sign * goal.accept
            else "missed"
        )


def _goals(reach: float, accept: float, schemes: tuple[str, ...] = BACKENDS) -> dict[str, Goal]:
    return dict.fromkeys(schemes, Goal(reach, accept))


MEMMAP: Final = ("memmap",)
OLD: Final = "0.3.0"

CASES: Final = (
    Case("ingest", "build", "ingest until the index answers", "", "nodes/s", _goals(60_000, 15_000, WRITTEN)),
    Case(
        "retrieve",
        "ask",
        "retrieve, eval, one by one: p50",
        "",
        "ms",
        {**_goals(0.3, 0.6, WRITTEN), **_goals(0.5, 1, ("zarr",))},
        less=True,
    ),
    Case("tail", "ask", "its p99 / p50", "", "", _goals(3, 6), less=True),
    Case("faiss", "ask", "retrieve, the same recall", "faiss + NumPy, in RAM", "x", _goals(5, 2)),
    Case("usearch", "ask", "retrieve, the same recall", "usearch + numba, in RAM", "x", _goals(1, 0.5)),
    Case("batches", "batches", "queries per second, batches of 256", "one by one", "x", _goals(6, 3)),
    Case("train", "train", "retrieve, train", "eval (times as long)", "x", _goals(2, 2), less=True),
    Case("first", "first", "open, first retrieval", "", "s", _goals(0.7, 1.5), less=True),
    Case("memory", "memory", "memory beyond the index", "", "MB", _goals(100, 200, MEMMAP), less=True),
    Case(
        "published", "published", "retrieve, preset aesg-0.3", OLD, "x", _goals(20_000, 2000, MEMMAP), backends=MEMMAP
    ),
    Case("growth", "growth", "p50 at all nodes", "at a hundredth (times as long)", "x", {}, less=True, backends=MEMMAP),
    Case("hub", "hub", "retrieve at a node with an edge to each", "any other (times as long)", "x", {}, less=True),
    *(
        Case(f"consolidate_{share}", "consolidate", f"consolidate, {share} pruned, preset aesg-0.3", OLD, "x", goals)
        for share, goals in (("none", _goals(100, 30, WRITTEN)), ("half", _goals(500, 150, WRITTEN)))
    ),
    *(
        Case(f"consolidate_{share}_default", "consolidate", f"… and all edges faded, {share} pruned", OLD, "x", goals)
        for share, goals in (("none", _goals(100, 30, WRITTEN)), ("half", _goals(500, 150, WRITTEN)))
    ),
    *(
        Case(
            f"durable_{share}",
            "durable",
            f"consolidate, {share} pruned, durable",
            "NumPy columns + fsync",
            "x",
            _goals(2, 0.7, WRITTEN),
        )
        for share in ("none", "half")
    ),
    Case("create", "create", "create_sensory_concept, D=16", OLD, "x", _goals(5, 2, WRITTEN)),
    Case("append", "append", "add_concepts, saved", "raw sequential write", "x", _goals(0.6, 0.35, WRITTEN)),
    Case("connect", "connect", "connect, saved", "", "M edges/s", _goals(10, 3, WRITTEN)),
)


@dataclass(frozen=True)
class Row:
    """One case of one backend.

    Attributes:
        case: What was done.
        scheme: By which backend.
        value: The figure that is judged.
        low: Tenth percentile of the turns' figures.
        high: Ninetieth.
        ours: Seconds, one figure a turn or a query.
        other: Seconds of what it is held against; empty where it is a plain figure.
        notes: More that was seen, by name.
        goal: What is asked; None when nothing is.
        problem: Why there are no figures.
    """

    case: Case
    scheme: str
    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    ours: list[float] = field(default_factory=list)
    other: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    goal: Goal | None = None
    problem: str = ""

    @property
    def verdict(self) -> str | None:
        """What the figure is worth; None when nothing is asked or there is none."""
        return self.case.verdict(self.goal, self.value) if self.goal and not self.problem else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures: dict[str, Any] = {
            "key": self.case.key,
            "backend": self.scheme,
            "name": self.case.name,
            "against": self.case.against,
            "unit": self.case.unit,
            "less_is_better": self.case.less,
            "goal": asdict(self.goal) if self.goal else None,
            "problem": self.problem,
            "notes": self.notes,
        }
        if not self.problem:
            sides = {"ours": self.ours, "other": self.other}
            figures |= {
                "value": self.value,
                "p10_p90": [self.low, self.high],
                "verdict": self.verdict,
                "seconds": {name: summary(times) for name, times in sides.items() if times},
                "turns": sides,
            }
        return figures


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, mean, p99, least and most."""
    p99 = float(np.percentile(seconds, 99))
    return {"median": median(seconds), "mean": fmean(seconds), "p99": p99, "least": min(seconds), "most": max(seconds)}


# --- what a part gives back for a row --------------------------------------------------------------------------------


def compared(ours: list[float], other: list[float], *, slower: bool = False, **notes: Any) -> dict[str, Any]:
    """How many times faster ours is than the other (with `slower`: how many times as long it takes), by medians."""
    above, below = (ours, other) if slower else (other, ours)
    low, high = np.percentile(np.asarray(above) / np.asarray(below), (10, 90))
    value = median(above) / median(below)
    return {"value": value, "low": float(low), "high": float(high), "ours": ours, "other": other, "notes": notes}


def plain(figures: list[float], ours: list[float], **notes: Any) -> dict[str, Any]:
    """A figure that stands for itself: the median of some."""
    low, high = np.percentile(figures, (10, 90))
    return {"value": median(figures), "low": float(low), "high": float(high), "ours": ours, "notes": notes}
