"""The five steps in order: calibrate, score, allocate, prune, evaluate."""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import DictConfig

from ecoflap.config import build
from ecoflap.errors import UserError
from ecoflap.evaluate.journal import Journal
from ecoflap.evaluate.task import Evaluation
from ecoflap.models.loading import Selection, resolve_device
from ecoflap.models.offload import load_offloaded
from ecoflap.models.prunable import PrunableModel
from ecoflap.models.residence import WORK
from ecoflap.outcome import conclude, discard_earlier, show_in_tracker
from ecoflap.plan import Plan, make_plan
from ecoflap.progress import Progress
from ecoflap.prune.driver import prune
from ecoflap.prune.whole_model import WholeModelPruner
from ecoflap.report.lines import show_allocation, show_block, show_layers, show_metrics, show_model
from ecoflap.results import Result
from ecoflap.score.scores import Scores
from ecoflap.store import write_json
from ecoflap.telemetry import measure

log = logging.getLogger(__name__)


def run(config: DictConfig, folder: Path) -> Result | None:
    """Run the steps that the config asks for, and write ``result.json`` into the folder.

    Returns:
        The result, or null when the run only inspects the model.

    Raises:
        UserError: the config asks for something that can't be done.
        NumericalError: a NaN or an infinity appeared.
    """
    if config.inspect:
        inspect(config)
        return None
    plan = make_plan(config, folder)
    discard_earlier(folder)
    tracker = plan.tracking.start(plan.config, plan.name, folder)
    failed = True
    try:
        result, progress = _work(plan)
        show_in_tracker(tracker, result, progress)
        failed = False
    finally:
        tracker.close(failed)
    log.info("result: %s", folder / "result.json")
    return result


def inspect(config: DictConfig) -> None:
    """Show what would be pruned, from the model's shapes alone; neither weights nor data are read.

    Raises:
        UserError: there is no such model, tower or layer.
    """
    model: PrunableModel = build("model", config.model).load(torch.device("meta"), Selection(config.towers, list(config.skip_layers)))
    show_model(model)
    show_layers(model)


def _work(plan: Plan) -> tuple[Result, Progress]:
    """The steps. Nothing in the run's folder counts before ``result.json``, which is written last and whole."""
    costs: dict[str, dict[str, Any]] = {}
    model = _load(plan, costs, resolve_device(plan.config["device"]))
    progress = Progress(model.fingerprint(), costs)
    evaluations = {name: task.load(model) for name, task in plan.tasks.items()} if "evaluate" in plan.steps else {}
    if "calibrate" in plan.steps:
        _calibrate(plan, model, progress)
    _evaluate_dense(plan, model, evaluations, progress)
    if "score" in plan.steps and plan.scorer is not None:
        _score(plan, model, progress)
    whole_model = isinstance(plan.pruner, WholeModelPruner)
    if "allocate" in plan.steps and not whole_model:
        _allocate(plan, model, progress)
    if "prune" in plan.steps:
        (_prune_whole_model if whole_model else _prune)(plan, model, progress)
    if "prune" in plan.steps and evaluations:
        fingerprint = model.fingerprint()
        with measure(costs, "evaluate"):
            pruned = {name: evaluation(model, _journal(plan, name, "pruned", fingerprint, evaluation)) for name, evaluation in evaluations.items()}
        progress.metrics["pruned"] = with_mean(pruned, plan.mean)
    result = conclude(plan, model, progress)
    for name in progress.metrics.get("dense", {}):
        show_metrics(f"{model.name} on {name}", *(by_task[name] for by_task in progress.metrics.values()))
    return result, progress


def _load(plan: Plan, costs: dict[str, dict[str, Any]], device: torch.device) -> PrunableModel:
    with measure(costs, "load"):
        model = load_offloaded(plan.loader, device, plan.selection, plan.config["runtime"]["offload"], plan.folder / WORK)
    show_model(model)
    if not isinstance(plan.pruner, WholeModelPruner):
        plan.pruner.rule.check(model.layers, plan.config["sparsity"], plan.scorer is not None or not plan.allocator.needs_scores)
    return model


