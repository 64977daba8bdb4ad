"""Stores, transactions and snapshots, but for where the data lie: that is what a backend fills in."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np

from aesg.backends.parts import Attrs, Edges, Events, Nodes
from aesg.backends.tables import Tables, WritableTables
from aesg.backends.url import StoreURL
from aesg.errors import (
    ClosedError,
    DuplicateIdError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    TransactionError,
    UnsupportedError,
)
from aesg.protocols import Capabilities, Progress, Violation
from aesg.records import Rows


class _GraphView(ABC):
    """A view together with the parts of a graph over it."""

    def __init__(self) -> None:
        self.nodes = Nodes(self)
        self.edges = Edges(self)
        self.events = Events(self)
        self.attrs = Attrs(self)

    @property
    @abstractmethod
    def url(self) -> str: ...

    @property
    def vector_dim(self) -> int:
        with self.reading() as tables:
            return tables.vector_dim

    @abstractmethod
    def reading(self) -> AbstractContextManager[Tables]: ...

    @abstractmethod
    def writing(self, *, in_steps: bool = False) -> AbstractContextManager[WritableTables]: ...


class StoreTransaction(_GraphView):
    """`Transaction` of a `Store`."""

    def __init__(self, store: Store, tables: WritableTables) -> None:
        self._store = store
        self._tables: WritableTables | None = tables
        self._spoiled = False
        super().__init__()

    @property
    def url(self) -> str:
        return self._store.url

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        with self._store._lock:
            yield self._open_tables()

    @contextmanager
    def writing(self, *, in_steps: bool = False) -> Iterator[WritableTables]:
        with self._store._lock:
            tables = self._open_tables()
            try:
                yield tables
            except BaseException as error:
                found_first = isinstance(error, (InvalidInputError, DuplicateIdError, NotFoundError))
                if in_steps or not found_first:
                    # Half of a call may be in the working state: the only honest state left is the last commit.
                    self._spoiled = True
                    self.rollback()
                raise

    def commit(self) -> None:
        with self._store._lock:
            tables = self._open_tables()
            try:
                self._store._commit(tables)
            except BaseException:
                self._end(rolled_back=True)
                raise
            self._end(rolled_back=False)

    def rollback(self) -> None:
        with self._store._lock:
            if self._tables is not None:
                self._end(rolled_back=True)

    def abandon(self) -> None:
        """In a forked child: the transaction is the parent's; here it has ended."""
        self._tables = None

    def _end(self, *, rolled_back: bool) -> None:
        tables, self._tables = self._tables, None
        assert tables is not None
        try:
            if rolled_back:
                self._store._rollback(tables)
        finally:
            self._store._transaction_ended(self)

    def _open_tables(self) -> WritableTables:
        if self._tables is None:
            raise TransactionError(f"{self.url}: this transaction has ended; begin a new one")
        self._store._check_usable()
        return self._tables

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.rollback()
        elif self._tables is not None:
            self.commit()
        elif self._spoiled:
            raise TransactionError(f"{self.url}: the transaction was rolled back when one of its writes failed")


