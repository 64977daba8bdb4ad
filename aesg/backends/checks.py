"""Checking of arguments, once for all backends, before anything is written.

What comes out is what `aesg.backends.tables` promises its implementers: arrays of the right dtype and shape, within
range and finite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.backends.tables import Tables
from aesg.errors import DuplicateIdError, InvalidInputError, InvalidVectorError, NotFoundError
from aesg.records import Columns, NodeBatch

_MOST: Final = float(np.finfo(np.float32).max)
_PIECE: Final = 1 << 17
"""Numbers that are checked at once: they and the answer stay in a core's L2 cache."""


def as_array(given: npt.ArrayLike, what: str, url: str) -> npt.NDArray[Any]:
    """`given` as an array of whatever dtype and shape it has."""
    try:
        return np.asarray(given)
    except Exception as error:  # lists of unequal lengths, and whatever an object's __array__ raises
        raise InvalidInputError(f"{url}: {what} cannot be made an array: {error}") from error


def positions(given: npt.ArrayLike, what: str, count: int, url: str) -> npt.NDArray[np.int64]:
    """`given` as int64 [n] within [0, count)."""
    array = as_array(given, f"{what}s", url)
    if array.dtype == np.int64 and array.ndim == 1 and array.flags.c_contiguous:  # as the engine's always are
        # As unsigned numbers those below 0 are larger than any row: one look instead of two.
        if not array.size or int(np.maximum.reduce(array.view(np.uint64))) < count:
            return array
    elif array.dtype.kind not in "iu":
        if array.size:
            raise InvalidInputError(f"{url}: {what}s must be integers, not {array.dtype}")
        array = array.astype(np.int64)
    if array.ndim == 0:
        array = array.reshape(1)
    if array.ndim != 1:
        raise InvalidInputError(f"{url}: {what}s must be one-dimensional, not of shape {array.shape}")
    if array.size:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= count:
            bad = low if low < 0 else high
            raise NotFoundError(f"{url}: no {what} {bad}; the store has {count} ({what}s 0 to {count - 1})")
    return np.ascontiguousarray(array, dtype=np.int64)


def is_finite(array: npt.NDArray[Any]) -> bool:
    """Whether all numbers are finite."""
    if array.size <= _PIECE:
        return bool(np.logical_and.reduce(np.isfinite(array), axis=None))
    flat = array.reshape(-1)
    return all(np.isfinite(flat[start : start + _PIECE]).all() for start in range(0, len(flat), _PIECE))


def column(name: str, given: npt.ArrayLike, n: int, dtype: np.dtype[Any], url: str) -> npt.NDArray[Any]:
    """`given` as a finite [n] array of the field's dtype; a scalar is broadcast."""
    plain: Any = given
    if type(plain) is float and dtype.kind == "f" and abs(plain) <= _MOST:  # what is left out when edges are appended
        return _filled(n, plain, dtype)
    array = as_array(given, name, url)
    if array.dtype.kind == "b" or not array.size:  # of an empty list NumPy makes floats
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iuf" or (dtype.kind == "u" and array.dtype.kind == "f"):
        raise InvalidInputError(f"{url}: {name} must be {dtype}, not {array.dtype}")
    if array.ndim not in (0, 1) or (array.ndim == 1 and len(array) != n):
        raise InvalidInputError(f"{url}: {name} must be a scalar or of shape ({n},), not {array.shape}")
    if dtype.kind in "iu" and array.size and array.dtype != dtype:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InvalidInputError(f"{url}: {name} must be between {limits.min} and {limits.max}")
    if array.dtype != dtype:
        with np.errstate(over="ignore"):
            array = array.astype(dtype)
    if dtype.kind == "f" and not is_finite(array):
        raise InvalidInputError(f"{url}: {name} must be finite (float32)")
    return array if array.ndim else np.full(n, array)


