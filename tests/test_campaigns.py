"""The clauses about kills, damage and full disks catch what they are there for, and their parts do what they say."""

import os
import random
import signal
import sys
import time
from functools import partial

import numpy as np
import pytest
import saboteurs  # noqa: F401 - registers backends
from campaign_saboteurs import CLAUSES

import aesg
from aesg.testing import Target, run, steps
from aesg.testing.crash_campaign import CrashCampaign
from aesg.testing.crash_writer import Countdown, count_calls, make_small
from aesg.testing.damage_campaign import BYTES, LENGTHS, WHOLE, DamageCampaign, damage, make_specimens
from aesg.testing.forks import JobDiedError, say, say_json, server
from aesg.testing.full_disk import Place, check, until_full
from tools import campaigns


@pytest.mark.parametrize("scheme", CLAUSES)
def test_a_broken_backend_is_caught_by_the_clause_for_it(scheme, monkeypatch):
    monkeypatch.setenv("AESG_CRASH_KILLS", "100")  # a short form might miss it
    report = run(Target(f"{scheme}:", imports=("campaign_saboteurs",)), choose=CLAUSES[scheme])
    print(f"{scheme:36} {report.failed}")
    assert report.failed == [CLAUSES[scheme]], "\n".join(report.lines())


# --- steps -----------------------------------------------------------------------------------------------------------


def test_the_steps_are_the_same_on_every_backend(tmp_path):
    model = steps.Model(every=7)
    with aesg.open(tmp_path / "store", vector_dim=steps.DIM) as store:
        for k in range(12):
            with store.transaction() as transaction:
                steps.step(transaction, k)
            assert steps.digest(store) == model.after(k)[0]
            if steps.compacts_after(k, 7):
                store.compact()
                assert steps.digest(store) == model.after(k)[1] != model.after(k)[0]
            assert steps.inconsistencies(store) == []
            assert steps.last_step(store) == k
        assert len(store.nodes) > 100
        assert len(store.edges) > 100
    assert len({digest for k in range(-1, 12) for digest in model.after(k)}) == 15


