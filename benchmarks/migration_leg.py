"""A fresh process that migrates once: says when everything is imported, waits for a line, says what came of it."""

from __future__ import annotations

import json
import sys
import traceback
from importlib import import_module
from typing import Final

LIBRARIES: Final = {"zarr": "zarr", "lmdb": "lmdb", "icechunk": "icechunk"}


def main(source: str, destination: str) -> None:
    """Migrate from one URL to another."""
    from aesg.migration.migrate import migrate

    for name in ("numba", *(LIBRARIES.get(url.partition(":")[0], "numpy") for url in (source, destination))):
        import_module(name)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        answer = migrate(source, destination, overwrite=True).as_dict()
    except Exception:
        answer = {"error": traceback.format_exc()}
    print(json.dumps(answer), flush=True)
    sys.stdin.readline()  # its memory is looked at once more


if __name__ == "__main__":
    main(*sys.argv[1:])
