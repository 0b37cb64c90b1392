"""Train all kept weights on the training split of the run's data."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from ecoflap.finetune.job import Job, Training
from ecoflap.finetune.masked_parameters import count_trained, masked_parameters
from ecoflap.finetune.options import FullOptions
from ecoflap.finetune.protocol import Finetuner
from ecoflap.finetune.schedule import Schedule
from ecoflap.finetune.training import train
from ecoflap.finetune.training_set import split_of
from ecoflap.models.core.forward_modes import in_float32


@dataclass(frozen=True)
class Full(FullOptions, Schedule, Finetuner):
    """Train every parameter of the model; of pruned weights, only the kept ones."""

    @override
    def finetune(self, job: Job) -> Training:
        split = split_of(self, job.calibration, job.read)
        layers = [layer for layer in job.model.layers if layer.name in job.masks]
        with in_float32(job.model.module), masked_parameters(job.model.module, layers, job.masks):
            trained = count_trained(job.model.module)
            curve = train(self, job, split)
        return Training(
            self.name,
            {"name": split.name, "samples": len(split.train), "held_out": len(split.held_out)},
            trained,
            curve,
        )
