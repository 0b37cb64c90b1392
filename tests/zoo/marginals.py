"""What in-context allocation, the default, measures of one architecture, beside the slow reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ecoflap.allocate.marginals import Counts, Marginals, measure_marginals
from ecoflap.allocate.protocol import Context
from ecoflap.allocate.trial import TrialPruner, trial_pruner
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet, stack
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.wanda import Wanda
from tests.zoo import reference
from tests.zoo.compare import SEED, Comparison, Made, compare_layer

SAMPLES = 2
Weights = Mapping[str, Tensor]
"""{layer: its weight, [rows, cols]}."""


def in_context(build: Callable[[], PrunableModel], calibration: CalibrationSet) -> Comparison:
    """Prune one copy in a trial and differentiate there; compare masks, gains and norms of rows."""
    result, model, other = Comparison(), build(), build()
    keep, more, fewer = (WaterFilling()(model, None, sparsity).keep for sparsity in (0.5, 0.4, 0.6))
    dense = weights(model)
    try:
        batches = loss_batches(model, calibration.take(SAMPLES), SAMPLES)
        with trial_pruner(model, Context(Wanda(), calibration, batch_size=2, seed=SEED)) as trial:
            found = measure_marginals(model, trial, Counts(keep, more, fewer), batches, recompute=True)
            pruned = weights(model)
            around = [at(counts, trial, model) for counts in (more, fewer)]
            compare_masks(result, other, calibration, trial, pruned, keep)
    except UserError as error:
        result.refusal = str(error)
        return result
    result.wrong += [
        f"{name} is not restored" for name in dense if not torch.equal(weights(model)[name], dense[name])
    ]
    for layer in other.layers:
        layer.write(pruned[layer.name])
    compare_marginals(result, found, other, stack(calibration.samples[:SAMPLES]), around)
    return result


def weights(model: PrunableModel) -> dict[str, Tensor]:
    """Copies of the weights as they are."""
    return {layer.name: layer.matrix().clone() for layer in model.layers}


def at(keep: Mapping[str, int], trial: TrialPruner, model: PrunableModel) -> dict[str, Tensor]:
    """The weights of the model pruned to the counts."""
    trial.prune(keep)
    return weights(model)


def compare_masks(
    result: Comparison,
    dense: PrunableModel,
    calibration: CalibrationSet,
    trial: TrialPruner,
    pruned: Weights,
    keep: Mapping[str, int],
) -> None:
    """Compare statistics and masks with those of full forward passes of the dense model."""
    grams = reference.grams(dense, dense.layers, calibration.samples)
    statistics = {layer.name: group.statistic for group in trial.groups for layer in group.layers}
    for layer in dense.layers:
        name, statistic = layer.name, statistics[layer.name]
        assert statistic is not None
        made = Made(name, statistic.value, pruned[name] != 0, pruned[name], keep[name])
        compare_layer(result, layer.matrix(), grams.get(layer), made)


def compare_marginals(
    result: Comparison, found: Marginals, pruned: PrunableModel, batch: Batch, around: list[dict[str, Tensor]]
) -> None:
    """Compare with one backward pass of the whole pruned model; small gains with a part of the largest."""
    gradients = reference.gradients(pruned, batch)
    more, fewer = around
    products = {name: (gradients[name] * (more[name] - fewer[name])).double() for name in gradients}
    gains = {name: -float(product.sum()) for name, product in products.items()}
    floor = max(1e-3 * max(float(product.abs().sum()) for product in products.values()), 1e-30)
    squares = {name: gradient.double().square().sum(dim=1) for name, gradient in gradients.items()}
    least = max(1e-3 * max(float(square.max()) for square in squares.values()), 1e-30)
    for name, gain in gains.items():
        error = abs(float(found.gains[name]) - gain)
        result.note(f"the gain of {name}", error / max(float(products[name].abs().sum()), floor), 1e-3)
        rows = (found.squares[name] - squares[name]).abs().max()
        result.note(f"the rows of {name}", float(rows) / max(float(squares[name].max()), least), 1e-3)
