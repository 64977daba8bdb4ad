"""The suite on a URL, for the two commands that run it: `python -m aesg.testing` and `aesg conformance`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aesg.testing.report import Report
from aesg.testing.runner import run
from aesg.testing.target import Target


def conduct(url: str, *, choose: str = "", long: bool = False, imports: Sequence[str] = ()) -> Report:
    """Run the suite on a URL; on a terminal, stderr says how far it is."""
    screen = sys.stderr  # `run` keeps what pytest has to say to itself
    ended: set[str] = set()

    def done(name: str) -> None:
        if screen.isatty():
            ended.add(name)
            screen.write(f"\r\x1b[K{len(ended)} clauses, {name}")
            screen.flush()

    report = run(Target(url, tuple(imports)), choose=choose, long=long, done=done)
    if ended:
        screen.write("\r\x1b[K")
    return report
