"""In-context allocation against plain autograd, and what can go wrong with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ecoflap.allocate import budget_search
from ecoflap.allocate.allocation import check_counts, keep_total
from ecoflap.allocate.budget_search import BudgetSearch, Candidate
from ecoflap.allocate.in_context import InContext
from ecoflap.allocate.marginals import Counts, Marginals, measure_marginals
from ecoflap.allocate.row_weights import RowWeights
from ecoflap.allocate.trial import TrialPruner, trial_pruner
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks import loss_batches as loss_batching
from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import round_to_total
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny
from tests.allocate.memory import Memory
from tests.allocate.test_marginals import PRUNERS, context

pytestmark = pytest.mark.long

QUICK = InContext(samples=2, batch_size=2, ramp_steps=1, steps=2)
GRANULARITIES = [("row", "auto"), ("layer", "even"), ("layer", "weighted"), ("block", "auto")]


def allocate(family: str, sparsity: float = 0.6, allocator: InContext = QUICK, **changes: Any) -> Any:
    return allocator(tiny.build(family), None, sparsity, replace(context(family), **changes))


def reached_by_loss(family: str) -> set[str]:
    """The layers that the loss depends on."""
    model = tiny.build(family)
    loss = torch.cat([model.loss(batch) for batch in loss_batches(model, tiny.samples(family), 2)]).sum()
    weights = [layer.weight for layer in model.layers]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return {
        layer.name
        for layer, gradient in zip(model.layers, gradients, strict=True)
        if gradient is not None and gradient.any()
    }


@pytest.mark.parametrize(
    ("family", "granularity", "rows"),
    [(family, *options) for family, options in tiny.pairs(GRANULARITIES, [("block", "auto")])],
)
@pytest.mark.every_run(*tiny.REPRESENTATIVES)
def test_the_total_is_exact_and_the_model_unchanged(
    family: str, granularity: str, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the uniform candidate, whose rows are even, would win on random weights."""
    monkeypatch.setattr(BudgetSearch, "best", lambda _, candidates: (candidates["last"], {}))
    model = tiny.build(family)
    before = model.fingerprint()
    allocation = replace(QUICK, granularity=granularity, rows=rows)(model, None, 0.55, context(family))
    sizes = [layer.size for layer in model.layers]
    assert sum(allocation.keep.values()) == keep_total(sizes, 0.55)
    assert list(allocation.keep) == [layer.name for layer in model.layers]
    assert all(0 <= count <= allocation.sizes[name] for name, count in allocation.keep.items())
    assert model.fingerprint() == before
    weighted = set() if rows == "even" else reached_by_loss(family)
    assert set(allocation.rows) == (set(allocation.keep) if granularity == "row" else weighted)
    check_counts(allocation, model.layers)
    if granularity == "block":
        for tower in model.towers:
            for block in tower.blocks:
                shares = [allocation.keep[layer.name] / layer.size for layer in block.layers]
                rounding = 1 / min((layer.size for layer in block.layers), default=1)
                assert not shares or max(shares) - min(shares) <= 2 * rounding


@pytest.mark.parametrize("name", PRUNERS)
def test_it_allocates_for_the_pruner_that_is_used(name: str) -> None:
    even = replace(QUICK, rows="even")
    found = {other: allocate("llama", 0.6, even, pruner=pruner).keep for other, pruner in PRUNERS.items()}
    assert all(keep != found[name] for other, keep in found.items() if other != name)


@pytest.mark.parametrize("family", ["llama", "blip2_t5", "vit"])
def test_no_candidate_has_a_smaller_loss_than_the_chosen(family: str) -> None:
    allocation = allocate(family, 0.7)
    losses = allocation.details["losses"]
    model, calibration = tiny.build(family), tiny.samples(family)
    with trial_pruner(model, context(family)) as trial:
        trial.prune({name: allocation.count(name) for name in allocation.keep})
        chosen = trial.loss(loss_batches(model, calibration, 2))
    assert set(losses) == {"last", "mean", "uniform", "even"}
    assert chosen == pytest.approx(min(losses.values()), rel=1e-5)


