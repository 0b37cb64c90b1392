"""The steps in order: calibrate, score, allocate, prune, fine-tune where it is asked for, evaluate."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ecoflap import warm_model
from ecoflap.calibrate.samples import CalibrationSet
from ecoflap.calibrate.statistics import MeanSquare
from ecoflap.calibrate.stored import stored_calibration
from ecoflap.config import build, runs_follow
from ecoflap.errors import UserError
from ecoflap.evaluate.journal import Journal
from ecoflap.evaluate.overlap import refuse_overlap
from ecoflap.evaluate.task import Evaluation
from ecoflap.finetune.distributed import agree, is_first, joined, shared_folder
from ecoflap.finetune.job import Job, masks_fingerprint
from ecoflap.finetune.training_set import read_everything
from ecoflap.models.loading import Selection, resolve_device
from ecoflap.models.offload import load_offloaded
from ecoflap.models.prunable import PrunableModel
from ecoflap.models.residence import WORK
from ecoflap.outcome import conclude, finished_blocks, show_in_tracker
from ecoflap.plan import Plan, make_plan
from ecoflap.progress import Progress
from ecoflap.prune.driver import measure_dense, prune
from ecoflap.prune.whole_model import WholeModelPruner
from ecoflap.report.lines import show_allocation, show_block, show_layers, show_metrics, show_model
from ecoflap.results import FILE_NAME, Result
from ecoflap.run_folder import claimed, discard_products
from ecoflap.score.scores import Scores
from ecoflap.store import AS_TENSORS, write_json
from ecoflap.telemetry import measure
from ecoflap.tracking import NoTracker, Tracker

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
    values: Any = OmegaConf.to_container(config, resolve=True)
    with joined(folder, config.device) as own, claimed(own, values, config.resume, shared_folder(own)) as earlier:
        if earlier.result is not None:
            log.info("finished already: %s; resume=false runs it anew", folder / FILE_NAME)
            return earlier.result
        plan = make_plan(config, own)
        if earlier.unfinished:
            log.info("going on with the run in %s", own)
        else:
            discard_products(own)
        return _run(plan)


def _run(plan: Plan) -> Result:
    """The steps, followed by the tracker."""
    tracker = plan.tracking.start(plan.config, plan.name, plan.folder) if is_first() else NoTracker()
    failed = True
    try:
        result, progress = _work(plan, tracker)
        show_in_tracker(tracker, result, progress)
        failed = False
    finally:
        tracker.close(failed)
    log.info("result: %s", plan.folder / FILE_NAME)
    return result


def inspect(config: DictConfig) -> None:
    """Show what would be pruned, from the model's shapes alone; neither weights nor data are read.

    Raises:
        UserError: there is no such model, tower or layer.
    """
    model: PrunableModel = build("model", config.model).load(torch.device("meta"), Selection(config.towers, list(config.skip_layers)))
    show_model(model)
    show_layers(model)


def _work(plan: Plan, tracker: Tracker) -> tuple[Result, Progress]:
    """The steps. Nothing in the run's folder counts before ``result.json``, which is written last and whole."""
    costs: dict[str, dict[str, Any]] = {}
    model = _load(plan, costs, resolve_device(plan.config["device"]))
    progress = Progress(model.fingerprint(), costs)
    evaluations = {name: task.load(model) for name, task in plan.tasks.items()} if "evaluate" in plan.steps else {}
    if "calibrate" in plan.steps:
        refuse_overlap(_calibrate(plan, model, progress), evaluations)
    _evaluate_dense(plan, model, evaluations, progress)
    if "score" in plan.steps and plan.scorer is not None:
        _score(plan, model, progress)
    whole_model = isinstance(plan.pruner, WholeModelPruner)
    if "allocate" in plan.steps and not whole_model:
        _allocate(plan, model, progress)
    if "prune" in plan.steps:
        (_prune_whole_model if whole_model else _prune)(plan, model, progress)
        _evaluate(plan, model, evaluations, progress, "pruned")
    if plan.finetuner is not None:
        _finetune(plan, model, progress, tracker)
        _evaluate(plan, model, evaluations, progress, "finetuned")
    result = conclude(plan, model, progress)
    for name in progress.metrics.get("dense", {}):
        show_metrics(f"{model.name} on {name}", {when: by_task[name] for when, by_task in progress.metrics.items()})
    return result, progress


def _load(plan: Plan, costs: dict[str, dict[str, Any]], device: torch.device) -> PrunableModel:
    with measure(costs, "load"):
        if (offload := plan.config["runtime"]["offload"]) == "none":
            model = warm_model.load(plan.loader, device, plan.selection, keep=runs_follow())
        else:
            shutil.rmtree(plan.folder / WORK, ignore_errors=True)  # a stopped run's
            model = load_offloaded(plan.loader, device, plan.selection, offload, plan.folder / WORK)
    show_model(model)
    if not isinstance(plan.pruner, WholeModelPruner):
        plan.pruner.rule.check(model.layers, plan.config["sparsity"], plan.scorer is not None or not plan.allocator.needs_scores)
    return model


