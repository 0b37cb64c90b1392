"""The folder of a sweep: one is active in it at a time, and none takes the places of active jobs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import filter_overrides
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from ecoflap.errors import UserError
from ecoflap.storage.file_names import LEASE
from ecoflap.storage.lease import held, is_held
from ecoflap.sweeps.check import check_jobs
from ecoflap.sweeps.jobs import Job, composed, finished_values
from ecoflap.sweeps.rerun import command_of, recorded_command
from ecoflap.sweeps.submitted import ALIVE, slurm_states, submitted_jobs

log = logging.getLogger(__name__)

NUMBER = "${hydra.job.num}"
"""The name of a job's folder in that of its sweep."""
OPTION = re.compile(r"\$\{[^:}]*\}")
"""The value of another option in a text, such as ``${seed}``."""
REST = "wait for it, or choose another hydra.sweep.dir"


@contextmanager
def admitted(
    context: HydraContext, config: DictConfig, jobs: Sequence[Job], folder: Path
) -> Iterator[dict[int, float | None]]:
    """Claim the folder for a sweep whose jobs can run, or have finished before.

    Yields:
        {number of a job: its headline metric; None if it has to run}.

    Raises:
        UserError: if the folder or the place of a job is taken, a job can't run, or jobs have other folders
            than their numbers.
    """
    require_numbers(context, config, jobs)
    with claimed(folder):
        values = finished_values(context, config, jobs, folder)
        todo = [job for job in jobs if values[job.number] is None]
        unused = check_jobs(context, config, todo)
        require_free_places(folder, todo)
        for sentence in unused if len(todo) == len(jobs) else ():  # others may have used it
            log.warning("%s", sentence)
        yield values


def require_numbers(context: HydraContext, config: DictConfig, jobs: Sequence[Job]) -> None:
    """Refuse folders of jobs that are not their numbers in one folder, where all that reads a sweep looks.

    Raises:
        UserError: if they have other names, or lie in several folders.
    """
    sweep: Any = OmegaConf.to_container(config.hydra.sweep)
    if (subdir := sweep["subdir"]) != NUMBER:
        raise UserError(
            f"hydra.sweep.subdir={subdir}: the folder of a job has its number as its name, by which ecoflap"
            " status and report find it; leave this out, as they show the options of each job"
        )
    if OPTION.search(sweep["dir"]) is None:
        return
    folder = str(Path(str(config.hydra.sweep.dir)))
    for other in (_place(context, config, job) for job in jobs):
        if other != folder:
            raise UserError(
                f"hydra.sweep.dir={sweep['dir']} is {folder}, and {other} for one of the jobs; a sweep has"
                " one folder, in which ecoflap status and report find its jobs: leave out options that vary"
            )


def _place(context: HydraContext, config: DictConfig, job: Job) -> str:
    """The folder that a job's folder is in."""
    with composed(context, config, job) as (_, folder):
        return str(folder.parent)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Claim the folder for the process of one sweep, as long as that launches jobs or waits for them.

    Raises:
        UserError: if that of another sweep is active there.
    """
    with held(folder / LEASE, lambda owner: f"another sweep ({owner}) is active in {folder}; {REST}"):
        yield


def require_free_places(folder: Path, jobs: Sequence[Job]) -> None:
    """Refuse jobs in the places of others that wait in Slurm's queue or run.

    A job that is not alive may be replaced by one with other options, as a single run may.

    Args:
        folder: the folder of the sweep.
        jobs: the jobs that are to run.

    Raises:
        UserError: if the job of one's number has other options and is alive.
    """
    asked = {job.number: _options(job.overrides) for job in jobs}
    others = [
        job
        for job in submitted_jobs(folder)
        if job["number"] in asked and _options(job["overrides"]) != asked[job["number"]]
    ]
    slurm = slurm_states([job["id"] for job in others if job.get("id")])
    for job in others:
        if slurm.get(str(job.get("id"))) in ALIVE or is_held(_lease(folder, job)):
            what = f"job {job['number']} ({' '.join(filter_overrides(job['overrides']))})"
            raise UserError(f"{folder}: {what} has other options and is queued or active there; {REST}")


def command_to_record(hydra: DictConfig, folder: Path, jobs: Sequence[Job]) -> Mapping[str, Any]:
    """The command that ``--rerun-failed`` starts again in the folder of a sweep.

    It is that of the sweep, or an earlier one whose jobs these are only some of: it starts the others too.

    Args:
        hydra: Hydra's own config of the sweep.
        folder: the folder of the sweep.
        jobs: all jobs of the sweep, also those that have finished before.
    """
    known = {job["number"]: _options(job["overrides"]) for job in submitted_jobs(folder)}
    is_part = len(jobs) < len(known) and all(known.get(job.number) == _options(job.overrides) for job in jobs)
    return (recorded_command(folder) if is_part else None) or command_of(hydra)


def _lease(folder: Path, job: dict[str, Any]) -> Path:
    return folder / str(job["number"]) / LEASE


def _options(overrides: Sequence[str]) -> set[str]:
    """The options of a job but for ``resume``, which changes nothing of its result."""
    return {one for one in filter_overrides(overrides) if not one.lstrip("+").startswith("resume=")}
