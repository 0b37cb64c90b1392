"""The identity of a run: everything in its config that can change a number."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

SPARSITY_DIGITS = 12

VOLATILE = ("tracking", "cache", "cache_mode", "device", "inspect", "resume", "runtime")
"""Config keys that change where or how a run executes, but not what it computes."""

PATHS = ("path", "from", "file", "files", "folder", "images", "checkpoint")
"""The last words of the names of options that are files or folders."""


def run_id(config: Mapping[str, Any]) -> str:
    """A deterministic id of 16 hexadecimal digits of a resolved config."""
    canonical = json.dumps(stable(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def stable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without its volatile keys."""
    return {name: value for name, value in config.items() if name not in VOLATILE}


def rounded_sparsity(sparsity: float) -> float:
    """A sparsity without rounding errors: 0.3 instead of the 0.30000000000000004 of range(0.1,0.95,0.1)."""
    return round(float(sparsity), SPARSITY_DIGITS)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """``key: one -> other`` for every value in which two configs differ, without volatile keys."""
    left, right = dict(leaves(stable(one))), dict(leaves(stable(other)))
    return [
        f"{key}: {left.get(key)} -> {right.get(key)}"
        for key in {**left, **right}
        if left.get(key) != right.get(key)
    ]


def is_path_key(key: str) -> bool:
    """Whether an option is a file or a folder, or a list of them, by its dotted key."""
    return re.split(r"[._]", key)[-1] in PATHS


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested dicts, by its dotted key; a list is one value."""
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, inner in value.items():
        yield from leaves(inner, f"{path}.{name}" if path else str(name))
