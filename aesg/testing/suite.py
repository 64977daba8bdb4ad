"""The suite: all groups of clauses in one class."""

from __future__ import annotations

from aesg.testing.capabilities import CapabilityClauses
from aesg.testing.capacity import CapacityClauses
from aesg.testing.crash import CrashClauses
from aesg.testing.damage import DamageClauses
from aesg.testing.edges import EdgeClauses, LogClauses
from aesg.testing.engine import EngineClauses
from aesg.testing.laws import LawClauses
from aesg.testing.lifecycle import CompactClauses, CopyClauses, ReopeningClauses, SnapshotClauses, StoreClauses
from aesg.testing.machine import MachineClauses
from aesg.testing.nodes import NodeClauses
from aesg.testing.processes import ForkClauses, LockClauses, ReaderClauses
from aesg.testing.refusals import RefusalClauses
from aesg.testing.trace import TraceClauses
from aesg.testing.transactions import ThreadClauses, TransactionClauses


class Conformance(
    StoreClauses,
    NodeClauses,
    EdgeClauses,
    LogClauses,
    RefusalClauses,
    LawClauses,
    MachineClauses,
    TransactionClauses,
    ThreadClauses,
    SnapshotClauses,
    CopyClauses,
    CompactClauses,
    ReopeningClauses,
    LockClauses,
    ReaderClauses,
    ForkClauses,
    CapabilityClauses,
    EngineClauses,
    TraceClauses,
    CrashClauses,
    DamageClauses,
    CapacityClauses,
):
    """What every backend is held to. Subclass it and give it the fixture `target`.

        class TestSqlite(Conformance):
            @pytest.fixture
            def target(self):
                return Target("sqlite:")

    A clause is a test method: one can be left out, with the reason, by overriding it.
    """
