"""`aesg verify`: whether a store is sound. Opens for reading only."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from aesg.backends.registry import open
from aesg.cli.common import Json, Url, console, print_json
from aesg.errors import CorruptionError
from aesg.protocols import Violation

if TYPE_CHECKING:
    from rich.console import Console


def verify(url: Url, json: Json = False) -> None:
    """Check a store; exit status 1 when something is wrong with it."""
    found = checked(url)
    if json:
        print_json(found)
    else:
        show_violations(found, console())
    raise typer.Exit(1 if found["violations"] else 0)


def checked(url: str) -> dict[str, Any]:
    """What is wrong with a store; JSON-able. One too damaged to be opened has at least that wrong with it."""
    try:
        with open(url, mode="r") as store:
            url = store.url
            found = store.verify()
            counts = {"nodes": len(store.nodes), "edges": len(store.edges), "events": len(store.events)}
    except CorruptionError as error:
        found = [Violation("cannot-open", url, str(error))]
        counts = {}
    return {"url": url, "checked": counts, "violations": [asdict(violation) for violation in found]}


def show_violations(found: dict[str, Any], console: Console) -> None:
    """Print what `verify` found."""
    from rich.text import Text

    url, violations = found["url"], found["violations"]
    if not violations:
        counts = ", ".join(f"{n:,} {what}" for what, n in found["checked"].items())
        console.print(Text.assemble(("sound: ", "bold green"), url, f" ({counts})"), soft_wrap=True)
        return
    count = "1 violation" if len(violations) == 1 else f"{len(violations):,} violations"
    console.print(Text.assemble((f"{count}: ", "bold red"), url), soft_wrap=True)
    for violation in violations:
        line = Text.assemble((violation["kind"], "yellow"), f"  {violation['place']}  {violation['detail']}")
        console.print(line, soft_wrap=True)
