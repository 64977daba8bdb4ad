"""`aesg conformance`: the conformance suite on a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aesg.errors import UnsupportedError

if TYPE_CHECKING:
    from rich.console import Console

    from aesg.testing import Report


def conformance(url: str, choose: str, long: bool, plugins: Sequence[str]) -> Report:
    """Run the suite on a URL; see `aesg.testing.run`.

    Raises:
        UnsupportedError: What the suite needs is not installed.
    """
    try:
        from aesg.testing.command import conduct
    except ImportError as error:
        raise UnsupportedError(str(error)) from error
    return conduct(url, choose=choose, long=long, imports=plugins)


def show_report(report: Report, console: Console) -> None:
    """Print what became of the clauses."""
    from rich.text import Text

    styles = {"Conformance": "bold cyan", "FAILED": "bold red", "SKIPPED": "yellow"}
    for line in report.lines():
        first = line.partition(" ")[0]
        console.print(Text(line, styles.get(first, "")), soft_wrap=True)
