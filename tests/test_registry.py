"""URLs, backends and `aesg.open`: what is found, what is created, what is refused, what is imported for it."""

import inspect
import os
import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points

import numpy as np
import pytest

import aesg
from aesg import errors
from aesg.backends import registry
from aesg.backends.registry import Backend, Option, choice, size
from aesg.backends.url import StoreURL
from aesg.errors import (
    AESGError,
    BackendNotInstalledError,
    InvalidInputError,
    LockedError,
    NotFoundError,
    SchemaMismatchError,
    StorageError,
    UnsupportedError,
)
from aesg.testing.graphs import DIM, assert_same, contents, fill

# --- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "scheme", "authority", "path", "options"),
    [
        ("memmap:///a/b", "memmap", "", "/a/b", {}),
        ("memmap:/a/b", "memmap", "", "/a/b", {}),
        ("memmap:a/b", "memmap", "", "a/b", {}),
        ("MemMap:///a?x=1&y=", "memmap", "", "/a", {"x": "1", "y": ""}),
        ("memory:", "memory", "", "", {}),
        ("s3://bucket/key%20a?region=eu%2Fwest", "s3", "bucket", "/key a", {"region": "eu/west"}),
        ("zarr+zip:///a", "zarr+zip", "", "/a", {}),
        ("/a/b?c#d%20", "", "", "/a/b?c#d%20", {}),
        ("a/b", "", "", "a/b", {}),
        ("C:\\data\\store", "", "", "C:\\data\\store", {}),
        ("memmap:///with%20space/%C3%BC/%3F%23", "memmap", "", "/with space/ü/?#", {}),
    ],
)
def test_urls_are_taken_apart_and_put_together(text, scheme, authority, path, options):
    url = StoreURL.parse(text)
    assert (url.scheme, url.authority, url.path, url.options) == (scheme, authority, path, options)
    assert StoreURL.parse(str(url)) == url


@pytest.mark.parametrize(
    "text", ["", b"/bytes", "memmap:///a?x", "memmap:///a?x=1&x=2", "/a\0b", "memmap:///a%00b", "memmap:///a\0"]
)
def test_malformed_urls_are_refused(text):
    with pytest.raises(InvalidInputError):
        aesg.open(text, vector_dim=3)


def test_a_local_path_has_no_host_and_is_not_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=r"memmap:///absolute"):
        aesg.open("memmap://host/path", vector_dim=3)
    with pytest.raises(InvalidInputError, match="path is missing"):
        aesg.open("memmap:", vector_dim=3)
    with aesg.open("memmap:below/here", vector_dim=3) as store:
        assert store.url == f"memmap://{tmp_path}/below/here"
    with aesg.open("below/here", "r") as store:
        assert store.url == f"memmap://{tmp_path}/below/here"
    monkeypatch.setenv("HOME", str(tmp_path))
    aesg.open("~/below/here", "r").close()
    aesg.open("memmap:~/below/here", "r").close()


@pytest.mark.parametrize(
    "name", ["plain", "mit Leerzeichen", "ü", "a?b#c%20d", "a:b", "x" * 200, os.fsdecode(b"\xff\xfe")]
)
def test_any_name_of_a_folder_will_do(tmp_path, name):
    with aesg.open(tmp_path / name, vector_dim=DIM) as store:
        fill(store)
        url, wanted = store.url, contents(store)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    for way in (url, tmp_path / name, str(tmp_path / name)):
        with aesg.open(way, "r") as store:
            assert store.url == url
            assert_same(contents(store), wanted)
            copy = pickle.loads(pickle.dumps(store))
            assert_same(contents(copy), wanted)
            copy.close()


def test_a_name_that_is_too_long_is_an_error_of_ours(tmp_path):
    for way in (tmp_path / ("x" * 300), f"memmap://{tmp_path}/{'x' * 300}"):
        for mode in ("a", "r"):
            with pytest.raises(StorageError, match="too long"):
                aesg.open(way, mode, vector_dim=3)


# --- which backend ---------------------------------------------------------------------------------------------------


def test_the_built_in_backends_are_entry_points_like_others(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})  # other tests have registered theirs
    points = {point.name: point.value for point in entry_points(group="aesg.backends")}
    assert points["memory"] == "aesg.backends.memory:BACKEND"
    assert points["memmap"] == "aesg.backends.memmap:BACKEND"
    assert set(registry.schemes()) == set(points)
    for name in points:
        assert registry.backend(name).scheme == name
        assert registry.backend(name).summary


