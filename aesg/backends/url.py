"""Store URLs: `scheme:///absolute/path?option=value`, `scheme:relative/path`, or a bare path.

A bare path names no backend: what lies there decides (see `registry`). A single letter before a colon is a Windows
drive, not a scheme.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

from aesg.errors import InvalidInputError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class StoreURL:
    """A parsed URL.

    Attributes:
        scheme: Lower case; "" for a bare path.
        authority: What stands between "//" and the next "/", for remote stores; "" for local ones.
        path: Decoded path; "" when there is none.
        options: Decoded query, as strings.
    """

    scheme: str
    authority: str
    path: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> StoreURL:
        """Parse a URL or a bare path.

        Raises:
            InvalidInputError: Empty, a repeated or malformed option.
        """
        raw = os.fspath(text)
        if not isinstance(raw, str) or not raw:
            raise InvalidInputError(f"a store is opened by a URL or a path, not {raw!r}")
        if "\0" in raw or "%00" in raw:
            raise InvalidInputError(f"a path has no null character: {raw!r}")
        match = _SCHEME.fullmatch(raw)
        if match is None:
            return cls("", "", raw)
        scheme, rest = match.group(1).lower(), match.group(2)
        rest, _, query = rest.partition("?")
        authority = ""
        if rest.startswith("//"):
            authority, slash, tail = rest[2:].partition("/")
            rest = slash + tail
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
        except ValueError as error:
            raise InvalidInputError(f"{raw}: options are written ?name=value&name=value") from error
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise InvalidInputError(f"{raw}: an option is given twice")
        # Names of files that are not UTF-8 go there and back as Python has them: "surrogateescape".
        return cls(scheme, unquote(authority), unquote(rest, errors="surrogateescape"), dict(pairs))

    def local_path(self) -> Path:
        """The path of a local store, absolute and without symbolic links: two spellings of one place are one store.

        Raises:
            InvalidInputError: The URL names a host, or no path.
        """
        if self.authority:
            raise InvalidInputError(
                f"{self}: a local path is written {self.scheme}:///absolute/path or {self.scheme}:relative/path"
            )
        if not self.path:
            raise InvalidInputError(f"{self}: the path is missing, e.g. {self.scheme}:///path/to/store")
        return Path(self.path).expanduser().resolve()

    def __str__(self) -> str:
        """The URL in one canonical spelling."""
        if not self.scheme:
            return self.path
        slashes = "//" if self.authority or self.path.startswith("/") else ""
        query = "?" + urlencode(self.options) if self.options else ""
        return f"{self.scheme}:{slashes}{quote(self.authority, safe=':@')}{quote(os.fsencode(self.path))}{query}"
