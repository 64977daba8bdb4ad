"""`aesg migrate`: a store in another place, in any backend, to the last bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aesg.cli.common import Json, Overwrite, bars, console, print_json, show_table

if TYPE_CHECKING:
    from rich.console import Console

    from aesg.migration.migrate import Migrated

Source = Annotated[str, typer.Argument(metavar="SRC", help="The store to copy: a path or a URL. It is only read.")]
Destination = Annotated[str, typer.Argument(metavar="DST", help="Where to: a path or a URL such as lmdb:///path.")]


def migrate(
    source: Source,
    destination: Destination,
    compact: Annotated[bool, typer.Option("--compact", help="Leave out pruned nodes and their edges.")] = False,
    drop_dangling: Annotated[
        bool, typer.Option("--drop-dangling", help="Leave out edges that name a node which is not there.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted migration ended.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Copy a store into any backend, bit for bit; the copy appears when it is whole and was read back.

    Exit status 1 when --dry-run finds that the source would be refused.
    """
    from aesg.migration.migrate import migrate as carry_over

    screen = None if json else console()
    with bars(screen) as progress:
        found = carry_over(
            source,
            destination,
            compact=compact,
            drop_dangling=drop_dangling,
            overwrite=overwrite,
            resume=resume,
            dry_run=dry_run,
            progress=progress,
        )
    if screen is None:
        print_json({**found.as_dict(), "mb_per_second": _speed(found)})
    else:
        show_migrated(found, screen)
    raise typer.Exit(1 if found.violations else 0)


def _speed(found: Migrated) -> float | None:
    """Megabytes a second; None where nothing was copied."""
    return round(found.bytes / found.seconds / 1e6, 1) if found.digest and found.seconds else None


def show_migrated(found: Migrated, screen: Console) -> None:
    """Print what was migrated, or would be."""
    copied = bool(found.digest)
    values = {
        "from": found.source,
        "nodes": found.nodes,
        "edges": found.edges,
        "events": found.events,
        "bytes": found.bytes,
        "resumed": "yes" if found.resumed else None,
        "seconds": f"{found.seconds:.1f}" if copied else None,
        "MB/s": f"{_speed(found):,}" if copied else None,
        "bytes needed, about": None if copied else found.needed_bytes,
        "bytes free": None if copied else found.free_bytes,
        "not carried over": "\n".join(found.not_carried),
        "refused for": "\n".join(found.violations[:20]),
    }
    if len(found.violations) > 20:
        values["refused for"] = f"{values['refused for']}\nand {len(found.violations) - 20:,} more, see aesg verify"
    show_table(found.destination if copied else f"would make {found.destination}", values, screen)
    if copied:
        screen.print(found.digest, soft_wrap=True)  # a line of its own: it is as long as a terminal is wide
