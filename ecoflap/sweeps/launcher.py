"""Hydra launchers on top of submitit: each job of a sweep is a process of this machine, or a job of Slurm.

Beyond submitit's own launchers: jobs of a checkout run the code as it was when they were submitted; a failed
job fails for Slurm too, with its traceback in its own log; a killed job does not hide the results of others;
jobs that have finished before are not run again; and ``jobs.json`` in the sweep's folder lists the jobs for
``ecoflap status``. Imports no torch, as Hydra imports it for ``--help``.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.types import HydraContext
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

from ecoflap.console.startup import collect_less_garbage
from ecoflap.errors import UserError, require_positive
from ecoflap.run.import_path import beside, config_folders
from ecoflap.storage.installation import checkout, conf_folder
from ecoflap.sweeps.check import check_jobs
from ecoflap.sweeps.claim import claimed, require_free_places
from ecoflap.sweeps.jobs import Job, finished_values, numbered, raise_failures
from ecoflap.sweeps.rerun import command_of
from ecoflap.sweeps.scoring import scoring_jobs
from ecoflap.sweeps.submitted import record_jobs

log = logging.getLogger(__name__)

OWN = ("parallel", "snapshot", "wait", "dependency", "scores_first", "submitit_folder")
RETRIES = ("max_num_timeout",)  # options that submitit takes when an executor is built
COMMON = {field.name for field in fields(BaseQueueConf)}


class Submitted(NamedTuple):
    """A submitted job.

    Attributes:
        job: the job.
        handle: submitit's handle of it.
    """

    job: Job
    handle: Any


class _Launcher(BaseSubmititLauncher):  # type: ignore[misc]
    """The base of both launchers.

    Attributes:
        parts: {file: hash} of the parts outside the package, as the jobs were submitted with them.
    """

    parts: Mapping[str, str] = MappingProxyType({})

    def __call__(self, *arguments: Any) -> JobReturn:  # type: ignore[override]
        """Run a job where it was sent to; raise its error, so that the queue sees the failure."""
        from ecoflap.sweeps.snapshot import require_unchanged

        collect_less_garbage()
        require_unchanged(self.parts)
        done = super().__call__(*arguments)
        if done.status == JobStatus.FAILED:
            raise done._return_value
        return done

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit every job that has not finished before, if all of them can run, and wait for all."""
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        jobs = numbered(job_overrides, initial_job_idx)
        with claimed(folder):
            values = finished_values(self.hydra_context, self.config, jobs, folder)
            todo = [job for job in jobs if values[job.number] is None]
            if len(todo) < len(jobs):
                log.info("%d of %d jobs have finished before", len(jobs) - len(todo), len(jobs))
            check_jobs(self.hydra_context, self.config, todo)
            self.check_machine()
            require_free_places(folder, todo)
            ended = self.submit(todo, folder) if todo else {}
        returns = [ended.get(job.number) or _completed(values[job.number]) for job in jobs]
        raise_failures(self.config, jobs, returns)
        return returns

    @abstractmethod
    def check_machine(self) -> None:
        """Refuse to submit jobs from a machine that can't.

        Raises:
            UserError: if this machine can't submit them.
        """

    @abstractmethod
    def submit(self, jobs: Sequence[Job], folder: Path) -> dict[int, JobReturn]:
        """Submit the jobs; returns {number: how the job ended}."""

    def executor(self, folder: Path, **more: Any) -> Any:
        """The executor of submitit with this launcher's options and some more."""
        import submitit

        def with_prefix(name: str) -> str:
            return f"{self._EXECUTOR}_{name}"

        retries = {with_prefix(name): self.params[name] for name in RETRIES if name in self.params}
        logs = folder / ".submitit" / "%j"
        executor = submitit.AutoExecutor(folder=logs, cluster=self._EXECUTOR, **retries)
        options = {
            name if name in COMMON else with_prefix(name): value
            for name, value in {**self.params, **more}.items()
            if name not in (*OWN, *RETRIES)
        }
        executor.update_parameters(**options)
        return executor

    def packed(self, jobs: Sequence[Job], folder: Path) -> list[Any]:
        """The jobs as submitit pickles them, with the code that they run: a snapshot or the package."""
        import cloudpickle

        from ecoflap.sweeps import bootstrap
        from ecoflap.sweeps.snapshot import hashes_of_parts, take_snapshot

        project = checkout() if self.params["snapshot"] else None
        code = take_snapshot(folder, project) if project is not None else None
        launcher, state = self._with_configs_of(code) if code else self, Singleton.get_state()
        configs = config_folders(self.hydra_context.config_loader.get_search_path())
        parts = [beside(folder) for folder in configs]
        if self.params["snapshot"]:
            launcher.parts = hashes_of_parts(configs, parts)
        cloudpickle.register_pickle_by_value(bootstrap)
        packed = []
        for job in jobs:
            call = (job.overrides, "hydra.sweep.dir", job.number, f"job_id_for_{job.number}", state)
            pickled = cloudpickle.dumps((launcher, call))
            packed.append(bootstrap.Bootstrap(None if code is None else str(code), parts, pickled))
        return packed

    def _with_configs_of(self, code: Path) -> _Launcher:
        """This launcher with the configs of a code snapshot."""
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
        from hydra.core.config_search_path import SearchPathElement

        search, live = ConfigSearchPathImpl(), conf_folder()
        for element in self.hydra_context.config_loader.get_search_path().get_path():
            ours = Path(element.path.removeprefix("file://")).resolve() == live.resolve()
            search.config_search_path.append(
                SearchPathElement(element.provider, f"file://{code / 'conf'}") if ours else element
            )
        context = HydraContext(ConfigLoaderImpl(search), self.hydra_context.callbacks)
        other = type(self)(**self.params)
        other.setup(hydra_context=context, task_function=self.task_function, config=self.config)
        return other