def _calibrate(plan: Plan, model: PrunableModel, progress: Progress) -> CalibrationSet:
    with measure(progress.costs, "calibrate"):
        group = plan.config["model"]
        processor = {name: value for name, value in group.items() if name not in ("name", "save")}
        progress.calibration = stored_calibration(
            plan.store, plan.calibrator, model, progress.fingerprint, plan.config["calibration"], processor, plan.config["seed"]
        )
    if not len(progress.calibration):
        raise UserError(f"calibration={plan.calibrator.name} gave no samples; calibration.samples must be at least 1")
    asked = plan.calibrator.samples
    if asked is not None and asked > len(progress.calibration):
        log.warning("calibration.samples=%d was asked for and there are only %d", asked, len(progress.calibration))
    log.info("calibrate: %d samples of %s", len(progress.calibration), progress.calibration.name)
    return progress.calibration


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
            with_mean({name: dense}, plan.mean)  # refused now, not after the other tasks
    progress.metrics["dense"] = with_mean(metrics, plan.mean)


def _evaluate(plan: Plan, model: PrunableModel, evaluations: dict[str, Evaluation], progress: Progress, when: str) -> None:
    """Measure the model as it is now on each task."""
    if not evaluations:
        return
    fingerprint = model.fingerprint()
    with measure(progress.costs, "evaluate" if when == "pruned" else f"evaluate_{when}"):
        metrics = {name: evaluation(model, _journal(plan, name, when, fingerprint, evaluation)) for name, evaluation in evaluations.items()}
    progress.metrics[when] = with_mean(metrics, plan.mean)


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
    finished, given = finished_blocks(plan, progress), None
    with measure(progress.costs, "prune"):
        options = {name: plan.config[name] for name in ("batch_size", "propagate")}
        if plan.config["propagate"] == "dense" and plan.pruner.statistic is MeanSquare:
            given = _dense_statistics(plan, model, progress)
        more = {"finished": finished, "given": given, **options}
        progress.report = prune(model, progress.calibration, plan.pruner, progress.allocation, on_block=show_block, **more)


def _dense_statistics(plan: Plan, model: PrunableModel, progress: Progress) -> dict[str, Tensor]:
    """What Wanda wants to know of the dense model's inputs, shared by all runs; a Gram matrix would be too large to keep."""
    assert progress.calibration is not None
    calibration, batch_size = progress.calibration, plan.config["batch_size"]
    key = {
        "version": 1,
        "transformers": transformers.__version__,
        "model": progress.fingerprint,
        "loss": model.loss_identity(plan.config["model"].get("loss")),
        "layers": [layer.name for layer in model.layers],
        "calibration": calibration.fingerprint(),
        "batch_size": batch_size,
    }
    found: dict[str, Tensor] = plan.store.get_or_compute("statistics", key, lambda: measure_dense(model, calibration, batch_size), AS_TENSORS)[0]
    return found


def _prune_whole_model(plan: Plan, model: PrunableModel, progress: Progress) -> None:
    assert isinstance(plan.pruner, WholeModelPruner)
    with measure(progress.costs, "prune"):
        samples = read_everything(plan.calibrator, model, plan.config["seed"]) if plan.pruner.trains else progress.calibration
        progress.allocation, progress.report = plan.pruner.prune(model, samples, plan.config["sparsity"], show_block)
    write_json(plan.folder / "allocation.json", asdict(progress.allocation))
    show_allocation(model, progress.allocation)


def _finetune(plan: Plan, model: PrunableModel, progress: Progress, tracker: Tracker) -> None:
    assert plan.finetuner is not None
    assert progress.report is not None
    masks, device = progress.report.masks, model.device
    agree(model, masks)
    job = Job(
        model=model,
        masks=masks,
        reader=plan.calibrator,
        calibration=progress.calibration,
        dense=lambda: plan.loader.load(device, plan.selection),
        batch_size=plan.config["batch_size"],
        seed=plan.config["seed"],
        folder=shared_folder(plan.folder) / "finetune",
        identity={"model": progress.fingerprint, "method": plan.finetuner.name, "masks": masks_fingerprint(masks)},
        show=partial(tracker.log_point, "finetune"),
    )
    with measure(progress.costs, "finetune"):
        progress.training = plan.finetuner.finetune(job)
    agree(model, masks)
    write_json(plan.folder / "finetune.json", asdict(progress.training))
