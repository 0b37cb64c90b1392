"""What the next weights of each layer, or of each row of it, are worth, measured at the pruned model.

With W(k) the weights that the pruner makes of a layer at k kept weights, G = dL/dW at the pruned model, and
counts k- < k < k+ on both sides of the layer's own:

    m = -<G, W(k+) - W(k-)> / (k+ - k-)

is the fall of the loss per weight that is kept at the margin, to first order. One backward pass gives it for
all layers. A pruner that only masks moves weights of the band between k- and k+ alone, so that m is the mean
of -G w over the band; one that corrects weights moves all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ecoflap.allocate.trial import Group, TrialPruner
from ecoflap.data.batch import Batch, samples_in
from ecoflap.distributed.collectives import share, summed
from ecoflap.errors import NumericalError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import Keep
from ecoflap.score.first_order import measure_gradients


@dataclass(frozen=True)
class Counts:
    """Numbers of weights that each layer keeps, or each of its rows, and on both sides of it.

    Attributes:
        keep: {layer: count} of the pruned model.
        more: larger counts.
        fewer: smaller counts.
    """

    keep: Mapping[str, Keep]
    more: Mapping[str, Keep]
    fewer: Mapping[str, Keep]


@dataclass(frozen=True)
class Marginals:
    """What is measured at the pruned model.

    Attributes:
        gains: {layer: the fall of the mean loss when it keeps ``more`` instead of ``fewer`` weights, [1], or
            when each of its rows does, [rows]}, fp64.
        squares: {layer: the squared norm of the gradient of each of its rows, a mean over batches, [rows]},
            fp64.
    """

    gains: dict[str, Tensor]
    squares: dict[str, Tensor]


def measure_marginals(
    model: PrunableModel,
    trial: TrialPruner,
    counts: Counts,
    batches: Sequence[Batch],
    recompute: bool,
    by_row: bool = False,
) -> Marginals:
    """Prune the model to the counts, and measure what more weights of each layer or row are worth.

    Args:
        model: the model; it stays pruned.
        trial: prunes it.
        counts: what each layer keeps.
        batches: the samples.
        recompute: recompute the blocks' activations in the backward pass instead of keeping them.
        by_row: measure the gains of the rows of each layer one by one.

    Raises:
        NumericalError: if the loss or a gradient is not finite.
    """
    directions = _directions(trial, counts)
    trial.prune(counts.keep)
    layers, samples = model.layers, sum(map(samples_in, batches))
    gains = [layer.shape[0] if by_row else 1 for layer in layers]
    lengths = {layer: (gain, layer.shape[0]) for layer, gain in zip(layers, gains, strict=True)}
    sums = {layer: torch.zeros(sum(length), dtype=torch.float64) for layer, length in lengths.items()}

    def measure(layer: Layer, gradient: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(layer.oriented(gradient), dim=1)
        products = layer.oriented(gradient.mul_(directions[layer].to(gradient.device)))
        gain = -products.sum(dim=1) if by_row else -products.sum().reshape(1)
        return torch.cat([gain, norms.square()])

    with quiet_forward(model.module):
        for batch in share(batches):
            weight = samples_in(batch) / samples
            for layer, value in measure_gradients(model, batch, measure, recompute).items():
                sums[layer] += weight * value.double()
    of_all = summed(torch.cat(list(sums.values())))
    if not of_all.isfinite().all():
        raise NumericalError(
            "a gradient of the pruned model is not finite; the dtype overflows there: use model.dtype=float32"
            " or bfloat16"
        )
    parts = of_all.split([length for pair in lengths.values() for length in pair])
    names = [layer.name for layer in layers]
    return Marginals(dict(zip(names, parts[::2], strict=True)), dict(zip(names, parts[1::2], strict=True)))


def _directions(trial: TrialPruner, counts: Counts) -> dict[Layer, Tensor]:
    """{layer: W(k+) - W(k-), as the parameter is stored, in dtype and place of the layer's dense copy}."""

    def changes(group: Group) -> list[Tensor]:
        pairs = zip(trial.solve(group, counts.more), trial.solve(group, counts.fewer), strict=True)
        return [more - fewer for more, fewer in pairs]

    return {
        layer: layer.oriented(change)
        for group, found in trial.of_each(changes)
        for layer, change in zip(group.layers, found, strict=True)
    }
