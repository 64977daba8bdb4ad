"""Loops that are compiled when it is worth the wait.

A loop is written once, as plain Python over arrays, in the part of the language that numba compiles. A process runs it
as plain Python until it has done some tenth of a second's work in it: importing numba and loading what it compiled
takes half a second, which nobody with a handful of concepts should wait for. From then on it runs compiled, a hundred
times as fast, and without the GIL.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

import numpy as np

_UNLIMITED: Final = 1 << 62


class Loops:
    """Some loops as a process runs them: plain at first, then compiled, for good.

    Args:
        name: What is slow without numba, for the warning.
        functions: The loops, which return nothing that they were given.
        helpers: Functions that the loops call.
        signatures: Given `numba.types`, each loop's arguments, in the order of `functions`.
        patience: So many steps, whatever the caller counts as one, are run as plain Python.
    """

    def __init__(
        self,
        name: str,
        functions: Sequence[Callable[..., Any]],
        helpers: Sequence[Callable[..., Any]],
        signatures: Callable[[Any], Sequence[Sequence[Any]]],
        patience: int,
    ) -> None:
        self._name = name
        self._functions = functions
        self._helpers = helpers
        self._signatures = signatures
        self._patience = patience
        self._calls: dict[str, Callable[..., Any]] = {f.__name__: _quiet(f) for f in functions}
        self._compiled = False

    def get(self, function: Callable[..., Any], steps: int) -> Callable[..., Any]:
        """The loop to call for one of `functions`, which is going to take so many steps."""
        self._patience -= steps
        if self._patience < 0:
            self._load()
        return self._calls[function.__name__]

    def are_compiled(self, steps: int) -> bool:
        """Whether they run compiled, for a caller who has another way until then; `steps` count as in `get`."""
        self._patience -= steps
        if self._patience < 0:
            self._load()
        return self._compiled

    def _load(self) -> None:
        """Go on with what is compiled, or without it for good."""
        try:
            import numba
            from numba import extending
        except Exception as error:  # ImportError, and whatever a numba says to a NumPy that is newer than it knows
            warnings.warn(f"numba cannot be imported, {self._name} will be slow: {error}", RuntimeWarning, stacklevel=3)
            self._patience = _UNLIMITED
            return
        if not numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            for helper in self._helpers:
                extending.register_jitable(helper)
            signatures = self._signatures(numba.types)
            self._calls = {f.__name__: compiled(f, s) for f, s in zip(self._functions, signatures, strict=True)}
            self._compiled = True
        self._patience = _UNLIMITED  # last: until then other threads do not set out on a long way in plain Python


def compiled(
    function: Callable[..., Any], signature: Sequence[Any], fastmath: AbstractSet[str] = frozenset()
) -> Callable[..., Any]:
    """Compile for one signature, or load what an earlier process compiled.

    Args:
        function: The loop.
        signature: Its arguments in numba's types.
        fastmath: LLVM's names of the liberties that it may take with floating point.
    """
    import numba

    how: dict[str, Any] = {"nogil": True, "fastmath": set(fastmath)}
    try:
        return numba.njit([tuple(signature)], cache=True, **how)(function)
    except Exception:  # nowhere to keep it, a full disk, a file that was cut short: numba lets any of that out
        return numba.njit([tuple(signature)], **how)(function)


def records(kind: np.dtype[Any]) -> Any:
    """The type, in numba's terms, of a contiguous array of records."""
    import numba

    return numba.from_dtype(kind)[::1]


def compiled_or_none(
    name: str,
    function: Callable[..., Any],
    signature: Callable[[Any], Sequence[Any]],
    fastmath: AbstractSet[str] = frozenset(),
) -> Callable[..., Any] | None:
    """A loop that is of use only when it is compiled; None where numba compiles nothing.

    Args:
        name: What is slow without numba, for the warning.
        function: The loop.
        signature: From numba's types to those of its arguments.
        fastmath: See `compiled`.
    """
    try:
        import numba
    except Exception as error:  # see `Loops`
        warnings.warn(f"numba cannot be imported, {name} will be slow: {error}", RuntimeWarning, stacklevel=3)
        return None
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return None
    return compiled(function, signature(numba.types), fastmath)


def _quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """The loop in plain Python, where NumPy's scalars would warn of what compiled code does in silence."""

    def plain(*args: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*args)

    return plain
