"""The finetune step: train the kept weights, and refuse a training that diverged."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import torch

from ecoflap.console.telemetry import measure
from ecoflap.console.tracking import Tracker
from ecoflap.distributed.processes import shared_folder
from ecoflap.errors import NumericalError
from ecoflap.finetune.agreement import agree
from ecoflap.finetune.job import Job, masks_fingerprint
from ecoflap.models.core.finite_weights import broken_parameter
from ecoflap.models.core.hub_kernels import remove_kernels
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.run.plan import Plan
from ecoflap.run.state import RunState
from ecoflap.run.steps.keys import computed_by
from ecoflap.run.steps.prepare import read_training
from ecoflap.run.stored_calibration import states_of_files
from ecoflap.storage.file_names import FINETUNE, TRAINING
from ecoflap.storage.files import write_json


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
        dense=partial(_load_dense, plan, device),
        batch_size=plan.config.batch_size,
        seed=plan.config.seed,
        folder=shared_folder(plan.folder) / TRAINING,
        identity={
            **computed_by(plan, "finetune"),
            "model": state.fingerprint,
            "pruned": model.fingerprint(),
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


def _load_dense(plan: Plan, device: torch.device) -> PrunableModel:
    """Load the model before pruning, as the run prepares its own."""
    model: PrunableModel = plan.loader.load(device, plan.selection)
    remove_kernels(model.module)
    return model


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
