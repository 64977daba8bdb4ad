"""Files that are truncated, missing, swapped, garbled or malicious: an error that says so, never a hang or a crash.

What may go really wrong is tried in a process of its own. `AESG_FUZZ_EXAMPLES=10000` is the long form of the campaign.
"""

import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import aesg
from aesg.backends import ids
from aesg.backends.memmap import redo
from aesg.backends.memmap.format import EDGE_DTYPE, Meta, node_dtype, read_meta
from aesg.backends.memmap.table import PendingRecords
from aesg.errors import AESGError, CorruptionError, FormatVersionError, SchemaMismatchError, StorageError
from aesg.records import EventType, events
from aesg.testing.forks import server
from aesg.testing.graphs import batch, fill
from aesg.testing.steps import digest

DIM = 4
EXAMPLES = int(os.environ.get("AESG_FUZZ_EXAMPLES", "250"))
GUARDED = ("meta.npy", "store.json", "journal.redo", "ids.index")
"""Files with a checksum, or checked against one that has: damage to these never goes unnoticed."""


# --- stores to damage ------------------------------------------------------------------------------------------------


def change(graph, k):
    graph.nodes.append(batch(5, 1000 + 10 * k, seed=k))
    graph.nodes.write([k, 40 + k], relevance=0.1 * k, age=k)
    graph.nodes.transform(lambda c: {"age": c["age"] + 1}, ["age"], ["age"])
    graph.edges.append([k, 40, 0], [41, 0, k], 0.5)
    graph.edges.remove([5 + k])
    graph.events.append(events(EventType.PRUNE, [k, k], timestamp=k))
    graph.attrs["k"] = k


