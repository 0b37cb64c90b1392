"""Train all kept weights on the training split of the run's data."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from typing_extensions import override

from ecoflap.finetune.job import Job
from ecoflap.finetune.masked_parameters import masked_parameters
from ecoflap.finetune.options import FullOptions
from ecoflap.finetune.training import Supervised


@dataclass(frozen=True)
class Full(FullOptions, Supervised):
    """Train every parameter of the model; of pruned weights, only the kept ones."""

    @override
    def trainable(self, job: Job) -> AbstractContextManager[None]:
        layers = [layer for layer in job.model.layers if layer.name in job.masks]
        return masked_parameters(job.model.module, layers, job.masks)
