"""Marginals of the loss in pruned models against plain autograd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ecoflap.allocate.marginals import Counts, measure_marginals
from ecoflap.allocate.protocol import Context
from ecoflap.allocate.trial import trial_pruner
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.ria import RIA
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny

PRUNERS: dict[str, LayerPruner] = {"magnitude": Magnitude(), "wanda": Wanda(), "sparsegpt": SparseGPT()}
BY_ROW: dict[str, LayerPruner] = {
    "magnitude": Magnitude(mask="row"),
    "wanda": Wanda(),
    "ria": RIA(mask="row"),
    "admm": ADMM(),
}


def context(family: str, pruner: LayerPruner | None = None) -> Context:
    return Context(pruner or Wanda(), tiny.samples(family), batch_size=2, seed=0)


def counts_around(model: PrunableModel) -> Counts:
    keep, more, fewer = (WaterFilling()(model, None, sparsity).keep for sparsity in (0.5, 0.4, 0.6))
    return Counts(keep, more, fewer)


def pruned(
    family: str,
    calibration: CalibrationSet,
    pruner: LayerPruner,
    keep: Mapping[str, int] | None = None,
    of_rows: Mapping[str, Tensor] | None = None,
) -> PrunableModel:
    model = tiny.build(family)
    rows = {name: counts.tolist() for name, counts in (of_rows or {}).items()}
    keep = {name: sum(counts) for name, counts in rows.items()} if keep is None else keep
    allocation = replace(WaterFilling()(model, None, 0.5), keep=dict(keep), rows=rows)
    prune(model, calibration, pruner, allocation, batch_size=2, propagate="dense")
    return model


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_marginals_equal_plain_autograd_at_the_pruned_model(family: str, name: str) -> None:
    pruner, calibration, model = PRUNERS[name], tiny.samples(family), tiny.build(family)
    counts, batches = counts_around(model), loss_batches(model, calibration, 2)
    with trial_pruner(model, context(family, pruner)) as trial:
        found = measure_marginals(model, trial, counts, batches, recompute=True)
    at, more, fewer = (
        pruned(family, calibration, pruner, keep) for keep in (counts.keep, counts.more, counts.fewer)
    )
    weights = [layer.weight for layer in at.layers]
    total = torch.cat([at.loss(batch) for batch in batches]).sum() / len(calibration)
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    expected = {
        layer.name: 0.0 if gradient is None else -(gradient * (a.weight - b.weight)).sum().item()
        for layer, gradient, a, b in zip(at.layers, gradients, more.layers, fewer.layers, strict=True)
    }
    largest = max(map(abs, expected.values()))
    assert {name: gain.item() for name, gain in found.gains.items()} == pytest.approx(
        expected, rel=1e-3, abs=1e-4 * largest
    )


def rows_around(model: PrunableModel) -> tuple[dict[str, Tensor], ...]:
    """Other counts for each row of a layer, about half of its weights; and a few more, and fewer."""
    keep = {layer.name: layer.shape[1] // 2 + torch.arange(layer.shape[0]) % 3 - 1 for layer in model.layers}
    more = {layer.name: (keep[layer.name] + 2).clamp(max=layer.shape[1]) for layer in model.layers}
    fewer = {layer.name: (keep[layer.name] - 2).clamp(min=0) for layer in model.layers}
    return keep, more, fewer


@pytest.mark.parametrize("name", BY_ROW)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_marginals_of_rows_equal_plain_autograd(family: str, name: str) -> None:
    """The gain of a row is that of its own weights, at counts that differ from row to row."""
    pruner, calibration, model = BY_ROW[name], tiny.samples(family), tiny.build(family)
    counts, batches = rows_around(model), loss_batches(model, calibration, 2)
    with trial_pruner(model, context(family, pruner)) as trial:
        found = measure_marginals(model, trial, Counts(*counts), batches, recompute=True, by_row=True)
    at, more, fewer = (pruned(family, calibration, pruner, of_rows=rows) for rows in counts)
    for layer in at.layers:
        assert torch.count_nonzero(layer.matrix(), dim=1).le(counts[0][layer.name]).all()
    total = torch.cat([at.loss(batch) for batch in batches]).sum() / len(calibration)
    weights = [layer.weight for layer in at.layers]
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    largest = max(float(gain.abs().max()) for gain in found.gains.values())
    for layer, gradient, a, b in zip(at.layers, gradients, more.layers, fewer.layers, strict=True):
        by_weight = torch.zeros(layer.shape) if gradient is None else layer.oriented(gradient)
        expected = -(by_weight * (a.matrix() - b.matrix())).sum(dim=1).double()
        torch.testing.assert_close(found.gains[layer.name], expected, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputing_changes_no_marginal(recompute: bool) -> None:
    model = tiny.build("llama")
    batches = loss_batches(model, tiny.samples("llama"), 2)
    with trial_pruner(model, context("llama")) as trial:
        found = measure_marginals(model, trial, counts_around(model), batches, recompute)
        again = measure_marginals(model, trial, counts_around(model), batches, not recompute)
    assert found.gains == again.gains
    assert all(map(torch.equal, found.squares.values(), again.squares.values()))


def test_marginals_predict_what_one_layer_gains() -> None:
    """To first order, the gain is the fall of the loss if one layer alone keeps more, for small changes."""
    model = tiny.build("llama")
    batches = loss_batches(model, tiny.samples("llama"), 2)
    keep = WaterFilling()(model, None, 0.5).keep
    layer = max(model.layers, key=lambda one: one.size)
    counts = Counts(
        keep, {**keep, layer.name: keep[layer.name] + 1}, {**keep, layer.name: keep[layer.name] - 1}
    )
    with trial_pruner(model, context("llama")) as trial:
        gain = measure_marginals(model, trial, counts, batches, recompute=False).gains[layer.name].item()
        trial.prune(counts.more)
        more = trial.loss(batches)
        trial.prune(counts.fewer)
        fewer = trial.loss(batches)
    assert gain == pytest.approx(fewer - more, rel=0.2)
