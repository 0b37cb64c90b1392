"""``python -m tests.zoo [--table FILE] [NAME ...]``: examine architectures, and write the table."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from tests.zoo.architectures import ARCHITECTURES, NOT_BUILT, NOT_COMPARED
from tests.zoo.examine import Row, examine
from tests.zoo.table import result, write_table


def main() -> int:
    """Returns how many came out wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, help="write the table of all architectures here")
    parser.add_argument(
        "names", nargs="*", choices=[*ARCHITECTURES, []], metavar="NAME", help="all where none is given"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    rows: dict[str, Row] = {}
    for name in options.names or ARCHITECTURES:
        started = time.perf_counter()
        if (missing := ARCHITECTURES[name].missing()) is not None:
            print(f"{name}: {missing}", flush=True)
            continue
        rows[name] = examine(ARCHITECTURES[name])
        print(f"{name}: {result(rows[name])} ({time.perf_counter() - started:.1f} s)", flush=True)
    if options.table is not None:
        write_table(options.table, rows, NOT_COMPARED, NOT_BUILT)
    return sum(bool(row.wrong) for row in rows.values())


raise SystemExit(main())
