"""What a run of the suite adds to pytest: the target as a fixture, clauses' names for -k, results by clause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from aesg.testing.base import NOT_DECLARED
from aesg.testing.clauses import Clause
from aesg.testing.report import Outcome, Result
from aesg.testing.target import Target

TARGET: Final = pytest.StashKey[Target]()


class Collector:
    """A plugin that keeps what becomes of the clauses.

    Attributes:
        results: By clause.
    """

    def __init__(self, target: Target, done: Callable[[str], None]) -> None:
        self.results: dict[str, Result] = {}
        self._target = target
        self._done = done
        self._clauses: dict[str, Clause] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        """Put the target where the fixture of `collected` finds it."""
        config.stash[TARGET] = self._target

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Have -k know a clause by its name."""
        its = getattr(getattr(item, "function", None), "clause", None)
        if isinstance(its, Clause):
            item.extra_keyword_matches.add(its.name)
            self._clauses[item.nodeid] = its

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in how one phase of one test went."""
        its = self._clauses.get(report.nodeid)
        if its is None:
            return
        result = self.results.setdefault(its.name, Result(its, "skipped"))
        result.seconds += report.duration
        outcome, reason = _outcome(report)
        if outcome is not None:
            case = report.nodeid.partition("[")[2].removesuffix("]")
            result.add(outcome, f"[{case}] {reason}" if case and reason else reason)
        if report.when == "teardown":
            result.details.update(report.user_properties)
            self._done(its.name)


def _outcome(report: pytest.TestReport) -> tuple[Outcome | None, str]:
    """What one phase of a test says; None when it is another phase's to say."""
    if report.failed:
        return "failed", _paragraph(report)
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if reason.startswith(NOT_DECLARED):
            return "not declared", reason.removeprefix(NOT_DECLARED)
        return "skipped", reason
    return ("passed", "") if report.when == "call" else (None, "")


def _paragraph(report: pytest.TestReport) -> str:
    """The message of the exception and where it was raised, in one line."""
    crash: Any = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return " ".join(str(report.longrepr).split())[:1000]
    message = " ".join(str(crash.message).split())
    phase = "" if report.when == "call" else f" ({report.when})"
    return f"{message[:1000]} ({Path(crash.path).name}:{crash.lineno}){phase}"
