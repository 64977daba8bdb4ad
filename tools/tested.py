"""Write the tables of docs/testing.md from the suite's clauses and the tests' backends that are broken on purpose."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Final

from aesg.testing import Conformance, clauses_of

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "testing.md"
BEGIN: Final = "<!-- {}: written by tools/tested.py -->"
END: Final = "<!-- end of {} -->"


def clauses() -> str:
    """Every clause, what it promises and for whom, in Markdown."""
    lines = ["| clause | promise | for stores that declare |", "|---|---|---|"]
    for its in clauses_of(Conformance).values():
        declared = [f"`{name}` {str(level).lower()}" for name, level in its.needs.items()]
        declared += [f"`{name}` less than {str(level).lower()}" for name, level in its.unless.items()]
        lines.append(f"| `{its.name}` | {its.promise} | {', '.join(declared)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def saboteurs() -> str:
    """Every backend that is broken on purpose, and the clause that its test demands to fail."""
    sys.path.append(str(ROOT / "tests"))
    caught = {each.name: each.clause for each in importlib.import_module("saboteurs").SABOTEURS}
    campaigns = importlib.import_module("campaign_saboteurs").CLAUSES
    caught |= {scheme.replace("-", " "): clause for scheme, clause in campaigns.items()}
    lines = ["| a backend that … | fails at |", "|---|---|"]
    lines += [f"| {name} | `{clause}` |" for name, clause in sorted(caught.items(), key=lambda pair: pair[::-1])]
    return "\n".join(lines)


def written(text: str) -> str:
    """The page with the tables as they should be."""
    for name, table in (("saboteurs", saboteurs), ("clauses", clauses)):
        before, rest = text.split(BEGIN.format(name))
        _, after = rest.split(END.format(name))
        text = f"{before}{BEGIN.format(name)}\n\n{table()}\n\n{END.format(name)}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