class Specimens:
    """Directories in four conditions, each with the digest of what it holds."""

    conditions = ("closed", "closed, power_loss", "killed", "killed, power_loss", "killed before it was applied")

    def __init__(self, root):
        self.root = root
        self.digests = {}
        for condition in self.conditions:
            option = "?durability=power_loss" if "power_loss" in condition else ""
            directory = root / condition.replace(", ", "-").replace(" ", "-")
            store = aesg.open(f"memmap://{directory}{option}", vector_dim=DIM)
            fill(store, 40)
            store.flush()
            for k in range(3):
                with store.transaction() as graph:
                    change(graph, k)
            if condition == "killed before it was applied":
                self._leave_unapplied(store)
            if condition.startswith("killed"):
                shutil.copytree(directory, root / "left")
                store.close()
                shutil.rmtree(directory)
                (root / "left").rename(directory)
            store.close()
            self.digests[condition] = self._digest(condition)

    def _leave_unapplied(self, store):
        """The last commit is in the journal, and nowhere else."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PendingRecords, "apply", lambda self: (_ for _ in ()).throw(OSError("killed")))
            with pytest.raises(StorageError, match="open the store again"), store.transaction() as graph:
                change(graph, 3)

    def _digest(self, condition):
        copy = self.copy(condition, self.root / "copy")
        with aesg.open(copy) as store:
            found = digest(store)
            assert store.attrs["k"] == (3 if "applied" in condition else 2)
        shutil.rmtree(copy)
        return found

    def directory(self, condition):
        return self.root / condition.replace(", ", "-").replace(" ", "-")

    def copy(self, condition, to):
        shutil.rmtree(to, ignore_errors=True)
        return Path(shutil.copytree(self.directory(condition), to))


@pytest.fixture(scope="module")
def specimens(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "_WORTH_KEEPING", 1)
        yield Specimens(tmp_path_factory.mktemp("specimens"))


@pytest.fixture
def closed(specimens, tmp_path):
    return specimens.copy("closed", tmp_path / "store")


@pytest.fixture(scope="module")
def examine():
    """Open a directory and read all of it in another process."""

    def run(path, mode="r"):
        cases = [(f"memmap://{path}", mode)]
        with server(("hasty_memmap",)).start("aesg.testing.damage_reader:read_all", cases=cases) as reader:
            said = list(reader.lines())
            return json.loads(said[-1]) if reader.wait() == 0 else {"died": reader.status}

    return run


def refused(directory, *said, error=CorruptionError, dim=DIM):
    """Neither mode opens it; the message names the file; and nothing is made, repaired or wiped."""
    before = {entry.name: entry.read_bytes() for entry in directory.iterdir() if entry.is_file()}
    for mode in ("r", "a", "a", "r"):
        with pytest.raises(error) as caught:
            aesg.open(f"memmap://{directory}", mode, vector_dim=dim)
        for words in said:
            assert str(words) in str(caught.value)
    after = {entry.name: entry.read_bytes() for entry in directory.iterdir() if entry.is_file()}
    for name in before:
        if name != "writer.lock":
            assert after[name] == before[name], f"{name} was changed"


# --- missing, truncated, swapped -------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [(), ("store.json",), ("store.json", "ids.index", "evolution.aesglog")])
def test_a_missing_meta_beside_data_never_makes_a_new_store(closed, others):
    for name in ("meta.npy", *others):
        (closed / name).unlink()
    refused(closed, closed / "meta.npy", "missing", "nodes.aesg", "expected")


@pytest.mark.parametrize("name", ["nodes.aesg", "edges.aesg"])
def test_a_missing_data_file(closed, name):
    (closed / name).unlink()
    refused(closed, closed / name, "missing", "expected")


def test_a_missing_log_is_an_error_where_store_json_speaks_of_events(closed):
    (closed / "evolution.aesglog").unlink()
    refused(closed, closed / "evolution.aesglog", "0 events", "expected at least the 47")
    assert not (closed / "evolution.aesglog").exists() or not (closed / "evolution.aesglog").stat().st_size


@pytest.mark.parametrize("name", ["nodes.aesg", "edges.aesg", "evolution.aesglog", "meta.npy", "store.json"])
@pytest.mark.parametrize("left", [0, 1, 0.5, -1])
def test_a_truncated_file(closed, name, left):
    size = (closed / name).stat().st_size
    os.truncate(closed / name, int(size * left) if left == 0.5 else size - 1 if left == -1 else left)
    refused(closed, closed / name, "expected")


def test_data_files_without_store_json_are_still_checked_against_meta(closed):
    (closed / "store.json").unlink()
    os.truncate(closed / "nodes.aesg", 700)
    refused(closed, closed / "nodes.aesg", "700 bytes, expected at least")


def test_data_files_swapped_with_each_other(closed):
    (closed / "nodes.aesg").rename(closed / "x")
    (closed / "edges.aesg").rename(closed / "nodes.aesg")
    (closed / "x").rename(closed / "edges.aesg")
    refused(closed, closed, "aesg", "expected")


@pytest.mark.parametrize("name", ["nodes.aesg", "edges.aesg"])
def test_a_data_file_of_another_kind_of_the_right_size(closed, name):
    size = (closed / name).stat().st_size
    (closed / name).write_bytes(np.random.default_rng(0).bytes(size))
    refused(closed, closed / name, "expected")
    (closed / name).write_bytes(b"A very long text. " * (size // 18 + 1))
    refused(closed, closed / name, "expected")


@pytest.mark.parametrize("dim", [1, 3, 5, 9])
@pytest.mark.parametrize("name", ["nodes.aesg", "edges.aesg", "meta.npy", "store.json", "evolution.aesglog"])
def test_a_file_of_another_store(closed, tmp_path, name, dim, examine):
    with aesg.open(tmp_path / "other", vector_dim=dim) as other:
        fill(other, 30)
    shutil.copyfile(tmp_path / "other" / name, closed / name)
    for mode in ("r", "a"):
        found = examine(closed, mode)
        assert found.get("error") == "CorruptionError" or found.get("violations"), found


def test_an_index_of_another_store_is_not_believed(specimens, tmp_path, examine, monkeypatch):
    monkeypatch.setattr(ids, "_WORTH_KEEPING", 1)
    closed = specimens.copy("closed", tmp_path / "store")
    with aesg.open(tmp_path / "other", vector_dim=DIM) as other:
        other.nodes.append(batch(55, 70_000))
    assert (closed / "ids.index").stat().st_size == (tmp_path / "other" / "ids.index").stat().st_size
    shutil.copyfile(tmp_path / "other" / "ids.index", closed / "ids.index")
    for mode in ("r", "a"):
        found = examine(closed, mode)
        assert found["violations"] == []
        assert found["digest"] == specimens.digests["closed"]


@pytest.mark.parametrize("name", ["nodes.aesg", "edges.aesg", "meta.npy", "store.json", "evolution.aesglog"])
def test_a_directory_where_a_file_should_be(closed, name):
    (closed / name).unlink()
    (closed / name).mkdir()
    for mode in ("r", "a"):
        with pytest.raises(AESGError, match=name.replace(".", r"\.")), aesg.open(f"memmap://{closed}", mode) as store:
            store.events.read()


def test_another_length_of_vectors(closed):
    refused_dims = "4 numbers, not 7"
    for mode in ("r", "a"):
        with pytest.raises(SchemaMismatchError, match=refused_dims):
            aesg.open(closed, mode, vector_dim=7)
    (closed / "meta.npy").write_bytes(Meta(55, 18, 3, 64, 320).to_bytes())
    refused(closed, closed / "meta.npy", "vector_dim 3", "expected the 4", dim=None)


def test_more_records_than_the_files_hold(closed):
    meta = read_meta(closed / "meta.npy")
    for wrong in (
        Meta(meta.cap_nodes + 1, meta.edge_count, DIM, meta.cap_nodes + 1, meta.cap_edges),
        Meta(meta.node_count, meta.cap_edges + 1, DIM, meta.cap_nodes, meta.cap_edges + 1),
        Meta(2**61, 2**61, DIM, 2**61, 2**61),
        Meta(meta.node_count - 1, meta.edge_count, DIM, meta.cap_nodes, meta.cap_edges),
        Meta(meta.node_count, meta.edge_count - 1, DIM, meta.cap_nodes, meta.cap_edges),
        Meta(meta.cap_nodes, meta.edge_count, DIM, meta.cap_nodes, meta.cap_edges),
        Meta(meta.node_count, meta.cap_edges, DIM, meta.cap_nodes, meta.cap_edges),
    ):
        (closed / "meta.npy").write_bytes(wrong.to_bytes())
        refused(closed, closed, "expected")


def test_blank_records_are_no_records_without_store_json_either(closed):
    (closed / "store.json").unlink()
    meta = read_meta(closed / "meta.npy")
    (closed / "meta.npy").write_bytes(Meta(64, meta.edge_count, DIM, 64, meta.cap_edges).to_bytes())
    refused(closed, closed / "meta.npy", "blank", "nodes.aesg")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b'{"crc32": 0, "store": 5}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_store_json_of_something_else(closed, content):
    (closed / "store.json").write_bytes(content)
    refused(closed, closed / "store.json", "expected")


def test_a_newer_format_says_so(closed):
    import zlib

    body = json.loads(json.loads((closed / "store.json").read_text())["store"])
    text = json.dumps(body | {"format": 2})
    (closed / "store.json").write_text(json.dumps({"crc32": zlib.crc32(text.encode()), "store": text}))
    refused(closed, closed / "store.json", "2", error=FormatVersionError)
    text = json.dumps({"format": 1})
    (closed / "store.json").write_text(json.dumps({"crc32": zlib.crc32(text.encode()), "store": text}))
    refused(closed, closed / "store.json", "missing")


def test_a_journal_of_a_newer_version_says_so(specimens, tmp_path):
    left = specimens.copy("killed", tmp_path / "store")
    data = bytearray((left / "journal.redo").read_bytes())
    data[7:8] = b"%d" % (redo.VERSION + 1)
    (left / "journal.redo").write_bytes(data)
    refused(left, left / "journal.redo", error=FormatVersionError)


# --- malicious meta.npy ----------------------------------------------------------------------------------------------

HEADER = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"


class Evil:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def harms(victim):
    """Pickles that make the file `victim` when they are loaded carelessly, or eat memory, or never end."""
    touch = f"touch {victim}"
    system = Evil(os.system, touch)
    meta = {"node_count": 0, "edge_count": 0, "vector_dim": 4, "cap_nodes": 64, "cap_edges": 320}

    def saved(value):
        array = np.empty((), object)
        array[()] = value
        return pickle.dumps(array, protocol=4)

    command = touch.encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    code = f"__import__('pathlib').Path({str(victim)!r}).touch()".encode()
    long_text = b"X" + struct.pack("<I", len(code)) + code
    yield "a call instead of the array", pickle.dumps(system)
    yield "a call as the dict", saved(system)
    yield "a call as a value", saved(meta | {"node_count": system})
    yield "a call as a key", saved({**meta, system: 1})
    yield "a call in a list in a tuple", saved(meta | {"node_count": [((system,),)]})
    yield "eval", pickle.dumps(Evil(eval, code.decode()))
    yield "exec by getattr", pickle.dumps(Evil(getattr, Evil(__import__, "os"), "system"))
    yield "text opcodes, protocol 0", b"cos\nsystem\n(S'" + command + b"'\ntR."
    yield "INST", b"(S'" + command + b"'\nios\nsystem\n."
    yield "OBJ", b"(cos\nsystem\n" + text + b"o."
    yield "NEWOBJ", b"\x80\x02cos\nsystem\n" + text + b"\x85\x81."
    yield "STACK_GLOBAL", b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R."
    yield "a path through ndarray", b"\x80\x04\x8c\x05numpy\x8c\x15ndarray.__class__.__mro__\x93."
    yield "numpy's own runner", b"cnumpy.testing._private.utils\nrunstring\n(" + long_text + b"}tR."
    yield "np.load of another file", b"cnumpy\nload\n(" + text + b"tR."
    yield "dtype with a call as its name", b"\x80\x04cnumpy\ndtype\n(cos\nsystem\n" + text + b"\x85RtR."
    yield (
        "ndarray with a call as its shape",
        (b"\x80\x04cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\ncos\nsystem\n" + text + b"\x85RtR."),
    )
    yield (
        "ndarray built from a call",
        (b"\x80\x04cnumpy._core.multiarray\n_reconstruct\n)R(K\x01)cos\nsystem\n" + text + b"\x85R\x89]tb."),
    )
    yield (
        "attributes of what stands in",
        (b"\x80\x04cnumpy._core.multiarray\n_reconstruct\nN}\x8c\x0c__defaults__K\x01s\x86b."),
    )
    yield "a class's own state", b"\x80\x04cnumpy\nndarray\n}\x8c\x05statecos\nsystem\nsb."
    yield "EXT1", b"\x80\x02\x82\x01" + text + b"\x85R."
    yield "EXT2", b"\x80\x02\x83\x01\x01" + text + b"\x85R."
    yield "EXT4", b"\x80\x02\x84\x01\x01\x01\x00" + text + b"\x85R."
    yield "a persistent id", b"Pos.system\n."
    yield "a persistent id from the stack", b"\x80\x02" + text + b"Q."
    yield "a buffer out of band", b"\x80\x05\x97."
    yield "a memo of 32 GiB", b"\x80\x02Kar\xff\xff\xff\xff."
    yield "a bytearray of 8 GiB", b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b"."
    yield "bytes of 8 EiB", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"."
    yield "a number of 2 GiB", b"\x80\x02\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"."
    yield "a frame of 8 EiB", b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N."
    yield "deep nesting", b"\x80\x02" + b"(" * 60_000 + b"t" * 60_000 + b"."
    yield "lists in lists", b"\x80\x04" + b"]" * 60_000 + b"a" * 59_999 + b"."
    yield "a dict that holds itself", b"\x80\x04}\x94K\x01h\x00s."
    yield "many digits", b"I" + b"9" * 60_000 + b"\n."
    yield "more than such a file has", saved(meta | {"x": "y" * 100_000})
    yield "nothing", b""
    yield "no end", b"\x80\x04}"
    yield "an empty stack", b"\x80\x04."
    yield "no dict", saved([1, 2])
    yield "too few keys", saved({"node_count": 0})
    yield "too many keys", saved(meta | {"more": 1})
    yield "text for a number", saved(meta | {"node_count": "0"})
    yield "a float for a number", saved(meta | {"node_count": 0.0})
    yield "a bool for a number", saved(meta | {"vector_dim": True})
    yield "a negative number", saved(meta | {"edge_count": -1})
    yield "a huge number", saved(meta | {"cap_nodes": 2**100})
    yield "no dimensions", saved(meta | {"vector_dim": 0})
    yield "an array of more", pickle.dumps(np.array([meta, meta], object), protocol=4)


HARMS = [name for name, _ in harms("x")]


@pytest.mark.parametrize("name", HARMS)
def test_a_malicious_meta_is_refused_and_not_executed(closed, tmp_path, name, examine):
    victim = tmp_path / "victim"
    (closed / "meta.npy").write_bytes(HEADER + dict(harms(victim))[name])
    for mode in ("r", "a"):
        found = examine(closed, mode)
        assert found.get("error") == "CorruptionError", found
        assert str(closed / "meta.npy") in found["message"]
        assert "expected" in found["message"]
        assert found["peak_mb"] < 500
    assert not victim.exists()


def test_the_malicious_ones_would_have_done_harm(tmp_path):
    """Or the test above would show nothing."""
    done = []
    for name, payload in harms(tmp_path / "victim"):
        if name in ("a call instead of the array", "a call as a value", "INST", "OBJ", "STACK_GLOBAL", "eval",
                    "text opcodes, protocol 0"):  # fmt: skip
            pickle.loads(payload)
            assert (tmp_path / "victim").exists(), name
            (tmp_path / "victim").unlink()
            done.append(name)
    assert len(done) == 7


def test_an_extension_that_was_loaded_before_is_refused_too(closed, tmp_path):
    """The unpickler looks into a cache of extensions before it asks for a name."""
    victim = tmp_path / "victim"
    program = f"""