class StoreSnapshot(_GraphView):
    """`Snapshot` of a `Store`: tables that nobody changes."""

    def __init__(self, store: Store, tables: Tables) -> None:
        self._store = store
        self._tables: Tables | None = tables
        super().__init__()

    @property
    def url(self) -> str:
        return self._store.url

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        with self._store._lock:
            self._store._check_usable()
            if self._tables is None:
                raise ClosedError(f"{self.url}: this snapshot was closed")
            yield self._tables

    def writing(self, *, in_steps: bool = False) -> AbstractContextManager[WritableTables]:
        raise ReadOnlyError(f"{self.url}: a snapshot cannot be written to")

    def close(self) -> None:
        with self._store._lock:
            tables, self._tables = self._tables, None
            if tables is not None:
                self._store._release_snapshot(tables)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Store(_GraphView):
    """`GraphStore` for a backend to fill in.

    `_lock` guards every access to the tables; `_writer` is held for as long as a transaction is open, by whichever
    thread works on it.
    """

    def __init__(self, url: str, *, read_only: bool) -> None:
        self._url = url
        self._read_only = read_only
        self._closed = False
        self._lock = threading.RLock()
        self._writer = threading.Lock()
        self._writer_thread: int | None = None
        self._open_transaction: StoreTransaction | None = None
        super().__init__()

    # What a backend fills in.

    @abstractmethod
    def _committed(self) -> Tables:
        """The tables of the last commit."""

    @abstractmethod
    def _begin(self) -> WritableTables:
        """A working state on top of the last commit."""

    @abstractmethod
    def _commit(self, tables: WritableTables) -> None:
        """Make a working state the last commit, durably and at once; when it raises, nothing was applied."""

    @abstractmethod
    def _rollback(self, tables: WritableTables) -> None:
        """Forget a working state."""

    @abstractmethod
    def _flush(self) -> None:
        """See `GraphStore.flush`; no transaction is open."""

    @abstractmethod
    def _compact(self, min_confidence: float) -> Rows:
        """See `GraphStore.compact`; no transaction is open. `min_confidence` is -inf where none was given."""

    @abstractmethod
    def _close(self) -> None:
        """Release everything; no transaction is open."""

    @property
    @abstractmethod
    def generation(self) -> int: ...

    @property
    @abstractmethod
    def uuid(self) -> str: ...

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    def verify(self, *, deep: bool = True, progress: Progress | None = None) -> list[Violation]: ...

    @abstractmethod
    def stats(self) -> dict[str, Any]: ...

    def _take_snapshot(self) -> Tables:
        raise UnsupportedError(f"{self.url}: this backend has no snapshots (capabilities.snapshots is false)")

    def _release_snapshot(self, tables: Tables) -> None:
        return None

    def _refresh(self) -> bool:
        return False

    # What is the same for all.

    @property
    def url(self) -> str:
        return self._url

    def carry(self, options: Mapping[str, str]) -> None:
        """Have the URL show options that are not the backend's own."""
        url = StoreURL.parse(self._url)
        self._url = str(replace(url, options={**url.options, **options}))

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        with self._lock:
            self._check_usable()
            yield self._committed()

    @contextmanager
    def writing(self, *, in_steps: bool = False) -> Iterator[WritableTables]:
        with self.transaction() as transaction, transaction.writing(in_steps=in_steps) as tables:
            yield tables

    def transaction(self) -> StoreTransaction:
        self._check_writable()
        if self._writer_thread == threading.get_ident():
            raise TransactionError(f"{self.url}: this thread has a transaction open: write through it, or end it first")
        self._writer.acquire()
        try:
            with self._lock:
                self._check_writable()
                self._open_transaction = StoreTransaction(self, self._begin())
                self._writer_thread = threading.get_ident()
                return self._open_transaction
        except BaseException:
            self._writer.release()
            raise

    def _transaction_ended(self, transaction: StoreTransaction) -> None:
        if self._open_transaction is transaction:
            self._open_transaction = None
            self._writer_thread = None
            self._writer.release()

    def snapshot(self) -> StoreSnapshot:
        with self._lock:
            self._check_usable()
            return StoreSnapshot(self, self._take_snapshot())

    def refresh(self) -> bool:
        with self._lock:
            self._check_usable()
            return self._refresh()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """For maintenance: waits for an open transaction, admits no other."""
        self._check_writable()
        if self._writer_thread == threading.get_ident():
            raise TransactionError(f"{self.url}: end the open transaction first")
        with self._writer, self._lock:
            self._check_writable()
            yield

    def flush(self) -> None:
        if self._read_only:
            self._check_usable()
            return
        with self._alone():
            self._flush()

    def compact(self, *, min_confidence: float | None = None) -> Rows:
        try:
            with np.errstate(over="ignore"):
                least = float(np.float32(-np.inf if min_confidence is None else min_confidence))
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"{self.url}: min_confidence is a number, not {min_confidence!r}") from error
        if min_confidence is not None and not np.isfinite(least):
            raise InvalidInputError(f"{self.url}: min_confidence must be finite (float32), not {min_confidence!r}")
        with self._alone():
            return self._compact(least)

    def forget_history(self) -> None:
        """Remove what earlier commits hold that the newest does not, where a backend keeps that."""
        with self._alone():
            return

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            if self._open_transaction is not None:
                self._open_transaction.rollback()
            try:
                self._close()
            finally:
                self._closed = True

    def _check_usable(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.url}: the store was closed; open it again")

    def _check_writable(self) -> None:
        self._check_usable()
        if self._read_only:
            raise ReadOnlyError(f"{self.url}: opened for reading; open it with mode='a' to write")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.url,)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A store is a thing outside the program, like a file: copies of what refers to it refer to the same one.
        return self

    def __repr__(self) -> str:
        state = "closed" if self._closed else ("read-only" if self._read_only else "open")
        return f"<{type(self).__name__} {self.url} {state}>"


def _reopen(url: str) -> Any:
    from aesg.backends import registry  # it imports nothing from here, but a store need not import it

    return registry.open(url, mode="r")
