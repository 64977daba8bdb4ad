"""Damage to LMDB's files: the last commit, or an error that says where; never a signal, a hang or another's data.

LMDB itself follows whatever its pages say, so what is damaged is opened in a process of its own.
`AESG_FUZZ_EXAMPLES=10000` is the long form of the campaign.
"""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
from lmdb_support import BYTES, LONG, attempt, fill, opened, put, sealed, sizes, state

from aesg.backends.lmdb import pages
from aesg.errors import CorruptionError, FormatVersionError

EXAMPLES = int(os.environ.get("AESG_FUZZ_EXAMPLES", "1200"))
READER = Path(__file__).with_name("lmdb_support.py")
BLOCKS = {"small": 6, "medium": 400}
PAGE = 4096


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Name → directory, keys and what they hold."""
    root = tmp_path_factory.mktemp("pages")
    found = {}
    for name, blocks in BLOCKS.items():
        keys = fill(root / name, blocks)
        found[name] = (root / name, keys, attempt(root / name, keys, "r"))
        assert found[name][2] == {"head": {"step": 11}, "wrong": []}
    shutil.copytree(root / "medium", root / "settled")
    container = opened(root / "settled")
    for step in range(2):  # commits that leave the file as long as it is
        put(container, {(BYTES, 1): sealed(BYTES, 1, 60)}, step=step)
    container.close()
    found["settled"] = (root / "settled", [(BYTES.name, 1)], {"head": {"step": 1}, "wrong": []})
    return found


@pytest.fixture(scope="module")
def examine(tmp_path_factory):
    """Damage a store in many ways, one after another, and open each in another process; what became of each."""
    work = tmp_path_factory.mktemp("work") / "store"

    def run(store, file, damages, mode):
        directory, keys, _ = store
        given = {"directory": str(directory), "file": file, "damages": damages, "mode": mode}
        given |= {"work": str(work), "keys": keys}
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", str(READER)],
            input=json.dumps(given) + "\n",
            capture_output=True,
            text=True,
        )
        results = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(results) == len(damages), (damages[len(results)], done.returncode, done.stderr[-3000:])
        assert done.returncode == 0, done.stderr[-3000:]
        return results

    return run


def shared_out(chosen, size=200):
    return [chosen[start : start + size] for start in range(0, len(chosen), size)]


def structure_of(path):
    """Bits of the file that are not the data of blocks: pages of trees, and headers of overflow pages."""
    data = path.read_bytes()
    newer, _ = pages.read_metas(path)
    walked = pages._Pages(path, newer)
    bits = []
    for tree, name in ((newer.main, "main tree"), (newer.free, "tree of free pages")):
        leaves = walked.entries(tree, name)
        for page in leaves.pages.tolist():
            flags = struct.unpack_from("=H", data, page * PAGE + 10)[0]
            if flags == 4:
                bits += range(page * PAGE * 8, (page * PAGE + 16) * 8)
            elif flags in (1, 2):
                bits += range(page * PAGE * 8, (page + 1) * PAGE * 8)
    return bits


def judged(results, expected, said):
    """How often it was noticed, how often the last commit was there; anything else fails."""
    counts = {"same": 0, "refused": 0, "garbled": 0}
    for result in results:
        about = (said[result["number"]], result)
        assert "escaped" not in result, about
        if "error" in result:
            assert result["error"] == "CorruptionError", about
            assert "data.mdb" in result["message"], about
            counts["refused"] += 1
            continue
        assert result["head"] == expected["head"], about
        assert result.get("kept", True), about
        assert len(result["wrong"]) <= 1, about
        # A bit of a block, of its size or of its key: one block is wrong or missing, which the store finds.
        counts["garbled" if result["wrong"] else "same"] += 1
    return counts


# --- the campaign ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize("name", BLOCKS)
def test_flipped_bits(stores, examine, name, mode):
    rng = random.Random(f"{name} {mode} {EXAMPLES}")
    directory, _, expected = stores[name]
    structure = structure_of(directory / "data.mdb")
    size = (directory / "data.mdb").stat().st_size
    metas = [*range(16 * 8 + 152 * 8), *range(PAGE * 8, (PAGE + 16 + 136) * 8)]
    chosen = []
    for _ in range(EXAMPLES // 4):
        kind = rng.random()
        at = rng.choice(metas) if kind < 0.2 else rng.choice(structure) if kind < 0.8 else rng.randrange(8 * size)
        chosen.append({"flip": at})
    total = {"same": 0, "refused": 0, "garbled": 0}
    for part in shared_out(chosen):
        for outcome, count in judged(examine(stores[name], "data.mdb", part, mode), expected, part).items():
            total[outcome] += count
    print(name, mode, total)
    assert total["refused"] > len(chosen) // 10, "the campaign hit nothing"
    assert total["same"], "the campaign hit nothing but"


@pytest.mark.parametrize("page", [0, 1])
@pytest.mark.parametrize("name", BLOCKS)
def test_every_bit_of_the_meta_pages(stores, examine, name, page):
    """The commit's number among them: with one bit less it would be the commit before the last."""
    _, _, expected = stores[name]
    every = 1 if EXAMPLES > 2400 else 3 if name == "small" else 7
    chosen = [{"flip": bit} for bit in range(page * PAGE * 8, (page * PAGE + 16 + 136) * 8, every)]
    total = {"same": 0, "refused": 0, "garbled": 0}
    for part in shared_out(chosen, 400):
        for outcome, count in judged(examine(stores[name], "data.mdb", part, "r"), expected, part).items():
            total[outcome] += count
    assert total["garbled"] == 0
    assert total["refused"] > len(chosen) // 3


