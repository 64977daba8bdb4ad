"""LMDB's file as pages: a reader of our own, for checking a file before LMDB trusts it.

LMDB follows page numbers and offsets wherever they point: a flipped bit in them ends in a signal, or in another's data.
Here nothing is followed that was not checked before. Only the format of LMDB 0.9 is read ("data version" 1), and only
what a store uses of it: one unnamed database without duplicates, and the database of free pages.

A file is pages of one size, numbered from 0. Integers are in the machine's byte order.

page    number u64, pad u16, flags u16, then lower u16 and upper u16, or the number of pages u32 of an overflow run
meta    pages 0 and 1; commit n writes page n & 1: magic u32, version u32, address u64, map size u64, the record of the
        free pages' tree, that of the main tree, last page u64, commit u64
tree    pad u32 (of the first: page size), flags u16, depth u16, branch, leaf and overflow pages u64, entries u64, root
branch, leaf
        offsets u16 of the nodes, in the order of their keys, up to `lower`; the nodes, packed, from `upper` on
node    low u16, high u16, flags u16, size of the key u16, key, data. In a leaf low and high are the size of the data;
        the flag "big" says that the data is the number of an overflow page. In a branch low, high and flags are the
        number of the child
free    key: the commit that freed them, u64; data: how many pages u64, their numbers u64, descending
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from aesg.backends.files import os_errors, read_exactly
from aesg.errors import AESGError, CorruptionError, FormatVersionError
from aesg.records import distinct, ranges

HEADER: Final = 16
"""Bytes before a page's content; the data of an overflow run begins there."""
HEAD_KEY: Final = b"\0"
"""Key of the head: before those of all blocks."""

_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_NEW_HEADER: Final = 24
"""Bytes before a page's content in LMDB 1.0, which writes another format."""
_PAGE: Final = struct.Struct("=QHHHH")
_META: Final = struct.Struct("=IIQQ IHHQQQQQ IHHQQQQQ QQ")
_HEAD: Final = struct.Struct("<QI")
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
_BIG: Final = 1
_INTEGER_KEYS: Final = 8
_NONE: Final = (1 << 64) - 1
_MAX_DEPTH: Final = 32
_MAX_KEY: Final = 511
_TRIES: Final = 50
_FREE: Final = "tree of free pages"
_MAIN: Final = "main tree"

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tree:
    """The record of a B-tree."""

    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


@dataclass(frozen=True, slots=True)
class Meta:
    """A meta page."""

    free: Tree
    main: Tree
    last_page: int
    commit: int

    @property
    def page_bytes(self) -> int:
        """Size of a page."""
        return self.free.pad


# --- heads -----------------------------------------------------------------------------------------------------------


def head_record(commit: int, head: bytes) -> bytes:
    """The head as it is put: the commit that puts it, a checksum of both, the head."""
    return _HEAD.pack(commit, zlib.crc32(head, commit & 0xFFFFFFFF)) + head


def checked_head(record: bytes, commit: int, path: Path) -> bytes:
    """The head in a record that was found in the tree of a commit.

    A compacting copy begins to count at 1, whatever the commit was that it is a copy of.

    Raises:
        CorruptionError: It is not what was put, or another commit put it.
    """
    if len(record) < _HEAD.size:
        raise CorruptionError(f"{path}: there is no head in commit {commit}; expected one in every commit")
    said, crc = _HEAD.unpack_from(record)
    head = record[_HEAD.size :]
    if zlib.crc32(head, said & 0xFFFFFFFF) != crc:
        raise CorruptionError(f"{path}: the head is garbled: its checksum is not the one it was written with")
    if said != commit and not commit == 1 < said:
        raise CorruptionError(
            f"{path}: the head was written by commit {said}, but lies in the tree of commit {commit}: an older root or "
            f"meta page came back"
        )
    return head


# --- meta pages ------------------------------------------------------------------------------------------------------


