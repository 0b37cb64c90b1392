"""The entry point of a job: put the submitted code first on the import path, then unpickle the job.

This module is pickled by value into each job, so it imports nothing of this project.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

LAUNCH_NODE = "SLURM_LAUNCH_NODE_IPADDR"
"""The variable with the address of the node that the tasks were launched from, which is the first."""


class Bootstrap:
    """A pickled job of a sweep, and the code that it runs.

    Attributes:
        code: the folder of a code snapshot; None for the installed code.
        parts: folders of parts outside the package, last on the import path.
        job: a function and its arguments, pickled.
        variables: environment variables to set for the job, instead of what submitit sets; None unsets one.
    """

    def __init__(self, code: str | None, parts: list[str], job: bytes) -> None:
        self.code, self.parts, self.job = code, parts, job
        self.variables: dict[str, str | None] = {}

    def __call__(self) -> Any:
        """Run the job."""
        import cloudpickle

        if self.code is not None:
            sys.path.insert(0, self.code)
        sys.path += [folder for folder in self.parts if folder not in sys.path]
        for name in self.variables:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in self.variables.items() if value is not None})
        _name_processes()
        function, arguments = cloudpickle.loads(self.job)
        return function(*arguments)

    def checkpoint(self) -> Any:
        """The job to requeue when Slurm ends this one early: the same, as a run resumes in its folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _name_processes() -> None:
    """Set the variables of torchrun in each process of a job that has several."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    job = JobEnvironment()
    if job.num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.num_nodes == 1:
            os.environ["MASTER_ADDR"] = "127.0.0.1"  # whatever the node's name resolves to
        elif not _resolves(os.environ["MASTER_ADDR"]) and (address := os.environ.get(LAUNCH_NODE)):
            os.environ["MASTER_ADDR"] = address


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False
