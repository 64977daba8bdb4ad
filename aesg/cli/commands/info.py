"""`aesg info`: what lies in a store and what it promises. Opens for reading only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aesg.backends.registry import open, resolve
from aesg.cli.common import Json, Url, console, print_json

if TYPE_CHECKING:
    from rich.console import Console


def info(url: Url, json: Json = False) -> None:
    """Show what a store holds and promises."""
    found = described(url)
    if json:
        print_json(found)
    else:
        show_info(found, console())


def described(url: str) -> dict[str, Any]:
    """Everything about a store that fits a screen; JSON-able."""
    with open(url, mode="r") as store:
        attrs = dict(store.attrs)
        config = attrs.pop("config", None)
        return {
            "url": store.url,
            "backend": resolve(store.url).scheme,
            "uuid": store.uuid,
            "generation": store.generation,
            "vector_dim": store.vector_dim,
            "nodes": len(store.nodes),
            "edges": len(store.edges),
            "events": len(store.events),
            "capabilities": store.capabilities.as_dict(),
            "stats": store.stats(),
            "attrs": attrs,
            "config": config,
        }


def show_info(found: dict[str, Any], console: Console) -> None:
    """Print what `info` found."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(found["url"], "bold cyan"), soft_wrap=True)
    plain = {name: value for name, value in found.items() if not isinstance(value, dict) and value is not None}
    plain.pop("url")
    for heading in ("", "capabilities", "stats", "attrs", "config"):
        values = found[heading] if heading else plain
        if not values:
            continue
        if heading:
            console.print(Text(f"\n{heading}", "bold"))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for name, value in values.items():
            table.add_row(Text(str(name)), Text(_shown(name, value)))
        console.print(table)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value)
    if "bytes" in name and value >= 1024:
        return f"{value:,} ({_size(value)})"
    return f"{value:,}"


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
