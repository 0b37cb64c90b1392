"""Every mini model through the whole pipeline: far better than a guesser, and worse when pruned hard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import ecoflap
from ecoflap.errors import UserError
from ecoflap.run.steps.evaluation import with_mean
from ecoflap.storage.results import Result, verify

# model: (least dense figure, what a guesser gets, options that keep it short)
MINIS = {
    "vit_mini": (95, 6, ["task.limit=200"]),
    "clip_mini": (95, 6, ["task.limit=200"]),
    "blip_vqa_mini": (95, 67, ["task.limit=200"]),
    "blip_caption_mini": (95, 6, ["task.limit=200"]),
    "blip_retrieval_mini": (95, 6, ["task.limit=100", "task.rerank=4"]),
    "t5_mini": (90, 25, ["task.limit=30"]),
    "blip2_mini": (95, 67, ["task.limit=200"]),
}


@pytest.fixture
def short(tmp_path: Path) -> list[str]:
    return ["calibration.samples=32", "tracking=none", "device=cpu", f"cache={tmp_path / 'cache'}"]


@pytest.mark.parametrize("model", MINIS)
def test_good_when_dense_and_worse_when_pruned(
    run: Callable[..., Result], short: list[str], tmp_path: Path, model: str
) -> None:
    least, guesser, options = MINIS[model]
    result = run(
        [
            *short,
            *options,
            f"model={model}",
            "score=first_order",
            "score.samples=16",
            "sparsity=0.85",
            "model.save=true",
        ]
    )
    dense, pruned = (
        next(iter(next(iter(result.metrics[which].values())).values())) for which in ("dense", "pruned")
    )
    assert dense > least > 3 * guesser or (dense > least and guesser > 60)
    assert pruned < dense - 5
    assert result.sparsity["prunable"] == pytest.approx(0.85, abs=1e-3)
    assert verify(tmp_path / "run") == []
    packaged = Path(ecoflap.__file__).parent / "mini" / model.removesuffix("_mini") / "tokenizer.json"
    if packaged.is_file():  # what its calls set is not saved
        saved = tmp_path / "run" / "checkpoint" / "tokenizer.json"
        assert json.loads(saved.read_text()) == json.loads(packaged.read_text())


@pytest.mark.parametrize("model", ["clip_mini", "blip_retrieval_mini", "t5_mini", "blip_caption_mini"])
@pytest.mark.every_run("clip_mini", "t5_mini")
def test_zeroth_order_and_sparsegpt(run: Callable[..., Result], short: list[str], model: str) -> None:
    options = [f"model={model}", "pruner=sparsegpt", "sparsity=0.5", "score.samples=8", *MINIS[model][2]]
    result = run([*short, *options])
    metrics = next(iter(result.metrics["pruned"].values()))
    assert next(iter(metrics.values())) > MINIS[model][0] - 15


def test_a_suite_measures_several_tasks_and_keeps_their_predictions(
    run: Callable[..., Result], short: list[str], tmp_path: Path
) -> None:
    limits = [f"task.tasks.{name}.limit=50" for name in ("easy_classification", "easy_retrieval")]
    result = run([*short, *limits, "model=clip_mini", "task=easy_suite", "score=none"])
    assert (
        list(result.metrics["pruned"])
        == list(result.metrics["dense"])
        == ["easy_classification", "easy_retrieval"]
    )
    assert set(result.data["tasks"]) == set(result.metrics["dense"])
    written = {file.name for file in (tmp_path / "run" / "predictions").iterdir()}
    assert {"easy_classification_dense.jsonl", "easy_classification_pruned.jsonl"} <= written


def test_the_mean_of_a_suite_comes_first(run: Callable[..., Result], short: list[str]) -> None:
    limits = [f"task.tasks.{name}.limit=50" for name in ("easy_classification", "easy_retrieval")]
    with pytest.raises(UserError, match=r"task\.mean=accuracy: easy_retrieval has no such metric"):
        run(
            [
                *short,
                *limits,
                "model=clip",
                "model.path=nobody/nothing",
                "task=easy_suite",
                "score=none",
                "+task.mean=accuracy",
            ]
        )  # not even loaded
    metrics = {"one": {"accuracy": 50.0, "top_5": 60.0}, "other": {"accuracy": 70.0}}
    assert with_mean(metrics, "accuracy") == {"mean": {"accuracy": 60.0, "tasks": 2.0}, **metrics}
    assert next(iter(with_mean(metrics, "accuracy"))) == "mean"
    assert with_mean(metrics, None) == metrics
