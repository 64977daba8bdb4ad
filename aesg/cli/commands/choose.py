"""`aesg choose`: which backend to take, why, and what would make it another one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aesg.cli.common import Json, console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from aesg.bench import Choice


def choose(
    nodes: Annotated[int, typer.Option(help="Nodes that it will hold.")] = 50_000,
    edges: Annotated[int | None, typer.Option(help="Edges that it will hold.  [default: ten a node]")] = None,
    dim: Annotated[int, typer.Option(help="Length of the vectors.")] = 128,
    writes: Annotated[float, typer.Option(metavar="PER_S", help="Commits a second.")] = 1,
    reads: Annotated[float, typer.Option(metavar="PER_S", help="Queries a second, in the writing process.")] = 10,
    processes: Annotated[int, typer.Option(help="That have it open at a time.")] = 1,
    writers: Annotated[int, typer.Option(help="Of these, how many write.")] = 1,
    durability: Annotated[
        str, typer.Option(metavar="LEVEL", help="What a commit survives: none, process_crash or power_loss.")
    ] = "process_crash",
    readers: Annotated[
        str, typer.Option(metavar="VIEW", help="What other processes see: latest, or fixed until they refresh.")
    ] = "latest",
    integrity: Annotated[
        str, typer.Option(metavar="LEVEL", help="What is noticed of damage: structure or checksums.")
    ] = "structure",
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="A commit stays readable while others follow.")
    ] = False,
    remote: Annotated[bool, typer.Option("--remote", help="It lies on another machine.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Measure here (about a minute).")] = False,
    figures: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take the figures of `aesg bench --json FILE`.")
    ] = None,
    directory: Annotated[Path | None, typer.Option(help="Where --measure makes stores.")] = None,
    json: Json = False,
) -> None:
    """Recommend a backend; exit status 1 when none does what is asked.

    What backends promise decides first, what was measured second: the figures that are shipped, those of a file, or
    with --measure this machine's.
    """
    from aesg.bench import Demands, choosing
    from aesg.cli.commands.bench import shown, stoppable

    demands = Demands.of(
        nodes=nodes,
        edges=10 * nodes if edges is None else edges,
        dim=dim,
        writes=writes,
        reads=reads,
        processes=processes,
        writers=writers,
        durability=durability,
        readers=readers,
        integrity=integrity,
        snapshots=snapshots,
        remote=remote,
    )
    found = choosing.read_figures(figures) if figures else None
    if measure:
        with stoppable(), shown(console(stderr=True) if sys.stderr.isatty() and not json else None) as watch:
            found = choosing.measure(demands, directory=directory, watch=watch)
    choice = choosing.choose(demands, found)
    if json:
        print_json(choice.as_dict())
    else:
        show_choice(choice, console())
    raise typer.Exit(0 if choice.recommended else 1)


def show_choice(choice: Choice, screen: Console) -> None:
    """Print the answer, its reasons, what would change it, and how each backend stands."""
    from rich.table import Table
    from rich.text import Text

    from aesg.bench import words

    best = choice.recommended
    if best is None:
        screen.print(Text("nothing that is installed fits", "bold red"))
    else:
        screen.print(Text.assemble(("take ", "bold"), (best.url, "bold green")), soft_wrap=True)
        needs = f"about {words.size(best.disk)} on disk, " if best.disk else ""
        screen.print(Text(f"{needs}up to {words.size(best.memory)} of memory a process", "dim"))
    for reason in choice.reasons:
        screen.print(Text(f"  {reason}"), soft_wrap=True)
    if choice.changes:
        screen.print(Text("\nIt would be another", "bold"))
        for change in choice.changes:
            screen.print(Text(f"  {change}"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "fits", "commit", "query", "busy", "on disk"):
        table.add_column(heading, no_wrap=True)
    for each in choice.candidates:
        busy = words.NOTHING if each.busy is None else f"{each.busy:,.1%}"
        fits = Text("yes", "green") if each.fits else Text("no", "red")
        times = words.seconds(each.commit), words.seconds(each.retrieve)
        table.add_row(Text(words.label(each.name)), fits, *times, busy, words.size(each.disk))
    screen.print()
    screen.print(table)
    for each in choice.candidates:
        if not each.fits:
            why = f"{words.label(each.name)} does not fit: {'; '.join(each.why_not)}"
            screen.print(Text(f"  {why}", "dim"), soft_wrap=True)
    screen.print(Text(f"\n{choice.measured}", "dim"), soft_wrap=True)
