"""`aesg verify`: whether a store is sound. Opens for reading only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aesg.cli.common import Json, Url, bars, console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from aesg.migration.checking import Checked


def verify(
    url: Url,
    deep: Annotated[
        bool, typer.Option("--deep", help="Every checksum, both orders of the edges, free space, the seed index.")
    ] = False,
    json: Json = False,
) -> None:
    """Check a store; exit status 1 when something is wrong with it."""
    from aesg.migration.checking import check

    with bars(None if json else console(stderr=True)) as progress:
        found = check(url, deep=deep, progress=progress)
    if json:
        print_json(found.as_dict())
    else:
        show_violations(found, console())
    raise typer.Exit(1 if found.violations else 0)


def show_violations(found: Checked, screen: Console) -> None:
    """Print what was found."""
    from rich.text import Text

    if not found.violations:
        counts = ", ".join(f"{n:,} {what}" for what, n in found.counts.items())
        how = "sound, in depth: " if found.deep else "sound: "
        screen.print(Text.assemble((how, "bold green"), found.url, f" ({counts})"), soft_wrap=True)
        return
    count = "1 violation" if len(found.violations) == 1 else f"{len(found.violations):,} violations"
    screen.print(Text.assemble((f"{count}: ", "bold red"), found.url), soft_wrap=True)
    for violation in found.violations:
        line = Text.assemble((violation.kind, "yellow"), f"  {violation.place}  {violation.detail}")
        screen.print(line, soft_wrap=True)