import copyreg, os, pickle, sys
copyreg.add_extension("posix", "system", 1)
assert pickle.loads(b"\\x80\\x02\\x82\\x01.") is os.system
import aesg
from aesg.errors import CorruptionError
try:
    aesg.open({str(closed)!r}, "r")
except CorruptionError as error:
    print(error)
"""
    (closed / "meta.npy").write_bytes(HEADER + dict(harms(victim))["EXT1"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "meta.npy" in done.stdout, done.stderr
    assert not victim.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x02\x00v\x00\x00\x00{}",
        b"\x93NUMPY\x01\x00\xff\xff{" + b"(" * 65000,
        b"PK\x03\x04",
    ],
    ids=["empty", "magic", "version 2", "brackets", "zip"],
)
def test_a_meta_that_is_no_such_numpy_file(closed, content):
    (closed / "meta.npy").write_bytes(content)
    refused(closed, closed / "meta.npy", "expected")


@pytest.mark.parametrize("array", [np.zeros(3), np.array("text"), np.zeros((), "V8"), np.array([None])])
def test_a_meta_that_is_another_array(closed, array):
    np.save(closed / "meta.npy", array, allow_pickle=True)
    refused(closed, closed / "meta.npy", "expected")


# --- edge lists ------------------------------------------------------------------------------------------------------


def edges_of(directory):
    return np.memmap(directory / "edges.aesg", EDGE_DTYPE, "r+")


def nodes_of(directory):
    return np.memmap(directory / "nodes.aesg", node_dtype(DIM), "r+")


def tie_to_itself(directory):
    edges_of(directory)["next_edge_idx"][9] = 9


def tie_a_knot(directory):
    edges = edges_of(directory)
    edges["next_edge_idx"][0] = 9  # 9 → … → 0 → 9, as a crash of 0.3.0 leaves it


def lead_outside(directory):
    edges_of(directory)["next_edge_idx"][9] = 10**12


def lead_past_the_count(directory):
    edges_of(directory)["next_edge_idx"][9] = 30


def lead_below(directory):
    edges_of(directory)["next_edge_idx"][9] = -7


def lead_to_a_removed_one(directory):
    edges_of(directory)["next_edge_idx"][9] = 4


def begin_outside(directory):
    nodes_of(directory)["head_edge_idx"][0] = 10**12


def begin_below(directory):
    nodes_of(directory)["head_edge_idx"][0] = -2


def begin_with_anothers(directory):
    nodes_of(directory)["head_edge_idx"][0] = 8


def go_on_with_anothers(directory):
    edges_of(directory)["next_edge_idx"][9] = 7


LISTS = {
    tie_to_itself: ["cyclic-list"],
    tie_a_knot: ["cyclic-list"],
    lead_outside: ["next-outside"],
    lead_past_the_count: ["next-outside"],
    lead_below: ["next-outside"],
    lead_to_a_removed_one: ["removed-in-list"],
    begin_outside: ["head-outside"],
    begin_below: ["head-outside"],
    begin_with_anothers: ["foreign-edge"],
    go_on_with_anothers: ["foreign-edge"],
}


@pytest.fixture
def simple(tmp_path, monkeypatch):
    """A closed store; opening looks at nothing, so that what comes after is tested."""
    with aesg.open(tmp_path / "simple", vector_dim=DIM) as store:
        fill(store)
    monkeypatch.setattr("aesg.backends.memmap.reader.check_sample", lambda *args: None)
    monkeypatch.setattr("aesg.backends.memmap.writer.check_sample", lambda *args: None)
    return tmp_path / "simple"


@pytest.mark.parametrize("damage", LISTS)
@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_broken_list_is_an_error_and_no_endless_loop(simple, damage, mode):
    damage(simple)
    with aesg.open(simple, mode) as store:
        for act in (
            lambda: store.edges.out_edges([0]),
            lambda: store.edges.out_edges(np.arange(12)),
            lambda: store.edges.degrees([3, 0]),
        ):
            with pytest.raises(CorruptionError, match=r"edges\.aesg.*row 0"):
                act()
        assert store.edges.out_edges([1, 2]).refs.tolist() == [1, 3]
        kinds = {violation.kind for violation in store.verify()}
        assert kinds >= set(LISTS[damage])
        if mode == "a":
            with pytest.raises(CorruptionError, match=r"edges\.aesg"):
                store.edges.remove([9])


@pytest.mark.parametrize("damage", [lead_outside, lead_past_the_count, lead_below, begin_outside, begin_below])
def test_pointers_that_lead_outside_are_found_when_a_small_store_is_opened(tmp_path, damage):
    with aesg.open(tmp_path / "store", vector_dim=DIM) as store:
        fill(store)
    damage(tmp_path / "store")
    refused(tmp_path / "store", "edge_idx", "expected", "are not records of")


def test_verify_finds_and_names_everything(simple):
    nodes, edges = nodes_of(simple), edges_of(simple)
    nodes["vector"][3, 1] = np.nan
    nodes["relevance"][4] = np.inf
    nodes["id"][6] = nodes["id"][5]
    nodes["is_active"][7] = 3
    edges["weight"][1] = np.nan
    edges["confidence"][2] = -np.inf
    edges["target_id"][3] = 999_999
    edges["source_id"][8] = 888_888
    with aesg.open(simple, "r") as store:
        found = {(violation.kind, violation.place) for violation in store.verify()}
        assert found >= {
            ("non-finite", "nodes.aesg row 3"),
            ("non-finite", "nodes.aesg row 4"),
            ("duplicate-id", "nodes.aesg row 6"),
            ("bad-flag", "nodes.aesg row 7"),
            ("non-finite", "edges.aesg edge 1"),
            ("non-finite", "edges.aesg edge 2"),
            ("dangling-target", "edges.aesg edge 3"),
            ("dangling-source", "edges.aesg edge 8"),
        }
        assert all(violation.detail for violation in store.verify())
        assert store.edges.out_edges([2]).target_rows.tolist() == [-1], "no node has that id"


def test_verify_shows_a_hundred_and_counts_the_rest(simple):
    with aesg.open(simple) as store:
        store.nodes.append(batch(1000, 5000))
    nodes_of(simple)["vector"][100:900] = np.nan
    with aesg.open(simple, "r") as store:
        found = store.verify()
    assert len(found) == 101
    assert found[-1].detail == "and 700 more"


def test_an_edge_that_is_in_no_list_is_found(simple):
    nodes_of(simple)["head_edge_idx"][3] = -1
    with aesg.open(simple, "r") as store:
        assert {violation.kind for violation in store.verify()} == {"unreachable-edge"}
        assert len(store.verify()) == 1


def test_ids_that_030_gave_twice(simple):
    """0.3.0's random ids collide: such a directory is read, the first row has the id, and nothing gets worse."""
    nodes_of(simple)["id"][3] = 100
    edges_of(simple)["source_id"][[6, 7]] = 100
    with aesg.open(simple) as store:
        assert store.nodes.rows_of([100]).tolist() == [0]
        assert store.edges.out_edges([0]).refs.tolist() == [9, 5, 2, 0]
        assert store.edges.out_edges([3]).refs.tolist() == [7, 6]
        assert {violation.kind for violation in store.verify()} == {"duplicate-id"}
        with pytest.raises(CorruptionError, match="edge 7 is not in the edge list of row 0"):
            store.edges.remove([7])
        store.edges.remove([5])
        assert {violation.kind for violation in store.verify()} == {"duplicate-id"}
        store.edges.out_edges(np.arange(12))


