"""`aesg repair`: what is sound of a damaged store, in a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aesg.cli.common import Json, bars, console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from aesg.migration.repair import Repaired

_SHOWN = 20


def repair(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The damaged store; it is not changed.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="The new store, of any backend.")],
    vector_dim: Annotated[
        int | None, typer.Option(metavar="D", min=1, help="Length of the vectors, if the store no longer tells.")
    ] = None,
    json: Json = False,
) -> None:
    """Salvage what is sound of a damaged store into a new one; exit status 1 when something was lost."""
    from aesg.migration.repair import repair as repair_store

    with bars(None if json else console(stderr=True)) as progress:
        done = repair_store(source, destination, vector_dim=vector_dim, progress=progress)
    if json:
        print_json(done.as_dict())
    else:
        _show(done, console())
    raise typer.Exit(0 if done.whole else 1)


def _show(done: Repaired, screen: Console) -> None:
    from rich.text import Text

    title = ("salvaged all of it: ", "bold green") if done.whole else ("salvaged: ", "bold yellow")
    screen.print(Text.assemble(title, done.source, " → ", done.destination), soft_wrap=True)
    for kind in ("nodes", "edges", "events"):
        lost = done.lost[kind]
        screen.print(Text(f"{kind:<8}{getattr(done, kind):>12,}" + (f"   {lost:,} lost" if lost else "")))
    for why, count in done.reasons.items():
        screen.print(Text(f"{count:>20,}   {why}"), soft_wrap=True)
    for name, count in done.reset.items():
        screen.print(Text(f"{count:>20,}   {name} lost, the starting value in its place"), soft_wrap=True)
    for loss in done.places[:_SHOWN]:
        screen.print(Text.assemble((loss.part, "yellow"), f"  {loss.place}  {loss.detail}"), soft_wrap=True)
    more = len(done.places) - _SHOWN + done.further
    if more > 0:
        screen.print(f"and {more:,} more places (--json lists {len(done.places):,})")