def shifted(point: Tensor, sizes: Tensor, budget: float) -> Tensor:
    """Sparsities plus one number, from 0 to 0.98, which remove the budget."""
    low, high = -1.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        removed = float(((point + middle).clamp(0, 0.98) * sizes).sum())
        low, high = (middle, high) if removed < budget * float(sizes.sum()) else (low, middle)
    return (point + high).clamp(0, 0.98)


def test_the_search_equals_a_loop_over_the_steps_as_written() -> None:
    """Two steps at 0.5, 0.55 and 0.6, and then four at the target, smaller and smaller."""
    rates = [0.1] * 6 + [0.1, 0.1 * 3 ** (-1 / 3), 0.1 * 3 ** (-2 / 3), 0.1 / 3]
    options = InContext(samples=2, batch_size=2, ramp_steps=2, steps=4, rate=0.1)
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    sizes = torch.tensor([layer.size for layer in model.layers], dtype=torch.float64)

    def counts(point: Tensor, budget: float) -> dict[str, int]:
        exact = ((1 - point) * sizes).tolist()
        kept = round_to_total(exact, [*model.sizes.values()], keep_total([*model.sizes.values()], budget))
        return dict(zip(model.sizes, kept, strict=True))

    def nearest(point: Tensor) -> dict[str, int]:
        return dict(zip(model.sizes, map(round, ((1 - point.clamp(0, 1)) * sizes).tolist()), strict=True))

    rows, points = RowWeights(), list[Tensor]()
    point = torch.full_like(sizes, 0.5)
    with trial_pruner(model, context("llama")) as trial:
        for turn, budget in enumerate([0.5] * 2 + [0.55] * 2 + [0.6] * 2 + [0.62] * 4):
            point = shifted(point, sizes, budget)
            points.append(point)
            places = [(2 * turn + number) % len(calibration) for number in range(2)]
            around = Counts(counts(point, budget), nearest(point - 0.05), nearest(point + 0.05))
            trial.row_weights = rows
            found = measure_marginals(
                model, trial, around, loss_batches(model, calibration.chosen(places), 2), recompute=False
            )
            worth = torch.cat([*found.gains.values()])
            worth /= torch.tensor([around.more[name] - around.fewer[name] for name in model.sizes])
            mean = (worth.abs() * sizes).sum() / sizes.sum()
            point = point - 2 * rates[turn] * (worth - mean) / (worth.abs() + mean)
            point = shifted(point, sizes, budget)
            rows.add(
                {name: [float(f"{one:.4g}") for one in of_rows] for name, of_rows in found.squares.items()}
            )
        average = shifted(torch.stack([*points[8:], point]).mean(dim=0), sizes, 0.62)
        uniform = torch.full_like(sizes, 0.62)
        losses = {}
        for name, one, weights in (
            ("last", point, rows),
            ("mean", average, rows),
            ("uniform", uniform, RowWeights()),
            ("even", point, RowWeights()),
        ):
            trial.row_weights = weights
            trial.prune(counts(one, 0.62))
            losses[name] = trial.loss(loss_batches(model, calibration, 2))
    allocation = options(model, None, 0.62, context("llama"))
    assert allocation.details["losses"] == pytest.approx(losses, rel=1e-5)
    best = min(losses, key=losses.__getitem__)
    chosen = {"last": point, "mean": average, "uniform": uniform, "even": point}[best]
    assert allocation.keep == counts(chosen, 0.62)