# --- journals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", ["killed", "killed, power_loss", "killed before it was applied"])
def test_a_journal_that_was_cut_anywhere(specimens, tmp_path, examine, condition):
    """Whole commits are missing, or what was there may be half applied: the last committed state, or an error."""
    size = (specimens.directory(condition) / "journal.redo").stat().st_size
    cuts = sorted({*range(0, 200, 37), *range(4000, min(size, 9000), 97 if EXAMPLES <= 250 else 5), size - 1})
    for cut in cuts:
        for mode in ("r", "a"):
            left = specimens.copy(condition, tmp_path / "store")
            os.truncate(left / "journal.redo", cut)
            found = examine(left, mode)
            if found.get("digest") != specimens.digests[condition]:
                assert found.get("error") == "CorruptionError", (cut, found)
                assert "journal.redo" in found["message"]


@pytest.mark.parametrize("condition", ["killed", "killed, power_loss"])
@pytest.mark.parametrize("name", ["nodes.aesg", "edges.aesg", "evolution.aesglog"])
def test_what_was_cut_off_a_file_is_not_made_up_by_the_journal(specimens, tmp_path, examine, condition, name):
    """An entry holds what its commit appended: written past the end of a shorter file, it would leave a gap."""
    for mode in ("r", "a"):
        for length in (0, 100):
            left = specimens.copy(condition, tmp_path / "store")
            os.truncate(left / name, length)
            found = examine(left, mode)
            assert found.get("error") == "CorruptionError", found
            assert name in found["message"]


