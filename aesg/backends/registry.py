"""Which backends there are, and `open`.

Backends are found through the entry-point group `aesg.backends`, the built-in ones like everyone else's: the name is
the URL scheme, the object a `Backend`. None is imported before it is needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from aesg.backends.files import os_errors
from aesg.backends.salvage import Wreck
from aesg.backends.url import StoreURL
from aesg.errors import BackendNotInstalledError, InvalidInputError, NotFoundError, UnsupportedError
from aesg.protocols import Capabilities, GraphStore

Mode: TypeAlias = Literal["a", "r"]
GROUP: Final = "aesg.backends"
DEFAULT: Final = "memmap"
"""The backend of a new bare path."""


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a backend, given as `?name=value` or as a keyword of `open`.

    Attributes:
        parse: Makes the value from a string (or from the keyword's value as given); raises ValueError.
        help: One line: what it does, its values and its default.
    """

    parse: Callable[[Any], Any]
    help: str


@dataclass(frozen=True, slots=True)
class Backend:
    """What a backend registers.

    Attributes:
        scheme: The URL scheme.
        summary: One line for people.
        open: `(url, mode, vector_dim, options)` → the store. `vector_dim` is None when the caller gave none; opening
            an existing store then takes the store's own, creating one raises InvalidInputError.
        promises: What a store opened with these options will promise at most when it is written to, so that one which
            promises too little is refused before it is created; None when only an opened store can tell.
        recognises: Whether a local path holds a store of this backend; must be quick and change nothing.
        salvage: `(url, vector_dim, options)` → what can be read of a damaged store (see `aesg.backends.salvage`), which
            is not changed. `vector_dim` is None unless the caller knows it. None: whatever `open` gives.
        options: Name → Option.
        unfinished: Settings with which a store is filled that nobody sees before it is whole and its files are synced:
            commits on the way need not survive a power loss.
    """

    scheme: str
    summary: str
    open: Callable[[StoreURL, Mode, int | None, Mapping[str, Any]], GraphStore]
    promises: Callable[[Mapping[str, Any]], Capabilities] | None = None
    recognises: Callable[[Path], bool] = lambda path: False
    salvage: Callable[[StoreURL, int | None, Mapping[str, Any]], Wreck] | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    unfinished: Mapping[str, Any] = field(default_factory=dict)


def choice(*values: str) -> Callable[[Any], str]:
    """An option parser that admits these words."""

    def parse(value: Any) -> str:
        if value not in values:
            raise ValueError(f"one of {', '.join(values)}")
        return str(value)

    return parse


_UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def size(least: int = 0, most: int = (1 << 63) - 1) -> Callable[[Any], int]:
    """An option parser that admits numbers of bytes: 67108864, "67108864" or "64MiB"."""

    def parse(value: Any) -> int:
        match = re.fullmatch(r"([0-9]+) ?([KMGT]iB|)", value) if isinstance(value, str) else None
        if match:
            value = int(match[1]) * _UNITS[match[2]]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"a number of bytes from {least:,} to {most:,}, e.g. 64MiB")
        return value

    return parse


OPTIONS: Final[Mapping[str, Option]] = {
    "index": Option(
        choice("auto", "exact", "hnsw"),
        "how queries find their nearest nodes: auto (default; an index when the store is large), exact or hnsw",
    )
}
"""Options that every store has, whatever its backend."""

