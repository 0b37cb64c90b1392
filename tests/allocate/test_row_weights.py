"""Row weights against plain sorting, and what can go wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation, check_counts
from ecoflap.allocate.budget_search import BudgetSearch, Candidate
from ecoflap.allocate.in_context import InContext
from ecoflap.allocate.protocol import Context
from ecoflap.allocate.row_weights import CORRECTED, FLOOR, RowWeights
from ecoflap.allocate.trial import LazyTrial, trial_pruner
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.gram import Gram
from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.ops import Keep, select_in_rows
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.masks import MaskRule
from ecoflap.prune.protocol import LayerPruner, Pruned
from ecoflap.prune.ria import RIA
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny

pytestmark = pytest.mark.long

COMPETING: dict[str, LayerPruner] = {
    "magnitude": Magnitude(mask="matrix"),
    "wanda": Wanda(mask="matrix"),
    "sparsegpt": SparseGPT(),
    "admm": ADMM(mask="matrix"),
}
PRUNERS: dict[str, LayerPruner] = {
    "magnitude": Magnitude(mask="row"),
    "wanda": Wanda(),
    "ria": RIA(mask="row"),
    "admm": ADMM(),
}
ROWS, COLS = 12, 20


def statistic(kind: type[Statistic]) -> Statistic:
    found = kind(COLS, torch.device("cpu"))
    inputs = torch.randn(50, COLS, generator=torch.Generator().manual_seed(1))
    found.update(inputs * torch.linspace(0.1, 3, COLS))
    return found


def counts_by_sorting(
    dense: Tensor, squares: list[Tensor], norms: Tensor, keep: int, power: float
) -> list[int]:
    """Rank all weights of a layer by f |w| ||x||, and count those that stay in each row."""
    shares = torch.stack([one / one.mean() for one in squares]).mean(dim=0)
    weights = torch.tensor([round((share + FLOOR) ** (0.5 * power), 3) for share in shares.tolist()])
    metric = weights[:, None] * dense.abs() * norms
    ranked = sorted((float(metric[row, col]), row) for row in range(ROWS) for col in range(COLS))
    kept = [row for _, row in ranked[len(ranked) - keep :]]
    return [kept.count(row) for row in range(ROWS)]


@pytest.mark.parametrize("power", [1.0, CORRECTED])
@pytest.mark.parametrize("kind", [MeanSquare, Gram, None])
@pytest.mark.parametrize("keep", [0, 1, 77, ROWS * COLS])
def test_counts_equal_those_of_sorting_all_weights(
    kind: type[Statistic] | None, keep: int, power: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(ROWS, COLS, generator=generator)
    squares = [torch.rand(ROWS, generator=generator, dtype=torch.float64) ** 4 for _ in range(3)]
    weights, inputs = RowWeights(power), None if kind is None else statistic(kind)
    for one in squares:
        weights.add({"layer": one})
    found = weights.counts("layer", dense, inputs, keep)
    norms = torch.ones(COLS) if inputs is None else inputs.mean_square.sqrt()  # type: ignore[attr-defined]
    assert isinstance(found, Tensor)
    assert found.dtype == torch.int64
    assert found.tolist() == counts_by_sorting(dense, squares, norms, keep, power)


def test_steps_count_alike_however_large_their_gradients_are() -> None:
    one, other = torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0])
    weights = RowWeights()
    weights.add({"layer": one})
    weights.add({"layer": 1e9 * other})
    found = weights.of("layer")
    assert found is not None
    assert found.tolist() == pytest.approx([(1 + FLOOR) ** 0.5] * 2, abs=5e-4), "in thousandths"


def test_a_layer_without_gradients_has_no_weights() -> None:
    """An expert that no sample reaches, or a layer that the loss doesn't depend on, shares evenly."""
    weights = RowWeights()
    weights.add({"layer": torch.zeros(ROWS)})
    assert not weights.known
    assert weights.counts("layer", torch.ones(ROWS, COLS), None, 40) == 40
    weights.add({"layer": torch.ones(ROWS), "other": torch.zeros(ROWS)})
    assert weights.of("other") is None
    found = weights.of("layer")
    assert found is not None
    assert found.tolist() == [1.049] * ROWS, "the root of 1.1: an empty step says nothing"