def test_a_journal_that_had_only_begun(specimens, tmp_path, examine):
    """Killed between making the file and its first entry: nothing is lost, and a reader does not wait."""
    left = specimens.copy("closed", tmp_path / "store")
    store = aesg.open(left)
    header = (left / "journal.redo").read_bytes()[:4096]
    store.close()
    blank = header[:64] + bytes(4096 - 64)
    for mode in ("r", "a"):
        (left / "journal.redo").write_bytes(blank)
        assert examine(left, mode)["digest"] == specimens.digests["closed"]


def test_killed_between_the_words_of_the_header(specimens, tmp_path, examine):
    """The entry is written; which of the words that announce it are does not matter."""
    condition = "killed before it was applied"
    journal = (specimens.directory(condition) / "journal.redo").read_bytes()
    new, offset, old = struct.unpack_from("<QQQ", journal, 64)
    assert new == old + 1, "announced, but not applied"
    before, at = 0, 4096
    while at < offset:
        before, length = at, struct.unpack_from("<Q", journal, at + 16)[0]
        at += 24 + length + -length % 8
    for announced, where in ((old, before), (new, before), (new, offset)):
        for mode in ("r", "a"):
            left = specimens.copy(condition, tmp_path / "store")
            data = bytearray(journal)
            struct.pack_into("<QQQ", data, 64, announced, where, old)
            (left / "journal.redo").write_bytes(data)
            found = examine(left, mode)
            if mode == "a" or announced == new:
                assert found["digest"] == specimens.digests[condition]
            else:
                assert found["violations"] == []
                assert found["nodes"] == 55, "a reader sees the commit that was announced"