def _calibrate(plan: Plan, model: PrunableModel, progress: Progress) -> None:
    with measure(progress.costs, "calibrate"):
        progress.calibration = plan.calibrator.load(model, plan.config["seed"])
    if not len(progress.calibration):
        raise UserError(f"calibration={plan.calibrator.name} gave no samples; calibration.samples must be at least 1")
    asked = plan.calibrator.samples
    if asked is not None and asked > len(progress.calibration):
        log.warning("calibration.samples=%d was asked for and there are only %d", asked, len(progress.calibration))
    log.info("calibrate: %d samples of %s", len(progress.calibration), progress.calibration.name)


def _evaluate_dense(plan: Plan, model: PrunableModel, evaluations: dict[str, Evaluation], progress: Progress) -> None:
    """Measure the dense model on each task, or take its figures from the store."""
    if not evaluations:
        return
    with measure(progress.costs, "evaluate_dense"):
        metrics: dict[str, dict[str, float]] = {}
        for name, evaluation in evaluations.items():
            progress.tasks[name] = evaluation.identity()
            key = {"version": 2, "transformers": transformers.__version__, "model": progress.fingerprint, "task": progress.tasks[name]}
            journal = _journal(plan, name, "dense", progress.fingerprint, evaluation)
            dense, _ = plan.store.get_or_compute("dense_metrics", key, partial(evaluation, model, journal))
            metrics[name] = dense
    progress.metrics["dense"] = with_mean(metrics, plan.mean)


def with_mean(metrics: dict[str, dict[str, float]], metric: str | None) -> dict[str, dict[str, float]]:
    """The metrics of several tasks, led by the mean of one that all have, where it is asked for.

    Raises:
        UserError: a task has no such metric.
    """
    if metric is None:
        return metrics
    for task, values in metrics.items():
        if metric not in values:
            raise UserError(f"task.mean={metric}: {task} has no such metric; it has {', '.join(values)}")
    mean = sum(values[metric] for values in metrics.values()) / len(metrics)
    return {"mean": {metric: mean, "tasks": float(len(metrics))}, **metrics}


def _journal(plan: Plan, task: str, which: str, fingerprint: str, evaluation: Evaluation) -> Journal:
    """Where the predictions of a task go, and what they depend on."""
    return Journal(plan.folder / "predictions" / f"{task}_{which}.jsonl", {"model": fingerprint, "task": evaluation.identity()})


def _score(plan: Plan, model: PrunableModel, progress: Progress) -> None:
    assert progress.calibration is not None
    calibration, seed = progress.calibration, plan.config["seed"]
    key = {
        "version": 2,
        "transformers": transformers.__version__,
        "model": progress.fingerprint,
        "loss": model.loss_identity(plan.config["model"].get("loss")),
        "layers": [layer.name for layer in model.layers],
        "calibration": calibration.take(plan.scorer.samples).fingerprint(),
        "score": plan.scorer.identity(),
        "seed": seed,
    }
    with measure(progress.costs, "score"):
        value, _ = plan.store.get_or_compute("scores", key, lambda: plan.scorer(model, calibration, seed).to_json())
    progress.scores = Scores.from_json(value)
    write_json(plan.folder / "scores.json", value)


def _allocate(plan: Plan, model: PrunableModel, progress: Progress) -> None:
    with measure(progress.costs, "allocate"):
        progress.allocation = plan.allocator(model.towers, progress.scores, plan.config["sparsity"])
    write_json(plan.folder / "allocation.json", asdict(progress.allocation))
    show_allocation(model, progress.allocation)


def _prune(plan: Plan, model: PrunableModel, progress: Progress) -> None:
    assert progress.allocation is not None
    assert not isinstance(plan.pruner, WholeModelPruner)
    with measure(progress.costs, "prune"):
        options = {name: plan.config[name] for name in ("batch_size", "propagate")}
        progress.report = prune(model, progress.calibration, plan.pruner, progress.allocation, on_block=show_block, **options)


def _prune_whole_model(plan: Plan, model: PrunableModel, progress: Progress) -> None:
    assert isinstance(plan.pruner, WholeModelPruner)
    with measure(progress.costs, "prune"):
        progress.allocation, progress.report = plan.pruner.prune(model, progress.calibration, plan.config["sparsity"], show_block)
    write_json(plan.folder / "allocation.json", asdict(progress.allocation))
    show_allocation(model, progress.allocation)
