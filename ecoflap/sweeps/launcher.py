"""Hydra launchers that run each job of a sweep by itself, through submitit: as a process on this machine, or
as a job of Slurm.

Beyond submitit's own launchers: jobs of a checkout run the code as it was when they were submitted; a job
that fails is failed for Slurm too, with its traceback in its own log; one that is killed does not hide
the others' results; jobs that have finished before are not run again; and ``jobs.json`` in the sweep's folder
says what was submitted, for ``ecoflap status``. Light to import: Hydra imports it for ``--help``.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.types import HydraContext
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

from ecoflap.errors import UserError, require_positive
from ecoflap.run.import_path import folders_of
from ecoflap.storage.installation import checkout, conf_folder
from ecoflap.sweeps.check import check_jobs
from ecoflap.sweeps.jobs import Job, finished_values, numbered, raise_failures, record_jobs

log = logging.getLogger(__name__)

OWN = ("parallel", "snapshot", "wait", "dependency", "scores_first", "submitit_folder")
RETRIES = ("max_num_timeout",)  # what submitit wants to know of when its executor is made
COMMON = {field.name for field in fields(BaseQueueConf)}


class Submitted(NamedTuple):
    """A job that has been handed over, and what submitit knows it by."""

    job: Job
    handle: Any


class _Launcher(BaseSubmititLauncher):  # type: ignore[misc]
    """What both have in common."""

    def __call__(self, *arguments: Any) -> JobReturn:  # type: ignore[override]
        """Run one job, where it was sent to; what it raises ends the job, so that the queue sees the
        failure.
        """
        done = super().__call__(*arguments)
        if done.status == JobStatus.FAILED:
            raise done._return_value
        return done

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit every job that has not finished before, when all of them can run, and wait for all."""
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        jobs = numbered(job_overrides, initial_job_idx)
        values = finished_values(self.hydra_context, self.config, jobs, folder)
        todo = [job for job in jobs if values[job.number] is None]
        if len(todo) < len(jobs):
            log.info("%d of %d jobs have finished before", len(jobs) - len(todo), len(jobs))
        check_jobs(self.hydra_context, self.config, todo)
        self.check_machine()
        ended = self.submit(todo, folder) if todo else {}
        returns = [ended.get(job.number) or _completed(values[job.number]) for job in jobs]
        raise_failures(self.config, jobs, returns)
        return returns

    @abstractmethod
    def check_machine(self) -> None:
        """Refuse to submit what can't run from here.

        Raises:
            UserError: if it can't run from here.
        """

    @abstractmethod
    def submit(self, jobs: Sequence[Job], folder: Path) -> dict[int, JobReturn]:
        """Hand over the jobs; returns how each ended."""

    def executor(self, folder: Path, **more: Any) -> Any:
        """The executor of submitit with these options."""
        import submitit

        retries = {f"{self._EXECUTOR}_{name}": self.params[name] for name in RETRIES if name in self.params}
        executor = submitit.AutoExecutor(
            folder=folder / ".submitit" / "%j", cluster=self._EXECUTOR, **retries
        )
        chosen = {
            name: value for name, value in {**self.params, **more}.items() if name not in (*OWN, *RETRIES)
        }
        executor.update_parameters(
            **{
                name if name in COMMON else f"{self._EXECUTOR}_{name}": value
                for name, value in chosen.items()
            }
        )
        return executor

    def packed(self, jobs: Sequence[Job], folder: Path) -> list[Any]:
        """The jobs as submitit pickles them, all on the code as it is now: a snapshot of a checkout, or the
        installed package.
        """
        import cloudpickle

        from ecoflap.sweeps import bootstrap
        from ecoflap.sweeps.snapshot import take_snapshot

        project = checkout() if self.params["snapshot"] else None
        code = take_snapshot(folder, project) if project is not None else None
        launcher, state = self._on(code) if code else self, Singleton.get_state()
        parts = folders_of(self.hydra_context.config_loader.get_search_path())
        cloudpickle.register_pickle_by_value(bootstrap)
        calls = [
            (job.overrides, "hydra.sweep.dir", job.number, f"job_id_for_{job.number}", state) for job in jobs
        ]
        return [
            bootstrap.Bootstrap(
                None if code is None else str(code), parts, cloudpickle.dumps((launcher, call))
            )
            for call in calls
        ]

    def _on(self, code: Path) -> _Launcher:
        """This launcher, composing its configs from a snapshot's."""
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
        from hydra.core.config_search_path import SearchPathElement

        search, live = ConfigSearchPathImpl(), conf_folder()
        for element in self.hydra_context.config_loader.get_search_path().get_path():
            ours = Path(element.path.removeprefix("file://")).resolve() == live.resolve()
            search.config_search_path.append(
                SearchPathElement(element.provider, f"file://{code / 'conf'}") if ours else element
            )
        other = type(self)(**self.params)
        other.setup(
            hydra_context=HydraContext(
                config_loader=ConfigLoaderImpl(search), callbacks=self.hydra_context.callbacks
            ),
            task_function=self.task_function,
            config=self.config,
        )
        return other


