"""The first thing that a job runs: it puts the code that was submitted before all other on the path, and only
then loads what was pickled.

This module is pickled whole into each job, so it imports nothing of this project.
"""

from __future__ import annotations

import os
import sys
from typing import Any


class Bootstrap:
    """One job of a sweep, pickled, and the code that it belongs to."""

    def __init__(self, code: str | None, parts: list[str], job: bytes) -> None:
        """Keep what the job needs.

        Args:
            code: folder of a snapshot; null for the code that is installed.
            parts: folders of parts outside the package, behind all others on the path.
            job: a function and its arguments, pickled.
        """
        self.code, self.parts, self.job = code, parts, job

    def __call__(self) -> Any:
        """Run the job."""
        import cloudpickle

        if self.code is not None:
            sys.path.insert(0, self.code)
        sys.path += [folder for folder in self.parts if folder not in sys.path]
        _name_processes()
        function, arguments = cloudpickle.loads(self.job)
        return function(*arguments)

    def checkpoint(self) -> Any:
        """What is queued again when Slurm ends the job early: the same, since a run goes on from what it
        finds in its folder.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _name_processes() -> None:
    """Tell each process of a job that has several who it is, in the variables that torchrun would set."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    job = JobEnvironment()
    if job.num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.num_nodes == 1:
            os.environ["MASTER_ADDR"] = "127.0.0.1"  # whatever the node's name resolves to
