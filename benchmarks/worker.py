"""A process that measures one side: named tasks, one JSON object a line in each direction.

Both packages are called `aesg`, so each needs a process of its own; it stays alive so that the two can take turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).parent


def serve(tasks: Mapping[str, Callable[..., Any]]) -> None:
    """In the worker: do what standard input asks for, until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": tasks[request.pop("task")](**request)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The other end: `worker("task", argument=…)` has it done and gives back the result.

    Args:
        side: "ours" or "theirs": the script that is run.
        package: The folder that holds the `aesg` to import; the installed one when None.
        patience: Seconds after which it is killed; None lets it take its time.
    """

    def __init__(self, side: str, package: Path | None = None, patience: float | None = None) -> None:
        self.side = side
        env = dict(os.environ) if package is None else {**os.environ, "PYTHONPATH": str(package)}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled modules are kept, as with users: opening imports some
        command = [sys.executable, str(HERE / f"{side}.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True)
        self._timer = None if patience is None else threading.Timer(patience, self._process.kill)
        if self._timer is not None:
            self._timer.start()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def __call__(self, task: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"task": task, **arguments}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.side}: the worker ended during {task!r}, status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.side}: {task!r} failed\n{answer['error']}")
        return answer["result"]

    def close(self) -> None:
        """Let it end."""
        try:
            self._process.communicate()
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
