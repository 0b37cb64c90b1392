"""Runs one function in a process of its own and prints its result and the largest resident set that the
kernel saw of it.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
from pathlib import Path


def main(function: str, arguments: str) -> None:
    module, _, name = function.partition(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments)) or {}
    print(json.dumps({**result, "peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """VmHWM where there is one: Linux counts what the parent held at the fork into ``ru_maxrss``."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * next(
            int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
