"""What a result was made from beside this package: classes and functions of the user, and files.

Reading all weights and data again would take as long as a step, so that files count by their name, size and
time, and of large folders, those deep inside by the time of their own folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecoflap.errors import UserError
from ecoflap.storage.cache.code import PACKAGE, source_hash
from ecoflap.storage.results.environment import other_versions
from ecoflap.storage.results.identity import is_path_key, leaves, stable
from ecoflap.storage.results.record import Result

TARGET = "._target_"
LOSS = ".loss"
MOST = 10_000
"""Entries of a folder, with all below it, after which no further folders in it are read."""


def sources_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``sources`` field of a result.

    Args:
        config: the resolved config of the run, or as much of it as a call from Python knows.

    Returns:
        ``parts``: {key: ``name``, and ``hash`` of its source and imports, None if unknown} of each class or
            loss from outside this package; ``files``: {key: hash, see ``stamp``} of each file or folder, or
            those of a list.
    """
    paths = {key: _paths(key, value) for key, value in leaves(stable(config))}
    return {
        "parts": {key: {"name": name, "hash": _source(name)} for key, name in own_parts(config).items()},
        "files": {key: " ".join(map(stamp, found)) for key, found in paths.items() if found},
    }


def own_parts(config: Mapping[str, Any]) -> dict[str, str]:
    """{key: dotted name} of each class or loss of a config that is not of this package."""
    return {
        key.removesuffix(TARGET): value
        for key, value in leaves(stable(config))
        if key.endswith((TARGET, LOSS)) and "." in str(value) and not value.startswith(f"{PACKAGE}.")
    }


def outdated(result: Result, config: Mapping[str, Any]) -> list[str]:
    """What has changed since a result was made from a config, a sentence each; empty if nothing has."""
    recorded, now = result.sources, sources_of(config)
    code = other_versions(result.versions) + [
        f"{key} {part['name']}: {part['hash']} -> {now['parts'][key]['hash']}"
        for key, part in recorded["parts"].items()
        if key in now["parts"] and part != now["parts"][key]
    ]
    named = dict(leaves(config))
    files = [
        f"{key}={named[key]}"
        for key, stamp in recorded["files"].items()
        if now["files"].get(key, stamp) != stamp
    ]
    return [
        *([f"that result was made by other code ({'; '.join(code)})"] if code else []),
        *([f"files that it was made from have changed since ({', '.join(files)})"] if files else []),
    ]


def _paths(key: str, value: Any) -> list[Path]:
    """The existing files and folders that an option names."""
    texts = (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))
    named = (os.path.expanduser(text) for text in texts if is_path_key(key) or os.sep in text)
    return [Path(path) for path in named if os.path.exists(path)]


def _source(name: str) -> str | None:
    """A hash of the source of a class or function, by its dotted name; None without a file to read."""
    while "." in name:
        name = name.rpartition(".")[0]
        try:
            return source_hash(name, package=False)[:12]
        except (UserError, SyntaxError):  # a class inside another, or no file
            continue
    return None


def stamp(path: Path, whole: bool = False) -> str:
    """A hash of the names, sizes and modification times of a file, or of the files in and below a folder.

    Folders are read from the top, but for hidden ones, until ``MOST`` entries are found. Those left, and
    links to folders that are read already, count by their own time, which a new, a removed and a renamed
    entry change.

    Args:
        path: the file or folder.
        whole: read hidden folders as well, and all entries.
    """
    digest, found, read = hashlib.sha256(), [path], set[Path]()
    for place in found:  # which grows meanwhile
        opens = (whole or len(found) < MOST) and place.is_dir() and os.access(place, os.R_OK | os.X_OK)
        if opens and (folder := place.resolve()) not in read:
            read.add(folder)
            entries = (one for one in place.iterdir() if whole or not (one.name[0] == "." and one.is_dir()))
            found += sorted(entries)
        elif place.exists():
            state = place.stat()
            digest.update(f"{place.relative_to(path)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]