@pytest.mark.parametrize("sparsity", [0.4, 0.6, 0.65])
def test_all_that_is_measured_with_n_of_m_has_the_budget(
    sparsity: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though counts are rounded to whole groups: the target is between two of them, and so is each step's."""
    pruner = Wanda(mask="n:4")
    kept: list[int] = []
    prune_trial = TrialPruner.prune

    def watched(self: TrialPruner, keep: Mapping[str, int]) -> None:
        prune_trial(self, keep)
        kept.append(sum(int(layer.weight.count_nonzero()) for layer in self._model.layers))

    monkeypatch.setattr(TrialPruner, "prune", watched)
    allocation = allocate("llama", sparsity, pruner=pruner)
    sizes = list(allocation.sizes.values())
    budgets = [step.budget for step in QUICK.steps_to(sparsity)] + [sparsity] * 3
    for count, budget in zip(kept, budgets, strict=True):
        assert 0 <= keep_total(sizes, budget) - count < max(sizes) / 4
    model, losses = tiny.build("llama"), allocation.details["losses"]
    with trial_pruner(model, replace(context("llama"), pruner=pruner)) as trial:
        trial.prune(pruner.fitted(allocation).keep)
        found = trial.loss(loss_batches(model, tiny.samples("llama"), 2))
    assert found == pytest.approx(min(losses.values()), rel=1e-5)


def test_even_rows_are_taken_where_their_loss_is_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    best = BudgetSearch.best
    monkeypatch.setattr(
        BudgetSearch,
        "best",
        lambda search, found: best(search, {name: found[name] for name in ("last", "even")}),
    )
    weighted: list[bool] = []
    loss = BudgetSearch._loss

    def even_wins(search: BudgetSearch, candidate: Any) -> float | None:
        weighted.append(candidate.row_weights.known)
        return (loss(search, candidate) or 0.0) + 100.0 * candidate.row_weights.known

    monkeypatch.setattr(BudgetSearch, "_loss", even_wins)
    allocation = allocate("llama", 0.6)
    assert weighted == [True, False]
    assert not allocation.rows
    assert sum(allocation.keep.values()) == keep_total(list(allocation.sizes.values()), 0.6)


def test_a_mask_of_n_of_m_leaves_no_layer_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Mapping[str, int]] = []
    prune_trial = TrialPruner.prune

    def watched(self: TrialPruner, keep: Mapping[str, int]) -> None:
        tried.append(keep)
        prune_trial(self, keep)

    monkeypatch.setattr(TrialPruner, "prune", watched)
    allocate("llama", 0.7, replace(QUICK, rate=0.3, steps=3), pruner=Wanda(mask="n:4"))
    assert min(count for keep in tried for count in keep.values()) > 0


def test_equal_marginals_stay_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(model: PrunableModel, *_: Any) -> Marginals:
        return Marginals(
            {layer.name: torch.zeros(1) for layer in model.layers},
            {layer.name: torch.ones(layer.shape[0]) for layer in model.layers},
        )

    monkeypatch.setattr(budget_search, "measure_marginals", flat)
    uniform = WaterFilling()(tiny.build("llama"), None, 0.6).keep
    assert all(abs(count - uniform[name]) <= 1 for name, count in allocate("llama").keep.items())


def test_a_loss_that_depends_on_no_layer_is_refused() -> None:
    """A contrastive loss of one sample is 0, whatever the weights are."""
    with pytest.raises(UserError, match=r"the loss depends on none of the layers.*a larger batch_size"):
        allocate("clip", allocator=replace(QUICK, batch_size=1))


def test_two_targets_share_the_steps_of_their_ramps() -> None:
    memory = Memory()
    allocate("llama", 0.6, recall=memory)
    alone = Memory()
    allocate("llama", 0.7, recall=alone)
    before = len(memory.computed)
    allocate("llama", 0.7, recall=memory)
    # 0.5, 0.55 and the first step at 0.6
    assert len(memory.computed) - before == len(alone.computed) - 3
    again = len(memory.computed)
    allocate("llama", 0.7, recall=memory)
    assert len(memory.computed) == again


