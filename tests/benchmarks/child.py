"""Runs one function in a process of its own and prints its result and the process's maximum resident set, which the kernel keeps."""

from __future__ import annotations

import importlib
import json
import resource
import sys


def main(function: str, arguments: str) -> None:
    module, _, name = function.partition(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments)) or {}
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps({**result, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}))


if __name__ == "__main__":
    main(*sys.argv[1:])
