"""The launcher of ``cluster=slurm``: the jobs of a sweep as one array of Slurm."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from typing_extensions import override

from ecoflap.errors import UserError
from ecoflap.sweeps.ended import Submitted, collect, completed
from ecoflap.sweeps.jobs import Job
from ecoflap.sweeps.launcher import SubmititLauncher, logs_in
from ecoflap.sweeps.scoring import scoring_jobs
from ecoflap.sweeps.submitted import ALIVE, record_jobs, slurm_states, submitted_jobs

log = logging.getLogger(__name__)


def alive_jobs(jobs: Sequence[Job], folder: Path) -> list[Submitted]:
    """The jobs of the sweep in a folder that an earlier submission has in Slurm, queued or running.

    Args:
        jobs: jobs of the sweep, of which none is there with other options.
        folder: the folder of the sweep.
    """
    import submitit

    ids = {job["number"]: str(job["id"]) for job in submitted_jobs(folder) if job.get("id")}
    ids = {job.number: ids[job.number] for job in jobs if job.number in ids}
    states = slurm_states(list(ids.values()))
    alive = [job for job in jobs if states.get(ids.get(job.number, "")) in ALIVE]
    return [
        Submitted(job, submitit.SlurmJob(folder=logs_in(folder), job_id=ids[job.number])) for job in alive
    ]


def _is_alive(id: str) -> bool:
    """Whether Slurm still has a job, such as one that is suspended, which submitit takes to have ended."""
    return slurm_states([id]).get(id) in ALIVE


class SlurmLauncher(SubmititLauncher):
    """Queues jobs as one array of Slurm."""

    _EXECUTOR = "slurm"

    @override
    def submit(self, jobs: Sequence[Job], folder: Path, command: Mapping[str, Any]) -> dict[int, JobReturn]:
        """Queue the array; with ``scores_first``, after an array of jobs that compute the scores.

        Jobs that an earlier submission has in Slurm are waited for, and not queued a second time.
        """
        if shutil.which("srun") is None:
            raise UserError(
                "cluster=slurm: there is no Slurm on this machine (no srun); submit from a login node, or use"
                " cluster=local or none"
            )
        earlier = alive_jobs(jobs, folder)
        if earlier:
            known = {one.job.number for one in earlier}
            jobs = [job for job in jobs if job.number not in known]
            log.info("%d jobs are in Slurm already, such as %s", len(earlier), earlier[0].handle.job_id)
        submitted = [*earlier, *(self._queue_all(jobs, folder, command) if jobs else ())]
        if not self.params["wait"]:
            return {one.job.number: completed(None) for one in submitted}
        try:
            return collect(submitted, folder, _is_alive)
        except KeyboardInterrupt:
            arrays = " ".join(dict.fromkeys(one.handle.job_id.partition("_")[0] for one in submitted))
            log.warning(
                "the jobs stay in Slurm; ecoflap status %s shows them, scancel %s ends them", folder, arrays
            )
            raise

    def _queue_all(self, jobs: Sequence[Job], folder: Path, command: Mapping[str, Any]) -> list[Submitted]:
        """Queue the jobs, after those that compute their scores if that is asked for, and record them."""
        dependency = self.params["dependency"]
        first = self.params["scores_first"]
        if first and (scoring := scoring_jobs(self.hydra_context, self.config, jobs)):
            queued = self._queue(scoring, folder, dependency)
            array = queued[0].handle.job_id.split("_")[0]
            log.info("%d jobs compute scores first: %s", len(scoring), array)
            # afterany: if scoring fails, each job of the sweep fails by itself and says why.
            dependency = ",".join(filter(None, [dependency, f"afterany:{array}"]))
        submitted = self._queue(jobs, folder, dependency)
        ids = [(one.job, one.handle.job_id) for one in submitted]
        record_jobs(folder, self._EXECUTOR, ids, command)
        log.info("%d jobs queued; ecoflap status %s", len(submitted), folder)
        return submitted

    def _queue(self, jobs: Sequence[Job], folder: Path, dependency: str | None) -> list[Submitted]:
        extra = dict(self.params.get("additional_parameters") or {})
        if dependency is not None:
            extra["dependency"] = dependency
        from submitit.core.utils import FailedJobError

        executor = self.executor(folder, additional_parameters=extra)
        packed = self.packed(jobs, folder)
        try:
            with executor.batch():
                handles = [executor.submit(one) for one in packed]
        except FailedJobError as error:
            said = " ".join(str(error).split())
            raise UserError(
                f"cluster=slurm: Slurm takes none of the {len(jobs)} jobs ({said}); correct hydra.launcher.*,"
                " such as partition"
            ) from None
        return [Submitted(job, handle) for job, handle in zip(jobs, handles, strict=True)]
