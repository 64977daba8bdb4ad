"""The databases that `rivals.py` asks, each as its documentation has it.

Two ways to spread are tried: the hops in the database's own language, and a query a hop whose sums NumPy makes. Fan
needs all edges of a node anyway, so it is summed on the way; nothing derived is kept, which learning would spoil.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from data import Floats, Ints
from retrieval_rivals import library
from rivals_job import DECAY, LEAST, Activated, Lesson, Rule, best_of, spread
from rivals_systems import Given, chunks

MEMORY: Final = 8 << 30
"""Bytes that a database may cache, where it would otherwise take most of the machine's."""
IN_SQL: Final = "one SQL statement"
BY_HOPS: Final = "a query a hop, summed by NumPy"
BULK: Final = 1_000_000
"""Rows that are handed over at a time."""


class _Database:
    """What the databases have in common: both ways to spread.

    Args:
        folder: Where the store is to be.
        rule: How activation spreads.
        dim: Length of the vectors.
    """

    ladder: ClassVar[tuple[int, ...]] = ()
    ways: ClassVar[tuple[str, ...]] = (IN_SQL, BY_HOPS)

    def __init__(self, folder: Path, rule: Rule, dim: int) -> None:
        self.search = "exact scan"
        self.way = self.ways[0]
        self.notes: list[str] = []
        self._place, self._rule, self._dim = folder / "store", rule, dim

    def turn_to(self, value: int) -> None:
        raise NotImplementedError("there is nothing to turn")

    def seeds(self, query: Floats) -> Ints:
        return self._nearest(query)[0]

    def ask(self, query: Floats) -> Ints:
        if self.way == BY_HOPS:
            return best_of(self._by_hops(query), self._rule.top)
        return self._in_database(query, self._rule.top)[0]

    def activate(self, query: Floats) -> Activated:
        if self.way == BY_HOPS:
            return self._by_hops(query)
        seeds = self.seeds(query)
        return Activated(seeds, *self._in_database(query, -1))

    def _by_hops(self, query: Floats) -> Activated:
        seeds, cosines = self._nearest(query)
        return spread(self._rule, seeds, cosines, self._edges_of, lambda rows: self._cosines_of(rows, query))

    def _nearest(self, query: Floats) -> tuple[Ints, Floats]:
        """The nearest rows and their cosines, best first."""
        raise NotImplementedError

    def _edges_of(self, rows: Ints) -> tuple[Ints, Ints, Floats]:
        raise NotImplementedError

    def _cosines_of(self, rows: Ints, query: Floats) -> tuple[Ints, Floats]:
        raise NotImplementedError

    def _in_database(self, query: Floats, count: int) -> tuple[Ints, Any]:
        """Rows and energies, best first, as the database itself finds them; at most `count`, all when -1."""
        raise NotImplementedError


def _hops_in_sql(rule: Rule, seeds: str, gate: str, one_hop: str) -> str:
    """One statement that spreads: each hop is a table of its own, since recursion may not sum.

    Args:
        rule: How.
        seeds: A SELECT of id and cosine.
        gate: A SELECT of id, s and cosine for the table {arrived}.
        one_hop: A SELECT of target, energy and strength, and of the source's summed strength as fan, for the table
            {firing}.
    """
    parts = [
        f"seeds AS MATERIALIZED ({seeds})",
        "best AS MATERIALIZED (SELECT max(cosine) AS best FROM seeds)",
        f"h0 AS MATERIALIZED (SELECT id, exp((cosine - best) / {rule.temperature}) AS energy FROM seeds, best)",
    ]
    for hop in range(1, rule.hops + 1):
        sent = one_hop.format(firing=f"h{hop - 1}")
        parts += [
            f"a{hop} AS MATERIALIZED (SELECT target AS id, sum(energy * strength * {rule.decay} / pow(fan, {rule.fan}))"
            f" AS s FROM ({sent}) GROUP BY target HAVING s > {rule.threshold})",
            f"g{hop} AS MATERIALIZED ({gate.format(arrived=f'a{hop}')})",
            f"h{hop} AS MATERIALIZED (SELECT id, s * cosine / best AS energy FROM g{hop}, best"
            f" WHERE cosine > 0 AND s * cosine / best > {rule.threshold})",
        ]
    every = " UNION ALL ".join(f"SELECT id, energy FROM h{hop}" for hop in range(rule.hops + 1))
    best = f"SELECT id, sum(energy) AS energy FROM ({every}) GROUP BY id ORDER BY energy DESC"
    return f"WITH {', '.join(parts)} {best} LIMIT "