class LocalLauncher(_Launcher):
    """Runs jobs as processes of this machine, a few at a time."""

    _EXECUTOR = "local"

    def check_machine(self) -> None:
        """Refuse ``parallel`` below one."""
        require_positive("hydra.launcher", SimpleNamespace(**self.params), "parallel")

    def submit(self, jobs: Sequence[Job], folder: Path) -> dict[int, JobReturn]:
        """Run the jobs, ``parallel`` at a time; Ctrl-C ends the running ones."""
        executor, submitted = self.executor(folder), list[Submitted]()
        waiting = list(zip(jobs, self.packed(jobs, folder), strict=True))
        command = command_of(self.config.hydra)
        record_jobs(folder, self._EXECUTOR, [(job, None) for job in jobs], command)
        try:
            while waiting or not all(one.handle.done() for one in submitted):
                if waiting and sum(not one.handle.done() for one in submitted) < self.params["parallel"]:
                    job, packed = waiting.pop(0)
                    log.info("\t#%d : %s", job.number, " ".join(filter_overrides(job.overrides)))
                    submitted.append(Submitted(job, executor.submit(packed)))
                else:
                    time.sleep(0.2)
        except KeyboardInterrupt:
            for one in submitted:
                one.handle.cancel()
            raise
        return _collect(submitted, folder)


class SlurmLauncher(_Launcher):
    """Queues jobs as one array of Slurm."""

    _EXECUTOR = "slurm"

    def check_machine(self) -> None:
        """Refuse a machine without Slurm."""
        if shutil.which("srun") is None:
            raise UserError(
                "cluster=slurm: there is no Slurm on this machine (no srun); submit from a login node, or use"
                " cluster=local or none"
            )

    def submit(self, jobs: Sequence[Job], folder: Path) -> dict[int, JobReturn]:
        """Queue the array; with ``scores_first``, after an array of jobs that compute the scores."""
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
        record_jobs(folder, self._EXECUTOR, ids, command_of(self.config.hydra))
        log.info("%d jobs queued; ecoflap status %s", len(submitted), folder)
        if not self.params["wait"]:
            return {one.job.number: _completed(None) for one in submitted}
        return _collect(submitted, folder)

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


def _collect(submitted: Sequence[Submitted], folder: Path) -> dict[int, JobReturn]:
    """Wait for all jobs of the sweep in a folder; returns {number: how the job ended}."""
    ended = {}
    for job, handle in submitted:
        try:
            ended[job.number] = handle.results()[0]
        except Exception as error:  # submitit's, for a job that failed, was cancelled or ran out of memory
            ended[job.number] = _failed(job, _last_line(error), handle.paths.stderr, folder)
    return ended


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


def _completed(value: Any) -> JobReturn:
    return JobReturn(status=JobStatus.COMPLETED, _return_value=value)