def _filled(n: int, value: float, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """What `np.full` makes, in a third of the time where `n` is small."""
    array = np.empty(n, dtype)
    array.fill(value)
    return array


def vectors(given: npt.ArrayLike, n: int | None, dim: int, url: str) -> records.Vectors:
    """`given` as finite float32 [n, dim]."""
    array = as_array(given, "vectors", url)
    if array.dtype.kind not in "fiu":
        raise InvalidVectorError(f"{url}: vectors must be floating point, not {array.dtype}")
    if array.ndim != 2 or array.shape[1] != dim or (n is not None and len(array) != n):
        rows = "n" if n is None else n
        raise InvalidVectorError(f"{url}: vectors must have shape ({rows}, {dim}), not {array.shape}")
    if array.dtype != np.float32:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    array = np.ascontiguousarray(array)
    if not is_finite(array):
        bad = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise InvalidVectorError(f"{url}: vector {bad} of the batch holds NaN or infinity (as float32)")
    return array


def node_columns(given: Mapping[str, npt.ArrayLike], n: int, dim: int, url: str) -> Columns:
    """Writable node fields as [n] arrays of their dtypes."""
    unknown = sorted(set(given) - records.NODE_WRITABLE)
    if unknown:
        known = ", ".join(sorted(records.NODE_WRITABLE))
        raise InvalidInputError(f"{url}: no node field {', '.join(unknown)} to write; there are: {known}")
    columns: Columns = {}
    for name, values in given.items():
        if name == "vector":
            wanted = as_array(values, name, url)
            columns[name] = vectors(
                np.broadcast_to(wanted, (n, dim)) if wanted.shape == (dim,) else wanted, n, dim, url
            )
        else:
            columns[name] = column(name, values, n, records.NODE_FIELDS[name], url)
    if "is_active" in columns and len(columns["is_active"]) and columns["is_active"].max() > 1:
        raise InvalidInputError(f"{url}: is_active must be 0 or 1")
    return columns


def edge_columns(given: Mapping[str, npt.ArrayLike], n: int, url: str) -> Columns:
    """Writable edge fields as [n] arrays of their dtypes."""
    unknown = sorted(set(given) - records.EDGE_WRITABLE)
    if unknown:
        known = ", ".join(sorted(records.EDGE_WRITABLE))
        raise InvalidInputError(f"{url}: no edge field {', '.join(unknown)} to write; there are: {known}")
    return {name: column(name, values, n, records.EDGE_FIELDS[name], url) for name, values in given.items()}


def field_names(fields: Sequence[str] | None, known: Mapping[str, Any], what: str, url: str) -> tuple[str, ...]:
    """`fields` if all of them are known, or all the known ones when it is None."""
    if isinstance(fields, str):
        raise InvalidInputError(f"{url}: fields must be a list of names, not the string {fields!r}")
    names = tuple(known) if fields is None else tuple(fields)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidInputError(f"{url}: no {what} field {', '.join(unknown)}; there are: {', '.join(known)}")
    return names


def complete_batch(batch: NodeBatch, tables: Tables, url: str) -> Columns:
    """The columns of a batch, checked against each other and the store."""
    if not isinstance(batch, NodeBatch):
        raise InvalidInputError(f"{url}: nodes are appended as a records.NodeBatch, not {type(batch).__name__}")
    given_vectors = vectors(batch.vector, None, tables.vector_dim, url)
    n = len(given_vectors)
    columns: Columns = {}
    if batch.columns:
        unknown = sorted(set(batch.columns) - set(records.NODE_FIELDS) | {"id", "vector"} & set(batch.columns))
        if unknown:
            raise InvalidInputError(f"{url}: NodeBatch.columns has no place for {', '.join(unknown)}")
        rest = {name: values for name, values in batch.columns.items() if name != "created_at"}
        columns = node_columns(rest, n, tables.vector_dim, url)
    columns["vector"] = given_vectors
    if "created_at" in batch.columns:
        born = column("created_at", batch.columns["created_at"], n, records.NODE_FIELDS["created_at"], url)
    else:
        born = _filled(n, records.now(), np.dtype(np.uint64))
    columns["created_at"] = born
    columns.setdefault("modified_at", born)
    if batch.id is None:
        columns["id"] = records.new_ids(n)
    else:
        given = as_array(batch.id, "ids", url)
        if given.ndim != 1 or len(given) != n:
            raise InvalidInputError(f"{url}: ids must be of shape ({n},), not {given.shape}")
        columns["id"] = np.ascontiguousarray(column("id", given, n, records.NODE_FIELDS["id"], url))
    ids = columns["id"]
    if n > 1:
        ordered = np.sort(ids)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise DuplicateIdError(f"{url}: id {int(twice[0])} is twice in the batch")
    present = tables.rows_of(ids)
    if n and int(present[0] if n == 1 else present.max()) >= 0:
        first = int(np.flatnonzero(present >= 0)[0])
        raise DuplicateIdError(f"{url}: id {int(ids[first])} (number {first} of the batch) is in the store already")
    return columns
