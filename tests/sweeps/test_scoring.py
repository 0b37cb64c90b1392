"""Which jobs of a sweep get a job that computes their scores before: those whose settled config has some."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.types import HydraContext, RunMode

from ecoflap.run import config as run_config
from ecoflap.storage.installation import conf_folder
from ecoflap.sweeps.jobs import Job
from ecoflap.sweeps.scoring import scoring_jobs

pytestmark = pytest.mark.long

NOTHING = "ecoflap.console.tracking.Nothing"
LEAST = ["model=t5_mini", "device=cpu", "tracking=none"]


def scoring(folder: Path, *jobs: list[str]) -> list[list[str]]:
    """The options of the scoring jobs of a sweep of such jobs, beside what all have."""
    run_config.register()
    loader = ConfigLoaderImpl(create_config_search_path(str(conf_folder())))
    context, shared = HydraContext(loader, None), [*LEAST, f"hydra.sweep.dir={folder}"]  # type: ignore[arg-type]
    config = loader.load_configuration("config", shared, RunMode.MULTIRUN)
    found = scoring_jobs(context, config, [Job(place, [*shared, *own]) for place, own in enumerate(jobs)])
    for job in found:
        assert loader.load_sweep_config(config, job.overrides).tracking == {"_target_": NOTHING}
    assert [job.number for job in found] == [-1 - place for place in range(len(found))]
    ending = [[*job.overrides[-3:-1], job.overrides[-1]] for job in found]
    assert ending == [
        ["steps=[calibrate,score]", "tracking=none", f"hydra.sweep.subdir=scores/{place}"]
        for place in range(len(found))
    ]
    return [job.overrides[len(shared) : -3] for job in found]


@pytest.mark.parametrize(
    "unscored",
    [
        [],  # in-context allocation goes by no scores
        ["score=none"],
        ["score=first_order", "allocation=owl"],
        ["pruner=magnitude", "allocation=water_filling", "score=none"],
        ["pruner=global_magnitude"],
        ["allocation=water_filling", "steps=[evaluate]"],
        ["pruner.mask=2:4", "sparsity=0.5"],
        ["pruner.mask=no_such", "score=local"],
    ],
    ids=" ".join,
)
def test_jobs_that_score_nothing(tmp_path: Path, unscored: list[str]) -> None:
    assert scoring(tmp_path, unscored) == []


@pytest.mark.parametrize(
    "scored",
    [
        ["allocation=water_filling"],
        ["allocation.granularity=block", "allocation=water_filling"],
        ["score=local"],
        ["+experiment=flan_t5/ecoflap"],
        ["steps=[calibrate,score]"],
    ],
    ids=" ".join,
)
def test_jobs_that_score(tmp_path: Path, scored: list[str]) -> None:
    assert scoring(tmp_path, scored) == [scored]


def test_jobs_share_scores_that_are_the_same(tmp_path: Path) -> None:
    first, same, other = (
        ["score=first_order", "sparsity=0.4"],
        ["score=first_order", "sparsity=0.6", "pruner=sparsegpt", "model.save=true", "propagate=dense"],
        ["score=first_order", "seed=1"],
    )
    written_out = ["allocation=water_filling", "score=first_order", "seed=0", "batch_size=3"]
    assert scoring(tmp_path, first, same, ["score=none"], other, written_out) == [first, other]


def test_a_scoring_job_is_not_tracked_however_the_sweep_is(tmp_path: Path) -> None:
    """Nothing has none of the options of W&B."""
    tracked = ["tracking=wandb", "tracking.mode=offline", "tracking.tags=[a]", "score=local"]
    assert scoring(tmp_path, tracked) == [["tracking=wandb", "score=local"]]
