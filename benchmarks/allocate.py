"""A child process that needs a known amount of memory, and imports nothing."""

from __future__ import annotations


def allocate(mebibytes: int) -> dict[str, int]:
    return {"kept": len(bytearray(mebibytes * 2**20))}
