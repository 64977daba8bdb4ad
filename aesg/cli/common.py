"""What the commands share: the options that most have, and how they print. Heavy imports are made inside."""

from __future__ import annotations

import json as jsons
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from aesg.protocols import Progress

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Url = Annotated[str, typer.Argument(metavar="URL", help="A path, or a URL such as memmap:///path/to/store.")]


def console(*, stderr: bool = False) -> Console:
    """Where to print for people: colours on a terminal only, and not with NO_COLOR."""
    from rich.console import Console

    return Console(highlight=False, stderr=stderr)


def print_json(found: Any) -> None:
    """Print for machines."""
    typer.echo(jsons.dumps(found, indent=2, ensure_ascii=False, default=str))


@contextmanager
def bars(screen: Console | None) -> Iterator[Progress | None]:
    """A progress bar, with its rate and the time left, for each thing that long work does; none without a screen."""
    if screen is None:
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
    with Bars(*columns, console=screen) as shown:

        def tell(doing: str, done: int, of: int) -> None:
            if doing not in tasks:
                tasks[doing] = shown.add_task(doing, total=of)
            shown.update(tasks[doing], completed=done, total=of)

        yield tell