# --- DuckDB ----------------------------------------------------------------------------------------------------------


class DuckDB(_Database):
    """Columns, joins by hashing: rows ordered by their key, so that scans skip; vectors in an ARRAY column.

    The vss extension is used where it is installed; its index is kept in the file only as an experiment.
    """

    packages: ClassVar[tuple[str, ...]] = ("duckdb",)
    durability: ClassVar[str] = "power loss"

    def __init__(self, folder: Path, rule: Rule, dim: int) -> None:
        super().__init__(folder, rule, dim)
        self._duckdb = library("duckdb", "duckdb")
        same = f"array_cosine_similarity(n.vector, $q::FLOAT[{dim}])"
        nearest = f"array_cosine_distance(n.vector, $q::FLOAT[{dim}])"
        self._seeds = (
            f"SELECT id, (1 - distance)::FLOAT AS cosine FROM (SELECT id, {nearest} AS distance FROM nodes n "
            f"ORDER BY distance LIMIT {rule.seeds}) ORDER BY distance"
        )
        self._hops = _hops_in_sql(
            rule,
            self._seeds,
            f"SELECT n.id, s, {same} AS cosine FROM {{arrived}} a JOIN nodes n ON n.id = a.id",
            "SELECT target, energy, strength, sum(strength) OVER (PARTITION BY source) AS fan FROM (SELECT e.source, "
            "e.target, h.energy, e.weight * e.confidence AS strength FROM {firing} h JOIN edges e ON e.source = h.id)",
        )
        self._same = f"SELECT n.id, {same} AS cosine FROM nodes n WHERE n.id IN (SELECT unnest($rows::BIGINT[]))"

    def create(self, given: Given) -> None:
        pyarrow = library("pyarrow", "pyarrow")
        self._connect()
        do = self._connection.execute
        do("BEGIN")
        do(f"CREATE TABLE nodes(id BIGINT, vector FLOAT[{self._dim}], relevance FLOAT)")
        do("CREATE TABLE edges(id BIGINT, source BIGINT, target BIGINT, weight FLOAT, confidence FLOAT)")
        for some in chunks(len(given["vectors"]), BULK):
            part = _nodes(pyarrow, np.arange(some.start, some.stop), given["vectors"][some], given["relevance"][some])
            self._put("nodes", part)
        for some in chunks(len(given["source"]), BULK):
            columns = {"id": np.arange(some.start, some.stop), **{n: np.asarray(given[n][some]) for n in _EDGE}}
            self._put("edges", pyarrow.table(columns))
        do("COMMIT")
        if self._vss:
            do("SET hnsw_enable_experimental_persistence = true")
            do("CREATE INDEX by_vector ON nodes USING HNSW (vector) WITH (metric = 'cosine')")
        do("CHECKPOINT")

    def open(self) -> None:
        self._connect()

    def _connect(self) -> None:
        settings = {"memory_limit": f"{MEMORY >> 20}MiB", "autoinstall_known_extensions": "false"}
        self._connection = self._duckdb.connect(str(self._place), config=settings)
        try:
            self._connection.execute("LOAD vss")
            self._vss, self.search = True, "HNSW (vss)"
        except self._duckdb.Error:
            self._vss = False
            self.notes = ["DuckDB's vss extension is not installed here: it is searched by array_cosine_distance"]

    def _put(self, name: str, table: Any) -> None:
        self._connection.register("given", table)
        self._connection.execute(f"INSERT INTO {name} SELECT * FROM given")
        self._connection.unregister("given")

    def close(self) -> None:
        self._connection.close()

    def _nearest(self, query: Floats) -> tuple[Ints, Floats]:
        found = self._connection.execute(self._seeds, {"q": query}).fetchnumpy()
        return found["id"], found["cosine"]

    def _edges_of(self, rows: Ints) -> tuple[Ints, Ints, Floats]:
        found = self._connection.execute(
            "SELECT source, target, weight * confidence AS strength FROM edges "
            "WHERE source IN (SELECT unnest($rows::BIGINT[]))",
            {"rows": rows},
        ).fetchnumpy()
        return found["source"], found["target"], found["strength"]

    def _cosines_of(self, rows: Ints, query: Floats) -> tuple[Ints, Floats]:
        found = self._connection.execute(self._same, {"q": query, "rows": rows}).fetchnumpy()
        return found["id"], found["cosine"]

    def _in_database(self, query: Floats, count: int) -> tuple[Ints, Any]:
        found = self._connection.execute(self._hops + (str(count) if count >= 0 else "ALL"), {"q": query}).fetchnumpy()
        return found["id"], found["energy"]

    def learn(self, new: Lesson) -> None:
        pyarrow = library("pyarrow", "pyarrow")
        self._connection.execute("BEGIN")
        self._put("nodes", _nodes(pyarrow, new.ids, new.vectors, new.relevance))
        columns = {"id": new.edge_ids, **{name: getattr(new, name) for name in _EDGE}}
        self._put("edges", pyarrow.table(columns))
        self._connection.execute("COMMIT")

    def reinforce(self, ids: Ints, sources: Ints, rate: float) -> None:
        self._connection.register("given", library("pyarrow", "pyarrow").table({"id": ids, "source": sources}))
        self._connection.execute(
            f"UPDATE edges SET confidence = confidence + {rate} * (1 - confidence) FROM given "
            "WHERE edges.id = given.id AND edges.source = given.source"
        )
        self._connection.unregister("given")

    def consolidate(self) -> None:
        do = self._connection.execute
        pruned = f"(SELECT id FROM nodes WHERE relevance < {LEAST})"
        do("BEGIN")
        do(f"UPDATE nodes SET relevance = relevance * {DECAY}")
        do(f"DELETE FROM edges WHERE source IN {pruned} OR target IN {pruned}")
        do(f"DELETE FROM nodes WHERE relevance < {LEAST}")
        do("COMMIT")

    def counts(self) -> tuple[int, int]:
        found = self._connection.execute("SELECT (SELECT count(*) FROM nodes), (SELECT count(*) FROM edges)").fetchone()
        return int(found[0]), int(found[1])


