"""`aesg export`: a store into files that other programs read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from aesg.cli.common import File, Json, Overwrite, Url, bars, console, print_json, show_table


def export(
    url: Url,
    file: File,
    format: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="parquet, arrow, npz, graphml or gml.  [default: what FILE ends with]"),
    ] = None,
    vectors: Annotated[bool, typer.Option("--vectors", help="Write vectors into GraphML and GML too.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a store as Parquet, Arrow, NPZ, GraphML or GML."""
    from aesg.exchange.export import export as write

    screen = None if json else console()
    with bars(screen) as progress:
        done = write(url, file, format=format, vectors=vectors, overwrite=overwrite, progress=progress)
    found = asdict(done)
    if screen is None:
        print_json(found)
        return
    digest = found.pop("digest")
    show_table(found.pop("file"), {**found, "seconds": round(done.seconds, 2)}, screen)
    screen.print(digest, soft_wrap=True)  # a line of its own: it is as long as a terminal is wide