class LocalLauncher(_Launcher):
    """Jobs as processes on this machine, a few at a time."""

    _EXECUTOR = "local"

    def check_machine(self) -> None:
        """Refuse to run no job at a time."""
        require_positive("hydra.launcher", SimpleNamespace(**self.params), "parallel")

    def submit(self, jobs: Sequence[Job], folder: Path) -> dict[int, JobReturn]:
        """Run the jobs, ``parallel`` at a time; Ctrl-C ends those that run."""
        executor, waiting, submitted = (
            self.executor(folder),
            list(zip(jobs, self.packed(jobs, folder), strict=True)),
            list[Submitted](),
        )
        record_jobs(folder, self._EXECUTOR, [(job, None) for job in jobs])
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
        return _collect(submitted)


class SlurmLauncher(_Launcher):
    """Jobs of Slurm: one array."""

    _EXECUTOR = "slurm"

    def check_machine(self) -> None:
        """Refuse a machine without Slurm."""
        if shutil.which("srun") is None:
            raise UserError(
                "cluster=slurm: there is no Slurm on this machine (no srun); submit from a login node, or use"
                " cluster=local or none"
            )

    def submit(self, jobs: Sequence[Job], folder: Path) -> dict[int, JobReturn]:
        """Queue the array, behind the jobs that compute the scores where they go first."""
        dependency = self.params["dependency"]
        if self.params["scores_first"] and (first := scoring_jobs(jobs)):
            ahead = self._queue(first, folder, dependency)
            array = ahead[0].handle.job_id.split("_")[0]
            log.info("%d jobs compute scores first: %s", len(first), array)
            # afterany: where scoring fails, each job of the sweep finds out by itself and says why.
            dependency = ",".join(filter(None, [dependency, f"afterany:{array}"]))
        submitted = self._queue(jobs, folder, dependency)
        record_jobs(folder, self._EXECUTOR, [(one.job, one.handle.job_id) for one in submitted])
        log.info("%d jobs queued; ecoflap status %s", len(submitted), folder)
        if not self.params["wait"]:
            return {one.job.number: _completed(None) for one in submitted}
        return _collect(submitted)

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


# What a sweep may vary without needing other scores.
AFTER_SCORES = ("sparsity", "pruner", "allocation", "task", "tracking", "model.save", "batch_size")


def scoring_jobs(jobs: Sequence[Job]) -> list[Job]:
    """One job per set of scores that the sweep needs, each of which stops behind the coarse stage; they are
    numbered before the sweep's own.
    """
    kept: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        relevant = tuple(
            override for override in job.overrides if not override.lstrip("+~").startswith(AFTER_SCORES)
        )
        if relevant not in kept and "score=none" not in relevant:
            overrides = [
                *job.overrides,
                "steps=[calibrate,score]",
                "tracking=none",
                f"hydra.sweep.subdir=scores/{len(kept)}",
            ]
            kept[relevant] = Job(-1 - len(kept), overrides)
    return list(kept.values())


def _collect(submitted: Sequence[Submitted]) -> dict[int, JobReturn]:
    """How each job ended, once all have."""
    ended = {}
    for job, handle in submitted:
        try:
            ended[job.number] = handle.results()[0]
        except (
            Exception
        ) as error:  # submitit's own, for a job that failed, was cancelled or ran out of memory
            last = _last_line(error)
            refused = re.match(r"ecoflap\.errors\.\w+: ", last)
            reason = last[refused.end() :] if refused else last
            message = (
                f"job {job.number} ({' '.join(filter_overrides(job.overrides))}) failed: {reason}; its log:"
                f" {handle.paths.stderr}"
            )
            log.error(message)
            ended[job.number] = JobReturn(
                status=JobStatus.FAILED,
                _return_value=UserError(message) if refused else RuntimeError(message),
            )
    return ended


def _last_line(error: Exception) -> str:
    """The line of a remote traceback that says what happened."""
    parts = [
        part.strip() for part in str(error).split("-" * 22)
    ]  # submitit's own words, the traceback, where the logs are
    lines = parts[1 if len(parts) > 1 else 0].splitlines()
    return lines[-1] if lines else type(error).__name__


def _completed(value: Any) -> JobReturn:
    return JobReturn(status=JobStatus.COMPLETED, _return_value=value)