_EDGE: Final = ("source", "target", "weight", "confidence")


def _vectors(pyarrow: Any, vectors: Floats) -> Any:
    """An Arrow column of vectors [n, D]."""
    flat = np.ascontiguousarray(vectors).reshape(-1)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), vectors.shape[1])


def _nodes(pyarrow: Any, ids: Ints, vectors: Floats, relevance: Floats) -> Any:
    """Nodes as an Arrow table."""
    columns = {"id": ids, "vector": _vectors(pyarrow, vectors), "relevance": np.asarray(relevance)}
    return pyarrow.table(columns)


# --- SQLite ----------------------------------------------------------------------------------------------------------


class SQLite(_Database):
    """Vectors in sqlite-vec's table; edges in one that is its own index, ordered by source; a log ahead of writes."""

    packages: ClassVar[tuple[str, ...]] = ("apsw", "sqlite-vec")
    durability: ClassVar[str] = "power loss"

    def __init__(self, folder: Path, rule: Rule, dim: int) -> None:
        super().__init__(folder, rule, dim)
        # Python's own module is often built without extensions, which sqlite-vec is.
        self._apsw = library("apsw", "apsw")
        self._extension = library("sqlite_vec", "sqlite-vec").loadable_path()
        self._seeds = (
            "SELECT id, 1 - distance AS cosine FROM vectors WHERE embedding MATCH :q "
            f"AND k = {rule.seeds} ORDER BY distance"
        )
        self._hops = _hops_in_sql(
            rule,
            self._seeds,
            "SELECT v.id, s, 1 - vec_distance_cosine(v.embedding, :q) AS cosine "
            "FROM {arrived} a CROSS JOIN vectors v WHERE v.id = a.id",
            "SELECT target, energy, strength, sum(strength) OVER (PARTITION BY source) AS fan FROM (SELECT e.source, "
            "e.target, h.energy, e.weight * e.confidence AS strength FROM {firing} h CROSS JOIN edges e "
            "WHERE e.source = h.id)",
        )

    def create(self, given: Given) -> None:
        self._connect()
        connection = self._connection
        connection.execute(
            "CREATE TABLE nodes(id INTEGER PRIMARY KEY, relevance REAL);"
            "CREATE TABLE edges(source INTEGER, id INTEGER, target INTEGER, weight REAL, confidence REAL, "
            "PRIMARY KEY (source, id)) WITHOUT ROWID;"
            f"CREATE VIRTUAL TABLE vectors USING vec0(id INTEGER PRIMARY KEY, embedding FLOAT[{self._dim}] "
            "distance_metric=cosine)"
        )
        with connection:
            for some in chunks(len(given["vectors"])):
                ids = np.arange(some.start, some.stop)
                self._add_nodes(ids, given["vectors"][some], given["relevance"][some])
            for some in chunks(len(given["source"])):
                ids = np.arange(some.start, some.stop)
                self._add_edges(ids, {name: np.asarray(given[name][some]) for name in _EDGE})
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA optimize")

    def _add_nodes(self, ids: Ints, vectors: Floats, relevance: Floats) -> None:
        keys = ids.tolist()
        rows = zip(keys, (vector.tobytes() for vector in np.ascontiguousarray(vectors)), strict=True)
        self._connection.executemany("INSERT INTO vectors(id, embedding) VALUES (?, ?)", rows)
        self._connection.executemany("INSERT INTO nodes VALUES (?, ?)", zip(keys, relevance.tolist(), strict=True))

    def _add_edges(self, ids: Ints, columns: Given) -> None:
        rest = (columns[name].tolist() for name in ("target", "weight", "confidence"))
        rows = zip(columns["source"].tolist(), ids.tolist(), *rest, strict=True)
        self._connection.executemany("INSERT INTO edges VALUES (?, ?, ?, ?, ?)", rows)

    def open(self) -> None:
        self._connect()

    def _connect(self) -> None:
        connection = self._connection = self._apsw.Connection(str(self._place))
        connection.enable_load_extension(True)
        connection.load_extension(self._extension)
        connection.enable_load_extension(False)
        connection.execute(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY;"
            f"PRAGMA cache_size = -{1 << 20}; PRAGMA mmap_size = {MEMORY}"
        )

    def close(self) -> None:
        self._connection.close()

    def _nearest(self, query: Floats) -> tuple[Ints, Floats]:
        return _columns(self._connection.execute(self._seeds, {"q": query.tobytes()}))

    def _edges_of(self, rows: Ints) -> tuple[Ints, Ints, Floats]:
        found = self._connection.execute(
            "SELECT source, target, weight * confidence FROM carray(?) AS asked CROSS JOIN edges "
            "WHERE source = asked.value",
            (self._list(rows),),
        ).fetchall()
        source, target, strength = zip(*found, strict=True) if found else ((), (), ())
        return np.array(source, np.int64), np.array(target, np.int64), np.array(strength, np.float32)

    def _cosines_of(self, rows: Ints, query: Floats) -> tuple[Ints, Floats]:
        found = self._connection.execute(
            "SELECT id, 1 - vec_distance_cosine(embedding, ?) FROM carray(?) AS asked CROSS JOIN vectors "
            "WHERE id = asked.value",
            (query.tobytes(), self._list(rows)),
        )
        return _columns(found)

    def _list(self, rows: Ints) -> Any:
        """Bound as a table."""
        return self._apsw.carray(np.ascontiguousarray(rows, np.int64))

    def _in_database(self, query: Floats, count: int) -> tuple[Ints, Any]:
        return _columns(self._connection.execute(f"{self._hops}{count}", {"q": query.tobytes()}))

    def learn(self, new: Lesson) -> None:
        with self._connection:
            self._add_nodes(new.ids, new.vectors, new.relevance)
            self._add_edges(new.edge_ids, {name: getattr(new, name) for name in _EDGE})

    def reinforce(self, ids: Ints, sources: Ints, rate: float) -> None:
        with self._connection:
            self._connection.executemany(
                f"UPDATE edges SET confidence = confidence + {rate} * (1 - confidence) WHERE source = ? AND id = ?",
                zip(sources.tolist(), ids.tolist(), strict=True),
            )

    def consolidate(self) -> None:
        pruned = f"(SELECT id FROM nodes WHERE relevance < {LEAST})"
        with self._connection:
            self._connection.execute(
                f"UPDATE nodes SET relevance = relevance * {DECAY};"
                f"DELETE FROM edges WHERE source IN {pruned} OR target IN {pruned};"
                f"DELETE FROM vectors WHERE id IN {pruned};"
                f"DELETE FROM nodes WHERE relevance < {LEAST}"
            )

    def counts(self) -> tuple[int, int]:
        found = self._connection.execute("SELECT (SELECT count(*) FROM nodes), (SELECT count(*) FROM edges)")
        nodes, edges = found.fetchall()[0]
        return int(nodes), int(edges)


