"""A run's folder: whose it is, how far the run is, and whether what an earlier run left there can be gone on
from.

``status.json`` says for people and for ``ecoflap status`` what the run does; ``.lease`` proves that it
lives. A run that is started again with the same config in the same folder goes on where the last one stopped,
and does nothing when that one had finished.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ecoflap.console import progress as console
from ecoflap.errors import UserError
from ecoflap.storage.checkpoint import FOLDER as CHECKPOINT
from ecoflap.storage.file_names import (
    ALLOCATION,
    BLOCKS,
    FINETUNE,
    LEASE,
    PREDICTIONS,
    RESULT,
    SCORES,
    STATUS,
    TRAINING,
)
from ecoflap.storage.files import read_json, write_json
from ecoflap.storage.lease import Lease
from ecoflap.storage.results import Result
from ecoflap.storage.results.environment import redact, versions
from ecoflap.storage.results.identity import differences, run_id

log = logging.getLogger(__name__)

PRODUCTS = (RESULT, SCORES, ALLOCATION, FINETUNE, TRAINING, CHECKPOINT, BLOCKS, PREDICTIONS)
WRITE_EVERY = 2.0  # seconds between two looks at the progress
# seconds that a run waits for one that is being ended in the same folder: more than a dead owner's lease
# lasts
PATIENCE = 90.0


@dataclass
class Status:
    """What ``status.json`` holds.

    Attributes:
        state: running, done, failed or stopped.
        key: of the config and the library versions.
        step: what is being done.
        done: items of it that are done.
        total: items of it; null where unknown.
        reason: why it failed or stopped.
        started: seconds since the epoch.
        updated: the same, of this file.
        starts: how often the run was started.
        host: where it runs.
        pid: its process.
        job: its Slurm job.
    """

    state: str = "running"
    key: str = ""
    step: str = "start"
    done: int = 0
    total: int | None = None
    reason: str | None = None
    started: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    starts: int = 1
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    job: str | None = field(default_factory=lambda: slurm_job())


def slurm_job() -> str | None:
    """The id of this Slurm job, as squeue shows it; null outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


class Found(NamedTuple):
    """What an earlier run left in a folder.

    Attributes:
        result: of an equal run that finished; null where none has.
        unfinished: an equal run was stopped there, and can be gone on from.
    """

    result: Result | None
    unfinished: bool


@contextmanager
def claimed(
    folder: Path,
    config: Mapping[str, Any],
    resume: bool,
    results: Path | None = None,
    patience: float = PATIENCE,
) -> Iterator[Found]:
    """Claim the folder for one run, keep its status, and yield what an earlier run left there.

    Args:
        folder: of the run; made if need be.
        config: resolved.
        resume: go on from what an equal run left; otherwise nothing there counts.
        results: folder where the result of an equal run would stand, where that is another one.
        patience: seconds to wait for another run that is there now.

    Raises:
        UserError: another run is at work there, or a run of another config finished there.
    """
    lease = Lease(folder / LEASE)
    _take(lease, folder, patience)
    try:
        key, earlier = run_id({**config, "versions": versions()}), read_json(folder / STATUS) or {}
        result, unfinished = (
            finished(results or folder, config) if resume else None,
            resume and earlier.get("key") == key,
        )
        status = Status(key=key, starts=int(earlier.get("starts", 0)) + 1 if unfinished else 1)
        with _kept(folder / STATUS, status):
            yield Found(result, unfinished)
    finally:
        lease.release()


def _take(lease: Lease, folder: Path, patience: float) -> None:
    """Get the lease; a run that Slurm ends and starts again may meet its own last moments.

    Raises:
        UserError: the other run goes on and on.
    """
    start, told = time.monotonic(), False
    while not lease.acquire():
        if time.monotonic() - start > patience:
            raise UserError(
                f"{folder}: the run of {lease.describe_owner()} is at work there; wait for it, or choose"
                " another hydra.run.dir"
            )
        if not told:
            log.info(
                "%s: waiting up to %.0f s for the run of %s to end", folder, patience, lease.describe_owner()
            )
        told = True
        time.sleep(0.5)


def finished(folder: Path, config: Mapping[str, Any]) -> Result | None:
    """The result that stands in the folder, if it is whole.

    Raises:
        UserError: it is of another config.
    """
    try:
        result = Result.read(folder / RESULT)
    except (FileNotFoundError, ValueError):
        return None
    if differing := differences(result.config, redact(config)):
        shown = "; ".join(differing[:3]) + ("; ..." if len(differing) > 3 else "")
        raise UserError(
            f"{folder} holds the result of another config ({shown}); choose another hydra.run.dir or"
            " hydra.sweep.dir, or replace it with resume=false"
        )
    return result


def discard_products(folder: Path) -> None:
    """Remove what an earlier run left, the record first: what stands there later is this run's or nothing."""
    for name in PRODUCTS:
        (
            (folder / name).unlink(missing_ok=True)
            if not (folder / name).is_dir()
            else shutil.rmtree(folder / name, ignore_errors=True)
        )


@contextmanager
def _kept(file: Path, status: Status) -> Iterator[None]:
    """Write the status now, whenever the progress has moved, and at the end with how it ended."""
    last = 0.0

    def write(**changes: Any) -> None:
        nonlocal last
        for name, value in changes.items():
            setattr(status, name, value)
        if "state" in changes or time.monotonic() - last > WRITE_EVERY:
            last, status.updated = time.monotonic(), time.time()
            _try_to_write(file, status)

    write(state="running")
    try:
        with console.watching(lambda step, done, total: write(step=step, done=done, total=total)):
            yield
    except Exception as error:
        write(
            state="failed",
            reason=str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}",
        )
        raise
    except (
        BaseException
    ) as error:  # Ctrl-C, or Slurm's signal that the job is ended and will be started again
        write(
            state="stopped",
            reason="interrupted" if isinstance(error, KeyboardInterrupt) else "ended from outside",
        )
        raise
    write(state="done", step="done", reason=None)


def _try_to_write(file: Path, status: Status) -> None:
    try:
        write_json(file, asdict(status))
    except OSError as error:
        log.warning("cannot write %s (%s)", file, error)
