"""Copy what was measured from README.md into docs/performance.md, so that there is one place to change figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"
PAGE: Final = ROOT / "docs" / "performance.md"
BEGIN: Final = "<!-- measured: written by tools/measured.py -->"
END: Final = "<!-- end of measured -->"


def measured() -> str:
    """The section "Measured" of the readme, with links as docs/ needs them."""
    section = README.read_text("utf-8").split("\n## Measured\n")[1].split("\n## ")[0]
    return re.sub(r"\]\(docs/", "](", section).strip()


def written(text: str) -> str:
    """The page with the figures as they should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{measured()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