def test_nothing_is_pruned_when_every_step_is_recalled(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    first = allocate("llama", recall=memory)

    def fail(*_: Any) -> None:
        raise AssertionError("the model was pruned")

    monkeypatch.setattr("ecoflap.allocate.trial.trial_pruner", fail)
    assert allocate("llama", recall=memory) == first


@pytest.mark.parametrize("granularity", ["row", "layer"])
@pytest.mark.parametrize("stopped_after", [0, 1, 3, 5])
def test_a_stopped_allocation_resumes_and_ends_the_same(stopped_after: int, granularity: str) -> None:
    memory, allocator = Memory(fail_after=stopped_after), replace(QUICK, granularity=granularity)
    model = tiny.build("llama")
    before = model.fingerprint()
    with pytest.raises(KeyboardInterrupt):
        allocator(model, None, 0.6, replace(context("llama"), recall=memory))
    assert model.fingerprint() == before
    memory.fail_after = None
    assert allocate("llama", allocator=allocator, recall=memory) == allocate("llama", allocator=allocator)


def test_the_batch_size_changes_no_marginal() -> None:
    """But the norms of the gradients of rows, which are those of batches."""
    even = replace(QUICK, rows="even")
    keep = allocate("llama", allocator=replace(even, batch_size=1)).keep
    other = allocate("llama", allocator=even).keep
    assert all(abs(count - other[name]) <= 2 for name, count in keep.items())


@pytest.mark.parametrize("granularity", ["row", "layer"])
def test_one_sample_and_no_sparsity(granularity: str) -> None:
    family, allocator = "llama", replace(QUICK, granularity=granularity)
    one = allocate(family, allocator=allocator, calibration=tiny.samples(family).take(1))
    assert sum(one.keep.values()) == keep_total(list(one.sizes.values()), 0.6)
    none = allocate(family, 0.0, allocator)
    assert none.keep == none.sizes


@pytest.mark.parametrize("pruner", [Magnitude(), SparseGPT(), Wanda(mask="n:4"), Wanda(mask="2:4")])
def test_rows_need_a_mask_by_rows(pruner: LayerPruner) -> None:
    with pytest.raises(UserError, match=r"granularity=layer allocation\.rows=even, or use pruner\.mask=row"):
        replace(QUICK, granularity="row").check_pruner(pruner)


@pytest.mark.parametrize("sparsity", [0.5, 0.6, 0.7, 0.93])
def test_rows_of_equal_marginals_stay_uniform(monkeypatch: pytest.MonkeyPatch, sparsity: float) -> None:
    """In each trial too: rows that round alike would miss the budget together."""
    monkeypatch.setattr(
        budget_search,
        "measure_marginals",
        lambda model, trial, counts, *_: Marginals(
            {name: (counts.more[name] - counts.fewer[name]).double() for name in counts.keep}, {}
        ),
    )
    tried: list[int] = []
    prune_trial = TrialPruner.prune

    def watched(self: TrialPruner, keep: Mapping[str, Tensor]) -> None:
        tried.append(int(sum(counts.sum() for counts in keep.values())))
        prune_trial(self, keep)

    monkeypatch.setattr(TrialPruner, "prune", watched)
    allocation = allocate("llama", sparsity, replace(QUICK, granularity="row", ramp_start=0.9))
    for layer in tiny.build("llama").layers:
        share = layer.shape[1] * (1 - sparsity)
        assert all(abs(count - share) < 1 for count in allocation.rows[layer.name])
        assert abs(allocation.keep[layer.name] - layer.shape[0] * share) <= 1
    at_target = [count for count in tried if abs(count - sum(allocation.keep.values())) <= 1]
    assert len(at_target) >= len(tried) - (2 if sparsity > 0.9 else 0), "the ramp's step is at another budget"


@pytest.mark.parametrize(
    ("sparsity", "pruner"),
    [(0.0, Wanda()), (0.98, Wanda()), (0.98, Wanda(mask="matrix")), (0.75, Wanda(mask="n:4"))],
)
def test_nothing_is_measured_where_the_budget_decides_alone(
    monkeypatch: pytest.MonkeyPatch, sparsity: float, pruner: LayerPruner
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the model was pruned")

    monkeypatch.setattr("ecoflap.allocate.trial.trial_pruner", fail)
    allocation = allocate("llama", sparsity, pruner=pruner)
    assert allocation.keep == WaterFilling()(tiny.build("llama"), None, sparsity).keep
    assert allocation.details == {"losses": {}}


@pytest.mark.parametrize(
    "changed",
    [
        lambda counts: counts[:-1],
        lambda counts: [counts[0] + 1, *counts[1:]],
        lambda counts: [-1, counts[0] + counts[1] + 1, *counts[2:]],
        lambda counts: [sum(counts[:3]), 0, 0, *counts[3:]],  # more than a row has
    ],
)
def test_counts_of_rows_that_do_not_fit_are_refused(changed: Callable[[list[int]], list[int]]) -> None:
    allocation, layers = (
        allocate("llama", allocator=replace(QUICK, granularity="row")),
        tiny.build("llama").layers,
    )
    name = layers[0].name
    wrong = replace(allocation, rows={**allocation.rows, name: changed(allocation.rows[name])})
    with pytest.raises(UserError, match=f"the counts of rows of {name} are not"):
        check_counts(wrong, layers)


def test_a_loss_that_is_not_finite_is_reported() -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        model.module.get_parameter("model.norm.weight").fill_(float("inf"))
    with pytest.raises(NumericalError, match=r"not finite|is nan|is inf"):
        QUICK(model, None, 0.6, context("llama"))


def test_a_candidate_whose_loss_is_not_finite_never_wins() -> None:
    losses = {0.4: None, 0.5: 3.0, 0.6: 2.0}
    stored = SimpleNamespace(recall=lambda _, compute: compute())
    search: Any = SimpleNamespace(_context=stored, _loss=lambda candidate: losses[candidate.budget])
    candidates = {f"{budget}": Candidate(torch.tensor([budget]), RowWeights(), budget) for budget in losses}
    best, found = BudgetSearch.best(search, candidates)
    assert best.budget == 0.6
    assert found == {"0.4": math.inf, "0.5": 3.0, "0.6": 2.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"granularity": "tower"}, "allocation.granularity=tower"),
        ({"rows": "all"}, "allocation.rows=all"),
        ({"granularity": "row", "rows": "weighted"}, "leave out one of them"),
        ({"steps": 0}, "allocation.steps=0"),
        ({"samples": 0}, "allocation.samples=0"),
        ({"rate": 0.0}, r"allocation.rate=0.0 is outside \(0, 1\)"),
        ({"band": 1.0}, r"allocation.band=1.0 is outside \(0, 1\)"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        InContext(**options)


def test_impossible_targets_are_refused() -> None:
    with pytest.raises(UserError, match=r"makes no layer sparser than 0\.98"):
        QUICK.check(0.99)
    with pytest.raises(UserError, match="outside"):
        QUICK.check(1.0)


def samples_read(allocator: InContext, samples: int) -> int:
    """How many samples go through the last block in a search over so many of one length."""
    model, read = tiny.build("llama"), [0]
    given = replace(tiny.samples("llama"), samples=[tiny.samples("llama").samples[0]] * samples)

    def count(_: Any, inputs: tuple[torch.Tensor, ...], __: Any) -> None:
        read[0] += len(inputs[0])

    handle = model.blocks[-1].module.register_forward_hook(count)
    allocator(model, None, 0.6, replace(context("llama"), calibration=given))
    handle.remove()
    return read[0]


def test_the_passes_of_an_estimate_are_those_of_the_search() -> None:
    """A backward pass counts as two forward passes; without ``recompute`` it is not seen here."""
    few = replace(QUICK, recompute=False)
    one_more = replace(few, steps=few.steps + 1)
    assert few.passes(6, 0.6) - few.passes(4, 0.6) == samples_read(few, 6) - samples_read(few, 4)
    for samples, in_a_step in ((4, 2), (1, 1)):
        assert samples_read(one_more, samples) - samples_read(few, samples) == in_a_step
        assert one_more.passes(samples, 0.6) - few.passes(samples, 0.6) == 3 * in_a_step


def test_padding_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    keeps = loss_batching._padding_keeps_losses
    monkeypatch.setattr(
        loss_batching, "_padding_keeps_losses", lambda *given: tried.append(given) or keeps(*given)
    )
    assert len({len(sample["input_ids"]) for sample in tiny.samples("llama").samples}) > 1
    allocate("llama")
    assert len(tried) == 1
