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
from ecoflap.sweeps.launcher import SubmititLauncher
from ecoflap.sweeps.scoring import scoring_jobs
from ecoflap.sweeps.submitted import record_jobs

log = logging.getLogger(__name__)


class SlurmLauncher(SubmititLauncher):
    """Queues jobs as one array of Slurm."""

    _EXECUTOR = "slurm"

    @override
    def submit(self, jobs: Sequence[Job], folder: Path, command: Mapping[str, Any]) -> dict[int, JobReturn]:
        """Queue the array; with ``scores_first``, after an array of jobs that compute the scores."""
        if shutil.which("srun") is None:
            raise UserError(
                "cluster=slurm: there is no Slurm on this machine (no srun); submit from a login node, or use"
                " cluster=local or none"
            )
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
        if not self.params["wait"]:
            return {one.job.number: completed(None) for one in submitted}
        return collect(submitted, folder)

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