@pytest.mark.parametrize("name", BLOCKS)
def test_cut_blanked_and_exchanged_pages(stores, examine, name):
    rng = random.Random(EXAMPLES)
    directory, keys, expected = stores[name]
    size = (directory / "data.mdb").stat().st_size
    number = min(150, EXAMPLES // 10)
    chosen = [{"cut": rng.randrange(1, size)} for _ in range(number)]
    chosen += [{"cut": page * PAGE} for page in range(1, size // PAGE)][:: max(1, size // PAGE // number)]
    results = [
        *examine(stores[name], "data.mdb", chosen, "r"),
        *examine(stores[name], "data.mdb", chosen[: number // 2], "a"),
    ]
    assert {result.get("error") for result in results} == {"CorruptionError"}, "every cut takes a page that is needed"
    others = [{"blank": [rng.randrange(size // PAGE) * PAGE, PAGE]} for _ in range(number)]
    others += [
        {"exchange": [rng.randrange(size // PAGE) * PAGE, rng.randrange(size // PAGE) * PAGE, PAGE]}
        for _ in range(number)
    ]
    for result in examine(stores[name], "data.mdb", others, "r"):
        about = (others[result["number"]], result)
        assert "escaped" not in result, about
        # Pages inside a block may be exchanged for others: the store's checksums are for that.
        assert result.get("error") == "CorruptionError" or result["head"] == expected["head"], about
        assert len(result.get("wrong", [])) <= 3, about
    assert len(keys) > 3


@pytest.mark.parametrize("mode", ["r", "a"])
def test_an_empty_file_is_a_store_that_was_only_begun(stores, tmp_path, mode):
    shutil.copytree(stores["small"][0], tmp_path / "store")
    os.truncate(tmp_path / "store" / "data.mdb", 0)
    container = opened(tmp_path / "store", writing=mode == "a")
    assert container.head() is None
    container.close()


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_lock_file_that_nobody_holds_may_hold_anything(stores, examine, mode):
    store = stores["small"]
    size = (store[0] / "lock.mdb").stat().st_size
    rng = random.Random(5)
    damages = [{"flip": rng.randrange(8 * 300)} for _ in range(60)]
    damages += [{"cut": cut} for cut in (0, 1, 100, 4096, size - 1)]
    damages += [{"blank": [0, length]} for length in (1, 8, 64, 4096, size)]
    for result in examine(store, "lock.mdb", damages, mode):
        assert "error" not in result, (damages[result["number"]], result)
        assert result["wrong"] == []


# --- what the checks say ---------------------------------------------------------------------------------------------


def altered(stores, tmp_path, change, name="medium"):
    """A copy of a store whose data file was changed; its path and keys."""
    shutil.copytree(stores[name][0], tmp_path / "store")
    path = tmp_path / "store" / "data.mdb"
    data = bytearray(path.read_bytes())
    change(data, pages.read_metas(path))
    path.write_bytes(data)
    return path


def refused(path, said):
    for writing in (False, True):
        with pytest.raises(CorruptionError, match=said) as caught:
            opened(path.parent, writing=writing)
        assert str(path) in str(caught.value)


def newest(metas):
    """Where the newer meta page begins."""
    return (metas[0].commit & 1) * PAGE


def test_an_older_commit_that_came_back_is_noticed(stores, tmp_path):
    """The number of the newest commit, less 2: a valid pair of meta pages, and a whole tree one commit too old."""

    def change(data, metas):
        struct.pack_into("=Q", data, newest(metas) + 16 + 128, metas[0].commit - 2)

    refused(altered(stores, tmp_path, change, "settled"), "an older root or meta page came back")


def test_a_stale_root_is_noticed(stores, tmp_path):
    """The newest meta page with the tree of the commit before, all else being as it should."""

    def change(data, metas):
        older = PAGE - newest(metas)
        data[newest(metas) + 16 + 24 : newest(metas) + 16 + 120] = data[older + 16 + 24 : older + 16 + 120]

    refused(altered(stores, tmp_path, change), "page|head")


def test_both_meta_pages_of_an_older_commit_are_that_commit(stores, tmp_path):
    """A file that was restored from a copy is the commit that the copy was of."""
    shutil.copytree(stores["small"][0], tmp_path / "store")
    before = (tmp_path / "store" / "data.mdb").read_bytes()
    container = opened(tmp_path / "store")
    put(container, {(BYTES, 1): sealed(BYTES, 1, 60)}, step=99)
    container.close()
    (tmp_path / "store" / "data.mdb").write_bytes(before)
    assert attempt(tmp_path / "store", stores["small"][1], "r") == stores["small"][2]


@pytest.mark.parametrize(
    ("field", "offset", "kind"),
    [
        ("entries", 32, "=Q"),
        ("leaf", 16, "=Q"),
        ("overflow", 24, "=Q"),
        ("depth", 6, "=H"),
    ],
)
def test_counts_of_the_trees_are_checked(stores, tmp_path, field, offset, kind):
    def change(data, metas):
        at = newest(metas) + 16 + 24 + 48 + offset
        struct.pack_into(kind, data, at, struct.unpack_from(kind, data, at)[0] + 1)

    refused(altered(stores, tmp_path, change), "page")


def test_a_page_that_is_used_and_free_is_noticed(stores, tmp_path):
    """LMDB would hand it out, and overwrite what is in it."""

    def change(data, metas):
        walked = pages._Pages(tmp_path / "store" / "data.mdb", metas[0])
        leaves = walked.entries(metas[0].free, "tree of free pages")
        used = walked.entries(metas[0].main, "main tree").pages
        numbers = np.frombuffer(bytes(data), np.uint64, int(leaves.sizes[0]) // 8, int(leaves.starts[0]))
        listed = numbers[1 : int(numbers[0]) + 1].tolist()  # falling, and it has to stay so
        bounds = [1 << 63, *listed, 1]
        place, page = next(
            (place, page)
            for place in range(len(listed))
            for page in used.tolist()
            if bounds[place] > page > bounds[place + 2]
        )
        struct.pack_into("=Q", data, int(leaves.starts[0]) + 8 * (place + 1), page)

    refused(altered(stores, tmp_path, change), "used twice, or used and free")


def test_lost_pages_are_told_and_do_no_harm(stores, tmp_path):
    def change(data, metas):
        walked = pages._Pages(tmp_path / "store" / "data.mdb", metas[0])
        leaves = walked.entries(metas[0].free, "tree of free pages")
        at = int(leaves.starts[0])
        struct.pack_into("=Q", data, at, struct.unpack_from("=Q", data, at)[0] - 1)

    path = altered(stores, tmp_path, change)
    container = opened(path.parent)
    assert [(found.kind, found.detail.split()[0]) for found in container.verify()] == [("lost-pages", "1")]
    assert state(container, stores["medium"][1]) == stores["medium"][2]
    container.close()


def test_damage_that_comes_later_is_found_by_verify(stores, tmp_path):
    shutil.copytree(stores["medium"][0], tmp_path / "store")
    container = opened(tmp_path / "store", writing=False)
    assert container.verify() == []
    path = tmp_path / "store" / "data.mdb"
    newer, _ = pages.read_metas(path)
    with open(path, "r+b") as file:
        file.seek(newer.main.root * PAGE + 10)
        file.write(b"\7")
    assert [found.kind for found in container.verify()] == ["damaged-page"]
    container.close()


def test_the_free_pages_that_are_counted_are_those_that_lmdb_counts(stores):
    path = stores["medium"][0] / "data.mdb"
    newer, _ = pages.read_metas(path)
    main = newer.main.branch_pages + newer.main.leaf_pages + newer.main.overflow_pages
    free = newer.free.branch_pages + newer.free.leaf_pages + newer.free.overflow_pages
    assert pages.free_pages(path, newer.commit) == newer.last_page + 1 - 2 - main - free > 0
    assert newer.main.depth >= 3, "the campaign is to see branches below branches"


# --- stores that are well --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_whatever_lmdb_writes_passes(tmp_path, seed):
    """Random commits, snapshots that keep pages from being reused, keys and blocks of all sizes."""
    rng = random.Random(seed)
    path = tmp_path / "store" / "data.mdb"
    container = opened(tmp_path / "store")
    present, snapshots = set(), []
    for step in range(60):
        chosen = {(rng.choice([BYTES, LONG]), rng.randrange(600)) for _ in range(rng.choice([1, 5, 100]))}
        drops = {key for key in present if rng.random() < rng.choice([0, 0, 0.01, 0.7])} - chosen
        put(container, {key: sealed(*key, sizes(*key)) for key in chosen}, drops, step=step)
        present = (present | chosen) - drops
        if rng.random() < 0.2:
            snapshots.append(container.snapshot())
        if snapshots and rng.random() < 0.2:
            snapshots.pop(rng.randrange(len(snapshots))).close()
        assert pages.check(path, pages.read_metas(path)[0].commit) == 0
    for snapshot in snapshots:
        snapshot.close()
    keys = [(column.name, number) for column, number in present]
    assert state(container, keys) == {"head": {"step": 59}, "wrong": []}
    container.close()


def test_a_commit_that_came_meanwhile_is_no_damage(tmp_path, monkeypatch):
    """The meta pages may be of newer commits by the time they are read: a newer view is looked at then."""
    writer = opened(tmp_path / "store")
    put(writer, {(BYTES, 0): sealed(BYTES, 0, 60)}, step=0)
    reads = []
    plain = pages.read_metas

    def read_metas(path):
        if len(reads) in (1, 3):
            for step in range(2):
                put(writer, {(BYTES, k): sealed(BYTES, k, 5000) for k in range(9)}, step=step)
        reads.append(path)
        return plain(path)

    monkeypatch.setattr(pages, "read_metas", read_metas)
    view = writer._environment.view()
    assert pages.check(tmp_path / "store" / "data.mdb", view.id) == 0
    assert pages.check(tmp_path / "store" / "data.mdb", view.id) is None
    view.release()
    writer._environment._check()
    writer.close()
    assert len(reads) >= 3


# --- other files -----------------------------------------------------------------------------------------------------


def test_a_file_of_lmdb_1_is_of_another_version(tmp_path):
    with lmdb.open(str(tmp_path / "store"), lib_version=1) as other, other.begin(write=True) as txn:
        txn.put(b"a", b"b")
    for writing in (False, True):
        with pytest.raises(FormatVersionError, match=r"LMDB 1\.0"):
            opened(tmp_path / "store", writing=writing)


def test_an_environment_of_another_program_is_no_store(tmp_path):
    with lmdb.open(str(tmp_path / "store"), lib_version=0) as other:
        for key in (b"a", b"b"):
            with other.begin(write=True) as txn:
                txn.put(key, key)
    assert not pages.holds_head(tmp_path / "store" / "data.mdb")
    with pytest.raises(CorruptionError, match="there is no head"):
        opened(tmp_path / "store")


@pytest.mark.parametrize("content", [b"x", b"x" * 5000, b"x" * 100_000, bytes(8192)])
def test_any_other_file(tmp_path, content):
    (tmp_path / "store").mkdir()
    path = tmp_path / "store" / "data.mdb"
    path.write_bytes(content)
    assert not pages.holds_head(path)
    refused(path, "meta page")
    assert path.read_bytes() == content
