"""Trials of runs that prune layer by layer, against the fine stage itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from ecoflap.allocate import budget_search
from ecoflap.allocate.in_context import InContext
from ecoflap.allocate.marginals import measure_marginals
from ecoflap.allocate.propagated_trial import PropagatedTrial, trial_as_used
from ecoflap.allocate.protocol import Context
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.sparsegpt import SparseGPT
from tests import tiny

from .test_in_context import Memory, counts_around

QUICK = InContext(samples=2, batch_size=2, ramp_steps=1, steps=3)
PRUNERS: dict[str, LayerPruner] = {"sparsegpt": SparseGPT(), "admm": ADMM()}
PROPAGATE = ("layer", "compensated")


def context(family: str, propagate: str, pruner: LayerPruner | None = None) -> Context:
    return Context(pruner or ADMM(), tiny.samples(family), 2, 0, propagate=propagate)


def pruned(family: str, keep: Mapping[str, int], propagate: str, pruner: LayerPruner) -> PrunableModel:
    """The model as the fine stage leaves it."""
    model = tiny.build(family)
    allocation = replace(WaterFilling()(model, None, 0.5), keep=dict(keep))
    prune(model, tiny.samples(family), pruner, allocation, batch_size=2, propagate=propagate)
    return model


@pytest.mark.parametrize("propagate", PROPAGATE)
@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "clip", "blip2_t5", "llava"])
def test_a_trial_prunes_as_the_fine_stage_does(family: str, name: str, propagate: str) -> None:
    model, pruner, calibration = tiny.build(family), PRUNERS[name], tiny.samples(family)
    keep, before = WaterFilling()(model, None, 0.5).keep, model.fingerprint()
    other = pruned(family, keep, propagate, pruner)
    with trial_as_used(model, context(family, propagate, pruner)) as trial:
        trial.settle(WaterFilling()(model, None, 0.8).keep, calibration)  # from the dense weights
        trial.settle(keep, calibration)
        for layer, expected in zip(model.layers, other.layers, strict=True):
            assert torch.equal(layer.weight, expected.weight), layer.name
        trial.prune(keep)
        for layer, expected in zip(model.layers, other.layers, strict=True):
            assert torch.equal(layer.weight, expected.weight), layer.name
    assert model.fingerprint() == before


@pytest.mark.parametrize("propagate", PROPAGATE)
@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("family", ["llama", "blip2_t5"])
def test_marginals_equal_those_of_whole_runs_with_one_layer_changed(
    family: str, name: str, propagate: str
) -> None:
    """What is pruned before a layer is the same in a run that changes it alone, and so is its input."""
    pruner, model, calibration = PRUNERS[name], tiny.build(family), tiny.samples(family)
    counts, batches = counts_around(model), loss_batches(model, calibration, 2)
    with trial_as_used(model, context(family, propagate, pruner)) as trial:
        trial.settle(counts.keep, calibration)
        found = measure_marginals(model, trial, counts, batches, recompute=True)
    at = pruned(family, counts.keep, propagate, pruner)
    total = torch.cat([at.loss(batch) for batch in batches]).sum() / len(calibration)
    gradients = torch.autograd.grad(total, [layer.weight for layer in at.layers], allow_unused=True)
    expected = {}
    for index, (layer, gradient) in enumerate(zip(at.layers, gradients, strict=True)):
        more, fewer = (
            pruned(family, {**counts.keep, layer.name: side[layer.name]}, propagate, pruner).layers[index]
            for side in (counts.more, counts.fewer)
        )
        change = more.weight - fewer.weight
        expected[layer.name] = 0.0 if gradient is None else -(gradient * change).sum().item()
    largest = max(map(abs, expected.values()))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4 * largest)


def test_it_allocates_for_the_propagation_of_the_run() -> None:
    found = [
        QUICK(tiny.build("llama"), None, 0.6, context("llama", propagate)).keep
        for propagate in ("pruned", *PROPAGATE)
    ]
    assert found[0] != found[1] != found[2] != found[0]


def test_the_loss_of_the_chosen_is_that_of_the_run() -> None:
    allocation = QUICK(tiny.build("llama"), None, 0.7, context("llama", "compensated"))
    model, calibration = pruned("llama", allocation.keep, "compensated", ADMM()), tiny.samples("llama")
    with torch.no_grad():
        losses = torch.cat([model.loss(batch) for batch in loss_batches(model, calibration, 2)])
    assert losses.mean().item() == pytest.approx(min(allocation.details["losses"].values()), rel=1e-2)


@pytest.mark.parametrize("stopped_after", [0, 1, 3, 4, 6])
def test_a_stopped_allocation_resumes_and_ends_the_same(stopped_after: int) -> None:
    memory, model = Memory(fail_after=stopped_after), tiny.build("llama")
    before, compensated = model.fingerprint(), context("llama", "compensated")
    with pytest.raises(KeyboardInterrupt):
        QUICK(model, None, 0.6, replace(compensated, recall=memory))
    assert model.fingerprint() == before
    memory.fail_after = None
    again = QUICK(model, None, 0.6, replace(compensated, recall=memory))
    assert again == QUICK(tiny.build("llama"), None, 0.6, compensated)


def test_runs_of_another_propagation_recall_nothing_of_each_other() -> None:
    memory = Memory()
    for propagate in ("dense", *PROPAGATE):
        before = memory.computed
        QUICK(tiny.build("llama"), None, 0.6, replace(context("llama", propagate), recall=memory))
        assert memory.computed == before + 8
    QUICK(tiny.build("llama"), None, 0.6, replace(context("llama", "pruned"), recall=memory))
    assert memory.computed == 24, "from dense inputs in both cases"


@pytest.mark.parametrize(("count", "seen"), [(9, 5), (8, 4), (3, 1), (2, 0), (1, 0)])
def test_marginals_are_of_samples_that_the_trial_was_not_fitted_to(
    count: int, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the set at most is left out; of one or two samples, all are seen."""
    fitted, overlaps = set[str](), list[int]()
    settle, measure = PropagatedTrial.settle, budget_search.measure_marginals

    def told_apart(tokens: torch.Tensor) -> set[str]:
        return {str(row.tolist()) for row in tokens}

    def watched(self: PropagatedTrial, keep: Mapping[str, int], given: CalibrationSet) -> None:
        fitted.clear()
        fitted.update(*(told_apart(sample["input_ids"][None]) for sample in given.samples))
        settle(self, keep, given)

    def measured(model: PrunableModel, trial: Any, counts: Any, batches: Any, recompute: bool) -> Any:
        overlaps.append(sum(len(told_apart(batch["input_ids"]) & fitted) for batch in batches))
        assert len(fitted) == (seen or count)
        return measure(model, trial, counts, batches, recompute)

    monkeypatch.setattr(PropagatedTrial, "settle", watched)
    monkeypatch.setattr(budget_search, "measure_marginals", measured)
    calibration = tiny.samples("llama", lengths=(7,) * count)
    assert len({str(sample["input_ids"].tolist()) for sample in calibration.samples}) == count
    QUICK(tiny.build("llama"), None, 0.6, replace(context("llama", "layer"), calibration=calibration))
    assert len(overlaps) == 5
    assert any(overlaps) == (count <= 2)


def test_a_pruner_without_data_is_tried_as_ever() -> None:
    plain, layer = (
        QUICK(tiny.build("llama"), None, 0.6, context("llama", propagate, Magnitude()))
        for propagate in ("pruned", "layer")
    )
    assert plain == layer
