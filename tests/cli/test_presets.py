"""``+preset=mini`` and ``+preset=debug`` under the experiments, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecoflap.cli.presets import with_presets
from ecoflap.errors import UserError
from ecoflap.run.plan.building import build_tasks
from tests.cli import forked
from tests.cli.conftest import composed_as_given
from tests.cli.test_experiments import EXPERIMENTS, ONE_OF_EACH_SYSTEM


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.every_run(*ONE_OF_EACH_SYSTEM)
def test_every_experiment_stands_on_a_mini_and_keeps_its_method(experiment: str) -> None:
    published = composed_as_given([f"+experiment={experiment}"])
    given = with_presets(["+preset=mini", f"+experiment={experiment}"])
    config = composed_as_given(given)
    assert config.model.name.endswith("_mini")
    assert "mini" in config.model.path
    assert (config.sparsity, config.steps) == (published.sparsity, published.steps)
    for group in ("score", "allocation", "pruner"):
        assert config[group] == published[group]
    assert "easy" in config.calibration.name or "quiz" in config.calibration.name
    assert build_tasks(config.task)


@pytest.mark.parametrize(
    "experiment",
    ["blip2/ecoflap_zeroth", "blip/coco/ecoflap_finetune", "eva_clip/ecoflap", "llama/sparsegpt"],
)
@pytest.mark.every_run("llama/sparsegpt", "eva_clip/ecoflap")
def test_experiments_run_on_minis(experiment: str, tmp_path: Path) -> None:
    done = forked.main([f"+experiment={experiment}", "+preset=[mini,debug]", "hydra.run.dir=run"], tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["data"]["calibration"]["samples"] == 8
    assert result["metrics"]["pruned"]
    assert result["config"]["cache_mode"] == "off"
    assert not (tmp_path / "outputs").exists(), "nothing was read from or written to a cache"
    assert not (tmp_path / "run" / "wandb").exists()


def test_the_preset_wins_wherever_it_stands() -> None:
    assert with_presets(["+preset=mini", "a=1", "+experiment=blip/coco/wanda", "b=2"]) == [
        "a=1",
        "+experiment=blip/coco/wanda",
        "+preset=mini/blip/coco",
        "b=2",
    ]
    assert with_presets(["+experiment=clip/wanda,clip/sparsegpt", "+preset=[debug,mini]"])[1:] == [
        "+preset=[debug,mini/clip]"
    ]
    assert with_presets(["+preset=mini"]) == ["+preset=mini"]
    assert with_presets(["+experiment=mine", "+preset=mini"])[1] == "+preset=mini"
    with pytest.raises(UserError, match="different minis"):
        with_presets(["+experiment=clip/wanda,llama/wanda", "+preset=mini"])


@pytest.mark.parametrize("finetuner", ["full", "lora", "reconstruct"])
def test_debug_shortens_every_finetuning(finetuner: str) -> None:
    given = ["+preset=debug", f"finetune={finetuner}", "steps=[calibrate,allocate,prune,finetune]"]
    chosen = composed_as_given(given).finetune
    assert (chosen.name, chosen.samples, chosen.epochs) == (finetuner, 64, 1)


def test_a_limit_of_a_suite_is_that_of_each_task() -> None:
    tasks = build_tasks(composed_as_given(["model=clip_mini", "task=easy_suite", "+preset=debug"]).task)
    limits = {name: vars(task)["limit"] for name, task in tasks.items()}
    assert limits == {"easy_classification": 20, "easy_retrieval": 20}


def test_a_wrong_preset_is_refused(tmp_path: Path) -> None:
    done = forked.main(["+preset=mni"], tmp_path)
    assert done.returncode == 2
    assert "mini" in done.stderr
    done = forked.main(["preset=mini"], tmp_path)
    assert "+preset=mini" in done.stderr
