"""Zeroth-order scores in the limit of small eps: how steep the loss is along a random direction.

(L(W + eps z) - L(W - eps z)) / 2 eps tends to ``<dL/dW, z>``. One backward pass per batch gives that for all
layers and draws: each gradient is reduced to its products with the draws inside the pass, and freed.
"""

from __future__ import annotations

from torch import Tensor

from ecoflap.data.batch import Batch
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import gaussian
from ecoflap.score.first_order import differentiate, streaming_gradients
from ecoflap.score.probing import Noise
from ecoflap.score.recompute import recomputing


def slopes(model: PrunableModel, batch: Batch, draws: int, noise: Noise) -> dict[Layer, list[float]]:
    """| ``<g, z_r>`` | of each layer that the mean loss of a batch depends on, for each draw r.

    Args:
        model: its weights in fp32.
        batch: the samples.
        draws: how many z per layer.
        noise: what the draws depend on beside layer and number.

    Raises:
        NumericalError: the loss is not finite.
    """
    found: dict[Layer, list[Tensor]] = {}

    def along_draws(layer: Layer, gradient: Tensor) -> None:
        directions = (
            layer.oriented(gaussian(layer.shape, *noise, layer.name, draw, device=gradient.device))
            for draw in range(draws)
        )
        found[layer] = [(gradient * direction).sum(dim=1) for direction in directions]

    with (
        streaming_gradients(model.layers, lambda _, gradient: gradient, along_draws),
        recomputing(model.blocks),
    ):
        differentiate(model, batch)
    # Rows in fp32, their sum in fp64, which not every accelerator has; the host waits for one only after the
    # pass.
    return {
        layer: [abs(float(rows.cpu().double().sum())) for rows in draws_of]
        for layer, draws_of in found.items()
    }
