"""AESG: a persistent, self-organising external memory for PyTorch models, on a storage framework of its own.

`aesg.open(url)` opens a store; `aesg.AESGMemory` attaches one to a model. Neither this module nor `open` imports torch:
`AESGMemory` is imported when it is first asked for. `aesg.migrate` copies a store into another backend, `aesg.digest`
tells whether two hold the same.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aesg.backends.registry import open
from aesg.config import AESGConfig
from aesg.errors import AESGError

if TYPE_CHECKING:
    from aesg.memory.controller import AESGMemory
    from aesg.migration.digest import digest
    from aesg.migration.migrate import migrate

__version__ = "0.4.0.dev0"
__all__ = ["AESGConfig", "AESGError", "AESGMemory", "__version__", "digest", "migrate", "open"]
_LAZY = {
    "AESGMemory": "aesg.memory.controller",
    "digest": "aesg.migration.digest",
    "migrate": "aesg.migration.migrate",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
