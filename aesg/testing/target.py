"""What is tested: a backend and its options. Makes URLs of fresh stores and opens them."""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

from aesg.backends import registry
from aesg.backends.registry import Backend, Mode
from aesg.backends.url import StoreURL
from aesg.errors import AESGError, InvalidInputError, UnsupportedError
from aesg.protocols import Capabilities, Durability, GraphStore

DIM: Final = 4
"""Length of the vectors of most stores of the suite."""


@dataclass(frozen=True)
class Target:
    """A backend with options, as the suite sees it.

    Each store of the suite has a folder of its own, in which everything lies that belongs to it.

    Attributes:
        url: Names backend and options, e.g. "lmdb:?sync=false". A path in it is the folder under which stores are made.
        imports: For backends that are not installed: "module" to import, or "module:BACKEND" to register, before any
            store is opened, here and in child processes.
        in_files: Whether a store has a path; None finds out. In-memory stores have none.
        fail_points: Functions as "module:Class.method" between whose calls a store's files change without a call into
            the operating system that Python sees: the crash clauses kill there too.
        record_files: Where `integrity` is less than checksums: patterns of the names of files in which bytes that were
            changed or added may pass for other values. Damage to others, and what is missing of these, must be noticed
            or harmless. Empty stands for every file.
    """

    url: str
    imports: tuple[str, ...] = ()
    in_files: bool | None = None
    fail_points: tuple[str, ...] = ()
    record_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self._parsed.scheme:
            raise InvalidInputError(f"{self.url}: a target is a URL that names a backend, e.g. lmdb:?sync=false")
        for name in self.imports:
            plug_in(name)

    @cached_property
    def _parsed(self) -> StoreURL:
        return StoreURL.parse(self.url)

    @property
    def scheme(self) -> str:
        """The backend's."""
        return self._parsed.scheme

    @property
    def base(self) -> Path | None:
        """The folder under which stores are to be made; None where the URL says nothing."""
        return Path(self._parsed.path).expanduser().resolve() if self._parsed.path else None

    def store_url(self, folder: Path, **options: Any) -> str:
        """The URL of the store in a folder.

        Args:
            folder: The folder that belongs to this store alone.
            **options: Options beside those of the target.
        """
        return self._url(str(self.place(folder)) if self.has_files else "", options)

    def place(self, folder: Path) -> Path:
        """Where in its folder the store lies: a file or a directory, as the backend makes it."""
        return folder / "store"

    def _url(self, path: str, options: dict[str, Any]) -> str:
        return str(StoreURL(self.scheme, "", path, self._parsed.options | {k: str(v) for k, v in options.items()}))

    def open(self, folder: Path, mode: Mode = "a", *, vector_dim: int | None = None, **options: Any) -> GraphStore:
        """Open the store in a folder; see `aesg.open`."""
        return registry.open(self.store_url(folder, **options), mode, vector_dim=vector_dim)

    def create(self, folder: Path, *, vector_dim: int = DIM, **options: Any) -> GraphStore:
        """Open a new store in a folder, which is made when it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        return self.open(folder, vector_dim=vector_dim, **options)

    def files(self, folder: Path) -> list[Path]:
        """All files of the store in a folder, sorted."""
        return sorted(path for path in folder.rglob("*") if path.is_file())

    @property
    def capabilities(self) -> Capabilities:
        """What a store of the target promises; one is opened to ask, once."""
        return _probed(self)[1]

    @property
    def has_files(self) -> bool:
        """Whether a store has a path."""
        return _probed(self)[0]

    @property
    def persists(self) -> bool:
        """Whether a store is there again when it is opened the next time."""
        return self.capabilities.durability > Durability.NONE

    def __str__(self) -> str:
        return self.url


def plug_in(name: str) -> None:
    """Import a module, or register the backend that "module:BACKEND" names.

    Raises:
        InvalidInputError: The name is not that of a backend.
    """
    module, _, attribute = name.partition(":")
    found = importlib.import_module(module)
    if attribute:
        backend = getattr(found, attribute, None)
        if not isinstance(backend, Backend):
            raise InvalidInputError(f"{name} is not a Backend")
        registry.register(backend)


@lru_cache(maxsize=64)
def _probed(target: Target) -> tuple[bool, Capabilities]:
    """Whether stores have paths, and what they promise."""
    refused: AESGError | None = None
    for in_files in (True, False) if target.in_files is None else (target.in_files,):
        with tempfile.TemporaryDirectory() as folder:
            try:
                with registry.open(target._url(f"{folder}/store" if in_files else "", {}), vector_dim=DIM) as store:
                    return in_files, store.capabilities
            except (InvalidInputError, UnsupportedError) as error:
                refused = refused or error
    assert refused is not None
    raise refused
