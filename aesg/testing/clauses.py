"""What a clause is: a test with a stable name, and the capabilities of a store without which it does not apply."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from aesg.protocols import Capabilities

F = TypeVar("F", bound=Callable[..., Any])

_NAME: Final = re.compile(r"[a-z][a-z0-9-]*(\.[a-z0-9][a-z0-9-]*)+")

MODULES: Final = tuple(
    f"aesg.testing.{name}"
    for name in (
        "base", "capabilities", "capacity", "crash", "damage", "edges", "engine", "graphs", "laws", "lifecycle",
        "machine", "nodes", "processes", "refusals", "scenes", "trace", "transactions",
    )
)  # fmt: skip
"""The modules whose asserts pytest rewrites, so that a failure shows the values."""

LONG: Final = "AESG_CONFORMANCE_LONG"
"""Set to 1 in the environment: the long forms, as `--long` does."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One promise.

    Attributes:
        name: Stable and dotted, e.g. "nodes.append.consecutive-rows"; what stands before the first dot is its group.
        promise: What it holds a backend to, in a sentence.
        needs: Capability → least level; the clause is for stores that declare all of them.
        unless: Capability → level; the clause is for stores that do *not* declare all of them.
    """

    name: str
    promise: str
    needs: Mapping[str, Any] = field(default_factory=dict)
    unless: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The first part of the name."""
        return self.name.partition(".")[0]

    def not_declared(self, capabilities: Capabilities) -> str:
        """Why it does not apply to a store of these capabilities; "" when it does."""
        lacking = capabilities.missing(self.needs)
        if not lacking and self.unless and not capabilities.missing(self.unless):
            levels = ", ".join(f"{name} {str(level).lower()}" for name, level in self.unless.items())
            return f"this store gives {levels}; the clause is for those that do not"
        return "; ".join(lacking)


def clause(
    name: str, *, needs: Mapping[str, Any] | None = None, unless: Mapping[str, Any] | None = None
) -> Callable[[F], F]:
    """Make a test method a clause. Its docstring's first line says what is promised.

    Args:
        name: See `Clause.name`.
        needs: See `Clause.needs`, as in `open(require=…)`; others report the clause as "not declared".
        unless: See `Clause.unless`; for the counterpart, which shows that what is not declared is refused.

    Raises:
        ValueError: A malformed name, or no docstring.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"a clause's name is dotted, in lower case and dashes, e.g. nodes.append.rows; not {name!r}")

    def mark(test: F) -> F:
        promise = (test.__doc__ or "").strip().partition("\n")[0]
        if not promise:
            raise ValueError(f"clause {name}: the docstring of {test.__qualname__} is to say what is promised")
        test.clause = Clause(name, promise, dict(needs or {}), dict(unless or {}))  # type: ignore[attr-defined]
        return test

    return mark


def clauses_of(suite: type) -> dict[str, Clause]:
    """The clauses of a class, by name.

    Raises:
        ValueError: Two methods have clauses of the same name.
    """
    found: dict[str, Clause] = {}
    for method in dir(suite):
        its = getattr(getattr(suite, method), "clause", None)
        if isinstance(its, Clause):
            if its.name in found:
                raise ValueError(f"{suite.__name__} has two clauses of the name {its.name}")
            found[its.name] = its
    return dict(sorted(found.items()))


def rewritable() -> list[str]:
    """Those of `MODULES` that were not imported yet; pytest warns about others."""
    return [name for name in MODULES if name not in sys.modules]


def is_long() -> bool:
    """Whether the long forms were asked for."""
    return os.environ.get(LONG, "") not in ("", "0")
