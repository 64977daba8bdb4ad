"""`aesg`: the commands, and what becomes of errors."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from typing import Annotated

import typer

from aesg import __version__
from aesg.cli.commands.conformance import conformance
from aesg.cli.commands.demo import demo
from aesg.cli.commands.index import index
from aesg.cli.commands.info import info
from aesg.cli.commands.verify import verify
from aesg.errors import AESGError

app = typer.Typer(
    name="aesg",
    help="A persistent, self-organising external memory for PyTorch models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # an error is one line, see `main`
    rich_markup_mode=None,  # rich takes longer to import than all of this
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass
class _Settings:
    """Options that stand before the command."""

    debug: bool = False


_settings = _Settings()


def main() -> None:
    """Run the command line.

    Exit status: 0 all well; 1 `verify` found violations, `conformance` a clause that is broken, `index --check` an
    index that finds too little, or the demo's memory came back changed; 2 an error, told in one line on stderr.
    """
    try:
        app()
    except Exception as error:
        if _settings.debug:
            traceback.print_exc()
            sys.exit(2)
        expected = isinstance(error, (AESGError, OSError))
        what = str(error) if expected else f"unexpected {type(error).__name__}: {error}"
        hint = "" if expected else " (aesg --debug … shows where)"
        sys.stderr.write(f"aesg: {' '.join(what.split())}{hint}\n")
        sys.exit(2)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"aesg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    _settings.debug = debug


for _command in (conformance, demo, index, info, verify):
    app.command()(_command)
