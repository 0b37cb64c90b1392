"""Upkeep of a store: list its entries, check them, and remove some."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.storage.cache.entries import AS_JSON, AS_TENSORS, META, check_entry
from ecoflap.storage.files import TEMPORARY, discard

ABANDONED = 3600.0  # seconds after which a temporary file or a lease belongs to a dead process
KEY_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class EntryInfo:
    """One entry.

    Attributes:
        path: its folder.
        stage: name of the stage whose value it holds.
        size: bytes.
        used: time of its last use, in seconds since the epoch.
        seconds: what it took to compute, and what a hit saves; None if its description is damaged.
        key: what it depends on.
    """

    path: Path
    stage: str
    size: int
    used: float
    seconds: float | None
    key: dict[str, Any]


def foreign(root: Path) -> Path | None:
    """The first path that no store has: a folder that is no entry, or an entry outside a stage's folder."""
    outside = [path for path in root.glob("*") if path.name == META or KEY_HASH.fullmatch(path.name)]
    folders = [path for path in root.glob("*/*") if path.is_dir() and not path.name.startswith(TEMPORARY)]
    return min([*outside, *(path for path in folders if not KEY_HASH.fullmatch(path.name))], default=None)


def entries(root: Path) -> Iterator[EntryInfo]:
    """Every entry, least recently used first."""
    found = []
    for path in root.glob("*/*"):
        if path.is_dir() and not path.name.startswith(TEMPORARY):
            with suppress(FileNotFoundError):  # a run has removed it meanwhile
                found.append(_info(path))
    yield from sorted(found, key=lambda info: info.used)


def _info(path: Path) -> EntryInfo:
    size = sum(file.stat().st_size for file in path.iterdir())
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        return EntryInfo(
            path,
            path.parent.name,
            size,
            (path / META).stat().st_mtime,
            float(meta["seconds"]),
            dict(meta["key"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return EntryInfo(path, path.parent.name, size, path.stat().st_mtime, None, {})


def problem(info: EntryInfo) -> str | None:
    """What is wrong with an entry; None if it matches its checksum and its key, or is gone."""
    if not info.path.is_dir():  # a run has removed it meanwhile
        return None
    file = next((name for name in (AS_JSON.file, AS_TENSORS.file) if (info.path / name).is_file()), None)
    if file is None:
        return "it holds no value"
    try:
        _, key = check_entry(info.path, file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None if key == info.path.name else "its folder is named after another key"


def collect_garbage(root: Path, max_bytes: int) -> tuple[int, int]:
    """Remove files of dead processes, damaged entries, and least recently used ones until the rest fits.

    Args:
        root: the store's folder.
        max_bytes: largest size of the remaining entries.

    Returns:
        Number of entries removed, and bytes that remain.
    """
    for left in [*root.glob(f"*/{TEMPORARY}*"), *root.glob("*/*.lease*")]:
        with suppress(FileNotFoundError):  # a lease that was released meanwhile
            if time.time() - left.stat().st_mtime > ABANDONED:
                discard(left) if left.is_dir() else left.unlink()
    known = list(entries(root))  # the longest unused first
    problems = {info.path: problem(info) for info in known}
    total, removed = sum(info.size for info in known), 0
    for info in sorted(known, key=lambda info: problems[info.path] is None):
        if total <= max_bytes and problems[info.path] is None:
            break
        discard(info.path)
        total, removed = total - info.size, removed + 1
    return removed, total