def test_a_backend_is_registered_for_this_process_and_may_be_replaced(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_registered", {})
    made = []
    for turn in range(2):
        registry.register(
            Backend(
                "mine",
                "for this test",
                lambda url, mode, dim, options, turn=turn: made.append(turn) or aesg.open("memory:", vector_dim=dim),
                recognises=lambda path: path.name == "recognised",
            )
        )
        assert "mine" in registry.schemes()
        aesg.open("mine:", vector_dim=3).close()
    aesg.open(tmp_path / "recognised", vector_dim=3).close()
    assert made == [0, 1, 1]


def test_an_installed_backend_is_not_replaced():
    with pytest.raises(InvalidInputError, match="memmap"):
        registry.register(Backend("memmap", "not the real one", lambda *args: None))
    assert registry.backend("memmap").summary != "not the real one"


def test_an_unknown_scheme_is_an_error_that_lists_the_known_ones():
    with pytest.raises(BackendNotInstalledError) as caught:
        aesg.open("nosuch:///a", vector_dim=3)
    assert "'nosuch'" in str(caught.value)
    for name in registry.schemes():
        assert name in str(caught.value)
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize(
    ("url", "options"),
    [("memmap:{}?colour=red", {}), ("memmap:{}", {"colour": "red"}), ("{}", {"colour": "red"}), ("memory:?x=1", {})],
)
def test_an_unknown_option_is_an_error_that_lists_the_known_ones(tmp_path, url, options):
    with pytest.raises(InvalidInputError) as caught:
        aesg.open(url.format(tmp_path / "store"), vector_dim=3, **options)
    assert "durability" in str(caught.value) or "Options: index" in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("value", ["eternal", "", "POWER_LOSS", None, 1])
def test_an_unknown_value_of_an_option_is_an_error_that_lists_the_known_ones(tmp_path, value):
    with pytest.raises(InvalidInputError, match=r"process_crash.*power_loss"):
        aesg.open(tmp_path / "store", vector_dim=3, durability=value)
    assert not (tmp_path / "store").exists()


def test_a_keyword_counts_more_than_the_url(tmp_path):
    url = f"memmap://{tmp_path}/store?durability=power_loss"
    with aesg.open(url, vector_dim=3, durability="process_crash") as store:
        assert store.capabilities.as_dict()["durability"] == "process_crash"
        assert store.url == f"memmap://{tmp_path}/store"
    with aesg.open(tmp_path / "store", durability="power_loss") as store:
        assert store.capabilities.as_dict()["durability"] == "power_loss"
        assert store.url == url


def test_a_bare_path_is_recognised_by_what_is_in_it(tmp_path):
    with aesg.open(tmp_path / "new", vector_dim=3) as store:
        assert store.url.startswith("memmap:")
    aesg.open(tmp_path / "new", "r").close()
    aesg.open(str(tmp_path / "new")).close()
    (tmp_path / "empty").mkdir()
    aesg.open(tmp_path / "empty", vector_dim=3).close()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
    for mode in ("a", "r"):
        with pytest.raises(NotFoundError, match="holds no store of a known backend"):
            aesg.open(tmp_path / "foreign", mode, vector_dim=3)
    assert [entry.name for entry in (tmp_path / "foreign").iterdir()] == ["thesis.tex"]
    assert str(registry.resolve(tmp_path / "new", backend_name="memory")).startswith("memory:")
    with pytest.raises(InvalidInputError, match="not a store of backend"):
        registry.resolve(f"memmap://{tmp_path}", backend_name="memory")


def test_a_creation_that_was_cut_short_is_begun_again(tmp_path):
    """Killed just after its folder was locked: a bare path finds it all the same."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "writer.lock").write_text("")
    with pytest.raises(NotFoundError):
        aesg.open(tmp_path / "store", "r")
    with pytest.raises(InvalidInputError, match="vector_dim"):
        aesg.open(tmp_path / "store")
    aesg.open(tmp_path / "store", vector_dim=3).close()
    aesg.open(tmp_path / "store", "r").close()


# --- somebody else's backend -----------------------------------------------------------------------------------------


@pytest.fixture
def install(monkeypatch):
    """Register backends for one test."""
    installed = dict(registry._entry_points())

    def add(name, target):
        installed[name] = EntryPoint(name, f"{__name__}:{target}" if ":" not in target else target, registry.GROUP)
        registry._installed.cache_clear()

    monkeypatch.setattr(registry, "_entry_points", lambda: installed)
    yield add
    registry._installed.cache_clear()


def open_theirs(url, mode, vector_dim, options):
    assert options == {"level": 3}
    return aesg.open("memory:", vector_dim=vector_dim or 7)


THEIRS = Backend(
    "theirs",
    "somebody else's",
    open_theirs,
    recognises=lambda path: (path / "theirs.db").exists(),
    options={"level": Option(int, "a number"), "kind": Option(choice("a", "b"), "a or b")},
)


def test_a_third_party_backend_is_found_by_scheme_and_by_what_lies_there(tmp_path, install):
    install("theirs", "THEIRS")
    with aesg.open("theirs:///x?level=3") as store:
        assert store.vector_dim == 7
    (tmp_path / "theirs.db").write_text("")
    with aesg.open(tmp_path, level="3", vector_dim=np.int32(5)) as store:
        assert store.vector_dim == 5
    with pytest.raises(InvalidInputError, match=r"level='x'"):
        aesg.open(tmp_path, level="x")
    with pytest.raises(InvalidInputError, match=r"kind='c': expected one of a, b"):
        aesg.open(tmp_path, kind="c")
    (tmp_path / "meta.npy").write_text("")
    with pytest.raises(InvalidInputError, match="memmap and theirs"):
        aesg.open(tmp_path, level="3")


def test_a_backend_whose_package_is_missing_or_that_is_none(install):
    install("missing", "no_such_package_at_all:BACKEND")
    with pytest.raises(BackendNotInstalledError, match="no_such_package_at_all"):
        aesg.open("missing:///x")
    install("wrong", "DIM")
    with pytest.raises(BackendNotInstalledError, match="not a Backend"):
        aesg.open("wrong:///x")


# --- open ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "rw", "", None, "A", b"r"])
def test_modes_are_a_and_r(tmp_path, mode):
    with pytest.raises(InvalidInputError, match="mode must be 'a'"):
        aesg.open(tmp_path / "store", mode, vector_dim=3)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("dim", [0, -1, 3.0, "3", True, 2**21, [3]])
def test_lengths_of_vectors_that_cannot_be(tmp_path, dim):
    for url in (tmp_path / "store", "memory:"):
        with pytest.raises(InvalidInputError, match="vector_dim"):
            aesg.open(url, vector_dim=dim)
    assert not (tmp_path / "store").exists()


def test_a_new_store_needs_a_length_of_vectors_and_makes_nothing_without(tmp_path):
    for url in (tmp_path / "store", f"memmap://{tmp_path}/store", "memory:"):
        with pytest.raises(InvalidInputError, match="vector_dim"):
            aesg.open(url)
    assert not (tmp_path / "store").exists()


def test_a_numpy_integer_is_a_length_too(tmp_path):
    aesg.open(tmp_path / "store", vector_dim=np.int64(5)).close()
    with aesg.open(tmp_path / "store", vector_dim=np.uint8(5)) as store:
        assert store.vector_dim == 5
        assert type(store.vector_dim) is int


def test_reading_what_is_not_there_makes_nothing(tmp_path):
    for url in (tmp_path / "a" / "b", f"memmap://{tmp_path}/a/b"):
        with pytest.raises(NotFoundError, match="no store") as caught:
            aesg.open(url, "r")
        assert isinstance(caught.value, KeyError)
        assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "a").exists()
    with pytest.raises(NotFoundError, match="begins empty"):
        aesg.open("memory:", "r", vector_dim=3)
    with pytest.raises(InvalidInputError, match="no path"):
        aesg.open("memory:///a", vector_dim=3)


def test_another_length_is_an_error_with_both_numbers(tmp_path):
    aesg.open(tmp_path / "store", vector_dim=5).close()
    for mode in ("a", "r"):
        with pytest.raises(SchemaMismatchError) as caught:
            aesg.open(tmp_path / "store", mode, vector_dim=6)
        assert "5" in str(caught.value)
        assert "6" in str(caught.value)
        aesg.open(tmp_path / "store", mode, vector_dim=5).close()


def test_a_second_writer_is_told_who_has_it(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "store")
    with aesg.open(tmp_path / "store", vector_dim=3) as store:
        for way in (tmp_path / "store", f"memmap:{tmp_path}/store", tmp_path / "link", tmp_path / "x" / ".." / "store"):
            with pytest.raises(LockedError, match=f"this process .pid {os.getpid()}.*mode='r'"):
                aesg.open(way)
        store.attrs["still"] = "writable"
        aesg.open(tmp_path / "store", "r").close()
    aesg.open(tmp_path / "store").close()


def test_open_that_failed_leaves_nothing_open(tmp_path):
    aesg.open(tmp_path / "store", vector_dim=3).close()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        for error, wrong in (
            (SchemaMismatchError, {"vector_dim": 4}),
            (UnsupportedError, {"require": {"snapshots": True}}),
            (InvalidInputError, {"require": {"colour": True}}),
        ):
            for mode in ("a", "r"):
                with pytest.raises(error):
                    aesg.open(tmp_path / "store", mode, **wrong)
    with aesg.open(tmp_path / "store") as store, pytest.raises(LockedError):
        aesg.open(store.url)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


# --- errors ----------------------------------------------------------------------------------------------------------


def test_there_is_one_tree_of_errors():
    tree = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    parents = {
        "NotFoundError": KeyError, "InvalidInputError": ValueError, "InvalidVectorError": InvalidInputError,
        "DuplicateIdError": ValueError, "SchemaMismatchError": ValueError, "TransactionError": RuntimeError,
        "UnsupportedError": NotImplementedError, "BackendNotInstalledError": ImportError, "StorageError": OSError,
    }  # fmt: skip
    for name, kind in tree.items():
        assert issubclass(kind, AESGError)
        assert issubclass(kind, parents.get(name, AESGError))
        assert kind.__doc__
        assert name == "AESGError" or name in errors.__doc__
        assert str(kind("what happened, to whom, and what to do")) == "what happened, to whom, and what to do"
        assert str(pickle.loads(pickle.dumps(kind("one sentence")))) == "one sentence"
    assert set(parents) < set(tree)


# --- imports ---------------------------------------------------------------------------------------------------------


def test_importing_and_opening_imports_nothing_heavy(tmp_path):
    program = f"""
import sys
import aesg
def check():
    heavy = {{"torch", "numba", "sklearn", "scipy", "typer", "rich", "pandas"}} & set(sys.modules)
    assert not heavy, heavy
check()
for url in ("memory:", {str(tmp_path / "store")!r}):
    with aesg.open(url, vector_dim=3) as store:
        store.attrs["a"] = 1
        store.verify()
check()
aesg.open({str(tmp_path / "store")!r}, "r").close()
check()
assert "AESGMemory" in aesg.__all__
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("require", [{"snapshots": True}, {"durability": "power_loss"}, {"durabilty": "power_loss"}])
def test_what_a_new_store_would_not_promise_is_refused_before_it_is_created(tmp_path, require):
    with pytest.raises((UnsupportedError, InvalidInputError)):
        aesg.open(tmp_path / "new", vector_dim=3, require=require)
    assert not (tmp_path / "new").exists()


def test_a_promise_made_before_opening_is_the_one_kept_after(tmp_path):
    for options in ({}, {"durability": "power_loss"}):
        with aesg.open(tmp_path / str(options), vector_dim=3, **options) as store:
            assert registry.backend("memmap").promises(options) == store.capabilities


@pytest.mark.parametrize(
    ("given", "expected"),
    [(5, 5), ("5", 5), ("2KiB", 2048), ("64 MiB", 64 << 20), ("1GiB", 1 << 30), ("3TiB", 3 << 40), (0, 0)],
)
def test_numbers_of_bytes_are_written_with_or_without_a_unit(given, expected):
    assert size()(given) == expected


@pytest.mark.parametrize("given", [-1, "-1", "", "MiB", "1MB", "1.5", 1.5, True, None, "1 MiB ", "1mib", "٣", [1]])
def test_what_is_no_number_of_bytes_is_refused(given):
    with pytest.raises(ValueError, match="a number of bytes from 0 to"):
        size()(given)


def test_a_number_of_bytes_may_have_limits():
    parse = size(1 << 20, 1 << 30)
    assert (parse("1MiB"), parse("1GiB")) == (1 << 20, 1 << 30)
    for outside in ("1023KiB", (1 << 30) + 1):
        with pytest.raises(ValueError, match="from 1,048,576 to 1,073,741,824"):
            parse(outside)
