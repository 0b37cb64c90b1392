"""What the steps compute with: the model, the calibration set and the training split, read and checked."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ecoflap.console.telemetry import measure
from ecoflap.data.batch import Sample
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.collectives import require_same
from ecoflap.distributed.processes import size
from ecoflap.errors import UserError
from ecoflap.evaluate.overlap import refuse_overlap
from ecoflap.evaluate.protocol import Evaluation
from ecoflap.finetune.options import ScheduleOptions
from ecoflap.finetune.training_set import read_everything, split_of
from ecoflap.models.core.forward_modes import as_before
from ecoflap.models.core.hub_kernels import remove_kernels
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.load import load_offloaded
from ecoflap.models.offload.placement import WORK
from ecoflap.prune.inputs import require_capture
from ecoflap.run import model_reuse
from ecoflap.run.invocation import given_options, runs_in_sequence
from ecoflap.run.plan import Plan, few_samples
from ecoflap.run.plan.preflight import check_methods
from ecoflap.run.show import show_model
from ecoflap.run.state import RunState
from ecoflap.run.steps.keys import computed_by
from ecoflap.run.steps.memory import keep_states, memory_needs
from ecoflap.run.steps.memory_table import show_needs
from ecoflap.run.steps.sample_cost import sample_cost
from ecoflap.run.steps.workload import Workload
from ecoflap.run.stored_calibration import stored_calibration

log = logging.getLogger(__name__)


def load(plan: Plan, device: torch.device) -> tuple[PrunableModel, RunState]:
    """Load the model and show what will be pruned; returns the model and a new run state.

    Raises:
        UserError: if it can't be loaded, the processes of the run load different ones, the pruner can't prune
            it, or the finetuner can't train it.
    """
    costs: dict[str, dict[str, Any]] = {}
    with measure(costs, "load"):
        if (offload := plan.config.runtime.offload) == "none":
            model, fingerprint = model_reuse.load(
                plan.loader, device, plan.selection, keep=runs_in_sequence()
            )
        else:
            shutil.rmtree(plan.folder / WORK, ignore_errors=True)  # left by a stopped run
            model = load_offloaded(plan.loader, device, plan.selection, offload, plan.folder / WORK)
            fingerprint = model.fingerprint()
        require_same(lambda: fingerprint, "models (weights or settings)")
    remove_kernels(model.module)  # those that a loader of the user's own may have set
    show_model(model, plan.config.sparsity)
    check_methods(plan, model)
    return model, RunState(fingerprint, costs)


def read_data(plan: Plan, model: PrunableModel, state: RunState) -> dict[str, Evaluation]:
    """Load the tasks that the run measures, and draw the calibration set.

    Raises:
        UserError: if the data can't be used, or a task reads what the model is calibrated with.
    """
    tasks = plan.tasks if "evaluate" in plan.steps else {}
    evaluations = {name: task.load(model) for name, task in tasks.items()}
    if "calibrate" in plan.steps:
        refuse_overlap(calibrate(plan, model, state), evaluations)
    return evaluations


def calibrate(plan: Plan, model: PrunableModel, state: RunState) -> CalibrationSet:
    """Draw the calibration set.

    Raises:
        UserError: if there are no samples.
    """
    with measure(state.costs, "calibrate") as cost, as_before(model.module):
        processor = {name: value for name, value in plan.config.model.items() if name not in ("name", "save")}
        key = {
            **computed_by(plan, "calibration"),
            "calibration": plan.config.calibration,
            "processor": processor,
            "model": state.fingerprint,
        }
        state.calibration, cost["cached"] = stored_calibration(
            plan.store, plan.calibrator, model, plan.config.seed, key
        )
    if not len(state.calibration):
        raise UserError(
            f"calibration={plan.calibrator.name} gave no samples; calibration.samples must be at least 1"
        )
    asked = plan.calibrator.samples
    if asked is not None and asked > len(state.calibration):
        message = "calibration.samples=%d was asked for and there are only %d"
        log.warning(message, asked, len(state.calibration))
    if asked is None or asked > len(state.calibration):
        for sentence in few_samples(plan, given_options(), len(state.calibration)):
            log.warning("%s", sentence)
    log.info("calibrate: %d samples of %s", len(state.calibration), state.calibration.name)
    return state.calibration


def check_capture(plan: Plan, model: PrunableModel, state: RunState) -> None:
    """Refuse layers whose inputs the pruner could not capture, and samples that the allocator can't use.

    Raises:
        UserError: as ``require_capture`` and the allocator do.
    """
    assert state.calibration is not None
    config, samples = plan.config, state.calibration
    if "allocate" in plan.steps and not plan.pruner.allocates:
        plan.allocator.check_samples(model, samples, config.batch_size)
    if "prune" in plan.steps:
        require_capture(model, plan.pruner, samples, config.batch_size, config.propagate, config.tokens)


def show_memory(plan: Plan, model: PrunableModel, state: RunState) -> None:
    """Print how much memory scoring, allocating, pruning and training will need in each process."""
    assert state.calibration is not None
    training = None if plan.finetuner is None else plan.finetuner.footprint(model, plan.config.sparsity)
    stores = training is not None and not (training.by_block or training.recompute)
    stores = stores or ("prune" in plan.steps and plan.pruner.footprint.trained)
    cost = sample_cost(model, state.calibration, stores)
    work = Workload.of(plan, len(state.calibration), size())
    needs = memory_needs(model, cost, work)
    show_needs(model, keep_states(model, needs))


def read_training(
    plan: Plan, model: PrunableModel, state: RunState, samples: int | None = None
) -> CalibrationSet:
    """The first samples of the training split behind the calibration set, read once; None for all."""
    if samples not in state.training_split:
        state.training_split[samples] = read_everything(plan.calibrator, model, plan.config.seed, samples)
    return state.training_split[samples]


def _trained_on(plan: Plan, model: PrunableModel, state: RunState) -> CalibrationSet | None:
    """The samples that the run will train on; None if it does not train on the training split."""
    if plan.pruner_trains:
        return read_training(plan, model, state)
    if plan.finetuner is not None and plan.finetuner_trains:
        return read_training(plan, model, state, plan.finetuner.samples)
    return None


def check_training(
    plan: Plan, model: PrunableModel, evaluations: Mapping[str, Evaluation], state: RunState
) -> None:
    """Refuse samples to train on that are measured on too, or none, before anything is computed.

    Raises:
        UserError: if a task reads what the run trains on, or the schedule holds out all samples or has none.
    """
    if evaluations and (training := _trained_on(plan, model, state)) is not None:
        refuse_overlap(training, evaluations, published=True)
    finetuned_on(plan, model, state)


def finetuned_on(plan: Plan, model: PrunableModel, state: RunState) -> Sequence[Sample] | None:
    """The samples that the run will fine-tune on; None if it doesn't, or that is not known.

    Raises:
        UserError: if the schedule holds out all samples or has none.
    """
    if isinstance(plan.finetuner, ScheduleOptions):
        return split_of(plan.finetuner, state.calibration, partial(read_training, plan, model, state)).train
    calibration = None if plan.finetuner is None or plan.finetuner_trains else state.calibration
    return None if calibration is None else calibration.samples
