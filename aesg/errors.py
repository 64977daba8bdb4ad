"""One tree of exceptions.

Whatever goes wrong in a store, the caller sees an `AESGError`: no `OSError`, `lmdb.Error`, zarr or NumPy exception
escapes, each is wrapped with `raise … from`. Where Python has a fitting built-in, the class inherits from it too, so
code that never heard of AESG still catches the right thing.

    AESGError
    ├── NotFoundError (KeyError)                no such store, row, edge or id
    ├── InvalidInputError (ValueError)          an argument of the wrong shape, dtype or range
    │   └── InvalidVectorError                  a vector of the wrong length, or not finite
    ├── DuplicateIdError (ValueError)           an id that the store already holds
    ├── SchemaMismatchError (ValueError)        the store's vector_dim is not the one asked for
    ├── FormatVersionError                      written by a newer version of the format
    ├── CorruptionError                         what is on disk cannot be what was written
    ├── LockedError                             another writer holds the store
    ├── ConflictError                           another writer committed first
    ├── CapacityError                           the disk or the format is full
    ├── ReadOnlyError                           a write through a read-only handle
    ├── TransactionError (RuntimeError)         transactions used out of order
    ├── ClosedError                             the handle was closed
    ├── UnsupportedError (NotImplementedError)  this backend does not promise that
    ├── BackendNotInstalledError (ImportError)  unknown scheme, or its package is missing
    ├── StorageError (OSError)                  the operating system refused: permissions, I/O errors
    └── MigrationError                          a copy between stores could not be completed
"""


class AESGError(Exception):
    """Base of every exception that AESG raises on purpose."""


class NotFoundError(AESGError, KeyError):
    """A store, row, edge or id that does not exist."""

    # KeyError.__str__ shows the repr of its argument, which puts quotes around our sentences.
    __str__ = Exception.__str__


class InvalidInputError(AESGError, ValueError):
    """An argument has the wrong shape, dtype or range. Nothing was written."""


class InvalidVectorError(InvalidInputError):
    """A vector has the wrong length or holds NaN or infinity. Nothing was written."""


class DuplicateIdError(AESGError, ValueError):
    """An id is already in the store, or twice in one batch. Nothing was written."""


class SchemaMismatchError(AESGError, ValueError):
    """The store holds vectors of another length than the caller asked for."""


class FormatVersionError(AESGError):
    """The store was written by a newer version of its format than this one reads."""


class CorruptionError(AESGError):
    """What is on disk cannot be what was written; the message names the file and what was expected."""


class LockedError(AESGError):
    """Another writer holds the store; the message says who."""


class ConflictError(AESGError):
    """Another writer committed first; the transaction was not applied."""


class CapacityError(AESGError):
    """The disk is full or a limit of the format is reached. The transaction was not applied."""


class ReadOnlyError(AESGError):
    """A write through a handle that was opened for reading."""


class TransactionError(AESGError, RuntimeError):
    """A transaction was used after it ended, or a second one begun where it would wait for itself."""


class ClosedError(AESGError):
    """The handle was closed."""


class UnsupportedError(AESGError, NotImplementedError):
    """The backend does not promise what was asked; its `capabilities` say what it does promise."""


class BackendNotInstalledError(AESGError, ImportError):
    """No backend of that name is installed."""


class StorageError(AESGError, OSError):
    """The operating system refused an operation on the store's files."""

    # OSError.__str__ expects errno and strerror; ours carries one sentence.
    __str__ = Exception.__str__


class MigrationError(AESGError):
    """A copy from one store to another could not be completed; the source is untouched."""
