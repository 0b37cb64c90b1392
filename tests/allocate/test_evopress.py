"""EvoPress on tiny models: what a candidate's fitness is, the counts, and going on after a stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ecoflap.allocate import evopress
from ecoflap.allocate.allocation import keep_total
from ecoflap.allocate.distance import Distance
from ecoflap.allocate.evopress import EvoPress
from ecoflap.allocate.layer_trials import LayerTrials
from ecoflap.allocate.protocol import Context
from ecoflap.allocate.trial import TrialPruner, trial_pruner
from ecoflap.blocks.statistics import Statistic
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny
from tests.allocate.memory import Memory
from tests.prune import reference

pytestmark = [pytest.mark.any_release, pytest.mark.long]

SMALL: dict[str, Any] = {"generations": 4, "offspring": 6, "survivors": [3, 1], "samples": [2, 4], "step": 8}
PRUNERS = [Wanda(), SparseGPT(), Magnitude()]


def context(family: str, pruner: LayerPruner | None = None, recall: Any = None) -> Context:
    given = {} if recall is None else {"recall": recall}
    return Context(pruner or Wanda(), tiny.samples(family), 4, 7, **given)


def weights(model: PrunableModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def assert_same(model: PrunableModel, before: Mapping[str, Tensor]) -> None:
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


@torch.no_grad()
def slow_statistics(model: PrunableModel, pruner: LayerPruner, family: str) -> dict[str, Statistic | None]:
    """Of all inputs of each layer in the dense model."""
    found: dict[str, Statistic | None] = {}
    for layer in model.layers:
        found[layer.name] = None
        if pruner.statistic is not None:
            inputs = reference.inputs_of(model, layer, tiny.samples(family))
            statistic = pruner.statistic(layer.shape[1], inputs.device)
            statistic.update(inputs)
            found[layer.name] = statistic
    return found


@pytest.mark.parametrize("measure", ["kl", "loss"])
@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner.name)
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "blip2_t5"])
@torch.no_grad()
@pytest.mark.every_run("t5-wanda-kl", "t5-sparsegpt-loss", "llama", "gpt2")
def test_a_candidate_is_measured_on_the_pruned_model(family: str, pruner: LayerPruner, measure: str) -> None:
    model, slow, chosen = tiny.build(family), tiny.build(family), [3, 0, 2]
    keep = {layer.name: layer.size * (3 + number % 4) // 8 for number, layer in enumerate(model.layers)}
    before = weights(model)
    with trial_pruner(model, context(family, pruner)) as trial:
        distance = Distance(model, LayerTrials(trial), tiny.samples(family), 2, measure)
        found = distance([keep], chosen)[0]
    assert_same(model, before)
    statistics = slow_statistics(slow, pruner, family)
    batches = [{name: x[None] for name, x in tiny.samples(family).samples[index].items()} for index in chosen]
    dense = [slow_logits(slow, family, batch) for batch in batches]
    for layer in slow.layers:
        layer.write(pruner(layer.matrix().clone(), statistics[layer.name], keep[layer.name]).weight)
    if measure == "loss":
        expected = sum(float(slow.loss(batch)) for batch in batches) / len(batches)
    else:
        rows = [
            (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)
            for p, q in zip(dense, [slow_logits(slow, family, batch) for batch in batches], strict=True)
        ]
        expected = float(torch.cat(rows).mean())
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("measure", ["kl", "loss"])
def test_a_candidate_is_measured_on_the_same_batches_again(measure: str) -> None:
    """A contrastive loss depends on which samples share a batch; divergences begin at the dense model."""
    model = tiny.build("clip")
    keep = {layer.name: layer.size // 4 for layer in model.layers}
    with trial_pruner(model, context("clip")) as trial:
        distance = Distance(model, LayerTrials(trial), tiny.samples("clip"), 2, measure)
        first, again, in_order = (distance([keep], chosen) for chosen in ([3, 0, 2], [3, 0, 2], [0, 2, 3]))
    assert first == again == in_order
    assert first[0] > 0


def slow_logits(model: PrunableModel, family: str, batch: dict[str, Tensor]) -> Tensor:
    """Logits of the targets of one sample, [targets, classes]."""
    logits: Tensor = model.module(**batch).logits[0].double()
    return logits[:-1] if family in tiny.LANGUAGE else logits


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.613, 0.9])
@pytest.mark.parametrize("scope", ["tower", "model"])
@pytest.mark.every_run("tower-0.0", "tower-0.9", "model-0.613")
def test_totals_are_exact_for_unequal_layers(scope: str, sparsity: float) -> None:
    model = tiny.build("blip2_t5", skip_layers=(r"block\.1\.layer\.0",))
    before = weights(model)
    allocation = EvoPress(scope=scope, **SMALL)(model, None, sparsity, context("blip2_t5"))
    assert_same(model, before)
    assert allocation.in_trials
    assert list(allocation.keep) == [layer.name for layer in model.layers]
    whole = [model.layers] if scope == "model" else [tower.layers for tower in model.towers]
    for layers in whole:
        kept = sum(allocation.keep[layer.name] for layer in layers)
        assert kept == keep_total([layer.size for layer in layers], sparsity)
    assert all(0 <= allocation.keep[layer.name] <= layer.size for layer in model.layers)
    assert any(allocation.details["levels"].values()) == (sparsity > 0)


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner.name)
@pytest.mark.parametrize("family", ["llama", "clip", "blip_retrieval", "vit"])
@pytest.mark.every_run("llama", "clip-wanda")
def test_the_fitness_falls_below_that_of_the_uniform_model(family: str, pruner: LayerPruner) -> None:
    model = tiny.build(family)
    options = {**SMALL, "samples": [4, 5], "generations": 6}
    allocation = EvoPress(**options)(model, None, 0.6, context(family, pruner))
    with trial_pruner(model, context(family, pruner)) as trial:
        distance = Distance(model, LayerTrials(trial), tiny.samples(family), 4, "kl")
        uniform = EvoPress(**{**options, "step": 10**6})(model, None, 0.6, context(family, pruner)).keep
        values = distance([uniform, allocation.keep], range(5))
    assert values[1] < values[0]
    trace = allocation.details["fitness"]
    assert trace[-1] == pytest.approx(values[1], rel=1e-4)
    assert trace == sorted(trace, reverse=True), "the last stage has all samples, so none gets worse"


def test_nothing_is_pruned_twice_while_the_cache_holds_it() -> None:
    class Counting(Wanda):
        def metric(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
            solved.append(1)
            return super().metric(weight, statistic)

    def solves(cache_bytes: int) -> tuple[int, dict[str, int]]:
        solved.clear()
        model = tiny.build("llama")
        with trial_pruner(model, context("llama", Counting())) as trial:
            trials = LayerTrials(trial, cache_bytes)
            for number in range(12):
                keep = {layer.name: layer.size // (2 + number % 3) for layer in model.layers}
                trials.prune(keep)
                for layer in model.layers:
                    assert int((layer.weight != 0).sum()) == keep[layer.name]
        return len(solved), model.sizes

    solved: list[int] = []
    layers = len(tiny.build("llama").layers)
    assert solves(2**20)[0] == 3 * layers
    assert solves(0)[0] == 12 * layers
    assert 3 * layers < solves(2**13)[0] <= 12 * layers


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner.name)
def test_without_a_cache_the_result_is_the_same(pruner: LayerPruner, monkeypatch: pytest.MonkeyPatch) -> None:
    first = EvoPress(**SMALL)(tiny.build("llama"), None, 0.6, context("llama", pruner))
    small: Callable[[TrialPruner], LayerTrials] = lambda trial: LayerTrials(trial, 0)
    monkeypatch.setattr(evopress, "LayerTrials", small)
    assert EvoPress(**SMALL)(tiny.build("llama"), None, 0.6, context("llama", pruner)) == first


def test_a_stopped_search_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evopress, "STORED_EVERY", 2)
    options = {**SMALL, "generations": 5}
    whole = EvoPress(**options)(tiny.build("llama"), None, 0.6, context("llama"))
    memory, model = Memory(fail_after=2), tiny.build("llama")
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        EvoPress(**options)(model, None, 0.6, context("llama", recall=memory))
    assert_same(model, before)
    memory.fail_after = 3
    assert EvoPress(**options)(model, None, 0.6, context("llama", recall=memory)) == whole
    assert len(memory.computed) == 3
    assert EvoPress(**options)(model, None, 0.6, context("llama", recall=memory)) == whole, (
        "nothing is computed"
    )


def test_another_target_is_another_search() -> None:
    memory, options = Memory(), {**SMALL, "generations": 1}
    for sparsity in (0.5, 0.7):
        allocation = EvoPress(**options)(tiny.build("llama"), None, sparsity, context("llama", recall=memory))
        alone = EvoPress(**options)(tiny.build("llama"), None, sparsity, context("llama"))
        assert allocation.details == alone.details


def test_another_seed_is_another_search() -> None:
    model = tiny.build("llama")
    first = EvoPress(**SMALL)(model, None, 0.6, context("llama"))
    other = EvoPress(**SMALL)(model, None, 0.6, Context(Wanda(), tiny.samples("llama"), 4, 8))
    assert first.keep != other.keep


def test_losses_that_are_never_finite_are_reported() -> None:
    class Broken(Wanda):
        def together(self, weights: Sequence[Tensor], *arguments: Any) -> Any:
            return [
                one._replace(weight=one.weight * torch.nan) for one in super().together(weights, *arguments)
            ]

    model = tiny.build("llama")
    before = weights(model)
    with pytest.raises(NumericalError, match=r"no model pruned to sparsity=0\.6 has a finite loss"):
        EvoPress(**SMALL)(model, None, 0.6, context("llama", Broken()))
    assert_same(model, before)


def test_a_loss_without_predictions_is_refused() -> None:
    with pytest.raises(UserError, match=r"use allocation\.fitness=loss"):
        EvoPress(**SMALL)(tiny.build("torch_encoder"), None, 0.6, context("torch_encoder"))
    EvoPress(**SMALL, fitness="loss")(tiny.build("torch_encoder"), None, 0.6, context("torch_encoder"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"survivors": [4, 2]}, r"allocation\.survivors=\[4, 2\]: .* falling to 1"),
        ({"survivors": [2, 4, 1]}, "falling to 1"),
        ({"survivors": []}, "falling to 1"),
        ({"samples": [8, 32]}, r"allocation\.samples=\[8, 32\]: .* each of the 3 stages"),
        ({"samples": [0, 8, 32]}, "at least 1"),
        ({"generations": 0}, "at least 1"),
        ({"step": 0}, "at least 1"),
        ({"fitness": "ppl"}, "fitness=ppl is not known"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvoPress(**options)


def test_n_of_m_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to allocate"):
        EvoPress().check_pruner(Magnitude("2:4"))
