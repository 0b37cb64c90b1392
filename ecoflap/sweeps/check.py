"""Check all jobs of a sweep before the first one runs, so that none is refused after hours of others."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from hydra.core.utils import filter_overrides
from hydra.types import HydraContext
from omegaconf import DictConfig

from ecoflap.errors import UserError
from ecoflap.run.refusals import describe
from ecoflap.sweeps.failures import tolerates_failures
from ecoflap.sweeps.jobs import Job, composed

if TYPE_CHECKING:
    from ecoflap.run.plan import Preflight

log = logging.getLogger(__name__)


class Checked(NamedTuple):
    """What the check of a job has found.

    Attributes:
        refusal: why it can't run; None if it passes.
        unused: a sentence about each option that changes nothing.
    """

    refusal: str | None
    unused: list[str]


def check_jobs(context: HydraContext, config: DictConfig, jobs: Sequence[Job]) -> list[str]:
    """Refuse a sweep with jobs that can't run, as far as that is known without a model's weights.

    There is no check if the sweeper tolerates failures (``max_failure_rate``), or if the jobs wait for others
    (``dependency``), whose files don't exist yet.

    Args:
        context: Hydra's context.
        config: the config of the sweep.
        jobs: the jobs of the sweep.

    Returns:
        A sentence about each option that changes nothing in any of the jobs that have it.

    Raises:
        UserError: if there are such jobs; several reasons are logged first, one per line.
    """
    if tolerates_failures(config) or config.hydra.launcher.get("dependency"):
        return []
    from ecoflap.run.plan import Preflight  # not before a sweep starts: it imports torch

    preflight = Preflight()
    checked = [_checked(context, config, job, preflight) for job in jobs]
    refused = defaultdict(list)
    for name, found in zip(_names(jobs), checked, strict=True):
        if found.refusal is not None:
            refused[found.refusal].append(name)
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
    return _unused_everywhere(jobs, checked)


def _checked(context: HydraContext, config: DictConfig, job: Job, preflight: Preflight) -> Checked:
    """Check one job."""
    from ecoflap.run.plan import make_plan, unused

    try:
        with composed(context, config, job) as (values, folder):
            if values.inspect:
                return Checked(None, [])
            return Checked(None, unused(make_plan(values, folder, preflight), job.overrides))
    except Exception as error:
        if (words := describe(error)) is None:
            raise
        return Checked(words, [])


def _unused_everywhere(jobs: Sequence[Job], checked: Sequence[Checked]) -> list[str]:
    """A sentence about each option that is unused in all jobs that have it, and not only in some."""
    sentences = list[str]()
    for option in dict.fromkeys(one for job in jobs for one in job.overrides):
        about = [
            next((one for one in found.unused if one.lstrip("+").startswith(f"{option.lstrip('+')} ")), None)
            for job, found in zip(jobs, checked, strict=True)
            if option in job.overrides
        ]
        if about[0] is not None and None not in about:
            sentences.append(about[0])
    return sentences


def _names(jobs: Sequence[Job]) -> list[str]:
    """A name for each job: its number, and the options that not all jobs share."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    own = [[one for one in filter_overrides(job.overrides) if one not in shared] for job in jobs]
    return [f"job {job.number} ({' '.join(overrides)})" for job, overrides in zip(jobs, own, strict=True)]
