"""What can be said about where the jobs of a sweep run; typed, so that a wrong name or value fails before a
job is queued. Light to import.
"""

from __future__ import annotations

from dataclasses import dataclass

from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf

DAY = 24 * 60  # minutes


@dataclass
class InProcessOptions:
    """One job after the other in this process; there is nothing to choose."""

    _target_: str = "hydra_plugins.ecoflap_launcher.InProcessLauncher"


@dataclass
class LocalOptions(LocalQueueConf):
    """Processes on this machine; see submitit's launcher for its other options.

    Attributes:
        parallel: jobs at a time.
        snapshot: run the checkout's code as it is now, whatever is edited meanwhile.
    """

    _target_: str = "hydra_plugins.ecoflap_launcher.LocalLauncher"
    timeout_min: int = 30 * DAY
    parallel: int = 2
    snapshot: bool = True


@dataclass
class SlurmOptions(SlurmQueueConf):
    """Jobs of Slurm, one array per sweep; see submitit's launcher for its other options.

    Attributes:
        max_num_timeout: how often a job that ran into its time limit is queued again; preempted ones are
            always.
        dependency: other jobs that must end first, as sbatch takes it: afterok:1234.
        scores_first: queue the coarse stage of each model by itself, and the sweep behind it.
        snapshot: run the checkout's code as it is now, whatever is edited meanwhile.
        wait: stay until all jobs have ended; otherwise return as soon as they are queued.
    """

    _target_: str = "hydra_plugins.ecoflap_launcher.SlurmLauncher"
    timeout_min: int = DAY
    max_num_timeout: int = 100
    dependency: str | None = None
    scores_first: bool = False
    snapshot: bool = True
    wait: bool = True
