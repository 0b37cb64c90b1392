"""All jobs of a sweep are checked before the first one runs: none is found impossible after hours of
others.
"""

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
from ecoflap.sweeps.jobs import Job, composed

if TYPE_CHECKING:
    from ecoflap.run.plan import Preflight

log = logging.getLogger(__name__)


def check_jobs(context: HydraContext, config: DictConfig, jobs: Sequence[Job]) -> None:
    """Refuse a sweep with jobs that can't run, as far as that is known without a model's weights.

    A sweeper that may lose some of its jobs (``max_failure_rate``) finds out by itself, and so do jobs that
    wait for others (``dependency``): what those write isn't there yet.

    Args:
        context: Hydra's.
        config: of the sweep.
        jobs: of the sweep.

    Raises:
        UserError: there are such jobs. Of several reasons, each has been named in a line of the log.
    """
    if config.hydra.get("sweeper", {}).get("max_failure_rate") or config.hydra.launcher.get("dependency"):
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
    """Why a job can't run; null where nothing is known against it."""
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
    """What to call each job: its number, and the options in which it differs from others."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    own = [[one for one in filter_overrides(job.overrides) if one not in shared] for job in jobs]
    return [f"job {job.number} ({' '.join(overrides)})" for job, overrides in zip(jobs, own, strict=True)]
