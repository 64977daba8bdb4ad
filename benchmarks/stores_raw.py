"""What the library under a backend takes for the same: the store's own transactions, put again by the bare library.

It bounds what the store can reach as long as it is built on that library: what the rest costs is the store's own.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import stores_limits as limits
from stores_turns import clock

from aesg.protocols import Durability, GraphStore

LIBRARIES: Final = {"lmdb": "LMDB"}
"""Scheme → name of the library, where there is one that does the same."""
_POINTER: Final = bytes(8)
"""What LMDB keeps in the tree of a block that lies in pages of its own."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """What a commit of a store had its library do; of values the sizes.

    Attributes:
        deletes: Keys.
        puts: Keys and sizes, in their order.
    """

    deletes: list[bytes]
    puts: list[tuple[bytes, int]]


@contextmanager
def recorded(scheme: str, store: GraphStore) -> Iterator[deque[Transaction]]:
    """The transactions of a store meanwhile; none of a store whose library cannot be held against it."""
    found: deque[Transaction] = deque()
    if scheme not in LIBRARIES:
        yield found
        return
    from aesg.backends.lmdb.container import block_key
    from aesg.backends.lmdb.pages import HEAD_KEY, head_record

    container: Any = getattr(store, "container")  # noqa: B009 - only stores over blocks have one
    commit: Callable[[Any], None] = container.commit

    def record(changes: Any) -> None:
        commit(changes)
        puts = sorted((block_key(*key), block.nbytes) for key, block in changes.puts.items())
        head = (HEAD_KEY, len(head_record(0, changes.head_as_json())))
        found.append(Transaction([block_key(*key) for key in changes.drops], [*puts, head]))

    container.commit = record
    try:
        yield found
    finally:
        del container.commit


def keys(scheme: str, place: str) -> list[bytes]:
    """Keys of a store that is closed."""
    if scheme not in LIBRARIES:
        return []
    import lmdb

    with lmdb.open(place, readonly=True, lock=False, create=False) as environment, environment.begin() as txn:
        return [bytes(key) for key in txn.cursor().iternext(values=False)]


class RawLMDB:
    """LMDB by itself.

    Args:
        folder: A new one.
        durability: As durable as the store.
        keys: Of what lies there from the beginning, so that the tree is as deep.
    """

    def __init__(self, folder: Path, durability: Durability, keys: list[bytes]) -> None:
        import lmdb

        self._noise = limits.noise(1 << 26)
        self._at = 0
        sync = durability is Durability.POWER_LOSS
        self._environment = lmdb.open(str(folder), map_size=1 << 40, sync=sync, max_dbs=0, max_spare_txns=0)
        with self._environment.begin(write=True) as txn:
            for key in keys:
                txn.put(key, _POINTER)
        self._environment.sync(True)

    def put(self, transaction: Transaction) -> None:
        """Do what the store had done."""
        noise, at = self._noise, self._at
        with self._environment.begin(write=True) as txn:
            for key in transaction.deletes:
                txn.delete(key)
            for key, size in transaction.puts:
                if at + size > len(noise):
                    at = 0
                txn.put(key, noise[at : at + size])
                at += size
        self._at = at

    def put_all(self, transactions: Iterable[Transaction]) -> None:
        """One after another."""
        for transaction in transactions:
            self.put(transaction)

    def close(self) -> None:
        """Let go."""
        self._environment.close()


@contextmanager
def beside(
    scheme: str, store: GraphStore, folder: str, keys: list[bytes], transactions: deque[Transaction]
) -> Iterator[Callable[[int], float] | None]:
    """A side that takes turns with a store and does what it has done; None where nothing of it is recorded.

    Args:
        scheme: Of the store.
        store: It.
        folder: For the library's files.
        keys: What the store held before.
        transactions: What is recorded of it: one more than what was done here, so that this side can go first.
    """
    if scheme not in LIBRARIES:
        yield None
        return
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        library = RawLMDB(Path(fresh), store.capabilities.durability, keys)

        def replay(turn: int) -> float:
            transaction = transactions.popleft()
            return clock(lambda: library.put(transaction))

        yield replay
        library.close()
