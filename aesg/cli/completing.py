"""What the Tab key offers: commands, options, words, backends and paths.

The shell runs `aesg` with `_AESG_COMPLETE` set to its name and `_AESG_LINE` to the line up to the cursor, and takes the
lines that come back; `SCRIPTS` has what it needs for that.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from aesg.backends import registry
from aesg.errors import AESGError
from aesg.protocols import Durability
from aesg.records import EventType

VARIABLE: Final = "_AESG_COMPLETE"
LINE: Final = "_AESG_LINE"
BREAKS: Final = "_AESG_BREAKS"

SCRIPTS: Final = {
    "bash": """\
_aesg_completion() {
    local IFS=$'\\n'
    COMPREPLY=($(_AESG_COMPLETE=bash _AESG_LINE="${COMP_LINE:0:COMP_POINT}" _AESG_BREAKS="$COMP_WORDBREAKS" \\
        "$1" 2>/dev/null))
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[/:=] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _aesg_completion aesg
""",
    "zsh": """\
#compdef aesg
_aesg_completion() {
    local -a found
    found=("${(@f)$(_AESG_COMPLETE=zsh _AESG_LINE="${(j: :)words[1,CURRENT]}" ${words[1]} 2>/dev/null)}")
    compadd -S '' -- ${(M)found:#*[/:=]}
    compadd -- ${found:#*[/:=]}
}
compdef _aesg_completion aesg
""",
    "fish": """\
function __aesg_completion
    set -lx _AESG_COMPLETE fish
    set -lx _AESG_LINE (commandline -cp)
    aesg 2>/dev/null
end
complete -c aesg -f -a "(__aesg_completion)"
""",
}
"""Shell → what it has to run once."""

_SPECIAL: Final = re.compile(r"""([\s"'\\$`()<>|&;*?\[\]{}#!~])""")


def answer(command: Any) -> str:
    """The lines for the shell that asks.

    Args:
        command: The group of all commands, as typer makes it.
    """
    words, incomplete, quoted = split(os.environ.get(LINE, ""))
    found = candidates(command, words[1:], incomplete)
    if os.environ[VARIABLE] == "bash":
        # Bash breaks words at these, and replaces only what follows the last one.
        breaks = set(":=") & set(os.environ.get(BREAKS, ""))
        begin = 0 if quoted else max((incomplete.rfind(letter) + 1 for letter in breaks), default=0)
        found = [value[begin:] for value in found]
        if not quoted:
            found = [_SPECIAL.sub(r"\\\1", value) for value in found]
    return "".join(f"{value}\n" for value in found)


def split(line: str) -> tuple[list[str], str, bool]:
    """The words of a command line before the one that is being typed, that one, and whether it began with a quote."""
    for end, quoted in (("", False), ('"', True), ("'", True), ("\\", False)):
        try:
            words = shlex.split(line + end)
        except ValueError:  # a quotation that is not closed yet
            continue
        if not quoted and (not line or (line[-1].isspace() and not line.endswith("\\ "))):
            return words, "", False
        return words[:-1], words[-1], quoted
    return [], "", False


def candidates(command: Any, words: Sequence[str], incomplete: str) -> list[str]:
    """What may stand where the cursor is, and begins with what is there already.

    Args:
        command: The group of all commands.
        words: The words between `aesg` and that one.
        incomplete: What is typed of it.
    """
    rest = list(words)
    while rest and rest[0].startswith("-"):
        rest.pop(0)
    if not rest:
        offered = _options(command, words) if incomplete.startswith("-") else sorted(command.commands)
        return [word for word in offered if word.startswith(incomplete)]
    chosen = command.commands.get(rest.pop(0))
    if chosen is None:
        return []
    arguments = [param for param in chosen.params if param.param_type_name == "argument"]
    by_name = {name: param for param in chosen.params if param.param_type_name == "option" for name in param.opts}
    expecting: Any = None
    given = 0
    for word in rest:
        if expecting is not None:
            expecting = None
        elif word in by_name:
            expecting = None if by_name[word].is_flag else by_name[word]
        elif not word.startswith("-"):
            given += 1
    if expecting is not None:
        return values(expecting.metavar or "", incomplete)
    if incomplete.startswith("-"):
        return [name for name in _options(chosen, rest) if name.startswith(incomplete)]
    if arguments and (given < len(arguments) or arguments[-1].nargs < 0):
        return values(arguments[min(given, len(arguments) - 1)].metavar or "", incomplete)
    return []


def _options(command: Any, words: Sequence[str]) -> list[str]:
    """Long options that may still be given, and help."""
    found = ["--help"]
    for param in command.params:
        if param.param_type_name == "option" and (param.multiple or not set(param.opts) & set(words)):
            found += [name for name in param.opts if name.startswith("--")]
    return sorted(set(found))


def values(metavar: str, incomplete: str) -> list[str]:
    """What an argument or an option can be, by what its help calls it."""
    name = metavar.strip("[]").removesuffix("...").removesuffix("]").upper()
    if name in ("URL", "SRC", "DST", "OTHER"):
        return urls(incomplete)
    if name in _WORDS:
        return [word for word in _WORDS[name] if word.startswith(incomplete)]
    return [] if name in ("N", "TIME", "EXPRESSION", "NAME", "PER_S", "K") else paths(incomplete)


_WORDS: Final = {
    "TYPE": tuple(name.lower() for name in EventType.__members__),
    "FORMAT": ("parquet", "arrow", "npz", "graphml", "gml"),
    "SHELL": tuple(SCRIPTS),
    "LEVEL": tuple(level.name.lower() for level in Durability),
    "L": tuple(level.name.lower() for level in Durability),
}
"""What help calls it → the words that it can be."""


def urls(incomplete: str) -> list[str]:
    """Backends, paths, and the options of a backend."""
    scheme, colon, rest = incomplete.partition(":")
    if not colon:
        return [f"{name}:" for name in registry.schemes() if name.startswith(incomplete)] + paths(incomplete)
    if "?" in rest:
        try:
            options = registry.backend(scheme).options.keys() | registry.OPTIONS.keys()
        except AESGError:
            return []
        before, _, name = incomplete.rpartition("&" if "&" in rest else "?")
        separator = incomplete[len(before)]
        return [f"{before}{separator}{option}=" for option in sorted(options) if option.startswith(name)]
    slashes = "//" if rest.startswith("//") else ""
    return [f"{scheme}:{slashes}{path}" for path in paths(rest.removeprefix(slashes))]


def paths(incomplete: str) -> list[str]:
    """Files and folders that begin so; a folder ends with a slash."""
    folder, slash, name = incomplete.rpartition("/")
    try:
        entries = sorted(os.scandir(Path(folder + slash).expanduser() if slash else "."), key=lambda entry: entry.name)
    except OSError:
        return []
    return [
        f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(name) and (name or not entry.name.startswith("."))
    ]
