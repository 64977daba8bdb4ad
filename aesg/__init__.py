"""AESG: a persistent, self-organising external memory for PyTorch models, on a storage framework of its own.

`aesg.open(url)` opens a store; `aesg.AESGMemory` attaches one to a model. Neither this module nor `open` imports torch:
`AESGMemory` is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from aesg.backends.registry import open
from aesg.config import AESGConfig
from aesg.errors import AESGError

if TYPE_CHECKING:
    from aesg.memory.controller import AESGMemory

__version__ = "0.4.0.dev0"
__all__ = ["AESGConfig", "AESGError", "AESGMemory", "__version__", "open"]


def __getattr__(name: str) -> Any:
    if name == "AESGMemory":
        from aesg.memory.controller import AESGMemory

        return AESGMemory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
