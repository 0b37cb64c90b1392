"""The schedule of a training with labels, and its options in terms of transformers' Trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ecoflap.errors import UserError, require_choices, require_positive
from ecoflap.finetune.options import ScheduleOptions
from ecoflap.models.core.losses import find_loss


@dataclass(frozen=True)
class Schedule(ScheduleOptions):
    """How long, how fast and on what."""

    def __post_init__(self) -> None:
        require_positive(
            "finetune",
            self,
            "samples",
            "steps",
            "batch_size",
            "accumulation",
            "every",
            "patience",
            "log_every",
        )
        require_choices("finetune", self)
        for option in ("epochs", "learning_rate", "clip"):
            if not 0 < getattr(self, option) < math.inf:
                raise UserError(f"finetune.{option}={getattr(self, option)} must be above 0, and finite")
        for option in ("weight_decay", "held_out", "workers"):
            if not 0 <= getattr(self, option) < math.inf:
                raise UserError(f"finetune.{option}={getattr(self, option)} must be at least 0, and finite")
        if self.samples is not None and self.held_out >= self.samples:
            raise UserError(
                f"finetune.held_out={self.held_out} of finetune.samples={self.samples} leaves nothing to"
                " train on; hold out fewer"
            )
        if not 0 <= self.warmup < 1:
            raise UserError(
                f"finetune.warmup={self.warmup} must be in [0, 1): the share of the steps in which the"
                " learning rate rises"
            )
        if self.shard and self.precision == "float16":
            raise UserError(
                "finetune.shard=true can't scale gradients, as finetune.precision=float16 needs; use bfloat16"
                " or float32"
            )
        if self.loss is not None:
            find_loss(self.loss, {}, "finetune.loss")
        if self.patience is not None and not self.held_out:
            raise UserError(
                f"finetune.patience={self.patience} needs samples to look at; set finetune.held_out to their"
                " number"
            )

    def mixed_precision(self, device: torch.device) -> str:
        """The precision of matrix products.

        Raises:
            UserError: if it is float16 on a CPU, which scales no gradients.
        """
        if self.precision == "auto":
            return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
        if self.precision == "float16" and device.type == "cpu":
            raise UserError(
                "finetune.precision=float16 needs an accelerator; on a CPU use float32 or bfloat16"
            )
        return self.precision

    def optimizer_steps(self, samples: int, processes: int = 1) -> int:
        """How many steps the optimizer takes on some samples."""
        of_step = self.batch_size * self.accumulation * processes
        return self.steps or max(1, round(self.epochs * -(-samples // of_step)))

    def arguments(
        self, folder: Path, seed: int, device: torch.device, samples: int, processes: int
    ) -> dict[str, Any]:
        """The options as transformers' ``TrainingArguments`` names them."""
        steps = self.optimizer_steps(samples, processes)
        when = {"strategy": "epoch"} if self.every is None else {"strategy": "steps", "steps": self.every}
        saving = {f"save_{name}": value for name, value in when.items()}
        evaluation: dict[str, Any] = {"eval_strategy": "no"}
        if self.held_out:
            evaluation = {f"eval_{name}": value for name, value in when.items()}
        precision = self.mixed_precision(device)
        return {
            "output_dir": str(folder),
            "per_device_train_batch_size": self.batch_size,
            "per_device_eval_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "max_steps": steps,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": round(self.warmup * steps),
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.clip,
            "bf16": precision == "bfloat16",
            "fp16": precision == "float16",
            "use_cpu": device.type == "cpu",
            "seed": seed,
            "logging_steps": self.log_every,
            "logging_first_step": True,
            **saving,
            **evaluation,
            "save_total_limit": 2 if self.held_out else 1,
            "restore_callback_states_from_checkpoint": self.patience is not None,
            "load_best_model_at_end": bool(self.held_out),
            "metric_for_best_model": "loss" if self.held_out else None,
            "greater_is_better": False if self.held_out else None,
            "dataloader_num_workers": self.workers,
            "dataloader_pin_memory": device.type != "cpu",
            "remove_unused_columns": False,
            "label_names": [],
            "report_to": [],
            "disable_tqdm": True,
        }
