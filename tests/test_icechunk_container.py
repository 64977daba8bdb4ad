"""The container in an Icechunk repository: commits, views, history, what others do to it, what a crash leaves."""

import asyncio
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from zarr_support import COLUMNS, HEAD, IDS, VECTORS, Writers, attempt, opened, put, rows_of, same, state_after

import aesg
from aesg.backends.blocks.container import Changes
from aesg.backends.zarr import icechunk as backend
from aesg.errors import (
    AESGError,
    BackendNotInstalledError,
    CapacityError,
    ConflictError,
    CorruptionError,
    InvalidInputError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)
from aesg.protocols import Durability, ReaderView
from aesg.records import NodeBatch

icechunk = pytest.importorskip("icechunk")
zarr = pytest.importorskip("zarr")

KILLS = int(os.environ.get("AESG_CRASH_KILLS", "24"))
DAMAGES = int(os.environ.get("AESG_DAMAGES", "80"))
SUPPORT = Path(__file__).with_name("zarr_support.py")


@pytest.fixture
def url(tmp_path):
    return f"icechunk://{tmp_path}/store"


@pytest.fixture
def closing():
    """What is given to it is closed after the test."""
    given = []
    yield lambda found: given.append(found) or found
    for found in reversed(given):
        found.close()


def theirs(url):
    """The repository, as any program opens it."""
    return icechunk.Repository.open(icechunk.local_filesystem_storage(url.removeprefix("icechunk://")))


def commit_of_another_program(url, value="seen"):
    session = theirs(url).writable_session("main")
    zarr.open_group(session.store).attrs["note"] = value
    return session.commit("a note")


def filled(url, n=6):
    store = aesg.open(url, vector_dim=3)
    store.nodes.append(NodeBatch(np.arange(3 * n, dtype=np.float32).reshape(n, 3)))
    return store


