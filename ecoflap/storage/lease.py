"""Leases: mutual exclusion of processes on a file system shared by many hosts, without reliable locks.

A lease is a file that only one process can create. Its owner writes a heartbeat into it every few seconds,
and a process that waits for it watches the heartbeats with its own clock, so hosts need not agree on the
time. An owner whose heartbeats stop, or whose process on this host has ended, is dead, and the first process
to notice takes over. In the worst race two processes hold a lease for a moment; work under it must be
harmless when done twice.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecoflap.errors import UserError
from ecoflap.storage.process_ids import machine, runs

log = logging.getLogger(__name__)

BEAT = 5.0  # seconds between heartbeats
DEAD_AFTER = 60.0  # seconds without a heartbeat: much longer than a shared file system serves old content


class Lease:
    """A lease that this process holds or wants.

    Attributes:
        path: its file.
        owner: the content of the owner's file, as last read.
    """

    def __init__(self, path: Path) -> None:
        """Describe a lease; ``acquire`` takes it."""
        self.path = Path(path)
        self.owner: dict[str, Any] = {}
        self._token = secrets.token_hex(8)
        self._last: tuple[str, float] = ("", time.monotonic())
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> bool:
        """Take the lease if it is free or its owner is dead; the holder has to ``release`` it.

        Returns:
            Whether this process holds it now.

        Raises:
            OSError: if the file can't be written.
        """
        if not self._create():
            if self._owner_is_alive():
                return False
            log.info("%s: its owner %s is gone, taking over", self.path, self.describe_owner())
            self._remove_dead()
            if not self._create():
                return False
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Release the lease."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if _read(self.path).get("token") == self._token:
            self.path.unlink(missing_ok=True)

    def describe_owner(self) -> str:
        """The owner's host and process id, for messages."""
        return f"{self.owner.get('host', 'unknown')}:{self.owner.get('pid', '?')}"

    def _create(self) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(self._text(0))
        except OSError:  # on a full disk; a file without an owner would be waited for
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _text(self, beat: int) -> str:
        owner = {"host": socket.gethostname(), "machine": machine(), "pid": os.getpid()}
        return json.dumps({**owner, "token": self._token, "beat": beat})

    def _keep_beating(self) -> None:
        beat = 0
        while not self._stop.wait(BEAT):
            beat += 1
            try:
                if self._taken_over():
                    return  # this process was suspended for too long
                with self.path.open("r+") as file:  # in place, which works on a full disk
                    file.write(self._text(beat))
                    file.truncate()
            except OSError:
                continue  # the disk may be full for a while; a missed heartbeat does no harm

    def _taken_over(self) -> bool:
        """Whether another process has the lease; a file that can't be read at the moment doesn't count."""
        try:
            self.path.stat()
        except FileNotFoundError:
            return True
        return _read(self.path).get("token", self._token) != self._token

    def _owner_is_alive(self) -> bool:
        """Whether the owner is alive, as far as is known now."""
        self.owner = _read(self.path)
        seen = json.dumps(self.owner, sort_keys=True)
        if seen != self._last[0]:
            self._last = (seen, time.monotonic())
        if _has_ended(self.owner):
            return False
        return time.monotonic() - self._last[1] < DEAD_AFTER

    def _remove_dead(self) -> None:
        """Remove the dead owner's file; one that another process has created in the meantime is restored."""
        aside = self.path.with_name(f"{self.path.name}.{self._token}")
        try:
            self.path.rename(aside)
            if _read(aside).get("token") not in (self.owner.get("token"), None):
                os.link(aside, self.path)
        except (FileNotFoundError, FileExistsError):
            return
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def held(path: Path, refusal: Callable[[str], str], patience: float = 0.0) -> Iterator[None]:
    """Hold a lease while the body runs; wait for it while its owner may be dead.

    Args:
        path: the file of the lease.
        refusal: makes the error's message from the host and process id of an owner that is alive.
        patience: seconds to wait for an owner that is alive.

    Raises:
        UserError: if its owner is alive and does not release it in time.
        OSError: if the file can't be written.
    """
    lease, start, told = Lease(path), time.monotonic(), False
    while not lease.acquire():
        waited = time.monotonic() - start
        alive = bool(lease.owner) and is_held(path)  # a file without an owner is being written
        if waited > patience and (alive or waited > DEAD_AFTER * 1.5):  # clocks may differ; waiting ends
            raise UserError(refusal(lease.describe_owner()))
        if not told and (alive or waited > BEAT):
            longest = patience if alive else DEAD_AFTER
            log.info("%s: waiting up to %.0f s for %s to end", path, longest, lease.describe_owner())
            told = True
        time.sleep(0.5)
    try:
        yield
    finally:
        lease.release()


def is_held(path: Path) -> bool:
    """Whether a lease is held, without waiting for a heartbeat.

    Its last heartbeat is recent by the clock of the file system, and its owner has not ended on this host.

    Args:
        path: the file of the lease.
    """
    try:
        return time.time() - path.stat().st_mtime < DEAD_AFTER * 2 and not _has_ended(_read(path))
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any]:
    """The content of a lease's file; empty when it is missing or being written."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _has_ended(owner: Mapping[str, Any]) -> bool:
    """Whether an owner ran on this host and has ended; False where the host is not known to be this one."""
    here, kernel = socket.gethostname(), machine()
    return (
        bool(kernel)
        and (owner.get("host"), owner.get("machine")) == (here, kernel)
        and not runs(int(owner["pid"]))
    )