def read_metas(path: Path) -> tuple[Meta, Meta]:
    """Both meta pages, the newer one first.

    Raises:
        CorruptionError: They are not what LMDB writes, or the file is shorter than they say.
        FormatVersionError: Another version of LMDB's format.
    """
    with os_errors("reading", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            raw = _read_raw(fd)
            for _ in range(_TRIES):
                try:
                    return _parsed(raw, os.fstat(fd).st_size, path)
                except CorruptionError:
                    # A writer may have been about to write one: then it is another one now.
                    time.sleep(0.001)
                    before, raw = raw, _read_raw(fd)
                    if raw == before:
                        raise
            return _parsed(raw, os.fstat(fd).st_size, path)
        finally:
            os.close(fd)


def _read_raw(fd: int) -> tuple[bytes, bytes]:
    first = read_exactly(fd, _PAGE.size + _META.size, 0)
    page_bytes = _META.unpack_from(first, _PAGE.size)[4] if len(first) == _PAGE.size + _META.size else 0
    return first, read_exactly(fd, _PAGE.size + _META.size, page_bytes)


def _parsed(raw: tuple[bytes, bytes], size: int, path: Path) -> tuple[Meta, Meta]:
    metas = [_parsed_meta(data, number, path) for number, data in enumerate(raw)]
    first, second = metas
    page_bytes = first.page_bytes
    if page_bytes != second.page_bytes or not 512 <= page_bytes <= 32768 or page_bytes & (page_bytes - 1):
        raise CorruptionError(
            f"{path}: pages of {page_bytes} and of {second.page_bytes} bytes; expected a power of two, twice the same"
        )
    fresh = first.commit == second.commit == 0
    if not fresh and (abs(first.commit - second.commit) != 1 or first.commit & 1):
        raise CorruptionError(
            f"{path}: the meta pages are of commits {first.commit} and {second.commit}; expected two that follow each "
            f"other, the even one in page 0"
        )
    newer, older = (second, first) if second.commit > first.commit else (first, second)
    if not 1 <= older.last_page <= newer.last_page:
        raise CorruptionError(
            f"{path}: {newer.last_page + 1} pages in commit {newer.commit}, {older.last_page + 1} in the one before; "
            f"expected never fewer"
        )
    if (newer.last_page + 1) * page_bytes > size:
        raise CorruptionError(
            f"{path}: {size} bytes, expected at least {(newer.last_page + 1) * page_bytes}: it was truncated"
        )
    return newer, older


def _parsed_meta(data: bytes, number: int, path: Path) -> Meta:
    if len(data) < _PAGE.size + _META.size:
        raise CorruptionError(f"{path}: meta page {number} is missing: the file was truncated, or is none of LMDB's")
    page, _, flags, _, _ = _PAGE.unpack_from(data)
    magic, version, _, _, *rest = _META.unpack_from(data, _PAGE.size)
    if int.from_bytes(data[_NEW_HEADER : _NEW_HEADER + 4], sys.byteorder) == _MAGIC != magic:
        raise FormatVersionError(f"{path}: the file format of LMDB 1.0; expected that of LMDB 0.9")
    if page != number or flags != _META_PAGE or magic != _MAGIC:
        raise CorruptionError(f"{path}: page {number} is no meta page of LMDB's")
    meta = Meta(Tree(*rest[:8]), Tree(*rest[8:16]), *rest[16:])
    problem = ""
    if version != _VERSION:
        problem = f"version {version}"
    elif meta.free.flags != _INTEGER_KEYS or meta.main.flags or meta.main.pad:
        problem = f"databases with the flags {meta.free.flags} and {meta.main.flags}"
    for tree in (meta.free, meta.main):
        empty = tree.root == _NONE
        if empty and (tree.depth or tree.entries or tree.leaf_pages or tree.branch_pages or tree.overflow_pages):
            problem = "a tree without a root that is not empty"
        elif not empty and not (1 <= tree.depth <= _MAX_DEPTH and tree.entries and tree.leaf_pages):
            problem = "a tree with a root that is empty"
    if problem:
        raise CorruptionError(f"{path}: meta page {number} tells of {problem}; expected what this store writes")
    return meta


# --- trees -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Leaves:
    """The entries of a tree in the order of their keys.

    Attributes:
        keys: One each.
        starts: Where in the file each one's data begins, int64 [n].
        sizes: Bytes of it, int64 [n].
        pages: Every page of the tree, overflow runs included.
    """

    keys: list[bytes]
    starts: _Ints
    sizes: _Ints
    pages: _Ints


class _Pages:
    """The pages of a file up to the last one of a commit."""

    def __init__(self, path: Path, meta: Meta) -> None:
        self.path = path
        self.meta = meta
        self.size = meta.page_bytes
        self.last = meta.last_page
        with os_errors("reading", path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                length = (meta.last_page + 1) * meta.page_bytes
                if os.fstat(fd).st_size < length:
                    raise CorruptionError(f"{path}: truncated; expected at least {length} bytes")
                self.bytes = mmap.mmap(fd, length, access=mmap.ACCESS_READ)
            finally:
                os.close(fd)
        self._u1 = np.frombuffer(self.bytes, np.uint8)
        self._u2 = self._u1.view(np.uint16)
        # By page: number in the first, overflow pages in the second, flags, lower and upper in the third.
        self._numbers = self._u1.view(np.uint64)[:: self.size // 8]
        self._runs = self._u1.view(np.uint32)[3 :: self.size // 4]
        self._flags, self._lower, self._upper = (self._u2[i :: self.size // 2] for i in (5, 6, 7))

    def fail(self, page: int, what: str) -> NoReturn:
        raise CorruptionError(f"{self.path}: page {page}: {what}")

    def require(self, good: npt.NDArray[np.bool_], page: npt.NDArray[Any], what: str) -> None:
        """All good, or an error that names the first page that is not."""
        if not good.all():
            self.fail(int(page[int(np.argmin(good))]), what)

    def entries(self, tree: Tree, what: str) -> _Leaves:
        """Walk a tree, level by level, and check all of it."""
        if tree.root == _NONE:
            none = np.empty(0, np.int64)
            return _Leaves([], none, none, none)
        level = np.array([min(tree.root, self.last + 1)], np.int64)
        used, branch_pages = [], 0
        separators: list[tuple[_Ints, list[bytes], _Ints]] = []  # nodes with a key, their keys, each page's first node
        for _ in range(tree.depth - 1):
            used.append(level)
            branch_pages += len(level)
            page, slot, at, sizes, first = self._nodes(level, _BRANCH, what)
            keyed = np.flatnonzero(slot > 0)
            self.require(sizes[keyed] > 0, page[keyed], f"a branch of the {what} without a key")
            separators.append((keyed, self._slices(at[keyed] + 8, sizes[keyed]), first))
            self._check_packed(page, at, 8 + sizes, what)
            level = self._children(at)
        used.append(level)
        page, _, at, key_sizes, first = self._nodes(level, _LEAF, what)
        self.require(key_sizes > 0, page, f"an entry of the {what} without a key")
        sizes, starts, runs = self._data(page, at, key_sizes, what)
        used.append(runs)
        keys = self._slices(at + 8, key_sizes)
        self._check_order(keys, page, separators, first, what)
        counted = (len(keys), branch_pages, len(level), len(runs))
        said = (tree.entries, tree.branch_pages, tree.leaf_pages, tree.overflow_pages)
        if counted != said:
            self.fail(
                tree.root,
                f"the {what} has {counted} entries, branch, leaf and overflow pages; its record says {said}",
            )
        return _Leaves(keys, starts, sizes, np.concatenate(used))

    def _nodes(self, level: _Ints, kind: int, what: str) -> tuple[_Ints, _Ints, _Ints, _Ints, _Ints]:
        """The nodes of pages: page, slot, place and size of the key, [nodes] each; and each page's first one."""
        self.require((level >= 2) & (level <= self.last), level, f"outside the file, but part of the {what}")
        ordered = np.sort(level)
        self.require(ordered[1:] != ordered[:-1], ordered[1:], f"twice in the {what}")
        self.require(self._numbers[level] == level.astype(np.uint64), level, "says that it is another page")
        kinds = "branch" if kind == _BRANCH else "leaf"
        self.require(self._flags[level] == kind, level, f"expected a {kinds} of the {what}")
        lower, upper = self._lower[level].astype(np.int64), self._upper[level].astype(np.int64)
        good = (lower > HEADER) & (lower <= upper) & (upper <= self.size) & ((lower | upper) & 1 == 0)
        self.require(good, level, "the room for its nodes is not within the page")
        counts = (lower - HEADER) // 2
        slot = ranges(np.zeros(len(level), np.int64), counts)
        page = np.repeat(level, counts)
        offset = self._u2[page * (self.size // 2) + HEADER // 2 + slot].astype(np.int64)
        good = (offset >= np.repeat(upper, counts)) & (offset <= self.size - 8) & (offset & 1 == 0)
        self.require(good, page, "a node lies outside its room")
        at = page * self.size + offset
        sizes = self._u2[at // 2 + 3].astype(np.int64)
        self.require((sizes <= _MAX_KEY) & (offset + 8 + sizes <= self.size), page, "a key is longer than its page")
        return page, slot, at, sizes, np.cumsum(counts) - counts

    def _children(self, at: _Ints) -> _Ints:
        low, high, highest = (self._u2[at // 2 + i].astype(np.int64) for i in (0, 1, 2))
        return low | high << 16 | highest << 32

    def _data(self, page: _Ints, at: _Ints, key_sizes: _Ints, what: str) -> tuple[_Ints, _Ints, _Ints]:
        """Size and place of the data of leaf nodes, and all pages of the overflow runs."""
        sizes = self._u2[at // 2].astype(np.int64) | self._u2[at // 2 + 1].astype(np.int64) << 16
        flags = self._u2[at // 2 + 2]
        self.require(flags <= _BIG, page, f"an entry of the {what} of an unknown kind")
        big = flags == _BIG
        inside = np.where(big, 8, sizes)
        starts = at + 8 + key_sizes
        self.require(starts + inside <= (page + 1) * self.size, page, "an entry is longer than its page")
        self._check_packed(page, at, 8 + key_sizes + inside, what)
        if not big.any():
            return sizes, starts, np.empty(0, np.int64)
        pointers = self._u1[starts[big][:, None] + np.arange(8)].view(np.uint64)[:, 0]
        owner = page[big]
        self.require(pointers <= self.last, owner, "points to data outside the file")
        run = pointers.astype(np.int64)
        self.require(run >= 2, owner, "points to data in a meta page")
        self.require(self._numbers[run] == pointers, run, "says that it is another page")
        self.require(self._flags[run] == _OVERFLOW, run, f"expected data of the {what}")
        counts = self._runs[run].astype(np.int64)
        needed = (sizes[big] + HEADER - 1) // self.size + 1
        self.require((counts >= needed) & (run + counts <= self.last + 1), run, "its data has not the size it should")
        starts[big] = run * self.size + HEADER
        return sizes, starts, ranges(run, counts)

    def _check_packed(self, page: _Ints, at: _Ints, sizes: _Ints, what: str) -> None:
        """The nodes of a page fill it from `upper` to its end, without holes or overlaps."""
        order = np.argsort(at, kind="stable")
        owner, start = page[order], at[order]
        end = start + sizes[order] + (sizes[order] & 1)
        new = np.ones(len(owner), bool)
        new[1:] = owner[1:] != owner[:-1]
        begins = owner * self.size + self._upper[owner]
        expected = np.where(new, begins, np.concatenate([[0], end[:-1]]))
        self.require(start == expected, owner, f"nodes of the {what} overlap, or leave a gap")
        last = np.append(new[1:], True)
        self.require(~last | (end == (owner + 1) * self.size), owner, f"nodes of the {what} do not fill their room")

    def _slices(self, starts: _Ints, sizes: _Ints) -> list[bytes]:
        data = self.bytes
        return [data[start:end] for start, end in zip(starts.tolist(), (starts + sizes).tolist(), strict=True)]

    def _check_order(
        self,
        keys: list[bytes],
        page: _Ints,
        separators: list[tuple[_Ints, list[bytes], _Ints]],
        first: _Ints,
        what: str,
    ) -> None:
        """Keys ascend, and each branch leads to where they are."""
        if what == _FREE:
            if any(len(key) != 8 for key in keys):
                self.fail(int(page[0]), "a list of free pages whose key is no commit")
            keys = [_number(key).to_bytes(8, "big") for key in keys]
        for at, (one, other) in enumerate(pairwise(keys)):
            if one >= other:
                self.fail(int(page[at]), f"the keys of the {what} are out of order")
        for keyed, names, firsts in reversed(separators):
            # `first` says of each child which entry is the first below it.
            for node, name in zip(keyed.tolist(), names, strict=True):
                if what == _FREE:
                    name = _number(name).to_bytes(8, "big") if len(name) == 8 else b""
                at = int(first[node])
                if not keys[at - 1] < name <= keys[at]:
                    self.fail(int(page[at]), f"the branch that leads here in the {what} has another key")
            first = first[firsts]

    def free(self, leaves: _Leaves) -> _Ints:
        """The free pages."""
        found = [np.empty(0, np.int64)]
        for key, start, size in zip(leaves.keys, leaves.starts.tolist(), leaves.sizes.tolist(), strict=True):
            page = start // self.size
            commit = _number(key)
            if not 1 <= commit <= self.meta.commit:
                self.fail(page, f"pages that commit {commit} freed; expected 1 to {self.meta.commit}")
            if size < 8 or size % 8:
                self.fail(page, f"a list of free pages of {size} bytes")
            numbers = np.frombuffer(self.bytes, np.uint64, size // 8, start)
            count = int(numbers[0])
            if count > len(numbers) - 1:
                self.fail(page, f"a list of {count} free pages in {size} bytes")
            listed = numbers[1 : count + 1]
            if (listed > self.last).any() or (listed < 2).any() or (listed[1:] >= listed[:-1]).any():
                self.fail(page, "its list of free pages is out of order, or names pages outside the file")
            found.append(listed.astype(np.int64))
        return np.concatenate(found)


def _number(key: bytes) -> int:
    return int(np.frombuffer(key, np.uint64)[0])


def _meta_of(path: Path, commit: int) -> tuple[Meta, Meta] | None:
    """The meta page of a commit, and the other; None when two newer commits have written over it."""
    newer, older = read_metas(path)
    for meta, other in ((newer, older), (older, newer)):
        if meta.commit == commit:
            return meta, other
    return None


def check(path: Path, commit: int) -> int | None:
    """Check everything that a commit consists of, but for the contents of blocks.

    Args:
        path: The file.
        commit: LMDB's number; a reading transaction has to keep its pages from being reused.

    Returns:
        How many pages are neither used nor free, which does no harm; None when two commits came meanwhile and the
        pages cannot be found any more.

    Raises:
        CorruptionError: It is damaged; the message names file and page.
    """
    metas = _meta_of(path, commit)
    if metas is None:
        return None
    meta, other = metas
    pages = _Pages(path, meta)
    main, free = pages.entries(meta.main, _MAIN), pages.entries(meta.free, _FREE)
    taken = np.sort(np.concatenate([main.pages, free.pages, pages.free(free)]))
    pages.require(taken[1:] != taken[:-1], taken[1:], "used twice, or used and free")
    if other.commit == commit - 1 and other.main.root != _NONE:
        # Nothing of the commit before was reused yet. Its meta page would also be that of a newer commit whose number
        # was damaged, and this one the older: then its tree has a head that says so.
        checked_head(_first_entry(path, other), other.commit, path)
    return meta.last_page - 1 - len(taken)


def reachable(path: Path, meta: Meta) -> set[int]:
    """Pages of the main tree above its data, as far as sound branches lead to them."""
    pages = _Pages(path, meta)
    found: set[int] = set()
    level = [meta.main.root]
    for _ in range(min(meta.main.depth, _MAX_DEPTH)):
        level = [page for page in level if 2 <= page <= pages.last and page not in found]
        found.update(level)
        below: list[int] = []
        for page in level:
            try:
                _, _, at, _, _ = pages._nodes(np.array([page], np.int64), _BRANCH, _MAIN)
            except CorruptionError:  # a leaf, or nothing that leads further
                continue
            below += pages._children(at).tolist()
        level = below
    return found


def blank_slack(path: Path, commit: int) -> None:
    """Overwrite what pages hold beside their contents with zeros: LMDB leaves there what lay there before.

    Args:
        path: A file that nobody uses.
        commit: The newest.

    Raises:
        CorruptionError: It is damaged.
    """
    metas = _meta_of(path, commit)
    if metas is None:
        raise CorruptionError(f"{path}: expected commit {commit}")
    pages = _Pages(path, metas[0])
    size = pages.size
    holes: list[tuple[int, int]] = []
    for tree, what in ((metas[0].main, _MAIN), (metas[0].free, _FREE)):
        leaves = pages.entries(tree, what)
        starts, sizes = leaves.starts, leaves.sizes
        big = starts % size == HEADER
        ends = (starts + sizes)[big]
        runs = pages._runs[starts[big] // size].astype(np.int64)
        holes += zip(ends.tolist(), ((starts[big] // size + runs) * size).tolist(), strict=True)
        data = np.concatenate([ranges(starts[big] // size, runs), np.empty(0, np.int64)])
        nodes = distinct(leaves.pages)
        nodes = nodes[~np.isin(nodes, data)]
        begins, stops = (nodes * size + edge[nodes].astype(np.int64) for edge in (pages._lower, pages._upper))
        holes += zip(begins.tolist(), stops.tolist(), strict=True)
    with os_errors("writing", path):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            with mmap.mmap(fd, 0) as mapped:
                for start, stop in holes:
                    mapped[start:stop] = bytes(stop - start)
        finally:
            os.close(fd)


def free_pages(path: Path, commit: int) -> int:
    """How many pages of a commit are free; 0 when two newer ones came meanwhile. Arguments and errors as `check`."""
    metas = _meta_of(path, commit)
    if metas is None:
        return 0
    pages = _Pages(path, metas[0])
    return len(pages.free(pages.entries(metas[0].free, _FREE)))


def holds_head(path: Path) -> bool:
    """Whether a file looks like a store's: its first entry is a head. Never raises."""
    try:
        newer, _ = read_metas(path)
        return newer.main.root != _NONE and bool(checked_head(_first_entry(path, newer), newer.commit, path))
    except AESGError:
        return False


def _first_entry(path: Path, meta: Meta) -> bytes:
    """The data of the first entry of the main tree, which is the head's; b"" when its key is another."""
    pages = _Pages(path, meta)
    level = np.array([min(meta.main.root, pages.last + 1)], np.int64)
    for _ in range(meta.main.depth - 1):
        _, _, at, _, _ = pages._nodes(level, _BRANCH, _MAIN)
        level = pages._children(at[:1])
    page, _, at, key_sizes, _ = pages._nodes(level, _LEAF, _MAIN)
    sizes, starts, _ = pages._data(page, at, key_sizes, _MAIN)
    if pages._slices(at[:1] + 8, key_sizes[:1]) != [HEAD_KEY]:
        return b""
    return pages._slices(starts[:1], sizes[:1])[0]
