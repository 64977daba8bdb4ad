"""`aesg demo`: a memory of real text, built, asked, consolidated, reopened."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aesg.cli.common import Json, console, print_json


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
    result = show.perform(gather, directory, ask or [], None if json else console())
    if json:
        print_json(result)
    raise typer.Exit(0 if result["unchanged"] else 1)
