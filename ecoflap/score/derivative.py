"""Zeroth-order scores in the limit of small eps: directional derivatives of the loss.

(L(W + eps z) - L(W - eps z)) / 2 eps tends to ``<dL/dW, z>``. One backward pass per batch gives that for all
layers and draws: during the pass, each gradient is reduced to its inner products with the draws and freed.
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


def directional_derivatives(
    model: PrunableModel, batch: Batch, draws: int, noise: Noise
) -> dict[Layer, list[float]]:
    """Compute | ``<g, z_r>`` | of each layer that the mean loss of a batch depends on, for each draw r.

    Args:
        model: its weights in fp32.
        batch: the samples.
        draws: number of draws of z per layer.
        noise: seed of the draws, beside the layer's name and the draw's number.

    Raises:
        NumericalError: if the loss is not finite.
    """
    row_products: dict[Layer, list[Tensor]] = {}

    def project(layer: Layer, gradient: Tensor) -> None:
        directions = (
            layer.oriented(gaussian(layer.shape, *noise, layer.name, draw, device=gradient.device))
            for draw in range(draws)
        )
        row_products[layer] = [(gradient * direction).sum(dim=1) for direction in directions]

    with streaming_gradients(model.layers, project), recomputing(model.blocks):
        differentiate(model, batch)
    # Within rows, the sum is in fp32 on the device; over rows, in fp64 on the CPU, as some accelerators lack
    # fp64. Copying after the pass spares the host from waiting at every layer.
    return {
        layer: [abs(float(rows.cpu().double().sum())) for rows in products]
        for layer, products in row_products.items()
    }
