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
from ecoflap.sweeps.bootstrap import Bootstrap
from ecoflap.sweeps.ended import Submitted, collect
from ecoflap.sweeps.jobs import Job
from ecoflap.sweeps.launcher import SubmititLauncher, logs_in
from ecoflap.sweeps.submitted import record_jobs

log = logging.getLogger(__name__)

CONTROLLERS = ".submitit/controllers.log"
"""What submitit's processes that start and watch the jobs write to stderr, in the folder of a sweep."""
DEVICES = "CUDA_VISIBLE_DEVICES"
OPTION = "hydra.launcher.gpus_per_node"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class LocalLauncher(SubmititLauncher):
    """Runs jobs as processes of this machine, a few at a time."""

    _EXECUTOR = "local"

    @override
    def submit(self, jobs: Sequence[Job], folder: Path, command: Mapping[str, Any]) -> dict[int, JobReturn]:
        """Run the jobs, ``parallel`` at a time; Ctrl-C ends the running ones."""
        self._require_possible()
        shares = shares_of_devices(self.params["gpus_per_node"], self.params["parallel"])
        at_a_time = min(len(shares), len(jobs)) * self.params["tasks_per_node"]
        threads = share_of_threads(self.params["cpus_per_task"], at_a_time)
        _discard_results(folder)
        executor, submitted = self.executor(folder), list[Submitted]()
        waiting = list(zip(jobs, self.packed(jobs, folder), strict=True))
        record_jobs(folder, self._EXECUTOR, [(job, None) for job in jobs], command)
        running: dict[int, Submitted] = {}  # by the number of its share
        try:
            while waiting or not all(one.handle.done() for one in submitted):
                free = [n for n in range(len(shares)) if n not in running or running[n].handle.done()]
                if waiting and free:
                    job, packed = waiting.pop(0)
                    packed.variables.update({DEVICES: shares[free[0]], **threads})
                    submitted.append(_submitted(executor, job, packed, folder))
                    running[free[0]] = submitted[-1]
                else:
                    time.sleep(0.2)
        except KeyboardInterrupt:
            for one in submitted:
                one.handle.cancel()
            log.warning("the running jobs end; to resume: ecoflap status %s --rerun-failed", folder)
            raise
        return collect(submitted, folder)

    def _require_possible(self) -> None:
        """Refuse options that this machine can't follow.

        Raises:
            UserError: if there are some.
        """
        require_positive("hydra.launcher", SimpleNamespace(**self.params), "parallel")
        if (nodes := self.params["nodes"]) != 1:
            raise UserError(
                f"hydra.launcher.nodes={nodes}: cluster=local has one node, this machine; leave it out, or"
                " use cluster=slurm"
            )


def shares_of_devices(asked: int | None, parallel: int) -> list[str | None]:
    """What CUDA_VISIBLE_DEVICES is for each of the jobs that run at a time; None leaves it unset.

    submitit shows jobs no device where nothing is asked for, and else the first ones of the machine.

    Args:
        asked: number of devices for each job, which no other job sees; None shows each job all of them.
        parallel: number of jobs at a time, if there are enough devices.

    Raises:
        UserError: if there are fewer devices than one job asks for.
    """
    visible = os.environ.get(DEVICES)
    if asked == 0:
        return [""] * parallel
    import torch

    found = torch.cuda.device_count()
    if asked is None:
        if found > 1:
            log.info("jobs with device=auto use the first of %d GPUs; %s=1 gives each its own", found, OPTION)
        return [visible] * parallel
    if (at_a_time := min(parallel, found // asked)) < 1:
        raise UserError(f"{OPTION}={asked}: torch sees {found} GPUs here; ask for fewer, or leave it out")
    if at_a_time < parallel:
        log.info("%d jobs at a time: %d GPUs, %d for each", at_a_time, found, asked)
    names = [str(number) for number in range(found)] if visible is None else visible.split(",")
    return [",".join(names[share * asked : (share + 1) * asked]) for share in range(at_a_time)]


def share_of_threads(asked: int | None, processes: int) -> dict[str, str | None]:
    """The variable with the number of threads of each of the processes that compute at the same time.

    torch would start a thread for every core in each of them, which then wait for each other.

    Args:
        asked: ``cpus_per_task``; None is an equal share of this process's threads, or what the user has set.
        processes: number of processes that run at the same time.
    """
    if asked is None and any(name in os.environ for name in THREADS):
        return {}
    import torch

    return {THREADS[0]: str(asked or max(1, torch.get_num_threads() // processes))}


def _submitted(executor: Any, job: Job, packed: Bootstrap, folder: Path) -> Submitted:
    """Start a job of the sweep in a folder."""
    log.info("\t#%d : %s", job.number, " ".join(filter_overrides(job.overrides)))
    with _errors_into(folder / CONTROLLERS):
        return Submitted(job, executor.submit(packed))


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
