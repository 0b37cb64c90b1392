"""Training with labels, of whatever parameters require gradients."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import transformers
from accelerate.utils import patch_environment
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments
from typing_extensions import override

from ecoflap.distributed.processes import naming_the_failed, size
from ecoflap.errors import UserError
from ecoflap.finetune.checkpoints import has_ended, last_checkpoint
from ecoflap.finetune.footprint import TrainingFootprint
from ecoflap.finetune.job import Job, Point, Training
from ecoflap.finetune.learner import Learner
from ecoflap.finetune.masked_parameters import count_trained
from ecoflap.finetune.protocol import Finetuner
from ecoflap.finetune.schedule import Schedule
from ecoflap.finetune.sharding import require_sharding, sharded
from ecoflap.finetune.trainer import Curve, PrunedTrainer, to_point
from ecoflap.finetune.training_set import Collator, Split, plain_errors, split_of
from ecoflap.models.core.forward_modes import configs_of, in_float32
from ecoflap.models.core.losses import find_loss
from ecoflap.models.core.prunable import PrunableModel

log = logging.getLogger(__name__)

ACCUMULATES = "4.57"
"""The release of transformers since which a last step of fewer parts is neither lost nor resumed wrongly."""
DEVICE = "ACCELERATE_TORCH_DEVICE"  # transformers and accelerate read it
PRECISION = "ACCELERATE_MIXED_PRECISION"  # they read it where their options name no half precision


@dataclass(frozen=True)
class Supervised(Schedule, Finetuner):
    """Training with labels; a method of it chooses the values to train."""

    @abstractmethod
    def trainable(self, job: Job) -> AbstractContextManager[None]:
        """A context in which only the values to train require gradients; the model keeps them after it."""

    @override
    def check_model(self, model: PrunableModel) -> None:
        """Refuse libraries that are too old for the training, before anything is pruned."""
        require_libraries(self)

    def of_schedule(self, model: PrunableModel, weights: int, trained: int) -> TrainingFootprint:
        """A footprint with what the schedule says of it."""
        precision, sharding = self.mixed_precision(model.device), "finetune.shard=true in several processes"
        return TrainingFootprint(
            weights,
            trained,
            self.batch_size,
            float32=precision == "float32",
            recompute=self.recompute,
            sharded=self.shard,
            less_weights=() if self.shard else (sharding,),
        )

    @override
    def passes(self, samples: int) -> float:
        return self.optimizer_steps(samples) * self.accumulation * min(self.batch_size, samples)

    @override
    def finetune(self, job: Job) -> Training:
        split = split_of(self, job.calibration, job.read)
        with in_float32(job.model.module), self.trainable(job):
            trained = count_trained(job.model.module)
            curve = train(self, job, split)
        data = {"name": split.name, "samples": len(split.train), "held_out": len(split.held_out)}
        return Training(self.name, data, trained, curve)


def require_libraries(schedule: Schedule) -> None:
    """Refuse libraries that are too old for a training.

    Raises:
        UserError: if transformers has no such trainer, or one that loses accumulated parts, or torch can't
            shard over the processes of the run.
    """
    if not hasattr(TrainingArguments, "eval_strategy"):
        raise UserError(
            f"fine-tuning needs transformers 4.46 or newer, and {transformers.__version__} is installed here;"
            " install a newer one"
        )
    if schedule.accumulation > 1 and _release(transformers.__version__) < _release(ACCUMULATES):
        raise UserError(
            f"finetune.accumulation={schedule.accumulation} needs transformers {ACCUMULATES} or newer, and"
            f" {transformers.__version__} is installed here; install a newer one, or set it to 1 and use"
            " another finetune.batch_size"
        )
    if schedule.shard and size() > 1:
        require_sharding()


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(number) for number in version.split(".")[:2])


def train(schedule: Schedule, job: Job, split: Split) -> list[Point]:
    """Train what requires gradients, from the last checkpoint of the same training in the job's folder.

    Returns:
        The curve, including the points before a resumption.

    Raises:
        UserError: if the installed libraries are too old, or can't train on the model's device.
        NumericalError: if a loss is NaN or infinite.
    """
    require_libraries(schedule)
    model, shard = job.model, schedule.shard and size() > 1
    if schedule.loss is not None:
        model = replace(model, loss_function=find_loss(schedule.loss, {}))
    learner = Learner(model, in_step=shard)
    # accelerate's launcher sets a precision, and releases of transformers before 5 leave that of a training.
    with patch_environment(**{PRECISION: "no"}):
        trainer = _trainer(schedule, job, split, learner, Collator(model))
    identity = {
        "loss": model.loss_identity(schedule.loss),
        "schedule": asdict(schedule),
        "samples": len(split.train),
        "seed": job.seed,
        "processes": size(),
    }
    last = last_checkpoint(job.folder, {**job.identity, **identity})
    if last is not None:
        log.info("finetune: resumes from %s", last)
    with naming_the_failed(), plain_errors(), ExitStack() as context:
        if shard:
            context.enter_context(sharded(learner, model.blocks))
            trainer.prepare_alone()
        context.enter_context(_training_mode(job.model.module, schedule))
        if last is not None and has_ended(last):
            trainer.return_to(last)
        else:
            trainer.train(resume_from_checkpoint=last)
    return [point for entry in trainer.state.log_history if (point := to_point(entry)) is not None]


def _trainer(
    schedule: Schedule, job: Job, split: Split, learner: Learner, collator: Collator
) -> PrunedTrainer:
    """The Trainer of a learner, whose losses ``Curve`` shows."""
    device = job.model.device
    arguments = _arguments(schedule.arguments(job.folder, job.seed, device, len(split.train), size()), device)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several accelerators in one process would be nn.DataParallel
    callbacks: list[TrainerCallback] = [Curve(job.show)]
    if schedule.patience is not None:
        callbacks.append(EarlyStoppingCallback(schedule.patience))
    trainer = PrunedTrainer(
        model=learner,
        args=arguments,
        data_collator=collator,
        train_dataset=split.train,
        eval_dataset=split.held_out if schedule.held_out else None,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(options: dict[str, Any], device: torch.device) -> TrainingArguments:
    """The Trainer's options, with the device named if the Trainer does not find the accelerator itself.

    Raises:
        UserError: if it can't train in this precision, or on this device.
    """
    try:
        arguments = TrainingArguments(**options)
        if arguments.device.type != device.type:
            with patch_environment(**{DEVICE: device}):
                arguments = TrainingArguments(**options)
    except ValueError as error:
        raise UserError(
            f"transformers' trainer can't train so on {device} ({error}); use finetune.precision=float32"
        ) from error
    if arguments.device.type != device.type:
        raise UserError(
            f"device={device}: transformers' trainer would train on {arguments.device}; "
            "use finetune=reconstruct, which needs no trainer, or device=cpu"
        )
    return arguments


@contextmanager
def _training_mode(module: nn.Module, schedule: Schedule) -> Iterator[None]:
    """Disable the key-value cache, recompute activations if requested; then return to evaluation mode.

    Raises:
        UserError: if the model can't recompute activations.
    """
    with ExitStack() as afterwards:
        afterwards.callback(module.eval)
        for config in configs_of(module):
            if getattr(config, "use_cache", None):
                config.use_cache = False
                afterwards.callback(setattr, config, "use_cache", True)
        if schedule.recompute:
            # The name since transformers 5.24, which warns about the former one.
            new = hasattr(module, "activation_checkpointing_enable")
            prefix = f"{'activation' if new else 'gradient'}_checkpointing"
            try:
                getattr(module, f"{prefix}_enable")({"use_reentrant": False})
            except (AttributeError, ValueError) as error:
                raise UserError(
                    f"finetune.recompute=true: {type(module).__name__} can't recompute activations ({error});"
                    " set it to false"
                ) from None
            afterwards.callback(getattr(module, f"{prefix}_disable"))
        yield
