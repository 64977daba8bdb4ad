"""`aesg compact`: pruned nodes and weak edges dropped for good."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aesg.cli.common import Json, Url, console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from aesg.migration.compacting import Compacted


def compact(
    url: Url,
    min_confidence: Annotated[
        float | None,
        typer.Option(metavar="X", help="Drop edges of less confidence; default: the store's own prune threshold."),
    ] = None,
    row_map: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npy", help="Save each old row's new row there, -1 where it was dropped."),
    ] = None,
    json: Json = False,
) -> None:
    """Drop pruned nodes, their edges and weak edges, and give their room back to the file system."""
    from contextlib import nullcontext

    import numpy as np

    from aesg.migration.compacting import compact as compact_store

    screen = console(stderr=True)
    with nullcontext() if json else screen.status(f"compacting {url}"):
        if row_map is None:
            done = compact_store(url, min_confidence=min_confidence)
        else:
            new = row_map.with_name(f"{row_map.name}.new")
            try:
                with new.open("wb") as file:  # before the compaction: there is no second chance to get the map
                    done = compact_store(url, min_confidence=min_confidence)
                    np.save(file, done.row_map)
                os.replace(new, row_map)
            finally:
                new.unlink(missing_ok=True)
    if json:
        print_json(done.as_dict() | {"row_map": None if row_map is None else str(row_map)})
    else:
        _show(done, console())


def _show(done: Compacted, screen: Console) -> None:
    from rich.text import Text

    weak = "" if done.min_confidence is None else f", edges of confidence below {done.min_confidence:g} among them"
    screen.print(Text.assemble(("compacted: ", "bold green"), done.url), soft_wrap=True)
    screen.print(f"dropped   {done.dropped_nodes:,} nodes, {done.dropped_edges:,} edges{weak}", soft_wrap=True)
    screen.print(f"left      {done.nodes:,} nodes, {done.edges:,} edges")
    screen.print(f"on disk   {done.bytes_before:,} bytes before, {done.bytes_after:,} now")
    if done.index_dropped:
        screen.print("index     dropped; it is built anew when the memory is next opened")
    if done.not_reclaimed:
        text = Text.assemble(("not given back: ", "bold yellow"), done.not_reclaimed, "; compact it again later")
        screen.print(text, soft_wrap=True)
