"""The free parameter of an allocator, chosen on calibration samples: which candidates are tried, and wins."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from ecoflap.allocate.alpha_pruning import AlphaPruning
from ecoflap.allocate.atp import ATP
from ecoflap.allocate.choose import choose
from ecoflap.allocate.dlp import DLP
from ecoflap.allocate.lsa import LSA
from ecoflap.allocate.owl import OWL
from ecoflap.allocate.protocol import Context
from ecoflap.blocks.statistics import MeanSquare
from ecoflap.errors import NumericalError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import wanda_metric
from ecoflap.prune.wanda import Wanda
from tests import tiny
from tests.allocate.memory import Memory
from tests.allocate.test_uneven import label

pytestmark = [pytest.mark.any_release, pytest.mark.long]

TRIED = [
    OWL(spread="auto"),
    DLP(spread="auto"),
    LSA("layer", spread="auto"),
    ATP(),
    AlphaPruning(epsilon="auto"),
]


def test_of_equal_candidates_the_first_is_chosen(model: PrunableModel, context: Context) -> None:
    losses = {0.0: 3.0, 0.1: 2.0, 0.2: None, 0.3: 2.0}
    stored = replace(context, recall=lambda name, _: losses[name["candidate"]])
    for order in ([0.0, 0.1, 0.2, 0.3], [0.3, 0.2, 0.1, 0.0]):
        chosen, found = choose(model, stored, order, lambda _: {}, {}, 2)
        assert chosen == next(one for one in order if losses[one] == 2.0)
        assert found == losses


@pytest.mark.parametrize("allocator", TRIED, ids=label)
@pytest.mark.every_run("lsa-layer", "owl-", "dlp-median")
def test_auto_takes_the_candidate_of_the_smallest_loss(
    model: PrunableModel, context: Context, allocator: Any
) -> None:
    before = {layer.name: layer.matrix().clone() for layer in model.layers}
    memory = Memory()
    found = allocator(model, None, 0.7, replace(context, recall=memory))
    assert all(torch.equal(layer.matrix(), before[layer.name]) for layer in model.layers)
    losses = found.details["losses"]
    chosen = found.details[allocator.parameter]
    assert losses[f"{chosen:g}"] == min(losses.values())
    assert chosen == min((float(one) for one in losses if losses[one] == losses[f"{chosen:g}"]), default=None)
    fixed = replace(allocator, **{allocator.parameter: chosen})(model, None, 0.7, context)
    assert fixed.keep == found.keep
    assert (found.in_trials, fixed.in_trials) == (True, False), "which decides on propagate=auto"
    computed = len(memory.computed)
    assert allocator(model, None, 0.7, replace(context, recall=memory)) == found
    assert len(memory.computed) == computed


@pytest.mark.parametrize("allocator", TRIED, ids=label)
@pytest.mark.every_run("lsa-layer", "atp-")
def test_auto_tries_another_target_anew(model: PrunableModel, context: Context, allocator: Any) -> None:
    memory = Memory()
    for sparsity in (0.5, 0.7):
        found = allocator(model, None, sparsity, replace(context, recall=memory)).details
        assert found["losses"] == allocator(model, None, sparsity, context).details["losses"]


def test_auto_prunes_as_the_fine_stage_does(model: PrunableModel, context: Context) -> None:
    """The loss of a candidate is that of masks on the dense inputs, made here weight by weight."""
    found = ATP(samples=3)(model, None, 0.7, context).details["losses"]
    dense = {layer.name: layer.matrix().clone() for layer in model.layers}
    allocation = ATP(beta=0.12)(model, None, 0.7)
    inputs: dict[str, MeanSquare] = {}
    handles = [
        layer.module.register_forward_pre_hook(
            lambda _, given, name=layer.name: inputs.setdefault(
                name, MeanSquare(given[0].shape[-1], torch.device("cpu"))
            ).update(given[0].flatten(0, -2))
        )
        for layer in model.layers
    ]
    samples = tiny.one_by_one("blip2_t5", context.samples, 1)
    with quiet_forward(model.module), torch.no_grad():
        for batch in samples:
            model.loss(batch)
        for handle in handles:
            handle.remove()
        for layer in model.layers:
            metric = wanda_metric(dense[layer.name], inputs[layer.name].value)
            mask = Wanda().rule.select(metric, allocation.keep[layer.name])
            layer.write(dense[layer.name] * mask)
        losses = [float(model.loss(batch)) for batch in samples[:3]]
        for layer in model.layers:
            layer.write(dense[layer.name])
    assert found["0.12"] == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_a_loss_that_is_not_finite_never_wins(
    model: PrunableModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ecoflap.allocate.trial import TrialPruner

    losses = iter([math.nan, 3.0, math.inf, 2.0, 2.0, *[5.0] * 6])
    monkeypatch.setattr(TrialPruner, "loss", lambda *_: next(losses))
    details = ATP()(model, None, 0.5, context).details
    assert details["beta"] == pytest.approx(0.3)
    assert list(details["losses"].values())[:4] == [None, 3.0, None, 2.0]
    monkeypatch.setattr(TrialPruner, "loss", lambda *_: math.nan)
    with pytest.raises(NumericalError, match=r"finite at none of 0, 0\.1, .*lower the sparsity"):
        ATP()(model, None, 0.5, context)


def test_equal_candidates_are_tried_once(model: PrunableModel, context: Context) -> None:
    memory = Memory()
    ATP()(model, None, 0.0, replace(context, recall=memory))
    assert [name["candidate"] for name in memory.asked] == [0.0]
