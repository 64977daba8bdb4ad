"""`aesg log`: what it shows, what it draws, and that it follows another process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

import aesg
from aesg.cli import timeline
from aesg.cli.commands import log
from aesg.cli.main import app
from aesg.errors import AESGError, InvalidInputError
from aesg.records import EVENT_DTYPE, EventType, events, now
from tests.test_cli_main import run

T0 = 1_700_000_000


def an_event(type, id1, id2=0, val=0.0, at=0):
    return events(type, id1, id2, val, timestamp=T0 + at)


HISTORY = [
    an_event(EventType.CREATE, 11, val=1.0, at=0),
    an_event(EventType.CREATE, 12, 11, val=4.0, at=60),
    an_event(EventType.MERGE, 11, 12, at=120),
    an_event(EventType.SPLIT, 11, 13, at=180),
    an_event(EventType.PRUNE, 13, at=240),
    an_event(EventType.CONSOLIDATE, 1, 1234, at=300),
    an_event(EventType.RESTRUCTURE, 1, 5, at=360),
    an_event(9, 1, 2, 0.5, at=420),
]


@pytest.fixture
def url(tmp_path):
    with aesg.open(f"lmdb://{tmp_path}/store", vector_dim=2) as store:
        for event in HISTORY:
            store.events.append(event)
    return f"lmdb://{tmp_path}/store"


def invoke(*args):
    """The command in this process, which takes less time; what it prints."""
    result = CliRunner().invoke(app, ["log", *map(str, args)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def types(*args):
    return [event["type"] for event in json.loads(invoke(*args, "--json"))["events"]]


def test_what_people_see(url):
    done = run("log", url, TZ="UTC")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "2023-11-14 22:13:20  CREATE       node 11",
        "2023-11-14 22:14:20  CREATE       node 12, abstracted from 4, the first 11",
        "2023-11-14 22:15:20  MERGE        node 11 took in 12",
        "2023-11-14 22:16:20  SPLIT        node 11 gave 13",
        "2023-11-14 22:17:20  PRUNE        node 13",
        "2023-11-14 22:18:20  CONSOLIDATE  epoch 1: 1,234 active nodes",
        "2023-11-14 22:19:20  RESTRUCTURE  epoch 1: 5 regions",
        "2023-11-14 22:20:20  UNKNOWN      type 9: 1 2 0.5",
    ]
    assert run("log", url, "--limit", 1, TZ="Asia/Tokyo").stdout.startswith("2023-11-15 07:20:20")


def test_colours_only_where_they_are_wanted(url):
    assert "\x1b[32mCREATE" in run("log", url, FORCE_COLOR="1").stdout
    assert "\x1b" not in run("log", url, FORCE_COLOR="1", NO_COLOR="1").stdout


def test_what_machines_see(url):
    found = json.loads(invoke(url, "--json"))
    assert found["url"] == url
    assert found["events"][2] == {"timestamp": T0 + 120, "type": "MERGE", "id1": 11, "id2": 12, "val": 0.0}
    assert len(found["events"]) == 8
    assert json.loads(invoke(url, "--json", "--since", "1h")) == {"url": url, "events": []}


def test_filters(url):
    assert types(url, "--type", "merge", "--type", "PRUNE") == ["MERGE", "PRUNE"]
    assert types(url, "--type", "split,create") == ["CREATE", "CREATE", "SPLIT"]
    assert types(url, "--since", "2023-11-14T22:18:20+00:00") == ["CONSOLIDATE", "RESTRUCTURE", "UNKNOWN"]
    assert types(url, "--until", "2023-11-14T23:14:20+01:00") == ["CREATE", "CREATE"]
    assert types(url, "--since", T0 + 100, "--until", T0 + 200) == ["MERGE", "SPLIT"]
    assert types(url, "--limit", 2) == ["RESTRUCTURE", "UNKNOWN"]
    assert types(url, "--type", "create", "--limit", 1) == ["CREATE"]
    assert types(url, "--until", "3d")[-1] == "UNKNOWN"


def test_the_newest_are_found_across_chunks(monkeypatch):
    monkeypatch.setattr(log, "CHUNK", 3)
    with aesg.open("memory:", vector_dim=2) as store:
        array = np.zeros(10, EVENT_DTYPE)
        array["id1"], array["type"] = np.arange(10), np.arange(10) % 2
        store.events.append(array)
        for limit in range(1, 12):
            for kinds in ([], ["merge"]):
                wanted = log.Filter.of(kinds, "", "")
                found = np.concatenate(list(log.newest(store.events, wanted, limit)))["id1"]
                every = np.arange(10)[1::2] if kinds else np.arange(10)
                assert found.tolist() == every[-limit:].tolist()


def test_moments():
    assert abs(log.moment("2h") - (now() - 7200)) <= 2
    assert abs(log.moment("1.5 d ago") - (now() - 129600)) <= 2
    assert log.moment("1700000000") == 1_700_000_000
    assert log.moment("2023-11-14T22:13:20+00:00") == 1_700_000_000
    for text in ("yesterday", "12", "2h3", "9999999999999999999", "2023-13-01"):
        with pytest.raises(InvalidInputError, match="is no time"):
            log.moment(text)


def test_times_that_no_calendar_has():
    assert log.shown_time(2**64 - 1).strip() == str(2**64 - 1)


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--type", "birth"], "unknown type of event 'birth'; known: create, merge"),
        (["--since", "soon"], "'soon' is no time"),
        (["--limit", "0"], "at least 1"),
        (["--plot", "x.gif"], "a picture ends with .png"),
        (["--plot", "x.png", "--limit", "3"], "without --follow and --limit"),
        (["--plot", "x.png", "--since", "1h"], "no such events"),
        (["--plot", "nowhere/x.png"], "writing nowhere/x.png"),
    ],
)
def test_errors(url, args, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AESGError, match=re.escape(part)):
        invoke(url, *args)


# --- following -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["memmap", "lmdb", "zarr"])
def test_follow_shows_what_another_process_commits(scheme, tmp_path):
    url = f"{scheme}://{tmp_path}/{scheme}"
    with aesg.open(url, vector_dim=2) as store:
        for event in HISTORY[:3]:
            store.events.append(event)
        command = [sys.executable, "-m", "aesg", "log", url, "--follow", "--json", "--limit", "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            try:
                assert json.loads(child.stdout.readline())["type"] == "MERGE"
                store.events.append(HISTORY[3])
                assert json.loads(child.stdout.readline())["type"] == "SPLIT"
                store.events.append(np.concatenate([HISTORY[4], HISTORY[5]]).astype(EVENT_DTYPE))
                assert json.loads(child.stdout.readline())["type"] == "PRUNE"
                assert json.loads(child.stdout.readline())["type"] == "CONSOLIDATE"
                child.send_signal(signal.SIGINT)
                assert child.wait(30) == 0
                assert child.stderr.read() == ""
            finally:
                child.kill()  # or the end of the block would wait for it


def test_ctrl_c_elsewhere_is_130_without_a_traceback(tmp_path):
    with aesg.open(tmp_path / "store", vector_dim=2) as store:
        array = np.zeros(300_000, EVENT_DTYPE)
        store.events.append(array)
    command = [sys.executable, "-m", "aesg", "log", str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.read(100)  # it has begun
        child.send_signal(signal.SIGINT)
        time.sleep(0.1)
        child.stdout.read()
        assert child.wait(60) == 130
        assert child.stderr.read() == b""


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    with aesg.open(tmp_path / "store", vector_dim=2) as store:
        store.events.append(np.zeros(100_000, EVENT_DTYPE))
    for command in (f"log {tmp_path}/store", f"log {tmp_path}/store --json", "backends"):
        script = f"{sys.executable} -m aesg {command} | head -c 10 >{tmp_path}/got; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
        assert done.stderr == ""
        assert done.stdout.strip() in ("0", "141")  # it may have been done before head was
        assert (tmp_path / "got").stat().st_size == 10
    script = f"{sys.executable} -m aesg log {tmp_path}/store | head -c 10 >/dev/null; echo ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout == "141\n"


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_plot(url, tmp_path, suffix, magic):
    path = tmp_path / f"life{suffix}"
    found = json.loads(invoke(url, "--plot", path, "--json"))
    assert (found["plot"], found["events"], found["types"]["CREATE"]) == (str(path), 7, 2)
    assert path.read_bytes().startswith(magic)
    if suffix == ".svg":
        text = path.read_text()
        for word in ("living nodes", "create", "consolidate", url):
            assert f"<!-- {word} -->" in text


def test_the_histogram_counts_every_event_once(url):
    with aesg.open(url, mode="r") as store:
        edges, counts = timeline.histogram(store.events, log.Filter())
    assert {type: int(n.sum()) for type, n in counts.items()} == {**dict.fromkeys(EventType, 1), EventType.CREATE: 2}
    assert edges[0] == T0
    assert edges[-1] > T0 + 420
    assert counts[EventType.MERGE][np.searchsorted(edges, T0 + 120, side="right") - 1] == 1