_registered: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Have this process know a backend that is not installed: for notebooks and tests.

    Processes that it starts do not know it; a package registers its backend through the entry-point group. Registering
    a scheme again replaces what was registered before.

    Raises:
        InvalidInputError: An installed backend has that scheme.
    """
    if backend.scheme in _entry_points():
        raise InvalidInputError(f"the scheme {backend.scheme!r} is that of an installed backend; choose another")
    _registered[backend.scheme] = backend


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def schemes() -> list[str]:
    """Schemes of all backends that are installed or were registered, sorted."""
    return sorted({*_entry_points(), *_registered})


def backend(scheme: str) -> Backend:
    """The backend of a scheme.

    Raises:
        BackendNotInstalledError: None is registered under it, or its package is missing.
    """
    return _registered.get(scheme) or _installed(scheme)


@cache
def _installed(scheme: str) -> Backend:
    point = _entry_points().get(scheme)
    if point is None:
        known = ", ".join(schemes()) or "none (AESG itself is not installed: pip install -e .)"
        raise BackendNotInstalledError(f"no backend for {scheme!r}; installed: {known}")
    try:
        found = point.load()
    except ImportError as error:
        raise BackendNotInstalledError(f"the backend {scheme!r} needs a package that is missing: {error}") from error
    if not isinstance(found, Backend):
        raise BackendNotInstalledError(f"the entry point {point.value} of backend {scheme!r} is not a Backend")
    return found


def resolve(url: str | os.PathLike[str], *, backend_name: str | None = None) -> StoreURL:
    """A URL with its scheme: a bare path gets that of the store that lies there, a new one `backend_name` or memmap.

    Raises:
        InvalidInputError: A malformed URL, or one whose scheme is not `backend_name`.
        NotFoundError: The path holds something that no installed backend recognises.
    """
    parsed = StoreURL.parse(url)
    if parsed.scheme:
        if backend_name not in (None, parsed.scheme):
            raise InvalidInputError(f"{parsed} is not a store of backend {backend_name!r}")
        return parsed
    path = Path(parsed.path).expanduser().absolute()
    if backend_name is None:
        with os_errors("looking at", path):
            found = [name for name in schemes() if _recognises(name, path)]
        if len(found) > 1:
            raise InvalidInputError(f"{path} holds stores of {' and '.join(found)}: say which, e.g. {found[0]}:{path}")
        if not found and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise NotFoundError(f"{path} exists but holds no store of a known backend ({', '.join(schemes())})")
        backend_name = found[0] if found else DEFAULT
    return StoreURL(backend_name, "", str(path))


def _recognises(scheme: str, path: Path) -> bool:
    try:
        return backend(scheme).recognises(path)
    except BackendNotInstalledError:  # what is not there cannot be what lies here, and must not be in its way
        return False


def open(
    url: str | os.PathLike[str],
    mode: Mode = "a",
    require: Mapping[str, Any] | None = None,
    *,
    vector_dim: int | None = None,
    **options: Any,
) -> GraphStore:
    """Open a store, or create it.

    Args:
        url: `memmap:///path?durability=power_loss`, or a bare path: what lies there is recognised, a new one is memmap.
        mode: "a" reads and writes and creates what is not there; "r" reads.
        require: Least levels of capabilities, e.g. `{"durability": "power_loss", "snapshots": True}`.
        vector_dim: Length of the vectors. Needed to create a store; an existing one must agree.
        **options: Options of the backend, as in the URL; these count when both are given.

    Raises:
        BackendNotInstalledError: Unknown scheme.
        InvalidInputError: Unknown mode or option, a malformed URL, no vector_dim for a new store.
        NotFoundError: mode="r" and there is none.
        SchemaMismatchError: The store has another vector_dim.
        UnsupportedError: The store does not promise what `require` asks.
        LockedError: Another writer holds it.
        CorruptionError: What is on disk cannot be a store.
    """
    if mode not in ("a", "r"):
        raise InvalidInputError(f"mode must be 'a' (read and write) or 'r' (read), not {mode!r}")
    if vector_dim is not None and (isinstance(vector_dim, bool) or not hasattr(vector_dim, "__index__")):
        raise InvalidInputError(f"vector_dim must be an integer, not {vector_dim!r}")
    if vector_dim is not None and not 0 < vector_dim <= 1 << 20:
        raise InvalidInputError(f"vector_dim must be between 1 and {1 << 20}, not {vector_dim}")
    dim = None if vector_dim is None else int(vector_dim)  # a NumPy integer would end up in files
    parsed = resolve(url)
    found = backend(parsed.scheme)
    settings = options_of(found, parsed, options)
    common = {name: settings.pop(name) for name in OPTIONS if name in settings}
    if mode == "a" and found.promises is not None:
        _check_promises(found.promises(settings), require, str(parsed))
    store = found.open(parsed, mode, dim, settings)
    try:
        _carry(store, common)
        _check_promises(store.capabilities, require, store.url)
    except BaseException:
        store.close()
        raise
    return store


def _check_promises(capabilities: Capabilities, require: Mapping[str, Any] | None, url: str) -> None:
    try:
        lacking = capabilities.missing(require or {})
    except ValueError as error:
        raise InvalidInputError(f"{url}: {error}") from error
    if lacking:
        raise UnsupportedError(f"{url}: {'; '.join(lacking)}")


def options_of(found: Backend, url: StoreURL, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a URL, and others, as the backend's options parse them.

    Raises:
        InvalidInputError: The backend has no such option, or it cannot have that value.
    """
    parsed = {}
    options = {**found.options, **OPTIONS}
    for name, value in {**url.options, **given}.items():
        if name not in options:
            known = "; ".join(f"{n}: {o.help}" for n, o in options.items())
            raise InvalidInputError(f"{url}: backend {found.scheme!r} has no option {name!r}. Options: {known}")
        try:
            parsed[name] = options[name].parse(value)
        except ValueError as error:
            raise InvalidInputError(f"{url}: option {name}={value!r}: expected {error}") from error
    return parsed


def _carry(store: GraphStore, common: Mapping[str, str]) -> None:
    """Have the store's URL say what is not as usual among the options that every store has."""
    unusual = {name: value for name, value in common.items() if (name, value) != ("index", "auto")}
    if unusual:
        carry: Callable[[Mapping[str, str]], None] | None = getattr(store, "carry", None)
        if carry is None:
            raise InvalidInputError(f"{store.url}: this backend's stores do not take the option {min(unusual)!r}")
        carry(unusual)


def index_of(store: GraphStore) -> tuple[str, Path | None]:
    """What index an opened store is to have, by its option; and the folder for it, None where there is no place."""
    url = StoreURL.parse(store.url)
    path = Path(url.path)
    has_place = bool(url.path) and not url.authority and not store.capabilities.remote and path.exists()
    return url.options.get("index", "auto"), path.with_name(f"{path.name}.seed-index") if has_place else None
