"""The folder of a run: which run owns it, how far that run is, and whether it resumes an earlier one.

``status.json`` says what the run does, for readers and for ``ecoflap status``; ``.lease`` proves that it is
alive. A run that is started again with the same config in the same folder resumes where the last one stopped,
and does nothing if that one had finished.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ecoflap.console.progress import watching
from ecoflap.errors import UserError
from ecoflap.storage.file_names import (
    ALLOCATION,
    BENCH,
    BLOCKS,
    CHECKPOINT,
    FINETUNE,
    LEASE,
    PREDICTIONS,
    RESULT,
    SCORES,
    STATUS,
    TRAINING,
)
from ecoflap.storage.files import read_json, remove, remove_abandoned, write_json
from ecoflap.storage.lease import held
from ecoflap.storage.results import Result
from ecoflap.storage.results.environment import redact, versions
from ecoflap.storage.results.identity import differences, run_id
from ecoflap.storage.results.record import read_result

log = logging.getLogger(__name__)

PRODUCTS = (RESULT, SCORES, ALLOCATION, FINETUNE, TRAINING, CHECKPOINT, BLOCKS, PREDICTIONS, BENCH)
WRITE_EVERY = 2.0  # seconds between two updates of the status
PATIENCE = 90.0  # seconds to wait for another run to end, as for the last process of a requeued job


def slurm_job() -> str | None:
    """The id of this Slurm job, as squeue shows it; None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


@dataclass
class Status:
    """The contents of ``status.json``.

    Attributes:
        state: running, done, failed or stopped.
        key: hash of the config and the library versions of the run that the products in the folder are of.
        step: the current step.
        done: items of the step that are done.
        total: items of the step; None if unknown.
        since: when the step began, in seconds since the epoch; None before the first.
        reason: why the run failed or stopped.
        started: when it was started, in seconds since the epoch.
        updated: when this file was written, in seconds since the epoch.
        starts: how often the run was started.
        host: the machine that it runs on.
        pid: the id of its process.
        job: the id of its Slurm job; None outside Slurm.
    """

    state: str = "running"
    key: str = ""
    step: str = "start"
    done: int = 0
    total: int | None = None
    since: float | None = None
    reason: str | None = None
    started: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    starts: int = 1
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    job: str | None = field(default_factory=slurm_job)


class Found(NamedTuple):
    """What an earlier run left in a folder.

    Attributes:
        result: the result of a finished run of the same config; None if there is none.
        unfinished: whether a run of the same config was stopped there and can be resumed.
        take_over: to be called once products of other runs are gone; from then on, the folder is that of this
            run. One that is refused before leaves it to the run that was stopped there.
    """

    result: Result | None
    unfinished: bool
    take_over: Callable[[], None]


def _require_utf8(folder: Path) -> None:
    """Refuse a path that tokenizers and safetensors can't open, and no record can hold.

    Raises:
        UserError: if it has other bytes, or Python reads names in another encoding.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the path {str(folder)!a} is not UTF-8, in which models and records are written; rename it, or"
            " set PYTHONUTF8=1 if your terminal shows it as it should be"
        ) from None


@contextmanager
def claimed(
    folder: Path,
    config: Mapping[str, Any],
    resume: bool,
    patience: float = PATIENCE,
) -> Iterator[Found]:
    """Claim the folder for one run, write its status, and yield what an earlier run left there.

    Temporary files of killed processes are removed.

    Args:
        folder: the folder of the run; created if needed.
        config: the resolved config.
        resume: resume a run of the same config; otherwise ignore what is there.
        patience: seconds to wait for another run in the folder to end.

    Raises:
        UserError: if another run is active there, a run of another config finished there, or its path is not
            UTF-8.
    """
    _require_utf8(folder.absolute())

    def refusal(owner: str) -> str:
        return f"another run ({owner}) is active in {folder}; wait for it, or choose another hydra.run.dir"

    with held(folder / LEASE, refusal, patience):
        remove_abandoned(folder)
        key, earlier = run_id({**config, "versions": versions()}), read_json(folder / STATUS) or {}
        result = finished(folder, config) if resume else None
        unfinished = resume and earlier.get("key") == key
        starts = int(earlier.get("starts", 0)) + 1 if unfinished else 1
        status = Status(key=str(earlier.get("key", "")), starts=starts)

        def take_over() -> None:
            status.key = key
            _try_to_write(folder / STATUS, status)

        ended = result is not None and earlier.get("state") == "done"  # its times stay as they are
        with nullcontext() if ended else _status_updates(folder / STATUS, status):
            yield Found(result, unfinished, take_over)


def finished(folder: Path, config: Mapping[str, Any]) -> Result | None:
    """The result in the folder; None if it is missing, damaged, or of a release that wrote other fields.

    Raises:
        UserError: if it belongs to another config.
    """
    result = read_result(folder)
    config_there = result.config if result is not None else _config_of_unreadable(folder)
    if config_there is None:
        return None
    if differing := differences(config_there, redact(config)):
        shown = "; ".join(differing[:3]) + ("; ..." if len(differing) > 3 else "")
        raise UserError(
            f"{folder} holds the result of another config ({shown}); choose another hydra.run.dir or"
            " hydra.sweep.dir, or replace it with resume=false"
        )
    return result


def _config_of_unreadable(folder: Path) -> dict[str, Any] | None:
    """The config in a result that this release can't read; None if it is missing or damaged."""
    record = read_json(folder / RESULT)
    config = record.get("config") if isinstance(record, dict) else None
    return config if isinstance(config, dict) else None


def discard_products(folder: Path) -> None:
    """Remove the products of an earlier run, its result first."""
    for name in PRODUCTS:
        remove(folder / name)


@contextmanager
def _status_updates(file: Path, status: Status) -> Iterator[None]:
    """Write the status at the start, as the run progresses, and at the end."""
    last = 0.0

    def write(**changes: Any) -> None:
        nonlocal last
        for name, value in changes.items():
            setattr(status, name, value)
        if "state" in changes or time.monotonic() - last > WRITE_EVERY:
            last, status.updated = time.monotonic(), time.time()
            _try_to_write(file, status)

    def progressed(step: str, done: int, total: int | None) -> None:
        since = time.time() if done == 0 else status.since
        write(step=step, done=done, total=total, since=since)

    write(state="running")
    try:
        with watching(progressed):
            yield
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        write(state="failed", reason=reason)
        raise
    except BaseException as error:  # Ctrl-C, or the signal of Slurm before it requeues the job
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else "ended from outside"
        write(state="stopped", reason=reason)
        raise
    write(state="done", step="done", reason=None)


def record_refusal(folder: Path, reason: str) -> None:
    """Write that a run failed before it began; nothing if its folder has a status."""
    if not (folder / STATUS).is_file():
        _try_to_write(folder / STATUS, Status(state="failed", reason=reason))


def _try_to_write(file: Path, status: Status) -> None:
    try:
        write_json(file, asdict(status))
    except OSError as error:
        log.warning("cannot write %s (%s)", file, error)
