"""`aesg conformance`: the conformance suite on a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from aesg.cli.common import Json, console, print_json
from aesg.errors import UnsupportedError

if TYPE_CHECKING:
    from rich.console import Console

    from aesg.testing import Report


def conformance(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="Backend and options, e.g. lmdb:?sync=false; a path is where stores are made."
        ),
    ],
    choose: Annotated[str, typer.Option("-k", metavar="EXPRESSION", help='E.g. "nodes and not refusals".')] = "",
    long: Annotated[bool, typer.Option("--long", help="The long forms of campaigns and random sequences.")] = False,
    plugin: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="module, or module:BACKEND, of a backend not installed.")
    ] = None,
    json: Json = False,
) -> None:
    """Hold a backend to the contract; exit status 1 when it breaks a clause."""
    report = run(url, choose, long, plugin or [])
    if json:
        print_json(report.as_dict())
    else:
        show_report(report, console())
    raise typer.Exit(1 if report.failed else 0)


def run(url: str, choose: str, long: bool, plugins: Sequence[str]) -> Report:
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
