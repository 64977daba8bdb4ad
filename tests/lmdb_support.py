"""What the tests of the LMDB container share, and a process that opens stores that may be damaged.

`python lmdb_support.py`: one JSON line in for each store, one JSON line out for each damage done to it. A process of
its own, because what is looked for are signals and hangs.
"""

import faulthandler
import json
import random
import shutil
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np

from aesg.backends.blocks.container import Changes, Column
from aesg.backends.lmdb import DEFAULT_MAP_SIZE, promises
from aesg.backends.lmdb.container import LmdbContainer
from aesg.errors import AESGError

SECONDS = 60
BYTES = Column("nodes/bytes", np.dtype("u1"), None, 1 << 20, "node")
NUMBERS = Column("nodes/numbers", np.dtype("<i8"), None, 1 << 16, "node")
VECTORS = Column("nodes/vector", np.dtype("<f4"), 8, 1 << 16, "node")
LONG = Column("a/" + "long" * 100, np.dtype("u1"), None, 1 << 20, "node")
NEW = range(10_000, 10_008)
COLUMNS = {column.name: column for column in (BYTES, NUMBERS, VECTORS, LONG)}


def opened(directory, *, writing=True, sync=False, map_size=DEFAULT_MAP_SIZE):
    """A container."""
    return LmdbContainer(
        f"lmdb://{directory}", Path(directory), promises({"sync": sync}), writing=writing, map_size=map_size
    )


def put(container, blocks, drops=(), **head):
    """Commit blocks: (column, number) → array."""
    puts = {(column.name, number): array for (column, number), array in blocks.items()}
    container.commit(Changes(head, COLUMNS, {}, puts, [(column.name, number) for column, number in drops]))


def numbers_of(n, start):
    return np.arange(start, start + n, dtype="<i8")


def sealed(column, number, size):
    """A block of bytes that says whose it is, with a checksum: what comes back in its place is noticed."""
    body = f"{column.name} {number} ".encode().ljust(size - 4, b"x")[: size - 4]
    return np.frombuffer(zlib.crc32(body).to_bytes(4, "little") + body, np.uint8)


def sizes(column, number):
    """Sizes of sealed blocks: inside pages of the tree, just in pages of their own, several pages."""
    if column is LONG:
        return 5 + number % 60
    return [60, 700, 2100, 4080, 4081, 5000, 9000][number % 7]


def fill(directory, blocks, *, seed=0):
    """A store of sealed blocks, put, replaced and dropped in many commits."""
    rng = random.Random(seed)
    container = opened(directory)
    present = set()
    for step in range(12):
        chosen = {(rng.choice([BYTES, LONG]), rng.randrange(blocks)) for _ in range(blocks // 4 + 1)}
        drops = {key for key in present if rng.random() < 0.15} - chosen if step % 3 == 2 else set()
        put(container, {key: sealed(*key, sizes(*key)) for key in chosen}, sorted(drops, key=str), step=step)
        present = (present | chosen) - drops
    container.close()
    return sorted((column.name, number) for column, number in present)


def state(container, keys):
    """What a container holds: the head, and of each block whether it is whole."""
    found = {"head": container.head(), "wrong": []}
    for name, number in keys:
        column = COLUMNS[name]
        size = sizes(column, number)
        block = container.get(column, number, size)
        if block is None or block.shape != (size,):
            found["wrong"].append([name, number, "missing"])
        elif not np.array_equal(block, sealed(column, number, size)):
            found["wrong"].append([name, number, "garbled"])
    return found


def attempt(directory, keys, mode):
    """Open and read everything; in mode "a" commit to it as well, open it again and read everything again."""
    try:
        container = opened(directory, writing=mode == "a")
        try:
            found = state(container, keys)
            container.verify()
            container.stats()
            if mode == "a":
                new = {(BYTES, number): sealed(BYTES, number, sizes(BYTES, number)) for number in NEW}
                put(container, new, [(COLUMNS[name], number) for name, number in keys[::5]], **found["head"])
        finally:
            container.close()
        if mode == "a":
            container = opened(directory, writing=False)
            try:
                dropped = {tuple(key) for key in keys[::5]}
                left = [key for key in keys if tuple(key) not in dropped]
                again = state(container, [*left, *([BYTES.name, number] for number in NEW)])
                found["wrong"] = [place for place in found["wrong"] if (place[0], place[1]) not in dropped]
                found["kept"] = again == found
            finally:
                container.close()
        return found
    except AESGError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:
        return {"escaped": repr(error)}


def damaged(data, damage):
    """A copy of `data` with one thing done to it."""
    data = bytearray(data)
    if "flip" in damage:
        data[damage["flip"] // 8] ^= 1 << damage["flip"] % 8
    elif "cut" in damage:
        del data[damage["cut"] :]
    elif "blank" in damage:
        start, length = damage["blank"]
        data[start : start + length] = bytes(len(data[start : start + length]))
    elif "exchange" in damage:
        one, other, size = damage["exchange"]
        pages = bytes(data[one : one + size]), bytes(data[other : other + size])
        data[other : other + size], data[one : one + size] = pages
    return bytes(data)


def main():
    warnings.simplefilter("error")
    for line in sys.stdin:
        given = json.loads(line)
        directory, file = Path(given["directory"]), given["file"]
        pristine = {entry.name: entry.read_bytes() for entry in directory.iterdir()}
        for number, damage in enumerate(given["damages"]):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            shutil.rmtree(given["work"], ignore_errors=True)
            work = Path(given["work"])
            work.mkdir()
            for name, data in pristine.items():
                (work / name).write_bytes(damaged(data, damage) if name == file else data)
            result = attempt(work, given["keys"], given["mode"])
            print(json.dumps({"number": number, **result}), flush=True)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
