"""What the commands share: the options that most have, and how they print. Heavy imports are made inside."""

from __future__ import annotations

import json as jsons
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from aesg.protocols import Progress

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Url = Annotated[str, typer.Argument(metavar="URL", help="A path, or a URL such as memmap:///path/to/store.")]
File = Annotated[str, typer.Argument(metavar="FILE", help="A file; for Parquet and Arrow a folder of files.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def console(*, stderr: bool = False) -> Console:
    """Where to print for people: colours on a terminal only, and not with NO_COLOR."""
    from rich.console import Console

    return Console(highlight=False, stderr=stderr)


def coloured() -> bool:
    """Whether `console()` would colour, for what is printed without it because it may be long."""
    screen = console()
    return screen.is_terminal and not screen.no_color


def print_json(found: Any) -> None:
    """Print for machines."""
    typer.echo(jsons.dumps(found, indent=2, ensure_ascii=False, default=str))


def show_table(title: str, values: Mapping[str, Any], screen: Console) -> None:
    """Print a title, and below it what has which value; what is None or empty is left out."""
    from rich.table import Table
    from rich.text import Text

    screen.print(Text(title, "bold cyan"), soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in values.items():
        if value is not None and value != "":
            plain = isinstance(value, bool) or not isinstance(value, int)
            table.add_row(Text(name), Text(str(value) if plain else f"{value:,}"))
    screen.print(table)


@contextmanager
def bars(screen: Console | None) -> Iterator[Progress | None]:
    """A progress bar, with its rate and the time left, for each thing that long work does; none without a screen.

    They are shown on stderr, and only where that is a terminal: what is piped or logged is the answer.
    """
    errors = console(stderr=True)
    if screen is None or not errors.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f}/s")

    tasks: dict[str, Any] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn()
    shown = Bars(*columns, console=errors, redirect_stdout=False, redirect_stderr=False)

    def tell(doing: str, done: int, of: int) -> None:
        if not tasks:
            shown.start()  # not before: work that ends at once, or in an error, shows no empty bars
        if doing not in tasks:
            tasks[doing] = shown.add_task(doing, total=of)
        shown.update(tasks[doing], completed=done, total=of)

    try:
        yield tell
    finally:
        if tasks:
            shown.stop()
