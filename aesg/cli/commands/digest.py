"""`aesg digest`: what is in a store, in 32 bytes; or whether two stores hold the same."""

from __future__ import annotations

from typing import Annotated

import typer

from aesg.cli.common import Json, Url, bars, console, print_json

Other = Annotated[str | None, typer.Argument(metavar="[OTHER]", help="A second store, to compare the first one with.")]


def digest(url: Url, other: Other = None, json: Json = False) -> None:
    """Print the content digest of a store; of two, exit status 1 when they differ."""
    from aesg.migration.digest import digest as content_digest

    shown = console(stderr=True)  # what is printed is for scripts
    screen = None if json or not shown.is_terminal else shown
    found = {}
    for store in dict.fromkeys([url] if other is None else [url, other]):
        with bars(screen) as progress:
            found[store] = content_digest(store, progress)
    same = len(set(found.values())) == 1
    if json:
        print_json({"url": url, "digest": found[url]} if other is None else {"digests": found, "same": same})
    else:
        for store, value in found.items():
            typer.echo(value if other is None else f"{value}  {store}")
    raise typer.Exit(0 if same else 1)
