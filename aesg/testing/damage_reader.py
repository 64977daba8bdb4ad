"""Makes stores to be damaged, and reads damaged ones: jobs of `aesg.testing.forks`.

In processes of their own, because what is looked for are hangs, signals and memory that runs away.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path
from typing import Any, Final

import aesg
from aesg.backends.registry import Mode
from aesg.errors import AESGError
from aesg.testing.crash_writer import make_small
from aesg.testing.forks import say, say_json
from aesg.testing.steps import DIM, compacts_after, digest, inconsistencies, last_step, step

EVERY: Final = 7
"""The stores are compacted once in so many steps."""
_SECONDS: Final = 30
"""A case that takes longer hangs."""


def make(url: str, steps: int, killed: bool) -> None:
    """Go on with a store for so many steps, then close it, or die with it open."""
    make_small()
    store = aesg.open(url, vector_dim=DIM)
    first = last_step(store) + 1
    for k in range(first, first + steps):
        with store.transaction() as transaction:
            step(transaction, k)
        if compacts_after(k, EVERY):
            store.compact()
    say(f"{first + steps - 1}")
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
    store.close()


def read_all(cases: list[tuple[str, Mode]], vector_dim: int | None = None) -> None:
    """Open and read stores completely; says for each what came of it.

    Args:
        cases: URLs and modes.
        vector_dim: Given when one is opened for writing; whoever finds no store then may make one.
    """
    for url, mode in cases:
        faulthandler.dump_traceback_later(_SECONDS, exit=True)
        say_json(_attempt(url, mode, vector_dim if mode == "a" else None) | {"peak_mb": _peak_mb()})
    faulthandler.cancel_dump_traceback_later()


def _attempt(url: str, mode: Mode, dim: int | None) -> dict[str, Any]:
    opened = False
    try:
        with aesg.open(url, mode, vector_dim=dim) as store:
            opened = True
            violations = sorted({violation.kind for violation in store.verify()})
            store.stats()
            return {
                "digest": digest(store),
                "nodes": len(store.nodes),
                "edges": len(store.edges),
                "wrong": inconsistencies(store),
                "violations": violations,
            }
    except AESGError as error:
        return {"error": type(error).__name__, "message": str(error), "opened": opened}
    except Exception as error:
        return {"escaped": repr(error)}


def _peak_mb() -> int:
    """The most memory that this process ever had; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) // 1024 if status.exists() else 0