def _columns(found: Any) -> tuple[Ints, Any]:
    """Rows of (integer, number) as two arrays."""
    rows = found.fetchall()
    numbers = np.array(rows, np.float64).reshape(-1, 2)  # integers below 2**53
    return numbers[:, 0].astype(np.int64), numbers[:, 1]


# --- Kuzu ------------------------------------------------------------------------------------------------------------


class Kuzu(_Database):
    """A property graph, loaded by COPY from Arrow; its own vector index; Cypher with parameters."""

    packages: ClassVar[tuple[str, ...]] = ("kuzu",)
    durability: ClassVar[str] = "power loss"
    ladder: ClassVar[tuple[int, ...]] = (50, 100, 200, 400, 800)
    ways: ClassVar[tuple[str, ...]] = ("a Cypher statement a hop", BY_HOPS)

    def __init__(self, folder: Path, rule: Rule, dim: int) -> None:
        super().__init__(folder, rule, dim)
        self._kuzu = library("kuzu", "kuzu")
        self.search = "HNSW"
        self._expansion = 200

    def create(self, given: Given) -> None:
        pyarrow = library("pyarrow", "pyarrow")
        self._connect()
        do = self._connection.execute
        do(f"CREATE NODE TABLE Node(id INT64 PRIMARY KEY, vector FLOAT[{self._dim}], relevance FLOAT)")
        do("CREATE REL TABLE Edge(FROM Node TO Node, id INT64, weight FLOAT, confidence FLOAT)")
        part = _nodes(pyarrow, np.arange(len(given["vectors"])), given["vectors"], given["relevance"])
        do("COPY Node FROM $part", {"part": part})
        columns = {"from": given["source"], "to": given["target"], "id": np.arange(len(given["source"]))}
        part = pyarrow.table({**columns, **{name: np.asarray(given[name]) for name in ("weight", "confidence")}})
        do("COPY Edge FROM $part", {"part": part})
        do("CALL CREATE_VECTOR_INDEX('Node', 'by_vector', 'vector', metric := 'cosine')")
        do("CHECKPOINT")
        self._prepare()

    def open(self) -> None:
        self._connect()
        self._prepare()

    def _connect(self) -> None:
        self._database = self._kuzu.Database(str(self._place), buffer_pool_size=MEMORY)
        self._connection = self._kuzu.Connection(self._database)
        self._connection.execute("LOAD vector")

    def _prepare(self) -> None:
        rule, prepare = self._rule, self._connection.prepare
        self._edges_asked = prepare(
            "MATCH (a:Node)-[e:Edge]->(b:Node) WHERE a.id IN $rows RETURN a.id, b.id, e.weight * e.confidence"
        )
        same = f"array_cosine_similarity(b.vector, CAST($q, 'FLOAT[{self._dim}]'))"
        self._cosines_asked = prepare(f"MATCH (b:Node) WHERE b.id IN $rows RETURN b.id, {same}")
        self._hop = (
            "LOAD FROM $firing MATCH (a:Node) WHERE a.id = row MATCH (a)-[e:Edge]->(:Node) "
            "WITH a, energy, sum(e.weight * e.confidence) AS fan "
            "MATCH (a)-[e:Edge]->(b:Node) "
            f"WITH b, sum(energy * e.weight * e.confidence * {rule.decay} / pow(fan, {rule.fan})) AS s "
            f"WHERE s > {rule.threshold} WITH b.id AS id, s * {same} / $best AS energy "
            f"WHERE energy > {rule.threshold} RETURN id, energy"
        )

    def close(self) -> None:
        self._connection.close()
        self._database.close()

    def turn_to(self, value: int) -> None:
        self._expansion = value

    def _nearest(self, query: Floats) -> tuple[Ints, Floats]:
        ids, distances = self._rows(
            f"CALL QUERY_VECTOR_INDEX('Node', 'by_vector', $q, {self._rule.seeds}, efs := {self._expansion}) "
            "RETURN node.id, distance ORDER BY distance",
            {"q": query.tolist()},
        )
        return ids, 1 - distances

    def _rows(self, asked: Any, parameters: dict[str, Any]) -> list[Any]:
        """The columns of an answer."""
        found = self._connection.execute(asked, parameters).get_as_arrow(1 << 20)
        return [column.to_numpy() for column in found.columns]

    def _edges_of(self, rows: Ints) -> tuple[Ints, Ints, Floats]:
        source, target, strength = self._rows(self._edges_asked, {"rows": rows.tolist()})
        return source, target, strength

    def _cosines_of(self, rows: Ints, query: Floats) -> tuple[Ints, Floats]:
        if not len(rows):
            return rows, np.empty(0, np.float32)
        ids, cosines = self._rows(self._cosines_asked, {"rows": rows.tolist(), "q": query.tolist()})
        return ids, cosines

    def _in_database(self, query: Floats, count: int) -> tuple[Ints, Any]:
        pyarrow = library("pyarrow", "pyarrow")
        rows, cosines = self._nearest(query)
        best = float(cosines[0])
        energies = np.exp((cosines - best) / self._rule.temperature)
        all_rows, all_energies = [rows], [energies]
        for _ in range(self._rule.hops):
            if not len(rows):
                break
            firing = pyarrow.table({"row": rows, "energy": energies})
            rows, energies = self._rows(self._hop, {"firing": firing, "best": best, "q": query.tolist()})
            all_rows.append(rows)
            all_energies.append(energies)
        active, place = np.unique(np.concatenate(all_rows), return_inverse=True)
        energy = np.bincount(place, np.concatenate(all_energies))
        order = np.argsort(-energy)[: count if count >= 0 else len(energy)]
        return active[order], energy[order]

    def learn(self, new: Lesson) -> None:
        pyarrow = library("pyarrow", "pyarrow")
        do = self._connection.execute
        columns = {name: getattr(new, name) for name in _EDGE}
        do("BEGIN TRANSACTION")
        part = _nodes(pyarrow, new.ids, new.vectors, new.relevance)
        do("LOAD FROM $part CREATE (:Node {id: id, vector: vector, relevance: relevance})", {"part": part})
        do(
            "LOAD FROM $part MATCH (a:Node) WHERE a.id = source MATCH (b:Node) WHERE b.id = target "
            "CREATE (a)-[:Edge {id: id, weight: weight, confidence: confidence}]->(b)",
            {"part": pyarrow.table({"id": new.edge_ids, **columns})},
        )
        do("COMMIT")

    def reinforce(self, ids: Ints, sources: Ints, rate: float) -> None:
        self._connection.execute(
            "MATCH (a:Node)-[e:Edge]->(:Node) WHERE a.id IN $sources AND e.id IN $ids "
            f"SET e.confidence = e.confidence + {rate} * (1 - e.confidence)",
            {"ids": ids.tolist(), "sources": sources.tolist()},
        )

    def consolidate(self) -> None:
        do = self._connection.execute
        do("BEGIN TRANSACTION")
        do(f"MATCH (a:Node) SET a.relevance = a.relevance * {DECAY}")
        # DETACH DELETE would leave some of the edges behind.
        do(f"MATCH (a:Node)-[e:Edge]->(b:Node) WHERE a.relevance < {LEAST} OR b.relevance < {LEAST} DELETE e")
        do(f"MATCH (a:Node) WHERE a.relevance < {LEAST} DELETE a")
        do("COMMIT")

    def counts(self) -> tuple[int, int]:
        (nodes,) = self._rows("MATCH (a:Node) RETURN count(*)", {})
        (edges,) = self._rows("MATCH (:Node)-[e:Edge]->(:Node) RETURN count(*)", {})
        return int(nodes[0]), int(edges[0])


