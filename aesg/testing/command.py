"""The suite on a URL, for the two commands that run it: `python -m aesg.testing` and `aesg conformance`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from aesg.testing.report import Report
from aesg.testing.runner import run
from aesg.testing.target import Target


def conduct(url: str, *, choose: str = "", long: bool = False, imports: Sequence[str] = ()) -> Report:
    """Run the suite on a URL; on a terminal, stderr says how far it is."""
    ended: dict[str, None] = {}

    def done(name: str) -> None:
        ended[name] = None
        sys.stderr.write(f"\r\x1b[K{len(ended)} clauses, {name}")
        sys.stderr.flush()

    extra: dict[str, Any] = {"done": done} if sys.stderr.isatty() else {}
    report = run(Target(url, tuple(imports)), choose=choose, long=long, **extra)
    if extra:
        sys.stderr.write("\r\x1b[K")
    return report
