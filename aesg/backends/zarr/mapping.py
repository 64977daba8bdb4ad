"""Files as arrays, without a descriptor each.

A chunk is a file, and a store has thousands of them. Python's `mmap` keeps a duplicate of the file's descriptor for as
long as the mapping lives (before 3.13 there is no way round it), of which a process may often have but a thousand; the
system itself needs none. So `mmap` is called directly.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_FAILED: Final = ctypes.c_void_p(-1).value


@cache
def _libc() -> Any:
    """The C library; None where it is not one whose `mmap` we know how to call."""
    if sys.platform not in ("linux", "darwin") or sys.maxsize < 1 << 32:  # pragma: no cover - other systems
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    int_, size, pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
    libc.mmap.argtypes = [pointer, size, int_, int_, int_, ctypes.c_int64]
    libc.mmap.restype = pointer
    libc.munmap.argtypes = [pointer, size]
    return libc


def map_file(fd: int, size: int) -> npt.NDArray[np.uint8] | None:
    """The first bytes of a file, mapped for reading; the mapping goes when nothing refers to the array any more.

    Args:
        fd: The file; may be closed afterwards. It must have that many bytes: reading past its end is a signal.
        size: How many; more than 0.

    Returns:
        uint8 [size], not writable. None where the system maps no more, or not this file.
    """
    libc = _libc()
    if libc is None:  # pragma: no cover - other systems
        return None
    # Populated at once: a fault for every few pages costs more than all the rest.
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
    address = libc.mmap(None, size, mmap.PROT_READ, flags, fd, 0)
    if address is None or address == _FAILED:
        return None
    raw = (ctypes.c_uint8 * size).from_address(address)
    # Not at the end of the process, when other threads may still read.
    weakref.finalize(raw, libc.munmap, address, size).atexit = False
    array: npt.NDArray[np.uint8] = np.ctypeslib.as_array(raw)
    array.flags.writeable = False
    return array


def read_file(fd: int, size: int) -> npt.NDArray[np.uint8]:
    """The first bytes of a file in memory of their own; fewer where it ends before.

    Raises:
        OSError: The system refuses.
    """
    out = np.empty(size, np.uint8)
    view, at = out.data, 0
    while at < size and (done := os.preadv(fd, [view[at:]], at)):
        at += done
    return out[:at]
