"""`aesg bench`: the same job on several backends, in turns, beside what the machine can do."""

from __future__ import annotations

import json as jsons
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aesg.cli.common import console, print_json
from aesg.errors import CapacityError, InvalidInputError, StorageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from aesg.bench import Contender, Plan, Results

BACKENDS: Final = "memmap,lmdb,zarr"
INTERRUPTED: Final = 130
"""Exit status after Ctrl-C, as shells have it."""


def bench(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL]...", help="Backends with options, e.g. lmdb:?sync=false; a path is where stores are made."
        ),
    ] = None,
    backends: Annotated[
        str | None, typer.Option(metavar="NAMES", help=f"Backends with their usual options.  [default: {BACKENDS}]")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Nodes of each store.")] = 50_000,
    edges: Annotated[int | None, typer.Option(help="Edges of each store.  [default: ten a node]")] = None,
    dim: Annotated[int, typer.Option(help="Length of the vectors.")] = 128,
    workload: Annotated[
        str, typer.Option(metavar="NAMES", help="Of ingest,open,gather,hops,retrieve,commit,learn,consolidate.")
    ] = "",
    durability: Annotated[
        str, typer.Option(metavar="LEVEL", help="process_crash or power_loss.  [default: the highest that all give]")
    ] = "",
    unequal: Annotated[bool, typer.Option("--unequal", help="Compare what is not equally durable.")] = False,
    repeats: Annotated[int, typer.Option(help="Rounds.")] = 5,
    directory: Annotated[
        Path | None, typer.Option(help="Where stores are made.  [default: the system's temporary folder]")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every figure there; - prints them.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots there (HTML).")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Begin though disk or memory may not suffice.")] = False,
    seed: Annotated[int, typer.Option(help="Of the order in which they take turns.")] = 0,
    plugin: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="module, or module:BACKEND, of a backend not installed.")
    ] = None,
) -> None:
    """Compare backends on this machine: the same job, equally durable, in turns.

    Exit status 1 when a backend failed or gave another answer than the others, 130 after Ctrl-C, which still shows what
    was measured.
    """
    from aesg.bench import WORKLOADS, Plan, contend, run
    from aesg.bench.contenders import plug_in

    for name in plugin or []:
        plug_in(name)
    plan = Plan(
        nodes=nodes,
        edges=10 * nodes if edges is None else edges,
        dim=dim,
        workload=_names(workload) or tuple(WORKLOADS),
        repeats=repeats,
        seed=seed,
    )
    contenders = contend(_entrants(urls, backends), durability or None, unequal=unequal)
    printed = json is not None and str(json) == "-"
    for file in (json, report):
        _check_writable(None if printed and file is json else file)
    screen = console(stderr=True)
    _look_ahead(plan, contenders, directory, screen, anyway=anyway)
    with stoppable(), shown(screen if sys.stderr.isatty() else None) as watch:
        results = run(plan, contenders, directory=directory, imports=plugin or [], watch=watch)
    found = results.as_dict()
    keep(found, None if printed else json, report)
    if printed:
        print_json(found)
    else:
        show(found, console())
    raise typer.Exit(INTERRUPTED if results.interrupted else 0 if results.good else 1)


def _entrants(urls: Sequence[str] | None, backends: str | None) -> list[str]:
    if urls and backends:
        raise InvalidInputError("name backends as URLs or by --backends, not both")
    return list(urls) if urls else _names(backends or BACKENDS)


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def _check_writable(file: Path | None) -> None:
    """Before a minute's work, rather than after it."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise InvalidInputError(f"{file} cannot be written: name a file in a folder that exists")


def _look_ahead(
    plan: Plan, contenders: Sequence[Contender], directory: Path | None, screen: Console, *, anyway: bool
) -> None:
    """Say, or refuse, what is going to fail for want of room."""
    import tempfile

    from aesg.bench.plan import lacking

    place = Path(tempfile.gettempdir()) if directory is None else directory
    while not place.exists():
        place = place.absolute().parent
    for trouble in lacking(plan, contenders, place):
        if not anyway:
            raise CapacityError(f"{trouble}: take fewer nodes or edges, or another --directory; --anyway begins anyway")
        screen.print(f"warning: {trouble}", style="yellow", markup=False)


@contextmanager
def stoppable() -> Iterator[None]:
    """A polite kill ends it like Ctrl-C: processes are ended, files deleted."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def shown(screen: Console | None) -> Iterator[Callable[[Results], None] | None]:
    """A table that grows while it is measured, on a terminal."""
    if screen is None:
        yield None
        return
    from rich.live import Live

    with Live(console=screen, auto_refresh=False, transient=True) as live:

        def watch(results: Results) -> None:
            live.update(growing(results), refresh=True)

        yield watch


