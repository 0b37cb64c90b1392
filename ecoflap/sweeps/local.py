"""The launcher of ``cluster=local``: the jobs of a sweep as processes of this machine, a few at a time."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.core.utils import JobReturn, filter_overrides
from typing_extensions import override

from ecoflap.errors import UserError, require_positive
from ecoflap.sweeps.ended import Submitted, collect
from ecoflap.sweeps.jobs import Job
from ecoflap.sweeps.launcher import SubmititLauncher, logs_in
from ecoflap.sweeps.submitted import record_jobs

log = logging.getLogger(__name__)

CONTROLLERS = ".submitit/controllers.log"
"""What submitit's processes that start and watch the jobs write to stderr, in the folder of a sweep."""
DEVICES = "CUDA_VISIBLE_DEVICES"


class LocalLauncher(SubmititLauncher):
    """Runs jobs as processes of this machine, a few at a time."""

    _EXECUTOR = "local"

    @override
    def variables(self) -> dict[str, str | None]:
        """The devices of this process, or the first of them that ``gpus_per_node`` asks for.

        submitit shows jobs no device where nothing is asked for, and else the first ones of the machine.
        """
        visible, asked = os.environ.get(DEVICES), self.params["gpus_per_node"]
        if asked is None:
            return {DEVICES: visible}
        return {} if visible is None else {DEVICES: ",".join(visible.split(",")[:asked])}

    @override
    def submit(self, jobs: Sequence[Job], folder: Path, command: Mapping[str, Any]) -> dict[int, JobReturn]:
        """Run the jobs, ``parallel`` at a time; Ctrl-C ends the running ones."""
        require_positive("hydra.launcher", SimpleNamespace(**self.params), "parallel")
        if (nodes := self.params["nodes"]) != 1:
            raise UserError(
                f"hydra.launcher.nodes={nodes}: cluster=local has one node, this machine; leave it out, or"
                " use cluster=slurm"
            )
        _discard_results(folder)
        executor, submitted = self.executor(folder), list[Submitted]()
        waiting = list(zip(jobs, self.packed(jobs, folder), strict=True))
        record_jobs(folder, self._EXECUTOR, [(job, None) for job in jobs], command)
        try:
            while waiting or not all(one.handle.done() for one in submitted):
                if waiting and sum(not one.handle.done() for one in submitted) < self.params["parallel"]:
                    job, packed = waiting.pop(0)
                    log.info("\t#%d : %s", job.number, " ".join(filter_overrides(job.overrides)))
                    with _errors_into(folder / CONTROLLERS):
                        submitted.append(Submitted(job, executor.submit(packed)))
                else:
                    time.sleep(0.2)
        except KeyboardInterrupt:
            for one in submitted:
                one.handle.cancel()
            log.warning("the running jobs end; to resume: ecoflap status %s --rerun-failed", folder)
            raise
        return collect(submitted, folder)


def _discard_results(folder: Path) -> None:
    """Remove what earlier jobs of a sweep returned: submitit names these files by ids of processes.

    Such an id is given again, in a container at every start, and a killed job returns nothing.
    """
    for file in logs_in(folder).parent.glob("*/*_result.pkl"):
        file.unlink(missing_ok=True)


@contextmanager
def _errors_into(file: Path) -> Iterator[None]:
    """Append what processes that start in this context write to stderr to a file.

    The one that submitit starts for each job gets the Ctrl-C of a terminal, too, and would print a traceback.
    """
    with file.open("a") as errors, open(os.dup(2), "w") as terminal:
        os.dup2(errors.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal.fileno(), 2)
