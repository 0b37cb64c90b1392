"""The jobs of a sweep: what they are, where they write, which have finished, and the list of them in the
sweep's folder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from ecoflap.errors import NumericalError, SweepFailed, UserError
from ecoflap.storage.file_names import JOBS, RESULT


class Job(NamedTuple):
    """One job.

    Attributes:
        number: its place in the sweep.
        overrides: of the config.
    """

    number: int
    overrides: list[str]


def numbered(job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
    """The jobs of a sweep.

    Raises:
        UserError: there are none.
    """
    if not job_overrides:
        raise UserError(
            "the sweep has no jobs: one of its axes, such as a range(), has no values; give it some:"
            " key=VALUE,VALUE"
        )
    return [Job(first + place, list(overrides)) for place, overrides in enumerate(job_overrides)]


def finished_values(
    context: HydraContext, config: DictConfig, jobs: Sequence[Job], folder: Path
) -> dict[int, float | None]:
    """The headline metrics of the jobs that have finished before, by number; null for each that has to run.

    A job's config is composed to know what it would write, and where. In a folder without any result there is
    nothing to find, and a sweep that is submitted for the first time is not composed twice.

    Args:
        context: Hydra's.
        config: of the sweep.
        jobs: of the sweep.
        folder: of the sweep.

    Raises:
        UserError: the result of another config stands where a job would write.
    """
    if next(folder.rglob(RESULT), None) is None:
        return dict.fromkeys(job.number for job in jobs)
    return {job.number: _finished_value(context, config, job) for job in jobs}


@contextmanager
def composed(context: HydraContext, config: DictConfig, job: Job) -> Iterator[tuple[DictConfig, Path]]:
    """A job's config and folder, while Hydra's global state is as it will be when the job runs.

    Args:
        context: Hydra's.
        config: of the sweep.
        job: of the sweep.
    """
    whole = context.config_loader.load_sweep_config(config, list(job.overrides))
    folder = Path(str(whole.hydra.sweep.dir))
    with open_dict(whole):
        whole.hydra.job.num = job.number
        folder = folder / str(whole.hydra.sweep.subdir)
        whole.hydra.runtime.output_dir = str(folder.absolute())
    own = copy.deepcopy(whole)
    with open_dict(own):
        del own["hydra"]
    earlier = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(whole)
    try:
        yield own, folder
    finally:
        HydraConfig.instance().cfg = earlier


def _finished_value(context: HydraContext, config: DictConfig, job: Job) -> float | None:
    """The headline metric of a job that has finished in the folder that it would write to; null where it has
    to run.
    """
    with composed(context, config, job) as (own, folder):
        if not own.resume or not (folder / RESULT).is_file():
            return None
        values: Any = OmegaConf.to_container(own, resolve=True)
    from ecoflap.run.folder import finished

    result = finished(folder, values)
    return None if result is None else result.headline()


def record_jobs(folder: Path, launcher: str, ids: Sequence[tuple[Job, str | None]]) -> None:
    """Write which jobs the sweep has and what the queue calls them, for ``ecoflap status``; those of
    an earlier submission stay in the list.
    """
    from ecoflap.storage.files import read_json, write_json

    known = {job["number"]: job for job in (read_json(folder / JOBS) or {}).get("jobs", [])}
    known |= {job.number: {"number": job.number, "overrides": job.overrides, "id": id} for job, id in ids}
    write_json(folder / JOBS, {"launcher": launcher, "jobs": [known[number] for number in sorted(known)]})


def raise_failures(config: DictConfig, jobs: Sequence[Job], returns: Sequence[JobReturn]) -> None:
    """End a sweep some of whose jobs have failed; a sweeper that may lose some (``max_failure_rate``) is left
    to count them itself.

    Args:
        config: of the sweep.
        jobs: of the sweep.
        returns: how each ended.

    Raises:
        SweepFailed: so they have.
    """
    failed = [(job, done) for job, done in zip(jobs, returns, strict=True) if done.status == JobStatus.FAILED]
    if not failed or config.hydra.get("sweeper", {}).get("max_failure_rate"):
        return
    numbers = ", ".join(str(job.number) for job, _ in failed[:10]) + (", ..." if len(failed) > 10 else "")
    refused = all(isinstance(done._return_value, UserError | NumericalError) for _, done in failed)
    raise SweepFailed(
        f"{len(failed)} of {len(jobs)} jobs failed ({numbers}), for the reasons above; "
        f"ecoflap status {config.hydra.sweep.dir} --rerun-failed runs them again",
        2 if refused else 1,
    )
