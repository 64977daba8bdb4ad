"""`aesg import`: a new store from files that AESG or somebody else wrote."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from aesg.cli.common import File, Json, Overwrite, Url, bars, console, print_json, show_table


def import_(
    file: File,
    url: Url,
    edges: Annotated[
        str | None, typer.Option(metavar="FILE", help="The file of edges, when FILE is one of nodes.")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make a store of an export, or of a table of nodes and one of edges."""
    from aesg.exchange.importing import import_file

    screen = None if json else console()
    with bars(screen) as progress:
        done = import_file(file, url, edges=edges, overwrite=overwrite, progress=progress)
    found = asdict(done)
    if screen is None:
        print_json(found)
        return
    digest = found.pop("digest")
    show_table(found.pop("destination"), {**found, "seconds": round(done.seconds, 2)}, screen)
    screen.print(digest, soft_wrap=True)  # a line of its own: it is as long as a terminal is wide