# --- LanceDB ---------------------------------------------------------------------------------------------------------


class LanceDB(_Database):
    """Columns on files: vectors, what changes of nodes, and edges in tables of their own, with indexes on the keys.

    Its documentation advises a vector index from some hundred thousand rows on; below, all are compared.
    """

    packages: ClassVar[tuple[str, ...]] = ("lancedb", "pyarrow")
    durability: ClassVar[str] = "process crash: it leaves syncing to the system"
    ladder: ClassVar[tuple[int, ...]] = (10, 20, 40, 80, 160)
    ways: ClassVar[tuple[str, ...]] = (BY_HOPS,)

    _LARGE: Final = 100_000

    def __init__(self, folder: Path, rule: Rule, dim: int) -> None:
        super().__init__(folder, rule, dim)
        self._lancedb = library("lancedb", "lancedb")
        self._probes = 20

    def create(self, given: Given) -> None:
        pyarrow = library("pyarrow", "pyarrow")
        database = self._lancedb.connect(str(self._place))
        nodes = len(given["vectors"])
        ids = np.arange(nodes)
        self._vectors = database.create_table(
            "vectors", pyarrow.table({"id": ids, "vector": _vectors(pyarrow, given["vectors"])})
        )
        self._nodes = database.create_table(
            "nodes", pyarrow.table({"id": ids, "relevance": np.asarray(given["relevance"])})
        )
        columns = {"id": np.arange(len(given["source"])), **{name: np.asarray(given[name]) for name in _EDGE}}
        self._edges = database.create_table("edges", pyarrow.table(columns))
        self._vectors.create_scalar_index("id")
        self._edges.create_scalar_index("source")
        self._edges.create_scalar_index("id")
        if nodes >= self._LARGE:
            flat = library("lancedb.index", "lancedb").IvfFlat(distance_type="cosine")
            self._vectors.create_index("vector", config=flat)
        self._look()

    def open(self) -> None:
        database = self._lancedb.connect(str(self._place))
        self._vectors, self._nodes, self._edges = (database.open_table(name) for name in ("vectors", "nodes", "edges"))
        self._look()

    def _look(self) -> None:
        self._indexed = len(self._vectors.list_indices()) > 1
        self.search = "IVF_FLAT" if self._indexed else "exact scan"

    def close(self) -> None:
        """Nothing is held."""

    def turn_to(self, value: int) -> None:
        self._probes = value

    def _nearest(self, query: Floats) -> tuple[Ints, Floats]:
        asked = self._vectors.search(query).distance_type("cosine").select(["id", "_distance"]).limit(self._rule.seeds)
        if self._indexed:
            asked = asked.nprobes(self._probes)
        found = asked.to_arrow()
        return found["id"].to_numpy(), 1 - found["_distance"].to_numpy()

    def _edges_of(self, rows: Ints) -> tuple[Ints, Ints, Floats]:
        found = self._where(self._edges, "source", rows, list(_EDGE))
        strength = found["weight"].to_numpy() * found["confidence"].to_numpy()
        return found["source"].to_numpy(), found["target"].to_numpy(), strength

    def _cosines_of(self, rows: Ints, query: Floats) -> tuple[Ints, Floats]:
        found = self._where(self._vectors, "id", rows, ["id", "vector"])
        vectors = found["vector"].combine_chunks().flatten().to_numpy().reshape(-1, self._dim)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        return found["id"].to_numpy(), vectors @ query / lengths

    def _where(self, table: Any, key: str, rows: Ints, columns: list[str]) -> Any:
        """Columns of the rows whose key is among some."""
        asked = ",".join(map(str, rows.tolist())) or "NULL"
        return table.search().where(f"{key} IN ({asked})").select(columns).limit(table.count_rows()).to_arrow()

    def learn(self, new: Lesson) -> None:
        pyarrow = library("pyarrow", "pyarrow")
        self._vectors.add(pyarrow.table({"id": new.ids, "vector": _vectors(pyarrow, new.vectors)}))
        self._nodes.add(pyarrow.table({"id": new.ids, "relevance": new.relevance}))
        self._edges.add(pyarrow.table({"id": new.edge_ids, **{name: getattr(new, name) for name in _EDGE}}))

    def reinforce(self, ids: Ints, sources: Ints, rate: float) -> None:
        asked = ",".join(map(str, ids.tolist()))
        self._edges.update(
            where=f"id IN ({asked})",
            values_sql={"confidence": f"cast(confidence + {rate} * (1 - confidence) as float)"},
        )

    def consolidate(self) -> None:
        self._nodes.update(values_sql={"relevance": f"cast(relevance * {DECAY} as float)"})
        state = self._nodes.search().where(f"relevance < {LEAST}").select(["id"]).limit(self._nodes.count_rows())
        pruned = state.to_arrow()["id"].to_numpy()
        gone = ",".join(map(str, pruned.tolist())) or "NULL"
        self._edges.delete(f"source IN ({gone}) OR target IN ({gone})")
        self._vectors.delete(f"id IN ({gone})")
        self._nodes.delete(f"relevance < {LEAST}")
        for table in (self._edges, self._vectors, self._nodes):
            table.optimize()

    def counts(self) -> tuple[int, int]:
        return self._nodes.count_rows(), self._edges.count_rows()


DATABASES: Final[dict[str, Callable[[Path, Rule, int], Any]]] = {
    "kuzu": Kuzu,
    "lancedb": LanceDB,
    "sqlite-vec": SQLite,
    "duckdb": DuckDB,
}
