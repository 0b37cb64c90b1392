"""The base of the launchers on top of submitit, whose jobs are processes of this machine or jobs of Slurm.

Beyond submitit's own launchers: jobs of a checkout run the code as it was when they were submitted; a failed
job fails for Slurm too, with its traceback in its own log; a killed job does not hide the results of others;
jobs that have finished before are not run again; and ``jobs.json`` in the sweep's folder lists the jobs for
``ecoflap status``. Imports no torch, as Hydra imports it for ``--help``.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

from ecoflap.console.startup import collect_less_garbage
from ecoflap.errors import UserError
from ecoflap.run.import_path import beside, config_folders
from ecoflap.storage.installation import checkout, conf_folder
from ecoflap.sweeps.claim import admitted, command_to_record
from ecoflap.sweeps.ended import completed
from ecoflap.sweeps.failures import Failures
from ecoflap.sweeps.jobs import Job, numbered

log = logging.getLogger(__name__)

OWN = ("parallel", "snapshot", "wait", "dependency", "scores_first", "submitit_folder")
RETRIES = ("max_num_timeout",)  # options that submitit takes when an executor is built
COMMON = {field.name for field in fields(BaseQueueConf)}


def logs_in(folder: Path) -> Path:
    """Where submitit keeps the logs and pickles of a job of the sweep in a folder; ``%j`` is its id."""
    return folder / ".submitit" / "%j"


class SubmititLauncher(BaseSubmititLauncher):  # type: ignore[misc]
    """Submits the jobs of a sweep.

    Attributes:
        parts: {file: hash} of the parts outside the package, as the jobs were submitted with them.
        failures: the jobs that have failed.
    """

    parts: Mapping[str, str] = MappingProxyType({})

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.failures = Failures()

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
        if Path(logs := self.params["submitit_folder"]).absolute() != logs_in(folder):
            raise UserError(
                f"hydra.launcher.submitit_folder={logs}: the logs of jobs are in .submitit in the folder of"
                " the sweep, where it looks for them when it is started again; leave it out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        jobs = numbered(job_overrides, initial_job_idx, folder)
        with admitted(self.hydra_context, self.config, jobs, folder) as values:
            todo = [job for job in jobs if values[job.number] is None]
            if len(todo) < len(jobs):
                log.info("%d of %d jobs have finished before", len(jobs) - len(todo), len(jobs))
            command = command_to_record(self.config.hydra, folder, jobs)
            ended = self.submit(todo, folder, command) if todo else {}
        returns = [ended.get(job.number) or completed(values[job.number]) for job in jobs]
        return self.failures.after(self.hydra_context, self.config, jobs, returns)

    @abstractmethod
    def submit(self, jobs: Sequence[Job], folder: Path, command: Mapping[str, Any]) -> dict[int, JobReturn]:
        """Submit the jobs; returns {number: how the job ended}.

        Args:
            jobs: those of the sweep that have not finished before.
            folder: the folder of the sweep.
            command: what ``jobs.json`` says the sweep was started with.

        Raises:
            UserError: if this machine can't submit them.
        """

    def executor(self, folder: Path, **more: Any) -> Any:
        """The executor of submitit with this launcher's options and some more."""
        import submitit

        def with_prefix(name: str) -> str:
            return f"{self._EXECUTOR}_{name}"

        retries = {with_prefix(name): self.params[name] for name in RETRIES if name in self.params}
        executor = submitit.AutoExecutor(folder=logs_in(folder), cluster=self._EXECUTOR, **retries)
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
            place = None if code is None else str(code)
            packed.append(bootstrap.Bootstrap(place, parts, pickled))
        return packed

    def _with_configs_of(self, code: Path) -> SubmititLauncher:
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
