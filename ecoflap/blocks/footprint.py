"""What a part keeps in memory while it works, as far as that is known before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ecoflap.blocks.statistics import Statistic

WIDE = 4  # bytes of an fp32 number
KEPT_BYTES = 2**30
"""Most bytes of pruned weights that are kept to be used again."""
Passes = Literal["blocks", "forward", "backward"]


@dataclass(frozen=True)
class Footprint:
    """What is alive at once.

    Attributes:
        passes: ``blocks``: one block runs at a time while the hidden states of all samples wait; ``forward``:
            the outputs of all blocks are stored, and forward passes start at any of them; ``backward``: a
            whole forward and backward pass.
        samples_per_pass: most samples that share a forward pass, of a part that runs several batches at once.
        statistic: gathered of the inputs of one block's layers.
        layers: fp32 copies of one layer.
        parameters: copies of the largest parameter that layers are in, in the model's dtype.
        copies: fp32 copies of all layers, on the CPU.
        trials: copies of all layers in the model's dtype, of a part that prunes in trials; the pruner's
            statistics of all layers' inputs come in addition. They are on the model's device, or on the CPU
            with an offloaded model.
        kept: most further such copies of pruned weights, which are used again; at most ``KEPT_BYTES`` of them
            are held.
        predictions: most samples whose logits wait on the CPU.
        batch_size: samples per pass; None for the run's own.
        float32: the weights are held in fp32, whatever the model's dtype.
        trained: all weights are trained: their gradients and the two moments of Adam are on the model's
            device, and the activations of a whole pass are stored.
        beside_dense: the dense tower runs beside the pruned one, with hidden states, a statistic and a
            block's weights of its own.
    """

    passes: Passes
    samples_per_pass: int = 1
    statistic: type[Statistic] | None = None
    layers: int = 0
    parameters: int = 0
    copies: int = 0
    trials: int = 0
    kept: int = 0
    predictions: int = 0
    batch_size: int | None = None
    float32: bool = False
    trained: bool = False
    beside_dense: bool = False
