"""Options of the launchers, typed so that a wrong name or value fails before a job is queued."""

from __future__ import annotations

from dataclasses import dataclass

from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf

DAY = 24 * 60  # minutes


@dataclass
class InProcessOptions:
    """One job after the other in this process; there are no options."""

    _target_: str = "hydra_plugins.ecoflap_launcher.InProcessLauncher"


@dataclass
class LocalOptions(LocalQueueConf):
    """Processes of this machine; see submitit's launcher for its other options.

    Attributes:
        parallel: number of jobs at a time.
        snapshot: run a copy of the checkout's code, which later edits do not change.
    """

    _target_: str = "hydra_plugins.ecoflap_launcher.LocalLauncher"
    timeout_min: int = 30 * DAY
    parallel: int = 2
    snapshot: bool = True


@dataclass
class SlurmOptions(SlurmQueueConf):
    """Jobs of Slurm, one array per sweep; see submitit's launcher for its other options.

    Attributes:
        max_num_timeout: how often a job is requeued after its time limit; preempted jobs always are.
        dependency: other jobs that must end first, in the format of sbatch, such as afterok:1234.
        scores_first: queue jobs that only compute the scores, and the sweep after them.
        snapshot: run a copy of the checkout's code, which later edits do not change.
        wait: wait until all jobs have ended; otherwise return as soon as they are queued.
    """

    _target_: str = "hydra_plugins.ecoflap_launcher.SlurmLauncher"
    timeout_min: int = DAY
    max_num_timeout: int = 100
    dependency: str | None = None
    scores_first: bool = False
    snapshot: bool = True
    wait: bool = True
