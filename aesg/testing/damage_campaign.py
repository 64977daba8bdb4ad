"""Files of a store cut off, changed, exchanged, missing or older: what a campaign does, and what may come of it.

Opening and reading all of a damaged store ends with the last commit, or with an error that says so. It never ends with
a signal, a hang, memory that runs away or somebody else's exception; and under `integrity=checksums` never with
anything that was not committed last.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from aesg.testing.damage_reader import EVERY
from aesg.testing.forks import KILLED, ForkServer, JobDiedError
from aesg.testing.steps import DIM, model

BYTES: Final = ("flip", "flip", "byte", "blank", "garble", "page", "repeat")
"""Ways to change a file and not its length."""
LENGTHS: Final = ("cut", "cut", "cut-at-a-page", "empty", "grow")
"""Ways to change its length."""
_SHORTER: Final = {"cut", "cut-at-a-page", "empty"}
WHOLE: Final = ("missing", "older", "exchanged")
"""Ways to put another file in its place, or none."""

_CHECKED: Final = {"CorruptionError", "FormatVersionError"}
_BATCH: Final = 20
_MEGABYTES: Final = 400
"""A damaged store that makes a process larger than this has made it read a length that nobody wrote."""
_STEPS: Final = 6
_PAGE: Final = 4096


@dataclass
class Counts:
    """What came of a campaign, or of one file's share in it.

    Attributes:
        tried: Damaged stores opened and read.
        same: Gave the last commit: what was damaged does not matter.
        refused: Gave an error that says so.
        gone: Were no store, or a new one, where the damaged file was most of the store and there is nothing left of it.
        older: Gave an earlier commit, whole.
        different: Gave something else.
    """

    tried: int = 0
    same: int = 0
    refused: int = 0
    gone: int = 0
    older: int = 0
    different: int = 0

    def add(self, outcome: str) -> None:
        """Count one more."""
        self.tried += 1
        setattr(self, outcome, getattr(self, outcome) + 1)


@dataclass
class DamageSummary:
    """What a campaign came to.

    Attributes:
        campaign: Its name.
        url: The target.
        seed: What decided the places.
        total: Of all cases.
        files: Of the cases of each file; those in one folder together.
        errors: How often each error refused one.
        violations: What must not be, one sentence each.
    """

    campaign: str
    url: str
    seed: int
    total: Counts = field(default_factory=Counts)
    files: dict[str, Counts] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "campaign": self.campaign,
            "url": self.url,
            "seed": self.seed,
            **vars(self.total),
            "files": {name: vars(counts) for name, counts in sorted(self.files.items())},
            "errors": dict(self.errors),
            "violations": self.violations,
        }

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(self.as_dict())


@dataclass
class Specimen:
    """A store to be damaged.

    Attributes:
        condition: "closed" or "killed": how its writer ended.
        folder: What belongs to it.
        older: The same store some commits before, in the same condition.
        digest: Of what it holds.
        earlier: Digest → step of all that it ever held before.
        files: Paths of its files in the folder; those that are empty cannot be damaged.
        kinds: The same by kind, see `_kind`.
        turns: How often each kind has its turn: once, and once more for each fifth of the store that it is.
    """

    condition: str
    folder: Path
    older: Path
    digest: str
    earlier: dict[str, int]
    files: list[str] = field(init=False)
    kinds: dict[str, list[str]] = field(init=False)
    turns: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        paths = [path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size]
        self.files = sorted(str(path.relative_to(self.folder)) for path in paths)
        self.kinds = {}
        for name in self.files:
            self.kinds.setdefault(_kind(name), []).append(name)
        sizes = {kind: sum((self.folder / name).stat().st_size for name in names) for kind, names in self.kinds.items()}
        self.turns = {kind: 1 + 5 * size // sum(sizes.values()) for kind, size in sizes.items()}


def make_specimens(make_url: Callable[[Path], str], root: Path, server: ForkServer) -> list[Specimen]:
    """A store that was closed and one that was killed.

    Args:
        make_url: Folder → URL of the store in it.
        root: Where to make them.
        server: Where their writers are forked.
    """
    made = []
    for condition in ("closed", "killed"):
        folder, older = root / condition, root / f"{condition}-older"
        folder.mkdir(parents=True)
        for steps in (_STEPS, _STEPS + 1):
            arguments = {"url": make_url(folder), "steps": steps, "killed": condition == "killed"}
            with server.start("aesg.testing.damage_reader:make", **arguments) as job:
                said = list(job.lines())
                if job.wait() not in (0, KILLED) or not said:
                    raise AssertionError(f"a store to be damaged could not be made: {job.errors()}")
            if not older.exists():
                shutil.copytree(folder, older)
        last = int(said[-1])
        states = {digest: k for k in range(-1, last + 1) for digest in model(EVERY).after(k)}
        made.append(Specimen(condition, folder, older, model(EVERY).after(last)[-1], states))
    return made


@dataclass
class Case:
    """One damaged store.

    Attributes:
        said: What was done, for people.
        way: Which way.
        names: Paths of the damaged file in the folder, and of another one if two have changed places.
        specimen: What it was before.
        folder: Where it is.
        mode: In which mode it is to be opened.
    """

    said: str
    way: str
    names: tuple[str, ...]
    specimen: Specimen
    folder: Path
    mode: str

    @property
    def all_is_lost(self) -> bool:
        """Whether it is missing or empty and was most of the store: nobody can tell then that there was one."""
        sizes = {name: (self.specimen.folder / name).stat().st_size for name in self.specimen.files}
        return self.way in ("missing", "empty") and 2 * sizes[self.names[0]] > sum(sizes.values())


class DamageCampaign:
    """Damages copies of specimens, and has them opened.

    Args:
        name: For the summary.
        url: The target.
        specimens: See `make_specimens`.
        make_url: Folder → URL of the store in it.
        root: Where the copies are made.
        server: Where they are opened.
        checked: Whether the target promises `integrity=checksums`.
        record_files: Where it does not: patterns of the files in which bytes that were changed or added may pass for
            other values; empty stands for every file.
        seed: Decides the places.
    """

    def __init__(
        self,
        name: str,
        url: str,
        specimens: Sequence[Specimen],
        make_url: Callable[[Path], str],
        root: Path,
        server: ForkServer,
        *,
        checked: bool,
        record_files: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.summary = DamageSummary(name, url, seed)
        self._specimens, self._make_url, self._root, self._server = specimens, make_url, root, server
        self._checked, self._record_files = checked, record_files or ("*",)
        self._rng = random.Random(f"{name} {seed}")  # noqa: S311
        self._copies = 0

    def run(self, ways: Sequence[str], cases: int) -> DamageSummary:
        """Try so many cases.

        Raises:
            AssertionError: Something came of one that must not; the summary holds all such.
        """
        self._undamaged()
        plan = self._plan(ways, cases)
        while batch := [case for _, case in zip(range(_BATCH), plan, strict=False)]:
            results = self._read(batch)
            self._judge(batch, results)
            self._put_back([c for c, found in zip(batch, results, strict=True) if not found.get("opened", True)])
            for case in batch:
                shutil.rmtree(case.folder)
        if self.summary.violations:
            raise AssertionError(f"{len(self.summary.violations)} bad ends, the first: {self.summary.violations[0]}")
        return self.summary

    # Making cases

    def _undamaged(self) -> None:
        """The specimens are what they should be; or nothing that follows would mean anything."""
        for specimen in self._specimens:
            for mode in ("r", "a"):
                folder = self._copy(specimen)
                case = Case(f"{specimen.condition}, undamaged, mode={mode!r}", "", (), specimen, folder, mode)
                [found] = self._read([case])
                if found.get("digest") != specimen.digest or found["wrong"] or found["violations"]:
                    raise AssertionError(f"{case.said}: expected the last commit: {found}")
                shutil.rmtree(folder)

    def _copy(self, specimen: Specimen) -> Path:
        self._copies += 1
        return Path(shutil.copytree(specimen.folder, self._root / f"copy-{self._copies}"))

    def _plan(self, ways: Sequence[str], cases: int) -> Iterator[Case]:
        """Each way for each kind of file in turn, in any order, more often for large ones; again until it is enough."""
        tried = 0
        while tried < cases:
            turns = [
                (specimen, kind, way)
                for specimen in self._specimens
                for kind, turns in specimen.turns.items()
                for way in ways
                for _ in range(turns)
            ]
            self._rng.shuffle(turns)
            for specimen, kind, way in turns[: cases - tried]:
                yield self._case(specimen, self._rng.choice(specimen.kinds[kind]), way)
                tried += 1

    def _case(self, specimen: Specimen, name: str, way: str) -> Case:
        folder, mode = self._copy(specimen), self._rng.choice("ar")
        path, names = folder / name, [name]
        if way == "missing":
            path.unlink()
            done = way
        elif way == "older":
            older = specimen.older / name
            shutil.copyfile(older, path) if older.exists() else path.unlink()
            done = way
        elif way == "exchanged":
            other = self._rng.choice(specimen.files)
            shutil.copyfile(specimen.folder / other, path)
            shutil.copyfile(specimen.folder / name, folder / other)
            names.append(other)
            done = f"exchanged with {other}"
        else:
            data = bytearray(path.read_bytes())
            done = damage(data, way, self._rng)
            path.write_bytes(data)
            way = way if data else "empty"
        said = f"{specimen.condition}, {name} {done}, mode={mode!r}"
        return Case(said, way, tuple(names), specimen, folder, mode)

    # Reading and judging

    def _read(self, batch: Sequence[Case]) -> list[dict[str, Any]]:
        """What became of each; one after which the process was dead has "died"."""
        found: list[dict[str, Any]] = []
        while len(found) < len(batch):
            asked = [(self._make_url(case.folder), case.mode) for case in batch[len(found) :]]
            with self._server.start("aesg.testing.damage_reader:read_all", cases=asked, vector_dim=DIM) as reader:
                try:
                    found += [json.loads(line) for line in reader.lines()]
                    died = reader.wait() != 0
                    why = f"status {reader.status}"
                except JobDiedError as error:
                    died, why = True, str(error)
                if died:
                    found.append({"died": f"{why}: {reader.errors()}"})
        return found

    def _judge(self, batch: Sequence[Case], results: Sequence[dict[str, Any]]) -> None:
        for case, found in zip(batch, results, strict=True):
            outcome, wrong = self._outcome(case, found)
            self.summary.total.add(outcome)
            self.summary.files.setdefault(_kind(case.names[0]), Counts()).add(outcome)
            if outcome == "refused":
                self.summary.errors[found["error"]] += 1
            if wrong:
                self.summary.violations.append(f"{case.said}: {wrong}")

    def _put_back(self, refused: Sequence[Case]) -> None:
        """Stores that could not be opened were not made worse: with the right files back they are as before."""
        cases = [case for case in refused if case.specimen.condition == "closed" and case.mode == "a"]
        for case in cases:
            for name in case.names:
                shutil.copyfile(case.specimen.folder / name, case.folder / name)
            case.mode = "r"
        for case, found in zip(cases, self._read(cases), strict=True):
            if found.get("digest") != case.specimen.digest:
                self.summary.violations.append(f"{case.said}: refused, but with the right files back: {found}")

    def _outcome(self, case: Case, found: dict[str, Any]) -> tuple[str, str]:
        """What came of a case, and what is wrong with that; "" when nothing is."""
        for end in ("died", "escaped"):
            if end in found:
                return "different", f"{end}: {found[end]}"
        if found["peak_mb"] > _MEGABYTES:
            return "different", f"{found['peak_mb']} MB of memory were taken"
        made_anew = found.get("digest") == model(EVERY).after(-1)[0]
        if case.all_is_lost and (made_anew or found.get("error") == "NotFoundError"):
            return "gone", ""
        if made_anew:
            return "older", "a new store was made where there was one"
        if "error" in found:
            return "refused", self._wrong_refusal(case, found)
        if found["digest"] == case.specimen.digest:
            return "same", "; ".join(found["wrong"])
        outcome, what = "different", f"other values: {found['violations'] or found['wrong'] or 'unnoticed'}"
        if found["digest"] in case.specimen.earlier and not found["wrong"]:
            outcome, what = "older", f"an earlier commit, as of step {case.specimen.earlier[found['digest']]}"
        if self._checked:
            # An older file in place of the one that names the last commit is how a backup is restored.
            allowed = outcome == "older" and case.way == "older"
        else:
            # Nobody can tell a whole file of the same kind from the one that was there, nor other values; lost ones are
            # told by their number.
            of_records = any(fnmatch(case.names[0], f"*{pattern}") for pattern in self._record_files)
            allowed = case.way in WHOLE or (of_records and case.way not in _SHORTER)
        return outcome, "" if allowed else what

    def _wrong_refusal(self, case: Case, found: dict[str, Any]) -> str:
        said = f"{found['error']}: {found['message']}"
        if str(case.folder) not in found["message"]:
            return f"the error does not name the store: {said}"
        if not self._checked or found["error"] in _CHECKED:
            return ""
        return f"{said}; expected {' or '.join(sorted(_CHECKED))}"


def damage(data: bytearray, way: str, rng: random.Random) -> str:
    """Change the bytes of a file, in place; says what was done."""
    at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 200))
    length = rng.choice([1, 8, 40, 500])
    stretch = slice(at, at + length)
    if way == "flip":
        bit = rng.randrange(8)
        data[at] ^= 1 << bit
        return f"bit {bit} of byte {at} flipped"
    if way == "byte":
        data[at] = rng.randrange(256)
        return f"byte {at} set to {data[at]}"
    if way == "blank":
        data[stretch] = bytes(len(data[stretch]))
        return f"{length} bytes from {at} on blanked"
    if way == "garble":
        data[stretch] = rng.randbytes(len(data[stretch]))
        return f"{length} bytes from {at} on made up"
    if way == "page":
        at = at // _PAGE * _PAGE
        stretch = slice(at, at + _PAGE)
        data[stretch] = bytes(len(data[stretch]))
        return f"page at {at} blanked"
    if way == "repeat":
        data[stretch] = data[: len(data[stretch])]
        return f"{length} bytes from {at} on repeat the first ones"
    if way == "empty":
        data.clear()
        return "emptied"
    if way == "grow":
        data += rng.randbytes(rng.choice([1, 31, 5000]))
        return f"grown to {len(data)} bytes"
    if way == "cut-at-a-page":
        at = at // _PAGE * _PAGE
    del data[at:]
    return f"cut off at {at}"


def _kind(name: str) -> str:
    """A file's name for counting: those in one folder of the store are of one kind."""
    _, *parts = Path(name).parts  # the first is the store
    return name if not parts else parts[0] if len(parts) == 1 else f"{parts[0]}/…"
