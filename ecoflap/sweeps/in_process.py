"""The launcher of ``cluster=none``: the jobs of a sweep one after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn

from ecoflap.sweeps.claim import admitted, command_to_record
from ecoflap.sweeps.failures import Failures
from ecoflap.sweeps.frozen import freeze
from ecoflap.sweeps.jobs import numbered
from ecoflap.sweeps.submitted import record_jobs


class InProcessLauncher(BasicLauncher):
    """Hydra's own launcher, after the check of all jobs.

    Attributes:
        failures: the jobs that have failed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failures = Failures()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run every job, if all can run, with the configs as they were when that was checked."""
        assert self.hydra_context is not None
        assert self.config is not None
        freeze(self.hydra_context.config_loader)
        folder = Path(str(self.config.hydra.sweep.dir))
        jobs = numbered(job_overrides, initial_job_idx, folder)
        with admitted(self.hydra_context, self.config, jobs, folder):
            command = command_to_record(self.config.hydra, folder, jobs)
            record_jobs(folder, "none", [(job, None) for job in jobs], command)
            returns = super().launch(job_overrides, initial_job_idx)
        return self.failures.after(self.hydra_context, self.config, jobs, returns)
