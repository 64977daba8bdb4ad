"""Child processes of the suite: a function of some module, called in a fresh interpreter that knows the target.

No pytest here: a child that has only to open a store starts without it.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any, Final

from aesg.testing.target import Target, plug_in

SECONDS: Final = 60.0
"""A child that takes longer hangs."""

_MAIN: Final = "import sys; from aesg.testing.children import main; main(sys.argv[1:])"


def command(target: Target, function: Callable[..., Any], *args: Any) -> list[str]:
    """The command that calls a function in a new interpreter.

    Args:
        target: Its `imports` are imported first.
        function: One that a module has by name; may print, and give back anything that JSON holds.
        *args: Anything that JSON holds.
    """
    name = f"{function.__module__}:{function.__qualname__}"
    return [sys.executable, "-c", _MAIN, json.dumps(target.imports), name, json.dumps(args)]


def environment() -> dict[str, str]:
    """Of a child: it finds the modules that this process finds."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def start(target: Target, function: Callable[..., Any], *args: Any, **kwargs: Any) -> subprocess.Popen[str]:
    """Start a child and do not wait for it; its stdin and stdout are pipes. See `command`."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(target, function, *args), env=environment(), **(pipes | kwargs))  # noqa: S603


def call(target: Target, function: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> Any:
    """Call a function in a child and wait for what it gives back. See `command`.

    Raises:
        AssertionError: The child failed, or took longer than `seconds`.
    """
    with start(target, function, *args, stderr=subprocess.PIPE) as child:
        try:
            said, errors = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            raise AssertionError(f"a child in {function.__qualname__} hung for {seconds} s") from None
    if child.returncode:
        why = f"died of signal {-child.returncode}" if child.returncode < 0 else f"exit status {child.returncode}"
        raise AssertionError(f"a child in {function.__qualname__}: {why}: {errors[-2000:]}")
    return json.loads(said.splitlines()[-1])


def say(word: str, to: IO[str] | None = None) -> None:
    """Tell the other side one word, a line of its own."""
    print(word, file=to or sys.stdout, flush=True)


def hear(child: subprocess.Popen[str], seconds: float = SECONDS) -> str:
    """The next word that a child says; "" when it has ended. One that hangs is killed."""
    assert child.stdout is not None
    patience = threading.Timer(seconds, child.kill)
    patience.start()
    try:
        return child.stdout.readline().strip()
    finally:
        patience.cancel()


def main(arguments: Sequence[str]) -> None:
    """In the child: call the function, and print what it gives back as the last line."""
    imports, name, args = arguments
    for plugin in json.loads(imports):
        plug_in(plugin)
    module_name, _, path = name.partition(":")
    function: Any = importlib.import_module(module_name)
    for part in path.split("."):
        function = getattr(function, part)
    say(json.dumps(function(*json.loads(args))))
