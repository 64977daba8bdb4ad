"""`aesg index`: the seed index of a store, to look at, build, check and drop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from aesg.backends.registry import index_of, open
from aesg.cli.common import Json, Url, bars, console, print_json
from aesg.engine.index.owner import LEAST_RECALL, SeedIndex
from aesg.engine.index.sidecar import Sidecar
from aesg.errors import InvalidInputError, NotFoundError, UnsupportedError
from aesg.protocols import GraphStore

if TYPE_CHECKING:
    from rich.console import Console


def index(
    url: Url,
    build: Annotated[bool, typer.Option("--build", help="Build it anew.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare it with exact scans.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Delete it.")] = False,
    json: Json = False,
) -> None:
    """Show, build, check or drop the seed index of a store; exit status 1 when the check finds too little."""
    if build + check + drop > 1:
        raise InvalidInputError("aesg index does one thing at a time: --build, --check or --drop")
    screen = None if json else console()
    if build:
        found = build_index(url, screen)
    elif check:
        found = check_index(url, screen)
    else:
        found = drop_index(url) if drop else show_index(url)
    if screen is None:
        print_json(found)
    else:
        show_found(found, screen)
    raise typer.Exit(0 if found.get("good", True) else 1)


def show_index(url: str) -> dict[str, Any]:
    """What index files lie beside a store; JSON-able."""
    with open(url, mode="r") as store:
        kind, folder = index_of(store)
        found: dict[str, Any] = {"url": store.url, "index": kind, "nodes": len(store.nodes), "folder": None}
        if folder is None:
            return found
        sidecar = Sidecar(folder, store.uuid, store.vector_dim)
        header = sidecar.header()
        found |= {"folder": str(folder), "built": header is not None}
        if header is not None:
            found |= {
                "rows": header.rows,
                "up_to_date": header.generation == store.generation,
                "recall": header.recall,
                "expansion": header.expansion,
                "bytes_on_disk": sidecar.nbytes,
            }
        return found


def build_index(url: str, console: Console | None) -> dict[str, Any]:
    """Build the index anew and save it; what it is then, JSON-able. Progress is shown on a console."""
    with open(url, mode="a") as store:
        index = _forced(store)
        try:
            with bars(console) as progress:
                index.rebuild(progress)
            found = index.stats()
        finally:
            index.close()
        return {"url": store.url, **found}


def check_index(url: str, console: Console | None) -> dict[str, Any]:
    """Compare the index with exact scans; JSON-able, "good" says whether it finds enough."""
    with open(url, mode="r") as store:
        index = _forced(store)
        try:
            folder = index_of(store)[1]
            if folder is None or Sidecar(folder, store.uuid, store.vector_dim).header() is None:
                raise NotFoundError(f"{store.url} has no seed index; build one with --build")
            with bars(console) as progress:
                index.bring_up(progress)
                found = index.check()
            stats = index.stats()
        finally:
            index.close()
        return {
            "url": store.url,
            "recall": found.recall,
            "queries": found.queries,
            "least": LEAST_RECALL,
            "good": found.recall >= LEAST_RECALL,
            "stats": stats,
        }


def drop_index(url: str) -> dict[str, Any]:
    """Delete the index files; whether there were any, JSON-able."""
    with open(url, mode="a") as store:
        index = _forced(store)
        try:
            return {"url": store.url, "dropped": index.drop()}
        finally:
            index.close()


def show_found(found: dict[str, Any], console: Console) -> None:
    """Print what one of the above found."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(found["url"], "bold cyan"), soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in {**found, **found.get("stats", {})}.items():
        if name not in ("url", "stats") and value is not None:
            plain = isinstance(value, bool) or not isinstance(value, int)
            table.add_row(Text(name), Text(str(value) if plain else f"{value:,}"))
    console.print(table)


def _forced(store: GraphStore) -> SeedIndex:
    """The store's index, however large the store is."""
    folder = index_of(store)[1]
    if folder is None:
        raise UnsupportedError(f"{store.url}: there is no local place beside this store to keep an index")
    return SeedIndex(store, "hnsw", folder)
