"""AESGMemory: the memory as a module of a PyTorch model."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from aesg.config import AESGConfig
from aesg.engine import structure
from aesg.engine.activation import Activation, Energies, activate
from aesg.engine.consolidation import Report, consolidate
from aesg.engine.novelty import NoveltyCounter, centroid_score, explanation_score
from aesg.engine.plasticity import credit, link_newborn
from aesg.errors import (
    FormatVersionError,
    InvalidInputError,
    InvalidVectorError,
    NotFoundError,
    SchemaMismatchError,
)
from aesg.memory.compat import CognitiveEngine, Logger, Storage
from aesg.memory.context import BatchContext, RetrievedContext
from aesg.memory.mirror import DeviceCache, Mirrors
from aesg.memory.mirror_recall import recall
from aesg.memory.session import Session, attach
from aesg.memory.state import Lanes, carried_on
from aesg.protocols import Graph, GraphStore
from aesg.records import Refs, Rows, Vectors

ArrayLike: TypeAlias = Tensor | npt.ArrayLike
Seeds: TypeAlias = tuple[ArrayLike, ArrayLike]
"""(rows [n], energies [n])."""

LEAST_SHARE = 1e-3
"""`attend` gives a concept without energy this share of the best one's, before similarity counts."""


class AESGMemory(nn.Module):
    """A persistent memory of concepts: ask it with vectors; in training mode it learns from what it is asked.

    `train()` learns: novel inputs that persist become concepts, what is used is strengthened. `eval()` only reads.
    Learning is committed by `save`, `update_topology`, `close` and the end of the interpreter, and at least every
    `config.commit_interval` seconds; a killed process loses no more than that.

    Several threads may call one memory; each has its own context. Several memories of one process may open the same
    place: they share it. Of several processes one writes and the others open it with `mode="r"`; forked ones read.
    `copy.deepcopy` shares the store; a pickle opens it again for reading. It has no parameters of its own.

    Args:
        directory: A path, or a store's URL such as `memmap:///path?durability=power_loss`.
        config: None takes the store's own (the defaults where it has none); else it is stored.
        device: Where the contexts of NumPy queries lie. A tensor's context lies on the tensor's device.
        backend: The backend's name, for a path that does not exist yet.
        mode: "a" reads and writes and creates what is not there; "r" reads.
        device_cache: True keeps a copy of the graph in the memory of each device from which it is asked, where large
            batches are answered in `eval()`; "half" searches it in float16. See docs/gpu.md.

    Raises:
        CapacityError: A device has too little memory for its copy; raised by the first query from there.
        SchemaMismatchError: The store's vectors have another length than `config.vector_dim`.
        LockedError: Another process writes to it.
        NotFoundError: mode="r" and there is nothing.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: AESGConfig | None = None,
        device: str | torch.device | None = None,
        backend: str | None = None,
        *,
        mode: Literal["a", "r"] = "a",
        device_cache: DeviceCache = False,
    ) -> None:
        super().__init__()
        dim = None if config is None else config.vector_dim
        self.directory = os.fspath(directory)
        self.device = torch.device("cpu" if device is None else device)
        self._mirrors = Mirrors(device_cache)
        self._handle = attach(directory, mode, backend, dim, AESGConfig().vector_dim)
        store = self._handle.session.store
        self._url, self._uuid = store.url, store.uuid
        try:
            self.config = self._agree_on_config(config)
        except BaseException:
            self._handle.close()
            raise
        self._lanes = Lanes()
        self._novelty = NoveltyCounter(self.config)

    def _agree_on_config(self, given: AESGConfig | None) -> AESGConfig:
        """The given configuration, else the store's, else the defaults; written down where it is new."""
        session = self._handle.session
        with session.reading() as graph:
            stored, dim, is_new = graph.attrs.get("config"), graph.vector_dim, not len(graph.nodes)
        if given is not None and given.vector_dim != dim:  # a shared session did not look
            raise SchemaMismatchError(
                f"{self._url} holds vectors of length {dim}, config.vector_dim is {given.vector_dim}"
            )
        config = given or AESGConfig(vector_dim=dim)
        if given is None and stored is not None:
            try:
                config = AESGConfig.from_dict({**_mapping(stored), "vector_dim": dim})
            except InvalidInputError as error:
                raise FormatVersionError(
                    f"{self._url}: its stored configuration is not one that this version knows; pass config=… ({error})"
                ) from error
        to_be_stored = config.to_dict()
        if stored != to_be_stored and (given is not None or is_new) and not session.read_only:
            with session.learning(config.commit_interval) as graph:
                graph.attrs["config"] = to_be_stored
            session.commit()
        return config

    # --- asking ------------------------------------------------------------------------------------------------------

    def forward(
        self, query: ArrayLike, *, extra_seeds: Seeds | list[Seeds | None] | None = None
    ) -> RetrievedContext | BatchContext:
        """See `retrieve`."""
        return self.retrieve(query, extra_seeds=extra_seeds)

    def retrieve(
        self, query: ArrayLike, *, extra_seeds: Seeds | list[Seeds | None] | None = None
    ) -> RetrievedContext | BatchContext:
        """Activate the memory with a query.

        Args:
            query: [D], or a batch [B, D] of which each row is a lane with its own context. A tensor of any floating
                dtype on any device, or a NumPy array. Gradients do not flow through it: see `attend`.
            extra_seeds: (rows, energies) that are activated besides what the query is near to, energies relative to
                the best seed's 1.0; for a batch a list of such, or None, per lane.

        Returns:
            A `RetrievedContext` for [D], a `BatchContext` for [B, D].

        Raises:
            InvalidVectorError: Wrong shape or dtype, NaN or infinity. Nothing was learned.
            InvalidInputError: Malformed extra seeds.
            NotFoundError: An extra seed's row does not exist.
        """
        if torch.compiler.is_compiling():  # a store is no business of a compiled graph
            return _uncompiled()(AESGMemory._retrieve, self, query, extra_seeds)  # type: ignore[no-any-return]
        return self._retrieve(query, extra_seeds)

    def _retrieve(
        self, query: ArrayLike, extra_seeds: Seeds | list[Seeds | None] | None
    ) -> RetrievedContext | BatchContext:
        asked = self._parse(query)
        extra = _parse_seeds(extra_seeds, len(asked.vectors), asked.single)
        batch = self._recall(asked, extra)
        return batch[0] if asked.single else batch

    def attend(self, query: Tensor, temperature: float | None = None) -> Tensor:
        """Read the memory out as one vector per query, through which gradients reach the query.

        Retrieves, then takes the mean of the retrieved concepts v_i weighted by
        softmax(cos(query, v_i) / temperature + log(energy_i / highest energy)): what spreading activation brought up
        says what may be read, the query how much of it. The energies are constants to the gradient.

        Args:
            query: Tensor [D] or [B, D].
            temperature: Small values pick the nearest concept, large ones average. `config.seed_temperature` when None.

        Returns:
            A tensor like the query; zeros (with zero gradients) where nothing was activated.
        """
        temperature = self.config.seed_temperature if temperature is None else temperature
        if not temperature > 0:
            raise InvalidInputError(f"attend: temperature must be above 0, not {temperature}")
        if torch.compiler.is_compiling():
            vectors, bias = _uncompiled()(AESGMemory._readable, self, query)
        else:
            vectors, bias = self._readable(query)
        wide = vectors.dtype
        lanes = (query if query.dim() == 2 else query[None]).to(wide)
        if not vectors.shape[1]:
            out = lanes * 0
        else:
            # Products and sums, not einsum, whose precision autocast would lower.
            cosines = (normalize(lanes, dim=-1)[:, None] * normalize(vectors, dim=-1)).sum(dim=-1)
            # A lane without concepts has only -inf, whose softmax is NaN: with zeros instead it reads zero vectors.
            empty = torch.isneginf(bias).all(dim=1, keepdim=True)
            shares = torch.softmax((cosines / temperature + bias).masked_fill(empty, 0.0), dim=1)
            out = (shares[..., None] * vectors).sum(dim=1)
        return (out if query.dim() == 2 else out[0]).to(query.dtype)

    def _readable(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """What `attend` reads: vectors [B, K, D] and log shares [B, K], -inf where there is no concept."""
        if not isinstance(query, Tensor) or not query.is_floating_point():
            raise InvalidVectorError(f"{self._url}: attend takes a floating-point tensor; retrieve takes arrays too")
        asked = self._parse(query)
        # In float32 at least: half precision cannot tell cosines apart that a softmax at temperature 0.05 does.
        wide = torch.promote_types(asked.dtype, torch.float32)
        batch = self._recall(Query(asked.vectors, asked.single, asked.device, wide), [None] * len(asked.vectors))
        vectors, mask = batch.to_padded()
        energies = batch.padded_weights()
        best = energies.amax(dim=1, keepdim=True) if energies.shape[1] else energies
        shares = (energies / best.clamp_min(torch.finfo(wide).tiny)).clamp_min(LEAST_SHARE)
        return vectors, shares.log().masked_fill(~mask, -math.inf)

    def _recall(self, asked: Query, extra: list[Energies | None]) -> BatchContext:
        """Retrieve for parsed arguments: learn when training, read otherwise."""
        session = self._handle.session
        if self.training and not session.read_only:
            with session.learning(self.config.commit_interval) as graph:
                return self._answer(graph, asked, extra, session, learns=True)
        with session.reading() as graph:
            mirror = self._mirrors.of(graph, session.store, self.config, asked.device)
            if mirror is None:
                return self._answer(graph, asked, extra, session, learns=False)
            _check_seeds(extra, mirror.count, self._url)
            lanes = self._lanes.resize(
                len(asked.vectors), era=session.era, moved=session.moved_since, forget=self._novelty.reset_lane
            )
            return recall(mirror, self.config, asked.vectors, extra, lanes, asked.dtype, self._url)

    def _answer(
        self, graph: Graph, asked: Query, extra: list[Energies | None], session: Session, *, learns: bool
    ) -> BatchContext:
        config, queries = self.config, asked.vectors
        _check_seeds(extra, len(graph.nodes), self._url)
        lanes = self._lanes.resize(
            len(queries), era=session.era, moved=session.moved_since, forget=self._novelty.reset_lane
        )
        carried = [lane.carried for lane in lanes]
        born: list[int | None] = [None] * len(queries)
        says_something = np.asarray(queries.any(axis=1))  # a zero vector is no experience

        if learns and config.birth_when_empty and not len(graph.nodes) and says_something.any():
            first = int(np.argmax(says_something))
            born[first] = int(structure.create_sensory(graph, queries[first : first + 1])[0])

        activations = activate(graph, config, queries, carried, extra)
        scores = [
            self._score(graph, query, activation, before)
            for query, activation, before in zip(queries, activations, carried, strict=True)
        ]
        if learns:
            due = self._novel(queries, scores, says_something)
            if due:
                rows = structure.create_sensory(graph, queries[due])
                link_newborn(graph, config, rows, [activations[i] for i in due])
                # Once more, so that the answer has the new concepts in it. (In 0.3.0 the second round started from what
                # the first had activated.)
                before = [
                    carried_on(activations[i], config.num_primary) if config.context_replaces_query else carried[i]
                    for i in due
                ]
                again = activate(graph, config, queries[due], before, [extra[i] for i in due])
                for i, row, activation in zip(due, rows.tolist(), again, strict=True):
                    born[i], activations[i] = row, activation
            credit(graph, config, activations, [lane.first for lane in lanes])

        for lane, activation in zip(lanes, activations, strict=True):
            lane.follow(activation, config.num_primary)
        return BatchContext(
            activations,
            scores,
            born,
            num_primary=config.num_primary,
            dim=self.vector_dim,
            device=asked.device,
            dtype=asked.dtype,
        )

    def _score(self, graph: Graph, query: Vectors, activation: Activation, before: Energies | None) -> float:
        if self.config.novelty_by_lane:  # 0.3.0 asked whether the query continues the lane's context
            return centroid_score(graph, query, np.empty(0, np.int64) if before is None else before.rows)
        return explanation_score(query, activation)

    def _novel(self, queries: Vectors, scores: list[float], says_something: npt.NDArray[np.bool_]) -> list[int]:
        """Lanes whose input is to become a concept now."""
        due: list[int] = []
        for i in np.flatnonzero(says_something).tolist():
            score = scores[i]
            if due and not self.config.novelty_by_lane:
                # As if the lanes had come one after the other: a concept just born explains the lanes that follow.
                new, query = queries[due], queries[i]
                cosines = new @ query / (np.linalg.norm(new, axis=1) * np.linalg.norm(query))
                score = max(score, float(cosines.max()))
            if self._novelty.observe(i, queries[i], score):
                due.append(i)
        return due

    def reset_state(self) -> None:
        """Forget the context of this thread's lanes, as between unrelated sequences. What was learned stays."""
        self._lanes.clear()
        self._novelty.reset()

    # --- learning from outside ---------------------------------------------------------------------------------------

    def add_concepts(self, vectors: ArrayLike, ids: ArrayLike | None = None) -> Rows:
        """Add concepts, in training mode or not.

        Args:
            vectors: [n, D]. A zero vector makes a concept that only links and extra seeds reach.
            ids: Unique integers from 0 to 2**64 - 1, [n]; random ones when None.

        Returns:
            Their rows, int64 [n].

        Raises:
            InvalidVectorError: Wrong shape, NaN or infinity. Nothing was added.
            DuplicateIdError: An id exists already. Nothing was added.
            ReadOnlyError: The memory was opened for reading.
        """
        with self._writing() as graph:
            # What somebody put there keeps its identity: restructuring leaves it alone.
            return structure.create_sensory(
                graph, _array(vectors), None if ids is None else _ids(ids), stability=structure.FIXED
            )

    def connect(
        self, source_rows: ArrayLike, target_rows: ArrayLike, weight: ArrayLike = 1.0, confidence: ArrayLike = 1.0
    ) -> Refs:
        """Add directed edges, in training mode or not.

        Args:
            source_rows: int [n].
            target_rows: int [n].
            weight: [n] or a number.
            confidence: [n] or a number. Energy flows in proportion to weight * confidence.

        Returns:
            Their refs, int64 [n].

        Raises:
            NotFoundError: A row does not exist. Nothing was added.
            InvalidInputError: Wrong shapes, NaN or infinity. Nothing was added.
            ReadOnlyError: The memory was opened for reading.
        """
        with self._writing() as graph:
            return graph.edges.append(_array(source_rows), _array(target_rows), _array(weight), _array(confidence))

    def update_topology(self) -> Report:
        """Consolidate: age, forget, prune; every `config.consolidation_epoch_interval` times restructure. Commits.

        Above `config.compact_above_dead_share` the store is compacted then: rows are given anew, and the report has the
        map. What this memory keeps in rows follows; so have to rows that the caller keeps, ids stay.
        """
        with self._writing() as graph:
            report = consolidate(graph, self.config)
        session = self._handle.session
        session.commit()
        if self.config.compact_above_dead_share > 0:
            return replace(report, row_map=session.compact(self.config.compact_above_dead_share))
        return report

    def _create_concept(self, vector: ArrayLike) -> int:
        """`add_concepts` for one vector [D], made cheap."""
        if type(vector) is Tensor and vector.dtype is torch.float32 and vector.device.type == "cpu":
            array = vector.detach().numpy()
        else:
            asked = self._parse(vector)
            array = asked.vectors[0] if asked.single else asked.vectors
        if array.shape != (self.config.vector_dim,):
            raise self._wrong_shape(array.shape)
        if not np.isfinite(array).all():
            raise InvalidVectorError(f"{self._url}: the vector holds NaN or infinity; nothing was learned")
        return self._handle.session.enqueue(array, self.config.commit_interval)

    def _create_abstract(self, rows: ArrayLike) -> int:
        with self._writing() as graph:
            return structure.create_abstract(graph, np.atleast_1d(_array(rows)))

    def _writing(self) -> AbstractContextManager[Graph]:
        return self._handle.session.learning(self.config.commit_interval)

    # --- the store ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Commit, and bring everything to where other processes and other readers of the format find it.

        A memory that only reads has nothing to save.
        """
        self._handle.session.save()

    def index_stats(self) -> dict[str, Any]:
        """Figures of the seed index: its kind and state, rows indexed and waiting, recall of its self-check, bytes."""
        return self._handle.session.index.stats()

    def refresh(self) -> bool:
        """For a memory that only reads: move to the newest commit, and forget the context if there was a newer one.

        Returns:
            Whether there was. False for the memory that writes, which sees all it learned.
        """
        return self._handle.session.refresh()

    def close(self) -> None:
        """Commit and let the store go; the last memory of the process to do so closes it. Closing twice is no error."""
        self._mirrors.forget()
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def graph(self) -> AbstractContextManager[Graph]:
        """`with memory.graph() as graph:` reads the graph itself, with what is not committed yet. Not for writing."""
        return self._handle.session.reading()

    @property
    def store(self) -> GraphStore:
        """The opened store, where only what was committed is seen: `save()` first."""
        return self._handle.session.store

    @property
    def vector_dim(self) -> int:
        """D."""
        return self.config.vector_dim

    @property
    def storage(self) -> Storage:
        """Figures and columns, as in 0.3.0."""
        return Storage(self)

    @property
    def logger(self) -> Logger:
        """The evolution log, as in 0.3.0."""
        return Logger(self)

    @property
    def cognitive_engine(self) -> CognitiveEngine:
        """Concepts made by hand, as in 0.3.0."""
        return CognitiveEngine(self)

    # --- torch's protocols -------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds of the memory: where it lies, not the graph."""
        return {"url": self._url, "uuid": self._uuid, "vector_dim": self.vector_dim}

    def set_extra_state(self, state: Any) -> None:
        """Check that a state was saved with this store: this object goes on with the store that it opened.

        A copy or a moved directory is the same store. With another one the weights may be used, so that is a warning;
        vectors of another length are an error.
        """
        saved = _mapping(state)
        if saved.get("vector_dim") != self.vector_dim:
            raise SchemaMismatchError(
                f"{self._url} holds vectors of length {self.vector_dim}; the state was saved with a memory of "
                f"vectors of length {saved.get('vector_dim')}, {saved.get('url')}"
            )
        if saved.get("uuid") != self._uuid:
            warnings.warn(
                f"the state was saved with the memory {saved.get('url')}, this one is {self._url}, which is another: "
                "a state_dict holds parameters and where the memory lies, not what is in it",
                stacklevel=2,
            )

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"{self._url}, vector_dim={self.vector_dim}{', closed' if self._handle.closed else ''}"

    # --- arguments ---------------------------------------------------------------------------------------------------

    def _parse(self, query: ArrayLike) -> Query:
        """A query as finite float32 [B, D], and where its answer belongs."""
        if isinstance(query, Tensor):
            kind: Any = query.dtype
            device = query.device
            dtype = query.dtype if query.is_floating_point() else torch.float32
            numbers = not query.is_complex() and query.dtype is not torch.bool
            here = query.detach()
            if here.dtype is not torch.float32 or here.device.type != "cpu":
                here = here.to("cpu", torch.float32) if numbers else torch.empty(0)
            array = here.numpy()
        else:
            try:
                given = np.asarray(query)
            except ValueError as error:  # rows of different lengths
                raise InvalidVectorError(f"{self._url}: the query is no array: {error}") from error
            kind, device = given.dtype, self.device
            numbers = given.dtype.kind in "fiu"
            with np.errstate(over="ignore"):
                array = given.astype(np.float32, copy=False) if numbers else np.empty(0)
            dtype = _TORCH_DTYPES.get(given.dtype.itemsize if given.dtype.kind == "f" else 0, torch.float32)
        if not numbers:
            raise InvalidVectorError(f"{self._url}: a query is made of floating-point numbers, not {kind}")
        single = array.ndim == 1
        vectors = array[None] if single else array
        if vectors.ndim != 2 or vectors.shape[1] != self.vector_dim:
            raise self._wrong_shape(array.shape)
        if not np.isfinite(vectors).all():
            raise InvalidVectorError(f"{self._url}: the query holds NaN or infinity (as float32); nothing was learned")
        return Query(np.ascontiguousarray(vectors), single, device, dtype)

    def _wrong_shape(self, shape: tuple[int, ...]) -> InvalidVectorError:
        dim = self.vector_dim
        return InvalidVectorError(
            f"{self._url}: this memory takes vectors of length {dim} (config.vector_dim): "
            f"[{dim}] or a batch [B, {dim}], not {list(shape)}"
        )


@dataclass(frozen=True, slots=True)
class Query:
    """A query taken apart.

    Attributes:
        vectors: float32 [B, D], finite.
        single: Whether it came as [D].
        device: Where its context's tensors belong.
        dtype: Their dtype.
    """

    vectors: Vectors
    single: bool
    device: torch.device
    dtype: torch.dtype


_TORCH_DTYPES = {2: torch.float16, 4: torch.float32, 8: torch.float64}
"""By item size of a NumPy floating dtype."""


def _array(given: ArrayLike) -> npt.NDArray[Any]:
    """A tensor or anything array-like as an array; floating dtypes that NumPy lacks as float32."""
    if not isinstance(given, Tensor):
        return np.asarray(given)
    there = given.detach().cpu()
    return there.to(torch.float32).numpy() if there.is_floating_point() else there.numpy()


def _ids(given: ArrayLike) -> npt.NDArray[Any]:
    """Ids as an array; a list of ints as uint64, since NumPy makes floats of it where some need the 64th bit."""
    if isinstance(given, Sequence) and all(isinstance(id, int) for id in given):
        try:
            return np.array(given, dtype=np.uint64)
        except OverflowError as error:
            raise InvalidInputError("ids are integers from 0 to 2**64 - 1") from error
    return _array(given)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInputError(f"expected a mapping, not {type(value).__name__}")
    return value


def _parse_seeds(given: Any, lanes: int, single: bool) -> list[Energies | None]:
    """Extra seeds per lane, checked except for which rows there are."""
    if given is None:
        return [None] * lanes
    per_lane = [given] if single else given
    if not single and (not isinstance(given, list) or len(given) != lanes):
        raise InvalidInputError(
            f"extra_seeds of a batch is a list of (rows, energies) or None for each of its {lanes} rows"
        )
    return [None if seeds is None else _energies(seeds) for seeds in per_lane]


def _energies(seeds: Any) -> Energies:
    if not isinstance(seeds, Sequence) or isinstance(seeds, str) or len(seeds) != 2:
        raise InvalidInputError("extra seeds are a pair: (rows, energies)")
    rows, energies = np.atleast_1d(_array(seeds[0])), np.atleast_1d(_array(seeds[1]))
    if rows.size == 0:
        rows = rows.astype(np.int64)
    if rows.dtype.kind not in "iu" or rows.ndim != 1:
        raise InvalidInputError(f"rows of extra seeds are integers [n], not {rows.dtype} {list(rows.shape)}")
    if energies.dtype.kind not in "fiu" or energies.shape not in (rows.shape, (1,)):
        raise InvalidInputError(f"energies of extra seeds are numbers {list(rows.shape)}, not {list(energies.shape)}")
    with np.errstate(over="ignore"):
        energies = np.broadcast_to(energies, rows.shape).astype(np.float32)
    if not np.isfinite(energies).all() or (energies < 0).any():
        raise InvalidInputError("energies of extra seeds are finite and not negative")
    return Energies(rows.astype(np.int64), energies)


def _check_seeds(extra: list[Energies | None], count: int, url: str) -> None:
    for seeds in extra:
        if seeds is not None and len(seeds.rows) and not 0 <= seeds.rows.min() <= seeds.rows.max() < count:
            bad = seeds.rows[(seeds.rows < 0) | (seeds.rows >= count)][0]
            raise NotFoundError(f"{url}: extra seeds: no row {bad}; there are {count}")


_disabled: Callable[..., Any] | None = None


def _uncompiled() -> Callable[..., Any]:
    """`_apply`, hidden from torch.compile. Made when it is first needed: this imports the whole compiler, 1.7 s."""
    global _disabled
    if _disabled is None:
        _disabled = torch.compiler.disable(_apply)  # type: ignore[no-untyped-call]
    return _disabled


def _apply(method: Callable[..., Any], *args: Any) -> Any:
    return method(*args)
