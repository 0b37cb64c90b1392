"""The store of stage values, shared by every run, process and host that sees its folder.

An entry is a folder named by the hash of everything its value depends on. It is written under a temporary
name, flushed to the disk and renamed, so readers see a complete entry or none. If several runs need the same
entry at the same time, one computes it and the others wait for it. Only JSON and safetensors are stored:
nothing is ever unpickled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecoflap.errors import require_choice
from ecoflap.storage.cache.entries import AS_JSON, Codec, key_hash, mark_used, read_entry, write_entry
from ecoflap.storage.files import JSON
from ecoflap.storage.lease import Lease

log = logging.getLogger(__name__)

MODES = ("use", "refresh", "readonly", "off")
POLL = 0.2  # seconds between checks of an entry that another run computes


@dataclass
class Store:
    """A content-addressed store of stage values in one folder.

    Attributes:
        root: Folder of the entries, one subfolder per stage; created with the first entry.
        mode: ``use`` reads and writes, ``refresh`` computes and replaces, ``readonly`` never writes, ``off``
            does neither.
        level: Level of the log lines about what is read and computed.
    """

    root: Path
    mode: str = "use"
    level: int = logging.INFO
    _write_failed: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the mode.

        Raises:
            UserError: if the mode is none of the four.
        """
        self.root = Path(self.root)
        require_choice("cache_mode", self.mode, MODES)

    def get_or_compute(
        self, stage: str, key: Mapping[str, JSON], compute: Callable[[], Any], codec: Codec = AS_JSON
    ) -> tuple[Any, bool]:
        """The value of a stage, read from the store or computed and stored.

        A miss returns the value as a hit would (tuples as lists, keys as strings), so that later steps can't
        tell the two apart. If another run is computing the entry, this one waits for it, and takes over if
        that run dies.

        Args:
            stage: Name of the stage, a folder name.
            key: Everything that the value depends on, as JSON.
            compute: Computes the value.
            codec: How the value is stored.

        Returns:
            The value, and whether it came from the store.
        """
        entry = self.root / stage / key_hash(key)
        if self.mode in ("use", "readonly") and (content := self._read(stage, entry, key, codec)) is not None:
            return codec.loads(content), True
        if self.mode != "use":
            return codec.loads(self._compute(stage, entry, key, compute, codec)), False
        lease = Lease(entry.with_name(f"{entry.name}.lease"))
        try:
            content = self._wait(lease, stage, entry, key, codec)
            if not content:  # the last owner of the lease may have written the entry since it was read
                content = self._read(stage, entry, key, codec, quiet=True)
            if content:
                return codec.loads(content), True
            return codec.loads(self._compute(stage, entry, key, compute, codec)), False
        finally:
            lease.release()

    def _read(
        self, stage: str, entry: Path, key: Mapping[str, JSON], codec: Codec, quiet: bool = False
    ) -> bytes | None:
        if (found := read_entry(entry, key, codec, quiet)) is None:
            return None
        mark_used(entry)
        log.log(self.level, "%s: read from the store, %.1f s saved", stage, found.seconds)
        return found.content

    def _wait(
        self, lease: Lease, stage: str, entry: Path, key: Mapping[str, JSON], codec: Codec
    ) -> bytes | None:
        """Take the lease, or wait until its owner has written the entry.

        Returns:
            The value's bytes; None if this run holds the lease, or no lease can be taken.
        """
        waiting = False
        try:
            while not lease.acquire():
                if not waiting:
                    log.info("%s: %s computes it now, waiting", stage, lease.describe_owner())
                waiting = True
                time.sleep(POLL)
                if (content := self._read(stage, entry, key, codec, quiet=True)) is not None:
                    return content
        except OSError as error:
            self._warn_once(error)
        return None

    def _compute(
        self, stage: str, entry: Path, key: Mapping[str, JSON], compute: Callable[[], Any], codec: Codec
    ) -> bytes:
        """Compute the value and store it if possible.

        Returns:
            The value's bytes; those of the entry if another run stored it first.
        """
        if self.mode != "off":
            log.log(self.level, "%s: computing, for the cache too", stage)
        start = time.perf_counter()
        content = codec.dumps(compute())
        seconds = time.perf_counter() - start
        if self.mode in ("off", "readonly"):
            return content
        try:
            if write_entry(entry, key, content, codec, seconds, replace=self.mode == "refresh"):
                return content
        except OSError as error:
            self._warn_once(error)
            return content
        winner = read_entry(entry, key, codec)
        return content if winner is None else winner.content

    def _warn_once(self, error: OSError) -> None:
        """Warn once that the disk is full or read-only; the run continues, as its result must not be lost."""
        if not self._write_failed:
            log.warning(
                "cannot write to the store %s (%s): continuing without it. Set cache to a writable folder or"
                " cache_mode=off",
                self.root,
                error,
            )
        self._write_failed = True
