"""`aesg log`: the evolution log of a store, to read, to follow and to draw. Opens for reading only."""

from __future__ import annotations

import json as jsons
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
import typer

from aesg.backends.registry import open
from aesg.cli.common import Json, Url, coloured, print_json
from aesg.errors import InvalidInputError
from aesg.protocols import EventLog
from aesg.records import EventType, event_dicts, now

CHUNK: Final = 1 << 16
"""Events that are looked at together."""
POLL_SECONDS: Final = 0.25
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_COLOURS: Final = {
    EventType.CREATE: "green",
    EventType.MERGE: "cyan",
    EventType.SPLIT: "blue",
    EventType.PRUNE: "red",
    EventType.CONSOLIDATE: "magenta",
    EventType.RESTRUCTURE: "yellow",
}


def log(
    url: Url,
    type: Annotated[
        list[str] | None,
        typer.Option(
            "--type", metavar="TYPE", help="Only events of this type, e.g. merge; may be given several times."
        ),
    ] = None,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="From then on: 2026-01-31, 2026-01-31T18:30, Unix seconds, or 2h (ago).")
    ] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Up to then.")] = "",
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the newest N.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is committed; ends by Ctrl-C.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a picture instead: .png, .svg or .pdf.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what happened to a store: births, merges, splits, prunes; the newest last."""
    wanted = Filter.of(type or [], since, until)
    if limit is not None and limit < 1:
        raise InvalidInputError(f"--limit is at least 1, not {limit}")
    if plot is not None:
        if follow or limit is not None:
            raise InvalidInputError("--plot draws all events of its types and times: without --follow and --limit")
        from aesg.cli.timeline import draw

        with open(url, mode="r") as store:
            found = draw(store.events, wanted, plot, store.url)
        if json:
            print_json(found)
        else:
            typer.echo(f"{found['events']:,} events drawn: {found['plot']}")
    elif follow:
        write = write_lines if json else Lines(coloured()).write
        with suppress(KeyboardInterrupt):  # that is how it ends
            _follow(url, wanted, limit, write)
    else:
        with open(url, mode="r") as store:
            chunks = newest(store.events, wanted, limit)
            if json:
                write_object(store.url, chunks)
            else:
                lines = Lines(coloured())
                for chunk in chunks:
                    lines.write(chunk)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events are wanted.

    Attributes:
        types: Codes of types; all when empty.
        since: First Unix second.
        until: Last Unix second.
    """

    types: tuple[int, ...] = ()
    since: int = 0
    until: int = (1 << 63) - 1

    @classmethod
    def of(cls, types: Sequence[str], since: str, until: str) -> Filter:
        """From what was given as options.

        Raises:
            InvalidInputError: An unknown type, or no time.
        """
        names = {name for given in types for name in given.upper().replace(",", " ").split()}
        unknown = sorted(names - set(EventType.__members__))
        if unknown:
            known = ", ".join(name.lower() for name in EventType.__members__)
            raise InvalidInputError(f"unknown type of event {unknown[0].lower()!r}; known: {known}")
        codes = tuple(sorted(int(EventType[name]) for name in names))
        return cls(codes, moment(since) if since else 0, moment(until) if until else (1 << 63) - 1)

    def of_events(self, events: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Those of the events that are wanted."""
        times = events["timestamp"]
        wanted = (times >= np.uint64(self.since)) & (times <= np.uint64(self.until))
        if self.types:
            wanted &= np.isin(events["type"], np.array(self.types, np.uint8))
        return events if wanted.all() else events[wanted]


def moment(text: str) -> int:
    """A point in time as Unix seconds.

    Args:
        text: A date, with or without a time of day (local unless it says its zone), Unix seconds, or how long ago as
            in 90s, 5m, 2h, 3d, 1w.

    Raises:
        InvalidInputError: Something else.
    """
    ago = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smhdw])(?: ago)?", text.strip())
    if ago:
        return max(0, now() - int(float(ago[1]) * _UNITS[ago[2]]))
    if re.fullmatch(r"[0-9]{9,18}", text.strip()):
        return int(text)
    try:
        return max(0, int(datetime.fromisoformat(text.strip()).timestamp()))
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidInputError(
            f"{text!r} is no time; examples: 2026-01-31, 2026-01-31T18:30, 1769880600, 90s, 5m, 2h, 3d, 1w"
        ) from error


def matching(events: EventLog, wanted: Filter, start: int = 0, stop: int | None = None) -> Iterator[npt.NDArray[Any]]:
    """The wanted events from number `start` on, a chunk at a time."""
    count = len(events) if stop is None else stop
    for first in range(start, count, CHUNK):
        found = wanted.of_events(events.read(first, min(first + CHUNK, count)))
        if len(found):
            yield found


def newest(events: EventLog, wanted: Filter, limit: int | None, stop: int | None = None) -> Iterator[npt.NDArray[Any]]:
    """The newest wanted events, oldest of them first; looks at no more of the log than it must."""
    count = len(events) if stop is None else stop
    if limit is None:
        yield from matching(events, wanted, 0, count)
        return
    found: list[npt.NDArray[Any]] = []
    missing = limit
    for last in range(count, 0, -CHUNK):
        if not missing:
            break
        chunk = wanted.of_events(events.read(max(0, last - CHUNK), last))
        found.append(chunk[max(0, len(chunk) - missing) :])
        missing -= len(found[-1])
    yield from (chunk for chunk in reversed(found) if len(chunk))


def _follow(url: str, wanted: Filter, limit: int | None, write: Callable[[npt.NDArray[Any]], None]) -> None:
    with open(url, mode="r") as store:
        seen = len(store.events)
        for chunk in newest(store.events, wanted, limit, seen):
            write(chunk)
        sys.stdout.flush()
        while True:
            time.sleep(POLL_SECONDS)
            store.refresh()
            count = len(store.events)
            for chunk in matching(store.events, wanted, seen, count):
                write(chunk)
            if count != seen:
                sys.stdout.flush()
            seen = count


def write_lines(events: npt.NDArray[Any]) -> None:
    """Print events for machines, one JSON object a line."""
    sys.stdout.write("".join(jsons.dumps(event) + "\n" for event in event_dicts(events)))


def write_object(url: str, chunks: Iterator[npt.NDArray[Any]]) -> None:
    """Print one JSON object with all events in it, one a line, as they come."""
    sys.stdout.write(f'{{\n  "url": {jsons.dumps(url)},\n  "events": [')
    separator = "\n"
    for chunk in chunks:
        for event in event_dicts(chunk):
            sys.stdout.write(f"{separator}    {jsons.dumps(event)}")
            separator = ",\n"
    sys.stdout.write("\n  ]\n}\n" if separator != "\n" else "]\n}\n")


class Lines:
    """Prints events for people, in local time.

    Args:
        colours: Whether to colour the types.
    """

    def __init__(self, colours: bool) -> None:
        names = {code: EventType.name_of(code) for code in range(256)}
        self._types = {code: f"{name:<11}" for code, name in names.items()}
        if colours:
            for code, colour in _COLOURS.items():
                self._types[code] = typer.style(self._types[code], fg=colour)
        self._second = (-1, "")

    def write(self, events: npt.NDArray[Any]) -> None:
        """Print events."""
        sys.stdout.write("".join([f"{self._line(*event)}\n" for event in events.tolist()]))

    def _line(self, timestamp: int, type: int, id1: int, id2: int, val: float) -> str:
        if timestamp != self._second[0]:
            self._second = (timestamp, shown_time(timestamp))
        return f"{self._second[1]}  {self._types[type]}  {told(type, id1, id2, val)}"


def shown_time(timestamp: int) -> str:
    """A Unix second in local time; as it is when no calendar reaches it."""
    try:
        return datetime.fromtimestamp(timestamp, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{timestamp:<19}"


def told(type: int, id1: int, id2: int, val: float) -> str:
    """What an event says, in words; see `records.EventType`."""
    match type:
        case EventType.CREATE if val > 1:
            return f"node {id1}, abstracted from {val:.0f}, the first {id2}"
        case EventType.CREATE | EventType.PRUNE:
            return f"node {id1}"
        case EventType.MERGE:
            return f"node {id1} took in {id2}"
        case EventType.SPLIT:
            return f"node {id1} gave {id2}"
        case EventType.CONSOLIDATE:
            return f"epoch {id1}: {id2:,} active nodes"
        case EventType.RESTRUCTURE:
            return f"epoch {id1}: {id2:,} regions"
        case _:
            return f"type {type}: {id1} {id2} {val:g}"
