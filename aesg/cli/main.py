"""`aesg`: the commands, and what becomes of errors."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from dataclasses import dataclass
from typing import Annotated

import typer

from aesg import __version__
from aesg.cli import completing
from aesg.cli.commands.backends import backends
from aesg.cli.commands.bench import bench
from aesg.cli.commands.choose import choose
from aesg.cli.commands.compact import compact
from aesg.cli.commands.completion import completion
from aesg.cli.commands.conformance import conformance
from aesg.cli.commands.demo import demo
from aesg.cli.commands.digest import digest
from aesg.cli.commands.export import export
from aesg.cli.commands.import_ import import_
from aesg.cli.commands.index import index
from aesg.cli.commands.info import info
from aesg.cli.commands.log import log
from aesg.cli.commands.migrate import migrate
from aesg.cli.commands.repair import repair
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

    Exit status: 0 all well; 1 the answer is no (`verify` found violations, two digests differ, …, as each command's
    help says); 2 an error, told in one line on stderr, with --json as one JSON object; 130 interrupted by Ctrl-C; 141
    nobody reads what is printed.
    """
    command = typer.main.get_command(app)
    if completing.VARIABLE in os.environ:
        sys.stdout.write(completing.answer(command))
        return
    try:
        status = command.main(prog_name="aesg", standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        status = _told(error)
    sys.exit(status if isinstance(status, int) else 0)


def _told(error: BaseException) -> int:
    """Tell of an error, if it is one; the exit status."""
    if _pipe_broke(error):
        # What is still in the buffer has nowhere to go; without this, Python would complain when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return 130
    if _settings.debug:
        traceback.print_exception(error)
        return 2
    kind, what = type(error).__name__, str(error)
    usage = getattr(error, "format_message", None)  # typer's own errors
    if usage is not None:
        context = getattr(error, "ctx", None)
        if kind == "NoArgsIsHelpError" and context is not None:
            typer.echo(context.get_help(), err=True)
            return 2
        kind = "UsageError"
        what = f"{usage().rstrip('.')} ({context.command_path if context else 'aesg'} --help shows how)"
    elif not isinstance(error, (AESGError, OSError)):
        what = f"unexpected {kind}: {what} (aesg --debug … shows where)"
    what = " ".join(what.split())
    as_json = "--json" in sys.argv[1:]
    sys.stderr.write(json.dumps({"error": what, "kind": kind}) + "\n" if as_json else f"aesg: {what}\n")
    return 2


def _pipe_broke(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised for, is that the reader of a pipe has gone (typer and rich exit then)."""
    while error is not None:
        if isinstance(error, BrokenPipeError):
            return True
        error = error.__cause__ or error.__context__
    return False


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


_commands = (
    backends,
    bench,
    choose,
    compact,
    completion,
    conformance,
    demo,
    digest,
    export,
    import_,
    index,
    info,
    log,
    migrate,
    repair,
    verify,
)
for _command in _commands:
    _first = (_command.__doc__ or "").strip().partition("\n")[0]
    app.command(_command.__name__.rstrip("_"), short_help=re.split("[;:.]", _first)[0] + ".")(_command)
