"""The steps up to the allocation: load, calibrate, score, allocate."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from ecoflap.allocate.allocation import check_counts
from ecoflap.allocate.protocol import Context
from ecoflap.console.telemetry import measure
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.collectives import from_process
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.load import load_offloaded
from ecoflap.models.offload.placement import WORK
from ecoflap.prune.inputs import require_capture
from ecoflap.run import model_reuse
from ecoflap.run.invocation import given_options, runs_in_sequence
from ecoflap.run.plan import Plan, few_samples
from ecoflap.run.show import show_allocation, show_model
from ecoflap.run.state import RunState
from ecoflap.run.steps.keys import allocate_key, computed_by, scores_key
from ecoflap.run.steps.memory import Workload, keep_states, memory_plan
from ecoflap.run.steps.memory_table import show_needs
from ecoflap.run.steps.sample_cost import sample_cost
from ecoflap.run.stored_calibration import stored_calibration
from ecoflap.score.scores import Scores
from ecoflap.storage.cache.store import Store
from ecoflap.storage.file_names import ALLOCATION, SCORES
from ecoflap.storage.files import write_json

log = logging.getLogger(__name__)


def load(plan: Plan, device: torch.device) -> tuple[PrunableModel, RunState]:
    """Load the model and show what will be pruned; returns the model and a new run state.

    Raises:
        UserError: if it can't be loaded, its layers can't have the mask of the pruner, or the finetuner can't
            train them.
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
    show_model(model, plan.config.sparsity)
    if not plan.pruner.allocates and {"allocate", "prune"} & set(plan.steps):
        plan.pruner.check_layers(model.layers)
    if plan.finetuner is not None:
        plan.finetuner.check_model(model)
    return model, RunState(fingerprint, costs)


def calibrate(plan: Plan, model: PrunableModel, state: RunState) -> CalibrationSet:
    """Draw the calibration set.

    Raises:
        UserError: if there are no samples.
    """
    with measure(state.costs, "calibrate") as cost:
        processor = {name: value for name, value in plan.config.model.items() if name not in ("name", "save")}
        state.calibration, cost["cached"] = stored_calibration(
            plan.store,
            plan.calibrator,
            model,
            state.fingerprint,
            plan.config.calibration,
            processor,
            plan.config.seed,
            computed_by(plan, "calibration"),
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
    """Refuse layers whose inputs the pruner could not capture.

    Raises:
        UserError: as ``require_capture`` does.
    """
    if "prune" in plan.steps:
        assert state.calibration is not None
        config, samples = plan.config, state.calibration
        require_capture(model, plan.pruner, samples, config.batch_size, config.propagate, config.tokens)


def show_memory(plan: Plan, model: PrunableModel, state: RunState) -> None:
    """Print how much memory scoring and pruning will need."""
    assert state.calibration is not None
    cost, work = sample_cost(model, state.calibration), Workload.of(plan, len(state.calibration))
    needs = memory_plan(model, cost, work)
    show_needs(model, keep_states(model, needs))


def score(plan: Plan, model: PrunableModel, state: RunState) -> None:
    """Score the layers, and write ``scores.json``."""
    assert state.calibration is not None
    assert plan.scorer is not None
    calibration, scorer, seed = state.calibration, plan.scorer, plan.config.seed
    key = scores_key(plan, model, state)
    with measure(state.costs, "score") as cost:
        value, cost["cached"] = plan.store.get_or_compute(
            "scores", key, lambda: scorer(model, calibration, seed).to_json()
        )
    state.scores = Scores.from_json(value)
    write_json(plan.folder / SCORES, value)


def allocate(plan: Plan, model: PrunableModel, state: RunState) -> None:
    """Turn the scores into a count per layer, and write ``allocation.json``."""
    assert not plan.pruner.allocates
    context = Context(
        plan.pruner,
        state.calibration,
        plan.config.batch_size,
        plan.config.seed,
        plan.config.tokens,
        # One line per step of an allocation would bury the others.
        recall=partial(_recall, replace(plan.store, level=logging.DEBUG), plan, model, state),
    )
    with measure(state.costs, "allocate"):
        allocation = plan.allocator(model, state.scores, plan.config.sparsity, context)
        state.allocation = from_process(plan.pruner.fitted(allocation))
        check_counts(state.allocation, model.layers)
    write_json(plan.folder / ALLOCATION, asdict(state.allocation))
    show_allocation(model, state.allocation)


def _recall(
    store: Store,
    plan: Plan,
    model: PrunableModel,
    state: RunState,
    name: Mapping[str, Any],
    compute: Callable[[], Any],
    dense: bool = False,
) -> Any:
    """An intermediate result of the allocation, which runs with other targets and resumed runs share."""
    return store.get_or_compute("allocate", allocate_key(plan, model, state, name, dense), compute)[0]
