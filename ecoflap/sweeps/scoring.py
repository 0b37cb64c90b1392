"""The jobs that compute the scores of a sweep before its other jobs start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from ecoflap.run.refusals import describe
from ecoflap.sweeps.jobs import Job, composed

OF_SCORES = ("model", "calibration", "score", "towers", "skip_layers", "seed", "device", "runtime")
"""The options of a run on which its scores depend, or how they are computed."""


def scoring_jobs(context: HydraContext, config: DictConfig, jobs: Sequence[Job]) -> list[Job]:
    """One job per distinct set of scores of a sweep, which calibrates and scores only.

    Args:
        context: Hydra's context.
        config: the config of the sweep.
        jobs: the jobs of the sweep.

    Returns:
        Jobs with negative numbers.
    """
    found: dict[str, Job] = {}
    for job in jobs:
        scores = _scores(context, config, job)
        if scores is not None and scores not in found:
            subdir = f"hydra.sweep.subdir=scores/{len(found)}"
            kept = [one for one in job.overrides if not one.lstrip("+~").startswith("tracking.")]
            overrides = [*kept, "steps=[calibrate,score]", "tracking=none", subdir]
            found[scores] = Job(-1 - len(found), overrides)
    return list(found.values())


def _scores(context: HydraContext, config: DictConfig, job: Job) -> str | None:
    """The options of the scores of a job; None if it has none, or is refused and will say so itself."""
    from ecoflap.run.plan.automatic import settle  # not before a sweep starts: it imports torch
    from ecoflap.run.plan.parts import make

    try:
        with composed(context, config, job) as (own, _):
            settled = settle(own)
            scored = "_target_" in settled.score and "score" in settled.steps
            if not scored or make("allocation", settled.allocation).requires.scores == "none":
                return None
            values: Any = OmegaConf.to_container(settled, resolve=True)
    except Exception as error:
        if describe(error) is None:
            raise
        return None
    options = {name: values[name] for name in OF_SCORES}
    options["model"].pop("save", None)
    return json.dumps(options, sort_keys=True, default=str)