def python(code, *args):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(SUPPORT.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestBlocks:
    @pytest.mark.parametrize("codec", ["none", "zstd", "blosc"])
    def test_what_was_put_is_got_now_and_after_reopening(self, url, codec):
        writer = opened(url, codec=codec)
        assert writer.head() is None
        state = None
        for k in range(8):
            state = put(writer, state_after(k), state, k=k)
            assert writer.head() == {**HEAD, "k": k}
            assert same(writer, state)
        writer.close()
        for mode in "ra":
            again = opened(url, mode)
            assert again.head() == {**HEAD, "k": 7}
            assert same(again, state)
            if mode == "a":
                state = put(again, state_after(8), state, k=8)
                assert same(again, state)
            again.close()

    def test_zarr_reads_the_same_values_through_icechunk(self, url):
        writer = opened(url)
        state = put(writer, {name: rows_of(column, 150) for name, column in COLUMNS.items()})
        writer.close()
        group = zarr.open_group(theirs(url).readonly_session("main").store, mode="r")
        arrays = {name for name, member in group.members(max_depth=None) if isinstance(member, zarr.Array)}
        assert arrays == set(state)
        for name, values in state.items():
            assert np.array_equal(group[name][...], values)
            assert group[name].metadata.dimension_names[0] == COLUMNS[name].dimension
        assert group.attrs["aesg"] == HEAD

    def test_a_view_stays_until_it_is_refreshed(self, url, closing):
        writer = closing(opened(url))
        state = put(writer, state_after(0), k=0)
        reader = closing(opened(url, "r"))
        assert reader.refresh() is False
        state = put(writer, state_after(1), state, k=1)
        with reader.reading():
            assert reader.head()["k"] == 0
            assert same(reader, state_after(0))
        version = reader.version
        assert reader.refresh() is True
        assert reader.version != version
        assert reader.head()["k"] == 1
        assert same(reader, state)
        with pytest.raises(ReadOnlyError):
            put(reader, state_after(2), state)

    def test_a_snapshot_stays_at_its_commit(self, url, closing):
        writer = closing(opened(url))
        state = put(writer, state_after(0), k=0)
        snapshot = writer.snapshot()
        put(writer, state_after(1), state, k=1)
        assert snapshot.head()["k"] == 0
        assert same(snapshot, state_after(0))
        assert snapshot.refresh() is False
        snapshot.close()
        assert same(writer, state_after(1))

    def test_what_a_failed_commit_wrote_is_not_seen(self, url, closing):
        writer = closing(opened(url))
        state = put(writer, state_after(0), k=0)

        class BrokenBlock:
            """No array: encoding it fails, after others were written."""

        lengths = {name: len(values) for name, values in state.items()}
        puts = {("nodes/id", 0): np.zeros(16, "<u8"), ("nodes/id", 1): BrokenBlock()}
        with pytest.raises((TypeError, AttributeError, ValueError)):
            writer.commit(Changes({}, COLUMNS, lengths, puts, []))
        assert same(writer, state)
        put(writer, state_after(1), state, k=1)
        assert same(writer, state_after(1))

    def test_in_a_thread_whose_own_event_loop_is_running(self, url):
        async def notebook():
            with filled(url) as store:
                return store.nodes.read([1], ["vector"])["vector"].tolist()

        assert asyncio.run(notebook()) == [[3, 4, 5]]


class TestOpening:
    def test_capabilities(self, url):
        with filled(url) as store:
            assert store.capabilities.durability is Durability.PROCESS_CRASH
            assert store.capabilities.reader_view is ReaderView.FIXED
            assert store.capabilities.snapshots
            with pytest.raises(UnsupportedError, match="power_loss"):
                aesg.open(url, "r", require={"durability": "power_loss"})

    def test_a_bare_path_is_recognised_and_a_url_finds_it_again(self, url, tmp_path):
        filled(url).close()
        with aesg.open(tmp_path / "store") as store:
            assert store.url == url
            with pickle.loads(pickle.dumps(store)) as copy:
                assert len(copy.nodes) == 6
        assert not backend.recognises(tmp_path)

    def test_there_is_no_store(self, url, tmp_path):
        with pytest.raises(NotFoundError):
            aesg.open(url, "r")
        with pytest.raises(InvalidInputError, match="vector_dim"):
            aesg.open(url)
        assert not (tmp_path / "store").exists()

    def test_only_folders_so_far(self):
        with pytest.raises(UnsupportedError, match="only local folders"):
            aesg.open("icechunk://bucket/prefix", vector_dim=3)
        with pytest.raises(InvalidInputError, match="path is missing"):
            aesg.open("icechunk:", vector_dim=3)

    def test_a_repository_of_something_else_is_left_alone(self, url, tmp_path):
        repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "store")))
        session = repository.writable_session("main")
        zarr.create_group(session.store, attributes={"mine": 1})
        tip = session.commit("mine")
        for mode in "ar":
            with pytest.raises(InvalidInputError, match="something else"):
                aesg.open(url, mode, vector_dim=3)
        assert theirs(url).lookup_branch("main") == tip

    def test_an_empty_repository_that_another_program_made(self, url, tmp_path):
        icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "store")))
        with pytest.raises(NotFoundError):
            aesg.open(url, "r")
        with filled(url) as store:
            assert len(store.nodes) == 6

    def test_a_creation_that_was_cut_short_is_gone_on_with(self, url, tmp_path, monkeypatch):
        real, moves = os.replace, 0

        def replace(*args):
            nonlocal moves
            moves += 1
            if moves == 2:
                raise KeyboardInterrupt
            real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                aesg.open(url, vector_dim=3)
        assert not backend.recognises(tmp_path / "store")
        with pytest.raises(NotFoundError):
            aesg.open(url, "r")
        with filled(url) as store:
            assert len(store.nodes) == 6
        shutil.rmtree(tmp_path / "store")
        (tmp_path / "store/aesg.new/snapshots").mkdir(parents=True)
        (tmp_path / "store/aesg.new/snapshots/half").write_text("")
        with filled(url) as store:
            assert len(store.nodes) == 6
        assert not (tmp_path / "store/aesg.new").exists()

    def test_a_store_keeps_its_codec(self, url):
        with aesg.open(url, vector_dim=3) as store:
            assert store.stats()["codec"] == "zstd"
        with pytest.raises(InvalidInputError, match="codec is zstd, not none"):
            aesg.open(url, codec="none")

    def test_one_writes(self, url, closing):
        closing(filled(url))
        with pytest.raises(LockedError, match=f"pid {os.getpid()}"):
            aesg.open(url)
        code = "import sys; from zarr_support import attempt; print(attempt(sys.argv[1], 'a')['error'])"
        assert python(code, url).strip() == "LockedError"
        with aesg.open(url, "r") as reader:
            assert len(reader.nodes) == 6

    def test_the_package_is_an_extra(self, url, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "icechunk", None)
        with pytest.raises(BackendNotInstalledError, match=r"pip install \"aesg\[icechunk\]\""):
            aesg.open(url, vector_dim=3)
        aesg.open(tmp_path / "other", vector_dim=3).close()
        assert not (tmp_path / "store").exists()

    def test_it_says_nothing_on_its_own(self, url):
        code = """
        import sys, aesg
        with aesg.open(sys.argv[1], vector_dim=3) as store:
            store.attrs["a"] = 1
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), url], capture_output=True, text=True, timeout=60, check=True
        )
        assert (done.stdout, done.stderr) == ("", "")


def test_a_snapshot_in_anothers_place_is_noticed(url):
    with filled(url) as store:
        for k in range(3):
            store.attrs["k"] = k
    with aesg.open(url, "r") as store:
        newest, *_, older, _, _ = (entry.snapshot for entry in store.history())
    folder = Path(url.removeprefix("icechunk://")) / "snapshots"
    (folder / newest).rename(folder / "aside")
    (folder / older).rename(folder / newest)
    (folder / "aside").rename(folder / older)
    for mode in ("r", "a"):
        with pytest.raises(CorruptionError, match=f"snapshot {newest} holds {older}"):
            aesg.open(url, mode)


class TestHistory:
    def test_commits_newest_first(self, url):
        with filled(url) as store:
            generations = [store.generation]
            for k in range(3):
                store.attrs["k"] = k
                generations.append(store.generation)
            history = store.history()
            assert [entry.generation for entry in history] == [*reversed(generations), 0, None]
            assert [entry.time for entry in history] == sorted((e.time for e in history), reverse=True)
            assert history[0].message == f"generation {store.generation}: 6 nodes, 0 edges, 0 events"
            assert len({entry.snapshot for entry in history}) == len(history)

    def test_an_old_snapshot_is_read(self, url):
        with filled(url) as store:
            for k in range(3):
                store.attrs["k"] = k
            store.nodes.append(NodeBatch(np.ones((1, 3))))
            old = next(entry for entry in store.history() if entry.generation == 3)
            with aesg.open(url, "r", snapshot=old.snapshot) as then:
                assert then.attrs["k"] == 1
                assert then.generation == 3
                assert len(then.nodes) == 6
                assert then.history()[0] == old
                assert then.refresh() is False
                assert f"snapshot={old.snapshot}" in then.url
                with pickle.loads(pickle.dumps(then)) as copy:
                    assert copy.attrs["k"] == 1
                assert then.verify() == []

    def test_snapshots_that_cannot_be_opened(self, url):
        with filled(url) as store:
            known = store.history()[0].snapshot
        with pytest.raises(InvalidInputError, match="mode='r'"):
            aesg.open(url, snapshot=known)
        for unknown in ("7HHCWEKE7SWGSE18A750", "nonsense"):
            with pytest.raises(NotFoundError, match="no such snapshot"):
                aesg.open(url, "r", snapshot=unknown)
        with pytest.raises(InvalidInputError, match="snapshot"):
            aesg.open(url, "r", snapshot="../../x")
        with pytest.raises(NotFoundError):  # before there was a store
            aesg.open(url, "r", snapshot="1CECHNKREP0F1RSTCMT0")

    def test_expired_snapshots_are_removed_with_what_only_they_need(self, url):
        with filled(url, 2000) as store:
            for _ in range(4):
                store.nodes.write(np.arange(2000), relevance=0.5)
                store.flush()
            store.nodes.write([0], is_active=0)
            store.compact()
            ids = [entry.snapshot for entry in store.history()]
            used = store.stats()["bytes_on_disk"]
            now = datetime.now(UTC)
            assert store.expire_snapshots(now - timedelta(days=1)) == []
            nothing = store.collect_garbage(now - timedelta(days=1))
            assert (nothing.bytes, nothing.chunks, nothing.snapshots) == (0, 0, 0)
            expired = store.expire_snapshots(now)
            assert set(expired) < set(ids)
            assert ids[0] not in expired
            assert [entry.snapshot for entry in store.history()] == [ids[0], ids[-1]]
            removed = store.collect_garbage(now)
            assert removed.snapshots == len(expired) > 5
            assert removed.bytes > 0
            assert store.stats()["bytes_on_disk"] < used
            assert len(store.nodes) == 1999
            assert store.verify() == []
            with pytest.raises(NotFoundError):
                aesg.open(url, "r", snapshot=ids[1])
        with aesg.open(url, "r") as reader:
            assert len(reader.nodes) == 1999
            with pytest.raises(ReadOnlyError):
                reader.expire_snapshots(now)
            with pytest.raises(ReadOnlyError):
                reader.collect_garbage(now)

    def test_a_time_without_a_zone_is_local_and_anything_else_is_refused(self, url):
        with filled(url) as store:
            assert store.expire_snapshots(datetime.now() - timedelta(days=1)) == []
            for wrong in ("yesterday", 0, None):
                with pytest.raises(InvalidInputError, match="datetime"):
                    store.expire_snapshots(wrong)
                with pytest.raises(InvalidInputError, match="datetime"):
                    store.collect_garbage(wrong)

    def test_maintenance_waits_for_no_transaction_of_its_own(self, url):
        with filled(url) as store, store.transaction() as transaction:
            transaction.attrs["a"] = 1
            with pytest.raises(AESGError, match="transaction"):
                store.collect_garbage(datetime.now(UTC))

    def test_a_reader_whose_chunks_were_collected_is_told(self, url):
        filled(url, 2000).close()
        with aesg.open(url) as store, aesg.open(url, "r") as reader:
            store.nodes.write(np.arange(2000), relevance=0.5)
            store.flush()
            store.expire_snapshots(datetime.now(UTC))
            store.collect_garbage(datetime.now(UTC))
            with pytest.raises(CorruptionError):
                reader.nodes.read(np.arange(2000))
            assert reader.refresh() is True
            assert len(reader.nodes.read(np.arange(2000))["id"]) == 2000


class TestOtherPrograms:
    def test_a_commit_in_between_is_a_conflict_and_nothing_is_applied(self, url, closing):
        writer = closing(opened(url))
        state = put(writer, state_after(0), k=0)
        tip = commit_of_another_program(url)
        version = writer.version
        with pytest.raises(ConflictError, match="nothing was applied"):
            put(writer, state_after(1), state, k=1)
        assert theirs(url).lookup_branch("main") == tip
        assert writer.version != version
        assert writer.head()["k"] == 0
        assert same(writer, state)
        put(writer, state_after(1), state, k=1)
        assert same(writer, state_after(1))

    def test_a_commit_at_the_very_last_moment(self, url, closing, monkeypatch):
        writer = closing(opened(url))
        state = put(writer, state_after(0), k=0)
        fill = writer._fill

        async def fill_and_lose(store, changes):
            await fill(store, changes)
            commits.append(await asyncio.to_thread(commit_of_another_program, url))

        commits = []
        with monkeypatch.context() as patch:
            patch.setattr(writer, "_fill", fill_and_lose)
            with pytest.raises(ConflictError, match="nothing was applied"):
                put(writer, state_after(1), state, k=1)
        assert theirs(url).lookup_branch("main") == commits[0]
        assert same(writer, state)
        put(writer, state_after(1), state, k=1)
        assert same(writer, state_after(1))

    def test_a_transaction_meets_it_and_the_next_one_stands_on_it(self, url):
        with filled(url) as store:
            transaction = store.transaction()
            transaction.attrs["a"] = 1
            commit_of_another_program(url)
            with pytest.raises(ConflictError):
                transaction.commit()
            assert "a" not in store.attrs
            store.attrs["b"] = 2
            assert dict(store.attrs) == {"b": 2}
            assert [entry.message for entry in store.history()][1] == "a note"
            commit_of_another_program(url, "between two transactions")
            store.attrs["c"] = 3
            assert store.verify() == []
        with aesg.open(url, "r") as reader:
            assert dict(reader.attrs) == {"b": 2, "c": 3}

    def test_what_another_program_garbles_is_noticed(self, url):
        filled(url).close()
        session = theirs(url).writable_session("main")
        zarr.open_array(session.store, path="nodes/vector")[1] = 7
        session.commit("no good")
        with aesg.open(url, "r") as reader:
            with pytest.raises(CorruptionError, match="checksum"):
                reader.nodes.read([0], ["vector"])
            good = next(entry for entry in reader.history() if entry.generation is not None)
        with aesg.open(url, "r", snapshot=good.snapshot) as reader:
            assert reader.nodes.read([1], ["vector"])["vector"].tolist() == [[3, 4, 5]]


class TestForks:
    def test_a_child_of_a_process_that_uses_it_is_told_at_once(self, url):
        """Not left waiting for threads that it has not got."""
        code = """
        import os, signal, sys
        import aesg
        from aesg.errors import UnsupportedError

        def refused(act):
            try:
                act()
            except UnsupportedError as error:
                return "spawn" in str(error)
            return False

        store = aesg.open(sys.argv[1])
        store.attrs["a"] = 1
        snapshot = store.snapshot()
        reader = aesg.open(sys.argv[1], "r")
        if not (child := os.fork()):
            signal.alarm(30)
            acts = [
                lambda: store.attrs["a"],
                lambda: snapshot.nodes.read([0]),
                lambda: reader.refresh(),
                lambda: reader.nodes.read([0]),
                lambda: reader.history(),
                lambda: aesg.open(sys.argv[1], "r"),
                lambda: aesg.open(sys.argv[1] + "2", vector_dim=3),
            ]
            print(*map(refused, acts), flush=True)
            sys.exit(0)  # the library's objects are let go of in the child as well
        status = os.waitpid(child, 0)[1]
        store.attrs["b"] = status
        try:
            aesg.open(sys.argv[1])
        except aesg.errors.LockedError:
            print("locked", dict(store.attrs))
        store.close()
        """
        filled(url).close()
        said = python(code, url).splitlines()
        assert said == ["True True True True True True True", "locked {'a': 1, 'b': 0}"]

    def test_a_child_of_one_that_has_only_imported_it_uses_it(self, url):
        code = """
        import os, signal, sys
        import icechunk, zarr, aesg
        if not (child := os.fork()):
            signal.alarm(30)
            with aesg.open(sys.argv[1], vector_dim=3) as store:
                store.attrs["a"] = 1
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with aesg.open(sys.argv[1], "r") as store:
            print(dict(store.attrs))
        """
        assert python(code, url).strip() == "{'a': 1}"


class TestKilled:
    def test_at_any_moment_the_store_is_a_committed_state(self, url):
        writers = Writers("icechunk", "aesg.backends.zarr.repository")
        rng, k, killed = random.Random(0), -1, 0
        try:
            for _ in range(KILLS):
                died, said = writers.write(url, 1000, rng.uniform(0.01, 0.25))
                killed += died
                k = max(k, said)
                found = attempt(url, rng.choice("ar"))
                if k < 0 and found.get("error") == "NotFoundError":
                    continue  # there is no store yet
                assert "k" in found, found
                assert k <= found["k"] <= k + 1
                assert found["same"]
                k = found["k"]
        finally:
            writers.close()
        assert killed > KILLS // 2
        assert k > 0


class TestFullDisk:
    @pytest.fixture
    def disk(self, tmp_path):
        folder = tmp_path / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
        if done is None or done.returncode:
            pytest.skip("no small file system can be mounted here")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)

    def test_a_commit_without_room_is_refused_and_the_next_one_works(self, disk, closing):
        writer = closing(opened(f"icechunk://{disk}/store", codec="none"))
        state = put(writer, state_after(0), k=0)
        ballast = disk / "ballast"
        status = os.statvfs(disk)
        ballast.write_bytes(bytes(status.f_bavail * status.f_bsize))
        with pytest.raises(CapacityError, match="nothing was lost"):
            put(writer, state_after(1), state, k=1)
        assert writer.head()["k"] == 0
        assert same(writer, state)
        ballast.unlink()
        put(writer, state_after(1), state, k=1)
        assert same(writer, state_after(1))


class TestDamage:
    def test_a_repository_with_one_damaged_file_is_whole_or_corrupt(self, url, tmp_path):
        """In a process of its own, since what is looked for are hangs and signals as well."""
        writer = opened(url)
        state = None
        for k in range(4):
            state = put(writer, state_after(k), state, k=k)
        writer.close()
        folder = tmp_path / "store"
        whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        command = [sys.executable, SUPPORT, "read"]
        rng, outcomes = random.Random(0), set()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            for _ in range(DAMAGES):
                path = rng.choice([path for path in whole if whole[path]])
                data = bytearray(whole[path])
                kind = rng.choice(["flip", "flip", "cut", "remove"])
                if kind == "flip":
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                elif kind == "cut":
                    del data[rng.randrange(len(data)) :]
                path.unlink() if kind == "remove" else path.write_bytes(data)
                reader.stdin.write(json.dumps([url, "r"]) + "\n")
                reader.stdin.flush()
                line = reader.stdout.readline()
                assert line, f"{path} {kind}: the process died with {reader.wait()}"
                found = json.loads(line)
                assert "escaped" not in found, (path, kind, found)
                # A bit that was flipped within a number is the store's to notice, by its checksum.
                outcome = found.get("error") or ("whole" if found["same"] else "other values")
                gone = kind == "remove" and path.name == "ref.json"
                assert outcome in {"whole", "other values", "CorruptionError"} or gone, (path, kind, found)
                outcomes.add(outcome)
                path.write_bytes(whole[path])
            reader.communicate()
        assert {"whole", "CorruptionError"} <= outcomes

    def test_a_repository_that_has_lost_its_branch_is_not_begun_anew(self, url, tmp_path):
        filled(url).close()
        (tmp_path / "store/refs/branch.main/ref.json").unlink()
        for mode in "ar":
            with pytest.raises(CorruptionError, match="restore it"):
                aesg.open(url, mode, vector_dim=3)

    def test_a_snapshot_that_cannot_be_read_is_not_taken_for_an_empty_one(self, url, tmp_path):
        with filled(url) as store:
            pass
        tip = json.loads((tmp_path / "store/refs/branch.main/ref.json").read_text())["snapshot"]
        path = tmp_path / "store/snapshots" / tip
        path.write_bytes(path.read_bytes()[:60])
        for mode in "ar":
            with pytest.raises(CorruptionError):
                aesg.open(url, mode, vector_dim=3)
        assert json.loads((tmp_path / "store/refs/branch.main/ref.json").read_text())["snapshot"] == tip
        assert store.closed

    def test_a_root_that_has_lost_its_attributes_is_told_from_a_repository_of_somebody_else(self, url):
        filled(url).close()
        session = theirs(url).writable_session("main")
        zarr.open_group(session.store, mode="r+").attrs.put({})
        session.commit("as a bit that was flipped in their names leaves it")
        for mode in "ar":
            with pytest.raises(CorruptionError, match="lacks the attributes"):
                aesg.open(url, mode, vector_dim=3)
        session = theirs(url).writable_session("main")
        zarr.create_group(session.store, overwrite=True)
        session.commit("nothing of ours")
        for mode in "ar":
            with pytest.raises(InvalidInputError, match="something else"):
                aesg.open(url, mode, vector_dim=3)

    def test_a_document_that_is_not_what_we_write(self, url, closing):
        writer = opened(url)
        put(writer, {"nodes/vector": rows_of(VECTORS, 20), "nodes/id": np.arange(20, dtype="<u8")})
        writer.close()
        session = theirs(url).writable_session("main")
        zarr.create_array(
            session.store, name="nodes/vector", shape=(20, 3), chunks=(8, 3), dtype="f8", overwrite=True, fill_value=0
        )
        session.commit("other numbers")
        reader = closing(opened(url, "r"))
        with pytest.raises(CorruptionError, match=r"nodes/vector/zarr\.json"):
            reader.get(VECTORS, 0, 8)
        assert np.array_equal(reader.get(IDS, 0, 16), np.arange(16))