def growing(results: Results) -> RenderableType:
    """What was measured so far, and what is going on."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from aesg.bench import STATES, WORKLOADS, words

    plan = results.plan
    table = Table(title=f"{words.job(plan.as_dict())}, median on fresh and churned stores", title_justify="left")
    table.add_column("", no_wrap=True)
    for workload in plan.workloads:
        table.add_column(WORKLOADS[workload].title, justify="right")
    for contender in results.contenders:
        cells = []
        for workload in plan.workloads:
            cell = Text()
            for state in STATES:
                figure = results.figures.get((contender.name, workload, state))
                now = results.doing == (contender.name, workload, state)
                if figure is not None or now:
                    cell.append("\n" if cell else "")
                    cell.append(words.seconds(figure.median) if figure else "…", "reverse" if now else "")
            cells.append(cell)
        table.add_row(
            Text(words.label(contender.name), "red" if contender.name in results.problems else "bold"), *cells
        )
    doing = "" if results.doing is None else f"{words.label(results.doing[0])}: {', '.join(results.doing[1:])}"
    rounds = f"{len(results.calibration)} of {_rounds(plan)} rounds"
    line = Text(f"{rounds}  {doing}", "dim", no_wrap=True)
    return Group(table, line, Text("Ctrl-C ends it and shows what was measured", "dim"))


def _rounds(plan: Plan) -> int:
    return sum(plan.repeats * len(plan.states_of(workload)) for workload in plan.workloads)


def keep(found: dict[str, Any], json: Path | None, report: Path | None) -> None:
    """Write the files that were asked for.

    Raises:
        StorageError: One cannot be written.
    """
    from aesg.bench.report import page

    try:
        if json is not None:
            json.write_text(jsons.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if report is not None:
            report.write_text(page(found), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"the figures could not be written: {error}") from error


def show(found: dict[str, Any], screen: Console) -> None:
    """Print what was found: a table of times, one of footprints, and what can be said of them."""
    from rich.table import Table
    from rich.text import Text

    from aesg.bench import STATES, WORKLOADS, words

    level = found["durability"]
    durable = f"durability {level}" if level else "not equally durable"
    screen.print(Text(f"{words.job(found['plan'])}, {durable}", "bold"))
    screen.print(Text(words.machine(found["machine"]), "dim"))
    table = Table(caption="median, half of the calls, p99 (or slowest); speed beside the limit", caption_justify="left")
    table.add_column("", no_wrap=True)
    names = [contender["name"] for contender in found["contenders"]]
    for name in words.labels(found).values():
        table.add_column(name, justify="right")
    by_place = {(f["workload"], f["state"], f["contender"]): f for f in found["figures"]}
    for workload in found["plan"]["workload"]:
        states = [state for state in STATES if any((workload, state, name) in by_place for name in names)]
        for state in states:
            cells = [_cell(by_place.get((workload, state, name))) for name in names]
            heading = Text.assemble((WORKLOADS[workload].title if state == states[0] else "", "bold"), f"\n  {state}")
            table.add_row(heading, *cells, end_section=state == states[-1])
    for state in STATES:
        held = [found["footprints"].get(name, {}).get(state) for name in names]
        if any(held):
            table.add_row(f"on disk, {state}", *(words.size(each and each["disk"]) for each in held))
            table.add_row("memory of its own", *(words.size(each and each["memory"].get("anon")) for each in held))
    screen.print(table)
    for workload, text in words.headlines(found):
        screen.print(Text.assemble((f"{WORKLOADS[workload].title}: ", "bold"), text), soft_wrap=True)
    screen.print(Text(words.noise(found), "dim"), soft_wrap=True)
    for name, why in found["problems"].items():
        screen.print(Text(f"{name} fell out: {why}", "red"), soft_wrap=True)
    if found["disagreement"]:
        screen.print(Text(f"{found['disagreement']}: the figures mean nothing", "bold red"), soft_wrap=True)
    elif found["compared"]:
        screen.print(Text(f"{found['compared']:,} answers were compared: all the same", "green"), soft_wrap=True)
    if found["interrupted"]:
        screen.print(Text("interrupted: not everything was measured", "yellow"), soft_wrap=True)


def _cell(figure: dict[str, Any] | None) -> str:
    from aesg.bench import words

    if figure is None:
        return words.NOTHING
    tail = figure["p99"] if figure["p99"] is not None else figure["most"]
    spread = f"{words.seconds(figure['q1'])}–{words.seconds(figure['q3'])}, {words.seconds(tail)}"
    limit = "" if figure["ratio"] is None else f" ({words.ratio(figure['ratio'])})"
    return f"{words.seconds(figure['median'])}{limit}\n{spread}"
