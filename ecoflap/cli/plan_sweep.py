"""``ecoflap plan -m``: the jobs of a sweep, each checked, and the time of them all."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import filter_overrides, setup_globals
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from ecoflap.cli.choices import Choices
from ecoflap.cli.recipe import primary_config
from ecoflap.console.tables import table
from ecoflap.errors import UserError
from ecoflap.sweeps.check import check_jobs
from ecoflap.sweeps.claim import require_numbers
from ecoflap.sweeps.jobs import BASIC, Job, all_jobs, composed

SHOWN = 40
"""Jobs that are listed."""


def jobs_of(flags: Namespace) -> tuple[HydraContext, DictConfig, list[Job]]:
    """Hydra's context, the config of a sweep, and its jobs.

    Args:
        flags: the command line, as Hydra parses it.

    Raises:
        UserError: if the sweep's jobs are not known before it runs, or it has none.
    """
    setup_globals()
    overrides = [*flags.overrides, f"hydra.mode={RunMode.MULTIRUN.name}"]  # for its jobs, as in a run
    loader: ConfigLoaderImpl = Choices(flags.config_dir, overrides).loader
    config = loader.load_configuration(primary_config(), overrides, RunMode.MULTIRUN)
    HydraConfig.instance().set_config(config)
    sweeper = config.hydra.sweeper
    if sweeper.get("_target_") != BASIC:
        raise UserError(
            f"the jobs of {sweeper.get('_target_')} depend on the results of earlier ones, so that they can't"
            " be planned; leave -m out to plan one"
        )
    context = HydraContext(loader, Callbacks())
    return context, config, all_jobs(context, config)


def check_sweep(flags: Namespace) -> tuple[DictConfig, int]:
    """Check all jobs and list them; Hydra's own config becomes that of the first.

    Args:
        flags: the command line, as Hydra parses it.

    Returns:
        The config of the first job, and the number of jobs.

    Raises:
        UserError: if a job can't run, or jobs have other folders than their numbers.
    """
    context, config, jobs = jobs_of(flags)
    require_numbers(context, config, jobs)
    check_jobs(context, config, jobs)
    show_jobs(jobs)
    with composed(context, config, jobs[0]) as (own, _):
        whole = HydraConfig.instance().cfg
    HydraConfig.instance().cfg = whole
    return own, len(jobs)


def show_jobs(jobs: Sequence[Job]) -> None:
    """Print the jobs of a sweep with their options."""
    rows = [(job.number, " ".join(filter_overrides(job.overrides))) for job in jobs[:SHOWN]]
    table(f"{len(jobs)} jobs, which can all run", ["job", "options"], rows)
    if len(jobs) > SHOWN:
        print(f"and {len(jobs) - SHOWN} more\n")
    print("the first of them:\n")
