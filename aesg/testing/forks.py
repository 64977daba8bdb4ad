"""Processes for campaigns: each job runs in a process of its own, forked from a server that has imported everything.

A campaign kills writers and opens damaged stores by the hundred. A fork takes milliseconds where a new interpreter with
NumPy takes half a second, and the server itself never opens a store, so that nothing is inherited but modules.

A job is a function "module:name" with JSON arguments; what it prints goes to whoever started it, line by line.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Final, Self

import aesg
from aesg.testing.target import plug_in

KILLED: Final = -signal.SIGKILL
"""Exit status of a job that was killed."""
SECONDS: Final = 60.0
"""After how long without a word a job counts as hanging."""
LONG_SECONDS: Final = 600.0
"""For jobs that have a lot to do before they say anything."""


class JobDiedError(Exception):
    """A job ended by a signal, with an exception, or not at all."""


@dataclass
class Job:
    """A running job.

    Attributes:
        pid: Its process.
        status: Exit status once it has ended, negative for a signal; None before.
    """

    pid: int
    status: int | None
    _server: ForkServer
    _output: int
    _errors: Any
    _unread: bytes = b""

    def line(self, seconds: float = SECONDS) -> str | None:
        """The next line that the job prints; None at the end, also when the last one was cut short.

        Raises:
            JobDiedError: Nothing came for so long; the job has been killed.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(seconds):
                    self.kill(signal.SIGABRT)  # which has it say where it is
                    self.wait()
                    raise JobDiedError(f"the process said nothing for {seconds} seconds\n{self.errors()}")
                part = os.read(self._output, 1 << 16)
                if not part:
                    return None
                self._unread += part
        first, self._unread = self._unread.split(b"\n", 1)
        return first.decode()

    def lines(self, seconds: float = SECONDS) -> Iterator[str]:
        """All lines until the end; see `line`."""
        while (line := self.line(seconds)) is not None:
            yield line

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """End it at once, if it still runs."""
        if self.status is None:
            with suppress(ProcessLookupError):  # it may have just ended
                os.kill(self.pid, signal_number)

    def wait(self) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        if self.status is None:
            self.status = self._server.wait()
        return self.status

    def errors(self) -> str:
        """What it wrote to standard error, the end of it."""
        self._errors.seek(0)
        return str(self._errors.read().decode(errors="replace")[-4000:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.wait()
        os.close(self._output)
        self._errors.close()


class ForkServer:
    """A process that forks one for each job, one at a time.

    Args:
        imports: See `Target.imports`.
    """

    def __init__(self, imports: tuple[str, ...] = ()) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            code = "from aesg.testing.forks import serve; import sys; serve(int(sys.argv[1]))"
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", code, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._answers = self._socket.makefile("r")
        self._preloaded: set[str] = set()
        self._send({"import": imports})
        for said in self._receive()["errors"]:
            self.close()
            raise JobDiedError(said)

    def start(self, job: str, **arguments: Any) -> Job:
        """Start a job."""
        ours, theirs = os.pipe()
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - the job closes it
        try:
            self._send({"job": job, "arguments": arguments}, [theirs, errors.fileno()])
        finally:
            os.close(theirs)
        return Job(self._receive()["pid"], None, self, ours, errors)

    def call(self, job: str, *, seconds: float = SECONDS, **arguments: Any) -> Any:
        """Run a job that prints one line of JSON, within so many seconds; what that says.

        Raises:
            JobDiedError: It died, failed or hung; says how.
        """
        with self.start(job, **arguments) as running:
            said = list(running.lines(seconds))
            if running.wait() or not said:
                last = running.errors().strip().rpartition("\n")[2]
                raise JobDiedError(f"{last} (the process ended with status {running.status})\n{running.errors()}")
        return json.loads(said[-1])

    def warm_up(self, url: str) -> None:
        """Import what opening this URL imports, so that jobs need not; the store is made anew, and left there."""
        scheme = url.partition(":")[0]
        if scheme not in self._preloaded:
            self._preloaded.add(scheme)
            self._send({"import": self.call("aesg.testing.forks:modules_used", url=url)})
            self._receive()  # what cannot be imported alone was imported by something else

    def wait(self) -> int:
        """Exit status of the running job, negative for a signal, once it has ended."""
        return int(self._receive()["status"])

    def close(self) -> None:
        """End the server."""
        self._answers.close()
        self._socket.close()
        self._process.wait()

    def _send(self, request: dict[str, Any], descriptors: list[int] | None = None) -> None:
        data = json.dumps(request).encode() + b"\n"
        socket.send_fds(self._socket, [len(data).to_bytes(8, "little")], descriptors or [])
        self._socket.sendall(data)

    def _receive(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise JobDiedError("the server that forks jobs has died")
        answer: dict[str, Any] = json.loads(line)
        return answer


@cache
def server(imports: tuple[str, ...] = ()) -> ForkServer:
    """The server of this process for targets of these imports; ends with the process."""
    made = ForkServer(imports)
    atexit.register(made.close)
    return made


def modules_used(url: str) -> None:
    """A job: prints the names of the modules that are loaded after a store was opened, in the order of loading."""
    aesg.open(url, vector_dim=4).close()
    say_json(list(sys.modules))


def say(line: str) -> None:
    """In a job: a line for whoever started it, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def say_json(value: Any) -> None:
    """In a job: a value as a line."""
    say(json.dumps(value))


def serve(fd: int) -> None:
    """The server's loop, in a process of its own: forks until the other end is closed."""
    with socket.socket(fileno=fd) as channel:

        def answer(**said: Any) -> None:
            channel.sendall(json.dumps(said).encode() + b"\n")

        while True:
            head, descriptors, _, _ = socket.recv_fds(channel, 8, 2)
            if not head:
                return
            request = json.loads(_exactly(channel, int.from_bytes(head, "little")))
            if "import" in request:
                answer(errors=[error for name in request["import"] if (error := _import(name))])
                continue
            pid = os.fork()
            if pid == 0:
                _run(request, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            answer(pid=pid)
            answer(status=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        parts += channel.recv(size - len(parts))
    return parts


def _import(name: str) -> str:
    try:
        plug_in(name)
    except Exception as error:
        return f"{name} cannot be imported: {error!r}"
    return ""


def _run(request: dict[str, Any], descriptors: list[int]) -> None:
    """In the child: the job, and no way back."""
    status = 1
    try:
        for descriptor, number in zip(descriptors, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        faulthandler.enable()
        warnings.simplefilter("error")
        module, name = request["job"].split(":")
        function: Callable[..., None] = getattr(importlib.import_module(module), name)
        function(**request["arguments"])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # nothing of the server's is to be tidied up here
