"""The Trainer of transformers for a pruned model, with the loss of the model's family.

The Trainer steps, accumulates, distributes, saves and resumes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from ecoflap.console.progress import track
from ecoflap.distributed.collectives import from_first, gathered
from ecoflap.distributed.processes import rank, size
from ecoflap.errors import NumericalError
from ecoflap.finetune.job import Point
from ecoflap.finetune.sharding import copy_whole, is_sharded, load_states, reshard, save_states, unsharded
from ecoflap.finetune.training_set import first_of

log = logging.getLogger(__name__)

VALUES = "trained.safetensors"
STATES = "optimizer"  # a folder, of shards


class PrunedTrainer(Trainer):
    """Trains a ``Learner``; its checkpoints hold the trained values and nothing else of the model."""

    _samples = 1.0
    """Samples in this step, the mean over processes."""

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> Any:
        """The parts of a step, whose samples are counted here."""
        parts, items = super().get_batch_samples(*arguments, **keywords)
        if parts:
            parts[-1], last = self._once(parts[-1], self.train_dataset)
            self._samples = sum(len(part["rows"]) for part in parts[:-1]) + last
        return parts, items

    def _once(self, batch: dict[str, Any], dataset: Any) -> tuple[dict[str, Any], float]:
        """A batch without samples that are in another one, and the mean number of its samples over processes.

        accelerate fills the last batches of an epoch, one in each process, with the epoch's first samples.
        """
        full, state = self.args.train_batch_size, self.accelerator.gradient_state
        left = len(dataset) % (full * size())
        # Old releases may ask for more parts than are left, which closes the loader.
        is_last = state.end_of_dataloader or not state.in_dataloader
        if size() == 1 or not left or not is_last:
            return batch, len(batch["rows"])
        return first_of(batch, min(max(left - full * rank(), 0), full)), left / size()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        """The loss of a batch: the mean over its samples.

        In training, it is weighed so that the mean over the parts of a step and over processes, which the
        Trainer takes, is the mean over their samples. Older releases divide by the parts of a whole step also
        where there are fewer.

        Raises:
            NumericalError: if it is NaN or infinite.
        """
        loss = model(**inputs)
        if model.training:
            whole = self.args.gradient_accumulation_steps
            parts = getattr(self, "current_gradient_accumulation_steps", whole)
            loss = loss * (parts * len(inputs["rows"]) / self._samples)
        if not torch.isfinite(loss):
            raise NumericalError(
                f"the loss is {loss.item()} at step {self.state.global_step}; use a smaller"
                " finetune.learning_rate, or finetune.precision=float32"
            )
        return (loss, None) if return_outputs else loss

    def prepare_alone(self) -> None:
        """Prepare the model for its precision as accelerate would, but without DDP around it."""
        assert self.model is not None
        prepared: Any = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        prepared._is_accelerate_prepared = True

    @torch.no_grad()
    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any
    ) -> tuple[Tensor, None, None]:
        """The loss of a held-out batch; that of each process counts as often as its batch has samples."""
        inputs = self._prepare_inputs(self._once(inputs, self.eval_dataset)[0])
        with self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the trained values, from the first process."""
        folder = Path(output_dir or self.args.output_dir)
        values = {}
        for name, value in self._trained().items():
            whole = unsharded(value)  # by all processes
            if self.args.should_save:
                values[name] = whole.cpu().contiguous()
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(values, folder / VALUES)

    def _save_checkpoint(self, *arguments: Any, **keywords: Any) -> None:
        """Save a checkpoint, and let all processes take the first one's word for which is the best.

        Each looks for it on the disk, where it may not see yet what the first one writes.
        """
        super()._save_checkpoint(*arguments, **keywords)
        self.state.best_model_checkpoint = from_first(self.state.best_model_checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        gathered(None)  # the state that the first process writes next says that all files are whole

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / VALUES)
        with torch.no_grad():
            for name, value in self._trained().items():
                copy_whole(saved[name], value)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_states(self.model, self.optimizer, Path(output_dir) / STATES)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_states(self.model, self.optimizer, Path(checkpoint) / STATES)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def return_to(self, checkpoint: str) -> None:
        """Take the state and the model of a training that ended with a checkpoint, without another step."""
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        self._load_from_checkpoint(self.state.best_model_checkpoint or checkpoint)

    def _trained(self) -> dict[str, nn.Parameter]:
        """The trained values by name, shared ones once."""
        assert self.model is not None
        reshard(self.model)
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}


class Curve(TrainerCallback):
    """Shows a line of progress, and the losses during training."""

    def __init__(self, show: Callable[[Point], None]) -> None:
        self.show = show
        self._line: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the line of progress, in a resumed training at the step where it stopped."""
        self._line = iter(track(range(state.max_steps + 1), "finetune", total=state.max_steps))
        for _step in range(state.global_step + 1):
            next(self._line, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance the line of progress by a step; let the curve end with the last one."""
        next(self._line, None)
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Finish the line of progress."""
        self._line.close()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the newest point, if it is one of the curve and not the summary at the end."""
        if not state.is_world_process_zero or (point := to_point(state.log_history[-1])) is None:
            return
        figures = "  ".join(
            f"{name} {value:.4g}" for name, value in point.items() if name not in ("step", "epoch")
        )
        log.info(
            "finetune   step %d of %d  epoch %.2f  %s",
            point["step"],
            state.max_steps,
            point["epoch"],
            figures,
        )
        self.show(point)


NAMES = {
    "step": "step",
    "epoch": "epoch",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "eval_loss": "held_out_loss",
}


def to_point(entry: dict[str, Any]) -> Point | None:
    """The losses of an entry of the Trainer's history; None for an entry without any."""
    if "loss" not in entry and "eval_loss" not in entry:
        return None
    return {
        NAMES[name]: float(entry[name])
        for name in NAMES
        if name in entry and math.isfinite(float(entry[name]))
    }
