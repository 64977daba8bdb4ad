"""`aesg backends`: which backends there are, what they promise, and which options they take."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from aesg.backends import registry
from aesg.backends.registry import OPTIONS, Backend
from aesg.cli.common import Json, console, print_json
from aesg.errors import AESGError, BackendNotInstalledError
from aesg.protocols import Capabilities

if TYPE_CHECKING:
    from rich.console import Console

PACKAGES: Final = {"lmdb": ("lmdb", "lmdb"), "zarr": ("zarr", "zarr"), "icechunk": ("icechunk", '"aesg[icechunk]"')}
"""Scheme → the package that its stores need, and what to give pip."""


def backends(json: Json = False) -> None:
    """List the backends: capabilities, options, and what is not installed."""
    found = listed()
    if json:
        print_json({"backends": found, "options": {name: option.help for name, option in OPTIONS.items()}})
    else:
        show_backends(found, console())


def listed() -> list[dict[str, Any]]:
    """What there is to say of each backend; JSON-able."""
    return [_described(scheme) for scheme in registry.schemes()]


def _described(scheme: str) -> dict[str, Any]:
    found: dict[str, Any] = {"scheme": scheme, "installed": False, "summary": "", "capabilities": None, "options": {}}
    package, pip = PACKAGES.get(scheme, ("", ""))
    try:
        backend = registry.backend(scheme)
    except BackendNotInstalledError as error:
        return {**found, "missing": str(error)}
    found |= {"summary": backend.summary, "options": {name: o.help for name, o in backend.options.items()}}
    if package and find_spec(package) is None:
        return {**found, "missing": f"pip install {pip}"}
    promises = _promises(backend)
    return {**found, "installed": True, "capabilities": None if promises is None else promises.as_dict()}


def _promises(backend: Backend) -> Capabilities | None:
    """What a store with the default options promises; None when only an opened one can tell."""
    if backend.promises is not None:
        return backend.promises({})
    try:
        with registry.open(f"{backend.scheme}:", vector_dim=1) as store:
            return store.capabilities
    except AESGError:
        return None  # it needs a place


def show_backends(found: list[dict[str, Any]], console: Console) -> None:
    """Print what `listed` found."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text("Capabilities, with the default options", "bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    able = [backend for backend in found if backend["capabilities"]]
    for backend in able:
        table.add_column(Text(backend["scheme"], "bold cyan"))
    for name in Capabilities.__dataclass_fields__:
        levels = [str(backend["capabilities"][name]).lower().replace("_", " ") for backend in able]
        table.add_row(Text(name.replace("_", " ")), *map(Text, levels))
    console.print(table)
    console.print(Text("\nBackends, and options as in memmap:path?durability=power_loss", "bold"))
    for backend in found:
        line = Text.assemble((f"{backend['scheme']}:", "bold cyan"), f" {backend['summary']}")
        if not backend["installed"]:
            line.append(f"  not installed: {backend['missing']}", "yellow")
        console.print(line, soft_wrap=True)
        _show_options(backend["options"], console)
    console.print(Text.assemble(("all:", "bold cyan"), " every backend takes"), soft_wrap=True)
    _show_options({name: option.help for name, option in OPTIONS.items()}, console)


def _show_options(options: dict[str, str], console: Console) -> None:
    from rich.text import Text

    for name, help in options.items():
        console.print(Text.assemble("  ", (name, "green"), f": {help}"), soft_wrap=True)
