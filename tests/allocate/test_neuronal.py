"""NeuronAL's block step: its candidates, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ecoflap.allocate.allocation import Allocation, keep_total
from ecoflap.allocate.misalignment import measure_misalignment
from ecoflap.allocate.neuronal import Neuronal
from ecoflap.allocate.protocol import Context
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny
from tests.allocate import tiny_opt
from tests.allocate.memory import Memory
from tests.allocate.test_misalignment import slowly

pytestmark = [pytest.mark.any_release, pytest.mark.long]

# get_distribution_block of eliacunegatti/NeuroAL e30b6cc on four blocks.
PUBLISHED = {
    (0.6, 0.05): [0.55, 0.583333333333, 0.616666666667, 0.65],
    (0.6, 0.25): [0.35, 0.516666666667, 0.683333333333, 0.85],
    (0.7, 0.15): [0.55, 0.65, 0.75, 0.85],
}


def context(family: str | None = None, recall: Any = None, pruner: Any = None) -> Context:
    calibration = tiny_opt.calibration() if family is None else tiny.samples(family)
    given = {} if recall is None else {"recall": recall}
    return Context(pruner or Wanda(), calibration, 4, 0, **given)


def block_sparsities(model: PrunableModel, allocation: Allocation) -> list[float]:
    return [allocation.sparsity_of([layer.name for layer in block.layers]) for block in model.blocks]


def forced(value: Callable[[float], dict[str, Any]]) -> Any:
    """A recall that has a stored value for each lambda, so that nothing is pruned."""
    return lambda name, compute: value(name["spread"])


def test_towers_of_other_names_are_measured_again() -> None:
    context = Context(Wanda(), tiny.samples("llama"), batch_size=2, seed=0, recall=Memory())
    allocator, model = Neuronal(spreads=(0.1,)), tiny.build("llama")
    keep = allocator(model, None, 0.5, context).keep
    renamed = replace(model, towers=tuple(replace(tower, name="renamed") for tower in model.towers))
    assert allocator(renamed, None, 0.5, context).keep == keep


def test_another_target_is_measured_again() -> None:
    memory, model = Memory(), tiny.build("llama")
    for count, sparsity in enumerate((0.5, 0.7, 0.5), start=1):
        Neuronal(spreads=(0.1,))(model, None, sparsity, context("llama", recall=memory))
        assert len(memory.computed) == min(count, 2)


@pytest.mark.parametrize(("sparsity", "spread"), PUBLISHED)
def test_the_lines_are_the_published_ones(sparsity: float, spread: float) -> None:
    model = tiny_opt.opt_model()
    recall = forced(lambda one: {"language": 0.0 if one == spread else 1.0})
    allocation = Neuronal()(model, None, sparsity, context(recall=recall))
    assert block_sparsities(model, allocation) == pytest.approx(PUBLISHED[sparsity, spread], abs=1e-3)
    assert allocation.details["spread"] == {"language": spread}


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.613, 0.8, 0.95])
@pytest.mark.parametrize("scope", ["tower", "model"])
@pytest.mark.every_run("tower-0.0", "tower-0.613", "model-0.613", "model-0.95")
def test_totals_are_exact_for_unequal_blocks(scope: str, sparsity: float) -> None:
    model = tiny.build("blip2_t5", skip_layers=(r"block\.1\.layer\.0",))
    allocation = Neuronal(spreads=[0.25], scope=scope)(model, None, sparsity, context("blip2_t5"))
    assert list(allocation.keep) == [layer.name for layer in model.layers]
    whole = [model.layers] if scope == "model" else [tower.layers for tower in model.towers]
    for layers in whole:
        kept = sum(allocation.keep[layer.name] for layer in layers)
        assert kept == keep_total([layer.size for layer in layers], sparsity)
    assert all(0 <= allocation.keep[layer.name] <= layer.size for layer in model.layers)


@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT()], ids=lambda pruner: pruner.name)
@pytest.mark.every_run("wanda")
def test_the_smallest_misalignment_of_a_tower_wins(pruner: Any) -> None:
    spreads = [0.01, 0.1, 0.25]
    allocator = Neuronal(spreads=spreads)
    model = tiny.build("blip2_t5")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    allocation = allocator(model, None, 0.6, context("blip2_t5", pruner=pruner))
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    found = {}
    for spread in spreads:
        trial = Neuronal(spreads=[spread])(model, None, 0.6, context("blip2_t5", pruner=pruner))
        found[spread] = slowly(tiny.build("blip2_t5"), pruner, tiny.samples("blip2_t5"), trial)
    for tower in model.towers:
        best = min(spreads, key=lambda spread: found[spread][tower.name])
        assert allocation.details["spread"][tower.name] == best


def test_the_published_lambdas() -> None:
    tried: list[float] = []

    def recall(name: Any, compute: Any) -> Any:
        tried.append(name["spread"])
        return {"language": 0.0}

    published = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.15, 0.2, 0.25]
    allocation = Neuronal()(tiny_opt.opt_model(), None, 0.79, context(recall=recall))
    assert tried == published
    assert allocation.details["spread"] == {"language": 0.01}, "the first of equal ones"
    tried.clear()
    Neuronal()(tiny_opt.opt_model(), None, 0.8, context(recall=recall))
    assert tried == published[:-1]


def test_what_is_not_finite_never_wins() -> None:
    recall = forced(lambda one: {"language": None if one < 0.2 else one})
    allocation = Neuronal()(tiny_opt.opt_model(), None, 0.6, context(recall=recall))
    assert allocation.details["spread"] == {"language": 0.2}
    with pytest.raises(NumericalError, match="tower language are finite at no trial"):
        Neuronal()(tiny_opt.opt_model(), None, 0.6, context(recall=forced(lambda _: {"language": None})))


def test_a_budget_that_towers_share_needs_what_all_of_them_measure() -> None:
    model = tiny.build("blip2_t5")
    names = [tower.name for tower in model.towers]
    values = {0.1: {name: 1.0 for name in names} | {names[0]: None}, 0.2: dict.fromkeys(names, 2.0)}
    recall = forced(lambda spread: values[spread])
    for scope, spread in (("model", 0.2), ("tower", 0.1)):
        allocator = Neuronal(spreads=[0.1, 0.2], scope=scope)
        chosen = allocator(model, None, 0.6, context("blip2_t5", recall=recall)).details["spread"]
        assert chosen == dict.fromkeys(names, spread) | {names[0]: 0.2}


@pytest.mark.parametrize("pruner", [Wanda(), Wanda(mask="n:4")], ids=lambda pruner: pruner.rule.name)
def test_the_trials_have_the_tokens_and_the_mask_of_the_fine_stage(pruner: Any) -> None:
    model, samples = tiny.build("llava"), tiny.samples("llava")
    given = Context(pruner, samples, 4, 0, tokens="text")
    allocation = Neuronal(spreads=[0.25])(model, None, 0.6, given)
    trial = pruner.fitted(allocation)
    assert (trial.keep == allocation.keep) == pruner.rule.by_row
    expected = measure_misalignment(model, pruner, samples.batches(4), trial, "text")
    assert allocation.details["misalignment"]["0.25"] == expected
    assert expected != measure_misalignment(model, pruner, samples.batches(4), trial)


def test_one_block_is_uniform() -> None:
    model = tiny_opt.opt_model(blocks=1)
    allocation = Neuronal()(model, None, 0.6, context())
    sizes = list(allocation.sizes.values())
    assert all(
        abs(1 - keep / size - 0.6) < 1 / size
        for keep, size in zip(allocation.keep.values(), sizes, strict=True)
    )


def test_few_samples_are_used() -> None:
    seen = set[int]()

    class Counting(Wanda):
        def metric(self, weight: Any, statistic: Any) -> Any:
            seen.add(statistic.tokens)
            return super().metric(weight, statistic)

    Neuronal(samples=3, spreads=[0.1])(tiny_opt.opt_model(), None, 0.6, context(pruner=Counting()))
    assert seen == {3 * 12}


@pytest.mark.parametrize("spreads", [[], [-0.1], [math.nan]])
def test_impossible_lambdas_are_refused(spreads: list[float]) -> None:
    with pytest.raises(UserError, match=r"allocation\.spreads="):
        Neuronal(spreads=spreads)


def test_n_of_m_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to allocate"):
        Neuronal().check_pruner(Magnitude("2:4"))
