"""Train all kept weights on the training split of the run's data."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from typing_extensions import override

from ecoflap.blocks.footprint import WIDE
from ecoflap.finetune.footprint import TrainingFootprint, masked_sizes
from ecoflap.finetune.job import Job
from ecoflap.finetune.masked_parameters import masked_parameters
from ecoflap.finetune.options import FullOptions
from ecoflap.finetune.training import Supervised
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class Full(FullOptions, Supervised):
    """Train every parameter of the model; of pruned weights, only the kept ones."""

    @override
    def trainable(self, job: Job) -> AbstractContextManager[None]:
        layers = [layer for layer in job.model.layers if layer.name in job.masks]
        return masked_parameters(job.model.module, layers, job.masks)

    @override
    def footprint(self, model: PrunableModel, sparsity: float) -> TrainingFootprint:
        """Kept values, masks, the matrices that are built of both, and all other weights."""
        (masked, kept), every = masked_sizes(model.layers, sparsity), model.parameter_count()
        found = self.of_schedule(model, WIDE * (every + kept) + masked, every - masked + kept)
        return replace(found, less_weights=("finetune=lora", *found.less_weights))
