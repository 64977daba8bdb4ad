"""What was measured."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, TypeAlias

import numpy as np

from aesg.bench.contenders import Contender, described
from aesg.bench.plan import READING, WORKLOADS, Plan
from aesg.protocols import Durability

MANY: Final = 100
"""From so many calls on, a 99th percentile is one; of fewer, the slowest is told."""
NOISY: Final = 0.15
"""From so much spread of the fixed work on, a machine is called noisy."""

Key: TypeAlias = tuple[str, str, str]
"""Contender or limit, workload, state."""


@dataclass
class Figure:
    """One workload of one contender in one state.

    Attributes:
        rounds: Seconds of each call, round by round.
        cpu: Seconds of processor time of all calls together.
    """

    rounds: list[list[float]] = field(default_factory=list)
    cpu: float = 0.0

    @property
    def calls(self) -> list[float]:
        """Seconds of each call."""
        return [seconds for each in self.rounds for seconds in each]

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.calls)

    def as_dict(self) -> dict[str, Any]:
        """Seconds; JSON-able."""
        calls = np.asarray(self.calls)
        low, middle, high = np.percentile(calls, [25, 50, 75]).tolist()
        return {
            "calls": len(calls),
            "median": middle,
            "q1": low,
            "q3": high,
            "p50": middle,
            "p99": float(np.percentile(calls, 99)) if len(calls) >= MANY else None,
            "most": float(calls.max()),
            "cpu": self.cpu / len(calls),
            "rounds": [median(each) for each in self.rounds],
        }


@dataclass
class Results:
    """Everything that was measured so far.

    Attributes:
        plan: What was to be done.
        contenders: Who takes part.
        machine: Where.
        figures: By contender's name, workload and state.
        limits: By "library/durability", workload and state.
        footprints: By contender's name: bytes on disk and in memory, seconds of churn.
        calibration: Seconds of the same fixed work, once a round.
        problems: By contender's name: why it fell out.
        disagreement: Who gave another answer than the others, and to what; "" when nobody did.
        compared: How many answers were.
        interrupted: Whether somebody stopped it.
        doing: What is going on: contender, workload, state.
    """

    plan: Plan
    contenders: list[Contender]
    machine: dict[str, Any]
    started: float = field(default_factory=time.time)
    figures: dict[Key, Figure] = field(default_factory=dict)
    limits: dict[Key, Figure] = field(default_factory=dict)
    footprints: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration: list[float] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    disagreement: str = ""
    compared: int = 0
    interrupted: bool = False
    doing: Key | None = None

    @property
    def good(self) -> bool:
        """Whether everything was measured, and all agreed."""
        return not (self.problems or self.disagreement or self.interrupted)

    @property
    def noise(self) -> float | None:
        """How much of its median the fixed work varies, from the first quartile to the third; None before 4 rounds."""
        if len(self.calibration) < 4:
            return None
        low, middle, high = np.percentile(self.calibration, [25, 50, 75]).tolist()
        return float((high - low) / middle)

    def limit_of(self, contender: Contender, workload: str, state: str) -> Figure | None:
        """What a contender's figure is held against."""
        return self.limits.get((limit_name(contender, workload), workload, state))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, without paths."""
        figures = []
        for contender in self.contenders:
            for workload in self.plan.workloads:
                for state in self.plan.states_of(workload):
                    found = self.figures.get((contender.name, workload, state))
                    if found is None:
                        continue
                    limit = self.limit_of(contender, workload, state)
                    figures.append(
                        {
                            "contender": contender.name,
                            "workload": workload,
                            "state": state,
                            **found.as_dict(),
                            "limit": None if limit is None else limit.median,
                            "limit_is": WORKLOADS[workload].limit_of(contender.library),
                            "ratio": None if limit is None else limit.median / found.median,
                        }
                    )
        durable = {contender.durability.name.lower() for contender in self.contenders}
        return {
            "version": 1,
            "made": time.strftime("%Y-%m-%d", time.gmtime(self.started)),
            "machine": self.machine,
            "plan": self.plan.as_dict(),
            "durability": durable.pop() if len(durable) == 1 else None,
            "contenders": [described(contender) for contender in self.contenders],
            "figures": figures,
            "footprints": self.footprints,
            "noise": {"rounds": len(self.calibration), "spread": self.noise, "seconds": _rounded(self.calibration)},
            "compared": self.compared,
            "problems": self.problems,
            "disagreement": self.disagreement or None,
            "interrupted": self.interrupted,
        }


def limit_name(contender: Contender, workload: str) -> str:
    """Which limit a contender's figure is held against: how durable it is makes none when nothing is written."""
    library = contender.library if contender.library in WORKLOADS[workload].limits else "file"
    durability = Durability.NONE if workload in READING else contender.durability
    return f"{library}/{durability.name.lower()}"


def _rounded(seconds: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in seconds if math.isfinite(value)]