def test_a_row_without_gradients_is_not_emptied_first() -> None:
    """Its largest weights stay: no sample may have used it, and another may."""
    dense = torch.ones(ROWS, COLS)
    dense[0, :5] = 50.0
    weights = RowWeights()
    weights.add({"layer": torch.tensor([0.0] + [1.0] * (ROWS - 1))})
    found = weights.counts("layer", dense, None, ROWS * COLS // 2)
    assert isinstance(found, Tensor)
    assert found[0] == 5


def test_ties_fill_up_from_the_last_row() -> None:
    weights = RowWeights()
    weights.add({"layer": torch.ones(ROWS)})
    found = weights.counts("layer", torch.ones(ROWS, COLS), None, 2 * COLS + 3)
    assert isinstance(found, Tensor)
    assert found.tolist() == [0] * (ROWS - 3) + [3, COLS, COLS]


@pytest.mark.parametrize(
    ("pruner", "power"),
    [
        (Wanda(), 1.0),
        (Magnitude(mask="matrix"), 1.0),
        (SparseGPT(), CORRECTED),
        (ADMM(), CORRECTED),
        (ADMM(mask="matrix"), CORRECTED),
        (Wanda(repair=True), CORRECTED),
    ],
)
def test_rows_differ_less_under_a_pruner_that_corrects(pruner: LayerPruner, power: float) -> None:
    model = tiny.build("llama")
    context = Context(pruner, tiny.samples("llama"), batch_size=2, seed=0)
    search = BudgetSearch(InContext(), model, context, LazyTrial(model, context), 0.98, weigh_rows=True)
    squares = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    search.row_weights.add({"layer": squares})
    found = search.row_weights.of("layer")
    assert found is not None
    torch.testing.assert_close(found, (squares / 2 + FLOOR) ** (power / 2), rtol=0, atol=5.1e-4)


def test_weights_of_another_power_have_another_digest() -> None:
    found = {RowWeights(power).digest() for power in (1.0, CORRECTED)}
    assert len(found) == 2


@pytest.mark.parametrize("name", COMPETING)
def test_trials_weigh_rows_as_the_fine_stage_does(name: str) -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    context = Context(COMPETING[name], calibration, batch_size=2, seed=0)
    allocator = InContext(samples=2, batch_size=2, ramp_steps=1, steps=3, rate=0.1)
    with LazyTrial(model, context) as lazy:
        search = BudgetSearch(allocator, model, context, lazy, 0.98, weigh_rows=True)
        search.step(search.uniform(0.7), 0.7, turn=0, rate=0.1)
        only = Candidate(search.uniform(0.7), search.row_weights, 0.7)
        search.best({"only": only})
        trial = [layer.matrix().clone() for layer in model.layers]
        counts = search.counts(only)
        of_rows = search.of_rows(counts, search.row_weights)
    assert set(of_rows["row_weights"]) == {layer.name for layer in model.layers}
    allocation = replace(WaterFilling()(model, None, 0.7), keep=counts, **of_rows)
    prune(model, calibration, COMPETING[name].for_trials, allocation, 2, propagate="dense")
    for layer, expected in zip(model.layers, trial, strict=True):
        torch.testing.assert_close(layer.matrix(), expected)


@pytest.mark.parametrize("name", PRUNERS)
def test_trials_prune_to_the_counts_that_the_allocation_has(name: str) -> None:
    """The pruner has the same counts of rows in the fine stage as in the trials, and the same weights."""
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    context = Context(PRUNERS[name], calibration, batch_size=2, seed=0)
    allocator = InContext(samples=2, batch_size=2, ramp_steps=1, steps=3, rate=0.1)
    allocation = allocator(model, None, 0.7, context)
    assert set(allocation.rows) == set(allocation.keep)
    assert any(max(counts) - min(counts) > 2 for counts in allocation.rows.values())
    assert {layer: sum(counts) for layer, counts in allocation.rows.items()} == allocation.keep
    prune(model, calibration, PRUNERS[name].for_trials, allocation, 2, propagate="dense")
    other = tiny.build("llama")
    with trial_pruner(other, context) as trial:
        trial.prune({layer: allocation.count(layer) for layer in allocation.keep})
        for one, two in zip(model.layers, other.layers, strict=True):
            torch.testing.assert_close(one.matrix(), two.matrix())
            assert one.matrix().count_nonzero(dim=1).tolist() == allocation.rows[one.name]


def with_factors(allocation: Allocation, layers: list[Layer]) -> Allocation:
    """Weights from 0.3 to 5 for the rows of all layers but the first."""
    generator = torch.Generator().manual_seed(0)
    factors = {
        layer.name: (0.3 + 4.7 * torch.rand(layer.shape[0], generator=generator) ** 3).tolist()
        for layer in layers[1:]
    }
    return replace(allocation, row_weights=factors)


@pytest.mark.parametrize("propagate", ["dense", "layer"])
@pytest.mark.parametrize(("family", "name"), tiny.pairs(COMPETING, ["wanda"]))
@pytest.mark.every_run("layer", "llava-*-dense", "t5-*-dense", "clip-*-dense")
def test_rows_with_weights_are_pruned_scaled(family: str, name: str, propagate: str) -> None:
    """The pruner sees diag(f) W of each layer alone, and what it makes of it is divided by f again."""
    pruner, calibration, model = COMPETING[name], tiny.samples(family), tiny.build(family)
    allocation = with_factors(WaterFilling()(model, None, 0.5), model.layers)
    dense = {layer.name: layer.matrix().clone() for layer in model.layers}
    seen: dict[str, Any] = {}
    together = type(pruner).together

    def watched(self: Any, weights: Any, statistic: Any, keeps: Any, *parts: Any) -> Any:
        for weight, keep in zip(weights, keeps, strict=True):
            seen[fingerprint(weight)] = (weight.clone(), statistic, keep)
        return together(self, weights, statistic, keeps, *parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pruner), "together", watched)
        report = prune(model, calibration, pruner, allocation, 2, propagate=propagate)
    for layer in model.layers:
        factors = torch.tensor(allocation.row_weights.get(layer.name, [1.0] * layer.shape[0]))
        given, statistic, keep = seen[fingerprint(dense[layer.name] * factors[:, None])]
        assert keep == allocation.keep[layer.name]
        alone = pruner(given, statistic, keep)
        assert torch.equal(layer.oriented(report.masks[layer.name]), alone.mask)
        found, expected = layer.matrix().float(), alone.weight / factors[:, None]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        if not pruner.corrects:
            assert torch.equal(found, dense[layer.name] * alone.mask), "kept weights are the dense ones"


