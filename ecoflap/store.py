"""The stage store: a step whose inputs were seen before is read back instead of computed again.

An entry is a folder named by the hash of everything its value depends on. It is written beside its final name, flushed to the disk and renamed,
so readers see a whole entry or none, on any file system with an atomic rename. Only JSON is stored: nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

log = logging.getLogger(__name__)

JSON: TypeAlias = Any
"""What ``json.dumps`` takes; floats come back bit for bit, and NaN and infinities too."""
Mode = Literal["use", "refresh", "readonly", "off"]


@dataclass
class Store:
    """A content-addressed store of stage values below one folder.

    Attributes:
        root: Folder of the entries, one subfolder per stage; made when the first entry is written.
        mode: ``use`` reads and writes, ``refresh`` computes anew and replaces, ``readonly`` never writes, ``off`` does neither.
    """

    root: Path
    mode: Mode = "use"
    _write_failed: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the mode.

        Raises:
            ValueError: The mode is none of the four.
        """
        self.root = Path(self.root)
        if self.mode not in get_args(Mode):
            raise ValueError(f"store mode {self.mode!r} does not exist: choose one of {', '.join(get_args(Mode))}")

    def get_or_compute(self, stage: str, key: Mapping[str, JSON], compute: Callable[[], JSON]) -> tuple[JSON, bool]:
        """The value of a stage, read from the store or computed and stored.

        A miss gives the value as a hit would give it (tuples as lists, keys as strings), so later steps cannot tell the two apart.
        When another job stores the entry first, its value is the one that is returned to both.

        Args:
            stage: Name of the stage, a folder name.
            key: Everything that the value depends on, as JSON.
            compute: Makes the value, as JSON, from nothing.

        Returns:
            The value, and whether it came from the store.
        """
        entry = self.root / stage / key_hash(key)
        if self.mode in ("use", "readonly") and (found := _read_entry(entry, key)) is not None:
            log.info("%s: read from the store, %.1f s saved", stage, found["meta"]["seconds"])
            return found["value"], True
        if self.mode != "off":
            log.info("%s: computing, for the cache too", stage)
        start = time.perf_counter()
        text = json.dumps(compute())
        seconds = time.perf_counter() - start
        if self.mode in ("use", "refresh"):
            text = self._write(entry, key, text, seconds)
        return json.loads(text), False

    def _write(self, entry: Path, key: Mapping[str, JSON], text: str, seconds: float) -> str:
        """Store a value if that is possible, and return the text of the value that the entry holds now."""
        try:
            if _write_entry(entry, key, text, seconds, replace=self.mode == "refresh"):
                return text
        except OSError as error:
            # The value is in hand, so a full or read-only disk costs a later job some time but must not cost this one its run.
            if not self._write_failed:
                log.warning(
                    "cannot write to the store %s (%s): going on without it. Set cache to a writable folder or cache_mode=off", self.root, error
                )
            self._write_failed = True
            return text
        winner = _read_entry(entry, key)
        return text if winner is None else json.dumps(winner["value"])


def key_hash(key: Mapping[str, JSON]) -> str:
    """The sha256 of the canonical JSON of a key: sorted names, no spaces.

    Raises:
        TypeError: The key holds something that is not JSON.
    """
    try:
        canonical = json.dumps(key, sort_keys=True, separators=(",", ":"))
    except TypeError as error:
        raise TypeError(
            f"a store key must be plain JSON, but {error}: turn tensors, paths and configs into text or numbers first. Key: {key!r}"
        ) from error
    return hashlib.sha256(canonical.encode()).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a path beside ``path``, which takes its place once it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    try:
        yield beside
        _flush(beside)
        os.replace(beside, path)
        _flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: JSON) -> None:
    """Write a value that people read too, whole or not at all."""
    with replacing(Path(path)) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_entry(entry: Path, key: Mapping[str, JSON], text: str, seconds: float, replace: bool) -> bool:
    """Write one entry; False when another job stored a sound one first."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(entry)
    try:
        beside.mkdir()
        checksum = hashlib.sha256(text.encode()).hexdigest()
        meta = {"key": key, "sha256": checksum, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seconds": seconds}
        for name, content in (("value.json", text), ("meta.json", json.dumps(meta, indent=1))):
            (beside / name).write_text(content, encoding="utf-8")
            _flush(beside / name)
        _flush(beside)
        if entry.exists() and (replace or _read_entry(entry, key, quiet=True) is None):
            _discard(entry)
        return _rename(beside, entry)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _read_entry(entry: Path, key: Mapping[str, JSON], quiet: bool = False) -> dict[str, JSON] | None:
    """The value and the meta data of an entry; None when it is absent, and (with a warning unless ``quiet``) when it is not what was written."""
    if not entry.is_dir():
        return None
    try:
        content, meta = (entry / "value.json").read_bytes(), json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        if hashlib.sha256(content).hexdigest() != meta["sha256"] or key_hash(meta["key"]) != key_hash(key):
            raise ValueError("its checksum differs")
        return {"value": json.loads(content), "meta": {"seconds": float(meta["seconds"])}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not quiet:
            log.warning("store entry %s is damaged (%s): computing it again", entry, error)
        return None


def _discard(entry: Path) -> None:
    """Take an entry out of the way in one rename, so that no reader meets half of it, then delete it."""
    aside = _beside(entry)
    if _rename(entry, aside):
        shutil.rmtree(aside, ignore_errors=True)


def _rename(source: Path, target: Path) -> bool:
    """Rename a folder; False when another job was faster: the target is there already, or the source is gone."""
    try:
        source.rename(target)
    except OSError:
        if target.exists() or not source.exists():
            return False
        raise
    _flush(target.parent)
    return True


def _beside(path: Path) -> Path:
    """A name next to ``path`` that no other host, process or thread uses."""
    return path.with_name(f".tmp-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")


def _flush(path: Path) -> None:
    """Force a file or a folder to the disk, so that a rename never survives a crash that its content does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
