"""Local scores: a fine-stage metric of a layer's own weights and inputs, in contrast to the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ecoflap.blocks.footprint import Footprint
from ecoflap.blocks.gram import Gram
from ecoflap.blocks.layer_calls import require_calls
from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.blocks.walk import walk
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import require_choices, require_positive
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import wanda_metric
from ecoflap.score.options import LocalOptions
from ecoflap.score.protocol import Scorer
from ecoflap.score.scores import Average, Scores, collect

DAMPING = 0.01


def wanda_sum(weight: Tensor, statistic: Statistic) -> Tensor:
    """The sum over weights of |w| times the norm of its input column."""
    assert isinstance(statistic, MeanSquare)
    return wanda_metric(weight, statistic.value).sum()


def sparsegpt_sum(weight: Tensor, statistic: Statistic) -> Tensor:
    """The sum over weights of w^2 / d^2, with d the diagonal of the damped inverse Hessian's factor."""
    assert isinstance(statistic, Gram)
    factor = statistic.factor(DAMPING)
    return (weight.float().square() / factor.upper.diagonal().square())[:, ~factor.dead].sum()


MEASURES: dict[str, tuple[type[Statistic], Callable[[Tensor, Statistic], Tensor]]] = {
    "wanda": (MeanSquare, wanda_sum),
    "sparsegpt": (Gram, sparsegpt_sum),
}


@dataclass(frozen=True)
class Local(LocalOptions, Scorer):
    """Score every layer by the sum of its fine-stage metric, on the dense model."""

    def __post_init__(self) -> None:
        require_choices("score", self)
        require_positive("score", self, "samples", "batch_size")

    @property
    @override
    def footprint(self) -> Footprint:
        """The statistic of one block's inputs, beside the hidden states of all samples."""
        return Footprint("blocks", statistic=MEASURES[self.measure][0])

    @override
    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "measure": self.measure,
            "samples": self.samples,
            "batch_size": self.batch_size,  # a loss may take negatives from the batch
        }

    @torch.no_grad()
    @override
    def __call__(self, model: PrunableModel, calibration: CalibrationSet, seed: int) -> Scores:
        """Score the layers; refuse a model that uses a layer's weight without calling its module."""
        kind, measure = MEASURES[self.measure]
        averages = {layer.name: Average() for layer in model.layers}
        batches = calibration.take(self.samples).batches(self.batch_size)
        require_calls(model, batches)
        with quiet_forward(model.module):
            for visit in walk(model, model.towers, batches, "score"):
                if (statistics := visit.measure(kind, leave=True)) is None:
                    continue
                with model.placement.using(visit.block):
                    for statistic, layers in groupby(visit.block.layers, statistics.__getitem__):
                        for layer in layers:
                            # An expert that no token reaches counts as little as it does in the loss.
                            value = 0.0 if statistic.assumed else measure(layer.matrix(), statistic).item()
                            averages[layer.name].add(value, 1.0, layer.name)
                        statistic.forget()
        samples = min(self.samples, len(calibration))
        return collect(self.name, averages, {**self.identity(), "samples": samples})
