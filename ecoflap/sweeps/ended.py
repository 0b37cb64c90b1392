"""How submitted jobs have ended: their values, or the errors in their logs."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn, JobStatus, filter_overrides

from ecoflap.errors import UserError
from ecoflap.sweeps.jobs import Job

log = logging.getLogger(__name__)

POLL = 5.0  # seconds until a job is looked at again


class Submitted(NamedTuple):
    """A submitted job.

    Attributes:
        job: the job.
        handle: submitit's handle of it.
    """

    job: Job
    handle: Any


def collect(
    submitted: Sequence[Submitted], folder: Path, alive: Callable[[str], bool] = lambda _: False
) -> dict[int, JobReturn]:
    """Wait for all jobs of a sweep; returns {number: how the job ended}.

    Args:
        submitted: the jobs.
        folder: the folder of the sweep.
        alive: whether the queue has a job of an id, although submitit takes it to have ended.
    """
    ended = {}
    for job, handle in submitted:
        try:
            ended[job.number] = _returned(handle, alive)
        except Exception as error:  # submitit's, for a job that failed, was cancelled or ran out of memory
            ended[job.number] = _failed(job, _last_line(error), handle.paths.stderr, folder)
    return ended


def _returned(handle: Any, alive: Callable[[str], bool]) -> Any:
    """Wait for a job; returns what it returned.

    Raises:
        Exception: submitit's, if it failed, or ended without a result.
    """
    from submitit.core.utils import UncompletedJobError

    while True:
        try:
            return handle.results()[0]
        except UncompletedJobError:
            if not alive(handle.job_id):
                raise
            time.sleep(POLL)


def _failed(job: Job, last: str, stderr: Path, folder: Path) -> JobReturn:
    """Log that a job failed, and write it into its status if it has none; returns that it did.

    Args:
        job: the job.
        last: the last line of its traceback.
        stderr: the file of its log.
        folder: of the sweep.
    """
    from ecoflap.run.folder import record_refusal

    refused = re.match(r"ecoflap\.errors\.\w+: ", last)
    reason = last[refused.end() :] if refused else last
    overrides = " ".join(filter_overrides(job.overrides))
    message = f"job {job.number} ({overrides}) failed: {reason}; its log: {stderr}"
    log.error(message)
    record_refusal(folder / str(job.number), reason)
    error = UserError(message) if refused else RuntimeError(message)
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


def _last_line(error: Exception) -> str:
    """The last line of the traceback in an error of submitit."""
    # Its message has submitit's own words, the traceback, and the paths of the logs.
    parts = [part.strip() for part in str(error).split("-" * 22)]
    lines = parts[1 if len(parts) > 1 else 0].splitlines()
    return lines[-1] if lines else type(error).__name__


def completed(value: Any) -> JobReturn:
    """The return of a job that has ended well, with its headline metric."""
    return JobReturn(status=JobStatus.COMPLETED, _return_value=value)
