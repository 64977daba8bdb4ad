"""What a run of the suite found: by group of clauses and by capability, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias

from aesg.testing.clauses import Clause

Outcome: TypeAlias = Literal["failed", "passed", "not declared", "skipped"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("failed", "passed", "not declared", "skipped")
"""From the one that counts most: a clause of several cases has the first that any of them has."""


@dataclass(slots=True)
class Result:
    """What became of one clause.

    Attributes:
        clause: The clause.
        outcome: "not declared": for stores of other capabilities; "skipped": this machine lacks what it takes.
        reasons: Why it failed, was skipped or does not apply; a paragraph for each case.
        cases: How many tests it consisted of.
        seconds: How long they took.
        details: What a clause has to tell beside its outcome, e.g. the counts of a campaign.
    """

    clause: Clause
    outcome: Outcome
    reasons: list[str] = field(default_factory=list)
    cases: int = 0
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, outcome: Outcome, reason: str) -> None:
        """Count one more case."""
        self.cases += 1
        if OUTCOMES.index(outcome) < OUTCOMES.index(self.outcome):
            self.outcome = outcome
            self.reasons.clear()
        if outcome == self.outcome and reason and reason not in self.reasons:
            self.reasons.append(reason)


@dataclass(slots=True)
class Report:
    """What became of all clauses that were chosen.

    Attributes:
        url: The target.
        capabilities: What it declares, by name.
        results: In the order of their names.
    """

    url: str
    capabilities: Mapping[str, str | bool]
    results: list[Result]

    def of(self, outcome: Outcome) -> list[Result]:
        """The results of one outcome."""
        return [result for result in self.results if result.outcome == outcome]

    @property
    def failed(self) -> list[str]:
        """Names of the clauses that failed."""
        return [result.clause.name for result in self.of("failed")]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "url": self.url,
            "capabilities": {name: {"level": level, **self._shown(name)} for name, level in self.capabilities.items()},
            "counts": _counts(self.results),
            "groups": {group: _counts(results) for group, results in self._groups().items()},
            "clauses": [
                {"name": result.clause.name, "promise": result.clause.promise}
                | {key: value for key, value in asdict(result).items() if key != "clause" and value not in ([], {})}
                | {"seconds": round(result.seconds, 3)}
                for result in self.results
            ],
        }

    def lines(self) -> Iterator[str]:
        """For people: a table by group, one by capability, then what failed and what was skipped."""
        yield f"Conformance of {self.url}"
        yield ""
        yield from _table(
            ["clauses", *OUTCOMES[1::-1], *OUTCOMES[2:]],
            [(group, _counts(results)) for group, results in (*self._groups().items(), ("all", self.results))],
        )
        yield ""
        width = max(len(name) for name in self.capabilities)
        for name, level in self.capabilities.items():
            shown = self._shown(name)
            clauses = f"{shown['passed']} of {shown['clauses']} clauses passed" if shown["clauses"] else "–"
            yield f"{name:{width}}  {str(level).lower():15}  {clauses}"
        for outcome in ("failed", "skipped"):
            for result in self.of(outcome):
                yield ""
                yield f"{outcome.upper()} {result.clause.name}: {result.clause.promise}"
                yield from (f"    {reason}" for reason in result.reasons)

    def _groups(self) -> dict[str, list[Result]]:
        groups: dict[str, list[Result]] = {}
        for result in self.results:
            groups.setdefault(result.clause.group, []).append(result)
        return groups

    def _shown(self, capability: str) -> dict[str, int]:
        """How many clauses have to do with a capability, and how many of them passed."""
        its = [
            result
            for result in self.results
            if (capability in result.clause.needs or capability in result.clause.unless)
            and result.outcome in ("passed", "failed")
        ]
        return {"clauses": len(its), "passed": sum(result.outcome == "passed" for result in its)}


def _counts(results: list[Result]) -> dict[str, int]:
    return {outcome: sum(result.outcome == outcome for result in results) for outcome in OUTCOMES}


def _table(headings: list[str], rows: list[tuple[str, dict[str, int]]]) -> Iterator[str]:
    width = max(len(name) for name, _ in (*rows, (headings[0], {})))
    yield "  ".join([f"{headings[0]:{width}}", *headings[1:]])
    for name, counts in rows:
        yield "  ".join([f"{name:{width}}", *(f"{counts[h] or '–':>{len(h)}}" for h in headings[1:])])
