"""`python -m aesg.testing URL`: the suite on a backend, and a report. Exit status 1: a clause failed; 2: an error."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from aesg.errors import AESGError
from aesg.testing.command import conduct


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m aesg.testing", description="Hold a backend to the contract.")
    parser.add_argument(
        "url", metavar="URL", help="backend and options, e.g. lmdb:?sync=false; a path is the folder for the stores"
    )
    parser.add_argument("-k", dest="choose", default="", metavar="EXPRESSION", help='e.g. "nodes and not refusals"')
    parser.add_argument("--long", action="store_true", help="the long forms of campaigns and random sequences")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="the report as JSON, instead or in a file")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="NAME", help="module, or module:BACKEND, of one not installed"
    )
    given = parser.parse_args(arguments)
    try:
        report = conduct(given.url, choose=given.choose, long=given.long, imports=given.plugin)
    except (AESGError, ImportError) as error:
        sys.stderr.write(f"aesg.testing: {' '.join(str(error).split())}\n")
        return 2
    as_json = json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n"
    if given.json not in (None, "-"):
        Path(given.json).write_text(as_json, "utf-8")
    sys.stdout.write(as_json if given.json == "-" else "".join(f"{line}\n" for line in report.lines()))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
