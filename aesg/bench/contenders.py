"""Who takes part: backends with their options, and whether they promise the same."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aesg.backends import registry
from aesg.backends.registry import Backend
from aesg.backends.url import StoreURL
from aesg.errors import AESGError, InvalidInputError, UnsupportedError
from aesg.protocols import Capabilities, Durability

SETTINGS: Final[tuple[dict[str, str], ...]] = (
    {},
    {"durability": "process_crash"},
    {"durability": "power_loss"},
    {"sync": "false"},
    {"sync": "true"},
)
"""Options that change how durable a store is, as backends name them; which of them one has, its `options` say."""

LIBRARIES: Final = {"lmdb": "lmdb", "zarr": "zarr"}
"""Scheme → the library that is measured by itself beside it; files are, beside the others."""


@dataclass(frozen=True)
class Contender:
    """A backend with options, and what it promises.

    Attributes:
        url: Backend and options; a path is the folder under which stores are made.
        promises: Of its stores.
        in_files: Whether a store has a path, and is there again when it is opened the next time.
    """

    url: str
    promises: Capabilities
    in_files: bool

    @property
    def scheme(self) -> str:
        """The backend's."""
        return StoreURL.parse(self.url).scheme

    @property
    def name(self) -> str:
        """Backend and options, without the path: "lmdb:?sync=false"."""
        return str(StoreURL(self.scheme, "", "", StoreURL.parse(self.url).options))

    @property
    def place(self) -> Path | None:
        """The folder under which its stores are to be made; None where the URL does not say."""
        parsed = StoreURL.parse(self.url)
        return Path(parsed.path).expanduser().resolve() if parsed.path else None

    @property
    def library(self) -> str:
        """What is measured by itself beside it: "lmdb", "zarr" or "file"."""
        return LIBRARIES.get(self.scheme, "file")

    @property
    def durability(self) -> Durability:
        """What its commits survive."""
        return self.promises.durability


def plug_in(name: str) -> None:
    """Import a module, or register the backend that "module:BACKEND" names.

    Raises:
        InvalidInputError: There is no such module, or it is not a backend.
    """
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise InvalidInputError(f"{name} cannot be imported: {error}") from error
    if attribute:
        backend = getattr(found, attribute, None)
        if not isinstance(backend, Backend):
            raise InvalidInputError(f"{name} is not a Backend")
        registry.register(backend)


def contend(
    urls: Sequence[str], durability: Durability | str | None = None, *, unequal: bool = False
) -> list[Contender]:
    """Those who take part, at one level of durability.

    A URL that says nothing about durability is given the options that make it what is asked; without `durability`, that
    is the highest level that all have. What a URL does say stays.

    Args:
        urls: Names of backends, or URLs with options; a path is the folder under which stores are made.
        durability: The level.
        unequal: Let them differ: each is taken as its URL says, or at `durability` where it has that level.

    Raises:
        BackendNotInstalledError: Unknown backend.
        InvalidInputError: Malformed, twice the same, or a place where a store lies already.
        UnsupportedError: They cannot be, or by their URLs are not, equally durable; the message says who promises what
            and how to make them equal.
    """
    if not urls:
        raise InvalidInputError("name at least one backend")
    wanted = _level(durability)
    choices = [levels(_named(url)) for url in urls]
    if wanted is None and not unequal:
        shared = set.intersection(*(set(choice) for choice in choices))
        wanted = max(shared, default=None)
    taken = [_taken(choice, wanted, unequal) for choice in choices]
    if any(found is None for found in taken):
        raise UnsupportedError(_unequal(choices, wanted))
    contenders = [found for found in taken if found is not None]
    names = [contender.name for contender in contenders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInputError(f"{twice[0]} takes part twice")
    for contender in contenders:
        _check_place(contender)
    return contenders


def levels(url: str) -> dict[Durability, Contender]:
    """Each level of durability that a URL can have, with the options that give it; its own come first.

    Where a URL says how durable it is, there is only that one.
    """
    parsed = StoreURL.parse(url)
    options = registry.backend(parsed.scheme).options
    says = any(name in parsed.options for setting in SETTINGS for name in setting)
    found: dict[Durability, Contender] = {}
    for setting in SETTINGS[:1] if says else SETTINGS:
        if setting.keys() <= options.keys():
            try:
                contender = _probed(
                    str(StoreURL(parsed.scheme, parsed.authority, parsed.path, parsed.options | setting))
                )
            except InvalidInputError:
                if not setting:
                    raise
                continue  # another backend's word for an option of that name
            found.setdefault(contender.durability, contender)
    return found


def _named(url: str) -> str:
    return url if ":" in url else f"{url}:"


def _level(durability: Durability | str | None) -> Durability | None:
    if durability is None or isinstance(durability, Durability):
        return durability
    try:
        return Durability[durability.upper()]
    except KeyError as error:
        known = ", ".join(level.name.lower() for level in Durability)
        raise InvalidInputError(f"unknown durability {durability!r}; known: {known}") from error


def _taken(choice: dict[Durability, Contender], wanted: Durability | None, unequal: bool) -> Contender | None:
    first = next(iter(choice.values()))
    if wanted is None:
        return first if unequal else None
    return choice.get(wanted, first if unequal else None)


def _unequal(choices: Sequence[dict[Durability, Contender]], wanted: Durability | None) -> str:
    said = []
    for choice in choices:
        can = [f"{level.name.lower()} with {contender.name}" for level, contender in choice.items()]
        said.append(" or ".join(can))
    asked = "the same durability" if wanted is None else f"the durability {wanted.name.lower()}"
    shared = set.intersection(*(set(choice) for choice in choices))
    way = (
        f"take the durability {max(shared).name.lower()}, which all can give"
        if shared
        else "leave one out; what it costs to be durable would be taken for what a backend costs"
    )
    return (
        f"not every one of these gives {asked}: {'; '.join(said)}. To make them equal, {way}. --unequal compares them "
        "as they are"
    )


def _probed(url: str) -> Contender:
    """A contender, opened once to see what its stores promise and whether they have paths."""
    parsed = StoreURL.parse(url)
    if parsed.authority:
        raise InvalidInputError(f"{url}: only what lies on this machine can be compared")
    refused: AESGError | None = None
    for in_files in (True, False):
        with tempfile.TemporaryDirectory(prefix="aesg-bench-") as folder:
            place = f"{folder}/store" if in_files else ""
            try:
                with registry.open(str(StoreURL(parsed.scheme, "", place, parsed.options)), vector_dim=1) as store:
                    return Contender(url, store.capabilities, in_files)
            except (InvalidInputError, UnsupportedError) as error:
                refused = refused or error
    assert refused is not None
    raise refused


def _check_place(contender: Contender) -> None:
    place = contender.place
    if place is None or not place.exists():
        return
    if not place.is_dir() or any(registry.backend(name).recognises(place) for name in _usable()):
        raise InvalidInputError(
            f"{contender.url}: a store or a file lies there; name a folder in which new ones can be made"
        )


def _usable() -> list[str]:
    found = []
    for name in registry.schemes():
        try:
            registry.backend(name)
        except AESGError:  # its package is missing: nothing of it can lie anywhere
            continue
        found.append(name)
    return found


def described(contender: Contender) -> dict[str, Any]:
    """JSON-able, without a path."""
    return {
        "name": contender.name,
        "scheme": contender.scheme,
        "library": contender.library,
        "in_files": contender.in_files,
        "promises": contender.promises.as_dict(),
    }
