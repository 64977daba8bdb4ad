"""The content digest: the definition, its independence of how a store is kept, and that nothing escapes it."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import aesg
from aesg.backends.registry import schemes
from aesg.cli.main import app
from aesg.errors import ConflictError, NotFoundError
from aesg.migration import digest as digests
from aesg.migration.copying import GraphSource
from aesg.migration.digest import ContentDigest, canonical_json, digest_of
from aesg.migration.steady import steady
from aesg.records import EDGE_FIELDS, EVENT_DTYPE, NODE_FIELDS, EventType, NodeBatch, events
from aesg.testing.graphs import batch

GOLDEN = {
    "empty": "aesg1:405674c3776f8445dea7c0d91c868438aad14188b2d959e561545b4ea6693bbb",
    "filled": "aesg1:b59e931cf2d47ec6f1ed21d830fc2cb00f2f239c59a85d82aba86d42bd6b2268",
    "large": "aesg1:2bb74ee7c3b97ea5ba8207748faf0a295aa38da7546aaa793e4fae69ec12be3f",
}
"""Digests that version 1 gives, for good. A change here is a new version of the digest, and has another prefix."""
BACKENDS = [scheme for scheme in ("memory", "memmap", "lmdb", "zarr", "icechunk") if scheme in schemes()]


def url_of(scheme, path):
    return "memory:" if scheme == "memory" else f"{scheme}://{path}"


def reference():
    """The implementation that the documentation shows."""
    text = (Path(__file__).parent.parent / "docs" / "digest.md").read_text()
    scope = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], scope)
    return scope["content_digest"]


def by_reference(graph):
    nodes = {name: np.concatenate([chunk[name] for chunk in graph.nodes.scan()]) for name in NODE_FIELDS}
    edges = {name: np.concatenate([chunk[name] for chunk in graph.edges.scan()]) for name in EDGE_FIELDS}
    log = {name: graph.events.read()[name] for name in EVENT_DTYPE.names}
    return reference()(graph.vector_dim, nodes, edges, log, dict(graph.attrs))


def fill(graph, nodes=12, edges=10):
    """A graph that no generator of random numbers has a part in: those may change."""
    n, e = np.arange(nodes), np.arange(edges)
    columns = {name: (n * 7 + number) % 5 for number, name in enumerate(NODE_FIELDS)}
    columns |= {"relevance": n / 16, "stability": -n / 64, "is_active": n % 4 > 0, "created_at": n + 1_700_000_000}
    vector = (np.arange(nodes * graph.vector_dim) % 1021 / 8).reshape(nodes, -1)
    del columns["id"], columns["vector"]
    graph.nodes.append(NodeBatch(vector, n * 1000 + 2**62, columns))
    refs = graph.edges.append(e * 7 % nodes, e * 11 % nodes, e / 128, -e / 1024)
    graph.edges.write(refs[::3], use_count=refs[::3] + 1)
    graph.edges.remove(refs[4::5])
    graph.events.append(events(EventType.CREATE, n, n + 1, n / 4, timestamp=1_700_000_000))
    graph.attrs["config"] = {"a": [1, 2.5, None, True], "ä": "ü"}
    graph.attrs["epoch"] = 7


def made(kind):
    store = aesg.open("memory:", vector_dim=300 if kind == "large" else 4)
    if kind == "filled":
        fill(store)
    elif kind == "large":  # columns of several leaves, whose ends fall between rows
        fill(store, 150_000 // 50, 150_000)
        store.events.append(events(EventType.PRUNE, np.arange(150_000), val=0.25, timestamp=5))
    return store


@pytest.mark.parametrize("kind", GOLDEN)
def test_digests_stay_what_they_were(kind):
    store = made(kind)
    assert aesg.digest(store) == GOLDEN[kind]
    if kind != "empty":
        assert by_reference(store) == GOLDEN[kind]


@pytest.mark.parametrize("scheme", BACKENDS)
def test_every_backend_and_every_history_has_the_same(scheme, tmp_path):
    with aesg.open(url_of(scheme, tmp_path / "one"), vector_dim=4) as store:
        fill(store)
        assert aesg.digest(store) == GOLDEN["filled"]
        # As it was, by another way: the gaps that removed edges leave do not count, nor the order of attributes.
        store.edges.remove(store.edges.append([1, 1], [2, 2]))
        config = store.attrs.pop("config")
        assert aesg.digest(store) != GOLDEN["filled"]
        store.attrs["config"] = config
        assert aesg.digest(store) == GOLDEN["filled"]
        if store.capabilities.snapshots:
            with store.snapshot() as snapshot:
                store.nodes.write([0], age=77)
                assert digest_of(GraphSource(snapshot)) == GOLDEN["filled"]
    if scheme != "memory":
        with aesg.open(url_of(scheme, tmp_path / "one"), "r") as store:
            assert (aesg.digest(store) == GOLDEN["filled"]) is not store.capabilities.snapshots


@settings(max_examples=40)
@given(st.lists(st.integers(1, 900), max_size=8), st.integers(1, 64))
def test_the_size_of_pieces_and_of_leaves_of_work_does_not_matter(cuts, dim):
    rng = np.random.default_rng(dim)
    n = 2000
    columns = {name: rng.integers(0, 200, n).astype(kind) for name, kind in NODE_FIELDS.items()}
    columns["vector"] = rng.standard_normal((n, dim), np.float32)
    edges = {name: rng.integers(0, n, n).astype(kind) for name, kind in EDGE_FIELDS.items()}
    log = events(EventType.MERGE, np.arange(n), timestamp=3)
    whole, pieces = ContentDigest(dim), ContentDigest(dim)
    bounds = sorted({0, n, *np.minimum(np.cumsum(cuts), n).tolist()}) if cuts else [0, n]
    for into, some in ((whole, [0, n]), (pieces, bounds)):
        for first, last in pairwise(some):
            into.nodes({name: values[first:last] for name, values in columns.items()})
            into.edges({name: values[first:last] for name, values in edges.items()})
            into.events(log[first:last])
    log = {name: log[name] for name in EVENT_DTYPE.names}
    assert whole.finish({"a": 1}) == pieces.finish({"a": 1}) == reference()(dim, columns, edges, log, {"a": 1})


def test_no_bit_escapes():
    """Whatever is changed, and wherever, the digest is another one."""
    store = made("filled")
    seen = {aesg.digest(store)}

    def is_new():
        found = aesg.digest(store)
        assert found not in seen
        seen.add(found)

    for field, value in {
        "modified_at": 9, "use_frequency": 99, "relevance": 0.125, "age": 99, "stability": 0.0625, "region_id": 9,
        "is_active": 0, "vector": [[0, 1, 2, 3]],
    }.items():  # fmt: skip
        store.nodes.write([7], **{field: value})
        is_new()
    store.nodes.write([7], relevance=0.0)
    is_new()
    store.nodes.write([7], relevance=-0.0)
    is_new()
    for field, value in {"weight": 0.03125, "confidence": 0.5, "use_count": 2**32 - 1}.items():
        store.edges.write([3], **{field: value})
        is_new()
    store.edges.remove([3])
    is_new()
    store.edges.append([0], [1])
    is_new()
    store.events.append(events(EventType.CREATE, 3, timestamp=1))
    is_new()
    for value in (1, 1.0, "1", [1], {"1": 1}, None, True, 2**70, -0.0, 1e16, "\ud800"):
        store.attrs["x"] = value
        is_new()
    store.nodes.append(batch(1, 9999))
    is_new()
    store.nodes.append(NodeBatch(np.zeros((1, 4)), np.array([5])))
    is_new()


def test_order_counts():
    digest = []
    for order in ([0, 1], [1, 0]):
        store = aesg.open("memory:", vector_dim=4)
        given_nodes = batch(2)
        columns = {name: values[order] for name, values in given_nodes.columns.items()}
        store.nodes.append(NodeBatch(given_nodes.vector[order], given_nodes.id[order], columns))
        digest.append(aesg.digest(store))
        store.edges.append([0, 0], [0, 1], [0.5, 0.5])
        digest.append(aesg.digest(store))
        store.edges.remove([0, 1])
        store.edges.append([0, 0], [1, 0], [0.5, 0.5])
        digest.append(aesg.digest(store))
    assert len(set(digest)) == 6


def test_the_spelling_of_attributes():
    assert canonical_json({"b": [1.5, -0.0, None], "a": {"ü": "😀", "B": 1e22}}) == (
        b'{"a":{"B":1e+22,"\\u00fc":"\\ud83d\\ude00"},"b":[1.5,-0.0,null]}'
    )


def test_a_writer_is_noticed_where_there_are_no_snapshots(tmp_path):
    with aesg.open(f"memmap://{tmp_path}/store", vector_dim=4) as writer, aesg.open(tmp_path / "store", "r") as reader:
        fill(writer)
        with steady(reader) as held:
            held.check()
            writer.attrs["epoch"] = 8
            with pytest.raises(ConflictError, match="written to while it was read"):
                held.check()

        def write_once(doing, done, of, left=[1]):  # noqa: B006
            if left and left.pop():
                writer.attrs["epoch"] = 9

        with pytest.raises(ConflictError):
            aesg.digest(reader, write_once)
        assert aesg.digest(reader) == aesg.digest(writer)


def run(*args, status=0):
    result = CliRunner().invoke(app, ["digest", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status
    return result.stdout


def test_the_command(tmp_path):
    for name in ("one", "other"):
        with aesg.open(f"memmap://{tmp_path}/{name}", vector_dim=4) as store:
            fill(store)
    one, other = tmp_path / "one", f"memmap://{tmp_path}/other"
    assert run(one) == GOLDEN["filled"] + "\n"
    assert json.loads(run(one, "--json")) == {"url": str(one), "digest": GOLDEN["filled"]}
    assert run(one, other).splitlines() == [f"{GOLDEN['filled']}  {one}", f"{GOLDEN['filled']}  {other}"]
    with aesg.open(other) as store:
        store.attrs["epoch"] = 8
    assert run(one, other, status=1).count("aesg1:") == 2
    found = json.loads(run(one, other, "--json", status=1))
    assert not found["same"]
    assert found["digests"][str(one)] == GOLDEN["filled"] != found["digests"][other]
    with pytest.raises(NotFoundError):
        run(tmp_path / "absent")


def test_progress_reaches_the_end():
    told = []
    digests.digest(made("filled"), lambda *what: told.append(what))
    assert told[-1] == ("hashing", 12 + 8 + 12, 12 + 8 + 12)
