"""A process that works for another: named tasks, one JSON object a line in each direction.

Each contender has one, so that its memory is its own and its library's threads disturb nobody; it works only when it is
asked. It does not hear Ctrl-C, which is its parent's to deal with, and it ends when its parent does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from aesg.errors import AESGError

_MAIN: Final = "from aesg.bench.pipe import main; main()"


_BLAS: Final = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


class ChildError(AESGError):
    """A task failed, or the process ended or took too long."""


class Child:
    """The parent's end: `child("task", argument=…)` has it done and gives back the result.

    Args:
        side: "work" (a contender) or "raw" (the limits).
        arguments: What that side is made with.
        imports: Modules, or "module:BACKEND", that it needs first: backends that are not installed.
        patience: Seconds that a task may take.
    """

    def __init__(self, side: str, arguments: Mapping[str, Any], imports: Sequence[str], patience: float) -> None:
        self._side = side
        self._patience = patience
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if side == "raw":  # NumPy's threads stand in each other's way where others work too
            environment |= dict.fromkeys(_BLAS, "1")
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and no shell
            [sys.executable, "-c", _MAIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
            start_new_session=True,
        )
        self._send({"task": "start", "side": side, "imports": list(imports), "arguments": dict(arguments)})

    def ready(self) -> None:
        """Wait until it has begun: several that are started one after the other begin beside each other.

        Raises:
            ChildError: It could not.
        """
        self._receive("start")

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def __call__(self, task: str, **arguments: Any) -> Any:
        """Have a task done.

        Raises:
            ChildError: It failed, or the process ended or was ended.
        """
        self._send({"task": task, **arguments})
        return self._receive(task)

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it is gone; whoever waits for its answer is told why

    def _receive(self, task: str) -> Any:
        assert self._process.stdout is not None
        timer = threading.Timer(self._patience, self._process.kill)
        timer.daemon = True  # Ctrl-C may come before it can be cancelled, and the interpreter would wait for it
        try:
            timer.start()
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise ChildError(": ".join([f"{task}: the process ended, status {status}", *last]))
        answer = json.loads(line)
        if "error" in answer:
            raise ChildError(f"{task}: {answer['error']}")
        return answer["result"]

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                _close(pipe)
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def _close(pipe: IO[str]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        return  # what was not sent yet has no reader any more


def main() -> None:
    """The child's end: do what standard input asks for, until it ends."""
    from aesg.bench.contenders import plug_in

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    side: Any = None
    folder: str | None = None
    for line in sys.stdin:
        request = json.loads(line)
        task = request.pop("task")
        try:
            if task == "start":
                for name in request["imports"]:
                    plug_in(name)
                folder = request["arguments"]["folder"]
                side = _side(request["side"], request["arguments"])
                result: Any = None
            else:
                result = getattr(side, task)(**request)
            answer = {"result": result}
        except Exception as error:
            said = " ".join(str(error).split())
            answer = {"error": said if isinstance(error, AESGError) else f"{type(error).__name__}: {said}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # The parent is gone without a word, or it would have ended this process: nobody else deletes the files.
    if folder is not None and Path(folder).is_dir():
        shutil.rmtree(folder, ignore_errors=True)


def _side(name: str, arguments: Mapping[str, Any]) -> Any:
    if name == "raw":
        from aesg.bench.raw import Limits

        return Limits(**arguments)
    from aesg.bench.work import Worker

    return Worker(**arguments)
