"""What the site needs beyond Markdown: a hook of MkDocs, named in mkdocs.yml.

Pages link to files of the repository that are not part of the site, for those who read them in the repository. On the
site such a link becomes plain text.
"""

from __future__ import annotations

import re
from typing import Any, Final

_OUTSIDE: Final = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!api/|commands/)[\w./-]+\)")
"""A link that leaves docs/ from a page that lies in it (pages of folders link to `../page.md`, see below)."""


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by MkDocs with each page's text before it is rendered."""
    return markdown if "/" in page.file.src_uri else _OUTSIDE.sub(r"\1", markdown)
