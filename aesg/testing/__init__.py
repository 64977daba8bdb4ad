"""The conformance suite: what every backend is held to, ours or a stranger's. Needs pytest and hypothesis.

An author writes one class with one fixture, and pytest runs the suite on the backend:

    from aesg.testing import Conformance, Target

    class TestSqlite(Conformance):
        @pytest.fixture
        def target(self):
            return Target("sqlite:")

or runs `python -m aesg.testing URL`, and gets a report by clause and capability.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from aesg.testing.clauses import Clause, clause, clauses_of, is_long
from aesg.testing.report import Report
from aesg.testing.runner import run
from aesg.testing.target import Target

if TYPE_CHECKING:
    from aesg.testing.suite import Conformance as Conformance


for _package in ("pytest", "hypothesis"):
    if find_spec(_package) is None:
        raise ImportError(f'aesg.testing needs {_package}, which is not installed: pip install "aesg[testing]"')


def __getattr__(name: str) -> Any:
    # Not before it is needed: children of the suite import this package too, and pytest takes its time. And not before
    # pytest has been told, which rewrites the clauses' asserts as it does those of tests.
    if name != "Conformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    from aesg.testing.clauses import rewritable

    pytest.register_assert_rewrite(*rewritable())
    from aesg.testing.suite import Conformance

    globals()["Conformance"] = Conformance
    return Conformance


__all__ = ["Clause", "Conformance", "Report", "Target", "clause", "clauses_of", "is_long", "run"]
