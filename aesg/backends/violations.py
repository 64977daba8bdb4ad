"""Collecting what `verify()` finds."""

from __future__ import annotations

from typing import Any, Final

import numpy.typing as npt

from aesg.protocols import Violation

_SHOWN: Final = 100
"""Violations of one kind that are listed one by one."""


class Report:
    """Collects violations; of a kind that is everywhere only the first ones one by one."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self._counts: dict[str, int] = {}

    def add(self, kind: str, file: str, what: str, where: npt.NDArray[Any], detail: str) -> None:
        """Note each of `where` (rows or refs)."""
        if not len(where):
            return
        before = self._counts.get(kind, 0)
        self._counts[kind] = before + len(where)
        room = max(0, _SHOWN - before)
        self.violations += [Violation(kind, f"{file} {what} {int(at)}", detail) for at in where[:room]]

    def finish(self) -> list[Violation]:
        """All of them, with the number of those not shown."""
        for kind, count in self._counts.items():
            if count > _SHOWN:
                self.violations.append(Violation(kind, "further places", f"and {count - _SHOWN} more"))
        return self.violations