# --- the campaign ----------------------------------------------------------------------------------------------------


def damage_bytes(data, rng):
    """Flip a bit, set a byte, blank or shuffle a stretch, cut off the end, or add to it; says what was done."""
    at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 200))
    how = rng.choice(["flip", "flip", "flip", "byte", "blank", "garble", "cut", "grow", "repeat"])
    stretch = slice(at, at + rng.choice([1, 8, 40, 500]))
    if how == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif how == "byte":
        data[at] = rng.randrange(256)
    elif how == "blank":
        data[stretch] = bytes(len(data[stretch]))
    elif how == "garble":
        data[stretch] = rng.randbytes(len(data[stretch]))
    elif how == "cut":
        del data[at:]
    elif how == "grow":
        data += rng.randbytes(rng.choice([1, 31, 5000]))
    else:
        data[stretch] = data[: len(data[stretch])]
    return f"{how} at {at}"


def test_random_damage_is_noticed_or_harmless(specimens, tmp_path, examine):
    """Opening and reading everything ends with a state or an AESGError; of guarded files, with the committed state."""
    rng = random.Random(EXAMPLES)
    outcomes = {"same": 0, "other": 0, "refused": 0}
    for number in range(EXAMPLES):
        condition = rng.choice(specimens.conditions)
        left = specimens.copy(condition, tmp_path / "store")
        names = sorted(entry.name for entry in left.iterdir() if entry.stat().st_size)
        damaged = sorted({rng.choice(names) for _ in range(rng.choice([1, 1, 1, 2]))})
        said = f"example {number}: {condition}"
        for name in damaged:
            data = bytearray((left / name).read_bytes())
            said += f"; {name}: {damage_bytes(data, rng)}"
            (left / name).write_bytes(data)
        found = examine(left, rng.choice("ar"))
        assert "died" not in found, (said, found)
        assert "escaped" not in found, (said, found)
        assert found["peak_mb"] < 500, (said, found)
        if "error" in found:
            outcomes["refused"] += 1
            assert str(left) in found["message"], said
        elif found["digest"] == specimens.digests[condition]:
            outcomes["same"] += 1
        else:
            outcomes["other"] += 1
            assert not set(damaged) <= set(GUARDED), (said, found)
    print(outcomes)
    assert min(outcomes.values()) > EXAMPLES // 50, "the campaign hit nothing"