def test_in_small_blocks_the_steps_cross_boundaries_and_merges(tmp_path, monkeypatch):
    from aesg.backends.blocks import BlockStore, layout

    for owner, name in ((BlockStore, "__init__"), (layout, "FEW_UNSORTED")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # undone after the test
    make_small()
    merges = []
    with aesg.open(f"lmdb://{tmp_path}/store", vector_dim=steps.DIM) as store:
        for k in range(12):
            with store.transaction() as transaction:
                steps.step(transaction, k)
            merges.append(store.container.head()["merge"])
        assert store.container.head()["sorted_edges"] > 0, "no edge is sorted by source"
        assert store.container.head()["block_bytes"] < 24 * len(store.nodes), "all vectors are in one block"
    steps_that_merged = np.count_nonzero(np.diff(merges))
    assert 2 < steps_that_merged < 10, "some merge, some only append to the log"


@pytest.mark.parametrize(
    ("part", "broken"),
    [
        ("nodes", {"rows_of": lambda real, ids: real(ids)[::-1]}),
        ("nodes", {"__len__": lambda real: real() + 1}),
        ("edges", {"degrees": lambda real, rows: real(rows) * 2}),
        ("edges", {"__len__": lambda real: real() - 1}),
        ("edges", {"read": lambda real, refs: real(refs[::-1])}),
    ],
)
def test_a_graph_that_contradicts_itself_is_noticed(part, broken):
    class Parts:
        def __init__(self, real):
            self._real = real

        def __getattr__(self, name):
            return getattr(self._real, name)

        def __len__(self):
            return broken["__len__"](self._real.__len__) if "__len__" in broken else len(self._real)

    class Graph(Parts):
        @property
        def nodes(self):
            return self._shown("nodes")

        @property
        def edges(self):
            return self._shown("edges")

        def _shown(self, name):
            shown = Parts(getattr(self._real, name))
            if name != part:
                return getattr(self._real, name)
            for method, act in broken.items():
                if method != "__len__":
                    setattr(shown, method, partial(act, getattr(getattr(self._real, name), method)))
            return shown

    with aesg.open("memory:", vector_dim=steps.DIM) as store:
        for k in range(8):
            steps.step(store, k)
        assert steps.inconsistencies(store) == []
        assert steps.inconsistencies(Graph(store))


# --- processes -------------------------------------------------------------------------------------------------------


def says(*words):
    for word in words:
        say(word)


def ends_badly(how):
    say("begun")
    if how == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "exception":
        raise LookupError("of its own")
    if how == "hang":
        time.sleep(60)
    sys.stdout.write("half a li")


def adds(*numbers):
    say_json(sum(numbers))


@pytest.fixture(scope="module")
def forks():
    return server(("test_campaigns",))


def test_a_job_says_lines_and_ends(forks):
    for _ in range(2):
        with forks.start("test_campaigns:says", words=[]) as job:
            assert list(job.lines()) == []
            assert job.wait() == 1, "says takes no keyword"
            assert "TypeError" in job.errors()


def test_a_job_that_dies_says_how(forks):
    with forks.start("test_campaigns:ends_badly", how="signal") as job:
        assert list(job.lines()) == ["begun"]
        assert job.wait() == -signal.SIGSEGV
    with pytest.raises(JobDiedError, match="of its own"):
        forks.call("test_campaigns:ends_badly", how="exception")
    with forks.start("test_campaigns:ends_badly", how="hang") as job:
        assert job.line() == "begun"
        with pytest.raises(JobDiedError, match=r"(?s)said nothing.*in ends_badly"):
            job.line(seconds=0.2)
        assert job.wait() == -signal.SIGABRT
    with forks.start("test_campaigns:ends_badly", how="") as job:
        assert list(job.lines()) == ["begun"], "a line that was cut short is none"


def test_a_job_that_is_left_is_ended(forks):
    with forks.start("test_campaigns:ends_badly", how="hang") as job:
        job.line()
    with pytest.raises(ProcessLookupError):
        os.kill(job.pid, 0)


def test_modules_that_cannot_be_imported_are_named():
    from aesg.testing.forks import ForkServer

    with pytest.raises(JobDiedError, match="no_such_module"):
        ForkServer(("no_such_module",))


# --- points ----------------------------------------------------------------------------------------------------------


class Stop(Exception):  # noqa: N818
    pass


class Stopping(Countdown):
    def end(self):
        raise Stop


def writes_with_countdown(folder, at):
    """In a job: a file is opened, written to, replaced and removed; says how far that came."""
    countdown = Stopping(at, armed=True)
    count_calls(countdown, folder)
    path, done = os.path.join(folder, "file"), []
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        done.append("open")
        os.pwrite(fd, b"12345678", 0)
        done.append("pwrite")
        os.pwritev(fd, [b"abcd", b"efgh"], 8)
        done.append("pwritev")
        os.fsync(fd)
        done.append("fsync")
        os.replace(path, path + "2")
        done.append("replace")
        os.truncate(path + "2", 3)
        done.append("truncate")
        with open(path + "3", "w") as file:
            done.append("open")
            file.write("x")
        os.remove(path + "3")
        done.append("remove")
    except Stop:
        pass
    countdown.armed = False
    with open(os.devnull, "w"):
        pass
    contents = {name: open(os.path.join(folder, name)).read() for name in os.listdir(folder)}  # noqa: SIM115
    say_json([done, contents, countdown.points])


@pytest.mark.parametrize(
    ("at", "done", "contents"),
    [
        (1, 0, {}),
        (2, 1, {"file": "1234"}),
        (3, 2, {"file": "12345678abcd"}),
        (4, 3, {"file": "12345678abcdefgh"}),
        (5, 4, {"file": "12345678abcdefgh"}),
        (6, 5, {"file2": "12345678abcdefgh"}),
        (7, 6, {"file2": "123"}),
        (8, 7, {"file2": "123", "file3": "x"}),
        (0, 8, {"file2": "123"}),
    ],
)
def test_every_call_that_changes_a_file_is_a_point(forks, tmp_path, at, done, contents):
    found = forks.call("test_campaigns:writes_with_countdown", folder=str(tmp_path), at=at)
    assert len(found[0]) == done
    assert found[1] == contents
    assert found[2] == (at or 8)


# --- campaigns -------------------------------------------------------------------------------------------------------


def make_url(folder):
    folder.mkdir(exist_ok=True)
    return f"memmap://{folder}/store"


def test_a_crash_campaign_counts_what_it_did(tmp_path):
    (tmp_path / "here").mkdir()
    campaign = CrashCampaign("some", make_url, tmp_path / "here", server())
    summary = campaign.at_points(5, "calls")
    assert summary.kills == 5
    assert summary.reopened >= 6
    assert summary.lost == 0
    assert not summary.violations
    assert summary.last_step > 8
    assert '"kills": 5' in summary.line()


def test_the_same_seed_kills_at_the_same_points(tmp_path):
    ends = []
    for name in "ab":
        (tmp_path / name).mkdir()
        campaign = CrashCampaign("same", make_url, tmp_path / name, server(), seed=3)
        campaign.at_points(6, "calls")
        ends.append((campaign.summary.last_step, campaign.summary.kills, campaign.summary.reopened))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("way", sorted({*BYTES, *LENGTHS} - {"empty"}))
def test_damage_is_what_it_says_and_the_same_again(way):
    whole = bytes(range(256)) * 40
    changed = 0
    for seed in range(20):
        one, two = bytearray(whole), bytearray(whole)
        assert damage(one, way, random.Random(seed)) == damage(two, way, random.Random(seed))
        assert one == two
        assert (len(one) == len(whole)) == (way in BYTES)
        changed += one != whole
    assert changed > 10


def test_a_damage_campaign_tries_every_file_in_every_way(tmp_path):
    specimens = make_specimens(make_url, tmp_path / "specimens", server())
    assert [specimen.condition for specimen in specimens] == ["closed", "killed"]
    assert "store/journal.redo" in specimens[1].files
    campaign = DamageCampaign(
        "some", "memmap:", specimens, make_url, tmp_path, server(("hasty_memmap",)), checked=False
    )
    summary = campaign.run(WHOLE, 3 * sum(len(specimen.kinds) for specimen in specimens))
    assert set(summary.files) == {kind for specimen in specimens for kind in specimen.kinds}
    total = vars(summary.total)
    assert total["tried"] == sum(counts.tried for counts in summary.files.values())
    assert total["tried"] == sum(count for name, count in total.items() if name != "tried")
    assert total["refused"] > 0
    assert total["same"] > 0
    assert sum(summary.errors.values()) == total["refused"]


def test_a_store_that_is_damaged_to_begin_with_is_no_specimen(tmp_path):
    specimens = make_specimens(make_url, tmp_path / "specimens", server())
    os.truncate(tmp_path / "specimens" / "closed" / "store" / "nodes.aesg", 100)
    campaign = DamageCampaign("some", "memmap:", specimens, make_url, tmp_path, server(), checked=False)
    with pytest.raises(AssertionError, match="undamaged"):
        campaign.run(LENGTHS, 1)


def test_places_and_checks_of_full_disks(tmp_path):
    place = Place("memmap:///FOLDER/store", tmp_path / "a b")
    with place.open(dim=steps.DIM) as store:
        steps.step(store, 1)
        wanted = steps.digest(store)
    place.copied(tmp_path / "c").check("another", wanted)
    with pytest.raises(AssertionError, match="does not hold"):
        place.check("another")
    with place.open("r") as store:
        check(store, wanted)
    assert until_full(lambda turn: None, 3) is None


def test_the_long_forms_are_told_as_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AESG_CRASH_KILLS", "")  # `main` sets them for the processes that it starts
    monkeypatch.setenv("AESG_DAMAGE_CASES", "")
    kept = str(tmp_path / "reports.json")
    chosen = "crash.killed-at-calls or damage.length-changed"
    assert campaigns.main(["memmap:", "-k", chosen, "--kills", "20", "--cases", "30", "--json", kept]) == 0
    told = capsys.readouterr().out
    kills, damage = ([cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if "`" in line)
    assert (kills[:2], kills[3:]) == (["`memmap:`", "5"], ["0", "0", "–"])
    assert damage[:3] == ["`memmap:`", "cut, emptied, grown", "30"]
    assert sum(map(int, damage[3:8])) == 30
    assert campaigns.main(["--kept", kept]) == 0
    assert capsys.readouterr().out == told


def test_a_clause_that_failed_is_told_and_is_the_exit_status(tmp_path, capsys):
    assert campaigns.main(["sabotage-goes-on-when-it-is-closed:", "-k", "stores.closed", "--suite"]) == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "| `sabotage-goes-on-when-it-is-closed:` | 1 | 0 | 1 | 0 | 0 |"
    assert "stores.closed: " in told.err
