"""Give the weights of layers to a pruner, and check what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ecoflap.blocks.statistics import Statistic
from ecoflap.errors import NumericalError, UserError, raised_here
from ecoflap.models.core.layers import Layer
from ecoflap.ops import Keep, Part
from ecoflap.prune.protocol import LayerPruner, Pruned


def solve_layers(
    layers: Sequence[Layer],
    dense: Sequence[Tensor],
    statistic: Statistic | None,
    pruner: LayerPruner,
    keep: Mapping[str, Keep],
    parts: Sequence[Part] | None = None,
    row_weights: Mapping[str, Tensor] | None = None,
) -> list[Pruned]:
    """The pruned weights of layers that share a statistic; the layers stay as they are.

    A layer with row weights f is pruned as diag(f) W, and the pruned matrix is divided by f again: the pruner
    then minimises the sum over rows of f_j^2 ||(w_j - w'_j) X||^2.

    Args:
        layers: the layers.
        dense: their dense weights, or some rows of them, [rows, cols] each; the pruner may write into them.
        statistic: of the input that they read; None for a pruner that uses no data.
        pruner: prunes one layer.
        keep: {layer: number of weights to keep, or of each of its rows}.
        parts: which rows of the layers the weights are; by default all.
        row_weights: {layer: a factor of each of the rows that are given, [rows]}, for some layers.

    Raises:
        NumericalError: if the pruner can't compute with the weights or the inputs.
        UserError: if it returns a weight or a mask of another form.
    """
    factors = [None if row_weights is None else row_weights.get(layer.name) for layer in layers]
    given = [_scaled(weight, factor) for weight, factor in zip(dense, factors, strict=True)]
    try:
        counts = [keep[layer.name] for layer in layers]
        if parts is None:
            pruned = pruner.together(given, statistic, counts)
        else:
            pruned = pruner.together(given, statistic, counts, parts)
    except ValueError as error:
        if not raised_here(error):  # a bug of a pruner of the user's own
            raise
        finite = [bool(torch.isfinite(weight).all()) for weight in dense]
        culprit = layers[0] if all(finite) else layers[finite.index(False)]
        raise NumericalError(f"{culprit.name}: {error}") from error
    if statistic is not None and not statistic.sum.isfinite().all():
        raise NumericalError(
            f"{layers[0].name}: what it reads on the calibration samples is not finite, or too large to be"
            " squared; use model.dtype=float32 or bfloat16"
        )
    for layer, weight, one in zip(layers, dense, pruned, strict=True):
        _check_form(layer, weight, one, pruner)
    return [
        one if factor is None else _unscaled(one, weight, factor)
        for one, weight, factor in zip(pruned, dense, factors, strict=True)
    ]


def _check_form(layer: Layer, dense: Tensor, pruned: Pruned, pruner: LayerPruner) -> None:
    """Refuse what a pruner returns if it is not of the form of the weight that it was given.

    Raises:
        UserError: if it is not ``Pruned``, a shape differs, or the mask is not boolean.
    """
    if not isinstance(pruned, Pruned):
        raise UserError(
            f"pruner={pruner.name} returned a {type(pruned).__name__} for {layer.name}; correct the pruner:"
            " it returns Pruned(weight, mask)"
        )
    shape, weight, mask = list(dense.shape), pruned.weight, pruned.mask
    if list(weight.shape) != shape or list(mask.shape) != shape or mask.dtype != torch.bool:
        raise UserError(
            f"pruner={pruner.name} was given a weight {shape} of {layer.name}, and returned a weight"
            f" {list(weight.shape)} and a mask {list(mask.shape)} of {mask.dtype}; correct the pruner: both"
            " have the shape of the weight, and the mask is of torch.bool"
        )


def _scaled(weight: Tensor, factor: Tensor | None) -> Tensor:
    """A weight [rows, cols], each of its rows times its factor."""
    return weight if factor is None else weight.float() * factor.to(weight.device).unsqueeze(1)


def _unscaled(pruned: Pruned, dense: Tensor, factor: Tensor) -> Pruned:
    """Each row divided by its factor; a weight that the pruner keeps as it was is exactly the dense one."""
    same = pruned.mask & (pruned.weight == _scaled(dense, factor))
    weight = pruned.weight.div_(factor.to(dense.device).unsqueeze(1))
    return pruned._replace(weight=torch.where(same, dense, weight))
