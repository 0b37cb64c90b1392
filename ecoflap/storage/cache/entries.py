"""An entry of the store: a folder named by the hash of its key, with a value, its checksum and the key."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.storage.files import JSON, beside, discard, flush, rename

log = logging.getLogger(__name__)

META = "meta.json"


@dataclass(frozen=True)
class Codec:
    """How a value is stored.

    Attributes:
        file: name of its file in the entry.
        dumps: value -> bytes.
        loads: bytes -> value.
    """

    file: str
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]


def _tensors_to_bytes(tensors: Any) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})


def _tensors_from_bytes(content: bytes) -> Any:
    from safetensors.torch import load

    return load(content)


AS_JSON = Codec("value.json", lambda value: json.dumps(value).encode(), json.loads)
AS_TENSORS = Codec("value.safetensors", _tensors_to_bytes, _tensors_from_bytes)
"""Stores a dict of tensors; the order of its names is lost."""


def key_hash(key: Mapping[str, JSON]) -> str:
    """The sha256 of the canonical JSON of a key: sorted names, no spaces.

    Raises:
        TypeError: if the key holds something that is not JSON.
    """
    try:
        canonical = json.dumps(key, sort_keys=True, separators=(",", ":"))
    except TypeError as error:
        raise TypeError(
            f"a store key must be plain JSON, but {error}: turn tensors, paths and configs into text or"
            f" numbers first. Key: {key!r}"
        ) from error
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class StoredValue:
    """An intact entry.

    Attributes:
        content: its value's bytes.
        seconds: what it took to compute.
    """

    content: bytes
    seconds: float


def write_entry(
    entry: Path, key: Mapping[str, JSON], content: bytes, codec: Codec, seconds: float, replace: bool
) -> bool:
    """Write an entry.

    Args:
        entry: its folder.
        key: the key that it is stored under.
        content: its value's bytes.
        codec: how the value is stored.
        seconds: what it took to compute.
        replace: replace an intact entry.

    Returns:
        False if another job stored an intact entry first.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(entry)
    try:
        temporary.mkdir()
        checksum = hashlib.sha256(content).hexdigest()
        meta = {
            "key": key,
            "sha256": checksum,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": seconds,
        }
        for name, part in ((codec.file, content), (META, json.dumps(meta).encode())):
            (temporary / name).write_bytes(part)
            flush(temporary / name)
        flush(temporary)
        if entry.exists() and (replace or read_entry(entry, key, codec, quiet=True) is None):
            discard(entry)
        return rename(temporary, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_entry(entry: Path, key: Mapping[str, JSON], codec: Codec, quiet: bool = False) -> StoredValue | None:
    """An intact entry; None if it is missing or, with a warning unless ``quiet``, damaged."""
    if not entry.is_dir():
        return None
    try:
        value, hash_inside = check_entry(entry, codec.file)
        if hash_inside != key_hash(key):
            raise ValueError("it is another key's")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not quiet:
            log.warning("store entry %s is damaged (%s): computing it again", entry, error)
        return None
    return value


def check_entry(entry: Path, file: str) -> tuple[StoredValue, str]:
    """Read an entry and check its value against its checksum.

    Returns:
        The entry, and the hash of the key in its description.

    Raises:
        OSError, ValueError, KeyError, TypeError: if it is damaged.
    """
    content, meta = (entry / file).read_bytes(), json.loads((entry / META).read_text(encoding="utf-8"))
    if hashlib.sha256(content).hexdigest() != meta["sha256"]:
        raise ValueError("its checksum differs")
    return StoredValue(content, float(meta["seconds"])), key_hash(meta["key"])


def mark_used(entry: Path) -> None:
    """Record that an entry was read now, if the disk is writable; a read-only one is never cleaned up."""
    try:
        os.utime(entry / META)
    except OSError:
        return
