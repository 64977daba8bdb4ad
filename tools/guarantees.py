"""Write the table of guarantees in README.md and docs/guarantees.md from what the backends promise.

`--check` says whether one is stale.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import aesg
from aesg.backends import registry
from aesg.protocols import Capabilities

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (ROOT / "README.md", ROOT / "docs" / "guarantees.md")
BEGIN: Final = "<!-- guarantees: written by tools/guarantees.py -->"
END: Final = "<!-- end of guarantees -->"

BACKENDS: Final = ("memory", "memmap", "lmdb", "zarr", "icechunk")
OTHERS: Final[dict[str, dict[str, Any]]] = {
    "memmap": {"durability": "power_loss"},
    "lmdb": {"sync": False},
    "zarr": {"durability": "power_loss"},
}
"""Options of a backend that change what it promises."""

SAID: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "durability": (
        "a commit survives",
        {"none": "nothing", "process_crash": "kill -9", "power_loss": "power loss"},
    ),
    "atomicity": ("all or nothing", {"batch": "each call", "graph": "each transaction"}),
    "readers": ("who may read beside the writer", {"same_process": "its threads", "other_processes": "any process"}),
    "reader_view": (
        "what another process sees",
        {"latest": "the last commit, call by call", "fixed": "one commit until `refresh()`"},
    ),
    "writers": ("who may write", {"one_process": "one process", "many": "many"}),
    "snapshots": ("snapshots", {"true": "yes", "false": "no"}),
    "space_reclaim": (
        "space of removed data comes back",
        {"on_maintenance": "when old commits expire", "on_compact": "after `compact()`", "continuous": "at once"},
    ),
    "integrity": (
        "damaged files",
        {"structure": "noticed where they cannot be a store", "checksums": "every flipped bit noticed"},
    ),
    "remote": ("remote storage", {"true": "yes", "false": "not yet"}),
}
"""Capability → what it is called, and what its levels are."""


def table() -> str:
    """The table, in Markdown."""
    lines = ["| | " + " | ".join(f"`{name}:`" for name in BACKENDS) + " |", "|---" * (len(BACKENDS) + 1) + "|"]
    for capability, (title, words) in SAID.items():
        cells = [_cell(name, capability, words) for name in BACKENDS]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(name: str, capability: str, words: dict[str, str]) -> str:
    usual = words[_level(promised(name, {}), capability)]
    if (name, capability) == ("memory", "reader_view"):
        return "–"  # there is no other process
    if name in OTHERS:
        other = words[_level(promised(name, OTHERS[name]), capability)]
        if other != usual:
            option = "&".join(f"{key}={str(value).lower()}" for key, value in OTHERS[name].items())
            return f"{usual}; {other} with `?{option}`"
    return usual


def promised(name: str, options: dict[str, Any]) -> Capabilities:
    """What a store of a backend promises when it is opened with these options."""
    promises = registry.backend(name).promises
    if promises is not None:
        return promises(options)
    with aesg.open(f"{name}:", vector_dim=1) as store:
        return store.capabilities


def _level(capabilities: Capabilities, name: str) -> str:
    return str(capabilities.as_dict()[name]).lower()


def written(text: str) -> str:
    """A page with the table as it should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> int:
    """Rewrite, or check."""
    for page in PAGES:
        text = page.read_text("utf-8")
        if "--check" not in sys.argv[1:]:
            page.write_text(written(text), "utf-8")
        elif written(text) != text:
            print(f"{page.name}: the table of guarantees is stale; run `make guarantees`", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
