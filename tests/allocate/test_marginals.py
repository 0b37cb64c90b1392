"""Marginals of the loss in pruned models against plain autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ecoflap.allocate.marginals import Counts, measure_marginals
from ecoflap.allocate.protocol import Context
from ecoflap.allocate.trial import trial_pruner
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.data.batch import Batch, samples_in
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import Keep
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.ria import RIA
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny

pytestmark = pytest.mark.long

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


def pruned(family: str, pruner: LayerPruner, keep: Mapping[str, Keep]) -> PrunableModel:
    model = tiny.build(family)
    rows = {name: counts.tolist() for name, counts in keep.items() if isinstance(counts, Tensor)}
    totals = {name: int(torch.as_tensor(counts).sum()) for name, counts in keep.items()}
    allocation = replace(WaterFilling()(model, None, 0.5), keep=totals, rows=rows)
    prune(model, tiny.samples(family), pruner, allocation, batch_size=2, propagate="dense")
    for layer in model.layers:
        kept = torch.count_nonzero(layer.matrix(), dim=1)
        assert kept.le(torch.tensor(rows.get(layer.name, layer.shape[1]))).all()
    return model


def by_autograd(model: PrunableModel, batches: Sequence[Batch]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The gradients of the mean loss, [rows, cols] each, and the squared norms of their rows, a mean over
    batches.
    """
    layers, samples = model.layers, sum(map(samples_in, batches))
    means = [torch.zeros(layer.shape) for layer in layers]
    squares = {layer.name: torch.zeros(layer.shape[0], dtype=torch.float64) for layer in layers}
    for batch in batches:
        share, weights = samples_in(batch) / samples, [layer.weight for layer in layers]
        gradients = torch.autograd.grad(model.loss(batch).mean(), weights, allow_unused=True)
        for layer, mean, gradient in zip(layers, means, gradients, strict=True):
            if gradient is not None:
                mean += share * layer.oriented(gradient)
                squares[layer.name] += share * layer.oriented(gradient).double().square().sum(dim=1)
    return means, squares


def compare(
    family: str, pruner: LayerPruner, counts: Counts, by_row: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compare the squared norms of rows; returns the gains of rows as measured, and by plain autograd."""
    model = tiny.build(family)
    batches = loss_batches(model, tiny.samples(family), 2)
    with trial_pruner(model, context(family, pruner)) as trial:
        found = measure_marginals(model, trial, counts, batches, recompute=True, by_row=by_row)
    short = pruner.for_trials
    at, more, fewer = (pruned(family, short, keep) for keep in (counts.keep, counts.more, counts.fewer))
    gradients, squares = by_autograd(at, batches)
    for name, expected in squares.items():
        atol = 1e-4 * float(expected.max())
        torch.testing.assert_close(found.squares[name], expected, rtol=2e-3, atol=atol)
    gains = zip(at.layers, gradients, more.layers, fewer.layers, strict=True)
    return found.gains, {
        layer.name: -(gradient * (a.matrix() - b.matrix())).sum(dim=1).double()
        for layer, gradient, a, b in gains
    }


@pytest.mark.parametrize(("family", "name"), tiny.pairs(PRUNERS, ["sparsegpt"]))
@pytest.mark.every_run("llama", "clip", "blip_vqa-sparsegpt", "t5-sparsegpt", "llava-sparsegpt")
def test_marginals_equal_plain_autograd_at_the_pruned_model(family: str, name: str) -> None:
    found, of_rows = compare(family, PRUNERS[name], counts_around(tiny.build(family)))
    expected = {layer: gains.sum().item() for layer, gains in of_rows.items()}
    largest = max(map(abs, expected.values()))
    assert {layer: gain.item() for layer, gain in found.items()} == pytest.approx(
        expected, rel=1e-3, abs=1e-4 * largest
    )


def rows_around(model: PrunableModel) -> Counts:
    """Other counts for each row of a layer, about half of its weights; and a few more, and fewer."""
    keep = {layer.name: layer.shape[1] // 2 + torch.arange(layer.shape[0]) % 3 - 1 for layer in model.layers}
    more = {layer.name: (keep[layer.name] + 2).clamp(max=layer.shape[1]) for layer in model.layers}
    fewer = {layer.name: (keep[layer.name] - 2).clamp(min=0) for layer in model.layers}
    return Counts(keep, more, fewer)


@pytest.mark.parametrize(("family", "name"), tiny.pairs(BY_ROW, ["wanda"]))
@pytest.mark.every_run("llama", "blip_vqa-wanda", "t5-wanda", "clip-admm", "gpt2-ria", "llava-wanda")
def test_marginals_of_rows_equal_plain_autograd(family: str, name: str) -> None:
    """The gain of a row is that of its own weights, at counts that differ from row to row."""
    found, expected = compare(family, BY_ROW[name], rows_around(tiny.build(family)), by_row=True)
    largest = max(float(gain.abs().max()) for gain in found.values())
    for layer, gain in expected.items():
        torch.testing.assert_close(found[layer], gain, rtol=1e-3, atol=1e-4 * largest)


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
