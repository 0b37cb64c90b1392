"""The pipeline of a run: calibrate, score, allocate, prune, fine-tune if requested, evaluate."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ecoflap.console.pace import RunPace, run_pace
from ecoflap.console.startup import reuse_freed_memory
from ecoflap.console.tracking import NoTracker, Tracker
from ecoflap.distributed.collectives import from_first, gathered
from ecoflap.distributed.processes import is_first, joined_in
from ecoflap.models.core.forward_modes import full_precision, named_outputs
from ecoflap.models.core.preparation import same_tokenizer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.device import resolve_device
from ecoflap.models.offload.weight_memory import show_weights
from ecoflap.run.closing import show_closing, show_in_tracker
from ecoflap.run.folder import claimed, discard_products
from ecoflap.run.invocation import given_options, record_command, sweep_name
from ecoflap.run.new_folders import stays
from ecoflap.run.outcome import conclude
from ecoflap.run.plan import Plan, make_plan, unused
from ecoflap.run.plan.automatic import settle
from ecoflap.run.plan.parts import make
from ecoflap.run.show import show_layers, show_metrics, show_model
from ecoflap.run.state import RunState
from ecoflap.run.steps import coarse, prepare
from ecoflap.run.steps.evaluation import evaluate, evaluate_dense
from ecoflap.run.steps.finetune import finetune
from ecoflap.run.steps.prune import prune
from ecoflap.storage.file_names import RESULT
from ecoflap.storage.results import Result
from ecoflap.storage.results.sources import outdated

log = logging.getLogger(__name__)


def run(config: DictConfig, folder: Path) -> Result | None:
    """Run the steps of the config, and write ``result.json`` into the folder.

    Returns:
        The result; None if the run only inspects the model.

    Raises:
        UserError: if the config asks for something that can't be done.
        NumericalError: if a NaN or an infinity appears.
    """
    if config.inspect:
        inspect(config)
        return None
    given, config = config, settle(config)
    values: Any = OmegaConf.to_container(config, resolve=True)
    with (
        joined_in(folder, config.device) as own,
        claimed(own, values, config.resume) as earlier,
    ):
        # Found by the first process for all: it may have waited for another run that has just finished.
        if (result := from_first(earlier.result)) is not None:
            log.info("finished already: %s; resume=false runs it again", folder / RESULT)
            if sweep_name() is None:  # a sweep says it of all of its jobs before the first begins
                for sentence in outdated(result, values):
                    log.warning("%s", sentence)
            return result
        if is_first() and not (own / RESULT).is_file():  # before a plan: a refused run can be started again
            record_command(own, given)
        plan = make_plan(config, own)
        if sweep_name() is None and (idle := unused(plan, given_options())):
            log.warning("%s", "; ".join(idle))
        if earlier.unfinished:
            log.info("resuming the run in %s", own)
        else:
            discard_products(own)
        earlier.take_over()
        if is_first():  # over the record of an earlier result only once a plan shows that it may go
            record_command(own, given)
        if config.runtime.offload == "none":
            reuse_freed_memory()
        gathered(None)  # no process looks for finished blocks before others are discarded
        return _run(plan)


def _run(plan: Plan) -> Result:
    """Run the steps with a tracker; in a distributed run, the first process alone has one."""
    device = resolve_device(plan.config.device)  # before the tracker begins a run of its own
    tracker = plan.tracking.start(plan.record, plan.name, plan.folder) if is_first() else NoTracker()
    try:
        with full_precision(), run_pace() as pace:
            result, state = _run_steps(plan, device, tracker, pace)
        show_in_tracker(tracker, result, state)
    except BaseException as error:
        tracker.close(failed=True, kept=stays(plan.folder, error))
        raise
    tracker.close(failed=False)
    show_closing(result, plan.folder)
    return result


def inspect(config: DictConfig) -> None:
    """Show what would be pruned, from the model's shapes alone; neither weights nor data are read.

    Raises:
        UserError: if there is no such model, tower or layer.
    """
    selection = Selection(config.towers, list(config.skip_layers))
    model: PrunableModel = make("model", config.model).load(torch.device("meta"), selection)
    show_model(model, config.sparsity)
    dtype = str(model.layers[0].weight.dtype).removeprefix("torch.")
    show_weights(model, f"memory of the weights in {dtype}; in use: those in memory with runtime.offload")
    show_layers(model)


def _run_steps(plan: Plan, device: torch.device, tracker: Tracker, pace: RunPace) -> tuple[Result, RunState]:
    """Run the steps; a run is complete once ``result.json`` exists, which is written last."""
    model, state = prepare.load(plan, device)
    with same_tokenizer(model.processor), named_outputs(model.module):
        _compute(plan, model, state, tracker, pace)
    result = conclude(plan, model, state)
    for name in state.metrics.get("dense", {}):
        by_state = {when: by_task[name] for when, by_task in state.metrics.items()}
        show_metrics(f"{model.name} on {name}", by_state)
    return result, state


def _compute(plan: Plan, model: PrunableModel, state: RunState, tracker: Tracker, pace: RunPace) -> None:
    """Run all steps between loading the model and saving it."""
    evaluations = prepare.read_data(plan, model, state)
    if "calibrate" in plan.steps:
        prepare.show_memory(plan, model, state)
        prepare.check_capture(plan, model, state)
    prepare.check_training(plan, model, evaluations, state)
    evaluate_dense(plan, model, evaluations, state)
    if "prune" in plan.steps and evaluations and not state.costs["evaluate_dense"]["cached"]:
        pace.to_come["evaluate"] = float(state.costs["evaluate_dense"]["seconds"])
    if "score" in plan.steps and plan.scorer is not None:
        coarse.score(plan, model, state)
    if "allocate" in plan.steps and not plan.pruner.allocates:
        coarse.allocate(plan, model, state)
    if "prune" in plan.steps:
        prune(plan, model, state)
        pace.to_come.clear()
        evaluate(plan, model, evaluations, state, "pruned")
    if plan.finetuner is not None:
        finetune(plan, model, state, tracker)
        evaluate(plan, model, evaluations, state, "finetuned")
