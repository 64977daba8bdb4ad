"""The comparison itself: processes, rounds and turns.

Workload by workload, each round lets everybody have a turn, the limits among them, in an order drawn by chance: a slow
minute of the machine hits all. Only one process works at a time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, Final, TypeAlias

from aesg.bench.contenders import Contender
from aesg.bench.machine import machine
from aesg.bench.pipe import Child, ChildError
from aesg.bench.plan import STATES, Plan
from aesg.bench.results import Figure, Key, Results, limit_name
from aesg.errors import InvalidInputError, StorageError
from aesg.protocols import Durability, Progress

Watch: TypeAlias = Callable[[Results], None]
"""Told before and after each turn; looks only."""

LIMITS: Final = "limits"
"""The name under which the limits take turns."""


def run(
    plan: Plan,
    contenders: Sequence[Contender],
    *,
    directory: str | Path | None = None,
    imports: Sequence[str] = (),
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Results:
    """Have the same job done by all, in turns.

    Whoever fails falls out and costs no figures but its own. Ctrl-C ends it early: what was measured is given back, the
    processes are gone and the files deleted.

    Args:
        plan: What is done.
        contenders: Who takes part; see `contend`.
        directory: Where stores are made, for those whose URL does not say; a temporary folder of the system when None.
        imports: Modules, or "module:BACKEND", that register backends that are not installed.
        progress: Told how many turns were taken.
        watch: Given the results as they grow.

    Returns:
        What was measured. `disagreement` says so when two gave different answers: then the rest was not measured.
    """
    names = [contender.name for contender in contenders]
    if not names or len(set(names)) < len(names):
        raise InvalidInputError("give at least one contender, and none twice")
    home = Path(tempfile.gettempdir() if directory is None else directory)
    results = Results(plan, list(contenders), {})
    with ExitStack() as stack:
        try:
            home.mkdir(parents=True, exist_ok=True)
            results.machine = machine(home)
            _Run(results, home, imports, progress, watch, stack).all()
        except KeyboardInterrupt:
            results.interrupted = True
        except _Disagreement as found:
            results.disagreement = str(found)
        except OSError as error:
            raise StorageError(f"stores cannot be compared there: {error}") from error
        results.doing = None
    return results


class _Disagreement(Exception):  # noqa: N818 - it is how a run ends, not an error of anybody's
    """Two gave different answers."""


class _Run:
    """One comparison."""

    def __init__(
        self,
        results: Results,
        home: Path,
        imports: Sequence[str],
        progress: Progress | None,
        watch: Watch | None,
        stack: ExitStack,
    ) -> None:
        self._results = results
        self._plan = results.plan
        self._home = home
        self._imports = imports
        self._progress = progress
        self._watch = watch
        self._stack = stack
        self._random = Random(self._plan.seed)  # noqa: S311 - no secret
        self._workers: dict[str, Child] = {}
        self._answers: dict[tuple[str, ...], tuple[str, str]] = {}
        self._taken = 0
        self._of = self._turns()

    def _turns(self) -> int:
        """How many there are to take."""
        count = len(self._results.contenders)
        rounds = sum(
            (self._plan.repeats + 1) * (len(self._takers(workload)) + len(self._limits(workload)))
            for workload in self._plan.workloads
            for _ in self._plan.states_of(workload)
        )
        return 1 + 2 * count + rounds + len(STATES) * 2 * count

    def all(self) -> None:
        """Do everything."""
        size = {"nodes": self._plan.nodes, "edges": self._plan.edges, "dim": self._plan.dim}
        self._tell()
        limits = self._begin("raw", self._folder(self._home), size)
        for contender in self._results.contenders:
            more = {"url": contender.url, "in_files": contender.in_files, "exact": self._plan.exact}
            folder = self._folder(contender.place or self._home)
            self._workers[contender.name] = self._begin("work", folder, size | more)
        limits.ready()
        self._taken += 1
        for contender in self._results.contenders:
            self._attempt(contender, "begin", "fresh", lambda: self._enter(contender))  # noqa: B023
            self._attempt(contender, "build", "fresh", lambda: self._build(contender))  # noqa: B023
        for state in STATES:
            for workload in self._plan.workloads:
                if state not in self._plan.states_of(workload):
                    continue
                for number in range(-1, self._plan.repeats):
                    self._round(limits, workload, state, number)
                if workload == "retrieve":  # nothing was written since the state began
                    self._footprints(state)
            if "retrieve" not in self._plan.workloads:
                self._footprints(state)
            for contender in self._alive():
                self._attempt(contender, "content", state, lambda: self._content(contender, state))  # noqa: B023
        self._tell()

    # Processes and folders

    def _folder(self, under: Path) -> Path:
        under.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="aesg-bench-", dir=under))
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _begin(self, side: str, folder: Path, arguments: dict[str, Any]) -> Child:
        given = {"folder": str(folder), **arguments}
        return self._stack.enter_context(Child(side, given, self._imports, self._plan.patience))

    def _enter(self, contender: Contender) -> None:
        child = self._workers[contender.name]
        child.ready()
        self._results.footprints[contender.name] = child("about")

    def _alive(self) -> list[Contender]:
        return [found for found in self._results.contenders if found.name not in self._results.problems]

    # Turns

    def _tell(self, doing: Key | None = None) -> None:
        self._results.doing = doing
        if self._progress is not None:
            self._progress("turns", min(self._taken, self._of), self._of)
        if self._watch is not None:
            self._watch(self._results)

    def _attempt(self, contender: Contender, doing: str, state: str, work: Callable[[], None]) -> None:
        """Something that one contender does, if it is still there; when it fails, it is not any more."""
        self._tell((contender.name, doing, state))
        self._taken += 1
        if contender.name in self._results.problems:
            return
        try:
            work()
        except ChildError as error:
            self._results.problems[contender.name] = str(error)

    def _takers(self, workload: str) -> list[Contender]:
        return [found for found in self._results.contenders if workload != "open" or found.in_files]

    def _limits(self, workload: str) -> list[str]:
        """The limits that a workload's figures are held against."""
        return sorted({limit_name(contender, workload) for contender in self._takers(workload)})

    def _round(self, limits: Child, workload: str, state: str, number: int) -> None:
        """A turn for everybody; in the first one, which is not counted, what is loaded late is loaded."""
        if number >= 0:
            self._results.calibration.append(limits("calibrate"))
        turns: list[Contender | str] = [*self._takers(workload), *self._limits(workload)]
        self._random.shuffle(turns)
        for turn in turns:
            if isinstance(turn, Contender):
                self._attempt(turn, workload, state, lambda: self._burst(turn, workload, state, number))  # noqa: B023
                continue
            self._tell((LIMITS, workload, state))
            self._taken += 1
            library, _, level = turn.partition("/")
            durability = int(Durability[level.upper()])
            done = limits(
                "burst", workload=workload, library=library, durability=durability, state=state, number=number
            )
            if done["answer"]:
                self._compare(turn, done["answer"], workload, state, str(number))
            if number >= 0:
                self._keep(self._results.limits, (turn, workload, state), done)
        self._tell()

    def _burst(self, contender: Contender, workload: str, state: str, number: int) -> None:
        done = self._workers[contender.name]("burst", workload=workload, state=state, number=number)
        self._compare(contender.name, done["answer"], workload, state, str(number))
        if number >= 0:
            self._keep(self._results.figures, (contender.name, workload, state), done)

    @staticmethod
    def _keep(figures: dict[Key, Figure], key: Key, done: dict[str, Any]) -> None:
        figure = figures.setdefault(key, Figure())
        figure.rounds.append(done["seconds"])
        figure.cpu += done["cpu"]

    def _build(self, contender: Contender) -> None:
        done = self._workers[contender.name]("build")
        self._compare(contender.name, done["answer"], "build", "fresh")

    def _content(self, contender: Contender, state: str) -> None:
        """What is in the store when all was done to it; and after the first state, churning."""
        child = self._workers[contender.name]
        self._compare(contender.name, child("content"), "everything that was written", state)
        if state == "fresh":
            done = child("churn")
            self._compare(contender.name, done["answer"], "churn", state)
            self._results.footprints[contender.name]["churn_seconds"] = done["seconds"][0]

    def _footprints(self, state: str) -> None:
        for contender in self._alive():
            self._attempt(contender, "footprint", state, lambda: self._footprint(contender, state))  # noqa: B023

    def _footprint(self, contender: Contender, state: str) -> None:
        found = self._workers[contender.name]("footprint")
        mine = self._results.footprints[contender.name]
        before = found.pop("memory_before") or mine["memory_before"]  # what was there before it was opened
        found["memory"] = {kind: max(0, held - before[kind]) for kind, held in found["memory"].items()}
        mine[state] = found

    def _compare(self, name: str, answer: str, *what: str) -> None:
        """Hold an answer against that of whoever gave it first."""
        first, expected = self._answers.setdefault(what, (name, answer))
        self._results.compared += 1
        if answer != expected:
            raise _Disagreement(f"{name} and {first} gave different answers to {what[0]}, {' '.join(what[1:])}")