def fingerprint(weight: Tensor) -> bytes:
    return weight.contiguous().numpy().tobytes()


@pytest.mark.parametrize("pruner", [SparseGPT(), Wanda(mask="matrix"), ADMM(mask="matrix")])
def test_weights_lower_the_weighted_error(pruner: LayerPruner) -> None:
    """What the rows are weighted for: the sum of f^2 ||(w - w') X||^2 is less than with even rows."""
    model = tiny.build("llama")
    even = WaterFilling()(model, None, 0.6)
    weighted = with_factors(even, model.layers)
    errors = []
    for allocation in (even, weighted):
        model, calibration = tiny.build("llama"), tiny.samples("llama")
        context = Context(Magnitude(), calibration, batch_size=2, seed=0)
        dense = {layer.name: layer.matrix().clone() for layer in model.layers}
        with trial_pruner(tiny.build("llama"), replace(context, pruner=SparseGPT())) as trial:
            statistics = {layer.name: group.statistic for group in trial.groups for layer in group.layers}
        prune(model, calibration, pruner, allocation, 2, propagate="dense")
        total = 0.0
        for layer in model.layers[1:]:
            factors = torch.tensor(weighted.row_weights[layer.name])[:, None]
            statistic = statistics[layer.name]
            assert statistic is not None
            total += statistic.output_energy((layer.matrix() - dense[layer.name]) * factors)
        errors.append(total)
    assert errors[1] < 0.95 * errors[0]


def test_masks_that_cannot_weigh_rows_are_refused() -> None:
    allocation = with_factors(WaterFilling()(tiny.build("llama"), None, 0.5), tiny.build("llama").layers)
    for pruner in (Wanda(), ADMM(), SparseGPT(mask="2:4")):
        with pytest.raises(UserError, match=r"each row a weight of its own, .*allocate for the pruner"):
            pruner.check_rows(allocation)
    with pytest.raises(UserError, match=r"weighs rows, and pruner=ria pruner\.mask=matrix can't"):
        RIA(mask="matrix").check_rows(allocation)
    for pruner in (RIA(mask="matrix"), SparseGPT(mask="n:4"), Wanda(mask="2:4")):
        with pytest.raises(UserError, match=r"allocation\.rows=weighted .* can't weigh"):
            InContext(rows="weighted").check_pruner(pruner)


@pytest.mark.parametrize(
    "changed",
    [
        lambda factors: factors[1:],
        lambda factors: [0.0, *factors[1:]],
        lambda factors: [1e-50, *factors[1:]],
        lambda factors: [True, *factors[1:]],
    ],
)
def test_row_weights_that_do_not_fit_are_refused(changed: Callable[[list[float]], list[float]]) -> None:
    layers = tiny.build("llama").layers
    allocation = with_factors(WaterFilling()(tiny.build("llama"), None, 0.5), layers)
    name = layers[1].name
    wrong = {**allocation.row_weights, name: changed(allocation.row_weights[name])}
    with pytest.raises(UserError, match=f"row weights of {name} are not"):
        check_counts(replace(allocation, row_weights=wrong), layers)


@dataclass(frozen=True)
class OwnPruner(LayerPruner):
    """A pruner as a user may write it: it knows of no counts of rows."""

    name: str = "own"
    rule: ClassVar[MaskRule] = MaskRule("row")  # type: ignore[assignment]

    def __call__(self, weight: Tensor, statistic: Statistic | None, keep: Keep) -> Pruned:
        assert isinstance(keep, int)
        mask = select_in_rows(weight.abs(), keep)
        return Pruned(weight * mask, mask)


def test_a_pruner_that_says_nothing_of_rows_gets_none() -> None:
    context = Context(OwnPruner(), tiny.samples("llama"), batch_size=2, seed=0)
    allocator = InContext(samples=2, batch_size=2, ramp_steps=1, steps=2)
    allocation = allocator(tiny.build("llama"), None, 0.6, context)
    assert not allocation.rows
    assert not allocation.row_weights
    with pytest.raises(UserError, match=r"pruner=own pruner\.mask=row can't weigh"):
        replace(allocator, granularity="row").check_pruner(OwnPruner())
    rows = {layer.name: [layer.shape[1] // 2] * layer.shape[0] for layer in tiny.build("llama").layers}
    with pytest.raises(UserError, match=r"weighs rows, and pruner=own pruner\.mask=row can't"):
        OwnPruner().check_rows(replace(allocation, rows=rows))
