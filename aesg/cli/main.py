"""`aesg`: the commands, their options, and what becomes of errors."""

from __future__ import annotations

import json as jsons
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aesg import __version__
from aesg.errors import AESGError, InvalidInputError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="aesg",
    help="A persistent, self-organising external memory for PyTorch models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # an error is one line, see `main`
    rich_markup_mode=None,  # rich takes longer to import than all of this
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Url = Annotated[str, typer.Argument(metavar="URL", help="A path, or a URL such as memmap:///path/to/store.")]


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


@app.command()
def demo(
    text: Annotated[
        Path | None,
        typer.Option(help="A folder of your own .txt, .md, .rst and .py files, instead of the standard library."),
    ] = None,
    ask: Annotated[list[str] | None, typer.Option(help="A question of your own; may be given several times.")] = None,
    directory: Annotated[
        Path | None, typer.Option(help="An empty or new folder for the memory.  [default: a new temporary one]")
    ] = None,
    json: Json = False,
) -> None:
    """Build a memory from real text, ask it, consolidate, close and reopen it."""
    from functools import partial

    from aesg.cli.demo import folder, show, stdlib

    gather = stdlib.corpus if text is None else partial(folder.corpus, text)
    result = show.perform(gather, directory, ask or [], None if json else _console())
    if json:
        _print_json(result)
    raise typer.Exit(0 if result["unchanged"] else 1)


@app.command()
def info(url: Url, json: Json = False) -> None:
    """Show what a store holds and promises."""
    from aesg.cli import stores

    found = stores.info(url)
    if json:
        _print_json(found)
    else:
        stores.show_info(found, _console())


@app.command()
def verify(url: Url, json: Json = False) -> None:
    """Check a store; exit status 1 when something is wrong with it."""
    from aesg.cli import stores

    found = stores.verify(url)
    if json:
        _print_json(found)
    else:
        stores.show_violations(found, _console())
    raise typer.Exit(1 if found["violations"] else 0)


@app.command()
def index(
    url: Url,
    build: Annotated[bool, typer.Option("--build", help="Build it anew.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare it with exact scans.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Delete it.")] = False,
    json: Json = False,
) -> None:
    """Show, build, check or drop the seed index of a store; exit status 1 when the check finds too little."""
    from aesg.cli import index as indexes

    if build + check + drop > 1:
        raise InvalidInputError("aesg index does one thing at a time: --build, --check or --drop")
    console = None if json else _console()
    if build:
        found = indexes.build(url, console)
    elif check:
        found = indexes.check(url, console)
    else:
        found = indexes.drop(url) if drop else indexes.show(url)
    if console is None:
        _print_json(found)
    else:
        indexes.show_found(found, console)
    raise typer.Exit(0 if found.get("good", True) else 1)


@app.command()
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
    from aesg.cli import conformance as suite

    report = suite.conformance(url, choose, long, plugin or [])
    if json:
        _print_json(report.as_dict())
    else:
        suite.show_report(report, _console())
    raise typer.Exit(1 if report.failed else 0)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)  # colours on a terminal only, and not with NO_COLOR


def _print_json(found: dict[str, Any]) -> None:
    typer.echo(jsons.dumps(found, indent=2, ensure_ascii=False, default=str))
