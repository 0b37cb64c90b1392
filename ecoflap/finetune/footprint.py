"""What a training keeps in memory beside its activations, as far as that is known before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from ecoflap.blocks.footprint import WIDE
from ecoflap.models.core.layers import Layer


@dataclass(frozen=True)
class TrainingFootprint:
    """What is alive at once.

    Attributes:
        weights: bytes of the weights and their masks, and of the matrices that are built of what is trained.
        trained: numbers that are trained at a time; each has a gradient and the two moments of Adam.
        batch_size: samples per step; None for the run's own.
        float32: activations are in fp32, whatever the model's dtype.
        recompute: the activations of blocks are computed again in the backward pass.
        by_block: one block is trained at a time, while the hidden states of all samples wait.
        sharded: weights, gradients and moments are shared out over the processes.
        less_weights: options that need less memory for weights.
    """

    weights: int
    trained: int
    batch_size: int | None = None
    float32: bool = False
    recompute: bool = False
    by_block: bool = False
    sharded: bool = False
    less_weights: tuple[str, ...] = ()

    @property
    def held(self) -> int:
        """Bytes of weights, gradients and moments."""
        return self.weights + 3 * WIDE * self.trained


def masked_sizes(layers: list[Layer], sparsity: float) -> tuple[int, int]:
    """How many weights some layers have, and how many of them a sparsity leaves."""
    size = sum(layer.size for layer in layers)
    return size, round((1 - sparsity) * size)
