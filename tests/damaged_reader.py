"""Opens stores that may be damaged and reads all of them: `python damaged_reader.py`, one JSON line in and out each.

A process of its own, because what is looked for are hangs, signals and memory that runs away. In: path and mode. Out:
the name and message of the AESGError, or a digest of the contents and the kinds of violations that `verify` found.
"""

import faulthandler
import hashlib
import json
import sys
import warnings
from pathlib import Path

from store_support import contents

import aesg
from aesg.backends.memmap import reader
from aesg.errors import AESGError

SECONDS = 30


def digest(shown):
    return hashlib.sha256(repr(sorted(shown.items())).encode()).hexdigest()


def attempt(path, mode):
    try:
        with aesg.open(path, mode) as store:
            found = {"violations": sorted({violation.kind for violation in store.verify()})}
            store.stats()
            shown = contents(store)
            return found | {"digest": digest(shown), "nodes": shown["nodes"], "edges": shown["edges"]}
    except AESGError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:
        return {"escaped": repr(error)}


def most_memory():
    """The most memory that this process ever had, in MB. (getrusage would give the parent's, if that had more.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def main():
    warnings.simplefilter("error")
    reader._PATIENCE = 0.2  # how long a reader waits for a writer that is not there
    for line in sys.stdin:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        given = json.loads(line)
        result = attempt(given["path"], given["mode"])
        result["rss_mb"] = most_memory()
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
