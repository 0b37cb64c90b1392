"""The jobs of a sweep: which there are, their configs and folders, and which have finished."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from ecoflap.errors import UserError
from ecoflap.storage.file_names import RESULT
from ecoflap.storage.results.record import read_result

log = logging.getLogger(__name__)

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
"""Hydra's own sweeper; those of others choose jobs by the results of earlier ones."""


class Job(NamedTuple):
    """A job of a sweep.

    Attributes:
        number: its position in the sweep.
        overrides: the overrides of its config.
        replaces: when the run finished whose result it replaces (``resume=false``); None if it replaces none.
    """

    number: int
    overrides: list[str]
    replaces: str | None = None


def numbered(job_overrides: Sequence[Sequence[str]], first: int, folder: Path | None = None) -> list[Job]:
    """The jobs of a sweep, numbered from ``first``.

    Args:
        job_overrides: the overrides of each.
        first: the number of the first one.
        folder: the folder of the sweep, with the results that jobs may replace.

    Raises:
        UserError: if there are none.
    """
    if not job_overrides:
        raise UserError(
            "the sweep has no jobs: one of its axes, such as a range(), has no values; give it some:"
            " key=VALUE,VALUE"
        )
    jobs = [Job(first + place, list(overrides)) for place, overrides in enumerate(job_overrides)]
    if folder is None:
        return jobs
    return [
        job._replace(replaces=result.finished)
        if _begins_anew(job) and (result := read_result(folder / str(job.number))) is not None
        else job
        for job in jobs
    ]


def _begins_anew(job: Job) -> bool:
    """Whether a job is started with ``resume=false``."""
    given = dict(one.lstrip("+").partition("=")[::2] for one in job.overrides)
    return given.get("resume", "").lower() == "false"


def all_jobs(context: HydraContext, config: DictConfig) -> list[Job]:
    """All jobs of a sweep of Hydra's own sweeper, whose ``max_batch_size`` may divide them.

    Args:
        context: Hydra's context.
        config: the config of the sweep.

    Raises:
        UserError: if there are none.
    """
    params: Any = OmegaConf.to_container(config.hydra.sweeper)["params"] or {}  # type: ignore[call-overload, index]
    given = [f"{key}={value}" for key, value in params.items()]
    parser = OverridesParser.create(config_loader=context.config_loader)
    batches = BasicSweeper.split_arguments(
        parser.parse_overrides([*given, *config.hydra.overrides.task]), None
    )
    return numbered([job for batch in batches for job in batch], 0)


def finished_values(
    context: HydraContext, config: DictConfig, jobs: Sequence[Job], folder: Path
) -> dict[int, float | None]:
    """Find the jobs that have finished before.

    Composing a job's config tells its folder; if the sweep's folder has no result at all, none is composed.

    Args:
        context: Hydra's context.
        config: the config of the sweep.
        jobs: the jobs of the sweep.
        folder: the folder of the sweep.

    Returns:
        {number of a job: its headline metric; None if it has to run}.

    Raises:
        UserError: if the folder of a job holds the result of another config.
    """
    if next(folder.rglob(RESULT), None) is None:
        return dict.fromkeys(job.number for job in jobs)
    return {job.number: _finished_value(context, config, job) for job in jobs}


@contextmanager
def composed(context: HydraContext, config: DictConfig, job: Job) -> Iterator[tuple[DictConfig, Path]]:
    """Compose a job's config, and set Hydra's global state to that of the job in this context.

    Args:
        context: Hydra's context.
        config: the config of the sweep.
        job: a job of the sweep.

    Yields:
        The config and the folder of the job.
    """
    whole = context.config_loader.load_sweep_config(config, list(job.overrides))
    folder = Path(str(whole.hydra.sweep.dir))
    with open_dict(whole):
        whole.hydra.job.num = job.number
        folder = folder / str(whole.hydra.sweep.subdir)
        whole.hydra.runtime.output_dir = str(folder.absolute())
    own = copy.deepcopy(whole)
    with open_dict(own):
        del own["hydra"]
    earlier = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(whole)
    try:
        yield own, folder
    finally:
        HydraConfig.instance().cfg = earlier


def _finished_value(context: HydraContext, config: DictConfig, job: Job) -> float | None:
    """The headline metric of a job that has finished before; None if it has to run.

    It warns if the job's result is of other code or files.
    """
    with composed(context, config, job) as (own, folder):
        if not own.resume or not (folder / RESULT).is_file():
            return None
        from ecoflap.run.folder import finished
        from ecoflap.run.plan.automatic import settle
        from ecoflap.storage.results.sources import outdated

        values: Any = OmegaConf.to_container(settle(own), resolve=True)
    if (result := finished(folder, values)) is None:
        return None
    for sentence in outdated(result, values):
        log.warning("job %d: %s", job.number, sentence)
    return result.headline()
