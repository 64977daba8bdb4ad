"""kill -9 at any moment: what a campaign does to one store, and what it then checks.

The store found after a kill is the last state that the writer said it had committed, or the one after it, whole; and
the next writer goes on from there, so that one store lives through the whole campaign.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from aesg.backends.registry import Mode
from aesg.testing.forks import KILLED, ForkServer, Job, JobDiedError
from aesg.testing.steps import model

_STEPS: Final = 9
"""Steps of a writer that is to be killed at a point: creation or recovery, commits, a compaction, the close."""
_NEW: Final = -1
"""The step of a store that was created and not written to."""


class ViolationError(AssertionError):
    """A promise was broken."""


@dataclass
class Summary:
    """What a campaign came to.

    Attributes:
        campaign: Its name.
        url: The store.
        seed: What decided the moments.
        kills: Writers killed.
        reopened: How often the store was opened and compared afterwards.
        lost: Committed states that were not found again.
        violations: What was found instead of a committed state, one sentence each.
        last_step: How far the writers got.
    """

    campaign: str
    url: str
    seed: int
    kills: int = 0
    reopened: int = 0
    lost: int = 0
    violations: list[str] = field(default_factory=list)
    last_step: int = _NEW

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


@dataclass
class _Said:
    """What the writers said so far."""

    k: int = _NEW
    generation: int = 0
    uuid: str = ""
    compacting: bool = False
    compacted: bool = False

    def take(self, line: str) -> None:
        word, k, *rest = line.split()
        if word == "closed":
            return
        if int(k) != self.k:
            self.compacting = self.compacted = False
        self.k, self.generation = int(k), int(rest[0])
        if word == "opened":
            self.uuid = rest[1]
        self.compacting |= word == "compacting"
        self.compacted |= word == "compacted"


class CrashCampaign:
    """Writers on one store, killed one after another.

    Args:
        name: For the summary.
        make_url: Folder → URL of the store in it.
        folder: Where its stores are made.
        server: Where the writers are forked.
        every: Compact once in so many steps.
        fail_points: See `crash_writer`.
        small: Stores of blocks get tiny ones.
        seed: Decides the moments.
    """

    def __init__(
        self,
        name: str,
        make_url: Callable[[Path], str],
        folder: Path,
        server: ForkServer,
        *,
        every: int = 7,
        fail_points: tuple[str, ...] = (),
        small: bool = False,
        seed: int = 0,
    ) -> None:
        self._make_url, self._folder, self._server = make_url, folder, server
        self._every, self._fail_points, self._small = every, fail_points, small
        self._rng = random.Random(f"{name} {seed}")  # noqa: S311
        self._model = model(every)
        self._digests: dict[int, str] = {}
        self._stores = 0
        self._new_store()
        self.summary = Summary(name, self._url, seed)

    def _new_store(self) -> None:
        self._stores += 1
        self._url = self._make_url(self._folder / f"store-{self._stores}")
        self._said, self._digests = _Said(), {}

    # Campaigns

    def at_random_moments(self, kills: int) -> Summary:
        """Killed from outside, after a time that is left to chance: from the start of a writer to some steps later."""
        span = max(self._whole_run()[1], 0.02)
        while self.summary.kills < kills:
            with self._writer(steps=1_000_000, points="none") as writer:
                time.sleep(self._rng.uniform(0, span))
                self._end(writer)
            self._check()
        return self.summary

    def in_compactions_at_random(self, kills: int) -> Summary:
        """Killed from outside, while the store is compacted."""
        span = max(self._seconds_of_compaction(), 0.002)
        while self.summary.kills < kills:
            with self._writer(steps=1_000_000, points="none") as writer:
                for _ in range(self._rng.randint(1, 3)):
                    self._listen(writer, until="compacting")
                time.sleep(self._rng.uniform(0, 1.2 * span))
                self._end(writer)
            self._check()
        return self.summary

    def at_points(self, kills: int, points: str, phase: str = "all", steps: int = _STEPS) -> Summary:
        """Killed from within, at points that are spread over a writer's whole run or over one phase of it."""
        total = self._whole_run(points=points, phase=phase, steps=steps)[0]
        if not total:
            return self.summary  # the backend does nothing that such points divide
        for number in self._spread(kills, total):
            with self._writer(steps=steps, points=points, phase=phase, at=number) as writer:
                self._end(writer, kill=False)
            self._check()
            if self.summary.kills == kills:
                break
        return self.summary

    def in_creations(self, kills: int, points: str) -> Summary:
        """Killed while the store is created: there is none then, or an empty one, and the next writer begins."""
        total = self._whole_run(points=points, phase="open", steps=1)[0]
        for number in self._spread(kills, total) if total else ():
            self._new_store()
            with self._writer(steps=1, points=points, phase="open", at=number) as writer:
                self._end(writer, kill=False)
            self._check_creation()
            if self.summary.kills == kills:
                break
        return self.summary

    def in_creations_at_random(self, kills: int) -> Summary:
        """The same, from outside."""
        begun = time.monotonic()
        with self._writer(steps=1, points="none") as writer:
            self._listen(writer, until="opened")
            span = time.monotonic() - begun
            self._end(writer, kill=False)
        while self.summary.kills < kills:
            self._new_store()
            with self._writer(steps=1_000_000, points="none") as writer:
                time.sleep(self._rng.uniform(0, span))
                self._end(writer)
            self._check_creation()
        return self.summary

    # Writers

    def _writer(self, **arguments: Any) -> Job:
        self._last_writer, self._began_at = arguments, self._said.k
        return self._server.start(
            "aesg.testing.crash_writer:write",
            url=self._url,
            folder=str(self._folder),
            every=self._every,
            fail_points=self._fail_points,
            small=self._small,
            **arguments,
        )

    def _listen(self, writer: Job, until: str | None = None) -> list[str]:
        """What a writer says until a word, or until its end."""
        heard = []
        for line in writer.lines():
            heard.append(line)
            self._said.take(line)
            if until is not None and line.startswith(until):
                break
        return heard

    def _end(self, writer: Job, *, kill: bool = True) -> list[str]:
        if kill:
            writer.kill()
        heard = self._listen(writer)
        if writer.wait() not in (0, KILLED):
            self._violation(f"a writer failed with status {writer.status}\n{writer.errors()}")
        self.summary.kills += writer.status == KILLED
        return heard

    def _whole_run(self, *, points: str = "none", phase: str = "all", steps: int = _STEPS) -> tuple[int, float]:
        """A writer that is not killed; points passed, and seconds."""
        begun = time.monotonic()
        with self._writer(steps=steps, points=points, phase=phase) as writer:
            heard = self._end(writer, kill=False)
        seconds = time.monotonic() - begun
        self._check()
        return int(heard[-1].split()[2]), seconds

    def _seconds_of_compaction(self) -> float:
        with self._writer(steps=3 * self._every, points="none") as writer:
            self._listen(writer, until="compacting")
            begun = time.monotonic()
            self._listen(writer, until="compacted")
            seconds = time.monotonic() - begun
            self._end(writer, kill=False)
        self._check()
        return seconds

    def _spread(self, count: int, total: int) -> Iterator[int]:
        """Numbers of points, in any order, spread evenly; more than enough, since some are never reached."""
        for most in (total, max(1, total // 2), max(1, total // 4)):
            numbers = [1 + int(most * (i + self._rng.random()) / count) for i in range(count)]
            self._rng.shuffle(numbers)
            yield from numbers

    # Checks

    def _violation(self, said: str) -> None:
        self.summary.violations.append(said)
        raise ViolationError(
            f"{self._url}, kill {self.summary.kills} of a writer from step {self._began_at} on with "
            f"{self._last_writer}: {said}\n{self.summary.line()}"
        )

    def _found(self, mode: Mode) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._server.call(
                "aesg.testing.crash_writer:inspect_store", url=self._url, mode=mode
            )
        except JobDiedError as error:
            self._violation(f"opening it with mode={mode!r} ended badly: {error}")
            raise
        self.summary.reopened += 1
        return found

    def _check(self) -> None:
        """Open what is there and compare it with what was said and with the model."""
        mode = self._rng.choice("ar")
        self._compare(self._found("a" if mode == "a" else "r"), mode)

    def _compare(self, found: dict[str, Any], mode: str) -> None:
        said = self._said
        if "error" in found:
            if said.uuid:
                self.summary.lost += 1
            self._violation(f"mode={mode!r}: {found['error']}: {found['message']}")
        k = found["k"]
        if k < said.k:
            self.summary.lost += said.k - k
            self._violation(f"step {said.k} was committed, the store is at {k}")
        if k > said.k + 1:
            self._violation(f"the store is at step {k}, which was never reached: the last one said was {said.k}")
        allowed = self._model.after(k)
        if k != said.k or not said.compacting:  # a compaction is announced before it begins
            allowed = allowed[:1]
        elif said.compacted:
            allowed = allowed[-1:]
        if found["digest"] not in allowed:
            self._violation(f"mode={mode!r}: not the state after step {k}, nor any other committed one")
        if found["wrong"]:
            self._violation(f"mode={mode!r}, step {k}: {'; '.join(found['wrong'][:5])}")
        if found["generation"] < said.generation:
            self._violation(f"generation {said.generation} was announced, the store is at {found['generation']}")
        if self._digests.setdefault(found["generation"], found["digest"]) != found["digest"]:
            self._violation(f"generation {found['generation']} had other contents before")
        if said.uuid and said.uuid != found["uuid"]:
            self._violation(f"the uuid was {said.uuid}, now it is {found['uuid']}")
        same = k == said.k
        self._said = _Said(k, found["generation"], found["uuid"], same and said.compacting, same and said.compacted)
        self.summary.last_step = max(self.summary.last_step, k)

    def _check_creation(self) -> None:
        found = self._found("r")
        if found.get("error") != "NotFoundError" or self._said.uuid:
            self._compare(found, "r")
        self._whole_run(steps=1)  # the next one creates it, or goes on
