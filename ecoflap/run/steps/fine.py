"""The steps after the allocation: prune, block by block or the whole model, and fine-tune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from torch import Tensor

from ecoflap.console.telemetry import measure
from ecoflap.console.tracking import Tracker
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.processes import shared_folder
from ecoflap.errors import NumericalError
from ecoflap.finetune.agreement import agree
from ecoflap.finetune.job import Job, masks_fingerprint
from ecoflap.finetune.options import ScheduleOptions
from ecoflap.finetune.training_set import read_everything, split_of
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.loading.loader import broken_parameter
from ecoflap.prune import driver
from ecoflap.prune.finished_blocks import FinishedBlocks
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.report import PruneReport
from ecoflap.run.plan import Plan
from ecoflap.run.show import show_allocation, show_block
from ecoflap.run.state import RunState
from ecoflap.run.steps.keys import blocks_key, computed_by, statistics_key
from ecoflap.run.stored_calibration import states_of_files
from ecoflap.storage.cache.entries import AS_TENSORS
from ecoflap.storage.file_names import ALLOCATION, BLOCKS, FINETUNE, TRAINING
from ecoflap.storage.files import write_json


def prune(plan: Plan, model: PrunableModel, state: RunState) -> None:
    """Remove weights, as the allocation or a pruner of the whole model decides."""
    with measure(state.costs, "prune"):
        if plan.pruner.allocates:
            samples = read_training(plan, model, state) if plan.pruner.trains else state.calibration
            pruned = plan.pruner.prune(model, samples, plan.config.sparsity, show_block, plan.config.seed)
            state.allocation, state.report = pruned
            agree(model, state.report.masks)  # each process has pruned the whole model by itself
        else:
            state.report = _prune_layers(plan, plan.pruner, model, state)
    if plan.pruner.allocates:
        assert state.allocation is not None
        write_json(plan.folder / ALLOCATION, asdict(state.allocation))
        show_allocation(model, state.allocation)


def _prune_layers(plan: Plan, pruner: LayerPruner, model: PrunableModel, state: RunState) -> PruneReport:
    """Prune block by block as allocated; store the pruned blocks, unless ``resume`` is false."""
    assert state.allocation is not None
    finished = None
    if plan.config.resume:
        finished = FinishedBlocks(shared_folder(plan.folder) / BLOCKS, blocks_key(plan, model, state))
    return driver.prune(
        model,
        state.calibration,
        pruner,
        state.allocation,
        plan.config.batch_size,
        on_block=show_block,
        propagate=plan.config.propagate,
        tokens=plan.config.tokens,
        finished=finished,
        recall=partial(_recall_statistics, plan, pruner, model, state),
    )


def _recall_statistics(
    plan: Plan,
    pruner: LayerPruner,
    model: PrunableModel,
    state: RunState,
    compute: Callable[[], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Statistics of all layers' inputs in the dense model, shared by all runs."""
    assert pruner.statistic is not None
    key = statistics_key(plan, pruner.statistic, model, state)
    found: dict[str, Tensor] = plan.store.get_or_compute("statistics", key, compute, AS_TENSORS)[0]
    return found


def read_training(
    plan: Plan, model: PrunableModel, state: RunState, samples: int | None = None
) -> CalibrationSet:
    """The first samples of the training split behind the calibration set, read once; None for all."""
    if samples not in state.training_split:
        state.training_split[samples] = read_everything(plan.calibrator, model, plan.config.seed, samples)
    return state.training_split[samples]


def trained_on(plan: Plan, model: PrunableModel, state: RunState) -> CalibrationSet | None:
    """The samples that the run will train on; None if it does not train on the training split."""
    if plan.pruner_trains:
        return read_training(plan, model, state)
    if plan.finetuner is not None and plan.finetuner_trains:
        return read_training(plan, model, state, plan.finetuner.samples)
    return None


def check_schedule(plan: Plan, model: PrunableModel, state: RunState) -> None:
    """Refuse a schedule that leaves no samples to train on, before anything is computed.

    Raises:
        UserError: if it holds out all samples, or the run has none.
    """
    if isinstance(plan.finetuner, ScheduleOptions):
        split_of(plan.finetuner, state.calibration, partial(read_training, plan, model, state))


def finetune(plan: Plan, model: PrunableModel, state: RunState, tracker: Tracker) -> None:
    """Fine-tune the kept weights; in a distributed run, all processes must agree before and after."""
    assert plan.finetuner is not None
    assert state.report is not None
    masks, device = state.report.masks, model.device
    agree(model, masks)
    job = Job(
        model=model,
        masks=masks,
        read=partial(read_training, plan, model, state),
        calibration=state.calibration,
        dense=lambda: plan.loader.load(device, plan.selection),
        batch_size=plan.config.batch_size,
        seed=plan.config.seed,
        folder=shared_folder(plan.folder) / TRAINING,
        identity={
            **computed_by(plan, "finetune"),
            "model": state.fingerprint,
            "method": plan.finetuner.name,
            "masks": masks_fingerprint(masks),
            "calibration": None if state.calibration is None else state.calibration.fingerprint(),
            "data": plan.config.calibration,
            "files": states_of_files(plan.calibrator, model, plan.config.seed, [plan.config.calibration]),
        },
        show=partial(tracker.log_point, "finetune"),
    )
    with measure(state.costs, "finetune"):
        state.training = plan.finetuner.finetune(job)
    agree(model, masks)
    _refuse_diverged(model)
    write_json(plan.folder / FINETUNE, asdict(state.training))


def _refuse_diverged(model: PrunableModel) -> None:
    """Refuse a model whose training diverged.

    The loss of a step says nothing about the weights after it, and weights that were trained in fp32 may be
    beyond the range of the model's own dtype.

    Raises:
        NumericalError: if a weight is NaN or infinite.
    """
    if (broken := broken_parameter(model.module)) is not None:
        name, parameter = broken
        dtype = str(parameter.dtype).removeprefix("torch.")
        raise NumericalError(
            f"{name} of {model.name} holds NaN or infinite weights in {dtype} after the training, which has"
            " diverged; use a smaller finetune.learning_rate"
        )
