"""Check all jobs of a sweep before the first one runs, so that none is refused after hours of others."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra.core.utils import filter_overrides
from hydra.types import HydraContext
from omegaconf import DictConfig

from ecoflap.errors import UserError
from ecoflap.run.refusals import describe
from ecoflap.sweeps.jobs import Job, composed, tolerates_failures

if TYPE_CHECKING:
    from ecoflap.run.plan import Preflight

log = logging.getLogger(__name__)


def check_jobs(context: HydraContext, config: DictConfig, jobs: Sequence[Job]) -> None:
    """Refuse a sweep with jobs that can't run, as far as that is known without a model's weights.

    There is no check if the sweeper tolerates failures (``max_failure_rate``), or if the jobs wait for others
    (``dependency``), whose files don't exist yet.

    Args:
        context: Hydra's context.
        config: the config of the sweep.
        jobs: the jobs of the sweep.

    Raises:
        UserError: if there are such jobs; several reasons are logged first, one per line.
    """
    if tolerates_failures(config) or config.hydra.launcher.get("dependency"):
        return
    from ecoflap.run.plan import Preflight  # not before a sweep starts: it imports torch

    preflight = Preflight()
    reasons = [_refusal(context, config, job, preflight) for job in jobs]
    refused = defaultdict(list)
    for name, reason in zip(_names(jobs), reasons, strict=True):
        if reason is not None:
            refused[reason].append(name)
    lines = [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in refused.items()
    ]
    if len(lines) == 1:
        raise UserError(f"{lines[0]} (none of the {len(jobs)} jobs was started)")
    for line in lines:
        log.error("%s", line)
    if lines:
        count = sum(map(len, refused.values()))
        raise UserError(f"{count} of {len(jobs)} jobs can't run, for the reasons above, and none was started")


def _refusal(context: HydraContext, config: DictConfig, job: Job, preflight: Preflight) -> str | None:
    """Why a job can't run; None if it passes the check."""
    from ecoflap.run.plan import make_plan

    try:
        with composed(context, config, job) as (values, folder):
            if not values.inspect:
                make_plan(values, folder, preflight)
    except Exception as error:
        if (words := describe(error)) is None:
            raise
        return words
    return None


def _names(jobs: Sequence[Job]) -> list[str]:
    """A name for each job: its number, and the options that not all jobs share."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    own = [[one for one in filter_overrides(job.overrides) if one not in shared] for job in jobs]
    return [f"job {job.number} ({' '.join(overrides)})" for job, overrides in zip(jobs, own, strict=True)]
