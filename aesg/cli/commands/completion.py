"""`aesg completion`: what a shell has to run to complete `aesg` at the Tab key."""

from __future__ import annotations

from typing import Annotated

import typer

from aesg.cli.common import Json, print_json
from aesg.errors import InvalidInputError


def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
    json: Json = False,
) -> None:
    """Print what a shell needs to complete commands, options and URLs.

    For bash, in ~/.bashrc: eval "$(aesg completion bash)". For zsh the same in ~/.zshrc, after compinit. For fish:
    aesg completion fish > ~/.config/fish/completions/aesg.fish.
    """
    from aesg.cli.completing import SCRIPTS

    if shell not in SCRIPTS:
        raise InvalidInputError(f"unknown shell {shell!r}; known: {', '.join(SCRIPTS)}")
    if json:
        print_json({"shell": shell, "script": SCRIPTS[shell]})
    else:
        typer.echo(SCRIPTS[shell], nl=False)
