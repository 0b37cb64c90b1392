"""LoRA (Hu et al., ICLR 2022) under the mask: low-rank updates of kept weights, merged at the end.

    W' = W + M * (alpha / r) B A

The product is masked during training, not only when it is merged: a model that is trained with an unmasked
update differs from the model that remains after masking. A weight is the sum wherever the model reads it, so
experts that share a parameter, packed projections and weights with several owners are updated like others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import override

from ecoflap.blocks.footprint import WIDE
from ecoflap.errors import require_positive
from ecoflap.finetune.footprint import TrainingFootprint, masked_sizes
from ecoflap.finetune.job import Job
from ecoflap.finetune.masked_parameters import gathered_whole, parametrized
from ecoflap.finetune.options import LoraOptions
from ecoflap.finetune.training import Supervised
from ecoflap.models.core.layers import Layer, by_parameter, whole_mask
from ecoflap.models.core.prunable import PrunableModel


class LowRankUpdate(nn.Module):
    """Adds the masked updates of the layers in a parameter to it.

    Attributes:
        down: A of each layer, [layers, rank, cols].
        up: B of each layer, [layers, rows, rank].
    """

    mask: Tensor
    numbers: Tensor

    def __init__(
        self, layers: Sequence[Layer], mask: Tensor, down: nn.Parameter, up: nn.Parameter, scale: float
    ) -> None:
        """Take the layers in a parameter.

        Args:
            layers: one, or some of the experts that share the parameter.
            mask: bool, as the parameter is stored, True where a weight is kept.
            down: A of each layer, [layers, rank, cols].
            up: B of each layer, [layers, rows, rank].
            scale: alpha / r.
        """
        super().__init__()
        self.down, self.up, self.scale = down, up, scale
        self.transposed = layers[0].transposed
        numbers, (_, self.experts) = [layer.expert[0] for layer in layers], layers[0].expert
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("numbers", torch.tensor(numbers, device=mask.device), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The parameter without updates -> with them, in the same shape."""
        updates = self.scale * gathered_whole(self.up) @ gathered_whole(self.down)  # [layers, rows, cols]
        if self.transposed:
            updates = updates.transpose(1, 2)
        if len(updates) < self.experts:
            every = updates.new_zeros(self.experts, *updates.shape[1:])
            updates = every.index_copy(0, self.numbers, updates)
        return gathered_whole(weight) + self.mask * updates.reshape(self.mask.shape)


@dataclass(frozen=True)
class Lora(LoraOptions, Supervised):
    """Low-rank updates of the pruned weights, merged under their masks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("finetune", self, "rank", "alpha")

    @override
    def footprint(self, model: PrunableModel, sparsity: float) -> TrainingFootprint:
        """All weights, the masks, and each pruned weight with its update added."""
        masked, _ = masked_sizes(model.layers, sparsity)
        trained = sum(self.rank * sum(layer.shape) for layer in model.layers)
        return self.of_schedule(model, WIDE * (model.parameter_count() + masked + trained) + masked, trained)

    @override
    @contextmanager
    def trainable(self, job: Job) -> Iterator[None]:
        """Train only updates of all masked layers in a context; merge them, or drop them after an error."""
        module, layers = job.model.module, [one for one in job.model.layers if one.name in job.masks]
        gradients = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        updates = self._updates(layers, job.masks, job.seed)
        try:
            for parameter, _ in gradients:
                parameter.requires_grad_(False)
            with parametrized(module, updates):
                yield
            with torch.no_grad():
                for weight, update in updates:
                    weight.copy_(update()(weight))
        finally:
            for parameter, flag in gradients:
                parameter.requires_grad_(flag)

    def _updates(
        self, layers: Sequence[Layer], masks: Mapping[str, Tensor], seed: int
    ) -> list[tuple[nn.Parameter, partial[LowRankUpdate]]]:
        """The parameters that layers are in, each with what makes its update: zero, as B is."""
        generator, scale = torch.Generator().manual_seed(seed), self.alpha / self.rank
        made: list[tuple[nn.Parameter, partial[LowRankUpdate]]] = []
        for _, parts in by_parameter(layers):
            (rows, cols), weight, mask = parts[0].shape, parts[0].parameter, whole_mask(parts, masks)
            bound = 1 / math.sqrt(cols)  # Kaiming's for a linear layer, as the paper's code draws A
            down = torch.empty(len(parts), self.rank, cols).uniform_(-bound, bound, generator=generator)
            down, up = (one.to(weight) for one in (down, torch.zeros(len(parts), rows, self.rank)))
            update = partial(LowRankUpdate, parts, mask, nn.Parameter(down), nn.Parameter(up), scale)
            made.append((weight, update))
        return made