@pytest.mark.parametrize(
    ("condition", "name"),
    [
        ("closed", "meta.npy"),
        ("closed", "store.json"),
        ("closed", "ids.index"),
        ("killed", "meta.npy"),
        ("killed", "store.json"),
        ("killed", "journal.redo"),
        ("killed before it was applied", "journal.redo"),
    ],
)
def test_every_region_of_a_guarded_file(specimens, tmp_path, examine, condition, name):
    """A flipped bit in every few bytes: exactly the committed state, or an error that names the file."""
    size = (specimens.directory(condition) / name).stat().st_size
    step = max(1, size // max(60, EXAMPLES // 4))
    tries = {(at, "ar"[at // step % 2]) for at in range(0, size, step)}
    if name == "journal.redo":  # the words that readers watch, and the entries that they and recovery begin with
        (newest,) = struct.unpack_from("<Q", (specimens.directory(condition) / name).read_bytes(), 72)
        places = [*range(64, 88), *range(4096, 4200, 3), *range(newest, newest + 120, 3)]
        tries |= {(at, mode) for at in places for mode in "ar"}
        if "applied" in condition:  # one word has no other to be checked against: that says what a reader is to believe
            tries -= {(at, "r") for at in range(80, 88)}
    for at, mode in sorted(tries):
        left = specimens.copy(condition, tmp_path / "store")
        data = bytearray((left / name).read_bytes())
        data[at] ^= 1 << at % 8
        (left / name).write_bytes(data)
        found = examine(left, mode)
        if found.get("digest") != specimens.digests[condition]:
            assert found.get("error") in ("CorruptionError", "FormatVersionError"), (at, found)
            assert str(left) in found["message"]
